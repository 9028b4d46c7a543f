"""How conditions of several obs columns are coded: levels and numbers, each with an effect of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from trvae_sc.checks import is_number
from trvae_sc.condition_features import DESCRIBED, Description, described_key, description_of
from trvae_sc.errors import InputError
from trvae_sc.levels import SEPARATOR, codes_among, level_name, levels, match_level

PARTS = "parts"  #: entry of the state registry
UNKNOWN = " A condition that is new to the table needs its features (predict(features=), on the command line --condition-features)."
#: What to do where numbers are the levels of a column.
_NUMBERS = (
    " '{0}' is text or a category, whose values are levels; as numbers, adata.obs['{0}'] = "
    "adata.obs['{0}'].astype(float), values between those measured can be predicted."
)


def joint_column(
    obs: pd.DataFrame, keys: Sequence[str]
) -> tuple[pd.Series, dict[str, tuple[Any, ...]]]:
    """Return each cell's condition by name (ordered by parts), and the parts of every name."""
    codes, found = [], []
    for key in keys:
        known = levels(obs[key])
        codes.append(codes_among(obs[key], known))
        found.append([float(v) for v in known] if is_number(obs[key]) else known)
    frame = pd.DataFrame(np.stack(codes, 1))
    combinations = frame.drop_duplicates().sort_values(list(frame)).to_numpy()
    inverse = frame.groupby(list(frame), sort=True).ngroup().to_numpy()
    parts = [tuple(found[k][code] for k, code in enumerate(row)) for row in combinations]
    names = {name_of(values): values for values in parts}
    column = pd.Categorical.from_codes(inverse, list(names), ordered=True)
    return pd.Series(column, index=obs.index.rename(None)), names


def name_of(parts: Sequence[Any]) -> str:
    """Return the name of a condition."""
    return SEPARATOR.join(map(level_name, parts))


def new_parts(
    obs: pd.DataFrame, keys: Sequence[str], table: pd.DataFrame | None = None
) -> dict[str, Any]:
    """Return how conditions of these columns are coded; `table` describes the levels of one of them."""
    scaling, features = {}, []
    of_table = None if table is None else described_key(table, obs, keys)
    for key in keys:
        if is_number(obs[key]) and key != of_table:
            numbers = np.array(levels(obs[key]), dtype=np.float64)
            scaling[key] = [float(f(numbers)) for f in (np.mean, np.std, np.min, np.max)]
            scaling[key][1] = scaling[key][1] or 1.0
            features.append([key, None])
        else:
            features += [[key, level] for level in levels(obs[key])]
    values = [[level] for level in levels(obs[keys[0]])]
    if len(keys) > 1 or scaling:
        values = [list(parts) for parts in joint_column(obs, keys)[1].values()]
    coding = {"keys": list(keys), "features": features, "scaling": scaling, "values": values}
    if table is not None and of_table is not None:
        coding[DESCRIBED] = description_of(table, of_table, levels(obs[of_table])).plain()
    return coding


def extended_parts(
    parts: dict[str, Any], obs: pd.DataFrame, known: Sequence[Any]
) -> dict[str, Any]:
    """Return the coding with the conditions that another registration added, at the end."""
    before = {name_of(values) for values in parts["values"]}
    new = [level for level in known if level_name(level) not in before]
    names = {level: (level,) for level in new}
    if len(parts["keys"]) > 1 or parts["scaling"]:
        names = joint_column(obs, parts["keys"])[1]
    values = [
        [_known(parts, *part) for part in zip(parts["keys"], names[level], strict=True)]
        for level in new
    ]
    features = list(parts["features"])
    for row in values:
        for key, value in zip(parts["keys"], row, strict=True):
            if key not in parts["scaling"] and [key, value] not in features:
                features.append([key, value])
    grown = {**parts, "features": features, "values": parts["values"] + values}
    description = Description.of(parts)
    if description is not None:
        found = [level for key, level in features if key == description.key]
        grown[DESCRIBED] = description.grown(found).plain()
    return grown


def _known(parts: dict[str, Any], key: str, value: Any) -> Any:
    """Return a value of a column as :func:`_part`; the value itself if it is a new level."""
    if key in parts["scaling"]:  # may be text, in data from a csv
        return _part(parts, key, value)
    alike = (v for k, v in parts["features"] if k == key and level_name(v) == level_name(value))
    return next(alike, value)


def design(parts: dict[str, Any], values: Sequence[Any]) -> np.ndarray:
    """Return the features of a condition of these parts, shape (n_features,)."""
    own, description = dict(zip(parts["keys"], values, strict=True)), Description.of(parts)
    row = np.zeros(len(parts["features"]), dtype=np.float32)
    taken = {} if description is None else description.own(own[description.key])
    for j, (key, level) in enumerate(parts["features"]):
        if key in parts["scaling"]:
            mean, scale, low, high = parts["scaling"][key]
            near = np.clip(own[key], 2 * low - high, 2 * high - low)  # as far again as was measured
            row[j] = (near - mean) / scale
        elif description is not None and key == description.key:
            row[j] = taken.get(level_name(level), 0.0)
        else:
            row[j] = own[key] == level
    described = [] if description is None else [description.network(own[description.key])]
    return np.concatenate([*described, row]).astype(np.float32)


def parse(parts: dict[str, Any], condition: Any) -> tuple[Any, ...]:
    """Return the parts of a condition: a mapping by column, a sequence in their order, or a name."""
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
        # names, and float32, have fewer digits
        return min(same, key=lambda v: abs(v - number), default=number)
    known = [level for name, level in parts["features"] if name == key]
    description = Description.of(parts)
    if description is not None and key == description.key:
        return match_level(value, description.and_described(known), of=f"'{key}'", hint=UNKNOWN)
    hint = _NUMBERS.format(key) if all(map(_reads_as_number, known)) else ""
    return match_level(value, known, of=f"'{key}'", hint=hint)


def _reads_as_number(level: Any) -> bool:
    """Return whether a level is a number, or its text."""
    try:
        return np.isfinite(float(level_name(level)))
    except ValueError:
        return False
