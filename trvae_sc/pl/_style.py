"""Colours, names beside points, and checks that all plots share."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib import patheffects
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.text import Text
from matplotlib.transforms import ScaledTranslation

from trvae_sc.checks import RECORD
from trvae_sc.errors import InputError
from trvae_sc.evaluation._scores import BOUNDS
from trvae_sc.pl._finish import figure_of

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
LOG_UNIT = "log(1 + normalised count)"
UNIT = "unit"  #: key of ``attrs`` of a table: what its values are, for axis labels
PALE = "#C8C8C8"  # what is there, but not what is looked at
_EXPAND = 1.2, 1.3  # of the size of names, so that there is room between them
_MOST_NAMES = 100  # that places are sought for
_PAIRS = 300_000  # of names that are compared while places are found: some seconds
#: Pairs of names and points that are kept apart; of more points every second, third ...
_AVOIDED = 20_000
#: Colours of groups of cells that have the same meaning in every plot.
_KNOWN = {"control": COLORS["grey"], "predicted": COLORS["blue"], "real": COLORS["orange"]}
OTHERS = [color for color in COLORS.values() if color not in _KNOWN.values()]


def ink() -> str:
    """Return the colour of lines and text of the user's style, black on a light background."""
    return plt.rcParams["text.color"]


def axes_of(ax: Axes | None, width: float, height: float) -> Axes:
    """Return the Axes given, or those of a new figure of some inches."""
    return plt.subplots(figsize=(width, height), layout="constrained")[1] if ax is None else ax


def drawn(ax: Axes) -> Any:
    """Return the figure of Axes once it is laid out; until then they do not have their size."""
    figure = figure_of(ax)
    layout = figure.get_layout_engine()
    if layout is None:
        figure.draw_without_rendering()
    else:
        layout.execute(figure)
        ax.get_tightbbox()  # puts the labels of the axes where they are drawn
    return figure


@contextmanager
def _laid_out(ax: Axes) -> Iterator[None]:
    """Keep what was laid out as it is while it is drawn, which is faster."""
    figure = figure_of(ax)
    layout = figure.get_layout_engine()
    if layout is not None:
        figure.set_layout_engine("none")
    try:
        yield
    finally:
        if layout is not None:
            figure.set_layout_engine(layout)


def label_axes(ax: Axes, x: str, y: str) -> None:
    """Name both axes, in the size of text that all plots have."""
    ax.set_xlabel(x, fontsize=9)
    ax.set_ylabel(y, fontsize=9)
    ax.tick_params(labelsize=8)


def turn_names(ax: Axes, angle: int = 40) -> None:
    """Turn the names below an axis, so that long ones have room."""
    plt.setp(ax.get_xticklabels(), rotation=angle, ha="right", rotation_mode="anchor")


def legend_beside(ax: Axes, handles: Sequence[Artist] | None = None) -> None:
    """Draw the legend to the right of the axes; of all that has a label, without `handles`."""
    place: Any = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
    ax.legend(handles=handles, frameon=False, fontsize=8, **place)


def legend_height(n_lines: int) -> float:
    """Return the height in inches of a figure that a legend of so many lines fits beside the axes."""
    return 0.5 + 0.18 * n_lines


def names_width(names: Iterable[str]) -> float:
    """Return what names beside the axes need in inches, beyond those of fourteen letters."""
    return 0.07 * max(max(map(len, names), default=0) - 14, 0)


def matrix_axes(
    ax: Axes | None, rows: Sequence[str], columns: Sequence[str], height: float
) -> Axes:
    """Return Axes of a matrix: names beside rows, and below columns, at an angle if many or long."""
    longest = max(map(len, columns))
    are_turned = len(columns) > 4 or longest > 13
    width = 2.2 + 0.9 * len(columns) + names_width(rows)
    ax = axes_of(ax, width, height + (0.045 * longest if are_turned else 0.0))
    ax.set_xticks(range(len(columns)), [plain(name) for name in columns], fontsize=8)
    ax.set_yticks(range(len(rows)), [plain(name) for name in rows], fontsize=8)
    if are_turned:
        turn_names(ax)
    ax.tick_params(length=0)
    ax.grid(visible=False)  # scanpy's settings draw one
    ax.spines[:].set_visible(False)
    return ax


