"""Flow matching and flow transfer: closed forms, limits, known shifts, bad input, saving."""

import builtins
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from lightning.pytorch.callbacks import Callback
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from trvae_sc import compare, pl
from trvae_sc.errors import InputError
from trvae_sc.family import (
    FlowMatching,
    FlowTransfer,
    Gaussian,
    coupling,
    posterior,
    worth_of_prior,
)

QUICK = {"max_epochs": 2, "accelerator": "cpu", "devices": 1, "enable_progress_bar": False}
CPU = {"accelerator": "cpu", "enable_progress_bar": False}
KEYS = {"labels_key": "cell_type", "total_counts_key": "n_counts"}


def gaussians(shift, *, n=300, n_labels=3, spread=3.0, seed=0):
    """Return cells of labels under two conditions, the second shifted, one row of shift a label."""
    rng = np.random.default_rng(seed)
    shift = np.asarray(shift)
    label = np.arange(n) % n_labels
    center = spread * rng.normal(size=(n_labels, shift.shape[-1]))
    x = center[label] + rng.normal(size=(2, n, shift.shape[-1]))
    x[1] += np.broadcast_to(shift, center.shape)[label]
    obs = pd.DataFrame(
        {
            "condition": np.repeat(["control", "stimulated"], n),
            "cell_type": np.tile(np.array(list("ABCDEFGH"))[label], 2),
        },
        index=[f"cell_{i}" for i in range(2 * n)],
    )
    return AnnData(x.reshape(2 * n, -1).astype(np.float32), obs=obs)


def where(adata, label, condition):
    """Return the cells of a combination."""
    return adata[(adata.obs["cell_type"] == label) & (adata.obs["condition"] == condition)].copy()


def without(adata, label):
    """Return the cells but those of a label under the target."""
    hidden = (adata.obs["cell_type"] == label) & (adata.obs["condition"] == "stimulated")
    return adata[~hidden].copy()


# -- flow matching -------------------------------------------------------------------------------------


def test_coupling_is_the_optimal_assignment():
    torch.manual_seed(0)
    start, end = torch.randn(20, 3), torch.randn(20, 3)
    found = coupling(start, end, torch.zeros(20)).numpy()
    cost = cdist(start, end, "sqeuclidean")
    np.testing.assert_array_equal(found, linear_sum_assignment(cost)[1])


def test_coupling_keeps_labels():
    """The nearest cell of another label is not taken."""
    start = torch.tensor([[0.0], [10.0], [1.0]])
    end = torch.tensor([[11.0], [0.0], [12.0]])
    label = torch.tensor([0, 1, 0])
    assert coupling(start, end, label).tolist() == [0, 1, 2]
    # start 0, 10, 1 to end 11, 0, 12: in order, as optimal transport of a line is
    assert coupling(start, end, torch.zeros(3)).tolist() == [1, 2, 0]


def test_flow_from_a_gaussian_to_a_shifted_one_is_the_shift():
    """Optimal transport between N(m, I) and N(m + d, I) moves every cell by d, both ways."""
    adata = gaussians([3.0, -2.0, 0.0, 1.0], n=600, n_labels=1)
    ends = [adata[adata.obs["condition"] == c].X for c in ("control", "stimulated")]
    shift = ends[1].mean(0) - ends[0].mean(0)
    FlowMatching.setup_anndata(adata, "condition", is_count=False)
    model = FlowMatching(adata, n_hidden=(64, 64), seed=0)
    model.train(60, lr=3e-3, **CPU)
    for target, sign in (("stimulated", 1), ("control", -1)):
        predicted = model.predict(target=target)
        change = predicted.X - adata[predicted.obs["source_cell"]].X
        np.testing.assert_allclose(change.mean(0), sign * shift, atol=0.2)
        assert change.std(0).max() < 0.5


