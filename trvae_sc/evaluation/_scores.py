"""Scores of predicted cells against the hidden ones."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from trvae_sc import metrics, names
from trvae_sc.errors import InputError, UndefinedScoreError
from trvae_sc.evaluation._fitting import (
    STARTED,
    check_fits,
    counts_layer,
    started_from,
    warn_of_training,
)
from trvae_sc.evaluation._tasks import Task
from trvae_sc.expression import Keys, dense, gene_means, log_values, mean_level
from trvae_sc.files import as_path, write_anndata
from trvae_sc.levels import SEPARATOR, level_name
from trvae_sc.metrics import METRICS, _arrays
from trvae_sc.scales import warn_of_scale

N_TOP = 100  # genes that change most, on which effects are scored besides all genes
BOUNDS = ["change_lower", "change_upper"]  #: columns with the interval of a change

#: Scores that every prediction of every task has.
SCORED = names.METRICS
_IN_PCS = ("energy_distance", "mmd")
_OF_TOP = ("de_overlap", "direction_accuracy")
_BY_GENE = tuple(name for name in SCORED if name not in (*_IN_PCS, *_OF_TOP))


def predicted_log_values(task: Task, predicted: AnnData) -> Any:
    """Return predicted cells on the scale of a task: counts by their totals, log values of its kappa.

    Parameters
    ----------
    task, predicted
        The task, and what a method returned.

    Raises
    ------
    InputError
        Other genes than those of the training cells, or in another order; another label or condition than the
        task hides; no note of the scale, or one that does not fit; counts without totals, or totals over other genes.
    """
    check_fits(task, predicted)
    return on_scale(predicted, task.keys, task.kappa)


def on_scale(predicted: AnnData, keys: Keys, kappa: float) -> Any:
    """Return predicted values as log(1 + kappa share), or as they are; see :func:`predicted_log_values`."""
    record = predicted.uns["trvae_sc"]
    if record["scale"] == "counts":
        key = keys.total_counts_key
        if key is not None and key not in predicted.obs:
            raise InputError(
                f"The predicted counts lack their totals, predicted.obs['{key}'], so they cannot be "
                "compared with the task's, which are of whole cells."
            )
        return log_values(predicted, keys._replace(layer=counts_layer(predicted)), kappa)
    ratio = _ratio(predicted, keys, kappa)
    return predicted.X if ratio == 1.0 else _rescaled(dense(predicted.X).astype(np.float64), ratio)


def _ratio(predicted: AnnData, keys: Keys, kappa: float) -> float:
    """Return kappa in units of that of a prediction; 1 where they are next to the same, or there is none."""
    record = predicted.uns["trvae_sc"]
    if not keys.is_count or record["scale"] == "values" or "kappa" not in record:
        return 1.0
    ratio = kappa / float(record["kappa"])
    return 1.0 if np.isclose(ratio, 1.0, rtol=1e-6) else ratio


def _rescaled(x: Any, ratio: float) -> Any:
    """Return log(1 + kappa share) for a kappa that is `ratio` times as large."""
    return np.sign(x) * np.log1p(ratio * np.expm1(np.abs(x)))  # shifted values may be below 0


def score(task: Task, predicted: AnnData, *, n_top: int = N_TOP) -> pd.DataFrame:
    """Score predicted cells against the hidden ones.

    Parameters
    ----------
    task, predicted
        The task, and what a method returned.
    n_top
        Number of genes, those that change most, which effects are scored over besides all.

    Returns
    -------
    One row per metric and set of genes: ``metric``, ``genes``, ``value`` (NaN where the hidden cells do not define
    it). Genes are ``all``, ``top100`` (largest absolute Welch t between hidden and source cells) or ``pcs``, the
    principal components of the training cells. Predictions with intervals also get ``interval_coverage``. A warning
    tells of a model that had seen the hidden combination, and of values that seem to be on another scale.

    Raises
    ------
    InputError
        The prediction does not fit the task: see :func:`predicted_log_values`.
    """
    found = scored(task, predicted, n_top=n_top)
    warn_of_training(task, predicted)
    groups = started_from(task, predicted)
    warn_of_scale("source cells of the task", groups, STARTED, is_count=False)
    return found


def scored(task: Task, predicted: AnnData, *, n_top: int = N_TOP) -> pd.DataFrame:
    """Return what :func:`score` does, without warnings of training and scale."""
    table = score_values(task, predicted_log_values(task, predicted), task.real, n_top=n_top)
    if "change_lower" not in predicted.var or predicted.var["change_lower"].isna().any():
        return table
    genes = _intervals(task, predicted)
    covered = metrics.interval_coverage(
        genes["real_change"], genes["change_lower"], genes["change_upper"]
    )
    table.loc[len(table)] = ["interval_coverage", "all", covered]
    return table


def score_values(
    task: Task,
    predicted: Any,
    real: Any,
    *,
    n_top: int = N_TOP,
    without: Collection[tuple[str, str]] = (),
) -> pd.DataFrame:
    """Return the scores of log values against others; columns as of :func:`score`.

    Scores in `without`, by metric and genes, are NaN and not computed.
    """
    if not task.shift.any():  # no other label shows a change that what is particular goes beyond
        without = [*without, *(("specific_pearson", genes) for genes in (f"top{n_top}", "all"))]
    top, everything = metrics.top_genes(task.real, task.control, n_top), np.arange(real.shape[1])
    rows: list[list[Any]] = []

    def add(name: str, genes: str, data: dict[str, Any], **options: Any) -> None:
        skipped = (name, genes) in without
        rows.append([name, genes, float("nan") if skipped else _value(name, data, **options)])

    for genes, index in ((f"top{n_top}", top), ("all", everything)):
        data = {"real": real[:, index], "predicted": predicted[:, index]}
        data |= {"control": task.control[:, index], "shift": task.shift[index]}
        for name in _BY_GENE:
            add(name, genes, data)
    needed = any((name, "pcs") not in without for name in _IN_PCS)
    data = {"real": task.project(real), "predicted": task.project(predicted)} if needed else {}
    for name in _IN_PCS:
        add(name, "pcs", data)
    data = {"real": real, "predicted": predicted, "control": task.control}
    n = min(n_top, real.shape[1])
    for name in _OF_TOP:
        add(name, f"top{n_top}", data, n=n)
    if len(task.by_target) > 2:
        data = {"real_by_target": task.by_target, "predicted": gene_means(predicted)[None]}
        data["target"] = level_name(task.holdout.target)
        add("target_rank", "all", data)
    return pd.DataFrame(rows, columns=["metric", "genes", "value"])


def _value(name: str, data: dict[str, Any], **options: Any) -> float:
    """Return a score of :data:`trvae_sc.metrics.METRICS`; NaN where these cells do not define it."""
    metric = METRICS[name]
    needed = {argument: data[key] for argument, key in metric.needs.items()}
    try:
        return metric.function(**needed, **options)
    except UndefinedScoreError:
        return float("nan")


def interval_table(task: Task, predicted: AnnData) -> pd.DataFrame:
    """Return the real change of every gene on the scale of its predicted interval.

    That of counts is the change of log(1 + kappa mean share), not of the mean log value that
    :func:`gene_table` has.

    Parameters
    ----------
    task, predicted
        The task, and a prediction with intervals, ``change_lower`` and ``change_upper`` in ``var``.

    Returns
    -------
    Columns ``real_change``, ``change_lower``, ``change_upper``; genes in the order of training.

    Raises
    ------
    InputError
        There are no intervals, other genes than those of the training cells, or no note of the scale.
    """
    if not set(BOUNDS) <= set(predicted.var):
        raise InputError(f"predicted.var has no intervals {BOUNDS}; it has {list(predicted.var)}.")
    check_fits(task, predicted)
    return _intervals(task, predicted)


def _intervals(task: Task, predicted: AnnData) -> pd.DataFrame:
    """Return what :func:`interval_table` does, of a prediction that fits the task."""
    of_shares = task.keys.is_count and has_levels(predicted, task.keys)
    real = change_to(task.real, task, of_shares=of_shares)
    bounds = {name: change_of(task, predicted, name) for name in BOUNDS}
    return pd.DataFrame({"real_change": real, **bounds}, index=predicted.var.index)


def has_levels(predicted: AnnData, keys: Keys) -> bool:
    """Return whether means and changes in ``var`` are those of :func:`mean_level`: not of log values of counts."""
    return not keys.is_count or predicted.uns["trvae_sc"]["scale"] != "values"


def change_to(x: Any, task: Task, *, of_shares: bool) -> np.ndarray:
    """Return the change of every gene from the source cells to others, of f of mean shares or of mean values."""
    ends = (mean_level(cells, is_count=of_shares) for cells in (x, task.control))
    return _arrays.difference(*ends)  # predictions are rounded to float32


def change_of(task: Task, predicted: AnnData, name: str) -> np.ndarray:
    """Return a change, or an end of its interval, in a column of ``var``: of f for the kappa of a task."""
    change = predicted.var[name].to_numpy(np.float64)
    ratio = _ratio(predicted, task.keys, task.kappa)
    if ratio == 1.0:
        return change
    start = mean_level(task.control, is_count=True)
    return _rescaled(_rescaled(start, 1.0 / ratio) + change, ratio) - start


def level_change(task: Task, predicted: AnnData) -> np.ndarray:
    """Return the predicted change of every gene: of counts that of f of mean shares, else of mean values."""
    if "predicted_change" in predicted.var and has_levels(predicted, task.keys):
        return change_of(task, predicted, "predicted_change")
    return change_to(predicted_log_values(task, predicted), task, of_shares=task.keys.is_count)


def gene_table(task: Task, predicted: AnnData) -> pd.DataFrame:
    """Return real and predicted change of every gene, largest absolute Welch t first.

    Parameters
    ----------
    task, predicted
        The task, and what a method returned.

    Returns
    -------
    Columns ``control_mean``, ``real_mean``, ``predicted_mean``, ``real_change``, ``predicted_change`` (log values)
    and ``welch_t``.
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

    Both hold log values of the task's genes (below 0 as 0) of the real source cells as controls and of the hidden
    or the predicted cells; ``obs`` has condition and label. With cell-eval::

        cell-eval run -ar real.h5ad -ap predicted.h5ad --pert-col condition --control-pert control

    Parameters
    ----------
    task, predicted
        The task, and what a method returned.
    folder
        Folder to write to; made if missing.
    """
    folder = as_path(folder, "folder")
    found = predicted_log_values(task, predicted)
    holdout, var = task.holdout, pd.DataFrame(index=task.train.var_names)
    ends = [level_name(holdout.source), level_name(holdout.target)]
    for name, x in (("real", task.real), ("predicted", found)):
        both = np.concatenate([dense(task.control), dense(x)])
        both = np.maximum(both, 0) if task.keys.is_count else both
        columns = {
            SEPARATOR.join(task.keys.condition_columns): np.repeat(
                ends, [task.control.shape[0], x.shape[0]]
            ),
            holdout.key or task.keys.labels_key: level_name(holdout.label),
        }
        obs = pd.DataFrame(columns, index=[f"cell_{i}" for i in range(len(both))])
        values = sparse.csr_matrix(both, dtype=np.float32)
        cells = AnnData(values, obs=obs.astype("category"), var=var.copy())
        write_anndata(cells, folder / f"{name}.h5ad", overwrite=True)
