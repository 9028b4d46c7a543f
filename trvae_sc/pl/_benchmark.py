"""What was measured and what to measure next, how training went, how methods compare."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from pandas.api.types import is_numeric_dtype

from trvae_sc.checks import check_obs
from trvae_sc.condition_parts import joint_column
from trvae_sc.errors import InputError
from trvae_sc.evaluation import Holdout, Results
from trvae_sc.evaluation._holdouts import by_name, named_pair
from trvae_sc.evaluation._results import loss
from trvae_sc.expression import Keys, conditions_of
from trvae_sc.levels import as_list, in_order, level_name
from trvae_sc.metrics import METRICS
from trvae_sc.pl._finish import Save, finish
from trvae_sc.pl._style import (
    COLORS,
    PALE,
    arrows,
    axes_of,
    check_columns,
    ink,
    label_axes,
    legend_beside,
    legend_height,
    matrix_axes,
    method_colors,
    names_width,
    plain,
    within,
)

if TYPE_CHECKING:
    from trvae_sc.model import TRVAE

MOST = (200, 60)  #: rows and columns of numbers of cells that can be read


def design(
    cells: AnnData | pd.DataFrame,
    condition_key: str | Sequence[str] | None = None,
    labels_key: str | None = None,
    *,
    hidden: Holdout | str | Iterable[Any] = (),
    ax: Axes | None = None,
    show: bool | None = None,
    save: Save = None,
) -> Axes | None:
    """Conditions x labels with the number of cells; what was never measured or is hidden is marked.

    Parameters
    ----------
    cells
        Cells, or their numbers by label (row) and condition (column), as ``model.n_cells`` or
        ``results.design``.
    condition_key, labels_key
        Columns of ``obs``, for cells; of the condition one or several.
    hidden
        What is hidden from training, one or several: pairs (label, condition), texts ``"label:condition"`` or
        hold-outs (:func:`trvae_sc.evaluation.holdouts`); a condition of several columns may be a dictionary.
        A condition that one hides in all labels is framed as a whole. Where only a part of the cells of a
        combination is hidden, as those of a donor, nothing is framed.
    ax, show, save
        As in :func:`effect`.

    Returns
    -------
    The Axes.

    Raises
    ------
    InputError
        Cells without keys, values that are no numbers of cells, or more than can be read. A pair or text
        that names none of the combinations.
    """
    data, cells = cells, checked_cells(cells, condition_key, labels_key)
    n_rows = len(cells)
    labels, conditions = cells.index.tolist(), cells.columns.tolist()
    hidden = [hidden] if isinstance(hidden, Holdout | str) else list(hidden)
    space = None
    if isinstance(data, AnnData):  # conditions may be given by their parts
        key = condition_key if isinstance(condition_key, str) else tuple(condition_key or ())
        space = cache(lambda: conditions_of(data, Keys(key, labels_key)))
        hidden = [by_name(one, space) for one in hidden]
    known = set(itertools.product(labels, conditions)), labels, conditions, space
    hidden = [
        one if isinstance(one, Holdout) else Holdout(*named_pair(one, *known)) for one in hidden
    ]
    marked, whole = _hidden(hidden, cells)
    ax = matrix_axes(ax, labels, conditions, 1.0 + 0.32 * n_rows)
    counts = cells.to_numpy(dtype=float)
    shade = np.log10(counts + 1)
    # pale enough for black numbers
    ax.imshow(shade, cmap="Blues", aspect="auto", vmin=0, vmax=2.2 * shade.max())
    for (i, j), n in np.ndenumerate(counts):
        name = (labels[i], conditions[j])
        text, color = (f"{int(n):,}", "k") if n else ("none", COLORS["red"])
        ax.text(j, i, text, ha="center", va="center", fontsize=8, c=color)
        if not n or name in marked:
            _frame(ax, (j - 0.46, i - 0.44), 0.88, "-" if name in marked else ":")
    for column in whole:
        _frame(ax, (conditions.index(column) - 0.46, -0.46), n_rows - 0.08)
    turns = "hidden,\none at a time" if len({one.hides for one in hidden}) > 1 else "hidden"
    framed = f"cells; framed: {turns}" if marked or whole else "cells; hidden: parts of these"
    ax.set_title(framed if hidden else "cells", fontsize=9)
    return finish(ax, "design", show=show, save=save)


def _frame(ax: Axes, corner: tuple[float, float], height: float, style: str = "-") -> None:
    """Draw a frame around a combination, or around a condition."""
    box = plt.Rectangle(corner, 0.92, height, fill=False, ec=COLORS["red"], lw=1.4, ls=style)
    ax.add_patch(box)


def _hidden(
    hidden: Iterable[Holdout], cells: pd.DataFrame
) -> tuple[set[tuple[str, str]], set[str]]:
    """Return the combinations that are hidden, and the conditions that are as a whole."""
    marked, whole = set(), set()
    present = {c: set(cells.index[cells[c] > 0]) for c in cells.columns}
    for holdout in hidden:
        parts = {(h.name, level_name(h.target)) for h in (holdout, *holdout.also)}
        marked |= parts
        condition = level_name(holdout.target)
        together = {label for label, target in parts if target == condition}
        if len(present.get(condition, ())) > 1 and together >= present[condition]:
            whole.add(condition)
    known = itertools.product(cells.index, cells.columns)
    return {(label, c) for label, c in marked & set(known) if c not in whole}, whole


def checked_cells(
    cells: AnnData | pd.DataFrame,
    condition_key: str | Sequence[str] | None = None,
    labels_key: str | None = None,
) -> pd.DataFrame:
    """Return the number of cells by label and condition, named as they read, checked."""
    if isinstance(cells, AnnData):
        if not condition_key or labels_key is None:
            raise InputError(
                "Name the columns of adata.obs: pl.design(adata, condition_key, labels_key)."
            )
        columns, obs = as_list(condition_key), cells.obs
        check_obs(cells, [*columns, labels_key])
        is_one = isinstance(condition_key, str)
        condition = obs[condition_key] if is_one else joint_column(obs, columns)[0]
        of = (in_order(column).reset_index(drop=True) for column in (obs[labels_key], condition))
        cells = pd.crosstab(*of)  # names of cells play no role
    if not isinstance(cells, pd.DataFrame) or not all(map(is_numeric_dtype, cells.dtypes)):
        raise InputError(
            "pl.design draws numbers of cells by label and condition. Give cells, as in "
            "pl.design(adata, condition_key, labels_key), or a table such as model.n_cells."
        )
    counts = cells.to_numpy(float)
    if not counts.size or not np.isfinite(counts).all() or (counts < 0).any() or not counts.max():
        raise InputError("The table has no numbers of cells, or some that are negative or missing.")
    if counts.shape[0] > MOST[0] or counts.shape[1] > MOST[1]:
        raise InputError(
            f"A table of {counts.shape[0]} labels and {counts.shape[1]} conditions cannot be read; up to "
            f"{MOST[0]} and {MOST[1]} are drawn. Give a part of it."
        )
    return cells.rename(index=level_name, columns=level_name)


_TERMS = {"reconstruction": "blue", "kl": "orange", "mmd": "green", "transfer": "red"}


def training(
    history: Mapping[str, Sequence[float] | pd.DataFrame] | TRVAE,
    *,
    ax: Axes | None = None,
    show: bool | None = None,
    save: Save = None,
) -> Axes | None:
    """Draw what each term adds to the loss, by epoch.

    Parameters
    ----------
    history
        A trained model, or its ``history``.
    ax, show, save
        As in :func:`effect`.

    Returns
    -------
    The Axes.

    Raises
    ------
    InputError
        The model is not trained, or it is no history of its terms.
    """
    history = getattr(history, "history", history)
    if not isinstance(history, Mapping) or not any(
        f"{t}_weighted_train" in history for t in _TERMS
    ):
        raise InputError(
            "There is no history of the terms of a loss. Give a TRVAE that was trained, model.train(), or its "
            "history."
        )
    ax = axes_of(ax, 4.6, 3.2)
    for term, color in _TERMS.items():
        for part, end, style in (("train", "", "-"), ("validation", ", validation", ":")):
            values = history.get(f"{term}_weighted_{part}", ())
            y = np.asarray(values, dtype=float).ravel()
            if (y != 0).any():  # else a term that is switched off
                mark: Any = {"marker": "o", "ms": 3} if len(y) == 1 else {}
                look: Any = {"c": COLORS[color], "lw": 1.4, "label": term + end} | mark
                # validation may be of some epochs only
                epochs = values.index if isinstance(values, pd.DataFrame) else np.arange(len(y))
                ax.plot(epochs + 1, y, style, **look)
    ax.set_yscale("symlog", linthresh=0.1)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    label_axes(ax, "epoch", "weighted term of the loss per cell")
    ax.grid(axis="y", lw=0.4, c="#DDDDDD")
    legend_beside(ax)
    return finish(ax, "training", show=show, save=save)


_SCORES = ("method", "output", "metric", "genes", "label", "target", "value")
_NO_METHODS = ("ceiling", "replicate half")
_MARKERS = {"counts": "o", "delta": "D", "mean": "s", "sample": "^"}


def benchmark(
    table: pd.DataFrame | Results,
    *,
    metric: str = "effect_r2",
    genes: str = "top100",
    ax: Axes | None = None,
    show: bool | None = None,
    save: Save = None,
) -> Axes | None:
    """Score of every method on every hold-out, with what a perfect prediction would score.

    Parameters
    ----------
    table
        Results of :func:`trvae_sc.evaluation.benchmark`, or their ``table``.
    metric, genes
        Score to draw.
    ax, show, save
        As in :func:`effect`.

    Returns
    -------
    The Axes. Scores far from the others are arrows at the end of the axis, with their value.

    Raises
    ------
    InputError
        It is no table of scores, or has no such score.
    """
    table = table.table if isinstance(table, Results) else table
    check_columns(table, _SCORES, of="results of trvae_sc.evaluation.benchmark, or their table")
    part = table[(table["metric"] == metric) & (table["genes"] == genes)]
    if part.empty:
        known = sorted(set(zip(table["metric"], table["genes"], strict=True)))
        raise InputError(f"No score {metric!r} over genes {genes!r}; there are {known}.")
    several = part["target"].nunique() > 1
    task = part["label"] + (" \u2192 " + part["target"] if several else "")
    if "source" in part and part.groupby(["label", "target"])["source"].nunique().max() > 1:
        task += " from " + part["source"]
    wide = part.assign(task=task).groupby(["task", "method", "output"])["value"].mean()
    wide = wide.unstack(["method", "output"]).sort_index(ascending=False)
    width = 7.2 + names_width(map(str, wide.index))
    ax = axes_of(ax, width, max(1.1 + 0.36 * len(wide), legend_height(wide.shape[1]), 2.6))
    colors = method_colors(m for m in part["method"].unique() if m not in _NO_METHODS)
    y = np.arange(len(wide))
    means = wide.mean()
    bad = loss(metric, means) if metric in METRICS else -means
    order = sorted(wide, key=lambda column: (column[0] not in _NO_METHODS, bad[column]))
    for method, output in order:
        if method in _NO_METHODS:
            style: Any = {"marker": "|", "s": 160, "c": ink(), "lw": 2, "label": plain(output)}
        else:
            style = {"marker": _MARKERS.get(output, "P"), "s": 34, "lw": 0, "alpha": 0.9}
            style |= {"c": colors[method], "label": f"{plain(method)}, {plain(output)}"}
        ax.scatter(wide[method, output], y, **style)
    label_axes(ax, f"{metric.replace('_', ' ').replace('r2', 'R2')} ({genes})", "")
    ax.set_yticks(y, [plain(task) for task in wide.index])
    ax.set_ylim(-0.6, len(wide) - 0.4)
    ax.grid(axis="y", lw=0.4, c="#DDDDDD")
    ax.set_axisbelow(True)
    legend_beside(ax)
    _clip(ax, wide)
    for method, output in wide:
        points = np.column_stack([wide[method, output].to_numpy(float), y])
        arrows(ax, "x", points[np.isfinite(points[:, 0])], colors.get(method, ink()))
    return finish(ax, "benchmark", show=show, save=save)


def _clip(ax: Axes, wide: pd.DataFrame) -> None:
    """Limit the axis to scores but for outliers, with room for these as arrows; references are none."""
    scores = wide.to_numpy(float)
    known = [column for column in wide if column[0] in (*_NO_METHODS, "no_change")]
    references = wide[known].median().dropna().tolist()
    low, high = within(scores.ravel())
    low, high = min(low, *references, high), max(high, *references, low)
    room = 0.25 * (high - low)  # an arrow takes half of it
    near = scores[(scores >= low - room) & (scores <= high + room)]
    low, high = near.min(), near.max()
    span = (high - low) or 1.0
    left, right = (0.12 if far.any() else 0.05 for far in (scores < low, scores > high))
    ax.set_xlim(low - left * span, high + right * span)


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
