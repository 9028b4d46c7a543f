"""The change of a label by methods that train nothing, on mean profiles.

To conditions that were never measured all methods say the log fold change (of values that are no counts the
difference) of a label from changes to conditions that were; a label that lacks one of these counts with the mean
of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from scipy import linalg
from scipy.spatial.distance import cdist

from trvae_sc.condition_sets import ConditionSets
from trvae_sc.conditions import ConditionSpace
from trvae_sc.errors import InputError
from trvae_sc.left_out import Expected, Missed
from trvae_sc.levels import listing
from trvae_sc.shift import ROUNDING, Profiles, Ridge, changed, mean_changes

#: Methods that add a weighted sum of changes to measured conditions.
WEIGHTED = ("sum_of_parts", "mean_condition", "nearest_condition", "feature_ridge")


def end_of(method: str, start: np.ndarray, end: np.ndarray, profile: np.ndarray) -> np.ndarray:
    """Return f of the target, from f of source and target of the labels measured under both, and f of the source."""
    if method == "no_change":
        return profile
    if method not in ("mean_shift", "nearest_shift"):
        raise KeyError(method)
    shifts = end - start
    if method == "nearest_shift":
        distance = np.linalg.norm(start - profile, axis=1)
        shifts = shifts[distance - distance.min() <= ROUNDING * np.linalg.norm(profile)]
    return profile + shifts.mean(0)


def check_new(method: str, space: ConditionSpace, target: Any) -> None:
    """Raise where a method cannot predict a condition from others."""
    if method == "sum_of_parts":
        if not isinstance(space, ConditionSets):
            raise InputError(
                "sum_of_parts needs the text between the parts of conditions: condition_separator=."
            )
        sum_weights(space, None, space.levels, target)
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
        return _by_ridge(profiles, space, source, target, at, is_measured=True)
    start, end = (profiles.mean[at, c].astype(np.float64) for c in (source, code))
    n = profiles.cells_of_change(at, source, code)
    missed = Missed.nothing(profiles.mean.shape[2])
    if len(at) > 1:
        left = [np.delete(np.arange(len(at)), i) for i in range(len(at))]
        found = np.stack([end_of(method, start[k], end[k], start[i]) for i, k in enumerate(left)])
        missed = Missed(end - found, found - start, n, np.arange(len(at)))
    return Shift(lambda profile, _: end_of(method, start, end, profile), start, missed)


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
    at = np.flatnonzero(measured.any(1))
    if method == "context_shift":
        return _by_ridge(profiles, space, source, target, at, is_measured=False)
    others, untold = profiles.mean[at, source], Missed.nothing(profiles.mean.shape[2])
    if method == "no_change":
        return Shift(lambda profile, _: profile, others, untold)
    told = space.informed(profiles, source) if method == "feature_ridge" else space
    known = Measured.of(method, profiles, told, source, codes)
    found = known.to(target)

    def predict(profile: np.ndarray, label: int | None) -> np.ndarray:
        change = found[-1 if label is None else label]
        return changed(profile, change, is_count=profiles.is_count)

    # of errors beyond the numbers that were measured nothing tells
    return Shift(predict, others, untold if space.is_outside(target) else left_out(known, target))


def _by_ridge(
    profiles: Profiles,
    space: ConditionSpace,
    source: int,
    target: Any,
    labels: np.ndarray,
    *,
    is_measured: bool,
) -> Shift:
    """Return the shift that ridge regression learns from some labels; `is_measured`: under the target, too."""
    measured = np.asarray(profiles.measured(source).any(0))
    told = space.informed(profiles, source, target)
    ridge = Ridge(profiles, source, told.likeness(space.levels[source], target, measured))
    others = profiles.mean[labels, source]
    if space.is_outside(target):  # nothing tells of errors there
        return Shift(ridge.predict, others, Missed.nothing(profiles.mean.shape[2]))
    expected = Expected.of(ridge, is_measured=is_measured)
    return Shift(ridge.predict, others, expected.missed, expected.relative)


# -- conditions that were never measured ------------------------------------------------------------------


def sum_weights(
    space: ConditionSpace, source: Any, levels: Sequence[Any], target: Any
) -> np.ndarray:
    """Return how often changes to measured levels are in the sum that makes a set."""
    summands = _summands(space, target)
    absent = sorted(set(summands) - {*levels, source})
    if absent:
        raise InputError(
            f"sum_of_parts has no sum for {target!r}: {listing(absent)} was not measured. Leave out the method or "
            "the condition."
        )
    return np.array([summands.get(level, 0.0) for level in levels])


def _summands(space: ConditionSpace, target: Any) -> dict[Any, float]:
    """Return how often the conditions of one part, and the control, are in a set."""
    parts = space.values(target)
    found = {space.level([part]): 1.0 for part in parts}
    return found if len(parts) == 1 else found | {space.level([]): 1.0 - len(parts)}


@dataclass(frozen=True)
class Measured:
    """What was measured of changes from a source, for one method."""

    method: str  #: one of :data:`WEIGHTED`
    profiles: Profiles
    space: ConditionSpace  #: for feature_ridge with what features say (:meth:`ConditionSpace.informed`)
    source: int
    codes: np.ndarray  #: of the conditions that were measured
    #: Of each label to these conditions, shape (n_labels + 1, n_conditions, n_genes): where a label
    #: lacks one it is the mean over the labels; the last row is that of any other label.
    changes: np.ndarray
    noise: np.ndarray  #: variance of the mean over labels of each, shape (n_conditions,)

    @classmethod
    def of(
        cls, method: str, profiles: Profiles, space: ConditionSpace, source: int, codes: np.ndarray
    ) -> Measured:
        """Return what was measured of changes from a source."""
        means, noise = mean_changes(profiles, source, codes)
        changes = np.repeat(means[None], len(profiles.labels) + 1, 0)
        if method != "feature_ridge":  # which is blind for labels
            label, place = np.nonzero(profiles.measured(source)[:, codes])
            groups = np.stack([label, codes[place]], 1)
            changes[label, place] = profiles.changes(groups, source)
        return cls(method, profiles, space, source, codes, changes, noise)

    def without(self, label: int, code: int) -> Measured:
        """Return what is known of one label without its change to a condition, which other labels have, too."""
        n_cells, place = self.profiles.n_cells.copy(), self.codes == code
        n_cells[label, code] = 0.0
        others = replace(self.profiles, n_cells=n_cells)
        changes, noise = self.changes[[label]], self.noise.copy()
        changes[0, place], noise[place] = mean_changes(others, self.source, np.array([code]))
        return replace(self, changes=changes, noise=noise)

    def to(self, target: Any, *, left_out: bool = False) -> np.ndarray:
        """Return the change to a target of each label, and of others, shape (n_labels + 1, n_genes).

        With `left_out` without what was measured of the target.
        """
        code = self.space.code(target) if left_out else None
        kept = np.flatnonzero(self.codes != code)
        return np.einsum("c,lcg->lg", self.weights(target, kept), self.changes[:, kept])

    def weights(self, target: Any, kept: np.ndarray) -> np.ndarray:
        """Return what the method weighs changes to the conditions that are kept with: all, or all but the target."""
        if self.method == "mean_condition":
            return np.full(len(kept), 1.0 / len(kept))
        if self.method == "sum_of_parts":
            levels = [self.levels[place] for place in kept]
            return sum_weights(self.space, self.space.levels[self.source], levels, target)
        if self.method == "feature_ridge" and len(kept) < len(self.codes):
            i = self.levels.index(target)  # Rasmussen and Williams 2006, section 5.4.2
            return -self._inverse[kept, i] / self._inverse[i, i]
        if self.method == "feature_ridge":
            alike = self._alike([*self.levels, target])
            known = alike[:-1, :-1] + np.diag(self.noise)
            return linalg.solve(known, alike[:-1, -1], assume_a="pos")
        if self.method != "nearest_condition":
            raise KeyError(self.method)
        distance = cdist([self.space.described(target)], self.described[kept])[0]
        if np.isnan(distance).all():
            raise InputError(
                f"No measured condition has features to compare those of {target!r} with."
            )
        nearest = np.isclose(distance, np.nanmin(distance), rtol=ROUNDING, atol=0.0)
        return nearest / nearest.sum()

    @cached_property
    def levels(self) -> list[Any]:
        """The conditions that were measured."""
        return [self.space.levels[code] for code in self.codes]

    @cached_property
    def described(self) -> np.ndarray:
        """Their features."""
        return np.stack([self.space.described(level) for level in self.levels])

    @cached_property
    def _inverse(self) -> np.ndarray:
        """Inverse of how alike changes to them are, with their noise."""
        return linalg.inv(self._alike(self.levels) + np.diag(self.noise))

    def _alike(self, levels: Sequence[Any]) -> np.ndarray:
        """Return how alike changes to conditions are."""
        return self.space.alike(self.space.levels[self.source], levels)


def left_out(measured: Measured, target: Any) -> Missed:
    """Return how wrong a method is of what it is not told.

    Of a target that other labels were measured under, each label that has it is left out; of another one each
    condition, in all labels.
    """
    profiles, source, rows = measured.profiles, measured.source, []
    for label, code, change, unit in _told_without(measured, target):
        start, truth = profiles.mean[label, source], profiles.mean[label, code]
        end = changed(start, change, is_count=profiles.is_count)
        n = profiles.cells_of_change(label, source, code)
        rows.append((truth - end, end - start, n, unit))
    if not rows:
        return Missed.nothing(profiles.mean.shape[2])
    residuals, predicted, n, units = (np.array(part) for part in zip(*rows, strict=True))
    return Missed(residuals, predicted, n, units, on_own=True)


def _told_without(measured: Measured, target: Any) -> Iterator[tuple[int, int, np.ndarray, int]]:
    """Yield label, condition, the change predicted without it, and what was left out."""
    known, code = measured.profiles.measured(measured.source), measured.space.code(target)
    if code is not None and code in measured.codes:
        labels = np.flatnonzero(known[:, code]).tolist()
        for label in labels if len(labels) > 1 else ():
            yield label, code, measured.without(label, code).to(target)[0], label
        return
    for place, other in enumerate(measured.codes.tolist() if len(measured.codes) > 1 else ()):
        level, by_nearest = measured.levels[place], measured.method == "nearest_condition"
        if by_nearest and np.isnan(measured.described[place]).any():
            continue  # a control without features
        if measured.method == "sum_of_parts" and not _is_sum(measured, level):
            continue
        found = measured.to(level, left_out=True)
        for label in np.flatnonzero(known[:, other]).tolist():
            yield label, other, found[label], other


def _is_sum(measured: Measured, level: Any) -> bool:
    """Return whether a condition is a set of parts that were measured alone."""
    known = {measured.space.levels[code] for code in (measured.source, *measured.codes)}
    own = _summands(measured.space, level)
    return level not in own and known >= own.keys()
