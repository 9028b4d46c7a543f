"""A few measured cells beside a prediction: weights in closed form, gain on simulated truth, bad input."""

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

import trvae_sc
from trvae_sc import TRVAE
from trvae_sc.datasets import simulate
from trvae_sc.errors import InputError
from trvae_sc.model._exemplars import Exemplars

QUIET = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False}


def of_cells(x, spread, *, is_count=False):
    """Return exemplars of cells, (n_cells, n_genes)."""
    mean = np.log1p(x.mean(0)) if is_count else x.mean(0)
    return Exemplars(mean, len(x), 1.0, spread, x.var(0), is_count=is_count)


def test_values_are_combined_by_their_precision():
    """With half the variance of the error: of four cells no other can be told."""
    rng = np.random.default_rng(0)
    f, seen, spread, error = rng.gamma(2.0, 1.0, (4, 50))
    found, left = Exemplars(seen, 4, 1.0, spread, spread, is_count=False).combined(f, error)
    precision = 2 / error, 4 / spread
    expected = (precision[0] * f + precision[1] * seen) / sum(precision)
    assert found == pytest.approx(expected)
    assert left == pytest.approx(precision[0] / sum(precision))


@pytest.mark.parametrize("times", [0.25, 1.0, 4.0])
def test_the_cells_tell_how_wrong_a_prediction_is_and_its_posterior_covers_the_truth(times):
    """Truth drawn around a prediction, cells around the truth."""
    rng = np.random.default_rng(1)
    f, error, spread = np.zeros(4000), np.full(4000, 0.5), np.full(4000, 2.0)
    truth = rng.normal(f, np.sqrt(times * error))
    cells = of_cells(rng.normal(truth, np.sqrt(spread), (10, 4000)), spread)
    assert cells.scale(f, error) == times
    found, left = cells.combined(f, error)
    inside = np.abs(truth - found) < stats.norm.ppf(0.95) * np.sqrt(error * left)
    if times >= 1:
        assert inside.mean() == pytest.approx(0.9, abs=0.015)
    else:  # an interval is not narrower than what labels that were left out tell
        assert inside.mean() > 0.95


@pytest.mark.parametrize("is_count", [False, True])
def test_the_scale_is_that_which_cells_left_out_are_predicted_best_with(is_count):
    rng = np.random.default_rng(4)
    f, error = rng.gamma(2.0, 0.5, 30), rng.gamma(2.0, 0.1, 30)
    spread = rng.gamma(2.0, 0.5, 30)
    means = np.expm1(f + rng.normal(0.0, np.sqrt(error))) if is_count else f + np.sqrt(error)
    x = rng.poisson(np.maximum(means, 0), (6, 30)) if is_count else rng.normal(means, 1.0, (6, 30))
    x = x.astype(float)
    mean = np.expm1(f) if is_count else f
    losses = {}
    for scale in (0.25, 0.5, 1.0, 2.0, 4.0, 8.0):
        losses[scale] = 0.0
        for i in range(6):
            others = np.delete(x, i, 0).mean(0)
            if (
                is_count
            ):  # negative binomial, by the delta method, of the mean and half a count in all cells
                more = mean + 0.5 / 5
                noise = (more + spread * more**2) / 5 / (1 + mean) ** 2
            else:
                noise = spread / 5
            weight = scale * error / (scale * error + noise)
            moved = mean + weight * (others - mean)
            losses[scale] += np.square((moved - x[i]) / (1 + mean if is_count else 1)).sum()
    best = min(losses, key=losses.get)
    assert of_cells(x, spread, is_count=is_count).scale(f, error) == best


def test_counts_are_combined_as_means_not_as_logarithms():
    """One cell of a rare gene: its zero, or its count, says little, and is no bias over many cells."""
    rng = np.random.default_rng(2)
    f, error, spread = np.log1p([0.2]), np.array([0.05]), np.array([0.5])
    counts = rng.poisson(0.2, 4000)

    def exemplars(mean, n):
        return Exemplars(np.log1p([mean]), n, 1.0, spread, mean + spread * mean**2, is_count=True)

    moved = [np.expm1(exemplars(k, 1).combined(f, error)[0]) for k in counts]
    assert np.mean(moved) == pytest.approx(0.2, rel=0.05)
    many, left = exemplars(3.0, 10**6).combined(f, error)
    assert many == pytest.approx(np.log1p([3.0]), abs=1e-3)
    assert left < 1e-3
    none, left = exemplars(0.0, 5).combined(0 * f, error)
    assert none == pytest.approx([0.0])
    assert 0.1 < left.item() < 1.0  # a gene that neither shows is not known without error
    sure, _ = exemplars(3.0, 5).combined(f, 0 * error)
    assert sure == pytest.approx(f)


