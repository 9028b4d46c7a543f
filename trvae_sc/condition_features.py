"""Conditions described by numbers, so that one that was never measured can be predicted from its description.

A table gives every level of a condition (drug, dose scheme, gene, style) features: a fingerprint, an embedding,
an angle. What levels change is alike as far as their features are near; how much features say is learned from
measured levels that are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.spatial.distance import cdist
from sklearn.utils.extmath import svd_flip

from trvae_sc.errors import InputError
from trvae_sc.levels import CONTROLS, level_name, levels, listing

DESCRIBED = "described"  #: entry of the coding of conditions
SHOWN = 0.5  # length of features that the network sees beside a level's own code, of length 1
NOVEL = 1.0  # distance of features above which a note says so
_LARGEST = 1e100  # feature in a table
_FARTHEST = 1e6  # standard deviations from what was measured, beyond which units are wrong
_SAME = 0.01  # standard deviations that features of one level differ by at most, as where they were rounded
#: Shares of what levels change that their features may tell, and how far features reach, in median distances.
GRID = tuple(product((0.25, 0.5, 0.75, 0.9, 1.0), (0.5, 1.0, 2.0, np.inf)))


@dataclass(frozen=True)
class Description:
    """Levels of a column, described by numbers."""

    key: str  #: the column; of sets of parts that with the sets
    names: list[str]  #: levels that are described, as text
    columns: list[str]  #: names of the features
    values: np.ndarray  #: the features, shape (n_levels, n_features)
    measured: list[str]  #: those of `names` that were measured
    mean: np.ndarray  #: of the measured levels, by which features are standardised
    scale: np.ndarray  #: their standard deviation; infinite for what does not differ
    #: From standardised features to what the network sees, the principal axes of the measured levels, shape
    #: (n_features, n_axes).
    axes: np.ndarray
    share: float = 0.5  #: of what levels change that their features tell, 0 to 1
    #: Reach of features, in median distances of measured levels; infinite: their effects add up.
    length: float = 1.0

    @classmethod
    def of(cls, coding: dict[str, Any] | None) -> Description | None:
        """Return the description in a coding of conditions, if there is one."""
        found = None if coding is None else coding.get(DESCRIBED)
        return None if found is None else cls(**found)

    def plain(self) -> dict[str, Any]:
        """Return it as plain data, as a coding holds it."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @cached_property
    def frame(self) -> pd.DataFrame:
        """The features as a table."""
        index = pd.Index(self.names, name=self.key)
        return pd.DataFrame(np.asarray(self.values), index=index, columns=self.columns)

    def standardised(self, levels: Sequence[Any]) -> np.ndarray:
        """Return standardised features of levels, shape (n, n_features); NaN of one without any."""
        return self._rows[[self._places.get(level_name(level), -1) for level in levels]]

    @cached_property
    def _rows(self) -> np.ndarray:
        """Standardised features; the last row is that of a level without any."""
        rows = (np.asarray(self.values) - self.mean) / self.scale
        return np.pad(rows, [(0, 1), (0, 0)], constant_values=np.nan)

    @cached_property
    def _places(self) -> dict[str, int]:
        """Return the row of each level."""
        return {name: i for i, name in enumerate(self.names)}

    @cached_property
    def size(self) -> float:
        """Mean squared length of the features of measured levels."""
        return float(np.square(self.standardised(self.measured)).sum(1).mean()) or 1.0

    @cached_property
    def median(self) -> float:
        """Median distance of measured levels whose features differ."""
        z = self.standardised(self.measured)
        distances = cdist(z, z)[np.triu_indices(len(z), 1)]
        return float(np.median(distances[distances > 0])) if distances.any() else 1.0

    def alike(self, one: Sequence[Any], other: Sequence[Any]) -> np.ndarray:
        r"""Return the correlation of what levels do, shape (n_one, n_other).

        .. math:: \rho\,e^{-\lVert \phi_c - \phi_{c'} \rVert^2 / (2 \ell^2)} + (1 - \rho)\,\delta_{cc'}

        with the standardised features :math:`\phi`, their share :math:`\rho` and reach :math:`\ell`; for a reach
        without end the linear kernel :math:`\langle \phi_c, \phi_{c'} \rangle / \overline{\lVert \phi \rVert^2}` in
        place of the exponential, which adds up what features do. A level without features is like itself only.
        """
        distance = cdist(self.standardised(one), self.standardised(other))
        near = np.exp(-0.5 * np.square(distance / (self.length * self.median)))
        if np.isinf(self.length):
            near = self.standardised(one) @ self.standardised(other).T / self.size
        names = [[level_name(level) for level in some] for some in (one, other)]
        same = np.equal.outer(*(np.array(some, dtype=object) for some in names)).astype(float)
        return np.where(np.isnan(near), same, self.share * near + (1.0 - self.share) * same)

    def changes_alike(self, source: Any, levels: Sequence[Any] | np.ndarray) -> np.ndarray:
        """Return how alike changes from a source to levels are, shape (n, n)."""
        every = self.alike([*levels, source], [*levels, source])
        return every[:-1, :-1] - every[:-1, [-1]] - every[[-1], :-1] + every[-1, -1]

    def network(self, level: Any) -> np.ndarray:
        """Return what the network sees of a level's features, shape (n_axes,); zeros of one without any."""
        return np.nan_to_num(self.standardised([level])[0]) @ self.axes

    def own(self, level: Any) -> dict[str, float]:
        """Return how far the network takes a level for which ones; one not measured for each as much."""
        name, taken = level_name(level), {}
        if name in self.names and name not in self.measured:
            taken = dict.fromkeys(self.measured, 1.0 / len(self.measured))
        return taken | {name: 1.0}

    def and_described(self, measured: Sequence[Any]) -> list[Any]:
        """Return levels that were measured, and the others that are described; numbers beside numbers."""
        known = {level_name(level) for level in measured}
        others: list[Any] = [name for name in self.names if name not in known]
        for kind in (int, float):
            if all(type(level) is kind for level in measured):
                others = [kind(name) if _reads_as(name, kind) else name for name in others]
        return [*measured, *others]

    def remarks(self, level: Any) -> list[str]:
        """Return what is to be said of a level that was not measured."""
        unlike = self.novelty(level)
        if not unlike > NOVEL:
            return []
        return [
            f"{level_name(level)} is unlike what was measured: its features are {unlike:.1f} times as far from "
            "the nearest as those of any measured condition are from theirs; the prediction extrapolates."
        ]

    def novelty(self, level: Any) -> float:
        """Return the distance to the nearest measured level, where it is 1 of the loneliest measured one.

        In units of the largest distance of one of them to its own nearest; 0 of a measured level, NaN of one
        without features or with fewer than three measured.
        """
        z = self.standardised(self.measured)
        own = cdist(z, z)
        np.fill_diagonal(own, np.inf)
        typical = own.min(1).max() if len(z) > 2 else np.nan
        nearest = cdist(self.standardised([level]), z).min() if len(z) else np.nan
        return float(nearest / typical) if typical > 0 else float("nan")

    def extended(self, level: Any, features: Any) -> Description:
        """Return the description with one more level, which was not measured."""
        name = level_name(level)
        if not isinstance(level, str | int | float | np.number) or name in ("", "nan"):
            raise InputError(
                f"The target is {level!r}; name the new condition by text or a number."
            )
        if name in self.measured:
            raise InputError(f"{name!r} was measured: it needs no features. Leave features out.")
        row = self._row(features)
        if name not in self.names:
            values = np.concatenate([self.values, row[None]])
            return replace(self, names=[*self.names, name], values=values)
        if not np.array_equal(row, self.values[self.names.index(name)]):
            raise InputError(
                f"The table has other features of {name!r}. Leave features out, or name the new condition "
                "otherwise."
            )
        return self

    def with_table(self, table: pd.DataFrame) -> Description:
        """Return the description with the further levels of a table; raise where it has others of known ones."""
        found, other, known = self, [], dict(zip(self.names, self.values, strict=True))
        for level in table.index:
            name = level_name(level)
            if name not in known:
                found = found.extended(level, table.loc[level])
            elif (np.abs(self._row(table.loc[level]) - known[name]) > _SAME * self.scale).any():
                other.append(name)
        if other:
            raise InputError(
                f"condition_features has other features of {listing(other)} than the reference, so that those of new "
                "conditions do not compare with what it learned. Pass the table that it was set up with, with rows "
                "for the new ones."
            )
        return found

    def _row(self, features: Any) -> np.ndarray:
        """Return the features of a level, given as a mapping, Series, one row of a table, or numbers in order."""
        if isinstance(features, pd.DataFrame):
            if len(features) != 1:
                raise InputError(f"features has {len(features)} rows; give that of the target.")
            features = features.iloc[0]
        if isinstance(features, dict | pd.Series):
            given = {str(name): value for name, value in features.items()}
            absent = [c for c in self.columns if c not in given]
            if absent or len(given) > len(self.columns):
                wrong = absent or [c for c in given if c not in self.columns]
                raise InputError(
                    f"features {'lacks' if absent else 'has unknown'} {listing(wrong)}; there are "
                    f"{listing(self.columns)}."
                )
            features = [given[c] for c in self.columns]
        try:
            row = np.asarray(features, dtype=np.float64).ravel()
        except (TypeError, ValueError) as error:
            raise InputError(f"features are no numbers: {error}.") from error
        if len(row) != len(self.columns) or not np.isfinite(row).all():
            raise InputError(
                f"features has {len(row)} values, of which {int(np.isfinite(row).sum())} are finite; "
                f"{len(self.columns)} finite numbers are needed: {listing(self.columns)}."
            )
        far = np.abs((row - self.mean) / self.scale)
        if far.max() > _FARTHEST:
            raise InputError(
                f"Feature '{self.columns[int(far.argmax())]}' is {far.max():.1e} standard deviations from what was "
                "measured. Give it in the units of the table."
            )
        return row

    def grown(self, found: Sequence[Any]) -> Description:
        """Return the description where more levels were measured."""
        new = [n for n in map(level_name, found) if n not in self.measured and n in self.names]
        return replace(self, measured=[*self.measured, *new])


