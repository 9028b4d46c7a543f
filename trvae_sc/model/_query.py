"""Query surgery: the weights of a trained model extended by new levels."""

from __future__ import annotations

import numpy as np
import torch
from anndata import AnnData

from trvae_sc.condition_sets import SETS
from trvae_sc.conditions import ConditionSpace
from trvae_sc.expression import Keys, evenly_spaced, log_values, mean_level
from trvae_sc.levels import level_name
from trvae_sc.model._trained import Trained
from trvae_sc.scales import warn_of_scale

State = dict[str, torch.Tensor]

#: Parameters with a row for each feature of the condition.
_BY_FEATURE = ("encoder_in.condition", "decoder_in.condition", "log_dispersion_condition")
_STATISTICS = ("n_cells", "profiles")
_MOST = 500  # cells of a label and condition that tell their scale


def warn_of_query(reference: Trained, query: AnnData) -> None:
    """Warn where cells of a query are on another scale than those of their labels in the reference.

    Cells under conditions that the reference knows tell it best; of others it is the mean over all conditions.
    """
    module, profiles = reference.module, reference.profiles()
    total_key = reference.total_counts_key if module.is_count else None
    keys = Keys("", None, reference.layer, total_key, module.is_count)
    levels = [level_name(level) for level in reference.conditions.levels[: profiles.mean.shape[1]]]
    same, others = [], []
    groups = reference.groups(query.obs).groupby(["label", "source"]).indices
    for (label, condition), found in groups.items():
        if label not in reference.labels:
            continue
        at, rows = reference.labels.index(label), evenly_spaced(found, _MOST)
        n_cells, means = profiles.n_cells[at], profiles.mean[at]
        x = log_values(query[rows], keys, module.kappa.item())
        own = mean_level(x, is_count=module.is_count)
        if condition in levels and n_cells[levels.index(condition)]:
            n = n_cells[levels.index(condition)]
            same.append((own, means[levels.index(condition)], min(len(found), n)))
        elif n_cells.any():
            expected = np.average(means, axis=0, weights=n_cells)
            others.append((own, expected, min(len(found), n_cells.sum())))
    told = same or others
    warn_of_scale("the query", told, "in the reference", is_count=module.is_count)


def extended(old: State, new: State, conditions: ConditionSpace) -> State:
    """Return the state of a reference grown to the shapes of a query model with these conditions."""
    alike = _alike(conditions)
    return {k: _extend(k, old[k].cpu(), new[k], alike) for k in new}


def new_rows(old: State, new: State, names: set[str]) -> dict[str, int]:
    """Return the parameters that have rows for new levels, with the number of known rows."""
    return {k: len(old[k]) for k in new if new[k].shape != old[k].shape and k in names}


def _alike(conditions: ConditionSpace) -> list[str]:
    """Return the column that each feature of the condition is of; numbers are like no level."""
    parts = conditions.parts
    if parts is None:
        return [""] * len(conditions.levels)
    description = conditions.description
    n_axes = 0 if description is None else description.axes.shape[1]
    described = [f"axis {i}" for i in range(n_axes)]
    if SETS in parts:
        return described + [""] * len(parts["features"])
    return described + [
        level_name(key) if key not in parts["scaling"] else f"number {key}"
        for key, _ in parts["features"]
    ]


def _extend(name: str, old: torch.Tensor, new: torch.Tensor, alike: list[str]) -> torch.Tensor:
    """Return `old` grown to the shape of `new`: statistics by zeros, others by means of their like."""
    if old.shape == new.shape:
        return old
    if name in _STATISTICS:
        grown = torch.zeros_like(new)
        both = tuple(slice(min(n)) for n in zip(old.shape, new.shape, strict=True))
        grown[both] = old[both]
        return grown
    kinds = alike if name in _BY_FEATURE else [""] * len(new)
    known = torch.arange(len(old))
    rows = [
        old[[i for i in known.tolist() if kinds[i] == kinds[j]] or known.tolist()].mean(0)
        for j in range(len(old), len(new))
    ]
    return torch.cat([old, torch.stack(rows)])
