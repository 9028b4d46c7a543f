"""What a prediction rests on: its record, notes for the reader, intervals."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from trvae_sc.levels import as_text, level_name
from trvae_sc.model._pairs import Responses, seen_pairs
from trvae_sc.model._query import FROZEN_WITHOUT_LABELS
from trvae_sc.uncertainty import half_width

if TYPE_CHECKING:
    from trvae_sc.model._model import TRVAE

_NOVEL = 1.5  # distance from the training labels above which a note says so
_MIXED = 0.9  # error of network and ridge together, over the ridge's (inner tasks: 0.88 to 0.94)


def half_widths(model: TRVAE, adata: AnnData, rows: np.ndarray, target: Any) -> np.ndarray:
    """Return half the width of each gene's interval, the mean over the source cells; NaN if unknown."""
    unknown = np.full(adata.n_vars, np.nan)
    if not model.labels or target not in model.conditions:
        return unknown
    obs, labels_key = adata.obs.iloc[rows], model.registry_["setup_args"]["labels_key"]
    label = as_text(obs[labels_key]) if labels_key in obs else pd.Series("", index=obs.index)
    total = np.zeros(adata.n_vars)
    for source, labels in label.groupby(np.asarray(model._condition_column(obs))):
        if source == target:
            continue
        pairs, responses = seen_pairs(model, source, target), Responses(model, source, target)
        widths: dict[tuple[int, ...], np.ndarray] = {}  # one for labels that were measured alike
        for name, n_cells in labels.value_counts().items():
            known = responses.conditions(name)
            if known not in widths:
                half = half_width(responses.beside(name, unknown, pairs)[1])
                widths[known] = unknown if half is None else half
            total += n_cells * widths[known]
    module = model.module
    scale = 1.0 if module.is_count else module.gene_scale.cpu().numpy()
    if module.calibrate and 0.0 < module.context_weight < 1.0:
        scale = _MIXED * scale
    return total / len(rows) * scale


def provenance(
    model: TRVAE, combinations: pd.DataFrame, target: Any, *, output: str, n_samples: int, seed: int
) -> dict[str, Any]:
    """Return the record of a prediction, in types that h5ad and zarr can hold."""
    remarks = model._condition_remarks(target)
    notes = combination_notes(combinations, measured=not remarks, labelled=bool(model.labels))
    notes += remarks
    done = model.training_
    if done["interrupted"]:
        notes.append(
            f"Training was interrupted after {done['epochs']} of {done['planned']} epochs: the model is "
            "unfinished."
        )
    if model.module.decoder_in.condition is None:
        notes.append(
            "The network does not see the condition: latent codes were moved by the mean over labels of "
            "the difference between the conditions' mean codes, the same way for all cells."
        )
    if not model.labels:
        notes.append(
            "The model was set up without labels_key, so there was no transfer loss, and no label "
            "to learn from how another changes: there are no intervals, and with labels a "
            "prediction is usually better."
        )
        known = model.frozen_conditions_
        if known and target in model.conditions[known:]:
            notes.append(FROZEN_WITHOUT_LABELS)
    return {
        "method": "TRVAE",
        "preset": model.preset_,
        "gene_likelihood": model.module.gene_likelihood,
        "model_seed": int(model.seed_),
        "training": dict(done),
        "target": level_name(target),
        "source": np.array(combinations["source"].unique(), dtype=object),
        "output": output,
        "scale": _scale_name(model, output),
        "kappa": float(model.module.kappa),
        "n_samples": int(n_samples),
        "seed": int(seed),
        "combinations": combinations,
        "notes": np.array(notes, dtype=object),
        "versions": {name: version(name) for name in ("trvae_sc", "scvi-tools", "torch")},
    }


def _scale_name(model: TRVAE, output: str) -> str:
    if not model.module.is_count:
        return "values"
    return "counts" if output in ("counts", "sample") else "log(1 + kappa * share)"


def combination_table(
    model: TRVAE,
    source: pd.DataFrame,
    target: Any,
    distances: dict[tuple[str, str], float],
    is_training: np.ndarray,
) -> pd.DataFrame:
    """Return one row a predicted combination: from what, and what training saw of it.

    ``novelty`` is :func:`trvae_sc.uncertainty.novelty` of the source cells; ``n_new_cells`` are those that
    the model was not trained on.
    """
    key = model.registry_["setup_args"]["labels_key"]
    label = as_text(source[key]) if key in source else pd.Series("all", index=source.index)
    pairs = pd.DataFrame({"label": label, "source": as_text(model._condition_column(source))})
    groups = pairs.assign(is_new=~is_training).groupby(["label", "source"], sort=True)["is_new"]
    counts = groups.agg(n_source_cells="size", n_new_cells="sum").reset_index()
    known = model.n_cells
    known = known.set_axis(map(level_name, known.index)).set_axis(map(level_name, known), axis=1)
    name = level_name(target)
    known = known if name in known else known.assign(**{name: 0})
    seen = [int(known[name].get(label, 0)) for label in counts["label"]]
    both = [int(((known[name] > 0) & (known[s] > 0)).sum()) for s in counts["source"]]
    return counts.assign(
        target=name,
        n_training_cells=seen,
        seen_in_training=np.array(seen) > 0,
        n_labels_with_both=both,
        novelty=[
            distances.get((lab, src), np.nan)
            for lab, src in zip(counts["label"], counts["source"], strict=True)
        ],
    )


def combination_notes(
    combinations: pd.DataFrame, *, measured: bool = True, labelled: bool = True
) -> list[str]:
    """Return what a reader of the prediction should know; `measured`: the target itself was."""
    notes = []
    known = combinations[combinations["seen_in_training"]]
    old = known.loc[known["n_new_cells"] < known["n_source_cells"], "label"].unique()
    if len(old):
        notes.append(
            f"Training saw the target condition of {', '.join(old)}: these are not predictions of "
            "something unseen, and scoring them says nothing about unseen cells."
        )
    other = known.loc[known["n_new_cells"] > 0, "label"].unique()
    if len(other):
        notes.append(
            f"Training saw the target condition of {', '.join(other)} in other cells than these: the "
            "cells are new, the combination of label and condition is not."
        )
    new = combinations[(combinations["novelty"] > _NOVEL) & ~combinations["seen_in_training"]]
    if len(new):
        named = ", ".join(f"{r.label} ({r.novelty:.1f})" for r in new.itertuples())
        notes.append(
            f"Unlike the labels that training saw under both conditions: {named}. The number is the "
            "distance to the nearest of them, in units of how far these are from each other; beyond "
            f"{_NOVEL:g} the prediction extrapolates."
        )
    few = combinations[combinations["n_labels_with_both"].between(1, 2)]
    if labelled and len(few):
        notes.append(
            f"Only {few['n_labels_with_both'].min()} label(s) were seen under both source and target: "
            "too few to tell what is particular to a label, or how wide the intervals are."
        )
    if measured and (combinations["n_labels_with_both"] == 0).any():
        notes.append(
            "No label was seen under both source and target, so the change rests on the alignment of "
            "conditions alone."
        )
    return notes
