"""Predicted changes of labels, and of their replicates, as a table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from trvae_sc.checks import logger
from trvae_sc.errors import InputError
from trvae_sc.intervals import LEVEL
from trvae_sc.levels import level_name, listing, of_labels
from trvae_sc.model._exemplars import Exemplars, check_labels
from trvae_sc.model._factors import Factors, Sourced
from trvae_sc.model._predict import check_weights
from trvae_sc.model._trained import Trained, chosen_labels
from trvae_sc.noise import sampling_variance
from trvae_sc.shift import changed, log_fold_change


def effects(
    trained: Trained,
    genes: pd.Index,
    *,
    target: Any,
    source: Any,
    labels: Any,
    exemplars: dict[str, Exemplars],
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
    check_labels(exemplars, chosen)
    key = None if trained.replicates is None else trained.replicates.key
    if by not in (None, key):
        raise InputError(
            f"by is {by!r}, but the model was set up with replicate_key={key!r}. Changes can be given by that "
            "column only: name it in setup_anndata."
        )
    tables = []
    for start in sources:
        code, of_source = space.code(start), None
        if code is None:
            raise InputError(f"The source {start!r} was not measured; there are {[*space.levels]}.")
        for label in chosen:
            n_cells = trained.n_cells_of(label, code)
            if n_cells and trained.codes_of(trained.labels.index(label), code):
                of_source = of_source or Sourced(trained, start, target, exemplars)
                factors = of_source.factors(label)
                tables += _tables(of_source, factors, genes, n_cells, by=by is not None)
    if not tables:
        named = of_labels(chosen, labelled=trained.labels_key is not None)
        raise InputError(
            f"Training has no cells{named} under {', '.join(map(level_name, sources))}."
        )
    result = pd.concat(tables, ignore_index=True)
    if labels is not None and (absent := sorted(set(chosen) - set(result["label"]))):
        logger.warning("No cell of %s to start from: only others are given.", listing(absent))
    return result


def _tables(
    source: Sourced, factors: Factors, genes: pd.Index, n_cells: int, *, by: bool
) -> list[pd.DataFrame]:
    """Return the change of a label as a table, or one for each of its replicates."""
    trained, target = source.trained, source.target
    is_count = trained.module.is_count
    if not by:
        table = effect_table(factors, target, genes, n_cells=n_cells, is_count=is_count)
        return [table.assign(**_interaction(trained, factors, target))]
    found = []
    for name, own, n, measured in _of_replicates(trained, factors, target):
        table = effect_table(own, target, genes, n_cells=n, is_count=is_count)
        table.insert(1, "replicate", name)
        found.append(table.assign(measured_change=measured))
    return found


def effect_table(
    factors: Factors,
    target: Any,
    genes: pd.Index,
    *,
    n_cells: int,
    is_count: bool,
) -> pd.DataFrame:
    """Return the change of one label as a table; of values that are no counts without fold changes."""
    start, end, change, lower, upper = factors.change.columns()
    pval = factors.change.p_values()
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


def _of_replicates(
    trained: Trained, factors: Factors, target: Any
) -> Iterator[tuple[str, Factors, int, np.ndarray | float]]:
    """Yield name, factors, source cells and measured change (NaN without) of each replicate.

    It starts from its own mean; fold change and interval are those of the label.
    """
    module, space, change = trained.module, trained.conditions, factors.change
    label, end = trained.labels.index(factors.label), space.code(target)
    fold = log_fold_change(change.source_mean, change.predicted_mean, is_count=module.is_count)
    after = {} if end is None else {r: m for r, m, _ in trained.replicates.of(label, end)}
    for code, mean, n_cells in trained.replicates.of(label, space.code(factors.source)):
        predicted = changed(mean, fold, is_count=module.is_count)
        own = change._replace(source_mean=mean, predicted_mean=predicted)
        measured = after[code] - mean if code in after else np.nan
        yield trained.replicates.names[code], factors._replace(change=own), n_cells, measured


def _interaction(trained: Trained, factors: Factors, target: Any) -> dict[str, Any]:
    r"""Return the interaction of the parts of a target in a label, with its interval, by column.

    .. math:: I = d_{AB} - d_A - d_B

    with the measured change :math:`d_{AB}` where training has it (its interval holds the sampling error of all
    four means), else the predicted one (the interval is that of the prediction, and the sampling error of the
    sum). Nothing where the target is no set, where the source has parts itself, or where a part was not measured
    alone in the label.
    """
    space = trained.conditions
    names = space.singles(target)
    if names is None or space.values(factors.source) or not trained.spread.size:
        return {}
    label, source = trained.labels.index(factors.label), space.code(factors.source)
    codes = [space.code(name) for name in names]
    if (trained.n_cells[label, codes] == 0).any():
        return {}
    mean, n_parts = trained.profiles().mean[label].astype(np.float64), len(codes)

    def noise(code: int) -> np.ndarray:
        n = trained.n_cells[label, code]
        spread = trained.spread_of(code)
        return sampling_variance(mean[code], spread, n, is_count=trained.module.is_count)

    sums = (mean[codes] - mean[source]).sum(0)
    variance = sum(noise(code) for code in codes)
    own = space.code(target)
    if own is not None and trained.n_cells[label, own] > 0:
        change = mean[own] - mean[source]
        variance = variance + noise(own) + (n_parts - 1) ** 2 * noise(source)
        half: Any = 0.0
    else:
        change = factors.change.predicted_mean - factors.change.source_mean
        variance = variance + n_parts**2 * noise(source)
        half = np.nan if factors.change.half_width is None else factors.change.half_width
    sampling = stats.norm.ppf((1 + LEVEL) / 2) * np.sqrt(variance)
    half = np.sqrt(np.square(half) + np.square(sampling))
    found = change - sums
    return {
        "sum_of_parts": sums,
        "interaction": found,
        "interaction_lower": found - half,
        "interaction_upper": found + half,
    }
