"""What subcommands share: where a file holds what, what is written and what is said."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trvae_sc.errors import InputError
from trvae_sc.files import check_suffix, check_target, is_zarr, write_anndata

if TYPE_CHECKING:  # torch and scvi-tools take seconds to import, which --help need not wait for
    from anndata import AnnData

    from trvae_sc.expression import Keys
    from trvae_sc.model import TRVAE

#: Raises if a result could not be written, before any work starts; writes nothing.
check_output = partial(check_target, option="--force")


def say(line: object) -> None:
    """Print a line, or a table, for people: on stderr."""
    print(line, file=sys.stderr)


def answer(args: argparse.Namespace, record: Mapping[str, Any] | list[str]) -> None:
    """Print a record as JSON where ``--json`` was given; nothing else goes to stdout."""
    if args.json:
        print(json.dumps(record), file=args.stdout)


def quiet() -> None:
    """Hide what scvi-tools logs; importing it resets its level."""
    import scvi

    scvi.settings.verbosity = logging.WARNING


def check_accelerator(name: str) -> None:
    """Raise where this machine has no such accelerator."""
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from scvi.model._utils import parse_device_args

    try:
        parse_device_args(accelerator=name, return_device="torch")
    except (ValueError, ImportError, MisconfigurationException) as error:
        raise InputError(f"--accelerator {name} cannot be used: {error}") from error


def save_model(model: TRVAE, args: argparse.Namespace, *, force: bool) -> None:
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


def keys_of(args: argparse.Namespace, *, is_count: bool) -> Keys:
    """Return where a file holds what, as the options say."""
    from trvae_sc.expression import Keys

    columns = tuple(args.condition_key)
    return Keys(
        columns if len(columns) > 1 else columns[0],
        args.labels_key,
        args.layer,
        args.total_counts_key,
        is_count=is_count,
        batch_key=args.batch_key,
        condition_features=read_features(args.condition_features),
        condition_separator=args.condition_separator,
    )


def read_features(path: Path | None) -> Any:
    """Return a table of features from a csv file: names of conditions, then numbers."""
    if path is None:
        return None
    import pandas as pd

    try:
        first, *columns = pd.read_csv(path, nrows=0).columns
        missing = {column: ["", "NA", "NaN", "nan"] for column in columns}
        table = pd.read_csv(path, dtype={first: str}, keep_default_na=False, na_values=missing)
        if not columns:
            raise InputError(f"{path} has one column; names and numbers are separated by commas.")
        return table.set_index(first)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a table: {error}.") from error


def target_features(args: argparse.Namespace) -> Any:
    """Return the features of the target of a prediction, if they are given."""
    table = read_features(args.condition_features)
    if table is None:
        return None
    names = table.index.astype(str)
    if (names == args.target).sum() != 1:
        raise InputError(
            f"{args.condition_features} needs one row '{args.target}'; it has {list(names)[:5]}."
        )
    return table.loc[names == args.target]


def check_data(adata: AnnData, args: argparse.Namespace, keys: Keys) -> None:
    """Raise where a file cannot be trained on, before genes are chosen."""
    from trvae_sc.checks import check_columns, check_values
    from trvae_sc.expression import totals, values

    if getattr(args, "holdout", None) and args.labels_key is None:
        raise InputError("--holdout needs --labels-key.")
    columns = {"condition_key": keys.condition_key, **keys.further()}
    check_columns(adata, columns, getattr(args, "replicate_key", None))
    check_values(
        values(adata, keys),
        is_count=keys.is_count,
        totals=totals(adata, keys) if args.total_counts_key and keys.is_count else None,
        name="X" if args.layer is None else f"layer '{args.layer}'",
    )


def inputs_of(args: argparse.Namespace) -> list[Path]:
    """Return the files that options name and that are read."""
    given = [getattr(args, name, None) for name in ("file", "exemplars", "condition_features")]
    return [path for path in given if path is not None]


def check_prediction_file(args: argparse.Namespace) -> None:
    """Raise if a prediction could not be written."""
    check_suffix(args.out)
    zarr = args.out.suffix == ".zarr"
    check_output(
        args.out,
        overwrite=args.force,
        kind="zarr store" if zarr else "file",
        replaces=is_zarr if zarr else None,
        inputs=inputs_of(args),
    )


def write_prediction(predicted: AnnData, args: argparse.Namespace, **more: Any) -> None:
    """Write a prediction, and tell a record of it."""
    write_anndata(predicted, args.out, overwrite=args.force)
    tell_prediction(predicted, args, **more)


def tell_prediction(predicted: AnnData, args: argparse.Namespace, **more: Any) -> None:
    """Tell a record of a prediction; notes on it were logged when it was made."""
    say(f"Wrote {predicted.n_obs:,} cells predicted under {args.target} to {args.out}")
    answer(args, {"out": str(args.out), "n_cells": predicted.n_obs, "target": args.target, **more})


def keys_to_compare(args: argparse.Namespace, command: str) -> Keys:
    """Return where a file holds what, for a command that compares methods."""
    if args.labels_key is None:
        raise InputError(f"{command} needs --labels-key.")
    if args.gene_likelihood not in (None, "nb", "normal"):
        raise InputError(f"{command} compares methods under gene likelihood nb (counts) or normal.")
    return keys_of(args, is_count=args.gene_likelihood != "normal")
