"""Errors that a user can mend."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """Input that cannot be used: the message says what was found, what is allowed and what to do.

    Every error that the caller can mend is one of these, and is raised before work starts. The command
    line prints it and returns 2.
    """


class UndefinedScoreError(InputError):
    """Cells that a score says nothing about, such as those without any change to explain."""


class NotTrainedError(InputError, RuntimeError):
    """A model that was not trained yet; also a RuntimeError, which scvi-tools raises."""


class MissingExtraError(InputError, ImportError):
    """An optional package that is not installed; also an ImportError."""


@contextmanager
def naming(argument: str) -> Iterator[None]:
    """Say of what is wrong with ``adata`` that it is with another argument of the caller."""
    try:
        yield
    except InputError as error:
        raise type(error)(re.sub(r"\badata\b", argument, str(error))) from error
