"""Representations, and what scvi-tools computes from them."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.model.base import RNASeqMixin, VAEMixin

from trvae_sc.arguments import check_known, check_number, check_whole, named
from trvae_sc.checks import check_obs
from trvae_sc.errors import InputError
from trvae_sc.levels import as_list, levels, listing, match_level
from trvae_sc.model._codes import COLLAPSED
from trvae_sc.model._registration import NOT_TRAINED
from trvae_sc.model._saving import SavedModel
from trvae_sc.module import COUNT_LIKELIHOODS, aligned

#: Columns of ``obs`` that scvi-tools' differential expression writes, reads again and leaves behind.
_SCRATCH = ["_scvi_raw_norm_scaling", "_scvi_temp_de"]
_WHOLE = ("n_samples", "n_samples_overall", "n_mc_samples")

T = TypeVar("T")


class EncodingModel(RNASeqMixin, VAEMixin, SavedModel):
    """scvi-tools' methods, where they hold for the likelihood of the model."""

    @property
    def active_dims(self) -> list[int]:
        """Latent dimensions of 0.01 nats of KL or more over the training cells; of autoencoders all."""
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
            (``transform_batch``, ``gene_list``, ``library_size``, ``n_samples``, ``return_numpy``). Genes are in the
            order of the model, whatever that of ``gene_list``.

        Raises
        ------
        InputError
            Unknown condition, genes, batch or argument, a library size of what is no count, or a network that
            does not see the condition (presets ``vae``, ``beta_vae``, ``autoencoder``).
        """
        of_scvi, own = super().get_normalized_expression, self.get_normalized_expression
        # scvi-tools takes any further argument, and would not say that it is not used
        further = [*named(of_scvi), *named(super().get_importance_weights)]
        check_known(kwargs, own, further, also=", and those of scvi-tools")
        self._check_scale(kwargs)
        if kwargs.get("n_samples_overall") is not None:
            if kwargs.get("n_samples", 1) != 1:
                raise InputError(
                    "n_samples are those of each cell, and n_samples_overall those of all: give one of them."
                )
            kwargs["return_numpy"] = True  # draws of no cell have no name
        if transform_condition is not None:
            if self.module.decoder_in.condition is None:
                raise InputError(
                    f"The network of preset '{self.preset_}' does not see the condition: transform_condition "
                    "would change nothing. Use predict, which moves the codes."
                )
            features = self.condition_space.features(transform_condition)
            target = torch.as_tensor(features, device=self.device)
            given = kwargs.get("data_loader_kwargs") or {}
            kwargs["data_loader_kwargs"] = {**given, "target_condition": target}
        return self._checked(of_scvi, adata, indices, **kwargs)

    def _check_scale(self, given: dict[str, Any]) -> None:
        """Raise on a library size or weights that expression cannot be given with."""
        size, weights = given.get("library_size", 1), given.get("weights")
        if not (isinstance(size, str) and size == "latent"):
            check_number("library_size", size, 0.0)
            if size != 1 and not self.module.is_count:
                raise InputError(
                    f"library_size is {size!r}, which multiplies shares of counts. Values of gene_likelihood "
                    f"'{self.module.gene_likelihood}' are in the units of the data: leave it out."
                )
        if weights not in (None, "uniform", "importance"):
            raise InputError(f"weights is {weights!r}; choose 'uniform' or 'importance'.")
        if weights == "importance":
            self._needs_totals_of_genes()

    def posterior_predictive_sample(self, *args: Any, **kwargs: Any) -> Any:
        """See :meth:`scvi.model.base.RNASeqMixin.posterior_predictive_sample`.

        Genes are in the order of the model, whatever that of ``gene_list``.
        """
        return self._checked(super().posterior_predictive_sample, *args, **kwargs)

    def get_elbo(self, *args: Any, **kwargs: Any) -> float:
        """See :meth:`scvi.model.base.VAEMixin.get_elbo`; not of an autoencoder, which has no posterior."""
        self._needs_posterior("get_elbo")
        return super().get_elbo(*args, **kwargs)

    def get_marginal_ll(self, *args: Any, **kwargs: Any) -> Any:
        """See :meth:`scvi.model.base.VAEMixin.get_marginal_ll`; not of an autoencoder."""
        self._needs_posterior("get_marginal_ll")
        return self._checked(super().get_marginal_ll, *args, **kwargs)

    def differential_expression(
        self, adata: AnnData | None = None, groupby: str | None = None, *args: Any, **kwargs: Any
    ) -> pd.DataFrame:
        """Bayesian differential expression of scvi-tools between groups of observed cells.

        See :meth:`scvi.model.base.RNASeqMixin.differential_expression`. `adata` is not changed.
        ``raw_normalized_mean1`` and ``2`` are counts in 10,000 of the cell, whose total is that of
        ``total_counts_key``, if it was named.

        Raises
        ------
        InputError
            Neither ``groupby`` nor ``idx1`` is given, or a column or group is not there.
        NotImplementedError
            For ``normal`` and ``mse``: scvi-tools takes the logarithm of what is a mean of any
            sign there. Use ``scanpy.tl.rank_genes_groups``.
        """
        if not self.module.is_count:
            raise NotImplementedError(
                f"differential_expression takes logarithms of means and so needs a count likelihood, "
                f"not '{self.module.gene_likelihood}'. Use scanpy.tl.rank_genes_groups on the values."
            )
        method = super().differential_expression
        registered = self._validate_anndata(adata)
        bound = inspect.signature(method).bind(registered, groupby, *args, **kwargs)
        if bound.arguments.get("idx1") is None:
            _check_groups(registered, bound.arguments)
        with _without_scratch(registered):
            # scvi-tools would divide by the sum over the registered genes
            if self.module.has_total:
                total = registered.obs[self.registry_["setup_args"]["total_counts_key"]]
                registered.obs[_SCRATCH[0]] = 1e4 / total.astype(float)
            return method(*bound.args, **bound.kwargs)

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

    def differential_abundance(
        self, adata: AnnData | None = None, sample_key: str | None = None, **kwargs: Any
    ) -> pd.DataFrame:
        """Return each cell's log density under the aggregated posterior of each sample.

        Also written to ``adata.obsm["da_log_probs"]``; see
        :meth:`scvi.model.base.VAEMixin.differential_abundance`.
        """
        self._needs_posterior("differential_abundance")
        if kwargs.get("dataloader") is not None:
            return super().differential_abundance(adata, sample_key=sample_key, **kwargs)
        registered = self._validate_anndata(adata)
        if sample_key is None:
            raise InputError("Name the column of adata.obs with the samples: sample_key=.")
        check_obs(registered, [sample_key])
        given, scored = adata, registered
        if kwargs.get("adata_sub") is not None:
            given, scored = kwargs["adata_sub"], self._validate_anndata(kwargs["adata_sub"])
            kwargs["adata_sub"] = scored
        super().differential_abundance(registered, sample_key=sample_key, **kwargs)
        if given is not None and given is not scored:
            given.obsm["da_log_probs"] = scored.obsm["da_log_probs"]
        return scored.obsm["da_log_probs"]

    def get_likelihood_parameters(self, *args: Any, **kwargs: Any) -> dict[str, np.ndarray]:
        """See :meth:`scvi.model.base.RNASeqMixin.get_likelihood_parameters`; nb and zinb only."""
        self._needs("get_likelihood_parameters", ["nb", "zinb"])
        return self._checked(super().get_likelihood_parameters, *args, **kwargs)

    def get_feature_correlation_matrix(self, *args: Any, **kwargs: Any) -> pd.DataFrame:
        """See :meth:`scvi.model.base.RNASeqMixin.get_feature_correlation_matrix`; nb and zinb only."""
        self._needs("get_feature_correlation_matrix", ["nb", "zinb"])
        return self._checked(super().get_feature_correlation_matrix, *args, **kwargs)

    def get_importance_weights(self, *args: Any, **kwargs: Any) -> np.ndarray:
        """See :meth:`scvi.model.base.RNASeqMixin.get_importance_weights`.

        Raises
        ------
        NotImplementedError
            For other likelihoods than nb and zinb, and with ``total_counts_key``: scvi-tools would
            multiply our shares of the whole total by the sum over the registered genes.
        """
        self._needs_totals_of_genes()
        return super().get_importance_weights(*args, **kwargs)

    def _needs_totals_of_genes(self) -> None:
        """Raise where importance weights would be of other values than the model's."""
        self._needs("weights='importance'", ["nb", "zinb"])
        if self.module.has_total:
            raise NotImplementedError(
                "weights='importance' assumes that a cell's total is the sum over the registered genes, "
                "which it is not with total_counts_key. Use weights='uniform'."
            )

    def get_latent_library_size(self, *args: Any, **kwargs: Any) -> np.ndarray:
        """See :meth:`scvi.model.base.RNASeqMixin.get_latent_library_size`; counts only."""
        self._needs("get_latent_library_size", list(COUNT_LIKELIHOODS))
        return super().get_latent_library_size(*args, **kwargs)

    def _checked(self, method: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call a method of scvi-tools, once genes, batches and numbers are checked."""
        self._check_if_trained(warn=False, message=NOT_TRAINED)
        bound = inspect.signature(method).bind(*args, **kwargs)
        given = bound.arguments
        for name in _WHOLE:
            if given.get(name) is not None:
                check_whole(name, given[name])
        if np.isscalar(given.get("indices")):
            given["indices"] = [given["indices"]]
        if given.get("gene_list") is not None:
            known, given["gene_list"] = set(self.get_var_names()), as_list(given["gene_list"])
            if unknown := [gene for gene in given["gene_list"] if gene not in known]:
                raise InputError(
                    f"gene_list has {listing(unknown)}, which the model does not know."
                )
        if given.get("transform_batch") is not None:
            known_batches = self._levels(REGISTRY_KEYS.BATCH_KEY)
            given["transform_batch"] = [
                None if batch is None else match_level(batch, known_batches, of="batch")
                for batch in as_list(given["transform_batch"])
            ]
        return method(*bound.args, **bound.kwargs)

    def _needs_posterior(self, what: str) -> None:
        """Raise where the encoder gives a point, with a width that means nothing."""
        if not self.module.variational:
            raise NotImplementedError(
                f"{what} needs a posterior, which an autoencoder does not have. Use another preset, or "
                "get_reconstruction_error."
            )

    def _needs(self, what: str, likelihoods: list[str]) -> None:
        """Raise where scvi-tools' code assumes another likelihood than the model's."""
        if self.module.gene_likelihood not in likelihoods:
            raise NotImplementedError(
                f"{what} is available with gene_likelihood {likelihoods}, not "
                f"'{self.module.gene_likelihood}'."
            )


def _check_groups(adata: AnnData, given: dict[str, Any]) -> None:
    """Raise on groups to compare that are not there; without any, take all that are."""
    key = given.get("groupby")
    if key is None:
        raise InputError(
            "Name a column of adata.obs with groups to compare, groupby=, or choose cells: idx1="
        )
    check_obs(adata, [key])
    if given.get("subset_idx", given.get("kwargs", {}).get("subset_idx")) is not None:
        return  # scvi-tools makes the groups text, and one of all other cells
    present = levels(adata.obs[key])
    if len(present) < 2:
        raise InputError(
            f"adata.obs['{key}'] has one group, {present}; at least two can be compared."
        )
    for name in ("group1", "group2"):
        if given.get(name) is not None:
            chosen = [match_level(group, present, of="group") for group in as_list(given[name])]
            given[name] = chosen if name == "group1" else chosen[0]
    if given.get("group1") is None:
        given["group1"] = present


@contextlib.contextmanager
def _without_scratch(adata: AnnData) -> Iterator[None]:
    """Take columns that scvi-tools writes out of ``obs``, and put it back as it was."""
    obs = adata.obs
    adata.obs = obs.drop(columns=_SCRATCH, errors="ignore")
    try:
        yield
    finally:
        adata.obs = obs
