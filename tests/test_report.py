"""The report: the verdict follows from the numbers, and the page stands alone."""

import base64
import functools
import html
import os
from html.parser import HTMLParser
from pathlib import Path

import anndata
import matplotlib.pyplot as plt
import numpy as np
import pytest
from anndata import AnnData
from scipy import stats

from trvae_sc import baselines
from trvae_sc.errors import InputError
from trvae_sc.evaluation import Keys, Results
from trvae_sc.evaluation._choose import Decision, decide
from trvae_sc.report import report, verdict, verdicts, write_report

EVIL = "<script>alert('&\"')</script>"
METRICS = {
    ("effect_r2", "top100"): 1.0,
    ("effect_r2", "all"): 0.9,
    ("specific_pearson", "top100"): 0.5,
    ("energy_distance", "pcs"): 0.4,
    ("r2_var", "top100"): 0.8,
    ("variance_ratio", "top100"): 0.7,
}
#: effect R2 of each method by label; the model's leads deviate by 0.098
SCORES = {
    "B": {"ceiling": 0.95, "no_change": 0.0, "mean_shift": 0.6, "trvae": 0.8},
    "NK": {"ceiling": 0.95, "no_change": 0.0, "mean_shift": 0.7, "trvae": 0.705},
    EVIL: {"ceiling": 0.25, "no_change": 0.0, "mean_shift": 0.1, "trvae": 0.2},
}
HISTORY = {
    "reconstruction_weighted_train": [30.0, 20.0, 15.0],
    "kl_weighted_train": [0.1, 0.2, 0.3],
}


@pytest.fixture(autouse=True)
def _no_figure_is_left():
    yield
    assert plt.get_fignums() == []


def record(method, label, r2, *, seed=0, history=None, notes=()):
    """Return the record of a fit; the effect R2 of a second output, not to be judged, is higher by 0.1."""
    outputs = {"trvae": ["delta", "counts"], "ceiling": ["ceiling"]}.get(method, ["delta"])
    rng = np.random.default_rng(len(label))
    real = np.sort(rng.normal(0, 1, 12))[::-1].round(4)
    genes = {
        "gene": ["<b>gene</b>"] + [f"gene_{i}" for i in range(11)],
        "real_change": real.tolist(),
        "predicted_change": (r2 * real).round(4).tolist(),
    }
    return {
        "method": method,
        "identity": method,
        "holdout": {
            "label": label,
            "source": "ctrl",
            "target": "stim & more",
            "key": None,
            "also": [],
        },
        "seed": seed,
        "scores": [
            [output, metric, names, (r2 + 0.1 * k) * factor]
            for k, output in enumerate(outputs)
            for (metric, names), factor in METRICS.items()
        ],
        "genes": {} if method == "ceiling" else dict.fromkeys(outputs, genes),
        "n_training_cells": 100,
        "n_genes": 12,
        "n_source_cells": 20,
        "n_hidden_cells": 20,
        "notes": list(notes),
        "history": history,
        "epochs": None,
        "seconds": 90.0,
    }


def make_results(scores=SCORES, *, history=HISTORY, notes=("a <note>",), n_vars=12):
    records = [
        record(
            method,
            label,
            r2,
            history=history if method == "trvae" else None,
            notes=notes if method == "trvae" else (),
        )
        for label, methods in scores.items()
        for method, r2 in methods.items()
    ]
    run = {
        "format": 4,
        "data": "0123456789abcdef" * 4,
        "n_obs": 1234,
        "n_vars": n_vars,
        "keys": Keys("condition", "cell_type")._asdict(),
        "n_top_genes": 2000,
        "design": {
            "labels": sorted({*scores, "T"}),
            "conditions": ["ctrl", "stim & more"],
            "cells": [[40, 20] for _ in {*scores, "T"}],
        },
        "versions": {"trvae_sc": "0.1.0", "torch": "9.8.7"},
    }
    return Results(run, records)


@functools.cache
def usual_page(n_vars=12):
    """Return the page of usual results, drawn once for all tests that read it."""
    return report(make_results(n_vars=n_vars))


