"""Coverage of intervals, and cells written for other programs."""

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from scipy import sparse

from trvae_sc import baselines, datasets
from trvae_sc.errors import InputError
from trvae_sc.evaluation import (
    Holdout,
    Keys,
    benchmark,
    export_cells,
    gene_table,
    holdouts,
    interval_table,
    predicted_log_values,
    prepare_task,
    score,
)
from trvae_sc.expression import totals
from trvae_sc.report import report

KEYS = Keys("condition", "cell_type", total_counts_key="n_counts")
NK = Holdout("NK", "stimulated", "control")


@pytest.fixture
def task(make_adata):
    """Return a prepared task on all genes."""
    return prepare_task(make_adata(n_cells=240), NK, keys=KEYS, n_top_genes=None)


def test_coverage_is_the_share_of_real_changes_of_mean_shares_in_the_interval(task, make_adata):
    adata = make_adata(n_cells=240)
    level = {}
    for condition in ("control", "stimulated"):
        cells = adata[(adata.obs["cell_type"] == "NK") & (adata.obs["condition"] == condition)]
        shares = cells.X.toarray() / totals(cells, KEYS)[:, None]
        level[condition] = np.log1p(task.kappa * shares.mean(0))
    change = level["stimulated"] - level["control"]
    predicted = baselines.mean_shift(task.train, task.source, target="stimulated", keys=task.keys)
    inside = np.arange(30) < 21
    predicted.var["change_lower"] = np.where(inside, change - 1e-3, change + 1e-3)
    predicted.var["change_upper"] = predicted.var["change_lower"] + 2e-3 - 1e-5
    table = score(task, predicted).set_index("metric")["value"]
    assert table["interval_coverage"] == pytest.approx(0.7)
    predicted.var["change_lower"] = np.nan
    assert "interval_coverage" not in score(task, predicted)["metric"].tolist()


@pytest.mark.parametrize("convert", [np.asarray, sparse.csr_matrix])
def test_log_values_of_another_kappa_are_put_on_the_scale_of_the_task(convert, task):
    """A prediction with the totals of other genes has another kappa; it was compared as it was."""
    share = np.random.default_rng(0).uniform(0.0, 0.1, (5, 30))
    share[0, 0] = 0.0
    x = np.log1p(3.0 * task.kappa * share)
    uns = {"scale": "log(1 + kappa * share)", "kappa": 3.0 * task.kappa}
    predicted = AnnData(convert(x), var=task.train.var[[]], uns={"trvae_sc": uns})
    found = predicted_log_values(task, predicted)
    np.testing.assert_allclose(found, np.log1p(task.kappa * share), rtol=1e-6)
    predicted.X = convert(-x)  # a shift can take values below 0
    np.testing.assert_allclose(predicted_log_values(task, predicted), -found, rtol=1e-6)
    uns["kappa"] = task.kappa
    same = AnnData(convert(x), var=task.train.var[[]], uns={"trvae_sc": uns})
    assert predicted_log_values(task, same) is same.X


def test_predicted_counts_need_their_totals(task):
    predicted = task.source.copy()
    predicted.uns["trvae_sc"] = {"scale": "counts"}
    half = predicted.copy()
    half.obs["n_counts"] *= 2
    share = np.expm1(predicted_log_values(task, predicted).toarray())
    np.testing.assert_allclose(
        np.expm1(predicted_log_values(task, half).toarray()), share / 2, rtol=1e-6
    )
    del predicted.obs["n_counts"]
    with pytest.raises(InputError, match=r"lack their totals, predicted\.obs\['n_counts'\]"):
        score(task, predicted)


