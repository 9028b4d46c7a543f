"""How unlike the training cells a cell is."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from trvae_sc.errors import InputError
from trvae_sc.model import NOT_TRAINED, TRVAE

_SAMPLES_PER_PASS = 8


def outlier_score(
    model: TRVAE,
    adata: AnnData | None = None,
    *,
    reference: AnnData | None = None,
    n_samples: int = 32,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Score cells by how badly the model explains them, against cells it was trained on.

    The log-likelihood of a cell is estimated by importance sampling (Burda et al. 2016,
    arXiv:1509.00519); an autoencoder and ``mse`` have none, and the log-likelihood (half the squared
    error) at the posterior mean takes its place:

    .. math:: \log \hat p(x) = \log \frac1S \sum_{s} \frac{p(x \mid z_s)\,p(z_s)}{q(z_s \mid x)},
       \qquad z_s \sim q(z \mid x)

    It is no score of outliers as it stands: deep cells and cells that express many genes have a low one
    however well they fit (Nalisnick et al. 2019, arXiv:1810.09136). What is ranked is the deviance, the
    distance to the log-likelihood that a perfect fit of the same cell would have,

    .. math:: d(x) = \log p(x \mid \mathrm{mean} = x) - \log \hat p(x)

    Parameters
    ----------
    model
        Trained model, any preset.
    adata
        Cells to score, with the genes of the model and conditions it knows; the model's own if None.
        Not changed.
    reference
        Cells that are no outliers; the model's training cells if None. Better are cells of the same
        kind that were held back: to training cells the network, if it is large, fits a little better
        than to any others.
    n_samples
        Samples S of each cell's posterior.
    seed
        Seed of the samples.

    Returns
    -------
    A row per cell: ``log_likelihood``, in nats; ``deviance``, in nats, the higher the less like the
    training cells; and ``p_value``, the share of reference cells whose deviance is as high,
    :math:`(1 + \#\{d_i \ge d\}) / (n + 1)`: uniform for cells like them, small for outliers. Cells of a
    kind the model can compose from what it knows, such as types between others, are not found.

    Raises
    ------
    NotTrainedError
        The model is not trained.
    InputError
        `n_samples` is below 1, or there are no reference cells.
    """
    model._check_if_trained(warn=False, message=NOT_TRAINED)
    if n_samples < 1:
        raise InputError(f"n_samples is {n_samples}; at least 1 is needed.")
    known = model._validate_anndata(reference)
    scored = known if adata is None and reference is None else model._validate_anndata(adata)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        of_known = _deviance(model, known, n_samples)
        found = of_known if scored is known else _deviance(model, scored, n_samples)
    deviance = found["deviance"].to_numpy()
    below = np.searchsorted(np.sort(of_known["deviance"].to_numpy()), deviance, side="left")
    return found.assign(p_value=(1 + len(of_known) - below) / (1 + len(of_known)))


def _deviance(model: TRVAE, adata: AnnData, n_samples: int) -> pd.DataFrame:
    """Return log-likelihood and deviance of registered cells."""
    module, fitted, saturated = model.module, [], []
    for tensors in model._make_data_loader(adata):
        if module.variational and module.gene_likelihood != "mse":
            per_pass = min(n_samples, _SAMPLES_PER_PASS)
            ll = module.marginal_ll(tensors, n_samples, n_mc_samples_per_pass=per_pass)
        else:
            ll = module.ll_at_mean(tensors)
        fitted.append(ll.numpy())
        saturated.append(module.saturated_ll(tensors).numpy())
    ll, best = np.concatenate(fitted).astype(float), np.concatenate(saturated)
    return pd.DataFrame({"log_likelihood": ll, "deviance": best - ll}, index=adata.obs_names)
