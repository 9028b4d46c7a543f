"""What is said in the log of data that can be registered, and may not be meant so."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
from anndata import AnnData

from trvae_sc.checks import is_number, logger
from trvae_sc.levels import CONTROLS, as_list, level_name, levels

_FEW_GENES = 5000  # below, an AnnData is likely to hold variable genes only
_said: contextvars.ContextVar[set[Any] | None] = contextvars.ContextVar("said", default=None)
_DOSE = re.compile("dos|conc", re.IGNORECASE)
_UNLABELED = (
    *("unknown", "unassigned", "unlabeled", "unlabelled", "undetermined"),
    *("na", "nan", "none", ""),
)


@contextlib.contextmanager
def said_once() -> Iterator[None]:
    """Say of columns, totals and collapsed dimensions once what is true of all fits meanwhile."""
    token = _said.set(set() if _said.get() is None else _said.get())
    try:
        yield
    finally:
        _said.reset(token)


def was_said(what: Any) -> bool:
    """Return whether something is to be said once, and was said; from now on it was."""
    said = _said.get()
    if said is None:
        return False
    known = what in said
    said.add(what)
    return known


def say_totals(n_vars: int, column: str | None = None) -> None:
    """Log that the totals of cells are sums over the genes at hand; a warning where these are few.

    `column` is that of totals, where the model had to name it.
    """
    if was_said(("totals", n_vars)):
        return
    lacks, name = "total_counts_key", "name the obs column with"
    end = " (scanpy calls it 'total_counts'): total_counts_key="
    if column is not None:
        lacks, name, end = f"column {column!r} in obs", "add it, with", ""
    logger.log(
        logging.WARNING if n_vars < _FEW_GENES else logging.INFO,
        "No %s: a cell's total is its sum over the %d genes of adata. If adata holds only variable genes, %s "
        "the whole cell's totals%s.",
        *(lacks, n_vars, name, end),
    )


def say_setup(
    adata: AnnData,
    condition_key: str | Sequence[str] | None,
    labels_key: str | None,
    nuisances: Sequence[str | None],
    *,
    described: bool,
    separator: str | None = None,
) -> None:
    """Say what is to be said of columns that are registered; `described`: by features of conditions."""
    found = levels(adata.obs[condition_key]) if isinstance(condition_key, str) else []
    if found and not described and is_number(adata.obs[condition_key]):
        logger.info(
            "adata.obs['%s'] holds numbers, which are taken for levels. For a dose or a time, of which "
            "others than those measured can be predicted, pass it in a list: condition_key=['%s'].",
            *(condition_key, condition_key),
        )
    if separator is not None and not any(separator in level_name(level) for level in found):
        _warn(
            "No condition in adata.obs['%s'] has '%s' between parts: each is a part of its own, and sets of them, "
            "none of which was measured, are predicted as sums.",
            *(condition_key, separator),
        )
    labels = [] if labels_key is None else levels(adata.obs[labels_key])
    unlabeled = [level for level in labels if str(level).lower() in _UNLABELED]
    if unlabeled:
        _warn(
            "adata.obs['%s'] has the label %r, which is learned as a label of its own. If it means that the "
            "label is not known, find the most likely ones first: trvae_sc.predict_labels(adata, "
            "unlabeled_category=%r, ...).",
            *(labels_key, unlabeled[0], unlabeled[0]),
        )
    if condition_key is not None:
        keys = as_list(condition_key)
        _say_confounded(adata.obs, keys, [key for key in nuisances if key is not None])
        _say_dose_of_control(adata.obs[keys].drop_duplicates())


def _warn(message: str, *told: Any) -> None:
    """Log a warning; once of many fits."""
    if not was_said((message, told)):
        logger.warning(message, *told)


def _say_dose_of_control(conditions: pd.DataFrame) -> None:
    """Warn of a dose of cells without a drug that drugs were given at, too; a time may be the same."""
    numbers = [key for key in conditions if is_number(conditions[key])]
    for key in conditions.columns.difference(numbers):
        is_control = conditions[key].map(level_name).str.lower().isin(CONTROLS).to_numpy(bool)
        for dose in (name for name in numbers if _DOSE.search(name)):
            found = conditions[dose].to_numpy(float)
            own, others = set(found[is_control]), set(found[~is_control])
            if len(own) == 1 and 0 not in own and own < others:
                _warn(
                    "Controls in adata.obs['%s'] have the dose %g in adata.obs['%s'], as others have, from which "
                    "effects then do not start from none: doses in between are predicted worse. Make it 0.",
                    *(key, *own, dose),
                )


def _say_confounded(obs: pd.DataFrame, keys: list[str], nuisances: Sequence[str]) -> None:
    """Warn of batches or covariates of which every level has cells of one condition only."""
    for nuisance in nuisances:
        pairs = obs[[nuisance, *keys]].drop_duplicates()
        if pairs[nuisance].is_unique:
            _warn(
                "Every level of adata.obs['%s'] has cells of one condition only, so that what it changes and "
                "what the condition changes cannot be told apart: a predicted change is that of both, or is "
                "taken for a nuisance. Leave it out, or add levels with cells of several conditions.",
                nuisance,
            )
