"""What a prediction rests on: its record, notes for the reader, intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import anndata
import numpy as np
import pandas as pd
from anndata import AnnData
from scvi import REGISTRY_KEYS

from trvae_sc.checks import without_codes
from trvae_sc.levels import level_name, of_labels
from trvae_sc.model._factors import Factors
from trvae_sc.model._features import remarks as feature_remarks
from trvae_sc.model._trained import Known, Trained
from trvae_sc.module import CONDITION_KEY
from trvae_sc.notes import versions

#: What is to be said of a new condition of a model without labels whose weights are frozen.
FROZEN_WITHOUT_LABELS = (
    "The reference was set up without labels_key and its weights are frozen: its encoder takes a new "
    "condition for a difference between cells, so that the network hardly changes them, and the mean change is "
    "that of all cells together, whatever their type. Set the reference up with labels, or pass freeze=False "
    "to load_query_data with cells of a known condition in the query."
)
_FEW = 10  # cells, below which a note says so
_NOVEL = 1.5  # distance from the training labels above which a note says so


def provenance(
    trained: Trained,
    combinations: pd.DataFrame,
    target: Any,
    *,
    output: str,
    n_samples: int,
    seed: int,
) -> dict[str, Any]:
    """Return the record of a prediction, in types that h5ad and zarr can hold."""
    module, done = trained.module, trained.training
    remarks = trained.conditions.remarks(target)
    has_labels = trained.labels_key is not None
    notes = combination_notes(combinations, trained, measured=not remarks)
    notes += remarks + feature_remarks(trained, combinations["source"].unique(), target)
    if is_confounded(trained.codes):
        notes.append(
            "Every batch that training saw has cells of one condition only, so that what a batch changes and "
            "what the condition changes cannot be told apart."
        )
    notes += interruption_notes(done)
    if module.decoder_in.condition is None:
        notes.append(
            "The network does not see the condition: latent codes were moved by the mean over labels of "
            "the difference between the conditions' mean codes, the same way for all cells."
        )
    if not has_labels:
        notes.append(
            "The model was set up without labels_key, so there was no transfer loss, and no label "
            "to learn from how another changes: there are no intervals, and with labels a "
            "prediction is usually better."
        )
        if trained.frozen and target in trained.conditions.levels[trained.frozen[-1] :]:
            notes.append(FROZEN_WITHOUT_LABELS)
    described = {}
    if trained.conditions.is_by_features(target):
        table = trained.conditions.description.frame
        names = list(map(level_name, trained.conditions.described_levels(target)))
        described = {"features": table.loc[table.index.isin(names)]}
    return {
        **described,
        "method": "TRVAE",
        "preset": trained.preset,
        "gene_likelihood": module.gene_likelihood,
        "model_seed": int(trained.seed),
        "training": dict(done),
        "keys": dict(trained.names),
        "target": level_name(target),
        "source": np.array(combinations["source"].unique(), dtype=object),
        "output": output,
        "scale": scale_name(module.is_count, output),
        "kappa": float(module.kappa),
        "n_genes": len(module.gene_mean),
        "n_samples": int(n_samples),
        "seed": int(seed),
        "combinations": combinations,
        "notes": np.array(notes, dtype=object),
        "versions": versions(),
    }


def interruption_notes(training: Mapping[str, Any]) -> list[str]:
    """Return a note where training was interrupted."""
    if not training["interrupted"]:
        return []
    return [
        f"Training was interrupted after {training['epochs']} of {training['planned']} epochs: the model "
        "is unfinished."
    ]


def is_confounded(codes: dict[str, np.ndarray]) -> bool:
    """Return whether each batch has one condition only, as far as the cells that are kept show."""
    if REGISTRY_KEYS.BATCH_KEY not in codes:
        return False
    pairs = np.unique(np.hstack([codes[REGISTRY_KEYS.BATCH_KEY], codes[CONDITION_KEY]]), axis=0)
    return len(np.unique(pairs[:, 0])) == len(pairs) > 1


def scale_name(is_count: bool, output: str) -> str:
    """Return what the values of an output are."""
    if not is_count:
        return "values"
    return "counts" if output in ("counts", "sample") else "log(1 + kappa * share)"


def layer_of(layer: str | None, is_count: bool, output: str) -> str | None:
    """Return the layer that holds the values besides ``X``: that of training, if they are of its scale."""
    return layer if scale_name(is_count, output) in ("counts", "values") else None


def predicted_obs(
    known: Known, adata: AnnData, rows: np.ndarray, target: Any, n_samples: int
) -> pd.DataFrame:
    """Return the source cells' columns with the target condition."""
    obs = without_codes(adata.obs.iloc[rows])
    names = obs.index.astype(str)
    source = known.conditions.column(obs).astype("category")
    own = known.conditions.columns([target] * len(obs))
    obs = obs.assign(source_condition=source, source_cell=names).assign(**own)
    obs.index = anndata.utils.make_index_unique(names + f"_{level_name(target)}")
    obs.index.name = None  # a column of that name may be there
    if n_samples == 1:
        return obs
    samples = [obs.assign(sample=i).set_axis(obs.index + f"_{i}") for i in range(n_samples)]
    return pd.concat(samples)


