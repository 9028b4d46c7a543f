"""The ``train`` method."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scvi import REGISTRY_KEYS
from scvi.model.base import UnsupervisedTrainingMixin
from scvi.train import SaveCheckpoint
from scvi.train import TrainingPlan as ScviTrainingPlan
from scvi.train._config import merge_kwargs

from trvae_sc.arguments import check_known, check_number, check_whole, named
from trvae_sc.checks import logger
from trvae_sc.errors import InputError
from trvae_sc.hints import was_said
from trvae_sc.identity import digest
from trvae_sc.model._arguments import check_default_type
from trvae_sc.model._codes import collapse_note, kl_by_dimension
from trvae_sc.model._inference import EncodingModel
from trvae_sc.model._presets import PRESETS
from trvae_sc.model._replicates import replicate_means, replicates_of
from trvae_sc.model._trained import Trained, kept_codes
from trvae_sc.threads import suitable_threads
from trvae_sc.training import (
    MONITORS,
    BestWeights,
    Clock,
    EpochCheckpoint,
    as_callbacks,
    check_splitting,
    check_trainer,
)

_EPOCHS = 60
_MIN_STEPS, _MAX_STEPS = 300, 30_000


class TrainableModel(UnsupervisedTrainingMixin, EncodingModel):
    """Training with the preset's settings, best weights and checkpoints."""

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
        memory_budget: float | None = None,
        plan_kwargs: dict[str, Any] | None = None,
        datasplitter_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Fit the model; one that was trained goes on from its weights, history and number of epochs.

        ``history`` then holds, by epoch and each as ``*_train`` (and ``*_validation``): ``elbo``,
        ``reconstruction_loss``, ``kl_local``, ``mmd``, ``transfer``, and what each term adds to the
        loss (``reconstruction_weighted``, ``kl_weighted``, ``mmd_weighted``,
        ``transfer_weighted``). A line says after the first epoch how long the others will take, and
        one at the end whether these terms have levelled off.

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
        memory_budget
            GB that the values may take in memory and on the GPU; half of what is free there if
            None. Values in a backed AnnData that do not fit are streamed from the file
            (:doc:`/guide/large_data`).
        plan_kwargs
            Arguments of :class:`trvae_sc.training.TrainingPlan`. They precede those of a
            ``plan_config``, and these those of the preset.
        datasplitter_kwargs
            Arguments of :class:`trvae_sc.training.DataSplitter`.
        **kwargs
            Passed to scvi-tools: ``accelerator``, ``devices``, ``validation_size``, ``datamodule``
            and arguments of :class:`scvi.train.Trainer`, as ``precision="bf16-mixed"`` (layers in
            half precision, the loss in full) or ``strategy="ddp"`` (`batch_size` is that of each
            process; MMD and transfer loss compare the cells of all of them).

        Raises
        ------
        KeyboardInterrupt
            On Ctrl-C. The model is usable: it has the weights of the best validation epoch, or else
            the latest ones.
        FloatingPointError
            The loss became NaN or infinite.
        OSError, MemoryError, RuntimeError
            A file cannot be read, memory did not suffice, a worker process died. The model is
            usable as after Ctrl-C, once a step was made, and as it was before the call otherwise.
        InputError
            `checkpoint_dir` holds another run, or an argument is unknown or cannot be used.
        """
        check_default_type()
        check_trainer(kwargs, self.train, UnsupervisedTrainingMixin.train)
        kwargs["callbacks"] = as_callbacks(kwargs.get("callbacks"))
        _check_arguments(
            {"early_stopping": early_stopping, "balance_conditions": balance_conditions},
            {"max_epochs": max_epochs, "batch_size": batch_size},
            {"lr": lr, "memory_budget": memory_budget},
        )
        # numbers may be numpy's, which Lightning refuses
        max_epochs = None if max_epochs is None else int(max_epochs)
        batch_size = None if batch_size is None else int(batch_size)
        if kwargs.get("datamodule") is None:
            if self.adata_manager is None:
                raise InputError(
                    "The model was loaded without data: attach some to train on (model.adata = adata)."
                )
            self.adata_manager.validate()
        self._check_labels_known()
        self._note_one_sided_labels()
        preset = dict(PRESETS[self.preset_]["train"])
        preset_batch_size = preset.pop("batch_size")
        warmup, clip = preset.pop("kl_warmup"), preset.pop("gradient_clip_val", None)
        given = merge_kwargs(kwargs.pop("plan_config", None), plan_kwargs, name="plan")
        check_known(given, self._training_plan_cls, named(ScviTrainingPlan))
        plan = {**preset, **given}
        plan |= {} if lr is None else {"lr": lr}
        trainer = merge_kwargs(kwargs.get("trainer_config"), kwargs, name="trainer")
        early_stopping = early_stopping or bool(trainer.get("early_stopping"))
        monitor = trainer.get("early_stopping_monitor", "elbo_validation")
        metric = plan.get("lr_scheduler_metric", "elbo_validation")
        for name, chosen in (("early_stopping_monitor", monitor), ("lr_scheduler_metric", metric)):
            if chosen not in MONITORS and not kwargs["callbacks"]:  # which may log others
                raise InputError(f"{name} is {chosen!r}; choose one of {MONITORS}.")
        if "gradient_clip_val" not in trainer:
            kwargs["gradient_clip_val"] = clip
        if kwargs.get("datamodule") is not None:
            batch_size = 128 if batch_size is None else batch_size  # to scvi-tools: not given
        else:
            batch_size = preset_batch_size if batch_size is None else batch_size
            default = self._epochs(batch_size)
            self.training_ = {**self.training_, "default": default}
            max_epochs = default if max_epochs is None else max_epochs
            check_splitting(datasplitter_kwargs or {}, UnsupervisedTrainingMixin.train)
            kwargs["use_distributed_sampler"] = False  # our loaders share the cells themselves
            datasplitter_kwargs = {
                "seed": self.seed_,
                "balance_conditions": balance_conditions,
                "memory_budget": memory_budget,
                **(datasplitter_kwargs or {}),
            }
            if train_size is None and "external_indexing" not in datasplitter_kwargs:
                train_size = 0.9 if early_stopping or _validates(trainer, plan) else 1.0
            asked = {"early_stopping": early_stopping, **plan}
            validating = [n for n in ("early_stopping", "reduce_lr_on_plateau") if asked.get(n)]
            self._check_split(train_size, validating)
        if "n_steps_kl_warmup" not in plan and max_epochs is not None:
            plan.setdefault("n_epochs_kl_warmup", math.ceil(warmup * max_epochs))
        mode = trainer.get("early_stopping_mode", "min")
        callbacks = [*kwargs.pop("callbacks"), Clock()]
        callbacks += [BestWeights(monitor, mode)] if early_stopping else []
        if checkpoint_dir is not None:
            run = {
                "model": (self.init_params_, self.seed_, self._data_summary()),
                "split": (batch_size, train_size, datasplitter_kwargs),
                "fit": (max_epochs, early_stopping, plan),
                "trainer": {k: v for k, v in trainer.items() if k not in _NOT_OF_THE_RUN},
            }
            kwargs["checkpoint"] = EpochCheckpoint(checkpoint_dir, _describe(run))
        with torch.random.fork_rng(), suitable_threads(self.module.widest), self._codes_of_it():
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

    @contextlib.contextmanager
    def _codes_of_it(self) -> Iterator[None]:
        """Keep codes of the training cells, also where training stops; those there are, if no step was made."""
        before = self.training_
        try:
            yield
        except BaseException:
            if self.training_ is not before and self.trainer.global_step:
                with contextlib.suppress(OSError, RuntimeError, ValueError):  # as what stopped it
                    self._keep_codes()
            raise
        self._keep_codes()

    def _keep_codes(self) -> None:
        """Keep latent codes of training cells, that predictions are put on their level with."""
        self.codes_ = self.codes_ if self.frozen_conditions_ else {}  # of weights that were
        rows, manager = getattr(self, "train_indices", None), self.adata_manager
        if manager is None or rows is None or not self.is_trained_:
            return
        rows, group = np.asarray(rows), self._group_codes()
        if self.frozen_conditions_:
            n_cells = np.zeros(self.module.n_cells.shape)
            np.add.at(n_cells, tuple(group[rows].T), 1)
            n_cells[:, self.frozen_conditions_ :] = 0  # these the module counts
            # those of a former call, or of a query that is the reference
            self.query_cells_ = np.maximum(n_cells, _grown(self.query_cells_, n_cells.shape))
        how = {"since": self.frozen_conditions_, "seed": self.seed_}
        self.codes_ = kept_codes(self.trained, self.adata, rows, group[rows], **how)
        if not self.frozen_conditions_:
            self.kl_ = kl_by_dimension(self.trained, self.adata, rows)
            note = collapse_note(self.kl_)
            if note is not None and not was_said("collapsed"):  # a few of many are no loss
                few = len(self.active_dims) <= len(self.kl_) / 2
                logger.log(logging.WARNING if few else logging.INFO, "%s", note)
        key = self.registry_["setup_args"].get("replicate_key")
        if key in self.adata.obs and not self.frozen_conditions_:  # a query keeps its reference's
            self.replicates_ = replicate_means(self.trained, manager, rows, group[rows], key)

    @property
    def trained(self) -> Trained:
        """Network, names and what is kept of the training cells, as plain data."""
        given, known = self.registry_["setup_args"], self.known
        return Trained(
            **vars(known),
            module=self.module,
            layer=given["layer"],
            total_counts_key=given["total_counts_key"],
            codes=self.codes_,
            batches=self._make_data_loader,
            preset=self.preset_,
            seed=self.seed_,
            training=self.training_,
            frozen=tuple(n for n in (*self.frozen_before_, self.frozen_conditions_) if n),
            marks=self.training_marks_,
            spread=self.spread_,
            replicates=replicates_of(self.module, self.replicates_),
        )

    def _check_split(self, train_size: float | None, validating: Sequence[str]) -> None:
        """Raise where the cells to train on, or those that something is `validating` on, would be none."""
        if train_size is None:
            return
        check_number("train_size", train_size, 0.0, 1.0)
        if not train_size:
            raise InputError("train_size is 0; it is a share above 0, up to 1.")
        n_obs = self.adata.n_obs
        if validating and math.ceil(train_size * n_obs) >= n_obs:
            raise InputError(
                f"{validating[0]} needs cells to validate on; a train_size of {train_size:g} of {n_obs} "
                f"cells leaves none. Lower train_size, or train without {validating[0]}."
            )

    def _epochs(self, batch_size: int) -> int:
        """Return the default number of epochs."""
        steps_per_epoch = math.ceil(self.adata.n_obs / batch_size)
        epochs = max(_EPOCHS, math.ceil(_MIN_STEPS / steps_per_epoch))
        return max(min(epochs, _MAX_STEPS // steps_per_epoch), 1)

    def _note_one_sided_labels(self) -> None:
        """Log the labels with cells under one condition only."""
        if self.adata is None or not self.labels or not self.conditions:
            return
        present = np.zeros((len(self.labels), len(self.conditions)), dtype=bool)
        present[tuple(self._group_codes().T)] = True
        only = {
            label: self.conditions[row.argmax()]
            for label, row in zip(self.labels, present, strict=True)
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
        """Return what identifies the registered data: genes, columns, what conditions are made of, all values."""
        found = hashlib.sha256("\n".join(self.get_var_names()).encode())
        found.update(self.condition_space.design().tobytes())
        manager = self.adata_manager
        for key in [] if manager is None else manager.data_registry:
            values = manager.get_from_registry(key)
            if key == REGISTRY_KEYS.X_KEY:
                found.update(digest(values, manager.adata.n_obs).encode())
            else:
                found.update(np.ascontiguousarray(values, dtype=np.float64).tobytes())
        return f"{dict(self.summary_stats)} {found.hexdigest()}"


def _check_arguments(
    choices: dict[str, Any], whole: dict[str, Any], numbers: dict[str, Any]
) -> None:
    """Raise where a choice is not True or False, or where one of the numbers given cannot be."""
    for name, choice in choices.items():
        if not isinstance(choice, bool | np.bool_):
            raise InputError(f"{name} is {choice!r}; give True or False.")
    for name, number in whole.items():
        if number is not None:
            check_whole(name, number)
    for name, number in numbers.items():
        if number is not None:
            check_number(name, number, 0.0)


def _grown(counts: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return counts of labels and conditions, with none of those that were added."""
    return np.pad(counts, [(0, n - known) for n, known in zip(shape, counts.shape, strict=True)])


def _validates(trainer: dict[str, Any], plan: dict[str, Any]) -> bool:
    """Return whether arguments of trainer or plan need a validation set."""
    return bool(
        "validation_size" in trainer
        or trainer.get("check_val_every_n_epoch")
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
