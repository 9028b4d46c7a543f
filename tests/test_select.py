"""Choosing a method: the simplest that none is better than, without a look at what is predicted."""

import importlib
import itertools
import json
from functools import partial
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse, stats

import trvae_sc
from trvae_sc import baselines, datasets, metrics
from trvae_sc.errors import InputError
from trvae_sc.evaluation import (
    TOTAL_COLUMN,
    Holdout,
    Keys,
    Results,
    _answer,
    benchmark,
    prepare_task,
    select,
    training_data,
)
from trvae_sc.evaluation._left_out import LeftOut, stacking_weights
from trvae_sc.evaluation._methods import resolve
from trvae_sc.intervals import half_width

KEYS = Keys("condition", "cell_type", total_counts_key="total_counts")
SIMPLE = ["no_change", "mean_shift", "context_shift"]
QUICK = {"max_epochs": 1, "accelerator": "cpu", "enable_model_summary": False}
QUIET = {"keys": KEYS, "min_cells": 10, "n_top_genes": 50, "progress": False}


def trvae(train, source, *, target, keys, seed=0):
    """Train for one epoch, which is far too short to predict anything."""
    kwargs = {"train_kwargs": QUICK, "n_hidden": (8,), "n_latent": 2}
    return baselines.trvae(train, source, target=target, keys=keys, seed=seed, **kwargs)


def dense(x):
    return x.toarray() if sparse.issparse(x) else np.asarray(x)


# -- the best of some results -----------------------------------------------------------------------


def made(scores, *, metric="effect_r2", genes="top100"):
    """Return results with given scores: by method (and output), one per task, or lists by seed."""
    records = []
    for name, values in scores.items():
        method, _, output = name.partition(" ")
        for k, by_seed in enumerate(values):
            holdout = {"label": f"type_{k}", "source": "control", "target": "stimulated"}
            for seed, value in enumerate(by_seed if isinstance(by_seed, list) else [by_seed]):
                if value is ...:  # not run
                    continue
                row = [output or "delta", metric, genes, value]
                fit = {"method": method, "holdout": holdout, "seed": seed, "scores": [row]}
                records.append(fit)
    return Results({}, records)


def test_best_equals_a_computation_by_hand():
    """Leads of trvae over context_shift: 0.1, 0.2, 0.3: mean 0.2, deviation 0.1."""
    results = made(
        {
            "ceiling": [1.0, 1.0, 1.0],
            "mean_shift": [0.4, 0.3, 0.5],
            "context_shift": [0.5, 0.5, 0.5],
            "other": [0.6, 0.6, 0.7],
            "trvae counts": [9.0, 9.0, 9.0],
            "trvae delta": [[0.5, 0.7], [0.8, 0.6], 0.8],
        }
    )
    best = results.best()
    assert (best.method, best.output) == ("trvae", "delta")
    table = best.table
    assert table.columns.tolist() == [
        *["method", "output", "mean", "difference", "se", "wins", "n_tasks"]
    ]
    assert list(zip(table["method"], table["output"], strict=True)) == [
        ("trvae", "delta"),
        ("other", "delta"),
        ("context_shift", "delta"),
        ("mean_shift", "delta"),
    ]
    np.testing.assert_allclose(table["mean"], [0.7, 1.9 / 3, 0.5, 0.4])
    np.testing.assert_allclose(table["difference"], [0, 0.2 / 3, 0.2, 0.3], atol=1e-12)
    se = [0, stats.sem([0.0, 0.1, 0.1]), 0.1 / np.sqrt(3), stats.sem([0.2, 0.4, 0.3])]
    np.testing.assert_allclose(table["se"], se, atol=1e-12)
    assert table["n_tasks"].tolist() == [3] * 4
    assert table["wins"].tolist() == [0, 2, 3, 3]
    decision = best.decision
    assert (decision.answer, decision.model, decision.simple) == ("model", "trvae", "context_shift")
    assert decision.method == best.method
    assert decision.difference == pytest.approx(0.2)
    assert decision.error == pytest.approx(0.1 / np.sqrt(3))


def test_methods_are_compared_by_one_output_fixed_in_advance():
    """The best of several outputs was taken, which is best by chance more often than a single one."""
    results = made(
        {
            "mean_shift": [0.5, 0.5, 0.5],
            "trvae counts": [0.8, 0.9, 0.8],
            "trvae delta": [0.4, 0.3, 0.4],
            "mine latent": [0.1, 0.1, 0.1],
            "mine mean": [0.9, 0.9, 0.9],
        }
    )
    best = results.best()
    assert (best.method, best.output) == ("mean_shift", "delta")
    found = dict(zip(best.table["method"], best.table["output"], strict=True))
    assert found == {"mean_shift": "delta", "trvae": "delta", "mine": "latent"}  # the first it gave


def test_what_is_not_better_by_more_than_the_standard_error_is_too_close_to_call():
    """Leads of 0.3, 0.3 and -0.3 have mean 0.1 and standard error 0.2; with 0.1 it is 0.233 and 0.067."""
    context = np.array([0.5, 0.6, 0.7])
    for last, chosen in ((-0.3, "context_shift"), (0.1, "trvae")):
        lead = np.array([0.3, 0.3, last])
        assert (lead.mean() > stats.sem(lead)) == (chosen == "trvae")
        results = made({"trvae": list(context + lead), "context_shift": list(context)})
        best = results.best()
        assert best.method == best.decision.method == chosen
        assert best.decision.answer == ("model" if chosen == "trvae" else "close")
        assert best.decision.error == pytest.approx(stats.sem(lead))
        assert best.table["method"].tolist() == ["trvae", "context_shift"]  # by the mean
        difference = dict(zip(best.table["method"], best.table["difference"], strict=True))
        other = {"trvae": "context_shift", "context_shift": "trvae"}[chosen]
        assert difference[other] == pytest.approx(lead.mean() if chosen == "trvae" else -0.1)


def test_what_is_worse_by_more_than_the_standard_error_is_no_close_call():
    """Leads of -0.3, -0.3 and 0.1 have mean -0.167 and standard error 0.133; with 0.3, -0.1 and 0.2."""
    context = np.array([0.5, 0.6, 0.7])
    for last, answer in ((0.1, "simple"), (0.3, "close")):
        lead = np.array([-0.3, -0.3, last])
        assert (lead.mean() < -stats.sem(lead)) == (answer == "simple")
        best = made({"trvae": list(context + lead), "context_shift": list(context)}).best()
        assert (best.method, best.decision.answer) == ("context_shift", answer)
        assert best.decision.difference == pytest.approx(lead.mean())


@pytest.mark.parametrize(
    "pair", list(itertools.combinations([*baselines.SIMPLE, "latent_shift"], 2))
)
def test_ties_go_to_the_simpler(pair):
    assert [*baselines.SIMPLE[:2], baselines.SIMPLE[-1]] == SIMPLE
    for names in (pair, pair[::-1]):
        best = made({name: [0.25, 0.5, 0.75] for name in names}).best()
        assert best.method == pair[0]
        assert best.decision.answer == ("close" if "latent_shift" in pair else "simple")


def test_a_lead_as_large_as_its_standard_error_is_none():
    """Better on one of two tasks and equal on the other: mean and standard error are the same."""
    best = made({"mean_shift": [0.3, 0.4], "trvae": [0.3, 0.9]}).best()
    assert (best.method, best.decision.answer) == ("mean_shift", "close")


