"""Values of an AnnData on the scale that predictions are made and compared on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypedDict

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from sklearn.preprocessing import StandardScaler

from trvae_sc.checks import check_condition_parts, check_matrix, check_obs, check_values, matrix
from trvae_sc.condition_parts import joint_column
from trvae_sc.condition_sets import check_sets, checked_table, coding_of, space_of
from trvae_sc.conditions import ConditionSpace
from trvae_sc.errors import InputError, naming
from trvae_sc.identity import digest, row_chunks, row_sums
from trvae_sc.levels import SEPARATOR, as_text, level_name, levels
from trvae_sc.roles import check_roles
from trvae_sc.rows import canonical
from trvae_sc.shift import Profiles
from trvae_sc.stored import is_file

CellOutput = Literal["counts", "delta"]  #: what every method can predict of cells


class Keys(NamedTuple):
    """Where an AnnData holds what a prediction needs.

    Parameters
    ----------
    condition_key
        Column of ``obs`` with the condition, or several as a tuple; see :meth:`trvae_sc.TRVAE.setup_anndata`.
    labels_key
        Column with the label (cell type), or None.
    layer
        Layer with the values; ``X`` if None.
    total_counts_key
        Column with each cell's total over all its genes; their sum if None.
    is_count
        Whether values are counts, compared as log(1 + kappa share) with kappa the median total of
        the training cells; else they are compared as they are.
    batch_key
        Column with the batch, which models condition on, or None.
    condition_features, condition_separator
        Numbers that describe conditions, and the text between parts of sets; see
        :meth:`trvae_sc.TRVAE.setup_anndata`.
    """

    condition_key: str | tuple[str, ...]
    labels_key: str | None = None
    layer: str | None = None
    total_counts_key: str | None = None
    is_count: bool = True
    batch_key: str | None = None
    condition_features: Any = None
    condition_separator: str | None = None

    @property
    def condition_columns(self) -> list[str]:
        """Columns with the condition."""
        key = self.condition_key
        return [key] if isinstance(key, str) else list(key)

    def conditions(self, obs: pd.DataFrame) -> pd.Series:
        """Return the condition of each cell; of several columns its name."""
        if isinstance(self.condition_key, str):
            return obs[self.condition_key]
        check_condition_parts(obs, self.condition_columns)
        return joint_column(obs, self.condition_columns)[0].astype(object)

    def columns_of(self, condition: Any) -> dict[str, Any]:
        """Return what each column has of a condition."""
        if isinstance(self.condition_key, str):
            return {self.condition_key: condition}
        values = level_name(condition).split(SEPARATOR)
        return dict(zip(self.condition_key, values, strict=True))

    @property
    def plain_key(self) -> str | list[str]:
        """The column of the condition, or several in a list, as files can hold them."""
        key = self.condition_key
        return key if isinstance(key, str) else list(key)

    def named(self) -> dict[str, Any]:
        """Return the names that there are, of columns and layer, and the text between parts of sets."""
        fields = ("labels_key", "layer", "total_counts_key", "condition_separator")
        found = {name: getattr(self, name) for name in fields if getattr(self, name) is not None}
        return {"condition_key": self.plain_key, **found}

    def plain(self) -> dict[str, Any]:
        """Return all of it as JSON can hold it: of a table of features its digest."""
        found = {**self._asdict(), "condition_key": self.plain_key}
        if isinstance(self.condition_features, pd.DataFrame):
            values = pd.util.hash_pandas_object(self.condition_features).to_numpy()
            found["condition_features"] = digest(values[None].astype(np.float64), 1)
        for name in ("condition_features", "condition_separator"):
            if found[name] is None:
                del found[name]
        return found

    def further(self) -> dict[str, str | None]:
        """Return the arguments of ``TRVAE.setup_anndata`` besides the condition."""
        names = ("labels_key", "layer", "batch_key", "total_counts_key")
        return {name: getattr(self, name) for name in names}

    def of_conditions(self) -> dict[str, Any]:
        """Return the arguments of ``TRVAE.setup_anndata`` that say how conditions are made."""
        names = ("condition_features", "condition_separator")
        return {name: getattr(self, name) for name in names}


class KeyNames(TypedDict, total=False):
    """Names that functions take in place of :class:`Keys`."""

    condition_key: str | list[str] | tuple[str, ...]
    labels_key: str | None
    layer: str | None
    total_counts_key: str | None
    is_count: bool
    batch_key: str | None
    condition_features: Any
    condition_separator: str | None


def conditions_of(adata: AnnData, keys: Keys) -> ConditionSpace:
    """Return the conditions of cells, with their parts and what describes them."""
    key, separator = keys.plain_key, keys.condition_separator
    if separator is not None:
        check_sets(adata.obs, key, separator)
    table = checked_table(adata, key, separator, keys.condition_features)
    if isinstance(key, str):
        names = levels(adata.obs[key])
    else:
        check_condition_parts(adata.obs, key)
        names = list(joint_column(adata.obs, key)[1])
    return space_of(key, names, coding_of(adata.obs, key, separator, table))


def keys_from(keys: Any, names: KeyNames) -> Keys:
    """Return where the data are, of :class:`Keys`, names, or a model (names go before its own)."""
    unknown = sorted(set(names) - set(Keys._fields))
    if unknown:
        raise InputError(f"Unknown arguments {unknown}; names of columns are {list(Keys._fields)}.")
    given: dict[str, Any] = dict(names)
    if isinstance(keys, Keys):
        if given:
            raise InputError(f"Give keys or {sorted(given)}, not both.")
        return _checked(keys)
    if keys is not None:
        found = getattr(keys, "keys", None)
        if not isinstance(found, Keys):
            raise InputError(
                f"keys is {keys!r}; give Keys(...) or a model, or name condition_key=."
            )
        return _checked(found._replace(**given))
    if given.get("condition_key") is None:
        raise InputError("Where is the condition? Name its column: condition_key=.")
    return _checked(Keys(**given))


def _checked(keys: Keys) -> Keys:
    """Return keys; raise where the condition has no column or one twice, or a column has two roles."""
    columns = keys.condition_columns
    if not isinstance(keys.condition_key, str):
        keys = keys._replace(condition_key=tuple(columns))
    if not columns or len(set(map(str, columns))) < len(columns):
        raise InputError(f"condition_key is {columns}; name one column, or several different.")
    check_roles(columns, keys.labels_key, batch_key=keys.batch_key)
    return keys


def check_output(output: str | None, keys: Keys) -> CellOutput:
    """Return the output to predict, counts of counts if None; raise where values do not have it."""
    allowed: list[CellOutput] = ["counts", "delta"] if keys.is_count else ["delta"]
    if output not in (None, *allowed):
        raise InputError(f"Output {output!r} is not available; choose one of {allowed}.")
    return output or allowed[0]


def evenly_spaced(rows: np.ndarray, n_max: int) -> np.ndarray:
    """Return at most so many of some rows, the same every time: enough for a mean."""
    if len(rows) <= n_max:
        return rows
    return rows[np.linspace(0, len(rows) - 1, n_max).astype(int)]


def values(adata: AnnData, keys: Keys) -> Any:
    """Return the values of an AnnData, sparse or dense."""
    return matrix(adata, keys.layer)


def totals(adata: AnnData, keys: Keys) -> np.ndarray:
    """Return the total counts of each cell, shape (n_cells,)."""
    if keys.total_counts_key is not None:
        return adata.obs[keys.total_counts_key].to_numpy(dtype=np.float64)
    return row_sums(values(adata, keys), adata.n_obs)


def check_cells(adata: AnnData, keys: Keys, *, name: str) -> None:
    """Raise on values (`name`, in messages) or totals that predictions cannot be made of."""
    known = totals(adata, keys) if keys.total_counts_key and keys.is_count else None
    check_values(values(adata, keys), is_count=keys.is_count, totals=known, name=name)


def check_measured(adata: AnnData, keys: Keys, *, name: str) -> None:
    """Raise on cells (`name`, in messages) whose matrix, columns or values are not what keys say."""
    with naming(name):
        check_matrix(adata, keys.layer)
        totals_key = keys.total_counts_key if keys.is_count else None
        check_obs(adata, [*keys.condition_columns, keys.labels_key], [totals_key])
    check_cells(adata, keys, name=name)


def log_values(adata: AnnData, keys: Keys, kappa: float) -> Any:
    """Return log(1 + kappa share) of counts, other values as they are; sparse stays sparse, by row."""
    x = in_memory(values(adata, keys))
    if not keys.is_count:
        return canonical(x)
    total = totals(adata, keys)
    scale = np.divide(kappa, total, out=np.zeros_like(total), where=total != 0)
    if sparse.issparse(x):
        return (sparse.diags_array(scale) @ x.tocsr().astype(np.float64)).log1p()
    return np.log1p(np.asarray(x, dtype=np.float64) * scale[:, None])


def in_memory(x: Any) -> Any:
    """Return a matrix, read if it is in a file, computed if it is dask's; sparse stays sparse."""
    if hasattr(x, "compute"):
        return x.compute()
    if not is_file(x):
        return x
    return x.to_memory() if hasattr(x, "to_memory") else x[...]


