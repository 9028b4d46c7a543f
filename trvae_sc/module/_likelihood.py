"""Terms of the loss in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

Likelihood = Literal["nb", "zinb", "poisson", "normal", "mse"]
COUNT_LIKELIHOODS = ("nb", "zinb", "poisson")


def negative_binomial_nll(
    counts: Tensor, log_mean: Tensor, log_theta: Tensor, rows: Tensor | None = None
) -> Tensor:
    r"""Negative log-likelihood of counts, summed over genes: nats per cell, shape (..., n_cells).

    .. math:: \sum_g \theta \log(1 + \mu/\theta)
       - \sum_{g: k>0} \Big[k (\log\mu - \log(\theta + \mu))
       + \log\Gamma(k + \theta) - \log\Gamma(\theta) - \log\Gamma(k + 1)\Big]

    The second sum is zero where a count is zero; on a CPU it is computed only where it is not, with
    gradients written out: most single-cell counts are zero.

    Parameters
    ----------
    counts
        Counts k, shape (n_cells, n_genes).
    log_mean
        Log of the mean mu, shape (..., n_cells, n_genes).
    log_theta
        Log of the inverse dispersion theta, broadcastable to `log_mean`.
    rows
        Row of `log_theta` that each cell has, shape (n_cells,); in the order of the cells if None.
    """
    if not (counts.is_cuda or log_mean.dim() > 2 or torch.compiler.is_compiling()):
        if rows is None:
            log_theta = log_theta.expand(log_mean.shape)
            rows = torch.arange(len(counts), device=counts.device)
        return _SparseNLL.apply(counts, log_mean, log_theta, rows)
    log_theta = log_theta if rows is None else log_theta[rows]
    theta = log_theta.exp().expand(log_mean.shape)
    zeros = (theta * torch.log1p(log_mean.exp() / theta)).sum(-1)
    positive = (
        counts * (log_mean - torch.log(theta + log_mean.exp()))
        + torch.lgamma(counts + theta)
        - torch.lgamma(theta)
        - torch.lgamma(counts + 1.0)
    )
    return zeros - positive.sum(-1)


class _SparseNLL(torch.autograd.Function):
    r"""The likelihood for (n_cells, n_genes), where most counts are zero.

    With :math:`d = \log\mu - \log\theta`, :math:`r = \log(1 + e^d)` and :math:`q = 1 / (1 + e^{-d})` the
    term of a count is :math:`k (d - r)` and what depends on theta alone, and the derivatives by
    :math:`\log\mu` and :math:`\log\theta` are :math:`\theta q - k (1 - q)` and
    :math:`\theta (r - q) + k (1 - q) - \theta (\psi(k + \theta) - \psi(\theta))`.
    """

    @staticmethod
    def forward(
        ctx: Any, counts: Tensor, log_mean: Tensor, log_theta: Tensor, rows: Tensor
    ) -> Tensor:
        theta = log_theta.exp()
        difference = log_mean - log_theta.index_select(0, rows)
        log_ratio = functional.softplus(difference)
        where = _nonzero(counts)
        cell = torch.div(where, counts.shape[1], rounding_mode="floor")
        place = where + (rows - torch.arange(len(rows), device=rows.device))[cell] * counts.shape[1]
        k, d, r = (x.reshape(-1).index_select(0, where) for x in (counts, difference, log_ratio))
        nll = (theta.index_select(0, rows) * log_ratio).sum(1)
        positive = k * (d - r) + torch.lgamma(k + _at(theta, place)) - torch.lgamma(k + 1.0)
        positive = positive - _at(theta, place, torch.lgamma)
        ctx.save_for_backward(theta, rows, difference, log_ratio, where, cell, place, k)
        return nll.index_add(0, cell, positive.to(nll.dtype), alpha=-1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor, None]:
        theta, rows, difference, log_ratio, where, cell, place, k = ctx.saved_tensors
        q = difference.sigmoid()
        rest = k * (1.0 - q.reshape(-1).index_select(0, where))
        scaled = grad[:, None] * theta.index_select(0, rows)
        by_mean, by_theta = scaled * q, scaled * (log_ratio - q)
        of_cell = grad.index_select(0, cell)
        by_mean.view(-1).index_add_(0, where, of_cell * rest, alpha=-1)
        t = _at(theta, place)
        psi = t * (torch.digamma(k + t) - _at(theta, place, torch.digamma))
        by_theta.view(-1).index_add_(0, where, of_cell * (rest - psi))
        return None, by_mean, _summed(by_theta, rows, theta), None


def _nonzero(x: Tensor) -> Tensor:
    """Return where a matrix is not zero, as places in its rows one after the other."""
    if x.device.type != "cpu":
        return x.reshape(-1).nonzero().squeeze(1)
    return torch.from_numpy(np.flatnonzero(x.detach().numpy() != 0))  # a seventh of torch's time


def _at(table: Tensor, place: Tensor, function: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Return entries of a table, or a function of them, taken of whichever is smaller."""
    if function is not None and table.numel() < len(place):
        return function(table).reshape(-1).index_select(0, place)
    entries = table.reshape(-1).index_select(0, place)
    return entries if function is None else function(entries)