def test_among_simple_methods_the_mean_decides_however_noisy():
    """The mean shift leads on average only; no model takes part in that."""
    results = made(
        {
            "no_change": [0.3, 0.3, 0.3],
            "mean_shift": [0.9, 0.1, 0.2],
            "trvae": [1.5, -0.4, 0.2],
        }
    )
    best = results.best()
    assert best.table["method"].tolist() == ["trvae", "mean_shift", "no_change"]
    assert best.table["difference"][0] == pytest.approx(0.4 - 1.3 / 3)
    assert best.method == "mean_shift"
    assert best.decision.simple == "mean_shift"


def test_of_models_that_are_better_the_mean_decides():
    scores = {"mean_shift": [0.1, 0.1], "a": [1.2, 0.0], "b": [0.4, 0.5], "c": [1.5, 0.0]}
    assert (
        made(scores).best().method == "b"
    )  # the leads of a and c are within their standard errors


def test_of_equally_simple_ones_the_mean_decides():
    scores = {"a": [0.5, 0.6], "b": [0.61, 0.51], "latent_shift mean": [0.5, 0.5]}
    best = made(scores).best()
    assert (best.method, best.decision.answer, best.decision.simple) == ("b", "model", None)
    assert made({**scores, "b": [0.5, 0.6]}).best().method == "a"


def test_a_single_task_speaks_for_no_model():
    scores = {"no_change": [0.0], "mean_shift": [0.3], "context_shift": [0.3], "trvae": [0.9]}
    best = made(scores).best()
    assert (best.method, best.decision.answer) == ("mean_shift", "close")
    assert best.table["method"][0] == "trvae"
    assert best.table["se"].isna().all()
    assert np.isnan(best.decision.error)
    assert made({"trvae": [0.9], "cvae": [0.8]}).best().method == "trvae"


def test_with_a_single_task_seeds_tell_how_large_a_difference_is():
    """Leads of 0.1, 0.3 and 0.5 by seed: mean 0.3, standard error 0.2 / sqrt(3)."""
    simple = {"mean_shift": [0.3]}
    best = made({**simple, "trvae": [[0.4, 0.6, 0.8]]}).best()
    assert (best.method, best.decision.answer) == ("trvae", "model")
    assert best.decision.difference == pytest.approx(0.3)
    assert best.decision.error == pytest.approx(0.2 / np.sqrt(3))
    best = made({**simple, "trvae": [[0.1, 0.3, 0.8]]}).best()
    assert (best.method, best.decision.answer) == ("mean_shift", "close")
    assert best.decision.error == pytest.approx(stats.sem([-0.2, 0.0, 0.5]))


def test_seeds_are_averaged_and_tasks_shared():
    """The third task was not run by the model, the fourth has no finite score of the mean shift."""
    results = made(
        {
            "mean_shift": [0.5, 0.5, -9.0, None],
            "trvae": [[0.5, 0.9], [0.6, 0.6], ..., 0.0],
        }
    )
    best = results.best()
    assert best.method == "trvae"
    assert best.table["n_tasks"].tolist() == [2, 2]
    np.testing.assert_allclose(best.table["mean"], [0.65, 0.5])
    assert best.table["difference"][1] == pytest.approx(0.15)


LOSSES = {
    "lower": ("energy_distance", "pcs", [0.1, 0.2, 0.1], [1.0, 1.2, 1.1]),
    "higher": ("de_overlap", "top100", [0.9, 0.8, 0.9], [0.1, 0.2, 0.1]),
    "ratio": ("variance_ratio", "all", [0.9, 1.1, 1.0], [1.6, 0.4, 1.0001]),
    "ratio above": ("variance_ratio", "all", [0.8, 0.8, 0.8], [1.5, 1.5, 1.5]),
    "coverage": ("interval_coverage", "all", [0.88, 0.92, 0.9], [1.0, 1.0, 0.99]),
}


@pytest.mark.parametrize("case", LOSSES)
def test_direction_of_metrics(case):
    """Ratios 0.4 and 1.6 are on average 1, and still bad."""
    metric, genes, good, bad = LOSSES[case]
    assert metric in metrics.METRICS
    results = made({"mean_shift": bad, "trvae": good}, metric=metric, genes=genes)
    best = results.best(metric)
    assert best.method == "trvae"
    assert results.best(metric, genes=genes).table.equals(best.table)
    np.testing.assert_allclose(best.table["mean"], [np.mean(good), np.mean(bad)])
    if metric == "variance_ratio":
        lead = np.abs(np.log(bad)) - np.abs(np.log(good))
    elif metric == "interval_coverage":
        lead = np.abs(np.subtract(bad, 0.9)) - np.abs(np.subtract(good, 0.9))
    else:
        lead = np.abs(np.subtract(good, bad))
    assert best.table["difference"][1] == pytest.approx(lead.mean())
    assert best.table["se"][1] == pytest.approx(stats.sem(lead))
    swapped = made({"mean_shift": good, "trvae": bad}, metric=metric, genes=genes)
    assert swapped.best(metric).method == "mean_shift"


def test_best_refuses():
    with pytest.raises(InputError, match="no method has finished a task yet"):
        made({}).best()
    with pytest.raises(InputError, match="no method has finished a task yet"):
        made({"ceiling": [1.0]}).best()
    results = made({"mean_shift": [0.5, ...], "trvae": [..., 0.5]})
    with pytest.raises(InputError, match=r"'mean_shift': 1, 'trvae': 1"):
        results.best()
    with pytest.raises(InputError, match=r"Unknown metric 'accuracy'; choose one of \['"):
        results.best("accuracy")
    with pytest.raises(InputError, match=r"Nothing was scored by 'mmd'; there are \['effect_r2'\]"):
        results.best("mmd")
    with pytest.raises(InputError, match=r"over genes 'all', but over \['top100'\]"):
        results.best(genes="all")


# -- selection ----------------------------------------------------------------------------------------


def without(adata, *labels, condition="stimulated"):
    """Return the data without labels under a condition."""
    rows = adata.obs["cell_type"].isin(labels) & (adata.obs["condition"] == condition)
    return adata[~rows.to_numpy()].copy()


@pytest.fixture(scope="module")
def full():
    """Return cells of five labels whose response is the same; tests must not change them."""
    return datasets.simulate(500, 80, n_labels=5, specificity=0.0, seed=1)


@pytest.fixture(scope="module")
def adata(full):
    """Return the same without stimulated cells of type_4; tests must not change them."""
    return without(full, "type_4")


def on_all(method, adata, *labels, n_top_genes=50, **kwargs):
    """Return what a method predicts from all cells."""
    train, keys = training_data(adata, [], keys=KEYS, n_top_genes=n_top_genes)
    start = train.obs["cell_type"].isin(labels) & (train.obs["condition"] == "control")
    source = train[start.to_numpy()].copy()
    return method(train, source, target="stimulated", keys=keys, **kwargs)


def simple_on_all(name, adata, *labels, n_top_genes=50):
    """Return the prediction of a simple method from all cells."""
    train, keys = training_data(adata, [], keys=KEYS, n_top_genes=n_top_genes)
    given = {"method": name, "source": "control", "labels": labels, "keys": keys}
    return baselines.predict(train, "stimulated", **given)


