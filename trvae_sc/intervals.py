"""Intervals and p-values of predicted changes, from how labels that were left out were predicted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LEVEL = 0.9  # share of genes that intervals are to cover
_PRIOR_LABELS = 1.0  # weight of the mean over genes in a gene's own mean squared residual
_ROUNDING = 1e-9  # residuals, in units of the largest, that are none
_SURE_CELLS = 300  # of a label whose residual says half as much as one of very many cells


def half_width(
    missed: np.ndarray, n: np.ndarray, *, unit: np.ndarray | None = None, level: float = LEVEL
) -> np.ndarray | None:
    r"""Return half the width of each gene's interval for the change of one more label.

    With residuals :math:`e_{lg}` of labels that were left out, a gene's scale is
    :math:`s_g^2 = (\sum_l w_l e_{lg}^2 + \overline{e^2}) / (\sum_l w_l + 1)`, drawn towards the mean
    over genes, and the half-width is :math:`q\,s_g` with q the `level` quantile, over labels and
    genes, of :math:`|e_{lg}| / s_g^{(-l)}`, the scale being that of the other labels (split-conformal,
    with labels as the exchangeable units; Vovk et al. 2005, doi:10.1007/b106715). Means and quantile have
    the weights :math:`w_l = n_l / (n_l + 300)`, divided by their maximum: up to there much of what a label lacks is
    noise. Genes of which nothing was missed in any label, such as those that no cell shows, tell nothing of others.

    Parameters
    ----------
    missed
        Residuals of L labels, shape (n_labels, n_genes); NaN where one is not known.
    n
        Cells that each rests on, shape (n_labels,).
    unit
        Codes of what is exchangeable, where several residuals are of one; each is one of its own if None.
    level
        Share of genes that the intervals shall cover.

    Returns
    -------
    Shape (n_genes,); None for fewer than three labels, of which nothing can be learned.
    """
    found = standardised(missed, n, unit=unit)
    if found is None:
        return None
    scores, weights, scale = found
    return _quantile(scores, level, weights) * scale


def standardised(
    missed: np.ndarray, n: np.ndarray, *, unit: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Return absolute residuals in units of their gene's scale, their weights, and the genes' scales.

    See :func:`half_width`; shapes (n_residuals,), the same, (n_genes,); None for fewer than three labels.
    """
    found = _scales(missed, n, unit)
    if found is None:
        return None
    others, weight, scale, known = found
    return (np.abs(missed) / others)[known], weight[known], scale


@dataclass(frozen=True)
class Decoys:
    r"""How often a change as large is predicted of a gene that does not change so.

    Of labels that were left out, the predictions with the wrong sign tell how large changes are predicted
    where there are none: the p-value is the weighted share of their :math:`|\hat d_{lg}| / s_g^{(-l)}` that
    reach :math:`|\text{change}| / s_g` (one more that does is added), in units of the scales of
    :func:`half_width`. Of genes that do not change, half of the predictions have the wrong sign, by chance
    (as decoys have; Elias and Gygi 2007,
    doi:10.1038/nmeth1019). It is evidence from how well labels predict each other, and of replicates only
    where the residuals are theirs (``replicate_key``).

    Parameters
    ----------
    scores
        How large they are, rising, shape (n_decoys,).
    above
        Weight of those at least as large, and of none, shape (n_decoys + 1,).
    one
        Weight of one more.
    scale
        Of each gene, shape (n_genes,).
    """

    scores: np.ndarray
    above: np.ndarray
    one: float
    scale: np.ndarray

    @classmethod
    def of(
        cls, predicted: np.ndarray, missed: np.ndarray, n: np.ndarray, *, unit: np.ndarray | None
    ) -> Decoys | None:
        """Return the decoys of changes predicted of labels left out, and of truth less these.

        `n` and `unit` are those of :func:`half_width`; None for fewer than three units.
        """
        found = _scales(missed, n, unit)
        if found is None:
            return None
        others, weight, scale, known = found
        is_wrong = known & (predicted * (predicted + missed) <= 0)
        scores, weights = (np.abs(predicted) / others)[is_wrong], weight[is_wrong]
        order = scores.argsort()
        above = np.append(weights[order][::-1].cumsum()[::-1], 0.0)
        one = float(weights.mean()) if len(weights) else 1.0
        return cls(scores[order], above, one, scale)

    def __call__(self, change: np.ndarray) -> np.ndarray:
        """Return the p-values of a change, shape (n_genes,)."""
        at = np.searchsorted(self.scores, np.abs(change) / self.scale, side="left")
        return np.minimum((self.above[at] + self.one) / (self.above[0] + self.one), 1.0)


def _scales(
    missed: np.ndarray, n: np.ndarray, unit: np.ndarray | None
) -> tuple[np.ndarray, ...] | None:
    """Return each gene's scale without a unit, weights of residuals, its scale, and which residuals tell of others.

    Shapes (n_residuals, n_genes), of the scale (n_genes,); None for fewer than three units.
    """
    units, code = np.unique(np.arange(len(missed)) if unit is None else unit, return_inverse=True)
    if len(units) < 3:
        return None
    weight = n / (n + _SURE_CELLS)
    known = np.isfinite(missed)
    weight = (weight / weight.max())[:, None] * known
    squares = weight * np.square(np.where(known, missed, 0.0))
    each, n_each = (
        np.stack([x[code == u].sum(0) for u in range(len(units))]) for x in (squares, weight)
    )
    # genes of which something was missed, and not by rounding; all if nothing was of any
    telling = squares.max(0) > _ROUNDING**2 * squares.max()
    telling |= ~telling.any()
    without = _scale(_of_others(each), _of_others(n_each), telling)
    return without[code], weight, _scale(each.sum(0), n_each.sum(0), telling), known & telling


def _of_others(sums: np.ndarray) -> np.ndarray:
    """Return for each row the sum of all others, shape of `sums`; no large number is taken from another."""
    others = np.zeros_like(sums)
    others[1:] = sums[:-1].cumsum(0)
    others[:-1] += sums[:0:-1].cumsum(0)[::-1]
    return others


def _scale(squares: np.ndarray, weight: np.ndarray, telling: np.ndarray) -> np.ndarray:
    """Return the scale of each gene from sums of weighted squared residuals and of weights, (..., n_genes)."""
    of_all = [x[..., telling].sum(-1, keepdims=True) for x in (squares, weight)]
    total = squares + _PRIOR_LABELS * of_all[0] / np.maximum(of_all[1], 1e-12)
    return np.sqrt(np.maximum(total / (weight + _PRIOR_LABELS), np.finfo(float).tiny))


def _quantile(values: np.ndarray, level: float, weight: np.ndarray) -> float:
    """Return a quantile of weighted values; of equal ones numpy's ``"hazen"``."""
    order = values.argsort()
    below = weight[order].cumsum() - 0.5 * weight[order]
    return float(np.interp(level * weight.sum(), below, values[order]))
