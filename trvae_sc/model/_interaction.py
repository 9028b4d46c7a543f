"""What a set of parts changes beyond the sum of what each part changes alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats

from trvae_sc.intervals import LEVEL
from trvae_sc.model._factors import Factors
from trvae_sc.model._trained import Trained
from trvae_sc.noise import sampling_variance


def interaction(trained: Trained, factors: Factors, target: Any) -> dict[str, Any]:
    r"""Return the interaction of the parts of a target in a label, with its interval, by column.

    .. math:: I = d_{AB} - d_A - d_B

    with the measured change :math:`d_{AB}` where training has it (its interval holds the sampling error of all
    four means), else the predicted one (the interval is that of the prediction, and the sampling error of the
    sum). Nothing where the target is no set, where the source has parts itself, or where a part was not measured
    alone in the label.
    """
    space = trained.conditions
    names = space.singles(target)
    if names is None or space.values(factors.source) or not trained.spread.size:
        return {}
    label, source = trained.labels.index(factors.label), space.code(factors.source)
    codes = [space.code(name) for name in names]
    if (trained.n_cells[label, codes] == 0).any():
        return {}
    mean, n_parts = trained.profiles().mean[label].astype(np.float64), len(codes)

    def noise(code: int) -> np.ndarray:
        n = trained.n_cells[label, code]
        spread = trained.spread_of(code)
        return sampling_variance(mean[code], spread, n, is_count=trained.module.is_count)

    sums = (mean[codes] - mean[source]).sum(0)
    variance = sum(noise(code) for code in codes)
    own = space.code(target)
    if own is not None and trained.n_cells[label, own] > 0:
        change = mean[own] - mean[source]
        variance = variance + noise(own) + (n_parts - 1) ** 2 * noise(source)
        half: Any = 0.0
    else:
        change = factors.change.predicted_mean - factors.change.source_mean
        variance = variance + n_parts**2 * noise(source)
        half = np.nan if factors.change.half_width is None else factors.change.half_width
    sampling = stats.norm.ppf((1 + LEVEL) / 2) * np.sqrt(variance)
    half = np.sqrt(np.square(half) + np.square(sampling))
    found = change - sums
    return {
        "sum_of_parts": sums,
        "interaction": found,
        "interaction_lower": found - half,
        "interaction_upper": found + half,
    }
