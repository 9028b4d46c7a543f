"""Simple predictors with the contract of the model.

Each takes training cells and the source cells to start from, never the truth, and returns an
AnnData of predicted cells with one row per source cell. Most published models are no better than
these; a prediction should be shown beside them.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from trvae_sc.expression import Keys, gene_means, groups, log_values, profiles, ridge_shift

Method = Callable[..., "AnnData | dict[str, AnnData]"]


# -- predictors of a shift ----------------------------------------------------------------------------


def no_change(
    train: AnnData, source: AnnData, *, target: Any, keys: Keys, seed: int = 0
) -> AnnData:
    """Return the source cells as they are: what predicting nothing scores."""
    return _shifted(train, source, target, keys, lambda *_: 0.0, "no_change")


def mean_shift(
    train: AnnData, source: AnnData, *, target: Any, keys: Keys, seed: int = 0
) -> AnnData:
    r"""Add the mean over other labels of their own shift.

    .. math:: \hat x = x + \frac1L \sum_{l} (\bar x_{lt} - \bar x_{ls})

    Differences are taken within labels: a pooled difference would also contain the difference in
    composition, since the label to predict is missing from the target condition.

    Parameters
    ----------
    train
        Training cells.
    source
        Cells to start from.
    target
        Condition to predict.
    keys
        Where the data are.
    seed
        Not used.

    Returns
    -------
    AnnData with log values in ``X``.
    """
    return _shifted(train, source, target, keys, lambda _, __, shifts: shifts.mean(0), "mean_shift")


def nearest_shift(
    train: AnnData, source: AnnData, *, target: Any, keys: Keys, seed: int = 0
) -> AnnData:
    """Add the shift of the label whose source profile is nearest (Euclidean, log values)."""

    def rule(profile: np.ndarray, others: np.ndarray, shifts: np.ndarray) -> np.ndarray:
        return shifts[np.square(others - profile).sum(1).argmin()]

    return _shifted(train, source, target, keys, rule, "nearest_shift")


def context_shift(
    train: AnnData, source: AnnData, *, target: Any, keys: Keys, seed: int = 0
) -> AnnData:
    r"""Add the mean shift and what a ridge regression on the source profile adds to it.

    The strongest simple method we know of; see :func:`trvae_sc.expression.ridge_shift`.

    Parameters
    ----------
    train
        Training cells.
    source
        Cells to start from.
    target
        Condition to predict.
    keys
        Where the data are.
    seed
        Not used.

    Returns
    -------
    AnnData with log values in ``X``.
    """
    return _shifted(train, source, target, keys, ridge_shift, "context_shift")


def _shifted(
    train: AnnData,
    source: AnnData,
    target: Any,
    keys: Keys,
    rule: Callable[[np.ndarray, np.ndarray, np.ndarray], Any],
    name: str,
) -> AnnData:
    """Return the source cells plus the shift that a rule gives each label and condition of them."""
    known = profiles(train, keys)
    x = log_values(source, keys, known.kappa)
    x = x.toarray() if sparse.issparse(x) else np.array(x, dtype=np.float64)
    for (label, condition), rows in groups(source.obs, keys):
        if name != "no_change" and condition != target:
            others, shifts = known.shifts(
                condition, target, without=label if keys.labels_key else None
            )
            x[rows] += rule(gene_means(x[rows]), others, shifts)
    return as_prediction(x, source, target, keys, known.kappa, name)


def as_prediction(
    x: Any, source: AnnData, target: Any, keys: Keys, kappa: float, name: str
) -> AnnData:
    """Return predicted values as an AnnData like those of the model."""
    obs = source.obs.copy()
    obs["source_condition"] = obs[keys.condition_key]
    obs["source_cell"] = obs.index
    obs[keys.condition_key] = pd.Categorical([target] * len(obs), categories=[target])
    obs.index = obs.index.astype(str) + f"_{target}"
    result = AnnData(np.asarray(x, dtype=np.float32), obs=obs, var=source.var.copy())
    result.uns["trvae_sc"] = {
        "method": name,
        "target": str(target),
        "scale": "log(1 + kappa * share)" if keys.is_count else "values",
        "kappa": kappa,
        "versions": {"trvae_sc": version("trvae_sc")},
    }
    return result
