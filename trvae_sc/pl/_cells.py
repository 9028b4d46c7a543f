"""Cells: distributions of genes, and embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from sklearn.decomposition import PCA

from trvae_sc.expression import Keys, dense, log_values, values
from trvae_sc.pl._style import COLORS, LOG_UNIT, check_columns, group_colors

# -- distributions ----------------------------------------------------------------------------------


def expression_table(
    groups: Mapping[str, AnnData],
    var_names: str | Sequence[str],
    *,
    layer: str | None = None,
    target_sum: float | None = None,
    total_counts_key: str | None = None,
) -> pd.DataFrame:
    """Return the values of some genes in groups of cells, one row per gene and cell.

    Parameters
    ----------
    groups
        Cells by name, such as ``{"control": ..., "predicted": ..., "real": ...}``.
    var_names
        Gene or genes.
    layer
        Layer with the values; ``X`` if None.
    target_sum
        If given, values are counts and become log(1 + target_sum x count / total of the cell);
        ``predicted.uns["trvae_sc"]["kappa"]`` is the scale of a model. If None, they are taken as
        they are.
    total_counts_key
        Column of ``obs`` with the cells' total counts. If None, their sum over the genes that are
        there, which must then be the same in all groups.

    Returns
    -------
    Columns ``gene``, ``group``, ``value``, in the order of `var_names` and `groups`.

    Raises
    ------
    KeyError
        A gene, layer or column is missing from a group.
    ValueError
        No groups or genes, names of genes that are not unique, or groups of other genes with
        `target_sum` but no totals.
    """
    names = [var_names] if isinstance(var_names, str) else list(var_names)
    if not names or not groups:
        raise ValueError(f"Give groups of cells and genes, at least one of each, not {names}.")
    _check_same_genes(groups, counts=target_sum is not None and total_counts_key is None)
    parts = []
    for group, cells in groups.items():
        frame = gene_values(
            cells, names, layer=layer, target_sum=target_sum, total_counts_key=total_counts_key
        )
        parts += [
            pd.DataFrame({"gene": gene, "group": str(group), "value": frame[gene].to_numpy()})
            for gene in names
        ]
    table = pd.concat(parts, ignore_index=True)
    order = table["gene"].map({gene: i for i, gene in enumerate(names)})
    return table.iloc[np.argsort(order, kind="stable")].reset_index(drop=True)


def _check_same_genes(groups: Mapping[str, AnnData], *, counts: bool) -> None:
    """Raise where totals over the genes of groups would not be comparable."""
    sizes = {group: frozenset(cells.var_names) for group, cells in groups.items()}
    if counts and len(set(sizes.values())) > 1:
        found = {group: len(genes) for group, genes in sizes.items()}
        raise ValueError(
            f"The groups have different genes (numbers: {found}), so their total counts do not "
            "compare. Give total_counts_key, or cells of the same genes."
        )


def gene_values(
    adata: AnnData,
    names: Sequence[str],
    *,
    layer: str | None = None,
    target_sum: float | None = None,
    total_counts_key: str | None = None,
) -> pd.DataFrame:
    """Return cells x genes of an AnnData; see :func:`expression_table`."""
    missing = [name for name in names if name not in adata.var_names]
    if missing:
        raise KeyError(
            f"Genes {missing} are not in var_names, such as {list(adata.var_names[:3])}."
        )
    if layer is not None and layer not in adata.layers:
        raise KeyError(f"No layer {layer!r}; there are {list(adata.layers)}.")
    if target_sum is not None and total_counts_key not in (None, *adata.obs):
        raise KeyError(f"No column {total_counts_key!r} in obs; there are {list(adata.obs)}.")
    if not adata.var_names.is_unique:
        raise ValueError("var_names are not unique. Call adata.var_names_make_unique() first.")
    keys = Keys("", layer=layer, total_counts_key=total_counts_key)
    x = values(adata, keys) if target_sum is None else log_values(adata, keys, target_sum)
    chosen = x[:, adata.var_names.get_indexer(list(names))]
    return pd.DataFrame(dense(chosen), index=adata.obs_names, columns=list(names))


def gene_distribution(
    cells: pd.DataFrame,
    *,
    kind: Literal["violin", "ecdf"] = "violin",
    palette: Mapping[str, str] | None = None,
    ncols: int = 4,
    unit: str = LOG_UNIT,
) -> Figure:
    """Distribution of genes in groups of cells, such as control, predicted and real.

    Parameters
    ----------
    cells
        Output of :func:`expression_table`.
    kind
        ``"violin"``: density of the values, with the mean as a point. ``"ecdf"``: share of cells up
        to each value; shows exactly how many are zero.
    palette
        Colour by group; ``control``, ``predicted`` and ``real`` have theirs.
    ncols
        Panels per row.
    unit
        Unit of the values, for the axis labels.

    Returns
    -------
    The Figure, one panel per gene. Numbers of cells are printed with the groups.

    Raises
    ------
    KeyError
        Columns are missing.
    ValueError
        Unknown `kind`, values that are not finite, nothing to draw.
    """
    check_columns(cells, ("gene", "group", "value"), of="the output of pl.expression_table")
    if kind not in ("violin", "ecdf"):
        raise ValueError(f"Unknown kind {kind!r}; choose 'violin' or 'ecdf'.")
    if not np.isfinite(cells["value"]).all():
        genes = cells.loc[~np.isfinite(cells["value"]), "gene"].unique().tolist()
        raise ValueError(f"Genes {genes} have values that are not finite. Remove those cells.")
    genes, groups = cells["gene"].unique(), cells["group"].unique()
    colors = group_colors(groups, palette)
    n_columns = max(min(ncols, len(genes)), 1)
    figure, axes = _panels(-(-len(genes) // n_columns), n_columns, kind, len(groups))
    for ax, gene in zip(axes.flat, genes, strict=False):
        part = cells[cells["gene"] == gene]
        by_group = {g: v.to_numpy(float) for g, v in part.groupby("group", sort=False)["value"]}
        (_violins if kind == "violin" else _ecdfs)(ax, by_group, colors)
        ax.set_title(gene, fontsize=9)
        ax.tick_params(labelsize=8)
    for ax in axes.flat[len(genes) :]:
        ax.remove()
    if kind == "violin":
        figure.supylabel(unit, fontsize=9)
        return figure
    figure.supxlabel(unit, fontsize=9)
    figure.supylabel("share of cells", fontsize=9)
    lines = {line.get_label(): line for ax in figure.axes for line in ax.lines}
    place = {"loc": "outside upper center", "ncols": min(n_columns, len(lines))}
    figure.legend(lines.values(), lines, **place, frameon=False, fontsize=8)
    return figure


def _panels(n_rows: int, n_columns: int, kind: str, n_groups: int) -> tuple[Figure, np.ndarray]:
    """Return a figure with room for groups side by side (violins), or for their legend."""
    if kind == "violin":
        size = (0.7 + max(max(0.75 * n_groups, 1.6) * n_columns, 2.2), 0.3 + 2.2 * n_rows)
    else:
        legend = 0.18 * -(-n_groups // n_columns)
        size = (0.7 + max(2.3 * n_columns, 2.6), 0.6 + legend + 2.2 * n_rows)
    return plt.subplots(n_rows, n_columns, figsize=size, squeeze=False, layout="constrained")


def _violins(ax: Axes, by_group: Mapping[str, np.ndarray], colors: Mapping[str, str]) -> None:
    """Draw a violin and the mean of each group."""
    x = np.arange(len(by_group))
    parts = ax.violinplot(list(by_group.values()), positions=x, widths=0.85, showextrema=False)
    for body, group in zip(parts["bodies"], by_group, strict=True):
        body.set(facecolor=colors[group], alpha=0.75, linewidth=0)
    ax.scatter(x, [v.mean() for v in by_group.values()], s=16, c="k", zorder=3, label="mean")
    names = [f"{group}\n({len(v):,})" for group, v in by_group.items()]
    ax.set_xticks(x, names, fontsize=8)
    ax.set_xlim(-0.6, len(x) - 0.4)


_STYLES = ("-", "--", ":", "-.")


def _ecdfs(ax: Axes, by_group: Mapping[str, np.ndarray], colors: Mapping[str, str]) -> None:
    """Draw the cumulative share of each group."""
    order = {"control": ":", "predicted": "-", "real": "--"}
    for i, (group, v) in enumerate(by_group.items()):
        style = order.get(group, _STYLES[i % len(_STYLES)])
        label = f"{group} ({len(v):,} cells)"
        ax.ecdf(v, c=colors[group], ls=style, lw=1.4, label=label)
    ax.set_ylim(0, 1.02)


# -- embeddings -------------------------------------------------------------------------------------


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
        Cells with the representation in ``obsm``: z, as in ``adata.obsm["X_trvae"] =
        model.get_latent_representation()`` (predicted cells have it), or the decoder layer that the
        MMD between conditions is taken on, ``adata.obsm["X_mmd"] = model.get_mmd_representation()``.
    color
        Column or columns of ``obs``.
    basis
        Key of ``obsm``, with or without ``X_``.
    method
        ``"pca"``: first two principal components. ``"umap"``: UMAP of scanpy, which needs scanpy;
        distances between clusters mean little there. If None, two columns are taken as they are,
        and more go through ``"pca"``.
    n_neighbors, random_state
        Of UMAP, as in scanpy.

    Returns
    -------
    Rows of the cells; first the two coordinates, then `color`.

    Raises
    ------
    KeyError
        No such representation or column.
    ValueError
        Unknown method, or fewer than two columns or three cells.
    ImportError
        UMAP without scanpy.
    """
    names = [color] if isinstance(color, str) else list(color)
    missing = [name for name in names if name not in adata.obs]
    if missing:
        raise KeyError(f"No columns {missing} in obs; there are {list(adata.obs)}.")
    key = basis if basis in adata.obsm else f"X_{basis}"
    if key not in adata.obsm:
        raise KeyError(
            f"No {basis!r} in obsm; there are {list(adata.obsm)}. Set adata.obsm['X_trvae'] = "
            "model.get_latent_representation() first."
        )
    z = np.asarray(dense(adata.obsm[key]), dtype=float)
    if z.ndim != 2 or z.shape[1] < 2 or len(z) < 3:
        raise ValueError(f"obsm[{key!r}] has shape {z.shape}; give 3 cells and 2 columns, or more.")
    if method is None:
        method = "pca" if z.shape[1] > 2 else "none"
    if method == "none":
        xy, prefix = z, key.removeprefix("X_").upper()
    elif method == "pca":
        xy, prefix = PCA(2, svd_solver="full").fit_transform(z), "PC"
    elif method == "umap":
        xy, prefix = _umap(z, n_neighbors, random_state), "UMAP"
    else:
        raise ValueError(f"Unknown method {method!r}; choose 'pca', 'umap' or None.")
    frame = pd.DataFrame(xy, index=adata.obs_names, columns=[f"{prefix}1", f"{prefix}2"])
    return pd.concat([frame, adata.obs[names]], axis=1)


