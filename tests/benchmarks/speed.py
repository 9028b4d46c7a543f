"""Print what training and prediction cost, as ratios of what is measured beside them.

python tests/benchmarks/speed.py [--quick] [--parts a b c d e f g terms threads start sums leaks tasks shell]
    [--kang kang_ifnb.h5ad]

One torch thread; CPU seconds unless said; repeats of what is compared are interleaved, and the median
of their ratios is printed, so that other work on the machine changes little.

a      ``train`` a step, against a bare PyTorch loop over batches at hand
b      cells a second, against ``scvi.model.SCVI.train`` of equal layers, likelihood and batch
c      the same against the TRVAE and scGen of scArches as they train (both also validate), if installed:
       scarches 0.6.1 imports with scvi-tools 1.4.2 "anndata<0.12" "zarr<3" "numpy<2.3"; scgen 2.1.0 not
d      loaders alone and training from a file, against in-memory data
e      predicted cells a second
f      seconds until Kang NK has 95 % of its final effect_r2 (needs --kang)
g      growth of a step with cells, genes, conditions and labels
terms  share of MMD and transfer in a step
threads  training with torch set to all cores beforehand, against one thread (wall)
gpu    cells a second and parity of bf16, where CUDA is at hand
start  imports, the first registration, names that are not known
sums   what sets of parts change, in many labels at once
leaks  checks, digest and totals of 300,000 x 25,000 sparse values
tasks  how often a benchmark prepares a hold-out, and two processes against one (needs --kang)
shell  from a file to predicted cells and gene table by the command line (needs --kang)
"""

import argparse
import contextlib
import importlib
import io
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scvi
import torch
from anndata import AnnData
from scipy import sparse
from waits import WAITS

from trvae_sc import TRVAE
from trvae_sc.files import read
from trvae_sc.module import expected_values
from trvae_sc.training._plan import transfer_factor

QUIET = {"enable_progress_bar": False, "devices": 1, "enable_model_summary": False}
CPU = {"accelerator": "cpu", **QUIET}
Row = tuple[str, str, str, str]


def cells(
    n_cells: int, n_genes: int, *, n_conditions: int = 2, n_labels: int = 8, density: float = 0.128
) -> AnnData:
    """Return sparse random counts; every cell has one."""
    rng = np.random.default_rng(0)
    x = sparse.random(n_cells, n_genes, density, "csr", np.float32, rng)
    x.data = (1 + rng.poisson(1.0, x.nnz)).astype(np.float32)
    first = (np.ones(n_cells, np.float32), (np.arange(n_cells), np.zeros(n_cells, int)))
    x = sparse.csr_matrix(x + sparse.csr_matrix(first, shape=x.shape))
    obs = {"condition": ("c", n_conditions), "cell_type": ("t", n_labels), "batch": ("b", 2)}
    frame = {
        name: pd.Categorical([f"{prefix}{i}" for i in rng.integers(0, n, n_cells)])
        for name, (prefix, n) in obs.items()
    }
    index = [f"cell_{i}" for i in range(n_cells)]
    var = pd.DataFrame(index=[f"gene_{j}" for j in range(n_genes)])
    return AnnData(x, obs=pd.DataFrame(frame, index=index), var=var)


def model_of(adata: AnnData, *, train: bool = True, **kwargs) -> TRVAE:
    """Return a model; `train`: for an epoch, which sets the statistics of the data."""
    TRVAE.setup_anndata(adata, "condition", labels_key="cell_type")
    model = TRVAE(adata, **kwargs)
    if train:
        model.train(1, batch_size=512, **CPU)
    return model