@pytest.fixture(scope="module")
def hidden():
    """Return a model of simulated cells without one label's stimulated ones, these, and their truth."""
    adata = simulate(3000, 200, n_labels=8, specificity=0.8, seed=3)
    away = (adata.obs["cell_type"] == "type_0") & (adata.obs["condition"] == "stimulated")
    truth = adata.varm["true_share"]["type_0|stimulated"].to_numpy()
    train, cells = adata[~away].copy(), adata[away].copy()
    keys = {"labels_key": "cell_type", "total_counts_key": "total_counts"}
    TRVAE.setup_anndata(train, "condition", **keys)
    model = TRVAE(train, n_latent=4, n_hidden=(16, 8))
    model.train(5, **QUIET)
    return model, cells, truth


def test_both_are_better_than_either(hidden):
    model, cells, truth = hidden
    kappa = model.module.kappa.item()
    real = np.log1p(kappa * truth)
    rng, errors = np.random.default_rng(0), []
    for _ in range(5):
        few = cells[rng.permutation(cells.n_obs)[:10]].copy()
        shares = few.X.toarray() / few.obs["total_counts"].to_numpy()[:, None]
        alone, both = (
            model.effects(target="stimulated", labels="type_0", exemplars=e)["predicted_mean"]
            for e in (None, few)
        )
        seen = np.log1p(kappa * shares.mean(0))
        errors.append([np.square(x - real).mean() for x in (alone, seen, both)])
    alone, seen, both = np.mean(errors, 0)
    assert both < 0.8 * min(alone, seen)


def test_predictions_and_effects_say_the_same_and_intervals_get_narrower(hidden, tmp_path):
    model, cells, _ = hidden
    few, before = cells[:10].copy(), cells[:10].copy()
    options = {"target": "stimulated", "labels": "type_0"}
    predicted = model.predict(exemplars=few, **options)
    table = model.effects(exemplars=few, **options)
    assert table["change"].to_numpy() == pytest.approx(
        predicted.var["predicted_change"].to_numpy(), abs=1e-6
    )
    alone = model.effects(**options)
    assert ((table["upper"] - table["lower"]) < (alone["upper"] - alone["lower"])).all()
    predicted.write_h5ad(tmp_path / "p.h5ad")
    for found in (predicted, anndata.read_h5ad(tmp_path / "p.h5ad")):
        assert found.uns["trvae_sc"]["combinations"]["n_exemplars"].tolist() == [10]
    assert few.obs.equals(before.obs)
    assert not few.uns
    shuffled = model.effects(exemplars=few[::-1, ::-1].copy(), **options)
    assert shuffled["change"].to_numpy() == pytest.approx(table["change"].to_numpy(), abs=1e-9)
    others = model.effects(target="stimulated", labels=["type_0", "type_1"], exemplars=few)
    own = others[others["label"] == "type_1"]["change"].to_numpy()
    without = model.effects(target="stimulated", labels="type_1")["change"].to_numpy()
    assert own == pytest.approx(without)


def test_what_was_combined_is_told(hidden):
    model, cells, _ = hidden
    few, options = cells[:10].copy(), {"target": "stimulated", "labels": "type_0"}
    predicted = model.predict(exemplars=few, **options)
    assert any("10 of type_0" in note for note in predicted.uns["trvae_sc"]["notes"])
    comparison = trvae_sc.compare(predicted, anndata.concat([model.adata, cells]))
    assert "Leave these out of truth" in str(comparison)
    seen = model.adata
    seen = seen[(seen.obs["cell_type"] == "type_1") & (seen.obs["condition"] == "stimulated")]
    again = model.predict(target="stimulated", labels="type_1", exemplars=seen[:10].copy())
    assert any("count twice" in note for note in again.uns["trvae_sc"]["notes"])


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
@pytest.mark.filterwarnings("ignore:Writing zarr v2")
def test_names_of_labels_are_no_keys_of_files(suffix, fit, make_adata, tmp_path):
    """A slash in a label made a group of an h5ad file, and none could be written as zarr."""
    adata = make_adata()
    adata.obs["cell_type"] = adata.obs["cell_type"].cat.rename_categories({"B": "B/plasma"})
    under = (adata.obs["condition"] == "stimulated").to_numpy()
    model, few = fit(adata), adata[under & (adata.obs["cell_type"] == "B/plasma")][:4].copy()
    predicted = model.predict(target="stimulated", exemplars=few)
    getattr(predicted, f"write_{suffix}")(tmp_path / "p")
    read = getattr(anndata, f"read_{suffix}")(tmp_path / "p")
    table = read.uns["trvae_sc"]["combinations"].set_index("label")
    assert table["n_exemplars"].to_dict() == {"B/plasma": 4, "NK": 0, "T": 0}


