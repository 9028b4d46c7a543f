"""The command line: results equal to Python's, one line and an exit code where it cannot work."""

import argparse
import errno
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

import trvae_sc
from trvae_sc import PRESETS, TRVAE, baselines, demo, evaluation, family, names
from trvae_sc.checks import TOTAL_COLUMN
from trvae_sc.cli import in_words_of_options
from trvae_sc.hints import say_totals
from trvae_sc.model._write import PieceWriter
from trvae_sc.model_file import read_model
from trvae_sc.training import BestWeights, TrainingPlan

pytestmark = pytest.mark.filterwarnings("ignore:Writing zarr v2")

SETUP = ["--condition-key", "condition", "--labels-key", "cell_type"]
TOTALS = ["--total-counts-key", "n_counts"]
QUICK = ["--n-top-genes", "0", "--max-epochs", "2", "--accelerator", "cpu"]
HOLDOUT = ["--holdout", "NK:stimulated"]


@pytest.fixture(scope="module")
def folder(fit, make_adata, tmp_path_factory):
    """Return a folder with cells and a model of them that never saw NK cells stimulated."""
    path = tmp_path_factory.mktemp("cli")
    adata = make_adata()
    adata.write_h5ad(path / "cells.h5ad")
    hidden = (adata.obs["cell_type"] == "NK") & (adata.obs["condition"] == "stimulated")
    fit(adata[~hidden].copy()).save(path / "model")
    return path


def write(adata, name="cells.h5ad"):
    path = Path(name)
    getattr(adata, f"write_{path.suffix[1:]}")(path)
    return path


def read(path):
    return getattr(anndata, f"read_{path.suffix[1:]}")(path)


def tree():
    """Return all files and folders here, with the size of files."""
    paths = sorted(Path().rglob("*"))
    return {str(p): p.stat().st_size if p.is_file() else None for p in paths}


def assert_same(a, b):
    assert a.obs_names.tolist() == b.obs_names.tolist()
    assert a.var_names.tolist() == b.var_names.tolist()
    assert abs(a.X - b.X).max() == 0
    pd.testing.assert_frame_equal(a.var, b.var)


def weights(path):
    return TRVAE.load(path, adata=False).module.state_dict()


def assert_same_weights(a, b):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=0)


# -- train and predict ------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_train_and_predict_equal_python(run, make_adata, suffix):
    adata = make_adata()
    file = write(adata, f"cells.{suffix}")
    train = ["train", file, *SETUP, *TOTALS, *QUICK, *HOLDOUT, "-o", "new/model", "--json"]
    code, out, err = run(*train)
    assert code == 0
    assert "Wrote the model of 100 cells and 30 genes to new/model/" in err
    record = json.loads(out)
    assert record == {
        "model": str(Path("new/model")),
        "file": str(file),
        "holdouts": ["NK:stimulated"],
        "n_cells": 100,
        "n_genes": 30,
        "total_counts_key": "n_counts",
        "epochs": 2,
        "planned": 2,
        "default": 300,  # of one step each: 300 steps at least
        "interrupted": False,
    }
    attributes = read_model(Path("new/model"), None).attributes
    assert {"model": record["model"], **attributes["trained_on_"], **attributes["training_"]} == (
        record
    )
    predicted = Path(f"new/folder/predicted.{suffix}")
    predict = ["predict", "new/model", file, "--target", "stimulated", "--labels", "NK"]
    code, out, err = run(*predict, "-o", predicted, "--json")
    assert code == 0
    assert f"Wrote 20 cells predicted under stimulated to {predicted}" in err
    assert json.loads(out) == {"out": str(predicted), "n_cells": 20, "target": "stimulated"}
    assert "Training saw" not in err
    assert err.count("Note: ") == 1  # two labels were seen under both conditions: few to learn from

    hidden = (adata.obs["cell_type"] == "NK") & (adata.obs["condition"] == "stimulated")
    train = adata[~hidden].copy()
    TRVAE.setup_anndata(train, "condition", labels_key="cell_type", total_counts_key="n_counts")
    model = TRVAE(train, seed=0)
    model.train(2, accelerator="cpu")
    expected = model.predict(adata, target="stimulated", labels="NK")
    assert_same(read(predicted), expected)
    assert_same_weights(weights("new/model"), model.module.state_dict())
    assert sorted(p.name for p in Path("new").iterdir()) == ["folder", "model"]


def test_a_table_by_replicates_is_that_of_python(run, make_adata):
    adata = make_adata()
    file = write(adata, "cells.h5ad")
    train = ["train", file, *SETUP, *TOTALS, *QUICK, "-o", "model"]
    assert "No column 'donor'" in run(*train, "--replicate-key", "donor")[2]
    code, _, err = run(*train, "--replicate-key", "sex", "--model", "cgan")
    assert (code, "--replicate-key: only with --model trvae" in err) == (2, True)
    code, _, err = run(*train, "--replicate-key", "sex")
    assert code == 0, err
    predict = ["predict", "model", file, "--target", "stimulated", "-o", "predicted.h5ad"]
    code, _, err = run(*predict, "--by", "sex")
    assert (code, "--by is for the table" in err) == (2, True)
    predict += ["--table", "genes.csv"]
    code, _, err = run(*predict, "--by", "site")
    assert (code, "replicate_key='sex'" in err) == (2, True)
    assert not Path("predicted.h5ad").exists()
    assert run(*predict, "--by", "sex")[0] == 0
    columns = {"labels_key": "cell_type", "total_counts_key": "n_counts", "replicate_key": "sex"}
    TRVAE.setup_anndata(adata, "condition", **columns)
    model = TRVAE(adata, seed=0)
    model.train(2, accelerator="cpu")
    expected = model.effects(target="stimulated", by="sex")
    assert expected["replicate"].nunique() == 2
    pd.testing.assert_frame_equal(pd.read_csv("genes.csv"), expected, check_dtype=False, rtol=1e-4)


