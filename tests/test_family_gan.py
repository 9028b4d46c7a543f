"""Adversarial models: losses by hand, known shifts, bad input, saving."""

import contextlib
import inspect

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData, read_h5ad
from lightning.pytorch import Callback

from trvae_sc import family
from trvae_sc.errors import InputError
from trvae_sc.evaluation import Holdout, Keys, benchmark
from trvae_sc.evaluation._benchmark import resolve
from trvae_sc.family import ConditionalGAN, CycleGAN, FlowMatching, FlowTransfer, PairedTranslator
from trvae_sc.family._networks import Critic
from trvae_sc.family._training import Matched

QUICK = {"max_epochs": 2, "accelerator": "cpu", "devices": 1, "enable_progress_bar": False}
KEYS = {"labels_key": "cell_type", "total_counts_key": "n_counts"}
SMALL = {"n_pcs": 6, "n_hidden": (16,)}


@pytest.fixture(scope="module")
def shifted():
    """Return pairs of cells of 3 labels that differ by a known shift, and the shift."""
    rng = np.random.default_rng(0)
    n, n_genes = 300, 12
    label = np.arange(n) % 3
    x = 3.0 * rng.normal(size=(3, n_genes))[label] + rng.normal(size=(n, n_genes))
    shift = rng.normal(0.0, 2.0, n_genes)
    obs = pd.DataFrame(
        {
            "condition": np.repeat(["control", "stimulated"], n),
            "cell_type": np.tile(np.array(["A", "B", "C"])[label], 2),
            "pair": np.tile(np.arange(n), 2),
        },
        index=[f"cell_{i}" for i in range(2 * n)],
    )
    return AnnData(np.concatenate([x, x + shift]).astype(np.float32), obs=obs), shift


def hide(adata, label="A"):
    """Return the cells without a label under the target."""
    hidden = (adata.obs["cell_type"] == label) & (adata.obs["condition"] == "stimulated")
    return adata[~hidden].copy()


# -- losses ---------------------------------------------------------------------------------------------


def test_hinge_loss_by_hand():
    real, fake = torch.tensor([[2.0], [0.5]]), torch.tensor([[-3.0], [0.5]])
    # max(0, 1 - 2), max(0, 1 - 0.5); max(0, 1 - 3), max(0, 1 + 0.5)
    assert family.critic_loss(real, fake, "hinge").item() == pytest.approx(0.25 + 0.75)


def test_wasserstein_loss_by_hand():
    real, fake = torch.tensor([[2.0], [0.5]]), torch.tensor([[-3.0], [0.5]])
    assert family.critic_loss(real, fake, "wasserstein").item() == pytest.approx(-1.25 - 1.25)


def test_gradient_penalty_of_a_linear_critic():
    """The slope of w x is w everywhere: the penalty is (|w| - 1)^2."""
    w = torch.tensor([3.0, 4.0, 0.0])
    real, fake = torch.randn(7, 3), torch.randn(7, 3)
    penalty = family.gradient_penalty(lambda x: x @ w[:, None], real, fake)
    assert penalty.item() == pytest.approx((5.0 - 1.0) ** 2)


def test_gradient_penalty_is_taken_between_the_cells():
    """The slope of |x|^2 / 2 is x: at points on the way from 0 to (2, 0) it is between 0 and 2."""
    torch.manual_seed(0)
    real, fake = torch.tensor([[2.0, 0.0]]).repeat(20_000, 1), torch.zeros(20_000, 2)
    penalty = family.gradient_penalty(lambda x: x.square().sum(1) / 2, real, fake)
    assert penalty.item() == pytest.approx(1 / 3, abs=0.01)  # E (2 U - 1)^2


def test_terms_of_a_critic_are_its_loss_and_its_weighted_penalty():
    torch.manual_seed(0)
    critic = Critic(4, 2, (8,), kind="hinge", penalty_weight=7.0)
    real, fake, context = torch.randn(5, 4), torch.randn(5, 4), torch.ones(5, 2)
    state = torch.get_rng_state()
    terms = critic.loss(real, fake, context)
    torch.set_rng_state(state)
    penalty = family.gradient_penalty(lambda x: critic(x, context), real, fake)
    assert terms["penalty"].item() == pytest.approx(7 * penalty.item())
    loss = family.critic_loss(critic(real, context), critic(fake, context), "hinge")
    assert terms["loss"].item() == pytest.approx(loss.item())