def test_exported_cells_are_the_scored_ones_beside_the_same_controls(task, tmp_path):
    predicted = baselines.mean_shift(task.train, task.source, target="stimulated", keys=task.keys)
    predicted.X[0, 0] = -0.5
    export_cells(task, predicted, tmp_path / "a")
    real, written = (anndata.read_h5ad(tmp_path / "a" / f"{n}.h5ad") for n in ("real", "predicted"))
    is_control = (real.obs["condition"] == "control").to_numpy()
    assert is_control.sum() == task.source.n_obs
    n = is_control.sum()
    assert (real[is_control].X != written[:n].X).nnz == 0
    assert real[is_control].X.toarray() == pytest.approx(task.control.toarray(), abs=1e-6)
    assert real[~is_control].X.toarray() == pytest.approx(task.real.toarray(), abs=1e-6)
    expected = np.maximum(predicted_log_values(task, predicted), 0)
    assert written[n:].X.toarray() == pytest.approx(expected, abs=1e-6)
    assert written[n:].obs["condition"].unique().tolist() == ["stimulated"]
    assert sparse.issparse(written.X)
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["predicted.h5ad", "real.h5ad"]


def test_benchmark_exports_every_prediction(make_adata, tmp_path):
    adata = make_adata(n_cells=240)
    methods = ["mean_shift", "no_change"]
    kwargs = {"keys": KEYS, "n_top_genes": None, "progress": False, "export": True}
    benchmark(adata, methods, [NK], folder=tmp_path, **kwargs)
    fits = [p.stem for p in (tmp_path / "fits").iterdir() if "ceiling" not in p.name]
    written = [p.name for p in (tmp_path / "predictions").iterdir()]
    assert sorted(written) == sorted(f"{fit}-delta" for fit in fits)
    assert len(written) == 2
    with pytest.raises(InputError, match="needs a folder"):
        benchmark(adata, methods, [NK], **kwargs)


def test_values_that_are_not_counts_are_exported_as_they_are(tmp_path):
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {
            "condition": np.tile(["control", "stimulated"], 60),
            "cell_type": np.repeat(["B", "NK", "T"], 40),
        },
        index=[f"c{i}" for i in range(120)],
    )
    adata = AnnData(rng.normal(0, 2, (120, 8)), obs=obs)
    keys = Keys("condition", "cell_type", is_count=False)
    task = prepare_task(adata, NK, keys=keys, n_top_genes=None)
    predicted = baselines.no_change(task.train, task.source, target="stimulated", keys=task.keys)
    export_cells(task, predicted, tmp_path)
    written = anndata.read_h5ad(tmp_path / "predicted.h5ad")
    assert written.X.min() < -1
    assert written.X.toarray()[20:] == pytest.approx(predicted.X, abs=1e-6)


def test_use_of_all_genes_is_noted(make_adata, tmp_path):
    adata = make_adata(n_cells=240)
    kwargs = {"keys": KEYS, "progress": False}
    all_genes = benchmark(adata, ["no_change"], [NK], n_top_genes=None, **kwargs)
    assert len(all_genes.run["notes"]) == 1
    assert "All 30 genes" in all_genes.run["notes"][0]
    assert benchmark(adata, ["no_change"], [NK], n_top_genes=10, **kwargs).run["notes"] == []


def test_shares_of_the_chosen_genes_are_not_scored_against_shares_of_whole_cells(make_adata):
    """They are larger, and were taken for larger changes: effect R2 between lung protocols was far below 0."""
    keys = Keys("condition", "cell_type")
    task = prepare_task(make_adata(n_cells=240), NK, keys=keys, n_top_genes=15)
    given = {"target": "stimulated", "condition_key": "condition", "labels_key": "cell_type"}
    predicted = baselines.predict(task.train, source="control", labels="NK", **given)
    with pytest.raises(InputError, match=r"over its 15 genes.*task\.keys\.further"):
        score(task, predicted)
    own = {"total_counts_key": task.keys.total_counts_key}
    predicted = baselines.predict(task.train, source="control", labels="NK", **given, **own)
    assert len(score(task, predicted))


GIVEN = {"target": "stimulated", "condition_key": "condition", "labels_key": "cell_type"}


