"""Conditions that were never measured, described by features: effect R2 of the model and of simple methods.

    python tests/benchmarks/unseen.py simulated [--seeds 3] [--max-epochs N]
    python tests/benchmarks/unseen.py digits [--seeds 3] [--max-epochs N]
    python tests/benchmarks/unseen.py scale

``simulated``: 24 conditions x 5 labels, four conditions hidden from everything at once; the truth is that of the
simulation. ``digits``: images turned by angles from -40 to 40 degrees, and by angles and thicknesses, some of them hidden; the
truth is rendered.
``scale``: time and memory of the ridge on 300 conditions x 5 labels x 2,000 genes.
"""

from __future__ import annotations

import argparse
import logging
import resource
import time

import numpy as np
import pandas as pd
import torch

import trvae_sc
from trvae_sc import TRVAE, baselines, datasets, metrics

HIDDEN = ["condition_5", "condition_10", "condition_15", "condition_20"]
METHODS = ["mean_condition", "nearest_condition", "feature_ridge", "context_shift"]
NAMES = {
    "condition_key": "condition",
    "labels_key": "cell_type",
    "total_counts_key": "total_counts",
}
N_TOP = 100


def fitted(train, seed, max_epochs, **kwargs):
    model = TRVAE(train, seed=seed, **kwargs)
    model.train(max_epochs, enable_progress_bar=False, accelerator="cpu")
    return model


def score(table, truth):
    """Return effect R2 of the genes that change most, and coverage of intervals, over labels."""
    rows = []
    for label, own in table.groupby("label"):
        real = truth(label)
        top = np.argsort(-np.abs(real))[:N_TOP]
        arrays = (real[top], own["change"].to_numpy()[top], np.zeros(len(top)))
        r2 = metrics.effect_r2(*(a[None] for a in arrays))
        inside = (own["lower"].to_numpy() <= real) & (real <= own["upper"].to_numpy())
        rows.append((r2, inside.mean() if own["lower"].notna().all() else np.nan))
    return rows


def simulated(args):
    found = []
    for features in ("latent", "noise"):
        for seed in range(args.seeds):
            adata = datasets.simulate(
                12_000, 400, n_labels=5, n_conditions=24, features=features, seed=seed
            )
            train = adata[~adata.obs["condition"].isin(HIDDEN)].copy()
            table = adata.uns["condition_features"]
            TRVAE.setup_anndata(train, **NAMES, condition_features=table)
            model = fitted(train, seed, args.max_epochs)
            kappa = np.median(train.obs["total_counts"])

            def change(label, target, adata=adata, kappa=kappa):
                ends = (adata.varm["true_share"][f"{label}|{c}"] for c in ("control", target))
                start, end = (np.log1p(kappa * share.to_numpy()) for share in ends)
                return end - start

            for target in HIDDEN:
                tables = {"trvae": model.effects(source="control", target=target)}
                given = {**NAMES, "condition_features": table, "source": "control"}
                for method in METHODS:
                    tables[method] = baselines.effects(train, target, method=method, **given)
                for method, own in tables.items():
                    found += [
                        (features, method, seed, target, *row)
                        for row in score(own, lambda label, t=target: change(label, t))
                    ]
            print(summary(found).to_string(), flush=True)


def summary(found):
    columns = ["features", "method", "seed", "target", "effect_r2", "coverage"]
    table = pd.DataFrame(found, columns=columns)
    wide = (
        table.groupby(["features", "method"])[["effect_r2", "coverage"]].mean().unstack("features")
    )
    return wide.round(3).sort_values(("effect_r2", "latent"))


ANGLES = pd.DataFrame({"angle": np.arange(-40.0, 41.0, 10.0)})
ANGLES.index = [f"{angle:+.0f}" for angle in ANGLES["angle"]]
TURNED = ["-30", "+10", "+30"]
GRID = pd.DataFrame(
    [(a, t) for a in (-30.0, -15.0, 0.0, 15.0, 30.0) for t in (0.0, 0.5, 1.0)],
    columns=["angle", "thickness"],
)
GRID.index = [f"{row.angle:+.0f}/{row.thickness:g}" for row in GRID.itertuples()]
BOTH = ["-15/1", "+30/0.5", "+15/0.5"]


def digits(args):
    """Styles share no image; the truth of a style is each source image as it is rendered in that style."""
    rows = []
    for what, table, hidden, source in (
        ("angle", ANGLES, TURNED, "+0"),
        ("angle and thickness", GRID, BOTH, "+0/0"),
    ):
        every = datasets.digits(table)
        for seed in range(args.seeds):
            train = datasets.digits(table, split=True, seed=seed)
            train = train[~train.obs["style"].isin(hidden)].copy()
            names = {"condition_key": "style", "labels_key": "digit"}
            names["condition_features"] = table
            TRVAE.setup_anndata(train, **names)
            model = fitted(train, seed, args.max_epochs, gene_likelihood="normal")
            start = train[train.obs["style"] == source]
            for target in hidden:
                own = every[every.obs["style"] == target]
                real = (
                    pd.DataFrame(own.X, index=own.obs["image"]).loc[start.obs["image"]].to_numpy()
                )
                keys = {**names, "is_count": False, "source": source}
                found = {"trvae": model.predict(start, target=target, output="delta").X}
                for method in METHODS:
                    found[method] = baselines.predict(train, target, method=method, **keys).X
                for method, x in found.items():
                    per_digit = [
                        metrics.effect_r2(real[d], x[d], start.X[d])
                        for d in (start.obs["digit"].to_numpy() == str(i) for i in range(10))
                    ]
                    error = np.sqrt(np.square(x - real).mean())
                    rows.append((what, method, seed, target, np.mean(per_digit), error))
        columns = ["styles", "method", "seed", "target", "effect_r2", "image_error"]
        wide = pd.DataFrame(rows, columns=columns).groupby(["styles", "method"])
        print(wide[["effect_r2", "image_error"]].mean().round(3).to_string(), flush=True)


def scale(args):
    rng = np.random.default_rng(0)
    from trvae_sc.baselines._shift import shift_of
    from trvae_sc.condition_parts import new_parts
    from trvae_sc.conditions import ConditionSpace
    from trvae_sc.shift import Profiles

    names = ["control", *(f"drug_{i}" for i in range(300))]
    table = pd.DataFrame(rng.normal(size=(300, 64)), index=names[1:])
    obs = pd.DataFrame({"drug": pd.Categorical(names[:-1])})
    space = ConditionSpace("drug", tuple(sorted(names[:-1])), new_parts(obs, ["drug"], table))
    mean = np.abs(rng.normal(1.0, 1.0, (5, 300, 2000)))
    profiles = Profiles(mean, np.full((5, 300), 50.0), tuple("abcde"), is_count=True)
    start = time.perf_counter()
    source = space.levels.index("control")
    shift_of("context_shift", profiles, space, source, "drug_299").predict(mean[0, 0], 0)
    seconds = time.perf_counter() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"300 conditions x 5 labels x 2,000 genes: {seconds:.1f} s, {memory:.2f} GiB in all")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["simulated", "digits", "scale"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--max-epochs", type=int)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    print(trvae_sc.__version__, vars(args))
    {"simulated": simulated, "digits": digits, "scale": scale}[args.what](args)


if __name__ == "__main__":
    main()
