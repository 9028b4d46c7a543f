"""Synthetic cells, and whether they are copies of training cells."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from anndata import AnnData
from scipy import sparse, stats
from sklearn.neighbors import NearestNeighbors
from sklearn.utils.extmath import row_norms

from trvae_sc.arguments import check_seed
from trvae_sc.checks import looks_like_counts
from trvae_sc.errors import InputError
from trvae_sc.family._cells import check_model, values_of
from trvae_sc.model import TRVAE

Matrix = np.ndarray | sparse.spmatrix | sparse.sparray

_MAX_REFERENCE = 1000  # real cells whose distances are compared with
_CLOSE = 0.01  # share of real cells that count as close to another
_SIGNIFICANT = 1e-3
_SAME = 1e-5  # distance, relative to the length of the cell's vector, below which two are the same


def generate(
    model: TRVAE,
    condition: Any,
    n_obs: int = 1000,
    *,
    label: Any = None,
    latent: Literal["prior", "posterior"] | None = None,
    held_back: AnnData | None = None,
    seed: int = 0,
) -> AnnData:
    """Return synthetic cells of a condition, and a note on whether they copy training cells.

    Parameters
    ----------
    model
        Trained model with its training cells.
    condition, n_obs, label, latent, seed
        As in :meth:`trvae_sc.TRVAE.generate`, `label` as its `labels`. `latent` is None for the prior
        without a label, the posterior with one.
    held_back
        Real cells that the model was not trained on, to compare with; training cells among
        themselves if None.

    Returns
    -------
    AnnData of :meth:`trvae_sc.TRVAE.generate`: draws from the likelihood. ``uns["trvae_sc"]["copy_check"]``:
    what :func:`copy_check` finds on log(1 + kappa share) values (others: as they are).

    Raises
    ------
    NotTrainedError, InputError
        As :meth:`trvae_sc.TRVAE.generate`.

    Examples
    --------
    >>> cells = generate(model, "stimulated", 500)
    >>> print(cells.uns["trvae_sc"]["copy_check"]["note"])
    """
    check_model(model)
    if latent is None:
        latent = "prior" if label is None else "posterior"
    cells = model.generate(condition, n_obs, labels=label, latent=latent, seed=seed)
    train = model._validate_anndata(None)
    real = None if held_back is None else model._validate_anndata(held_back)
    values = [None if adata is None else values_of(model, adata) for adata in (cells, train, real)]
    cells.uns["trvae_sc"]["copy_check"] = copy_check(*values, seed=seed)
    return cells


def copy_check(
    generated: Matrix, train: Matrix, held_back: Matrix | None = None, *, seed: int = 0
) -> dict[str, Any]:
    r"""Compare how near generated and real cells are to training cells.

    With :math:`d_1` and :math:`d_2` the Euclidean distances of a cell to the nearest and the second
    nearest training cell, it is *close* where both :math:`d_1` and :math:`d_1 / d_2` are below their
    1 % quantiles over real cells: near to one training cell, and to no other. Generated cells are
    called copies where more of them than of the real cells are close (Fisher's exact test, one-sided,
    p < 0.001).

    Parameters
    ----------
    generated
        Generated cells, shape (n_cells, n_genes), on a log scale.
    train
        Training cells, the same genes.
    held_back
        Real cells that were not trained on; up to 1,000 training cells, each compared with all others,
        if None.
    seed
        Seed of the choice of those.

    Returns
    -------
    ``copies`` (whether), ``note`` (in words), ``n_close`` and ``n_generated``, ``n_close_real`` and
    ``n_real``, ``n_identical`` (generated cells equal to a training cell), ``median_distance`` and
    ``median_distance_real`` (of :math:`d_1`), ``p_value``. It is no proof of anonymity.

    Raises
    ------
    InputError
        Fewer than three training cells, no cells, other genes, values that are not finite, counts beside other
        values, or an AnnData.
    """
    check_seed(seed)
    given = {"train": train, "generated": generated}
    given |= {} if held_back is None else {"held_back": held_back}
    for name, x in given.items():
        if isinstance(x, AnnData):
            raise InputError(f"`{name}` is an AnnData: give its values on a log scale, a matrix.")
        if not ((isinstance(x, np.ndarray) or sparse.issparse(x)) and x.ndim == 2):
            raise InputError(
                f"`{name}` is no matrix, cells x genes: give an array or a sparse matrix."
            )
        if not np.isfinite(x.data if sparse.issparse(x) else x).all():
            raise InputError(f"`{name}` holds NaN or infinite values; give finite ones.")
    if train.shape[0] < 3:
        raise InputError(f"`train` has {train.shape[0]} cells; at least 3 are needed.")
    for name, x in given.items():
        if not x.shape[0] or x.shape[1] != train.shape[1]:
            raise InputError(
                f"`{name}` has shape {x.shape} and `train` {train.shape}: give cells, of the same genes."
            )
    counts = [name for name, x in given.items() if looks_like_counts(x, least=2)]
    if counts and (others := [name for name, x in given.items() if not looks_like_counts(x)]):
        raise InputError(
            f"{counts} hold counts and {others} other values, which do not compare. Give all on one log scale."
        )
    neighbors = NearestNeighbors(algorithm="brute").fit(train)
    if held_back is None:
        rng = np.random.default_rng(seed)
        n = min(train.shape[0], _MAX_REFERENCE)
        rows = np.sort(rng.choice(train.shape[0], n, replace=False))
        real = _nearest(neighbors, train[rows], itself=rows)
    else:
        real = _nearest(neighbors, held_back)
    found = _nearest(neighbors, generated)
    limits = np.quantile(real, _CLOSE, axis=0)
    close, close_real = ((d <= limits).all(axis=1) for d in (found, real))
    table = [[k.sum(), (~k).sum()] for k in (close, close_real)]
    p_value = stats.fisher_exact(table, alternative="greater").pvalue
    result = {
        "copies": bool(p_value < _SIGNIFICANT),
        "n_close": int(close.sum()),
        "n_generated": len(close),
        "n_close_real": int(close_real.sum()),
        "n_real": len(close_real),
        "n_identical": int((found[:, 0] == 0).sum()),
        "median_distance": float(np.median(found[:, 0])),
        "median_distance_real": float(np.median(real[:, 0])),
        "p_value": float(p_value),
    }
    return {"note": _note(result, held_back=held_back is not None), **result}


def _nearest(
    neighbors: NearestNeighbors, x: Matrix, itself: np.ndarray | None = None
) -> np.ndarray:
    """Return distance to the nearest and its ratio to the second; `itself`: rows that do not count."""
    distance, index = neighbors.kneighbors(x, n_neighbors=2 if itself is None else 3)
    if itself is not None:
        own = index == itself[:, None]
        own[~own.any(axis=1), -1] = True  # more than two others are the same: any of them will do
        distance = distance[~own].reshape(-1, 2)
    distance[distance <= _SAME * np.maximum(row_norms(x), 1.0)[:, None]] = 0.0  # rounding
    ratio = np.divide(*distance.T, out=np.zeros(len(distance)), where=distance[:, 1] > 0)
    return np.column_stack([distance[:, 0], ratio])


def _note(result: dict[str, Any], *, held_back: bool) -> str:
    """Return the result in words."""
    others = "held-back cells" if held_back else "training cells among themselves"
    verdict = (
        "the generated cells copy training cells."
        if result["copies"]
        else "no sign that generated cells copy training cells."
    )
    return (
        f"{result['n_close']} of {result['n_generated']} generated cells are as close to a single "
        f"training cell as {result['n_close_real']} of {result['n_real']} {others}; "
        f"{result['n_identical']} equal one; median distance to the nearest {result['median_distance']:.3g} "
        f"against {result['median_distance_real']:.3g}: {verdict} This compares distances; it does not "
        "prove that nobody can be recognised."
    )
