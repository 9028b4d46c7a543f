"""What to do with the prediction of every hidden combination."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from trvae_sc.baselines import SIMPLEST_FIRST
from trvae_sc.errors import InputError
from trvae_sc.evaluation import CEILING, N_TOP, Results
from trvae_sc.evaluation._choose import Decision, decide, standard_error
from trvae_sc.evaluation._holdouts import TASK
from trvae_sc.evaluation._results import loss, tasks_by_seeds
from trvae_sc.pl._style import number

TOP = f"top{N_TOP}"
_METRIC = "effect_r2"
_TOO_LOW = 0.3  # share of the effect R2 that a perfect prediction would have


class Verdict(NamedTuple):
    """What to do with the prediction of a task."""

    advice: str  #: "use the model", "use <method>", "too close to call" or "do not trust"
    reason: str


def verdict(decision: Decision, scores: Mapping[str, float], *, ceiling: float) -> Verdict:
    """Return what to do with a prediction, from effect R2 over the genes that change most.

    Parameters
    ----------
    decision
        How the model compares with the best simple method on this task.
    scores
        Effect R2 of each method (mean over seeds).
    ceiling
        What a perfect prediction would score on these hidden cells.

    Returns
    -------
    Advice and reason. Nothing is to be trusted where the better of the two has less than 30 % of what a
    perfect prediction would score, or where that is less than 0.3 itself.
    """
    ours, theirs = (scores.get(name or "", np.nan) for name in (decision.model, decision.simple))
    judged = decision.model if decision.model in SIMPLEST_FIRST else "the model"
    named = f"{judged} {number(ours)}, {decision.simple or 'no simple method'} {number(theirs)}"
    if ceiling < _TOO_LOW:
        return Verdict(
            "do not trust",
            f"the hidden cells are too few, or change too little, to judge anything: even a perfect "
            f"prediction would have effect R2 {number(ceiling)} ({named})",
        )
    if np.nanmax([ours, theirs, 0.0]) < _TOO_LOW * (1.0 if np.isnan(ceiling) else ceiling):
        of = "" if np.isnan(ceiling) else f", of {ceiling:.2f} that a perfect prediction would have"
        return Verdict("do not trust", f"effect R2 {named}{of}")
    if decision.simple is None:
        return Verdict(f"use {judged}", f"effect R2 {ours:.2f}; no simple method was run beside it")
    gap, error = ours - theirs, decision.error
    tells = (n for n in (2, 3) if f"{abs(gap):.{n}f}" != f"{error:.{n}f}")
    digits = next(tells, 4)  # decimals that tell the difference from its standard error
    difference = f"difference {gap:+.{digits}f}"
    if np.isfinite(error):
        difference += f", standard error {error:.{digits}f}"
    if decision.answer == "close":
        return Verdict("too close to call", f"effect R2: {named} ({difference})")
    word = f"use {judged if decision.answer == 'model' else decision.simple}"
    return Verdict(word, f"effect R2: {named} ({difference})")


def verdicts(results: Results, *, method: str | None = None) -> pd.DataFrame:
    """Return one row per task the model has finished: scores that matter, ``advice``, ``reason``.

    The standard error of a task's difference is that over its seeds, pooled over tasks, and no less than
    that of the mean difference over tasks; with one seed, the standard deviation over tasks.

    Parameters
    ----------
    results, method
        As in :func:`trvae_sc.report.report`.

    Returns
    -------
    Columns ``label``, ``source``, ``target``, ``model``, ``sd_seeds`` (standard deviation of the model's
    score over seeds), ``best simple``, ``simple`` (its name), ``ceiling``, ``advice``, ``reason`` and
    ``note``, which says where results are a quick look.

    Raises
    ------
    InputError
        No results of a benchmark, the method was not run, or nothing but ``no_change`` was.
    """
    method = main_method(results, method)
    table = results.table
    table = table[(table["metric"] == _METRIC) & (table["genes"] == TOP)]
    scores = {
        name: tasks_by_seeds(table, name, results.output_of(name)) for name in results.methods
    }
    scores[CEILING] = tasks_by_seeds(table, CEILING, CEILING)
    ours, rows = scores[method], []
    best = _best_simple(scores, method)
    errors = _errors(ours.sub(best["score"], axis=0).loc[ours.index])
    for task in ours.index:
        own = {name: float(t.loc[task].mean()) for name, t in scores.items() if task in t.index}
        other = best["name"].get(task)
        theirs, ceiling = (own.get(name or "", np.nan) for name in (other, CEILING))
        decision = decide(own[method] - theirs, errors[task], model=method, simple=other)
        found = verdict(decision, own, ceiling=ceiling)
        rows.append(
            {
                **dict(zip(TASK, task, strict=True)),
                "model": own[method],
                "sd_seeds": float(ours.loc[task].std()),
                "best simple": theirs,
                "simple": other or "",
                "ceiling": ceiling,
                **found._asdict(),
                "note": results.quick_look,
            }
        )
    return pd.DataFrame(rows)


def _best_simple(scores: dict[str, pd.DataFrame], method: str) -> pd.DataFrame:
    """Return score and name of the best simple method of every task; of equal ones the simplest."""
    run = [name for name in SIMPLEST_FIRST if name in scores and name != method]
    names = [name for name in run if name != "no_change"] or run
    if not names:
        return pd.DataFrame({"score": 0.0, "name": ""}, index=scores[method].index[:0])
    means = pd.DataFrame({name: scores[name].mean(axis=1) for name in names}).dropna(how="all")
    best = loss(_METRIC, means).round(12).idxmin(axis=1)
    return pd.DataFrame({"score": means.max(axis=1), "name": best.to_numpy()})


def _errors(differences: pd.DataFrame) -> pd.Series:
    """Return the standard error of every task's difference, given tasks x seeds."""
    over_tasks = standard_error(differences)
    n_seeds = differences.count(axis=1)
    if (n_seeds > 1).any():
        pooled = np.sqrt(differences.var(axis=1).mean())
        errors = pooled / np.sqrt(n_seeds)
        return np.maximum(errors, over_tasks) if len(differences) > 1 else errors
    spread = differences.mean(axis=1).std() if len(differences) > 1 else np.nan
    return pd.Series(spread, differences.index)


def main_method(results: Results, method: str | None = None) -> str:
    """Return the method to judge: the one named, which must have been run, a model, or the least simple one."""
    if not isinstance(results, Results):
        raise InputError(f"Expected results of a benchmark, got {type(results).__name__}.")
    run = [m for m in results.methods if m != CEILING]
    if method is not None:
        if method not in run:
            raise InputError(f"No method {method!r} in the results; there are {run}.")
        return method
    trained = [m for m in run if m not in SIMPLEST_FIRST]
    if "trvae" in trained:
        return "trvae"
    simple = [m for m in reversed(SIMPLEST_FIRST) if m in run and m != "no_change"]
    if not trained + simple:
        raise InputError(f"Only {run} was run: there is nothing to judge. Run other methods, too.")
    return (trained + simple)[0]