def assert_same(a, b):
    """Compare predictions bit by bit, but for the record of how they were chosen, and intervals."""
    np.testing.assert_array_equal(dense(a.X), dense(b.X))
    pd.testing.assert_frame_equal(a.obs, b.obs, check_exact=True)
    bounds = ["change_lower", "change_upper"]
    pd.testing.assert_frame_equal(
        *(x.var.drop(columns=bounds, errors="ignore") for x in (a, b)), check_exact=True
    )


def test_where_all_labels_respond_alike_a_simple_method_is_chosen(adata):
    methods = {**{name: baselines.METHODS[name] for name in SIMPLE}, "trvae": trvae}
    predicted = select(adata, "stimulated", methods=methods, **QUIET)
    record = predicted.uns["trvae_sc"]
    selection = record["selection"]
    assert selection["method"] == "mean_shift"
    assert selection["output"] == "counts"
    assert selection["metric"] == "effect_r2"
    assert selection["n_tasks"] == 4
    assert selection["tasks"].tolist() == [f"type_{k}" for k in range(4)]
    assert selection["answer"] == "simple"
    assert_same(predicted, simple_on_all("mean_shift", adata, "type_4"))
    assert set(predicted.obs["cell_type"]) == {"type_4"}
    assert set(predicted.obs["condition"]) == {"stimulated"}
    assert record["method"] == "mean_shift"
    (note,) = record["notes"]
    assert note.startswith("mean_shift (delta) was chosen by leaving out 4 known labels in turn")
    assert "Mean effect_r2: " in note

    tasks = [Holdout(f"type_{k}", "stimulated", "control") for k in range(4)]
    options = {"keys": KEYS, "n_top_genes": 50, "seeds": [0], "progress": False}
    expected = benchmark(adata, methods, tasks, **options).best()
    pd.testing.assert_frame_equal(selection["scores"], expected.table)
    assert len(selection["scores"]) == 4


def test_a_method_that_is_worse_than_nothing_is_told(adata):
    """Labels that change each in a way of its own: their mean is not that of any."""
    odd = adata.copy()
    x = np.round(np.random.default_rng(0).gamma(2.0, 2.0, odd.shape)).astype(np.float32)
    for k in range(4):
        rows = (odd.obs["cell_type"] == f"type_{k}") & (odd.obs["condition"] == "stimulated")
        x[np.ix_(rows.to_numpy(), np.arange(k, odd.n_vars, 5))] *= 8.0
    odd.X = x
    odd.obs["total_counts"] = x.sum(1)
    predicted = select(odd, "stimulated", methods=["mean_shift"], **QUIET)
    (note,) = predicted.uns["trvae_sc"]["notes"]
    assert "no model was run" in note
    score = predicted.uns["trvae_sc"]["selection"]["scores"]["mean"].iloc[0]
    assert ("worse than predicting no change" in note) == (score < 0)
    assert score < 0


@pytest.mark.parametrize("seed", [1, 2])
def test_no_change_is_not_said_to_be_worse_than_no_change(seed):
    """Its score was -4e-09, as predictions are rounded to float32."""
    cells = datasets.simulate(500, 60, n_labels=4, seed=seed)
    lacks = (cells.obs["cell_type"] == "type_0") & (cells.obs["condition"] == "stimulated")
    predicted = select(cells[~lacks].copy(), "stimulated", methods=["no_change"], **QUIET)
    (note,) = predicted.uns["trvae_sc"]["notes"]
    assert "Mean effect_r2: no_change (delta) 0. " in note
    assert "worse than" not in note


def test_a_model_that_is_better_is_chosen_and_fitted_on_all_cells(full, adata):
    """An oracle that returns the hidden cells: its prediction is its own, with the first seed."""
    seen = []

    def oracle(train, source, *, target, keys, seed):
        label = source.obs["cell_type"].iloc[0]
        seen.append((label, seed, train.n_obs))
        real = (full.obs["cell_type"] == label) & (full.obs["condition"] == target)
        cells = full[real.to_numpy(), train.var_names].copy()
        cells.obs["source_condition"] = "control"
        cells.obs["source_cell"] = np.resize(source.obs_names, cells.n_obs)
        cells.uns["trvae_sc"] = {"scale": "counts", "notes": np.array(["Made up"], dtype=object)}
        return {
            "wrong": baselines.no_change(train, source, target=target, keys=keys),
            "delta": cells,
        }

    methods = {"mean_shift": baselines.mean_shift, "oracle": oracle}
    predicted = select(adata, "stimulated", methods=methods, seeds=(7, 3), output="delta", **QUIET)
    selection = predicted.uns["trvae_sc"]["selection"]
    assert (selection["method"], selection["output"]) == ("oracle", "delta")
    assert selection["answer"] == "model"
    scores = selection["scores"].set_index(["method", "output"])
    assert scores.loc[("oracle", "delta"), "mean"] == pytest.approx(1.0, abs=0.02)
    assert scores.loc[("mean_shift", "delta"), "wins"] == 4
    assert len(seen) == 4 * 2 + 1
    assert seen[-1] == ("type_4", 7, adata.n_obs)
    assert {n for *_, n in seen[:-1]}.isdisjoint({adata.n_obs})
    expected = on_all(oracle, adata, "type_4", seed=7)["delta"]
    assert_same(predicted, expected)
    notes = predicted.uns["trvae_sc"]["notes"]
    assert notes[0] == "Made up"
    assert len(notes) == 2


def test_a_trained_model_predicts_what_it_predicts_alone(adata):
    """Also of several labels at once."""
    lacking = without(adata, "type_3")
    predicted = select(lacking, "stimulated", methods={"trvae": trvae}, seeds=(5,), **QUIET)
    record = predicted.uns["trvae_sc"]
    output = record["selection"]["output"]
    assert output == "counts"
    assert record["output"] == output
    assert_same(predicted, on_all(trvae, lacking, "type_3", "type_4", seed=5)[output])
    assert record["model_seed"] == 5
    assert set(predicted.obs["cell_type"]) == {"type_3", "type_4"}


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
@pytest.mark.filterwarnings("ignore:Writing zarr v2")
def test_the_record_is_kept_by_files(adata, suffix):
    too_few = without(adata, "type_3", "type_2")
    for cells, methods in ((adata, SIMPLE), (too_few, SIMPLE), (adata, {"trvae": trvae})):
        predicted = select(cells, "stimulated", methods=methods, **QUIET)
        path = Path(f"{len(methods)}-{cells.n_obs}.{suffix}")
        getattr(predicted, f"write_{suffix}")(path)
        found = getattr(anndata, f"read_{suffix}")(path).uns["trvae_sc"]
        expected = predicted.uns["trvae_sc"]
        assert found["notes"].tolist() == expected["notes"].tolist()
        ours, kept = expected["selection"], found["selection"]
        assert kept.keys() == ours.keys()
        for key in ("method", "output", "metric", "n_tasks"):
            assert kept[key] == ours[key]
        assert kept["tasks"].tolist() == ours["tasks"].tolist()
        if ours["n_tasks"]:
            ours, kept = (t["scores"].reset_index(drop=True) for t in (ours, kept))
            pd.testing.assert_frame_equal(
                kept, ours, check_exact=True, check_dtype=False, check_column_type=False
            )


