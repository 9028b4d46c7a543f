"""Latent tools: what they decode is what the formulas say."""

import re

import anndata
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from trvae_sc import PRESETS, TRVAE, family, pl
from trvae_sc.errors import InputError
from trvae_sc.family._cells import rows_of


@pytest.fixture(scope="module")
def model(fit):
    return fit(setup={"batch_key": "batch"}, train={"max_epochs": 5})


def decode(model, z, rows, condition=None):
    """Return decoded log values (values) of codes, by the layers of the decoder."""
    module, adata = model.module, model.adata
    tensors = next(iter(model._make_data_loader(adata, rows)))
    with torch.no_grad():
        if condition is not None:
            code = model.conditions.index(condition)
            tensors["condition"] = torch.full_like(tensors["condition"], code)
        z = torch.as_tensor(np.asarray(z), dtype=torch.float32)
        hidden = module.hidden_layers(z, module.context(tensors))[1]
        out = module.to_profile(hidden).double().numpy()
    if module.is_count:
        return np.log1p(module.kappa.item() * np.exp(out))
    return module.gene_mean.numpy() + module.gene_scale.numpy() * out


def linear(fit, n_latent=3):
    """Return a model whose decoder is a matrix (n_latent x n_genes), and that matrix."""
    made = fit(
        preset="autoencoder",
        gene_likelihood="mse",
        norm="none",
        linear_path=False,
        leaky_slope=1.0,
        n_hidden=(8,),
        n_latent=n_latent,
    )
    module = made.module
    weights = module.output.weight @ module.decoder_in.linear.weight
    return made, weights.detach().numpy().T


# -- interpolate --------------------------------------------------------------------------------------


