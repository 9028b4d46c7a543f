"""Command line: parse, read, call one public function, write."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch and scvi-tools take seconds to import, which --help need not wait for
    from anndata import AnnData

_SETUP = "trvae_sc.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit code: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for name in ("lightning", "scvi", "matplotlib", "fontTools"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        return args.run(args) or 0
    except (ValueError, KeyError, TypeError, FileNotFoundError, FileExistsError) as error:
        message = error.args[0] if isinstance(error, KeyError) else error
        print(f"trvae-sc: {message}", file=sys.stderr)
        return 2
    except (OSError, RuntimeError, FloatingPointError) as error:
        print(f"trvae-sc: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"trvae-sc: {stop or 'interrupted'}", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trvae-sc",
        description="Predict single cells under conditions they were not measured in.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo", help="simulate, train, predict a hidden combination, score it"
    )
    demo.add_argument("-o", "--out", type=Path, default=Path("demo"), help="folder (demo)")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--max-epochs", type=int, help="fewer for a quick look")
    demo.add_argument("--force", action="store_true", help="replace the files of an earlier demo")
    demo.set_defaults(run=_demo)

    train = commands.add_parser("train", help="fit a model to an h5ad or zarr file")
    _add_data(train)
    train.add_argument(
        "--holdout",
        action="append",
        default=[],
        metavar="LABEL:TARGET",
        help="combination to hide from training; may be repeated",
    )
    train.add_argument("-o", "--out", type=Path, required=True, help="folder for the model")
    train.add_argument("--preset", default="default")
    train.add_argument(
        "--n-top-genes", type=int, default=2000, help="variable genes (2000); 0: all"
    )
    train.add_argument("--max-epochs", type=int)
    train.add_argument("--batch-size", type=int)
    train.add_argument("--early-stopping", action="store_true")
    train.add_argument("--balance-conditions", action="store_true")
    train.add_argument("--checkpoint-dir", type=Path, help="resume from here after a kill")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--accelerator", default="auto")
    train.add_argument("--force", action="store_true", help="replace a model that is there")
    train.set_defaults(run=_train)

    predict = commands.add_parser("predict", help="predict cells under another condition")
    predict.add_argument("model", type=Path, help="folder that train wrote")
    predict.add_argument("file", type=Path, help="h5ad or zarr file with the cells to start from")
    predict.add_argument("--target", required=True, help="condition to predict")
    predict.add_argument("--source", help="condition to start from (all others)")
    predict.add_argument("--labels", nargs="+", help="labels to predict (all)")
    predict.add_argument(
        "--output", choices=["counts", "delta", "mean", "sample"], help="what to return (counts)"
    )
    predict.add_argument("--n-samples", type=int, default=1)
    predict.add_argument("--seed", type=int, default=0)
    predict.add_argument("--accelerator", default="auto")
    predict.add_argument("-o", "--out", type=Path, required=True, help=".h5ad or .zarr to write")
    predict.add_argument("--force", action="store_true", help="replace a file that is there")
    predict.set_defaults(run=_predict)
    return parser


def _add_data(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where a file holds what."""
    parser.add_argument("file", type=Path, help="h5ad or zarr file")
    parser.add_argument("--condition-key", required=True, help="column of obs with the condition")
    parser.add_argument("--labels-key", help="column of obs with the label (cell type)")
    parser.add_argument("--layer", help="layer with the values (X)")
    parser.add_argument("--batch-key", help="column of obs with the batch")
    parser.add_argument(
        "--total-counts-key", help="column of obs with totals over all genes (sums)"
    )
    parser.add_argument(
        "--gene-likelihood", choices=["nb", "zinb", "poisson", "normal"], help="nb by default"
    )


# -- reading and writing ----------------------------------------------------------------------------


def _read(path: Path) -> AnnData:
    """Read an h5ad or zarr file."""
    import anndata

    if not path.exists():
        raise FileNotFoundError(f"No file {path}.")
    if path.suffix == ".zarr":
        return anndata.read_zarr(path)
    if path.suffix != ".h5ad":
        raise ValueError(f"{path} is neither .h5ad nor .zarr.")
    try:
        return anndata.read_h5ad(path)
    except OSError as error:
        raise OSError(f"{path} cannot be read as h5ad (damaged or incomplete?): {error}") from error


def _check_output(path: Path, *, force: bool) -> None:
    """Raise if a result could not be written, before any work starts."""
    if path.exists() and not force:
        raise FileExistsError(f"{path} exists. Pass --force to replace it.")
    folder = path.resolve().parent
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} cannot be written to.")


