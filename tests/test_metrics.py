import numpy as np
import pytest
import torch
from scipy import sparse, stats
from scipy.spatial.distance import cdist, pdist

import trvae_sc.mmd
from trvae_sc import metrics
from trvae_sc.errors import InputError
from trvae_sc.metrics import METRICS

N_GENES = 30
CELL_METRICS = [name for name in METRICS if name != "interval_coverage"]
OF_TWO_CELLS = ["r2_var", "variance_ratio", "energy_distance", "mmd", "de_overlap"]


def cells(n=60, effect=0.0, seed=0):
    """Log-normalised-like cells; gene j is multiplied by exp(effect_j)."""
    rates = np.linspace(0.1, 3.0, N_GENES) * np.exp(effect)
    return np.log1p(np.random.default_rng(seed).poisson(rates, (n, N_GENES))).astype(np.float32)


def data(convert=np.asarray, **changes):
    """Return what `METRICS` need; the prediction is half the effect."""
    effect = np.random.default_rng(9).normal(0, 0.8, N_GENES)
    given = {
        "real": convert(cells(60, effect, seed=1)),
        "predicted": convert(cells(70, effect / 2, seed=3)),
        "control": convert(cells(50)),
        "shift": np.linspace(0, 0.3, N_GENES),
        "target": "a",
        **{"real_change": [0.0], "lower": [-1.0], "upper": [1.0]},
    } | changes
    targets = {"a": given["real"], "b": convert(cells(40, -effect, seed=2)), "c": given["control"]}
    return {"real_by_target": targets} | given


def score(name, given, **options):
    needs = {argument: given[key] for argument, key in METRICS[name].needs.items()}
    return METRICS[name].function(**needs, **options)


@pytest.mark.parametrize("convert", [np.asarray, sparse.csr_matrix, sparse.coo_array])
def test_mean_and_variance_equal_numpy_in_any_format(convert):
    x, wide = convert(cells()), cells().astype(float)
    np.testing.assert_allclose(metrics.mean(x), wide.mean(0), rtol=1e-12)
    np.testing.assert_allclose(metrics.variance(x), wide.var(0, ddof=1), rtol=1e-12)


def test_duplicate_entries_are_summed_and_the_input_is_kept():
    x = sparse.csr_matrix(([1.0, 2.0, 4.0], [1, 1, 0], [0, 2, 3]), shape=(2, 2))  # [[0, 3], [4, 0]]
    np.testing.assert_allclose([metrics.mean(x), metrics.variance(x)], [[2.0, 1.5], [8.0, 4.5]])
    np.testing.assert_array_equal(x.data, [1.0, 2.0, 4.0])


def test_float32_does_not_limit_the_mean_and_a_constant_has_no_variance():
    x = np.full((100_000, 1), 0.1, dtype=np.float32)
    for cells_ in (x, sparse.csr_matrix(x)):
        np.testing.assert_allclose(metrics.mean(cells_), float(x[0, 0]), rtol=1e-10)
        assert metrics.variance(cells_) == 0.0


def test_welch_t_equals_scipy_and_is_infinite_for_different_constants():
    x, y = cells(20).astype(float), cells(31, 0.5, seed=1).astype(float)
    expected = stats.ttest_ind(x, y, equal_var=False).statistic
    np.testing.assert_allclose(metrics.welch_t(x, y), expected, rtol=1e-10)
    values = metrics.welch_t([[0.1, 0.1, 0.2]] * 3, [[0.1, 0.2, 0.1]] * 7)
    np.testing.assert_array_equal(values, [0.0, -np.inf, np.inf])


def test_top_genes_breaks_ties_by_difference_then_by_index():
    control = np.zeros((2, 5))
    real = np.array([[0.0, 1.0, -3.0, 1.0, 1.0], [0.0, 1.0, -3.0, 1.0, 3.0]])
    # |t|: 0, inf, inf, inf, 2 (mean 2, variance 2, error 1); differences of the tied: 1, 3, 1
    assert metrics.top_genes(real, control, 4).tolist() == [2, 1, 3, 4]
    assert metrics.top_genes(real, control).tolist() == [2, 1, 3, 4, 0]


