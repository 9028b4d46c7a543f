"""Results of a benchmark: a folder of records, one per fit, and tables made from them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from trvae_sc.files import write_text
from trvae_sc.metrics import METRICS
from trvae_sc.uncertainty import LEVEL

FORMAT = 1
#: Methods that train nothing, simplest first; :meth:`Results.best` takes all others for less simple.
SIMPLICITY = ("no_change", "mean_shift", "nearest_shift", "context_shift")
CEILING = "ceiling"  #: name of the pseudo-method that compares real cells with real cells
_RUN = "run.json"
_TASK = ["label", "source", "target"]
_METHOD = ["method", "output"]

_ROUNDING = 1e-9  # differences of losses that are no larger are none


class Best(NamedTuple):
    """The method that a benchmark speaks for."""

    method: str
    output: str
    #: One row per method and output, lowest mean loss first: ``mean`` score over the tasks; by how much
    #: the chosen one is better (``difference``, negative where it is worse) with its standard error
    #: ``se``; on how many (``wins``) of ``n_tasks``.
    table: pd.DataFrame


class Results:
    """What a benchmark found.

    Parameters
    ----------
    run
        What was run: data, keys, number of variable genes, cells by label and condition.
    records
        One dictionary per fit.

    Attributes
    ----------
    table
        One row per score: ``method``, ``label``, ``source``, ``target``, ``seed``, ``output``,
        ``metric``, ``genes``, ``value``.
    """

    def __init__(self, run: dict[str, Any], records: list[dict[str, Any]]) -> None:
        self.run = run
        self.records = sorted(records, key=_order)
        self.table = _table(self.records)

    @classmethod
    def load(cls, folder: str | Path) -> Results:
        """Read the results in a folder, also while a benchmark is still adding to them.

        Raises
        ------
        FileNotFoundError
            The folder holds no results.
        """
        store = Store(folder)
        if not store.run_file.exists():
            raise FileNotFoundError(f"No results in {folder}: {_RUN} is missing.")
        return cls(json.loads(store.run_file.read_text()), store.records())

    @property
    def design(self) -> pd.DataFrame:
        """Number of cells by label (row) and condition (column)."""
        design = self.run["design"]
        return pd.DataFrame(design["cells"], index=design["labels"], columns=design["conditions"])

    def summary(self) -> pd.DataFrame:
        """Return one row per metric, set of genes, method and output.

        Columns: ``mean`` over tasks of the mean over seeds; ``sd_tasks`` of those means over tasks;
        ``sd_seeds``, the mean over tasks of the deviation over seeds; ``n_tasks``, ``n_seeds``;
        ``rank`` among methods and outputs (1 is best).
        """
        by = ["metric", "genes", *_METHOD]
        tasks = self.table.groupby([*by, *_TASK])["value"].agg(["mean", "std", "count"])
        groups = tasks.groupby(level=by)
        result = pd.DataFrame(
            {
                "mean": groups["mean"].mean(),
                "sd_tasks": groups["mean"].std(),
                "sd_seeds": groups["std"].mean(),
                "n_tasks": groups["mean"].count(),
                "n_seeds": groups["count"].max(),
            }
        ).reset_index()
        loss = [
            _loss(metric, mean)
            for metric, mean in zip(result["metric"], result["mean"], strict=True)
        ]
        scored = result["method"] != CEILING
        ranked = result.assign(loss=loss)[scored].groupby(["metric", "genes"])["loss"].rank("min")
        return result.assign(rank=ranked)

    def wide(self, columns: list[tuple[str, str]] | None = None) -> pd.DataFrame:
        """Return means over tasks and seeds, one row per method and output, best first.

        Parameters
        ----------
        columns
            Pairs of metric and set of genes; the main ones if None.
        """
        columns = main_columns(self.table) if columns is None else columns
        summary = self.summary().set_index(["metric", "genes", *_METHOD])["mean"]
        wide = pd.DataFrame({column: summary.loc[column] for column in columns})
        loss = [_loss(columns[0][0], value) for value in wide[columns[0]]]
        return wide.iloc[np.argsort(loss, kind="stable")]

    def paired(self, baseline: str = "mean_shift") -> pd.DataFrame:
        """Compare every method with a baseline, task by task.

        Parameters
        ----------
        baseline
            Name of a method.

        Returns
        -------
        One row per metric, set of genes, method, output and ``output_baseline``: mean ``difference``
        (method less baseline), number of tasks where the method is better (``wins``) of ``n_tasks``,
        and ``p`` of Wilcoxon's signed-rank test over tasks (NaN below five tasks, where it cannot be
        small).

        Raises
        ------
        ValueError
            The baseline was not run.
        """
        if baseline not in set(self.table["method"]):
            raise ValueError(f"No method {baseline!r}; there are {self.methods}.")
        means = self.task_means()
        reference = means[means["method"] == baseline].drop(columns="method")
        both = means[means["method"] != baseline].merge(
            reference, on=["metric", "genes", *_TASK], suffixes=("", "_baseline")
        )
        rows = []
        by = ["metric", "genes", *_METHOD, "output_baseline"]
        for key, group in both.groupby(by):
            ours = np.array([_loss(key[0], v) for v in group["value"]])
            theirs = np.array([_loss(key[0], v) for v in group["value_baseline"]])
            difference = (group["value"] - group["value_baseline"]).mean()
            rows.append(
                (*key, difference, int((ours < theirs).sum()), len(group), _p(ours - theirs))
            )
        return pd.DataFrame(rows, columns=[*by, "difference", "wins", "n_tasks", "p"])

    def best(self, metric: str = "effect_r2", *, genes: str | None = None) -> Best:
        r"""Choose the best simple method, or a model that is really better.

        The best simple method (``no_change``, ``mean_shift``, ``nearest_shift``, ``context_shift``) is the
        one with the lowest mean loss; of equal ones the first in this order. Any other name is a trained
        model: of those that are better by more than the standard error the one with the lowest mean loss
        is chosen. With the losses :math:`\ell` of two methods on the T tasks that all methods share
        (means over seeds, paired by task), B is better than A by more than the standard error if

        .. math:: \bar d > s_d / \sqrt T, \qquad d_t = \ell_{At} - \ell_{Bt}

        The loss is a score with the sign that makes lower better, or its distance from the best value
        (of a variance ratio: of its log). A single task has no standard error: there the best simple
        method is chosen, and a model only if no simple one was run.

        Parameters
        ----------
        metric
            One of :data:`trvae_sc.metrics.METRICS`.
        genes
            Set of genes the metric is over, as in ``table``; those that change most if None, or what
            the metric is over if it is not of genes.

        Returns
        -------
        Method, output, and how they compare with the others. The ceiling does not take part.

        Raises
        ------
        ValueError
            There are no results, the metric or set of genes is unknown or was not scored, or no task
            was scored for every method.
        """
        scores = self._shared_scores(metric, genes)
        losses = scores.map(lambda value: _loss(metric, value))
        chosen = _choice(losses)
        behind = losses.sub(losses[chosen], axis=0)
        table = pd.DataFrame(
            {
                "mean": scores.mean(),
                "difference": behind.mean(),
                "se": behind.sem(),
                "wins": (behind > 0).sum(),
                "n_tasks": len(behind),
            }
        )
        order = losses.mean().sort_values(kind="stable").index
        return Best(*chosen, table.loc[order].reset_index())

    def _shared_scores(self, metric: str, genes: str | None) -> pd.DataFrame:
        """Return scores of the tasks that all methods share, shape (n_tasks, n_methods_and_outputs)."""
        if metric not in METRICS:
            raise ValueError(f"Unknown metric {metric!r}; choose one of {list(METRICS)}.")
        table = self.table[self.table["method"] != CEILING]
        if table.empty:
            raise ValueError(
                "There are no results to choose from: no method has finished a task yet."
            )
        sets = list(table.loc[table["metric"] == metric, "genes"].unique())
        if not sets:
            scored = list(table["metric"].unique())
            raise ValueError(f"Nothing was scored by {metric!r}; there are {scored}.")
        if genes is None:
            genes = next((name for name in sets if name.startswith("top")), sets[0])
        if genes not in sets:
            raise ValueError(f"{metric!r} was not scored over genes {genes!r}, but over {sets}.")
        means = self.task_means().query("metric == @metric and genes == @genes")
        wide = means.pivot(index=_TASK, columns=_METHOD, values="value")
        every = table[_METHOD].drop_duplicates().sort_values(_METHOD)
        wide = wide.reindex(columns=pd.MultiIndex.from_frame(every))
        shared = wide.dropna()
        if shared.empty:
            found = {f"{m}, {o}": int(n) for (m, o), n in wide.count().items()}
            raise ValueError(
                f"No task was scored by {metric!r} for every method; tasks of each are {found}. Let the "
                "benchmark finish, or choose another metric."
            )
        return shared

    def task_means(self) -> pd.DataFrame:
        """Return the table with the mean over seeds in place of single seeds."""
        by = ["metric", "genes", *_METHOD, *_TASK]
        return self.table.groupby(by, as_index=False)["value"].mean()

    @property
    def methods(self) -> list[str]:
        """Names of the methods that were run."""
        return list(self.table["method"].unique())

    def to_json(self) -> dict[str, Any]:
        """Return run and summary as a dictionary that JSON can hold (NaN as null)."""
        summary = json.loads(self.summary().to_json(orient="records"))
        return {"run": self.run, "summary": summary, "n_records": len(self.records)}


def main_columns(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Return the scores to show where there is room for few."""
    top = next(genes for genes in table["genes"].unique() if genes.startswith("top"))
    shown = [("effect_r2", top), ("effect_r2", "all"), ("specific_pearson", top)]
    return [*shown, ("energy_distance", "pcs"), ("r2_var", top), ("variance_ratio", top)]


