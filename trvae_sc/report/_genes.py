"""Changes of genes: of hidden combinations, with what was measured, and of predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from trvae_sc.evaluation import Results
from trvae_sc.evaluation._holdouts import TASK
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
