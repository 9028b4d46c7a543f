"""Scores of predicted cells against the hidden ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from trvae_sc import metrics
from trvae_sc.evaluation._tasks import Task
from trvae_sc.expression import dense, gene_means, log_values
from trvae_sc.files import beside

N_TOP = 100  # genes that change most, on which effects are scored besides all genes


def predicted_log_values(task: Task, predicted: AnnData) -> Any:
    """Return predicted cells on the scale on which a task is scored.

    Raises
    ------
    ValueError
        Other genes than those of the training cells, or in another order; no note of the scale.
    """
    _check_predicted(task, predicted)
    if predicted.uns["trvae_sc"]["scale"] != "counts":
        return predicted.X
    return log_values(predicted, task.keys._replace(layer=None), task.kappa)


def _check_predicted(task: Task, predicted: AnnData) -> None:
    """Raise where genes or the note of the scale are not as they must be."""
    if predicted.var_names.tolist() != task.train.var_names.tolist():
        raise ValueError(
            "The predicted cells do not have the genes of the training cells in order."
        )
    if "scale" not in predicted.uns.get("trvae_sc", {}):
        raise ValueError(
            "predicted.uns['trvae_sc']['scale'] is missing: 'counts', or any other word for values "
            "that are compared as they are (log values where the data are counts)."
        )


def score(task: Task, predicted: AnnData) -> pd.DataFrame:
    """Score predicted cells against the hidden ones.

    Parameters
    ----------
    task
        The task.
    predicted
        What a method returned.

    Returns
    -------
    One row per metric and set of genes: ``metric``, ``genes``, ``value``. Genes are ``all``,
    ``top100`` (largest absolute Welch t between hidden and source cells; truth is used here, for
    scoring only) or ``pcs``, the principal components of the training cells. Predictions with
    intervals also get ``interval_coverage``.
    """
    table = _score(task, predicted_log_values(task, predicted), task.real)
    if "change_lower" not in predicted.var or predicted.var["change_lower"].isna().any():
        return table
    genes = interval_table(task, predicted)
    covered = metrics.interval_coverage(
        genes["real_change"], genes["change_lower"], genes["change_upper"]
    )
    return pd.concat(
        [table, pd.DataFrame([("interval_coverage", "all", covered)], columns=table.columns)],
        ignore_index=True,
    )


def interval_table(task: Task, predicted: AnnData) -> pd.DataFrame:
    """Return the real change of every gene on the scale of its predicted interval.

    That of counts is the change of log(1 + kappa mean share), not of the mean log value that
    :func:`gene_table` has.

    Parameters
    ----------
    task
        The task.
    predicted
        A prediction with intervals, ``change_lower`` and ``change_upper`` in ``var``.

    Returns
    -------
    Columns ``real_change``, ``change_lower``, ``change_upper``; genes in the order of training.

    Raises
    ------
    KeyError
        The prediction has no intervals.
    ValueError
        Other genes than those of the training cells, or no note of the scale.
    """
    bounds = ["change_lower", "change_upper"]
    if not set(bounds) <= set(predicted.var):
        raise KeyError(f"predicted.var has no intervals {bounds}; it has {list(predicted.var)}.")
    _check_predicted(task, predicted)
    as_shares = task.keys.is_count and predicted.uns["trvae_sc"]["scale"] != "values"
    real, control = (_level(x, as_shares=as_shares) for x in (task.real, task.control))
    return predicted.var[bounds].assign(real_change=real - control)[["real_change", *bounds]]


def _level(x: Any, *, as_shares: bool) -> np.ndarray:
    """Return log(1 + kappa share) of the mean share, from log values; else their mean."""
    return np.log1p(gene_means(np.expm1(x))) if as_shares else gene_means(x)


def ceiling(task: Task, *, seed: int = 0) -> pd.DataFrame:
    """Score one half of the hidden cells against the other: what sampling noise allows."""
    order = np.random.default_rng(seed).permutation(task.real.shape[0])
    half = len(order) // 2
    return _score(task, task.real[order[:half]], task.real[order[half:]])


def _score(task: Task, predicted: Any, real: Any) -> pd.DataFrame:
    top = metrics.top_genes(task.real, task.control, N_TOP)
    rows = []
    for genes, index in ((f"top{N_TOP}", top), ("all", np.arange(real.shape[1]))):
        r, p, c = (x[:, index] for x in (real, predicted, task.control))
        found = {
            "effect_r2": metrics.effect_r2(r, p, c),
            "effect_pearson": metrics.effect_pearson(r, p, c),
            "specific_pearson": metrics.specific_pearson(r, p, c, shift=task.shift[index]),
            "r2_mean": metrics.r2_mean(r, p),
            "r2_var": metrics.r2_var(r, p),
            "variance_ratio": metrics.variance_ratio(r, p),
        }
        rows += [(name, genes, value) for name, value in found.items()]
    p, r = task.project(predicted), task.project(real)
    rows.append(("energy_distance", "pcs", metrics.energy_distance(p, r)))
    rows.append(("mmd", "pcs", metrics.mmd(p, r)))
    n = min(N_TOP, real.shape[1])
    for name in ("de_overlap", "direction_accuracy"):
        value = getattr(metrics, name)(real, predicted, task.control, n=n)
        rows.append((name, f"top{N_TOP}", value))
    if len(task.by_target) > 2:
        target = str(task.holdout.target)
        value = metrics.target_rank(task.by_target, gene_means(predicted)[None], target)
        rows.append(("target_rank", "all", value))
    return pd.DataFrame(rows, columns=["metric", "genes", "value"])


def gene_table(task: Task, predicted: AnnData) -> pd.DataFrame:
    """Return real and predicted change of every gene, largest absolute Welch t first.

    Columns: ``control_mean``, ``real_mean``, ``predicted_mean``, ``real_change``,
    ``predicted_change`` (log values) and ``welch_t``.
    """
    control, real = gene_means(task.control), gene_means(task.real)
    forecast = gene_means(predicted_log_values(task, predicted))
    table = pd.DataFrame(
        {
            "control_mean": control,
            "real_mean": real,
            "predicted_mean": forecast,
            "real_change": real - control,
            "predicted_change": forecast - control,
            "welch_t": metrics.welch_t(task.real, task.control),
        },
        index=task.train.var_names,
    )
    order = metrics.top_genes(task.real, task.control, len(table))
    return table.iloc[order]


def export_cells(task: Task, predicted: AnnData, folder: str | Path) -> None:
    """Write ``real.h5ad`` and ``predicted.h5ad`` as other programs score them (cell-eval).

    Both hold log values of the task's genes in ``X``, the same real source cells as controls, and the
    hidden or the predicted cells; ``obs`` has condition and label. Log values of counts that a shift
    took below 0 are written as 0, below which other programs refuse them. With cell-eval::

        cell-eval run -ar real.h5ad -ap predicted.h5ad --pert-col condition --control-pert control

    Parameters
    ----------
    task
        The task.
    predicted
        What a method returned.
    folder
        Folder to write to; made if missing.
    """
    folder = Path(folder)
    found = predicted_log_values(task, predicted)
    for name, x in (("real", task.real), ("predicted", found)):
        values = [dense(task.control), dense(x)]
        condition = np.repeat(
            [str(task.holdout.source), str(task.holdout.target)], [len(v) for v in values]
        )
        obs = pd.DataFrame(
            {
                task.keys.condition_key: condition,
                task.holdout.key or task.keys.labels_key: str(task.holdout.label),
            },
            index=[f"cell_{i}" for i in range(len(condition))],
        )
        values = np.concatenate(values)
        cells = AnnData(
            sparse.csr_matrix(
                np.maximum(values, 0) if task.keys.is_count else values, dtype=np.float32
            ),
            obs=obs.astype("category"),
            var=pd.DataFrame(index=task.train.var_names),
        )
        path = folder / f"{name}.h5ad"
        with beside(path) as temporary:
            cells.write_h5ad(temporary, compression="gzip")
            temporary.replace(path)
