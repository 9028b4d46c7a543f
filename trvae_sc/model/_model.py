"""TRVAE: the scvi-tools model class."""

from __future__ import annotations

import hashlib
import logging
import math
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
from scipy import sparse
from scvi import REGISTRY_KEYS
from scvi.model.base import BaseModelClass, RNASeqMixin, UnsupervisedTrainingMixin, VAEMixin
from scvi.train import SaveCheckpoint
from scvi.train._config import merge_kwargs

from trvae_sc.mmd import Kernel
from trvae_sc.model import _io, _setup
from trvae_sc.model._predict import Output, generate_cells, predict_cells, predict_missing
from trvae_sc.model._presets import PRESETS
from trvae_sc.module import (
    CONDITION_KEY,
    COUNT_LIKELIHOODS,
    TOTAL_KEY,
    Likelihood,
    TRVAEModule,
)
from trvae_sc.training import (
    BestWeights,
    DataLoader,
    DataManager,
    DataSplitter,
    EpochCheckpoint,
    TrainingPlan,
    TrainRunner,
    default_seed,
)

logger = logging.getLogger(__name__)
# scvi.settings.verbosity counts here too
logger.addFilter(lambda record: record.levelno >= logging.getLogger("scvi").level)

_NOT_TRAINED = "The model is not trained: call train() first."
_EPOCHS = 60
_FEW_GENES = 5000  # below, an AnnData is likely to hold variable genes only
_MIN_STEPS, _MAX_STEPS = 300, 30_000
_FIRST = 256  # cells whose values tell two runs apart


