"""Held-out combinations: nothing leaks, scores are right, runs resume and share a folder."""

import dataclasses
import importlib
import itertools
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
import types
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import torch
from anndata import AnnData
from scipy import sparse, stats
from sklearn.decomposition import PCA

from trvae_sc import datasets, metrics
from trvae_sc.baselines import METHODS, SIMPLE, as_prediction
from trvae_sc.checks import looks_like_counts
from trvae_sc.errors import InputError
from trvae_sc.evaluation import (
    TOTAL_COLUMN,
    Holdout,
    Keys,
    Results,
    benchmark,
    ceiling,
    check_leaks,
    choose_genes,
    export_cells,
    gene_table,
    holdouts,
    interval_table,
    parse_holdouts,
    predicted_log_values,
    prepare_task,
    score,
    subsample,
    training_data,
    variable_genes,
)
from trvae_sc.evaluation._fit import _end_with, changes
from trvae_sc.evaluation._genes import response
from trvae_sc.evaluation._methods import Method
from trvae_sc.evaluation._store import Store
from trvae_sc.evaluation._tasks import components
from trvae_sc.files import write_text

COUNTS = Keys("condition", "cell_type")
VALUES = COUNTS._replace(is_count=False)
NK = Holdout("NK", "stimulated", "control")
QUIET = {"keys": COUNTS, "n_top_genes": 20, "progress": False}


def is_in(adata, label, condition, key="cell_type"):
    rows = (adata.obs[key] == label) & (adata.obs["condition"] == condition)
    return rows.to_numpy(copy=True)


def dense(x):
    return x.toarray() if sparse.issparse(x) else np.asarray(x)


def several(adata, names):
    """Spread the cells of both conditions over more conditions, evenly within labels."""
    adata = adata.copy()
    position = adata.obs.groupby("cell_type", observed=True).cumcount().to_numpy()
    adata.obs["condition"] = pd.Categorical(np.array(names)[position % len(names)])
    return adata


def scores(table):
    return table.set_index(["metric", "genes"])["value"]


# -- hold-outs --------------------------------------------------------------------------------------


def test_holdout_hides_its_label_under_the_target_and_starts_from_the_source(make_adata):
    adata = make_adata()
    np.testing.assert_array_equal(NK.hidden(adata, COUNTS), is_in(adata, "NK", "stimulated"))
    np.testing.assert_array_equal(NK.sources(adata, COUNTS), is_in(adata, "NK", "control"))
    assert str(NK) == "NK:stimulated"
    three = several(adata, ["a", "b", "c"])
    undecided = Holdout("NK", "b")
    np.testing.assert_array_equal(
        undecided.sources(three, COUNTS), is_in(three, "NK", "a") | is_in(three, "NK", "c")
    )
    donor = Holdout("b1", "stimulated", "control", key="batch")
    np.testing.assert_array_equal(
        donor.hidden(adata, COUNTS), is_in(adata, "b1", "stimulated", "batch")
    )
    np.testing.assert_array_equal(
        donor.sources(adata, COUNTS), is_in(adata, "b1", "control", "batch")
    )


def test_holdouts_are_compared_as_text(make_adata):
    adata = make_adata()
    adata.obs["cell_type"] = adata.obs["cell_type"].cat.codes.astype(int)
    adata.obs["condition"] = adata.obs["condition"].cat.codes.astype(int)
    for holdout in (Holdout(1, 1, 0), Holdout("1", "1", "0")):
        assert holdout.hidden(adata, COUNTS).sum() == 20
    found = holdouts(adata, keys=COUNTS, min_cells=5, source=0)
    assert found == [Holdout(label, "1", "0") for label in ("0", "1", "2")]


def test_holdouts_start_from_the_control(make_adata):
    adata = make_adata()
    assert holdouts(adata, keys=COUNTS, min_cells=20) == [
        Holdout(label, "stimulated", "control") for label in ("B", "NK", "T")
    ]
    assert holdouts(adata, keys=COUNTS, source="stimulated", min_cells=20) == [
        Holdout(label, "control", "stimulated") for label in ("B", "NK", "T")
    ]


@pytest.mark.parametrize("names", [["a", "b"], ["a", "b", "c"], ["ctrl", "DMSO"]])
def test_holdouts_without_one_control_need_a_source(names, make_adata):
    """The condition that sorts first was taken where there are two: "IFN" before "untreated"."""
    adata = several(make_adata(), names)
    first, *others = sorted(names)
    with pytest.raises(InputError, match=rf"Of {re.escape(repr([first, *others]))} .*source="):
        holdouts(adata, keys=COUNTS, min_cells=5)
    unknown = re.escape(f"Unknown source 'd'; there are {[first, *others]}.")
    with pytest.raises(InputError, match=unknown):
        holdouts(adata, keys=COUNTS, min_cells=5, source="d")
    last = others[-1]
    assert holdouts(adata, keys=COUNTS, min_cells=5, source=last) == [
        Holdout(label, target, last)
        for target in [first, *others[:-1]]
        for label in ("B", "NK", "T")
    ]
    adata.obs["condition"] = pd.Categorical(
        adata.obs["condition"], [last, first, *others[:-1]], ordered=True
    )
    assert {h.source for h in holdouts(adata, keys=COUNTS, min_cells=5)} == {last}


def test_holdouts_skip_what_has_too_few_cells_and_say_so(make_adata, caplog):
    adata = make_adata()
    rows = is_in(adata, "NK", "stimulated")
    rows[np.flatnonzero(rows)[:9]] = False  # 9 of 20 stay
    other = is_in(adata, "T", "control")
    other[np.flatnonzero(other)[:10]] = False  # 10 of 20 stay
    adata = adata[~rows & ~other].copy()
    with caplog.at_level(logging.INFO, "trvae_sc"):
        found = holdouts(adata, keys=COUNTS, min_cells=10)
    assert [h.label for h in found] == ["B", "T"]
    assert caplog.messages == ["Skipped, with fewer than 10 cells: NK:stimulated."]
    assert [h.label for h in holdouts(adata, keys=COUNTS, min_cells=9)] == ["B", "NK", "T"]
    with pytest.raises(InputError, match="No combination has 21 cells under 'control'"):
        holdouts(adata, keys=COUNTS, min_cells=21)


def test_holdouts_by_another_column(make_adata):
    adata = make_adata()
    assert holdouts(adata, keys=COUNTS, by="batch") == [
        Holdout(batch, "stimulated", "control", key="batch") for batch in ("b0", "b1")
    ]
    with pytest.raises(InputError, match=r"No column 'donor' in adata\.obs; there are \['cond"):
        holdouts(adata, keys=COUNTS, by="donor")
    with pytest.raises(
        InputError, match=r"need a column of labels: .* one that is the same in all"
    ):
        holdouts(adata, keys=Keys("condition"))
    with pytest.raises(
        InputError, match=r"need a column of labels: .* one that is the same in all"
    ):
        parse_holdouts(["B:stimulated"], adata, Keys("condition"))


def test_holdouts_of_a_label_in_a_batch(make_adata):
    adata = make_adata(n_cells=240)
    found = holdouts(adata, keys=COUNTS, by=["batch", "cell_type"], min_cells=10)
    assert [str(h) for h in found] == [
        f"{batch} + {label}:stimulated" for batch in ("b0", "b1") for label in ("B", "NK", "T")
    ]
    first = Holdout("B", "stimulated", "control", key="cell_type", within=(("batch", "b0"),))
    assert found[0] == first
    own = (adata.obs[["batch", "cell_type"]] == ["b0", "B"]).all(axis=1)
    expected = own & (adata.obs["condition"] == "stimulated")
    assert (first.hidden(adata, COUNTS) == expected).all()
    listed = Holdout("B", "stimulated", "control", key="cell_type", within=[["batch", "b0"]])
    task = prepare_task(adata, listed, keys=COUNTS, n_top_genes=None)
    assert task.holdout == first
    assert task.real.shape[0] == expected.sum()
    assert task.train.n_obs == 240 - expected.sum()
    assert set(task.source.obs["batch"]) == {"b0"}
    assert set(task.source.obs["cell_type"]) == {"B"}
    results = benchmark(adata, ["mean_shift"], found[:2], keys=COUNTS, seeds=1, n_top_genes=None)
    assert results.table["label"].unique().tolist() == ["b0 + B", "b0 + NK"]
    with pytest.raises(InputError, match="No column 'donor'"):
        holdouts(adata, keys=COUNTS, by=["donor", "cell_type"])
    with pytest.raises(InputError, match="names a column twice"):
        holdouts(adata, keys=COUNTS, by=["batch", "batch"])


def test_holdouts_together_name_each_other(make_adata):
    found = holdouts(make_adata(), keys=COUNTS, min_cells=5, together=2)
    bare = [Holdout(label, "stimulated", "control") for label in ("B", "NK", "T")]
    assert [(h.label, h.also) for h in found] == [
        ("B", (bare[1],)),
        ("NK", (bare[0],)),
        ("T", ()),
    ]
    task = prepare_task(make_adata(), found[0], keys=COUNTS, n_top_genes=None)
    left = task.train.obs.groupby(["cell_type", "condition"], observed=True).size().to_dict()
    assert left == {
        ("B", "control"): 20,
        ("NK", "control"): 20,
        ("T", "control"): 20,
        ("T", "stimulated"): 20,
    }
    assert task.real.shape[0] == 20


def test_parse_holdouts_split_where_cells_have_both_parts(make_adata):
    """At the last colon only, a condition with a colon could not be named."""
    adata = make_adata()
    adata.obs["cell_type"] = adata.obs["cell_type"].cat.rename_categories({"NK": "CD56:bright"})
    found = parse_holdouts(["CD56:bright:stimulated", "B:control"], adata, COUNTS)
    assert found == [
        Holdout("CD56:bright", "stimulated", "control"),
        Holdout("B", "control", "stimulated"),
    ]
    three = several(adata, ["a", "b", "c"])
    assert parse_holdouts(["B:c"], three, COUNTS) == [Holdout("B", "c")]
    assert parse_holdouts(["B:c"], three, COUNTS, source="b") == [Holdout("B", "c", "b")]
    timed = several(make_adata(), ["a", "drug:24h", "24h"])
    assert parse_holdouts(["B:drug:24h"], timed, COUNTS) == [Holdout("B", "drug:24h")]
    timed.obs["cell_type"] = timed.obs["cell_type"].cat.rename_categories({"T": "B:drug"})
    with pytest.raises(InputError, match=r"can be read as \[\('B', .*\('B:drug', '24h'\)\]"):
        parse_holdouts(["B:drug:24h"], timed, COUNTS)
    assert parse_holdouts([], timed, COUNTS) == []


def test_texts_of_holdouts_name_conditions_as_predict_does(make_adata):
    """Numbers by their value, parts in any order."""
    numbers = several(make_adata(), [0.0, 10.0])
    assert parse_holdouts(["B:10.0"], numbers, COUNTS) == [Holdout("B", "10", "0")]
    assert parse_holdouts([("B", "1e1")], numbers, COUNTS, source="0.0") == [
        Holdout("B", "10", "0")
    ]
    doses = datasets.simulate_doses({"A": [1, 10]}, n_cells=4, n_labels=2)
    keys = Keys(("drug", "dose"), "cell_type")
    assert parse_holdouts(["type_1:A + 10.0"], doses, keys) == [Holdout("type_1", "A + 10")]
    pairs = datasets.simulate(200, 20, conditions=("control", "A", "B", "A+B"), n_labels=2)
    keys = Keys("condition", "cell_type", condition_separator="+")
    assert parse_holdouts(["type_1:B+A"], pairs, keys) == [Holdout("type_1", "A+B")]


@pytest.mark.parametrize(
    ("text", "source", "match"),
    [
        ("B", None, "Hold-out 'B' is not of the form 'label:target'"),
        ("B:nothing", None, r"'B:nothing' matches no cell: labels are \['B', 'NK', 'T'\]"),
        ("X:control", None, r"'X:control' matches no cell.*conditions \['control', 'stimulated'\]"),
        ("B:stimulated", "ctrl", r"Unknown source 'ctrl'; conditions are \['control', 'stim"),
    ],
)
def test_parse_holdouts_refuses(text, source, match, make_adata):
    with pytest.raises(InputError, match=match):
        parse_holdouts([text], make_adata(), COUNTS, source=source)


# -- data without what is hidden --------------------------------------------------------------------


def test_training_data_lack_the_hidden_cells_and_have_totals_over_all_genes(make_adata):
    adata = make_adata()
    other = Holdout("B", "control", "stimulated")
    train, keys = training_data(adata, [NK, other], keys=COUNTS, n_top_genes=7)
    kept = adata[~is_in(adata, "NK", "stimulated") & ~is_in(adata, "B", "control")]
    assert train.obs_names.tolist() == kept.obs_names.tolist()
    assert train.n_vars == 7
    assert keys == COUNTS._replace(total_counts_key=TOTAL_COLUMN)
    np.testing.assert_array_equal(train.obs[TOTAL_COLUMN], dense(kept.X).sum(1))
    assert TOTAL_COLUMN not in adata.obs

    named = COUNTS._replace(total_counts_key="n_counts")
    train, keys = training_data(adata, [NK], keys=named, n_top_genes=7)
    assert keys == named
    assert TOTAL_COLUMN not in train.obs
    for n, given in itertools.product((None, 30, 99), (VALUES, COUNTS, named)):
        train, keys = training_data(adata, [NK], keys=given, n_top_genes=n)
        assert train.var_names.tolist() == adata.var_names.tolist()
        assert keys == given
        assert TOTAL_COLUMN not in train.obs


