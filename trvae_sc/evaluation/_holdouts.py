"""Held-out combinations."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from trvae_sc.expression import Keys

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Holdout:
    """A combination of label and target condition that is hidden from training.

    Parameters
    ----------
    label
        Label (cell type) to predict; a level of `key` if that is given.
    target
        Condition it is predicted under.
    source
        Condition whose cells the prediction starts from; None if that is decided later.
    key
        Column of ``obs`` that `label` is a level of (a batch or patient); the labels if None.
    also
        Further combinations hidden from the same training, not scored.
    """

    label: Any
    target: Any
    source: Any = None
    key: str | None = None
    also: tuple[Holdout, ...] = ()

    def __str__(self) -> str:
        """Return ``label:target``."""
        return f"{self.label}:{self.target}"

    def hidden(self, adata: AnnData, keys: Keys) -> np.ndarray:
        """Return which cells are hidden and scored, shape (n_cells,)."""
        condition = adata.obs[keys.condition_key].astype(str) == str(self.target)
        return (condition & self._has_label(adata, keys)).to_numpy(copy=True)

    def sources(self, adata: AnnData, keys: Keys) -> np.ndarray:
        """Return which cells the prediction starts from, shape (n_cells,)."""
        condition = adata.obs[keys.condition_key].astype(str)
        start = (
            condition != str(self.target) if self.source is None else condition == str(self.source)
        )
        return (start & self._has_label(adata, keys)).to_numpy(copy=True)

    def _has_label(self, adata: AnnData, keys: Keys) -> Any:
        key = keys.labels_key if self.key is None else self.key
        return adata.obs[key].astype(str) == str(self.label)


def holdouts(
    adata: AnnData,
    *,
    keys: Keys,
    source: Any = None,
    by: str | None = None,
    min_cells: int = 30,
    together: int = 1,
) -> list[Holdout]:
    """Return every combination with enough cells, to be hidden one at a time.

    Parameters
    ----------
    adata
        All cells.
    keys
        Where the data are.
    source
        Condition to predict from. May be None where there are two conditions: each is then
        predicted from the other if it sorts last (``control`` before ``stimulated``).
    by
        Column of ``obs`` whose levels are held out (batch, patient); the labels if None.
    min_cells
        Cells that source and target of a combination need.
    together
        Number of combinations of a target that are hidden from the same training.

    Returns
    -------
    The hold-outs; those that are too small are named in a log message.

    Raises
    ------
    ValueError
        `source` is missing or unknown, or nothing has enough cells.
    """
    key = keys.labels_key if by is None else by
    if key is None or key not in adata.obs:
        raise ValueError(f"Hold-outs need a column of labels; adata.obs has no {key!r}.")
    table = pd.crosstab(adata.obs[key].astype(str), adata.obs[keys.condition_key].astype(str))
    conditions = list(table.columns)
    if source is None and len(conditions) == 2:
        source = conditions[0]
    if source is None or str(source) not in conditions:
        raise ValueError(f"Source {source!r}: name the condition to predict from, of {conditions}.")
    found, small = [], []
    for target in (c for c in conditions if c != str(source)):
        enough = (table[[str(source), target]] >= min_cells).all(axis=1)
        small += [f"{label}:{target}" for label in table.index[~enough]]
        some = [Holdout(label, target, str(source), by) for label in table.index[enough]]
        for start in range(0, len(some), together):
            group = some[start : start + together]
            found += [replace(h, also=tuple(o for o in group if o != h)) for h in group]
    if small:
        logger.info("Skipped, with fewer than %d cells: %s.", min_cells, ", ".join(small))
    if not found:
        raise ValueError(f"No combination has {min_cells} cells under {source!r} and a target.")
    return found


def parse_holdouts(
    texts: Sequence[str], adata: AnnData, keys: Keys, *, source: Any = None
) -> list[Holdout]:
    """Return hold-outs written as ``label:target``, the target being the part after the last colon.

    Parameters
    ----------
    texts
        The hold-outs.
    adata
        All cells.
    keys
        Where the data are.
    source
        Condition to predict from; where there are two conditions, the other one if None.

    Raises
    ------
    ValueError
        The text has no colon, or no cell has that label and condition, or the source is unknown.
    """
    conditions = sorted(adata.obs[keys.condition_key].astype(str).unique())
    if source is not None and str(source) not in conditions:
        raise ValueError(f"Unknown source {str(source)!r}; conditions are {conditions}.")
    found = []
    for text in texts:
        label, colon, target = text.rpartition(":")
        if not colon:
            raise ValueError(f"Hold-out '{text}' is not of the form 'label:target'.")
        others = [c for c in conditions if c != target]
        start = others[0] if source is None and len(others) == 1 else source
        holdout = Holdout(label, target, start)
        if not holdout.hidden(adata, keys).any():
            raise ValueError(
                f"Hold-out '{text}' matches no cell: labels are "
                f"{sorted(adata.obs[keys.labels_key].astype(str).unique())}, conditions {conditions}."
            )
        found.append(holdout)
    return found
