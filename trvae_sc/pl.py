"""Plots: data first, draw on `ax` or make one, return what was drawn on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

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
    r = np.corrcoef(x, y)[0, 1] if np.ptp(x) and np.ptp(y) else np.nan
    ax.set_title(f"effect R2 = {r2:.2f} (no change: 0), r = {r:.2f}", fontsize=9)
    _name_points(ax, top.iloc[np.argsort(-np.abs(x), kind="stable")[:n_labels]])
    ax.set_xlabel(f"real change of mean {unit}", fontsize=9)
    ax.set_ylabel(f"predicted change of mean {unit}", fontsize=9)
    ax.tick_params(labelsize=8)
    ax.legend(frameon=False, fontsize=8, loc="lower right")
    return ax


def _name_points(ax: Axes, points: pd.DataFrame) -> None:
    """Write the names of genes beside their points, where there is room; others stay unnamed."""
    ax.set_xlim(ax.get_xlim())  # the limits that places are found with are those that are drawn
    ax.set_ylim(ax.get_ylim())
    ax.figure.canvas.draw()
    scale = ax.figure.dpi / 72
    frame = ax.get_window_extent().padded(-8 * scale)  # axes beside it may still take room
    changes = points[["real_change", "predicted_change"]].to_numpy()
    at = ax.transData.transform(changes)
    taken = [(x - 3 * scale, y - 3 * scale, x + 3 * scale, y + 3 * scale) for x, y in at]
    for name, xy, (x, y) in zip(points.index.astype(str), changes, at, strict=True):
        width, height = 4.3 * len(name) * scale, 9 * scale
        for side, dx, dy in _PLACES:
            left = x + dx * scale - (width if side == "right" else 0)
            box = (left, y + dy * scale - height / 2, left + width, y + dy * scale + height / 2)
            inside = (
                frame.x0 < box[0] and box[2] < frame.x1 and frame.y0 < box[1] < frame.y1 - height
            )
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                place = {"xytext": (dx, dy), "textcoords": "offset points"}
                ax.annotate(name, xy, **place, fontsize=7, ha=side, va="center")
                break


#: Alignment and offset in points of a name, in the order they are tried.
_PLACES = [
    (side, dx, dy) for dy in (0, 7, -7, 14, -14) for side, dx in (("left", 5), ("right", -5))
]


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Return whether two boxes (left, bottom, right, top) overlap."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def design(
    cells: pd.DataFrame, *, hidden: Iterable[tuple[str, str]] = (), ax: Axes | None = None
) -> Axes:
    """Conditions x labels with the number of cells; what was never measured or is hidden is marked.

    Parameters
    ----------
    cells
        Number of cells by label (row) and condition (column), as ``model.n_cells`` or
        ``results.design``.
    hidden
        Pairs (label, condition) that are hidden from training.
    ax
        Axes to draw on.

    Returns
    -------
    The Axes.
    """
    n_rows, n_columns = cells.shape
    if ax is None:
        size = (2.2 + 0.9 * n_columns, 1.0 + 0.32 * n_rows)
        ax = plt.subplots(figsize=size, layout="constrained")[1]
    counts = cells.to_numpy(dtype=float)
    ax.imshow(
        np.log10(counts + 1), cmap="Blues", aspect="auto", vmin=0, vmax=np.log10(counts.max()) * 1.4
    )
    marked = {(str(label), str(condition)) for label, condition in hidden}
    for (i, j), n in np.ndenumerate(counts):
        name = (str(cells.index[i]), str(cells.columns[j]))
        unseen = n == 0
        text = "none" if unseen else f"{int(n):,}"
        ax.text(
            j, i, text, ha="center", va="center", fontsize=8, c=COLORS["red"] if unseen else "k"
        )
        if unseen or name in marked:
            box = plt.Rectangle(
                (j - 0.46, i - 0.44), 0.92, 0.88, fill=False, ec=COLORS["red"], lw=1.4
            )
            ax.add_patch(box)
    ax.set_xticks(range(n_columns), [str(c) for c in cells.columns], fontsize=8)
    ax.set_yticks(range(n_rows), [str(label) for label in cells.index], fontsize=8)
    if n_columns > 4:
        plt.setp(ax.get_xticklabels(), rotation=40, ha="right", rotation_mode="anchor")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    title = "cells" if not marked else "cells; framed: hidden,\none at a time"
    ax.set_title(title, fontsize=9)
    return ax


_TERMS = {
    "reconstruction": "blue",
    "kl": "orange",
    "mmd": "green",
    "transfer": "red",
}


def training(
    history: Mapping[str, Sequence[float] | pd.DataFrame], *, ax: Axes | None = None
) -> Axes:
    """Draw what each term adds to the loss, by epoch.

    Parameters
    ----------
    history
        ``model.history``, or the same with lists in place of frames.
    ax
        Axes to draw on.

    Returns
    -------
    The Axes.
    """
    ax = plt.subplots(figsize=(4.6, 3.2), layout="constrained")[1] if ax is None else ax
    for term, color in _TERMS.items():
        for part, style in (("train", "-"), ("validation", ":")):
            values = history.get(f"{term}_weighted_{part}")
            if values is None:
                continue
            y = np.asarray(values, dtype=float).ravel()
            if np.abs(y).max() > 0:  # a term that is switched off
                name = term if part == "train" else f"{term}, validation"
                ax.plot(np.arange(1, len(y) + 1), y, style, c=COLORS[color], lw=1.4, label=name)
    ax.set_yscale("symlog", linthresh=0.1)
    ax.set_xlabel("epoch", fontsize=9)
    ax.set_ylabel("weighted term of the loss per cell", fontsize=9)
    ax.grid(axis="y", lw=0.4, c="#DDDDDD")
    ax.tick_params(labelsize=8)
    ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax


_MARKERS = {"counts": "o", "delta": "D", "mean": "s", "sample": "^"}


def benchmark(
    table: pd.DataFrame,
    *,
    metric: str = "effect_r2",
    genes: str = "top100",
    ax: Axes | None = None,
) -> Axes:
    """Score of every method on every hold-out, with the ceiling that sampling noise sets.

    Parameters
    ----------
    table
        ``results.table`` of :func:`trvae_sc.evaluation.benchmark`.
    metric, genes
        Score to draw.
    ax
        Axes to draw on.

    Returns
    -------
    The Axes.

    Raises
    ------
    ValueError
        The table has no such score.
    """
    part = table[(table["metric"] == metric) & (table["genes"] == genes)]
    if part.empty:
        known = sorted(set(zip(table["metric"], table["genes"], strict=True)))
        raise ValueError(f"No score {metric!r} over genes {genes!r}; there are {known}.")
    several = part["target"].nunique() > 1
    task = part["label"] + (" \u2192 " + part["target"] if several else "")
    wide = part.assign(task=task).groupby(["task", "method", "output"])["value"].mean()
    wide = wide.unstack(["method", "output"]).sort_index(ascending=False)
    if ax is None:
        size = (7.2, max(1.1 + 0.36 * len(wide), 2.6))
        ax = plt.subplots(figsize=size, layout="constrained")[1]
    methods = [m for m in part["method"].unique() if m != "ceiling"]
    colors = [color for name, color in COLORS.items() if name != "grey"]
    y = np.arange(len(wide))
    for method, output in sorted(wide.columns, key=lambda c: (c[0] != "ceiling", -wide[c].mean())):
        if method == "ceiling":
            style = {"marker": "|", "s": 160, "c": "k", "lw": 2, "label": "ceiling (real v real)"}
        else:
            style = {"marker": _MARKERS.get(output, "P"), "s": 34, "lw": 0, "alpha": 0.9}
            style["c"] = colors[methods.index(method) % len(colors)]
            style["label"] = f"{method}, {output}"
        ax.scatter(wide[method, output], y, **style)
    ax.set_yticks(y, wide.index, fontsize=8)
    ax.set_xlabel(f"{metric.replace('_', ' ')} ({genes})", fontsize=9)
    ax.tick_params(labelsize=8)
    ax.grid(axis="y", lw=0.4, c="#DDDDDD")
    ax.set_axisbelow(True)
    ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax
