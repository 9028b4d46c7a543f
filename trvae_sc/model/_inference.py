"""Representations, and what scvi-tools computes from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi.model.base import RNASeqMixin, VAEMixin

from trvae_sc.errors import InputError
from trvae_sc.levels import as_list, listing
from trvae_sc.model._codes import COLLAPSED
from trvae_sc.model._registration import NOT_TRAINED
from trvae_sc.model._saving import SavedModel
from trvae_sc.module import COUNT_LIKELIHOODS, aligned


class EncodingModel(RNASeqMixin, VAEMixin, SavedModel):
    """scvi-tools' methods, where they hold for the likelihood of the model."""

    @property
    def active_dims(self) -> list[int]:
        """Latent dimensions that carry something: 0.01 nats of KL or more, over the training cells.

        All of them in an autoencoder, which has no KL.
        """
        n_latent = self.module.z_mean.out_features
        if len(self.kl_) != n_latent:
            return list(range(n_latent))
        return np.flatnonzero(self.kl_ >= COLLAPSED).tolist()

    @torch.inference_mode()
    def get_mmd_representation(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
    ) -> np.ndarray:
        """Return y at the posterior mean, the first decoder layer, shape (n_cells, n_hidden[-1])."""
        self._check_if_trained(warn=False, message=NOT_TRAINED)
        adata = self._validate_anndata(adata)
        loader = self._make_data_loader(adata, indices, batch_size)
        batches = [aligned(self.module, tensors).cpu() for tensors in loader]
        width = self.module.decoder_in.linear.out_features
        return torch.cat(batches).numpy() if batches else np.zeros((0, width), np.float32)

    def get_normalized_expression(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        *,
        transform_condition: Any = None,
        **kwargs: Any,
    ) -> np.ndarray | pd.DataFrame:
        """Return the expected profile of cells, under their own or another condition.

        For counts the expected share of each gene in the cell's total (times ``library_size``, 1 by
        default), of ``zinb`` without its zero inflation, as of :class:`scvi.model.SCVI`; otherwise the mean in
        the units of the data.

        Parameters
        ----------
        adata
            AnnData with the genes of the model in any order; the model's own if None.
        indices
            Rows to use.
        transform_condition
            Condition to decode with; each cell's own if None.
        **kwargs
            Passed to :meth:`scvi.model.base.RNASeqMixin.get_normalized_expression`
            (``transform_batch``, ``gene_list``, ``library_size``, ``n_samples``, ``return_numpy``).

        Raises
        ------
        InputError
            Unknown condition or genes, or a network that does not see the condition (presets ``vae``,
            ``beta_vae``, ``autoencoder``).
        """
        if kwargs.get("gene_list") is not None:
            known, kwargs["gene_list"] = set(self.get_var_names()), as_list(kwargs["gene_list"])
            if unknown := [gene for gene in kwargs["gene_list"] if gene not in known]:
                raise InputError(
                    f"gene_list has {listing(unknown)}, which the model does not know."
                )
        if transform_condition is not None:
            self._needs_condition()
            features = self.condition_space.features(transform_condition)
            target = torch.as_tensor(features, device=self.device)
            loader_kwargs = {**kwargs.pop("data_loader_kwargs", {}), "target_condition": target}
            kwargs["data_loader_kwargs"] = loader_kwargs
        return super().get_normalized_expression(adata, indices, **kwargs)

    def get_elbo(self, *args: Any, **kwargs: Any) -> float:
        """See :meth:`scvi.model.base.VAEMixin.get_elbo`; not of an autoencoder, which has no posterior."""
        self._needs_posterior("get_elbo")
        return super().get_elbo(*args, **kwargs)

    def get_marginal_ll(self, *args: Any, **kwargs: Any) -> Any:
        """See :meth:`scvi.model.base.VAEMixin.get_marginal_ll`; not of an autoencoder."""
        self._needs_posterior("get_marginal_ll")
        return super().get_marginal_ll(*args, **kwargs)

    def differential_expression(self, *args: Any, **kwargs: Any) -> pd.DataFrame:
        """Bayesian differential expression of scvi-tools between groups of observed cells.

        See :meth:`scvi.model.base.RNASeqMixin.differential_expression`.

        Raises
        ------
        NotImplementedError
            For ``normal`` and ``mse``: scvi-tools takes the logarithm of what is a mean of any
            sign there. Use ``scanpy.tl.rank_genes_groups``.
        """
        if not self.module.is_count:
            raise NotImplementedError(
                f"differential_expression takes logarithms of means and so needs a count likelihood, "
                f"not '{self.module.gene_likelihood}'. Use scanpy.tl.rank_genes_groups on the values."
            )
        return super().differential_expression(*args, **kwargs)

    @torch.inference_mode()
    def get_aggregated_posterior(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
        dof: float | None = 3.0,
    ) -> torch.distributions.Distribution:
        """Return the mean of the cells' posteriors, a mixture distribution over z.

        As in scvi-tools 1.5; 1.4 takes the variances for standard deviations.

        Parameters
        ----------
        adata, indices, batch_size
            Cells to use, as in ``get_latent_representation``.
        dof
            Degrees of freedom of Student's t in place of each Gaussian; None: Gaussians.
        """
        self._needs_posterior("get_aggregated_posterior")
        mean, variance = self.get_latent_representation(
            adata, indices, batch_size=batch_size, return_dist=True
        )
        loc = torch.as_tensor(mean, device=self.device)
        scale = torch.as_tensor(variance, device=self.device).sqrt()
        if dof is None:
            component = torch.distributions.Normal(loc, scale)
        else:
            component = torch.distributions.StudentT(dof, loc, scale)
        return torch.distributions.MixtureSameFamily(
            torch.distributions.Categorical(logits=torch.zeros(len(loc), device=self.device)),
            torch.distributions.Independent(component, 1),
        )

    def differential_abundance(self, adata: AnnData | None = None, **kwargs: Any) -> pd.DataFrame:
        """Return each cell's log density under the aggregated posterior of each sample.

        Also written to ``adata.obsm["da_log_probs"]``. See
        :meth:`scvi.model.base.VAEMixin.differential_abundance`.
        """
        self._needs_posterior("differential_abundance")
        if kwargs.get("dataloader") is not None:
            return super().differential_abundance(adata, **kwargs)
        registered = self._validate_anndata(adata)
        given, scored = adata, registered
        if kwargs.get("adata_sub") is not None:
            given, scored = kwargs["adata_sub"], self._validate_anndata(kwargs["adata_sub"])
            kwargs["adata_sub"] = scored
        super().differential_abundance(registered, **kwargs)
        if given is not None and given is not scored:
            given.obsm["da_log_probs"] = scored.obsm["da_log_probs"]
        return scored.obsm["da_log_probs"]

    def get_likelihood_parameters(self, *args: Any, **kwargs: Any) -> dict[str, np.ndarray]:
        """See :meth:`scvi.model.base.RNASeqMixin.get_likelihood_parameters`; nb and zinb only."""
        self._needs("get_likelihood_parameters", ["nb", "zinb"])
        return super().get_likelihood_parameters(*args, **kwargs)

    def get_feature_correlation_matrix(self, *args: Any, **kwargs: Any) -> pd.DataFrame:
        """See :meth:`scvi.model.base.RNASeqMixin.get_feature_correlation_matrix`; nb and zinb only."""
        self._needs("get_feature_correlation_matrix", ["nb", "zinb"])
        return super().get_feature_correlation_matrix(*args, **kwargs)

    def get_importance_weights(self, *args: Any, **kwargs: Any) -> np.ndarray:
        """See :meth:`scvi.model.base.RNASeqMixin.get_importance_weights`.

        Raises
        ------
        NotImplementedError
            For other likelihoods than nb and zinb, and with ``total_counts_key``: scvi-tools would
            multiply our shares of the whole total by the sum over the registered genes.
        """
        self._needs("weights='importance'", ["nb", "zinb"])
        if self.module.has_total:
            raise NotImplementedError(
                "weights='importance' assumes that a cell's total is the sum over the registered genes, "
                "which it is not with total_counts_key. Use weights='uniform'."
            )
        return super().get_importance_weights(*args, **kwargs)

    def get_latent_library_size(self, *args: Any, **kwargs: Any) -> np.ndarray:
        """See :meth:`scvi.model.base.RNASeqMixin.get_latent_library_size`; counts only."""
        self._needs("get_latent_library_size", list(COUNT_LIKELIHOODS))
        return super().get_latent_library_size(*args, **kwargs)

    def _needs_posterior(self, what: str) -> None:
        """Raise where the encoder gives a point, with a width that means nothing."""
        if not self.module.variational:
            raise NotImplementedError(
                f"{what} needs a posterior, which an autoencoder does not have. Use another preset, or "
                "get_reconstruction_error."
            )

    def _needs_condition(self) -> None:
        """Raise where the network gives the same under every condition."""
        if self.module.decoder_in.condition is None:
            raise InputError(
                f"The network of preset '{self.preset_}' does not see the condition: transform_condition "
                "would change nothing. Use predict, which moves the codes."
            )

    def _needs(self, what: str, likelihoods: list[str]) -> None:
        """Raise where scvi-tools' code assumes another likelihood than the model's."""
        if self.module.gene_likelihood not in likelihoods:
            raise NotImplementedError(
                f"{what} is available with gene_likelihood {likelihoods}, not "
                f"'{self.module.gene_likelihood}'."
            )
