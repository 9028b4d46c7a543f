"""TRVAE: the scvi-tools model class."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import rich.pretty  # noqa: F401  (scvi-tools' view_anndata_setup needs it loaded)
import torch
from anndata import AnnData

from trvae_sc import checks, hints
from trvae_sc.arguments import check_known
from trvae_sc.condition_sets import check_sets, checked_table
from trvae_sc.errors import InputError
from trvae_sc.levels import listing
from trvae_sc.mmd import Kernel
from trvae_sc.model._arguments import MODULE_ARGUMENTS, check_arguments, check_default_type
from trvae_sc.model._features import with_rows
from trvae_sc.model._fields import KEYS, fields
from trvae_sc.model._prediction import PredictingModel
from trvae_sc.model._presets import PRESETS
from trvae_sc.model._query import extended, new_rows, warn_of_query
from trvae_sc.model._record import FROZEN_WITHOUT_LABELS
from trvae_sc.model._registration import NOT_TRAINED, REGISTRATION, with_genes
from trvae_sc.module import Likelihood, TRVAEModule
from trvae_sc.replicates import check_replicates
from trvae_sc.roles import as_keys
from trvae_sc.training import (
    NOT_STARTED,
    DataLoader,
    DataManager,
    DataSplitter,
    TrainingPlan,
    TrainRunner,
    seed_of,
)


class TRVAE(PredictingModel):
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
        protein), with a learned variance; ``"mse"`` for squared error.
    n_latent
        Dimensions of the latent space.
    n_hidden
        Widths of the encoder; the decoder mirrors them. Its first layer is the MMD layer.
    dropout_rate
        Share of hidden units dropped in training.
    dispersion
        Dispersion (or variance) by ``"gene"`` or by ``"gene-condition"``, the default.
    condition_in
        Whether ``"both"`` encoder and decoder see the condition, only the ``"decoder"``, or
        ``"none"``.
    kl_weight, mmd_weight, transfer_weight
        Weights of the loss terms; `kl_weight` is the beta of a beta-VAE.
    mmd_on
        Layer that the MMD compares: ``"decoder"`` (y) or ``"latent"`` (z).
    mmd_within_labels
        Whether the MMD compares conditions inside each label, or all cells as published. Pooled,
        conditions with other shares of the labels differ by these alone, and aligning them moves
        cells of one label to those of another. Without labels it is pooled.
    mmd_kernel
        ``"median"`` (unbiased estimate, median bandwidths) or ``"paper"`` (as published).
    calibrate
        Whether predictions are put on the level of the source cells: the decoded rates of a label's
        cells are scaled so that, under their own condition, they have the mean that was observed.
        Needs a network that sees the condition.
    context_weight
        Share, 0 to 1, that a ridge regression over the training labels has in the mean change of a
        label (see :meth:`predict`); the network has the rest. Needs `calibrate`.
    seed
        Seed of initial weights, split, shuffling and noise; ``scvi.settings.seed`` or else 0 if
        None. Equal seeds give equal weights, to the bit, on a CPU with the same number of threads.
    **module_kwargs
        Further arguments of :class:`trvae_sc.module.TRVAEModule`.

    Raises
    ------
    InputError
        Values that the likelihood cannot take, or an unknown preset.

    Notes
    -----
    What scvi-tools gives besides :meth:`train` and :meth:`predict` is

    ========  =====================================================================================
    as there  ``get_latent_representation``, ``get_reconstruction_error``, ``history``, ``registry``,
              ``device``, ``to_device``, ``is_trained``, ``train_indices``, ``validation_indices``,
              ``test_indices``, ``adata_manager``, ``get_anndata_manager``, ``deregister_manager``,
              ``data_registry``, ``get_setup_arg``, ``get_from_registry``, ``run_id``, ``run_name``,
              ``get_normalized_function_name``, ``view_anndata_setup``, ``view_setup_method_args``
    adapted   ``get_normalized_expression`` (``transform_condition``); ``get_state_registry``,
              ``view_registry``, ``posterior_predictive_sample``; ``get_elbo``, ``get_marginal_ll``,
              ``get_aggregated_posterior``, ``differential_abundance`` (not of autoencoders);
              ``differential_expression``, ``get_likelihood_parameters``,
              ``get_feature_correlation_matrix``, ``get_importance_weights``,
              ``get_latent_library_size`` (of counts); ``save``, ``load``, ``load_query_data``
    refused   ``transfer_fields``, ``update_setup_method_args``, ``convert_legacy_save``,
              ``setup_annbatch``
    ========  =====================================================================================

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
        mmd_within_labels: bool | None = None,
        mmd_kernel: Kernel | None = None,
        transfer_weight: float | None = None,
        calibrate: bool | None = None,
        context_weight: float | None = None,
        seed: int | None = None,
        **module_kwargs: Any,
    ) -> None:
        if preset not in PRESETS:
            raise InputError(f"Unknown preset {preset!r}; there are {list(PRESETS)}.")
        check_default_type()
        self._check_registered(adata, registry)
        super().__init__(adata, registry)
        module_kwargs.pop("extra_payload_autotune", None)  # of scvi-tools' autotune; always there
        arguments = locals()
        given = {k: v for k in MODULE_ARGUMENTS if (v := arguments.get(k)) is not None}
        settings = {"gene_likelihood": "nb", **PRESETS[preset]["model"], **given, **module_kwargs}
        check_arguments(settings)
        self._check_condition(preset, settings.get("condition_in"))
        self.preset_ = preset
        self.training_ = dict(NOT_STARTED)
        self.training_date_ = ""
        self._notes_said: set[str] = set()
        self.training_marks_ = np.zeros(0)
        self.codes_: dict[str, np.ndarray] = {}
        self.spread_ = np.zeros((0, 0))
        self.kl_ = np.zeros(0)  # by latent dimension, in nats
        self.replicates_: dict[str, Any] = {}
        self.version_ = version("trvae_sc")
        self.frozen_rows_: dict[str, int] = {}
        self.frozen_conditions_ = 0
        self.frozen_before_: list[int] = []  # of references of the reference
        self.query_cells_ = np.zeros((1, 1))
        self.seed_ = seed_of(seed)
        self._check_values(settings["gene_likelihood"])
        with torch.random.fork_rng():
            torch.manual_seed(self.seed_)
            self.module = self._module_cls(**self._data_sizes(), **settings)
        self._model_summary_string = self._summary()
        # what the preset chose is saved, too: it may choose otherwise in a later version
        arguments["module_kwargs"] = {k: v for k, v in settings.items() if k not in arguments}
        self.init_params_ = self._get_init_params({**arguments, **settings})
        if adata is not None and self.module.is_count and not self.module.has_total:
            hints.say_totals(adata.n_vars)
        if adata is not None and not self.module.is_count:
            self._warn_of_counts()
        weakref.finalize(self, self._per_instance_manager_store.pop, self.id, None)

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        condition_key: str | Sequence[str] | None = None,
        *,
        labels_key: str | None = None,
        layer: str | None = None,
        batch_key: str | None = None,
        total_counts_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = None,
        continuous_covariate_keys: Sequence[str] | None = None,
        condition_separator: str | None = None,
        condition_features: pd.DataFrame | str | None = None,
        replicate_key: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Register the columns and values of an AnnData that the model uses.

        Writes codes to ``adata.obs`` and ``adata.obsm``, under names that begin with ``_trvae_sc_``, and
        scvi-tools' two identifiers to ``adata.uns``. A model uses what is registered: where values, genes
        or columns change afterwards, its methods raise an error that says what changed.

        Parameters
        ----------
        adata
            Cells x genes. Raw counts for count likelihoods, any finite values for ``normal``.
        condition_key
            Column of ``adata.obs`` with the condition of each cell, or a list of columns that make it
            up, as in ``["cytokine", "dose"]``: levels of each enter with an effect of their own, so
            that combinations never measured can be predicted. In a list, a numeric column (dose,
            time) enters as a number, on the scale it has, and values between or beyond those measured
            can be predicted; make it categorical for levels. None for presets whose network does not
            see it (``"vae"``, ``"beta_vae"``, ``"autoencoder"``): such a model predicts no condition.
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
            Column or columns with further covariates. Numbers enter as they are: standardise large ones.
        condition_separator
            Text between the parts of conditions that are sets, as ``"+"`` in ``"KLF1+MAP2K6"``: each part
            enters with an effect of its own, so that sets never measured can be predicted.
        condition_features
            Table, or its name in ``adata.uns``, with a row for every condition and numbers that describe it
            (fingerprint, embedding, angle): conditions of the table can be predicted that no cell was
            measured under, and others by their features. Of several columns it describes the levels of the
            one that its index is named like; with `condition_separator`, the parts. A control needs no row.
        replicate_key
            Column with the donor (animal, culture). Changes are then taken within donors, where one has
            source and target, and intervals and p-values hold how donors differ. Unlike `batch_key` it is
            no input of the network, and data to predict from need not have it.
        **kwargs
            Passed to scvi-tools' registration (``source_registry``, ``extend_categories``).

        Raises
        ------
        InputError
            Before anything is written: missing columns, missing values, a condition or label that is also
            something else, one condition only, columns named as those of predictions, names that are not
            unique, fewer than two cells, a view, unknown arguments.
        """
        if isinstance(condition_key, tuple):
            condition_key = list(condition_key)
        categorical_covariate_keys = as_keys(categorical_covariate_keys)
        continuous_covariate_keys = as_keys(continuous_covariate_keys)
        arguments = locals()
        check_known(kwargs, cls.setup_anndata, REGISTRATION)
        keys = {name: arguments[name] for name in KEYS}
        if kwargs.get("source_registry") is None:
            checks.check_columns(adata, keys, replicate_key)
            if condition_separator is not None:
                check_sets(adata.obs, condition_key, condition_separator)
            if replicate_key is not None:
                check_replicates(adata.obs, replicate_key, condition_key, labels_key)
            features = checked_table(adata, condition_key, condition_separator, condition_features)
            if features is not None:  # the registry has the table; a name says that there is one
                arguments["condition_features"] = "condition_features"
            nuisances = [batch_key, *(categorical_covariate_keys or ())]
            told = {"described": features is not None, "separator": condition_separator}
            hints.say_setup(adata, condition_key, labels_key, nuisances, **told)
        else:
            checks.check_other(adata, keys)
            features = None
        setup_method_args = cls._get_setup_method_args(**arguments)
        manager_fields = fields(keys, condition_separator, features)
        manager = DataManager(fields=manager_fields, setup_method_args=setup_method_args)
        manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    def _summary(self) -> str:
        module = self.module
        return (
            f"TRVAE with preset: {self.preset_}, gene_likelihood: {module.gene_likelihood}, "
            f"n_latent: {module.z_mean.out_features}, kl_weight: {module.kl_weight:g}, "
            f"mmd_weight: {module.mmd_weight:g} on {module.mmd_on}, "
            f"transfer_weight: {module.transfer_weight:g}, conditions: {self.conditions}, "
            f"labels: {len(self.labels)}, seed: {self.seed_}"
        )

    def _settings_shown(self) -> str:
        module = self.module
        return (
            f"preset '{self.preset_}', {module.gene_likelihood}, {module.z_mean.out_features} latent "
            f"dimensions, seed {self.seed_}"
        )

    def _take_over(self, attributes: dict[str, Any], folder: Path) -> None:
        super()._take_over(attributes, folder)
        if self.frozen_rows_:
            self.module.freeze(self.frozen_rows_, self.frozen_conditions_)

    @classmethod
    def load_query_data(
        cls,
        adata: AnnData,
        reference: TRVAE | str | Path,
        *,
        freeze: bool = True,
        condition_features: pd.DataFrame | str | None = None,
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
            Train the new levels' parameters only. A new condition needs labels then: without them
            the frozen encoder takes it for a difference between cells (a warning says so).
        condition_features
            Rows of new conditions, where the reference was set up with features and lacks them.

        Returns
        -------
        A model to call :meth:`train` on.

        Raises
        ------
        InputError
            Columns, genes or features of new conditions are missing, or there is no new level to train.
        """
        checks.check_type(adata)
        if not isinstance(reference, TRVAE):
            reference = cls.load(reference, adata=False)
        reference._check_if_trained(warn=False, message=NOT_TRAINED)
        args = reference.registry_["setup_args"]
        checks.check_obs(adata, [args["labels_key"]])
        adata = with_genes(adata, reference.registry_)
        registry = with_rows(reference.registry_, adata, condition_features)
        cls.setup_anndata(adata, source_registry=registry, extend_categories=True, **args)
        given = reference.init_params_
        model = cls(adata, **given["non_kwargs"], **given["kwargs"]["module_kwargs"])
        old, new = reference.module.state_dict(), model.module.state_dict()
        rows = new_rows(old, new, {name for name, _ in model.module.named_parameters()})
        if freeze and not rows:
            new = [c for c in model.conditions if c not in reference.conditions]
            raise InputError(
                "The query has no condition, batch or covariate level that the reference lacks"
                f"{f' but {listing(new)}, whose parts it knows' if new else ''}, so there is nothing to train. Use the "
                "reference's methods on it, or pass freeze=False."
            )
        if args["condition_key"] is not None:
            warn_of_query(reference.trained, adata)
        model.module.load_state_dict(extended(old, new, model.condition_space))
        model.module.to(reference.device)
        model.module.eval()
        for name in ("codes_", "kl_", "spread_", "replicates_", "training_marks_"):
            setattr(model, name, getattr(reference, name))
        if freeze:
            model.frozen_rows_, model.query_cells_ = rows, reference.query_cells_
            model.frozen_conditions_ = len(reference.conditions)
            model.frozen_before_ = [*reference.frozen_before_, reference.frozen_conditions_]
            model.module.freeze(rows, model.frozen_conditions_)
            if args["labels_key"] is None and len(model.conditions) > model.frozen_conditions_:
                checks.logger.warning("%s", FROZEN_WITHOUT_LABELS)
        return model
