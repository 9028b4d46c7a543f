"""Options of the subcommands."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from trvae_sc import __version__
from trvae_sc.cli import _commands, _family, _report
from trvae_sc.names import METHODS, METRICS, PRESETS


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as the commands themselves do."""

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ")
        end = "" if message.endswith((".", "?")) else "."
        self.exit(2, f"trvae-sc: {message}{end} See {self.prog} --help.\n")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser; the function of a subcommand is its ``run``."""
    parser = _Parser(
        prog="trvae-sc",
        description="Predict single cells under conditions they were not measured in.",
        epilog="Your shell completes commands, options and names after: pip install "
        "'trvae_sc[completion]'; eval \"$(register-python-argcomplete trvae-sc)\"",
    )
    parser.add_argument("--version", action="version", version=f"trvae-sc {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    for add in (_add_demo, _add_train, _add_predict, _add_select, _add_benchmark, _add_report):
        add(commands)
    _family.add_commands(commands)
    for command in commands.choices.values():
        command.add_argument(
            "--json", action="store_true", help="print a record of the result as JSON on stdout"
        )
    return parser


def _add_demo(commands: Any) -> None:
    parser = commands.add_parser(
        "demo", help="simulate, train, predict a hidden combination, score it"
    )
    parser.add_argument("-o", "--out", type=Path, default=Path("demo"), help="folder (demo)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-epochs", type=int, help="fewer for a quick look")
    parser.add_argument("--force", action="store_true", help="replace the files of an earlier demo")
    parser.set_defaults(run=_commands.run_demo)


def _add_train(commands: Any) -> None:
    parser = commands.add_parser("train", help="fit a model to an h5ad or zarr file")
    _add_data(parser)
    parser.add_argument("--replicate-key", help="column of obs with the donor, animal or culture")
    _add_holdout(parser, help="combinations to hide from training (none)")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for the model")
    _add_names(parser, "--preset", PRESETS, of="preset", default="default")
    _family.add_training(parser)
    parser.add_argument(
        "--n-top-genes", type=int, default=2000, help="variable genes (2000); 0: all"
    )
    parser.add_argument("--max-epochs", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--early-stopping", action="store_true")
    parser.add_argument("--balance-conditions", action="store_true")
    parser.add_argument(
        "--memory-budget", type=float, metavar="GB", help="for the values (half of what is free)"
    )
    parser.add_argument("--checkpoint-dir", type=Path, help="resume from here after a kill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--force", action="store_true", help="replace a model that is there")
    parser.set_defaults(run=_family.run_train)


def _add_predict(commands: Any) -> None:
    parser = commands.add_parser("predict", help="predict cells under another condition")
    parser.add_argument("model", type=Path, help="folder that train wrote")
    parser.add_argument("file", type=Path, help="h5ad or zarr file with the cells to start from")
    parser.add_argument("--target", required=True, help="condition to predict")
    parser.add_argument("--source", help="condition to start from (all others)")
    parser.add_argument("--labels", nargs="+", help="labels to predict (all)")
    parser.add_argument(
        "--output", choices=["counts", "delta", "mean", "sample"], help="what to return (counts)"
    )
    parser.add_argument("--n-samples", type=int, default=1)
    parser.add_argument(
        "--exemplars",
        type=Path,
        help="file with a few measured cells of what is predicted (trvae, flow_transfer)",
    )
    parser.add_argument(
        "--condition-features",
        type=Path,
        metavar="CSV",
        help="table with the features of a target that the model's table lacks",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("-o", "--out", type=Path, required=True, help=".h5ad or .zarr to write")
    parser.add_argument(
        "--table", type=Path, help=".csv to write, too: the change of every gene in every label"
    )
    parser.add_argument(
        "--by", help="the replicate key of the model: the table in each replicate (trvae)"
    )
    parser.add_argument("--force", action="store_true", help="replace files that are there")
    parser.set_defaults(run=_family.run_predict)


def _add_select(commands: Any) -> None:
    parser = commands.add_parser(
        "select",
        help="predict labels under a condition they lack with what predicts the others best",
    )
    _add_data(parser)
    parser.add_argument("--target", required=True, help="condition to predict")
    parser.add_argument("--source", help="condition to start from (the one called like a control)")
    parser.add_argument(
        "--labels", nargs="+", help="labels to predict (those without target cells)"
    )
    words = "mean_shift context_shift trvae; to stack, context_shift trvae no_transfer"
    _add_names(parser, "--methods", METHODS, of="method", default=None, words=words, nargs="+")
    _add_names(parser, "--metric", METRICS, of="metric", default="effect_r2")
    parser.add_argument(
        "--combine",
        choices=["best", "stack"],
        default="best",
        help="the best method, or a mean of all",
    )
    parser.add_argument(
        "--output", choices=["counts", "delta"], help="what to return (counts of counts)"
    )
    parser.add_argument("--max-tasks", type=int, help="labels to leave out in turn (all)")
    parser.add_argument("--min-cells", type=int, default=30, help="cells each of them needs (30)")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds (1)")
    parser.add_argument(
        "--n-top-genes", type=int, default=2000, help="variable genes (2000); 0: all"
    )
    parser.add_argument("--max-epochs", type=int, help="fewer for a quick look")
    parser.add_argument(
        "--max-cells",
        type=int,
        help="of each label and condition, also of those to predict, for a quicker look (all)",
    )
    parser.add_argument("--n-jobs", type=int, default=1, help="fits at a time (1)")
    parser.add_argument(
        "--folder", type=Path, help="folder for the results; goes on if there are some"
    )
    parser.add_argument("-o", "--out", type=Path, required=True, help=".h5ad or .zarr to write")
    parser.add_argument("--force", action="store_true", help="replace a file that is there")
    parser.set_defaults(run=_commands.run_select)


def _add_benchmark(commands: Any) -> None:
    parser = commands.add_parser(
        "benchmark", help="hide combinations, predict them with every method, score them"
    )
    _add_data(parser)
    _add_holdout(parser, help="combinations to hide in turn (all that have enough cells)")
    parser.add_argument("--source", help="condition to start from (the one called like a control)")
    parser.add_argument(
        "--by",
        nargs="+",
        help="columns of obs to hold out levels of, in place of labels: donor, or donor cell_type; condition: "
        "each condition, hidden in all labels; both: that and the label",
    )
    parser.add_argument("--min-cells", type=int, default=30, help="cells a combination needs (30)")
    parser.add_argument(
        "--max-cells", type=int, help="of each label and condition, for a quicker look (all)"
    )
    words = "no_change mean_shift context_shift trvae; of conditions, those with features"
    _add_names(parser, "--methods", METHODS, of="method", default=None, words=words, nargs="+")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (3)")
    parser.add_argument(
        "--n-top-genes", type=int, default=2000, help="variable genes (2000); 0: all"
    )
    parser.add_argument("--max-epochs", type=int, help="fewer for a quick look")
    parser.add_argument("--n-jobs", type=int, default=1, help="fits at a time (1)")
    parser.add_argument(
        "--list", action="store_true", help="print the hold-outs, one a line, and run nothing"
    )
    parser.add_argument(
        "--export", action="store_true", help="also write predicted and real cells, for cell-eval"
    )
    parser.add_argument("--backend", choices=["local", "ray"], default="local")
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        help="folder for the results; goes on if there are some (needed but with --list)",
    )
    parser.set_defaults(run=_commands.run_benchmark)


def _add_report(commands: Any) -> None:
    parser = commands.add_parser("report", help="write results of a benchmark as one HTML page")
    parser.add_argument("results", type=Path, help="folder that benchmark wrote")
    parser.add_argument(
        "--predictions", nargs="+", type=Path, default=[], help="h5ad files to list"
    )
    parser.add_argument("--method", help="model to judge (trvae)")
    parser.add_argument(
        "--gmt", type=Path, help="file with sets of genes, whose scores to show (needs decoupler)"
    )
    parser.add_argument(
        "--model", type=Path, help="folder that train wrote, to rank what to measure next"
    )
    parser.add_argument("-o", "--out", type=Path, required=True, help=".html to write")
    parser.add_argument("--force", action="store_true", help="replace a file that is there")
    parser.set_defaults(run=_report.run_report)


def _add_data(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where a file holds what."""
    parser.add_argument("file", type=Path, help="h5ad or zarr file")
    parser.add_argument(
        "--condition-key",
        required=True,
        action="append",
        help="column of obs with the condition; again for each further one that it is made of",
    )
    parser.add_argument("--labels-key", help="column of obs with the label (cell type)")
    parser.add_argument("--layer", help="layer with the values (X)")
    parser.add_argument("--batch-key", help="column of obs with the batch")
    parser.add_argument(
        "--total-counts-key", help="column of obs with totals over all genes (sums)"
    )
    parser.add_argument(
        "--condition-features",
        type=Path,
        metavar="CSV",
        help="table with a row a condition and numbers that describe it, so that new ones can be predicted",
    )
    parser.add_argument(
        "--condition-separator",
        metavar="TEXT",
        help="text between the parts of conditions that are sets, as + in A+B, so that new ones can be predicted",
    )
    parser.add_argument(
        "--gene-likelihood", choices=["nb", "zinb", "poisson", "normal"], help="nb by default"
    )


