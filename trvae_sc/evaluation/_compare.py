"""A prediction beside the measured cells, on plain AnnData."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from trvae_sc.alignment import ALIGNMENT
from trvae_sc.arguments import check_whole
from trvae_sc.checks import RECORD, TOTAL_COLUMN, check_obs, check_type, matrix
from trvae_sc.errors import InputError, naming
from trvae_sc.evaluation._ceiling import CEILING, ceiling
from trvae_sc.evaluation._checks import LEAST_GENES, LEAST_HIDDEN
from trvae_sc.evaluation._fitting import (
    STARTED,
    check_shares,
    counts_layer,
    made_of,
    share_of,
    started_from,
)
from trvae_sc.evaluation._holdouts import TASK, Holdout
from trvae_sc.evaluation._measured import CONDITION, TOTAL, label_column, measured_cells
from trvae_sc.evaluation._scores import N_TOP, gene_table, score_values, scored
from trvae_sc.evaluation._tasks import Shared, Task
from trvae_sc.expression import Keys, median_total
from trvae_sc.identity import row_sums
from trvae_sc.levels import as_list, as_text, level_name, of_labels
from trvae_sc.scales import scale_notes

#: Scores that a comparison shows, and the genes they are over.
_SHOWN = {
    "effect_r2": "top",
    "specific_pearson": "top",
    "effect_pearson": "top",
    "direction_accuracy": "top",
    "energy_distance": "pcs",
    "r2_var": "top",
    "interval_coverage": "all",
}
_OF_EXEMPLARS = (
    "The prediction was combined with measured cells (exemplars). Leave these out of truth: else it is scored "
    "against what it was given."
)
_OF_TRAINING = (
    "The prediction was learned from cells under the target condition{}, too: if these are the ones in truth, scores "
    "say nothing about unseen cells."
)
_OF_FILLED = (
    "{} was not measured in {:,} genes, which align_genes filled in: they count as genes that do not change, so that "
    "scores are lower. Train on genes that both have."
)


@dataclass(frozen=True, repr=False)
class Comparison:
    """Scores of predicted cells against measured ones; made by :func:`trvae_sc.compare`."""

    #: One row a group, metric and set of genes: ``label``, ``source``, ``target``, ``metric``, ``genes``,
    #: ``predicted``, ``no_change`` (what the source cells score as they are) and ``ceiling`` (what a perfect
    #: prediction would score, given the noise of the measured cells; NaN where it is not known).
    scores: pd.DataFrame
    #: One row a group and gene, largest absolute Welch t of the group first: ``label``, ``source``, ``target``,
    #: ``gene`` and the columns of :func:`trvae_sc.evaluation.gene_table`.
    genes: pd.DataFrame
    notes: tuple[str, ...] = ()  #: what a reader should know

    def table(self) -> pd.DataFrame:
        """Return the main scores: groups and metrics by ``predicted``, ``no change``, ``ceiling``."""
        wanted = [
            self.scores[(self.scores["metric"] == metric) & self.scores["genes"].str.startswith(of)]
            for metric, of in _SHOWN.items()
        ]
        shown = pd.concat(wanted).rename(columns={"no_change": "no change"})
        keys = [k for k in TASK if k == "label" or shown[k].nunique() > 1]
        shown = shown.sort_values(keys, kind="stable").set_index([*keys, "metric"])
        return shown[["predicted", "no change", "ceiling"]]

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return the gene table of each group, by label (and source or target, where these differ)."""
        several = [k for k in TASK if k == "label" or self.genes[k].nunique() > 1]
        return {
            ", ".join(part[several].iloc[0]): part.drop(columns=TASK).set_index("gene")
            for _, part in self.genes.groupby(TASK, sort=False)
        }

    def __repr__(self) -> str:
        return "\n".join([self.table().round(2).to_string(**_as_pandas()), *self.notes])

    def _repr_html_(self) -> str:
        table = self.table().round(2).to_html(border=0, **_as_pandas())
        return table + "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)


