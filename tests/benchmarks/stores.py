"""Compare loaders of cells in a file: of trvae_sc, annbatch and scvi-tools (1.5 and later).

python tests/benchmarks/stores.py [--cells 60000] [--genes 2000] [--repeats 3] [--epochs 3]
    [--batch-sizes 512 128] [--parts loaders training] [--folder /tmp]

Sparse counts are written as zarr v3, sharded as annbatch recommends, and as h5ad. Each line is a process
of its own on one thread of torch; they take turns, and medians of what they found are printed. What is
not installed is named and left out.

loaders   shuffled passes after a first one, which puts the files in the system's cache; annbatch gives
          sparse rows, the others dense tensors. "zarrs": chunks are decoded by the package of that name,
          which scvi-tools asks for (``zarr.config``), instead of by zarr's own Python
training  epochs after the first, on the CPU: TRVAE (preset ``cvae``) with ``memory_budget=0``, and with
          the sparse rows of annbatch; SCVI of equal layers through its data module; and both in memory
CPU       of all threads; peak memory is what comes on top of imports, at any batch size
"""

import argparse
import contextlib
import importlib.util
import itertools
import json
import logging
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

CHUNK, CHUNKS = 256, 32  # rows of one read of annbatch, and reads in memory: as in scvi-tools
LAYERS = {"n_latent": 32, "gene_likelihood": "nb", "dropout_rate": 0.1}
LOADERS = {
    "trvae_sc, h5ad": False,
    "trvae_sc, zarr": False,
    "annbatch (sparse), zarr": False,
    "scvi-tools, zarr": False,
    "trvae_sc, zarr, zarrs": True,
    "annbatch (sparse), zarr, zarrs": True,
    "scvi-tools, zarr, zarrs": True,
}
MODELS = {
    "TRVAE, in memory": False,
    "TRVAE, h5ad": False,
    "TRVAE, zarr": False,
    "TRVAE, annbatch": False,
    "TRVAE, zarr, zarrs": True,
    "TRVAE, annbatch, zarrs": True,
    "SCVI, in memory": False,
    "SCVI, zarr": False,
    "SCVI, zarr, zarrs": True,
}
PARTS = {"loaders": LOADERS, "training": MODELS}


def missing() -> dict[str, str]:
    """Return what is not installed, and what is left out without it."""
    found = {}
    if importlib.util.find_spec("annbatch") is None:
        found["annbatch"] = "needs annbatch: pip install annbatch[zarrs]"
        for name in ("scvi-tools", "SCVI, zarr", "TRVAE, annbatch"):
            found[name] = found["annbatch"]
    if importlib.util.find_spec("zarrs") is None:
        found["zarrs"] = "needs zarrs: pip install zarrs"
    import scvi

    if not hasattr(scvi.dataloaders, "AnnbatchDataModule"):
        text = f"scvi-tools {scvi.__version__} has no AnnbatchDataModule; 1.5 has"
        found["scvi-tools"] = found["SCVI, zarr"] = text
    return found


def reason(name: str, lacking: dict[str, str]) -> str | None:
    """Return why a line cannot be measured here; None if it can."""
    for key, text in lacking.items():
        if name.startswith(key) or name.endswith(f", {key}"):
            return text
    return None


# -- in processes of their own ------------------------------------------------------------------------


def make(folder: Path, n_cells: int, n_genes: int) -> dict[str, Any]:
    """Write the cells, and return what the files take."""
    import anndata
    import zarr
    from speed import cells

    adata = cells(n_cells, n_genes)
    adata.write_h5ad(folder / "cells.h5ad")
    path = folder / "cells.zarr"
    if importlib.util.find_spec("annbatch"):
        import annbatch

        annbatch.write_sharded(zarr.open(path, mode="w", zarr_format=3), adata)
    else:
        with anndata.settings.override(zarr_write_format=3):
            adata.write_zarr(path)
    data = zarr.open(path, mode="r")["X/data"]
    return {
        "zarr_mb": sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) / 1e6,
        "h5ad_mb": (folder / "cells.h5ad").stat().st_size / 1e6,
        "chunk": data.chunks[0] * n_cells // data.shape[0],
        "shard": (getattr(data, "shards", None) or (0,))[0] * n_cells // data.shape[0],
    }


