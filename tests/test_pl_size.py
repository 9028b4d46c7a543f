"""Plots of many lines and of long names: the axes keep their size, and names do not cover each other."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from trvae_sc import pl

LONG = " of a tissue with quite a long name, sorted twice (donor A)"
LABELS = [f"label {i}" for i in range(30)]


@pytest.fixture(autouse=True)
def _no_figure_is_left():
    """Close what a test drew."""
    yield
    plt.close("all")


def inches(ax):
    """Return width and height of the axes as they are drawn."""
    ax.figure.draw_without_rendering()
    box = ax.get_window_extent()
    return box.width / ax.figure.dpi, box.height / ax.figure.dpi


def calibration():
    parts = [
        pd.DataFrame({"level": [0.5, 0.9], "coverage": [0.5, 0.9], "n_genes": 9, "scaled": False})
        for _ in LABELS
    ]
    return pl.calibration(pd.concat(parts, keys=LABELS, names=["label"]).reset_index("label"))


def dose_response():
    rows = {"label": LABELS, "dose": 1.0, "mean": np.arange(30.0), "sem": 0.1}
    return pl.dose_response(pd.DataFrame(rows))


def interpolation():
    means = np.linspace(0, np.arange(25), 5)
    return pl.interpolation(pd.DataFrame(means, index=np.linspace(0, 1, 5)), n_genes=25)


def traversal():
    walk = AnnData(np.linspace(0, np.arange(25), 5))
    walk.obs["value"], walk.var["range"] = np.arange(5.0), np.arange(25.0)
    walk.uns["trvae_sc"] = {"dimension": 0}
    return pl.traversal(walk, n_genes=25)


def latent():
    xy = np.random.default_rng(0).normal(size=(280, 2))
    return pl.latent(pd.DataFrame(xy, columns=["PC1", "PC2"]).assign(k=LABELS[:28] * 10))[0]


@pytest.mark.parametrize("draw", [calibration, dose_response, interpolation, traversal, latent])
def test_a_legend_of_many_lines_leaves_the_axes_their_size(draw):
    ax = draw()
    width, height = inches(ax)
    assert width > 2.4
    assert height > 2.4
    legend = ax.get_legend().get_window_extent()
    assert legend.y0 >= 0
    assert legend.y1 <= ax.figure.bbox.height
