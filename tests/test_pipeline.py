"""The workflow of tutorials/pipeline: in parallel, resumed after a kill; and the same in plain shell."""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

import trvae_sc
from trvae_sc import baselines, datasets
from trvae_sc.evaluation import Holdout, Keys, Results, benchmark

ROOT = Path(trvae_sc.__file__).resolve().parents[1]
PIPELINE = Path(__file__).resolve().parents[1] / "tutorials" / "pipeline"
LABELS = ["-type_0", "type_1"]  # one looks like an option; type_2 has too few cells
NAMES = [f"{label}-stimulated" for label in LABELS]
CONFIG = ["methods=[mean_shift, trvae]", "seeds=1", "n_top_genes=50", "max_epochs=2"]
SHELL = {
    "METHODS": "mean_shift trvae",
    "SEEDS": "1",
    "N_TOP_GENES": "50",
    "MAX_EPOCHS": "2",
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt", reason="the workflow is for POSIX shells"),
]
needs_snakemake = pytest.mark.skipif(
    importlib.util.find_spec("snakemake") is None, reason="snakemake is not installed"
)


@pytest.fixture(scope="module")
def adata():
    adata = datasets.simulate(240, 60, n_labels=3, seed=2)
    adata.obs["cell_type"] = adata.obs["cell_type"].cat.rename_categories({"type_0": "-type_0"})
    return adata


@pytest.fixture(scope="module")
def folder(adata, tmp_path_factory, python):
    """Return a folder with cells, and a trvae-sc that is the one under test."""
    folder = tmp_path_factory.mktemp("pipe line")  # paths with spaces work
    adata.write_h5ad(folder / "cells.h5ad")
    command = folder / "bin" / "trvae-sc"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{python}" -m trvae_sc "$@"\n')
    command.chmod(0o755)
    return folder


