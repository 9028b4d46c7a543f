"""A prediction beside measured cells: scores as a benchmark has them, refusals with the reason."""

import dataclasses

import anndata
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.metrics import r2_score

import trvae_sc
from trvae_sc import baselines
from trvae_sc.errors import InputError
from trvae_sc.evaluation import Holdout, Keys, ceiling, prepare_task, score

KEYS = Keys("condition", "cell_type", total_counts_key="n_counts")
NK = Holdout("NK", "stimulated", "control")


def without(adata, label="NK"):
    return adata[~((adata.obs["cell_type"] == label) & (adata.obs["condition"] == "stimulated"))]


@pytest.fixture
def adata(make_adata):
    return make_adata(n_cells=240)


@pytest.fixture
def predicted(adata, fit):
    model = fit(without(adata).copy())
    return model.predict(target="stimulated", labels="NK")


def test_scores_are_those_of_a_benchmark_on_the_same_cells(adata, predicted):
    task = prepare_task(adata, NK, keys=KEYS, n_top_genes=None)
    own = trvae_sc.compare(predicted, adata).scores.set_index(["metric", "genes"])
    expected = score(task, predicted).set_index(["metric", "genes"])["value"]
    assert set(own.index) == set(expected.index)
    np.testing.assert_allclose(own["predicted"], expected.reindex(own.index), rtol=0, atol=1e-9)
    best = ceiling(task)["ceiling"].set_index(["metric", "genes"])["value"]
    np.testing.assert_allclose(own["ceiling"], best.reindex(own.index), rtol=0, atol=1e-9)


def test_no_change_scores_nothing_and_the_truth_itself_everything(adata, predicted):
    kappa = float(predicted.uns["trvae_sc"]["kappa"])
    cells = adata[(adata.obs["cell_type"] == "NK") & (adata.obs["condition"] == "stimulated")]
    share = cells.X.toarray() / cells.obs["n_counts"].to_numpy()[:, None]
    perfect = anndata.AnnData(np.log1p(kappa * share), obs=cells.obs.copy(), var=cells.var)
    perfect.obs["source_condition"] = "control"
    perfect.uns["trvae_sc"] = dict(predicted.uns["trvae_sc"], scale="log(1 + kappa * share)")
    found = trvae_sc.compare(perfect, adata).table()
    assert found.loc[("NK", "effect_r2"), "no change"] == 0.0
    assert found.loc[("NK", "effect_r2"), "predicted"] == pytest.approx(1.0, abs=1e-6)
    assert (
        found.loc[("NK", "energy_distance"), "predicted"] <= 0.0
    )  # without bias: below 0 of equal cells


def test_an_effect_is_that_of_log_values_by_hand(adata, predicted):
    comparison = trvae_sc.compare(predicted, adata)
    kappa = np.median(without(adata).obs["n_counts"])

    def mean(cells):
        share = cells.X.toarray() / cells.obs["n_counts"].to_numpy()[:, None]
        return np.log1p(kappa * share).mean(0)

    of = {c: adata[(adata.obs.cell_type == "NK") & (adata.obs.condition == c)] for c in KEYS_OF}
    start, end = mean(of["control"]), mean(of["stimulated"])
    change = mean(predicted) - start
    value = comparison.scores.set_index(["metric", "genes"])["predicted"]["effect_r2", "all"]
    assert value == pytest.approx(
        1 - np.square(change - end + start).sum() / np.square(end - start).sum()
    )
    genes = comparison.tables()["NK"].loc[adata.var_names]
    np.testing.assert_allclose(genes["real_change"], end - start, atol=1e-6)
    np.testing.assert_allclose(genes["predicted_change"], change, atol=1e-6)
    assert r2_score(genes["real_mean"], end) == pytest.approx(1.0)


KEYS_OF = ("control", "stimulated")


