"""Values of an AnnData on the scale that predictions are made and compared on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from trvae_sc.errors import InputError
from trvae_sc.levels import as_text, level_name

_RIDGE = 0.3  # in units of the mean squared distance of a label's profile from the mean profile
_ROWS = 4096  # of a matrix that may be in a file, summed at a time
_STATE_RIDGE = 0.2  # the same where states teach too
_HALF_CELLS = 30  # of a label that counts half of one with very many


class Keys(NamedTuple):
    """Where an AnnData holds what a prediction needs.

    Parameters
    ----------
    condition_key
        Column of ``obs`` with the condition.
    labels_key
        Column with the label (cell type), or None.
    layer
        Layer with the values; ``X`` if None.
    total_counts_key
        Column with each cell's total over all its genes; their sum if None.
    is_count
        Whether the values are counts, compared as log(1 + kappa share) with kappa the median total
        of the training cells; else they are compared as they are.
    batch_key
        Column with the batch, which models condition on, or None.
    """

    condition_key: str
    labels_key: str | None = None
    layer: str | None = None
    total_counts_key: str | None = None
    is_count: bool = True
    batch_key: str | None = None

    def further(self) -> dict[str, str | None]:
        """Return the arguments of ``TRVAE.setup_anndata`` besides the condition."""
        names = ("labels_key", "layer", "batch_key", "total_counts_key")
        return {name: getattr(self, name) for name in names}


def evenly_spaced(rows: np.ndarray, n_max: int) -> np.ndarray:
    """Return at most so many of some rows, the same every time: enough for a mean."""
    if len(rows) <= n_max:
        return rows
    return rows[np.linspace(0, len(rows) - 1, n_max).astype(int)]


def values(adata: AnnData, keys: Keys) -> Any:
    """Return the values of an AnnData, sparse or dense."""
    return adata.X if keys.layer is None else adata.layers[keys.layer]


def totals(adata: AnnData, keys: Keys) -> np.ndarray:
    """Return the total counts of each cell, shape (n_cells,)."""
    if keys.total_counts_key is not None:
        return adata.obs[keys.total_counts_key].to_numpy(dtype=np.float64)
    x = values(adata, keys)
    starts = range(0, adata.n_obs, _ROWS)  # X may be in a file
    # in float64, whatever the type: sums of float16 overflow, those of int8 wrap around
    sums = [np.asarray(x[i : i + _ROWS].sum(axis=1, dtype=np.float64)).ravel() for i in starts]
    return np.concatenate(sums) if sums else np.zeros(0)


def log_values(adata: AnnData, keys: Keys, kappa: float) -> Any:
    """Return log(1 + kappa share) of counts, other values as they are; sparse stays sparse."""
    x = values(adata, keys)
    if not keys.is_count:
        return x
    total = totals(adata, keys)
    scale = np.divide(kappa, total, out=np.zeros_like(total), where=total != 0)
    if sparse.issparse(x):
        return (sparse.diags_array(scale) @ x.tocsr().astype(np.float64)).log1p()
    return np.log1p(np.asarray(x, dtype=np.float64) * scale[:, None])


def dense(x: Any) -> np.ndarray:
    """Return a matrix as an array."""
    return x.toarray() if sparse.issparse(x) else np.asarray(x)


def median_total(train: AnnData, keys: Keys) -> float:
    """Return kappa, the median total of the training cells (1 for values that are not counts)."""
    return float(np.median(totals(train, keys))) if keys.is_count else 1.0


class States(NamedTuple):
    """Parts of labels that were seen under source and target."""

    profiles: np.ndarray  #: source profiles, shape (n_states, n_genes)
    shifts: np.ndarray  #: shape (n_states, n_genes)
    label: np.ndarray  #: row of each state's label among the labels, shape (n_states,)

    def without(self, label: int) -> States:
        """Return the states of the other labels."""
        keep = self.label != label
        places = self.label[keep] - (self.label[keep] > label)
        return States(self.profiles[keep], self.shifts[keep], places)


class Pairs(NamedTuple):
    """What the labels seen under source and target show."""

    profiles: np.ndarray  #: source profiles, shape (n_labels, n_genes)
    shifts: np.ndarray  #: from source to target, same shape
    n_cells: np.ndarray  #: under source and target, shape (n_labels, 2)
    states: States | None = None

    def without(self, label: int) -> Pairs:
        """Return what the other labels show."""
        parts = (np.delete(values, label, 0) for values in self[:3])
        return Pairs(*parts, None if self.states is None else self.states.without(label))


class Profiles(NamedTuple):
    """Means of the training cells by label and condition (as text): of log values or latent codes."""

    mean: dict[tuple[str, str], np.ndarray]
    n_cells: dict[tuple[str, str], int]
    kappa: float

    def known_pairs(self, source: Any, target: Any, *, of: Any) -> Pairs:
        """Return :meth:`pairs` to predict a label from.

        Raises
        ------
        InputError
            There are none.
        """
        found = self.pairs(source, target)
        if found is None:
            raise InputError(
                f"No label was measured under both {source!r} and {target!r}, so there is no shift "
                f"to learn for {of!r}."
            )
        return found

    def pairs(self, source: Any, target: Any) -> Pairs | None:
        """Return what the labels with cells under both show, if any have."""
        source, target = level_name(source), level_name(target)
        labels = [lab for lab, c in self.mean if c == source and (lab, target) in self.mean]
        if not labels:
            return None
        start, end = (np.stack([self.mean[lab, c] for lab in labels]) for c in (source, target))
        n_cells = np.array([[self.n_cells[lab, c] for c in (source, target)] for lab in labels])
        return Pairs(start, end - start, n_cells)


def profiles(train: AnnData, keys: Keys) -> Profiles:
    """Return the mean log values of each label (all cells, without labels) and condition."""
    kappa = median_total(train, keys)
    x = log_values(train, keys, kappa)
    rows = dict(groups(train.obs, keys))
    means = {group: gene_means(x[at]) for group, at in rows.items()}
    return Profiles(means, {group: len(at) for group, at in rows.items()}, kappa)


def groups(obs: pd.DataFrame, keys: Keys) -> Iterator[tuple[tuple[str, str], np.ndarray]]:
    """Yield the rows of each (label, condition) present, named as text."""
    label = as_text(obs[keys.labels_key]) if keys.labels_key is not None else "all"
    frame = pd.DataFrame({"label": label, "condition": as_text(obs[keys.condition_key])})
    yield from frame.groupby(["label", "condition"], sort=True).indices.items()


def gene_means(x: Any) -> np.ndarray:
    """Return the mean of each gene, shape (n_genes,)."""
    return np.asarray(x.mean(axis=0), dtype=np.float64).ravel()


def weighted_mean_shift(pairs: Pairs) -> np.ndarray:
    """Return the mean shift of labels, with weights :func:`label_weights`, shape (n_genes,)."""
    return np.average(pairs.shifts, 0, label_weights(pairs.n_cells))


def ridge_shift(profile: np.ndarray, pairs: Pairs) -> np.ndarray:
    r"""Predict a label's shift from the shifts of other labels and how alike the profiles are.

    With centred source profiles Z of the other labels, their shifts D, the mean shift
    :math:`\bar d` and the centred profile z of the label to predict (kernel ridge regression)

    .. math:: \hat d = \bar d + z Z^\top \Big(Z Z^\top
       + 0.3\,\overline{\lVert z_l \rVert^2}\, W^{-1}\Big)^{-1} (D - \bar d)

    where means over labels and the diagonal of W have weights :math:`w_l`, :func:`label_weights`: the
    mean of a few cells says little.

    States of these labels add rows to Z and D, centred like the labels, whose ridge is that of their
    label times the number of its states: together they weigh about as much as it. The factor is then
    0.2 in place of 0.3.

    Parameters
    ----------
    profile
        Source profile of the label to predict, shape (n_genes,).
    pairs
        What the L other labels show.

    Returns
    -------
    Shape (n_genes,). The mean shift where there is one label, or labels that do not differ.
    """
    weight, shifts, states = label_weights(pairs.n_cells), pairs.shifts, pairs.states
    mean, centre = weighted_mean_shift(pairs), np.average(pairs.profiles, 0, weight)
    z_others, z = pairs.profiles - centre, profile - centre
    ridge = _RIDGE * np.average(np.square(z_others).sum(1), weights=weight) / weight
    if not ridge.all():
        return mean
    if states is not None and len(states.label):
        n_states = np.bincount(states.label)[states.label]
        z_others = np.concatenate([z_others, states.profiles - centre])
        shifts = np.concatenate([shifts, states.shifts])
        ridge = np.concatenate([ridge, ridge[states.label] * n_states]) * (_STATE_RIDGE / _RIDGE)
    weights = np.linalg.solve(z_others @ z_others.T + np.diag(ridge), z_others @ z)
    return mean + weights @ (shifts - mean)


def label_weights(n_cells: np.ndarray, half: float = _HALF_CELLS) -> np.ndarray:
    r"""Return how much the labels count, from 0 to 1 for the one with most cells.

    .. math:: w_l \propto \frac{n_l}{n_l + n_{1/2}}

    with the harmonic mean :math:`n_l` of a label's cells under source and target, shape (n_labels, 2):
    the error of its shift is some variance times :math:`1/n_l`. A label of `half` cells,
    :math:`n_{1/2}`, counts half of one with very many.
    """
    with np.errstate(divide="ignore"):  # without cells: 0
        harmonic = 2.0 / (1.0 / n_cells).sum(1)
    weight = harmonic / (harmonic + half)
    return weight / weight.max()
