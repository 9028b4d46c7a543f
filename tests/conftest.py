"""Small seeded builders that every test file shares.

What takes long to import is imported in functions: with ``-n``, this file is read in one more process,
which runs no tests and which the workers wait for.
"""

import functools
import gc
import logging
import os
import shlex
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

os.fsync = lambda handle: None  # tests outlive no power cut, and disks take long

#: Arguments of ``train`` that keep a test small and quiet.
QUICK = {"max_epochs": 2, "accelerator": "cpu", "devices": 1, "enable_progress_bar": False}
#: Arguments of the model that keep it small.
SMALL = {"n_latent": 4, "n_hidden": (16, 8)}
#: Keys of ``setup_anndata`` that the data of :func:`make_adata` have.
KEYS = {"labels_key": "cell_type", "total_counts_key": "n_counts"}


def _make_adata(n_cells=120, n_genes=30, *, seed=0, values="counts", effect=1.0):
    """Return cells of 2 conditions x 3 labels in every combination, interleaved.

    Counts are Poisson; ``values="log"`` makes them log1p. ``obs`` further has a batch, two
    categorical and one continuous covariate, and the total counts, which exceed the sum over genes.
    """
    import numpy as np
    import pandas as pd
    from anndata import AnnData
    from scipy import sparse

    rng = np.random.default_rng(seed)
    genes = np.random.default_rng(1)
    base = genes.gamma(2.0, 1.0, n_genes)
    by_label = genes.lognormal(0.0, 0.7, (3, n_genes))
    stimulation = np.exp(effect * genes.normal(0.0, 0.8, n_genes))
    cells = np.arange(n_cells)
    condition, label, batch = cells % 2, cells // 2 % 3, cells // 6 % 2
    rates = base * by_label[label] * np.where(condition[:, None] == 1, stimulation, 1.0)
    counts = rng.poisson(rates * rng.lognormal(0.0, 0.2, (n_cells, 1))).astype(np.float32)
    counts[:, 0] += 1.0  # no cell is empty
    obs = pd.DataFrame(
        {
            "condition": pd.Categorical(np.array(["control", "stimulated"])[condition]),
            "cell_type": pd.Categorical(np.array(["B", "NK", "T"])[label]),
            "batch": pd.Categorical(np.array(["b0", "b1"])[batch]),
            "sex": pd.Categorical(np.array(["f", "m"])[cells // 12 % 2]),
            "site": pd.Categorical(np.array(["s0", "s1", "s2"])[cells // 4 % 3]),
            "age": rng.normal(0.0, 1.0, n_cells),
            "n_counts": counts.sum(1).astype(np.float64) + rng.integers(5, 50, n_cells),
        },
        index=[f"cell_{i}" for i in cells],
    )
    x = counts if values == "counts" else np.log1p(counts)
    var = pd.DataFrame(index=[f"gene_{j}" for j in range(n_genes)])
    return AnnData(sparse.csr_matrix(x), obs=obs, var=var)


def _fit(adata=None, *, setup=None, train=None, **model):
    """Return a small model, trained for two epochs (``train=False``: not trained)."""
    from trvae_sc import TRVAE

    likelihood = model.get("gene_likelihood", "nb")
    counts = likelihood in ("nb", "zinb", "poisson")
    if adata is None:
        adata = _make_adata(values="counts" if counts else "log")
    keys = KEYS if counts else {"labels_key": "cell_type"}
    TRVAE.setup_anndata(adata, "condition", **{**keys, **(setup or {})})
    result = TRVAE(adata, **{**SMALL, **model})
    if train is not False:
        result.train(**{**QUICK, **(train or {})})
    return result


def pytest_collection_modifyitems(items):
    """Start with what is slow, so that no worker is left with it at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish():
    """Run torch on one thread, and keep what is imported from being searched for garbage again and again."""
    import torch
    from lightning.fabric.utilities import registry

    registry.entry_points = functools.cache(registry.entry_points)  # each trainer looks for plugins
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    gc.set_threshold(700, 10, 50)  # not 10: what tests import later is large, too


@pytest.fixture(autouse=True)
def _no_figure_is_left():
    """Close what a test drew, for the next one."""
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


@pytest.fixture(autouse=True)
def _own_directory(tmp_path, monkeypatch):
    """Run every test in a folder of its own, on one thread, with Ctrl-C and settings as usual."""
    import scvi
    import torch

    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)  # scanpy's neighbors sets as many as there are cores
    on_interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job may ignore it
    log = logging.getLogger("scvi")
    level = log.level  # the command line makes it quiet
    yield
    if log.level != level:
        log.setLevel(level)
    signal.signal(signal.SIGINT, on_interrupt)
    if scvi.settings.seed is not None:
        scvi.settings.seed = None


@pytest.fixture
def run(capsys):
    """Return a runner of the command line: exit code, stdout and stderr."""
    from trvae_sc.cli import main

    def run(*arguments):
        capsys.readouterr()
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as stop:  # argparse
            code = stop.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def python(tmp_path_factory):
    """Return a Python whose processes start with the package imported, or the one that runs here.

    What has to be a process that imports by itself is started with ``sys.executable``.
    """
    if sys.platform != "linux":
        return sys.executable
    warm = str(Path(__file__).with_name("warm.py"))
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")  # its workers share one process that imports
    address, owner = (run, os.getppid()) if run else (uuid.uuid4().hex, os.getpid())
    path = tmp_path_factory.mktemp("python") / "python"
    client = shlex.join([sys.executable, "-I", "-S", warm, address, "run", str(path)])
    path.write_text(f'#!/bin/sh\nexec {client} "$@"\n')
    path.chmod(0o755)
    subprocess.Popen(
        [sys.executable, warm, address, "serve", str(owner)],
        cwd=path.parent,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    ).returncode = 0  # nobody waits for it: it ends with the tests
    return str(path)


@pytest.fixture(scope="session")
def make_adata():
    """Return the builder of small data."""
    return _make_adata


@pytest.fixture(scope="session")
def fit():
    """Return the builder of small trained models."""
    return _fit


@pytest.fixture(scope="session")
def trained():
    """Return a trained model with labels and a batch; tests must not change it."""
    return _fit(setup={"batch_key": "batch"}, train={"max_epochs": 5})


@pytest.fixture
def decoupler(monkeypatch):
    """Return decoupler as Python runs it: to compile what scores few genes takes a minute."""
    import numba

    if "decoupler" not in sys.modules:
        monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    found = pytest.importorskip("decoupler", exc_type=ImportError)
    own = vars(found.mt._aucell).values()
    is_compiled = any(hasattr(f, "py_func") for f in own)  # another package imported it before
    monkeypatch.setattr(numba.config, "DISABLE_JIT", int(not is_compiled))
    return found


@pytest.fixture
def only_draws_on_axes():
    """Return a check that a plot draws on the Axes given, and changes neither data nor settings."""
    import matplotlib.pyplot as plt
    import pandas as pd

    def check(plot, data):
        before, settings = data.copy(), plt.rcParams.copy()
        _, axes = plt.subplots(1, 2)
        assert plot(data, ax=axes[1]) is axes[1]
        assert not axes[0].has_data()
        assert len(plt.get_fignums()) == 1
        pd.testing.assert_frame_equal(data, before)
        assert plt.rcParams == settings

    return check
