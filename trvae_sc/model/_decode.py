"""From latent codes and decoded rates to values, and codes moved where the network does not see the condition."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse

from trvae_sc.errors import InputError
from trvae_sc.expression import Profiles
from trvae_sc.levels import as_text
from trvae_sc.model._calibration import Batch, dispersion
from trvae_sc.model._counts import Draws, by_row, draw_counts, minus_log_p_zero, transport_counts

if TYPE_CHECKING:
    from trvae_sc.model._model import TRVAE


def scaled(model: TRVAE, values: np.ndarray, total: np.ndarray | None) -> np.ndarray:
    """Return log(1 + kappa share) of counts (with their total) or shares; other values as they are."""
    if not model.module.is_count:
        return values
    kappa = model.module.kappa.item()
    shares = kappa * (values if total is None else values / total)
    return np.log1p(shares, out=shares)


def decoded(
    model: TRVAE, adata: AnnData, rows: np.ndarray, z: np.ndarray, condition: Any = None
) -> np.ndarray:
    """Return the expected values of latent codes, on the scale of ``predict(output="mean")``.

    Parameters
    ----------
    model
        Trained model.
    adata
        Registered AnnData.
    rows
        For each code the row that batch and covariates, and without `condition` the condition, are
        taken from.
    z
        Latent codes, shape (n_codes, n_latent).
    condition
        Condition to decode with; that of the row if None.

    Returns
    -------
    Shape (n_codes, n_genes).
    """
    features = None if condition is None else model._condition_features(condition)
    parts, done = [], 0
    for tensors in model._make_data_loader(adata, rows):
        n_codes = len(next(iter(tensors.values())))
        codes = torch.as_tensor(z[done : done + n_codes], dtype=torch.float32)
        done += n_codes
        expected = model.module.expected(tensors, codes.to(model.device), features)
        parts.append(scaled(model, expected.cpu().numpy(), None))
    return np.concatenate(parts)


def latent_shifts(model: TRVAE, sources: list[Any], target: Any) -> torch.Tensor | None:
    r"""Return how codes move from each source to the target; None where the network sees conditions.

    .. math:: \frac1L \sum_l (\bar z_{lt} - \bar z_{ls})

    with mean codes of the training cells, over the labels seen under both (Lotfollahi et al. 2019,
    doi:10.1038/s41592-019-0494-8, with every label weighing the same).

    Returns
    -------
    Shape (n_conditions, n_latent), NaN for conditions that are no source.

    Raises
    ------
    InputError
        No training cells are attached, the target was not measured, or no label was seen under both
        conditions.
    """
    if model.module.decoder_in.condition is not None:
        return None
    if model.adata is None or target not in model.conditions:
        lacks = "training cells" if model.adata is None else f"training cells under {target!r}"
        raise InputError(
            f"The preset '{model.preset_}' does not see the condition and predicts from the codes of "
            f"the training cells, but there are no {lacks}. Attach them (model.adata = adata), or use "
            "a preset that sees the condition, such as 'cvae'."
        )
    obs, z = model.adata.obs, model.get_latent_representation()
    labels_key = model.registry_["setup_args"]["labels_key"]
    label = np.full(len(obs), "all") if labels_key is None else as_text(obs[labels_key])
    condition = as_text(model._condition_column(obs))
    groups = pd.DataFrame({"label": np.asarray(label), "condition": np.asarray(condition)})
    rows = groups.groupby(["label", "condition"]).indices
    means = {group: z[at].mean(0) for group, at in rows.items()}
    known = Profiles(means, {group: len(at) for group, at in rows.items()}, 1.0)
    shifts = np.full((len(model.conditions), z.shape[1]), np.nan, dtype=np.float32)
    for source in sources:
        pairs = known.known_pairs(source, target, of=f"codes of {model.preset_!r}")
        shifts[model.conditions.index(source)] = pairs.shifts.mean(0)
    return torch.as_tensor(shifts, device=model.device)


def predicted_values(
    model: TRVAE, batch: Batch, target: torch.Tensor, output: str, draws: Draws
) -> np.ndarray | sparse.csr_matrix:
    """Return the predicted values of a batch."""
    module = model.module
    if output == "delta":
        return scaled(model, batch.observed, batch.total) + mean_change(model, batch, target)
    if output == "mean":
        return scaled(model, batch.target, None)
    if not module.is_count:
        scale = 1.0  # "mse": half the squared error is the likelihood of unit variance
        if module.gene_likelihood == "normal":
            scale = module.gene_scale.cpu().numpy() * dispersion(model, target)
        noise = draws.add.standard_normal(batch.target.shape, dtype=np.float32)
        return batch.target + scale * noise
    theta = dispersion(model, target)
    if output == "sample":
        return draw_counts(batch.target * batch.total, theta, draws.add)
    counts = by_row(batch.observed)
    ratio = batch.target / np.maximum(batch.source, 1e-30)
    gain = np.maximum(batch.target - batch.source, 0.0) if batch.gain is None else batch.gain
    return transport_counts(counts, ratio, gain * batch.total, theta, draws)


def predicted_totals(batch: Batch, counts: sparse.csr_matrix) -> np.ndarray:
    """Return the total of each predicted cell: what it holds, plus the rest of its genome.

    The rest is that of the source cell, changed as its share changes in the network; shape (n_cells,).
    """
    rest = batch.total.ravel() - batch.observed.sum(1, dtype=np.float64)
    start, end = (1.0 - rates.sum(1, dtype=np.float64) for rates in (batch.source, batch.target))
    ratio = np.clip(end / np.maximum(start, 1e-3), 0.0, 10.0)
    return np.asarray(counts.sum(1), np.float64).ravel() + np.round(np.maximum(rest, 0.0) * ratio)


def mean_change(model: TRVAE, batch: Batch, target: torch.Tensor) -> np.ndarray:
    """Return the change from source to target of each cell's expected value, logarithmic of counts."""
    if not model.module.is_count:
        return batch.target - batch.source
    present, codes = np.unique(batch.condition, return_inverse=True)
    own = dispersion(model, model.module.condition_design[present])
    if own is not None and len(own) > 1:
        own = own[codes]
    change = expected_log(model, batch.target, batch.total, dispersion(model, target))
    change -= expected_log(model, batch.source, batch.total, own)
    return change


def expected_log(
    model: TRVAE, shares: np.ndarray, total: np.ndarray, theta: np.ndarray | None
) -> np.ndarray:
    r"""Return what log(1 + kappa share) of a cell is on average, given its expected shares.

    .. math:: q \log(1 + \kappa r / q), \qquad q = 1 - (1 + t r / \theta)^{-\theta}

    with the probability q that a cell with t counts has any of the gene, as if all that do had the same
    number. The logarithm of the mean, log(1 + kappa r), is far above it for a gene that few cells show.

    Parameters
    ----------
    model
        Trained model, of counts.
    shares
        Expected shares r, shape (n_cells, n_genes).
    total
        Total counts t, shape (n_cells, 1).
    theta
        Inverse dispersion, broadcastable to `shares`; None for Poisson.

    Returns
    -------
    Shape (n_cells, n_genes).
    """
    q = -np.expm1(-minus_log_p_zero(shares * total, theta))
    np.maximum(q, np.finfo(q.dtype).tiny, out=q)
    return q * np.log1p(model.module.kappa.item() * (shares / q))
