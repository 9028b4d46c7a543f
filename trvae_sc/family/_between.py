"""The contract of models that translate between two conditions."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from anndata import AnnData

from trvae_sc.errors import InputError
from trvae_sc.family._training import Matched
from trvae_sc.family._translator import Translator


class BetweenTranslator(Translator):
    """A model that translates between two conditions, learned from labels measured under both.

    :meth:`predict` goes from either to the other (a :class:`PairedTranslator`: as it was trained), and
    refuses a third condition.

    Parameters
    ----------
    adata, registry, seed
        As for :class:`Translator`.
    source, target
        The two conditions. May be None where the data have no others.
    """

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict[str, Any] | None = None,
        *,
        source: Any = None,
        target: Any = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(adata, registry, seed=seed)
        if source is None and target is None and len(self.conditions) == 2:
            source, target = self.conditions
        if source is None or target is None:
            raise InputError(
                f"{type(self).__name__} translates between two conditions; name source and target "
                f"of {self.conditions}."
            )
        self.source_, self.target_ = (self.condition_space.level(c) for c in (source, target))
        if self.source_ == self.target_:
            raise InputError(f"Source and target are both {self.target_!r}.")

    def _groups(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return rows under source and target, by label, of labels that have both; raise without any."""
        labels, conditions = self._group_codes().T
        ends = [self.conditions.index(c) for c in (self.source_, self.target_)]
        groups = [
            tuple(np.flatnonzero((conditions == end) & (labels == label)) for end in ends)
            for label in np.unique(labels)
        ]
        found = [group for group in groups if all(len(rows) for rows in group)]
        if not found:
            raise InputError(
                f"No label was measured under both {self.source_!r} and {self.target_!r}: there is "
                "nothing to learn from."
            )
        return found

    def _sampler(self, n_batches: int, batch_size: int) -> torch.utils.data.Sampler:
        return Matched(self._groups(), n_batches, batch_size)

    def _source_cells(
        self, adata: AnnData | None, target: Any, *, source: Any = None, **selection: Any
    ) -> AnnData:
        ends = [self.source_, self.target_]
        source = ends[ends[0] == target] if source is None else source
        for condition in (target, source):
            if self.condition_space.level(condition) not in ends:
                raise InputError(
                    f"The model translates between {ends[0]!r} and {ends[1]!r}, not {condition!r}."
                )
        return super()._source_cells(adata, target, source=source, **selection)

    def _translate(
        self, cells: AnnData, x: np.ndarray, target: Any, generator: torch.Generator
    ) -> np.ndarray:
        return self._in_parts(partial(self.module.translate, backward=target == self.source_), x)
