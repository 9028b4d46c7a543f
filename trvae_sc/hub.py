"""Models to share: a folder that scvi-tools' hub reads, with a card that holds the benchmark."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from trvae_sc.arguments import check_trvae
from trvae_sc.errors import InputError, MissingExtraError
from trvae_sc.files import as_path
from trvae_sc.levels import SEPARATOR, as_list, level_name, listing
from trvae_sc.model import TRVAE

if TYPE_CHECKING:
    from scvi.hub import HubModel

    from trvae_sc.evaluation import Results

__all__ = ["hub_model", "model_card"]

_PACKAGES = ("trvae_sc", "scvi-tools", "torch", "anndata")


def model_card(
    model: TRVAE,
    results: Results | None = None,
    *,
    license_info: str,
    description: str = "To be added...",
    references: str | Iterable[str] = (),
) -> str:
    """Return the card of a model, as Markdown with the header that the Hugging Face hub reads.

    Parameters
    ----------
    model
        Trained model.
    results
        Benchmark on the data the model was trained on; without it the card says that there is none.
    license_info
        Licence of the model, as the hub spells it (``"cc-by-4.0"``).
    description
        What the data are, and what the model is for.
    references
        Papers, one or several, one a line.

    Returns
    -------
    The text.

    Raises
    ------
    InputError
        The model is not trained, or `results` are none, or of labels or sources that it does not know.
    """
    check_trvae(model)
    if not model.is_trained:
        raise InputError("The model is not trained: there is nothing to share. Run model.train().")
    cited = [
        *as_list(references),
        "trVAE: Lotfollahi et al. 2020, doi:10.1093/bioinformatics/btaa800",
    ]
    sections = {
        "Use": _USE,
        "Training cells by label and condition": _markdown(
            model.n_cells.rename_axis("label").reset_index()
        ),
        "Benchmark": _benchmark(results, model),
        "Model": _markdown(_settings(model)),
        "Training": _markdown(_last_losses(model)),
        "References": "\n".join(f"- {text}" for text in cited),
    }
    title = "# TRVAE: cells under conditions they were not measured in"
    told = [f"## {heading}\n\n{text}" for heading, text in sections.items()]
    return "\n\n".join([_header(license_info), title, description, *told]) + "\n"


def hub_model(
    model: TRVAE,
    folder: str | Path,
    results: Results | None = None,
    *,
    license_info: str,
    description: str = "To be added...",
    references: str | Iterable[str] = (),
    save_anndata: bool = False,
    overwrite: bool = False,
) -> HubModel:
    """Save a model with its card, for ``scvi.hub`` to load from or to push to the Hugging Face hub.

    Needs ``pip install trvae_sc[hub]``.

    Parameters
    ----------
    model
        Trained model.
    folder
        Folder to write.
    results, license_info, description, references
        See :func:`model_card`.
    save_anndata
        Also save the training data; without it ``HubModel.load_model`` needs `adata`.
    overwrite
        Replace the folder if it exists.

    Returns
    -------
    The hub model; ``push_to_huggingface_hub`` publishes it.

    Raises
    ------
    MissingExtraError
        ``huggingface_hub`` is not installed.
    InputError
        The folder exists, without `overwrite`.
    """
    try:
        from huggingface_hub import ModelCard
        from scvi import hub
    except ImportError as error:
        raise MissingExtraError(
            "Sharing models needs huggingface_hub: pip install trvae_sc[hub]."
        ) from error
    folder = as_path(folder, "folder")
    card = model_card(
        model,
        results,
        license_info=license_info,
        description=description,
        references=references,
    )
    model.save(folder, save_anndata=save_anndata, overwrite=overwrite)
    metadata = hub.HubMetadata(
        scvi_version=version("scvi-tools"),
        anndata_version=version("anndata"),
        model_cls_name=type(model).__name__,
        model_parent_module="trvae_sc",
    )
    shared = hub.HubModel(str(folder), metadata=metadata, model_card=ModelCard(card))
    shared.save(overwrite=True)
    return shared


_USE = """```python
import trvae_sc

model = trvae_sc.TRVAE.load("folder", adata=adata)  # raw counts, the genes of the model
predicted = model.predict(target="...", labels="...")
predicted.uns["trvae_sc"]["notes"]  # what to beware of
```

