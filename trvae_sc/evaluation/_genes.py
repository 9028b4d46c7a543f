"""Which genes a model works on: those that vary, and those that respond."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from trvae_sc.arguments import check_whole
from trvae_sc.checks import check_matrix, check_obs
from trvae_sc.evaluation._checks import check_counts
from trvae_sc.evaluation._measured import label_column
from trvae_sc.expression import KeyNames, Keys, gene_means, keys_from, log_values, median_total
from trvae_sc.levels import as_text, listing
from trvae_sc.stored import is_by_column

_SHARE = 0.25  # of the genes that are chosen by how they change between conditions
_ENOUGH = 20  # cells of a condition that tell which genes vary in it


@dataclass(frozen=True)
class GeneChoice:
    """Genes that were chosen on training cells."""

    chosen: np.ndarray  #: shape (n_genes,)
    n_changed: int  #: of them by their change between conditions; the others vary most
    left_out: tuple[str, ...]  #: genes that change most of those that were not chosen

    def __str__(self) -> str:
        """Return what was chosen for what, in one line."""
        n, of = int(self.chosen.sum()), len(self.chosen)
        text = (
            f"{n:,} of {of:,} genes were chosen on the training cells: {self.n_changed:,} that change most "
            f"between conditions within labels, and {n - self.n_changed:,} that vary most within conditions."
        )
        if self.left_out:
            text += f" The most changed of those left out: {listing(self.left_out)}."
        return text


def choose_genes(
    train: AnnData, keys: Any = None, n_top_genes: int = 2000, **names: Unpack[KeyNames]
) -> GeneChoice:
    """Choose genes that respond, a quarter of all, and fill up with those that vary most.

    Genes respond by the F statistic of conditions within labels. They vary by scanpy's ``seurat`` dispersion
    within each condition (of values that are no counts: by their variance). Variable genes alone lack much of a
    response: what is off in one condition and on in the other, in all cells, varies little.

    Parameters
    ----------
    train
        Training cells.
    keys, **names
        Where the data are: :class:`Keys`, a model for what it was set up with, or fields of :class:`Keys` by name.
    n_top_genes
        Number of genes.

    Returns
    -------
    The choice.

    Raises
    ------
    InputError
        `n_top_genes` is below 1, columns or layer are missing, or values are not counts.
    """
    keys = keys_from(keys, names)
    check_whole("n_top_genes", n_top_genes)
    x, label, condition = _read(train, keys)
    change = response(x, label, condition)
    by_response = _descending(change)
    n_changed = min(math.ceil(_SHARE * n_top_genes), int((change > 0).sum()))
    chosen = np.zeros(train.n_vars, dtype=bool)
    chosen[by_response[:n_changed]] = True
    variable = _most_variable(x, condition, keys)
    chosen[variable[~chosen[variable]][: n_top_genes - n_changed]] = True
    left = [gene for gene in by_response if change[gene] > 0 and not chosen[gene]][:5]
    return GeneChoice(chosen, n_changed, tuple(train.var_names[left]))


def variable_genes(train: AnnData, keys: Keys, n_top_genes: int) -> np.ndarray:
    """Return which genes vary most within conditions, shape (n_genes,); a part of :func:`choose_genes`.

    Parameters
    ----------
    train, keys
        Training cells, and where the data are.
    n_top_genes
        Number of genes.
    """
    check_whole("n_top_genes", n_top_genes)
    x, _, condition = _read(train, keys)
    return np.isin(np.arange(train.n_vars), _most_variable(x, condition, keys)[:n_top_genes])


def _read(train: AnnData, keys: Keys) -> tuple[Any, np.ndarray, np.ndarray]:
    """Return log values, and the names of each cell's label and condition."""
    totals_key = keys.total_counts_key if keys.is_count else None
    check_obs(train, [*keys.condition_columns, keys.labels_key], [totals_key])
    if keys.layer is not None or not is_by_column(train.X):  # which are read as a whole
        check_matrix(train, keys.layer)
        check_counts(train, keys)
    x = log_values(train, keys, median_total(train, keys))
    x = sparse.csr_matrix(x, dtype=np.float32) if sparse.issparse(x) else np.asarray(x, np.float32)
    condition = as_text(keys.conditions(train.obs)).to_numpy()
    return x, label_column(train, keys).to_numpy(), condition


