"""Data prepared without the held-out combinations."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.decomposition import PCA

from trvae_sc import show
from trvae_sc.arguments import check_seed, check_whole
from trvae_sc.checks import TOTAL_COLUMN, check_obs
from trvae_sc.errors import InputError
from trvae_sc.evaluation._checks import LEAST_GENES, check_counts, check_holdout
from trvae_sc.evaluation._genes import choose_genes
from trvae_sc.evaluation._holdouts import Holdout, as_holdouts
from trvae_sc.expression import (
    GroupMeans,
    Keys,
    cells_at,
    dense,
    gene_means,
    groups,
    log_values,
    median_total,
    profiles,
    totals,
    values,
)
from trvae_sc.hints import say_totals
from trvae_sc.levels import as_text, level_name

logger = logging.getLogger(__name__)

N_PCS = 50  # principal components of the training cells in which distributions are compared


def subsample(adata: AnnData, keys: Keys, max_cells: int, *, seed: int = 0) -> AnnData:
    """Return at most `max_cells` cells of each label and condition, in their order, for a quick look.

    Parameters
    ----------
    adata, keys
        Cells, and where the data are.
    max_cells
        Cells of each label and condition to keep.
    seed
        Seed of the draw.

    Raises
    ------
    InputError
        `max_cells` is less than 1, or columns are missing.
    """
    check_whole("max_cells", max_cells)
    check_seed(seed)
    check_obs(adata, [*keys.condition_columns, keys.labels_key])
    rng = np.random.default_rng(seed)
    kept = [rng.permutation(rows)[:max_cells] for _, rows in groups(adata.obs, keys)]
    return cells_at(adata, np.sort(np.concatenate(kept))).copy()


def training_data(
    adata: AnnData,
    holdouts: Sequence[Holdout],
    *,
    keys: Keys,
    n_top_genes: int | None = 2000,
    columns: Sequence[str] = (),
) -> tuple[AnnData, Keys]:
    """Return the cells that are not held out, with the genes chosen on them and whole-cell totals.

    Genes are chosen on the returned cells alone, by :func:`trvae_sc.evaluation.choose_genes` (a log line says which
    were left out). Only the values and the columns of ``obs`` that are named are taken over: what was computed with
    all cells knows the hidden ones.

    Parameters
    ----------
    adata, keys
        Cells x genes, and where the data are.
    holdouts
        Combinations to leave out.
    n_top_genes
        Number of genes; all if None or if there are no more.
    columns
        Further columns of ``obs`` to take over.

    Returns
    -------
    The training cells, and keys that name their totals. Where genes were left out, the totals of counts
    over all genes are in the column ``"trvae_sc_total_counts"`` of ``obs``, unless the keys name another.

    Raises
    ------
    InputError
        The hold-outs cover every cell, or one of them none; columns are missing.
    """
    if n_top_genes is not None:
        check_whole("n_top_genes", n_top_genes, LEAST_GENES)
    hidden = np.zeros(adata.n_obs, dtype=bool)
    given = as_holdouts(holdouts, adata, keys)
    further = [column for holdout in given for column in holdout.columns]
    check_obs(adata, [*keys.condition_columns, keys.labels_key, keys.batch_key, *columns, *further])
    for holdout in given:
        own = holdout.hidden(adata, keys)
        if not own.any():
            raise InputError(
                f"Hold-out {holdout} hides no cell: none has that label and condition."
            )
        hidden |= own
    if hidden.all():
        raise InputError("The hold-outs cover every cell: nothing is left to train on.")
    train, with_totals = bare(adata, ~hidden, keys, columns)
    if TOTAL_COLUMN in adata.obs:  # genes were left out before
        keys = with_totals
    if n_top_genes is not None and n_top_genes < train.n_vars:
        choice = choose_genes(train, keys, n_top_genes)
        logger.info("%s", choice)
        if with_totals != keys:
            say_totals(adata.n_vars)
        return train[:, choice.chosen].copy(), with_totals
    train.obs = train.obs.drop(columns=[] if with_totals == keys else TOTAL_COLUMN)
    return train, keys


def bare(
    adata: AnnData, rows: np.ndarray, keys: Keys, columns: Sequence[str] = ()
) -> tuple[AnnData, Keys]:
    """Return some cells with their values, the columns that keys name and totals, and nothing else.

    Totals over all genes are written to a column of their own, unless the keys name one or it is there.
    """
    at = np.flatnonzero(rows)
    x = values(adata, keys)[at]
    named = (
        *keys.condition_columns,
        keys.labels_key,
        keys.batch_key,
        keys.total_counts_key,
        *columns,
    )
    obs = adata.obs.iloc[at][list(dict.fromkeys(k for k in named if k))].copy()
    var = pd.DataFrame(index=adata.var_names.copy())
    name = keys.condition_features
    uns = {name: adata.uns[name]} if isinstance(name, str) else {}
    held: Any = {"X": x} if keys.layer is None else {"layers": {keys.layer: x}}
    found = AnnData(**held, obs=obs, var=var, uns=uns)
    if keys.is_count and keys.total_counts_key is None:
        own = keys._replace(total_counts_key=TOTAL_COLUMN)
        has_own = TOTAL_COLUMN in adata.obs
        if has_own:
            check_obs(adata, [], [TOTAL_COLUMN])
        found.obs[TOTAL_COLUMN] = totals(adata, own)[at] if has_own else totals(found, keys)
        keys = own
    return found, keys


@dataclass(frozen=True)
class Task:
    """A hold-out with everything that a method may see, and the truth that it may not."""

    holdout: Holdout  #: what is hidden
    keys: Keys  #: where the data are
    train: AnnData  #: training cells with their chosen genes
    source: AnnData  #: cells to start from; they are training cells, too
    real: Any  #: hidden cells, log values
    control: Any  #: source cells, log values
    #: Mean over the labels of their own shift in training, shape (n_genes,); zero where none has both conditions.
    shift: np.ndarray
    #: Mean log values of the label under every condition but the source.
    by_target: dict[str, np.ndarray]
    kappa: float  #: median total of the training cells
    pca: PCA  #: principal components of the training cells

    def _shown(self) -> dict[str, str]:
        return {
            "hidden": f"{self.real.shape[0]:,} cells",
            "source": f"{self.source.n_obs:,} cells under {self.holdout.source}",
            "training": f"{self.train.n_obs:,} cells of {self.train.n_vars:,} genes",
        }

    def __repr__(self) -> str:
        return show.as_text(f"Task {self.holdout}", self._shown())

    def _repr_html_(self) -> str:
        return show.as_html(f"Task {self.holdout}", self._shown())

    def project(self, x: Any) -> np.ndarray:
        """Return log values in the principal components of the training cells."""
        return self.pca.transform(dense(x).astype(np.float64, copy=False))


def prepare_task(
    adata: AnnData,
    holdout: Holdout,
    *,
    keys: Keys,
    n_top_genes: int | None = 2000,
    columns: Sequence[str] = (),
) -> Task:
    """Hide a combination and prepare everything else without it.

    Parameters
    ----------
    adata, keys
        All cells, and where the data are.
    holdout
        Combination to hide; its source must be given.
    n_top_genes
        Number of genes, chosen on the training cells.
    columns
        Further columns of ``obs`` that methods need.

    Raises
    ------
    InputError
        Values that are not counts where they are to be; source and target are the same; fewer than 2 source
        cells or 4 hidden cells, which the ceiling halves.
    """
    (holdout,) = as_holdouts([holdout], adata, keys)
    check_holdout(adata, holdout, keys)
    check_counts(adata, keys)
    tasks = prepare_tasks(adata, [holdout], keys=keys, n_top_genes=n_top_genes, columns=columns)
    return tasks[holdout]


def prepare_tasks(
    adata: AnnData,
    holdouts: Sequence[Holdout],
    *,
    keys: Keys,
    n_top_genes: int | None = 2000,
    columns: Sequence[str] = (),
) -> dict[Holdout, Task]:
    """Return the tasks of checked hold-outs that hide the same; what they share is prepared once."""
    first, everything = holdouts[0], keys
    columns = [*columns, *first.columns]
    hide = [first, *(h for h in first.also if h.hidden(adata, everything).any())]
    train, keys = training_data(adata, hide, keys=keys, n_top_genes=n_top_genes, columns=columns)
    shared = Shared.of(train, keys, median_total(train, keys))
    tasks = {}
    for holdout in holdouts:
        start = holdout.sources(adata, everything)
        own, _ = bare(adata, holdout.has_label(adata, everything) & ~start, everything, columns)
        source = train[holdout.sources(train, keys)].copy()
        tasks[holdout] = shared.task(holdout, source, own[:, train.var_names])
    return tasks


def components(x: np.ndarray, seed: int = 0) -> PCA:
    """Return the first principal components, 50 at most: exact, thus whatever the order of genes and cells."""
    n_components = min(N_PCS, min(x.shape) - 1)
    solver = "arpack" if min(x.shape) > N_PCS and np.ptp(x, axis=0).any() else "full"
    return PCA(n_components, svd_solver=solver, random_state=seed).fit(x)


class Shared(NamedTuple):
    """What tasks of the same training cells share."""

    train: AnnData
    keys: Keys
    kappa: float
    means: GroupMeans
    pca: PCA  #: of log values, 50 components at most

    @classmethod
    def of(cls, train: AnnData, keys: Keys, kappa: float) -> Shared:
        """Return what training cells tell."""
        x = dense(log_values(train, keys, kappa)).astype(np.float32, copy=False)
        return cls(train, keys, kappa, profiles(train, keys, kappa), components(x))

    def task(self, holdout: Holdout, source: AnnData, own: AnnData) -> Task:
        """Return a task, given the cells of its label under the source and under all other conditions."""
        conditions = as_text(self.keys.conditions(own.obs)).to_numpy()
        values = log_values(own, self.keys, self.kappa)
        rows = {name: conditions == name for name in sorted(set(conditions))}
        pairs = self.means.pairs(holdout.source, holdout.target)
        return Task(
            holdout=holdout,
            keys=self.keys,
            train=self.train,
            source=source,
            real=values[rows[level_name(holdout.target)]],
            control=log_values(source, self.keys, self.kappa),
            shift=np.zeros(self.train.n_vars) if pairs is None else pairs.shifts.mean(0),
            by_target={name: gene_means(values[at])[None] for name, at in rows.items()},
            kappa=self.kappa,
            pca=self.pca,
        )