@pytest.mark.parametrize("make", [np.asarray, sparse.csr_matrix], ids=["dense", "sparse"])
def test_ties_are_those_of_the_numbers_not_of_their_rounding(make):
    rng = np.random.default_rng(0)
    value = np.log1p(rng.permutation(40) // 2 + 1.0)  # each is that of two genes
    real = np.zeros((31, 40))
    real[rng.integers(0, 31, 40), np.arange(40)] = value  # in one cell: t is 1 for every gene
    expected = np.lexsort((np.arange(40), -value))
    for cells in (np.arange(31), rng.permutation(31)):
        found = metrics.top_genes(make(real[cells]), make(np.zeros((17, 40))), 40)
        np.testing.assert_array_equal(found, expected)


def test_effect_r2_by_hand():
    predicted = [[3, 4]], [[0, 0]], [[3, 0]], [[-3, -4]]
    values = [metrics.effect_r2([[3.0, 4.0]], p, [[0.0, 0.0]]) for p in predicted]
    np.testing.assert_allclose(values, [1.0, 0.0, 1 - 16 / 25, 1 - 100 / 25], atol=1e-12)


def test_effect_correlations_equal_scipy():
    given = data(predicted=data()["real_by_target"]["b"])  # the opposite effect, r < 0
    real, predicted, control = (given[k].mean(0, dtype=float) for k in METRICS["effect_r2"].needs)
    for name, shift in (("effect_pearson", 0.0), ("specific_pearson", given["shift"])):
        expected = stats.pearsonr(predicted - control - shift, real - control - shift).statistic
        assert score(name, given) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_baselines_score_zero_by_construction(dtype):
    """A residual of 3e-8 of the means, left by rounding to float32, is no effect."""
    given = data()
    for name in ("effect_r2", "effect_pearson", "de_overlap", "direction_accuracy"):
        unchanged = data(predicted=sparse.csr_matrix(given["control"]))
        assert score(name, unchanged) == pytest.approx(0.0, abs=1e-12)
    shifted = (given["control"] + given["shift"]).astype(dtype)
    assert score("specific_pearson", data(predicted=shifted)) == 0.0
    assert score("effect_pearson", data(predicted=given["control"] + dtype(0.5))) == 0.0


def test_r2_of_means_and_variances_equal_scipy():
    given = data()
    real, predicted = given["real"].astype(float), given["predicted"].astype(float)
    for name, per_gene in (("r2_mean", np.mean), ("r2_var", np.var)):
        expected = stats.linregress(per_gene(predicted, 0), per_gene(real, 0)).rvalue ** 2
        assert score(name, given) == pytest.approx(expected, rel=1e-10)
    uniform = data(predicted=np.tile(real.mean(0), (5, 1)))
    assert [score("r2_mean", uniform), score("r2_var", uniform)] == pytest.approx([1.0, 0.0])


def test_variance_ratio_is_the_median_over_genes_that_vary():
    real = np.array([[0.0, 0.0, 0.0, 7.0], [2.0, 2.0, 2.0, 7.0]])  # variances 2, 2, 2, 0
    predicted = np.array([[0.0, 0.0, 0.0, 0.0], [1.0, 2.0, 4.0, 9.0]])  # 0.5, 2, 8, 40.5
    assert metrics.variance_ratio(real, predicted) == pytest.approx(1.0)
    assert metrics.variance_ratio(real, 3 * real) == pytest.approx(9.0)


def test_energy_distance_equals_scipy():
    x, y = cells(25).astype(float), cells(35, 0.5, seed=1).astype(float)
    expected = 2 * cdist(x, y).mean() - pdist(x).mean() - pdist(y).mean()
    assert metrics.energy_distance(x, y) == pytest.approx(expected, rel=1e-9)
    # scipy: one dimension, square root, and n of the n^2 pairs within a group have distance 0
    x, y = x[:, -1:], y[:, -1:]
    expected = stats.energy_distance(x[:, 0], y[:, 0]) ** 2
    expected -= pdist(x).mean() / 25 + pdist(y).mean() / 35
    assert metrics.energy_distance(x, y) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("delta", [0.0, 0.5, 2.0])
def test_energy_distance_of_shifted_normals_has_its_closed_form(delta):
    x = stats.norm.ppf((np.arange(800) + 0.5) / 800)[:, None]
    # x - y ~ N(delta, 2), a folded normal; E|x - x'| = 2 / sqrt(pi)
    expected = 2 * stats.foldnorm.mean(delta / 2**0.5, scale=2**0.5) - 4 / np.pi**0.5
    assert metrics.energy_distance(x, x + delta, max_cells=800) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("name", ["energy_distance", "mmd"])
def test_distances_are_unbiased_and_subsample_by_seed(name):
    function = METRICS[name].function
    x = np.random.default_rng(0).normal(size=(100, 20, 5))
    values = np.array([function(a[:10], a[10:]) for a in x])
    assert values.min() < 0
    assert abs(values.mean()) < 4 * values.std() / np.sqrt(len(values))
    x, y = cells(80).astype(float), cells(90, 0.3, seed=1).astype(float)
    for pair in ((y, x), (x + 1e4, y + 1e4)):
        assert function(x, y) == pytest.approx(function(*pair), rel=1e-9)
    first = function(x, y, max_cells=40, seed=1)
    assert function(x, y, max_cells=40, seed=1) == first != function(x, y, max_cells=40, seed=2)
    assert function(x, y, max_cells=90, seed=1) == function(x, y, seed=2)
    without_one = [function(x, np.delete(y, i, 0)) for i in range(90)]
    assert np.isclose(function(x, y, max_cells=89), without_one, rtol=1e-9).any()
    with pytest.raises(InputError, match="`max_cells` is 1"):
        function(x, y, max_cells=1)


def test_mmd_equals_the_torch_implementation_and_a_value_by_hand():
    # 4005 pairs, an odd number, of which torch and numpy take the same median
    x, y = cells(40).astype(float), cells(50, 0.5, seed=1).astype(float)
    pooled, groups = torch.tensor(np.vstack([x, y])), torch.tensor([0] * 40 + [1] * 50)
    assert metrics.mmd(x, y) == pytest.approx(trvae_sc.mmd.mmd(pooled, groups).item(), rel=1e-9)
    # pooled squared distances 0, 0, 1, 1, 1, 1: median 1; E k(x, x') = E k(y, y') = 1
    k = np.exp([-4, -2, -1, -0.5, -0.25]).mean()
    assert metrics.mmd([[0.0], [0.0]], [[1.0], [1.0]]) == pytest.approx(2 - 2 * k, rel=1e-12)
    assert metrics.mmd(x[[0] * 2], y[[0] * 5]) == 2.0  # median 0: k is 1 for equal cells, else 0


def test_wasserstein_equals_scipy():
    x, y = (np.hstack([a, a - 1]) for a in (cells(25), cells(35, 0.5, seed=1)))
    expected = np.mean([stats.wasserstein_distance(*pair) for pair in zip(x.T, y.T, strict=True)])
    assert metrics.wasserstein(x, y) == pytest.approx(expected, rel=1e-9)
    assert metrics.wasserstein(y, sparse.csr_matrix(x)) == pytest.approx(expected, rel=1e-9)


def test_overlap_and_direction_by_hand():
    rows = [4, -3, 2, 0, 0], [1, 2, 0, -9, 0], [0, 0, 0, 0, 0]
    real, predicted, control = (np.add(row, [[-0.5], [0.5]]) for row in rows)  # means, two cells
    # real order 0, 1, 2 (then no change); predicted order 3, 1, 0 (then no change)
    values = [metrics.de_overlap(real, predicted, control, n=n) for n in (1, 2, 5)]
    assert values == pytest.approx([0, 1 / 2, 2 / 3])
    # signs + - + against + + 0
    assert metrics.direction_accuracy(real, predicted, control, n=5) == pytest.approx(1 / 3)
    assert metrics.direction_accuracy(real, predicted[:1] + 0.5, control, n=2) == 1 / 2


def test_target_rank_and_interval_coverage_by_hand():
    targets = {"a": [[0.0]], "b": [[1.0]], "c": [[1.6]], "d": [[3.9]]}
    values = [metrics.target_rank(targets, [[v]], "a") for v in (0.1, 0.5, 0.6, 0.9, 9.0)]
    np.testing.assert_allclose(values, [1, 5 / 6, 2 / 3, 1 / 3, 0], atol=1e-12)
    assert metrics.interval_coverage([0, 1, 2, 3], [0, 0, 2.1, 0], [1, 1, 3, 2]) == 0.5


@pytest.mark.parametrize("name", CELL_METRICS)
def test_every_metric_in_any_format_and_order(name):
    given, metric = data(), METRICS[name]
    options = {"n": 8} if name == "de_overlap" else {}
    before = {k: given[k].copy() for k in METRICS["specific_pearson"].needs}
    value = score(name, given, **options)
    assert type(value) is float
    assert metric.range[0] <= value <= metric.range[1]
    for convert in (sparse.csr_matrix, sparse.csc_array, lambda a: a[::-1]):
        assert score(name, data(convert), **options) == pytest.approx(value, rel=1e-6)
    perfect = score(name, data(predicted=given["real"]), **options)
    tolerance = 0.2 if name in ("energy_distance", "mmd") else 1e-9  # pairs of one cell, twice
    assert perfect == pytest.approx(metric.best, abs=tolerance)
    assert abs(perfect - metric.best) < abs(value - metric.best)
    assert all(np.array_equal(given[key], array) for key, array in before.items())


@pytest.mark.parametrize("name", CELL_METRICS)
def test_every_metric_names_what_it_cannot_use(name):
    x, argument = cells(), "y" if "y" in METRICS[name].needs else "predicted"
    for broken in (x[:, :9], x[0], x[:0], x.astype(str)):
        with pytest.raises(InputError, match=f"`{argument}` has (9 genes|shape)"):
            score(name, data(predicted=broken))
    for convert, bad in ((np.asarray, np.nan), (sparse.csr_matrix, np.nan), (np.asarray, np.inf)):
        x[3, 4] = bad
        with pytest.raises(InputError, match=f"`{argument}` has 1 NaN or infinite"):
            score(name, data(predicted=convert(x)))


@pytest.mark.parametrize("name", [name for name in CELL_METRICS if name not in OF_TWO_CELLS])
def test_one_predicted_cell_is_enough_for_means(name):
    assert np.isfinite(score(name, data(predicted=cells(1))))


CONSTANT = {"real": np.ones((3, N_GENES))}
ERRORS = [
    *((name, {"predicted": cells(1)}, "at least 2 cell") for name in OF_TWO_CELLS),
    ("effect_r2", {"real": cells(50)}, "equal means"),
    ("effect_pearson", {"real": cells(50) + 1}, "equal in all genes"),
    ("specific_pearson", {"shift": np.zeros(3)}, "`shift` has shape"),
    ("de_overlap", {"real": cells(50)}, "equal means"),
    ("r2_mean", CONSTANT, "equal in all genes"),
    ("variance_ratio", CONSTANT, "No gene of `real` varies"),
    ("target_rank", {"target": "d"}, r"Unknown `target` 'd'.*'a', 'b', 'c'"),
    ("target_rank", {"real_by_target": {"a": cells(), "b": cells()}}, "2 targets"),
    ("interval_coverage", {"lower": [2.0]}, "above `upper` in 1"),
    ("interval_coverage", {"lower": [0.0, 0.0]}, "`lower` has shape"),
    ("interval_coverage", {"upper": [np.nan]}, "`upper` has 1 NaN"),
]


@pytest.mark.parametrize(("name", "changes", "message"), ERRORS)
def test_what_is_not_defined_is_an_error(name, changes, message):
    with pytest.raises(InputError, match=message):
        score(name, data(**changes))
