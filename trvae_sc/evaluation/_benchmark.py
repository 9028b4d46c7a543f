"""Running methods on hold-outs: resumable, in processes or on a Ray cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np
import pandas as pd
from anndata import AnnData
from tqdm.auto import tqdm

from trvae_sc.arguments import check_whole
from trvae_sc.condition_features import table_of
from trvae_sc.errors import InputError
from trvae_sc.evaluation._ceiling import CEILING
from trvae_sc.evaluation._checks import LEAST_GENES, check_data, check_holdout, check_unseen
from trvae_sc.evaluation._fit import Fit, plain, run_local, run_on_ray
from trvae_sc.evaluation._holdouts import TASK, Holdout, as_holdouts
from trvae_sc.evaluation._measured import label_column
from trvae_sc.evaluation._methods import Method, check_seeds, resolve
from trvae_sc.evaluation._results import Results
from trvae_sc.evaluation._store import FORMAT, Store
from trvae_sc.evaluation._tasks import Task, prepare_tasks
from trvae_sc.expression import KeyNames, Keys, keys_from, values
from trvae_sc.files import scratch
from trvae_sc.hints import said_once
from trvae_sc.identity import digest
from trvae_sc.levels import as_text
from trvae_sc.notes import versions
from trvae_sc.progress import duration, say


class Clock:
    """Says how long fits will take once one is done that is worth it, and at the end how long they took."""

    def __init__(self, fits: Sequence[Fit], n_jobs: int) -> None:
        slow = [fit for fit in fits if not fit.is_quick]
        self.kind = "more fits that train a network" if slow else "more fits"
        self.counted, self.left = {fit.name for fit in slow or fits}, len(slow or fits)
        self.of, self.done, self.n_jobs = len(fits), 0, n_jobs
        self.start, self.told = time.perf_counter(), False

    def tell(self, record: dict[str, Any]) -> None:
        """Take note of a record, and say what is to be said."""
        self.done += 1
        if record["method"] in self.counted:
            self.left -= 1
            if not self.told and self.left:
                seconds = self.left * record["seconds"] / min(self.n_jobs, self.left)
                if seconds >= 1:
                    say(f"{self.left} {self.kind} will take about {duration(seconds)}.")
                self.told = True
        if self.done == self.of:
            say(f"{self.of} fits in {duration(time.perf_counter() - self.start)}.")


@said_once()
def benchmark(
    adata: AnnData,
    methods: Mapping[str, Callable[..., Any]] | Sequence[str],
    holdouts: Holdout | str | Iterable[Holdout | str | Sequence[Any]],
    *,
    keys: Any = None,
    seeds: int | Sequence[int] = 3,
    n_top_genes: int | None = 2000,
    max_epochs: int | None = None,
    folder: str | Path | None = None,
    n_jobs: int = 1,
    backend: Literal["local", "ray"] = "local",
    export: bool = False,
    progress: bool = True,
    **names: Unpack[KeyNames],
) -> Results:
    """Hide combinations one at a time, let every method predict them, and score the predictions.

    Genes, normalisation and principal components are fitted for each hold-out without the hidden cells,
    of which methods see nothing.

    Parameters
    ----------
    adata
        All cells with all genes.
    methods
        Methods by name, or names in ``METHODS`` of :mod:`trvae_sc.baselines` or :mod:`trvae_sc.family`.
    holdouts
        Combinations to hide, of :func:`trvae_sc.evaluation.holdouts`; or texts ``"label:target"`` or pairs
        (label, target), predicted from the other one of two conditions or the one called like a control.
    keys, **names
        Where the data are: :class:`Keys`, a model for what it was set up with, or fields of :class:`Keys` by name.
    seeds
        Seeds, or how many; methods without a ``seed`` argument run once.
    n_top_genes
        Number of genes, chosen for each hold-out; all if None.
    max_epochs
        Epochs of every method that trains a network; the method's own number if None.
    folder
        Folder for a file per finished fit, which is not run again; several processes may share it. Methods of one
        name are told apart by their own code and arguments, not by the code of functions that they call.
    n_jobs
        Number of processes (joblib); a Ray cluster takes as many fits at a time as it has room for.
    backend
        ``"local"``: processes of this machine. ``"ray"``: tasks of the cluster that ``ray.init(address=...)``
        connected, repeated where a worker dies.
    export
        Also write predicted and real cells to ``folder/predictions`` (:func:`trvae_sc.evaluation.export_cells`).
    progress
        Show a progress bar.

    Returns
    -------
    The results, with those already in `folder`.

    Raises
    ------
    InputError
        Before any fit: unknown methods or backend; columns or values that cannot be used; data whose genes or
        scale were chosen with all cells; no hold-outs, some without cells, or that results cannot tell apart; a
        folder with results of another run, or of another method of the same name; numbers below 1.
    KeyboardInterrupt
        On Ctrl-C; `folder` keeps finished fits.
    """
    keys = keys_from(keys, names)
    chosen = {name: m.with_epochs(max_epochs) for name, m in resolve(methods).items()}
    seeds = check_seeds(seeds)
    check_whole("n_jobs", n_jobs)
    if max_epochs is not None:
        check_whole("max_epochs", max_epochs)
    if n_top_genes is not None:
        check_whole("n_top_genes", n_top_genes, LEAST_GENES)
    if backend not in ("local", "ray"):
        raise InputError(f"Unknown backend {backend!r}; choose 'local' or 'ray'.")
    if export and folder is None:
        raise InputError("export=True needs a folder to write to.")
    columns = [column for method in chosen.values() for column in method.columns]
    check_data(adata, keys, *columns)
    hidden = as_holdouts(holdouts, adata, keys)
    if not hidden:
        raise InputError("There are no hold-outs: give those of evaluation.holdouts(adata, ...).")
    for holdout in hidden:
        check_holdout(adata, holdout, keys)
    check_unseen(adata, hidden, keys, chosen)
    run = {**_describe(adata, keys, n_top_genes), "max_epochs": max_epochs}
    of_holdouts = [column for holdout in hidden for column in holdout.columns]
    run["columns"] = _further(adata, keys, [*columns, *of_holdouts])
    with scratch() as temporary:
        store = Store(temporary if folder is None else folder)
        store.open(run)
        known = store.records()
        _check_known(known, hidden, chosen, store.folder)
        out = store.folder.resolve() / "predictions" if export else None
        fits = [fit for h in hidden for fit in _fits(h, chosen, seeds, out)]
        left = [f for f in fits if not store.path(plain(f.holdout), f.name, f.seed).exists()]

        given: Any = {"keys": keys, "n_top_genes": n_top_genes, "columns": columns}

        def prepared() -> Iterator[tuple[dict[Holdout, Task], Any]]:
            for _, group in groupby(left, key=lambda fit: fit.holdout.hides):
                fits = list(group)
                same = list(dict.fromkeys(fit.holdout for fit in fits))
                yield prepare_tasks(adata, same, **given), fits

        records = run_on_ray(prepared()) if backend == "ray" else run_local(prepared(), n_jobs)
        done, clock = len(fits) - len(left), Clock(left, n_jobs)
        try:
            with tqdm(total=len(fits), initial=done, disable=not progress, unit="fit") as bar:
                for record in records:
                    store.add(record)
                    done += 1
                    if progress:
                        clock.tell(record)
                    bar.set_postfix_str(f"{record['method']} {record['holdout']['label']}")
                    bar.update()
        except KeyboardInterrupt as stop:
            kept = "nothing was kept; a folder would keep finished fits"
            if folder is not None:
                kept = f"they are kept in {folder}. Run the same command to go on"
            raise KeyboardInterrupt(
                f"The benchmark was stopped after {done} of {len(fits)} fits; {kept}."
            ) from stop
        return Results.load(store.folder)


def _fits(
    holdout: Holdout, methods: dict[str, Method], seeds: Sequence[int], export: Path | None
) -> list[Fit]:
    """Return the fits of a hold-out; the ceiling and what takes no seed once."""
    fits = [Fit(holdout, CEILING, None, 0, None)]
    for name, method in methods.items():
        of_method = seeds if method.takes_seed else [0]
        fits += [Fit(holdout, name, method, seed, export) for seed in of_method]
    return fits


def _describe(adata: AnnData, keys: Keys, n_top_genes: int | None) -> dict[str, Any]:
    """Return what identifies a run."""
    label, condition = label_column(adata, keys), as_text(keys.conditions(adata.obs))
    design = pd.crosstab(label, condition).to_dict("split")
    notes = []
    if n_top_genes is None or n_top_genes >= adata.n_vars:
        notes.append(
            f"All {adata.n_vars:,} genes of the data were used. If they were chosen on all cells, the choice "
            "saw the hidden ones, and scores are too good."
        )
    return {
        "format": FORMAT,
        "data": digest(values(adata, keys), adata.n_obs),
        "names": _of_text([*adata.obs_names, *adata.var_names, *label, *condition]),
        "n_obs": adata.n_obs,
        "n_vars": adata.n_vars,
        "keys": keys.plain(),
        "n_top_genes": n_top_genes,
        "design": {
            "labels": design["index"],
            "conditions": design["columns"],
            "cells": design["data"],
        },
        "notes": notes,
        "versions": versions(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _further(adata: AnnData, keys: Keys, columns: Iterable[str]) -> dict[str, str]:
    """Return what identifies what a run reads besides values, labels and conditions, by its place."""
    read = [key for key in (keys.total_counts_key, keys.batch_key, *columns) if key is not None]
    found = {f"obs['{key}']": _of_text(as_text(adata.obs[key])) for key in read}
    if isinstance(name := keys.condition_features, str):
        found[f"uns['{name}']"] = _of_text([table_of(adata, name).to_csv(lineterminator="\n")])
    return found


def _of_text(texts: Iterable[str]) -> str:
    """Return what identifies texts in their order."""
    return digest(np.frombuffer("\n".join(texts).encode(), np.uint8)[None])


def _check_known(
    records: Sequence[dict[str, Any]],
    holdouts: Sequence[Holdout],
    methods: dict[str, Method],
    folder: Path,
) -> None:
    """Raise where rows of the table could not be told apart, or results are of another method of the same name."""
    known: dict[tuple[str, ...], dict[str, Any]] = {}
    for holdout in [*map(plain, holdouts), *(record["holdout"] for record in records)]:
        task = tuple(holdout[k] for k in TASK)
        if known.setdefault(task, holdout) != holdout:
            raise InputError(
                f"{task[0]}:{task[2]} is hidden in two ways, which differ in what else is hidden or in "
                "the column of its label. Results could not tell them apart: use another folder."
            )
    for record in records:
        name = record["method"]
        if name in methods and record["identity"] != methods[name].identity:
            raise InputError(
                f"{folder} has results of another {name!r}: its code, arguments or version differ. Give "
                "the method another name, or choose another folder."
            )
