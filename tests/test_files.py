"""Paths that users give."""

from pathlib import Path

import numpy as np
import pytest

from trvae_sc import TRVAE, pl
from trvae_sc.errors import InputError
from trvae_sc.evaluation import Holdout, Results, benchmark
from trvae_sc.report import write_report


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
    pl.volcano(loaded.effects(target="stimulated", labels="B"), save="~/volcano.png")
    names = "checkpoints model cells.h5ad cells.zarr scores page.html volcano.png"
    assert found(home) == set(names.split())
    assert found(Path()) == {"home"}