def test_the_table_of_changes_is_that_of_python(run, make_adata):
    file = write(make_adata(), "cells.h5ad")
    assert run("train", file, *SETUP, *TOTALS, *QUICK, *HOLDOUT, "-o", "model")[0] == 0
    options = ["--target", "stimulated", "--source", "control", "--labels", "NK", "B"]
    arguments = ["predict", "model", file, *options, "-o", "predicted.h5ad"]
    code, _, err = run(*arguments, "--table", "genes.txt")
    assert (code, "is no .csv file" in err) == (2, True)
    assert run(*arguments, "--table", "genes.csv")[0] == 0
    model = TRVAE.load("model", adata=False)
    expected = model.effects(target="stimulated", source="control", labels=["NK", "B"])
    pd.testing.assert_frame_equal(pd.read_csv("genes.csv"), expected)
    Path("predicted.h5ad").unlink()
    code, _, err = run(*arguments, "--table", "genes.csv")
    assert (code, "--force" in err) == (2, True)
    assert not Path("predicted.h5ad").exists()


def test_options_of_predict_are_those_of_python(run, folder):
    model = TRVAE.load(folder / "model", adata=False)
    adata = read(folder / "cells.h5ad")
    options = ["--source", "stimulated", "--labels", "B", "T", "--output", "sample"]
    options += ["--n-samples", "2", "--seed", "3", "--accelerator", "cpu", "-o", "p.h5ad"]
    code, _, err = run(
        "predict", folder / "model", folder / "cells.h5ad", "--target", "control", *options
    )
    assert code == 0
    assert "Note: Training saw the target condition of B, T" in err
    expected = model.predict(
        adata,
        target="control",
        source="stimulated",
        labels=["B", "T"],
        output="sample",
        n_samples=2,
        seed=3,
    )
    assert_same(read(Path("p.h5ad")), expected)


def test_held_out_cells_do_not_reach_the_model(run, make_adata):
    adata = make_adata()
    adata.obs["cell_type"] = adata.obs["cell_type"].cat.rename_categories({"NK": "NK:CD56"})
    hidden = (adata.obs["cell_type"] == "NK:CD56") & (adata.obs["condition"] == "stimulated")
    options = [*SETUP, *QUICK, "--n-top-genes", "12", "--holdout", "NK:CD56:stimulated"]
    options += ["--holdout", "T:control"]
    assert run("train", write(adata), *options, "-o", "model")[0] == 0
    n_cells = TRVAE.load("model", adata=False).n_cells
    assert n_cells.loc["NK:CD56"].tolist() == [20, 0]
    assert n_cells.loc["T"].tolist() == [0, 20]
    assert n_cells.loc["B"].tolist() == [20, 20]
    x = adata.X.toarray()
    x[hidden] = x[hidden, ::-1] * 7
    adata.X = x
    assert run("train", write(adata, "other.h5ad"), *options, "-o", "other")[0] == 0
    assert_same_weights(weights("model"), weights("other"))
    genes = [TRVAE.load(name, adata=False).get_var_names().tolist() for name in ("model", "other")]
    assert genes[0] == genes[1]
    assert 12 <= len(genes[0]) < 20  # scanpy keeps ties


def test_levels_that_are_numbers_are_named_as_text(run, make_adata):
    adata = make_adata()
    adata.obs["condition"] = (adata.obs["condition"] == "stimulated").astype(int)
    adata.obs["cell_type"] = adata.obs["cell_type"].cat.codes.astype(int)
    file = write(adata)
    assert run("train", file, *SETUP, *QUICK, "--holdout", "1:1", "-o", "model")[0] == 0
    model = TRVAE.load("model", adata=False)
    assert model.conditions == [0, 1]
    assert model.n_cells.loc[1].tolist() == [20, 0]
    options = ["--target", "1", "--source", "0", "--labels", "1"]
    assert run("predict", "model", file, *options, "-o", "p.h5ad")[0] == 0
    assert_same(read(Path("p.h5ad")), model.predict(adata, target=1, source=0, labels=1))


def test_totals_that_training_summed_are_summed_again(run, make_adata):
    """A column total_counts in the file, of other values, was used by predict but not by train."""
    adata = make_adata()
    options = ["--target", "stimulated", "--labels", "NK"]
    train = ["--max-epochs", "2", "--accelerator", "cpu", "--n-top-genes", "9"]
    assert run("train", write(adata), *SETUP, *train, "-o", "model")[0] == 0
    model = TRVAE.load("model", adata=False)
    assert model.registry["setup_args"]["total_counts_key"] == TOTAL_COLUMN
    assert run("predict", "model", "cells.h5ad", *options, "-o", "p.h5ad")[0] == 0
    named = adata.copy()
    named.obs["total_counts"] = 1e6
    assert run("predict", "model", write(named, "n.h5ad"), *options, "-o", "q.h5ad")[0] == 0
    p, q = read(Path("p.h5ad")), read(Path("q.h5ad"))
    assert_same(p, q)
    assert (q.obs["total_counts"] == 1e6).all()
    # the column of our own is taken where it is, and then the genes of the model suffice
    adata.obs[TOTAL_COLUMN] = np.asarray(adata.X.sum(1)).ravel()
    for name, genes in (("all.h5ad", adata.var_names), ("few.h5ad", model.get_var_names())):
        file = write(adata[:, genes].copy(), name)
        assert run("predict", "model", file, *options, "-o", "r.h5ad", "--force")[0] == 0
        assert_same(read(Path("r.h5ad")), p)


