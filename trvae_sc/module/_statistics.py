"""What a module knows of its training cells, and what stays as it was in query surgery."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_EPS = 1e-8
_FURTHER = 20  # components beside those needed, which makes these exact


class StatisticsMixin(nn.Module):
    """Buffers with means of the training cells, and frozen rows of parameters."""

    def _register_statistics(self, n_input: int, design: Tensor) -> None:
        """Register the buffers that :meth:`set_statistics` fills."""
        self.register_buffer("condition_design", design.float(), persistent=False)
        self.register_buffer("has_statistics", torch.tensor(False))
        self.register_buffer("kappa", torch.tensor(1.0))
        self.register_buffer("gene_mean", torch.zeros(n_input))
        self.register_buffer("gene_scale", torch.ones(n_input))
        shape = (max(self.n_labels, 1), design.shape[0])
        self.register_buffer("n_cells", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("profiles", torch.zeros(*shape, n_input))

    @torch.no_grad()
    def set_statistics(
        self,
        *,
        kappa: float,
        mean: Tensor,
        scale: Tensor,
        sums: Tensor,
        n_cells: Tensor,
        dispersion: Tensor | None = None,
        some: Tensor | None = None,
    ) -> None:
        """Store what training needs to know of the training cells.

        The units of the data (kappa, mean, scale) are set once: later fits keep those in which
        the weights were learned.

        Parameters
        ----------
        kappa
            Median total.
        mean, scale
            Mean and standard deviation of each gene, shape (n_genes,): of proportions for counts,
            of the values otherwise.
        sums
            Sums over the cells of each (label, condition), shape (n_labels * n_conditions, n_genes),
            of the same quantity.
        n_cells
            Number of those cells, shape (n_labels, n_conditions).
        dispersion
            Of the genes in each condition, within labels, shape (n_conditions, n_genes); of counts.
        some
            Values of some of the cells, shape (n_some, n_genes), for a linear path to start at; not of counts.
        """
        device = self.kappa.device
        if not self.has_statistics:
            self.kappa.fill_(kappa)
            if self.gene_likelihood == "normal":
                self.gene_mean.copy_(mean)
                self.gene_scale.copy_(torch.where(scale > 0, scale, 1.0))
            elif self.is_count:
                self._start_at_proportions(mean.to(device))
                if (
                    dispersion is not None
                    and self.transfer_weight
                    and self.gene_likelihood != "poisson"
                ):
                    self._start_at_dispersion(dispersion.float().to(device))
            if some is not None:
                self._start_at_components(self._profile_scale(some.to(device)))
            self.has_statistics.fill_(True)
        n_cells = n_cells.to(device)
        profiles = (sums.to(device) / n_cells.view(-1, 1).clamp_min(1)).float()
        profiles = self._profile_scale(profiles.view_as(self.profiles))
        present = n_cells > 0
        if self._frozen:  # predictions of known conditions rest on these too
            present[:, : self._n_known] = False
        self.profiles[present] = profiles[present]
        self.n_cells[present] = n_cells[present]

    def _profile_scale(self, means: Tensor) -> Tensor:
        """Return f of mean proportions, or of mean values in the units of the data."""
        if not self.is_count:
            means = (means - self.gene_mean) / self.gene_scale
        return self.transfer_scale(means)

    def _start_at_proportions(self, proportions: Tensor) -> None:
        """Make the output bias the log of the mean proportions."""
        if self.has_total:
            rest = (1.0 - proportions.sum()).clamp_min(_EPS)
            proportions = torch.cat([proportions, rest[None]])
        self.output.bias.copy_(torch.log(proportions + _EPS))

    def _start_at_components(self, values: Tensor) -> None:
        """Make codes the principal components of values of cells, and decode them as such.

        Hidden layers start with no say, and learn what components cannot.
        """
        n_latent, n_genes = self.z_mean.out_features, values.shape[1]
        n_found, mean = min(n_latent + _FURTHER, *values.shape), values.mean(0)
        components = torch.pca_lowrank(values, n_found, niter=4)[2][:, :n_latent]
        n = components.shape[1]
        self.z_mean.weight[:, :-n_genes] = 0.0
        self.z_mean.weight[:n, -n_genes:] = components.T
        self.z_mean.bias[:n] = -mean @ components
        self.output.weight[:, :-n_latent] = 0.0
        self.output.weight[:, -n_latent:][:, :n] = components
        self.output.bias.copy_(mean)

    def _start_at_dispersion(self, dispersion: Tensor) -> None:
        """Make the conditions' log theta what moments say: it takes long to learn.

        Only where the transfer loss trains the prediction: a higher theta lets reconstruction weigh more,
        and without that loss the effect of a condition then stays in the codes.
        """
        log_theta = -dispersion.log()
        self.log_dispersion.copy_(log_theta.mean(0))
        if self.log_dispersion_condition is not None:
            rest = log_theta - self.log_dispersion
            self.log_dispersion_condition.copy_(torch.linalg.pinv(self.condition_design) @ rest)

    def transfer_scale(self, profile: Tensor) -> Tensor:
        """Return f of the transfer loss."""
        return torch.log1p(self.kappa * profile) if self.is_count else profile

    def freeze(self, rows: dict[str, int], n_conditions: int) -> None:
        """Keep every parameter as it is but for the rows behind the first n of those named.

        Gradients of frozen rows and the optimizer's weight decay or momentum cannot be trusted to be
        zero, so :meth:`restore_frozen` puts the rows back after every step. Profiles and numbers of
        cells of the first `n_conditions` conditions stay as well.
        """
        self._n_known = n_conditions
        for name, parameter in self.named_parameters():
            parameter.requires_grad = name in rows
        self._frozen = {
            name: self.get_parameter(name)[:n].detach().clone() for name, n in rows.items()
        }

    @torch.no_grad()
    def restore_frozen(self) -> None:
        """Put frozen rows back."""
        for name, values in self._frozen.items():
            self.get_parameter(name)[: len(values)] = values.to(self.kappa.device)
