"""The subcommands that train a model, or do something with one."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trvae_sc.cli._shared import (
    answer,
    check_accelerator,
    check_data,
    check_output,
    check_prediction_file,
    inputs_of,
    keys_of,
    options,
    quiet,
    say,
    target_features,
    tell_prediction,
    write_prediction,
)
from trvae_sc.errors import InputError
from trvae_sc.files import read, write_anndata, write_text

if TYPE_CHECKING:  # torch and scvi-tools take seconds to import, which --help need not wait for
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
_BETWEEN = ("cyclegan", "flow_matching", "paired")
#: Options of TRVAE alone: of the model, of its columns and of its training.
_WEIGHTS = ("n_latent", "kl_weight", "mmd_weight")
_COLUMNS = ("batch_key", "replicate_key")
_TRAINING = ("memory_budget", "checkpoint_dir", "early_stopping", "balance_conditions")


# -- train --------------------------------------------------------------------------------------------


def run_train(args: argparse.Namespace) -> None:
    """Train a model on a file and save it."""
    _check_options(args)
    force = args.force or _is_unfinished(args.out, args)
    check_output(
        args.out, overwrite=force, kind="model", replaces=lambda _: True, inputs=[args.file]
    )
    if args.n_top_genes < 0:
        raise InputError(f"--n-top-genes is {args.n_top_genes}; name a number, or 0 for all genes.")
    adata = read(args.file)
    from trvae_sc import PRESETS
    from trvae_sc.evaluation import parse_holdouts, training_data

    likelihood = args.gene_likelihood or PRESETS[args.preset]["model"].get("gene_likelihood", "nb")
    keys = keys_of(args, is_count=likelihood in ("nb", "zinb", "poisson"))
    quiet()
    check_accelerator(args.accelerator)
    check_data(adata, args, keys)
    train, keys = training_data(
        adata,
        parse_holdouts(args.holdout, adata, keys),
        keys=keys,
        n_top_genes=args.n_top_genes or None,
        columns=list(_given(args, ["replicate_key", "pair_key"]).values()),
    )
    settings = _given(args, ["n_hidden", *_WEIGHTS, "source", "target"])
    if args.model == "trvae":
        setup = {**keys.further(), **keys.of_conditions(), "replicate_key": args.replicate_key}
        settings |= {"preset": args.preset, "gene_likelihood": args.gene_likelihood}
    else:
        names = ("labels_key", "layer", "total_counts_key", "is_count")
        setup = {**{name: getattr(keys, name) for name in names}, **_given(args, ["pair_key"])}
    model_cls = _class_named(MODELS[args.model])
    model_cls.setup_anndata(train, keys.condition_key, **setup)
    model = model_cls(train, seed=args.seed, **settings)
    given = _given(args, ["batch_size", *_TRAINING])
    try:
        model.train(args.max_epochs, accelerator=args.accelerator, **given)
    finally:
        if model.is_trained:  # also after Ctrl-C
            _save(model, args, force=force)


def _given(args: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """Return those of some options that were given."""
    found = options(args, *names).items()
    return {name: value for name, value in found if value is not None and value is not False}


def _check_options(args: argparse.Namespace) -> None:
    """Raise on options of train that the model does not have."""
    if (args.model == "paired") != (args.pair_key is not None):
        raise InputError("--pair-key is needed with --model paired, and with no other.")
    if args.model not in _BETWEEN and (args.source or args.target):
        raise InputError(f"--source and --target are of --model {', '.join(_BETWEEN)}.")
    if args.model == "trvae":
        return
    given = [*_given(args, [*_WEIGHTS, *_COLUMNS, *_TRAINING])]
    given += ["preset"] if args.preset != "default" else []
    if given:
        names = ", ".join("--" + name.replace("_", "-") for name in given)
        raise InputError(f"{names}: only with --model trvae, not with {args.model}.")
    if args.gene_likelihood not in (None, "nb", "normal"):
        raise InputError(
            f"--model {args.model} takes counts (nb) or other values (normal), not "
            f"{args.gene_likelihood}."
        )


def _is_unfinished(folder: Path, args: argparse.Namespace) -> bool:
    """Return whether a folder holds a model of the same class and cells whose training was interrupted."""
    if not (folder / "model.pt").is_file():
        return False
    from trvae_sc.model_file import read_model

    try:
        found = read_model(folder, None).attributes
        known, of = found["trained_on_"], found["registry_"]["model_name"]
        is_same = known["file"] == str(args.file) and known["holdouts"] == args.holdout
        is_same = is_same and of == MODELS[args.model]
        return bool(is_same and found["training_"]["interrupted"])
    except (InputError, LookupError, TypeError):  # no model of ours
        return False


def _save(model: Any, args: argparse.Namespace, *, force: bool) -> None:
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


# -- predict ------------------------------------------------------------------------------------------


def run_predict(args: argparse.Namespace) -> None:
    """Predict cells of a file with whatever model is in the folder."""
    name = _name_of_class(args.model) if args.model.is_dir() else "TRVAE"
    if args.exemplars is not None and name not in ("FlowTransfer", "TRVAE"):
        raise InputError(f"--exemplars is of trvae and flow_transfer; {args.model} is a {name}.")
    check_prediction_file(args)
    if name == "TRVAE":
        _predict_by_trvae(args)
        return
    ours = ("output", "table", "by", "condition_features")
    if any(value is not None for value in options(args, *ours).values()) or args.n_samples != 1:
        raise InputError(
            f"--output, --n-samples, --table, --by and --condition-features are of TRVAE; this is a {name}."
        )
    adata = read(args.file)
    further = {} if args.exemplars is None else {"exemplars": read(args.exemplars)}
    # what the prior of a flow is worth follows from its training cells, which the file may hold
    model = _load(args, name, adata if name == "FlowTransfer" else None)
    request = options(args, "target", "source", "labels", "seed")
    predicted = model.predict(adata, **request, **further)
    write_prediction(predicted, args)


def _predict_by_trvae(args: argparse.Namespace) -> None:
    """Predict cells and write them, and the changes of genes as a table."""
    if args.table is not None:
        if args.table.suffix != ".csv":
            raise InputError(f"{args.table} is no .csv file.")
        check_output(args.table, overwrite=args.force, inputs=[args.out, *inputs_of(args)])
    elif args.by is not None:
        raise InputError("--by is for the table of changes; name one: --table genes.csv.")
    adata = read(args.file, backed=True)
    model = _load(args, "TRVAE")
    layer = model.registry["setup_args"]["layer"]
    if layer is not None and layer not in adata.layers:
        raise InputError(f"{args.file} has no layer '{layer}', which the model was set up with.")
    request = options(args, "target", "source", "labels")
    request["exemplars"] = None if args.exemplars is None else read(args.exemplars)
    request["features"] = target_features(args)
    table = None if args.table is None else model.effects(by=args.by, **request)
    further = options(args, "output", "n_samples", "seed", "out")
    predicted = model.predict(adata, overwrite=args.force, **request, **further)
    if table is not None:
        write_text(args.table, table.to_csv(index=False), overwrite=args.force)
    tell_prediction(predicted, args)


def _name_of_class(folder: Path) -> str:
    """Return the name of the class of the model in a folder."""
    from trvae_sc.model_file import read_model

    return str(read_model(folder, None).attributes["registry_"]["model_name"])


def _class_named(name: str) -> Any:
    """Return a class of models."""
    import trvae_sc
    from trvae_sc import family

    return trvae_sc.TRVAE if name == "TRVAE" else getattr(family, name)


def _load(args: argparse.Namespace, name: str, adata: AnnData | None = None) -> Any:
    """Return the model of a folder, of the class that is named, with training cells if there are any."""
    quiet()
    check_accelerator(args.accelerator)
    model = _class_named(name).load(args.model, adata=False, accelerator=args.accelerator)
    if adata is not None:
        model.adata = _shown_cells(model, adata)
    return model


def _shown_cells(model: Any, adata: AnnData) -> AnnData:
    """Return the cells but those that training was not shown."""
    import numpy as np

    from trvae_sc.evaluation import parse_holdouts
    from trvae_sc.expression import Keys

    given = model.registry_["setup_args"]
    separator = given.get("condition_separator")
    keys = Keys(given["condition_key"], given["labels_key"], condition_separator=separator)
    names = getattr(model, "trained_on_", {"holdouts": []})["holdouts"]
    hidden = []
    for name in names:
        with contextlib.suppress(InputError):  # of cells that the file does not have
            hidden += [one.hidden(adata, keys) for one in parse_holdouts([name], adata, keys)]
    return adata[~np.any(hidden, axis=0)].copy() if hidden else adata


# -- latent spaces ------------------------------------------------------------------------------------


def run_generate(args: argparse.Namespace) -> None:
    """Draw new cells and write them."""
    check_prediction_file(args)
    name = _name_of_class(args.model)
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
    asked = _given(args, ["condition", "labels", "latent", "output", "exemplars"])
    idle = [f"--{option}" for option in asked if option not in given]
    if idle:
        raise InputError(f"A {name} draws cells without {', '.join(idle)}: leave that out.")
    model = _load(args, name, read(args.file) if name == "TRVAE" else None)
    _write_cells(model.generate(**given), args)


def run_interpolate(args: argparse.Namespace) -> None:
    """Decode the line between two groups and write it."""
    check_prediction_file(args)
    adata = read(args.file)
    model = _load(args, _name_of_class(args.model))
    key = args.key or model.registry_["setup_args"]["labels_key"]
    if key is None:
        raise InputError("The model has no labels: name the column with the groups, --key.")
    ends = {key: args.start}, {key: args.end}
    name = type(model).__name__
    if name == "FlowTransfer":
        if args.condition is not None:
            raise InputError("A FlowTransfer does not see the condition: leave --condition out.")
        path = model.interpolate(*ends, steps=args.steps, adata=adata)
    elif name == "TRVAE":
        from trvae_sc.family import interpolate

        path = interpolate(model, *ends, steps=args.steps, condition=args.condition, adata=adata)
    else:
        raise InputError(f"{args.model} is a {name}, which has no codes of cells.")
    _write_cells(path, args)


def _write_cells(cells: AnnData, args: argparse.Namespace) -> None:
    """Write cells that were made, and tell it."""
    write_anndata(cells, args.out, overwrite=args.force)
    say(f"Wrote {cells.n_obs:,} cells to {args.out}.")
    answer(args, {"out": str(args.out), "n_cells": cells.n_obs})


def run_outliers(args: argparse.Namespace) -> None:
    """Score cells and write a table."""
    if args.out.suffix != ".csv":
        raise InputError(f"{args.out} is no .csv file.")
    check_output(args.out, overwrite=args.force, inputs=[args.file, args.reference])
    adata, reference = read(args.file), read(args.reference)
    model = _load(args, _name_of_class(args.model))
    name = type(model).__name__
    if name != "TRVAE":
        raise InputError(f"{args.model} is a {name}; outliers needs a TRVAE.")
    from trvae_sc.family import outlier_score

    table = outlier_score(model, adata, reference=reference, seed=args.seed)
    write_text(args.out, table.rename_axis("cell").to_csv(), overwrite=args.force)
    n_low = int((table["p_value"] < 0.05).sum())
    record = {"out": str(args.out), "n_cells": len(table), "n_p_below_0.05": n_low}
    say(f"Wrote the scores of {len(table):,} cells to {args.out}: {n_low:,} have p < 0.05.")
    answer(args, record)
