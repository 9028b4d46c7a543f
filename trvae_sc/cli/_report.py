"""The subcommand report: results as a page."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from trvae_sc.cli._shared import answer, check_output, quiet, say
from trvae_sc.errors import InputError
from trvae_sc.files import read

if TYPE_CHECKING:
    from pandas import DataFrame


def _next_experiments(folder: Path) -> DataFrame | None:
    """Return what to measure next, as a saved model ranks it; None where nothing is missing."""
    from trvae_sc import TRVAE, next_experiments

    quiet()
    model = TRVAE.load(folder, adata=False, accelerator="cpu")
    return next_experiments(model) if (model.n_cells == 0).any(axis=None) else None


def run_report(args: argparse.Namespace) -> None:
    """Write results as an HTML page."""
    if args.out.suffix != ".html":
        raise InputError(f"{args.out} does not end in .html, and the report is a page. Name it so.")
    inputs = [*args.predictions, *([] if args.gmt is None else [args.gmt])]
    check_output(args.out, overwrite=args.force, inputs=inputs)
    from trvae_sc.evaluation import Results
    from trvae_sc.report import report, task_pathways, verdicts, write_report

    results = Results.load(args.results)
    scores = None if args.gmt is None else task_pathways(results, args.gmt, method=args.method)
    text = report(
        results,
        [read(path) for path in args.predictions],
        method=args.method,
        pathways=scores,
        next_experiments=None if args.model is None else _next_experiments(args.model),
    )
    write_report(args.out, text, overwrite=args.force)
    table = verdicts(results, method=args.method)
    for row in table.itertuples():
        say(f"{row.label} under {row.target}: {row.advice}")
    say(f"Wrote {args.out}")
    answer(args, {"out": str(args.out), "verdicts": json.loads(table.to_json(orient="records"))})
