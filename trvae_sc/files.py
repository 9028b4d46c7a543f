"""Reading data in files, and writing files and folders so that they are there completely or not at all.

What is written goes to a hidden folder beside its place, is flushed to the disk, and is moved into place
in one step. A hidden folder that a killed process left is removed by the next one that writes there.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from trvae_sc.errors import InputError

if TYPE_CHECKING:  # anndata takes a second to import
    from anndata import AnnData

_PREFIX = ".trvae_sc-"
_REPLACED = "replaced"  # in a hidden folder: what was in the place before


# -- reading ------------------------------------------------------------------------------------------


def check_suffix(path: Path) -> None:
    """Raise where a path ends neither in ``.h5ad`` nor in ``.zarr``."""
    if path.suffix not in (".h5ad", ".zarr"):
        raise InputError(f"{path} is neither .h5ad nor .zarr.")


def read(path: Path, *, backed: bool = False) -> AnnData:
    """Read an h5ad or zarr file; with `backed` its X stays in the file, unless it is by column."""
    if not path.exists():
        raise InputError(f"No file {path}.")
    check_suffix(path)
    import anndata

    from trvae_sc.stored import is_by_column

    try:
        if path.suffix == ".h5ad":
            adata = anndata.read_h5ad(path, backed="r" if backed else None)
            if adata.isbacked and "X" not in adata.file:  # layers are in memory anyway
                adata.file.close()
                return anndata.read_h5ad(path)
        else:
            adata = _read_zarr_backed(path) if backed else anndata.read_zarr(path)
        if backed and adata.X is not None and adata.n_obs:
            if is_by_column(adata.X):
                return adata.to_memory() if adata.isbacked else anndata.read_zarr(path)
            adata.X[:1]  # shows now what the file lacks
        return adata
    except PermissionError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    except MemoryError:
        raise
    except Exception as error:  # one of anndata's own, of what it does not know, has no public name
        raise InputError(
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


# -- what may be replaced -------------------------------------------------------------------------------


def is_zarr(path: Path) -> bool:
    """Return whether a folder is a zarr store."""
    return any((path / name).is_file() for name in ("zarr.json", ".zgroup"))


def as_path(given: Any, name: str) -> Path:
    """Return an argument as a path, ``~`` as the home folder; raise where it is none."""
    if not isinstance(given, str | os.PathLike) or not str(given):
        raise InputError(f"{name} is {given!r}; it is the path of a file or folder.")
    if any(len(os.fsencode(part)) > 255 for part in Path(given).parts):
        raise InputError(
            f"{name} is {str(given)[:60]!r} and so on, too long for the name of a file."
        )
    with contextlib.suppress(RuntimeError):  # no such user: the name of a file, as in the shell
        return Path(given).expanduser()
    return Path(given)


def check_target(
    path: Path,
    *,
    overwrite: bool,
    replaces: Callable[[Path], bool] | None = None,
    kind: str = "file",
    option: str = "overwrite=True",
    inputs: Iterable[Path] = (),
) -> None:
    """Raise where a result cannot be written to a path, before any work; writes nothing.

    With `overwrite` a result of the same kind may be replaced: a file, or a folder that `replaces` is true of; no
    other kind, and none of the `inputs` it is made from. `kind` and `option` are the words of messages.
    """
    for i, part in enumerate(path.parts):
        if part == ".." and not (through := Path(*path.parts[:i])).exists():
            raise InputError(f"{path} leads through {through}, which is not there.")
    for given in inputs:
        inside = path.is_dir() and given.resolve().is_relative_to(path.resolve())
        if inside or (path.exists() and given.exists() and path.samefile(given)):
            raise InputError(f"{path} is an input, and would be replaced. Choose another place.")
    if path.is_symlink() and not path.exists():
        raise InputError(f"{path} is a link to nothing. Remove it, or choose another place.")
    if path.exists():
        found = "file" if path.is_file() else "folder" if path.is_dir() else "device"
        if found != ("file" if replaces is None else "folder"):
            raise InputError(f"{path} is a {found}, and cannot be replaced by a {kind}.")
        is_empty = path.is_dir() and not any(path.iterdir())
        if not (overwrite or is_empty):
            raise InputError(f"{path} exists. Pass {option} to replace it.")
        if replaces is not None and Path.cwd().is_relative_to(path.resolve()):
            raise InputError(
                f"{path} is the current folder, which cannot be replaced. Name another."
            )
        if replaces is not None and not is_empty and not replaces(path):
            raise InputError(f"{path} is a folder, but no {kind}: it is not replaced.")
    there = next(folder for folder in path.resolve().parents if folder.exists())
    if not there.is_dir():
        raise InputError(f"{there} is a file, so {path} cannot be written.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{there} cannot be written to.")


def check_cells_target(
    path: Path, *, overwrite: bool, option: str = "overwrite=True", inputs: Iterable[Path] = ()
) -> None:
    """Raise where cells cannot be written to an h5ad or zarr file; see :func:`check_target`."""
    check_suffix(path)
    given: dict[str, Any] = {"overwrite": overwrite, "option": option, "inputs": inputs}
    if path.suffix == ".zarr":
        check_target(path, kind="zarr store", replaces=is_zarr, **given)
    else:
        check_target(path, **given)


# -- writing --------------------------------------------------------------------------------------------


def write_anndata(adata: AnnData, path: Path, *, overwrite: bool = False) -> None:
    """Write an h5ad or zarr file, completely or not at all."""
    import anndata

    def write(place: Path) -> None:
        with naming_unwritable("adata", "Change or drop what is named here."):
            if path.suffix == ".zarr":
                adata.write_zarr(place)
            else:
                adata.write_h5ad(place, compression="gzip")

    # files of newer versions of anndata have strings that older ones read but do not write unasked
    with anndata.settings.override(allow_write_nullable_strings=True):
        write_whole(path, write, overwrite=overwrite)


@contextlib.contextmanager
def naming_unwritable(what: str, advice: str) -> Iterator[None]:
    """Raise what anndata raises of values that no file can hold as an error of ours, with what it says of them."""
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:  # one of anndata's own has no public name
        told = " ".join(". ".join([str(error), *getattr(error, "__notes__", ())]).split())
        raise InputError(f"{what} cannot be written to a file. {advice} ({told})") from error


def write_text(path: Path, text: str, *, overwrite: bool = True) -> None:
    """Write a text file, completely or not at all, the same bytes on all systems."""
    text = text.replace(os.linesep, "\n")  # pandas ends lines as the system does
    given = {"encoding": "utf-8", "newline": "\n"}
    write_whole(path, lambda p: p.write_text(text, **given), overwrite=overwrite)


def write_whole(
    path: Path,
    write: Callable[[Path], Any],
    *,
    overwrite: bool,
    keep: bool = False,
    drop: Sequence[str] = (),
) -> None:
    """Call `write` with a path beside `path`, and move the file or folder it makes into place.

    With `keep` a folder keeps what else is in the one it replaces, but entries named in `drop`. Raises InputError
    where something is in the place and `overwrite` is False, also if it came meanwhile.
    """
    path = path.resolve()
    with _beside(path) as temporary:
        try:
            write(temporary)
        except Exception as error:
            told = str(error.__cause__ or error)
            # of HDF5 on a full disk, as some type or other
            if "file write failed" in told and not isinstance(error, OSError):
                raise OSError(told) from error
            raise
        if keep and path.is_dir():
            _add_rest(path, temporary, drop)
        for part in (temporary, *temporary.rglob("*")):
            _flush(part)
        _put(temporary, path, overwrite=overwrite)
        _flush(path.parent)


def _add_rest(old: Path, new: Path, drop: Sequence[str]) -> None:
    """Add to a folder what is in another one under names it does not have; by links where it can be."""
    for entry in old.iterdir():
        if entry.name in drop or (new / entry.name).exists():
            continue
        if entry.is_dir():
            shutil.copytree(entry, new / entry.name, symlinks=True, copy_function=_link_or_copy)
        else:
            _link_or_copy(entry, new / entry.name)


def _link_or_copy(source: Any, target: Any) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _put(new: Path, place: Path, *, overwrite: bool) -> None:
    """Move a file or folder into its place in one step; no file replaces a folder."""
    if overwrite and new.is_dir() and place.exists():
        _exchange(new, place)
        return
    try:
        if new.is_file() and not overwrite:
            try:
                os.link(new, place)  # fails where something is, which replacing would not
            except OSError:  # something is, or the file system has no links
                place.touch(exist_ok=False)
        elif new.is_dir() and place.is_dir():
            place.rmdir()  # empty, else it stays; Windows replaces no folder
        new.replace(place)  # a link to it is the same file, and stays
    except OSError as error:
        if overwrite or not place.exists():
            raise
        raise InputError(f"{place} exists; it was made meanwhile.") from error


def _exchange(new: Path, old: Path) -> None:
    """Let a folder and what it replaces change places: in one step where the system can, else the old one is kept aside."""
    if _rename_exchange(new, old):
        return
    aside = new.parent / _REPLACED
    aside.mkdir()
    old.rename(aside / old.name)
    try:
        new.rename(old)
    except OSError:
        (aside / old.name).rename(old)
        raise


def _rename_exchange(a: Path, b: Path) -> bool:
    """Exchange two paths with the system's own call; return whether it has one that works here."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and not rename(here, os.fsencode(a), here, os.fsencode(b), exchange)