def _reads_as(name: str, kind: type) -> bool:
    """Return whether a name is that of a number."""
    try:
        return level_name(kind(name)) == name
    except ValueError:
        return False


def description_of(table: pd.DataFrame, key: str, found: Sequence[Any]) -> Description:
    """Return the description of levels of a column, of which some were measured."""
    names = [level_name(level) for level in table.index]
    values = table.to_numpy(dtype=np.float64)
    known = set(map(level_name, found))
    at = [i for i, name in enumerate(names) if name in known]
    differs = (values[at] != values[at][:1]).any(0)  # what does not says nothing
    mean, scale = values[at].mean(0), np.where(differs, values[at].std(0), np.inf)
    z = (values[at] - mean) / scale
    # principal axes, so that order and signs of columns, and those that do not differ, play no role
    scores, sizes, axes = np.linalg.svd(z, full_matrices=False)
    kept = max(int((sizes > 1e-9 * sizes.max(initial=1e-300)).sum()), 1)
    axes = svd_flip(scores, axes)[1][:kept].T
    size = np.sqrt(np.square(z @ axes).sum(1).mean()) or 1.0
    columns = [str(c) for c in table.columns]
    measured = [names[i] for i in at]
    return Description(key, names, columns, values, measured, mean, scale, SHOWN * axes / size)


