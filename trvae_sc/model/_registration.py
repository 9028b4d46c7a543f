"""How models and AnnData objects know each other."""

from __future__ import annotations

import weakref
from typing import Any

import pandas as pd
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.model.base import BaseModelClass

from trvae_sc.model import _setup
from trvae_sc.module import COUNT_LIKELIHOODS, TOTAL_KEY
from trvae_sc.training import DataManager


class RegistrationMixin(BaseModelClass):
    """Registered AnnData objects live as long as they are used, and others are aligned by name."""

    @classmethod
    def register_manager(cls, adata_manager: DataManager) -> None:
        """Register a manager; it lives as long as its AnnData (scvi-tools keeps both for ever)."""
        if not isinstance(cls._setup_adata_manager_store, weakref.WeakValueDictionary):
            cls._setup_adata_manager_store = weakref.WeakValueDictionary()
        _hold(adata_manager)
        super().register_manager(adata_manager)

    def _register_manager_for_instance(self, adata_manager: DataManager) -> None:
        _hold(adata_manager)
        store = self._per_instance_manager_store
        store.setdefault(self.id, weakref.WeakValueDictionary())
        super()._register_manager_for_instance(adata_manager)

    def _validate_anndata(self, adata: AnnData | None = None, copy_if_view: bool = True) -> AnnData:
        """Return a registered AnnData with the model's genes; the one passed is not changed."""
        if adata is None:
            adata = self._adata
            if adata is None:
                raise ValueError("The model was loaded without data: pass adata.")
        _setup.check_type(adata)
        manager = self._registered_manager(adata)
        if manager is not None:
            manager.validate()
            return adata
        setup_args = self.registry_["setup_args"]
        aligned = _setup.align(adata, pd.Index(self.get_var_names()), setup_args["layer"])
        self._register(aligned)
        return aligned

    @BaseModelClass.adata.setter
    def adata(self, adata: AnnData) -> None:
        """Attach data to train on and to use by default; registers it, if it has the model's genes."""
        _setup.check_type(adata)
        if self._registered_manager(adata) is None:
            setup_args, names = self.registry_["setup_args"], pd.Index(self.get_var_names())
            if adata.is_view or not adata.var_names.equals(names):
                adata = _setup.align(adata, names, setup_args["layer"])
            self._register(adata)
        BaseModelClass.adata.fset(self, adata)

    def _register(self, adata: AnnData) -> None:
        """Register an AnnData that has the model's genes in order, and check its values."""
        self.setup_anndata(adata, source_registry=self.registry_, **self.registry_["setup_args"])
        manager = self._get_most_recent_anndata_manager(adata, required=True)
        self._register_manager_for_instance(manager)
        self._check_values(self.module.gene_likelihood, manager)

    def _registered_manager(self, adata: AnnData) -> DataManager | None:
        """Return this model's manager of exactly this object, if there is one."""
        store = self._per_instance_manager_store.get(self.id, {})
        manager = store.get(adata.uns.get("_scvi_uuid"))
        return manager if manager is not None and manager.adata is adata else None

    def _check_values(self, likelihood: str, manager: DataManager | None = None) -> None:
        """Raise on values that the likelihood cannot take."""
        manager = self.adata_manager if manager is None else manager
        if manager is None:
            return
        total_key = self.registry_["setup_args"]["total_counts_key"]
        layer = self.registry_["setup_args"]["layer"]
        is_count = likelihood in COUNT_LIKELIHOODS
        totals = manager.get_from_registry(TOTAL_KEY).ravel() if total_key and is_count else None
        name = "adata.X" if layer is None else f"adata.layers['{layer}']"
        x = manager.get_from_registry(REGISTRY_KEYS.X_KEY)
        n_obs = manager.adata.n_obs
        _setup.check_values(x, is_count=is_count, totals=totals, name=name, n_obs=n_obs)

    def _levels(self, key: str) -> list[Any]:
        """Return the registered levels of a categorical field, in code order."""
        state = self.registry_["field_registries"][key]["state_registry"]
        return list(state["categorical_mapping"])

    @property
    def labels(self) -> list[Any]:
        """Labels the model knows, in code order; empty without ``labels_key``."""
        has_labels = self.registry_["setup_args"]["labels_key"] is not None
        return self._levels(REGISTRY_KEYS.LABELS_KEY) if has_labels else []

    @property
    def n_cells(self) -> pd.DataFrame:
        """Number of training cells by label (row) and condition (column)."""
        table = self.module.n_cells.cpu().numpy().astype(int)
        return pd.DataFrame(table, index=self.labels or ["all"], columns=self.conditions)


def _hold(manager: DataManager) -> None:
    """Make an AnnData own its manager, so that the class-level stores need not."""
    managers = manager.adata.__dict__.setdefault("_trvae_sc_managers", {})
    managers[manager.id] = manager
