"""Running fits one after the other, in processes of this machine, or on a Ray cluster.

The tasks of hold-outs that hide the same are prepared once. Processes read them from a file, whose arrays they
share; a Ray cluster gets them once into its object store. What they can share of a training is trained once.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import joblib

from trvae_sc.errors import MissingExtraError
from trvae_sc.evaluation._fit import Fit
from trvae_sc.evaluation._holdouts import Holdout
from trvae_sc.evaluation._tasks import Task
from trvae_sc.files import scratch

Tasks = Mapping[Holdout, Task]
Prepared = Iterator[tuple[Tasks, Sequence[Fit]]]

_AHEAD = 2  # parts that wait for each worker


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
        while os.getppid() == parent:
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
