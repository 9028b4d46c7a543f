"""Print how well doses that no cell was measured under are predicted, in simulated cells.

python tests/benchmarks/doses.py [--seeds 1] [--max-epochs 60]

Each drug and dose is hidden in all four labels in turn; effect R2 over the 100 genes that change most, of change.
"""

import argparse

import torch

from trvae_sc.datasets import simulate_doses
from trvae_sc.evaluation import benchmark, holdouts

KEYS = {"condition_key": ["drug", "dose"], "labels_key": "cell_type"}
METHODS = ["mean_condition", "context_shift", "trvae"]
DESIGNS = {
    "two drugs": None,
    "three drugs": {"A": [0.3, 1, 3, 10], "B": [0.3, 1, 3, 10], "C": [1, 3, 10]},
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--max-epochs", type=int)
    args = parser.parse_args()
    torch.set_num_threads(1)
    options = {"seeds": args.seeds, "max_epochs": args.max_epochs, "progress": False}
    for name, doses in DESIGNS.items():
        cells = simulate_doses(doses, n_labels=4)
        table = benchmark(
            cells, METHODS, holdouts(cells, by="condition", **KEYS), **options, **KEYS
        ).table
        chosen = (table["metric"] == "effect_r2") & (table["genes"] == "top100")
        table = table[chosen & (table["output"] == "delta")]
        wide = table.pivot_table(index="target", columns="method", values="value")[METHODS]
        print(name, wide.round(2).to_string(), wide.mean().round(2).to_string(), sep="\n")