def seconds(work: Callable[[], object]) -> float:
    """Return the CPU seconds of a call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def interleaved(works: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Return the measurements of works that take turns."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            found[name].append(work())
    return found


def ratio(found: dict[str, list[float]], name: str, base: str) -> float:
    """Return the median over repeats of the ratio of one measurement to another."""
    return statistics.median(a / b for a, b in zip(found[name], found[base], strict=True))


def bare_loop(module: torch.nn.Module, batches: list) -> float:
    """Return the CPU seconds a step of what training cannot do without."""
    module.train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True)

    def loop() -> None:
        for step, batch in enumerate(batches):
            loss = module(
                batch,
                get_generative_input_kwargs={"transfer_factor": transfer_factor(step)},
                loss_kwargs={"kl_weight": 1.0},
            )[2].loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 50.0)
            optimizer.step()

    return seconds(loop) / len(batches)


def per_epoch(train: Callable[[int], object], n_epochs: int) -> float:
    """Return the CPU seconds of an epoch, without what comes once a call."""
    once = seconds(lambda: train(1))
    return (seconds(lambda: train(1 + n_epochs)) - once) / n_epochs


# -- parts ------------------------------------------------------------------------------------------


def part_a(args: argparse.Namespace) -> list[Row]:
    adata, rows = cells(args.n_cells, 2000), []
    model = model_of(adata)
    for batch_size, target in ((128, "<= 1.08"), (512, "<= 1.05")):
        batches = list(model._make_data_loader(adata, None, batch_size, shuffle=True))
        found = interleaved(
            {
                "bare": lambda b=batches: bare_loop(model.module, b),
                "train": lambda b=batches, n=batch_size: (
                    per_epoch(lambda e: model.train(e, batch_size=n, **CPU), 3) / len(b)
                ),
            },
            args.repeats,
        )
        bare = statistics.median(found["bare"]) * 1e3
        text = f"{ratio(found, 'train', 'bare'):.3f} (bare {bare:.1f} ms)"
        rows.append(("a", f"train / bare loop a step, batch {batch_size}", text, target))
    return rows


def part_b(args: argparse.Namespace) -> list[Row]:
    adata, rows = cells(args.n_cells, 2000), []
    for likelihood, target in (("normal", ">= 1.25"), ("nb", ">= 1")):
        values = adata.copy()
        if likelihood == "normal":
            values.X = values.X.log1p()
        settings = {"n_latent": 32, "gene_likelihood": likelihood, "dropout_rate": 0.1}
        scvi.model.SCVI.setup_anndata(values, batch_key="condition")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reference = scvi.model.SCVI(values, n_hidden=128, n_layers=2, **settings)
        ours = {
            "default": model_of(values, n_hidden=(128, 128), **settings),
            "cvae": model_of(values, n_hidden=(128, 128), preset="cvae", **settings),
        }
        works = {
            name: lambda m=m: per_epoch(lambda e: m.train(e, batch_size=128, **CPU), 1)
            for name, m in ours.items()
        }
        works["scvi"] = lambda m=reference: per_epoch(
            lambda e: m.train(e, batch_size=128, train_size=1.0, **CPU), 1
        )
        found = interleaved(works, args.repeats)
        for name in ours:
            text = f"{1 / ratio(found, name, 'scvi'):.2f}"
            what = f"cells/s / SCVI, {likelihood}, batch 128, {name}"
            rows.append(("b", what, text, target))
    return rows


def part_c(args: argparse.Namespace) -> list[Row]:
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            peers = importlib.import_module("scarches").models
    except Exception as error:  # noqa: BLE001  (whatever keeps a peer from being imported)
        text = f"{type(error).__name__}: {error}"[:34]
        return [("c", "scArches (TRVAE, scGen) in this environment", text, "-")]
    adata, rows = cells(args.n_cells, 2000), []
    values = adata.copy()
    values.X = values.X.log1p().toarray()  # its scGen takes dense values
    hidden = {"hidden_layer_sizes": [256, 128]}
    for mmd_on, own in (("z", "latent"), ("y", "decoder")):
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its layers
            peer = peers.TRVAE(
                adata,
                "condition",
                ["c0", "c1"],
                latent_dim=32,
                dr_rate=0.1,
                mmd_on=mmd_on,
                **hidden,
            )
        model = model_of(adata, dropout_rate=0.1, mmd_on=own, transfer_weight=0.0)
        text = _rate_beside(model, peer, values=adata, repeats=args.repeats)
        rows.append(("c", f"cells/s / scArches TRVAE, nb, MMD on {mmd_on}, batch 128", text, "-"))
    with contextlib.redirect_stdout(io.StringIO()):
        peer = peers.scgen(values, z_dimension=32, dr_rate=0.1, **hidden)
    model = model_of(values, preset="vae", gene_likelihood="mse", dropout_rate=0.1)
    text = _rate_beside(model, peer, values=values, repeats=args.repeats, shuffle=True)
    rows.append(("c", "cells/s / scGen (scArches), mse, batch 128", text, "-"))
    return rows


def _rate_beside(model: TRVAE, peer: Any, *, values: AnnData, repeats: int, **kwargs: Any) -> str:
    """Return cells a second by those of a peer, which trains on 90 % and validates on the rest."""

    def theirs(n_epochs: int) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            peer.train(n_epochs, batch_size=128, monitor=False, **kwargs)

    works = {
        "own": lambda: per_epoch(lambda e: model.train(e, batch_size=128, **CPU), 1) / values.n_obs,
        "peer": lambda: per_epoch(theirs, 1) / (0.9 * values.n_obs),
    }
    return f"{1 / ratio(interleaved(works, repeats), 'own', 'peer'):.2f}"


def part_d(args: argparse.Namespace) -> list[Row]:
    adata = cells(args.n_cells, 2000)
    model = model_of(adata)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cells.h5ad"
        adata.write_h5ad(path)
        backed = model_of(read(path, backed=True), train=False)
        dense = adata.copy()
        dense.X = dense.X.toarray()
        TRVAE.setup_anndata(dense, "condition", labels_key="cell_type")
        manager = TRVAE._get_most_recent_anndata_manager(dense)
        n = adata.n_obs

        def scvi_loader(owner: TRVAE) -> float:
            loader = scvi.dataloaders.AnnDataLoader(
                owner.adata_manager, shuffle=True, batch_size=128
            )
            return wall(lambda: [None for _ in loader])

        def own(owner: TRVAE) -> float:
            loader = owner._make_data_loader(owner.adata, None, 128, shuffle=True)
            return wall(lambda: [None for _ in loader])

        dense_loader = TRVAE._data_loader_cls(manager, None, 128, shuffle=True)
        works = {
            "in memory, CSR": lambda: own(model),
            "in memory, dense": lambda: wall(lambda: [None for _ in dense_loader]),
            "streamed from a file": lambda: own(backed),
            "scvi-tools, in memory, CSR": lambda: scvi_loader(model),
            "scvi-tools, file": lambda: scvi_loader(backed),
        }
        found = interleaved(works, args.repeats)
        rows = [
            ("d", f"loader alone, cells/s (wall): {k}", f"{n / statistics.median(v):,.0f}", "-")
            for k, v in found.items()
        ]
        epoch = {
            "memory": lambda: wall_epoch(model, batch_size=256),
            "file": lambda: wall_epoch(backed, batch_size=256, memory_budget=0),
        }
        found = interleaved(epoch, args.repeats)
        text = f"{1 / ratio(found, 'file', 'memory'):.2f}"
        rows.append(("d", "training streamed / in memory, cells/s (wall)", text, ">= 0.80"))
    return rows


def wall(work: Callable[[], object]) -> float:
    """Return the seconds on the clock of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def wall_epoch(model: TRVAE, **kwargs) -> float:
    """Return the seconds on the clock of an epoch, without what comes once a call."""
    once = wall(lambda: model.train(1, **kwargs, **CPU))
    return wall(lambda: model.train(3, **kwargs, **CPU)) - once


