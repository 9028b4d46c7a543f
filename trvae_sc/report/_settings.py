"""What was run, as the box of settings says it."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from trvae_sc.evaluation import CEILING, Results
from trvae_sc.evaluation._holdouts import TASK
from trvae_sc.evaluation._results import counted
from trvae_sc.progress import duration

_KEYS = {
    "condition_key": "condition",
    "labels_key": "labels",
    "batch_key": "batch",
    "layer": "layer",
    "total_counts_key": "total counts",
}


def n_tasks(results: Results) -> int:
    """Return the number of hidden combinations."""
    return int(results.table.groupby(TASK).ngroups)


def settings(results: Results) -> list[tuple[str, str]]:
    """Return names and values of what the results rest on, in the order shown; what is not known is left out."""
    run, keys, design = results.run, results.run["keys"], results.design
    shape = f"{counted(len(design), 'label')}, {counted(design.shape[1], 'condition')}"
    seconds = sum(record["seconds"] for record in results.records)
    seeds = _seeds(results.records)
    once = "; methods that draw nothing ran once" if len(seeds) > 1 else ""
    entries = {
        "Data": f"{run['n_obs']:,} cells, {run['n_vars']:,} genes; {shape}; checksum {run['data'][:12]}",
        "Keys": "; ".join(f"{word}: {keys[key]}" for key, word in _KEYS.items() if keys.get(key)),
        "Values": "counts" if keys.get("is_count", True) else "as they are, no counts",
        "Hidden": _hidden(results),
        "Genes": _genes(results),
        "Methods": ", ".join(name for name in results.methods if name != CEILING),
        "Preset": _presets(results.records),
        "Epochs": _epochs(results.records),
        "Seeds": ", ".join(map(str, seeds)) + once,
        "Computing": f"{counted(len(results.records), 'fit')}, {duration(seconds)}",
        "Versions": ", ".join(f"{name} {number}" for name, number in run["versions"].items()),
        "Date": _date(run),
        "Command": run.get("command", ""),
    }
    return [(name, text) for name, text in entries.items() if text]


def _hidden(results: Results) -> str:
    """Return what was hidden, in words."""
    tasks = n_tasks(results)
    text = f"{counted(tasks, 'combination')}, one at a time" if tasks > 1 else "1 combination"
    also = [
        {name.endswith(f":{holdout['target']}") for name in holdout.get("also", ())}
        for holdout in (record["holdout"] for record in results.records)
    ]
    if not all(True in own for own in also):
        return text
    text += ", with the same condition in other labels"
    both = any(False in own for own in also)
    return f"{text}, and the label under all conditions but the source" if both else text


def _date(run: dict[str, Any]) -> str:
    """Return when a run started; of one that does not say, when the page is made."""
    if "started" in run:
        return f"{run['started'][:16].replace('T', ' ')} UTC, start of the run"
    return f"{datetime.now(UTC):%Y-%m-%d}, when this page was made"


def python_call(results: Results) -> str:
    """Return a call that runs the same again."""
    run, records = results.run, results.records
    methods = [name for name in results.methods if name != CEILING]
    given = {name: value for name, value in run["keys"].items() if value is not None}
    if given.get("is_count") is True:
        del given["is_count"]
    given |= {"seeds": _seeds(records), "n_top_genes": run["n_top_genes"]}
    if run.get("max_epochs") is not None:
        given["max_epochs"] = run["max_epochs"]
    shown = {name: repr(value) for name, value in given.items()}
    if "condition_features" in shown:
        shown["condition_features"] = "table"  # which the results do not hold
    lines = "".join(f"\n    {name}={value}," for name, value in shown.items())
    return f"trvae_sc.evaluation.benchmark(\n    adata,\n    {methods!r},\n    holdouts,{lines}\n)"


def _genes(results: Results) -> str:
    """Return how many genes were used, and how they were chosen."""
    used, n_vars = [record["n_genes"] for record in results.records], results.run["n_vars"]
    if results.run["n_top_genes"] is None or min(used) == n_vars:
        return f"all {n_vars:,}"
    return (
        f"{_range(used)} of {n_vars:,}, chosen for every task without the hidden cells, as are "
        "normalisation and principal components"
    )


def _presets(records: list[dict[str, Any]]) -> str:
    """Return the presets of methods that have one."""
    found = {r["method"]: r["preset"] for r in records if r.get("preset")}
    return ", ".join(f"{preset} ({method})" for method, preset in found.items())


def _epochs(records: list[dict[str, Any]]) -> str:
    """Return how long each method trained, and how long it does by default."""
    pairs = [(r["method"], *r["epochs"]) for r in records if r.get("epochs")]
    frame = pd.DataFrame(pairs, columns=["method", "done", "default"])
    texts = []
    for method, group in frame.groupby("method", sort=False):
        done, usual = _range(group["done"]), _range(group["default"])
        texts.append(f"{done} ({method}{'' if done == usual else f', by default {usual}'})")
    return "; ".join(texts)


def _seeds(records: list[dict[str, Any]]) -> list[int]:
    """Return all seeds of methods."""
    return sorted({int(r["seed"]) for r in records if r["method"] != CEILING})


def _range(values: Iterable[int]) -> str:
    """Return the smallest and the largest of numbers, or the only one."""
    found = sorted(values)
    low, high = f"{found[0]:,}", f"{found[-1]:,}"
    return low if low == high else f"{low} to {high}"
