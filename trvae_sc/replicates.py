"""Donors (animals, cultures) as replicates: their own means of every label and condition."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from trvae_sc.errors import InputError
from trvae_sc.identity import row_chunks
from trvae_sc.levels import as_text, listing


class Pairs(NamedTuple):
    """Replicates that have a label under source and target, D of them."""

    replicate: np.ndarray  #: codes, shape (D,)
    start: np.ndarray  #: f of their source means, shape (D, n_genes)
    end: np.ndarray  #: f of their target means, same shape
    n: np.ndarray  #: harmonic mean of the cells of both, shape (D,)


@dataclass(frozen=True)
class Replicates:
    """Mean profiles of the training cells of each replicate.

    Parameters
    ----------
    key
        Column of ``obs``.
    names
        Names of the replicates.
    groups
        Codes of replicate, label and condition of those with cells, shape (n_groups, 3).
    mean
        f of their mean share, or mean values, as of :class:`trvae_sc.shift.Profiles`, shape (n_groups, n_genes).
    n_cells
        Their cells, shape (n_groups,).
    """

    key: str
    names: tuple[str, ...]
    groups: np.ndarray
    mean: np.ndarray
    n_cells: np.ndarray

    def of(self, label: int, condition: int) -> Iterator[tuple[int, np.ndarray, int]]:
        """Yield code, mean and number of cells of the replicates of a label and condition."""
        for at in np.flatnonzero((self.groups[:, 1:] == (label, condition)).all(1)):
            yield int(self.groups[at, 0]), self.mean[at].astype(np.float64), int(self.n_cells[at])

    def pairs(self, label: int, source: int, target: int) -> Pairs | None:
        """Return the replicates that have a label under both, None where there are none."""
        start = {code: (mean, n) for code, mean, n in self.of(label, source)}
        found = [(c, *start[c], mean, n) for c, mean, n in self.of(label, target) if c in start]
        if not found:
            return None
        code, before, n_before, after, n_after = zip(*found, strict=True)
        n = 2.0 / (1.0 / np.array(n_before) + 1.0 / np.array(n_after))
        return Pairs(np.array(code), np.stack(before), np.stack(after), n)


def check_replicates(
    obs: pd.DataFrame, key: str, condition_key: str | Sequence[str], labels_key: str | None
) -> None:
    """Raise on replicates that show no change: there is one, or none has a label under two conditions."""
    names = as_text(obs[key])
    if names.nunique() < 2:
        raise InputError(
            f"adata.obs['{key}'] has one level, {names.iloc[0]!r}: replicates are two or more. Leave "
            "replicate_key out."
        )
    label = "all" if labels_key is None else as_text(obs[labels_key])
    keys = [condition_key] if isinstance(condition_key, str) else condition_key
    condition = [" + ".join(parts) for parts in zip(*(as_text(obs[k]) for k in keys), strict=True)]
    frame = pd.DataFrame({"replicate": names, "label": label, "condition": condition})
    n_conditions = frame.groupby(["replicate", "label"])["condition"].nunique()
    if n_conditions.max() < 2:
        by = frame.groupby("replicate")["condition"].unique().map(lambda c: listing(sorted(c)))
        where = "; ".join(f"{name}: {found}" for name, found in by.head(4).items())
        raise InputError(
            f"No level of adata.obs['{key}'] has cells of one label under two conditions ({where}), so no change "
            "can be taken within replicates. Leave replicate_key out; a batch_key takes differences between "
            "batches for a nuisance."
        )


def group_sums(
    x: Any, totals: np.ndarray | None, group: np.ndarray, n_groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return sums over cells of shares (values without totals), and numbers of cells, of each group.

    Shapes (n_groups, n_genes) and (n_groups,). `group` is the code of each cell's group, -1 of none.
    """
    sums, n_cells = np.zeros((n_groups, x.shape[1])), np.zeros(n_groups)
    for start, block in row_chunks(x, len(group)):
        own = group[start : start + block.shape[0]]
        rows = np.flatnonzero(own >= 0)
        weight = np.ones(len(rows)) if totals is None else 1.0 / totals[start + rows]
        adding = sparse.csr_matrix((weight, (own[rows], rows)), (n_groups, block.shape[0]))
        added = adding @ block.astype(np.float64)
        sums += added.toarray() if sparse.issparse(added) else added
        n_cells += np.bincount(own[rows], minlength=n_groups)
    return sums, n_cells
