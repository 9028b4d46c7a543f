"""Fields that scvi-tools registers: categories as they are, and conditions of several columns.

Codes are kept in columns of our own (``_trvae_sc_*``), so that a registration by scvi-tools on the same
AnnData and ours leave each other alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.data.fields import (
    CategoricalJointObsField,
    CategoricalObsField,
    LayerField,
    NumericalJointObsField,
    NumericalObsField,
)

from trvae_sc.condition_parts import PARTS, extended_parts, joint_column
from trvae_sc.condition_sets import SETS, coding_of, extended_sets
from trvae_sc.errors import InputError
from trvae_sc.levels import SEPARATOR, codes_among, level_name, levels, listing
from trvae_sc.module import CONDITION_KEY, TOTAL_KEY

_OWN = "_trvae_sc_"
#: Arguments of ``setup_anndata`` that name columns, or the layer.
KEYS = (
    "condition_key",
    "labels_key",
    "layer",
    "batch_key",
    "total_counts_key",
    "categorical_covariate_keys",
    "continuous_covariate_keys",
)


def _unknown(column: pd.Series, known: Sequence[Any]) -> list[Any]:
    """Return the levels of a column that are none of those known."""
    names = {level_name(level) for level in known}
    return [level for level in levels(column) if level_name(level) not in names]


def _as_objects(values: Sequence[Any]) -> np.ndarray:
    """Return values as an array that keeps their types."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


