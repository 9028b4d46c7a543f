"""Distributions of genes in groups of cells."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trvae_sc.alignment import columns_of
from trvae_sc.arguments import check_whole
from trvae_sc.checks import RECORD, check_type, layer_names, looks_like_counts, matrix
from trvae_sc.errors import InputError
from trvae_sc.expression import Keys, dense, log_values, values
from trvae_sc.levels import as_text
from trvae_sc.pl._finish import Save, finish
from trvae_sc.pl._style import (
    LOG_UNIT,
    OTHERS,
    STYLES,
    UNIT,
    check_columns,
    check_looks,
    group_colors,
    plain,
    turn_names,
)


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
        ``predicted.uns["trvae_sc"]["kappa"]`` is the scale of a model.
    total_counts_key
        Column of ``obs`` with the cells' total counts; their sum over the genes if None.

    Returns
    -------
    Columns ``gene``, ``group``, ``value``, in the order of `var_names` and `groups`; ``attrs["unit"]``
    says what the values are.

    Raises
    ------
    InputError
        A gene, layer or column is missing from a group, or some groups hold counts and others do not.
        No groups, cells or genes, names of genes that are not unique, `target_sum` for values that are no
        counts, or, without totals, for groups of other genes.
    """
    if not isinstance(groups, Mapping):
        raise InputError(
            f"groups is a {type(groups).__name__}; name each: {{'control': ..., 'predicted': ..., 'real': ...}}."
        )
    for cells in groups.values():
        check_type(cells)
    names = [var_names] if isinstance(var_names, str) else list(dict.fromkeys(var_names))
    empty = [group for group, cells in groups.items() if not cells.n_obs]
    if empty:
        raise InputError(f"Groups {empty} have no cells. Leave them out.")
    if not names or not groups:
        raise InputError(f"Give groups of cells and genes, at least one of each, not {names}.")
    genes = {frozenset(cells.var_names) for cells in groups.values()}
    if target_sum is not None and total_counts_key is None and len(genes) > 1:
        found = {group: cells.n_vars for group, cells in groups.items()}
        raise InputError(
            f"The groups have different genes (numbers: {found}), so their total counts do not "
            "compare. Give total_counts_key, or cells of the same genes."
        )
    options: Any = {"layer": layer, "target_sum": target_sum, "total_counts_key": total_counts_key}
    frames = {group: gene_values(cells, names, **options) for group, cells in groups.items()}
    _check_same_scale(groups, layer, target_sum)
    parts = [
        pd.DataFrame({"gene": gene, "group": str(group), "value": frame[gene].to_numpy()})
        for gene in names
        for group, frame in frames.items()
    ]
    table = pd.concat(parts, ignore_index=True)
    table.attrs[UNIT] = unit_of(layer, target_sum)
    return table


def unit_of(layer: str | None, target_sum: float | None) -> str:
    """Return what values are, for axis labels."""
    if target_sum is not None:
        return LOG_UNIT
    return "value in X" if layer is None else f"value in layer '{layer}'"


OTHER = "other values"  #: scale that is not known: no counts, maybe their logarithm


def scale_of(adata: AnnData, layer: str | None, target_sum: float | None) -> str:
    """Return the scale of values as far as it is known: counts, their logarithm, or other values."""
    if target_sum is None and looks_like_counts(matrix(adata, layer), adata.n_obs):
        return "counts"
    record = adata.uns.get(RECORD, {})
    if target_sum is None and layer is None and str(record.get("scale", "")).startswith("log"):
        target_sum = float(record.get("kappa", 1.0))
    return OTHER if target_sum is None else f"log(1 + {target_sum:.5g} x share)"


