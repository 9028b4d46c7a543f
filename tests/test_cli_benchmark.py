"""The commands benchmark and report: results equal to Python's, one line and a code on bad input."""

import errno
import io
import json
import re
import shlex
import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

from trvae_sc import baselines, datasets
from trvae_sc.cli import main
from trvae_sc.evaluation import Holdout, Keys, Results, benchmark, subsample

KEYS = Keys("condition", "cell_type", total_counts_key="total_counts")
SETUP = ["--condition-key", "condition", "--labels-key", "cell_type"]
TOTALS = ["--total-counts-key", "total_counts"]
SIMPLE = ["--methods", "no_change", "mean_shift"]
SMALL = ["--n-top-genes", "50", "--min-cells", "20"]


@pytest.fixture(scope="module")
def adata():
    return datasets.simulate(300, 80, n_labels=3, seed=2)


@pytest.fixture(scope="module")
def file(adata, tmp_path_factory):
    """Return a file of simulated cells."""
    path = tmp_path_factory.mktemp("data") / "cells.h5ad"
    adata.write_h5ad(path)
    return path


def strict(text):
    """Parse JSON as the standard has it, without NaN."""

    def refuse(name):
        raise ValueError(name)

    return json.loads(text, parse_constant=refuse)


def test_benchmark_equals_python(run, file, adata):
    options = [*SETUP, *TOTALS, *SIMPLE, *SMALL, "-o", "new/results"]
    code, out, err = run("benchmark", file, *options)
    assert (code, out) == (0, "")
    holdouts = [Holdout(f"type_{k}", "stimulated", "control") for k in range(3)]
    expected = benchmark(
        adata, ["no_change", "mean_shift"], holdouts, keys=KEYS, n_top_genes=50, progress=False
    )
    folder = Path("new/results")
    results = Results.load(folder)
    pd.testing.assert_frame_equal(results.table, expected.table, check_exact=True)
    assert f"{expected!r}\n" in err
    assert err.endswith("next: trvae-sc report new/results -o report.html\n")
    command = shlex.join(["trvae-sc", "benchmark", str(file), *options])
    assert results.run["command"] == command  # that of the first time, here and below
    ours = {"command": command, "started": results.run["started"]}
    told = {**expected.to_json(), "run": {**expected.run, **ours}}
    assert strict(run("benchmark", file, *options, "--json")[1]) == {"out": str(folder), **told}
    table = pd.read_csv(folder / "table.csv")
    np.testing.assert_allclose(table["value"], expected.table["value"], rtol=1e-12)
    assert table.columns.tolist() == expected.table.columns.tolist()
    found = strict((folder / "summary.json").read_text())
    assert found == told
    assert found["n_records"] == 9
    row = next(
        r
        for r in found["summary"]
        if (r["metric"], r["genes"], r["method"]) == ("effect_r2", "all", "mean_shift")
    )
    part = expected.table.query("metric == 'effect_r2' and genes == 'all'")
    values = part[part["method"] == "mean_shift"]["value"]
    assert row["mean"] == pytest.approx(values.mean(), abs=1e-9)
    assert row["sd_tasks"] == pytest.approx(values.std(), abs=1e-9)
    assert (row["rank"], row["sd_seeds"]) == (1 if values.mean() > 0 else 2, None)  # 0: no change


def test_fewer_cells_are_drawn_from_every_group_in_order(run, file, adata):
    few = subsample(adata, KEYS, 20)
    sizes = few.obs.groupby(["cell_type", "condition"], observed=True).size()
    all_sizes = adata.obs.groupby(["cell_type", "condition"], observed=True).size()
    assert (sizes == np.minimum(all_sizes, 20)).all()
    assert sizes.max() == 20 < all_sizes.max()
    places = adata.obs_names.get_indexer(few.obs_names)
    assert (np.diff(places) > 0).all()
    assert not few.is_view
    again, other = subsample(adata, KEYS, 20), subsample(adata, KEYS, 20, seed=1)
    assert again.obs_names.equals(few.obs_names)
    assert not other.obs_names.equals(few.obs_names)
    assert subsample(adata, KEYS, 10_000).obs_names.equals(adata.obs_names)
    small = ["--max-cells", "20", "--n-top-genes", "50", "--min-cells", "20"]
    code, _, _ = run("benchmark", file, *SETUP, *TOTALS, *SIMPLE, *small, "-o", "few")
    assert code == 0
    assert json.loads(Path("few/run.json").read_text())["n_obs"] == few.n_obs
    code, _, err = run("benchmark", file, *SETUP, *SIMPLE, "--max-cells", "0", "-o", "none")
    assert (code, err) == (2, "trvae-sc: --max-cells is 0; at least 1 is needed.\n")


