"""Which cells a function of the family is asked about, and the AnnData it returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from trvae_sc.errors import InputError
from trvae_sc.expression import Keys, log_values
from trvae_sc.levels import codes_of, level_name
from trvae_sc.model import TRVAE, decoded
from trvae_sc.training import row_numbers

#: Cells: a row number, row numbers, a mask, or the values of columns of ``obs`` that they have.
Cells = int | Sequence[int] | np.ndarray | Mapping[str, Any]


def check_model(model: TRVAE) -> None:
    """Raise where a model is no trained TRVAE."""
    if not isinstance(model, TRVAE):
        name = type(model).__name__
        methods = ("generate", "interpolate", "encode", "decode") if hasattr(model, "train") else ()
        own = [m for m in methods if hasattr(model, m)]
        raise InputError(
            f"The model is a {name}; this is for a TRVAE with any preset."
            + (f" A {name} has methods of its own: {', '.join(own)}." if own else "")
        )
    model._check_if_trained(warn=False)


def rows_of(adata: AnnData, cells: Cells) -> np.ndarray:
    """Return the rows of cells given by row, rows, mask or columns of ``obs``; raise without any."""
    if isinstance(cells, Mapping):
        keep = np.ones(adata.n_obs, dtype=bool)
        for key, value in cells.items():
            if key not in adata.obs:
                raise InputError(f"No column {key!r} in adata.obs; there are {list(adata.obs)}.")
            codes, names = codes_of(adata.obs[key])
            if level_name(value) not in names:
                known = names[:10]
                raise InputError(f"No cell has {key} {value!r}; adata.obs[{key!r}] has {known}.")
            keep &= np.isin(codes, [i for i, n in enumerate(names) if n == level_name(value)])
        rows = np.flatnonzero(keep)
    else:
        rows = row_numbers(np.atleast_1d(cells), adata.n_obs)
    if not len(rows):
        raise InputError(f"No cell matches {cells!r}. Choose one at least.")
    return rows


def decoding_condition(model: TRVAE, adata: AnnData, rows: np.ndarray, condition: Any) -> Any:
    """Return the condition to decode with; None where the network does not see it."""
    if model.module.decoder_in.condition is None:
        if condition is not None:
            raise InputError(
                f"The preset '{model.preset_}' does not see the condition and cannot decode with "
                f"{condition!r}. Leave it out, or use a preset such as 'cvae'."
            )
        return None
    if condition is not None:
        return model.condition_space.level(condition)
    found = model.condition_space.column(adata.obs.iloc[rows]).unique().tolist()
    if len(found) > 1:
        raise InputError(f"The cells are of conditions {found}. Choose one with condition=.")
    return found[0]


def values_of(model: TRVAE, adata: AnnData) -> Any:
    """Return log(1 + kappa share) of counts, other values as they are; sparse stays sparse."""
    given = {name: model.registry_["setup_args"][name] for name in ("layer", "total_counts_key")}
    keys = Keys("", is_count=model.module.is_count, **given)
    return log_values(adata, keys, float(model.module.kappa))


def decoded_cells(
    model: TRVAE,
    adata: AnnData,
    rows: np.ndarray,
    z: np.ndarray,
    condition: Any,
    obs: pd.DataFrame,
    method: str,
) -> AnnData:
    """Return the cells that codes stand for, with the codes and where they come from.

    Batch and covariates are those of rows; so is the condition, where none is given.
    """
    x = decoded(model.trained, adata, rows, z, condition)
    if condition is not None:
        obs = obs.assign(**model.condition_space.columns([condition] * len(obs)))
    var = (adata if model.adata is None else model.adata).var.loc[adata.var_names]
    var = var.rename_axis(None)  # a column of that name may be there
    result = AnnData(x.astype(np.float32), obs=obs, var=var, obsm={"X_trvae": np.float32(z)})
    result.uns["trvae_sc"] = {
        "method": method,
        "preset": model.preset_,
        "scale": "log(1 + kappa * share)" if model.module.is_count else "values",
        "kappa": float(model.module.kappa),
        "versions": {"trvae_sc": version("trvae_sc")},
    }
    return result
