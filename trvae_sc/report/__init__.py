"""One self-contained HTML page from the results of a benchmark, with a verdict for every task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from jinja2 import Environment, PackageLoader

from trvae_sc import pl
from trvae_sc.baselines import SIMPLEST_FIRST
from trvae_sc.errors import InputError
from trvae_sc.evaluation import N_TOP, Results
from trvae_sc.evaluation._holdouts import TASK
from trvae_sc.files import as_path, check_target, write_text
from trvae_sc.report._genes import gene_changes, panel, predicted_changes, task_pathways
from trvae_sc.report._parts import csv_link, image, number, table_of
from trvae_sc.report._scores import (
    gene_sections,
    images,
    packed_genes,
    score_rows,
    score_table,
    spread,
    summary,
)
from trvae_sc.report._settings import counted, design, n_tasks, python_call, settings
from trvae_sc.report._verdicts import Verdict, main_method, verdict, verdicts

__all__ = [
    "Verdict",
    "gene_changes",
    "report",
    "task_pathways",
    "verdict",
    "verdicts",
    "write_report",
]

_KINDS = {"use the model": "good", "do not trust": "bad"}


def report(
    results: Results,
    predictions: AnnData | Sequence[AnnData] = (),
    *,
    method: str | None = None,
    pathways: pd.DataFrame | None = None,
    next_experiments: pd.DataFrame | None = None,
    title: str = "How far to trust the predictions",
) -> str:
    """Return a self-contained HTML page to explore: verdicts, scores, genes, pathways, what is missing.

    Parameters
    ----------
    results
        Results of a benchmark.
    predictions
        Predicted cells to list, one or several, with their notes. Genes of those of one label can be searched.
    method
        The method that is judged; ``"trvae"`` if it was run, else the first that is not simple, else the least
        simple.
    pathways
        Scores of pathways, as :func:`trvae_sc.pathways` or :func:`trvae_sc.report.task_pathways` return them.
    next_experiments
        What to measure next, as :func:`trvae_sc.next_experiments` returns it.
    title
        Heading.

    Returns
    -------
    HTML without any reference to the network. Nothing that data hold is code in it.

    Raises
    ------
    InputError
        The results are empty, the method was not run, something is not a prediction, or a table is of
        something else.
    """
    if not isinstance(results, Results):
        raise InputError(
            f"report takes results of a benchmark, not {type(results).__name__}; predictions come second."
        )
    if results.table.empty:
        raise InputError("There are no results to report yet.")
    predictions = _several(predictions)
    method = main_method(results, method)
    table, listed = verdicts(results, method=method), [_prediction(p) for p in predictions]
    plan, sets = design(results, next_experiments), None if pathways is None else panel(pathways)
    changes, rows = gene_changes(results, method=method), score_rows(results)
    forecast = predicted_changes(predictions)
    notes = {note for record in results.records for note in record["notes"]}
    n_seeds = int(results.table.groupby("method")["seed"].nunique().max())
    every = changes
    if not forecast.empty:
        every = pd.concat([changes.assign(origin="hidden"), forecast], ignore_index=True)
    # everything that is put into the page is escaped, but for what is marked as markup here
    page = Environment(autoescape=True, loader=PackageLoader("trvae_sc.report", "."))
    return page.get_template("page.html").render(
        title=title,
        quick_look=results.quick_look,
        settings=settings(results),
        python_call=python_call(results),
        verdicts=[_verdict_row(row) for row in table.to_dict("records")],
        told=_told(table, method),
        has_spread=bool(table["sd_seeds"].notna().any()),
        judged=method if method in SIMPLEST_FIRST else "model",
        method=method,
        top=_top(results),
        n_drawn=N_TOP,
        design=plan,
        figures=list(images(results)),
        over=f"{counted(n_tasks(results), 'task')} and {counted(n_seeds, 'seed')}",
        summary=summary(results),
        scores=score_table(results, rows),
        scores_csv=csv_link(rows),
        training=_training(results, method),
        genes=list(gene_sections(changes)),
        packed=packed_genes(every),
        is_count=results.run["keys"].get("is_count", True),
        pathways=sets,
        predictions=listed,
        notes=[*results.run.get("notes", ()), *sorted(notes)],
    )


def write_report(path: str | Path, text: str, *, overwrite: bool = True) -> None:
    """Write a page, completely or not at all.

    Parameters
    ----------
    path
        File to write; folders that are missing are made.
    text
        The page, as :func:`report` returns it.
    overwrite
        Replace a file that is there.

    Raises
    ------
    InputError
        `text` is no page, the file is there and `overwrite` is False, or it cannot be written.
    """
    if not isinstance(text, str):
        raise InputError(
            f"text is {type(text).__name__}; give the page: write_report(path, report(results))."
        )
    place = as_path(path, "path")
    check_target(place, overwrite=overwrite)
    write_text(place, text, overwrite=overwrite)


# -- what is in the page ------------------------------------------------------------------------------


def _verdict_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of the table of verdicts, as text."""
    return {
        **{k: row[k] for k in (*TASK, "advice", "reason")},
        "kind": _KINDS.get(row["advice"], "plain"),
        "model": f"{number(row['model'])}{spread(row['sd_seeds'])}",
        "simple": number(row["best simple"]),
        "simple_name": row["simple"],
        "ceiling": number(row["ceiling"]),
        "values": [row["model"], row["best simple"], row["ceiling"]],
    }


