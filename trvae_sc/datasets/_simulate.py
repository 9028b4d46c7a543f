"""Simulators whose counterfactual truth is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from scipy.special import softmax

from trvae_sc.arguments import check_number, check_seed, check_whole
from trvae_sc.errors import InputError
from trvae_sc.levels import as_list

_N_PROGRAMS = 3  # axes along which labels differ and on which their response depends
_SHARE_RESPONDING = 0.15
_N_FEATURES, _N_WAVES = 4, 32  # that describe conditions, and that responses are made of


def simulate(  # noqa: PLR0913
    n_cells: int = 3000,
    n_genes: int = 500,
    *,
    n_labels: int = 10,
    conditions: Sequence[str] = ("control", "stimulated"),
    specificity: float = 0.4,
    effect_size: float = 1.0,
    depth: float = 3000.0,
    depth_sd: float = 0.35,
    dispersion: float = 4.0,
    heterogeneity: float = 0.3,
    paired: bool = False,
    n_donors: int = 1,
    donor_sd: float = 0.0,
    n_conditions: int | None = None,
    features: Literal["latent", "noise"] | None = None,
    feature_share: float = 0.9,
    seed: int = 0,
) -> AnnData:
    r"""Simulate counts of cells of several labels under several conditions, with known truth.

    The expected share of gene g in a cell of label l under condition c is

    .. math:: r_g \propto \exp\big(b_g + \textstyle\sum_p z_p B_{pg}
       + (1 - s)\,\delta_{cg} + s \sum_p z_p D_{cpg}\big)

    with a cell's state z on three programs, its label's position and normal noise (`heterogeneity`), a response
    :math:`\delta` common to all labels and one, :math:`D`, that depends on the programs. Totals are log-normal,
    counts negative binomial. The first condition has no effect.

    Parameters
    ----------
    n_cells, n_genes
        Number of cells, spread over labels (unevenly) and conditions (evenly), and of genes.
    n_labels
        Number of labels ("type_0", ...).
    conditions, n_conditions
        Names of the conditions, first the control. Or their number: ``"control"``, ``"condition_1"``, ...
    specificity
        Share s of the response that depends on the label, from 0 (a mean shift is right) to 1.
    effect_size
        Standard deviation of the response of responding genes, in natural log units.
    depth, depth_sd
        Median of the total count that is expected of a cell, and standard deviation of its log.
    dispersion
        Median inverse dispersion :math:`\theta` of genes; the variance of a count is
        :math:`\mu + \mu^2/\theta`.
    heterogeneity
        Standard deviation of a cell's state along the programs.
    n_donors, donor_sd
        Number of donors ("donor_0", ...), among whom cells are divided at random: with few cells some lack a
        label or condition. How they differ, as a standard deviation in natural log units: in the level of
        every gene, and in the response to each condition.
    paired
        Measure every cell under every condition, in one state, with a total of its own under each, as a
        paired translator needs. `n_cells` is rounded down to whole sets.
    features, feature_share
        Describe the conditions but the control by four numbers in ``uns["condition_features"]``.
        ``"latent"``: so large a share of the variance of responses (0 to 1) depends smoothly on them;
        ``"noise"``: they have nothing to do with responses.
    seed
        Seed of everything.

    Returns
    -------
    AnnData with counts in ``X`` (CSR), ``obs["condition"]``, ``obs["cell_type"]``,
    ``obs["total_counts"]``, with several donors ``obs["donor"]`` and, if `paired`, the number of the cell,
    ``obs["pair"]``. ``varm["true_share"]`` holds the expected share of every gene by "label|condition", the
    mean over all cells of the label: the truth also of combinations that are then held out;
    ``varm["true_donor_share"]`` the same of donors, by "label|condition|donor".

    Raises
    ------
    InputError
        Fewer cells than combinations, a number out of range, conditions that are no names or not unique,
        unknown features.

    Examples
    --------
    >>> adata = simulate(n_cells=1000)
    >>> train = adata[~((adata.obs.cell_type == "type_0") & (adata.obs.condition == "stimulated"))]
    """
    conditions = _conditions(conditions, n_conditions)
    whole = {"n_cells": n_cells, "n_genes": n_genes, "n_labels": n_labels, "n_donors": n_donors}
    for name, number in whole.items():
        check_whole(name, number)
    check_seed(seed)
    for name, share in (("specificity", specificity), ("feature_share", feature_share)):
        check_number(name, share, 0.0, 1.0)
    sizes = {"effect_size": effect_size, "depth_sd": depth_sd, "heterogeneity": heterogeneity}
    for name, size in (sizes | {"donor_sd": donor_sd}).items():
        check_number(name, size, 0.0)
    check_number("depth", depth, 1.0)
    check_number("dispersion", dispersion, 1e-3)
    if not (features is None or (isinstance(features, str) and features in ("latent", "noise"))):
        raise InputError(f"features is {features!r}; choose 'latent' or 'noise', or None.")
    if n_cells < n_labels * len(conditions):
        raise InputError(f"{n_cells} cells cannot cover {n_labels} labels x {len(conditions)}.")
    rng = np.random.default_rng(seed)
    programs = rng.normal(0.0, 0.6, (_N_PROGRAMS, n_genes)) * (rng.random(n_genes) < 0.5)
    position = rng.normal(0.0, 1.0, (n_labels, _N_PROGRAMS))
    position -= position.mean(0)
    base = rng.normal(0.0, 1.5, n_genes)
    common, specific = _responses(rng, len(conditions), n_genes, effect_size)
    table = None
    if features is not None:
        of_features = np.random.default_rng([seed, 2])  # other data of a seed stay what they are
        shown, common, specific = _described(of_features, common.shape, effect_size, feature_share)
        shown = of_features.normal(size=shown.shape) if features == "noise" else shown
        table = pd.DataFrame(shown, pd.Index(conditions[1:], name="condition"))
        table = table.add_prefix("feature_")

    n_each = len(conditions) if paired else 1
    n_cells -= n_cells % n_each
    label, condition = _design(rng, n_labels, len(conditions), n_cells, paired=paired)
    state = position[label] + heterogeneity * rng.normal(size=(len(label), _N_PROGRAMS))
    label, state = label.repeat(n_each), state.repeat(n_each, 0)
    donor, of_donor = _donors(n_donors, donor_sd, common, len(label), n_each, seed)

    def shares(cells: np.ndarray, c: int) -> np.ndarray:
        logits = base + state[cells] @ programs
        logits += (1 - specificity) * common[c] + specificity * state[cells] @ specific[c]
        logits += of_donor[donor[cells], c]
        return softmax(logits, axis=1)

    total = np.exp(rng.normal(np.log(depth), depth_sd, n_cells))
    theta = np.exp(rng.normal(np.log(dispersion), 0.5, n_genes))
    rates = np.empty((n_cells, n_genes))
    truth: dict[str, Any] = {}
    by_donor: dict[str, Any] = {}
    for c, name in enumerate(conditions):
        rates[condition == c] = shares(np.flatnonzero(condition == c), c)
        for k in range(n_labels):
            truth[f"type_{k}|{name}"] = shares(np.flatnonzero(label == k), c).mean(0)
            for d in range(n_donors if n_donors > 1 else 0):
                own = shares(np.flatnonzero((label == k) & (donor == d)), c)
                by_donor[f"type_{k}|{name}|donor_{d}"] = own.mean(0) if len(own) else np.nan
    counts = rng.poisson(rates * total[:, None] * rng.gamma(theta, 1 / theta, rates.shape))
    types = [f"type_{k}" for k in range(n_labels)]
    obs = pd.DataFrame({"condition": pd.Categorical.from_codes(condition, conditions)})
    obs["cell_type"] = pd.Categorical.from_codes(label, types)
    obs["total_counts"] = counts.sum(1).astype(np.float64)
    if paired:
        obs["pair"] = np.arange(n_cells) // n_each
    if n_donors > 1:
        obs["donor"] = pd.Categorical.from_codes(donor, [f"donor_{d}" for d in range(n_donors)])
    adata = as_data(counts, obs, truth, by_donor)
    if table is not None:
        adata.uns["condition_features"] = table
    return adata


def _conditions(conditions: Sequence[str], n_conditions: int | None) -> list[str]:
    """Return the names of conditions, or as many as asked for."""
    if n_conditions is not None:
        check_whole("n_conditions", n_conditions, 2)
        return ["control", *(f"condition_{i}" for i in range(1, n_conditions))]
    names = [] if np.isscalar(conditions) else list(conditions)
    if len(names) < 2 or len(set(map(str, names))) < len(names):
        raise InputError(f"conditions is {conditions!r}; give two different names or more.")
    return names


def _design(
    rng: np.random.Generator, n_labels: int, n_conditions: int, n_cells: int, *, paired: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return the codes of labels (of sets of cells, if paired) and of conditions."""
    weights = np.geomspace(3.0, 1.0, n_labels)  # from the most frequent label to the rarest
    n_drawn = n_cells // n_conditions if paired else n_cells
    label = rng.choice(n_labels, n_drawn, p=weights / weights.sum())
    condition = np.arange(n_cells) % n_conditions
    if paired:
        label[:n_labels] = np.arange(n_labels)
        return label, condition
    condition = rng.permutation(condition)
    first = n_labels * n_conditions  # every combination has a cell
    label[:first], condition[:first] = np.divmod(np.arange(first), n_conditions)
    return label, condition


