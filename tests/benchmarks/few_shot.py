"""Print how flow transfer gets better with the number of cells of an unseen combination.

python tests/benchmarks/few_shot.py kang_ifnb.h5ad [--label NK] [--draws 5] [--max-epochs 60]

The label is hidden under stimulation. Of its hidden cells half are set aside, from which exemplars are
drawn; the other half is scored. Beside flow transfer: the exemplars' own mean (as effect; their cells
as a sample for the energy distance) and mean_shift and context_shift, which use no exemplar.
"""

import argparse
import dataclasses

import anndata
import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from trvae_sc import baselines
from trvae_sc.evaluation import Holdout, Keys, Task, prepare_task, score
from trvae_sc.expression import dense, log_values
from trvae_sc.family import FlowTransfer

SCORES = [("effect_r2", "top100"), ("energy_distance", "pcs")]


def scores(task: Task, predicted: AnnData) -> list[float]:
    """Return the scores of a prediction."""
    found = score(task, predicted).set_index(["metric", "genes"])["value"]
    return [float(found[key]) for key in SCORES]


def split(adata: AnnData, task: Task, seed: int) -> tuple[AnnData, Task]:
    """Return the hidden cells to draw exemplars from, and the task of predicting the others."""
    hidden = adata[task.holdout.hidden(adata, Keys("condition", "cell_type"))].copy()
    hidden.obs[task.keys.total_counts_key] = np.asarray(hidden.X.sum(1)).ravel()
    hidden = hidden[:, task.train.var_names].copy()
    order = np.random.default_rng(seed).permutation(hidden.n_obs)
    half = len(order) // 2
    real = log_values(hidden, task.keys, task.kappa)[order[half:]]
    return hidden[order[:half]].copy(), dataclasses.replace(task, real=real)


def sample_mean(task: Task, exemplars: AnnData) -> AnnData:
    """Return the exemplars as a prediction."""
    x = dense(log_values(exemplars, task.keys, task.kappa))
    target = task.holdout.target
    return baselines.as_prediction(x, exemplars, target, task.keys, task.kappa, "sample_mean")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file")
    parser.add_argument("--label", default="NK")
    parser.add_argument("--sizes", type=int, nargs="+", default=[0, 5, 20, 50])
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--max-epochs", type=int)
    args = parser.parse_args()
    torch.set_num_threads(1)
    adata = anndata.read_h5ad(args.file)
    holdout = Holdout(args.label, "stimulated", "control")
    task = prepare_task(adata, holdout, keys=Keys("condition", "cell_type"))
    train, keys = task.train.copy(), task.keys
    FlowTransfer.setup_anndata(
        train,
        "condition",
        labels_key="cell_type",
        total_counts_key=keys.total_counts_key,
    )
    model = FlowTransfer(train, seed=0)
    model.train(args.max_epochs, enable_progress_bar=False)
    rows = []
    for draw in range(args.draws):
        pool, scored = split(adata, task, draw)
        for name in ("mean_shift", "context_shift"):
            predicted = baselines.METHODS[name](train, task.source, target="stimulated", keys=keys)
            rows.append((name, 0, *scores(scored, predicted)))
        for n in args.sizes:
            if n > pool.n_obs:
                continue
            shown = pool[:n].copy()
            some = shown if n else None
            predicted = model.predict(task.source, target="stimulated", exemplars=some)
            strength = predicted.uns["trvae_sc"]["combinations"]["strength"].item()
            rows.append(("flow_transfer", n, *scores(scored, predicted), strength))
            if n:
                rows.append(("sample_mean", n, *scores(scored, sample_mean(task, shown))))
    names = [name for name, _ in SCORES]
    table = pd.DataFrame(rows, columns=["method", "exemplars", *names, "strength"])
    by = table.groupby(["method", "exemplars"], sort=False)
    print(f"{args.label}: {scored.real.shape[0]} scored cells, {args.draws} draws")
    found = by[names].agg(["mean", "std"])
    found["strength"] = by["strength"].mean()
    print(found.round(3).to_string())
