"""How far the mean of a few cells is from that of many."""

from __future__ import annotations

from typing import Any

import numpy as np


def sampling_variance(
    f: np.ndarray, spread: np.ndarray, n: Any, *, is_count: bool, relative_total: float = 1.0
) -> np.ndarray:
    r"""Return the variance of a mean over n cells, on the scale of f.

    For counts, f = log(1 + m) of the mean count m of a cell with the median total, the negative binomial
    variance by the delta method,

    .. math:: \mathrm{var}\,f = \frac{1}{n}\,\frac{m / t + \phi\,m^2}{(1 + m)^2}

    with `spread` the dispersion phi of each gene and `relative_total` t, the harmonic mean of the cells' totals in
    units of the median of training; else `spread`, the variance of values within groups, over n. `n` is broadcast
    to the shape of `f`, that of the result.
    """
    if not is_count:
        return np.broadcast_to(spread, f.shape) / n
    mean = np.expm1(np.maximum(f, 0.0))
    return (mean / relative_total + spread * mean**2) / (1.0 + mean) ** 2 / n
