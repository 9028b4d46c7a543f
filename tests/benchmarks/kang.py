"""Print how TRVAE and the simple baselines predict cell types that were held out of Kang 2018.

python tests/benchmarks/kang.py kang_ifnb.h5ad [--labels B NK "CD14+ Mono"] [--folder results]
"""

import argparse

import anndata
import matplotlib.pyplot as plt
import pandas as pd

from trvae_sc import pl
from trvae_sc.evaluation import Holdout, Keys, Results, benchmark

COLUMNS = [
    ("effect_r2", "top100"),
    ("specific_pearson", "top100"),
    ("energy_distance", "pcs"),
    ("r2_var", "top100"),
    ("variance_ratio", "top100"),
]


def draw(results: Results, label: str) -> plt.Figure:
    """Return the change of one held-out type's genes beside the scores of all types."""
    record = next(
        r for r in results.records if r["method"] == "trvae" and r["holdout"]["label"] == label
    )
    genes = pd.DataFrame(record["genes"]["counts"]).set_index("gene")
    figure, axes = plt.subplots(
        1, 2, figsize=(11, 4.2), layout="constrained", width_ratios=[1, 1.5]
    )
    shown = results.table[results.table["method"] != "no_change"]
    pl.benchmark(shown, ax=axes[1])
    pl.effect(genes, ax=axes[0])
    axes[0].legend().remove()
    score = axes[0].get_title()
    axes[0].set_title(f"{label}, interferon-beta: never seen in training\n{score}", fontsize=9)
    axes[1].set_title("cell types held out one at a time, mean of seeds", fontsize=9)
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("--labels", nargs="+", default=["B", "NK", "CD14+ Mono"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=["mean_shift", "context_shift", "trvae"])
    parser.add_argument("--folder", help="keeps finished fits, to go on after a stop")
    parser.add_argument("--figure", help="picture to write")
    args = parser.parse_args()
    results = benchmark(
        anndata.read_h5ad(args.file),
        args.methods,
        [Holdout(label, "stimulated", "control") for label in args.labels],
        keys=Keys("condition", "cell_type"),
        seeds=args.seeds,
        folder=args.folder,
    )
    print(results.wide(COLUMNS).round(3).to_string())
    means = results.task_means().set_index(["metric", "genes", "method", "output", "label"])[
        "value"
    ]
    for metric, genes in (("effect_r2", "top100"), ("energy_distance", "pcs")):
        print(f"\n{metric}, {genes}")
        print(means[metric, genes].unstack().round(3).to_string())
    if args.figure:
        draw(results, args.labels[0]).savefig(args.figure, dpi=130)