@pytest.mark.parametrize("n_known", [3, 2])
@pytest.mark.parametrize("junk", ["nan", "random"])
def test_target_cells_of_labels_to_predict_are_hidden(full, n_known, junk, tmp_path):
    """Whatever they hold, scores and prediction are the same bit by bit."""
    cells = without(full, *[f"type_{k}" for k in range(n_known, 4)])
    hidden = (
        (cells.obs["cell_type"] == "type_4") & (cells.obs["condition"] == "stimulated")
    ).to_numpy()
    assert hidden.sum() > 10
    blind = cells.copy()
    x = dense(cells.X).copy()
    rng = np.random.default_rng(0)
    x[hidden] = np.nan if junk == "nan" else rng.poisson(50, (hidden.sum(), cells.n_vars))
    blind.X = sparse.csr_matrix(x)
    blind.obs.loc[hidden, "total_counts"] = np.nan if junk == "nan" else 1e6
    methods = {"context_shift": baselines.context_shift, "trvae": trvae}
    found = [
        select(a, "stimulated", labels="type_4", methods=methods, folder=tmp_path / name, **QUIET)
        for a, name in ((cells, "a"), (blind, "b"), (without(cells, "type_4"), "c"))
    ]
    for other in found[1:]:
        assert_same(found[0], other)
    assert np.isfinite(dense(found[0].X)).all()
    selections = [predicted.uns["trvae_sc"]["selection"] for predicted in found]
    assert [s["n_tasks"] for s in selections] == [n_known if n_known > 2 else 0] * 3
    if n_known > 2:
        for other in selections[1:]:
            pd.testing.assert_frame_equal(
                selections[0]["scores"], other["scores"], check_exact=True
            )
        tables = [Results.load(tmp_path / name).table for name in "abc"]
        assert tables[0].equals(tables[1])
        assert tables[0].equals(tables[2])
    hides = f"{hidden.sum()} measured cells of type_4 under stimulated were hidden."
    assert hides in found[0].uns["trvae_sc"]["notes"]
    assert hides not in found[2].uns["trvae_sc"]["notes"]


def test_no_method_gets_cells_of_what_is_predicted(full):
    seen = []

    def spy(train, source, *, target, keys):
        seen.append((set(train.obs_names), set(source.obs["cell_type"])))
        return baselines.mean_shift(train, source, target=target, keys=keys)

    select(full, "stimulated", labels=["type_4", "type_0"], methods={"spy": spy}, **QUIET)
    hidden = set(full.obs_names) - set(without(full, "type_4", "type_0").obs_names)
    assert len(seen) == 3 + 1
    assert not any(hidden & train for train, _ in seen)
    assert [labels for _, labels in seen] == [
        {"type_1"},
        {"type_2"},
        {"type_3"},
        {"type_0", "type_4"},
    ]


class Counted:
    """A method that notes its calls, and raises at one of them.

    The newest object's notes are kept by the class: what an object holds tells methods apart.
    """

    def __init__(self, fail_at=None):
        type(self).calls, type(self).fail_at = [], fail_at

    def __call__(self, train, source, *, target, keys, seed):
        self.calls.append((source.obs["cell_type"].iloc[0], seed))
        if len(self.calls) == self.fail_at:
            raise KeyboardInterrupt
        found = baselines.mean_shift(train, source, target=target, keys=keys)
        found.X += np.float32(0.001 * seed)
        return found


def test_predictions_have_all_columns_of_the_source_cells_and_totals_of_all_genes(adata):
    cells = adata.copy()
    cells.obs["batch"] = pd.Categorical(np.array(["x", "y", "z"])[np.arange(cells.n_obs) % 3])
    cells.obs["score"] = np.arange(cells.n_obs) / 7
    cells.var["length"] = np.arange(cells.n_vars)
    keys = KEYS._replace(total_counts_key=None)
    predicted = select(cells, "stimulated", methods=["no_change"], **{**QUIET, "keys": keys})
    source = cells[predicted.obs["source_cell"].to_numpy()]
    assert predicted.obs_names.tolist() == [f"{name}_stimulated" for name in source.obs_names]
    for name in ("cell_type", "batch", "score", "total_counts"):
        assert predicted.obs[name].tolist() == source.obs[name].tolist()
    assert predicted.obs["source_condition"].tolist() == source.obs["condition"].tolist()
    np.testing.assert_allclose(predicted.obs[TOTAL_COLUMN], dense(source.X).sum(1))
    assert predicted.var["length"].tolist() == cells.var["length"][predicted.var_names].tolist()


def test_few_genes_or_epochs_are_called_a_quick_look(adata):
    """Of 80 genes 50 are few; of epochs what is fewer than by default."""
    methods = {"mean_shift": baselines.mean_shift, "trvae": trvae}
    for n_top_genes, told in (
        (50, "This was a quick look (50 of 80 genes, 1 epochs, fewer than by default)."),
        (None, "This was a quick look (1 epochs, fewer than by default)."),
    ):
        options = {**QUIET, "n_top_genes": n_top_genes}
        note = select(adata, "stimulated", methods=methods, **options).uns["trvae_sc"]["notes"][-1]
        assert note.endswith(told)
    whole = select(adata, "stimulated", methods=SIMPLE, **{**QUIET, "n_top_genes": None})
    assert "quick look" not in whole.uns["trvae_sc"]["notes"][-1]


def test_a_selection_that_was_stopped_goes_on(adata, tmp_path):
    run = partial(select, adata, "stimulated", folder=tmp_path, seeds=2, **QUIET)
    fresh = select(adata, "stimulated", methods={"m": Counted()}, seeds=2, **QUIET)
    method = Counted(fail_at=4)
    with pytest.raises(KeyboardInterrupt):
        run(methods={"m": method})
    method = Counted()
    predicted = run(methods={"m": method})
    assert method.calls == [
        ("type_1", 1),
        *itertools.product(["type_2", "type_3"], [0, 1]),
        ("type_4", 0),
    ]
    assert_same(predicted, fresh)
    scores = [p.uns["trvae_sc"]["selection"]["scores"] for p in (predicted, fresh)]
    pd.testing.assert_frame_equal(*scores)
    method = Counted()
    assert_same(run(methods={"m": method}), fresh)
    assert method.calls == [("type_4", 0)]


def test_other_fits_in_the_folder_do_not_count(adata, tmp_path):
    """Neither other methods and seeds, nor the hold-outs of the other direction."""
    options = {"keys": KEYS, "n_top_genes": 50, "folder": tmp_path, "progress": False}
    tasks = [Holdout(f"type_{k}", "stimulated", "control") for k in range(4)]
    back = [Holdout("type_0", "control", "stimulated")]
    benchmark(adata, {"m": Counted(), "other": Counted()}, [*tasks, *back], seeds=3, **options)
    kwargs = {"methods": {"m": Counted(), "no_change": baselines.no_change}, "seeds": [1]}
    found, fresh = (
        select(adata, "stimulated", folder=folder, **kwargs, **QUIET).uns["trvae_sc"]["selection"]
        for folder in (tmp_path, None)
    )
    pd.testing.assert_frame_equal(found["scores"], fresh["scores"])
    assert set(found["scores"]["method"]) == {"m", "no_change"}


@pytest.mark.parametrize("min_cells", [0, 1])
def test_labels_of_too_few_cells_to_be_scored_are_not_left_out(min_cells, adata):
    """A selection stopped at a hold-out that nobody had asked for."""
    few = (adata.obs["cell_type"] == "type_1") & (adata.obs["condition"] == "stimulated")
    cells = adata[~few | (few.cumsum() <= 3)].copy()
    options = QUIET | {"min_cells": min_cells, "methods": ["mean_shift"]}
    record = select(cells, "stimulated", **options).uns["trvae_sc"]
    assert list(record["selection"]["tasks"]) == ["type_0", "type_2", "type_3"]


