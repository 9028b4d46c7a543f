"""Checks of AnnData objects that fail before any work starts, and their alignment."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from trvae_sc.training import is_file

logger = logging.getLogger(__name__)
# scvi.settings.verbosity counts here too
logger.addFilter(lambda record: record.levelno >= logging.getLogger("scvi").level)

_PREDICTED_COLUMNS = ("source_condition", "source_cell")
_CHUNK = 4096  # rows read at a time when values are checked
_SHOWN = 5  # names listed in messages
SEPARATOR = " + "  #: joins the parts of a condition in its name


# -- checks of names and columns ------------------------------------------------------------------


def check_columns(
    adata: AnnData,
    condition_key: str | Sequence[str],
    *,
    labels_key: str | None = None,
    layer: str | None = None,
    batch_key: str | None = None,
    total_counts_key: str | None = None,
    categorical_covariate_keys: Sequence[str] | None = None,
    continuous_covariate_keys: Sequence[str] | None = None,
) -> None:
    """Raise on an AnnData that cannot be registered, before anything is written to it.

    Raises
    ------
    TypeError, KeyError, ValueError
        With what was found, what is allowed and what to do.
    """
    check_type(adata)
    check_free(adata)
    if adata.is_view:
        raise ValueError("adata is a view of another AnnData. Set up a copy: adata = adata.copy().")
    if adata.n_obs < 2:
        raise ValueError(f"adata has {adata.n_obs} cells; at least 2 are needed.")
    for name, index in (("obs_names", adata.obs_names), ("var_names", adata.var_names)):
        if not index.is_unique:
            repeated = index[index.duplicated()].unique()
            raise ValueError(
                f"adata.{name} are not unique: {listing(repeated)} occur more than once. "
                f"Run adata.{name}_make_unique() first."
            )
    if layer is not None and layer not in _layer_names(adata):
        raise KeyError(f"No layer '{layer}' in adata.layers; there are {_layer_names(adata)}.")
    if layer is None and adata.X is None:
        raise ValueError(
            f"adata.X is None. Name one of the layers {_layer_names(adata)} with layer=."
        )
    conditions = [condition_key] if isinstance(condition_key, str) else list(condition_key)
    if not conditions or len(set(conditions)) < len(conditions):
        raise ValueError(
            f"condition_key is {condition_key}; name one column, or several different."
        )
    categorical = [*conditions, labels_key, batch_key, *(categorical_covariate_keys or ())]
    numeric = [total_counts_key, *(continuous_covariate_keys or ())]
    _check_obs(adata, categorical, numeric)
    if not isinstance(condition_key, str):
        _check_condition_parts(adata.obs, conditions)
    if len(adata.obs[conditions].drop_duplicates()) < 2:
        only = " and ".join(f"adata.obs['{key}']" for key in conditions)
        raise ValueError(
            f"{only} has one level, {levels(adata.obs[conditions[0]])}; a prediction needs at least "
            "two conditions to learn from."
        )


def _check_condition_parts(obs: pd.DataFrame, keys: Sequence[str]) -> None:
    """Raise on columns that cannot be parts of a condition."""
    for key in keys:
        if is_number(obs[key]):
            if not np.isfinite(_numbers(obs, key)).all():
                raise ValueError(
                    f"adata.obs['{key}'] holds infinite values. Replace them or drop the cells."
                )
            continue
        bad = [level for level in levels(obs[key]) if SEPARATOR in str(level)]
        if bad:
            raise ValueError(
                f"Levels {listing(bad)} of adata.obs['{key}'] contain '{SEPARATOR}', which joins the "
                "parts of a condition. Rename them."
            )


def is_number(column: pd.Series) -> bool:
    """Return whether a column enters a condition as a number rather than as levels."""
    dtype = column.dtype
    return pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_bool_dtype(dtype)


def check_other(adata: AnnData, setup_args: dict[str, Any]) -> None:
    """Raise where an AnnData lacks a column that a model was set up with; labels may be absent."""
    labels_key, condition_key = setup_args["labels_key"], setup_args["condition_key"]
    categorical = [
        *(condition_key if isinstance(condition_key, list | tuple) else [condition_key]),
        labels_key if labels_key in adata.obs else None,
        setup_args["batch_key"],
        *(setup_args["categorical_covariate_keys"] or ()),
    ]
    numeric = [setup_args["total_counts_key"], *(setup_args["continuous_covariate_keys"] or ())]
    _check_obs(adata, categorical, numeric)


def check_type(adata: Any) -> None:
    """Raise on anything but an AnnData."""
    if not isinstance(adata, AnnData):
        raise TypeError(
            f"Expected an AnnData, got {type(adata).__name__}. Of a MuData pass one modality, as in "
            "mdata['rna']; of a table make one with anndata.AnnData(table)."
        )


def _check_obs(
    adata: AnnData, categorical: Sequence[str | None], numeric: Sequence[str | None]
) -> None:
    """Raise on columns that are absent, incomplete or, if numeric, not finite numbers."""
    for key in [*categorical, *numeric]:
        if key is None:
            continue
        if key not in adata.obs:
            raise KeyError(f"No column '{key}' in adata.obs; there are {list(adata.obs.columns)}.")
        if adata.obs[key].isna().any():
            n = int(adata.obs[key].isna().sum())
            raise ValueError(
                f"adata.obs['{key}'] is missing (NaN) in {n} cells. Fill it in or drop them."
            )
    for key in numeric:
        if key is not None and not np.isfinite(_numbers(adata.obs, key)).all():
            raise ValueError(
                f"adata.obs['{key}'] holds infinite values. Replace them or drop the cells."
            )


def check_free(adata: AnnData, *more: str) -> None:
    """Raise where columns have the names of those that a prediction writes."""
    taken = [name for name in (*_PREDICTED_COLUMNS, *more) if name in adata.obs]
    if taken:
        raise ValueError(
            f"adata.obs already has columns {taken}, which predictions write. Rename or drop them."
        )


def _numbers(obs: pd.DataFrame, key: str) -> np.ndarray:
    """Return a numeric column, or raise."""
    try:
        return obs[key].to_numpy(dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"adata.obs['{key}'] is not numeric (dtype {obs[key].dtype}).") from None


def levels(column: pd.Series) -> list[Any]:
    """Return the levels present in a column, sorted; as Python objects, in category order if any."""
    present = column.unique()
    if isinstance(column.dtype, pd.CategoricalDtype) and column.cat.ordered:
        return [v for v in column.cat.categories.tolist() if v in set(present)]
    values = pd.Series(present).astype(object).tolist()
    try:
        return sorted(values)
    except TypeError:  # mixed types
        return sorted(values, key=lambda v: (type(v).__name__, str(v)))


def _layer_names(adata: AnnData) -> list[str]:
    # keys(): a collection's layers do not iterate; None is X in newer anndata
    return [name for name in adata.layers.keys() if name is not None]  # noqa: SIM118


def listing(names: Sequence[Any]) -> str:
    """Return the first names, and how many more there are."""
    shown = ", ".join(repr(n) for n in list(names)[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


# -- checks of values -------------------------------------------------------------------------------


def row_chunks(x: Any, n_obs: int, size: int = _CHUNK) -> Iterator[tuple[int, Any]]:
    """Yield blocks of rows of any matrix AnnData can hold, in memory."""
    for start in range(0, n_obs, size):
        block = x[start : start + size]
        yield start, block.compute() if hasattr(block, "compute") else block


def check_values(
    x: Any, *, is_count: bool, totals: np.ndarray | None, name: str, n_obs: int | None = None
) -> None:
    """Raise on values that the likelihood cannot take.

    Parameters
    ----------
    x
        Cells x genes.
    is_count
        Whether the likelihood is one of counts.
    totals
        Total counts of each cell over all its genes, or None.
    name
        Where the values are, for messages.
    n_obs
        Number of cells, where `x` does not know it (the layers of an AnnCollection).

    Raises
    ------
    ValueError
        NaN or infinite values; for counts also negative or fractional values, cells without
        counts, and totals below the sum over the genes.
    """
    for start, block in row_chunks(x, x.shape[0] if n_obs is None else n_obs):
        values = block.data if sparse.issparse(block) else np.asarray(block)
        if not np.isfinite(values).all():
            n = int((~np.isfinite(values)).sum())
            raise ValueError(
                f"{name} holds {n} NaN or infinite values in cells from row {start} on. Replace them, "
                "or drop those cells or genes."
            )
        if not is_count:
            continue
        if values.size and values.min() < 0:
            raise ValueError(
                f"{name} holds negative values (smallest {values.min():.3g}); count likelihoods need "
                "raw counts. Pass them with layer=, or use gene_likelihood='normal'."
            )
        if (values != np.floor(values)).any():
            raise ValueError(
                f"{name} holds fractional values (largest {values.max():.3g}){_log_hint(values)}; count "
                "likelihoods need raw counts. Pass them with layer=, or use gene_likelihood='normal'."
            )
        sums = np.asarray(block.sum(axis=1)).ravel()
        _check_totals(sums, None if totals is None else totals[start : start + len(sums)], start)


def _log_hint(values: np.ndarray) -> str:
    """Return what fractional values may be: most of log-normalised values are, and all are small."""
    is_log = values.max() < 25 and np.mean(values[values > 0] % 1 != 0) > 0.5
    return ", as log-normalised data do" if is_log else ""


def _check_totals(sums: np.ndarray, totals: np.ndarray | None, start: int) -> None:
    """Raise on cells without counts and on totals that cannot be."""
    seen = sums if totals is None else totals
    if (seen <= 0).any():
        rows = start + np.flatnonzero(seen <= 0)
        raise ValueError(
            f"{len(rows)} or more cells have no counts (rows {listing(rows.tolist())}). Remove them: "
            "sc.pp.filter_cells(adata, min_counts=1)."
        )
    if totals is not None and (totals < sums * (1 - 1e-6)).any():
        row = start + int(np.flatnonzero(totals < sums * (1 - 1e-6))[0])
        raise ValueError(
            f"The total counts of row {row} ({totals[row - start]:g}) are below the sum over the "
            f"registered genes ({sums[row - start]:g}). Totals are those of the whole cell."
        )


def _is_in_file(adata: AnnData) -> bool:
    """Return whether X of an AnnData is in a file."""
    return adata.isbacked or is_file(adata.X)


def _in_memory(adata: AnnData, var_names: pd.Index) -> AnnData:
    """Return some genes of an AnnData whose X is in a file; the others are in memory by turns."""
    genes = adata.var_names.get_indexer(var_names)
    parts = [block[:, genes] for _, block in row_chunks(adata.X, adata.n_obs)]
    x = sparse.vstack(parts, "csr") if sparse.issparse(parts[0]) else np.concatenate(parts)
    layers = {name: adata.layers[name][:, genes] for name in _layer_names(adata)}
    return AnnData(x, obs=adata.obs, var=pd.DataFrame(index=var_names), layers=layers)


# -- other AnnData objects ---------------------------------------------------------------------------


def align(adata: AnnData, var_names: pd.Index, layer: str | None) -> AnnData:
    """Return a new AnnData over the same values whose genes are `var_names`, in that order.

    The object passed is not changed, and its values are not copied where the genes agree.

    Raises
    ------
    ValueError
        Genes are missing or not unique.
    """
    if not adata.var_names.equals(var_names):
        missing = var_names.difference(adata.var_names, sort=False)
        if len(missing):
            raise ValueError(
                f"adata lacks {len(missing)} of the {len(var_names)} genes of the model: "
                f"{listing(missing)}."
            )
        if not adata.var_names.is_unique:
            raise ValueError("adata.var_names are not unique. Run adata.var_names_make_unique().")
        adata = _in_memory(adata, var_names) if _is_in_file(adata) else adata[:, var_names]
    if layer is not None and layer not in _layer_names(adata):
        raise KeyError(f"No layer '{layer}' in adata.layers; there are {_layer_names(adata)}.")
    layers = {} if layer is None else {layer: adata.layers[layer]}
    x = adata.X if layer is None else None
    var = pd.DataFrame(index=pd.Index(var_names, dtype=str))
    return AnnData(X=x, obs=adata.obs.copy(), var=var, layers=layers)
