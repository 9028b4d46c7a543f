"""Which genes change: predicted changes against the evidence for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes

from trvae_sc.arguments import check_whole
from trvae_sc.checks import RECORD
from trvae_sc.errors import InputError
from trvae_sc.evaluation._scores import BOUNDS
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
    label_axes,
    legend_below,
    name_points,
    titled,
    to_name,
)

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
        ax.axhline(1, c="k", lw=0.8, ls=":", zorder=0)
    ax.axvline(0, c="k", lw=0.5, zorder=0)
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
            f"{part['pval'].isna().sum():,} genes have no p-value. These need three labels or more that "
            "were seen under source and target."
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