class CategoryField(CategoricalObsField):
    """A categorical obs column whose levels are those present, in sorted order.

    scvi-tools' own field keeps unused categories and lets unknown levels that are falsy (0, "",
    False) through. Here unknown levels raise, except of labels, which only training uses: these get
    code 0 and are listed in the state registry under ``unknown``.
    """

    UNKNOWN_KEY = "unknown"

    def register_field(self, adata: AnnData) -> dict[str, Any]:
        """Register the column."""
        if self.is_default:
            self._setup_default_attr(adata)
        self.validate_field(adata)
        return self._encode(adata, levels(self._column(adata.obs)))

    def _column(self, obs: pd.DataFrame) -> pd.Series:
        """Return the values to register."""
        return obs[self._original_attr_key]

    def transfer_field(
        self,
        state_registry: dict[str, Any],
        adata_target: AnnData,
        extend_categories: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Register the column with the levels of another registration."""
        lenient = self.registry_key == REGISTRY_KEYS.LABELS_KEY
        if self.is_default or (lenient and self._original_attr_key not in adata_target.obs):
            adata_target.obs[self.attr_key] = np.zeros(adata_target.n_obs, dtype=np.int64)
            return {**state_registry, self.UNKNOWN_KEY: [] if self.is_default else ["(no column)"]}
        self.validate_field(adata_target)
        known = list(state_registry[self.CATEGORICAL_MAPPING_KEY])
        unknown = _unknown(self._column(adata_target.obs), known)
        if extend_categories:
            return self._encode(adata_target, known + unknown)
        if unknown and not lenient:
            raise InputError(
                f"Unknown {self.registry_key} {listing(unknown)} in "
                f"adata.obs['{self._original_attr_key}']; the model knows {known}. For a model that "
                "learns them, see TRVAE.load_query_data."
            )
        return self._encode(adata_target, known, unknown)

    def _encode(self, adata: AnnData, known: list[Any], unknown: Sequence[Any] = ()) -> dict:
        """Write the codes and return the state registry."""
        codes = np.maximum(codes_among(self._column(adata.obs), known), 0)
        if self.attr_key not in adata.obs or not np.array_equal(adata.obs[self.attr_key], codes):
            adata.obs[self.attr_key] = codes  # else other threads may read it now
        return {
            self.CATEGORICAL_MAPPING_KEY: _as_objects(known),
            self.ORIGINAL_ATTR_KEY: self._original_attr_key,
            self.UNKNOWN_KEY: list(unknown),
        }

    def get_summary_stats(self, state_registry: dict[str, Any]) -> dict[str, int]:
        """Return the number of levels."""
        return {self.count_stat_key: len(state_registry[self.CATEGORICAL_MAPPING_KEY])}


class ConditionField(CategoryField):
    """The condition: one obs column, a combination of several, or none (all cells alike).

    Of several columns every combination present is a level, named by its parts. The state registry
    then also has ``parts``: the columns, the features they are coded by (a level of a column, or a
    numeric column), the scaling of numeric columns and the parts of each level. With a separator between
    parts (:mod:`trvae_sc.condition_sets`) these are the parts of one column. Features
    (:mod:`trvae_sc.condition_features`) describe the levels of one column, or the parts of sets.
    """

    def __init__(
        self,
        registry_key: str,
        condition_key: str | Sequence[str] | None,
        separator: str | None = None,
        features: pd.DataFrame | None = None,
    ) -> None:
        self.separator, self.features = separator, features
        single = condition_key is None or isinstance(condition_key, str)
        self.keys = None if single else list(condition_key)
        super().__init__(registry_key, condition_key if single else SEPARATOR.join(self.keys))

    def validate_field(self, adata: AnnData) -> None:
        """Check the column; several have been checked with the others."""
        if self.keys is None:
            super().validate_field(adata)

    def _column(self, obs: pd.DataFrame) -> pd.Series:
        return super()._column(obs) if self.keys is None else joint_column(obs, self.keys)[0]

    def register_field(self, adata: AnnData) -> dict[str, Any]:
        """Register the column or columns."""
        state = super().register_field(adata)
        key = self._original_attr_key if self.keys is None else self.keys
        parts = coding_of(adata.obs, key, self.separator, self.features)
        return state if parts is None else {**state, PARTS: parts}

    def transfer_field(
        self, state_registry: dict[str, Any], adata_target: AnnData, **kwargs: Any
    ) -> dict[str, Any]:
        """Register the column or columns with the levels of another registration."""
        state = super().transfer_field(state_registry, adata_target, **kwargs)
        if PARTS not in state_registry:
            return state
        parts, known = state_registry[PARTS], state[self.CATEGORICAL_MAPPING_KEY]
        if SETS in parts:
            return {**state, PARTS: extended_sets(parts, known)}
        return {**state, PARTS: extended_parts(parts, adata_target.obs, known)}


class CovariatesField(CategoricalJointObsField):
    """Further categorical columns, coded as :class:`CategoryField` codes one."""

    def register_field(self, adata: AnnData) -> dict[str, Any]:
        """Register the columns."""
        return self._encode(adata, {key: levels(adata.obs[key]) for key in self.attr_keys})

    def transfer_field(
        self,
        state_registry: dict[str, Any],
        adata_target: AnnData,
        extend_categories: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Register the columns with the levels of another registration."""
        known = {key: list(state_registry[self.MAPPINGS_KEY][key]) for key in self.attr_keys}
        for key in self.attr_keys:
            unknown = _unknown(adata_target.obs[key], known[key])
            if unknown and not extend_categories:
                raise InputError(
                    f"Unknown levels {listing(unknown)} in adata.obs['{key}']; the model knows "
                    f"{known[key]}. For a model that learns them, see TRVAE.load_query_data."
                )
            known[key] += unknown
        return self._encode(adata_target, known)

    def _encode(self, adata: AnnData, known: dict[str, list[Any]]) -> dict[str, Any]:
        """Write the codes and return the state registry."""
        codes = {key: codes_among(adata.obs[key], found) for key, found in known.items()}
        adata.obsm[self.attr_key] = pd.DataFrame(codes, index=adata.obs_names)
        return {
            self.MAPPINGS_KEY: {key: _as_objects(found) for key, found in known.items()},
            self.FIELD_KEYS_KEY: list(known),
            self.N_CATS_PER_KEY: [len(found) for found in known.values()],
        }


def fields(
    keys: Mapping[str, Any], separator: str | None = None, features: pd.DataFrame | None = None
) -> list[Any]:
    """Return the fields of a registration; `keys` are the arguments named in :data:`KEYS`."""
    found = [
        LayerField(
            REGISTRY_KEYS.X_KEY, keys["layer"], is_count_data=False, correct_data_format=False
        ),
        ConditionField(CONDITION_KEY, keys["condition_key"], separator, features),
        CategoryField(REGISTRY_KEYS.BATCH_KEY, keys["batch_key"]),
        CategoryField(REGISTRY_KEYS.LABELS_KEY, keys["labels_key"]),
        NumericalObsField(TOTAL_KEY, keys["total_counts_key"], required=False),
        CovariatesField(REGISTRY_KEYS.CAT_COVS_KEY, keys["categorical_covariate_keys"]),
        NumericalJointObsField(REGISTRY_KEYS.CONT_COVS_KEY, keys["continuous_covariate_keys"]),
    ]
    for field in found:
        if field.registry_key not in (REGISTRY_KEYS.X_KEY, TOTAL_KEY):
            field._attr_key = f"{_OWN}{field.registry_key}"
    return found
