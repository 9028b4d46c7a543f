from functools import partial
from pathlib import Path
from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse, stats
from sklearn.linear_model import Ridge as LinearRidge

from trvae_sc import TRVAE, baselines
from trvae_sc.errors import InputError
from trvae_sc.intervals import half_width
from trvae_sc.model import _write
from trvae_sc.model._counts import Draws, draw_counts, shared_gain, transport_counts
from trvae_sc.model._decode import decoded_batches, expected_log
from trvae_sc.module import expected_values
from trvae_sc.shift import Likeness, Profiles, Ridge

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def trained(fit, make_adata):
    """Return a model that never saw NK cells stimulated, and all cells."""
    adata = make_adata()
    hidden = (adata.obs["cell_type"] == "NK") & (adata.obs["condition"] == "stimulated")
    return fit(adata[~hidden].copy()), adata


# -- counts ---------------------------------------------------------------------------------------


def test_drawn_counts_have_the_negative_binomial_distribution():
    theta, mean = 0.7, 1.5
    drawn = draw_counts(np.full((200, 500), mean), np.array([[theta]]), np.random.default_rng(0))
    observed = np.bincount(drawn.toarray().astype(int).ravel(), minlength=60)[:60]
    expected = stats.nbinom.pmf(np.arange(60), theta, theta / (theta + mean)) * drawn.shape[0] * 500
    keep = expected > 5
    assert (
        stats.chisquare(
            observed[keep], expected[keep] * observed[keep].sum() / expected[keep].sum()
        ).pvalue
        > 0.001
    )


def test_drawn_counts_with_zero_inflation_have_its_distribution():
    """The mean is that of all, those set to zero among them."""
    theta, mean, spared = 0.7, 1.5, 0.4
    shape, k = (200, 500), np.arange(80)
    drawn = draw_counts(
        np.full(shape, mean),
        np.array([[theta]]),
        np.random.default_rng(0),
        spared=np.full(shape, spared),
    )
    p = spared * stats.nbinom.pmf(k, theta, theta / (theta + mean / spared)) + (k == 0) * (
        1 - spared
    )
    observed, expected = np.bincount(drawn.toarray().astype(int).ravel(), minlength=80), p * 1e5
    keep = expected > 5
    rescaled = expected[keep] * observed[:80][keep].sum() / expected[keep].sum()
    assert stats.chisquare(observed[:80][keep], rescaled).pvalue > 0.001


@pytest.mark.parametrize("mean", [0.01, 3.0, 5000.0])
@pytest.mark.parametrize("theta", [0.2, 10.0, None])
def test_drawn_counts_have_the_right_mean_and_variance(mean, theta):
    shape = (40, 500)
    rows = None if theta is None else np.array([[theta]])
    drawn = draw_counts(np.full(shape, mean), rows, np.random.default_rng(1)).toarray()
    variance = mean + (0 if theta is None else mean**2 / theta)
    standard_error = np.sqrt(variance / drawn.size)
    assert abs(drawn.mean() - mean) < 5 * standard_error
    assert drawn.var() == pytest.approx(variance, rel=0.35 if theta == 0.2 else 0.2)
    assert (drawn == np.floor(drawn)).all()


def test_transport_thins_where_the_rate_falls_and_adds_where_it_rises():
    n = 4000
    counts = sparse.csr_matrix(np.tile([10.0, 4.0, 0.0, 7.0], (n, 1)))
    source = np.tile([0.5, 0.2, 0.0, 0.3], (n, 1))
    target = np.tile([0.1, 0.2, 0.4, 0.6], (n, 1))
    total, theta = np.full((n, 1), 20.0), np.array([[5.0]])
    ratio = target / np.maximum(source, 1e-9)
    gain = np.maximum(target - source, 0) * total
    moved = transport_counts(counts, ratio, gain, theta, Draws(0)).toarray()
    # kept with probability 0.2: binomial(10, 0.2)
    assert moved[:, 0].mean() == pytest.approx(2.0, abs=0.1)
    assert moved[:, 0].var() == pytest.approx(1.6, rel=0.1)
    # nothing changes
    assert (moved[:, 1] == 4).all()
    # added to nothing: NB(20 * 0.4, 5)
    assert moved[:, 2].mean() == pytest.approx(8.0, abs=0.3)
    assert moved[:, 2].var() == pytest.approx(8 + 64 / 5, rel=0.1)
    # added to what is there: 7 + NB(20 * 0.3, 5)
    assert moved[:, 3].min() >= 7
    assert moved[:, 3].mean() == pytest.approx(13.0, abs=0.3)


def test_transport_to_the_same_rates_changes_nothing():
    counts = sparse.random_array((50, 30), density=0.3, rng=np.random.default_rng(0), format="csr")
    counts.data = np.ceil(counts.data * 5)
    moved = transport_counts(counts, np.ones((50, 30)), np.zeros((50, 30)), None, Draws(0))
    assert (moved != counts).nnz == 0


def test_added_counts_are_half_a_cells_own_gain_and_half_its_groups():
    change = np.array([[0.4, -0.2, 0.3], [0.0, 0.6, -0.9]])
    mean = np.array([0.2, 0.2, -0.3])
    assert shared_gain(change, mean) == pytest.approx(np.array([[0.3, 0, 0], [0.1, 0.4, 0]]))
    assert (shared_gain(change, mean).mean(0)[:2] >= mean[:2] - 1e-12).all()
    assert (shared_gain(change, None) == np.maximum(change, 0)).all()


# -- the change ---------------------------------------------------------------------------------------


def rates(model, adata, rows, condition):
    """Return decoded shares of cells under a condition, at the posterior mean."""
    (tensors,) = model._make_data_loader(model._validate_anndata(adata), rows, len(rows))
    z = model.module.encode(tensors).loc
    return expected_values(model.module, tensors, z, model.trained.features(condition)).numpy()


