"""Print how a combination of two columns that one label lacks is predicted: donor and stimulus of Kang 2018.

python tests/benchmarks/columns.py kang_ifnb_donors.h5ad [--seeds 1] [--max-epochs N]

Each combination but the control cells of donor 107 is hidden in each label in turn and predicted from these.
"""

import argparse

import anndata
import torch

from trvae_sc.evaluation import benchmark, holdouts

KEYS = {"condition_key": ["donor", "condition"], "labels_key": "cell_type"}
METHODS = ["mean_shift", "context_shift", "trvae"]
SCORES = [("effect_r2", "top100"), ("specific_pearson", "top100"), ("energy_distance", "pcs")]

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--max-epochs", type=int)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cells = anndata.read_h5ad(args.file)
    cells.obs["donor"] = "donor " + cells.obs["donor"].astype(str)
    hidden = holdouts(cells, source="donor 107 + control", **KEYS)
    options = {"seeds": args.seeds, "max_epochs": args.max_epochs, "progress": False}
    table = benchmark(cells, METHODS, hidden, **options, **KEYS).table
    table = table[(table["output"] == "delta") | table["method"].eq("ceiling")]
    chosen = [f"{metric} {genes}" for metric, genes in SCORES] + ["interval_coverage all"]
    wide = table.assign(score=table["metric"] + " " + table["genes"]).pivot_table(
        index=["target", "method"], columns="score", values="value"
    )
    print(wide[chosen].round(3).to_string())
