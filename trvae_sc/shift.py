"""The change of a label, from the changes of other labels: kernel ridge regression on log fold changes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy import linalg

from trvae_sc.kernel_system import Dense, Structured, Tables, factorised
from trvae_sc.replicates import Pairs, Replicates

_RIDGE = 0.3  # variance of what is a label's own, in units of what labels differ by
_HALF_CELLS = 30  # of a group whose noise is as large as what is a label's own
_COMMON = 1e6  # prior variance of what all labels share
#: Relative difference of profiles that are the same.
ROUNDING = 1e-6
_EPS = 0.3  # counts added before logarithms are taken: fewer are noise


@dataclass(frozen=True)
class Profiles:
    """Mean values of training cells by label and condition.

    Parameters
    ----------
    mean
        f of the mean share, log(1 + kappa share), or the mean of other values; shape
        (n_labels, n_conditions, n_genes).
    n_cells
        Cells of each label and condition, shape (n_labels, n_conditions).
    labels
        Names of the labels.
    is_count
        Whether the values are counts.
    replicates
        The same of each donor, if changes are to be taken within them.
    """

    mean: np.ndarray
    n_cells: np.ndarray
    labels: tuple[str, ...]
    is_count: bool
    replicates: Replicates | None = None

    def measured(self, source: int) -> np.ndarray:
        """Return where a change from the source was measured, shape (n_labels, n_conditions)."""
        found = (self.n_cells > 0) & (self.n_cells[:, [source]] > 0)
        found[:, source] = False
        return found

    def cells_of_change(
        self, label: np.ndarray | int, source: int, condition: np.ndarray | int
    ) -> Any:
        """Return the harmonic mean of the cells of labels under source and condition."""
        return 2.0 / (1.0 / self.n_cells[label, source] + 1.0 / self.n_cells[label, condition])

    def cells_of_changes(self, groups: np.ndarray, source: int) -> np.ndarray:
        """Return the cells that each of :meth:`changes` rests on, shape (n_groups,).

        With replicates those of them that have both: as many as have the sampling error of their weighted mean.
        """
        label, condition = groups.T
        found = np.asarray(self.cells_of_change(label, source, condition), np.float64)
        for i, pairs in enumerate(self.pairs(groups, source)):
            if pairs is not None:
                weight = replicate_weight(pairs.n)
                found[i] = weight.sum() ** 2 / (np.square(weight) / pairs.n).sum()
        return found

    def changes(self, groups: np.ndarray, source: int) -> np.ndarray:
        """Return the change of groups (label, condition) from the source: log fold change of counts.

        With replicates the mean of their own changes, each weighing n / (n + 30), where one has both.
        """
        label, condition = groups.T
        ends = self.mean[label, source], self.mean[label, condition]
        found = log_fold_change(*ends, is_count=self.is_count)
        for i, pairs in enumerate(self.pairs(groups, source)):
            if pairs is not None:
                own = log_fold_change(pairs.start, pairs.end, is_count=self.is_count)
                found[i] = np.average(own, axis=0, weights=replicate_weight(pairs.n))
        return found

    def pairs(self, groups: np.ndarray, source: int) -> list[Pairs | None]:
        """Return the replicates of each group that have it and its source; None without any."""
        if self.replicates is None:
            return [None] * len(groups)
        return [self.replicates.pairs(label, source, c) for label, c in groups]


def replicate_weight(n: np.ndarray) -> np.ndarray:
    """Return what the changes of replicates weigh, n / (n + 30) of one with n cells."""
    return n / (n + _HALF_CELLS)


@dataclass(frozen=True)
class Likeness:
    """Conditions that tell of a target, and how alike they are; see :meth:`ConditionSpace.likeness`.

    Parameters
    ----------
    codes
        The n conditions.
    kernel
        Covariance of what changes from the source to each of them, shape (n, n).
    target
        The same of each with the target, shape (n,).
    variance
        The same of the target with itself.
    together
        Which conditions are left out with each, where whole conditions are, shape (n, n); each alone if None.
    """

    codes: np.ndarray
    kernel: np.ndarray
    target: np.ndarray
    variance: float = 1.0
    together: np.ndarray | None = None

    @classmethod
    def of_itself(cls, code: int) -> Likeness:
        """Return the likeness of a target that was measured."""
        return cls(np.array([code]), np.ones((1, 1)), np.ones(1))


def log_fold_change(start: np.ndarray, end: np.ndarray, *, is_count: bool) -> np.ndarray:
    r"""Return :math:`\log\frac{e^{f_t} - 1 + 0.3}{e^{f_s} - 1 + 0.3}` of counts, else the difference."""
    if not is_count:
        return np.asarray(end, np.float64) - start
    return log_ratio(*(np.expm1(np.asarray(f, np.float64)) for f in (start, end)))


def log_ratio(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Return the log fold change of counts of a cell of median total, with 0.3 added to each."""
    return np.log((end + _EPS) / (start + _EPS))