def test_generator_and_critic_are_updated_by_their_own_losses_only(make_adata):
    adata = make_adata()
    ConditionalGAN.setup_anndata(adata, "condition", **KEYS)
    model = ConditionalGAN(adata, **SMALL)
    critic, generator = model.module.players()
    batch = {
        "x": torch.randn(8, 30),
        "condition": torch.arange(8) % 2,
        "label": torch.arange(8) % 3,
    }
    sum(critic.loss(batch).values()).backward()
    assert all(p.grad is None for p in generator.network.parameters())
    assert any(p.grad.abs().sum() > 0 for p in critic.network.parameters())


# -- minibatches -----------------------------------------------------------------------------------


def test_matched_minibatches_have_the_same_labels_and_weigh_labels_alike():
    torch.manual_seed(0)
    label = np.array([0] * 90 + [1] * 10 + [0] * 5 + [1] * 95)
    groups = [
        (np.flatnonzero(label[:100] == k), 100 + np.flatnonzero(label[100:] == k)) for k in (0, 1)
    ]
    rows = torch.stack(list(Matched(groups, 200, 50))).numpy()
    start, end = rows[:, :50], rows[:, 50:]
    assert start.max() < 100 <= end.min()
    np.testing.assert_array_equal(label[start], label[end])
    assert label[start].mean() == pytest.approx(0.5, abs=0.02)
    assert set(rows.ravel()) == set(range(200))


# -- known shifts ----------------------------------------------------------------------------------------


def test_paired_translator_finds_the_partner_of_every_cell(shifted):
    adata, shift = shifted
    train = hide(adata)
    PairedTranslator.setup_anndata(
        train, "condition", pair_key="pair", labels_key="cell_type", is_count=False
    )
    model = PairedTranslator(train, n_hidden=(64,), seed=0)
    model.train(150, accelerator="cpu", enable_progress_bar=False)
    predicted = model.predict(target="stimulated", labels="B")
    source = adata[predicted.obs["source_cell"]].X
    real = source + shift
    assert np.abs(predicted.X - real).mean() < 0.15 * np.abs(shift).mean()


@pytest.fixture(scope="module")
def cycle(shifted):
    """Return a CycleGAN trained without label A under the target."""
    train = hide(shifted[0])
    CycleGAN.setup_anndata(train, "condition", labels_key="cell_type", is_count=False)
    model = CycleGAN(train, n_hidden=(64, 64), seed=0)
    model.train(250, accelerator="cpu", enable_progress_bar=False)
    return model


def relative_error(model, adata, shift, **kwargs):
    """Return |predicted - real|^2 of the mean change, relative to the real one."""
    predicted = model.predict(**kwargs)
    change = (predicted.X - adata[predicted.obs["source_cell"]].X).mean(0)
    return np.square(change - shift).sum() / np.square(shift).sum()


@pytest.mark.slow  # with the others of this model, by one process
def test_cyclegan_finds_the_shift_and_the_way_back(cycle, shifted):
    adata, shift = shifted
    assert all(np.isfinite(frame.to_numpy(dtype=float)).all() for frame in cycle.history.values())
    known = ["B", "C"]
    assert relative_error(cycle, adata, shift, target="stimulated", labels=known) < 0.05
    assert relative_error(cycle, adata, -shift, target="control", labels=known) < 0.05


@pytest.mark.slow  # with the others of this model, by one process
def test_cyclegan_is_not_misled_by_composition(cycle, shifted):
    """The label that the target lacks must not be turned into the others."""
    assert relative_error(cycle, *shifted, target="stimulated", labels="A") < 0.4


def test_conditional_gan_generates_the_mean_of_every_combination(shifted):
    adata, _ = shifted
    adata = adata.copy()
    ConditionalGAN.setup_anndata(adata, "condition", labels_key="cell_type", is_count=False)
    model = ConditionalGAN(adata, n_noise=8, n_hidden=(64, 64), seed=0)
    model.train(200, accelerator="cpu", enable_progress_bar=False)
    total = np.square(adata.X - adata.X.mean(0)).sum(1).mean()
    for label in ("A", "B", "C"):
        generated = model.predict(target="stimulated", labels=label)
        real = adata[(adata.obs["cell_type"] == label) & (adata.obs["condition"] == "stimulated")]
        error = np.square(generated.X.mean(0) - real.X.mean(0)).sum()
        assert error < 0.05 * total
        ratio = generated.X.var(0).sum() / real.X.var(0).sum()
        assert 0.7 < ratio < 1.4  # not all alike


