"""The distribution of the data, given what the network returns."""

from __future__ import annotations

from typing import NamedTuple

import torch
from scvi import REGISTRY_KEYS
from scvi.distributions import NegativeBinomial, Normal, Poisson, ZeroInflatedNegativeBinomial
from torch import Tensor
from torch.distributions import Distribution
from torch.nn import functional

from trvae_sc.module._layers import CONDITION_KEY, TARGET_KEY, TOTAL_KEY, codes_of
from trvae_sc.module._likelihood import Likelihood, negative_binomial_nll, normal_nll

#: Likelihoods whose :meth:`Observation.nll` does without the distribution: it takes passes over all genes.
IN_CLOSED_FORM = ("nb", "normal", "mse")
_EPS = 1e-8


class Observation(NamedTuple):
    """What a profile (log proportion of each gene, or standardised mean) says of the data: p(x | y)."""

    likelihood: Likelihood
    is_count: bool
    has_total: bool  #: cells carry a total over more genes
    relu_output: bool  #: profiles of ``mse`` are not negative
    kappa: Tensor  #: median total of the training cells
    mean: Tensor  #: of each gene in the training cells, for ``normal``, (n_genes,); else 0
    scale: Tensor  #: their standard deviation; else 1
    design: Tensor  #: features of each condition, (n_conditions, n_features)
    log_dispersion: Tensor | None  #: log theta, or log standard deviation, (n_genes,)
    log_dispersion_condition: Tensor | None  #: and what features add, (n_features, n_genes)

    def total(self, tensors: dict[str, Tensor]) -> Tensor | None:
        """Return the total of each cell, shape (n_cells, 1)."""
        if not self.is_count:
            return None
        x = tensors[REGISTRY_KEYS.X_KEY]
        return (tensors[TOTAL_KEY] if self.has_total else x.sum(1, keepdim=True)).clamp_min(1.0)

    def network_input(self, x: Tensor, total: Tensor | None) -> Tensor:
        """Return what the encoder takes in place of values of cells."""
        if self.is_count:
            return torch.log1p((self.kappa * x).div_(total))
        return self.standardised(x) if self.likelihood == "normal" else x

    def standardised(self, values: Tensor) -> Tensor:
        """Return values in units of the standard deviation of their gene; those of ``mse`` as they are."""
        return (values - self.mean) / self.scale

    def profile(self, output: Tensor) -> Tensor:
        """Return the profile from the output of the network, shape (..., n_cells, n_genes)."""
        if self.is_count:
            output = functional.log_softmax(output, dim=-1)
            return output[..., :-1] if self.has_total else output
        return functional.relu(output) if self.relu_output else output

    def expected(self, output: Tensor) -> Tensor:
        """Return the share of each gene in a cell's total, or the mean value, from the output."""
        if self.is_count:
            shares = functional.softmax(output, dim=-1)
            return shares[..., :-1] if self.has_total else shares
        return self.mean + self.scale * self.profile(output.float())

    def level(self, profile: Tensor) -> Tensor:
        """Return f of the transfer loss, of a profile."""
        return torch.log1p(self.kappa * profile.exp()) if self.is_count else profile

    def level_of_means(self, means: Tensor) -> Tensor:
        """Return f of the transfer loss, of mean proportions or mean values."""
        return torch.log1p(self.kappa * means) if self.is_count else self.standardised(means)

    def log_theta(self, features: Tensor) -> Tensor:
        """Return log inverse dispersion (or log standard deviation) by cell, or one row for all."""
        if self.log_dispersion_condition is None:
            return self.log_dispersion[None]
        with torch.autocast(features.device.type, enabled=False):
            return self.log_dispersion + features @ self.log_dispersion_condition

    def _log_theta_rows(self, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Return :meth:`log_theta` of all conditions and the row of each cell, or, if there are fewer, by cell."""
        code = codes_of(tensors, CONDITION_KEY)
        if TARGET_KEY in tensors or len(self.design) > len(code):
            return self.log_theta(tensors.get(TARGET_KEY, self.design[code])), None
        table = self.log_theta(self.design)  # one row where it is the same for all conditions
        return table, code.clamp_max(len(table) - 1)

    def distribution(
        self, profile: Tensor, features: Tensor, total: Tensor | None, logits: Tensor | None
    ) -> Distribution:
        """Return p(x | y) of a profile; the logits are of ``zinb``'s zero inflation."""
        if self.likelihood == "mse":
            return Normal(profile, torch.ones_like(profile), normal_mu=profile)
        if self.likelihood == "normal":
            loc = self.mean + self.scale * profile
            scale = (self.scale * self.log_theta(features).exp()).expand(loc.shape)
            return Normal(loc, scale, validate_args=False, normal_mu=loc)
        rates = profile.exp()
        mean = rates * total
        if self.likelihood == "poisson":
            return Poisson(mean, scale=rates, validate_args=False)
        theta = self.log_theta(features).exp()
        if self.likelihood == "zinb":
            return ZeroInflatedNegativeBinomial(mu=mean, theta=theta, zi_logits=logits, scale=rates)
        return NegativeBinomial(mu=mean, theta=theta, scale=rates)

    def nll(self, tensors: dict[str, Tensor], profile: Tensor, px: Distribution | None) -> Tensor:
        """Return -log p(x | y) in nats (``mse``: half the squared error), summed over genes."""
        x = tensors[REGISTRY_KEYS.X_KEY]
        if self.likelihood == "mse":
            return 0.5 * (x - profile).square().sum(-1)
        if self.likelihood not in IN_CLOSED_FORM:
            return -px.log_prob(x).sum(-1)
        theta = self._log_theta_rows(tensors)
        if self.likelihood == "nb":
            return negative_binomial_nll(x, profile + self.total(tensors).log(), *theta)
        return normal_nll(self.standardised(x), profile, *theta) + self.scale.log().sum()

    def saturated_nll(self, tensors: dict[str, Tensor]) -> Tensor:
        """Return -log p(x) where every mean is the observed value, in nats, shape (n_cells,)."""
        x, total = tensors[REGISTRY_KEYS.X_KEY], self.total(tensors)
        profile = (x.clamp_min(_EPS) / total).log() if self.is_count else self.standardised(x)
        never = torch.full_like(x, -30.0)  # logits of the zero inflation that fits best: none
        features = self.design[codes_of(tensors, CONDITION_KEY)]
        return self.nll(tensors, profile, self.distribution(profile, features, total, never))