@pytest.mark.parametrize("n_top_genes", [None, 7])
def test_totals_over_all_genes_are_kept_where_genes_are_left_out_again(make_adata, n_top_genes):
    """They were summed over what was left, while predictions from the same cells took them from the column."""
    adata = make_adata()
    first, _ = training_data(adata, [NK], keys=COUNTS, n_top_genes=15)
    train, keys = training_data(first, [], keys=COUNTS, n_top_genes=n_top_genes)
    assert keys == COUNTS._replace(total_counts_key=TOTAL_COLUMN)
    totals = dense(adata[train.obs_names].X).sum(1)
    np.testing.assert_array_equal(train.obs[TOTAL_COLUMN], totals)
    task = prepare_task(first, Holdout("B", "stimulated", "control"), keys=COUNTS, n_top_genes=7)
    assert task.kappa == np.median(dense(adata[task.train.obs_names].X).sum(1))


def test_training_data_keep_nothing_but_values_and_named_columns(make_adata):
    """Neighbours, components and scores of all cells know the hidden ones."""
    adata = make_adata()
    adata.obsm["X_pca"] = np.zeros((adata.n_obs, 2))
    adata.uns["pca"] = {"variance": np.zeros(2)}
    adata.var["mean"] = 1.0
    adata.layers["other"] = adata.X.copy()
    keys = COUNTS._replace(batch_key="batch")
    train, _ = training_data(adata, [NK], keys=keys, n_top_genes=7, columns=["sex", "batch"])
    assert train.obs.columns.tolist() == [
        *["condition", "cell_type", "batch", "sex"],
        TOTAL_COLUMN,
    ]
    assert not (*train.obsm, *train.uns, *train.var, *train.obsp)
    assert [name for name in train.layers if name is not None] == []


def test_genes_are_chosen_on_the_training_cells_alone(make_adata):
    """Whatever the hidden cells hold, the same genes are chosen, as many as were asked for."""
    adata = make_adata()
    hidden = is_in(adata, "NK", "stimulated")
    changed = dense(adata.X).copy()
    rng = np.random.default_rng(0)
    changed[hidden, 10:20] = rng.poisson(9, (20, 10)) * rng.integers(0, 2, (20, 10))
    other = AnnData(sparse.csr_matrix(changed), obs=adata.obs, var=adata.var)
    a, _ = training_data(adata, [NK], keys=COUNTS, n_top_genes=8)
    b, _ = training_data(other, [NK], keys=COUNTS, n_top_genes=8)
    assert a.var_names.tolist() == b.var_names.tolist()
    with_all, _ = training_data(other, [], keys=COUNTS, n_top_genes=8)
    assert with_all.var_names.tolist() != a.var_names.tolist()


# -- choice of genes ----------------------------------------------------------------------------------


def nested_f(y, label, condition):
    """Return the F of conditions within labels against labels alone, by least squares."""
    rss, df = [], []
    for of in (label, np.char.add(np.char.add(label, "/"), condition)):
        design = (of[:, None] == np.unique(of)).astype(float)
        fitted = design @ np.linalg.lstsq(design, y, rcond=None)[0]
        rss.append(np.square(y - fitted).sum())
        df.append(len(y) - design.shape[1])
    return ((rss[0] - rss[1]) / (df[0] - df[1])) / (rss[1] / df[1])


@pytest.mark.parametrize("convert", [np.asarray, sparse.csr_matrix])
def test_response_is_the_f_of_conditions_within_labels(convert):
    """Labels differ in numbers of cells and of conditions; one was seen under a single condition."""
    rng = np.random.default_rng(0)
    cells = {("B", "a"): 9, ("B", "b"): 5, ("B", "c"): 7, ("NK", "a"): 4, ("NK", "c"): 11}
    cells |= {("T", "b"): 6}
    label, condition = (np.repeat([k[i] for k in cells], list(cells.values())) for i in (0, 1))
    x = rng.poisson(1.0, (42, 6)).astype(float)
    x[condition == "c", 2:4] += 2.0
    x[label == "T", 4] += 50.0  # a label is no response
    order = rng.permutation(42)
    x, label, condition = x[order], label[order], condition[order]
    found = response(convert(x), label, condition)
    expected = [nested_f(x[:, j], label, condition) for j in range(6)]
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert set(np.argsort(-found)[:2]) == {2, 3}

    everywhere = np.full(42, "all")
    parts = [x[condition == c] for c in "abc"]
    expected = stats.f_oneway(*parts).statistic
    np.testing.assert_allclose(response(convert(x), everywhere, condition), expected, rtol=1e-9)


def test_without_a_label_under_two_conditions_nothing_responds():
    x = np.random.default_rng(0).normal(size=(20, 3))
    label = np.repeat(["B", "T"], 10)
    assert response(x, label, np.repeat(["a", "b"], 10)).tolist() == [0.0, 0.0, 0.0]


def dispersions(adata, condition):
    """Return the mean over conditions of scanpy's dispersion of log values."""
    share = dense(adata.X) / dense(adata.X).sum(1, keepdims=True)
    logs = np.log1p(np.median(dense(adata.X).sum(1)) * share).astype(np.float32)
    tables = []
    for name in np.unique(condition):
        part = AnnData(logs[condition == name])
        tables.append(sc.pp.highly_variable_genes(part, n_top_genes=1, inplace=False))
    return np.nanmean([table["dispersions_norm"] for table in tables], axis=0), logs


@pytest.mark.parametrize("n", [1, 4, 50, 51])
def test_a_quarter_of_the_genes_respond_and_the_others_vary_most(n):
    adata = datasets.simulate(400, 120, n_labels=3, seed=1)
    condition, label = (adata.obs[k].to_numpy(str) for k in ("condition", "cell_type"))
    spread, logs = dispersions(adata, condition)
    f = [nested_f(logs[:, j].astype(float), label, condition) for j in range(120)]
    n_changed = -(-n // 4)
    expected = list(np.argsort(-np.array(f), kind="stable")[:n_changed])
    for gene in np.argsort(-np.nan_to_num(spread, nan=-np.inf), kind="stable"):
        if len(expected) < n and gene not in expected:
            expected.append(gene)
    choice = choose_genes(adata, COUNTS, n)
    assert np.flatnonzero(choice.chosen).tolist() == sorted(expected)
    assert choice.n_changed == n_changed
    left = [gene for gene in np.argsort(-np.array(f)) if gene not in expected][:5]
    assert choice.left_out == tuple(adata.var_names[left])
    assert f"{n} of 120 genes were chosen" in str(choice)
    assert f"{n_changed} that change most" in str(choice)
    assert f"{n - n_changed} that vary most" in str(choice)
    assert all(name in str(choice) for name in choice.left_out)


def test_a_gene_that_is_off_or_on_by_condition_is_chosen():
    """By variability alone it was left out: within all cells it is one of the steadiest."""
    adata = datasets.simulate(400, 120, n_labels=3, effect_size=0.0, seed=1)
    x = dense(adata.X).copy()
    x[:, 7] = 5 * (adata.obs["condition"] == "stimulated")
    switched = AnnData(sparse.csr_matrix(x), obs=adata.obs, var=adata.var)
    spread, _ = dispersions(switched, switched.obs["condition"].to_numpy(str))
    assert np.isnan(spread[7]) or spread[7] < np.nanmedian(spread)
    assert choose_genes(switched, COUNTS, 10).chosen[7]


def test_differences_between_labels_are_no_response():
    """Labels of unequal share under two conditions differ in pooled means, and respond in nothing."""
    rng = np.random.default_rng(0)
    label = np.repeat(["B", "T"], 100)
    condition = np.where(np.arange(200) % 10 < np.where(label == "B", 8, 2), "a", "b")
    x = rng.normal(0.0, 1.0, (200, 12))
    x[label == "T", :4] += 3.0
    x[condition == "b", 4:6] += 1.5
    obs = pd.DataFrame({"condition": condition, "cell_type": label}, index=map(str, range(200)))
    adata = AnnData(x, obs=obs)
    assert set(np.flatnonzero(choose_genes(adata, VALUES, 8).chosen)) >= {4, 5}
    pooled = [stats.f_oneway(*(x[condition == c, j] for c in "ab")).pvalue for j in range(4)]
    assert max(pooled) < 1e-3


def test_values_that_are_no_counts_vary_by_their_variance():
    """Conditions of less than 20 cells do not tell, unless there are no others."""
    rng = np.random.default_rng(0)
    conditions = np.repeat(["a", "b", "c"], [40, 30, 19])
    values = rng.normal(0.0, np.linspace(1.0, 2.0, 16), (89, 16))
    values[:, 9] += 3.0 * (conditions == "b")
    values[conditions == "c", :8] *= 5.0
    for step, names in ((1, ["a", "b"]), (5, ["a", "b", "c"])):
        x, condition = values[::step], conditions[::step]
        obs = pd.DataFrame({"condition": condition}, index=map(str, range(len(x))))
        changed = stats.f_oneway(*(x[condition == name] for name in "abc")).statistic.argmax()
        groups = [np.isin(condition, names)] if step == 5 else [condition == c for c in names]
        variance = np.mean([x[group].var(0) for group in groups], axis=0)
        others = [gene for gene in np.argsort(-variance) if gene != changed][:3]
        choice = choose_genes(AnnData(x, obs=obs), Keys("condition", is_count=False), 4)
        assert set(np.flatnonzero(choice.chosen)) == {changed, *others}


@pytest.mark.parametrize("junk", [np.nan, 0.0, 1000.0])
def test_hidden_cells_do_not_enter_the_choice_of_genes(junk, make_adata):
    adata = make_adata(n_cells=180)
    hidden = is_in(adata, "NK", "stimulated")
    x = dense(adata.X).copy()
    x[hidden, ::2] = junk
    other = AnnData(x, obs=adata.obs, var=adata.var)
    left = AnnData(dense(adata.X), obs=adata.obs, var=adata.var)[~hidden].copy()
    found = [
        training_data(cells, [NK], keys=COUNTS, n_top_genes=9)[0].var_names.tolist()
        for cells in (adata, other)
    ]
    assert found[0] == found[1]
    assert found[0] == adata.var_names[choose_genes(left, COUNTS, 9).chosen].tolist()


def test_the_choice_of_genes_is_told(make_adata, caplog):
    with caplog.at_level(logging.INFO, "trvae_sc"):
        training_data(make_adata(), [NK], keys=COUNTS, n_top_genes=8)
    assert any(
        "8 of 30 genes were chosen on the training cells: 2 that" in m for m in caplog.messages
    )
    assert any("No total_counts_key" in m for m in caplog.messages)


@pytest.mark.parametrize("n", [0, -1, 1.5])
def test_a_choice_has_a_gene_at_least(n, make_adata):
    for choose in (choose_genes, variable_genes):
        with pytest.raises(InputError, match=f"n_top_genes is {n}"):
            choose(make_adata(), COUNTS, n)


def test_columns_are_warned_of_once(make_adata, caplog):
    """Each fit said it again: of a control with the dose of drugs, labels that are not known, batches."""
    adata = make_adata()
    is_control = adata.obs["condition"] == "control"
    adata.obs["dose"] = np.where(is_control | (np.arange(adata.n_obs) // 2 % 2 > 0), 1.0, 3.0)
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(str).replace("B", "unknown")
    tasks = [Holdout(label, "stimulated + 1", "control + 1") for label in ("T", "NK")]
    keys = COUNTS._replace(condition_key=["condition", "dose"])
    benchmark(adata, ["trvae"], tasks, max_epochs=1, **QUIET | {"keys": keys})
    for start in ("Controls in adata.obs['condition']", "adata.obs['cell_type'] has the label"):
        assert sum(m.startswith(start) for m in caplog.messages) == 1


def test_the_totals_are_told_of_once(make_adata, caplog):
    adata = make_adata()
    with caplog.at_level(logging.INFO, "trvae_sc"):
        tasks = holdouts(adata, keys=COUNTS, min_cells=10)
        benchmark(adata, ["no_change"], tasks, keys=COUNTS, n_top_genes=8, progress=False)
    assert sum("No total_counts_key" in m for m in caplog.messages) == 1


@pytest.mark.parametrize(
    "given",
    ["NK:stimulated", ["NK:stimulated"], [("NK", "stimulated")], NK, (h for h in [NK])],
)
def test_holdouts_may_be_texts_and_pairs(given, make_adata):
    adata = make_adata()
    options = {"keys": COUNTS, "progress": False}
    found = benchmark(adata, ["no_change"], given, **options).table
    expected = benchmark(adata, ["no_change"], [NK], **options).table
    pd.testing.assert_frame_equal(found, expected)
    if isinstance(given, list):
        train, _ = training_data(adata, given, keys=COUNTS)
        assert train.n_obs == adata.n_obs - 20


def test_the_source_of_a_text_is_the_control(make_adata):
    adata = make_adata()
    adata.obs["condition"] = adata.obs["site"].cat.rename_categories({"s0": "control"})
    task = prepare_task(adata, "NK:s2", keys=COUNTS)
    assert task.holdout == Holdout("NK", "s2", "control")
    adata.obs["condition"] = adata.obs["site"]
    with pytest.raises(InputError, match=r"NK:s2 has no source: .* as in Holdout\(label, target"):
        prepare_task(adata, "NK:s2", keys=COUNTS)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], r"There are no hold-outs: give those of evaluation\.holdouts"),
        (None, r"holdouts is None; give those of trvae_sc\.evaluation\.holdouts"),
        ([3], r"A hold-out is 3; give those of .* texts 'label:target' or pairs"),
        (["NK"], "Hold-out 'NK' is not of the form 'label:target'"),
        ([("NK", "stim")], "Hold-out 'NK:stim' matches no cell: labels are"),
    ],
)
def test_what_are_no_holdouts_is_refused(given, message, make_adata):
    with pytest.raises(InputError, match=message):
        benchmark(make_adata(), ["no_change"], given, keys=COUNTS)