def _check_same_scale(
    groups: Mapping[str, AnnData], layer: str | None, target_sum: float | None
) -> None:
    """Raise where values of several scales would be drawn beside each other."""
    counts = [g for g, cells in groups.items() if looks_like_counts(matrix(cells, layer))]
    others = [g for g in groups if g not in counts]
    if others and target_sum is not None:
        raise InputError(
            f"Groups {others} hold other values than counts, whose logarithm target_sum= would take. Pass counts "
            "(predict(output='counts')), or leave target_sum out."
        )
    if counts and others:
        raise InputError(
            f"Groups {counts} hold counts and {others} other values, which do not compare. Give all on one scale: "
            "counts (predict(output='counts')) or log values of all."
        )
    scales = {group: _scale_of(cells, layer) for group, cells in groups.items()}
    if others and len(set(scales.values())) > 1:
        told = "; ".join(f"{group}: {scale or 'not told'}" for group, scale in scales.items())
        warnings.warn(
            f"Groups may be on different scales ({told}). Counts of all with target_sum=kappa are on one.",
            UserWarning,
            stacklevel=3,
        )


def _scale_of(cells: AnnData, layer: str | None) -> str:
    """Return the scale that a prediction says its values are on; nothing of other cells, and of values."""
    record = cells.uns.get(RECORD, {})
    scale = str(record.get("scale", ""))
    if layer is not None or not scale.startswith("log"):
        return ""
    return f"{scale} with kappa {float(record.get('kappa', 1.0)):.5g}"


def gene_values(
    adata: AnnData,
    names: Sequence[str],
    *,
    layer: str | None = None,
    target_sum: float | None = None,
    total_counts_key: str | None = None,
) -> pd.DataFrame:
    """Return cells x genes of an AnnData; see :func:`expression_table`."""
    if not names:
        raise InputError("var_names is empty: name a gene or several.")
    missing = [name for name in names if name not in adata.var_names]
    if missing:
        raise InputError(
            f"Genes {missing} are not in var_names, such as {list(adata.var_names[:3])}."
        )
    if layer is not None and layer not in layer_names(adata):
        raise InputError(f"No layer {layer!r}; there are {layer_names(adata)}.")
    if target_sum is not None and total_counts_key not in (None, *adata.obs):
        raise InputError(f"No column {total_counts_key!r} in obs; there are {list(adata.obs)}.")
    if not adata.var_names.is_unique:
        raise InputError("var_names are not unique. Call adata.var_names_make_unique() first.")
    keys = Keys("", layer=layer, total_counts_key=total_counts_key)
    x = values(adata, keys) if target_sum is None else log_values(adata, keys, target_sum)
    chosen = columns_of(x, adata.var_names.get_indexer(list(names)))
    return pd.DataFrame(dense(chosen), index=adata.obs_names, columns=list(names))