class Page(HTMLParser):
    """Tags with attributes, the text between them, and tables as lists of rows."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.tables, self.stack = [], "", [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("img", "meta", "link", "br", "input"):
            self.stack.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag == "br":
            self.handle_data(" ")

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack and self.stack[-1] in ("style", "script"):
            return
        self.text += data
        if {"td", "th"} & set(self.stack):
            self.tables[-1][-1][-1] += data


# -- verdicts ---------------------------------------------------------------------------------------


def between(answer, ours, theirs, error=0.02, simple="context_shift"):
    """Return a decision, and the scores it follows from."""
    decision = Decision(answer, "trvae", simple, ours - theirs, error)
    return decision, {"trvae": ours, simple: theirs, "no_change": 0.0}


@pytest.mark.parametrize(
    ("decided", "ceiling", "advice", "reason"),
    [
        (
            between("model", 0.8, 0.7),
            0.9,
            "use the model",
            "effect R2: the model 0.80, context_shift 0.70 (difference +0.10, standard error 0.02)",
        ),
        (
            between("model", 0.8, -1e-9, simple="no_change"),
            0.9,
            "use the model",
            "effect R2: the model 0.80, no_change 0.00 (difference +0.80, standard error 0.02)",
        ),
        (
            between("close", 0.71, 0.7),
            0.9,
            "too close to call",
            "effect R2: the model 0.71, context_shift 0.70 (difference +0.01, standard error 0.02)",
        ),
        (
            between("close", 0.7038, 0.7, error=0.004),
            0.9,
            "too close to call",
            "effect R2: the model 0.70, context_shift 0.70 (difference +0.0038, standard error 0.0040)",
        ),
        (
            between("simple", 0.5, 0.7, simple="mean_shift"),
            0.9,
            "use mean_shift",
            "effect R2: the model 0.50, mean_shift 0.70 (difference -0.20, standard error 0.02)",
        ),
        (
            between("close", 0.5, 0.4, error=float("nan")),
            0.9,
            "too close to call",
            "effect R2: the model 0.50, context_shift 0.40 (difference +0.10)",
        ),
        (
            between("simple", -0.4, 0.26, simple="mean_shift"),
            0.9,
            "do not trust",
            "effect R2 the model -0.40, mean_shift 0.26, of 0.90 that a perfect prediction would have",
        ),
        (
            between("simple", -0.4, 0.28, simple="mean_shift"),  # 30 % of 0.9 is 0.27
            0.9,
            "use mean_shift",
            "effect R2: the model -0.40, mean_shift 0.28 (difference -0.68, standard error 0.02)",
        ),
        (
            between("model", 0.11, 0.05),
            0.35,
            "use the model",
            "effect R2: the model 0.11, context_shift 0.05 (difference +0.06, standard error 0.02)",
        ),
        (
            between("model", 0.9, 0.1),
            0.29,
            "do not trust",
            "the hidden cells are too few, or change too little, to judge anything: even a perfect "
            "prediction would have effect R2 0.29 (the model 0.90, context_shift 0.10)",
        ),
        (
            between("model", 0.31, 0.1),  # no ceiling: 0.3 as it is
            float("nan"),
            "use the model",
            "effect R2: the model 0.31, context_shift 0.10 (difference +0.21, standard error 0.02)",
        ),
        (
            (decide(np.nan, np.nan, model="trvae", simple=None), {"trvae": 0.4}),
            0.9,
            "use the model",
            "effect R2 0.40; no simple method was run beside it",
        ),
    ],
)
def test_verdict_follows_from_the_numbers(decided, ceiling, advice, reason):
    assert verdict(*decided, ceiling=ceiling) == (advice, reason)


def test_nothing_is_trusted_that_explains_little_where_no_ceiling_is_known():
    assert verdict(*between("model", 0.29, 0.1), ceiling=float("nan")).advice == "do not trust"


@pytest.mark.parametrize(
    ("difference", "error", "answer"),
    [
        (0.03, 0.02, "model"),
        (-0.03, 0.02, "simple"),
        (0.01, 0.02, "close"),
        (-0.01, 0.02, "close"),
        (0.02, 0.02, "close"),
        (0.3 - 0.1, 0.2, "close"),  # rounding is no difference
        (1e-12, 0.0, "close"),
        (0.01, 0.0, "model"),
        (5.0, float("nan"), "close"),
    ],
)
def test_what_is_no_larger_than_its_standard_error_is_too_close_to_call(difference, error, answer):
    found = decide(difference, error, model="trvae", simple="mean_shift")
    assert found.answer == answer
    assert found.method == ("trvae" if answer == "model" else "mean_shift")
    assert (found.difference, found.error) == pytest.approx((difference, error), nan_ok=True)


def test_what_there_is_none_of_is_not_better():
    assert decide(np.nan, np.nan, model="trvae", simple=None).method == "trvae"
    assert decide(np.nan, np.nan, model=None, simple="mean_shift").method == "mean_shift"


def test_a_simple_method_is_not_judged_against_itself():
    """A judged mean_shift was its own baseline: it could never be better than itself."""
    scores = {"ceiling": 0.9, "mean_shift": 0.8, "context_shift": 0.5, "latent_shift": 0.9}
    table = verdicts(
        make_results({"B": scores, "NK": {**scores, "mean_shift": 0.82}}, history=None),
        method="mean_shift",
    )
    assert table["model"].tolist() == pytest.approx([0.8, 0.82])
    assert table["best simple"].tolist() == [0.5, 0.5]
    assert table["simple"].tolist() == ["context_shift", "context_shift"]
    assert table["advice"].tolist() == ["use mean_shift", "use mean_shift"]


def test_no_change_is_compared_with_where_nothing_else_is():
    scores = {"trvae": 0.5, "no_change": 0.6, "mean_shift": 0.2}
    row = verdicts(make_results({"B": scores}, history=None)).iloc[0]
    assert (row["simple"], row["best simple"]) == ("mean_shift", 0.2)
    del scores["mean_shift"]
    row = verdicts(make_results({"B": scores}, history=None)).iloc[0]
    assert (row["simple"], row["best simple"]) == ("no_change", 0.6)


def with_seeds(scores):
    """Return results of several seeds: by label and method a list of effect R2, one per seed."""
    results = make_results({label: {"ceiling": 0.95} for label in scores}, notes=())
    records = [
        record(method, label, r2, seed=seed)
        for label, methods in scores.items()
        for method, by_seed in methods.items()
        for seed, r2 in enumerate(by_seed)
    ]
    return Results(results.run, [*results.records, *records])


def test_verdicts_take_the_output_fixed_in_advance_and_the_mean_over_seeds():
    table = verdicts(with_seeds({"B": {"mean_shift": [0.6], "trvae": [0.8, 0.62]}}))
    assert table[["label", "source", "target"]].values.tolist() == [["B", "ctrl", "stim & more"]]
    row = table.iloc[0]
    assert row["model"] == pytest.approx(0.71)  # of delta; counts has 0.81
    assert row["sd_seeds"] == pytest.approx(0.09 * np.sqrt(2))
    assert row["best simple"] == pytest.approx(0.6)
    assert row["ceiling"] == pytest.approx(0.95)
    assert (row["advice"], row["reason"]) == (
        "use the model",  # 0.2 and 0.02: mean 0.11, standard error 0.09
        "effect R2: the model 0.71, mean_shift 0.60 (difference +0.11, standard error 0.09)",
    )


def test_errors_of_several_tasks_are_pooled_and_no_less_than_that_over_tasks():
    """Leads over context_shift, with an output that is judged: by task two seeds, in B three."""
    leads = {"B": [0.3, 0.34, 0.38], "NK": [-0.05, 0.05], "T": [0.02, 0.04]}
    scores = {
        label: {"context_shift": [0.5], "mean_shift": [0.4], "trvae": [0.5 + lead for lead in own]}
        for label, own in leads.items()
    }
    over_tasks = stats.sem([np.mean(own) for own in leads.values()])
    pooled = np.sqrt(np.mean([np.var(own, ddof=1) for own in leads.values()]))
    assert pooled / np.sqrt(2) < over_tasks
    table = verdicts(with_seeds(scores)).set_index("label")
    assert table["advice"].to_dict() == {
        "B": "use the model",
        "NK": "too close to call",
        "T": "too close to call",
    }
    assert set(table["simple"]) == {"context_shift"}
    for reason in table["reason"]:
        assert f"standard error {over_tasks:.2f}" in reason

    wild = {
        label: {**own, "trvae": [0.5 + lead for lead in by_seed]}
        for (label, own), by_seed in zip(
            scores.items(), ([0.1, 0.5, 0.9], [0.8, 0.2], [0.3, 0.6]), strict=True
        )
    }
    spread = [np.var(by_seed, ddof=1) for by_seed in ([0.1, 0.5, 0.9], [0.8, 0.2], [0.3, 0.6])]
    reasons = verdicts(with_seeds(wild)).set_index("label")["reason"]
    for label, n in (("B", 3), ("NK", 2), ("T", 2)):
        assert f"standard error {np.sqrt(np.mean(spread) / n):.2f}" in reasons[label]


def test_with_one_seed_the_error_is_the_deviation_over_tasks():
    leads = {"B": 0.3, "NK": 0.02, "T": 0.1}
    scores = {k: {"mean_shift": [0.5], "trvae": [0.5 + lead]} for k, lead in leads.items()}
    table = verdicts(with_seeds(scores)).set_index("label")
    deviation = np.std(list(leads.values()), ddof=1)
    assert 0.1 < deviation < 0.3
    assert table["advice"].tolist() == ["use the model", *["too close to call"] * 2]
    assert all(f"standard error {deviation:.2f}" in reason for reason in table["reason"])
    assert table["sd_seeds"].isna().all()

    alone = verdicts(with_seeds({"B": scores["B"]})).iloc[0]
    assert alone["advice"] == "too close to call"
    assert alone["reason"] == "effect R2: the model 0.80, mean_shift 0.50 (difference +0.30)"


def test_verdicts_of_a_benchmark_that_is_still_running():
    """A task that the model had not finished yet raised KeyError 'trvae'."""
    left = {name: r2 for name, r2 in SCORES["NK"].items() if name != "trvae"}
    results = make_results({"B": SCORES["B"], "NK": left})
    assert verdicts(results)["label"].tolist() == ["B"]
    page = Page(report(results))
    assert [row[0] for row in page.tables[0]] == ["prediction", "B ctrl \u2192 stim & more"]
    apart = {"B": {"trvae": 0.8}, "NK": {"mean_shift": 0.7}, "T": {"context_shift": 0.7}}
    assert verdicts(make_results(apart))["best simple"].isna().all()
    alone = make_results({"B": {"trvae": 0.5}})
    row = verdicts(alone).iloc[0]
    assert row["advice"] == "use the model"
    assert np.isnan(row["best simple"])
    assert np.isnan(row["ceiling"])


def test_a_simple_method_counts_where_another_was_not_run():
    """As in a folder that several runs share: the model was to be used, as if none was run beside it."""
    both = {"context_shift": 0.5, "mean_shift": 0.9, "trvae": 0.8}
    alone = {name: both[name] for name in ("mean_shift", "trvae")}
    found = verdicts(make_results({"B": both, "NK": both, "T": alone}))
    assert found["simple"].tolist() == ["mean_shift"] * 3
    assert found["best simple"].tolist() == pytest.approx([0.9] * 3)
    assert found["advice"].tolist() == ["use mean_shift"] * 3


def test_the_model_to_judge():
    scores = {"ceiling": 0.9, "mean_shift": 0.5, "cvae": 0.6, "paper": 0.7}
    results = make_results({"B": scores}, history=None)
    assert verdicts(results)["model"].tolist() == pytest.approx([0.6])  # the first
    assert verdicts(results, method="paper")["model"].tolist() == pytest.approx([0.7])
    both = make_results({"B": {**scores, "trvae": 0.4}})
    assert verdicts(both)["model"].tolist() == pytest.approx([0.4])
    with pytest.raises(InputError, match=r"No method 'best' in the results; there are \['cvae'"):
        verdicts(results, method="best")


# -- the page ---------------------------------------------------------------------------------------


def test_page_stands_alone_and_is_well_formed():
    text = usual_page()
    page = Page(text)  # every tag is closed by its own
    assert page.stack == []
    assert "http://" not in text
    assert "https://" not in text
    assert "@import" not in text
    assert "url(" not in text
    assert [attributes for tag, attributes in page.tags if tag == "script"] == [{}]
    for tag, attributes in page.tags:
        assert tag not in ("iframe", "object", "embed")
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "srcset", "data"):
            assert attributes.get(name, "data:").startswith(("data:", "#"))
    ids = {attributes.get("id") for _, attributes in page.tags}
    assert {a["href"][1:] for tag, a in page.tags if a.get("href", "").startswith("#")} <= ids
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 3 + 1 + 3  # design and two benchmarks, training, genes of three tasks
    for image in images:
        data = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"), validate=True)
        assert data.startswith(b"\x89PNG")
        assert image["alt"]
    assert any(tag == "meta" and a.get("name") == "viewport" for tag, a in page.tags)


def test_page_escapes_what_comes_from_the_data():
    text = report(make_results(), title=f"Report on {EVIL}")
    assert EVIL not in text
    assert "<b>gene</b>" not in text
    page = Page(text)
    assert EVIL in page.text
    assert "<b>gene</b>" in page.text
    assert f"Report on {EVIL}" in page.text
    assert "a <note>" in page.text
    assert any(EVIL in a.get("alt", "") for tag, a in page.tags if tag == "img")


def test_page_has_every_label_verdict_and_number():
    page = Page(usual_page(5678))
    table = {row[0]: row[1:] for row in page.tables[0][1:]}
    assert table == {
        f"{EVIL} ctrl \u2192 stim & more": [
            "do not trust: the hidden cells are too few, or change too little, to judge anything: even "
            "a perfect prediction would have effect R2 0.25 (the model 0.20, mean_shift 0.10)",
            "0.20",
            "0.10 mean_shift",
            "0.25",
        ],
        "B ctrl \u2192 stim & more": [
            "use the model: effect R2: the model 0.80, mean_shift 0.60 (difference +0.20, standard "
            "error 0.10)",
            "0.80",
            "0.60 mean_shift",
            "0.95",
        ],
        "NK ctrl \u2192 stim & more": [
            "too close to call: effect R2: the model 0.70, mean_shift 0.70 (difference +0.01, standard "
            "error 0.10)",
            "0.70",
            "0.70 mean_shift",
            "0.95",
        ],
    }
    for advice in ("use the model", "too close to call", "do not trust"):
        assert f"{advice} (1)" in page.text
    methods = {row[0]: row[1:] for row in page.tables[1][1:]}
    assert list(methods) == [
        "ceiling",
        "trvae, counts",
        "trvae, delta",
        "mean_shift, delta",
        "no_change, delta",
    ]
    mean = np.mean([0.8, 0.705, 0.2])
    assert methods["trvae, delta"] == [f"{mean * factor:.2f}" for factor in METRICS.values()]
    assert page.tables[1][0][1:] == [
        "effect R2 (top100)",
        "effect R2 (all)",
        "specific r (top100)",
        "energy distance (pcs)",
        "R2 of variances (top100)",
        "variance ratio (top100)",
    ]
    genes = page.tables[3]
    assert genes[0] == ["gene", "real change", "predicted"]
    assert len(genes) == 11
    sizes = [abs(float(row[1])) for row in genes[1:]]
    assert sizes == sorted(sizes, reverse=True)


def test_page_without_a_history_has_no_training():
    text = report(make_results(history=None, notes=()))
    assert "Training (" not in text
    assert text.count("<img") == 6
    assert "Training (" in usual_page()


def test_page_of_one_task_with_a_simple_method_judged():
    """A judged method that changes nothing has no correlation; the page shows it all the same."""
    text = report(make_results({"B": SCORES["B"]}), method="no_change")
    assert "too close to call: effect R2: no_change 0.00, mean_shift 0.60" in Page(text).text


def test_a_quick_look_is_called_one_on_top_of_the_page():
    results = make_results(n_vars=5678)
    assert set(verdicts(results)["note"]) == {"quick look (12 of 5,678 genes)"}
    text = usual_page(5678)
    told = "<b>Quick look (12 of 5,678 genes).</b>"
    assert text.lower().count("quick look") == 1
    assert text.index(told) < text.index("<h2>Settings</h2>") < text.index("<h2>Verdicts</h2>")
    whole = make_results()  # all of 12 genes
    assert set(verdicts(whole)["note"]) == {""}
    assert "quick look" not in usual_page().lower()
    short = [{**r, "epochs": [3, 400] if r["method"] == "trvae" else None} for r in whole.records]
    assert "Quick look (3 epochs, fewer than by default)" in report(Results(whole.run, short))


def test_nothing_to_report():
    with pytest.raises(InputError, match="There are no results to report yet"):
        report(Results(make_results().run, []))
    with pytest.raises(
        InputError, match=r"Only \['no_change'\] was run: there is nothing to judge"
    ):
        report(make_results({"B": {"no_change": SCORES["B"]["no_change"]}}))
    with pytest.raises(InputError, match="No method 'best' in the results"):
        report(make_results(), method="best")
    with pytest.raises(InputError, match="Expected results of a benchmark, got DataFrame"):
        verdicts(make_results().table)


def test_of_simple_methods_alone_the_least_simple_is_judged():
    scores = {"ceiling": 0.9, "no_change": 0.0, "mean_shift": 0.5, "context_shift": 0.8}
    results = make_results({"B": scores, "NK": {**scores, "context_shift": 0.78}}, history=None)
    table = verdicts(results)
    assert table["advice"].tolist() == ["use context_shift", "use context_shift"]
    assert table["reason"][0].startswith("effect R2: context_shift 0.80, mean_shift 0.50")
    page = report(results)
    assert "predicted by context_shift" in page
    assert '<th class="number">context_shift</th>' in page


def test_predictions_are_listed_with_what_training_saw(trained):
    cells = trained.adata
    predicted = trained.predict(target="stimulated", labels=["NK"])
    text = report(make_results(), [predicted])
    page = Page(text)
    assert f"{predicted.n_obs} cells: TRVAE, counts, stimulated." in page.text
    note = next(n for n in predicted.uns["trvae_sc"]["notes"] if "Training saw" in n)
    assert f'<p class="bad">{html.escape(note)}</p>' in text
    table = page.tables[-1]
    row = dict(zip(table[0], table[1], strict=True))
    assert row["label"] == "NK"
    assert (row["source"], row["target"]) == ("control", "stimulated")
    assert row["n_training_cells"] == "20"
    assert row["seen_in_training"] == "yes"

    predicted.write_h5ad("predicted.h5ad")
    assert report(make_results(), [anndata.read_h5ad("predicted.h5ad")]) == text
    with pytest.raises(InputError, match=r"Not a prediction: uns\['trvae_sc'\]"):
        report(make_results(), [AnnData(np.ones((2, 2)))])
    assert "trvae_sc" not in cells.uns


def test_predictions_of_simple_methods_are_listed(make_adata):
    """They have no table of combinations and no output, which raised KeyError."""
    adata = make_adata()
    keys = Keys("condition", "cell_type")
    predicted = baselines.mean_shift(adata, adata[:6].copy(), target="stimulated", keys=keys)
    assert "6 cells: mean_shift, stimulated." in Page(report(make_results(), [predicted])).text


def test_page_is_written_completely_or_not_at_all(monkeypatch):
    path = Path("report.html")
    write_report(path, "<p>é</p>")
    assert path.read_bytes() == "<p>é</p>".encode()
    write_report(path, "second")
    assert path.read_text() == "second"

    def fail(self, text, **kwargs):
        with self.open("w") as file:
            file.write(text[:2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="No space left"):
        write_report(path, "third")
    assert path.read_text() == "second"
    assert os.listdir() == ["report.html"]  # noqa: PTH208


def test_a_report_takes_one_prediction_and_nothing_else(trained):
    results, predicted = make_results(), trained.predict(target="stimulated", labels="NK")
    assert report(results, predicted) == report(results, [predicted])
    for other in ("page.html", Path("page.html"), [5], 5, {"a": predicted}):
        with pytest.raises(InputError, match=r"write_report\(path, report\(results\)\)"):
            report(results, other)


def test_a_page_is_text_and_its_file_has_a_name(tmp_path):
    with pytest.raises(InputError, match="text is Results"):
        write_report(tmp_path / "page.html", make_results())
    with pytest.raises(InputError, match="too long for the name of a file"):
        write_report(usual_page(), "page.html")
