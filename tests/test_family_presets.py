"""Presets of TRVAE: their losses are what the textbook says, and all of them predict."""

import numpy as np
import pandas as pd
import pytest
import torch
from scvi import REGISTRY_KEYS as KEYS
from sklearn.decomposition import PCA
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from trvae_sc import PRESETS, TRVAE
from trvae_sc.baselines import METHODS
from trvae_sc.datasets import digits
from trvae_sc.errors import InputError
from trvae_sc.mmd import mmd
from trvae_sc.module import TRVAEModule, expected_values

BLIND = ("vae", "beta_vae", "autoencoder")  # the network does not see the condition
VARIATIONAL = [name for name in PRESETS if name != "autoencoder"]


def module(preset, **kwargs):
    torch.manual_seed(0)
    small = {"dropout_rate": 0.0, "n_hidden": (16, 8), "n_latent": 3}
    settings = {**PRESETS[preset]["model"], **small, **kwargs}
    return TRVAEModule(12, torch.eye(2), n_labels=3, **settings).eval()


def minibatch(n=30, seed=0):
    rng = np.random.default_rng(seed)
    arrays = {
        KEYS.X_KEY: rng.poisson(2.0, (n, 12)).astype(np.float32),
        "condition": (np.arange(n) % 2)[:, None],
        KEYS.LABELS_KEY: (np.arange(n) // 2 % 3)[:, None],
    }
    return {key: torch.as_tensor(value) for key, value in arrays.items()}


def run(made, tensors, kl_weight=None, **kwargs):
    """Return what encoder, decoder and loss give; `kl_weight` is the module's if None."""
    torch.manual_seed(1)
    weight = made.kl_weight if kl_weight is None else kl_weight
    return made(tensors, loss_kwargs={"kl_weight": weight}, **kwargs)


# -- losses -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", VARIATIONAL)
def test_kl_of_a_preset_is_that_of_torch_and_of_the_closed_form(preset):
    made, tensors = module(preset), minibatch()
    inferred, _, loss = run(made, tensors)
    qz, found = inferred["qz"], loss.kl_local["kl_local"]
    prior = Independent(Normal(torch.zeros(30, 3), torch.ones(30, 3)), 1)
    assert torch.allclose(found, kl_divergence(Independent(qz, 1), prior), rtol=1e-4)
    full = MultivariateNormal(qz.loc, torch.diag_embed(qz.scale.square()))
    standard = MultivariateNormal(torch.zeros(30, 3), torch.eye(3).expand(30, 3, 3))
    assert torch.allclose(found, kl_divergence(full, standard), rtol=1e-4)
    # E_q[log q(z) - log p(z)], by sampling
    z = qz.rsample((50_000,))
    sampled = (qz.log_prob(z) - Normal(0.0, 1.0).log_prob(z)).sum(-1).mean(0)
    assert torch.allclose(found, sampled, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("preset", VARIATIONAL)
def test_gradient_through_a_sampled_code_is_that_of_its_expectation(preset):
    """E f(z) = m'Am + tr(A S) + b'm for f(z) = z'Az + b'z: gradients (A + A')m + b and 2 A_dd s_d."""
    made, tensors = module(preset), minibatch(n=2)
    rng = torch.Generator().manual_seed(3)
    a, b = torch.randn(3, 3, generator=rng), torch.randn(3, generator=rng)
    out = made.inference(**made._get_inference_input(tensors), n_samples=400_000)
    qz, z = out["qz"], out["z"]
    value = ((z @ a * z).sum(-1) + z @ b).mean(0).sum()
    by_mean, by_scale = torch.autograd.grad(value, [qz.loc, qz.scale])
    assert torch.allclose(by_mean, qz.loc @ (a + a.T) + b, atol=0.03)
    assert torch.allclose(by_scale, 2 * a.diag() * qz.scale, atol=0.05)


@pytest.mark.parametrize("preset", ["vae", "beta_vae"])
def test_loss_is_the_negative_elbo_with_beta_times_its_kl(preset):
    made, tensors = module(preset), minibatch()
    inferred, generated, loss = run(made, tensors)
    log_likelihood = generated["px"].log_prob(tensors[KEYS.X_KEY]).sum(1)
    prior = Normal(torch.zeros(30, 3), torch.ones(30, 3))
    kl = kl_divergence(inferred["qz"], prior).sum(1)
    beta = {"vae": 1.0, "beta_vae": 4.0}[preset]
    assert loss.loss.item() == pytest.approx((beta * kl - log_likelihood).mean().item(), rel=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.5, 4.0, 10.0])
def test_beta_adds_beta_less_one_times_the_kl(beta):
    tensors = minibatch()
    loss = run(module("vae"), tensors)[2]
    scaled = run(module("beta_vae", kl_weight=beta), tensors)[2]
    expected = (beta - 1.0) * loss.kl_local["kl_local"].mean()
    assert (scaled.loss - loss.loss).item() == pytest.approx(expected.item(), abs=2e-4)
    assert scaled.extra_metrics["kl_weighted"].item() == pytest.approx(
        beta * loss.kl_local["kl_local"].mean().item(), rel=1e-5
    )


def test_beta_reaches_training_and_narrows_what_a_code_carries(fit):
    """More beta, less KL; and the weight the plan warms up to is the beta that was asked for."""
    train = {"max_epochs": 40}
    weak, strong = (fit(preset="beta_vae", train=train, **w) for w in ({"kl_weight": 0.1}, {}))
    weights = [model.history["kl_weight"]["kl_weight"].iloc[-1] for model in (weak, strong)]
    assert weights == pytest.approx([0.1, 4.0])
    kl = [model.history["kl_local_train"].iloc[-1].item() for model in (weak, strong)]
    assert kl[1] < 0.2 * kl[0]


def test_an_autoencoder_has_no_noise_and_no_kl():
    made, tensors = module("autoencoder"), minibatch()
    torch.manual_seed(5)
    first, second = (made.inference(**made._get_inference_input(tensors))["z"] for _ in range(2))
    assert torch.allclose(first, second, atol=1e-6)
    x = torch.log1p(tensors[KEYS.X_KEY] / tensors[KEYS.X_KEY].sum(1, keepdim=True))
    hidden = made.encoder(made.encoder_in(x, made.context(tensors)))
    n = hidden.shape[1]  # the rest of the weights are those of the linear path
    code = hidden @ made.z_mean.weight[:, :n].T + x @ made.z_mean.weight[:, n:].T + made.z_mean.bias
    assert torch.allclose(first, code, atol=1e-5)
    _, generated, loss = run(made, tensors)
    assert loss.kl_local["kl_local"].abs().max() == 0.0
    log_likelihood = generated["px"].log_prob(tensors[KEYS.X_KEY]).sum(1).mean()
    assert loss.loss.item() == pytest.approx(-log_likelihood.item(), rel=1e-5)
    loud = run(made, tensors, kl_weight=100.0)[2]
    assert loud.loss.item() == loss.loss.item()


@pytest.mark.parametrize("likelihood", ["mse", "normal"])
@pytest.mark.parametrize("n_latent", [1, 32, 64])
def test_an_autoencoder_reconstructs_no_worse_than_principal_components(n_latent, likelihood):
    """Of images it was trained on and of others; its units are those of the components."""
    images = digits(["normal"])
    images.X /= 16
    train, others = images[::2].copy(), images[1::2].copy()
    TRVAE.setup_anndata(train)
    made = TRVAE(train, preset="autoencoder", gene_likelihood=likelihood, n_latent=n_latent)
    made.train(40 if n_latent < 64 else None, accelerator="cpu", enable_progress_bar=False)
    scale = train.X.std(0) if likelihood == "normal" else np.ones(64)
    scale[scale == 0] = 1.0
    pca = PCA(n_latent, svd_solver="full").fit(train.X / scale)
    for cells in (train, others):
        found = made.decode(made.get_latent_representation(cells)).X
        expected = scale * pca.inverse_transform(pca.transform(cells.X / scale))
        error = np.square(cells.X - found).mean()
        assert error < max(np.square(cells.X - expected).mean(), 1e-5)


def test_a_linear_path_starts_at_principal_components():
    adata = digits(["normal"])
    adata.X /= 16
    TRVAE.setup_anndata(adata)
    made = TRVAE(adata, preset="autoencoder", gene_likelihood="normal", n_latent=5)
    made.train(1, lr=1e-12, accelerator="cpu", enable_progress_bar=False)
    scale = np.where(adata.X.std(0) > 0, adata.X.std(0), 1.0)
    pca = PCA(5, svd_solver="full").fit(adata.X / scale)
    expected = scale * pca.inverse_transform(pca.transform(adata.X / scale))
    found = made.decode(made.get_latent_representation()).X
    np.testing.assert_allclose(found, expected, atol=0.01)


def test_a_linear_path_adds_codes_to_the_output_and_values_to_the_codes():
    made, tensors = module("cvae", linear_path=True), minibatch()
    with torch.no_grad():
        made.output.weight[:, :16] = 0.0  # of the hidden layer
        inferred, generated, _ = run(made, tensors)
    logits = inferred["z"] @ made.output.weight[:, 16:].T + made.output.bias
    assert torch.allclose(generated["profile"], torch.log_softmax(logits, 1), atol=1e-5)


@pytest.mark.parametrize("preset", ["cvae", *BLIND])
def test_presets_without_mmd_have_none_and_no_transfer_either(preset):
    loss = run(module(preset), minibatch())[2]
    for term in ("mmd", "mmd_weighted", "transfer", "transfer_weighted"):
        assert loss.extra_metrics[term].item() == 0.0


def test_mmd_cvae_is_the_cvae_and_the_mmd_of_its_codes():
    tensors = minibatch()
    loss = run(module("cvae"), tensors)[2]
    inferred, _, with_mmd = run(module("mmd_cvae"), tensors)
    between = mmd(inferred["z"], tensors["condition"].ravel())
    weight = PRESETS["mmd_cvae"]["model"]["mmd_weight"]
    assert weight > 0
    assert (with_mmd.loss - loss.loss).item() == pytest.approx(weight * between.item(), rel=1e-3)


@pytest.mark.parametrize("preset", PRESETS)
def test_only_presets_with_a_condition_see_it(preset):
    made, tensors = module(preset), minibatch()
    other = dict(tensors, condition=1 - tensors["condition"])
    same = torch.equal(run(made, tensors)[1]["profile"], run(made, other)[1]["profile"])
    assert same == (preset in BLIND)


# -- from setup_anndata to predictions ----------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_trains_and_predicts_a_change_of_the_right_sign(preset, make_adata):
    adata = make_adata(360, 150, effect=1.5, values="log" if preset == "paper" else "counts")
    hidden = (adata.obs["cell_type"] == "NK") & (adata.obs["condition"] == "stimulated")
    train = adata[~hidden].copy()
    totals = {} if preset == "paper" else {"total_counts_key": "n_counts"}
    TRVAE.setup_anndata(train, "condition", labels_key="cell_type", **totals)
    model = TRVAE(train, preset=preset, n_latent=8, n_hidden=(32, 16))
    epochs = {"default": 30, "autoencoder": 30, "paper": 150}.get(preset, 60)
    model.train(epochs, accelerator="cpu", enable_progress_bar=False)
    predicted = model.predict(target="stimulated", labels="NK")
    control = (train.obs["cell_type"] == "NK") & (train.obs["condition"] == "control")
    assert predicted.obs["source_cell"].tolist() == train.obs_names[control].tolist()
    assert set(predicted.obs["condition"]) == {"stimulated"}
    assert predicted.uns["trvae_sc"]["preset"] == preset
    x = [np.log1p(a.X) if preset != "paper" else a.X for a in (adata[hidden], train[control])]
    truth = np.asarray(x[0].mean(0) - x[1].mean(0)).ravel()
    assert np.corrcoef(predicted.var["predicted_change"], truth)[0, 1] > 0.7


@pytest.mark.parametrize("preset", BLIND)
@pytest.mark.parametrize("values", ["counts", "log"])
def test_presets_without_condition_move_codes_by_the_mean_shift_of_labels(preset, values, fit):
    likelihood = {"counts": "nb", "log": "normal"}[values]
    model = fit(preset=preset, gene_likelihood=likelihood)
    adata, module_ = model.adata, model.module
    z = pd.DataFrame(model.get_latent_representation())
    mean = z.groupby(
        [adata.obs[k].astype(str).to_numpy() for k in ("cell_type", "condition")]
    ).mean()
    shift = (mean.xs("stimulated", level=1) - mean.xs("control", level=1)).mean()
    rows = np.flatnonzero(adata.obs["condition"] == "control")
    tensors = next(iter(model._make_data_loader(adata, rows)))
    moved = torch.tensor((z.iloc[rows] + shift).to_numpy(), dtype=torch.float32)
    expected = expected_values(module_, tensors, moved).numpy()
    if values == "counts":
        expected = np.log1p(module_.kappa.item() * expected)
    predicted = model.predict(target="stimulated", output="mean")
    np.testing.assert_allclose(predicted.X, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(shift).max() > 1e-3
    assert any("does not see the condition" in note for note in predicted.uns["trvae_sc"]["notes"])
    drawn = model.predict(target="stimulated", output="mean", n_samples=2)
    deterministic = np.allclose(drawn.X[: len(rows)], drawn.X[len(rows) :], atol=1e-4)
    assert deterministic == (preset == "autoencoder")


def test_presets_without_condition_say_what_they_cannot_predict_from(fit, make_adata, tmp_path):
    adata = make_adata()
    one_sided = adata[(adata.obs["cell_type"] == "B") == (adata.obs["condition"] == "control")]
    model = fit(one_sided.copy(), preset="vae")
    with pytest.raises(InputError, match="no label was measured under both"):
        model.predict(target="stimulated")
    model = fit(preset="autoencoder")
    model.save(tmp_path / "m")
    alone = TRVAE.load(
        tmp_path / "m", adata=False, accelerator="cpu"
    )  # it keeps codes of its cells
    np.testing.assert_allclose(
        alone.predict(adata, target="stimulated", output="mean").X,
        model.predict(target="stimulated", output="mean").X,
        rtol=1e-5,
    )


def test_a_combination_never_measured_has_no_codes_to_move_to(make_adata):
    adata = make_adata()
    train = adata[(adata.obs["condition"] == "control") | (adata.obs["sex"] == "f")].copy()
    TRVAE.setup_anndata(train, ["condition", "sex"], labels_key="cell_type")
    model = TRVAE(train, preset="vae", n_latent=4, n_hidden=(16, 8))
    model.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
    with pytest.raises(InputError, match="no label was measured under both"):
        model.predict(target=("stimulated", "m"), source=("control", "m"))


@pytest.mark.parametrize("preset", BLIND)
@pytest.mark.parametrize("is_trained", [False, True])
def test_presets_without_condition_show_what_they_are_without_one(preset, is_trained, make_adata):
    adata = make_adata()
    TRVAE.setup_anndata(adata, None, labels_key="cell_type")
    model = TRVAE(adata, preset=preset, n_latent=4, n_hidden=(16, 8))
    if is_trained:
        model.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
    for shown in (repr(model), model._repr_html_()):
        assert "conditions" not in shown
        assert "120 of 30 genes" in shown
        assert "3 (B, NK, T) in " in shown
        assert ("not trained" in shown) != is_trained
    with pytest.raises(InputError, match="set up without condition_key"):
        _ = model.keys


def test_presets_are_methods_of_the_benchmark():
    assert {"cvae", "mmd_cvae", "paper", *BLIND} <= set(METHODS)
