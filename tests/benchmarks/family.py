"""Print one table of every model of the family on Kang 2018, simulated data and digits.

python tests/benchmarks/family.py [--kang kang_ifnb.h5ad] [--data kang simulated digits]
    [--folder results] [--seeds 3] [--labels B NK] [--methods trvae cyclegan] [--max-epochs 10]

One row per model, output and data: the mean over held-out labels of the mean over seeds, on the 100
genes that change most (energy distance: 50 principal components of the training cells), and the
seconds that a fit and its scoring took. Labels are held out one at a time. With --folder, finished
fits are kept and what is missing is run by the same command again.
"""

import argparse
from pathlib import Path

import anndata
import pandas as pd

from trvae_sc import datasets
from trvae_sc.evaluation import Keys, Results, benchmark, holdouts

METHODS = [
    *("no_change", "mean_shift", "context_shift", "autoencoder", "vae", "beta_vae", "cvae"),
    *("mmd_cvae", "paper", "trvae", "cgan", "cyclegan", "flow_matching"),
]
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
    return datasets.simulate() if name == "simulated" else datasets.digits()


def table(results: Results, data: str) -> pd.DataFrame:
    """Return the means of one data set, best first."""
    means = results.summary().set_index(["metric", "genes", "method", "output"])["mean"]
    columns = {metric: means.loc[metric, genes] for metric, genes in SCORES.items()}
    seconds = pd.DataFrame([(r["method"], r["seconds"]) for r in results.records])
    seconds = seconds.groupby(0)[1].mean()
    found = pd.DataFrame(columns).reset_index()
    found["seconds"] = found["method"].map(seconds)
    found.insert(0, "data", data)
    return found.sort_values("effect_r2", ascending=False)


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
    names = args.data or [name for name in DATA if name != "kang" or args.kang]
    tables = []
    for name in names:
        adata, (keys, source, n_top_genes) = load(name, args.kang), DATA[name]
        found = holdouts(adata, keys=keys, source=source)
        if args.labels:
            found = [h for h in found if h.label in args.labels]
            if not found:
                continue  # labels of other data
        results = benchmark(
            adata,
            args.methods,
            found,
            keys=keys,
            seeds=args.seeds,
            n_top_genes=n_top_genes,
            max_epochs=args.max_epochs,
            folder=None if args.folder is None else args.folder / name,
            progress=False,
        )
        shown = [*args.methods, "ceiling"]  # the folder may hold more
        results = Results(results.run, [r for r in results.records if r["method"] in shown])
        tables.append(table(results, name))
    print(pd.concat(tables).round(3).to_string(index=False))
