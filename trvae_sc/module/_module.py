"""The network of trVAE and its loss: likelihood + KL + MMD between conditions + transfer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from scvi import REGISTRY_KEYS
from scvi.module.base import BaseModuleClass, LossOutput, auto_move_data
from torch import Tensor, nn
from torch.distributions import Normal

from trvae_sc.mmd import Kernel, mmd
from trvae_sc.module._layers import (
    CONDITION_KEY,
    TARGET_KEY,
    Activation,
    ConditionedLayer,
    Context,
    codes_of,
    stack,
)
from trvae_sc.module._likelihood import COUNT_LIKELIHOODS, Likelihood, gaussian_kl
from trvae_sc.module._observation import IN_CLOSED_FORM, Observation
from trvae_sc.module._peers import Peers
from trvae_sc.module._statistics import Statistics, start
from trvae_sc.module._terms import Transfer, draw_transfer, half_means, transfer_loss

_MAX_LOG_VARIANCE = 10.0
_EPS = 1e-8
#: Arguments of a pass that ends before the loss; nothing is drawn for it.
_WITHOUT_LOSS = {"get_generative_input_kwargs": {"transfer_factor": 0.0}, "compute_loss": False}


class TRVAEModule(BaseModuleClass):
    r"""Conditional VAE whose first decoder layer is aligned across conditions.

    .. math::
        q(z \mid x, c) = N(\mu(x, c), \mathrm{diag}\,\sigma^2(x, c)), \qquad
        y = \mathrm{act}(\mathrm{norm}(W z + V c)), \qquad p(x \mid y)

    .. math:: L = w_r\,E[-\log p(x \mid y)] + w_{kl}\,KL(q \,\|\, N(0, I))
       + w_{mmd}\,\mathrm{MMD}^2(y) + w_t\,T

    The likelihood is summed over genes and averaged over cells. MMD is :func:`trvae_sc.mmd.mmd`
    between conditions, inside each label. T is the transfer loss (:doc:`/models/trvae`): the cells of a
    label and condition are decoded under another condition of that label, up to the last hidden layer,
    and the change of the profile of their mean is compared with that of the training profiles. Nothing
    enters of a combination held out of training: it has no profile.

    Lotfollahi et al. 2020, doi:10.1093/bioinformatics/btaa800. The U-statistic with median bandwidths,
    inside labels, the count likelihoods and T are ours. Parameters not named here: :class:`trvae_sc.TRVAE`.

    Parameters
    ----------
    n_input
        Number of genes.
    condition_design
        Features of each condition, shape (n_conditions, n_features).
    n_batch, n_labels, n_continuous_cov
        Numbers of batches, labels (0: no transfer loss) and continuous covariates; 0 without.
    n_cats_per_cov
        Number of levels of each further categorical covariate.
    norm, leaky_slope
        What normalises hidden layers (``"layer"``, ``"batch"``, ``"none"``); slope of their activation below 0.
    variational, relu_output, recon_weight
        Whether cells have a posterior over z, or just a code; whether ``"mse"`` decodes no negative values; :math:`w_r`.
    linear_path
        Whether codes, and what is decoded, also have a linear part. Of values that are no counts it starts at
        their principal components.
    has_total
        Whether cells have a total over more genes than `n_input`; the rest of the genome is a class, too, then.
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
        linear_path: bool = False,
        recon_weight: float = 1.0,
        kl_weight: float = 1.0,
        mmd_weight: float = 100.0,
        mmd_on: Literal["decoder", "latent"] = "decoder",
        mmd_within_labels: bool = True,
        mmd_kernel: Kernel = "median",
        transfer_weight: float = 1.0,
        calibrate: bool = True,
        context_weight: float = 0.5,
    ) -> None:
        super().__init__()
        self.peers = Peers()
        self._frozen: dict[str, Tensor] = {}
        self._n_known = 0
        self.gene_likelihood = gene_likelihood
        self.is_count = gene_likelihood in COUNT_LIKELIHOODS
        self.variational, self.linear_path = variational, linear_path
        self.relu_output = relu_output
        self.recon_weight, self.kl_weight = recon_weight, kl_weight
        self.mmd_weight = mmd_weight if condition_in != "none" else 0.0
        self.mmd_within_labels = mmd_within_labels and n_labels > 0
        self.mmd_on, self.mmd_kernel = mmd_on, mmd_kernel
        self.transfer_weight = transfer_weight if n_labels and condition_in != "none" else 0.0
        self.calibrate = calibrate and condition_in != "none"
        self.context_weight = context_weight
        self.n_batch, self.n_labels = n_batch, n_labels
        self.has_total = has_total and self.is_count

        hidden = list(n_hidden)
        self.widest = max(hidden)
        n_conditions, n_features = condition_design.shape
        act = {"norm": norm, "leaky_slope": leaky_slope, "dropout_rate": dropout_rate}
        bias = norm != "batch"
        cats = [n_batch] * (n_batch > 0) + list(n_cats_per_cov or ())
        layer = {"n_cats": cats, "n_continuous": n_continuous_cov, "bias": bias}

        n_encoder = n_features if condition_in == "both" else 0
        self.encoder_in = ConditionedLayer(n_input, hidden[0], n_features=n_encoder, **layer)
        self.encoder = nn.Sequential(Activation(hidden[0], **act), *stack(hidden, bias=bias, **act))
        n_code = hidden[-1] + linear_path * n_input
        self.z_mean = nn.Linear(n_code, n_latent)
        self.z_log_variance = nn.Linear(n_code, n_latent) if variational else None

        n_decoder = n_features if condition_in != "none" else 0
        self.decoder_in = ConditionedLayer(n_latent, hidden[-1], n_features=n_decoder, **layer)
        self.mmd_layer = Activation(hidden[-1], **{**act, "dropout_rate": 0.0})
        layers = stack(hidden[::-1], bias=bias, **act)
        self.decoder = nn.Sequential(nn.Dropout(dropout_rate), *layers)
        n_last = hidden[0] + linear_path * n_latent
        self.output = nn.Linear(n_last, n_input + self.has_total)
        self.zero_inflation = nn.Linear(n_last, n_input) if gene_likelihood == "zinb" else None
        dispersed = gene_likelihood in ("nb", "zinb", "normal")
        by_feature = dispersed and dispersion == "gene-condition" and condition_in != "none"
        self.log_dispersion = nn.Parameter(torch.zeros(n_input)) if dispersed else None
        shape = n_features, n_input
        self.log_dispersion_condition = nn.Parameter(torch.zeros(shape)) if by_feature else None
        self.register_buffer("condition_design", condition_design.float(), persistent=False)
        self.register_buffer("has_statistics", torch.tensor(False))
        self.register_buffer("kappa", torch.tensor(1.0))
        self.register_buffer("gene_mean", torch.zeros(n_input))
        self.register_buffer("gene_scale", torch.ones(n_input))
        shape = (max(n_labels, 1), n_conditions)
        self.register_buffer("n_cells", torch.zeros(shape, dtype=torch.int64))
        self.register_buffer("profiles", torch.zeros(*shape, n_input))

    @property
    def observation(self) -> Observation:
        """What profiles say of the data, with the parameters as they are now."""
        settings = self.gene_likelihood, self.is_count, self.has_total, self.relu_output
        units = self.kappa, self.gene_mean, self.gene_scale, self.condition_design
        return Observation(*settings, *units, self.log_dispersion, self.log_dispersion_condition)

    def train(self, mode: bool = True) -> TRVAEModule:
        """Set training mode; with frozen parameters batch norm keeps its statistics."""
        super().train(mode)
        if self._frozen:
            for layer in self.modules():
                if isinstance(layer, nn.BatchNorm1d):
                    layer.eval()
        return self

    def freeze(self, rows: dict[str, int], n_conditions: int) -> None:
        """Keep parameters but for the rows behind the first n of those named, and known conditions.

        Weight decay and momentum may move rows without gradients: :meth:`restore_frozen` puts them
        back after every step.
        """
        self._n_known = n_conditions
        for name, parameter in self.named_parameters():
            parameter.requires_grad = name in rows
        kept = {name: self.get_parameter(name)[:n] for name, n in rows.items()}
        self._frozen = {name: values.detach().clone() for name, values in kept.items()}

    @torch.no_grad()
    def restore_frozen(self) -> None:
        """Put frozen rows back."""
        for name, values in self._frozen.items():
            self.get_parameter(name)[: len(values)] = values.to(self.kappa.device)

    @torch.no_grad()
    def set_statistics(self, found: Statistics) -> None:
        """Store what training needs to know of the training cells.

        Units are set once, and the weights start by them: later fits keep those in which the
        weights were learned. Dispersions start at their moments only where the transfer loss trains
        the prediction: a higher theta lets reconstruction weigh more, and without that loss the
        effect of a condition then stays in the codes.
        """
        found = found.to(self.kappa.device)
        if not self.has_statistics:
            if not self.transfer_weight:
                found = found._replace(dispersion=None)
            start(self.observation, found, self.z_mean, self.output)
            self.has_statistics.fill_(True)
        profiles, present = self.observation.level_of_means(found.means()), found.n_cells > 0
        if self._frozen:  # predictions of known conditions rest on these too
            present[:, : self._n_known] = False
        self.profiles[present] = profiles[present]
        self.n_cells[present] = found.n_cells[present].long()

    def context(self, tensors: dict[str, Tensor], features: Tensor | None = None) -> Context:
        """Return what the cells of a minibatch are observed under; conditions may be others, by their features."""
        if features is None:
            features = self.condition_design[codes_of(tensors, CONDITION_KEY)]
        categories = [codes_of(tensors, REGISTRY_KEYS.BATCH_KEY)] if self.n_batch else []
        covariates = tensors.get(REGISTRY_KEYS.CAT_COVS_KEY)
        if covariates is not None:
            categories += list(covariates.long().T)
        return Context(features, categories, tensors.get(REGISTRY_KEYS.CONT_COVS_KEY))

    def _get_inference_input(
        self, tensors: dict[str, Tensor], full_forward_pass: bool = False
    ) -> dict[str, Any]:
        x, total = tensors[REGISTRY_KEYS.X_KEY], self.observation.total(tensors)
        return {"x": x, "context": self.context(tensors), "total": total}

    @auto_move_data
    def inference(
        self, x: Tensor, context: Context, total: Tensor | None = None, n_samples: int = 1
    ) -> dict[str, Any]:
        """Encode cells: q(z | x, c) and samples of it, (n_samples, n_cells, n_latent) if > 1."""
        qz = self._posterior(x, context, total)
        z = qz.rsample() if n_samples == 1 else qz.rsample((n_samples,))
        library = None if total is None else total.log()
        return {"z": z, "qz": qz, "library": library, "ql": None}

    def _posterior(self, x: Tensor, context: Context, total: Tensor | None) -> Normal:
        """Return q(z | x, c)."""
        x = self.observation.network_input(x, total)
        hidden = self.encoder(self.encoder_in(x, context))
        hidden = torch.cat([hidden, x], -1) if self.linear_path else hidden
        mean = self.z_mean(hidden).float()  # in mixed precision layers return half of the digits
        if self.z_log_variance is None:  # autoencoder: a point, with a width nobody can see
            scale = torch.full_like(mean, _EPS)
        else:
            log_variance = self.z_log_variance(hidden).float()
            scale = (0.5 * log_variance.clamp(-_MAX_LOG_VARIANCE, _MAX_LOG_VARIANCE)).exp()
        return Normal(mean, scale, validate_args=False)

    def _get_generative_input(
        self,
        tensors: dict[str, Tensor],
        inference_outputs: dict[str, Any],
        transfer_factor: float = 1.0,
    ) -> dict[str, Any]:
        """Return the arguments of :meth:`generative`; the transfer loss counts by a factor, 0: none."""
        z, transfer = inference_outputs["z"], None
        if self.transfer_weight * transfer_factor and z.dim() == 2:
            codes = (codes_of(tensors, key) for key in (REGISTRY_KEYS.LABELS_KEY, CONDITION_KEY))
            known = self.n_cells, self.condition_design
            transfer = draw_transfer(*codes, *known, transfer_factor, self.peers)
        total = self.observation.total(tensors)
        context = self.context(tensors, tensors.get(TARGET_KEY))
        return {"z": z, "context": context, "total": total, "transfer": transfer}

    def hidden_layers(self, z: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Return y and the last hidden layer."""
        y = self.mmd_layer(self.decoder_in(z, context))
        hidden = self.decoder(y)
        return y, torch.cat([hidden, z], -1) if self.linear_path else hidden

    def to_profile(self, hidden: Tensor) -> Tensor:
        """Return the profile of last hidden layers, shape (..., n_cells, n_genes)."""
        return self.observation.profile(self.output(hidden).float())

    def spared(self, hidden: Tensor) -> Tensor:
        """Return the probability that zero inflation spares a gene, of last hidden layers."""
        return torch.sigmoid(-self.zero_inflation(hidden).float()).clamp_min(_EPS)

    @auto_move_data
    def generative(
        self,
        z: Tensor,
        context: Context,
        total: Tensor | None = None,
        transform_batch: int | None = None,
        transfer: Transfer | None = None,
    ) -> dict[str, Any]:
        """Decode z: y, profile, distribution of the data, and what the transfer loss compares."""
        if transform_batch is not None and self.n_batch:
            codes = torch.full_like(context.categories[0], int(transform_batch))
            context = context._replace(categories=[codes, *context.categories[1:]])
        y, hidden = self.hidden_layers(z, context)
        if transfer is None:
            profile, central = self.to_profile(hidden), None
        else:
            moved = self.hidden_layers(z, context._replace(condition=transfer.onto))[1]
            means = [half_means(rows, transfer, self.peers) for rows in (hidden, moved)]
            profiles = self.to_profile(torch.cat([hidden, *means]))
            profile, central = profiles.split([len(z), len(profiles) - len(z)])
            if self.zero_inflation is not None:  # what is compared are means of all cells
                central = central + self.spared(torch.cat(means)).log()
        px = None
        if not (self.training and self.gene_likelihood in IN_CLOSED_FORM):
            logits = None if self.zero_inflation is None else self.zero_inflation(hidden)
            px = self.observation.distribution(profile, context.condition, total, logits)
        pz = Normal(torch.zeros_like(z), torch.ones_like(z), validate_args=False)
        made = {"px": px, "pz": pz, "pl": None, "y": y, "profile": profile, "context": context}
        return made | {"transfer": transfer, "central": central}

    def loss(
        self,
        tensors: dict[str, Tensor],
        inference_outputs: dict[str, Any],
        generative_outputs: dict[str, Any],
        kl_weight: float = 1.0,
    ) -> LossOutput:
        """Return the loss and its terms; `kl_weight` is what the training plan has warmed up to."""
        qz = inference_outputs["qz"]
        profile, px = generative_outputs["profile"], generative_outputs["px"]
        reconstruction = self.observation.nll(tensors, profile, px)
        kl = gaussian_kl(qz.loc, qz.scale) if self.variational else torch.zeros_like(qz.loc[:, 0])
        terms = {"mmd": qz.loc.new_zeros(()), "transfer": qz.loc.new_zeros(())}
        points = generative_outputs["y"] if self.mmd_on == "decoder" else inference_outputs["z"]
        if self.mmd_weight and points.dim() == 2:
            how = {"n_groups": len(self.condition_design), "kernel": self.mmd_kernel}
            if self.mmd_kernel == "paper":
                how |= {"unbiased": False, "reduction": "sum"}
            if self.mmd_within_labels:  # else labels that one condition lacks were moved, too
                how["strata"] = self.peers.rows(codes_of(tensors, REGISTRY_KEYS.LABELS_KEY))
            condition = self.peers.rows(codes_of(tensors, CONDITION_KEY))
            terms["mmd"] = mmd(self.peers.rows(points), condition, **how)
        if (transfer := generative_outputs["transfer"]) is not None:
            levels = self.observation.level(generative_outputs["central"])
            terms["transfer"] = transfer_loss(transfer, levels, self.profiles)
        weighted = {
            "reconstruction_weighted": self.recon_weight * reconstruction.mean(),
            "kl_weighted": kl_weight * kl.mean(),
            "mmd_weighted": self.mmd_weight * terms["mmd"],
            "transfer_weighted": self.transfer_weight * terms["transfer"],
        }
        own = weighted["reconstruction_weighted"] + weighted["kl_weighted"]
        own = self.peers.by_rows(own, len(reconstruction))
        return LossOutput(
            loss=own + weighted["mmd_weighted"] + weighted["transfer_weighted"],
            reconstruction_loss=reconstruction,
            kl_local={"kl_local": kl},
            extra_metrics={k: v.detach() for k, v in (terms | weighted).items()},
        )

    @torch.inference_mode()
    def sample(
        self,
        tensors: dict[str, Tensor],
        n_samples: int = 1,
        generative_kwargs: dict[str, Any] | None = None,
    ) -> Tensor:
        """Draw from the posterior predictive, (n_cells, n_genes) or (n_cells, n_genes, n_samples)."""
        kwargs = {"inference_kwargs": {"n_samples": n_samples}, **_WITHOUT_LOSS}
        made = self.forward(tensors, generative_kwargs=generative_kwargs, **kwargs)[1]
        drawn = made["px"].sample()
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
        r"""Estimate log p(x) by importance sampling from q(z | x), in nats; of ``mse`` less its constant.

        .. math:: \log \frac1S \sum_s p(x \mid z_s)\,p(z_s) / q(z_s \mid x)
        """
        terms, kwargs = [], {"inference_kwargs": {"n_samples": n_mc_samples_per_pass}}
        for _ in range(math.ceil(n_mc_samples / n_mc_samples_per_pass)):
            inferred, generated = self.forward(tensors, **kwargs, **_WITHOUT_LOSS)
            z = inferred["z"]
            log_ratio = Normal(0.0, 1.0).log_prob(z).sum(-1) - inferred["qz"].log_prob(z).sum(-1)
            log_p = log_ratio - self.observation.nll(tensors, generated["profile"], generated["px"])
            terms.append(log_p.reshape(n_mc_samples_per_pass, -1))
        samples = torch.cat(terms)
        values = torch.logsumexp(samples, 0) - math.log(len(samples))
        return values.mean().item() if return_mean else values.cpu()

    @torch.inference_mode()
    @auto_move_data
    def encode(self, tensors: dict[str, Tensor]) -> Normal:
        """Return q(z | x, c) of a minibatch."""
        return self._posterior(**self._get_inference_input(tensors))