def test_cells_without_their_totals_need_all_genes(run, make_adata):
    adata = make_adata()
    train = ["--max-epochs", "2", "--accelerator", "cpu", "--n-top-genes", "9"]
    assert run("train", write(adata), *SETUP, *train, "-o", "model")[0] == 0
    genes = TRVAE.load("model", adata=False).get_var_names()
    file = write(adata[:, genes].copy(), "few.h5ad")
    before = tree()
    result = run("predict", "model", file, "--target", "stimulated", "-o", "p.h5ad")
    message = (
        f"more genes than its own {len(genes)}, which is all that adata has. Pass cells with all"
    )
    assert_refused(result, message, before)


def test_text_written_by_newer_versions_can_be_written_again(run, folder):
    """anndata 0.12 reads nullable text, as 0.13 writes names, but does not write it unasked."""
    adata = read(folder / "cells.h5ad")
    adata.obs["donor"] = pd.array(["d0", None] * 60, dtype="string")
    with anndata.settings.override(allow_write_nullable_strings=True):
        file = write(adata)
    for out in ("p.h5ad", "p.zarr"):
        code, _, err = run("predict", folder / "model", file, "--target", "stimulated", "-o", out)
        assert (code, err.count("trvae-sc:")) == (0, 0)
        assert read(Path(out)).obs["donor"].dropna().unique().tolist() == ["d0"]


# -- bad input of train -------------------------------------------------------------------------------


def with_value(value):
    def change(adata):
        x = adata.X.toarray()
        x[3, 4] = value
        adata.X = x

    return change