def test_flow_knows_how_labels_differ_and_where_a_new_one_is():
    """Labels answer with +d or -d, by where they are; what a new label does follows from that."""
    adata = gaussians(np.zeros((4, 5)), n=800, n_labels=4, spread=0.0)
    side = np.where(adata.obs["cell_type"].isin(["A", "B"]), 1.0, -1.0)
    x = adata.X + 6.0 * side[:, None] * np.eye(5)[0]
    effect = 3.0 * side[:, None] * np.eye(5)[1]
    adata.X = (x + effect * (adata.obs["condition"] == "stimulated").to_numpy()[:, None]).astype(
        np.float32
    )
    train = without(adata, "A")
    FlowMatching.setup_anndata(train, "condition", labels_key="cell_type", is_count=False)
    model = FlowMatching(train, n_hidden=(64, 64), seed=0)
    model.train(60, lr=3e-3, **CPU)
    predicted = model.predict(target="stimulated", labels="A")
    change = predicted.X - adata[predicted.obs["source_cell"]].X
    np.testing.assert_allclose(change.mean(0), 3.0 * np.eye(5)[1], atol=0.3)


def test_there_and_back_again_is_where_it_was():
    """The flow is integrated backwards along the same path."""
    adata = gaussians([2.0, 0.0, -1.0], n=200)
    FlowMatching.setup_anndata(adata, "condition", labels_key="cell_type", is_count=False)
    model = FlowMatching(adata, n_hidden=(32,), n_steps=100, seed=0)
    model.train(20, **CPU)
    p = torch.randn(50, 3)
    with torch.no_grad():
        back = model.module.move(model.module.move(p, backward=False), backward=True)
        assert (model.module.move(p, backward=False) - p).abs().mean() > 0.1
    np.testing.assert_allclose(back, p, atol=1e-3)


def test_flow_keeps_what_is_outside_of_the_components():
    adata = gaussians(np.arange(8.0), n=200)
    FlowMatching.setup_anndata(adata, "condition", labels_key="cell_type", is_count=False)
    model = FlowMatching(adata, n_pcs=2, n_hidden=(8,))
    model.train(**QUICK)
    predicted = model.predict(target="stimulated")
    change = predicted.X - adata[predicted.obs["source_cell"]].X
    v = model.module.components.numpy()
    np.testing.assert_allclose(v.T @ v, np.eye(2), atol=1e-5)
    np.testing.assert_allclose(change @ v @ v.T, change, atol=1e-4)


# -- posterior --------------------------------------------------------------------------------------------


def test_posterior_is_the_normal_inverse_chi_squared_one():
    """By hand: prior N(0, 4) worth 2 cells, and the cells 3, 5, 7."""
    found = posterior(
        Gaussian(np.array([0.0]), np.array([4.0])), np.array([[3.0], [5.0], [7.0]]), 2
    )
    assert found.mean[0] == pytest.approx(15 / 5)
    squares = 4 + 0 + 4
    assert found.variance[0] == pytest.approx((2 * 4 + squares + 2 * 3 / 5 * 25) / 5)


def test_posterior_without_cells_is_the_prior():
    prior = Gaussian(np.array([1.0, 2.0]), np.array([3.0, 4.0]))
    for cells, strength in ((np.empty((0, 2)), 5.0), (np.ones((3, 2)), np.inf)):
        found = posterior(prior, cells, strength)
        np.testing.assert_array_equal(found.mean, prior.mean)
        np.testing.assert_array_equal(found.variance, prior.variance)


def test_a_dimension_of_infinite_strength_keeps_the_prior():
    """It was NaN; the other is the mean of the prior's 2 cells and of 3 at 1."""
    prior = Gaussian(np.array([4.0, 6.0]), np.ones(2))
    found = posterior(prior, np.ones((3, 2)), np.array([np.inf, 2.0]))
    np.testing.assert_allclose(found.mean, [4.0, (2 * 6 + 3 * 1) / 5])
    np.testing.assert_allclose(found.variance, [1.0, (2 * 1 + 2 * 3 / 5 * 25) / 5])


