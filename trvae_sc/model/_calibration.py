"""Calibration: decoded rates on the observed level of the cells, and the change shared with labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS

from trvae_sc.expression import (
    Pairs,
    evenly_spaced,
    label_weights,
    ridge_shift,
    weighted_mean_shift,
)
from trvae_sc.levels import as_text, level_name
from trvae_sc.model._counts import Draws, shared_gain
from trvae_sc.model._pairs import Responses, additive_pairs, seen_pairs
from trvae_sc.module import CONDITION_KEY
from trvae_sc.uncertainty import left_out_residual, novelty

if TYPE_CHECKING:
    from trvae_sc.model._model import TRVAE

_BATCH = 512  # cells decoded at a time
_MIDDLE = 2 / 3  # of the smaller weight of network and ridge: share of the median of three
_CALIBRATION_CELLS = 256  # of a group, whose decoded means are compared with the observed

# -- decoding -------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """A minibatch with its decoded source and target."""

    observed: np.ndarray  #: values, (n_cells, n_genes)
    total: np.ndarray | None  #: total counts, (n_cells, 1)
    source: np.ndarray | None  #: expected shares (values) under the cell's own condition
    target: np.ndarray  #: the same under the target
    latent: np.ndarray  #: latent mean, (n_cells, n_latent)
    condition: np.ndarray | None = None  #: code of each cell's own condition, (n_cells,)
    gain: np.ndarray | None = None  #: share to add; the positive part of target - source if None

    def observed_sum(self) -> np.ndarray:
        """Return the sums over cells of observed shares (values), shape (n_genes,)."""
        return column_sums(self.observed, None if self.total is None else 1.0 / self.total.ravel())


def column_sums(values: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """Return the (weighted) sums over the rows of a minibatch: a product takes a third of the time."""
    weight = np.ones(len(values), values.dtype) if weight is None else weight
    return weight @ values


def decoded_batches(
    model: TRVAE,
    adata: AnnData,
    rows: np.ndarray,
    target: torch.Tensor,
    *,
    shifts: torch.Tensor | None = None,
    draws: Draws | None = None,
    batch_size: int | None = None,
    decode_source: bool = True,
) -> Iterator[Batch]:
    """Yield rows of a registered AnnData, decoded under source (unless told not to) and target.

    z is the posterior mean, or drawn with `draws`. For the target it is moved by the row of `shifts`
    (:func:`trvae_sc.model._decode.latent_shifts`) of the cell's condition, if any are given.
    """
    module = model.module
    for tensors in model._make_data_loader(adata, rows, batch_size or _BATCH):
        qz = module.encode(tensors)
        z = qz.loc
        if draws is not None:
            noise = draws.latent.standard_normal(tuple(z.shape), dtype=np.float32)
            z = z + qz.scale * torch.as_tensor(noise, device=z.device)
        condition = tensors[CONDITION_KEY].long().flatten()
        moved = z if shifts is None else z + shifts[condition]
        total = module._total(tensors)
        yield Batch(
            observed=tensors[REGISTRY_KEYS.X_KEY].numpy(),
            total=None if total is None else total.cpu().numpy(),
            source=module.expected(tensors, z).cpu().numpy() if decode_source else None,
            target=module.expected(tensors, moved, target).cpu().numpy(),
            latent=qz.loc.cpu().numpy(),
            condition=condition.cpu().numpy(),
        )


class Correction(NamedTuple):
    """How the decoded values of a group are put on its observed level."""

    source: np.ndarray  #: factor (not counts: summand) of the decoded source, (n_genes,)
    target: np.ndarray  #: the same of the decoded target
    gain: np.ndarray | None  #: mean share that the group gains, negative where it loses


class Calibration:
    """Puts decoded rates on the observed level of their group: the cells of a label and source.

    Parameters
    ----------
    model
        Trained model.
    adata
        Registered AnnData.
    rows
        Rows to predict from.
    target
        Condition to predict.
    """

    def __init__(self, model: TRVAE, adata: AnnData, rows: np.ndarray, target: Any) -> None:
        self.model = model
        self.corrections: list[Correction] = []
        self.novelty: dict[tuple[str, str], float] = {}  # by label and source
        if not model.module.calibrate:
            return
        setup_args = model.registry_["setup_args"]
        obs = adata.obs.iloc[rows]
        key = setup_args["labels_key"]
        label = as_text(obs[key]) if key in obs else pd.Series("all", index=obs.index)
        names = as_text(model._condition_column(obs))
        levels = {level_name(level): level for level in model.conditions}
        source = np.array([levels[name] for name in names], dtype=object)
        frame = pd.DataFrame({"source": source, "label": np.asarray(label)})
        self.group = frame.groupby(["source", "label"], sort=True).ngroup().to_numpy()
        by_source: dict[Any, list[tuple[str, np.ndarray]]] = {}  # in the order of their codes
        for code in range(self.group.max() + 1):
            at = np.flatnonzero(self.group == code)
            name = str(frame["label"].iloc[at[0]])
            some = evenly_spaced(rows[at], _CALIBRATION_CELLS)
            by_source.setdefault(source[at[0]], []).append((name, some))
        for of, labelled in by_source.items():
            self._correct(adata, of, labelled, target)

    def _correct(
        self, adata: AnnData, source: Any, labelled: list[tuple[str, np.ndarray]], target: Any
    ) -> None:
        """Add the corrections of a source's groups, and note how unlike the training labels they are."""
        model, names = self.model, [name for name, _ in labelled]
        rows = [cells for _, cells in labelled]
        means = _group_means(model, adata, rows, target)
        observed, decoded_source, decoded_target = (profile_scale(model, mean) for mean in means)
        change = decoded_target - decoded_source
        pairs = seen_pairs(model, source, target)
        if target in model.conditions:
            responses = Responses(model, source, target)
            added = [
                _from_labels(model, own, decoded, pairs, responses.beside(name, own, pairs))
                for name, own, decoded in zip(names, observed, change, strict=True)
            ]
        elif near := model._conditions_around(target, source):
            added = np.zeros_like(change)
            for between, share in near.items():
                there = profile_scale(model, _group_means(model, adata, rows, between)[2])
                there -= decoded_source
                near_pairs = seen_pairs(model, source, between)
                responses = Responses(model, source, between)
                for i, name in enumerate(names):
                    rest = _own_rest(model, name, there[i], {source: -1.0, between: 1.0})
                    if rest is None:
                        alike = responses.beside(name, observed[i], near_pairs)
                        rest = _from_labels(model, observed[i], there[i], near_pairs, alike)
                    added[i] += share * rest
        else:
            added = _from_parts(model, observed, change, source, target)
        for i, name in enumerate(names):
            self.novelty[name, level_name(source)] = novelty(observed[i], pairs.profiles)
            self.corrections.append(
                _correction(model, means[:, i], observed[i] + change[i] + added[i])
            )

    @property
    def keeps_level(self) -> bool:
        """Whether the mean of a group's corrected source is that observed, by construction."""
        return bool(self.corrections)

    def __call__(self, batch: Batch, positions: slice, *, gain: bool = True) -> Batch:
        """Return a batch with corrected source and target; `positions` are its rows' places.

        Without `gain` the share to add, which only counts need, is not computed.
        """
        if not self.corrections:
            return batch
        present, codes = np.unique(self.group[positions], return_inverse=True)
        chosen = [self.corrections[code] for code in present]
        combine = np.multiply if self.model.module.is_count else np.add
        by_target = np.stack([c.target for c in chosen]).astype(np.float32)[codes]
        target = combine(by_target, batch.target, out=by_target)
        if batch.source is None:
            return batch._replace(target=target)
        by_source = np.stack([c.source for c in chosen]).astype(np.float32)[codes]
        source = combine(by_source, batch.source, out=by_source)
        if not (gain and self.model.module.is_count):
            return batch._replace(source=source, target=target)
        mean = None
        if chosen[0].gain is not None:
            mean = np.stack([c.gain for c in chosen]).astype(np.float32)[codes]
        return batch._replace(source=source, target=target, gain=shared_gain(target - source, mean))


