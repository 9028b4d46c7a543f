"""Print how well the measured changes of other labels can explain a hidden one at all.

python tests/benchmarks/limit.py kang_ifnb.h5ad [--min-cells 50] [--max-cells 500]
    [--source control] [--values]

The best combination takes the changes of the other labels with the weights that explain the hidden
cells best: it is fitted on the very truth it is scored on, so no other weights of these changes have
a higher effect R2. What is left is in no combination of them.
"""

import argparse

import anndata
import numpy as np
import pandas as pd
from anndata import AnnData

from trvae_sc import baselines, metrics
from trvae_sc.evaluation import Keys, Task, holdouts, prepare_task, score, subsample
from trvae_sc.expression import dense, gene_means, profiles

METRICS = [("effect_r2", "top100"), ("specific_pearson", "top100"), ("energy_distance", "pcs")]


def best_combination(task: Task) -> AnnData:
    """Return the source cells, moved by the combination that explains the hidden change best."""
    known = profiles(task.train, task.keys).pairs(task.holdout.source, task.holdout.target)
    top = metrics.top_genes(task.real, task.control, 100)
    truth = gene_means(task.real) - gene_means(task.control)
    weights = np.linalg.lstsq(known.shifts[:, top].T, truth[top])[0]
    x = dense(task.control) + weights @ known.shifts
    target, kappa = task.holdout.target, task.kappa
    return baselines.as_prediction(x, task.source, target, task.keys, kappa, "best combination")


def scores(task: Task) -> pd.DataFrame:
    """Return the scores of the simple methods and of the best combination."""
    label, target = task.holdout.label, task.holdout.target
    found = {"best combination": best_combination(task)}
    for name in ("mean_shift", "context_shift"):
        method = getattr(baselines, name)
        found[name] = method(task.train, task.source, target=target, keys=task.keys)
    tables = [score(task, adata).assign(method=name) for name, adata in found.items()]
    return pd.concat(tables).assign(task=f"{label} {target}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("--min-cells", type=int, default=50)
    parser.add_argument("--max-cells", type=int, help="of each label and condition")
    parser.add_argument("--source", help="condition to start from; needed with three or more")
    parser.add_argument("--values", action="store_true", help="X holds values that are no counts")
    args = parser.parse_args()
    keys = Keys("condition", "cell_type", is_count=not args.values)
    adata = anndata.read_h5ad(args.file)
    if args.max_cells:
        adata = subsample(adata, keys, args.max_cells)
    chosen = holdouts(adata, keys=keys, source=args.source, min_cells=args.min_cells)
    table = pd.concat([scores(prepare_task(adata, holdout, keys=keys)) for holdout in chosen])
    for metric, genes in METRICS:
        rows = table[(table["metric"] == metric) & (table["genes"] == genes)]
        shown = rows.pivot(index="task", columns="method", values="value")
        shown.loc["mean"] = shown.mean()
        print(f"\n{metric}, {genes}\n{shown.round(3).to_string()}")
