"""What to measure next: posterior variances in closed form, greedy choices, use of a model."""

import numpy as np
import pandas as pd
import pytest

from trvae_sc import TRVAE, next_experiments
from trvae_sc.condition_parts import new_parts
from trvae_sc.conditions import ConditionSpace
from trvae_sc.errors import InputError
from trvae_sc.experiments import plan
from trvae_sc.shift import Profiles

NAMES = ("control", "a", "b")


def profiles(n_labels=6, n_genes=40, *, missing=((0, 1), (1, 2), (2, 2)), seed=0):
    """Return profiles of labels under three conditions, with changes that follow their profiles."""
    rng = np.random.default_rng(seed)
    start = rng.gamma(2.0, 0.5, (n_labels, n_genes))
    slope = rng.normal(0, 0.2, (3, n_genes, n_genes)) / np.sqrt(n_genes)
    mean = np.stack(
        [start, *(start + start @ s + rng.normal(0, 0.1, s[0].shape) for s in slope[1:])]
    )
    n_cells = np.full((n_labels, 3), 100.0)
    for at in missing:
        n_cells[at] = 0
    return Profiles(mean.transpose(1, 0, 2), n_cells, tuple("abcdefgh"[:n_labels]), False)


def covariance(known, missing):
    """Return the posterior covariance of missing combinations by its textbook formula."""
    groups = [(x, c) for x in range(len(known.labels)) for c in (1, 2) if known.n_cells[x, c]]
    z = known.mean[:, 0] - np.mean([known.mean[label, 0] for label, _ in groups], 0)
    size = np.mean([z[label] @ z[label] for label, _ in groups])

    def kernel(one, other):
        return np.array(
            [
                [(c == d) * (1 + z[i] @ z[j] / size + 0.3 * (i == j)) for j, d in other]
                for i, c in one
            ]
        )

    noise = 0.3 * 30 / 100
    inverse = np.linalg.inv(kernel(groups, groups) + noise * np.eye(len(groups)))
    across = kernel(missing, groups)
    return kernel(missing, missing) - across @ inverse @ across.T, noise


def test_the_first_choice_takes_away_most_by_the_formula():
    known, missing = profiles(), [(0, 1), (1, 2), (2, 2)]
    table = plan(known, ConditionSpace("c", NAMES), "control", NAMES)
    v, noise = covariance(known, missing)
    error = table.set_index(["label", "condition"])["expected_error"]
    names = [("a", "a"), ("b", "b"), ("c", "b")]
    sigma = np.array([error[at] for at in names]) / np.sqrt(np.diag(v))
    assert sigma[1] == pytest.approx(sigma[2])  # one scale a condition
    gain = (sigma**2) @ np.square(v) / (np.diag(v) + noise)
    first = names[int(gain.argmax())]
    assert (table["label"][0], table["condition"][0]) == first
    total = (sigma**2 * np.diag(v)).sum()
    assert table["lowers"][0] == pytest.approx(gain.max() / total)
    assert table["left"].to_numpy() == pytest.approx(1 - table["lowers"].cumsum().to_numpy())
    assert (table["lowers"] > 0).all()
    assert (table["left"] > 0).all()


def test_the_order_does_not_depend_on_the_unit_of_values():
    known = profiles()
    space = ConditionSpace("c", NAMES)
    scaled = Profiles(7.0 * known.mean, known.n_cells, known.labels, known.is_count)
    one, other = (plan(p, space, "control", NAMES) for p in (known, scaled))
    assert one[["label", "condition"]].equals(other[["label", "condition"]])
    assert other["expected_error"].to_numpy() == pytest.approx(7 * one["expected_error"].to_numpy())
    assert other["lowers"].to_numpy() == pytest.approx(one["lowers"].to_numpy())


def test_two_labels_alike_are_not_both_worth_measuring():
    """After the first of two equal labels the second says little, and comes last."""
    known = profiles(missing=((0, 1), (1, 1), (2, 1)))
    known.mean[1] = known.mean[0]
    table = plan(known, ConditionSpace("c", NAMES), "control", NAMES, n_cells=10_000)
    assert set(table["label"][:2]) != {"a", "b"}