def _as_pandas() -> dict[str, Any]:
    """Return how a table is shown: as many rows as pandas shows, of many labels the first and the last."""
    return {"na_rep": "", "max_rows": pd.get_option("display.max_rows")}


def compare(
    predicted: AnnData,
    truth: AnnData,
    control: AnnData | None = None,
    *,
    label: Any = None,
    n_top: int = N_TOP,
) -> Comparison:
    """Score predicted cells against measured ones.

    Parameters
    ----------
    predicted
        A prediction of :meth:`trvae_sc.TRVAE.predict`, :func:`trvae_sc.select` or a simple method.
    truth
        Measured cells with at least the genes of the prediction: best all cells of the data set, of which those
        of other combinations serve as control, for principal components and for the mean change of other labels.
        With the cells of the combination alone, `control` is needed and scores that rest on other labels are left
        out. Cells without label or condition are left out, with a note.
    control
        Measured cells to start from, if not in `truth`.
    label
        Label or labels to compare; all that were predicted and measured if None.
    n_top
        Number of genes, those that change most in truth, which effects are scored over besides all; 2 or more.

    Returns
    -------
    The comparison, with the scores of :func:`trvae_sc.evaluation.score`.

    Raises
    ------
    InputError
        Not a prediction; genes, columns or totals missing from the measured cells; another scale; no cell
        of a predicted combination.

    Examples
    --------
    >>> import trvae_sc
    >>> adata = trvae_sc.datasets.simulate(600, 60, n_labels=4, specificity=0.0)
    >>> hidden = (adata.obs["cell_type"] == "type_3") & (adata.obs["condition"] == "stimulated")
    >>> predicted = trvae_sc.select(
    ...     adata[~hidden].copy(),
    ...     "stimulated",
    ...     condition_key="condition",
    ...     labels_key="cell_type",
    ...     methods=["mean_shift"],
    ...     progress=False,
    ... )
    >>> comparison = trvae_sc.compare(predicted, adata)
    >>> bool(comparison.table().loc[("type_3", "effect_r2"), "predicted"] > 0.5)
    True
    """
    check_whole("n_top", n_top, 2)
    record, keys = _record(predicted)
    cells = measured_cells(truth, predicted, keys, "truth")
    starts = cells if control is None else measured_cells(control, predicted, keys, "control")
    own = keys._replace(
        condition_key=CONDITION,
        condition_separator=None,
        total_counts_key=TOTAL if keys.is_count else None,
    )
    measured = pd.DataFrame({"label": label_column(cells, keys), "target": cells.obs[CONDITION]})
    chosen = _chosen(predicted, record, keys, measured, label)
    if keys.is_count and (key := keys.total_counts_key) is not None:
        if record["scale"] == "counts":
            parts = [(x.X, x.obs[TOTAL]) for x in chosen.values()]
        else:
            parts = made_of(predicted, starts, starts.X, key)
        measured_sides = {"truth": cells, "control": starts}
        shares = {name: share_of([(x.X, x.obs[TOTAL])]) for name, x in measured_sides.items()}
        check_shares({"predicted": share_of(parts), **shares}, cells.n_vars)
    hidden = pd.MultiIndex.from_frame(measured).isin([(h.label, h.target) for h in chosen])
    kappa = float(record.get("kappa", 1.0))
    shared = _shared(cells[~hidden], own, kappa) if (~hidden).sum() > 1 else None
    scores, genes, starting = {}, {}, []
    for holdout, found in chosen.items():
        task = _task(holdout, cells, starts, shared, own, kappa)
        names = holdout.label, holdout.source, holdout.target
        scores[names], genes[names] = _scored(task, found, n_top), gene_table(task, found)
        starting += started_from(task, found)
    notes = list(_notes(record, keys, chosen, truth, cells, hidden))
    notes += scale_notes("control cells", starting, STARTED, is_count=False)
    for name, given in {"truth": truth, "control": control}.items():
        filled = [] if given is None else given.uns.get(ALIGNMENT, {}).get("missing", [])
        if len(filled):
            notes.append(_OF_FILLED.format(name, len(filled)))
    return Comparison(
        pd.concat(scores, names=TASK).reset_index(TASK).reset_index(drop=True),
        pd.concat(genes, names=[*TASK, "gene"]).reset_index(),
        tuple(notes),
    )