def with_levels(key, levels):
    def change(adata):
        adata.obs[key] = levels * (adata.n_obs // len(levels))

    return change


def log_values(adata):
    adata.X = np.log1p(adata.X.toarray())


def empty_cell(adata):
    x = adata.X.toarray()
    x[5] = 0
    adata.X = x


def nan_condition(adata):
    adata.obs["condition"] = adata.obs["condition"].mask(adata.obs_names == "cell_3")


def repeated_names(adata):
    adata.obs_names = ["cell_1", *adata.obs_names[1:]]


BAD_DATA = {
    "negative": (with_value(-1), "X holds negative values"),
    "fraction": (with_value(0.5), "X holds fractional values"),
    "nan": (with_value(np.nan), "X holds 1 NaN or infinite values"),
    "infinite": (with_value(np.inf), "X holds 1 NaN or infinite values"),
    "log": (log_values, "as log-normalised data do"),
    "empty cell": (empty_cell, "cells have no counts (rows 5)"),
    "one condition": (with_levels("condition", ["control"]), "has one level, ['control']"),
    "nan condition": (nan_condition, "adata.obs['condition'] is missing (NaN) in 1 cells"),
    "repeated names": (repeated_names, "adata.obs_names are not unique: 'cell_1'"),
    "text totals": (with_levels("n_counts", ["many"]), "adata.obs['n_counts'] is not numeric"),
    "low totals": (with_levels("n_counts", [1.0]), "are below the sum over the registered genes"),
}


@pytest.fixture
def no_training(monkeypatch):
    """Fail if a model is trained."""

    def train(*args, **kwargs):
        raise AssertionError("trained")

    monkeypatch.setattr(TRVAE, "train", train)


def assert_refused(result, message, before):
    """Check the exit code, the one line of the message, and that nothing was written."""
    code, out, err = result
    assert (code, out) == (2, "")
    *logged, line = err.splitlines()
    assert line.startswith("trvae-sc: ")
    assert message in line
    assert [text for text in logged if not text.startswith("No --total-counts-key")] == []
    assert tree() == before


@pytest.mark.usefixtures("no_training")
@pytest.mark.filterwarnings("ignore:Observation names are not unique")
@pytest.mark.parametrize("name", BAD_DATA)
def test_data_that_cannot_be_trained_on(run, make_adata, name):
    change, message = BAD_DATA[name]
    adata = make_adata()
    change(adata)
    file = write(adata)
    totals = TOTALS if "totals" in name else []
    before = tree()
    options = [*SETUP, *totals, *QUICK, "--n-top-genes", "9", *HOLDOUT, "-o", "new/model"]
    assert_refused(run("train", file, *options), message, before)


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--condition-key", "x"], "No column 'x' in adata.obs; there are ['condition', "),
        (["--labels-key", "x"], "No column 'x' in adata.obs"),
        (["--batch-key", "x"], "No column 'x' in adata.obs"),
        (["--total-counts-key", "x"], "No column 'x' in adata.obs"),
        (["--layer", "x"], "No layer 'x' in adata.layers; there are []"),
        (["--preset", "x"], "unknown preset 'x'; there are default, "),
        (["--holdout", "NK"], "Hold-out 'NK' is not of the form 'label:target'"),
        (["--holdout", "NK:x"], "Hold-out 'NK:x' matches no cell: labels are ['B', 'NK', 'T']"),
        (
            [a for label in ("B", "NK", "T") for a in ("--holdout", f"{label}:stimulated")],
            "has one level, ['control']",
        ),
        (
            [
                argument
                for label in ("B", "NK", "T")
                for condition in ("control", "stimulated")
                for argument in ("--holdout", f"{label}:{condition}")
            ],
            "The hold-outs cover every cell",
        ),
        (["--n-top-genes", "-1"], "--n-top-genes is -1"),
        (["--accelerator", "x"], "--accelerator x cannot be used"),
        (["--accelerator", "tpu"], "--accelerator tpu cannot be used"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_options_that_cannot_be_trained_with(run, folder, options, message):
    before = tree()
    result = run("train", folder / "cells.h5ad", *SETUP, *QUICK, *options, "-o", "new/model")
    assert_refused(result, message, before)


@pytest.mark.parametrize("option", ["--max-epochs", "--batch-size"])
def test_training_needs_an_epoch_and_a_cell_a_step(run, folder, option):
    before = tree()
    result = run("train", folder / "cells.h5ad", *SETUP, *QUICK, option, "0", "-o", "new/model")
    assert_refused(result, f"{option} is 0; at least 1 is needed", before)


@pytest.mark.usefixtures("no_training")
def test_hold_outs_need_labels(run, folder):
    before = tree()
    options = ["--condition-key", "condition", *HOLDOUT, "-o", "new/model"]
    result = run("train", folder / "cells.h5ad", *options)
    assert_refused(result, "--holdout needs --labels-key", before)


def half_h5ad(path, whole):
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])


def without_indices(path, whole):
    shutil.copy(whole, path)
    with h5py.File(path, "a") as file:
        del file["X/indices"]


def other_hdf5(path, whole):
    with h5py.File(path, "w") as file:
        file["numbers"] = [1, 2]


def of_another_anndata(path, whole):
    shutil.copy(whole, path)
    with h5py.File(path, "a") as file:
        file["obs/condition"].attrs["encoding-type"] = "categorical of tomorrow"


BAD_FILES = {
    "newer.h5ad": (of_another_anndata, "newer.h5ad cannot be read as h5ad (damaged"),
    "half.h5ad": (half_h5ad, "half.h5ad cannot be read as h5ad (damaged or incomplete?): "),
    "lacking.h5ad": (without_indices, "lacking.h5ad cannot be read as h5ad (damaged"),
    "other.h5ad": (other_hdf5, "other.h5ad cannot be read as h5ad (damaged"),
    "text.h5ad": (lambda path, _: path.write_text("x"), "text.h5ad cannot be read as h5ad (dama"),
    "folder.h5ad": (lambda path, _: path.mkdir(), "folder.h5ad cannot be read as h5ad (damaged"),
    "empty.zarr": (lambda path, _: path.mkdir(), "empty.zarr cannot be read as zarr (damaged"),
    "cells.csv": (lambda path, _: path.write_text("x"), "cells.csv is neither .h5ad nor .zarr"),
    "absent.h5ad": (lambda path, _: None, "No file absent.h5ad"),
}


@pytest.mark.usefixtures("no_training")
@pytest.mark.filterwarnings("ignore:Element '/numbers' was written without encoding metadata")
@pytest.mark.parametrize("name", BAD_FILES)
def test_files_that_cannot_be_read(run, folder, name):
    make, message = BAD_FILES[name]
    make(Path(name), folder / "cells.h5ad")
    before = tree()
    assert_refused(run("train", name, *SETUP, "-o", "new/model"), message, before)
    options = ["--target", "stimulated", "-o", "new/p.h5ad"]
    assert_refused(run("predict", folder / "model", name, *options), message, before)


# -- bad input of predict -------------------------------------------------------------------------------


def without_condition(adata):
    del adata.obs["condition"]


def without_labels(adata):
    del adata.obs["cell_type"]


def other_genes(adata):
    adata.var_names = ["x0", "x1", *adata.var_names[2:]]


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (None, ["--target", "x"], "Unknown condition 'x'; there are ['control', 'stimulated']"),
        (None, ["--source", "x"], "Unknown condition 'x'"),
        (None, ["--source", "stimulated"], "Source and target are both 'stimulated'"),
        (None, ["--labels", "NK", "x"], "Unknown labels ['x']"),
        (None, ["--n-samples", "0"], "--n-samples is 0; at least 1 is needed"),
        (None, ["--accelerator", "x"], "--accelerator x cannot be used"),
        (None, ["-o", "new/p.csv"], "is neither .h5ad nor .zarr"),
        (without_condition, [], "No column 'condition' in adata.obs; there are ['cell_type', "),
        (
            without_labels,
            ["--labels", "NK"],
            "No column 'cell_type' in adata.obs; there are ['condition', ",
        ),
        (other_genes, [], "lacks 2 of the 30 genes of the model: 'gene_0', 'gene_1'"),
        (with_value(-1), [], "adata.X holds negative values"),
        (log_values, [], "as log-normalised data do"),
        (with_levels("condition", ["x"]), [], "Unknown condition 'x' in adata.obs['condition']"),
    ],
)
def test_requests_that_cannot_be_predicted(run, folder, make_adata, change, options, message):
    file = folder / "cells.h5ad"
    if change is not None:
        adata = make_adata()
        change(adata)
        file = write(adata)
    before = tree()
    options = ["--target", "stimulated", "-o", "new/p.h5ad", *options]
    assert_refused(run("predict", folder / "model", file, *options), message, before)


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_a_file_needs_no_x_where_a_layer_has_the_values(run, make_adata, suffix):
    adata = make_adata()
    write(adata)
    adata.layers["counts"], adata.X = adata.X, None
    file = write(adata, f"layer.{suffix}")
    assert run("train", file, *SETUP, *TOTALS, *QUICK, "--layer", "counts", "-o", "model")[0] == 0
    assert run("train", "cells.h5ad", *SETUP, *TOTALS, *QUICK, "-o", "of_x")[0] == 0
    options = ["--target", "stimulated", "--labels", "NK"]
    code, _, err = run("predict", "model", file, *options, "-o", f"p.{suffix}")
    assert code == 0, err
    assert run("predict", "of_x", "cells.h5ad", *options, "-o", "of_x.h5ad")[0] == 0
    assert_same(read(Path(f"p.{suffix}")), read(Path("of_x.h5ad")))
    code, _, err = run("predict", "of_x", file, *options, "-o", "no.h5ad")
    assert (code, "adata.X is None" in err) == (2, True)


def test_a_layer_the_model_needs_is_named(run, make_adata, folder):
    adata = make_adata()
    adata.layers["raw"] = adata.X.copy()
    file = write(adata, "layer.h5ad")
    assert run("train", file, *SETUP, *QUICK, "--layer", "raw", "-o", "model")[0] == 0
    before = tree()
    result = run(
        "predict", "model", folder / "cells.h5ad", "--target", "stimulated", "-o", "p.h5ad"
    )
    assert_refused(result, "has no layer 'raw', which the model was set up with", before)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No model at"), (b"x", "is damaged, or is not a model that trvae_sc saved")],
)
def test_folders_without_a_model(run, folder, content, message):
    Path("model").mkdir()
    if content is not None:
        Path("model/model.pt").write_bytes(content)
    before = tree()
    options = ["--target", "stimulated", "-o", "new/p.h5ad"]
    result = run("predict", "model", folder / "cells.h5ad", *options)
    assert_refused(result, message, before)


