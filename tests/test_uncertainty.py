"""Intervals and novelty, against hand computation and known coverage."""

import numpy as np
import pytest
from scipy import stats

from trvae_sc.expression import Pairs, ridge_shift
from trvae_sc.uncertainty import half_width, left_out_residuals, novelty


def labels(n=6, n_genes=400, *, noise=0.2, seed=0):
    """Profiles, and shifts that are the same for all labels but for noise."""
    rng = np.random.default_rng(seed)
    profiles = rng.normal(0, 1, (n, n_genes))
    shifts = rng.normal(0, 1, n_genes) + noise * rng.normal(0, 1, (n, n_genes))
    return Pairs(profiles, shifts, np.full((n, 2), 50))


def test_residuals_are_those_of_labels_predicted_by_the_others():
    pairs = labels(4, 30)
    others = Pairs(*(values[[0, 1, 3]] for values in pairs[:3]))
    expected = pairs.shifts[2] - ridge_shift(pairs.profiles[2], others)
    assert left_out_residuals(pairs)[2] == pytest.approx(expected)


def test_half_width_equals_a_hand_computation():
    profiles = np.zeros((3, 2))  # no difference between labels: the mean of the others predicts
    shifts = np.array([[0.0, 3.0], [1.0, 3.0], [2.0, 6.0]])
    residuals = np.array([[-1.5, -1.5], [0.0, -1.5], [1.5, 3.0]])
    squares = residuals**2
    scale = np.sqrt((squares.sum(0) + squares.mean()) / 4)
    scores = []
    for i in range(3):
        rest = np.delete(squares, i, 0)
        scores.append(np.abs(residuals[i]) / np.sqrt((rest.sum(0) + rest.mean()) / 3))
    expected = np.quantile(scores, 0.8, method="hazen") * scale
    pairs = Pairs(profiles, shifts, np.full((3, 2), 50))
    assert half_width(pairs, level=0.8) == pytest.approx(expected)


def test_half_width_with_weights_equals_a_hand_computation():
    """Labels predict by 1, 1 and 1/4 (weighted means: profiles do not differ), and count 1, 1 and 2/17."""
    n_cells = np.array([[60, 60], [60, 60], [6, 6]])  # 60/90 and 6/36; 60/360 and 6/306
    shifts = np.array([[0.0], [1.0], [3.0]])
    residuals = np.array([0 - (1 + 0.75) / 1.25, 1 - (0 + 0.75) / 1.25, 3 - 0.5])
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
    found = half_width(Pairs(np.zeros((3, 1)), shifts, n_cells), level=0.6)
    assert found == pytest.approx([expected])


def test_a_label_of_three_cells_does_not_widen_the_intervals():
    pairs = labels(6)
    noisy = pairs.shifts.copy()
    noisy[5] += np.random.default_rng(1).normal(0, 5, 400)
    n_cells = np.full((6, 2), 500)
    n_cells[5] = 3
    few, many = (
        half_width(Pairs(pairs.profiles, noisy, n)).mean() for n in (n_cells, np.full((6, 2), 500))
    )
    clean = half_width(pairs.without(5)).mean()
    assert few < 2 * clean < many / 2


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_intervals_cover_a_new_label_as_often_as_they_say(level):
    covered = []
    for seed in range(20):
        pairs = labels(7, seed=seed)
        others = pairs.without(0)
        half = half_width(others, level=level)
        predicted = ridge_shift(pairs.profiles[0], others)
        covered.append(np.abs(pairs.shifts[0] - predicted) <= half)
    assert np.mean(covered) == pytest.approx(level, abs=0.03)


def test_noisier_genes_get_wider_intervals():
    rng = np.random.default_rng(0)
    noise = np.repeat([0.1, 1.0], 200)
    profiles = rng.normal(0, 1, (6, 400))
    shifts = rng.normal(0, 1, (6, 400)) * noise
    half = half_width(Pairs(profiles, shifts, np.full((6, 2), 50)))
    ratio = np.median(half[200:]) / np.median(half[:200])
    assert ratio > 2
    assert stats.mannwhitneyu(half[200:], half[:200], alternative="greater").pvalue < 1e-20


def test_two_labels_give_no_interval():
    assert half_width(labels(2)) is None


def test_labels_that_respond_alike_give_an_interval_of_no_width():
    pairs = labels(4)
    alike = pairs._replace(shifts=np.ones_like(pairs.shifts))
    assert half_width(alike) == pytest.approx(0, abs=1e-9)


def test_novelty_is_the_nearest_distance_over_the_typical_one():
    others = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])  # nearest: 1, 1, 2
    assert novelty(np.array([4.0, 0.0]), others) == pytest.approx(3.0)
    assert novelty(others[1], others) == 0
    assert np.isnan(novelty(others[0], others[:1]))
