"""Embeddings of cells, coloured by what is known of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from pandas.api.types import is_numeric_dtype
from sklearn.decomposition import PCA

from trvae_sc.arguments import check_number, check_whole
from trvae_sc.checks import check_type, is_number
from trvae_sc.errors import InputError
from trvae_sc.expression import dense
from trvae_sc.levels import codes_of, level_name, levels
from trvae_sc.pl._finish import Save, finish
from trvae_sc.pl._style import (
    COLORS,
    MARKERS,
    label_axes,
    legend_beside,
    legend_height,
    line_styles,
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
    Rows of the cells; first the two coordinates, then `color`.

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
    return pd.concat([frame, adata.obs[names]], axis=1)


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
        Colour by name, of any panel.
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
        No table of coordinates and columns to colour by, more than 28 groups, nothing to draw.
    """
    columns = _columns(cells)
    if size is not None:
        check_number("size", size, 0.0)
    order = np.random.default_rng(0).permutation(len(cells))  # so that no group is on top
    shuffled = cells.iloc[order]
    numbers = [k for k in columns if is_number(cells[k]) and cells[k].nunique() > len(COLORS)]
    groups = {name: [] if name in numbers else _groups(cells[name]) for name in columns}
    extra = sum(0.9 + 0.075 * max(map(len, g), default=0) for g in groups.values())
    height = max(3.4, legend_height(max(map(len, groups.values()))))
    inches = (3.2 * len(columns) + extra, height)
    _, axes = plt.subplots(1, len(columns), figsize=inches, squeeze=False, layout="constrained")
    area = float(np.clip(20000 / len(cells), 1.5, 25)) if size is None else size
    for ax, name in zip(axes.flat, columns, strict=True):
        if groups[name]:
            _scatter_groups(ax, shuffled, name, groups[name], area, palette or {})
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


def _groups(column: pd.Series) -> list[str]:
    """Return the groups of a column that have cells, in order; ``"missing"`` last."""
    known = column.dropna()
    if isinstance(known.dtype, pd.CategoricalDtype):
        categories = known.cat.remove_unused_categories().cat.categories
        ordered = codes_of(pd.Series(categories))[1]
    else:
        ordered = list(dict.fromkeys(map(level_name, levels(known))))
    limit = len(COLORS) * len(MARKERS)
    if len(ordered) > limit:
        raise InputError(
            f"Column {column.name!r} has {len(ordered)} groups; up to {limit} can be told apart. "
            "Give a coarser column."
        )
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
    looks = line_styles(g for g in groups if g != "missing")
    colors = {g: palette.get(g, look["color"]) for g, look in looks.items()}
    colors["missing"] = _MISSING
    markers = {g: look["marker"] for g, look in looks.items()} | {"missing": "o"}
    codes, found = codes_of(cells[name])
    names = pd.Series(np.array([*found, "missing"], dtype=object)[codes], index=cells.index)
    marker = names.map(markers)
    for shape in MARKERS:
        part = (marker == shape).to_numpy()
        if part.any():
            x, y = cells.iloc[part, 0], cells.iloc[part, 1]
            color = names[part].map(colors).tolist()
            ax.scatter(x, y, s=area, c=color, marker=shape, lw=0, alpha=0.8, rasterized=True)
    counts = names.value_counts()
    handles = []
    for g in groups:
        text = f"{plain(g)} ({counts[g]:,})"
        handles.append(Line2D([], [], ls="", marker=markers[g], c=colors[g], ms=5, label=text))
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