def check_columns(table: pd.DataFrame, names: Iterable[str], *, of: str) -> None:
    """Raise where a table is none or lacks columns; `of` says what makes such a table."""
    if not isinstance(table, pd.DataFrame):
        raise InputError(
            f"Expected a table (pandas DataFrame), got {type(table).__name__}. Give {of}."
        )
    missing = [name for name in names if name not in table]
    if missing:
        raise InputError(
            f"The table has no columns {missing}; it has {[str(c) for c in table.columns]}. Give "
            f"{of}."
        )
    if table.empty:
        raise InputError(f"The table has no rows, so there is nothing to draw. Give {of}.")


def check_finite(table: pd.DataFrame, names: Iterable[str]) -> None:
    """Raise where numbers to draw are missing or infinite."""
    for name in names:
        n_wrong = (~np.isfinite(table[name].to_numpy(float))).sum()
        if n_wrong:
            raise InputError(
                f"{n_wrong:,} of {len(table):,} genes have no finite {name}. Leave these rows out."
            )


def check_bounds(table: pd.DataFrame) -> None:
    """Raise where intervals are missing or upside down."""
    unknown = table[BOUNDS].isna().any(axis=1)
    if unknown.any():
        raise InputError(
            f"{unknown.sum():,} of {len(table):,} genes have no interval. "
            "Intervals need the default preset, and three labels or more that were seen under source and target."
        )
    n_wrong = (table["change_lower"] > table["change_upper"]).sum()
    if n_wrong:
        raise InputError(
            f"change_lower is above change_upper in {n_wrong:,} genes; swap the bounds."
        )


