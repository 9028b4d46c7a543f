"""New cells from the prior or from posteriors of training cells."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from trvae_sc.arguments import check_seed, check_whole
from trvae_sc.errors import InputError
from trvae_sc.levels import level_name
from trvae_sc.model._codes import check_output, record
from trvae_sc.model._counts import Draws
from trvae_sc.model._decode import Batch, decoded_arrays, predicted_values
from trvae_sc.model._predict import check_weights, has_label
from trvae_sc.model._trained import Trained
from trvae_sc.model._write import stacked


def generate_cells(
    trained: Trained,
    adata: AnnData,
    condition: Any,
    n_obs: int,
    *,
    labels: Any,
    latent: str,
    output: str,
    seed: int,
) -> AnnData:
    """Return new cells; see :meth:`TRVAE.generate`. `adata` are the registered training cells."""
    module = trained.module
    check_seed(seed)
    check_output(output)
    level = _check_generation(trained, condition, n_obs, labels=labels, latent=latent)
    check_weights(module)
    features = None if level is None else trained.features(level)
    pool = np.arange(adata.n_obs)
    if labels is not None:
        pool = np.flatnonzero(has_label(adata, trained.labels_key, labels))
    draws = Draws(seed)
    rows = draws.keep.choice(pool, size=n_obs)
    values, codes = [], []
    for tensors in trained.batches(adata, rows):
        qz = module.encode(tensors)
        noise = draws.latent.standard_normal(tuple(qz.loc.shape), dtype=np.float32)
        noise = torch.as_tensor(noise, device=qz.loc.device)
        z = noise if latent == "prior" else qz.loc + qz.scale * noise
        codes.append(z.cpu().numpy())
        mean, kept = decoded_arrays(module, tensors, z, features)
        total = module.observation.total(tensors)
        total = None if total is None else total.cpu().numpy()
        spared = None if kept is None else [kept]
        batch = Batch(mean, total, mean, mean, mean, mean, spared=spared)
        values.append(predicted_values(module, batch, features, output, draws))
    obs = pd.DataFrame(index=[f"generated_{i}" for i in range(n_obs)])
    if level is not None:
        obs = obs.assign(**trained.conditions.columns([level] * n_obs))
    if labels is not None:
        obs[trained.labels_key] = adata.obs[trained.labels_key].iloc[rows].to_numpy()
    x = stacked(values, n_obs)
    if module.has_total:  # of the training cell; a draw of the genes may exceed it
        total = adata.obs[trained.total_counts_key].to_numpy(float)[rows]
        drawn = np.asarray(x.sum(axis=1)).ravel() if output == "sample" else total
        obs[trained.total_counts_key] = np.maximum(total, drawn)
    z = np.concatenate(codes)
    result = AnnData(x, obs=obs, var=adata.var.copy(), obsm={"X_trvae": z})
    if trained.layer is not None:
        result.layers[trained.layer] = result.X.copy()
    result.uns["trvae_sc"] = {
        **record(trained, "TRVAE.generate", output, seed),
        **({} if level is None else {"condition": level_name(level)}),
        "latent": latent,
    }
    return result


def _check_generation(
    trained: Trained, condition: Any, n_obs: int, *, labels: Any, latent: str
) -> Any:
    """Return the condition to generate cells of, or raise where the model cannot."""
    if latent not in ("prior", "posterior"):
        raise InputError(f"Unknown latent '{latent}'; choose 'prior' or 'posterior'.")
    if labels is not None and latent == "prior":
        raise InputError("The prior knows no labels: use latent='posterior' with labels.")
    if latent == "prior" and not trained.module.variational:
        raise InputError(
            f"The preset '{trained.preset}' has no prior to draw from. Use latent='posterior', or a "
            "preset such as 'vae'."
        )
    check_whole("n_obs", n_obs)
    blind = trained.module.decoder_in.condition is None
    if blind and condition is not None:
        raise InputError(
            f"The condition is {condition!r}, but the network of preset '{trained.preset}' does not see "
            "it: give condition=None."
        )
    if condition is None and not blind:
        known = [*trained.conditions.levels]
        raise InputError(
            f"No condition is given, but the network of preset '{trained.preset}' needs one of {known}: "
            f"give condition={known[0]!r}."
        )
    return None if blind else trained.conditions.level(condition)
