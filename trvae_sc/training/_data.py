"""Data loading: rows of a registered AnnData as minibatches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scvi import REGISTRY_KEYS, settings
from scvi.data import AnnDataManager
from scvi.dataloaders import DataSplitter as ScviDataSplitter
from torch import Tensor, distributed

from trvae_sc.arguments import check_known, check_number, check_seed, check_whole, named
from trvae_sc.errors import InputError
from trvae_sc.levels import listing
from trvae_sc.module import CONDITION_KEY, TARGET_KEY
from trvae_sc.rows import give_back_memory
from trvae_sc.training._dataset import Dataset, DeviceDataset, fitted
from trvae_sc.training._files import ahead

_STATISTICS_BATCH = 512
_BLOCKS = 32  # contiguous pieces of a file that are shuffled together


class Batches(torch.utils.data.Sampler):
    """Minibatches of row numbers whose sizes differ by at most one cell.

    `weights`: cells are drawn with replacement, as many as there are. `window`: how many rows of a
    file are in memory together; a shuffled pass then draws contiguous blocks of rows, 32 to a window,
    and permutes the rows of each window. `share`: the number of this process, and of all, among which
    a batch is divided; they agree on permutations by `seed`, else these are of the global generator.
    """

    def __init__(
        self,
        indices: np.ndarray,
        batch_size: int,
        *,
        shuffle: bool = False,
        drop_last: bool = False,
        weights: np.ndarray | None = None,
        window: int | None = None,
        share: tuple[int, int] | None = None,
        seed: int = 0,
    ) -> None:
        self.indices = indices
        self.shuffle = shuffle
        self.weights = None if weights is None else torch.as_tensor(weights, dtype=torch.float64)
        self.rank, self.n_processes = share or (0, 1)
        self.is_shared = share is not None
        self.batch_size = batch_size * self.n_processes
        self.drop_last = drop_last and len(indices) >= self.batch_size
        self.window = window
        self.seed, self.epoch = seed, 0
        n_batches = len(indices) / self.batch_size
        self.n_batches = math.floor(n_batches) if self.drop_last else math.ceil(n_batches)
        if not shuffle:  # no rows are one batch without rows, so that results have their shape
            self.n_batches = max(self.n_batches, 1)

    def __len__(self) -> int:
        return self.n_batches

    @property
    def smallest(self) -> int:
        """Number of cells of the smallest batch of a shuffled pass."""
        smallest = len(self.indices) // max(self.n_batches, 1)
        return (self.batch_size if self.drop_last else smallest) // self.n_processes

    def set_epoch(self, epoch: int) -> None:
        """Note the epoch, which the permutation of several processes follows."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[np.ndarray]:
        for batches in self.groups():
            yield from batches

    def groups(self) -> Iterator[list[np.ndarray]]:
        """Yield the batches of a pass, those of one window at a time."""
        generator = None
        if self.is_shared:
            generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = self._order(generator)
        edges = self._edges(len(order))
        n_together = self.n_batches
        if self.window is not None:
            n_together = max(self.window // self.batch_size, 1)
        for first in range(0, self.n_batches, n_together):
            inside = edges[first : first + n_together + 1]
            rows = self.indices[order[inside[0] : inside[-1]]]
            if self.shuffle and self.window is not None:
                rows = rows[torch.randperm(len(rows), generator=generator).numpy()]
            batches = np.split(rows, inside[1:-1] - inside[0])
            yield [rows[self.rank :: self.n_processes] for rows in batches]

    def _order(self, generator: torch.Generator | None) -> np.ndarray:
        """Return positions in `indices`, in the order of this pass."""
        n = len(self.indices)
        if self.weights is not None:
            order = torch.multinomial(self.weights, n, replacement=True).numpy()
        elif not self.shuffle:
            order = np.arange(n)
        elif self.window is None:
            order = torch.randperm(n, generator=generator).numpy()
        else:
            n_blocks = max(math.ceil(n / max(self.window // _BLOCKS, 1)), 1)
            blocks = np.array_split(np.argsort(self.indices, kind="stable"), n_blocks)
            drawn = torch.randperm(n_blocks, generator=generator)
            order = np.concatenate([blocks[i] for i in drawn])
        return order[: self.n_batches * self.batch_size] if self.drop_last else order

    def _edges(self, n: int) -> np.ndarray:
        """Return where batches begin, and the end of the last one."""
        if self.shuffle or self.is_shared:  # sizes as numpy.array_split has them
            small, n_larger = divmod(n, max(self.n_batches, 1))
            edges = np.arange(self.n_batches + 1)
            return edges * small + np.minimum(edges, n_larger)
        # whole batches, so that block reads stay aligned
        return np.minimum(np.arange(self.n_batches + 1) * self.batch_size, n)


class DataLoader(torch.utils.data.DataLoader):
    """Minibatches of a registered AnnData as dictionaries of tensors.

    Takes the arguments of :class:`scvi.dataloaders.AnnDataLoader` that scvi-tools passes. Further:
    `balance_conditions`, of a shuffled pass; `target_condition`, the condition features that the
    decoder shall use for every cell; and `dataset`, where the data are already at hand.
    """

    def __init__(  # noqa: PLR0913
        self,
        adata_manager: AnnDataManager,
        indices: np.ndarray | list[int] | None = None,
        batch_size: int = 128,
        shuffle: bool = False,
        drop_last: bool = False,
        *,
        balance_conditions: bool = False,
        target_condition: Tensor | None = None,
        data_and_attributes: list[str] | dict[str, Any] | None = None,
        load_sparse_tensor: bool = False,
        distributed_sampler: bool = False,
        drop_dataset_tail: bool = False,
        dataset: Dataset | DeviceDataset | None = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        check_whole("batch_size", batch_size)
        indices = row_numbers(indices, adata_manager.adata.n_obs)
        self.target_condition = target_condition
        if dataset is None:
            dataset = adata_manager.create_torch_dataset(
                data_and_attributes=data_and_attributes, load_sparse_tensor=load_sparse_tensor
            )
        self.file = getattr(dataset, "file", None)
        share = None
        if distributed_sampler:
            share = distributed.get_rank(), distributed.get_world_size()
            if drop_dataset_tail:
                indices = indices[: len(indices) // share[1] * share[1]]
        weights = None
        if balance_conditions and shuffle:
            if distributed_sampler or self.file is not None:
                other = (
                    "several devices"
                    if distributed_sampler
                    else "data that are streamed from a file"
                )
                raise InputError(f"balance_conditions cannot be combined with {other}.")
            codes = adata_manager.get_from_registry(CONDITION_KEY).ravel()[indices].astype(int)
            weights = 1.0 / np.bincount(codes)[codes]
        self.indices = indices
        sampler = Batches(
            indices,
            batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            weights=weights,
            window=None if self.file is None else self.file.window(),
            share=share,
            seed=seed,
        )
        kwargs.setdefault("num_workers", settings.dl_num_workers)
        kwargs.setdefault("persistent_workers", settings.dl_persistent_workers)
        if self.file is not None or isinstance(dataset, DeviceDataset):
            kwargs |= {"num_workers": 0, "persistent_workers": False, "pin_memory": False}
        super().__init__(dataset, batch_size=None, sampler=sampler, **kwargs)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Yield minibatches, with the target condition if one was given."""
        if self.persistent_workers and self._iterator is not None:
            torch.empty((), dtype=torch.int64).random_()  # as new workers would take for their seed
        for tensors in super().__iter__() if self.file is None else self._streamed():
            if self.target_condition is not None:
                n_cells = len(tensors[REGISTRY_KEYS.X_KEY])
                tensors[TARGET_KEY] = self.target_condition.expand(n_cells, -1)
            yield tensors

    def _streamed(self) -> Iterator[dict[str, Tensor]]:
        """Yield minibatches from windows of the file."""
        others = [key for key in self.dataset.keys_and_dtypes if key != REGISTRY_KEYS.X_KEY]
        dtype = self.dataset.keys_and_dtypes[REGISTRY_KEYS.X_KEY]
        # torch's loader draws a seed: what is drawn after it agrees
        torch.empty((), dtype=torch.int64).random_()

        def read(batches: list[np.ndarray]) -> Any:
            return self.file[np.concatenate(batches)]

        for batches, window in ahead(self.sampler.groups(), read):
            give_back_memory()
            start = 0
            for rows in batches:
                x = window[start : start + len(rows)]
                x = x.toarray() if sparse.issparse(x) else x
                start += len(rows)
                tensors = {key: torch.from_numpy(self.dataset.rows(key, rows)) for key in others}
                yield {
                    REGISTRY_KEYS.X_KEY: torch.from_numpy(x.astype(dtype, copy=False)),
                    **tensors,
                }


def row_numbers(indices: Iterable[int] | np.ndarray | None, n_obs: int) -> np.ndarray:
    """Return row numbers from a list, an array, a boolean mask or None (all rows); negative ones count back."""
    if indices is None:
        return np.arange(n_obs)
    rows = np.asarray(indices)
    if rows.dtype == bool:
        if rows.shape != (n_obs,):
            raise InputError(f"The mask has shape {rows.shape}; there are {n_obs:,} cells.")
        return np.flatnonzero(rows)
    if rows.size and rows.dtype.kind not in "iu":
        found = listing(rows.ravel().tolist())
        raise InputError(
            f"The cells are given as {found}; give row numbers, or a mask of booleans. Of names of cells "
            "adata.obs_names.get_indexer(names) returns the numbers."
        )
    rows = rows.astype(np.int64).ravel()
    if rows.size and (rows.max() >= n_obs or rows.min() < -n_obs):
        raise InputError(f"Row {rows[np.abs(rows).argmax()]} of an AnnData with {n_obs:,} cells.")
    return np.where(rows < 0, rows + n_obs, rows)


def _parts(given: Any, n_obs: int) -> list[np.ndarray]:
    """Return the rows to train on, to validate on and to test on, as of ``external_indexing``; a new list."""
    if not isinstance(given, list | tuple) or not 1 <= len(given) <= 3:
        raise InputError(
            "external_indexing is a list of the rows to train on, to validate on and to test on; the last two "
            "may be left out."
        )
    parts = [row_numbers([] if rows is None else rows, n_obs) for rows in given]
    if not len(parts[0]):
        raise InputError("external_indexing has no rows to train on, which come first in it.")
    return parts


class DataSplitter(ScviDataSplitter):
    """scvi-tools' splitter with our loaders, its own seed and condition-balanced batches.

    Data are kept where they are fastest to get at: on the GPU that trains, dense or sparse; in
    memory; or, where they do not fit, in their file, from which they are streamed.

    (The name matters: scvi-tools checks early stopping by the class name.)

    Parameters
    ----------
    seed
        Seed of the split; ``scvi.settings.seed`` or 0 if None.
    balance_conditions
        Draw the cells of an epoch with replacement so that every condition is equally frequent.
    memory_budget
        GB that the values may take, in memory and on the GPU; half of what is free there if None.
    batch_size
        Cells a step.
    adata_manager, train_size, validation_size, *args, **kwargs
        As of scvi-tools' splitter.

    Raises
    ------
    InputError
        A bad `external_indexing`, or a negative `memory_budget`.
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
        memory_budget: float | None = None,
        batch_size: int = 128,
        **kwargs: Any,
    ) -> None:
        if memory_budget is not None:
            check_number("memory_budget", memory_budget, 0.0)
        if kwargs.get("external_indexing") is not None:
            n_obs = adata_manager.adata.n_obs
            kwargs["external_indexing"] = _parts(kwargs["external_indexing"], n_obs)
        # batches of one: scvi-tools warns of, and moves, small last batches that we do not have
        kwargs["batch_size"] = 1
        try:
            super().__init__(adata_manager, train_size, validation_size, *args, **kwargs)
        except (Warning, ValueError) as error:  # scvi-tools raises either on bad rows
            raise InputError(f"The cells cannot be split as asked: {error}") from error
        self.seed, self.memory_budget = seed_of(seed), memory_budget
        self.data_loader_kwargs |= {
            "batch_size": batch_size,
            "seed": self.seed,
            "balance_conditions": balance_conditions,
        }

    def setup(self, stage: str | None = None) -> None:
        """Split the cells, and put the data where they are fastest to get at."""
        if self.external_indexing is not None or not self.shuffle_set_split:
            super().setup(stage)
        else:
            rows = np.random.default_rng(self.seed).permutation(self.adata_manager.adata.n_obs)
            self.val_idx = rows[: self.n_val]
            self.train_idx = rows[self.n_val : self.n_val + self.n_train]
            self.test_idx = rows[self.n_val + self.n_train :]
        dataset = self.adata_manager.create_torch_dataset(
            data_and_attributes=self.data_loader_kwargs.get("data_and_attributes"),
            load_sparse_tensor=self.load_sparse_tensor,
        )
        device = torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
        self.data_loader_kwargs["dataset"] = fitted(dataset, device, self.memory_budget)

    def teardown(self, stage: str | None = None) -> None:
        """Let go of the data."""
        self.data_loader_kwargs.pop("dataset", None)

    def statistics_dataloader(self) -> DataLoader:
        """Return the training cells once, in order."""
        return DataLoader(
            self.adata_manager,
            np.sort(self.train_idx),
            _STATISTICS_BATCH,
            dataset=self.data_loader_kwargs.get("dataset"),
        )


def check_splitting(given: Mapping[str, Any], train: Callable[..., Any]) -> None:
    """Raise on arguments of the splitter that it does not take, or that ``train`` gives it."""
    if not isinstance(given, Mapping):
        raise InputError(f"datasplitter_kwargs is {given!r}; give a dictionary.")
    for name in given:
        if name in named(train):
            raise InputError(f"{name} is an argument of train, not one of datasplitter_kwargs.")
    takers = (ScviDataSplitter, DataLoader, torch.utils.data.DataLoader)
    check_known(given, DataSplitter, [name for taker in takers for name in named(taker)])


def seed_of(given: int | None) -> int:
    """Return the seed given, or ``scvi.settings.seed``, or 0 where none is set."""
    if given is not None:
        check_seed(given)
        return int(given)
    return 0 if settings.seed is None else settings.seed