def test_ends_of_an_interpolation_are_the_decoded_cells(model):
    path = family.interpolate(model, 0, 2, steps=5)  # both are controls
    z = model.get_latent_representation(indices=[0, 2])
    np.testing.assert_allclose(path.X[[0, -1]], decode(model, z, [0, 0]), rtol=1e-5)
    np.testing.assert_allclose(path.X[2], decode(model, [z.mean(0)], [0])[0], rtol=1e-5)
    np.testing.assert_allclose(path.obs["fraction"], [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(path.obsm["X_trvae"][1], 0.75 * z[0] + 0.25 * z[1], rtol=1e-4)
    assert path.obs["condition"].unique().tolist() == ["control"]
    assert path.var_names.equals(model.adata.var_names)
    assert path.uns["trvae_sc"]["scale"] == "log(1 + kappa * share)"


def test_groups_are_interpolated_between_their_mean_codes(model):
    obs = model.adata.obs
    b, nk = (obs["cell_type"] == name for name in ("B", "NK"))
    path = family.interpolate(
        model, {"cell_type": "B"}, {"cell_type": "NK"}, steps=2, condition="stimulated"
    )
    z = model.get_latent_representation()
    means = [z[b].mean(0), z[nk].mean(0)]
    first = np.flatnonzero(b)[[0, 0]]
    np.testing.assert_allclose(path.X, decode(model, means, first, "stimulated"), rtol=1e-5)
    by_mask = family.interpolate(
        model, b.to_numpy(), np.flatnonzero(nk), steps=2, condition="stimulated"
    )
    np.testing.assert_array_equal(by_mask.X, path.X)
    both = {"cell_type": "B", "condition": "control"}
    found = family.interpolate(model, both, 2).obsm["X_trvae"][0]
    np.testing.assert_allclose(found, z[b & (obs["condition"] == "control")].mean(0), rtol=1e-4)


@pytest.mark.parametrize(
    ("values", "asked"),
    [
        (np.float16([0.1, 0.7]), [0.1, "0.1", np.float32(0.1)]),
        (np.float32([0.1, 0.7]), [0.1, "0.1", np.float32(0.1)]),
        ([1.0, 2.5], [1, "1", 1.0]),
        ([1, 2], [1.0, "1", np.int8(1)]),
        ([False, True], ["False", np.False_]),
    ],
    ids=["float16", "float32", "float", "int", "bool"],
)
def test_cells_are_chosen_by_levels_that_are_no_words(make_adata, values, asked):
    adata = make_adata(12)
    adata.obs["dose"] = np.asarray(values)[np.arange(12) % 2]
    for value in asked:
        assert rows_of(adata, {"dose": value}).tolist() == [0, 2, 4, 6, 8, 10]
    adata.obs["dose"] = adata.obs["dose"].mask(np.arange(12) == 2)
    assert rows_of(adata, {"dose": asked[-1]}).tolist() == [0, 4, 6, 8, 10]
    with pytest.raises(InputError, match=r"No cell has dose 7; adata\.obs\['dose'\] has \["):
        rows_of(adata, {"dose": 7})


def test_a_linear_decoder_draws_a_straight_line(fit):
    made, _ = linear(fit)
    path = family.interpolate(made, 0, 1, steps=4)
    np.testing.assert_allclose(np.diff(path.X, 2, axis=0), 0.0, atol=1e-5)
    assert "condition" not in path.obs  # the network does not see it


def test_cells_that_are_not_the_models_own(model, make_adata):
    other = make_adata(n_cells=24, seed=5)
    before = other.copy()
    found = family.interpolate(model, 0, 2, steps=2, adata=other[:, ::-1].copy())
    z = model.get_latent_representation(other)
    np.testing.assert_allclose(found.obsm["X_trvae"], z[[0, 2]], rtol=1e-3, atol=1e-5)
    moved = family.shift_attribute(model, before, {"cell_type": "B"})
    pd.testing.assert_frame_equal(moved.var, model.adata.var)  # what is known of genes, or pixels
    assert list(before.obs) == list(make_adata(n_cells=24).obs)


def test_interpolation_is_drawn_from_its_table(model):
    path = family.interpolate(model, 0, 2, steps=3)
    means = pl.interpolation_means(path)
    expected = pd.DataFrame(path.X, index=[0.0, 0.5, 1.0], columns=path.var_names)
    # the type of a mean of float32 differs between versions of pandas
    pd.testing.assert_frame_equal(means, expected, check_names=False, check_dtype=False)
    other = path.copy()
    other.X += 1.0
    twice = anndata.concat([path, other], index_unique="-")
    pd.testing.assert_frame_equal(pl.interpolation_means(twice), means + 0.5, check_dtype=False)
    pd.testing.assert_frame_equal(pl.interpolation_table(path), pl.interpolation_table(means))
    ax = pl.interpolation(path, n_genes=2, source="one", target="other")
    gene = ax.get_legend().get_texts()[0].get_text()
    np.testing.assert_allclose(ax.lines[0].get_ydata(), path[:, gene].X.ravel())
    plt.close("all")
    with pytest.raises(InputError, match="No column 'step' in obs"):
        pl.interpolation_means(path, fraction_key="step")


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((0, 1), ValueError, r"conditions \['control', 'stimulated'\]. Choose one"),
        ((0, 500), InputError, "Row 500 of an AnnData with 120"),
        ((0, []), ValueError, "Choose one at least"),
        ((0, {"cell_type": "X"}), ValueError, r"cell_type 'X'; .* has \['B', 'NK', 'T'\]"),
        ((0, {"type": "B"}), InputError, "No column 'type'"),
        ((0, {"cell_type": "B", "n_counts": -1}), ValueError, "No cell has n_counts -1"),
        ((np.ones(3, bool), 0), InputError, "mask has shape"),
    ],
)
def test_interpolate_refuses(model, arguments, error, match):
    with pytest.raises(error, match=match):
        family.interpolate(model, *arguments)


