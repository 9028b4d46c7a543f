"""Parts of the report: settings, singular and plural, what is missing, pathways, and files."""

import base64
import functools
import html
import io
import re
from pathlib import Path

import matplotlib.colors as mcolors
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import trvae_sc
from trvae_sc.errors import InputError
from trvae_sc.evaluation import CEILING, Results
from trvae_sc.report import report, task_pathways
from trvae_sc.report._genes import _heatmap
from trvae_sc.report._parts import Cell, number, table_of
from trvae_sc.report._settings import counted, missing_combinations, python_call, settings

EVIL = "</script><script>alert(1)</script>"
GENES = [f"g{i}" for i in range(12)]


def record(method, label, seed, r2, **more):
    """Return the record of a fit; genes change by 1, -1, 0.1 and so on."""
    real = [1.0, -1.0] + [0.1] * (len(GENES) - 2)
    changes = {
        "gene": GENES,
        "real_change": real,
        "predicted_change": [r2 * value + 0.01 * i for i, value in enumerate(real)],
    }
    return {
        "method": method,
        "identity": method,
        "holdout": {"label": label, "source": "ctrl", "target": "stim", "key": None, "also": []},
        "seed": seed,
        "scores": [
            ["delta", "effect_r2", "top100", r2],
            ["delta", "effect_r2", "all", r2 / 2],
            ["delta", "energy_distance", "pcs", 1 - r2],
        ],
        "genes": {"delta": changes},
        "changes": changes,
        "n_genes": 12,
        "notes": [],
        "history": None,
        "epochs": None,
        "seconds": 40.0,
        **more,
    }


def results_of(records, *, cells=None, **run):
    labels = sorted({r["holdout"]["label"] for r in records})
    described = {
        "format": 4,
        "data": "0123456789abcdef" * 4,
        "n_obs": 1234,
        "n_vars": 12,
        "keys": {"condition_key": "treatment", "labels_key": "cell type", "layer": None},
        "n_top_genes": 2000,
        "design": {
            "labels": labels,
            "conditions": ["ctrl", "stim"],
            "cells": cells or [[40, 20] for _ in labels],
        },
        "versions": {"trvae_sc": "0.2.0", "torch": "2.0"},
        "started": "2026-01-02T03:04:05+00:00",
    }
    return Results({**described, **run}, records)


def some(labels=("B", "NK"), seeds=(0, 1), **run):
    """Return results of a model, with seeds, and of a simple method."""
    told = {"epochs": [3, 100], "preset": "default"}
    records = [record("mean_shift", label, 0, 0.4) for label in labels]
    records += [
        record("trvae", label, seed, 0.6 + 0.1 * seed, **told) for label in labels for seed in seeds
    ]
    return results_of(records, **run)


@functools.cache
def usual_page():
    """Return the page of usual results, drawn once for all tests that read it."""
    return report(some())


# -- settings -----------------------------------------------------------------------------------------


def test_settings_say_what_was_run():
    found = dict(settings(some(command="trvae-sc benchmark cells.h5ad", n_vars=30)))
    assert found == {
        "Data": "1,234 cells, 30 genes; 2 labels, 2 conditions; checksum 0123456789ab",
        "Keys": "condition: treatment; labels: cell type",
        "Values": "counts",
        "Hidden": "2 combinations, one at a time",
        "Genes": "12 of 30, chosen for every task without the hidden cells, as are normalisation and "
        "principal components",
        "Methods": "mean_shift, trvae",
        "Preset": "default (trvae)",
        "Epochs": "3 (trvae, by default 100)",
        "Seeds": "0, 1; methods that draw nothing ran once",
        "Computing": "6 fits, 4 min",
        "Versions": "trvae_sc 0.2.0, torch 2.0",
        "Date": "2026-01-02 03:04 UTC, start of the run",
        "Command": "trvae-sc benchmark cells.h5ad",
    }


@pytest.mark.parametrize("target", ["stim", "drug:10"])
def test_settings_say_that_a_condition_was_hidden_in_other_labels(target):
    """A condition with a colon in its name was taken for another one."""
    results = some(labels=["B"])
    for fit in results.records:
        fit["holdout"] |= {"target": target, "also": [f"NK:{target}"]}
    assert dict(settings(results))["Hidden"] == (
        "1 combination, with the same condition in other labels"
    )