def test_values_of_dask_are_combined_as_those_in_memory(fit, make_adata):
    dask = pytest.importorskip("dask.array")
    adata = make_adata(n_cells=240, values="log")
    adata.obs["cell_type"] = [f"t{i}" for i in np.arange(240) // 2 % 5]
    is_hidden = (adata.obs["cell_type"] == "t0") & (adata.obs["condition"] == "stimulated")
    model = fit(adata[~is_hidden].copy(), gene_likelihood="normal")
    few = adata[is_hidden][:5].copy()
    lazy = few.copy()
    lazy.X = dask.from_array(sparse.csr_matrix(few.X), chunks=(3, few.n_vars))
    found, expected = (
        model.effects(target="stimulated", labels="t0", exemplars=cells) for cells in (lazy, few)
    )
    pd.testing.assert_frame_equal(found, expected)


def test_exemplars_of_one_of_several_combinations_are_refused(hidden, fit):
    """It said that a label which was to be predicted was not, after the first had been predicted."""
    model, cells, _ = hidden
    found = model.predict_missing(exemplars=cells[:5].copy())
    assert found.uns["trvae_sc"]["combinations"]["n_exemplars"].tolist() == [5]
    lacks = model.adata.obs["cell_type"].eq("type_1") & model.adata.obs["condition"].eq(
        "stimulated"
    )
    fewer = model.adata[~lacks.to_numpy()].copy()
    other = fit(fewer, setup={"labels_key": "cell_type", "total_counts_key": "total_counts"})
    with pytest.raises(InputError, match="of one combination, of 2 that are missing: call predict"):
        other.predict_missing(exemplars=cells[:5].copy())


def test_a_gene_that_training_lacks_under_the_target_is_not_known_from_one_cell(caplog):
    """Values that do not vary there: one cell moved them all the way, with an interval of no width."""
    rng = np.random.default_rng(0)
    adata = anndata.AnnData(rng.normal(size=(240, 20)).astype(np.float32))
    adata.obs["condition"] = np.tile(["control", "stimulated"], 120)
    adata.obs["cell_type"] = np.repeat(list("abcd"), 60)
    stimulated = (adata.obs["condition"] == "stimulated").to_numpy()
    adata.X[stimulated, 0] = 0.0
    hidden = stimulated & (adata.obs["cell_type"] == "d").to_numpy()
    train, few = adata[~hidden].copy(), adata[hidden][:1].copy()
    few.X[0, 0] = 1.5
    TRVAE.setup_anndata(train, "condition", labels_key="cell_type")
    model = TRVAE(train, gene_likelihood="normal", n_latent=2, n_hidden=(8, 8))
    model.train(1, **QUIET)
    options = {"target": "stimulated", "labels": "d"}
    alone, table = (model.effects(exemplars=e, **options).iloc[0] for e in (None, few))
    assert table["upper"] - table["lower"] > 0.5 * (alone["upper"] - alone["lower"])
    assert abs(table["predicted_mean"] - alone["predicted_mean"]) < 0.75
    few.X = np.round(3 * np.abs(few.X))
    model.effects(exemplars=few, **options)
    assert "exemplars hold whole numbers" in caplog.text


def test_a_gene_that_training_lacks_altogether_has_no_interval_of_no_width():
    """Values that never vary: without a change they had the lowest p-value, and few cells left no doubt."""
    rng = np.random.default_rng(0)
    adata = anndata.AnnData(rng.normal(size=(240, 20)).astype(np.float32))
    adata.obs["condition"] = np.tile(["control", "stimulated"], 120)
    adata.obs["cell_type"] = np.repeat(list("abcd"), 60)
    adata.X[:, :2] = 0.0
    hidden = (adata.obs["condition"] == "stimulated") & (adata.obs["cell_type"] == "d")
    train, few = adata[~hidden].copy(), adata[hidden][:6].copy()
    few.X[:, 1] = shown = np.arange(6) / 2  # the cells show the second gene, and not the first
    TRVAE.setup_anndata(train, "condition", labels_key="cell_type")
    model = TRVAE(train, gene_likelihood="normal", n_latent=2, n_hidden=(8, 8))
    model.train(1, **QUIET)
    options = {"target": "stimulated", "labels": "d"}
    alone, table = (model.effects(exemplars=e, **options).iloc[:2] for e in (None, few))
    assert table["change"].iloc[0] == pytest.approx(alone["change"].iloc[0])
    error = np.sqrt(shown.var() / 6)
    assert 0 < table["change"].iloc[1] < shown.mean()
    assert 0 < table["upper"].iloc[1] - table["change"].iloc[1] < 4 * error


def test_few_cells_of_a_label_call_no_gene_changed_where_none_changes():
    rng = np.random.default_rng(0)
    adata = anndata.AnnData(rng.normal(3.0, 1.0, (480, 100)).astype(np.float32))
    adata.obs["condition"] = np.tile(["control", "stimulated"], 240)
    adata.obs["cell_type"] = np.repeat(list("abcdef"), 80)
    hidden = (adata.obs["condition"] == "stimulated") & (adata.obs["cell_type"] == "f")
    train, few = adata[~hidden].copy(), adata[hidden][:30].copy()
    TRVAE.setup_anndata(train, "condition", labels_key="cell_type")
    model = TRVAE(train, gene_likelihood="normal", n_latent=2, n_hidden=(8, 8))
    model.train(1, **QUIET)
    for exemplars in (None, few):
        table = model.effects(target="stimulated", labels="f", exemplars=exemplars)
        assert (table["qval"] < 0.1).sum() == 0
        assert (table["pval"].isna() == (exemplars is not None)).all()


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_exemplars_of_something_else_are_refused(hidden):
    model, cells, _ = hidden
    few, options = cells[:5].copy(), {"target": "stimulated", "labels": "type_0"}
    control = model.adata[:5].copy()
    control.obs["condition"] = "control"
    unknown = few.copy()
    unknown.obs["cell_type"] = "type_1"
    half = few.copy()
    half.X = half.X * 0.5
    twice = few.copy()
    twice.obs_names = [*few.obs_names[:-1], few.obs_names[0]]
    nameless = few.copy()
    del nameless.obs["cell_type"]
    for bad, message in (
        (control, "has cells of 'control'; all must be of the target, 'stimulated'"),
        (few[:0].copy(), "has no cells"),
        (few[:, :50].copy(), "exemplars lacks 150 of the 200 genes"),
        (unknown, "has cells of 'type_1', but predicted are 'type_0'"),
        (half, "fractional values"),
        (nameless, "No column 'cell_type' in exemplars.obs"),
        ("few.h5ad", "Expected an AnnData, got str. Read the file"),
        (twice, "exemplars has several cells named"),
    ):
        for method in (model.predict, model.effects):
            with pytest.raises(InputError, match=message):
                method(exemplars=bad, **options)


def test_models_that_cannot_weigh_exemplars_say_so(fit, make_adata):
    few = make_adata(n_cells=12)
    few = few[few.obs["condition"] == "stimulated"].copy()
    with pytest.raises(InputError, match="calibrate=False"):
        fit(preset="cvae").predict(target="stimulated", exemplars=few)
    with pytest.raises(InputError, match="labels_key="):
        fit(setup={"labels_key": None}).predict(target="stimulated", exemplars=few)
    adata = make_adata()
    adata = adata[adata.obs["cell_type"] != "B"].copy()
    few = few[few.obs["cell_type"] != "B"].copy()
    with pytest.raises(InputError, match="fewer than three"):
        fit(adata).predict(target="stimulated", exemplars=few)
    old = fit()
    old.spread_ = np.zeros((0, 0))
    with pytest.raises(InputError, match="Train it again"):
        old.predict(target="stimulated", exemplars=few)


def test_a_frozen_query_combines_cells_as_its_reference_does():
    """How much genes vary under its new condition counted for the known ones, of values."""
    adata = simulate(600, 40, n_labels=5)
    adata.X = np.log1p(adata.X)
    hidden = (adata.obs["cell_type"] == "type_0") & (adata.obs["condition"] == "stimulated")
    reference, query = adata[~hidden].copy(), adata[~hidden].copy()
    TRVAE.setup_anndata(reference, "condition", labels_key="cell_type")
    model = TRVAE(reference, gene_likelihood="normal", n_latent=4, n_hidden=(16, 8))
    model.train(2, **QUIET)
    query.obs["condition"] = query.obs["condition"].astype(str).replace("stimulated", "new")
    query.X = query.X * 3.0
    mapped = TRVAE.load_query_data(query, model)
    mapped.train(1, **QUIET)
    asked = {"target": "stimulated", "labels": "type_0", "exemplars": adata[hidden][:10].copy()}
    found, expected = (m.effects(source="control", **asked) for m in (mapped, model))
    np.testing.assert_array_equal(found["change"], expected["change"])