def changed(start: np.ndarray, change: np.ndarray, *, is_count: bool) -> np.ndarray:
    """Return values after a change: the inverse of :func:`log_fold_change`."""
    if not is_count:
        return start + change
    start = np.expm1(np.asarray(start, np.float64)) + _EPS
    return np.log1p(np.maximum(start * np.exp(change) - _EPS, 0.0))


class Ridge:
    r"""Predicts the change of a label from all that was measured.

    The change d of label l from the source s to condition c is taken for a draw from a Gaussian process
    (kernel ridge regression) with

    .. math:: \mathrm{cov}(d_{lc}, d_{l'c'}) = k_C(c, c') \Big( \mathrm{const}
       + \frac{\langle z_l, z_{l'} \rangle}{\overline{\lVert z \rVert^2}} + 0.3\,\delta_{ll'} \Big)
       + 0.3 \frac{30}{n_{lc}}\,\delta_{ll'}\,\delta_{cc'}

    for source profiles z of the labels, less their mean (over changes, each weighing n / (n + 30)), and the
    harmonic mean n of the cells under source and condition: labels change as far alike as their profiles are, and
    few cells say little. A target that was measured is learned from changes to it alone (:math:`k_C = 1`); see
    :meth:`trvae_sc.conditions.ConditionSpace.likeness` for others. Changes of counts are log fold changes: what
    a gene of another label can do depends on its own level.

    Parameters
    ----------
    profiles
        What was measured.
    source
        Code of the condition to start from.
    likeness
        Conditions that tell of the target.
    common
        Prior variance of what all labels share. The default leaves it to the data; what is expected of a
        target that was not measured needs one: 1, as much as labels differ by.
    """

    def __init__(
        self, profiles: Profiles, source: int, likeness: Likeness, *, common: float = _COMMON
    ) -> None:
        self.common = common
        n_cells = profiles.n_cells
        place = np.full(n_cells.shape[1], -1)
        place[likeness.codes] = np.arange(len(likeness.codes))
        self.groups = np.argwhere(profiles.measured(source) & (place >= 0))
        self.profiles, self.source, self.likeness = profiles, source, likeness
        if not len(self.groups):
            return
        label, condition = self.groups.T
        self.n = profiles.cells_of_changes(self.groups, source)
        self.changes = profiles.changes(self.groups, source)
        z = profiles.mean[:, source].astype(np.float64)
        known, weight = np.unique(label), self.n / (self.n + _HALF_CELLS)
        self.centre = np.average(z[label], axis=0, weights=weight)
        self.z = z - self.centre
        size = np.average(np.square(self.z[label]).sum(1), weights=weight)
        # of labels that share their source cells
        rounding = ROUNDING**2 * (self.centre @ self.centre)
        self.size = size if len(known) > 1 and size > rounding else np.inf
        self.condition = place[condition]
        self.of_target = likeness.target[self.condition]

    @cached_property
    def _system(self) -> Dense | Structured:
        """The kernel, factorised, which all predictions share."""
        known, label = np.unique(self.groups[:, 0], return_inverse=True)
        labels = self.labels_alike(known, known)
        noise = np.asarray(self.noise(self.n))
        return factorised(Tables(self.likeness.kernel, labels, self.condition, label, noise))

    def solve(self, b: np.ndarray) -> np.ndarray:
        """Return the inverse of the kernel times `b`, shape (n_groups,) or (n_groups, n)."""
        return self._system.solve(b)

    @staticmethod
    def noise(n: np.ndarray | float) -> np.ndarray | float:
        """Return the variance of a change measured in n cells, in units of the kernel."""
        return _RIDGE * _HALF_CELLS / n

    def labels_alike(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Return how alike labels of training are, by their codes; shape (n_one, n_other)."""
        known, at = np.unique(np.concatenate([one, other]), return_inverse=True)
        table = self._alike(self.z[known], known, known)
        return table[np.ix_(at[: len(one)], at[len(one) :])]

    def _labels(self, z: np.ndarray, label: int | None) -> np.ndarray:
        """Return how alike a label of profile z is to those of the groups."""
        return self._alike(z, label, self.groups[:, 0])

    def _alike(
        self, z: np.ndarray, label: np.ndarray | int | None, other: np.ndarray
    ) -> np.ndarray:
        """Return how alike labels of profiles z are to others of training."""
        same = False if label is None else np.equal.outer(label, other)
        return self.common + z @ self.z[other].T / self.size + _RIDGE * same

    def predict(self, profile: np.ndarray, label: int | None) -> np.ndarray:
        """Return f of the target.

        Parameters
        ----------
        profile
            f of the source profile of the label to predict, shape (n_genes,).
        label
            Code of the label; None where training has no cells of it under the source. What was measured of
            the label itself counts as its own.
        """
        alike = self._labels(profile - self.centre, label) * self.of_target
        return changed(profile, self.solve(alike) @ self.changes, is_count=self.profiles.is_count)

    def measured(self, label: int | None) -> float:
        """Return the share of what is a label's own in its change that was measured, 0 to 1.

        The share of its variance that the label's changes to conditions that tell of the target explain: 0 of a
        label without any, n / (n + 30) where the target itself was measured.
        """
        own = self.groups[:, 0] == label
        if label is None or not own.any():
            return 0.0
        if not self.likeness.variance:  # nothing changes: a number beyond the range, from its end
            return 1.0
        noise = np.diag(self.noise(self.n[own]))
        alike = _RIDGE * self.of_target[own]
        kernel = self.likeness.kernel[np.ix_(self.condition[own], self.condition[own])]
        explained = alike @ linalg.solve(_RIDGE * kernel + noise, alike)
        return float(explained / (_RIDGE * self.likeness.variance))

    def expected_variance(self, profile: np.ndarray, label: int | None, n: float) -> float:
        r"""Return the variance of what is wrong with a prediction, in units of the kernel.

        .. math:: k(x, x) - k(x, X)\,K^{-1}\,k(X, x) + 0.3 \frac{30}{n}

        for the target x, measured in n cells, and the groups X (Rasmussen and Williams 2006, eq. 2.26).
        `profile` and `label` are those of :meth:`predict`.
        """
        z = profile - self.centre
        alike = self._labels(z, label) * self.of_target
        prior = self.likeness.variance * (self.common + z @ z / self.size + _RIDGE)
        explained = alike @ self.solve(alike)
        return float(prior - explained + self.noise(n))

    def left_out_variance(self, *, conditions: bool = False) -> np.ndarray:
        """Return :meth:`expected_variance` of each group if it is left out, shape (n_groups,).

        With `conditions` all groups of a condition are left out together.
        """
        variance = 1.0 / self._system.diagonal()
        for at, told in self._left_out() if conditions else ():
            variance[at[told]] = np.diag(linalg.inv(self._system.block(at)))[told]
        return variance

    def left_out(
        self, change: np.ndarray | None = None, *, conditions: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return what is wrong with f of the target of each label if it is left out, and its cells.

        With `conditions` all groups of a condition are left out together; `change` is :meth:`left_out_changes`
        where it is at hand.

        Returns
        -------
        Truth less prediction, shape (n_labels, n_genes), in the order of the groups of the target; n,
        shape (n_labels,).
        """
        start = self.profiles.mean[self.groups[:, 0], self.source]
        truth = self.profiles.mean[self.groups[:, 0], self.groups[:, 1]]
        if change is None:
            change = self.left_out_changes(conditions=conditions)
        return truth - changed(start, change, is_count=self.profiles.is_count), self.n

    def left_out_changes(self, *, conditions: bool = False) -> np.ndarray:
        """Return the change (log fold change, of counts) predicted of each group if it is left out.

        With `conditions` all groups of a condition are left out together.
        """
        solved = self.solve(self.changes)
        missed = solved / self._system.diagonal()[:, None]
        for at, told in self._left_out() if conditions else ():
            left = linalg.solve(self._system.block(at), solved[at], assume_a="pos")
            missed[at[told]] = left[told]
        return self.changes - missed

    @cached_property
    def unit(self) -> np.ndarray:
        """Codes of what is left out with each group where whole conditions are, shape (n_groups,)."""
        return np.unique(self._together, axis=0, return_inverse=True)[1][self.condition]

    @property
    def _together(self) -> np.ndarray:
        """Which conditions are left out with each."""
        found = self.likeness.together
        return np.eye(len(self.likeness.codes), dtype=bool) if found is None else found

    def _left_out(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield groups that are left out together, and which of them that tells of."""
        together = self._together
        for unit in np.unique(self.unit):
            told = self.unit == unit
            out = together[self.condition[told.argmax()], self.condition]
            yield np.flatnonzero(out), told[out]

    def measured_changes(self) -> np.ndarray:
        """Return the changes of f that :meth:`left_out` is of, shape (n_labels, n_genes)."""
        label, condition = self.groups.T
        return self.profiles.mean[label, condition] - self.profiles.mean[label, self.source]


def mean_changes(
    profiles: Profiles, source: int, codes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean change over labels of conditions from a source, and its variance in units of the kernel.

    Shapes (n_conditions, n_genes) and (n_conditions,).
    """
    measured, means, noise = profiles.measured(source), [], []
    for code in codes:
        label = np.flatnonzero(measured[:, code])
        groups = np.stack([label, np.full_like(label, code)], 1)
        n = profiles.cells_of_changes(groups, source)
        weight = replicate_weight(n) / replicate_weight(n).sum()
        means.append(weight @ profiles.changes(groups, source))
        noise.append(float(np.square(weight) @ (_RIDGE + Ridge.noise(n))))
    return np.stack(means), np.array(noise)


def novelty(profile: np.ndarray, others: np.ndarray) -> float:
    """Return how far a profile is from others, in units of how far these are from each other.

    Parameters
    ----------
    profile
        Source profile of the label to predict, shape (n_genes,).
    others
        Those of the labels seen under source and target, shape (n_labels, n_genes).

    Returns
    -------
    Distance to the nearest of the others, divided by the median of the distances of each of them to
    its own nearest; NaN for fewer than two others, infinite where these are all the same. Above about
    1.5 the label is outside of what training has seen.
    """
    if len(others) < 2:
        return float("nan")
    distances = np.linalg.norm(others[:, None] - others[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    typical, own = np.median(distances.min(1)), np.linalg.norm(others - profile, axis=1).min()
    rounding = ROUNDING * np.linalg.norm(profile)
    if typical <= rounding:
        return 0.0 if own <= rounding else float("inf")
    return float(own / typical)
