"""The subcommands: check, read, call one public function, write."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trvae_sc.cli._tell import answer, say
from trvae_sc.errors import InputError
from trvae_sc.files import (
    check_suffix,
    check_target,
    is_zarr,
    read,
    write_anndata,
    write_folder,
    write_text,
)

if TYPE_CHECKING:  # torch and scvi-tools take seconds to import, which --help need not wait for
    from anndata import AnnData

    from trvae_sc.evaluation import Holdout
    from trvae_sc.expression import Keys
    from trvae_sc.model import TRVAE

_DEMO = ("predicted.h5ad", "effect.png", "report.html")


def _quiet() -> None:
    """Hide what scvi-tools logs; importing it resets its level."""
    import scvi

    scvi.settings.verbosity = logging.WARNING


# -- reading and writing ----------------------------------------------------------------------------


def _check_output(
    path: Path,
    *,
    force: bool,
    kind: str = "file",
    replaces: Callable[[Path], bool] | None = None,
    inputs: Sequence[Path] = (),
) -> None:
    """Raise if a result could not be written, before any work starts; writes nothing."""
    check_target(
        path, overwrite=force, kind=kind, replaces=replaces, option="--force", inputs=inputs
    )


def _check_accelerator(name: str) -> None:
    """Raise where this machine has no such accelerator."""
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from scvi.model._utils import parse_device_args

    try:
        parse_device_args(accelerator=name, return_device="torch")
    except (ValueError, ImportError, MisconfigurationException) as error:
        raise InputError(f"--accelerator {name} cannot be used: {error}") from error


# -- subcommands --------------------------------------------------------------------------------------


def run_demo(args: argparse.Namespace) -> None:
    """Simulate, train, predict a hidden combination and score it."""
    _check_output(args.out, force=args.force, kind="demo", replaces=_is_demo)
    from trvae_sc import demo

    tables = []

    def write(folder: Path) -> None:
        tables.append(demo.run(folder, seed=args.seed, max_epochs=args.max_epochs))

    _quiet()
    write_folder(args.out, write, overwrite=args.force)
    (table,) = tables
    say(table.round(2).to_string())
    say(f"\nWrote {', '.join(_DEMO[:-1])} and {_DEMO[-1]} to {args.out}/")
    answer(args, {"out": str(args.out), "scores": json.loads(table.to_json(orient="index"))})


def _is_demo(folder: Path) -> bool:
    """Return whether a folder holds nothing but files of a demo."""
    return all(entry.name in _DEMO for entry in folder.iterdir())


def run_train(args: argparse.Namespace) -> None:
    """Train a model on a file and save it."""
    force = args.force or _is_unfinished(args.out)
    _check_output(args.out, force=force, kind="model", replaces=lambda _: True, inputs=[args.file])
    if args.n_top_genes < 0:
        raise InputError(f"--n-top-genes is {args.n_top_genes}; name a number, or 0 for all genes.")
    adata = read(args.file)
    from trvae_sc import PRESETS, TRVAE
    from trvae_sc.evaluation import parse_holdouts, training_data

    likelihood = args.gene_likelihood or PRESETS[args.preset]["model"].get("gene_likelihood", "nb")
    keys = _keys(args, is_count=likelihood in ("nb", "zinb", "poisson"))
    _quiet()
    _check_accelerator(args.accelerator)
    _check_data(adata, args, keys)
    holdouts = parse_holdouts(args.holdout, adata, keys)
    train, keys = training_data(adata, holdouts, keys=keys, n_top_genes=args.n_top_genes or None)
    TRVAE.setup_anndata(train, keys.condition_key, **keys.further())
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
            _save_model(model, args, force=force)


def _is_unfinished(folder: Path) -> bool:
    """Return whether a folder holds a model whose training was interrupted: the same command goes on."""
    if not (folder / "model.pt").is_file():
        return False
    from trvae_sc.model_file import read_model

    try:
        return bool(read_model(folder, None).attributes["training_"]["interrupted"])
    except (InputError, LookupError, TypeError):  # no model of ours
        return False


def _save_model(model: TRVAE, args: argparse.Namespace, *, force: bool) -> None:
    """Write a model with what it was trained on, and tell it."""
    record = {
        "file": str(args.file),
        "holdouts": args.holdout,
        "n_cells": model.adata.n_obs,
        "n_genes": model.adata.n_vars,
        "total_counts_key": args.total_counts_key,
    }
    model.trained_on_ = record
    # checkpoints may have made the folder meanwhile
    model.save(args.out, overwrite=force or not (args.out / "model.pt").exists())
    say(
        f"Wrote the model of {record['n_cells']:,} cells and {record['n_genes']:,} genes to {args.out}/"
    )
    answer(args, {"model": str(args.out), **record, **model.training_})


def _keys(args: argparse.Namespace, *, is_count: bool) -> Keys:
    """Return where a file holds what, as the options say."""
    from trvae_sc.expression import Keys

    return Keys(
        args.condition_key,
        args.labels_key,
        args.layer,
        args.total_counts_key,
        is_count=is_count,
        batch_key=args.batch_key,
    )


def _check_data(adata: AnnData, args: argparse.Namespace, keys: Keys) -> None:
    """Raise where a file cannot be trained on, before genes are chosen."""
    from trvae_sc.checks import check_columns, check_values
    from trvae_sc.expression import totals, values

    if getattr(args, "holdout", None) and args.labels_key is None:
        raise InputError("--holdout needs --labels-key.")
    check_columns(adata, keys.condition_key, **keys.further())
    check_values(
        values(adata, keys),
        is_count=keys.is_count,
        totals=totals(adata, keys) if args.total_counts_key and keys.is_count else None,
        name="X" if args.layer is None else f"layer '{args.layer}'",
    )


def run_predict(args: argparse.Namespace) -> None:
    """Predict cells of a file and write them, and the changes of genes as a table."""
    _check_prediction_file(args)
    if args.table is not None:
        _check_table(args)
    adata = read(args.file, backed=True)
    from trvae_sc import TRVAE

    _quiet()
    _check_accelerator(args.accelerator)
    model = TRVAE.load(args.model, adata=False, accelerator=args.accelerator)
    setup = model.registry["setup_args"]
    if setup["layer"] is not None and setup["layer"] not in adata.layers:
        raise InputError(
            f"{args.file} has no layer '{setup['layer']}', which the model was set up with."
        )
    exemplars = None if args.exemplars is None else read(args.exemplars)
    table = None
    if args.table is not None:
        table = model.effects(
            target=args.target, source=args.source, labels=args.labels, exemplars=exemplars
        )
    predicted = model.predict(
        adata,
        target=args.target,
        source=args.source,
        labels=args.labels,
        output=args.output,
        n_samples=args.n_samples,
        exemplars=exemplars,
        seed=args.seed,
        out=args.out,
        overwrite=args.force,
    )
    if table is not None:
        write_text(args.table, table.to_csv(index=False), overwrite=args.force)
    _tell_prediction(predicted, args)


def _check_table(args: argparse.Namespace) -> None:
    """Raise if the table could not be written."""
    if args.table.suffix != ".csv":
        raise InputError(f"{args.table} is no .csv file.")
    _check_output(args.table, force=args.force, kind="file", inputs=[args.file, args.out])


def _check_prediction_file(args: argparse.Namespace) -> None:
    """Raise if a prediction could not be written."""
    check_suffix(args.out)
    zarr = args.out.suffix == ".zarr"
    _check_output(
        args.out,
        force=args.force,
        kind="zarr store" if zarr else "file",
        replaces=is_zarr if zarr else None,
        inputs=[args.file],
    )


def _write_prediction(predicted: AnnData, args: argparse.Namespace, **more: Any) -> None:
    """Write a prediction, and tell a record of it."""
    write_anndata(predicted, args.out, overwrite=args.force)
    _tell_prediction(predicted, args, **more)


def _tell_prediction(predicted: AnnData, args: argparse.Namespace, **more: Any) -> None:
    """Tell a record of a prediction; notes on it were logged when it was made."""
    say(f"Wrote {predicted.n_obs:,} cells predicted under {args.target} to {args.out}")
    answer(args, {"out": str(args.out), "n_cells": predicted.n_obs, "target": args.target, **more})


def _keys_to_compare(args: argparse.Namespace, command: str) -> Keys:
    """Return where a file holds what, for a command that compares methods."""
    if args.labels_key is None:
        raise InputError(f"{command} needs --labels-key.")
    if args.gene_likelihood not in (None, "nb", "normal"):
        raise InputError(f"{command} compares methods under gene likelihood nb (counts) or normal.")
    return _keys(args, is_count=args.gene_likelihood != "normal")


def run_select(args: argparse.Namespace) -> None:
    """Choose a method, predict with it and write the cells."""
    _check_prediction_file(args)
    if args.folder is not None:
        _check_output(args.folder, force=True, kind="folder of results", replaces=_is_results)
    adata = read(args.file)
    from trvae_sc.evaluation import select, subsample

    keys = _keys_to_compare(args, "select")
    _quiet()
    _check_data(adata, args, keys)
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
    _write_prediction(predicted, args, **record)


def _is_results(folder: Path) -> bool:
    """Return whether a folder is empty, or holds results of a benchmark."""
    return (folder / "run.json").is_file() or not any(folder.iterdir())


def run_benchmark(args: argparse.Namespace) -> None:
    """Score methods on held-out combinations and write the results."""
    _check_output(args.out, force=True, kind="folder of results", replaces=_is_results)
    adata = read(args.file)
    from trvae_sc.evaluation import benchmark, holdouts, parse_holdouts, subsample

    keys = _keys_to_compare(args, "benchmark")
    _quiet()
    _check_data(adata, args, keys)
    if args.max_cells is not None:
        adata = subsample(adata, keys, args.max_cells)
    if args.holdout:
        chosen = parse_holdouts(args.holdout, adata, keys, source=args.source)
    else:
        chosen = holdouts(
            adata, keys=keys, source=args.source, by=args.by, min_cells=args.min_cells
        )
    if args.list:
        _list(chosen, args)
        return
    results = benchmark(
        adata,
        args.methods,
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
    write_text(args.out / "table.csv", results.table.to_csv(index=False))
    write_text(args.out / "summary.json", json.dumps(results.to_json(), indent=1))
    say(results)
    say(f"\nWrote the results to {args.out}/; next: trvae-sc report {args.out} -o report.html")
    answer(args, {"out": str(args.out), **results.to_json()})


def _list(holdouts: Sequence[Holdout], args: argparse.Namespace) -> None:
    """Print hold-outs, one a line or as JSON."""
    names = [str(holdout) for holdout in holdouts]
    answer(args, names)
    if not args.json:
        print("\n".join(names), file=args.stdout)


def run_report(args: argparse.Namespace) -> None:
    """Write results as an HTML page."""
    _check_output(args.out, force=args.force, inputs=args.predictions)
    from trvae_sc.evaluation import Results
    from trvae_sc.report import report, verdicts, write_report

    results = Results.load(args.results)
    text = report(results, [read(path) for path in args.predictions], method=args.method)
    write_report(args.out, text, overwrite=args.force)
    table = verdicts(results, method=args.method)
    for row in table.itertuples():
        say(f"{row.label} under {row.target}: {row.advice}")
    say(f"Wrote {args.out}")
    answer(args, {"out": str(args.out), "verdicts": json.loads(table.to_json(orient="records"))})
