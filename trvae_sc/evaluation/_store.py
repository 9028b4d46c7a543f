"""A folder of records, one for every finished fit of a benchmark."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trvae_sc.errors import InputError
from trvae_sc.files import as_path, check_target, write_text

logger = logging.getLogger(__name__)

#: Raised where what is stored in a folder changes so that earlier folders cannot be read.
FORMAT = 4
_RUN = "run.json"
_RUN_ENTRIES = ("format", "design", "n_obs", "n_vars", "keys", "versions")
#: Entries of a run that may differ between its parts.
_FREE = ("versions", "notes", "started", "command", "columns")
_RECORD_ENTRIES = ("method", "identity", "holdout", "seed", "scores", "genes", "n_genes", "notes")


class Store:
    """A folder with one file per finished fit.

    Files are written beside their place and moved into it, so that a kill loses only the fits under
    way, and processes that share the folder cannot corrupt it.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = as_path(folder, "folder")
        self.run_file = self.folder / _RUN
        self.fits = self.folder / "fits"

    def open(self, run: dict[str, Any]) -> None:
        """Make the folder for a run, or raise where it holds results of other data or settings."""
        check_target(self.run_file, overwrite=True)
        if not self.run_file.exists():
            write_text(self.run_file, json.dumps(run, indent=1))
            return
        found = self.run()
        compared = [k for k in run if k not in _FREE]
        other = [k for k in compared if found.get(k) != json.loads(json.dumps(run[k]))]
        known, now = found.get("columns", {}), run["columns"]  # not the same in every part
        other += [k for k in now if known.get(k, now[k]) != now[k]]
        if other:
            raise InputError(
                f"{self.folder} holds results of a run that differs in {other}. Choose another folder."
            )
        if not set(now) <= set(known):
            write_text(self.run_file, json.dumps({**found, "columns": now | known}, indent=1))

    def run(self) -> dict[str, Any]:
        """Return what was run."""
        run = _read_json(self.run_file, _RUN_ENTRIES)
        if run is None:
            raise InputError(
                f"{self.run_file} is damaged, so what the results in {self.folder} are of is not known. "
                "Choose another folder, or delete this one."
            )
        if run["format"] != FORMAT:
            raise InputError(
                f"{self.folder} holds results in format {run['format']}, of another version of trvae_sc; this one "
                f"reads format {FORMAT}. Run the benchmark again, in another folder."
            )
        return run

    def tell(self, **entries: Any) -> None:
        """Add to what is known of a run, for its readers; what is there already is kept."""
        run = self.run()
        if not set(entries) <= set(run):
            write_text(self.run_file, json.dumps({**entries, **run}, indent=1))

    def path(self, holdout: dict[str, Any], method: str, seed: int) -> Path:
        """Return the file of a fit."""
        return self.fits / f"{fit_name(holdout, method, seed)}.json"

    def add(self, record: dict[str, Any]) -> None:
        """Write the record of a fit."""
        path = self.path(record["holdout"], record["method"], record["seed"])
        write_text(path, json.dumps(record))

    def records(self) -> list[dict[str, Any]]:
        """Return the records of all finished fits; a damaged one is set aside, to be run again."""
        found = []
        for path in sorted(self.fits.glob("*.json")):
            record = _read_json(path, _RECORD_ENTRIES)
            if record is not None:
                found.append(record)
                continue
            aside = path.with_suffix(".broken")
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                path.replace(aside)
            logger.warning("%s is damaged. It was set aside as %s.", path, aside.name)
        return found


def _read_json(path: Path, entries: Sequence[str]) -> dict[str, Any] | None:
    """Return a dictionary in a file; None if the file holds none, or one without these entries."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # no JSON, or no text
        return None
    return found if isinstance(found, dict) and all(name in found for name in entries) else None


def fit_name(holdout: dict[str, Any], method: str, seed: int) -> str:
    """Return a name for the files of a fit: readable, short, and of no other fit."""
    key = json.dumps([holdout, method, seed], sort_keys=True, default=str)
    name = f"{holdout['label']}-{holdout['target']}-{method}-{seed}"
    safe = "".join(c if c.isalnum() or c in "-_+." else "_" for c in name)
    safe = safe.encode()[:120].decode(errors="ignore")  # what a file system counts are bytes
    return f"{safe}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