def cells_at(adata: AnnData, rows: np.ndarray) -> AnnData:
    """Return some cells: of a file in memory, since a view of it has no views; else a view."""
    if not adata.isbacked:
        return adata[rows]
    return adata.to_memory()[rows] if adata.is_view else adata[rows].to_memory()


def dense(x: Any) -> np.ndarray:
    """Return a matrix as an array."""
    x = in_memory(x)
    return x.toarray() if sparse.issparse(x) else np.asarray(x)


def median_total(train: AnnData, keys: Keys) -> float:
    """Return kappa, the median total of the training cells (1 for values that are not counts)."""
    return float(np.median(totals(train, keys))) if keys.is_count else 1.0


class Pairs(NamedTuple):
    """What the labels seen under source and target show."""

    profiles: np.ndarray  #: source profiles, shape (n_labels, n_genes)
    shifts: np.ndarray  #: from source to target, same shape


class GroupMeans(NamedTuple):
    """Mean log values of the training cells by label and condition, as text."""

    mean: dict[tuple[str, str], np.ndarray]
    n_cells: dict[tuple[str, str], int]
    kappa: float
    is_count: bool

    def pairs(self, source: Any, target: Any) -> Pairs | None:
        """Return what the labels with cells under both show, if any have."""
        source, target = level_name(source), level_name(target)
        labels = [lab for lab, c in self.mean if c == source and (lab, target) in self.mean]
        if not labels:
            return None
        start, end = (np.stack([self.mean[lab, c] for lab in labels]) for c in (source, target))
        return Pairs(start, end - start)

    def of_conditions(self, conditions: Sequence[Any]) -> Profiles:
        """Return them as arrays, of all labels under conditions."""
        names = list(map(level_name, conditions))
        labels = tuple(dict.fromkeys(label for label, _ in self.mean))
        mean = np.zeros((len(labels), len(names), len(next(iter(self.mean.values())))))
        n_cells = np.zeros(mean.shape[:2])
        for (label, condition), own in self.mean.items():
            at = labels.index(label), names.index(condition)
            mean[at], n_cells[at] = own, self.n_cells[label, condition]
        return Profiles(mean, n_cells, labels, self.is_count)


