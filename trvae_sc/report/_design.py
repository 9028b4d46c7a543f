"""What was measured and hidden, what is missing, and what to measure next."""

from __future__ import annotations

from typing import Any

import pandas as pd

from trvae_sc import pl
from trvae_sc.errors import InputError
from trvae_sc.evaluation import Holdout, Results
from trvae_sc.levels import level_name
from trvae_sc.pl._benchmark import MOST
from trvae_sc.report._images import image
from trvae_sc.report._tables import Table, table_of

_NEEDED = ("label", "condition", "expected_error", "lowers", "left")


def design(results: Results, experiments: pd.DataFrame | None) -> dict[str, Any]:
    """Return pictures and tables of what was measured, what is missing and what to measure next.

    None where there are too many labels for a picture, or nothing is missing or to be measured.
    """
    cells = results.design
    hidden = _hidden(results)
    drawn = cells.shape[0] <= MOST[0] and cells.shape[1] <= MOST[1]
    found: dict[str, Any] = {"image": None, "next": None, "next_image": None}
    if drawn:
        ax: Any = pl.design(cells, hidden=hidden)
        found["image"] = image(ax.figure, "Numbers of cells by label and condition")
    if experiments is not None:
        found["next"] = _next(experiments)
        if drawn and set(experiments["label"]) <= {level_name(label) for label in cells.index}:
            ax = pl.next_experiments(cells, experiments)
            text = "Numbers of cells, and the rank of what to measure next"
            found["next_image"] = image(ax.figure, text)
    missing = missing_combinations(cells)
    n_missing = int((cells == 0).to_numpy().sum())
    return found | {"missing": table_of(missing) if n_missing else None, "n_missing": n_missing}


def _hidden(results: Results) -> list[Holdout]:
    """Return what was hidden, each with what of the same condition was hidden with it."""
    found = {}
    for record in results.records:
        label, target = (record["holdout"][k] for k in ("label", "target"))
        end = f":{target}"
        also = [name for name in record["holdout"].get("also", ()) if name.endswith(end)]
        others = tuple(Holdout(name.removesuffix(end), target) for name in also)
        found[label, target] = Holdout(label, target, also=others)
    return list(found.values())


def missing_combinations(cells: pd.DataFrame) -> pd.DataFrame:
    """Return the conditions that labels have no cells under, one row a label that lacks some."""
    rows = []
    for label, own in cells.iterrows():
        if (own == 0).any():
            names = [
                ", ".join(map(level_name, own.index[chosen])) for chosen in (own > 0, own == 0)
            ]
            rows.append((level_name(label), *names))
    return pd.DataFrame(rows, columns=["label", "measured under", "missing"])


def _next(experiments: pd.DataFrame) -> Table:
    """Return the ranking as a table, shares in percent."""
    if not isinstance(experiments, pd.DataFrame) or not set(_NEEDED) <= set(experiments):
        what = type(experiments).__name__
        if isinstance(experiments, pd.DataFrame):
            what = f"a table with {list(experiments)}"
        raise InputError(
            f"next_experiments is {what}; give what trvae_sc.next_experiments(model) returns."
        )
    shown = experiments[list(_NEEDED)].astype({"label": str, "condition": str})
    shown[["lowers", "left"]] *= 100.0
    shown.insert(0, "rank", range(1, len(shown) + 1))
    words = {"expected_error": "expected error", "lowers": "takes away, %", "left": "left, %"}
    return table_of(shown.rename(columns=words))
