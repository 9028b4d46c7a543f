"""Plots: data first, draw on `ax` or make one, return what was drawn on.

What is computed before it is drawn comes from functions that end in ``_table`` (and
:func:`embedding`), which return a DataFrame.
"""

from trvae_sc.pl._benchmark import benchmark, design, training
from trvae_sc.pl._cells import (
    embedding,
    expression_table,
    gene_distribution,
    latent,
)
from trvae_sc.pl._effect import (
    effect,
    effect_heatmap,
    effect_table,
    mean_correlation,
    mean_table,
)
from trvae_sc.pl._style import COLORS

__all__ = [
    "COLORS",
    "benchmark",
    "design",
    "effect",
    "effect_heatmap",
    "effect_table",
    "embedding",
    "expression_table",
    "gene_distribution",
    "latent",
    "mean_correlation",
    "mean_table",
    "training",
]