def gene_distribution(
    cells: pd.DataFrame,
    *,
    kind: Literal["violin", "ecdf"] = "violin",
    palette: Mapping[str, str] | None = None,
    ncols: int = 4,
    unit: str | None = None,
    show: bool | None = None,
    save: Save = None,
) -> list[Axes] | None:
    """Distribution of genes in groups of cells, such as control, predicted and real.

    Parameters
    ----------
    cells
        Output of :func:`expression_table`.
    kind
        ``"violin"``: density of the values, with the mean as a point. ``"ecdf"``: share of cells up
        to each value.
    palette
        Colour by group; ``control``, ``predicted`` and ``real`` have theirs.
    ncols
        Panels per row.
    unit
        What the values are, for the axis labels; as the table says if None.
    show, save
        As in :func:`effect`.

    Returns
    -------
    The Axes, one a gene. Numbers of cells are printed with the groups.

    Raises
    ------
    InputError
        Columns are missing, unknown `kind`, values that are not finite, nothing to draw, ``"ecdf"`` of more than 16
        groups without a colour of their own.
    """
    check_columns(cells, ("gene", "group", "value"), of="the output of pl.expression_table")
    if kind not in ("violin", "ecdf"):
        raise InputError(f"Unknown kind {kind!r}; choose 'violin' or 'ecdf'.")
    if not np.isfinite(cells["value"]).all():
        genes = cells.loc[~np.isfinite(cells["value"]), "gene"].unique().tolist()
        raise InputError(f"Genes {genes} have values that are not finite. Remove those cells.")
    cells = cells.assign(group=as_text(cells["group"]))
    genes, groups = cells["gene"].unique(), cells["group"].unique()
    colors = group_colors(groups, palette)
    check_whole("ncols", ncols)
    if kind == "ecdf":
        n_others = sum(color in OTHERS for color in colors.values())
        check_looks(n_others, f"There are {n_others} groups", len(OTHERS) * len(STYLES))
    n_columns = min(ncols, len(genes))
    figure, axes, n_names = _panels(-(-len(genes) // n_columns), n_columns, kind, groups)
    for ax, gene in zip(axes.flat, genes, strict=False):
        part = cells[cells["gene"] == gene]
        by_group = {g: v.to_numpy(float) for g, v in part.groupby("group", sort=False)["value"]}
        (_violins if kind == "violin" else _ecdfs)(ax, by_group, colors)
        ax.set_title(plain(gene), fontsize=9)
        ax.tick_params(labelsize=8)
    for ax in axes.flat[len(genes) :]:
        ax.remove()
    unit = plain(cells.attrs.get(UNIT, "value") if unit is None else unit)
    if kind == "violin":
        figure.supylabel(unit, fontsize=9)
        figure.supxlabel("group (number of cells); point: mean", fontsize=8)
        return finish(figure.axes, "gene_distribution", show=show, save=save)
    figure.supxlabel(unit, fontsize=9)
    figure.supylabel("share of cells", fontsize=9)
    lines = {line.get_label(): line for ax in figure.axes for line in ax.lines}
    place: Any = {"loc": "outside upper center", "ncols": min(n_names, len(lines))}
    figure.legend(list(lines.values()), [*map(str, lines)], **place, frameon=False, fontsize=8)
    return finish(figure.axes, "gene_distribution", show=show, save=save)


def _panels(
    n_rows: int, n_columns: int, kind: str, groups: Sequence[str]
) -> tuple[Figure, np.ndarray, int]:
    """Return a figure with room for groups side by side (violins), or for their legend, and its columns."""
    letters, n_names = max(map(len, groups)), n_columns
    if kind == "violin":
        names = 0.045 * max(letters - 10, 0)  # below each panel, with numbers of cells
        width = 0.7 + max(max(0.75 * len(groups), 1.6) * n_columns, 2.2) + names
        size = (width, 0.5 + (2.2 + names) * n_rows)
    else:
        name = 1.2 + 0.07 * letters
        width = 0.7 + max(2.3 * n_columns, 2.6, name)
        n_names = min(n_columns, max(int(width // name), 1))
        size = (width, 0.6 + 0.18 * -(-len(groups) // n_names) + 2.2 * n_rows)
    panels = plt.subplots(n_rows, n_columns, figsize=size, squeeze=False, layout="constrained")
    return (*panels, n_names)


def _violins(ax: Axes, by_group: Mapping[str, np.ndarray], colors: Mapping[str, str]) -> None:
    """Draw a violin and the mean of each group."""
    x = np.arange(len(by_group))
    parts = ax.violinplot(list(by_group.values()), positions=x, widths=0.85, showextrema=False)
    bodies: Any = parts["bodies"]
    for body, group in zip(bodies, by_group, strict=True):
        body.set(facecolor=colors[group], alpha=0.75, linewidth=0)
    ax.scatter(x, [v.mean() for v in by_group.values()], s=16, c="k", zorder=3, label="mean")
    is_long = max(map(len, by_group)) > 11
    gap = " " if is_long else "\n"
    names = [f"{plain(group)}{gap}({len(v):,})" for group, v in by_group.items()]
    ax.set_xticks(x, names, fontsize=8)
    if is_long:
        turn_names(ax)
    ax.set_xlim(-0.6, len(x) - 0.4)


def _ecdfs(ax: Axes, by_group: Mapping[str, np.ndarray], colors: Mapping[str, str]) -> None:
    """Draw the cumulative share of each group."""
    order = {"control": ":", "predicted": "-", "real": "--"}
    rest = [group for group in by_group if group not in order]
    for group, v in by_group.items():
        i = rest.index(group) if group in rest else 0
        style = order.get(group, STYLES[(i + i // len(STYLES)) % len(STYLES)])  # colours come again
        label = f"{plain(group)} ({len(v):,} cells)"
        ax.ecdf(v, c=colors[group], ls=style, lw=1.4, label=label)
    ax.set_ylim(0, 1.02)