def combination_table(
    known: Known,
    groups: pd.DataFrame,
    target: Any,
    factors: Sequence[Factors],
    is_training: np.ndarray,
) -> pd.DataFrame:
    """Return one row a predicted combination: from what, and what training saw of it.

    `groups` are the cells' labels and conditions (:meth:`Known.groups`). ``n_new_cells`` were not
    trained on; ``own_level``: level and change are those of the cells given, as training has none.
    """
    by_group = groups.assign(is_new=~is_training).groupby(["label", "source"], sort=True)["is_new"]
    counts = by_group.agg(n_source_cells="size", n_new_cells="sum").reset_index()
    levels, name = [level_name(level) for level in known.conditions.levels], level_name(target)
    if known.conditions.description is not None and name not in levels:
        counts = counts.assign(condition_novelty=known.conditions.novelty(target))
    table = pd.DataFrame(known.n_cells.astype(int), index=list(known.labels), columns=levels)
    table = table if name in table else table.assign(**{name: 0})
    code = known.conditions.code(target)
    seen = [known.n_cells_of(label, code, seen=True) for label in counts["label"]]
    both = [int(((table[name] > 0) & (table[s] > 0)).sum()) for s in counts["source"]]
    found = {(f.label, level_name(f.source)): f for f in factors}
    own = [found.get(at) for at in zip(counts["label"], counts["source"], strict=True)]
    return counts.assign(
        target=name,
        n_training_cells=seen,
        seen_in_training=np.array(seen) > 0,
        n_labels_with_both=both,
        novelty=[np.nan if f is None else f.novelty for f in own],
        own_level=[f is not None and not f.is_known for f in own],
    )


def _few_cells(combinations: pd.DataFrame, known: Known) -> list[str]:
    """Return a note on labels whose level, which the prediction starts from, rests on next to no cells."""
    levels = [level_name(level) for level in known.conditions.levels]
    cells = pd.DataFrame(known.n_cells, index=list(known.labels), columns=levels).stack()
    asked = pd.MultiIndex.from_frame(combinations[["label", "source"]])
    own = cells.reindex(asked)
    own = own[own.between(1, _FEW - 1)]
    if own.empty:
        return []
    named = ", ".join(f"{n:.0f} of {label} under {source}" for (label, source), n in own.items())
    return [
        f"Training has few cells to start from, {named}: what these have by chance is in the level and the "
        "change that are predicted."
    ]


def combination_notes(
    combinations: pd.DataFrame, known: Known, *, measured: bool = True
) -> list[str]:
    """Return what a reader of the prediction should know; `measured`: the target itself was."""
    notes, labelled = [], known.labels_key is not None
    seen = combinations[combinations["seen_in_training"]]
    old = seen.loc[seen["n_new_cells"] < seen["n_source_cells"], "label"].unique()
    if len(old):
        notes.append(
            f"Training saw the target condition{of_labels(old, labelled=labelled)}: these are not predictions of "
            "something unseen, and scoring them says nothing about unseen cells."
        )
    other = seen.loc[seen["n_new_cells"] > 0, "label"].unique()
    if len(other):
        notes.append(
            f"Training saw the target condition{of_labels(other, labelled=labelled)} in other cells than these: the "
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
    own = combinations[combinations["own_level"]]
    if len(own):
        each = [(of_labels([r.label], labelled=labelled), r.source) for r in own.itertuples()]
        named = ",".join(dict.fromkeys(f"{label} under {source}" for label, source in each))
        nameless = labelled and set(own["label"]) == {known.no_label}
        why = "The cells given have no labels" if nameless else f"Training has no cells{named}"
        notes.append(
            f"{why}: their level and change are those of the cells given, as a group, so that they depend on "
            "which cells are passed together."
        )
    notes += _few_cells(combinations, known)
    few = combinations[combinations["n_labels_with_both"].between(1, 2)]
    if labelled and len(few):
        notes.append(
            f"Only {few['n_labels_with_both'].min()} label(s) were seen under both source and target: "
            "too few to tell what is particular to a label, or how wide the intervals are."
        )
    if measured and (combinations["n_labels_with_both"] == 0).any():
        rests_on = "the alignment of conditions alone"
        if known.conditions.tells_of_new:
            rests_on = "what was seen under other conditions"
        notes.append(
            f"No label was seen under both source and target, so the change rests on {rests_on}."
        )
    return notes
