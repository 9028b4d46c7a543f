import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from trvae_sc.mmd import PAPER_BANDWIDTHS, median_distance, mmd, rbf_kernel, squared_distances

torch.set_num_threads(1)


def points(n=40, d=5, seed=0, shift=0.0):
    x = np.random.default_rng(seed).normal(size=(n, d)) + shift
    return torch.tensor(x)


def by_hand(x, y, kernel, *, unbiased):
    """MMD of two groups by loops over pairs."""
    xx = [
        kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if not (unbiased and i == j)
    ]
    yy = [
        kernel(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if not (unbiased and i == j)
    ]
    xy = [kernel(a, b) for a in x for b in y]
    return np.mean(xx) + np.mean(yy) - 2 * np.mean(xy)


def paper_kernel(a, b):
    d2 = float(((a - b) ** 2).sum())
    return sum(math.exp(-d2 / (2 * s)) for s in PAPER_BANDWIDTHS) / 19


def test_squared_distances_equal_scipy():
    x = points()
    assert np.allclose(squared_distances(x), cdist(x, x, "sqeuclidean"))


def test_paper_v_statistic_equals_loops_over_pairs():
    x, y = points(7), points(5, seed=1, shift=0.7)
    groups = torch.tensor([0] * 7 + [1] * 5)
    found = mmd(torch.cat([x, y]), groups, kernel="paper", unbiased=False)
    assert len(PAPER_BANDWIDTHS) == 19
    assert found.item() == pytest.approx(by_hand(x, y, paper_kernel, unbiased=False), rel=1e-9)


def test_u_statistic_equals_loops_over_pairs():
    x, y = points(7), points(5, seed=1, shift=0.7)
    both = torch.cat([x, y])
    m = np.median(cdist(both, both, "sqeuclidean")[~np.eye(12, dtype=bool)])

    def kernel(a, b):
        d2 = float(((a - b) ** 2).sum())
        return np.mean([math.exp(-d2 / (f * m)) for f in (0.25, 0.5, 1, 2, 4)])

    found = mmd(both, torch.tensor([0] * 7 + [1] * 5))
    # torch takes the lower of two middle values; they are next to each other here
    assert found.item() == pytest.approx(by_hand(x, y, kernel, unbiased=True), rel=0.02)
    assert rbf_kernel(squared_distances(both)).diagonal().numpy() == pytest.approx(1.0)


def test_three_groups_are_the_mean_over_pairs():
    x = points(30)
    groups = torch.arange(30) % 3
    kernels = rbf_kernel(squared_distances(x))
    pairs = []
    for s, t in ((0, 1), (0, 2), (1, 2)):
        a, b = groups == s, groups == t
        n = 10
        within = sum((kernels[g][:, g].sum() - n) / (n * (n - 1)) for g in (a, b))
        pairs.append(within - 2 * kernels[a][:, b].mean())
    assert mmd(x, groups).item() == pytest.approx(np.mean(pairs), rel=1e-9)
    assert mmd(x, groups, reduction="sum").item() == pytest.approx(np.sum(pairs), rel=1e-9)


def test_u_statistic_of_one_distribution_is_zero_on_average_and_v_statistic_is_not():
    u, v = [], []
    for seed in range(200):
        x = points(32, seed=seed)
        groups = torch.arange(32) % 2
        u.append(mmd(x, groups).item())
        v.append(mmd(x, groups, unbiased=False).item())
    standard_error = np.std(u) / math.sqrt(200)
    assert abs(np.mean(u)) < 3 * standard_error
    assert np.mean(v) > 10 * standard_error


def test_strata_compare_groups_inside_a_stratum_only():
    x = points(40)
    groups, strata = torch.arange(40) % 2, torch.arange(40) // 20
    each = [
        mmd_given_bandwidth(
            x[strata == s], groups[strata == s], median_distance(squared_distances(x))
        )
        for s in (0, 1)
    ]
    assert mmd(x, groups, strata=strata).item() == pytest.approx(np.mean(each), rel=1e-9)


def mmd_given_bandwidth(x, groups, m):
    d2 = squared_distances(x)
    kernels = torch.stack([torch.exp(-d2 / (f * m)) for f in (0.25, 0.5, 1, 2, 4)]).mean(0)
    a, b = groups == 0, groups == 1

    def within(g):
        n = g.sum()
        return (kernels[g][:, g].sum() - n) / (n * (n - 1))

    return (within(a) + within(b) - 2 * kernels[a][:, b].mean()).item()


def test_a_stratum_counts_by_how_well_its_groups_can_be_compared():
    """6 and 12 rows count 4, 15 and 5 count 3.75; 4 of one group, and 1 beside 9, count nothing.

    52 rows in two groups would count 13.
    """
    sizes = [(6, 12), (15, 5), (4, 0), (1, 9)]
    groups = torch.cat([torch.tensor([0] * a + [1] * b) for a, b in sizes])
    strata = torch.cat([torch.full((a + b,), 7 * i) for i, (a, b) in enumerate(sizes)])
    x = points(len(groups))
    m = median_distance(squared_distances(x))
    first, second = (mmd_given_bandwidth(x[strata == s], groups[strata == s], m) for s in (0, 7))
    expected = (4 * first + 3.75 * second) / 13
    assert mmd(x, groups, strata=strata).item() == pytest.approx(expected, rel=1e-9)


def test_the_mean_over_strata_of_several_groups_is_one_of_weights():
    """Three groups of 8 rows have three pairs of 4 in either stratum: 24, more than 48 / 4."""
    x, groups, strata = points(48), torch.arange(48) % 3, torch.arange(48) // 24
    m = median_distance(squared_distances(x))
    each = [
        mmd_given_bandwidth(x[chosen], groups[chosen] == s, m)
        for k in (0, 1)
        for s, t in ((0, 1), (0, 2), (1, 2))
        for chosen in [(strata == k) & ((groups == s) | (groups == t))]
    ]
    assert mmd(x, groups, strata=strata).item() == pytest.approx(np.mean(each), rel=1e-9)


def test_other_shares_of_the_strata_are_no_difference_inside_them():
    """Two strata far apart, of which one group has 3 : 1 and the other 1 : 3."""
    inside, pooled = [], []
    for seed in range(50):
        strata = torch.tensor([0] * 15 + [1] * 5 + [0] * 5 + [1] * 15)
        groups = torch.tensor([0] * 20 + [1] * 20)
        x = points(40, seed=seed) + 5.0 * strata[:, None]
        inside.append(mmd(x, groups, strata=strata).item())
        pooled.append(mmd(x, groups).item())
    assert abs(np.mean(inside)) < 3 * np.std(inside) / math.sqrt(50)
    assert min(pooled) > 0.1


def test_invariant_to_order_rotation_and_scale():
    x, groups = points(24), torch.arange(24) % 2
    value = mmd(x, groups).item()
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    rotation = torch.linalg.qr(points(5, 5, seed=3))[0]
    assert mmd(x[order], groups[order]).item() == pytest.approx(value, abs=1e-12)
    assert mmd(x @ rotation, groups).item() == pytest.approx(value, abs=1e-9)
    assert mmd(100 * x, groups).item() == pytest.approx(value, abs=1e-9)


def test_shrinking_the_points_earns_no_gradient():
    """The median is detached: with it in the graph, contracting the layer would pay."""
    x = points(24, shift=0.0).requires_grad_()
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    mmd(scale * x, torch.arange(24) % 2).backward()
    assert scale.grad.item() != 0  # with a fixed bandwidth, scale does matter ...
    assert median_distance(squared_distances(x)).requires_grad is False  # ... but not through it


@pytest.mark.parametrize("groups", [[0, 0, 0, 0], [0, 1, 1, 1], [2, 2, 2, 2]])
def test_no_pair_of_groups_gives_zero_and_no_gradient(groups):
    for strata in (None, torch.tensor([0, 1, 1, 2])):
        x = points(4).float().requires_grad_()
        value = mmd(x, torch.tensor(groups), n_groups=3, strata=strata)
        (100 * value).backward()
        assert value.item() == 0.0
        assert (x.grad == 0).all()


def test_equal_points_and_one_point():
    same = torch.ones(6, 3, requires_grad=True)
    value = mmd(same, torch.arange(6) % 2)
    value.backward()
    assert value.item() == pytest.approx(0.0, abs=1e-6)
    assert torch.isfinite(same.grad).all()
    assert mmd(torch.ones(1, 3), torch.zeros(1, dtype=torch.long)).item() == 0.0


@pytest.mark.parametrize("kernel", ["median", "paper"])
@pytest.mark.parametrize("unbiased", [True, False])
def test_gradient_equals_the_chain_rule_through_the_kernel(kernel, unbiased):
    """With a detached median, as in the kernel itself, and repeated points."""
    x = torch.cat([points(20), points(9, seed=1, shift=0.5), points(3)])
    codes = torch.tensor([0, 1] * 10 + [2] * 9 + [4] * 2 + [3])
    found, expected = x.clone().requires_grad_(True), x.clone().requires_grad_(True)
    value = mmd(found, codes, kernel=kernel, unbiased=unbiased, reduction="sum")
    kernels = rbf_kernel(squared_distances(expected), kernel)
    groups = [torch.nonzero(codes == c).ravel() for c in range(5)]
    groups = [g for g in groups if len(g) >= 1 + unbiased]
    total = 0.0

    def within(g):
        sums = kernels[g][:, g].sum()
        return (sums - len(g)) / (len(g) * (len(g) - 1)) if unbiased else sums / len(g) ** 2

    for i, s in enumerate(groups):
        for t in groups[i + 1 :]:
            total = total + within(s) + within(t) - 2 * kernels[s][:, t].mean()
    (3 * value).backward()
    (3 * total).backward()
    assert value.item() == pytest.approx(total.item(), rel=1e-9)
    assert torch.allclose(found.grad, expected.grad, rtol=1e-8, atol=1e-9)
    assert found.grad.abs().max() > 1e-3


def test_half_precision_takes_no_digits_from_the_statistic():
    x = torch.cat([points(30), points(30, seed=1, shift=0.2)]).float()
    codes = torch.tensor([0] * 30 + [1] * 30)
    with torch.autocast("cpu", torch.bfloat16):
        found = mmd(x, codes)
    assert found.dtype == torch.float32
    assert found.item() == mmd(x, codes).item()
