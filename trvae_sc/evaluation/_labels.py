"""Labels of cells that have none, from those that do."""

from __future__ import annotations

from typing import Any, Unpack

import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.linear_model import LogisticRegression

from trvae_sc.arguments import check_seed, check_whole
from trvae_sc.checks import check_matrix, check_names, check_obs, check_type
from trvae_sc.errors import InputError
from trvae_sc.evaluation._checks import LEAST_GENES, check_counts
from trvae_sc.evaluation._genes import choose_genes
from trvae_sc.evaluation._tasks import components
from trvae_sc.expression import KeyNames, Keys, dense, keys_from, log_values, median_total
from trvae_sc.levels import codes_of, level_name, listing

_STEPS = 10  # of labels and shifts in turn, at most
_PENALTY = 0.1  # inverse strength of the penalty on the classifier's weights
_LEAST = 2  # labels to tell apart


def predict_labels(
    adata: AnnData,
    *,
    unlabeled_category: Any = "Unknown",
    n_top_genes: int | None = 2000,
    seed: int = 0,
    keys: Any = None,
    **names: Unpack[KeyNames],
) -> pd.DataFrame:
    """Return the label of every cell: its own, or for cells without one the most likely.

    Logistic regression on the principal components of log values tells labels apart. How far a condition
    moves its cells, in the mean over the labels found there, is taken off first; labels and shifts are
    found in turn until they stay.

    Parameters
    ----------
    adata
        Cells; not changed.
    unlabeled_category
        Level of the labels that means: not known. Missing values mean that, too.
    n_top_genes
        Number of genes, chosen as by :func:`trvae_sc.evaluation.choose_genes`; all if None.
    seed
        Seed of the principal components.
    keys, **names
        Where the data are: :class:`Keys`, a model for what it was set up with, or fields of :class:`Keys` by name.

    Returns
    -------
    ``predicted_label`` and ``label_probability`` (1 where it was known) of every cell, for ``adata.obs``. Cells of a
    label that no cell is known to have get the nearest.

    Raises
    ------
    InputError
        No cell or every cell has a label, or fewer than two labels are known; columns or values that cannot
        be used.

    Examples
    --------
    >>> import numpy as np
    >>> adata = trvae_sc.datasets.simulate(600, 100, n_labels=3)
    >>> known = np.where(adata.obs["condition"] == "control", adata.obs["cell_type"], "Unknown")
    >>> adata.obs["known"] = known
    >>> found = trvae_sc.predict_labels(adata, condition_key="condition", labels_key="known")
    >>> bool((found["predicted_label"] == adata.obs["cell_type"].astype(str)).mean() > 0.8)
    True
    """
    check_seed(seed)
    if n_top_genes is not None:
        check_whole("n_top_genes", n_top_genes, LEAST_GENES)
    keys = keys_from(keys, names)
    check_type(adata)
    if adata.n_vars < LEAST_GENES:
        raise InputError(f"adata has {adata.n_vars} genes; at least {LEAST_GENES} are needed.")
    check_names(adata)
    check_matrix(adata, keys.layer)
    if keys.labels_key is None:
        raise InputError("Which column has the labels? Name it: labels_key=.")
    if keys.labels_key not in adata.obs:
        raise InputError(
            f"No column '{keys.labels_key}' in adata.obs; there are {list(adata.obs.columns)}."
        )
    check_obs(adata, keys.condition_columns, [keys.total_counts_key if keys.is_count else None])
    check_counts(adata, keys)
    label = _known(adata.obs[keys.labels_key], unlabeled_category)
    z = _components(adata, keys, n_top_genes, seed)
    condition = codes_of(keys.conditions(adata.obs))[0]
    found, probability = _classified(z, condition, label)
    return pd.DataFrame(
        {"predicted_label": found, "label_probability": probability}, index=adata.obs_names
    )


def _known(column: pd.Series, unlabeled_category: Any) -> np.ndarray:
    """Return the label of each cell as text, None where it is not known."""
    codes, found = codes_of(column)
    names = np.array([*found, None], dtype=object)[codes]
    names[names == level_name(unlabeled_category)] = None
    known = sorted({name for name in names if name is not None})
    n_unknown = int(sum(name is None for name in names))
    if not n_unknown:
        raise InputError(
            f"Every cell has a label in adata.obs['{column.name}'], none is {unlabeled_category!r} or "
            f"missing; labels are {listing(known)}. Name the level that means unknown: unlabeled_category=."
        )
    if len(known) < _LEAST:
        raise InputError(
            f"adata.obs['{column.name}'] has the labels {known} besides {unlabeled_category!r}: at least "
            f"{_LEAST} are needed to tell them apart."
        )
    return names


def _components(adata: AnnData, keys: Keys, n_top_genes: int | None, seed: int) -> np.ndarray:
    """Return principal components of the log values of chosen genes, shape (n_cells, 50 at most)."""
    x = log_values(adata, keys, median_total(adata, keys))
    if n_top_genes is not None and n_top_genes < adata.n_vars:
        x = x[:, choose_genes(adata, keys._replace(labels_key=None), n_top_genes).chosen]
    x = np.ascontiguousarray(
        dense(x), dtype=np.float32
    )  # else rounding depends on the order in memory
    return components(x, seed).transform(x).astype(np.float64)


def _classified(
    z: np.ndarray, condition: np.ndarray, label: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the label of each cell and its probability."""
    is_known = np.array([name is not None for name in label])
    found, probability = label.copy(), np.ones(len(label))
    shift = np.zeros((condition.max() + 1, z.shape[1]))
    for _ in range(_STEPS):
        moved = z - shift[condition]
        classifier = LogisticRegression(C=_PENALTY, max_iter=2000)
        classifier.fit(moved[is_known], label[is_known].astype(str))
        chance = classifier.predict_proba(moved[~is_known])
        before, found[~is_known] = found[~is_known].copy(), classifier.classes_[chance.argmax(1)]
        probability[~is_known] = chance.max(1)
        if (before == found[~is_known]).all():
            break
        shift = _shifts(z, moved, condition, found, is_known)
    return found.astype(str), probability


def _shifts(
    z: np.ndarray, moved: np.ndarray, condition: np.ndarray, label: np.ndarray, is_known: np.ndarray
) -> np.ndarray:
    """Return how far each condition moves its cells: the mean over labels, of many cells more."""
    centres = pd.DataFrame(moved[is_known]).groupby(label[is_known]).mean()
    groups = pd.DataFrame(z).groupby([condition, label])
    moves = groups.mean() - centres.reindex(groups.size().index, level=1)
    weights = np.sqrt(groups.size())
    weighted = moves.mul(weights, axis=0).groupby(level=0).sum()
    return weighted.div(weights.groupby(level=0).sum(), axis=0).to_numpy()
