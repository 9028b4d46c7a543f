"""How long training will take, how long it took, and whether it was long enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter

import lightning.pytorch as lightning
import numpy as np

from trvae_sc.progress import duration, say

_TERMS = ("reconstruction", "kl", "mmd", "transfer")
_LEAST = 10  # epochs that tell whether a term has levelled off
_SLOW = 0.01  # of the whole fall of the loss, that a term falls by from one tenth of the epochs to the next


class Clock(lightning.Callback):
    """Says after the first epoch how long the rest will take, and at the end how long all took."""

    def __init__(self) -> None:
        self.start, self.first = 0.0, 0
        self.terms: dict[str, list[float]] = {}

    def on_train_start(self, trainer: lightning.Trainer, plan: lightning.LightningModule) -> None:
        """Start the clock."""
        self.start, self.first = perf_counter(), trainer.current_epoch

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, plan: lightning.LightningModule
    ) -> None:
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

    def on_train_end(self, trainer: lightning.Trainer, plan: lightning.LightningModule) -> None:
        """Say how long training took, and whether the terms of the loss have levelled off."""
        if _is_shown(trainer):
            epochs = trainer.current_epoch - self.first
            seconds = duration(perf_counter() - self.start)
            say(f"Trained {epochs} epochs in {seconds}. {levelled_off(self.terms)}".rstrip())


def _is_shown(trainer: lightning.Trainer) -> bool:
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
