"""Print how fast errors fall if what is measured next is chosen, and draw it.

python tests/benchmarks/experiments.py [--data cytof_pbmc_4stim.h5ad] [--orders 20] [--splits 5] [--out next.png]

Half of the combinations of label and condition (10 labels x 8 simulated conditions, or the cytometry data) are
missing. They are measured one by one, in the order of :func:`trvae_sc.experiments.plan` and in random orders;
after each, all that is still missing is predicted by the ridge regression. Errors are root mean squared over
genes, of the mean profile. Then Spearman's correlation of expected and real error of all that is missing.
"""

import argparse

import anndata
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from trvae_sc.conditions import ConditionSpace
from trvae_sc.datasets import simulate
from trvae_sc.experiments import plan
from trvae_sc.expression import Keys, profiles
from trvae_sc.shift import Likeness, Profiles, Ridge


def whole(adata: anndata.AnnData, control: str, *, is_count: bool, least: int = 30):
    """Return mean profiles of labels with enough cells under each condition, control first."""
    known = profiles(adata, Keys("condition", "cell_type", is_count=is_count))
    names = sorted({c for _, c in known.mean}, key=lambda c: (c != control, c))
    labels = sorted({label for label, _ in known.mean})
    labels = [x for x in labels if min(known.n_cells.get((x, c), 0) for c in names) >= least]
    if is_count:  # f of the mean share, as models have it
        mean = {k: shares(adata, *k, known.kappa) for k in known.mean if k[0] in labels}
    else:
        scale = np.asarray(adata.X).std(0)
        mean = {k: v / scale for k, v in known.mean.items()}
    table = np.stack([[mean[label, c] for c in names] for label in labels])
    n = np.array([[known.n_cells[label, c] for c in names] for label in labels], float)
    return Profiles(table, n, tuple(labels), is_count), ConditionSpace("condition", tuple(names))


def shares(adata: anndata.AnnData, label: str, condition: str, kappa: float) -> np.ndarray:
    """Return f of the mean share of a group."""
    own = adata[
        ((adata.obs["cell_type"] == label) & (adata.obs["condition"] == condition)).to_numpy()
    ]
    x = own.X.toarray()
    return np.log1p(kappa * (x / x.sum(1, keepdims=True)).mean(0))


def errors(full: Profiles, n_cells: np.ndarray) -> dict[tuple[int, int], float]:
    """Return the error of everything that is missing."""
    known, found = Profiles(full.mean, n_cells, full.labels, full.is_count), {}
    for label, c in np.argwhere(n_cells == 0):
        ridge = Ridge(known, 0, Likeness.of_itself(int(c)))
        start = full.mean[label, 0]
        f = ridge.predict(start, label) if len(ridge.groups) else start
        found[label, c] = float(np.sqrt(np.square(f - full.mean[label, c]).mean()))
    return found


def curve(full: Profiles, n_cells: np.ndarray, order: list[tuple[int, int]]) -> list[float]:
    """Return the mean error of what is left after each measurement but the last."""
    n_cells, found = n_cells.copy(), []
    for at in [None, *order[:-1]]:
        if at is not None:
            n_cells[at] = full.n_cells[at]
        found.append(float(np.mean(list(errors(full, n_cells).values()))))
    return found


def compared(full: Profiles, space: ConditionSpace, seed: int, orders: int) -> dict:
    """Return curves and correlation with half of the combinations missing."""
    rng, n_cells = np.random.default_rng(seed), full.n_cells.copy()
    every = [tuple(at) for at in np.argwhere(n_cells >= 0) if at[1]]
    gone = [every[i] for i in rng.permutation(len(every))[: len(every) // 2]]
    for at in gone:
        n_cells[at] = 0
    known = Profiles(full.mean, n_cells, full.labels, full.is_count)
    table = plan(known, space, space.levels[0], space.levels)
    ends = table["label"].map(full.labels.index), table["condition"].map(space.levels.index)
    codes = zip(*ends, strict=True)
    order, real = list(codes), errors(full, n_cells)
    random = [
        curve(full, n_cells, [gone[i] for i in rng.permutation(len(gone))]) for _ in range(orders)
    ]
    rank = spearmanr(table["expected_error"], [real[at] for at in order]).statistic
    return {"greedy": curve(full, n_cells, order), "random": random, "spearman": rank}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="cytometry file; simulated data without")
    parser.add_argument("--orders", type=int, default=20, help="random orders of each split")
    parser.add_argument(
        "--splits", type=int, default=5, help="choices of what is missing, or data sets"
    )
    parser.add_argument("--out", help="figure")
    args = parser.parse_args()
    found = []
    for seed in range(args.splits):
        if args.data is not None:
            data = whole(anndata.read_h5ad(args.data), "unstimulated", is_count=False)
        else:
            names = ["control", *(f"drug_{i}" for i in range(1, 8))]
            adata = simulate(8000, 200, n_labels=10, conditions=names, seed=seed)
            data = whole(adata, "control", is_count=True)
        found.append(compared(*data, seed, args.orders))
        print(f"split {seed}: {len(data[0].labels)} labels, Spearman {found[-1]['spearman']:.2f}")
    greedy = np.mean([f["greedy"] for f in found], 0)
    random = np.concatenate([f["random"] for f in found])
    at = np.unique(np.linspace(0, len(greedy) - 1, 8).astype(int))
    rows = {"measured": at, "greedy": greedy[at], "random": random.mean(0)[at]}
    print(pd.DataFrame(rows).round(4).to_string(index=False))
    below = np.mean(
        [np.mean(np.array(f["greedy"])[1:-1] < np.mean(f["random"], 0)[1:-1]) for f in found]
    )
    areas = [np.mean(f["greedy"]) < np.mean(f["random"], 1) for f in found]
    print(f"greedy is below the mean of random orders in {below:.0%} of steps; the mean over all steps "
          f"is below that of {np.mean(areas):.0%} of random orders")  # fmt: skip
    print(
        f"Spearman of expected and real error: {np.mean([f['spearman'] for f in found]):.2f} (mean)"
    )
    if args.out:
        _, ax = plt.subplots(figsize=(4.5, 3.2), layout="constrained")
        low, high = np.quantile(random, [0.1, 0.9], axis=0)
        ax.fill_between(range(len(low)), low, high, color="#E69F00", alpha=0.25, lw=0)
        ax.plot(random.mean(0), color="#E69F00", label="random (mean, 80 %)")
        ax.plot(greedy, color="#0072B2", label="next_experiments")
        ax.set(xlabel="combinations measured", ylabel="mean error of what is left")
        ax.legend(frameon=False, fontsize=8)
        ax.figure.savefig(args.out, dpi=150)