def as_data(
    counts: np.ndarray,
    obs: pd.DataFrame,
    truth: Mapping[str, np.ndarray],
    of_donors: Mapping[str, np.ndarray | float] | None = None,
) -> AnnData:
    """Return cells that have counts, with the true shares of genes, also of donors if there are several."""
    genes = pd.Index([f"gene_{i}" for i in range(counts.shape[1])])
    obs.index = [f"cell_{i}" for i in range(len(obs))]
    x = sparse.csr_matrix(counts, dtype=np.float32)
    adata = AnnData(x, obs=obs, var=pd.DataFrame(index=genes))
    adata.varm["true_share"] = pd.DataFrame(truth, index=genes)
    if of_donors:
        adata.varm["true_donor_share"] = pd.DataFrame(of_donors, index=genes)
    return adata[adata.obs["total_counts"] > 0].copy()


def _donors(
    n_donors: int, sd: float, common: np.ndarray, n_cells: int, n_each: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the donor of each cell, and what each donor adds to logits (n_donors x conditions x genes)."""
    rng = np.random.default_rng([seed, 1])  # other data of a seed stay what they are
    donor = rng.permutation(np.arange(n_cells // n_each) % n_donors).repeat(n_each)
    level = rng.normal(0.0, sd, (n_donors, 1, common.shape[1]))
    response = rng.normal(0.0, sd, (n_donors, *common.shape)) * (common != 0)
    return donor, level + response


def _responses(
    rng: np.random.Generator, n_conditions: int, n_genes: int, effect_size: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the common and the program-dependent response of each condition; none of the first."""
    common = np.zeros((n_conditions, n_genes))
    specific = np.zeros((n_conditions, _N_PROGRAMS, n_genes))
    for c in range(1, n_conditions):
        responds = rng.random(n_genes) < _SHARE_RESPONDING
        common[c] = rng.normal(0.5, 1.0, n_genes) * effect_size * responds
        specific[c] = rng.normal(0.0, 1.0, (_N_PROGRAMS, n_genes)) * effect_size * responds
    return common, specific


def _described(
    rng: np.random.Generator, shape: tuple[int, int], effect_size: float, share: float
) -> tuple[np.ndarray, ...]:
    """Return features of all conditions but the first, and responses of which a share depends on them."""
    n_conditions, n_genes = shape
    phi = rng.normal(size=(n_conditions, _N_FEATURES))
    waves = rng.normal(size=(_N_FEATURES, _N_WAVES)), rng.uniform(0, 2 * np.pi, _N_WAVES)
    shown = np.sqrt(2 / _N_WAVES) * np.cos(phi @ waves[0] + waves[1])
    responds = rng.random(n_genes) < _SHARE_RESPONDING
    found = []
    for programs, middle in (((), 0.5), ((_N_PROGRAMS,), 0.0)):  # common, and by program
        size = (n_conditions, *programs, n_genes)
        smooth = np.tensordot(shown, rng.normal(size=(_N_WAVES, *size[1:])), 1)
        mixed = np.sqrt(share) * smooth + np.sqrt(1.0 - share) * rng.normal(size=size)
        mixed = (middle + mixed) * effect_size * responds
        mixed[0] = 0.0
        found.append(mixed)
    return phi[1:], *found


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
    given = {str(drug): list(map(float, as_list(of))) for drug, of in (doses or _DOSES).items()}
    _check_doses(given)
    for name, number in {"n_cells": n_cells, "n_genes": n_genes, "n_labels": n_labels}.items():
        check_whole(name, number)
    if not half_dose > 0:
        raise InputError(f"half_dose is {half_dose}; it must be above 0.")
    check_number("depth", depth, 1.0)
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
