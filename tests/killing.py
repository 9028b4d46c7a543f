"""Run in a process of its own: kills writers at every step and commands at random moments.

The process forks a child for each kill, which costs nothing where all is imported. It prints what it
found wrong, one line each, and how many kills there were.
"""

import contextlib
import gc
import hashlib
import io
import json
import os
import random
import runpy
import shutil
import signal
import sys
import time
import uuid
from functools import partial
from pathlib import Path

import adjustText  # noqa: F401, not to be imported by every child
import numpy as np
import pandas as pd
import zarr  # noqa: F401, nor this
from anndata import AnnData
from joblib.externals.loky.backend import fork_exec
from scipy import sparse
from warm import own_lock

import trvae_sc.evaluation
import trvae_sc.family
import trvae_sc.report  # noqa: F401, nor these
from trvae_sc import TRVAE
from trvae_sc.cli import _commands, main  # noqa: F401
from trvae_sc.files import write_anndata, write_text

#: Changes of the file system that Python tells of before it makes them.
CHANGES = ("os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
QUIET = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False}
OF_RAY = (b"ray::DashboardAgent", b"ray::RuntimeEnvAgent")  #: end by themselves in a minute
MARK = "TRVAE_SC_KILLING"  #: variable of the environment that the processes here have
PYTHON = "TRVAE_SC_PYTHON"  #: the Python of processes that are started anew
WARM = "TRVAE_SC_WARM"  #: that of those which need not import
wrong: list[str] = []
os.fsync = lambda handle: None  # a kill, unlike a power cut, loses nothing that was written