@pytest.mark.parametrize(
    "arguments", [[], ["x"], ["predict", "model", "cells.h5ad"], ["train", "cells.h5ad", "-o", "m"]]
)
def test_incomplete_commands_name_the_help_in_one_line(run, arguments):
    code, out, err = run(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert re.search(r"^trvae-sc: .*\. See trvae-sc .*--help\.$", err)
    assert tree() == {}


@pytest.mark.parametrize("name", ["train", "predict"])
def test_seeds_are_not_negative(run, folder, name):
    assert run(*command(folder, name, "p.h5ad"), "--seed", "-1")[0] == 2


# -- output ---------------------------------------------------------------------------------------------


def command(folder, name, out):
    cells = folder / "cells.h5ad"
    if name == "train":
        return ["train", cells, *SETUP, *TOTALS, *QUICK, "-o", out]
    return ["predict", folder / "model", cells, "--target", "stimulated", "-o", out]


def test_a_model_is_replaced_with_force_only(run, folder, monkeypatch):
    Path("out").mkdir()
    Path("out/mine.txt").write_text("mine")
    Path("out/model.pt").write_text("old")
    before = tree()
    with monkeypatch.context() as patch:
        patch.setattr(TRVAE, "train", None)
        result = run(*command(folder, "train", "out"))
        assert_refused(result, "out exists. Pass --force to replace it.", before)
    assert run(*command(folder, "train", "out"), "--force")[0] == 0
    assert TRVAE.load("out", adata=False).n_cells.to_numpy().tolist() == [[20, 20]] * 3
    assert sorted(p.name for p in Path("out").iterdir()) == ["mine.txt", "model.pt"]
    assert Path("out/mine.txt").read_text() == "mine"


def test_checkpoints_may_be_in_the_folder_of_the_model(run, folder):
    """After all epochs the model was refused, and lost."""
    assert run(*command(folder, "train", "model"), "--checkpoint-dir", "model/checkpoints")[0] == 0
    assert sorted(p.name for p in Path("model").iterdir()) == ["checkpoints", "model.pt"]


@pytest.mark.parametrize("name", [".", "../here"])
def test_the_current_folder_is_not_replaced(run, folder, monkeypatch, name):
    """A folder is replaced by another, which would leave the process in one that is removed."""
    Path("here").mkdir()
    monkeypatch.chdir("here")
    result = run(*command(folder, "train", name), "--force")
    assert_refused(result, f"{name} is the current folder, which cannot be replaced.", {})


@pytest.mark.parametrize("out", ["p.h5ad", "p.zarr"])
def test_a_prediction_is_replaced_with_force_only(run, folder, make_adata, out):
    write(make_adata(10), out)
    before = tree()
    result = run(*command(folder, "predict", out))
    assert_refused(result, f"{out} exists. Pass --force to replace it.", before)
    assert run(*command(folder, "predict", out), "--force")[0] == 0
    assert read(Path(out)).n_obs == 60
    assert [p.name for p in Path().iterdir()] == [out]


def test_a_demo_replaces_its_own_files_only(run, monkeypatch):
    """With --force it used to replace the whole folder, with whatever else was in it."""

    def quick(folder, *, seed, max_epochs):
        folder.mkdir()
        (folder / "report.html").write_text(f"seed {seed}")
        return pd.DataFrame({"score": [0.5]}, index=["TRVAE"])

    monkeypatch.setattr(demo, "run", quick)
    Path("out").mkdir()
    Path("out/mine.txt").write_text("mine")
    Path("out/report.html").write_text("old")
    before = tree()
    assert_refused(run("demo", "-o", "out"), "out exists. Pass --force", before)
    result = run("demo", "-o", "out", "--force")
    assert_refused(result, "out is a folder, but no demo: it is not replaced.", before)
    Path("out/mine.txt").rename("mine.txt")
    code, out, err = run("demo", "-o", "out", "--seed", "4", "--force")
    assert (code, out) == (0, "")
    assert "TRVAE    0.5" in err
    _, out, _ = run("demo", "-o", "out", "--seed", "4", "--force", "--json")
    assert json.loads(out) == {"out": "out", "scores": {"TRVAE": {"score": 0.5}}}
    assert Path("out/report.html").read_text() == "seed 4"
    assert sorted(str(p) for p in Path().rglob("*")) == ["mine.txt", "out", "out/report.html"]


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("name", "out", "message"),
    [
        ("train", "file", "file is a file, and cannot be replaced by a model"),
        ("train", "file/model", "file is a file, so file/model cannot be written"),
        ("train", "file/deeper/model", "file is a file, so file/deeper/model cannot be written"),
        ("predict", "file/p.h5ad", "file is a file, so file/p.h5ad cannot be written"),
        ("predict", "folder.h5ad", "folder.h5ad is a folder, and cannot be replaced by a file"),
        ("predict", "file.zarr", "file.zarr is a file, and cannot be replaced by a zarr store"),
        ("predict", "link.h5ad", "link.h5ad is a link to nothing. Remove it, or choose another"),
    ],
)
@pytest.mark.parametrize("force", [[], ["--force"]])
def test_outputs_that_cannot_be_written(run, folder, name, out, message, force):
    Path("file").write_text("mine")
    Path("file.zarr").write_text("mine")
    Path("folder.h5ad").mkdir()
    Path("folder.h5ad/mine.txt").write_text("mine")
    Path("link.h5ad").symlink_to("nowhere")
    before = tree()
    result = run(*command(folder, name, out), *force)
    assert_refused(result, message, before)


