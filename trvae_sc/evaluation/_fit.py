"""One method on one hold-out: what it predicts, and the record of its scores."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from anndata import AnnData

from trvae_sc.evaluation._ceiling import CEILING, ceiling
from trvae_sc.evaluation._holdouts import Holdout
from trvae_sc.evaluation._methods import OUTPUT, Method
from trvae_sc.evaluation._scores import (
    BOUNDS,
    N_TOP,
    export_cells,
    gene_table,
    has_levels,
    interval_change,
    level_change,
    score,
)
from trvae_sc.evaluation._store import fit_name
from trvae_sc.evaluation._tasks import Task
from trvae_sc.levels import level_name


class Fit(NamedTuple):
    """One method on one hold-out with one seed; without a method the ceiling."""

    holdout: Holdout
    name: str
    method: Method | None
    seed: int
    export: Path | None  #: folder for the predictions

    def fitted(self, task: Task) -> Any:
        """Return the method, trained as far as it can be once for all hold-outs of the same training."""
        if self.method is None:
            return None
        return self.method.fitted(task.train, keys=task.keys, seed=self.seed)

    def __call__(self, task: Task, fitted: Any, seconds: float) -> dict[str, Any]:
        """Let the fitted method predict, and return the record of its scores; it took seconds to fit."""
        start = time.perf_counter()
        found: dict[str, AnnData] = {}
        if self.method is None:
            tables = ceiling(task, seed=self.seed)
        else:
            found = fitted(task.source, self.holdout.target)
            tables = {output: score(task, predicted) for output, predicted in found.items()}
        if self.export is not None:
            for output, predicted in found.items():
                export_cells(task, predicted, self.export / f"{self.file_name}-{output}")
        return {
            "method": self.name,
            "identity": self.identity,
            "holdout": plain(self.holdout),
            "seed": self.seed,
            "scores": [
                [output, row.metric, row.genes, row.value if np.isfinite(row.value) else None]
                for output, table in tables.items()
                for row in table.itertuples()
            ],
            "genes": {output: _genes(task, predicted) for output, predicted in found.items()},
            "n_training_cells": task.train.n_obs,
            "n_genes": task.train.n_vars,
            "n_source_cells": task.source.n_obs,
            "n_hidden_cells": int(task.real.shape[0]),
            **({} if self.method is None else {"changes": changes(task, found)}),
            **_told(found),
            "seconds": round(seconds + time.perf_counter() - start, 2),
        }

    @property
    def training(self) -> tuple[str, int]:
        """What fits of the same training cells have in common if they share what is trained."""
        return self.name, self.seed

    @property
    def file_name(self) -> str:
        """Name of the files of the fit."""
        return fit_name(plain(self.holdout), self.name, self.seed)

    @property
    def identity(self) -> str:
        """What tells the method from another one of its name."""
        return CEILING if self.method is None else self.method.identity

    @property
    def is_quick(self) -> bool:
        """Whether it is not worth a worker of its own."""
        return self.method is None or not self.method.takes_seed


def plain(holdout: Holdout) -> dict[str, Any]:
    """Return a hold-out as types that JSON can hold."""
    return {
        "label": holdout.name,
        "source": level_name(holdout.source),
        "target": level_name(holdout.target),
        "key": holdout.key,
        "also": [str(other) for other in holdout.also],
    }


def _told(found: dict[str, AnnData]) -> dict[str, Any]:
    """Return what predictions say of themselves: notes, history, epochs trained and by default, preset."""
    records = [predicted.uns["trvae_sc"] for predicted in found.values()]
    training = next((r["training"] for r in records if "training" in r), None)
    return {
        "notes": sorted({str(note) for record in records for note in record.get("notes", ())}),
        "history": next((r["history"] for r in records if "history" in r), None),
        "epochs": None if training is None else [training["epochs"], training["default"]],
        "preset": next((str(r["preset"]) for r in records if "preset" in r), None),
    }


def _genes(task: Task, predicted: AnnData) -> dict[str, list[Any]]:
    """Return real and predicted change of the genes that change most."""
    table = gene_table(task, predicted).iloc[:N_TOP]
    kept = {k: _significant(table[k]) for k in ("real_change", "predicted_change")}
    return {"gene": table.index.tolist(), **kept}


def changes(task: Task, found: Mapping[str, AnnData]) -> dict[str, list[Any]]:
    """Return real and predicted change of every gene of a task, as intervals are of, and the intervals.

    These only of predictions that have intervals of all genes, of changes of this kind.
    """
    predicted = found[OUTPUT] if OUTPUT in found else next(iter(found.values()))
    kept = {"real_change": interval_change(task, of_shares=task.keys.is_count)}
    kept["predicted_change"] = level_change(task, predicted)
    bounds = predicted.var.reindex(columns=BOUNDS)
    if has_levels(predicted, task.keys) and bounds.notna().all(axis=None):
        kept |= {name: predicted.var[name].to_numpy(np.float64) for name in BOUNDS}
    rounded = {name: _significant(values) for name, values in kept.items()}
    return {"gene": task.train.var_names.tolist(), **rounded}


def _significant(values: Iterable[float]) -> list[float]:
    """Return numbers with the five digits that results keep, whatever their unit."""
    return [float(f"{value:.5g}") for value in values]
