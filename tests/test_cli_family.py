"""The other models, and what is done in latent spaces, from the command line."""

import json
import signal

import anndata
import numpy as np
import pandas as pd
import pytest

from trvae_sc import TRVAE, datasets, family
from trvae_sc.family import ConditionalGAN, CycleGAN, FlowTransfer
from trvae_sc.family._training import PlayersPlan

SETUP = ["--condition-key", "condition", "--labels-key", "cell_type"]
TOTALS = ["--total-counts-key", "n_counts"]
QUICK = ["--n-top-genes", "0", "--max-epochs", "2", "--accelerator", "cpu"]
CPU = ["--accelerator", "cpu"]
HOLDOUT = ["--holdout", "NK:stimulated"]


@pytest.fixture
def cells(make_adata):
    adata = make_adata()
    adata.write_h5ad("cells.h5ad")
    return adata


def train(run, *options):
    options = ["cells.h5ad", *SETUP, *TOTALS, *QUICK, *options, "-o", "model", "--json"]
    code, out, err = run("train", *options)
    assert code == 0, err
    return json.loads(out)


@pytest.mark.parametrize(
    ("name", "model_cls"),
    [("cgan", ConditionalGAN), ("cyclegan", CycleGAN), ("flow_matching", None)],
)
def test_other_models_are_trained_and_predict(run, cells, name, model_cls):
    record = train(run, "--model", name, "--n-hidden", "16", *HOLDOUT)
    assert record["holdouts"] == ["NK:stimulated"]
    options = ["--target", "stimulated", "--labels", "NK", *CPU, "-o", "out.h5ad"]
    code, _, err = run("predict", "model", "cells.h5ad", *options)
    assert code == 0, err
    model_cls = model_cls or family.FlowMatching
    model = model_cls.load("model", False, accelerator="cpu")
    expected = model.predict(cells, target="stimulated", labels="NK")
    np.testing.assert_allclose(anndata.read_h5ad("out.h5ad").X, expected.X, rtol=1e-4, atol=1e-5)
    assert model.trained_on_["n_cells"] == 100


def test_ctrl_c_leaves_a_usable_model(run, cells, monkeypatch):
    """It is replaced by the same command."""
    end = PlayersPlan.on_train_epoch_end

    def interrupted(self):
        end(self)
        if self.current_epoch == 1:
            signal.raise_signal(signal.SIGINT)

    options = ["cells.h5ad", *SETUP, *TOTALS, *QUICK, "--model", "cgan", "--n-hidden", "16"]
    command = ["train", *options, "--max-epochs", "5", "-o", "model"]
    with monkeypatch.context() as patch:
        patch.setattr(PlayersPlan, "on_train_epoch_end", interrupted)
        assert run(*command)[0] == 130
    options = ["--target", "stimulated", *CPU, "-o", "out.h5ad"]
    assert run("predict", "model", "cells.h5ad", *options)[0] == 0
    assert run(*command)[0] == 0
    assert run(*command)[0] == 2


def test_pairs_are_named(run, cells):
    cells.obs["pair"] = np.arange(120) // 2
    cells.write_h5ad("cells.h5ad")
    train(
        run,
        "--model",
        "paired",
        "--pair-key",
        "pair",
        "--source",
        "control",
        "--target",
        "stimulated",
    )
    options = ["--target", "stimulated", *CPU, "-o", "out.h5ad"]
    assert run("predict", "model", "cells.h5ad", *options)[0] == 0
    assert anndata.read_h5ad("out.h5ad").n_obs == 60