def _group_means(model: TRVAE, adata: AnnData, groups: list[np.ndarray], target: Any) -> np.ndarray:
    """Return means over the cells of groups of rows, shape (3, n_groups, n_genes).

    Of observed shares (values), and of those decoded at source and target.
    """
    sums = np.zeros((3, len(groups), adata.n_vars))
    sizes = np.array([len(rows) for rows in groups])
    codes, done = np.repeat(np.arange(len(groups)), sizes), 0
    features = model._condition_features(target)
    for batch in decoded_batches(model, adata, np.concatenate(groups), features):
        own = codes[done : done + len(batch.target)]
        done += len(own)
        weight = (own == np.arange(len(groups))[:, None]).astype(np.float32)
        shares = weight if batch.total is None else weight / batch.total.ravel()
        sums += (shares @ batch.observed, weight @ batch.source, weight @ batch.target)
    return sums / sizes[:, None]


def _correction(model: TRVAE, means: np.ndarray, expected: np.ndarray) -> Correction:
    """Return the correction of a group.

    Parameters
    ----------
    model
        Trained model.
    means
        Means of the group, observed, decoded at source and decoded at target; shape (3, n_genes).
    expected
        Mean of the target (f-scale) that the correction leads to, shape (n_genes,).
    """
    if not model.module.is_count:
        mean, scale = (getattr(model.module, k).cpu().numpy() for k in ("gene_mean", "gene_scale"))
        return Correction(means[0] - means[1], mean + scale * expected - means[2], None)
    shares = np.expm1(np.maximum(expected, 0.0)) / model.module.kappa.item()
    tiny = np.finfo(np.float32).tiny
    return Correction(
        means[0] / np.maximum(means[1], tiny),
        shares / np.maximum(means[2], tiny),
        shares - means[0] if model.module.n_labels else None,
    )


