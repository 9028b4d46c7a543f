r"""How close predicted cells are to real ones: pure functions on arrays.

`real` cells were measured under the target condition, `control` cells under the source condition,
`predicted` cells are the guess; `x` and `y` are any two groups. Each is a dense or scipy sparse
matrix of shape (n_cells, n_genes), same genes in the same order, on the scale log1p(kappa k / t):
counts k, total t of the cell, kappa the median total. :math:`m_r, m_c, m_p` are their means per
gene, :math:`v_r, v_c, v_p` their variances, r(,) is Pearson's correlation over genes. To score some
genes only, slice every array first: ``genes = top_genes(real, control)``, then ``real[:, genes]``
etc.

Input is *invalid*, which raises a ValueError that names it, if it is no numeric matrix, holds NaN
or infinite values, has another number of genes, or too few cells: two, or one where only means are
needed. Inputs are never modified. `METRICS` lists all scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from trvae_sc.errors import InputError, UndefinedScoreError
from trvae_sc.metrics import _arrays
from trvae_sc.metrics._arrays import Cells, Vector

__all__ = [
    "METRICS",
    "MMD_FACTORS",
    "Metric",
    "de_overlap",
    "direction_accuracy",
    "effect_pearson",
    "effect_r2",
    "energy_distance",
    "interval_coverage",
    "mean",
    "mmd",
    "r2_mean",
    "r2_var",
    "specific_pearson",
    "target_rank",
    "top_genes",
    "variance",
    "variance_ratio",
    "wasserstein",
    "welch_t",
]

#: Multiples of the median squared distance that serve as kernel widths.
MMD_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)


def mean(x: Cells) -> Vector:
    r"""Mean of each gene, :math:`m_j = \sum_i x_{ij} / n`, summed in float64, shape (n_genes,).

    Trap: a mean of log values is not the log of a mean; compare it with its own kind only.
    Raises ValueError if `x`, of at least one cell, is invalid.
    """
    return _arrays.mean(*_arrays.validated(x=x))


def variance(x: Cells) -> Vector:
    r"""Variance of each gene, :math:`v_j = \sum_i (x_{ij} - m_j)^2 / (n - 1)`, shape (n_genes,).

    Squared scale of `x`, in [0, inf), two passes in float64. Trap: where the standard deviation is
    below 1e-6 of the mean, it is rounding of a constant and given as 0.
    Raises ValueError if `x`, of at least two cells, is invalid.
    """
    return _arrays.variance(*_arrays.validated(2, x=x))


def welch_t(x: Cells, y: Cells) -> Vector:
    r"""Welch's t of each gene, :math:`(m_x - m_y) / \sqrt{v_x / n_x + v_y / n_y}`.

    Shape (n_genes,), no unit, in [-inf, inf], never NaN, positive where `x` is higher. Equal means
    give 0; two different constants give inf with the sign of the difference, so that they rank
    first. Trap: cells are no replicates, and too uniform predictions make every t large; rank with
    it, do not test.
    Raises ValueError if `x` or `y`, of at least two cells each, is invalid.
    """
    return _arrays.welch_t(*_arrays.validated(2, x=x, y=y))[0]


def top_genes(real: Cells, control: Cells, n: int = 100) -> NDArray[np.intp]:
    """Return the indices of the `n` genes of largest absolute Welch t, largest first, shape (n,).

    All genes if there are fewer. Ties go to the larger absolute difference of means, then to the
    lower index. Trap: chosen by the truth, so it serves scoring only.
    Raises ValueError if cells are invalid (two needed) or `n` is below 1.
    """
    return _arrays.ranked(*_arrays.welch_t(*_arrays.validated(2, real=real, control=control)), n)


def effect_r2(real: Cells, predicted: Cells, control: Cells) -> float:
    r"""Share of the mean change that is predicted, :math:`1 - |m_p - m_r|^2 / |m_c - m_r|^2`.

    Range (-inf, 1], higher is better: 1 perfect, 0 as good as predicting no change. Trap: relative,
    so it is noise itself where the real change is no larger than the sampling noise.
    Raises ValueError if cells are invalid (one suffices) or `real` and `control` have equal means.
    """
    arrays = _arrays.validated(real=real, predicted=predicted, control=control)
    m_real, m_predicted, m_control = (_arrays.mean(a) for a in arrays)
    if not _arrays.difference(m_control, m_real).any():
        raise UndefinedScoreError(
            "`real` and `control` have equal means; there is no change to explain"
        )
    return float(1.0 - ((m_predicted - m_real) ** 2).sum() / ((m_control - m_real) ** 2).sum())


def effect_pearson(real: Cells, predicted: Cells, control: Cells) -> float:
    r"""Correlation of predicted and real mean change, :math:`r(m_p - m_c, m_r - m_c)`.

    Range [-1, 1], higher is better; 0 for a predicted change that is zero or equal in all genes.
    Trap: blind to the size of the change, and noise in the control mean, which both share,
    inflates it.
    Raises ValueError if cells are invalid (one suffices) or the real change is equal in all genes.
    """
    cells = _arrays.validated(real=real, predicted=predicted, control=control)
    return specific_pearson(*cells, shift=np.zeros(cells[0].shape[1]))


def specific_pearson(real: Cells, predicted: Cells, control: Cells, *, shift: ArrayLike) -> float:
    r"""Correlation of what goes beyond the usual change, :math:`r(m_p - m_c - s, m_r - m_c - s)`.

    `shift` is s, the mean change over the training labels, shape (n_genes,), log1p scale. Range
    [-1, 1], higher is better; 0 by construction for control cells plus `shift` (mean_shift). Trap:
    no change leaves -s, which may correlate with the truth: doing nothing need not score 0.
    Raises ValueError if cells (one suffices) or `shift` are invalid, or all real change is usual.
    """
    arrays = _arrays.validated(real=real, predicted=predicted, control=control)
    shift = _arrays.vector(shift, "shift", arrays[0].shape[1])
    *pair, m_control = (_arrays.mean(a) for a in arrays)
    changes = (_arrays.centred(m - m_control - shift, m, m_control, shift) for m in pair)
    return _arrays.pearson(*changes)


def r2_mean(real: Cells, predicted: Cells) -> float:
    r"""Squared correlation of the means, :math:`r(m_p, m_r)^2`, as scGen and trVAE report it.

    Range [0, 1], higher is better; 0 if the predicted means are all equal. Trap: baseline
    expression dominates it: no change scores 0.83 on Kang et al. 2018, so show that beside it.
    Raises ValueError if cells are invalid (one suffices) or the real means are all equal.
    """
    pair = (_arrays.mean(a) for a in _arrays.validated(real=real, predicted=predicted))
    return _arrays.pearson(*(_arrays.centred(m, m) for m in pair)) ** 2


def r2_var(real: Cells, predicted: Cells) -> float:
    r"""Squared correlation of the variances, :math:`r(v_p, v_r)^2`, as scGen and trVAE report it.

    Range [0, 1], higher is better; 0 if the predicted variances are all equal. Trap: blind to
    scale, so cells with a tenth of the real variance can score 1; read it with `variance_ratio`.
    Raises ValueError if cells are invalid (two needed) or the real variances are all equal.
    """
    pair = (_arrays.variance(a) for a in _arrays.validated(2, real=real, predicted=predicted))
    return _arrays.pearson(*(_arrays.centred(v, v) for v in pair)) ** 2


def variance_ratio(real: Cells, predicted: Cells) -> float:
    r"""Median of predicted over real variance, :math:`v_p / v_r`, over genes with :math:`v_r > 0`.

    No unit, range [0, inf), 1 is best: predicted cells are too alike below, too noisy above. Trap:
    noise in any direction repairs it; read it with `energy_distance`.
    Raises ValueError if cells are invalid (two needed) or no real gene varies.
    """
    v_real, v_predicted = (
        _arrays.variance(a) for a in _arrays.validated(2, real=real, predicted=predicted)
    )
    if not (varies := v_real > 0).any():
        raise UndefinedScoreError("No gene of `real` varies; there is no variance to compare with")
    return float(np.median(v_predicted[varies] / v_real[varies]))


def energy_distance(x: Cells, y: Cells, *, max_cells: int = 500, seed: int = 0) -> float:
    r"""Energy distance, :math:`2 E|x - y| - E|x - x'| - E|y - y'|`, Euclidean, without square root.

    Székely & Rizzo 2013 (doi:10.1016/j.jspi.2013.03.018), as a U-statistic: no cell is paired with
    itself. Groups of more than `max_cells` are subsampled without replacement by `seed`; below that
    nothing is random. Scale of `x`, lower is better, about 0 for equal distributions, then also
    slightly negative. Trap: depends on the space (usual: 50 PCs of training cells), and others keep
    the diagonal, take the root, or square the distances (then blind to variance).
    Raises ValueError if cells are invalid (two needed) or `max_cells` is below 2.
    """
    squared, n_x = _arrays.pooled_squared_distances(x, y, max_cells, seed)
    return _arrays.discrepancy(-np.sqrt(squared), n_x)


def mmd(x: Cells, y: Cells, *, max_cells: int = 500, seed: int = 0) -> float:
    r"""Squared maximum mean discrepancy, :math:`E k(x, x') + E k(y, y') - 2 E k(x, y)`, unbiased.

    Gretton et al. 2012; k is the mean of :math:`\exp(-d^2 / (b m))` over b = 1/4, 1/2, 1, 2, 4 with
    m the median squared distance of two pooled cells. `max_cells`, `seed`: see `energy_distance`.
    No unit, range [-2, 2], lower is better, about 0 for equal distributions, then also slightly
    negative. Trap: m depends on both groups, so two predictions meet slightly different rulers.
    Raises ValueError if cells are invalid (two needed) or `max_cells` is below 2.
    """
    squared, n_x = _arrays.pooled_squared_distances(x, y, max_cells, seed)
    median = np.median(squared[np.triu_indices(len(squared), 1)])
    scaled = squared / max(median, np.finfo(float).tiny ** 0.5)
    kernel: Any = sum(np.exp(-scaled / b) for b in MMD_FACTORS) / len(MMD_FACTORS)
    return _arrays.discrepancy(kernel, n_x)


def wasserstein(x: Cells, y: Cells) -> float:
    r"""Mean over genes of the 1-d Wasserstein distance, :math:`\int |F_x(u) - F_y(u)| du`.

    Scale of `x`, range [0, inf), lower is better. Trap: blind to dependence between genes, and
    above 0 for two samples of one distribution, the more so the fewer cells.
    Raises ValueError if `x` or `y`, of at least one cell each, is invalid.
    """
    from scipy.stats import wasserstein_distance  # which takes long to import

    pair = [sparse.csc_array(a) for a in _arrays.validated(x=x, y=y)]
    distances = [
        wasserstein_distance(*(a[:, [j]].toarray().ravel() for a in pair))
        for j in range(pair[0].shape[1])
    ]
    return float(np.mean(distances))


def de_overlap(real: Cells, predicted: Cells, control: Cells, *, n: int = 100) -> float:
    r"""Share of the most changed genes that the prediction finds, :math:`|T_r \cap T_p| / |T_r|`.

    T are the `n` genes of largest absolute Welch t against `control` among those that change at
    all. Range [0, 1], higher is better, about n / n_genes by chance, 0 for predicting no change.
    Trap: too uniform predictions promote genes whose mean hardly changes. Give it all genes.
    Raises ValueError if cells are invalid (two needed), `n` is below 1 or no real mean changes.
    """
    real, predicted, control = _arrays.validated(2, real=real, predicted=predicted, control=control)
    t, difference = _arrays.welch_t(predicted, control)
    found = _arrays.ranked(t, difference, n)
    return float(np.isin(_arrays.changed(real, control, n), found[t[found] != 0]).mean())


def direction_accuracy(real: Cells, predicted: Cells, control: Cells, *, n: int = 100) -> float:
    r"""Share of the most changed genes where :math:`m_p - m_c` has the sign of :math:`m_r - m_c`.

    These are the `n` genes T_r of `de_overlap`. Range [0, 1], higher is better, 0.5 by chance, 0
    for predicting no change (always wrong). Trap: near 1 for any rough shift of the right sign.
    Raises ValueError if cells are invalid (two needed, one `predicted`), `n` is below 1 or no real
    mean changes.
    """
    _arrays.validated(2, real=real, control=control)  # of `predicted`, one cell suffices
    real, predicted, control = _arrays.validated(real=real, predicted=predicted, control=control)
    genes = _arrays.changed(real, control, n)
    signs = [
        np.sign(_arrays.difference(_arrays.mean(a), _arrays.mean(control))[genes])
        for a in (real, predicted)
    ]
    return float((signs[0] == signs[1]).mean())


def target_rank(real_by_target: Mapping[str, Cells], predicted: Cells, target: str) -> float:
    r"""Rank of the true target by :math:`|m_p - m_r|` among all, :math:`1 - (rank - 1) / (n - 1)`.

    `real_by_target` holds the real cells of n >= 3 targets, `predicted` is for the one called
    `target`; ties count half. Range [0, 1], higher is better, 0.5 by chance. Trap: a prediction
    that moves too little is nearest to the weakest target, which then scores 1 for nothing.
    Raises ValueError if cells are invalid (one suffices), n is below 3 or `target` is unknown.
    """
    if len(real_by_target) < 3:
        raise InputError(f"`real_by_target` has {len(real_by_target)} targets; ranking needs 3")
    if target not in real_by_target:
        raise InputError(
            f"Unknown `target` {target!r}; `real_by_target` has {list(real_by_target)}"
        )
    named = {f"real_by_target[{key!r}]": cells for key, cells in real_by_target.items()}
    *m_real, m_predicted = (
        _arrays.mean(a) for a in _arrays.validated(**named, predicted=predicted)
    )
    distances = np.linalg.norm(m_real - m_predicted, axis=1)
    true = distances[list(real_by_target).index(target)]
    tied = np.isclose(distances, true, rtol=_arrays.ROUNDING, atol=0.0)
    rank = 1.0 + (~tied & (distances < true)).sum() + (tied.sum() - 1) / 2
    return float(1.0 - (rank - 1.0) / (len(distances) - 1))


def interval_coverage(real_change: ArrayLike, lower: ArrayLike, upper: ArrayLike) -> float:
    r"""Share of genes with :math:`lower \le m_r - m_c \le upper`, the real change in its interval.

    All of shape (n_genes,), log1p scale. Range [0, 1], best at the level of the interval (0.9 for
    90 %). Trap: wide intervals cover anything; show their width beside it.
    Raises ValueError if values are not finite, shapes differ or a `lower` is above its `upper`.
    """
    given = {"real_change": real_change, "lower": lower, "upper": upper}
    change, low, high = (_arrays.vector(v, name, np.size(real_change)) for name, v in given.items())
    if (low > high).any():
        raise InputError(
            f"`lower` is above `upper` in {(low > high).sum():,} genes; swap the bounds"
        )
    return float(((low <= change) & (change <= high)).mean())


class Metric(NamedTuple):
    """How to compute and read a score.

    `better` is the direction, `best` the ideal value (None: the level of the interval), `range` the
    bounds. `needs` maps arguments to the data they take:
    ``metric.function(**{argument: data[k] for argument, k in metric.needs.items()})``.
    """

    function: Callable[..., float]
    better: Literal["higher", "lower", "closer"]
    best: float | None
    range: tuple[float, float]
    needs: dict[str, str]


_INF = float("inf")
_PAIR = {"real": "real", "predicted": "predicted"}
_TRIPLE = _PAIR | {"control": "control"}
_SPECIFIC = _TRIPLE | {"shift": "shift"}
_GROUPS = {"x": "real", "y": "predicted"}
_TARGETS = {k: k for k in ("real_by_target", "predicted", "target")}
_INTERVAL = {k: k for k in ("real_change", "lower", "upper")}

#: All scores by name.
METRICS: dict[str, Metric] = {
    "effect_r2": Metric(effect_r2, "higher", 1.0, (-_INF, 1.0), _TRIPLE),
    "effect_pearson": Metric(effect_pearson, "higher", 1.0, (-1.0, 1.0), _TRIPLE),
    "specific_pearson": Metric(specific_pearson, "higher", 1.0, (-1.0, 1.0), _SPECIFIC),
    "r2_mean": Metric(r2_mean, "higher", 1.0, (0.0, 1.0), _PAIR),
    "r2_var": Metric(r2_var, "higher", 1.0, (0.0, 1.0), _PAIR),
    "variance_ratio": Metric(variance_ratio, "closer", 1.0, (0.0, _INF), _PAIR),
    "energy_distance": Metric(energy_distance, "lower", 0.0, (-_INF, _INF), _GROUPS),
    "mmd": Metric(mmd, "lower", 0.0, (-2.0, 2.0), _GROUPS),
    "wasserstein": Metric(wasserstein, "lower", 0.0, (0.0, _INF), _GROUPS),
    "de_overlap": Metric(de_overlap, "higher", 1.0, (0.0, 1.0), _TRIPLE),
    "direction_accuracy": Metric(direction_accuracy, "higher", 1.0, (0.0, 1.0), _TRIPLE),
    "target_rank": Metric(target_rank, "higher", 1.0, (0.0, 1.0), _TARGETS),
    "interval_coverage": Metric(interval_coverage, "closer", None, (0.0, 1.0), _INTERVAL),
}
