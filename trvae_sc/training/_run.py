"""Running a fit: checkpoints of every epoch, interruption."""

from __future__ import annotations

import contextlib
import copy
import datetime
import functools
import hashlib
import logging
import pickle
import signal
import struct
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from scvi.train import SaveCheckpoint as ScviSaveCheckpoint
from scvi.train import Trainer as ScviTrainer
from scvi.train import TrainRunner as ScviTrainRunner
from scvi.train._logger import SimpleLogger

from trvae_sc.arguments import check_known, named
from trvae_sc.errors import InputError
from trvae_sc.files import as_path
from trvae_sc.module import Peers
from trvae_sc.training._callbacks import BestWeights, SaveCheckpoint
from trvae_sc.training._history import History

#: What Lightning and scvi-tools raise on arguments of the trainer.
_REFUSED = (TypeError, ValueError, MisconfigurationException)
_STEPS = ("accumulate_grad_batches", "limit_train_batches", "max_steps")
_PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")
#: What reading a damaged file raises.
_DAMAGE = (
    *(AttributeError, EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError),
    *(pickle.UnpicklingError, struct.error, zipfile.BadZipFile),
)


def check_trainer(
    given: Iterable[str], train: Callable[..., Any], *further: Callable[..., Any]
) -> None:
    """Raise on names that neither ``train`` nor what it passes them to takes: `further`, and the trainers."""
    names = [name for taker in further for name in named(taker)]
    names += _of_trainers()
    check_known(given, train, [*names, "ckpt_path"], also=", and those of scvi.train.Trainer")


@functools.cache
def _of_trainers() -> tuple[str, ...]:
    """Return the names of the arguments of scvi-tools' trainer and of Lightning's."""
    return (*named(ScviTrainer), *named(lightning.Trainer))


def as_callbacks(given: Any) -> list[lightning.Callback]:
    """Return the callbacks that a caller gave, one, several or None, as a list of them."""
    if given is None:
        return []
    found = [given] if isinstance(given, lightning.Callback) else list(given)
    odd = [callback for callback in found if not isinstance(callback, lightning.Callback)]
    if odd:
        raise InputError(
            f"callbacks has {odd[0]!r}; give instances of lightning.pytorch.callbacks.Callback."
        )
    return found


class EpochCheckpoint(Checkpoint):
    """Writes the state of training to a folder after every epoch, and continues from it.

    With the history and torch's random state, so that a run that was killed and resumed ends with the
    numbers of one that was not. `run` is what identifies the run: data, model and arguments.
    """

    def __init__(self, folder: str | Path, run: str) -> None:
        folder = as_path(folder, "checkpoint_dir")
        self.file = folder / "last.ckpt"
        self._lock = FileLock(folder / ".lock")
        self.run = hashlib.sha256(run.encode()).hexdigest()
        #: by metric: what the rows are numbered by ("epoch" or "step"), numbers, values
        self.history: dict[str, tuple[str, list[int], list[float]]] = {}
        self.before: dict[str, int] = {}  #: epochs and steps that the model had before the run
        self.stopped = False

    def resume_from(self) -> str | None:
        """Return the checkpoint to continue from, or None; check it, and keep others off the folder."""
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise InputError(
                f"{self.file.parent} is no folder, or in a file. Name a folder."
            ) from error
        if rank_zero_only.rank == 0:
            try:
                self._lock.acquire(timeout=0)
            except Timeout as error:
                raise InputError(
                    f"Another training uses {self.file.parent}. Wait for it, or choose another folder."
                ) from error
        if not self.file.exists():
            return None
        try:
            # mmap: of the tensors, which Lightning reads, nothing is read
            content = torch.load(self.file, map_location="cpu", weights_only=True, mmap=True)
            run = content["callbacks"].get(self.state_key, {}).get("run")
        except _DAMAGE as error:
            raise InputError(
                f"{self.file} is damaged, or no checkpoint of ours. Delete it to start anew."
            ) from error
        if run != self.run:
            raise InputError(
                f"{self.file} is of a run with other data or arguments. Choose another folder, or "
                "delete it to start anew."
            )
        return str(self.file.absolute())  # Lightning takes "http..." for an address

    def release(self) -> None:
        """Let others use the folder."""
        self._lock.release()

    def on_fit_start(self, trainer: lightning.Trainer, plan: lightning.LightningModule) -> None:
        """Give the logger the epochs before the interruption; stop where the run had stopped."""
        trainer.should_stop = trainer.should_stop or self.stopped
        experiment = getattr(trainer.logger, "experiment", None)
        if not isinstance(experiment, History):  # of another logger, or another process
            return
        for name, (numbered_by, numbers, values) in self.history.items():
            for number, value in zip(numbers, values, strict=True):
                experiment.log_metrics({name: value, numbered_by: number})

    def on_train_start(self, trainer: lightning.Trainer, plan: lightning.LightningModule) -> None:
        """Tell schedules that watch a metric of the epoch whose end the checkpoint is.

        Lightning tells them after the checkpoint is written, and not again when it resumes.
        """
        for config in trainer.lr_scheduler_configs:  # at the start of a new run history is empty
            if config.reduce_on_plateau and config.monitor in self.history:
                _, epochs, values = self.history[config.monitor]
                if epochs[-1] == trainer.current_epoch - 1:
                    config.scheduler.step(values[-1])

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, plan: lightning.LightningModule
    ) -> None:
        """Write the checkpoint."""
        validated = (trainer.current_epoch + 1) % trainer.check_val_every_n_epoch == 0
        by_step = {k: frame for k, frame in _logged(trainer).items() if frame.index.name == "step"}
        for name, value in trainer.callback_metrics.items():
            if name not in by_step and (validated or "validation" not in name):
                _, epochs, values = self.history.setdefault(name, ("epoch", [], []))
                epochs.append(trainer.current_epoch)
                values.append(value.item())
        for name, frame in by_step.items():
            self.history[name] = ("step", frame.index.tolist(), frame[name].tolist())
        self.stopped = trainer.should_stop
        temporary = self.file.with_suffix(".tmp")  # a kill leaves the file before
        trainer.save_checkpoint(temporary)
        if trainer.is_global_zero:
            temporary.replace(self.file)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint stores."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        rng = {"cpu": torch.get_rng_state(), "cuda": cuda}
        done = {"history": self.history, "before": self.before, "stopped": self.stopped}
        return {"run": self.run, **done, "rng": rng}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what a checkpoint stores."""
        self.history, self.stopped = state_dict["history"], state_dict["stopped"]
        self.before = state_dict.get("before", {})
        torch.set_rng_state(state_dict["rng"]["cpu"].cpu())
        if state_dict["rng"]["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all([state.cpu() for state in state_dict["rng"]["cuda"]])


def _logged(trainer: lightning.Trainer) -> dict[str, pd.DataFrame]:
    """Return the frames of scvi-tools' logger; none of another one."""
    if not trainer.is_global_zero:  # where Lightning's logger is a dummy
        return {}
    return getattr(getattr(trainer.logger, "experiment", None), "data", {})


