"""Cells with the genes of a model, by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from trvae_sc.checks import TOTAL_COLUMN, check_matrix, check_names, matrix
from trvae_sc.errors import InputError
from trvae_sc.hints import say_totals
from trvae_sc.identity import row_chunks, row_sums
from trvae_sc.levels import listing
from trvae_sc.stored import is_file

ALIGNMENT = "trvae_sc_alignment"  #: key of ``uns`` with what was filled in


def align(
    adata: AnnData, var_names: pd.Index, layer: str | None, total_counts_key: str | None = None
) -> AnnData:
    """Return a new AnnData over the same values whose genes are `var_names`, in that order.

    The object passed is not changed, and its values are not copied where the genes agree. Where training
    data got their totals from :func:`trvae_sc.evaluation.training_data`, sums over all its genes are.
    """
    check_matrix(adata, layer)
    sums = None
    if total_counts_key == TOTAL_COLUMN not in adata.obs:
        sums = all_totals(adata, len(var_names), layer)
    if not adata.var_names.equals(var_names):
        missing = var_names.difference(adata.var_names, sort=False)
        if len(missing):
            few = "Of a TRVAE trvae_sc.align_genes(adata, model) fills in a few."
            raise InputError(
                f"adata lacks {len(missing):,} of the {len(var_names):,} genes of the model: "
                f"{listing(missing)}. {other_names(adata, missing, var_names) or few}"
            )
        check_names(adata, "var_names")
        in_file = adata.isbacked or is_file(matrix(adata, layer))
        adata = _in_memory(adata, var_names, layer) if in_file else adata[:, var_names]
    layers = {} if layer is None else {layer: adata.layers[layer]}
    x = adata.X if layer is None else None
    var = pd.DataFrame(index=pd.Index(var_names, dtype=str))
    obs = adata.obs.copy() if sums is None else adata.obs.assign(**{TOTAL_COLUMN: sums})
    return AnnData(X=x, obs=obs, var=var, layers=layers)


def other_names(adata: AnnData, missing: pd.Index, wanted: pd.Index) -> str:
    """Return what to do where no gene is called as one that is wanted; nothing where some are."""
    if len(missing) < len(wanted):
        return ""
    return (
        f"It calls genes {listing(adata.var_names)}: where a column has the other names, adata.var_names = "
        "adata.var[...] takes them."
    )


def all_totals(adata: AnnData, n_genes: int, layer: str | None) -> np.ndarray:
    """Return sums over all genes, of which a model has some."""
    if adata.n_vars <= n_genes:
        raise InputError(
            f"The model was trained with totals over more genes than its own {n_genes}, which is all that "
            f"adata has. Pass cells with all genes, or with their totals in adata.obs['{TOTAL_COLUMN}']."
        )
    say_totals(adata.n_vars, TOTAL_COLUMN)
    return row_sums(matrix(adata, layer), adata.n_obs)


def _in_memory(adata: AnnData, var_names: pd.Index, layer: str | None) -> AnnData:
    """Return some genes of an AnnData whose values are in a file; the others are in memory by turns."""
    x = columns_of(matrix(adata, layer), adata.var_names.get_indexer(var_names))
    held = {"X": x} if layer is None else {"layers": {layer: x}}
    return AnnData(**held, obs=adata.obs, var=pd.DataFrame(index=var_names))


def columns_of(x: Any, at: np.ndarray) -> Any:
    """Return some columns of a matrix, in any order; of one in a file, or of dask, in memory."""
    if not is_file(x) and not hasattr(x, "compute"):
        return x[:, at]
    parts = [block[:, at] for _, block in row_chunks(x, x.shape[0])]
    return sparse.vstack(parts, "csr") if sparse.issparse(parts[0]) else np.concatenate(parts)
