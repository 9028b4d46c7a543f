"""Simple methods with all that a prediction of the model has: counts, intervals, tables."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal, Unpack

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from trvae_sc.arguments import check_seed
from trvae_sc.baselines._shift import Shift, shift_of
from trvae_sc.baselines._simple import (
    SIMPLE,
    context_shift,
    mean_shift,
    nearest_shift,
    no_change,
)
from trvae_sc.checks import (
    PREDICTED_VAR,
    RECORD,
    check_free,
    check_matrix,
    check_names,
    check_obs,
    check_type,
    check_values,
)
from trvae_sc.conditions import ConditionSpace
from trvae_sc.errors import InputError
from trvae_sc.expression import (
    KeyNames,
    Keys,
    dense,
    gene_means,
    groups,
    keys_from,
    log_values,
    median_total,
    totals,
    values,
)
from trvae_sc.levels import level_name, levels, match_level
from trvae_sc.model._counts import Draws, transport_counts
from trvae_sc.model._effects import effect_table
from trvae_sc.model._factors import Change, Factors
from trvae_sc.model._record import combination_notes, combination_table, predicted_obs
from trvae_sc.model._trained import Known, given_labels
from trvae_sc.shift import Profiles, half_width, novelty, p_values

_FUNCTIONS = {f.__name__: f for f in (no_change, mean_shift, nearest_shift, context_shift)}


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

    The result has the columns and the record of a prediction of the model, so that one can stand where the
    other does.

    Parameters
    ----------
    adata
        Measured cells. Those of the labels to predict are moved, all are learned from.
    target
        Condition to predict.
    method
        ``"no_change"``, ``"mean_shift"``, ``"nearest_shift"`` or ``"context_shift"``.
    source
        Condition of the cells to start from; all but `target` if None.
    labels
        Label or labels of the cells to start from; all if None.
    output
        ``"counts"`` (default for counts): each count is kept with probability
        :math:`\min(1, p_t / p_s)`, and Poisson counts of mean :math:`t \max(0, p_t - p_s)` are added, with
        the label's mean share p of the gene under source and target and the cell's total t.
        ``"delta"`` (default otherwise): log values, or values, plus the shift.
    seed
        Seed of the counts.
    keys
        Where the data are: :class:`trvae_sc.evaluation.Keys` or a model, in place of `names`.
    **names
        ``condition_key``, ``labels_key``, ``layer``, ``total_counts_key``, ``is_count`` as in
        :meth:`trvae_sc.TRVAE.setup_anndata` and :class:`trvae_sc.evaluation.Keys`.

    Returns
    -------
    AnnData like that of :meth:`trvae_sc.TRVAE.predict`: the same columns of ``obs`` and ``var``, and
    ``uns["trvae_sc"]``. ``obs["response"]`` is 1, as all cells of a label move alike.

    Raises
    ------
    InputError
        Unknown method, target, source or labels; columns or values that cannot be used; no label was
        measured under both conditions.
    """
    check_seed(seed)
    learned = _learned(adata, keys_from(keys, names), method)
    target = match_level(target, learned.known.conditions.levels, of="condition")
    allowed = ["counts", "delta"] if learned.keys.is_count else ["delta"]
    output = output or allowed[0]
    if output not in allowed:
        raise InputError(f"Output {output!r} is not available; choose one of {allowed}.")
    check_free(adata)
    found = _groups(learned, method, target, source, labels)
    rows = np.sort(np.concatenate([group.rows for group in found]))
    obs = predicted_obs(learned.known, adata, rows, target, 1).assign(response=np.float32(1.0))
    if output == "counts":
        x = _moved(learned, found, rows, seed)
    else:
        x = _FUNCTIONS[method](adata, adata[rows], target=target, keys=learned.keys).X
    result = AnnData(x, obs=obs, var=_var(adata, found))
    if output == "counts":
        _add_totals(result, learned, rows)
    result.uns[RECORD] = _record(learned, method, found, target, rows, output, seed)
    return result


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
    target = match_level(target, learned.known.conditions.levels, of="condition")
    return pd.concat(
        [
            effect_table(
                group.factors,
                target,
                adata.var_names,
                p_values(group.factors.change.columns()[2], group.shift.missed, group.shift.n),
                n_cells=len(group.rows),
                is_count=learned.keys.is_count,
            )
            for group in _groups(learned, method, target, source, labels)
        ],
        ignore_index=True,
    )


