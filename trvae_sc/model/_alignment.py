"""Another data set with the genes of a model, those it lacks filled in."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from trvae_sc.alignment import ALIGNMENT, all_totals, columns_of, other_names
from trvae_sc.arguments import check_number, check_trvae
from trvae_sc.checks import (
    TOTAL_COLUMN,
    check_matrix,
    check_names,
    check_obs,
    check_type,
    matrix,
)
from trvae_sc.errors import InputError
from trvae_sc.identity import row_sums
from trvae_sc.levels import listing
from trvae_sc.model._decode import mean_of
from trvae_sc.model._registration import AnnDataModel
from trvae_sc.model._trained import in_own_units
from trvae_sc.module import TRVAEModule

logger = logging.getLogger(__name__)


def align_genes(adata: AnnData, model: AnnDataModel, *, max_missing: float = 0.1) -> AnnData:
    """Return cells of another data set with the genes of a model, those they lack filled in.

    Genes are put in the order of the model and others left out. A gene that the cells lack gets the mean
    that it has in training: of counts its mean share times the cell's total, rounded. A total that is less
    than all counts then is raised to their sum.

    Parameters
    ----------
    adata
        Cells; not changed.
    model
        Trained model.
    max_missing
        Share of the model's genes that may be filled in.

    Returns
    -------
    Cells with the model's genes and its layer. ``uns["trvae_sc_alignment"]`` says what was done:
    ``missing`` (names), ``share_missing`` and ``n_left_out``; predictions from them carry a note.

    Raises
    ------
    InputError
        More genes are missing; the names of genes are not unique; there is no such layer; the model is no TRVAE,
        or was trained with totals over more genes than there are.
    """
    check_number("max_missing", max_missing, 0.0, 1.0)
    check_type(adata)
    check_names(adata)
    check_trvae(model)
    args, module = model.registry_["setup_args"], model.module
    layer, total_key = args["layer"], args["total_counts_key"]
    check_matrix(adata, layer)
    x = matrix(adata, layer)
    names = pd.Index(model.get_var_names())
    at = adata.var_names.get_indexer(names)
    is_missing = at < 0
    missing = names[is_missing]
    share = len(missing) / len(names)
    if share > max_missing:
        few = (
            f"At most {max_missing:.0%} are filled in (max_missing=); a model trained on the genes that both have "
            "predicts better."
        )
        raise InputError(
            f"adata lacks {len(missing):,} of the {len(names):,} genes of the model ({share:.0%}): "
            f"{listing(missing)}. {other_names(adata, missing, names) or few}"
        )
    obs, values = adata.obs.copy(), columns_of(x, at[~is_missing])
    if not module.is_count:
        total_key = None
    if total_key == TOTAL_COLUMN and total_key not in obs:
        obs[total_key] = all_totals(adata, len(names), layer)
    elif len(missing):
        check_obs(adata, [], [total_key])
    if len(missing):
        lacking = _training_means(model)[is_missing]
        values = _filled(values, lacking, is_missing, module, obs.get(total_key))
        if total_key is not None:
            held = row_sums(values, adata.n_obs)
            obs[total_key] = np.maximum(obs[total_key].to_numpy(np.float64), held)
    var = pd.DataFrame(index=names) if len(missing) else adata.var.reindex(names)
    found = AnnData(values, obs=obs, var=var, obsm=dict(adata.obsm), uns=dict(adata.uns))
    if layer is not None:
        found.layers[layer] = found.X
    n_left_out = int(adata.n_vars - (~is_missing).sum())
    found.uns[ALIGNMENT] = {
        "missing": np.array(missing, dtype=object),
        "share_missing": share,
        "n_left_out": n_left_out,
    }
    logger.info(
        "%d genes of the model were found, %d (%.1f %%) filled with their mean in training, and %d others "
        "left out.",
        *(len(names) - len(missing), len(missing), 100 * share, n_left_out),
    )
    return found


def _filled(
    present: Any,
    lacking: np.ndarray,
    is_missing: np.ndarray,
    module: TRVAEModule,
    totals: pd.Series | None,
) -> Any:
    """Return values of all genes of the model, from those present and the means of those that lack."""
    n_obs = present.shape[0]
    # means are not whole, and counts of uint8 have no room for those of other genes
    present = present.astype(np.result_type(present.dtype, np.float32))
    if not module.is_count:
        filled = np.broadcast_to(lacking, (n_obs, len(lacking)))
    else:
        if totals is None:  # a cell's total is that over the model's genes
            totals = row_sums(present, n_obs) / (1.0 - lacking.sum())
        filled = np.rint(np.outer(np.asarray(totals, dtype=np.float64), lacking))
    order = is_missing.argsort(kind="stable").argsort()  # from present and lacking to the model's
    if sparse.issparse(present):
        filled = sparse.csr_matrix(filled.astype(present.dtype))
        return sparse.hstack([present, filled], format="csr")[:, order]
    return np.concatenate([np.asarray(present), filled.astype(present.dtype)], axis=1)[:, order]


def _training_means(model: AnnDataModel) -> np.ndarray:
    """Return the mean share, or value, of each gene over the labels and conditions of training."""
    module, known = model.module, model.known
    f = in_own_units(module, module.profiles.cpu().numpy().astype(np.float64))
    mean = mean_of(module, f)
    return np.average(mean.reshape(-1, mean.shape[-1]), axis=0, weights=known.n_cells.ravel())