def test_one_gene_is_too_few(make_adata):
    with pytest.raises(InputError, match="n_top_genes is 1; at least 2"):
        benchmark(make_adata(), ["no_change"], [NK], keys=COUNTS, n_top_genes=1)
    with pytest.raises(InputError, match="n_top_genes is 1; at least 2"):
        prepare_task(make_adata(), NK, keys=COUNTS, n_top_genes=1)
    with pytest.raises(InputError, match="adata has 1 genes; at least 2"):
        benchmark(make_adata()[:, :1].copy(), ["no_change"], [NK], keys=COUNTS)


def test_results_without_a_fit_have_no_summary(make_adata):
    results = benchmark(make_adata(), ["no_change"], [NK], keys=COUNTS, progress=False)
    for summary in (Results(results.run, []).summary, Results(results.run, []).wide):
        with pytest.raises(InputError, match="no results yet: no fit has finished"):
            summary()


def test_a_benchmark_refuses_a_batch_that_is_the_label(make_adata):
    keys = Keys("condition", "cell_type", batch_key="cell_type")
    with pytest.raises(InputError, match="batch_key and labels_key are both 'cell_type'"):
        benchmark(make_adata(), ["no_change"], [NK], keys=keys)


@pytest.mark.parametrize("n", [1, 7, 12, 29])
def test_ties_do_not_add_genes(n, make_adata):
    """Genes alone in their bin of means all have spread 1: scanpy returned 12 where 7 were asked."""
    adata = make_adata()
    chosen = choose_genes(adata, COUNTS, n).chosen
    assert chosen.sum() == n
    more = choose_genes(adata, COUNTS, n + 1).chosen
    assert (more & chosen).sum() == n


def test_equal_genes_are_taken_in_their_order():
    rng = np.random.default_rng(0)
    condition = np.tile(["a", "b"], 40)
    same = rng.normal(0.0, 1.0, 80) + 2.0 * (condition == "b")
    x = np.column_stack([rng.normal(0.0, 1.0, (80, 6)), *[same] * 6])
    obs = pd.DataFrame({"condition": condition}, index=map(str, range(80)))
    choice = choose_genes(AnnData(x, obs=obs), Keys("condition", is_count=False), 8)
    assert choice.chosen[6:8].all()
    assert choice.n_changed == 2
    assert choice.chosen.sum() == 8


def test_choosing_genes_leaves_torch_its_threads(make_adata, monkeypatch):
    """Numba, in scanpy, gave OpenMP all cores; fits side by side then took ten times as long."""
    choose = sc.pp.highly_variable_genes

    def greedy(*args, **kwargs):
        torch.set_num_threads(3)
        return choose(*args, **kwargs)

    monkeypatch.setattr(sc.pp, "highly_variable_genes", greedy)
    choose_genes(make_adata(), COUNTS, 10)
    assert torch.get_num_threads() == 1


# -- tasks ----------------------------------------------------------------------------------------------


def test_a_hold_out_that_hides_nothing_is_refused(make_adata):
    """With a label that is misspelt, the cells to be hidden were trained on."""
    typo = Holdout("nk", "stimulated", "control")
    with pytest.raises(InputError, match="nk:stimulated hides no cell"):
        training_data(make_adata(), [NK, typo], keys=COUNTS)
    with pytest.raises(InputError, match="No column 'nope'"):
        training_data(make_adata(), [NK], keys=COUNTS, columns=["nope"])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"condition_key": "nope"}, "No column 'nope'"),
        ({"labels_key": "nope"}, "No column 'nope'"),
        ({"layer": "nope"}, "No layer 'nope'"),
        ({}, "not counts"),
    ],
)
def test_genes_are_chosen_of_counts_in_columns_that_there_are(names, message, make_adata):
    adata = make_adata(values="counts" if names else "log")
    with pytest.raises(InputError, match=message):
        choose_genes(adata, n_top_genes=5, **{"condition_key": "condition", **names})


def test_cells_of_a_file_are_drawn_as_those_in_memory(make_adata, tmp_path):
    adata = make_adata()
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    expected = subsample(adata, COUNTS, 5)
    for cells in (backed, backed[:]):
        found = subsample(cells, COUNTS, 5)
        assert found.obs_names.equals(expected.obs_names)
        assert (found.X != expected.X).nnz == 0
    with pytest.raises(InputError, match="No column 'nope'"):
        subsample(adata, COUNTS._replace(labels_key="nope"), 5)


def test_nothing_left_to_train_on(make_adata):
    adata = make_adata()
    everything = [Holdout(lab, c) for lab in ("B", "NK", "T") for c in ("control", "stimulated")]
    with pytest.raises(InputError, match="nothing is left to train on"):
        training_data(adata, everything, keys=COUNTS)


def test_backed_files_give_the_same_task(make_adata, tmp_path):
    adata = make_adata()
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    a, b = (prepare_task(x, NK, keys=COUNTS, n_top_genes=10) for x in (adata, backed))
    assert_same_task(a, b)
    np.testing.assert_array_equal(dense(a.real), dense(b.real))
    backed.file.close()


def test_task_equals_a_computation_by_hand(make_adata):
    adata = make_adata()
    task = prepare_task(adata, NK, keys=COUNTS, n_top_genes=12)
    x = dense(adata.X).astype(float)
    total = x.sum(1)
    hidden = is_in(adata, "NK", "stimulated")
    assert task.kappa == np.median(total[~hidden])
    genes = adata.var_names.get_indexer(task.train.var_names)
    y = np.log1p(task.kappa * x / total[:, None])[:, genes]
    np.testing.assert_allclose(dense(task.real), y[hidden], rtol=1e-6)
    np.testing.assert_allclose(dense(task.control), y[is_in(adata, "NK", "control")], rtol=1e-6)
    means = {
        (lab, c): y[is_in(adata, lab, c)].mean(0)
        for lab in ("B", "T")
        for c in ("control", "stimulated")
    }
    shift = np.mean([means[lab, "stimulated"] - means[lab, "control"] for lab in ("B", "T")], 0)
    np.testing.assert_allclose(task.shift, shift, rtol=1e-5, atol=1e-7)
    assert set(task.by_target) == {"stimulated"}
    np.testing.assert_allclose(task.by_target["stimulated"][0], y[hidden].mean(0), rtol=1e-6)
    assert task.source.obs_names.tolist() == adata.obs_names[is_in(adata, "NK", "control")].tolist()
    pca = PCA(3, svd_solver="full").fit(y[~hidden])
    np.testing.assert_allclose(task.pca.explained_variance_[:3], pca.explained_variance_, rtol=1e-3)
    found, expected = task.project(task.real)[:, :3], pca.transform(y[hidden])
    np.testing.assert_allclose(np.abs(found), np.abs(expected), rtol=2e-2, atol=2e-2)


def test_tasks_that_cannot_be_judged(make_adata):
    """Three hidden cells used to fail in the ceiling, after other methods had run."""
    adata = make_adata()
    with pytest.raises(InputError, match="NK:stimulated has no source"):
        prepare_task(adata, Holdout("NK", "stimulated"), keys=COUNTS)
    with pytest.raises(InputError, match="NK:control has 'control' as source and as target"):
        prepare_task(adata, Holdout("NK", "control", "control"), keys=COUNTS)
    for condition, kept, match in (("stimulated", 3, "3 hidden"), ("control", 1, "1 source")):
        rows = np.flatnonzero(is_in(adata, "NK", condition))[kept:]
        few = adata[np.setdiff1d(np.arange(adata.n_obs), rows)].copy()
        with pytest.raises(InputError, match=f"NK:stimulated has {match} cells; at least"):
            prepare_task(few, NK, keys=COUNTS)
    rows = np.flatnonzero(is_in(adata, "NK", "stimulated"))[4:]
    four = adata[np.setdiff1d(np.arange(adata.n_obs), rows)].copy()
    tables = ceiling(prepare_task(four, NK, keys=COUNTS))
    assert all(table["value"].notna().all() for table in tables.values())


# -- leaks ------------------------------------------------------------------------------------------


def assert_same(a, b):
    """Compare AnnData bit by bit."""
    assert a.obs_names.tolist() == b.obs_names.tolist()
    assert a.var_names.tolist() == b.var_names.tolist()
    np.testing.assert_array_equal(dense(a.X), dense(b.X))
    for layer in a.layers:
        np.testing.assert_array_equal(dense(a.layers[layer]), dense(b.layers[layer]))
    pd.testing.assert_frame_equal(a.obs, b.obs, check_exact=True)


def assert_same_task(a, b):
    """Compare all of a task that a method may see."""
    assert_same(a.train, b.train)
    assert_same(a.source, b.source)
    assert a.kappa == b.kappa
    assert a.keys == b.keys
    np.testing.assert_array_equal(dense(a.control), dense(b.control))
    np.testing.assert_array_equal(a.shift, b.shift)
    np.testing.assert_array_equal(a.pca.components_, b.pca.components_)
    np.testing.assert_array_equal(a.pca.mean_, b.pca.mean_)


LEAKS = {
    "sparse": {},
    "dense": {"is_dense": True},
    "layer and totals": {"keys": {"layer": "raw", "total_counts_key": "n_counts"}},
    "not counts": {"keys": {"is_count": False}},
    "donor": {"holdout": Holdout("b1", "stimulated", "control", key="batch")},
    "together": {
        "holdout": Holdout(
            "NK", "stimulated", "control", also=(Holdout("B", "stimulated", "control"),)
        )
    },
}


@pytest.mark.parametrize("case", LEAKS)
def test_nothing_of_the_hidden_cells_enters_task_or_prediction(case, make_adata):
    """Whatever is hidden (of counts other counts, else NaN): all else is the same bit by bit."""
    options = LEAKS[case]
    keys = COUNTS._replace(**options.get("keys", {}))
    holdout = options.get("holdout", NK)
    adata = make_adata(values="counts" if keys.is_count else "log")
    adata.layers["raw"] = adata.X.copy()
    hidden = holdout.hidden(adata, keys)
    for other in holdout.also:
        hidden = hidden | other.hidden(adata, keys)
    assert hidden.sum() >= 20
    if options.get("is_dense"):
        adata.X = dense(adata.X)
    blind = adata.copy()
    x = dense(adata.X).copy()
    other = np.random.default_rng(0).poisson(20.0, (hidden.sum(), adata.n_vars)) + 1.0
    x[hidden] = other if keys.is_count else np.nan
    blind.X = x if options.get("is_dense") else sparse.csr_matrix(x)
    blind.layers["raw"] = blind.X.copy()
    blind.obs.loc[hidden, ["n_counts", "age"]] = np.nan

    tasks = [prepare_task(a, holdout, keys=keys, n_top_genes=15) for a in (adata, blind)]
    reals = [dense(task.real) for task in tasks]
    assert np.isfinite(reals[0]).all()
    assert not np.isclose(*reals).any(axis=1).all()
    assert_same_task(*tasks)
    trvae = partial(
        METHODS["trvae"],
        train_kwargs={"max_epochs": 1, "accelerator": "cpu", "enable_model_summary": False},
        n_hidden=(8,),
        n_latent=2,
    )
    methods = {**{name: METHODS[name] for name in SIMPLE}, "trvae": trvae}
    for name, method in methods.items():
        found = [
            method(task.train.copy(), task.source.copy(), target="stimulated", keys=task.keys)
            for task in tasks
        ]
        pairs = zip(*(f.values() for f in found), strict=True) if name == "trvae" else [found]
        for a, b in pairs:
            assert np.isfinite(dense(a.X)).all()
            assert_same(a, b)


def test_methods_get_neither_the_truth_nor_a_way_to_it(make_adata):
    """What a method is handed has no hidden cell, and no value of one in any attribute."""
    adata = make_adata()
    adata.obsm["X_pca"] = np.arange(adata.n_obs * 2.0).reshape(-1, 2)
    seen = []

    def spy(train, source, *, target, keys):
        seen.append((train, source, target, keys))
        return METHODS["no_change"](train, source, target=target, keys=keys)

    benchmark(adata, {"spy": spy}, [NK], **QUIET)
    ((train, source, target, keys),) = seen
    hidden = set(adata.obs_names[is_in(adata, "NK", "stimulated")])
    assert not hidden & set(train.obs_names)
    assert source.obs_names.tolist() == adata.obs_names[is_in(adata, "NK", "control")].tolist()
    assert (target, keys) == ("stimulated", COUNTS._replace(total_counts_key=TOTAL_COLUMN))
    assert not train.is_view
    assert not source.is_view


def test_what_methods_do_to_their_cells_does_not_reach_other_methods(make_adata):
    adata = make_adata()
    before = adata.X.copy()

    def vandal(train, source, *, target, keys):
        found = METHODS["mean_shift"](train, source, target=target, keys=keys)
        train.X[:] = 0
        source.X[:] = 0
        train.obs["condition"] = "stimulated"
        return found

    dense_adata = AnnData(dense(adata.X), obs=adata.obs, var=adata.var)
    methods = {"vandal": vandal, "mean_shift": METHODS["mean_shift"]}
    table = benchmark(dense_adata, methods, [NK], **QUIET).table
    wide = table.pivot_table(index=["metric", "genes"], columns="method", values="value")
    np.testing.assert_array_equal(wide["vandal"], wide["mean_shift"])
    np.testing.assert_array_equal(dense_adata.X, dense(before))


def test_check_leaks_refuses_chosen_genes(make_adata):
    adata = make_adata()
    adata.var["highly_variable"] = True
    with pytest.raises(InputError, match=r"Every gene is in adata\.var\['highly_variable'\]"):
        check_leaks(adata, COUNTS)
    with pytest.raises(InputError, match="highly_variable"):
        benchmark(adata, ["no_change"], [NK], **QUIET)
    adata.var["highly_variable"] = np.arange(adata.n_vars) < 29
    check_leaks(adata, COUNTS)


