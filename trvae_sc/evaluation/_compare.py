"""A prediction beside the measured cells, on plain AnnData."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
from anndata import AnnData

from trvae_sc.arguments import check_whole
from trvae_sc.checks import RECORD, check_obs, check_type, looks_like_counts
from trvae_sc.errors import InputError, naming
from trvae_sc.evaluation._ceiling import CEILING, ceiling
from trvae_sc.evaluation._comparison import Comparison
from trvae_sc.evaluation._holdouts import TASK, Holdout
from trvae_sc.evaluation._measured import (
    CONDITION,
    TOTAL,
    condition_column,
    label_column,
    measured_cells,
)
from trvae_sc.evaluation._scores import N_TOP, gene_table, score, score_values
from trvae_sc.evaluation._tasks import Shared, Task
from trvae_sc.expression import Keys, median_total
from trvae_sc.identity import row_sums
from trvae_sc.levels import as_list, as_text, level_name, of_labels

_LEAST_SHARE = (
    0.9  # of the counts of a cell, below which totals over all genes are no sums over some
)
_LEAST = 4  # measured cells, which the ceiling halves
_OF_EXEMPLARS = (
    "The prediction was combined with measured cells (exemplars). Leave these out of truth: else it is scored "
    "against what it was given."
)

_OF_TRAINING = (
    "The prediction was learned from cells under the target condition{}, too: if these are the ones in truth, scores "
    "say nothing about unseen cells."
)


class _Group(NamedTuple):
    """A predicted combination."""

    label: str
    source: str
    target: str
    predicted: AnnData


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
        A prediction of :meth:`trvae_sc.TRVAE.predict`, :func:`trvae_sc.select` or a simple method. Its
        record in ``uns`` says on which scale it is, and which columns hold condition and label.
    truth
        Measured cells with at least the genes of the prediction: best all cells of the data set, of
        which those of the predicted combinations are the truth, the others under the source the control,
        and all others training cells, on which principal components and the mean change of other labels
        rest. With the cells of the combination alone, `control` is needed and scores that rest on other
        labels are left out. Cells without label or condition are left out, with a note.
    control
        Measured cells to start from, if not in `truth`.
    label
        Label or labels to compare; all that were predicted and measured if None.
    n_top
        Number of genes, those that change most clearly in truth, which effects are scored over besides all;
        two at least.

    Returns
    -------
    The comparison: its table is shown, ``scores`` and ``genes`` have all numbers. Scores are those of
    :func:`trvae_sc.evaluation.score`.

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
    cells = measured_cells(truth, predicted, record, keys, "truth")
    if control is not None:
        control = measured_cells(control, predicted, record, keys, "control")
    keys = keys._replace(condition_key=CONDITION, condition_separator=None)
    keys = keys._replace(total_counts_key=TOTAL if keys.is_count else None)
    measured = pd.DataFrame({"label": label_column(cells, keys), "condition": cells.obs[CONDITION]})
    chosen = _groups(predicted, record, keys, measured, label)
    if record["scale"] == "counts" and record["keys"].get("total_counts_key"):
        _check_totals(chosen, cells)
    hidden = pd.MultiIndex.from_frame(measured).isin([(g.label, g.target) for g in chosen])
    kappa = float(record.get("kappa", 1.0))
    shared = _shared(cells[~hidden], keys, kappa)
    n_exemplars = record.get("combinations", {}).get("n_exemplars", 0)
    notes = [_OF_EXEMPLARS] if np.any(np.asarray(n_exemplars) > 0) else []
    notes += _seen(record, chosen, keys)
    if cells.n_obs < truth.n_obs:
        notes.append(
            f"{truth.n_obs - cells.n_obs:,} cells without label or condition were left out."
        )
    scores, genes = [], []
    for group in chosen:
        task = _task(group, cells, shared, control, measured, keys, kappa)
        tables = _scored(task, group.predicted, n_top)
        names = {"label": group.label, "source": group.source, "target": group.target}
        scores.append(tables.assign(**names))
        table = gene_table(task, group.predicted).rename_axis("gene").reset_index()
        genes.append(table.assign(**names))
        if keys.labels_key is not None and not (task.train.obs[CONDITION] == group.target).any():
            notes.append(
                f"Nothing but {group.label} was given under {group.target}: scores that compare with "
                "other labels are left out, and distances are in components of the cells that were given. "
                "Pass all measured cells as truth to have them."
            )
    scores_table, gene_rows = (
        table[[*TASK, *table.columns.drop(TASK)]]
        for table in (pd.concat(scores, ignore_index=True), pd.concat(genes, ignore_index=True))
    )
    return Comparison(scores_table, gene_rows, tuple(dict.fromkeys(notes)))


# -- what was predicted -----------------------------------------------------------------------------------


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
    with naming("predicted"):
        check_obs(predicted, [*keys.condition_columns, keys.labels_key, "source_condition"])
    return record, keys


def _groups(
    predicted: AnnData, record: Mapping[str, Any], keys: Keys, measured: pd.DataFrame, label: Any
) -> list[_Group]:
    """Return the predicted combinations that were measured."""
    obs, labels = predicted.obs, label_column(predicted, keys)
    source = as_text(obs["source_condition"])
    target = condition_column(obs, record["keys"]["condition_key"])
    frame = pd.DataFrame({"label": labels, "source": source, "target": target})
    rows = frame.groupby(TASK, sort=True).indices
    known = sorted(set(labels))
    wanted = known if label is None else [level_name(v) for v in as_list(label)]
    unknown = [v for v in wanted if v not in known]
    if unknown:
        raise InputError(f"Labels {unknown} were not predicted; there are {known}.")
    n_measured = measured.value_counts()
    if not predicted.n_obs:
        raise InputError("predicted has no cells. Pass the prediction as it was returned.")
    found, lacking = [], []
    for (name, start, to), at in rows.items():
        if name not in wanted:
            continue
        of = of_labels([name], labelled=keys.labels_key is not None)
        if start == to:
            raise InputError(
                f"predicted has cells{of} under {to} that were made from cells under {start}. Its condition is that "
                "which was predicted: undo what changed predicted.obs."
            )
        if len(at) == 1:
            raise InputError(
                f"predicted has 1 cell{of} under {to}; how cells vary is scored from 2 on."
            )
        n_cells = int(n_measured.get((name, to), 0))
        if n_cells >= _LEAST:
            found.append(_Group(name, start, to, _with_totals(predicted[at], record)))
        else:
            lacking.append(f"{n_cells} cells{of} under {to}")
    if not found or (label is not None and lacking):
        found_few = "; ".join(dict.fromkeys(lacking))  # once, whatever the number of sources
        raise InputError(
            f"truth lacks measured cells to compare with, at least {_LEAST} are needed ({found_few})."
        )
    return found


def _seen(record: Mapping[str, Any], chosen: Sequence[_Group], keys: Keys) -> list[str]:
    """Return a note on combinations that were learned from, in a list."""
    table = record.get("combinations")
    if table is None:
        return []
    learned = table[table["seen_in_training"].astype(bool)]
    known = set(zip(learned["label"], learned["target"], strict=True))
    seen = [g.label for g in chosen if (g.label, g.target) in known]
    of = of_labels(list(dict.fromkeys(seen)), labelled=keys.labels_key is not None)
    return [_OF_TRAINING.format(of)] if seen else []


def _with_totals(predicted: AnnData, record: Mapping[str, Any]) -> AnnData:
    """Return predicted cells, counts with the totals that they were predicted with."""
    found = predicted.to_memory() if predicted.isbacked else predicted.copy()
    key = record["keys"].get("total_counts_key")
    if record["scale"] == "counts":
        found.X = _counts_of(found, record["keys"].get("layer"))
        if key is not None and key not in found.obs:
            raise InputError(
                f"The predicted counts lack their totals, predicted.obs['{key}'], so they cannot be "
                "compared with measured ones, which are of whole cells."
            )
        found.obs[TOTAL] = row_sums(found.X, found.n_obs) if key is None else found.obs[key]
    return found


def _check_totals(chosen: Sequence[_Group], cells: AnnData) -> None:
    """Raise where totals of one side are sums over its genes, and those of the other over many more."""
    sides = {"predicted": [group.predicted for group in chosen], "truth": [cells]}
    sums = {
        k: np.concatenate([row_sums(x.X, x.n_obs) for x in parts]) for k, parts in sides.items()
    }
    totals = {k: np.concatenate([x.obs[TOTAL] for x in parts]) for k, parts in sides.items()}
    for name, other in (("predicted", "truth"), ("truth", "predicted")):
        share = sums[other].sum() / max(totals[other].sum(), 1.0)
        if (sums[name] >= totals[name] * (1 - 1e-6)).all() and share < _LEAST_SHARE:
            raise InputError(
                f"Total counts of {name} are sums over its {cells.n_vars:,} genes, as scanpy's calculate_qc_metrics "
                f"writes them, and those of {other} over more ({share:.0%} are of these genes). Both must be over the "
                f"same: put back the totals that {name} had."
            )


def _counts_of(predicted: AnnData, layer: str | None) -> Any:
    """Return predicted counts: X, or, where it was normalised since, the layer that has them, too."""
    if looks_like_counts(predicted.X):
        return predicted.X
    if layer in predicted.layers and looks_like_counts(predicted.layers[layer]):
        return predicted.layers[layer]
    raise InputError(
        "predicted.X holds no counts any more, as predict wrote them: it was normalised since. Pass the "
        "prediction as it was, or predicted.X = counts kept in a layer."
    )


# -- scores ----------------------------------------------------------------------------------------------


def _shared(train: AnnData, keys: Keys, kappa: float) -> Shared | None:
    """Return what training cells tell; None where there are next to none.

    kappa is that of the prediction, to the last digit, which models keep in single precision, where it is
    that of the cells.
    """
    if train.n_obs < 2:
        return None
    own = median_total(train, keys)
    kappa = own if keys.is_count and np.isclose(own, kappa, rtol=1e-6) else kappa
    return Shared.of(train, keys, kappa)


def _task(
    group: _Group,
    truth: AnnData,
    shared: Shared | None,
    control: AnnData | None,
    measured: pd.DataFrame,
    keys: Keys,
    kappa: float,
) -> Task:
    """Return the task that a group is scored as."""
    own = (measured["label"] == group.label).to_numpy()
    start = truth[own & (measured["condition"] == group.source).to_numpy()]
    if control is not None:
        of_label = (label_column(control, keys) == group.label).to_numpy()
        start = control[of_label & (control.obs[CONDITION] == group.source).to_numpy()]
    if start.n_obs < 2:
        of = of_labels([group.label], labelled=keys.labels_key is not None)
        raise InputError(
            f"There are {start.n_obs} cells{of} under {group.source}, which the change is "
            "counted from. Pass them as control, or with the others as truth."
        )
    shared = shared or cast("Shared", _shared(start, keys, kappa))
    others = truth[own & (measured["condition"] != group.source).to_numpy()]
    return shared.task(Holdout(group.label, group.target, group.source), start, others)


def _scored(task: Task, predicted: AnnData, n_top: int) -> pd.DataFrame:
    """Return the scores of the prediction, of no change and of a perfect prediction, side by side."""
    tables = {
        "predicted": score(task, predicted, n_top=n_top),
        "no_change": score_values(task, task.control, task.real, n_top=n_top),
        "ceiling": ceiling(task, n_top=n_top)[CEILING],
    }
    found = {name: t.set_index(["metric", "genes"])["value"] for name, t in tables.items()}
    table = pd.DataFrame(found).reindex(found["predicted"].index)
    if not task.shift.any():  # no other label shows a change
        table = table.drop(index="specific_pearson", level="metric", errors="ignore")
    return table.reset_index()