def registered(folder: Path, where: str) -> Any:
    """Return cells that are registered for TRVAE, with X in a file or in memory."""
    from trvae_sc import TRVAE
    from trvae_sc.files import read

    suffix = "zarr" if where in ("zarr", "annbatch") else "h5ad"
    adata = read(folder / f"cells.{suffix}", backed=where != "in memory")
    TRVAE.setup_anndata(adata, "condition", labels_key="cell_type")
    return adata


def annbatch_loader(folder: Path, batch_size: int, **kwargs: Any) -> Any:
    """Return annbatch's loader of the store."""
    import annbatch
    import anndata
    import zarr

    group = zarr.open_group(folder / "cells.zarr", mode="r")
    loader = annbatch.Loader(
        batch_size=batch_size,
        chunk_size=CHUNK,
        preload_nchunks=CHUNKS,
        preload_to_gpu=False,
        shuffle=True,
        **kwargs,
    )
    obs = anndata.io.read_elem(group["obs"])[["condition", "cell_type"]]
    return loader.add_dataset(anndata.io.sparse_dataset(group["X"]), obs)


def scvi_module(folder: Path, batch_size: int) -> Any:
    """Return scvi-tools' data module of the store."""
    from scvi.dataloaders import AnnbatchDataModule

    return AnnbatchDataModule(
        annbatch_loader(folder, batch_size),
        batch_size=batch_size,
        batch_key="condition",
        label_key="cell_type",
        chunk_size=CHUNK,
        preload_nchunks=CHUNKS,
        preload_to_gpu=False,
        shuffle=True,
    )


def own_module(adata: Any, loader: Any) -> Any:
    """Return a data module that gives TRVAE rows of annbatch's loader, and what is registered of them."""
    import numpy as np
    import torch
    from lightning.pytorch import LightningDataModule

    from trvae_sc import TRVAE

    manager = TRVAE._get_most_recent_anndata_manager(adata)
    data = manager.create_torch_dataset()
    others = [key for key in data.keys_and_dtypes if key != "X"]

    class Rows:
        def __len__(self) -> int:
            return len(loader)

        def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
            for batch in loader:
                x = torch.from_numpy(batch["X"].toarray().astype(np.float32, copy=False))
                rows = {key: torch.from_numpy(data.rows(key, batch["index"])) for key in others}
                yield {"X": x, **rows}

    class Module(LightningDataModule):
        def train_dataloader(self) -> Rows:
            return Rows()

    return Module()


def batches_of(name: str, folder: Path, batch_size: int) -> Callable[[], Iterable[Any]]:
    """Return a function that returns the minibatches of a shuffled pass."""
    if name.startswith("annbatch"):
        loader = annbatch_loader(folder, batch_size)
        return lambda: loader
    if name.startswith("scvi-tools"):
        module = scvi_module(folder, batch_size)
        return lambda: (
            module.on_before_batch_transfer(batch, 0) for batch in module.train_dataloader()
        )
    from trvae_sc import TRVAE

    adata = registered(folder, name.split(", ")[1])
    loader = TRVAE(adata)._make_data_loader(adata, None, batch_size, shuffle=True)
    return lambda: loader


def passes(name: str, folder: Path, batch_size: int) -> list[tuple[float, float]]:
    """Return cells a second, and a CPU second, of three passes after a first."""
    batches, found = batches_of(name, folder, batch_size), []
    for _ in range(4):
        wall, cpu = time.perf_counter(), time.process_time()
        n = sum(batch["X"].shape[0] for batch in batches())
        found.append((n / (time.perf_counter() - wall), n / (time.process_time() - cpu)))
    return found[1:]


