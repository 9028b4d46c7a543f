"""Scores of outliers: distances and deviances by hand, uniform p-values, and types left out are found."""

import anndata
import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from scipy import stats
from scipy.spatial.distance import cdist
from scvi import REGISTRY_KEYS
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from trvae_sc import PRESETS, TRVAE
from trvae_sc.datasets import simulate
from trvae_sc.errors import InputError
from trvae_sc.family import outlier_score
from trvae_sc.family._outliers import _components

TRAIN = {"max_epochs": 20, "accelerator": "cpu", "enable_progress_bar": False}


def ignores_z(fit, likelihood, **kwargs):
    """Return a model whose decoder gives every cell of a condition the same profile."""
    made = fit(gene_likelihood=likelihood, **kwargs)
    for name in ("decoder_in", "output"):
        layer = getattr(made.module, name)
        getattr(layer, "linear", layer).weight.data.zero_()
    return made


@torch.inference_mode()
def arrays(made):
    """Return values, totals, decoded profile and dispersion of the model's cells."""
    adata, module = made.adata, made.module
    tensors = next(iter(made._make_data_loader(adata)))
    z = module.encode(tensors).loc
    outputs = module.generative(**module._get_generative_input(tensors, {"z": z}))
    log_theta = None
    if module.gene_likelihood in ("nb", "zinb", "normal"):
        log_theta = module.observation.log_theta(outputs["context"].condition).numpy().astype(float)
    x = tensors[REGISTRY_KEYS.X_KEY].numpy().astype(float)
    total = tensors["total_counts"].numpy().astype(float) if module.is_count else None
    return x, total, outputs["profile"].numpy().astype(float), log_theta


# -- deviance -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", ["nb", "poisson", "normal", "mse"])
def test_deviance_of_a_decoder_that_ignores_z_has_a_closed_form(likelihood, fit):
    made = ignores_z(fit, likelihood)
    if likelihood != "mse":  # codes from the prior: no Monte Carlo error
        made.module.z_mean.weight.data.zero_(), made.module.z_mean.bias.data.zero_()
        made.module.z_log_variance.weight.data.zero_(), made.module.z_log_variance.bias.data.zero_()
    x, total, profile, log_theta = arrays(made)
    if likelihood == "nb":
        theta, mean = np.exp(log_theta), np.exp(profile) * total
        fitted = stats.nbinom.logpmf(x, theta, theta / (theta + mean))
        perfect = stats.nbinom.logpmf(x, theta, theta / (theta + x))
    elif likelihood == "poisson":
        fitted, perfect = (
            stats.poisson.logpmf(x, np.exp(profile) * total),
            stats.poisson.logpmf(x, x),
        )
    elif likelihood == "normal":
        scale, loc = made.module.gene_scale.numpy(), made.module.gene_mean.numpy()
        sd = np.exp(log_theta) * scale
        fitted, perfect = (stats.norm.logpdf(x, m, sd) for m in (loc + scale * profile, x))
    else:
        fitted, perfect = -0.5 * (x - profile) ** 2, np.zeros_like(x)
    found = outlier_score(made, n_samples=3)
    np.testing.assert_allclose(found["log_likelihood"], fitted.sum(1), rtol=1e-4)
    np.testing.assert_allclose(found["deviance"], (perfect - fitted).sum(1), rtol=1e-3, atol=1e-3)
    assert found.index.equals(made.adata.obs_names)


def test_zero_inflation_that_fits_best_is_none(fit):
    made = fit(gene_likelihood="zinb")
    x, _, _, log_theta = arrays(made)
    theta = np.exp(log_theta)
    perfect = stats.nbinom.logpmf(x, theta, theta / (theta + x)).sum(1)
    found = outlier_score(made)
    np.testing.assert_allclose(found["deviance"] + found["log_likelihood"], perfect, rtol=1e-4)
    assert (found["deviance"] > 0).all()