def _umap(z: np.ndarray, n_neighbors: int, random_state: int) -> np.ndarray:
    """Return UMAP coordinates, shape (n_cells, 2)."""
    try:
        import scanpy as sc
    except ImportError as error:
        raise ImportError(
            "method='umap' needs scanpy: pip install scanpy, or take method='pca'."
        ) from error
    cells = AnnData(obsm={"X": z})
    sc.pp.neighbors(cells, n_neighbors=n_neighbors, use_rep="X", random_state=random_state)
    sc.tl.umap(cells, random_state=random_state)
    return cells.obsm["X_umap"]


_MARKERS = ("o", "^", "s", "D")
_HUES = list(COLORS.values())


def latent(
    cells: pd.DataFrame,
    *,
    palette: Mapping[str, str] | None = None,
    size: float | None = None,
) -> Figure:
    """Cells in two dimensions, in one panel per column, such as condition and label.

    Parameters
    ----------
    cells
        Output of :func:`embedding`: two coordinates, then the columns to colour by.
    palette
        Colour by name, of any panel.
    size
        Area of a point, in square points; by the number of cells if None.

    Returns
    -------
    The Figure. Cells are drawn in random (the same) order, so that none is on top. From the eighth
    group on colours come again, with another marker.

    Raises
    ------
    ValueError
        No column to colour by, more than 28 groups, nothing to draw.
    """
    columns = list(cells.columns[2:])
    if cells.empty or not columns:
        raise ValueError(
            f"The table has {len(cells)} rows and columns {list(cells.columns)}. Give two coordinates "
            "and at least one column to colour by: the output of pl.embedding."
        )
    order = np.random.default_rng(0).permutation(len(cells))
    shuffled = cells.iloc[order]
    groups = {name: _groups(cells[name]) for name in columns}
    extra = sum(0.9 + 0.075 * max(len(group) for group in g) for g in groups.values())
    figure, axes = plt.subplots(
        1,
        len(columns),
        figsize=(3.2 * len(columns) + extra, 3.4),
        squeeze=False,
        layout="constrained",
    )
    area = float(np.clip(20000 / len(cells), 1.5, 25)) if size is None else size
    for ax, name in zip(axes.flat, columns, strict=True):
        _scatter_groups(ax, shuffled, name, groups[name], area, palette or {})
    return figure