@pytest.mark.usefixtures("no_training")
def test_only_results_of_the_same_kind_are_replaced(run, folder, make_adata):
    """With --force any folder named like a zarr store was, and a file by its own prediction."""
    Path("mine.zarr").mkdir()
    Path("mine.zarr/mine.txt").write_text("mine")
    for name in ("cells.h5ad", "cells.zarr"):
        write(make_adata(12), name)
    Path("link.h5ad").symlink_to("cells.h5ad")
    before = tree()
    result = run(*command(folder, "predict", "mine.zarr"), "--force")
    message = "mine.zarr is a folder, but no zarr store: it is not replaced"
    assert_refused(result, message, before)
    predict = ["predict", folder / "model"]
    for file, out in (
        ("cells.h5ad", "cells.h5ad"),
        ("cells.zarr", "cells.zarr"),
        ("cells.h5ad", "link.h5ad"),
    ):
        result = run(*predict, file, "--target", "stimulated", "-o", out, "--force")
        assert_refused(result, f"{out} is an input, and would be replaced", before)
    result = run("train", "cells.zarr", *SETUP, *QUICK, "-o", "cells.zarr", "--force")
    assert_refused(result, "cells.zarr is an input, and would be replaced", before)
    result = run(*predict, "cells.zarr", "--target", "x", "-o", "no/../cells.h5ad", "--force")
    assert_refused(result, "no/../cells.h5ad leads through no, which is not there", before)


@pytest.mark.usefixtures("no_training")
def test_nothing_that_a_prediction_is_made_from_is_replaced(run, folder, make_adata):
    write(make_adata(12), "few.h5ad")
    Path("doses.csv").write_text("condition,dose\nstimulated,1\n")
    Path("link.csv").symlink_to("few.h5ad")
    before = tree()
    given = ["--exemplars", "few.h5ad", "--condition-features", "doses.csv", "--force"]
    for out, name in (
        (["-o", "few.h5ad"], "few.h5ad"),
        (["-o", "p.h5ad", "--table", "doses.csv"], "doses.csv"),
        (["-o", "p.h5ad", "--table", "link.csv"], "link.csv"),
    ):
        result = run(*command(folder, "predict", "p.h5ad")[:-2], *given, *out)
        assert_refused(result, f"{name} is an input, and would be replaced", before)


def test_a_folder_without_permission_is_named(run, folder, monkeypatch):
    Path("locked").mkdir()
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).name != "locked")
    before = tree()
    result = run(*command(folder, "predict", "locked/new/p.h5ad"))
    assert_refused(result, "locked cannot be written to", before)


def fill_disk(monkeypatch):
    """Make every writer stop half way through, as where the disk is full."""

    def write_h5ad(self, path, **kwargs):
        Path(path).write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    def write_zarr(self, path, **kwargs):
        Path(path).mkdir()
        write_h5ad(self, Path(path) / "half")

    monkeypatch.setattr(AnnData, "write_h5ad", write_h5ad)
    monkeypatch.setattr(AnnData, "write_zarr", write_zarr)

    def finish(self, adata):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PieceWriter, "finish", finish)

    def write_bytes(self, content):
        with self.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_bytes)


@pytest.mark.parametrize(
    ("name", "out"), [("train", "m"), ("predict", "p.h5ad"), ("predict", "p.zarr")]
)
def test_a_full_disk_leaves_what_was_there(run, folder, monkeypatch, name, out):
    assert run(*command(folder, name, out))[0] == 0
    before = tree()
    with monkeypatch.context() as patch:
        fill_disk(patch)
        for arguments in (
            [*command(folder, name, out), "--force"],
            command(folder, name, f"2{out}"),
        ):
            code, printed, err = run(*arguments)
            assert (code, printed) == (1, "")
            assert "trvae-sc: [Errno 28] No space left on device\n" in err
            assert tree() == before
    if name == "train":
        assert TRVAE.load(out, adata=False).is_trained
    else:
        assert read(Path(out)).n_obs == 60


# -- interruption ---------------------------------------------------------------------------------------


def press_ctrl_c(monkeypatch, method, epoch):
    original = getattr(TrainingPlan, method)

    def interrupted(self, *args, **kwargs):
        original(self, *args, **kwargs)
        if self.current_epoch == epoch:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(TrainingPlan, method, interrupted)


def test_ctrl_c_leaves_a_usable_model(run, folder, monkeypatch):
    press_ctrl_c(monkeypatch, "on_train_epoch_end", 2)
    arguments = [*command(folder, "train", "model"), "--max-epochs", "50", "--json"]
    code, out, err = run(*arguments)
    assert code == 130
    assert (
        "trvae-sc: Training stopped in epoch 2 of 50; the model has the weights of the lat" in err
    )
    assert json.loads(out)["model"] == "model"
    assert json.loads(out)["interrupted"] is True
    assert [p.name for p in Path("model").iterdir()] == ["model.pt"]
    options = ["--target", "stimulated", "-o", "p.h5ad"]
    assert run("predict", "model", folder / "cells.h5ad", *options)[0] == 0
    assert read(Path("p.h5ad")).n_obs == 60
    assert [p.name for p in Path().iterdir() if p.name.startswith(".")] == []


