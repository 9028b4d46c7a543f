"""Print what labels are worth, and how small, lopsided and many-conditioned data are predicted.

python tests/benchmarks/odd.py [--kang kang_ifnb.h5ad] [--neutrophils neutrophil_cytokines.h5ad]
                               [--parts labels few imbalance many steps neutrophils size]
"""

import argparse
import time

import anndata
import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from trvae_sc import TRVAE, baselines
from trvae_sc.datasets import simulate
from trvae_sc.evaluation import Holdout, Keys, Task, prepare_task, score

COLUMNS = [("effect_r2", "top100"), ("specific_pearson", "top100"), ("energy_distance", "pcs")]
KEYS = Keys("condition", "cell_type")
QUIET = {"enable_progress_bar": False, "accelerator": "cpu", "devices": 1}


def fit(train: AnnData, *, labels_key: str | None, seed: int = 0, **kwargs) -> TRVAE:
    """Return a model of the default preset, trained on cells with their totals."""
    TRVAE.setup_anndata(train, "condition", labels_key=labels_key, total_counts_key="total_counts")
    model = TRVAE(train, seed=seed)
    model.train(**QUIET, **kwargs)
    losses = pd.concat([values.iloc[:, 0] for values in model.history.values()], axis=1)
    if not np.isfinite(losses.to_numpy(dtype=float)).all():
        raise FloatingPointError(f"The history has values that are not finite:\n{losses}")
    return model


def report(name: str, table: pd.DataFrame) -> None:
    """Print the scores of a prediction in one line."""
    values = table.set_index(["metric", "genes"])["value"]
    scores = "  ".join(f"{metric} {values[metric, genes]:6.3f}" for metric, genes in COLUMNS)
    print(f"  {name:<34} {scores}", flush=True)


def predicted(task: Task, *, labels_key: str | None, seed: int = 0, **kwargs) -> AnnData:
    """Train on a task's cells, and return its source cells under the target."""
    train = task.train.copy()
    train.obs["all"] = pd.Categorical(["all"] * train.n_obs)
    model = fit(train, labels_key=labels_key, seed=seed, **kwargs)
    rows = task.holdout.sources(train, task.keys)
    return model.predict(target=task.holdout.target, indices=rows)


def simple(task: Task) -> None:
    """Print the scores of the simple methods."""
    for name in ("no_change", "mean_shift"):
        method = getattr(baselines, name)
        found = method(task.train, task.source, target=task.holdout.target, keys=task.keys)
        report(name, score(task, found))


def first(adata: AnnData, label: str, condition: str, n_cells: int) -> AnnData:
    """Return the cells, of a combination only the first so many."""
    chosen = (adata.obs["cell_type"] == label) & (adata.obs["condition"] == condition)
    return adata[np.setdiff1d(np.arange(adata.n_obs), np.flatnonzero(chosen)[n_cells:])].copy()


def labels(data: dict[str, tuple[AnnData, Holdout]], seeds: int, epochs: int | None) -> None:
    """With labels, without, and with a column that is the same for every cell."""
    for name, (adata, holdout) in data.items():
        print(f"\nlabels: {name}, {holdout}", flush=True)
        task = prepare_task(adata, holdout, keys=KEYS)
        simple(task)
        for key in ("cell_type", None, "all"):
            for seed in range(seeds):
                found = predicted(task, labels_key=key, seed=seed, max_epochs=epochs)
                table = score(task, found)
                report(f"labels_key={key!r}, seed {seed}", table)


def few(data: dict[str, tuple[AnnData, Holdout]], epochs: int | None) -> None:
    """A label of which 20 cells are known; two labels."""
    for name, (adata, holdout) in data.items():
        label, source = holdout.label, holdout.source
        print(f"\nfew: {name}, {holdout}", flush=True)
        task = prepare_task(first(adata, label, source, 20), holdout, keys=KEYS)
        simple(task)
        found = predicted(task, labels_key="cell_type", max_epochs=epochs)
        report("20 source cells", score(task, found))
        other = adata.obs["cell_type"].value_counts().drop(label).index[0]
        two = adata[adata.obs["cell_type"].isin([label, other])].copy()
        task = prepare_task(two, holdout, keys=KEYS)
        simple(task)
        found = predicted(task, labels_key="cell_type", max_epochs=epochs)
        report(f"two labels, the other {other}", score(task, found))
        print("  notes:", *found.uns["trvae_sc"]["notes"])


