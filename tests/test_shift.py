"""The ridge on changes of labels, its intervals and novelty, against other regressions and hand computation."""

import numpy as np
import pytest
from scipy import stats
from sklearn.gaussian_process import GaussianProcessRegressor, kernels
from sklearn.linear_model import Ridge as LinearRidge

from trvae_sc.intervals import half_width
from trvae_sc.left_out import Missed
from trvae_sc.shift import Likeness, Profiles, Ridge, changed, log_fold_change, novelty


def ridge_of(profiles, shifts, n_cells, *, is_count=False):
    """Return the ridge on changes between two conditions, with numbers of cells (n_labels, 2)."""
    mean = np.stack([profiles, profiles + shifts], 1)
    names = tuple(f"label_{i}" for i in range(len(profiles)))
    return Ridge(Profiles(mean, np.asarray(n_cells), names, is_count), 0, Likeness.of_itself(1))


def predicted(profile, ridge, label=None):
    return ridge.predict(profile, label) - profile


def labels(n=6, n_genes=400, *, noise=0.2, seed=0):
    """Profiles, and shifts that are the same for all labels but for noise."""
    rng = np.random.default_rng(seed)
    profiles = rng.normal(0, 1, (n, n_genes))
    return profiles, rng.normal(0, 1, n_genes) + noise * rng.normal(0, 1, (n, n_genes))


def cells(n, number=50):
    return np.full((n, 2), number)


# -- the ridge ----------------------------------------------------------------------------------------


def test_log_fold_changes_and_back():
    start, end = np.log1p([[2.0, 0.0, 5.0]]), np.log1p([[4.0, 1.0, 0.0]])
    change = log_fold_change(start, end, is_count=True)
    assert change == pytest.approx(np.log([[4.3 / 2.3, 1.3 / 0.3, 0.3 / 5.3]]))
    assert changed(start, change, is_count=True) == pytest.approx(end)
    assert changed(start, np.full((1, 3), -9.0), is_count=True).min() == 0  # no shares below 0
    assert log_fold_change(start, end, is_count=False) == pytest.approx(end - start)
    assert changed(start, end, is_count=False) == pytest.approx(start + end)


@pytest.mark.parametrize("n_labels", [2, 4, 9])
def test_equal_labels_are_ridge_regression(n_labels):
    rng = np.random.default_rng(n_labels)
    others, shifts = rng.normal(3.0, 1.0, (2, n_labels, 6))
    profile = rng.normal(3.0, 1.0, 6)
    found = predicted(profile, ridge_of(others, shifts, cells(n_labels, 7)))
    spread = np.square(others - others.mean(0)).sum() / n_labels
    linear = LinearRidge(alpha=0.3 * (1 + 30 / 7) * spread).fit(others, shifts)  # fits an intercept
    assert found == pytest.approx(linear.predict(profile[None])[0], abs=1e-4)


def test_labels_that_share_their_control_cells_say_nothing_of_one_that_is_unlike_them():
    """Their profiles differ by rounding alone; the change was any number, up to infinite ones."""
    rng = np.random.default_rng(0)
    shifts = rng.normal(0.0, 1.0, (4, 50))
    profiles = rng.normal(3.0, 1.0, 50) * (1.0 + 1e-15 * rng.normal(0.0, 1.0, (4, 1)))
    found = predicted(rng.normal(3.0, 1.0, 50), ridge_of(profiles, shifts, cells(4)))
    assert found == pytest.approx(shifts.mean(0), abs=1e-5)