def epochs(name: str, folder: Path, batch_size: int, n_epochs: int) -> list[tuple[float, float]]:
    """Return cells a second, and a CPU second, of the epochs after the first."""
    import scvi
    from lightning.pytorch import Callback

    from trvae_sc import TRVAE

    marks = []

    class Mark(Callback):
        def on_train_epoch_end(self, *_: Any) -> None:
            marks.append((time.perf_counter(), time.process_time()))

    common: dict[str, Any] = {
        "max_epochs": n_epochs,
        "callbacks": [Mark()],
        "accelerator": "cpu",
        "devices": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "batch_size": batch_size,
    }
    where = name.split(", ")[1]
    adata = registered(folder, where)
    n_cells = adata.n_obs
    if name.startswith("TRVAE"):
        model = TRVAE(adata, preset="cvae", n_hidden=(128, 128), **LAYERS)
        if where == "annbatch":
            loader = annbatch_loader(folder, batch_size, return_index=True)
            del common["batch_size"]  # that of the loader
            model.train(datamodule=own_module(adata, loader), **common)
        else:
            model.train(memory_budget=None if where == "in memory" else 0, **common)
    elif where == "zarr":
        module = scvi_module(folder, batch_size)
        model = scvi.model.SCVI(registry=module.registry, n_hidden=128, n_layers=2, **LAYERS)
        model.train(datamodule=module, **common)
    else:
        scvi.model.SCVI.setup_anndata(adata, batch_key="condition", labels_key="cell_type")
        model = scvi.model.SCVI(adata, n_hidden=128, n_layers=2, **LAYERS)
        model.train(train_size=1.0, **common)
    return [
        (n_cells / (wall - wall_0), n_cells / (cpu - cpu_0))
        for (wall_0, cpu_0), (wall, cpu) in itertools.pairwise(marks)
    ]


def peak() -> float:
    """Return the MB that this process has taken at most."""
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def child(args: argparse.Namespace) -> dict[str, Any]:
    """Make the files, or measure one line, and return what was found."""
    import scvi
    import torch

    warnings.filterwarnings("ignore")
    scvi.settings.verbosity = logging.ERROR
    for part in ("pytorch", "fabric"):
        logging.getLogger(f"lightning.{part}").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    if args.child == "make":
        return make(args.folder, args.cells, args.genes) | {"missing": missing()}
    if (LOADERS | MODELS)[args.child]:
        import zarr

        zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    if importlib.util.find_spec("annbatch"):
        import annbatch  # noqa: F401  (an import for all lines, before memory is counted)
    import trvae_sc  # noqa: F401

    before, found = peak(), {}
    for size in args.batch_sizes:
        if args.child in LOADERS:
            rates = passes(args.child, args.folder, size)
        else:
            rates = epochs(args.child, args.folder, size, args.epochs)
        found[size] = [statistics.median(rate) for rate in zip(*rates, strict=True)]
    return {"rates": found, "mb": peak() - before}


# -- the table ------------------------------------------------------------------------------------------


def run(args: argparse.Namespace, folder: str, step: str) -> dict[str, Any]:
    """Return what a process of its own found."""
    sizes = list(map(str, args.batch_sizes))
    command = [sys.executable, __file__, "--folder", folder, "--child", step]
    command += ["--cells", str(args.cells), "--genes", str(args.genes)]
    command += ["--epochs", str(args.epochs), "--batch-sizes", *sizes]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def lines(args: argparse.Namespace, names: Iterable[str], found: dict[str, list]) -> None:
    """Print the medians of what takes turns."""
    for name in names:
        for size in map(str, args.batch_sizes):
            wall, cpu = ([one["rates"][size][i] for one in found[name]] for i in (0, 1))
            spread = f"{min(wall):,.0f} to {max(wall):,.0f}"
            mb = statistics.median(one["mb"] for one in found[name])
            print(
                f"{name:32}{size:>6}{statistics.median(wall):>12,.0f}{spread:>22}"
                f"{statistics.median(cpu):>14,.0f}{mb:>10,.0f}",
                flush=True,
            )


def compare(args: argparse.Namespace, folder: str) -> None:
    """Write the files and print the tables."""
    files = run(args, folder, "make")
    print(
        f"{args.cells:,} x {args.genes:,}; zarr {files['zarr_mb']:.0f} MB, {files['chunk']} rows a chunk, "
        f"{files['shard']} a shard; h5ad {files['h5ad_mb']:.0f} MB",
        flush=True,
    )
    for title in args.parts:
        works = PARTS[title]
        found: dict[str, list] = {name: [] for name in works}
        able = [name for name in works if reason(name, files["missing"]) is None]
        for _ in range(args.repeats):
            for name in able:
                found[name].append(run(args, folder, name))
        head = f"{title:32}{'batch':>6}{'cells/s':>12}{'from, to':>22}{'cells/CPU s':>14}"
        print(f"\n{head}{'MB more':>10}")
        lines(args, able, found)
        for name in works:
            if name not in able:
                print(f"{name:32}{reason(name, files['missing'])}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=60_000)
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3, help="of training; 2 or more")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[512, 128])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        with contextlib.redirect_stdout(sys.stderr):
            result = child(args)
        print(json.dumps(result), flush=True)
        sys.exit()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        compare(args, name)