def fork(act, *, kill_after=None, by=signal.SIGKILL):
    """Run a function in a child; return its exit status, -9 where it was killed after some seconds."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            for stream in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
            own_lock()
            code = act()
            code = code if isinstance(code, int) else 0
        finally:
            os._exit(code)
    if kill_after is not None:
        end = time.monotonic() + kill_after
        while time.monotonic() < end and not os.waitid(
            os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT
        ):
            time.sleep(0.002)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, by)
    status = os.waitpid(child, 0)[1]
    return os.waitstatus_to_exitcode(status)


def fork_worker(command, keep_open, env=None):
    """Start a worker of joblib as it does, but by a fork, in which all is imported."""
    child = os.fork()
    if child:
        return child
    code: object = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.update(env or {})
        kept = [0, 1, 2, *sorted({*map(int, keep_open)})]
        for before, after in zip(kept, [*kept[1:], os.sysconf("SC_OPEN_MAX")], strict=True):
            os.closerange(before + 1, after)
        _, is_module, module, *sys.argv[1:] = command
        assert is_module == "-m"
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        code = stop.code
    finally:
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)


start_worker = fork_exec.fork_exec


def deep_inside(path):
    """Return whether a path is inside of what is written to a hidden folder: one state for all others."""
    if not isinstance(path, str | bytes | Path) or not Path(os.fsdecode(path)).is_absolute():
        return True  # shutil removes what is in a folder by its handle
    parts = Path(os.fsdecode(path)).parts
    hidden = [i for i, part in enumerate(parts) if part.startswith(".trvae_sc-")]
    return bool(hidden) and len(parts) - hidden[0] > 2


def killed_at(step, act):
    """Run a function that kills itself before its n-th change of the file system."""

    def run():
        seen = []

        def hook(event, arguments):
            is_writing = event == "open" and bool((arguments[2] or 0) & WRITING)
            exchange = event == "ctypes.dlsym" and arguments[-1] == "renameat2"
            changes = (event in CHANGES or is_writing) and not deep_inside(arguments[0])
            if not (exchange or changes) or (event, str(arguments[0])) in seen[-1:]:
                return
            if len(seen) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            seen.append((event, str(arguments[0])))

        sys.addaudithook(hook)
        act()

    return fork(run)


def offspring():
    """Return the processes that were started from here, but for this one."""
    found, mark = [], f"{MARK}={os.environ[MARK]}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            environment = (process / "environ").read_bytes()  # that of its start; of the dead: none
            forked = environment and os.getsid(int(process.name)) == os.getpid()
            is_ours = mark in environment or forked
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").strip()
            if is_ours and int(process.name) != os.getpid() and command not in OF_RAY:
                found.append(command[:80])
    return found


def check_nothing_runs(name, seconds=60.0):
    """Note processes that a kill left and that do not end by themselves; a busy machine is slow."""
    end = time.monotonic() + seconds
    while offspring() and time.monotonic() < end:
        time.sleep(0.1)
    if offspring():
        wrong.append(f"{name}: still running {seconds} s after the kill: {offspring()}")


def content(path):
    """Return what is at a path: a digest of the files in it, or None."""
    if not path.exists():
        return None
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    found = hashlib.sha256()
    for file in files:
        found.update(str(file.relative_to(path)).encode() + b"\0" + file.read_bytes())
    return found.hexdigest()


def left_over(folder):
    """Return hidden files that were not there before."""
    return [p.name for p in folder.iterdir() if p.name.startswith(".trvae_sc-")]


# -- every step of a writer -----------------------------------------------------------------------------


def cells(n=60, n_genes=12):
    """Return cells of two conditions and three labels."""
    rng = np.random.default_rng(0)
    i = np.arange(n)
    x = rng.poisson(2.0 + 3.0 * (i[:, None] % 2) * (np.arange(n_genes) % 3 == 0), (n, n_genes))
    x[:, 0] += 1
    obs = pd.DataFrame(
        {
            "condition": np.array(["control", "stimulated"])[i % 2],
            "cell_type": np.array(["B", "NK", "T"])[i // 2 % 3],
        },
        index=[f"cell_{k}" for k in i],
    )
    var = pd.DataFrame(index=[f"gene_{j}" for j in range(n_genes)])
    adata = AnnData(sparse.csr_matrix(x.astype(np.float32)), obs=obs, var=var)
    return adata[~((adata.obs["cell_type"] == "T") & (i % 2 == 1))].copy()


def model_of(seed):
    """Return a small trained model."""
    adata = cells()
    TRVAE.setup_anndata(adata, "condition", labels_key="cell_type")
    model = TRVAE(adata, n_latent=2, n_hidden=(4,), seed=seed)
    model.train(max_epochs=1, **QUIET)
    return model


def writers():
    """Return by name: file name, a writer of the old content and one of the new."""
    old, new = model_of(0), model_of(1)
    text = "line\n" * 1000
    one, other = cells(), cells(30)
    question = {"target": "stimulated", "labels": "T", "seed": 0}

    def save_old(path):
        old.save(path)
        (path / "mine.txt").write_text("mine")  # of the user: has to stay

    return {
        "text": ("x.html", lambda p: write_text(p, "old"), lambda p: write_text(p, text)),
        "h5ad": (
            "x.h5ad",
            lambda p: write_anndata(one, p),
            lambda p: write_anndata(other, p, overwrite=True),
        ),
        "zarr": (
            "x.zarr",
            lambda p: write_anndata(one, p),
            lambda p: write_anndata(other, p, overwrite=True),
        ),
        "model": ("x", save_old, lambda p: new.save(p, overwrite=True)),
        "prediction": (
            "x.h5ad",
            lambda p: write_anndata(one, p),
            lambda p: new.predict(**question, out=p, overwrite=True),
        ),
        "new model": ("x", lambda p: None, new.save),
        "new h5ad": ("x.h5ad", lambda p: None, lambda p: write_anndata(other, p)),
    }


def meaning(path):
    """Return what a file says; h5ad files have the same content in other bytes."""
    if path.suffix != ".h5ad" or not path.exists():
        return content(path)
    import anndata

    adata = anndata.read_h5ad(path)
    return (adata.shape, adata.to_df().to_numpy().tobytes(), tuple(adata.obs_names))


def kill_at_every_step(folder):
    """Kill each writer before each of its steps: what is there is old or new, and complete."""
    n_kills = 0
    for name, (file, write_old, write_new) in writers().items():
        place = folder / name.replace(" ", "_")
        place.mkdir()
        path = place / file
        fork(lambda path=path, write=write_old: write(path))  # zarr's threads would not be forked
        before = meaning(path)
        kept = place.parent / f"{place.name}_kept"
        shutil.copytree(place, kept)
        fork(lambda path=path, write=write_new: write(path))
        after = meaning(path)
        for step in range(10_000):
            shutil.rmtree(place)
            shutil.copytree(kept, place)
            code = killed_at(step, lambda path=path, write=write_new: write(path))
            if meaning(path) not in (before, after):
                wrong.append(f"{name}: half written, killed at step {step}")
            if code == 0:
                break
            if code != -signal.SIGKILL:
                wrong.append(f"{name}: exit status {code} at step {step}")
                break
            n_kills += 1
            if name.startswith("new") and path.exists():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            if fork(lambda path=path, write=write_new: write(path)) or meaning(path) != after:
                wrong.append(f"{name}: the rerun after a kill at step {step} failed")
        if left_over(place):
            wrong.append(f"{name}: left {left_over(place)}")
    return n_kills


# -- commands at random moments ---------------------------------------------------------------------------


def run(*arguments):
    """Return a function that runs a command line."""

    def act():
        with contextlib.redirect_stdout(io.StringIO()):
            return main([str(a) for a in arguments])

    return act


def start_little_of_ray():
    """Have Ray start with one worker, which has all imported, and no dashboard, where a command starts it."""
    import ray

    warm = {"py_executable": os.environ[WARM]}
    ray.init = partial(ray.init, num_cpus=1, include_dashboard=False, runtime_env=warm)


def table_of(folder):
    """Return the scores in a folder of results."""
    records = [json.loads(p.read_text()) for p in sorted((folder / "fits").glob("*.json"))]
    return json.dumps([(r["method"], r["seed"], r["holdout"], r["scores"]) for r in records])


def weights_of(folder):
    """Return the weights of a saved model as bytes."""
    state = TRVAE.load(folder, adata=False).module.state_dict()
    return b"".join(w.numpy().tobytes() for w in state.values())


def is_interrupted(out):
    """Return whether a model says that its training was interrupted: the same command goes on."""
    if not (out / "model.pt").exists():
        return False
    return TRVAE.load(out, adata=False).training_["interrupted"]


def commands(folder, data):
    """Return by name: command, its output, what the output says, how often it is killed."""
    keys = ["--condition-key", "condition", "--labels-key", "cell_type", "--n-top-genes", 0]
    compared = [*keys, "--min-cells", 8, "--methods", "mean_shift", "no_change"]
    results = [*keys, "--min-cells", 8, "--seeds", 1, "--max-epochs", 1]
    results += ["--methods", "mean_shift", "trvae"]
    bench = folder / "bench"
    predict = ["predict", folder / "trained", data, "--target", "stimulated", "--labels", "T"]
    return {
        "train": (
            [
                "train",
                data,
                *keys,
                "--max-epochs",
                4,
                "-o",
                folder / "m",
                "--checkpoint-dir",
                folder / "c",
            ],
            folder / "m",
            weights_of,
            8,
        ),
        "predict": ([*predict, "-o", folder / "p.h5ad"], folder / "p.h5ad", meaning, 6),
        "select": (
            ["select", data, *compared, "--target", "stimulated", "-o", folder / "s.h5ad"],
            folder / "s.h5ad",
            meaning,
            6,
        ),
        "benchmark": (["benchmark", data, *results, "-o", bench], bench, table_of, 4),
        "benchmark of two": (
            ["benchmark", data, *results, "--n-jobs", 2, "-o", folder / "bench2"],
            folder / "bench2",
            table_of,
            3,
        ),
        "benchmark on Ray": (
            ["benchmark", data, *results, "--backend", "ray", "-o", folder / "bench3"],
            folder / "bench3",
            table_of,
            1,
        ),
        "report": (
            ["report", bench, "--predictions", folder / "p.h5ad", "-o", folder / "r.html"],
            folder / "r.html",
            meaning,
            3,
        ),
    }


def kill_at_random(folder, chosen):
    """Kill each command at random moments: a rerun ends with the numbers of an undisturbed run."""
    rng, n_kills = random.Random(0), 0
    fork_exec.fork_exec = fork_worker
    if "benchmark on Ray" in chosen:
        start_little_of_ray()
    data = folder / "cells.h5ad"
    write_anndata(cells(120), data)
    model_of(0).save(folder / "trained")
    for name, (arguments, out, read, n) in commands(folder, data).items():
        if name not in chosen:
            continue
        start = time.monotonic()
        if fork(run(*arguments)):
            wrong.append(f"{name}: fails undisturbed")
            continue
        took, expected = time.monotonic() - start, read(out)
        for i in range(n):
            for path in (out, folder / "c"):
                if path.exists():
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            wait = rng.uniform(0, took)
            by = (signal.SIGKILL, signal.SIGTERM)[i % 2]
            if i == 2:  # once while workers import
                fork_exec.fork_exec = start_worker
            fork(run(*arguments), kill_after=wait, by=by)
            fork_exec.fork_exec = fork_worker
            n_kills += 1
            check_nothing_runs(name)
            is_finished = (
                out.exists() and not name.startswith("benchmark") and not is_interrupted(out)
            )
            if is_finished and read(out) != expected:
                wrong.append(f"{name}: another result, {by} after {wait:.2f} of {took:.2f} s")
            code = fork(run(*arguments, *(["--force"] if is_finished else [])))
            if code or read(out) != expected:
                wrong.append(f"{name}: exit status {code} of the rerun, {by} after {wait:.2f} s")
        if left_over(folder):
            wrong.append(f"{name}: left {left_over(folder)}")
    return n_kills


if __name__ == "__main__":
    kind, place, *chosen = sys.argv[1:]
    sys.executable = os.environ.get(PYTHON, sys.executable)
    if MARK not in os.environ:
        os.environ[MARK] = uuid.uuid4().hex
        if os.getsid(0) != os.getpid():  # what this process has from its start its forks have too
            os.execv(sys.executable, [sys.executable, *sys.argv])
    gc.freeze()  # forks search and copy nothing of it
    gc.disable()  # they end soon
    kill = partial(kill_at_random, chosen=chosen) if kind == "random" else kill_at_every_step
    sys.stdout.write(json.dumps({"kills": kill(Path(place)), "wrong": wrong}))