# -- contract ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cgan(shifted):
    adata = hide(shifted[0])
    ConditionalGAN.setup_anndata(adata, "condition", labels_key="cell_type", is_count=False)
    model = ConditionalGAN(adata, n_pcs=6, n_hidden=(16,), n_noise=5)
    model.train(**QUICK)
    return model


def test_conditional_gan_generates_from_noise(cgan):
    found = cgan.generate("stimulated", 400, seed=1)
    assert set(found.obs["cell_type"]) == {"B", "C"}  # as often as in training
    assert set(found.obs["condition"]) == {"stimulated"}
    again = cgan.decode(
        found.obsm["X_trvae"], condition="stimulated", labels=found.obs["cell_type"]
    )
    np.testing.assert_array_equal(again.X, found.X)
    module = cgan.module
    with torch.no_grad():
        context = torch.zeros(400, 5)
        context[:, 1] = 1.0  # conditions come first, then labels
        code = (found.obs["cell_type"] == "C").to_numpy().astype(int) + 1
        context[torch.arange(400), torch.as_tensor(2 + code)] = 1.0
        z = torch.as_tensor(found.obsm["X_trvae"])
        p = module.generator(torch.cat([z, context], 1)) * module.spread
        expected = module.center + p @ module.components.T
    np.testing.assert_allclose(found.X, expected, atol=1e-4)
    new = cgan.generate("stimulated", 3, labels="A")
    assert new.obs["cell_type"].tolist() == ["A"] * 3


def test_noise_is_interpolated_at_the_length_it_has(cgan):
    path = cgan.interpolate("control", labels="B", steps=5)
    z = path.obsm["X_trvae"].astype(float)
    a, b = np.random.default_rng(0).standard_normal((2, 5))
    np.testing.assert_allclose(z[[0, -1]], [a, b], atol=1e-5)
    unit = [a / np.linalg.norm(a), b / np.linalg.norm(b)]
    steps = z / np.linalg.norm(z, axis=1)[:, None]
    assert np.linalg.matrix_rank(np.vstack([z, unit]), tol=1e-4) == 2
    assert np.linalg.norm(z, axis=1).min() >= 0.9 * min(map(np.linalg.norm, (a, b)))
    assert (steps @ unit[0])[0] == pytest.approx(1.0)
    assert path.obs["fraction"].tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_noise_of_one_dimension_is_interpolated_on_the_line(shifted):
    """It was NaN, or of the order of 1e16 between draws of other signs."""
    adata, _ = shifted
    ConditionalGAN.setup_anndata(adata, "condition", is_count=False)
    model = ConditionalGAN(adata, n_noise=1, **SMALL)
    model.train(**QUICK)
    for seed in range(4):
        a, b = np.random.default_rng(seed).standard_normal((2, 1))
        z = model.interpolate("control", steps=3, seed=seed).obsm["X_trvae"]
        np.testing.assert_allclose(z, [a, (a + b) / 2, b], rtol=1e-5)


def test_conditional_gan_refuses_what_it_cannot_generate(cgan):
    with pytest.raises(InputError, match="Unknown condition 'x'"):
        cgan.generate("x")
    with pytest.raises(InputError, match=r"Unknown labels \['Z'\]"):
        cgan.generate("control", 3, labels="Z")
    with pytest.raises(InputError, match="n_obs is 0"):
        cgan.generate("control", 0)
    with pytest.raises(InputError, match=r"z has shape \(3,\)"):
        cgan.decode(np.zeros(3), condition="control", labels="A")
    with pytest.raises(InputError, match="z holds NaN"):
        cgan.decode(np.full((1, cgan.module.n_noise), np.nan), condition="control", labels="A")
    with pytest.raises(InputError, match="labels has 2 values for 3"):
        cgan.generate("control", 3, labels=["A", "B"])
    with pytest.raises(InputError, match="sees the label: choose labels="):
        cgan.interpolate("control")
    with pytest.raises(InputError, match="steps is 1"):
        cgan.interpolate("control", labels="A", steps=1)


