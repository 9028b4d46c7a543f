"""The prediction that a selection returns: the same columns whichever method it is by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from anndata import AnnData

from trvae_sc.baselines import predict
from trvae_sc.baselines._cells import Learned, Moved, factors_of, finished, learn
from trvae_sc.baselines._simple import SIMPLE_METHODS
from trvae_sc.checks import RECORD
from trvae_sc.errors import InputError
from trvae_sc.evaluation._left_out import LeftOut
from trvae_sc.evaluation._methods import OUTPUT, Method, judged
from trvae_sc.evaluation._scores import has_levels, on_scale
from trvae_sc.expression import Keys, dense, gene_units, groups, mean_level
from trvae_sc.intervals import half_width
from trvae_sc.levels import as_text, match_level

STACK = "stack"  #: name of the weighted mean of methods


def answer(
    train: AnnData,
    source: AnnData,
    *,
    target: Any,
    keys: Keys,
    methods: Mapping[str, Method],
    weights: Mapping[str, float],
    output: str,
    seed: int,
    evidence: LeftOut | None,
) -> AnnData:
    """Return what one method, or a weighted mean of several, predicts from some of the training cells.

    Intervals are of what the methods said of labels left out (`evidence`); if None, the method's own.
    """
    half = None
    if evidence is not None:
        unit = gene_units(train, keys)
        half = half_width(evidence.missed(weights, train.var_names) / unit, evidence.n)
        half = None if half is None else half * unit
    used = {name: weight for name, weight in weights.items() if weight > 0}
    name = next(iter(used)) if len(used) == 1 else STACK
    alone: dict[str, Any] = {
        method: partial(_by_simple, train, method=method, keys=keys, seed=seed)
        for method in used
        if methods[method].predict is SIMPLE_METHODS.get(method)
    }
    if name in alone:
        return _with_interval(alone[name](source, target, output=output)[output], half, keys)
    fits = {method: methods[method].fitted(train, keys=keys, seed=seed) for method in used}
    found = {method: fit(source, target) for method, fit in fits.items()}
    if len(found) == 1 and output in found[name]:
        predicted = found[name][output]
        if "response" in predicted.obs or predicted.n_obs != source.n_obs:
            return _with_interval(predicted, half, keys)
    learned = learn(train, keys)
    alone |= {name: fits[name] for name in used if methods[name].fit_once is not None}
    x, moved = _mean(learned, source, found, used, half, alone, target)
    if output == "counts":  # its own, or drawn
        outputs = found[name].values() if len(found) == 1 else ()
        x = next((one.X for one in outputs if one.uns[RECORD]["scale"] == output), None)
    return finished(learned, name, moved, target, output=output, seed=seed, x=x)


def _mean(
    learned: Learned,
    source: AnnData,
    found: Mapping[str, Mapping[str, AnnData]],
    weights: Mapping[str, float],
    half: np.ndarray | None,
    alone: Mapping[str, Callable[[AnnData, Any], Mapping[str, AnnData]]],
    target: Any,
) -> tuple[np.ndarray, list[Moved]]:
    """Return the weighted mean of what methods predict: log values, and the change of each label.

    The change of a label is the one that methods say of it alone; `alone` asks those that can be asked again.
    """
    keys = learned.keys
    names = dict(groups(source.obs, keys))
    x: Any = 0.0
    ends: dict[tuple[str, str], Any] = dict.fromkeys(names, 0.0)
    for method, outputs in found.items():
        predicted = judged(outputs)
        if predicted.n_obs != source.n_obs:
            raise InputError(
                f"{method} returned {predicted.n_obs:,} cells for {source.n_obs:,} source cells: to combine "
                "methods, or to draw counts from what one says, one row per source cell is needed."
            )
        own = dense(on_scale(predicted, keys, learned.kappa)).astype(np.float64)
        x = x + weights[method] * own
        for group, rows in names.items():
            end, asked = mean_level(own[rows], is_count=keys.is_count), predicted
            if method in alone and (len(names) > 1 or "predicted_mean" not in asked.var):
                asked = judged(alone[method](source[rows], target))
            if "predicted_mean" in asked.var and has_levels(asked, keys):
                end = asked.var["predicted_mean"].to_numpy()
            ends[group] = ends[group] + weights[method] * end
    at = learned.adata.obs_names.get_indexer(source.obs_names)
    moved = []
    for (label, condition), rows in names.items():
        start = match_level(condition, learned.known.conditions.levels, of="condition")
        others = np.empty((0, learned.adata.n_vars))
        factors = factors_of(learned, label, start, ends[label, condition], others)
        factors = factors._replace(change=factors.change._replace(half_width=half))
        moved.append(Moved(at[rows], factors))
    return np.asarray(x, dtype=np.float32), moved


def _by_simple(
    train: AnnData, cells: AnnData, target: Any, *, keys: Keys, output: str = OUTPUT, **given: Any
) -> dict[str, AnnData]:
    """Return what a simple method of ours predicts of the labels of cells under one condition, by output."""
    (source,) = as_text(keys.conditions(cells.obs)).unique()
    labels = as_text(cells.obs[keys.labels_key]).unique()
    given |= {"source": source, "labels": labels, "keys": keys}
    return {output: predict(train, target, output=output, **given)}


def _with_interval(predicted: AnnData, half: np.ndarray | None, keys: Keys) -> AnnData:
    """Return a prediction with intervals of this half-width, where it has such a change and there is one."""
    known = "predicted_change" in predicted.var and has_levels(predicted, keys)
    if half is not None and known:
        change = predicted.var["predicted_change"].to_numpy()
        predicted.var["change_lower"], predicted.var["change_upper"] = change - half, change + half
    return predicted
