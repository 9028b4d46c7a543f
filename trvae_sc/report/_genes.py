"""Changes of genes and pathways: of hidden combinations, with what was measured, and of predictions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.figure import Figure

from trvae_sc.enrichment import pathways
from trvae_sc.errors import InputError
from trvae_sc.evaluation import Results
from trvae_sc.evaluation._holdouts import TASK
from trvae_sc.pl._style import names_width, plain, turn_names
from trvae_sc.report._parts import csv_link, image, table_of
from trvae_sc.report._verdicts import main_method

#: Columns of the table, those of effects and the real change.
COLUMNS = [*TASK, "gene", "change", "lower", "upper", "real_change"]
_NAMES = {"predicted_change": "change", "change_lower": "lower", "change_upper": "upper"}


def gene_changes(results: Results, *, method: str | None = None) -> pd.DataFrame:
    """Return the change of every gene of every hidden combination, predicted and real.

    Parameters
    ----------
    results, method
        As in :func:`trvae_sc.report.report`.

    Returns
    -------
    One row a combination and gene, that of the largest real change first: ``label``, ``source``, ``target``,
    ``gene``; ``change``, ``lower`` and ``upper``, predicted change and its 90 % interval (means over seeds;
    NaN where the method has no interval), and ``real_change``, on the same scale: log(1 + kappa share) of
    the mean share of counts, of other values their mean.

    Raises
    ------
    InputError
        The method was not run.
    """
    method = main_method(results, method)
    tasks: dict[tuple[str, ...], list[pd.DataFrame]] = {}
    for record in results.records:
        if record["method"] == method:
            kept = record.get("changes") or record["genes"][results.output_of(method)]
            task = tuple(str(record["holdout"][k]) for k in TASK)
            tasks.setdefault(task, []).append(pd.DataFrame(kept))
    tables = [_of_task(task, seeds) for task, seeds in tasks.items()]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=COLUMNS)


def _of_task(task: Sequence[str], seeds: list[pd.DataFrame]) -> pd.DataFrame:
    """Return the table of a combination from those of its seeds."""
    names = ["real_change", *_NAMES]
    whole = [table.set_index("gene").reindex(columns=names) for table in seeds]
    values = np.mean([table.to_numpy(np.float64) for table in whole], axis=0)
    found = pd.DataFrame(values, whole[0].index, names).rename(columns=_NAMES).reset_index()
    found = found.sort_values("real_change", key=abs, ascending=False, kind="stable")
    return found.assign(**dict(zip(TASK, task, strict=True)))[COLUMNS]


def predicted_changes(predictions: Sequence[AnnData]) -> pd.DataFrame:
    """Return the changes of predictions of one label and source each, as :func:`gene_changes`, with origin."""
    tables = []
    for i, predicted in enumerate(predictions, 1):
        combinations, var = predicted.uns.get("trvae_sc", {}).get("combinations"), predicted.var
        if combinations is None or len(combinations) != 1 or "predicted_change" not in var:
            continue
        task: dict[str, Any] = {name: str(combinations[name].iloc[0]) for name in TASK}
        found = var.reindex(columns=list(_NAMES)).rename(columns=_NAMES).astype(np.float64)
        found = found.assign(**task, real_change=np.nan, gene=predicted.var_names)
        found = found.sort_values("change", key=abs, ascending=False, kind="stable")
        tables.append(found[COLUMNS].assign(origin=f"prediction {i}"))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=COLUMNS)


_SHOWN = 25  # pathways in the picture
_LETTERS = 45  # of a name in it
_UNKNOWN = "#7F7F7F"  # of sets that have no score in a label
_ROWS = 400  # of the table; the file has all
_WORDS = {"n_genes": "genes", "qval": "q", "real_score": "real score", "real_qval": "real q"}


def task_pathways(
    results: Results, net: pd.DataFrame | str | Path, *, method: str | None = None, **options: Any
) -> pd.DataFrame:
    """Return how far the genes of each pathway change in every hidden combination, predicted and real.

    Parameters
    ----------
    results, method
        As in :func:`trvae_sc.report.report`.
    net, **options
        Sets of genes, and further arguments of :func:`trvae_sc.pathways`.

    Returns
    -------
    What :func:`trvae_sc.pathways` returns for each combination, one below the other.

    Raises
    ------
    InputError
        As :func:`trvae_sc.pathways` and :func:`trvae_sc.report.gene_changes`.
    MissingExtraError
        decoupler is not installed.
    """
    changes = gene_changes(results, method=method)
    columns = [*TASK, "gene", "change", "real_change"]
    groups = changes[columns].groupby(TASK, sort=False)
    return pd.concat([pathways(own, net, **options) for _, own in groups], ignore_index=True)


def panel(table: pd.DataFrame) -> dict[str, Any]:
    """Return picture, table and file of the scores of pathways, as :func:`task_pathways` returns them."""
    needed = {"label", "pathway", "score", "qval"}
    if not isinstance(table, pd.DataFrame) or not needed <= set(table) or table.empty:
        what = f"a table with {list(table)}" if isinstance(table, pd.DataFrame) else repr(table)
        raise InputError(f"pathways is {what}; give what trvae_sc.pathways(...) returns.")
    table = table.reset_index(drop=True)  # may be several, one below the other
    figure, has_gaps = _heatmap(table)
    order = table["score"].abs().sort_values(ascending=False, kind="stable").index
    shown = table.loc[order].head(_ROWS)
    return {
        "image": image(figure, "Scores of pathways by label"),
        "table": table_of(shown.rename(columns=_WORDS), small=("q", "real q")),
        "csv": csv_link(table),
        "n_rows": len(table),
        "n_shown": len(shown),
        "has_real": "real_score" in table,
        "has_gaps": has_gaps,
    }


def _heatmap(table: pd.DataFrame) -> tuple[Figure, bool]:
    """Draw the largest scores by label, beside the real ones if known; return whether some lack."""
    column = table["label"].astype(str)
    for key, before in (("replicate", ", "), ("target", " \u2192 "), ("source", " from ")):
        if key in table and table[key].nunique() > 1:
            column = column + before + table[key].astype(str)
    kinds = [name for name in ("score", "real_score") if name in table]
    wide = [
        table.pivot_table(kind, index="pathway", columns=column.rename("at"), dropna=False)
        for kind in kinds
    ]
    largest = wide[0].abs().max(axis=1).sort_values(ascending=False, kind="stable")
    names = largest.index[:_SHOWN]
    limit = max(float(np.nanmax(w.loc[names].abs())) for w in wide) or 1.0
    below, beside = ([plain(_short(str(n))) for n in part] for part in (wide[0].columns, names))
    width = 2.6 + (0.45 * wide[0].shape[1] + 0.3) * len(kinds) + names_width(beside)
    cmap = plt.get_cmap("RdBu_r").with_extremes(bad=_UNKNOWN)  # not as white as no change is
    size = (max(width, 5.0), 1.2 + 0.24 * len(names) + 0.05 * max(map(len, below)))
    figure, axes = plt.subplots(1, len(kinds), figsize=size, layout="constrained", squeeze=False)
    for ax, values, kind in zip(axes[0], wide, kinds, strict=True):
        drawn = ax.imshow(values.loc[names], cmap=cmap, vmin=-limit, vmax=limit, aspect="auto")
        ax.set_title("predicted" if kind == "score" else "real", fontsize=9)
        ax.set_xticks(range(values.shape[1]), below, fontsize=8)
        turn_names(ax)
        ax.set_yticks([])
        ax.tick_params(length=0)
        ax.grid(visible=False)
    axes[0][0].set_yticks(range(len(names)), beside, fontsize=8)
    figure.colorbar(drawn, ax=axes[0].tolist(), label="score", shrink=0.7)
    return figure, any(values.loc[names].isna().any(axis=None) for values in wide)


def _short(name: str) -> str:
    """Return a name without its middle where it is long: many begin alike."""
    half = _LETTERS // 2
    return name if len(name) <= _LETTERS else f"{name[:half]}\u2026{name[-half:]}"
