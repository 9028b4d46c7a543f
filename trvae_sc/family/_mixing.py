"""How far a representation tells conditions apart."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from trvae_sc.arguments import check_seed
from trvae_sc.errors import InputError
from trvae_sc.family._cells import check_model
from trvae_sc.model import TRVAE

_FOLDS = 5
_NEIGHBORS = 15
_MAX_CELLS = 5000


def mixing(
    model: TRVAE, adata: AnnData | None = None, *, on: Literal["z", "y"] = "z", seed: int = 0
) -> pd.DataFrame:
    r"""Return how far codes tell the condition, within each label.

    Parameters
    ----------
    model
        Trained model, any preset, set up with a condition.
    adata
        Cells to use, with their condition; the model's own if None. Of more than 5,000 a random choice.
    on
        ``"z"``, the code, or ``"y"``, the first decoder layer, which the MMD of trVAE aligns. What a decoder
        makes of the condition must be in y: its cells can be told apart even where means are the same.
    seed
        Seed of that choice and of the folds.

    Returns
    -------
    A row per label (``all`` without labels) with two conditions of at least five cells: ``classifier``, the
    accuracy of a logistic regression for the condition, five-fold cross-validated; ``chance``, the share of
    the largest condition; ``neighbors``, the share of other conditions among 15 nearest neighbours, divided
    by that among all other cells (1: mixed, 0: apart); ``variance``, the share of the variance that lies between
    conditions, :math:`\sum_c n_c \lVert \bar y_c - \bar y \rVert^2 / \sum_i \lVert y_i - \bar y \rVert^2`;
    ``n_cells``.

    Raises
    ------
    NotTrainedError, InputError
        The model is not trained; `on` is neither, or no label has two conditions.
    """
    check_model(model)
    if on not in ("z", "y"):
        raise InputError(f"on is {on!r}; choose 'z' (codes) or 'y' (first decoder layer).")
    check_seed(seed)
    if not model.conditions:
        raise InputError("The model was set up without condition_key: there is nothing to mix.")
    cells = model._validate_anndata(adata)
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(cells.n_obs)[:_MAX_CELLS])
    represent = model.get_latent_representation if on == "z" else model.get_mmd_representation
    x = represent(cells, indices=rows)
    obs = cells.obs.iloc[rows]
    groups = model.known.groups(obs)
    found = {}
    for label, at in groups.groupby("label", sort=True).indices.items():
        condition = groups["source"].to_numpy()[at]
        names, counts = np.unique(condition, return_counts=True)
        kept = np.isin(condition, names[counts >= _FOLDS])
        if (counts >= _FOLDS).sum() > 1:
            found[label] = _mixing(x[at][kept], condition[kept], seed)
    if not found:
        raise InputError(
            f"No label has two conditions of {_FOLDS} cells or more, so there is nothing to compare."
        )
    return pd.DataFrame(found).T.rename_axis("label")


def _mixing(x: np.ndarray, condition: np.ndarray, seed: int) -> dict[str, float]:
    """Return the measures of the cells of a label."""
    _, code, counts = np.unique(condition, return_inverse=True, return_counts=True)
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    n, k = len(x), min(_NEIGHBORS, len(x) - 1)
    nearest = NearestNeighbors(n_neighbors=k).fit(x).kneighbors(return_distance=False)
    other = (code[nearest] != code[:, None]).mean(1)
    expected = (n - counts[code]) / (n - 1)
    means = np.stack([x[code == c].mean(0) for c in range(len(counts))])
    total = np.square(x - x.mean(0)).sum()
    between = (counts * np.square(means - x.mean(0)).sum(1)).sum()
    return {
        "classifier": float(cross_val_score(classifier, x, code, cv=folds).mean()),
        "chance": float(counts.max() / n),
        "neighbors": float((other / expected).mean()),
        "variance": float(between / total) if total > 0 else 0.0,
        "n_cells": n,
    }
