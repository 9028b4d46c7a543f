"""The subcommands that compare methods: check, read, call one public function, write."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from trvae_sc.cli._shared import (
    answer,
    check_data,
    check_output,
    check_prediction_file,
    keys_of,
    options,
    quiet,
    say,
    write_prediction,
)
from trvae_sc.errors import InputError
from trvae_sc.files import read, write_text, write_whole
from trvae_sc.roles import ONE_LABEL

if TYPE_CHECKING:  # torch and scvi-tools take seconds to import, which --help need not wait for
    from anndata import AnnData
    from pandas import DataFrame

    from trvae_sc.evaluation import Holdout
    from trvae_sc.expression import Keys

#: Methods of a benchmark by default: of labels that lack a condition, and of conditions never measured.
_OF_LABELS = ("no_change", "mean_shift", "context_shift", "trvae")
_OF_CONDITIONS = (
    *("no_change", "mean_condition", "nearest_condition", "feature_ridge", "sum_of_parts"),
    *("context_shift", "trvae"),
)
_DEMO = ("predicted.h5ad", "effect.png", "report.html")


def run_demo(args: argparse.Namespace) -> None:
    """Simulate, train, predict a hidden combination and score it."""
    check_output(args.out, overwrite=args.force, kind="demo", replaces=_is_demo)
    from trvae_sc import demo

    tables = []

    def write(folder: Path) -> None:
        tables.append(demo.run(folder, seed=args.seed, max_epochs=args.max_epochs))

    quiet()
    write_whole(args.out, write, overwrite=args.force)
    (table,) = tables
    say(table.round(2).to_string())
    say(f"\nWrote {', '.join(_DEMO[:-1])} and {_DEMO[-1]} to {args.out}/")
    answer(args, {"out": str(args.out), "scores": json.loads(table.to_json(orient="index"))})


def _is_demo(folder: Path) -> bool:
    """Return whether a folder holds nothing but files of a demo."""
    return all(entry.name in _DEMO for entry in folder.iterdir())


def run_select(args: argparse.Namespace) -> None:
    """Choose a method, predict with it and write the cells."""
    check_prediction_file(args)
    if args.folder is not None:
        check_output(args.folder, overwrite=True, kind="folder of results", replaces=_is_results)
    adata, keys = _cells_to_compare(args, "select")
    from trvae_sc.evaluation import select

    predicted = select(
        adata,
        args.target,
        keys=keys,
        n_top_genes=args.n_top_genes or None,
        **options(args, "source", "methods", "labels", "metric", "max_tasks", "min_cells"),
        **options(args, "seeds", "max_epochs", "combine", "output", "folder", "n_jobs"),
    )
    chosen = predicted.uns["trvae_sc"]["selection"]
    record = {k: chosen[k] for k in ("method", "output", "n_tasks")}
    if "weights" in chosen:
        record["weights"] = {name: float(weight) for name, weight in chosen["weights"].items()}
    if "scores" in chosen:
        record["scores"] = json.loads(chosen["scores"].to_json(orient="records"))
    write_prediction(predicted, args, **record)


def _cells_to_compare(args: argparse.Namespace, command: str) -> tuple[AnnData, Keys]:
    """Return the cells that methods are compared on, and where they hold what."""
    adata = read(args.file)
    from trvae_sc.evaluation import subsample

    if args.labels_key is None:
        raise InputError(f"{command} needs --labels-key. {ONE_LABEL}")
    if args.gene_likelihood not in (None, "nb", "normal"):
        raise InputError(f"{command} compares methods under gene likelihood nb (counts) or normal.")
    keys = keys_of(args, is_count=args.gene_likelihood != "normal")
    quiet()
    check_data(adata, args, keys)
    return adata if args.max_cells is None else subsample(adata, keys, args.max_cells), keys


def _is_results(folder: Path) -> bool:
    """Return whether a folder holds results of a benchmark, or nothing but what a kill left of its start."""
    others = [entry for entry in folder.iterdir() if not entry.name.startswith(".trvae_sc-")]
    return (folder / "run.json").is_file() or not others


def run_benchmark(args: argparse.Namespace) -> None:
    """Score methods on held-out combinations and write the results."""
    if not args.list:
        if args.out is None:
            raise InputError("Where to write the results? Name a folder: --out, or use --list.")
        check_output(args.out, overwrite=True, kind="folder of results", replaces=_is_results)
    adata, keys = _cells_to_compare(args, "benchmark")
    from trvae_sc.evaluation import benchmark
    from trvae_sc.evaluation._store import Store

    is_unseen = args.by in (["condition"], ["both"], keys.condition_columns)
    chosen = _holdouts(adata, args, keys, is_unseen=is_unseen)
    if args.list:
        answer(args, [_of_holdout(one) for one in chosen])
        if not args.json:
            encoding = args.stdout.encoding or "utf-8"  # on Windows a file may lack letters
            lines = "\n".join(map(str, chosen)).encode(encoding, "backslashreplace")
            print(lines.decode(encoding), file=args.stdout)
        return
    methods = args.methods or (_of_conditions(adata, chosen, keys) if is_unseen else _OF_LABELS)
    results = benchmark(
        adata,
        methods,
        chosen,
        keys=keys,
        n_top_genes=args.n_top_genes or None,
        folder=args.out,
        **options(args, "seeds", "max_epochs", "n_jobs", "backend", "export"),
    )
    store = Store(args.out)
    store.tell(command=shlex.join(["trvae-sc", *args.argv]))
    results.run = store.run()
    write_text(args.out / "table.csv", results.table.to_csv(index=False))
    write_text(args.out / "summary.json", json.dumps(results.to_json(), indent=1))
    say(results)
    folder = shlex.quote(str(args.out))
    say(f"\nWrote the results to {args.out}/; next: trvae-sc report {folder} -o report.html")
    answer(args, {"out": str(args.out), **results.to_json()})


def _of_holdout(one: Holdout) -> dict[str, str]:
    """Return what a hold-out hides: its text cannot be divided where names have colons."""
    from trvae_sc.levels import level_name

    ends = {"label": one.name, "source": one.source, "target": one.target}
    return {"holdout": str(one), **{end: level_name(level) for end, level in ends.items()}}


def _of_conditions(adata: AnnData, holdouts: list[Holdout], keys: Keys) -> list[str]:
    """Return the methods that can predict conditions that are hidden in all labels."""
    from trvae_sc.expression import conditions_of

    space, unable = conditions_of(adata, keys), set()
    if space.description is None:
        unable |= {"nearest_condition", "feature_ridge"}
    if any(space.singles(holdout.target) is None for holdout in holdouts):
        unable.add("sum_of_parts")
    return [method for method in _OF_CONDITIONS if method not in unable]


def _holdouts(
    adata: AnnData, args: argparse.Namespace, keys: Keys, *, is_unseen: bool
) -> list[Holdout]:
    """Return the hold-outs that are named, or all; `is_unseen`: conditions are hidden in all labels."""
    from trvae_sc.evaluation import holdouts, parse_holdouts
    from trvae_sc.evaluation._holdouts import hidden_whole
    from trvae_sc.levels import default_source

    if not args.holdout:
        return holdouts(adata, keys=keys, source=args.source, by=args.by, min_cells=args.min_cells)
    if args.by is not None and not is_unseen:
        raise InputError("--holdout names labels; leave --by out, or use --by condition or both.")
    source = args.source
    conditions = keys.conditions(adata.obs)
    if source is None and (is_unseen or conditions.nunique() > 2):
        source = default_source(conditions)
    chosen = parse_holdouts(args.holdout, adata, keys, source=source)
    return hidden_whole(chosen, adata, keys, by=args.by[0]) if is_unseen else chosen


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


def _next_experiments(folder: Path) -> DataFrame | None:
    """Return what to measure next, as a saved model ranks it; None where nothing is missing."""
    from trvae_sc import TRVAE, next_experiments

    quiet()
    model = TRVAE.load(folder, adata=False, accelerator="cpu")
    return next_experiments(model) if (model.n_cells == 0).any(axis=None) else None
