"""Registered data as tensors of rows: in memory, in a file, or on the device of training."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch
from scipy import sparse
from scvi import REGISTRY_KEYS
from scvi.data import AnnTorchDataset
from torch import Tensor

from trvae_sc.rows import canonical
from trvae_sc.stored import is_file
from trvae_sc.training._files import FileRows

#: What rows are read from in any order; scvi-tools' view of a collection is a csr_matrix, but cannot.
_BY_ROW = (np.ndarray, sparse.csr_matrix, FileRows)
_SHARE = 0.5  # of what is free, that data take by default


class Dataset(AnnTorchDataset):
    """Rows of a registered AnnData, in the order asked for, also from a file on disk."""

    @cached_property
    def data(self) -> dict[str, Any]:
        """Registered arrays; sparse ones by row (a column-wise one is turned once)."""
        arrays = {key: self.adata_manager.get_from_registry(key) for key in self.keys_and_dtypes}
        return {key: _by_row(array) for key, array in arrays.items()}

    @property
    def file(self) -> FileRows | None:
        """The values, where they are in a file."""
        x = self.data.get(REGISTRY_KEYS.X_KEY)
        return x if isinstance(x, FileRows) else None

    def __getstate__(self) -> dict[str, Any]:
        """Return what a process that loads rows needs: not the AnnData, whose file may be open."""
        return {**vars(self), "data": self.data, "adata_manager": None}

    def __getitem__(self, indexes: int | list[int] | np.ndarray) -> dict[str, Any]:
        rows = np.atleast_1d(indexes)
        return {key: self.rows(key, rows) for key in self.keys_and_dtypes}

    def rows(self, key: str, rows: np.ndarray) -> Any:
        """Return some rows of an array, in the registered type."""
        data, dtype = self.data[key], self.keys_and_dtypes[key]
        if type(data) in _BY_ROW:
            values = data[rows]
        else:  # dask and collections read ascending rows only
            ascending, position = np.unique(rows, return_inverse=True)
            values = data[ascending]
            values = values.compute() if hasattr(values, "compute") else values
            values = (values.toarray() if hasattr(values, "toarray") else values)[position]
        if sparse.issparse(values):
            if self.load_sparse_tensor:
                parts = values.indptr, values.indices, values.data.astype(dtype, copy=False)
                return torch.sparse_csr_tensor(*parts, size=values.shape, dtype=torch.float32)
            values = values.toarray()
        return values.astype(dtype, copy=False)


def _by_row(array: Any) -> Any:
    """Return an array that rows are quickly read from; not copied where it is that already."""
    if is_file(array):
        return FileRows(array)
    if sparse.issparse(array) and not isinstance(array, sparse.csr_matrix):
        return sparse.csr_matrix(array)
    return array.to_numpy() if isinstance(array, pd.DataFrame) else array


# -- on the device of training ------------------------------------------------------------------------


class CSRTensor:
    """A sparse matrix by row on a device, whose rows are gathered there."""

    def __init__(self, x: sparse.csr_matrix, device: torch.device) -> None:
        x = canonical(x)  # an entry may be in several parts
        self.shape = x.shape
        self._host_indptr = x.indptr.astype(np.int64)
        self.indptr = torch.as_tensor(self._host_indptr, device=device)
        self.indices = torch.as_tensor(_writable(x.indices, np.int32), device=device)
        self.values = torch.as_tensor(_writable(x.data, np.float32), device=device)

    def __getitem__(self, rows: np.ndarray) -> Tensor:
        """Return rows, dense; nothing waits for the device, for sizes are known on the host."""
        n_values = int((self._host_indptr[rows + 1] - self._host_indptr[rows]).sum())
        device = self.values.device
        at = torch.as_tensor(rows).to(device, non_blocking=True)
        start = self.indptr[at]
        length = self.indptr[at + 1] - start
        row = torch.repeat_interleave(
            torch.arange(len(rows), device=device), length, output_size=n_values
        )
        shift = (start - length.cumsum(0) + length)[row]
        position = torch.arange(n_values, device=device) + shift
        dense = torch.zeros(len(rows), self.shape[1], device=device)
        return dense.index_put_((row, self.indices[position].long()), self.values[position])


class DeviceDataset(torch.utils.data.Dataset):
    """Registered arrays on the device of training, `dense` or sparse; rows are gathered there."""

    def __init__(self, dataset: Dataset, device: torch.device, *, dense: bool) -> None:
        self.arrays: dict[str, Tensor | CSRTensor] = {}
        self.n_obs, self.device = len(dataset), device
        for key, dtype in dataset.keys_and_dtypes.items():
            data = dataset.data[key]
            if sparse.issparse(data) and not dense:
                self.arrays[key] = CSRTensor(data, device)
                continue
            data = data.toarray() if sparse.issparse(data) else np.asarray(data)
            self.arrays[key] = torch.as_tensor(_writable(data, dtype)).to(device)

    def __len__(self) -> int:
        return self.n_obs

    def __getitem__(self, rows: np.ndarray) -> dict[str, Tensor]:
        at = torch.as_tensor(rows).to(self.device, non_blocking=True)
        return {
            key: array[rows] if isinstance(array, CSRTensor) else array.index_select(0, at)
            for key, array in self.arrays.items()
        }


def _writable(array: np.ndarray, dtype: Any) -> np.ndarray:
    """Return an array of a type that torch may share; pandas 3 hands out columns read-only."""
    array = array.astype(dtype, copy=False)
    return array if array.flags.writeable else array.copy()


def fitted(
    dataset: Dataset, device: torch.device, memory_budget: float | None
) -> Dataset | DeviceDataset:
    """Return a dataset with its values where they are fastest to get at within a budget.

    Values in a file are read if they fit into memory. Values in memory go to a GPU, dense if they fit
    so, which is faster, else sparse. The budget is in GB, in both; half of what is free if None.
    """
    file = dataset.file
    if file is not None:
        if file.n_bytes > _budget(torch.device("cpu"), memory_budget):
            return dataset
        dataset.data[REGISTRY_KEYS.X_KEY] = file.to_memory()
    if device.type != "cuda" or dataset.load_sparse_tensor:
        return dataset
    x = dataset.data[REGISTRY_KEYS.X_KEY]
    if type(x) not in _BY_ROW:  # dask, a collection
        return dataset
    budget = _budget(device, memory_budget)
    if 4 * x.shape[0] * x.shape[1] <= budget:
        return DeviceDataset(dataset, device, dense=True)
    if sparse.issparse(x) and 8 * x.nnz + 8 * x.shape[0] <= budget:
        return DeviceDataset(dataset, device, dense=False)
    return dataset


def _budget(device: torch.device, gigabytes: float | None) -> float:
    """Return the bytes that data may take on a device."""
    if gigabytes is not None:
        return gigabytes * 1e9
    if device.type == "cuda":
        return _SHARE * torch.cuda.mem_get_info(device)[0]
    return _SHARE * psutil.virtual_memory().available
