"""What was measured, how training went, how methods compare."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from trvae_sc.pl._style import COLORS


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
    ax.set_ylim(-0.6, len(wide) - 0.4)
    ax.set_xlabel(f"{metric.replace('_', ' ')} ({genes})", fontsize=9)
    ax.tick_params(labelsize=8)
    ax.grid(axis="y", lw=0.4, c="#DDDDDD")
    ax.set_axisbelow(True)
    ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax
