"""Whole predictions from the changes of groups of cells: counts, columns and the record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, cast

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from trvae_sc.checks import PREDICTED_VAR, RECORD, check_names, check_type
from trvae_sc.expression import (
    Keys,
    check_measured,
    conditions_of,
    dense,
    groups,
    log_values,
    mean_level,
    median_total,
    totals,
    values,
)
from trvae_sc.identity import row_sums
from trvae_sc.levels import level_name, levels
from trvae_sc.model._counts import Draws, transport_counts
from trvae_sc.model._factors import Change, Factors
from trvae_sc.model._record import (
    combination_notes,
    combination_table,
    layer_of,
    predicted_obs,
    scale_name,
)
from trvae_sc.model._trained import Known
from trvae_sc.shift import Profiles, novelty

_BATCH = 1024  # cells moved at a time


@dataclass(frozen=True)
class Learned:
    """What methods learn from that train nothing."""

    adata: AnnData  #: measured cells
    keys: Keys
    known: Known
    profiles: Profiles  #: f of mean shares, log(1 + kappa share), or mean values
    kappa: float  #: median total


@dataclass(frozen=True)
class Moved:
    """Cells of a label under a source, and what is predicted of them."""

    rows: np.ndarray
    factors: Factors


def learn(adata: AnnData, keys: Keys) -> Learned:
    """Return what can be learned from measured cells; raise on columns or values that cannot be used."""
    check_type(adata)
    check_names(adata)
    check_measured(adata, keys, name="adata")
    conditions = conditions_of(adata, keys)
    labels: tuple[str, ...] = ("all",)
    if keys.labels_key is not None:
        labels = tuple(map(level_name, levels(adata.obs[keys.labels_key])))
    kappa = median_total(adata, keys)
    x = log_values(adata, keys, kappa)
    names = [level_name(level) for level in conditions.levels]
    mean = np.zeros((len(labels), len(names), adata.n_vars))
    n_cells = np.zeros(mean.shape[:2])
    for (label, condition), rows in groups(adata.obs, keys):
        at = labels.index(label), names.index(condition)
        mean[at], n_cells[at] = mean_level(x[rows], is_count=keys.is_count), len(rows)
    known = Known(conditions, labels, keys.labels_key, n_cells)
    return Learned(adata, keys, known, Profiles(mean, n_cells, labels, keys.is_count), kappa)


def factors_of(
    learned: Learned, label: str, source: Any, end: np.ndarray, others: np.ndarray
) -> Factors:
    """Return the change of a label to f of the target, and the factor of its mean shares."""
    code = learned.known.labels.index(label)
    own = learned.profiles.mean[code, learned.known.conditions.code(source)]
    of_source, of_target, gain = np.zeros_like(own), end - own, None
    if learned.keys.is_count:
        end = np.maximum(end, 0.0)
        start_share, end_share = (np.expm1(mean) / learned.kappa for mean in (own, end))
        of_source, gain = np.ones_like(own), end_share - start_share
        of_target = np.divide(end_share, start_share, out=of_source.copy(), where=start_share > 0)
    change, unlike = Change(own, end), novelty(own, others)
    return Factors(label, source, of_source, of_target, gain, change, unlike, is_known=True)


def finished(
    learned: Learned,
    method: str,
    moved: Sequence[Moved],
    target: Any,
    *,
    output: str,
    seed: int,
    x: Any = None,
) -> AnnData:
    """Return a prediction with all that one of the model has.

    `x` are its values, in the order of the rows in `learned`; counts are drawn if None.
    """
    adata, keys, known = learned.adata, learned.keys, learned.known
    rows = np.sort(np.concatenate([group.rows for group in moved]))
    obs = predicted_obs(known, adata, rows, target, 1)
    obs["response"] = np.float32(1.0)
    x = _counts(learned, moved, rows, seed) if x is None else x
    result = AnnData(x, obs=obs, var=_var(adata, moved))
    layer = layer_of(keys.layer, keys.is_count, output)
    if layer is not None:
        result.layers[layer] = result.X.copy()
    if output == "counts" and keys.total_counts_key is not None:
        held = row_sums(values(adata, keys)[rows], len(rows))
        rest = np.maximum(totals(adata, keys)[rows] - held, 0.0)  # of the source cell
        result.obs[keys.total_counts_key] = row_sums(result.X, result.n_obs) + np.round(rest)
    factors = [group.factors for group in moved]
    cells, is_training = known.groups(adata.obs.iloc[rows]), np.ones(len(rows), dtype=bool)
    table = combination_table(known, cells, target, factors, is_training)
    remarks = known.conditions.remarks(target)
    notes = combination_notes(table, known, measured=not remarks and method != "no_change")
    result.uns[RECORD] = {
        "method": method,
        "keys": keys.named(),
        "target": level_name(target),
        "source": np.array(table["source"].unique(), dtype=object),
        "output": output,
        "scale": scale_name(keys.is_count, output),
        "kappa": learned.kappa,
        "n_genes": adata.n_vars,
        "n_samples": 1,
        "seed": int(seed),
        "combinations": table,
        "notes": np.array(notes + remarks, dtype=object),
        "versions": {"trvae_sc": version("trvae_sc")},
    }
    return result


def _counts(
    learned: Learned, moved: Sequence[Moved], rows: np.ndarray, seed: int
) -> sparse.csr_matrix:
    """Return the counts of rows, moved as their groups are."""
    x, total = values(learned.adata, learned.keys), totals(learned.adata, learned.keys)
    group = np.zeros(learned.adata.n_obs, dtype=int)
    for i, one in enumerate(moved):
        group[one.rows] = i
    ratio = np.stack([one.factors.of_target for one in moved])
    gain = np.maximum(np.stack([cast("np.ndarray", one.factors.gain) for one in moved]), 0.0)
    draws, parts = Draws(seed), []
    for at in np.array_split(rows, -(-len(rows) // _BATCH)):
        counts = sparse.csr_matrix(dense(x[at]), dtype=np.float32)
        own = group[at]
        added = gain[own] * total[at][:, None]
        parts.append(transport_counts(counts, ratio[own], added, None, draws))
    return sparse.vstack(parts, format="csr")


def _var(adata: AnnData, moved: Sequence[Moved]) -> pd.DataFrame:
    """Return the genes' columns; of a single label and source with its change and interval."""
    var = adata.var.copy()
    var.index.name = None
    if len(moved) > 1:
        return var
    return var.assign(**dict(zip(PREDICTED_VAR, moved[0].factors.change.columns(), strict=True)))
