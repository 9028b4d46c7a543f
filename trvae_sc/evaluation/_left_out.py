"""What methods say of labels that were left out: how they err, and weights that combine them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import optimize

from trvae_sc.evaluation._methods import judged
from trvae_sc.evaluation._results import Results

_EQUAL = 0.1  # weight that equal weights have in a stack, in units of one label left out
_NONE = 1e-6  # weight up to which rounding, not what was left out, may have decided: 0


class LeftOut(NamedTuple):
    """Changes of labels that were left out, real and as methods predicted them."""

    real: pd.DataFrame  #: labels x genes; NaN of genes that were not chosen for the label's task
    predicted: dict[str, pd.DataFrame]  #: the same by method, means over seeds
    n: np.ndarray  #: harmonic mean of the cells of each label under source and target

    def missed(self, weights: Mapping[str, float], genes: pd.Index) -> np.ndarray:
        """Return truth less the weighted mean of methods, (n_labels, n_genes); NaN where unknown."""
        found = self.real - sum(w * self.predicted[name] for name, w in weights.items())
        return found.reindex(columns=genes).to_numpy()


def left_out(results: Results, methods: Sequence[str]) -> LeftOut:
    """Return what a benchmark found for the labels it hid one at a time."""
    real: dict[str, pd.Series] = {}
    n: dict[str, float] = {}
    predicted: dict[tuple[str, str, int], pd.Series] = {}
    for record in results.records:
        if record["method"] in methods:
            label, kept = _task(record), record["changes"]
            real[label] = pd.Series(kept["real_change"], kept["gene"])
            own = pd.Series(kept["predicted_change"], kept["gene"])
            predicted[record["method"], label, record["seed"]] = own
            n[label] = 2.0 / (1.0 / record["n_source_cells"] + 1.0 / record["n_hidden_cells"])
    means = pd.DataFrame(predicted).T.groupby(level=[0, 1]).mean()
    by_label = pd.DataFrame(real).T.sort_index()
    return LeftOut(
        by_label,
        {name: means.loc[name] for name in methods},
        np.array([n[label] for label in by_label.index]),
    )


def _task(record: Mapping[str, Any]) -> str:
    """Return what was left out: a label, or several that are of several conditions."""
    return f"{record['holdout']['label']}:{record['holdout']['target']}"


def stacking_weights(found: LeftOut, labels: Sequence[str] | None = None) -> dict[str, float]:
    r"""Return weights of methods, not negative and 1 in all, that predict labels left out best.

    .. math:: \min_w \sum_l \frac{\lVert d_l - \sum_m w_m \hat d_{lm} \rVert^2}{\lVert d_l \rVert^2}
       + 0.1\, M \lVert w - 1/M \rVert^2

    (Breiman 1996, doi:10.1007/BF00117832); the last term decides where labels do not.
    """
    names = list(found.predicted)
    rows, goal = [], []
    for label in found.real.index if labels is None else labels:
        real = found.real.loc[label].dropna()
        size = np.linalg.norm(real) or 1.0
        goal.append(real / size)
        rows.append(np.stack([found.predicted[m].loc[label, real.index] for m in names], 1) / size)
    m = len(names)
    rows.append(np.sqrt(_EQUAL * m) * np.eye(m))
    goal.append(np.full(m, np.sqrt(_EQUAL * m) / m))
    a, b = np.concatenate(rows), np.concatenate(goal)
    found_weights = optimize.minimize(
        lambda w: np.square(a @ w - b).sum(),
        np.full(m, 1.0 / m),
        jac=lambda w: 2.0 * a.T @ (a @ w - b),
        bounds=[(0.0, 1.0)] * m,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1.0},
        method="SLSQP",
    ).x
    weights = np.where(found_weights > _NONE, found_weights, 0.0)
    return dict(zip(names, (weights / weights.sum()).tolist(), strict=True))


def stacked_scores(results: Results, found: LeftOut) -> pd.DataFrame:
    """Return effect R2 of the stack of each label left out, with weights from the others.

    Over the genes that change most, as :data:`trvae_sc.metrics.METRICS` has it; columns ``label``,
    ``value``.
    """
    records = [record for record in results.records if record["method"] in found.predicted]
    labels, rows = list(found.real.index), []
    for label in labels:
        kept = [(r["method"], judged(r["genes"])) for r in records if _task(r) == label]
        real = np.array(kept[0][1]["real_change"])
        error = real.copy()
        for name, weight in stacking_weights(found, [o for o in labels if o != label]).items():
            own = [genes["predicted_change"] for method, genes in kept if method == name]
            error -= weight * np.mean(own, axis=0)
        rows.append((label, 1.0 - np.square(error).sum() / np.square(real).sum()))
    return pd.DataFrame(rows, columns=["label", "value"])