@pytest.mark.slow  # with the others of this model, by one process
def test_cyclegan_takes_its_own_prediction(cycle):
    there = cycle.predict(target="stimulated", labels="B")
    back = cycle.predict(there, target="control")
    is_b = (cycle.adata.obs["cell_type"] == "B") & (cycle.adata.obs["condition"] == "control")
    start = cycle.adata[is_b].X
    assert np.abs(back.X - start).mean() < 0.1 * np.abs(there.X - start).mean()


@pytest.mark.parametrize("layer", [None, "counts"])
def test_cyclegan_of_counts_takes_its_own_prediction_too(layer, make_adata, tmp_path):
    """It is on the log scale; what was predicted from is not counted again."""
    adata = make_adata()
    adata.layers["counts"] = adata.X
    CycleGAN.setup_anndata(adata, "condition", layer=layer, **KEYS)
    model = CycleGAN(adata, seed=1, n_hidden=(16,))
    model.train(**QUICK)
    there = model.predict(target="stimulated")
    there.write_h5ad(tmp_path / "there.h5ad")
    back = model.predict(read_h5ad(tmp_path / "there.h5ad")[:, ::-1], target="control")
    expected = model._translate(there, there.X, "control", None)
    np.testing.assert_allclose(back.X, expected, atol=1e-5)
    assert set(back.obs["condition"]) == {"control"}
    there.uns["trvae_sc"]["method"] = "FlowMatching"
    with pytest.raises(InputError, match=r"need raw counts|No layer"):
        model.predict(there, target="control")


@pytest.fixture(params=[ConditionalGAN, CycleGAN])
def quick(request, make_adata):
    """Return a model trained for two epochs."""
    adata = make_adata()
    request.param.setup_anndata(adata, "condition", **KEYS)
    model = request.param(adata, seed=1, **SMALL)
    model.train(**QUICK)
    return model


def test_prediction_has_the_cells_the_genes_and_the_record(quick, make_adata):
    adata = make_adata(60, seed=3)
    before = adata.copy()
    predicted = quick.predict(adata, target="stimulated", source="control", labels="B")
    start = adata[(adata.obs["condition"] == "control") & (adata.obs["cell_type"] == "B")]
    assert predicted.obs["source_cell"].tolist() == start.obs_names.tolist()
    assert predicted.obs["source_condition"].tolist() == ["control"] * start.n_obs
    assert predicted.obs["condition"].tolist() == ["stimulated"] * start.n_obs
    assert predicted.var_names.equals(adata.var_names)
    assert predicted.X.dtype == np.float32
    record = predicted.uns["trvae_sc"]
    assert record["method"] == type(quick).__name__
    assert record["scale"] == "log(1 + kappa * share)"
    kappa = np.median(make_adata().obs["n_counts"])
    assert record["kappa"] == pytest.approx(kappa)
    assert record["combinations"]["seen_in_training"].tolist() == [True]
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    predicted.write_h5ad("predicted.h5ad")


def test_an_untrained_cyclegan_predicts_what_it_was_given(make_adata):
    """Generators start at the identity: values come back on the log scale."""
    adata = make_adata()
    CycleGAN.setup_anndata(adata, "condition", **KEYS)
    model = CycleGAN(adata, **SMALL)
    model.train(**{**QUICK, "max_epochs": 1}, lr=1e-12)
    predicted = model.predict(target="stimulated")
    start = adata[adata.obs["condition"] == "control"]
    share = start.X.toarray() / start.obs["n_counts"].to_numpy()[:, None]
    expected = np.log1p(np.median(adata.obs["n_counts"]) * share)
    np.testing.assert_allclose(predicted.X, expected, atol=1e-5)


def test_saved_and_loaded_model_predicts_the_same(quick, make_adata):
    quick.save("model")
    for data in (make_adata(), False):
        loaded = type(quick).load("model", data)
        assert loaded.seed_ == 1
        for name, frame in quick.history.items():
            np.testing.assert_array_equal(loaded.history[name].to_numpy(), frame.to_numpy())
        new = make_adata(40, seed=5)
        again = loaded.predict(new[:, ::-1].copy(), target="stimulated")
        np.testing.assert_array_equal(again.X, quick.predict(new, target="stimulated").X)


def test_equal_seeds_give_equal_models(quick, make_adata):
    adata = make_adata()
    type(quick).setup_anndata(adata, "condition", **KEYS)
    again = type(quick)(adata, seed=1, **SMALL)
    torch.manual_seed(99)
    again.train(**QUICK)
    predicted = [m.predict(target="stimulated").X for m in (quick, again)]
    np.testing.assert_array_equal(*predicted)


