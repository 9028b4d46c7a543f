"""Genes along a dose, or on the way from one condition to another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from trvae_sc.arguments import check_whole
from trvae_sc.checks import check_type, looks_like_counts, matrix
from trvae_sc.errors import InputError
from trvae_sc.expression import dense
from trvae_sc.levels import as_list, as_text
from trvae_sc.pl._cells import OTHER, gene_values, scale_of, unit_of
from trvae_sc.pl._finish import Save, finish
from trvae_sc.pl._style import (
    LOG_UNIT,
    UNIT,
    axes_of,
    check_columns,
    check_looks,
    drawn,
    ink,
    label_axes,
    legend_beside,
    legend_height,
    line_styles,
    lines_of,
    plain,
    unit_of_cells,
)

_SCALE = "scale"  #: key of ``attrs``: the scale of means, as far as it is known, and the genes that totals are over

# -- dose response ------------------------------------------------------------------------------------


def dose_table(
    adata: AnnData,
    var_names: str | Sequence[str],
    *,
    dose_key: str,
    labels_key: str | None = None,
    layer: str | None = None,
    target_sum: float | None = None,
    total_counts_key: str | None = None,
) -> pd.DataFrame:
    r"""Return the mean of genes in the cells of each label and dose, with its standard error.

    Parameters
    ----------
    adata, var_names
        Cells, and gene or genes.
    dose_key
        Column of ``obs`` with the dose: numbers, or text that reads as numbers.
    labels_key
        Column with the label; all cells are label ``"all"`` if None.
    layer, target_sum, total_counts_key
        How values are read, as in :func:`expression_table`.

    Returns
    -------
    One row per gene, label and dose: ``gene``, ``label``, ``dose``, ``mean``, ``sem``, the standard
    error :math:`\sqrt{v / n}` over cells (NaN for one cell; differences between samples come on top), and
    ``n_cells``. ``attrs["unit"]`` says what the means are of.

    Raises
    ------
    InputError
        A gene, layer, column or label is missing, a dose is not a number, or `target_sum` is given for
        values that are no counts.
    """
    check_type(adata)
    names = [var_names] if isinstance(var_names, str) else list(dict.fromkeys(var_names))
    missing = [key for key in (dose_key, labels_key) if key not in (None, *adata.obs)]
    if missing:
        raise InputError(f"No columns {missing} in obs; there are {list(adata.obs)}.")
    dose = _numbers(adata.obs[dose_key], f"obs[{dose_key!r}]")
    label = np.full(adata.n_obs, "all")
    if labels_key is not None:
        label = as_text(adata.obs[labels_key]).to_numpy()
    frame = gene_values(
        adata, names, layer=layer, target_sum=target_sum, total_counts_key=total_counts_key
    )
    if target_sum is not None and not looks_like_counts(matrix(adata, layer)):
        raise InputError(
            "adata holds other values than counts, whose logarithm target_sum= would take. Pass counts, or "
            "leave target_sum out."
        )
    tables = {
        gene: values.groupby([label, dose]).agg(mean="mean", sem="sem", n_cells="size")
        for gene, values in frame.items()
    }
    table = pd.concat(tables, names=["gene", "label", "dose"]).reset_index()
    table.attrs[UNIT] = unit_of(layer, target_sum)
    has_own = target_sum is not None and total_counts_key is None
    n_genes = adata.n_vars if has_own else None
    table.attrs[_SCALE] = scale_of(adata, layer, target_sum), n_genes
    return table


def _check_same_scale(observed: pd.DataFrame, predicted: pd.DataFrame) -> None:
    """Raise where means that are drawn beside each other are not on one scale, as far as the tables know."""
    (scale, n_genes), (other, n_others) = (
        t.attrs.get(_SCALE, ("", None)) for t in (observed, predicted)
    )
    are_known = "counts" in (scale, other) or OTHER not in (scale, other)
    if scale and other and scale != other and are_known:
        raise InputError(
            f"Observed means are of {scale} and predicted ones of {other}, which do not compare. Make both tables "
            "alike: of counts with the same target_sum=, or of log values."
        )
    if scale.startswith("log") and n_genes and n_others and n_genes != n_others:
        raise InputError(
            f"Total counts of observed cells are over {n_genes:,} genes and those of predicted ones over "
            f"{n_others:,}. Give total_counts_key=, or cells of the same genes."
        )


def _numbers(dose: pd.Series, where: str) -> np.ndarray:
    """Return doses as numbers, which may be text that reads as such."""
    found = pd.to_numeric(dose.astype(object), errors="coerce").to_numpy(float)
    wrong = ~np.isfinite(found)
    if wrong.any():
        raise InputError(
            f"{where} has {dose[wrong].astype(str).unique()[:5].tolist()}, which are not numbers. Give the dose "
            "of every cell, 0 for controls."
        )
    return found


def dose_response(
    observed: pd.DataFrame,
    predicted: pd.DataFrame | None = None,
    *,
    gene: str | None = None,
    log: bool = False,
    unit: str | None = None,
    dose_unit: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: Save = None,
) -> Axes | None:
    """Observed means of a gene by dose, with standard errors, and the predicted curve of each label.

    Parameters
    ----------
    observed
        Output of :func:`dose_table`: ``label``, ``dose``, ``mean``, ``sem``, and ``gene`` if there are
        several.
    predicted
        The same of predicted cells, at any doses and of any labels; ``sem`` is not needed.
    gene
        Gene to draw; may be left out if there is one.
    log
        Draw doses on a logarithmic axis, linear from 0 to the lowest positive dose.
    unit, dose_unit
        Units of mean and dose, for the axis labels; that of the mean as the table says if None.
    ax, show, save
        As in :func:`effect`.

    Returns
    -------
    The Axes.

    Raises
    ------
    InputError
        Columns or the gene are missing; tables on different scales; several genes and no choice; negative doses on a
        logarithmic axis; more than 28 labels.
    """
    check_columns(observed, ("label", "dose", "mean", "sem"), of="the output of pl.dose_table")
    unit = observed.attrs.get(UNIT, "value") if unit is None else unit
    gene, observed = _one_gene(observed, gene)
    curves = observed.iloc[:0]
    if predicted is not None:
        check_columns(predicted, ("label", "dose", "mean"), of="predicted means by label and dose")
        _check_same_scale(observed, predicted)
        gene, curves = _one_gene(predicted, gene)
    observed, curves = (t.assign(dose=_numbers(t["dose"], "dose")) for t in (observed, curves))
    doses = np.concatenate([observed["dose"], curves["dose"]])
    if log and (doses < 0).any():
        raise InputError(f"Dose {doses.min():g} is negative and has no logarithm. Use log=False.")
    names = pd.unique(pd.concat([observed["label"], curves["label"]]).astype(str))
    check_looks(len(names), f"The tables have {len(names)} labels")
    width = 4.2 + 0.4 + 0.075 * max(map(len, [*names, "observed mean", ""]))
    ax = axes_of(ax, width, max(3.3, legend_height(len(names) + 3)))
    styles = line_styles(names)
    for label, style in styles.items():
        points = observed[observed["label"].astype(str) == label].sort_values("dose")
        x, y, error = (points[name].to_numpy(float) for name in ("dose", "mean", "sem"))
        marks: Any = {"fmt": style["marker"], "ms": 4, "capsize": 2, "elinewidth": 1}
        error = np.nan_to_num(error, nan=0.0)  # of one cell there is none
        ax.errorbar(x, y, error, **marks, c=style["color"], label=plain(label))
        line = curves[curves["label"].astype(str) == label].sort_values("dose")
        look = style | {"marker": "", "label": f"{plain(label)}, predicted"}
        ax.plot(line["dose"], line["mean"], **look, lw=1.4)
    name = "dose" if dose_unit is None else f"dose ({plain(dose_unit)})"
    label_axes(ax, name, f"mean {plain(unit)}")
    if gene is not None:
        ax.set_title(plain(gene), fontsize=9)
    _dose_legend(ax, styles, with_curves=len(curves) > 0)
    if log:
        _log_axis(ax, np.unique(observed["dose"].to_numpy(float)), doses)
    return finish(ax, "dose_response", show=show, save=save)


def _dose_legend(ax: Axes, styles: Mapping[str, dict[str, Any]], *, with_curves: bool) -> None:
    """Draw the legend: labels by colour and shape, what is observed and what is predicted by mark."""
    dots: Any = {"markersize": 4, "linestyle": ""}
    mark = {"markersize": 4} if with_curves else dots
    handles = [Line2D([], [], **style | mark, label=plain(k)) for k, style in styles.items()]
    text = "observed mean\n\u00b1 standard error"
    handles.append(Line2D([], [], **dots, marker="o", c=ink(), label=text))
    if with_curves:
        handles.append(Line2D([], [], c=ink(), label="predicted mean"))
    legend_beside(ax, handles)


def _one_gene(table: pd.DataFrame, gene: str | None) -> tuple[str | None, pd.DataFrame]:
    """Return the gene to draw and its rows."""
    if "gene" not in table:
        return gene, table
    genes = table["gene"].astype(str).unique().tolist()
    if gene is None and len(genes) > 1:
        raise InputError(f"The table has the genes {genes}. Choose one with gene=...")
    gene = genes[0] if gene is None else gene
    if gene not in genes:
        raise InputError(f"No gene {gene!r} in the table; there are {genes}.")
    return gene, table[table["gene"].astype(str) == gene]


def _log_axis(ax: Axes, observed: np.ndarray, doses: np.ndarray) -> None:
    """Make the axis of doses logarithmic, with those observed as ticks if they are few."""
    if not doses.any():
        return
    lowest = doses[doses > 0].min()
    if (doses == 0).any():
        ax.set_xscale("symlog", linthresh=lowest, linscale=0.5)
    else:
        ax.set_xscale("log")
    if len(observed) <= 8:
        ax.set_xticks(observed, _tick_names(ax, observed))
        ax.set_xticks([], minor=True)


def _tick_names(ax: Axes, doses: np.ndarray) -> list[str]:
    """Return the names of rising doses as ticks; empty where there is no room beside the last one."""
    drawn(ax)
    at = ax.transData.transform(np.column_stack([doses, np.ones(len(doses))]))[:, 0]
    names, end = [], -np.inf
    for x, name in zip(at, [f"{dose:g}" for dose in doses], strict=True):
        half = (2.6 * len(name) + 1.5) * ax.figure.dpi / 72  # of a name in 8 points, with a gap
        names.append(name if x - half > end else "")
        end = x + half if names[-1] else end
    return names


# -- interpolation ------------------------------------------------------------------------------------


def interpolation_means(adata: AnnData, *, fraction_key: str = "fraction") -> pd.DataFrame:
    """Return the mean expression at every step of an interpolation.

    Parameters
    ----------
    adata
        Cells on the way, as :func:`trvae_sc.family.interpolate` returns them.
    fraction_key
        Column of ``obs`` with the share of the way, 0 (source) to 1 (target).

    Returns
    -------
    Steps, rising, x genes: means of ``X``. ``attrs["unit"]`` says what they are of.

    Raises
    ------
    InputError
        There is no such column.
    """
    check_type(adata)
    if fraction_key not in adata.obs:
        raise InputError(f"No column {fraction_key!r} in obs; there are {list(adata.obs)}.")
    values = pd.DataFrame(dense(adata.X), columns=adata.var_names)
    table = values.groupby(adata.obs[fraction_key].to_numpy()).mean()
    table.attrs[UNIT] = unit_of_cells(adata)
    return table


def interpolation_table(
    means: pd.DataFrame | AnnData, *, var_names: str | Sequence[str] | None = None, n_genes: int = 7
) -> pd.DataFrame:
    """Return the genes to draw along an interpolation, highest at its end first.

    Parameters
    ----------
    means
        Mean expression, steps x genes; the index is the share of the way from source (0) to target (1).
        Or cells, of which :func:`interpolation_means` are taken.
    var_names, n_genes
        Genes to take. If None, so many of largest absolute change from the first step to the last.

    Returns
    -------
    Steps, rising, x genes.

    Raises
    ------
    InputError
        A gene is missing; fewer than two steps, or steps that are not numbers or not unique.
    """
    if not isinstance(means, pd.DataFrame):
        means = interpolation_means(means)
    numeric = pd.api.types.is_numeric_dtype(means.index)
    if len(means) < 2 or not numeric or means.index.has_duplicates or means.index.hasnans:
        raise InputError(
            f"The index of steps is {means.index.tolist()[:5]}; give two or more different numbers from "
            "0 (source) to 1 (target)."
        )
    table = means.sort_index()
    if var_names is None:
        check_whole("n_genes", n_genes)
        change = (table.iloc[-1] - table.iloc[0]).abs().to_numpy()
        table = table.iloc[:, np.argsort(-change, kind="stable")[:n_genes]]
    else:
        chosen = list(dict.fromkeys(as_list(var_names)))
        missing = [name for name in chosen if name not in table]
        if missing:
            raise InputError(f"No genes {missing} in the table of {table.shape[1]:,} genes.")
        table = table[chosen]
    if not table.shape[1]:
        raise InputError("There are no genes to draw. Give means of one gene at least.")
    return table.iloc[:, np.argsort(-table.iloc[-1].to_numpy(), kind="stable")]


def interpolation(
    means: pd.DataFrame | AnnData,
    *,
    var_names: str | Sequence[str] | None = None,
    n_genes: int = 7,
    source: str = "source",
    target: str = "target",
    unit: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: Save = None,
) -> Axes | None:
    """Mean expression of genes on the way from source to target.

    Parameters
    ----------
    means, var_names, n_genes
        As in :func:`interpolation_table`.
    source, target, unit
        Names of the conditions, and what the means are of, for the axis labels. If `unit` is None, what the
        record of the cells says, else "value"; of a table ``attrs["unit"]``, else log(1 + normalised count).
    ax, show, save
        As in :func:`effect`.

    Returns
    -------
    The Axes; the legend has the order of the lines at the target.

    Raises
    ------
    InputError
        As in :func:`interpolation_table`; more than 28 genes.
    """
    means = means if isinstance(means, pd.DataFrame) else interpolation_means(means)
    table = interpolation_table(means, var_names=var_names, n_genes=n_genes)
    unit = means.attrs.get(UNIT, LOG_UNIT) if unit is None else unit
    gap = "\n" if len(source + target) > 25 else " "
    way = f"share of the way from {plain(source)} (0){gap}to {plain(target)} (1)"
    ax = lines_of(table, ax, way, f"mean {plain(unit)}")
    return finish(ax, "interpolation", show=show, save=save)