def normal_nll(
    values: Tensor, mean: Tensor, log_scale: Tensor, rows: Tensor | None = None
) -> Tensor:
    r"""Negative log-likelihood of values, summed over genes: nats per cell, shape (..., n_cells).

    .. math:: \sum_g \tfrac12 \Big(\frac{x - \mu}{\sigma}\Big)^2 + \log\sigma + \tfrac12 \log 2\pi

    Parameters
    ----------
    values
        Values x, shape (n_cells, n_genes).
    mean
        Mean mu, shape (..., n_cells, n_genes).
    log_scale
        Log of the standard deviation sigma, broadcastable to `mean`.
    rows
        Row of `log_scale` that each cell has, shape (n_cells,); in the order of the cells if None.
    """
    n_genes = values.shape[-1]
    log_scale = log_scale.expand(*log_scale.shape[:-1], n_genes)  # it counts for every gene
    constant = 0.5 * math.log(2.0 * math.pi) * n_genes
    return _NormalNLL.apply(values - mean, log_scale, rows) + constant


class _NormalNLL(torch.autograd.Function):
    """The likelihood but for its constant, with gradients written out: fewer passes over all genes."""

    @staticmethod
    def forward(ctx: Any, error: Tensor, log_scale: Tensor, rows: Tensor | None) -> Tensor:
        precision = torch.exp(-log_scale)
        scaled = error * _rows(precision, rows)
        ctx.save_for_backward(scaled, precision, rows)
        return 0.5 * scaled.square().sum(-1) + _rows(log_scale.sum(-1), rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        scaled, precision, rows = ctx.saved_tensors
        by_error = grad[..., None] * scaled
        by_scale = grad[..., None] - by_error * scaled
        own = _rows(precision, rows)
        by_scale = by_scale.sum_to_size(own.shape)
        if rows is not None:
            by_scale = _summed(by_scale, rows, precision)
        return by_error * own, by_scale, None


def _rows(table: Tensor, rows: Tensor | None) -> Tensor:
    """Return rows of a table; all of it where they are not named."""
    return table if rows is None else table.index_select(0, rows)


def widest(device: torch.device) -> torch.dtype:
    """Return the type that sums are taken in: float64, which Apple's GPUs do not have."""
    return torch.float32 if device.type == "mps" else torch.float64


def _summed(values: Tensor, rows: Tensor, table: Tensor) -> Tensor:
    """Return sums of the values of each row of a table, in many digits: most cancels."""
    dtype = widest(values.device)
    sums = torch.zeros(table.shape, dtype=dtype, device=table.device)
    return sums.index_add_(0, rows, values.to(dtype)).to(table.dtype)


def gaussian_kl(mean: Tensor, scale: Tensor) -> Tensor:
    r"""KL divergence to N(0, I): :math:`\frac12 \sum_d (\mu^2 + \sigma^2 - 1 - \log\sigma^2)`."""
    return 0.5 * (mean.square() + scale.square() - 1.0 - 2.0 * scale.log()).sum(-1)
