"""States within labels: sampling of cells, matching between conditions, what they teach."""

import numpy as np
import pytest
from scipy import sparse

from trvae_sc.expression import Pairs, States, label_weights, ridge_shift
from trvae_sc.model._pairs import seen_pairs
from trvae_sc.states import CellSample, matched_states
from trvae_sc.uncertainty import left_out_residuals

# -- the sample ---------------------------------------------------------------------------------------


def offered(n, n_groups, chunk, seed=0):
    """Cells whose only value is their number, offered in chunks."""
    sample = CellSample(n_groups, seed)
    group = np.arange(n) % n_groups
    for start in range(0, n, chunk):
        cells = np.arange(start, min(start + chunk, n))
        sample.add(group[cells], cells[:, None] + 1.0)
    group, x = sample.cells()
    return sample, group, x.toarray().ravel().astype(int) - 1


def test_few_cells_all_stay_in_order():
    _, group, cells = offered(300, 3, chunk=64)
    assert cells.tolist() == list(range(300))
    assert group.tolist() == (np.arange(300) % 3).tolist()


def test_sample_is_bounded_even_and_does_not_depend_on_chunks():
    sample, group, cells = offered(100_000, 4, chunk=1000)
    assert sample.per_group == 500
    assert np.bincount(group).tolist() == [500] * 4
    assert (cells % 4 == group).all()
    assert np.histogram(cells, 10, (0, 100_000))[0] == pytest.approx(200, abs=60)
    assert np.array_equal(cells, offered(100_000, 4, chunk=33_333)[2])
    assert CellSample(2000).per_group == 50


# -- matching -----------------------------------------------------------------------------------------


def two_states(n=100, seed=0):
    """One label, two states with a marker gene each, a response whose size differs by cell."""
    rng = np.random.default_rng(seed)
    state, condition = np.arange(2 * n) % 2, np.repeat([0, 1], n)
    x = rng.normal(0, 0.1, (2 * n, 20))
    x[np.arange(2 * n), state] += 1.0
    x[:, 5:10] += condition[:, None] * (3.0 + rng.normal(0, 2.0, (2 * n, 1)))
    return x, state, condition


def same(found, truth):
    return found.tolist() == truth.tolist() or found.tolist() == (1 - truth).tolist()


def test_states_are_those_of_both_conditions_not_the_size_of_the_response():
    x, state, condition = two_states()
    found = matched_states(x, np.zeros(200, dtype=int), condition, n_states=2)
    assert same(found, state)
    assert same(matched_states(sparse.csr_matrix(x), np.zeros(200, int), condition, 2), state)


def test_conditions_with_few_cells_take_no_part():
    x, state, condition = two_states()
    condition = np.where(np.arange(200) % 20 < 2, 2, condition)  # 20 cells of a third condition
    found = matched_states(x, np.zeros(200, dtype=int), condition, n_states=2)
    assert (found[condition == 2] == -1).all()
    assert same(found[condition < 2], state[condition < 2])
    assert (matched_states(x[:110], np.zeros(110, int), condition[:110]) == -1).all()


def test_number_of_states_follows_the_smallest_condition():
    rng = np.random.default_rng(0)
    x, label = rng.normal(size=(260, 30)), np.repeat([0, 1, 2], [60 + 100, 60, 40])
    condition = np.concatenate([np.repeat([0, 1], [60, 100]), np.arange(60) % 2, np.zeros(40, int)])
    found = matched_states(x, label, condition)
    assert set(found[label == 0]) == {0, 1, 2}  # 60 cells, 20 each
    assert set(found[label == 1]) == {-1}  # 30 and 30 cells
    assert set(found[label == 2]) == {-1}  # one condition


def test_cells_that_do_not_differ_have_no_states():
    assert (matched_states(np.ones((200, 5)), np.zeros(200, int), np.arange(200) % 2) == -1).all()


# -- what they teach ----------------------------------------------------------------------------------


def example(seed=0):
    rng = np.random.default_rng(seed)
    others, shifts = rng.normal(size=(4, 6)), rng.normal(size=(4, 6))
    label = np.array([0, 0, 0, 2, 2])
    states = States(others[label] + rng.normal(size=(5, 6)), rng.normal(size=(5, 6)), label)
    n_cells = np.array([[5, 50], [500, 90], [20, 20], [300, 300]])
    return rng.normal(size=6), Pairs(others, shifts, n_cells, states)