def test_a_prior_of_fewer_than_no_cells_is_refused():
    prior = Gaussian(np.zeros(2), np.ones(2))
    for strength in (-1, np.nan, np.array([1.0, -1.0])):
        with pytest.raises(InputError, match="strength is"):
            posterior(prior, np.ones((3, 2)), strength)


def test_posterior_of_many_cells_is_their_mean_and_variance():
    prior = Gaussian(np.array([10.0]), np.array([9.0]))
    cells = np.random.default_rng(0).normal(2.0, 0.5, (200_000, 1))
    found = posterior(prior, cells, 5.0)
    assert found.mean[0] == pytest.approx(cells.mean(), abs=1e-3)
    assert found.variance[0] == pytest.approx(cells.var(), abs=3e-3)
    few = posterior(prior, cells[:4], 0.0)
    assert few.mean[0] == pytest.approx(cells[:4].mean())
    assert few.variance[0] == pytest.approx(cells[:4].var())


def test_posterior_mean_minimises_the_weighted_squares():
    """The strength is a number of cells at the prior mean: the mean of all of them, weighted."""
    cells = np.array([[1.0], [2.0]])
    prior = Gaussian(np.array([8.0]), np.array([0.0]))
    pooled = np.concatenate([cells, np.full((3, 1), 8.0)])
    found = posterior(prior, cells, 3.0)
    assert found.mean[0] == pytest.approx(pooled.mean())
    assert found.variance[0] == pytest.approx(pooled.var())  # law of total variance


# -- flow transfer -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def transfer():
    """Return a flow trained without a label whose shift differs from that of the others, and the data."""
    pytest.importorskip("zuko")
    shift = np.array([[0, -4.0, 0, 0], [4.0, 0, 0, 0], [4.4, 0, 0.3, 0], [3.6, 0, -0.3, 0]])
    adata = gaussians(shift, n=800, n_labels=4)
    train = without(adata, "A")
    FlowTransfer.setup_anndata(train, "condition", labels_key="cell_type", is_count=False)
    model = FlowTransfer(train, n_hidden=(32,), seed=0)
    model.train(100, **CPU)
    return model, adata


def test_flow_is_invertible_and_its_density_is_that_of_the_data(transfer):
    model, _ = transfer
    p = model.module.to_components(torch.as_tensor(model.adata.X))
    with torch.no_grad():
        u = model.module.encode(p)
        np.testing.assert_allclose(model.module.decode(u), p, atol=1e-3)
        gaussian = torch.distributions.Normal(0.0, 1.0).log_prob(p).sum(1).mean()
        assert model.module.flow().log_prob(p).mean() > gaussian + 1.0  # seven clusters, not one
    assert u.mean(0).abs().max() < 0.25
    assert (u.std(0) - 1).abs().max() < 0.25


def test_all_exemplars_and_no_prior_give_their_mean_in_latent_space(transfer):
    model, adata = transfer
    shown = where(adata, "A", "stimulated")
    predicted = model.predict(target="stimulated", labels="A", exemplars=shown, strength=0.0)
    u, known = (model._places(cells)[:, :4] for cells in (predicted, shown))
    np.testing.assert_allclose(u.mean(0), known.mean(0), atol=0.02)
    np.testing.assert_allclose(u.var(0), known.var(0), rtol=0.05)
    drawn = model.predict(
        target="stimulated", labels="A", exemplars=shown, strength=0.0, output="sample"
    )
    np.testing.assert_allclose(model._places(drawn)[:, :4].mean(0), known.mean(0), atol=0.15)