def _trained_before(model: Any) -> dict[str, int]:
    """Return the epochs, and the steps in its history, that a model was trained for."""
    frames = (model.history_ or {}).values()
    steps = [len(frame) for frame in frames if frame.index.name == "step"]
    return {"epoch": model.training_["epochs"], "step": max(steps, default=0)}


def _joined(
    known: dict[str, pd.DataFrame], found: dict[str, pd.DataFrame], before: dict[str, int]
) -> dict[str, pd.DataFrame]:
    """Return a history with that of a run, numbered on from what was `before`.

    What is known of the same epochs is of the part of the run that an interruption left, and replaced.
    """
    joined = dict(known)
    for name, frame in found.items():
        frame.index = frame.index + before.get(frame.index.name, 0)
        old = known.get(name)
        if old is not None and len(frame):
            old = old[old.index < frame.index[0]]
        joined[name] = frame if old is None or not len(old) else pd.concat([old, frame])
    return joined


#: How far a model that was not trained has been trained.
NOT_STARTED = {"epochs": 0, "planned": 0, "default": 0, "interrupted": False}


@contextlib.contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Hide what Lightning says of hardware, advertising and its own deprecations."""
    loggers = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric")]
    levels = [log.level for log in loggers]
    for log in loggers:
        log.setLevel(max(log.getEffectiveLevel(), logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LeafSpec.*")
            warnings.filterwarnings("ignore", message="The number of training batches")
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message="You defined a `validation_step`")
            # batch norm of frozen models is; all else trains
            warnings.filterwarnings("ignore", message="Found .* in eval mode at the start")
            yield
    finally:
        for log, level in zip(loggers, levels, strict=True):
            log.setLevel(level)


class TrainRunner(ScviTrainRunner):
    """scvi-tools' runner, leaving a usable model behind when training is interrupted."""

    def __init__(
        self, *args: Any, checkpoint: EpochCheckpoint | None = None, **kwargs: Any
    ) -> None:
        try:
            for name in _STEPS:
                if kwargs.get(name) == 0:
                    raise InputError(f"{name} is 0, with which no step is made. Leave it out.")
            if getattr(kwargs.get("data_splitter"), "n_val", 1) == 0:
                kwargs["limit_val_batches"] = 0  # else Lightning asks for their loader
            if checkpoint is not None:
                kwargs["ckpt_path"] = checkpoint.resume_from()
            with _quiet_lightning():
                super().__init__(*args, **kwargs)
            precision = str(self.trainer.precision)
            if precision not in _PRECISIONS:
                raise InputError(
                    f"precision is '{precision}'; networks here compute with {list(_PRECISIONS)}."
                )
            if checkpoint is not None and self.trainer.max_steps != -1:  # Lightning loses an epoch
                raise InputError(
                    "max_steps cannot be combined with checkpoint_dir. Give max_epochs in its place."
                )
        except BaseException as error:
            if checkpoint is not None:
                checkpoint.release()
            if isinstance(error, InputError) or not isinstance(error, _REFUSED):
                raise
            raise InputError(f"No trainer can be made with these arguments: {error}") from error
        if isinstance(self.trainer.logger, SimpleLogger):
            self.trainer.logger._experiment = History()
        self.trainer.callbacks = [
            SaveCheckpoint.like(callback) if isinstance(callback, ScviSaveCheckpoint) else callback
            for callback in self.trainer.callbacks
        ]
        self.checkpoint = checkpoint
        self._before = {} if self.ckpt_path else _trained_before(self.model)
        if checkpoint is not None:  # after the trainer has sorted its own callbacks
            self.trainer.callbacks.append(checkpoint)
            checkpoint.before = self._before

    def _run_training_core(self) -> None:
        on_interrupt = signal.getsignal(signal.SIGINT)
        before = copy.deepcopy(self.model.module.state_dict())
        self.training_plan.train()  # a model trained or loaded before is in evaluation mode
        try:
            with _quiet_lightning():
                self.trainer.fit(self.training_plan, self.data_splitter, ckpt_path=self.ckpt_path)
        except (KeyboardInterrupt, SystemExit) as stop:
            if not self.trainer.interrupted:
                raise
            if on_interrupt is None:  # R's, or that of another program
                on_interrupt = signal.default_int_handler
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, on_interrupt)  # Lightning left it ignored
            self._finish(interrupted=True)
            if not self.model.is_trained_:
                raise KeyboardInterrupt(
                    "Training stopped before the first step; the model is not trained."
                ) from stop
            raise KeyboardInterrupt(
                f"Training stopped in epoch {self.trainer.current_epoch} of {self.trainer.max_epochs}; "
                f"the model has the weights of {self._weights_epoch()} and can be used."
            ) from stop

        except FloatingPointError:  # the weights are no numbers
            raise
        except Exception as error:  # of a file, a worker, memory, a callback
            if self.trainer.global_step:
                self._finish(interrupted=True)
            told = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
            if told or isinstance(error, MemoryError | torch.OutOfMemoryError):
                raise MemoryError(
                    f"Out of memory in epoch {self.trainer.current_epoch} of training. Pass a smaller "
                    f"memory_budget (in GB) or batch_size. {error}"
                ) from error
            if isinstance(error, MisconfigurationException) or "conditioned on" in str(error):
                raise InputError(f"Training cannot go on with these arguments: {error}") from error
            raise
        finally:  # what follows may be for one process alone
            self.model.module.peers = Peers()
            self.model.module.eval()
            if not self.trainer.global_step:  # statistics that were taken go with no weights
                self.model.module.load_state_dict(before)
            if self.checkpoint is not None:
                self.checkpoint.release()
            self.model.to_device(self.device)  # Lightning leaves it on the CPU
        self._finish()

    def _weights_epoch(self) -> str:
        for callback in self.trainer.callbacks:
            if isinstance(callback, BestWeights) and callback.best_epoch is not None:
                return f"the best epoch, {callback.best_epoch},"
        return "the latest step"

    def _finish(self, *, interrupted: bool = False) -> None:
        """Hand what was learned to the model, and how far training went."""
        known = self.model.training_marks_
        self.model.training_marks_ = np.union1d(known, self.training_plan.marks)
        spread = getattr(self.training_plan, "spread", None)
        if spread is not None:  # models of the family have none
            known = self.model.spread_
            if len(known) and self.model.frozen_conditions_:  # as the reference of a query had them
                n_known = self.model.frozen_conditions_
                spread[:n_known] = known[:n_known]
            self.model.spread_ = spread
        before = self.checkpoint.before if self.checkpoint is not None else self._before
        n_epochs, done = before.get("epoch", 0), self.trainer.fit_loop.epoch_progress.current
        # of a run that was found stopped early, the last is processed, but not completed
        n_done = done.completed if interrupted else done.processed
        self.model.training_ = {
            **self.model.training_,
            "epochs": n_epochs + n_done,
            "planned": n_epochs + int(self.trainer.max_epochs),
            "interrupted": interrupted,
        }
        self.model.training_date_ = datetime.datetime.now(datetime.UTC).date().isoformat()
        known, was_trained = self.model.history_ or {}, self.model.is_trained_
        self.model.is_trained_ = False  # scvi-tools then gives the history of this run alone
        self._update_history()
        self.model.history_ = _joined(known, self.model.history_ or {}, before)
        self.model.train_indices = getattr(self.data_splitter, "train_idx", None)
        self.model.test_indices = getattr(self.data_splitter, "test_idx", None)
        self.model.validation_indices = getattr(self.data_splitter, "val_idx", None)
        self.model.module.eval()
        self.model.is_trained_ = was_trained or self.trainer.global_step > 0
        self.model.trainer = self.trainer
