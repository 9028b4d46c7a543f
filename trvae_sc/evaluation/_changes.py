"""Changes of all genes, real and predicted, as results keep them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anndata import AnnData

from trvae_sc.evaluation._methods import OUTPUT
from trvae_sc.evaluation._scores import interval_change, level_change
from trvae_sc.evaluation._tasks import Task

_DIGITS = 4  # of changes that are kept


def changes(task: Task, found: Mapping[str, AnnData]) -> dict[str, list[Any]]:
    """Return real and predicted change of every gene of a task, as intervals are of."""
    predicted = found[OUTPUT] if OUTPUT in found else next(iter(found.values()))
    real, own = interval_change(task), level_change(task, predicted)
    return {
        "gene": task.train.var_names.tolist(),
        "real_change": real.round(_DIGITS).tolist(),
        "predicted_change": own.round(_DIGITS).tolist(),
    }
