"""Training: history, seeds, best weights, interruption, checkpoints, statistics, batches."""

import gc
import itertools
import os
import random
import signal
import subprocess
import textwrap
import weakref
from pathlib import Path

import lightning.pytorch as lightning
import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from anndata import AnnData
from filelock import FileLock

import trvae_sc
from trvae_sc import TRVAE
from trvae_sc.errors import InputError
from trvae_sc.module._terms import draw_transfer
from trvae_sc.training import DataSplitter
from trvae_sc.training._data import Batches
from trvae_sc.training._plan import training_statistics, transfer_factor

CPU = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False}
TERMS = ("reconstruction", "kl", "mmd", "transfer")
#: 120 cells in 3 batches.
STEPS = {"max_epochs": 5, "batch_size": 40}
VALIDATING = {**STEPS, "train_size": 0.8, "check_val_every_n_epoch": 1}
STOPPING = {**STEPS, "early_stopping": True}


class Killed(Exception):
    """Stands for a process that ends."""


class At(lightning.Callback):
    """Calls a function at the end of a hook in one epoch."""

    def __init__(self, epoch, action, hook="on_train_epoch_end"):
        def call(trainer, plan, *args):
            if trainer.current_epoch == epoch:
                action(trainer, plan)

        setattr(self, hook, call)


def no_space(trainer, plan):
    raise OSError("no space left")


class Spoil(lightning.Callback):
    """Multiplies the output weights when an epoch starts."""

    def __init__(self, epoch, factor):
        self.epoch, self.factor = epoch, factor

    def on_train_epoch_start(self, trainer, plan):
        if trainer.current_epoch == self.epoch:
            with torch.no_grad():
                plan.module.output.weight.mul_(self.factor)


class Keep(lightning.Callback):
    """Keeps the weights at the end of every epoch, and its validation ELBO."""

    def __init__(self):
        self.weights, self.elbo = [], []

    def on_validation_end(self, trainer, plan):
        self.elbo.append(trainer.callback_metrics["elbo_validation"].item())

    def on_train_epoch_end(self, trainer, plan):
        self.weights.append(weights_of(plan))


class Rates(lightning.Callback):
    """Notes the learning rate of every step."""

    def __init__(self):
        self.rates = []

    def on_train_batch_start(self, trainer, *args):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


class Seen(lightning.Callback):
    """Notes the condition codes of every batch."""

    def __init__(self):
        self.batches = []

    def on_train_batch_start(self, trainer, plan, batch, *args):
        self.batches.append(batch["condition"].numpy().ravel().astype(int))


def kill(trainer, plan):
    raise Killed


def weights_of(owner):
    return {k: v.cpu().numpy().copy() for k, v in owner.module.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(
        first[k].tobytes() == second[k].tobytes() for k in first
    )


def assert_same_run(found, expected):
    """Assert equal weights, to the bit, equal histories and equal splits."""
    assert same(weights_of(found), weights_of(expected))
    assert found.history.keys() == expected.history.keys()
    for name, frame in expected.history.items():
        pd.testing.assert_frame_equal(found.history[name], frame, check_index_type=False)
    assert found.is_trained
    assert np.array_equal(found.train_indices, expected.train_indices)
    assert np.array_equal(found.validation_indices, expected.validation_indices)


def curve(model, name):
    return model.history[name].to_numpy(float).ravel()


# -- history ----------------------------------------------------------------------------------------


def test_the_transfer_loss_counts_twice_in_every_second_step():
    assert [transfer_factor(step) for step in range(4)] == [2.0, 0.0, 2.0, 0.0]


def test_history_has_every_term_raw_and_weighted_and_the_loss_is_their_sum(fit):
    weights = {"recon_weight": 2.0, "kl_weight": 0.7, "mmd_weight": 3.0, "transfer_weight": 0.5}
    model = fit(train=VALIDATING, **weights)
    raw = ("reconstruction_loss", "kl_local", "mmd", "transfer")
    factor = dict(zip(TERMS, weights.values(), strict=True))
    factor["kl"] = curve(model, "kl_weight")
    assert factor["kl"].tolist() == pytest.approx([0.0, 0.35, 0.7, 0.7, 0.7])
    for mode, loss in (("train", "train_loss"), ("validation", "validation_loss")):
        total = np.zeros(5)
        for name, term in zip(raw, TERMS, strict=True):
            value = curve(model, f"{name}_{mode}")
            weighted = curve(model, f"{term}_weighted_{mode}")
            assert weighted == pytest.approx(factor[term] * value, rel=1e-5, abs=1e-7)
            total += weighted
        assert (curve(model, f"reconstruction_loss_{mode}") > 0).all()
        assert curve(model, loss) == pytest.approx(total, rel=1e-5)
        elbo = curve(model, f"reconstruction_loss_{mode}") + curve(model, f"kl_local_{mode}")
        assert curve(model, f"elbo_{mode}") == pytest.approx(elbo, rel=1e-6)
    for frame in model.history.values():
        assert frame.index.tolist() == [0, 1, 2, 3, 4]


def test_terms_without_weight_add_nothing(fit):
    model = fit(train=STEPS, preset="cvae")
    assert (curve(model, "mmd_weighted_train") == 0).all()
    assert (curve(model, "transfer_weighted_train") == 0).all()
    total = curve(model, "reconstruction_weighted_train") + curve(model, "kl_weighted_train")
    assert curve(model, "train_loss") == pytest.approx(total, rel=1e-6)


def test_loss_falls(fit):
    model = fit(train={"max_epochs": 40, "batch_size": 40})
    loss = curve(model, "reconstruction_loss_train")
    assert loss[-5:].mean() < loss[:5].mean() - 1


def test_history_by_step_has_a_row_for_every_step(fit):
    model = fit(train={**STEPS, "plan_kwargs": {"on_step": True}})
    by_step = model.history["train_loss_step"]
    assert by_step.index.name == "step"
    assert by_step.index.tolist() == list(range(15))
    means = curve(model, "train_loss_step").reshape(5, 3).mean(1)  # batches are of one size
    assert curve(model, "train_loss") == pytest.approx(means, rel=1e-5)
    model.train(max_epochs=2, batch_size=40, plan_kwargs={"on_step": True}, **CPU)
    assert model.history["train_loss_step"].index.tolist() == list(range(21))
    assert "train_loss_step" not in fit(train=STEPS).history


class Told(lightning.Callback):
    """Notes what callbacks and the progress bar are told at the end of training."""

    def on_train_end(self, trainer, plan):
        found = {**trainer.callback_metrics, **trainer.logged_metrics}
        metrics = {k: (v.item(), v.dtype, v.shape) for k, v in found.items()}
        names = list(trainer.callback_metrics), list(trainer.logged_metrics)
        self.all = metrics, names, trainer.progress_bar_metrics


def test_epochs_are_logged_as_by_lightning_and_scvi_tools(fit, monkeypatch):
    """Which take four times as long."""
    from lightning.pytorch.loggers import CSVLogger
    from scvi.train._logger import SimpleExperiment

    import trvae_sc.training._plan as plan_
    import trvae_sc.training._run as run_

    def usual(plan, metrics, *, shown=()):
        for name, value in metrics.items():
            plan.log(name, value, prog_bar=name in shown)

    settings = {**VALIDATING, "check_val_every_n_epoch": 2, "plan_kwargs": {"on_step": True}}
    runs = []
    for logs, experiment in ((plan_.log_epoch, run_.History), (usual, SimpleExperiment)):
        monkeypatch.setattr(plan_, "log_epoch", logs)
        monkeypatch.setattr(run_, "History", experiment)
        told = Told()
        history = fit(train={**settings, "callbacks": [told]}).history
        logger = CSVLogger(logs.__name__)
        fit(train={**settings, "logger": logger})
        runs.append((history, told, pd.read_csv(Path(logger.log_dir) / "metrics.csv")))
    (found, told, table), (expected, told_usually, usual_table) = runs
    assert list(found) == list(expected)
    for name, frame in expected.items():
        pd.testing.assert_frame_equal(found[name], frame, check_exact=True)
    assert told.all == told_usually.all
    pd.testing.assert_frame_equal(table, usual_table, check_exact=True)


# -- schedules --------------------------------------------------------------------------------------


def test_kl_weight_rises_linearly_over_the_first_epochs(fit):
    model = fit(train={"max_epochs": 10}, kl_weight=0.6)
    assert curve(model, "kl_weight") == pytest.approx([0.0, 0.2, 0.4, *[0.6] * 7], rel=1e-6)
    plan = {"n_epochs_kl_warmup": 2, "max_kl_weight": 0.3, "min_kl_weight": 0.1}
    model = fit(train={"max_epochs": 4, "plan_kwargs": plan})
    assert curve(model, "kl_weight") == pytest.approx([0.1, 0.2, 0.3, 0.3], rel=1e-6)


def test_kl_weight_rises_by_step_where_asked(fit):
    """The value logged is that after the last step of the epoch, of which there are 3."""
    model = fit(train={**STEPS, "plan_kwargs": {"n_steps_kl_warmup": 12}})
    assert curve(model, "kl_weight") == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0], rel=1e-6)


