"""Running methods on hold-outs: resumable, in processes or on a Ray cluster."""

from __future__ import annotations

import hashlib
import inspect
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from importlib.metadata import version
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from tqdm.auto import tqdm

from trvae_sc.evaluation._holdouts import Holdout
from trvae_sc.evaluation._results import CEILING, FORMAT, Results, Store, fit_name
from trvae_sc.evaluation._scores import N_TOP, ceiling, export_cells, gene_table, score
from trvae_sc.evaluation._tasks import Task, check_counts, check_leaks, prepare_task
from trvae_sc.expression import Keys, values

Method = Any  # see trvae_sc.baselines


class _Fit(NamedTuple):
    """One method on one hold-out with one seed."""

    holdout: Holdout
    name: str
    method: Method
    seed: int


class _Settings(NamedTuple):
    """What is the same for all fits of a run."""

    keys: Keys
    n_top_genes: int | None
    export: Path | None  #: folder for the predictions


def benchmark(
    adata: AnnData,
    methods: Mapping[str, Method] | Sequence[str],
    holdouts: Sequence[Holdout],
    *,
    keys: Keys,
    seeds: int | Sequence[int] = 3,
    n_top_genes: int | None = 2000,
    max_epochs: int | None = None,
    folder: str | Path | None = None,
    n_jobs: int = 1,
    backend: Literal["local", "ray"] = "local",
    export: bool = False,
    progress: bool = True,
) -> Results:
    """Hide combinations one at a time, let every method predict them, and score the predictions.

    Variable genes, normalisation and principal components are fitted for each hold-out without the
    hidden cells. Methods get training and source cells only.

    Parameters
    ----------
    adata
        All cells with all genes.
    methods
        Methods by name (see :mod:`trvae_sc.baselines`), or names in ``METHODS`` of it or of
        :mod:`trvae_sc.family`.
    holdouts
        Combinations to hide, as from :func:`trvae_sc.evaluation.holdouts`.
    keys
        Where the data are.
    seeds
        Seeds, or how many; methods without a ``seed`` argument run once.
    n_top_genes
        Number of variable genes; all if None.
    max_epochs
        Epochs of every method that trains a network; the method's own number if None.
    folder
        Folder that keeps one file per finished fit. What is there already is not run again, so a
        benchmark that was stopped goes on; several processes may share it.
    n_jobs
        Number of processes; a Ray cluster takes as many fits at a time as it has room for.
    backend
        ``"local"``: processes of this machine. ``"ray"``: tasks of the Ray cluster that is connected
        (``ray.init(address=...)`` before), repeated where a worker dies.
    export
        Also write every prediction that is made, and the real cells beside it, to
        ``folder/predictions`` for other programs (see
        :func:`trvae_sc.evaluation.export_cells`).
    progress
        Show a progress bar.

    Returns
    -------
    The results, with those already in `folder`.

    Raises
    ------
    ValueError
        Unknown methods or backend; values that are not counts; data whose genes or scale were chosen
        with all cells; a folder with results of another run; hold-outs that results cannot tell apart;
        less than one epoch.
    """
    methods = resolve(methods)
    if max_epochs is not None:
        if max_epochs < 1:
            raise ValueError(f"max_epochs is {max_epochs}; at least 1 is needed.")
        methods = {name: _with_epochs(method, max_epochs) for name, method in methods.items()}
    check_leaks(adata, keys)
    check_counts(adata, keys)
    seeds = list(range(seeds)) if isinstance(seeds, int) else [int(seed) for seed in seeds]
    if export and folder is None:
        raise ValueError("export=True needs a folder to write to.")
    run = {**_describe(adata, keys, n_top_genes), "max_epochs": max_epochs}
    with tempfile.TemporaryDirectory() as temporary:
        store = Store(temporary if folder is None else folder)
        store.open(run)
        _check_tasks([*map(_plain, holdouts), *(r["holdout"] for r in store.records())])
        fits = [fit for h in holdouts for fit in _fits(h, methods, seeds)]
        left = [f for f in fits if not store.path(_plain(f.holdout), f.name, f.seed).exists()]
        bar = tqdm(total=len(fits), initial=len(fits) - len(left), disable=not progress, unit="fit")
        with bar:
            how = _Settings(
                keys, n_top_genes, store.folder.resolve() / "predictions" if export else None
            )
            for record in _run(adata, left, how, n_jobs, backend):
                store.add(record)
                bar.set_postfix_str(f"{record['method']} {record['holdout']['label']}")
                bar.update()
        return Results.load(store.folder)


