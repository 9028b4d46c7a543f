"""How far a predicted change can be trusted: from how well the labels predict each other."""

from __future__ import annotations

import numpy as np

from trvae_sc.expression import Pairs, label_weights, ridge_shift

LEVEL = 0.9  # share of genes that intervals are to cover
_PRIOR_LABELS = 1.0  # weight of the mean over genes in a gene's own mean squared residual
_HALF_CELLS = 300  # of a label whose residual says half as much as one of very many cells


def left_out_residuals(pairs: Pairs) -> np.ndarray:
    """Return what is wrong with each label's shift when the other labels predict it.

    Parameters
    ----------
    pairs
        What L labels show. States of the label left out are left out, too.

    Returns
    -------
    Shift less :func:`trvae_sc.expression.ridge_shift` from the others, shape (n_labels, n_genes).
    """
    return np.stack([left_out_residual(pairs, label) for label in range(len(pairs.profiles))])


def left_out_residual(pairs: Pairs, label: int) -> np.ndarray:
    """Return the row of :func:`left_out_residuals` of one label, shape (n_genes,)."""
    return pairs.shifts[label] - ridge_shift(pairs.profiles[label], pairs.without(label))


def half_width(pairs: Pairs, *, level: float = 0.9) -> np.ndarray | None:
    r"""Return half the width of each gene's interval for the shift of one more label.

    With residuals :math:`e_{lg}` of labels that were left out, a gene's scale is
    :math:`s_g^2 = (\sum_l w_l e_{lg}^2 + \overline{e^2}) / (\sum_l w_l + 1)`, drawn towards the mean
    over genes, and the half-width is :math:`q\,s_g` with q the `level` quantile, over labels and
    genes, of :math:`|e_{lg}| / s_g^{(-l)}`, the scale being that of the other labels (split-conformal,
    with labels as the exchangeable units; Vovk et al. 2005, doi:10.1007/b106715). Means and quantile
    are weighted, :func:`trvae_sc.expression.label_weights` with half at 300 cells: up to there much of
    what a label lacks is noise.

    Parameters
    ----------
    pairs
        What L labels seen under source and target show.
    level
        Share of genes that the intervals shall cover.

    Returns
    -------
    Shape (n_genes,); None for fewer than three labels, of which nothing can be learned.
    """
    if len(pairs.profiles) < 3:
        return None
    squares, weight = left_out_residuals(pairs) ** 2, label_weights(pairs.n_cells, _HALF_CELLS)
    scores = [
        np.sqrt(squares[i]) / _scale(np.delete(squares, i, 0), np.delete(weight, i))
        for i in range(len(squares))
    ]
    weights = np.repeat(weight, squares.shape[1])
    return _quantile(np.concatenate(scores), level, weights) * _scale(squares, weight)


def _scale(squares: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the scale of each gene from squared residuals, shape (n_labels, n_genes)."""
    total = weight @ squares + _PRIOR_LABELS * np.average(squares.mean(1), weights=weight)
    return np.sqrt(np.maximum(total / (weight.sum() + _PRIOR_LABELS), np.finfo(float).tiny))


def _quantile(values: np.ndarray, level: float, weight: np.ndarray) -> float:
    """Return a quantile of weighted values; of equal ones numpy's ``"hazen"``."""
    order = values.argsort()
    below = weight[order].cumsum() - 0.5 * weight[order]
    return float(np.interp(level * weight.sum(), below, values[order]))


def novelty(profile: np.ndarray, others: np.ndarray) -> float:
    """Return how far a profile is from others, in units of how far these are from each other.

    Parameters
    ----------
    profile
        Source profile of the label to predict, shape (n_genes,).
    others
        Those of the labels seen under source and target, shape (n_labels, n_genes).

    Returns
    -------
    Distance to the nearest of the others, divided by the median of the distances of each of them to
    its own nearest; NaN for fewer than two others. Above about 1.5 the label is outside of what
    training has seen.
    """
    if len(others) < 2:
        return float("nan")
    distances = np.linalg.norm(others[:, None] - others[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    typical = np.median(distances.min(1))
    return float(
        np.linalg.norm(others - profile, axis=1).min() / max(typical, np.finfo(float).tiny)
    )