def test_settings_of_older_results_are_those_that_they_hold():
    results = some(labels=["B"], seeds=[7])
    results.run = {k: v for k, v in results.run.items() if k != "started"}
    results.records = [{**r, "epochs": None, "preset": None} for r in results.records]
    found = dict(settings(results))
    assert not {"Preset", "Epochs", "Command"} & set(found)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d, when this page was made", found["Date"])
    assert (found["Hidden"], found["Seeds"], found["Genes"]) == (
        "1 combination",
        "0, 7; methods that draw nothing ran once",
        "all 12",
    )


def test_the_call_in_python_runs_the_same():
    """It is run here with a function that returns what it is given."""
    given = {}

    class Recorder:
        class evaluation:
            @staticmethod
            def benchmark(adata, methods, holdouts, **options):
                given.update(adata=adata, methods=methods, holdouts=holdouts, **options)

    exec(python_call(some(max_epochs=3)), {"trvae_sc": Recorder, "adata": 1, "holdouts": 2})
    assert given == {
        "adata": 1,
        "methods": ["mean_shift", "trvae"],
        "holdouts": 2,
        "condition_key": "treatment",
        "labels_key": "cell type",
        "seeds": [0, 1],
        "n_top_genes": 2000,
        "max_epochs": 3,
    }


@pytest.mark.parametrize(
    ("labels", "seeds", "texts"),
    [
        (
            ["B"],
            [0],
            [
                "One combination was hidden, predicted by trvae without having seen it, and then",
                "Means over 1 task and 1 seed;",
                "1 combination<",
            ],
        ),
        (
            ["B", "NK"],
            [0, 1],
            [
                "Each of 2 combinations was hidden in turn, predicted by trvae without having seen it",
                "Means over 2 tasks and 2 seeds;",
                "2 combinations, one at a time<",
            ],
        ),
    ],
)
def test_one_is_not_several(labels, seeds, texts):
    text = report(some(labels, seeds))
    for expected in texts:
        assert expected in text
    assert ("Verdicts:" in text) == (len(labels) > 1)
    assert ("the spread of a difference is not known" in text) == (len(seeds) == 1)
    assert ("is the standard deviation over seeds" in text) == (len(seeds) > 1)
    assert "1 tasks" not in text


def test_numbers_of_things():
    assert counted(1, "seed") == "1 seed"
    assert counted(1234, "cell") == "1,234 cells"


# -- tables and files -----------------------------------------------------------------------------------


def test_tables_are_text_with_what_they_are_sorted_by():
    frame = pd.DataFrame(
        {
            "name": ["a", None],
            "n": [1234, 5],
            "x": [-0.001, np.nan],
            "q": [1e-7, 0.5],
            "is": [True, False],
        }
    )
    table = table_of(frame, small=["q"])
    assert table.columns == [
        Cell("name"),
        Cell("n", is_number=True),
        Cell("x", is_number=True),
        Cell("q", is_number=True),
        Cell("is"),
    ]
    assert table.rows == [
        [
            Cell("a"),
            Cell("1,234", "1234", is_number=True),
            Cell("0.00", "-0.001", is_number=True),
            Cell("1e-07", "1e-07", is_number=True),
            Cell("yes"),
        ],
        [
            Cell(""),
            Cell("5", "5", is_number=True),
            Cell("", "", is_number=True),
            Cell("0.50", "0.5", is_number=True),
            Cell("no"),
        ],
    ]
    assert number(float("nan")) == ""


def csv_of(text, name):
    """Return the file of a link that is in the link itself."""
    (data,) = re.findall(
        rf'<a download="{name}" href="data:text/csv;charset=utf-8;base64,([^"]+)"', text
    )
    return pd.read_csv(io.BytesIO(base64.b64decode(data)))


