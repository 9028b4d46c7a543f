"""Changes of all genes, real and predicted, as results keep them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from anndata import AnnData

from trvae_sc.evaluation._methods import OUTPUT
from trvae_sc.evaluation._scores import BOUNDS, has_levels, interval_change, level_change
from trvae_sc.evaluation._tasks import Task


def changes(task: Task, found: Mapping[str, AnnData]) -> dict[str, list[Any]]:
    """Return real and predicted change of every gene of a task, as intervals are of, and the intervals.

    These only of predictions that have intervals of all genes, of changes of this kind.
    """
    predicted = found[OUTPUT] if OUTPUT in found else next(iter(found.values()))
    kept = {"real_change": interval_change(task, of_shares=task.keys.is_count)}
    kept["predicted_change"] = level_change(task, predicted)
    bounds = predicted.var.reindex(columns=BOUNDS)
    if has_levels(predicted, task.keys) and bounds.notna().all(axis=None):
        kept |= {name: predicted.var[name].to_numpy(np.float64) for name in BOUNDS}
    rounded = {name: significant(values) for name, values in kept.items()}
    return {"gene": task.train.var_names.tolist(), **rounded}


def significant(values: Iterable[float]) -> list[float]:
    """Return numbers with the five digits that results keep, whatever their unit."""
    return [float(f"{value:.5g}") for value in values]
