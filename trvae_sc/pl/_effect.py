"""Predicted against real: means and changes of genes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes

from trvae_sc import metrics
from trvae_sc.arguments import check_number, check_whole
from trvae_sc.errors import InputError
from trvae_sc.evaluation import Comparison
from trvae_sc.pl._finish import Save, finish
from trvae_sc.pl._sources import Predicted, color_of, gene_table, gene_tables
from trvae_sc.pl._style import (
    COLORS,
    LOG_UNIT,
    PALE,
    arrows,
    axes_of,
    check_columns,
    check_finite,
    ink,
    label_axes,
    legend_below,
    name_points,
    names_width,
    number,
    plain,
    titled,
    to_name,
    turn_names,
)


def effect(
    predicted: Predicted,
    truth: AnnData | None = None,
    control: AnnData | None = None,
    *,
    label: Any = None,
    n_top: int = 100,
    n_labels: int = 8,
    unit: str = LOG_UNIT,
    ax: Axes | None = None,
    show: bool | None = None,
    save: Save = None,
) -> Axes | None:
    """Predicted against real change of each gene.

    Parameters
    ----------
    predicted, truth, control, label
        Predicted and measured cells as for :func:`trvae_sc.compare`, of one label. Or, alone, what that
        returned, or a table of genes (:func:`trvae_sc.evaluation.gene_table`).
    n_top
        Number of top genes, those that change most clearly (first in the table), drawn in the colour of the
        method; statistics are over these.
    n_labels
        Number of genes named, largest change first, rising and falling ones.
    unit
        Unit of the means, for the axis labels.
    ax, show, save
        Axes to draw on; show the figure and return None; save it, as in scanpy: True or an ending of the
        file's name; or a Path.

    Returns
    -------
    The Axes. Predictions far outside of the range of real changes are arrows, with their value.

    Raises
    ------
    InputError
        As for :func:`trvae_sc.compare`; several labels and no choice.

    Examples
    --------
    >>> predicted = model.predict(target="stimulated", labels="NK")
    >>> ax = trvae_sc.pl.effect(predicted, adata)
    """
    check_whole("n_top", n_top)
    check_whole("n_labels", n_labels, 0)
    genes, name = gene_table(predicted, truth, control, label)
    check_columns(genes, _CHANGES, of="predicted and measured cells, or evaluation.gene_table")
    check_finite(genes, _CHANGES)
    ax = axes_of(ax, 4.4, 4.6)
    top, rest = genes.iloc[:n_top], genes.iloc[n_top:]
    color = color_of(predicted)
    _lines_of_equal(ax, genes)
    x, y = (top[column].to_numpy(float) for column in _CHANGES)
    style: Any = {"s": 6, "c": PALE, "lw": 0, "label": "other genes"}
    ax.scatter(rest["real_change"], rest["predicted_change"], **style)
    ax.scatter(x, y, s=14, c=color, lw=0, label=f"top {len(top):,} genes")
    ax.set_title(_effect_title(x, y, name), fontsize=9)
    label_axes(ax, f"real change of mean {unit}", f"predicted change of mean {unit}")
    ax.margins(x=0.18)  # room for names
    legend_below(ax)
    arrows(ax, "y", np.column_stack([x, y]), color)
    named = to_name(x, n_labels)
    xy = np.column_stack([x, np.clip(y, *ax.get_ylim())])
    name_points(ax, top.index[named], xy[named], avoid=xy)
    return finish(ax, "effect", show=show, save=save)


_CHANGES = ["real_change", "predicted_change"]


def _lines_of_equal(ax: Axes, genes: pd.DataFrame) -> None:
    """Draw zero and equal changes, and limit the axis up to half the range beyond the real changes."""
    real, predicted = (genes[column].to_numpy(float) for column in _CHANGES)
    low, high = min(real.min(), 0.0), max(real.max(), 0.0)
    room = 0.5 * (high - low) or 1.0
    ends = np.clip([predicted.min(), predicted.max()], low - room, high + room)
    low, high = min(low, ends[0]), max(high, ends[1])
    edge = 0.05 * (high - low or room)
    ax.set_ylim(low - edge, high + edge)
    ax.plot([low, high], [low, high], c=ink(), lw=0.8, ls=":", zorder=0, label="equal")
    ax.axhline(0, c=ink(), lw=0.5, zorder=0)
    ax.axvline(0, c=ink(), lw=0.5, zorder=0)


def _effect_title(real: np.ndarray, predicted: np.ndarray, label: str) -> str:
    """Return R2 and r of changes, after the label if it is known."""
    r2 = 1 - np.square(predicted - real).sum() / np.square(real).sum() if real.any() else np.nan
    r = np.corrcoef(real, predicted)[0, 1] if np.ptp(real) and np.ptp(predicted) else np.nan
    return titled(label, f"effect R2 = {number(r2)} (no change: 0), r = {number(r)}")


_MEANS = ("control_mean", "real_mean", "predicted_mean")


def mean_table(genes: pd.DataFrame, *, n_top: int = 100) -> pd.DataFrame:
    """Return the squared correlation of means of the prediction and of no change.

    Parameters
    ----------
    genes
        Output of :func:`trvae_sc.evaluation.gene_table`: genes that change most come first.
    n_top
        Number of genes that count as those that change most.

    Returns
    -------
    Rows ``"all"`` and ``"top"``; columns ``n_genes``, ``predicted`` and ``no_change``: the squared correlation
    with the real means (:func:`trvae_sc.metrics.r2_mean`), NaN where these are all equal.

    Raises
    ------
    InputError
        Means are missing.
    """
    check_whole("n_top", n_top)
    check_columns(genes, _MEANS, of="the output of evaluation.gene_table")
    check_finite(genes, _MEANS)
    rows = {}
    for name, part in (("all", genes), ("top", genes.iloc[:n_top])):
        real, scores = part["real_mean"].to_numpy(float), {}
        for what, column in (("predicted", "predicted_mean"), ("no_change", "control_mean")):
            guess = part[column].to_numpy(float)
            scores[what] = metrics.r2_mean(real[None], guess[None]) if np.ptp(real) else np.nan
        rows[name] = {"n_genes": len(part), **scores}
    return pd.DataFrame.from_dict(rows, orient="index")


def mean_correlation(
    predicted: Predicted,
    truth: AnnData | None = None,
    control: AnnData | None = None,
    *,
    label: Any = None,
    n_top: int = 100,
    n_labels: int = 8,
    unit: str = LOG_UNIT,
    ax: Axes | None = None,
    show: bool | None = None,
    save: Save = None,
) -> Axes | None:
    """Predicted against real mean of each gene, with the squared correlation that no change would reach.

    A correlation can be high far from the line of equal means: how large changes are is in
    :func:`effect`.

    Parameters
    ----------
    predicted, truth, control, label, n_labels, unit, ax, show, save
        As in :func:`effect`.
    n_top
        Number of genes that change most, drawn in colour, and as open circles where they would be
        without any change.

    Returns
    -------
    The Axes. The title has the numbers of :func:`mean_table`.

    Raises
    ------
    InputError
        Means are missing, or as in :func:`effect`.
    """
    check_whole("n_top", n_top)
    check_whole("n_labels", n_labels, 0)
    genes, name = gene_table(predicted, truth, control, label)
    scores = mean_table(genes, n_top=n_top)
    ax = axes_of(ax, 5.2, 4.9)  # of the title
    top, rest = genes.iloc[:n_top], genes.iloc[n_top:]
    if len(rest):
        style: Any = {"s": 6, "c": PALE, "lw": 0, "label": "other genes"}
        ax.scatter(rest["real_mean"], rest["predicted_mean"], **style)
    style = {"s": 14, "facecolors": "none", "edgecolors": COLORS["grey"], "lw": 0.7}
    text = f"top {len(top):,} genes"
    ax.scatter(top["real_mean"], top["control_mean"], **style, label=f"{text}, control")
    style = {"s": 14, "c": color_of(predicted), "lw": 0, "label": f"{text}, predicted"}
    ax.scatter(top["real_mean"], top["predicted_mean"], **style)
    ends = [genes[list(_MEANS)].min().min(), genes[list(_MEANS)].max().max()]
    ax.plot(ends, ends, c=ink(), lw=0.8, ls=":", zorder=0, label="equal")
    title = _mean_title(scores)
    ax.set_title(f"{plain(name)}\n{title}" if name else title, fontsize=9)
    label_axes(ax, f"real mean {unit}", f"predicted mean {unit}")
    legend_below(ax)
    xy = top[["real_mean", "predicted_mean"]].to_numpy()
    before = top[["real_mean", "control_mean"]].to_numpy()
    named = to_name(before[:, 0] - before[:, 1], n_labels)
    name_points(ax, top.index[named], xy[named], avoid=np.concatenate([xy, before]))
    return finish(ax, "mean_correlation", show=show, save=save)


def _mean_title(scores: pd.DataFrame) -> str:
    """Return squared correlations, over the genes that change most too if they are not all."""
    words = {"all": "all genes", "top": f"top {scores.loc['top', 'n_genes']:,.0f}"}
    shown = scores if scores["n_genes"].nunique() > 1 else scores.loc[["all"]]
    return "\n".join(
        f"{words[name]}: squared correlation of means {number(row['predicted'])} (no change "
        f"{number(row['no_change'])})"
        for name, row in shown.iterrows()
    )


def effect_table(
    tables: Mapping[str, pd.DataFrame],
    *,
    var_names: str | Sequence[str] | None = None,
    n_genes: int = 20,
) -> pd.DataFrame:
    """Return real and predicted changes of some genes in several labels, side by side.

    Parameters
    ----------
    tables
        Output of :func:`trvae_sc.evaluation.gene_table` by label. Its genes may differ.
    var_names, n_genes
        Gene or genes to take, in this order. If None, the `n_genes` of largest absolute real change in any
        label, of those that all labels have, sorted by real change (mean over labels), rising first.

    Returns
    -------
    Genes x (``what``, ``label``) with ``what`` = ``real``, ``predicted`` and ``difference``
    (predicted less real).

    Raises
    ------
    InputError
        Changes are missing from a table, or genes from some label; no tables, no common genes, or a gene
        that is in a table twice.
    """
    check_whole("n_genes", n_genes)
    if not isinstance(tables, Mapping):
        raise InputError(
            f"Changes are drawn beside real ones, and this is a {type(tables).__name__}. Give predicted and "
            "measured cells, what trvae_sc.compare returned, or tables of evaluation.gene_table by label."
        )
    if not tables:
        raise InputError("There are no labels to draw. Give tables by label, at least one.")
    for label, table in tables.items():
        check_columns(table, _CHANGES, of=f"the output of evaluation.gene_table for {label!r}")
        if table.index.has_duplicates:
            twice = table.index[table.index.duplicated()].unique()[:3].tolist()
            raise InputError(f"Genes {twice} of {label!r} are not unique. Rename them first.")
    if var_names is None:
        chosen = _largest(tables, n_genes)
    else:
        chosen = [var_names] if isinstance(var_names, str) else list(dict.fromkeys(var_names))
    if not chosen:
        raise InputError(
            "var_names is empty: name a gene or several, or None for those that change."
        )
    for label, table in tables.items():
        missing = [gene for gene in chosen if gene not in table.index]
        if missing:
            raise InputError(f"Genes {missing} are not in the table of {label!r}. Leave them out.")
        check_finite(table.loc[chosen], _CHANGES)
    real, predicted = (
        pd.DataFrame({label: table.loc[chosen, name] for label, table in tables.items()})
        for name in _CHANGES
    )
    parts = {"real": real, "predicted": predicted, "difference": predicted - real}
    return pd.concat(parts, axis=1, names=["what", "label"])


def _largest(tables: Mapping[str, pd.DataFrame], n_genes: int) -> list[str]:
    """Return the genes of largest real change that all tables have, rising first."""
    real = pd.concat({label: t["real_change"] for label, t in tables.items()}, axis=1, join="inner")
    if real.empty:
        raise InputError(
            f"The tables of {list(tables)} have no gene in common. Give tables of the same genes."
        )
    largest = real.abs().max(axis=1).sort_values(ascending=False, kind="stable").index[:n_genes]
    return real.loc[largest].mean(axis=1).sort_values(ascending=False, kind="stable").index.tolist()


def effect_heatmap(
    tables: Mapping[str, pd.DataFrame] | Comparison | AnnData,
    truth: AnnData | None = None,
    control: AnnData | None = None,
    *,
    var_names: str | Sequence[str] | None = None,
    n_genes: int = 20,
    vmax: float | None = None,
    cmap: str = "RdBu_r",
    unit: str = LOG_UNIT,
    show: bool | None = None,
    save: Save = None,
) -> list[Axes] | None:
    """Real and predicted changes of genes x labels, and their difference.

    Parameters
    ----------
    tables, var_names, n_genes
        As in :func:`effect_table`; in place of tables a comparison (:func:`trvae_sc.compare`), or
        predicted cells of several labels.
    truth, control
        Measured cells, as for :func:`trvae_sc.compare`, with predicted ones.
    vmax
        Change at the ends of the colours. If None, the absolute value that 98 % do not exceed.
    cmap
        Diverging colour map.
    unit, show, save
        As in :func:`effect`.

    Returns
    -------
    The Axes of the three panels, which share one colour bar.

    Raises
    ------
    InputError
        As in :func:`effect_table`.
    """
    if isinstance(tables, AnnData | Comparison):
        tables = gene_tables(tables, truth, control, None)
    if vmax is not None:
        check_number("vmax", vmax, 0.0)
    table = effect_table(tables, var_names=var_names, n_genes=n_genes)
    sizes = np.abs(table.to_numpy())
    limit = vmax or float(np.nanquantile(sizes, 0.98)) or 1.0
    labels = [plain(label) for label in tables]
    more = max(max(map(len, labels)) - 14, 0)  # letters, of names that are turned
    width = 2.6 + 3 * max(0.26 * len(labels), 0.8) + names_width(map(str, table.index)) + 0.1 * more
    size = (width, max(1.6 + 0.17 * len(table), 3.4) + 0.055 * more)
    figure, axes = plt.subplots(1, 3, figsize=size, sharey=True, layout="constrained")
    titles = {"real": "real", "predicted": "predicted", "difference": "predicted\n\u2212 real"}
    for ax, (what, title) in zip(axes, titles.items(), strict=True):
        values = table[what].to_numpy()
        image = ax.imshow(values, cmap=cmap, vmin=-limit, vmax=limit, aspect="auto")
        ax.set_title(title, fontsize=9)
        ax.set_xticks(range(len(labels)), labels, fontsize=8)
        turn_names(ax, 60)
        ax.tick_params(length=0)
        ax.grid(visible=False)
        ax.spines[:].set_visible(False)
    axes[0].set_yticks(range(len(table)), [plain(gene) for gene in table.index], fontsize=7)
    extend = "both" if np.nanmax(sizes) > limit else "neither"
    bar = figure.colorbar(image, ax=axes, aspect=30, pad=0.02, extend=extend)
    bar.set_label(f"change of mean {unit}", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return finish(list(axes), "effect_heatmap", show=show, save=save)