def test_bad_requests_say_what_is_known(quick, make_adata):
    with pytest.raises(InputError, match=r"Unknown condition 'heat'.*'control', 'stimulated'"):
        quick.predict(target="heat")
    with pytest.raises(InputError, match="both 'stimulated'"):
        quick.predict(target="stimulated", source="stimulated")
    with pytest.raises(InputError, match="lacks 29 of the 30 genes"):
        quick.predict(make_adata()[:, :1].copy(), target="stimulated")
    with pytest.raises(InputError, match="max_epochs is 0"):
        quick.train(0)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"n_hidden": 64}, "n_hidden is 64; give one or more"),
        ({"n_hidden": ()}, r"n_hidden is \(\)"),
        ({"n_hidden": (0,)}, "A width in n_hidden is 0; at least 1"),
        ({"n_pcs": 2.5}, "n_pcs is 2.5; a whole number"),
        ({"n_pcs": None}, "n_pcs is None"),
        ({"n_pcs": 0}, "n_pcs is 0; at least 1"),
        ({"penalty_weight": np.nan}, "penalty_weight is nan"),
        ({"penalty_weight": -1}, "penalty_weight is -1"),
        ({"cycle_weight": -5}, "cycle_weight is -5"),
        ({"identity_weight": "5"}, "identity_weight is '5'"),
        ({"n_noise": 0}, "n_noise is 0"),
        ({"n_transforms": 0}, "n_transforms is 0"),
    ],
)
def test_sizes_and_weights_that_cannot_be_are_refused(given, match, make_adata):
    models = [
        model_cls
        for model_cls in (ConditionalGAN, CycleGAN, FlowTransfer)
        if set(given) <= set(inspect.signature(model_cls).parameters)
    ]
    assert models
    for model_cls in models:
        adata = make_adata()
        model_cls.setup_anndata(adata, "condition")
        with pytest.raises(InputError, match=match):
            model_cls(adata, **given)


def test_a_rate_below_zero_and_early_stopping_are_refused_before_training(make_adata):
    adata = make_adata()
    CycleGAN.setup_anndata(adata, "condition")
    model = CycleGAN(adata, n_hidden=(8,))
    for rate in (-1, np.nan, "fast"):
        with pytest.raises(InputError, match=f"lr is {rate!r}"):
            model.train(lr=rate, **QUICK)
    with pytest.raises(InputError, match="a CycleGAN trains on all"):
        model.train(early_stopping=True, **QUICK)
    with pytest.raises(InputError, match="enable_checkpointing needs cells to validate on"):
        model.train(enable_checkpointing=True, **QUICK)
    with pytest.raises(InputError, match="gradient clipping is not supported"):
        model.train(gradient_clip_val=1.0, **QUICK)
    assert not model.is_trained_


def test_an_unknown_loss_of_a_critic_is_refused():
    with pytest.raises(InputError, match="Unknown adversarial loss 'x'"):
        family.critic_loss(torch.ones(1, 1), torch.ones(1, 1), "x")


def test_untrained_models_and_bad_arguments_raise(make_adata):
    adata = make_adata()
    with pytest.raises(InputError, match="No column 'cluster'"):
        CycleGAN.setup_anndata(adata, "condition", labels_key="cluster")
    with pytest.raises(InputError, match="takes one column"):
        CycleGAN.setup_anndata(adata, ["condition", "batch"])
    CycleGAN.setup_anndata(adata, "condition")
    with pytest.raises(RuntimeError, match="not trained"):
        CycleGAN(adata).predict(target="stimulated")
    with pytest.raises(InputError, match="Unknown adversarial loss 'lsgan'"):
        CycleGAN(adata, adversarial="lsgan")
    with pytest.raises(InputError, match="both 'control'"):
        CycleGAN(adata, source="control", target="control")


def test_values_that_are_no_counts_are_refused(make_adata):
    adata = make_adata(values="log")
    ConditionalGAN.setup_anndata(adata, "condition")
    with pytest.raises(InputError, match="fractional values"):
        ConditionalGAN(adata)


