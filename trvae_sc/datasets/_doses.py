"""Simulated cells under several doses of several drugs, with known truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from anndata import AnnData

from trvae_sc.arguments import check_number, check_whole
from trvae_sc.datasets._simulate import as_data, simulate
from trvae_sc.errors import InputError

_DOSES: Mapping[str, Sequence[float]] = {"A": (1.0, 3.0, 10.0), "B": (1.0, 10.0)}
_CONTROL = "none"


def simulate_doses(
    doses: Mapping[str, Sequence[float]] | None = None,
    *,
    n_cells: int = 40,
    n_genes: int = 200,
    n_labels: int = 8,
    half_dose: float = 3.0,
    specificity: float = 0.3,
    effect_size: float = 1.0,
    depth: float = 2000.0,
    depth_sd: float = 0.3,
    seed: int = 0,
) -> AnnData:
    r"""Simulate counts of cells of several labels under several doses of drugs, with known truth.

    Shares :math:`r_g` without a drug and the full effect :math:`\Delta_g` of a drug on their logs are those
    of :func:`simulate`. The expected share of gene g under dose x is

    .. math:: r_g(x) \propto r_g \exp\Big(\frac{x}{x + x_{1/2}}\,\Delta_g\Big)

    Totals are log-normal, counts Poisson.

    Parameters
    ----------
    doses
        Doses of each drug, above 0. If None, 1, 3 and 10 of A, and 1 and 10 of B. Cells without a drug
        ("none", dose 0) come in addition.
    n_cells
        Number of cells of each label under each dose.
    half_dose
        Dose :math:`x_{1/2}` of half the full effect.
    n_genes, n_labels, specificity, effect_size, depth, depth_sd, seed
        As in :func:`simulate`.

    Returns
    -------
    AnnData with counts in ``X`` (CSR), ``obs["cell_type"]``, ``obs["drug"]``, ``obs["dose"]`` and
    ``obs["total_counts"]``. ``varm["true_share"]`` holds the expected share of every gene by
    "label|drug|dose", as in "type_0|A|10" and "type_0|none|0".

    Raises
    ------
    InputError
        No drug, a drug named "none", no dose, a dose that is not above 0 or is named twice, or other numbers
        out of range.

    Examples
    --------
    >>> adata = simulate_doses({"A": [1, 3, 10]}, n_cells=20)
    >>> hidden = (adata.obs["cell_type"] == "type_1") & (adata.obs["dose"] == 10)
    >>> train = adata[~hidden].copy()
    """
    given = {str(drug): [float(dose) for dose in of] for drug, of in (doses or _DOSES).items()}
    _check_doses(given)
    for name, number in {"n_cells": n_cells, "n_genes": n_genes, "n_labels": n_labels}.items():
        check_whole(name, number)
    if not half_dose > 0:
        raise InputError(f"half_dose is {half_dose}; it must be above 0.")
    check_number("depth_sd", depth_sd, 0.0)
    drugs = [_CONTROL, *given]
    full = simulate(
        n_cells=10 * n_labels * len(drugs),
        n_genes=n_genes,
        n_labels=n_labels,
        conditions=drugs,
        specificity=specificity,
        effect_size=effect_size,
        seed=seed,
    ).varm["true_share"]
    rng = np.random.default_rng([seed, 2])
    design = [(_CONTROL, 0.0), *((drug, dose) for drug, of in given.items() for dose in of)]
    truth, counts, rows = {}, [], []
    for label in (f"type_{k}" for k in range(n_labels)):
        start = np.log(full[f"{label}|{_CONTROL}"].to_numpy())
        for drug, dose in design:
            change = np.log(full[f"{label}|{drug}"].to_numpy()) - start
            share = np.exp(start + dose / (dose + half_dose) * change)
            share /= share.sum()
            truth[f"{label}|{drug}|{dose:g}"] = share
            total = np.exp(rng.normal(np.log(depth), depth_sd, (n_cells, 1)))
            counts.append(rng.poisson(total * share))
            rows.append(pd.DataFrame({"cell_type": label, "drug": drug, "dose": [dose] * n_cells}))
    obs = pd.concat(rows, ignore_index=True)
    obs["cell_type"] = pd.Categorical(obs["cell_type"], [f"type_{k}" for k in range(n_labels)])
    obs["drug"] = pd.Categorical(obs["drug"], drugs)
    x = np.concatenate(counts)
    obs["total_counts"] = x.sum(1).astype(np.float64)
    return as_data(x, obs, truth)


def _check_doses(doses: Mapping[str, Sequence[float]]) -> None:
    """Raise if a drug has no doses, or some that cannot be."""
    if _CONTROL in doses:
        raise InputError(f"'{_CONTROL}' names the cells without a drug; choose another name.")
    for drug, of in doses.items():
        if not of or not all(0 < dose < np.inf for dose in of) or len(set(of)) < len(of):
            raise InputError(
                f"Doses of {drug!r} are {of}; at least one is needed, all above 0 and named once."
            )