def test_the_labels_of_most_cells_are_left_out_first(adata):
    cells = without(adata, "type_1")
    few = np.flatnonzero(
        (cells.obs["cell_type"] == "type_0") & (cells.obs["condition"] == "control")
    )
    cells = cells[np.setdiff1d(np.arange(cells.n_obs), few[12:])].copy()
    more = datasets.simulate(400, 80, n_labels=4, specificity=0.0, seed=3)
    more.obs["cell_type"] = more.obs["cell_type"].cat.rename_categories(lambda c: f"new_{c[5:]}")
    more.obs_names = [f"more_{name}" for name in more.obs_names]
    cells = anndata.concat([cells, more])
    table = pd.crosstab(cells.obs["cell_type"], cells.obs["condition"]).min(axis=1)
    assert table["type_0"] == 12
    expected = sorted(table.sort_values(ascending=False, kind="stable").index[:4])
    run = partial(select, cells, "stimulated", methods=["no_change", "mean_shift"])
    for options, labels in (
        ({"max_tasks": 4}, expected),
        ({"min_cells": 12}, sorted(table.index[table >= 12])),
        ({"min_cells": 13}, sorted(table.index[table >= 13])),
    ):
        selection = run(**{**QUIET, **options}).uns["trvae_sc"]["selection"]
        assert selection["tasks"].tolist() == labels
        assert ("type_0" in labels) == (options == {"min_cells": 12})


FALLBACKS = {
    "two known": (["type_0", "type_1"], ("mean_shift", "context_shift", "trvae"), "context_shift"),
    "two known, fewer methods": (["type_0", "type_1"], ("mean_shift", "trvae"), "mean_shift"),
    "two known, models only": (["type_0", "type_1"], ("trvae",), "context_shift"),
    "one known": (["type_0"], ("mean_shift", "context_shift", "trvae"), "mean_shift"),
    "one known, only what is the same": (["type_0"], ("context_shift",), "mean_shift"),
}


@pytest.mark.parametrize("case", FALLBACKS)
def test_with_too_few_known_labels_the_best_simple_method_is_used(case, full):
    known, methods, expected = FALLBACKS[case]
    cells = without(full, *({f"type_{k}" for k in range(5)} - set(known)))
    predicted = select(cells, "stimulated", labels="type_4", methods=methods, **QUIET)
    record = predicted.uns["trvae_sc"]
    assert record["selection"]["method"] == record["method"] == expected
    assert record["selection"]["n_tasks"] == 0
    assert "scores" not in record["selection"]
    assert_same(predicted, simple_on_all(expected, cells, "type_4"))
    note = record["notes"][-1]
    assert f"there are {len(known)} ({', '.join(known)})" in note
    assert f"The prediction is by {expected}, the strongest simple method" in note
    assert "was not tested" in note


def test_without_a_known_pair_nothing_is_changed(full):
    """Target cells are there, but of a label without source cells."""
    cells = without(full, "type_0", "type_1", "type_2", "type_3")
    cells = without(cells, "type_4", condition="control")
    predicted = select(cells, "stimulated", labels="type_0", methods=["mean_shift"], **QUIET)
    record = predicted.uns["trvae_sc"]
    assert record["selection"]["method"] == "no_change"
    assert "there are 0 (none)" in record["notes"][-1]
    assert_same(predicted, simple_on_all("no_change", cells, "type_0"))


def test_levels_that_are_no_text_and_more_conditions(full):
    cells = full.copy()
    codes = cells.obs["condition"].cat.codes.to_numpy().astype(int)
    position = cells.obs.groupby(["cell_type", "condition"], observed=True).cumcount().to_numpy()
    cells.obs["condition"] = np.where((codes == 1) & (position % 2 == 1), 2, codes)
    cells.obs["cell_type"] = cells.obs["cell_type"].cat.codes.to_numpy().astype(int)
    rows = (cells.obs["cell_type"] == 4) & (cells.obs["condition"] == 2)
    cells = cells[~rows.to_numpy()].copy()
    run = partial(select, cells, methods=["mean_shift"], **QUIET)
    named = cells.copy()
    named.obs["condition"] = named.obs["condition"].map({0: "a", 1: "b", 2: "c"}).astype(str)
    with pytest.raises(InputError, match=r"Which condition do predictions start from\? Of \['a', "):
        select(named, "c", methods=["mean_shift"], **QUIET)
    predicted = run("2", source=0)
    assert predicted.obs["condition"].unique().tolist() == [2]
    assert predicted.obs["cell_type"].unique().tolist() == [4]
    assert set(predicted.obs["source_condition"]) == {0}
    assert predicted.uns["trvae_sc"]["selection"]["tasks"].tolist() == ["0", "1", "2", "3"]
    assert_same(predicted, run(2, source="0", labels=4))
    assert_same(predicted, run(2))  # 0 is a dose of none


def test_categories_of_single_precision_are_found_by_what_they_read(full):
    cells = full.copy()
    dose = cells.obs["condition"].map({"control": 0.1, "stimulated": 0.3}).astype(np.float32)
    cells.obs["condition"] = dose.astype("category")
    predicted = select(cells, 0.3, labels="type_4", source=0.1, methods=["mean_shift"], **QUIET)
    assert predicted.obs["condition"].unique().tolist() == [0.3]


def test_values_and_the_score_to_choose_by(adata):
    logs = AnnData(adata.X.log1p(), obs=adata.obs, var=adata.var)
    keys = KEYS._replace(total_counts_key=None, is_count=False)
    options = {**QUIET, "keys": keys, "n_top_genes": None}
    predicted = select(
        logs, "stimulated", methods=SIMPLE, metric="energy_distance", source="control", **options
    )
    selection = predicted.uns["trvae_sc"]["selection"]
    assert selection["metric"] == "energy_distance"
    assert selection["method"] != "no_change"
    assert selection["scores"]["mean"].is_monotonic_increasing
    assert predicted.uns["trvae_sc"]["scale"] == "values"
    assert predicted.n_vars == 80


def test_cells_of_a_view_of_a_file_are_as_those_in_memory(full, tmp_path):
    full.write_h5ad(tmp_path / "cells.h5ad")
    some = np.arange(0, full.n_obs, 2)
    view = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")[some]
    options = {"labels": "type_4", "methods": SIMPLE, "output": "delta", **QUIET}
    found, expected = (select(x, "stimulated", **options) for x in (view, full[some].copy()))
    np.testing.assert_array_equal(found.X, expected.X)


def test_the_data_are_left_as_they_were(full):
    cells = full.copy()
    select(cells, "stimulated", labels="type_4", methods=SIMPLE, **QUIET)
    np.testing.assert_array_equal(dense(cells.X), dense(full.X))
    pd.testing.assert_frame_equal(cells.obs, full.obs)
    assert cells.uns.keys() == full.uns.keys()


def test_select_is_where_it_is_looked_for():
    assert trvae_sc.select is importlib.import_module("trvae_sc.evaluation").select
    assert "select" in dir(trvae_sc)