def test_three_conditions_need_source_and_target(make_adata):
    adata = make_adata()
    CycleGAN.setup_anndata(adata, "site", labels_key="cell_type")
    with pytest.raises(InputError, match=r"name source and target of \['s0', 's1', 's2'\]"):
        CycleGAN(adata)
    model = CycleGAN(adata, source="s0", target="s2", **SMALL)
    model.train(**QUICK)
    with pytest.raises(InputError, match="between 's0' and 's2', not 's1'"):
        model.predict(target="s1")
    assert set(model.predict(target="s2").obs["source_condition"]) == {"s0"}


def test_nothing_to_learn_from_raises(make_adata):
    """No label was measured under both conditions."""
    adata = make_adata()
    adata = adata[(adata.obs["cell_type"] == "B") == (adata.obs["condition"] == "control")].copy()
    CycleGAN.setup_anndata(adata, "condition", **KEYS)
    with pytest.raises(InputError, match="No label was measured under both"):
        CycleGAN(adata).train(**QUICK)


def test_conditional_gan_needs_labels_it_has_seen(make_adata):
    adata = make_adata()
    train = adata[adata.obs["cell_type"] != "B"].copy()
    ConditionalGAN.setup_anndata(train, "condition", **KEYS)
    model = ConditionalGAN(train, **SMALL)
    model.train(**QUICK)
    with pytest.raises(InputError, match=r"Unknown labels \['B'\].*\['NK', 'T'\]"):
        model.predict(adata, target="stimulated", labels="B")


def test_conditional_gan_uses_nothing_of_a_source_cell_but_its_label(make_adata):
    adata = make_adata()
    ConditionalGAN.setup_anndata(adata, "condition", **KEYS)
    model = ConditionalGAN(adata, **SMALL)
    model.train(**QUICK)
    other = make_adata(seed=8)
    first, second = (model.predict(a, target="stimulated", seed=4).X for a in (adata, other))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, model.predict(adata, target="stimulated", seed=5).X)


LEVELS = {
    "float32": (np.float32([0.1, 0.7]), ["0.1", "0.7"]),
    "float": ([0.0, 1.0], ["0", "1"]),
    "int": ([0, 1], ["0", "1"]),
    "bool": ([False, True], ["False", "True"]),
}


@pytest.mark.parametrize("kind", LEVELS)
@pytest.mark.parametrize("model_cls", [ConditionalGAN, CycleGAN, FlowMatching])
def test_conditions_that_are_no_words_are_predicted_like_words(make_adata, model_cls, kind):
    """Asked for as numbers or as text, of cells with numbers or with text."""
    levels, names = LEVELS[kind]
    cells, models = [], []
    for of in (["control", "stimulated"], levels, names):
        adata = make_adata()
        codes = (adata.obs["condition"] == "stimulated").to_numpy().astype(int)
        adata.obs["condition"] = np.asarray(of)[codes]
        cells.append(adata.copy())
        model_cls.setup_anndata(adata, "condition", **KEYS)
        models.append(model_cls(adata, seed=1, **SMALL))
    for model in models[:2]:
        model.train(**QUICK)
    expected, model = models[0].predict(target="stimulated", labels="B"), models[1]
    assert model.conditions == ([0.1, 0.7] if kind == "float32" else levels)
    for target in (levels[1], names[1]):
        for given in (None, *cells[1:]):
            for source in (None, levels[0], names[0]):
                found = model.predict(given, target=target, source=source, labels="B")
                np.testing.assert_array_equal(found.X, expected.X)
                assert found.obs["condition"].astype(str).unique().tolist() == [
                    str(model.conditions[1])
                ]
    record = found.uns["trvae_sc"]["combinations"]
    assert record[["source", "target"]].to_numpy().tolist() == [names]
    assert record["seen_in_training"].all()


# -- pairs ---------------------------------------------------------------------------------------------


def test_pairs_must_be_one_to_one(shifted):
    adata = shifted[0].copy()
    adata.obs["pair"] = adata.obs["pair"] // 2
    with pytest.raises(InputError, match="not one to one: 150 values"):
        PairedTranslator.setup_anndata(adata, "condition", pair_key="pair", is_count=False)
    with pytest.raises(InputError, match="No column 'partner'"):
        PairedTranslator.setup_anndata(adata, "condition", pair_key="partner", is_count=False)


def test_pairs_must_be_there(shifted):
    with pytest.raises(InputError, match="Expected an AnnData, got str"):
        PairedTranslator.setup_anndata("cells.h5ad", "condition", pair_key="pair")
    adata = shifted[0].copy()
    with pytest.raises(InputError, match="PairedTranslator takes one column"):
        PairedTranslator.setup_anndata(adata, ["condition", "cell_type"], pair_key="pair")
    adata.obs["pair"] = np.arange(adata.n_obs)
    PairedTranslator.setup_anndata(adata, "condition", pair_key="pair", is_count=False)
    with pytest.raises(InputError, match="there are no pairs"):
        PairedTranslator(adata).train(**QUICK)