def _descending(score: np.ndarray) -> np.ndarray:
    """Return the order from the highest score to the lowest, NaN last."""
    return np.argsort(-np.nan_to_num(score, nan=-np.inf, posinf=np.finfo(float).max), kind="stable")


def response(x: Any, label: np.ndarray, condition: np.ndarray) -> np.ndarray:
    r"""Return how much genes change between conditions within labels, in units of their noise.

    The F statistic of conditions nested in labels: with means over the cells of label l and condition c,

    .. math:: F = \frac{\sum_{lc} n_{lc} (\bar x_{lc} - \bar x_l)^2 \big/ \sum_l (C_l - 1)}
       {\sum_{lci} (x_{lci} - \bar x_{lc})^2 \big/ (N - \sum_l C_l)}

    Shape (n_genes,), from 0; all 0 where no label has two conditions.
    """
    groups = pd.DataFrame({"label": label, "condition": condition})
    code = groups.groupby(["label", "condition"]).ngroup().to_numpy()
    n = np.bincount(code).astype(np.float64)[:, None]
    sums, squares = _sums(x, code), _sums(x, code, square=True)
    of_label = pd.factorize(groups["label"].groupby(code).first())[0]
    pooled, size = (_sums(values, of_label) for values in (sums, n))
    between = (sums**2 / n).sum(0) - (pooled**2 / size).sum(0)
    within = np.maximum(squares.sum(0) - (sums**2 / n).sum(0), 0.0)
    df_between, df_within = len(n) - len(size), len(code) - len(n)
    if df_between < 1 or df_within < 1:
        return np.zeros(x.shape[1])
    noise = within / df_within
    signal = np.maximum(between, 0.0) / df_between
    # what does not vary at all within groups is rounding, or known from next to no cells
    varies = noise > 0
    least = 1e-3 * max(float(np.median(noise[varies])), 1e-12) if varies.any() else 1.0
    return signal / np.maximum(noise, least)


def _sums(x: Any, code: np.ndarray, *, square: bool = False) -> np.ndarray:
    """Return the sums of (squared) rows of each group, (n_groups, n_columns)."""
    ones = np.ones(len(code))
    member = sparse.csr_matrix((ones, (code, np.arange(len(code)))), (code.max() + 1, len(code)))
    if sparse.issparse(x):
        values = x.multiply(x).tocsr() if square else x
        return (member @ values.astype(np.float64)).toarray()
    values = x.astype(np.float64)
    return member @ (values**2 if square else values)


def _most_variable(x: Any, condition: np.ndarray, keys: Keys) -> np.ndarray:
    """Return the order of genes from the one that varies most within conditions.

    Of log values by the mean over conditions of scanpy's normalised dispersion (``seurat`` flavour), of others
    by the mean of variances on their own scale.
    """
    names, counts = np.unique(condition, return_counts=True)
    groups = [condition == name for name in names[counts >= _ENOUGH]] or [slice(None)]
    spread = _dispersion if keys.is_count else _variance
    found = pd.DataFrame([spread(x[rows]) for rows in groups])
    return _descending(found.mean().to_numpy())


def _variance(x: Any) -> np.ndarray:
    """Return the variance of each gene."""
    x = x.astype(np.float64)
    squares = x.multiply(x) if sparse.issparse(x) else x**2
    return gene_means(squares) - gene_means(x) ** 2


def _dispersion(x: Any) -> np.ndarray:
    """Return scanpy's normalised dispersion of log values, NaN where a gene is not seen."""
    import scanpy as sc
    import torch

    cells = AnnData(x)
    cells.uns["log1p"] = {"base": None}
    n_threads = torch.get_num_threads()
    try:
        table = sc.pp.highly_variable_genes(cells, n_top_genes=1, inplace=False)
    finally:  # numba sets all cores, so that fits side by side would wait for each other's threads
        torch.set_num_threads(n_threads)
    return table["dispersions_norm"].to_numpy(dtype=np.float64)
