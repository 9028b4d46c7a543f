"""Responses to other conditions: which labels are alike, beside their profiles."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from trvae_sc import TRVAE
from trvae_sc.expression import States, label_weights, ridge_shift
from trvae_sc.model._pairs import Responses, seen_pairs
from trvae_sc.uncertainty import half_width

CONDITIONS = ("control", "x", "y", "z")
CPU = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False}


def two_classes(missing=(), n=40, seed=0):
    """Six labels of two classes that answer x, y and z each in its way, and whose control hardly tells.

    (label, condition) in `missing` have no cells.
    """
    rng = np.random.default_rng(seed)
    profiles = rng.normal(0, 1, (6, 12))
    effects = rng.normal(0, 1, (2, 4, 12))
    effects[:, 0] = 0
    rows = [(k, c) for k in range(6) for c in range(4) if (k, CONDITIONS[c]) not in missing]
    x = np.concatenate(
        [profiles[k] + effects[k % 2, c] + rng.normal(0, 0.5, (n, 12)) for k, c in rows]
    )
    obs = {"label": [f"l{k}" for k, _ in rows], "condition": [CONDITIONS[c] for _, c in rows]}
    obs = pd.DataFrame({k: np.repeat(v, n) for k, v in obs.items()})
    obs.index = obs.index.astype(str)
    return AnnData(x.astype(np.float32), obs=obs), effects


def fitted(adata, labels_key="label", **kwargs):
    TRVAE.setup_anndata(adata, "condition", labels_key=labels_key)
    model = TRVAE(adata, gene_likelihood="normal", n_latent=4, n_hidden=(16,), **kwargs)
    model.train(max_epochs=1, **CPU)
    return model


def products(observed, pairs):
    rows = np.concatenate([pairs.profiles, observed[None]])
    return rows @ rows.T


def test_products_of_profiles_equal_a_hand_computation():
    """Of l0 towards y: x and z tell, x not of l3 and z of half the cells of l5."""
    adata, _ = two_classes(missing=[(0, "y"), (3, "x"), (4, "y")])
    few = np.flatnonzero((adata.obs["label"] == "l5") & (adata.obs["condition"] == "z"))[20:]
    model = fitted(adata[np.delete(np.arange(adata.n_obs), few)].copy())
    profiles = model.module.profiles.numpy().astype(float)
    n_cells = model.n_cells[list(CONDITIONS)]
    seen, rows = [1, 2, 3, 5], [1, 2, 3, 5, 0]
    responses = 0.0
    for condition in ("x", "z"):
        weight = np.zeros(6)
        known = n_cells[condition].to_numpy() > 0
        harmonic = 2 / (1 / n_cells.loc[known, ["control", condition]]).sum(axis=1).to_numpy()
        weight[known] = harmonic / (harmonic + 30)
        weight /= weight.max()
        change = profiles[:, model.conditions.index(condition)] - profiles[:, 0]
        centre = (weight[seen, None] * change[seen]).sum(0) / weight[seen].sum()
        change = ((change - centre) * weight[:, None])[rows]
        responses = responses + change @ change.T
    pairs = seen_pairs(model, "control", "y")
    observed = profiles[0, 0]
    found = Responses(model, "control", "y").beside("l0", observed, pairs)
    expected = products(observed, pairs) + 3 / 2 * responses
    np.testing.assert_allclose(products(*found), expected, atol=1e-8)
    assert (np.abs(responses) > 0.1).any()
    np.testing.assert_array_equal(found[1].shifts, pairs.shifts)


def test_states_have_the_responses_of_their_label():
    adata, _ = two_classes(missing=[(0, "y")])
    model = fitted(adata)
    pairs = seen_pairs(model, "control", "y")
    states = States(pairs.profiles[[1, 1, 4]] + 0.5, pairs.shifts[[1, 1, 4]], np.array([1, 1, 4]))
    observed = model.module.profiles[0, 0].numpy().astype(float)
    responses = Responses(model, "control", "y")
    _, found = responses.beside("l0", observed, pairs._replace(states=states))
    np.testing.assert_array_equal(found.states.profiles[:, :12], states.profiles)
    np.testing.assert_array_equal(found.states.profiles[:, 12:], found.profiles[[1, 1, 4], 12:])
    np.testing.assert_array_equal(found.states.label, states.label)


@pytest.mark.parametrize(
    ("missing", "label", "target"),
    [
        ([], "new", "y"),  # a label that was not measured at all
        ([(0, "x"), (0, "y"), (0, "z")], "l0", "y"),  # nothing but its control
        ([(0, "control"), (0, "y")], "l0", "y"),  # no change of it is known
        ([(k, "x") for k in (1, 2, 3, 4)] + [(0, "y"), (0, "z")], "l0", "y"),  # one other label
    ],
)
def test_without_responses_to_compare_profiles_stay(missing, label, target):
    model = fitted(two_classes(missing=missing)[0])
    pairs, observed = seen_pairs(model, "control", target), np.ones(12)
    found = Responses(model, "control", target).beside(label, observed, pairs)
    assert found[0] is observed
    assert found[1] is pairs


def test_two_conditions_or_no_labels_have_no_responses():
    adata, _ = two_classes()
    two = adata[adata.obs["condition"].isin(["control", "x"])].copy()
    for model, label in ((fitted(two), "l0"), (fitted(adata, None), "all")):
        pairs, observed = seen_pairs(model, "control", "x"), np.ones(12)
        assert Responses(model, "control", "x").beside(label, observed, pairs) == (observed, pairs)


@pytest.mark.parametrize("seed", range(3))
def test_prediction_follows_the_labels_that_responded_alike(seed):
    """All other labels know y; what l0 did under x and z tells its class, its control does not."""
    adata, effects = two_classes(missing=[(0, "y")], seed=seed)
    model = fitted(adata, context_weight=1.0)  # the labels alone
    predicted = model.predict(target="y", labels="l0", source="control")
    found = predicted.var["predicted_change"].to_numpy()
    pairs = seen_pairs(model, "control", "y")
    observed = model.module.profiles[0, 0].numpy().astype(float)
    scale = model.module.gene_scale.numpy()
    alike = Responses(model, "control", "y").beside("l0", observed, pairs)
    np.testing.assert_allclose(found, ridge_shift(*alike) * scale, atol=1e-4)
    error, of_profiles = (
        np.square(change - effects[0, 2]).sum()
        for change in (found, ridge_shift(observed, pairs) * scale)
    )
    assert error < 0.5 * of_profiles


def test_label_without_cells_weighs_nothing():
    weights = label_weights(np.array([[30.0, 30.0], [30.0, 0.0], [10.0, 30.0]]))
    np.testing.assert_allclose(weights, [1.0, 0.0, (15 / 45) / (30 / 60)])


def test_intervals_are_of_labels_compared_by_their_responses():
    """Of two labels that were measured under other conditions, the mean of two widths by their cells."""
    adata, effects = two_classes(missing=[(0, "y"), (1, "y"), (1, "z")])
    adata = adata[
        np.delete(np.arange(adata.n_obs), np.arange(10))
    ].copy()  # 30 cells of l0's control
    model = fitted(adata, context_weight=1.0)
    pairs, responses = seen_pairs(model, "control", "y"), Responses(model, "control", "y")
    scale = model.module.gene_scale.numpy()
    observed = np.zeros(12)
    widths = [
        half_width(responses.beside(label, observed, pairs)[1]) * scale for label in ("l0", "l1")
    ]
    assert not np.allclose(widths[0], widths[1])
    predicted = model.predict(target="y", labels=["l0", "l1"], source="control").var
    found = (predicted["change_upper"] - predicted["change_lower"]).to_numpy() / 2
    np.testing.assert_allclose(found, (30 * widths[0] + 40 * widths[1]) / 70, rtol=1e-4)
    assert widths[0].mean() < 0.7 * (half_width(pairs) * scale).mean()
    one = model.predict(target="y", labels="l0", source="control").var
    truth = effects[0, 2]
    assert ((one["change_lower"] <= truth) & (truth <= one["change_upper"])).mean() >= 0.75
