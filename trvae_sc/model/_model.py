"""TRVAE: the scvi-tools model class."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import rich.pretty  # noqa: F401  (scvi-tools' view_anndata_setup needs it loaded)
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS

from trvae_sc.mmd import Kernel
from trvae_sc.model import _io, _setup
from trvae_sc.model._conditions import ConditionsMixin
from trvae_sc.model._fields import fields
from trvae_sc.model._generate import generate_cells
from trvae_sc.model._inference import NOT_TRAINED, InferenceMixin
from trvae_sc.model._predict import Output, predict_cells, predict_missing
from trvae_sc.model._presets import PRESETS
from trvae_sc.model._registration import RegistrationMixin
from trvae_sc.model._saving import SavingMixin
from trvae_sc.model._setup import logger
from trvae_sc.model._training import TrainingMixin
from trvae_sc.module import (
    Likelihood,
    TRVAEModule,
)
from trvae_sc.training import (
    DataLoader,
    DataManager,
    DataSplitter,
    TrainingPlan,
    TrainRunner,
    default_seed,
)

_FEW_GENES = 5000  # below, an AnnData is likely to hold variable genes only


class TRVAE(ConditionsMixin, InferenceMixin, TrainingMixin, SavingMixin, RegistrationMixin):
    """Transfer VAE: predicts cells under conditions they were not measured in.

    A conditional variational autoencoder whose first decoder layer is aligned across conditions
    by a maximum mean discrepancy (Lotfollahi et al. 2020, doi:10.1093/bioinformatics/btaa800), with
    count likelihoods and, where labels are given, a transfer loss that trains the path prediction
    takes. The equations are in :class:`trvae_sc.module.TRVAEModule`.

    Parameters
    ----------
    adata
        AnnData registered with :meth:`setup_anndata`.
    registry
        Registry of such a registration, in place of `adata`.
    preset
        Where arguments that are None take their values from: ``"default"``, ``"paper"`` (the
        published architecture and loss; needs log-normalised values), ``"cvae"`` (no MMD, no
        transfer), ``"mmd_cvae"`` (MMD on the latent space), ``"vae"`` (no condition), ``"beta_vae"``
        (the same with `kl_weight`, its beta, at 4) or ``"autoencoder"`` (no condition, no noise, no
        KL). See ``trvae_sc.PRESETS``.
    gene_likelihood
        ``"nb"``, ``"zinb"``, ``"poisson"`` for counts; ``"normal"`` for any values (log-normalised,
        protein), with a learned variance per gene; ``"mse"`` for squared error.
    n_latent
        Dimensions of the latent space.
    n_hidden
        Widths of the encoder; the decoder mirrors them. Its first layer is the MMD layer.
    dropout_rate
        Share of hidden units dropped in training.
    dispersion
        Dispersion (or variance) by ``"gene"`` or by ``"gene-condition"``.
    condition_in
        Whether ``"both"`` encoder and decoder see the condition, only the ``"decoder"``, or
        ``"none"``.
    kl_weight, mmd_weight, transfer_weight
        Weights of the loss terms; `kl_weight` is the beta of a beta-VAE.
    mmd_on
        Layer that the MMD compares: ``"decoder"`` (y) or ``"latent"`` (z).
    mmd_kernel
        ``"median"`` (unbiased estimate, median bandwidths) or ``"paper"`` (as published).
    calibrate
        Whether predictions are put on the level of the source cells: the decoded rates of a label's
        cells are scaled so that, under their own condition, they have the mean that was observed.
        Needs a network that sees the condition.
    context_weight
        Share, 0 to 1, that a ridge regression over the training labels has in the mean change of a
        label (see :meth:`predict`); the network has the rest. Needs `calibrate` and labels.
    seed
        Seed of initial weights, split, shuffling and noise; ``scvi.settings.seed`` or else 0 if
        None. Equal seeds give equal weights, to the bit, on a CPU with the same number of threads.
    **module_kwargs
        Further arguments of :class:`trvae_sc.module.TRVAEModule`.

    Raises
    ------
    ValueError
        Values that the likelihood cannot take, or an unknown preset.

    Examples
    --------
    >>> adata = trvae_sc.datasets.simulate()
    >>> trvae_sc.TRVAE.setup_anndata(adata, "condition", labels_key="cell_type")
    >>> model = trvae_sc.TRVAE(adata)
    >>> model.train()
    >>> predicted = model.predict(target="stimulated", labels="type_0")
    """

    _module_cls = TRVAEModule
    _training_plan_cls = TrainingPlan
    _data_splitter_cls = DataSplitter
    _data_loader_cls = DataLoader
    _train_runner_cls = TrainRunner

    def __init__(  # noqa: PLR0913
        self,
        adata: AnnData | None = None,
        registry: dict[str, Any] | None = None,
        preset: str = "default",
        *,
        gene_likelihood: Likelihood | None = None,
        n_latent: int | None = None,
        n_hidden: Sequence[int] | None = None,
        dropout_rate: float | None = None,
        dispersion: Literal["gene", "gene-condition"] | None = None,
        condition_in: Literal["both", "decoder", "none"] | None = None,
        kl_weight: float | None = None,
        mmd_weight: float | None = None,
        mmd_on: Literal["decoder", "latent"] | None = None,
        mmd_kernel: Kernel | None = None,
        transfer_weight: float | None = None,
        calibrate: bool | None = None,
        context_weight: float | None = None,
        seed: int | None = None,
        **module_kwargs: Any,
    ) -> None:
        if preset not in PRESETS:
            raise ValueError(f"Unknown preset '{preset}'; there are {list(PRESETS)}.")
        if adata is not None:
            _setup.check_type(adata)
        super().__init__(adata, registry)
        module_kwargs.pop("extra_payload_autotune", None)  # of scvi-tools' autotune; always there
        arguments = locals()
        given = {k: arguments[k] for k in _MODULE_ARGUMENTS if arguments[k] is not None}
        settings = {"gene_likelihood": "nb", **PRESETS[preset]["model"], **given, **module_kwargs}
        self.preset_ = preset
        self.format_ = _io.FORMAT
        self.version_ = version("trvae_sc")
        self.frozen_rows_: dict[str, int] = {}
        self.frozen_conditions_ = 0
        self.seed_ = default_seed() if seed is None else seed
        self._check_values(settings["gene_likelihood"])
        with torch.random.fork_rng():
            torch.manual_seed(self.seed_)
            self.module = self._module_cls(**self._data_sizes(), **settings)
        self._model_summary_string = self._summary()
        self.init_params_ = self._get_init_params(locals())
        if adata is not None and self.module.is_count and not self.module.has_total:
            level = logging.WARNING if adata.n_vars < _FEW_GENES else logging.INFO
            logger.log(
                level,
                "No total_counts_key: a cell's total is its sum over the %d registered genes. If adata "
                "holds only variable genes, name the obs column with the whole cell's totals in "
                "setup_anndata(total_counts_key=...).",
                adata.n_vars,
            )
        weakref.finalize(self, self._per_instance_manager_store.pop, self.id, None)

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        condition_key: str | Sequence[str],
        *,
        labels_key: str | None = None,
        layer: str | None = None,
        batch_key: str | None = None,
        total_counts_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = None,
        continuous_covariate_keys: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Register the columns and values of an AnnData that the model uses.

        Writes ``_scvi_*`` columns to ``adata.obs`` and two identifiers to ``adata.uns``.

        Parameters
        ----------
        adata
            Cells x genes. Raw counts for count likelihoods, any finite values for ``normal``.
        condition_key
            Column of ``adata.obs`` with the condition of each cell, or a list of columns that make it
            up, as in ``["cytokine", "dose"]``: levels of each enter with an effect of their own, so
            that combinations never measured can be predicted. In a list, a numeric column (dose,
            time) enters as a number, on the scale it has, and values between or beyond those measured
            can be predicted; make it categorical for levels.
        labels_key
            Column with the label (cell type) of each cell. Needed for the transfer loss.
        layer
            Layer with the values; ``adata.X`` if None.
        batch_key
            Column with the batch (donor, run), a nuisance the model conditions on.
        total_counts_key
            Column with each cell's total over all its genes. Name it when `adata` holds only
            variable genes; else the total is the sum over the genes of `adata`.
        categorical_covariate_keys, continuous_covariate_keys
            Columns with further covariates.
        **kwargs
            Passed to scvi-tools' registration (``source_registry``, ``extend_categories``).

        Raises
        ------
        TypeError, KeyError, ValueError
            Before anything is written: missing columns, missing values, one condition only, columns
            named as those of predictions, names that are not unique, fewer than two cells, a view.
        """
        if not isinstance(condition_key, str):
            condition_key = list(condition_key)
        setup_method_args = cls._get_setup_method_args(**locals())
        keys = {
            "labels_key": labels_key,
            "layer": layer,
            "batch_key": batch_key,
            "total_counts_key": total_counts_key,
            "categorical_covariate_keys": categorical_covariate_keys,
            "continuous_covariate_keys": continuous_covariate_keys,
        }
        if kwargs.get("source_registry") is None:
            _setup.check_columns(adata, condition_key, **keys)
        else:
            _setup.check_other(adata, {"condition_key": condition_key, **keys})
        manager_fields = fields(condition_key, **keys)
        manager = DataManager(fields=manager_fields, setup_method_args=setup_method_args)
        manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    def _data_sizes(self) -> dict[str, Any]:
        """Return the module's arguments that follow from the registered data."""
        setup_args, fields = self.registry_["setup_args"], self.registry_["field_registries"]
        covariates = fields[REGISTRY_KEYS.CAT_COVS_KEY]["state_registry"]
        return {
            "n_input": self.summary_stats.n_vars,
            "condition_design": self._condition_design(),
            "n_batch": self.summary_stats.n_batch if setup_args["batch_key"] else 0,
            "n_labels": self.summary_stats.n_labels if setup_args["labels_key"] else 0,
            "n_cats_per_cov": covariates.get("n_cats_per_key"),
            "n_continuous_cov": self.summary_stats.get("n_extra_continuous_covs", 0),
            "has_total": setup_args["total_counts_key"] is not None,
        }

    def _summary(self) -> str:
        module = self.module
        return (
            f"TRVAE with preset: {self.preset_}, gene_likelihood: {module.gene_likelihood}, "
            f"n_latent: {module.z_mean.out_features}, kl_weight: {module.kl_weight:g}, "
            f"mmd_weight: {module.mmd_weight:g} on {module.mmd_on}, "
            f"transfer_weight: {module.transfer_weight:g}, conditions: {self.conditions}, "
            f"labels: {len(self.labels)}, seed: {self.seed_}"
        )

    # -- prediction -------------------------------------------------------------------------------

    def predict(
        self,
        adata: AnnData | None = None,
        *,
        target: Any,
        source: Any = None,
        labels: Any = None,
        indices: Sequence[int] | None = None,
        output: Output | None = None,
        n_samples: int = 1,
        seed: int = 0,
        batch_size: int | None = None,
        out: str | Path | None = None,
        overwrite: bool = False,
    ) -> AnnData:
        r"""Return the cells as they would be under another condition.

        Each source cell is encoded with its own condition, giving z, and decoded under source and
        target: :math:`r_s, r_t`, the expected share of each gene in the cell's total (or mean value).

        With ``calibrate`` (default preset) the rates are then scaled gene by gene, for all cells of a
        label and source condition alike. With f(r) = log(1 + kappa r) (identity for ``normal``), means
        :math:`m_s, m_t` of the decoded rates and :math:`p_s` of the observed shares of those cells,

        .. math:: r_s \leftarrow r_s\,p_s / m_s, \qquad r_t \leftarrow r_t\,\hat p_t / m_t, \qquad
           f(\hat p_t) = f(p_s) + (1 - u)\,[(1 - w)\,\Delta + w\,\hat d]
           + u\,\mathrm{median}(\Delta, \hat d, d_l), \qquad \Delta = f(m_t) - f(m_s)

        (``normal``: :math:`r_s + p_s - m_s`, :math:`r_t + \hat p_t - m_t`), so that the mean change is
        shared between the network and the ridge estimate :math:`\hat d` from the other labels'
        profiles (:func:`trvae_sc.expression.ridge_shift`) with weight w = ``context_weight``. The two
        err differently: together they are better than either. Where the network is far from the ridge,
        w is larger: :math:`w = \max(\mathtt{context\_weight}, 1 - s^2 / D)` with their squared distance
        D and the squared error :math:`s^2` of the ridge for the most similar label l, left out in turn.
        The median over the two and the shift of that label, gene by gene, guards against one of them
        that is far off; u is two thirds of the smaller of ``context_weight`` and one less it.

        A combination of several condition columns that was not measured has no such :math:`\hat d`. In
        its place the network's change is corrected by what it lacks, on the scale of f, at measured
        conditions (against the label's own change there where it is known, else against the mixture
        above): interpolated between the two nearest numbers (beyond all: at the nearest), or, for a
        new combination of levels, summed over the conditions that share one part with the target and
        the others with the source. Its intervals are not known (NaN).

        A network that does not see the condition (``condition_in="none"``: presets ``"vae"``,
        ``"beta_vae"``, ``"autoencoder"``) decodes :math:`r_t` from a code that is moved instead, by
        :math:`\frac1L \sum_l (\bar z_{lt} - \bar z_{ls})` over the training labels seen under both
        (scGen, Lotfollahi et al. 2019, doi:10.1038/s41592-019-0494-8, with labels weighing the same).

        Parameters
        ----------
        adata
            Cells to start from, with the genes of the model in any order; the model's own data if
            None. Not changed. Labels the model does not know are allowed.
        target
            Condition to predict. With several condition columns a dictionary of their values, a tuple
            in their order, or the name in :attr:`conditions`; a combination that was never measured
            is predicted from its parts, with a note in ``uns``.
        source
            Condition of the cells to start from, given like `target`; all but `target` if None.
        labels
            Label or labels of the cells to start from; all if None.
        indices
            Rows to start from (list, array or mask), in addition to `source` and `labels`.
        output
            ``"counts"`` (default for counts): the observed counts moved to the target; each count
            is kept with probability :math:`\min(1, r_t / r_s)`, and counts of mean
            :math:`t \max(0, r_t - r_s)` are added, t being the cell's total (calibrated, with
            labels: the mean of a cell's own gain :math:`r_t - r_s` and its label's). Integer.
            ``"delta"`` (default otherwise): observed value plus the change, on the scale
            log(1 + kappa share) for counts (kappa: median total of the training cells). Values
            slightly below 0 occur.
            ``"mean"``: the expected value under the target, on the same scale; without noise.
            ``"sample"``: draws from the likelihood under the target.
        n_samples
            Predictions per cell, from as many draws of z; with 1, z is the posterior mean.
        seed
            Seed of all draws. The result does not depend on `batch_size`.
        batch_size
            Cells decoded at a time.
        out
            File (``.h5ad`` or ``.zarr``) to write the prediction to, piece by piece, for more cells
            than fit into memory; it is there completely or not at all. With a backed `adata` neither
            input nor output is ever in memory as a whole.
        overwrite
            Replace `out`.

        Returns
        -------
        AnnData (with `out`: its ``X`` stays in that file) with one row per source cell and sample. ``X``: the output, also in the layer the
        model was set up with. ``obs``: the source cell's columns with the target condition, and
        ``source_condition``, ``source_cell`` (``sample``). ``var``: ``source_mean``,
        ``predicted_mean`` and ``predicted_change``, log(1 + kappa share) of the mean share over the
        cells (mean values for ``normal``), and ``change_lower``, ``change_upper``, the 90 % interval
        of the change (:func:`trvae_sc.uncertainty.half_width`; NaN with fewer than three labels to
        learn from). ``obsm["X_trvae"]``: latent mean. ``uns["trvae_sc"]``: what was predicted from
        what, by which model, and notes on how far to trust it.

        Raises
        ------
        RuntimeError
            The model is not trained.
        ValueError
            Unknown target, source or labels; target equal to source; no cell selected; genes
            missing; an output the likelihood does not have; `out` of another kind. Where codes are
            moved: no label was seen under source and target, or the model has no data.
        FileExistsError
            `out` exists and `overwrite` is False.
        """
        self._check_if_trained(warn=False, message=NOT_TRAINED)
        return predict_cells(
            self,
            adata,
            target=target,
            source=source,
            labels=labels,
            indices=indices,
            output=output,
            n_samples=n_samples,
            seed=seed,
            batch_size=batch_size,
            out=out,
            overwrite=overwrite,
        )

    def predict_missing(self, *, source: Any = None, **kwargs: Any) -> AnnData:
        """Predict every label x condition combination that the training data lack.

        Parameters
        ----------
        source
            Condition to predict from. If None, for each label the condition with most of its cells.
        **kwargs
            Passed to :meth:`predict`.

        Returns
        -------
        The predictions of all combinations, concatenated; ``uns["trvae_sc"]["combinations"]`` lists
        them.

        Raises
        ------
        ValueError
            No labels were registered, or nothing is missing.
        """
        self._check_if_trained(warn=False, message=NOT_TRAINED)
        return predict_missing(self, source=source, **kwargs)

    def generate(
        self,
        condition: Any,
        n_obs: int = 1000,
        *,
        labels: Any = None,
        latent: Literal["prior", "posterior"] = "posterior",
        seed: int = 0,
    ) -> AnnData:
        """Draw new cells of a condition.

        Parameters
        ----------
        condition
            Condition to decode with; None where the network does not see it.
        n_obs
            Number of cells.
        labels
            Label or labels that the latent codes come from; all if None. Needs ``"posterior"``.
        latent
            Where z comes from: the ``"prior"`` N(0, I), or the aggregate ``"posterior"``: a random
            training cell is drawn and z from its posterior. Total, batch and covariates are always
            those of a random training cell.
        seed
            Seed of all draws.

        Returns
        -------
        AnnData with draws from the likelihood in ``X`` (and in the layer the model was set up with).

        Raises
        ------
        ValueError
            Unknown condition or label, labels with the prior, or the prior of an autoencoder, which
            has none.
        """
        self._check_if_trained(warn=False, message=NOT_TRAINED)
        return generate_cells(self, condition, n_obs, labels=labels, latent=latent, seed=seed)

    # -- query data ---------------------------------------------------------------------------------

    def _finish_loading(self) -> None:
        super()._finish_loading()
        if self.frozen_rows_:
            self.module.freeze(self.frozen_rows_, self.frozen_conditions_)

    @classmethod
    def load_query_data(
        cls, adata: AnnData, reference: TRVAE | str | Path, *, freeze: bool = True
    ) -> TRVAE:
        """Return a model for new data that extends a trained one by new levels.

        New conditions, batches and covariate levels get parameters of their own, which start at the
        mean of the known ones (query surgery, Lotfollahi et al. 2022, doi:10.1038/s41587-021-01001-7).
        With `freeze` nothing else changes in training: predictions for what the reference knows stay
        what they were, to the bit.

        Parameters
        ----------
        adata
            Query cells, with the genes of the reference in any order.
        reference
            Trained model, or the folder of one.
        freeze
            Train the new levels' parameters only.

        Returns
        -------
        A model to call :meth:`train` on.

        Raises
        ------
        KeyError
            A column that the reference was set up with is missing.
        ValueError
            Genes are missing, or there is no new level to train.
        """
        _setup.check_type(adata)
        if not isinstance(reference, TRVAE):
            reference = cls.load(reference, adata=False)
        reference._check_if_trained(warn=False, message=NOT_TRAINED)
        return _io.query_model(cls, adata, reference, freeze=freeze)


_MODULE_ARGUMENTS = (
    "gene_likelihood",
    "n_latent",
    "n_hidden",
    "dropout_rate",
    "dispersion",
    "condition_in",
    "kl_weight",
    "mmd_weight",
    "mmd_on",
    "mmd_kernel",
    "transfer_weight",
    "calibrate",
    "context_weight",
)
