"""Paths that users give."""

import errno
import os
import shutil
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import zarr
from anndata import AnnData
from anndata.io import read_elem, sparse_dataset

from trvae_sc import TRVAE, pl
from trvae_sc.datasets import load
from trvae_sc.errors import InputError
from trvae_sc.evaluation import Holdout, Keys, Results, benchmark, subsample
from trvae_sc.files import write_anndata, write_text
from trvae_sc.report import write_report

pytestmark = pytest.mark.filterwarnings("ignore:Writing zarr v2")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Return a home folder of its own."""
    folder = tmp_path / "home"
    folder.mkdir()
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(folder))
    return folder


def found(folder):
    return {path.name for path in folder.iterdir()}


def test_a_file_never_replaces_a_folder():
    """What came meanwhile in the place of a result was lost."""
    folder = Path("page.html")
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(OSError):
        write_text(folder, "page")
    with pytest.raises(OSError):
        write_anndata(AnnData(np.ones((2, 3))), folder, overwrite=True)
    assert (folder / "notes.txt").read_text() == "mine"
    assert found(Path()) == {"page.html"}


@pytest.fixture
def windows(monkeypatch):
    """Let files behave as on Windows.

    Folders cannot be opened or replaced, files that are open to be read not flushed; nothing changes places.
    """
    readable, replace = set(), Path.replace

    class Windows:
        def __getattr__(self, name):
            return getattr(os, name)

        def open(self, path, flags):
            if Path(path).is_dir():
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            handle = os.open(path, flags)
            (readable.discard if flags & (os.O_WRONLY | os.O_RDWR) else readable.add)(handle)
            return handle

        def fsync(self, handle):
            if handle in readable:
                raise OSError(errno.EBADF, "Bad file descriptor")

    def replace_file(path, target):
        if Path(target).is_dir():
            raise PermissionError(errno.EACCES, "Access is denied", str(target))
        return replace(path, target)

    monkeypatch.setattr("trvae_sc.files.os", Windows())
    monkeypatch.setattr(Path, "replace", replace_file)
    monkeypatch.setattr("trvae_sc.files._rename_exchange", lambda a, b: False)


@pytest.mark.parametrize("name", ["cells.h5ad", "cells.zarr"])
def test_windows_writes(windows, name):
    """Nothing could be saved there."""
    for overwrite in (False, True):
        write_anndata(AnnData(np.ones((2, 3))), Path(name), overwrite=overwrite)
    assert found(Path()) == {name}


def test_a_table_has_the_same_bytes_where_lines_end_otherwise(monkeypatch):
    """On Windows every second line was empty: pandas ended lines as files do, and the file did again."""
    monkeypatch.setattr(os, "linesep", "\r\n")
    write_text(Path("table.csv"), pd.DataFrame({"gene": ["a", "b"]}).to_csv(index=False))
    assert Path("table.csv").read_bytes() == b"gene\na\nb\n"


def test_a_folder_takes_the_place_of_an_empty_one_on_windows(windows):
    cells, place = AnnData(np.ones((2, 3))), Path("cells.zarr")
    place.mkdir()
    write_anndata(cells, place)
    assert anndata.read_zarr(place).shape == (2, 3)
    with pytest.raises(InputError, match="made meanwhile"):
        write_anndata(cells, place)
    assert anndata.read_zarr(place).shape == (2, 3)
    assert found(Path()) == {"cells.zarr"}


def test_a_store_replaces_a_file():
    place = Path("cells.zarr")
    place.write_text("old")
    write_anndata(AnnData(np.ones((2, 3))), place, overwrite=True)
    assert anndata.read_zarr(place).shape == (2, 3)
    assert found(Path()) == {"cells.zarr"}


def test_a_tilde_before_no_user_is_part_of_a_name():
    cells = AnnData(np.ones((2, 3)))
    cells.write_h5ad("~draft.h5ad")
    assert load("~draft").shape == cells.shape


def test_a_tilde_is_the_home_folder(home, fit, make_adata):
    model = fit(train={"max_epochs": 1, "checkpoint_dir": "~/checkpoints"})
    model.save("~/model")
    loaded = TRVAE.load("~/model", adata=make_adata())
    assert TRVAE.load_registry("~/model")["setup_args"]["labels_key"] == "cell_type"
    for out in ("~/cells.h5ad", "~/cells.zarr"):
        written = loaded.predict(target="stimulated", out=out)
    np.testing.assert_array_equal(written.obs_names, loaded.predict(target="stimulated").obs_names)
    with pytest.raises(InputError, match="exists"):
        loaded.predict(target="stimulated", out="~/cells.h5ad")
    benchmark(
        make_adata(),
        ["no_change"],
        [Holdout("NK", "stimulated", "control")],
        condition_key="condition",
        labels_key="cell_type",
        folder="~/scores",
        progress=False,
    )
    assert len(Results.load("~/scores").table)
    write_report("~/page.html", "<p>")
    pl.volcano(loaded.predict(target="stimulated", labels="B"), save="~/volcano.png")
    names = "checkpoints model cells.h5ad cells.zarr scores page.html volcano.png"
    assert found(home) == set(names.split())
    assert found(Path()) == {"home"}


# -- inputs that results would replace, and inputs that are gone -------------------------------------------


def opened(path):
    """Return cells whose values stay in a zarr store, as the guide to large data opens them."""
    group = zarr.open_group(path, mode="r")
    adata = AnnData(obs=read_elem(group["obs"]), var=read_elem(group["var"]))
    x = group["X"]
    adata.X = sparse_dataset(x) if hasattr(x, "keys") else x
    return adata


def stored(adata, path, *, is_dense):
    """Write cells to a zarr store, sparse or dense."""
    written = AnnData(adata.X.toarray() if is_dense else adata.X, obs=adata.obs, var=adata.var)
    written.write_zarr(path)
    return opened(path)


@pytest.mark.parametrize("is_dense", [False, True])
def test_the_store_that_is_read_is_not_replaced_by_what_is_predicted(fit, make_adata, is_dense):
    adata = make_adata()
    backed = stored(adata, "cells.zarr", is_dense=is_dense)
    model = fit(adata)
    Path("link.zarr").symlink_to("cells.zarr")
    for out in ("cells.zarr", Path("cells.zarr").resolve(), "link.zarr"):
        with pytest.raises(InputError, match="is an input, and would be replaced"):
            model.predict(backed, target="stimulated", out=out, overwrite=True)
    assert anndata.read_zarr("cells.zarr").shape == adata.shape
    model.predict(backed, target="stimulated", out="other.zarr", overwrite=True)


@pytest.mark.parametrize("place", ["file", "file/deeper"])
def test_results_in_a_file_are_refused(make_adata, place):
    Path("file").write_text("mine")
    keys = {"condition_key": "condition", "labels_key": "cell_type"}
    with pytest.raises(InputError, match="file is a file, so file"):
        benchmark(make_adata(), ["no_change"], ["NK:stimulated"], **keys, folder=place)
    with pytest.raises(InputError, match="file is a file, so file"):
        write_report(Path(place) / "page.html", "<p>")


def test_cells_in_a_file_are_drawn_from(make_adata):
    adata = make_adata()
    adata.write_h5ad("cells.h5ad")
    backed = anndata.read_h5ad("cells.h5ad", backed="r")
    keys = Keys("condition", "cell_type")
    found, expected = subsample(backed, keys, 5), subsample(adata, keys, 5)
    assert found.obs_names.tolist() == expected.obs_names.tolist()
    assert (found.X != expected.X).nnz == 0
    assert not found.isbacked


def test_no_file_that_is_read_is_replaced_by_what_is_predicted(fit, make_adata):
    """Of other cells than those that are passed."""
    adata = make_adata()
    adata.write_h5ad("cells.h5ad")
    backed = anndata.read_h5ad("cells.h5ad", backed="r")
    model = fit(backed)
    write = {"target": "stimulated", "out": "cells.h5ad", "overwrite": True}
    for given in ({"adata": adata}, {"adata": adata, "exemplars": backed}, {}):
        with pytest.raises(InputError, match="is an input, and would be replaced"):
            model.predict(**given, **write)
    with pytest.raises(InputError, match="Expected an AnnData, got str"):
        model.predict("cells.h5ad", target="stimulated", out="p.h5ad")


def test_a_backed_file_needs_no_x_where_a_layer_has_the_values(fit, make_adata):
    adata = make_adata()
    of_x = fit(adata.copy())
    adata.layers["counts"], adata.X = adata.X, None
    model = fit(adata.copy(), setup={"layer": "counts"})
    expected = model.predict(adata, target="stimulated")
    whole = AnnData(obs=adata.obs, var=adata.var, layers={"counts": adata.layers["counts"]})
    whole[:, ::-1].copy().write_h5ad("cells.h5ad")  # genes are put in order
    backed = anndata.read_h5ad("cells.h5ad", backed="r")
    for out in (None, "p.h5ad"):
        found = model.predict(backed, target="stimulated", out=out).to_memory()
        assert abs(found.X - expected.X).max() == 0
    with pytest.raises(InputError, match=r"X is None\. Name one of the layers"):
        of_x.predict(backed, target="stimulated", out="q.h5ad")


@pytest.mark.parametrize("is_dense", [False, True])
def test_a_store_that_is_gone_is_not_read_as_zeros(fit, make_adata, is_dense):
    adata = make_adata()
    model = fit(adata)
    backed = stored(adata, "cells.zarr", is_dense=is_dense)
    model.predict(backed, target="stimulated")
    shutil.rmtree("cells.zarr")
    with pytest.raises(FileNotFoundError, match=r"cells.zarr.* is not there any more"):
        model.predict(backed, target="stimulated")
    with pytest.raises(FileNotFoundError, match="is not there any more"):
        fit(backed)
