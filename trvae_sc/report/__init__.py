"""One self-contained HTML page from the results of a benchmark, with a verdict for every task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from jinja2 import Environment, PackageLoader
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from trvae_sc import pl
from trvae_sc.errors import InputError
from trvae_sc.evaluation import CEILING, N_TOP, Results
from trvae_sc.files import write_text
from trvae_sc.pl._finish import png_of
from trvae_sc.report._verdicts import TOP, Verdict, main_method, verdict, verdicts

__all__ = ["Verdict", "report", "verdict", "verdicts", "write_report"]

_KINDS = {"use the model": "good", "do not trust": "bad"}


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
    HTML without any reference to the network. All names in it are text: nothing that data hold is code.

    Raises
    ------
    InputError
        The results are empty, the method was not run, or something is not a prediction.
    """
    if results.table.empty:
        raise InputError("There are no results to report yet.")
    method = main_method(results) if method is None else method
    table = verdicts(results, method=method)
    counts = table["advice"].value_counts()
    # everything that is put into the page is escaped, but for what is marked as markup here
    page = Environment(autoescape=True, loader=PackageLoader("trvae_sc.report", "."))
    return page.get_template("page.html").render(
        title=title,
        quick_look=results.quick_look,
        method=method,
        counts=", ".join(f"{advice}: {n} of {len(table)}" for advice, n in counts.items()),
        verdicts=[_verdict_row(row) for row in table.to_dict("records")],
        n_top=N_TOP,
        figures=list(_figures(results)),
        n_tasks=results.table.groupby(["label", "source", "target"]).ngroups,
        seeds=", ".join(str(s) for s in sorted(results.table["seed"].unique().tolist())),
        summary=_summary(results),
        training=_training(results, method),
        genes=list(_genes(results, method)),
        predictions=[_prediction(predicted) for predicted in predictions],
        made=_made(results),
        notes=_notes(results),
    )


def write_report(path: str | Path, text: str, *, overwrite: bool = True) -> None:
    """Write a page, completely or not at all."""
    write_text(Path(path), text, overwrite=overwrite)


# -- what is in the page ------------------------------------------------------------------------------


def _verdict_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of the table of verdicts, as text."""
    spread = "" if pd.isna(row["sd_seeds"]) else f" \u00b1 {row['sd_seeds']:.2f}"
    return {
        **{k: row[k] for k in ("label", "source", "target", "advice", "reason")},
        "kind": _KINDS.get(row["advice"], "plain"),
        "model": f"{row['model']:.2f}{spread}",
        "simple": "" if pd.isna(row["best simple"]) else f"{row['best simple']:.2f}",
        "ceiling": "" if pd.isna(row["ceiling"]) else f"{row['ceiling']:.2f}",
    }


def _figures(results: Results) -> Iterator[Markup]:
    """Yield what was measured and hidden, and scores of every method on every task."""
    hidden = {(r["holdout"]["label"], r["holdout"]["target"]) for r in results.records}
    design: Any = pl.design(results.design, hidden=hidden)
    yield _image(design.figure, "Cells by label and condition")
    for metric, genes in (("effect_r2", TOP), ("energy_distance", "pcs")):
        ax: Any = pl.benchmark(results.table, metric=metric, genes=genes)
        yield _image(ax.figure, f"{metric} of every method on every task")


def _summary(results: Results) -> Markup:
    """Return the main scores of every method as a table."""
    wide = results.wide()
    wide.index = [m if m == o == CEILING else f"{m}, {o}" for m, o in wide.index]
    wide.columns = [f"{metric.replace('_', ' ')} ({genes})" for metric, genes in wide.columns]
    return _table(wide)


def _table(frame: pd.DataFrame, *, index: bool = True) -> Markup:
    """Return a frame as a table; pandas escapes what is in it."""
    options = {"border": 0, "index": index, "escape": True, "na_rep": ""}
    return Markup(frame.to_html(float_format=lambda value: f"{value + 0.0:.2f}", **options))


def _training(results: Results, method: str) -> dict[str, Any] | None:
    """Return the terms of the loss of the first fit that has them."""
    for record in results.records:
        if record["method"] == method and record["history"]:
            ax: Any = pl.training(record["history"])
            figure = ax.figure
            where = f"{record['holdout']['label']} hidden, seed {record['seed']}"
            return {"where": where, "image": _image(figure, "Terms of the loss by epoch")}
    return None


def _genes(results: Results, method: str) -> Iterator[dict[str, Any]]:
    """Yield the genes that change most of every task."""
    seen = set()
    for record in results.records:
        holdout = record["holdout"]
        task = (holdout["label"], holdout["target"])
        if record["method"] != method or task in seen:
            continue
        seen.add(task)
        output = results.output_of(method)
        genes = pd.DataFrame(record["genes"][output]).set_index("gene")
        name = f"{holdout['label']}: {holdout['source']} to {holdout['target']}"
        table = genes.head(10).set_axis(["real", "predicted"], axis=1).rename_axis(None)
        yield {
            "name": name,
            "image": _image(_scatter(genes), f"Predicted against real change, {name}"),
            "table": _table(table),
            "output": output,
            "seed": record["seed"],
        }


def _scatter(genes: pd.DataFrame) -> Figure:
    ax: Any = pl.effect(genes, n_top=len(genes))
    ax.get_legend().remove()
    return ax.figure


def _prediction(predicted: AnnData) -> dict[str, Any]:
    """Return what a prediction says of itself."""
    record = predicted.uns.get("trvae_sc")
    if record is None:
        raise InputError(
            "Not a prediction: uns['trvae_sc'], which says how it was made, is missing."
        )
    told = [record[k] for k in ("method", "output", "target") if k in record]
    made = ", ".join(str(value) for values in told for value in np.atleast_1d(values))
    table = None
    if "combinations" in record:
        table = _table(pd.DataFrame(record["combinations"]), index=False)
    return {
        "made": f"{predicted.n_obs:,} cells: {made}.",
        "table": table,
        "notes": [str(note) for note in record.get("notes", ())],
    }


def _made(results: Results) -> str:
    """Return what was run, in words."""
    run = results.run
    versions = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
    seconds = sum(record["seconds"] for record in results.records)
    return (
        f"{run['n_obs']:,} cells, {run['n_vars']:,} genes; for every task "
        f"{run['n_top_genes'] or 'all'} genes, normalisation and principal components were "
        f"chosen without the hidden cells. {len(results.records)} fits, {seconds / 60:.0f} minutes of "
        f"computing. {versions}. Data {run['data'][:12]}."
    )


def _notes(results: Results) -> list[str]:
    """Return the notes of the run and of its predictions."""
    notes = {note for record in results.records for note in record["notes"]}
    return [*results.run.get("notes", ()), *sorted(notes)]


def _image(figure: Any, text: str) -> Markup:
    """Return a figure as an image in the page, and close it."""
    width = int(figure.get_figwidth() * 100)
    # the text is escaped; the rest is a number and base64
    tag = '<img alt="{}" style="width:{}px" src="data:image/png;base64,{}">'
    return Markup(tag).format(escape(text), width, png_of(figure))
