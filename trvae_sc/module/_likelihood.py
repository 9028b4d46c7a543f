"""Terms of the loss in closed form."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

Likelihood = Literal["nb", "zinb", "poisson", "normal", "mse"]
COUNT_LIKELIHOODS = ("nb", "zinb", "poisson")


def negative_binomial_nll(counts: Tensor, log_mean: Tensor, log_theta: Tensor) -> Tensor:
    r"""Negative log-likelihood of counts, summed over genes.

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

    Returns
    -------
    Nats per cell, shape (..., n_cells).
    """
    if not (counts.is_cuda or log_mean.dim() > 2 or torch.compiler.is_compiling()):
        return _SparseNLL.apply(counts, log_mean, log_theta)
    theta = log_theta.exp().expand(log_mean.shape)
    zeros = (theta * torch.log1p(log_mean.exp() / theta)).sum(-1)
    return zeros - _positive_part(counts, log_mean, theta).sum(-1)


def _positive_part(counts: Tensor, log_mean: Tensor, theta: Tensor) -> Tensor:
    """Return the terms of the NB log-likelihood that vanish at count zero."""
    return (
        counts * (log_mean - torch.log(theta + log_mean.exp()))
        + torch.lgamma(counts + theta)
        - torch.lgamma(theta)
        - torch.lgamma(counts + 1.0)
    )


class _SparseNLL(torch.autograd.Function):
    r"""The likelihood for (n_cells, n_genes), where most counts are zero.

    With :math:`q = \mu / (\theta + \mu)` and :math:`r = \log(1 + \mu/\theta)` the derivatives
    by :math:`\log\mu` and :math:`\log\theta` are :math:`\theta q - k (1 - q)` and
    :math:`\theta (r - q) + k (1 - q) - \theta (\psi(k + \theta) - \psi(\theta))`.
    """

    @staticmethod
    def forward(ctx: Any, counts: Tensor, log_mean: Tensor, log_theta: Tensor) -> Tensor:
        theta, mean = log_theta.exp(), log_mean.exp()
        log_ratio = torch.log1p(mean / theta)
        where = counts.reshape(-1).nonzero().squeeze(1)
        k, m = counts.reshape(-1)[where], log_mean.reshape(-1)[where]
        t = theta.expand(mean.shape).reshape(-1)[where]
        ctx.save_for_backward(theta, mean, log_ratio, where, k, t)
        rows = torch.div(where, mean.shape[1], rounding_mode="floor")
        nll = (theta * log_ratio).sum(1)
        return nll.index_add(0, rows, _positive_part(k, m, t).to(nll.dtype), alpha=-1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor]:
        theta, mean, log_ratio, where, k, t = ctx.saved_tensors
        q = mean / (mean + theta)
        rest = k * (1.0 - q.reshape(-1)[where])
        scaled = grad[:, None] * theta
        by_mean, by_theta = scaled * q, scaled * (log_ratio - q)
        of_row = grad[torch.div(where, mean.shape[1], rounding_mode="floor")]
        by_mean.view(-1).index_add_(0, where, of_row * rest, alpha=-1)
        psi = t * (torch.digamma(k + t) - torch.digamma(t))
        by_theta.view(-1).index_add_(0, where, of_row * (rest - psi))
        return None, by_mean, by_theta.sum_to_size(theta.shape)


def normal_nll(values: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    r"""Negative log-likelihood of values, summed over genes.

    .. math:: \sum_g \tfrac12 \Big(\frac{x - \mu}{\sigma}\Big)^2 + \log\sigma + \tfrac12 \log 2\pi

    Parameters
    ----------
    values
        Values x, shape (n_cells, n_genes).
    mean
        Mean mu, shape (..., n_cells, n_genes).
    log_scale
        Log of the standard deviation sigma, broadcastable to `mean`.

    Returns
    -------
    Nats per cell, shape (..., n_cells).
    """
    constant = 0.5 * math.log(2.0 * math.pi) * values.shape[-1]
    return _NormalNLL.apply(values - mean, log_scale) + constant


class _NormalNLL(torch.autograd.Function):
    """The likelihood but for its constant, with gradients written out: fewer passes over all genes."""

    @staticmethod
    def forward(ctx: Any, error: Tensor, log_scale: Tensor) -> Tensor:
        precision = torch.exp(-log_scale)
        scaled = error * precision
        ctx.save_for_backward(scaled, precision)
        return 0.5 * scaled.square().sum(-1) + log_scale.sum(-1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        scaled, precision = ctx.saved_tensors
        by_error = grad[..., None] * scaled
        by_scale = grad[..., None] - by_error * scaled
        return by_error * precision, by_scale.sum_to_size(precision.shape)


def gaussian_kl(mean: Tensor, scale: Tensor) -> Tensor:
    r"""KL divergence to N(0, I): :math:`\frac12 \sum_d (\mu^2 + \sigma^2 - 1 - \log\sigma^2)`."""
    return 0.5 * (mean.square() + scale.square() - 1.0 - 2.0 * scale.log()).sum(-1)