BAD = {
    "target": ({"target": "heated"}, InputError, r"Unknown condition 'heated'; there are \['con"),
    "source": ({"source": "heated"}, InputError, r"Unknown condition 'heated'; there are \['con"),
    "source is target": ({"source": "stimulated"}, InputError, r"of \['control'\]"),
    "label": ({"labels": ["type_9"]}, InputError, r"Unknown labels \['type_9'\]; there are \['ty"),
    "no label": ({"labels": []}, InputError, r"Unknown labels \[\]"),
    "methods": ({"methods": ["magic"]}, InputError, r"Unknown methods \['magic'\]"),
    "metric": ({"metric": "accuracy"}, InputError, "cannot be chosen by 'accuracy'; choose one"),
    "tasks": ({"max_tasks": 2}, InputError, "max_tasks is 2; methods are compared on 3 or more"),
    "seeds": ({"seeds": []}, InputError, "No seeds"),
    "labels_key": (
        {"keys": KEYS._replace(labels_key=None)},
        InputError,
        "need a labels_key.* the same in all",
    ),
    "column": ({"keys": KEYS._replace(condition_key="state")}, InputError, "No column 'state'"),
    "option": ({"n_job": 2}, InputError, "n_job"),
    "name": (
        {"methods": {"a/b": baselines.no_change, "c": baselines.mean_shift}, "combine": "stack"},
        InputError,
        r"no '/', as files cannot hold it: \['a/b', 'c'\]",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_select_refuses(case, adata):
    options, error, match = BAD[case]
    with pytest.raises(error, match=match):
        select(adata, **{"target": "stimulated", "methods": SIMPLE, **QUIET, **options})


def test_select_refuses_data(full, adata):
    run = partial(select, methods=SIMPLE, **QUIET)
    with pytest.raises(InputError, match=r"nothing is missing\. To hide"):
        run(full, "stimulated")
    lacks = without(full, "type_4", condition="control")
    with pytest.raises(InputError, match=r"No cells of \['type_4'\] under 'control'"):
        run(lacks, "stimulated", labels="type_4")
    only = without(full, "type_0", "type_1", "type_2", "type_3")
    with pytest.raises(InputError, match=r"No label but those to predict \(type_4\) has cells"):
        run(only, "stimulated", labels="type_4")
    unnamed = adata.copy()
    unnamed.obs.loc[unnamed.obs_names[:3], "cell_type"] = np.nan
    with pytest.raises(InputError, match=r"obs\['cell_type'\] is missing \(NaN\) in 3 cells"):
        run(unnamed, "stimulated")
    logs = adata.copy()
    logs.X = logs.X.log1p()
    with pytest.raises(InputError, match="not counts"):
        run(logs, "stimulated")


# -- command line -------------------------------------------------------------------------------------

SETUP = ["--condition-key", "condition", "--labels-key", "cell_type"]
OPTIONS = [*SETUP, "--total-counts-key", "total_counts", "--min-cells", 10, "--n-top-genes", 50]


@pytest.fixture
def file(full):
    """Return a file of all cells."""
    full.write_h5ad("cells.h5ad")
    return "cells.h5ad"


def test_the_command_equals_python(run, file, full):
    chosen = [*OPTIONS, "--target", "stimulated", "--labels", "type_4", "--methods", *SIMPLE]
    options = ["--folder", "new/fits", "--max-tasks", 3, "-o", "new/p.h5ad", "--json"]
    code, out, err = run("select", file, *chosen, *options)
    assert code == 0
    expected = select(full, "stimulated", labels="type_4", methods=SIMPLE, max_tasks=3, **QUIET)
    found = anndata.read_h5ad("new/p.h5ad")
    np.testing.assert_array_equal(dense(found.X), dense(expected.X))
    assert found.obs_names.tolist() == expected.obs_names.tolist()
    selection = expected.uns["trvae_sc"]["selection"]
    record = json.loads(out)
    scores = pd.DataFrame(record.pop("scores"))
    assert record == {
        "out": str(Path("new/p.h5ad")),
        "n_cells": expected.n_obs,
        "target": "stimulated",
        "method": "mean_shift",
        "output": "counts",
        "n_tasks": 3,
    }
    assert scores["method"].tolist() == selection["scores"]["method"].tolist()
    np.testing.assert_allclose(scores["mean"], selection["scores"]["mean"], atol=1e-8)
    for note in expected.uns["trvae_sc"]["notes"]:
        assert f"Note: {note}" in err
    assert len(Results.load("new/fits").records) == 3 * 4

    code, _, err = run("select", file, *chosen, *options)
    assert code == 2
    assert "p.h5ad exists. Pass --force to replace it." in err
    code, again, err = run("select", file, *chosen, *options, "--force")
    assert (code, again) == (0, out)
    assert "12/12" in err
    assert sorted(p.name for p in Path("new").iterdir()) == ["fits", "p.h5ad"]


def test_the_command_falls_back(run, full):
    without(full, "type_0", "type_1", "type_2", "type_4").write_h5ad("few.h5ad")
    code, out, err = run(
        "select",
        "few.h5ad",
        *OPTIONS,
        "--target",
        "stimulated",
        "--source",
        "control",
        "-o",
        "p.h5ad",
        "--json",
    )
    assert code == 0
    assert json.loads(out)["method"] == "mean_shift"
    assert "scores" not in json.loads(out)
    assert "Note: Methods could not be compared" in err
    labels = anndata.read_h5ad("p.h5ad").obs["cell_type"]
    assert set(labels) == {"type_0", "type_1", "type_2", "type_4"}


def test_a_quick_look_has_fewer_epochs_and_cells(run, file):
    chosen = [*OPTIONS, "--target", "stimulated", "--labels", "type_4", "--methods", "cvae"]
    quick = ["--max-tasks", 3, "--max-epochs", 1, "--max-cells", 12, "--folder", "fits"]
    assert run("select", file, *chosen, *quick, "-o", "p.h5ad")[0] == 0
    results = Results.load("fits")
    assert results.run["max_epochs"] == 1
    assert results.run["n_obs"] == 9 * 12  # 5 labels, 2 conditions; one of them is hidden
    assert anndata.read_h5ad("p.h5ad").n_obs == 12


BAD_COMMANDS = {
    "no target": ([*SETUP], "--target"),
    "no labels": (["--condition-key", "condition", "--target", "stimulated"], "needs --labels-key"),
    "target": ([*SETUP, "--target", "heated"], "Unknown condition 'heated'"),
    "nothing missing": ([*SETUP, "--target", "stimulated"], "nothing is missing"),
    "methods": (
        [*SETUP, "--target", "stimulated", "--methods", "magic"],
        "unknown method 'magic'; there",
    ),
    "metric": (
        [*SETUP, "--target", "stimulated", "--metric", "magic"],
        "unknown metric 'magic'; there are effect_r2,",
    ),
    "likelihood": (
        [*SETUP, "--target", "stimulated", "--gene-likelihood", "zinb"],
        "select compares methods under gene likelihood nb (counts) or normal",
    ),
    "suffix": ([*SETUP, "--target", "stimulated", "-o", "p.csv"], "neither .h5ad nor .zarr"),
    "folder": ([*SETUP, "--target", "stimulated", "--folder", "cells.h5ad"], "is a file"),
}


@pytest.mark.parametrize("case", BAD_COMMANDS)
def test_bad_input_of_the_command(case, run, file):
    options, message = BAD_COMMANDS[case]
    code, out, err = run("select", file, "-o", "p.h5ad", *options)
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())
    assert "Traceback" not in err
    assert [path.name for path in Path().iterdir()] == ["cells.h5ad"]


# -- one contract, intervals and stacks ---------------------------------------------------------------


def test_intervals_are_of_what_the_chosen_method_got_wrong_for_labels_left_out(adata):
    predicted = select(adata, "stimulated", methods=["mean_shift"], **QUIET)
    train, keys = training_data(adata, [], keys=KEYS, n_top_genes=50)
    kappa = np.median(train.obs[keys.total_counts_key])
    missed = pd.DataFrame(index=train.var_names)
    n = []
    for label in [f"type_{k}" for k in range(4)]:
        task = prepare_task(
            adata, Holdout(label, "stimulated", "control"), keys=KEYS, n_top_genes=50
        )
        shifted = baselines.mean_shift(task.train, task.source, target="stimulated", keys=task.keys)
        real, start, own = (
            np.log1p(np.maximum(np.expm1(dense(x)).mean(0), 0))
            for x in (task.real, task.control, shifted.X)
        )
        missed[label] = pd.Series((real - start) - (own - start), task.train.var_names)
        n.append(2 / (1 / task.source.n_obs + 1 / task.real.shape[0]))
    half = half_width(missed.T.to_numpy(), np.array(n))
    change = predicted.var["predicted_change"]
    np.testing.assert_allclose(predicted.var["change_upper"] - change, half, atol=2e-4)
    np.testing.assert_allclose(change - predicted.var["change_lower"], half, atol=2e-4)
    assert kappa > 0


def test_means_of_log_values_are_not_taken_for_those_of_counts(adata):
    """As of ``paper``, which is given log values: their mean is far below the log of the mean share."""

    def logs(train, source, *, target, keys):
        found = baselines.mean_shift(train, source, target=target, keys=keys)
        found.uns["trvae_sc"]["scale"] = "values"
        found.var["predicted_mean"] = dense(found.X).mean(0)
        change = {"predicted_change": 0.0, "change_lower": -1.0, "change_upper": 1.0}
        found.var = found.var.assign(**change)
        return found

    found, same = (
        select(adata, "stimulated", methods=methods, **QUIET).var
        for methods in ({"logs": logs}, ["mean_shift"])
    )
    x = dense(on_all(logs, adata, "type_4").X)
    level = np.log1p(np.maximum(np.expm1(x).mean(0), 0))
    np.testing.assert_allclose(found["predicted_mean"], level, rtol=1e-5)
    half = [table["change_upper"] - table["predicted_change"] for table in (found, same)]
    np.testing.assert_allclose(*half, rtol=1e-4)


def test_intervals_of_values_do_not_depend_on_the_unit_of_a_gene(adata):
    keys, unit = KEYS._replace(is_count=False), np.geomspace(0.01, 100.0, adata.n_vars)
    first = adata.copy()
    first.X = np.log1p(dense(adata.X)).astype(np.float64)
    other = first.copy()
    other.X = first.X * unit
    options = QUIET | {"keys": keys, "n_top_genes": None, "methods": ["mean_shift"]}
    one, two = (select(x, "stimulated", **options).var for x in (first, other))
    for column in ("change_lower", "change_upper"):
        np.testing.assert_allclose(two[column] / unit, one[column], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("output", ["counts", "delta"])
def test_the_same_columns_come_whoever_wins(adata, output):
    latent = partial(baselines.latent_shift, train_kwargs=QUICK)
    found = [
        select(adata, "stimulated", methods=methods, output=output, **QUIET)
        for methods in (["context_shift"], {"trvae": trvae}, {"latent_shift": latent})
    ]
    found.append(
        select(
            adata,
            "stimulated",
            methods={"mean_shift": baselines.mean_shift, "trvae": trvae},
            combine="stack",
            output=output,
            **QUIET,
        )
    )
    common = set(found[0].uns["trvae_sc"]) - {"selection"}
    for predicted in found:
        assert set(predicted.obs) == set(found[0].obs)
        assert set(predicted.var) == set(found[0].var)
        assert common <= set(predicted.uns["trvae_sc"])
        assert predicted.uns["trvae_sc"]["output"] == output
        assert np.isfinite(predicted.var["change_lower"]).all()
        x = dense(predicted.X)
        assert (x == np.round(x)).all() == (output == "counts")


def test_a_method_of_ones_own_predicts_whatever_it_is_called(adata):
    """It was scored, and the method of the package with that name predicted."""

    def doubled(train, source, *, target, keys):
        found = baselines.mean_shift(train, source, target=target, keys=keys)
        found.X += found.X - baselines.no_change(train, source, target=target, keys=keys).X
        return found

    run = partial(select, adata, "stimulated", output="delta", **QUIET)
    expected = run(methods={"mine": doubled})
    found = run(methods={"mean_shift": doubled})
    np.testing.assert_allclose(found.X, expected.X, rtol=1e-6)
    same = run(methods={"mean_shift": baselines.mean_shift})
    np.testing.assert_array_equal(same.X, run(methods=["mean_shift"]).X)
    assert np.abs(found.X - same.X).max() > 0.1


def test_counts_of_a_method_of_ones_own_are_those_it_returned(adata):
    """Others of the same mean were drawn, with the variance of cells of another condition."""

    def halved(train, source, *, target, keys):
        cells = source.copy()
        cells.X = np.floor(dense(source.X) / 2)
        cells.uns["trvae_sc"] = {"scale": "counts"}
        return {"counts": cells}

    predicted = select(adata, "stimulated", methods={"mine": halved}, **QUIET)
    start = adata[predicted.obs["source_cell"]]
    expected = np.floor(dense(start[:, predicted.var_names].X) / 2)
    np.testing.assert_array_equal(dense(predicted.X), expected)
    rest = start.obs["total_counts"].to_numpy() - dense(start[:, predicted.var_names].X).sum(1)
    np.testing.assert_allclose(predicted.obs["total_counts"], expected.sum(1) + rest)


def level_shift(adata, label):
    """Return the mean over labels of what f of the mean share changes, by hand, added to a label's own."""
    total, kappa = adata.obs["total_counts"], adata.obs["total_counts"].median()
    x = dense(adata.X) / total.to_numpy()[:, None]
    shares = pd.DataFrame(x, adata.obs_names, adata.var_names)
    of = [adata.obs["cell_type"].astype(str), adata.obs["condition"].astype(str)]
    f = np.log1p(kappa * shares.groupby(of).mean())
    change = (f.xs("stimulated", level=1) - f.xs("control", level=1)).dropna().mean()
    start = f.loc[(label, "control")]
    return np.maximum(start + change, 0.0) - start


def test_a_stack_is_the_mean_of_methods_with_the_weights_it_names(adata):
    methods = ["no_change", "mean_shift"]
    predicted = select(
        adata, "stimulated", methods=methods, combine="stack", output="delta", **QUIET
    )
    selection = predicted.uns["trvae_sc"]["selection"]
    weights = selection["weights"]
    assert sum(weights.values()) == pytest.approx(1.0)
    assert weights["mean_shift"] > 0.8  # all labels respond alike
    parts = {name: on_all(getattr(baselines, name), adata, "type_4").X for name in methods}
    expected = sum(weights[name] * dense(parts[name]) for name in methods)
    np.testing.assert_allclose(dense(predicted.X), expected, atol=1e-5)
    # not the mean of moved logarithms, which is below it
    change = weights["mean_shift"] * level_shift(adata, "type_4")[predicted.var_names]
    found = predicted.var["predicted_change"].to_numpy()
    assert found == pytest.approx(change.to_numpy(), abs=1e-4)
    note = predicted.uns["trvae_sc"]["notes"][-1]
    assert "weights" in note
    assert "4 known labels best" in note
    assert note.endswith(
        " This was a quick look (50 of 80 genes)."
    )  # which was said of the best only
    predicted.write_h5ad("stack.h5ad")
    again = anndata.read_h5ad("stack.h5ad").uns["trvae_sc"]["selection"]["weights"]
    assert again == pytest.approx(weights)


def test_a_stack_for_a_new_set_names_the_sets_that_were_left_out_and_a_score_below_zero():
    """They were called labels, and there was no warning."""
    names = ("control", "A", "B", "C", "D", "A+B", "B+C", "C+D")
    cells = datasets.simulate(600, 40, n_labels=1, conditions=names, effect_size=0.0, seed=3)
    keys = Keys("condition", "cell_type", condition_separator="+")
    options = {**QUIET, "keys": keys, "combine": "stack", "methods": ["sum_of_parts"]}
    note = select(cells, "A+C", **options).uns["trvae_sc"]["notes"][-1]
    assert "predict 3 known sets of parts best" in note
    assert note.endswith(" Do not trust it: below 0 it is worse than predicting no change.")


def test_a_score_that_no_task_has_is_refused_before_any_fit():
    """Nothing is particular to a label under a condition that is hidden in all: it was said once all was fitted."""
    cells = datasets.simulate(600, 40, n_labels=3, n_conditions=6, features="latent")
    keys = Keys("condition", "cell_type", condition_features="condition_features")
    options = {**QUIET, "keys": keys, "metric": "specific_pearson", "source": "control"}
    fitted = []

    def own(train, source, *, target, keys):
        fitted.append(target)
        return source

    cells = cells[cells.obs["condition"] != "condition_2"].copy()
    with pytest.raises(
        InputError, match=r"change to 'condition_2'.*'specific_pearson' .*choose another"
    ):
        select(cells, "condition_2", methods={"own": own}, **options)
    assert not fitted


def test_a_stack_says_of_a_label_what_it_says_of_it_alone(full, monkeypatch):
    """Of several labels at once the model's own change was lost, and taken from the moved cells."""
    ends, factors_of = {}, _answer.factors_of

    def seen(learned, label, source, end, others):
        ends.setdefault(label, []).append(end)
        return factors_of(learned, label, source, end, others)

    monkeypatch.setattr(_answer, "factors_of", seen)
    train, keys = training_data(without(full, "type_3", "type_4"), [], keys=KEYS)
    small = partial(baselines.trvae, train_kwargs=QUICK, n_hidden=(8,), n_latent=2)
    methods = resolve({"mean_shift": baselines.mean_shift, "trvae": small})
    given = {"target": "stimulated", "keys": keys, "methods": methods, "evidence": None, "seed": 0}
    for labels in (["type_3"], ["type_3", "type_4"]):
        start = train.obs["cell_type"].isin(labels) & (train.obs["condition"] == "control")
        source = train[start.to_numpy()].copy()
        weights = dict.fromkeys(methods, 0.5)
        _answer.answer(train, source, weights=weights, output="counts", **given)
    np.testing.assert_allclose(*ends["type_3"], rtol=1e-6)


def test_stacking_weights_are_those_of_constrained_least_squares():
    """Of two methods in closed form: the ridge on one free weight, cut to 0 to 1."""
    rng = np.random.default_rng(0)
    real = rng.normal(size=(3, 200))
    own = {"a": real + rng.normal(size=real.shape), "b": real + 2 * rng.normal(size=real.shape)}
    labels, genes = ["x", "y", "z"], [f"g{i}" for i in range(200)]
    found = LeftOut(
        pd.DataFrame(real, labels, genes),
        {name: pd.DataFrame(values, labels, genes) for name, values in own.items()},
        np.ones(3),
    )
    size = np.linalg.norm(real, axis=1, keepdims=True)
    d, e = ((own["a"] - own["b"]) / size).ravel(), ((real - own["b"]) / size).ravel()
    expected = (d @ e + 0.1 * 2) / (d @ d + 0.1 * 2 * 2)
    weights = stacking_weights(found)
    assert weights["a"] == pytest.approx(expected, abs=1e-5)
    assert weights["b"] == pytest.approx(1 - expected, abs=1e-5)


def test_a_method_that_adds_nothing_to_a_stack_has_the_weight_0():
    """It was 0 or 1e-16, by the order of cells; with 1e-16 the best method's change was no more its own."""
    found = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        real = pd.DataFrame(rng.normal(size=(4, 30)))
        half = 0.5 * real + 0.1 * rng.normal(size=real.shape)  # of which twice as much were best
        weights = stacking_weights(LeftOut(real, {"none": 0 * real, "half": half}, np.ones(4)))
        found.append(weights)
    assert found == [{"none": 0.0, "half": 1.0}] * 10


def test_columns_may_be_named_and_a_model_may_say_where_the_data_are(adata, fit):
    named = select(
        adata,
        "stimulated",
        methods=["mean_shift"],
        condition_key="condition",
        labels_key="cell_type",
        **{k: v for k, v in QUIET.items() if k != "keys"},
        **{k: v for k, v in KEYS.named().items() if k == "total_counts_key"},
    )
    expected = select(adata, "stimulated", methods=["mean_shift"], **QUIET)
    np.testing.assert_array_equal(dense(named.X), dense(expected.X))
    with pytest.raises(InputError, match="Give keys or"):
        select(adata, "stimulated", condition_key="condition", **QUIET)
    with pytest.raises(InputError, match="combine is 'mean'"):
        select(adata, "stimulated", combine="mean", **QUIET)
    with pytest.raises(InputError, match="Output 'mean' is not available"):
        select(adata, "stimulated", output="mean", **QUIET)


def test_unknown_arguments_and_one_gene_are_refused(make_adata):
    names = {"condition_key": "condition", "labels_key": "cell_type"}
    for wrong, message in (
        ({"foo": 1}, "Unknown argument 'foo' of select; there are"),
        ({"label_key": "cell_type"}, r"'label_key' of select.* Did you mean 'labels_key'\?"),
        ({"n_top_genes": 1}, "n_top_genes is 1; at least 2"),
    ):
        with pytest.raises(InputError, match=message):
            select(make_adata(), "stimulated", **names, **wrong)


def test_genes_of_one_value_make_no_interval_narrower():
    """Predictions are rounded to float32, which counted as what is missed of a gene that is 0.1 in all cells."""
    cells = datasets.simulate(600, 40, n_labels=5)
    lacks = (cells.obs["cell_type"] == "type_4") & (cells.obs["condition"] == "stimulated")
    cells = cells[~lacks].copy()
    x = np.log1p(cells.X.toarray().astype(np.float64))
    more = np.column_stack([x, np.full((cells.n_obs, 160), 0.1)])
    genes = pd.DataFrame(index=[*cells.var_names, *(f"same_{i}" for i in range(160))])
    keys = Keys("condition", "cell_type", is_count=False)
    options = {"keys": keys, "methods": ["mean_shift"], "min_cells": 10, "n_top_genes": None}
    expected, found = (
        select(AnnData(values, obs=cells.obs, var=var), "stimulated", **options, progress=False).var
        for values, var in ((x, cells.var[[]]), (more, genes))
    )
    for column in ("change_lower", "change_upper"):
        same = found.loc[expected.index, column]
        np.testing.assert_allclose(same, expected[column], rtol=1e-4, atol=1e-6)
