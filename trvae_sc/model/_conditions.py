"""Conditions made of several obs columns: levels and numbers, each with an effect of its own.

A condition (cytokine, dose) is coded by one feature for every level of a categorical column and one,
standardised, for a numeric column. Network layers see features, so a combination that was never
measured is predicted from its parts, and a number between or beyond those measured from the numbers
around it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from scvi.model.base import BaseModelClass

from trvae_sc.checks import SEPARATOR, is_number
from trvae_sc.errors import InputError
from trvae_sc.levels import as_text, level_name, levels, match_level
from trvae_sc.module import CONDITION_KEY

PARTS = "parts"  #: entry of the state registry


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
    return pd.Series(column, index=obs.index), names


def name_of(parts: Sequence[Any]) -> str:
    """Return the name of a condition."""
    return SEPARATOR.join(map(level_name, parts))


def new_parts(obs: pd.DataFrame, keys: Sequence[str]) -> dict[str, Any]:
    """Return how conditions of these columns are coded."""
    scaling, features = {}, []
    for key in keys:
        if is_number(obs[key]):
            values = np.array(levels(obs[key]), dtype=np.float64)
            scaling[key] = [float(f(values)) for f in (np.mean, np.std, np.min, np.max)]
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


def around(parts: dict[str, Any], values: Sequence[Any], names: Sequence[Any]) -> dict[Any, float]:
    """Return the measured conditions around one that was not, and shares that sum up to 1.

    Only those that agree in all levels and in all numbers but one count. Between two numbers the
    shares are those of linear interpolation, beyond all of them the nearest has 1; where several
    numbers can differ, each has the same part. Empty if there are none.
    """
    shares: list[dict[Any, float]] = []
    for k, key in enumerate(parts["keys"]):
        if key not in parts["scaling"]:
            continue
        same = {
            row[k]: name
            for row, name in zip(parts["values"], names, strict=True)
            if all(row[j] == values[j] for j in range(len(row)) if j != k)
        }
        if same:
            at = np.array(sorted(same))
            weights = [np.interp(values[k], at, row) for row in np.eye(len(at))]
            shares.append({same[x]: w for x, w in zip(at, weights, strict=True) if w > 0})
    total: dict[Any, float] = {}
    for share in shares:
        for name, weight in share.items():
            total[name] = total.get(name, 0.0) + weight / len(shares)
    return total


def contrast(
    parts: dict[str, Any], values: Sequence[Any], source: Sequence[Any], n_cells: np.ndarray
) -> np.ndarray | None:
    r"""Return weights of the measured conditions whose sum is the change, were parts additive.

    With :math:`A_{vc} = 1` where value v of a column is part of condition c, :math:`w` has
    :math:`A w = a_t - a_s` for the parts of target and source, and of all such weights the least
    variance :math:`\sum_c w_c^2 / n_c`. So a drug and a cytokine that were measured alone give their
    combination. None where the measured conditions do not tell.

    Parameters
    ----------
    parts
        How conditions are coded.
    values, source
        Parts of target and source.
    n_cells
        Cells under each condition, shape (n_conditions,).

    Returns
    -------
    Shape (n_conditions,).
    """
    seen = np.flatnonzero(n_cells)
    known = [
        (k, v) for k, column in enumerate(zip(*parts["values"], strict=True)) for v in {*column}
    ]

    def coded(rows: Sequence[Sequence[Any]]) -> np.ndarray:
        return np.array([[row[k] == v for row in rows] for k, v in known], dtype=np.float64)

    target, start = coded([values, source]).T
    if target.sum() < len(values):  # a part of it is none of those measured
        return None
    root = np.sqrt(n_cells[seen])
    measured = coded([parts["values"][c] for c in seen])
    own = root * (np.linalg.pinv(measured * root) @ (target - start))
    if not np.allclose(measured @ own, target - start, atol=1e-6) or [*values] == [*source]:
        return None
    weights = np.zeros(len(n_cells))
    weights[seen] = own
    return weights


class ConditionsMixin(BaseModelClass):
    """What a model knows of conditions."""

    @property
    def conditions(self) -> list[Any]:
        """Conditions the model knows, in code order."""
        return self._levels(CONDITION_KEY)

    @property
    def _condition_parts(self) -> dict[str, Any] | None:
        """How conditions of several columns are coded; None for one column."""
        state = self.registry_["field_registries"][CONDITION_KEY]["state_registry"]
        return state.get(PARTS)

    def _condition_design(self) -> torch.Tensor:
        """Return the features of every condition, shape (n_conditions, n_features)."""
        parts = self._condition_parts
        if parts is None:
            return torch.eye(len(self.conditions))
        return torch.as_tensor(np.stack([design(parts, values) for values in parts["values"]]))

    def _condition_level(self, condition: Any) -> Any:
        """Return a condition as in :attr:`conditions`, or the name of a new combination."""
        parts, known = self._condition_parts, self.conditions
        if parts is not None:
            return name_of(self._values_of(condition))
        key, hint = self.registry_["setup_args"]["condition_key"], ""
        if all(isinstance(level, int | float) for level in known):
            hint = (
                f" '{key}' was registered as levels; set up with condition_key=['{key}'] it is a number, "
                "and values between and beyond those measured can be predicted."
            )
        return match_level(condition, known, of="condition", hint=hint)

    def _values_of(self, condition: Any) -> Sequence[Any]:
        """Return the parts of a condition of several columns."""
        parts, known = self._condition_parts, self.conditions
        if isinstance(condition, str) and condition in known:
            return parts["values"][known.index(condition)]
        return parse(parts, condition)

    def _condition_features(self, condition: Any) -> torch.Tensor:
        """Return the features of a condition, shape (1, n_features)."""
        level = self._condition_level(condition)
        if level in self.conditions:
            code = self.conditions.index(level)
            return self.module.condition_design[code : code + 1]
        row = design(self._condition_parts, self._values_of(level))
        return torch.as_tensor(row, device=self.module.condition_design.device)[None]

    def _condition_column(self, obs: pd.DataFrame) -> pd.Series:
        """Return the condition of each cell, as named in :attr:`conditions`."""
        keys = self.registry_["setup_args"]["condition_key"]
        if not isinstance(keys, str):
            return joint_column(obs, keys)[0].astype(object)
        known = {level_name(level): level for level in self.conditions}
        return as_text(obs[keys]).map(lambda name: known.get(name, name))

    def _condition_values(self, level: Any, n_obs: int) -> dict[str, Any]:
        """Return the obs columns of cells under a condition."""
        keys, parts = self.registry_["setup_args"]["condition_key"], self._condition_parts
        own = (
            {keys: level} if parts is None else dict(zip(keys, self._values_of(level), strict=True))
        )
        numbers = {} if parts is None else parts["scaling"]
        return {
            key: value if key in numbers else pd.Categorical([value] * n_obs, categories=[value])
            for key, value in own.items()
        }

    def _conditions_around(self, level: Any, source: Any) -> dict[Any, float]:
        """Return measured conditions other than the source that tell of one that was not."""
        found = around(self._condition_parts, self._values_of(level), self.conditions)
        found.pop(source, None)  # nothing changes there
        return found

    def _condition_contrast(
        self, level: Any, source: Any, n_cells: np.ndarray
    ) -> np.ndarray | None:
        """Return :func:`contrast` of a condition that was not measured."""
        ends = (list(self._values_of(c)) for c in (level, source))
        return contrast(self._condition_parts, *ends, n_cells)

    def _condition_remarks(self, level: Any) -> list[str]:
        """Return what is to be said of a condition that was not measured."""
        parts = self._condition_parts
        return [] if parts is None else remarks(parts, self._values_of(level))