def profiles(train: AnnData, keys: Keys, kappa: float | None = None) -> GroupMeans:
    """Return the mean log values of each label (all cells, without labels) and condition."""
    kappa = median_total(train, keys) if kappa is None else kappa
    x = log_values(train, keys, kappa)
    rows = dict(groups(train.obs, keys))
    means = {group: gene_means(x[at]) for group, at in rows.items()}
    n_cells = {group: len(at) for group, at in rows.items()}
    return GroupMeans(means, n_cells, kappa, keys.is_count)


def groups(obs: pd.DataFrame, keys: Keys) -> Iterator[tuple[tuple[str, str], np.ndarray]]:
    """Yield the rows of each (label, condition) present, named as text."""
    label = as_text(obs[keys.labels_key]) if keys.labels_key is not None else "all"
    frame = pd.DataFrame({"label": label, "condition": as_text(keys.conditions(obs))})
    yield from frame.groupby(["label", "condition"], sort=True).indices.items()


def mean_level(x: Any, *, is_count: bool) -> np.ndarray:
    """Return log(1 + kappa share) of the mean share of cells, from their log values; else the mean."""
    if not is_count:
        return gene_means(x)
    return np.log1p(np.maximum(gene_means(np.expm1(x)), 0.0))  # shifted log values may be below 0


def gene_means(x: Any) -> np.ndarray:
    """Return the mean of each gene, summed in float64, shape (n_genes,)."""
    x = x.astype(np.float64, copy=False) if sparse.issparse(x) else x  # scipy sums in its type
    return np.asarray(x.mean(axis=0, dtype=np.float64)).ravel()


def gene_units(adata: AnnData, keys: Keys) -> np.ndarray | float:
    """Return what errors of genes are compared in: of values their standard deviation; 1, of counts."""
    if keys.is_count:
        return 1.0
    scaler = StandardScaler(with_mean=False)
    for _, block in row_chunks(values(adata, keys), adata.n_obs):
        scaler.partial_fit(canonical(block).astype(np.float64))
    return scaler.scale_
