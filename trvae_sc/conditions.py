"""Conditions made of several obs columns: levels and numbers, each with an effect of its own.

A condition (cytokine, dose) is coded by one feature for every level of a categorical column and one,
standardised, for a numeric column. Network layers see features, so a combination that was never
measured is predicted from its parts, and a number between or beyond those measured from the numbers
around it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd

from trvae_sc.checks import SEPARATOR, is_number
from trvae_sc.errors import InputError
from trvae_sc.levels import as_text, level_name, levels, match_level
from trvae_sc.shift import Likeness

PARTS = "parts"  #: entry of the state registry
JOINT = 0.01  # variance of what parts change together only, in units of what each changes alone


def joint_column(
    obs: pd.DataFrame, keys: Sequence[str]
) -> tuple[pd.Series, dict[str, tuple[Any, ...]]]:
    """Return each cell's condition by name (ordered by parts), and the parts of every name."""
    codes, found = [], []
    for key in keys:
        known = levels(obs[key])
        names = pd.Index([level_name(level) for level in known], dtype=object)
        codes.append(names.get_indexer(as_text(obs[key])))
        found.append([float(v) for v in known] if is_number(obs[key]) else known)
    combinations, inverse = np.unique(np.stack(codes, 1), axis=0, return_inverse=True)
    parts = [tuple(found[k][code] for k, code in enumerate(row)) for row in combinations]
    names = {name_of(values): values for values in parts}
    column = pd.Categorical.from_codes(inverse.ravel(), list(names), ordered=True)
    return pd.Series(column, index=obs.index.rename(None)), names


def name_of(parts: Sequence[Any]) -> str:
    """Return the name of a condition."""
    return SEPARATOR.join(map(level_name, parts))


def new_parts(obs: pd.DataFrame, keys: Sequence[str]) -> dict[str, Any]:
    """Return how conditions of these columns are coded."""
    scaling, features = {}, []
    for key in keys:
        if is_number(obs[key]):
            numbers = np.array(levels(obs[key]), dtype=np.float64)
            scaling[key] = [float(f(numbers)) for f in (np.mean, np.std, np.min, np.max)]
            scaling[key][1] = scaling[key][1] or 1.0
            features.append([key, None])
        else:
            features += [[key, level] for level in levels(obs[key])]
    values = [list(parts) for parts in joint_column(obs, keys)[1].values()]
    return {"keys": list(keys), "features": features, "scaling": scaling, "values": values}


def extended_parts(
    parts: dict[str, Any], obs: pd.DataFrame, state: dict[str, Any]
) -> dict[str, Any]:
    """Return the coding with the levels that another registration added, at the end."""
    known = {name_of(values) for values in parts["values"]}
    names = joint_column(obs, parts["keys"])[1]
    new = [level for level in state["categorical_mapping"] if level not in known]
    values = [
        [_known(parts, *part) for part in zip(parts["keys"], names[level], strict=True)]
        for level in new
    ]
    features = list(parts["features"])
    for row in values:
        for key, value in zip(parts["keys"], row, strict=True):
            if key not in parts["scaling"] and [key, value] not in features:
                features.append([key, value])
    return {**parts, "features": features, "values": parts["values"] + values}


def _known(parts: dict[str, Any], key: str, value: Any) -> Any:
    """Return a value of a column as :func:`_part`; the value itself if it is a new level."""
    if key in parts["scaling"]:  # may be text, in data from a csv
        return _part(parts, key, value)
    alike = (v for k, v in parts["features"] if k == key and level_name(v) == level_name(value))
    return next(alike, value)


def design(parts: dict[str, Any], values: Sequence[Any]) -> np.ndarray:
    """Return the features of a condition of these parts, shape (n_features,)."""
    own = dict(zip(parts["keys"], values, strict=True))
    row = np.zeros(len(parts["features"]), dtype=np.float32)
    for j, (key, level) in enumerate(parts["features"]):
        if key in parts["scaling"]:
            mean, scale = parts["scaling"][key][:2]
            row[j] = (own[key] - mean) / scale
        else:
            row[j] = own[key] == level
    return row


