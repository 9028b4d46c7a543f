"""The whole story on simulated data: hide a combination, predict it, score it, show it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from anndata import AnnData
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from matplotlib.axes import Axes

from trvae_sc import baselines, datasets, evaluation, metrics, pl
from trvae_sc.expression import Keys
from trvae_sc.files import write_anndata, write_text
from trvae_sc.model import TRVAE
from trvae_sc.report._parts import image

_KEYS = Keys("condition", "cell_type", total_counts_key="total_counts")
_HOLDOUT = evaluation.Holdout("type_0", "stimulated", "control")
_SHOWN = {
    ("effect_r2", "top100"): "effect R2",
    ("specific_pearson", "top100"): "specific r",
    ("variance_ratio", "top100"): "variance ratio",
    ("energy_distance", "pcs"): "energy distance",
}
#: What predicted changes are drawn against.
_TRUTHS = ("change measured in the hidden cells", "true change of the simulation")
_N_GENES = 12  # in the table of the page
_LITTLE, _MUCH = 0.5, 0.9  # shares of what a perfect prediction would score


def run(folder: Path, *, seed: int = 0, max_epochs: int | None = None) -> pd.DataFrame:
    """Simulate, train, predict a combination that was hidden, score it and write what was found.

    Writes ``predicted.h5ad``, ``effect.png`` and ``report.html`` to `folder`. Returns one row of the main scores for
    each of the model, two simple methods and the ceiling, what a perfect prediction would score.
    """
    adata = datasets.simulate(seed=seed)
    task = evaluation.prepare_task(adata, _HOLDOUT, keys=_KEYS, n_top_genes=None)
    TRVAE.setup_anndata(task.train, _KEYS.condition_key, **_KEYS.further())
    model = TRVAE(task.train, seed=seed)
    model.train(max_epochs)
    predicted = model.predict(target=_HOLDOUT.target, labels=_HOLDOUT.label)
    predictions = {"TRVAE": predicted}
    for name in ("mean_shift", "no_change"):
        method = getattr(baselines, name)
        predictions[name] = method(task.train, task.source, target=_HOLDOUT.target, keys=task.keys)
    scores = {name: evaluation.score(task, cells) for name, cells in predictions.items()}
    scores["truth ceiling"] = evaluation.ceiling(task)["ceiling"]
    wide = {name: found.set_index(["metric", "genes"])["value"] for name, found in scores.items()}
    table = pd.DataFrame(wide).T[list(_SHOWN)].set_axis(list(_SHOWN.values()), axis=1)
    folder.mkdir(parents=True, exist_ok=True)
    write_anndata(predicted, folder / "predicted.h5ad", overwrite=True)
    figure, axes = plt.subplots(1, 2, figsize=(9.2, 4.4), layout="constrained")
    draw(task, adata, predicted, axes)
    figure.suptitle(f"{_HOLDOUT.label}, {_HOLDOUT.target}: never seen in training", fontsize=10)
    figure.savefig(folder / "effect.png", dpi=150)
    plt.close(figure)
    write_text(folder / "report.html", page(table, task, adata, predicted))
    return table


def true_change(task: evaluation.Task, adata: AnnData) -> pd.Series:
    """Return the change of every gene that was simulated, log(1 + kappa share)."""
    truth = np.log1p(task.kappa * adata.varm["true_share"])
    label = _HOLDOUT.label
    change = truth[f"{label}|{_HOLDOUT.target}"] - truth[f"{label}|{_HOLDOUT.source}"]
    return change.loc[task.train.var_names]


def draw(task: evaluation.Task, adata: AnnData, predicted: AnnData, axes: Iterable[Axes]) -> None:
    """Draw predicted against real change, and against the simulated truth."""
    genes = evaluation.gene_table(task, predicted)
    expected = genes.assign(
        real_change=true_change(task, adata).loc[genes.index],
        predicted_change=predicted.var["predicted_change"].loc[genes.index],
    )
    for ax, table, what in zip(axes, (genes, expected), _TRUTHS, strict=True):
        pl.effect(table, ax=ax)
        ax.set_xlabel(what, fontsize=9)
        ax.set_ylabel("predicted change of mean log(1 + normalised count)", fontsize=9)


# -- the page -----------------------------------------------------------------------------------------


def page(table: pd.DataFrame, task: evaluation.Task, adata: AnnData, predicted: AnnData) -> str:
    """Return a page with what was asked, what came out in words, some genes, and what to do next."""
    record = predicted.uns["trvae_sc"]
    found = evaluation.interval_table(task, predicted).assign(
        predicted_change=predicted.var["predicted_change"]
    )
    ranked = evaluation.gene_table(task, predicted).index
    environment = Environment(autoescape=True, loader=PackageLoader("trvae_sc.report", "."))
    return environment.get_template("demo.html").render(
        label=_HOLDOUT.label,
        source=_HOLDOUT.source,
        target=_HOLDOUT.target,
        n_cells=f"{adata.n_obs:,}",
        n_labels=adata.obs[_KEYS.labels_key].nunique(),
        n_hidden=task.real.shape[0],
        n_source=predicted.n_obs,
        n_top=evaluation.N_TOP,
        answer=in_words(table["effect R2"]),
        scores=_html(table.map("{:.2f}".format).replace({"nan": "", "-0.00": "0.00"})),
        figures=list(_figures(task, adata, predicted)),
        genes=_html(_gene_rows(found.loc[ranked[:_N_GENES]])),
        coverage=_coverage(found, true_change(task, adata)),
        notes=[str(note) for note in record["notes"]],
        seed=record["model_seed"],
        epochs=record["training"]["epochs"],
        versions=", ".join(f"{name} {number}" for name, number in record["versions"].items()),
    )


def in_words(scores: pd.Series) -> str:
    """Return what effect R2 of the model, of simple methods and of the ceiling say, in sentences."""
    ours, ceiling = scores["TRVAE"], scores["truth ceiling"]
    others = scores.drop(["TRVAE", "truth ceiling"])
    simple, best = others.idxmax(), others.max()
    said = (
        f"The model explains {max(ours, 0):.0%} of the mean change, of {ceiling:.0%} that a perfect "
        f"prediction would; the best simple method, {simple}, explains {max(best, 0):.0%}."
    )
    if ours <= best:
        return f"{said} That is no better than the simple method: use the simple one here."
    if ours < _LITTLE * ceiling:
        return f"{said} That is better than the simple method, but most of the change is missed."
    if ours < _MUCH * ceiling:
        return f"{said} That is better than the simple method, and leaves part of the change unexplained."
    return f"{said} That is good: little of the change is left to explain, and the model was needed for it."


def _coverage(found: pd.DataFrame, truth: pd.Series) -> str:
    """Return how many genes have their change in the interval."""
    lower, upper = found["change_lower"], found["change_upper"]
    if lower.isna().any():
        return "The model gives no intervals here."
    real, true = (
        metrics.interval_coverage(change, lower, upper) for change in (found["real_change"], truth)
    )
    return (
        f"The 90 % intervals hold the change that was measured in the hidden cells in {real:.0%} of all "
        f"{len(found):,} genes, and the true change of the simulation in {true:.0%}. About 90 % would be "
        "right; more means that they are wider than they need be."
    )


def _gene_rows(found: pd.DataFrame) -> pd.DataFrame:
    """Return predicted and measured changes as text."""
    inside = found["real_change"].between(found["change_lower"], found["change_upper"])
    return pd.DataFrame(
        {
            "predicted": found["predicted_change"].map("{:+.2f}".format),
            "90 % interval": [
                f"{low:+.2f} to {high:+.2f}"
                for low, high in zip(found["change_lower"], found["change_upper"], strict=True)
            ],
            "measured": found["real_change"].map("{:+.2f}".format),
            "in the interval": np.where(inside, "yes", "no"),
        },
        index=found.index.rename("gene"),
    )


def _figures(task: evaluation.Task, adata: AnnData, predicted: AnnData) -> Iterator[dict[str, str]]:
    """Yield the panels of :func:`draw` one by one, so that they stand below each other on a phone."""
    panels = [plt.subplots(figsize=(4.6, 4.4), layout="constrained") for _ in _TRUTHS]
    draw(task, adata, predicted, [ax for _, ax in panels])
    for (figure, _), what in zip(panels, _TRUTHS, strict=True):
        text = f"Predicted change of each gene against the {what}."
        yield {"image": image(figure, text), "text": text}


def _html(frame: pd.DataFrame) -> Markup:
    """Return a frame of text as a table; pandas escapes what is in it."""
    frame = frame.rename_axis(None) if frame.index.name is None else frame.reset_index()
    return Markup(frame.to_html(border=0, index=frame.columns[0] != "gene"))
