"""Small, lopsided, sparse and many-conditioned data: finite everywhere, right where data suffice."""

import tracemalloc

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy import sparse
from scvi import REGISTRY_KEYS
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from trvae_sc import TRVAE
from trvae_sc.datasets import simulate
from trvae_sc.errors import InputError
from trvae_sc.module import TRVAEModule
from trvae_sc.shift import Likeness, Ridge

FEW = "label(s) were seen under both source and target: too few"
NONE = "No label was seen under both source and target"


def trained(adata, *, epochs=12, batch_size=256, labels_key="cell_type", lr=1e-2, **kwargs):
    """Return a small model, trained for a few steps at a high rate."""
    train = {name: kwargs.pop(name) for name in ("balance_conditions",) if name in kwargs}
    counts = kwargs.get("gene_likelihood", "nb") == "nb"
    total = "total_counts" if counts and "total_counts" in adata.obs else None
    TRVAE.setup_anndata(adata, "condition", labels_key=labels_key, total_counts_key=total)
    model = TRVAE(adata, n_latent=8, n_hidden=(32, 16), **kwargs)
    model.train(
        max_epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        accelerator="cpu",
        devices=1,
        enable_progress_bar=False,
        **train,
    )
    return model


def without(adata, label, condition="stimulated", keep=0):
    """Return the cells but for those of a combination, of which the first `keep` stay."""
    rows = (adata.obs["cell_type"] == label) & (adata.obs["condition"] == condition)
    dropped = np.flatnonzero(rows)[keep:]
    return adata[np.setdiff1d(np.arange(adata.n_obs), dropped)].copy()


def check_history(model):
    """Every term is finite in every epoch, and the loss has gone down."""
    history = pd.concat([values.iloc[:, 0] for values in model.history.values()], axis=1)
    assert np.isfinite(history.to_numpy(dtype=float)).all()
    loss = model.history["train_loss"]["train_loss"]
    assert loss.iloc[-1] < loss.iloc[0]


def check_prediction(predicted, n_cells, *, integer=True, intervals=None):
    """Every value is finite; counts are whole numbers; intervals are all NaN, or all finite."""
    x = predicted.X.toarray() if sparse.issparse(predicted.X) else predicted.X
    assert x.shape[0] == n_cells
    assert np.isfinite(x).all()
    if integer:
        assert (x >= 0).all()
        assert np.array_equal(x, np.round(x))
    assert np.isfinite(predicted.obsm["X_trvae"]).all()
    if len(predicted.uns["trvae_sc"]["combinations"]) > 1:
        assert "predicted_change" not in predicted.var
        return
    means = predicted.var[["source_mean", "predicted_mean", "predicted_change"]]
    assert np.isfinite(means.to_numpy()).all()
    bounds = predicted.var[["change_lower", "change_upper"]].to_numpy()
    if intervals is not None:
        assert np.isfinite(bounds).all() == intervals
    assert np.isfinite(bounds).all() or np.isnan(bounds).all()


def error(model, predicted, adata, label, target="stimulated", source="control"):
    """Return the distance of the predicted change to the true one, over that of no change.

    Without a label: of all cells, predicted as "mean".
    """
    share, kappa = adata.varm["true_share"], model.module.kappa.item()
    if label is None:
        weights = adata.obs["cell_type"].value_counts(normalize=True)
        share = pd.DataFrame(
            {
                f"None|{c}": sum(w * share[f"{name}|{c}"] for name, w in weights.items())
                for c in (source, target)
            }
        )
    values = np.log1p(kappa * share)
    start, end = values[f"{label}|{source}"], values[f"{label}|{target}"]
    if label is None:
        wrong = np.log1p(np.expm1(predicted.X.astype(float)).mean(0)) - end
    else:
        wrong = predicted.var["predicted_change"] - (end - start)
    truth = end - start
    return np.linalg.norm(wrong) / np.linalg.norm(truth)


def notes(predicted):
    return " ".join(predicted.uns["trvae_sc"]["notes"])


