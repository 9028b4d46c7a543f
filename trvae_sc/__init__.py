"""Predict single cells under conditions they were not measured in."""

from __future__ import annotations

import contextlib
import gc
import importlib
import sys
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

__version__ = version("trvae_sc")
#: Modules of the public names that are in one.
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
_MODULES = ("baselines", "datasets", "evaluation", "family", "hub", "metrics", "pl", "report")
__all__ = ["__version__", *_HOMES, *_MODULES]
#: Names that bring torch and scvi-tools.
_HEAVY = ("PRESETS", "TRVAE", "align_genes", "family", "hub")


def __getattr__(name: str) -> Any:
    """Import what is asked for: torch and scvi-tools take seconds, which ``--help`` need not pay."""
    if name not in __all__:
        raise AttributeError(f"module 'trvae_sc' has no attribute '{name}'")
    with _importing(name):
        module = importlib.import_module(_HOMES.get(name, f"trvae_sc.{name}"))
        return getattr(module, name) if name in _HOMES else module


@contextlib.contextmanager
def _importing(name: str) -> Iterator[None]:
    """Say what is waited for, once, and collect no garbage meanwhile, which takes a quarter of the time."""
    if name in _HEAVY and "scvi" not in sys.modules:
        from trvae_sc.progress import say

        say("Importing torch and scvi-tools, which takes some seconds ...")
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
