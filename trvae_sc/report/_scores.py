"""Scores of all methods, and genes of all combinations, as the page shows them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
from markupsafe import Markup

from trvae_sc import pl
from trvae_sc.evaluation import CEILING, N_TOP, Results
from trvae_sc.evaluation._holdouts import TASK
from trvae_sc.evaluation._results import WORDS, main_columns
from trvae_sc.report._parts import Table, image, number, packed_csv, table_of

_ROW = [*TASK, "method", "output"]
_SCORES = (("effect_r2", f"top{N_TOP}"), ("energy_distance", "pcs"))  # that are drawn
_PICTURES = 20  # combinations whose genes are drawn
_LISTED = 10  # genes of a combination in its table
_MOST_ROWS = 60_000  # genes of all combinations that a page holds


def images(results: Results) -> Iterator[Markup]:
    """Yield the main scores of every method on every task."""
    known = set(zip(results.table["metric"], results.table["genes"], strict=True))
    for metric, genes in _SCORES:
        if (metric, genes) in known:
            ax: Any = pl.benchmark(results.table, metric=metric, genes=genes)
            yield image(ax.figure, f"{metric} of every method on every task")


def summary(results: Results) -> Table:
    """Return the main scores of every method, means over tasks and seeds, best first."""
    wide = results.wide()
    methods = [m if m == o == CEILING else f"{m}, {o}" for m, o in wide.index]
    wide.columns = [_title(metric, genes) for metric, genes in wide.columns]
    wide.insert(0, "method", methods)
    return table_of(wide)


def score_rows(results: Results) -> pd.DataFrame:
    """Return all scores, one row a combination, method and output: means over seeds.

    Where a score has several seeds, a column ``sd ...`` has its standard deviation.
    """
    table = results.table.assign(
        score=results.table["metric"] + " (" + results.table["genes"] + ")"
    )
    order = list(dict.fromkeys(table["score"]))
    groups = table.groupby([*_ROW, "score"])["value"]
    mean = groups.mean().unstack()[order]
    sd = groups.std().unstack()[order].add_prefix("sd ")
    seeds = table.groupby(_ROW)["seed"].nunique().rename("seeds")
    return pd.concat([seeds, mean, sd.dropna(axis=1, how="all")], axis=1).reset_index()


def score_table(results: Results, rows: pd.DataFrame) -> Table:
    """Return the main scores of every combination, method and output, with their spread over seeds."""
    columns = main_columns(results.table)
    names = [f"{metric} ({genes})" for metric, genes in columns]
    titles = [*_ROW, "seeds", *(_title(metric, genes) for metric, genes in columns)]
    found = table_of(rows[[*_ROW, "seeds", *names]].set_axis(titles, axis=1))
    for i, name in enumerate(names, len(_ROW) + 1):
        if f"sd {name}" in rows:
            for row, sd in zip(found.rows, rows[f"sd {name}"], strict=True):
                row[i] = row[i]._replace(text=row[i].text + spread(sd))
    return found


def spread(sd: float) -> str:
    """Return a standard deviation as it is put behind its mean; empty if there is none."""
    return "" if pd.isna(sd) else f" \u00b1 {number(float(sd))}"


def _title(metric: str, genes: str) -> str:
    """Return the name of a score to read."""
    return f"{WORDS.get(metric, metric.replace('_', ' '))} ({genes})"


# -- genes --------------------------------------------------------------------------------------------


def gene_sections(changes: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Yield a picture and the genes that change most of every combination."""
    groups = changes.groupby(TASK, sort=False)
    for i, ((label, source, target), genes) in enumerate(groups):
        name = f"{label}: {source} to {target}"
        drawn = None
        if i < _PICTURES:
            drawn = image(_scatter(genes), f"Predicted against real change, {name}")
        yield {"name": name, "image": drawn, "table": _gene_table(genes.head(_LISTED))}


def _gene_table(genes: pd.DataFrame) -> Table:
    """Return the changes of genes with the interval, if there is one, and whether the real change is in it."""
    words = {"real_change": "real change", "change": "predicted"}
    shown = genes[["gene", *words]].astype({"gene": str}).rename(columns=words)
    if genes["lower"].isna().all():
        return table_of(shown)
    width = genes["upper"] - genes["lower"]
    inside = genes["real_change"].between(genes["lower"], genes["upper"])
    table = table_of(shown.assign(**{"90 % interval": width, "inside": inside}))
    for row, low, high in zip(table.rows, genes["lower"], genes["upper"], strict=True):
        row[-2] = row[-2]._replace(text=f"{number(low)} to {number(high)}")
    return table


def _scatter(genes: pd.DataFrame) -> Any:
    """Draw predicted against real changes of the genes that change most."""
    table = genes.rename(columns={"change": "predicted_change"}).set_index("gene")
    ax: Any = pl.effect(table.head(N_TOP), n_top=N_TOP)
    ax.set_xlabel("real change", fontsize=9)
    ax.set_ylabel("predicted change", fontsize=9)
    ax.get_legend().remove()
    return ax.figure


def packed_genes(changes: pd.DataFrame) -> dict[str, Any]:
    """Return the changes of all genes as compressed CSV in the page: of each combination the first ones."""
    groups = changes.groupby([*TASK, *({"origin"} & set(changes))], sort=False)
    most = max(1, _MOST_ROWS // max(groups.ngroups, 1))
    kept = groups.head(most)
    return {
        "data": packed_csv(kept),
        "n_genes": kept["gene"].nunique(),
        "n_left_out": len(changes) - len(kept),
    }
