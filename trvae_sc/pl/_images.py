"""Cells of latent codes, side by side: images as images, expression as heat maps and lines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes

from trvae_sc.arguments import check_whole
from trvae_sc.checks import check_names, check_type
from trvae_sc.errors import InputError
from trvae_sc.expression import dense
from trvae_sc.levels import as_list, level_name
from trvae_sc.pl._finish import Save, finish
from trvae_sc.pl._style import (
    axes_of,
    label_axes,
    lines_of,
    names_width,
    plain,
    unit_of_cells,
)

_MISSING = "0.75"  # grey of a tile without a cell
_TILE = 0.5  # inches


def grid(
    cells: AnnData,
    *,
    rows: str | None = None,
    columns: str | None = None,
    n_columns: int = 10,
    n_genes: int = 30,
    var_names: str | Sequence[str] | None = None,
    unit: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: Save = None,
) -> Axes | None:
    """Cells as tiles of a grid if they are images; else their expression as a heat map.

    Parameters
    ----------
    cells
        Images have the columns ``row`` and ``column`` in ``var``, as :func:`trvae_sc.datasets.digits`.
    rows
        Column of ``obs``, such as the condition: one row a level, in order of appearance, and more where
        they do not fit. If None, a heat map has a row a cell.
    columns, n_columns
        Column of ``obs`` that says where in its row an image is: one column a level, the same ones one below
        the other. If None, images are in order, up to `n_columns` a row.
    n_genes, var_names
        Genes of a heat map: so many that vary most between its rows (means of cells), or these.
    unit
        What their values are, for the colour bar. If None, what the record of `cells` says, else "value".
    ax, show, save
        As in :func:`effect`.

    Returns
    -------
    The Axes.

    Raises
    ------
    InputError
        No cells, no such column or gene, or `n_columns` is no number of columns.
    """
    check_type(cells)
    if not cells.n_obs:
        raise InputError("There are no cells to draw. Give an AnnData with one row at least.")
    missing = [key for key in (rows, columns) if key is not None and key not in cells.obs]
    if missing:
        raise InputError(f"No columns {missing} in obs; there are {list(cells.obs)}.")
    check_whole("n_columns", n_columns)
    if not _are_images(cells):
        unit = unit_of_cells(cells) if unit is None else unit
        ax = _heat_map(cells, rows, n_genes, var_names, unit, ax)
        return finish(ax, "grid", show=show, save=save)
    row, column, heights = _layout(cells.obs, rows, columns, n_columns)
    row_names, column_names = (
        [] if key is None else _names(pd.unique(cells.obs[key])) for key in (rows, columns)
    )
    tiles = _tiles(cells, row, column)
    width = _TILE * (column.max() + 1) + 1.0 + names_width(row_names)
    ax = axes_of(ax, width, _TILE * (row.max() + 1) + 0.4)
    _draw_tiles(ax, tiles, row_names, column_names, heights)
    return finish(ax, "grid", show=show, save=save)


def traversal(
    walk: AnnData,
    *,
    n_genes: int = 7,
    unit: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: Save = None,
) -> Axes | None:
    """Response to a latent dimension: images in a row, or lines of the genes that respond most.

    Parameters
    ----------
    walk
        Output of :func:`trvae_sc.family.traverse`.
    n_genes
        Genes drawn, those of largest ``var["range"]``.
    unit
        What the values are, as in :func:`grid`.
    ax, show, save
        As in :func:`effect`.

    Returns
    -------
    The Axes.

    Raises
    ------
    InputError
        `walk` is no traversal.
    """
    check_type(walk)
    if "value" not in walk.obs or "range" not in walk.var:
        raise InputError(
            "cells have no obs['value'] and var['range']; give the output of family.traverse."
        )
    name = f"latent dimension {walk.uns['trvae_sc']['dimension']}"
    if _are_images(walk):
        ax = cast("Axes", grid(walk, columns="value", ax=ax))
        ax.set_title(name, fontsize=9)
        return finish(ax, "traversal", show=show, save=save)
    check_whole("n_genes", n_genes)
    check_names(walk, "var_names")
    genes = walk.var["range"].sort_values(ascending=False, kind="stable").index[:n_genes]
    shown = pd.DataFrame(dense(walk[:, genes].X), walk.obs["value"], genes)
    ax = lines_of(shown, ax, name, plain(unit_of_cells(walk) if unit is None else unit))
    return finish(ax, "traversal", show=show, save=save)


def manifold(
    cells: AnnData,
    gene: str | None = None,
    *,
    unit: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: Save = None,
) -> Axes | None:
    """Latent space of two dimensions, decoded: images at their places, or the map of a gene.

    Parameters
    ----------
    cells
        Decoded codes of :func:`trvae_sc.family.lattice`, as in ``model.decode(lattice(15))``.
    gene
        Gene to colour by; that of most variance if None. Not for images.
    unit
        What its values are, as in :func:`grid`.
    ax, show, save
        As in :func:`effect`.

    Returns
    -------
    The Axes, the first dimension from left to right and the second from below.

    Raises
    ------
    InputError
        Codes have not two dimensions or are no lattice, or there is no such gene.
    """
    check_type(cells)
    z = np.asarray(cells.obsm.get("X_trvae", np.zeros((0, 0))), dtype=float)
    ends = [np.unique(z[:, d].round(6)) for d in range(z.shape[1])]
    if len(ends) != 2 or len(ends[0]) * len(ends[1]) != cells.n_obs or cells.n_obs < 4:
        raise InputError(
            f"obsm['X_trvae'] has shape {z.shape} and is no lattice of two dimensions. Decode one: "
            "model.decode(family.lattice(15))."
        )
    at = [np.searchsorted(end, z[:, d].round(6)) for d, end in enumerate(ends)]
    ax = axes_of(ax, 5.2, 4.8)
    if _are_images(cells):
        _draw_tiles(ax, _tiles(cells, len(ends[1]) - 1 - at[1], at[0]), (), (), np.ones(1))
    else:
        x = pd.DataFrame(dense(cells.X), columns=cells.var_names)
        gene = x.var().idxmax() if gene is None else gene
        if gene not in x:
            raise InputError(f"No gene {gene!r}; there are {cells.n_vars:,} others.")
        image = np.full((len(ends[1]), len(ends[0])), np.nan)
        image[at[1], at[0]] = x[gene]
        drawn = ax.imshow(image, origin="lower", cmap="viridis", aspect="auto")
        bar = ax.figure.colorbar(drawn, ax=ax)
        unit = unit_of_cells(cells) if unit is None else unit
        bar.set_label(plain(f"{gene}, {unit}"), fontsize=9)
        ax.set(xticks=[], yticks=[])
    label_axes(ax, "latent dimension 0", "latent dimension 1")
    return finish(ax, "manifold", show=show, save=save)


# -- parts --------------------------------------------------------------------------------------------


def _are_images(cells: AnnData) -> bool:
    return {"row", "column"} <= set(cells.var)


def _layout(
    obs: pd.DataFrame, rows: str | None, columns: str | None, n_columns: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the row and column of each image, and how many rows each level of `rows` takes."""
    level = pd.Series(0, range(len(obs)))
    if rows is not None:
        level[:] = pd.factorize(obs[rows], use_na_sentinel=False)[0]
    if columns is not None:
        column = pd.factorize(obs[columns], use_na_sentinel=False)[0]
        below = level.groupby([level, column]).cumcount()
    else:
        number = level.groupby(level).cumcount()
        if rows is not None:  # rows of a level that are as long as each other
            n_most = number.max() + 1
            n_columns = -(-n_most // -(-n_most // n_columns))
        below, column = number // n_columns, (number % n_columns).to_numpy()
    heights = below.groupby(level).max().to_numpy() + 1
    return (np.cumsum(heights) - heights)[level] + below.to_numpy(), column, heights


def _names(found: Iterable[Any]) -> list[str]:
    """Return the names of different levels, numbers with two digits where these tell them apart."""
    short = [f"{level:.2g}" if isinstance(level, float) else level_name(level) for level in found]
    return short if len(set(short)) == len(short) else [level_name(level) for level in found]


def _tiles(cells: AnnData, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Return images side by side, one pixel apart; NaN where there is none."""
    at = cells.var["row"].to_numpy(), cells.var["column"].to_numpy()
    height, width = at[0].max() + 1, at[1].max() + 1
    tiles = np.full(((row.max() + 1), height + 1, (column.max() + 1), width + 1), np.nan)
    x = dense(cells.X)
    for image, i, j in zip(x, row, column, strict=True):
        tiles[i, at[0], j, at[1]] = image
    return tiles.reshape(tiles.shape[0] * (height + 1), -1)[:-1, :-1]


def _draw_tiles(
    ax: Axes,
    tiles: np.ndarray,
    row_names: Sequence[str],
    column_names: Sequence[str],
    heights: np.ndarray,
) -> None:
    """Draw images; names of rows, so many tiles high, and of columns in their middle."""
    cmap = plt.get_cmap("gray").with_extremes(bad=_MISSING)
    limits = np.nanquantile(tiles, (0.01, 0.99))  # decoded pixels may be off by a little
    ax.imshow(tiles, cmap=cmap, interpolation="nearest", vmin=limits[0], vmax=limits[1])
    for axis, names, length, sizes in (
        (ax.yaxis, row_names, tiles.shape[0], heights),
        (ax.xaxis, column_names, tiles.shape[1], np.ones(max(len(column_names), 1))),
    ):
        ends = np.cumsum(sizes) / sizes.sum()
        ticks = (length + 1) * (ends - sizes / sizes.sum() / 2) - 1
        axis.set_ticks(ticks[: len(names)], [plain(name) for name in names])
    if (heights > 1).any():
        for end in np.cumsum(heights)[:-1] * (tiles.shape[0] + 1) / heights.sum():
            ax.axhspan(end - 1.5, end - 0.5, color="white", lw=0)  # between levels of several rows
    ax.grid(visible=False)
    ax.xaxis.tick_top()
    ax.tick_params(length=0, labelsize=8)
    ax.spines[:].set_visible(False)


def _heat_map(
    cells: AnnData,
    rows: str | None,
    n_genes: int,
    var_names: str | Sequence[str] | None,
    unit: str,
    ax: Axes | None,
) -> Axes:
    """Draw mean expression, rows x genes."""
    table = pd.DataFrame(dense(cells.X), index=cells.obs_names, columns=cells.var_names)
    if rows is not None:
        code, found = pd.factorize(cells.obs[rows], use_na_sentinel=False)
        table = table.groupby(code).mean().set_axis(_names(found))
    if var_names is None:
        check_whole("n_genes", n_genes)
        table = table.iloc[:, np.argsort(-table.to_numpy().var(0), kind="stable")[:n_genes]]
    else:
        chosen = as_list(var_names)
        missing = [name for name in chosen if name not in table]
        if missing:
            raise InputError(f"No genes {missing} among the {cells.n_vars:,} of the cells.")
        table = table[chosen]
    width = 0.22 * table.shape[1] + 2.0 + names_width(map(str, table.index))
    height = max(0.22 * len(table) + 1.2, 2.6) + names_width(map(str, table.columns))
    ax = axes_of(ax, width, height)
    drawn = ax.imshow(table, cmap="viridis", aspect="auto", interpolation="nearest")
    ax.set_xticks(range(table.shape[1]), [plain(g) for g in table], rotation=90)
    ax.set_yticks(range(len(table)), [plain(name) for name in table.index])
    ax.tick_params(length=0, labelsize=8)
    ax.grid(visible=False)
    ax.figure.colorbar(drawn, ax=ax).set_label(plain(unit), fontsize=8)
    return ax
