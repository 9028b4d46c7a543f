"""Subcommands of the other models, and of what is done in latent spaces."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trvae_sc.cli import _commands
from trvae_sc.cli._shared import (
    answer,
    check_accelerator,
    check_data,
    check_output,
    check_prediction_file,
    keys_of,
    quiet,
    save_model,
    say,
    write_prediction,
)
from trvae_sc.errors import InputError
from trvae_sc.files import read, write_anndata, write_text

if TYPE_CHECKING:
    from anndata import AnnData

#: Classes of models by name.
MODELS = {
    "trvae": "TRVAE",
    "cgan": "ConditionalGAN",
    "cyclegan": "CycleGAN",
    "flow_matching": "FlowMatching",
    "flow_transfer": "FlowTransfer",
    "paired": "PairedTranslator",
}
_OF_TRVAE = (
    *("n_latent", "kl_weight", "mmd_weight", "batch_key", "replicate_key", "memory_budget"),
    "checkpoint_dir",
)
_BETWEEN = ("cyclegan", "flow_matching", "paired")


# -- options ------------------------------------------------------------------------------------------


def add_training(parser: argparse.ArgumentParser) -> None:
    """Add the options of train that say which model."""
    parser.add_argument("--model", choices=list(MODELS), default="trvae", help="trvae by default")
    parser.add_argument("--n-latent", type=int, help="dimensions of the code (trvae)")
    parser.add_argument("--n-hidden", type=int, nargs="+", help="widths of the layers")
    parser.add_argument("--kl-weight", type=float, help="beta (trvae)")
    parser.add_argument("--mmd-weight", type=float, help="weight of the alignment (trvae)")
    parser.add_argument("--source", help="condition to go from (cyclegan, flow_matching, paired)")
    parser.add_argument("--target", help="condition to go to (the same)")
    parser.add_argument("--pair-key", help="column of obs that names pairs (paired)")


def add_commands(commands: Any) -> None:
    """Add generate, interpolate and outliers."""
    parser = commands.add_parser("generate", help="draw new cells of a condition")
    parser.add_argument("model", type=Path, help="folder that train wrote")
    parser.add_argument("file", type=Path, nargs="?", help="cells it was trained on (trvae)")
    parser.add_argument("--condition", help="condition of the cells, where the model sees it")
    parser.add_argument("--labels", nargs="+", help="labels to draw from (all)")
    parser.add_argument("--n-obs", type=int, default=1000, help="number of cells (1000)")
    parser.add_argument("--latent", choices=["prior", "posterior"], help="posterior by default")
    parser.add_argument("--output", choices=["sample", "mean"], help="draws by default")
    parser.add_argument("--exemplars", type=Path, help="cells to be like (flow_transfer)")
    _add_common(parser, "h5ad or .zarr")
    parser.set_defaults(run=run_generate)
    parser = commands.add_parser("interpolate", help="decode the line between two groups of cells")
    parser.add_argument("model", type=Path, help="folder that train wrote")
    parser.add_argument("file", type=Path, help="h5ad or zarr file with the cells")
    parser.add_argument("--key", help="column of obs with the groups (the labels')")
    parser.add_argument("--start", required=True, help="group to start from")
    parser.add_argument("--end", required=True, help="group to arrive at")
    parser.add_argument("--condition", help="condition to decode with, where the model sees it")
    parser.add_argument("--steps", type=int, default=11, help="number of points (11)")
    _add_common(parser, "h5ad or .zarr")
    parser.set_defaults(run=run_interpolate)
    parser = commands.add_parser("outliers", help="score cells by how unlike others they are")
    parser.add_argument("model", type=Path, help="folder that train wrote")
    parser.add_argument("file", type=Path, help="h5ad or zarr file with the cells to score")
    parser.add_argument(
        "--reference", type=Path, required=True, help="cells that are no outliers, best held back"
    )
    _add_common(parser, "csv")
    parser.set_defaults(run=run_outliers)


def _add_common(parser: argparse.ArgumentParser, suffix: str) -> None:
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("-o", "--out", type=Path, required=True, help=f".{suffix} to write")
    parser.add_argument("--force", action="store_true", help="replace a file that is there")


# -- train and predict ----------------------------------------------------------------------------------


def run_train(args: argparse.Namespace) -> None:
    """Train a model on a file and save it."""
    _check_options(args)
    if args.model == "trvae":
        _commands.run_train(args)
        return
    check_output(
        args.out, overwrite=args.force, kind="model", replaces=lambda _: True, inputs=[args.file]
    )
    adata = read(args.file)
    from trvae_sc import family
    from trvae_sc.evaluation import parse_holdouts, training_data

    keys = keys_of(args, is_count=args.gene_likelihood != "normal")
    quiet()
    check_accelerator(args.accelerator)
    check_data(adata, args, keys)
    holdouts = parse_holdouts(args.holdout, adata, keys)
    columns = [] if args.pair_key is None else [args.pair_key]
    train, keys = training_data(
        adata, holdouts, keys=keys, n_top_genes=args.n_top_genes or None, columns=columns
    )
    model_cls = getattr(family, MODELS[args.model])
    given = {k: getattr(keys, k) for k in ("labels_key", "layer", "total_counts_key", "is_count")}
    pairs = {"pair_key": args.pair_key} if args.model == "paired" else {}
    model_cls.setup_anndata(train, keys.condition_key, **given, **pairs)
    further = {} if args.n_hidden is None else {"n_hidden": args.n_hidden}
    if args.model in _BETWEEN:
        further |= {"source": args.source, "target": args.target}
    model = model_cls(train, seed=args.seed, **further)
    sizes = {} if args.batch_size is None else {"batch_size": args.batch_size}
    model.train(args.max_epochs, accelerator=args.accelerator, **sizes)
    save_model(model, args, force=args.force)


def _check_options(args: argparse.Namespace) -> None:
    """Raise on options of train that the model does not have."""
    if (args.model == "paired") != (args.pair_key is not None):
        raise InputError("--pair-key is needed with --model paired, and with no other.")
    if args.model not in _BETWEEN and (args.source or args.target):
        raise InputError(f"--source and --target are of --model {', '.join(_BETWEEN)}.")
    if args.model == "trvae":
        return
    given = [name for name in _OF_TRVAE if getattr(args, name) is not None]
    given += [name for name in ("early_stopping", "balance_conditions") if getattr(args, name)]
    given += ["preset"] if args.preset != "default" else []
    if given:
        names = ", ".join("--" + name.replace("_", "-") for name in given)
        raise InputError(f"{names}: only with --model trvae, not with {args.model}.")
    if args.gene_likelihood not in (None, "nb", "normal"):
        raise InputError(
            f"--model {args.model} takes counts (nb) or other values (normal), not "
            f"{args.gene_likelihood}."
        )


def run_predict(args: argparse.Namespace) -> None:
    """Predict cells of a file with whatever model is in the folder."""
    name = _class_of(args.model) if args.model.is_dir() else "TRVAE"
    if args.exemplars is not None and name not in ("FlowTransfer", "TRVAE"):
        raise InputError(f"--exemplars is of trvae and flow_transfer; {args.model} is a {name}.")
    if name == "TRVAE":
        _commands.run_predict(args)
        return
    check_prediction_file(args)
    if {args.output, args.table, args.by} != {None} or args.n_samples != 1:
        raise InputError(f"--output, --n-samples, --table and --by are of TRVAE; this is a {name}.")
    adata = read(args.file)
    further = {} if args.exemplars is None else {"exemplars": read(args.exemplars)}
    # what the prior of a flow is worth follows from its training cells, which the file may hold
    model = _load(args, adata if name == "FlowTransfer" else None)
    predicted = model.predict(
        adata, target=args.target, source=args.source, labels=args.labels, seed=args.seed, **further
    )
    write_prediction(predicted, args)


def _class_of(folder: Path) -> str:
    """Return the name of the class of the model in a folder."""
    from trvae_sc.model_file import read_model

    return str(read_model(folder, None).attributes["registry_"]["model_name"])


def _load(args: argparse.Namespace, adata: AnnData | None) -> Any:
    """Return the model of a folder, with training cells if there are any."""
    import trvae_sc
    from trvae_sc import family

    quiet()
    check_accelerator(args.accelerator)
    name = _class_of(args.model)
    model_cls = trvae_sc.TRVAE if name == "TRVAE" else getattr(family, name)
    model = model_cls.load(args.model, adata=False, accelerator=args.accelerator)
    if adata is not None:
        model.adata = _shown_cells(model, adata)
    return model


def _shown_cells(model: Any, adata: AnnData) -> AnnData:
    """Return the cells but those that training was not shown."""
    import numpy as np

    from trvae_sc.evaluation import parse_holdouts
    from trvae_sc.expression import Keys

    given = model.registry_["setup_args"]
    keys = Keys(given["condition_key"], given["labels_key"])
    names = getattr(model, "trained_on_", {"holdouts": []})["holdouts"]
    hidden = []
    for name in names:
        with contextlib.suppress(InputError):  # of cells that the file does not have
            hidden += [one.hidden(adata, keys) for one in parse_holdouts([name], adata, keys)]
    return adata[~np.any(hidden, axis=0)].copy() if hidden else adata


# -- latent spaces --------------------------------------------------------------------------------------


def run_generate(args: argparse.Namespace) -> None:
    """Draw new cells and write them."""
    check_prediction_file(argparse.Namespace(**{**vars(args), "file": args.file or args.model}))
    name = _class_of(args.model)
    given: dict[str, Any] = {"n_obs": args.n_obs, "seed": args.seed}
    if name == "TRVAE":
        if args.file is None:
            raise InputError(
                "A TRVAE draws from the cells it was trained on: name their file, too."
            )
        given |= {"condition": args.condition, "labels": args.labels}
        given |= {"latent": args.latent or "posterior", "output": args.output or "sample"}
    elif name == "ConditionalGAN":
        labels = args.labels
        if labels is not None and len(labels) > 1:
            raise InputError(
                f"--labels are {labels}; a conditional GAN draws one, or all (none named)."
            )
        given |= {"condition": args.condition, "labels": None if labels is None else labels[0]}
    elif name == "FlowTransfer":
        given["exemplars"] = None if args.exemplars is None else read(args.exemplars)
    else:
        raise InputError(f"{args.model} is a {name}, which translates cells and draws none.")
    options = ("condition", "labels", "latent", "output", "exemplars")
    idle = [f"--{o}" for o in options if getattr(args, o) is not None and o not in given]
    if idle:
        raise InputError(f"A {name} draws cells without {', '.join(idle)}: leave that out.")
    model = _load(args, read(args.file) if args.file is not None and name == "TRVAE" else None)
    cells = model.generate(**given)
    write_anndata(cells, args.out, overwrite=args.force)
    say(f"Wrote {cells.n_obs:,} cells to {args.out}.")
    answer(args, {"out": str(args.out), "n_cells": cells.n_obs})


def run_interpolate(args: argparse.Namespace) -> None:
    """Decode the line between two groups and write it."""
    check_prediction_file(args)
    adata = read(args.file)
    model = _load(args, None)
    key = args.key or model.registry_["setup_args"]["labels_key"]
    if key is None:
        raise InputError("The model has no labels: name the column with the groups, --key.")
    ends = {key: args.start}, {key: args.end}
    if type(model).__name__ == "FlowTransfer":
        if args.condition is not None:
            raise InputError("A FlowTransfer does not see the condition: leave --condition out.")
        path = model.interpolate(*ends, steps=args.steps, adata=adata)
    elif type(model).__name__ == "TRVAE":
        from trvae_sc.family import interpolate

        path = interpolate(model, *ends, steps=args.steps, condition=args.condition, adata=adata)
    else:
        raise InputError(f"{args.model} is a {type(model).__name__}, which has no codes of cells.")
    write_anndata(path, args.out, overwrite=args.force)
    say(f"Wrote {path.n_obs:,} cells to {args.out}.")
    answer(args, {"out": str(args.out), "n_cells": path.n_obs})


def run_outliers(args: argparse.Namespace) -> None:
    """Score cells and write a table."""
    if args.out.suffix != ".csv":
        raise InputError(f"{args.out} is no .csv file.")
    check_output(args.out, overwrite=args.force, inputs=[args.file, args.reference])
    adata, reference = read(args.file), read(args.reference)
    model = _load(args, None)
    if type(model).__name__ != "TRVAE":
        raise InputError(f"{args.model} is a {type(model).__name__}; outliers needs a TRVAE.")
    from trvae_sc.family import outlier_score

    table = outlier_score(model, adata, reference=reference, seed=args.seed)
    write_text(args.out, table.rename_axis("cell").to_csv(), overwrite=args.force)
    n_low = int((table["p_value"] < 0.05).sum())
    record = {"out": str(args.out), "n_cells": len(table), "n_p_below_0.05": n_low}
    say(f"Wrote the scores of {len(table):,} cells to {args.out}: {n_low:,} have p < 0.05.")
    answer(args, record)