@pytest.mark.parametrize("weight", [0.5, 0.0, 1.0])
def test_a_label_keeps_its_level_and_network_and_ridge_share_its_change(trained, weight):
    """Ridge regression on log fold changes, by sklearn; B and T were measured under both."""
    model, adata = trained
    before, model.module.context_weight = model.module.context_weight, weight
    nk = (adata.obs["cell_type"] == "NK") & (adata.obs["condition"] == "control")
    rows, kappa = np.flatnonzero(nk), model.module.kappa.item()
    shares = adata.X.toarray() / adata.obs["n_counts"].to_numpy()[:, None]
    predicted = model.predict(adata, target="stimulated", labels="NK", output="mean")
    model.module.context_weight = before

    def f(cells):
        return np.log1p(kappa * cells.mean(0))

    own = f(shares[rows])
    network = np.subtract(*(f(rates(model, adata, rows, c)) for c in ("stimulated", "control")))
    start, end = (
        [
            f(shares[((adata.obs["cell_type"] == lab) & (adata.obs["condition"] == c)).to_numpy()])
            for lab in ("B", "T")
        ]
        for c in ("control", "stimulated")
    )
    start, end = np.array(start), np.array(end)
    folds = np.log((np.expm1(end) + 0.3) / (np.expm1(start) + 0.3))
    centred = start - start.mean(0)  # labels of as many cells, 20 each
    alpha = 0.3 * (1 + 30 / 20) * np.square(centred).sum(1).mean()
    fold = LinearRidge(alpha=alpha).fit(start, folds).predict(own[None])[0]
    ridge = np.log1p(np.maximum((np.expm1(own) + 0.3) * np.exp(fold) - 0.3, 0)) - own
    expected = np.maximum(own + (1 - weight) * network + weight * ridge, 0)
    assert predicted.var["source_mean"].to_numpy() == pytest.approx(own, abs=1e-4)
    assert predicted.var["predicted_mean"].to_numpy() == pytest.approx(expected, abs=2e-4)
    assert np.log1p(np.expm1(predicted.X.astype(float)).mean(0)) == pytest.approx(
        expected, abs=2e-4
    )


@pytest.mark.parametrize("output", ["counts", "delta", "mean"])
def test_a_prediction_depends_on_the_cell_alone(trained, output):
    model, adata = trained
    control = adata[adata.obs["condition"] == "control"].copy()
    every = model.predict(control, target="stimulated", output=output)
    order = np.random.default_rng(0).permutation(control.n_obs)
    shuffled = model.predict(control[order].copy(), target="stimulated", output=output)
    if output != "counts":  # draws follow the order of the rows
        assert np.array_equal(shuffled.X, every.X[order])
        for n in (1, 10):
            some = model.predict(control[:n].copy(), target="stimulated", output=output)
            assert np.array_equal(some.X, every.X[:n])
    for batch_size in (1, 7, 1000):
        cut = model.predict(control, target="stimulated", output=output, batch_size=batch_size)
        assert abs(cut.X - every.X).max() == 0
    one, ten = (
        model.predict(control, target="stimulated", labels="B", indices=np.arange(n)).var
        for n in (3, 30)
    )
    pd.testing.assert_frame_equal(one, ten)


def test_cells_of_a_label_that_training_lacks_have_their_own_level(trained):
    model, adata = trained
    new = adata[(adata.obs["condition"] == "control") & (adata.obs["cell_type"] == "NK")].copy()
    new.obs["cell_type"] = "new"
    predicted = model.predict(new, target="stimulated", output="mean")
    kappa = model.module.kappa.item()
    shares = new.X.toarray() / new.obs["n_counts"].to_numpy()[:, None]
    assert predicted.var["source_mean"].to_numpy() == pytest.approx(
        np.log1p(kappa * shares.mean(0)), abs=1e-5
    )
    known = model.predict(adata, target="stimulated", labels="NK", output="mean")
    assert pytest.approx(known.X, abs=1e-4) == predicted.X
    notes = predicted.uns["trvae_sc"]["notes"]
    assert any("Training has no cells of new under control" in note for note in notes)
    assert not any("Training has no cells" in note for note in known.uns["trvae_sc"]["notes"])
    shuffled = model.predict(new[::-1].copy(), target="stimulated", output="mean")
    assert shuffled.X[::-1] == pytest.approx(predicted.X, abs=1e-5)


def test_a_label_of_few_cells_says_so(fit, make_adata):
    adata = make_adata()
    of_nk = (adata.obs["cell_type"] == "NK").to_numpy()
    stimulated = (adata.obs["condition"] == "stimulated").to_numpy()
    start = np.flatnonzero(of_nk & ~stimulated)
    keep = ~of_nk
    keep[start[:3]] = True
    cells = adata[keep].copy()
    for predicted in (
        fit(cells).predict(target="stimulated", labels="NK"),
        baselines.predict(
            cells,
            "stimulated",
            method="mean_shift",
            labels="NK",
            condition_key="condition",
            labels_key="cell_type",
        ),
    ):
        notes = predicted.uns["trvae_sc"]["notes"]
        assert any("few cells to start from, 3 of NK under control:" in note for note in notes)
    notes = fit(adata).predict(target="stimulated", labels="NK").uns["trvae_sc"]["notes"]
    assert not any("few cells" in note for note in notes)


def test_cells_without_labels_are_not_taken_for_a_label_named_all(fit, make_adata):
    adata = make_adata()
    adata.obs["cell_type"] = adata.obs["cell_type"].cat.rename_categories({"NK": "all"})
    model = fit(adata)
    cells = adata[(adata.obs["cell_type"] == "B") & (adata.obs["condition"] == "control")].copy()
    del cells.obs["cell_type"]
    predicted = model.predict(cells, target="stimulated")
    table = predicted.uns["trvae_sc"]["combinations"]
    assert table["own_level"].tolist() == [True]
    notes = predicted.uns["trvae_sc"]["notes"]
    assert any(note.startswith("The cells given have no labels: their level") for note in notes)
    assert table["n_training_cells"].tolist() == [0]
    totals = cells.obs["n_counts"].to_numpy()[:, None]
    level = np.log1p(model.module.kappa.item() * (cells.X.toarray() / totals).mean(0))
    np.testing.assert_allclose(predicted.var["source_mean"], level, rtol=1e-4)