# -- few cells, few labels, none -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def simulated():
    """1,000 cells x 60 genes, 4 labels, nearly the same response in all."""
    return simulate(1000, 60, n_labels=4, specificity=0.1, seed=1)


def test_labels_with_20_cells_are_predicted_and_learned_from(simulated):
    few = without(simulated, "type_0")
    for label, condition, keep in (
        ("type_0", "control", 20),
        ("type_1", "control", 10),
        ("type_1", "stimulated", 10),
    ):
        few = without(few, label, condition, keep)
    model = trained(few)
    check_history(model)
    assert model.n_cells.loc["type_0"].tolist() == [20, 0]
    assert model.n_cells.loc["type_1"].tolist() == [10, 10]
    predicted = model.predict(target="stimulated", labels="type_0")
    check_prediction(predicted, 20, intervals=True)
    assert error(model, predicted, simulated, "type_0") < 0.8
    assert FEW not in notes(predicted)


def test_two_labels_teach_the_change_but_no_interval(simulated):
    two = simulated[simulated.obs["cell_type"].isin(["type_0", "type_1"])].copy()
    two = without(two, "type_0")
    model = trained(two, epochs=25)
    check_history(model)
    predicted = model.predict(target="stimulated", labels="type_0")
    check_prediction(predicted, model.n_cells.loc["type_0", "control"], intervals=False)
    assert error(model, predicted, simulated, "type_0") < 0.9
    assert "Only 1 " + FEW in notes(predicted)
    combination = predicted.uns["trvae_sc"]["combinations"].iloc[0]
    assert np.isnan(combination["novelty"])


def test_without_labels_there_is_no_transfer_and_less_of_the_change(simulated):
    model = trained(simulated.copy(), labels_key=None)
    check_history(model)
    assert (model.history["transfer_train"]["transfer_train"] == 0).all()
    assert model.module.transfer_weight == 0
    predicted = model.predict(target="stimulated", output="mean")
    check_prediction(predicted, model.n_cells.loc["all", "control"], intervals=False, integer=False)
    lost = error(model, predicted, simulated, None)
    assert "without labels_key, so there was no transfer loss" in notes(predicted)
    assert "label(s) were seen" not in notes(predicted)  # "all" is no label
    with pytest.raises(InputError, match="without labels_key"):
        model.predict_missing()
    model = trained(simulated.copy())
    predicted = model.predict(target="stimulated", output="mean")
    assert "labels_key" not in notes(predicted)
    kept = error(model, predicted, simulated, None)
    assert kept < 0.5
    assert lost < 1.1
    one = simulated.copy()
    one.obs["all"] = "all"  # the same for every cell: the transfer loss is on
    model = trained(one, labels_key="all")
    predicted = model.predict(target="stimulated", output="mean")
    assert error(model, predicted, simulated, None) < 0.5


