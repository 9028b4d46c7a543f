"""Data loading: rows of a registered AnnData as minibatches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scvi import REGISTRY_KEYS, settings
from scvi.data import AnnDataManager, AnnTorchDataset
from scvi.dataloaders import BatchDistributedSampler
from scvi.dataloaders import DataSplitter as ScviDataSplitter
from torch import Tensor

from trvae_sc.module import CONDITION_KEY, TARGET_KEY

_STATISTICS_BATCH = 2048


class Dataset(AnnTorchDataset):
    """Rows of a registered AnnData, in the order asked for, also from a file on disk."""

    @property
    def data(self) -> dict[str, Any]:
        """Registered arrays; sparse ones by row (a column-wise one is turned once)."""
        if not hasattr(self, "_data"):
            arrays = {
                key: self.adata_manager.get_from_registry(key) for key in self.keys_and_dtypes
            }
            self._data = {key: _by_row(a) for key, a in arrays.items()}
        return self._data

    def __getitem__(self, indexes: int | list[int] | np.ndarray) -> dict[str, Any]:
        """Return the registered arrays of some rows.

        Files read ascending rows only: they are read so, once each, and put back in order. (Of a
        backed AnnData scvi-tools sorts the rows also where they are in memory, as layers are.)
        """
        in_memory = isinstance(self.data[REGISTRY_KEYS.X_KEY], np.ndarray | sparse.csr_matrix)
        in_memory = in_memory and not self.adata_manager.adata.isbacked
        if in_memory or isinstance(indexes, int | np.integer):
            return super().__getitem__(indexes)
        ascending, position = np.unique(indexes, return_inverse=True)
        return {
            key: self._dense(rows, key)[position]
            for key, rows in super().__getitem__(ascending).items()
        }

    def _dense(self, rows: Any, key: str) -> np.ndarray:
        """Return rows dense and in the registered type (from dask they come as stored)."""
        if isinstance(rows, Tensor):  # load_sparse_tensor
            rows = rows.to_dense().numpy()
        rows = rows.toarray() if sparse.issparse(rows) else rows
        return rows.astype(self.keys_and_dtypes[key], copy=False)


def _by_row(array: Any) -> Any:
    """Return an array; a sparse one as a matrix by row, not copied where it is that already."""
    if sparse.issparse(array) and not isinstance(array, sparse.csr_matrix):
        return sparse.csr_matrix(array)
    return array


class DataManager(AnnDataManager):
    """AnnDataManager whose torch dataset keeps the order of rows."""

    def create_torch_dataset(
        self,
        indices: np.ndarray | None = None,
        data_and_attributes: list[str] | dict[str, Any] | None = None,
        load_sparse_tensor: bool = False,
    ) -> torch.utils.data.Dataset:
        """Return the dataset, restricted to `indices` if given."""
        dataset = Dataset(self, data_and_attributes, load_sparse_tensor)
        return dataset if indices is None else torch.utils.data.Subset(dataset, indices)


class Batches(torch.utils.data.Sampler):
    """Minibatches of row numbers whose sizes differ by at most one cell.

    Parameters
    ----------
    indices
        Row numbers to draw from.
    batch_size
        Largest size of a batch.
    shuffle
        Permute the rows at every pass, with torch's global generator.
    drop_last
        Use only as many cells as fill whole batches of `batch_size`.
    weights
        Draw with replacement, with these weights, as many cells as there are.
    """

    def __init__(
        self,
        indices: np.ndarray,
        batch_size: int,
        *,
        shuffle: bool = False,
        drop_last: bool = False,
        weights: np.ndarray | None = None,
    ) -> None:
        self.indices = indices
        self.shuffle = shuffle
        self.weights = None if weights is None else torch.as_tensor(weights, dtype=torch.float64)
        self.drop_last = drop_last and len(indices) >= batch_size
        self.batch_size = batch_size
        n = len(indices)
        self.n_batches = n // batch_size if self.drop_last else math.ceil(n / batch_size)
        if not shuffle:  # no rows are one batch without rows, so that results have their shape
            self.n_batches = max(self.n_batches, 1)

    def __len__(self) -> int:
        """Return the number of batches of a pass."""
        return self.n_batches

    @property
    def smallest(self) -> int:
        """Number of cells of the smallest batch of a shuffled pass."""
        return self.batch_size if self.drop_last else len(self.indices) // max(self.n_batches, 1)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield arrays of row numbers."""
        n = len(self.indices)
        if self.weights is not None:
            order = torch.multinomial(self.weights, n, replacement=True).numpy()
        elif self.shuffle:
            order = torch.randperm(n).numpy()
        else:
            order = np.arange(n)
        if self.drop_last:
            order = order[: self.n_batches * self.batch_size]
        if not self.shuffle:  # whole batches, so that block reads stay aligned
            starts = range(0, max(len(order), 1), self.batch_size)
            yield from (self.indices[order[i : i + self.batch_size]] for i in starts)
        elif self.n_batches:
            yield from (self.indices[part] for part in np.array_split(order, self.n_batches))


