"""Held-out combinations."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Unpack

import numpy as np
import pandas as pd
from anndata import AnnData

from trvae_sc.arguments import check_whole
from trvae_sc.checks import check_obs
from trvae_sc.conditions import ConditionSpace
from trvae_sc.errors import InputError
from trvae_sc.expression import KeyNames, Keys, conditions_of, keys_from
from trvae_sc.levels import SEPARATOR, as_text, default_source, level_name, levels, match_level
from trvae_sc.roles import ONE_LABEL

logger = logging.getLogger(__name__)

TASK = ["label", "source", "target"]  #: columns of tables that name a hold-out
#: What is hidden: a condition in all labels, and its label, too.
CONDITION, BOTH = "condition", "both"
_NEED_LABELS = f"Hold-outs need a column of labels: name it with labels_key=. {ONE_LABEL}"


@dataclass(frozen=True)
class Holdout:
    """A combination of label and target condition that is hidden from training.

    Levels are matched by how they read: 1 and "1" are the same.

    Parameters
    ----------
    label
        Label (cell type) to predict; a level of `key` if that is given.
    target, source
        Condition it is predicted under, and from; the source may be decided later.
    key
        Column of ``obs`` that `label` is a level of (a batch or patient); the labels if None.
    also
        Further combinations hidden from the same training, not scored.
    within
        Further columns of ``obs`` and their level, as ``(("donor", "d1"),)`` for a label of one donor.
    """

    label: Any
    target: Any
    source: Any = None
    key: str | None = None
    also: tuple[Holdout, ...] = ()
    within: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        """Return ``label:target``, or ``donor + label:target`` within a donor."""
        return f"{self.name}:{level_name(self.target)}"

    @property
    def name(self) -> str:
        """The label, after the levels that it is within."""
        return SEPARATOR.join([level_name(v) for v in (*(v for _, v in self.within), self.label)])

    @property
    def columns(self) -> list[str]:
        """Columns of ``obs`` that it is defined by besides labels and conditions."""
        return [*([] if self.key is None else [self.key]), *(key for key, _ in self.within)]

    @property
    def hides(self) -> frozenset[tuple[Any, ...]]:
        """What is hidden from its training; hold-outs that hide the same have the same training cells."""
        return frozenset(
            (h.key, h.within, level_name(h.label), level_name(h.target)) for h in (self, *self.also)
        )

    def __repr__(self) -> str:
        """Return what is hidden, and what it is predicted from."""
        source = "" if self.source is None else f" from {level_name(self.source)}"
        column = "" if self.key is None else f", of '{self.key}'"
        also = f", with {', '.join(map(str, self.also))}" if self.also else ""
        return f"Holdout({self}{source}{column}{also})"

    def hidden(self, adata: AnnData, keys: Keys) -> np.ndarray:
        """Return which cells are hidden and scored, shape (n_cells,)."""
        condition = as_text(keys.conditions(adata.obs))
        return (condition == level_name(self.target)).to_numpy() & self.has_label(adata, keys)

    def sources(self, adata: AnnData, keys: Keys) -> np.ndarray:
        """Return which cells the prediction starts from, shape (n_cells,)."""
        condition = as_text(keys.conditions(adata.obs))
        if self.source is None:
            start = condition != level_name(self.target)
        else:
            start = condition == level_name(self.source)
        return start.to_numpy() & self.has_label(adata, keys)

    def has_label(self, adata: AnnData, keys: Keys) -> np.ndarray:
        """Return which cells have the label, shape (n_cells,)."""
        key = keys.labels_key if self.key is None else self.key
        if key is None:
            raise InputError(f"Hold-out {self} needs a column of labels: name it with labels_key=.")
        has = np.ones(adata.n_obs, dtype=bool)
        for column, level in ((key, self.label), *self.within):
            has &= (as_text(adata.obs[column]) == level_name(level)).to_numpy()
        return has


def holdouts(
    adata: AnnData,
    *,
    keys: Any = None,
    source: Any = None,
    by: str | Sequence[str] | None = None,
    min_cells: int = 30,
    together: int = 1,
    **names: Unpack[KeyNames],
) -> list[Holdout]:
    """Return every combination with enough cells, to be hidden one at a time.

    Parameters
    ----------
    adata
        All cells.
    keys, **names
        Where the data are: :class:`Keys`, a model for what it was set up with, or fields of :class:`Keys` by name.
    source
        Condition to predict from. If None, the first of ordered categories, or the only condition
        with the name of a control (:data:`trvae_sc.levels.CONTROLS`), else with a dose of 0.
    by
        Column of ``obs`` whose levels are held out (batch, donor); the labels if None. Of several, as
        ``["donor", "cell_type"]``, every combination of levels is. ``"condition"``: the target is hidden in all
        labels (``condition_features`` or ``condition_separator`` tell of it); ``"both"``: so is the label to
        predict, under every condition but the source.
    min_cells
        Cells that source and target of a combination need.
    together
        Number of combinations of a target that are hidden from the same training.

    Returns
    -------
    The hold-outs; a log message names those that are too small.

    Raises
    ------
    InputError
        `source` is not known, labels or conditions are missing, or nothing has enough cells.
    """
    keys = keys_from(keys, names)
    check_whole("min_cells", min_cells, 0)
    check_whole("together", together)
    by = by[0] if isinstance(by, Sequence) and not isinstance(by, str) and len(by) == 1 else by
    columns = [keys.labels_key] if by is None else [by] if isinstance(by, str) else list(by)
    whole = sorted(map(str, columns)) == sorted(map(str, keys.condition_columns))
    unseen = by if by in (CONDITION, BOTH) else CONDITION if whole else None
    by, columns = (None, [keys.labels_key]) if unseen else (by, columns)
    if unseen and together > 1:
        raise InputError(f"by={unseen!r} hides a condition in all labels: leave together out.")
    if set(keys.condition_columns) & set(columns):
        raise InputError(
            f"by={by!r} names the condition. by='condition' hides a condition in all labels, by='both' its label, "
            "too."
        )
    if len(set(columns)) < len(columns):
        raise InputError(f"by={by!r} names a column twice. Name each once.")
    if columns in ([], [None]):
        raise InputError(_NEED_LABELS)
    check_obs(adata, [*keys.condition_columns, *columns])
    column, space = keys.conditions(adata.obs), conditions_of(adata, keys)
    of = [as_text(adata.obs[k]).to_numpy() for k in columns]  # names of cells play no role
    table = pd.crosstab(of, as_text(column).to_numpy())
    if source is None:
        source = default_source(column)
    elif space.tells_of_new or not isinstance(source, str):
        source = space.level(source)
    source = level_name(match_level(source, levels(column), of="source"))
    rows = [row if isinstance(row, tuple) else (row,) for row in table.index]
    key = None if by is None else columns[-1]
    found, small, targets = [], [], [c for c in table if c != source]
    if unseen:
        told = set(map(level_name, space.told_by_others()))
        if alone := [c for c in targets if c not in told]:
            logger.info("Skipped, with a part that no other condition has: %s.", ", ".join(alone))
            targets = [c for c in targets if c in told]
    for target in targets:
        some = []
        for (*outer, label), n_cells in zip(rows, table[[source, target]].min(axis=1), strict=True):
            within = tuple(zip(columns, outer, strict=False))
            holdout = Holdout(label, target, source, key, within=within)
            if n_cells >= min_cells:
                some.append(holdout)
            else:
                small.append(str(holdout))
        for start in range(0, len(some), together):
            group = some[start : start + together]
            found += [replace(h, also=tuple(o for o in group if o != h)) for h in group]
    if small:
        logger.info("Skipped, with fewer than %d cells: %s.", min_cells, ", ".join(small))
    if not found:
        raise InputError(f"No combination has {min_cells} cells under {source!r} and a target.")
    return hidden_whole(found, adata, keys, by=unseen) if unseen else found


def hidden_whole(
    holdouts: Sequence[Holdout], adata: AnnData, keys: Keys, *, by: str
) -> list[Holdout]:
    """Return hold-outs whose condition is hidden in all labels (``by="both"``: and their label in all)."""
    labels = sorted(as_text(adata.obs[keys.labels_key]).unique())
    conditions = sorted(as_text(keys.conditions(adata.obs)).unique()) if by == BOTH else []
    found = []
    for one in holdouts:
        kept = (level_name(one.target), None if one.source is None else level_name(one.source))
        also = [replace(one, label=label) for label in labels if label != one.label]
        also += [replace(one, target=target) for target in conditions if target not in kept]
        found.append(replace(one, also=tuple(also)))
    return found


def as_holdouts(given: Any, adata: AnnData, keys: Keys) -> list[Holdout]:
    """Return hold-outs that may be given as texts ``label:target`` or pairs (label, target), one or several.

    Conditions of several columns may be given by their parts, as a dictionary or tuple. The source of texts and
    pairs is the other one of two conditions, else the one that is called like a control.
    """
    given = [given] if isinstance(given, Holdout | str) else given
    if not isinstance(given, Iterable):
        raise InputError(f"holdouts is {given!r}; {_ALLOWED}")
    space = cache(lambda: conditions_of(adata, keys))
    every = [by_name(one, space) for one in given]
    texts = [one for one in every if not isinstance(one, Holdout)]
    if not texts:
        return every
    check_obs(adata, keys.condition_columns)
    column, source = keys.conditions(adata.obs), None
    if column.nunique() > 2:
        with contextlib.suppress(InputError):
            source = default_source(column)
    parsed = iter(parse_holdouts(texts, adata, keys, source=source))
    return [one if isinstance(one, Holdout) else next(parsed) for one in every]


def by_name(given: Any, space: Callable[[], ConditionSpace]) -> Any:
    """Return a hold-out, text or pair with the names of conditions that are given by their parts."""
    if isinstance(given, Holdout):
        also = tuple(by_name(one, space) for one in given.also)
        ends = {"target": _named(given.target, space), "source": _named(given.source, space)}
        return replace(given, **ends, also=also, within=tuple(map(tuple, given.within)))
    is_pair = isinstance(given, Sequence) and not isinstance(given, str) and len(given) == 2
    return (given[0], _named(given[1], space)) if is_pair else given


def _named(condition: Any, space: Callable[[], ConditionSpace]) -> Any:
    """Return the level that a condition names; a text that names none as it is."""
    if pd.api.types.is_list_like(condition):
        return space().level(condition)
    if isinstance(condition, str):
        with contextlib.suppress(InputError):  # parts in another order, "A + 1.0", or "1.0"
            return space().level(condition)
    return condition


_ALLOWED = (
    "give those of trvae_sc.evaluation.holdouts(adata, ...), Holdout(label, target, source), texts "
    "'label:target' or pairs (label, target)."
)


def parse_holdouts(
    texts: Sequence[str | Sequence[Any]], adata: AnnData, keys: Keys, *, source: Any = None
) -> list[Holdout]:
    """Return hold-outs written as ``label:target``, or as pairs (label, target).

    Labels and conditions may contain colons: of all ways to divide a text the one that cells have counts.

    Parameters
    ----------
    texts
        The hold-outs.
    adata, keys
        All cells, and where the data are.
    source
        Condition to predict from; where there are two conditions, the other one if None.

    Raises
    ------
    InputError
        The text has no colon, no cell has such a label and condition, or several pairs of them read the
        same; the source is unknown.
    """
    if not texts:
        return []
    if keys.labels_key is None:
        raise InputError(_NEED_LABELS)
    check_obs(adata, [*keys.condition_columns, keys.labels_key])
    columns = as_text(adata.obs[keys.labels_key]), as_text(keys.conditions(adata.obs))
    pairs = set(zip(*columns, strict=True))
    labels, conditions = (sorted(set(names)) for names in zip(*pairs, strict=True))
    space = cache(lambda: conditions_of(adata, keys))
    source = _named(source, space)
    if source is not None and level_name(source) not in conditions:
        raise InputError(f"Unknown source {level_name(source)!r}; conditions are {conditions}.")
    found = []
    for text in texts:
        label, target = named_pair(text, pairs, labels, conditions, space)
        others = [c for c in conditions if c != target]
        start = others[0] if source is None and len(others) == 1 else source
        found.append(Holdout(label, target, None if start is None else level_name(start)))
    return found


def named_pair(
    text: str | Sequence[Any],
    pairs: set[tuple[str, str]],
    labels: list[str],
    conditions: list[str],
    space: Callable[[], ConditionSpace] | None = None,
) -> tuple[str, str]:
    """Return the label and condition that a text ``label:condition``, or a pair, names; one of `pairs`."""
    if not isinstance(text, str):
        if not isinstance(text, Sequence) or len(text) != 2:
            raise InputError(f"A hold-out is {text!r}; {_ALLOWED}")
        ways = [(level_name(text[0]), level_name(text[1]))]
        text = ":".join(ways[0])
    elif ":" in text:
        ways = [(text[:i], text[i + 1 :]) for i, mark in enumerate(text) if mark == ":"]
    else:
        raise InputError(f"Hold-out '{text}' is not of the form 'label:target'.")
    found = [way for way in ways if way in pairs]
    if not found and space is not None:
        ways = [(label, level_name(_named(target, space))) for label, target in ways]
        found = [way for way in dict.fromkeys(ways) if way in pairs]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"Hold-out '{text}' can be read as {found}. Rename one of the levels.")
    raise InputError(
        f"Hold-out '{text}' matches no cell: labels are {labels}, conditions {conditions}."
    )