def test_pairs_join_the_right_rows(shifted):
    """Shuffled cells: partners are found by name."""
    adata = shifted[0]
    adata = hide(adata[np.random.default_rng(0).permutation(adata.n_obs)])
    PairedTranslator.setup_anndata(adata, "condition", pair_key="pair", is_count=False)
    groups = PairedTranslator(adata)._groups()
    assert len(groups) == 200
    for start, end in groups:
        pair = adata.obs.iloc[[*start, *end]]
        assert pair["condition"].tolist() == ["control", "stimulated"]
        assert pair["pair"].nunique() == 1


@pytest.mark.parametrize("kind", LEVELS)
def test_pairs_of_conditions_that_are_no_words(shifted, kind):
    """Both sides were compared with Python's own numbers: 0.1 in float32 was on neither."""
    levels, names = LEVELS[kind]
    adata = shifted[0].copy()
    adata.obs["condition"] = np.repeat(np.asarray(levels), 300)
    PairedTranslator.setup_anndata(adata, "condition", pair_key="pair", is_count=False)
    for ends in ({}, dict(zip(("source", "target"), names, strict=True))):
        groups = PairedTranslator(adata, **ends)._groups()
        assert [(int(a[0]), int(b[0])) for a, b in groups] == [(i, 300 + i) for i in range(300)]


def test_paired_translator_has_one_direction_and_is_saved(shifted):
    adata = shifted[0].copy()
    PairedTranslator.setup_anndata(adata, "condition", pair_key="pair", is_count=False)
    model = PairedTranslator(adata, n_hidden=(8,))
    model.train(**QUICK)
    with pytest.raises(InputError, match="has one direction"):
        model.predict(target="control")
    model.save("model")
    new = adata[:50].copy()
    del new.obs["pair"]  # needed for training only
    loaded = PairedTranslator.load("model", False)
    predicted = [m.predict(new, target="stimulated").X for m in (loaded, model)]
    np.testing.assert_array_equal(*predicted)


# -- benchmark -----------------------------------------------------------------------------------------


def test_family_takes_part_in_a_benchmark(make_adata):
    pytest.importorskip("zuko")
    names = ["no_change", *family.METHODS]
    assert names[1:] == ["cgan", "cyclegan", "flow_matching", "flow_transfer", "paired"]
    adata = make_adata()
    adata.obs["pair"] = adata.obs.groupby("condition", observed=True).cumcount()
    results = benchmark(
        adata,
        names,
        [Holdout("B", "stimulated", "control")],
        keys=Keys("condition", **KEYS),
        seeds=1,
        max_epochs=1,
        progress=False,
    )
    table = results.table
    scores = table[(table["metric"] == "effect_r2") & (table["genes"] == "all")]
    assert set(scores["method"]) == {*names, "ceiling"}
    assert np.isfinite(scores["value"]).all()
    histories = {r["method"]: r["history"] for r in results.records}
    assert "critics_penalty_train" in histories["cyclegan"]
    with pytest.raises(InputError, match=r"Unknown methods \['pix2pix'\].*'cyclegan'"):
        resolve(["pix2pix"])


def test_methods_take_targets_as_text(make_adata):
    adata = make_adata()
    adata.obs["condition"] = (adata.obs["condition"] == "stimulated").astype(int)
    keys = Keys("condition", **KEYS)
    source = adata[adata.obs["condition"] == 0].copy()
    predicted = family.METHODS["cyclegan"](
        adata, source, target="1", keys=keys, train_kwargs=QUICK, **SMALL
    )
    assert predicted.n_obs == source.n_obs
    with pytest.raises(InputError, match="No training cell has target '2'"):
        family.METHODS["cyclegan"](adata, source, target="2", keys=keys)


