"""States within labels, matched between conditions: more examples of how profile and change go together.

A handful of labels teach little about how the change depends on the cell. Cells of one label differ
as well (naive and memory, rested and activated), and what differs at the source differs in the same
way at the target, once the mean change is taken out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

N_STATES = 8  # most states of a label
STATE_CELLS = 20  # cells of each condition that a state is to have, on average
MIN_CELLS = 10  # cells below which a state of one condition is left out
_N_PCS = 10
_RESPONSE_WEIGHT = 100.0  # how much less a gene counts that responds
_MAX_CELLS = 20_000  # of all groups together ...
_PER_GROUP = (50, 500)  # ... and the least and most of each


class CellSample:
    """At most so many cells of each group, each as likely as any other, from a stream of cells.

    Every cell draws a number, and the lowest of each group stay: one pass, bounded memory, and the
    same cells however the stream is cut.
    """

    def __init__(self, n_groups: int, seed: int = 0) -> None:
        self.per_group = int(np.clip(_MAX_CELLS // n_groups, *_PER_GROUP))
        self._rng = np.random.default_rng(seed)
        self._highest = np.full(n_groups, np.inf)  # number above which a group takes no more cells
        self._parts: list[tuple[np.ndarray, np.ndarray, sparse.csr_matrix]] = []
        self._n_kept = self._n_after_pruning = 0

    def add(self, group: np.ndarray, x: np.ndarray) -> None:
        """Offer cells: their group codes, and values of shape (n_cells, n_genes)."""
        number = self._rng.random(len(group))
        take = number <= self._highest[group]
        part = group[take], number[take], sparse.csr_matrix(x[take], dtype=np.float32)
        self._parts.append(part)
        self._n_kept += int(take.sum())
        if self._n_kept > 2 * self._n_after_pruning + _MAX_CELLS:
            self._prune()

    def _prune(self) -> None:
        """Keep the lowest numbers of each group."""
        groups, numbers, x = zip(*self._parts, strict=True)
        group, number, x = np.concatenate(groups), np.concatenate(numbers), sparse.vstack(x)
        order = np.lexsort((number, group))
        sorted_group = group[order]
        rank = np.arange(len(order)) - np.searchsorted(sorted_group, sorted_group)
        last = order[rank == self.per_group - 1]
        self._highest[group[last]] = number[last]
        keep = np.sort(order[rank < self.per_group])
        self._parts = [(group[keep], number[keep], x.tocsr()[keep])]
        self._n_kept = self._n_after_pruning = len(keep)

    def cells(self) -> tuple[np.ndarray, sparse.csr_matrix]:
        """Return group codes and values of the cells that stayed, in the order of the stream."""
        self._prune()
        group, _, x = self._parts[0]
        return group, x


def matched_states(
    x: Any, label: np.ndarray, condition: np.ndarray, n_states: int = N_STATES
) -> np.ndarray:
    r"""Divide the cells of each label into states that all its conditions have.

    From every cell the mean of its (label, condition) is taken away; genes weigh
    :math:`1 / (1 + 100\,r_g^2)` with r the root mean square over labels of the change in units of the
    standard deviation within groups, so that a state is not how much a cell responds; k-means divides
    the first ten principal components of all conditions together.

    Parameters
    ----------
    x
        Log values, shape (n_cells, n_genes), dense or sparse.
    label, condition
        Codes of each cell, shape (n_cells,).
    n_states
        Most states of a label.

    Returns
    -------
    Code of each cell's state within its label; -1 where the label has too few cells (40) in
    all but one condition, and for the cells of such a condition.
    """
    x = sparse.csr_matrix(x)
    weights = np.sqrt(1.0 / (1.0 + _RESPONSE_WEIGHT * _squared_response(x, label, condition)))
    states = np.full(len(label), -1)
    for code in np.unique(label):
        rows = _shared_rows(label == code, condition)
        if not len(rows):
            continue
        cells = x[rows].toarray().astype(np.float32)
        own = condition[rows]
        for c in np.unique(own):
            cells[own == c] -= cells[own == c].mean(0)
        cells *= weights.astype(np.float32)
        n = min(np.unique(own, return_counts=True)[1].min() // STATE_CELLS, n_states)
        n_pcs = min(_N_PCS, min(cells.shape) - 1)
        if n < 2 or n_pcs < 1 or not cells.any():
            continue
        pcs = PCA(n_pcs, svd_solver="randomized", random_state=0).fit_transform(cells)
        states[rows] = KMeans(n, n_init=3, random_state=0).fit_predict(pcs)
    return states


def _shared_rows(of_label: np.ndarray, condition: np.ndarray) -> np.ndarray:
    """Return the rows of a label's conditions that have cells for two states, if these are several."""
    codes, n_cells = np.unique(condition[of_label], return_counts=True)
    enough = codes[n_cells >= 2 * STATE_CELLS]
    if len(enough) < 2:
        return np.empty(0, dtype=int)
    return np.flatnonzero(of_label & np.isin(condition, enough))


def _squared_response(x: sparse.csr_matrix, label: np.ndarray, condition: np.ndarray) -> np.ndarray:
    """Return the squared change of each gene in units of its variance within groups."""
    changes, variances = [], []
    for code in np.unique(label):
        means = []
        for c in np.unique(condition[label == code]):
            cells = x[(label == code) & (condition == c)]
            if cells.shape[0] < MIN_CELLS:
                continue
            means.append(np.asarray(cells.mean(0)).ravel())
            squares = np.asarray(cells.multiply(cells).mean(0)).ravel()
            variances.append(np.maximum(squares - means[-1] ** 2, 0.0))
        if len(means) > 1:  # mean squared difference between two of the conditions
            changes.append(2.0 * np.var(means, axis=0, ddof=1))
    if not changes:
        return np.zeros(x.shape[1])
    return np.mean(changes, axis=0) / (np.mean(variances, axis=0) + 1e-6)
