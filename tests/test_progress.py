"""What is said of time and of notes, and where it is not."""

import logging

import anndata
import numpy as np
import pytest

from trvae_sc import baselines, family
from trvae_sc.evaluation import Holdout, Keys, benchmark
from trvae_sc.evaluation._benchmark import Clock, Fit
from trvae_sc.notes import log_notes
from trvae_sc.progress import duration
from trvae_sc.training import levelled_off


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.2, "0 s"), (99, "99 s"), (100, "2 min"), (5400, "90 min"), (9000, "2.5 h")],
)
def test_times_as_one_says_them(seconds, expected):
    assert duration(seconds) == expected


def test_a_term_has_levelled_off_where_it_falls_no_more():
    epochs = np.arange(20.0)
    falling, flat = 100 - epochs, 50 + 50 * (epochs < 5)
    ended = "All terms of the loss have levelled off."
    assert levelled_off({"reconstruction": flat, "kl": np.ones(20)}) == ended
    assert levelled_off({"reconstruction": falling, "kl": np.ones(20)}) == (
        "Still falling: reconstruction; more epochs (max_epochs=) may help."
    )
    # means of the last two pairs of epochs: 2 lower in one, of a fall of 50 in all
    late = flat - 2 * (epochs >= 18)
    assert levelled_off({"reconstruction": late}).startswith("Still falling: reconstruction;")
    assert levelled_off({"reconstruction": flat, "kl": 2 + (epochs >= 18)}) == ended  # rises
    assert levelled_off({"reconstruction": falling[:9]}) == ""
    assert levelled_off({}) == ""


def test_training_says_how_long_it_takes_and_took(fit, capsys, monkeypatch):
    ticks = iter(range(0, 10_000, 10))
    monkeypatch.setattr("trvae_sc.training._callbacks.perf_counter", lambda: next(ticks))
    fit(train={"max_epochs": 12, "enable_progress_bar": True})
    lines = [line for line in capsys.readouterr().err.splitlines() if line.endswith((".", "help."))]
    assert lines[0] == "11 more epochs will take about 2 min."  # 10 s each
    assert lines[1].startswith("Trained 12 epochs in 20 s. ")
    assert ("levelled off" in lines[1]) != ("Still falling" in lines[1])
    assert len(lines) == 2
    fit(train={"max_epochs": 12})
    assert "epochs" not in capsys.readouterr().err


def test_fits_are_counted_by_those_that_train(capsys):
    def method(train, source, *, target, keys, seed=0):
        pass

    class Trains:
        takes_seed = True

    h = Holdout("NK", "stimulated", "control")
    fits = [Fit(h, "ceiling", None, 0, None), *(Fit(h, "net", Trains, s, None) for s in range(4))]
    clock = Clock(fits, n_jobs=2)
    clock.tell({"method": "ceiling", "seconds": 0.1})
    assert capsys.readouterr().err == ""
    clock.tell({"method": "net", "seconds": 40.0})
    said = "3 more fits that train a network will take about 60 s.\n"  # two at a time
    assert capsys.readouterr().err.endswith(said)
    for _ in range(3):
        clock.tell({"method": "net", "seconds": 40.0})
    assert capsys.readouterr().err == "5 fits in 0 s.\n"


def test_a_benchmark_says_how_long_it_takes_and_took(make_adata, capsys):
    options = {"keys": Keys("condition", "cell_type"), "n_top_genes": None}
    holdouts = [Holdout("NK", "stimulated", "control")]
    benchmark(make_adata(), ["no_change", "mean_shift"], holdouts, **options)
    err = capsys.readouterr().err
    assert "3 fits in " in err
    assert "more fits" not in err  # in less than a second
    benchmark(make_adata(), ["no_change", "mean_shift"], holdouts, progress=False, **options)
    assert capsys.readouterr().err == ""


def notes(caplog):
    return [r.getMessage() for r in caplog.records if r.getMessage().startswith("Note: ")]


def test_notes_are_logged_once_a_model(fit, make_adata, caplog):
    model = fit()
    with caplog.at_level(logging.WARNING):
        predicted = model.predict(target="stimulated", labels="NK")
        expected = [f"Note: {note}" for note in predicted.uns["trvae_sc"]["notes"]]
        assert expected
        assert notes(caplog) == expected
        model.predict(target="stimulated", labels="NK", output="delta")
        assert notes(caplog) == expected
    caplog.clear()
    log_notes(predicted)  # as where another model made it
    assert notes(caplog) == expected


def test_notes_of_other_models_are_logged_too(make_adata, caplog):
    adata = make_adata()
    family.ConditionalGAN.setup_anndata(adata, "condition", labels_key="cell_type")
    model = family.ConditionalGAN(adata)
    model.train(1, enable_progress_bar=False, accelerator="cpu")
    predicted = model.predict(target="stimulated", labels="NK")
    model.predict(target="stimulated", labels="NK")
    assert notes(caplog) == [f"Note: {note}" for note in predicted.uns["trvae_sc"]["notes"]] != []


def test_notes_of_methods_that_are_compared_are_not_logged(make_adata, caplog):
    adata = make_adata()
    source = adata[adata.obs["condition"] == "control"].copy()
    keys = Keys("condition", "cell_type")
    train = {"max_epochs": 1, "enable_progress_bar": False, "accelerator": "cpu"}
    found = baselines.trvae(adata, source, target="stimulated", keys=keys, train_kwargs=train)
    assert len(found["delta"].uns["trvae_sc"]["notes"])
    assert notes(caplog) == []
    assert isinstance(found["delta"], anndata.AnnData)