def _loss(metric: str, value: float) -> float:
    """Return how bad a score is."""
    info = METRICS[metric]
    if metric == "variance_ratio":
        return abs(np.log(max(value, 1e-12)))
    if info.better == "closer":
        return abs(value - (LEVEL if info.best is None else info.best))
    return value if info.better == "lower" else -value


def _choice(losses: pd.DataFrame) -> tuple[str, str]:
    """Return the best simple method and output (columns), or the best model that beats it."""
    mean = losses.mean().round(12)
    order = sorted(losses, key=lambda column: (mean[column], _complexity(column[0])))
    simple = [column for column in order if column[0] in SIMPLICITY]
    models = [column for column in order if column[0] not in SIMPLICITY]
    if not simple:
        return models[0]
    better = [m for m in models if len(losses) > 1 and _beats(losses[m], losses[simple[0]])]
    return (better or simple)[0]


def _complexity(method: str) -> int:
    """Return the place of a method in the order of simplicity."""
    return SIMPLICITY.index(method) if method in SIMPLICITY else len(SIMPLICITY)


def _beats(ours: pd.Series, theirs: pd.Series) -> bool:
    """Return whether our mean loss is lower by more than the standard error of the difference."""
    lead = theirs - ours
    return bool(lead.mean() > (lead.sem() if len(lead) > 1 else 0.0) + _ROUNDING)


