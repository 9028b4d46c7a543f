"""What is to be predicted from what, and what is left out to compare methods."""

from __future__ import annotations

from typing import Any, NamedTuple

import pandas as pd
from anndata import AnnData

from trvae_sc.checks import check_free, check_names, check_obs
from trvae_sc.conditions import ConditionSpace
from trvae_sc.errors import InputError
from trvae_sc.evaluation._checks import LEAST_HIDDEN, check_counts
from trvae_sc.evaluation._holdouts import Holdout
from trvae_sc.expression import Keys, cells_at, conditions_of
from trvae_sc.levels import (
    as_list,
    as_text,
    default_source,
    level_name,
    levels,
    match_level,
)
from trvae_sc.roles import ONE_LABEL


class Question(NamedTuple):
    """What is to be predicted, from what."""

    known: AnnData  #: all cells but those that are hidden
    keys: Keys
    source: str
    target: Any  #: the level as it is in the data
    labels: list[str]
    cells: pd.DataFrame  #: number of known cells by label and condition
    notes: list[str]
    space: ConditionSpace  #: the conditions of the known cells
    is_new: bool  #: whether no label has source and target, so that features or parts tell of the target

    @property
    def units(self) -> str:
        """What is left out to compare methods."""
        if not self.is_new:
            return "labels"
        return "conditions" if self.space.singles(self.target) is None else "sets of parts"


def ask(adata: AnnData, target: Any, *, keys: Keys, source: Any, labels: Any) -> Question:
    """Return what is to be predicted, and the data without the cells that must not be seen."""
    if keys.labels_key is None:
        raise InputError(
            f"Labels are left out to compare methods: keys need a labels_key. Name it with labels_key=. {ONE_LABEL}"
        )
    check_obs(adata, [*keys.condition_columns, keys.labels_key])
    check_names(adata)
    check_free(adata)
    condition, label = as_text(keys.conditions(adata.obs)), as_text(adata.obs[keys.labels_key])
    space = conditions_of(adata, keys)
    target = space.level(target)
    name = level_name(target)
    source = None if source is None else space.level(source)
    source = _source(keys.conditions(adata.obs), source, name)
    cells = pd.crosstab(label, condition)
    cells = cells if name in cells else cells.assign(**{name: 0})
    chosen = _labels(cells, source, name, labels)
    hidden = (label.isin(chosen) & (condition == name)).to_numpy()
    known, notes = adata, []
    if hidden.any():
        known = cells_at(adata, ~hidden).copy()
        notes = [f"{hidden.sum()} measured cells of {', '.join(chosen)} under {name} were hidden."]
    check_counts(known, keys)
    is_measured = (condition[~hidden] == name).any()
    if not (is_measured or space.tells_of_new):
        raise InputError(
            f"No label but those to predict ({', '.join(chosen)}) has cells under {name!r}: "
            "nothing is known about that condition."
        )
    if is_measured:
        target = match_level(target, levels(keys.conditions(known.obs)), of="condition")
    cells.loc[chosen, name] = 0  # what is hidden is not known
    is_new = space.tells_of_new and not (cells[[source, name]] > 0).all(axis=1).any()
    space = conditions_of(known, keys)
    return Question(known, keys, source, target, chosen, cells, notes, space, is_new)


def _source(column: pd.Series, source: Any, target: str) -> str:
    """Return the condition to start from."""
    others = [c for c in sorted(as_text(column).unique()) if c != target]
    if source is None:
        source = others[0] if len(others) == 1 else default_source(column)
    if level_name(source) not in others:
        raise InputError(f"Source {source!r}: name the condition to predict from, of {others}.")
    return level_name(source)


def _labels(cells: pd.DataFrame, source: str, target: str, labels: Any) -> list[str]:
    """Return the labels to predict, given the number of cells by label and condition."""
    if labels is None:
        missing = (cells[source] > 0) & (cells[target] == 0)
        if not missing.any():
            raise InputError(
                f"Every label with cells under {source!r} has some under {target!r}: nothing is missing. "
                "To hide and predict labels all the same, name them."
            )
        return list(cells.index[missing])
    chosen = list(dict.fromkeys(map(level_name, as_list(labels))))
    unknown = [label for label in chosen if label not in cells.index]
    if unknown or not chosen:
        raise InputError(f"Unknown labels {unknown}; there are {list(cells.index)}.")
    empty = [label for label in chosen if not cells.loc[label, source]]
    if empty:
        raise InputError(f"No cells of {empty} under {source!r} to predict {target!r} from.")
    return chosen


def inner_tasks(question: Question, min_cells: int, max_tasks: int | None) -> list[Holdout]:
    """Return the known combinations to hide one at a time, those of most cells.

    Of a target that no label has besides the source these are other conditions, each hidden in all labels and
    scored in the label with most cells.
    """
    cells, source = question.cells, question.source
    if not question.is_new:
        target = level_name(question.target)
        labels = _with_most(cells[[source, target]].min(axis=1), min_cells, max_tasks)
        return [Holdout(label, target, source) for label in labels]
    testable = map(level_name, question.space.testable(question.target))
    fewer = pd.DataFrame({c: cells[[source, c]].min(axis=1) for c in testable if c != source})
    found = []
    for c in _with_most(fewer.max(), min_cells, max_tasks):
        label = fewer[c].idxmax()
        also = (Holdout(other, c, source) for other in cells.index[cells[c] > 0] if other != label)
        found.append(Holdout(label, c, source, also=tuple(also)))
    return found


def _with_most(n_cells: pd.Series, min_cells: int, max_tasks: int | None) -> list[str]:
    """Return what has enough cells, those with most, in the order of their names."""
    enough = n_cells[n_cells >= max(min_cells, LEAST_HIDDEN)]
    return sorted(enough.sort_values(ascending=False, kind="stable").index[:max_tasks])