def _told(table: pd.DataFrame, method: str) -> str:
    """Return what was done and how often which advice came out, in sentences."""
    done = f"predicted by {method} without having seen it, and then compared with the real cells."
    if len(table) == 1:
        told = f"One combination was hidden, {done}"
        if table["sd_seeds"].notna().any() or table["best simple"].isna().all():
            return told
        return (
            f"{told} With one combination and one seed the spread of a difference is not known, so that "
            "none is called: run more seeds, or hide more combinations."
        )
    counts = ", ".join(f"{advice} ({n})" for advice, n in table["advice"].value_counts().items())
    return f"Each of {len(table)} combinations was hidden in turn, {done} Verdicts: {counts}."


def _top(results: Results) -> str:
    """Return the genes that scores are over, in words."""
    n_genes = min(record["n_genes"] for record in results.records)
    if n_genes <= N_TOP:
        return f"all {n_genes} genes"
    return f"the {N_TOP} genes that change most clearly (largest t value between hidden and source cells)"


def _training(results: Results, method: str) -> dict[str, Any] | None:
    """Return the terms of the loss of the first fit that has them."""
    for record in results.records:
        if record["method"] == method and record["history"]:
            ax: Any = pl.training(record["history"])
            where = f"{record['holdout']['label']} hidden, seed {record['seed']}"
            return {"where": where, "image": image(ax.figure, "Terms of the loss by epoch")}
    return None


def _several(predictions: AnnData | Sequence[AnnData]) -> Sequence[AnnData]:
    """Return one or several predictions as a sequence, checked."""
    is_one = isinstance(predictions, str) or not isinstance(predictions, Sequence)
    listed: Sequence[Any] = [predictions] if is_one else predictions
    other = [one for one in listed if not isinstance(one, AnnData)]
    if other:
        raise InputError(
            f"predictions has {type(other[0]).__name__}; give what TRVAE.predict returned, one or several in a "
            "list. To write the page: write_report(path, report(results))."
        )
    return listed


def _prediction(predicted: AnnData) -> dict[str, Any]:
    """Return what a prediction says of itself."""
    record = predicted.uns.get("trvae_sc")
    if record is None:
        raise InputError(
            "Not a prediction: uns['trvae_sc'], which says how it was made, is missing."
        )
    told = [record[k] for k in ("method", "output", "target") if k in record]
    made = ", ".join(str(value) for values in told for value in np.atleast_1d(values))
    known = "combinations" in record
    return {
        "made": f"{counted(predicted.n_obs, 'cell')}: {made}.",
        "table": table_of(pd.DataFrame(record["combinations"])) if known else None,
        "notes": [str(note) for note in record.get("notes", ())],
    }
