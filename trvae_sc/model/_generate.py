"""New cells from the prior or from posteriors of training cells."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from trvae_sc.arguments import check_seed, check_whole
from trvae_sc.errors import InputError
from trvae_sc.levels import level_name
from trvae_sc.model._calibration import Batch
from trvae_sc.model._counts import Draws
from trvae_sc.model._decode import predicted_values
from trvae_sc.model._predict import has_label
from trvae_sc.model._write import stacked

if TYPE_CHECKING:
    from trvae_sc.model._model import TRVAE


def generate_cells(
    model: TRVAE, condition: Any, n_obs: int, *, labels: Any, latent: str, seed: int
) -> AnnData:
    """Return new cells; see :meth:`TRVAE.generate`."""
    check_seed(seed)
    level = _check_generation(model, condition, n_obs, labels=labels, latent=latent)
    features = None if level is None else model._condition_features(level)
    adata = model._validate_anndata(None)
    setup_args = model.registry_["setup_args"]
    pool = np.arange(adata.n_obs)
    if labels is not None:
        pool = np.flatnonzero(has_label(adata, setup_args["labels_key"], labels))
    draws = Draws(seed)
    rows = draws.keep.choice(pool, size=n_obs)
    values = []
    for tensors in model._make_data_loader(adata, rows):
        qz = model.module.encode(tensors)
        noise = draws.latent.standard_normal(tuple(qz.loc.shape), dtype=np.float32)
        noise = torch.as_tensor(noise, device=qz.loc.device)
        z = noise if latent == "prior" else qz.loc + qz.scale * noise
        mean = model.module.expected(tensors, z, features).cpu().numpy()
        total = model.module._total(tensors)
        total = None if total is None else total.cpu().numpy()
        batch = Batch(mean, total, mean, mean, mean)
        values.append(predicted_values(model, batch, features, "sample", draws))
    obs = pd.DataFrame(index=[f"generated_{i}" for i in range(n_obs)])
    if level is not None:
        obs = obs.assign(**model._condition_values(level, n_obs))
    if labels is not None:
        obs[setup_args["labels_key"]] = adata.obs[setup_args["labels_key"]].iloc[rows].to_numpy()
    x = stacked(values, n_obs)
    if model.module.has_total:  # of the training cell; a draw of the genes may exceed it
        total = adata.obs[setup_args["total_counts_key"]].to_numpy(float)[rows]
        obs[setup_args["total_counts_key"]] = np.maximum(total, np.asarray(x.sum(axis=1)).ravel())
    result = AnnData(x, obs=obs, var=adata.var.copy())
    if setup_args["layer"] is not None:
        result.layers[setup_args["layer"]] = result.X.copy()
    result.uns["trvae_sc"] = {
        "method": "TRVAE.generate",
        **({} if level is None else {"condition": level_name(level)}),
        "latent": latent,
        "seed": int(seed),
        "versions": {name: version(name) for name in ("trvae_sc", "scvi-tools", "torch")},
    }
    return result


def _check_generation(model: TRVAE, condition: Any, n_obs: int, *, labels: Any, latent: str) -> Any:
    """Return the condition to generate cells of, or raise where the model cannot."""
    if latent not in ("prior", "posterior"):
        raise InputError(f"Unknown latent '{latent}'; choose 'prior' or 'posterior'.")
    if labels is not None and latent == "prior":
        raise InputError("The prior knows no labels: use latent='posterior' with labels.")
    if latent == "prior" and not model.module.variational:
        raise InputError(
            f"The preset '{model.preset_}' has no prior to draw from. Use latent='posterior', or a "
            "preset such as 'vae'."
        )
    check_whole("n_obs", n_obs)
    blind = model.module.decoder_in.condition is None
    if blind != (condition is None):
        raise InputError(
            f"The condition is {condition!r}, but the network of preset '{model.preset_}' "
            + ("does not see it: give None." if blind else f"needs one of {model.conditions}.")
        )
    return None if blind else model._condition_level(condition)