def test_several_labels_are_compared_each_with_its_own_cells(adata, fit):
    model = fit(adata)
    predicted = model.predict(source="control", target="stimulated")
    found = trvae_sc.compare(predicted, adata)
    assert list(found.tables()) == ["B", "NK", "T"]
    assert [note[:27] for note in found.notes if "Nothing" in note] == [
        "Nothing but B, NK, T was gi"
    ]
    assert set(trvae_sc.compare(predicted, adata, label="B").scores["label"]) == {"B"}
    assert "effect_r2" in repr(found)
    assert "<table" in found._repr_html_()
    n_rows = len(found.table())
    assert found._repr_html_().count("<tr") == 2 + n_rows
    with pd.option_context("display.max_rows", 4):  # as pandas shows a table of many rows
        assert len(repr(found).splitlines()) == 2 + 4 + 1 + len(found.notes)
        assert found._repr_html_().count("<tr") == 2 + 4 + 1
    odd = dataclasses.replace(found, notes=("A label <script>.",))
    assert "A label &lt;script&gt;." in odd._repr_html_()


def test_totals_over_all_genes_are_added_up_where_the_prediction_counts_them(make_adata):
    adata = make_adata(n_cells=240)
    del adata.obs["n_counts"]
    keys = Keys("condition", "cell_type")
    task = prepare_task(adata, NK, keys=keys, n_top_genes=20)
    for name in ("mean_shift", "context_shift"):
        shifted = getattr(baselines, name)(
            task.train, task.source, target="stimulated", keys=task.keys
        )
        own = trvae_sc.compare(shifted, adata).scores.set_index(["metric", "genes"])["predicted"]
        expected = score(task, shifted).set_index(["metric", "genes"])["value"]
        np.testing.assert_allclose(own, expected.reindex(own.index), rtol=0, atol=1e-9)
    with pytest.raises(InputError, match="totals over whole cells"):
        trvae_sc.compare(shifted, adata[:, task.train.var_names])


@pytest.mark.parametrize("output", ["counts", "delta"])
def test_how_deep_other_labels_of_the_truth_are_does_not_change_their_shares(adata, output):
    deeper = adata.copy()
    times = np.where(adata.obs["cell_type"] == "NK", 1.0, 5.0)
    deeper.X = adata.X.multiply(times[:, None]).tocsr()
    deeper.obs["n_counts"] *= times
    predicted = baselines.predict(
        without(adata), "stimulated", output=output, labels="NK", keys=KEYS
    )
    before, after = (trvae_sc.compare(predicted, cells).scores for cells in (adata, deeper))
    assert "specific_pearson" in set(before["metric"])
    pd.testing.assert_frame_equal(before, after, rtol=0, atol=1e-6)


def test_cells_of_the_combination_alone_need_a_control(adata, predicted):
    real = adata[(adata.obs["cell_type"] == "NK") & (adata.obs["condition"] == "stimulated")]
    start = adata[adata.obs["condition"] == "control"]
    with pytest.raises(InputError, match="0 cells of NK under control"):
        trvae_sc.compare(predicted, real)
    found = trvae_sc.compare(predicted, real, start)
    everything = trvae_sc.compare(predicted, adata)
    alone = found.scores.set_index(["metric", "genes"])["predicted"]
    assert "specific_pearson" not in alone.index.get_level_values("metric")
    assert alone["effect_r2", "all"] == pytest.approx(
        everything.scores.set_index(["metric", "genes"])["predicted"]["effect_r2", "all"], abs=1e-6
    )
    assert "other labels" in repr(found)


def test_a_prediction_read_from_a_file_is_compared_the_same(adata, predicted, tmp_path):
    before = trvae_sc.compare(predicted, adata).scores
    predicted.write_h5ad(tmp_path / "p.h5ad")
    again = trvae_sc.compare(anndata.read_h5ad(tmp_path / "p.h5ad"), adata).scores
    pd.testing.assert_frame_equal(before, again)


@pytest.mark.parametrize("ending", ["h5ad", "zarr"])
def test_a_prediction_that_was_written_is_compared_and_drawn_the_same(ending, adata, fit, tmp_path):
    """What predict(out=...) returns has its values in the file; measured cells may stay there, too."""
    asked = {"target": "stimulated", "labels": "NK"}
    model = fit(without(adata).copy())
    in_file = model.predict(out=tmp_path / f"p.{ending}", **asked)
    adata.write_h5ad(tmp_path / "a.h5ad")
    measured = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    before = trvae_sc.compare(model.predict(**asked), adata).scores
    for truth in (adata, measured):
        pd.testing.assert_frame_equal(before, trvae_sc.compare(in_file, truth).scores)
    for plot in (trvae_sc.pl.effect, trvae_sc.pl.mean_correlation, trvae_sc.pl.effect_heatmap):
        plot(in_file, measured)
    ax = trvae_sc.pl.grid(in_file)
    drawn = np.asarray(ax.images[0].get_array())
    assert drawn.shape == (in_file.n_obs, 30)
    plt.close("all")


