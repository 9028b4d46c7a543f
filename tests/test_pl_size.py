"""Plots of many lines and of long names: the axes keep their size, and names do not cover each other."""

from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from trvae_sc import pl

LONG = " of a tissue with quite a long name, sorted twice (donor A)"
LABELS = [f"label {i}" for i in range(28)]


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
    rows = {"label": LABELS, "dose": 1.0, "mean": np.arange(28.0), "sem": 0.1}
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
    return pl.latent(pd.DataFrame(xy, columns=["PC1", "PC2"]).assign(k=LABELS * 10))[0]


@pytest.mark.parametrize("draw", [calibration, dose_response, interpolation, traversal, latent])
def test_a_legend_of_many_lines_leaves_the_axes_their_size(draw):
    ax = draw()
    width, height = inches(ax)
    assert width > 2.4
    assert height > 2.4
    legend = ax.get_legend().get_window_extent()
    assert legend.y0 >= 0
    assert legend.y1 <= ax.figure.bbox.height


def scores(label):
    same = {"method": "trvae", "output": "delta", "target": "s", "genes": "top100"}
    return pl.benchmark(
        pd.DataFrame({"label": label, "value": [0.5, 0.7], "metric": "effect_r2"} | same)
    )


def response(label):
    cells = AnnData(np.ones((4, 1), np.float32), obs=pd.DataFrame({"k": label * 2}, list("abcd")))
    cells.obs["response"] = [0.8, 1.0, 1.1, 1.2]
    cells.uns["trvae_sc"] = {"keys": {"labels_key": "k"}}
    return pl.response(cells)


def design(label):
    return pl.design(pd.DataFrame([[3, 4], [5, 6]], index=label, columns=["control", "treated"]))


def experiments(label):
    cells = pd.DataFrame([[3, 4], [5, 0]], index=label, columns=["control", "treated"])
    ranked = {"label": label[1:], "source": "control", "condition": "treated", "lowers": 0.9}
    return pl.next_experiments(cells, pd.DataFrame(ranked).assign(left=0.1, expected_error=0.2))


@pytest.mark.parametrize("draw", [scores, response, design, experiments])
def test_long_names_leave_the_axes_their_size(draw):
    expected = inches(draw(["B", "NK"]))
    found = inches(draw(["B" + LONG, "NK" + LONG]))
    assert np.all(np.array(found) > 0.8 * np.array(expected))


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("draw", ["design", "next_experiments"])
def test_names_of_few_conditions_do_not_cover_each_other(draw, n):
    conditions = [f"{i}{LONG}" for i in range(n)]
    cells = pd.DataFrame(3, index=list("abcdef"), columns=conditions)
    if draw == "design":
        ax = pl.design(cells)
    else:
        ranked = {"label": "a", "source": conditions[0], "condition": conditions[1], "lowers": 0.9}
        ax = pl.next_experiments(cells, pd.DataFrame([ranked]).assign(left=0.1, expected_error=0.2))
    assert inches(ax)[1] > 1.2
    for left, right in pairwise(ax.get_xticklabels()):
        # turned names are apart if their ends are, as parallel lines are
        apart = left.get_window_extent().x1 <= right.get_window_extent().x0
        assert apart or left.get_rotation() == right.get_rotation() == 40
    short = pl.design(cells.set_axis([f"condition {i}" for i in range(n)], axis=1))
    assert [name.get_rotation() for name in short.get_xticklabels()] == [0] * n