def test_a_flow_takes_exemplars_and_draws(run, cells):
    pytest.importorskip("zuko")
    train(run, "--model", "flow_transfer", "--n-hidden", "8", *HOLDOUT)
    shown = cells[(cells.obs["cell_type"] == "NK") & (cells.obs["condition"] == "stimulated")][:5]
    shown.copy().write_h5ad("few.h5ad")
    options = ["--target", "stimulated", "--labels", "NK", "--exemplars", "few.h5ad", *CPU]
    code, _, err = run("predict", "model", "cells.h5ad", *options, "-o", "out.h5ad")
    assert code == 0, err
    table = anndata.read_h5ad("out.h5ad").uns["trvae_sc"]["combinations"]
    assert int(table["n_exemplars"].iloc[0]) == 5
    assert run("generate", "model", "--n-obs", "7", *CPU, "-o", "new.h5ad")[0] == 0
    model = FlowTransfer.load("model", False, accelerator="cpu")
    np.testing.assert_allclose(anndata.read_h5ad("new.h5ad").X, model.generate(7).X, atol=1e-4)
    code, _, err = run("generate", "model", "--condition", "control", *CPU, "-o", "other.h5ad")
    assert code == 2
    assert "A FlowTransfer draws cells without --condition: leave that out." in err
    ends = ["--start", "B", "--end", "NK", "--steps", "3", *CPU, "-o", "way.h5ad"]
    assert run("interpolate", "model", "cells.h5ad", *ends)[0] == 0
    assert anndata.read_h5ad("way.h5ad").obs["fraction"].tolist() == [0.0, 0.5, 1.0]
    code, _, err = run("interpolate", "model", "cells.h5ad", *ends, "--force", "--condition", "x")
    assert code == 2
    assert "A FlowTransfer does not see the condition" in err


def test_settings_of_trvae_reach_the_model(run, cells):
    options = [
        "--n-latent",
        "3",
        "--n-hidden",
        "12",
        "6",
        "--kl-weight",
        "0.2",
        "--mmd-weight",
        "7",
    ]
    train(run, *options)
    module = TRVAE.load("model", False, accelerator="cpu").module
    assert module.z_mean.out_features == 3
    assert module.decoder_in.linear.out_features == 6
    assert (module.kl_weight, module.mmd_weight) == (0.2, 7.0)


def test_cells_are_generated_interpolated_and_scored(run, cells, make_adata):
    train(run, "--n-latent", "3", "--n-hidden", "8", *HOLDOUT)
    model = TRVAE.load("model", False, accelerator="cpu")
    hidden = (cells.obs["cell_type"] == "NK") & (cells.obs["condition"] == "stimulated")
    model.adata = cells[~hidden].copy()
    options = ["--condition", "control", "--n-obs", "9", "--labels", "NK", "--output", "mean"]
    options += ["--json"]
    code, out, err = run("generate", "model", "cells.h5ad", *options, *CPU, "-o", "new.h5ad")
    assert code == 0, err
    assert json.loads(out) == {"out": "new.h5ad", "n_cells": 9}
    expected = model.generate("control", 9, labels="NK", output="mean")
    np.testing.assert_allclose(anndata.read_h5ad("new.h5ad").X, expected.X, rtol=1e-5)
    model.adata.write_h5ad("shown.h5ad")  # without the cells that were hidden
    code, _, err = run("generate", "model", "shown.h5ad", *options, *CPU, "-o", "same.h5ad")
    assert code == 0, err
    np.testing.assert_allclose(anndata.read_h5ad("same.h5ad").X, expected.X, rtol=1e-5)
    ends = ["--start", "B", "--end", "T", "--condition", "control", "--steps", "4"]
    assert run("interpolate", "model", "cells.h5ad", *ends, *CPU, "-o", "way.h5ad")[0] == 0
    path = family.interpolate(
        model, {"cell_type": "B"}, {"cell_type": "T"}, steps=4, condition="control", adata=cells
    )
    np.testing.assert_allclose(anndata.read_h5ad("way.h5ad").X, path.X, rtol=1e-5)
    other = make_adata(20, seed=4)
    other.write_h5ad("other.h5ad")
    files = ["model", "other.h5ad", "--reference", "cells.h5ad"]
    assert run("outliers", *files, *CPU, "-o", "scores.csv")[0] == 0
    table = pd.read_csv("scores.csv", index_col="cell")
    assert table.index.tolist() == other.obs_names.tolist()
    assert table["p_value"].between(0, 1).all()
    itself = ["model", "cells.h5ad", "--reference", "cells.h5ad"]
    code, _, err = run("outliers", *itself, *CPU, "-o", "own.csv")
    assert code == 0
    assert err.count("120 of 120 scored cells are in the reference themselves") == 1