Predictions of combinations that training saw say nothing about unseen ones. What the model scores on
your own data is found with `trvae_sc.evaluation.benchmark`."""


def _header(license_info: str) -> str:
    tags = ["biology", "genomics", "single-cell", "trvae_sc", "model_cls_name:TRVAE"]
    tags += [f"{name}_version:{version(name)}" for name in ("scvi-tools", "anndata")]
    lines = [f"license: {license_info}", "library_name: scvi-tools", "tags:"]
    return "\n".join(["---", *lines, *(f"- {tag}" for tag in tags), "---"])


def _settings(model: TRVAE) -> pd.DataFrame:
    """Return what the model was made with and by which versions."""
    module = model.module
    rows: dict[str, Any] = {
        "preset": model.preset_,
        "gene_likelihood": module.gene_likelihood,
        "genes": model.summary_stats.n_vars,
        "n_latent": module.z_mean.out_features,
        "kl_weight": module.kl_weight,
        "mmd_weight": f"{module.mmd_weight:g} on {module.mmd_on}",
        "mmd_within_labels": module.mmd_within_labels,
        "transfer_weight": module.transfer_weight,
        "context_weight": module.context_weight,
        "seed": model.seed_,
        **{name: version(name) for name in _PACKAGES},
    }
    return pd.DataFrame({"setting": list(rows), "value": [str(v) for v in rows.values()]})


def _last_losses(model: TRVAE) -> pd.DataFrame:
    """Return the last value of every recorded loss."""
    rows = [
        (name, f"{history.iloc[-1, 0]:.5g}", len(history))
        for name, history in (model.history or {}).items()
        if name.endswith(("_train", "_validation"))
    ]
    return pd.DataFrame(rows, columns=["loss", "last value", "epochs"])


def _benchmark(results: Results | None, model: TRVAE) -> str:
    """Return the scores of every method, or that there are none."""
    from trvae_sc.evaluation import Results

    if results is None:
        return "No benchmark was given: how good predictions are is not known."
    if not isinstance(results, Results):
        raise InputError(f"results are of a benchmark, not {type(results).__name__}.")
    _check_same_data(results, model)
    wide = results.wide()
    wide.columns = [f"{metric} ({genes})" for metric, genes in wide.columns]
    table = wide.round(3).reset_index()
    tasks = results.table[["label", "target"]].drop_duplicates()
    named = ", ".join(f"{row.label} under {row.target}" for row in tasks.itertuples())
    return (
        f"Mean over {len(tasks)} combinations, each hidden from training in turn ({named}):\n\n"
        + _markdown(table)
    )


def _check_same_data(results: Results, model: TRVAE) -> None:
    """Raise on a benchmark of data that the model cannot have been trained on."""
    hidden = [record["holdout"] for record in results.records]
    found = {
        # without the levels of other columns that a label is within
        "labels": {one["label"].split(SEPARATOR)[-1] for one in hidden if one.get("key") is None},
        "conditions": {one["source"] for one in hidden},
    }
    for name, of_results in found.items():
        known = {level_name(level) for level in getattr(model, name)}
        known |= {level.split(SEPARATOR)[-1] for level in known} if name == "labels" else set()
        if known and (other := sorted(of_results - known)):
            raise InputError(
                f"results are of other data than the model: it does not know the {name} {listing(other)}. Pass a "
                "benchmark on the data that it was trained on."
            )


def _markdown(table: pd.DataFrame) -> str:
    """Return a table as Markdown."""
    rows = [table.columns, ["---"] * table.shape[1], *table.to_numpy()]
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)
