"""How many threads torch and numpy use.

Layers of networks here are narrow, and on a busy machine threads that wait for each other take most of
the time: with two threads on two busy cores an epoch took forty times as long as with one. Other
packages set torch to all cores (numba does, which scanpy's UMAP uses); those of numpy's matrix products
wait for the next one by going round in circles, and doubled the time of a prediction.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

logger = logging.getLogger(__name__)

_NARROW = 512  # widest layer that one thread is enough for


@contextlib.contextmanager
def suitable_threads(widest: int) -> Iterator[None]:
    """Let torch use as many threads as suit a network, numpy one, and both what was set before again afterwards.

    One where its widest hidden layer has up to 512 units, else the cores that are idle; never more than were set.
    """
    import psutil
    import torch

    n_threads, before = 1, torch.get_num_threads()
    if widest > _NARROW:
        load = psutil.getloadavg()[0]  # of the last minute
        n_threads = max(int((psutil.cpu_count(logical=False) or 1) - load), 1)
    if n_threads < before:
        _say(n_threads, before)
        torch.set_num_threads(n_threads)
    try:
        with _libraries().limit(limits=1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)


@functools.cache  # to find them takes milliseconds; those of numpy and scipy are loaded before torch
def _libraries() -> ThreadpoolController:
    """Return the libraries that numpy and scipy multiply matrices with."""
    import scipy.linalg  # noqa: F401
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


@functools.cache  # once
def _say(n_threads: int, before: int) -> None:
    logger.info(
        "torch computes with %d thread(s) here, of the %d that were set: networks of this size are "
        "slower with more.",
        n_threads,
        before,
    )