def test_changes_are_told_where_there_is_one_label(trained):
    model, _ = trained
    columns = {"source_mean", "predicted_mean", "predicted_change", "change_lower", "change_upper"}
    assert columns <= set(model.predict(target="stimulated", labels="NK").var)
    assert not columns & set(model.predict(target="stimulated").var)


def test_profiles_are_the_mean_shares_of_training_cells(trained):
    model, adata = trained
    cells = (adata.obs["cell_type"] == "B") & (adata.obs["condition"] == "stimulated")
    share = adata[cells].X.toarray() / adata.obs["n_counts"].to_numpy()[cells, None]
    kappa = model.module.kappa.item()
    hidden = (adata.obs["cell_type"] == "NK") & (adata.obs["condition"] == "stimulated")
    assert kappa == pytest.approx(adata.obs["n_counts"][~hidden].median())
    found = model.module.profiles[model.labels.index("B"), model.conditions.index("stimulated")]
    assert found.numpy() == pytest.approx(np.log1p(kappa * share.mean(0)), rel=1e-4)
    assert model.n_cells.loc["NK"].tolist() == [20, 0]


def test_delta_adds_the_change_and_mean_returns_the_level(trained):
    model, _ = trained
    kwargs = {"target": "stimulated", "labels": "NK"}
    delta, mean = (model.predict(output=output, **kwargs) for output in ("delta", "mean"))
    source = model.adata[delta.obs["source_cell"]]
    kappa = model.module.kappa.item()
    shares = source.X.toarray() / source.obs["n_counts"].to_numpy()[:, None]
    expected = np.log1p(np.expm1(mean.X.astype(float)).mean(0))
    assert mean.var["predicted_mean"].to_numpy() == pytest.approx(expected, abs=1e-4)
    observed = np.log1p(kappa * shares.mean(0))
    for result in (delta, mean, model.predict(**kwargs)):
        assert result.var["source_mean"].to_numpy() == pytest.approx(observed, abs=1e-4)
        predicted = result.var["predicted_mean"].to_numpy()
        assert predicted == pytest.approx(mean.var["predicted_mean"].to_numpy(), abs=1e-5)
    change = (delta.X - np.log1p(kappa * shares)).mean(0)
    assert np.corrcoef(change, delta.var["predicted_change"])[0, 1] > 0.99


@pytest.mark.parametrize(("theta", "kappa", "total"), [(0.5, 300.0, 1000.0), (None, 2000.0, 500.0)])
def test_expected_log_of_a_gene_that_few_cells_show(theta, kappa, total):
    """Against the sum over counts: the same where no cell has two, else nearer than the mean's."""
    share = np.array([[1e-6, 1e-5, 1e-3, 1e-2]])
    module = SimpleNamespace(kappa=torch.tensor(kappa))
    found = expected_log(module, share, np.array([[total]]), theta and np.array([[theta]]))[0]
    mean, n = share[0] * total, np.arange(2000)[:, None]
    p = stats.poisson.pmf(n, mean)
    if theta:
        p = stats.nbinom.pmf(n, theta, theta / (theta + mean))
    exact = (p * np.log1p(kappa * n / total)).sum(0)
    np.testing.assert_allclose(found[:2], exact[:2], rtol=5e-3)
    assert (exact < found).all()  # of several counts the logarithm of the mean is above the mean
    assert (found < np.log1p(kappa * share[0])).all()
    none = expected_log(
        module, np.zeros((1, 2)), np.array([[total]]), theta and np.array([[theta]])
    )
    assert (none == 0).all()


@pytest.fixture(scope="module")
def inflated(fit, make_adata):
    """Return a model with zero inflation of genes that differ, and its cells."""
    adata = make_adata()
    model = fit(adata, gene_likelihood="zinb", calibrate=False)
    with torch.no_grad():
        model.module.zero_inflation.weight.zero_()
        model.module.zero_inflation.bias[:] = torch.linspace(-3.0, 3.0, adata.n_vars)
    return model, adata


def test_mean_and_draws_of_zinb_are_those_of_its_distribution(inflated):
    """Draws left zero inflation out, and the mean was of what it spares."""
    model, adata = inflated
    rows = np.flatnonzero((adata.obs["condition"] == "control") & (adata.obs["cell_type"] == "B"))
    (tensors,) = model._make_data_loader(model._validate_anndata(adata), rows, len(rows))
    module, features = model.module, model.trained.features("stimulated").expand(len(rows), -1)
    z, total = module.encode(tensors).loc, module.observation.total(tensors)
    with torch.inference_mode():
        px = module.generative(z, module.context(tensors, features), total)["px"]
        zeros = px.log_prob(torch.zeros(1)).exp().numpy()
    expected, variance = px.mean.numpy(), px.variance.numpy()
    predict = partial(model.predict, target="stimulated", labels="B")
    mean = np.expm1(predict(output="mean").X) / module.kappa.item() * total.numpy()
    np.testing.assert_allclose(mean, expected, rtol=1e-3, atol=1e-5)
    drawn = [predict(output="sample", seed=seed) for seed in range(40)]
    x = np.stack([one.X.toarray() for one in drawn])
    error = 5 * np.sqrt(variance.sum(0) / 40) / len(rows)
    assert (np.abs(x.mean((0, 1)) - expected.mean(0)) < error).all()
    share = 5 * np.sqrt((zeros * (1 - zeros)).sum(0) / 40) / len(rows)
    assert (np.abs((x == 0).mean((0, 1)) - zeros.mean(0)) < share).all()


def test_new_cells_of_zinb_have_its_zeros_too(inflated):
    model, _ = inflated
    at = np.tile(model.get_latent_representation()[:1], (4000, 1))
    for make in (partial(model.generate, "control", 4000), partial(model.decode, at)):
        given = {} if make.func == model.generate else {"condition": "control"}
        mean, drawn = (make(output=output, **given) for output in ("mean", "sample"))
        kappa = model.module.kappa.item()
        total = kappa if "condition" in given else model.adata.obs["n_counts"].mean()
        expected = np.expm1(mean.X).mean(0) / kappa * total
        x = drawn.X.toarray()
        assert (np.abs(x.mean(0) - expected) < 5 * x.std(0) / np.sqrt(4000) + 0.05 * expected).all()
        spared = torch.sigmoid(-model.module.zero_inflation.bias.detach()).numpy()
        assert ((x == 0).mean(0) > 1 - spared - 0.03).all()


