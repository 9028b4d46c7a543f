"""The whole story on simulated data: hide a combination, predict it, score it, show it."""

from __future__ import annotations

import base64
import html
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.figure import Figure

from trvae_sc import baselines, datasets, evaluation, pl
from trvae_sc.expression import Keys
from trvae_sc.files import write_anndata, write_text
from trvae_sc.model import TRVAE

_KEYS = Keys("condition", "cell_type", total_counts_key="total_counts")
_HOLDOUT = evaluation.Holdout("type_0", "stimulated", "control")
_SHOWN = {
    ("effect_r2", "top100"): "effect R2",
    ("specific_pearson", "top100"): "specific r",
    ("variance_ratio", "top100"): "variance ratio",
    ("energy_distance", "pcs"): "energy distance",
}


def run(folder: Path, *, seed: int = 0, max_epochs: int | None = None) -> pd.DataFrame:
    """Simulate, train, predict a combination that was hidden, score it and write what was found.

    Writes ``predicted.h5ad``, ``effect.png`` and ``report.html`` to `folder`.

    Parameters
    ----------
    folder
        Folder to write to; made if missing.
    seed
        Seed of simulation and model.
    max_epochs
        Epochs of training; the model's default if None.

    Returns
    -------
    Scores, one row per method: the model, predicting no change, the mean shift of the other cell
    types, and the ceiling, what a perfect prediction would score.
    """
    adata = datasets.simulate(seed=seed)
    task = evaluation.prepare_task(adata, _HOLDOUT, keys=_KEYS, n_top_genes=None)
    model = train_model(task, seed=seed, max_epochs=max_epochs)
    predicted = model.predict(target=_HOLDOUT.target, labels=_HOLDOUT.label)
    others = {
        name: getattr(baselines, name)(
            task.train, task.source, target=_HOLDOUT.target, keys=task.keys
        )
        for name in ("mean_shift", "no_change")
    }
    scores = {"TRVAE": evaluation.score(task, predicted)}
    scores |= {name: evaluation.score(task, other) for name, other in others.items()}
    scores["truth ceiling"] = evaluation.ceiling(task)["ceiling"]
    table = summary(scores)
    folder.mkdir(parents=True, exist_ok=True)
    write_anndata(predicted, folder / "predicted.h5ad", overwrite=True)
    figure = draw(task, adata, predicted)
    figure.savefig(folder / "effect.png", dpi=150)
    plt.close(figure)
    write_text(folder / "report.html", page(table, folder / "effect.png", predicted))
    return table


def train_model(task: evaluation.Task, *, seed: int, max_epochs: int | None) -> TRVAE:
    """Return a model trained on what a task shows."""
    keys = task.keys
    TRVAE.setup_anndata(task.train, keys.condition_key, **keys.further())
    model = TRVAE(task.train, seed=seed)
    model.train(max_epochs)
    return model


def summary(scores: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Return one row of the main scores per method."""
    wide = {name: table.set_index(["metric", "genes"])["value"] for name, table in scores.items()}
    return pd.DataFrame(wide).T[list(_SHOWN)].set_axis(list(_SHOWN.values()), axis=1)


def draw(task: evaluation.Task, adata: AnnData, predicted: AnnData) -> Figure:
    """Return predicted against real change, and against the simulated truth."""
    genes = evaluation.gene_table(task, predicted)
    share = adata.varm["true_share"].loc[genes.index]
    truth = np.log1p(task.kappa * share)
    label = _HOLDOUT.label
    true_change = truth[f"{label}|{_HOLDOUT.target}"] - truth[f"{label}|{_HOLDOUT.source}"]
    expected = genes.assign(
        real_change=true_change, predicted_change=predicted.var["predicted_change"].loc[genes.index]
    )
    figure, axes = plt.subplots(1, 2, figsize=(9.2, 4.4), layout="constrained")
    pl.effect(genes, ax=axes[0])
    pl.effect(expected, ax=axes[1])
    axes[0].set_xlabel("change measured in the hidden cells", fontsize=9)
    axes[1].set_xlabel("true change of the simulation", fontsize=9)
    for ax in axes:
        ax.set_ylabel("predicted change of mean log(1 + normalised count)", fontsize=9)
    figure.suptitle(f"{label}, {_HOLDOUT.target}: never seen in training", fontsize=10)
    return figure


def page(table: pd.DataFrame, picture: Path, predicted: AnnData) -> str:
    """Return a small page with the table and the picture in it."""
    image = base64.b64encode(picture.read_bytes()).decode()
    record = predicted.uns["trvae_sc"]
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>trvae_sc demo</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; display: block; overflow-x: auto; }}
th, td {{ padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }}
th:first-child, td:first-child {{ text-align: left; }} img {{ max-width: 100%; height: auto; }}
</style></head><body>
<h1>A cell type never seen stimulated, predicted</h1>
<p>{predicted.n_obs} simulated control cells of {html.escape(_HOLDOUT.label)} were moved to
&ldquo;{html.escape(_HOLDOUT.target)}&rdquo; by a model that saw this cell type in the control only. The
predicted cells are in <code>predicted.h5ad</code>.</p>
{table.round(2).to_html(border=0)}
<p>Effect R2: 1 is perfect, 0 is predicting no change. Specific r: correlation of what is particular to
this cell type; the mean shift of the other types scores 0. Variance ratio: 1 is right. Energy
distance: 0 is right.</p>
<img alt="Predicted against real change of each gene" src="data:image/png;base64,{image}">
<p>Seed {record["model_seed"]}; {html.escape(versions)}.</p>
</body></html>
"""
