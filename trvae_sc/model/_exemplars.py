"""A few measured cells of the very combination to predict, combined with the prediction gene by gene."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from trvae_sc import checks
from trvae_sc.alignment import align
from trvae_sc.errors import InputError, naming
from trvae_sc.expression import (
    Keys,
    check_cells,
    dense,
    gene_means,
    log_values,
    mean_level,
    totals,
    values,
)
from trvae_sc.levels import level_name, listing
from trvae_sc.model._trained import Known, Trained
from trvae_sc.noise import sampling_variance

#: Scales of what is wrong with a prediction, from 1/4 to 8 times as much as expected.
_SCALES = 2.0 ** np.arange(-2, 4)
_FEW = 5  # genes of a cell vary together: fewer cells tell less than their number
_SCALE_OF_FEW = 0.5


@dataclass(frozen=True)
class Exemplars:
    """Measured cells of one label under the target."""

    #: f of their mean share, or their mean values on the scale of profiles; shape (n_genes,).
    mean: np.ndarray
    n: int  #: number of cells
    #: Harmonic mean of their totals in units of the median of training; 1 of values.
    relative_total: float
    spread: np.ndarray  #: of genes under the target (:attr:`Trained.spread`), shape (n_genes,)
    variance: np.ndarray  #: of cells about their mean: of kappa share, or values; (n_genes,)
    is_count: bool  #: whether f is log(1 + m); else it is m

    def combined(self, f: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        r"""Return a prediction f moved to the cells, and its variance in units of its `error`.

        .. math:: m \leftarrow m + w\,(m_e - m), \qquad w = \frac{\tau s^2}{\tau s^2 + v}

        for each gene, with the mean m (count of a cell of the median total, or value), the variance
        :math:`s^2` of what is wrong with the prediction (`error`) and that of the mean of n cells,
        v (:func:`trvae_sc.noise.sampling_variance`): the posterior mean of a normal prior, with
        variance :math:`(1 - w)\,\max(\tau, 1)\,s^2`. Of counts v is that of the mean that is
        predicted and half a count in all cells (Jeffreys): where none is predicted, that a few
        cells show none, or one, says little. :math:`\tau`, from 1/4 to 8, is how wrong this
        prediction is beside others (:meth:`scale`).
        """
        mean, seen = self._mean_of(f), self._mean_of(self.mean)
        scale = self.scale(f, error)
        weight = _weight(scale * error, self._noise(f, self.n))
        moved = mean + weight * (seen - mean)
        return np.log1p(moved) if self.is_count else moved, max(scale, 1.0) * (1.0 - weight)

    def scale(self, f: np.ndarray, error: np.ndarray) -> float:
        r"""Return tau, with which the cells that are left out one by one are predicted best.

        The mean over cells i of the squared distance of cell i from a prediction moved to the n - 1 others is, in
        closed form,

        .. math:: \sum_g \frac{(1 - w)^2 (m_e - m)^2 + \big(1 + \frac{w}{n - 1}\big)^2 \sigma^2}{(1 + m)^2}

        with the variance :math:`\sigma^2` of the cells (of values the denominator is :attr:`spread`). Below 5 cells
        it is 1/2.
        """
        if self.n < _FEW:
            return _SCALE_OF_FEW
        mean, seen = self._mean_of(f), self._mean_of(self.mean)
        if self.is_count:
            per_f = 1.0 + mean
        else:
            per_f = np.sqrt(np.where(self.spread > 0, self.spread, 1.0))
        apart = np.square((seen - mean) / per_f)
        within = self.variance / np.square(per_f)
        w = _weight(np.multiply.outer(_SCALES, error), self._noise(f, self.n - 1))
        losses = np.square(1 - w) * apart + np.square(1 + w / (self.n - 1)) * within
        return float(_SCALES[losses.sum(1).argmin()])

    def _mean_of(self, f: np.ndarray) -> np.ndarray:
        """Return the mean m of f."""
        return np.expm1(np.maximum(f, 0.0)) if self.is_count else f

    def _noise(self, f: np.ndarray, n: int) -> np.ndarray:
        """Return the variance v of the mean of n cells, on the scale of f."""
        if not self.is_count:
            return sampling_variance(f, self.spread, n, is_count=False)
        mean, total = self._mean_of(f), self.relative_total
        more = mean + 0.5 / (n * total)
        noise = sampling_variance(
            np.log1p(more), self.spread, n, is_count=True, relative_total=total
        )
        return noise * np.square((1.0 + more) / (1.0 + mean))  # to the scale of f


def _weight(error: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Return the weight of a mean with the variance `noise`, beside a prediction with the variance `error`.

    Cells of which nothing tells how much they vary, a noise of 0, have no weight.
    """
    return np.where(noise > 0, error / np.maximum(error + noise, np.finfo(float).tiny), 0.0)