@pytest.fixture
def chosen(make_adata):
    """Return a task of some genes, with whole-cell totals."""
    adata = make_adata(n_cells=240)
    return prepare_task(adata, NK, keys=Keys("condition", "cell_type"), n_top_genes=15)


def of_task(task, train=None, **given):
    """Return what a simple method predicts of the training cells of a task."""
    own = {"source": "control", "labels": "NK", "total_counts_key": task.keys.total_counts_key}
    return baselines.predict(task.train if train is None else train, **{**GIVEN, **own, **given})


@pytest.mark.parametrize("function", [score, gene_table, predicted_log_values])
def test_cells_of_another_label_or_condition_are_not_scored(chosen, function, make_adata):
    """As of a prediction of all labels: effect R2 0.46 on Kang in place of 0.88."""
    everything = of_task(chosen, labels=None)
    with pytest.raises(InputError, match=r"not of NK, which the task hides \(cell_type: 'B'"):
        function(chosen, everything)
    function(chosen, everything[everything.obs["cell_type"] == "NK"].copy())
    donors = make_adata(n_cells=240)
    donors.obs["donor"] = np.arange(240) // 120
    within = Holdout("NK", "stimulated", "control", within=(("donor", 0),))
    task = prepare_task(
        donors, within, keys=chosen.keys._replace(total_counts_key=None), n_top_genes=15
    )
    with pytest.raises(InputError, match=r"task hides \(donor \+ cell_type: '1 \+ NK'\)"):
        function(task, of_task(task))
    back = of_task(chosen, target="control", source="stimulated", labels="B")
    back.obs["cell_type"] = "NK"
    with pytest.raises(
        InputError, match=r"cells under 'control', and the task hides cells under stim"
    ):
        function(chosen, back)


def test_predicted_counts_that_were_normalised_since_are_not_scored(chosen):
    """They were taken for counts: effect R2 0.51 on Kang in place of 0.88."""
    predicted = of_task(chosen)
    expected = score(chosen, predicted)
    predicted.layers["raw"] = predicted.X.copy()
    sc.pp.normalize_total(predicted)
    sc.pp.log1p(predicted)
    with pytest.raises(InputError, match="holds no counts any more"):
        score(chosen, predicted)
    predicted.uns["trvae_sc"]["keys"]["layer"] = "raw"
    pd.testing.assert_frame_equal(score(chosen, predicted), expected)


def test_totals_of_task_and_prediction_are_over_the_same_genes(chosen, make_adata):
    """Effect R2 was 0.07 and -1.1 on Kang in place of 0.9."""
    train, key = chosen.train.copy(), chosen.keys.total_counts_key
    train.obs["own"] = np.asarray(train.X.sum(1)).ravel()
    train.obs["same"] = train.obs[key]
    for output in ("counts", "delta"):
        assert len(score(chosen, of_task(chosen, train, total_counts_key=key, output=output)))
    assert len(score(chosen, of_task(chosen, train, total_counts_key="same", output="delta")))
    over = r"Total counts of predicted are sums over its 15 genes.*task\.keys\.further"
    with pytest.raises(InputError, match=over):
        score(chosen, of_task(chosen, train, total_counts_key="own", output="delta"))
    train.obs[key] = train.obs["own"]
    for output in ("counts", "delta"):
        with pytest.raises(InputError, match=over):
            score(chosen, of_task(chosen, train, output=output))
    some = make_adata(n_cells=240)[:, chosen.train.var_names].copy()
    task = prepare_task(some, NK, keys=Keys("condition", "cell_type"), n_top_genes=None)
    train.obs["whole"] = train.obs["same"]
    with pytest.raises(InputError, match="Total counts of the task are sums over its 15 genes"):
        score(task, of_task(task, train, total_counts_key="whole", output="delta"))
    # counts are compared by the sums that the task has
    assert len(score(task, of_task(task, train, total_counts_key="whole", output="counts")))