def _record(predicted: AnnData) -> tuple[Mapping[str, Any], Keys]:
    """Return the record of a prediction, and where it and the measured cells have what."""
    with naming("predicted"):
        check_type(predicted)
    record = predicted.uns.get(RECORD, {})
    if not {"scale", "keys"} <= set(record):
        raise InputError(
            "This is no prediction: predicted.uns['trvae_sc'] does not say from what and on which scale it "
            "was made. Pass what TRVAE.predict, select or baselines.predict returned."
        )
    named: dict[str, Any] = {
        k: list(v) if isinstance(v, np.ndarray | list | tuple) else str(v)
        for k, v in record["keys"].items()
    }
    keys = Keys(**named, is_count=record["scale"] != "values")
    if predicted.n_vars < LEAST_GENES:
        raise InputError(
            f"predicted has {predicted.n_vars} genes; at least {LEAST_GENES} are needed."
        )
    n_genes = record.get("n_genes", 0)
    if keys.is_count and keys.total_counts_key is None and predicted.n_vars < n_genes:
        raise InputError(
            f"predicted has {predicted.n_vars:,} of {n_genes:,} genes, and totals of cells are sums over all of them. "
            "Pass the prediction with the genes it had (the result has a table of genes), or predict with "
            "total_counts_key=, a column of obs with totals over all genes."
        )
    with naming("predicted"):
        check_obs(predicted, [*keys.condition_columns, keys.labels_key, "source_condition"])
    return record, keys


def _chosen(
    predicted: AnnData, record: Mapping[str, Any], keys: Keys, measured: pd.DataFrame, label: Any
) -> dict[Holdout, AnnData]:
    """Return the predicted combinations that were measured, and the cells predicted of each."""
    target = as_text(keys.conditions(predicted.obs))
    frame = pd.DataFrame({"label": label_column(predicted, keys), "target": target})
    frame["source"] = as_text(predicted.obs["source_condition"])
    known = sorted(set(frame["label"]))
    wanted = known if label is None else [level_name(v) for v in as_list(label)]
    unknown = [v for v in wanted if v not in known]
    if unknown:
        raise InputError(f"Labels {unknown} were not predicted; there are {known}.")
    if not predicted.n_obs:
        raise InputError("predicted has no cells. Pass the prediction as it was returned.")
    n_measured, found, lacking = measured.value_counts(), {}, []
    for (name, start, to), rows in frame.groupby(TASK, sort=True).indices.items():
        if name not in wanted:
            continue
        of = of_labels([name], labelled=keys.labels_key is not None)
        if start == to:
            raise InputError(
                f"predicted has cells{of} under {to} that were made from cells under {start}. Its condition is that "
                "which was predicted: undo what changed predicted.obs."
            )
        n_cells = int(n_measured.get((name, to), 0))
        if n_cells < LEAST_HIDDEN:
            lacking.append(f"{n_cells} cells{of} under {to}")
            continue
        if len(rows) == 1:
            raise InputError(
                f"predicted has 1 cell{of} under {to}; how cells vary is scored from 2 on."
            )
        found[Holdout(name, to, start)] = _with_totals(predicted[rows], record)
    if not found or (label is not None and lacking):
        found_few = "; ".join(dict.fromkeys(lacking))  # once, whatever the number of sources
        raise InputError(
            f"truth lacks measured cells to compare with, at least {LEAST_HIDDEN} are needed ({found_few})."
        )
    return found