def exemplars_of(
    trained: Trained, cells: AnnData | None, names: pd.Index, target: Any
) -> dict[str, Any]:
    """Return the exemplars of each label, from cells with the genes `names` in any order, if any."""
    if cells is None:
        return {}
    _check_takes_exemplars(trained)
    check_exemplars(cells)
    space, module = trained.conditions, trained.module
    key = [space.key] if isinstance(space.key, str) else space.key
    with naming("exemplars"):
        checks.check_obs(cells, [*key, trained.labels_key])
        aligned = align(cells, names, trained.layer, trained.total_counts_key)
    other = [c for c in space.column(cells.obs).unique() if _level(trained, c) != target]
    if other:
        raise InputError(
            f"exemplars has cells of {listing(other)}; all must be of the target, {level_name(target)!r}. Take "
            "those of it only."
        )
    total_key = trained.total_counts_key if module.is_count else None
    keys = Keys("", None, trained.layer, total_key, module.is_count)
    with naming("exemplars"):
        checks.check_obs(aligned, [], [total_key])
    check_cells(aligned, keys, name="exemplars")
    if not module.is_count and checks.looks_like_counts(values(aligned, keys), least=2):
        checks.logger.warning(
            "exemplars hold whole numbers, as counts do. They must be values on the scale that the model was trained "
            "on."
        )
    labels = trained.label_column(cells.obs).to_numpy()
    return {
        label: _of_label(trained, aligned[labels == label], keys, target)
        for label in sorted(set(labels))
    }


def exemplar_notes(known: Known, exemplars: Mapping[str, int], target: Any) -> list[str]:
    """Return what a reader of a prediction that was combined with so many measured cells should know."""
    if not exemplars:
        return []
    named = ", ".join(f"{n} of {label}" for label, n in exemplars.items())
    notes = [
        f"Measured cells under the target were combined with the prediction: {named}. A score against the same "
        "cells says nothing."
    ]
    code = known.conditions.code(target)
    seen = [label for label in exemplars if known.n_cells_of(label, code, seen=True)]
    if seen:
        notes.append(
            f"Training saw {', '.join(seen)} under the target, too: cells that it saw and that are exemplars "
            "count twice."
        )
    return notes


def check_labels(exemplars: Iterable[str], predicted: Iterable[str]) -> None:
    """Raise on exemplars of labels that are not predicted."""
    other = sorted(set(exemplars) - set(predicted))
    if other:
        raise InputError(
            f"exemplars has cells of {listing(other)}, but predicted are {listing(sorted(predicted))}. Take "
            "those of the labels to predict only."
        )


def _check_takes_exemplars(trained: Trained) -> None:
    """Raise on a model that takes no exemplars."""
    if not trained.module.calibrate:
        raise InputError(
            f"Models with calibrate=False (preset '{trained.preset}') take no exemplars: they have no change of "
            "a label apart from its cells. Use the default preset."
        )
    if trained.labels_key is None:
        raise InputError(
            "exemplars need labels, which tell how far a prediction is from the truth: name them with "
            "labels_key= in setup_anndata."
        )
    if not trained.spread.size:
        raise InputError(
            "The model was saved by a version that did not keep how much genes vary, which exemplars are "
            "weighted by. Train it again."
        )


def check_exemplars(cells: AnnData) -> None:
    """Raise on no cells, and on cells that are given twice."""
    with naming("exemplars"):
        checks.check_type(cells)
    if not cells.n_obs:
        raise InputError("exemplars has no cells. Leave it out, or pass measured cells.")
    if not cells.obs_names.is_unique:
        twice = cells.obs_names[cells.obs_names.duplicated()].unique()
        raise InputError(
            f"exemplars has several cells named {listing(twice)}. Pass each cell once, under a name of its own."
        )


def _level(trained: Trained, condition: Any) -> Any:
    """Return a condition as the model has it; itself if it is none."""
    try:
        return trained.conditions.level(condition)
    except InputError:
        return condition


def _of_label(trained: Trained, cells: AnnData, keys: Keys, target: Any) -> Exemplars:
    """Return the exemplars of one label."""
    module, spread = trained.module, trained.spread_of(trained.conditions.code(target))
    if not module.is_count:
        spread = np.maximum(spread, trained.spread_of(None))  # of a gene that training lacks there
        x = values(cells, keys)
        variance = np.var(dense(x), axis=0, dtype=np.float64)
        spread = np.where(spread > 0, spread, variance)  # of one that training lacks altogether
        return Exemplars(gene_means(x), cells.n_obs, 1.0, spread, variance, is_count=False)
    kappa = module.kappa.item()
    x = log_values(cells, keys, kappa)
    mean = mean_level(x, is_count=True)
    relative = cells.n_obs / float((kappa / totals(cells, keys)).sum())
    variance = np.var(dense(np.expm1(x)), axis=0, dtype=np.float64)
    return Exemplars(mean, cells.n_obs, relative, spread, variance, is_count=True)
