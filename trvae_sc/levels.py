"""Levels of obs columns: which there are, what they are called, and which one is meant.

Two levels are the same if they read the same: 1, 1.0 and "1" are one level, and so are True and "True".
Files lose the type of a level (a csv has text only), so its text is all that identifies it.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from trvae_sc.errors import InputError

logger = logging.getLogger(__name__)

_FEW_LEVELS = 50  # as many may have a cell each
#: Names of a condition that predictions start from, in lower case.
CONTROLS = ("control", "ctrl", "vehicle", "untreated", "unstimulated", "mock", "dmso", "pbs")
SEPARATOR = " + "  #: joins the parts of a condition in its name
_SHOWN = 5  # names listed in messages
_TYPES = (str, bool, int, float, np.bool_, np.integer, np.floating)  # kept by files


def listing(names: Sequence[Any]) -> str:
    """Return the first names, and how many more there are."""
    shown = ", ".join(repr(n) for n in list(names)[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def of_labels(labels: Iterable[str], *, labelled: bool = True) -> str:
    """Return labels as they stand behind "cells" in a sentence; nothing where cells have none."""
    return f" of {', '.join(labels)}" if labelled else ""


def as_list(given: Any) -> list[Any]:
    """Return one or several levels that a caller chose as a list."""
    return [given] if isinstance(given, str | Mapping) or np.isscalar(given) else list(given)


def level_name(level: Any) -> str:
    """Return how a level reads; numbers by their value, so that 1.0 reads as 1."""
    if isinstance(level, float | np.floating):
        return f"{float(str(level)) + 0.0:.12g}"  # of float32 the digits it has; -0.0 is 0
    return str(level)


def levels(column: pd.Series) -> list[Any]:
    """Return the levels present in a column, sorted; as Python objects, in category order if any."""
    values = _objects(column.unique())
    if isinstance(column.dtype, pd.CategoricalDtype) and column.cat.ordered:
        return [v for v in _objects(column.cat.categories) if v in set(values)]
    try:
        return sorted(values)
    except TypeError:  # mixed types
        return sorted(values, key=lambda v: (type(v).__name__, str(v)))


def _objects(found: Any) -> list[Any]:
    """Return different values of a column as Python objects; 0.1 in float32 is 0.1."""
    series = pd.Series(found)
    dtype = getattr(series.dtype, "categories", series).dtype
    dtype, values = getattr(dtype, "numpy_dtype", dtype), series.astype(object).tolist()
    if dtype in (np.float16, np.float32):
        return [float(str(dtype.type(value))) for value in values]
    return values


def check_levels(column: pd.Series) -> None:
    """Raise on a column whose levels cannot be told apart, written to files or read back."""
    check_complete(column)
    found, where = levels(column), f"adata.obs['{column.name}']"
    if len(found) > max(_FEW_LEVELS, len(column) // 2):
        raise InputError(
            f"{where} has {len(found)} levels ({listing(found)}) in {len(column):,} cells, about one for each, so "
            "that nothing can be learned of them. Name a column of groups of cells."
        )
    odd = [v for v in found if not isinstance(v, _TYPES)]
    if odd:
        raise InputError(
            f"{where} has levels of type {type(odd[0]).__name__} ({listing(odd)}); text, numbers and booleans "
            f"can be used. Make them text: {where} = {where}.astype(str)."
        )
    names = pd.Series([level_name(v) for v in found], dtype=object)
    if names.duplicated().any():
        twice = [v for v, again in zip(found, names.duplicated(keep=False), strict=True) if again]
        how = "astype(str)"
        if all(isinstance(v, float) for v in twice):  # which differ by rounding, and as text, too
            how = "map(lambda x: float(f'{x:.12g}'))"
        raise InputError(
            f"Levels {listing(twice)} of {where} read the same. Make them one: {where} = {where}.{how}."
        )


def check_complete(column: pd.Series) -> None:
    """Raise where values of a column are missing."""
    n_missing = int(column.isna().sum())
    if n_missing:
        raise InputError(
            f"adata.obs['{column.name}'] is missing (NaN) in {n_missing:,} cells. Fill it in or drop them."
        )


def as_text(column: pd.Series, names: dict[str, Any] | None = None) -> pd.Series:
    """Return the level of each cell as it reads; the index has no name, which may be a column's.

    Levels that `names` has by how they read are called what it says. Missing values raise InputError.
    """
    check_complete(column)
    codes, found = codes_of(column)
    called = np.array([(names or {}).get(name, name) for name in found], dtype=object)
    return pd.Series(called[codes], index=column.index.rename(None), dtype=object)


def codes_of(column: pd.Series) -> tuple[np.ndarray, list[str]]:
    """Return the code of each cell's level (-1 where it is missing), and how the levels read."""
    codes, found = pd.factorize(column)
    if column.dtype == np.float16:  # pandas counts in float32
        found = np.asarray(found, dtype=np.float16)
    return codes, [level_name(v) for v in _objects(found)]


