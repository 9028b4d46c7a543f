"""Matrices that are in a file rather than in memory."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def is_file(x: Any) -> bool:
    """Return whether a matrix is in a file."""
    import h5py
    from anndata.abc import CSCDataset, CSRDataset

    if isinstance(x, h5py.Dataset | CSRDataset | CSCDataset):
        return True
    zarr = sys.modules.get("zarr")  # slow to import; where it was not, nothing is of it
    return zarr is not None and isinstance(x, zarr.Array)


def is_by_column(x: Any) -> bool:
    """Return whether a matrix is in a file by column, from which no rows can be read."""
    from anndata.abc import CSCDataset

    return isinstance(x, CSCDataset)


def path_of(x: Any) -> Path | None:
    """Return the file or folder a matrix is in; None if it is neither."""
    import h5py

    group = getattr(x, "group", x)
    if isinstance(group, h5py.Group | h5py.Dataset):
        return Path(group.file.filename)
    store = getattr(group, "store", None)
    root = getattr(store, "root", None) or getattr(store, "path", None)
    if not isinstance(root, str | Path):
        return None
    return Path(root) if Path(root).is_file() else Path(root) / group.path


def check_there(x: Any) -> None:
    """Raise on a matrix whose file is gone: chunks that a zarr store lacks are read as zeros."""
    path = path_of(x) if is_file(x) else None
    if path is not None and not path.exists():
        raise FileNotFoundError(
            f"{path}, which values of adata are read from, is not there any more."
        )


def file_state(x: Any) -> tuple[Any, ...]:
    """Return what changes when the file of a matrix is written: times, and the size of a file."""
    path = path_of(x)
    if path is None or not path.exists():
        return ()
    if path.is_file():
        state = path.stat()
        return state.st_mtime_ns, state.st_size
    inside = [path, *path.glob("*"), *path.glob("*/*")]  # chunk files are not listed one by one
    return tuple(sorted((str(p), p.stat().st_mtime_ns) for p in inside if p.is_dir()))
