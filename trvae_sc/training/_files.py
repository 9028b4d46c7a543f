"""Rows of a matrix in an h5ad or zarr file, read in long contiguous pieces ahead of their use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, TypeVar

import h5py
import numpy as np
from anndata.abc import CSCDataset, CSRDataset
from scipy import sparse

from trvae_sc.errors import InputError
from trvae_sc.stored import check_there, file_state, path_of

if TYPE_CHECKING:
    import zarr

_GAP = 32  # rows between two that are wanted, above which two reads are faster than one
_LONGEST = 8192  # rows of one read
_WINDOW_BYTES = 2**27  # rows that are in memory together; twice, for the next are being read
_WINDOW_ROWS = 2**15

T = TypeVar("T")


class FileRows:
    """Reads rows of a matrix in a file, in any order, and notices when the file changes."""

    def __init__(self, x: h5py.Dataset | zarr.Array | CSRDataset | CSCDataset) -> None:
        check_there(x)
        self.x = x
        self.is_sparse = isinstance(x, CSRDataset | CSCDataset)
        self._state = file_state(x)

    @property
    def n_bytes(self) -> int:
        """Bytes that the matrix takes in memory."""
        if not self.is_sparse:
            return int(np.prod(self.x.shape)) * self.x.dtype.itemsize
        group = self.x.group
        return sum(group[k].size * group[k].dtype.itemsize for k in ("data", "indices", "indptr"))

    def window(self, n_bytes: float = _WINDOW_BYTES) -> int:
        """Return the number of rows that take `n_bytes` in memory, as far as that is sensible."""
        per_row = self.n_bytes / max(self.x.shape[0], 1)
        return int(np.clip(n_bytes / max(per_row, 1.0), 1, _WINDOW_ROWS))

    def to_memory(self) -> np.ndarray | sparse.csr_matrix:
        """Return the whole matrix."""
        return sparse.csr_matrix(self.x.to_memory()) if self.is_sparse else self.x[...]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray | sparse.csr_matrix:
        """Return rows in the order asked for; raise OSError if the file has changed since it was opened."""
        if isinstance(self.x, CSCDataset):
            raise InputError(
                "X is stored by column (CSC), from which rows cannot be read. Write it by row: "
                "adata.X = adata.X.tocsr()."
            )
        if file_state(self.x) != self._state:
            raise OSError(
                f"{path_of(self.x)} was changed while it was being read. Open it again and start anew."
            )
        ascending, position = np.unique(rows, return_inverse=True)
        if not len(ascending):
            return sparse.csr_matrix(self.x[:0]) if self.is_sparse else self.x[:0]
        values = _joined([self._run(run) for run in _runs(ascending)])  # the parts are let go of
        in_order = len(position) == len(ascending) and (np.diff(position) == 1).all()
        return values if in_order else values[position]

    def _run(self, rows: np.ndarray) -> np.ndarray | sparse.csr_matrix:
        """Read ascending rows with one contiguous read."""
        start, stop = int(rows[0]), int(rows[-1]) + 1
        try:
            block = self.x[start:stop]
        except (OSError, RuntimeError, KeyError) as error:
            raise OSError(
                f"Rows {start} to {stop - 1} of {path_of(self.x)} cannot be read (damaged or "
                f"incomplete?): {error}"
            ) from error
        block = sparse.csr_matrix(block) if self.is_sparse else block
        return block if len(rows) == stop - start else block[rows - start]


def _joined(parts: list[np.ndarray] | list[sparse.csr_matrix]) -> np.ndarray | sparse.csr_matrix:
    """Return parts below each other as one matrix."""
    if len(parts) == 1:
        return parts[0]
    return sparse.vstack(parts, "csr") if sparse.issparse(parts[0]) else np.concatenate(parts)


def _runs(ascending: np.ndarray) -> list[np.ndarray]:
    """Cut ascending rows where many are not wanted, and where a read would be very long."""
    runs = np.split(ascending, np.flatnonzero(np.diff(ascending) > _GAP) + 1)
    return [run[i : i + _LONGEST] for run in runs for i in range(0, len(run), _LONGEST)]


def ahead(items: Iterable[T], read: Callable[[T], Any]) -> Iterator[tuple[T, Any]]:
    """Yield each item with ``read(item)``, which a thread makes while the one before is in use.

    One is read at a time, so that no more than two are in memory. Each thread lives for one call, so
    that none is left over where the iteration is given up.
    """
    before: tuple[T, Future] | None = None
    for item in items:
        if before is not None:
            wait([before[1]])
        pool = ThreadPoolExecutor(1, thread_name_prefix="trvae_sc")
        future = pool.submit(read, item)
        pool.shutdown(wait=False)
        if before is not None:
            yield before[0], before[1].result()
        before = item, future
    if before is not None:
        yield before[0], before[1].result()
