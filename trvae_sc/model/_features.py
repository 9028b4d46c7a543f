"""Tables of features of conditions: added to that of a reference, and what they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from anndata import AnnData

from trvae_sc.checks import check_obs
from trvae_sc.condition_features import (
    DESCRIBED,
    Description,
    lacking,
    table_of,
)
from trvae_sc.condition_parts import PARTS
from trvae_sc.condition_sets import SETS, ConditionSets, parts_of, split
from trvae_sc.conditions import ConditionSpace, unwrapped
from trvae_sc.errors import InputError
from trvae_sc.levels import SEPARATOR, as_list, level_name, listing
from trvae_sc.model._trained import Trained
from trvae_sc.module import CONDITION_KEY
from trvae_sc.training import row_numbers


def with_rows(registry: dict[str, Any], adata: AnnData, given: Any) -> dict[str, Any]:
    """Return the registry of a reference for a query whose new conditions a table describes."""
    fields = registry["field_registries"]
    field = fields[CONDITION_KEY]
    parts = field["state_registry"].get(PARTS)
    description = Description.of(parts)
    if description is None:
        if given is not None:
            raise InputError("The reference was set up without condition_features; leave them out.")
        return registry
    if given is not None:
        description = description.with_table(table_of(adata, given))
    separator = registry["setup_args"].get("condition_separator")
    absent = lacking(description.frame, parts_of(adata.obs[description.key], separator))
    if absent:
        raise InputError(
            f"Conditions {listing(absent)} of adata.obs['{description.key}'] have no features. Pass their "
            "rows: load_query_data(..., condition_features=table)."
        )
    state = {**field["state_registry"], PARTS: {**parts, DESCRIBED: description.plain()}}
    field = {**field, "state_registry": state}
    return {**registry, "field_registries": {**fields, CONDITION_KEY: field}}


def with_features(trained: Trained, target: Any, features: Any) -> Trained:
    """Return a model that knows a target, which was not measured, by its features, if any are given."""
    if features is None:
        return trained
    description = trained.conditions.description
    if description is None:
        raise InputError(
            "The model was set up without condition_features, so a condition cannot be described. Set up and "
            "train with a table of features."
        )
    level = _new_level(trained.conditions, description.key, target)
    space = trained.conditions.with_description(description.extended(level, features))
    return replace(trained, conditions=space)


def _new_level(space: ConditionSpace, key: str, condition: Any) -> Any:
    """Return the level, or part, of a condition that features are given of, which may be unknown."""
    if isinstance(space, ConditionSets):
        separator, known = space.parts[SETS], space.parts["features"]
        given = [condition] if isinstance(condition, str) else list(condition)
        new = [p for one in given for p in split(one, separator) if p not in known]
        if len(new) != 1:
            raise InputError(
                f"features describe one new part; of {condition!r} {listing(new) if new else 'none'} is new."
            )
        return new[0]
    if isinstance(space.key, list):
        condition = unwrapped(space.key, condition, len(space.key))
    if isinstance(condition, Mapping):
        return condition.get(key)
    if isinstance(space.key, str) or space.parts is None:
        return condition
    given = condition.split(SEPARATOR) if isinstance(condition, str) else list(condition)
    if len(given) != len(space.parts["keys"]):
        raise InputError(f"Condition {condition!r} has {len(given)} parts; {space.key} are needed.")
    return given[space.parts["keys"].index(key)]


def of_known_conditions(
    trained: Trained, adata: AnnData | None, indices: Any, target: Any, source: Any
) -> tuple[AnnData | None, Any]:
    """Return cells, and indices, without conditions that training lacks: these cannot be encoded.

    Without a source only the target, and conditions known by features, are left out.
    """
    space = trained.conditions
    columns = [] if space.key is None else as_list(space.key)
    if not isinstance(adata, AnnData) or any(column not in adata.obs for column in columns):
        return adata, indices
    check_obs(adata, columns)
    names, known = space.column(adata.obs), set(map(level_name, space.levels))
    unknown = [name for name in names.unique() if level_name(name) not in known]
    if source is not None:
        unknown = [name for name in unknown if not _is(space, name, source)]
    else:
        described = () if space.description is None else space.description.names
        unknown = [name for name in unknown if name in described or _is(space, name, target)]
    kept = ~names.isin(unknown).to_numpy()
    if kept.all() or not kept.any():
        return adata, indices
    if indices is not None:
        rows = row_numbers(indices, adata.n_obs)
        indices = (kept.cumsum() - 1)[rows[kept[rows]]]
    return adata[kept].to_memory() if adata.isbacked else adata[kept].copy(), indices


def _is(space: ConditionSpace, name: str, condition: Any) -> bool:
    """Return whether a name, which may be that of no condition, is of a condition."""
    try:
        return bool(space.level(name) == space.level(condition))
    except InputError:
        return False


def remarks(trained: Trained, sources: Sequence[Any], target: Any) -> list[str]:
    """Return what is to be said of how much features tell of a target that was not measured."""
    description = trained.conditions.description
    if description is None or trained.conditions.code(target) is not None:
        return []
    if len(description.measured) < 4:
        return [
            f"Only {len(description.measured)} described conditions were measured: too few to tell whether "
            "their features say anything."
        ]
    space = trained.conditions
    codes = [space.code(space.level(source)) for source in sources]
    if not any(trained.informed(code, target).description.share for code in codes):
        return [
            "The features say nothing of how the measured conditions differ (each is predicted no better from "
            "the others by them): this is the mean of the measured conditions."
        ]
    return []