@pytest.mark.parametrize("is_sparse", [False, True])
def test_check_leaks_refuses_scaled_values(is_sparse, make_adata):
    adata = make_adata(values="log")
    x = dense(adata.X).astype(np.float64)
    check_leaks(AnnData(x, obs=adata.obs), VALUES)
    check_leaks(AnnData(x - x.mean(0), obs=adata.obs), VALUES)
    scaled = (x - x.mean(0)) / x.std(0)
    assert (np.abs(scaled) <= 10).all()
    given = AnnData(sparse.csr_matrix(scaled) if is_sparse else scaled, obs=adata.obs)
    with pytest.raises(InputError, match="30 of 30 features have mean 0 and deviation 1"):
        check_leaks(given, VALUES)
    scaled[:, :4] = x[:, :4]  # 26 of 30: not scaled as a whole
    check_leaks(AnnData(scaled, obs=adata.obs), VALUES)


def test_looks_like_counts(make_adata):
    counts = make_adata()
    assert looks_like_counts(counts.X)
    assert not looks_like_counts(make_adata(values="log").X)
    assert not looks_like_counts(counts.X - 5 * sparse.eye_array(*counts.shape, format="csr"))
    x = dense(counts.X).copy()
    assert looks_like_counts(x)
    x[3, 2] = np.nan
    assert not looks_like_counts(x)


# -- scores -----------------------------------------------------------------------------------------


def predict(task, x):
    """Return a prediction with given log values."""
    return as_prediction(dense(x), task.source, task.holdout.target, task.keys, task.kappa, "given")


@pytest.fixture(scope="module")
def task():
    """Return a task of enough cells that the ceiling is near 1; tests must not change it."""
    adata = datasets.simulate(1600, 130, n_labels=3, seed=1, depth=6000.0)
    keys = Keys("condition", "cell_type", total_counts_key="total_counts")
    return prepare_task(adata, Holdout("type_0", "stimulated", "control"), keys=keys)


def test_real_cells_are_perfect_and_source_cells_no_change(task):
    exact = AnnData(
        dense(task.real), var=task.train.var[[]], uns={"trvae_sc": {"scale": "log(1 + share)"}}
    )
    found = scores(score(task, exact))
    for genes in ("top100", "all"):
        for name in ("effect_r2", "effect_pearson", "specific_pearson", "r2_mean", "r2_var"):
            assert found[name, genes] == pytest.approx(1.0, abs=1e-6)
        assert found["variance_ratio", genes] == pytest.approx(1.0, abs=1e-5)
    assert found["de_overlap", "top100"] == pytest.approx(1.0, abs=0.02)
    assert found["direction_accuracy", "top100"] == 1.0
    assert found["energy_distance", "pcs"] <= 1e-6
    assert found["mmd", "pcs"] <= 1e-6
    assert "target_rank" not in found.index.get_level_values("metric")

    found = scores(score(task, predict(task, task.control)))
    for genes in ("top100", "all"):
        assert found["effect_r2", genes] == pytest.approx(0.0, abs=1e-6)
        assert found["effect_pearson", genes] == pytest.approx(0.0, abs=1e-6)
    assert found["direction_accuracy", "top100"] == 0.0
    assert found["de_overlap", "top100"] == 0.0


def test_scores_are_the_metrics_on_the_genes_they_name(task):
    rng = np.random.default_rng(0)
    x = dense(task.control) + 0.6 * task.shift + rng.normal(0.0, 0.1, task.control.shape)
    predicted = predict(task, x)
    found = scores(score(task, predicted))
    real, control, x = dense(task.real), dense(task.control), predicted.X.astype(float)
    t = stats.ttest_ind(real, control, equal_var=False).statistic
    top = np.argsort(-np.abs(t))[:100]
    for genes, index in (("top100", top), ("all", np.arange(real.shape[1]))):
        m_r, m_p, m_c = (a[:, index].mean(0) for a in (real, x, control))
        r2 = 1 - np.square(m_p - m_r).sum() / np.square(m_c - m_r).sum()
        assert found["effect_r2", genes] == pytest.approx(r2, rel=1e-5)
        shift = task.shift[index]
        specific = stats.pearsonr(m_p - m_c - shift, m_r - m_c - shift).statistic
        assert found["specific_pearson", genes] == pytest.approx(specific, rel=1e-4)
        plain = stats.pearsonr(m_p - m_c, m_r - m_c).statistic
        assert found["effect_pearson", genes] == pytest.approx(plain, rel=1e-5)
        ratio = np.median(x[:, index].var(0, ddof=1) / real[:, index].var(0, ddof=1))
        assert found["variance_ratio", genes] == pytest.approx(ratio, rel=1e-4)
        r2_mean = stats.pearsonr(m_p, m_r).statistic ** 2
        assert found["r2_mean", genes] == pytest.approx(r2_mean, rel=1e-5)
    assert found["energy_distance", "pcs"] == pytest.approx(
        metrics.energy_distance(task.pca.transform(x), task.pca.transform(real)), rel=1e-4
    )
    signs = np.sign(x.mean(0) - control.mean(0)) == np.sign(real.mean(0) - control.mean(0))
    assert found["direction_accuracy", "top100"] == pytest.approx(signs[top].mean())
    assert len(found) == 2 * 6 + 2 + 2


def test_distances_are_in_the_exact_principal_components(task):
    """Whatever the order of genes and cells; of an approximation distances were up to 0.02 off."""
    totals = task.train.obs["total_counts"].to_numpy()[:, None]
    x = np.log1p(task.kappa * task.train.X.toarray() / totals)
    axes = np.linalg.svd(x - x.mean(0), full_matrices=False)[2][:50]
    exact, found = (dense(task.real) - x.mean(0)) @ axes.T, task.project(task.real)
    np.testing.assert_allclose(found @ found.T, exact @ exact.T, rtol=0, atol=1e-3)
    with np.errstate(invalid="ignore"):  # shares of no variance
        assert not components(np.ones((60, 70), np.float32)).explained_variance_.any()


def test_mean_shift_has_no_specific_part(task):
    predicted = METHODS["mean_shift"](task.train, task.source, target="stimulated", keys=task.keys)
    found = scores(score(task, predicted))
    for genes in ("top100", "all"):
        assert found["specific_pearson", genes] == 0.0
    assert found["effect_pearson", "top100"] > 0.5


