"""The change of each label, shared between network and ridge, and the factors that lead to it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor

from trvae_sc.errors import InputError
from trvae_sc.expression import evenly_spaced
from trvae_sc.intervals import standardised
from trvae_sc.left_out import Expected, Missed, replicates_left_out
from trvae_sc.model._counts import Draws, shared_gain
from trvae_sc.model._decode import Batch, decoded_batches, mean_of, scaled
from trvae_sc.model._exemplars import Exemplars
from trvae_sc.model._trained import Tensors, Trained
from trvae_sc.module import expected_values, in_float64
from trvae_sc.scales import warn_of_scale
from trvae_sc.shift import Ridge, log_fold_change, log_ratio, novelty

_RESPONDING = 100  # genes that change most in a label, over which a cell's response is measured
_NO_CHANGE = 1e-6  # root mean square of changes up to which a label does not change
_NEW_CELLS = 256  # of a label that training lacks, whose means are taken from the cells given


class Change(NamedTuple):
    """Mean change of a label, f of the mean share (mean values), shapes (n_genes,)."""

    source_mean: np.ndarray
    predicted_mean: np.ndarray
    half_width: np.ndarray | None = None  #: of the interval, where it is known
    relative: Any = 1.0  #: width of the interval, where that of what was left out is 1
    missed: Missed | None = None  #: what the interval rests on

    def columns(self) -> tuple[np.ndarray, ...]:
        """Return means, change and its interval."""
        change = self.predicted_mean - self.source_mean
        half = np.nan if self.half_width is None else self.half_width
        return self.source_mean, self.predicted_mean, change, change - half, change + half

    def within(self, missed: Missed | None, relative: Any) -> Change:
        """Return the change with the interval that rests on what was missed, so many times as wide."""
        half = None if missed is None else missed.half_width
        half = None if half is None else half * relative
        return self._replace(half_width=half, relative=relative, missed=missed)

    def p_values(self) -> np.ndarray:
        """Return how often a change as large is predicted of a gene that does not change so; NaN if unknown."""
        change = self.predicted_mean - self.source_mean
        if self.missed is None:
            return np.full(len(change), np.nan)
        return self.missed.p_values(change / self.relative)


class Factors(NamedTuple):
    """How the decoded rates of a label are put on their level, under one source and target."""

    label: str
    source: Any
    of_source: np.ndarray  #: factor (not counts: summand) of the decoded source, (n_genes,)
    of_target: np.ndarray  #: the same of the decoded target
    gain: np.ndarray | None  #: mean share that the label gains, negative where it loses; of counts
    change: Change
    novelty: float  #: how unlike the labels that were measured it is
    is_known: bool  #: whether level and change are those of training, or of the cells given


class Calibration:
    """Puts decoded rates on the level of their label; see :meth:`TRVAE.predict`.

    `groups` are labels and conditions of the rows to predict from (:meth:`Known.groups`). Where
    codes are `drawn` from their posterior, levels are of what drawn codes decode to.
    """

    def __init__(
        self,
        trained: Trained,
        adata: AnnData,
        rows: np.ndarray,
        groups: pd.DataFrame,
        target: Any,
        exemplars: dict[str, Exemplars] | None = None,
        *,
        drawn: bool = False,
    ) -> None:
        self.module = trained.module
        self.factors: list[Factors] = []
        if not trained.module.calibrate:
            return
        groups = groups.reset_index(drop=True)
        self.group = groups.groupby(["source", "label"], sort=True).ngroup().to_numpy()
        for name, of_source in groups.groupby("source", sort=True):  # one at a time in memory
            source = trained.conditions.level(name)
            sourced = Sourced(trained, source, target, exemplars, drawn=drawn)
            for label, cells in of_source.groupby("label", sort=True):
                self.factors.append(sourced.factors(label, adata, rows[cells.index]))
        means = [(f.change.source_mean, f.change.predicted_mean) for f in self.factors]
        start, end = np.stack(means, axis=1)
        order = np.argsort(-np.abs(end - start), axis=1, kind="stable")
        self.responding = order[:, :_RESPONDING]
        most = (np.take_along_axis(mean, self.responding, axis=1) for mean in (start, end))
        fold = log_fold_change(*most, is_count=self.module.is_count)
        sizes = np.sqrt(np.square(fold).mean(1))
        self.size = np.where(sizes > _NO_CHANGE, sizes, np.nan)
        parts = zip(*((f.of_source, f.of_target, f.gain) for f in self.factors), strict=True)
        tables = (np.stack(of).astype(np.float32) for of in parts)
        self.of_source, self.of_target, self.gain = tables
        ends = self.of_source, self.of_target
        self.of_responding = [np.take_along_axis(of, self.responding, axis=1) for of in ends]

    def __call__(self, raw: Batch, positions: slice, output: str) -> Batch:
        """Return what an output needs of a batch on the level of its labels; `positions` are its rows' places."""
        if not self.factors:
            return raw
        group = self.group[positions]
        batch = raw._replace(target=self._on_level(self.of_target[group], raw.target))
        if output == "mean" or (output == "sample" and not self.module.has_total):
            return batch
        batch = batch._replace(source=self._on_level(self.of_source[group], raw.source))
        if output != "counts":
            return batch
        mean = self.gain[group] if self.module.n_labels else None
        return batch._replace(gain=shared_gain(batch.target - batch.source, mean))

    def _on_level(self, of: np.ndarray, decoded: np.ndarray) -> np.ndarray:
        """Return decoded values with the factor (not counts: summand) of each, which is overwritten."""
        return (np.multiply if self.module.is_count else np.add)(of, decoded, out=of)

    def response(self, raw: Batch, positions: slice) -> np.ndarray:
        r"""Return how far each cell of a batch moves on the level of its label, shape (n_cells,).

        .. math:: \sqrt{\overline{d_{ig}^2}} \Big/ \sqrt{\overline{d_{lg}^2}}

        over the 100 genes that change most in the label l, with the log fold change d (the difference, of
        values) of the cell's expected values and of the label's means: 1 is like the label. NaN of labels
        that do not change, and of networks that are not calibrated.
        """
        if not self.factors:
            return np.full(len(raw.observed), np.nan, dtype=np.float32)
        group = self.group[positions]
        genes = torch.from_numpy(self.responding[group])
        start, end = (
            self._on_level(of[group], torch.from_numpy(decoded).gather(1, genes).numpy())
            for of, decoded in zip(self.of_responding, (raw.source, raw.target), strict=True)
        )
        kappa = self.module.kappa.item()
        own = log_ratio(kappa * start, kappa * end) if self.module.is_count else end - start
        return (np.sqrt(np.square(own).mean(1)) / self.size[group]).astype(np.float32)