@pytest.mark.parametrize("as_array", [False, True])
def test_genes_are_chosen_of_cells_in_a_file(as_array, adata, tmp_path):
    if as_array:
        adata.X = adata.X.toarray()
    adata.write_h5ad(tmp_path / "a.h5ad")
    in_file = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    found = [trvae_sc.choose_genes(cells, KEYS, 9).chosen for cells in (adata, in_file)]
    np.testing.assert_array_equal(*found)


def test_cells_of_sparse_dask_are_compared_and_chosen_from_the_same(adata, predicted):
    dask = pytest.importorskip("dask.array")
    lazy = adata.copy()
    lazy.X = dask.from_array(lazy.X, chunks=(50, lazy.n_vars))
    found = [trvae_sc.compare(predicted, cells).scores for cells in (adata, lazy)]
    pd.testing.assert_frame_equal(*found)
    found = [trvae_sc.choose_genes(cells, KEYS, 9).chosen for cells in (adata, lazy)]
    np.testing.assert_array_equal(*found)


def test_the_number_of_genes_that_change_most_can_be_chosen(adata, predicted):
    scores = trvae_sc.compare(predicted, adata, n_top=7).scores
    assert {"top7", "all", "pcs"} == set(scores["genes"])


@pytest.mark.parametrize("output", ["counts", "delta"])
@pytest.mark.parametrize("side", ["predicted", "truth", "control"])
def test_totals_that_were_overwritten_by_sums_over_the_genes_are_refused(adata, side, output):
    """As scanpy's calculate_qc_metrics does: shares were many times too large, and effect R2 next to 0."""
    adata.obs["n_counts"] *= 3
    options = {"output": output, "labels": "NK", "keys": KEYS}
    predicted = baselines.predict(without(adata), "stimulated", **options)
    start = adata[adata.obs["condition"] == "control"].copy()
    expected = trvae_sc.compare(predicted, adata, start).scores
    wrong = {"predicted": predicted, "truth": adata, "control": start}[side]
    wrong.obs["n_counts"] = np.asarray(wrong.X.sum(axis=1)).ravel()
    if (side, output) == ("predicted", "delta"):  # which makes no use of them
        found = trvae_sc.compare(predicted, adata, start).scores
        return pd.testing.assert_frame_equal(found, expected)
    with pytest.raises(InputError, match=f"Total counts of {side} are sums over its 30 genes"):
        trvae_sc.compare(predicted, adata, start)


def test_totals_of_other_cells_of_the_same_names_tell_nothing(adata):
    adata.obs["n_counts"] = np.asarray(adata.X.sum(axis=1)).ravel()
    predicted = baselines.predict(without(adata), "stimulated", output="delta", keys=KEYS)
    others = adata[::-1].copy()
    others.obs_names = adata.obs_names
    trvae_sc.compare(predicted, others)


@pytest.mark.parametrize("output", ["counts", "delta"])
def test_some_genes_of_a_prediction_are_compared_only_where_totals_are_known(adata, output):
    """Without them totals were sums over the genes that were left: effect R2 of log values was 0.29, not 0.96."""
    options = {
        "output": output,
        "labels": "NK",
        "condition_key": "condition",
        "labels_key": "cell_type",
    }
    train = without(adata)
    predicted = baselines.predict(train, "stimulated", **options)
    trvae_sc.compare(predicted, adata)
    with pytest.raises(InputError, match="predicted has 12 of 30 genes, and totals of cells are"):
        trvae_sc.compare(predicted[:, :12], adata)
    predicted = baselines.predict(train, "stimulated", total_counts_key="n_counts", **options)
    whole = trvae_sc.compare(predicted, adata).tables()["NK"]
    some = trvae_sc.compare(predicted[:, :12], adata).tables()["NK"]
    pd.testing.assert_frame_equal(some, whole.loc[some.index], rtol=0, atol=1e-6)


