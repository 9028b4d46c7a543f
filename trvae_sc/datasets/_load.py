"""Data of one's own, from the folder that ``TRVAE_SC_DATA`` names."""

from __future__ import annotations

import os
from pathlib import Path

from anndata import AnnData

from trvae_sc.errors import InputError
from trvae_sc.files import as_path, read

VARIABLE = "TRVAE_SC_DATA"
_SUFFIX = ".h5ad"


def load(name: str | os.PathLike[str]) -> AnnData:
    """Return data from an h5ad file, by name or by path.

    Parameters
    ----------
    name
        Name of a file, with or without ``.h5ad``, in the folder that the environment variable
        ``TRVAE_SC_DATA`` names; or a path to a file. The folder comes first.

    Returns
    -------
    The data as they are in the file.

    Raises
    ------
    InputError
        No such file (the message lists the files that are there), or one that cannot be read.

    Examples
    --------
    >>> import os
    >>> os.environ["TRVAE_SC_DATA"] = "/data"  # doctest: +SKIP
    >>> adata = load("kang")  # reads /data/kang.h5ad  # doctest: +SKIP
    """
    path = as_path(name, "name")
    with_suffix = path if path.suffix == _SUFFIX else path.with_name(path.name + _SUFFIX)
    folder = data_folder()
    in_folder = [] if folder is None else [folder / with_suffix]
    for candidate in (*in_folder, path, with_suffix):
        if candidate.is_file():
            return read(candidate)
    if folder is None:
        raise InputError(
            f"No file '{with_suffix}'. Give the path of an h5ad file, or set the environment "
            f"variable {VARIABLE} to the folder that holds '{with_suffix.name}'."
        )
    if not folder.exists():
        raise InputError(f"{VARIABLE} is '{folder}', which does not exist.")
    found = sorted(file.name for file in folder.glob(f"*{_SUFFIX}"))
    raise InputError(f"No '{with_suffix}' in {folder} ({VARIABLE}); there are {found}.")


def data_folder() -> Path | None:
    """Return the folder that ``TRVAE_SC_DATA`` names; None if it is not set."""
    named = os.environ.get(VARIABLE)
    if not named:
        return None
    folder = as_path(named, VARIABLE)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{VARIABLE} is '{folder}', which is no folder. Name a folder.")
    return folder
