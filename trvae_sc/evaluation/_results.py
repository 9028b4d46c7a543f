"""Results of a benchmark: a folder of records, one per fit, and tables made from them."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from trvae_sc.errors import InputError
from trvae_sc.evaluation._ceiling import CEILING
from trvae_sc.evaluation._choose import Decision, choose
from trvae_sc.evaluation._holdouts import TASK
from trvae_sc.evaluation._methods import OUTPUT
from trvae_sc.evaluation._store import Store
from trvae_sc.intervals import LEVEL
from trvae_sc.metrics import METRICS

_METHOD = ["method", "output"]
#: Scores as they are called in a table to read.
WORDS = {
    "effect_r2": "effect R2",
    "specific_pearson": "specific r",
    "energy_distance": "energy distance",
    "r2_var": "R2 of variances",
    "variance_ratio": "variance ratio",
}
_FEW_GENES = 1000  # below, where the data have more, a benchmark is a quick look


class Best(NamedTuple):
    """The method that a benchmark speaks for."""

    method: str
    output: str
    #: One row per method, lowest mean loss first: ``mean`` score over the tasks; by how much the chosen one is
    #: better (``difference``) with its standard error ``se``; on how many (``wins``) of ``n_tasks``.
    table: pd.DataFrame
    decision: Decision  #: how the model compares with the best simple method


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
        InputError
            The folder holds no results, or results that another version of trvae_sc stored in its own way.
        """
        store = Store(folder)
        if not store.run_file.exists():
            raise InputError(f"No results in {folder}: {store.run_file.name} is missing.")
        return cls(store.run(), store.records())

    @property
    def design(self) -> pd.DataFrame:
        """Number of cells by label (row) and condition (column)."""
        design = self.run["design"]
        return pd.DataFrame(design["cells"], index=design["labels"], columns=design["conditions"])

    def summary(self) -> pd.DataFrame:
        """Return the main scores, means over tasks and seeds, one row per method and output, best first.

        ``sd`` is the standard deviation of the first score over tasks; ``tasks`` and ``seeds`` are their numbers.
        """
        wide, statistics = self.wide(), self.statistics()
        metric, genes = wide.columns[0]
        first = statistics[(statistics["metric"] == metric) & (statistics["genes"] == genes)]
        sd = first.set_index(_METHOD)["sd_tasks"].reindex(wide.index)  # not all have each score
        sizes = statistics.groupby(_METHOD)[["n_tasks", "n_seeds"]].max().loc[wide.index]
        wide.columns = [f"{WORDS.get(metric, metric)} ({genes})" for metric, genes in wide.columns]
        wide.insert(1, "sd", sd)
        wide = wide.mask(wide.abs() < 1e-6, 0.0)  # for which pandas shows a column as 9.1e-01
        return wide.assign(tasks=sizes["n_tasks"], seeds=sizes["n_seeds"])

    def _title(self) -> str:
        """Return what was run, in a line."""
        n_methods = len({record["method"] for record in self.records} - {CEILING})
        tasks = {tuple(record["holdout"][k] for k in TASK) for record in self.records}
        quick = f"; {self.quick_look}" if self.quick_look else ""
        return (
            f"Results of {counted(n_methods, 'method')} on {counted(len(tasks), 'hold-out')}{quick}"
        )

    def _rounded(self) -> pd.DataFrame:
        """Return the main scores as they are shown: with three decimals, none of them -0."""
        return self.summary().round(3).replace(-0.0, 0.0).reset_index()

    def __repr__(self) -> str:
        if not self.records:
            return f"{self._title()}: no fit has finished"
        return f"{self._title()}\n{self._rounded().to_string(index=False, na_rep='')}"

    def _repr_html_(self) -> str:
        if not self.records:
            return f"<p>{self!r}</p>"
        table = self._rounded().to_html(index=False, na_rep="", border=0)
        return f"<div><b>{html.escape(self._title())}</b>{table}</div>"

    def statistics(self) -> pd.DataFrame:
        """Return one row per metric, set of genes, method and output.

        Columns: ``mean`` over tasks of the mean over seeds; ``sd_tasks`` of those means over tasks;
        ``sd_seeds``, the mean over tasks of the deviation over seeds; ``n_tasks``, ``n_seeds``;
        ``rank`` among methods and outputs (1 is best).
        """
        by = ["metric", "genes", *_METHOD]
        tasks = self.table.groupby([*by, *TASK])["value"].agg(["mean", "std", "count"])
        result = (
            tasks.groupby(level=by)
            .agg(
                mean=("mean", "mean"),
                sd_tasks=("mean", "std"),
                sd_seeds=("std", "mean"),
                n_tasks=("mean", "count"),
                n_seeds=("count", "max"),
            )
            .reset_index()
        )
        losses = pd.Series(map(loss, result["metric"], result["mean"]), dtype=float)
        scored = losses[result["method"] != CEILING]
        return result.assign(rank=scored.groupby([result["metric"], result["genes"]]).rank("min"))

    def wide(self, columns: list[tuple[str, str]] | None = None) -> pd.DataFrame:
        """Return means over tasks and seeds, one row per method and output, best first.

        Parameters
        ----------
        columns
            Pairs of metric and set of genes; the main ones if None.

        Raises
        ------
        InputError
            There are no results yet.
        """
        if self.table.empty:
            raise InputError(
                "There are no results yet: no fit has finished. Let the benchmark run."
            )
        columns = main_columns(self.table) if columns is None else columns
        summary = self.statistics().set_index(["metric", "genes", *_METHOD])["mean"]
        wide = pd.DataFrame({column: summary.loc[column] for column in columns}).dropna(how="all")
        losses = loss(columns[0][0], wide[columns[0]].to_numpy())
        return wide.iloc[np.argsort(losses, kind="stable")]

    def paired(self, baseline: str = "mean_shift") -> pd.DataFrame:
        """Compare every method with a baseline, task by task.

        Parameters
        ----------
        baseline
            Name of a method.

        Returns
        -------
        One row per metric, set of genes, method, output and ``output_baseline``: mean ``difference``
        (method less baseline), number of tasks where the method is better (``wins``) of ``n_tasks``, and ``p`` of
        Wilcoxon's signed-rank test over tasks (NaN below five tasks).

        Raises
        ------
        InputError
            The baseline was not run.
        """
        if baseline not in set(self.table["method"]):
            raise InputError(f"No method {baseline!r}; there are {self.methods}.")
        means = self.task_means().dropna(subset="value")
        reference = means[means["method"] == baseline].drop(columns="method")
        both = means[means["method"] != baseline].merge(
            reference, on=["metric", "genes", *TASK], suffixes=("", "_baseline")
        )
        rows = []
        by = ["metric", "genes", *_METHOD, "output_baseline"]
        for key, group in both.groupby(by):
            difference = (group["value"] - group["value_baseline"]).mean()
            ours, theirs = loss(key[0], group[["value", "value_baseline"]].to_numpy()).T
            wins = int((ours < theirs).sum())
            rows.append((*key, difference, wins, len(group), _p(ours - theirs)))
        return pd.DataFrame(rows, columns=[*by, "difference", "wins", "n_tasks", "p"])

    def best(self, metric: str = "effect_r2", *, genes: str | None = None) -> Best:
        r"""Choose between the best simple method and a model.

        Methods are compared by their output ``"delta"`` (of a method that lacks it, its first). The best simple
        method is the one with the lowest mean loss. With the paired differences :math:`d_t` of its loss and a
        model's, over the T tasks that all methods share (means over seeds), the model is chosen where
        :math:`\bar d > s_d / \sqrt T`, the simple method where :math:`\bar d < -s_d / \sqrt T`; between them it is
        too close to call, and the simple method is given. (With one task the error is that over its seeds.)
        The loss is a score with the sign that makes lower better, or its distance from the best value (of a
        variance ratio: of its log).

        Parameters
        ----------
        metric
            One of :data:`trvae_sc.metrics.METRICS`.
        genes
            Set of genes the metric is over, as in ``table``; those that change most if None, or what
            the metric is over if it is not of genes.

        Returns
        -------
        Method, output, how they compare with the others, and the decision. The ceiling does not take part.

        Raises
        ------
        InputError
            There are no results, the metric or set of genes is unknown or was not scored, or no task was scored
            for every method.
        """
        scores = self.by_method(metric, genes)
        losses = {name: loss(metric, table) for name, table in scores.items()}
        decision = choose(losses)
        means = pd.DataFrame({name: table.mean(axis=1) for name, table in losses.items()})
        rows = []
        for name in sorted(means, key=means.mean().__getitem__):
            behind = means[name] - means[decision.method]
            mean, wins = scores[name].mean(axis=1).mean(), int((behind > 0).sum())
            rows.append(
                (name, self.output_of(name), mean, behind.mean(), behind.sem(), wins, len(behind))
            )
        columns = ["method", "output", "mean", "difference", "se", "wins", "n_tasks"]
        table = pd.DataFrame(rows, columns=columns)
        return Best(decision.method, self.output_of(decision.method), table, decision)

    def output_of(self, method: str) -> str:
        """Return the output that a method is judged by."""
        outputs = self.table.loc[self.table["method"] == method, "output"].unique().tolist()
        return OUTPUT if OUTPUT in outputs else outputs[0]

    def by_method(
        self, metric: str = "effect_r2", genes: str | None = None
    ) -> dict[str, pd.DataFrame]:
        """Return the scores of every method in the output it is judged by, tasks x seeds.

        Of the tasks that all methods share; see :meth:`best` for the arguments and errors.
        """
        if metric not in METRICS:
            raise InputError(f"Unknown metric {metric!r}; choose one of {list(METRICS)}.")
        table = self.table[self.table["method"] != CEILING]
        if table.empty:
            raise InputError(
                "There are no results to choose from: no method has finished a task yet."
            )
        sets = list(table.loc[table["metric"] == metric, "genes"].unique())
        if not sets:
            scored = list(table["metric"].unique())
            raise InputError(f"Nothing was scored by {metric!r}; there are {scored}.")
        if genes is None:
            genes = next((name for name in sets if name.startswith("top")), sets[0])
        if genes not in sets:
            raise InputError(f"{metric!r} was not scored over genes {genes!r}, but over {sets}.")
        part = table[(table["metric"] == metric) & (table["genes"] == genes)]
        names = sorted(table["method"].unique())
        found = {name: tasks_by_seeds(part, name, self.output_of(name)) for name in names}
        shared = set.intersection(*(set(t.dropna(how="all").index) for t in found.values()))
        if not shared:
            counts = {name: len(t.dropna(how="all")) for name, t in found.items()}
            raise InputError(
                f"No task was scored by {metric!r} for every method; tasks of each are {counts}. Let the "
                "benchmark finish, or choose another metric."
            )
        return {name: t.loc[sorted(shared)] for name, t in found.items()}

    @property
    def quick_look(self) -> str:
        """Why these results are a quick look only: few genes of many, or few epochs; else empty."""
        reasons = []
        n_genes = min((record["n_genes"] for record in self.records), default=self.run["n_vars"])
        if n_genes < min(_FEW_GENES, self.run["n_vars"]):
            reasons.append(f"{n_genes:,} of {self.run['n_vars']:,} genes")
        epochs = [record["epochs"] for record in self.records if record.get("epochs")]
        fewer = [done for done, default in epochs if done < default]
        if fewer:
            reasons.append(f"{min(fewer)} epochs, fewer than by default")
        return f"quick look ({', '.join(reasons)})" if reasons else ""

    def task_means(self) -> pd.DataFrame:
        """Return the table with the mean over seeds in place of single seeds."""
        by = ["metric", "genes", *_METHOD, *TASK]
        return self.table.groupby(by, as_index=False)["value"].mean()

    @property
    def methods(self) -> list[str]:
        """Names of the methods that were run."""
        return list(self.table["method"].unique())

    def to_json(self) -> dict[str, Any]:
        """Return run and summary as a dictionary that JSON can hold (NaN as null)."""
        summary = json.loads(self.statistics().to_json(orient="records"))
        return {"run": self.run, "summary": summary, "n_records": len(self.records)}