@pytest.mark.parametrize("likelihood", ["nb", "poisson", "zinb"])
def test_delta_is_the_change_of_the_expected_log_value(fit, make_adata, likelihood):
    """By the dispersions of each cell's own condition and of the target."""
    adata = make_adata()
    adata.obs["condition"] = np.array(["a", "b", "c"])[np.arange(adata.n_obs) // 5 % 3]
    model = fit(adata, gene_likelihood=likelihood, dispersion="gene-condition", calibrate=False)
    predicted = model.predict(target="c", labels="B", output="delta")
    assert set(predicted.obs["source_condition"]) == {"a", "b"}
    rows = adata.obs_names.get_indexer(predicted.obs["source_cell"])
    (batch,) = decoded_batches(model.trained, adata, rows, model.trained.features("c"))
    kappa = model.module.kappa.item()

    def expected(shares, condition):
        spared = 1.0
        if likelihood == "zinb":
            spared = batch.spared[int(condition == "c")]
        mean = shares * batch.total / spared
        some = 1 - stats.poisson.pmf(0, mean)
        if likelihood != "poisson":
            theta = model.module.observation.log_theta(model.trained.features(condition)).exp()
            theta = theta.detach().numpy()
            some = spared * (1 - stats.nbinom.pmf(0, theta, theta / (theta + mean)))
        return some * np.log1p(kappa * shares / some)

    source = predicted.obs["source_condition"].to_numpy()[:, None]
    own = np.where(source == "a", *(expected(batch.source, c) for c in "ab"))
    change = predicted.X - np.log1p(kappa * batch.observed / batch.total)
    np.testing.assert_allclose(change, expected(batch.target, "c") - own, atol=1e-4)


def test_expected_counts_agree_with_the_predicted_share(trained):
    model, _ = trained
    predicted = model.predict(target="stimulated", labels="NK", n_samples=200)
    mean = model.predict(target="stimulated", labels="NK", n_samples=200, output="mean")
    total = predicted.obs["n_counts"].to_numpy()[:, None]
    share = np.asarray((predicted.X.toarray() / total).mean(0))
    expected = np.expm1(mean.X.astype(float)).mean(0) / model.module.kappa.item()
    assert share.sum() == pytest.approx(expected.sum(), rel=0.03)
    assert np.corrcoef(share, expected)[0, 1] > 0.99


@pytest.mark.parametrize("unknown", [False, True])
@pytest.mark.parametrize("likelihood", ["nb", "normal"])
def test_the_mean_of_many_samples_is_that_of_the_label(make_adata, fit, likelihood, unknown):
    """Cells decoded from draws of z are on the level of the label, as those decoded from its mean are."""
    is_count = likelihood == "nb"
    adata = make_adata(n_cells=600, values="counts" if is_count else "log")
    hidden = (adata.obs["cell_type"] == "NK") & (adata.obs["condition"] == "stimulated")
    model = fit(adata[~hidden].copy(), gene_likelihood=likelihood, train={"max_epochs": 30})
    cells = adata[(adata.obs["cell_type"] == "NK") & (adata.obs["condition"] == "control")].copy()
    if unknown:
        cells.obs["cell_type"] = "new"
    with torch.no_grad():  # as wide as posteriors may be
        model.module.z_log_variance.bias += 3.0
        model.codes_["z_scale"] *= np.exp(1.5)
    apart = []
    for n in (1, 40):
        predicted = model.predict(cells, target="stimulated", output="mean", n_samples=n)
        x = predicted.X.astype(float)
        mean = np.log1p(np.expm1(x).mean(0)) if is_count else x.mean(0)
        apart.append(np.abs(mean - predicted.var["predicted_mean"]).max())
    assert apart[0] < 1e-4
    assert apart[1] < 0.1


def test_change_of_a_normal_model_is_in_the_units_of_the_data(fit, make_adata):
    adata = make_adata(values="log")
    model = fit(adata, gene_likelihood="normal")
    predicted = model.predict(target="stimulated", labels="B")
    assert predicted.uns["trvae_sc"]["output"] == "delta"
    source = adata[predicted.obs["source_cell"]].X.toarray()
    change = (predicted.X - source).mean(0)
    assert change == pytest.approx(predicted.var["predicted_change"].to_numpy(), abs=1e-4)
    assert predicted.var["source_mean"].to_numpy() == pytest.approx(source.mean(0), abs=1e-5)
    for output in ("mean", "sample"):  # also starts from the observed level
        x = model.predict(target="stimulated", labels="B", output=output).X
        within = 1e-4 if output == "mean" else 5 * x.std(0) / np.sqrt(len(x))
        assert (np.abs(x.mean(0) - source.mean(0) - change) < within).all()
    with pytest.raises(InputError, match="'counts' is not available with gene_likelihood 'normal'"):
        model.predict(target="stimulated", output="counts")


def test_interval_is_the_change_and_the_conformal_half_width(fit, make_adata):
    """Of the labels seen under both conditions; not known where these are fewer than three."""
    adata = make_adata(n_cells=480)
    adata.obs["cell_type"] = [f"t{i // 2 % 5}" for i in range(480)]
    hidden = (adata.obs["cell_type"] == "t0") & (adata.obs["condition"] == "stimulated")
    model = fit(adata[~hidden].copy())
    profiles = model.module.profiles.numpy().astype(float)
    known = Profiles(profiles, model.module.n_cells.numpy(), tuple(model.labels), is_count=True)
    half = half_width(*Ridge(known, 0, Likeness.of_itself(1)).left_out())
    for weight in (0.5, 1.0):
        model.module.context_weight = weight
        var = model.predict(target="stimulated", labels="t0").var
        change = var["predicted_change"]
        assert (change - var["change_lower"]).to_numpy() == pytest.approx(half)
        assert (var["change_upper"] - change).to_numpy() == pytest.approx(half)
    model.module.context_weight = 0.0  # nothing is known of how the network errs
    assert model.predict(target="stimulated", labels="t0").var["change_lower"].isna().all()
    few = fit(train={"max_epochs": 1}).predict(target="stimulated", labels="NK")
    assert few.var["change_lower"].notna().all()
    two = make_adata()
    two = two[two.obs["cell_type"] != "T"].copy()
    unknown = fit(two, train={"max_epochs": 1}).predict(target="stimulated", labels="NK")
    assert unknown.var["change_lower"].isna().all()
    assert any("too few to tell" in note for note in unknown.uns["trvae_sc"]["notes"])


@pytest.mark.parametrize("preset", ["cvae", "mmd_cvae", "vae"])
def test_presets_have_no_interval_of_another_predictor(fit, make_adata, preset):
    """Where the ridge has no part in a prediction, its residuals tell nothing of the error."""
    adata = make_adata(240)
    adata.obs["cell_type"] = np.arange(240) // 2 % 6  # labels enough for residuals
    model = fit(adata, preset=preset)
    var = model.predict(target="stimulated", labels=0).var
    assert var["predicted_change"].notna().all()
    assert var[["change_lower", "change_upper"]].isna().all(axis=None)


def test_a_label_far_from_all_others_is_noted(fit, make_adata):
    adata = make_adata(n_cells=480)
    label = np.array([f"t{i // 2 % 5}" for i in range(480)])
    adata.obs["cell_type"] = label
    x = adata.X.toarray()
    x[np.ix_(label == "t0", np.arange(1, 10))] += 200
    adata.X = sparse.csr_matrix(x)
    adata.obs["n_counts"] = x.sum(1) + 10.0
    hidden = (label == "t0") & (adata.obs["condition"] == "stimulated")
    model = fit(adata[~hidden].copy())
    record = model.predict(target="stimulated", labels="t0").uns["trvae_sc"]
    assert record["combinations"]["novelty"].item() > 1.5
    assert any(note.startswith("Unlike the labels") for note in record["notes"])


# -- the AnnData ----------------------------------------------------------------------------------------


def test_result_is_complete_and_the_input_unchanged(trained):
    model, adata = trained
    before = adata.copy()
    predicted = model.predict(adata, target="stimulated", source="control", labels="NK")
    assert predicted.n_obs == 20
    assert (predicted.X.data == np.floor(predicted.X.data)).all()
    assert set(predicted.obs["condition"]) == {"stimulated"}
    assert set(predicted.obs["source_condition"]) == {"control"}
    assert not any(name.startswith("_scvi") for name in predicted.obs)
    assert predicted.obs["age"].tolist() == adata.obs["age"][predicted.obs["source_cell"]].tolist()
    assert predicted.obsm["X_trvae"].shape == (20, 4)
    latent = model.get_latent_representation(adata[predicted.obs["source_cell"].to_numpy()].copy())
    assert predicted.obsm["X_trvae"] == pytest.approx(latent, abs=1e-5)
    record = predicted.uns["trvae_sc"]
    (row,) = record["combinations"].to_dict("records")
    assert row["n_source_cells"] == 20
    assert row["n_training_cells"] == 0
    assert not row["seen_in_training"]
    assert row["n_labels_with_both"] == 2
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    assert (adata.X != before.X).nnz == 0
    assert list(adata.uns) == list(before.uns)


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
@pytest.mark.filterwarnings("ignore:Writing zarr v2")
def test_result_survives_a_file(trained, tmp_path, suffix):
    predicted = trained[0].predict(target="stimulated", labels="NK")
    path = tmp_path / f"p.{suffix}"
    getattr(predicted, f"write_{suffix}")(path)
    read = getattr(anndata, f"read_{suffix}")(path)
    assert (read.X != predicted.X).nnz == 0
    record, expected = read.uns["trvae_sc"], predicted.uns["trvae_sc"]
    assert record["combinations"].to_dict() == expected["combinations"].to_dict()
    assert list(record["notes"]) == list(expected["notes"])
    assert record["versions"] == expected["versions"]


def same(a, b):
    return (a.X != b.X).nnz == 0 and a.obs_names.equals(b.obs_names)


def test_same_result_for_any_batch_size_and_storage(trained, tmp_path):
    model, adata = trained
    kwargs = {"target": "stimulated", "labels": ["NK", "B"]}
    expected = model.predict(adata, **kwargs)
    assert same(model.predict(adata, batch_size=3, **kwargs), expected)
    dense, columns = adata.copy(), adata.copy()
    dense.X, columns.X = adata.X.toarray(), sparse.csc_matrix(adata.X)
    assert same(model.predict(dense, **kwargs), expected)
    assert same(model.predict(columns, **kwargs), expected)
    assert same(model.predict(adata[:], **kwargs), expected)  # a view
    for name, data in (("sparse", adata), ("dense", dense)):
        data.write_h5ad(tmp_path / f"{name}.h5ad")
        backed = anndata.read_h5ad(tmp_path / f"{name}.h5ad", backed="r")
        assert same(model.predict(backed, **kwargs), expected)
    different = model.predict(adata, seed=1, **kwargs)
    assert not same(different, expected)
    table = "combinations"
    assert different.uns["trvae_sc"][table].equals(expected.uns["trvae_sc"][table])


@pytest.fixture(scope="module")
def of_many(fit, make_adata):
    """Return a model and cells of more than are compared with what was decoded, in two forms."""
    model = fit(make_adata(600))
    return model, make_adata(1800, seed=3)


@pytest.mark.parametrize("output", ["mean", "delta"])
@pytest.mark.parametrize("rows", ["alone", "some", "halves", "rotated", "reversed"])
def test_a_prediction_is_a_function_of_the_cell(of_many, rows, output):
    """Of a label that the model knows: whichever cells are in the call, and in whatever order."""
    model, adata = of_many
    start = np.flatnonzero((adata.obs["condition"] == "control").to_numpy())
    kwargs = {"target": "stimulated", "output": output}

    def predicted(indices):
        found = model.predict(adata, indices=indices, **kwargs)
        x = found.X.toarray() if sparse.issparse(found.X) else found.X
        return pd.DataFrame(x, index=found.obs["source_cell"].astype(str))

    expected = predicted(start)
    orders = {
        "alone": [start[:1], start[7:8]],
        "some": [start[3:100:9]],
        "halves": [start[:450], start[450:]],
        "rotated": [np.roll(start, 1)],
        "reversed": [start[::-1]],
    }
    for order in orders[rows]:
        found = predicted(order)
        np.testing.assert_array_equal(found, expected.loc[found.index])


def test_genes_are_matched_by_name(trained):
    model, adata = trained
    expected = model.predict(adata, target="stimulated", labels="NK")
    more = adata[:, :3].copy()
    more.var_names = ["x0", "x1", "x2"]
    extra = anndata.concat([adata, more], axis=1, merge="first")
    found = model.predict(extra[:, ::-1].copy(), target="stimulated", labels="NK")
    assert same(found, expected)
    assert found.var_names.equals(expected.var_names)
    with pytest.raises(
        InputError, match="lacks 2 of the 30 genes of the model: 'gene_0', 'gene_1'"
    ):
        model.predict(adata[:, 2:].copy(), target="stimulated")


def test_rows_are_the_callers_also_with_masks_duplicates_and_disorder(trained):
    model, adata = trained
    rows = [40, 4, 10, 4]
    wanted = adata.obs_names[[r for r in rows if r % 2 == 0]].tolist()
    found = model.predict(adata, target="stimulated", indices=rows)
    assert found.obs["source_cell"].tolist() == wanted
    mask = np.zeros(adata.n_obs, dtype=bool)
    mask[[4, 10, 40]] = True
    by_mask = model.predict(adata, target="stimulated", indices=mask)
    assert by_mask.obs["source_cell"].tolist() == adata.obs_names[[4, 10, 40]].tolist()
    with pytest.raises(InputError, match=r"given as 'cell_1'; .*get_indexer\(names\)"):
        model.predict(target="stimulated", indices=["cell_1"])
    with pytest.raises(InputError, match="mask has shape"):
        model.predict(adata, target="stimulated", indices=mask[:5])


def test_samples_are_rows_of_their_own(trained):
    predicted = trained[0].predict(target="stimulated", labels="NK", n_samples=3)
    assert predicted.n_obs == 60
    assert predicted.obs["sample"].value_counts().to_dict() == {0: 20, 1: 20, 2: 20}
    assert predicted.obs_names.is_unique


def test_a_label_never_seen_is_predicted_from_its_own_profile(trained):
    model, adata = trained
    renamed = adata[adata.obs["cell_type"] == "NK"].copy()
    renamed.obs["cell_type"] = "new type"
    predicted = model.predict(renamed, target="stimulated")
    same_cells = model.predict(adata, target="stimulated", labels="NK")
    assert (predicted.X != same_cells.X).nnz == 0
    without = renamed[:, :].copy()
    del without.obs["cell_type"]
    assert (model.predict(without, target="stimulated").X != same_cells.X).nnz == 0


def test_missing_combinations_are_predicted_and_named(trained):
    model, _ = trained
    predicted = model.predict_missing()
    table = predicted.uns["trvae_sc"]["combinations"]
    assert table[["label", "source", "target"]].to_numpy().tolist() == [
        ["NK", "control", "stimulated"]
    ]
    assert predicted.n_obs == 20
    assert not predicted.uns["trvae_sc"]["combinations"]["seen_in_training"].any()


def test_missing_combinations_are_restricted_by_target_and_labels(trained):
    model, _ = trained
    for chosen in ({"target": "stimulated"}, {"labels": ["NK", "B"]}, {"labels": "NK"}):
        predicted = model.predict_missing(**chosen)
        assert (predicted.X != model.predict_missing().X).nnz == 0
    has_all = r"every combination of label and condition that was asked for, \['B'\] under 'stimul"
    for chosen, message in (
        ({"target": "stimulated", "labels": "B"}, has_all),
        ({"labels": "B"}, r"every combination of label and condition\."),
        ({"labels": "X"}, "Unknown label 'X'"),
        ({"target": "stim"}, "Unknown condition 'stim'"),
    ):
        with pytest.raises(InputError, match=message):
            model.predict_missing(**chosen)


def test_one_condition_may_be_in_a_list_or_a_dictionary(trained):
    model, _ = trained
    expected = model.predict(target="stimulated", source="control", labels="NK")
    for wrap in (lambda c: [c], lambda c: (c,), lambda c: {"condition": c}):
        named = {"target": wrap("stimulated"), "source": wrap("control")}
        predicted = model.predict(**named, labels="NK")
        assert (predicted.X != expected.X).nnz == 0
        assert predicted.obs.equals(expected.obs)
        assert set(model.effects(**named, labels="NK")["target"]) == {"stimulated"}
        assert model.generate(wrap("stimulated"), 3).n_obs == 3
        simple = baselines.predict(model.adata, **named, labels="NK", keys=model)
        assert set(simple.obs["condition"]) == {"stimulated"}
    with pytest.raises(InputError, match=r"Unknown condition \{'cytokine': 'stimulated'\}"):
        model.predict(target={"cytokine": "stimulated"})


def test_labels_without_source_cells_are_named(trained, caplog):
    model, cells = trained
    lacks = (cells.obs["cell_type"] == "B") & (cells.obs["condition"] == "control")
    some = cells[~lacks].copy()
    found = model.predict(some, target="stimulated", source="control", labels=["B", "T"])
    assert set(found.obs["cell_type"]) == {"T"}
    assert "No cell of 'B' to start from: only others are predicted." in caplog.text


def test_a_mask_is_not_taken_for_labels(trained):
    model, adata = trained
    mask = adata.obs["cell_type"] == "NK"
    for call in (model.predict, model.effects):
        with pytest.raises(InputError, match=r"labels is a mask of \d+ booleans; .* indices="):
            call(target="stimulated", labels=mask)


def test_a_combination_seen_in_training_is_flagged(trained):
    predicted = trained[0].predict(target="stimulated", labels="B")
    assert predicted.uns["trvae_sc"]["combinations"]["seen_in_training"].all()
    assert "Training saw the target condition of B" in predicted.uns["trvae_sc"]["notes"][0]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"target": "stim"}, r"Unknown condition 'stim'.*\['control', 'stimulated'\]"),
        ({"target": "control", "source": "control"}, "Source and target are both 'control'"),
        ({"target": "stimulated", "source": "stim"}, "Unknown condition 'stim'"),
        ({"target": "stimulated", "labels": ["NK", "X"]}, r"Unknown labels \['X'\]"),
        ({"target": "stimulated", "indices": []}, "No cell to predict 'stimulated' from"),
        ({"target": "stimulated", "n_samples": 0}, "n_samples is 0"),
        ({"target": "stimulated", "output": "log"}, "Output 'log' is not available"),
    ],
)
def test_bad_requests_name_what_is_allowed(trained, kwargs, message):
    with pytest.raises(InputError, match=message):
        trained[0].predict(**kwargs)