def test_kl_weight_of_the_paper_is_constant(fit):
    model = fit(train=STEPS, preset="paper", gene_likelihood="mse")
    assert curve(model, "kl_weight") == pytest.approx([5e-8] * 5, rel=1e-6)


def test_learning_rate_goes_through_one_cycle(fit):
    rates = Rates()
    fit(train={"max_epochs": 10, "batch_size": 40, "lr": 0.01, "callbacks": [rates]})
    found = np.array(rates.rates)
    assert len(found) == 30
    assert found[0] == pytest.approx(0.01 / 25)
    assert found.argmax() == 0.3 * 30 - 1
    assert found.max() == pytest.approx(0.01)
    assert found[-1] == pytest.approx(0.01 / 25 / 1e4)
    assert (np.diff(found[:9]) > 0).all()
    assert (np.diff(found[8:]) < 0).all()


def test_learning_rate_is_constant_without_schedule_and_as_published(fit):
    rates = Rates()
    fit(train={**STEPS, "plan_kwargs": {"lr_schedule": None}, "callbacks": [rates]})
    assert set(rates.rates) == {1e-2}
    rates = Rates()
    fit(train={**STEPS, "callbacks": [rates]}, preset="paper", gene_likelihood="mse")
    assert set(rates.rates) == {1e-3}


@pytest.mark.parametrize(
    ("n_cells", "batch_size", "epochs"),
    [
        (120, None, 300),  # 1 step an epoch: as many as make 300 steps
        (120, 50, 100),
        (120, 8, 60),  # 15 steps an epoch
        (1200, 2, 50),  # 600 steps an epoch: as many as fit into 30,000
        (1300, 1, 23),
    ],
)
def test_default_number_of_epochs_makes_300_to_30000_steps(
    fit, make_adata, n_cells, batch_size, epochs
):
    found = []

    def stop(trainer, plan):
        found.append((trainer.max_epochs, trainer.estimated_stepping_batches))
        raise Killed

    callbacks = [At(0, stop, "on_train_epoch_start")]
    with pytest.raises(Killed):
        fit(
            make_adata(n_cells, 5),
            train={"max_epochs": None, "batch_size": batch_size, "callbacks": callbacks},
        )
    assert found[0][0] == epochs
    assert 300 <= found[0][1] <= 30_000


# -- seeds ------------------------------------------------------------------------------------------


def test_equal_seeds_give_equal_weights_and_others_do_not(fit):
    train = {**STOPPING, "balance_conditions": True}
    first, second, other = (fit(train=train, seed=seed) for seed in (3, 3, 4))
    assert_same_run(second, first)
    assert not same(weights_of(first), weights_of(other))
    assert first.train_indices.tolist() != other.train_indices.tolist()
    scvi.settings.seed = 3
    assert same(weights_of(fit(train=train)), weights_of(first))


def test_initial_weights_follow_the_seed(fit):
    first, second, other = (fit(train=False, seed=seed) for seed in (3, 3, 4))
    assert same(weights_of(first), weights_of(second))
    assert not np.array_equal(
        first.module.encoder_in.linear.weight.detach(),
        other.module.encoder_in.linear.weight.detach(),
    )


def test_global_random_states_are_left_alone(fit, make_adata):
    adata = make_adata()
    torch.manual_seed(11)
    state = np.random.get_state()  # noqa: NPY002
    states = torch.get_rng_state(), random.getstate()
    fit(adata, train={**STOPPING, "balance_conditions": True}, setup={"batch_key": "batch"})
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    found = np.random.get_state()  # noqa: NPY002
    assert found[1].tolist() == state[1].tolist()
    assert found[2:] == state[2:]


# -- best weights -----------------------------------------------------------------------------------


def test_early_stopping_puts_the_weights_of_the_best_epoch_back(fit, capsys):
    keep = Keep()
    model = fit(
        train={
            **STOPPING,
            "max_epochs": 20,
            "early_stopping_patience": 2,
            "callbacks": [keep, Spoil(4, 20.0)],
        }
    )
    best = int(np.argmin(keep.elbo))
    assert best < 4 <= len(keep.elbo) - 1 < 19
    assert curve(model, "elbo_validation") == pytest.approx(keep.elbo)
    assert same(weights_of(model), keep.weights[best])
    assert not same(weights_of(model), keep.weights[-1])
    assert len(model.validation_indices) == 12
    assert not model.module.training


def test_best_weights_follow_the_monitor_and_its_direction(fit, capsys):
    """A made-up monitor: the largest MMD is taken for the best."""
    keep = Keep()
    monitor = {"early_stopping_monitor": "mmd_validation", "early_stopping_mode": "max"}
    model = fit(train={**STOPPING, **monitor, "callbacks": [keep]})
    best = int(curve(model, "mmd_validation").argmax())
    assert same(weights_of(model), keep.weights[best])


def test_without_early_stopping_the_last_weights_stay(fit):
    keep = Keep()
    model = fit(train={**VALIDATING, "callbacks": [keep, Spoil(4, 20.0)]})
    assert same(weights_of(model), keep.weights[-1])