def parse(parts: dict[str, Any], condition: Any) -> tuple[Any, ...]:
    """Return the parts of a condition: a mapping by column, a sequence in their order, or a name.

    Raises
    ------
    InputError
        Columns are missing or unknown, a level was never seen, or a number is not one.
    """
    keys = parts["keys"]
    if isinstance(condition, Mapping):
        if set(condition) != set(keys):
            raise InputError(f"A condition here has the parts {keys}, not {list(condition)}.")
        given = [condition[key] for key in keys]
    elif isinstance(condition, str) or not isinstance(condition, Sequence):
        given = str(condition).split(SEPARATOR)
    else:
        given = list(condition)
    if len(given) != len(keys):
        raise InputError(
            f"Condition {condition!r} has {len(given)} parts; {keys} are needed, as a dictionary or "
            f"in this order."
        )
    return tuple(_part(parts, key, value) for key, value in zip(keys, given, strict=True))


def _part(parts: dict[str, Any], key: str, value: Any) -> Any:
    """Return a value of a column as it was registered."""
    if key in parts["scaling"]:
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise InputError(f"'{key}' is a number; {value!r} is none.") from None
        if not np.isfinite(number):
            raise InputError(f"'{key}' is {number}; it must be finite.")
        known = [row[parts["keys"].index(key)] for row in parts["values"]]
        same = [v for v in known if np.isclose(v, number, rtol=1e-6, atol=0.0)]
        return same[0] if same else number  # names, and float32, have fewer digits
    known = [level for name, level in parts["features"] if name == key]
    return match_level(value, known, of=f"'{key}'")


def remarks(parts: dict[str, Any], values: Sequence[Any]) -> list[str]:
    """Return what is to be said of a condition that was not measured."""
    if list(values) in parts["values"]:
        return []
    own = dict(zip(parts["keys"], values, strict=True))
    named = ", ".join(f"{key} {name_of([value])}" for key, value in own.items())
    notes = [f"No cell was measured under {named}: it is predicted from its parts."]
    for key, (_, _, low, high) in parts["scaling"].items():
        if not low <= own[key] <= high:
            notes.append(
                f"{key} {own[key]:g} is outside of what was measured, {low:g} to {high:g}: the "
                "prediction extrapolates."
            )
    return notes