def test_ceiling_compares_halves_and_distances_of_halves_are_zero(task):
    tables = ceiling(task, seed=4)
    assert set(tables) == {"ceiling", "replicate half"}
    assert set(tables["replicate half"]["metric"]) == {
        *("de_overlap", "direction_accuracy", "specific_pearson")
    }
    assert set(tables["ceiling"]["metric"]) == {
        *("effect_r2", "effect_pearson", "r2_mean", "r2_var"),
        *("variance_ratio", "energy_distance", "mmd"),
    }
    order = ["metric", "genes"]
    both = pd.concat(tables.values()).set_index(order).index
    assert sorted(both) == sorted(score(task, predict(task, task.control)).set_index(order).index)

    real, rng = dense(task.real), np.random.default_rng(4)
    overlap, variances = [], []
    for _ in range(10):
        order = rng.permutation(len(real))
        a, b = real[order[: len(real) // 2]], real[order[len(real) // 2 :]]
        overlap.append(metrics.de_overlap(a, b, dense(task.control), n=100))
        variances.append(stats.pearsonr(a.var(0), b.var(0)).statistic ** 2)
    found, left = (scores(tables[name]) for name in ("ceiling", "replicate half"))
    assert found["energy_distance", "pcs"] == found["mmd", "pcs"] == 0.0
    six = task.pca.transform(real[:6])
    halves = [list(half) for half in itertools.combinations(range(6), 3)]
    splits = [(six[half], np.delete(six, half, 0)) for half in halves]
    for distance in (metrics.energy_distance, metrics.mmd):  # of all halves: 0 in the mean
        assert np.mean([distance(*split) for split in splits]) == pytest.approx(0.0, abs=1e-6)
    assert left["de_overlap", "top100"] == pytest.approx(np.mean(overlap), abs=0.002)
    r = np.sqrt(np.mean(variances))
    assert found["r2_var", "all"] == pytest.approx(2 * r / (1 + r), rel=1e-5)


def test_ceiling_rises_with_the_number_of_cells_and_is_the_same_by_seed(task):
    found = scores(ceiling(task)["ceiling"])
    assert found["effect_r2", "top100"] > 0.95
    assert found["effect_pearson", "all"] > 0.95
    assert abs(found["energy_distance", "pcs"]) < 0.05
    assert found["variance_ratio", "all"] == pytest.approx(1.0, abs=0.05)
    few = dataclasses.replace(task, real=task.real[:10])
    assert scores(ceiling(few)["ceiling"])["effect_r2", "top100"] < found["effect_r2", "top100"]
    pd.testing.assert_frame_equal(ceiling(few, seed=1)["ceiling"], ceiling(few, seed=1)["ceiling"])
    assert not ceiling(few)["ceiling"].equals(ceiling(few, seed=1)["ceiling"])
    as_array = dataclasses.replace(few, real=dense(few.real), control=dense(few.control))
    for a, b in zip(ceiling(few).values(), ceiling(as_array).values(), strict=True):
        pd.testing.assert_frame_equal(a, b, rtol=1e-5)


@pytest.fixture(scope="module")
def known_truth():
    """Return a task of 8000 hidden cells where 40 of 400 genes change by a factor of 2 to 4."""
    rng = np.random.default_rng(0)
    base, changed = rng.lognormal(0.0, 1.0, 400), rng.permutation(400)[:40]
    factor = np.exp(rng.choice([-1, 1], 40) * rng.uniform(np.log(2), np.log(4), 40))
    own, usual = base.copy(), base.copy()
    own[changed] *= factor
    usual[changed] *= factor * np.exp(rng.normal(0.0, 0.3, 40))
    parts = [
        ("T", "a", 300, base),
        ("T", "b", 8000, own),
        ("B", "a", 99, base),
        ("B", "b", 99, usual),
    ]
    x = []
    for *_, n, rate in parts:
        size = rng.lognormal(0.0, 0.3, (n, 1))
        x.append(rng.poisson(rate * size * rng.gamma(2.0, 0.5, (n, 400))).astype(np.float32))
    obs = pd.DataFrame(
        [part[:2] for part in parts for _ in range(part[2])], columns=["cell_type", "condition"]
    )
    adata = AnnData(np.concatenate(x), obs=obs.set_index(obs.index.astype(str)))
    return prepare_task(adata, Holdout("T", "b", "a"), keys=COUNTS, n_top_genes=None)


@pytest.mark.parametrize("n", [10, 20, 40, 100, 400])
def test_ceiling_is_what_the_truth_scores(n, known_truth):
    task, rng = known_truth, np.random.default_rng(n)
    real, control = dense(task.real), dense(task.control).mean(0)
    truth = real.mean(0)
    expected, found = [], []
    for _ in range(60):
        cells = real[rng.choice(len(real), n, replace=False)]
        mean = cells.mean(0)
        t = stats.ttest_ind(cells, dense(task.control), equal_var=False).statistic
        for genes, at in (("top100", np.argsort(-np.abs(t))[:100]), ("all", np.arange(400))):
            m_r, m_t, m_c = (v[at] for v in (mean, truth, control))
            values = {
                "effect_r2": 1 - np.square(m_t - m_r).sum() / np.square(m_c - m_r).sum(),
                "effect_pearson": np.corrcoef(m_t - m_c, m_r - m_c)[0, 1],
                "r2_mean": np.corrcoef(m_t, m_r)[0, 1] ** 2,
            }
            expected += [(metric, genes, value) for metric, value in values.items()]
    for seed in range(24 if n < 100 else 8):
        cells = real[rng.choice(len(real), n, replace=False)]
        found.append(scores(ceiling(dataclasses.replace(task, real=cells), seed=seed)["ceiling"]))
    expected = pd.DataFrame(expected).groupby([0, 1])[2].mean()
    found = pd.concat(found, axis=1).mean(axis=1)
    for at, value in expected.items():
        assert found[at] == pytest.approx(value, abs=0.03), at
    assert found["variance_ratio", "all"] == pytest.approx(1.0, abs=0.1)


def test_target_rank_is_there_with_three_targets_to_rank(make_adata):
    adata = make_adata(n_cells=240)
    for names, is_there in ((["a", "b", "c"], False), (["a", "b", "c", "d"], True)):
        cells = several(adata, names)
        task = prepare_task(cells, Holdout("NK", "c", "a"), keys=COUNTS, n_top_genes=None)
        assert set(task.by_target) == set(names) - {"a"}
        exact = AnnData(dense(task.real), var=task.train.var, uns={"trvae_sc": {"scale": ""}})
        found = scores(score(task, exact))
        assert (("target_rank", "all") in found) == is_there
        if is_there:
            assert found["target_rank", "all"] == 1.0
            # a half would be ranked by the whole that it is in
            assert "target_rank" not in set(pd.concat(ceiling(task))["metric"])
            ranked = sorted(
                task.by_target,
                key=lambda c: np.square(task.by_target[c] - task.by_target["d"]).sum(),
            )
            other = AnnData(task.by_target["d"].repeat(5, 0), var=task.train.var, uns=exact.uns)
            other.X += np.random.default_rng(0).normal(0, 1e-4, other.shape)
            found = scores(score(task, other))["target_rank", "all"]
            assert found == 1 - ranked.index("c") / 2


def test_predicted_counts_are_put_on_the_scale_of_the_task(task):
    predicted = task.source.copy()
    predicted.uns["trvae_sc"] = {"scale": "counts"}
    np.testing.assert_allclose(
        dense(predicted_log_values(task, predicted)), dense(task.control), rtol=1e-6
    )
    predicted.uns["trvae_sc"] = {"scale": "values"}
    assert predicted_log_values(task, predicted) is predicted.X


def test_predictions_of_other_genes_or_unknown_scale_are_refused(task):
    """Genes in another order would be scored, silently, as if they were in order."""
    good = predict(task, task.control)
    with pytest.raises(InputError, match="do not have the genes of the training cells in order"):
        score(task, good[:, ::-1].copy())
    del good.uns["trvae_sc"]
    with pytest.raises(InputError, match=r"uns\['trvae_sc'\]\['scale'\] is missing"):
        score(task, good)


def test_intervals_are_scored_by_the_genes_they_cover(task):
    """The change is that of log(1 + kappa mean share), as the model predicts it."""
    share = [np.expm1(dense(x)).mean(0) for x in (task.real, task.control)]  # kappa times share
    change = np.log1p(share[0]) - np.log1p(share[1])
    covered = np.arange(task.train.n_vars) % 5 != 0
    predicted = predict(task, task.control)
    predicted.var["change_lower"] = np.where(covered, change - 1e-3, change + 1e-3)
    predicted.var["change_upper"] = change + 2e-3
    assert scores(score(task, predicted))["interval_coverage", "all"] == covered.mean()
    table = interval_table(task, predicted)
    np.testing.assert_allclose(table["real_change"], change, atol=1e-6)
    bounds = ["change_lower", "change_upper"]
    pd.testing.assert_frame_equal(table[bounds], predicted.var[bounds])
    predicted.uns["trvae_sc"]["scale"] = "values"  # as of presets that are given log values
    change = dense(task.real).mean(0) - dense(task.control).mean(0)
    predicted.var["change_lower"] = np.where(covered, change - 1e-3, change + 1e-3)
    predicted.var["change_upper"] = change + 2e-3
    assert scores(score(task, predicted))["interval_coverage", "all"] == covered.mean()
    predicted.var["predicted_change"] = change
    kept = changes(task, {"delta": predicted})
    assert set(kept) == {"gene", "real_change", "predicted_change"}  # those of mean shares
    np.testing.assert_allclose(kept["real_change"], np.subtract(*map(np.log1p, share)), rtol=1e-4)
    np.testing.assert_allclose(kept["predicted_change"], 0.0, atol=1e-6)  # of the controls
    predicted.var["change_lower"] = np.nan
    assert "interval_coverage" not in score(task, predicted)["metric"].to_list()
    with pytest.raises(InputError, match=r"no intervals \['change_lower', 'change_upper'\]"):
        interval_table(task, predict(task, task.control))


def test_exported_cells_are_those_that_are_scored(task, tmp_path):
    """Controls are the same real cells in both files, as cell-eval asks."""
    predicted = task.source[:9].copy()
    predicted.uns["trvae_sc"] = {"scale": "counts"}
    export_cells(task, predicted, tmp_path / "new" / "folder")
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == [
        "predicted.h5ad",
        "real.h5ad",
    ]
    expected = {"real": dense(task.real), "predicted": dense(task.control)[:9]}
    for name, x in expected.items():
        cells = anndata.read_h5ad(tmp_path / "new" / "folder" / f"{name}.h5ad")
        start = (cells.obs["condition"] == "control").to_numpy()
        np.testing.assert_allclose(dense(cells.X)[start], dense(task.control), rtol=1e-6)
        np.testing.assert_allclose(dense(cells.X)[~start], x, rtol=1e-6)
        assert set(cells.obs.loc[~start, "condition"]) == {"stimulated"}
        assert set(cells.obs["cell_type"]) == {"type_0"}
        assert cells.var_names.tolist() == task.train.var_names.tolist()


def test_benchmark_exports_every_prediction(make_adata, tmp_path):
    run = partial(benchmark, make_adata(), ["no_change", "mean_shift"], HOLDOUTS[:2], **QUIET)
    with pytest.raises(InputError, match="export=True needs a folder"):
        run(export=True)
    run(export=True, folder=tmp_path)
    files = sorted(tmp_path.rglob("*.h5ad"))
    assert len(files) == 2 * 2 * 2
    assert {file.parents[1] for file in files} == {tmp_path / "predictions"}
    found = {}
    for file in files:
        cells = anndata.read_h5ad(file)
        label = cells.obs["cell_type"].iloc[0]
        x = dense(cells.X)[(cells.obs["condition"] == "stimulated").to_numpy()]
        found.setdefault((label, file.stem), []).append(x)
    assert {k: len(v) for k, v in found.items()} == {
        (label, name): 2 for label in ("B", "NK") for name in ("real", "predicted")
    }
    for label in ("B", "NK"):
        np.testing.assert_array_equal(*found[label, "real"])
        assert np.abs(np.subtract(*found[label, "predicted"])).max() > 0.1
    assert len(Results.load(tmp_path).records) == 2 * 3


def test_gene_table_is_in_the_order_of_the_evidence(task):
    table = gene_table(task, predict(task, dense(task.control) + 0.25))
    real, control = dense(task.real), dense(task.control)
    t = pd.Series(
        stats.ttest_ind(real, control, equal_var=False).statistic, index=task.train.var_names
    )
    np.testing.assert_allclose(table["welch_t"], t.loc[table.index], rtol=1e-6)
    assert (table["welch_t"].abs().diff().iloc[1:] <= 0).all()
    np.testing.assert_allclose(table["predicted_change"], 0.25, rtol=1e-4)
    change = pd.Series(real.mean(0) - control.mean(0), index=task.train.var_names)
    np.testing.assert_allclose(table["real_change"], change.loc[table.index], atol=1e-9)
    np.testing.assert_allclose(
        table["predicted_mean"] - table["control_mean"], table["predicted_change"]
    )
    np.testing.assert_allclose(table["real_mean"] - table["control_mean"], table["real_change"])
    assert set(table.index) == set(task.train.var_names)


# -- benchmark --------------------------------------------------------------------------------------

COLUMNS = ["method", "label", "source", "target", "seed", "output", "metric", "genes", "value"]
HOLDOUTS = [Holdout(label, "stimulated", "control") for label in ("B", "NK", "T")]


class Counted:
    """A method that notes its calls, and raises at one of them.

    The newest object's notes are kept by the class: what an object holds tells methods apart.
    """

    def __init__(self, fail_at=None):
        type(self).calls, type(self).fail_at = [], fail_at

    def __call__(self, train, source, *, target, keys, seed=0):
        self.calls.append((source.obs["cell_type"].iloc[0], seed))
        if len(self.calls) == self.fail_at:
            raise KeyboardInterrupt
        found = METHODS["mean_shift"](train, source, target=target, keys=keys)
        found.X += np.float32(0.01 * seed)
        return found


def as_rows(results):
    return results.table.sort_values(COLUMNS[:-1]).reset_index(drop=True)


def test_benchmark_gives_one_row_per_score(make_adata):
    adata = make_adata()
    results = benchmark(adata, SIMPLE, HOLDOUTS, **QUIET)
    assert results.table.columns.tolist() == COLUMNS
    assert set(results.methods) == {*SIMPLE, "ceiling"}
    assert not results.table.duplicated(COLUMNS[:-1]).any()
    assert set(results.table["seed"]) == {0}  # none takes a seed
    assert len(results.records) == 3 * 5
    assert len(results.table) == 3 * 5 * 16
    one = results.table.query("label == 'NK' and method == 'context_shift'")
    task = prepare_task(adata, NK, keys=COUNTS, n_top_genes=20)
    predicted = METHODS["context_shift"](
        task.train, task.source, target="stimulated", keys=task.keys
    )
    expected = score(task, predicted)
    np.testing.assert_array_equal(one["value"], expected["value"])
    assert one["metric"].tolist() == expected["metric"].tolist()
    record = next(r for r in results.records if r["method"] == "context_shift")
    assert record["holdout"] == {
        "label": "B",
        "source": "control",
        "target": "stimulated",
        "key": None,
        "also": [],
    }
    assert (record["n_training_cells"], record["n_genes"]) == (100, 20)
    assert (record["n_source_cells"], record["n_hidden_cells"]) == (20, 20)
    genes = results.records[-1]["genes"]["delta"]
    assert len(genes["gene"]) == len(genes["real_change"]) == 20
    pd.testing.assert_frame_equal(
        results.design,
        pd.DataFrame(20, index=["B", "NK", "T"], columns=["control", "stimulated"]),
        check_names=False,
    )


def test_methods_with_a_seed_run_once_per_seed(make_adata):
    seeded, plain = Counted(), type("Plain", (Counted,), {})()
    methods = {
        "seeded": seeded,
        "plain": lambda train, source, *, target, keys: plain(
            train, source, target=target, keys=keys
        ),
    }
    results = benchmark(make_adata(), methods, HOLDOUTS[:2], seeds=np.array([3, 5]), **QUIET)
    assert sorted(seeded.calls) == [("B", 3), ("B", 5), ("NK", 3), ("NK", 5)]
    assert plain.calls == [("B", 0), ("NK", 0)]
    found = results.table.groupby("method")["seed"].unique().map(sorted).to_dict()
    assert found == {"ceiling": [0], "plain": [0], "seeded": [3, 5]}
    again = Counted()
    benchmark(make_adata(), {"seeded": again}, [NK], seeds=2, **QUIET)
    assert again.calls == [("NK", 0), ("NK", 1)]


def test_a_benchmark_that_was_stopped_goes_on(make_adata, tmp_path):
    adata = make_adata()
    fresh = benchmark(adata, {"m": Counted()}, HOLDOUTS, seeds=2, **QUIET)
    method = Counted(fail_at=4)
    with pytest.raises(KeyboardInterrupt, match=r"after 5 of 9 fits; they are kept in .*/r\. Run"):
        benchmark(adata, {"m": method}, HOLDOUTS, seeds=2, folder=tmp_path / "r", **QUIET)
    assert method.calls == [("B", 0), ("B", 1), ("NK", 0), ("NK", 1)]
    part = Results.load(tmp_path / "r")
    done = {(r["method"], r["holdout"]["label"], r["seed"]) for r in part.records}
    assert done == {
        ("ceiling", "B", 0),
        ("m", "B", 0),
        ("m", "B", 1),
        ("ceiling", "NK", 0),
        ("m", "NK", 0),
    }
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "r" / "fits").iterdir()}
    with pytest.raises(KeyboardInterrupt, match="after 1 of 9 fits; nothing was kept"):
        benchmark(adata, {"m": Counted(fail_at=1)}, HOLDOUTS, seeds=2, **QUIET)

    method = Counted()
    results = benchmark(adata, {"m": method}, HOLDOUTS, seeds=2, folder=tmp_path / "r", **QUIET)
    assert method.calls == [("NK", 1), ("T", 0), ("T", 1)]
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    pd.testing.assert_frame_equal(as_rows(results), as_rows(fresh))
    method = Counted(fail_at=1)
    same = benchmark(adata, {"m": method}, HOLDOUTS, seeds=2, folder=tmp_path / "r", **QUIET)
    assert method.calls == []
    pd.testing.assert_frame_equal(same.table, results.table)
    wider = {"m": Counted(), "other": METHODS["no_change"]}
    more = benchmark(adata, wider, HOLDOUTS, seeds=3, folder=tmp_path / "r", **QUIET)
    assert wider["m"].calls == [("B", 2), ("NK", 2), ("T", 2)]
    assert set(more.methods) == {"ceiling", "m", "other"}
    assert not list((tmp_path / "r").rglob("*.tmp"))


LIGHT = """
import numpy as np
from anndata import AnnData
from scipy import sparse
from trvae_sc.evaluation import Holdout, Keys
from trvae_sc.expression import log_values, median_total

HOLDOUTS = [Holdout(label, "stimulated", "control") for label in ("B", "NK", "T")]


def noisy(train, source, *, target, keys, seed):
    x = log_values(source, keys, median_total(train, keys)).toarray()
    x += np.random.default_rng(seed).normal(0, 0.1, x.shape)
    uns = {"trvae_sc": {"scale": "log(1 + kappa * share)"}}
    return AnnData(x.astype(np.float32), obs=source.obs, var=source.var, uns=uns)


def plain(train, source, *, target, keys):
    return noisy(train, source, target=target, keys=keys, seed=0)


def once(train, source, *, target, keys, seed):
    raise AssertionError


def fit_once(train, *, keys, seed):
    moved = np.random.default_rng(seed).normal(len(train), 1.0, train.n_vars)

    def predict(source, target):
        found = plain(train, source, target=target, keys=keys)
        found.X = found.X + moved.astype(np.float32)
        return {"delta": found}

    return predict


once.fit_once = fit_once
METHODS = {"noisy": noisy, "plain": plain}
"""

OTHER_PROCESS = """
import sys, time
from pathlib import Path
import anndata
import light
from trvae_sc.evaluation import Keys, benchmark

adata = anndata.read_h5ad("cells.h5ad")
Path("ready").touch()
while not Path("go").exists():
    time.sleep(0.001)
benchmark(
    adata, light.METHODS, light.HOLDOUTS[::-1], folder="shared", seeds=3,
    keys=Keys("condition", "cell_type"), n_top_genes=20, progress=False,
)
"""


@pytest.fixture
def light(tmp_path, monkeypatch):
    """Return a module of methods that other processes can import, without torch."""
    (tmp_path / "light.py").write_text(LIGHT)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("light")
    del sys.modules["light"]


def test_two_at_once_on_one_folder(make_adata, light, python):
    """Every row is there once, and no file is cut, however the two get in each other's way."""
    adata = make_adata(n_cells=60)
    adata.write_h5ad("cells.h5ad")
    run = partial(benchmark, adata, light.METHODS, HOLDOUTS, seeds=3, **QUIET)
    alone = run()
    with subprocess.Popen([python, "-c", OTHER_PROCESS]) as other:
        while not Path("ready").exists():
            assert other.poll() is None
            time.sleep(0.01)
        Path("go").touch()
        run(folder="shared")
        assert other.wait() == 0
    results = Results.load("shared")
    assert len(results.records) == 3 * 5
    assert not results.table.duplicated(COLUMNS[:-1]).any()
    pd.testing.assert_frame_equal(as_rows(results), as_rows(alone))
    assert sorted(p.name for p in Path("shared").iterdir()) == ["fits", "run.json"]
    assert {p.suffix for p in Path("shared/fits").iterdir()} == {".json"}


