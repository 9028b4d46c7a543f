"""Downloads that resume, are checked, and are there completely or not at all."""

from __future__ import annotations

import gzip
import os
import zlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trvae_sc.datasets._load import data_folder
from trvae_sc.errors import InputError
from trvae_sc.files import write_text

if TYPE_CHECKING:
    from requests import Response

_CHUNK = 1 << 16  # bytes
_TIMEOUT = 30.0  # seconds without a byte


def fetch(url: str, *, known_hash: str | None = None, progress: bool = True) -> Path:
    """Return the path of a gzip file, downloaded unless it is in the cache.

    The cache is the folder that ``TRVAE_SC_DATA`` names, or the user's cache folder. The sha256 of a
    file without a known one is written beside it (``.sha256``) once the file was found intact, and
    later calls compare. What an interrupted download brought (``.part``) is continued.
    """
    import pooch
    import requests
    from filelock import FileLock

    folder = data_folder() or Path(pooch.os_cache("trvae_sc"))
    path = folder / url.rsplit("/", 1)[-1]
    if path.is_file():
        _verify(path, known_hash)
        return path
    folder.mkdir(parents=True, exist_ok=True)
    by_hand = f"To do without a connection, put the file at {path}"
    with FileLock(folder / ".download.lock"):  # processes would write the same partial file
        source = pooch.create(
            folder,
            base_url="",
            registry={path.name: known_hash},
            urls={path.name: url},
            retry_if_failed=1,
        )
        part = path.with_name(path.name + ".part")
        downloader = partial(_resume, part=part, progress=progress)
        try:
            source.fetch(path.name, downloader=downloader)
        except requests.RequestException as error:
            raise ConnectionError(f"Cannot download {url}: {error}. {by_hand}.") from error
        except ValueError as error:
            raise InputError(f"The download of {url} is damaged: {error} {by_hand}.") from error
        if known_hash is None:
            _record(path, pooch.file_hash(str(path)))
    return path


def _resume(url: str, output_file: str, pooch: Any, *, part: Path, progress: bool) -> None:
    """Download to a partial file, from where it ends; move it away once it is complete and intact."""
    import requests

    done = part.stat().st_size if part.is_file() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            part.unlink()  # it is as long as the file or longer, yet was not accepted
        response.raise_for_status()
        if response.status_code != requests.codes.partial_content:
            done = 0  # the server sends everything
        _receive(response, part, done, progress=progress)
    damage = _damage(part)
    if damage is not None:
        part.unlink()
        raise InputError(f"{damage}.")
    part.replace(output_file)


def _receive(response: Response, part: Path, done: int, *, progress: bool) -> None:
    """Append the body of a response to the first `done` bytes of the partial file."""
    import requests
    import urllib3
    from tqdm.auto import tqdm

    length = response.headers.get("Content-Length")
    total = None if length is None else done + int(length)
    cut = f"the connection was cut after {{}} of {total or 'unknown'} bytes; call again to resume"
    size = {"desc": part.stem, "initial": done, "total": total, "unit": "B", "unit_scale": True}
    with part.open("r+b" if done else "wb") as file, tqdm(disable=not progress, **size) as bar:
        file.seek(done)
        try:
            for chunk in response.raw.stream(_CHUNK, decode_content=False):
                file.write(chunk)
                bar.update(len(chunk))
        except urllib3.exceptions.HTTPError as error:
            raise requests.ConnectionError(cut.format(file.tell())) from error
        if total is not None and file.tell() < total:
            raise requests.ConnectionError(cut.format(file.tell()))


def _damage(path: Path) -> str | None:
    """Return what is wrong with a gzip file, None if it is intact."""
    try:
        with gzip.open(path) as file:
            while file.read(1 << 20):
                pass
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        return f"{path.name} is no intact gzip file ({error})"
    return None


def _verify(path: Path, known_hash: str | None) -> None:
    """Raise if a file in the cache is not what it was, or must be."""
    import pooch

    record = path.with_name(f"{path.name}.sha256")
    found = pooch.file_hash(str(path))
    if known_hash is None and not record.is_file():  # put there by hand
        damage = _damage(path)
        if damage is not None:
            raise InputError(f"{damage}. Remove {path} and get it again.")
        _record(path, found)
        return
    expected = known_hash or record.read_text(encoding="utf-8").split()[0]
    if found != expected:
        raise InputError(
            f"{path} has sha256 {found}, and should have {expected}. Remove it"
            + (f" and {record.name}" if known_hash is None else "")
            + " to get it again."
        )


def _record(path: Path, found: str) -> None:
    """Write the sha256 of a file beside it, as ``sha256sum`` does, unless the folder is read-only."""
    if os.access(path.parent, os.W_OK):
        write_text(path.with_name(f"{path.name}.sha256"), f"{found}  {path.name}\n")
