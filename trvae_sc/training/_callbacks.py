"""Callbacks: weights of the best epoch, and how long training takes and whether that was enough."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from scvi.train import SaveCheckpoint as ScviSaveCheckpoint
from torch import Tensor

from trvae_sc.model_file import read_model
from trvae_sc.progress import duration, say

_TERMS = ("reconstruction", "kl", "mmd", "transfer")
_LEAST = 10  # epochs that tell whether a term has levelled off
_SLOW = 0.01  # of the whole fall of the loss, that a term falls by from one tenth of the epochs to the next


class BestWeights(Callback):
    """Keeps the weights of the best validation epoch and puts them back when training ends.

    Also when it ends by an exception or by Ctrl-C. Lower is better unless `mode` is ``"max"``.
    """

    def __init__(
        self, monitor: str = "elbo_validation", mode: Literal["min", "max"] = "min"
    ) -> None:
        self.monitor = monitor
        self.sign = 1.0 if mode == "min" else -1.0
        self.best = math.inf
        self.best_epoch: int | None = None
        self.weights: dict[str, Tensor] | None = None

    def on_validation_end(self, trainer: Trainer, plan: LightningModule) -> None:
        """Keep the weights if they are the best so far."""
        value = trainer.callback_metrics.get(self.monitor)
        if trainer.sanity_checking or value is None or not self.sign * value.item() < self.best:
            return  # NaN is not better
        self.best = self.sign * value.item()
        self.best_epoch = trainer.current_epoch
        self.weights = {k: v.detach().clone() for k, v in plan.module.state_dict().items()}

    def on_train_end(
        self, trainer: Trainer, plan: LightningModule, *exception: BaseException
    ) -> None:
        """Put the best weights back."""
        if self.weights is not None:
            plan.module.load_state_dict(self.weights)

    on_exception = on_train_end
    on_fit_end = on_train_end  # where a finished run was resumed, which trains nothing

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint stores."""
        return {"best": self.best, "best_epoch": self.best_epoch, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what a checkpoint stores."""
        self.best, self.best_epoch = state_dict["best"], state_dict["best_epoch"]
        self.weights = state_dict["weights"]


class SaveCheckpoint(ScviSaveCheckpoint):
    """scvi-tools' saving of the best model, for models in the file format of this package."""

    @classmethod
    def like(cls, callback: ScviSaveCheckpoint) -> SaveCheckpoint:
        """Return a callback that is the one given, its attributes shared, in all but reading."""
        ours = cls.__new__(cls)
        ours.__dict__ = callback.__dict__
        return ours

    def on_train_end(self, trainer: Trainer, plan: LightningModule) -> None:
        """Put the best weights back, if that was asked for."""
        if self.load_best_on_end:
            self._put_back(plan)

    def on_exception(
        self, trainer: Trainer, plan: LightningModule, exception: BaseException
    ) -> None:
        """Put the best weights back after losses or gradients that are no numbers."""
        if not isinstance(exception, KeyboardInterrupt) and self.check_nan_gradients:
            self._put_back(plan)

    def _put_back(self, plan: LightningModule) -> None:
        if self.best_model_path:
            plan.module.load_state_dict(read_model(Path(self.best_model_path), None).weights)


class Clock(Callback):
    """Says after the first epoch how long the rest will take, and at the end how long all took."""

    def __init__(self) -> None:
        self.start, self.first = 0.0, 0
        self.terms: dict[str, list[float]] = {}

    def on_train_start(self, trainer: Trainer, plan: LightningModule) -> None:
        """Start the clock."""
        self.start, self.first = perf_counter(), trainer.current_epoch

    def on_train_epoch_end(self, trainer: Trainer, plan: LightningModule) -> None:
        """Say how long the rest will take, and note the terms of the loss."""
        for term in _TERMS:
            value = trainer.callback_metrics.get(f"{term}_weighted_train")
            if value is not None:
                self.terms.setdefault(term, []).append(float(value))
        left = (trainer.max_epochs or 0) - trainer.current_epoch - 1
        if trainer.current_epoch == self.first and left > 0 and _is_shown(trainer):
            seconds = left * (perf_counter() - self.start)
            if seconds >= 1:
                say(f"{left} more epochs will take about {duration(seconds)}.")

    def on_train_end(self, trainer: Trainer, plan: LightningModule) -> None:
        """Say how long training took, and whether the terms of the loss have levelled off."""
        if _is_shown(trainer):
            epochs = trainer.current_epoch - self.first
            seconds = duration(perf_counter() - self.start)
            say(f"Trained {epochs} epochs in {seconds}. {levelled_off(self.terms)}".rstrip())


def _is_shown(trainer: Trainer) -> bool:
    return trainer.progress_bar_callback is not None and trainer.is_global_zero


def levelled_off(terms: Mapping[str, Sequence[float]]) -> str:
    """Return whether the terms of a loss have levelled off, in a sentence; nothing of few epochs.

    A term still falls where its mean over the last tenth of the epochs is lower than over the tenth
    before by more than a hundredth of what the loss fell by since the first epoch.
    """
    n_epochs = max(map(len, terms.values()), default=0)
    if n_epochs < _LEAST:
        return ""
    part = max(n_epochs // 10, 2)
    loss = np.sum(list(terms.values()), axis=0)
    fall = loss[0] - loss[-part:].mean()
    falling = [
        name
        for name, values in terms.items()
        if np.mean(values[-2 * part : -part]) - np.mean(values[-part:]) > _SLOW * abs(fall)
    ]
    if falling:
        return f"Still falling: {', '.join(falling)}; more epochs (max_epochs=) may help."
    return "All terms of the loss have levelled off."