def _add_holdout(parser: argparse.ArgumentParser, *, help: str) -> None:
    """Add the option that names combinations, one or several at a time, and its former name."""
    given: dict[str, Any] = {
        "action": "extend",
        "nargs": "+",
        "default": [],
        "metavar": "LABEL:TARGET",
    }
    parser.add_argument("--holdout", **given, help=help)
    parser.add_argument("--holdouts", dest="holdout", **given | {"help": argparse.SUPPRESS})


def _add_names(
    parser: argparse.ArgumentParser,
    option: str,
    names: tuple[str, ...],
    *,
    of: str,
    default: str | None,
    words: str = "",
    **kwargs: Any,
) -> None:
    """Add an option that takes names, which its help lists; `words` say the default."""
    parser.add_argument(
        option,
        type=_one_of(names, of),
        choices=names,
        metavar=of.upper(),
        default=default,
        help=f"{'some' if kwargs else 'one'} of {', '.join(names)}; by default {words or default}",
        **kwargs,
    )


def _one_of(names: Sequence[str], of: str) -> Callable[[str], str]:
    """Return the check of an option's value: the name, or an error that lists what is allowed."""

    def check(text: str) -> str:
        if text in names:
            return text
        close = get_close_matches(text, names, n=1)
        meant = f" Did you mean '{close[0]}'?" if close else ""
        raise argparse.ArgumentTypeError(
            f"unknown {of} '{text}'; there are {', '.join(names)}.{meant}"
        )

    return check
