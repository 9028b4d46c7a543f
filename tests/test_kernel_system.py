"""trvae_sc.kernel_system: both ways to factorise a kernel, against numpy on the kernel written out."""

import numpy as np
import pytest

from trvae_sc.kernel_system import Dense, Structured, Tables, factorised

COMMON = [1.0, 1e6]  # prior variances of what labels share that the ridge has


def tables(
    common: float, *, n_labels: int = 4, n_conditions: int = 40, own: float = 0.01
) -> Tables:
    """Conditions of 5 parts, each change of a label measured with a chance of 0.8."""
    rng = np.random.default_rng(0)
    parts = (rng.random((n_conditions, 5)) < 0.4).astype(float)
    z = rng.normal(size=(n_labels, 10))
    labels = common + z @ z.T / 10 + 0.3 * np.eye(n_labels)
    label, condition = np.nonzero(rng.random((n_labels, n_conditions)) < 0.8)
    noise = rng.uniform(0.05, 1.0, len(label))
    conditions = parts @ parts.T + 0.01 + own * np.eye(n_conditions)
    return Tables(conditions, labels, condition, label, noise)


def written_out(t: Tables) -> np.ndarray:
    """The kernel, one entry after the other."""
    n = len(t.noise)
    kernel = np.empty((n, n))
    for i in range(n):
        for j in range(n):
            a, b = t.conditions[t.condition[i], t.condition[j]], t.labels[t.label[i], t.label[j]]
            kernel[i, j] = a * b + (t.noise[i] if i == j else 0.0)
    return kernel


@pytest.mark.parametrize("own", [0.01, 0.0])
@pytest.mark.parametrize("common", COMMON)
def test_conditions_that_share_few_parts_are_solved_as_the_whole_kernel(common, own):
    t = tables(common, own=own)
    system, kernel = factorised(t), written_out(t)
    assert isinstance(system, Structured)
    b = np.random.default_rng(1).normal(size=(len(kernel), 3))
    inverse = np.linalg.inv(kernel)
    np.testing.assert_allclose(system.solve(b), inverse @ b, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(system.solve(kernel[:, 0]), np.eye(len(kernel))[0], atol=1e-6)
    np.testing.assert_allclose(system.diagonal(), np.diag(inverse), rtol=1e-6)
    for chosen in ([3], [0, 39], range(40)):
        at = np.flatnonzero(np.isin(t.condition, chosen))
        block = inverse[np.ix_(at, at)]
        np.testing.assert_allclose(system.block(at), block, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("common", COMMON)
def test_few_conditions_have_the_kernel_written_out(common):
    t = tables(common, n_conditions=6)
    system, kernel = factorised(t), written_out(t)
    assert isinstance(system, Dense)
    np.testing.assert_allclose(t.kernel(), kernel)
    inverse = np.linalg.inv(kernel)
    np.testing.assert_allclose(system.solve(kernel[:, :2]), np.eye(len(kernel))[:, :2], atol=1e-6)
    np.testing.assert_allclose(system.diagonal(), np.diag(inverse), rtol=1e-6)
    at = np.flatnonzero(np.isin(t.condition, [1, 4]))
    np.testing.assert_allclose(system.block(at), inverse[np.ix_(at, at)], rtol=1e-6, atol=1e-6)


def test_conditions_that_are_smoothly_alike_are_not_taken_for_sets():
    """Eigenvalues fall without an end; what is left out of them would weigh as much as the noise."""
    rng = np.random.default_rng(0)
    feature = rng.normal(size=120)
    conditions = np.exp(-np.square(feature[:, None] - feature) / 2)
    label, condition = np.nonzero(np.ones((4, 120), bool))
    z = rng.normal(size=(4, 10))
    labels = 1e6 + z @ z.T / 10 + 0.3 * np.eye(4)
    t = Tables(conditions, labels, condition, label, np.full(480, 0.01))
    kernel = written_out(t)
    change = np.sin(feature)[condition] + 0.1 * rng.normal(size=480)
    across = kernel - 0.01 * np.eye(480)
    expected = across @ np.linalg.solve(kernel, change)
    assert across @ factorised(t).solve(change) == pytest.approx(expected, abs=1e-4)


def test_one_condition_is_no_set():
    t = Tables(np.ones((1, 1)), np.eye(3), np.zeros(3, int), np.arange(3), np.full(3, 0.5))
    assert factorised(t).solve(np.ones(3)) == pytest.approx(np.full(3, 1 / 1.5))
