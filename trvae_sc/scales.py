"""Whether cells are on the scale that is expected of them, as far as their means show it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from trvae_sc.checks import logger

#: How many times as high means are in cells of other labs and protocols, at the lowest; log2 for log is 1.44.
_LEAST = 0.7
_ENOUGH = 5, 1000  # cells, and their values: the means of fewer are too uncertain
#: Sum of means by that of their sizes: below 0.5 of scaled values, 0.9 of arcsinh ones.
_ABOVE_ZERO = 0.7

#: Means of cells, those that are expected of them, both of f, and the number of cells: of the means of fewer.
Group = tuple[np.ndarray, np.ndarray, int]


def other_scale(groups: Iterable[Group], least: float = _LEAST) -> float | None:
    """Return how many times as high as expected means of cells are; None where they may be on the same scale.

    It is the slope through the origin over the genes of all groups, and may be from `least` to its inverse. Of values
    about 0, as of scaled genes, none is known: what their means have in common is lost in the noise.
    """
    found = [
        (x, p, n) for x, p, n in groups if p.any() and (_is_above_zero(x) or _is_above_zero(p))
    ]
    n_cells = sum(n for *_, n in found)
    if n_cells < _ENOUGH[0] or sum(n * len(x) for x, _, n in found) < _ENOUGH[1]:
        return None
    slope = sum(n * (x @ p) for x, p, n in found) / sum(n * (p @ p) for _, p, n in found)
    return None if least < slope < 1.0 / least else float(slope)


def _is_above_zero(means: np.ndarray) -> bool:
    """Return whether nearly all of means is above 0."""
    return bool(means.sum() > _ABOVE_ZERO * np.abs(means).sum())


def scale_notes(
    cells: str,
    groups: Iterable[Group],
    expected: str,
    *,
    is_count: bool,
    least: float = _LEAST,
) -> list[str]:
    """Return a note where cells are on another scale than `expected`, which says what of."""
    times = other_scale(groups, least)
    if times is None:
        return []
    given = "values that were normalised as those of training were"
    if is_count:
        given = "counts with totals over the genes that those of training are over"
    return [
        f"Means of {cells} are {times:.2g} times as high as {expected}, as on another scale. Pass {given}."
    ]


def warn_of_scale(cells: str, groups: Iterable[Group], expected: str, *, is_count: bool) -> None:
    """Log what :func:`scale_notes` says as a warning."""
    for note in scale_notes(cells, groups, expected, is_count=is_count):
        logger.warning(note)