def test_totals_that_are_sums_over_fewer_genes_are_told(adata):
    """Of some genes of the data that were selected from, which are more than those of the prediction."""
    names = {"condition_key": "condition", "labels_key": "cell_type"}
    quiet = {"methods": ["mean_shift"], "min_cells": 5, "progress": False}
    predicted = trvae_sc.select(adata, "stimulated", labels="NK", n_top_genes=10, **names, **quiet)
    assert not trvae_sc.compare(predicted, adata).notes
    others = adata.var_names.difference(predicted.var_names)[:10]
    some = adata[:, [*predicted.var_names, *others]].copy()
    (note,) = trvae_sc.compare(predicted, some).notes
    assert note.startswith(
        "Totals are sums over the 20 genes of truth, and those of the prediction over 30"
    )


def test_what_does_not_fit_is_refused_with_the_reason(adata, predicted):
    with pytest.raises(InputError, match="This is no prediction"):
        trvae_sc.compare(adata, adata)
    with pytest.raises(InputError, match="lacks 10 of the 30 predicted genes"):
        trvae_sc.compare(predicted, adata[:, 10:])
    logged, bare = adata.copy(), adata.copy()
    logged.X = logged.X.log1p()
    del bare.obs["cell_type"]
    with pytest.raises(InputError, match=r"truth.X holds no counts"):
        trvae_sc.compare(predicted, logged)
    with pytest.raises(InputError, match="Labels \\['X'\\] were not predicted"):
        trvae_sc.compare(predicted, adata, label="X")
    sources = predicted.copy()
    sources.obs["source_condition"] = [f"source_{i % 2}" for i in range(sources.n_obs)]
    with pytest.raises(InputError, match=r"are needed \(0 cells of [^;]*\)\.$"):  # once
        trvae_sc.compare(sources, without(adata))
    with pytest.raises(InputError, match="No column 'cell_type'"):
        trvae_sc.compare(predicted, bare)
    renamed = predicted.copy()
    renamed.obs["condition"] = renamed.obs["source_condition"]
    with pytest.raises(InputError, match="under control that were made from cells under control"):
        trvae_sc.compare(renamed, adata)  # was a KeyError


def test_too_few_predicted_cells_are_told(adata, predicted):
    with pytest.raises(InputError, match="predicted has no cells"):
        trvae_sc.compare(predicted[:0], adata)
    with pytest.raises(InputError, match="predicted has 1 cell of NK under stimulated"):
        trvae_sc.compare(predicted[:1], adata)
    trvae_sc.compare(predicted[:2], adata)


def test_a_single_cell_of_what_was_not_measured_is_left_out(adata, fit):
    truth = without(adata, "T")
    both = fit(without(truth).copy()).predict(target="stimulated", labels=["NK", "T"])
    is_left = (both.obs["cell_type"] == "NK").to_numpy(copy=True)
    is_left[np.flatnonzero(~is_left)[0]] = True
    found = trvae_sc.compare(both[is_left], truth)
    assert set(found.scores["label"]) == {"NK"}


def test_log_values_are_not_compared_with_counts(make_adata, fit):
    adata = make_adata(n_cells=240, values="log")
    model = fit(without(adata).copy(), gene_likelihood="normal")
    predicted = model.predict(target="stimulated", labels="NK")
    assert len(trvae_sc.compare(predicted, adata).scores)
    counts = adata.copy()
    counts.X = counts.X.expm1()
    counts.X.data = np.round(counts.X.data) * 10
    with pytest.raises(InputError, match="holds counts"):
        trvae_sc.compare(predicted, counts)


def in_halves(x):
    """Return a matrix whose entries are in two parts each."""
    x = sparse.coo_matrix(x)
    twice = np.r_[x.data / 2, x.data / 2], (np.r_[x.row, x.row], np.r_[x.col, x.col])
    order = np.lexsort((twice[1][1], twice[1][0]))
    starts = np.r_[0, np.cumsum(np.bincount(twice[1][0], minlength=x.shape[0]))]
    return sparse.csr_matrix((twice[0][order], twice[1][1][order], starts), x.shape)


@pytest.mark.parametrize("form", [sparse.csc_matrix, sparse.csc_array, in_halves])
def test_the_ceiling_of_values_does_not_depend_on_how_they_are_stored(form, make_adata):
    adata = make_adata(n_cells=100, values="log")
    names = {"condition_key": "condition", "labels_key": "cell_type", "is_count": False}
    logs, found = sparse.csr_matrix(adata.X).toarray(), []
    for x in (logs, form(logs)):
        adata.X = x
        train = without(adata).copy()
        predicted = baselines.predict(
            train, "stimulated", method="mean_shift", labels="NK", **names
        )
        found.append(trvae_sc.compare(predicted, adata).scores)
    pd.testing.assert_frame_equal(*found)