def test_own_column_names_are_refused(trained):
    model, adata = trained
    taken = adata.copy()
    taken.obs["source_condition"] = "x"
    with pytest.raises(InputError, match=r"already has columns \['source_condition'\]"):
        model.predict(taken, target="stimulated")
    before = list(taken.obs)
    with pytest.raises(InputError, match="Rename or drop them"):  # not only after training
        TRVAE.setup_anndata(taken, "condition", labels_key="cell_type")
    assert list(taken.obs) == before


def test_untrained_models_do_not_predict(fit):
    untrained = fit(train=False)
    for call in (untrained.predict, untrained.get_mmd_representation):
        with pytest.raises(RuntimeError, match="not trained"):
            call(**({"target": "stimulated"} if call == untrained.predict else {}))


# -- generation, representations --------------------------------------------------------------------------


def test_generated_cells_have_the_mean_of_their_condition(fit, make_adata):
    adata = make_adata(600, effect=2.0)
    model = fit(adata, train={"max_epochs": 150})
    for condition in ("control", "stimulated"):
        cells = model.generate(condition, 2000)
        assert set(cells.obs["condition"]) == {condition}
        real = adata[adata.obs["condition"] == condition].X.toarray().mean(0)
        assert np.corrcoef(np.log1p(cells.X.toarray().mean(0)), np.log1p(real))[0, 1] > 0.97
    labelled = model.generate("control", 50, labels="NK")
    assert set(labelled.obs["cell_type"]) == {"NK"}
    assert model.generate("control", 50, latent="prior").n_obs == 50
    with pytest.raises(InputError, match="prior knows no labels"):
        model.generate("control", 50, labels="NK", latent="prior")