def _notes(
    record: Mapping[str, Any],
    keys: Keys,
    chosen: Iterable[Holdout],
    truth: AnnData,
    cells: AnnData,
    hidden: np.ndarray,
) -> Iterator[str]:
    """Yield what a reader should know: of what was learned from, what was left out, and what is missing."""
    labelled, table = keys.labels_key is not None, record.get("combinations")
    if table is not None:
        if np.any(np.asarray(table.get("n_exemplars", 0)) > 0):
            yield _OF_EXEMPLARS
        learned = table[table["seen_in_training"].astype(bool)]
        known = set(zip(learned["label"], learned["target"], strict=True))
        if seen := list(dict.fromkeys(h.label for h in chosen if (h.label, h.target) in known)):
            yield _OF_TRAINING.format(of_labels(seen, labelled=labelled))
    if cells.n_obs < truth.n_obs:
        yield f"{truth.n_obs - cells.n_obs:,} cells without label or condition were left out."
    n_genes, has_totals = record.get("n_genes", 0), keys.total_counts_key in truth.obs
    if keys.total_counts_key == TOTAL_COLUMN and not has_totals and truth.n_vars < n_genes:
        yield (
            f"Totals are sums over the {truth.n_vars:,} genes of truth, and those of the prediction over {n_genes:,}: "
            "where those it lacks have many of the counts, scores are wrong. Pass truth with all genes."
        )
    for target in dict.fromkeys(h.target for h in chosen if labelled):
        if not (cells.obs[CONDITION] == target)[~hidden].any():
            alone = ", ".join(dict.fromkeys(h.label for h in chosen if h.target == target))
            yield (
                f"Nothing but {alone} was given under {target}: scores that compare with other labels are left out, "
                "and distances are in components of the cells that were given. Pass all measured cells as truth to "
                "have them."
            )


def _with_totals(predicted: AnnData, record: Mapping[str, Any]) -> AnnData:
    """Return predicted cells, counts with the totals that they were predicted with."""
    found = predicted.to_memory() if predicted.isbacked else predicted.copy()
    key = record["keys"].get("total_counts_key")
    if record["scale"] == "counts":
        found.X = matrix(found, counts_layer(found))
        if key is not None and key not in found.obs:
            raise InputError(
                f"The predicted counts lack their totals, predicted.obs['{key}'], so they cannot be "
                "compared with measured ones, which are of whole cells."
            )
        found.obs[TOTAL] = row_sums(found.X, found.n_obs) if key is None else found.obs[key]
    return found


def _shared(train: AnnData, keys: Keys, kappa: float) -> Shared:
    """Return what training cells tell; their own kappa counts where that of the prediction is the same to 1e-6."""
    own = median_total(train, keys)
    return Shared.of(
        train, keys, own if keys.is_count and np.isclose(own, kappa, rtol=1e-6) else kappa
    )


def _task(
    holdout: Holdout,
    cells: AnnData,
    starts: AnnData,
    shared: Shared | None,
    keys: Keys,
    kappa: float,
) -> Task:
    """Return the task that a prediction is scored as."""
    own, start = (x[(label_column(x, keys) == holdout.label).to_numpy()] for x in (cells, starts))
    start = start[(start.obs[CONDITION] == holdout.source).to_numpy()]
    if start.n_obs < 2:
        of = of_labels([holdout.label], labelled=keys.labels_key is not None)
        raise InputError(
            f"There are {start.n_obs} cells{of} under {holdout.source}, which the change is "
            "counted from. Pass them as control, or with the others as truth."
        )
    others = own[(own.obs[CONDITION] != holdout.source).to_numpy()]
    return (shared or _shared(start, keys, kappa)).task(holdout, start, others)


def _scored(task: Task, predicted: AnnData, n_top: int) -> pd.DataFrame:
    """Return the scores of the prediction, of no change and of a perfect prediction, side by side."""
    tables = {
        "predicted": scored(task, predicted, n_top=n_top),
        "no_change": score_values(task, task.control, task.real, n_top=n_top),
        "ceiling": ceiling(task, n_top=n_top)[CEILING],
    }
    found = {name: t.set_index(["metric", "genes"])["value"] for name, t in tables.items()}
    table = pd.DataFrame(found).reindex(found["predicted"].index)
    if not task.shift.any():  # no other label shows a change
        table = table.drop(index="specific_pearson", level="metric", errors="ignore")
    return table.reset_index()
