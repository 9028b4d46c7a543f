"""Predicted changes of labels, as a table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from trvae_sc.checks import logger
from trvae_sc.errors import InputError
from trvae_sc.levels import level_name
from trvae_sc.model._by_replicate import check_by, of_replicates
from trvae_sc.model._exemplars import Exemplars, check_labels
from trvae_sc.model._factors import Factors, Sourced
from trvae_sc.model._interaction import interaction
from trvae_sc.model._predict import check_weights
from trvae_sc.model._trained import Trained, chosen_labels


def effects(
    trained: Trained,
    genes: pd.Index,
    *,
    target: Any,
    source: Any,
    labels: Any,
    exemplars: dict[str, Exemplars] | None = None,
    by: str | None = None,
) -> pd.DataFrame:
    """Return predicted changes of labels; see :meth:`TRVAE.effects`."""
    if not trained.module.calibrate:
        raise InputError(
            f"Models with calibrate=False (preset '{trained.preset}') have no change of a label apart from "
            "its cells. Use predict, or the default preset."
        )
    check_weights(trained.module)
    if not trained.codes:
        raise InputError(
            "The model has no codes of its training cells, as it was trained by a data module of its own. "
            "Use predict with cells of the label: its var has their change."
        )
    target, space = trained.conditions.level(target), trained.conditions
    for remark in space.remarks(target)[1:]:
        logger.warning(remark)
    if source is None:
        sources = [level for level in space.levels if level != target]
    else:
        sources = [trained.conditions.level(source)]
        if sources[0] == target:
            raise InputError(f"Source and target are both {target!r}: nothing changes.")
    chosen = chosen_labels(trained, labels)
    check_labels(exemplars or (), chosen)
    check_by(trained, by)
    tables = []
    for start in sources:
        code, of_source = space.code(start), None
        if code is None:
            raise InputError(f"The source {start!r} was not measured; there are {[*space.levels]}.")
        for label in chosen:
            n_cells = int(trained.n_cells[trained.labels.index(label), code])
            if n_cells:
                of_source = of_source or Sourced(trained, start, target, exemplars)
                factors = of_source.of_training(label)
                tables += _tables(of_source, factors, genes, n_cells, by=by is not None)
    if not tables:
        raise InputError(f"Training has no cells of {chosen} under {sources}.")
    return pd.concat(tables, ignore_index=True)


def _tables(
    source: Sourced, factors: Factors, genes: pd.Index, n_cells: int, *, by: bool
) -> list[pd.DataFrame]:
    """Return the change of a label as a table, or one for each of its replicates."""
    trained, target = source.trained, source.target
    is_count = trained.module.is_count
    if not by:
        pval = source.p_values(factors.change)
        table = effect_table(factors, target, genes, pval, n_cells=n_cells, is_count=is_count)
        return [table.assign(**interaction(trained, factors, target))]
    found = []
    for own in of_replicates(trained, factors, target):
        pval, n = source.p_values(own.factors.change), own.n_cells
        table = effect_table(own.factors, target, genes, pval, n_cells=n, is_count=is_count)
        table.insert(1, "replicate", own.name)
        found.append(table.assign(measured_change=own.measured))
    return found


def effect_table(
    factors: Factors,
    target: Any,
    genes: pd.Index,
    pval: np.ndarray,
    *,
    n_cells: int,
    is_count: bool,
) -> pd.DataFrame:
    """Return the change of one label as a table; of values that are no counts without fold changes."""
    start, end, change, lower, upper = factors.change.columns()
    known = np.isfinite(pval).all()
    return pd.DataFrame(
        {
            "label": factors.label,
            "source": level_name(factors.source),
            "target": level_name(target),
            "gene": genes.astype(str),
            "source_mean": start,
            "predicted_mean": end,
            "log2_fold_change": change / np.log(2.0) if is_count else np.nan,
            "change": change,
            "lower": lower,
            "upper": upper,
            "pval": pval,
            "qval": stats.false_discovery_control(pval) if known else pval,
            "n_source_cells": n_cells,
            "novelty": factors.novelty,
        }
    )