def test_new_cells_are_not_drawn_from_hidden_sets(run):
    """Sets of parts are found whatever the order that the hold-out names them in."""
    names = ("control", "A", "B", "A+B")
    cells = datasets.simulate(240, 20, n_labels=2, conditions=names)
    cells.write_h5ad("cells.h5ad")
    hidden = (cells.obs["cell_type"] == "type_0") & (cells.obs["condition"] == "A+B")
    options = [*SETUP, *QUICK, "--condition-separator", "+", "--n-hidden", "8"]
    options += ["--holdout", "type_0:B+A", "-o", "model"]
    assert run("train", "cells.h5ad", *options)[0] == 0
    cells[~hidden].copy().write_h5ad("shown.h5ad")
    drawn = []
    for file in ("cells.h5ad", "shown.h5ad"):
        options = ["--condition", "A+B", "--labels", "type_0", "--n-obs", "30", "--force"]
        assert run("generate", "model", file, *options, *CPU, "-o", "new.h5ad")[0] == 0
        drawn.append(anndata.read_h5ad("new.h5ad").obsm["X_trvae"])
    np.testing.assert_array_equal(*drawn)


def test_a_gan_generates_a_label(run, cells):
    train(run, "--model", "cgan", "--n-hidden", "8")
    options = ["--condition", "control", "--labels", "B", "--n-obs", "4", *CPU, "-o", "new.h5ad"]
    assert run("generate", "model", *options)[0] == 0
    assert anndata.read_h5ad("new.h5ad").obs["cell_type"].tolist() == ["B"] * 4


@pytest.mark.parametrize("options", [[], ["--preset", "vae"], ["--model", "cgan"]])
def test_what_generate_advises_can_be_typed(run, cells, options):
    train(run, "--n-hidden", "8", *options)
    blind = "vae" in options
    given = ["--condition", "control"] if blind else []
    file = [] if "cgan" in options else ["cells.h5ad"]
    request = ["generate", "model", *file, "--n-obs", "4", *CPU, "-o", "new.h5ad"]
    code, _, err = run(*request, *given)
    assert code == 2
    assert "None" not in err
    if blind:
        assert "the network of preset 'vae' does not see it: leave out --condition." in err
    else:
        assert "needs one of ['control', 'stimulated']: give --condition control." in err
    assert run(*request, *([] if blind else ["--condition", "control"]))[0] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "cgan", "--n-latent", "3"], "--n-latent: only with --model trvae"),
        (["--model", "paired"], "--pair-key is needed"),
        (["--model", "cgan", "--source", "control"], "--source and --target are of"),
        (["--model", "cgan", "--preset", "vae"], "--preset: only with --model trvae"),
        (["--model", "cgan", "--gene-likelihood", "zinb"], "takes counts (nb) or other values"),
    ],
)
def test_options_of_another_model_are_refused(run, cells, options, message):
    code, out, err = run("train", "cells.h5ad", *SETUP, *QUICK, *options, "-o", "model")
    assert (code, out) == (2, "")
    assert message in err


def test_requests_that_a_model_cannot_answer(run, cells):
    train(run, "--model", "cyclegan", "--n-hidden", "8")
    for request, message in (
        (["generate", "model", "-o", "x.h5ad"], "translates cells and draws none"),
        (
            ["interpolate", "model", "cells.h5ad", "--start", "B", "--end", "T", "-o", "x.h5ad"],
            "no codes",
        ),
        (
            ["outliers", "model", "cells.h5ad", "--reference", "cells.h5ad", "-o", "x.csv"],
            "needs a TRVAE",
        ),
        (
            ["outliers", "model", "cells.h5ad", "--reference", "cells.h5ad", "-o", "x.txt"],
            "no .csv",
        ),
        (
            [
                *("predict", "model", "cells.h5ad", "--target", "stimulated"),
                *("--exemplars", "cells.h5ad", "-o", "x.h5ad"),
            ],
            "--exemplars is of trvae and flow_transfer",
        ),
        (
            [
                *("predict", "model", "cells.h5ad", "--target", "stimulated"),
                *("--condition-features", "table.csv", "-o", "x.h5ad"),
            ],
            "--condition-features are of TRVAE; this is a CycleGAN",
        ),
    ):
        code, _, err = run(*request, *CPU)
        assert code == 2
        assert message in err
