"""Options that take names."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Sequence

from trvae_sc.names import METHODS, METRICS, PRESETS

__all__ = ["METHODS", "METRICS", "PRESETS", "one_of"]


def one_of(names: Sequence[str], of: str) -> Callable[[str], str]:
    """Return the check of an option's value: the name, or an error that lists what is allowed."""

    def check(text: str) -> str:
        if text in names:
            return text
        close = difflib.get_close_matches(text, names, n=1)
        meant = f" Did you mean '{close[0]}'?" if close else ""
        raise argparse.ArgumentTypeError(
            f"unknown {of} '{text}'; there are {', '.join(names)}.{meant}"
        )

    return check
