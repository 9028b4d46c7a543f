"""Draws from the posterior predictive, and likelihoods of cells."""

from __future__ import annotations

import math
from typing import Any

import torch
from scvi import REGISTRY_KEYS
from scvi.module.base import BaseModuleClass, auto_move_data
from torch import Tensor
from torch.distributions import Normal

_EPS = 1e-8
_NO_TRANSFER = {"transfer_factor": 0.0}  # nothing is drawn for a loss that nobody asks for


class ScoringMixin(BaseModuleClass):
    """Samples and log-likelihoods of a minibatch."""

    @torch.inference_mode()
    def sample(
        self,
        tensors: dict[str, Tensor],
        n_samples: int = 1,
        generative_kwargs: dict[str, Any] | None = None,
    ) -> Tensor:
        """Draw from the posterior predictive, (n_cells, n_genes) or (n_cells, n_genes, n_samples)."""
        _, outputs = self.forward(
            tensors,
            get_generative_input_kwargs=_NO_TRANSFER,
            inference_kwargs={"n_samples": n_samples},
            generative_kwargs=generative_kwargs,
            compute_loss=False,
        )
        drawn = outputs["px"].sample()
        return (drawn.permute(1, 2, 0) if n_samples > 1 else drawn).cpu()

    @torch.inference_mode()
    @auto_move_data
    def marginal_ll(
        self,
        tensors: dict[str, Tensor],
        n_mc_samples: int,
        return_mean: bool = False,
        n_mc_samples_per_pass: int = 1,
    ) -> Tensor | float:
        r"""Estimate log p(x) by importance sampling from q(z | x), in nats.

        .. math:: \log \frac1S \sum_s p(x \mid z_s)\,p(z_s) / q(z_s \mid x)
        """
        terms = []
        n_passes = math.ceil(n_mc_samples / n_mc_samples_per_pass)
        for _ in range(n_passes):
            inference, generated = self.forward(
                tensors,
                get_generative_input_kwargs=_NO_TRANSFER,
                inference_kwargs={"n_samples": n_mc_samples_per_pass},
                compute_loss=False,
            )
            z, qz = inference["z"], inference["qz"]
            log_prior = Normal(0.0, 1.0).log_prob(z).sum(-1)
            log_ratio = log_prior - qz.log_prob(z).sum(-1)
            log_p = log_ratio - self.reconstruction_loss(tensors, generated)
            terms.append(log_p.reshape(n_mc_samples_per_pass, -1))
        samples = torch.cat(terms)
        values = torch.logsumexp(samples, 0) - math.log(len(samples))
        return values.mean().item() if return_mean else values.cpu()

    @torch.inference_mode()
    @auto_move_data
    def ll_at_mean(self, tensors: dict[str, Tensor]) -> Tensor:
        """Return log p(x | z) at the posterior mean of z, in nats, shape (n_cells,)."""
        inputs = self._get_generative_input(
            tensors, {"z": self.encode(tensors).loc}, **_NO_TRANSFER
        )
        return -self.reconstruction_loss(tensors, self.generative(**inputs)).cpu()

    @torch.inference_mode()
    @auto_move_data
    def saturated_ll(self, tensors: dict[str, Tensor]) -> Tensor:
        """Return log p(x) where every mean is the observed value, in nats, shape (n_cells,)."""
        x, total, context = (
            tensors[REGISTRY_KEYS.X_KEY],
            self._total(tensors),
            self._context(tensors),
        )
        if self.is_count:
            profile = (x.clamp_min(_EPS) / total).log()
        else:
            profile = (x - self.gene_mean) / self.gene_scale
        never = torch.full_like(x, -30.0)  # logits of the zero inflation that fits best: none
        px = self._distribution(profile, context.condition, total, never)
        outputs = {"px": px, "profile": profile, "context": context}
        return -self.reconstruction_loss(tensors, outputs).cpu()

    # -- prediction -------------------------------------------------------------------------------

    @torch.inference_mode()
    @auto_move_data
    def encode(self, tensors: dict[str, Tensor]) -> Normal:
        """Return q(z | x, c) of a minibatch."""
        return self._posterior(**self._get_inference_input(tensors))

    @torch.inference_mode()
    @auto_move_data
    def aligned(self, tensors: dict[str, Tensor]) -> Tensor:
        """Return y of a minibatch at the posterior mean of z."""
        return self.hidden_layers(self.encode(tensors).loc, self._context(tensors))[0]
