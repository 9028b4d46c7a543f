"""The variance of means of a few cells, against simulated cells."""

import numpy as np
import pytest

from trvae_sc.noise import sampling_variance


def test_variance_of_the_log_of_a_mean_of_counts():
    rng = np.random.default_rng(0)
    mean, phi, n = np.array([0.5, 3.0, 20.0]), np.array([0.2, 0.5, 0.05]), 200
    rates = mean * rng.gamma(1 / phi, phi, (2000, n, 3))
    f = np.log1p(rng.poisson(rates * 2.0).mean(1) / 2.0)  # cells of twice the median total
    found = sampling_variance(np.log1p(mean), phi, n, is_count=True, relative_total=2.0)
    assert found == pytest.approx(f.var(0), rel=0.1)


def test_variance_of_a_mean_of_values():
    found = sampling_variance(np.zeros((2, 3)), np.array([1.0, 2.0, 4.0]), 4, is_count=False)
    assert found.tolist() == [[0.25, 0.5, 1.0]] * 2
