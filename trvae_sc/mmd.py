"""Maximum mean discrepancy between the groups of one minibatch.

Written for gradients: distances are computed once for the whole batch, and every pair of groups is
read off one matrix of within- and between-group kernel sums, so the cost does not grow with the
number of groups.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

Kernel = Literal["median", "paper"]

#: Multiples of the median squared distance used as bandwidths by ``kernel="median"``.
MEDIAN_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
#: Bandwidths (sigma) of the 19 kernels exp(-d2 / (2 sigma)) of the published trVAE.
PAPER_BANDWIDTHS = (
    *(1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
    *(1.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 35.0, 100.0),
    *(1e3, 1e4, 1e5, 1e6),
)
_MEDIAN_ROWS = 256  # rows that estimate the median distance; more change it by less than 1 %


def squared_distances(x: Tensor) -> Tensor:
    """Return the squared Euclidean distances between the rows of `x`, shape (n, n)."""
    norm = x.square().sum(1)
    d2 = (norm[:, None] + norm[None, :] - 2.0 * x @ x.T).clamp_min(0.0)
    same = torch.eye(len(x), dtype=torch.bool, device=x.device)
    return d2.masked_fill(same, 0.0)  # rounding there is not small beside the smallest bandwidth


def median_distance(d2: Tensor) -> Tensor:
    """Return the median off-diagonal entry of `d2`, detached: no gradient rewards shrinking it."""
    d2 = d2.detach()[:_MEDIAN_ROWS, :_MEDIAN_ROWS]
    n = d2.shape[0]
    # without its first entry, every n + 1 entries end in one of the diagonal
    off_diagonal = d2.reshape(-1)[1:].view(n - 1, n + 1)[:, :-1]
    return off_diagonal.median().clamp_min(torch.finfo(d2.dtype).tiny ** 0.5)


def rbf_kernel(d2: Tensor, kernel: Kernel = "median") -> Tensor:
    r"""Return the mean of Gaussian kernels of squared distances, values in (0, 1].

    ``median``: :math:`k = \frac15 \sum_b \exp(-d^2 / (b m))` with :math:`m` the detached median
    squared distance and :math:`b \in \{1/4, 1/2, 1, 2, 4\}`.
    ``paper``: :math:`k = \frac1{19} \sum_\sigma \exp(-d^2 / (2\sigma))` with the 19 fixed bandwidths of
    Lotfollahi et al. 2020 (doi:10.1093/bioinformatics/btaa800).

    Parameters
    ----------
    d2
        Squared distances, any shape.
    kernel
        Which mixture to use.

    Returns
    -------
    Kernel values, the shape of `d2`.
    """
    if kernel == "paper":
        widths = [2.0 * sigma for sigma in PAPER_BANDWIDTHS]
    else:
        median = median_distance(d2)
        widths = [factor * median for factor in MEDIAN_FACTORS]
    total = torch.zeros_like(d2)
    for width in widths:
        total = total + torch.exp(-d2 / width)
    return total / len(widths)


class _KernelSums(torch.autograd.Function):
    r"""Sums of the kernel over pairs of groups, :math:`S = M^T K M`, with M the membership of rows.

    With :math:`G = \partial L / \partial S` and :math:`C = M (G + G^T) M^T \circ k'(d^2)` the gradient by
    x is :math:`2 (\mathrm{diag}(C 1) - C)\, x`: one matrix product, and nothing of size n x n is kept
    but k'. (By the chain rule step by step it takes some twenty passes over the matrix.)
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, member: Tensor, kernel: Kernel) -> Tensor:
        d2 = squared_distances(x)
        kernels, slope = _kernel_and_slope(d2, kernel)
        # a row has no distance to itself; with the smallest bandwidth its slope would drown the others
        ctx.save_for_backward(x, member, slope.fill_diagonal_(0.0))
        return member.T @ kernels @ member

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, member, slope = ctx.saved_tensors
        weight = (member @ (grad + grad.T) @ member.T).mul_(slope)
        return 2.0 * (weight.sum(1, keepdim=True) * x - weight @ x), None, None