def test_arguments_of_a_method_reach_registration_and_prediction(shifted):
    """A paired translator and a flow that is shown exemplars, beside the models themselves."""
    pytest.importorskip("zuko")
    adata = shifted[0].copy()
    adata.obs = adata.obs.rename(columns={"pair": "image"})
    train, keys = hide(adata), Keys("condition", "cell_type", is_count=False)
    start = train[(train.obs["cell_type"] == "A")].copy()
    shown = adata[~adata.obs_names.isin(train.obs_names)][:9].copy()
    given = {"target": "stimulated", "keys": keys, "train_kwargs": QUICK}
    with pytest.raises(InputError, match="No column 'pair'"):
        family.METHODS["paired"](train, start, **given)
    for model_cls, setup, predict in [
        (PairedTranslator, {"pair_key": "image"}, {}),
        (family.FlowTransfer, {}, {"exemplars": shown, "strength": 2.0}),
    ]:
        found = family.translate(
            train, start, model_cls=model_cls, setup_kwargs=setup, predict_kwargs=predict, **given
        )
        own = train.copy()
        model_cls.setup_anndata(own, "condition", labels_key="cell_type", is_count=False, **setup)
        ends = {"source": "control", "target": "stimulated"} if setup else {}
        model = model_cls(own, seed=0, **ends)
        model.train(**QUICK)
        expected = model.predict(start, target="stimulated", **predict)
        np.testing.assert_array_equal(found.X, expected.X)


def test_unknown_arguments_of_pairs_are_named(make_adata):
    adata = make_adata()
    adata.obs["pair"] = [f"p{i // 2}" for i in range(adata.n_obs)]
    with pytest.raises(InputError, match=r"'label_key'.* Did you mean 'labels_key'\?"):
        PairedTranslator.setup_anndata(adata, "condition", pair_key="pair", label_key="cell_type")


def _fitted(model_cls, adata):
    if model_cls is FlowTransfer:
        pytest.importorskip("zuko")
    model_cls.setup_anndata(adata, "condition", **KEYS)
    model = model_cls(adata, **SMALL)
    model.train(**QUICK)
    return model


@pytest.mark.parametrize("model_cls", [ConditionalGAN, CycleGAN, FlowMatching, FlowTransfer])
def test_a_call_of_train_that_fails_leaves_a_trained_model_as_it_was(model_cls, make_adata):
    """Its weights then met the components and the kappa of cells that it was not trained on."""
    adata = make_adata()
    model = _fitted(model_cls, adata)
    before = model.predict(target="stimulated", source="control").X
    model.adata = make_adata(60, seed=3)
    for wrong in ({"accelerator": "cuda0"}, {"callbacks": FailsAtStart()}, {"max_steps": 0}):
        with contextlib.suppress(InputError, OSError):
            model.train(**{**QUICK, **wrong})
        after = model.predict(adata, target="stimulated", source="control").X
        np.testing.assert_array_equal(after, before)
    loaded = _saved(model)
    with pytest.raises(InputError, match="loaded without data"):
        loaded.train(**QUICK)


class FailsAtStart(Callback):
    """Fails before the first step."""

    def on_train_start(self, *_):
        """Fail."""
        raise OSError("no space left")


@pytest.mark.parametrize("model_cls", [ConditionalGAN, CycleGAN, FlowMatching, FlowTransfer])
def test_a_model_goes_on_in_the_units_its_weights_were_learned_in(model_cls, make_adata):
    """Components of other cells, turned or of the other sign, took the place of its own."""
    adata = make_adata()
    model = _fitted(model_cls, adata)

    def answers():
        if model_cls is FlowTransfer:  # its predictions have means of the cells attached
            return model.encode(adata)
        return model.predict(adata, target="stimulated", source="control").X

    before, kappa = answers(), float(model.module.kappa)
    model.adata = make_adata(60, seed=3)
    model.train(**QUICK, lr=0.0)
    np.testing.assert_array_equal(answers(), before)
    assert float(model.module.kappa) == kappa
    assert model.module.n_cells.sum() == 60


def _saved(model):
    """Return a model as it is loaded without its cells."""
    model.save("model", overwrite=True)
    return type(model).load("model", False)


def test_attached_cells_of_new_labels_are_not_trained_on(make_adata):
    """They were taken for cells of the first label."""
    adata = make_adata()
    CycleGAN.setup_anndata(adata, "condition", **KEYS)
    model = CycleGAN(adata, **SMALL)
    other = make_adata()
    other.obs["cell_type"] = other.obs["cell_type"].astype(str).replace("B", "new")
    model.adata = other
    with pytest.raises(InputError, match=r"labels the model does not know: \['new'\]"):
        model.train(**QUICK)