class Sourced:
    """What is the same for all labels under one source."""

    def __init__(
        self,
        trained: Trained,
        source: Any,
        target: Any,
        exemplars: dict[str, Exemplars] | None = None,
        *,
        drawn: bool = False,
    ) -> None:
        trained = trained.of_reference(source, target)
        self.trained, self.of, self.target, self.drawn = trained, source, target, drawn
        self.exemplars = exemplars or {}
        self.profiles, module = trained.profiles(), trained.module
        self.units = 1.0 if module.is_count else module.gene_scale.cpu().numpy()  # of errors
        s, code = trained.conditions.code(source), trained.conditions.code(target)
        space = trained.informed(s, target)
        likeness = space.likeness(source, target, self.profiles.measured(s).any(0))
        self.code, self.ridge = s, Ridge(self.profiles, s, likeness)
        has_groups = len(self.ridge.groups) > 0
        self.weight = module.context_weight if has_groups else 0.0
        self.of_network = 1.0 - self.weight
        if self.weight and space.is_by_features(target):  # as far as they say something
            self.of_network *= space.description.share
        self.others = np.empty((0, len(module.gene_mean)))
        self.expected: Expected | None = None
        self.missed: Missed | None = None  # of labels left out
        self.replicates: Missed | None = None  # of replicates of a label that was measured
        if not (has_groups and module.n_labels):
            return
        self.others = self.profiles.mean[np.unique(self.ridge.groups[:, 0]), s]
        if not self.weight or trained.conditions.is_outside(target):
            return
        is_measured = code in likeness.codes
        self.expected = Expected.of(self.ridge, is_measured=is_measured)
        self.missed = replace(self.expected.missed, scale=self.units)
        found = replicates_left_out(self.ridge, code) if is_measured else None
        self.replicates = None if found is None else replace(found, scale=self.units)

    def _relative(self, own: np.ndarray, code: int | None) -> float:
        """Return how wide the interval of a label is, where labels and conditions left out have 1."""
        return 1.0 if self.expected is None else self.expected.relative(own, code)

    def _error(self, own: np.ndarray, code: int | None) -> np.ndarray:
        """Return the variance of what is wrong with f of a label's target, (n_genes,), if known."""
        missed, found = self.missed, None
        if missed is not None:
            found = standardised(missed.residuals / self.units, missed.n, unit=missed.unit)
        if found is None:
            raise InputError(
                f"How far to trust the prediction of {self.target!r} is learned from labels measured under it and the "
                "source (where it was not measured, from conditions), of which there are fewer than three, and not "
                "known of a number outside of what was measured: exemplars cannot be weighted."
            )
        own_share = 1.0 - self.ridge.measured(code)
        return np.square(found[2] * self.units * self._relative(own, code)) * own_share

    def _of_replicates(self, code: int | None) -> Missed | None:
        """Return what was missed of replicates, if two of a label have source and target and were left out."""
        groups = np.array([[code, self.trained.conditions.code(self.target)]])
        (pairs,) = self.profiles.pairs(groups, self.code)
        return None if pairs is None or len(pairs.n) < 2 else self.replicates

    def factors(
        self, label: str, adata: AnnData | None = None, rows: np.ndarray | None = None
    ) -> Factors:
        """Return the factors of a label; `rows` are its cells, where training has none."""
        trained, module = self.trained, self.trained.module
        code = trained.labels.index(label) if label in trained.labels else None
        kept = None if code is None else trained.codes_of(code, self.code)
        is_known = kept is not None
        if is_known:
            own = self.profiles.mean[code, self.code].astype(np.float64)
            observed = mean_of(module, own)
            means = decoded = _means_of_codes(trained, kept, self.target)
            if self.drawn:
                kept = trained.codes_of(code, self.code, drawn=True)
                decoded = _means_of_codes(trained, kept, self.target)
        else:
            code = None
            observed, *means = _means_of_cells(trained, adata, rows, self.target)
            own, decoded = scaled(module, observed), means
            if self.drawn:
                decoded = _means_of_cells(trained, adata, rows, self.target, drawn=True)[1:]
        change = scaled(module, means[1]) - scaled(module, means[0])
        if self.weight:
            by_labels = self.ridge.predict(own, code) - own
            of_network = self.of_network * (1.0 - self.ridge.measured(code))
            change = of_network * change + (1.0 - of_network) * by_labels
        end, left = own + change, 1.0  # and what is left of the variance of the prediction
        if label in self.exemplars:
            shown, error = self.exemplars[label], self._error(own, code)
            means = [(shown.mean, end, shown.n)]
            warn_of_scale("exemplars", means, "predicted", is_count=module.is_count)
            end, left = shown.combined(end, error)
        expected = mean_of(module, end)
        of = [
            mean / np.maximum(own_mean, np.finfo(np.float32).tiny)
            if module.is_count
            else mean - own_mean
            for mean, own_mean in zip((observed, expected), decoded, strict=True)
        ]
        relative = self._relative(own, code) * np.sqrt(left)
        missed, on_own = self.missed, label in self.exemplars
        if is_known and trained.n_cells_of(label, trained.conditions.code(self.target)) > 0:
            of_own = self._of_replicates(code)
            missed, on_own = of_own or missed, on_own or of_own is None
        if on_own and missed is not None:
            missed = replace(missed, on_own=True)
        ends = (scaled(module, mean) for mean in (observed, expected))
        found = Change(*ends).within(missed, relative)
        unlike = novelty(own, self.others)
        return Factors(label, self.of, *of, expected - observed, found, unlike, is_known)


def _means_of_codes(
    trained: Trained, kept: tuple[Tensors, Tensor], target: Any
) -> list[np.ndarray]:
    """Return means over codes of training cells, decoded under source and target."""
    decoded = (expected_values(trained.module, *kept, f) for f in (None, trained.features(target)))
    return [in_float64(rates).mean(0).cpu().numpy() for rates in decoded]


def _means_of_cells(
    trained: Trained, adata: AnnData, rows: np.ndarray, target: Any, *, drawn: bool = False
) -> list[np.ndarray]:
    """Return means over cells: of observed shares, and of those decoded under source and target."""
    if len(rows) > _NEW_CELLS:  # the same ones in whatever order they come
        by_name = rows[np.argsort(adata.obs_names[rows].to_numpy(), kind="stable")]
        rows = evenly_spaced(by_name, _NEW_CELLS)
    sums: Any = 0.0
    draws = Draws(trained.seed) if drawn else None
    for batch in decoded_batches(trained, adata, rows, trained.features(target), draws=draws):
        parts = batch.shares(), batch.source, batch.target
        sums = sums + np.stack([part.sum(0, dtype=np.float64) for part in parts])
    return list(sums / len(rows))