def test_whole_numbers_that_are_no_counts_are_compared(make_adata):
    """Intensities; they were taken for counts, and refused."""
    adata, keys = make_adata(n_cells=240), {"condition_key": "condition", "labels_key": "cell_type"}
    adata.X = np.round(200.0 + 20.0 * adata.X.toarray())
    options = {"method": "mean_shift", "labels": "NK", "is_count": False, **keys}
    predicted = baselines.predict(without(adata).copy(), "stimulated", **options)
    scores = trvae_sc.compare(predicted, adata).scores.set_index(["metric", "genes"])
    cells = [predicted.X, *(adata[adata.obs["cell_type"] == "NK"].X[k::2] for k in (1, 0))]
    change, real = (x.astype(float).mean(0) - cells[2].mean(0) for x in cells[:2])
    expected = 1.0 - np.square(change - real).sum() / np.square(real).sum()
    assert scores.loc[("effect_r2", "all"), "predicted"] == pytest.approx(expected, rel=1e-5)
    adata.X = adata.X * 5.0  # of another scale
    with pytest.raises(InputError, match="holds counts"):
        trvae_sc.compare(predicted, adata)


def test_conditions_of_several_columns_are_compared_by_their_names(make_adata, fit):
    adata = make_adata(n_cells=240)
    adata.obs["dose"] = np.where(adata.obs["condition"] == "stimulated", 2.0, 0.0)
    adata.obs["drug"] = "x"
    train = without(adata).copy()
    trvae_sc.TRVAE.setup_anndata(train, ["drug", "dose"], labels_key="cell_type")
    model = trvae_sc.TRVAE(train, n_latent=4, n_hidden=(8,))
    model.train(2, enable_progress_bar=False, accelerator="cpu", devices=1)
    predicted = model.predict(target=("x", 2.0), labels="NK")
    scores = trvae_sc.compare(predicted, adata).scores
    assert set(scores["target"]) == {"x + 2"}
    assert set(scores["source"]) == {"x + 0"}


def test_a_prediction_that_was_normalised_since_is_not_taken_for_counts(adata, fit):
    """As before a UMAP; it was scored as if log values were counts."""
    adata.layers["counts"] = adata.X.copy()
    model = fit(without(adata).copy(), setup={"layer": "counts"})
    predicted = model.predict(target="stimulated", labels="NK")
    expected = trvae_sc.compare(predicted, adata).scores
    predicted.X = predicted.X.log1p()
    pd.testing.assert_frame_equal(trvae_sc.compare(predicted, adata).scores, expected)
    del predicted.layers["counts"]
    with pytest.raises(InputError, match="holds no counts any more"):
        trvae_sc.compare(predicted, adata)


def test_unlabelled_cells_of_a_file_have_no_part_either(adata, predicted, tmp_path):
    """anndata takes no view of a view of a file."""
    is_labelled = np.arange(adata.n_obs) >= 4
    adata.obs["cell_type"] = adata.obs["cell_type"].where(is_labelled).astype("category")
    expected = trvae_sc.compare(predicted, adata).scores
    adata.write_h5ad(tmp_path / "a.h5ad")
    in_file = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    for cells in (in_file, in_file[:]):
        pd.testing.assert_frame_equal(trvae_sc.compare(predicted, cells).scores, expected)


def test_cells_without_label_have_no_part(adata, predicted):
    expected = trvae_sc.compare(predicted, adata)
    more = anndata.concat([adata, adata[:8]], index_unique="-")
    more.obs = more.obs.astype({"cell_type": object, "condition": object})
    more.obs.iloc[-8:-4, more.obs.columns.get_loc("cell_type")] = np.nan
    more.obs.iloc[-4:, more.obs.columns.get_loc("condition")] = np.nan
    found = trvae_sc.compare(predicted, more)
    pd.testing.assert_frame_equal(found.scores, expected.scores)
    assert "8 cells without label or condition were left out." in found.notes
    assert not expected.notes


