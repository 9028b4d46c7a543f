"""Checked matrices of cells, their statistics by gene, and what several metrics share."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from trvae_sc.errors import InputError, UndefinedScoreError
from trvae_sc.rows import canonical

Cells: TypeAlias = np.ndarray | sparse.spmatrix | sparse.sparray
Vector: TypeAlias = NDArray[np.float64]

#: What is smaller, relative to what it was computed from, is 0: predictions are rounded to float32.
ROUNDING = 1e-6


def validated(min_cells: int = 1, /, **arrays: Any) -> list[Cells]:
    """Return finite matrices with the same genes, sparse ones as CSR without duplicate entries."""
    checked: list[Cells] = []
    for name, given in arrays.items():
        x: Any = given.tocsr() if sparse.issparse(given) else np.asarray(given)
        if x.ndim != 2 or x.dtype.kind not in "biuf":
            raise InputError(
                f"`{name}` has shape {x.shape} and type {x.dtype}; give numbers, cells x genes"
            )
        if x.shape[0] < min_cells or x.shape[1] == 0:
            raise InputError(
                f"`{name}` has shape {x.shape}; give at least {min_cells} cell(s) and a gene"
            )
        if checked and x.shape[1] != checked[0].shape[1]:
            raise InputError(
                f"`{name}` has {x.shape[1]} genes, `{next(iter(arrays))}` has "
                f"{checked[0].shape[1]}; give the same genes in the same order"
            )
        x = canonical(x)
        check_finite(x.data if sparse.issparse(x) else x, name)
        checked.append(x)
    return checked


def vector(values: ArrayLike, name: str, n_genes: int) -> Vector:
    """Return `values` as a finite vector of `n_genes` numbers."""
    vector = np.asarray(values, dtype=np.float64)
    if vector.shape != (n_genes,) or n_genes == 0:
        raise InputError(f"`{name}` has shape {vector.shape}; give one number per gene ({n_genes})")
    check_finite(vector, name)
    return vector


def check_finite(values: np.ndarray, name: str) -> None:
    """Raise if a value is NaN or infinite."""
    if not (finite := np.isfinite(values)).all():
        raise InputError(f"`{name}` has {(~finite).sum()} NaN or infinite values; replace them")


def mean(x: Any) -> Vector:
    """Return the mean of each gene; the sum of scipy would be in the type of `x`."""
    if sparse.issparse(x):
        return np.bincount(x.indices, weights=x.data, minlength=x.shape[1]) / x.shape[0]
    return x.mean(axis=0, dtype=np.float64)


def variance(x: Any) -> Vector:
    """Return the unbiased variance of each gene, rounding errors set to 0."""
    m = mean(x)
    if sparse.issparse(x):
        squares = np.bincount(x.indices, (x.data - m[x.indices]) ** 2, minlength=m.size)
        n_zero = x.shape[0] - np.bincount(x.indices, minlength=m.size)
        v = (squares + n_zero * m**2) / (x.shape[0] - 1)
    else:
        v = x.var(axis=0, ddof=1, dtype=np.float64)
    return np.where(v > (ROUNDING * m) ** 2, v, 0.0)


def difference(a: Vector, b: Vector) -> Vector:
    """Return a - b, rounding errors set to 0."""
    return np.where(np.abs(a - b) > ROUNDING * np.maximum(np.abs(a), np.abs(b)), a - b, 0.0)


def welch_t(x: Cells, y: Cells) -> tuple[Vector, Vector]:
    """Return Welch's t and the difference of means of each gene."""
    change = difference(mean(x), mean(y))
    error = np.sqrt(variance(x) / x.shape[0] + variance(y) / y.shape[0])
    t = np.zeros_like(change)
    with np.errstate(divide="ignore", over="ignore"):
        np.divide(change, error, out=t, where=change != 0)
    return t, change


def ranked(t: Vector, difference: Vector, n: int) -> NDArray[np.intp]:
    """Return the `n` genes of largest absolute t, ties by absolute difference, then by index."""
    if n < 1:
        raise InputError(f"`n` is {n}; ask for at least 1 gene")
    # genes that one cell alone has all have t = 1, but for rounding
    keys = [-np.abs(values).astype(np.float32) for values in (difference, t)]
    return np.lexsort(keys)[:n]


def changed(real: Cells, control: Cells, n: int) -> NDArray[np.intp]:
    """Return the `n` genes that change most, without those that do not change."""
    t, difference = welch_t(real, control)
    genes = ranked(t, difference, n)
    if not t.any():
        raise UndefinedScoreError("`real` and `control` have equal means; no gene changes")
    return genes[t[genes] != 0]


def centred(values: Vector, *terms: Vector) -> Vector:
    """Return `values` less their mean; 0 if only rounding of the `terms` they come from."""
    centred = values - values.mean()
    rounding = ROUNDING * max(np.linalg.norm(term) for term in terms)
    return centred if np.linalg.norm(centred) > rounding else np.zeros_like(centred)


def pearson(real: Vector, predicted: Vector) -> float:
    """Return the correlation of centred vectors, 0 if `predicted` is 0."""
    if not real.any():
        raise UndefinedScoreError(
            "What is compared of `real` is equal in all genes; nothing to correlate"
        )
    if not predicted.any():
        return 0.0
    norms = np.linalg.norm(real) * np.linalg.norm(predicted)
    return float(np.clip(real @ predicted / norms, -1.0, 1.0))


def pooled_squared_distances(x: Cells, y: Cells, max_cells: int, seed: int) -> tuple[Vector, int]:
    """Return squared distances of the subsampled, pooled cells, and how many of them are of `x`."""
    if max_cells < 2:
        raise InputError(f"`max_cells` is {max_cells}; give at least 2")
    rng = np.random.default_rng(seed)  # one stream, so rows of `x` and `y` are drawn independently
    groups = []
    for group in validated(2, x=x, y=y):
        n = group.shape[0]
        a: Any = group[rng.choice(n, max_cells, replace=False)] if n > max_cells else group
        groups.append(np.asarray(a.toarray() if sparse.issparse(a) else a, dtype=np.float64))
    z = np.vstack(groups)
    z -= z.mean(axis=0)  # less cancellation below
    norm = (z**2).sum(axis=1)
    squared = norm[:, None] + norm - 2.0 * z @ z.T
    squared[squared <= ROUNDING**2 * (norm[:, None] + norm)] = 0.0  # and the diagonal
    return squared, len(groups[0])


def discrepancy(kernel: np.ndarray, n_x: int) -> float:
    """Return mean kernel within `x` plus within `y` less twice between, without the diagonal."""
    within = sum(
        (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))
        for k in (kernel[:n_x, :n_x], kernel[n_x:, n_x:])
    )
    return float(within - 2.0 * kernel[:n_x, n_x:].mean())
