"""Whether a prediction fits the task, or the measured cells, that it is compared with."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import permutations
from typing import Any

import numpy as np
from anndata import AnnData

from trvae_sc.checks import RECORD, check_type, layer_names, logger, looks_like_counts, matrix
from trvae_sc.errors import InputError, naming
from trvae_sc.evaluation._tasks import Task
from trvae_sc.expression import gene_means, totals, values
from trvae_sc.identity import row_sums
from trvae_sc.levels import SEPARATOR, as_text, level_name, listing
from trvae_sc.scales import Group

#: Of the counts of a cell, below which totals over all genes are no sums over some.
_LEAST_SHARE = 0.9
STARTED = "those that the prediction started from"
_OF_COUNTS = "log(1 + kappa"  # how scales of predictions that were made from counts begin


def check_fits(task: Task, predicted: AnnData) -> None:
    """Raise where genes, scale, label, condition or totals of a prediction are not those of a task."""
    with naming("predicted"):
        check_type(predicted)
    if predicted.var_names.tolist() != task.train.var_names.tolist():
        raise InputError(
            "The predicted cells do not have the genes of the training cells in order."
        )
    if "scale" not in predicted.uns.get(RECORD, {}):
        raise InputError(
            "predicted.uns['trvae_sc']['scale'] is missing: 'counts', or any other word for values "
            "that are compared as they are (log values where the data are counts)."
        )
    _check_scale(task, predicted)
    _check_combination(task, predicted)
    if task.keys.is_count:
        _check_totals_of(task, predicted)


def _check_scale(task: Task, predicted: AnnData) -> None:
    """Raise where values are not on the scale that is told, or on one that the task does not have."""
    scale = str(predicted.uns[RECORD]["scale"])
    is_log = scale.startswith(_OF_COUNTS)
    if not task.keys.is_count and (scale == "counts" or is_log):
        raise InputError(
            f"The prediction was made from counts ({scale}), and the task is of other values. Predict from the "
            "values of the task: of keys with is_count=False by a model with gene_likelihood='normal'."
        )
    if is_log and looks_like_counts(predicted.X, least=2):
        raise InputError(
            f"predicted.X holds counts, and predicted.uns['trvae_sc']['scale'] says {scale!r}. Write 'counts' there, "
            "or the logarithm to predicted.X."
        )


def counts_layer(predicted: AnnData) -> str | None:
    """Return the layer of predicted counts, None for ``X``; raise where they are counts no more."""
    record = predicted.uns[RECORD]
    named = [name for name in layer_names(predicted) if name == record.get("keys", {}).get("layer")]
    for layer in (None, *named):
        if looks_like_counts(matrix(predicted, layer)):
            return layer
    if "output" not in record:  # of a method of one's own, which may return expected counts
        return None
    raise InputError(
        "predicted.X holds no counts any more, as predict wrote them: it was normalised since. Pass the "
        "prediction as it was, or predicted.X = counts kept in a layer."
    )


def _check_combination(task: Task, predicted: AnnData) -> None:
    """Raise where cells were predicted of another label, or under another condition, than those hidden."""
    if "combinations" not in predicted.uns[RECORD]:
        return  # cells of a method of one's own may be of any
    holdout, keys, obs = task.holdout, task.keys, predicted.obs
    label_key = holdout.key or keys.labels_key
    if label_key is not None and {label_key, *holdout.columns} <= set(obs):
        other = ~holdout.has_label(predicted, keys)
        if other.any():
            columns = [*(column for column, _ in holdout.within), label_key]
            names = zip(*(as_text(obs[column])[other] for column in columns), strict=True)
            found = listing(sorted(set(map(SEPARATOR.join, names))))
            raise InputError(
                f"predicted has {other.sum():,} cells that are not of {holdout.name}, which the task hides "
                f"({SEPARATOR.join(columns)}: {found}). Predict task.source, or take those of {holdout.name}."
            )
    if set(keys.condition_columns) <= set(obs):
        # what is hidden may be named otherwise
        known = set(as_text(keys.conditions(task.train.obs)))
        under = set(as_text(keys.conditions(obs))) & known - {level_name(holdout.target)}
        if under:
            raise InputError(
                f"predicted has cells under {listing(sorted(under))}, and the task hides cells under "
                f"{level_name(holdout.target)}. Predict these: target={holdout.target!r}."
            )


def warn_of_training(task: Task, predicted: AnnData) -> None:
    """Warn where a model had seen the label of a task under its target."""
    table, holdout = predicted.uns[RECORD].get("combinations"), task.holdout
    if table is None or holdout.columns:
        return
    own = (table["label"] == level_name(holdout.label)) & (
        table["target"] == level_name(holdout.target)
    )
    if table.loc[own, "seen_in_training"].astype(bool).any():
        logger.warning(
            "The prediction was learned from cells of %s under %s, too: if these are the ones that the task hides, "
            "scores say nothing about unseen cells. Train on task.train.",
            *(level_name(holdout.label), level_name(holdout.target)),
        )


def started_from(task: Task, predicted: AnnData) -> list[Group]:
    """Return the means of the source cells of a task beside those that a prediction of values started from.

    Nothing as far as these are not known: those of a single label are.
    """
    known = {"predicted_mean", "predicted_change"} <= set(predicted.var)
    if not known or predicted.uns[RECORD]["scale"] != "values":
        return []
    start = predicted.var["predicted_mean"] - predicted.var["predicted_change"]
    return [(gene_means(task.control), start.to_numpy(np.float64), task.control.shape[0])]


# -- totals -------------------------------------------------------------------------------------------


def _check_totals_of(task: Task, predicted: AnnData) -> None:
    """Raise where shares are of sums over the genes, and those of the task of whole cells, or the reverse."""
    record, keys, source = predicted.uns[RECORD], task.keys, task.source
    has_own_sums = record["scale"] == "counts" and keys.total_counts_key is None
    if "keys" not in record or has_own_sums:
        return
    key = record["keys"].get("total_counts_key")
    x, total = values(source, keys), totals(source, keys)
    sides = {"the task": share_of([(x, total)])}
    if key is None:
        sides["predicted"] = 1.0 if keys.total_counts_key is not None else sides["the task"]
    elif record["scale"] == "counts" and key in predicted.obs:
        own = matrix(predicted, counts_layer(predicted))
        sides["predicted"] = share_of([(own, predicted.obs[key].to_numpy(np.float64))])
    else:
        sides["predicted"] = share_of(made_of(predicted, source, x, key))
    check_shares(
        sides, source.n_vars, "set the model up with those of the task: **task.keys.further()"
    )


def made_of(predicted: AnnData, starts: AnnData, x: Any, key: str) -> list[tuple[Any, np.ndarray]]:
    """Return counts `x` of the measured cells that were predicted from, with the totals that they had then.

    Nothing as far as that is not known.
    """
    if not {key, "source_cell"} <= set(predicted.obs) or not starts.obs_names.is_unique:
        return []
    at = starts.obs_names.get_indexer(predicted.obs["source_cell"].astype(str))
    found, total = x[at[at >= 0]], predicted.obs[key].to_numpy(np.float64)[at >= 0]
    # of other cells of these names they are less
    is_more = total >= row_sums(found, len(total))
    return [(found, total)] if len(total) and is_more.all() else []


def share_of(parts: Collection[tuple[Any, np.ndarray]]) -> float:
    """Return the share of totals that counts add up to; NaN without any."""
    if not parts:
        return float("nan")
    held = sum(row_sums(x, len(total)).sum() for x, total in parts)
    return float(held / max(sum(total.sum() for _, total in parts), 1.0))


def check_shares(share: Mapping[str, float], n_genes: int, otherwise: str = "") -> None:
    """Raise where totals of one side are sums over its genes, and those of another over many more."""
    for name, other in permutations(share, 2):
        if share[name] >= 1.0 - 1e-6 and share[other] < _LEAST_SHARE:
            raise InputError(
                f"Total counts of {name} are sums over its {n_genes:,} genes, as scanpy's calculate_qc_metrics "
                f"writes them, and those of {other} over more ({share[other]:.0%} are of these genes). Both must be "
                f"over the same: put back the totals that {name} had{otherwise and ', or '}{otherwise}."
            )