def _p(differences: np.ndarray) -> float:
    if len(differences) < 5 or not differences.any():
        return float("nan")
    return float(stats.wilcoxon(differences).pvalue)


def _order(record: dict[str, Any]) -> tuple[str, ...]:
    holdout = record["holdout"]
    return (*(str(holdout[k]) for k in _TASK), record["method"], f"{record['seed']:06d}")


def _table(records: list[dict[str, Any]]) -> pd.DataFrame:
    rows = []
    for record in records:
        task = [record["holdout"][k] for k in _TASK]
        for output, metric, genes, value in record["scores"]:
            number = float("nan") if value is None else value
            rows.append((record["method"], *task, record["seed"], output, metric, genes, number))
    names = ["method", *_TASK, "seed", "output", "metric", "genes", "value"]
    return pd.DataFrame(rows, columns=names)


# -- on disk ------------------------------------------------------------------------------------------


class Store:
    """A folder with one file per finished fit.

    Files are written beside their place and moved into it, so that a kill loses only the fits under
    way, and processes that share the folder cannot corrupt it.

    Parameters
    ----------
    folder
        The folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.run_file = self.folder / _RUN
        self.fits = self.folder / "fits"

    def open(self, run: dict[str, Any]) -> None:
        """Make the folder for a run, or check that it is of the same.

        Raises
        ------
        ValueError
            It holds results of other data or settings.
        """
        self.fits.mkdir(parents=True, exist_ok=True)
        if not self.run_file.exists():
            write_text(self.run_file, json.dumps(run, indent=1))
            return
        found = json.loads(self.run_file.read_text())
        compared = [k for k in run if k not in ("versions", "notes")]
        other = [k for k in compared if found.get(k) != json.loads(json.dumps(run[k]))]
        if other:
            raise ValueError(
                f"{self.folder} holds results of a run that differs in {other}. Choose another folder."
            )

    def path(self, holdout: dict[str, Any], method: str, seed: int) -> Path:
        """Return the file of a fit."""
        return self.fits / f"{fit_name(holdout, method, seed)}.json"

    def add(self, record: dict[str, Any]) -> None:
        """Write the record of a fit."""
        path = self.path(record["holdout"], record["method"], record["seed"])
        write_text(path, json.dumps(record))

    def records(self) -> list[dict[str, Any]]:
        """Return the records of all finished fits."""
        return [json.loads(path.read_text()) for path in sorted(self.fits.glob("*.json"))]


def fit_name(holdout: dict[str, Any], method: str, seed: int) -> str:
    """Return a name for the files of a fit: readable, short, and of no other fit."""
    key = json.dumps([holdout, method, seed], sort_keys=True, default=str)
    name = f"{holdout['label']}-{holdout['target']}-{method}-{seed}"
    safe = "".join(c if c.isalnum() or c in "-_+." else "_" for c in name)
    safe = safe.encode()[:120].decode(errors="ignore")  # what a file system counts are bytes
    return f"{safe}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