def test_an_autoencoder_is_scored_by_its_reconstruction(fit):
    made = fit(preset="autoencoder")
    found = outlier_score(made, n_samples=1)
    error = made.get_reconstruction_error(return_mean=False)["reconstruction_loss"]
    np.testing.assert_allclose(found["log_likelihood"], -np.asarray(error), rtol=1e-4)


def test_likelihood_is_that_of_importance_sampling(fit):
    """More samples, a tighter bound: with many, the mean is that of scvi-tools' estimate."""
    made = fit()
    found = [outlier_score(made, n_samples=n)["log_likelihood"].mean() for n in (1, 300)]
    expected = float(made.get_marginal_ll(n_mc_samples=300, n_mc_samples_per_pass=50))
    assert found[0] < found[1] == pytest.approx(expected, abs=0.1)


# -- score and calibration ----------------------------------------------------------------------------


def distances(x, others, n, *, own=False):
    """Return mean distances to the 5 nearest in n components of the others, by distances of all pairs."""
    pca = PCA(30, svd_solver="full").fit(others)
    pairs = cdist(*(pca.transform(cells)[:, :n] for cells in (x, others)))
    return np.sort(pairs, 1)[:, int(own) : 5 + int(own)].mean(1)


def found_left_out(x, label, n):
    """Return the mean AUROC of labels whose cells are no neighbours."""
    at, found = PCA(30, svd_solver="full").fit_transform(x)[:, :n], []
    for name in np.unique(label):
        out = label == name
        near = np.sort(cdist(at, at[~out]), 1)
        distance = np.where(out, near[:, :5].mean(1), near[:, 1:6].mean(1))
        found.append(roc_auc_score(out, distance))
    return np.mean(found)


@pytest.mark.parametrize("labels_key", [None, "cell_type"])
def test_score_is_the_distance_to_neighbours_and_p_values_are_its_shares(
    labels_key, make_adata, caplog
):
    adata = make_adata(200)
    TRVAE.setup_anndata(adata, "condition", labels_key=labels_key, total_counts_key="n_counts")
    made = TRVAE(adata, preset="autoencoder", n_latent=4, n_hidden=(16, 8))  # no sampling
    made.train(train_size=0.75, **{**TRAIN, "max_epochs": 2})

    def logs(cells):
        total = cells.obs["n_counts"].to_numpy()[:, None]
        return np.log1p(made.module.kappa.item() * cells.X.toarray() / total)

    train, held = (adata[np.sort(r)] for r in (made.train_indices, made.validation_indices))
    cells = make_adata(20, seed=4)
    before = cells.copy()
    found = outlier_score(made, cells)
    assert "trained on" not in caplog.text
    pd.testing.assert_frame_equal(cells.obs, before.obs)
    x, n = logs(train), 20
    if labels_key is not None:
        label = train.obs["cell_type"].to_numpy()
        n = max((10, 30), key=lambda n: found_left_out(x, label, n))
    assert found.attrs["n_components"] == n
    np.testing.assert_allclose(found["score"], distances(logs(cells), x, n), rtol=1e-3)
    reference = outlier_score(made, held.copy())["score"].to_numpy()
    share = [(1 + (reference >= s).sum()) / 51 for s in found["score"]]
    np.testing.assert_allclose(found["p_value"], share)
    own = outlier_score(made)["score"].to_numpy()[np.sort(made.train_indices)]
    np.testing.assert_allclose(own, distances(x, x, n, own=True), rtol=1e-3)
    named = outlier_score(made, cells, reference=held.copy())
    pd.testing.assert_frame_equal(found, named)