def test_labels_of_few_cells_count_less():
    rng = np.random.default_rng(3)
    others, shifts = rng.normal(3.0, 1.0, (2, 5, 6))
    profile = rng.normal(3.0, 1.0, 6)
    n_cells = np.array([[3, 6], [30, 30], [4, 4000], [2000, 8000], [90, 45]])
    harmonic = np.array([4.0, 30.0, 2 * 4 * 4000 / 4004, 3200.0, 60.0])
    weight = harmonic / (harmonic + 30)
    centre = np.average(others, 0, weight)
    alpha = 0.3 * np.average(np.square(others - centre).sum(1), weights=weight)
    linear = LinearRidge(alpha=alpha).fit(others, shifts, sample_weight=weight)
    found = predicted(profile, ridge_of(others, shifts, n_cells))
    assert found == pytest.approx(linear.predict(profile[None])[0], abs=1e-4)


def test_a_label_of_three_cells_does_not_spoil_the_rest():
    """Shifts follow the profile but for one of three cells, which is far off."""
    others = np.array([[-2.0], [-1.0], [1.0], [2.0], [0.5]])
    shifts = np.array([[-2.0], [-1.0], [1.0], [2.0], [50.0]])
    few = np.array([[500, 500]] * 4 + [[3, 3]])
    profile = np.array([1.5])
    assert predicted(profile, ridge_of(others, shifts, few)) == pytest.approx([1.5], abs=1.5)
    assert predicted(profile, ridge_of(others, shifts, cells(5, 500)))[0] > 10


def test_it_is_the_mean_without_contrast():
    shifts = np.array([[1.0, 2.0], [3.0, 6.0]])
    alike = ridge_of(np.ones((2, 2)), shifts, cells(2, 9))
    assert predicted(np.array([5.0, 0.0]), alike) == pytest.approx([2, 4], abs=1e-4)
    alone = ridge_of(np.ones((1, 2)), shifts[:1], cells(1, 9))
    assert predicted(np.zeros(2), alone) == pytest.approx(shifts[0], abs=1e-4)
    others = ridge_of(np.array([[1.0, 0.0], [3.0, 0.0]]), shifts, cells(2, 9))
    for profile in ([2.0, 0.0], [2.0, 99.0]):  # far off where the others do not differ
        assert predicted(np.array(profile), others) == pytest.approx([2, 4], abs=1e-4)


def test_it_is_a_gaussian_process_over_labels_and_conditions():
    """Three conditions in four labels, one of them to be predicted, whose other change was measured."""
    rng = np.random.default_rng(5)
    mean = rng.normal(1.0, 1.0, (4, 3, 6))
    n_cells = rng.integers(5, 90, (4, 3))
    n_cells[3, 2] = 0
    kernel, target = np.array([[1.0, 0.4], [0.4, 1.0]]), np.array([0.4, 1.0])
    likeness = Likeness(np.array([1, 2]), kernel, target)
    ridge = Ridge(Profiles(mean, n_cells, tuple("abcd"), is_count=False), 0, likeness)
    found = ridge.predict(mean[3, 0], 3) - mean[3, 0]

    at = [(label, c) for label in range(4) for c in (1, 2) if n_cells[label, c]]
    n = np.array([stats.hmean([n_cells[label, 0], n_cells[label, c]]) for label, c in at])
    z = mean[:, 0] - np.average([mean[label, 0] for label, _ in at], axis=0, weights=n / (n + 30))
    size = np.average([z[label] @ z[label] for label, _ in at], weights=n / (n + 30))

    def covariance(one, other):
        (a, c), (b, d) = one, other
        of_conditions = 1.0 if c == d else 0.4
        return of_conditions * (1e6 + z[a] @ z[b] / size + 0.3 * (a == b))

    gram = np.array([[covariance(one, other) for other in at] for one in at])
    cross = np.array([covariance((3, 2), other) for other in at])
    process = GaussianProcessRegressor(
        kernels.PairwiseKernel(metric=lambda i, j, gamma: gram[int(i[0]), int(j[0])]),
        alpha=0.3 * 30 / n,
        optimizer=None,
    )
    changes = np.array([mean[label, c] - mean[label, 0] for label, c in at])
    process.fit(np.arange(len(at))[:, None], changes)
    assert found == pytest.approx(cross @ process.alpha_, abs=1e-6)