# -- what is known ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Learned:
    """What a simple method learns from."""

    adata: AnnData
    keys: Keys
    known: Known
    profiles: Profiles  #: f of mean shares
    kappa: float


@dataclass(frozen=True)
class _Group:
    """Cells of a label under a source, and what is predicted of them."""

    rows: np.ndarray
    factors: Factors
    shift: Shift


def _learned(adata: AnnData, keys: Keys, method: str) -> _Learned:
    """Return what can be learned from measured cells, checked."""
    if method not in SIMPLE:
        raise InputError(f"Unknown simple method {method!r}; there are {list(SIMPLE)}.")
    check_type(adata)
    check_names(adata)
    check_matrix(adata, keys.layer)
    totals_key = keys.total_counts_key if keys.is_count else None
    check_obs(adata, [keys.condition_key, keys.labels_key], [totals_key])
    known_totals = totals(adata, keys) if totals_key else None
    check_values(values(adata, keys), is_count=keys.is_count, totals=known_totals, name="adata")
    conditions = ConditionSpace(keys.condition_key, tuple(levels(adata.obs[keys.condition_key])))
    labels = ("all",)
    if keys.labels_key is not None:
        labels = tuple(map(level_name, levels(adata.obs[keys.labels_key])))
    kappa, x = median_total(adata, keys), None
    x = log_values(adata, keys, kappa)
    names = [level_name(level) for level in conditions.levels]
    mean = np.zeros((len(labels), len(names), adata.n_vars))
    n_cells = np.zeros(mean.shape[:2])
    for (label, condition), rows in groups(adata.obs, keys):
        at = labels.index(label), names.index(condition)
        own = x[rows]
        mean[at] = np.log1p(gene_means(np.expm1(own))) if keys.is_count else gene_means(own)
        n_cells[at] = len(rows)
    known = Known(conditions, labels, keys.labels_key, n_cells)
    return _Learned(adata, keys, known, Profiles(mean, n_cells, labels, keys.is_count), kappa)


def _groups(learned: _Learned, method: str, target: Any, source: Any, labels: Any) -> list[_Group]:
    """Return the groups of cells to move, and how."""
    known, keys = learned.known, learned.keys
    space = known.conditions
    starts = [level for level in space.levels if level != target]
    if source is not None:
        starts = [match_level(source, space.levels, of="condition")]
        if starts == [target]:
            raise InputError(f"Source and target are both {target!r}: nothing changes.")
    chosen = list(known.labels)
    if labels is not None:
        given = given_labels(keys.labels_key, labels)
        chosen = [match_level(label, known.labels, of="label") for label in given]
    rows = dict(groups(learned.adata.obs, keys))
    found = []
    for start in starts:
        present = [label for label in chosen if (label, level_name(start)) in rows]
        if not present:
            continue
        shift = _shift(learned, method, start, target)
        found += [
            _Group(
                rows[label, level_name(start)],
                _factors(learned, shift, label, start, target),
                shift,
            )
            for label in present
        ]
    if not found:
        raise InputError(f"No cell of {chosen} under {starts} to predict {target!r} from.")
    return found


def _shift(learned: _Learned, method: str, source: Any, target: Any) -> Shift:
    """Return the shift between two conditions."""
    s, t = (learned.known.conditions.code(level) for level in (source, target))
    if method != "no_change" and not learned.profiles.measured(s)[:, t].any():
        raise InputError(
            f"No label was measured under both {source!r} and {target!r}, so there is no shift to learn."
        )
    return shift_of(method, learned.profiles, s, t)


