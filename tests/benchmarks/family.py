"""Print one table of every model of the family on Kang 2018, simulated data and digits.

python tests/benchmarks/family.py [--kang kang_ifnb.h5ad] [--data kang simulated digits]
    [--folder results] [--seeds 3] [--labels B NK] [--methods trvae cyclegan] [--max-epochs 10]

One row per model, output and data: the mean over held-out labels of the mean over seeds, on the 100
genes that change most (energy distance: 50 principal components of the training cells), and the
seconds that a fit and its scoring took. Labels are held out one at a time. Kang 2018 has no pairs,
so no row of the paired translator. "few_shot" is flow transfer with 20 cells of every hidden
combination, which are taken out of its data and are not scored. With --folder, finished fits are kept
and what is missing is run by the same command again.
"""

import argparse
from functools import partial
from pathlib import Path

import anndata
import numpy as np
import pandas as pd

from trvae_sc import datasets
from trvae_sc.evaluation import Holdout, Keys, Results, benchmark, holdouts
from trvae_sc.expression import totals
from trvae_sc.family import FlowTransfer, PairedTranslator, translate

METHODS = [
    *("no_change", "mean_shift", "context_shift", "autoencoder", "vae", "beta_vae", "cvae"),
    *("mmd_cvae", "paper", "trvae", "cgan", "cyclegan", "flow_matching", "flow_transfer"),
    *("paired", "few_shot"),
]
PAIRS = {"simulated": "pair", "digits": "image"}
N_EXEMPLARS = 20
DATA = {
    "kang": (Keys("condition", "cell_type"), "control", 2000),
    "simulated": (Keys("condition", "cell_type", total_counts_key="total_counts"), "control", None),
    "digits": (Keys("style", "digit", is_count=False), "normal", None),
}
SCORES = {
    "effect_r2": "top100",
    "specific_pearson": "top100",
    "energy_distance": "pcs",
}


def load(name: str, kang: str | None) -> anndata.AnnData:
    """Return all cells of a data set."""
    if name == "kang":
        if kang is None:
            raise SystemExit("Name the file of Kang 2018 with --kang, or leave it out of --data.")
        return anndata.read_h5ad(kang)
    return datasets.simulate(paired=True) if name == "simulated" else datasets.digits()


def without_exemplars(
    adata: anndata.AnnData, found: list[Holdout], keys: Keys
) -> tuple[anndata.AnnData, anndata.AnnData]:
    """Return the other cells, and some of every hidden combination."""
    rng = np.random.default_rng(0)
    rows = [rng.permutation(np.flatnonzero(h.hidden(adata, keys)))[:N_EXEMPLARS] for h in found]
    rows = np.concatenate(rows)
    exemplars = adata[rows].copy()
    if keys.is_count:
        exemplars.obs["total_counts"] = totals(exemplars, keys)
    return adata[np.delete(np.arange(adata.n_obs), rows)].copy(), exemplars


def table(results: Results, data: str) -> pd.DataFrame:
    """Return the means of one data set."""
    means = results.statistics().set_index(["metric", "genes", "method", "output"])["mean"]
    columns = {metric: means.loc[metric, genes] for metric, genes in SCORES.items()}
    seconds = pd.DataFrame([(r["method"], r["seconds"]) for r in results.records])
    seconds = seconds.groupby(0)[1].mean()
    found = pd.DataFrame(columns).reset_index()
    found["seconds"] = found["method"].map(seconds)
    found.insert(0, "data", data)
    return found


def runs(
    name: str, adata: anndata.AnnData, found: list[Holdout], keys: Keys, methods: list[str]
) -> list[tuple[str, anndata.AnnData, dict | list[str]]]:
    """Return folder, cells and methods of the benchmarks of a data set."""
    by_name = [method for method in methods if method not in ("paired", "few_shot")]
    plans = [(name, adata, by_name)]
    if "paired" in methods and name in PAIRS:
        pairs = {"pair_key": PAIRS[name]}
        paired = partial(translate, model_cls=PairedTranslator, setup_kwargs=pairs)
        plans.append((name, adata, {"paired": paired}))
    if "few_shot" in methods:
        others, exemplars = without_exemplars(adata, found, keys)
        shown = {"exemplars": exemplars}
        few_shot = partial(translate, model_cls=FlowTransfer, predict_kwargs=shown)
        plans.append((f"{name}_few_shot", others, {"few_shot": few_shot}))
    return plans


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kang", help="h5ad file of Kang 2018 with raw counts")
    parser.add_argument("--data", nargs="+", choices=list(DATA), help="all that can be had")
    parser.add_argument("--labels", nargs="+", help="labels to hold out (all with 30 cells)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--max-epochs", type=int, help="fewer for a quick look")
    parser.add_argument("--folder", type=Path, help="keeps finished fits, to go on after a stop")
    args = parser.parse_args()
    tables = []
    for name in args.data or [name for name in DATA if name != "kang" or args.kang]:
        adata, (keys, source, n_top_genes) = load(name, args.kang), DATA[name]
        found = holdouts(adata, keys=keys, source=source)
        if args.labels:
            found = [h for h in found if h.label in args.labels]
            if not found:
                continue  # labels of other data
        for folder, cells, methods in runs(name, adata, found, keys, args.methods):
            results = benchmark(
                cells,
                methods,
                found,
                keys=keys,
                seeds=args.seeds,
                n_top_genes=n_top_genes,
                max_epochs=args.max_epochs,
                folder=None if args.folder is None else args.folder / folder,
                progress=False,
            )
            shown = [*methods, *(["ceiling"] if folder == name else [])]  # the folder may hold more
            records = [r for r in results.records if r["method"] in shown]
            tables.append(table(Results(results.run, records), name))
    found = pd.concat(tables).drop_duplicates(["data", "method", "output"])  # the ceiling
    found = found.sort_values(["data", "effect_r2"], ascending=[True, False])
    print(found.round(3).to_string(index=False))