def test_what_was_learned_from_the_truth_is_told(adata, fit):
    """Its scores look better than what a perfect prediction would have."""
    model = fit(adata)
    predicted = model.predict(target="stimulated", labels=["B", "NK"])
    (note,) = trvae_sc.compare(predicted, adata, label="NK").notes[:1]
    assert "learned from cells under the target condition of NK, too" in note
    (note,) = trvae_sc.compare(predicted, adata).notes[:1]
    assert "of B, NK, too" in note


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_genes_that_have_no_name_of_their_own_are_refused(adata, predicted):
    twice = anndata.concat([adata, adata[:, :1]], axis=1, merge="first")
    with pytest.raises(InputError, match=r"truth\.var_names are not unique: 'gene_0'"):
        trvae_sc.compare(predicted, twice)
    with pytest.raises(InputError, match=r"control\.var_names are not unique"):
        trvae_sc.compare(predicted, adata, twice)


def test_one_gene_is_no_top(adata, predicted):
    with pytest.raises(InputError, match="n_top is 1; at least 2"):
        trvae_sc.compare(predicted, adata, n_top=1)
    for n in (0, 1):  # were errors of scikit-learn and of a metric
        with pytest.raises(InputError, match=f"predicted has {n} genes; at least 2 are needed"):
            trvae_sc.compare(predicted[:, :n], adata)


@pytest.mark.parametrize("column", ["condition", "cell_type", "source_condition"])
def test_a_prediction_without_its_columns_is_refused(adata, predicted, column):
    del predicted.obs[column]
    with pytest.raises(InputError, match=rf"No column '{column}' in predicted\.obs"):
        trvae_sc.compare(predicted, adata)


def test_errors_name_the_cells_that_are_meant(adata, predicted):
    other, nameless, text = adata.copy(), adata.copy(), adata.copy()
    del other.obs["condition"], nameless.obs["cell_type"]
    text.obs["n_counts"] = text.obs["n_counts"].astype(str)
    of_layer = predicted.copy()
    of_layer.uns["trvae_sc"] = dict(
        predicted.uns["trvae_sc"], keys={**predicted.uns["trvae_sc"]["keys"], "layer": "counts"}
    )
    for given, bad, message in (
        (predicted, other, r"No column 'condition' in {}\.obs; there"),
        (predicted, nameless, r"No column 'cell_type' in {}\.obs; there"),
        (predicted, text, r"{0}\.obs\['n_counts'\] = {0}\.obs\['n_counts'\]\.astype"),
        (of_layer, adata, r"No layer 'counts' in {}\.layers"),
    ):
        with pytest.raises(InputError, match=message.format("truth")):
            trvae_sc.compare(given, bad)
        if given is predicted:
            with pytest.raises(InputError, match=message.format("control")):
                trvae_sc.compare(given, adata, bad)


def test_genes_that_were_filled_in_are_noted(adata, predicted, fit):
    """They seem not to change: effect R2 0.33 in place of 0.72 on Kang without eight interferon genes."""
    whole = trvae_sc.compare(predicted, adata)
    model = fit(without(adata).copy())
    aligned = trvae_sc.align_genes(adata[:, 2:].copy(), model)
    found = trvae_sc.compare(predicted, aligned)
    assert found.notes[-1].startswith("truth was not measured in 2 genes, which align_genes filled")
    assert len(found.notes) == len(whole.notes) + 1
    found = trvae_sc.compare(predicted, adata, aligned)
    assert found.notes[-1].startswith("control was not measured in 2 genes")


def test_predicted_cells_are_not_compared_with_themselves(adata, predicted):
    """As of cells that were joined for a picture: effect R2 was 1."""
    joined = anndata.concat([without(adata), predicted])
    for given in ((joined,), (predicted, adata), (adata, joined)):
        with pytest.raises(InputError, match=r"holds \d+ of the \d+ predicted cells"):
            trvae_sc.compare(predicted, *given)
    measured = adata.copy()  # of pairs cells may have such names, too
    hidden = np.flatnonzero(~adata.obs_names.isin(without(adata).obs_names))[: predicted.n_obs]
    names = measured.obs_names.to_numpy().copy()
    names[hidden] = predicted.obs_names[: len(hidden)]
    measured.obs_names = names
    assert 2 * len(hidden) > predicted.n_obs
    found = trvae_sc.compare(predicted, measured).scores
    pd.testing.assert_frame_equal(found, trvae_sc.compare(predicted, adata).scores)
