"""What is missed when labels, or replicates, are left out."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy import linalg

from trvae_sc.intervals import Decoys, half_width
from trvae_sc.shift import Ridge, changed, log_fold_change, replicate_weight


@dataclass(frozen=True)
class Missed:
    """What was missed when units, labels or replicates, were left out."""

    residuals: np.ndarray  #: truth less prediction, shape (n_residuals, n_genes)
    predicted: np.ndarray  #: change that was predicted, same shape
    n: np.ndarray  #: cells that each rests on, shape (n_residuals,)
    unit: np.ndarray  #: code of what was left out, shape (n_residuals,)
    scale: np.ndarray | float = 1.0  #: unit of each gene, in which genes are compared with others
    #: Whether predictions rest on changes of their own label, too, of the same source cells as the truth.
    on_own: bool = False

    @classmethod
    def nothing(cls, n_genes: int) -> Missed:
        """Return that nothing was left out."""
        none = np.zeros((0, n_genes))
        return cls(none, none, np.zeros(0), np.zeros(0, int))

    @cached_property
    def half_width(self) -> np.ndarray | None:
        """:func:`trvae_sc.intervals.half_width`."""
        found = half_width(self.residuals / self.scale, self.n, unit=self.unit)
        return None if found is None else found * self.scale

    @cached_property
    def decoys(self) -> Decoys | None:
        """:class:`trvae_sc.intervals.Decoys`."""
        of = self.divided(self.scale)
        return Decoys.of(of.predicted, of.residuals, self.n, unit=self.unit)

    def p_values(self, change: np.ndarray) -> np.ndarray:
        """Return the p-values of a change (:class:`trvae_sc.intervals.Decoys`).

        NaN of fewer than three units, and of predictions that rest on changes of their own label: they share the
        noise of its source cells with the truth, so that few of genes that do not change have the wrong sign.
        """
        if self.on_own or self.decoys is None:
            return np.full(len(change), np.nan)
        return self.decoys(change / self.scale)

    def divided(self, by: np.ndarray | float) -> Missed:
        """Return the same in other units."""
        return replace(self, residuals=self.residuals / by, predicted=self.predicted / by)


@dataclass(frozen=True)
class Expected:
    """What was missed where what tells of a target was left out, and how wide that makes intervals."""

    missed: Missed
    ridge: Ridge | None = None  #: where other conditions tell of the target

    @classmethod
    def of(cls, ridge: Ridge, *, is_measured: bool) -> Expected:
        """Return what is expected of a target of a ridge; `is_measured`: with the source in some label."""
        if is_measured and len(ridge.likeness.codes) == 1:
            return cls(labels_left_out(ridge))
        told = Ridge(ridge.profiles, ridge.source, ridge.likeness, common=1.0)
        missed = labels_left_out(told, conditions=not is_measured, relative=True)
        return cls(replace(missed, on_own=True), told)

    def relative(self, profile: np.ndarray, label: int | None) -> float:
        """Return how wide the interval of a label is, where those of :attr:`missed` have 1."""
        if self.ridge is None:
            return 1.0
        n = float(np.median(self.ridge.n))
        return float(np.sqrt(self.ridge.expected_variance(profile, label, n)))


def labels_left_out(ridge: Ridge, *, conditions: bool = False, relative: bool = False) -> Missed:
    r"""Return what is wrong with f of the target of each group of a ridge if it is left out.

    With replicates one residual for each that has source and target, from its own source: what is missed
    then holds how replicates differ, too: by :math:`\sqrt{(D + 1)/(D - 1)}` more than the D do, as they are
    among those that the prediction rests on and a new one is not. Units are the groups, or, with `conditions`,
    the conditions: all labels of one are left out together, and all conditions that
    :attr:`trvae_sc.shift.Likeness.together` says. With `relative` all is in units of the standard
    deviation that the ridge expects of a group that is left out.
    """
    change = ridge.left_out_changes(conditions=conditions)
    missed, n = ridge.left_out(change)
    rows, cells = [missed[[i]] for i in range(len(missed))], list(np.split(n, len(n)))
    foretold = list((ridge.measured_changes() - missed)[:, None])
    is_count = ridge.profiles.is_count
    for i, pairs in enumerate(ridge.profiles.pairs(ridge.groups, ridge.source)):
        if pairs is not None:
            end = changed(pairs.start, change[i], is_count=is_count)
            wrong, foretold[i] = pairs.end - end, end - pairs.start
            middle, n_replicates = wrong.mean(0), len(pairs.n)
            wider = np.sqrt((n_replicates + 1) / max(n_replicates - 1, 1))
            rows[i], cells[i] = middle + wider * (wrong - middle), pairs.n
    units = ridge.unit if conditions else np.arange(len(rows))
    n_rows = list(map(len, rows))
    unit = np.repeat(units, n_rows)
    found = Missed(np.concatenate(rows), np.concatenate(foretold), np.concatenate(cells), unit)
    if not relative:
        return found
    variance = ridge.left_out_variance(conditions=conditions)
    return found.divided(np.repeat(np.sqrt(variance), n_rows)[:, None])


def replicates_left_out(ridge: Ridge, condition: int) -> Missed | None:
    """Return what is wrong with f of a replicate, given the change of the others of its label.

    Units are the replicates, or, if there are two, each of them in each label.

    Parameters
    ----------
    ridge
        Ridge regression on what was measured.
    condition
        Code of the condition; other groups have no say.

    Returns
    -------
    None where no label has two replicates under source and condition, or there are fewer than three units.
    """
    is_count, rows = ridge.profiles.is_count, []
    groups = ridge.groups[ridge.groups[:, 1] == condition]
    for pairs in ridge.profiles.pairs(groups, ridge.source):
        if pairs is None or len(pairs.n) < 2:
            continue
        own = log_fold_change(pairs.start, pairs.end, is_count=is_count)
        weight = replicate_weight(pairs.n)
        others = (weight @ own - weight[:, None] * own) / (weight.sum() - weight)[:, None]
        end = changed(pairs.start, others, is_count=is_count)
        rows.append((pairs.end - end, end - pairs.start, pairs.n, pairs.replicate))
    if not rows:
        return None
    residuals, predicted, n, unit = (np.concatenate(part) for part in zip(*rows, strict=True))
    unit = unit if len(np.unique(unit)) > 2 else np.arange(len(unit))
    return None if len(unit) < 3 else Missed(residuals, predicted, n, unit)


def left_out_errors(
    changes: np.ndarray, noise: np.ndarray, kernel: np.ndarray, together: np.ndarray
) -> np.ndarray:
    """Return the mean squared error of what is left out together, predicted from all else.

    In closed form, of kernel ridge regression (Rasmussen and Williams 2006, eq. 5.12); `noise` is the variance
    of each change, in units of the kernel, and `together` as of :class:`trvae_sc.shift.Likeness`.
    """
    inverse = linalg.inv(kernel + np.diag(noise))
    solved, errors, units = inverse @ changes, [], defaultdict(list)
    for i, row in enumerate(together):
        units[row.tobytes()].append(i)
    for told in units.values():
        out = np.flatnonzero(together[told[0]])
        missed = np.linalg.solve(inverse[np.ix_(out, out)], solved[out])
        errors.append(np.square(missed[np.searchsorted(out, told)]).mean())
    return np.array(errors)
