"""Print how well pairs of perturbations are predicted from their parts.

python tests/benchmarks/combos.py k562_combos.h5ad [--seeds 3] [--max-epochs 60]

Each pair whose parts were both measured alone is hidden in turn. Effect R2 over all genes of the sum of the
parts' changes, of the model, and of a model without its network (``context_weight=1``); then how much of the
real change, and of the real interaction, the 90 % intervals of the model cover.
"""

import argparse

import anndata
import numpy as np
import pandas as pd
import torch

from trvae_sc import TRVAE
from trvae_sc.expression import dense

QUIET = {"enable_progress_bar": False, "accelerator": "cpu", "devices": 1}


def r2(predicted: np.ndarray, real: np.ndarray) -> float:
    """Return the share of a real change that is predicted."""
    return float(1 - np.square(predicted - real).sum() / np.square(real).sum())


def fitted(train: anndata.AnnData, seed: int, max_epochs: int | None, **kwargs: float) -> TRVAE:
    """Return a model of the training cells."""
    TRVAE.setup_anndata(train, "condition", labels_key="cell_type", condition_separator="+")
    model = TRVAE(train, gene_likelihood="normal", seed=seed, **kwargs)
    model.train(max_epochs, **QUIET)
    return model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--max-epochs", type=int)
    args = parser.parse_args()
    torch.set_num_threads(1)
    adata = anndata.read_h5ad(args.file)
    condition = adata.obs["condition"].astype(str).to_numpy()
    x = dense(adata.X).astype(np.float64)
    change = {
        c: x[condition == c].mean(0) - x[condition == "control"].mean(0) for c in set(condition)
    }
    pairs = [c for c in sorted(change) if "+" in c and set(c.split("+")) <= set(change)]
    rows = []
    for pair in pairs:
        real, sums = change[pair], sum(change[part] for part in pair.split("+"))
        for seed in range(args.seeds):
            model = fitted(adata[condition != pair].copy(), seed, args.max_epochs)
            table = model.effects(target=pair, source="control")
            ridge = fitted(adata[condition != pair].copy(), seed, 1, context_weight=1.0)
            alone = ridge.effects(target=pair, source="control")["change"].to_numpy()
            inside = (table["lower"] <= real) & (real <= table["upper"])
            low, high = table["interaction_lower"], table["interaction_upper"]
            beyond = (low <= real - sums) & (real - sums <= high)
            found = r2(sums, real), r2(table["change"].to_numpy(), real), r2(alone, real)
            rows.append((pair, seed, *found, inside.mean(), beyond.mean()))
    names = ["sum", "TRVAE", "ridge alone", "covered", "interaction covered"]
    result = pd.DataFrame(rows, columns=["pair", "seed", *names])
    print(result.groupby("pair")[names].mean().round(3).to_string())
    print(result[names].mean().round(3).to_string())
    print("spread of TRVAE over seeds:", result.groupby("pair")["TRVAE"].std().round(4).to_dict())
