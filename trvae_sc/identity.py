"""What tells data apart: a digest of a whole matrix, and a mark for every cell.

Both are the same for the same values, whether sparse, dense or in a file, and in any number type that
holds them (marks: in single precision, which networks compute in); both read the matrix in blocks of rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy import sparse

from trvae_sc.stored import check_there

_ROWS = 4096  # read at a time
_SAME = 1e-10  # relative difference of marks that another order of sums can make


def row_chunks(x: Any, n_obs: int, size: int = _ROWS) -> Iterator[tuple[int, Any]]:
    """Yield the first row and the values of blocks of rows, of any matrix AnnData can hold."""
    check_there(x)
    for start in range(0, n_obs, size):
        block = x[start : start + size]
        block = block.compute() if hasattr(block, "compute") else block
        yield start, block if sparse.issparse(block) else np.asarray(block)


def row_sums(x: Any, n_obs: int) -> np.ndarray:
    """Return the sum of each row, shape (n_obs,), in float64: others overflow or wrap around."""
    blocks = row_chunks(x, n_obs)
    sums = [np.asarray(b.sum(axis=1, dtype=np.float64)).ravel() for _, b in blocks]
    return np.concatenate(sums) if sums else np.zeros(0)


def digest(x: Any, n_obs: int | None = None) -> str:
    """Return the SHA-256 of all values that are not zero and their places, in hexadecimal.

    `n_obs` is the number of cells, where `x` does not know it (the layers of an AnnCollection).
    """
    n_obs = x.shape[0] if n_obs is None else n_obs
    found = hashlib.sha256(f"{n_obs} x {x.shape[1]}".encode())
    for _, block in row_chunks(x, n_obs):
        rows = sparse.csr_matrix(block, dtype=np.float64, copy=True)
        rows.sum_duplicates()
        rows.eliminate_zeros()
        found.update(np.diff(rows.indptr).astype("<i8").tobytes())
        found.update(rows.indices.astype("<i8").tobytes())
        found.update(rows.data.astype("<f8").tobytes())
    return found.hexdigest()


def cell_marks(x: Any, n_obs: int | None = None) -> np.ndarray:
    r"""Return a number for each cell that another cell does not have, by chance; shape (n_cells,).

    .. math:: \mu_i = \sum_g w_g x_{ig}, \qquad w_g \sim U(1, 2) \text{ (fixed)}

    `n_obs` is the number of cells, where `x` does not know it.
    """
    n_obs = x.shape[0] if n_obs is None else n_obs
    marks = np.zeros(n_obs)
    for start, block in row_chunks(x, n_obs):
        marks[start : start + block.shape[0]] = marks_of(block)
    return marks


def marks_of(block: Any) -> np.ndarray:
    """Return :func:`cell_marks` of a matrix in memory."""
    weights = np.random.default_rng(0).uniform(1.0, 2.0, block.shape[1])
    return block.astype(np.float32, copy=False).astype(np.float64, copy=False) @ weights


def same_marks(marks: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return which marks are those of the same values; NaN is like NaN."""
    # values of either sign may add up to next to nothing, but for rounding
    smallest = _SAME * np.max(np.abs(others), initial=0.0, where=np.isfinite(others))
    return np.isclose(marks, others, rtol=_SAME, atol=smallest, equal_nan=True)


def among(marks: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return which marks are among others, which rise."""
    if not len(known):
        return np.zeros(len(marks), dtype=bool)
    place = np.searchsorted(known, marks).clip(0, len(known) - 1)
    before = known[np.maximum(place - 1, 0)]
    return same_marks(marks, known[place]) | same_marks(marks, before)