def test_validation_that_is_no_number_is_never_the_best(fit, capsys):
    """NaN compares as not worse; it once replaced the best weights before the error came."""
    keep = Keep()
    model = fit(train=False)
    with pytest.raises(FloatingPointError, match="became nan in epoch 3"):
        model.train(**STOPPING, callbacks=[keep, Spoil(3, float("nan"))], **CPU)
    assert np.isnan(keep.elbo[3])
    assert same(weights_of(model), keep.weights[int(np.nanargmin(keep.elbo))])


# -- numbers out of range ---------------------------------------------------------------------------


def test_a_learning_rate_that_blows_up_is_named(fit):
    model = fit(train=False)
    plan = {"lr_schedule": None}
    with pytest.raises(FloatingPointError, match=r"became (nan|inf) in epoch \d.*lower the learn"):
        model.train(max_epochs=20, batch_size=40, lr=1e30, plan_kwargs=plan, **CPU)
    assert not model.is_trained
    with pytest.raises(RuntimeError, match="not trained"):
        model.predict(target="stimulated")


def test_data_are_needed(fit):
    model = fit()
    model.save("saved")
    loaded = TRVAE.load("saved", adata=False)
    with pytest.raises(InputError, match="loaded without data: attach some"):
        loaded.train(max_epochs=1, **CPU)


# -- interruption -----------------------------------------------------------------------------------


def by_exception(trainer, plan):
    raise KeyboardInterrupt


def by_signal(trainer, plan):
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_ends_training_where_its_handler_is_of_another_language(fit, monkeypatch):
    """As under R, whose handler Python does not know; it ended in a TypeError."""
    model = fit(train=False)
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    with pytest.raises(KeyboardInterrupt, match="stopped in epoch 0 of 2"):
        model.train(callbacks=At(0, by_exception), max_epochs=2, **CPU)
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("interrupt", [by_exception, by_signal])
def test_ctrl_c_leaves_a_usable_model_with_the_best_weights(fit, make_adata, interrupt):
    handler = signal.getsignal(signal.SIGINT)
    keep = Keep()
    callbacks = [keep, Spoil(2, 20.0), At(3, interrupt, "on_train_batch_end")]
    model = fit(train=False)
    with pytest.raises(KeyboardInterrupt, match=r"stopped in epoch 3 of 5; .* best epoch, 1,"):
        model.train(**STOPPING, callbacks=callbacks, **CPU)
    assert signal.getsignal(signal.SIGINT) is handler
    assert int(np.argmin(keep.elbo)) == 1
    assert same(weights_of(model), keep.weights[1])
    assert curve(model, "elbo_validation") == pytest.approx(keep.elbo)
    assert len(keep.elbo) == 3
    assert model.is_trained
    assert not model.module.training
    assert len(model.train_indices) == 108
    assert model.predict(make_adata(12), target="stimulated").n_obs == 6
    model.train(max_epochs=1, **CPU)
    assert not same(weights_of(model), keep.weights[1])


def test_a_model_knows_how_far_it_was_trained(fit, make_adata):
    """A model that was interrupted looked finished."""
    model = fit(train=False)
    assert model.training_ == {"epochs": 0, "planned": 0, "default": 0, "interrupted": False}
    with pytest.raises(KeyboardInterrupt):
        model.train(**STEPS, callbacks=[At(2, by_exception)], **CPU)
    told = "interrupted after 2 of 5 epochs"
    model.save("model")
    for stopped in (model, TRVAE.load("model", make_adata())):
        done = {k: v for k, v in stopped.training_.items() if k != "default"}
        assert done == {"epochs": 2, "planned": 5, "interrupted": True}
        assert f"  training    {told}, 20" in repr(stopped)
        record = stopped.predict(target="stimulated").uns["trvae_sc"]
        assert any(f"{told}: the model is unfinished" in note for note in record["notes"])
        assert record["training"]["interrupted"] is True
    model.train(max_epochs=1, **CPU)
    assert model.training_["interrupted"] is False
    assert "interrupted" not in repr(model)
    assert "3 of 3 epochs" in repr(model)


def test_epochs_are_those_of_all_calls_of_train(fit):
    """Five epochs and then one were said to be one of one; losses of validation were left out."""
    model = fit(train={"max_epochs": 3})
    model.train(max_epochs=2, train_size=0.8, check_val_every_n_epoch=1, **CPU)
    assert model.training_["epochs"] == model.training_["planned"] == 5
    assert model.history["elbo_train"].index.tolist() == list(range(5))
    assert model.history["elbo_validation"].index.tolist() == [3, 4]
    assert model.predict(target="stimulated").uns["trvae_sc"]["training"]["epochs"] == 5


def test_a_trained_model_that_is_trained_on_for_no_step_stays_trained(fit):
    """It was one that was not trained."""
    model = fit()
    model.train(max_epochs=2, max_time="00:00:00:00", **CPU)
    assert model.is_trained
    with pytest.raises(KeyboardInterrupt, match="and can be used"):
        model.train(**STEPS, callbacks=[At(0, by_exception, "on_train_epoch_start")], **CPU)
    assert model.training_["epochs"] == 2
    assert len(model.history["elbo_train"]) == 2
    assert model.predict(target="stimulated").n_obs == 60


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"accelerator": "cuda0"}, InputError),
        ({"precision": "64-true"}, InputError),
        ({"train_size": 0.5, "plan_kwargs": {"optimizer": "sgd"}}, InputError),
        ({"callbacks": At(0, no_space, "on_train_start")}, OSError),  # after statistics
    ],
)
def test_a_call_of_train_that_fails_leaves_a_trained_model_as_it_was(fit, arguments, error):
    """It predicted otherwise: codes of its training cells were gone, and effects raised an AssertionError."""
    model = fit()
    before, n_cells = model.predict(target="stimulated", output="mean").X, model.n_cells
    table = model.effects(target="stimulated")
    with pytest.raises(error):
        model.train(**{**CPU, "max_epochs": 1, **arguments})
    assert not model.module.training
    assert np.array_equal(model.predict(target="stimulated", output="mean").X, before)
    assert model.effects(target="stimulated").equals(table)
    assert model.n_cells.equals(n_cells)


@pytest.mark.parametrize("hook", ["on_train_start", "on_train_epoch_end"])
@pytest.mark.parametrize("error", [OSError("no space"), FloatingPointError("no number")])
def test_a_model_whose_training_fails_goes_back_to_its_device(fit, monkeypatch, hook, error):
    """Lightning leaves it on the CPU, where a GPU's predictions went on many times slower, without a word."""

    def fail(trainer, plan):
        raise error

    model, moved = fit(), []
    monkeypatch.setattr(model, "to_device", moved.append)
    with pytest.raises(type(error)):
        model.train(**CPU, max_epochs=1, callbacks=At(0, fail, hook))
    assert moved == [model.device]


def test_a_trained_model_whose_loss_is_no_number_has_no_effects(fit):
    """They were a table of NaN."""
    model = fit()
    with pytest.raises(FloatingPointError):
        model.train(max_epochs=3, lr=1e30, **CPU)
    with pytest.raises(InputError, match="Weights of the model are NaN"):
        model.effects(target="stimulated")


