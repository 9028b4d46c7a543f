"""What a network knows of its training cells, and where its weights start by that."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from trvae_sc.module._likelihood import widest
from trvae_sc.module._observation import Observation

_EPS = 1e-8
_FURTHER = 20  # components beside those needed, which makes these exact


class Statistics(NamedTuple):
    """What training needs to know of its cells; means are of proportions for counts."""

    kappa: float  #: median total
    mean: Tensor  #: of each gene, (n_genes,)
    scale: Tensor  #: standard deviation of each gene, (n_genes,)
    sums: Tensor  #: over the cells of each (label, condition), (n_labels * n_conditions, n_genes)
    n_cells: Tensor  #: number of those cells, (n_labels, n_conditions)
    #: Of the genes in each condition, within labels, (n_conditions, n_genes); of counts.
    dispersion: Tensor | None = None
    #: Values of some of the cells, (n_some, n_genes), for a linear path to start at; not of counts.
    some: Tensor | None = None

    def to(self, device: torch.device) -> Statistics:
        """Return them on a device, with the digits that it has."""
        types = {torch.float64: widest(device)}
        moved = (x.to(device, types.get(x.dtype)) if isinstance(x, Tensor) else x for x in self)
        return Statistics(*moved)

    def means(self) -> Tensor:
        """Return the means of each label and condition, shape (n_labels, n_conditions, n_genes)."""
        means = self.sums / self.n_cells.view(-1, 1).clamp_min(1)
        return means.float().view(*self.n_cells.shape, -1)


def start(
    observation: Observation, found: Statistics, z_mean: nn.Linear, output: nn.Linear
) -> None:
    """Set the units of the data, and the weights that start by the statistics, in place."""
    observation.kappa.fill_(found.kappa)
    if observation.likelihood == "normal":
        observation.mean.copy_(found.mean)
        observation.scale.copy_(torch.where(found.scale > 0, found.scale, 1.0))
    elif observation.is_count:
        proportions = found.mean
        if output.out_features > len(proportions):  # and that of the rest of the genome
            rest = (1.0 - proportions.sum()).clamp_min(_EPS)
            proportions = torch.cat([proportions, rest[None]])
        output.bias.copy_(torch.log(proportions + _EPS))
        if found.dispersion is not None and observation.log_dispersion is not None:
            _start_at_dispersion(observation, found.dispersion)
    if found.some is not None:
        _start_at_components(z_mean, output, observation.level_of_means(found.some))


def _start_at_components(z_mean: nn.Linear, output: nn.Linear, values: Tensor) -> None:
    """Make codes the principal components of values, and decode them so; hidden layers have no say."""
    n_latent, n_genes = z_mean.out_features, values.shape[1]
    n_found, mean = min(n_latent + _FURTHER, *values.shape), values.mean(0)
    components = torch.pca_lowrank(values, n_found, niter=4)[2][:, :n_latent]
    n = components.shape[1]
    z_mean.weight[:, :-n_genes] = 0.0
    z_mean.weight[:n, -n_genes:] = components.T
    z_mean.bias[:n] = -mean @ components
    output.weight[:, :-n_latent] = 0.0
    output.weight[:, -n_latent:][:, :n] = components
    output.bias.copy_(mean)


def _start_at_dispersion(observation: Observation, dispersion: Tensor) -> None:
    """Make the conditions' log theta what moments say: it takes long to learn."""
    base, by_feature = observation.log_dispersion, observation.log_dispersion_condition
    log_theta = -dispersion.float().log()
    base.copy_(log_theta.mean(0))
    if by_feature is not None:
        by_feature.copy_(torch.linalg.pinv(observation.design) @ (log_theta - base))
