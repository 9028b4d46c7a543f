"""Predicting what was never measured with the method that predicts what was measured best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from anndata import AnnData

from trvae_sc.arguments import check_known, check_whole
from trvae_sc.baselines import SIMPLE
from trvae_sc.checks import without_codes
from trvae_sc.errors import InputError
from trvae_sc.evaluation._benchmark import benchmark
from trvae_sc.evaluation._checks import LEAST_GENES
from trvae_sc.evaluation._fit import plain
from trvae_sc.evaluation._holdouts import Holdout
from trvae_sc.evaluation._left_out import LeftOut, left_out, stacked_scores, stacking_weights
from trvae_sc.evaluation._methods import Method, check_seeds, resolve
from trvae_sc.evaluation._question import Question, ask, inner_tasks
from trvae_sc.evaluation._results import Best, Results
from trvae_sc.evaluation._scores import SCORED
from trvae_sc.evaluation._tasks import training_data
from trvae_sc.expression import KeyNames, Keys, check_output, keys_from
from trvae_sc.hints import said_once
from trvae_sc.levels import as_text, level_name
from trvae_sc.notes import log_notes

_DEFAULTS = {
    "best": ("mean_shift", "context_shift", "trvae"),
    "stack": ("context_shift", "trvae", "no_transfer"),
}
_NEW = ("mean_condition", "context_shift", "trvae")  # of conditions that were never measured
_NEW_SETS = ("sum_of_parts", "context_shift", "trvae")
_OF_BENCHMARK = ("n_jobs", "backend", "export", "progress")  # what is passed to it
_ALSO = f", and {[*Keys._fields, *_OF_BENCHMARK]}"
_MIN_TASKS = 3  # labels to leave out in turn; with two, methods would learn from a single one


@said_once()
def select(  # noqa: PLR0913
    adata: AnnData,
    target: Any,
    *,
    keys: Any = None,
    source: Any = None,
    methods: Mapping[str, Callable[..., Any]] | Sequence[str] | None = None,
    labels: Any = None,
    metric: str = "effect_r2",
    max_tasks: int | None = None,
    min_cells: int = 30,
    seeds: int | Sequence[int] = (0,),
    n_top_genes: int | None = 2000,
    max_epochs: int | None = None,
    combine: Literal["best", "stack"] = "best",
    output: Literal["counts", "delta"] | None = None,
    folder: str | Path | None = None,
    **kwargs: Any,
) -> AnnData:
    """Predict labels under a condition they lack with the method that is best where truth is known.

    Labels with cells under both source and target are left out in turn and predicted by every method
    (:func:`trvae_sc.evaluation.benchmark`); where there is none, of a target that features describe
    (``condition_features=``) or that is made of parts (several columns, ``condition_separator=``), other conditions
    are. :meth:`trvae_sc.evaluation.Results.best` chooses, and its choice is fitted anew on all cells.

    Parameters
    ----------
    adata
        All cells with all genes.
    target
        Condition to predict.
    keys
        Where the data are, with labels: :class:`Keys`, a model, or fields of :class:`Keys` by name in `kwargs`.
    source
        Condition to start from. If None the other one of two, else as of :func:`trvae_sc.evaluation.holdouts`.
    methods
        As of :func:`trvae_sc.evaluation.benchmark`. If None, ``mean_shift`` (of a target that was never measured
        ``mean_condition``, of a set ``sum_of_parts``), ``context_shift`` and ``trvae``; to stack,
        ``context_shift``, ``trvae`` and ``no_transfer`` (``trvae`` without the transfer loss).
    labels
        Label or labels to predict, whose target cells are hidden; those with source cells and no target cells if
        None.
    metric
        Score to choose by, one that every prediction has (:data:`trvae_sc.evaluation.SCORED`).
    max_tasks
        Number of labels to leave out, those with most cells; all if None.
    min_cells
        Cells that a label needs under source and target to be left out; those with fewer than four never are.
    seeds
        Seeds, or how many; the final fit has the first.
    n_top_genes, max_epochs
        As of :func:`trvae_sc.evaluation.benchmark`, also for the final fit.
    combine
        ``"best"``: the method that is best. ``"stack"``: the mean of all, with weights that predict the
        labels left out best (``stacking_weights``); each method is fitted on all cells.
    output
        ``"counts"`` (default for counts) or ``"delta"``, whichever method predicts.
    folder
        Folder that keeps the fits of the benchmark, but not the final one.
    **kwargs
        Names of columns (see `keys`), and further arguments of :func:`trvae_sc.evaluation.benchmark`.

    Returns
    -------
    What is predicted from the source cells of the labels, with all their columns of ``obs`` and the columns and the
    record of :meth:`trvae_sc.TRVAE.predict`, whichever method it is by (``trvae_sc_total_counts``: totals over all
    genes). Intervals rest on how the chosen method errs for the labels left out. ``uns["trvae_sc"]`` has one more of
    ``"notes"``, and ``"selection"``: ``method``, ``weights`` (of a stack), ``output``, ``metric``, ``answer`` ("model",
    "simple" or "close": too close to call), ``n_tasks``, ``tasks`` (the labels left out) and ``scores``
    (:attr:`trvae_sc.evaluation.Best.table`). With fewer than three labels to leave out nothing can be compared: the
    prediction is then by the strongest simple method that is defined (``context_shift``; of conditions without parts
    ``mean_shift`` from one label with both, ``no_change`` from none), of `methods` if there is one, without ``scores``.

    Raises
    ------
    InputError
        Unknown source, target, labels, methods or metric; nothing to predict; values that are not counts; a
        column is missing.

    Examples
    --------
    >>> from trvae_sc import datasets
    >>> adata = datasets.simulate(600, 60, n_labels=4, specificity=0.0)
    >>> lacks = (adata.obs["cell_type"] == "type_3") & (adata.obs["condition"] == "stimulated")
    >>> predicted = select(
    ...     adata[~lacks].copy(),
    ...     "stimulated",
    ...     condition_key="condition",
    ...     labels_key="cell_type",
    ...     methods=["no_change", "mean_shift"],
    ...     progress=False,
    ... )
    >>> predicted.uns["trvae_sc"]["selection"]["method"]
    'mean_shift'
    """
    _check_arguments(metric, combine, max_tasks, min_cells, n_top_genes)
    seeds = check_seeds(seeds)
    check_known(kwargs, select, [*Keys._fields, *_OF_BENCHMARK], also=_ALSO)
    names = cast("KeyNames", {k: kwargs.pop(k) for k in Keys._fields if k in kwargs})
    keys = keys_from(keys, names)
    output = check_output(output, keys)
    question = ask(adata, target, keys=keys, source=source, labels=labels)
    if methods is None:
        methods = _DEFAULTS[combine]
        if question.is_new and combine == "best":
            methods = _NEW if question.space.singles(question.target) is None else _NEW_SETS
    known = {name: method.with_epochs(max_epochs) for name, method in resolve(methods).items()}
    if combine == "stack" and any("/" in name for name in known):
        raise InputError(
            f"Names of methods to stack have no '/', as files cannot hold it: {[*known]}."
        )
    tasks = inner_tasks(question, min_cells, max_tasks)
    best, evidence = None, None
    if len(tasks) < _MIN_TASKS:
        name, method = _fallback(question, known)
        known, weights = {**known, name: method}, {name: 1.0}
        question.notes.append(_fallback_note(question, tasks, min_cells, name))
    else:
        _check_defined(metric, question)
        results = benchmark(
            question.known,
            {name: method.predict for name, method in known.items()},
            tasks,
            keys=keys,
            seeds=seeds,
            n_top_genes=n_top_genes,
            max_epochs=max_epochs,
            folder=folder,
            **kwargs,
        )
        results = _of_these(results, known, tasks, seeds)
        best = results.best(metric)
        evidence = left_out(results, list(known))
        if combine == "best":
            weights = {best.method: 1.0}
            note = _note(best, metric, results.quick_look, question.units)
        else:
            weights = stacking_weights(evidence)
            note = _stack_note(weights, results, evidence, best, metric, question.units)
        question.notes.append(note)
    from trvae_sc.evaluation import _answer  # imports torch, which a benchmark may not need

    if question.space.is_outside(question.target):  # nothing tells how wrong a prediction is there
        evidence = None
    train, train_keys, start = _all_cells(question, known, weights, n_top_genes)
    found = _answer.answer(
        train,
        start,
        target=question.target,
        keys=train_keys,
        methods=known,
        weights=weights,
        output=output,
        seed=seeds[0],
        evidence=evidence,
    )
    predicted = _with_columns(found, question.known)
    record = predicted.uns["trvae_sc"]
    record["notes"] = np.array([*record.get("notes", ()), *question.notes], dtype=object)
    selection: dict[str, Any] = {"method": next(iter(weights))}
    if len(weights) > 1:
        selection = {"method": _answer.STACK, "weights": weights}
    selection |= {"output": output, "metric": metric, **_evidence(tasks, best)}
    record |= {"n_genes": adata.n_vars, "selection": selection}
    return log_notes(predicted)


def _check_defined(metric: str, question: Question) -> None:
    """Raise where a score is NaN in all tasks: nothing is particular to a label where no other shows a change."""
    if question.is_new and metric == "specific_pearson":
        raise InputError(
            f"No label shows a change to {level_name(question.target)!r}, so conditions are hidden in all labels, of "
            "which 'specific_pearson' is not defined: choose another metric."
        )


def _check_arguments(
    metric: str, combine: str, max_tasks: int | None, min_cells: int, n_top_genes: int | None
) -> None:
    """Raise on arguments of :func:`select` that cannot be."""
    if metric not in SCORED:
        raise InputError(f"Methods cannot be chosen by {metric!r}; choose one of {list(SCORED)}.")
    if max_tasks is not None:
        check_whole("max_tasks", max_tasks)
        if max_tasks < _MIN_TASKS:
            raise InputError(
                f"max_tasks is {max_tasks}; methods are compared on {_MIN_TASKS} or more."
            )
    check_whole("min_cells", min_cells, 0)
    if n_top_genes is not None:
        check_whole("n_top_genes", n_top_genes, LEAST_GENES)
    if combine not in ("best", "stack"):
        raise InputError(f"combine is {combine!r}; choose 'best' or 'stack'.")


def _of_these(
    results: Results, methods: dict[str, Method], tasks: Sequence[Holdout], seeds: Sequence[int]
) -> Results:
    """Return results without those of other runs that share the folder."""
    holdouts = [plain(task) for task in tasks]
    drawn = {name: seeds if method.takes_seed else [0] for name, method in methods.items()}
    records = [
        record
        for record in results.records
        if record["seed"] in drawn.get(record["method"], ()) and record["holdout"] in holdouts
    ]
    return Results(results.run, records)


def _fallback(question: Question, methods: dict[str, Method]) -> tuple[str, Method]:
    """Return the strongest simple method that the known combinations define."""
    ends = [question.source, level_name(question.target)]
    n_pairs = int((question.cells[ends] > 0).all(axis=1).sum())
    if question.is_new:  # which only the last method can tell
        defined = SIMPLE[-1:]
    elif n_pairs == 0:
        defined = SIMPLE[:1]
    elif n_pairs == 1 and question.space.is_of_one_part:  # only the shift of that label is known
        defined = SIMPLE[:2]
    else:
        defined = SIMPLE
    name = next((name for name in reversed(defined) if name in methods), defined[-1])
    return name, methods[name] if name in methods else resolve([name])[name]


def _all_cells(
    question: Question,
    methods: Mapping[str, Method],
    weights: Mapping[str, float],
    n_top_genes: int | None,
) -> tuple[AnnData, Keys, AnnData]:
    """Return all cells that are known with the genes chosen on them, keys, and the cells to start from."""
    columns = [c for name, weight in weights.items() if weight > 0 for c in methods[name].columns]
    train, keys = training_data(
        question.known, [], keys=question.keys, n_top_genes=n_top_genes, columns=columns
    )
    start = as_text(train.obs[keys.labels_key]).isin(question.labels)
    start &= as_text(keys.conditions(train.obs)) == question.source
    return train, keys, train[start.to_numpy()].copy()


def _with_columns(predicted: AnnData, adata: AnnData) -> AnnData:
    """Return a prediction with the columns of obs and var that methods do not get."""
    own = predicted.obs
    if "source_cell" in own:  # of methods that move cells
        whole = without_codes(adata.obs.loc[own["source_cell"].astype(str)].set_axis(own.index))
        predicted.obs = whole.assign(**{name: own[name] for name in own})
    var = adata.var.loc[predicted.var_names]
    predicted.var = var.assign(**{name: predicted.var[name] for name in predicted.var})
    for table in (predicted.obs, predicted.var):
        table.index.name = None
    return predicted


def _evidence(tasks: Sequence[Holdout], best: Best | None) -> dict[str, Any]:
    """Return what the choice rests on, in types that h5ad and zarr can hold."""
    if best is None:
        return {"n_tasks": 0, "tasks": np.array([], dtype=object), "answer": "simple"}
    targets = {task.target for task in tasks}
    names = [task.label if len(targets) == 1 else str(task) for task in tasks]
    return {
        "n_tasks": int(best.table["n_tasks"].iloc[0]),
        "tasks": np.array(names, dtype=object),
        "scores": best.table,
        "answer": best.decision.answer,
    }


_ANSWERS = {
    "model": "it is better than the best simple method by more than the standard error",
    "simple": "no model is better",
    "close": "it is simpler, and the difference to the model is too close to call",
}


def _shown(score: float) -> str:
    """Return a score in words; predictions are rounded to float32, so that what is next to 0 is 0."""
    return f"{round(score, 7) + 0.0:.3g}"


def _warned(note: str, quick_look: str, effect_r2: float | None) -> str:
    """Return a note with what speaks against trust: a quick look, or a mean effect R2 below 0."""
    note += f" This was a {quick_look}." if quick_look else ""
    if effect_r2 is not None and float(_shown(effect_r2)) < 0:
        note += " Do not trust it: below 0 it is worse than predicting no change."
    return note


def _note(best: Best, metric: str, quick_look: str, units: str) -> str:
    """Return how the method was chosen, in words."""
    table, answer = best.table.set_index("method"), _ANSWERS[best.decision.answer]
    scores = ", ".join(f"{r.Index} ({r.output}) {_shown(r.mean)}" for r in table.itertuples())
    if best.decision.model is None:
        answer = "no model was run"
    note = (
        f"{best.method} ({best.output}) was chosen by leaving out {table['n_tasks'].iloc[0]} known "
        f"{units} in turn: {answer}. Mean {metric}: {scores}."
    )
    score = table["mean"][best.method] if metric == "effect_r2" else None
    return _warned(note, quick_look, score)


def _stack_note(
    weights: Mapping[str, float],
    results: Results,
    evidence: LeftOut,
    best: Best,
    metric: str,
    units: str,
) -> str:
    """Return how methods were combined, in words."""
    shares = ", ".join(f"{name} {weight:.2f}" for name, weight in weights.items())
    own = stacked_scores(results, evidence)
    mean = float(own["value"].mean())
    scores = ", ".join(f"{r.method} {_shown(r.mean)}" for r in best.table.itertuples())
    note = (
        f"The prediction is the mean of methods with the weights {shares}, which predict {len(own)} known "
        f"{units} best that were left out in turn. Its mean effect_r2 on each of them, with weights from the "
        f"others: {_shown(mean)}. Mean {metric} of the methods: {scores}."
    )
    return _warned(note, results.quick_look, mean)


def _fallback_note(question: Question, tasks: Sequence[Holdout], min_cells: int, name: str) -> str:
    """Return why no method was chosen by its scores, in words."""
    found = ", ".join(task.label for task in tasks) or "none"
    if question.is_new:
        return (
            f"Methods could not be compared: that takes {_MIN_TASKS} other {question.units} with {min_cells} cells of "
            f"a label, and there are {len(tasks)}. The prediction is by {name}, and was not tested."
        )
    return (
        f"Methods could not be compared: that takes {_MIN_TASKS} labels with {min_cells} cells under both "
        f"{question.source} and {question.target}, and there are {len(tasks)} ({found}). The prediction is "
        f"by {name}, the strongest simple method that can be used, and was not tested."
    )
