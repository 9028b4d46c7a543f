"""Checks of arguments: which there are, and numbers."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any

from trvae_sc.errors import InputError

_LARGEST_SEED = 2**32 - 1  # of numpy


def named(function: Callable[..., Any]) -> list[str]:
    """Return the names of the arguments that a function may be given by name."""
    parameters = inspect.signature(function).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in parameters if p.kind in kinds and p.name != "self"]


def check_known(
    given: Iterable[str],
    function: Callable[..., Any],
    further: Sequence[str] = (),
    *,
    also: str = "",
) -> None:
    """Raise on names that are no arguments of a function, with those there are and the nearest.

    Names in `further` are known besides; `also` is what these are, for the message.
    """
    own = named(function)
    for name in given:
        if name not in (*own, *further):
            near = get_close_matches(name, [*own, *further], 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise InputError(
                f"Unknown argument {name!r} of {function.__name__}; there are {own}{also}.{hint}"
            )


def check_whole(name: str, value: Any, least: int = 1) -> None:
    """Raise on an argument that is no whole number, or one below the least allowed."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise InputError(f"{name} is {value!r}; a whole number is needed.")
    if value < least:
        raise InputError(f"{name} is {value}; at least {least} is needed.")


def check_seed(seed: Any, name: str = "seed") -> None:
    """Raise on a seed that numpy and torch do not both take."""
    check_whole(name, seed, 0)
    if seed > _LARGEST_SEED:
        raise InputError(f"{name} is {seed}; at most {_LARGEST_SEED} is possible.")


def check_number(
    name: str, value: Any, low: float, high: float = math.inf, *, closed: bool = True
) -> None:
    """Raise on an argument that is no number from `low` to `high`, or with not `closed` below it."""
    is_real = isinstance(value, Real) and not isinstance(value, bool)
    if not (is_real and low <= value and (value < high or (closed and value == high < math.inf))):
        end = f"{'' if closed else 'below '}{high:g}"
        allowed = f"{low:g} or more" if math.isinf(high) else f"from {low:g} to {end}"
        raise InputError(f"{name} is {value!r}; a finite number is needed, {allowed}.")


def check_trvae(model: Any) -> None:
    """Raise on what is no TRVAE, such as another model of the family, or a folder."""
    if not hasattr(model, "effects"):
        raise InputError(
            f"The model is a {type(model).__name__}; this is for a TRVAE that was trained (TRVAE.load(folder) if "
            "it was saved)."
        )