@pytest.mark.parametrize("balance_conditions", [False, True])
def test_conditions_of_1_to_20_are_predicted(simulated, balance_conditions):
    rng = np.random.default_rng(0)
    few = without(simulated, "type_0")
    stimulated = np.flatnonzero(few.obs["condition"] == "stimulated")
    control = np.flatnonzero(few.obs["condition"] == "control")
    few = few[np.r_[control, rng.choice(stimulated, len(control) // 20, replace=False)]].copy()
    model = trained(few, epochs=25, balance_conditions=balance_conditions)
    check_history(model)
    n_control, n_stimulated = model.n_cells.sum()
    assert n_stimulated == n_control // 20
    predicted = model.predict(target="stimulated", labels="type_0")
    check_prediction(predicted, model.n_cells.loc["type_0", "control"])
    assert error(model, predicted, simulated, "type_0") < 0.95


# -- many conditions ------------------------------------------------------------------------------------


def test_50_conditions_of_20_labels():
    conditions = [f"c{i}" for i in range(50)]
    adata = simulate(3000, 40, n_labels=20, conditions=conditions, specificity=0.1)
    model = trained(without(adata, "type_0", "c7"), epochs=10)
    check_history(model)
    predicted = model.predict(target="c7", source="c0", labels="type_0")
    check_prediction(predicted, model.n_cells.loc["type_0", "c0"], intervals=True)
    assert error(model, predicted, adata, "type_0", "c7", "c0") < 1.0
    predicted = model.predict(target="c7", labels="type_0")
    check_prediction(predicted, model.n_cells.loc["type_0"].sum(), intervals=True)
    assert len(predicted.uns["trvae_sc"]["combinations"]) == 49
    assert FEW not in notes(predicted)


def test_the_ridge_copies_two_conditions_and_not_all():
    """All 50 were copied for every label and source: a prediction from all of them took minutes."""
    adata = simulate(1000, 200, n_labels=20, conditions=[f"c{i}" for i in range(50)])
    TRVAE.setup_anndata(adata, "condition", labels_key="cell_type", total_counts_key="total_counts")
    module = (model := TRVAE(adata, n_latent=2, n_hidden=(8,))).module
    module.n_cells += 50
    module.profiles.uniform_()
    profiles = model.trained.profiles()
    tracemalloc.start()
    ridge = Ridge(profiles, 3, Likeness.of_itself(7))
    largest = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert ridge.changes.shape == (20, 200)
    assert largest < 8 * ridge.changes.nbytes < profiles.mean.nbytes


def step_work(n_conditions, n_cells=256, n_genes=50, n_labels=3):
    """Return the number of operations of a training step, and its multiplications."""
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    module = TRVAEModule(n_genes, torch.eye(n_conditions), n_labels=n_labels)
    module.n_cells += 10
    cells = np.arange(n_cells)
    tensors = {
        REGISTRY_KEYS.X_KEY: torch.as_tensor(rng.poisson(1.0, (n_cells, n_genes))).float(),
        "condition": torch.as_tensor(cells % n_conditions)[:, None],
        REGISTRY_KEYS.LABELS_KEY: torch.as_tensor(cells // n_conditions % n_labels)[:, None],
    }

    def step():
        module.zero_grad()
        module(tensors)[2].loss.backward()

    step()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    with FlopCounterMode(display=False) as counter:
        step()
    n_operations = sum(e.count for e in profiler.key_averages() if e.key.startswith("aten::"))
    return n_operations, counter.get_total_flops()


def test_a_step_with_50_conditions_is_not_a_loop_over_pairs():
    work = {n: step_work(n) for n in (2, 12, 50)}
    operations = [n for n, _ in work.values()]
    assert operations[0] > 100
    assert max(operations) <= 1.02 * min(operations)  # 1,225 pairs for 1
    flops = [n for _, n in work.values()]
    assert flops[1] - flops[0] < 0.2 * flops[0]
    assert flops[2] - flops[0] < 4.8 * 1.5 * max(flops[1] - flops[0], 0.01 * flops[0])
    assert flops[2] < 1.5 * flops[0]


# -- extremes -------------------------------------------------------------------------------------------


def zero_gene(x, obs):
    x[:, 3] = 0


def gene_in_one_cell(x, obs):
    x[:, 3] = 0
    x[17, 3] = 5


def most_genes_nearly_empty(x, obs):
    x[:, 4:] = 0
    x[::50, 4:] = 1


def totals_vary_by_1000(x, obs):
    x *= np.round(np.geomspace(1, 1000, len(x)))[np.random.default_rng(0).permutation(len(x)), None]


def one_large_cell(x, obs):
    x[5] *= 1000


def label_of_sources_only(x, obs):
    obs.loc[obs["cell_type"] == "type_2", "condition"] = "control"


def label_of_targets_only(x, obs):
    obs.loc[obs["cell_type"] == "type_2", "condition"] = "stimulated"


def condition_of_one_cell(x, obs):
    obs["condition"] = obs["condition"].cat.add_categories("rare")
    obs.iloc[0, obs.columns.get_loc("condition")] = "rare"


def label_of_one_cell(x, obs):
    obs["cell_type"] = obs["cell_type"].cat.add_categories("rare")
    obs.iloc[0, obs.columns.get_loc("cell_type")] = "rare"


ODD = [
    zero_gene,
    gene_in_one_cell,
    most_genes_nearly_empty,
    totals_vary_by_1000,
    one_large_cell,
    label_of_sources_only,
    label_of_targets_only,
    condition_of_one_cell,
    label_of_one_cell,
]


def odd(make, values="counts"):
    """Return 200 cells x 20 genes of 3 labels, made odd."""
    adata = simulate(200, 20, n_labels=3, depth=200.0)
    x, obs = adata.X.toarray(), adata.obs[["condition", "cell_type"]].copy()
    x[:, 0] += 1.0  # no cell is empty
    make(x, obs)
    if values == "log":
        x = np.log1p(x)
    return AnnData(x, obs=obs, var=adata.var)


@pytest.mark.parametrize("likelihood", ["nb", "normal", "mse"])
@pytest.mark.parametrize("make", ODD, ids=lambda f: f.__name__)
def test_odd_data_give_finite_losses_and_predictions(make, likelihood):
    counts = likelihood == "nb"
    adata = odd(make, "counts" if counts else "log")
    model = trained(adata, epochs=12, batch_size=100, gene_likelihood=likelihood)
    check_history(model)
    assert all(torch.isfinite(p).all() for p in model.module.state_dict().values())
    for target in model.conditions:
        for source in model.conditions:
            if source == target:
                continue
            predicted = model.predict(target=target, source=source)
            n_cells = (adata.obs["condition"] == source).sum()
            check_prediction(predicted, n_cells, integer=counts)
            if make is zero_gene:
                for label in model.labels:
                    one = model.predict(target=target, source=source, labels=label, output="mean")
                    mean = one.var.loc["gene_3", "predicted_mean"]
                    assert mean == pytest.approx(0, abs=0.02 if counts else 0.2)
                assert not counts or predicted[:, "gene_3"].X.sum() == 0
    for output in ("delta", "mean", "sample"):
        predicted = model.predict(target="stimulated", source="control", output=output)
        n_cells = (adata.obs["condition"] == "control").sum()
        check_prediction(predicted, n_cells, integer=counts and output == "sample")


@pytest.mark.parametrize(
    ("make", "source", "target"),
    [
        (label_of_sources_only, "control", "stimulated"),
        (label_of_targets_only, "stimulated", "control"),
    ],
)
def test_a_label_of_one_condition_is_predicted_under_the_other(make, source, target):
    model = trained(odd(make), epochs=12, batch_size=100)
    assert model.n_cells.loc["type_2", target] == 0
    predicted = model.predict_missing()
    n_cells = int(model.n_cells.loc["type_2", source])
    check_prediction(predicted, n_cells)
    combination = predicted.uns["trvae_sc"]["combinations"].iloc[0]
    assert combination[["label", "source", "target"]].tolist() == ["type_2", source, target]
    assert combination["n_training_cells"] == 0
    assert combination["n_labels_with_both"] == 2
    assert "Only 2 " + FEW in notes(predicted)
    assert NONE not in notes(predicted)


def test_samples_of_squared_error_have_unit_variance():
    """They failed: there is no dispersion that is learned."""
    model = trained(odd(zero_gene, "log"), epochs=2, batch_size=100, gene_likelihood="mse")
    mean, drawn = (
        model.predict(target="stimulated", output=output) for output in ("mean", "sample")
    )
    assert np.std(drawn.X - mean.X) == pytest.approx(1.0, abs=0.05)
    assert np.std(model.generate("stimulated", 200).X, axis=0).min() > 0.8


def test_a_condition_of_one_cell_is_noted_and_predicted_from_it():
    model = trained(odd(condition_of_one_cell), epochs=12, batch_size=100)
    assert model.n_cells["rare"].sum() == 1
    label = model.n_cells["rare"].idxmax()
    other = next(name for name in model.labels if name != label)
    predicted = model.predict(target="rare", source="control", labels=other)
    assert "Only 1 " + FEW in notes(predicted)
    assert predicted.uns["trvae_sc"]["combinations"]["n_training_cells"].tolist() == [0]
    check_prediction(
        model.predict(target="stimulated", source="rare", labels=label), 1, intervals=False
    )