class DataLoader(torch.utils.data.DataLoader):
    """Minibatches of a registered AnnData as dictionaries of tensors.

    Takes the arguments of :class:`scvi.dataloaders.AnnDataLoader` that scvi-tools passes. Further:
    `weights`, one sampling weight for each of `indices`, and `target_condition`, the condition
    features that the decoder shall use for every cell.
    """

    def __init__(
        self,
        adata_manager: AnnDataManager,
        indices: np.ndarray | list[int] | None = None,
        batch_size: int = 128,
        shuffle: bool = False,
        drop_last: bool = False,
        *,
        weights: np.ndarray | None = None,
        target_condition: Tensor | None = None,
        data_and_attributes: list[str] | dict[str, Any] | None = None,
        load_sparse_tensor: bool = False,
        distributed_sampler: bool = False,
        drop_dataset_tail: bool = False,
        **kwargs: Any,
    ) -> None:
        indices = row_numbers(indices, adata_manager.adata.n_obs)
        self.indices = indices
        self.target_condition = target_condition
        dataset = adata_manager.create_torch_dataset(
            data_and_attributes=data_and_attributes, load_sparse_tensor=load_sparse_tensor
        )
        if distributed_sampler and weights is not None:
            raise ValueError("balance_conditions cannot be combined with several devices.")
        if distributed_sampler:
            dataset = torch.utils.data.Subset(dataset, indices)
            sampler: Any = BatchDistributedSampler(
                dataset,
                batch_size=batch_size,
                shuffle=shuffle,
                drop_last=drop_last,
                drop_dataset_tail=drop_dataset_tail,
            )
        else:
            sampler = Batches(
                indices, batch_size, shuffle=shuffle, drop_last=drop_last, weights=weights
            )
        kwargs.setdefault("num_workers", settings.dl_num_workers)
        kwargs.setdefault("persistent_workers", settings.dl_persistent_workers)
        super().__init__(dataset, batch_size=None, sampler=sampler, **kwargs)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Yield minibatches, with the target condition if one was given."""
        if self.target_condition is None:
            yield from super().__iter__()
            return
        for tensors in super().__iter__():
            n_cells = len(tensors[REGISTRY_KEYS.X_KEY])
            yield tensors | {TARGET_KEY: self.target_condition.expand(n_cells, -1)}


def row_numbers(indices: Iterable[int] | np.ndarray | None, n_obs: int) -> np.ndarray:
    """Return row numbers from a list, an array, a boolean mask or None (all rows).

    Raises
    ------
    IndexError
        A mask of another length than `n_obs`, or a row number outside 0 .. n_obs - 1.
    """
    if indices is None:
        return np.arange(n_obs)
    rows = np.asarray(indices)
    if rows.dtype == bool:
        if rows.shape != (n_obs,):
            raise IndexError(f"The mask has shape {rows.shape}; there are {n_obs} cells.")
        return np.flatnonzero(rows)
    rows = rows.astype(np.int64).ravel()
    if rows.size and (rows.max() >= n_obs or rows.min() < -n_obs):
        raise IndexError(f"Row {rows[np.abs(rows).argmax()]} of an AnnData with {n_obs} cells.")
    return np.where(rows < 0, rows + n_obs, rows)


class DataSplitter(ScviDataSplitter):
    """scvi-tools' splitter with our loaders, its own seed and condition-balanced batches.

    (The name matters: scvi-tools checks early stopping by the class name.)

    Parameters
    ----------
    seed
        Seed of the split; ``scvi.settings.seed`` or 0 if None.
    balance_conditions
        Draw the cells of an epoch with replacement so that every condition is equally frequent.
    """

    data_loader_cls = DataLoader

    def __init__(
        self,
        adata_manager: AnnDataManager,
        train_size: float | None = None,
        validation_size: float | None = None,
        *args: Any,
        seed: int | None = None,
        balance_conditions: bool = False,
        batch_size: int = 128,
        **kwargs: Any,
    ) -> None:
        # batches of one: scvi-tools warns of, and moves, small last batches that we do not have
        kwargs["batch_size"] = 1
        try:
            super().__init__(adata_manager, train_size, validation_size, *args, **kwargs)
        except Warning as error:  # scvi-tools raises Warning on a bad external_indexing
            raise ValueError(f"external_indexing: {error}.") from error
        self.data_loader_kwargs["batch_size"] = batch_size
        self.seed = default_seed() if seed is None else seed
        self.balance_conditions = balance_conditions

    def setup(self, stage: str | None = None) -> None:
        """Split the cells."""
        if self.external_indexing is not None or not self.shuffle_set_split:
            super().setup(stage)
            return
        rows = np.random.default_rng(self.seed).permutation(self.adata_manager.adata.n_obs)
        self.val_idx = rows[: self.n_val]
        self.train_idx = rows[self.n_val : self.n_val + self.n_train]
        self.test_idx = rows[self.n_val + self.n_train :]

    def train_dataloader(self) -> DataLoader:
        """Return the training loader."""
        kwargs = dict(self.data_loader_kwargs)
        if self.balance_conditions:
            codes = self.adata_manager.get_from_registry(CONDITION_KEY).ravel()[self.train_idx]
            kwargs["weights"] = 1.0 / np.bincount(codes.astype(int))[codes.astype(int)]
        return self.data_loader_cls(
            self.adata_manager,
            indices=self.train_idx,
            shuffle=True,
            drop_last=self.drop_last,
            load_sparse_tensor=self.load_sparse_tensor,
            pin_memory=self.pin_memory,
            **kwargs,
        )

    def statistics_dataloader(self) -> DataLoader:
        """Return the training cells once, in order."""
        return DataLoader(self.adata_manager, np.sort(self.train_idx), _STATISTICS_BATCH)


def default_seed() -> int:
    """Return ``scvi.settings.seed``, or 0 where none is set."""
    return 0 if settings.seed is None else settings.seed