def in_order(column: pd.Series) -> pd.Series:
    """Return a column as categories of text: in the order it has, else sorted, numbers by size."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        known, ordered = column.cat.categories, column.cat.ordered
    else:
        known, ordered = levels(column), False
    # categories without cells may read alike
    names = list(dict.fromkeys(codes_of(pd.Series(known))[1]))
    return as_text(column).astype(pd.CategoricalDtype(names, ordered=ordered))


def codes_among(column: pd.Series, known: Sequence[Any]) -> np.ndarray:
    """Return the code of each cell's level among those known, -1 if it is none; by how they read."""
    check_complete(column)
    codes, found = codes_of(column)
    names = pd.Index([level_name(level) for level in known], dtype=object)
    return names.get_indexer(found)[codes]


def match_level(level: Any, known: Sequence[Any], *, of: str, hint: str = "") -> Any:
    """Return which of the known levels is meant: the one that reads the same, or is the number of a text.

    `of` and `hint` are what levels are of, and what to do, in the message where none of them is.
    """
    name, number = level_name(level), None
    if isinstance(level, str):
        with contextlib.suppress(ValueError):
            number = float(level)
    for other in known:
        is_number = isinstance(other, int | float) and not isinstance(other, bool)
        if level_name(other) == name or (is_number and other == number):
            if type(other) is not type(level):
                logger.debug("%s %r is taken for %r.", of, level, other)
            return other
    raise InputError(f"Unknown {of} {level!r}; there are {list(known)}.{hint}")


_NO_DOSE = re.compile(r"(^|[\s:|/,=+@])0+(\.0*)?(\s*[^\W\d]+)?$")


def _is_control(name: str) -> bool:
    """Return whether a condition has the name of a control, with nothing else of it but 0."""
    parts = name.lower().split(SEPARATOR)
    return any(p in CONTROLS for p in parts) and all(p in (*CONTROLS, "0") for p in parts)


def _zeros(name: str) -> int:
    """Return how many parts of a condition are a dose of 0."""
    return sum(_NO_DOSE.search(part) is not None for part in name.split(SEPARATOR))


def default_source(column: pd.Series) -> Any:
    """Return the condition that predictions start from; raise where the data do not say which.

    The first of ordered categories, or the only one with the name of a control (:data:`CONTROLS`; of several
    columns all of whose parts are that, or 0) or with a dose of 0 at its end, as ``"drug:0"`` and ``"0 nM"`` (of
    several columns the one with most of them, in any order of the columns).
    """
    found = levels(column)
    if isinstance(column.dtype, pd.CategoricalDtype) and column.cat.ordered:
        return found[0]
    controls = [v for v in found if _is_control(level_name(v))]
    if not controls:
        zeros = [_zeros(level_name(v)) for v in found]
        controls = [v for v, n in zip(found, zeros, strict=True) if n == max(zeros) > 0]
    if len(controls) == 1:
        return controls[0]
    why = f"{listing(controls)} are both" if controls else "none is"
    order = f", or make adata.obs['{column.name}'] an ordered category that starts with it"
    raise InputError(
        f"Which condition do predictions start from? Of {[level_name(v) for v in found]} {why} called "
        f"like a control ({', '.join(CONTROLS)}) or has a dose of 0. Name it with source="
        f"{'' if column.name is None else order}."
    )