def _alone(parts: dict[str, Any], rows: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Return how alike conditions are in what each part changes from the source, shape (n, n)."""
    kernel = np.zeros((len(rows), len(rows)))
    for k, key in enumerate(parts["keys"]):
        values = rows[:, k]
        if key in parts["scaling"]:  # linear between numbers
            x = _in_range(parts, key, values)
            x = x - _in_range(parts, key, source[[k]])
            same = np.sign(x)[:, None] == np.sign(x)
            kernel += same * np.minimum(np.abs(x)[:, None], np.abs(x))
        else:
            kernel += (values[:, None] == values) & (values != source[k])
    return kernel


def _together(parts: dict[str, Any], rows: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Return how alike conditions are in what their parts change together, shape (n, n)."""
    every = np.concatenate([rows, source[None]])
    product = np.ones((len(every), len(every)))
    for k, key in enumerate(parts["keys"]):
        values = every[:, k]
        if key in parts["scaling"]:
            x = _in_range(parts, key, values)
            product *= 1.0 - np.abs(x[:, None] - x)
        else:
            product *= values[:, None] == values
    change = product[:-1, :-1] - product[:-1, [-1]] - product[[-1], :-1]
    return change + product[-1, -1]


def _in_range(parts: dict[str, Any], key: str, values: np.ndarray) -> np.ndarray:
    """Return numbers from 0 to 1 over the range that was measured; beyond it, the nearest."""
    low, high = parts["scaling"][key][2:]
    return (np.clip(values.astype(float), low, high) - low) / ((high - low) or 1.0)


@dataclass(frozen=True)
class ConditionSpace:
    """The conditions that a model knows, and how others are made of their parts.

    Parameters
    ----------
    key
        Column of ``obs``, or the columns that make up a condition; None: there are no conditions, and
        one level stands for all cells.
    levels
        Conditions in the order of their codes.
    parts
        How conditions of several columns are coded (``new_parts``); None for one column.
    """

    key: str | list[str] | None
    levels: tuple[Any, ...]
    parts: dict[str, Any] | None = None

    def level(self, condition: Any) -> Any:
        """Return a condition as in ``levels``, or the name of a new combination.

        Raises
        ------
        InputError
            There is no such condition.
        """
        if self.key is None:
            raise InputError(
                f"The model was set up without condition_key and knows no condition {condition!r}. "
                "Name the column in setup_anndata and train again."
            )
        if self.parts is not None:
            return name_of(self.values(condition))
        hint = ""
        numbers = [isinstance(v, int | float) and not isinstance(v, bool) for v in self.levels]
        if all(numbers):
            hint = (
                f" '{self.key}' was registered as levels; set up with condition_key=['{self.key}'] it is "
                "a number, and values between and beyond those measured can be predicted."
            )
        return match_level(condition, list(self.levels), of="condition", hint=hint)

    def values(self, condition: Any) -> Sequence[Any]:
        """Return the parts of a condition."""
        if self.parts is None:
            return [condition]
        if isinstance(condition, str) and condition in self.levels:
            return self.parts["values"][self.levels.index(condition)]
        return parse(self.parts, condition)

    def code(self, level: Any) -> int | None:
        """Return the code of a level; None of a new combination."""
        return self.levels.index(level) if level in self.levels else None

    def design(self) -> np.ndarray:
        """Return the features of every condition, shape (n_conditions, n_features)."""
        if self.parts is None:
            return np.eye(len(self.levels), dtype=np.float32)
        return np.stack([design(self.parts, values) for values in self.parts["values"]])

    def features(self, condition: Any) -> np.ndarray:
        """Return the features of a condition, shape (1, n_features)."""
        level = self.level(condition)
        if self.parts is not None:
            return design(self.parts, self.values(level))[None]
        row = np.zeros((1, len(self.levels)), dtype=np.float32)
        row[0, self.code(level)] = 1.0
        return row

    def column(self, obs: pd.DataFrame) -> pd.Series:
        """Return the condition of each cell, as named in ``levels``."""
        if self.key is None:
            return pd.Series(self.levels[0], index=obs.index, dtype=object)
        if not isinstance(self.key, str):
            return joint_column(obs, self.key)[0].astype(object)
        known = {level_name(level): level for level in self.levels}
        return as_text(obs[self.key]).map(lambda name: known.get(name, name))

    def columns(self, level: Any, n_obs: int) -> dict[str, Any]:
        """Return the obs columns of cells under a condition."""
        if self.key is None:
            return {}
        keys = cast("Sequence[str]", [self.key] if self.parts is None else self.key)
        numbers = {} if self.parts is None else self.parts["scaling"]
        return {
            key: value if key in numbers else pd.Categorical([value] * n_obs, categories=[value])
            for key, value in zip(keys, self.values(level), strict=True)
        }

    def remarks(self, level: Any) -> list[str]:
        """Return what is to be said of a condition that was not measured."""
        return [] if self.parts is None else remarks(self.parts, self.values(level))

    def likeness(self, source: Any, target: Any, measured: np.ndarray) -> Likeness:
        r"""Return which conditions tell of a target, and how alike they are.

        A target that was measured is told by itself. Of another one every part changes alone what the
        conditions with that part show, and parts together what the conditions with such parts show
        (:meth:`alike`).

        Parameters
        ----------
        source, target
            Conditions.
        measured
            Whether any label tells what changes from the source to a condition, shape (n_conditions,).
        """
        code = self.code(target)
        if code is not None and (measured[code] or self.parts is None):
            return Likeness.of_itself(code)
        codes = np.flatnonzero(measured)
        kernel = self.alike(source, [*(self.levels[c] for c in codes), target])
        return Likeness(codes, kernel[:-1, :-1], kernel[-1, :-1], float(kernel[-1, -1]))

    def alike(self, source: Any, conditions: Sequence[Any]) -> np.ndarray:
        r"""Return how alike changes from the source to conditions are, shape (n, n).

        Levels change as they are, numbers linearly between those measured (beyond them the nearest), and
        parts together with a hundredth of the variance:

        .. math:: k_C(c, c') = \sum_k k_k(c_k, c'_k) + 0.01 \prod_k k_k(c_k, c'_k)

        where k is 1 for equal levels, falls linearly with the distance of numbers (1 over their range), and
        is that of changes from the source. Conditions of one column tell of themselves only.
        """
        if self.parts is None:
            return np.equal.outer(*[np.array([self.code(c) for c in conditions])] * 2).astype(float)
        rows = _table([self.values(c) for c in conditions])
        start = _table([self.values(source)])[0]
        return _alone(self.parts, rows, start) + JOINT * _together(self.parts, rows, start)


def _table(rows: Sequence[Sequence[Any]]) -> np.ndarray:
    """Return parts of conditions as an array of objects."""
    table = np.empty((len(rows), len(rows[0])), dtype=object)
    for i, row in enumerate(rows):
        table[i] = list(row)
    return table