def test_a_callback_that_fails_leaves_a_model_that_can_be_used(fit):
    def fail(trainer, plan):
        raise ValueError("of a callback")

    model = fit(train=False)
    with pytest.raises(ValueError, match="of a callback"):
        model.train(**STEPS, callbacks=At(2, fail), **CPU)
    assert model.training_["epochs"] == 2
    assert model.training_["interrupted"]
    assert np.isfinite(model.effects(target="stimulated")["change"]).all()


def test_a_run_resumed_by_the_same_model_is_recorded_once(fit):
    """Epochs before the interruption were in the history twice."""
    model = fit(train={"max_epochs": 1})
    run = {**STEPS, "checkpoint_dir": "run", "plan_kwargs": {"on_step": True}}
    with pytest.raises(KeyboardInterrupt):
        model.train(**run, callbacks=[At(2, by_exception)], **CPU)
    assert model.training_["epochs"] == 3
    for _ in range(2):  # the second finds the run finished
        model.train(**run, **CPU)
        assert model.training_["epochs"] == model.training_["planned"] == 6
        assert model.history["elbo_train"].index.tolist() == list(range(6))
        steps = model.history["train_loss_step"].index
        assert steps.tolist() == list(range(len(steps)))


def test_ctrl_c_without_validation_leaves_the_latest_weights(fit):
    latest = []

    def stop(trainer, plan):
        latest.append(weights_of(plan))
        raise KeyboardInterrupt

    model = fit(train=False)
    with pytest.raises(
        KeyboardInterrupt, match=r"stopped in epoch 2 of 5; .* weights of the latest step"
    ):
        model.train(**STEPS, callbacks=[At(2, stop)], **CPU)
    assert same(weights_of(model), latest[0])
    assert model.is_trained


def test_ctrl_c_before_the_first_step_leaves_the_model_untrained(fit):
    model = fit(train=False)
    callbacks = [At(0, by_exception, "on_train_epoch_start")]
    with pytest.raises(KeyboardInterrupt, match="before the first step; the model is not trained"):
        model.train(**STEPS, callbacks=callbacks, **CPU)
    assert not model.is_trained


# -- checkpoints ------------------------------------------------------------------------------------

