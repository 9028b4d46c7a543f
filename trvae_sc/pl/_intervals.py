"""Intervals and p-values of predicted changes: how often they hold, and which genes change by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike
from scipy import stats

from trvae_sc import metrics
from trvae_sc.arguments import check_whole
from trvae_sc.checks import RECORD
from trvae_sc.errors import InputError
from trvae_sc.evaluation import Results
from trvae_sc.evaluation._holdouts import TASK
from trvae_sc.evaluation._scores import BOUNDS
from trvae_sc.intervals import LEVEL
from trvae_sc.levels import level_name, listing
from trvae_sc.pl._finish import Save, finish
from trvae_sc.pl._style import (
    COLORS,
    LOG_UNIT,
    PALE,
    axes_of,
    check_bounds,
    check_columns,
    check_finite,
    ink,
    label_axes,
    legend_below,
    legend_beside,
    legend_height,
    line_styles,
    name_points,
    plain,
    titled,
    to_name,
)

_LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


def calibration_table(
    genes: pd.DataFrame,
    *,
    level: float = LEVEL,
    half_widths: Mapping[float, ArrayLike] | None = None,
    n_labels: int | None = None,
    levels: Sequence[float] = _LEVELS,
) -> pd.DataFrame:
    r"""Return the share of genes whose real change is in the interval, by level of the interval.

    A prediction stores one interval per gene, of half-width :math:`h_g(p_0)` at level :math:`p_0` = `level`.
    Other levels p need `half_widths` (exact) or the number L of labels, an approximation by Student's t that
    is right if residuals of labels are normal:

    .. math:: h_g(p) = h_g(p_0)\,\frac{t_L^{-1}((1 + p) / 2)}{t_L^{-1}((1 + p_0) / 2)}

    Those of real data have heavier tails: on Kang et al. 2018 without stimulated NK cells (7 labels) the
    exact factor from level 0.9 to 0.5 is 0.28 and the approximate one 0.38, to 0.99 2.3 and 1.8. Genes are
    not independent, so coverage scatters between labels more than their number suggests: show several.

    Parameters
    ----------
    genes
        Columns ``real_change``, ``change_lower`` and ``change_upper`` on one scale: output of
        :func:`trvae_sc.evaluation.interval_table`.
    level
        Level of the intervals in `genes`, between 0 and 1.
    half_widths
        Half-widths by level (:func:`trvae_sc.intervals.half_width`), shape (n_genes,) each.
    n_labels
        Number of labels that the intervals were learned from, ``n_labels_with_both`` in
        ``predicted.uns["trvae_sc"]["combinations"]``.
    levels
        Levels that `n_labels` extends to.

    Returns
    -------
    Rows by rising level: ``level``, ``coverage`` (0 to 1, best at the level), ``n_genes`` and
    ``scaled``, whether the interval was approximated with `n_labels`.

    Raises
    ------
    InputError
        Columns are missing, a gene has no interval, levels outside 0 to 1, both ways to other levels,
        half-widths that are negative or not one per gene.
    """
    check_columns(genes, ("real_change", *BOUNDS), of="the output of evaluation.interval_table")
    check_bounds(genes)
    if half_widths is not None and n_labels is not None:
        raise InputError("Give half_widths (exact) or n_labels (approximate), not both.")
    wrong = [p for p in (level, *levels, *(half_widths or ())) if not 0 < p < 1]
    if wrong:
        raise InputError(f"Levels {wrong} are not between 0 and 1, such as 0.9.")
    lower, upper = (genes[name].to_numpy(float) for name in BOUNDS)
    centre, half = (upper + lower) / 2, (upper - lower) / 2
    widths = {level: (half, False)}
    for p, given in (half_widths or {}).items():
        width = np.asarray(given, dtype=float)
        if width.shape != (len(genes),) or not (width >= 0).all():
            raise InputError(
                f"half_widths[{p}] has shape {width.shape}, and must be ({len(genes)},) without "
                "negative values or NaN."
            )
        widths[p] = (width, False)
    if n_labels is not None:
        if n_labels < 1:
            raise InputError(f"n_labels is {n_labels}; at least 1 is needed.")
        t = stats.t(n_labels)
        for p in levels:
            widths.setdefault(p, (half * t.ppf((1 + p) / 2) / t.ppf((1 + level) / 2), True))
    rows = []
    for p in sorted(widths):
        h, scaled = widths[p]
        covered = metrics.interval_coverage(genes["real_change"], centre - h, centre + h)
        rows.append((p, covered, len(genes), scaled))
    return pd.DataFrame(rows, columns=["level", "coverage", "n_genes", "scaled"])


def calibration(
    table: pd.DataFrame | Results,
    *,
    ax: Axes | None = None,
    show: bool | None = None,
    save: Save = None,
) -> Axes | None:
    """Share of genes that intervals cover against the level that they claim.

    Parameters
    ----------
    table
        Output of :func:`calibration_table`; several, each with a column ``label``, concatenated, give
        a line per label. Or results of a benchmark, for the intervals of every task (means over seeds).
    ax, show, save
        As in :func:`effect`.

    Returns
    -------
    The Axes. Above the diagonal intervals are too wide, below it they promise too much. Levels that
    were approximated are open circles.

    Raises
    ------
    InputError
        Columns are missing, or no method of the results has intervals.
    """
    table = _of_results(table) if isinstance(table, Results) else table
    names = ("level", "coverage", "n_genes", "scaled")
    check_columns(table, names, of="the output of pl.calibration_table")
    table = table if "label" in table else table.assign(label="")
    labels = table["label"].astype(str)
    has_legend = labels.nunique() > 1 or table["scaled"].any()
    legend = 0.9 + 0.075 * max(labels.str.len().max(), 12) if has_legend else 0.0
    ax = axes_of(ax, 4.0 + legend, max(4.0, legend_height(labels.nunique() + 2)))
    ax.plot([0, 1], [0, 1], c=ink(), lw=0.8, ls=":", zorder=0)
    styles = line_styles(labels.unique())
    for label, style in styles.items():
        part = table[labels == label].sort_values("level")
        line = {"c": style["color"], "ls": style["linestyle"], "label": plain(label)}
        ax.plot(part["level"], part["coverage"], lw=1.2, **line)
        for scaled, face in ((False, style["color"]), (True, ax.get_facecolor())):
            points = part[part["scaled"] == scaled]
            look = {"facecolors": face, "edgecolors": style["color"], "marker": style["marker"]}
            ax.scatter(points["level"], points["coverage"], s=22, zorder=3, **look)
    ax.set_xlim(0, 1.02)
    ax.set_ylim(0, 1.02)
    ax.set_aspect("equal")
    label_axes(ax, "level of the interval", "share of genes covered")
    _calibration_words(ax, table, styles)
    return finish(ax, "calibration", show=show, save=save)


def _of_results(results: Results) -> pd.DataFrame:
    """Return the coverage of the intervals of every task, and method if there are several."""
    scores = results.table[results.table["metric"] == "interval_coverage"]
    outputs = scores["method"].map({name: results.output_of(name) for name in results.methods})
    scores = scores[scores["output"] == outputs]
    if scores.empty:
        raise InputError(f"No method of the results has intervals; there are {results.methods}.")
    several = [key for key in (*TASK, "method") if scores[key].nunique() > 1] or ["label"]
    covered = scores.groupby([*TASK, "method"], as_index=False)["value"].mean()
    n_genes = max(record["n_genes"] for record in results.records)
    covered["label"] = covered[several].agg(", ".join, axis=1)
    covered = covered.rename(columns={"value": "coverage"})
    return covered.assign(level=LEVEL, n_genes=n_genes, scaled=False)


def _calibration_words(ax: Axes, table: pd.DataFrame, styles: Mapping[str, dict]) -> None:
    """Write legend and title."""
    stored = table[~table["scaled"].astype(bool)]
    if len(stored) == 1:
        row = stored.iloc[0]
        covered = f"{row['coverage']:.0%} of {row['n_genes']:,} genes"
        ax.set_title(f"{row['level']:.0%} intervals cover {covered}", fontsize=9)
    handles = []
    if len(styles) > 1:
        handles = [Line2D([], [], **style, ms=5, label=plain(k)) for k, style in styles.items()]
    if table["scaled"].any():
        for label, face in (("computed", ink()), ("approximated", ax.get_facecolor())):
            point: Any = {"marker": "o", "ls": "", "mec": ink(), "mfc": face, "ms": 5}
            handles.append(Line2D([], [], **point, label=label))
    if handles:
        legend_beside(ax, handles)


_EFFECTS = ("label", "gene", "change", "pval", "qval")


def volcano_table(var: pd.DataFrame) -> pd.DataFrame:
    r"""Return how far the predicted change of each gene is from zero, in half-widths of its interval.

    Parameters
    ----------
    var
        ``predicted.var`` of a prediction.

    Returns
    -------
    Columns ``predicted_change``, ``half_widths`` = :math:`2\,|change| / (upper - lower)` (inf where an
    interval has no width) and ``excludes_zero``, whether zero is outside of the interval.

    Raises
    ------
    InputError
        Columns are missing, or a gene has no interval.
    """
    check_columns(var, ("predicted_change", *BOUNDS), of="predicted.var of TRVAE.predict")
    check_bounds(var)
    check_finite(var, ["predicted_change"])
    change = var["predicted_change"].to_numpy(float)
    lower, upper = (var[name].to_numpy(float) for name in BOUNDS)
    far = np.where(change == 0, 0.0, np.inf)
    np.divide(2 * np.abs(change), upper - lower, out=far, where=upper > lower)
    excludes = (lower > 0) | (upper < 0)
    columns = {"predicted_change": change, "half_widths": far, "excludes_zero": excludes}
    return pd.DataFrame(columns, index=var.index)


def volcano(
    effects: pd.DataFrame | AnnData,
    *,
    label: Any = None,
    max_qval: float = 0.1,
    n_labels: int = 10,
    unit: str = LOG_UNIT,
    ax: Axes | None = None,
    show: bool | None = None,
    save: Save = None,
) -> Axes | None:
    """Predicted change of each gene against the evidence for it.

    Parameters
    ----------
    effects
        Table of :meth:`trvae_sc.TRVAE.effects`: the evidence is the p-value, which tells how well labels
        predict each other, not replicates. Or a prediction of one label, or its ``var``: how far the change
        is from zero in half-widths of its interval.
    label
        Label to draw; may be left out if there is one.
    max_qval
        Largest q-value of genes in colour.
    n_labels
        Number of genes named, of those in colour: largest change first, rising and falling.
    unit, ax, show, save
        As in :func:`effect`.

    Returns
    -------
    The Axes. Intervals without width are drawn at the top.

    Raises
    ------
    InputError
        As in :func:`volcano_table`; several labels, sources or targets and no choice.

    Examples
    --------
    >>> ax = trvae_sc.pl.volcano(model.effects(target="stimulated"), label="NK")
    """
    check_whole("n_labels", n_labels, 0)
    effects = _var_of(effects) if isinstance(effects, AnnData) else effects
    if isinstance(effects, pd.DataFrame) and "pval" in effects:
        points, title = _of_effects(effects, label, max_qval)
        words, ylabel = (f"q > {max_qval:g}", f"q \u2264 {max_qval:g}, "), "\u2212log10 p"
    else:
        points, title = _of_var(effects)
        words, ylabel = ("interval includes zero", ""), "distance from zero (half-widths)"
    ax = axes_of(ax, 4.6, 4.5)
    x, y = points["x"].to_numpy(), points["y"].to_numpy()
    excludes = points["shown"].to_numpy()
    for text, part, color in (
        (words[0], ~excludes, PALE),
        (f"{words[1]}falls", excludes & (x < 0), COLORS["blue"]),
        (f"{words[1]}rises", excludes & (x > 0), COLORS["red"]),
    ):
        name = f"{text} ({part.sum():,})"
        ax.scatter(x[part], y[part], s=6 if color == PALE else 14, c=color, lw=0, label=name)
    if not words[1]:
        ax.axhline(1, c=ink(), lw=0.8, ls=":", zorder=0)
    ax.axvline(0, c=ink(), lw=0.5, zorder=0)
    label_axes(ax, f"predicted change of mean {unit}", ylabel)
    ax.set_title(title, fontsize=9)
    ax.margins(x=0.18, y=0.1)  # room for names
    legend_below(ax)
    xy = np.column_stack([x, y])[excludes]
    named = to_name(x[excludes], n_labels)
    name_points(ax, points.index[excludes][named], xy[named], avoid=xy)
    return finish(ax, "volcano", show=show, save=save)


def _var_of(predicted: AnnData) -> pd.DataFrame:
    """Return the genes of a prediction, or raise where they have no single change."""
    combinations = predicted.uns.get(RECORD, {}).get("combinations")
    if combinations is not None and "predicted_change" not in predicted.var:
        groups = [f"{row.label} from {row.source}" for row in combinations.itertuples()]
        if len(groups) == 1:
            raise InputError(
                f"A prediction by {predicted.uns[RECORD].get('method')} has no change of each gene with its interval. "
                "Give one of TRVAE with the default preset, of select, or of baselines.predict."
            )
        raise InputError(
            f"The prediction is of several groups, {listing(groups)}, and has no single change of a gene. Draw "
            "one of the table of all: pl.volcano(model.effects(target=..., source=...), label=...)."
        )
    return predicted.var


def _of_effects(effects: pd.DataFrame, label: Any, max_qval: float) -> tuple[pd.DataFrame, str]:
    """Return change (x), -log10 p (y) and which genes are in colour, of one label; and a title."""
    check_columns(effects, _EFFECTS, of="the table of TRVAE.effects")
    check_finite(effects, ["change"])
    labels = effects["label"].map(level_name)
    if label is not None and level_name(label) not in set(labels):
        raise InputError(f"No label {label!r} in the table; there are {[*labels.unique()]}.")
    part = effects if label is None else effects[labels == level_name(label)]
    keys = ("label", "replicate", "source", "target")
    several = [k for k in keys if k in part and part[k].nunique() > 1]
    if several:
        found = {key: [*map(str, part[key].unique())] for key in several}
        raise InputError(
            f"The table has several of {found}: give one, a label as label=, of the others their rows."
        )
    if part["pval"].isna().any():
        raise InputError(
            f"{part['pval'].isna().sum():,} genes have no p-value. These need three labels or more that were seen under "
            "source and target, and a label that was not; of doses, combinations, sets, described conditions and with "
            "exemplars there are none. Pass a prediction of one label to draw its intervals."
        )
    shown = (part["qval"] <= max_qval).to_numpy()
    p = np.maximum(part["pval"].to_numpy(float), np.finfo(float).tiny)
    columns = {"x": part["change"].to_numpy(float), "y": -np.log10(p), "shown": shown}
    title = f"{shown.sum():,} of {len(part):,} genes have q \u2264 {max_qval:g}"
    points = pd.DataFrame(columns, index=part["gene"].astype(str))
    return points, titled(level_name(part["label"].iloc[0]), title)


def _of_var(var: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Return change (x), distance from zero (y) and whether zero is excluded; and a title."""
    table = volcano_table(var)
    far = table["half_widths"].to_numpy()
    y = np.minimum(far, np.max(far[np.isfinite(far)], initial=1.0) * 1.05)
    shown = table["excludes_zero"].to_numpy()
    columns = {"x": table["predicted_change"].to_numpy(), "y": y, "shown": shown}
    title = f"{shown.sum():,} of {len(table):,} intervals exclude zero"
    return pd.DataFrame(columns, index=table.index), title