def tasks_by_seeds(table: pd.DataFrame, method: str, output: str) -> pd.DataFrame:
    """Return the scores of a method's output, tasks x seeds."""
    own = table[(table["method"] == method) & (table["output"] == output)]
    return own.pivot_table(index=TASK, columns="seed", values="value")


def main_columns(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Return the scores to show where there is room for few, of those that there are."""
    known = list(dict.fromkeys(zip(table["metric"], table["genes"], strict=True)))
    top = next((genes for _, genes in known if genes.startswith("top")), "")
    shown = [("effect_r2", top), ("effect_r2", "all"), ("specific_pearson", top)]
    shown += [("energy_distance", "pcs"), ("r2_var", top), ("variance_ratio", top)]
    return [column for column in shown if column in known] or known[:1]


def loss(metric: str, value: Any) -> Any:
    """Return how bad a score is, or each of an array or table of scores."""
    info = METRICS[metric]
    if metric == "variance_ratio":
        return np.abs(np.log(np.maximum(value, 1e-12)))
    if info.better == "closer":
        return np.abs(value - (LEVEL if info.best is None else info.best))
    return value if info.better == "lower" else -value


def counted(number: int, of: str) -> str:
    """Return a number with what it counts, in the plural where there are several."""
    return f"{number:,} {of}{'' if number == 1 else 's'}"


def _p(differences: np.ndarray) -> float:
    if len(differences) < 5 or not differences.any():
        return float("nan")
    return float(stats.wilcoxon(differences).pvalue)


def _order(record: dict[str, Any]) -> tuple[str, ...]:
    holdout = record["holdout"]
    return (*(str(holdout[k]) for k in TASK), record["method"], f"{record['seed']:06d}")


def _table(records: list[dict[str, Any]]) -> pd.DataFrame:
    rows = []
    for record in records:
        task = [record["holdout"][k] for k in TASK]
        rows += [(record["method"], *task, record["seed"], *score) for score in record["scores"]]
    names = ["method", *TASK, "seed", "output", "metric", "genes", "value"]
    return pd.DataFrame(rows, columns=names).astype({"value": float})
