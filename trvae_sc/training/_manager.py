"""Registered AnnData objects that notice when they are no longer what was registered."""

from __future__ import annotations

from copy import copy, deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data.fields import AnnDataField
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Subset

from trvae_sc.checks import check_other, matrix_name
from trvae_sc.errors import InputError
from trvae_sc.identity import cell_marks, same_marks
from trvae_sc.levels import listing
from trvae_sc.stored import file_state, is_file
from trvae_sc.training._dataset import Dataset

_WHAT_TO_DO = (
    "A model uses what was registered: undo that, or call setup_anndata again and train a new model. "
    "To predict from the cells as they are now, pass a copy: predict(adata.copy(), ...)."
)


@dataclass(frozen=True)
class Registered:
    """What an AnnData was when it was registered."""

    var_names: pd.Index
    n_obs: int
    columns: dict[str, np.ndarray]  #: registered arrays of obs and obsm, by key
    unknown: tuple[Any, ...]  #: labels that the registration it was made from does not know
    marks: np.ndarray | None  #: of values in memory, see :func:`trvae_sc.identity.cell_marks`
    file: tuple[Any, ...] | None  #: state of the file that the values are in, if they are


class DataManager(AnnDataManager):
    """AnnDataManager whose torch dataset keeps the order of rows, and that notices changes."""

    registered: Registered | None = None
    _places: tuple[dict[str, Any], Any] | None = None  #: data registry: a dict, and made of it

    @property
    def data_registry(self) -> Any:
        """Where the data of each field are; made once, since it is asked for dozens of times a fit."""
        self._assert_anndata_registered()
        fields = self.registry["field_registries"].items()
        places = {key: dict(f["data_registry"]) for key, f in fields if f["data_registry"]}
        if self._places is None or self._places[0] != places:
            self._places = places, super().data_registry
        return self._places[1]

    def register_fields(self, adata: AnnData, *args: Any, **kwargs: Any) -> None:
        """Register every field, and remember what was registered."""
        super().register_fields(adata, *args, **kwargs)
        if self.registered is None:
            x = self.get_from_registry(REGISTRY_KEYS.X_KEY)
            in_file = is_file(x)
            self.registered = Registered(
                adata.var_names.copy(),
                adata.n_obs,
                self._columns(),
                self._unknown_labels(),
                None if in_file else cell_marks(x, adata.n_obs),
                file_state(x) if in_file else None,
            )

    def register_new_fields(self, fields: list[AnnDataField]) -> None:
        """Register further fields, and watch them too."""
        super().register_new_fields(fields)
        self.registered = replace(self.registered, columns=self._columns())

    def _columns(self) -> dict[str, np.ndarray]:
        """Return copies of the registered arrays but the values."""
        keys = [key for key in self.data_registry if key != REGISTRY_KEYS.X_KEY]
        return {key: np.array(self.get_from_registry(key)) for key in keys}

    def _unknown_labels(self) -> tuple[Any, ...]:
        """Return labels that have no code of their own."""
        fields = self.registry["field_registries"]
        return tuple(fields[REGISTRY_KEYS.LABELS_KEY]["state_registry"].get("unknown", ()))

    def validate(self) -> None:
        """Write the codes, which another registration may have overwritten; raise on other data."""
        self._assert_anndata_registered()
        adata, known = self.adata, self.registered
        if not adata.var_names.equals(known.var_names):
            told = _genes_now(adata.var_names, known.var_names)
            raise InputError(
                f"The genes of adata changed since it was registered: {told}. {_WHAT_TO_DO}"
            )
        if adata.n_obs != known.n_obs:
            raise InputError(
                f"adata has {adata.n_obs:,} cells, and had {known.n_obs:,} when it was registered. "
                f"{_WHAT_TO_DO}"
            )
        check_other(adata, self.registry["setup_args"])
        again = copy(self)  # in a copy, for other threads may read what is registered meanwhile
        again._registry, again._places, again.adata = deepcopy(self._registry), None, None
        super(DataManager, again).register_fields(
            adata, deepcopy(self.registry), **self._transfer_kwargs
        )
        again._check_columns()
        self._check_values()

    def _check_columns(self) -> None:
        """Raise where columns have changed."""
        now = self._columns()
        changed = [
            (self._name_of(key), f"{(before != now[key]).reshape(len(before), -1).any(1).sum():,}")
            for key, before in self.registered.columns.items()
            if not np.array_equal(before, now[key])
        ]
        if not changed and self._unknown_labels() != self.registered.unknown:
            changed = [(self.registry["setup_args"]["labels_key"], "some")]  # of the code 0
        labels = self.registry["setup_args"]["labels_key"]  # the one that may be missing
        if labels in dict(changed) and labels not in self.adata.obs:
            raise InputError(
                f"adata.obs['{labels}'] is gone, and was there when adata was registered. {_WHAT_TO_DO}"
            )
        if changed:
            named = " and ".join(f"adata.obs['{name}'] in {n} cells" for name, n in changed)
            raise InputError(f"{named} changed since adata was registered. {_WHAT_TO_DO}")

    def _name_of(self, key: str) -> str:
        """Return the column of a registered array."""
        state = self.registry["field_registries"][key]["state_registry"]
        columns = state.get("field_keys", state.get("columns"))
        if columns is not None:
            return "', '".join(map(str, columns))
        return str(state.get("original_key", self.data_registry[key]["attr_key"]))

    def _check_values(self) -> None:
        """Raise where values have changed."""
        x = self.get_from_registry(REGISTRY_KEYS.X_KEY)
        name = matrix_name(self.registry["setup_args"].get("layer"))
        if self.registered.file is not None:
            if is_file(x) and file_state(x) == self.registered.file:
                return
            raise InputError(
                f"The file of {name} changed since adata was registered. {_WHAT_TO_DO}"
            )
        same = same_marks(cell_marks(x, self.adata.n_obs), self.registered.marks)
        if not same.all():
            cells = self.adata.obs_names[~same]
            raise InputError(
                f"{name} changed since adata was registered, in {len(cells):,} cells ({listing(cells)}). "
                f"{_WHAT_TO_DO}"
            )

    def create_torch_dataset(
        self,
        indices: np.ndarray | None = None,
        data_and_attributes: list[str] | dict[str, Any] | None = None,
        load_sparse_tensor: bool = False,
    ) -> TorchDataset:
        """Return the dataset, restricted to `indices` if given."""
        dataset = Dataset(self, data_and_attributes, load_sparse_tensor)
        return dataset if indices is None else Subset(dataset, indices)


def _genes_now(now: pd.Index, then: pd.Index) -> str:
    """Return how genes differ from those that were registered."""
    n_same = int(now.isin(then).sum())
    if n_same == len(now) == len(then):
        return "they are in another order"
    same = f", of which {n_same} are the same" if len(now) == len(then) else ""
    return f"{len(now)} now, {len(then)} then{same}"
