"""Options of the subcommands."""

from __future__ import annotations

import argparse
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from trvae_sc import __version__
from trvae_sc.cli import _commands, _models
from trvae_sc.names import METHODS, METRICS, PRESETS

#: Options that several subcommands have.
_OPTIONS: dict[str, dict[str, Any]] = {
    "--accelerator": {"default": "auto"},
    "--condition-features": {"type": Path, "metavar": "CSV"},
    "--exemplars": {"type": Path},
    "--force": {"action": "store_true", "help": "replace a file that is there"},
    "--labels": {"nargs": "+"},
    "--max-cells": {"type": int},
    "--max-epochs": {"type": int, "help": "fewer for a quick look"},
    "--min-cells": {"type": int, "default": 30},
    "--n-jobs": {"type": int, "default": 1, "help": "fits at a time (1)"},
    "--n-top-genes": {"type": int, "default": 2000, "help": "variable genes (2000); 0: all"},
    "--out": {"type": Path, "required": True, "help": ".h5ad or .zarr to write"},
    "--seed": {"type": int, "default": 0},
    "--source": {"help": "condition to start from (the one called like a control)"},
    "--target": {"required": True, "help": "condition to predict"},
    "file": {"type": Path, "help": "h5ad or zarr file"},
    "model": {"type": Path, "help": "folder that train wrote"},
}


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as the commands themselves do."""

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ")
        end = "" if message.endswith((".", "?")) else "."
        self.exit(2, f"trvae-sc: {message}{end} See {self.prog} --help.\n")

    def add(self, *names: str, **changes: Any) -> None:
        """Add some of the shared options, changed so."""
        for name in names:
            short = ["-o"] if name == "--out" else []
            self.add_argument(*short, name, **(_OPTIONS[name] | changes))


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
    for add in (_add_generate, _add_interpolate, _add_outliers):
        add(commands)
    for command in commands.choices.values():
        command.add_argument(
            "--json", action="store_true", help="print a record of the result as JSON on stdout"
        )
    return parser


def _add_demo(commands: Any) -> None:
    parser = commands.add_parser(
        "demo", help="simulate, train, predict a hidden combination, score it"
    )
    parser.set_defaults(run=_commands.run_demo)
    parser.add("--out", required=False, default=Path("demo"), help="folder (demo)")
    parser.add("--seed", "--max-epochs")
    parser.add("--force", help="replace the files of an earlier demo")


def _add_train(commands: Any) -> None:
    parser = commands.add_parser("train", help="fit a model to an h5ad or zarr file")
    parser.set_defaults(run=_models.run_train)
    _add_data(parser)
    parser.add_argument("--replicate-key", help="column of obs with the donor, animal or culture")
    _add_holdout(parser, help="combinations to hide from training (none)")
    parser.add("--out", help="folder for the model")
    _add_names(parser, "--preset", PRESETS, of="preset", default="default")
    parser.add_argument(
        "--model", choices=list(_models.MODELS), default="trvae", help="trvae by default"
    )
    parser.add_argument("--n-latent", type=int, help="dimensions of the code (trvae)")
    parser.add_argument("--n-hidden", type=int, nargs="+", help="widths of the layers")
    parser.add_argument("--kl-weight", type=float, help="beta (trvae)")
    parser.add_argument("--mmd-weight", type=float, help="weight of the alignment (trvae)")
    parser.add("--source", help="condition to go from (cyclegan, flow_matching, paired)")
    parser.add("--target", required=False, help="condition to go to (the same)")
    parser.add_argument("--pair-key", help="column of obs that names pairs (paired)")
    parser.add("--n-top-genes")
    parser.add("--max-epochs", help=None)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--early-stopping", action="store_true")
    parser.add_argument("--balance-conditions", action="store_true")
    parser.add_argument(
        "--memory-budget", type=float, metavar="GB", help="for the values (half of what is free)"
    )
    parser.add_argument("--checkpoint-dir", type=Path, help="resume from here after a kill")
    parser.add("--seed", "--accelerator")
    parser.add("--force", help="replace a model that is there")


def _add_predict(commands: Any) -> None:
    parser = commands.add_parser("predict", help="predict cells under another condition")
    parser.set_defaults(run=_models.run_predict)
    parser.add("model")
    parser.add("file", help="h5ad or zarr file with the cells to start from")
    parser.add("--target")
    parser.add("--source", help="condition to start from (all others)")
    parser.add("--labels", help="labels to predict (all)")
    parser.add_argument(
        "--output",
        choices=["counts", "delta", "mean", "sample"],
        help="what to return (counts; of values delta)",
    )
    parser.add_argument("--n-samples", type=int, default=1)
    parser.add(
        "--exemplars",
        help="file with a few measured cells of what is predicted (trvae, flow_transfer)",
    )
    parser.add(
        "--condition-features",
        help="table with the features of a target that the model's table lacks",
    )
    parser.add("--seed", "--accelerator", "--out")
    parser.add_argument(
        "--table", type=Path, help=".csv to write, too: the change of every gene in every label"
    )
    parser.add_argument(
        "--by", help="the replicate key of the model: the table in each replicate (trvae)"
    )
    parser.add("--force", help="replace files that are there")


def _add_select(commands: Any) -> None:
    parser = commands.add_parser(
        "select",
        help="predict labels under a condition they lack with what predicts the others best",
    )
    parser.set_defaults(run=_commands.run_select)
    _add_data(parser)
    parser.add("--target")
    parser.add(
        "--source",
        help="condition to start from (of two the other one, else the one called like a control)",
    )
    parser.add("--labels", help="labels to predict (those without target cells)")
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
        "--output", choices=["counts", "delta"], help="what to return (counts; of values delta)"
    )
    parser.add_argument("--max-tasks", type=int, help="labels to leave out in turn (all)")
    parser.add("--min-cells", help="cells each of them needs (30)")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds (1)")
    parser.add("--n-top-genes", "--max-epochs")
    parser.add(
        "--max-cells",
        help="of each label and condition, also of those to predict, for a quicker look (all)",
    )
    parser.add("--n-jobs")
    parser.add_argument(
        "--folder", type=Path, help="folder for the results; goes on if there are some"
    )
    parser.add("--out", "--force")


def _add_benchmark(commands: Any) -> None:
    parser = commands.add_parser(
        "benchmark", help="hide combinations, predict them with every method, score them"
    )
    parser.set_defaults(run=_commands.run_benchmark)
    _add_data(parser)
    _add_holdout(parser, help="combinations to hide in turn (all that have enough cells)")
    parser.add("--source")
    parser.add_argument(
        "--by",
        nargs="+",
        help="columns of obs to hold out levels of, in place of labels: donor, or donor cell_type; condition: "
        "each condition, hidden in all labels; both: that and the label",
    )
    parser.add("--min-cells", help="cells a combination needs (30)")
    parser.add("--max-cells", help="of each label and condition, for a quicker look (all)")
    words = "no_change mean_shift context_shift trvae; of conditions, those with features"
    _add_names(parser, "--methods", METHODS, of="method", default=None, words=words, nargs="+")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (3)")
    parser.add("--n-top-genes", "--max-epochs", "--n-jobs")
    parser.add_argument(
        "--list", action="store_true", help="print the hold-outs, one a line, and run nothing"
    )
    parser.add_argument(
        "--export", action="store_true", help="also write predicted and real cells, for cell-eval"
    )
    parser.add_argument("--backend", choices=["local", "ray"], default="local")
    parser.add(
        "--out",
        required=False,
        help="folder for the results; goes on if there are some (needed but with --list)",
    )


def _add_report(commands: Any) -> None:
    parser = commands.add_parser("report", help="write results of a benchmark as one HTML page")
    parser.set_defaults(run=_commands.run_report)
    parser.add_argument("results", type=Path, help="folder that benchmark wrote")
    parser.add_argument(
        "--predictions", nargs="+", type=Path, default=[], help="h5ad or zarr files to list"
    )
    parser.add_argument("--method", help="model to judge (trvae)")
    parser.add_argument(
        "--gmt", type=Path, help="file with sets of genes, whose scores to show (needs decoupler)"
    )
    parser.add_argument(
        "--model", type=Path, help="folder that train wrote, to rank what to measure next"
    )
    parser.add("--out", help=".html to write")
    parser.add("--force")


def _add_generate(commands: Any) -> None:
    parser = commands.add_parser("generate", help="draw new cells of a condition")
    parser.set_defaults(run=_models.run_generate)
    parser.add("model", help="folder that train wrote (trvae, cgan, flow_transfer)")
    parser.add("file", nargs="?", help="cells it was trained on (trvae)")
    parser.add_argument("--condition", help="condition of the cells, where the model sees it")
    parser.add("--labels", help="labels to draw from (all; trvae, cgan)")
    parser.add_argument("--n-obs", type=int, default=1000, help="number of cells (1000)")
    parser.add_argument("--latent", choices=["prior", "posterior"], help="posterior by default")
    parser.add_argument("--output", choices=["sample", "mean"], help="draws by default")
    parser.add("--exemplars", help="cells to be like (flow_transfer)")
    parser.add("--seed", "--accelerator", "--out", "--force")


def _add_interpolate(commands: Any) -> None:
    parser = commands.add_parser("interpolate", help="decode the line between two groups of cells")
    parser.set_defaults(run=_models.run_interpolate)
    parser.add("model", help="folder that train wrote (trvae, flow_transfer)")
    parser.add("file", help="h5ad or zarr file with the cells")
    parser.add_argument("--key", help="column of obs with the groups (the labels')")
    parser.add_argument("--start", required=True, help="group to start from")
    parser.add_argument("--end", required=True, help="group to arrive at")
    parser.add_argument("--condition", help="condition to decode with, where the model sees it")
    parser.add_argument("--steps", type=int, default=11, help="number of points (11)")
    parser.add("--seed", "--accelerator", "--out", "--force")


def _add_outliers(commands: Any) -> None:
    parser = commands.add_parser("outliers", help="score cells by how unlike others they are")
    parser.set_defaults(run=_models.run_outliers)
    parser.add("model", help="folder that train wrote (trvae)")
    parser.add("file", help="h5ad or zarr file with the cells to score")
    parser.add_argument(
        "--reference", type=Path, required=True, help="cells that are no outliers, best held back"
    )
    parser.add("--seed", "--accelerator")
    parser.add("--out", help=".csv to write")
    parser.add("--force")


def _add_data(parser: _Parser) -> None:
    """Add the options that say where a file holds what."""
    parser.add("file")
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
    parser.add(
        "--condition-features",
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


def _add_holdout(parser: _Parser, *, help: str) -> None:
    """Add the option that names combinations, one or several at a time, and its former name."""
    given: Any = dict(action="extend", nargs="+", default=[], metavar="LABEL:TARGET")
    parser.add_argument("--holdout", **given, help=help)
    parser.add_argument("--holdouts", dest="holdout", **given | {"help": argparse.SUPPRESS})


def _add_names(
    parser: _Parser,
    option: str,
    names: tuple[str, ...],
    *,
    of: str,
    default: str | None,
    words: str = "",
    **kwargs: Any,
) -> None:
    """Add an option that takes names, which its help lists; `words` say the default."""

    def known(text: str) -> str:
        if text in names:
            return text
        close = get_close_matches(text, names, n=1)
        meant = f" Did you mean '{close[0]}'?" if close else ""
        raise argparse.ArgumentTypeError(
            f"unknown {of} '{text}'; there are {', '.join(names)}.{meant}"
        )

    parser.add_argument(
        option,
        type=known,
        choices=names,
        metavar=of.upper(),
        default=default,
        help=f"{'some' if kwargs else 'one'} of {', '.join(names)}; by default {words or default}",
        **kwargs,
    )
