"""One self-contained HTML page from the results of a benchmark, with a verdict for every task."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.figure import Figure

from trvae_sc import pl
from trvae_sc.evaluation import N_TOP, Results
from trvae_sc.files import write_text

_TOP = f"top{N_TOP}"
_SIMPLE = ("mean_shift", "nearest_shift", "context_shift", "latent_shift")
_MARGIN = 0.02  # of effect R2: smaller differences are within what seeds make
_TOO_LOW = 0.3  # effect R2 below which less than a third of the change is explained


class Verdict(NamedTuple):
    """What to do with the prediction of a task."""

    advice: str  #: ``"use the model"``, ``"use <baseline>"`` or ``"do not trust"``
    reason: str


def verdict(scores: Mapping[str, float], *, ceiling: float, method: str = "trvae") -> Verdict:
    """Return what to do with a prediction, from effect R2 over the genes that change most.

    Parameters
    ----------
    scores
        Effect R2 of each method (mean over seeds, best output).
    ceiling
        Effect R2 of one half of the real cells against the other.
    method
        The model.

    Returns
    -------
    Advice and reason. A simple method is advised where the model is not better by more than 0.02:
    what is simpler and as good is to be preferred. Nothing is to be trusted where less than 30 % of
    the change is explained, or where the real cells do not agree with themselves.
    """
    ours = scores[method]
    simple = {name: scores[name] for name in _SIMPLE if name in scores and name != method}
    name, theirs = max(simple.items(), key=lambda item: item[1], default=("no_change", 0.0))
    if ceiling < 0.5:
        return Verdict(
            "do not trust",
            f"the hidden cells are too few or change too little to judge anything: one half of them "
            f"predicts the other with R2 {ceiling:.2f}",
        )
    if max(ours, theirs) < _TOO_LOW:
        return Verdict(
            "do not trust",
            f"no method explains a third of the change (model {ours:.2f}, {name} {theirs:.2f})",
        )
    if ours > theirs + _MARGIN:
        return Verdict("use the model", f"effect R2 {ours:.2f} against {theirs:.2f} of {name}")
    word = "as good" if ours >= theirs - _MARGIN else "better"
    return Verdict(f"use {name}", f"it is {word}: effect R2 {theirs:.2f}, the model {ours:.2f}")


def verdicts(results: Results, *, method: str | None = None) -> pd.DataFrame:
    """Return one row per task the model has finished: scores that matter, ``advice``, ``reason``.

    Parameters
    ----------
    results
        Results of a benchmark.
    method
        The model that is judged; ``"trvae"`` if it was run, else the first that is not simple.

    Raises
    ------
    ValueError
        The method was not run.
    """
    method = _main_method(results) if method is None else method
    if method not in results.methods:
        raise ValueError(f"No method {method!r} in the results; there are {results.methods}.")
    means = results.task_means()
    means = means[(means["metric"] == "effect_r2") & (means["genes"] == _TOP)]
    rows = []
    for task, part in means.groupby(["label", "source", "target"]):
        scores = part.groupby("method")["value"].max()
        if method not in scores:  # the benchmark is still running
            continue
        found = verdict(scores, ceiling=scores.get("ceiling", np.nan), method=method)
        simple = scores[[name for name in _SIMPLE if name in scores and name != method]]
        rows.append(
            {
                **dict(zip(["label", "source", "target"], task, strict=True)),
                "model": scores[method],
                "best simple": simple.max() if len(simple) else np.nan,
                "ceiling": scores.get("ceiling", np.nan),
                "advice": found.advice,
                "reason": found.reason,
            }
        )
    return pd.DataFrame(rows)


def report(
    results: Results,
    predictions: Sequence[AnnData] = (),
    *,
    method: str | None = None,
    title: str = "How far to trust the predictions",
) -> str:
    """Return a self-contained HTML page.

    Parameters
    ----------
    results
        Results of a benchmark.
    predictions
        Predicted cells to list, with the notes that came with them.
    method
        The model that is judged; ``"trvae"`` if it was run, else the first that is not simple.
    title
        Heading.

    Returns
    -------
    HTML without any reference to the network.

    Raises
    ------
    ValueError
        The results are empty, the method was not run, or something is not a prediction.
    """
    if results.table.empty:
        raise ValueError("There are no results to report yet.")
    method = _main_method(results) if method is None else method
    table = verdicts(results, method=method)
    sections = [
        _verdict_section(table, method),
        _figure_section(results),
        _summary_section(results),
        _training_section(results, method),
        _genes_section(results, method),
        _predictions_section(predictions),
        _provenance_section(results),
    ]
    body = "\n".join(section for section in sections if section)
    return _PAGE.format(title=html.escape(title), body=body)


def write_report(path: str | Path, text: str) -> None:
    """Write a page, completely or not at all."""
    write_text(Path(path), text)


def _main_method(results: Results) -> str:
    trained = [m for m in results.methods if m not in (*_SIMPLE, "no_change", "ceiling")]
    if not trained:
        raise ValueError(
            f"Only simple methods were run, {results.methods}: there is no model to judge."
        )
    return "trvae" if "trvae" in trained else trained[0]


# -- sections -----------------------------------------------------------------------------------------

_CLASS = {"use the model": "good", "do not trust": "bad"}


def _verdict_section(table: pd.DataFrame, method: str) -> str:
    counts = table["advice"].value_counts()
    lead = ", ".join(f"{advice}: {n} of {len(table)}" for advice, n in counts.items())
    rows = []
    for row in table.to_dict("records"):
        scores = "".join(f"<td>{row[k]:.2f}</td>" for k in ("model", "best simple", "ceiling"))
        kind = _CLASS.get(row["advice"], "plain")
        rows.append(
            f"<tr><td>{html.escape(row['label'])}<br><small>{html.escape(row['source'])} &rarr; "
            f'{html.escape(row["target"])}</small></td><td class="words"><b class="{kind}">'
            f"{html.escape(row['advice'])}</b>: {html.escape(row['reason'])}</td>{scores}</tr>"
        )
    return (
        f"<h2>Verdicts</h2><p>Every row is a combination that was hidden, predicted by "
        f"<b>{html.escape(method)}</b>, and then compared with the real cells. {html.escape(lead)}.</p>"
        '<div class="scroll"><table><thead><tr><th>prediction</th><th class="words">verdict</th>'
        "<th>model</th><th>best simple</th><th>ceiling</th></tr></thead><tbody>"
        + "".join(rows)
        + "</tbody></table></div><p class=small>Numbers are effect R2 over the "
        f"{N_TOP} genes that change most: 1 is perfect, 0 is predicting no change at all. The ceiling "
        "compares one half of the real cells with the other. Combinations that were never measured "
        "cannot be checked: judge them by how combinations like them fared.</p>"
    )


def _figure_section(results: Results) -> str:
    hidden = {(r["holdout"]["label"], r["holdout"]["target"]) for r in results.records}
    parts = ["<h2>What was hidden, and what was scored</h2>"]
    parts.append(
        _image(pl.design(results.design, hidden=hidden).figure, "Cells by label and condition")
    )
    for metric, genes in (("effect_r2", _TOP), ("energy_distance", "pcs")):
        ax = pl.benchmark(results.table, metric=metric, genes=genes)
        parts.append(_image(ax.figure, f"{metric} of every method on every task"))
    parts.append(
        "<p class=small>Energy distance compares whole distributions of cells in 50 principal "
        "components; 0 is perfect, lower is better.</p>"
    )
    return "".join(parts)


def _summary_section(results: Results) -> str:
    wide = results.wide()
    wide.index = [m if o in ("ceiling",) else f"{m}, {o}" for m, o in wide.index]
    wide.columns = [f"{metric.replace('_', ' ')} ({genes})" for metric, genes in wide.columns]
    n_tasks = results.table.groupby(["label", "source", "target"]).ngroups
    seeds = ", ".join(str(s) for s in sorted(results.table["seed"].unique().tolist()))
    table = wide.to_html(float_format="{:.2f}".format, border=0)
    return (
        f"<h2>All methods</h2><p>Means over {n_tasks} tasks and seeds {seeds}.</p>"
        f'<div class="scroll">{table}</div><p class=small>Specific Pearson: correlation of what is '
        "particular to a label; the mean shift scores 0 by construction. Variance ratio: 1 is right.</p>"
    )


def _training_section(results: Results, method: str) -> str:
    for record in results.records:
        if record["method"] == method and record["history"]:
            figure = pl.training(record["history"]).figure
            where = html.escape(f"{record['holdout']['label']} hidden, seed {record['seed']}")
            return f"<h2>Training ({where})</h2>" + _image(figure, "Terms of the loss by epoch")
    return ""


def _genes_section(results: Results, method: str) -> str:
    parts = ["<h2>Genes that change most, predicted and real</h2>"]
    seen = set()
    for record in results.records:
        holdout = record["holdout"]
        task = (holdout["label"], holdout["target"])
        if record["method"] != method or task in seen:
            continue
        seen.add(task)
        output, genes = next(iter(record["genes"].items()))
        figure = _scatter(pd.DataFrame(genes).set_index("gene"))
        name = f"{holdout['label']}: {holdout['source']} to {holdout['target']}"
        table = (
            pd.DataFrame(genes).head(10).set_index("gene").set_axis(["real", "predicted"], axis=1)
        )
        table.index.name = None
        parts.append(
            f"<section><h3>{html.escape(name)}</h3><div class=pair>"
            + _image(figure, f"Predicted against real change, {name}")
            + f'<div class="scroll">{table.to_html(float_format="{:.2f}".format, border=0)}'
            f"<p class=small>Change of mean log(1 + normalised count), output {html.escape(output)}, "
            f"seed {record['seed']}.</p></div></div></section>"
        )
    return "".join(parts)


def _scatter(genes: pd.DataFrame) -> Figure:
    ax = pl.effect(genes, n_top=len(genes))
    ax.get_legend().remove()
    return ax.figure


def _predictions_section(predictions: Sequence[AnnData]) -> str:
    if not predictions:
        return ""
    parts = ["<h2>Predictions</h2>"]
    for predicted in predictions:
        record = predicted.uns.get("trvae_sc")
        if record is None:
            raise ValueError(
                "Not a prediction: uns['trvae_sc'], which says how it was made, is missing."
            )
        made = ", ".join(str(record[k]) for k in ("method", "output", "target") if k in record)
        parts.append(f"<p>{predicted.n_obs:,} cells: {html.escape(made)}.</p>")
        if "combinations" in record:
            table = pd.DataFrame(record["combinations"])
            parts.append(f'<div class="scroll">{table.to_html(index=False, border=0)}</div>')
        notes = record.get("notes", ())
        parts += [f'<p class="bad">{html.escape(str(note))}</p>' for note in notes]
    return "".join(parts)


def _provenance_section(results: Results) -> str:
    run = results.run
    versions = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
    seconds = sum(record["seconds"] for record in results.records)
    notes = {note for record in results.records for note in record["notes"]}
    notes = [*run.get("notes", ()), *sorted(notes)]
    listed = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    return (
        f"<h2>How this was made</h2><p>{run['n_obs']:,} cells, {run['n_vars']:,} genes; for every task "
        f"{run['n_top_genes'] or 'all'} variable genes, normalisation and principal components were "
        f"chosen without the hidden cells. {len(results.records)} fits, {seconds / 60:.0f} minutes of "
        f"computing. {html.escape(versions)}. Data {run['data'][:12]}.</p><ul>{listed}</ul>"
    )


def _image(figure: Figure, text: str) -> str:
    """Return a figure as an image in the page, and close it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    width = int(figure.get_figwidth() * 100)
    plt.close(figure)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(text)}" style="width:{width}px" src="data:image/png;base64,{data}">'


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>
<link rel="icon" href="data:,">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; }}
h1 {{ font-size: 1.6rem; }} h2 {{ font-size: 1.25rem; margin-top: 2.4rem; }} h3 {{ font-size: 1rem; }}
table {{ border-collapse: collapse; font-size: .9rem; }}
th, td {{ padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }}
th:first-child, td:first-child, .words {{ text-align: left; }}
.words {{ white-space: normal; min-width: 12rem; }}
.scroll {{ overflow-x: auto; }} img {{ display: block; max-width: 100%; height: auto; margin: .8rem 0; }}
.pair {{ display: flex; flex-wrap: wrap; gap: 1rem; align-items: center; }}
.small {{ font-size: .85rem; color: #555; }}
.good {{ color: #00664a; }} .bad {{ color: #a83f00; }} .plain {{ color: #00517d; }}
</style></head><body>
<h1>{title}</h1>
{body}
</body></html>
"""
