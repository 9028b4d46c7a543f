"""Predicted changes as a table: one row a label and gene, equal to those of predictions."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from trvae_sc.errors import InputError
from trvae_sc.left_out import Missed


def p_values(change, predicted, missed, n):
    return Missed(missed, predicted, n, np.arange(len(n))).p_values(change)


@pytest.fixture(scope="module")
def model(fit, make_adata):
    adata = make_adata(n_cells=480)
    adata.obs["cell_type"] = [f"t{i // 2 % 5}" for i in range(480)]
    hidden = (adata.obs["cell_type"] == "t0") & (adata.obs["condition"] == "stimulated")
    return fit(adata[~hidden].copy())


def test_effects_are_those_of_predictions(model):
    table = model.effects(target="stimulated")
    assert table["label"].unique().tolist() == ["t0", "t1", "t2", "t3", "t4"]
    assert set(table["source"]) == {"control"}
    assert len(table) == 5 * 30
    for label in ("t0", "t3"):
        own = table[table["label"] == label].set_index("gene")
        predicted = model.predict(target="stimulated", labels=label)
        for name, column in (
            ("source_mean", "source_mean"),
            ("predicted_mean", "predicted_mean"),
            ("change", "predicted_change"),
            ("lower", "change_lower"),
            ("upper", "change_upper"),
        ):
            assert own[name].to_numpy() == pytest.approx(predicted.var[column].to_numpy())
        assert own["n_source_cells"].unique() == predicted.n_obs
        fold = np.log2(np.exp(own["predicted_mean"]) / np.exp(own["source_mean"]))
        assert own["log2_fold_change"].to_numpy() == pytest.approx(fold.to_numpy())
    new = table[table["label"] == "t0"]
    assert new["qval"].to_numpy() == pytest.approx(stats.false_discovery_control(new["pval"]))
    excludes = (new["lower"] > 0) | (new["upper"] < 0)
    assert new["pval"][excludes].median() < new["pval"][~excludes].median()
    assert table.loc[table["label"] != "t0", ["pval", "qval"]].isna().all(axis=None)
    one = model.effects(target="stimulated", labels="t3")
    expected = table[table["label"] == "t3"].reset_index(drop=True)
    pd.testing.assert_frame_equal(one, expected)


def test_effects_are_of_labels_in_the_data_that_a_model_was_trained_on_last(fit, make_adata):
    """Of others the mean is kept, but no codes of the weights that are."""
    adata = make_adata(n_cells=240)
    model = fit(adata)
    labels = sorted(adata.obs["cell_type"].unique())
    model.adata = adata[adata.obs["cell_type"] != labels[-1]].copy()
    model.train(max_epochs=1, accelerator="cpu", devices=1, enable_progress_bar=False)
    assert sorted(model.effects(target="stimulated")["label"].unique()) == labels[:-1]
    with pytest.raises(InputError, match=f"Training has no cells of {labels[-1]} under control"):
        model.effects(target="stimulated", labels=labels[-1])


def test_a_p_value_is_the_share_of_wrong_signs_that_reach_a_change():
    """Equal weights; scales of genes without a label: (sum of squares + mean over genes) / (labels + 1)."""
    predicted = np.array([[1.0, -2.0, 0.5], [0.3, 1.0, -1.0], [-0.4, 2.0, 0.1], [2.0, 1.0, 0.2]])
    real = np.array([[2.0, 1.0, 0.4], [-0.1, 1.5, 1.0], [0.2, 2.5, -0.3], [1.0, 0.5, 0.1]])
    missed = real - predicted
    squares = np.square(missed)

    def scale(rows):
        own = squares[rows]
        return np.sqrt((own.sum(0) + own.mean()) / (len(own) + 1))

    wrong = [
        abs(predicted[k, g]) / scale([i for i in range(4) if i != k])[g]
        for k in range(4)
        for g in range(3)
        if predicted[k, g] * real[k, g] < 0
    ]
    change = np.array([0.0, 0.9, -3.0])
    size = np.abs(change) / scale(range(4))
    expected = [(sum(w >= s for w in wrong) + 1) / (len(wrong) + 1) for s in size]
    found = p_values(change, predicted, missed, np.full(4, 80.0))
    np.testing.assert_allclose(found, expected)
    assert np.isnan(p_values(change, predicted[:2], missed[:2], np.ones(2))).all()


@pytest.mark.parametrize("seed", range(5))
def test_p_values_of_changes_of_zero_are_not_above_one_by_rounding(seed):
    """They were 1 + 2e-16, which the control of the false discovery rate refuses."""
    rng = np.random.default_rng(seed)
    n = rng.integers(20, 400, 7)
    p = p_values(np.zeros(300), rng.normal(size=(7, 300)), rng.normal(size=(7, 300)), n)
    assert p.max() <= 1.0
    assert np.allclose(p, 1.0)


def test_p_values_of_no_change_are_uniform():
    """Truth is noise around nothing, and so is what is predicted."""
    rng = np.random.default_rng(1)
    predicted, real = rng.normal(size=(2, 8, 400))
    found = p_values(rng.normal(size=400), predicted, real - predicted, np.full(8, 500.0))
    assert stats.kstest(found, "uniform").statistic < 0.1


def test_bad_requests(model, fit):
    with pytest.raises(InputError, match="Unknown condition"):
        model.effects(target="x")
    with pytest.raises(InputError, match="Unknown label"):
        model.effects(target="stimulated", labels="x")
    with pytest.raises(InputError, match="nothing changes"):
        model.effects(target="stimulated", source="stimulated")
    with pytest.raises(InputError, match="no cells"):
        model.effects(target="control", source="stimulated", labels="t0")
    with pytest.raises(InputError, match="calibrate=False"):
        fit(preset="cvae").effects(target="stimulated")


def test_the_ridge_compares_labels_by_values_as_they_are(fit, make_adata):
    """By hand: labels are alike by their values, of which some genes have a hundred times the variance."""
    adata = make_adata(n_cells=480)
    code = np.arange(480) // 2 % 5
    adata.obs["cell_type"] = names = np.array([f"t{i}" for i in code])
    scale = np.geomspace(0.1, 10.0, adata.n_vars)
    of_label = np.random.default_rng(0).normal(size=(5, adata.n_vars))[code]
    is_end = (adata.obs["condition"] == "stimulated").to_numpy()
    noise = np.random.default_rng(1).normal(size=adata.shape)
    adata.X = ((of_label + 0.5 * is_end[:, None] * np.abs(of_label) + 0.1 * noise) * scale).astype(
        np.float32
    )
    train = adata[~((names == "t0") & is_end)].copy()
    model = fit(train, gene_likelihood="normal")
    model.module.context_weight = 1.0
    table = model.effects(target="stimulated", labels="t0")
    found = table["change"].to_numpy()
    half = (table["upper"] - table["lower"]).to_numpy() / 2 / scale
    small, large = half[:10].mean(), half[-10:].mean()  # errors are in units of each gene
    assert small < 3 * large < 9 * small

    others, mean, n = ["t1", "t2", "t3", "t4"], {}, {}
    for label in ("t0", *others):
        for end in (False, True):
            cells = adata.X[(names == label) & (is_end == end)].astype(np.float64)
            mean[label, end], n[label, end] = cells.mean(0), len(cells)
    harmonic = np.array([2 / (1 / n[k, False] + 1 / n[k, True]) for k in others])
    weight = harmonic / (harmonic + 30)
    start = np.stack([mean[k, False] for k in others])
    changes = np.stack([mean[k, True] for k in others]) - start
    centre = np.average(start, axis=0, weights=weight)
    z, own = start - centre, mean["t0", False] - centre
    size = np.average(np.square(z).sum(1), weights=weight)
    kernel = 1e6 + z @ z.T / size + np.diag(0.3 + 0.3 * 30 / harmonic)
    expected = np.linalg.solve(kernel, 1e6 + z @ own / size) @ changes
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-3 * np.abs(expected).max())


def test_labels_that_are_named_twice_are_there_once(model):
    once = model.effects(target="stimulated", labels=["t1", "t2"])
    assert once["label"].unique().tolist() == ["t1", "t2"]
    for labels in (["t1", "t1", "t2"], pd.Series(["t1", "t2", "t1"], dtype="category")):
        pd.testing.assert_frame_equal(model.effects(target="stimulated", labels=labels), once)


def test_labels_without_cells_under_the_source_are_said(model, caplog):
    """They were left out without a word."""
    table = model.effects(target="control", source="stimulated", labels=["t0", "t3"])
    assert table["label"].unique().tolist() == ["t3"]
    assert "No cell of 't0' to start from: only others are given." in caplog.text
    caplog.clear()
    model.effects(target="control", source="stimulated")
    assert "No cell" not in caplog.text
