"""The network of trVAE and its loss: likelihood + KL + MMD between conditions + transfer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from scvi import REGISTRY_KEYS
from scvi.distributions import NegativeBinomial, Normal, Poisson, ZeroInflatedNegativeBinomial
from scvi.module.base import BaseModuleClass, LossOutput, auto_move_data
from torch import Tensor, nn
from torch.distributions import Normal as TorchNormal
from torch.nn import functional

from trvae_sc.mmd import Kernel, mmd
from trvae_sc.module._layers import Activation, ConditionedLayer, Context, stack
from trvae_sc.module._likelihood import gaussian_kl, negative_binomial_nll
from trvae_sc.states import N_STATES

Likelihood = Literal["nb", "zinb", "poisson", "normal", "mse"]
COUNT_LIKELIHOODS = ("nb", "zinb", "poisson")

#: Registry keys that scvi-tools does not have.
CONDITION_KEY = "condition"
TOTAL_KEY = "total_counts"
#: Features of the condition to decode with, in place of the cell's own (added by data loaders).
TARGET_KEY = "target_condition"

_MAX_LOG_VARIANCE = 10.0
_EPS = 1e-8
_FEW_GROUPS = 64
_MAX_STATE_VALUES = 2**24  # profiles of states kept, 64 MB


class TRVAEModule(BaseModuleClass):
    r"""Conditional VAE whose first decoder layer is aligned across conditions.

    .. math::
        q(z \mid x, c) = N(\mu(x, c), \mathrm{diag}\,\sigma^2(x, c)), \qquad
        y = \mathrm{act}(\mathrm{norm}(W z + V c)), \qquad p(x \mid y)

    .. math:: L = w_r\,E[-\log p(x \mid y)] + w_{kl}\,KL(q \,\|\, N(0, I))
       + w_{mmd}\,\mathrm{MMD}^2(y) + w_t\,T

    The likelihood is summed over genes and averaged over cells. MMD is :func:`trvae_sc.mmd.mmd`
    between conditions. T is the transfer loss: for every label seen in two conditions s and t, the
    cells of (label, s) are decoded under t, and the mean m of their predicted profiles is compared
    with the training profile p of (label, t),
    :math:`\frac12 \sum_g (f(m_g) - f(p_g))^2`, with :math:`f(r) = \log(1 + \kappa r)` for
    proportions (kappa: median total of the training cells) and f the identity for values in units
    of their standard deviation. A combination held out of training has no profile, so nothing
    about it enters.

    Reference: Lotfollahi et al. 2020, doi:10.1093/bioinformatics/btaa800. The U-statistic with
    median bandwidths, the count likelihoods and T are ours.

    Parameters
    ----------
    n_input
        Number of genes.
    condition_design
        Features of each condition, shape (n_conditions, n_features); the identity for plain
        categories.
    n_batch
        Number of batches; 0 if none is registered.
    n_labels
        Number of labels (cell types); 0 without labels, which turns the transfer loss off.
    n_cats_per_cov
        Number of levels of each further categorical covariate.
    n_continuous_cov
        Number of continuous covariates.
    has_total
        Whether cells carry a total over more genes than `n_input`. The decoder then has one more
        class, the rest of the genome.

    The other parameters are those of :class:`trvae_sc.TRVAE`.
    """

    def __init__(  # noqa: PLR0913
        self,
        n_input: int,
        condition_design: Tensor,
        n_batch: int = 0,
        n_labels: int = 0,
        n_cats_per_cov: Sequence[int] | None = None,
        n_continuous_cov: int = 0,
        *,
        has_total: bool = False,
        n_hidden: Sequence[int] = (256, 128),
        n_latent: int = 32,
        dropout_rate: float = 0.1,
        norm: Literal["layer", "batch"] = "layer",
        leaky_slope: float = 0.01,
        gene_likelihood: Likelihood = "nb",
        dispersion: Literal["gene", "gene-condition"] = "gene-condition",
        condition_in: Literal["both", "decoder", "none"] = "both",
        variational: bool = True,
        relu_output: bool = False,
        recon_weight: float = 1.0,
        kl_weight: float = 1.0,
        mmd_weight: float = 100.0,
        mmd_on: Literal["decoder", "latent"] = "decoder",
        mmd_kernel: Kernel = "median",
        transfer_weight: float = 1.0,
        calibrate: bool = True,
        context_weight: float = 0.5,
    ) -> None:
        super().__init__()
        self._frozen: dict[str, Tensor] = {}
        self.gene_likelihood = gene_likelihood
        self.is_count = gene_likelihood in COUNT_LIKELIHOODS
        self.variational = variational
        self.relu_output = relu_output
        self.recon_weight = recon_weight
        self.kl_weight = kl_weight
        self.mmd_weight = mmd_weight if condition_in != "none" else 0.0
        self.mmd_on = mmd_on
        self.mmd_kernel = mmd_kernel
        self.transfer_weight = transfer_weight if n_labels and condition_in != "none" else 0.0
        self.calibrate = calibrate and condition_in != "none"
        self.context_weight = context_weight if n_labels else 0.0
        self.n_batch = n_batch
        self.n_labels = n_labels
        self.has_total = has_total and self.is_count

        hidden = list(n_hidden)
        n_features = condition_design.shape[1]
        bias = norm != "batch"
        act = {"norm": norm, "leaky_slope": leaky_slope, "dropout_rate": dropout_rate}
        cats = [n_batch] * (n_batch > 0) + list(n_cats_per_cov or ())
        layer = {"n_cats": cats, "n_continuous": n_continuous_cov, "bias": bias}

        n_encoder = n_features if condition_in == "both" else 0
        self.encoder_in = ConditionedLayer(n_input, hidden[0], n_features=n_encoder, **layer)
        self.encoder = nn.Sequential(Activation(hidden[0], **act), *stack(hidden, bias=bias, **act))
        self.z_mean = nn.Linear(hidden[-1], n_latent)
        self.z_log_variance = nn.Linear(hidden[-1], n_latent) if variational else None

        n_decoder = n_features if condition_in != "none" else 0
        self.decoder_in = ConditionedLayer(n_latent, hidden[-1], n_features=n_decoder, **layer)
        self.mmd_layer = Activation(hidden[-1], **{**act, "dropout_rate": 0.0})
        self.decoder = nn.Sequential(
            nn.Dropout(dropout_rate), *stack(hidden[::-1], bias=bias, **act)
        )
        self.output = nn.Linear(hidden[0], n_input + self.has_total)
        self.zero_inflation = nn.Linear(hidden[0], n_input) if gene_likelihood == "zinb" else None
        if gene_likelihood in ("nb", "zinb", "normal"):  # log theta, or log standard deviation
            self.log_dispersion = nn.Parameter(torch.zeros(n_input))
            per_condition = dispersion == "gene-condition" and condition_in != "none"
            self.log_dispersion_condition = (
                nn.Parameter(torch.zeros(n_features, n_input)) if per_condition else None
            )
        self._register_statistics(n_input, condition_design)

    # -- statistics of the training data ------------------------------------------------------

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
        n_states = min(N_STATES, _MAX_STATE_VALUES // self.profiles.numel())
        if n_states > 1 and self.calibrate and self.context_weight:
            shape = (shape[0], n_states, shape[1])
            self.register_buffer("state_n_cells", torch.zeros(shape, dtype=torch.float64))
            self.register_buffer("state_profiles", torch.zeros(*shape, n_input))
        else:
            self.state_n_cells = self.state_profiles = None

    @torch.no_grad()
    def set_statistics(
        self,
        *,
        kappa: float,
        mean: Tensor,
        scale: Tensor,
        sums: Tensor,
        n_cells: Tensor,
        states: tuple[Tensor, Tensor] | None = None,
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
        states
            Number of cells, shape (n_labels, n_states, n_conditions), and mean, with one more axis, of
            states within labels (:mod:`trvae_sc.states`).
        """
        device = self.kappa.device
        if not self.has_statistics:
            self.kappa.fill_(kappa)
            if self.gene_likelihood == "normal":
                self.gene_mean.copy_(mean)
                self.gene_scale.copy_(torch.where(scale > 0, scale, 1.0))
            elif self.is_count:
                self._start_at_proportions(mean.to(device))
            self.has_statistics.fill_(True)
        n_cells = n_cells.to(device)
        profiles = (sums.to(device) / n_cells.view(-1, 1).clamp_min(1)).float()
        profiles = self._profile_scale(profiles.view_as(self.profiles))
        present = n_cells > 0
        if self._frozen:  # predictions of known conditions rest on these too
            present[:, : self._n_known] = False
        self.profiles[present] = profiles[present]
        self.n_cells[present] = n_cells[present]
        if states is not None and self.state_profiles is not None and not self._frozen:
            counts, means = (values.to(device) for values in states)
            label = present.any(1)  # whole labels: states of another fit are not the same ones
            self.state_n_cells[label] = counts.double()[label]
            self.state_profiles[label] = self._profile_scale(means.float())[label]

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

    def transfer_scale(self, profile: Tensor) -> Tensor:
        """Return f of the transfer loss."""
        return torch.log1p(self.kappa * profile) if self.is_count else profile

    # -- query surgery --------------------------------------------------------------------------

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

    def train(self, mode: bool = True) -> TRVAEModule:
        """Set training mode; with frozen parameters batch norm keeps its statistics."""
        super().train(mode)
        if self._frozen:
            for layer in self.modules():
                if isinstance(layer, nn.BatchNorm1d):
                    layer.eval()
        return self

    # -- inference and generation ---------------------------------------------------------------

    def _context(self, tensors: dict[str, Tensor], features: Tensor | None = None) -> Context:
        """Return what the cells of a minibatch are observed under."""
        if features is None:
            features = self.condition_design[tensors[CONDITION_KEY].long().flatten()]
        categories = []
        if self.n_batch:
            categories.append(tensors[REGISTRY_KEYS.BATCH_KEY].long().flatten())
        covariates = tensors.get(REGISTRY_KEYS.CAT_COVS_KEY)
        if covariates is not None:
            categories += list(covariates.long().T)
        return Context(features, categories, tensors.get(REGISTRY_KEYS.CONT_COVS_KEY))

    def _total(self, tensors: dict[str, Tensor]) -> Tensor | None:
        """Return the total of each cell, shape (n_cells, 1)."""
        if not self.is_count:
            return None
        x = tensors[REGISTRY_KEYS.X_KEY]
        total = tensors[TOTAL_KEY] if self.has_total else x.sum(1, keepdim=True)
        return total.clamp_min(1.0)

    def _get_inference_input(
        self, tensors: dict[str, Tensor], full_forward_pass: bool = False
    ) -> dict[str, Any]:
        return {
            "x": tensors[REGISTRY_KEYS.X_KEY],
            "context": self._context(tensors),
            "total": self._total(tensors),
        }

    @auto_move_data
    def inference(
        self, x: Tensor, context: Context, total: Tensor | None = None, n_samples: int = 1
    ) -> dict[str, Any]:
        """Encode cells: q(z | x, c) and samples of it, (n_samples, n_cells, n_latent) if > 1."""
        if self.is_count:
            x = torch.log1p(self.kappa * x / total)
        elif self.gene_likelihood == "normal":
            x = (x - self.gene_mean) / self.gene_scale
        hidden = self.encoder(self.encoder_in(x, context))
        mean = self.z_mean(hidden).float()  # in mixed precision layers return half of the digits
        if self.z_log_variance is None:  # autoencoder: a point, with a width nobody can see
            scale = torch.full_like(mean, _EPS)
        else:
            log_variance = self.z_log_variance(hidden).float()
            scale = (0.5 * log_variance.clamp(-_MAX_LOG_VARIANCE, _MAX_LOG_VARIANCE)).exp()
        qz = TorchNormal(mean, scale, validate_args=False)
        z = qz.rsample() if n_samples == 1 else qz.rsample((n_samples,))
        library = None if total is None else total.log()
        return {"z": z, "qz": qz, "library": library, "ql": None}

    def _get_generative_input(
        self, tensors: dict[str, Tensor], inference_outputs: dict[str, Any]
    ) -> dict[str, Any]:
        return {
            "z": inference_outputs["z"],
            "context": self._context(tensors, tensors.get(TARGET_KEY)),
            "total": self._total(tensors),
        }

    def hidden_layers(self, z: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Return y and the last hidden layer."""
        y = self.mmd_layer(self.decoder_in(z, context))
        return y, self.decoder(y)

    def decode(self, z: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Return y, the last hidden layer and the profile predicted from z.

        The profile is the log proportion of each gene for counts, the standardised mean for
        ``normal``, the mean for ``mse``; shape (..., n_cells, n_genes).
        """
        y, hidden = self.hidden_layers(z, context)
        out = self.output(hidden).float()
        if self.is_count:
            out = functional.log_softmax(out, dim=-1)
            out = out[..., :-1] if self.has_total else out
        elif self.relu_output:
            out = functional.relu(out)
        return y, hidden, out

    def log_theta(self, features: Tensor) -> Tensor:
        """Return log inverse dispersion (or log standard deviation) by cell, or one row for all."""
        if self.log_dispersion_condition is None:
            return self.log_dispersion[None]
        with torch.autocast(features.device.type, enabled=False):
            return self.log_dispersion + features @ self.log_dispersion_condition

    @auto_move_data
    def generative(
        self,
        z: Tensor,
        context: Context,
        total: Tensor | None = None,
        transform_batch: int | None = None,
    ) -> dict[str, Any]:
        """Decode z: y, the profile, and the distribution of the data."""
        if transform_batch is not None and self.n_batch:
            codes = torch.full_like(context.categories[0], int(transform_batch))
            context = context._replace(categories=[codes, *context.categories[1:]])
        y, hidden, profile = self.decode(z, context)
        logits = None if self.zero_inflation is None else self.zero_inflation(hidden)
        px = None  # the loss of these does without, and it takes passes over all genes
        if not (self.training and self.gene_likelihood in ("nb", "mse")):
            px = self._distribution(profile, context.condition, total, logits)
        pz = TorchNormal(torch.zeros_like(z), torch.ones_like(z), validate_args=False)
        return {"px": px, "pz": pz, "pl": None, "y": y, "profile": profile, "context": context}

    def _distribution(
        self, profile: Tensor, features: Tensor, total: Tensor | None, logits: Tensor | None
    ) -> torch.distributions.Distribution:
        """Return p(x | y) of a profile."""
        if not self.is_count:
            if self.gene_likelihood == "mse":
                return Normal(profile, torch.ones_like(profile), normal_mu=profile)
            loc = self.gene_mean + self.gene_scale * profile
            scale = (self.gene_scale * self.log_theta(features).exp()).expand(loc.shape)
            return Normal(loc, scale, validate_args=False, normal_mu=loc)
        rates = profile.exp()
        mean = rates * total
        if self.gene_likelihood == "poisson":
            return Poisson(mean, scale=rates, validate_args=False)
        theta = self.log_theta(features).exp()
        if self.gene_likelihood == "zinb":
            return ZeroInflatedNegativeBinomial(mu=mean, theta=theta, zi_logits=logits, scale=rates)
        return NegativeBinomial(mu=mean, theta=theta, scale=rates)

    # -- loss -------------------------------------------------------------------------------------

    def reconstruction_loss(
        self, tensors: dict[str, Tensor], generative_outputs: dict[str, Any]
    ) -> Tensor:
        """Return -log p(x | y) in nats (``mse``: half the squared error), summed over genes."""
        x, profile = tensors[REGISTRY_KEYS.X_KEY], generative_outputs["profile"]
        if self.gene_likelihood == "mse":
            return 0.5 * (x - profile).square().sum(-1)
        if self.gene_likelihood == "nb":
            log_theta = self.log_theta(generative_outputs["context"].condition)
            log_mean = profile + self._total(tensors).log()
            return negative_binomial_nll(x, log_mean, log_theta)
        return -generative_outputs["px"].log_prob(x).sum(-1)

    def loss(
        self,
        tensors: dict[str, Tensor],
        inference_outputs: dict[str, Any],
        generative_outputs: dict[str, Any],
        kl_weight: float = 1.0,
    ) -> LossOutput:
        """Return the loss and its terms; `kl_weight` is what the training plan has warmed up to."""
        qz = inference_outputs["qz"]
        reconstruction = self.reconstruction_loss(tensors, generative_outputs)
        kl = gaussian_kl(qz.loc, qz.scale) if self.variational else torch.zeros_like(qz.loc[:, 0])
        terms = {"mmd": self._mmd(tensors, inference_outputs, generative_outputs)}
        terms["transfer"] = self._transfer(tensors, inference_outputs["z"], generative_outputs)
        weighted = {
            "reconstruction_weighted": self.recon_weight * reconstruction.mean(),
            "kl_weighted": kl_weight * kl.mean(),
            "mmd_weighted": self.mmd_weight * terms["mmd"],
            "transfer_weighted": self.transfer_weight * terms["transfer"],
        }
        return LossOutput(
            loss=sum(weighted.values()),
            reconstruction_loss=reconstruction,
            kl_local={"kl_local": kl},
            extra_metrics={k: v.detach() for k, v in (terms | weighted).items()},
        )

    def _mmd(
        self,
        tensors: dict[str, Tensor],
        inference_outputs: dict[str, Any],
        generative_outputs: dict[str, Any],
    ) -> Tensor:
        """Return the MMD between the conditions of a minibatch."""
        aligned = generative_outputs["y"] if self.mmd_on == "decoder" else inference_outputs["z"]
        if not self.mmd_weight or aligned.dim() > 2:
            return aligned.new_zeros(())
        published = self.mmd_kernel == "paper"
        return mmd(
            aligned,
            tensors[CONDITION_KEY].long().flatten(),
            n_groups=self.condition_design.shape[0],
            kernel=self.mmd_kernel,
            unbiased=not published,
            reduction="sum" if published else "mean",
        )

    def _transfer(
        self, tensors: dict[str, Tensor], z: Tensor, generative_outputs: dict[str, Any]
    ) -> Tensor:
        """Return the transfer loss T of a minibatch."""
        if not self.transfer_weight or z.dim() > 2:
            return z.new_zeros(())
        source = tensors[CONDITION_KEY].long().flatten()
        label = tensors[REGISTRY_KEYS.LABELS_KEY].long().flatten()
        target, known = self._draw_targets(label, source)
        context = generative_outputs["context"]._replace(condition=self.condition_design[target])
        out = self.output(self.hidden_layers(z, context)[1]).float()
        group, n_cells = _groups(label * self.n_cells.shape[1] + source, self.n_cells.numel())
        first = torch.zeros_like(n_cells, dtype=torch.long)  # a row of each group
        first = first.scatter(0, group, torch.arange(len(group), device=group.device))
        mean = self._group_means(out, group, n_cells)
        truth = self.profiles[label[first], target[first]]
        error = 0.5 * (self.transfer_scale(mean) - truth).square().sum(1)
        weight = n_cells * known[first]  # groups without cells weigh nothing
        return (error * weight).sum() / len(z)

    def _group_means(self, out: Tensor, group: Tensor, n_cells: Tensor) -> Tensor:
        """Return what :meth:`decode` would make of its output layer, averaged; (n_groups, n_genes)."""
        if self.is_count:
            values = functional.softmax(out, dim=-1)
        else:
            values = functional.relu(out) if self.relu_output else out
        size = n_cells.clamp_min(1)[:, None]
        if len(size) <= _FEW_GROUPS:  # a small matrix product is faster than adding rows
            member = functional.one_hot(group, len(size)).T / size
            with torch.autocast(values.device.type, enabled=False):
                mean = member @ values
        else:
            sums = values.new_zeros(len(size), values.shape[1]).index_add(0, group, values)
            mean = sums / size
        return mean[:, :-1] if self.has_total else mean

    def _draw_targets(self, label: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        """Draw, for each (label, source) of a minibatch, another condition seen with that label."""
        score = torch.rand(self.n_cells.shape, device=label.device) + 1.0
        score = torch.where(self.n_cells > 0, score, 0.0)[label]
        score = score.scatter(1, source[:, None], 0.0)
        best, target = score.max(1)
        return target, best > 0

    # -- prediction -------------------------------------------------------------------------------

    @torch.inference_mode()
    @auto_move_data
    def encode(self, tensors: dict[str, Tensor]) -> TorchNormal:
        """Return q(z | x, c) of a minibatch."""
        return self.inference(**self._get_inference_input(tensors))["qz"]

    @torch.inference_mode()
    @auto_move_data
    def aligned(self, tensors: dict[str, Tensor]) -> Tensor:
        """Return y of a minibatch at the posterior mean of z."""
        return self.decode(self.encode(tensors).loc, self._context(tensors))[0]

    @torch.inference_mode()
    @auto_move_data
    def expected(
        self, tensors: dict[str, Tensor], z: Tensor, condition: Tensor | None = None
    ) -> Tensor:
        """Return the expected share of each gene in a cell's total (or mean value), given z.

        Parameters
        ----------
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
        features = None if condition is None else condition.expand(len(z), -1)
        context = self._context(tensors, features)
        if self.is_count:
            shares = functional.softmax(self.output(self.hidden_layers(z, context)[1]), dim=-1)
            return shares[..., :-1] if self.has_total else shares
        return self.gene_mean + self.gene_scale * self.decode(z, context)[2]

    # -- sampling -----------------------------------------------------------------------------------

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
                tensors, inference_kwargs={"n_samples": n_mc_samples_per_pass}, compute_loss=False
            )
            z, qz = inference["z"], inference["qz"]
            log_prior = TorchNormal(0.0, 1.0).log_prob(z).sum(-1)
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
        inputs = self._get_generative_input(tensors, {"z": self.encode(tensors).loc})
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


def _groups(codes: Tensor, n_codes: int) -> tuple[Tensor, Tensor]:
    """Return the group of each row, rows of equal code being one, and the size of each group.

    Groups are the codes themselves, or first rows where there are fewer rows than codes; some are
    empty. Shapes do not depend on the codes, so nothing waits for a GPU.
    """
    group = codes
    if n_codes > len(codes):
        n_codes = len(codes)
        group = (codes[:, None] == codes[None, :]).to(torch.uint8).argmax(1)
    size = torch.zeros(n_codes, device=codes.device)
    return group, size.index_add(0, group, torch.ones(len(codes), device=codes.device))
