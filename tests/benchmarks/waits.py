"""What a user waits for besides training; parts of speed.py, which prints them."""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

Row = tuple[str, str, str, str]

_IMPORT = "import time; start = time.process_time(); import scvi"
_SETUP = """
import time, anndata, numpy, pandas, trvae_sc
obs = pandas.DataFrame({"c": list("ab") * 20}, index=[f"cell_{i}" for i in range(40)])
adata = anndata.AnnData(numpy.ones((40, 5), "float32"), obs=obs)
trvae_sc.TRVAE.setup_anndata(adata, "c")
"""
_UNKNOWN = """
import time, anndata, trvae_sc
start = time.process_time()
try:
    trvae_sc.evaluation.benchmark(None, ["trvea"], [], condition_key="c")
except trvae_sc.InputError:
    pass
"""
_METRIC = """
import time, anndata, trvae_sc
start = time.process_time()
try:
    trvae_sc.select(None, "x", condition_key="c", metric="effectr2")
except trvae_sc.InputError:
    pass
"""


def _cpu_of(*command: str | Path) -> float:
    """Return the CPU seconds of a command and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(list(map(str, command)), check=False, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _of_code(code: str) -> float:
    """Return the CPU seconds that a piece of code prints at its end, in a process of its own."""
    code += "\nprint(time.process_time() - globals().get('start', 0.0))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(run.stdout.split()[-1])


def part_start(args: argparse.Namespace) -> list[Row]:
    """First use of the package, of whole processes but for unknown names."""
    cli = [sys.executable, "-m", "trvae_sc"]
    typo = ["benchmark", "x", "--condition-key", "c", "-o", "r", "--methods", "trvea"]
    works = {
        "import": lambda: _of_code(_IMPORT.replace("start =", "_ =")),
        "setup": lambda: _of_code(_SETUP),
        "unknown method": lambda: _of_code(_UNKNOWN),
        "unknown metric": lambda: _of_code(_METRIC),
        "--help": lambda: _cpu_of(*cli, "--help"),
        "typo": lambda: _cpu_of(*cli, *typo),
    }
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(args.repeats):
        for name, work in works.items():
            found[name].append(work())
    middle = {name: statistics.median(v) for name, v in found.items()}
    beside = statistics.median(a / b for a, b in zip(found["setup"], found["import"], strict=True))
    first = f"{beside:.2f} ({middle['setup']:.1f} of {middle['import']:.1f} s)"
    return [
        ("start", "to the end of a first setup_anndata / import scvi", first, "<= 1.0"),
        ("start", "trvae-sc --help, s", f"{middle['--help']:.2f}", "<= 0.3"),
        ("start", "trvae-sc with an unknown method, s", f"{middle['typo']:.2f}", "<= 1"),
        ("start", "unknown method in Python, s", f"{middle['unknown method']:.2f}", "<= 1"),
        ("start", "unknown metric in Python, s", f"{middle['unknown metric']:.2f}", "<= 1"),
    ]


def part_sums(args: argparse.Namespace) -> list[Row]:
    """The ridge of a set that was not measured: predictions, intervals and p-values of all labels."""
    from trvae_sc.left_out import labels_left_out
    from trvae_sc.shift import Likeness, Profiles, Ridge

    n_labels, n_conditions, n_genes = 20, 100 if args.quick else 400, 200
    rng = np.random.default_rng(0)
    mean = np.abs(rng.normal(1.0, 1.0, (n_labels, n_conditions, n_genes)))
    n_cells = rng.integers(20, 200, mean.shape[:2]).astype(float)
    names = tuple(f"label_{i}" for i in range(n_labels))
    profiles = Profiles(mean, n_cells, names, is_count=True)
    parts = (rng.random((n_conditions, 30)) < 0.1).astype(float)  # those of the target last
    alike = parts @ parts.T + 0.01 * (1.0 + np.eye(n_conditions))
    likeness = Likeness(
        np.arange(1, n_conditions), alike[:-1, :-1], alike[-1, :-1], float(alike[-1, -1])
    )
    start = time.process_time()
    ridge = Ridge(profiles, 0, likeness)
    ends = [ridge.predict(mean[label, 0], label) for label in range(n_labels)]
    means = time.process_time() - start
    expected = Ridge(profiles, 0, likeness, common=1.0)
    missed = labels_left_out(expected, relative=True)
    for label in range(n_labels):
        expected.expected_variance(mean[label, 0], label, 50.0)
        missed.p_values(ends[label] - mean[label, 0])
    found = f"{means:.1f}; {time.process_time() - start:.1f} with intervals"
    rows = [("sums", f"{n_labels} labels x {n_conditions} conditions, s", found, "<= 2")]
    return rows + _described(n_conditions)


def _described(n_conditions: int) -> list[Row]:
    """A condition that was not measured, predicted from the features of the others."""
    from trvae_sc import baselines, datasets

    adata = datasets.simulate(
        20 * n_conditions, 100, n_labels=2, n_conditions=n_conditions, features="latent"
    )
    train, rows = adata[adata.obs["condition"] != "condition_7"].copy(), []
    keys = {"condition_key": "condition", "labels_key": "cell_type", "source": "control"}
    keys["condition_features"] = "condition_features"
    for method in ("nearest_condition", "feature_ridge", "context_shift"):
        start = time.process_time()
        baselines.predict(train, "condition_7", method=method, **keys)
        found = f"{time.process_time() - start:.1f}"
        rows.append(("sums", f"{method} of {n_conditions} conditions with features, s", found, ""))
    return rows


def part_leaks(args: argparse.Namespace) -> list[Row]:
    """Checks, digest and totals of a large sparse matrix in memory."""
    from trvae_sc.evaluation import Keys, check_counts, check_leaks
    from trvae_sc.identity import digest, row_sums

    n_cells, n_genes, n_values = 30_000 if args.quick else 300_000, 25_000, 750
    rng = np.random.default_rng(0)
    genes, data = (np.empty((n_cells, n_values), t) for t in (np.int32, np.float32))
    for start in range(0, n_cells, 4096):
        at = slice(start, min(start + 4096, n_cells))
        shape = (at.stop - at.start, n_values)
        genes[at] = rng.integers(1, 33, shape, dtype=np.int32).cumsum(1) - 1
        data[at] = rng.integers(1, 5, shape)
    indptr = (np.arange(n_cells + 1) * n_values).astype(np.int32)
    x = sparse.csr_matrix((data.ravel(), genes.ravel(), indptr), shape=(n_cells, n_genes))
    obs = pd.DataFrame({"c": ["a"] * n_cells}, index=[f"cell_{i}" for i in range(n_cells)])
    adata, keys = AnnData(x, obs=obs), Keys("c", is_count=False)

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6

    before, start = peak(), time.process_time()
    check_leaks(adata, keys)
    check_counts(adata, keys._replace(is_count=True))
    digest(x)
    row_sums(x, n_cells)
    found = f"{time.process_time() - start:.1f} s, {peak() - before:.2f} GB more than the data"
    what = f"leaks, counts, digest, totals of {n_cells:,} x 25,000"
    return [("leaks", what, found, "<= 60 s, <= 1 GB")]


def part_tasks(args: argparse.Namespace) -> list[Row]:
    """Seven Kang hold-outs with three seeds: tasks prepared, and what two processes cost."""
    if args.kang is None:
        return [("tasks", "7 Kang hold-outs, 3 seeds", "needs --kang", "-")]
    import trvae_sc.evaluation._benchmark as module
    from trvae_sc.evaluation import benchmark, holdouts

    adata = anndata.read_h5ad(args.kang)
    names = {"condition_key": "condition", "labels_key": "cell_type"}
    tasks = holdouts(adata, source="control", **names)[:7]
    made, prepare = [], module.prepare_tasks

    def counted(*given, **kwargs):  # as the benchmark calls it
        start = time.process_time()
        task = prepare(*given, **kwargs)
        made.append(time.process_time() - start)
        return task

    def run(n_jobs: int) -> tuple[float, float]:
        kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        before, start = [resource.getrusage(kind) for kind in kinds], time.perf_counter()
        benchmark(
            adata, ["trvae"], tasks, seeds=3, max_epochs=5 if args.quick else None, n_jobs=n_jobs,
            progress=False, **names,
        )  # fmt: skip
        wall, after = time.perf_counter() - start, [resource.getrusage(kind) for kind in kinds]
        pairs = zip(after, before, strict=True)
        return wall, sum(a.ru_utime + a.ru_stime - b.ru_utime - b.ru_stime for a, b in pairs)

    module.prepare_tasks = counted
    (wall, cpu), n_made, preparing = run(1), len(made), sum(made)
    wall_2, cpu_2 = run(2)
    module.prepare_tasks = prepare
    text = f"{n_made} for {3 * len(tasks)} fits, {preparing:.1f} of {cpu:.0f} s"
    workers = (
        f"{wall / wall_2:.2f} x as fast, CPU {cpu_2 / cpu:.2f} x, load {os.getloadavg()[0]:.1f}"
    )
    return [
        ("tasks", f"tasks prepared of {len(tasks)} Kang hold-outs, 3 seeds", text, "1 a hold-out"),
        ("tasks", "the same in 2 processes / in one", workers, ">= 1.7 x"),
    ]


def part_shell(args: argparse.Namespace) -> list[Row]:
    """Kang from h5ad to predicted cells and gene table, by the command line, beside 60 epochs of SCVI."""
    what = "train and predict by CLI / SCVI"
    if args.kang is None:
        return [("shell", what, "needs --kang", "<= 0.6")]
    from trvae_sc.evaluation import Keys, choose_genes

    adata = anndata.read_h5ad(args.kang)
    chosen = choose_genes(adata, Keys("condition", "cell_type"), 2000).chosen
    cli = [sys.executable, "-m", "trvae_sc"]
    with tempfile.TemporaryDirectory() as name:
        folder, start, cpu = Path(name), time.perf_counter(), 0.0
        train = [
            "--condition-key",
            "condition",
            "--labels-key",
            "cell_type",
            "--accelerator",
            "cpu",
        ]
        cpu += _cpu_of(*cli, "train", args.kang, *train, "-o", folder / "model")
        options = ["--target", "stimulated", "--source", "control", "--table", folder / "genes.csv"]
        out = folder / "predicted.h5ad"
        cpu += _cpu_of(*cli, "predict", folder / "model", args.kang, *options, "-o", out)
        wall, made = time.perf_counter() - start, out.exists() and (folder / "genes.csv").exists()
    if not made:
        return [("shell", what, "failed", "<= 0.6")]
    rows = []
    for genes, values in (("all genes", adata), ("the same 2,000 genes", adata[:, chosen].copy())):
        wall_peer, cpu_peer = _scvi(values)
        text = f"{wall / wall_peer:.2f} (CPU {cpu / cpu_peer:.2f}; {cpu:.0f} of {cpu_peer:.0f} s)"
        rows.append(("shell", f"{what}, {genes}", text, "<= 0.6"))
    return rows


def _scvi(adata: AnnData) -> tuple[float, float]:
    """Return seconds on the clock, and of the CPU, of SCVI.train for 60 epochs."""
    import scvi

    scvi.model.SCVI.setup_anndata(adata, batch_key="condition")
    start, cpu = time.perf_counter(), time.process_time()
    scvi.model.SCVI(adata).train(60, enable_progress_bar=False, accelerator="cpu", devices=1)
    return time.perf_counter() - start, time.process_time() - cpu


WAITS = {
    "start": part_start,
    "sums": part_sums,
    "leaks": part_leaks,
    "tasks": part_tasks,
    "shell": part_shell,
}
