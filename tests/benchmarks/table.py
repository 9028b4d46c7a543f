"""Print the results that `trvae-sc benchmark` left in folders as one table for each, in markdown.

python tests/benchmarks/table.py results/kang results/donors [--seeds]
"""

import argparse
from pathlib import Path

import pandas as pd

from trvae_sc.evaluation import Results

METRICS = ["effect_r2", "specific_pearson", "energy_distance", "r2_var", "variance_ratio"]


def columns(results: Results) -> list[tuple[str, str]]:
    """Return metrics on the genes that change most (all where there are few), and in PCs."""
    have = list(results.table[["metric", "genes"]].drop_duplicates().itertuples(index=False))
    found = []
    for metric in METRICS:
        genes = [g for m, g in have if m == metric]
        found += [(metric, next(g for g in ("top100", "pcs", "all") if g in genes))]
    return found


def table(results: Results) -> pd.DataFrame:
    """Return means over hold-outs and seeds, with the number of both."""
    shown = results.wide(columns(results)).round(3)
    fits = results.table.assign(task=results.table["label"] + " " + results.table["target"])
    counts = fits.groupby(["method", "output"])[["task", "seed"]].nunique()
    shown[["hold-outs", "seeds"]] = counts.loc[shown.index]
    shown.columns = [c if isinstance(c, str) else c[0] for c in shown.columns]
    return shown.reset_index()


def over_seeds(results: Results) -> pd.DataFrame:
    """Return the standard deviation over seeds of the mean over hold-outs, with three or more."""
    wanted = pd.MultiIndex.from_tuples(columns(results))
    rows = results.table.set_index(["metric", "genes"])
    rows = rows[rows.index.isin(wanted)].reset_index()
    means = rows.groupby(["method", "output", "metric", "seed"])["value"].mean()
    return means.groupby(["method", "output", "metric"]).std().unstack().dropna().round(4)


def markdown(frame: pd.DataFrame) -> str:
    """Return a frame as a markdown table."""
    lines = [frame.columns, ["---"] * len(frame.columns), *frame.astype(str).to_numpy()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--seeds", action="store_true", help="also the standard deviation of seeds")
    args = parser.parse_args()
    for folder in args.folders:
        results = Results.load(folder)
        print(f"\n{folder.name}\n\n{markdown(table(results))}")
        if args.seeds:
            print(f"\nstandard deviation over seeds\n\n{over_seeds(results).to_string()}")
