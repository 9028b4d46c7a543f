"""Names that options take, known without the imports that bring what they name."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Sequence

#: Presets of :class:`trvae_sc.TRVAE`.
PRESETS = ("default", "paper", "cvae", "mmd_cvae", "vae", "beta_vae", "autoencoder")
#: Methods of :mod:`trvae_sc.baselines` and :mod:`trvae_sc.family`.
METHODS = (
    *("no_change", "mean_shift", "nearest_shift"),
    *("mean_condition", "nearest_condition", "feature_ridge", "context_shift"),
    *("latent_shift", "trvae", "no_transfer"),
    *PRESETS[1:],
    *("cgan", "cyclegan", "flow_matching", "flow_transfer", "paired"),
)
#: Scores that methods can be chosen by.
METRICS = (
    *("effect_r2", "effect_pearson", "specific_pearson", "r2_mean", "r2_var", "variance_ratio"),
    *("energy_distance", "mmd", "de_overlap", "direction_accuracy"),
)


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
