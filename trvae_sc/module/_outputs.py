"""What a network says of a minibatch: aligned layers, expected values, likelihoods."""

from __future__ import annotations

import torch
from scvi.module.base import auto_move_data
from torch import Tensor

from trvae_sc.module._module import TRVAEModule


@torch.inference_mode()
@auto_move_data
def aligned(module: TRVAEModule, tensors: dict[str, Tensor]) -> Tensor:
    """Return y of a minibatch at the posterior mean of z."""
    return module.hidden_layers(module.encode(tensors).loc, module.context(tensors))[0]


@torch.inference_mode()
@auto_move_data
def expected_values(
    module: TRVAEModule, tensors: dict[str, Tensor], z: Tensor, condition: Tensor | None = None
) -> Tensor:
    """Return the expected share of each gene in a cell's total (or mean value), given z.

    Parameters
    ----------
    module
        The network.
    tensors
        Minibatch that batch and covariates are taken from.
    z
        Latent codes, shape (n_cells, n_latent).
    condition
        Features of the condition to decode with, shape (1, n_features); the cells' own if None.

    Returns
    -------
    Shape (n_cells, n_genes).
    """
    return expected_and_spared(module, tensors, z, condition)[0]


@torch.inference_mode()
@auto_move_data
def expected_and_spared(
    module: TRVAEModule, tensors: dict[str, Tensor], z: Tensor, condition: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return :func:`expected_values`, and the probability that zero inflation spares a gene."""
    features = None if condition is None else condition.expand(len(z), -1)
    hidden = module.hidden_layers(z, module.context(tensors, features))[1]
    expected = module.observation.expected(module.output(hidden))
    if module.zero_inflation is None:
        return expected, None
    spared = module.spared(hidden)
    return expected * spared, spared


@torch.inference_mode()
@auto_move_data
def ll_at_mean(module: TRVAEModule, tensors: dict[str, Tensor]) -> Tensor:
    """Return log p(x | z) at the posterior mean of z, in nats, shape (n_cells,)."""
    z, observation = module.encode(tensors).loc, module.observation
    made = module.generative(z, module.context(tensors), observation.total(tensors))
    return -observation.nll(tensors, made["profile"], made["px"]).cpu()


@torch.inference_mode()
@auto_move_data
def saturated_ll(module: TRVAEModule, tensors: dict[str, Tensor]) -> Tensor:
    """Return log p(x) where every mean is the observed value, in nats, shape (n_cells,)."""
    return -module.observation.saturated_nll(tensors).cpu()