def test_exemplars_also_move_what_is_outside_of_the_components():
    """Of 4 genes one has a shift in the hidden label only, which 2 components do not hold."""
    pytest.importorskip("zuko")
    shift = np.array([[2.0, 0, 0, 3.0], [2.0, 0, 0, 0], [2.2, 0, 0, 0], [1.8, 0, 0, 0]])
    adata = gaussians(shift, n=400, n_labels=4)
    train = without(adata, "A")
    FlowTransfer.setup_anndata(train, "condition", labels_key="cell_type", is_count=False)
    model = FlowTransfer(train, n_pcs=2, n_hidden=(16,), seed=0)
    model.train(30, **CPU)
    real = where(adata, "A", "stimulated")
    start = where(adata, "A", "control")
    places = model._places(start)
    np.testing.assert_allclose(model._values_at(places), start.X, atol=1e-3)
    kwargs = {"target": "stimulated", "labels": "A"}
    found = model.predict(exemplars=real, strength=0.0, **kwargs).X
    np.testing.assert_allclose(found.mean(0)[3], real.X.mean(0)[3], atol=0.1)
    half = model.predict(exemplars=real[:20].copy(), strength=20.0, **kwargs).X
    seen = real[:20].X.mean(0)[3] - start.X.mean(0)[3]
    assert half.mean(0)[3] - start.X.mean(0)[3] == pytest.approx(seen / 2, abs=0.2)
    inside, outside = model.prior_strength("control", "stimulated")
    assert outside > 5 * inside  # no other label shows anything there


def test_exemplars_correct_a_prior_that_is_wrong(transfer):
    model, adata = transfer
    real = where(adata, "A", "stimulated")
    error = {}
    for n in (0, 5, 100):
        shown = real[:n].copy() if n else None
        predicted = model.predict(target="stimulated", labels="A", exemplars=shown, strength=1.0)
        error[n] = np.square(predicted.X.mean(0) - real.X.mean(0)).sum()
    distance = np.square(where(adata, "A", "control").X.mean(0) - real.X.mean(0)).sum()
    assert error[0] > 0.5 * distance  # others move along another gene
    assert error[5] < 0.25 * distance
    assert error[100] < 0.1 * distance


def test_source_prior_without_exemplars_changes_nothing(transfer):
    model, _ = transfer
    predicted = model.predict(target="stimulated", labels="A", prior="source")
    start = model.adata[predicted.obs["source_cell"]].X
    np.testing.assert_allclose(predicted.X, start, atol=2e-3)
    table = predicted.uns["trvae_sc"]["combinations"]
    assert table[["label", "n_exemplars", "strength"]].to_numpy().tolist() == [["A", 0, np.inf]]
    predicted.write_h5ad("predicted.h5ad")


def test_infinite_strength_ignores_the_exemplars(transfer):
    model, adata = transfer
    shown = where(adata, "A", "stimulated")[:9].copy()
    kwargs = {"target": "stimulated", "labels": "A"}
    found = model.predict(exemplars=shown, strength=np.inf, **kwargs).X
    np.testing.assert_array_equal(found, model.predict(**kwargs).X)


def test_the_prior_is_worth_the_cells_whose_mean_is_as_near():
    """Cells of variance 4 in each of 50 dimensions; expected means that are off by 1 in each."""
    rng = np.random.default_rng(0)
    cells = [rng.normal(centre, 2.0, (400, 50)) for centre in (0.0, 5.0, -3.0)]
    found = worth_of_prior([np.full(50, centre + 1.0) for centre in (0.0, 5.0, -3.0)], cells)
    assert found == pytest.approx(4.0 / 1.0, rel=0.1)
    exact = [x.mean(0) for x in cells]
    assert worth_of_prior(exact, cells) == np.inf
    few = [rng.normal(0.0, 2.0, (3, 50)) for _ in range(400)]  # noise of their means is no fault
    assert worth_of_prior([np.ones(50)] * 400, few) == pytest.approx(4.0, rel=0.1)
    by_hand = worth_of_prior([np.array([3.0])], [np.array([[0.0], [2.0]])])
    assert by_hand == pytest.approx(2.0 / (4.0 - 2.0 / 2))
    alone = [np.array([[9.0]]), np.array([[0.0], [2.0]])]  # the noise of one cell is not known
    assert worth_of_prior([np.array([3.0])] * 2, alone) == pytest.approx(by_hand)


