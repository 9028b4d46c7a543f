"""What the training labels show of a change: their profiles, shifts and responses to other conditions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from trvae_sc.expression import Pairs, States, label_weights
from trvae_sc.levels import level_name
from trvae_sc.states import MIN_CELLS

if TYPE_CHECKING:
    from trvae_sc.model._model import TRVAE

_RESPONSES = 3.0  # weight of all responses of labels beside their profiles, in how alike they are


def additive_pairs(model: TRVAE, source: Any, target: Any) -> Pairs:
    """Return the changes to a condition that was not measured, were those of its parts additive.

    Of the labels with cells under the source, and under conditions that tell
    (:func:`trvae_sc.model._conditions.contrast`).
    """
    profiles, start = model.module.profiles.cpu().numpy(), model.conditions.index(source)
    pairs = []
    for own, known in zip(profiles, model.module.n_cells.cpu().numpy(), strict=True):
        weights = model._condition_contrast(target, source, known) if known[start] else None
        if weights is not None:
            variance = (weights**2 / np.maximum(known, 1)).sum()  # as of two means of 2 / variance
            pairs.append((own[start].astype(float), weights @ own, [2.0 / variance] * 2))
    return Pairs(*map(np.array, zip(*pairs, strict=True))) if pairs else _no_pairs(model)


def _no_pairs(model: TRVAE) -> Pairs:
    none = np.empty((0, len(model.module.gene_mean)))
    return Pairs(none, none, np.empty((0, 2)))


def seen_pairs(model: TRVAE, source: Any, target: Any) -> Pairs:
    """Return what the labels seen under both conditions show, on the scale of f."""
    n_cells = model.module.n_cells.cpu().numpy()
    if target not in model.conditions:
        return _no_pairs(model)
    s, t = model.conditions.index(source), model.conditions.index(target)
    seen = _seen(n_cells, s, t)
    # the two conditions first: copies of all of them would cost the square of their number
    start, end = (model.module.profiles[:, c].cpu().numpy()[seen].astype(float) for c in (s, t))
    pairs = Pairs(start, end - start, n_cells[seen][:, [s, t]])
    if model.module.state_profiles is None:
        return pairs
    known = model.module.state_n_cells.cpu().numpy()[seen]
    known = np.minimum(known[..., s], known[..., t]) >= MIN_CELLS
    known &= known.sum(1, keepdims=True) > 1  # a single one is the label again
    start, end = (
        model.module.state_profiles[:, :, c].cpu().numpy()[seen][known].astype(float)
        for c in (s, t)
    )
    return pairs._replace(states=States(start, end - start, np.nonzero(known)[0]))


class Responses:
    r"""How alike labels respond to conditions other than the target.

    Labels that answered other conditions alike will answer the target alike. With the change
    :math:`e_{lc}` (f-scale) of label l from the source to condition c, less its mean over the labels
    seen under source and target, times its weight (:func:`trvae_sc.expression.label_weights`; 0 where
    it was not measured), the inner product of two source profiles becomes, for a label m to predict,

    .. math:: \langle z_l, z_k \rangle + \frac{3}{C} \sum_c \langle e_{lc}, e_{kc} \rangle

    over the C conditions that were measured in m and in at least two of the labels seen (between
    conditions of a frozen reference, those of the reference).

    Parameters
    ----------
    model
        Trained model.
    source, target
        Conditions of the model.
    """

    def __init__(self, model: TRVAE, source: Any, target: Any) -> None:
        n_cells, profiles = (
            getattr(model.module, k).cpu().numpy() for k in ("n_cells", "profiles")
        )
        s, t = model.conditions.index(source), model.conditions.index(target)
        self.names = [level_name(label) for label in model.labels]
        self.seen = _seen(n_cells, s, t)
        self.known = (n_cells > 0) & (n_cells[:, [s]] > 0)  # by label and condition
        self.known[:, self.known[self.seen].sum(0) < 2] = False
        if max(s, t) < model.frozen_conditions_:  # a query leaves such predictions as they were
            self.known[:, model.frozen_conditions_ :] = False
        self.known[:, [s, t]] = False
        self.products = np.zeros((n_cells.shape[1], len(n_cells), len(n_cells)))
        start = profiles[:, s].astype(float)
        for c in np.flatnonzero(self.known.any(0)):
            weight = label_weights(n_cells[:, [s, c]])
            change = profiles[:, c] - start
            change -= np.average(change, axis=0, weights=weight * self.seen)
            change *= weight[:, None]
            self.products[c] = change @ change.T

    def conditions(self, label: str) -> tuple[int, ...]:
        """Return the codes of the conditions that tell how like others a label is."""
        code = self.names.index(label) if label in self.names else None
        return () if code is None else tuple(np.flatnonzero(self.known[code]).tolist())

    def beside(self, label: str, observed: np.ndarray, pairs: Pairs) -> tuple[np.ndarray, Pairs]:
        """Return the profiles of a label and of those it is compared with, and responses beside them.

        Parameters
        ----------
        label
            Label to predict.
        observed
            Its source profile, shape (n_genes,).
        pairs
            :func:`seen_pairs` of source and target, L labels.

        Returns
        -------
        `observed`, shape (n_genes + L + 1,), and `pairs` with such profiles: the further columns have
        the products of the responses. States have those of their label. Both are returned as they
        are for a label without cells of the source or of any condition that tells.
        """
        known = list(self.conditions(label))
        if not known:
            return observed, pairs
        rows = np.append(np.flatnonzero(self.seen), self.names.index(label))
        products = self.products[known].mean(0)[np.ix_(rows, rows)]
        size, axes = np.linalg.eigh(_RESPONSES * products)
        responses = axes * np.sqrt(np.maximum(size, 0.0))  # a row a label
        profiles, states = np.concatenate([pairs.profiles, responses[:-1]], 1), pairs.states
        if states is not None:
            own = responses[states.label]
            states = states._replace(profiles=np.concatenate([states.profiles, own], 1))
        observed = np.concatenate([observed, responses[-1]])
        return observed, pairs._replace(profiles=profiles, states=states)


def _seen(n_cells: np.ndarray, source: int, target: int) -> np.ndarray:
    """Return which labels have cells under both conditions, shape (n_labels,)."""
    return (n_cells[:, source] > 0) & (n_cells[:, target] > 0)