def _from_labels(
    model: TRVAE,
    observed: np.ndarray,
    change: np.ndarray,
    pairs: Pairs,
    alike: tuple[np.ndarray, Pairs] | None = None,
) -> np.ndarray:
    """Return what the labels add to the change that was decoded; see :meth:`TRVAE.predict`.

    `alike` are the profiles that the ridge compares labels by (:class:`Responses`), if others.
    """
    weight = model.module.context_weight
    if not weight or not len(pairs.profiles):
        return np.zeros_like(change)
    near, alike = _nearest(observed, pairs), alike or (observed, pairs)
    ridge, single = ridge_shift(*alike) - change, pairs.shifts[near] - change
    share = max(weight, _share_of_ridge(ridge, alike[1], near))
    middle = np.median([np.zeros_like(ridge), ridge, single], axis=0)
    of_middle = _MIDDLE * min(weight, 1.0 - weight)
    added = (1.0 - of_middle) * share * ridge + of_middle * middle
    if of_size := _share_of_size(ridge, alike[1], weight):
        common = weighted_mean_shift(pairs)
        added += (of_size * _size(ridge, common) - _size(added, common)) * common
    return added


def _from_parts(
    model: TRVAE, observed: np.ndarray, change: np.ndarray, source: Any, target: Any
) -> np.ndarray | list[np.ndarray]:
    """Return what :func:`additive_pairs` add to the changes that were decoded.

    Labels share them as they do measured changes. Without labels all cells are one: it has its own.
    """
    if model.labels:
        pairs = additive_pairs(model, source, target)
        return [_from_labels(model, *of, pairs) for of in zip(observed, change, strict=True)]
    weights = model._condition_contrast(target, source, model.module.n_cells[0].cpu().numpy())
    if weights is None:
        return np.zeros_like(change)
    of_conditions = dict(zip(model.conditions, weights, strict=True))
    return [_own_rest(model, "all", own, of_conditions) for own in change]


def _nearest(observed: np.ndarray, pairs: Pairs) -> int:
    """Return the label whose profile is most similar; one of few cells is not, by chance."""
    distance = np.square(pairs.profiles - observed).sum(1) / label_weights(pairs.n_cells)
    return int(distance.argmin())


def _share_of_ridge(ridge: np.ndarray, pairs: Pairs, near: int) -> float:
    r"""Return :math:`1 - s^2 / D`: what the ridge should count where the network is far from it.

    :math:`s^2` is the squared error of the ridge for the most similar label, predicted from the others,
    and D the squared distance of the network from the ridge. If the latter has the error :math:`s^2`, the
    network has about :math:`D - s^2`, and these are the weights that leave least. 0 with fewer than three
    labels.
    """
    if len(pairs.profiles) < 3 or not ridge.any():
        return 0.0
    missed = left_out_residual(pairs, near)
    return 1.0 - (missed @ missed) / (ridge @ ridge)


