"""Conditions made of several obs columns: levels and numbers, each with an effect of its own.

A condition (cytokine, dose) is coded by one feature for every level of a categorical column and one, standardised,
for a numeric column. Network layers see features, so a combination that was never measured is predicted from its
parts, and a number between or beyond those measured from the numbers around it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import pandas as pd

from trvae_sc.condition_features import DESCRIBED, GRID, Description
from trvae_sc.condition_kernels import (
    JOINT,
    MEASURED,
    is_of_one_column,
    kernel_of,
    left_out_together,
)
from trvae_sc.condition_parts import UNKNOWN, design, joint_column, name_of, parse
from trvae_sc.errors import InputError
from trvae_sc.left_out import left_out_errors
from trvae_sc.levels import as_list, as_text, level_name, match_level
from trvae_sc.shift import Likeness, Profiles, mean_changes

AS_NUMBER = (
    " '{0}' was registered as levels; set up with condition_key=['{0}'] it is a number, and values between "
    "and beyond those measured can be predicted."
)
AS_SET = " Sets of parts, of which others than those measured can be predicted, are set up with condition_separator='{0}'."
_LEAST = 4  # measured levels, of which it can be learned how much features say


def unwrapped(key: str | list[str], condition: Any, most: int = 1) -> Any:
    """Return a condition that may be in a Series or an array, of one column out of its list or dictionary.

    Raises on one of more than `most` values, as a column of cells or several conditions are.
    """
    if isinstance(condition, pd.Series) and set(condition.index) == set(as_list(key)):
        condition = condition.to_dict()
    if isinstance(condition, np.ndarray | pd.Series | pd.Index | pd.api.extensions.ExtensionArray):
        found = np.asarray(condition)  # keeps the digits of float32
        _check_size(found.size, key, most)
        condition = list(found.ravel()) if found.ndim else found[()]
    if not isinstance(key, str):
        return condition
    if isinstance(condition, Mapping) and list(condition) == [key]:
        condition = condition[key]
    if isinstance(condition, list | tuple):
        _check_size(len(condition), key, most)
        condition = condition[0] if len(condition) == 1 else condition
    return condition


def _check_size(n: int, key: str | list[str], most: int) -> None:
    """Raise on a condition of more values than it can have."""
    if n > most:
        raise InputError(
            f"A condition is given as {n:,} values of {key!r}. Name one at a time; the cells to start from are "
            "chosen with source=, labels= and indices=."
        )


@dataclass(frozen=True)
class ConditionSpace:
    """The conditions that a model knows, and how others are made of their parts.

    Parameters
    ----------
    key
        Column, or columns, of ``obs``; None: there are no conditions, one level stands for all cells.
    levels
        Conditions in the order of their codes.
    parts
        How conditions of several columns are coded (``new_parts``); None for one column.
    """

    key: str | list[str] | None
    levels: tuple[Any, ...]
    parts: dict[str, Any] | None = None

    def level(self, condition: Any) -> Any:
        """Return a condition as in ``levels``, or the name of a new combination; raise on an unknown one.

        Of one column it may be in a list or dictionary, too.
        """
        if self.key is None:
            raise InputError(
                f"The model was set up without condition_key and knows no condition {condition!r}. "
                "Name the column in setup_anndata and train again."
            )
        if not isinstance(self.key, str):
            return name_of(self.values(condition))
        condition = unwrapped(self.key, condition)
        if self.description is not None:
            known = self.description.and_described(self.levels)
            return match_level(condition, known, of="condition", hint=UNKNOWN)
        numbers = [isinstance(v, int | float) and not isinstance(v, bool) for v in self.levels]
        hint = AS_NUMBER.format(self.key) if all(numbers) else ""
        try:
            return match_level(condition, list(self.levels), of="condition", hint=hint)
        except InputError as error:
            raise InputError(f"{error}{self._as_set(condition)}") from None

    def _as_set(self, condition: Any) -> str:
        """Return what to do where an unknown condition is a set of what measured ones are made of."""
        for mark in "+_|,;&":
            found = {part for level in self.levels for part in level_name(level).split(mark)}
            given = level_name(condition).split(mark)
            is_dose = any(part[:1].isdigit() for part in given)  # or a time
            if len(given) > 1 and found.issuperset(given) and not is_dose:
                return AS_SET.format(mark)
        return ""

    def values(self, condition: Any) -> Sequence[Any]:
        """Return the parts of a condition."""
        if self.parts is None:
            return [self.level(condition)]
        if isinstance(condition, str) and condition in self.levels:
            return self.parts["values"][self.levels.index(condition)]
        if isinstance(self.key, str):
            return [self.level(condition)]
        keys = self.parts["keys"]
        return parse(self.parts, unwrapped(keys, condition, len(keys)))

    def code(self, level: Any) -> int | None:
        """Return the code of a level; None of a new combination."""
        return self.levels.index(level) if level in self.levels else None

    def design(self) -> np.ndarray:
        """Return the features of every condition, shape (n_conditions, n_features)."""
        if self.parts is None:
            return np.eye(len(self.levels), dtype=np.float32)
        return np.stack([design(self.parts, values) for values in self.parts["values"]])

    def features(self, condition: Any) -> np.ndarray:
        """Return the features of a condition, shape (1, n_features)."""
        level = self.level(condition)
        if self.parts is None:
            return np.eye(1, len(self.levels), self.levels.index(level), dtype=np.float32)
        return design(self.parts, self.values(level))[None]

    def column(self, obs: pd.DataFrame) -> pd.Series:
        """Return the condition of each cell, as named in ``levels``."""
        if self.key is None:
            return pd.Series(self.levels[0], index=obs.index, dtype=object)
        if not isinstance(self.key, str):
            return joint_column(obs, self.key)[0].astype(object)
        known = {level_name(level): level for level in self.levels}
        return as_text(obs[self.key], known).infer_objects()

    def columns(self, levels: Sequence[Any]) -> dict[str, Any]:
        """Return the obs columns of cells under these conditions, as :meth:`level` returns them, one a cell."""
        if self.key is None:
            return {}
        if isinstance(self.key, str):
            return {self.key: pd.Categorical(list(levels), list(dict.fromkeys(levels)))}
        scaling = {} if self.parts is None else self.parts["scaling"]
        values = {level: self.values(level) for level in dict.fromkeys(levels)}
        columns = {key: [values[level][i] for level in levels] for i, key in enumerate(self.key)}
        return {
            key: found if key in scaling else pd.Categorical(found, list(dict.fromkeys(found)))
            for key, found in columns.items()
        }

    def remarks(self, level: Any) -> list[str]:
        """Return what is to be said of a condition that was not measured."""
        if self.parts is None or self.code(level) is not None:
            return []
        keys, description = self.parts.get("keys", ()), self.description  # sets have no keys
        own = dict(zip(keys, self.values(level), strict=False))
        named = ", ".join(f"{key} {level_name(value)}" for key, value in own.items()) or level
        told_by = "its features" if description is not None and len(own) == 1 else "its parts"
        notes = [f"No cell was measured under {named}: it is predicted from {told_by}."]
        if description is not None:
            for part in self.described_levels(level):
                notes += description.remarks(part)
        for key in self._outside(level):
            low, high = self.parts["scaling"][key][2:]
            notes.append(
                f"{key} {own[key]:g} is outside of what was measured, {low:g} to {high:g}: the prediction "
                "extrapolates, and nothing tells how far to trust it."
            )
        return notes

    def is_outside(self, condition: Any) -> bool:
        """Return whether a number of a condition is outside of what was measured."""
        return bool(self._outside(condition))

    def _outside(self, condition: Any) -> list[str]:
        """Return the columns whose numbers are outside of what was measured."""
        if self.parts is None or not self.parts.get("scaling"):
            return []
        own = dict(zip(self.parts["keys"], self.values(condition), strict=True))
        ranges = {key: scale[2:] for key, scale in self.parts["scaling"].items()}
        return [key for key, (low, high) in ranges.items() if not low <= own[key] <= high]

    @cached_property
    def description(self) -> Description | None:
        """Numbers that describe conditions, or parts of them, if there are any."""
        return Description.of(self.parts)

    @property
    def tells_of_new(self) -> bool:
        """Whether conditions that no cell was measured under can be predicted."""
        return self.description is not None or not self.is_of_one_part

    def testable(self, target: Any) -> list[Any]:
        """Return conditions whose prediction, where each is left out, tells how well a new target is predicted.

        Sets of parts that were measured alone, if the target is one; else all that others tell of.
        """
        told = self.told_by_others()
        if self.singles(target) is not None:
            told = [level for level in told if self.singles(level) is not None]
        return [level for level in told if level != target]

    def told_by_others(self) -> list[Any]:
        """Return the conditions that can be predicted from the others: all whose levels others have."""
        if self.parts is None or self.is_of_one_part:
            return list(self.levels)
        keys, own = self.parts["keys"], None if self.description is None else self.description.key
        named = [key for key in keys if key not in self.parts["scaling"] and key != own]
        rows = [dict(zip(keys, self.values(level), strict=True)) for level in self.levels]
        n = Counter((key, row[key]) for row in rows for key in named)
        told = [all(n[key, row[key]] > 1 for key in named) for row in rows]
        return [level for level, is_told in zip(self.levels, told, strict=True) if is_told]

    def singles(self, target: Any) -> list[Any] | None:
        """Return the conditions that have one part of a set each; None where there are no sets."""
        return None

    def described_levels(self, condition: Any) -> list[Any]:
        """Return the levels, or parts, of a condition that features describe."""
        if self.parts is None or self.description is None:
            return []
        of_keys = dict(zip(self.parts["keys"], self.values(condition), strict=True))
        return [of_keys[self.description.key]]

    def is_by_features(self, condition: Any) -> bool:
        """Return whether a condition, or a part of it, is known by its features only."""
        found = map(level_name, self.described_levels(condition))
        description = self.description
        return description is not None and any(
            name in description.names and name not in description.measured for name in found
        )

    def described(self, condition: Any) -> np.ndarray:
        """Return the standardised features of a condition (of a set their sum); NaN without any."""
        if self.description is None:
            raise InputError("Conditions have no features: name them with condition_features=.")
        return self.description.standardised(self.described_levels(condition)).sum(0)

    def novelty(self, condition: Any) -> float:
        """Return how far features of a condition are from those measured; NaN without features."""
        if self.description is None:
            return float("nan")
        return max(map(self.description.novelty, self.described_levels(condition)), default=0.0)

    def with_description(self, description: Description) -> Self:
        """Return the conditions with another description."""
        return replace(self, parts={**(self.parts or {}), DESCRIBED: description.plain()})

    def first(self, n: int) -> Self:
        """Return the first n conditions, as they were before a query added others."""
        parts = self.parts and {**self.parts, "values": self.parts["values"][:n]}
        found, description = replace(self, levels=self.levels[:n], parts=parts), self.description
        if description is None:
            return found
        known = {level_name(v) for level in found.levels for v in self.described_levels(level)}
        measured = [name for name in description.measured if name in known]
        return found.with_description(replace(description, measured=measured))

    def informed(self, profiles: Profiles, source: int, target: Any = None) -> Self:
        """Return the conditions with what their features were found to say of changes from a source.

        Share and reach are those of a grid with which conditions that are left out are predicted best, in the
        mean over labels; the share is 0 where that is no better than without features by the standard error. All
        conditions with a level are left out together. A measured target of one column needs none of it.
        """
        description, measured = self.description, np.asarray(profiles.measured(source).any(0))
        code = None if target is None or not self.is_of_one_part else self.code(target)
        if description is None or (code is not None and measured[code]):
            return self
        codes = np.flatnonzero(measured)
        levels, start = [self.levels[c] for c in codes], self.levels[source]
        together = self.together(levels)
        if len(np.unique(together, axis=0)) < _LEAST:
            return self
        changes, noise = mean_changes(profiles, source, codes)

        def errors(space: ConditionSpace) -> np.ndarray:
            return left_out_errors(changes, noise, space.alike(start, levels), together)

        blind = self.with_description(replace(description, share=0.0))
        informed = [
            self.with_description(replace(description, share=share, length=length))
            for share, length in GRID
        ]
        without, found = errors(blind), [errors(space) for space in informed]
        best = int(np.argmin([error.mean() for error in found]))
        better = without - found[best]
        sure = better.mean() > better.std(ddof=1) / np.sqrt(len(better))
        return informed[best] if sure else blind

    def together(self, conditions: Sequence[Any]) -> np.ndarray:
        """Return which conditions are left out with each to see what features tell, shape (n, n)."""
        levels = [self.described_levels(condition) for condition in conditions]
        return left_out_together(levels, self.description)

    def likeness(self, source: Any, target: Any, measured: np.ndarray) -> Likeness:
        r"""Return which conditions tell of a target, and how alike they are.

        Of a target every part changes alone what the conditions with that part show, and parts together what the
        conditions with such parts show (:meth:`alike`): a hundredth of the variance of one part, or 0.3 where
        the target itself was measured. A measured level of one column is told by itself.

        Parameters
        ----------
        source, target
            Conditions.
        measured
            Whether any label tells what changes from the source to a condition, shape (n_conditions,).
        """
        code, codes = self.code(target), np.flatnonzero(measured)
        is_measured = code is not None and (self.parts is None or bool(measured[code]))
        if code is not None and is_measured and (self.is_of_one_part or len(codes) < 2):
            return Likeness.of_itself(code)
        known = [self.levels[c] for c in codes]
        kernel = self.alike(source, [*known, target], joint=MEASURED if is_measured else JOINT)
        together = self.together(known) if self.is_by_features(target) else None
        own = float(kernel[-1, -1])
        return Likeness(codes, kernel[:-1, :-1], kernel[-1, :-1], own, together)

    @property
    def is_of_one_part(self) -> bool:
        """Whether conditions are the levels of one column, which are not made of anything."""
        return self.parts is None or is_of_one_column(self.parts)

    def alike(self, source: Any, conditions: Sequence[Any], *, joint: float = JOINT) -> np.ndarray:
        r"""Return how alike changes from the source to conditions are, shape (n, n).

        Levels (x) change as they are, numbers (y) linearly between those measured (beyond them the nearest), and all
        parts change together with a share of the variance, `joint`:

        .. math:: k_C = k_x + k_y + \text{joint}\,k, \qquad
            k_x = \sum_i [x_i = x_i'], \quad k_y = \sum_j \min(|y_j|, |y_j'|)

        with numbers as their distance from that of the source (1: their range; of distances in opposite
        directions 0), levels that differ from that of the source, and the change of what is 1 for equal levels
        and falls linearly with the distance of numbers, k. Where no level but those of the source was measured at
        its number, this is a dose: what levels change then grows with its root, from nothing, and a dose alone
        changes nothing, :math:`k_x \sqrt{k_{\text{dose}}}`; of several with the root of their product. Conditions
        of one column tell of themselves only.
        """
        if self.parts is None:
            return np.equal.outer(*[np.array([self.code(c) for c in conditions])] * 2).astype(float)
        rows = np.array([self.values(c) for c in (*conditions, source)], dtype=object)
        return kernel_of(self.parts, rows[:-1], rows[-1], joint)
