"""What can be done in the latent space of a flow: densities, draws, lines and labels."""

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy import stats

from trvae_sc.errors import InputError
from trvae_sc.family import FlowTransfer, Gaussian, posterior

pytest.importorskip("zuko")
CENTERS = np.array([[4.0, 0.0, 0.0], [-4.0, 0.0, 1.0], [0.0, 5.0, -1.0]])


def make(n=300, seed=0):
    """Return cells of three labels around their centers, under two conditions."""
    rng = np.random.default_rng(seed)
    label = np.arange(n) % 3
    obs = pd.DataFrame(
        {
            "condition": np.array(["c", "s"])[np.arange(n) // 3 % 2],
            "cell_type": list("ABC") * (n // 3),
        },
        index=[f"cell_{i}" for i in range(n)],
    )
    x = CENTERS[label] + rng.normal(size=(n, 3))
    return AnnData(np.column_stack([x, 1 + 0.1 * rng.normal(size=n)]).astype(np.float32), obs=obs)


@pytest.fixture(scope="module")
def model():
    adata = make()
    FlowTransfer.setup_anndata(adata, "condition", labels_key="cell_type", is_count=False)
    made = FlowTransfer(adata, n_pcs=3, n_hidden=(32,), n_transforms=2)
    made.train(max_epochs=150, accelerator="cpu", enable_progress_bar=False)
    return made


def components(model, adata):
    """Return the whitened components of cells."""
    module = model.module
    x = (adata.X - module.center.numpy()) @ module.components.numpy()
    return torch.as_tensor(x / module.spread.numpy(), dtype=torch.float32)


def test_cells_may_be_a_view_in_reverse_order(model):
    """They were refused with an error of torch, also in training."""
    cells = model.adata[::-1]
    np.testing.assert_array_equal(model.encode(cells), model.encode()[::-1])
    np.testing.assert_array_equal(model.log_prob(cells), model.log_prob()[::-1])
    np.testing.assert_array_equal(model.decode(model.encode()[::-1]).X, model.decode(model.encode()).X[::-1])  # fmt: skip
    reverse = make()
    reverse.X = reverse.X[:, ::-1]
    FlowTransfer.setup_anndata(reverse, "condition", labels_key="cell_type", is_count=False)
    FlowTransfer(reverse).train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)


def test_codes_are_those_of_the_flow_and_decode_to_the_cells(model):
    p = components(model, model.adata)
    u = model.encode()
    with torch.no_grad():
        np.testing.assert_allclose(u, model.module.flow().transform(p), atol=1e-4)
    found = model.decode(u[:5], condition="s", labels=list("ABCAB"))
    inside = p[:5].numpy() * model.module.spread.numpy() @ model.module.components.numpy().T
    np.testing.assert_allclose(found.X, model.module.center.numpy() + inside, atol=1e-3)
    assert found.obs["condition"].tolist() == ["s"] * 5
    assert found.obs["cell_type"].tolist() == list("ABCAB")
    np.testing.assert_allclose(model.encode(indices=[3]), u[[3]], atol=1e-5)


def test_density_is_that_of_zuko_and_of_the_posterior(model):
    p = components(model, model.adata)
    with torch.no_grad():
        expected = model.module.flow().log_prob(p).numpy()
        np.testing.assert_allclose(model.log_prob(), expected, rtol=1e-3, atol=1e-3)
        slope = model.module.flow().transform.call_and_ladj(p)[1].numpy()
    shown = model.adata[model.adata.obs["cell_type"] == "A"].copy()
    around = posterior(Gaussian(np.zeros(3), np.ones(3)), model.encode(shown), 2.0)
    by_hand = stats.norm.logpdf(model.encode(), around.mean, np.sqrt(around.variance)).sum(1)
    found = model.log_prob(exemplars=shown, strength=2.0)
    np.testing.assert_allclose(found, by_hand + slope, rtol=1e-3, atol=1e-3)
    assert found.index.equals(model.adata.obs_names)


def test_density_integrates_to_one(model):
    """By importance sampling from a wide Gaussian."""
    rng = np.random.default_rng(0)
    p = torch.as_tensor(rng.normal(0.0, 2.0, (20_000, 3)), dtype=torch.float32)
    with torch.no_grad():
        values = model.module.center + model.module.change_of(p)
        found = model.module.with_slopes(values).numpy()
    log_p = stats.norm.logpdf(found[:, :-1]).sum(1) + found[:, -1]
    weight = np.exp(log_p - stats.norm.logpdf(p.numpy(), 0.0, 2.0).sum(1))
    assert weight.mean() == pytest.approx(1.0, abs=0.1)


def test_new_cells_are_like_those_of_training_or_the_exemplars(model):
    x = model.generate(3000, seed=1).X
    np.testing.assert_allclose(x.mean(0), model.adata.X.mean(0), atol=0.5)
    np.testing.assert_allclose(np.cov(x.T)[:3, :3], np.cov(model.adata.X.T)[:3, :3], atol=2.0)
    shown = model.adata[model.adata.obs["cell_type"] == "B"][:20].copy()
    near = model.generate(500, exemplars=shown).X[:, :3].mean(0)
    distance = np.linalg.norm(CENTERS - near, axis=1)
    assert distance.argmin() == 1
    np.testing.assert_array_equal(model.generate(5).X, model.generate(5).X)
    assert model.generate(5).obsm["X_trvae"].shape == (5, 3)


def test_labels_are_told_by_the_density_of_their_posterior(model):
    new = make(seed=5)
    found = model.classify(new)
    np.testing.assert_allclose(found.sum(axis=1), 1.0)
    assert (found.idxmax(axis=1) == new.obs["cell_type"]).mean() > 0.95
    shown = model.adata[model.adata.obs["cell_type"] != "C"][:40].copy()
    few = model.classify(new, exemplars=shown)
    assert list(few) == ["A", "B"]
    logs = [
        model.log_prob(new, exemplars=shown[shown.obs["cell_type"] == name].copy()) for name in "AB"
    ]
    np.testing.assert_allclose(few["A"], 1 / (1 + np.exp(logs[1] - logs[0])), atol=1e-4)
    shown.obs["cell_type"] = shown.obs["cell_type"].astype(str).replace("A", "new")
    also_new = model.classify(new, exemplars=shown)  # the flow sees no labels
    assert list(also_new) == ["B", "new"]
    np.testing.assert_array_equal(also_new["new"], few["A"])


def test_lines_go_from_the_origin_or_between_cells(model):
    u = model.encode()
    path = model.interpolate(None, 3, steps=5)
    np.testing.assert_allclose(path.obsm["X_trvae"][0], 0.0)
    np.testing.assert_allclose(path.obsm["X_trvae"][2], u[3] / 2, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(path.X[-1], model.adata.X[3], atol=1e-3)  # with what is outside
    between = model.interpolate(0, {"cell_type": "B"}, steps=3)
    is_b = (model.adata.obs["cell_type"] == "B").to_numpy()
    np.testing.assert_allclose(between.obsm["X_trvae"][-1], u[is_b].mean(0), atol=1e-4)
    np.testing.assert_allclose(between.X[0], model.adata.X[0], atol=1e-3)
    assert path.obs["fraction"].tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_a_flow_refuses(model):
    untrained = FlowTransfer(model.adata, n_pcs=3)
    for call in (untrained.encode, untrained.generate, untrained.log_prob, untrained.classify):
        with pytest.raises(RuntimeError, match="not trained"):
            call()
    with pytest.raises(InputError, match=r"u has shape \(1, 2\); .* shape \(n_codes, 3\)"):
        model.decode([[0.0, 0.0]])
    with pytest.raises(InputError, match="u holds NaN"):
        model.decode(np.full((2, 3), np.nan))
    with pytest.raises(InputError, match="labels has 2 values for 3 codes"):
        model.decode(np.zeros((3, 3)), labels=["A", "B"])
    with pytest.raises(InputError, match="strength is -1"):
        model.generate(3, strength=-1)
    with pytest.raises(InputError, match="steps is 1"):
        model.interpolate(None, 0, steps=1)
    with pytest.raises(InputError, match="Row 1000000 of an AnnData"):
        model.encode(indices=[1_000_000])
    with pytest.raises(InputError, match="n_obs is 0"):
        model.generate(0)
    adata = make()
    FlowTransfer.setup_anndata(adata, "condition", is_count=False)
    made = FlowTransfer(adata, n_pcs=3, n_hidden=(8,))
    made.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
    with pytest.raises(InputError, match="without labels_key"):
        made.classify()