def test_scores_are_a_table_and_a_file_with_their_spread():
    """Seeds score 0.6 and 0.7: mean 0.65, standard deviation 0.1 / sqrt 2."""
    text = usual_page()
    table = csv_of(text, "scores.csv").set_index(["label", "method"])
    assert len(table) == 4
    row = table.loc[("NK", "trvae")]
    assert row[["source", "target", "output", "seeds"]].tolist() == ["ctrl", "stim", "delta", 2]
    assert row["effect_r2 (top100)"] == pytest.approx(0.65)
    assert row["effect_r2 (all)"] == pytest.approx(0.325)
    assert row["sd effect_r2 (top100)"] == pytest.approx(0.1 / np.sqrt(2), rel=1e-5)
    assert np.isnan(table.loc[("B", "mean_shift"), "sd effect_r2 (top100)"])
    assert "0.65 \u00b1 0.07</td>" in text
    assert 'data-value="0.65"' in text
    alone = csv_of(report(some(seeds=[0])), "scores.csv")
    assert not [name for name in alone if name.startswith("sd ")]


def test_names_from_data_are_no_code_anywhere():
    results = some(labels=[EVIL, "NK"], command=f"trvae-sc {EVIL}")
    table = pd.DataFrame({"label": [EVIL], "pathway": [EVIL], "score": [1.0], "qval": [0.5]})
    ranking = pd.DataFrame(
        {
            "label": [EVIL],
            "condition": [EVIL],
            "expected_error": [1.0],
            "lowers": [0.5],
            "left": [0.5],
        }
    )
    text = report(results, pathways=table, next_experiments=ranking, title=EVIL)
    assert "<script>alert" not in text
    assert text.count("<script") == text.count("</script>") == 1
    assert html.escape(EVIL) in text


# -- what is missing --------------------------------------------------------------------------------------


def test_what_is_missing_is_listed_by_label():
    cells = pd.DataFrame([[5, 0, 0], [1, 2, 3], [0, 4, 4]], ["B", "NK", 7], ["a", "b", 1.0])
    assert missing_combinations(cells).values.tolist() == [["B", "a", "b, 1"], ["7", "b, 1", "a"]]


def test_the_page_says_what_is_missing_and_how_to_rank_it():
    assert "nothing is\nmissing" in usual_page()
    assert "next_experiments" not in usual_page()
    one = report(some(cells=[[40, 20], [30, 0]]))
    assert "One combination has no cells:" in one
    assert "<code>trvae_sc.next_experiments(model)</code>" in one
    assert "2 combinations have no cells:" in report(some(cells=[[40, 0], [30, 0]]))


def test_the_ranking_of_what_to_measure_next_is_shown():
    ranking = pd.DataFrame(
        {
            "label": ["NK", "B"],
            "source": "ctrl",
            "condition": "new",
            "expected_error": [0.5, 0.25],
            "lowers": [0.6, 0.3],
            "left": [0.4, 0.1],
        }
    )
    text = report(some(cells=[[40, 0], [30, 0]]), next_experiments=ranking)
    part = text.split('id="What to measure next"')[1].split("</table>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", part, flags=re.S)
    assert [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows] == [
        ["rank", "label", "condition", "expected error", "takes away, %", "left, %"],
        ["1", "NK", "new", "0.50", "60.00", "40.00"],
        ["2", "B", "new", "0.25", "30.00", "10.00"],
    ]
    assert 'alt="Numbers of cells, and the rank of what to measure next"' in text
    elsewhere = report(some(), next_experiments=ranking.assign(label="T"))
    assert "rank of what to measure next" not in elsewhere  # the picture has no such label
    for bad, message in ((ranking[["label"]], r"a table with \['label'\]"), (3, "is int")):
        with pytest.raises(InputError, match=message):
            report(some(), next_experiments=bad)


def test_more_labels_than_a_picture_can_show():
    results = some()
    n = 201
    results.run["design"] = {
        "labels": [f"l{i}" for i in range(n)],
        "conditions": ["ctrl", "stim"],
        "cells": [[1, 1]] * n,
    }
    assert "Numbers of cells by label" not in report(results)


# -- pathways ---------------------------------------------------------------------------------------------


def scores(n=2):
    return pd.DataFrame(
        {
            "label": ["B", "NK"] * n,
            "source": "ctrl",
            "target": "stim",
            "pathway": np.repeat([f"set {i}" for i in range(n)], 2),
            "n_genes": 5,
            "score": np.arange(2 * n) - 1.0,
            "qval": 1e-5,
        }
    )