def test_the_expected_error_is_that_of_predictions_where_labels_change_alike():
    """A label is missed by its difference from six others; what all share counted as missed, too: 0.30."""
    rng, own = np.random.default_rng(0), 0.1
    start = rng.normal(3, 0.5, (7, 1000))
    end = start + rng.normal(0, 1, 1000) + rng.normal(0, own, start.shape)
    n_cells = np.full((7, 2), 1e5)
    n_cells[0, 1] = 0
    known = Profiles(np.stack([start, end], 1), n_cells, tuple("abcdefg"), False)
    found = plan(known, ConditionSpace("c", ("control", "a")), "control", ["a"])["expected_error"]
    assert found.item() == pytest.approx(own * np.sqrt(1 + 1 / 6), rel=0.15)


def test_more_cells_take_away_more():
    known, space = profiles(), ConditionSpace("c", NAMES)
    few, many = (plan(known, space, "control", NAMES, n_cells=n)["lowers"][0] for n in (5, 500))
    assert many > 1.2 * few


def test_new_doses_are_candidates_and_those_far_from_what_is_known_come_first():
    obs = pd.DataFrame({"drug": ["no", "x", "x", "x"], "dose": [0.0, 1.0, 2.0, 10.0]})
    parts = new_parts(obs, ["drug", "dose"])
    levels = ("no + 0", "x + 1", "x + 2", "x + 10")
    space = ConditionSpace(["drug", "dose"], levels, parts)
    rng = np.random.default_rng(0)
    mean = rng.normal(size=(4, 4, 30))
    known = Profiles(mean, np.full((4, 4), 50.0), tuple("abcd"), False)
    new = [space.level(("x", d)) for d in (1.1, 6.0)]
    table = plan(known, space, "no + 0", [*levels, *new])
    assert set(table["condition"]) == set(new)
    assert table["condition"][0] == "x + 6"
    by = table.groupby("condition")["expected_error"].mean()
    assert by["x + 6"] > by["x + 1.1"]


@pytest.fixture(scope="module")
def model(fit, make_adata):
    adata = make_adata(n_cells=480)
    adata.obs["cell_type"] = [f"t{i // 2 % 5}" for i in range(480)]
    hidden = adata.obs["cell_type"].isin(["t0", "t1"]) & (adata.obs["condition"] == "stimulated")
    return fit(adata[~hidden].copy())


def test_a_model_says_what_to_measure(model):
    table = next_experiments(model)
    assert sorted(table["label"]) == ["t0", "t1"]
    assert set(table["condition"]) == {"stimulated"}
    assert set(table["source"]) == {"control"}
    assert len(next_experiments(model, n=1)) == 1
    assert next_experiments(model, n=None).equals(table)
    assert next_experiments(model, n=1).equals(table.head(1))


def test_requests_that_cannot_be_met_say_why(model, fit, make_adata):
    with pytest.raises(InputError, match="Nothing is missing"):
        next_experiments(fit())
    with pytest.raises(InputError, match=r"The model is a str; .*TRVAE\.load\("):
        next_experiments("model/")
    with pytest.raises(InputError, match="n is 0"):
        next_experiments(model, 0)
    with pytest.raises(InputError, match="Unknown condition 'x'"):
        next_experiments(model, source="x")
    with pytest.raises(InputError, match="Unknown condition 'y'"):
        next_experiments(model, conditions=["y"])
    with pytest.raises(InputError, match="not trained"):
        next_experiments(fit(train=False))
    with pytest.raises(InputError, match="labels_key"):
        next_experiments(fit(setup={"labels_key": None}))
    adata = make_adata()
    few = adata[(adata.obs["cell_type"] != "B") | (adata.obs["condition"] == "control")].copy()
    with pytest.raises(InputError, match="2 changes from"):
        next_experiments(fit(few))
    renamed = make_adata()
    renamed.obs["condition"] = renamed.obs["condition"].cat.rename_categories({"control": "x"})
    hidden = (renamed.obs["cell_type"] == "B") & (renamed.obs["condition"] == "stimulated")
    with pytest.raises(InputError, match=r"Name it with source=\."):
        next_experiments(fit(renamed[~hidden].copy()))
    assert isinstance(model, TRVAE)