class TRVAE(RNASeqMixin, VAEMixin, UnsupervisedTrainingMixin, BaseModelClass):
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
        transfer), ``"mmd_cvae"`` (MMD on the latent space), ``"vae"`` (no condition) or
        ``"autoencoder"``. See ``trvae_sc.PRESETS``.
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
        Weights of the loss terms.
    mmd_on
        Layer that the MMD compares: ``"decoder"`` (y) or ``"latent"`` (z).
    mmd_kernel
        ``"median"`` (unbiased estimate, median bandwidths) or ``"paper"`` (as published).
    calibrate
        Whether predictions are put on the level of the source cells: the decoded rates of a label's
        cells are scaled so that, under their own condition, they have the mean that was observed.
    context_weight
        Share, 0 to 1, that a ridge regression over the training labels has in the mean change of a
        label (see :meth:`predict`); the network has the rest. Needs `calibrate` and labels.
    seed
        Seed of initial weights, split, shuffling and noise; ``scvi.settings.seed`` or else 0 if
        None. Equal seeds give equal weights on a CPU.
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
        condition_key: str,
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
            Column of ``adata.obs`` with the condition of each cell.
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
            Before anything is written: missing columns, missing values, one condition only, names
            that are not unique, fewer than two cells, a view.
        """
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
        fields = _setup.fields(condition_key, **keys)
        manager = DataManager(fields=fields, setup_method_args=setup_method_args)
        manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    # -- registration ---------------------------------------------------------------------------

    @classmethod
    def register_manager(cls, adata_manager: DataManager) -> None:
        """Register a manager; it lives as long as its AnnData (scvi-tools keeps both for ever)."""
        _hold(adata_manager)
        super().register_manager(adata_manager)

    def _register_manager_for_instance(self, adata_manager: DataManager) -> None:
        _hold(adata_manager)
        store = self._per_instance_manager_store
        store.setdefault(self.id, weakref.WeakValueDictionary())
        super()._register_manager_for_instance(adata_manager)

    def _validate_anndata(self, adata: AnnData | None = None, copy_if_view: bool = True) -> AnnData:
        """Return a registered AnnData with the model's genes; the one passed is not changed."""
        if adata is None:
            adata = self._adata
            if adata is None:
                raise ValueError("The model was loaded without data: pass adata.")
        _setup.check_type(adata)
        manager = self._registered_manager(adata)
        if manager is not None:
            manager.validate()
            return adata
        setup_args = self.registry_["setup_args"]
        aligned = _setup.align(adata, pd.Index(self.get_var_names()), setup_args["layer"])
        type(self).setup_anndata(aligned, source_registry=self.registry_, **setup_args)
        manager = self._get_most_recent_anndata_manager(aligned, required=True)
        self._register_manager_for_instance(manager)
        self._check_values(self.module.gene_likelihood, manager)
        return aligned

    @BaseModelClass.adata.setter
    def adata(self, adata: AnnData) -> None:
        """Attach data to train on and to use by default; registers it, if it has the model's genes."""
        _setup.check_type(adata)
        if self._registered_manager(adata) is None:
            setup_args, names = self.registry_["setup_args"], pd.Index(self.get_var_names())
            if adata.is_view or not adata.var_names.equals(names):
                adata = _setup.align(adata, names, setup_args["layer"])
            self.setup_anndata(adata, source_registry=self.registry_, **setup_args)
            manager = self._get_most_recent_anndata_manager(adata, required=True)
            self._register_manager_for_instance(manager)
            self._check_values(self.module.gene_likelihood, manager)
        BaseModelClass.adata.fset(self, adata)

    def _registered_manager(self, adata: AnnData) -> DataManager | None:
        """Return this model's manager of exactly this object, if there is one."""
        store = self._per_instance_manager_store.get(self.id, {})
        manager = store.get(adata.uns.get("_scvi_uuid"))
        return manager if manager is not None and manager.adata is adata else None

    def _check_values(self, likelihood: str, manager: DataManager | None = None) -> None:
        """Raise on values that the likelihood cannot take."""
        manager = self.adata_manager if manager is None else manager
        if manager is None:
            return
        total_key = self.registry_["setup_args"]["total_counts_key"]
        layer = self.registry_["setup_args"]["layer"]
        is_count = likelihood in COUNT_LIKELIHOODS
        totals = manager.get_from_registry(TOTAL_KEY).ravel() if total_key and is_count else None
        name = "adata.X" if layer is None else f"adata.layers['{layer}']"
        x = manager.get_from_registry(REGISTRY_KEYS.X_KEY)
        n_obs = manager.adata.n_obs
        _setup.check_values(x, is_count=is_count, totals=totals, name=name, n_obs=n_obs)

    def _data_sizes(self) -> dict[str, Any]:
        """Return the module's arguments that follow from the registered data."""
        setup_args, fields = self.registry_["setup_args"], self.registry_["field_registries"]
        covariates = fields[REGISTRY_KEYS.CAT_COVS_KEY]["state_registry"]
        return {
            "n_input": self.summary_stats.n_vars,
            "condition_design": torch.eye(len(self.conditions)),
            "n_batch": self.summary_stats.n_batch if setup_args["batch_key"] else 0,
            "n_labels": self.summary_stats.n_labels if setup_args["labels_key"] else 0,
            "n_cats_per_cov": covariates.get("n_cats_per_key"),
            "n_continuous_cov": self.summary_stats.get("n_extra_continuous_covs", 0),
            "has_total": setup_args["total_counts_key"] is not None,
        }

    def _levels(self, key: str) -> list[Any]:
        """Return the registered levels of a categorical field, in code order."""
        state = self.registry_["field_registries"][key]["state_registry"]
        return list(state["categorical_mapping"])

    @property
    def conditions(self) -> list[Any]:
        """Conditions the model knows, in code order."""
        return self._levels(CONDITION_KEY)

    @property
    def labels(self) -> list[Any]:
        """Labels the model knows, in code order; empty without ``labels_key``."""
        has_labels = self.registry_["setup_args"]["labels_key"] is not None
        return self._levels(REGISTRY_KEYS.LABELS_KEY) if has_labels else []

    @property
    def n_cells(self) -> pd.DataFrame:
        """Number of training cells by label (row) and condition (column)."""
        table = self.module.n_cells.cpu().numpy().astype(int)
        return pd.DataFrame(table, index=self.labels or ["all"], columns=self.conditions)

    def _summary(self) -> str:
        module = self.module
        return (
            f"TRVAE with preset: {self.preset_}, gene_likelihood: {module.gene_likelihood}, "
            f"n_latent: {module.z_mean.out_features}, kl_weight: {module.kl_weight:g}, "
            f"mmd_weight: {module.mmd_weight:g} on {module.mmd_on}, "
            f"transfer_weight: {module.transfer_weight:g}, conditions: {self.conditions}, "
            f"labels: {len(self.labels)}, seed: {self.seed_}"
        )

    # -- training ---------------------------------------------------------------------------------

    def train(
        self,
        max_epochs: int | None = None,
        *,
        batch_size: int | None = None,
        lr: float | None = None,
        train_size: float | None = None,
        early_stopping: bool = False,
        balance_conditions: bool = False,
        checkpoint_dir: str | Path | None = None,
        plan_kwargs: dict[str, Any] | None = None,
        datasplitter_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Fit the model.

        ``history`` then holds, by epoch and each as ``*_train`` (and ``*_validation``): ``elbo``,
        ``reconstruction_loss``, ``kl_local``, ``mmd``, ``transfer``, and what each term adds to the
        loss (``reconstruction_weighted``, ``kl_weighted``, ``mmd_weighted``, ``transfer_weighted``).

        Parameters
        ----------
        max_epochs
            Passes over the data. By default 60, fewer where that exceeds 30,000 steps and more
            where it is below 300.
        batch_size
            Cells a step; the preset's by default (256).
        lr
            Largest learning rate; the preset's by default.
        train_size
            Share of cells to train on. By default all, or 0.9 where something needs validation
            (`early_stopping`, checkpoints of the best epoch, ``reduce_lr_on_plateau``).
        early_stopping
            Stop when the validation ELBO no longer improves (see :class:`scvi.train.Trainer` for
            ``early_stopping_patience`` and others) and return to the weights of the best epoch.
        balance_conditions
            Draw cells so that every condition is equally frequent.
        checkpoint_dir
            Folder that receives the state of training after every epoch. If it holds one of the
            same run, training continues from there, with the same result as if never interrupted.
        plan_kwargs
            Arguments of :class:`trvae_sc.training.TrainingPlan`. They precede those of a
            ``plan_config``, and these, all of them, those of the preset.
        datasplitter_kwargs
            Arguments of :class:`trvae_sc.training.DataSplitter`.
        **kwargs
            Passed to scvi-tools: ``accelerator``, ``devices``, ``validation_size``,
            ``datamodule`` and arguments of :class:`scvi.train.Trainer`.

        Raises
        ------
        KeyboardInterrupt
            On Ctrl-C. The model is usable: it has the weights of the best validation epoch, or the
            latest ones where there is no validation.
        FloatingPointError
            The loss became NaN or infinite.
        ValueError
            `checkpoint_dir` holds another run.
        """
        self._check_labels_known()
        if self.adata_manager is None and kwargs.get("datamodule") is None:
            raise ValueError(
                "The model was loaded without data: attach some to train on (model.adata = adata)."
            )
        for name, number in (("max_epochs", max_epochs), ("batch_size", batch_size)):
            if number is not None and number < 1:
                raise ValueError(f"{name} is {number}; at least 1 is needed.")
        self._note_one_sided_labels()
        preset = dict(PRESETS[self.preset_]["train"])
        preset_batch_size = preset.pop("batch_size")
        warmup, clip = preset.pop("kl_warmup"), preset.pop("gradient_clip_val", None)
        plan = {**preset, **merge_kwargs(kwargs.pop("plan_config", None), plan_kwargs, name="plan")}
        plan |= {} if lr is None else {"lr": lr}
        trainer = merge_kwargs(kwargs.get("trainer_config"), kwargs, name="trainer")
        if "gradient_clip_val" not in trainer:
            kwargs["gradient_clip_val"] = clip
        if kwargs.get("datamodule") is not None:
            batch_size = 128 if batch_size is None else batch_size  # to scvi-tools: not given
        else:
            batch_size = preset_batch_size if batch_size is None else batch_size
            max_epochs = self._epochs(batch_size) if max_epochs is None else max_epochs
            datasplitter_kwargs = {
                "seed": self.seed_,
                "balance_conditions": balance_conditions,
                **(datasplitter_kwargs or {}),
            }
            if train_size is None and "external_indexing" not in datasplitter_kwargs:
                validates = (
                    early_stopping or "validation_size" in kwargs or _validates(trainer, plan)
                )
                train_size = 0.9 if validates else 1.0
        if "n_steps_kl_warmup" not in plan and max_epochs is not None:
            plan.setdefault("n_epochs_kl_warmup", math.ceil(warmup * max_epochs))
        monitor = kwargs.get("early_stopping_monitor", "elbo_validation")
        mode = kwargs.get("early_stopping_mode", "min")
        callbacks = [*kwargs.pop("callbacks", [])]
        callbacks += [BestWeights(monitor, mode)] if early_stopping else []
        if checkpoint_dir is not None:
            run = {
                "model": (self.init_params_, self.seed_, self._data_summary()),
                "split": (batch_size, train_size, datasplitter_kwargs),
                "fit": (max_epochs, early_stopping, plan),
                "trainer": {k: v for k, v in trainer.items() if k not in _NOT_OF_THE_RUN},
            }
            kwargs["checkpoint"] = EpochCheckpoint(checkpoint_dir, _describe(run))
        with torch.random.fork_rng():
            torch.manual_seed(self.seed_)
            super().train(
                max_epochs=max_epochs,
                batch_size=batch_size,
                train_size=train_size,
                early_stopping=early_stopping,
                plan_kwargs=plan,
                datasplitter_kwargs=datasplitter_kwargs,
                callbacks=callbacks,
                **kwargs,
            )

    def _epochs(self, batch_size: int) -> int:
        """Return the default number of epochs."""
        steps_per_epoch = math.ceil(self.adata.n_obs / batch_size)
        epochs = max(_EPOCHS, math.ceil(_MIN_STEPS / steps_per_epoch))
        return max(min(epochs, _MAX_STEPS // steps_per_epoch), 1)

    def _check_labels_known(self) -> None:
        """Raise where the data attached for training holds labels the model does not know."""
        state = self.registry_["field_registries"][REGISTRY_KEYS.LABELS_KEY]["state_registry"]
        if state.get("unknown"):
            raise ValueError(
                f"The attached data holds labels the model does not know: {state['unknown']}. Train "
                "a new model, or use TRVAE.load_query_data."
            )

    def _note_one_sided_labels(self) -> None:
        """Log the labels with cells under one condition only."""
        if self.adata is None or not self.labels:
            return
        codes = [
            self.adata_manager.get_from_registry(key).ravel().astype(int)
            for key in (REGISTRY_KEYS.LABELS_KEY, CONDITION_KEY)
        ]
        present = pd.crosstab(*codes) > 0
        only = {
            self.labels[label]: self.conditions[row.idxmax()]
            for label, row in present.iterrows()
            if row.sum() == 1
        }
        if only:
            names = ", ".join(f"{label!r} ({condition!r})" for label, condition in only.items())
            logger.info(
                "Labels with cells under one condition only: %s. They cannot teach the change between "
                "conditions; the transfer loss skips them.",
                names,
            )

    def _data_summary(self) -> str:
        """Return what identifies the registered data: genes, columns and the first cells' values."""
        digest = hashlib.sha256("\n".join(self.get_var_names()).encode())
        manager = self.adata_manager
        for key in [] if manager is None else manager.data_registry:
            values = manager.get_from_registry(key)
            if key == REGISTRY_KEYS.X_KEY:
                n_first = min(manager.adata.n_obs, _FIRST)
                _, values = next(_setup.row_chunks(values, n_first, n_first))
                values = values.toarray() if sparse.issparse(values) else values
            digest.update(np.ascontiguousarray(values, dtype=np.float64).tobytes())
        return f"{dict(self.summary_stats)} {digest.hexdigest()}"

    # -- representations --------------------------------------------------------------------------

    @torch.inference_mode()
    def get_mmd_representation(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
    ) -> np.ndarray:
        """Return y at the posterior mean, the first decoder layer, shape (n_cells, n_hidden[-1])."""
        self._check_if_trained(warn=False, message=_NOT_TRAINED)
        adata = self._validate_anndata(adata)
        loader = self._make_data_loader(adata, indices, batch_size)
        batches = [self.module.aligned(tensors).cpu() for tensors in loader]
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
        default); otherwise the mean in the units of the data.

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
        ValueError
            Unknown condition.
        """
        if transform_condition is not None:
            target = self._condition_features(transform_condition)
            loader_kwargs = {**kwargs.pop("data_loader_kwargs", {}), "target_condition": target}
            kwargs["data_loader_kwargs"] = loader_kwargs
        return super().get_normalized_expression(adata, indices, **kwargs)

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
        """See :meth:`scvi.model.base.RNASeqMixin.get_importance_weights`; nb and zinb only."""
        self._needs("weights='importance'", ["nb", "zinb"])
        return super().get_importance_weights(*args, **kwargs)

    def get_latent_library_size(self, *args: Any, **kwargs: Any) -> np.ndarray:
        """See :meth:`scvi.model.base.RNASeqMixin.get_latent_library_size`; counts only."""
        self._needs("get_latent_library_size", list(COUNT_LIKELIHOODS))
        return super().get_latent_library_size(*args, **kwargs)

    def _needs(self, what: str, likelihoods: list[str]) -> None:
        """Raise where scvi-tools' code assumes another likelihood than the model's."""
        if self.module.gene_likelihood not in likelihoods:
            raise NotImplementedError(
                f"{what} is available with gene_likelihood {likelihoods}, not "
                f"'{self.module.gene_likelihood}'."
            )

    def _condition_features(self, condition: Any) -> torch.Tensor:
        """Return the features of a condition, shape (1, n_features)."""
        conditions = self.conditions
        if condition not in conditions:
            raise ValueError(
                f"Unknown condition {condition!r}; the model was trained on {conditions}."
            )
        code = conditions.index(condition)
        return self.module.condition_design[code : code + 1]

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
    ) -> AnnData:
        r"""Return the cells as they would be under another condition.

        Each source cell is encoded with its own condition, giving z, and decoded under source and
        target: :math:`r_s, r_t`, the expected share of each gene in the cell's total (or mean value).

        With ``calibrate`` (default preset) the rates are then scaled gene by gene, for all cells of a
        label and source condition alike. With f(r) = log(1 + kappa r) (identity for ``normal``), means
        :math:`m_s, m_t` of the decoded rates and :math:`p_s` of the observed shares of those cells,

        .. math:: r_s \leftarrow r_s\,p_s / m_s, \qquad r_t \leftarrow r_t\,\hat p_t / m_t, \qquad
           f(\hat p_t) = f(p_s) + (1 - w)\,[f(m_t) - f(m_s)] + w\,\hat d

        so that the mean change is shared between the network and the ridge estimate :math:`\hat d`
        from the other labels' profiles (:func:`trvae_sc.expression.ridge_shift`) with weight w =
        ``context_weight``. The two err differently: together they are better than either.

        Parameters
        ----------
        adata
            Cells to start from, with the genes of the model in any order; the model's own data if
            None. Not changed. Labels the model does not know are allowed.
        target
            Condition to predict.
        source
            Condition of the cells to start from; all but `target` if None.
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

        Returns
        -------
        AnnData with one row per source cell and sample. ``X``: the output, also in the layer the
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
            missing; an output the likelihood does not have.
        """
        self._check_if_trained(warn=False, message=_NOT_TRAINED)
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
        self._check_if_trained(warn=False, message=_NOT_TRAINED)
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
            Condition to decode with.
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
        AnnData with draws from the likelihood in ``X``.

        Raises
        ------
        ValueError
            Unknown condition or label, or labels with the prior.
        """
        self._check_if_trained(warn=False, message=_NOT_TRAINED)
        return generate_cells(self, condition, n_obs, labels=labels, latent=latent, seed=seed)

    # -- saving, loading, query data ----------------------------------------------------------------

    def _get_user_attributes(self) -> list[tuple[str, Any]]:
        """Return the attributes, those that are saved as types that load without running code.

        scvi-tools asks for properties as well, and fails where one raises.
        """
        return _io.plain_attributes(list(vars(self).items()))

    def save(self, dir_path: str | Path, *, overwrite: bool = False, **kwargs: Any) -> None:
        """Write the model to a folder, completely or not at all.

        Parameters
        ----------
        dir_path
            Folder.
        overwrite
            Replace a model that is there.
        **kwargs
            Passed to :meth:`scvi.model.base.BaseModelClass.save` (``prefix``, ``save_anndata``).

        Raises
        ------
        ValueError
            `dir_path` exists and `overwrite` is False.
        NotADirectoryError
            `dir_path`, or a folder it would be in, is a file.
        """
        _io.save_atomically(super().save, Path(dir_path), overwrite=overwrite, **kwargs)

    @classmethod
    def load(
        cls,
        dir_path: str | Path,
        adata: AnnData | Literal[False] | None = None,
        *,
        prefix: str | None = None,
        **kwargs: Any,
    ) -> TRVAE:
        """Read a model from a folder.

        The file is read as data: nothing stored in it is executed.

        Parameters
        ----------
        dir_path
            Folder that :meth:`save` wrote.
        adata
            Data to attach, with the genes of the model in any order; None: the data saved with the
            model, if any; False: none (then pass data to the methods).
        prefix
            Prefix of the file names.
        **kwargs
            Passed to :meth:`scvi.model.base.BaseModelClass.load` (``accelerator``, ``device``).

        Raises
        ------
        FileNotFoundError
            No model there.
        ValueError
            The file is damaged, holds something else, or comes from a newer version.
        """
        if adata is not None and adata is not False:
            _setup.check_type(adata)
        content = _io.read_file(Path(dir_path), prefix)
        if isinstance(adata, AnnData):
            adata = _io.prepare_for_load(content, adata)
        model = super().load(str(dir_path), adata, prefix=prefix, **kwargs)
        model.history_ = _io.restore_history(model.history_)
        if model.frozen_rows_:
            model.module.freeze(model.frozen_rows_)
        return model

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
        reference._check_if_trained(warn=False, message=_NOT_TRAINED)
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