def resolve(methods: Mapping[str, Method] | Sequence[str]) -> dict[str, Method]:
    """Return methods by name."""
    if isinstance(methods, Mapping):
        if CEILING in methods:
            raise ValueError(
                f"A method cannot be called {CEILING!r}, which real cells are scored as."
            )
        return dict(methods)
    from trvae_sc import baselines, family  # bring the models; methods that are handed over do not

    known = {**baselines.METHODS, **family.METHODS}
    names = [methods] if isinstance(methods, str) else list(methods)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"Unknown methods {unknown}; there are {list(known)}.")
    return {name: known[name] for name in names}


def _with_epochs(method: Method, max_epochs: int) -> Method:
    """Return a method that trains for that many epochs; the same one if it trains nothing."""
    if "train_kwargs" not in inspect.signature(method).parameters:
        return method
    given = getattr(method, "keywords", {}).get("train_kwargs") or {}
    return partial(method, train_kwargs={**given, "max_epochs": max_epochs})


def _fits(holdout: Holdout, methods: dict[str, Method], seeds: Sequence[int]) -> list[_Fit]:
    """Return the fits of a hold-out; the ceiling and what takes no seed once."""
    fits = [_Fit(holdout, CEILING, None, 0)]
    for name, method in methods.items():
        of_method = seeds if takes_seed(method) else [0]
        fits += [_Fit(holdout, name, method, seed) for seed in of_method]
    return fits


def takes_seed(method: Method | None) -> bool:
    """Return whether a method (None: the ceiling) draws random numbers."""
    return method is not None and "seed" in inspect.signature(method).parameters


def _describe(adata: AnnData, keys: Keys, n_top_genes: int | None) -> dict[str, Any]:
    """Return what identifies a run."""
    digest = hashlib.sha256()
    for names in (adata.obs_names, adata.var_names):
        digest.update("\n".join(names).encode())
    x = values(adata, keys)[:1000]
    digest.update(np.ascontiguousarray(x.data if sparse.issparse(x) else x).tobytes())
    label = pd.Series("all", index=adata.obs.index)
    if keys.labels_key is not None:
        label = adata.obs[keys.labels_key].astype(str)
    design = pd.crosstab(label, adata.obs[keys.condition_key].astype(str))
    return {
        "format": FORMAT,
        "data": digest.hexdigest(),
        "n_obs": adata.n_obs,
        "n_vars": adata.n_vars,
        "keys": keys._asdict(),
        "n_top_genes": n_top_genes,
        "design": {
            "labels": list(design.index),
            "conditions": list(design.columns),
            "cells": design.to_numpy().tolist(),
        },
        "notes": _notes(adata, n_top_genes),
        "versions": {name: version(name) for name in ("trvae_sc", "scvi-tools", "torch")},
    }


def _notes(adata: AnnData, n_top_genes: int | None) -> list[str]:
    """Return what may have seen the hidden cells, but cannot be told from the data."""
    if n_top_genes is not None and n_top_genes < adata.n_vars:
        return []
    return [
        f"All {adata.n_vars} genes of the data were used. If they were chosen on all cells, the choice "
        "saw the hidden ones, and scores are too good."
    ]


def _check_tasks(holdouts: Sequence[dict[str, Any]]) -> None:
    """Raise where two hold-outs would have the same rows in the table."""
    known: dict[tuple[str, ...], dict[str, Any]] = {}
    for holdout in holdouts:
        task = tuple(holdout[k] for k in ("label", "source", "target"))
        if known.setdefault(task, holdout) != holdout:
            raise ValueError(
                f"{task[0]}:{task[2]} is hidden in two ways, which differ in what else is hidden or in "
                "the column of its label. Results could not tell them apart: use another folder."
            )


def _plain(holdout: Holdout) -> dict[str, Any]:
    """Return a hold-out as types that JSON can hold."""
    names = ("label", "source", "target", "key")
    plain = {k: None if (v := getattr(holdout, k)) is None else str(v) for k in names}
    return {**plain, "also": [str(other) for other in holdout.also]}


# -- one fit ------------------------------------------------------------------------------------------


