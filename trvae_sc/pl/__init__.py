"""Plots: data first, draw on `ax` or make one, return what was drawn on.

With ``show=True`` a figure is shown and None returned; ``save=`` writes it, as in scanpy.

What is computed before it is drawn comes from functions that end in ``_table`` (and
:func:`embedding`), which return a DataFrame.
"""

from trvae_sc.pl._benchmark import benchmark, design, next_experiments, training
from trvae_sc.pl._cells import expression_table, gene_distribution
from trvae_sc.pl._curves import (
    dose_response,
    dose_table,
    interpolation,
    interpolation_means,
    interpolation_table,
)
from trvae_sc.pl._effect import (
    effect,
    effect_heatmap,
    effect_table,
    mean_correlation,
    mean_table,
)
from trvae_sc.pl._images import grid, manifold, traversal
from trvae_sc.pl._intervals import calibration, calibration_table, volcano, volcano_table
from trvae_sc.pl._latent import embedding, latent, response
from trvae_sc.pl._style import COLORS

__all__ = [
    "COLORS",
    "benchmark",
    "calibration",
    "calibration_table",
    "design",
    "dose_response",
    "dose_table",
    "effect",
    "effect_heatmap",
    "effect_table",
    "embedding",
    "expression_table",
    "gene_distribution",
    "grid",
    "interpolation",
    "interpolation_means",
    "interpolation_table",
    "latent",
    "manifold",
    "mean_correlation",
    "mean_table",
    "next_experiments",
    "response",
    "training",
    "traversal",
    "volcano",
    "volcano_table",
]