def test_strength_follows_from_labels_left_out_in_turn(transfer, monkeypatch):
    model, adata = transfer
    shifts = model._shifts("control", "stimulated")
    means = model.latent_means_
    assert list(shifts) == ["B", "C", "D"]
    np.testing.assert_array_equal(shifts["B"], means["stimulated"]["B"] - means["control"]["B"])
    expected, cells = [], []
    for label in shifts:
        start, end = (where(adata, label, c) for c in ("control", "stimulated"))
        others = np.mean([shifts[other] for other in shifts if other != label], 0)
        expected.append(model._values_at(model._places(start) + others).mean(0))
        cells.append(end.X)
    inside, outside = model.prior_strength("control", "stimulated")
    assert inside == pytest.approx(worth_of_prior(expected, cells), rel=1e-3)  # all 4 dimensions
    alone = model.prior_strength("control", "stimulated", prior="source")
    assert alone[0] < inside
    shown = where(adata, "A", "stimulated")[:9].copy()
    predicted = model.predict(target="stimulated", labels="A", exemplars=shown)
    table = predicted.uns["trvae_sc"]["combinations"]
    assert table[["strength", "strength_outside"]].to_numpy().tolist() == [[inside, outside]]
    own, attached = model.adata, adata[adata.obs["cell_type"] != "B"].copy()
    model.adata = attached  # it raised a KeyError
    at = [list(shifts).index(label) for label in "CD"]
    judged = worth_of_prior([expected[i] for i in at], [cells[i] for i in at])
    assert model.prior_strength("control", "stimulated")[0] == pytest.approx(judged, rel=1e-3)
    model.adata = where(adata, "A", "control")
    with pytest.raises(InputError, match="cells attached have no label under both"):
        model.prior_strength("control", "stimulated")
    model.adata = own
    monkeypatch.setattr(model, "_adata", None)
    with pytest.raises(InputError, match="none are attached"):
        model.prior_strength("control", "stimulated")


def test_the_only_cell_of_a_label_is_drawn_from_the_posterior(transfer):
    """All draws were its mean, since the cell itself has no variance."""
    model, adata = transfer
    shown = where(adata, "A", "stimulated")
    start = where(adata, "A", "control")[:1].copy()
    kwargs = {"target": "stimulated", "exemplars": shown, "strength": 0.0, "output": "sample"}
    drawn = [model.predict(start, seed=seed, **kwargs) for seed in range(60)]
    u = np.concatenate([model._places(cells)[:, :4] for cells in drawn])
    known = model._places(shown)[:, :4]
    assert (np.abs(u.mean(0) - known.mean(0)) < 4 * known.std(0) / np.sqrt(60)).all()
    np.testing.assert_allclose(u.std(0), known.std(0), rtol=0.4)


def test_cells_without_the_column_of_labels_get_the_prior(transfer):
    """They raised a KeyError."""
    model, adata = transfer
    start, shown = where(adata, "A", "control"), where(adata, "A", "stimulated")
    known = model.predict(start, target="stimulated").X
    del start.obs["cell_type"]
    np.testing.assert_array_equal(model.predict(start, target="stimulated").X, known)
    del shown.obs["cell_type"]
    with pytest.raises(InputError, match="No column 'cell_type'"):
        model.predict(start, target="stimulated", exemplars=shown)


def test_a_comparison_says_that_exemplars_are_no_truth(transfer):
    model, adata = transfer
    shown = where(adata, "A", "stimulated")[:9].copy()
    for exemplars, told in ((shown, True), (None, False)):
        predicted = model.predict(target="stimulated", labels="A", exemplars=exemplars)
        assert ("Leave these out of truth" in str(compare(predicted, adata))) == told
        notes = " ".join(predicted.uns["trvae_sc"]["notes"])
        assert ("combined with the prediction: 9 of A" in notes) == told