def test_a_second_call_goes_on(run, file):
    options = [file, *SETUP, *TOTALS, "--json", *SMALL, "-o", "results"]
    one = ["--holdout", "type_1:stimulated"]
    assert run("benchmark", *options, *one, "--methods", "no_change")[0] == 0
    fits = Path("results/fits")
    kept = {path: path.stat().st_mtime_ns for path in fits.iterdir()}
    assert len(kept) == 2
    code, out, err = run("benchmark", *options, *SIMPLE)
    assert code == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(list(fits.iterdir())) == 9
    assert "9/9" in err
    assert run("benchmark", *options, *SIMPLE)[:2] == (0, out)
    code, out, err = run("benchmark", *options[:-4], "--n-top-genes", "40", "-o", "results")
    assert code == 2
    assert "differs in ['n_top_genes']" in err
    assert out == ""


def test_a_call_that_ended_at_its_start_goes_on(run, file, monkeypatch):
    """Of which nothing is there but a folder: of a full disk, and of a kill."""
    arguments = ["benchmark", file, *SETUP, *SMALL, "--methods", "no_change", "-o", "results"]

    def fail(path, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("trvae_sc.evaluation._store.write_text", fail)
        assert run(*arguments)[0] == 1
    Path("results/.trvae_sc-host-1-x").mkdir(parents=True)
    assert run(*arguments)[0] == 0
    Path("mine").mkdir()
    Path("mine/mine.txt").write_text("mine")
    code, _, err = run(*arguments[:-1], "mine")
    assert (code, "is a folder, but no folder of results" in err) == (2, True)


def test_hold_outs_of_several_conditions_start_from_the_control(run, tmp_path, make_adata):
    adata = make_adata(n_cells=180)
    adata.obs["condition"] = np.array(["control", "a", "b"])[np.arange(180) % 3]
    adata.obs["cell_type"] = np.array(["B", "NK", "T"])[np.arange(180) // 3 % 3]
    adata.write_h5ad(tmp_path / "file.h5ad")
    keys = ["--condition-key", "condition", "--labels-key", "cell_type"]
    options = ["--methods", "mean_shift", "--seeds", "1", "--n-top-genes", "0", "-o", "out"]
    code, _, err = run("benchmark", "file.h5ad", *keys, "--holdout", "NK:b", *options)
    assert code == 0, err
    assert set(Results.load("out").table["source"]) == {"control"}


def test_list_prints_the_holdouts_and_runs_nothing(run, file):
    everything = ["benchmark", file, *SETUP, *SMALL, "-o", "results", "--list"]
    expected = [f"type_{k}:stimulated" for k in range(3)]
    assert run(*everything)[:2] == (0, "".join(f"{name}\n" for name in expected))
    found = json.loads(run(*everything, "--json")[1])
    ends = {"source": "control", "target": "stimulated"}
    assert found == [{"holdout": n, "label": n.partition(":")[0], **ends} for n in expected]
    two = ["--holdout", expected[1], "--holdout", expected[2]]
    for given in (two, ["--holdout", *expected[1:]], ["--holdouts", *expected[1:]]):
        assert run(*everything, *given)[1].split() == expected[1:]
    code, out, err = run(*everything, "--holdout", "B:stimulated")
    assert (code, out) == (2, "")
    assert "matches no cell" in err
    assert not Path("results").exists()


def test_a_list_goes_where_letters_of_names_are_not_known(adata, tmp_path, monkeypatch):
    """On Windows one that was sent to a file ended in "This is a bug of trvae_sc"."""
    renamed = adata.copy()
    renamed.obs["condition"] = renamed.obs["condition"].astype(str).replace("stimulated", "IFN-β")
    renamed.write_h5ad(tmp_path / "cells.h5ad")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "cp1252"))
    assert main(["benchmark", str(tmp_path / "cells.h5ad"), *SETUP, *SMALL, "--list"]) == 0
    sys.stdout.flush()
    assert sys.stdout.buffer.getvalue().split()[0] == rb"type_0:IFN-\u03b2"


