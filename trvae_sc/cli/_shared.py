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
from trvae_sc.files import check_cells_target, check_target, write_anndata

if TYPE_CHECKING:  # torch and scvi-tools take seconds to import, which --help need not wait for
    from anndata import AnnData

    from trvae_sc.expression import Keys

#: Raises if a result could not be written, before any work starts; writes nothing.
check_output = partial(check_target, option="--force")


def say(line: object) -> None:
    """Print a line, or a table, for people: on stderr."""
    print(line, file=sys.stderr)


def answer(args: argparse.Namespace, record: Mapping[str, Any] | list[dict[str, str]]) -> None:
    """Print a record as JSON where ``--json`` was given; nothing else goes to stdout."""
    if args.json:
        print(json.dumps(record), file=args.stdout)


def options(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Return options that are arguments of Python of the same name."""
    return {name: getattr(args, name) for name in names}


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
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a table: {error}.") from error
    if not columns:
        raise InputError(f"{path} has one column; names and numbers are separated by commas.")
    return table.set_index(first)


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
    from trvae_sc.checks import check_columns
    from trvae_sc.expression import check_cells

    if getattr(args, "holdout", None) and args.labels_key is None:
        raise InputError("--holdout needs --labels-key.")
    columns = {"condition_key": keys.condition_key, **keys.further()}
    check_columns(adata, columns, getattr(args, "replicate_key", None))
    check_cells(adata, keys, name="X" if args.layer is None else f"layer '{args.layer}'")


def inputs_of(args: argparse.Namespace) -> list[Path]:
    """Return the files that options name and that are read."""
    names = ("model", "file", "exemplars", "condition_features")
    given = [getattr(args, name, None) for name in names]
    return [path for path in given if path is not None]


def check_prediction_file(args: argparse.Namespace) -> None:
    """Raise if a prediction could not be written."""
    given = {"overwrite": args.force, "option": "--force", "inputs": inputs_of(args)}
    check_cells_target(args.out, **given)


def write_prediction(predicted: AnnData, args: argparse.Namespace, **more: Any) -> None:
    """Write a prediction, and tell a record of it."""
    write_anndata(predicted, args.out, overwrite=args.force)
    tell_prediction(predicted, args, **more)


def tell_prediction(predicted: AnnData, args: argparse.Namespace, **more: Any) -> None:
    """Tell a record of a prediction; notes on it were logged when it was made."""
    say(f"Wrote {predicted.n_obs:,} cells predicted under {args.target} to {args.out}")
    answer(args, {"out": str(args.out), "n_cells": predicted.n_obs, "target": args.target, **more})