def test_latent_tools_refuse(model, fit):
    with pytest.raises(
        InputError, match=r"The model is a str; .* preset\.$"
    ):  # a str can be encoded
        family.traverse("model/", 0)
    with pytest.raises(InputError, match="start and end are 2"):
        family.interpolate(model, 0, 2, steps=1)
    with pytest.raises(InputError, match="Unknown condition 'x'"):
        family.interpolate(model, 0, 2, condition="x")
    blind = fit(preset="vae")
    with pytest.raises(InputError, match="'vae' does not see the condition"):
        family.interpolate(blind, 0, 2, condition="control")
    with pytest.raises(InputError, match="dimension is 4; the model has 0 to 3"):
        family.traverse(model, 4, condition="control")
    for dimension in (0.5, "0", True):
        with pytest.raises(
            InputError, match=f"dimension is {dimension!r}; a whole number is needed"
        ):
            family.traverse(model, dimension, condition="control")
    for call in (family.interpolate, family.traverse):
        with pytest.raises(InputError, match=r"steps is 2\.5; a whole number is needed"):
            call(model, 0, **({"b": 2} if call is family.interpolate else {}), steps=2.5)
    with pytest.raises(InputError, match=r"limits are \(1, 1\)"):
        family.traverse(model, 0, (1, 1), condition="control")
    for limits in ((0, 1, 2), 3, "ab", (0, np.inf), (np.nan, 1), (2, 1)):
        with pytest.raises(InputError, match=rf"limits are {re.escape(repr(limits))}; give"):
            family.traverse(model, 0, limits, condition="control")
    with pytest.raises(InputError, match="steps is 1"):
        family.traverse(model, 0, steps=1)
    with pytest.raises(InputError, match="alpha is '1'"):
        family.shift_attribute(model, None, {"cell_type": "B"}, alpha="1")
    with pytest.raises(InputError, match="alpha is nan"):
        family.shift_attribute(model, None, {"cell_type": "B"}, alpha=float("nan"))
    with pytest.raises(InputError, match="cell_type 'X'"):
        family.shift_attribute(model, None, {"cell_type": "X"})
    untrained = fit(train=False)
    for call in (
        lambda: family.interpolate(untrained, 0, 2),
        lambda: family.traverse(untrained, 0),
        lambda: family.shift_attribute(untrained, None, {"cell_type": "B"}),
    ):
        with pytest.raises(RuntimeError, match="not trained"):
            call()


# -- lattice ------------------------------------------------------------------------------------------


def test_a_lattice_is_even_in_the_shares_of_the_prior():
    z = family.lattice(5, coverage=0.8)
    share = np.unique(stats.norm.cdf(z).round(6))
    np.testing.assert_allclose(share, [0.1, 0.3, 0.5, 0.7, 0.9], atol=1e-6)
    assert z.shape == (25, 2)
    assert len(np.unique(z, axis=0)) == 25
    with pytest.raises(InputError, match="n is 1; at least 2"):
        family.lattice(1)
    with pytest.raises(InputError, match=r"coverage is 1\.0; .* from 0 to below 1"):
        family.lattice(3, coverage=1.0)


# -- traverse -----------------------------------------------------------------------------------------


def test_traversing_a_linear_decoder_gives_its_weights(fit):
    made, weights = linear(fit)
    for dimension in range(3):
        found = family.traverse(made, dimension, (-1.0, 2.0), steps=4)
        np.testing.assert_allclose(found.var["slope"], weights[dimension], atol=1e-5)
        np.testing.assert_allclose(found.var["range"], 3 * np.abs(weights[dimension]), atol=1e-5)
        np.testing.assert_allclose(found.obs["value"], [-1, 0, 1, 2])


def test_a_traverse_varies_one_dimension_around_a_group(model):
    z = model.get_latent_representation()
    group = {"cell_type": "NK", "condition": "stimulated"}
    rows = np.flatnonzero((model.adata.obs[list(group)] == pd.Series(group)).all(axis=1))
    found = family.traverse(model, 1, at=group, steps=3)
    expected = np.tile(z[rows].mean(0), (3, 1))
    low, high = np.quantile(z[:, 1], (0.01, 0.99))
    expected[:, 1] = [low, (low + high) / 2, high]
    np.testing.assert_allclose(found.obsm["X_trvae"], expected, rtol=1e-4, atol=1e-5)
    x = decode(model, expected, rows[[0, 0, 0]])
    np.testing.assert_allclose(found.X, x, rtol=1e-4)
    slope = [np.polyfit(expected[:, 1], x[:, g], 1)[0] for g in range(x.shape[1])]
    np.testing.assert_allclose(found.var["slope"], slope, rtol=1e-2, atol=1e-4)
    np.testing.assert_allclose(found.var["range"], x.max(0) - x.min(0), atol=1e-5)
    assert found.obs["condition"].unique().tolist() == ["stimulated"]


