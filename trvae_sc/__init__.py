"""Predict single cells under conditions they were not measured in."""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import Any

__version__ = version("trvae_sc")
__all__ = [
    "PRESETS",
    "TRVAE",
    "InputError",
    "__version__",
    "align_genes",
    "baselines",
    "choose_genes",
    "compare",
    "datasets",
    "evaluation",
    "family",
    "hub",
    "metrics",
    "next_experiments",
    "pathways",
    "pl",
    "predict_labels",
    "pseudobulk",
    "report",
    "select",
]

_HOMES = {
    "InputError": "trvae_sc.errors",
    "PRESETS": "trvae_sc.model",
    "align_genes": "trvae_sc.model",
    "TRVAE": "trvae_sc.model",
    "next_experiments": "trvae_sc.experiments",
    "pathways": "trvae_sc.enrichment",
    "choose_genes": "trvae_sc.evaluation",
    "compare": "trvae_sc.evaluation",
    "predict_labels": "trvae_sc.evaluation",
    "pseudobulk": "trvae_sc.bulk",
    "select": "trvae_sc.evaluation",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for: torch and scvi-tools take seconds, which ``--help`` need not pay."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in __all__:
        return importlib.import_module(f"trvae_sc.{name}")
    raise AttributeError(f"module 'trvae_sc' has no attribute '{name}'")


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