def _flush(path: Path) -> None:
    """Write a file, or the entries of a folder, to the disk, where the system can."""
    if not path.is_dir() and not path.is_file():
        return
    try:  # Windows flushes what may be written to, and no folders
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except PermissionError:  # such a folder, or a file that may only be read: it was there before
        return
    try:
        os.fsync(handle)
    except OSError:  # folders cannot be everywhere
        if path.is_file():
            raise
    finally:
        os.close(handle)


# -- hidden folders -------------------------------------------------------------------------------------


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """Yield a path to write to, of the same name, in a folder beside `path` that is then removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_left_over(path.parent)
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{_host()}-{os.getpid()}-", dir=path.parent))
    try:
        yield folder / path.name
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Yield a folder in the system's place for temporary files, which is then removed."""
    with _beside(Path(tempfile.gettempdir()) / "scratch") as folder:
        folder.mkdir()
        yield folder


def _host() -> str:
    """Return the name of this machine, as far as it can be part of a file name."""
    return "".join(c for c in socket.gethostname() if c.isalnum())


def remove_left_over(parent: Path) -> None:
    """Remove hidden folders of processes of this machine that no longer run.

    What they had moved aside and not replaced yet goes back to its place.
    """
    for folder in parent.glob(f"{_PREFIX}{_host()}-*"):
        pid = folder.name.removeprefix(f"{_PREFIX}{_host()}-").split("-")[0]
        if not pid.isdigit() or psutil.pid_exists(int(pid)):
            continue
        for old in (folder / _REPLACED).glob("*"):
            if not (parent / old.name).exists():
                old.rename(parent / old.name)
        shutil.rmtree(folder, ignore_errors=True)
