"""Checks of data and hold-outs, before any work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from anndata import AnnData
from scipy import sparse

from trvae_sc.baselines._shift import check_new
from trvae_sc.checks import (
    NEED_COUNTS,
    check_matrix,
    check_names,
    check_obs,
    check_type,
    looks_like_counts,
    matrix_name,
)
from trvae_sc.errors import InputError
from trvae_sc.evaluation._holdouts import Holdout
from trvae_sc.expression import Keys, check_cells, conditions_of, values
from trvae_sc.identity import row_chunks
from trvae_sc.levels import as_text, level_name

LEAST_HIDDEN = 4  #: cells that are scored, which the ceiling halves
LEAST_GENES = 2  #: of which there are principal components and correlations


def check_data(adata: AnnData, keys: Keys, *further: str) -> None:
    """Raise on data that methods cannot be compared on, before any work."""
    columns = [*keys.condition_columns, keys.labels_key, keys.batch_key, *further]
    check_type(adata)
    if adata.n_vars < LEAST_GENES:
        raise InputError(f"adata has {adata.n_vars} genes; at least {LEAST_GENES} are needed.")
    check_names(adata)
    check_matrix(adata, keys.layer)
    check_obs(adata, columns, [keys.total_counts_key if keys.is_count else None])
    check_leaks(adata, keys)
    check_counts(adata, keys)
    conditions_of(adata, keys)  # raises on features that do not describe them
    check_cells(adata, keys, name=matrix_name(keys.layer))


def check_leaks(adata: AnnData, keys: Keys) -> None:
    """Raise on data that were prepared with all cells, as far as it shows.

    Parameters
    ----------
    adata, keys
        Cells, and where the data are.

    Raises
    ------
    InputError
        Only genes marked as highly variable are left, or nearly all (of values that are no counts) were scaled.
    """
    if "highly_variable" in adata.var and adata.var["highly_variable"].all():
        raise InputError(
            "Every gene is in adata.var['highly_variable']: the genes were chosen on all cells, those "
            "to be hidden among them. Pass all genes; they are chosen anew for each hold-out. If the "
            "choice came from elsewhere, drop the column."
        )
    if keys.is_count or not adata.n_obs:
        return
    sums = np.zeros((2, adata.n_vars))
    for _, block in row_chunks(values(adata, keys), adata.n_obs):
        x = block.astype(np.float64)
        squares = x.multiply(x) if sparse.issparse(x) else x * x
        sums += [np.asarray(part.sum(0)).ravel() for part in (x, squares)]
    mean = sums[0] / adata.n_obs
    deviation = np.sqrt(np.maximum(sums[1] / adata.n_obs - mean**2, 0.0))
    scaled = (np.abs(mean) < 1e-3) & (np.abs(deviation - 1) < 1e-2)
    if scaled.mean() > 0.9:
        raise InputError(
            f"{scaled.sum()} of {len(scaled)} features have mean 0 and deviation 1: they were scaled "
            "with all cells, those to be hidden among them. Pass the values before scaling."
        )


def check_counts(adata: AnnData, keys: Keys) -> None:
    """Raise on values that are to be counts and are not; all cells are looked at.

    Parameters
    ----------
    adata, keys
        Cells, and where the data are.

    Raises
    ------
    InputError
        Values are negative, fractional or no numbers.
    """
    if keys.is_count and not looks_like_counts(values(adata, keys), adata.n_obs):
        raise InputError(
            f"The values are not counts (negative or fractional), and methods need {NEED_COUNTS}; or set "
            "is_count=False to compare values as they are."
        )


def check_holdout(adata: AnnData, holdout: Holdout, keys: Keys) -> None:
    """Raise on a hold-out that cannot be predicted and scored."""
    if holdout.source is None:
        raise InputError(
            f"Hold-out {holdout} has no source: name the condition to predict from, as in "
            "Holdout(label, target, source)."
        )
    if level_name(holdout.source) == level_name(holdout.target):
        raise InputError(f"Hold-out {holdout} has {holdout.source!r} as source and as target.")
    check_obs(adata, [*keys.condition_columns, keys.labels_key, *holdout.columns])
    hidden, start = holdout.hidden(adata, keys), holdout.sources(adata, keys)
    for name, rows, least in (("hidden", hidden, LEAST_HIDDEN), ("source", start, 2)):
        if rows.sum() < least:
            raise InputError(
                f"{holdout} has {rows.sum()} {name} cells; at least {least} are needed."
            )


def check_unseen(
    adata: AnnData, holdouts: Sequence[Holdout], keys: Keys, methods: Iterable[str]
) -> None:
    """Raise where a condition is hidden as a whole and methods could not know of it."""
    conditions = as_text(keys.conditions(adata.obs))
    different: dict[tuple[object, str], Holdout] = {}
    for holdout in holdouts:  # labels of a condition that is hidden whole hide the same
        different.setdefault((holdout.hides, level_name(holdout.target)), holdout)
    for holdout in different.values():
        hidden = np.any([h.hidden(adata, keys) for h in (holdout, *holdout.also)], axis=0)
        under_target = (conditions == level_name(holdout.target)).to_numpy()
        if not under_target.any() or (under_target & ~hidden).any():
            continue
        space = conditions_of(adata[~hidden], keys)
        if not space.tells_of_new:
            raise InputError(
                f"{holdout} hides all cells under {holdout.target!r}, and nothing describes it: name a table "
                "with condition_features=, of sets of parts condition_separator=, or hide one label at a time."
            )
        try:
            target = space.level(holdout.target)
            for name in methods:
                check_new(name, space, target)
        except InputError as error:
            raise InputError(
                f"{holdout} hides all cells under {holdout.target!r}. {error}"
            ) from error
