"""Generated cells, and the check that finds copies of training cells."""

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from trvae_sc import TRVAE, family
from trvae_sc.datasets import simulate
from trvae_sc.errors import InputError
from trvae_sc.family import copy_check


def cells(n, seed, *, low_noise=False):
    """Return log values of negative binomial cells of one distribution (or its means: no noise)."""
    mean = np.random.default_rng(0).gamma(0.5, 4.0, 60)
    rng = np.random.default_rng(seed)
    state = np.exp(rng.normal(0, 0.3, (n, 3)) @ np.random.default_rng(1).normal(0, 1, (3, 60)))
    rates = mean * state
    return np.log1p(rates if low_noise else rng.poisson(rates * rng.gamma(4.0, 0.25, rates.shape)))


# -- the check ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("held_back", [None, cells(300, 2)])
@pytest.mark.parametrize("as_sparse", [False, True])
def test_copies_are_caught_and_fresh_cells_are_not(held_back, as_sparse):
    wrap = sparse.csr_matrix if as_sparse else np.asarray
    train = wrap(cells(500, 1))
    held_back = held_back if held_back is None else wrap(held_back)
    copied = copy_check(train[:200], train, held_back)
    assert copied["copies"]
    assert copied["n_identical"] == copied["n_close"] == copied["n_generated"] == 200
    assert "200 equal one" in copied["note"]
    assert "the generated cells copy training cells" in copied["note"]
    fresh = copy_check(wrap(cells(200, 3)), train, held_back)
    assert not fresh["copies"]
    assert fresh["n_identical"] == 0
    assert fresh["p_value"] > 0.01
    assert fresh["median_distance"] == pytest.approx(fresh["median_distance_real"], rel=0.05)
    assert "no sign that generated cells copy" in fresh["note"]
    assert fresh["n_real"] == (500 if held_back is None else 300)


@pytest.mark.parametrize("seed", range(5))
def test_a_few_copies_among_fresh_cells_and_noisy_copies_are_caught(seed):
    train, fresh = cells(500, 10 + seed), cells(400, 20 + seed)
    rng = np.random.default_rng(seed)
    noisy = train[:200] + rng.normal(0, 0.05, (200, 60))
    found = copy_check(noisy, train)
    assert found["copies"]
    assert found["n_identical"] == 0
    some = np.concatenate([fresh[:380], train[:20]])
    assert copy_check(some, train)["copies"]
    assert not copy_check(fresh, train)["copies"]


def test_cells_without_noise_are_near_to_all_and_copies_of_none():
    train, smooth = cells(500, 1), cells(200, 2, low_noise=True)
    found = copy_check(smooth, train)
    assert found["median_distance"] < 0.95 * found["median_distance_real"]
    assert not found["copies"]


def test_distances_are_those_to_the_nearest_other_cells():
    train = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 10.0], [0.0, 10.0]])
    found = copy_check(np.array([[0.0, 1.0]]), train)
    assert found["median_distance"] == pytest.approx(1.0)
    real = [5.0, 5.0, 0.0, 0.0]  # twins are each other's nearest
    assert found["median_distance_real"] == pytest.approx(np.median(real))
    held = copy_check(np.array([[0.0, 1.0]]), train, np.array([[3.0, 5.0], [0.0, 10.0]]))
    assert held["median_distance_real"] == pytest.approx(0.5)


def test_copies_of_cells_that_training_has_twice_are_caught():
    train = cells(300, 1)
    twice = np.concatenate([train, train[:60]])
    assert copy_check(train[:50], twice)["copies"]


@pytest.mark.parametrize(
    ("generated", "train", "match"),
    [
        (np.ones((2, 3)), np.ones((2, 3)), "`train` has 2 cells; at least 3"),
        (np.ones((2, 4)), np.ones((5, 3)), r"`generated` has shape \(2, 4\)"),
        (np.ones((0, 3)), np.ones((5, 3)), r"`generated` has shape \(0, 3\)"),
        (np.full((4, 3), np.nan), np.ones((5, 3)), "`generated` holds NaN"),
        (np.ones((4, 3)), sparse.csr_matrix([[np.inf, 0.0, 1.0]] * 5), "`train` holds NaN"),
        (anndata.AnnData(np.ones((4, 3))), np.ones((5, 3)), "`generated` is an AnnData"),
        (pd.DataFrame(np.ones((4, 3))), np.ones((5, 3)), "`generated` is no matrix"),
        (np.ones(3), np.ones((5, 3)), "`generated` is no matrix"),
        (np.full((4, 3), 7.0), np.full((5, 3), np.log1p(7)), r"\['generated'\] hold counts and"),
    ],
)
def test_copy_check_refuses(generated, train, match):
    with pytest.raises(InputError, match=match):
        copy_check(generated, train)


