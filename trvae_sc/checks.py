"""Checks of AnnData objects that fail before any work starts, and their alignment."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from trvae_sc.errors import InputError
from trvae_sc.identity import row_chunks
from trvae_sc.levels import SEPARATOR, as_list, check_complete, check_levels, levels, listing
from trvae_sc.roles import check_roles
from trvae_sc.stored import is_by_column, is_file, path_of

logger = logging.getLogger(__name__)
# scvi.settings.verbosity counts here too
logger.addFilter(lambda record: record.levelno >= logging.getLogger("scvi").level)

#: Columns that a prediction adds to ``obs`` and ``var``.
PREDICTED_OBS = ("source_condition", "source_cell", "response")
PREDICTED_VAR = (
    *("source_mean", "predicted_mean", "predicted_change"),
    *("change_lower", "change_upper"),
)
RECORD = "trvae_sc"  #: key of ``uns`` with the record of a prediction
OWN_COLUMNS = ("_scvi_", "_trvae_sc_")  #: how columns of ``obs`` begin that registrations write
#: Column of ``obs`` that totals over all genes are written to, where no other is named.
TOTAL_COLUMN = "trvae_sc_total_counts"
_COVARIATES = ("categorical_covariate_keys", "continuous_covariate_keys")
_SQUARABLE = 1e15  # of values above, squares may be no float32
_MOST = 2**31  # counts above are no counts of molecules, and overflow what they are drawn with
_AS_THEY_ARE = (
    "take the values as they are (gene_likelihood='normal'; of simple methods is_count=False)"
)
#: What is needed where values are no counts, and where it may be.
NEED_COUNTS = "raw counts. Pass them with layer=, those in adata.raw as adata.raw.to_adata()"


# -- checks of names and columns ------------------------------------------------------------------


def check_columns(
    adata: AnnData, setup_args: dict[str, Any], replicate_key: str | None = None
) -> None:
    """Raise on an AnnData that cannot be registered, before anything is written to it."""
    check_type(adata)
    check_free(adata)
    if adata.is_view:
        copied = "to_memory" if adata.isbacked else "copy"
        raise InputError(
            f"adata is a view of another AnnData. Set up a copy: adata = adata.{copied}()."
        )
    if adata.n_obs < 2:
        raise InputError(f"adata has {adata.n_obs} cells; at least 2 are needed.")
    if adata.n_vars < 1:
        raise InputError("adata has no genes; at least 1 is needed.")
    check_names(adata)
    check_matrix(adata, setup_args["layer"])
    condition_key, labels_key = setup_args["condition_key"], setup_args["labels_key"]
    conditions = [] if condition_key is None else condition_key
    conditions = [conditions] if isinstance(conditions, str) else conditions
    if not isinstance(conditions, Sequence) or (condition_key is not None and not conditions):
        raise InputError(
            f"condition_key is {condition_key!r}; name a column of adata.obs, or several in a list."
        )
    if len(set(map(str, conditions))) < len(conditions):
        raise InputError(
            f"condition_key is {condition_key}; name one column, or several different."
        )
    others = {name: setup_args.get(name) for name in ("batch_key", *_COVARIATES)}
    check_roles(conditions, labels_key, replicate_key=replicate_key, **others)
    if labels_key in adata.obs and adata.obs[labels_key].isna().any():
        raise InputError(
            f"adata.obs['{labels_key}'] is missing (NaN) in {int(adata.obs[labels_key].isna().sum()):,} cells. "
            "Fill it in or drop them; trvae_sc.predict_labels(adata, ...) finds the most likely labels."
        )
    check_obs(adata, [labels_key, replicate_key])
    check_other(adata, setup_args)
    if condition_key is None:
        return
    if not isinstance(condition_key, str):
        check_condition_parts(adata.obs, list(conditions))
    if len(adata.obs[list(conditions)].drop_duplicates()) < 2:
        only = " and ".join(f"adata.obs['{key}']" for key in conditions)
        raise InputError(
            f"{only} has one level, {levels(adata.obs[conditions[0]])}; a prediction needs at least "
            "two conditions to learn from. Models that see none ('vae', 'autoencoder') do without: "
            "condition_key=None."
        )


def check_names(adata: AnnData, *which: str) -> None:
    """Raise on names of cells or genes that are not unique; `which`: of ``obs_names``, ``var_names``."""
    for name in which or ("obs_names", "var_names"):
        index = getattr(adata, name)
        if not index.is_unique:
            repeated = index[index.duplicated()].unique()
            raise InputError(
                f"adata.{name} are not unique: {listing(repeated)} occur more than once. "
                f"Run adata.{name}_make_unique() first."
            )


def check_condition_parts(obs: pd.DataFrame, keys: Sequence[str]) -> None:
    """Raise on columns that cannot be parts of a condition."""
    for key in keys:
        if is_number(obs[key]):
            _check_finite(obs[key])
            continue
        bad = [level for level in levels(obs[key]) if SEPARATOR in str(level)]
        if bad:
            raise InputError(
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
    conditions = [] if condition_key is None else as_list(condition_key)
    labels = labels_key if labels_key in adata.obs else None
    covariates, numbers = (setup_args.get(name) or () for name in _COVARIATES)
    categorical = [*conditions, labels, setup_args.get("batch_key"), *covariates]
    check_obs(adata, categorical, [setup_args["total_counts_key"], *numbers])


def check_type(adata: Any) -> None:
    """Raise on anything but an AnnData whose names and columns are in memory."""
    if isinstance(adata, AnnData):
        if hasattr(adata.obs, "to_memory"):  # of anndata.experimental.read_lazy
            raise InputError(
                "adata.obs was read lazily, and is needed in memory. Only X may stay in its file: of an "
                "h5ad with anndata.read_h5ad(path, backed='r'), of a zarr store with adata.X = "
                "anndata.io.sparse_dataset(zarr.open_group(path)['X'])."
            )
        return
    found = f"Expected an AnnData, got {type(adata).__name__}."
    modalities = getattr(adata, "mod", None)
    if isinstance(modalities, Mapping):  # of a MuData
        names = list(modalities)
        of = names[0] if len(names) == 1 or "rna" not in names else "rna"
        raise InputError(f"{found} Pass one modality, as in mdata['{of}']; there are {names}.")
    if hasattr(adata, "to_adata"):  # adata.raw
        raise InputError(f"{found} Make one: adata.raw.to_adata().")
    if isinstance(adata, str | PathLike):
        raise InputError(f"{found} Read the file: anndata.read_h5ad({str(adata)!r}).")
    raise InputError(f"{found} Of a table make one with anndata.AnnData(table).")


def files_read(*given: Any) -> list[Path]:
    """Return the files that values of several AnnData, or None, are read from; raise on anything else."""
    paths: list[Path | None] = []
    for adata in given:
        if adata is None:
            continue
        check_type(adata)
        if adata.isbacked:
            paths.append(adata.filename)
        matrices = [adata.layers[name] for name in layer_names(adata)]
        matrices += [] if adata.isbacked else [adata.X]
        paths += [path_of(x) for x in matrices if is_file(x)]
    return [path for path in paths if path is not None]


def check_obs(
    adata: AnnData, categorical: Sequence[str | None], numeric: Sequence[str | None] = ()
) -> None:
    """Raise on columns that are absent, incomplete, of odd levels or, if numeric, no finite numbers."""
    check_type(adata)
    categorical = [key for key in categorical if key is not None]
    numeric = [key for key in numeric if key is not None]
    for key in [*categorical, *numeric]:
        if not isinstance(key, str):
            raise InputError(f"A column of adata.obs is named by text, not by {key!r}.")
        found = int((adata.obs.columns == key).sum())
        if not found:
            raise InputError(
                f"No column '{key}' in adata.obs; there are {list(adata.obs.columns)}."
            )
        if found > 1:
            raise InputError(f"adata.obs has {found} columns '{key}'. Rename or drop all but one.")
        check_complete(adata.obs[key])
    for key in categorical:
        check_levels(adata.obs[key])
    for key in numeric:
        _check_finite(adata.obs[key])


def check_free(adata: AnnData, *more: str) -> None:
    """Raise where columns have the names of those that a prediction writes; its own are replaced."""
    if RECORD in adata.uns:
        return
    for where, names in (("obs", (*PREDICTED_OBS, *more)), ("var", PREDICTED_VAR)):
        columns = getattr(adata, where, ())  # a collection has no var
        taken = [name for name in names if name in columns]
        if taken:
            raise InputError(
                f"adata.{where} already has columns {taken}, which predictions write. Rename or drop "
                "them."
            )


def _check_finite(column: pd.Series) -> None:
    """Raise on a column that holds infinite values, or no numbers: digits may be text."""
    name = f"adata.obs['{column.name}']"
    if not pd.api.types.is_numeric_dtype(column.dtype):
        raise InputError(
            f"{name} is not numeric (dtype {column.dtype}). Make it so: {name} = {name}.astype(float)."
        )
    if not np.isfinite(column.to_numpy(dtype=np.float64)).all():
        raise InputError(f"{name} holds infinite values. Replace them or drop the cells.")


def without_codes(obs: pd.DataFrame) -> pd.DataFrame:
    """Return the columns but those that registrations wrote."""
    return obs.drop(columns=[name for name in obs if str(name).startswith(OWN_COLUMNS)])


def layer_names(adata: AnnData) -> list[str]:
    """Return the names of layers."""
    # keys(): a collection's layers do not iterate; None is X in newer anndata
    return [name for name in adata.layers.keys() if name is not None]  # noqa: SIM118


# -- checks of values -------------------------------------------------------------------------------


def check_matrix(adata: AnnData, layer: str | None) -> None:
    """Raise where there is no matrix of real numbers, or one that rows cannot be read from."""
    if layer is not None and layer not in layer_names(adata):
        raise InputError(f"No layer '{layer}' in adata.layers; there are {layer_names(adata)}.")
    name = matrix_name(layer)
    try:
        x = matrix(adata, layer)
    except KeyError:  # of a file that has no X
        x = None
    if x is None:
        raise InputError(
            f"{name} is None. Name one of the layers {layer_names(adata)} with layer=."
        )
    if is_by_column(x):
        raise InputError(
            f"{name} is stored by column (CSC) in its file, from which cells cannot be read. Read the "
            "data into memory: adata = adata.to_memory()."
        )
    if isinstance(x, np.ma.MaskedArray):
        raise InputError(f"{name} is a masked array. Fill it in: {name}.filled(0).")
    dtype = getattr(x, "dtype", None)
    if dtype is not None and np.dtype(dtype).kind not in "iuf":
        raise InputError(
            f"{name} has dtype {dtype}; real numbers are needed: {name} = {name}.astype('float32')."
        )


def matrix(adata: AnnData, layer: str | None) -> Any:
    """Return the values: a layer, or X if None."""
    return adata.X if layer is None else adata.layers[layer]


def matrix_name(layer: str | None) -> str:
    """Return how the values are written in Python."""
    return "adata.X" if layer is None else f"adata.layers['{layer}']"


def check_values(
    x: Any, *, is_count: bool, totals: np.ndarray | None, name: str, n_obs: int | None = None
) -> None:
    """Raise on values (`name`, in messages) that the likelihood cannot take.

    `totals` are those of each cell over all its genes, if they are known; `n_obs` is the number of cells, where
    `x` does not know it (the layers of an AnnCollection).
    """
    for start, block in row_chunks(x, x.shape[0] if n_obs is None else n_obs):
        values = block.data if sparse.issparse(block) else np.asarray(block)
        if not np.isfinite(values).all():
            n = int((~np.isfinite(values)).sum())
            raise InputError(
                f"{name} holds {n} NaN or infinite values in cells from row {start} on. Replace them, "
                "or drop those cells or genes."
            )
        if not is_count:
            largest = float(np.abs(values).max(initial=0))
            if largest > _SQUARABLE:
                raise InputError(
                    f"{name} holds values up to {largest:.3g}, beyond what can be computed with. Divide them, "
                    "or take logarithms."
                )
            continue
        if values.min(initial=0) < 0:
            raise InputError(
                f"{name} holds negative values (smallest {values.min():.3g}); count likelihoods need "
                f"{NEED_COUNTS}, or {_AS_THEY_ARE}."
            )
        if (values != np.floor(values)).any():
            raise InputError(
                f"{name} holds fractional values (largest {values.max():.3g}){_log_hint(values)}; count "
                f"likelihoods need {NEED_COUNTS}, or {_AS_THEY_ARE}."
            )
        if float(values.max(initial=0)) > _MOST:  # in float16 the limit is infinite
            raise InputError(
                f"{name} holds values up to {values.max():.3g}, which are no counts of molecules. Pass "
                f"raw counts with layer=, or {_AS_THEY_ARE}."
            )
        sums = np.asarray(block.sum(axis=1, dtype=np.float64)).ravel()
        _check_totals(sums, None if totals is None else totals[start : start + len(sums)], start)


def looks_like_counts(x: Any, n_obs: int | None = None, *, least: float = 0) -> bool:
    """Return whether a matrix holds nothing but counts, the largest of them `least` or more."""
    largest = 0.0
    for _, block in row_chunks(x, x.shape[0] if n_obs is None else n_obs):
        values = block.data if sparse.issparse(block) else np.asarray(block)
        if (
            not np.isfinite(values).all()
            or (values < 0).any()
            or (values != np.floor(values)).any()
        ):
            return False
        largest = max(largest, float(values.max(initial=0)))
    return largest >= least


def _log_hint(values: np.ndarray) -> str:
    """Return what fractional values may be: most of log-normalised values are, and all are small."""
    is_log = values.max() < 25 and np.mean(values[values > 0] % 1 != 0) > 0.5
    return ", as log-normalised data do" if is_log else ""


def _check_totals(sums: np.ndarray, totals: np.ndarray | None, start: int) -> None:
    """Raise on cells without counts and on totals that cannot be."""
    empty = sums <= 0 if totals is None else (sums <= 0) & (totals <= 0)
    if empty.any():
        rows = start + np.flatnonzero(empty)
        raise InputError(
            f"{len(rows)} or more cells have no counts (rows {listing(rows.tolist())}). Remove them: "
            "sc.pp.filter_cells(adata, min_counts=1)."
        )
    if totals is not None and (totals < sums * (1 - 1e-6)).any():
        row = start + int(np.flatnonzero(totals < sums * (1 - 1e-6))[0])
        raise InputError(
            f"The total counts of row {row} ({totals[row - start]:g}) are below the sum over the "
            f"registered genes ({sums[row - start]:g}). Totals are those of the whole cell."
        )
