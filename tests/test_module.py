import math

import numpy as np
import pytest
import torch
from scipy import special, stats
from scvi import REGISTRY_KEYS as KEYS

from trvae_sc.mmd import PAPER_BANDWIDTHS, mmd
from trvae_sc.model import PRESETS
from trvae_sc.module import (
    Statistics,
    TRVAEModule,
    gaussian_kl,
    ll_at_mean,
    negative_binomial_nll,
    normal_nll,
    widest,
)
from trvae_sc.module import _terms as terms
from trvae_sc.module._layers import Context

torch.set_num_threads(1)


def module(n_genes=12, n_conditions=2, n_labels=3, seed=0, **kwargs):
    torch.manual_seed(seed)
    made = TRVAEModule(
        n_genes, torch.eye(n_conditions), n_labels=n_labels, **{"dropout_rate": 0.0, **kwargs}
    )
    return made.eval()


def minibatch(n=30, n_genes=12, n_conditions=2, n_labels=3, seed=0):
    rng = np.random.default_rng(seed)
    column = {
        KEYS.X_KEY: rng.poisson(2.0, (n, n_genes)).astype(np.float32),
        "condition": (np.arange(n) % n_conditions)[:, None],
        KEYS.LABELS_KEY: (np.arange(n) // n_conditions % n_labels)[:, None],
        KEYS.BATCH_KEY: np.zeros((n, 1), dtype=int),
    }
    return {key: torch.as_tensor(value) for key, value in column.items()}


def run(made, tensors, kl_weight=1.0):
    torch.manual_seed(1)
    return made(tensors, loss_kwargs={"kl_weight": kl_weight})


# -- closed forms ---------------------------------------------------------------------------------


@pytest.mark.parametrize("one_row", [True, False])
def test_negative_binomial_nll_equals_scipy(one_row):
    rng = np.random.default_rng(0)
    counts = rng.poisson(1.0, (6, 9))
    mean = rng.gamma(2.0, 1.0, (6, 9))
    theta = rng.gamma(3.0, 1.0, (1, 9)) if one_row else rng.gamma(3.0, 1.0, (6, 9))
    expected = -stats.nbinom.logpmf(counts, theta, theta / (theta + mean)).sum(1)
    tensors = [torch.tensor(a, dtype=torch.float64) for a in (counts, np.log(mean), np.log(theta))]
    assert negative_binomial_nll(*tensors).numpy() == pytest.approx(expected, rel=1e-9)
    stacked = negative_binomial_nll(tensors[0], tensors[1].expand(2, 6, 9), tensors[2])
    assert stacked.numpy() == pytest.approx(np.stack([expected, expected]), rel=1e-9)


@pytest.mark.parametrize("shape", [(1, 9), (6, 9), (6, 1), ()])
def test_normal_nll_equals_scipy_and_its_gradient_finite_differences(shape):
    rng = np.random.default_rng(0)
    x, mean = rng.normal(size=(2, 6, 9))
    log_scale = rng.normal(size=shape)
    expected = -stats.norm.logpdf(x, mean, np.exp(log_scale)).sum(1)
    tensors = [torch.tensor(a, dtype=torch.float64) for a in (x, mean, log_scale)]
    assert normal_nll(*tensors).numpy() == pytest.approx(expected, rel=1e-12)
    stacked = normal_nll(tensors[0], tensors[1].expand(2, 6, 9), tensors[2])
    assert stacked.numpy() == pytest.approx(np.stack([expected, expected]), rel=1e-12)
    free = [tensor.requires_grad_() for tensor in tensors[1:]]
    assert torch.autograd.gradcheck(lambda m, s: normal_nll(tensors[0].detach(), m, s), free)


@pytest.mark.parametrize("dispersion", ["gene", "gene-condition"])
def test_reconstruction_of_normal_data_is_the_density_it_generates(dispersion):
    made, tensors = module(gene_likelihood="normal", dispersion=dispersion), minibatch()
    with_profiles(made, tensors)
    made.gene_mean.uniform_(0.0, 3.0), made.gene_scale.uniform_(0.5, 2.0)
    torch.nn.init.normal_(made.log_dispersion)
    _, generated, loss = run(made, tensors)  # in evaluation mode, with the distribution
    expected = -generated["px"].log_prob(tensors[KEYS.X_KEY]).sum(1)
    assert loss.reconstruction_loss["reconstruction_loss"].tolist() == pytest.approx(
        expected.tolist(), rel=1e-5
    )


def test_negative_binomial_nll_gradient_equals_finite_differences():
    counts = torch.tensor([[0.0, 1.0, 5.0]], dtype=torch.float64)
    log_mean = torch.tensor([[0.3, -1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    log_theta = torch.tensor([[0.1, 1.0, -0.5]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda m, t: negative_binomial_nll(counts, m, t), (log_mean, log_theta)
    )


def test_kl_equals_torch_distributions_and_is_zero_at_the_prior():
    mean, scale = torch.randn(5, 4), torch.rand(5, 4) + 0.1
    q = torch.distributions.Normal(mean, scale)
    p = torch.distributions.Normal(torch.zeros(5, 4), torch.ones(5, 4))
    expected = torch.distributions.kl_divergence(q, p).sum(1)
    assert torch.allclose(gaussian_kl(mean, scale), expected, atol=1e-5)
    assert gaussian_kl(torch.zeros(2, 4), torch.ones(2, 4)).abs().max() == 0


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson", "normal"])
def test_reconstruction_loss_is_the_negative_log_probability_of_the_distribution(likelihood):
    made, tensors = module(gene_likelihood=likelihood), minibatch()
    _, generated, loss = run(made, tensors)
    expected = -generated["px"].log_prob(tensors[KEYS.X_KEY]).sum(1)
    found = loss.reconstruction_loss["reconstruction_loss"]
    assert found.shape == (30,)
    assert torch.allclose(found, expected, rtol=1e-4)


# -- the published loss -----------------------------------------------------------------------------


def test_paper_preset_is_the_published_architecture():
    made = module(n_genes=40, **PRESETS["paper"]["model"])
    shapes = [tuple(m.weight.shape) for m in made.modules() if isinstance(m, torch.nn.Linear)]
    # encoder 40+2 -> 800 -> 800 -> 128 -> mean, log variance (20); decoder 20+2 -> 128 -> 800 -> 800
    encoder = [(800, 40), (800, 800), (128, 800), (20, 128), (20, 128)]
    assert shapes == [*encoder, (128, 20), (800, 128), (800, 800), (40, 800)]
    assert made.encoder_in.condition.shape == (2, 800)
    assert made.decoder_in.condition.shape == (2, 128)
    norms = [m for m in made.modules() if isinstance(m, torch.nn.BatchNorm1d)]
    assert [m.num_features for m in norms] == [800, 800, 128, 128, 800, 800]
    slopes = {m.negative_slope for m in made.modules() if isinstance(m, torch.nn.LeakyReLU)}
    assert slopes == {0.3}
    hidden = [m for m in made.modules() if isinstance(m, torch.nn.Linear)]
    assert [m.bias is None for m in [*hidden[:3], *hidden[5:8]]] == [True] * 6


def test_paper_preset_loss_equals_the_published_formulas():
    """eta/2 |x - xhat|^2 + alpha/2 mean_d(s2 + m2 - 1 - log s2) + beta V-statistic of 19 kernels."""
    made = module(**{**PRESETS["paper"]["model"], "n_hidden": (16, 16, 8), "dropout_rate": 0.0})
    tensors = minibatch()
    inferred, generated, loss = run(made, tensors, kl_weight=made.kl_weight)
    x, x_hat = tensors[KEYS.X_KEY].numpy(), generated["profile"].detach().numpy()
    assert x_hat.min() == 0.0  # ReLU output
    reconstruction = 0.5 * ((x - x_hat) ** 2).sum(1)
    m, s2 = inferred["qz"].loc.detach().numpy(), inferred["qz"].scale.detach().numpy() ** 2
    kl = 0.5 * (s2 + m**2 - 1 - np.log(s2)).mean()
    y, c = generated["y"].detach().numpy().astype(float), tensors["condition"].numpy().ravel()
    d2 = ((y[:, None] - y[None]) ** 2).sum(2)
    k = np.mean([np.exp(-d2 / (2 * s)) for s in PAPER_BANDWIDTHS], axis=0)
    a, b = c == 0, c == 1
    v = k[a][:, a].mean() + k[b][:, b].mean() - 2 * k[a][:, b].mean()
    metrics = loss.extra_metrics
    assert metrics["reconstruction_weighted"].item() == pytest.approx(
        100 * reconstruction.mean(), 1e-5
    )
    assert metrics["kl_weighted"].item() == pytest.approx(1e-6 * kl, rel=1e-4)
    assert metrics["mmd_weighted"].item() == pytest.approx(500 * v, rel=1e-3)
    assert metrics["transfer_weighted"].item() == 0.0
    total = 100 * reconstruction.mean() + 1e-6 * kl + 500 * v
    assert loss.loss.item() == pytest.approx(total, rel=1e-5)


def test_a_network_has_no_numbers_that_apple_gpus_lack():
    """Training with accelerator="mps" ended at once: float64 cannot be moved there."""
    made = module()
    with_profiles(made, minibatch(12))
    assert {v.dtype for v in made.state_dict().values()} == {torch.float32, torch.int64, torch.bool}
    assert widest(torch.device("mps")) == torch.float32
    assert widest(torch.device("cuda")) == torch.float64


# -- the transfer loss ------------------------------------------------------------------------------


def with_profiles(made, tensors, hidden=()):
    """Give a module the profiles of a minibatch, without some (label, condition)."""
    x = tensors[KEYS.X_KEY].double()
    total = x.sum(1, keepdim=True)
    label, condition = tensors[KEYS.LABELS_KEY].ravel(), tensors["condition"].ravel()
    n_labels, n_conditions = made.n_cells.shape
    sums = torch.zeros(n_labels * n_conditions, x.shape[1], dtype=torch.float64)
    n = torch.zeros(n_labels, n_conditions, dtype=torch.float64)
    for i in range(len(x)):
        key = (int(label[i]), int(condition[i]))
        if key not in hidden:
            sums[key[0] * n_conditions + key[1]] += x[i] / total[i] if made.is_count else x[i]
            n[key] += 1
    mean, scale = sums.sum(0).float() / n.sum(), torch.ones(x.shape[1])
    made.set_statistics(Statistics(20.0, mean, scale, sums, n))
    return sums / n.view(-1, 1)


@pytest.mark.parametrize("n_cells", [120, 118, 96])  # 20 cells of each label and condition; 19; 16
@pytest.mark.parametrize("likelihood", ["nb", "zinb", "normal", "mse"])
def test_transfer_loss_equals_the_formula_for_two_conditions(likelihood, n_cells):
    """Halves of a group: every other of its cells."""
    made, tensors = module(gene_likelihood=likelihood), minibatch(n_cells)
    profiles = with_profiles(made, tensors, hidden={(0, 1)})
    inferred, _, loss = run(made, tensors)
    pairs = [(label, s, 1 - s) for label in (1, 2) for s in (0, 1)]  # 0 has no profile under 1
    expected = transfer_loss(made, tensors, inferred["z"], pairs)
    for label in (1, 2):
        for s, t in ((0, 1), (1, 0)):
            change = made.profiles[label, t] - made.profiles[label, s]
            if made.is_count:
                p = [np.log1p(20 * profiles[label * 2 + c].numpy()) for c in (t, s)]
                assert change.numpy() == pytest.approx(p[0] - p[1], abs=1e-5)
    close = pytest.approx(
        expected / n_cells, rel=1e-3
    )  # which half of odd groups is first is drawn
    assert loss.extra_metrics["transfer"].item() == close


def transfer_loss(made, tensors, z, pairs):
    """Return the transfer loss of groups between two conditions, times the cells of the minibatch."""
    signs = [1.0 if source < target else -1.0 for _, source, target in pairs]
    found = [group_errors(made, tensors, z, *pair) for pair in pairs]
    weights = np.array([weight for weight, _ in found])
    errors = np.array([sign * np.array(e) for sign, (_, e) in zip(signs, found, strict=True)])
    common = np.average(errors, axis=0, weights=weights)
    own = errors - common
    both = common.prod(0).sum() + 0.3 * own.prod(1).sum(1)
    return 0.5 * (weights * both).sum()


def group_errors(made, tensors, z, label, source, target):
    """Return the weight of a group, and the errors of its halves, cell by cell."""

    def central(hidden):
        out = hidden.double().mean(0) @ made.output.weight.double().T + made.output.bias
        out = out.detach()
        if not made.is_count:
            return out.numpy()
        share = torch.softmax(out, 0).numpy()
        if made.zero_inflation is not None:  # zeros are of the mean, too
            share = share * special.expit(-made.zero_inflation(hidden.mean(0)).detach().numpy())
        return np.log1p(20 * share)

    rows = (tensors[KEYS.LABELS_KEY].ravel() == label) & (tensors["condition"].ravel() == source)
    z = z[rows]
    hidden = {}
    for c in (source, target):
        features = made.condition_design[[c]].expand(len(z), -1)
        hidden[c] = made.hidden_layers(z, Context(features, [], None))[1].detach()
    truth = (made.profiles[label, target] - made.profiles[label, source]).numpy()
    errors = [
        central(hidden[target][half]) - central(hidden[source][half]) - truth
        for half in (slice(None, None, 2), slice(min(1, len(z) - 1), None, 2))
    ]
    n = stats.hmean(made.n_cells[label, [source, target]].numpy())
    weight = n / (n + 10) * (made.n_cells.max().item() + 10) / made.n_cells.max().item()
    return weight * len(z), errors


def test_the_transfer_loss_of_labels_of_few_cells_counts_less():
    codes = (torch.tensor(codes) for codes in ([0, 1], [0, 1], [1, 0]))
    weight = terms.pair_weights(*codes, torch.tensor([[3.0, 600.0], [990.0, 990.0]]).double())
    n = 2 / (1 / 3 + 1 / 600)
    assert weight.tolist() == pytest.approx([n / (n + 10) * 1000 / 990, 1.0])


def test_groups_of_a_step_are_drawn_alike_and_stand_for_all():
    """48 cells allow 3 of the 6 groups a step; each stands for twice its cells."""
    made, tensors = module(), minibatch(48)
    with_profiles(made, tensors)
    code = tensors[KEYS.LABELS_KEY].ravel() * 2 + tensors["condition"].ravel()
    drawn = []
    for _ in range(400):
        chosen, place, weight = terms.draw_groups(code, made.n_cells, made.peers)
        assert len(set(chosen.tolist())) == 3
        assert weight.tolist() == [16.0] * 3
        of_cell = torch.cat([chosen, torch.tensor([-1])])[place]
        assert (of_cell == torch.where(torch.isin(code, chosen), code, -1)).all()
        drawn += chosen.tolist()
    assert np.bincount(drawn) == pytest.approx(np.full(6, 200), abs=45)  # 4.5 standard deviations


def test_what_labels_share_counts_in_full_and_their_own_less():
    codes = torch.tensor([0, 1]), torch.tensor([0, 0]), torch.tensor([1, 1])
    transfer = terms.Transfer(
        *codes, torch.tensor([1.0, 3.0]), torch.zeros(0), torch.zeros(0), torch.zeros(0)
    )
    error = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 0.0]]])
    found = terms.common_error(error, transfer, 2)
    assert found[0].tolist() == found[1].tolist() == [[4.0, 5.0], [6.0, 1.0]]
    back = transfer._replace(source=torch.tensor([0, 1]), target=torch.tensor([1, 0]))
    found = terms.common_error(error, back, 2)  # the second label's change is the other way round
    assert found[0].tolist() == [[-3.5, -4.0], [-4.5, 1.0]]
    assert found[1].tolist() == [[3.5, 4.0], [4.5, -1.0]]


def test_a_group_of_one_cell_is_compared_with_itself():
    made, tensors = module(n_labels=1), minibatch(2, n_labels=1)
    with_profiles(made, tensors)
    half, size = terms.halves(torch.tensor([0]), 1)
    assert (half.tolist(), size.tolist()) == ([0], [1.0, 0.0])
    inferred, _, loss = run(made, tensors)
    one = [transfer_loss(made, tensors, inferred["z"], [(0, s, 1 - s)]) for s in (0, 1)]
    found = loss.extra_metrics["transfer"].item() * 2
    assert any(found == pytest.approx(2 * value, rel=1e-4) for value in one)  # one of two is drawn
    assert min(one) > 0  # squares


@pytest.mark.parametrize("group", [[0, 0, 0, 0], [0, 1, 0, 1, 0], [2, 2, 1, 0, 2, 1, 2]])
def test_halves_of_a_group_differ_by_one_cell_at_most(group):
    half, size = terms.halves(torch.tensor(group), 3)
    assert (half // 2).tolist() == group
    assert size.tolist() == np.bincount(half, minlength=6).tolist()
    assert (size.view(3, 2).diff(dim=1).abs() <= 1).all()


def test_transfer_loss_does_not_see_a_combination_without_profile():
    """What is not in the statistics cannot enter, whatever it is."""
    made, tensors = module(), minibatch()
    with_profiles(made, tensors, hidden={(0, 1)})
    assert made.n_cells[0, 1] == 0
    assert (made.profiles[0, 1] == 0).all()
    losses = []
    for value in (0.0, 1e6):
        made.profiles[0, 1] = value
        torch.manual_seed(0)
        losses.append(run(made, tensors)[2].loss.item())
    assert losses[0] == losses[1]


def test_transfer_targets_are_conditions_seen_with_the_label_and_not_the_own():
    made, tensors = module(n_conditions=4), minibatch(n=48, n_conditions=4)
    with_profiles(made, tensors, hidden={(0, 1), (0, 2), (1, 3)})
    code = tensors[KEYS.LABELS_KEY].ravel() * 4 + tensors["condition"].ravel()
    drawn, groups = set(), set()
    for _ in range(100):
        chosen, _, weight = terms.draw_groups(code, made.n_cells, made.peers)
        label, source = chosen[weight > 0] // 4, chosen[weight > 0] % 4
        target = terms.draw_targets(label, source, made.n_cells, made.peers)
        groups |= set(zip(label.tolist(), source.tolist(), strict=True))
        drawn |= set(zip(label.tolist(), source.tolist(), target.tolist(), strict=True))
    present = {(0, 0), (0, 3), (1, 0), (1, 1), (1, 2)} | {(2, c) for c in range(4)}
    expected = {
        (lab, s, t)
        for lab in range(3)
        for s in range(4)
        for t in range(4)
        if t != s and {(lab, s), (lab, t)} <= present
    }
    assert drawn == expected
    assert groups == present


def test_nothing_is_drawn_for_the_transfer_loss_where_there_is_no_loss(monkeypatch):
    made, tensors = module(), minibatch()
    with_profiles(made, tensors)
    monkeypatch.setattr("trvae_sc.module._module.draw_transfer", None)
    assert made.sample(tensors).shape == (30, 12)
    assert made.marginal_ll(tensors, 2).shape == ll_at_mean(made, tensors).shape == (30,)
    with pytest.raises(TypeError):
        run(made, tensors)


def test_transfer_is_off_without_labels():
    made, tensors = module(n_labels=0), minibatch()
    assert made.transfer_weight == 0.0
    assert run(made, tensors)[2].extra_metrics["transfer"].item() == 0.0


def test_standardised_transfer_of_normal_data_does_not_depend_on_units():
    values = []
    for unit in (1.0, 1000.0):
        made, tensors = module(gene_likelihood="normal"), minibatch()
        tensors[KEYS.X_KEY] = tensors[KEYS.X_KEY] * unit
        with_profiles(made, tensors)
        made.gene_mean.fill_(unit), made.gene_scale.fill_(unit)
        made.profiles = (made.profiles - made.profiles.mean()) * 0
        values.append(run(made, tensors)[2].extra_metrics["transfer"].item())
    assert values[0] == pytest.approx(values[1], rel=1e-4)


# -- the network --------------------------------------------------------------------------------------


def test_additive_embedding_equals_a_linear_layer_on_one_hot_codes():
    made = module(n_batch=3, n_cats_per_cov=[4], n_continuous_cov=2)
    layer = made.encoder_in
    x, u = torch.randn(7, 12), torch.randn(7, 2)
    c, b, k = (torch.randint(0, n, (7,)) for n in (2, 3, 4))
    hot = [torch.nn.functional.one_hot(v, n).float() for v, n in ((c, 2), (b, 3), (k, 4))]
    weight = torch.cat(
        [
            layer.linear.weight,
            layer.condition.T,
            *(t.T for t in layer.categories),
            layer.continuous.T,
        ],
        1,
    )
    expected = torch.cat([x, *hot, u], 1) @ weight.T + layer.linear.bias
    tensors = {
        "condition": c[:, None],
        KEYS.BATCH_KEY: b[:, None],
        KEYS.CAT_COVS_KEY: k[:, None],
        KEYS.CONT_COVS_KEY: u,
    }
    assert torch.allclose(layer(x, made.context(tensors)), expected, atol=1e-5)


def test_rates_leave_room_for_the_rest_of_the_genome_only_with_totals():
    for has_total, check in ((True, lambda s: s < 1), (False, lambda s: abs(s - 1) < 1e-5)):
        made, tensors = module(has_total=has_total), minibatch()
        tensors["total_counts"] = tensors[KEYS.X_KEY].sum(1, keepdim=True) * 2
        _, generated, _ = run(made, tensors)
        assert all(check(s) for s in generated["profile"].exp().sum(1).tolist())


def test_output_starts_at_the_mean_proportions():
    made, tensors = module(has_total=True), minibatch()
    tensors["total_counts"] = tensors[KEYS.X_KEY].sum(1, keepdim=True) * 2
    mean = (tensors[KEYS.X_KEY] / tensors["total_counts"]).mean(0)
    zeros = torch.zeros(6, 12, dtype=torch.float64)
    made.set_statistics(Statistics(1.0, mean, torch.ones(12), zeros, torch.zeros(3, 2).double()))
    made.output.weight.data.zero_()
    _, generated, _ = run(made, tensors)
    assert torch.allclose(generated["profile"].exp()[0], mean, atol=1e-6)


@pytest.mark.parametrize("design", [torch.eye(3), torch.tensor([[0.0], [1.0], [3.0]])])
@pytest.mark.parametrize("dispersion", ["gene", "gene-condition"])
def test_theta_starts_at_that_of_each_condition(dispersion, design):
    """Of one condition feature: the straight line of least squares without intercept."""
    made = TRVAEModule(12, design, n_labels=2, dispersion=dispersion)
    given = torch.linspace(0.1, 5.0, 36).view(3, 12)
    statistics = {"kappa": 1.0, "mean": torch.full((12,), 1 / 12), "scale": torch.ones(12)}
    groups = {"sums": torch.zeros(6, 12).double(), "n_cells": torch.zeros(2, 3).double()}
    made.set_statistics(Statistics(**statistics, **groups, dispersion=given))
    log_theta = -given.log()
    expected = log_theta.mean(0).expand(3, -1)
    if dispersion == "gene-condition":
        rest = log_theta - expected
        expected = expected + design @ torch.linalg.lstsq(design, rest).solution
        if design.shape[1] == 3:
            assert torch.allclose(expected, log_theta, atol=1e-6)
    assert torch.allclose(made.observation.log_theta(design).expand(3, -1), expected, atol=1e-5)


@pytest.mark.parametrize(
    "kwargs", [{"n_labels": 0}, {"transfer_weight": 0.0}, {"gene_likelihood": "poisson"}]
)
def test_theta_starts_at_one_without_the_transfer_loss_and_is_not_needed_by_poisson(kwargs):
    made = TRVAEModule(12, torch.eye(2), **{"n_labels": 2, **kwargs})
    statistics = {"kappa": 1.0, "mean": torch.full((12,), 1 / 12), "scale": torch.ones(12)}
    n_labels = max(made.n_labels, 1)
    groups = {
        "sums": torch.zeros(2 * n_labels, 12).double(),
        "n_cells": torch.zeros(n_labels, 2).double(),
    }
    made.set_statistics(Statistics(**statistics, **groups, dispersion=torch.full((2, 12), 0.3)))
    if made.gene_likelihood != "poisson":
        assert not made.observation.log_theta(torch.eye(2)).any()


def test_second_statistics_keep_the_units_the_weights_were_learned_in():
    made, tensors = module(), minibatch()
    with_profiles(made, tensors)
    bias = made.output.bias.clone()
    tensors[KEYS.X_KEY] = tensors[KEYS.X_KEY] * 3
    with_profiles(made, tensors)
    assert torch.equal(made.output.bias, bias)
    assert made.kappa.item() == 20.0


def test_kl_weight_scales_the_kl_term():
    made, tensors = module(), minibatch()
    one = run(made, tensors, kl_weight=1.0)[2]
    four = run(made, tensors, kl_weight=4.0)[2]
    kl = one.kl_local["kl_local"].mean().item()
    assert (four.loss - one.loss).item() == pytest.approx(3 * kl, rel=1e-3)


def test_reparameterised_samples_have_the_posterior_moments_and_pass_gradients():
    made, tensors = module(n_latent=3), minibatch(n=4)
    torch.manual_seed(0)
    inputs = made._get_inference_input(tensors)
    out = made.inference(**inputs, n_samples=20_000)
    assert torch.allclose(out["z"].mean(0), out["qz"].loc, atol=0.05)
    assert torch.allclose(out["z"].std(0), out["qz"].scale, rtol=0.05)
    out["z"].square().mean().backward()
    assert made.z_mean.weight.grad.abs().sum() > 0
    assert made.z_log_variance.weight.grad.abs().sum() > 0


def test_presets_without_mmd_or_condition_lack_just_that():
    tensors = minibatch()
    cvae = module(**PRESETS["cvae"]["model"])
    assert run(cvae, tensors)[2].extra_metrics["mmd_weighted"].item() == 0.0
    vae = module(**PRESETS["vae"]["model"])
    other = dict(tensors, condition=1 - tensors["condition"])
    assert torch.equal(run(vae, tensors)[1]["profile"], run(vae, other)[1]["profile"])
    assert not torch.equal(run(cvae, tensors)[1]["profile"], run(cvae, other)[1]["profile"])
    autoencoder = module(**PRESETS["autoencoder"]["model"])
    out = autoencoder.inference(**autoencoder._get_inference_input(tensors))
    assert torch.allclose(out["z"], out["qz"].loc, atol=1e-6)
    assert run(autoencoder, tensors)[2].kl_local["kl_local"].abs().max() == 0.0


@pytest.mark.parametrize("kwargs", [{}, {"mmd_within_labels": False}, {"n_labels": 0}])
def test_default_compares_y_inside_labels_where_there_are_any(kwargs):
    made, tensors = module(**kwargs), minibatch()
    _, generated, loss = run(made, tensors)
    strata = None if kwargs else tensors[KEYS.LABELS_KEY].ravel()
    expected = mmd(generated["y"], tensors["condition"].ravel(), strata=strata).item()
    assert loss.extra_metrics["mmd"].item() == pytest.approx(expected, rel=1e-5)
    assert loss.extra_metrics["mmd_weighted"].item() == pytest.approx(100 * expected, rel=1e-5)


def test_cells_of_a_label_that_one_condition_lacks_have_no_part_in_the_mmd():
    made, tensors = module(), minibatch()
    tensors["condition"][tensors[KEYS.LABELS_KEY] == 2] = 0
    made.mmd_kernel = "paper"  # its bandwidths do not depend on the cells
    before = run(made, tensors)[2].extra_metrics["mmd"].item()
    tensors[KEYS.X_KEY][tensors[KEYS.LABELS_KEY].ravel() == 2] = 5.0
    assert run(made, tensors)[2].extra_metrics["mmd"].item() == pytest.approx(before, rel=1e-5)
    made.mmd_within_labels = False
    assert run(made, tensors)[2].extra_metrics["mmd"].item() != pytest.approx(before, rel=0.1)


def test_mmd_cvae_compares_z():
    made, tensors = module(**PRESETS["mmd_cvae"]["model"]), minibatch()
    inferred, _, loss = run(made, tensors)
    expected = mmd(inferred["z"], tensors["condition"].ravel()).item()
    assert loss.extra_metrics["mmd"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("likelihood", ["nb", "normal", "mse"])
def test_loss_is_finite_for_an_empty_cell_one_condition_and_one_cell(likelihood):
    made, tensors = module(gene_likelihood=likelihood), minibatch()
    empty = dict(tensors)
    empty[KEYS.X_KEY] = torch.zeros_like(tensors[KEYS.X_KEY])
    single = dict(tensors, condition=torch.zeros_like(tensors["condition"]))
    one = {key: value[:1] for key, value in tensors.items()}
    for batch in (empty, single, one):
        made.zero_grad()
        loss = run(made, batch)[2].loss
        loss.backward()
        assert math.isfinite(loss.item())
        assert all(torch.isfinite(p.grad).all() for p in made.parameters() if p.grad is not None)


def test_marginal_likelihood_of_a_decoder_that_ignores_z_is_exact():
    """p(x | z) constant in z makes log p(x) = log p(x | z), up to Monte Carlo error of E[p/q] = 1."""
    made, tensors = module(n_latent=2), minibatch(n=5)
    for name in ("decoder_in", "output"):
        layer = getattr(made, name)
        getattr(layer, "linear", layer).weight.data.zero_()
    torch.manual_seed(0)
    found = made.marginal_ll(tensors, n_mc_samples=4000, n_mc_samples_per_pass=500)
    expected = -run(made, tensors)[2].reconstruction_loss["reconstruction_loss"]
    assert torch.allclose(found, expected, atol=0.1)
