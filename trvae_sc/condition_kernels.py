"""How alike changes to conditions of several parts are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from trvae_sc.condition_features import Description
from trvae_sc.levels import level_name

JOINT = 0.01  # variance of what parts change together only, in units of what each changes alone
MEASURED = 0.3  # the same where the target itself was measured


def kernel_of(
    parts: dict[str, Any], rows: np.ndarray, source: np.ndarray, joint: float = JOINT
) -> np.ndarray:
    """Return how alike changes from a source to conditions are, shape (n, n)."""
    alone = changes_alike(parts, rows, source)
    levels = [key for key in alone if key not in parts["scaling"]]
    doses = [key for key in alone if is_dose(parts, key, source)] if levels else []
    kernel = np.zeros((len(rows), len(rows))) + sum(alone[key] for key in levels)
    for key in doses:  # what levels change grows with the root of each dose
        kernel *= np.sqrt(alone[key])
    kernel += sum(alone[key] for key in alone if key not in (*levels, *doses))
    if is_of_one_column(parts):  # nothing that parts change together
        return kernel
    return kernel + joint * together(parts, rows, source)


def is_of_one_column(parts: dict[str, Any]) -> bool:
    """Return whether conditions are the levels of one column, and no numbers."""
    return len(parts["keys"]) == 1 and not parts["scaling"]


def is_dose(parts: dict[str, Any], key: str, source: np.ndarray) -> bool:
    """Return whether a column is a number, and no other level was measured at that of the source."""
    if key not in parts["scaling"]:
        return False
    k = parts["keys"].index(key)
    levels = [i for i, other in enumerate(parts["keys"]) if other not in parts["scaling"]]
    at_source = [row for row in parts["values"] if row[k] == source[k]]
    return all(row[i] == source[i] for row in at_source for i in levels)


def changes_alike(
    parts: dict[str, Any], rows: np.ndarray, source: np.ndarray
) -> dict[str, np.ndarray]:
    """Return how alike conditions are in what each column alone changes from the source, shapes (n, n)."""
    found, description = {}, Description.of(parts)
    for k, key in enumerate(parts["keys"]):
        values = rows[:, k]
        if description is not None and key == description.key:
            found[key] = description.changes_alike(source[k], values)
        elif key in parts["scaling"]:  # linear between numbers
            x = _in_range(parts, key, values)
            x = x - _in_range(parts, key, source[[k]])
            same = np.sign(x)[:, None] == np.sign(x)
            found[key] = same * np.minimum(np.abs(x)[:, None], np.abs(x))
        else:
            found[key] = ((values[:, None] == values) & (values != source[k])).astype(float)
    return found


def together(parts: dict[str, Any], rows: np.ndarray, source: np.ndarray) -> np.ndarray:
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


def left_out_together(
    levels: Sequence[Sequence[Any]], description: Description | None
) -> np.ndarray:
    """Return which conditions are left out with each, by the described levels of each, shape (n, n).

    To tell of a level by its features, all conditions with one that was measured are left out: with each its own
    level, of a set the part that is in fewest. Of several of these it is that with the largest features, so that
    names play no role.
    """
    names = [set(map(level_name, own)) for own in levels]
    known = sorted(set().union(*names))
    has = np.array([[name in own for name in known] for own in names], dtype=bool)
    together = np.eye(len(names), dtype=bool)
    if known and description is not None:
        size = np.linalg.norm(np.nan_to_num(description.standardised(known)), axis=1).round(9)
        has = has[:, np.lexsort([-size, has.sum(0)])]
        some = has.any(1)
        together[some] = has[:, has[some].argmax(1)].T
    return together