def _write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write` with a path beside `path`, and move the result into place if it succeeds."""
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.resolve().parent))
    try:
        temporary = folder / path.name
        write(temporary)
        if path.is_dir() and not path.is_symlink():
            path.rename(folder / "replaced")
        temporary.replace(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(adata: AnnData, path: Path) -> None:
    """Write an h5ad or zarr file, completely or not at all."""
    if path.suffix == ".zarr":
        _write_atomically(path, adata.write_zarr)
    else:
        _write_atomically(path, lambda p: adata.write_h5ad(p, compression="gzip"))


# -- subcommands --------------------------------------------------------------------------------------


def _demo(args: argparse.Namespace) -> None:
    _check_output(args.out, force=args.force)
    from trvae_sc import demo

    def write(folder: Path) -> None:
        table = demo.run(folder, seed=args.seed, max_epochs=args.max_epochs)
        print(table.round(2).to_string())

    _write_atomically(args.out, write)
    print(f"\nWrote predicted.h5ad, effect.png and report.html to {args.out}/")


def _train(args: argparse.Namespace) -> None:
    _check_output(args.out, force=args.force)
    adata = _read(args.file)
    from trvae_sc import PRESETS, TRVAE
    from trvae_sc.evaluation import parse_holdouts, training_data
    from trvae_sc.expression import Keys

    if args.preset not in PRESETS:
        raise ValueError(f"Unknown preset '{args.preset}'; there are {list(PRESETS)}.")
    likelihood = args.gene_likelihood or PRESETS[args.preset]["model"].get("gene_likelihood", "nb")
    keys = Keys(
        args.condition_key,
        args.labels_key,
        args.layer,
        args.total_counts_key,
        is_count=likelihood in ("nb", "zinb", "poisson"),
    )
    _check_columns(adata, args)
    holdouts = parse_holdouts(args.holdout, adata, keys)
    train, keys = training_data(adata, holdouts, keys=keys, n_top_genes=args.n_top_genes or None)
    TRVAE.setup_anndata(
        train,
        args.condition_key,
        labels_key=args.labels_key,
        layer=args.layer,
        batch_key=args.batch_key,
        total_counts_key=keys.total_counts_key,
    )
    model = TRVAE(train, preset=args.preset, gene_likelihood=args.gene_likelihood, seed=args.seed)
    try:
        model.train(
            args.max_epochs,
            batch_size=args.batch_size,
            early_stopping=args.early_stopping,
            balance_conditions=args.balance_conditions,
            checkpoint_dir=args.checkpoint_dir,
            accelerator=args.accelerator,
        )
    finally:
        if model.is_trained:  # also after Ctrl-C
            model.save(args.out, overwrite=args.force)
            record = {
                "file": str(args.file),
                "holdouts": args.holdout,
                "n_cells": train.n_obs,
                "n_genes": train.n_vars,
            }
            (args.out / _SETUP).write_text(json.dumps(record, indent=2))
            print(json.dumps({"model": str(args.out), **record}))


def _check_columns(adata: AnnData, args: argparse.Namespace) -> None:
    """Raise where a file cannot be registered, before genes are chosen."""
    from trvae_sc.model import check_columns

    if args.holdout and args.labels_key is None:
        raise ValueError("--holdout needs --labels-key.")
    check_columns(
        adata,
        args.condition_key,
        labels_key=args.labels_key,
        layer=args.layer,
        batch_key=args.batch_key,
        total_counts_key=args.total_counts_key,
    )


def _predict(args: argparse.Namespace) -> None:
    if args.out.suffix not in (".h5ad", ".zarr"):
        raise ValueError(f"{args.out} is neither .h5ad nor .zarr.")
    _check_output(args.out, force=args.force)
    adata = _read(args.file)
    from trvae_sc import TRVAE
    from trvae_sc.evaluation import TOTAL_COLUMN, with_totals
    from trvae_sc.expression import Keys

    model = TRVAE.load(args.model, adata=False, accelerator=args.accelerator)
    setup = model.registry["setup_args"]
    if setup["total_counts_key"] == TOTAL_COLUMN and TOTAL_COLUMN not in adata.obs:
        adata, _ = with_totals(adata, Keys(setup["condition_key"], layer=setup["layer"]))
    names = {str(condition): condition for condition in model.conditions}
    labels = None if args.labels is None else _as_labels(adata, setup["labels_key"], args.labels)
    predicted = model.predict(
        adata,
        target=names.get(args.target, args.target),
        source=None if args.source is None else names.get(args.source, args.source),
        labels=labels,
        output=args.output,
        n_samples=args.n_samples,
        seed=args.seed,
    )
    _write(predicted, args.out)
    for note in predicted.uns["trvae_sc"]["notes"]:
        print(f"Note: {note}", file=sys.stderr)
    print(json.dumps({"out": str(args.out), "n_cells": predicted.n_obs, "target": args.target}))


def _as_labels(adata: AnnData, labels_key: str | None, texts: list[str]) -> list[Any]:
    """Return labels as the values they have in the file."""
    if labels_key is None or labels_key not in adata.obs:
        return texts
    names = {str(label): label for label in adata.obs[labels_key].unique()}
    return [names.get(text, text) for text in texts]