def _groups(column: pd.Series) -> list[str]:
    """Return the groups of a column that have cells, in order; ``"missing"`` last."""
    known = column.dropna()
    names = known.cat.categories if isinstance(known.dtype, pd.CategoricalDtype) else None
    present = pd.unique(known)
    ordered = sorted(present) if names is None else [n for n in names if n in set(present)]
    limit = len(_HUES) * len(_MARKERS)
    if len(ordered) > limit:
        raise ValueError(
            f"Column {column.name!r} has {len(ordered)} groups; up to {limit} can be told apart. "
            "Give a coarser column."
        )
    return [str(n) for n in ordered] + (["missing"] if column.isna().any() else [])


def _scatter_groups(
    ax: Axes,
    cells: pd.DataFrame,
    name: str,
    groups: Sequence[str],
    area: float,
    palette: Mapping[str, str],
) -> None:
    """Draw cells in the colours and markers of their groups, with a legend."""
    rest = [g for g in groups if g != "missing"]
    colors = {g: palette.get(g, _HUES[i % len(_HUES)]) for i, g in enumerate(rest)}
    markers = {g: _MARKERS[i // len(_HUES)] for i, g in enumerate(rest)}
    colors["missing"], markers["missing"] = "#DDDDDD", "o"
    names = cells[name].astype(object).where(cells[name].notna(), "missing").astype(str)
    marker = names.map(markers)
    for shape in _MARKERS:
        part = (marker == shape).to_numpy()
        if part.any():
            x, y = cells.iloc[part, 0], cells.iloc[part, 1]
            color = names[part].map(colors).tolist()
            ax.scatter(x, y, s=area, c=color, marker=shape, lw=0, alpha=0.8, rasterized=True)
    counts = names.value_counts()
    handles = [
        Line2D([], [], ls="", marker=markers[g], c=colors[g], ms=5, label=f"{g} ({counts[g]:,})")
        for g in groups
    ]
    ax.legend(
        handles=handles, frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5)
    )
    ax.set_title(name, fontsize=9)
    ax.set_xlabel(cells.columns[0], fontsize=9)
    ax.set_ylabel(cells.columns[1], fontsize=9)
    ax.set_xticks([])
    ax.set_yticks([])