# -- checks -------------------------------------------------------------------------------------------


def table_of(adata: AnnData, given: Any) -> pd.DataFrame:
    """Return a table of features, given itself or by its name in ``adata.uns``; raise on one that is not fit."""
    if isinstance(given, str):
        if given not in adata.uns:
            raise InputError(
                f"No table '{given}' in adata.uns; there are {listing(sorted(adata.uns))}. Pass the "
                "DataFrame itself: condition_features=table."
            )
        given = adata.uns[given]
    if not isinstance(given, pd.DataFrame):
        raise InputError(
            f"condition_features is a {type(given).__name__}; give a DataFrame with a row a condition and a "
            "column a feature, or its name in adata.uns."
        )
    if not given.shape[1]:
        raise InputError("condition_features has no column; give at least one feature.")
    if given.index.isna().any():
        raise InputError("condition_features has a row without a name (NaN). Name it.")
    for what, index in (("rows", given.index.map(level_name)), ("columns", given.columns)):
        if not index.is_unique:
            twice = index[index.duplicated()].unique()
            raise InputError(f"condition_features has {what} {listing(twice)} more than once.")
    odd = [
        c
        for c in given.columns
        if not pd.api.types.is_numeric_dtype(given[c]) or pd.api.types.is_complex_dtype(given[c])
    ]
    if odd and isinstance(given.index, pd.RangeIndex):
        raise InputError(
            f"Column '{odd[0]}' of condition_features holds no numbers. If it names the conditions, make it the "
            f"index: table.set_index('{odd[0]}')."
        )
    if odd:
        raise InputError(
            f"Columns {listing(odd)} of condition_features are no numbers. Turn levels into columns of their "
            "own: pandas.get_dummies(table, dtype=float)."
        )
    bad = given.index[~(np.abs(given.to_numpy(dtype=np.float64)) < _LARGEST).all(1)]
    if len(bad):
        raise InputError(
            f"Rows {listing(bad)} of condition_features hold NaN or infinite values (or some beyond {_LARGEST:g}). Fill them in or "
            "drop them."
        )
    return given.copy()


def described_key(table: pd.DataFrame, obs: pd.DataFrame, keys: Sequence[str]) -> str:
    """Return the column whose levels a table describes: the one its index is called, or all of whose it has."""
    if table.index.name in keys:
        return str(table.index.name)
    if len(keys) == 1:
        return keys[0]
    fitting = [key for key in keys if not lacking(table, levels(obs[key]))]
    if len(fitting) == 1:
        return fitting[0]
    why = "describes the levels of none" if not fitting else f"may describe {listing(fitting)}"
    raise InputError(
        f"Of the columns {list(keys)} condition_features {why}. Name its index like the column: "
        f"table.index.name = '{keys[0]}'."
    )


def lacking(table: pd.DataFrame, found: Sequence[Any]) -> list[str]:
    """Return levels without features; one called like a control needs none."""
    names = set(table.index.map(level_name))
    return [n for n in map(level_name, found) if n not in names and n.lower() not in CONTROLS]


def check_described(table: pd.DataFrame, key: str, found: Sequence[Any]) -> None:
    """Raise where levels that were measured have no features, or fewer than two have."""
    absent = lacking(table, found)
    if absent:
        raise InputError(
            f"condition_features has no row for {listing(absent)} of adata.obs['{key}']; it has "
            f"{listing(list(table.index))}. Add them (only a control, called like {', '.join(CONTROLS)}, "
            "needs none), or drop the cells."
        )
    n = len(set(table.index.map(level_name)) & set(map(level_name, found)))
    if n < 2:
        raise InputError(
            f"condition_features describes {n} condition that was measured; features say something where at "
            "least two are."
        )
