"""Drawing counts, and moving observed ones to another condition."""

from __future__ import annotations

import numpy as np
from scipy import sparse, stats

_OWN_GAIN = 0.5  # weight of a cell's own gain in what is added to its counts; its group's: the rest
_MAX_STEPS = 64  # counts found by recursion before scipy's quantile takes over


class Draws:
    """Random numbers of a prediction; no batch size changes them, as each kind is drawn in row order."""

    def __init__(self, seed: int) -> None:
        streams = np.random.SeedSequence(seed).spawn(3)
        self.latent, self.keep, self.add = (np.random.default_rng(s) for s in streams)


def transport_counts(
    counts: sparse.csr_matrix,
    ratio: np.ndarray,
    gain: np.ndarray,
    theta: np.ndarray | None,
    draws: Draws,
) -> sparse.csr_matrix:
    r"""Move observed counts from the source to the target condition.

    Every count is kept with probability :math:`\min(1, \mathrm{ratio})`, the rate under the target
    divided by that under the source, and counts of mean `gain` are added (negative binomial with
    the target's dispersion; Poisson if `theta` is None). The cell keeps what the model does not
    explain of it, and the variance of counts. All shapes are (n_cells, n_genes).
    """
    counts = sparse.csr_matrix(counts, copy=True)
    counts.sort_indices()
    rows = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    probability = np.minimum(ratio[rows, counts.indices], 1.0)
    kept = draws.keep.binomial(counts.data.astype(np.int64), probability)
    counts.data = kept.astype(np.float32)
    added = draw_counts(gain, theta, draws.add)
    result = sparse.csr_matrix(counts + added)
    result.eliminate_zeros()
    return result.astype(np.float32)


def draw_counts(
    mean: np.ndarray,
    theta: np.ndarray | None,
    rng: np.random.Generator,
    spared: np.ndarray | None = None,
) -> sparse.csr_matrix:
    r"""Draw negative binomial (Poisson if `theta` is None) counts by inversion.

    One uniform number a value: :math:`k = \min\{k : F(k) \ge u\}`. Most values are zero in single
    cells, so the recursion :math:`p_{k+1} = p_k \frac{k + \theta}{k + 1} \frac{\mu}{\mu + \theta}`
    runs over few.

    With `spared`, the probability that a count is not set to zero, that of the others is higher:
    `mean` is that of all.
    """
    u = rng.random(mean.shape)
    if spared is not None:
        mean, u = mean / spared, 1.0 - (1.0 - u) / spared  # below 0: set to zero
    if theta is not None:
        theta = np.broadcast_to(theta, mean.shape)
    p_zero = np.exp(-minus_log_p_zero(mean, theta))
    where = np.flatnonzero(u > p_zero)
    u, p, m = u.ravel()[where], p_zero.ravel()[where], mean.ravel()[where]
    t = None if theta is None else theta[np.divmod(where, mean.shape[1])]
    values = _invert(u, p, m, t).astype(np.float32)
    return _csr(values, where, mean.shape)


def minus_log_p_zero(mean: np.ndarray, theta: np.ndarray | None) -> np.ndarray:
    """Return -log P(count = 0) of negative binomial (Poisson if `theta` is None) counts."""
    return mean if theta is None else theta * np.log1p(mean / theta)


def by_row(dense: np.ndarray) -> sparse.csr_matrix:
    """Return the sparse matrix of a dense one (scipy's own way over 2-d indices takes longer)."""
    where = np.flatnonzero(dense != 0)
    return _csr(dense.ravel()[where], where, dense.shape)


def _csr(values: np.ndarray, where: np.ndarray, shape: tuple[int, int]) -> sparse.csr_matrix:
    """Return a sparse matrix of values at places of the flat matrix, in order."""
    indptr = np.searchsorted(where, np.arange(shape[0] + 1) * shape[1])
    columns = where - np.repeat(np.arange(shape[0]) * shape[1], np.diff(indptr))
    return sparse.csr_matrix((values, columns.astype(np.int32), indptr), shape=shape)


def _invert(u: np.ndarray, p: np.ndarray, mean: np.ndarray, theta: np.ndarray | None) -> np.ndarray:
    """Return the quantiles of `u`, given the probability `p` of zero; all quantiles are >= 1."""
    values = np.zeros(len(u))
    left = np.arange(len(u))
    cdf = p.copy()
    for k in range(_MAX_STEPS):
        if theta is None:
            p = p * mean / (k + 1)
        else:
            p = p * (k + theta) / (k + 1) * (mean / (mean + theta))
        cdf = cdf + p
        done = cdf >= u
        values[left[done]] = k + 1
        keep = ~done
        left, u, p, cdf, mean = left[keep], u[keep], p[keep], cdf[keep], mean[keep]
        theta = None if theta is None else theta[keep]
        if not len(left):
            return values
    if theta is None:
        values[left] = stats.poisson.ppf(u, mean)
    else:
        values[left] = stats.nbinom.ppf(u, theta, theta / (theta + mean))
    return values


def shared_gain(change: np.ndarray, mean: np.ndarray | None) -> np.ndarray:
    r"""Return the share to add to each cell of a group: half its own gain, half the group's.

    What a network says of how cells of an unseen combination differ in their response is too
    extreme: a few cells with a trace of the response at the source get far too much of it. Added is
    :math:`\max(0, \tfrac12 \Delta + \tfrac12 \bar\Delta)` where the group gains (:math:`\bar\Delta
    > 0`), nothing elsewhere. Without the `mean` of a group (no labels) a cell gains what its own
    `change` of shares says.
    """
    if mean is None:
        return np.maximum(change, 0.0)
    shared = _OWN_GAIN * change
    shared += (1 - _OWN_GAIN) * mean
    np.maximum(shared, 0.0, out=shared)
    shared *= mean > 0
    return shared
