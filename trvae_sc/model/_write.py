"""Writing an AnnData whose values come in pieces."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from trvae_sc.checks import files_read
from trvae_sc.files import as_path, check_cells_target, naming_unwritable

_ROWS = 8192  # written at a time
_CHUNK_BYTES = 2**20


class PieceWriter:
    """Writes values piece by piece to a new h5ad or zarr file, and then what belongs to them."""

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int],
        layer: str | None = None,
        *,
        compression: str | None = "gzip",
    ) -> None:
        self.shape, self.n_written = shape, 0
        self.names = ["X"] if layer is None else ["X", f"layers/{layer}"]
        self._pieces: list[Any] = []
        self.is_zarr = path.suffix == ".zarr"
        if self.is_zarr:
            import zarr

            with warnings.catch_warnings():  # of anndata 0.13, when it is asked what it writes
                warnings.simplefilter("ignore", DeprecationWarning)
                kind = anndata.settings.zarr_write_format
            self.root = zarr.open_group(path, mode="w", zarr_format=kind)
            self._kwargs: dict[str, Any] = {}
        else:
            self.root = h5py.File(path, "w")
            self._kwargs = {"compression": compression}
            if compression == "gzip":
                self._kwargs["compression_opts"] = 1  # the others take much longer, for little
        self.root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})

    def check(self, name: str, table: pd.DataFrame) -> None:
        """Raise on a column that cannot be written, before any value is."""
        for column in table:
            alone = AnnData(obs=table[[column]])
            advice = "Make it text, numbers or a category, or rename or drop it."
            with naming_unwritable(f"adata.{name}['{column}']", advice):
                self._write(alone, "obs", key="check")
            del self.root["check"]

    def add(self, values: np.ndarray | sparse.csr_matrix) -> None:
        """Take the next rows."""
        self._pieces.append(values)
        if sum(piece.shape[0] for piece in self._pieces) >= _ROWS:
            self._flush()

    def _flush(self) -> None:
        """Write the rows taken."""
        if not self._pieces:
            return
        x = stacked(self._pieces, sum(piece.shape[0] for piece in self._pieces))
        self._pieces = []
        for name in self.names:
            if sparse.issparse(x):
                self._append_sparse(name, x)
            else:
                self._append_dense(name, x)
        self.n_written += x.shape[0]

    def _append_sparse(self, name: str, x: sparse.csr_matrix) -> None:
        if name in self.root:
            anndata.io.sparse_dataset(self.root[name]).append(x)
            return
        if np.prod(self.shape, dtype=float) > np.iinfo(np.int32).max:  # more values may follow
            x.indptr, x.indices = x.indptr.astype(np.int64), x.indices.astype(np.int64)
        *folder, key = name.split("/")  # newer versions of anndata write to the group itself only
        group = self.root.require_group(folder[0]) if folder else self.root
        anndata.io.write_elem(group, key, x, dataset_kwargs=self._kwargs)

    def _append_dense(self, name: str, x: np.ndarray) -> None:
        if name not in self.root:
            chunks = (int(np.clip(_CHUNK_BYTES // (4 * self.shape[1]), 1, len(x))), self.shape[1])
            has_arrays = hasattr(self.root, "create_array")  # zarr 3
            create = self.root.create_array if has_arrays else self.root.create_dataset
            array = create(name, shape=self.shape, dtype="f4", chunks=chunks, **self._kwargs)
            array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        self.root[name][self.n_written : self.n_written + len(x)] = x

    def finish(self, adata: AnnData) -> None:
        """Write all of an AnnData but its values."""
        self._flush()
        for name in ("obs", "var", "obsm", "uns"):
            self._write(adata, name)
        for name in ("layers", "varm", "obsp", "varp"):
            if name not in self.root:
                anndata.io.write_elem(self.root, name, {})
            self.root[name].attrs.update({"encoding-type": "dict", "encoding-version": "0.1.0"})
        self.close()

    def _write(self, adata: AnnData, name: str, *, key: str | None = None) -> None:
        """Write a part of an AnnData as anndata does, under another name if one is given."""
        adata.strings_to_categoricals()
        value = getattr(adata, name)
        value = value if name in ("obs", "var") else dict(value)
        # files of newer versions of anndata have strings that older ones read but do not write unasked
        with anndata.settings.override(allow_write_nullable_strings=True):
            anndata.io.write_elem(self.root, key or name, value, dataset_kwargs=self._kwargs)

    def close(self) -> None:
        """Close the file."""
        if not self.is_zarr:
            self.root.close()


def stacked(
    pieces: Iterable[np.ndarray | sparse.csr_matrix], n_rows: int
) -> np.ndarray | sparse.csr_matrix:
    """Return the values of all minibatches, `n_rows` together, as float32."""
    pieces = iter(pieces)
    first = next(pieces)
    if sparse.issparse(first):
        return sparse.vstack([first, *pieces], format="csr").astype(np.float32, copy=False)
    x, done = np.empty((n_rows, first.shape[1]), np.float32), 0  # two copies at once take memory
    for piece in chain([first], pieces):
        x[done : done + len(piece)] = piece
        done += len(piece)
    return x


def check_out(out: str | Path, *read: AnnData | None, overwrite: bool) -> Path:
    """Return the path of a prediction; raise before any work where it cannot be written."""
    path = as_path(out, "out")
    check_cells_target(path, overwrite=overwrite, inputs=files_read(*read))
    return path