def group_colors(names: Sequence[str], palette: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return a colour for each group: that of `palette`, that of its meaning, or one of the rest."""
    unknown = [name for name in palette or () if name not in names]
    if unknown:
        raise InputError(f"palette names {unknown}; the groups are {list(names)}.")
    known, others = _KNOWN | dict(palette or {}), itertools.cycle(OTHERS)
    return {name: known[name] if name in known else next(others) for name in names}


def unit_of_cells(cells: AnnData) -> str:
    """Return what the values of cells are, as their record says; "value" where it does not."""
    scale = str(cells.uns.get(RECORD, {}).get("scale", ""))
    return LOG_UNIT if scale.startswith("log") else {"counts": "count"}.get(scale, "value")


def titled(name: str, text: str) -> str:
    """Return a title that begins with a name, or has it above where it is long."""
    return f"{plain(name)}{': ' if len(name) < 15 else chr(10)}{text}" if name else text


def plain(text: object) -> str:
    """Return a name as it is drawn: a dollar sign begins no formula."""
    return str(text).replace("$", r"\$")


#: Colours of methods, in every figure and whatever others are drawn; methods of the user take the rest.
METHOD_COLORS = {
    "trvae": "#0072B2",
    "TRVAE": "#0072B2",
    "no_transfer": "#0A3D62",
    "context_shift": "#E69F00",
    "mean_shift": "#009E73",
    "nearest_shift": "#D55E00",
    "no_change": "#999999",
    "latent_shift": "#CC79A7",
    "paper": "#56B4E9",
    "cvae": "#882255",
    "mmd_cvae": "#117733",
    "vae": "#332288",
    "beta_vae": "#AA4499",
    "autoencoder": "#DDCC77",
    "mean_condition": "#B15928",
    "nearest_condition": "#44AA99",
    "feature_ridge": "#6699CC",
    "sum_of_parts": "#7570B3",
}
_FREE = ("#661100", "#A6D854", "#999933", "#E7298A", "#CC6677", "#000000", "#88CCEE", "#BF5B17")


def method_colors(names: Iterable[str]) -> dict[str, str]:
    """Return the colour of each method; of one that is not ours by its name, if no other has it."""
    found: dict[str, str] = {}
    for name in names:
        start = zlib.crc32(name.encode()) % len(_FREE)
        order = [*_FREE[start:], *_FREE[:start]]
        own = next((color for color in order if color not in found.values()), order[0])
        found[name] = METHOD_COLORS.get(name, own)
    return found


STYLES = ("-", "--", ":", "-.")
MARKERS = ("o", "^", "s", "D")  # of labels; the next one where colours come again


def check_looks(n: int, found: str, limit: int = len(COLORS) * len(STYLES)) -> None:
    """Raise where more groups are drawn than colours, dashes and markers tell apart; `found` names them."""
    if n > limit:
        raise InputError(f"{found}; up to {limit} can be told apart. Draw a part of them.")


def line_styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return colour, dashes and marker of each line; other ones of these where colours come again."""
    looks = itertools.cycle(itertools.product(zip(STYLES, MARKERS, strict=True), COLORS.values()))
    return {
        name: {"color": color, "linestyle": dashes, "marker": marker}
        for name, ((dashes, marker), color) in zip(names, looks, strict=False)
    }


def lines_of(table: pd.DataFrame, ax: Axes | None, x: str, y: str) -> Axes:
    """Draw each column of a table, a gene, against its index; `x` and `y` name the axes."""
    check_looks(table.shape[1], f"{table.shape[1]} genes are to be drawn")
    table = table.rename(columns=str)
    styles = line_styles(table)
    ax = axes_of(ax, 4.9 + names_width(styles), max(3.3, legend_height(len(styles))))
    for gene, style in styles.items():
        ax.plot(table[gene], **style | {"marker": "o"}, lw=1.4, ms=3, label=plain(gene))
    label_axes(ax, x, y)
    legend_beside(ax)
    return ax


def number(value: float, digits: int = 2) -> str:
    """Return a number with so many decimals, without a sign where these are all zero."""
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text


def legend_below(ax: Axes) -> None:
    """Draw the legend below the axis label, where no data are, in as many columns as fit."""
    handles, names = ax.get_legend_handles_labels()
    figure = drawn(ax)
    dpi = figure.dpi
    width = ax.get_window_extent().width / dpi * 72
    n_columns = int(width // (24 + 4.4 * max(map(len, names), default=1)))
    label = ax.xaxis.label.get_window_extent() if ax.get_xlabel() else ax.get_window_extent()
    gap = (ax.get_window_extent().y0 - label.y0) / dpi + 4 / 72
    place = ax.transAxes + ScaledTranslation(0, -gap, figure.dpi_scale_trans)
    ax.legend(
        handles,
        names,
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        bbox_transform=place,
        ncols=min(max(n_columns, 1), len(names)),
        frameon=False,
        fontsize=8,
        handletextpad=0.2,
        columnspacing=1.2,
        borderaxespad=0,
    )


def to_name(change: np.ndarray, n_labels: int) -> np.ndarray:
    """Return the positions of the changes to name, largest first, a third at least of each sign."""
    order = np.argsort(-np.abs(change), kind="stable")
    least = [order[sign * change[order] > 0][: n_labels // 3] for sign in (1, -1)]
    wanted = list(dict.fromkeys([*np.concatenate(least), *order]))[:n_labels]
    return np.array([i for i in order if i in wanted], dtype=int)


def arrows(ax: Axes, axis: str, points: np.ndarray, color: str) -> None:
    """Draw points (n_points, 2) beyond the limits of an axis as arrows at its end, with their values."""
    at = "xy".index(axis)
    low, high = sorted((ax.get_xlim, ax.get_ylim)[at]())
    for point in points:
        value = point[at]
        if low <= value <= high:
            continue
        end = np.array(point, dtype=float)
        end[at] = np.clip(value, low, high)
        marker = {"x": "<>", "y": "v^"}[axis][int(value > high)]
        ax.plot(*end, marker=marker, c=color, ms=6, mew=0, clip_on=False, zorder=4, ls="")
        shift = [0, 0]
        shift[at] = 7 if value < low else -7
        side = {"x": ("left", "right"), "y": ("center", "center")}[axis][int(value > high)]
        place: Any = {"xytext": tuple(shift), "textcoords": "offset points", "ha": side}
        ax.annotate(number(value, 1), tuple(end), **place, va="center", fontsize=7, color=color)


def within(values: np.ndarray) -> tuple[float, float]:
    """Return the range of values but for outliers, three quartile ranges beyond the quartiles."""
    values = values[np.isfinite(values)]
    lower, upper = np.quantile(values, [0.25, 0.75])
    far = 3 * (upper - lower)
    kept = values[(values >= lower - far) & (values <= upper + far)]
    return float(kept.min()), float(kept.max())


def name_points(ax: Axes, names: Iterable[object], xy: np.ndarray, avoid: np.ndarray) -> None:
    """Write up to 100 names beside their points, where there is room, with a line to those that had to move.

    Call it last: it keeps the limits as they are, and off the legend. `xy` is (n_names, 2); `avoid`
    are further points, (n_points, 2), that names are written over only if there is no other room.
    """
    from adjustText import adjust_text  # imports what plots without names need not wait for

    names, xy = list(names)[:_MOST_NAMES], xy[:_MOST_NAMES]
    ax.set_xlim(ax.get_xlim())  # the limits that places are found with are those that are drawn
    ax.set_ylim(ax.get_ylim())
    drawn(ax)
    halo = [patheffects.withStroke(linewidth=1.5, foreground=ax.get_facecolor())]
    texts = [
        ax.text(float(x), float(y), plain(name), fontsize=7, path_effects=halo, in_layout=False)
        for name, (x, y) in zip(names, xy, strict=True)
    ]
    room = ax.get_window_extent().size / np.array(_EXPAND)
    fits = np.array([(t.get_window_extent().size <= room).all() for t in texts], dtype=bool)
    for i in np.flatnonzero(~fits):
        texts[i].remove()
    texts, xy = [texts[i] for i in np.flatnonzero(fits)], xy[fits]
    if not texts:
        return
    avoid = avoid[:: -(-len(texts) * len(avoid) // _AVOIDED) or 1]
    legend = ax.get_legend()
    line = {"arrowstyle": "-", "color": COLORS["grey"], "lw": 0.5}
    with _laid_out(ax):  # adjust_text draws the figure
        _, lines = adjust_text(
            texts,
            x=avoid[:, 0],
            y=avoid[:, 1],
            target_x=xy[:, 0],
            target_y=xy[:, 1],
            objects=None if legend is None else [legend],
            ax=ax,
            arrowprops=line,
            expand=_EXPAND,
            force_static=(0.3, 0.5),
            force_text=(0.2, 0.4),
            iter_lim=min(300, _PAIRS // len(texts) ** 2),
        )
    points = ax.transData.transform(xy)
    taken = [] if legend is None else [legend.get_window_extent()]
    for text in texts:
        is_inside = _put_inside(ax, text)
        box = text.get_window_extent()
        covers = any(box.contains(*point) for point in points)
        if covers or not is_inside or box.count_overlaps(taken):
            for own in [line for line in lines if line.patchA is text]:
                own.remove()
            text.remove()
        else:
            taken.append(box)


def _put_inside(ax: Axes, text: Text) -> bool:
    """Move a name that touches the frame off it by a pixel; return whether it is inside."""
    box, frame = text.get_window_extent(), ax.get_window_extent().padded(-0.5)
    shift = np.maximum(np.subtract(frame.min, box.min), 0.0)
    shift += np.minimum(np.subtract(frame.max, box.max), 0.0)
    if np.abs(shift).max() > 1:
        return False
    place = ax.transData.transform(text.get_position()) + shift
    x, y = ax.transData.inverted().transform(place)
    text.set_position((float(x), float(y)))
    return True
