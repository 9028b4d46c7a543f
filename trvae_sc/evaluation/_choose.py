"""One rule for what to use: a model, the best simple method, or neither is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from trvae_sc.baselines import SIMPLEST_FIRST

Answer = Literal["model", "simple", "close"]

_ROUNDING = 1e-9  # differences of losses that are no larger are none


@dataclass(frozen=True)
class Decision:
    """What the paired difference between a model and the best simple method says."""

    answer: Answer  #: which is better, or that it is too close to call
    model: str | None
    simple: str | None
    difference: float  #: by how much the model's loss is lower, in the mean
    error: float  #: its standard error, over tasks or else over seeds; NaN where nothing tells

    @property
    def method(self) -> str:
        """The method to use: where it is too close to call, the simple one."""
        return (self.model if self.answer == "model" else self.simple) or ""


def decide(difference: float, error: float, *, model: str | None, simple: str | None) -> Decision:
    """Return which of two methods to use; `model` or `simple` is None where there is none of the kind.

    `difference` is the loss of the simple method less that of the model; within its standard error (NaN where there
    is none) it is too close to call.
    """
    if simple is None or model is None:
        return Decision("model" if simple is None else "simple", model, simple, np.nan, np.nan)
    answer: Answer = "close"
    if abs(difference) > error + _ROUNDING:  # never for NaN
        answer = "model" if difference > 0 else "simple"
    return Decision(answer, model, simple, float(difference), float(error))


def standard_error(differences: pd.DataFrame) -> float:
    """Return the standard error of the mean of paired differences, tasks x seeds.

    Over tasks; of one task over its seeds. NaN for a single number, and 0 where nothing is random.
    """
    by_task = differences.mean(axis=1)
    values = by_task if len(by_task) > 1 else differences.iloc[0].dropna()
    return float(values.sem()) if len(values) > 1 else float("nan")


def choose(losses: dict[str, pd.DataFrame]) -> Decision:
    """Compare the best simple method with the models, by the losses of each, tasks x seeds.

    The best simple method is the one with the lowest mean loss; of equal ones the simplest. Of the models
    that are better by more than the standard error the one with the lowest mean loss is chosen.
    """
    mean = {name: round(float(table.mean(axis=1).mean()), 12) for name, table in losses.items()}
    simple = [name for name in SIMPLEST_FIRST if name in losses]
    models = sorted((name for name in losses if name not in SIMPLEST_FIRST), key=mean.__getitem__)
    best = min(simple, key=mean.__getitem__) if simple else None
    if best is None or not models:
        return decide(np.nan, np.nan, model=models[0] if models else None, simple=best)
    decisions = []
    for model in models:
        lead = losses[model].rsub(losses[best].mean(axis=1), axis=0)
        error = standard_error(lead)
        decisions.append(decide(lead.mean(axis=1).mean(), error, model=model, simple=best))
    return next((found for found in decisions if found.answer == "model"), decisions[0])