# -- generate -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    adata = simulate(900, 100, n_labels=4)
    keys = {"labels_key": "cell_type", "total_counts_key": "total_counts"}
    TRVAE.setup_anndata(adata, "condition", **keys)
    made = TRVAE(adata, preset="cvae", n_latent=6, n_hidden=(32, 16))
    made.train(max_epochs=80, accelerator="cpu", enable_progress_bar=False)
    return made


def test_generated_cells_are_of_the_condition_and_no_copies(model):
    found = family.generate(model, "stimulated", 300)
    assert set(found.obs["condition"]) == {"stimulated"}
    assert found.shape == (300, 100)
    assert (found.X.data % 1 == 0).all()
    check = found.uns["trvae_sc"]["copy_check"]
    assert not check["copies"]
    assert check["n_generated"] == 300
    adata = model.adata
    x = [a.X.sum(0) / a.X.sum() for a in (found, adata[adata.obs["condition"] == "stimulated"])]
    assert np.corrcoef(*(np.log1p(1e4 * np.asarray(v)).ravel() for v in x))[0, 1] > 0.95
    again = family.generate(model, "stimulated", 300)
    assert (again.X != found.X).nnz == 0
    anndata.AnnData.write_h5ad(found, "generated.h5ad")


def test_cells_of_a_label_come_from_its_codes(model):
    found = family.generate(model, "control", 400, label="type_1")
    assert set(found.obs["cell_type"]) == {"type_1"}
    control = model.adata[model.adata.obs["condition"] == "control"]

    def profile(adata):
        return np.log1p(1e3 * np.asarray(adata.X.sum(0)).ravel() / adata.X.sum())

    means = {label: profile(control[control.obs["cell_type"] == label]) for label in model.labels}
    own = profile(found)
    assert min(means, key=lambda label: np.linalg.norm(means[label] - own)) == "type_1"


def test_a_model_that_returns_training_cells_is_caught(model, monkeypatch):
    copied = model.adata[:300].copy()
    copied.uns["trvae_sc"] = {}
    monkeypatch.setattr(type(model), "generate", lambda *_, **__: copied)
    found = family.generate(model, "control", 300)
    assert found.uns["trvae_sc"]["copy_check"]["copies"]
    assert found.uns["trvae_sc"]["copy_check"]["n_identical"] == 300


def test_distances_are_of_log_shares_and_held_back_cells_are_used(model):
    held_back = simulate(300, 100, n_labels=4, seed=0)
    found = family.generate(model, "control", 50, held_back=held_back)
    check = found.uns["trvae_sc"]["copy_check"]
    assert check["n_real"] == held_back.n_obs

    def log(adata):
        total = adata.obs["total_counts"].to_numpy()[:, None]
        return np.log1p(model.module.kappa.item() * adata.X.toarray() / total)

    distance = np.linalg.norm(log(found)[:, None] - log(model.adata)[None], axis=2)
    assert check["median_distance"] == pytest.approx(np.median(distance.min(1)), rel=1e-4)


def test_held_back_cells_may_be_in_a_file(model, tmp_path):
    held = simulate(60, 100, n_labels=4, seed=5)
    held.write_h5ad(tmp_path / "held.h5ad")
    in_file = anndata.read_h5ad(tmp_path / "held.h5ad", backed="r")
    found, expected = (
        family.generate(model, "control", 20, held_back=cells).uns["trvae_sc"]["copy_check"]
        for cells in (in_file, held)
    )
    assert found == expected


def test_generate_of_presets_without_prior_or_condition(fit):
    autoencoder = fit(preset="autoencoder")
    with pytest.raises(InputError, match="'autoencoder' has no prior to draw from"):
        family.generate(autoencoder, None, 5)
    assert family.generate(autoencoder, None, 5, label="NK").n_obs == 5
    found = family.generate(autoencoder, None, 5, latent="posterior")
    expected = autoencoder.generate(None, 5, latent="posterior")
    np.testing.assert_array_equal(found.X.toarray(), expected.X.toarray())
    assert found.uns["trvae_sc"]["latent"] == "posterior"
    vae = fit(preset="vae")
    with pytest.raises(InputError, match="The prior knows no labels"):
        family.generate(vae, None, 5, label="NK", latent="prior")
    with pytest.raises(InputError, match=r"'vae' does not see it: give condition=None"):
        family.generate(vae, "control", 5)
    found = family.generate(vae, None, 5)
    assert "condition" not in found.obs
    needed = r"No condition is given, but .* needs one of \['control', 'stimulated'\]: give condition='control'"
    with pytest.raises(InputError, match=needed):
        family.generate(fit(), None, 5)
    with pytest.raises(InputError, match="n_obs is 0"):
        family.generate(vae, None, 0)
    with pytest.raises(RuntimeError, match="not trained"):
        family.generate(fit(train=False), "control", 5)
    values = fit(gene_likelihood="normal")
    assert np.isfinite(family.generate(values, "control", 5).X).all()
