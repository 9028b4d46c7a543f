"""Cells on embeddings, coloured by what is known of them, and how far predicted ones move."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.colors import is_color_like, to_hex
from matplotlib.lines import Line2D
from pandas.api.types import is_numeric_dtype
from sklearn.decomposition import PCA

from trvae_sc.arguments import check_number, check_whole
from trvae_sc.checks import RECORD, check_type, is_number
from trvae_sc.errors import InputError
from trvae_sc.expression import dense
from trvae_sc.levels import as_text, codes_of, level_name, levels
from trvae_sc.pl._finish import Save, finish
from trvae_sc.pl._style import (
    COLORS,
    MARKERS,
    PALE,
    axes_of,
    check_looks,
    ink,
    label_axes,
    legend_beside,
    legend_height,
    line_styles,
    names_width,
    plain,
)


def embedding(
    adata: AnnData,
    color: str | Sequence[str],
    *,
    basis: str = "X_trvae",
    method: Literal["pca", "umap"] | None = None,
    n_neighbors: int = 15,
    random_state: int = 0,
) -> pd.DataFrame:
    """Return two coordinates of each cell, and columns of ``obs`` to colour by.

    Parameters
    ----------
    adata
        Cells with the representation in ``obsm``, as in ``adata.obsm["X_trvae"] =
        model.get_latent_representation()`` (predicted cells have it).
    color
        Column or columns of ``obs``, each once.
    basis
        Key of ``obsm``, with or without ``X_``.
    method
        ``"pca"``, or ``"umap"`` of scanpy. If None, two columns are taken as they are, more through ``"pca"``.
    n_neighbors, random_state
        Of UMAP, as in scanpy.

    Returns
    -------
    Rows of the cells; first the two coordinates, then `color`. ``attrs["colors"]`` holds the colours that
    scanpy noted in ``uns``.

    Raises
    ------
    InputError
        No such representation or column, unknown method, or fewer than two columns or three cells.
    """
    check_type(adata)
    check_whole("n_neighbors", n_neighbors, 2)
    names = [color] if isinstance(color, str) else list(dict.fromkeys(color or ()))
    if not names:
        raise InputError(f"Name columns of obs to colour by, of {list(adata.obs)}.")
    missing = [name for name in names if name not in adata.obs]
    if missing:
        raise InputError(f"No columns {missing} in obs; there are {list(adata.obs)}.")
    key = basis if basis in adata.obsm else f"X_{basis}"
    if key not in adata.obsm:
        raise InputError(
            f"No {basis!r} in obsm; there are {list(adata.obsm)}. Set adata.obsm['X_trvae'] = "
            "model.get_latent_representation() first."
        )
    z = np.asarray(dense(adata.obsm[key]), dtype=float)
    if z.ndim != 2 or z.shape[1] < 2 or len(z) < 3:
        raise InputError(f"obsm[{key!r}] has shape {z.shape}; give 3 cells and 2 columns, or more.")
    n_wrong = int((~np.isfinite(z)).any(axis=1).sum())
    if n_wrong:
        raise InputError(f"obsm[{key!r}] is not finite in {n_wrong:,} cells. Leave these out.")
    if method is None and z.shape[1] == 2:
        xy, prefix = z, key.removeprefix("X_").upper()
    elif method in (None, "pca"):
        xy, prefix = PCA(2, svd_solver="full").fit_transform(z), "PC"
    elif method == "umap":
        xy, prefix = _umap(z, n_neighbors, random_state), "UMAP"
    else:
        raise InputError(f"Unknown method {method!r}; choose 'pca', 'umap' or None.")
    frame = pd.DataFrame(xy, index=adata.obs_names, columns=[f"{prefix}1", f"{prefix}2"])
    table = pd.concat([frame, adata.obs[names]], axis=1)
    table.attrs[_COLORS] = {name: _scanpy_colors(adata, name) for name in names}
    return table


def _scanpy_colors(adata: AnnData, name: str) -> dict[str, Any]:
    """Return the colour of each category of a column that scanpy noted, if it did."""
    categories = getattr(adata.obs[name].dtype, "categories", ())
    colors = adata.uns.get(f"{name}_colors")
    pairs = zip(map(level_name, categories), () if colors is None else colors, strict=False)
    return {level: to_hex(color) for level, color in pairs if is_color_like(color)}


def _umap(z: np.ndarray, n_neighbors: int, random_state: int) -> np.ndarray:
    """Return UMAP coordinates, shape (n_cells, 2)."""
    import scanpy as sc  # takes a second

    if len(z) < _UMAP_CELLS:
        raise InputError(
            f"There are {len(z)} cells; UMAP needs {_UMAP_CELLS} or more. Take method='pca'."
        )
    cells = AnnData(obsm={"X": z})
    sc.pp.neighbors(cells, n_neighbors=n_neighbors, use_rep="X", random_state=random_state)
    sc.tl.umap(cells, random_state=random_state)
    return cells.obsm["X_umap"]


_UMAP_CELLS = 4  # its spectral start has more rows than columns
_COLORS = "colors"  # key of ``attrs`` of a table: those of levels, by column
_MISSING = "#DDDDDD"  # colour of cells of which it is not known


def latent(
    cells: pd.DataFrame,
    *,
    palette: Mapping[str, str] | None = None,
    size: float | None = None,
    show: bool | None = None,
    save: Save = None,
) -> list[Axes] | None:
    """Cells in two dimensions, in one panel per column, such as condition and label.

    Columns of more than seven numbers, such as ``response``, are drawn on a colour scale, others in groups.

    Parameters
    ----------
    cells
        Output of :func:`embedding`: two coordinates, then the columns to colour by.
    palette
        Colour by name, of any panel; else that of scanpy, or one of ours.
    size
        Area of a point, in square points; by the number of cells if None.
    show, save
        As in :func:`effect`.

    Returns
    -------
    The Axes, one a column.

    Raises
    ------
    InputError
        No table of coordinates and columns to colour by, more than 28 groups without a colour for each, nothing to draw.
    """
    columns = _columns(cells)
    if size is not None:
        check_number("size", size, 0.0)
    order = np.random.default_rng(0).permutation(len(cells))  # so that no group is on top
    shuffled = cells.iloc[order]
    numbers = [k for k in columns if is_number(cells[k]) and cells[k].nunique() > len(COLORS)]
    noted = cells.attrs.get(_COLORS, {})
    known = {name: noted.get(name, {}) | dict(palette or {}) for name in columns}
    groups = {
        name: [] if name in numbers else _groups(cells[name], known[name]) for name in columns
    }
    extra = sum(0.9 + 0.075 * max(map(len, g), default=0) for g in groups.values())
    height = max(3.4, legend_height(max(map(len, groups.values()))))
    inches = (3.2 * len(columns) + extra, height)
    _, axes = plt.subplots(1, len(columns), figsize=inches, squeeze=False, layout="constrained")
    area = float(np.clip(20000 / len(cells), 1.5, 25)) if size is None else size
    for ax, name in zip(axes.flat, columns, strict=True):
        if groups[name]:
            _scatter_groups(ax, shuffled, name, groups[name], area, known[name])
        else:
            _scatter_numbers(ax, shuffled, name, area)
        ax.set_title(plain(name), fontsize=9)
        label_axes(ax, *cells.columns[:2])
        ax.set(xticks=[], yticks=[])
    return finish(list(axes.flat), "latent", show=show, save=save)


def _columns(cells: pd.DataFrame) -> list[str]:
    """Return the columns to colour by of a table with coordinates, or raise."""
    if not isinstance(cells, pd.DataFrame):
        raise InputError(
            f"pl.latent draws a table, and got {type(cells).__name__}. Make one of cells: "
            "pl.latent(pl.embedding(adata, 'cell_type'))."
        )
    columns = list(cells.columns[2:])
    are_numbers = [is_numeric_dtype(dtype) for dtype in cells.dtypes[:2]]
    if cells.empty or not columns or not all(are_numbers) or not cells.columns.is_unique:
        raise InputError(
            f"The table has {len(cells)} rows and columns {list(cells.columns)}. Give two coordinates "
            "and at least one column to colour by, each once: the output of pl.embedding."
        )
    return columns


def _groups(column: pd.Series, palette: Mapping[str, str]) -> list[str]:
    """Return the groups of a column that have cells, in order; ``"missing"`` last."""
    known = column.dropna()
    if isinstance(known.dtype, pd.CategoricalDtype):
        categories = known.cat.remove_unused_categories().cat.categories
        names = codes_of(pd.Series(categories))[1]
    else:
        names = [level_name(level) for level in levels(known)]
    ordered = list(dict.fromkeys(names))
    if not palette.keys() >= set(ordered):
        check_looks(len(ordered), f"Column {column.name!r} has {len(ordered)} groups")
    return ordered + (["missing"] if column.isna().any() else [])


def _scatter_groups(
    ax: Axes,
    cells: pd.DataFrame,
    name: str,
    groups: Sequence[str],
    area: float,
    palette: Mapping[str, str],
) -> None:
    """Draw cells in the colours and markers of their groups, with a legend."""
    codes, found = codes_of(cells[name])
    known = groups[:-1] if (codes < 0).any() else groups
    styles = line_styles(known)
    looks = [(palette.get(g, style["color"]), style["marker"]) for g, style in styles.items()]
    looks.append((_MISSING, "o"))  # of those that codes, -1, count from the end
    group = np.array([*map(known.index, found), len(known)])[codes]
    markers = np.array([marker for _, marker in looks])[group]
    for shape in MARKERS:
        part = markers == shape
        if part.any():
            x, y = cells.iloc[part, 0], cells.iloc[part, 1]
            color = [looks[i][0] for i in group[part]]
            ax.scatter(x, y, s=area, c=color, marker=shape, lw=0, alpha=0.8, rasterized=True)
    counts, handles = np.bincount(group, minlength=len(groups)), []
    for g, (color, marker), n in zip(groups, looks, counts, strict=False):
        text = f"{plain(g)} ({n:,})"
        handles.append(Line2D([], [], ls="", marker=marker, c=color, ms=5, label=text))
    legend_beside(ax, handles)


def _scatter_numbers(ax: Axes, cells: pd.DataFrame, name: str, area: float) -> None:
    """Draw cells in the colours of their numbers, with the scale."""
    values = cells[name].to_numpy(dtype=float, na_value=np.nan)
    known = np.isfinite(values)
    x, y = cells.iloc[:, 0].to_numpy(), cells.iloc[:, 1].to_numpy()
    style: Any = {"s": area, "lw": 0, "alpha": 0.8, "rasterized": True}
    ax.scatter(x[~known], y[~known], c=_MISSING, **style)
    points = ax.scatter(x[known], y[known], c=values[known], cmap="viridis", **style)
    bar = ax.figure.colorbar(points, ax=ax, pad=0.02, aspect=30)
    bar.ax.tick_params(labelsize=7)


def response(
    predicted: AnnData,
    *,
    basis: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: Save = None,
) -> Axes | None:
    """How far each predicted cell moves, relative to its label: by label, or on an embedding.

    Parameters
    ----------
    predicted
        A prediction of :meth:`trvae_sc.TRVAE.predict`, with ``obs["response"]``.
    basis
        Embedding in ``obsm`` to draw the cells on, with or without ``X_`` (``"umap"``); by label if None.
    ax, show, save
        As in :func:`effect`.

    Returns
    -------
    The Axes.

    Raises
    ------
    InputError
        There is no response, or no such embedding.
    """
    if "response" not in getattr(predicted, "obs", ()):
        raise InputError(
            "There is no obs['response']: pass a prediction, as TRVAE.predict returns it."
        )
    value = predicted.obs["response"].to_numpy(dtype=float)
    if not np.isfinite(value).any():
        raise InputError(
            "obs['response'] is NaN: the network is not calibrated, so labels have no change of their own."
        )
    if basis is None:
        ax = _by_label(predicted, value, ax)
    else:
        ax = _on_embedding(predicted, value, basis, ax)
    return finish(ax, "response", show=show, save=save)


def _by_label(predicted: AnnData, value: np.ndarray, ax: Axes | None) -> Axes:
    """Draw the cells of each label as dots, with their quartiles."""
    key = predicted.uns.get(RECORD, {}).get("keys", {}).get("labels_key")
    names = np.full(len(value), "all cells")
    if key in predicted.obs:
        names = as_text(predicted.obs[key]).to_numpy()
    known = np.isfinite(value)
    groups = {name: own.to_numpy() for name, own in pd.Series(value[known]).groupby(names[known])}
    found = sorted(groups, key=lambda name: -np.ptp(np.percentile(groups[name], [10, 90])))
    ax = axes_of(ax, 5.0 + names_width(found), 1.35 + 0.32 * len(found))
    rng = np.random.default_rng(0)
    for y, name in enumerate(found):
        own = groups[name]
        shown = rng.permutation(own)[:500]
        height = y + rng.uniform(-0.28, 0.28, len(shown))
        ax.scatter(shown, height, s=5, c=PALE, lw=0, zorder=1, rasterized=True)
        low, middle, high = np.percentile(own, [25, 50, 75])
        ax.plot([low, high], [y, y], c=COLORS["blue"], lw=3, zorder=2, solid_capstyle="round")
        ax.plot(middle, y, "o", c="white", ms=3.5, zorder=3)
    ax.axvline(1.0, c=ink(), lw=0.7, ls=":", zorder=0)
    ax.set_yticks(range(len(found)), [plain(name) for name in found], fontsize=8)
    ax.set_ylim(len(found) - 0.4, -0.6)
    ax.set_xlabel(
        "response of a cell (1: like the mean of its label)\nbar: middle half of the cells, white: median",
        fontsize=9,
    )
    ax.tick_params(axis="x", labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _on_embedding(predicted: AnnData, value: np.ndarray, basis: str, ax: Axes | None) -> Axes:
    """Draw the cells on an embedding, coloured by their response."""
    key = basis if basis in predicted.obsm else f"X_{basis}"
    if key not in predicted.obsm or np.asarray(predicted.obsm[key]).shape[1] < 2:
        raise InputError(
            f"No embedding {basis!r} of two columns in obsm; there are {list(predicted.obsm)}. After "
            "sc.pp.neighbors(predicted, use_rep='X_trvae') and sc.tl.umap(predicted) there is 'umap'."
        )
    xy = np.asarray(predicted.obsm[key])[:, :2]
    ax = axes_of(ax, 4.6, 3.8)
    order = np.argsort(value, kind="stable")  # those that are not known come last
    order, unknown = np.split(order, [(~np.isnan(value)).sum()])
    area = float(np.clip(20000 / len(xy), 1.5, 25))
    low, high = np.nanpercentile(value, [2, 98])
    style: Any = {"cmap": "viridis", "vmin": low, "vmax": high}
    ax.scatter(xy[unknown, 0], xy[unknown, 1], s=area, lw=0, c=_MISSING)
    points = ax.scatter(xy[order, 0], xy[order, 1], s=area, lw=0, c=value[order], **style)
    bar = ax.figure.colorbar(points, ax=ax, pad=0.02, aspect=30, extend="both")
    bar.set_label("response (1: like the mean of its label)", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    name = key.removeprefix("X_").upper()
    label_axes(ax, f"{name} 1", f"{name} 2")
    ax.set(xticks=[], yticks=[])
    return ax