def test_readers_never_see_half_a_file(tmp_path):
    path, stop = tmp_path / "record.json", threading.Event()
    texts = [json.dumps([c] * 20_000) for c in "ab"]
    write_text(path, texts[0])

    def write(text):
        while not stop.is_set():
            write_text(path, text)

    writers = [threading.Thread(target=write, args=(text,)) for text in texts]
    for writer in writers:
        writer.start()
    seen = {path.read_text() for _ in range(200)}
    stop.set()
    for writer in writers:
        writer.join()
    assert seen <= set(texts)
    assert os.listdir(tmp_path) == ["record.json"]  # noqa: PTH208


def test_processes_give_what_one_gives(make_adata, light):
    adata = make_adata(n_cells=60)
    found = holdouts(adata, keys=COUNTS, source="control", min_cells=5, together=2)
    methods = light.METHODS | {"once": light.once}  # the last is fitted once for two hold-outs
    run = partial(benchmark, adata, methods, found, **QUIET)
    one, two = run(), run(n_jobs=2, folder="two")
    # projections are in float32, whose sums depend on where an array starts in memory
    pd.testing.assert_frame_equal(as_rows(one), as_rows(two), rtol=1e-6)
    assert len(list(Path("two/fits").iterdir())) == 3 * 8
    again = run(n_jobs=2, folder="two")  # nothing is left to run, so no process is started
    pd.testing.assert_frame_equal(again.table, two.table, check_exact=True)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_ray_repeats_what_a_dying_worker_lost(make_adata, python, tmp_path):
    """The worker of one fit dies the first time; every row still arrives, once."""
    ray = pytest.importorskip("ray")
    cells = make_adata(n_cells=60)
    marker = tmp_path / "died"

    def fragile(train, source, *, target, keys, seed=0):
        from trvae_sc.expression import log_values, median_total

        if seed == 1 and not marker.exists():
            marker.touch()
            os._exit(1)
        x = log_values(source, keys, median_total(train, keys)).toarray() + 0.1 * seed
        uns = {"trvae_sc": {"scale": "log(1 + kappa * share)"}}
        return AnnData(x, obs=source.obs, var=source.var, uns=uns)

    def plain(train, source, *, target, keys):
        return fragile(train, source, target=target, keys=keys)

    run = partial(benchmark, cells, {"fragile": fragile, "plain": plain}, [NK], seeds=2, **QUIET)
    ray.shutdown()  # scvi-tools' autotune leaves one
    options = {"include_dashboard": False, "log_to_driver": False, "configure_logging": False}
    ray.init(num_cpus=2, runtime_env={"py_executable": python}, **options)  # has all imported
    try:
        found = run(backend="ray", folder=tmp_path / "r")
    finally:
        ray.shutdown()
    assert marker.exists()
    assert len(found.records) == 4
    assert not found.table.duplicated(COLUMNS[:-1]).any()
    pd.testing.assert_frame_equal(as_rows(found), as_rows(run()))


def test_ray_is_asked_for_by_name(make_adata, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'trvae_sc\[distributed\]'"):
        benchmark(make_adata(), ["no_change"], [NK], backend="ray", **QUIET)


def test_a_folder_holds_one_run(make_adata, tmp_path):
    adata = make_adata()
    run = partial(benchmark, methods=["no_change"], holdouts=[NK], folder=tmp_path, progress=False)
    run(adata, keys=COUNTS, n_top_genes=20)
    run(adata, keys=COUNTS, n_top_genes=20)
    with pytest.raises(InputError, match=r"differs in \['n_top_genes'\]. Choose another folder"):
        run(adata, keys=COUNTS, n_top_genes=10)
    with pytest.raises(InputError, match=r"differs in \['keys'\]"):
        run(adata, keys=COUNTS._replace(total_counts_key="n_counts"), n_top_genes=20)
    renamed = adata.copy()
    renamed.obs_names = [f"other_{name}" for name in adata.obs_names]
    with pytest.raises(InputError, match=r"differs in \['names'\]"):
        run(renamed, keys=COUNTS, n_top_genes=20)
    with pytest.raises(InputError, match=r"differs in \['data'\]"):
        run(make_adata(seed=1), keys=COUNTS, n_top_genes=20)
    with pytest.raises(InputError, match=r"differs in \['data', 'names', 'n_obs', 'design'\]"):
        run(adata[:-1].copy(), keys=COUNTS, n_top_genes=20)
    assert len(Results.load(tmp_path).records) == 2


def test_a_folder_holds_results_of_the_same_columns(make_adata, tmp_path):
    keys = COUNTS._replace(total_counts_key="n_counts", batch_key="batch")

    def run(adata, by=None):
        hidden = holdouts(adata, keys=keys, by=by, min_cells=4)[:1]
        benchmark(adata, ["no_change"], hidden, **QUIET | {"keys": keys}, folder=tmp_path)

    adata, by_site = make_adata(), ["site", "cell_type"]
    for by in (None, by_site, None):  # of which only one depends on the sites
        run(adata, by)
    for column, by in (("n_counts", None), ("batch", None), ("site", by_site)):
        changed = adata.copy()
        odd = changed.obs[column].to_numpy()
        changed.obs[column] = odd + 1 if column == "n_counts" else odd[::-1]
        with pytest.raises(InputError, match=rf"differs in \[\"obs\['{column}'\]\"\]"):
            run(changed, by)
    run(changed)


def test_a_worker_ends_with_its_parent_where_that_keeps_its_number(monkeypatch):
    """On Windows workers of a benchmark that was killed went on."""
    parent, ended = subprocess.Popen([sys.executable, "-c", ""]), threading.Event()
    parent.wait()
    system = types.SimpleNamespace(getppid=lambda: parent.pid, _exit=lambda _: ended.set())
    monkeypatch.setattr("trvae_sc.evaluation._fit.os", system)
    _end_with(parent.pid)
    assert ended.wait(10)


def test_a_folder_holds_results_of_the_same_features(make_adata, tmp_path, monkeypatch):
    adata = make_adata()
    adata.uns["doses"] = pd.DataFrame({"dose": [0.0, 1.0]}, index=["control", "stimulated"])
    run = partial(
        benchmark, folder=tmp_path, **QUIET | {"keys": COUNTS._replace(condition_features="doses")}
    )
    expected = run(adata, ["no_change"], [NK]).table
    monkeypatch.setattr(os, "linesep", "\r\n")  # as where the run goes on on another system
    pd.testing.assert_frame_equal(run(adata, ["no_change"], [NK]).table, expected)
    adata.uns["doses"] *= 3.0
    with pytest.raises(InputError, match=r"differs in \[\"uns\['doses'\]\"\]"):
        run(adata, ["no_change"], [NK])


def test_a_run_goes_on_after_an_update(make_adata, tmp_path):
    benchmark(make_adata(), ["no_change"], [NK], folder=tmp_path, **QUIET)
    run = json.loads((tmp_path / "run.json").read_text())
    run["versions"]["torch"] = "0.1"
    (tmp_path / "run.json").write_text(json.dumps(run))
    results = benchmark(make_adata(), ["mean_shift"], [NK], folder=tmp_path, **QUIET)
    assert set(results.methods) == {"ceiling", "no_change", "mean_shift"}


def shifted(train, source, *, target, keys, by=0.0):
    found = METHODS["no_change"](train, source, target=target, keys=keys)
    found.X += np.float32(by)
    return found


def test_another_method_of_the_same_name_is_refused(make_adata, tmp_path):
    """Its scores were taken from those of the other one."""
    run = partial(benchmark, make_adata(), holdouts=[NK], folder=tmp_path, **QUIET)
    first = run({"m": partial(shifted, by=0.5)})
    again = run({"m": partial(shifted, by=0.5)})
    pd.testing.assert_frame_equal(again.table, first.table)
    for other in (
        partial(shifted, by=0.25),
        shifted,
        lambda train, source, *, target, keys: shifted(train, source, target=target, keys=keys),
        METHODS["no_change"],
        partial(METHODS["trvae"], n_latent=3),
    ):
        with pytest.raises(InputError, match="results of another 'm': its code, arguments or ver"):
            run({"m": other})
    assert run({"other": shifted}).methods == ["ceiling", "m", "other"]


@pytest.mark.parametrize(
    "body",
    [
        "return nearest_shift(train, source, target=target, keys=keys)",
        "return mean_shift(train, source, target=target, keys=keys, by=2)",
        "return mean_shift(train, source, target=target, keys=keys, by=(lambda x: x * 2)(1))",
    ],
)
def test_methods_typed_into_an_interpreter_are_told_apart(body):
    """By what they call and by their numbers: the scores of the first were taken for those of the second."""

    def typed(body):
        known = {"__name__": "__main__"}
        exec(f"def mine(train, source, *, target, keys):\n {body}", known)
        exec(f"class Mine:\n def __call__(self, train, source, *, target, keys):\n  {body}", known)
        return [Method("mine", method).identity for method in (known["mine"], known["Mine"]())]

    expected = typed("return mean_shift(train, source, target=target, keys=keys, by=1)")
    assert typed("return mean_shift(train, source, target=target, keys=keys, by=1)") == expected
    for found, other in zip(typed(body), expected, strict=True):
        assert found != other


@pytest.mark.parametrize("found", [None, np.zeros((20, 20)), {}, {"delta": 1}])
def test_what_a_method_returns_must_be_cells(found, make_adata):
    def method(train, source, *, target, keys):
        return found

    with pytest.raises(InputError, match=r"Method 'mine' returned .*; an AnnData"):
        benchmark(make_adata(), {"mine": method}, [NK], **QUIET)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("mean_shift", "not a callable"),
        (lambda train, source: source, "unexpected keyword argument 'target'"),
        (lambda train, source, *, target, keys, alpha: source, "'alpha'"),
    ],
)
def test_what_cannot_be_called_as_a_method_is_refused_before_any_work(method, message, make_adata):
    with pytest.raises(InputError, match=f"Method 'mine' cannot be called as .*{message}"):
        benchmark(make_adata(), {"mine": method}, [NK], **QUIET)


@pytest.mark.parametrize("text", ["", "[]", '{"method": "no_change"}', '{"method', "\xff\xfe"])
def test_damaged_records_are_set_aside_and_run_again(text, make_adata, tmp_path, caplog):
    run = partial(benchmark, make_adata(), ["no_change"], [NK], folder=tmp_path, **QUIET)
    results = run()
    (fit,) = (path for path in (tmp_path / "fits").iterdir() if "no_change" in path.name)
    fit.write_bytes(text.encode("latin-1"))
    assert len(Results.load(tmp_path).records) == 1
    assert f"{fit} is damaged. It was set aside as {fit.stem}.broken." in caplog.messages
    assert fit.with_suffix(".broken").read_bytes() == text.encode("latin-1")
    pd.testing.assert_frame_equal(run().table, results.table)
    assert fit.exists()
    (tmp_path / "run.json").write_bytes(text.encode("latin-1"))
    for use in (partial(Results.load, tmp_path), run):
        with pytest.raises(InputError, match=r"run\.json is damaged, so what the results in"):
            use()


def test_results_of_another_version_are_refused_and_left_as_they_are(make_adata, tmp_path):
    run = partial(benchmark, make_adata(), ["no_change"], [NK], folder=tmp_path, **QUIET)
    run()
    about = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(about | {"format": 1}))
    for fit in (tmp_path / "fits").iterdir():
        fit.write_text('{"method": "no_change"}')
    names = sorted(path.name for path in (tmp_path / "fits").iterdir())
    for use in (partial(Results.load, tmp_path), run):
        with pytest.raises(InputError, match="results in format 1, of another version"):
            use()
    assert sorted(path.name for path in (tmp_path / "fits").iterdir()) == names


def test_quick_looks_are_told():
    rows = [("net", "delta", "x", seed, "effect_r2", 0.5) for seed in (0, 1)]
    results = hand_made(rows)  # 20 of 30 genes
    assert results.quick_look == "quick look (20 of 30 genes)"
    for record in results.records:
        record["n_genes"] = 30
    assert results.quick_look == ""
    results.records[1]["epochs"] = [50, 300]
    assert results.quick_look == "quick look (50 epochs, fewer than by default)"
    results.records[1]["epochs"] = [300, 300]
    assert results.quick_look == ""
    results.run["n_vars"] = 20_000
    for n_genes, told in ((999, "quick look (999 of 20,000 genes)"), (1000, "")):
        for record in results.records:
            record["n_genes"] = n_genes
        assert results.quick_look == told


def test_holdouts_that_the_table_cannot_tell_apart_are_refused(make_adata, tmp_path):
    """The same combination hidden alone and with another one was averaged as if it were one task."""
    adata = make_adata()
    alone, together = (holdouts(adata, keys=COUNTS, min_cells=5, together=n) for n in (1, 2))
    with pytest.raises(InputError, match="B:stimulated is hidden in two ways"):
        benchmark(adata, ["no_change"], [alone[0], together[0]], **QUIET)
    benchmark(adata, ["no_change"], alone, folder=tmp_path, **QUIET)
    with pytest.raises(InputError, match="B:stimulated is hidden in two ways"):
        benchmark(adata, ["no_change"], together, folder=tmp_path, **QUIET)
    benchmark(adata, ["no_change"], alone[:1], folder=tmp_path, **QUIET)


