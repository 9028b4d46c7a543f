"""What was run, measured and hidden, what is missing, and what to measure next."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from trvae_sc import pl
from trvae_sc.errors import InputError
from trvae_sc.evaluation import CEILING, Holdout, Results
from trvae_sc.evaluation._holdouts import TASK
from trvae_sc.evaluation._results import counted
from trvae_sc.levels import level_name
from trvae_sc.pl._benchmark import MOST
from trvae_sc.progress import duration
from trvae_sc.report._parts import Table, image, table_of

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
    run, keys = results.run, results.run["keys"]
    n_labels, n_conditions = results.design.shape
    shape = f"{counted(n_labels, 'label')}, {counted(n_conditions, 'condition')}"
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


_NEEDED = ("label", "condition", "expected_error", "lowers", "left")


def design(results: Results, experiments: pd.DataFrame | None) -> dict[str, Any]:
    """Return pictures and tables of what was measured, what is missing and what to measure next.

    None where there are too many labels for a picture, or nothing is missing or to be measured.
    """
    cells = results.design
    hidden = _holdouts(results)
    drawn = cells.shape[0] <= MOST[0] and cells.shape[1] <= MOST[1]
    found: dict[str, Any] = {"image": None, "next": None, "next_image": None}
    if drawn:
        ax: Any = pl.design(cells, hidden=hidden)
        found["image"] = image(ax.figure, "Numbers of cells by label and condition")
    if experiments is not None:
        found["next"] = _next(experiments)
        if drawn and set(experiments["label"]) <= {level_name(label) for label in cells.index}:
            ax = pl.next_experiments(cells, experiments)
            text = "Numbers of cells, and the rank of what to measure next"
            found["next_image"] = image(ax.figure, text)
    missing = missing_combinations(cells)
    n_missing = int((cells == 0).to_numpy().sum())
    return found | {"missing": table_of(missing) if n_missing else None, "n_missing": n_missing}


def _holdouts(results: Results) -> list[Holdout]:
    """Return what was hidden, each with what of the same condition was hidden with it."""
    found = {}
    for record in results.records:
        label, target = (record["holdout"][k] for k in ("label", "target"))
        end = f":{target}"
        also = [name for name in record["holdout"].get("also", ()) if name.endswith(end)]
        others = tuple(Holdout(name.removesuffix(end), target) for name in also)
        found[label, target] = Holdout(label, target, also=others)
    return list(found.values())


def missing_combinations(cells: pd.DataFrame) -> pd.DataFrame:
    """Return the conditions that labels have no cells under, one row a label that lacks some."""
    rows = []
    for label, own in cells.iterrows():
        if (own == 0).any():
            names = [
                ", ".join(map(level_name, own.index[chosen])) for chosen in (own > 0, own == 0)
            ]
            rows.append((level_name(label), *names))
    return pd.DataFrame(rows, columns=["label", "measured under", "missing"])


def _next(experiments: pd.DataFrame) -> Table:
    """Return the ranking as a table, shares in percent."""
    if not isinstance(experiments, pd.DataFrame) or not set(_NEEDED) <= set(experiments):
        what = type(experiments).__name__
        if isinstance(experiments, pd.DataFrame):
            what = f"a table with {list(experiments)}"
        raise InputError(
            f"next_experiments is {what}; give what trvae_sc.next_experiments(model) returns."
        )
    shown = experiments[list(_NEEDED)].astype({"label": str, "condition": str})
    shown[["lowers", "left"]] *= 100.0
    shown.insert(0, "rank", range(1, len(shown) + 1))
    words = {"expected_error": "expected error", "lowers": "takes away, %", "left": "left, %"}
    return table_of(shown.rename(columns=words))
