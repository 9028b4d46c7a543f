"""Genes of the report: changes of all combinations, means over seeds, and the file that holds them."""

import base64
import gzip
import io
import re

import numpy as np
import pandas as pd
import pytest

from trvae_sc.errors import InputError
from trvae_sc.evaluation import Keys, Results
from trvae_sc.report import _scores, gene_changes, report
from trvae_sc.report._genes import predicted_changes

COLUMNS = ["label", "source", "target", "gene", "change", "lower", "upper", "real_change"]


def fit(method, label, seed, changes, *, genes=None, target="stim", r2=0.5):
    """Return the record of a fit with these changes."""
    kept = changes if genes is None else genes
    return {
        "method": method,
        "identity": method,
        "holdout": {"label": label, "source": "ctrl", "target": target, "key": None, "also": []},
        "seed": seed,
        "scores": [
            ["delta", metric, names, r2]
            for metric in ("effect_r2", "r2_mean")
            for names in ("top100", "all")
        ]
        + [["delta", "energy_distance", "pcs", 1.0]],
        "genes": {} if kept is None else {"delta": kept},
        "n_training_cells": 100,
        "n_genes": 3,
        "n_source_cells": 20,
        "n_hidden_cells": 20,
        "notes": [],
        "history": None,
        "epochs": None,
        "seconds": 1.0,
        **({} if changes is None else {"changes": changes}),
    }


def results_of(records, labels=("B", "NK")):
    run = {
        "format": 4,
        "data": "0123456789abcdef" * 4,
        "n_obs": 1234,
        "n_vars": 3,
        "keys": Keys("condition", "cell_type")._asdict(),
        "n_top_genes": None,
        "design": {
            "labels": list(labels),
            "conditions": ["ctrl", "stim"],
            "cells": [[40, 20] for _ in labels],
        },
        "notes": [],
        "versions": {"trvae_sc": "0.1.0"},
        "started": "2026-01-02T03:04:05+00:00",
    }
    return Results(run, records)


def two_seeds():
    """Return results of two labels; B has two seeds and intervals, NK one seed and none."""
    of_b = {"gene": ["a", "b", "c"], "real_change": [0.5, -2.0, 1.0]}
    ends = {"change_lower": [0.0, -1.5, -1.0], "change_upper": [0.4, 0.5, 1.0]}
    first = {**of_b, "predicted_change": [0.2, -1.0, 0.0], **ends}
    ends = {"change_lower": [0.2, -2.5, -1.0], "change_upper": [0.6, -0.5, 1.0]}
    second = {**of_b, "predicted_change": [0.4, -2.0, 0.0], **ends}
    of_nk = {"gene": ["d", "a"], "real_change": [-0.1, 0.3], "predicted_change": [0.0, 0.1]}
    return results_of(
        [
            fit("trvae", "B", 0, first),
            fit("trvae", "B", 1, second),
            fit("trvae", "NK", 0, of_nk),
            fit("mean_shift", "B", 0, {**of_b, "predicted_change": [9.0, 9.0, 9.0]}),
        ]
    )


def test_changes_are_means_over_seeds_the_largest_real_one_first():
    nan = np.nan
    expected = pd.DataFrame(
        [
            ("B", "ctrl", "stim", "b", -1.5, -2.0, 0.0, -2.0),
            ("B", "ctrl", "stim", "c", 0.0, -1.0, 1.0, 1.0),
            ("B", "ctrl", "stim", "a", 0.3, 0.1, 0.5, 0.5),
            ("NK", "ctrl", "stim", "a", 0.1, nan, nan, 0.3),
            ("NK", "ctrl", "stim", "d", 0.0, nan, nan, -0.1),
        ],
        columns=COLUMNS,
    )
    pd.testing.assert_frame_equal(gene_changes(two_seeds()), expected)
    other = gene_changes(two_seeds(), method="mean_shift")
    assert other["change"].tolist() == [9.0] * 3
    assert other["lower"].isna().all()
    with pytest.raises(InputError, match="No method 'best' in the results; there are"):
        gene_changes(two_seeds(), method="best")


def test_results_without_changes_of_all_genes_have_those_that_change_most():
    kept = {"gene": ["a", "b"], "real_change": [0.5, -2.0], "predicted_change": [0.25, -1.0]}
    found = gene_changes(results_of([fit("trvae", "B", 0, None, genes=kept)]))
    assert found[["gene", "change", "real_change"]].values.tolist() == [
        ["b", -1.0, -2.0],
        ["a", 0.25, 0.5],
    ]