def test_a_list_needs_no_folder_and_results_do(run, file):
    everything = ["benchmark", file, *SETUP, *SMALL]
    assert run(*everything, "--list")[:2] == run(*everything, "-o", "results", "--list")[:2]
    code, out, err = run(*everything)
    assert (code, out) == (2, "")
    assert "Name a folder: --out, or use --list." in err


def test_max_epochs_is_for_methods_that_train_and_part_of_the_run(run, file):
    options = ["benchmark", file, *SETUP, *SMALL, "--seeds", "1", "-o", "results"]
    options += ["--holdout", "type_1:stimulated", "--methods", "mean_shift", "cvae"]
    code, out, err = run(*options, "--max-epochs", "0")
    assert (code, out) == (2, "")
    assert "--max-epochs is 0; at least 1 is needed" in err
    assert run(*options, "--max-epochs", "2")[0] == 0
    results = Results.load("results")
    history = {r["method"]: r["history"] for r in results.records}
    assert history["mean_shift"] is None
    assert {len(values) for values in history["cvae"].values()} == {2}
    assert results.run["max_epochs"] == 2
    for other in ([], ["--max-epochs", "3"]):
        code, _, err = run(*options, *other)
        assert code == 2
        assert "differs in ['max_epochs']" in err


def test_other_columns_directions_and_values(run, adata):
    cells = adata.copy()
    cells.obs["donor"] = np.array(["d0", "d1"])[np.arange(cells.n_obs) % 2]
    cells.layers["logs"] = cells.X.log1p()
    cells.write_h5ad("cells.h5ad")
    common = ["cells.h5ad", *SETUP, *SIMPLE, "--min-cells", "20", "--n-top-genes", "0"]
    options = ["--by", "donor", "--source", "stimulated", "-o", "donors"]
    assert run("benchmark", *common, *options)[0] == 0
    records = Results.load("donors").records
    assert {r["holdout"]["label"] for r in records} == {"d0", "d1"}
    assert {(r["holdout"]["source"], r["holdout"]["target"]) for r in records} == {
        ("stimulated", "control")
    }
    assert {r["holdout"]["key"] for r in records} == {"donor"}
    assert {r["n_genes"] for r in records} == {80}

    options = ["--layer", "logs", "--gene-likelihood", "normal", "-o", "logs"]
    assert run("benchmark", *common, *options)[0] == 0
    results = Results.load("logs")
    assert results.run["keys"]["is_count"] is False
    assert results.run["keys"]["layer"] == "logs"
    x = cells.layers["logs"].toarray()
    label = (cells.obs["cell_type"] == "type_0").to_numpy()
    stimulated = (cells.obs["condition"] == "stimulated").to_numpy()
    change = x[label & stimulated].mean(0) - x[label & ~stimulated].mean(0)
    record = next(r for r in results.records if r["method"] == "mean_shift")
    genes = record["genes"]["delta"]
    np.testing.assert_allclose(
        genes["real_change"], change[cells.var_names.get_indexer(genes["gene"])], atol=1e-4
    )


@pytest.fixture(scope="module")
def results(adata, tmp_path_factory):
    """Return a folder with results of simple methods and of a model trained for two epochs."""
    folder = tmp_path_factory.mktemp("results")
    quick = {"max_epochs": 2, "accelerator": "cpu", "enable_model_summary": False}

    def trvae(train, source, *, target, keys, seed):
        return baselines.trvae(
            train, source, target=target, keys=keys, seed=seed, train_kwargs=quick, n_hidden=(16, 8)
        )

    methods = {**{name: baselines.METHODS[name] for name in SIMPLE[1:]}, "trvae": trvae}
    holdouts = [Holdout(f"type_{k}", "stimulated", "control") for k in range(2)]
    benchmark(
        adata,
        methods,
        holdouts,
        keys=KEYS,
        seeds=1,
        n_top_genes=50,
        folder=folder,
        progress=False,
    )
    return folder


