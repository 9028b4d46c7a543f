"""Print what each part of the prediction is worth, on full data and on subsamples of them.

python tests/benchmarks/ablation.py kang_ifnb.h5ad [--cells 20 40 80] [--draws 2] [--labels 3 4]
    [--source control] [--values] [--min-cells 15] [--tasks 7]

Every network is trained once a task and loss, and predicts with the network's and the ridge's change
alone and together. Effect R2 (100 genes that change most) of delta, mean over the held-out labels.
"""

import argparse
import logging
import warnings
from collections.abc import Iterator

import anndata
import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from trvae_sc import TRVAE
from trvae_sc.baselines import with_own_columns
from trvae_sc.evaluation import Keys, Task, holdouts, prepare_task, score, subsample

#: Weight of the ridge in the change of a label.
WEIGHTS = {"network": 0.0, "half and half": 0.5, "ridge": 1.0}
LOSSES = {"transfer loss": 1.0, "without it": 0.0}


def effect_r2(task: Task, transfer_weight: float) -> dict[str, float]:
    """Return the scores of one network with each weight of the ridge."""
    train = with_own_columns(task.train)
    TRVAE.setup_anndata(train, task.keys.condition_key, **task.keys.further())
    likelihood = "nb" if task.keys.is_count else "normal"
    model = TRVAE(train, gene_likelihood=likelihood, transfer_weight=transfer_weight, seed=0)
    model.train(enable_progress_bar=False)
    found = {}
    for name, weight in WEIGHTS.items():
        model.module.context_weight = weight
        predicted = model.predict(task.source, target=task.holdout.target, output="delta")
        scores = score(task, predicted).set_index(["metric", "genes"])["value"]
        found[name] = scores["effect_r2", "top100"]
    return found


def cuts(adata: AnnData, keys: Keys, args: argparse.Namespace) -> Iterator[tuple[str, AnnData]]:
    """Yield the data and what is cut from them, by name."""
    yield "all", adata
    names = adata.obs[keys.labels_key].astype(str).unique()
    for draw in range(args.draws):
        for n in args.cells:
            yield f"{n} cells, draw {draw}", subsample(adata, keys, n, seed=draw)
        for n in args.labels:
            chosen = np.random.default_rng(draw).choice(np.sort(names), n, replace=False)
            keep = adata.obs[keys.labels_key].astype(str).isin(chosen)
            yield f"{n} labels, draw {draw}", adata[keep].copy()


def main(args: argparse.Namespace) -> pd.DataFrame:
    """Return the mean scores, by cut (row), loss and weight (columns)."""
    keys = Keys("condition", "cell_type", is_count=not args.values)
    rows = {}
    for name, adata in cuts(anndata.read_h5ad(args.file), keys, args):
        chosen = holdouts(adata, keys=keys, source=args.source, min_cells=args.min_cells)
        found = []
        for holdout in chosen[: args.tasks]:
            task = prepare_task(adata, holdout, keys=keys)
            scores = {loss: effect_r2(task, weight) for loss, weight in LOSSES.items()}
            found.append(pd.DataFrame(scores).unstack())
        rows[name] = pd.concat(found, axis=1).mean(axis=1)
        print(pd.DataFrame({name: rows[name]}).T.round(3).to_string(), flush=True)
    return pd.DataFrame(rows).T


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file")
    parser.add_argument("--cells", nargs="*", type=int, default=[20, 40, 80])
    parser.add_argument("--labels", nargs="*", type=int, default=[3, 4])
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--source", help="condition to start from; needed with three or more")
    parser.add_argument("--values", action="store_true", help="X holds values that are no counts")
    parser.add_argument("--min-cells", type=int, default=15)
    parser.add_argument("--tasks", type=int, help="hold-outs of each cut (all)")
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    print(main(parser.parse_args()).round(3).to_string())
