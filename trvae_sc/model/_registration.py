"""How models and AnnData objects know each other."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.model.base import BaseModelClass

from trvae_sc import checks
from trvae_sc.alignment import align
from trvae_sc.condition_parts import PARTS
from trvae_sc.condition_sets import space_of
from trvae_sc.conditions import ConditionSpace
from trvae_sc.errors import InputError, NotTrainedError
from trvae_sc.expression import Keys
from trvae_sc.levels import level_name
from trvae_sc.model._trained import Known
from trvae_sc.module import CONDITION_KEY, COUNT_LIKELIHOODS, TOTAL_KEY
from trvae_sc.show import as_html, as_text, some
from trvae_sc.training import DataManager

_NAMES = ("labels_key", "layer", "total_counts_key", "batch_key")
#: Arguments that ``setup_anndata`` passes to scvi-tools' registration.
REGISTRATION = ("source_registry", "extend_categories")
NOT_TRAINED = "The model is not trained: call train() first."


class AnnDataModel(BaseModelClass):
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

    @classmethod
    def _check_registered(cls, adata: AnnData | None, registry: dict[str, Any] | None) -> None:
        """Raise where a model is made from data that are not, or no longer, registered with it."""
        if registry is not None and not isinstance(registry, Mapping):
            raise InputError(
                f"registry is {registry!r}; it is a dictionary of scvi-tools, the argument after adata. Give all "
                f"others by name, as in {cls.__name__}(adata, seed=0)."
            )
        if adata is None and registry is None:
            raise InputError(f"{cls.__name__} needs adata, set up by {cls.__name__}.setup_anndata.")
        if adata is None and "condition_key" not in registry.get("setup_args", {}):
            raise InputError(
                "The registry has no condition: it is of another model, or of a data module of "
                f"scvi-tools. Take that of data set up by {cls.__name__}.setup_anndata."
            )
        if adata is None:
            return
        checks.check_type(adata)
        try:
            manager = cls._get_most_recent_anndata_manager(adata, required=True)
        except ValueError as error:
            raise InputError(
                f"adata was not set up for this model, or is a copy of what was, or a copy of it was set up since, "
                f"which takes its place. Call {cls.__name__}.setup_anndata(adata, ...) first."
            ) from error
        manager.validate()

    @classmethod
    def convert_legacy_save(cls, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: there are no files of a former format, and scvi-tools would run code from one."""
        raise NotImplementedError(f"{cls.__name__} has no files of a former format. Use load.")

    @classmethod
    def setup_annbatch(cls, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: it registers no condition."""
        raise NotImplementedError(
            f"setup_annbatch registers no condition. Pass an AnnData that is on disk "
            f"(anndata.read_h5ad(path, backed='r')) to {cls.__name__}.setup_anndata: it is streamed."
        )

    def transfer_fields(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: scvi-tools takes the genes of another AnnData by their place, whatever their names."""
        raise NotImplementedError(
            "transfer_fields would take genes by place. Pass adata to the methods, or attach it "
            "(model.adata = adata): genes are matched by name."
        )

    def update_setup_method_args(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: data would be read otherwise than what the model was trained on."""
        raise NotImplementedError(
            f"What a model was set up with cannot be changed. Call {type(self).__name__}.setup_anndata "
            "and train a new model."
        )

    def get_state_registry(self, registry_key: str) -> Any:
        """Return what was found of a registered field; scvi-tools would make one of an unknown name."""
        known = list(self.registry_["field_registries"])
        if registry_key not in known:
            raise InputError(f"No field {registry_key!r} was registered; there are {known}.")
        return super().get_state_registry(registry_key)

    def view_registry(self, hide_state_registries: bool = False) -> None:
        """Print what was registered, as ``view_anndata_setup`` does; that of scvi-tools 1.4 fails."""
        self.view_anndata_setup(hide_state_registries=hide_state_registries)

    def _state(self, key: str) -> dict[str, Any]:
        """Return what was found of a registered field, as it is."""
        return self.registry_["field_registries"][key]["state_registry"]

    def _data_sizes(self) -> dict[str, Any]:
        """Return the module's arguments that follow from the registered data."""
        setup_args = self.registry_["setup_args"]
        covariates = self._state(REGISTRY_KEYS.CAT_COVS_KEY)
        return {
            "n_input": self.summary_stats.n_vars,
            "condition_design": torch.as_tensor(self.condition_space.design()),
            "n_batch": self.summary_stats.n_batch if setup_args["batch_key"] else 0,
            "n_labels": self.summary_stats.n_labels if setup_args["labels_key"] else 0,
            "n_cats_per_cov": covariates.get("n_cats_per_key"),
            "n_continuous_cov": self.summary_stats.get("n_extra_continuous_covs", 0),
            "has_total": setup_args["total_counts_key"] is not None,
        }

    def get_var_names(self, legacy_mudata_format: bool = False) -> np.ndarray:
        """Return the genes of the model, whatever became of those of the AnnData it was made from."""
        return _genes(self.registry_)

    @property
    def summary_string(self) -> str:
        """What the model is, and how far it was trained."""
        done, text = self.training_, super().summary_string
        if done["interrupted"]:
            text += f" (interrupted after {done['epochs']} of {done['planned']} epochs)"
        return text

    def _shown(self) -> dict[str, str]:
        """Return what the model is, in rows to show."""
        args, size = self.registry_["setup_args"], self.summary_stats
        key = args["condition_key"]
        rows = {"cells": f"{size.n_cells:,} of {size.n_vars:,} genes"}
        if key is not None:
            key = key if isinstance(key, str) else " x ".join(key)
            rows["conditions"] = f"{some(self.conditions)} in '{key}'"
        if args["labels_key"] is not None:
            rows["labels"] = f"{some(self.labels)} in '{args['labels_key']}'"
        done, trained = self.training_, "not trained"
        if self.is_trained_:
            date = getattr(self, "training_date_", "")
            stopped = "interrupted after " if done["interrupted"] else ""
            trained = f"{stopped}{done['epochs']} of {done['planned']} epochs{date and ', ' + date}"
        return {**rows, "training": trained, "settings": self._settings_shown()}

    def _settings_shown(self) -> str:
        """Return the settings that tell models apart."""
        return f"seed {self.seed_}"

    def __repr__(self) -> str:
        """Return cells, conditions, labels and how far the model was trained."""
        return as_text(type(self).__name__, self._shown())

    def _repr_html_(self) -> str:
        """Return the same as a table of a notebook."""
        return as_html(type(self).__name__, self._shown())

    def _check_if_trained(self, warn: bool = True, message: str = NOT_TRAINED) -> None:
        """Raise where the model is not trained."""
        if warn or self.is_trained_:
            super()._check_if_trained(warn=warn, message=message)
        else:
            raise NotTrainedError(message)

    def _validate_anndata(self, adata: AnnData | None = None, copy_if_view: bool = True) -> AnnData:
        """Return a registered AnnData with the model's genes; the one passed is not changed.

        The model's own data must be what they were; others are registered anew where they changed.
        """
        adata = self._adata if adata is None else adata
        if adata is None:
            raise InputError(
                "The model was loaded without data: pass adata, or attach some (model.adata = adata)."
            )
        checks.check_type(adata)
        if not adata.n_obs:
            raise InputError("adata has no cells.")
        manager = self._registered_manager(adata)
        if manager is not None:
            try:
                manager.validate()
                return adata
            except InputError:
                if adata is self._adata:
                    raise
        found = aligned(adata, self.registry_)
        self._register(found)
        return found

    @BaseModelClass.adata.setter
    def adata(self, adata: AnnData) -> None:
        """Attach data to train on and to use by default; registers it, if it has the model's genes."""
        checks.check_type(adata)
        if self._registered_manager(adata) is None:
            adata = with_genes(adata, self.registry_)
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

    def _check_condition(self, preset: str, condition_in: str | None) -> None:
        """Raise where a network would see a condition that was not registered."""
        if self.registry_["setup_args"]["condition_key"] is None and condition_in != "none":
            raise InputError(
                f"The network of preset '{preset}' sees the condition, and adata was set up with "
                "condition_key=None. Name the column in setup_anndata, or use a preset that needs none: "
                "'vae', 'beta_vae', 'autoencoder'."
            )

    def _check_labels_known(self) -> None:
        """Raise where the data attached for training holds labels the model does not know."""
        unknown = self._state(REGISTRY_KEYS.LABELS_KEY).get("unknown")
        if unknown:
            raise InputError(
                f"The attached data holds labels the model does not know: {unknown}. Train "
                "a new model, or use TRVAE.load_query_data."
            )

    def _check_values(self, likelihood: str, manager: DataManager | None = None) -> None:
        """Raise on values that the likelihood cannot take."""
        manager = self.adata_manager if manager is None else manager
        if manager is None:
            return
        total_key = self.registry_["setup_args"]["total_counts_key"]
        is_count = likelihood in COUNT_LIKELIHOODS
        totals = manager.get_from_registry(TOTAL_KEY).ravel() if total_key and is_count else None
        name = checks.matrix_name(self.registry_["setup_args"]["layer"])
        x = manager.get_from_registry(REGISTRY_KEYS.X_KEY)
        n_obs = manager.adata.n_obs
        checks.check_values(x, is_count=is_count, totals=totals, name=name, n_obs=n_obs)

    def _warn_of_counts(self) -> None:
        """Warn where values to take as they are look like raw counts."""
        x, n_obs = self.adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY), self.adata.n_obs
        if checks.looks_like_counts(x, n_obs, least=2):
            warnings.warn(
                f"{checks.matrix_name(self.registry_['setup_args']['layer'])} looks like raw counts, which "
                f"gene_likelihood='{self.module.gene_likelihood}' takes as they are. Use "
                "gene_likelihood='nb', or log-normalised values: sc.pp.normalize_total(adata), "
                "sc.pp.log1p(adata).",
                UserWarning,
                stacklevel=3,
            )

    def _levels(self, key: str) -> list[Any]:
        """Return the registered levels of a categorical field, in code order."""
        return list(self._state(key)["categorical_mapping"])

    def _group_codes(self) -> np.ndarray:
        """Return the codes of label and condition of each cell of the attached data, (n_cells, 2)."""
        keys = REGISTRY_KEYS.LABELS_KEY, CONDITION_KEY
        found = [self.adata_manager.get_from_registry(key).ravel() for key in keys]
        return np.stack(found, axis=1).astype(int)

    @property
    def labels(self) -> list[Any]:
        """Labels the model knows, in code order; empty without ``labels_key``."""
        has_labels = self.registry_["setup_args"]["labels_key"] is not None
        return self._levels(REGISTRY_KEYS.LABELS_KEY) if has_labels else []

    @property
    def conditions(self) -> list[Any]:
        """Conditions the model knows, in code order; empty without ``condition_key``."""
        has_conditions = self.registry_["setup_args"]["condition_key"] is not None
        return self._levels(CONDITION_KEY) if has_conditions else []

    @property
    def condition_space(self) -> ConditionSpace:
        """How conditions are named, coded and made of parts."""
        key = self.registry_["setup_args"]["condition_key"]
        parts = self._state(CONDITION_KEY).get(PARTS)
        return space_of(key, self._levels(CONDITION_KEY), parts)

    @property
    def known(self) -> Known:
        """Conditions, labels and numbers of training cells, as plain data."""
        labels = tuple(map(level_name, self.labels)) or ("all",)
        key = self.registry_["setup_args"]["labels_key"]
        n_cells = self.module.n_cells.cpu().numpy().astype(np.float64)
        n_query = getattr(self, "query_cells_", 0)  # models of the family take no queries
        return Known(self.condition_space, labels, key, n_cells, n_query=n_query)

    @property
    def keys(self) -> Keys:
        """Columns and layer that the model was set up with, for :func:`trvae_sc.select` and others.

        Raises
        ------
        InputError
            There is no condition.
        """
        args = self.registry_["setup_args"]
        if args["condition_key"] is None:
            raise InputError("The model was set up without condition_key, which this needs.")
        key, description = args["condition_key"], self.condition_space.description
        return Keys(
            key if isinstance(key, str) else tuple(key),
            **{k: args[k] for k in _NAMES},
            is_count=self.module.is_count,
            condition_features=None if description is None else description.frame,
            condition_separator=args.get("condition_separator"),
        )

    @property
    def n_cells(self) -> pd.DataFrame:
        """Number of training cells by label (row) and condition (column)."""
        table = self.module.n_cells.cpu().numpy().astype(int)
        return pd.DataFrame(table, index=self.labels or ["all"], columns=self.conditions or ["all"])


def _genes(registry: dict[str, Any]) -> np.ndarray:
    """Return the genes of a registration."""
    state = registry["field_registries"][REGISTRY_KEYS.X_KEY]["state_registry"]
    return np.asarray(state["column_names"])


def aligned(adata: AnnData, registry: dict[str, Any]) -> AnnData:
    """Return a new AnnData with the genes of a registration and what it needs."""
    args = registry["setup_args"]
    return align(adata, pd.Index(_genes(registry)), args["layer"], args["total_counts_key"])


def with_genes(adata: AnnData, registry: dict[str, Any]) -> AnnData:
    """Return an AnnData with the genes of a registration, in order: itself where it has them."""
    if adata.is_view or not adata.var_names.equals(pd.Index(_genes(registry))):
        return aligned(adata, registry)
    checks.check_matrix(adata, registry["setup_args"]["layer"])
    return adata


def _hold(manager: DataManager) -> None:
    """Make an AnnData own its manager, so that the class-level stores need not."""
    managers = manager.adata.__dict__.setdefault("_trvae_sc_managers", {})
    managers[manager.id] = manager