def part_e(args: argparse.Namespace) -> list[Row]:
    adata, rows = cells(5 * args.n_cells // 2, 2000), []
    model = model_of(adata)
    trained = model.trained
    at = np.flatnonzero(adata.obs["condition"] == "c0")
    batches, target = list(trained.batches(adata, at, 512)), trained.features("c1")

    def bare() -> None:  # what prediction cannot do without: cells encoded once and decoded twice
        for batch in batches:
            z = trained.module.encode(batch).loc
            expected_values(trained.module, batch, z)
            expected_values(trained.module, batch, z, target)

    works = {"bare": lambda: seconds(bare)}
    for output in ("counts", "mean", "delta"):
        works[output] = lambda o=output: seconds(lambda: model.predict(target="c1", output=o))
    found = interleaved(works, args.repeats)
    for output, limit in (("counts", "<= 2.2"), ("mean", "<= 1.3"), ("delta", "-")):
        speed = len(at) / statistics.median(found[output])
        text = f"{ratio(found, output, 'bare'):.2f} ({speed:,.0f} cells/s)"
        rows.append(("e", f'predict "{output}" / bare passes of the network', text, limit))
    return rows


def part_f(args: argparse.Namespace) -> list[Row]:
    if args.kang is None:
        return [("f", "Kang NK to 95 % of its effect_r2, s", "needs --kang", "<= 60")]
    from lightning.pytorch import Callback

    from trvae_sc.evaluation import Holdout, Keys, prepare_task, score

    adata = anndata.read_h5ad(args.kang)
    task = prepare_task(
        adata, Holdout("NK", "stimulated", "control"), keys=Keys("condition", "cell_type")
    )
    return _time_to_score(task, Callback, score)


def _time_to_score(task, callback, score) -> list[Row]:
    keys = task.keys
    TRVAE.setup_anndata(task.train, keys.condition_key, **keys.further())
    model = TRVAE(task.train)
    scores, spent = [], []

    class Score(callback):
        def __init__(self) -> None:
            self.start, self.apart = time.process_time(), 0.0

        def on_train_epoch_end(self, trainer, plan) -> None:
            if trainer.current_epoch % 5 != 4:
                return
            before = time.process_time()
            model.is_trained_ = True
            plan.module.eval()
            predicted = model.predict(task.source, target="stimulated")
            found = score(task, predicted).set_index(["metric", "genes"])["value"]
            scores.append(found["effect_r2", "top100"])
            plan.module.train()
            now = time.process_time()
            self.apart += now - before
            spent.append(now - self.start - self.apart)

    model.train(callbacks=[Score()], **CPU)
    good = next(i for i, s in enumerate(scores) if s >= 0.95 * scores[-1])
    text = (
        f"{spent[good]:.0f} of {spent[-1]:.0f} (effect_r2 {scores[good]:.2f} of {scores[-1]:.2f})"
    )
    return [("f", "Kang NK to 95 % of its effect_r2, CPU s", text, "<= 60")]


def part_g(args: argparse.Namespace) -> list[Row]:
    n = args.n_cells // 2
    sizes = {
        "base": {},
        "2 x cells": {"n_cells": 2 * n},
        "2 x genes": {"n_genes": 4000},
        "50 conditions": {"n_conditions": 50},
        "50 labels": {"n_labels": 50},
    }
    works = {}
    for name, size in sizes.items():
        model = model_of(cells(**{"n_cells": n, "n_genes": 2000, **size}))
        works[name] = lambda m=model: per_epoch(lambda e: m.train(e, batch_size=256, **CPU), 1)
    found = interleaved(works, args.repeats)
    targets = ("", "~ 2", "~ 2", "<= 1.3", "-")
    return [
        ("g", f"epoch with {name} / base", f"{ratio(found, name, 'base'):.2f}", target)
        for name, target in zip(sizes, targets, strict=True)
        if name != "base"
    ]


def part_terms(args: argparse.Namespace) -> list[Row]:
    rows = []
    for n_conditions, target in ((2, "<= 15 %"), (50, "<= 25 %")):
        adata = cells(args.n_cells // 2, 2000, n_conditions=n_conditions)
        model = model_of(adata)
        for batch_size in (128, 256, 512):
            batches = list(model._make_data_loader(adata, None, batch_size, shuffle=True))[:20]

            def step(mmd: float, transfer: float, b=batches, module=model.module) -> float:
                module.mmd_weight, module.transfer_weight = mmd, transfer
                return bare_loop(module, b)

            works = {
                "none": lambda: step(0.0, 0.0),
                "mmd": lambda: step(100.0, 0.0),
                "both": lambda: step(100.0, 1.0),
            }
            found = interleaved(works, 2 * args.repeats)
            share = [1 - ratio(found, "none", name) for name in ("mmd", "both")]
            what = (
                f"MMD, and MMD + transfer, of a step; {n_conditions} conditions, batch {batch_size}"
            )
            rows.append(("terms", what, f"{share[0]:.0%}, {share[1]:.0%}", target))
    return rows


def part_threads(args: argparse.Namespace) -> list[Row]:
    adata = cells(1231, 500)
    n_cores = torch.multiprocessing.cpu_count()

    def train(n_threads: int) -> float:
        torch.set_num_threads(n_threads)
        return wall(lambda: model_of(adata, train=False).train(12, **CPU))

    train(1)
    works = {"all": lambda: train(n_cores), "one": lambda: train(1)}
    text = f"{ratio(interleaved(works, args.repeats), 'all', 'one'):.2f}"
    torch.set_num_threads(1)
    what = f"12 epochs, {n_cores} threads set beforehand / one (wall)"
    return [("threads", what, text, "<= 1.2")]


def part_gpu(args: argparse.Namespace) -> list[Row]:
    if not torch.cuda.is_available():
        return [
            ("gpu", "cells/s at batch 512 and 4096; bf16", "unmeasured: no CUDA", ">= 3 x SCVI")
        ]
    adata, rows, gpu = cells(10 * args.n_cells, 2000), [], {"accelerator": "gpu", **QUIET}
    scvi.model.SCVI.setup_anndata(adata, batch_key="condition")
    reference = scvi.model.SCVI(adata, gene_likelihood="nb", n_hidden=256, n_layers=2, n_latent=32)
    model = model_of(adata)
    for batch_size in (512, 4096):

        def epoch(owner, b=batch_size, **kwargs) -> float:
            once = wall(lambda: owner.train(1, batch_size=b, **kwargs, **gpu))
            return (wall(lambda: owner.train(6, batch_size=b, **kwargs, **gpu)) - once) / 5

        works = {
            "fp32": lambda: epoch(model),
            "bf16": lambda: epoch(model, precision="bf16-mixed"),
            "scvi": lambda: epoch(reference, train_size=1.0),
        }
        found = interleaved(works, args.repeats)
        for name in ("fp32", "bf16"):
            speed = adata.n_obs / statistics.median(found[name])
            text = f"{speed:,.0f}, {1 / ratio(found, name, 'scvi'):.1f} x SCVI"
            rows.append(("gpu", f"cells/s, {name}, batch {batch_size}", text, ">= 3 x SCVI"))
    return rows


PARTS = {
    "a": part_a,
    "b": part_b,
    "c": part_c,
    "d": part_d,
    "e": part_e,
    "f": part_f,
    "g": part_g,
    "terms": part_terms,
    "threads": part_threads,
    "gpu": part_gpu,
    **WAITS,
}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="fewer cells and repeats")
    parser.add_argument("--kang", help="kang_ifnb.h5ad, for parts f, tasks and shell")
    args = parser.parse_args()
    args.n_cells, args.repeats = (4000, 3) if args.quick else (20_000, 5)
    torch.set_num_threads(1)
    scvi.settings.verbosity = logging.ERROR
    for name in ("pytorch", "fabric"):
        logging.getLogger(f"lightning.{name}").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    print(f"{'part':6}{'what':62}{'found':>34}  target")
    for name in args.parts:
        for part, what, found, target in PARTS[name](args):
            print(f"{part:6}{what:62}{found:>34}  {target}", flush=True)
