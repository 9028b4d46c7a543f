"""The change to a condition that was never measured, by methods that train nothing.

All say the log fold change (of values that are no counts the difference) of a label from changes to conditions
that were measured; a label that lacks one of these counts with the mean of the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import linalg
from scipy.spatial.distance import cdist

from trvae_sc.conditions import ConditionSpace
from trvae_sc.errors import InputError
from trvae_sc.left_out import Missed
from trvae_sc.levels import listing
from trvae_sc.shift import ROUNDING, Profiles, changed, mean_changes

#: Methods that add a weighted sum of changes to measured conditions.
WEIGHTED = ("sum_of_parts", "mean_condition", "nearest_condition", "feature_ridge")


def weights_of(
    method: str,
    space: ConditionSpace,
    source: Any,
    levels: Sequence[Any],
    noise: np.ndarray,
    target: Any,
) -> np.ndarray:
    """Return what a method weighs changes to measured levels with, given the noise of each."""
    if method == "mean_condition":
        return np.full(len(levels), 1.0 / len(levels))
    if method == "feature_ridge":
        alike = space.alike(source, [*levels, target])
        return linalg.solve(alike[:-1, :-1] + np.diag(noise), alike[:-1, -1], assume_a="pos")
    if method == "nearest_condition":
        distance = cdist([space.described(target)], [space.described(level) for level in levels])[0]
        if np.isnan(distance).all():
            raise InputError(
                f"No measured condition has features to compare those of {target!r} with."
            )
        nearest = np.isclose(distance, np.nanmin(distance), rtol=ROUNDING, atol=0.0)
        return nearest / nearest.sum()
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
    space: ConditionSpace  #: with what features were found to say (:meth:`ConditionSpace.informed`)
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

    def to(self, target: Any, *, but: int | None = None) -> np.ndarray:
        """Return the change to a target of each label, and of others, shape (n_labels + 1, n_genes).

        `but` is the code of a condition to leave out.
        """
        kept = np.flatnonzero(self.codes != but)
        start, *levels = (self.space.levels[code] for code in [self.source, *self.codes[kept]])
        weights = weights_of(self.method, self.space, start, levels, self.noise[kept], target)
        return np.einsum("c,lcg->lg", weights, self.changes[:, kept])


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
    return Missed(*(np.array(part) for part in zip(*rows, strict=True)))


def _told_without(measured: Measured, target: Any) -> Iterator[tuple[int, int, np.ndarray, int]]:
    """Yield label, condition, the change predicted without it, and what was left out."""
    known, code = measured.profiles.measured(measured.source), measured.space.code(target)
    if code is not None and code in measured.codes:
        labels = np.flatnonzero(known[:, code]).tolist()
        for label in labels if len(labels) > 1 else ():
            yield label, code, measured.without(label, code).to(target)[0], label
        return
    for other in measured.codes.tolist() if len(measured.codes) > 1 else ():
        level = measured.space.levels[other]
        by_nearest = measured.method == "nearest_condition"
        if by_nearest and np.isnan(measured.space.described(level)).any():
            continue  # a control without features
        if measured.method == "sum_of_parts" and not _is_sum(measured, level):
            continue
        found = measured.to(level, but=other)
        for label in np.flatnonzero(known[:, other]).tolist():
            yield label, other, found[label], other


def _is_sum(measured: Measured, level: Any) -> bool:
    """Return whether a condition is a set of parts that were measured alone."""
    known = {measured.space.levels[code] for code in (measured.source, *measured.codes)}
    own = _summands(measured.space, level)
    return level not in own and known >= own.keys()