def test_an_unfinished_model_is_replaced_by_the_same_command(run, folder, monkeypatch):
    """A finished one is not, and the checkpoints make the rerun go on."""
    command_ = [*command(folder, "train", "model"), "--max-epochs", "5", "--checkpoint-dir", "c"]
    command_ += ["--json"]
    with monkeypatch.context() as patch:
        press_ctrl_c(patch, "on_train_epoch_end", 2)
        assert run(*command_)[0] == 130
    predict = ["predict", "model", folder / "cells.h5ad", "--target", "stimulated"]
    _, _, err = run(*predict, "-o", "p.h5ad")
    assert "Note: Training was interrupted after 2 of 5 epochs: the model is unfinished." in err
    code, out, _ = run(*command_)
    assert code == 0
    record = json.loads(out)
    assert [record[k] for k in ("epochs", "planned", "interrupted")] == [5, 5, False]
    assert "unfinished" not in run(*predict, "-o", "q.h5ad")[2]
    other = [*command(folder, "train", "other"), "--max-epochs", "5"]
    assert run(*other)[0] == 0
    assert_same_weights(weights("model"), weights("other"))
    before = tree()
    assert_refused(run(*command_), "model exists. Pass --force to replace it.", before)


def test_an_unfinished_model_of_other_cells_is_not_replaced(run, folder, monkeypatch):
    command_ = [*command(folder, "train", "model"), "--max-epochs", "5"]
    with monkeypatch.context() as patch:
        press_ctrl_c(patch, "on_train_epoch_end", 2)
        assert run(*command_)[0] == 130
    before = tree()
    write(read(folder / "cells.h5ad"), "other.h5ad")
    other = ["train", "other.h5ad", *command_[2:]]
    for again in ([*command_, *HOLDOUT], other, [*command_, "--model", "cgan"]):
        code, _, err = run(*again)
        assert (code, "model exists. Pass --force to replace it." in err) == (2, True)
    Path("other.h5ad").unlink()
    assert tree() == before


def test_ctrl_c_with_early_stopping_keeps_the_best_epoch(run, folder, monkeypatch):
    seen = []
    original = BestWeights.on_validation_end

    def record(self, trainer, plan):
        original(self, trainer, plan)
        if not trainer.sanity_checking:
            state = {k: v.clone() for k, v in plan.module.state_dict().items()}
            seen.append((trainer.callback_metrics["elbo_validation"].item(), state))

    end = TrainingPlan.on_train_epoch_end

    def spoil(self):
        end(self)
        if self.current_epoch >= 1:
            for parameter in self.module.parameters():
                parameter.data.mul_(1.5)

    monkeypatch.setattr(BestWeights, "on_validation_end", record)
    monkeypatch.setattr(TrainingPlan, "on_train_epoch_end", spoil)
    press_ctrl_c(monkeypatch, "on_train_epoch_end", 4)
    arguments = [*command(folder, "train", "model"), "--max-epochs", "50", "--early-stopping"]
    code, _, err = run(*arguments)
    values = [value for value, _ in seen]
    best = int(np.argmin(values))
    assert best < len(seen) - 1
    assert code == 130
    assert f"the model has the weights of the best epoch, {best}, and can be used" in err
    assert_same_weights(weights("model"), seen[best][1])


def test_ctrl_c_before_the_first_step_leaves_nothing(run, folder, monkeypatch):
    press_ctrl_c(monkeypatch, "setup", 0)
    code, out, err = run(*command(folder, "train", "model"))
    assert (code, out) == (130, "")
    assert "trvae-sc: Training stopped before the first step; the model is not trained." in err
    assert tree() == {}


def test_ctrl_c_while_writing_leaves_nothing(run, folder, monkeypatch):
    monkeypatch.setattr(
        PieceWriter, "finish", lambda self, adata: signal.raise_signal(signal.SIGINT)
    )
    code, out, err = run(*command(folder, "predict", "p.h5ad"))
    assert (code, out) == (130, "")
    assert err.endswith("trvae-sc: interrupted\n")
    assert tree() == {}


def test_sigterm_ends_training_as_ctrl_c_does(run, folder, monkeypatch):
    """A queue that ends a job sends it; the model is saved, and the handler is as before."""
    end = TrainingPlan.on_train_epoch_end

    def terminated(self):
        end(self)
        if self.current_epoch == 2:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(TrainingPlan, "on_train_epoch_end", terminated)
    before = signal.getsignal(signal.SIGTERM)
    arguments = [*command(folder, "train", "model"), "--max-epochs", "50", "--json"]
    code, out, err = run(*arguments)
    assert code == 143
    assert "trvae-sc: Training stopped in epoch 2 of 50" in err
    assert json.loads(out)["interrupted"] is True
    assert TRVAE.load("model", adata=False).is_trained
    assert signal.getsignal(signal.SIGTERM) is before


# -- errors that are not of the input -------------------------------------------------------------------


def test_an_error_of_ours_is_one_line_and_a_file(run, folder, monkeypatch):
    def fail(*args, **kwargs):
        raise KeyError("x")

    monkeypatch.setattr(TRVAE, "predict", fail)
    monkeypatch.setattr("tempfile.tempdir", str(Path.cwd()))
    code, out, err = run(*command(folder, "predict", "p.h5ad"))
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("trvae-sc: KeyError: 'x'. This is a bug of trvae_sc, not of your input.")
    (file,) = Path().iterdir()
    assert str(file.resolve()) in err
    assert "Traceback (most recent call last)" in file.read_text()


@pytest.mark.parametrize("at", ["finish", "_write"])  # the latter tries columns, too
def test_a_full_disk_is_no_bug_whatever_hdf5_makes_of_it(run, folder, monkeypatch, at):
    def fail(*args, **kwargs):
        raise RuntimeError("Can't decrement id ref count (file write failed: errno = 28)")

    monkeypatch.setattr(PieceWriter, at, fail)
    code, out, err = run(*command(folder, "predict", "p.h5ad"))
    assert (code, out) == (1, "")
    assert err.endswith("ref count (file write failed: errno = 28)\n")


def test_too_little_memory_is_said_in_one_line(run, folder, monkeypatch):
    def fail(*args, **kwargs):
        raise MemoryError("Unable to allocate 1 TiB")

    monkeypatch.setattr(TRVAE, "predict", fail)
    code, out, err = run(*command(folder, "predict", "p.h5ad"))
    assert (code, out) == (1, "")
    assert err == "trvae-sc: out of memory. Unable to allocate 1 TiB\n"