def imbalance(data: dict[str, tuple[AnnData, Holdout]], epochs: int | None) -> None:
    """Target cells of training 1 to 20 source cells, drawn evenly or as they are."""
    for name, (adata, holdout) in data.items():
        print(f"\nimbalance: {name}, {holdout}", flush=True)
        rng = np.random.default_rng(0)
        hidden = holdout.hidden(adata, KEYS)
        target = np.flatnonzero((adata.obs["condition"] == holdout.target) & ~hidden)
        rest = np.flatnonzero((adata.obs["condition"] != holdout.target) | hidden)
        n_source = int((adata.obs["condition"] == holdout.source).sum())
        kept = np.sort(np.r_[rest, rng.choice(target, n_source // 20, replace=False)])
        task = prepare_task(adata[kept].copy(), holdout, keys=KEYS)
        print("  training cells:", task.train.obs["condition"].value_counts().to_dict())
        simple(task)
        for balanced in (False, True):
            chosen = {"balance_conditions": balanced, "max_epochs": epochs}
            found = predicted(task, labels_key="cell_type", **chosen)
            report(f"balance_conditions={balanced}", score(task, found))


def many(epochs: int | None) -> None:
    """50 conditions x 20 labels, one combination hidden."""
    conditions = [f"c{i}" for i in range(50)]
    adata = simulate(20_000, 300, n_labels=20, conditions=conditions)
    print("\nmany: 50 conditions x 20 labels, 20,000 cells x 300 genes", flush=True)
    task = prepare_task(adata, Holdout("type_0", "c7", "c0"), keys=KEYS)
    simple(task)
    started = time.perf_counter()
    train = task.train.copy()
    model = fit(train, labels_key="cell_type", max_epochs=epochs)
    loss = model.history["train_loss"]["train_loss"]
    print(f"  fit: {time.perf_counter() - started:.0f} s", f"loss {loss.iloc[[0, -1]].tolist()}")
    rows = task.holdout.sources(train, task.keys)
    report("trvae", score(task, model.predict(target="c7", indices=rows)))
    started = time.perf_counter()
    found = model.predict(target="c7", labels="type_0")
    seconds = time.perf_counter() - started
    finite = np.isfinite(found.X.data).all()
    print(f"  type_0 from all 49 others: {found.n_obs} cells, {seconds:.1f} s, finite {finite}")


def steps(n_steps: int = 30) -> None:
    """Seconds of a training step by number of conditions, everything else equal."""
    print("\nsteps: 256 cells x 2,000 genes, 20 labels, median of a step", flush=True)
    medians = {}
    for n in (2, 12, 50):
        adata = simulate(2000, 2000, n_labels=20, conditions=[f"c{i}" for i in range(n)])
        TRVAE.setup_anndata(adata, "condition", labels_key="cell_type")
        model = TRVAE(adata)
        module = model.module
        module.n_cells += 10
        optimizer = torch.optim.AdamW(module.parameters(), fused=True)
        rng = np.random.default_rng(0)
        (tensors,) = model._make_data_loader(adata, rng.choice(adata.n_obs, 256), 256)
        seconds = []
        for _ in range(n_steps):
            started = time.perf_counter()
            optimizer.zero_grad()
            module(tensors)[2].loss.backward()
            optimizer.step()
            seconds.append(time.perf_counter() - started)
        medians[n] = np.median(seconds)
        ratio = medians[n] / medians[2]
        print(f"  {n:>3} conditions: {1e3 * medians[n]:6.1f} ms, ratio {ratio:.2f}", flush=True)


def neutrophils(adata: AnnData, seeds: int, epochs: int | None) -> None:
    """Twelve conditions of one label: the loss by seed."""
    print(f"\nneutrophils: {adata.n_obs} cells, {adata.obs['condition'].nunique()} conditions")
    adata.obs["total_counts"] = np.asarray(adata.X.sum(1)).ravel().astype(float)
    last = []
    for seed in range(seeds):
        model = fit(adata.copy(), labels_key="cell_type", seed=seed, max_epochs=epochs)
        loss = model.history["train_loss"]["train_loss"].to_numpy(dtype=float)
        found = model.predict(target="IL4", source="IL10")
        finite = np.isfinite(found.X.data).all()
        last.append(loss[-1])
        rises = np.diff(loss[len(loss) // 2 :]).max()
        print(
            f"  seed {seed}: loss {loss[0]:.1f} to {loss[-1]:.2f}, lowest {loss.min():.2f}, largest "
            f"rise in the second half {rises:.2f}, prediction finite {finite}",
            flush=True,
        )
    print(f"  spread of the last loss: {np.ptp(last):.3f}, mean {np.mean(last):.2f}")


def size() -> None:
    """Few and many cells, genes and conditions; three epochs where there are many cells."""
    print("\nsize: loss, and whether predictions are finite", flush=True)
    for n_cells, n_genes, n_conditions, epochs in (
        (200, 20, 2, None),
        (200, 10_000, 2, 30),
        (1000, 20, 50, None),
        (1000, 10_000, 50, 10),
        (50_000, 200, 2, 3),
    ):
        conditions = ["control", *(f"c{i}" for i in range(1, n_conditions))]
        adata = simulate(n_cells, n_genes, conditions=conditions)
        model = fit(adata, labels_key="cell_type", max_epochs=epochs)
        loss = model.history["train_loss"]["train_loss"]
        found = model.predict(target="c1", source="control")
        finite = np.isfinite(found.X.data).all() and np.isfinite(found.var["predicted_mean"]).all()
        print(
            f"  {n_cells:>6} cells {n_genes:>6} genes {n_conditions:>3} conditions: loss "
            f"{loss.iloc[0]:.1f} to {loss.iloc[-1]:.1f}, finite {finite}",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kang", help="file with condition and cell_type in obs, counts in X")
    parser.add_argument("--label", default="NK", help="label of that file to hold out")
    parser.add_argument("--neutrophils", help="file with twelve conditions of one cell type")
    parser.add_argument("--no-simulated", action="store_true", help="files only")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--max-epochs", type=int, help="epochs of every fit; the default if absent")
    names = ["labels", "few", "imbalance", "many", "steps", "neutrophils", "size"]
    parser.add_argument("--parts", nargs="+", choices=names, default=names)
    args = parser.parse_args()
    data = {}
    if not args.no_simulated:
        data["simulate()"] = simulate(), Holdout("type_0", "stimulated", "control")
    if args.kang:
        holdout = Holdout(args.label, "stimulated", "control")
        data[args.kang] = anndata.read_h5ad(args.kang), holdout
    if "labels" in args.parts:
        labels(data, args.seeds, args.max_epochs)
    if "few" in args.parts:
        few(data, args.max_epochs)
    if "imbalance" in args.parts:
        imbalance(data, args.max_epochs)
    if "steps" in args.parts:
        steps()
    if "many" in args.parts:
        many(args.max_epochs)
    if "neutrophils" in args.parts and args.neutrophils:
        neutrophils(anndata.read_h5ad(args.neutrophils), args.seeds, args.max_epochs)
    if "size" in args.parts:
        size()