def test_what_was_measured_of_the_label_itself_is_its_own():
    rng = np.random.default_rng(0)
    profiles, shifts = rng.normal(0, 1, (2, 5, 20))
    own = ridge_of(profiles, shifts, cells(5, 5000))
    assert predicted(profiles[2], own, 2) == pytest.approx(shifts[2], abs=0.02)
    few = cells(5, 5000)
    few[2] = 1
    far = np.abs(predicted(profiles[2], ridge_of(profiles, shifts, few), 2) - shifts[2]).mean()
    assert far > 10 * np.abs(predicted(profiles[2], own, 2) - shifts[2]).mean()


def test_the_share_of_a_change_that_was_measured():
    ridge = ridge_of(np.ones((3, 4)), np.ones((3, 4)), [[30, 30], [90, 90], [9, 0]])
    assert [ridge.measured(label) for label in (None, 2)] == [0, 0]
    assert [ridge.measured(label) for label in (0, 1)] == pytest.approx([0.5, 0.75])
    mean, n_cells = np.zeros((1, 3, 4)), np.full((1, 3), 30)  # two others tell of it, by hand
    likeness = Likeness(
        np.array([1, 2]), np.array([[1.0, 0.2], [0.2, 1.0]]), np.array([0.8, 0.6]), 1.2
    )
    ridge = Ridge(Profiles(mean, n_cells, ("x",), is_count=False), 0, likeness)
    gram = np.linalg.inv(0.3 * np.array([[2.0, 0.2], [0.2, 2.0]]))
    expected = np.array([0.24, 0.18]) @ gram @ np.array([0.24, 0.18]) / (0.3 * 1.2)
    assert ridge.measured(0) == pytest.approx(expected)


@pytest.mark.parametrize("is_count", [True, False])
def test_residuals_are_those_of_labels_predicted_by_the_others(is_count):
    """Of a label that was left out only its profile is known, which the centre does not need."""
    rng = np.random.default_rng(1)
    profiles, shifts = rng.uniform(1, 2, (4, 30)), rng.normal(0, 0.4, (4, 30))
    n_cells = rng.integers(10, 90, (4, 2))
    missed, n = ridge_of(profiles, shifts, n_cells, is_count=is_count).left_out()
    assert n == pytest.approx(stats.hmean(n_cells, axis=1))
    without = n_cells.copy()
    without[2, 1] = 0
    others = ridge_of(profiles, shifts, without, is_count=is_count)
    every = ridge_of(profiles, shifts, n_cells, is_count=is_count)
    others.centre, others.size = every.centre, every.size
    others.z = every.z
    assert others.groups[:, 0].tolist() == [0, 1, 3]
    assert missed[2] == pytest.approx(shifts[2] - predicted(profiles[2], others), abs=1e-6)


# -- intervals ----------------------------------------------------------------------------------------


def test_half_width_equals_a_hand_computation():
    residuals = np.array([[-1.5, -1.5], [0.0, -1.5], [1.5, 3.0]])
    squares = residuals**2
    scale = np.sqrt((squares.sum(0) + squares.mean()) / 4)
    scores = []
    for i in range(3):
        rest = np.delete(squares, i, 0)
        scores.append(np.abs(residuals[i]) / np.sqrt((rest.sum(0) + rest.mean()) / 3))
    expected = np.quantile(scores, 0.8, method="hazen") * scale
    assert half_width(residuals, np.full(3, 50.0), level=0.8) == pytest.approx(expected)


def test_genes_that_no_cell_shows_change_no_interval_or_p_value_of_others():
    rng = np.random.default_rng(0)
    missed, predicted = rng.normal(0, 0.3, (2, 6, 50))
    n, none, change = np.full(6, 80.0), np.zeros((6, 400)), rng.normal(0, 0.3, 50)
    more = np.hstack([missed, none]), np.hstack([predicted, none])
    alone = Missed(missed, predicted, n, np.arange(6))
    beside = Missed(*more, n, np.arange(6))
    np.testing.assert_allclose(beside.half_width[:50], alone.half_width)
    p = beside.p_values(np.append(change, np.zeros(400)))
    np.testing.assert_allclose(p[:50], alone.p_values(change))
    np.testing.assert_array_equal(p[50:], 1.0)


