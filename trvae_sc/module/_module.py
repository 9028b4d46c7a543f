"""The network of trVAE and its loss: likelihood + KL + MMD between conditions + transfer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from scvi import REGISTRY_KEYS
from scvi.distributions import NegativeBinomial, Normal, Poisson, ZeroInflatedNegativeBinomial
from scvi.module.base import LossOutput, auto_move_data
from torch import Tensor, nn
from torch.distributions import Normal as TorchNormal
from torch.nn import functional

from trvae_sc.mmd import Kernel
from trvae_sc.module._layers import (
    CONDITION_KEY,
    TARGET_KEY,
    TOTAL_KEY,
    Activation,
    ConditionedLayer,
    Context,
    stack,
)
from trvae_sc.module._likelihood import (
    COUNT_LIKELIHOODS,
    Likelihood,
    gaussian_kl,
    negative_binomial_nll,
    normal_nll,
)
from trvae_sc.module._scoring import ScoringMixin
from trvae_sc.module._statistics import StatisticsMixin
from trvae_sc.module._terms import TermsMixin, Transfer

_MAX_LOG_VARIANCE = 10.0
_EPS = 1e-8


class TRVAEModule(TermsMixin, StatisticsMixin, ScoringMixin):
    r"""Conditional VAE whose first decoder layer is aligned across conditions.

    .. math::
        q(z \mid x, c) = N(\mu(x, c), \mathrm{diag}\,\sigma^2(x, c)), \qquad
        y = \mathrm{act}(\mathrm{norm}(W z + V c)), \qquad p(x \mid y)

    .. math:: L = w_r\,E[-\log p(x \mid y)] + w_{kl}\,KL(q \,\|\, N(0, I))
       + w_{mmd}\,\mathrm{MMD}^2(y) + w_t\,T

    The likelihood is summed over genes and averaged over cells. MMD is :func:`trvae_sc.mmd.mmd`
    between conditions, inside each label: of pooled cells it would also be lowered by moving cells of
    a label that one condition lacks to those of others. T is the transfer loss: the cells of a label
    and condition s are decoded under s and another condition t of that label, up to the last hidden
    layer. The change of the profile that its mean gives, :math:`d = f(q_t) - f(q_s)`, is compared with
    that of the training profiles, :math:`D = f(p_t) - f(p_s)`:

    .. math:: T = \tfrac12 \sum_g \big[\bar e_g \bar e'_g + 0.3\,(e_g - \bar e_g)(e'_g - \bar e'_g)\big],
       \qquad e = d - D

    with the mean :math:`\bar e` over labels (what is a label's own counts less: learned by heart, it does not
    hold for others), e and e' of either half of the cells in a minibatch (the square of one would also punish
    that cells differ; the product may be negative), :math:`f(r) = \log(1 + \kappa r)` for proportions
    (kappa: median total of the training cells) and f the identity for values in units of their
    standard deviation. A minibatch compares a random choice of its groups (one for 16 cells, at most),
    in every second step; weights make up for both. Groups count by their cells in the minibatch and by
    how well D is known, :math:`n / (n + 10)` for the harmonic mean n of the label's training cells under
    s and t. Nothing enters of a combination held out of training: it has no profile.

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
    linear_path
        Whether codes, and what is decoded, also have a linear part. Of values that are no counts it starts at
        their principal components.
    has_total
        Whether cells carry a total over more genes than `n_input`. The decoder then has one more
        class, the rest of the genome.
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
        self._frozen: dict[str, Tensor] = {}
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
        n_features = condition_design.shape[1]
        bias = norm != "batch"
        act = {"norm": norm, "leaky_slope": leaky_slope, "dropout_rate": dropout_rate}
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
        self.decoder = nn.Sequential(
            nn.Dropout(dropout_rate), *stack(hidden[::-1], bias=bias, **act)
        )
        n_last = hidden[0] + linear_path * n_latent
        self.output = nn.Linear(n_last, n_input + self.has_total)
        self.zero_inflation = nn.Linear(n_last, n_input) if gene_likelihood == "zinb" else None
        if gene_likelihood in ("nb", "zinb", "normal"):  # log theta, or log standard deviation
            self.log_dispersion = nn.Parameter(torch.zeros(n_input))
            per_condition = dispersion == "gene-condition" and condition_in != "none"
            self.log_dispersion_condition = (
                nn.Parameter(torch.zeros(n_features, n_input)) if per_condition else None
            )
        self._register_statistics(n_input, condition_design)

    def train(self, mode: bool = True) -> TRVAEModule:
        """Set training mode; with frozen parameters batch norm keeps its statistics."""
        super().train(mode)
        if self._frozen:
            for layer in self.modules():
                if isinstance(layer, nn.BatchNorm1d):
                    layer.eval()
        return self

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
        return (tensors[TOTAL_KEY] if self.has_total else x.sum(1, keepdim=True)).clamp_min(1.0)

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
        qz = self._posterior(x, context, total)
        z = qz.rsample() if n_samples == 1 else qz.rsample((n_samples,))
        library = None if total is None else total.log()
        return {"z": z, "qz": qz, "library": library, "ql": None}

    def _posterior(self, x: Tensor, context: Context, total: Tensor | None) -> TorchNormal:
        """Return q(z | x, c)."""
        if self.is_count:
            x = torch.log1p((self.kappa * x).div_(total))
        elif self.gene_likelihood == "normal":
            x = (x - self.gene_mean) / self.gene_scale
        hidden = self.encoder(self.encoder_in(x, context))
        hidden = torch.cat([hidden, x], -1) if self.linear_path else hidden
        mean = self.z_mean(hidden).float()  # in mixed precision layers return half of the digits
        if self.z_log_variance is None:  # autoencoder: a point, with a width nobody can see
            scale = torch.full_like(mean, _EPS)
        else:
            log_variance = self.z_log_variance(hidden).float()
            scale = (0.5 * log_variance.clamp(-_MAX_LOG_VARIANCE, _MAX_LOG_VARIANCE)).exp()
        return TorchNormal(mean, scale, validate_args=False)

    def _get_generative_input(
        self,
        tensors: dict[str, Tensor],
        inference_outputs: dict[str, Any],
        transfer_factor: float = 1.0,
    ) -> dict[str, Any]:
        """Return the arguments of :meth:`generative`; the transfer loss counts by a factor, 0: none."""
        with_transfer = self.transfer_weight * transfer_factor and inference_outputs["z"].dim() == 2
        return {
            "z": inference_outputs["z"],
            "context": self._context(tensors, tensors.get(TARGET_KEY)),
            "total": self._total(tensors),
            "transfer": self._draw_transfer(tensors, transfer_factor) if with_transfer else None,
        }

    def hidden_layers(self, z: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Return y and the last hidden layer."""
        y = self.mmd_layer(self.decoder_in(z, context))
        hidden = self.decoder(y)
        return y, torch.cat([hidden, z], -1) if self.linear_path else hidden

    def to_profile(self, hidden: Tensor) -> Tensor:
        """Return the profile of last hidden layers, shape (..., n_cells, n_genes).

        The profile is the log proportion of each gene for counts, the standardised mean for
        ``normal``, the mean for ``mse``.
        """
        out = self.output(hidden).float()
        if self.is_count:
            out = functional.log_softmax(out, dim=-1)
            return out[..., :-1] if self.has_total else out
        return functional.relu(out) if self.relu_output else out

    def log_theta(self, features: Tensor) -> Tensor:
        """Return log inverse dispersion (or log standard deviation) by cell, or one row for all."""
        if self.log_dispersion_condition is None:
            return self.log_dispersion[None]
        with torch.autocast(features.device.type, enabled=False):
            return self.log_dispersion + features @ self.log_dispersion_condition

    def _log_theta_rows(self, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Return :meth:`log_theta` of all conditions and the row of each cell, or, if there are fewer, by cell."""
        code, design = tensors[CONDITION_KEY].long().flatten(), self.condition_design
        if TARGET_KEY in tensors or len(design) > len(code):
            return self.log_theta(tensors.get(TARGET_KEY, design[code])), None
        table = self.log_theta(design)  # one row where it is the same for all conditions
        return table, code.clamp_max(len(table) - 1)

    @auto_move_data
    def generative(
        self,
        z: Tensor,
        context: Context,
        total: Tensor | None = None,
        transform_batch: int | None = None,
        transfer: Transfer | None = None,
    ) -> dict[str, Any]:
        """Decode z: y, the profile, and the distribution of the data.

        With `transfer` also the profiles that the transfer loss compares, in one product with the
        output layer.
        """
        if transform_batch is not None and self.n_batch:
            codes = torch.full_like(context.categories[0], int(transform_batch))
            context = context._replace(categories=[codes, *context.categories[1:]])
        y, hidden = self.hidden_layers(z, context)
        central = None
        if transfer is None:
            profile = self.to_profile(hidden)
        else:
            rows = torch.cat([hidden, *self._central(z, hidden, context, transfer)])
            profile, central = self.to_profile(rows).split([len(z), len(rows) - len(z)])
        logits = None if self.zero_inflation is None else self.zero_inflation(hidden)
        px = None  # the loss of these does without, and it takes passes over all genes
        if not (self.training and self.gene_likelihood in ("nb", "normal", "mse")):
            px = self._distribution(profile, context.condition, total, logits)
        pz = TorchNormal(torch.zeros_like(z), torch.ones_like(z), validate_args=False)
        made = {"px": px, "pz": pz, "pl": None, "y": y, "profile": profile, "context": context}
        return made | {"transfer": transfer, "central": central}

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

    def reconstruction_loss(
        self, tensors: dict[str, Tensor], generative_outputs: dict[str, Any]
    ) -> Tensor:
        """Return -log p(x | y) in nats (``mse``: half the squared error), summed over genes."""
        x, profile = tensors[REGISTRY_KEYS.X_KEY], generative_outputs["profile"]
        if self.gene_likelihood == "mse":
            return 0.5 * (x - profile).square().sum(-1)
        if self.gene_likelihood == "nb":
            log_mean = profile + self._total(tensors).log()
            return negative_binomial_nll(x, log_mean, *self._log_theta_rows(tensors))
        if self.gene_likelihood == "normal":
            x, constant = (x - self.gene_mean) / self.gene_scale, self.gene_scale.log().sum()
            return normal_nll(x, profile, *self._log_theta_rows(tensors)) + constant
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
        terms["transfer"] = self._transfer(generative_outputs)
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
        hidden = self.hidden_layers(z, self._context(tensors, features))[1]
        if self.is_count:
            shares = functional.softmax(self.output(hidden), dim=-1)
            return shares[..., :-1] if self.has_total else shares
        return self.gene_mean + self.gene_scale * self.to_profile(hidden)
