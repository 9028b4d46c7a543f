"""Walks in the latent space of a trained model, decoded."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.special import ndtri

from trvae_sc.arguments import check_number, check_whole
from trvae_sc.checks import without_codes
from trvae_sc.errors import InputError
from trvae_sc.family._cells import Cells, check_model, decoded_cells, decoding_condition, rows_of
from trvae_sc.model import TRVAE


def lattice(n: int = 15, *, coverage: float = 0.95) -> np.ndarray:
    r"""Return codes of two dimensions on a square lattice, evenly spaced in the shares of the prior.

    .. math:: z_{ij} = \big(\Phi^{-1}(u_i), \Phi^{-1}(u_j)\big), \qquad u_i \text{ from } \tfrac{1-c}2
       \text{ to } \tfrac{1+c}2

    Kingma and Welling 2014, arXiv:1312.6114, appendix A.

    Parameters
    ----------
    n
        Codes along each dimension.
    coverage
        Share c of the prior of each dimension that is covered, below 1.

    Returns
    -------
    Shape (n * n, 2).

    Raises
    ------
    InputError
        Fewer than two codes along a dimension, or a share that is none.

    Examples
    --------
    >>> vae = trvae_sc.TRVAE(train, preset="vae", n_latent=2)
    >>> vae.train()
    >>> trvae_sc.pl.manifold(vae.decode(lattice(15)))
    """
    check_whole("n", n, 2)
    check_number("coverage", coverage, 0.0, 1.0, closed=False)
    z = ndtri(0.5 + coverage * np.linspace(-0.5, 0.5, n))
    return np.stack(np.meshgrid(z, z, indexing="ij"), -1).reshape(-1, 2)


def interpolate(
    model: TRVAE,
    a: Cells,
    b: Cells,
    *,
    steps: int = 11,
    condition: Any = None,
    adata: AnnData | None = None,
) -> AnnData:
    r"""Return what lies between two cells or groups of cells: the straight line of codes, decoded.

    .. math:: z_f = (1 - f)\,\bar z_a + f\,\bar z_b, \qquad f = 0, \dots, 1

    with the mean codes of a and b (posterior means).

    Parameters
    ----------
    model
        Trained model, any preset.
    a, b
        Start and end: a row number, row numbers, a mask over cells, or a group such as
        ``{"cell_type": "NK"}``.
    steps
        Number of points, start and end included.
    condition
        Condition to decode with. If None, that of all the cells of a and b, which must be one.
    adata
        Cells that a and b are among; the model's own if None.

    Returns
    -------
    AnnData with a row per point. ``X``: expected values, as of ``predict(output="mean")``;
    ``obs["fraction"]``: f; ``obsm["X_trvae"]``: z. Batch and covariates are those of the first of a.

    Raises
    ------
    NotTrainedError, InputError
        The model is not trained; no such cells, fewer than two steps, an unknown condition, or several
        and no choice.

    Examples
    --------
    >>> path = interpolate(model, {"cell_type": "B"}, {"cell_type": "NK"}, condition="control")
    >>> trvae_sc.pl.interpolation(path, source="B", target="NK")
    """
    check_whole("steps", steps)
    if steps < 2:
        raise InputError(f"steps is {steps}; start and end are 2.")
    check_model(model)
    adata = model._validate_anndata(adata)
    start, end = rows_of(adata, a), rows_of(adata, b)
    condition = decoding_condition(model, adata, np.concatenate([start, end]), condition)
    ends = [model.get_latent_representation(adata, indices=rows).mean(0) for rows in (start, end)]
    fraction = np.linspace(0.0, 1.0, steps)
    z = (1.0 - fraction[:, None]) * ends[0] + fraction[:, None] * ends[1]
    obs = pd.DataFrame({"fraction": fraction}, index=[f"step_{i}" for i in range(steps)])
    rows = np.full(steps, start[0])
    return decoded_cells(model, adata, rows, z, condition, obs, "interpolate")


def traverse(
    model: TRVAE,
    dimension: int,
    limits: tuple[float, float] | None = None,
    *,
    at: Cells | None = None,
    steps: int = 9,
    condition: Any = None,
    adata: AnnData | None = None,
) -> AnnData:
    r"""Return cells that differ in one latent dimension, and which genes respond to it.

    The other dimensions stay at the mean code of a group. With decoded values :math:`x_g(u)` at
    :math:`z_d = u`, a gene's slope is that of the least-squares line,
    :math:`\sum_u (u - \bar u)\,x_g(u) / \sum_u (u - \bar u)^2`, and its range is
    :math:`\max_u x_g - \min_u x_g`.

    Parameters
    ----------
    model, condition, adata
        As in :func:`interpolate`; a `condition` of None is that of the cells of `at`.
    dimension
        Latent dimension, from 0.
    limits
        Lowest and highest value of it; the 1 % and 99 % quantiles over all cells of `adata` if None.
    at
        Cells whose mean code is the place to start from, given as in :func:`interpolate`; all if None.
    steps
        Number of values.

    Returns
    -------
    AnnData with a row per value. ``X``: expected values, on the scale of :func:`interpolate`;
    ``obs["value"]``: :math:`z_d`; ``var["slope"]``: change per unit of it; ``var["range"]``;
    ``obsm["X_trvae"]``: z. Dimensions have no order, and seeds permute them.

    Raises
    ------
    NotTrainedError, InputError
        As :func:`interpolate`; also no such dimension, or one that collapsed (not in
        ``model.active_dims``), or limits that do not rise.
    """
    check_model(model)
    n_latent, active = model.module.z_mean.out_features, model.active_dims
    check_whole("dimension", dimension, 0)
    if dimension >= n_latent:
        raise InputError(f"dimension is {dimension}; the model has 0 to {n_latent - 1}.")
    if dimension not in active:
        raise InputError(
            f"Dimension {dimension} collapsed: it says nothing of a cell. model.active_dims is {active}"
            + ("." if active else "; train with a lower kl_weight.")
        )
    check_whole("steps", steps, 2)
    if limits is not None and not _are_limits(limits):
        raise InputError(f"limits are {limits!r}; give a lowest and a higher value.")
    adata = model._validate_anndata(adata)
    rows = np.arange(adata.n_obs) if at is None else rows_of(adata, at)
    condition = decoding_condition(model, adata, rows, condition)
    codes = model.get_latent_representation(adata)
    if limits is None:
        limits = tuple(np.quantile(codes[:, dimension], (0.01, 0.99)))
    value = np.linspace(*limits, steps)
    z = np.tile(codes[rows].mean(0), (steps, 1))
    z[:, dimension] = value
    obs = pd.DataFrame({"value": value}, index=[f"step_{i}" for i in range(steps)])
    rows = np.full(steps, rows[0])
    result = decoded_cells(model, adata, rows, z, condition, obs, "traverse")
    x, centred = result.X, value - value.mean()
    result.var = result.var.assign(
        slope=centred @ x.astype(np.float64) / (centred @ centred), range=np.ptp(x, axis=0)
    )
    result.uns["trvae_sc"]["dimension"] = int(dimension)
    return result


def _are_limits(limits: Any) -> bool:
    """Return whether something is two finite numbers that rise."""
    is_pair = isinstance(limits, Sequence | np.ndarray) and len(limits) == 2
    if not is_pair or not all(isinstance(end, Real) for end in limits):
        return False
    return bool(np.isfinite(limits).all() and limits[0] < limits[1])


def shift_attribute(
    model: TRVAE,
    adata: AnnData | None,
    attribute: Cells,
    *,
    by: Literal["difference", "mean"] = "difference",
    alpha: float = 1.0,
    condition: Any = None,
) -> AnnData:
    r"""Return cells that are given a characteristic: their codes moved by what it changes.

    .. math:: \text{difference:}\quad z' = z + \alpha\,(\bar z_{\mathrm{with}} - \bar z_{\mathrm{without}}),
       \qquad \text{mean:}\quad z' = z + \alpha\,(\bar z_{\mathrm{with}} - z)

    with the mean codes of the training cells that have the characteristic and of all others (Larsen et
    al. 2016, arXiv:1512.09300, section 4.2.1). The difference leaves what else a code holds.

    Parameters
    ----------
    model
        Trained model, any preset, with its training cells.
    adata
        Cells to move, with the genes of the model; the model's own if None. Not changed.
    attribute
        Training cells that have the characteristic, given as in :func:`interpolate`.
    by
        ``"difference"`` or ``"mean"``.
    alpha
        Share of the way: 0 decodes each cell's own code; beyond 1 exaggerates, below 0 moves away.
    condition
        Condition to decode with; each cell's own if None.

    Returns
    -------
    AnnData with a row per cell of `adata` and its ``obs``. ``X``: expected values, on the scale of
    :func:`interpolate`, without the cell's noise at any alpha. ``obsm["X_trvae"]``: z'.

    Raises
    ------
    NotTrainedError, InputError
        The model is not trained; no training cell has the characteristic, or all have (by difference);
        alpha is not finite, `by` or the condition is unknown.
    """
    check_model(model)
    if not isinstance(alpha, Real) or not np.isfinite(alpha):
        raise InputError(f"alpha is {alpha!r}; give a finite number, 0 (stay) to 1 (arrive).")
    if by not in ("difference", "mean"):
        raise InputError(f"by is {by!r}; choose 'difference' or 'mean'.")
    known = model._validate_anndata(None)
    having = rows_of(known, attribute)
    without = np.delete(np.arange(known.n_obs), having)
    if by == "difference" and not len(without):
        raise InputError(
            "Every training cell has the characteristic, so there is no difference. Use by='mean'."
        )
    adata = model._validate_anndata(adata)
    if condition is not None:
        condition = decoding_condition(model, adata, np.arange(0), condition)
    mean = model.get_latent_representation(known, indices=having).mean(0)
    z = model.get_latent_representation(adata)
    if by == "difference":
        start = model.get_latent_representation(known, indices=without).mean(0)
    else:
        start = z
    z = z + np.float32(alpha) * (mean - start)
    obs, rows = without_codes(adata.obs), np.arange(adata.n_obs)
    result = decoded_cells(model, adata, rows, z, condition, obs, "shift_attribute")
    result.uns["trvae_sc"] |= {
        "by": by,
        "alpha": float(alpha),
        "n_cells_with_attribute": len(having),
    }
    return result