@pytest.mark.parametrize("train_size", [0.75, 1.0])
def test_cells_have_the_same_score_however_they_are_passed(train_size, fit):
    """A training cell is not among its own neighbours, also where a copy of it is passed."""
    made = fit(preset="autoencoder", train={"train_size": train_size})
    columns = ["score", "p_value"]
    own = outlier_score(made)[columns]
    rows = np.arange(0, made.adata.n_obs, 3)
    as_array = made.adata.copy()
    as_array.X = as_array.X.toarray().astype(np.float64)
    for cells in (made.adata.copy(), made.adata[rows], made.adata[rows[::-1]].copy(), as_array):
        found = outlier_score(made, cells)[columns]
        pd.testing.assert_frame_equal(found, own.loc[cells.obs_names])


def test_training_cells_are_known_in_another_precision(fit, make_adata):
    """Each was its own neighbour, of distance 0."""
    adata = make_adata(values="log")
    adata.X = adata.X.toarray().astype(np.float64) + 0.1
    made = fit(adata, gene_likelihood="normal")
    cells = adata.copy()
    cells.X = cells.X.astype(np.float32)
    expected = outlier_score(made, n_samples=1)["score"]
    pd.testing.assert_series_equal(outlier_score(made, cells, n_samples=1)["score"], expected)


def test_cells_and_reference_may_be_in_a_file(fit, make_adata, tmp_path):
    made, cells = fit(), make_adata(40, seed=3)
    cells.write_h5ad(tmp_path / "a.h5ad")
    in_file = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    found = outlier_score(made, in_file, reference=in_file, n_samples=1)
    expected = outlier_score(made, cells, reference=cells, n_samples=1)
    pd.testing.assert_frame_equal(found, expected)


