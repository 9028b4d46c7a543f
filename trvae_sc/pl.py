"""Plots: data first, draw on `ax` or make one, return what was drawn on."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

#: Okabe and Ito's colours, distinguishable with any colour vision.
COLORS = {
    "blue": "#0072B2",
    "orange": "#E69F00",
    "green": "#009E73",
    "red": "#D55E00",
    "purple": "#CC79A7",
    "sky": "#56B4E9",
    "grey": "#7F7F7F",
}
_LOG_UNIT = "log(1 + normalised count)"


def effect(
    genes: pd.DataFrame,
    *,
    n_top: int = 100,
    n_labels: int = 8,
    unit: str = _LOG_UNIT,
    ax: Axes | None = None,
) -> Axes:
    """Predicted against real change of each gene.

    Parameters
    ----------
    genes
        Output of :func:`trvae_sc.evaluation.gene_table`.
    n_top
        Number of genes that change most, drawn in colour; statistics are over these.
    n_labels
        Number of genes named, largest change first.
    unit
        Unit of the means, for the axis labels.
    ax
        Axes to draw on.

    Returns
    -------
    The Axes.
    """
    ax = plt.subplots(figsize=(4.4, 4.2), layout="constrained")[1] if ax is None else ax
    top, rest = genes.iloc[:n_top], genes.iloc[n_top:]
    ax.scatter(
        rest["real_change"], rest["predicted_change"], s=6, c="#C8C8C8", lw=0, label="other genes"
    )
    ax.scatter(
        top["real_change"],
        top["predicted_change"],
        s=14,
        c=COLORS["blue"],
        lw=0,
        label=f"{len(top)} genes that change most",
    )
    ends = np.array(
        [
            genes[["real_change", "predicted_change"]].min().min(),
            genes[["real_change", "predicted_change"]].max().max(),
        ]
    )
    ax.plot(ends, ends, c="k", lw=0.8, ls=":", zorder=0)
    ax.axhline(0, c="k", lw=0.5, zorder=0)
    ax.axvline(0, c="k", lw=0.5, zorder=0)
    x, y = top["real_change"].to_numpy(), top["predicted_change"].to_numpy()
    r2 = 1 - np.square(y - x).sum() / np.square(x).sum()
    ax.set_title(
        f"effect R2 = {r2:.2f} (no change: 0), r = {np.corrcoef(x, y)[0, 1]:.2f}", fontsize=9
    )
    _name_points(ax, top.loc[top["real_change"].abs().nlargest(n_labels).index])
    ax.set_xlabel(f"real change of mean {unit}", fontsize=9)
    ax.set_ylabel(f"predicted change of mean {unit}", fontsize=9)
    ax.legend(frameon=False, fontsize=8, loc="upper left")
    return ax


def _name_points(ax: Axes, points: pd.DataFrame) -> None:
    """Write the names of genes beside their points, moving a name down where one is already."""
    low, high = ax.get_ylim()
    taken: list[tuple[float, float]] = []
    for name, row in points.sort_values("predicted_change", ascending=False).iterrows():
        x, y = row["real_change"], row["predicted_change"]
        while any(
            abs(y - other) < 0.04 * (high - low) and abs(x - at) < 1.0 for at, other in taken
        ):
            y -= 0.01 * (high - low)
        taken.append((x, y))
        right = x < np.mean(ax.get_xlim())
        ax.annotate(
            str(name),
            (row["real_change"], row["predicted_change"]),
            xytext=(6 if right else -6, 0),
            textcoords="offset points",
            fontsize=7,
            ha="left" if right else "right",
            va="center",
        )