PLATEAU = {"reduce_lr_on_plateau": True, "lr_patience": 0}
RUNS = {
    "plain": ({}, STEPS),
    "steps": ({}, {**STEPS, "plan_kwargs": {"on_step": True}}),
    "validation": (
        {"setup": {"batch_key": "batch"}},
        {**STOPPING, "balance_conditions": True, "early_stopping_patience": 3},
    ),
    "paper": ({"preset": "paper", "gene_likelihood": "mse"}, VALIDATING),
    "plateau": (
        {},
        {**VALIDATING, "plan_kwargs": {**PLATEAU, "lr_threshold": 1e9}},  # lower every epoch
    ),
    "plateau of some": (
        {},
        {
            **{**VALIDATING, "check_val_every_n_epoch": 2},
            "plan_kwargs": {**PLATEAU, "lr_threshold": 1e9},
        },
    ),
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("hook", ["on_train_epoch_end", "on_train_batch_end"])
def test_a_run_killed_and_resumed_ends_as_one_that_was_not(fit, name, hook):
    arguments, train = RUNS[name]
    expected = fit(train=train, **arguments)
    with pytest.raises(Killed):
        fit(
            train={**train, "checkpoint_dir": "http_run", "callbacks": [At(2, kill, hook)]},
            **arguments,
        )
    keep = Keep()  # "http" is no address
    resumed = fit(train={**train, "checkpoint_dir": "http_run", "callbacks": [keep]}, **arguments)
    assert len(keep.weights) == 3  # epochs 2, 3, 4
    assert_same_run(resumed, expected)


def test_checkpoints_do_not_change_the_result(fit):
    expected = fit(train=STEPS)
    assert_same_run(fit(train={**STEPS, "checkpoint_dir": Path("some") / "run"}), expected)
    assert sorted(p.name for p in Path("some/run").iterdir()) == [".lock", "last.ckpt"]


@pytest.mark.parametrize(
    "train",
    [STEPS, {**STOPPING, "early_stopping_patience": 1, "early_stopping_min_delta": 1e9}],
)
def test_a_finished_run_is_loaded_and_not_trained_further(fit, capsys, train):
    """A run that early stopping had ended once went on, and a full one lacked history."""
    spoil = Spoil(1, 20.0)  # so that the best epoch is not the last
    expected = fit(train={**train, "checkpoint_dir": "run", "callbacks": [spoil]})
    rates = Rates()
    again = fit(train={**train, "checkpoint_dir": "run", "callbacks": [rates]})
    assert rates.rates == []
    assert_same_run(again, expected)
    assert again.training_ == expected.training_


CHILD = """
import os, signal, sys
import anndata, lightning.pytorch as lightning
from trvae_sc import TRVAE

class Die(lightning.Callback):
    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 10:
            os.kill(os.getpid(), signal.SIGKILL)

adata = anndata.read_h5ad("cells.h5ad")
TRVAE.setup_anndata(adata, "condition", labels_key="cell_type", total_counts_key="n_counts")
model = TRVAE(adata, n_latent=4, n_hidden=(16, 8))
model.train(
    max_epochs=5, batch_size=40, checkpoint_dir="run", callbacks=[Die()], accelerator="cpu",
    devices=1, enable_progress_bar=False,
)
"""


def test_a_process_killed_is_resumed_by_another(fit, make_adata, python):
    make_adata().write_h5ad("cells.h5ad")
    path = str(Path(trvae_sc.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [python, "-c", CHILD], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    keep = Keep()
    resumed = fit(make_adata(), train={**STEPS, "checkpoint_dir": "run", "callbacks": [keep]})
    assert len(keep.weights) == 2  # epochs 3, 4
    assert_same_run(resumed, fit(train=STEPS))


def test_a_kill_while_the_checkpoint_is_written_leaves_the_one_before(fit, monkeypatch):
    save = lightning.Trainer.save_checkpoint
    calls = itertools.count()

    def save_half(self, path, *args, **kwargs):
        save(self, path, *args, **kwargs)
        if next(calls) == 2:
            written = Path(path).read_bytes()
            Path(path).write_bytes(written[: len(written) // 2])
            raise Killed

    before = []
    callbacks = [
        At(1, lambda *_: before.append(1)),
        At(2, lambda *_: before.append(Path("run/last.ckpt").read_bytes())),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(lightning.Trainer, "save_checkpoint", save_half)
        with pytest.raises(Killed):
            fit(train={**STEPS, "checkpoint_dir": "run", "callbacks": callbacks})
    assert Path("run/last.ckpt").read_bytes() == before[-1]
    assert Path("run/last.tmp").exists()
    resumed = fit(train={**STEPS, "checkpoint_dir": "run"})
    assert_same_run(resumed, fit(train=STEPS))
    assert sorted(p.name for p in Path("run").iterdir()) == [".lock", "last.ckpt"]


def test_a_folder_is_for_one_training_at_a_time(fit):
    with FileLock("run/.lock"), pytest.raises(InputError, match="Another training uses run"):
        fit(train={**STEPS, "checkpoint_dir": "run"})
    assert_same_run(fit(train={**STEPS, "checkpoint_dir": "run"}), fit(train=STEPS))


def test_a_run_that_could_not_start_leaves_the_folder_free(fit):
    model = fit(train=False)
    with pytest.raises(ValueError, match="Precision 'x' is invalid") as kept:
        model.train(**STEPS, **CPU, checkpoint_dir="run", precision="x")
    model.train(**STEPS, **CPU, checkpoint_dir="run")  # as in a notebook, which keeps the error
    assert kept is not None
    assert model.is_trained


def test_a_damaged_checkpoint_is_named(fit, make_adata):
    train = {**STEPS, "max_epochs": 1, "checkpoint_dir": "run"}
    fit(make_adata(), train=train)
    file, rng = Path("run/last.ckpt"), np.random.default_rng(0)
    written = file.read_bytes()
    for content in (b"", b"junk", b"\x80\x02X", b"version 1\n", rng.bytes(40), written[:-1000]):
        file.write_bytes(content)
        with pytest.raises(InputError, match=r"last\.ckpt is damaged, .* Delete it to start anew"):
            fit(make_adata(), train=train)
    file.unlink()
    fit(make_adata(), train=train)


def test_another_run_is_not_resumed(fit, make_adata):
    base = {**STEPS, "max_epochs": 2, "checkpoint_dir": "run"}
    fit(make_adata(), train=base)
    written = Path("run/last.ckpt").read_bytes()
    rows = [np.arange(100), np.arange(100, 120)]
    other_train = [
        {"max_epochs": 3},
        {"batch_size": 30},
        {"lr": 1e-3},
        {"train_size": 0.5},
        {"early_stopping": True},
        {"balance_conditions": True},
        {"gradient_clip_val": 1.0},
        {"check_val_every_n_epoch": 1},
        {"plan_kwargs": {"weight_decay": 0.5}},
        {"datasplitter_kwargs": {"seed": 9}},
        {"datasplitter_kwargs": {"external_indexing": rows}},
    ]
    other_model = [{"seed": 1}, {"mmd_weight": 1.0}, {"n_latent": 5}, {"preset": "cvae"}]
    changed = make_adata()
    changed.X[0, 0] += 1
    relabelled = make_adata()
    relabelled.obs["cell_type"] = relabelled.obs["cell_type"].to_numpy()[::-1].copy()
    renamed = make_adata()
    renamed.var_names = [f"other_{j}" for j in range(30)]
    tries = [({"adata": make_adata(), "train": {**base, **t}}) for t in other_train]
    tries += [{"adata": make_adata(), "train": base, **m} for m in other_model]
    tries += [{"adata": a, "train": base} for a in (changed, relabelled, renamed)]
    tries += [{"adata": make_adata(), "train": base, "setup": {"batch_key": "batch"}}]
    for arguments in tries:
        with pytest.raises(InputError, match=r"is of a run with other data or arguments\. Choose"):
            fit(**arguments)
    assert Path("run/last.ckpt").read_bytes() == written
    fit(make_adata(), train={**base, "log_every_n_steps": 1, "logger": False})  # may differ


def test_a_run_with_other_features_of_its_conditions_is_not_resumed(fit, make_adata):
    def run(doses):
        adata = make_adata()
        adata.obs["condition"] = np.array(["a", "b", "c"])[np.arange(adata.n_obs) % 3]
        table = pd.DataFrame({"dose": doses}, index=["a", "b", "c"])
        train = {**STEPS, "max_epochs": 1, "checkpoint_dir": "run"}
        fit(adata, setup={"condition_features": table}, train=train)

    for _ in range(2):
        run([0.0, 1.0, 10.0])
    with pytest.raises(InputError, match="other data or arguments"):
        run([0.0, 2.0, 3.0])


def test_long_lists_of_rows_tell_runs_apart(fit, make_adata):
    """numpy prints the ends of long arrays only, so that their text says little."""
    adata = make_adata(1200, 5)
    train = {"max_epochs": 1, "checkpoint_dir": "run"}
    rows = np.arange(1200)
    splits = []
    for middle in (600, 700):
        test = np.arange(middle, middle + 50)
        splits.append([np.setdiff1d(rows, test), np.array([], int), test])
    fit(adata, train={**train, "datasplitter_kwargs": {"external_indexing": splits[0]}})
    with pytest.raises(InputError, match="other data or arguments"):
        fit(adata, train={**train, "datasplitter_kwargs": {"external_indexing": splits[1]}})


# -- batches ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "batch_size", "sizes"),
    [
        (10, 4, [4, 3, 3]),
        (9, 8, [5, 4]),
        (129, 128, [65, 64]),
        (8, 4, [4, 4]),
        (3, 8, [3]),
        (1, 1, [1]),
    ],
)
def test_batches_are_even_and_have_every_row_once(n, batch_size, sizes):
    rows = np.arange(100, 100 + n)
    batches = Batches(rows, batch_size, shuffle=True)
    torch.manual_seed(0)
    first, second = list(batches), list(batches)
    assert len(batches) == len(sizes)
    for drawn in (first, second):
        assert sorted((len(b) for b in drawn), reverse=True) == sizes
        assert sorted(np.concatenate(drawn)) == rows.tolist()
    if n > 8:
        assert np.concatenate(first).tolist() != np.concatenate(second).tolist()


def test_batches_in_order_and_without_the_last():
    rows = np.arange(100, 110)
    found = list(Batches(rows, 4))
    assert [b.tolist() for b in found] == [[100, 101, 102, 103], [104, 105, 106, 107], [108, 109]]
    found = list(Batches(rows, 4, drop_last=True))
    assert [b.tolist() for b in found] == [[100, 101, 102, 103], [104, 105, 106, 107]]
    torch.manual_seed(0)
    drawn = list(Batches(rows, 4, shuffle=True, drop_last=True))
    assert [len(b) for b in drawn] == [4, 4]
    assert len(np.unique(np.concatenate(drawn))) == 8
    found = list(Batches(rows[:3], 4, shuffle=True, drop_last=True))
    assert [len(b) for b in found] == [3]  # the only batch is kept


def test_weighted_batches_draw_with_the_weights():
    weights = np.array([1.0, 0.0, 3.0])
    torch.manual_seed(0)
    batches = Batches(np.array([5, 6, 7]), 3, shuffle=True, weights=weights)
    drawn = np.concatenate([np.concatenate(list(batches)) for _ in range(1000)])
    assert len(drawn) == 3000
    assert set(drawn) == {5, 7}
    assert np.mean(drawn == 7) == pytest.approx(0.75, abs=4 * np.sqrt(0.75 * 0.25 / 3000))


def one_to_twenty(make_adata):
    """Return 200 control and 10 stimulated cells."""
    adata = make_adata(420)
    stimulated = np.flatnonzero(adata.obs["condition"] == "stimulated")[:10]
    control = np.flatnonzero(adata.obs["condition"] == "control")[:200]
    return adata[np.sort([*control, *stimulated])].copy()


def test_balanced_conditions_are_drawn_equally_often(fit, make_adata):
    balanced, plain = Seen(), Seen()
    adata = one_to_twenty(make_adata)
    train = {"max_epochs": 6, "batch_size": 70}
    fit(adata, train={**train, "balance_conditions": True, "callbacks": [balanced]})
    fit(adata, train={**train, "callbacks": [plain]})
    assert [len(b) for b in balanced.batches] == [70] * 18
    draws = np.concatenate(balanced.batches)
    assert draws.mean() == pytest.approx(0.5, abs=4 * np.sqrt(0.25 / len(draws)))
    by_epoch = draws.reshape(6, 210).mean(1)
    assert len(set(by_epoch)) > 1  # drawn anew
    assert np.concatenate(plain.batches).mean() == pytest.approx(10 / 210)


# -- statistics of the training cells ---------------------------------------------------------------


def by_hand(adata, rows, shares):
    """Return numbers and mean shares of the cells of every label and condition."""
    part = adata.obs.iloc[rows]
    n_cells, means = np.zeros((3, 2)), np.zeros((3, 2, adata.n_vars))
    for i, label in enumerate(["B", "NK", "T"]):
        for j, condition in enumerate(["control", "stimulated"]):
            chosen = ((part["cell_type"] == label) & (part["condition"] == condition)).to_numpy()
            n_cells[i, j] = chosen.sum()
            means[i, j] = shares[rows][chosen].mean(0)
    return n_cells, means


@pytest.mark.parametrize("total_counts_key", ["n_counts", None])
def test_statistics_of_counts_equal_numpy_on_the_training_cells(fit, make_adata, total_counts_key):
    adata = make_adata()
    model = fit(
        adata, setup={"total_counts_key": total_counts_key}, train={"train_size": 0.5, "lr": 1e-9}
    )
    rows = model.train_indices
    assert len(rows) == len(model.validation_indices) == 60
    counts = adata.X.toarray().astype(np.float64)
    total = counts.sum(1) if total_counts_key is None else adata.obs["n_counts"].to_numpy()
    shares = counts / total[:, None]
    found = weights_of(model)
    kappa = np.median(total[rows])
    n_cells, means = by_hand(adata, rows, shares)
    assert found["kappa"] == kappa
    assert np.array_equal(found["n_cells"], n_cells)
    assert n_cells.sum() == 60
    assert found["profiles"] == pytest.approx(np.log1p(kappa * means), rel=1e-5, abs=1e-6)
    assert (found["gene_mean"] == 0).all()
    assert (found["gene_scale"] == 1).all()
    bias = np.log(shares[rows].mean(0) + 1e-8)  # where the output starts
    assert found["output.bias"][:30] == pytest.approx(bias, abs=1e-4)
    assert model.n_cells.loc["NK", "stimulated"] == n_cells[1, 1]
    assert abs(kappa - np.median(total)) > 0.1  # all cells would give another


def test_dispersion_of_counts_is_that_they_were_drawn_with():
    """Labels and totals differ; the dispersion is a gene's and condition's own."""
    rng = np.random.default_rng(0)
    n, n_genes = 16_000, 6
    theta = np.array([[0.5, 2.0, 5.0, 1.0, 1.0, 1.0], [2.0, 0.5, 5.0, 4.0, 1.0, 1.0]])
    label, condition = rng.integers(0, 3, n), rng.integers(0, 2, n)
    share = 0.05 * rng.dirichlet(np.full(n_genes, 3.0), size=(3, 2))
    share[..., 5] = 0.0  # a gene without counts: nothing is known
    total = rng.uniform(400.0, 1600.0, n)
    mean, shape = share[label, condition] * total[:, None], theta[condition]
    x = rng.negative_binomial(shape, shape / (shape + mean)).astype(np.float32)
    obs = {"condition": condition.astype(str), "label": label.astype(str), "total": total}
    adata = AnnData(x, obs=pd.DataFrame(obs, index=np.arange(n).astype(str)))
    TRVAE.setup_anndata(adata, "condition", labels_key="label", total_counts_key="total")
    model = TRVAE(adata)
    found = training_statistics(model._make_data_loader(adata), model.module)[0].dispersion
    assert found[:, :5].numpy() == pytest.approx(1.0 / theta[:, :5], rel=0.15)
    median = found[:, :5].median().item()
    assert found[:, 5].tolist() == pytest.approx([median, median], rel=0.01)


def test_statistics_of_values_equal_numpy_on_the_training_cells(fit, make_adata):
    adata = make_adata(values="log")
    adata.X = adata.X.toarray()
    adata.X[:, 3] = 2.0  # a gene that does not vary
    model = fit(adata, gene_likelihood="normal", train={"train_size": 0.5})
    rows = model.train_indices
    values = adata.X.astype(np.float64)
    mean, scale = values[rows].mean(0), values[rows].std(0)
    scale[3] = 1.0
    found = weights_of(model)
    assert found["gene_mean"] == pytest.approx(mean, rel=1e-5)
    assert found["gene_scale"] == pytest.approx(scale, rel=1e-5)
    assert found["kappa"] == 1.0
    n_cells, means = by_hand(adata, rows, values)
    assert np.array_equal(found["n_cells"], n_cells)
    assert found["profiles"] == pytest.approx((means - mean) / scale, rel=1e-4, abs=1e-5)


def test_genes_of_one_value_do_not_vary_by_rounding():
    """Sums of 1,000 cells round, of squares otherwise than of values."""
    x = np.random.default_rng(0).normal(size=(1000, 4)).astype(np.float32)
    x[:, :3] = np.log(1e-3), 7.77, 0.1
    obs = {"condition": np.arange(1000) % 2, "label": np.arange(1000) // 2 % 2}
    adata = AnnData(x, obs=pd.DataFrame(obs, index=np.arange(1000).astype(str)).astype(str))
    TRVAE.setup_anndata(adata, "condition", labels_key="label")
    model = TRVAE(adata, gene_likelihood="normal")
    found, spread, _ = training_statistics(model._make_data_loader(adata), model.module)
    assert found.scale.numpy() == pytest.approx([0.0, 0.0, 0.0, x[:, 3].std()], abs=1e-6)
    assert not found.scale[:3].any()
    assert not spread[:, :3].any()


def test_cells_outside_training_do_not_matter(fit, make_adata):
    """With other counts in the validation cells the weights are the same, to the bit."""
    adata = make_adata()
    first = fit(adata, train={**STEPS, "train_size": 0.5})
    spoiled = make_adata()
    counts = spoiled.X.toarray()
    counts[first.validation_indices] = counts[first.validation_indices, ::-1] + 7
    spoiled.X = counts
    spoiled.obs["n_counts"] = counts.sum(1) + 10.0
    rows = first.train_indices
    spoiled.obs.loc[spoiled.obs_names[rows], "n_counts"] = adata.obs["n_counts"].iloc[rows]
    second = fit(spoiled, train={**STEPS, "train_size": 0.5})
    assert second.train_indices.tolist() == rows.tolist()
    assert same(weights_of(first), weights_of(second))


def test_transfer_never_sees_a_combination_held_out(fit, make_adata, monkeypatch):
    adata = make_adata()
    hidden = (adata.obs["cell_type"] == "B") & (adata.obs["condition"] == "stimulated")
    model = fit(adata[~hidden].copy(), train=False)
    drawn = []

    def note(*args):
        found = draw_transfer(*args)
        drawn.append(torch.stack([*found[:3], found.weight], 1).numpy())
        return found

    monkeypatch.setattr("trvae_sc.module._module.draw_transfer", note)
    model.train(**STEPS, **CPU)
    assert model.n_cells.to_numpy().tolist() == [[20, 0], [20, 20], [20, 20]]
    assert (model.module.profiles[0, 1] == 0).all()
    label, source, target, weight = np.concatenate(drawn).T
    assert len(drawn) == 8  # every second of 5 x 3 steps, twice its weight
    assert weight.sum() == pytest.approx(2 * 80 * 5 / 2, rel=0.15)
    assert not weight[label == 0].any()
    assert (weight[label > 0] > 0).all()
    assert (target[label > 0] == 1 - source[label > 0]).all()


# -- splits and datamodules -------------------------------------------------------------------------


def test_external_indexing_is_the_split(fit, make_adata):
    order = np.random.default_rng(1).permutation(120)
    split = [order[:70], order[70:90], order[90:]]
    adata = make_adata()
    train = {**STEPS, "check_val_every_n_epoch": 1}
    model = fit(adata, train={**train, "datasplitter_kwargs": {"external_indexing": split}})
    assert model.train_indices.tolist() == split[0].tolist()
    assert model.validation_indices.tolist() == split[1].tolist()
    assert model.test_indices.tolist() == split[2].tolist()
    codes = pd.crosstab(adata.obs["cell_type"].iloc[split[0]], adata.obs["condition"])
    assert np.array_equal(model.n_cells, codes)
    assert len(curve(model, "elbo_validation")) == 5
    drawn = fit(train={**VALIDATING})
    rows = [drawn.train_indices, drawn.validation_indices]
    given = fit(train={**train, "datasplitter_kwargs": {"external_indexing": rows}})
    assert same(weights_of(given), weights_of(drawn))


def test_a_datamodule_takes_the_place_of_the_splitter(fit, make_adata):
    expected = fit(train=VALIDATING)
    model = fit(make_adata(), train=False)
    datamodule = DataSplitter(model.adata_manager, train_size=0.8, batch_size=40, seed=0)
    model.train(max_epochs=5, datamodule=datamodule, check_val_every_n_epoch=1, **CPU)
    assert_same_run(model, expected)


class Module(lightning.LightningDataModule):
    """Batches of one's own, without statistics."""

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def train_dataloader(self):
        return torch.utils.data.DataLoader(self.batches, batch_size=None)


def test_statistics_come_from_a_datamodule_that_knows_nothing_of_them(fit, make_adata):
    adata = make_adata()
    model = fit(adata, train=False)
    rows = np.arange(80)
    batches = list(model._make_data_loader(model.adata, rows, batch_size=20))
    model.train(max_epochs=2, datamodule=Module(batches), **CPU)
    n_cells = pd.crosstab(adata.obs["cell_type"][:80], adata.obs["condition"][:80])
    assert np.array_equal(model.n_cells, n_cells)
    assert model.module.kappa.item() == adata.obs["n_counts"][:80].median()
    assert model.train_indices is None
    assert model.trainer.global_step == 8


# -- memory -----------------------------------------------------------------------------------------


def test_models_and_their_data_are_garbage_collected(fit, make_adata):
    references = []
    for seed in range(5):
        adata = make_adata(24, 5, seed=seed)
        model = fit(adata, train={"max_epochs": 1, "checkpoint_dir": f"run_{seed}"})
        model.predict(make_adata(12, 5), target="stimulated")
        references += [weakref.ref(o) for o in (adata, model, model.module, model.trainer)]
        del adata, model
    gc.collect()
    assert [r() for r in references] == [None] * 20


# -- precision and processes ------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", ["nb", "normal"])
def test_networks_compute_alike_on_another_device(python, likelihood):
    """One that refuses tensors of the CPU beside its own, and float64; CI has no GPU."""
    script = Path(__file__).with_name("device.py")
    path = os.pathsep.join([str(Path(trvae_sc.__file__).parents[1]), str(script.parent)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [python, str(script), likelihood]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("accelerator", ["cpu", "gpu"])
@pytest.mark.parametrize("likelihood", ["nb", "normal"])
def test_mixed_precision_predicts_the_same_change(fit, make_adata, accelerator, likelihood):
    if accelerator == "gpu" and not torch.cuda.is_available():
        pytest.skip("no CUDA GPU")
    values = "counts" if likelihood == "nb" else "log"
    # at a higher rate the curves of two roundings part more
    train = {"max_epochs": 30, "batch_size": 60, "accelerator": accelerator, "lr": 3e-3}
    models = [
        fit(
            make_adata(360, values=values),
            train={**train, "precision": precision},
            gene_likelihood=likelihood,
        )
        for precision in ("32-true", "bf16-mixed")
    ]
    full, mixed = (curve(m, "reconstruction_loss_train") for m in models)
    assert (full != mixed).any()  # it was in use
    assert mixed == pytest.approx(full, rel=0.01)
    assert all(p.dtype == torch.float32 for p in models[1].module.parameters())
    changes = [m.predict(target="stimulated", labels="B", output="mean").var for m in models]
    a, b = (frame["predicted_change"].to_numpy() for frame in changes)
    assert 1 - ((a - b) ** 2).sum() / (a**2).sum() > 0.99


SHARED = """
    import sys, warnings
    warnings.filterwarnings("ignore")
    import numpy as np, torch
    sys.path.insert(0, sys.argv[1])
    torch.set_num_threads(1)
    from conftest import _fit
    from lightning.pytorch.callbacks import LambdaCallback

    seeds = []

    if __name__ == "__main__":
        n = int(sys.argv[2])
        note = LambdaCallback(on_train_batch_start=lambda *_: seeds.append(torch.initial_seed()))
        model = _fit(
            train={
                "max_epochs": 8, "batch_size": 46 // n, "devices": n, "train_size": 0.875,
                "strategy": "ddp_find_unused_parameters_true", "check_val_every_n_epoch": 1,
                "callbacks": [note],
            },
            dropout_rate=0.0, variational=False, kl_weight=0.0,
        )
        np.save(f"seed_{model.trainer.global_rank}_of_{n}.npy", seeds)
        if model.trainer.is_global_zero:
            assert np.isfinite(model.get_reconstruction_error()["reconstruction_loss"])  # waits for nobody
            model.history["weights"] = np.concatenate(
                [p.detach().numpy().ravel() for p in model.module.parameters()]
            )
            np.savez(f"{n}.npz", **{k: np.asarray(v, float).ravel() for k, v in model.history.items()})
"""


def run_script(python, text, *args):
    """Run a script, which processes of its own can import, with the folder of the tests before `args`."""
    Path("script.py").write_text(textwrap.dedent(text))
    path = Path(trvae_sc.__file__).parents[1]
    return subprocess.run(
        [python, "script.py", str(path / "tests"), *args],
        env={**os.environ, "PYTHONPATH": str(path), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def distributed(python, n_processes):
    """Return the history of a model without noise in so many processes, and its weights."""
    done = run_script(python, SHARED, str(n_processes))
    assert done.returncode == 0, done.stderr
    return dict(np.load(f"{n_processes}.npz"))


def test_two_processes_have_the_loss_curves_of_one_with_the_same_global_batch(python):
    """All terms, MMD and transfer among them; batches of odd size are divided unevenly."""
    one, two = distributed(python, 1), distributed(python, 2)
    assert one.keys() == two.keys()
    weights = [found.pop("weights") for found in (one, two)]
    assert weights[1] == pytest.approx(weights[0], abs=1e-3)
    for name in one:
        assert two[name] == pytest.approx(one[name], rel=1e-3, abs=1e-5), name
    assert (one["mmd_train"] != 0).all()
    assert (one["transfer_train"] != 0).any()
    assert one["train_loss"][-1] < one["train_loss"][0] - 1
    seeds = [np.load(f"seed_{rank}_of_2.npy") for rank in (0, 1)]
    assert (seeds[0] != seeds[1]).all()  # noise of their own


RESUMED = """
    import sys, warnings
    warnings.filterwarnings("ignore")
    import numpy as np, torch
    sys.path.insert(0, sys.argv[1])
    torch.set_num_threads(1)
    from conftest import _fit

    class Stop(Exception):
        pass

    def fit(folder, stop=None):
        from lightning.pytorch.callbacks import LambdaCallback
        def end(trainer, plan):
            if trainer.current_epoch == stop:
                raise Stop
        return _fit(
            train={
                "max_epochs": 4, "batch_size": 30, "devices": 2, "checkpoint_dir": folder,
                "strategy": "ddp_find_unused_parameters_true",
                "callbacks": [LambdaCallback(on_train_epoch_start=end)],
            },
        )

    if __name__ == "__main__":
        if sys.argv[2] == "stop":
            fit("stopped", stop=2)
        model = fit(sys.argv[2])
        if model.trainer.is_global_zero:
            np.save(sys.argv[2] + ".npy", model.history["train_loss"].to_numpy(float))
"""


def test_two_processes_that_were_killed_and_resumed_end_like_others(python):
    for what, code in (("stop", 1), ("stopped", 0), ("whole", 0)):
        done = run_script(python, RESUMED, what)
        assert done.returncode == code, done.stderr
    found, expected = np.load("stopped.npy"), np.load("whole.npy")
    assert found.shape == (4, 1)
    assert found == pytest.approx(expected, rel=1e-5)


def test_an_unknown_argument_is_named_before_any_step(fit):
    model = fit(train=False)
    with pytest.raises(
        InputError, match=r"Unknown argument 'foo' of train; there are \['max_epochs', "
    ):
        model.train(foo=3)
    with pytest.raises(InputError, match=r"'max_epoch' of train.* Did you mean 'max_epochs'\?"):
        model.train(max_epoch=3)
    assert not model.is_trained_
    quick = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False}
    model.train(**quick, gradient_clip_val=1.0, shuffle_set_split=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"plan_kwargs": {"kl_wieght": 1.0}}, "Unknown argument 'kl_wieght' of TrainingPlan"),
        ({"early_stopping": "no"}, "early_stopping is 'no'; give True or False"),
        ({"balance_conditions": 0.5}, r"balance_conditions is 0\.5; give True or False"),
    ],
)
def test_a_wrong_choice_is_told_before_training(fit, options, message):
    model = fit(train=False)
    with pytest.raises(InputError, match=message):
        model.train(1, **options)
    assert not model.is_trained_


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"plan_kwargs": {"lr": -1}}, "lr is -1"),
        ({"plan_kwargs": {"lr": None}}, "lr is None"),
        ({"plan_kwargs": {"optimizer": "sgd"}}, "optimizer is 'sgd'"),
        ({"plan_kwargs": {"lr_schedule": "cosine"}}, "lr_schedule is 'cosine'"),
        ({"plan_config": {"lrr": 1.0}}, "Did you mean 'lr'"),
        ({"precision": "bf16-true"}, "precision is 'bf16-true'"),
        ({"precision": "half"}, "No trainer can be made"),
        ({"strategy": "dpp"}, "No trainer can be made"),
        ({"early_stopping": True, "validation_size": 0.0}, "no validation set"),
        ({"plan_kwargs": {"weight_decay": -1}}, "weight_decay is -1"),
        ({"plan_kwargs": {"eps": -1}}, "eps is -1"),
        ({"plan_kwargs": {"min_kl_weight": 2}}, "No training plan can be made"),
        ({"plan_kwargs": {"reduce_lr_on_plateau": True, "lr_factor": 2}}, "lr_factor is 2"),
        ({"plan_kwargs": {"lr_scheduler_metric": "elbo"}}, "lr_scheduler_metric is 'elbo'"),
        ({"early_stopping": True, "early_stopping_monitor": "elbo_val"}, "'elbo_val'; choose one"),
        ({"limit_train_batches": 0}, "limit_train_batches is 0"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"max_steps": 9, "checkpoint_dir": "run"}, "max_steps cannot be combined"),
        ({"devices": -1}, "No trainer can be made"),
        ({"early_stopping": True, "limit_val_batches": 0}, "Training cannot go on"),
        ({"datasplitter_kwargs": {"batch_size": 9}}, "batch_size is an argument of train"),
        ({"datasplitter_kwargs": {"shuffel": True}}, "Unknown argument 'shuffel' of DataSplitter"),
        ({"callbacks": ["progress"]}, "callbacks has 'progress'"),
        ({"datasplitter_kwargs": {"external_indexing": [[], range(120)]}}, "no rows to train on"),
        ({"datasplitter_kwargs": {"external_indexing": np.arange(120)}}, "is a list of the rows"),
        ({"datasplitter_kwargs": {"external_indexing": [range(100), range(99, 121)]}}, "Row 120"),
    ],
)
def test_what_lightning_and_scvi_tools_refuse_is_an_input_error(fit, options, message):
    with pytest.raises(InputError, match=message):
        fit(train={**CPU, "max_epochs": 1, **options})


def test_training_can_be_watched_without_cells_held_back(fit):
    """Lightning raised a TypeError."""
    model = fit(train={**CPU, "max_epochs": 1, "learning_rate_monitor": True})
    assert model.is_trained


def test_a_configuration_of_the_trainer_stops_early_by_its_own_metric(fit):
    """It was not taken, and best weights were of the ELBO."""
    how = {"early_stopping_monitor": "mmd_validation", "early_stopping_mode": "max"}
    how["early_stopping_patience"] = 2
    by_arguments = fit(train={**CPU, "max_epochs": 8, "early_stopping": True, **how})
    for given in (
        {"trainer_config": how, "early_stopping": True},
        {"trainer_config": {**how, "early_stopping": True}},
    ):
        found = fit(train={**CPU, "max_epochs": 8, **given})
        assert same(weights_of(found), weights_of(by_arguments))


def test_numbers_of_numpy_and_rows_of_any_kind_are_taken(fit):
    """numpy's integers were refused as of no whole number, and scvi-tools filled up the caller's list."""
    of_list = [list(range(100)), list(range(100, 120))]
    first = fit(train={"max_epochs": np.int64(2), "batch_size": np.int64(40), "callbacks": None})
    assert first.training_["epochs"] == 2
    masks = [np.arange(120) < 100, np.arange(120) >= 100]
    models = [
        fit(train={"datasplitter_kwargs": {"external_indexing": rows}}) for rows in (of_list, masks)
    ]
    assert same(*map(weights_of, models))
    assert models[0].train_indices.tolist() == of_list[0]
    assert len(of_list) == len(masks) == 2
