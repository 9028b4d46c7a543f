"""Conditions that are sets of parts, as ``"KLF1+MAP2K6"``: each part has an effect of its own.

A condition is coded by one feature for every part, so that a set never measured is predicted from what was
seen of its parts. The condition named like a control is the empty set.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from trvae_sc.conditions import JOINT, ConditionSpace
from trvae_sc.errors import InputError
from trvae_sc.levels import CONTROLS, level_name, levels, listing

SETS = "separator"  #: entry of the coding of sets


def split(name: Any, separator: str) -> list[str]:
    """Return the parts of a condition by name; none of a control."""
    found = [part.strip() for part in level_name(name).split(separator)]
    return [part for part in found if part.lower() not in CONTROLS]


def new_sets(column: pd.Series, separator: str) -> dict[str, Any]:
    """Return how sets are coded: the separator, the parts there are, and those of every condition."""
    values = [split(level, separator) for level in levels(column)]
    features = sorted({part for parts in values for part in parts})
    return {SETS: separator, "features": features, "values": values}


def extended_sets(coding: dict[str, Any], known: Sequence[Any]) -> dict[str, Any]:
    """Return the coding with the conditions that another registration added, new parts at the end."""
    values = [split(level, coding[SETS]) for level in known]
    new = sorted({part for parts in values for part in parts} - set(coding["features"]))
    return {**coding, "features": [*coding["features"], *new], "values": values}


def check_sets(obs: pd.DataFrame, key: Any, separator: Any) -> None:
    """Raise on conditions that are no sets of parts.

    Raises
    ------
    InputError
        There are several columns; the separator is no text or in no condition; no condition is called like a
        control; a part is empty or there twice; two conditions are the same set.
    """
    if not isinstance(key, str):
        raise InputError(
            f"condition_key is {key!r}, but sets of parts (condition_separator) are those of one column. "
            "Name one column, or leave condition_separator out."
        )
    if not isinstance(separator, str) or not separator.strip():
        raise InputError(f"condition_separator is {separator!r}; give the text between parts: '+'.")
    found = [level_name(level) for level in levels(obs[key])]
    where = f"adata.obs['{key}']"
    if not any(separator in name for name in found):
        raise InputError(
            f"No condition in {where} has '{separator}' between parts; there are {listing(found)}. Without "
            "sets of parts, leave condition_separator out."
        )
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

    def level(self, condition: Any) -> Any:
        """Return a condition as in :attr:`levels`, or the name of a new set, in any order of its parts."""
        given = self._given(condition)
        for level, parts in zip(self.levels, self.parts["values"], strict=True):
            if set(parts) == set(given):
                return level
        order = self.parts["features"]
        return self.parts[SETS].join(sorted(given, key=order.index))

    def _given(self, condition: Any) -> list[str]:
        """Return the parts of a condition: a name, or a list, tuple or set of parts."""
        if isinstance(condition, Sequence | Set) and not isinstance(condition, str):
            given = [part for one in condition for part in split(one, self.parts[SETS])]
        else:
            given = split(condition, self.parts[SETS])
        unknown = [part for part in given if part not in self.parts["features"]]
        if unknown or len(set(given)) < len(given):
            what = f"unknown parts {listing(unknown)}" if unknown else "a part twice"
            raise InputError(
                f"Unknown condition {condition!r}: it has {what}. There are {[*self.levels]}; sets can be "
                f"made of {self.parts['features']}."
            )
        return given

    def values(self, condition: Any) -> list[str]:
        """Return the parts of a condition, in the order of the features."""
        return sorted(self._given(condition), key=self.parts["features"].index)

    def design(self) -> np.ndarray:
        """Return which parts each condition has, shape (n_conditions, n_parts)."""
        return np.concatenate([self.features(level) for level in self.levels])

    def features(self, condition: Any) -> np.ndarray:
        """Return which parts a condition has, shape (1, n_parts)."""
        given = self._given(condition)
        return np.array([[part in given for part in self.parts["features"]]], dtype=np.float32)

    def columns(self, level: Any, n_obs: int) -> dict[str, Any]:
        """Return the obs column of cells under a condition."""
        return {self.key: pd.Categorical([level] * n_obs, categories=[level])}

    def remarks(self, level: Any) -> list[str]:
        """Return what is to be said of a condition that was not measured."""
        if level in self.levels:
            return []
        return [f"No cell was measured under {level}: it is predicted from its parts."]

    def singles(self, target: Any) -> list[Any] | None:
        """Return the conditions that have one part of a set each; None of a single, or not measured, part."""
        parts = self.values(target)
        names = [self.level([part]) for part in parts]
        return names if len(parts) > 1 and set(names) <= set(self.levels) else None

    def alike(self, source: Any, conditions: Sequence[Any]) -> np.ndarray:
        r"""Return how alike changes from the source to conditions are, shape (n, n).

        Every part that a condition has and the source lacks, or the other way round, changes as much on its
        own, and sets as such a hundredth of it:

        .. math:: k(c, c') = |c \cap c' \setminus s| + |s \setminus (c \cup c')| + 0.01\,(1 + \delta_{cc'})
        """
        x = np.concatenate([self.features(c) for c in conditions]).astype(np.float64)
        change = x - self.features(source)
        nothing = ~change.any(1)
        same = (x[:, None] == x).all(2)
        kernel = change @ change.T + JOINT * (1.0 + same)
        kernel[nothing], kernel[:, nothing] = 0.0, 0.0
        return kernel


def space_of(key: Any, names: Sequence[Any], parts: dict[str, Any] | None) -> ConditionSpace:
    """Return the conditions of a registration."""
    if parts is not None and SETS in parts:
        return ConditionSets(key, tuple(names), parts)
    return ConditionSpace(key, tuple(names), parts)