# -- a process of its own -------------------------------------------------------------------------------


def script(*arguments, python=None):
    """Run the installed script, or have a Python run it."""
    path = shutil.which("trvae-sc", path=Path(sys.executable).parent)
    command = [*([python] if python else []), path, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["train", "--help"], ["predict", "--help"]]
)
def test_help_waits_for_no_heavy_import(arguments):
    code = f"""
import sys
from trvae_sc.cli import main
try:
    main({arguments})
except SystemExit as stop:
    assert stop.code == 0
print(sorted({{"torch", "scvi", "lightning", "anndata", "scanpy"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(("usage: trvae-sc", f"trvae-sc {trvae_sc.__version__}\n"))
    assert done.stdout.splitlines()[-1] == "[]"


def test_script_exits_with_2_and_one_line(folder, python):
    arguments = ["predict", folder / "model", "absent.h5ad", "--target", "x", "-o", "p.h5ad"]
    done = script(*arguments, python=python)
    assert (done.returncode, done.stdout) == (2, "")
    own = [
        line for line in done.stderr.splitlines() if "nanobind" not in line and line[:3] != " - "
    ]
    assert own == [
        "trvae-sc: No file absent.h5ad."
    ]  # builds of torch for CUDA list what triton leaks


def test_script_prints_results_alone_to_stdout(folder, python):
    """scvi-tools' messages and Lightning's progress bar used to be printed among them."""
    done = script(*command(folder, "train", "model"), "--json", python=python)
    assert done.returncode == 0
    assert json.loads(done.stdout)["n_cells"] == 120
    assert "Traceback" not in done.stderr
    assert TRVAE.load("model", adata=False).is_trained


def test_names_of_options_are_those_that_there_are():
    assert list(names.PRESETS) == list(PRESETS)
    assert set(names.METHODS) == {*baselines.METHODS, *family.METHODS}
    assert list(names.METRICS) == list(evaluation.SCORED)


TYPOS = {
    "preset": (["train", "x", "--condition-key", "c", "-o", "m", "--preset", "cave"], "'cvae'"),
    "method": (["benchmark", "x", *SETUP, "-o", "r", "--methods", "trvea"], "'trvae'"),
    "metric": (
        ["select", "x", *SETUP, "--target", "s", "-o", "p.h5ad", "--metric", "effectr2"],
        "'effect_r2'",
    ),
}


@pytest.mark.parametrize("of", TYPOS)
def test_a_typo_is_found_before_anything_is_read_or_imported(run, of):
    arguments, meant = TYPOS[of]
    start = time.perf_counter()
    done = script(*arguments)
    assert time.perf_counter() - start < 3  # 0.1 s where nothing else runs; imports take 10
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert f"unknown {of} '{arguments[-1]}'; there are " in done.stderr
    assert done.stderr.endswith(f"Did you mean {meant}? See trvae-sc {arguments[0]} --help.\n")
    _, out, _ = run(arguments[0], "--help")
    names = {"preset": PRESETS, "method": baselines.METHODS, "metric": evaluation.SCORED}[of]
    assert all(name in out for name in names)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("max_epochs is 0; at least 1 is needed.", "--max-epochs is 0; at least 1 is needed."),
        ("gene_likelihood='normal' takes any", "--gene-likelihood normal takes any"),
        ("name it with labels_key=.", "name it with --labels-key."),
        ("No column 'batch_key' in obs.", "No column 'batch_key' in obs."),
        ("The seed and the file max_epochs.h5ad", "The seed and the file max_epochs.h5ad"),
        ("Pass overwrite=True or a smaller n_latent.", "Pass --force or a smaller n_latent."),
        ("does not see it: give labels_key=None.", "does not see it: leave out --labels-key."),
        ("Pass labels_key=None or", "Leave out --labels-key or"),
        ("labels_key=['a', 'b'] names", "--labels-key ['a', 'b'] names"),
        ("one of them: give labels_key='T cell'.", "one of them: give --labels-key 'T cell'."),
    ],
)
def test_messages_have_options_as_they_are_typed(message, expected):
    names = {"max_epochs": 0, "gene_likelihood": "x", "labels_key": "", "batch_key": "", "seed": 0}
    assert in_words_of_options(message, argparse.Namespace(**names)) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("trvae-sc sel", {"select"}),
        ("trvae-sc train x.h5ad --preset mm", {"mmd_cvae"}),
        ("trvae-sc benchmark x.h5ad --methods trvae mean", {"mean_condition", "mean_shift"}),
        ("trvae-sc select x.h5ad --max-e", {"--max-epochs"}),
        ("trvae-sc benchmark x.h5ad --holdo", {"--holdout"}),
    ],
)
def test_the_shell_completes_commands_options_and_names(line, expected, tmp_path):
    pytest.importorskip("argcomplete")
    answer = tmp_path / "answer"
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line))}
    asked |= {"_ARGCOMPLETE_STDOUT_FILENAME": str(answer), "_ARGCOMPLETE_IFS": " "}
    command = [sys.executable, "-m", "trvae_sc"]
    done = subprocess.run(command, env={**os.environ, **asked}, capture_output=True, check=False)
    assert done.returncode == 0
    assert {word.strip() for word in answer.read_text().split()} == expected


def test_totals_of_variable_genes_are_named_as_scanpy_names_them(caplog):
    """Also on the command line, where the argument is an option."""
    with caplog.at_level(logging.WARNING, "trvae_sc"):
        say_totals(60)
    names = argparse.Namespace(total_counts_key=None)
    (said,) = (in_words_of_options(message, names) for message in caplog.messages)
    assert "over the 60 genes" in said
    assert "(scanpy calls it 'total_counts'): --total-counts-key." in said
