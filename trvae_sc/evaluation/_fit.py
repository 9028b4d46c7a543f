"""One method on one hold-out, and where fits run: one after the other, in processes, or on a Ray cluster.

The tasks of hold-outs that hide the same are prepared once. Processes read them from a file, whose arrays they
share; a Ray cluster gets them once into its object store. What they can share of a training is trained once.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import numpy as np
import psutil
from anndata import AnnData

from trvae_sc.errors import MissingExtraError
from trvae_sc.evaluation._ceiling import CEILING, ceiling
from trvae_sc.evaluation._holdouts import Holdout
from trvae_sc.evaluation._methods import Method, judged
from trvae_sc.evaluation._scores import (
    BOUNDS,
    N_TOP,
    change_of,
    change_to,
    export_cells,
    gene_table,
    has_levels,
    level_change,
    score,
)
from trvae_sc.evaluation._store import fit_name
from trvae_sc.evaluation._tasks import Task
from trvae_sc.files import scratch
from trvae_sc.levels import level_name

_AHEAD = 2  # parts that wait for each worker


class Fit(NamedTuple):
    """One method on one hold-out with one seed; without a method the ceiling."""

    holdout: Holdout
    name: str
    method: Method | None
    seed: int
    export: Path | None  #: folder for the predictions

    def fitted(self, task: Task) -> Any:
        """Return the method, trained as far as it can be once for all hold-outs of the same training."""
        if self.method is None:
            return None
        return self.method.fitted(task.train, keys=task.keys, seed=self.seed)

    def __call__(self, task: Task, fitted: Any, seconds: float) -> dict[str, Any]:
        """Let the fitted method predict, and return the record of its scores; it took seconds to fit."""
        start, holdout = time.perf_counter(), plain(self.holdout)
        found: dict[str, AnnData] = {}
        if self.method is None:
            tables = ceiling(task, seed=self.seed)
        else:
            found = fitted(task.source, self.holdout.target)
            tables = {output: score(task, predicted) for output, predicted in found.items()}
        if self.export is not None:
            for output, predicted in found.items():
                name = fit_name(holdout, self.name, self.seed)
                export_cells(task, predicted, self.export / f"{name}-{output}")
        return {
            "method": self.name,
            "identity": CEILING if self.method is None else self.method.identity,
            "holdout": holdout,
            "seed": self.seed,
            "scores": [
                [output, row.metric, row.genes, row.value if np.isfinite(row.value) else None]
                for output, table in tables.items()
                for row in table.itertuples()
            ],
            "genes": {output: _genes(task, predicted) for output, predicted in found.items()},
            "n_training_cells": task.train.n_obs,
            "n_genes": task.train.n_vars,
            "n_source_cells": task.source.n_obs,
            "n_hidden_cells": int(task.real.shape[0]),
            **({} if self.method is None else {"changes": changes(task, found)}),
            **_told(found),
            "seconds": round(seconds + time.perf_counter() - start, 2),
        }

    @property
    def training(self) -> tuple[str, int]:
        """What fits of the same training cells have in common if they share what is trained."""
        return self.name, self.seed

    @property
    def is_quick(self) -> bool:
        """Whether it is not worth a worker of its own."""
        return self.method is None or not self.method.takes_seed


def plain(holdout: Holdout) -> dict[str, Any]:
    """Return a hold-out as types that JSON can hold."""
    return {
        "label": holdout.name,
        "source": level_name(holdout.source),
        "target": level_name(holdout.target),
        "key": holdout.key,
        "also": [str(other) for other in holdout.also],
    }


def _told(found: dict[str, AnnData]) -> dict[str, Any]:
    """Return what predictions say of themselves: notes, history, epochs trained and by default, preset."""
    records = [predicted.uns["trvae_sc"] for predicted in found.values()]
    training = next((r["training"] for r in records if "training" in r), None)
    return {
        "notes": sorted({str(note) for record in records for note in record.get("notes", ())}),
        "history": next((r["history"] for r in records if "history" in r), None),
        "epochs": None if training is None else [training["epochs"], training["default"]],
        "preset": next((str(r["preset"]) for r in records if "preset" in r), None),
    }


def _genes(task: Task, predicted: AnnData) -> dict[str, list[Any]]:
    """Return real and predicted change of the genes that change most."""
    table = gene_table(task, predicted).iloc[:N_TOP]
    kept = {k: _significant(table[k]) for k in ("real_change", "predicted_change")}
    return {"gene": table.index.tolist(), **kept}


def changes(task: Task, found: Mapping[str, AnnData]) -> dict[str, list[Any]]:
    """Return real and predicted change of every gene of a task, as intervals are of, and the intervals.

    These only of predictions that have intervals of all genes, of changes of this kind.
    """
    predicted = judged(found)
    kept = {"real_change": change_to(task.real, task, of_shares=task.keys.is_count)}
    kept["predicted_change"] = level_change(task, predicted)
    bounds = predicted.var.reindex(columns=BOUNDS)
    if has_levels(predicted, task.keys) and bounds.notna().all(axis=None):
        kept |= {name: change_of(task, predicted, name) for name in BOUNDS}
    rounded = {name: _significant(values) for name, values in kept.items()}
    return {"gene": task.train.var_names.tolist(), **rounded}


def _significant(values: Iterable[float]) -> list[float]:
    """Return numbers with the five digits that results keep, whatever their unit."""
    return [float(f"{value:.5g}") for value in values]


# -- where fits run -----------------------------------------------------------------------------------

Tasks = Mapping[Holdout, Task]
Prepared = Iterator[tuple[Tasks, Sequence[Fit]]]


def _parts(fits: Sequence[Fit]) -> list[list[Fit]]:
    """Return what is worth a worker: the fits of each training; those that train nothing together."""
    parts: dict[Any, list[Fit]] = {}
    for fit in fits:
        parts.setdefault(None if fit.is_quick else fit.training, []).append(fit)
    return list(parts.values())


def _records(tasks: Tasks, part: Sequence[Fit]) -> Iterator[dict[str, Any]]:
    """Yield the records of fits, those of the same training after each other."""
    for _, group in groupby(part, key=lambda fit: fit.training):
        fits = list(group)
        start = time.perf_counter()
        fitted = fits[0].fitted(tasks[fits[0].holdout])
        seconds = (time.perf_counter() - start) / len(fits)
        for fit in fits:
            yield fit(tasks[fit.holdout], fitted, seconds)


def run_local(prepared: Prepared, n_jobs: int) -> Iterator[dict[str, Any]]:
    """Yield records as fits finish, in so many processes of this machine."""
    if n_jobs == 1:
        for tasks, fits in prepared:
            for part in _parts(fits):
                yield from _records(tasks, part)
        return
    threads = max((os.cpu_count() or 1) // n_jobs, 1)

    def jobs(folder: Path) -> Iterator[Any]:
        for number, (tasks, fits) in enumerate(prepared):
            file = folder / f"{number}.joblib"
            joblib.dump(tasks, file)
            for part in _parts(fits):
                yield joblib.delayed(_run_part)(file, part, threads)

    pool = joblib.Parallel(
        n_jobs,
        backend="loky",
        return_as="generator_unordered",
        batch_size=1,
        pre_dispatch=_AHEAD * n_jobs,
        initializer=_end_with,  # not with the first fit: until that is sent, this may be killed
        initargs=(os.getpid(),),
    )
    with scratch() as folder:
        try:
            for records in pool(jobs(folder)):
                yield from records
        finally:  # also after an error or Ctrl-C: nothing is left running
            from joblib.externals.loky import get_reusable_executor

            get_reusable_executor().shutdown(wait=True, kill_workers=True)


def _run_part(file: Path, fits: Sequence[Fit], threads: int) -> list[dict[str, Any]]:
    """Run fits of the same training cells in a worker."""
    import torch

    torch.set_num_threads(threads)
    return list(_records(joblib.load(file, mmap_mode="r"), fits))


def _end_with(parent: int) -> None:
    """End this process where its parent has ended, however it did."""
    if any(thread.name == f"watch-{parent}" for thread in threading.enumerate()):
        return

    def watch() -> None:
        # Windows keeps the number of a parent that has ended
        while os.getppid() == parent and psutil.pid_exists(parent):
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, name=f"watch-{parent}", daemon=True).start()


def run_on_ray(prepared: Prepared) -> Iterator[dict[str, Any]]:
    """Yield records of tasks on the connected Ray cluster."""
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError(
            "backend='ray' needs Ray: pip install 'trvae_sc[distributed]'."
        ) from error
    run = ray.remote(_run_shared).options(max_retries=3)
    waiting: list[Any] = []
    try:
        for tasks, fits in prepared:
            shared = ray.put(tasks)
            waiting += [run.remote(shared, part) for part in _parts(fits)]
            room = _AHEAD * int(ray.cluster_resources().get("CPU", 1))
            while len(waiting) > room:
                done, waiting = ray.wait(waiting)
                for records in ray.get(done):
                    yield from records
        while waiting:
            done, waiting = ray.wait(waiting)
            for records in ray.get(done):
                yield from records
    finally:  # an error or Ctrl-C: do not start what is waiting
        for part in waiting:
            ray.cancel(part)


def _run_shared(tasks: Tasks, fits: Sequence[Fit]) -> list[dict[str, Any]]:
    """Run fits of the same training cells on a cluster."""
    return list(_records(tasks, fits))