# -- shift_attribute ----------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0, -0.5])
def test_cells_move_towards_the_mean_code_of_an_attribute(model, alpha):
    z = model.get_latent_representation()
    mean = z[(model.adata.obs["batch"] == "b1").to_numpy()].mean(0)
    rows = np.arange(model.adata.n_obs)
    found = family.shift_attribute(model, None, {"batch": "b1"}, by="mean", alpha=alpha)
    expected = z + alpha * (mean - z)
    np.testing.assert_allclose(found.obsm["X_trvae"], expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found.X, decode(model, expected, rows), rtol=1e-4, atol=1e-4)
    assert found.obs_names.equals(model.adata.obs_names)
    assert not [name for name in found.obs if name.startswith("_scvi")]
    assert found.uns["trvae_sc"]["n_cells_with_attribute"] == 60


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.5])
def test_cells_move_by_what_an_attribute_changes(model, alpha):
    z = model.get_latent_representation()
    is_t = (model.adata.obs["cell_type"] == "T").to_numpy()
    found = family.shift_attribute(model, None, {"cell_type": "T"}, alpha=alpha)
    expected = z + alpha * (z[is_t].mean(0) - z[~is_t].mean(0))
    np.testing.assert_allclose(found.obsm["X_trvae"], expected, rtol=1e-3, atol=1e-5)
    assert found.uns["trvae_sc"]["by"] == "difference"


def test_an_attribute_of_all_cells_makes_no_difference(model):
    every = np.ones(model.adata.n_obs, dtype=bool)
    with pytest.raises(InputError, match="Every training cell has the characteristic"):
        family.shift_attribute(model, None, every)
    with pytest.raises(InputError, match="by is 'median'; choose"):
        family.shift_attribute(model, None, {"cell_type": "T"}, by="median")


def test_alpha_1_gives_the_decoded_mean_code_to_all(model):
    moved = family.shift_attribute(
        model, None, {"cell_type": "T"}, by="mean", condition="stimulated"
    )
    assert set(moved.obs["condition"]) == {"stimulated"}
    z = model.get_latent_representation()[(model.adata.obs["cell_type"] == "T").to_numpy()].mean(0)
    b0 = (model.adata.obs["batch"] == "b0").to_numpy()
    row = np.flatnonzero(b0)[:1]
    expected = decode(model, [z], row, "stimulated")
    np.testing.assert_allclose(moved.X[b0], np.repeat(expected, b0.sum(), 0), rtol=1e-4)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_latent_tools(preset, fit):
    likelihood = {"gene_likelihood": "mse"} if preset == "paper" else {}
    made = fit(preset=preset, **likelihood)
    n_genes = made.adata.n_vars
    assert family.interpolate(made, 0, 2).shape == (11, n_genes)
    at = {"condition": "control"}
    assert np.isfinite(family.traverse(made, 0, at=at).var["slope"]).all()
    assert family.shift_attribute(made, None, {"cell_type": "B"}).shape == made.adata.shape


def test_a_model_without_data_takes_cells_along(model, make_adata, tmp_path):
    model.save(tmp_path / "m")
    alone = TRVAE.load(tmp_path / "m", adata=False, accelerator="cpu")
    with pytest.raises(InputError, match="without data"):
        family.interpolate(alone, 0, 2)
    found = family.interpolate(alone, 0, 2, adata=make_adata())
    np.testing.assert_allclose(found.X, family.interpolate(model, 0, 2).X, rtol=1e-5)


def test_functions_of_latent_spaces_say_that_a_translator_has_none(make_adata):
    adata = make_adata()
    family.ConditionalGAN.setup_anndata(adata, "condition", labels_key="cell_type")
    gan = family.ConditionalGAN(adata)
    asked = {
        "interpolate": (0, 1),
        "traverse": (0,),
        "shift_attribute": (adata, {"cell_type": "NK"}),
        "outlier_score": (),
        "mixing": (),
        "generate": ("control",),
    }
    for name, args in asked.items():
        with pytest.raises(InputError, match=r"is a ConditionalGAN; .* own: generate, interpolate"):
            getattr(family, name)(gan, *args)
