"""How alike changes to conditions of several parts are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from trvae_sc.condition_features import DESCRIBED, Description
from trvae_sc.levels import level_name

JOINT = 0.01  # variance of what parts change together only, in units of what each changes alone


def kernel_of(parts: dict[str, Any], rows: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Return how alike changes from a source to conditions are, shape (n, n)."""
    kernel = alone(parts, rows, source)
    if DESCRIBED in parts and len(parts["keys"]) == 1:  # its features tell what is a level's own
        return kernel
    return kernel + JOINT * together(parts, rows, source)


def alone(parts: dict[str, Any], rows: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Return how alike conditions are in what each part changes from the source, shape (n, n)."""
    kernel, description = np.zeros((len(rows), len(rows))), Description.of(parts)
    for k, key in enumerate(parts["keys"]):
        values = rows[:, k]
        if description is not None and key == description.key:
            kernel += description.changes_alike(source[k], values)
        elif key in parts["scaling"]:  # linear between numbers
            x = _in_range(parts, key, values)
            x = x - _in_range(parts, key, source[[k]])
            same = np.sign(x)[:, None] == np.sign(x)
            kernel += same * np.minimum(np.abs(x)[:, None], np.abs(x))
        else:
            kernel += (values[:, None] == values) & (values != source[k])
    return kernel


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


def left_out_together(levels: Sequence[Sequence[Any]]) -> np.ndarray:
    """Return which conditions are left out with each, by the described levels of each, shape (n, n).

    To tell of a level by its features, all conditions with one that was measured are left out: with each its own
    level, of a set the part that is in fewest.
    """
    names = [set(map(level_name, own)) for own in levels]
    known = sorted(set().union(*names))
    has = np.array([[name in own for name in known] for own in names], dtype=bool)
    together = np.eye(len(names), dtype=bool)
    for i in np.flatnonzero(has.any(1)) if known else ():
        together[i] = has[:, np.where(has[i], has.sum(0), np.inf).argmin()]
    return together
