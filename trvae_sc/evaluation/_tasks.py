"""Held-out combinations: data prepared without them, and predictions scored against them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from scipy import sparse
from sklearn.decomposition import PCA

from trvae_sc import metrics
from trvae_sc.expression import (
    Keys,
    gene_means,
    log_values,
    median_total,
    profiles,
    totals,
    values,
)

logger = logging.getLogger(__name__)

#: Column that :func:`training_data` writes the totals over all genes to.
TOTAL_COLUMN = "total_counts"


@dataclass(frozen=True)
class Holdout:
    """A combination of label and target condition that is hidden from training.

    Parameters
    ----------
    label
        Label (cell type) to predict.
    target
        Condition it is predicted under.
    source
        Condition whose cells the prediction starts from; None if that is decided later.
    """

    label: Any
    target: Any
    source: Any = None

    def hidden(self, adata: AnnData, keys: Keys) -> np.ndarray:
        """Return which cells are hidden, shape (n_cells,)."""
        condition = adata.obs[keys.condition_key].astype(str) == str(self.target)
        return (condition & self._has_label(adata, keys)).to_numpy()

    def sources(self, adata: AnnData, keys: Keys) -> np.ndarray:
        """Return which cells the prediction starts from, shape (n_cells,)."""
        condition = adata.obs[keys.condition_key].astype(str)
        start = (
            condition != str(self.target) if self.source is None else condition == str(self.source)
        )
        return (start & self._has_label(adata, keys)).to_numpy()

    def _has_label(self, adata: AnnData, keys: Keys) -> Any:
        return adata.obs[keys.labels_key].astype(str) == str(self.label)


def parse_holdouts(texts: Sequence[str], adata: AnnData, keys: Keys) -> list[Holdout]:
    """Return hold-outs written as ``label:target``, the target being the part after the last colon.

    Raises
    ------
    ValueError
        The text has no colon, or no cell has that label and condition.
    """
    found = []
    for text in texts:
        label, colon, target = text.rpartition(":")
        if not colon:
            raise ValueError(f"Hold-out '{text}' is not of the form 'label:target'.")
        holdout = Holdout(label, target)
        if not holdout.hidden(adata, keys).any():
            raise ValueError(
                f"Hold-out '{text}' matches no cell: labels are "
                f"{sorted(adata.obs[keys.labels_key].astype(str).unique())}, conditions "
                f"{sorted(adata.obs[keys.condition_key].astype(str).unique())}."
            )
        found.append(holdout)
    return found


def training_data(
    adata: AnnData,
    holdouts: Sequence[Holdout],
    *,
    keys: Keys,
    n_top_genes: int | None = 2000,
) -> tuple[AnnData, Keys]:
    """Return the cells that are not held out, with their variable genes and whole-cell totals.

    Genes are chosen on the returned cells alone (scanpy's ``seurat`` flavour on log values), so that
    nothing about a held-out combination enters.

    Parameters
    ----------
    adata
        Cells x genes.
    holdouts
        Combinations to leave out.
    keys
        Where the data are.
    n_top_genes
        Number of variable genes; all genes if None or if there are no more.

    Returns
    -------
    The training cells, and keys that name their totals.
    """
    hidden = np.zeros(adata.n_obs, dtype=bool)
    for holdout in holdouts:
        hidden |= holdout.hidden(adata, keys)
    if hidden.all():
        raise ValueError("The hold-outs cover every cell: nothing is left to train on.")
    train = adata[~hidden]
    train = train.to_memory() if train.isbacked else train.copy()
    if keys.is_count:
        train, keys = with_totals(train, keys)
    if n_top_genes is not None and n_top_genes < train.n_vars:
        train = train[:, variable_genes(train, keys, n_top_genes)].copy()
    return train, keys


def with_totals(adata: AnnData, keys: Keys) -> tuple[AnnData, Keys]:
    """Write the totals over all genes to ``obs``, unless the keys name a column that has them."""
    if keys.total_counts_key is not None:
        return adata, keys
    adata.obs[TOTAL_COLUMN] = totals(adata, keys)
    return adata, keys._replace(total_counts_key=TOTAL_COLUMN)


def variable_genes(train: AnnData, keys: Keys, n_top_genes: int) -> np.ndarray:
    """Return which genes are most variable over the training cells, shape (n_genes,)."""
    x = log_values(train, keys, median_total(train, keys))
    x = sparse.csr_matrix(x, dtype=np.float32) if sparse.issparse(x) else np.asarray(x, np.float32)
    logs = AnnData(x, var=train.var[[]])
    logs.uns["log1p"] = {"base": None}
    table = sc.pp.highly_variable_genes(logs, n_top_genes=n_top_genes, inplace=False)
    return table["highly_variable"].to_numpy()


def looks_like_counts(adata: AnnData, keys: Keys) -> bool:
    """Return whether the first thousand cells hold nothing but counts."""
    x = values(adata, keys)[:1000]
    data = x.data if sparse.issparse(x) else np.asarray(x)
    return bool(np.isfinite(data).all() and (data >= 0).all() and (data == np.floor(data)).all())


# -- scoring ------------------------------------------------------------------------------------------

N_TOP = 100  # genes that change most, on which effects are scored besides all genes
N_PCS = 50  # principal components of the training cells in which distributions are compared


@dataclass(frozen=True)
class Task:
    """A hold-out with everything that a method may see, and the truth that it may not.

    Parameters
    ----------
    holdout
        What is hidden.
    keys
        Where the data are.
    train
        Training cells with their variable genes.
    source
        Cells to start from; they are training cells, too.
    real
        Hidden cells, log values.
    control
        Source cells, log values.
    shift
        Mean over the other labels of their own shift, shape (n_genes,); zero where none has both
        conditions.
    kappa
        Median total of the training cells.
    pca
        Principal components of the training cells.
    """

    holdout: Holdout
    keys: Keys
    train: AnnData
    source: AnnData
    real: Any
    control: Any
    shift: np.ndarray
    kappa: float
    pca: PCA

    def project(self, x: Any) -> np.ndarray:
        """Return log values in the principal components of the training cells."""
        return self.pca.transform(x.toarray() if sparse.issparse(x) else np.asarray(x))


def prepare_task(
    adata: AnnData, holdout: Holdout, *, keys: Keys, n_top_genes: int | None = 2000
) -> Task:
    """Hide a combination and prepare everything else without it.

    Parameters
    ----------
    adata
        All cells.
    holdout
        Combination to hide; its source must be given.
    keys
        Where the data are.
    n_top_genes
        Number of variable genes, chosen on the training cells.

    Returns
    -------
    The task.

    Raises
    ------
    ValueError
        No source cells, or no hidden cells.
    """
    hidden, start = holdout.hidden(adata, keys), holdout.sources(adata, keys)
    for name, rows in (("hidden", hidden), ("source", start)):
        if rows.sum() < 2:
            raise ValueError(f"{holdout} has {rows.sum()} {name} cells; at least 2 are needed.")
    train, keys = training_data(adata, [holdout], keys=keys, n_top_genes=n_top_genes)
    kappa = median_total(train, keys)
    real = adata[hidden]
    if keys.is_count and keys.total_counts_key not in real.obs:
        real, _ = with_totals(real.copy(), keys._replace(total_counts_key=None))
    real = log_values(real[:, train.var_names], keys, kappa)
    source = train[holdout.sources(train, keys)].copy()
    known = profiles(train, keys)
    try:
        shift = known.shifts(holdout.source, holdout.target, without=holdout.label)[1].mean(0)
    except ValueError:
        shift = np.zeros(train.n_vars)
    x = log_values(train, keys, kappa)
    dense = np.asarray(x.toarray() if sparse.issparse(x) else x, dtype=np.float32)
    n_components = min(N_PCS, min(dense.shape) - 1)
    pca = PCA(n_components, svd_solver="randomized", random_state=0).fit(dense)
    control = log_values(source, keys, kappa)
    return Task(holdout, keys, train, source, real, control, shift, kappa, pca)


def predicted_log_values(task: Task, predicted: AnnData) -> Any:
    """Return predicted cells on the scale on which a task is scored."""
    if predicted.uns["trvae_sc"]["scale"] != "counts":
        return predicted.X
    return log_values(predicted, task.keys._replace(layer=None), task.kappa)


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
    scoring only) or ``pcs``, the principal components of the training cells.
    """
    return _score(task, predicted_log_values(task, predicted), task.real)


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