def _validates(trainer: dict[str, Any], plan: dict[str, Any]) -> bool:
    """Return whether arguments of trainer or plan need a validation set."""
    return bool(
        trainer.get("check_val_every_n_epoch")
        or trainer.get("enable_checkpointing")
        or plan.get("reduce_lr_on_plateau")
        or any(isinstance(callback, SaveCheckpoint) for callback in trainer.get("callbacks", ()))
    )


#: Arguments of the trainer that a run may be resumed without, or with others of.
_NOT_OF_THE_RUN = (
    "accelerator",
    "callbacks",
    "datamodule",
    "default_root_dir",
    "devices",
    "enable_model_summary",
    "enable_progress_bar",
    "log_every_n_steps",
    "log_save_dir",
    "logger",
    "plugins",
    "profiler",
    "progress_bar_refresh_rate",
    "simple_progress_bar",
    "strategy",
    "trainer_config",
)


def _describe(value: Any) -> str:
    """Return a text of arguments that is the same in another process, also of long arrays."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_describe(value[k])}" for k in sorted(value)) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_describe(v) for v in value) + "]"
    if isinstance(value, np.ndarray | torch.Tensor):
        array = np.ascontiguousarray(value)
        return f"{array.dtype} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"
    return getattr(value, "__qualname__", repr(value))


def _hold(manager: DataManager) -> None:
    """Make an AnnData own its manager, so that the class-level stores need not."""
    managers = manager.adata.__dict__.setdefault("_trvae_sc_managers", {})
    managers[manager.id] = manager


TRVAE._setup_adata_manager_store = weakref.WeakValueDictionary()