def test_pathways_are_a_picture_a_table_and_a_file():
    text = report(some(), pathways=scores())
    assert '<a href="#pathways">' in text
    pd.testing.assert_frame_equal(csv_of(text, "pathways.csv"), scores(), check_dtype=False)
    part = text.split('id="pathway-table"')[1].split("</table>")[0]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in part.split("<tr>")[2:]]
    assert [row[3:] for row in rows] == [
        ["set 1", "5", "2.00", "1e-05"],
        ["set 0", "5", "-1.00", "1e-05"],
        ["set 1", "5", "1.00", "1e-05"],
        ["set 0", "5", "0.00", "1e-05"],
    ]
    assert 'id="pathways"' not in usual_page()
    many = report(some(), pathways=scores(300))
    assert "400 largest of 600" in many
    for bad in (scores().drop(columns="qval"), scores().iloc[:0], "sets.gmt"):
        with pytest.raises(InputError, match=r"give what trvae_sc\.pathways"):
            report(some(), pathways=bad)


def test_a_label_without_scores_of_pathways_is_drawn_empty():
    table = scores().assign(real_score=1.0)
    table.loc[table["label"] == table["label"].iloc[0], ["score", "qval"]] = np.nan
    text = report(some(), pathways=table)
    found = csv_of(text, "pathways.csv")
    assert found["score"].isna().sum() == table["score"].isna().sum() > 0


def test_scores_of_pathways_from_several_sources_are_drawn_one_by_one():
    """They were drawn as their mean, sets that begin alike by one name, and repeated rows were listed twice."""
    long = "GOBP_POSITIVE_REGULATION_OF_THE_RESPONSE_TO_A_CYTOKINE"
    names = [f"{long}_{end}" for end in ("ONE", "TWO")]
    one = scores().assign(pathway=np.repeat(names, 2))
    both = pd.concat([one, one.assign(source="other", score=one["score"] + 10).iloc[1:]])
    figure, has_gaps = _heatmap(both.reset_index(drop=True))
    ax = figure.axes[0]
    below = [t.get_text() for t in ax.get_xticklabels()]
    assert below == ["B from ctrl", "B from other", "NK from ctrl", "NK from other"]
    assert len({t.get_text() for t in ax.get_yticklabels()}) == 2
    shown = np.ma.filled(ax.images[0].get_array(), np.nan)
    np.testing.assert_array_equal(shown, [[1, 11, 2, 12], [-1, np.nan, 0, 10]])
    assert has_gaps
    assert mcolors.to_hex(ax.images[0].cmap(np.nan)) == "#7f7f7f"
    plt.close(figure)
    text = report(some(), pathways=both)
    assert len(csv_of(text, "pathways.csv")) == len(both) == 7
    assert text.split('id="pathway-table"')[1].split("</table>")[0].count("<tr>") == 8
    assert "Grey: not scored" in text
    assert "Grey: not scored" not in report(some(), pathways=one)


def test_pathways_of_all_tasks_are_those_of_each(decoupler):
    net = pd.DataFrame({"source": "up", "target": GENES[:6]})
    table = task_pathways(some(), net)
    assert table["label"].tolist() == ["B", "NK"]
    assert {"real_score", "agrees"} <= set(table)
    changes = trvae_sc.report.gene_changes(some()).query("label == 'NK'")
    alone = trvae_sc.pathways(changes.drop(columns=["lower", "upper"]), net)
    pd.testing.assert_frame_equal(table.iloc[1:].reset_index(drop=True), alone)
    with pytest.raises(InputError, match="share no genes"):
        task_pathways(some(), net.assign(target="x"))
    with pytest.raises(InputError, match=r"No file nowhere\.gmt"):
        task_pathways(some(), Path("nowhere.gmt"))


def test_a_ceiling_is_no_method_in_the_settings():
    records = [record("trvae", "B", 0, 0.5), record(CEILING, "B", 0, 0.9)]
    assert dict(settings(results_of(records)))["Methods"] == "trvae"
