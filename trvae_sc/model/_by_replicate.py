"""The change of a label in each of its replicates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from trvae_sc.errors import InputError
from trvae_sc.model._factors import Factors
from trvae_sc.model._trained import Trained
from trvae_sc.shift import changed, log_fold_change


class OfReplicate(NamedTuple):
    """The change of a label in one replicate."""

    name: str
    factors: Factors
    n_cells: int  #: under the source
    measured: np.ndarray | float  #: change that training saw, NaN where it has no cells


def check_by(trained: Trained, by: Any) -> None:
    """Raise where changes cannot be given by a column."""
    key = None if trained.replicates is None else trained.replicates.key
    if by is not None and by != key:
        raise InputError(
            f"by is {by!r}, but the model was set up with replicate_key={key!r}. Changes can be given by that "
            "column only: name it in setup_anndata."
        )


def of_replicates(trained: Trained, factors: Factors, target: Any) -> Iterator[OfReplicate]:
    """Yield the change of a label in each replicate with cells under the source.

    It starts from the replicate's own mean; the log fold change (difference, of values) is that of the label.
    The interval is that of a replicate that was not measured under the target.
    """
    module, space, change = trained.module, trained.conditions, factors.change
    label, end = trained.labels.index(factors.label), space.code(target)
    fold = log_fold_change(change.source_mean, change.predicted_mean, is_count=module.is_count)
    after = {} if end is None else {r: m for r, m, _ in trained.replicates.of(label, end)}
    for code, mean, n_cells in trained.replicates.of(label, space.code(factors.source)):
        predicted = changed(mean, fold, is_count=module.is_count)
        own = change._replace(source_mean=mean, predicted_mean=predicted)
        measured = after[code] - mean if code in after else np.nan
        name = trained.replicates.names[code]
        yield OfReplicate(name, factors._replace(change=own), n_cells, measured)
