"""The change of a label by methods that train nothing, on mean profiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from trvae_sc.baselines._conditions import WEIGHTED, Measured, left_out, weights_of
from trvae_sc.condition_sets import ConditionSets
from trvae_sc.conditions import ConditionSpace
from trvae_sc.errors import InputError
from trvae_sc.left_out import Expected, Missed
from trvae_sc.shift import ROUNDING, Profiles, Ridge, changed

#: f of the target, from f of source and target of the labels measured under both, and f of the source.
Rule = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def same(start: np.ndarray, end: np.ndarray, profile: np.ndarray) -> np.ndarray:
    """Return the profile as it is."""
    return profile


def plus_mean(start: np.ndarray, end: np.ndarray, profile: np.ndarray) -> np.ndarray:
    """Add the mean over labels of their own shift."""
    return profile + (end - start).mean(0)


def plus_nearest(start: np.ndarray, end: np.ndarray, profile: np.ndarray) -> np.ndarray:
    """Add the shift of the label whose source profile is nearest; of several as near their mean."""
    distance = np.linalg.norm(start - profile, axis=1)
    nearest = distance - distance.min() <= ROUNDING * np.linalg.norm(profile)
    return profile + (end - start)[nearest].mean(0)


#: Rules by method; context_shift is :class:`trvae_sc.shift.Ridge`.
RULES: dict[str, Rule] = {"no_change": same, "mean_shift": plus_mean, "nearest_shift": plus_nearest}


def check_new(method: str, space: ConditionSpace, target: Any) -> None:
    """Raise where a method cannot predict a condition from others."""
    if method == "sum_of_parts":
        if not isinstance(space, ConditionSets):
            raise InputError(
                "sum_of_parts needs the text between the parts of conditions: condition_separator=."
            )
        weights_of(method, space, None, space.levels, np.zeros(0), target)
    if method in ("nearest_condition", "feature_ridge") and space.description is None:
        raise InputError(
            f"{method} compares conditions by their features: name them with condition_features=."
        )
    if method == "mean_condition" and not space.tells_of_new:
        raise InputError(
            "mean_condition is for conditions with features or parts: name them with condition_features= or "
            "condition_separator=."
        )
    if method in ("mean_shift", "nearest_shift", "latent_shift"):
        without = ["mean_condition", "context_shift", "trvae"]
        without += [] if space.description is None else ["nearest_condition", "feature_ridge"]
        without += ["sum_of_parts"] if isinstance(space, ConditionSets) else []
        raise InputError(
            f"No label was measured under {target!r}, which {method} learns from. Methods that can do without are "
            f"{without}."
        )


@dataclass(frozen=True)
class Shift:
    """What a method says of a target, and how it errs."""

    #: Gives f of the target, shape (n_genes,), from f of the source profile and the label's code.
    predict: Callable[[np.ndarray, int | None], np.ndarray]
    #: f of the source profiles of the labels measured under both, shape (n_labels, n_genes).
    others: np.ndarray
    missed: Missed  #: how each of them is predicted where it is left out
    #: How wide the interval is for f of the source profile and the label's code, where that of those is 1.
    relative: Callable[[np.ndarray, int | None], float] = lambda profile, label: 1.0


def shift_of(
    method: str, profiles: Profiles, space: ConditionSpace, source: int, target: Any
) -> Shift:
    """Return the shift of a method that trains nothing, from the code of a condition to a target."""
    code = space.code(target)
    at = np.arange(0) if code is None else np.flatnonzero(profiles.measured(source)[:, code])
    if method in WEIGHTED or code is None or (not len(at) and space.tells_of_new):
        return _to_new(method, profiles, space, source, target)
    if method != "no_change" and not len(at):
        raise InputError(
            f"No label was measured under both {space.levels[source]!r} and {target!r}, so there is no shift to "
            "learn."
        )
    if method == "context_shift":
        measured = np.asarray(profiles.measured(source).any(0))
        told = space if space.is_of_one_part else space.informed(profiles, source)
        ridge = Ridge(profiles, source, told.likeness(space.levels[source], target, measured))
        expected = Expected.of(ridge, is_measured=True)
        return Shift(ridge.predict, profiles.mean[at, source], expected.missed, expected.relative)
    rule = RULES[method]
    start, end = (profiles.mean[at, c].astype(np.float64) for c in (source, code))
    n = profiles.cells_of_change(at, source, code)
    missed = Missed.nothing(profiles.mean.shape[2])
    if len(at) > 1:
        left = [np.delete(np.arange(len(at)), i) for i in range(len(at))]
        found = np.stack([rule(start[k], end[k], start[i]) for i, k in enumerate(left)])
        missed = Missed(end - found, found - start, n, np.arange(len(at)))
    return Shift(lambda profile, _: rule(start, end, profile), start, missed)


def _to_new(
    method: str, profiles: Profiles, space: ConditionSpace, source: int, target: Any
) -> Shift:
    """Return the shift to a condition by its features or parts, whatever was measured under it."""
    check_new(method, space, target)
    measured = profiles.measured(source)
    codes = np.flatnonzero(measured.any(0))
    if not len(codes):
        raise InputError(
            f"No label was measured under {space.levels[source]!r} and another condition."
        )
    others = profiles.mean[measured.any(1), source]
    if method == "no_change":
        return Shift(lambda profile, _: profile, others, Missed.nothing(profiles.mean.shape[2]))
    space, untold = space.informed(profiles, source), Missed.nothing(profiles.mean.shape[2])
    outside = space.is_outside(target)  # of the numbers that were measured nothing tells of errors
    if method == "context_shift":
        likeness = space.likeness(space.levels[source], target, np.asarray(measured.any(0)))
        ridge = Ridge(profiles, source, likeness)
        if outside:
            return Shift(ridge.predict, others, untold)
        expected = Expected.of(ridge, is_measured=False)
        return Shift(ridge.predict, others, expected.missed, expected.relative)
    known = Measured.of(method, profiles, space, source, codes)
    found = known.to(target)

    def predict(profile: np.ndarray, label: int | None) -> np.ndarray:
        change = found[-1 if label is None else label]
        return changed(profile, change, is_count=profiles.is_count)

    missed = untold if outside else left_out(known, target)
    return Shift(predict, others, missed)
