"""Conditions that are sets of parts, as ``"KLF1+MAP2K6"``: each part has an effect of its own.

A condition is coded by one feature for every part, so that a set never measured is predicted from what was
seen of its parts. The condition named like a control is the empty set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from trvae_sc.condition_features import (
    DESCRIBED,
    Description,
    check_described,
    described_key,
    description_of,
    table_of,
)
from trvae_sc.condition_kernels import JOINT
from trvae_sc.condition_parts import UNKNOWN, new_parts
from trvae_sc.conditions import ConditionSpace, unwrapped
from trvae_sc.errors import InputError
from trvae_sc.levels import CONTROLS, as_list, level_name, levels, listing

SETS = "separator"  #: entry of the coding of sets


def split(name: Any, separator: str) -> list[str]:
    """Return the parts of a condition by name; none of a control."""
    found = [part.strip() for part in level_name(name).split(separator)]
    return [part for part in found if part.lower() not in CONTROLS]


def new_sets(
    column: pd.Series, separator: str, table: pd.DataFrame | None = None
) -> dict[str, Any]:
    """Return how sets are coded: the separator, the parts there are, and those of every condition."""
    values = [split(level, separator) for level in levels(column)]
    features = parts_of(column, separator)
    coding = {SETS: separator, "features": features, "values": values}
    if table is not None:
        coding[DESCRIBED] = description_of(table, str(column.name), features).plain()
    return coding


def parts_of(column: pd.Series, separator: str | None) -> list[Any]:
    """Return the parts that there are; without a separator the levels."""
    if separator is None:
        return levels(column)
    return sorted({part for level in levels(column) for part in split(level, separator)})


def extended_sets(coding: dict[str, Any], known: Sequence[Any]) -> dict[str, Any]:
    """Return the coding with the conditions that another registration added, new parts at the end."""
    values = [split(level, coding[SETS]) for level in known]
    new = sorted({part for parts in values for part in parts} - set(coding["features"]))
    grown = {**coding, "features": [*coding["features"], *new], "values": values}
    description = Description.of(coding)
    if description is not None:
        grown[DESCRIBED] = description.grown(new).plain()
    return grown


def check_sets(obs: pd.DataFrame, key: Any, separator: Any) -> None:
    """Raise on conditions that are no sets of parts."""
    if not isinstance(key, str):
        raise InputError(
            f"condition_key is {key!r}, but sets of parts (condition_separator) are those of one column. "
            "Name one column, or leave condition_separator out."
        )
    if not isinstance(separator, str) or not separator.strip():
        raise InputError(f"condition_separator is {separator!r}; give the text between parts: '+'.")
    found = [level_name(level) for level in levels(obs[key])]
    where = f"adata.obs['{key}']"
    sets = [split(name, separator) for name in found]
    odd = [n for n, s in zip(found, sets, strict=True) if "" in s or len(set(s)) < len(s)]
    if odd:
        raise InputError(
            f"Conditions {listing(odd)} of {where} have a part that is empty or there twice. Rename them."
        )
    if [] not in sets:
        raise InputError(
            f"No condition in {where} is called like a control ({', '.join(CONTROLS)}), from which parts "
            f"have effects; there are {listing(found)}. Rename the one without any part."
        )
    keys = pd.Series([tuple(sorted(s)) for s in sets], index=found)
    same = keys.index[keys.duplicated(keep=False)]
    if len(same):
        raise InputError(f"Conditions {listing(same)} of {where} are the same set. Make them one.")


@dataclass(frozen=True)
class ConditionSets(ConditionSpace):
    """Conditions that are sets of parts; `parts` is what :func:`new_sets` returns."""

    key: str
    parts: dict[str, Any]
    is_of_one_part = False

    def level(self, condition: Any) -> Any:
        """Return a condition as in :attr:`levels`, or the name of a new set, in any order of its parts."""
        given = self._given(condition)
        for level, parts in zip(self.levels, self.parts["values"], strict=True):
            if set(parts) == set(given):
                return level
        return self.parts[SETS].join(sorted(given, key=self._known().index))

    def _known(self) -> list[str]:
        """Return the parts that sets can be made of: those measured, and others that are described."""
        known, description = self.parts["features"], self.description
        return known if description is None else description.and_described(known)

    def _given(self, condition: Any) -> list[str]:
        """Return the parts of a condition: a name, or a list, tuple or set of parts."""
        condition = unwrapped(self.key, condition, len(self._known()))
        if isinstance(condition, Sequence | Set) and not isinstance(condition, str):
            given = [part for one in condition for part in split(one, self.parts[SETS])]
        else:
            given = split(condition, self.parts[SETS])
        unknown = [part for part in given if part not in self._known()]
        if unknown or len(set(given)) < len(given):
            what = f"unknown parts {listing(unknown)}" if unknown else "a part twice"
            raise InputError(
                f"Unknown condition {condition!r}: it has {what}. There are {[*self.levels]}; sets can be "
                f"made of {self._known()}.{'' if self.description is None else UNKNOWN}"
            )
        return given

    def values(self, condition: Any) -> list[str]:
        """Return the parts of a condition, in the order of the features."""
        return sorted(self._given(condition), key=self._known().index)

    def design(self) -> np.ndarray:
        """Return the features of each condition, shape (n_conditions, n_features)."""
        return np.concatenate([self.features(level) for level in self.levels])

    def features(self, condition: Any) -> np.ndarray:
        """Return which parts a condition has, after the sum of what describes them, shape (1, n_features)."""
        given, known, description = self._given(condition), self.parts["features"], self.description
        if description is None:
            return np.array([[part in given for part in known]], dtype=np.float32)
        taken = [description.own(part) for part in given]
        own = [sum(one.get(level, 0.0) for one in taken) for level in known]
        shown = sum(
            (description.network(part) for part in given), np.zeros(description.axes.shape[1])
        )
        return np.concatenate([shown, own])[None].astype(np.float32)

    def remarks(self, level: Any) -> list[str]:
        """Return what is to be said of a condition that was not measured."""
        notes, largest = super().remarks(level), max(map(len, self.parts["values"]))
        if notes and len(self.values(level)) > largest:
            larger = (
                f"{level} has more parts than any condition that was measured ({largest}): its intervals are those "
                "of smaller ones, and may be too narrow."
            )
            notes.insert(1, larger)
        return notes

    def described_levels(self, condition: Any) -> list[Any]:
        """Return the parts of a condition."""
        return self.values(condition)

    def told_by_others(self) -> list[Any]:
        """Return the conditions that can be predicted from the others: all whose parts others have."""
        if self.description is not None:
            return list(self.levels)
        n = Counter(part for level in self.levels for part in self.values(level))
        return [level for level in self.levels if all(n[part] > 1 for part in self.values(level))]

    def singles(self, target: Any) -> list[Any] | None:
        """Return the conditions that have one part of a set each; None of a single, or not measured, part."""
        parts = self.values(target)
        names = [self.level([part]) for part in parts]
        return names if len(parts) > 1 and set(names) <= set(self.levels) else None

    def alike(self, source: Any, conditions: Sequence[Any], *, joint: float = JOINT) -> np.ndarray:
        r"""Return how alike changes from the source to conditions are, shape (n, n).

        Every part that a condition has and the source lacks, or the other way round, changes as much on its
        own, and sets as such a share of it, `joint`:

        .. math:: k(c, c') = |c \cap c' \setminus s| + |s \setminus (c \cup c')| + \text{joint}\,(1 + \delta_{cc'})

        Parts that are described count for others as far as they are alike (:meth:`Description.alike`).
        """
        known, description = self._known(), self.description
        sets = [self._given(condition) for condition in (*conditions, source)]
        x = np.array([[part in given for part in known] for given in sets], dtype=np.float64)
        change = x[:-1] - x[-1]
        nothing = ~change.any(1)
        same = (change[:, None] == change).all(2)
        parts = np.eye(len(known)) if description is None else description.alike(known, known)
        kernel = change @ parts @ change.T + joint * (1.0 + same)
        kernel[nothing], kernel[:, nothing] = 0.0, 0.0
        return kernel


def checked_table(
    adata: AnnData, key: str | Sequence[str] | None, separator: str | None, given: Any
) -> pd.DataFrame | None:
    """Return the table of features of conditions, if there is one; see :meth:`TRVAE.setup_anndata`."""
    if given is None:
        return None
    if key is None:
        raise InputError(
            "condition_features describes conditions: name their column, condition_key=."
        )
    table = table_of(adata, given)
    described = described_key(table, adata.obs, as_list(key))
    check_described(table, described, parts_of(adata.obs[described], separator))
    return table


def coding_of(
    obs: pd.DataFrame,
    key: str | Sequence[str] | None,
    separator: str | None,
    table: pd.DataFrame | None,
) -> dict[str, Any] | None:
    """Return how conditions are coded by their parts or features; None of levels of one column."""
    if separator is not None:
        return new_sets(obs[key], separator, table)
    if table is None and (key is None or isinstance(key, str)):
        return None
    return new_parts(obs, as_list(key), table)


def space_of(key: Any, names: Sequence[Any], parts: dict[str, Any] | None) -> ConditionSpace:
    """Return the conditions of a registration."""
    if parts is not None and SETS in parts:
        return ConditionSets(key, tuple(names), parts)
    return ConditionSpace(key, tuple(names), parts)
