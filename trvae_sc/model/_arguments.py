"""Arguments of the model, checked once where they come in."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from trvae_sc.arguments import check_number, check_whole
from trvae_sc.errors import InputError
from trvae_sc.levels import listing
from trvae_sc.module import TRVAEModule

#: Arguments that are one of some words.
_WORDS = {
    "gene_likelihood": ("nb", "zinb", "poisson", "normal", "mse"),
    "dispersion": ("gene", "gene-condition"),
    "condition_in": ("both", "decoder", "none"),
    "mmd_on": ("decoder", "latent"),
    "mmd_kernel": ("median", "paper"),
    "norm": ("layer", "batch", "none"),
}
#: Numbers: the smallest and the largest value, and whether the largest is allowed.
_NUMBERS = {
    "dropout_rate": (0.0, 1.0, False),
    "context_weight": (0.0, 1.0, True),
    **dict.fromkeys(
        ("kl_weight", "mmd_weight", "transfer_weight", "recon_weight", "leaky_slope"),
        (0.0, math.inf, False),
    ),
}
_SWITCHES = ("mmd_within_labels", "calibrate", "variational", "relu_output", "linear_path")

#: Arguments of the network that do not follow from the data.
MODULE_ARGUMENTS = [
    name
    for name, parameter in inspect.signature(TRVAEModule).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY and name != "has_total"
]


def check_arguments(settings: Mapping[str, Any]) -> None:
    """Raise on arguments of the module that are unknown or that it cannot take."""
    unknown = [name for name in settings if name not in MODULE_ARGUMENTS]
    if unknown:
        raise InputError(
            f"Unknown arguments {listing(unknown)} of TRVAE; there are {MODULE_ARGUMENTS}."
        )
    for name, value in settings.items():
        if name in _WORDS and value not in _WORDS[name]:
            raise InputError(f"{name} is {value!r}; choose one of {list(_WORDS[name])}.")
        if name in _NUMBERS:
            low, high, closed = _NUMBERS[name]
            check_number(name, value, low, high, closed=closed)
        if name in _SWITCHES and not isinstance(value, bool):
            raise InputError(f"{name} is {value!r}; give True or False.")
    check_whole("n_latent", settings.get("n_latent", 1))
    check_widths("n_hidden", settings.get("n_hidden", (1,)))


def check_widths(name: str, widths: Any) -> None:
    """Raise on widths of layers that are no positive whole numbers, or none at all."""
    is_list = isinstance(widths, Sequence) and not isinstance(widths, str)
    if not is_list or not widths:
        raise InputError(f"{name} is {widths!r}; give one or more positive whole numbers.")
    for width in widths:
        check_whole(f"A width in {name}", width)


def check_default_type() -> None:
    """Raise where torch makes other numbers than float32, which networks here are of."""
    if torch.get_default_dtype() != torch.float32:
        raise InputError(
            f"torch's default type is {torch.get_default_dtype()}; models compute in float32. Call "
            "torch.set_default_dtype(torch.float32) first."
        )