def packed(text):
    """Return the table of all genes that a page holds."""
    (data,) = re.findall(r'href="data:application/gzip;base64,([^"]+)"', text)
    return pd.read_csv(io.BytesIO(gzip.decompress(base64.b64decode(data))))


def test_a_page_holds_the_changes_of_all_genes():
    text = report(two_seeds())
    pd.testing.assert_frame_equal(packed(text), gene_changes(two_seeds()))
    assert text == report(two_seeds())
    assert "All 4 genes as CSV" in text


def test_the_table_of_genes_says_whether_the_real_change_is_in_the_interval():
    text = report(two_seeds())
    rows = re.findall(r"<tr>(.*?)</tr>", text.split("Genes that change most")[1], flags=re.S)
    cells = [re.findall(r"<t[hd][^>]*>\s*(.*?)</t[hd]>", row) for row in rows]
    assert cells[:4] == [
        ["gene", "real change", "predicted", "90 % interval", "inside"],
        ["b", "-2.00", "-1.50", "-2.00 to 0.00", "yes"],
        ["c", "1.00", "0.00", "-1.00 to 1.00", "yes"],
        ["a", "0.50", "0.30", "0.10 to 0.50", "yes"],
    ]
    assert cells[4] == ["gene", "real change", "predicted"]  # NK has no intervals


def test_predictions_of_one_label_can_be_searched(trained):
    one = trained.predict(target="stimulated", labels=["NK"])
    both = trained.predict(target="stimulated", labels=["NK", "B"], source="control")
    found = predicted_changes([one, both])
    assert found.columns.tolist() == [*COLUMNS, "origin"]
    assert len(found) == 30
    assert set(zip(found["label"], found["source"], found["target"], strict=True)) == {
        ("NK", "control", "stimulated")
    }
    own = found.set_index("gene").loc[one.var_names]
    np.testing.assert_allclose(own["change"], one.var["predicted_change"])
    np.testing.assert_allclose(own["upper"], one.var["change_upper"])
    assert found["real_change"].isna().all()
    assert found["change"].abs().is_monotonic_decreasing
    table = packed(report(two_seeds(), [one]))
    assert len(table) == 5 + 30
    assert table["origin"].tolist() == ["hidden"] * 5 + ["prediction 1"] * 30


def test_a_page_of_2000_genes_and_20_combinations_is_below_2_mb(monkeypatch):
    """All 20 have the picture of the first, so that one is drawn."""
    scatter, image, drawn = _scores._scatter, _scores.image, []

    def picture(shown, text):
        if not isinstance(shown, pd.DataFrame):
            return image(shown, text)
        if not drawn:
            drawn.append(image(scatter(shown), text))
        return drawn[0]

    monkeypatch.setattr(_scores, "_scatter", lambda genes: genes)
    monkeypatch.setattr(_scores, "image", picture)
    rng = np.random.default_rng(0)
    records, labels = [], [f"label_{i}" for i in range(20)]
    for label in labels:
        for seed in range(3):
            change = rng.normal(0, 1, 2000)
            changes = {
                "gene": [f"ENSG{i:011d}" for i in rng.permutation(10_000)[:2000]]
                if not seed
                else records[-1]["changes"]["gene"],
                "real_change": rng.normal(0, 1, 2000).round(4).tolist(),
                "predicted_change": change.round(4).tolist(),
                "change_lower": (change - rng.gamma(1, 1, 2000)).round(4).tolist(),
                "change_upper": (change + rng.gamma(1, 1, 2000)).round(4).tolist(),
            }
            records.append(fit("trvae", label, seed, changes))
    text = report(results_of(records, labels))
    assert text.count(drawn[0]) == 20
    assert len(text.encode()) < 2_000_000
    assert len(packed(text)) == 40_000


def test_of_too_many_genes_those_that_change_most_are_kept(monkeypatch):
    monkeypatch.setattr("trvae_sc.report._scores._MOST_ROWS", 3)  # of two combinations: one each
    text = report(two_seeds())
    assert packed(text)["gene"].tolist() == ["b", "a"]
    assert "(of every combination those that change most; 3 rows were too many)" in text