def test_bad_arguments_are_refused_before_any_work(make_adata, tmp_path):
    adata, folder = make_adata(), tmp_path / "never"
    run = partial(benchmark, folder=folder, **QUIET)
    with pytest.raises(InputError, match=r"Unknown methods \['magic'\]; there are \['no_change'"):
        run(adata, ["no_change", "magic"], [NK])
    with pytest.raises(InputError, match="cannot be called 'ceiling'"):
        run(adata, {"ceiling": METHODS["no_change"]}, [NK])
    with pytest.raises(InputError, match=r"The values are not counts.*raw\.to_adata"):
        run(make_adata(values="log"), ["no_change"], [NK])
    with pytest.raises(InputError, match="Unknown backend 'slurm'"):
        run(adata, ["no_change"], [NK], backend="slurm")
    for options in ({"n_jobs": 0}, {"max_epochs": 0}, {"seeds": []}, {"seeds": 0}, {"seeds": "12"}):
        with pytest.raises(InputError, match=r"at least 1 is needed|[Ss]eeds"):
            run(adata, ["no_change"], [NK], **options)
    with pytest.raises(InputError, match="n_top_genes is 0; at least 2 is needed"):
        run(adata, ["no_change"], [NK], **{"n_top_genes": 0})
    with pytest.raises(InputError, match="No methods"):
        run(adata, [], [NK])
    needy = partial(METHODS["trvae"], setup_kwargs={"batch_key": "donor"})
    with pytest.raises(InputError, match="No column 'donor'"):
        run(adata, {"needy": needy}, [NK])
    adata.obs.loc["cell_5", "cell_type"] = np.nan
    with pytest.raises(InputError, match=r"obs\['cell_type'\] is missing \(NaN\) in 1 cells"):
        run(adata, ["no_change"], [NK])
    assert not folder.exists()


def test_a_single_method_may_be_named(make_adata):
    results = benchmark(make_adata(), "mean_shift", [NK], **QUIET)
    assert results.methods == ["ceiling", "mean_shift"]


def test_values_that_are_not_counts(make_adata):
    results = benchmark(
        make_adata(values="log"), SIMPLE, [NK], keys=VALUES, n_top_genes=None, progress=False
    )
    means = results.wide([("effect_r2", "top100")])["effect_r2", "top100"]
    assert means["no_change", "delta"] == pytest.approx(0.0, abs=1e-6)
    assert means["mean_shift", "delta"] > 0.5


def test_donors_without_labels(make_adata):
    """Without labels_key the design had no rows and the benchmark failed with KeyError None."""
    adata = make_adata(n_cells=240)
    keys = Keys("condition")
    found = holdouts(adata, keys=keys, by="batch")
    results = benchmark(adata, ["no_change", "mean_shift"], found, **{**QUIET, "keys": keys})
    assert results.design.to_numpy().tolist() == [[120, 120]]
    means = results.wide([("effect_r2", "all")])["effect_r2", "all"]
    assert means["mean_shift", "delta"] > 0.8


def test_a_trained_method_leaves_its_history_and_every_output(make_adata):
    quick = {"max_epochs": 2, "accelerator": "cpu", "enable_model_summary": False}
    trvae = partial(METHODS["trvae"], train_kwargs=quick, n_hidden=(8,), n_latent=2)
    results = benchmark(make_adata(), {"trvae": trvae}, [NK], seeds=1, **QUIET)
    record = next(r for r in results.records if r["method"] == "trvae")
    assert set(record["history"]) >= {"reconstruction_weighted_train", "kl_weighted_train"}
    assert len(record["history"]["kl_weighted_train"]) == 2
    assert set(record["genes"]) == {"counts", "delta"}
    assert not any("Training saw" in note for note in record["notes"])
    part = results.table.query("method == 'trvae'")
    assert part.groupby("output").size().to_dict() == {"counts": 16, "delta": 16}


def test_intervals_of_a_prediction_are_kept_if_all_genes_have_one(make_adata):
    """The change of no_change is 0; those of the first gene are without an end in the other method."""

    def ends(train, source, *, target, keys, known=True):
        found = METHODS["no_change"](train, source, target=target, keys=keys)
        found.var["change_lower"] = np.r_[
            -0.5 if known else np.nan, np.full(found.n_vars - 1, -0.25)
        ]
        found.var["change_upper"] = np.geomspace(1.23444e-7, 1234560.0, found.n_vars)
        return found

    methods = {
        "known": ends,
        "unknown": partial(ends, known=False),
        "no_change": METHODS["no_change"],
    }
    results = benchmark(make_adata(), methods, [NK], **QUIET)
    kept = {r["method"]: r["changes"] for r in results.records if r["method"] != "ceiling"}
    columns = ["gene", "real_change", "predicted_change"]
    assert [*kept["known"]] == [*columns, "change_lower", "change_upper"]
    assert [*kept["unknown"]] == [*kept["no_change"]] == columns
    n = len(kept["known"]["gene"])
    assert kept["known"]["change_lower"] == [-0.5] + [-0.25] * (n - 1)
    upper = kept["known"]["change_upper"][0], kept["known"]["change_upper"][-1]
    assert upper == (1.2344e-7, 1234600.0)  # five digits, whatever the unit of a gene


def test_when_a_run_started_is_kept_and_may_differ(make_adata, tmp_path):
    before = datetime.now(UTC).replace(microsecond=0)
    first = benchmark(make_adata(), ["no_change"], [NK], folder=tmp_path, **QUIET)
    assert before <= datetime.fromisoformat(first.run["started"]) <= datetime.now(UTC)
    store = Store(tmp_path)
    store.tell(command="first")
    store.tell(command="second", started="later")
    run = {**first.run, "started": "2020-01-01T00:00:00+00:00"}
    store.open(run)
    assert store.run() == {**first.run, "command": "first"}


def test_notes_of_a_prediction_are_kept(make_adata):
    def noted(train, source, *, target, keys):
        found = METHODS["no_change"](train, source, target=target, keys=keys)
        found.uns["trvae_sc"]["notes"] = np.array(["careful", "careful"], dtype=object)
        return {"delta": found, "mean": found}

    results = benchmark(make_adata(), {"noted": noted}, [NK], **QUIET)
    assert [r["notes"] for r in results.records] == [[], ["careful"]]


# -- results ----------------------------------------------------------------------------------------


def hand_made(rows, design=((20, 20), (20, 20))):
    """Return results of (method, output, label, seed, metric, value); genes follow the metric."""
    records = {}
    for method, output, label, seed, metric, value in rows:
        record = records.setdefault(
            (method, label, seed),
            {
                "method": method,
                "identity": method,
                "holdout": {
                    "label": label,
                    "source": "a",
                    "target": "b",
                    "key": None,
                    "also": [],
                },
                "seed": seed,
                "scores": [],
                "genes": {},
                "n_genes": 20,
                "notes": [],
                "history": None,
                "epochs": None,
                "seconds": 1.0,
            },
        )
        genes = "pcs" if metric == "energy_distance" else "top100"
        record["scores"].append([output, metric, genes, value])
    run = {
        "format": 4,
        "data": "0" * 64,
        "n_obs": 80,
        "n_vars": 30,
        "keys": COUNTS._asdict(),
        "n_top_genes": 20,
        "design": {
            "labels": ["x", "y"],
            "conditions": ["a", "b"],
            "cells": [list(r) for r in design],
        },
        "versions": {"trvae_sc": "1"},
    }
    return Results(run, list(records.values()))


def test_statistics_equal_a_hand_computation():
    rows = []
    for metric, sign in (("effect_r2", 1), ("energy_distance", -1)):
        rows += [
            ("net", "delta", "x", 0, metric, sign * 0.5),
            ("net", "delta", "x", 1, metric, sign * 0.7),  # mean 0.6, sd sqrt(0.02)
            ("net", "delta", "y", 0, metric, sign * 0.1),
            ("net", "delta", "y", 1, metric, sign * 0.3),  # mean 0.2, sd sqrt(0.02)
            ("net", "counts", "x", 0, metric, sign * 0.9),
            ("flat", "delta", "x", 0, metric, sign * 0.4),
            ("flat", "delta", "y", 0, metric, sign * 0.4),
            ("ceiling", "ceiling", "x", 0, metric, sign * 1.0),
        ]
    # the ratio that is wrong by the smaller factor is better: 0.5 and 1.9, not 0.1 against 0.9
    rows += [
        ("net", "delta", "x", 0, "variance_ratio", 0.5),
        ("flat", "delta", "x", 0, "variance_ratio", 1.9),
    ]
    found = hand_made(rows).statistics().set_index(["metric", "method", "output"])
    for metric, sign in (("effect_r2", 1), ("energy_distance", -1)):
        net = found.loc[metric, "net", "delta"]
        assert net["mean"] == pytest.approx(sign * 0.4)
        assert net["sd_tasks"] == pytest.approx(np.sqrt(0.08))
        assert net["sd_seeds"] == pytest.approx(np.sqrt(0.02))
        assert (net["n_tasks"], net["n_seeds"]) == (2, 2)
        flat = found.loc[metric, "flat", "delta"]
        assert (flat["n_tasks"], flat["n_seeds"]) == (2, 1)
        assert flat["sd_tasks"] == 0
        assert np.isnan(flat["sd_seeds"])
        ranks = found.loc[metric]["rank"]
        assert ranks["net", "counts"] == 1
        assert ranks["flat", "delta"] == 2 or ranks["net", "delta"] == 2
        assert np.isnan(ranks["ceiling", "ceiling"])
    assert found.loc["variance_ratio", "flat", "delta"]["rank"] == 1
    assert found.loc["variance_ratio", "net", "delta"]["rank"] == 2


def test_ranks_share_the_better_place():
    values = {"a": 0.5, "b": 0.5, "c": 0.9, "d": 0.1}
    for metric, expected in (
        ("interval_coverage", {"a": 2, "b": 2, "c": 1, "d": 4}),  # 0.9 is what they are to cover
        ("effect_r2", {"a": 2, "b": 2, "c": 1, "d": 4}),
        ("energy_distance", {"a": 2, "b": 2, "c": 4, "d": 1}),
        ("variance_ratio", {"a": 2, "b": 2, "c": 1, "d": 4}),
    ):
        rows = [(m, "delta", "x", 0, metric, v) for m, v in values.items()]
        assert hand_made(rows).statistics().set_index("method")["rank"].to_dict() == expected


def test_scores_that_are_missing_do_not_count():
    rows = [("net", "delta", "x", s, "effect_r2", v) for s, v in enumerate((0.2, None, 0.4))]
    row = hand_made(rows).statistics().iloc[0]
    assert (row["mean"], row["n_seeds"]) == (pytest.approx(0.3), 2)


