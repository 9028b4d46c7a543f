"""What to measure next, on the matrix of what was measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from trvae_sc.errors import InputError
from trvae_sc.pl._benchmark import checked_cells
from trvae_sc.pl._finish import Save, finish
from trvae_sc.pl._style import COLORS, PALE, check_columns, matrix_axes


def next_experiments(
    cells: pd.DataFrame,
    experiments: pd.DataFrame,
    *,
    ax: Axes | None = None,
    show: bool | None = None,
    save: Save = None,
) -> Axes | None:
    """Labels x conditions: numbers of cells measured, and the rank of what to measure next.

    Parameters
    ----------
    cells
        Numbers of cells by label (row) and condition (column): ``model.n_cells``.
    experiments
        What :func:`trvae_sc.next_experiments` returned. The darker, the more of the expected error a
        measurement takes away; new conditions get a column of their own.
    ax, show, save
        As in :func:`effect`.

    Returns
    -------
    The Axes.

    Raises
    ------
    InputError
        Tables of something else.
    """
    if not isinstance(cells, pd.DataFrame):
        raise InputError(
            f"The first argument is a {type(cells).__name__}; pl.next_experiments draws numbers of cells by label "
            "and condition: pl.next_experiments(model.n_cells, trvae_sc.next_experiments(model))."
        )
    cells = checked_cells(cells)
    check_columns(experiments, ("label", "condition", "lowers"), of="trvae_sc.next_experiments")
    labels, known = cells.index.tolist(), cells.columns.tolist()
    unknown = sorted(set(experiments["label"]) - set(labels))
    if unknown:
        raise InputError(f"Labels {unknown} are not in the numbers of cells, of {labels}.")
    columns = list(dict.fromkeys([*known, *experiments["condition"]]))
    counts = cells.reindex(columns=columns).fillna(0)
    height = max(1.2 + 0.34 * len(labels), 2.6)  # of the words beside the scale
    ax = matrix_axes(ax, labels, columns, height)
    shade = np.full(counts.shape, np.nan)
    texts = {at: "none" if not n else f"{int(n):,}" for at, n in np.ndenumerate(counts.to_numpy())}
    for rank, row in enumerate(experiments.itertuples(), 1):
        at = labels.index(row.label), columns.index(row.condition)
        shade[at], texts[at] = row.lowers, str(rank)
    most = min(1.3 * experiments["lowers"].max(), 1.0) or 1.0
    image = ax.imshow(shade, cmap="Oranges", aspect="auto", vmin=0, vmax=most)
    for (i, j), text in texts.items():
        style: Any = {"size": 8, "color": COLORS["grey"]}
        if not np.isnan(shade[i, j]):
            style = {
                "weight": "bold",
                "size": 10,
                "color": "w" if shade[i, j] > 0.6 * most else "k",
            }
        ax.text(j, i, text, ha="center", va="center", **style)
    ax.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(len(labels) + 1) - 0.5, minor=True)
    ax.grid(which="minor", color=PALE, lw=0.6)
    ax.tick_params(which="minor", length=0)
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.7, pad=0.02)
    bar.set_label("share of expected error taken away", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    ax.set_title("cells measured; bold: what to measure next", fontsize=9)
    return finish(ax, "next_experiments", show=show, save=save)
