"""Writing files so that they are there completely or not at all."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Yield a path to write to, of the same name, in a folder beside `path` that is then removed.

    What was written is in place once it is moved to `path`; the folder is of this call alone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".", dir=path.parent))
    try:
        yield folder / path.name
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, completely or not at all."""
    with beside(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)


def move_files(source: Path, target: Path) -> None:
    """Move the files of a folder into another, made if missing; whatever else is there stays."""
    target.mkdir(exist_ok=True)
    for written in source.iterdir():
        written.replace(target / written.name)