def test_a_volcano_says_that_the_prediction_has_no_intervals(transfer):
    """One group was called several."""
    predicted = transfer[0].predict(target="stimulated", labels="A")
    with pytest.raises(InputError, match="A prediction by FlowTransfer has no change of each gene"):
        pl.volcano(predicted)


def test_flow_transfer_is_saved(transfer, tmp_path):
    model, adata = transfer
    shown = where(adata, "A", "stimulated")[:9].copy()
    model.save(tmp_path / "model")
    loaded = FlowTransfer.load(tmp_path / "model", model.adata.copy())
    kwargs = {"target": "stimulated", "labels": "A", "exemplars": shown}
    found = [m.predict(**kwargs).X for m in (model, loaded)]
    np.testing.assert_array_equal(*found)


class Stop(Callback):
    """Stops training after the third step by an error, as Ctrl-C and a full disk do."""

    def __init__(self, error):
        self.error = error

    def on_train_batch_end(self, trainer, *_):
        """Stop."""
        if trainer.global_step >= 3:
            raise self.error


def test_a_flow_whose_training_failed_knows_what_it_was_trained_on(make_adata):
    pytest.importorskip("zuko")
    adata = make_adata()
    FlowTransfer.setup_anndata(adata, "condition", **KEYS)
    model = FlowTransfer(adata, n_pcs=4, n_hidden=(8,))
    with pytest.raises(OSError, match="no space left"):
        model.train(50, batch_size=40, callbacks=[Stop(OSError("no space left"))], **CPU)
    assert model.is_trained
    assert model.predict(target="stimulated", source="control").n_obs


@pytest.mark.parametrize("model_cls", [FlowMatching, FlowTransfer])
def test_a_model_whose_training_was_interrupted_predicts_and_says_so(
    model_cls, make_adata, tmp_path
):
    if model_cls is FlowTransfer:
        pytest.importorskip("zuko")
    adata = make_adata()
    model_cls.setup_anndata(adata, "condition", **KEYS)
    model = model_cls(adata, n_pcs=4, n_hidden=(8,))
    with pytest.raises(KeyboardInterrupt, match="can be used"):
        model.train(50, batch_size=40, callbacks=[Stop(KeyboardInterrupt())], **CPU)
    model.save(tmp_path / "model")
    loaded = model_cls.load(tmp_path / "model", adata.copy())
    found = [m.predict(target="stimulated", source="control") for m in (model, loaded)]
    np.testing.assert_array_equal(*(predicted.X for predicted in found))
    for predicted in found:
        assert "Training was interrupted after" in " ".join(predicted.uns["trvae_sc"]["notes"])
    model.train(**QUICK)
    notes = model.predict(target="stimulated", source="control").uns["trvae_sc"]["notes"]
    assert "interrupted" not in " ".join(notes)


def test_bad_requests_of_flow_transfer(transfer):
    model, adata = transfer
    kwargs = {"target": "stimulated", "labels": "A"}
    with pytest.raises(InputError, match=r"some are under \{.control.\}"):
        model.predict(exemplars=where(adata, "A", "control"), **kwargs)
    with pytest.raises(InputError, match="exemplars has cells of 'B', but predicted are 'A'"):
        model.predict(
            exemplars=where(adata, "B", "stimulated"), **kwargs
        )  # were left out without a word
    shown = where(adata, "A", "stimulated")
    with pytest.raises(InputError, match="exemplars has no cells"):
        model.predict(exemplars=shown[:0].copy(), **kwargs)
    with pytest.raises(InputError, match=r"strength is -1"):
        model.predict(strength=-1, **kwargs)
    with pytest.raises(InputError, match="strength is nan"):
        model.predict(strength=np.nan, **kwargs)
    with pytest.raises(InputError, match="strength is '1'"):
        model.predict(strength="1", **kwargs)
    for seed in (-1, None, 1.5):
        with pytest.raises(InputError, match=f"seed is {seed}"):
            model.predict(seed=seed, **kwargs)
    with pytest.raises(InputError, match="Unknown prior 'flat'"):
        model.predict(prior="flat", **kwargs)
    with pytest.raises(InputError, match="Unknown output 'counts'"):
        model.predict(output="counts", **kwargs)
    with pytest.raises(InputError, match="Unknown condition 'heat'"):
        model.predict(target="heat")
    with pytest.raises(InputError, match="both 'control'"):
        model.predict(target="control", source="control")


