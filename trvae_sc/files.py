"""Reading data in files, and writing files so that they are there completely or not at all."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # anndata takes a second to import
    from anndata import AnnData


def check_suffix(path: Path) -> None:
    """Raise where a path ends neither in ``.h5ad`` nor in ``.zarr``."""
    if path.suffix not in (".h5ad", ".zarr"):
        raise ValueError(f"{path} is neither .h5ad nor .zarr.")


def read(path: Path, *, backed: bool = False) -> AnnData:
    """Read an h5ad or zarr file; with `backed` its X stays in the file.

    Raises
    ------
    FileNotFoundError
        No such file.
    ValueError
        It is neither, or cannot be read.
    """
    if not path.exists():
        raise FileNotFoundError(f"No file {path}.")
    check_suffix(path)
    import anndata

    try:
        if path.suffix == ".h5ad":
            adata = anndata.read_h5ad(path, backed="r" if backed else None)
        else:
            adata = _read_zarr_backed(path) if backed else anndata.read_zarr(path)
        if backed and adata.X is not None and adata.n_obs:
            adata.X[:1]  # shows now what the file lacks
        return adata
    except PermissionError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"{path} cannot be read as {path.suffix[1:]} (damaged or incomplete?): {error}"
        ) from error


def _read_zarr_backed(path: Path) -> AnnData:
    """Read all of a zarr store but X."""
    import anndata
    import zarr

    group = zarr.open_group(path, mode="r")
    parts = {key: anndata.io.read_elem(group[key]) for key in group if key not in ("X", "raw")}
    adata = anndata.AnnData(**parts)
    if "X" in group:
        x = group["X"]
        adata.X = anndata.io.sparse_dataset(x) if isinstance(x, zarr.Group) else x
    return adata


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


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write` with a path beside `path`, and move the result into place if it succeeds."""
    path = path.resolve()
    with beside(path) as temporary:
        write(temporary)
        if path.is_dir():
            path.rename(temporary.with_name("replaced"))
        temporary.replace(path)


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