def test_ridge_with_states_equals_weighted_least_squares():
    profile, pairs = example()
    states, of_label = pairs.states, label_weights(pairs.n_cells)
    centre, mean = (np.average(x, 0, of_label) for x in pairs[:2])
    z = np.concatenate([pairs.profiles, states.profiles]) - centre
    d = np.concatenate([pairs.shifts, states.shifts]) - mean
    weight = of_label[[0, 1, 2, 3, 0, 0, 0, 2, 2]] / np.array([1, 1, 1, 1, 3, 3, 3, 2, 2])
    spread = np.average(np.square(pairs.profiles - centre).sum(1), weights=of_label)
    slopes = np.linalg.solve(
        z.T @ (weight[:, None] * z) + 0.2 * spread * np.eye(6), (z.T * weight) @ d
    )
    found = ridge_shift(profile, pairs)
    np.testing.assert_allclose(found, mean + (profile - centre) @ slopes)
    none = States(*(values[:0] for values in states))
    np.testing.assert_array_equal(
        ridge_shift(profile, pairs._replace(states=none)),
        ridge_shift(profile, pairs._replace(states=None)),
    )


def test_states_of_a_label_left_out_do_not_teach():
    pairs = example()[1]
    states = pairs.states
    changed = States(states.profiles.copy(), states.shifts.copy(), states.label)
    changed.shifts[states.label == 2] += 100.0
    before, after = (left_out_residuals(pairs._replace(states=s)) for s in (states, changed))
    np.testing.assert_array_equal(before[2], after[2])
    assert np.abs(before[0] - after[0]).max() > 1
    without = pairs.without(1)
    assert without.states.label.tolist() == [0, 0, 0, 1, 1]  # rows of the labels that are left
    np.testing.assert_array_equal(without.n_cells, pairs.n_cells[[0, 2, 3]])


def test_model_keeps_states_whose_cells_make_up_the_label(fit, make_adata, tmp_path):
    adata = make_adata(n_cells=600)
    model = fit(adata, train={"max_epochs": 1})
    module = model.module
    n, mean = module.state_n_cells, module.state_profiles.expm1()
    label, condition = model.labels.index("B"), model.conditions.index("stimulated")
    cells = (adata.obs["cell_type"] == "B") & (adata.obs["condition"] == "stimulated")
    assert n[label, :, condition].sum() == cells.sum()
    assert (n[label, :, condition] > 0).sum() == cells.sum() // 20
    total = (n[label, :, condition, None] * mean[label, :, condition]).sum(0) / cells.sum()
    np.testing.assert_allclose(total, module.profiles[label, condition].expm1(), rtol=1e-4)
    profiles, shifts, n_cells, states = seen_pairs(model, "control", "stimulated")
    assert len(profiles) == len(shifts) == len(model.labels)
    counts = adata.obs.groupby(["cell_type", "condition"], observed=True).size().unstack()
    np.testing.assert_array_equal(n_cells, counts.loc[model.labels, ["control", "stimulated"]])
    assert states.profiles.shape == states.shifts.shape == (len(states.label), adata.n_vars)
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model", adata=adata)
    for before, after in zip(
        states, seen_pairs(loaded, "control", "stimulated").states, strict=True
    ):
        np.testing.assert_array_equal(before, after)


def test_presets_that_predict_as_published_keep_no_states(fit):
    model = fit(preset="mmd_cvae", train={"max_epochs": 1})
    assert model.module.state_profiles is None


def test_states_of_the_reference_are_not_paired_with_a_query(fit, make_adata):
    """A query's own states would be others than those of the same number in the reference."""
    reference = fit(make_adata(n_cells=600), train={"max_epochs": 1})
    query = make_adata(n_cells=600, seed=1)
    query.obs["condition"] = query.obs["condition"].astype(str).replace("stimulated", "treated")
    model = type(reference).load_query_data(query, reference)
    model.train(max_epochs=1, accelerator="cpu", devices=1, enable_progress_bar=False)
    assert len(seen_pairs(model, "control", "treated").profiles) == 3
    assert not len(seen_pairs(model, "control", "treated").states.label)
    assert len(seen_pairs(model, "control", "stimulated").states.label)
