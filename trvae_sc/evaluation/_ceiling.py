"""What a perfect prediction would score, given the noise of the hidden cells."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from trvae_sc.arguments import check_seed
from trvae_sc.evaluation._scores import N_TOP, score_values
from trvae_sc.evaluation._tasks import Task
from trvae_sc.metrics import _arrays

N_SPLITS = 10  # of the hidden cells in halves
N_DRAWS = 20  # of as many cells, with replacement
CEILING = "ceiling"  #: name of the pseudo-method
HALF = "replicate half"  #: output of the scores of halves that cannot be corrected

_ZERO = ("energy_distance", "mmd")  # of halves, in the mean over all splits
#: What halves are not asked for, by metric and genes.
_NOT_OF_HALVES = [*((name, "pcs") for name in _ZERO), ("target_rank", "all")]
_PRIOR = 4  # cells that the variance of the control cells counts for
_LEAST = 1e-6  # variance that is added to that of a gene; of values in units of the mean one
_N_WIDTHS = 20  # of normal distributions in the mixture of true changes
_N_STEPS = 200  # that fit it


def ceiling(task: Task, *, seed: int = 0, n_top: int = N_TOP) -> dict[str, pd.DataFrame]:
    r"""Return what a perfect prediction would score on these hidden cells.

    Scores of means: true changes are drawn from what the hidden cells leave possible, and each is scored against as
    many cells drawn around it, which vary as the control cells do. The observed changes :math:`d_g` have errors
    :math:`s_g = \sqrt{v_g / n}`, and the true ones a mixture of normal distributions of mean 0 fitted to them; draws
    from the posterior are scaled to the length :math:`\sum_g d_g^2 - s_g^2`. Of up to 20 cells, scores over the genes
    that change most depend on which those are by chance: there the ceiling is off by up to 0.1.

    Distances of distributions, which have no bias, are 0. Other scores are those of halves of the hidden cells,
    in ten splits: ratios of variances; the squared correlation of variances, corrected by Spearman and Brown,
    :math:`2 r / (1 + r)` of its root r.

    Parameters
    ----------
    task
        The task.
    seed
        Seed of draws and splits.
    n_top
        Number of genes that change most.

    Returns
    -------
    Tables as of :func:`trvae_sc.evaluation.score`: ``"ceiling"``, and ``"replicate half"`` of scores
    that cannot be corrected: what one half scores against the other.

    References
    ----------
    Mixture: Stephens 2017, doi:10.1093/biostatistics/kxw041.
    """
    check_seed(seed)
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(task.real.shape[0]) for _ in range(N_SPLITS)]
    drawn = _drawn(task, rng, n_top)
    halves = _halves(task, orders, n_top, without=[*drawn, *_NOT_OF_HALVES])
    rows = []
    for metric, genes, value in halves.itertuples(index=False):
        if (metric, genes) in drawn:
            rows.append((CEILING, metric, genes, drawn[metric, genes]))
        elif metric in _ZERO:
            rows.append((CEILING, metric, genes, 0.0))
        elif metric == "r2_var":
            r = np.sqrt(value)
            rows.append((CEILING, metric, genes, 2.0 * r / (1.0 + r)))
        elif metric != "target_rank":  # a half would be ranked by the whole that it is in
            rows.append((CEILING if metric == "variance_ratio" else HALF, metric, genes, value))
    table = pd.DataFrame(rows, columns=["output", *halves])
    return {
        name: table.loc[table["output"] == name, list(halves)].reset_index(drop=True)
        for name in (CEILING, HALF)
    }


def _halves(
    task: Task, orders: Sequence[np.ndarray], n_top: int, *, without: Collection[tuple[str, str]]
) -> pd.DataFrame:
    """Return mean scores of one half of the hidden cells, in each order, against the other."""
    n_cells, tables = task.real.shape[0], []
    for order in orders:
        first, second = order[: n_cells // 2], order[n_cells // 2 :]
        pair = task.real[first], task.real[second]
        tables.append(score_values(task, *pair, n_top=n_top, without=without))
    values = pd.DataFrame([table["value"] for table in tables])  # NaN: not defined by few cells
    return tables[0].assign(value=values.mean().to_numpy())


def _drawn(task: Task, rng: np.random.Generator, n_top: int) -> dict[tuple[str, str], float]:
    """Return mean scores of the truth against cells drawn around it, by metric and set of genes."""
    cells, start = _arrays.validated(2, real=task.real, control=task.control)
    n = cells.shape[0]
    mean, variance = _arrays.mean(cells), _arrays.variance(cells)
    control, usual = _arrays.mean(start), _arrays.variance(start)
    least = _LEAST * (1.0 if task.keys.is_count else float(usual.mean()) or 1.0)
    usual += least
    steady = (n * variance + _PRIOR * usual) / (n + _PRIOR)
    changes = _changes(mean - control, np.sqrt(steady / n), rng)
    length = max(float((np.square(mean - control) - variance / n).sum()), 0.0)
    found: dict[tuple[str, str], list[float]] = {}
    for change, (noise, spread) in zip(changes, _noise(start, n, least, rng), strict=False):
        size = float(np.square(change).sum())
        truth = control + change * np.sqrt(length / size if size else 0.0)
        real = truth + noise * np.sqrt(steady / usual)
        error = spread * steady / usual / n + usual / start.shape[0]
        top = np.argsort(-np.abs(real - control) / np.sqrt(error), kind="stable")[:n_top]
        for genes, at in ((f"top{n_top}", top), ("all", slice(None))):
            for metric, score in _SCORES.items():
                value = score(real[at], truth[at], control[at])
                found.setdefault((metric, genes), []).append(value)
    return {at: float(np.nanmean(v)) for at, v in found.items() if np.isfinite(v).any()}


def _changes(
    change: np.ndarray, error: np.ndarray, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Yield draws of the true changes, given those observed with errors; see :func:`ceiling`."""
    largest = 1.5 * np.sqrt(max(float((change**2 - error**2).max()), 0.0))
    smallest = float(np.median(error)) / 10.0
    widths = np.append(0.0, np.geomspace(smallest, max(largest, 2.0 * smallest), _N_WIDTHS))
    density = stats.norm.logpdf(change[:, None], 0.0, np.hypot(widths, error[:, None]))
    density = np.exp(density - density.max(axis=1, keepdims=True))
    weights = np.full(len(widths), 1.0 / len(widths))
    for _ in range(_N_STEPS):  # expectation maximisation
        share = density * weights
        share /= share.sum(axis=1, keepdims=True)
        weights = share.mean(axis=0)
    up_to = share.cumsum(axis=1)
    while True:
        which = (rng.random((len(change), 1)) > up_to).sum(axis=1).clip(max=len(widths) - 1)
        kept = widths[which] ** 2 / (widths[which] ** 2 + error**2)
        yield rng.normal(kept * change, np.sqrt(kept) * error)


def _noise(
    x: Any, n: int, least: float, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the deviation of the mean of n cells from the mean of all, and their variance and a bit."""
    mean = _arrays.mean(x)
    squares = x.multiply(x) if hasattr(x, "multiply") else x * x
    for _ in range(N_DRAWS):
        weight = np.bincount(rng.integers(0, x.shape[0], n), minlength=x.shape[0]) / n
        drawn = weight @ x
        yield drawn - mean, np.maximum(weight @ squares - drawn**2, 0.0) * n / (n - 1) + least


def _effect_r2(real: np.ndarray, truth: np.ndarray, control: np.ndarray) -> float:
    size = np.square(control - real).sum()
    return float(1.0 - np.square(truth - real).sum() / size) if size else float("nan")


def _pearson(real: np.ndarray, truth: np.ndarray) -> float:
    if not np.ptp(real) or not np.ptp(truth):
        return float("nan")
    return float(np.corrcoef(real, truth)[0, 1])


#: Scores of means: of the drawn cells, the truth and the control.
_SCORES = {
    "effect_r2": _effect_r2,
    "effect_pearson": lambda real, truth, control: _pearson(real - control, truth - control),
    "r2_mean": lambda real, truth, _: _pearson(real, truth) ** 2,
}
