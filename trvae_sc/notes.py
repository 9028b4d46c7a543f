"""Notes on a prediction: they travel with it, and are logged where it is made."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import logging
from collections.abc import Iterator
from importlib.metadata import version

from anndata import AnnData

from trvae_sc.checks import RECORD

logger = logging.getLogger(__name__)
_version = functools.cache(version)  # reading one takes as long as encoding a batch
_unlogged = contextvars.ContextVar("unlogged", default=False)


def log_notes(predicted: AnnData, said: set[str] | None = None) -> AnnData:
    """Log the notes on a prediction and return it; those in `said` are not logged again."""
    said = set() if said is None else said
    for note in map(str, predicted.uns[RECORD].get("notes", ())):
        if note not in said and not _unlogged.get():
            said.add(note)
            logger.warning("Note: %s", note)
    return predicted


def versions() -> dict[str, str]:
    """Return the versions that a record of what was predicted, or scored, names."""
    return {name: _version(name) for name in ("trvae_sc", "scvi-tools", "torch")}


@contextlib.contextmanager
def unlogged() -> Iterator[None]:
    """Log no notes meanwhile: of predictions that are made to be scored."""
    token = _unlogged.set(True)
    try:
        yield
    finally:
        _unlogged.reset(token)
