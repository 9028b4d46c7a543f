r"""Linear systems of ridge regression on changes of labels under conditions, factorised once.

The covariance of the changes of groups (label, condition) is a product of two tables, A of conditions and L of
labels, and noise:

.. math:: K_{gg'} = A_{c c'}\,L_{l l'} + \nu_g\,\delta_{gg'}
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import linalg

_SAME = 1e-13  # eigenvalues of conditions nearer to the smallest, in units of the largest, equal it


@dataclass(frozen=True)
class Tables:
    """The covariance of groups as tables."""

    conditions: np.ndarray  #: A, shape (n_conditions, n_conditions)
    labels: np.ndarray  #: L, shape (n_labels, n_labels)
    condition: np.ndarray  #: row of A that each group is of, shape (n_groups,)
    label: np.ndarray  #: the same of L
    noise: np.ndarray  #: variance of each group that is its own, shape (n_groups,)

    def kernel(self) -> np.ndarray:
        """Return K, shape (n_groups, n_groups)."""
        found = self.conditions[np.ix_(self.condition, self.condition)]
        found *= self.labels[np.ix_(self.label, self.label)]
        found[np.diag_indices(len(found))] += self.noise
        return found

    def by_condition(self) -> list[np.ndarray]:
        """Return the groups of each condition that has any."""
        return [np.flatnonzero(self.condition == c) for c in np.unique(self.condition)]


def factorised(tables: Tables) -> Dense | Structured:
    """Return K factorised, in whichever way takes less work."""
    values, vectors = linalg.eigh(tables.conditions)
    common = max(values[0], 0.0)
    high = values > common + _SAME * values[-1]
    if 2 * high.sum() * len(tables.labels) > len(tables.noise):
        return Dense(tables)
    return Structured(tables, common, vectors[:, high] * np.sqrt(values[high] - common))


class Dense:
    """The Cholesky factor of K."""

    def __init__(self, tables: Tables) -> None:
        self._tables, self._factor = tables, linalg.cho_factor(tables.kernel())

    @cached_property
    def _inverse(self) -> np.ndarray:
        """The inverse of K."""
        upper = np.triu(linalg.lapack.dpotri(*self._factor)[0])
        return upper + np.triu(upper, 1).T

    def solve(self, b: np.ndarray) -> np.ndarray:
        """Return the inverse of K times `b`, shape (n_groups,) or (n_groups, n)."""
        return linalg.cho_solve(self._factor, b)

    def diagonal(self) -> np.ndarray:
        """Return the diagonal of the inverse of K, shape (n_groups,)."""
        return np.diag(self._inverse)

    def block(self, at: np.ndarray) -> np.ndarray:
        """Return the inverse of K in rows and columns of all groups of some conditions, in rising order."""
        return self._inverse[np.ix_(at, at)]


class Structured:
    r"""K of many conditions that share few features, by the matrix inversion lemma.

    Where all but r eigenvalues of A are the same, :math:`A = a\,I + U U^\top` with r columns of U, and
    :math:`K = B + F F^\top` with B of one block for each condition and F of r times n_labels columns:

    .. math:: K^{-1} = B^{-1} - G\,(I + F^\top G)^{-1}\,G^\top, \qquad G = B^{-1} F

    (Golub and Van Loan 2013, section 2.1.4).
    """

    def __init__(self, tables: Tables, common: float, features: np.ndarray) -> None:
        label, self._at = tables.label, tables.by_condition()
        self._place = np.unique(tables.condition, return_inverse=True)[1]  # in these
        self._inverses = [
            linalg.inv(
                common * tables.labels[np.ix_(label[at], label[at])] + np.diag(tables.noise[at])
            )
            for at in self._at
        ]
        of_labels = linalg.cholesky(tables.labels, lower=True)[label]
        f = (features[tables.condition][:, :, None] * of_labels[:, None]).reshape(len(label), -1)
        g = self._of_blocks(f)
        inner = linalg.cholesky(np.eye(f.shape[1]) + f.T @ g, lower=True)
        self._shared = linalg.solve_triangular(inner, g.T, lower=True)

    def _of_blocks(self, b: np.ndarray) -> np.ndarray:
        """Return the inverse of B times `b`."""
        found = np.empty(b.shape)
        for at, inverse in zip(self._at, self._inverses, strict=True):
            found[at] = inverse @ b[at]
        return found

    def solve(self, b: np.ndarray) -> np.ndarray:
        """See :class:`Dense`."""
        return self._of_blocks(b) - self._shared.T @ (self._shared @ b)

    def diagonal(self) -> np.ndarray:
        """See :class:`Dense`."""
        found = np.empty(self._shared.shape[1])
        for at in self._at:
            found[at] = np.diag(self.block(at))
        return found

    def block(self, at: np.ndarray) -> np.ndarray:
        """See :class:`Dense`."""
        found = -self._shared[:, at].T @ self._shared[:, at]
        for k in np.unique(self._place[at]):
            own = np.searchsorted(at, self._at[k])
            found[np.ix_(own, own)] += self._inverses[k]
        return found
