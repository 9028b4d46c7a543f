"""Decoded codes are what the decoder says, collapsed dimensions are named, and conditions may be none."""

import logging

import numpy as np
import pandas as pd
import pytest
import torch

from trvae_sc import PRESETS, TRVAE, family, hints
from trvae_sc.errors import InputError

BLIND = ("vae", "beta_vae", "autoencoder")


@pytest.fixture(scope="module")
def model(fit):
    setup = {"batch_key": "batch", "categorical_covariate_keys": ["site"]}
    setup["continuous_covariate_keys"] = ["age"]
    return fit(setup=setup, train={"max_epochs": 5})


def by_hand(model, z, condition, batch, site, age):
    """Return log(1 + kappa share) of codes, from the layers of the decoder."""
    module = model.module
    layer = module.decoder_in
    with torch.no_grad():
        y = layer.linear(torch.as_tensor(z)) + layer.condition[model.conditions.index(condition)]
        y = y + layer.categories[0][batch] + layer.categories[1][site]
        y = y + torch.tensor([[age]], dtype=torch.float32) @ layer.continuous
        out = module.output(module.decoder(module.mmd_layer(y))).double()
    return np.log1p(module.kappa.item() * torch.softmax(out, 1)[:, : model.adata.n_vars].numpy())


# -- decode -------------------------------------------------------------------------------------------


def test_decoded_codes_are_those_of_the_layers(model):
    z = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    found = model.decode(z, condition="stimulated", batch="b1", labels="NK")
    obs = model.adata.obs
    site = int(obs["site"].cat.codes.mode()[0])
    expected = by_hand(model, z, "stimulated", 1, site, obs["age"].mean())
    np.testing.assert_allclose(found.X, expected, rtol=1e-4)
    np.testing.assert_array_equal(found.obsm["X_trvae"], z)
    assert found.obs["condition"].tolist() == ["stimulated"] * 5
    assert found.obs["cell_type"].tolist() == ["NK"] * 5
    assert found.var_names.equals(model.adata.var_names)
    assert found.uns["trvae_sc"]["scale"] == "log(1 + kappa * share)"


def test_codes_may_be_a_view_in_reverse_order(model):
    """They were refused with an error of torch."""
    z = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    found, expected = (model.decode(x, condition="stimulated") for x in (z[::-1], z))
    np.testing.assert_array_equal(found.X, expected.X[::-1])