def test_mmd_representation_is_y_of_the_cells_in_the_order_asked_for(trained):
    model, adata = trained
    y = model.get_mmd_representation(adata)
    module, z = model.module, torch.tensor(model.get_latent_representation(adata))
    codes = torch.tensor((adata.obs["condition"] == "stimulated").to_numpy().astype(int))
    with torch.no_grad():
        layer = module.decoder_in.linear(z) + module.decoder_in.condition[codes]
        expected = module.mmd_layer(layer).numpy()
    assert y == pytest.approx(expected, abs=1e-5)
    assert model.get_mmd_representation(adata, indices=[5, 2, 9]) == pytest.approx(
        y[[5, 2, 9]], abs=1e-5
    )


def test_transform_condition_decodes_with_another_condition(trained):
    model, adata = trained
    torch.manual_seed(0)
    own = model.get_normalized_expression(adata, return_numpy=True)
    torch.manual_seed(0)
    moved = model.get_normalized_expression(
        adata, transform_condition="stimulated", return_numpy=True
    )
    stimulated = (adata.obs["condition"] == "stimulated").to_numpy()
    assert moved[stimulated] == pytest.approx(own[stimulated], rel=1e-5)
    assert abs(moved[~stimulated] - own[~stimulated]).max() > 1e-4
    with pytest.raises(InputError, match="Unknown condition"):
        model.get_normalized_expression(adata, transform_condition="x")


