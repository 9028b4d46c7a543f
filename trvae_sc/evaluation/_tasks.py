"""Data prepared without the held-out combinations."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import scanpy as sc
from anndata import AnnData
from scipy import sparse
from sklearn.decomposition import PCA

from trvae_sc.evaluation._holdouts import Holdout
from trvae_sc.expression import (
    Keys,
    dense,
    gene_means,
    groups,
    log_values,
    median_total,
    profiles,
    totals,
    values,
)

logger = logging.getLogger(__name__)

#: Column that :func:`training_data` writes the totals over all genes to.
TOTAL_COLUMN = "total_counts"


def subsample(adata: AnnData, keys: Keys, max_cells: int, *, seed: int = 0) -> AnnData:
    """Return at most so many cells of each label and condition, in their order, for a quick look.

    Parameters
    ----------
    adata
        Cells.
    keys
        Where the data are.
    max_cells
        Cells of each label and condition to keep; all where there are no more.
    seed
        Seed of the draw.

    Raises
    ------
    ValueError
        `max_cells` is less than 1.
    """
    if max_cells < 1:
        raise ValueError(f"max_cells is {max_cells}; at least 1 is needed.")
    rng = np.random.default_rng(seed)
    kept = [rng.permutation(rows)[:max_cells] for _, rows in groups(adata.obs, keys)]
    return adata[np.sort(np.concatenate(kept))].copy()


def check_leaks(adata: AnnData, keys: Keys) -> None:
    """Raise on data that were prepared with all cells, as far as it shows.

    Raises
    ------
    ValueError
        Only genes marked as highly variable are left, or every gene was scaled.
    """
    if "highly_variable" in adata.var and adata.var["highly_variable"].all():
        raise ValueError(
            "Every gene is in adata.var['highly_variable']: the genes were chosen on all cells, those "
            "to be hidden among them. Pass all genes; they are chosen anew for each hold-out. If the "
            "choice came from elsewhere, drop the column."
        )
    if keys.is_count:
        return
    x = dense(values(adata, keys)).astype(np.float64, copy=False)
    scaled = (np.abs(x.mean(0)) < 1e-3) & (np.abs(x.std(0) - 1) < 1e-2)
    if scaled.mean() > 0.9:
        raise ValueError(
            f"{scaled.sum()} of {len(scaled)} features have mean 0 and deviation 1: they were scaled "
            "with all cells, those to be hidden among them. Pass the values before scaling."
        )


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
    with _same_threads():
        table = sc.pp.highly_variable_genes(logs, n_top_genes=n_top_genes, inplace=False)
    spread = table["dispersions_norm"].to_numpy(dtype=np.float64)
    # scanpy's own choice has more genes where there are ties
    chosen = np.zeros(train.n_vars, dtype=bool)
    chosen[np.argsort(-np.nan_to_num(spread, nan=-np.inf), kind="stable")[:n_top_genes]] = True
    return chosen


@contextmanager
def _same_threads() -> Iterator[None]:
    """Give torch back its number of threads: numba sets all cores, whatever OMP_NUM_THREADS says.

    Fits that run side by side would otherwise wait for each other's threads.
    """
    import torch

    n_threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def looks_like_counts(adata: AnnData, keys: Keys) -> bool:
    """Return whether the first thousand cells hold nothing but counts."""
    x = values(adata, keys)[:1000]
    data = x.data if sparse.issparse(x) else np.asarray(x)
    return bool(np.isfinite(data).all() and (data >= 0).all() and (data == np.floor(data)).all())


def check_counts(adata: AnnData, keys: Keys) -> None:
    """Raise on values that are to be counts and are not.

    Raises
    ------
    ValueError
        Values are negative, fractional or no numbers.
    """
    if keys.is_count and not looks_like_counts(adata, keys):
        raise ValueError(
            "The values are not counts (negative or fractional). Name the layer with raw counts, or set "
            "is_count=False to compare values as they are."
        )


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
        Mean over the labels of their own shift in training, shape (n_genes,); zero where none has
        both conditions.
    by_target
        Mean log values of the same label under every condition but the source.
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
    by_target: dict[str, np.ndarray]
    kappa: float
    pca: PCA

    def project(self, x: Any) -> np.ndarray:
        """Return log values in the principal components of the training cells."""
        return self.pca.transform(dense(x))


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
        Source and target are the same, or there are too few source cells (2) or hidden cells (4,
        which the ceiling halves).
    """
    if holdout.source is None:
        raise ValueError(f"Hold-out {holdout} has no source: name the condition to predict from.")
    hidden, start = holdout.hidden(adata, keys), holdout.sources(adata, keys)
    if str(holdout.source) == str(holdout.target):
        raise ValueError(f"Hold-out {holdout} has {holdout.source!r} as source and as target.")
    for name, rows, least in (("hidden", hidden, 4), ("source", start, 2)):
        if rows.sum() < least:
            raise ValueError(
                f"{holdout} has {rows.sum()} {name} cells; at least {least} are needed."
            )
    everything = keys
    hide = [holdout, *holdout.also]
    train, keys = training_data(adata, hide, keys=keys, n_top_genes=n_top_genes)
    kappa = median_total(train, keys)
    own = holdout._has_label(adata, keys).to_numpy() & ~start
    own = adata[own].to_memory() if adata.isbacked else adata[own].copy()
    if keys.is_count:
        own, _ = with_totals(own, everything)
    own = own[:, train.var_names]
    real = {
        str(condition): log_values(own[rows], keys, kappa)
        for condition, rows in own.obs.groupby(keys.condition_key, observed=True).indices.items()
    }
    source = train[holdout.sources(train, keys)].copy()
    known = profiles(train, keys)
    pairs = known.pairs(holdout.source, holdout.target)
    shift = np.zeros(train.n_vars) if pairs is None else pairs.shifts.mean(0)
    x = dense(log_values(train, keys, kappa)).astype(np.float32, copy=False)
    n_components = min(N_PCS, min(x.shape) - 1)
    return Task(
        holdout=holdout,
        keys=keys,
        train=train,
        source=source,
        real=real[str(holdout.target)],
        control=log_values(source, keys, kappa),
        shift=shift,
        by_target={condition: gene_means(cells)[None] for condition, cells in real.items()},
        kappa=kappa,
        pca=PCA(n_components, svd_solver="randomized", random_state=0).fit(x),
    )
