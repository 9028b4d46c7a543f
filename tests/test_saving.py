"""Saving, loading and query surgery."""

import errno
import hashlib
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from scipy import sparse

import trvae_sc
from trvae_sc import TRVAE, family
from trvae_sc.errors import InputError
from trvae_sc.model._record import FROZEN_WITHOUT_LABELS

CPU = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False}
COVARIATES = {
    "batch_key": "batch",
    "categorical_covariate_keys": ["sex", "site"],
    "continuous_covariate_keys": ["age"],
}
COUNT_OUTPUTS = ("counts", "delta", "mean", "sample")
OUTPUTS = ("delta", "mean", "sample")


def weights_of(model):
    return {k: v.cpu().numpy().copy() for k, v in model.module.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(
        first[k].tobytes() == second[k].tobytes() for k in first
    )


def dense(x):
    return x.toarray() if sparse.issparse(x) else np.asarray(x)


def predictions(model, adata=None, target="stimulated", **kwargs):
    """Return the prediction in every output the likelihood has."""
    outputs = COUNT_OUTPUTS if model.module.is_count else OUTPUTS
    return [
        model.predict(adata, target=target, source="control", output=o, seed=1, **kwargs)
        for o in outputs
    ]


CHANGES = ["source_mean", "predicted_mean", "predicted_change"]


def assert_same_predictions(found, expected):
    """Assert predictions that are equal to the bit, and in what describes them."""
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert dense(a.X).tobytes() == dense(b.X).tobytes()
        assert a.obsm["X_trvae"].tobytes() == b.obsm["X_trvae"].tobytes()
        columns = [name for name in CHANGES if name in a.var]
        pd.testing.assert_frame_equal(a.var[columns], b.var[columns], check_exact=True)
        assert a.obs_names.equals(b.obs_names)
        assert a.uns["trvae_sc"]["kappa"] == b.uns["trvae_sc"]["kappa"]
        tables = [x.uns["trvae_sc"]["combinations"] for x in (a, b)]
        pd.testing.assert_frame_equal(  # a query adds its own cells
            *(table.drop(columns="n_training_cells") for table in tables)
        )


def parts_of(file):
    """Return the header of a model file, what it says of the model, and the bytes of its tensors."""
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    return header, json.loads(header["__metadata__"].pop("trvae_sc")), content[end:]


def write_parts(file, header, ours, data):
    """Write a model file; `ours` is text, or what to make it of."""
    text = ours if isinstance(ours, str) else json.dumps(ours)
    header = header | {"__metadata__": {"trvae_sc": text}}
    start = json.dumps(header).encode()
    file.write_bytes(len(start).to_bytes(8, "little") + start + data)


def with_checksum(file):
    """Give a model file the check sum of the numbers that are now in it, as an attacker would."""
    header, ours, data = parts_of(file)
    found = hashlib.sha256()
    for name in sorted(header):
        if name != "__metadata__":
            start, end = header[name]["data_offsets"]
            found.update(name.encode() + data[start:end])
    write_parts(file, header, ours | {"sha256": found.hexdigest()}, data)


def entries():
    """Return what the test's folder holds, hidden entries too."""
    return sorted(p.name for p in Path().iterdir())


# -- round trip -------------------------------------------------------------------------------------


@pytest.mark.parametrize("setup", [{}, COVARIATES], ids=["plain", "covariates"])
@pytest.mark.parametrize("likelihood", ["nb", "normal"])
def test_a_loaded_model_predicts_the_same_to_the_bit(fit, make_adata, likelihood, setup):
    make = {"values": "counts" if likelihood == "nb" else "log"}
    model = fit(make_adata(**make), gene_likelihood=likelihood, setup=setup)
    model.save("saved")
    loaded = TRVAE.load("saved", make_adata(**make), accelerator="cpu")
    assert same(weights_of(loaded), weights_of(model))
    assert_same_predictions(predictions(loaded), predictions(model))
    cells = make_adata(24, seed=7, **make)
    assert_same_predictions(predictions(loaded, cells), predictions(model, cells))
    assert_same_predictions(
        predictions(loaded, cells, n_samples=2), predictions(model, cells, n_samples=2)
    )
    missing = model.generate("stimulated", 10, seed=2), loaded.generate("stimulated", 10, seed=2)
    assert dense(missing[0].X).tobytes() == dense(missing[1].X).tobytes()
    assert loaded.get_latent_representation().tobytes() == (
        model.get_latent_representation().tobytes()
    )


@pytest.mark.parametrize(
    "arguments",
    [
        {"preset": "paper", "gene_likelihood": "mse"},
        {"gene_likelihood": "zinb", "n_hidden": (12, 10, 8), "dispersion": "gene"},
        {"gene_likelihood": "poisson", "condition_in": "decoder", "norm": "batch"},
        {"preset": "mmd_cvae", "leaky_slope": 0.2},
    ],
)
def test_every_architecture_comes_back(fit, make_adata, arguments):
    model = fit(**arguments)
    model.save("saved")
    loaded = TRVAE.load("saved", adata=False)
    assert str(loaded.module) == str(model.module)
    assert same(weights_of(loaded), weights_of(model))
    assert loaded.preset_ == arguments.get("preset", "default")
    latent = [m.get_latent_representation(model.adata) for m in (model, loaded)]
    assert latent[0].tobytes() == latent[1].tobytes()


def test_what_a_preset_chose_comes_back_after_it_chooses_otherwise(fit, monkeypatch):
    fit(train=False, preset="paper", gene_likelihood="mse").save("model")
    chosen = trvae_sc.PRESETS["paper"]["model"]
    monkeypatch.setitem(chosen, "mmd_weight", 7.0)
    monkeypatch.setitem(chosen, "recon_weight", 5.0)  # no argument of TRVAE by name
    module = TRVAE.load("model", adata=False).module
    assert (module.mmd_weight, module.recon_weight) == (500.0, 100.0)


def test_history_split_and_facts_survive(fit, make_adata):
    train = {"train_size": 0.75, "check_val_every_n_epoch": 1, "plan_kwargs": {"on_step": True}}
    model = fit(make_adata(), seed=5, train={**train, "batch_size": 40})
    model.save("saved")
    loaded = TRVAE.load("saved", make_adata())
    assert loaded.history.keys() == model.history.keys()
    assert "train_loss_step" in loaded.history
    for name, frame in model.history.items():
        pd.testing.assert_frame_equal(
            loaded.history[name].astype(float), frame.astype(float), check_index_type=False
        )
    assert len(loaded.train_indices) == 90
    assert loaded.train_indices.tolist() == model.train_indices.tolist()
    assert loaded.validation_indices.tolist() == model.validation_indices.tolist()
    assert loaded.seed_ == 5
    assert loaded.is_trained
    assert loaded.n_cells.equals(model.n_cells)
    assert loaded.conditions == ["control", "stimulated"]
    assert loaded.labels == ["B", "NK", "T"]
    assert loaded.version_ == trvae_sc.__version__


def test_an_untrained_model_comes_back_untrained(fit, make_adata):
    model = fit(train=False)
    model.save("saved")
    loaded = TRVAE.load("saved", make_adata())
    assert same(weights_of(loaded), weights_of(model))
    with pytest.raises(RuntimeError, match="not trained"):
        loaded.predict(target="stimulated")


def test_training_goes_on_as_without_saving(fit, make_adata):
    model = fit(make_adata())
    model.save("saved")
    loaded = TRVAE.load("saved", make_adata())
    for m in (model, loaded):
        m.train(max_epochs=2, batch_size=40, **CPU)
    assert same(weights_of(loaded), weights_of(model))
    assert loaded.history["train_loss"].index.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("levels", [(0, 1), (False, True), (0.5, 2.0), ("", "b")])
def test_levels_of_any_type_come_back(fit, make_adata, levels):
    adata = make_adata()
    codes = np.arange(120) % 2
    adata.obs["condition"] = pd.Series([levels[c] for c in codes], index=adata.obs_names)
    model = fit(adata)
    model.save("saved")
    loaded = TRVAE.load("saved", adata=False)
    assert loaded.conditions == list(levels)
    assert [type(c) for c in loaded.conditions] == [type(v) for v in levels]
    expected = model.predict(target=levels[1], source=levels[0])
    found = loaded.predict(adata, target=levels[1], source=levels[0])
    assert (found.X != expected.X).nnz == 0


CHILD = """
import sys
import anndata, numpy as np
from trvae_sc import TRVAE

model = TRVAE.load("saved", adata=False)
predicted = model.predict(anndata.read_h5ad("cells.h5ad"), target="stimulated", seed=1)
np.save("predicted.npy", predicted.X.toarray())
assert not any("conftest" in name for name in sys.modules)
"""


def test_another_process_predicts_the_same(fit, make_adata, python):
    make_adata(24, seed=7).write_h5ad("cells.h5ad")
    model = fit(make_adata(), setup=COVARIATES)
    model.save("saved")
    path = str(Path(trvae_sc.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [python, "-c", CHILD], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    expected = model.predict(make_adata(24, seed=7), target="stimulated", seed=1)
    assert np.load("predicted.npy").tobytes() == dense(expected.X).tobytes()


# -- other data -------------------------------------------------------------------------------------


def test_genes_of_other_data_are_matched_by_name(trained, make_adata):
    trained.save("saved")
    cells = make_adata(24, seed=7)
    expected = predictions(trained, cells)
    extra = anndata.AnnData(
        sparse.csr_matrix(np.full((24, 4), 3.0, np.float32)),
        obs=cells.obs,
        var=pd.DataFrame(index=[f"extra_{j}" for j in range(4)]),
    )
    wide = anndata.concat([cells, extra], axis=1, merge="same")
    order = np.random.default_rng(0).permutation(34)
    for other in (cells[:, ::-1].copy(), wide[:, order].copy(), wide[:, order]):
        names = other.var_names.copy()
        loaded = TRVAE.load("saved", other)
        assert loaded.adata.var_names.equals(trained.adata.var_names)
        found = predictions(loaded)
        for a, b in zip(found, expected, strict=True):
            assert dense(a.X).tobytes() == dense(b.X).tobytes()
        assert other.var_names.equals(names)
    with pytest.raises(
        InputError, match=r"lacks 2 of the 30 genes of the model: 'gene_0', 'gene_1"
    ):
        TRVAE.load("saved", cells[:, 2:].copy())


def test_without_data_they_are_passed_to_the_methods(trained, make_adata):
    trained.save("saved")
    loaded = TRVAE.load("saved", adata=False)
    assert loaded.adata is None
    cells = make_adata(24, seed=7)
    columns = list(cells.obs)
    assert_same_predictions(predictions(loaded, cells), predictions(trained, cells))
    assert list(cells.obs) == columns
    assert loaded.n_cells.equals(trained.n_cells)
    with pytest.raises(InputError, match="loaded without data: pass adata"):
        loaded.predict(target="stimulated")


def test_unknown_labels_are_predicted_but_not_trained_on(trained, make_adata):
    trained.save("saved")
    cells = make_adata(24, seed=7)
    cells.obs["cell_type"] = cells.obs["cell_type"].astype(str).replace({"NK": "new"})
    expected = predictions(trained, cells)
    loaded = TRVAE.load("saved", cells)
    assert loaded.labels == ["B", "NK", "T"]
    found = predictions(loaded)
    assert_same_predictions(found, expected)
    assert set(found[0].obs["cell_type"]) == {"B", "new", "T"}
    with pytest.raises(InputError, match=r"labels the model does not know: \['new'\]"):
        loaded.train(max_epochs=1, **CPU)


def test_unknown_conditions_are_refused(trained, make_adata):
    trained.save("saved")
    cells = make_adata(24, seed=7)
    cells.obs["condition"] = cells.obs["condition"].astype(str).replace({"control": "other"})
    with pytest.raises(InputError, match="Unknown condition 'other'"):
        TRVAE.load("saved", cells)


# -- files ------------------------------------------------------------------------------------------


def test_a_folder_that_exists_is_kept_unless_told(fit, make_adata):
    first, second = fit(make_adata(), seed=1), fit(make_adata(), seed=2)
    first.save("saved")
    with pytest.raises(InputError, match=r"saved exists\. Pass overwrite=True to replace it"):
        second.save("saved")
    assert same(weights_of(TRVAE.load("saved", adata=False)), weights_of(first))
    second.save("saved", overwrite=True)
    assert same(weights_of(TRVAE.load("saved", adata=False)), weights_of(second))
    assert entries() == ["saved"]


@pytest.mark.parametrize("is_dense", [False, True])
@pytest.mark.parametrize("backed", [None, "r"])
def test_data_that_are_saved_are_not_changed(fit, make_adata, backed, is_dense):
    """anndata makes text that it writes categories, and took the file that was being written for that of the data."""
    adata = make_adata()
    adata.raw = adata.copy()[:, :5]
    adata.X = adata.X.toarray() if is_dense else adata.X
    adata.write_h5ad("cells.h5ad")
    expected = anndata.read_h5ad("cells.h5ad")
    cells = anndata.read_h5ad("cells.h5ad", backed=backed)
    cells.obs["text"] = np.array(["a", "b"], dtype=object)[np.arange(cells.n_obs) % 2]
    model = fit(cells)
    before, file = cells.obs.dtypes, cells.filename
    for _ in range(2):
        model.save("model", save_anndata=True, overwrite=True)
        assert cells.filename == file
        pd.testing.assert_series_equal(cells.obs.dtypes, before)
        model.train(1, **CPU)
    saved = TRVAE.load("model").adata
    assert abs(saved.X - expected.X).max() == 0
    assert (saved.raw.X != expected.raw.X).nnz == 0
    assert saved.raw.var_names.tolist() == expected.raw.var_names.tolist()
    assert saved.obs["text"].tolist() == cells.obs["text"].tolist()


@pytest.mark.parametrize("has_raw", [False, True])
def test_genes_may_be_named_after_a_column_that_differs_since(has_raw, fit, make_adata):
    """As ``adata.var_names = adata.var["feature_name"]`` made unique: an error of anndata."""
    adata = make_adata(60)
    adata.var["feature_name"] = ["MATR3", "MATR3", *adata.var_names[2:]]
    adata.var_names = adata.var["feature_name"]
    adata.var_names_make_unique()
    adata.obs["barcode"] = adata.obs_names + "-1"
    adata.obs.index.name = "barcode"
    if has_raw:
        adata.raw = adata.copy()
    model = fit(adata)
    made = model.generate(condition="control", n_obs=5)
    path = family.interpolate(
        model, adata.obs["cell_type"] == "B", adata.obs["cell_type"] == "NK", condition="control"
    )
    for cells in (made, path):
        cells.write_h5ad("cells.h5ad")
    model.save("saved", save_anndata=True)
    saved = TRVAE.load("saved").adata
    assert saved.var_names.tolist() == [*("MATR3", "MATR3-1"), *adata.var_names[2:]]
    assert saved.var["feature_name"].tolist() == adata.var["feature_name"].tolist()
    assert saved.obs["barcode"].tolist() == adata.obs["barcode"].tolist()
    assert (adata.obs.index.name, adata.var.index.name) == ("barcode", "feature_name")


def test_data_that_no_file_can_hold_are_refused(fit, make_adata):
    """As a dose that is text in some cells and a number in others: an error of h5py."""
    adata = make_adata(60)
    adata.obs["dose"] = np.array(["high", 1.0], dtype=object)[np.arange(60) % 2]
    model = fit(adata)
    with pytest.raises(InputError, match=r"cannot be written to a file\..*key 'dose'"):
        model.save("saved", save_anndata=True)
    assert entries() == []
    model.save("saved")


def test_data_of_the_model_replaced_go_with_it(fit, make_adata):
    """They once stayed, and were loaded with a model they did not belong to."""
    fit(make_adata(60)).save("saved", save_anndata=True)
    assert TRVAE.load("saved").adata.n_obs == 60
    fit(make_adata(60)).save("saved", prefix="a_", save_anndata=True, overwrite=True)
    fit(make_adata(90)).save("saved", overwrite=True)
    names = sorted(p.name for p in Path("saved").iterdir())
    assert names == ["a_adata.h5ad", "a_model.pt", "model.pt"]
    assert TRVAE.load("saved", prefix="a_").adata.n_obs == 60


def test_data_that_changed_since_are_not_saved_as_those_of_the_model(fit, make_adata):
    """Conditions that were exchanged were loaded as those that the model was trained on."""
    model = fit(make_adata(60))
    names = {"control": "stimulated", "stimulated": "control"}
    model.adata.obs["condition"] = model.adata.obs["condition"].astype(str).map(names)
    with pytest.raises(InputError, match="changed since adata was registered"):
        model.save("saved", save_anndata=True)
    model.save("saved")


def fail_to_write(patch, error):
    """Let half of a model's file be written."""

    def write_half(path, content):
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise error

    patch.setattr(Path, "write_bytes", write_half)


def fail_to_flush(patch, error):
    """Let the disk be full only when all was written, as a network's file system may."""

    def fsync(handle):
        raise error

    patch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("fail", [fail_to_write, fail_to_flush])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("exists", [True, False])
def test_a_save_that_fails_changes_nothing(fit, make_adata, monkeypatch, fail, error, exists):
    model = fit(make_adata())
    if exists:
        model.save("saved", save_anndata=True)
    before = {p.name: p.read_bytes() for p in Path().glob("saved/*")}
    model.train(max_epochs=1, **CPU)
    with monkeypatch.context() as patch:
        fail(patch, error)
        with pytest.raises(type(error)):
            model.save("saved", overwrite=True, save_anndata=True)
    assert {p.name: p.read_bytes() for p in Path().glob("saved/*")} == before
    assert entries() == (["saved"] if exists else [])
    model.save("saved", overwrite=True)
    assert same(weights_of(TRVAE.load("saved", adata=False)), weights_of(model))


KILLED = """
import os, signal
from trvae_sc import TRVAE

model = TRVAE.load("saved", adata=False)
os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)
model.save("saved", overwrite=True)
"""


def test_a_killed_save_changes_nothing_and_is_cleared_away(fit, python):
    """Also by a process that writes beside it, of which what runs stays untouched."""
    fit(seed=1).save("saved")
    written = Path("saved/model.pt").read_bytes()
    path = str(Path(trvae_sc.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([python, "-c", KILLED], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    (hidden,) = (name for name in entries() if name != "saved")
    assert Path("saved/model.pt").read_bytes() == written
    running = Path(hidden.rsplit("-", 2)[0] + f"-{os.getpid()}-x")
    running.mkdir()
    fit(seed=2).save("other")
    assert entries() == sorted(["other", "saved", running.name])
    assert same(weights_of(TRVAE.load("saved", adata=False)), weights_of(fit(seed=1)))


def test_what_a_killed_save_moved_aside_comes_back(fit):
    """Where two folders cannot change places in one step, there is none for a moment."""
    fit(seed=1).save("saved")
    done = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"],
        capture_output=True,
        text=True,
        check=True,
    )
    host = "".join(c for c in socket.gethostname() if c.isalnum())
    aside = Path(f".trvae_sc-{host}-{done.stdout.strip()}-x/replaced")
    aside.mkdir(parents=True)
    Path("saved").rename(aside / "saved")
    fit(seed=2).save("other")
    assert entries() == ["other", "saved"]
    assert same(weights_of(TRVAE.load("saved", adata=False)), weights_of(fit(seed=1)))


@pytest.mark.parametrize("exchange", [True, False])
def test_what_else_is_in_the_folder_stays(fit, monkeypatch, exchange):
    """Also where the system cannot let two folders change places."""
    if not exchange:
        monkeypatch.setattr("trvae_sc.files._rename_exchange", lambda a, b: False)
    fit(seed=1).save("saved")
    Path("saved/deep/er").mkdir(parents=True)
    Path("saved/deep/er/mine.txt").write_text("mine")
    Path("saved/link").symlink_to("nowhere")
    second = fit(seed=2)
    second.save("saved", overwrite=True)
    assert sorted(p.name for p in Path("saved").iterdir()) == ["deep", "link", "model.pt"]
    assert Path("saved/deep/er/mine.txt").read_text() == "mine"
    assert Path("saved/link").readlink() == Path("nowhere")
    assert same(weights_of(TRVAE.load("saved", adata=False)), weights_of(second))
    assert entries() == ["saved"]


def test_what_cannot_be_read_back_as_data_is_not_saved(fit):
    model = fit()
    model.note_ = object()
    with pytest.raises(InputError, match="Cannot save a value of type object"):
        model.save("saved")
    assert entries() == []


def test_a_missing_model_is_named(trained):
    with pytest.raises(InputError, match=r"No model at .*nowhere.model\.pt"):
        TRVAE.load("nowhere")
    trained.save("saved")
    with pytest.raises(InputError, match=r"other_model\.pt"):
        TRVAE.load("saved", prefix="other_")
    with pytest.raises(InputError):
        TRVAE.load("saved/model.pt")
    with pytest.raises(InputError, match="nowhere"):
        TRVAE.load_query_data(trained.adata, "nowhere")


def refuse(message, folder="saved"):
    """Check that a model is not loaded, by any way in."""
    for load in (TRVAE.load, TRVAE.load_registry):
        with pytest.raises(InputError, match=message):
            load(folder, **({"adata": False} if load == TRVAE.load else {}))


DAMAGED = r"model\.pt is damaged, or is not a model that trvae_sc saved"


def test_a_damaged_file_is_named(trained):
    trained.save("saved")
    file = Path("saved/model.pt")
    written = file.read_bytes()
    length = int.from_bytes(written[:8], "little")
    rng = np.random.default_rng(0)
    ends = (0, 1, 8, 100, 8 + length, len(written) // 2, len(written) - 1)
    damaged = [written[:n] for n in ends]
    damaged += [rng.bytes(n) for n in (10, 1000)] + [written + b"x"]
    damaged += [n.to_bytes(8, "little") + written[8:] for n in (0, length - 1, 2**28, 2**64 - 1)]
    places = range(8, length, length // 20)
    damaged += [written[:n] + rng.bytes(40) + written[n + 40 :] for n in places]
    for content in damaged:
        file.write_bytes(content)
        refuse(DAMAGED)
    file.write_bytes(written)
    assert same(weights_of(TRVAE.load("saved", adata=False)), weights_of(trained))


def test_changed_weights_are_noticed(trained):
    trained.save("saved")
    file = Path("saved/model.pt")
    content = bytearray(file.read_bytes())
    content[-10] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError):
        TRVAE.load("saved", adata=False)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_named(trained, value):
    trained.save("saved")
    file = Path("saved/model.pt")
    header, ours, data = parts_of(file)
    start = header["weights.z_mean.bias"]["data_offsets"][0]
    bad = np.float32(value).tobytes()
    write_parts(file, header, ours, data[:start] + bad + data[start + 4 :])
    with_checksum(file)
    refuse(r"model\.pt holds weights that are no numbers \(z_mean\.bias\)")


def without_ours(header, ours):
    return header, "{}"


def no_json(header, ours):
    return header, "x"


def no_format(header, ours):
    return header, {k: v for k, v in ours.items() if k != "format"}


def text_as_format(header, ours):
    return header, ours | {"format": "2"}


def more_than_the_file(header, ours):
    return header | {
        "weights.z_mean.bias": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}
    }, ours


def other_kind(header, ours):
    return header, ours | {"attributes": {"seed_": {"code": "x"}}}


def absent_array(header, ours):
    return header, ours | {"attributes": {"seed_": {"array": "x"}}}


def wrong_frame(header, ours):
    return header, ours | {"attributes": {"seed_": {"frame": {"columns": 3}}}}


def wrong_length(header, ours):
    return header, ours | {"attributes": {"seed_": {"objects": [1, 2], "shape": [3]}}}


def no_kind(header, ours):
    return header, ours | {"attributes": {"seed_": {}}}


def no_attributes(header, ours):
    return header, ours | {"attributes": []}


def very_deep(header, ours):
    return header, json.dumps(ours)[:-1] + ', "deep": ' + "[" * 10**5 + "]" * 10**5 + "}"


@pytest.mark.parametrize(
    "change",
    [
        without_ours,
        no_json,
        no_format,
        text_as_format,
        more_than_the_file,
        other_kind,
        absent_array,
        wrong_frame,
        wrong_length,
        very_deep,
        no_kind,
        no_attributes,
    ],
)
def test_a_header_that_is_not_ours_is_refused(trained, change):
    trained.save("saved")
    file = Path("saved/model.pt")
    header, ours, data = parts_of(file)
    write_parts(file, header, ours, data)
    assert TRVAE.load("saved", adata=False).is_trained  # by a header that a test wrote
    write_parts(file, *change(header, ours), data)
    refuse(DAMAGED)


def test_a_file_replaces_no_methods(trained):
    trained.save("saved")
    file = Path("saved/model.pt")
    header, ours, data = parts_of(file)
    ours["attributes"] |= {"predict": "x"}
    write_parts(file, header, ours, data)
    with pytest.raises(InputError, match="damaged"):
        TRVAE.load("saved", adata=False)


@pytest.mark.parametrize(
    "claim",
    [
        {"n_hidden": {"tuple": [10**9, 10**9]}},  # more memory than there is
        {"n_latent": 10**9},
        {"n_latent": 5},
        {"n_latent": "x"},
        {"preset": "x"},
        {"x": 1},
    ],
    ids=str,
)
def test_a_network_that_the_weights_do_not_fit_is_refused(trained, claim):
    trained.save("saved")
    file = Path("saved/model.pt")
    header, ours, data = parts_of(file)
    params = dict(ours["attributes"]["init_params_"]["dict"])["non_kwargs"]
    params["dict"] = [*({**dict(params["dict"]), **claim}).items()]
    write_parts(file, header, ours, data)
    with pytest.raises(InputError, match="The model in saved is damaged"):
        TRVAE.load("saved", adata=False)


def test_weights_that_do_not_fit_the_network_are_refused(trained, fit):
    trained.save("saved")
    fit(setup={"batch_key": "batch"}, n_hidden=(12, 8)).save("other")
    header, ours, data = parts_of(Path("saved/model.pt"))
    without = {k: v for k, v in header.items() if k != "weights.z_mean.bias"}
    without["array.x"] = header["weights.z_mean.bias"]  # each byte must be of something
    more = header | {"weights.x": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}
    other, _, other_data = parts_of(Path("other/model.pt"))
    for changed in ((without, data), (more, data), (other, other_data)):
        write_parts(Path("saved/model.pt"), changed[0], ours, changed[1])
        with_checksum(Path("saved/model.pt"))
        with pytest.raises(InputError, match=r"damaged: '\S+' does not fit its network"):
            TRVAE.load("saved", adata=False)


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


@pytest.mark.parametrize("place", ["file", "zip", "attributes", "weights"])
def test_code_in_a_file_is_not_executed(trained, place):
    """The models of 0.1 were pickled by torch."""
    Path("saved").mkdir()
    file = Path("saved/model.pt")
    content = {"model_state_dict": {}, "var_names": [], "attr_dict": {"format_": 1}}
    if place == "attributes":
        content["attr_dict"]["note_"] = Evil()
    elif place == "weights":
        content["model_state_dict"]["z_mean.bias"] = Evil()
    elif place == "zip":
        content = Evil()
    if place == "file":
        file.write_bytes(pickle.dumps(Evil()))
    else:
        torch.save(content, file)
    pickled = "was not saved by this version of trvae_sc: models of 0.1 were pickled, .* Train the"
    for load in (TRVAE.load, lambda path, **_: TRVAE.load_query_data(trained.adata, path)):
        with pytest.raises(InputError, match=DAMAGED if place == "file" else pickled):
            load("saved", adata=False)
    assert not Path("executed").exists()
    with file.open("rb") as opened:  # the code is alive
        pickle.load(opened) if place == "file" else torch.load(file, weights_only=False)
    assert Path("executed").exists()


def test_a_file_of_a_newer_version_is_named(trained):
    trained.save("saved")
    file = Path("saved/model.pt")
    header, ours, data = parts_of(file)
    write_parts(file, header, ours | {"format": 99, "version": "12.3.4"}, data)
    refuse(r"trvae_sc 12\.3\.4 in format 99; .* reads up to 2\. Upgrade")


def test_another_file_is_refused(trained):
    Path("saved").mkdir()
    file = Path("saved/model.pt")
    for content in ({"a": 1}, [1, 2], {"attr_dict": {"is_trained_": True}}, torch.zeros(3)):
        torch.save(content, file)
        refuse("was not saved by this version of trvae_sc")
    for content in ({"a": torch.zeros(3)}, trained.module.state_dict()):
        save_file(content, file)
        refuse(DAMAGED)


# -- query surgery ----------------------------------------------------------------------------------


def query_cells(make_adata, columns, n_cells=120, values="counts"):
    """Return cells of which half have a new level in each of some columns."""
    adata = make_adata(n_cells, seed=5, values=values)
    for i, column in enumerate(columns):
        chosen = np.arange(n_cells) // (6 * (i + 1)) % 2 == 0
        if column == "condition":  # only stimulated cells become new
            chosen = (adata.obs["condition"] == "stimulated").to_numpy() & chosen
        adata.obs[column] = adata.obs[column].astype(str).mask(chosen, "new")
    return adata


def without(adata, key):
    """Return a copy that lacks a column of obs."""
    adata = adata.copy()
    del adata.obs[key]
    return adata


#: Columns with a new level, and the parameters that get a row.
CONDITION_ROWS = {"encoder_in.condition", "decoder_in.condition", "log_dispersion_condition"}
NEW = {
    "batch": (["batch"], {"encoder_in.categories.0", "decoder_in.categories.0"}),
    "condition": (["condition"], CONDITION_ROWS),
    "both": (
        ["condition", "batch"],
        CONDITION_ROWS | {"encoder_in.categories.0", "decoder_in.categories.0"},
    ),
    "covariate": (["site"], {"encoder_in.categories.2", "decoder_in.categories.2"}),
    "all": (
        ["condition", "batch", "sex", "site", "cell_type"],
        CONDITION_ROWS
        | {f"{side}_in.categories.{k}" for side in ("encoder", "decoder") for k in range(3)},
    ),
}


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("likelihood", ["nb", "normal"])
def test_a_frozen_query_leaves_old_predictions_to_the_bit(fit, make_adata, name, likelihood):
    columns, grown = NEW[name]
    values = "counts" if likelihood == "nb" else "log"
    reference = fit(
        make_adata(values=values), setup=COVARIATES, gene_likelihood=likelihood, train={"lr": 0.02}
    )
    start = weights_of(reference)
    cells = make_adata(36, seed=7, values=values)
    expected = predictions(reference, cells)
    query = query_cells(make_adata, columns, values=values)
    model = TRVAE.load_query_data(query, reference)
    assert not model.is_trained
    model.is_trained = True  # as far as the reference knows
    assert_same_predictions(predictions(model, cells), expected)
    model.is_trained = False
    before = weights_of(model)
    model.train(max_epochs=4, batch_size=40, **CPU)
    after = weights_of(model)
    assert_same_predictions(predictions(model, cells), expected)
    statistics = {"n_cells", "profiles"}
    found = {k for k in before if not np.array_equal(before[k], after[k])} - statistics
    assert found == grown
    for key in grown:
        n = len(start[key])
        assert len(after[key]) == n + 1
        assert after[key][:n].tobytes() == start[key].tobytes()
        assert before[key][n] == pytest.approx(start[key].mean(0), rel=1e-5, abs=1e-7)
        assert abs(after[key][n] - before[key][n]).max() > 1e-3
    assert same(weights_of(reference), start)
    assert model.conditions == ["control", "stimulated"] + ["new"] * ("condition" in columns)
    assert model.labels == ["B", "NK", "T"] + ["new"] * ("cell_type" in columns)


def test_training_on_and_after_loading_leaves_old_predictions_too(fit, make_adata):
    reference = fit(make_adata(), setup=COVARIATES)
    cells = make_adata(36, seed=7)
    expected = predictions(reference, cells)
    reference.save("reference")
    query = query_cells(make_adata, ["condition", "batch"])
    model = TRVAE.load_query_data(query, "reference")
    plan = {"weight_decay": 0.5, "lr_schedule": None}
    model.train(max_epochs=2, plan_kwargs=plan, **CPU)
    new = predictions(model, query, target="new")
    model.save("query")
    loaded = TRVAE.load("query", query_cells(make_adata, ["condition", "batch"]))
    assert same(weights_of(loaded), weights_of(model))
    assert loaded.conditions == ["control", "stimulated", "new"]
    assert_same_predictions(predictions(loaded, target="new"), new)
    assert_same_predictions(predictions(loaded, cells), expected)
    loaded.train(max_epochs=3, lr=0.05, plan_kwargs=plan, **CPU)
    assert_same_predictions(predictions(loaded, cells), expected)
    changed = predictions(loaded, target="new")
    assert not np.array_equal(changed[2].X, new[2].X)


def test_a_query_of_a_query_leaves_both(fit, make_adata):
    reference = fit(make_adata(), setup=COVARIATES)
    cells = make_adata(36, seed=7)
    first_query = query_cells(make_adata, ["batch"])
    first = TRVAE.load_query_data(first_query, reference)
    first.train(max_epochs=2, **CPU)
    expected = predictions(first, cells), predictions(first, first_query)
    second = TRVAE.load_query_data(query_cells(make_adata, ["condition"]), first)
    second.train(max_epochs=2, **CPU)
    assert second.conditions == ["control", "stimulated", "new"]
    assert len(second.module.decoder_in.categories[0]) == 3
    assert_same_predictions(predictions(second, cells), expected[0])
    assert_same_predictions(predictions(second, first_query), expected[1])
    assert_same_predictions(predictions(second, cells), predictions(reference, cells))


def test_treated_cells_of_a_frozen_query_were_seen(fit, make_adata):
    """Its batch is learned from them: predictions said that training saw none, and that cells of the reference are new."""
    adata = make_adata()
    hidden = (adata.obs["cell_type"] == "NK") & (adata.obs["condition"] == "stimulated")
    reference = fit(adata[~hidden].copy(), setup={"batch_key": "batch"})
    others = make_adata(seed=5)
    names = {"target": "stimulated", "labels": "NK"}

    def seen(model, cells=None):
        found = model.predict(cells, **names).uns["trvae_sc"]["combinations"].iloc[0]
        return found["n_training_cells"], bool(found["seen_in_training"]), found["n_new_cells"]

    others.obs["batch"] = "first"
    first = TRVAE.load_query_data(others, reference)
    first.train(max_epochs=1, **CPU)
    assert seen(reference) == (0, False, 0)
    assert seen(first) == seen(first, reference.adata) == (20, True, 0)
    first.train(max_epochs=1, **CPU)
    first.save("first")
    assert seen(TRVAE.load("first", adata=False), others) == (20, True, 0)
    with pytest.raises(InputError, match="has every combination"):
        first.predict_missing()
    untreated = make_adata(seed=6)[~hidden].copy()
    untreated.obs["batch"] = "second"
    second = TRVAE.load_query_data(untreated, first)
    second.train(max_epochs=1, **CPU)
    assert seen(second) == (20, True, 0)
    assert first.n_cells.equals(reference.n_cells)  # what predictions rest on


def test_a_new_condition_is_learned(fit, make_adata):
    """The new condition has the opposite effect; it is predicted for a label not seen under it."""
    reference = fit(make_adata(300), train={"max_epochs": 30, "batch_size": 50})
    query = make_adata(300, seed=5, effect=-1.0)
    query.obs["condition"] = query.obs["condition"].astype(str).replace({"stimulated": "new"})
    is_truth = (query.obs["cell_type"] == "B") & (query.obs["condition"] == "new")
    truth, query = query[is_truth].copy(), query[~is_truth].copy()
    model = TRVAE.load_query_data(query, reference)
    arguments = {"target": "new", "source": "control", "labels": "B", "output": "mean"}
    model.is_trained = True
    before = model.predict(**arguments)
    model.is_trained = False
    model.train(max_epochs=20, batch_size=50, lr=0.02, **CPU)
    after = model.predict(**arguments)
    assert np.isfinite(after.X).all()
    assert len(after) == 50
    shares = truth.X.toarray() / truth.obs["n_counts"].to_numpy()[:, None]
    real = np.log1p(after.uns["trvae_sc"]["kappa"] * shares.mean(0)) - after.var["source_mean"]
    assert np.corrcoef(after.var["predicted_change"], real)[0, 1] > 0.9
    assert np.corrcoef(before.var["predicted_change"], real)[0, 1] < 0.5
    record = after.uns["trvae_sc"]["combinations"].iloc[0]
    assert record["n_training_cells"] == 0
    assert model.n_cells["new"].tolist() == [0, 50, 50]
    assert model.n_cells["control"].tolist() == reference.n_cells["control"].tolist()


def test_an_unfrozen_query_changes_everything(fit, make_adata):
    reference = fit(make_adata())
    start, cells = weights_of(reference), make_adata(36, seed=7)
    expected = predictions(reference, cells)
    model = TRVAE.load_query_data(query_cells(make_adata, ["condition"]), reference, freeze=False)
    assert all(p.requires_grad for p in model.module.parameters())
    model.train(max_epochs=2, **CPU)
    for name, old in start.items():
        if name.endswith(("weight", "bias")):
            assert not np.array_equal(weights_of(model)[name], old), name
    for a, b in zip(predictions(model, cells), expected, strict=True):
        assert not np.array_equal(dense(a.X), dense(b.X))
    assert same(weights_of(reference), start)
    assert model.n_cells["stimulated"].tolist() == [10, 10, 10]  # as the latest fit saw them


def test_an_unfrozen_query_of_a_frozen_one_predicts(fit, make_adata):
    """Cells of the frozen one were counted in the conditions that it has: shapes did not match."""
    first = TRVAE.load_query_data(
        query_cells(make_adata, ["batch"]), fit(make_adata(), setup=COVARIATES)
    )
    first.train(max_epochs=1, **CPU)
    second = TRVAE.load_query_data(query_cells(make_adata, ["condition"]), first, freeze=False)
    second.train(max_epochs=1, **CPU)
    table = second.predict(target="new", source="control").uns["trvae_sc"]["combinations"]
    assert table["n_training_cells"].tolist() == second.n_cells["new"].loc[table["label"]].tolist()


def test_nothing_new_is_nothing_to_train(trained, make_adata):
    for columns in ([], ["cell_type"]):  # a label has no parameters
        with pytest.raises(InputError, match="no condition, batch or covariate level"):
            TRVAE.load_query_data(query_cells(make_adata, columns), trained)
    model = TRVAE.load_query_data(make_adata(seed=5), trained, freeze=False)
    model.train(max_epochs=1, **CPU)
    assert not same(weights_of(model), weights_of(trained))


def test_labels_of_the_query(trained, make_adata):
    """New ones are learned from; a column of them is needed, as in a registration."""
    query = query_cells(make_adata, ["condition", "cell_type"])
    model = TRVAE.load_query_data(query, trained)
    assert model.labels == ["B", "NK", "T", "new"]
    assert model.module.n_cells.shape == (4, 3)
    model.train(max_epochs=1, **CPU)
    seen = (query.obs["condition"] == "new") & (query.obs["cell_type"] == "new")
    assert model.n_cells.loc["new", "new"] == seen.sum() > 0
    known = trained.n_cells.to_numpy()
    assert np.array_equal(model.n_cells.to_numpy()[:3, :2], known)
    predicted = model.predict(query, target="new", source="control", labels="new")
    assert set(predicted.obs["cell_type"]) == {"new"}
    with pytest.raises(InputError, match="No column 'cell_type'"):
        TRVAE.load_query_data(without(query, "cell_type"), trained)


@pytest.mark.parametrize("freeze", [True, False])
@pytest.mark.parametrize("columns", [["condition"], ["batch"]])
def test_a_new_condition_that_cannot_be_learned_is_warned_of(
    fit, make_adata, caplog, freeze, columns
):
    """Without labels, behind frozen weights; a batch, or a condition known before, can."""
    reference = fit(make_adata(), setup={"labels_key": None, "batch_key": "batch"})
    model = TRVAE.load_query_data(query_cells(make_adata, columns), reference, freeze=freeze)
    warned = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    hopeless = freeze and columns == ["condition"]
    assert [t for t in warned if "freeze=False" in t] == [FROZEN_WITHOUT_LABELS] * hopeless
    model.train(max_epochs=1, **CPU)
    for target in model.conditions:
        notes = model.predict(target=target).uns["trvae_sc"]["notes"]
        assert (FROZEN_WITHOUT_LABELS in notes) == (hopeless and target == "new")


def test_what_a_query_lacks_is_named(trained, fit, make_adata):
    query = query_cells(make_adata, ["condition"])
    with pytest.raises(
        InputError, match=r"lacks 3 of the 30 genes .*: 'gene_0', 'gene_1', 'gene_2"
    ):
        TRVAE.load_query_data(query[:, 3:].copy(), trained)
    for key in ("condition", "batch", "n_counts"):
        with pytest.raises(InputError, match=f"No column '{key}'"):
            TRVAE.load_query_data(without(query, key), trained)
    incomplete = query.copy()
    incomplete.obs["condition"] = incomplete.obs["condition"].where(np.arange(120) > 2)
    with pytest.raises(InputError, match=r"obs\['condition'\] is missing \(NaN\) in 3 cells"):
        TRVAE.load_query_data(incomplete, trained)
    with pytest.raises(RuntimeError, match="not trained"):
        TRVAE.load_query_data(query, fit(train=False))


def test_query_genes_are_matched_by_name_also_in_views(trained, make_adata):
    query = query_cells(make_adata, ["condition"])
    expected = TRVAE.load_query_data(query.copy(), trained)
    expected.train(max_epochs=1, **CPU)
    for other in (query[:, ::-1].copy(), query[:, ::-1]):
        model = TRVAE.load_query_data(other, trained)
        model.train(max_epochs=1, **CPU)
        assert same(weights_of(model), weights_of(expected))
        assert list(other.var_names) == [f"gene_{j}" for j in range(29, -1, -1)]


def test_a_model_is_saved_into_an_empty_folder(fit, tmp_path):
    (tmp_path / "empty").mkdir()
    made = fit()
    made.save(tmp_path / "empty")
    assert TRVAE.load(tmp_path / "empty", adata=False).is_trained