# -- to a file --------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
@pytest.mark.parametrize("output", ["counts", "mean"])
@pytest.mark.parametrize("n_samples", [1, 2])
@pytest.mark.filterwarnings("ignore:Writing zarr v2")
def test_a_prediction_written_in_pieces_is_the_one_in_memory(
    trained, monkeypatch, suffix, output, n_samples
):
    monkeypatch.setattr(_write, "_ROWS", 17)  # of 60
    trained, _ = trained
    kwargs = {"target": "stimulated", "output": output, "n_samples": n_samples, "batch_size": 5}
    expected = trained.predict(**kwargs)
    expected.strings_to_categoricals()
    path = Path(f"new/p.{suffix}")
    result = trained.predict(**kwargs, out=path)
    assert [p.name for p in Path("new").iterdir()] == [path.name]
    assert sparse.issparse(result[:1].to_memory().X) is (output == "counts")
    if result.isbacked:
        result.file.close()
    read = anndata.read_h5ad if suffix == "h5ad" else anndata.read_zarr
    found = read(path)
    dense = [x.toarray() if sparse.issparse(x) else x for x in (found.X, expected.X)]
    assert np.array_equal(*dense)
    assert found.X.dtype == np.float32
    pd.testing.assert_frame_equal(found.obs, expected.obs)
    pd.testing.assert_frame_equal(found.var, expected.var)
    assert np.array_equal(found.obsm["X_trvae"], expected.obsm["X_trvae"])
    record, wanted = found.uns["trvae_sc"], expected.uns["trvae_sc"]
    assert record.keys() == wanted.keys()
    assert record["kappa"] == wanted["kappa"]
    assert list(record["notes"]) == list(wanted["notes"])


def test_a_layer_is_written_as_well(fit, make_adata):
    adata = make_adata()
    adata.layers["counts"] = adata.X.copy()
    model = fit(adata, setup={"layer": "counts"})
    found = model.predict(target="stimulated", out="p.h5ad").to_memory()
    assert (found.layers["counts"] != found.X).nnz == 0
    assert (found.X != model.predict(target="stimulated").X).nnz == 0


