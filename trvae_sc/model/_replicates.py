"""Means of replicates, kept with a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager

from trvae_sc.identity import row_sums
from trvae_sc.levels import as_text
from trvae_sc.model._decode import scaled
from trvae_sc.model._trained import Trained, in_kept_units, in_own_units
from trvae_sc.module import TOTAL_KEY, TRVAEModule
from trvae_sc.replicates import Replicates, group_sums


def replicate_means(
    trained: Trained, manager: AnnDataManager, rows: np.ndarray, codes: np.ndarray, key: str
) -> dict[str, Any]:
    """Return what a model keeps of its replicates, from one pass over training cells.

    `codes` are those of label and condition of the rows.
    """
    module, adata = trained.module, manager.adata
    names = as_text(adata.obs[key])
    known = pd.Index(sorted(names.unique()))
    table = pd.DataFrame(np.column_stack([known.get_indexer(names)[rows], codes]))
    by_group = table.groupby([0, 1, 2], sort=True)
    group = np.full(adata.n_obs, -1)
    group[rows] = by_group.ngroup().to_numpy()
    x, totals = manager.get_from_registry(REGISTRY_KEYS.X_KEY), None
    if module.has_total:
        totals = manager.get_from_registry(TOTAL_KEY).ravel().astype(np.float64)
    elif module.is_count:
        totals = row_sums(x, adata.n_obs)
    if totals is not None:
        totals = np.maximum(totals, 1.0)
    sums, n_cells = group_sums(x, totals, group, by_group.ngroups)
    mean = in_kept_units(module, scaled(module, sums / n_cells[:, None]))
    return {
        "key": key,
        "names": tuple(known),
        "groups": np.array(list(by_group.indices), dtype=int),
        "mean": mean.astype(np.float32),
        "n_cells": n_cells.astype(int),
    }


def replicates_of(module: TRVAEModule, kept: dict[str, Any] | None) -> Replicates | None:
    """Return replicates as a model keeps them, their means on the scale of f; None without any."""
    if not kept:
        return None
    return Replicates(**{**kept, "mean": in_own_units(module, kept["mean"])})
