"""Simple predictors with the contract of the model, and the model's presets in the same contract.

A method is ``method(train, source, *, target, keys)``, with ``seed`` if it draws random numbers. It
gets training cells and the source cells to start from, never the truth, and returns an AnnData of
predicted cells with one row per source cell, or several of them by output. Most published models are
no better than the simple ones; a prediction should be shown beside them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from trvae_sc.expression import (
    Keys,
    Pairs,
    dense,
    gene_means,
    groups,
    log_values,
    median_total,
    profiles,
    ridge_shift,
)
from trvae_sc.model import TRVAE

Method = Callable[..., "AnnData | dict[str, AnnData]"]


# -- predictors of a shift ----------------------------------------------------------------------------


def no_change(train: AnnData, source: AnnData, *, target: Any, keys: Keys) -> AnnData:
    """Return the source cells as they are: what predicting nothing scores."""
    return _shifted(train, source, target, keys, None, "no_change")


def mean_shift(train: AnnData, source: AnnData, *, target: Any, keys: Keys) -> AnnData:
    r"""Add the mean over labels of their own shift.

    .. math:: \hat x = x + \frac1L \sum_{l} (\bar x_{lt} - \bar x_{ls})

    Differences are taken within labels: a pooled difference would also contain the difference in
    composition, since the label to predict is missing from the target condition. (Where it is not
    missing, as when a patient is held out, its own shift counts like the others.)

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

    Returns
    -------
    AnnData with log values in ``X``.
    """
    return _shifted(
        train, source, target, keys, lambda _, pairs: pairs.shifts.mean(0), "mean_shift"
    )


def nearest_shift(train: AnnData, source: AnnData, *, target: Any, keys: Keys) -> AnnData:
    """Add the shift of the label whose source profile is nearest (Euclidean, log values)."""

    def rule(profile: np.ndarray, pairs: Pairs) -> np.ndarray:
        return pairs.shifts[np.square(pairs.profiles - profile).sum(1).argmin()]

    return _shifted(train, source, target, keys, rule, "nearest_shift")


def context_shift(train: AnnData, source: AnnData, *, target: Any, keys: Keys) -> AnnData:
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
    rule: Callable[[np.ndarray, Pairs], np.ndarray] | None,
    name: str,
) -> AnnData:
    """Return the source cells plus the shift that a rule gives each label and condition of them."""
    known = profiles(train, keys)
    x = log_values(source, keys, known.kappa)
    x = np.array(dense(x), dtype=np.float64)
    for (label, condition), rows in groups(source.obs, keys):
        if rule is None or condition == str(target):
            continue
        x[rows] += rule(gene_means(x[rows]), known.known_pairs(condition, target, of=label))
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


# -- predictors that train a network ------------------------------------------------------------------


def trvae(
    train: AnnData,
    source: AnnData,
    *,
    target: Any,
    keys: Keys,
    seed: int = 0,
    preset: str = "default",
    train_kwargs: dict[str, Any] | None = None,
    **model_kwargs: Any,
) -> dict[str, AnnData]:
    """Train :class:`trvae_sc.TRVAE` and predict.

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
        Seed of the model.
    preset
        Preset of the model; ``"paper"`` gets log values, as published.
    train_kwargs
        Arguments of :meth:`trvae_sc.TRVAE.train`.
    **model_kwargs
        Arguments of :class:`trvae_sc.TRVAE`.

    Returns
    -------
    Predictions by output: ``"counts"`` and ``"delta"`` of counts, else ``"mean"`` and ``"delta"``.
    """
    level = target_level(train, target, keys)
    if preset == "paper":
        kappa = median_total(train, keys)
        train, source = (_logged(adata, keys, kappa) for adata in (train, source))
        keys = keys._replace(layer=None, total_counts_key=None, is_count=False)
    elif not keys.is_count:
        model_kwargs = {"gene_likelihood": "normal", **model_kwargs}
    model = _fit(train, keys, seed, preset=preset, train_kwargs=train_kwargs, **model_kwargs)
    outputs = ("counts", "delta") if model.module.is_count else ("mean", "delta")
    found = {output: model.predict(source, target=level, output=output) for output in outputs}
    for predicted in found.values():
        predicted.uns["trvae_sc"]["history"] = _history(model)
    return found


def latent_shift(
    train: AnnData,
    source: AnnData,
    *,
    target: Any,
    keys: Keys,
    seed: int = 0,
    train_kwargs: dict[str, Any] | None = None,
) -> dict[str, AnnData]:
    r"""Move the latent codes of an unconditional VAE by the mean shift of the labels, and decode.

    .. math:: \hat z = z + \frac1L \sum_l (\bar z_{lt} - \bar z_{ls})

    scGen (Lotfollahi et al. 2019, doi:10.1038/s41592-019-0494-8) with every label weighing the same.

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
        Seed of the VAE.
    train_kwargs
        Arguments of :meth:`trvae_sc.TRVAE.train`.

    Returns
    -------
    Predictions by output: ``"mean"``, the decoded profile as in scGen, and ``"delta"``, the observed
    values plus the decoded change.
    """
    likelihood = "nb" if keys.is_count else "normal"
    kwargs = {"preset": "vae", "gene_likelihood": likelihood, "train_kwargs": train_kwargs}
    level = target_level(train, target, keys)
    model = _fit(train, keys, seed, **kwargs)
    kappa = median_total(train, keys)
    found = {}
    for output in ("mean", "delta"):
        x = model.predict(source, target=level, output=output).X
        found[output] = as_prediction(x, source, target, keys, kappa, "latent_shift")
    return found


def target_level(train: AnnData, target: Any, keys: Keys) -> Any:
    """Return the target as the training cells have it; methods may get its name."""
    seen = train.obs[keys.condition_key].unique().tolist()
    match = [level for level in seen if str(level) == str(target)]
    if not match:
        raise ValueError(
            f"No training cell has target {str(target)!r}; there are {sorted(map(str, seen))}."
        )
    return match[0]


def _fit(
    train: AnnData,
    keys: Keys,
    seed: int,
    *,
    train_kwargs: dict[str, Any] | None,
    **model_kwargs: Any,
) -> TRVAE:
    """Return a trained model."""
    train = beside(train)
    TRVAE.setup_anndata(train, keys.condition_key, **keys.further())
    model = TRVAE(train, seed=seed, **model_kwargs)
    model.train(**{"enable_progress_bar": False, **(train_kwargs or {})})
    return model


def beside(adata: AnnData) -> AnnData:
    """Return the cells with columns of their own, for scvi-tools to add to; values are shared."""
    layers = dict(adata.layers)
    return AnnData(adata.X, obs=adata.obs.copy(), var=adata.var.copy(), layers=layers)


def _logged(adata: AnnData, keys: Keys, kappa: float) -> AnnData:
    """Return cells with their log values in ``X``."""
    x = log_values(adata, keys, kappa)
    x = sparse.csr_matrix(x, dtype=np.float32) if sparse.issparse(x) else x.astype(np.float32)
    return AnnData(x, obs=adata.obs.copy(), var=adata.var.copy())


def _history(model: TRVAE) -> dict[str, list[float]]:
    """Return what each term added to the loss, by epoch."""
    names = [name for name in model.history if name.endswith("_weighted_train")]
    return {name: model.history[name][name].astype(float).tolist() for name in names}


#: Methods by name: for :func:`trvae_sc.evaluation.benchmark` and the command line.
METHODS: dict[str, Method] = {
    "no_change": no_change,
    "mean_shift": mean_shift,
    "nearest_shift": nearest_shift,
    "context_shift": context_shift,
    "latent_shift": latent_shift,
    "trvae": trvae,
    "paper": partial(trvae, preset="paper"),
    "cvae": partial(trvae, preset="cvae"),
    "mmd_cvae": partial(trvae, preset="mmd_cvae"),
    "vae": partial(trvae, preset="vae"),
    "beta_vae": partial(trvae, preset="beta_vae"),
    "autoencoder": partial(trvae, preset="autoencoder"),
}
#: Those that take no training of a network.
SIMPLE = ("no_change", "mean_shift", "nearest_shift", "context_shift")