def environment(folder):
    """Return the environment in which that trvae-sc is found."""
    path = os.pathsep.join([str(folder / "bin"), os.environ["PATH"]])
    home = {"HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache")}
    return {**os.environ, **home, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def snakemake(folder, *arguments):
    """Start the workflow in a group of processes of its own, its output in a file."""
    command = [sys.executable, "-m", "snakemake", "-s", PIPELINE / "Snakefile", *arguments]
    with (folder / "log.txt").open("w") as log:
        return subprocess.Popen(
            [*command, "--cores", "2", "--config", *CONFIG],
            cwd=folder,
            env=environment(folder),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def finish(folder, *arguments):
    """Run the workflow to its end, and return what it said."""
    process = snakemake(folder, *arguments)
    try:
        code = process.wait(timeout=600)
    finally:
        kill(process)
    said = (folder / "log.txt").read_text()
    assert code == 0, said
    return said


def kill(process):
    """Kill a workflow with everything that it started, at once or once it is seen to be dead."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def killed(folder):
    """Return the fits that were finished when the workflow was killed, with their times."""
    process = snakemake(folder)
    fits = folder / "out" / "benchmark" / "fits"
    try:
        end = time.monotonic() + 300
        while not list(fits.glob("*mean_shift*.json")):
            assert process.poll() is None, (folder / "log.txt").read_text()
            assert time.monotonic() < end
            time.sleep(0.1)
    finally:
        kill(process)
    assert not (folder / "out" / "pipeline.json").exists()
    return {path: path.stat().st_mtime_ns for path in fits.glob("*.json")}


@pytest.fixture(scope="module")
def out(folder, killed):
    """Return what the workflow wrote once it was resumed."""
    finish(folder, "--unlock")
    finish(folder)
    return folder / "out"


def check_prediction(path, adata, label):
    predicted = anndata.read_h5ad(path)
    source = adata.obs.query("cell_type == @label and condition == 'control'")
    assert sorted(predicted.obs_names) == sorted(source.index + "_stimulated")
    assert set(predicted.obs["cell_type"]) == {label}
    assert set(predicted.obs["condition"]) == {"stimulated"}
    assert set(predicted.obs["source_condition"]) == {"control"}
    assert predicted.n_vars == 50
    return predicted


@needs_snakemake
def test_a_killed_workflow_goes_on_to_the_same_table(out, killed, adata):
    assert {path: path.stat().st_mtime_ns for path in killed} == killed
    trvae = partial(baselines.trvae, train_kwargs={"max_epochs": 2, "enable_progress_bar": False})
    expected = benchmark(
        adata,
        {"mean_shift": baselines.mean_shift, "trvae": trvae},
        [Holdout(label, "stimulated", "control") for label in LABELS],
        keys=Keys("condition", "cell_type"),
        seeds=1,
        n_top_genes=50,
        progress=False,
    ).table
    found = Results.load(out / "benchmark").table
    pd.testing.assert_frame_equal(found, expected, rtol=1e-4, atol=1e-5)
    table = pd.read_csv(out / "table.csv")
    np.testing.assert_allclose(table["value"], found["value"], rtol=1e-12)


@needs_snakemake
def test_predictions_report_and_json(out, adata):
    assert sorted(p.name for p in (out / "predictions").glob("*.h5ad")) == [
        f"{name}.h5ad" for name in NAMES
    ]
    for name, label in zip(NAMES, LABELS, strict=True):
        check_prediction(out / "predictions" / f"{name}.h5ad", adata, label)
    listed = json.loads((out / "holdouts.json").read_text())
    assert [one["holdout"] for one in listed] == [f"{label}:stimulated" for label in LABELS]
    found = json.loads((out / "pipeline.json").read_text())
    results = Results.load(out / "benchmark")
    assert found["scores"] == json.loads(json.dumps(results.to_json()))["summary"]
    assert list(found["predictions"]) == list(found["models"]) == NAMES
    for name, label in zip(NAMES, LABELS, strict=True):
        assert found["models"][name]["holdouts"] == [f"{label}:stimulated"]
        assert found["predictions"][name]["target"] == "stimulated"
    means = results.task_means().query("metric == 'effect_r2' and genes == 'top100'")
    for row in found["verdicts"]:
        ours = means.query("method == 'trvae' and output == 'delta' and label == @row['label']")
        assert row["model"] == pytest.approx(ours["value"].item(), abs=1e-9)
    assert [row["label"] for row in found["verdicts"]] == LABELS
    page = (out / "report.html").read_text()
    assert all(text in page for text in (*LABELS, "mean_shift"))
    assert not list((out / "checkpoints").glob("*"))
    assert not list(out.rglob("*.part"))


@needs_snakemake
def test_a_second_run_does_nothing(folder, out):
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert "Nothing to be done" in finish(folder)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def run_sh(folder, *arguments):
    return subprocess.run(
        ["bash", PIPELINE / "run.sh", *arguments],
        cwd=folder,
        env={**environment(folder), **SHELL},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


KEYS = ["condition", "cell_type"]


@needs_snakemake
def test_plain_shell_predicts_and_scores_the_same(folder, out, adata):
    done = run_sh(folder, "cells.h5ad", "shell", *KEYS, "-type_0:stimulated")
    assert done.returncode == 0, done.stderr
    name = NAMES[0]
    ours, theirs = (
        check_prediction(parent / "predictions" / f"{name}.h5ad", adata, "-type_0")
        for parent in (folder / "shell", out)
    )
    assert (ours.X != theirs.X).nnz == 0
    found = json.loads((folder / "shell" / "pipeline.json").read_text())
    results = Results.load(out / "benchmark").table.query("label == '-type_0'")
    shell = Results.load(folder / "shell" / "benchmark")
    pd.testing.assert_frame_equal(shell.table, results.reset_index(drop=True), rtol=1e-4, atol=1e-5)
    assert found["scores"] == json.loads(json.dumps(shell.to_json()))["summary"]
    assert (folder / "shell" / "report.html").stat().st_size > 10_000


def test_colons_in_conditions_and_the_same_source_everywhere(folder):
    """Predictions of several conditions start from the control, as the benchmark does."""
    names = ("control", "drug: 6 h", "other:1")
    adata = datasets.simulate(150, 60, n_labels=2, conditions=names)
    adata.write_h5ad(folder / "three.h5ad")
    done = run_sh(folder, "three.h5ad", "three", *KEYS, "type_0:drug: 6 h")
    assert done.returncode == 0, done.stderr
    (record,) = json.loads((folder / "three" / "pipeline.json").read_text())["predictions"].values()
    assert record["target"] == "drug: 6 h"
    (path,) = (folder / "three" / "predictions").glob("*.h5ad")
    obs = anndata.read_h5ad(path).obs
    assert set(obs["condition"]) == {"drug: 6 h"}
    assert set(obs["source_condition"]) == {"control"}


def test_plain_shell_ends_with_the_code_of_bad_input(folder):
    done = run_sh(folder, "missing.h5ad", "bad", *KEYS)
    assert done.returncode == 2
    assert "trvae-sc: No file missing.h5ad." in done.stderr
    assert "run.sh: exit code 2 from: trvae-sc benchmark missing.h5ad" in done.stderr
    assert not list((folder / "bad").rglob("*.json*"))
    assert run_sh(folder, "cells.h5ad").returncode == 2