def _factors(learned: _Learned, shift: Shift, label: str, source: Any, target: Any) -> Factors:
    """Return the change of a label, and the factor of its mean shares."""
    code = learned.known.labels.index(label)
    own = learned.profiles.mean[code, learned.known.conditions.code(source)]
    end = shift.predict(own, code)
    change = Change(own, np.maximum(end, 0.0) if learned.keys.is_count else end, None)
    change = change._replace(half_width=half_width(shift.missed, shift.n))
    start, end = (np.expm1(mean) / learned.kappa for mean in change[:2])
    ratio = np.divide(end, start, out=np.ones_like(end), where=start > 0)
    unlike = novelty(own, shift.others)
    return Factors(
        label, source, np.ones_like(ratio), ratio, end - start, change, unlike, is_known=True
    )


# -- cells --------------------------------------------------------------------------------------------


def _moved(
    learned: _Learned, found: list[_Group], rows: np.ndarray, seed: int
) -> sparse.csr_matrix:
    """Return the counts of rows, moved as their groups are."""
    x, total = values(learned.adata, learned.keys), totals(learned.adata, learned.keys)
    group = np.zeros(learned.adata.n_obs, dtype=int)
    for i, one in enumerate(found):
        group[one.rows] = i
    ratio = np.stack([one.factors.of_target for one in found])
    gain = np.maximum(np.stack([one.factors.gain for one in found]), 0.0)
    draws, parts = Draws(seed), []
    for at in np.array_split(rows, -(-len(rows) // _BATCH)):
        counts = sparse.csr_matrix(dense(x[at]), dtype=np.float32)
        own = group[at]
        added = gain[own] * total[at][:, None]
        parts.append(transport_counts(counts, ratio[own], added, None, draws))
    return sparse.vstack(parts, format="csr")


_BATCH = 1024  # cells moved at a time


def _add_totals(result: AnnData, learned: _Learned, rows: np.ndarray) -> None:
    """Write the totals of predicted cells: what they hold, plus the rest of the source cell."""
    key = learned.keys.total_counts_key
    if key is None:
        return
    held = np.asarray(values(learned.adata, learned.keys)[rows].sum(1), dtype=np.float64).ravel()
    rest = np.maximum(totals(learned.adata, learned.keys)[rows] - held, 0.0)
    result.obs[key] = np.asarray(result.X.sum(1), dtype=np.float64).ravel() + np.round(rest)


def _var(adata: AnnData, found: list[_Group]) -> pd.DataFrame:
    """Return the genes' columns; of a single label and source with its change and interval."""
    var = adata.var.copy()
    var.index.name = None
    if len(found) > 1:
        return var
    return var.assign(**dict(zip(PREDICTED_VAR, found[0].factors.change.columns(), strict=True)))


def _record(
    learned: _Learned,
    method: str,
    found: list[_Group],
    target: Any,
    rows: np.ndarray,
    output: str,
    seed: int,
) -> dict[str, Any]:
    """Return the record of a prediction, in types that h5ad and zarr can hold."""
    known, keys = learned.known, learned.keys
    cells = known.groups(learned.adata.obs.iloc[rows])
    factors = [group.factors for group in found]
    table = combination_table(known, cells, target, factors, np.ones(len(rows), dtype=bool))
    notes = combination_notes(table, labelled=keys.labels_key is not None)
    scale = "counts" if output == "counts" else "log(1 + kappa * share)"
    return {
        "method": method,
        "keys": keys.named(),
        "target": level_name(target),
        "source": np.array(table["source"].unique(), dtype=object),
        "output": output,
        "scale": scale if keys.is_count else "values",
        "kappa": learned.kappa,
        "n_samples": 1,
        "seed": int(seed),
        "combinations": table,
        "notes": np.array(notes, dtype=object),
        "versions": {"trvae_sc": version("trvae_sc")},
    }