@pytest.mark.parametrize(("n_informative", "expected"), [(3, 10), (28, 30)])
def test_components_are_those_in_which_labels_left_out_are_found(n_informative, expected):
    """Labels differ along a few directions, beside which others are noise, or each in one of many."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 40)) * np.linspace(1.0, 0.9, 40)
    label = np.repeat(np.arange(n_informative), -(-400 // n_informative))[:400]
    x[np.arange(400), label] += 4.0
    assert _components(PCA(30, svd_solver="full").fit_transform(x), label) == expected
    assert _components(x, np.full(400, "one")) == 20


def test_cells_of_training_are_the_reference_if_none_were_held_back(fit, make_adata, caplog):
    made = fit(preset="autoencoder")
    found = outlier_score(made)
    assert "cells that the network was trained on" in caplog.text
    assert found.index.equals(made.adata.obs_names)
    assert found["p_value"].min() >= 1 / 61  # of half of them


def test_cells_held_back_to_validate_on_are_the_reference_beside_others_to_test(fit, caplog):
    """A random half was, of cells that the network was trained on."""
    made = fit(train={"train_size": 0.7, "validation_size": 0.2, **TRAIN, "max_epochs": 1})
    assert len(made.test_indices) == 12
    found = outlier_score(made, seed=1)
    assert "trained on" not in caplog.text
    held = made.adata[np.sort(made.validation_indices)].copy()
    pd.testing.assert_frame_equal(found, outlier_score(made, made.adata, reference=held, seed=1))


def test_too_few_cells_to_compare_with(fit, make_adata):
    with pytest.raises(InputError, match="6 cells to compare with; 10 or more"):
        outlier_score(fit(), reference=make_adata(6))


def test_scores_do_not_depend_on_the_batch_size_of_scvi_tools(fit, monkeypatch):
    """Samples did."""
    made = fit()
    found = outlier_score(made, n_samples=2)
    monkeypatch.setattr(scvi.settings, "batch_size", 7)
    pd.testing.assert_frame_equal(outlier_score(made, n_samples=2), found)


def test_seeds_matter_and_repeat(fit):
    made = fit()
    a, b, c = (outlier_score(made, n_samples=2, seed=seed) for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(a, b)
    assert np.abs(a["deviance"] - c["deviance"]).max() > 1e-3


def test_cells_that_are_the_reference_themselves_are_told(fit, make_adata, caplog):
    """Their p-values are uniform whatever they are; cells that only have the same names are others."""
    made, cells, others = fit(), make_adata(40, seed=3), make_adata(40, seed=4)
    told = r"of 40 scored cells are in the reference themselves"
    outlier_score(made, cells, reference=others)
    outlier_score(made, cells, reference=cells[:20].copy())
    outlier_score(made)
    assert "in the reference" not in caplog.text
    for adata, reference in ((cells, cells), (cells, cells[::-1].copy())):
        caplog.clear()
        found = outlier_score(made, adata, reference=reference)
        assert caplog.text.count("in the reference") == 1
        assert "40 " + told in caplog.text
        assert stats.kstest(found["p_value"], "uniform").pvalue > 0.99
    caplog.clear()
    outlier_score(made, cells, reference=cells[:21].copy())
    assert "21 " + told in caplog.text
    caplog.clear()
    outlier_score(made, reference=made.adata.copy())
    assert "120 of 120 scored cells are in the reference" in caplog.text


@pytest.fixture(scope="module")
def left_out():
    """Return a model, cells held back and cells of a type that training lacks."""
    adata = simulate(2000, 200, n_labels=6)
    unseen = (adata.obs["cell_type"] == "type_0").to_numpy()
    held = (np.random.default_rng(0).random(adata.n_obs) < 0.25) & ~unseen
    train = adata[~unseen & ~held].copy()
    keys = {"labels_key": "cell_type", "total_counts_key": "total_counts"}
    TRVAE.setup_anndata(train, "condition", **keys)
    models = {}
    for preset in ("default", "vae"):
        models[preset] = TRVAE(train, preset=preset)
        models[preset].train(**TRAIN)
    return models, adata[held].copy(), adata[unseen].copy()


@pytest.mark.parametrize("preset", ["default", "vae"])
def test_p_values_of_held_back_cells_are_uniform_and_an_unseen_type_is_found(preset, left_out):
    """The likelihood itself does not find it: AUROC 0.5 here, as it is about depth and diversity."""
    models, held, unseen = left_out
    usual, new = (outlier_score(models[preset], cells) for cells in (held, unseen))
    assert stats.kstest(usual["p_value"], "uniform").pvalue > 0.01
    is_new = np.repeat([0, 1], [len(usual), len(new)])
    auroc = {
        name: roc_auc_score(is_new, -pd.concat([usual[name], new[name]]))
        for name in ("p_value", "log_likelihood")
    }
    assert auroc["p_value"] > 0.95
    assert auroc["log_likelihood"] < 0.7
    assert (new["p_value"] < 0.05).mean() > 0.8


# -- all presets, and what is refused -----------------------------------------------------------------


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "paper"])
def test_every_preset_finds_cells_unlike_its_own(preset, fit, make_adata):
    """Genes in reverse order: the profile is that of no label."""
    train = {"max_epochs": 20, "batch_size": 30}
    made = fit(make_adata(), preset=preset, train=train)
    odd = make_adata(40, seed=9)
    odd.X = odd.X[:, ::-1]
    found = outlier_score(made, odd, n_samples=4)
    usual = outlier_score(made, make_adata(40, seed=8), n_samples=4)
    is_odd = np.repeat([0, 1], [len(usual), len(found)])
    auroc = roc_auc_score(is_odd, pd.concat([usual["deviance"], found["deviance"]]))
    assert auroc > 0.9


def test_outlier_score_refuses(fit):
    made = fit(train=False)
    with pytest.raises(RuntimeError, match="not trained"):
        outlier_score(made)
    made.is_trained_ = True
    with pytest.raises(InputError, match="n_samples is 0"):
        outlier_score(made, n_samples=0)
    made = fit()
    for given, match in (
        ({"n_samples": 1.5}, "n_samples is 1.5; a whole number"),
        ({"seed": -1}, "seed is -1; at least 0"),
        ({"adata": made.adata[:0]}, "adata has no cells"),
    ):
        with pytest.raises(InputError, match=match):
            outlier_score(made, **given)
