"""Simple predictors with the contract of the model, and the model's presets in the same contract.

A method is ``method(train, source, *, target, keys)``, with ``seed`` if it draws random numbers. It
gets training cells and the source cells to start from, never the truth, and returns an AnnData of
predicted cells with one row per source cell, or several of them by output.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from trvae_sc.baselines._simple import (
    BY_FEATURES,
    BY_PARTS,
    SIMPLE,
    SIMPLE_METHODS,
    SIMPLEST_FIRST,
    Method,
    as_prediction,
    context_shift,
    feature_ridge,
    mean_condition,
    mean_shift,
    nearest_condition,
    nearest_shift,
    no_change,
    sum_of_parts,
    target_level,
    with_own_columns,
)

__all__ = [
    "BY_FEATURES",
    "BY_PARTS",
    "METHODS",
    "SIMPLE",
    "SIMPLEST_FIRST",
    "Method",
    "as_prediction",
    "context_shift",
    "effects",
    "feature_ridge",
    "latent_shift",
    "mean_condition",
    "mean_shift",
    "nearest_condition",
    "nearest_shift",
    "no_change",
    "predict",
    "sum_of_parts",
    "target_level",
    "trvae",
    "with_own_columns",
]


def __getattr__(name: str) -> Any:
    """Import the methods that train networks only where they are asked for."""
    if name in ("effects", "predict"):
        from trvae_sc.baselines import _predict

        return getattr(_predict, name)
    if name not in ("METHODS", "latent_shift", "trvae"):
        raise AttributeError(f"module 'trvae_sc.baselines' has no attribute '{name}'")
    from trvae_sc.baselines import _neural

    if name != "METHODS":
        return getattr(_neural, name)
    presets = ("paper", "cvae", "mmd_cvae", "vae", "beta_vae", "autoencoder")
    #: Methods by name: for :func:`trvae_sc.evaluation.benchmark` and the command line.
    globals()["METHODS"] = {
        **SIMPLE_METHODS,
        "latent_shift": _neural.latent_shift,
        "trvae": _neural.trvae,
        "no_transfer": partial(_neural.trvae, transfer_weight=0.0),
        **{preset: partial(_neural.trvae, preset=preset) for preset in presets},
    }
    return globals()["METHODS"]