def test_report_of_results(run, results):
    code, out, err = run("report", results, "-o", "new/report.html", "--json")
    assert code == 0
    assert err.endswith("Wrote new/report.html\n")
    record = strict(out)
    assert record["out"] == str(Path("new/report.html"))
    table = Results.load(results).task_means().query("metric == 'effect_r2' and genes == 'top100'")
    table = table[table["output"].isin(["delta", "ceiling"])]
    for row, label in zip(record["verdicts"], ("type_0", "type_1"), strict=True):
        means = table[table["label"] == label].set_index("method")["value"]
        assert (row["label"], row["source"], row["target"]) == (label, "control", "stimulated")
        assert row["model"] == pytest.approx(means["trvae"], abs=1e-9)
        assert row["best simple"] == pytest.approx(means["mean_shift"], abs=1e-9)
        assert row["ceiling"] == pytest.approx(means["ceiling"], abs=1e-9)
    page = Path("new/report.html").read_text("utf-8")
    for row in record["verdicts"]:
        assert row["label"] in page
        assert f"</b>: {row['reason']}</td>" in page
        assert f">{row['advice']}</b>" in page
    assert "Training (type_0 hidden, seed 0)" in page
    assert [p.name for p in Path("new").iterdir()] == ["report.html"]


def test_report_is_replaced_if_told_to(run, results):
    Path("report.html").write_text("mine")
    code, _, err = run("report", results, "-o", "report.txt")
    assert (code, err.count(".html")) == (2, 1)
    code, out, err = run("report", results, "-o", "report.html")
    assert (code, out) == (2, "")
    assert "report.html exists. Pass --force to replace it." in err
    assert Path("report.html").read_text() == "mine"
    assert run("report", results, "-o", "report.html", "--force")[0] == 0
    assert "<title>How far to trust" in Path("report.html").read_text("utf-8")


def test_report_lists_predictions(run, results, adata):
    """Of cells whose target condition training saw, the note says so."""
    predicted = baselines.mean_shift(adata, adata[:7].copy(), target="stimulated", keys=KEYS)
    predicted.uns["trvae_sc"]["notes"] = ["Training saw the target condition of type_0"]
    predicted.write_h5ad("predicted.h5ad")
    code, _, _ = run("report", results, "--predictions", "predicted.h5ad", "-o", "report.html")
    assert code == 0
    page = Path("report.html").read_text("utf-8")
    assert "<p>Prediction 1: 7 cells: mean_shift, stimulated.</p>" in page
    assert '<p class="bad">Training saw the target condition of type_0</p>' in page


def test_report_of_another_method(run, results):
    options = ["report", results, "--method", "mean_shift", "--json", "-o", "report.html"]
    code, out, _ = run(*options)
    assert code == 0
    assert {row["advice"] for row in strict(out)["verdicts"]} <= {
        "use the model",
        "do not trust",
        "use no_change",
        "too close to call",
    }
    code, out, err = run("report", results, "--method", "best", "-o", "other.html")
    assert (code, out) == (2, "")
    assert "No method 'best' in the results" in err
    assert not Path("other.html").exists()


def test_report_with_pathways_and_what_to_measure_next(run, results, adata, request):
    """One label lacks stimulated cells; of the 80 genes two sets are known."""
    rows = [
        "up\tx\t" + "\t".join(adata.var_names[:30]),
        "rest\tx\t" + "\t".join(adata.var_names[30:]),
    ]
    Path("sets.gmt").write_text("\n".join(rows) + "\n", "utf-8")
    cells = datasets.simulate(300, 40, n_labels=5, seed=2)
    missing = (cells.obs["cell_type"] == "type_1") & (cells.obs["condition"] == "stimulated")
    cells[~missing].copy().write_h5ad("some.h5ad")
    quick = ["--n-top-genes", "0", "--max-epochs", "1", "--accelerator", "cpu", "-o", "model"]
    assert run("train", "some.h5ad", *SETUP, *TOTALS, *quick)[0] == 0
    code, _, err = run("report", results, "--model", "model", "-o", "next.html")
    assert code == 0, err
    page = Path("next.html").read_text("utf-8")
    row = re.search(r'id="What to measure next".*?<tbody>\s*<tr>(.*?)</tr>', page, flags=re.S)[1]
    assert re.findall(r"<td[^>]*>(.*?)</td>", row)[:3] == ["1", "type_1", "stimulated"]
    code, _, err = run("report", results, "--gmt", "none.gmt", "-o", "pathways.html")
    assert code == 2
    assert "No file none.gmt" in err
    request.getfixturevalue("decoupler")
    assert run("report", results, "--gmt", "sets.gmt", "-o", "pathways.html")[0] == 0
    page = Path("pathways.html").read_text("utf-8")
    table = page.split('id="pathway-table"')[1].split("</table>")[0]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in table.split("<tr>")[2:]]
    assert sorted((row[0], row[3]) for row in rows) == [
        (label, name) for label in ("type_0", "type_1") for name in ("rest", "up")
    ]


