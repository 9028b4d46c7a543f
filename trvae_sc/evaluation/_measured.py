"""Measured cells that predictions are compared with."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData

from trvae_sc.alignment import columns_of, other_names
from trvae_sc.checks import (
    TOTAL_COLUMN,
    check_matrix,
    check_names,
    check_obs,
    check_type,
    looks_like_counts,
    matrix_name,
)
from trvae_sc.condition_sets import split
from trvae_sc.errors import InputError, naming
from trvae_sc.expression import Keys, cells_at, in_memory, totals, values
from trvae_sc.identity import among, cell_marks
from trvae_sc.levels import as_text

TOTAL = "_trvae_sc_total"  #: column with the totals over the genes that the prediction counts
CONDITION = "_trvae_sc_condition"  #: column with the joint condition
_COUNTS = 30  # whole numbers up to there may be levels of some other kind


def label_column(adata: AnnData, keys: Keys) -> pd.Series:
    """Return the label of each cell as text; ``"all"`` without labels."""
    if keys.labels_key is None:
        return pd.Series("all", index=adata.obs_names)
    return as_text(adata.obs[keys.labels_key])


def measured_cells(adata: AnnData, predicted: AnnData, keys: Keys, name: str) -> AnnData:
    """Return measured cells with the prediction's genes, and the condition and total of each in columns.

    Cells without label or condition are left out.
    """
    with naming(name):
        check_type(adata)
        check_names(adata, "var_names")
    needed = [*keys.condition_columns, keys.labels_key]
    columns = [key for key in needed if key in adata.obs]
    known = adata.obs[columns].notna().all(axis=1).to_numpy()
    adata = adata if known.all() else cells_at(adata, known)
    with naming(name):
        check_obs(adata, needed)
        check_matrix(adata, keys.layer)
    missing = predicted.var_names.difference(adata.var_names)
    if len(missing):
        few = "Pass measured cells with all of them."
        with naming(name):
            raise InputError(
                f"adata lacks {len(missing)} of the {predicted.n_vars} predicted genes, such as "
                f"{missing[:3].tolist()}. {other_names(adata, missing, predicted.var_names) or few}"
            )
    if keys.is_count:
        if not looks_like_counts(values(adata, keys), adata.n_obs):
            where = matrix_name(keys.layer).replace("adata", name, 1)
            raise InputError(
                f"{where} holds no counts (negative or fractional values), and the prediction was made from counts. "
                f"If a layer has them: {where} = {name}.layers[...]."
            )
    elif _are_other_counts(adata, predicted, keys):
        raise InputError(
            f"{name} holds counts, and the prediction was made from other values. Pass the values that "
            "the model was set up with, in the same layer."
        )
    genes = adata.var_names.get_indexer(predicted.var_names)
    found = AnnData(
        columns_of(values(adata, keys), genes),
        obs=pd.DataFrame(index=adata.obs_names.copy()),
        var=pd.DataFrame(index=predicted.var_names.copy()),
    )
    if keys.layer is not None:
        found.layers[keys.layer] = found.X
    conditions = as_text(keys.conditions(adata.obs))
    found.obs[CONDITION] = _as_predicted(conditions, predicted, keys).to_numpy()
    if keys.labels_key is not None:
        found.obs[keys.labels_key] = adata.obs[keys.labels_key].to_numpy()
    if keys.is_count:
        found.obs[TOTAL] = _totals(adata, found, keys, name)
    _check_not_predicted(found, predicted, name)
    return found


def _check_not_predicted(cells: AnnData, predicted: AnnData, name: str) -> None:
    """Raise where measured cells are, or have among them, the predicted ones, by the names and values of these."""
    if "source_cell" not in predicted.obs:
        return
    there = np.flatnonzero(predicted.obs_names.isin(cells.obs_names))
    names = zip(predicted.obs_names[there], predicted.obs["source_cell"].iloc[there], strict=True)
    there = there[[str(own).startswith(f"{start}_") for own, start in names]]
    if 2 * len(there) <= predicted.n_obs:
        return
    known = cells.obs_names.isin(predicted.obs_names[there])
    marks = np.sort(cell_marks(cells.X)[known])
    n_there = among(cell_marks(predicted.X, predicted.n_obs)[there], marks).sum()
    if 2 * n_there > predicted.n_obs:
        raise InputError(
            f"{name} holds {n_there:,} of the {predicted.n_obs:,} predicted cells, which would be compared with "
            "themselves. Pass measured cells alone."
        )


def _as_predicted(conditions: pd.Series, predicted: AnnData, keys: Keys) -> pd.Series:
    """Return sets of parts as they are called in a prediction, whatever the order of their parts."""
    separator, obs = keys.condition_separator, predicted.obs
    if separator is None:
        return conditions
    names = [*as_text(obs["source_condition"]).unique(), *as_text(keys.conditions(obs)).unique()]
    called = {frozenset(split(name, separator)): name for name in names}
    return conditions.map(
        {name: called.get(frozenset(split(name, separator)), name) for name in conditions.unique()}
    )


def _are_other_counts(adata: AnnData, predicted: AnnData, keys: Keys) -> bool:
    """Return whether measured values are counts and those predicted are not, as far as it shows.

    Whole numbers may be intensities: then those predicted are as large, which logarithms never are.
    """
    if not looks_like_counts(values(adata, keys), adata.n_obs, least=_COUNTS):
        return False
    genes = adata.var_names.get_indexer(predicted.var_names)
    x, measured = in_memory(predicted.X), columns_of(values(adata, keys), genes)
    return bool(x.max() < _COUNTS or not 0.5 < x.mean() / measured.mean() < 2.0)


def _totals(adata: AnnData, found: AnnData, keys: Keys, name: str) -> np.ndarray:
    """Return the totals of measured cells, over the genes that the prediction counts them over."""
    key = keys.total_counts_key
    if key is None:
        return totals(found, keys)
    if key in adata.obs:
        with naming(name):
            check_obs(adata, [], [key])
        return totals(adata, keys)
    if key == TOTAL_COLUMN and adata.n_vars > found.n_vars:
        return totals(adata, keys._replace(total_counts_key=None))
    raise InputError(
        f"The prediction counts totals over whole cells, and {name} has neither their column "
        f"'{key}' in obs nor more genes to add up. Pass the cells with all genes, or with that column."
    )
