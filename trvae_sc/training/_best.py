"""Weights of the best epoch: kept in memory, or saved by scvi-tools' checkpoints."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as lightning
from lightning.pytorch.callbacks import Callback
from scvi.train import SaveCheckpoint as ScviSaveCheckpoint
from torch import Tensor

from trvae_sc.model_file import read_model


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

    def on_validation_end(
        self, trainer: lightning.Trainer, plan: lightning.LightningModule
    ) -> None:
        """Keep the weights if they are the best so far."""
        value = trainer.callback_metrics.get(self.monitor)
        if trainer.sanity_checking or value is None or not self.sign * value.item() < self.best:
            return  # NaN is not better
        self.best = self.sign * value.item()
        self.best_epoch = trainer.current_epoch
        self.weights = {k: v.detach().clone() for k, v in plan.module.state_dict().items()}

    def on_train_end(
        self, trainer: lightning.Trainer, plan: lightning.LightningModule, *exception: BaseException
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

    def on_train_end(self, trainer: lightning.Trainer, plan: lightning.LightningModule) -> None:
        """Put the best weights back, if that was asked for."""
        if self.load_best_on_end:
            self._put_back(plan)

    def on_exception(
        self, trainer: lightning.Trainer, plan: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Put the best weights back after losses or gradients that are no numbers."""
        if not isinstance(exception, KeyboardInterrupt) and self.check_nan_gradients:
            self._put_back(plan)

    def _put_back(self, plan: lightning.LightningModule) -> None:
        if self.best_model_path:
            plan.module.load_state_dict(read_model(Path(self.best_model_path), None).weights)