def test_half_width_with_weights_equals_a_hand_computation():
    """Labels count 1, 1 and 2/17: 60/360 and 6/306."""
    residuals = np.array([-1.4, 0.4, 2.5])
    squares, weight = residuals**2, np.array([1.0, 1.0, 2 / 17])
    mean = squares @ weight / weight.sum()
    scores = []
    for i in range(3):
        w, s = np.delete(weight, i), np.delete(squares, i)
        scores.append(np.abs(residuals[i]) / np.sqrt((w @ s + w @ s / w.sum()) / (w.sum() + 1)))
    order = np.argsort(scores)
    at = np.cumsum(weight[order]) - weight[order] / 2
    scale = np.sqrt((squares @ weight + mean) / (weight.sum() + 1))
    expected = np.interp(0.6 * weight.sum(), at, np.sort(scores)) * scale
    found = half_width(residuals[:, None], np.array([60.0, 60.0, 6.0]), level=0.6)
    assert found == pytest.approx([expected])


def test_a_label_of_three_cells_does_not_widen_the_intervals():
    profiles, shifts = labels(6)
    noisy = shifts.copy()
    noisy[5] += np.random.default_rng(1).normal(0, 5, 400)
    n_cells = cells(6, 500)
    n_cells[5] = 3
    few, many = (
        half_width(*ridge_of(profiles, noisy, n).left_out()).mean()
        for n in (n_cells, cells(6, 500))
    )
    clean = half_width(*ridge_of(profiles[:5], shifts[:5], cells(5, 500)).left_out()).mean()
    assert few < 2 * clean < many / 2


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_intervals_cover_a_new_label_as_often_as_they_say(level):
    covered = []
    for seed in range(20):
        profiles, shifts = labels(7, seed=seed)
        ridge = ridge_of(profiles[1:], shifts[1:], cells(6))
        half = half_width(*ridge.left_out(), level=level)
        covered.append(np.abs(shifts[0] - predicted(profiles[0], ridge)) <= half)
    assert np.mean(covered) == pytest.approx(level, abs=0.03)


def test_noisier_genes_get_wider_intervals():
    rng = np.random.default_rng(0)
    noise = np.repeat([0.1, 1.0], 200)
    profiles = rng.normal(0, 1, (6, 400))
    shifts = rng.normal(0, 1, (6, 400)) * noise
    half = half_width(*ridge_of(profiles, shifts, cells(6)).left_out())
    ratio = np.median(half[200:]) / np.median(half[:200])
    assert ratio > 2
    assert stats.mannwhitneyu(half[200:], half[:200], alternative="greater").pvalue < 1e-20


def test_two_labels_give_no_interval():
    assert half_width(np.ones((2, 5)), np.ones(2)) is None


def test_labels_that_respond_alike_give_an_interval_of_no_width():
    profiles, shifts = labels(4)
    half = half_width(*ridge_of(profiles, np.ones_like(shifts), cells(4)).left_out())
    assert half == pytest.approx(0, abs=1e-4)


def test_novelty_is_the_nearest_distance_over_the_typical_one():
    others = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])  # nearest: 1, 1, 2
    assert novelty(np.array([4.0, 0.0]), others) == pytest.approx(3.0)
    assert novelty(others[1], others) == 0
    assert np.isnan(novelty(others[0], others[:1]))
    same = np.ones((3, 2)) * (1.0 + 1e-15 * np.arange(3)[:, None])
    assert (novelty(np.ones(2), same), novelty(others[1], same)) == (0.0, np.inf)
