"""What sets of parts change beyond the sum of the parts, in the table of effects."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from trvae_sc import TRVAE

QUIET = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False}
N, GENES, SD = 80, 300, 0.7


@pytest.fixture(scope="module")
def fitted():
    """Return a model of log values, and the true interaction of A and B."""
    rng = np.random.default_rng(0)
    base, a, b = rng.normal(2, 1, (3, GENES))
    beyond = rng.normal(0, 1, GENES) * (rng.random(GENES) < 0.3)
    mean = {"control": base, "A": base + a, "B": base + b, "A+B": base + a + b + beyond}
    mean["C"] = base + rng.normal(0, 1, GENES)
    x = np.concatenate([m + rng.normal(0, SD, (N, GENES)) for m in mean.values()])
    obs = pd.DataFrame({"condition": np.repeat(list(mean), N), "cell_type": "K"})
    obs.index = obs.index.astype(str)
    adata = AnnData(x.astype(np.float32), obs=obs)
    TRVAE.setup_anndata(adata, "condition", labels_key="cell_type", condition_separator="+")
    model = TRVAE(adata, gene_likelihood="normal", n_latent=4, n_hidden=(16, 8))
    model.train(2, **QUIET)
    return model, beyond


def test_a_measured_interaction_is_that_of_the_means_with_their_sampling_error(fitted):
    model, beyond = fitted
    table = model.effects(target="A+B", source="control")
    x, c = model.adata.X.astype(np.float64), model.adata.obs["condition"].to_numpy()
    mean = {name: x[c == name].mean(0) for name in set(c)}
    sums = mean["A"] + mean["B"] - 2 * mean["control"]
    own = mean["A+B"] - mean["control"] - sums
    assert table["sum_of_parts"].to_numpy() == pytest.approx(sums, abs=1e-4)
    assert table["interaction"].to_numpy() == pytest.approx(own, abs=1e-4)
    half = (table["interaction_upper"] - table["interaction_lower"]).to_numpy() / 2
    assert np.median(half) == pytest.approx(1.645 * SD * np.sqrt(4 / N), rel=0.05)
    inside = (table["interaction_lower"] <= beyond) & (beyond <= table["interaction_upper"])
    assert 0.85 < inside.mean() < 0.95


def test_a_predicted_interaction_has_the_interval_of_the_prediction(fitted):
    model, _ = fitted
    table = model.effects(target="A+C", source="control")
    assert table["interaction"].to_numpy() == pytest.approx(table["change"] - table["sum_of_parts"])
    wide = table["interaction_upper"] - table["interaction_lower"]
    assert (wide > table["upper"] - table["lower"]).all()


def test_there_is_none_of_a_single_part_or_where_parts_were_not_measured_alone(fitted, trained):
    model, _ = fitted
    assert "interaction" not in model.effects(target="A", source="control")
    assert "interaction" not in trained.effects(target="stimulated")


def test_there_is_none_from_a_source_that_has_parts_itself(fitted):
    """From A the change to A+B is that of B among cells with A: no term of what A alone does."""
    model, _ = fitted
    assert "interaction" not in model.effects(target="A+B", source="A")
    table = model.effects(target="A+B")
    assert set(table["source"]) == {"control", "A", "B", "C"}
    assert table["interaction"].notna().tolist() == (table["source"] == "control").tolist()
