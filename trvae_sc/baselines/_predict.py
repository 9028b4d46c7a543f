"""Simple methods with all that a prediction of the model has: counts, intervals, tables."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, Unpack

import numpy as np
import pandas as pd
from anndata import AnnData

from trvae_sc.arguments import check_seed
from trvae_sc.baselines._cells import Learned, Moved, factors_of, finished, learn
from trvae_sc.baselines._shift import shift_of
from trvae_sc.baselines._simple import SIMPLE_METHODS, SIMPLEST_FIRST
from trvae_sc.checks import check_free
from trvae_sc.errors import InputError
from trvae_sc.expression import (
    KeyNames,
    Keys,
    cells_at,
    check_output,
    gene_units,
    groups,
    keys_from,
)
from trvae_sc.levels import level_name, of_labels
from trvae_sc.model._effects import effect_table
from trvae_sc.model._trained import chosen_labels


def predict(
    adata: AnnData,
    target: Any,
    *,
    method: str = "context_shift",
    source: Any = None,
    labels: Any = None,
    output: Literal["counts", "delta"] | None = None,
    seed: int = 0,
    keys: Any = None,
    **names: Unpack[KeyNames],
) -> AnnData:
    r"""Return cells as they would be under another condition, by a method that trains nothing.

    Parameters
    ----------
    adata
        Measured cells. Those of the labels to predict are moved, all are learned from.
    target
        Condition to predict.
    method
        One of :data:`trvae_sc.baselines.SIMPLE`. For conditions that no cell was measured under
        ``"mean_condition"`` or ``"context_shift"``, with features also ``"nearest_condition"`` and
        ``"feature_ridge"``, of sets of parts also ``"sum_of_parts"``.
    source, labels
        Condition and label or labels of the cells to start from; all but `target`, and all, if None.
    output
        ``"counts"`` (default for counts): each count is kept with probability
        :math:`\min(1, p_t / p_s)`, and Poisson counts of mean :math:`t \max(0, p_t - p_s)` are added, with
        the label's mean share p of the gene under source and target and the cell's total t.
        ``"delta"`` (default otherwise): log values, or values, plus the shift.
    seed
        Seed of the counts.
    keys, **names
        Where the data are: :class:`trvae_sc.evaluation.Keys`, a model, or fields of that class by name.

    Returns
    -------
    AnnData with the columns and the record of one by :meth:`trvae_sc.TRVAE.predict`; ``obs["response"]`` is 1, as all
    cells of a label move alike.

    Raises
    ------
    InputError
        Unknown method, target, source or labels; columns or values that cannot be used; no label was
        measured under both conditions.
    """
    check_seed(seed)
    learned = _learned(adata, keys_from(keys, names), method)
    target = learned.known.conditions.level(target)
    output = check_output(output, learned.keys)
    check_free(adata)
    found = _groups(learned, method, target, source, labels)
    x = None
    if output == "delta":
        rows = np.sort(np.concatenate([group.rows for group in found]))
        x = SIMPLE_METHODS[method](adata, cells_at(adata, rows), target=target, keys=learned.keys).X
    return finished(learned, method, found, target, output=output, seed=seed, x=x)


def effects(
    adata: AnnData,
    target: Any,
    *,
    method: str = "context_shift",
    source: Any = None,
    labels: Any = None,
    keys: Any = None,
    **names: Unpack[KeyNames],
) -> pd.DataFrame:
    """Return the change of every gene in every label that a simple method predicts, as a table.

    Parameters
    ----------
    adata, target, method, source, labels, keys, **names
        As in :func:`predict`.

    Returns
    -------
    The columns of :meth:`trvae_sc.TRVAE.effects`; intervals and p-values rest on how the method errs for
    labels left out.

    Raises
    ------
    InputError
        As :func:`predict`.
    """
    learned = _learned(adata, keys_from(keys, names), method)
    target = learned.known.conditions.level(target)
    is_count, genes = learned.keys.is_count, adata.var_names
    tables = [
        effect_table(group.factors, target, genes, n_cells=len(group.rows), is_count=is_count)
        for group in _groups(learned, method, target, source, labels)
    ]
    return pd.concat(tables, ignore_index=True)


def _learned(adata: AnnData, keys: Keys, method: str) -> Learned:
    """Return what can be learned from measured cells, for a method that is known."""
    if method not in SIMPLEST_FIRST:
        raise InputError(f"Unknown simple method {method!r}; there are {list(SIMPLEST_FIRST)}.")
    return learn(adata, keys)


def _groups(learned: Learned, method: str, target: Any, source: Any, labels: Any) -> list[Moved]:
    """Return the groups of cells to move, and how."""
    known, keys = learned.known, learned.keys
    space = known.conditions
    starts = [level for level in space.levels if level != target]
    if source is not None:
        starts = [space.level(source)]
        if starts == [target]:
            raise InputError(f"Source and target are both {target!r}: nothing changes.")
        if space.code(starts[0]) is None:
            raise InputError(
                f"The source {starts[0]!r} was not measured; there are {[*space.levels]}."
            )
    chosen, unit = chosen_labels(known, labels), gene_units(learned.adata, keys)
    rows = dict(groups(learned.adata.obs, keys))
    found = []
    for start in starts:
        present = [label for label in chosen if (label, level_name(start)) in rows]
        if not present:
            continue
        code = space.levels.index(start)
        shift = shift_of(method, learned.profiles, space, code, target)
        for label in present:
            at = known.labels.index(label)
            own = learned.profiles.mean[at, code]
            factors = factors_of(learned, label, start, shift.predict(own, at), shift.others)
            on_own = shift.missed.on_own or known.n_cells_of(label, space.code(target)) > 0
            missed = replace(shift.missed, scale=unit, on_own=on_own)
            change = factors.change.within(missed, shift.relative(own, at))
            factors = factors._replace(change=change)
            found.append(Moved(rows[label, level_name(start)], factors))
    if not found:
        of = of_labels(chosen, labelled=keys.labels_key is not None)
        under = ", ".join(map(level_name, starts))
        raise InputError(f"No cell{of} under {under} to predict {target!r} from.")
    return found
