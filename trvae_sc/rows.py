"""Rows of matrices: arrays that are filled block by block, sparse ones by row, and memory that is given back."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import numpy as np
from scipy import sparse

_FIRST = 65_536  # rows that there is room for at first, unless more are expected


class Rows:
    """One array that blocks of rows are added to, with room for `n` at first, if that is known.

    Small arrays that are kept between large ones leave holes in memory that the next large one does
    not fit into: a list of blocks would take as much memory as all large arrays together.
    """

    def __init__(self, n: int | None = None) -> None:
        self._room = _FIRST if n is None else n
        self._kept: np.ndarray | None = None
        self._n = 0

    def add(self, block: np.ndarray) -> None:
        """Add rows, shape (n, ...)."""
        if self._kept is None:
            self._kept = np.empty((max(self._room, len(block)), *block.shape[1:]), block.dtype)
        end = self._n + len(block)
        if end > len(self._kept):
            grown = np.empty((max(end, 2 * len(self._kept)), *block.shape[1:]), block.dtype)
            grown[: self._n] = self._kept[: self._n]
            self._kept = grown
        self._kept[self._n : end] = block
        self._n = end

    def __len__(self) -> int:
        return self._n

    def array(self) -> np.ndarray:
        """Return all rows; of shape (0,) if there are none."""
        return np.zeros(0) if self._kept is None else self._kept[: self._n]


def canonical(x: Any) -> Any:
    """Return a matrix, a sparse one by row with one entry for a value; not copied where it is that already."""
    if not sparse.issparse(x):
        return x
    x = x.tocsr()
    if not x.has_canonical_format:
        x = x.copy()
        x.sum_duplicates()
    return x


def give_back_memory() -> None:
    """Return freed memory to the system: glibc keeps what lies between small objects that live on."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