def test_one_label_with_both_conditions_cannot_tell_the_strength():
    pytest.importorskip("zuko")
    adata = gaussians([2.0, 0.0, 1.0], n=60, n_labels=2)
    train = without(adata, "A")
    FlowTransfer.setup_anndata(train, "condition", labels_key="cell_type", is_count=False)
    model = FlowTransfer(train, n_hidden=(8,))
    model.train(**QUICK)
    shown = where(adata, "A", "stimulated")[:5].copy()
    with pytest.raises(InputError, match=r"1 labels were measured under both.*Give strength"):
        model.predict(target="stimulated", labels="A", exemplars=shown)
    model.predict(target="stimulated", labels="A", exemplars=shown, strength=3.0)


def test_without_zuko_it_says_how_to_install(make_adata, monkeypatch):
    adata = make_adata()
    FlowTransfer.setup_anndata(adata, "condition", **KEYS)
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("zuko"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    for name in [name for name in sys.modules if name.startswith("zuko")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"pip install 'trvae_sc\[flows\]'"):
        FlowTransfer(adata)


def test_counts_are_predicted_on_the_log_scale(make_adata):
    pytest.importorskip("zuko")
    adata = make_adata()
    FlowTransfer.setup_anndata(adata, "condition", **KEYS)
    model = FlowTransfer(adata, n_pcs=4, n_hidden=(8,))
    model.train(**QUICK)
    predicted = model.predict(target="stimulated", prior="source")
    start = adata[adata.obs["condition"] == "control"]
    share = start.X.toarray() / start.obs["n_counts"].to_numpy()[:, None]
    expected = np.log1p(np.median(adata.obs["n_counts"]) * share)
    np.testing.assert_allclose(predicted.X, expected, atol=1e-3)


@pytest.mark.parametrize("levels", [np.float32([0.1, 0.7]), [0.0, 1.0], [0, 1], [False, True]])
def test_exemplars_and_shifts_of_conditions_that_are_no_words(levels):
    """Their mean places are kept by name: those of 1.0 were looked for under "1.0"."""
    pytest.importorskip("zuko")
    names = [f"{x:g}" if not isinstance(x, bool) else str(x) for x in np.asarray(levels).tolist()]
    results = []
    for of in (["control", "stimulated"], levels):
        adata = gaussians([2.0, 0.0, 1.0], n=60, n_labels=3)
        codes = (adata.obs["condition"] == "stimulated").to_numpy().astype(int)
        hidden = (codes == 1) & (adata.obs["cell_type"] == "A").to_numpy()
        adata.obs["condition"] = np.asarray(of)[codes]
        train, shown = adata[~hidden].copy(), adata[hidden][:5].copy()
        FlowTransfer.setup_anndata(train, "condition", labels_key="cell_type", is_count=False)
        model = FlowTransfer(train, n_hidden=(8,), seed=0)
        model.train(**QUICK)
        assert set(model._shifts(*model.conditions)) == {"B", "C"}
        targets = [of[1]] if of is not levels else [of[1], names[1]]
        for target in targets:
            kwargs = {"target": target, "labels": "A"}
            strength = np.array(model.prior_strength(*model.conditions))
            found = [model.predict(**more, **kwargs).X for more in ({}, {"exemplars": shown})]
            results.append([*found, strength])
        with pytest.raises(InputError, match="Exemplars are cells under"):
            model.predict(exemplars=train[codes[~hidden] == 0][:3].copy(), **kwargs)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