def _run_fit(task: Task, fit: _Fit, export: Path | None) -> dict[str, Any]:
    """Let a method predict, and return the record of its scores."""
    start = time.perf_counter()
    found, notes, history = {}, [], None
    if fit.method is None:
        tables = {CEILING: ceiling(task, seed=fit.seed)}
    else:
        found = predictions(
            fit.method,
            task.train.copy(),
            task.source.copy(),
            target=fit.holdout.target,
            keys=task.keys,
            seed=fit.seed,
        )
        tables = {output: score(task, predicted) for output, predicted in found.items()}
        if export is not None:
            for output, predicted in found.items():
                name = fit_name(_plain(fit.holdout), fit.name, fit.seed)
                export_cells(task, predicted, export / f"{name}-{output}")
        records = [predicted.uns["trvae_sc"] for predicted in found.values()]
        notes = sorted({str(note) for record in records for note in record.get("notes", ())})
        history = next((r["history"] for r in records if "history" in r), None)
    scores = [
        [output, row.metric, row.genes, row.value if np.isfinite(row.value) else None]
        for output, table in tables.items()
        for row in table.itertuples()
    ]
    return {
        "method": fit.name,
        "holdout": _plain(fit.holdout),
        "seed": fit.seed,
        "scores": scores,
        "genes": {output: _genes(task, predicted) for output, predicted in found.items()},
        "n_training_cells": task.train.n_obs,
        "n_genes": task.train.n_vars,
        "n_source_cells": task.source.n_obs,
        "n_hidden_cells": int(task.real.shape[0]),
        "notes": notes,
        "history": history,
        "seconds": round(time.perf_counter() - start, 2),
    }


def predictions(
    method: Method, train: AnnData, source: AnnData, *, target: Any, keys: Keys, seed: int
) -> dict[str, AnnData]:
    """Return what a method predicts, by output; the seed is for methods that take one."""
    kwargs = {"seed": seed} if takes_seed(method) else {}
    found = method(train, source, target=target, keys=keys, **kwargs)
    return found if isinstance(found, dict) else {"delta": found}


def _genes(task: Task, predicted: AnnData) -> dict[str, list[Any]]:
    """Return real and predicted change of the genes that change most."""
    table = gene_table(task, predicted).iloc[:N_TOP]
    changes = {k: table[k].round(4).tolist() for k in ("real_change", "predicted_change")}
    return {"gene": table.index.tolist(), **changes}


def _run_group(adata: AnnData, fits: Sequence[_Fit], how: _Settings) -> Iterator[dict[str, Any]]:
    """Yield the records of fits that share a hold-out."""
    task = prepare_task(adata, fits[0].holdout, keys=how.keys, n_top_genes=how.n_top_genes)
    for fit in fits:
        yield _run_fit(task, fit, how.export)


def _run_part(*args: Any) -> list[dict[str, Any]]:
    return list(_run_group(*args))


# -- many fits ----------------------------------------------------------------------------------------


def _run(
    adata: AnnData,
    fits: Sequence[_Fit],
    how: _Settings,
    n_jobs: int,
    backend: str,
) -> Iterator[dict[str, Any]]:
    """Yield records as fits finish."""
    by_holdout = [list(group) for _, group in groupby(fits, key=lambda fit: fit.holdout)]
    if backend == "ray":
        yield from _run_on_ray(adata, _parts(by_holdout), how)
    elif backend != "local":
        raise ValueError(f"Unknown backend '{backend}'; choose 'local' or 'ray'.")
    elif n_jobs == 1:
        for group in by_holdout:
            yield from _run_group(adata, group, how)
    else:
        context = get_context("spawn")  # forked workers would inherit torch's threads
        threads = max((os.cpu_count() or 1) // n_jobs, 1)
        with ProcessPoolExecutor(
            n_jobs, mp_context=context, initializer=_set_threads, initargs=(threads,)
        ) as pool:
            jobs = [pool.submit(_run_part, adata, part, how) for part in _parts(by_holdout)]
            try:
                for job in as_completed(jobs):
                    yield from job.result()
            finally:  # an error or Ctrl-C: do not start what is waiting
                pool.shutdown(wait=False, cancel_futures=True)


def _set_threads(n: int) -> None:
    """Share the cores of the machine between the processes."""
    import torch

    torch.set_num_threads(n)


def _parts(by_holdout: list[list[_Fit]]) -> list[list[_Fit]]:
    """Return what is worth a worker: each fit that takes a seed; the others of a hold-out together."""
    parts = []
    for fits in by_holdout:
        quick = [f for f in fits if not takes_seed(f.method)]
        parts += [quick] if quick else []
        parts += [[f] for f in fits if f not in quick]
    return parts


def _run_on_ray(
    adata: AnnData, parts: list[list[_Fit]], how: _Settings
) -> Iterator[dict[str, Any]]:
    """Yield records of tasks on the connected Ray cluster."""
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            "backend='ray' needs Ray: pip install 'trvae_sc[distributed]'."
        ) from error
    shared = ray.put(adata)
    run = ray.remote(_run_part).options(max_retries=3)
    waiting = [run.remote(shared, part, how) for part in parts]
    try:
        while waiting:
            done, waiting = ray.wait(waiting)
            for records in ray.get(done):
                yield from records
    finally:  # an error or Ctrl-C: do not start what is waiting
        for part in waiting:
            ray.cancel(part)
