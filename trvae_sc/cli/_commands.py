"""The subcommands: check, read, call one public function, write."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from trvae_sc.cli._shared import (
    answer,
    check_accelerator,
    check_data,
    check_output,
    check_prediction_file,
    inputs_of,
    keys_of,
    keys_to_compare,
    quiet,
    save_model,
    say,
    target_features,
    tell_prediction,
    write_prediction,
)
from trvae_sc.errors import InputError
from trvae_sc.files import read, write_text, write_whole

if TYPE_CHECKING:  # torch and scvi-tools take seconds to import, which --help need not wait for
    from anndata import AnnData

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


def run_train(args: argparse.Namespace) -> None:
    """Train a model on a file and save it."""
    force = args.force or _is_unfinished(args.out, args)
    check_output(
        args.out, overwrite=force, kind="model", replaces=lambda _: True, inputs=[args.file]
    )
    if args.n_top_genes < 0:
        raise InputError(f"--n-top-genes is {args.n_top_genes}; name a number, or 0 for all genes.")
    adata = read(args.file)
    from trvae_sc import PRESETS, TRVAE
    from trvae_sc.evaluation import parse_holdouts, training_data

    likelihood = args.gene_likelihood or PRESETS[args.preset]["model"].get("gene_likelihood", "nb")
    keys = keys_of(args, is_count=likelihood in ("nb", "zinb", "poisson"))
    quiet()
    check_accelerator(args.accelerator)
    check_data(adata, args, keys)
    holdouts = parse_holdouts(args.holdout, adata, keys)
    train, keys = training_data(
        adata,
        holdouts,
        keys=keys,
        n_top_genes=args.n_top_genes or None,
        columns=[args.replicate_key] if args.replicate_key else [],
    )
    further = {**keys.further(), **keys.of_conditions(), "replicate_key": args.replicate_key}
    TRVAE.setup_anndata(train, keys.condition_key, **further)
    model = TRVAE(
        train,
        preset=args.preset,
        gene_likelihood=args.gene_likelihood,
        n_latent=args.n_latent,
        n_hidden=args.n_hidden,
        kl_weight=args.kl_weight,
        mmd_weight=args.mmd_weight,
        seed=args.seed,
    )
    try:
        model.train(
            args.max_epochs,
            batch_size=args.batch_size,
            early_stopping=args.early_stopping,
            balance_conditions=args.balance_conditions,
            checkpoint_dir=args.checkpoint_dir,
            memory_budget=args.memory_budget,
            accelerator=args.accelerator,
        )
    finally:
        if model.is_trained:  # also after Ctrl-C
            save_model(model, args, force=force)


def _is_unfinished(folder: Path, args: argparse.Namespace) -> bool:
    """Return whether a folder holds a model of the same cells whose training was interrupted."""
    if not (folder / "model.pt").is_file():
        return False
    from trvae_sc.model_file import read_model

    try:
        found = read_model(folder, None).attributes
        known = found["trained_on_"]
        is_same = known["file"] == str(args.file) and known["holdouts"] == args.holdout
        return bool(is_same and found["training_"]["interrupted"])
    except (InputError, LookupError, TypeError):  # no model of ours
        return False


def run_predict(args: argparse.Namespace) -> None:
    """Predict cells of a file and write them, and the changes of genes as a table."""
    check_prediction_file(args)
    if args.table is not None:
        if args.table.suffix != ".csv":
            raise InputError(f"{args.table} is no .csv file.")
        check_output(args.table, overwrite=args.force, inputs=[args.out, *inputs_of(args)])
    elif args.by is not None:
        raise InputError("--by is for the table of changes; name one: --table genes.csv.")
    adata = read(args.file, backed=True)
    from trvae_sc import TRVAE

    quiet()
    check_accelerator(args.accelerator)
    model = TRVAE.load(args.model, adata=False, accelerator=args.accelerator)
    setup = model.registry["setup_args"]
    if setup["layer"] is not None and setup["layer"] not in adata.layers:
        raise InputError(
            f"{args.file} has no layer '{setup['layer']}', which the model was set up with."
        )
    exemplars = None if args.exemplars is None else read(args.exemplars)
    features, table = target_features(args), None
    if args.table is not None:
        table = model.effects(
            target=args.target,
            source=args.source,
            labels=args.labels,
            exemplars=exemplars,
            features=features,
            by=args.by,
        )
    predicted = model.predict(
        adata,
        target=args.target,
        source=args.source,
        labels=args.labels,
        output=args.output,
        n_samples=args.n_samples,
        exemplars=exemplars,
        features=features,
        seed=args.seed,
        out=args.out,
        overwrite=args.force,
    )
    if table is not None:
        write_text(args.table, table.to_csv(index=False), overwrite=args.force)
    tell_prediction(predicted, args)


def run_select(args: argparse.Namespace) -> None:
    """Choose a method, predict with it and write the cells."""
    check_prediction_file(args)
    if args.folder is not None:
        check_output(args.folder, overwrite=True, kind="folder of results", replaces=_is_results)
    adata = read(args.file)
    from trvae_sc.evaluation import select, subsample

    keys = keys_to_compare(args, "select")
    quiet()
    check_data(adata, args, keys)
    if args.max_cells is not None:
        adata = subsample(adata, keys, args.max_cells)
    predicted = select(
        adata,
        args.target,
        keys=keys,
        source=args.source,
        methods=args.methods,
        labels=args.labels,
        metric=args.metric,
        max_tasks=args.max_tasks,
        min_cells=args.min_cells,
        seeds=args.seeds,
        n_top_genes=args.n_top_genes or None,
        max_epochs=args.max_epochs,
        combine=args.combine,
        output=args.output,
        folder=args.folder,
        n_jobs=args.n_jobs,
    )
    chosen = predicted.uns["trvae_sc"]["selection"]
    record = {k: chosen[k] for k in ("method", "output", "n_tasks")}
    if "weights" in chosen:
        record["weights"] = {name: float(weight) for name, weight in chosen["weights"].items()}
    if "scores" in chosen:
        record["scores"] = json.loads(chosen["scores"].to_json(orient="records"))
    write_prediction(predicted, args, **record)


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
    adata = read(args.file)
    from trvae_sc.evaluation import benchmark, subsample
    from trvae_sc.evaluation._store import Store

    keys = keys_to_compare(args, "benchmark")
    quiet()
    check_data(adata, args, keys)
    if args.max_cells is not None:
        adata = subsample(adata, keys, args.max_cells)
    is_unseen = args.by in (["condition"], ["both"], keys.condition_columns)
    chosen = _holdouts(adata, args, keys, is_unseen=is_unseen)
    if args.list:
        names = [str(holdout) for holdout in chosen]
        answer(args, names)
        if not args.json:
            print("\n".join(names), file=args.stdout)
        return
    methods = args.methods or (_of_conditions(adata, chosen, keys) if is_unseen else _OF_LABELS)
    results = benchmark(
        adata,
        methods,
        chosen,
        keys=keys,
        seeds=args.seeds,
        n_top_genes=args.n_top_genes or None,
        max_epochs=args.max_epochs,
        folder=args.out,
        n_jobs=args.n_jobs,
        backend=args.backend,
        export=args.export,
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
