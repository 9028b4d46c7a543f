"""Print what a few measured cells add to a prediction, and a prediction to them.

python tests/benchmarks/exemplars.py kang_ifnb.h5ad [--labels NK B] [--draws 10] [--flow] [--models FOLDER]

Each label is hidden under stimulation in turn. Of its hidden cells half are set aside, from which n exemplars
are drawn; the other half is scored. Effect R2, mean over draws, of the prediction alone, of the exemplars
alone (their mean) and of ``predict(..., exemplars=)``; with ``--flow`` also of ``family.FlowTransfer``. Of means: on
log(1 + kappa share) of the mean share, which ``effects`` returns and exemplars are combined on. Of cells: on
the mean of their log values, with ``output="delta"``.
"""

import argparse
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from few_shot import sample_mean, split

from trvae_sc import TRVAE
from trvae_sc.evaluation import Keys, Task, holdouts, predicted_log_values, prepare_task
from trvae_sc.expression import mean_level
from trvae_sc.family import FlowTransfer
from trvae_sc.metrics import effect_r2, top_genes

QUIET = {"enable_progress_bar": False, "accelerator": "cpu", "devices": 1}


def scores(task: Task, whole: Task, cells: AnnData, mean: np.ndarray | None) -> list[float]:
    """Return effect R2 on the 100 genes that change most in all hidden cells, and on all, of means and cells.

    `mean` is f of the mean that is predicted; that of the cells if None.
    """
    x, top = predicted_log_values(task, cells), top_genes(whole.real, whole.control, 100)
    mean = mean_level(x, is_count=True) if mean is None else mean
    means = [mean_level(task.real, is_count=True), mean, mean_level(task.control, is_count=True)]
    return [
        effect_r2(*(of[..., genes] for of in arrays))
        for arrays in ([m[None] for m in means], (task.real, x, task.control))
        for genes in (top, np.arange(task.train.n_vars))
    ]


def fitted(kind: type, task: Task, folder: Path | None) -> TRVAE | FlowTransfer:
    """Return a model of the training cells of a task, from a folder if it is there."""
    place = None if folder is None else folder / task.holdout.label.replace(" ", "_")
    if kind is TRVAE and place is not None and place.exists():
        return TRVAE.load(place, adata=False)
    train = task.train.copy()
    totals = task.keys.total_counts_key
    kind.setup_anndata(train, "condition", labels_key="cell_type", total_counts_key=totals)
    model = kind(train, seed=0)
    model.train(**QUIET)
    if kind is TRVAE and place is not None:
        model.save(place)
    return model


def rows_of(task: Task, args: argparse.Namespace) -> list[tuple]:
    """Return the scores of a hold-out."""
    model = fitted(TRVAE, task, args.models)
    flow = fitted(FlowTransfer, task, None) if args.flow else None
    options, rows = {"target": task.holdout.target}, []
    named = {"source": task.holdout.source, "labels": task.holdout.label, **options}

    def of_model(few: AnnData | None) -> tuple[AnnData, np.ndarray]:
        predicted = model.predict(task.source, output="delta", exemplars=few, **options)
        return predicted, model.effects(exemplars=few, **named)["predicted_mean"].to_numpy()

    alone = of_model(None)
    for draw in range(args.draws):
        pool, scored = split(adata, task, draw)
        for n in args.sizes:
            if n > pool.n_obs:
                continue
            few = pool[:n].copy()
            found = {"prediction": alone, "cells": (sample_mean(task, few), None)}
            found["both"] = of_model(few)
            if flow is not None:
                found["flow"] = (flow.predict(task.source, exemplars=few, **options), None)
            for name, predicted in found.items():
                rows.append((task.holdout.label, n, name, *scores(scored, task, *predicted)))
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file")
    parser.add_argument("--labels", nargs="+")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 5, 10, 20, 50])
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--flow", action="store_true", help="also FlowTransfer")
    parser.add_argument("--models", type=Path, help="folder to keep the models in")
    args = parser.parse_args()
    torch.set_num_threads(1)
    adata = anndata.read_h5ad(args.file)
    keys, rows = Keys("condition", "cell_type"), []
    for holdout in holdouts(adata, keys=keys, source="control"):
        if args.labels is None or holdout.label in args.labels:
            rows += rows_of(prepare_task(adata, holdout, keys=keys), args)
    measures = ["means, top100", "means, all", "cells, top100", "cells, all"]
    table = pd.DataFrame(rows, columns=["label", "n", "method", *measures])
    for genes in measures:
        wide = table.pivot_table(index=["label", "n"], columns="method", values=genes)
        wide["both less better"] = wide["both"] - wide[["prediction", "cells"]].max(axis=1)
        print(f"\neffect R2, {genes}, mean over {args.draws} draws")
        print(wide.round(3).to_string())
        print(wide.groupby("n").mean().round(3).to_string())
        print("lowest of 'both less better':", round(wide["both less better"].min(), 4))
