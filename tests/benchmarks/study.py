"""Print what other settings of TRVAE do on inner tasks: two labels hidden, both scored in turn.

python tests/benchmarks/study.py kang_ifnb.h5ad --folder results [--variants default "KL 2"]
    [--source control] [--values] [--max-cells 200] [--pairs 2]

Every combination is hidden together with another one, so no task is one that a benchmark of single
hold-outs scores. `python tests/benchmarks/table.py results` prints the same again, by output.
"""

import argparse
from functools import partial

import anndata
import numpy as np
from anndata import AnnData

from trvae_sc import baselines
from trvae_sc.evaluation import Keys, benchmark, holdouts, subsample

VARIANTS = {
    "default": {},
    "MMD 0": {"mmd_weight": 0.0},
    "MMD 300": {"mmd_weight": 300.0},
    "MMD 1000": {"mmd_weight": 1000.0},
    "MMD on latent": {"mmd_on": "latent"},
    "MMD of pooled cells": {"mmd_within_labels": False},
    "KL 0.3": {"kl_weight": 0.3},
    "KL 2": {"kl_weight": 2.0},
    "KL 4": {"kl_weight": 4.0},
    "transfer 0": {"transfer_weight": 0.0},
    "transfer 0.3": {"transfer_weight": 0.3},
    "transfer 3": {"transfer_weight": 3.0},
    "network alone": {"context_weight": 0.0},
    "ridge alone": {"context_weight": 1.0},
    "dispersion by gene": {"dispersion": "gene"},
    "condition in decoder": {"condition_in": "decoder"},
    "narrow": {"n_hidden": (128, 64)},
    "wide": {"n_hidden": (512, 256)},
    "wider": {"n_hidden": (1024, 512)},
    "deep": {"n_hidden": (256, 256, 128)},
    "latent 10": {"n_latent": 10},
    "latent 64": {"n_latent": 64},
    "dropout 0": {"dropout_rate": 0.0},
    "dropout 0.2": {"dropout_rate": 0.2},
    "epochs 30": {"train_kwargs": {"max_epochs": 30}},
    "epochs 120": {"train_kwargs": {"max_epochs": 120}},
    "rate 1e-3": {"train_kwargs": {"lr": 1e-3}},
    "rate 3e-3": {"train_kwargs": {"lr": 3e-3}},
    "rate 6e-3": {"train_kwargs": {"lr": 6e-3}},
    "constant rate 1e-3": {"train_kwargs": {"lr": 1e-3, "plan_kwargs": {"lr_schedule": None}}},
    "weight decay 0": {"train_kwargs": {"plan_kwargs": {"weight_decay": 0.0}}},
    "weight decay 0.1": {"train_kwargs": {"plan_kwargs": {"weight_decay": 0.1}}},
}


def ensemble(train: AnnData, source: AnnData, *, seed: int = 0, **kwargs) -> dict[str, AnnData]:
    """Return the mean of three models that differ in their seed (a mean of counts is none)."""
    seeds = range(3 * seed, 3 * seed + 3)
    found = [baselines.trvae(train, source, seed=s, **kwargs)["delta"] for s in seeds]
    found[0].X = np.mean([adata.X for adata in found], axis=0)
    return {"delta": found[0]}


METHODS = {name: partial(baselines.trvae, **chosen) for name, chosen in VARIANTS.items()}
METHODS["ensemble of 3"] = ensemble


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("--folder", required=True, help="keeps finished fits")
    parser.add_argument("--variants", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--source", help="condition to start from; needed with three or more")
    parser.add_argument("--values", action="store_true", help="X holds values that are no counts")
    parser.add_argument("--max-cells", type=int, default=200, help="of each label and condition")
    parser.add_argument("--min-cells", type=int, default=50)
    parser.add_argument("--pairs", type=int, help="pairs of combinations to hide (all)")
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    keys = Keys("condition", "cell_type", is_count=not args.values)
    adata = subsample(anndata.read_h5ad(args.file), keys, args.max_cells)
    chosen = holdouts(adata, keys=keys, source=args.source, min_cells=args.min_cells, together=2)
    chosen = [holdout for holdout in chosen if holdout.also]
    results = benchmark(
        adata,
        {name: METHODS[name] for name in args.variants},
        chosen[: None if args.pairs is None else 2 * args.pairs],
        keys=keys,
        seeds=args.seeds,
        folder=args.folder,
    )
    print(results.wide().round(3).to_string())