def _share_of_size(ridge: np.ndarray, pairs: Pairs, least: float) -> float:
    r"""Return :math:`1 - e^2 / \delta^2`: what the ridge should count in the size of the change.

    :math:`\delta` is the size of what the ridge adds to the network's change, e twice the largest error
    of the ridge in the sizes of labels left out in turn, each along the mean shift of the others. 0 where
    that is no more than the `least` that the ridge counts anyway, and with fewer than three labels.
    """
    if len(pairs.profiles) < 3:
        return 0.0
    squared, worst = _size(ridge, weighted_mean_shift(pairs)) ** 2, 0.0
    for label in range(len(pairs.profiles)):
        missed = _size(left_out_residual(pairs, label), weighted_mean_shift(pairs.without(label)))
        worst = max(worst, (2.0 * missed) ** 2)
        if worst >= (1.0 - least) * squared:  # mostly after a label or two
            return 0.0
    return 1.0 - worst / squared


def _size(shift: np.ndarray, common: np.ndarray) -> float:
    """Return the component of a shift along another one, in units of it; 0 if that is 0."""
    return float(shift @ common / max(common @ common, np.finfo(float).tiny))


def _own_rest(
    model: TRVAE, label: str, change: np.ndarray, weights: dict[Any, float]
) -> np.ndarray | None:
    r"""Return what a change that training saw in a label adds to that decoded; None if it did not.

    The change is :math:`\sum_c w_c f(p_c)` over conditions c. Of its difference d from what was
    decoded the share :math:`\max(0, 1 - \sum_c w_c^2 v_c / \lVert d \rVert^2)` is no sampling noise
    (James and Stein 1961), with the variance :math:`v_c` of :math:`f(p_c)`, summed over genes.
    """
    names = [level_name(name) for name in model.labels or ["all"]]
    weights = {model.conditions.index(c): w for c, w in weights.items() if w}
    if label not in names:
        return None
    code = names.index(label)
    if not model.module.n_cells[code, list(weights)].all():
        return None
    profiles = model.module.profiles[code].cpu().numpy()
    rest = sum(w * profiles[c] for c, w in weights.items()) - change
    noise = sum(w**2 * _sampling_variance(model, code, c) for c, w in weights.items())
    return max(0.0, 1.0 - noise / max(rest @ rest, 1e-12)) * rest


def _sampling_variance(model: TRVAE, label: int, condition: int) -> float:
    """Return the variance of a mean training profile (f-scale), summed over genes.

    By the dispersion that was learned; with ``mse``, which has none, as if no group differed.
    """
    module = model.module
    n_cells = module.n_cells[label, condition].item()
    if module.gene_likelihood == "mse":
        return len(module.gene_mean) / n_cells
    spread = dispersion(model, module.condition_design[condition : condition + 1])
    if not module.is_count:
        return float(np.square(spread).sum()) / n_cells
    mean = np.expm1(module.profiles[label, condition].cpu().numpy())  # of a cell of median total
    beyond_poisson = 0.0 if spread is None else mean**2 / spread
    return float(((mean + beyond_poisson) / (1.0 + mean) ** 2).sum()) / n_cells


def dispersion(model: TRVAE, features: torch.Tensor) -> np.ndarray | None:
    """Return the inverse dispersion of counts (of other values the standard deviation, scaled).

    By condition, or one row for all; None for Poisson, which has none.
    """
    if model.module.gene_likelihood == "poisson":
        return None
    return model.module.log_theta(features).exp().detach().cpu().numpy()


def profile_scale(model: TRVAE, profile: np.ndarray) -> np.ndarray:
    """Return f of a mean profile: log(1 + kappa share), or values in units of their deviation."""
    module = model.module
    if module.is_count:
        return np.log1p(module.kappa.item() * profile)
    mean, scale = module.gene_mean.cpu().numpy(), module.gene_scale.cpu().numpy()
    return (profile - mean) / scale
