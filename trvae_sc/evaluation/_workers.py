"""Running fits one after the other, in processes of this machine, or on a Ray cluster.

The task of a hold-out is prepared once. Processes read it from a file, whose arrays they share; a Ray
cluster gets it once into its object store.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import joblib

from trvae_sc.errors import MissingExtraError
from trvae_sc.evaluation._tasks import Task
from trvae_sc.files import scratch


class Fit(Protocol):
    """What is run on a task."""

    @property
    def is_quick(self) -> bool:
        """Whether it is not worth a worker of its own."""

    def __call__(self, task: Task) -> dict[str, Any]:
        """Return the record of its scores."""


Prepared = Iterator[tuple[Task, Sequence[Fit]]]

_AHEAD = 2  # parts that wait for each worker


def _parts(fits: Sequence[Fit]) -> list[list[Fit]]:
    """Return what is worth a worker: each fit that trains; the others of a hold-out together."""
    quick = [fit for fit in fits if fit.is_quick]
    return [*([quick] if quick else []), *([fit] for fit in fits if not fit.is_quick)]


def run_local(prepared: Prepared, n_jobs: int) -> Iterator[dict[str, Any]]:
    """Yield records as fits finish, in so many processes of this machine."""
    if n_jobs == 1:
        for task, fits in prepared:
            for fit in fits:
                yield fit(task)
        return
    threads = max((os.cpu_count() or 1) // n_jobs, 1)

    def jobs(folder: Path) -> Iterator[Any]:
        for number, (task, fits) in enumerate(prepared):
            file = folder / f"{number}.joblib"
            joblib.dump(task, file)
            for part in _parts(fits):
                yield joblib.delayed(_run_part)(file, part, threads, os.getpid())

    pool = joblib.Parallel(
        n_jobs,
        backend="loky",
        return_as="generator_unordered",
        batch_size=1,
        pre_dispatch=_AHEAD * n_jobs,
    )
    with scratch() as folder:
        try:
            for records in pool(jobs(folder)):
                yield from records
        finally:  # also after an error or Ctrl-C: nothing is left running
            from joblib.externals.loky import get_reusable_executor

            get_reusable_executor().shutdown(wait=True, kill_workers=True)


def _run_part(file: Path, fits: Sequence[Fit], threads: int, parent: int) -> list[dict[str, Any]]:
    """Run fits of a task in a worker."""
    import torch

    _end_with(parent)
    torch.set_num_threads(threads)
    task = joblib.load(file, mmap_mode="r")
    return [fit(task) for fit in fits]


def _end_with(parent: int) -> None:
    """End this process where its parent has ended, however it did."""
    if any(thread.name == f"watch-{parent}" for thread in threading.enumerate()):
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, name=f"watch-{parent}", daemon=True).start()


def run_on_ray(prepared: Prepared, n_jobs: int) -> Iterator[dict[str, Any]]:
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
        for task, fits in prepared:
            shared = ray.put(task)
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


def _run_shared(task: Task, fits: Sequence[Fit]) -> list[dict[str, Any]]:
    """Run fits of a task on a cluster."""
    return [fit(task) for fit in fits]
