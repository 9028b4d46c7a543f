"""Train for an epoch on, and predict, a file of a million cells; print seconds and peak memory.

python tests/benchmarks/million.py [--cells 1000000] [--genes 2000] [--folder /tmp] [--batch-size 512]

The file is uncompressed, sparse by row (3 % of values are not zero), and removed afterwards. Training,
prediction and the table of effects run in processes of their own, on one thread, with a memory budget
of 0: streamed. CPU seconds are those of all threads of a process, those that read ahead among them.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

ROWS = 20_000  # made at a time


def make(path: Path, n_cells: int, n_genes: int) -> None:
    """Write cells of two conditions and ten labels."""
    from trvae_sc.model._write import PieceWriter

    rng = np.random.default_rng(0)
    condition, label = rng.integers(0, 2, n_cells), rng.integers(0, 10, n_cells)
    weight = rng.lognormal(0.0, 1.0, (20, n_genes))
    cdf = (weight / weight.sum(1, keepdims=True)).cumsum(1)
    writer = PieceWriter(path, (n_cells, n_genes), compression=None)
    for start in range(0, n_cells, ROWS):
        group = (2 * label + condition)[start : start + ROWS]
        genes = np.empty((len(group), int(0.03 * n_genes)), np.int32)
        for code in range(20):
            rows = group == code
            draws = rng.random((rows.sum(), genes.shape[1]))
            genes[rows] = np.searchsorted(cdf[code], draws).clip(max=n_genes - 1)
        indptr = np.arange(len(group) + 1) * genes.shape[1]
        values = np.ones(genes.size, np.float32)
        x = sparse.csr_matrix((values, genes.ravel(), indptr), shape=(len(group), n_genes))
        x.sum_duplicates()
        writer.add(x)
    obs = pd.DataFrame(
        {
            "condition": pd.Categorical.from_codes(condition, ["control", "stimulated"]),
            "cell_type": pd.Categorical.from_codes(label, [f"type_{i}" for i in range(10)]),
        },
        index=[f"cell_{i}" for i in range(n_cells)],
    )
    writer.finish(AnnData(obs=obs, var=pd.DataFrame(index=[f"gene_{j}" for j in range(n_genes)])))


def child(step: str, folder: Path, batch_size: int) -> None:
    """Train, predict or tabulate, and print what it took."""
    import torch

    from trvae_sc import TRVAE
    from trvae_sc.files import read

    torch.set_num_threads(1)
    start, adata = time.perf_counter(), read(folder / "cells.h5ad", backed=True)
    if step == "train":
        TRVAE.setup_anndata(adata, "condition", labels_key="cell_type")
        model = TRVAE(adata)
        setup = time.perf_counter() - start
        model.train(
            1, batch_size=batch_size, memory_budget=0, accelerator="cpu", devices=1,
            enable_progress_bar=False,
        )  # fmt: skip
        model.save(folder / "model")
        n_cells, more = adata.n_obs, {"setup_s": round(setup)}
    elif step == "effects":
        model = TRVAE.load(folder / "model", adata=False, accelerator="cpu")
        table = model.effects(target="stimulated", source="control")
        n_cells, more = adata.n_obs, {"rows": len(table)}
    else:
        model = TRVAE.load(folder / "model", adata=False, accelerator="cpu")
        out = folder / f"predicted_{step}.h5ad"
        predicted = model.predict(adata, target="stimulated", output=step, out=out)
        n_cells, more = predicted.n_obs, {"file_gb": round(out.stat().st_size / 1e9, 2)}
    spent = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        1e9 if sys.platform == "darwin" else 1e6
    )
    record = {"step": step, "cells": n_cells, "seconds": round(spent), "peak_gb": round(peak, 2)}
    record |= {"cpu_s": round(time.process_time()), "cells_per_s": round(n_cells / spent)}
    print(json.dumps({**record, **more}), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--cells", type=int, default=1_000_000)
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--outputs", nargs="+", default=["counts", "effects"])
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child[0], Path(args.child[1]), args.batch_size)
        sys.exit()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        start = time.perf_counter()
        make(Path(name) / "cells.h5ad", args.cells, args.genes)
        size = (Path(name) / "cells.h5ad").stat().st_size / 1e9
        print(f"made {size:.2f} GB in {time.perf_counter() - start:.0f} s", flush=True)
        for step in ("train", *args.outputs):
            options = ["--batch-size", str(args.batch_size), "--child", step, name]
            subprocess.run([sys.executable, __file__, *options], check=True)