def test_report_says_what_pathways_need(run, results, monkeypatch):
    monkeypatch.setitem(sys.modules, "decoupler", None)
    genes = [f"gene_{i}" for i in range(40)]
    Path("sets.gmt").write_text("up\tx\t" + "\t".join(genes) + "\n", "utf-8")
    code, _, err = run("report", results, "--gmt", "sets.gmt", "-o", "report.html")
    assert code == 2
    assert "pathways needs decoupler: pip install" in err
    assert not Path("report.html").exists()


BAD = {
    "no labels": (
        ["--condition-key", "condition"],
        "benchmark needs --labels-key. For cells of one type",
    ),
    "unknown column": (["--condition-key", "state", *SETUP[2:]], "state"),
    "unknown method": (
        [*SETUP, "--methods", "magic"],
        "--methods: unknown method 'magic'; there are no_change, mean_shift,",
    ),
    "unknown hold-out": ([*SETUP, "--holdout", "type_9:stimulated"], "matches no cell"),
    "hold-out without target": ([*SETUP, "--holdout", "type_1"], "not of the form 'label:target'"),
    "unknown source": ([*SETUP, "--source", "ctrl"], "Unknown source 'ctrl'"),
    "source is target": (
        [*SETUP, "--source", "stimulated", "--holdout", "type_1:stimulated"],
        "'stimulated' as source and as target",
    ),
    "too few cells": ([*SETUP, "--min-cells", "9999"], "No combination has 9999 cells"),
    "unknown column to hold out": (
        [*SETUP, "--by", "donor"],
        "No column 'donor' in adata.obs; there are",
    ),
    "likelihood": ([*SETUP, "--gene-likelihood", "zinb"], "nb (counts) or normal"),
    "unknown layer": ([*SETUP, "--layer", "raw"], "raw"),
    "unknown option": ([*SETUP, "--magic"], "unrecognized arguments"),
    "unknown backend": ([*SETUP, "--backend", "slurm"], "invalid choice: 'slurm'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_of_benchmark(case, run, file):
    options, message = BAD[case]
    simple = [] if "--methods" in options else SIMPLE
    code, out, err = run("benchmark", file, *options, *simple, "-o", "results")
    assert code == 2
    assert out == ""
    assert message in " ".join(err.split())
    assert "Traceback" not in err
    assert not list(Path().rglob("fits/*"))


def test_values_that_are_not_counts_are_refused(run, adata):
    logs = adata.copy()
    logs.X = logs.X.log1p()
    logs.write_h5ad("logs.h5ad")
    code, _, err = run("benchmark", "logs.h5ad", *SETUP, *SIMPLE, "-o", "results")
    assert code == 2
    assert "fractional" in err
    logs.var["highly_variable"] = True
    logs.write_h5ad("logs.h5ad")
    normal = ["--gene-likelihood", "normal"]
    code, _, err = run("benchmark", "logs.h5ad", *SETUP, *SIMPLE, *normal, "-o", "results")
    assert code == 2
    assert "highly_variable" in err
    assert not Path("results").exists()


def test_bad_input_of_report(run, file, results):
    code, _, err = run("report", "nowhere", "-o", "report.html")
    assert code == 2
    assert "run.json is missing" in err
    code, _, err = run("report", results, "--predictions", file, "-o", "report.html")
    assert code == 2
    assert "Not a prediction" in err
    run("benchmark", file, *SETUP, *SIMPLE, *SMALL, "-o", "simple")
    code, _, err = run("report", "simple", "-o", "report.html")
    assert code == 0, err
    assert "predicted by mean_shift" in Path("report.html").read_text()
    code, _, err = run("benchmark", file, *SETUP, "-o", file)
    assert code == 2
    assert "is a file, and cannot be replaced by a folder of results." in err
    assert anndata.read_h5ad(file).n_obs == 300


def test_help_lists_the_commands(run):
    code, out, _ = run("--help")
    assert code == 0
    assert "benchmark" in out
    assert "report" in out
    for command, options in {
        "benchmark": "--holdout --source --by --min-cells --methods --seeds --max-epochs --n-jobs --list --backend --json",
        "report": "--predictions --method --gmt --model --force --json",
    }.items():
        code, out, _ = run(command, "--help")
        assert code == 0
        assert set(options.split()) <= set(out.replace("[", " ").split())