def test_values_on_another_scale_than_they_say_are_not_scored(chosen, make_adata):
    counts = baselines.as_prediction(
        chosen.source.X.toarray(), chosen.source, "stimulated", chosen.keys, chosen.kappa, "own"
    )
    with pytest.raises(InputError, match=r"predicted\.X holds counts, and .* says 'log"):
        score(chosen, counts)
    predicted = of_task(chosen, output="delta")
    logs = make_adata(n_cells=240)
    sc.pp.normalize_total(logs)
    sc.pp.log1p(logs)
    keys = Keys("condition", "cell_type", is_count=False)
    task = prepare_task(logs[:, chosen.train.var_names].copy(), NK, keys=keys, n_top_genes=None)
    with pytest.raises(InputError, match=r"made from counts \(log\(1 \+ kappa \* share\)\)"):
        score(task, predicted)


def test_a_prediction_by_what_had_seen_the_hidden_cells_is_warned_of(make_adata, caplog):
    adata = make_adata(n_cells=240)
    task = prepare_task(adata, NK, keys=KEYS, n_top_genes=None)
    score(task, of_task(task))
    assert not caplog.records
    score(task, of_task(task, adata))
    assert "learned from cells of NK under stimulated, too" in caplog.text


@pytest.mark.parametrize("ratio", [0.3, 3.0])
def test_intervals_of_another_kappa_are_put_on_the_scale_of_the_task(chosen, ratio):
    """Of a third of kappa they covered 57 % of the genes on Kang in place of 82 %."""
    predicted, columns = of_task(chosen, output="delta"), ["change_lower", "change_upper"]
    for name, width in zip(columns, (-0.2, 0.3), strict=True):
        predicted.var[name] = predicted.var["predicted_change"] + width
    other, expected = predicted.copy(), interval_table(chosen, predicted)
    start = np.log1p(np.expm1(chosen.control.toarray()).mean(0))
    end = predicted.var[columns].add(start, axis=0)
    of_end, of_start = (np.sign(x) * np.log1p(ratio * np.expm1(abs(x))) for x in (end, start))
    other.var[columns] = of_end.sub(of_start, axis=0)
    other.uns["trvae_sc"]["kappa"] = ratio * chosen.kappa
    pd.testing.assert_frame_equal(interval_table(chosen, other), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("is_count", [True, False])
def test_values_that_were_normalised_otherwise_than_the_task_are_warned_of(is_count, caplog):
    """Effect R2 was -8 on Kang of values scaled to a million counts, in a task of ten thousand."""
    adata = datasets.simulate(400, 100, n_labels=4, seed=0)
    median = np.median(adata.obs["total_counts"])
    shown = {total: adata.copy() for total in (median, 1000 * median)}
    for total, cells in shown.items():
        sc.pp.normalize_total(cells, target_sum=total)
        sc.pp.log1p(cells)
    holdout = Holdout("type_0", "stimulated", "control")
    keys = Keys("condition", "cell_type", is_count=is_count)
    task = prepare_task(adata if is_count else shown[median], holdout, keys=keys, n_top_genes=None)
    given = {**GIVEN, "source": "control", "labels": "type_0", "is_count": False}
    for cells in shown.values():
        assert "scale" not in caplog.text
        score(task, baselines.predict(cells[task.train.obs_names].copy(), **given))
    assert "Means of source cells of the task are" in caplog.text


def test_nothing_is_particular_to_a_label_where_no_other_shows_a_change():
    """A condition hidden in all labels: the correlation of the whole change was called specific r."""
    adata = datasets.simulate(600, 60, n_labels=3, n_conditions=4, features="latent")
    keys = {"condition_key": "condition", "labels_key": "cell_type"}
    keys |= {"condition_features": "condition_features"}
    tasks = holdouts(adata, by="condition", **keys)[:2]
    results = benchmark(adata, ["mean_condition"], tasks, n_top_genes=None, progress=False, **keys)
    scores = results.table.groupby("metric")["value"]
    assert scores.count()["specific_pearson"] == 0
    assert scores.count()["effect_pearson"] > 0
    assert "specific r (top100)" in results.summary()
    assert report(results)
