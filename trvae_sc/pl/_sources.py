"""What plots of genes are given: predicted and measured cells, a comparison of them, or tables."""

from __future__ import annotations

from typing import Any, TypeAlias

import pandas as pd
from anndata import AnnData

from trvae_sc.checks import RECORD
from trvae_sc.errors import InputError
from trvae_sc.evaluation import Comparison, compare
from trvae_sc.levels import level_name
from trvae_sc.pl._style import COLORS, METHOD_COLORS

Predicted: TypeAlias = AnnData | Comparison | pd.DataFrame


def gene_tables(
    predicted: AnnData | Comparison, truth: AnnData | None, control: AnnData | None, label: Any
) -> dict[str, pd.DataFrame]:
    """Return the gene table of each label; see :func:`trvae_sc.compare`."""
    if isinstance(predicted, AnnData):
        if not isinstance(truth, AnnData):
            raise InputError(
                "Predicted cells are drawn against measured ones: pass them too, as the second argument, "
                "truth, which is best the whole adata."
            )
        return compare(predicted, truth, control, label=label).tables()
    tables = predicted.tables()
    if label is None:
        return tables
    if level_name(label) not in tables:
        raise InputError(f"No label {label!r} in the comparison; there are {list(tables)}.")
    return {level_name(label): tables[level_name(label)]}


def gene_table(
    predicted: Predicted | Any, truth: AnnData | None, control: AnnData | None, label: Any
) -> tuple[pd.DataFrame, str]:
    """Return one gene table and the label it is of (empty where it was given as it is)."""
    if not isinstance(predicted, AnnData | Comparison):
        return predicted, ""
    tables = gene_tables(predicted, truth, control, label)
    if len(tables) > 1:
        raise InputError(f"There are several labels, {list(tables)}: choose one with label=.")
    ((name, table),) = tables.items()
    return table, name


def color_of(predicted: Any) -> str:
    """Return the colour of the method that predicted; blue where it is not known."""
    method = ""
    if isinstance(predicted, AnnData):
        method = str(predicted.uns.get(RECORD, {}).get("method", ""))
    return METHOD_COLORS.get(method, COLORS["blue"])
