"""The change of a label by methods that train nothing, on mean profiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from trvae_sc.left_out import Missed, labels_left_out
from trvae_sc.shift import Likeness, Profiles, Ridge

#: f of the target, from f of source and target of the labels measured under both, and f of the source.
Rule = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def same(start: np.ndarray, end: np.ndarray, profile: np.ndarray) -> np.ndarray:
    """Return the profile as it is."""
    return profile


def plus_mean(start: np.ndarray, end: np.ndarray, profile: np.ndarray) -> np.ndarray:
    """Add the mean over labels of their own shift."""
    return profile + (end - start).mean(0)


def plus_nearest(start: np.ndarray, end: np.ndarray, profile: np.ndarray) -> np.ndarray:
    """Add the shift of the label whose source profile is nearest."""
    nearest = np.square(start - profile).sum(1).argmin()
    return profile + end[nearest] - start[nearest]


#: Rules by method; context_shift is :class:`trvae_sc.shift.Ridge`.
RULES: dict[str, Rule] = {
    "no_change": same,
    "mean_shift": plus_mean,
    "nearest_shift": plus_nearest,
}


@dataclass(frozen=True)
class Shift:
    """What a method says of a target, and how it errs.

    Parameters
    ----------
    predict
        Gives f of the target, shape (n_genes,), from f of the source profile and the label's code.
    others
        f of the source profiles of the labels measured under both, shape (n_labels, n_genes).
    missed
        How each of them is predicted where it is left out.
    """

    predict: Callable[[np.ndarray, int | None], np.ndarray]
    others: np.ndarray
    missed: Missed


def shift_of(method: str, profiles: Profiles, source: int, target: int) -> Shift:
    """Return the shift of a method that trains nothing, between codes of two conditions."""
    if method == "context_shift":
        ridge = Ridge(profiles, source, Likeness.of_itself(target))
        others = profiles.mean[ridge.groups[:, 0], source]
        return Shift(ridge.predict, others, labels_left_out(ridge))
    rule = RULES[method]
    at = np.flatnonzero(profiles.measured(source)[:, target])
    start, end = (profiles.mean[at, c].astype(np.float64) for c in (source, target))
    n = 2.0 / (1.0 / profiles.n_cells[at, source] + 1.0 / profiles.n_cells[at, target])
    predicted = missed = np.zeros((0, profiles.mean.shape[2]))
    if len(at) > 1:
        left = [np.delete(np.arange(len(at)), i) for i in range(len(at))]
        found = [rule(start[k], end[k], start[i]) for i, k in enumerate(left)]
        predicted, missed = np.stack(found) - start, end - np.stack(found)
    errors = Missed(missed, predicted, n[: len(missed)], np.arange(len(missed)))
    return Shift(lambda profile, _: rule(start, end, profile), start, errors)