@pytest.mark.parametrize("likelihood", ["nb", "normal"])
def test_a_layer_holds_what_the_model_reads_from_it(likelihood, fit, make_adata):
    """Values of a model of values were missing there, and logarithms of counts were in a layer of counts."""
    adata = make_adata(values="log" if likelihood == "normal" else "counts")
    adata.layers["own"] = adata.X.copy()
    model = fit(adata, setup={"layer": "own"}, gene_likelihood=likelihood)
    z = model.get_latent_representation()[:5]
    for output in ("mean", "sample"):
        for cells in (
            model.predict(target="stimulated", output=output),
            model.generate("stimulated", 5, output=output),
            model.decode(z, condition="stimulated", output=output),
        ):
            if likelihood == "nb" and output == "mean":
                assert "own" not in cells.layers
            else:
                assert np.sum(cells.layers["own"] != cells.X) == 0
    again = model.predict(model.predict(target="stimulated"), target="control")
    assert "own" in again.layers
    again.write_h5ad("again.h5ad")
    found = model.predict(again, target="stimulated", out="p.zarr")
    assert "own" in found.layers


def test_files_in_and_out_with_more_genes_than_the_model(fit, make_adata):
    adata = make_adata(200)
    model = fit(adata[:, 5:25].copy())
    expected = model.predict(adata, target="stimulated")
    adata[:, ::-1].copy().write_h5ad("cells.h5ad")
    backed = anndata.read_h5ad("cells.h5ad", backed="r")
    found = model.predict(backed, target="stimulated", out="p.h5ad")
    assert found.isbacked
    assert (found.to_memory().X != expected.X).nnz == 0
    found.file.close()


def test_columns_are_written_to_a_file_as_anndata_writes_them(fit, make_adata):
    adata = make_adata()
    model = fit(adata)
    some = np.arange(adata.n_obs) % 3 == 0
    text = pd.Series(np.where(some, None, adata.obs["cell_type"].astype(str)), adata.obs_names)
    new = adata.copy()
    new.obs["with None"], new.obs["with NaN"] = text, text.fillna(np.nan)
    new.obs["string"], new.obs["with NA"] = text.fillna("x").astype("string"), text.astype("string")
    new.obs["name"] = new.obs_names.astype("string")
    found = model.predict(new, target="stimulated", out="p.h5ad")
    source = new.obs.loc[found.obs["source_cell"].astype(str)]
    for name in ("with None", "with NaN", "string", "with NA", "name"):
        expected = source[name].astype(object).where(source[name].notna(), None).tolist()
        written = found.obs[name].astype(object)
        assert written.where(written.notna(), None).tolist() == expected
    found.file.close()


@pytest.mark.parametrize(
    "value", [pd.Timestamp("2026-01-01"), pd.Timedelta(1, "h"), pd.Period("2026")]
)
def test_a_column_that_no_file_can_hold_is_named(trained, value):
    model, adata = trained
    new = adata.copy()
    new.obs["when"] = value
    with pytest.raises(InputError, match=r"adata\.obs\['when'\] cannot be written to a file"):
        model.predict(new, target="stimulated", out="p.h5ad")
    assert list(Path().iterdir()) == []


def test_bad_paths_raise_before_any_work_and_errors_leave_nothing(trained, monkeypatch):
    trained, _ = trained
    with pytest.raises(InputError, match=r"p.csv is neither .h5ad nor .zarr"):
        trained.predict(target="stimulated", out="p.csv")
    with pytest.raises(InputError, match="predict each combination to a file of its own"):
        trained.predict_missing(out="p.h5ad")
    Path("p.h5ad").write_text("mine")
    with pytest.raises(InputError, match=r"p.h5ad exists. Pass overwrite=True"):
        trained.predict(target="stimulated", out="p.h5ad")
    assert Path("p.h5ad").read_text() == "mine"

    def interrupt(self, adata):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_write.PieceWriter, "finish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            trained.predict(target="stimulated", out="q.h5ad")
    assert [p.name for p in Path().iterdir()] == ["p.h5ad"]
    found = trained.predict(target="stimulated", out="p.h5ad", overwrite=True)
    assert found.n_obs == 60
    found.file.close()


def test_the_response_of_a_cell_is_its_move_relative_to_that_of_its_label(make_adata, fit):
    adata = make_adata(n_cells=240, n_genes=120, values="log")
    model = fit(adata, gene_likelihood="normal", train={"max_epochs": 10})
    delta = model.predict(source="control", target="stimulated", output="delta")
    moved = delta.X - adata[delta.obs["source_cell"]].X.toarray()
    for label, table in model.effects(source="control", target="stimulated").groupby("label"):
        change = table["change"].to_numpy()
        genes = np.argsort(-np.abs(change), kind="stable")[:100]
        at = (delta.obs["cell_type"] == label).to_numpy()
        expected = np.sqrt(np.square(moved[at][:, genes]).mean(1) / np.square(change[genes]).mean())
        np.testing.assert_allclose(delta.obs["response"][at], expected, rtol=1e-3)


def test_the_response_of_a_cell_is_the_same_whatever_is_asked_for(make_adata, fit):
    adata = make_adata(n_cells=240)
    model = fit(adata)
    few = model.predict(adata[:7], target="stimulated", output="counts")
    whole = model.predict(adata, target="stimulated", output="mean")
    expected = whole.obs["response"].reindex(few.obs_names)
    np.testing.assert_array_equal(few.obs["response"], expected)
    plain = fit(adata, preset="vae").predict(adata[:7], target="stimulated")
    assert plain.obs["response"].isna().all()


def test_batches_of_one_condition_are_noted(fit, make_adata):
    adata = make_adata()
    adata.obs["batch"] = adata.obs["condition"].astype(str) + adata.obs["sex"].astype(str)
    notes = fit(adata, setup={"batch_key": "batch"}).predict(target="stimulated").uns["trvae_sc"]
    assert any("cells of one condition only" in note for note in notes["notes"])