def paired_rows(metric, seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for k in range(7):
        for method, level in (("net", 0.6), ("mean_shift", 0.5)):
            rows += [
                (method, "delta", f"t{k}", s, metric, level + v)
                for s, v in enumerate(rng.normal(0, 0.1, 2))
            ]
    return rows


@pytest.mark.parametrize("metric", ["effect_r2", "energy_distance", "variance_ratio"])
def test_paired_comparison_is_wilcoxons_over_tasks(metric):
    results = hand_made(paired_rows(metric))
    means = results.table.groupby(["method", "label"])["value"].mean().unstack("method")
    ours, theirs = means["net"], means["mean_shift"]
    found = results.paired().iloc[0]
    assert found["difference"] == pytest.approx((ours - theirs).mean())
    assert found["n_tasks"] == 7
    if metric == "variance_ratio":
        ours, theirs = np.abs(np.log(ours)), np.abs(np.log(theirs))
    wins = (ours > theirs) if metric == "effect_r2" else (ours < theirs)
    assert found["wins"] == wins.sum()
    assert wins.sum() > 0
    assert found["p"] == pytest.approx(stats.wilcoxon(ours, theirs).pvalue)
    assert (found["method"], found["output"]) == ("net", "delta")


def test_tasks_that_a_score_is_not_defined_for_are_not_compared():
    rows = paired_rows("effect_r2")
    undefined = [
        (m, "delta", "t7", 0, "effect_r2", v) for m, v in (("net", None), ("mean_shift", 1.0))
    ]
    expected = hand_made(rows).paired()
    pd.testing.assert_frame_equal(hand_made([*rows, *undefined]).paired(), expected)
    assert expected["n_tasks"].item() == 7


def test_paired_comparison_of_few_tasks_has_no_p():
    rows = [r for r in paired_rows("effect_r2") if r[2] < "t4"]
    found = hand_made(rows).paired().iloc[0]
    assert (found["n_tasks"], np.isnan(found["p"])) == (4, True)
    same = [(m, *rest) for _, *rest in paired_rows("effect_r2")[:1] for m in ("net", "mean_shift")]
    equal = [(m, o, f"t{k}", s, g, v) for m, o, _, s, g, v in same for k in range(6)]
    found = hand_made(equal).paired().iloc[0]
    assert (found["wins"], found["difference"], np.isnan(found["p"])) == (0, 0.0, True)
    with pytest.raises(InputError, match=r"No method 'best'; there are \['mean_shift', 'net'\]"):
        hand_made(rows).paired("best")


def test_paired_comparison_with_ties_raises_no_warning():
    rows = paired_rows("effect_r2")
    rows = [r if r[2] != "t0" else (*r[:-1], 0.3) for r in rows]  # no difference in one task
    found = hand_made(rows).paired().iloc[0]
    assert found["n_tasks"] == 7
    assert 0 < found["p"] <= 1


def test_each_output_of_a_baseline_is_a_comparison_of_its_own():
    """Tasks were counted once per output of the baseline, which made p too small."""
    rows = paired_rows("effect_r2")
    rows += [("mean_shift", "mean", *r[2:-1], r[-1] - 1) for r in rows if r[0] == "mean_shift"]
    found = hand_made(rows).paired().set_index("output_baseline")
    assert found.index.tolist() == ["delta", "mean"]
    assert found["n_tasks"].tolist() == [7, 7]
    plain = hand_made(paired_rows("effect_r2")).paired().iloc[0]
    assert found.loc["delta", "p"] == plain["p"]
    assert found.loc["mean", "difference"] == pytest.approx(plain["difference"] + 1)
    assert found.loc["mean", "wins"] == 7


def test_wide_has_the_best_first():
    """By a score where lower is better, the worst used to come first."""
    rows = []
    for method, r2, energy in (("a", 0.2, 0.1), ("b", 0.9, 0.5), ("c", 0.5, 0.9)):
        rows.append((method, "delta", "x", 0, "effect_r2", r2))
        rows.append((method, "delta", "x", 0, "energy_distance", energy))
    results = hand_made(rows)
    r2, energy = ("effect_r2", "top100"), ("energy_distance", "pcs")
    assert results.wide([r2, energy]).index.get_level_values("method").tolist() == ["b", "c", "a"]
    wide = results.wide([energy, r2])
    assert wide.index.get_level_values("method").tolist() == ["a", "b", "c"]
    assert wide.columns.tolist() == [energy, r2]
    assert wide[r2].tolist() == [0.2, 0.9, 0.5]


def test_wide_shows_the_main_scores(make_adata):
    wide = benchmark(make_adata(), ["no_change", "mean_shift"], [NK], **QUIET).wide()
    assert wide.columns.tolist() == [
        ("effect_r2", "top100"),
        ("effect_r2", "all"),
        ("specific_pearson", "top100"),
        ("energy_distance", "pcs"),
        ("r2_var", "top100"),
        ("variance_ratio", "top100"),
    ]
    assert wide.loc[("no_change", "delta"), ("effect_r2", "all")] == pytest.approx(0, abs=1e-6)


def test_summary_and_repr_show_the_main_scores_of_each_method():
    rows = [
        ("net", "delta", "x", 0, "effect_r2", 0.5),
        ("net", "delta", "x", 1, "effect_r2", 0.7),
        ("net", "delta", "y", 0, "effect_r2", 0.2),
        ("flat", "delta", "x", 0, "effect_r2", 0.41),
        ("flat", "delta", "y", 0, "effect_r2", 0.61),
        ("ceiling", "ceiling", "x", 0, "effect_r2", 0.9),
        ("ceiling", "replicate half", "x", 0, "energy_distance", 0.1),
    ]
    results = hand_made(rows)
    found = results.summary()
    half = found.loc[("ceiling", "replicate half")]  # is not scored by effects
    assert half.isna().sum() == 2
    assert (half["tasks"], half["seeds"]) == (1, 1)
    rows = [row for row in rows if row[1] != "replicate half"]
    results = hand_made(rows)
    found = results.summary()
    assert found.index.tolist() == [("ceiling", "ceiling"), ("flat", "delta"), ("net", "delta")]
    (score,) = {name for name in found if name.startswith("effect R2 (")}
    assert found[score].tolist() == pytest.approx([0.9, 0.51, 0.4])
    assert found["sd"].tolist()[1:] == pytest.approx([np.sqrt(0.02), np.sqrt(0.08)])
    assert found["tasks"].tolist() == [1, 2, 2]
    assert found["seeds"].tolist() == [1, 1, 2]
    lines = repr(results).splitlines()
    assert lines[0] == "Results of 2 methods on 2 hold-outs; quick look (20 of 30 genes)"
    assert lines[1].split()[:2] == ["method", "output"]
    assert lines[-1].split() == ["net", "delta", "0.40", "0.283", "2", "2"]
    shown = results._repr_html_()
    assert f"<b>{lines[0]}</b>" in shown
    assert shown.count("<tr") == 4
    nothing = hand_made([])
    assert repr(nothing) == "Results of 0 methods on 0 hold-outs: no fit has finished"
    assert nothing._repr_html_() == f"<p>{nothing!r}</p>"


def test_a_summary_is_shown_in_plain_decimals():
    """A score of 0 that is 2e-10 by rounding put whole columns in e-notation."""
    rows = [("a", "delta", x, 0, "effect_r2", 0.9) for x in "xy"]
    rows += [
        ("b", "delta", x, 0, "effect_r2", v) for x, v in zip("xy", (-2e-10, -3e-10), strict=True)
    ]
    found = hand_made(rows).summary()
    assert "e-" not in found.to_string()
    assert "-" not in found.to_string()
    assert found.iloc[:, 0].tolist() == [0.9, 0.0]


def test_holdouts_and_tasks_show_what_is_hidden(make_adata):
    assert repr(Holdout("NK", "stimulated")) == "Holdout(NK:stimulated)"
    other = Holdout("p1", 2, "0", key="donor", also=(Holdout("p2", 2),))
    assert repr(other) == "Holdout(p1:2 from 0, of 'donor', with p2:2)"
    task = prepare_task(make_adata(), NK, keys=Keys("condition", "cell_type"), n_top_genes=None)
    assert repr(task).splitlines() == [
        "Task NK:stimulated",
        "  hidden    20 cells",
        "  source    20 cells under control",
        "  training  100 cells of 30 genes",
    ]
    assert '<td style="text-align: left">100 cells of 30 genes</td>' in task._repr_html_()


def test_results_survive_the_disk(make_adata, tmp_path):
    results = benchmark(make_adata(), ["mean_shift"], HOLDOUTS, folder=tmp_path, **QUIET)
    again = Results.load(tmp_path)
    assert again.records == results.records
    pd.testing.assert_frame_equal(again.table, results.table, check_exact=True)
    found = json.loads(json.dumps(again.to_json(), allow_nan=False))
    assert found["n_records"] == 6
    assert found["run"] == again.run
    summary = pd.DataFrame(found["summary"])
    np.testing.assert_allclose(
        summary["mean"].astype(float), results.statistics()["mean"].astype(float), atol=1e-9
    )
    assert summary["sd_seeds"].isna().all()
    with pytest.raises(InputError, match=r"run\.json is missing"):
        Results.load(tmp_path / "elsewhere")


def test_missing_scores_survive_the_disk(tmp_path):
    """JSON has no NaN: a score that is none is null in the file and NaN in the table."""
    results = hand_made([("net", "delta", "x", 0, "effect_r2", None)])
    store = Store(tmp_path)
    store.open(results.run)
    store.add(results.records[0])
    table = Results.load(tmp_path).table
    assert np.isnan(table["value"].item())
    json.dumps(results.to_json(), allow_nan=False)


def test_files_of_fits_are_one_per_fit_whatever_the_names(tmp_path):
    """A label of 120 letters of three bytes each was too long a name for most file systems."""
    store = Store(tmp_path)
    results = hand_made([("m", "delta", "x", 0, "effect_r2", 0.5)])
    store.open(results.run)
    names = ["T cell/CD4+", "T cell_CD4+", "../../up", ".hidden", "细胞" * 80, "", "a" * 500]
    plain = [{"label": n, "source": "a", "target": "b", "key": None, "also": []} for n in names]
    paths = {store.path(h, method, seed) for h in plain for method in ("m", "n") for seed in (0, 1)}
    assert len(paths) == len(names) * 4
    assert {p.parent for p in paths} == {store.fits}
    for holdout in plain:
        store.add({**results.records[0], "holdout": holdout})
    assert sorted(r["holdout"]["label"] for r in store.records()) == sorted(names)


def test_columns_may_be_named_in_place_of_keys_and_a_model_may_say_them(make_adata, fit):
    adata = make_adata(n_cells=240)
    names = {
        "condition_key": "condition",
        "labels_key": "cell_type",
        "total_counts_key": "n_counts",
    }
    named = holdouts(adata, source="control", **names)
    assert named == holdouts(adata, source="control", keys=Keys(**names))
    assert named == holdouts(adata, source="control", keys=fit(adata.copy()))
    options = {"n_top_genes": None, "progress": False}
    found = benchmark(adata, ["mean_shift"], named[:1], **options, **names)
    expected = benchmark(adata, ["mean_shift"], named[:1], **options, keys=Keys(**names))
    pd.testing.assert_frame_equal(found.table, expected.table)
    with pytest.raises(InputError, match="condition_key="):
        holdouts(adata)
    with pytest.raises(InputError, match="give Keys"):
        holdouts(adata, keys="condition")


def test_the_ceiling_of_values_does_not_depend_on_their_unit(make_adata):
    """Shares of a total, of which variances are below 1e-6, had a ceiling of 1."""
    adata, found = make_adata(values="log"), {}
    for unit in (1.0, 1e-6, 1e3):
        scaled = adata.copy()
        scaled.X = adata.X.astype(np.float64) * unit
        task = prepare_task(scaled, NK, keys=VALUES, n_top_genes=None)
        table = ceiling(task)["ceiling"].set_index(["metric", "genes"])["value"]
        found[unit] = table[["effect_r2", "effect_pearson", "r2_mean"]].to_numpy()
    np.testing.assert_allclose(found[1e-6], found[1.0], rtol=1e-6)
    np.testing.assert_allclose(found[1e3], found[1.0], rtol=1e-6)


def test_the_ceiling_of_values_does_not_depend_on_how_they_are_stored(make_adata):
    """Means of cells were taken for those of genes where sparse values were stored by column."""
    adata, found = make_adata(values="log"), {}
    for store in (np.asarray, sparse.csr_matrix, sparse.csc_matrix):
        stored = adata.copy()
        stored.X = store(dense(adata.X))
        task = prepare_task(stored, NK, keys=VALUES, n_top_genes=None)
        found[store] = ceiling(task, n_top=10)["ceiling"]
    for store in (sparse.csr_matrix, sparse.csc_matrix):
        pd.testing.assert_frame_equal(found[store], found[np.asarray], rtol=1e-5)


def test_what_few_sparse_cells_do_not_define_is_left_out_of_the_ceiling():
    """In some halves of four cells all of the genes that change most have the same variance: none."""
    for seed in range(8):
        rng = np.random.default_rng(seed)
        rows = [(f"t{k}", c) for k in range(3) for c in ("ctrl", "stim") for _ in range(60)]
        obs = pd.DataFrame(rows, columns=["cell_type", "condition"])
        rates = rng.gamma(1.0, 1.0, 40)
        x = rng.poisson(5 * rates / rates.sum(), (len(obs), 40)).astype(np.float32)
        hidden = (obs == ["t0", "stim"]).all(axis=1).to_numpy()
        keep = (x.sum(1) > 0) & (~hidden | ((hidden & (x.sum(1) > 0)).cumsum() <= 4))
        obs.index = obs.index.astype(str)
        adata = AnnData(x[keep], obs=obs[keep])
        task = prepare_task(adata, Holdout("t0", "stim", "ctrl"), keys=COUNTS, n_top_genes=None)
        table = ceiling(task, n_top=20)["ceiling"]
        assert {"effect_r2", "r2_var", "energy_distance"} <= set(table["metric"])
        assert table.set_index("metric")["value"]["energy_distance"] < np.inf


@pytest.mark.parametrize("same", ["whole", "halves"])
def test_hidden_cells_without_any_change_are_scored_by_what_they_define(same):
    """Also where it is halves of the hidden cells that do not change."""
    rows = [(f"t{k}", c) for k in range(3) for c in ("ctrl", "stim") for _ in range(4)]
    obs = pd.DataFrame(rows, columns=["cell_type", "condition"]).set_axis(map(str, range(24)))
    x = np.random.default_rng(0).poisson(3.0, (24, 6)).astype(np.float32)
    if same == "whole":
        x[4:8] = x[:4]
    else:
        x[:8] = [5, 1, 0, 0, 0, 0]
        x[7] = [5, 0, 1, 0, 0, 0]
    holdout = Holdout("t0", "stim", "ctrl")
    found = benchmark(AnnData(x, obs=obs), ["no_change", "mean_shift"], holdout, **QUIET)
    values = found.by_method("direction_accuracy") if same == "halves" else {}
    assert all(0 <= table.to_numpy().item() <= 1 for table in values.values())
    scores = found.table.set_index(["method", "output", "metric", "genes"])["value"].dropna()
    assert ("mean_shift", "delta", "energy_distance", "pcs") in scores.index
    undefined = ("mean_shift", "delta", "de_overlap", "top100") not in scores.index
    assert undefined == (same == "whole")


# -- one training for hold-outs that hide the same ------------------------------------------------------


def test_hold_outs_that_hide_the_same_share_a_network_and_scores_are_as_if_they_did_not(make_adata):
    adata = make_adata(n_cells=240)
    found = holdouts(adata, keys=COUNTS, source="control", min_cells=5, together=2)
    assert [[str(o) for o in h.also] for h in found] == [["NK:stimulated"], ["B:stimulated"], []]
    methods = {
        name: partial(METHODS[name], train_kwargs={"max_epochs": 2})
        for name in ("trvae", "latent_shift")
    } | {"mean_shift": METHODS["mean_shift"]}
    options = QUIET | {"seeds": 2}
    together = benchmark(adata, methods, found, **options).table
    alone = [benchmark(adata, methods, [h], **options).table for h in found]
    columns = ["label", "method", "output", "seed", "metric", "genes"]
    tables = [t.sort_values(columns)[[*columns, "value"]] for t in (together, pd.concat(alone))]
    pd.testing.assert_frame_equal(*(t.reset_index(drop=True) for t in tables))


def test_a_method_that_is_fitted_once_is_fitted_once_for_each_training(make_adata):
    adata, fitted = make_adata(), []

    def method(train, source, *, target, keys, seed=0):
        raise AssertionError

    def fit_once(train, *, keys, seed=0):
        fitted.append((set(train.obs_names), seed))
        train.X.data[:] = 0  # a copy
        shift = partial(METHODS["no_change"], keys=keys)
        return lambda source, target: {"delta": shift(source, source, target=target)}

    method.fit_once = fit_once
    found = holdouts(adata, keys=COUNTS, source="control", min_cells=5, together=2)
    spy = {"method": method, "no_change": METHODS["no_change"]}
    table = benchmark(adata, spy, found, **QUIET | {"seeds": [3, 4]}).table
    assert [seed for _, seed in fitted] == [3, 4, 3, 4]
    assert fitted[0][0] == fitted[1][0] != fitted[2][0]
    assert (
        len(fitted[0][0])
        == adata.n_obs
        - is_in(adata, "B", "stimulated").sum()
        - is_in(adata, "NK", "stimulated").sum()
    )
    wide = table.pivot_table("value", ["label", "metric", "genes"], ["method", "seed"])
    np.testing.assert_allclose(wide["method", 3], wide["no_change", 0], atol=1e-6)