def test_large_groups_count_for_all_their_cells(fit, make_adata):
    """Of a group 256 cells are kept, which counted as many: a batch of one large group was no longer the most frequent."""
    adata = make_adata(1200)
    adata.obs["cell_type"] = pd.Categorical(np.where(np.arange(1200) < 800, "B", "NK"))
    is_large = (adata.obs["cell_type"] == "B").to_numpy()
    adata.obs["batch"] = np.where(is_large & (np.arange(1200) // 2 % 8 > 0), "b1", "b0")
    adata.obs["age"] = is_large * 3.0
    adata.obs["site"] = np.where(is_large, "s1", "s0")
    setup = {"batch_key": "batch", "categorical_covariate_keys": ["site"]}
    setup["continuous_covariate_keys"] = ["age"]
    model = fit(adata, setup=setup)
    z = np.ones((2, 4), dtype=np.float32)
    found = model.decode(z, condition="control")
    assert adata.obs["age"].mean() == 2.0
    np.testing.assert_allclose(found.X, by_hand(model, z, "control", 1, 1, 2.0), rtol=1e-4)


def test_conditions_and_batches_may_differ_from_code_to_code(model):
    z = np.zeros((3, 4), dtype=np.float32)
    conditions, batches = ["control", "stimulated", "control"], ["b1", "b0", "b0"]
    together = model.decode(z, condition=conditions, batch=batches)
    for i in range(3):
        alone = model.decode(z[i], condition=conditions[i], batch=batches[i])
        np.testing.assert_allclose(together.X[[i]], alone.X, rtol=1e-5)
    assert together.obs["condition"].tolist() == conditions
    by_series = model.decode(z, condition=pd.Series(conditions, dtype="category"), batch=batches)
    np.testing.assert_array_equal(by_series.X, together.X)


def test_decoded_cells_are_drawn_from_the_likelihood(model):
    z = np.repeat(np.ones((1, 4)), 4000, 0)
    mean = np.expm1(model.decode(z[:1], condition="control").X[0])  # counts of a median total
    found = model.decode(z, condition="control", output="sample", seed=1).X.toarray()
    assert (found % 1 == 0).all()
    theta = model.module.observation.log_theta(torch.tensor([[1.0, 0.0]])).exp().detach().numpy()[0]
    error = np.sqrt((mean + mean**2 / theta) / 4000)
    assert (np.abs(found.mean(0) - mean) < 5 * error + 1e-3).all()
    again = model.decode(z, condition="control", output="sample", seed=1).X.toarray()
    np.testing.assert_array_equal(found, again)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_decodes(preset, fit):
    """An autoencoder, too: it has no prior, but decodes any code."""
    made = fit(preset=preset, gene_likelihood="mse" if preset == "paper" else "normal")
    condition = None if preset in BLIND else "control"
    z = made.get_latent_representation()[:6]
    rows = (made.adata.obs["condition"] == "control").to_numpy()[:6]
    found = made.decode(z, condition=condition)
    tensors = next(iter(made._make_data_loader(made.adata, np.arange(6))))
    with torch.no_grad():
        inputs = made.module._get_generative_input(tensors, {"z": torch.as_tensor(z)})
        own = made.module.generative(**inputs)["px"].mean.numpy()
    at = slice(None) if condition is None else rows
    np.testing.assert_allclose(found.X[at], own[at], rtol=1e-3, atol=1e-4)
    assert found.uns["trvae_sc"]["scale"] == "values"
    assert np.isfinite(made.decode(z, condition=condition, output="sample").X).all()


def test_a_condition_of_several_columns_is_given_as_in_predict(make_adata):
    adata = make_adata()
    TRVAE.setup_anndata(adata, ["condition", "sex"])
    made = TRVAE(adata, n_latent=4, n_hidden=(16, 8))
    made.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
    z = np.zeros((2, 4))
    one = made.decode(z, condition={"condition": "stimulated", "sex": "m"})
    assert one.obs[["condition", "sex"]].to_numpy().tolist() == [["stimulated", "m"]] * 2
    for given in (("stimulated", "m"), "stimulated + m", np.array(["stimulated + m"] * 2)):
        np.testing.assert_array_equal(made.decode(z, condition=given).X, one.X)


def test_a_model_without_data_decodes(model, tmp_path):
    model.save(tmp_path / "m")
    alone = TRVAE.load(tmp_path / "m", adata=False, accelerator="cpu")
    z = np.ones((2, 4))
    expected = model.decode(z, condition="control")
    np.testing.assert_allclose(alone.decode(z, condition="control").X, expected.X, rtol=1e-6)
    assert alone.active_dims == model.active_dims


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"z": np.zeros((2, 3))}, r"z has shape \(2, 3\); .*\(n_codes, 4\)"),
        ({"z": np.full((2, 4), np.nan)}, "NaN or infinite"),
        ({"z": [["a"] * 4]}, "no array of numbers"),
        ({"condition": None}, r"condition= one of \['control', 'stimulated'\]"),
        ({"condition": "x"}, "Unknown condition 'x'"),
        ({"condition": ["control"] * 3}, "condition has 3 values for 2 codes"),
        ({"batch": "b9"}, "Unknown batch 'b9'"),
        ({"output": "counts"}, "Unknown output 'counts'; choose 'mean'"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_decode_refuses(model, arguments, match):
    given = {"z": np.zeros((2, 4)), "condition": "control", **arguments}
    with pytest.raises(InputError, match=match):
        model.decode(given.pop("z"), **given)


def test_decode_refuses_what_the_network_does_not_have(fit):
    blind = fit(preset="vae")
    with pytest.raises(InputError, match="'vae' does not see the condition"):
        blind.decode(np.zeros((1, 4)), condition="control")
    with pytest.raises(InputError, match="without batch_key"):
        blind.decode(np.zeros((1, 4)), batch="b0")
    with pytest.raises(RuntimeError, match="not trained"):
        fit(train=False).decode(np.zeros((1, 4)), condition="control")


# -- generate -----------------------------------------------------------------------------------------


def test_generated_means_are_decoded_codes(fit):
    made = fit(preset="cvae")
    found = made.generate("control", 20, output="mean", seed=3)
    decoded = made.decode(found.obsm["X_trvae"], condition="control")
    np.testing.assert_allclose(found.X, decoded.X, rtol=1e-5)
    drawn = made.generate("control", 20, seed=3)
    scales = [cells.uns["trvae_sc"]["scale"] for cells in (found, drawn)]
    assert scales == ["log(1 + kappa * share)", "counts"]
    np.testing.assert_array_equal(drawn.obsm["X_trvae"], found.obsm["X_trvae"])
    with pytest.raises(InputError, match="Unknown output 'delta'"):
        made.generate("control", 20, output="delta")


# -- collapsed dimensions -----------------------------------------------------------------------------


def test_collapsed_dimensions_are_those_of_little_kl(fit, caplog):
    with caplog.at_level(logging.WARNING):
        made = fit(preset="beta_vae", kl_weight=0.05, train={"max_epochs": 30})
    mean, variance = made.get_latent_representation(return_dist=True)
    kl = 0.5 * (mean**2 + variance - 1 - np.log(variance)).mean(0)
    np.testing.assert_allclose(made.kl_, kl, rtol=1e-3)
    assert made.active_dims == np.flatnonzero(kl >= 0.01).tolist()
    assert made.active_dims
    assert len(made.active_dims) == 4 or "collapsed" in caplog.text


def test_a_model_whose_dimensions_all_collapse_says_so(fit, caplog):
    with caplog.at_level(logging.WARNING):
        made = fit(preset="beta_vae", kl_weight=100.0, train={"max_epochs": 150})
    assert made.active_dims == []
    assert "4 of 4 latent dimensions collapsed (KL below 0.01 nats: 0 to 3)" in caplog.text
    assert "every code is decoded to the same cell" in caplog.text
    caplog.clear()
    with hints.said_once():  # as benchmark and select do, which train many
        for _ in range(2):
            made.train(1, accelerator="cpu", enable_progress_bar=False)
    assert caplog.text.count("dimensions collapsed") == 1
    with pytest.raises(InputError, match=r"Dimension 2 collapsed.*active_dims is \[\]; train with"):
        family.traverse(made, 2, condition=None)


def test_an_autoencoder_has_no_kl_and_all_dimensions(fit):
    assert fit(preset="autoencoder").active_dims == [0, 1, 2, 3]


# -- without a condition ------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", BLIND)
def test_data_without_a_condition_do_for_presets_that_see_none(preset, make_adata, tmp_path):
    adata = make_adata()
    del adata.obs["condition"]
    TRVAE.setup_anndata(adata, labels_key="cell_type", total_counts_key="n_counts")
    made = TRVAE(adata, preset=preset, n_latent=4, n_hidden=(16, 8))
    made.train(max_epochs=2, accelerator="cpu", enable_progress_bar=False)
    assert made.conditions == []
    assert made.n_cells.to_numpy().tolist() == [[40], [40], [40]]
    new = make_adata(20, seed=5)[:, ::-1].copy()
    new.obs = new.obs[["n_counts"]]
    assert len(family.outlier_score(made, new)) == 20
    assert family.interpolate(made, 0, 1, adata=new).n_obs == 11
    assert family.traverse(made, made.active_dims[0], adata=new).n_obs == 9
    assert family.shift_attribute(made, new, {"cell_type": "B"}).n_obs == 20
    made.save(tmp_path / "m", save_anndata=True)
    again = TRVAE.load(tmp_path / "m", accelerator="cpu")
    np.testing.assert_allclose(
        again.get_latent_representation(new), made.get_latent_representation(new), atol=1e-6
    )
    with pytest.raises(InputError, match="set up without condition_key"):
        made.predict(target="stimulated")


def test_a_network_that_sees_the_condition_needs_one(make_adata):
    adata = make_adata()
    TRVAE.setup_anndata(adata)
    with pytest.raises(InputError, match="preset 'cvae' sees the condition"):
        TRVAE(adata, preset="cvae")