def _kernel_and_slope(d2: Tensor, kernel: Kernel) -> tuple[Tensor, Tensor]:
    """Return :func:`rbf_kernel` and its derivative by the squared distances; `d2` is overwritten."""
    if kernel == "paper":
        total, slope = torch.zeros_like(d2), torch.zeros_like(d2)
        for sigma in PAPER_BANDWIDTHS:
            k = torch.exp(d2 / (-2.0 * sigma))
            total.add_(k)
            slope.add_(k, alpha=-0.5 / sigma)
        return total.div_(len(PAPER_BANDWIDTHS)), slope.div_(len(PAPER_BANDWIDTHS))
    median = median_distance(d2)
    k = d2.div_(-MEDIAN_FACTORS[-1] * median).exp_()
    total, slope = k.clone(), k / MEDIAN_FACTORS[-1]
    for factor in MEDIAN_FACTORS[-2::-1]:  # each kernel is the square of the one before
        k.square_()
        total.add_(k)
        slope.add_(k, alpha=1.0 / factor)
    return total.div_(len(MEDIAN_FACTORS)), slope.div_(-len(MEDIAN_FACTORS) * median)


def mmd(
    x: Tensor,
    groups: Tensor,
    *,
    n_groups: int | None = None,
    strata: Tensor | None = None,
    kernel: Kernel = "median",
    unbiased: bool = True,
    reduction: Literal["mean", "sum"] = "mean",
) -> Tensor:
    r"""Squared maximum mean discrepancy, averaged over the pairs of groups present in `x`.

    For groups :math:`s, t` with :math:`n_s, n_t` rows and kernel matrix :math:`K`

    .. math:: \mathrm{MMD}^2_{st} = A_s + A_t - \frac{2}{n_s n_t} \sum_{i \in s, j \in t} K_{ij}

    with :math:`A_s = \sum_{i \ne j \in s} K_{ij} / (n_s (n_s - 1))` (U-statistic, unbiased, may be
    negative; Gretton et al. 2012) or :math:`A_s = \sum_{i, j \in s} K_{ij} / n_s^2` (V-statistic, as
    published for trVAE; biased upwards by about 2/n).

    Parameters
    ----------
    x
        Points, shape (n, n_features).
    groups
        Group code of each row, shape (n,), in 0 .. n_groups - 1.
    n_groups
        Number of codes. Give it on a GPU, where reading it off `groups` would wait for the device.
    strata
        Optional second code of each row (cell type). Groups are then compared inside each stratum, so
        that it does not matter which strata a group has rows of; a pair of groups in a stratum counts
        by :math:`w = n_s n_t / (n_s + n_t)`, the inverse of the variance of a difference of two means.
        Their mean is :math:`\sum w\,\mathrm{MMD}^2 / \max(\sum w, n / 4)`: where the weights add up to
        less than those of two groups of n / 2 rows, it is smaller, since it is mostly noise.
    kernel
        See :func:`rbf_kernel`.
    unbiased
        U-statistic (groups of at least two rows) or V-statistic (at least one).
    reduction
        Mean (default) or sum over pairs (with `strata` weighted); the published loss sums.

    Returns
    -------
    Scalar; 0 with a zero gradient where no pair of groups is present.
    """
    if x.shape[0] < 2:
        return x.sum() * 0.0
    n_groups = int(groups.max()) + 1 if n_groups is None else n_groups
    if strata is not None:  # compact codes of (stratum, group), at most n of them
        joint, groups = torch.unique(strata * n_groups + groups, return_inverse=True)
        strata, n_groups = joint // n_groups, joint.shape[0]
    with torch.autocast(x.device.type, enabled=False):  # differences of sums: all digits are needed
        x = x if x.dtype == torch.float64 else x.float()
        member = torch.nn.functional.one_hot(groups, n_groups).to(x.dtype)
        sums = _KernelSums.apply(x, member, kernel)
    n = member.sum(0)
    if unbiased:  # the diagonal of K is exactly 1, for that of d2 is exactly 0
        within = (sums.diagonal() - n) / (n * (n - 1)).clamp_min(1)
        usable = n >= 2
    else:
        within = sums.diagonal() / n.square().clamp_min(1)
        usable = n >= 1
    between = sums / (n[:, None] * n[None, :]).clamp_min(1)
    pairs = torch.triu(usable[:, None] & usable[None, :], diagonal=1).to(n.dtype)
    if strata is not None:
        pairs = pairs * (strata[:, None] == strata) * (n[:, None] * n) / (n[:, None] + n)
    total = (pairs * (within[:, None] + within - 2.0 * between)).sum()
    least = 1.0 if strata is None else len(x) / 4.0
    return total if reduction == "sum" else total / pairs.sum().clamp_min(least)
