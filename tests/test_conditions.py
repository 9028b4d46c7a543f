"""Conditions of several obs columns: levels and numbers."""

from functools import partial

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

from trvae_sc import TRVAE, baselines, compare, evaluation, next_experiments, select
from trvae_sc.baselines import METHODS
from trvae_sc.baselines._cells import learn
from trvae_sc.cli import main
from trvae_sc.condition_kernels import is_dose
from trvae_sc.condition_parts import design, joint_column, new_parts, parse
from trvae_sc.condition_sets import new_sets, space_of
from trvae_sc.conditions import ConditionSpace
from trvae_sc.datasets import simulate, simulate_doses
from trvae_sc.errors import InputError
from trvae_sc.evaluation import choose_genes
from trvae_sc.expression import Keys, conditions_of
from trvae_sc.left_out import labels_left_out
from trvae_sc.shift import Profiles, Ridge

CPU = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False}


def table():
    """Three drugs and doses, one combination each, and two for a."""
    rows = [("b", 1), ("a", 10.5), ("none", 0), ("a", 1), ("a", 1)]
    return pd.DataFrame(rows, columns=["drug", "dose"], index=list("vwxyz"))


# -- coding -------------------------------------------------------------------------------------------


def test_a_condition_may_be_a_row_of_obs_or_an_array():
    joint = space([("a", 1.0), ("a", 10.0), ("b", 1.0)])
    single = ConditionSpace("dose", (0.1, 0.7))
    for given in (
        *(pd.Series({"dose": 10.0, "drug": "a"}), pd.Series(["a", 10.0], index=[5, 6])),
        *(np.array(["a", "10"]), pd.Index(["a", 10.0])),
    ):
        assert joint.level(given) == "a + 10"
    for given in (
        *(np.float32([0.7]), np.array(np.float32(0.7)), pd.Series([0.7], dtype="float32")),
        *(pd.Series({"dose": 0.7}), pd.Categorical([0.7])),
    ):
        assert single.level(given) == 0.7


def test_conditions_of_all_cells_are_no_condition():
    """The message listed a column of cells as a condition that is unknown, or said that it has 1 part."""
    joint, cells = space([("a", 1.0), ("a", 10.0)]), table()
    sets = space_of("drug", ["control", "a"], new_sets(pd.Series(["control", "a"]), "+"))
    for conditions, given in (
        (joint, cells["drug"]),
        (ConditionSpace("drug", ("a", "b")), cells["drug"]),
        (ConditionSpace("drug", ("a", "b")), cells["drug"].to_numpy()),
        (ConditionSpace("drug", ("a", "b")), cells["drug"].to_numpy()[None]),
        (ConditionSpace("drug", ("a", "b")), ["a", "b"] * 2 + ["a"]),
        (ConditionSpace("drug", ("a", "b")), tuple("ababa")),
        (sets, cells["drug"]),
    ):
        with pytest.raises(InputError, match=r"given as 5 values of .*Name one at a time;"):
            conditions.level(given)


def test_combinations_are_named_and_ordered_by_their_parts():
    column, names = joint_column(table(), ["drug", "dose"])
    assert column.tolist() == ["b + 1", "a + 10.5", "none + 0", "a + 1", "a + 1"]
    assert list(names) == ["a + 1", "a + 10.5", "b + 1", "none + 0"]
    assert names["a + 10.5"] == ("a", 10.5)
    assert column.index.tolist() == list("vwxyz")


def test_design_has_one_feature_a_level_and_standardised_numbers():
    parts = new_parts(table(), ["drug", "dose"])
    doses = np.array([0, 1, 10.5])
    rows = np.stack([design(parts, values) for values in parts["values"]])
    assert rows[:, :3].tolist() == [[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]
    expected = (np.array([1, 10.5, 1, 0]) - doses.mean()) / doses.std()
    assert rows[:, 3] == pytest.approx(expected, abs=1e-6)
    assert design(parts, ("b", 20.0))[3] == pytest.approx((20 - doses.mean()) / doses.std())


def test_categorical_numbers_are_levels_and_booleans_too():
    obs = table()
    obs["dose"] = obs["dose"].astype("category")
    obs["old"] = [True, False, True, False, False]
    parts = new_parts(obs, ["dose", "old"])
    assert parts["scaling"] == {}
    assert len(parts["features"]) == 5


@pytest.mark.parametrize(
    "given", [{"dose": 2, "drug": "a"}, ("a", 2), ["a", "2"], "a + 2", ("a", np.float32(2))]
)
def test_conditions_can_be_given_in_several_ways(given):
    assert parse(new_parts(table(), ["drug", "dose"]), given) == ("a", 2.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"drug": "a"}, "has the parts ['drug', 'dose'], not ['drug']"),
        (("a",), "has 1 parts; ['drug', 'dose'] are needed"),
        (("z", 1), "Unknown 'drug' 'z'; there are ['a', 'b', 'none']."),
        (("a", "much"), "'dose' is a number; 'much' is none."),
        (("a", float("inf")), "'dose' is inf; it must be finite."),
    ],
)
def test_bad_conditions_are_refused(given, message):
    with pytest.raises(InputError) as error:
        parse(new_parts(table(), ["drug", "dose"]), given)
    assert message in str(error.value)


@pytest.mark.parametrize("doses", [["0", "1", "10"], pd.Categorical([0.0, 1.0, 10.0])])
def test_doses_that_are_levels_are_to_be_made_numbers(doses):
    """As in files of scPerturb: the message said which levels there are, and nothing of what to do."""
    obs = pd.DataFrame({"drug": ["none", "a", "b"], "dose": doses})
    with pytest.raises(InputError, match=r"there are .*10.*obs\['dose'\]\.astype\(float\)"):
        parse(new_parts(obs, ["drug", "dose"]), ("a", 3))
    with pytest.raises(InputError, match=r"there are \['a', 'b', 'none'\]\.$"):
        parse(new_parts(obs, ["drug", "dose"]), ("c", 1))


@pytest.mark.parametrize("mark", ["+", "_"])
def test_an_unknown_pair_of_known_parts_is_to_be_set_up_as_a_set(mark):
    """As of perturbation screens: the message said nothing of ``condition_separator``."""
    levels = [name.replace("+", mark) for name in ("A+B", "A+ctrl", "ctrl", "ctrl+C")]
    known = ConditionSpace("perturbation", tuple(levels))
    with pytest.raises(InputError, match=rf"condition_separator='\{mark}'\.$"):
        known.level(f"A{mark}C")
    for other in ("D", f"A{mark}D", f"A{mark}", 3):
        with pytest.raises(InputError, match=r"there are \[.*\]\.$"):
            known.level(other)


def test_an_unknown_dose_of_a_drug_is_no_set():
    """A drug and its dose in one name: the message said to set up the dose as a part of a set."""
    known = ConditionSpace(
        "condition", ("control", "A_1", "A_10", "B_1", "C_1uM", "C_2uM", "D_2uM")
    )
    for condition in ("B_10", "D_1uM"):
        with pytest.raises(InputError, match=r"there are \[.*\]\.$"):
            known.level(condition)


def space(rows, **columns):
    """Return the conditions of rows of a table, and a function that predicts what is linear in them."""
    obs = pd.DataFrame(rows, columns=list(columns or ["drug", "dose"]))
    parts = new_parts(obs, list(obs))
    names = tuple(joint_column(obs, list(obs))[1])
    return ConditionSpace(list(obs), names, parts)


def weights(conditions, source, target, *, n=10**9, missing=()):
    """Return what each condition weighs in the prediction of a label measured under all but some."""
    levels = list(conditions.levels)
    n_cells = np.full((1, len(levels)), n)
    n_cells[0, [levels.index(name) for name in missing]] = 0
    mean = np.eye(len(levels))[None]
    start = levels.index(source)
    measured = (n_cells > 0)[0]
    measured[start] = False
    likeness = conditions.likeness(source, conditions.level(target), measured)
    ridge = Ridge(Profiles(mean, n_cells, ("x",), is_count=False), start, likeness)
    found = ridge.predict(mean[0, start], 0)
    return {name: w for name, w in zip(levels, found.round(4), strict=True) if w}


DOSES = [("a", 0.0), ("a", 1.0), ("a", 10.0), ("b", 0.0), ("b", 1.0), ("b", 10.0)]


def test_a_measured_condition_tells_of_itself():
    assert weights(space(DOSES), "a + 0", ("a", 10)) == {"a + 10": 1.0}


@pytest.mark.parametrize(
    ("dose", "expected"),
    [
        (5.5, {"a + 1": 0.5, "a + 10": 0.5}),
        (0.25, {"a + 0": 0.75, "a + 1": 0.25}),
        (99, {"a + 10": 1.0}),  # beyond all: the nearest
    ],
)
def test_numbers_are_interpolated_between_those_of_the_same_level(dose, expected):
    assert weights(space(DOSES), "a + 0", ("a", dose)) == pytest.approx(expected, abs=2e-3)


def test_two_that_were_measured_alone_give_their_sum():
    both = space([("no", "no"), ("yes", "no"), ("no", "yes")], drug=0, cytokine=0)
    found = weights(both, "no + no", ("yes", "yes"))
    assert found == pytest.approx({"no + no": -1, "no + yes": 1, "yes + no": 1}, abs=0.05)
    found = weights(both, "yes + no", ("yes", "yes"))  # from a part of it
    assert found == pytest.approx({"no + no": -1, "no + yes": 1, "yes + no": 1}, abs=0.05)


def test_a_level_measured_at_one_dose_takes_others_from_other_levels():
    found = weights(space([*DOSES[:3], DOSES[3]]), "b + 0", ("b", 10))
    assert found == pytest.approx({"a + 0": -1, "a + 10": 1, "b + 0": 1}, abs=0.05)


def test_what_a_drug_changes_grows_with_its_dose():
    """Drugs whose effect is linear in the dose; one was measured at its largest doses only."""
    rng = np.random.default_rng(0)
    effect = dict(zip("abc", rng.normal(size=(3, 50)), strict=True))
    levels = [("none", 0.0), ("a", 5.0), ("a", 10.0), ("b", 2.0), ("b", 10.0), ("c", 2.0)]
    known = space(levels)
    source = known.levels.index("none + 0")
    base = rng.normal(5, 1, (4, 1, 50))
    own = [
        effect[d] * x / 10 if d in effect else 0.0 * base[0, 0] for d, x in known.parts["values"]
    ]
    mean = base + np.stack(own)
    profiles = Profiles(mean, np.full(mean.shape[:2], 1e4), tuple("wxyz"), is_count=False)
    for target, drug, dose in (("a + 2", "a", 2.0), ("b + 5", "b", 5.0), ("c + 10", "c", 2.0)):
        measured = profiles.measured(source).any(0)
        likeness = known.likeness("none + 0", target, measured)
        found = Ridge(profiles, source, likeness).predict(mean[0, source], 0) - mean[0, source]
        truth = effect[drug] * dose / 10  # beyond its only dose a drug changes as much
        if drug == "c":
            assert np.square(found - truth).mean() < 0.01 * np.square(truth).mean()
        else:
            assert np.square(found - truth).mean() < 0.5 * np.square(truth).mean()


def test_a_dose_of_a_label_is_told_by_its_other_doses():
    """A label that changes twice as much as the others, under every dose; one dose of it is missing."""
    rng = np.random.default_rng(0)
    effect = dict(zip("ab", rng.normal(size=(2, 50)), strict=True))
    known = space([("none", 0.0), *((drug, dose) for drug in "ab" for dose in (2.5, 5.0, 10.0))])
    source, target = known.levels.index("none + 0"), known.levels.index("a + 5")
    own = [effect[d] * np.sqrt(x / 10) if d in effect else 0.0 * effect["a"] for d, x in known.parts["values"]]  # fmt: skip
    size = np.array([2.0, 1.0, 1.1, 0.9])[:, None, None]
    mean = rng.normal(5, 1, (4, 1, 50)) + size * np.stack(own)
    n_cells = np.full(mean.shape[:2], 1e4)
    n_cells[0, target] = 0.0
    profiles = Profiles(mean, n_cells, tuple("wxyz"), is_count=False)
    measured = profiles.measured(source).any(0)
    likeness = known.likeness("none + 0", "a + 5", measured)
    found = Ridge(profiles, source, likeness).predict(mean[0, source], 0) - mean[0, source]
    truth = 2.0 * effect["a"] * np.sqrt(0.5)
    assert np.square(found - truth).mean() < 0.05 * np.square(truth).mean()


@pytest.mark.parametrize("interaction", [0.0, 1.0])
def test_a_combination_that_a_label_lacks_is_told_by_its_other_combinations(interaction):
    """Donors and stimuli whose effects are a label's own; what they change together is that of all labels."""
    rng = np.random.default_rng(0)
    known = space(
        [(donor, stimulus) for donor in "de" for stimulus in ("no", "yes")], drug=0, dose=0
    )
    source, target = (known.levels.index(name) for name in ("d + no", "e + yes"))
    donor, stimulus = rng.normal(size=(2, 6, 50))
    own = [donor * (d == "e") + stimulus * (s == "yes") for d, s in known.parts["values"]]
    mean = rng.normal(5, 1, (6, 1, 50)) + np.stack(own, 1)
    mean[:, target] += interaction * rng.normal(size=50)
    errors, changes = [], mean[:, target] - mean[:, source]
    for label in range(6):
        n_cells = np.full(mean.shape[:2], 1e4)
        n_cells[label, target] = 0.0
        profiles = Profiles(mean, n_cells, tuple("uvwxyz"), is_count=False)
        likeness = known.likeness("d + no", "e + yes", profiles.measured(source).any(0))
        found = Ridge(profiles, source, likeness).predict(mean[label, source], label)
        errors.append(found - mean[label, target])
    left = np.square(errors).sum() / np.square(changes).sum()
    alone = 0.8 if interaction else 1.0  # what is a label's own, of which other labels say nothing
    assert left < 0.2 * alone


def test_levels_of_one_column_tell_of_themselves():
    one = ConditionSpace("drug", ("no", "a", "b"))
    assert one.likeness("no", "a", np.array([False, True, True])).codes.tolist() == [1]


def test_levels_of_one_column_in_a_list_are_those_of_the_column():
    """They told of each other, so that a condition without its source in any label had a change next to 0."""
    adata = simulate(360, 30, n_labels=4, conditions=("control", "a", "b"))
    is_b, is_first = adata.obs["condition"] == "b", adata.obs["cell_type"] == "type_0"
    named = {"labels_key": "cell_type", "source": "control"}
    lacking = adata[~(is_b & is_first)].copy()
    by_name = baselines.effects(lacking, "b", condition_key="condition", **named)
    in_list = baselines.effects(lacking, {"condition": "b"}, condition_key=["condition"], **named)
    pd.testing.assert_frame_equal(in_list, by_name)
    spaces = [conditions_of(adata, Keys(key)) for key in ("condition", ("condition",))]
    np.testing.assert_array_equal(*(s.alike("control", ["a", "b"]) for s in spaces))
    assert [s.told_by_others() for s in spaces] == 2 * [["a", "b", "control"]]
    under_control = adata.obs["condition"] == "control"
    apart = adata[~(is_b & ~is_first) & ~(under_control & is_first)].copy()
    for key in ("condition", ["condition"]):
        with pytest.raises(InputError, match="No label was measured under both 'control' and 'b'"):
            baselines.effects(apart, "b", condition_key=key, **named)


@pytest.mark.parametrize("wrap", [lambda c: [c], lambda c: (c,), lambda c: {"condition": c}])
@pytest.mark.parametrize("key", ["condition", ("condition",)])
def test_a_single_method_takes_a_condition_however_it_is_given(make_adata, key, wrap):
    adata, keys = make_adata(), Keys(key, "cell_type")
    source = adata[adata.obs["condition"] == "control"].copy()
    found, expected = (
        baselines.mean_shift(adata, source, target=target, keys=keys)
        for target in (wrap("stimulated"), "stimulated")
    )
    np.testing.assert_array_equal(found.X, expected.X)
    assert found.obs.equals(expected.obs)


def test_intervals_of_a_dose_of_one_label_cover_the_truth():
    cells = simulate_doses(n_labels=6, seed=1)
    true = np.log1p(float(np.median(cells.obs["total_counts"])) * cells.varm["true_share"])
    inside = []
    for label, drug, dose in (("type_0", "A", 1), ("type_1", "A", 3), ("type_2", "B", 10)):
        hidden = (cells.obs["cell_type"] == label) & (cells.obs["drug"] == drug)
        hidden &= cells.obs["dose"] == dose
        train = cells[~hidden].copy()
        named = {"source": ("none", 0), "labels": label, "keys": COLUMNS}
        table = baselines.effects(train, (drug, dose), **named)
        truth = (true[f"{label}|{drug}|{dose}"] - true[f"{label}|none|0"])[table["gene"]]
        inside.append(((table["lower"] <= truth.to_numpy()) & (truth.to_numpy() <= table["upper"])).mean())  # fmt: skip
    assert 0.85 < np.mean(inside) < 1.0


def test_a_drug_changes_nothing_at_a_dose_of_nothing():
    levels = [("none", 0.0), ("a", 5.0), ("a", 10.0), ("b", 2.0)]
    found = weights(space(levels), "none + 0", ("a", 0.0))
    assert found.pop("none + 0") == pytest.approx(1.0, abs=0.05)
    assert max(map(abs, found.values())) < 0.05


def test_a_number_without_a_dose_of_none_does_not_scale_what_levels_change():
    parts = space([("no", 0.0), ("no", 24.0), ("yes", 0.0), ("yes", 24.0)]).parts
    assert not is_dose(parts, "dose", np.array(["no", 0.0], dtype=object))
    parts = space([("no", 0.0), ("no", 24.0), ("yes", 6.0), ("yes", 24.0)]).parts
    assert is_dose(parts, "dose", np.array(["no", 0.0], dtype=object))
    assert not is_dose(parts, "dose", np.array(["no", 24.0], dtype=object))


def of_doses_and_times():
    """Three drugs at two doses and times, and one control at 0 and 0."""
    levels = [(drug, dose, time) for drug in "abc" for dose in (1.0, 10.0) for time in (6.0, 24.0)]
    return [("none", 0.0, 0.0), *levels]


def test_what_drugs_change_grows_with_dose_and_time():
    rows = of_doses_and_times()
    known = space(rows, drug=0, dose=0, time=0)
    kernel = known.alike("none + 0 + 0", known.levels, joint=0.0)
    at = [known.level(row) for row in rows[1:]]
    order = [known.levels.index(name) for name in at]
    drug, dose, time = (np.array(column) for column in zip(*rows[1:], strict=True))
    roots = np.sqrt(np.minimum.outer(dose, dose) / 10.0 * np.minimum.outer(time, time) / 24.0)
    expected = roots * np.equal.outer(drug, drug)
    assert kernel[np.ix_(order, order)] == pytest.approx(expected)
    assert np.linalg.eigvalsh(kernel)[0] > -1e-9


def test_doses_and_times_that_were_never_measured_are_predicted():
    rng = np.random.default_rng(0)
    of_drug = {drug: rng.normal(0.0, 1.0, 40) * (drug != "none") for drug in ("none", *"abc")}
    rows = [(label, *row) for label in "uvw" for row in of_doses_and_times() for _ in range(20)]
    obs = pd.DataFrame(rows, columns=["cell_type", "drug", "dose", "time"])
    obs.index = obs.index.astype(str)
    at = obs["dose"] / (obs["dose"] + 3.0) * (1.0 - np.exp(-obs["time"] / 12.0))
    x = at.to_numpy()[:, None] * np.stack([of_drug[drug] for drug in obs["drug"]])
    cells = AnnData((x + rng.normal(0.0, 0.2, x.shape)).astype(np.float32), obs=obs)
    cells = cells[(obs["drug"] != "a") | (obs["dose"] != 10) | (obs["time"] != 24)].copy()
    keys = {"condition_key": ["drug", "dose", "time"], "labels_key": "cell_type", "is_count": False}
    found = baselines.effects(cells, ("a", 10, 24), source=("none", 0, 0), labels="u", **keys)
    true = 10.0 / 13.0 * (1.0 - np.exp(-2.0)) * of_drug["a"]
    assert np.square(found["change"] - true).sum() < 0.2 * np.square(true).sum()


@pytest.mark.parametrize("value", [1 / 3, np.log10(300), np.float32(0.1)])
def test_a_number_is_the_measured_one_with_its_name(value):
    obs = pd.DataFrame({"drug": ["a", "b"], "dose": np.array([value, 2.0])})
    parts = new_parts(obs, ["drug", "dose"])
    measured = parts["values"][0][1]
    assert measured == value
    for given in (f"{float(value):.12g}", float(f"{value:.7g}"), value):
        assert parse(parts, ("b", given))[1] == measured
    assert parse(parts, ("b", 1.001 * float(value)))[1] != measured


def test_of_numbers_that_are_nearly_the_same_the_nearest_is_meant():
    days = [20230101, 20230102, 20230103]
    parts = new_parts(pd.DataFrame({"drug": ["a", "b", "b"], "day": days}), ["drug", "day"])
    assert [parse(parts, ("a", day))[1] for day in days] == days
    assert [parse(parts, f"a + {day}")[1] for day in days] == days


def test_remarks_name_what_was_not_measured():
    conditions = space(table().to_numpy().tolist())
    assert conditions.remarks("a + 1") == []
    assert conditions.remarks("b + 5") == [
        "No cell was measured under drug b, dose 5: it is predicted from its parts."
    ]
    (_, outside) = conditions.remarks("b + 11")
    assert (
        "dose 11 is outside of what was measured, 0 to 10.5: the prediction extrapolates" in outside
    )


# -- the model ----------------------------------------------------------------------------------------


def rates(label, drug, dose, n_genes=40):
    """Simulated rates: a saturating dose response whose size depends on drug and label."""
    rng = np.random.default_rng(0)
    base = rng.gamma(2.0, 3.0, n_genes)
    by_label = rng.lognormal(0.0, 0.5, (3, n_genes))
    effect = rng.normal(0.0, 0.9, (2, n_genes)) * (rng.random((2, n_genes)) < 0.5)
    sensitivity = np.array([1.0, 1.5, 0.7])
    dose = np.asarray(dose, dtype=float)
    size = (sensitivity[label] * dose / (dose + 2.0))[:, None]
    return base * by_label[label] * np.exp(size * effect[drug])


@pytest.fixture(scope="module")
def dosed():
    """A model of two drugs at doses 0, 1 and 10 in three labels."""
    rng = np.random.default_rng(1)
    n = 900
    label, drug, dose = rng.integers(3, size=n), rng.integers(2, size=n), rng.choice([0, 1, 10], n)
    obs = pd.DataFrame(
        {
            "drug": np.array(["A", "B"])[drug],
            "dose": dose.astype(float),
            "cell_type": np.array(["x", "y", "z"])[label],
        },
        index=[f"cell_{i}" for i in range(n)],
    )
    adata = AnnData(rng.poisson(rates(label, drug, dose)).astype(np.float32), obs=obs)
    TRVAE.setup_anndata(adata, ["drug", "dose"], labels_key="cell_type")
    torch.set_num_threads(1)
    model = TRVAE(adata, n_hidden=(64, 32), n_latent=8)
    model.train(max_epochs=60, batch_size=128, **CPU)
    return model


def profile(rate):
    return np.log1p(1000.0 * rate / rate.sum())


def test_unseen_dose_is_predicted_better_than_by_the_nearest_seen(dosed):
    errors, nearest = [], []
    for code, label in enumerate("xyz"):
        for drug, name in enumerate("AB"):
            predicted = dosed.predict(
                target={"drug": name, "dose": 4}, source=(name, 0), labels=label, output="mean"
            )
            level = np.expm1(predicted.var["predicted_mean"].to_numpy())
            truth, seen = (profile(rates([code], [drug], [d])[0]) for d in (4, 1))
            errors.append(np.square(profile(level) - truth).mean())
            nearest.append(np.square(seen - truth).mean())
    assert np.mean(errors) < 0.35 * np.mean(nearest)
    assert np.max(np.array(errors) / nearest) < 1


@pytest.mark.parametrize("n_doses", [6, 3])
def test_intervals_at_an_unseen_dose_are_of_doses_left_out(n_doses):
    """Labels change alike, doses do not: the other labels of a dose tell what is not known of a new one."""
    inside = []
    for seed in range(3):
        rng, doses = np.random.default_rng(seed), [0.0, 1.0, 3.0, 4.0, 5.0, 6.0][:n_doses]
        effect = {dose: rng.normal(0, 0.5, 40) * (dose > 0) for dose in (*doses, 2.0)}
        base = rng.normal(5, 0.5, (4, 40))
        obs = pd.DataFrame(
            [(f"t{k}", dose) for k in range(4) for dose in doses for _ in range(30)],
            columns=["label", "dose"],
        )
        x = [base[int(label[1])] + effect[dose] for label, dose in obs.to_numpy()]
        obs.index = obs.index.astype(str)
        adata = AnnData(np.stack(x) + rng.normal(0, 0.3, (len(x), 40)), obs=obs)
        TRVAE.setup_anndata(adata, ["dose"], labels_key="label")
        small = {"n_latent": 2, "n_hidden": (8,), "context_weight": 1.0}  # the ridge alone
        model = TRVAE(adata, gene_likelihood="normal", **small)
        model.train(1, **CPU)
        table = model.effects(target=(2.0,), source=(0.0,))
        if n_doses == 3:  # two with a change: fewer than three conditions
            assert table["lower"].isna().all()
            return
        truth = np.tile(effect[2.0], 4)
        inside.append(((table["lower"] <= truth) & (truth <= table["upper"])).mean())
    assert 0.78 < np.mean(inside) < 0.98


def test_prediction_names_parts_and_says_what_was_not_measured(dosed, caplog):
    predicted = dosed.predict(target=("A", 20), source="B + 0", labels="x")
    assert predicted.obs["drug"].unique().tolist() == ["A"]
    assert predicted.obs["dose"].unique().tolist() == [20.0]
    assert predicted.obs["source_condition"].unique().tolist() == ["B + 0"]
    assert predicted.obs_names[0].endswith("_A + 20")
    notes = predicted.uns["trvae_sc"]["notes"].tolist()
    assert any("No cell was measured under drug A, dose 20" in note for note in notes)
    assert "dose 20 is outside of what was measured, 0 to 10" in caplog.text
    assert predicted.uns["trvae_sc"]["target"] == "A + 20"
    measured = dosed.predict(target=("A", 10), source=("A", 0))
    assert not any("No cell was measured" in note for note in measured.uns["trvae_sc"]["notes"])


def test_prediction_at_a_measured_dose_joins_those_beside_it(dosed):
    """Own changes at 1 and 10 anchor the curve: close to a measured dose it meets what was measured."""
    model = dosed
    code = model.labels.index("x")
    s, t = (model.conditions.index(name) for name in ("A + 0", "A + 10"))
    own = (model.module.profiles[code, t] - model.module.profiles[code, s]).numpy()
    close = model.predict(target=("A", 9.999), source=("A", 0), labels="x")
    missed = close.var["predicted_change"].to_numpy() - own
    assert np.square(missed).sum() < 0.02 * np.square(own).sum()


def test_nothing_changes_to_a_dose_beside_the_source(dosed):
    far, near = (
        dosed.predict(target=("A", dose), source=("A", 10), labels="x", output="delta")
        for dose in (1.001, 9.999)
    )
    assert np.abs(near.var["predicted_change"]).max() < 0.02
    assert np.abs(far.var["predicted_change"]).max() > 0.3


def test_beyond_the_range_from_its_end_nothing_changes(dosed):
    """The nearest number that was measured is that of the source cells themselves."""
    for dose, end in ((200, 10), (-5, 0)):
        predicted = dosed.predict(target=("A", dose), source=("A", end), output="mean")
        start = dosed.predict(target=("A", end), source=("A", 1), output="mean")
        assert np.isfinite(predicted.X).all()
        assert np.isfinite(start.X).all()
        table = dosed.effects(target=("A", dose), source=("A", end))
        assert np.abs(table["change"]).max() < 1e-6
        assert dosed.effects(target=("A", dose))["change"].notna().all()
        assert dosed.predict(target=("A", dose)).X.sum() > 0


def test_how_far_to_trust_a_dose_outside_of_what_was_measured_is_not_known(dosed, caplog):
    inside, outside = (dosed.effects(target=("A", d), source=("A", 0)) for d in (4, 20))
    columns = ["lower", "upper"]
    assert inside[columns].notna().all(axis=None)
    assert outside[columns].isna().all(axis=None)
    assert outside["change"].notna().all()
    assert "dose 20 is outside of what was measured, 0 to 10" in caplog.text
    predicted = dosed.predict(target=("A", 20), source=("A", 0), labels="x")
    assert predicted.var["change_lower"].isna().all()
    with pytest.raises(InputError, match=r"'A \+ 20'.*between them"):
        next_experiments(dosed, source=("A", 0), conditions=[("A", 4), ("A", 20)])


def test_a_dose_however_large_is_finite_and_as_one_as_far_beyond_as_was_measured(dosed):
    far, farther = (
        dosed.predict(target=("A", dose), source=("A", 0), output="delta") for dose in (20, 1e30)
    )
    np.testing.assert_array_equal(far.X, farther.X)
    assert np.isfinite(far.X).all()
    nearer = dosed.predict(target=("A", 15), source=("A", 0), output="delta")
    assert np.abs(nearer.X - far.X).max() > 1e-3


def test_names_of_conditions_and_saved_models(dosed, tmp_path):
    assert dosed.conditions == ["A + 0", "A + 1", "A + 10", "B + 0", "B + 1", "B + 10"]
    dosed.save(tmp_path / "model")
    loaded = TRVAE.load(tmp_path / "model", adata=dosed.adata.copy())
    other = dosed.adata[:50].copy()
    for name in [c for c in other.obs if c.startswith("_scvi")]:
        del other.obs[name]
    found, expected = (m.predict(other, target=("B", 5)) for m in (loaded, dosed))
    assert np.array_equal(found.X.toarray(), expected.X.toarray())
    other.obs["drug"] = "C"
    with pytest.raises(InputError, match="Unknown condition"):
        loaded.predict(other, target=("B", 5))


def combined(seed):
    """Return cells of a drug, a cytokine or neither, but not of both, and the rates of all."""
    rng = np.random.default_rng(seed)
    n, n_genes = 900, 40
    base, by_label = rng.gamma(2.0, 3.0, n_genes), rng.lognormal(0, 0.5, (3, n_genes))
    effects = rng.normal(0, 0.9, (2, n_genes)) * (rng.random((2, n_genes)) < 0.5)
    label, drug, cytokine = (rng.integers(k, size=n) for k in (3, 2, 2))
    keep = ~((drug == 1) & (cytokine == 1))
    label, drug, cytokine = label[keep], drug[keep], cytokine[keep]

    def rate(label, drug, cytokine):
        size = np.stack([drug, cytokine], 1)
        return base * by_label[label] * np.exp(size @ effects)

    obs = pd.DataFrame(
        {"drug": drug == 1, "cytokine": cytokine == 1, "cell_type": np.array(list("xyz"))[label]},
        index=[f"cell_{i}" for i in range(len(label))],
    )
    return AnnData(rng.poisson(rate(label, drug, cytokine)).astype(np.float32), obs=obs), rate


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_unseen_combination_of_levels_is_nearer_than_either_part(seed):
    adata, rate = combined(seed)
    TRVAE.setup_anndata(adata, ["drug", "cytokine"], labels_key="cell_type")
    model = TRVAE(adata, n_hidden=(64, 32), n_latent=8)
    model.train(max_epochs=15, batch_size=128, **CPU)
    shares = []
    for code, name in enumerate("xyz"):
        truth, *parts = (
            profile(rate(np.array([code]), np.array([d]), np.array([c]))[0])
            for d, c in ((1, 1), (1, 0), (0, 1), (0, 0))
        )
        nearest = min(np.square(part - truth).mean() for part in parts)
        for source in ((False, False), (True, False)):
            predicted = model.predict(target=(True, True), source=source, labels=name)
            level = profile(np.expm1(predicted.var["predicted_mean"].to_numpy()))
            shares.append(np.square(level - truth).mean() / nearest)
    assert np.mean(shares) < 0.2
    assert np.max(shares) < 0.5


def test_a_level_measured_at_one_dose_takes_the_others_from_other_levels():
    """A knock-out at dose 0 only; truth: both change logs."""
    rng = np.random.default_rng(0)
    n, n_genes = 600, 40
    base, effects = rng.gamma(2.0, 3.0, n_genes), rng.normal(0, 0.8, (2, n_genes))
    label, knocked, dose = rng.integers(2, size=n), rng.integers(2, size=n), rng.choice([0, 10], n)
    keep = ~((knocked == 1) & (dose == 10))
    label, knocked, dose = label[keep], knocked[keep], dose[keep]
    rate = base * np.exp(knocked[:, None] * effects[0] + dose[:, None] / 10 * effects[1])
    obs = pd.DataFrame(
        {
            "gene": np.array(["wild", "out"])[knocked],
            "dose": dose.astype(float),
            "cell_type": np.array(list("xy"))[label],
        },
        index=[f"cell_{i}" for i in range(len(label))],
    )
    adata = AnnData(rng.poisson(rate).astype(np.float32), obs=obs)
    TRVAE.setup_anndata(adata, ["gene", "dose"], labels_key="cell_type")
    model = TRVAE(adata, n_hidden=(32, 16), n_latent=4)
    model.train(max_epochs=20, batch_size=128, **CPU)
    predicted = model.predict(target=("out", 10), source=("out", 0), output="mean")
    found = profile(np.expm1(predicted.X.astype(float)).mean(0))
    start, truth = (profile(base * np.exp(effects[0] + d * effects[1])) for d in (0, 1))
    assert np.square(found - truth).mean() < 0.25 * np.square(start - truth).mean()


def test_without_labels_a_new_combination_is_the_sum_of_its_parts():
    adata, _ = combined(0)
    TRVAE.setup_anndata(adata, ["drug", "cytokine"])
    model = TRVAE(adata, n_hidden=(16, 8), n_latent=4)
    model.train(max_epochs=1, **CPU)
    none, cytokine, drug = np.expm1(model.module.profiles[0].numpy()) + 0.3
    predicted = model.predict(target=(True, True), source=(False, False), output="mean")
    expected = np.log1p(np.maximum(drug * cytokine / none - 0.3, 0.0))  # of log fold changes
    missed = predicted.var["predicted_mean"].to_numpy() - expected
    assert np.square(missed).sum() < 0.01 * np.square(expected - np.log1p(none - 0.3)).sum()


def test_a_query_adds_levels_at_the_end(dosed):
    reference = dosed
    query = dosed.adata[:200].copy()
    for name in [c for c in query.obs if c.startswith("_scvi")]:
        del query.obs[name]
    query.obs["drug"] = query.obs["drug"].astype(str).replace("B", "C")
    old = {c: reference.trained.features(c) for c in reference.conditions}
    model = TRVAE.load_query_data(query, reference)
    assert model.conditions[:6] == reference.conditions
    assert model.conditions[6:] == ["C + 0", "C + 1", "C + 10"]
    for name, row in old.items():
        assert torch.equal(model.trained.features(name)[:, : row.shape[1]], row)
    before = model.module.decoder_in.condition.detach().clone()
    model.train(max_epochs=2, **CPU)
    after = model.module.decoder_in.condition.detach()
    assert torch.equal(after[:-1], before[:-1])
    assert not torch.equal(after[-1], before[-1])


def test_new_combinations_of_a_query_leave_predictions_of_its_reference():
    """What they share with known ones told of these, and whether a number is a dose: changes were up to 0.03 other."""
    adata = simulate_doses(n_labels=4)
    reference = adata[adata.obs["dose"] != 3].copy()
    TRVAE.setup_anndata(reference, ["drug", "dose"], labels_key="cell_type")
    model = TRVAE(reference, n_hidden=(16, 8), n_latent=4)
    model.train(max_epochs=2, **CPU)
    query = adata.copy()
    query.obs["drug"] = query.obs["drug"].astype(str).replace("B", "C")
    query.obs.loc[query.obs["drug"] == "C", "dose"] -= 1.0  # at the dose of the source, too
    mapped = TRVAE.load_query_data(query, model)
    mapped.train(max_epochs=1, **CPU)
    assert {"C + 0", "A + 3"} <= set(mapped.conditions)
    further = adata.copy()
    further.obs["drug"] = further.obs["drug"].astype(str).replace("B", "D")
    again = TRVAE.load_query_data(further, mapped)
    again.train(max_epochs=1, **CPU)
    given = {"source": "none + 0", "target": "A + 3"}  # of the first query
    pd.testing.assert_frame_equal(again.effects(**given), mapped.effects(**given))
    for source, target in (("none + 0", "A + 10"), ("A + 1", "A + 10"), ("none + 0", "B + 1")):
        given = {"source": source, "target": target}
        pd.testing.assert_frame_equal(mapped.effects(**given), model.effects(**given))
        pd.testing.assert_frame_equal(again.effects(**given), model.effects(**given))
        found, expected = (m.predict(reference, output="delta", **given) for m in (mapped, model))
        np.testing.assert_array_equal(found.X, expected.X)
    with pytest.raises(InputError, match=r"reference lacks but 'A . 3', whose parts it"):
        TRVAE.load_query_data(adata.copy(), model)
    seen = mapped.predict(target="A + 3", source="none + 0").uns["trvae_sc"]["combinations"]
    assert (seen["n_training_cells"] == 40).all()


# -- bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "change", "message"),
    [
        ([], {}, "is []; name a column of adata.obs, or several in a list"),
        (["condition", "condition"], {}, "name one column, or several different"),
        (["condition", "dose"], {}, "No column 'dose'"),
        (["condition", "age"], {"age": np.inf}, "'age'] holds infinite values"),
        (["condition", "age"], {"age": np.nan}, "'age'] is missing (NaN)"),
        (["condition", "sex"], {"sex": "a + b"}, "contain ' + ', which joins"),
    ],
)
def test_bad_condition_columns_are_refused_before_anything_is_written(
    make_adata, keys, change, message
):
    adata = make_adata()
    for column, value in change.items():
        adata.obs[column] = value
    before = list(adata.obs), list(adata.uns)
    with pytest.raises(InputError) as raised:
        TRVAE.setup_anndata(adata, keys, labels_key="cell_type")
    assert message in str(raised.value)
    assert (list(adata.obs), list(adata.uns)) == before


def test_predictions_of_several_columns_can_be_joined_and_saved(dosed, tmp_path):
    parts = [dosed.predict(target=("A", dose), source=("A", 0), labels="x") for dose in (2, 3)]
    joined = anndata.concat(parts)
    joined.write_h5ad(tmp_path / "joined.h5ad")
    read = anndata.read_h5ad(tmp_path / "joined.h5ad")
    assert sorted(read.obs["dose"].unique()) == [2.0, 3.0]


# -- levels that are no words ---------------------------------------------------------------------------


def with_levels(adata, levels):
    """Return cells whose two conditions are called otherwise, as a column of the levels' own type."""
    adata = adata.copy()
    codes = (adata.obs["condition"] == "stimulated").to_numpy().astype(int)
    adata.obs["condition"] = np.asarray(levels)[codes]
    return adata


@pytest.mark.parametrize(
    ("levels", "others", "names"),
    [
        (np.float32([0.1, 0.7]), [0.7, "0.7", np.float32(0.7)], ["0.1", "0.7"]),
        ([0.0, 1.0], [1, "1", np.float32(1)], ["0", "1"]),
        ([0, 1], [1.0, "1", np.int8(1)], ["0", "1"]),
        ([False, True], ["True", np.True_], ["False", "True"]),
    ],
    ids=["float32", "float", "int", "bool"],
)
def test_a_condition_that_is_no_word_is_predicted_and_generated_like_one(
    fit, make_adata, levels, others, names
):
    """Cells of it and requests for it may be of another type: how they read decides."""
    words, adata = fit(), with_levels(make_adata(), levels)
    model = fit(adata)
    known = [0.1, 0.7] if isinstance(levels, np.ndarray) else levels
    assert model.conditions == known
    assert [type(level) for level in model.conditions] == [type(level) for level in known]
    expected = words.predict(target="stimulated", labels=["B", "NK"])
    generated = words.generate("stimulated", 9, seed=3)
    as_text = with_levels(make_adata(), names)
    for target in (levels[1], *others):
        for cells in (None, adata.copy(), as_text):
            found = model.predict(cells, target=target, labels=["B", "NK"])
            assert (found.X != expected.X).nnz == 0
            start = expected.obs["source_cell"]
            assert found.obs_names.tolist() == [f"{name}_{names[1]}" for name in start]
            record = found.uns["trvae_sc"]
            assert (record["target"], record["source"].tolist()) == (names[1], names[:1])
            assert record["combinations"]["seen_in_training"].all()
        made = model.generate(target, 9, seed=3)
        assert (made.X != generated.X).nnz == 0
        assert made.uns["trvae_sc"]["condition"] == names[1]
        assert made.obs["condition"].tolist() == [model.conditions[1]] * 9


@pytest.mark.parametrize("kind", ["float32", "float", "int", "bool"])
def test_labels_that_are_no_words_are_found_in_what_training_saw(fit, make_adata, kind):
    """Their own measured change was not found, and intervals were those of a label never seen."""
    values = {"float32": np.float32([0.1, 0.7, 1]), "float": [0.0, 1.0, 2.5], "int": [1, 2, 3]}
    values["bool"] = [False, True, True]
    as_words = np.array(["a", "b", "b" if kind == "bool" else "c"])
    predicted = []
    for made in (as_words, np.asarray(values[kind])):
        adata = make_adata(240)
        adata.obs["cell_type"] = made[adata.obs["cell_type"].cat.codes.to_numpy()]
        adata.obs["dose"] = np.arange(240) // 12 % 3 * (adata.obs["condition"] == "stimulated")
        keys = {"labels_key": "cell_type", "total_counts_key": "n_counts"}
        TRVAE.setup_anndata(adata, ["condition", "dose"], **keys)
        model = TRVAE(adata, n_latent=2, n_hidden=(8,))
        model.train(max_epochs=1, **CPU)
        targets = [("stimulated", 1.5), ("stimulated", 2)]  # one was not measured
        predicted.append([model.predict(target=t, source=("control", 0)) for t in targets])
    for words, found in zip(*predicted, strict=True):
        assert (words.X != found.X).nnz == 0
        pd.testing.assert_frame_equal(words.var, found.var)
        tables = [p.uns["trvae_sc"]["combinations"].drop(columns="label") for p in (words, found)]
        pd.testing.assert_frame_equal(*tables)


def test_a_dose_in_float32_is_that_in_float64(fit, make_adata):
    """0.1 in float32 was another dose than 0.1, and 0.10000000149 in its name."""
    predicted = []
    for dtype in (np.float32, np.float64):
        adata = make_adata()
        dose = np.array([0.0, 0.1, 0.7], dtype)[np.arange(120) // 6 % 3]
        adata.obs["dose"] = np.where(adata.obs["condition"] == "stimulated", dose, dtype(0))
        assert adata.obs["dose"].dtype == dtype
        TRVAE.setup_anndata(adata, ["dose"], labels_key="cell_type")
        model = TRVAE(adata, n_latent=2, n_hidden=(8,))
        assert model.conditions == ["0", "0.1", "0.7"]
        model.train(max_epochs=1, **CPU)
        doses = (0.1, np.float32(0.1), 0.4)
        predicted += [model.predict(target=[d], source=[0], labels="B") for d in doses]
    assert all(names.str.endswith("_0.1").all() for names in (p.obs_names for p in predicted[:2]))
    for one, two in zip(predicted[:3], predicted[3:], strict=True):
        assert (one.X != two.X).nnz == 0
        assert one.obs_names.equals(two.obs_names)


def test_a_query_may_have_numbers_as_text(fit, make_adata):
    """As a csv gives them: 0 and "0" are one level, and 1 and "1" one dose."""
    adata = with_levels(make_adata(), [0, 1])
    model = fit(adata)
    query = with_levels(make_adata(seed=5), ["0", "1"])
    with pytest.raises(InputError, match="no condition, batch or covariate level that the ref"):
        TRVAE.load_query_data(query, model)
    query.obs["condition"] = query.obs["condition"].where(np.arange(120) % 4 != 1, "2")
    extended = TRVAE.load_query_data(query, model)
    assert extended.conditions == [0, 1, "2"]

    dosed = make_adata()
    dosed.obs["dose"] = np.arange(120) // 6 % 3
    TRVAE.setup_anndata(dosed, ["condition", "dose"], labels_key="cell_type")
    model = TRVAE(dosed, n_latent=2, n_hidden=(8,))
    model.train(max_epochs=1, **CPU)
    query = make_adata(seed=5)
    query.obs["dose"] = (np.arange(120) // 6 % 3).astype(str)
    first = model.predict(query, target=("stimulated", 2), source=("control", "2"))
    assert set(first.obs["source_condition"]) == {"control + 2"}
    query.obs["condition"] = query.obs["condition"].astype(str).replace("stimulated", "new")
    extended = TRVAE.load_query_data(query, model)
    assert extended.conditions == [*model.conditions, "new + 0", "new + 1", "new + 2"]
    rows = extended.condition_space.design()[-3:]
    mean, deviation = 1.0, np.sqrt(2 / 3)
    np.testing.assert_allclose(rows[:, 2], (np.arange(3) - mean) / deviation, rtol=1e-6)


# -- methods that are compared --------------------------------------------------------------------------

COLUMNS = Keys(("drug", "dose"), "cell_type")


@pytest.fixture(scope="module")
def doses():
    return simulate_doses(n_labels=3, n_genes=60, specificity=0.2)


def test_hold_outs_of_several_columns_hide_what_others_tell_of(doses, caplog):
    caplog.set_level("INFO")
    one = doses[doses.obs["drug"] == "B"][:40].copy()
    one.obs["drug"] = "C"
    one.obs_names = "c" + one.obs_names
    found = evaluation.holdouts(anndata.concat([doses, one]), by="condition", keys=COLUMNS)
    assert {h.source for h in found} == {"none + 0"}
    assert {h.target for h in found} == {"A + 1", "A + 3", "A + 10", "B + 1", "B + 10"}
    assert "Skipped, with a part that no other condition has: C + 1." in caplog.text
    same = evaluation.holdouts(doses, by=["drug", "dose"], source=["none", 0], keys=COLUMNS)
    assert [h.target for h in same] == [h.target for h in found]
    by_label = evaluation.holdouts(doses, condition_key=["drug", "dose"], labels_key="cell_type")
    assert len(by_label) == 5 * 3
    hidden = by_label[0].hidden(doses, COLUMNS)
    assert set(doses.obs.loc[hidden, "drug"]) == {"A"}
    assert set(doses.obs.loc[hidden, "cell_type"]) == {by_label[0].label}
    with pytest.raises(InputError, match="Name it with source="):
        evaluation.holdouts(doses[doses.obs["drug"] != "none"].copy(), keys=COLUMNS)


def test_hold_outs_may_name_the_parts_of_conditions(doses):
    parts, source = {"dose": 3, "drug": "A"}, ("none", 0.0)
    options = {"keys": COLUMNS, "progress": False, "n_top_genes": None}
    label = doses.obs["cell_type"].iloc[0]
    given = [
        (label, "A + 3"),
        (label, parts),
        (label, ("A", 3.0)),
        evaluation.Holdout(label, parts, source),
    ]
    tables = [evaluation.benchmark(doses, ["mean_shift"], [one], **options).table for one in given]
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0])
    with pytest.raises(InputError, match="has the parts"):
        evaluation.benchmark(doses, ["mean_shift"], [(label, {"drug": "A"})], **options)


@pytest.mark.parametrize("by", [None, "condition", "cell_type"])
def test_hold_outs_of_several_columns_are_no_sets(doses, by):
    with pytest.raises(InputError, match="those of one column"):
        evaluation.holdouts(doses, by=by, keys=COLUMNS._replace(condition_separator="+"))


def test_methods_are_compared_on_doses_that_are_hidden(doses, tmp_path):
    hidden = evaluation.holdouts(doses, by="condition", keys=COLUMNS)
    hidden = [h for h in hidden if h.target == "A + 3"]
    methods = {name: METHODS[name] for name in ("no_change", "mean_condition", "context_shift")}
    few = {"train_kwargs": {"max_epochs": 1}, "n_hidden": (16, 8), "n_latent": 4}
    methods["trvae"] = partial(METHODS["trvae"], **few)
    options = {"keys": COLUMNS, "progress": False, "n_top_genes": None, "seeds": 1}
    run = evaluation.benchmark(doses, methods, hidden, folder=tmp_path / "r", **options)
    table = run.table[(run.table["metric"] == "effect_r2") & (run.table["genes"] == "all")]
    mean = table[table["output"] == "delta"].groupby("method")["value"].mean()
    assert mean["no_change"] == pytest.approx(0.0, abs=1e-6)
    assert mean["context_shift"] > 0.5
    assert mean["trvae"] > 0
    again = evaluation.Results.load(tmp_path / "r")
    assert again.run["keys"]["condition_key"] == ["drug", "dose"]
    with pytest.raises(InputError, match=r"CycleGAN takes conditions of one column"):
        evaluation.benchmark(doses, ["cyclegan"], evaluation.holdouts(doses, keys=COLUMNS)[:1], **options)  # fmt: skip


def test_simple_methods_predict_combinations_of_columns_with_all_their_columns(doses):
    lacks = (doses.obs["cell_type"] == "type_0") & (doses.obs["drug"] == "A")
    some = doses[~lacks].copy()
    target = {"drug": "A", "dose": 3}
    found = baselines.predict(some, target, source=("none", 0), keys=COLUMNS, labels="type_0")
    assert set(found.obs["drug"]) == {"A"}
    assert found.obs["dose"].dtype == float
    assert set(found.obs["dose"]) == {3.0}
    names = {"condition_key": ["drug", "dose"], "labels_key": "cell_type"}
    delta = baselines.predict(some, "A + 3", method="mean_shift", source="none + 0", output="delta", **names)  # fmt: skip
    assert set(delta.obs["dose"]) == {3.0}
    by_hand = some.obs.assign(condition=[f"{a} {b:g}" for a, b in zip(some.obs["drug"], some.obs["dose"], strict=True)])  # fmt: skip
    whole = AnnData(some.X, obs=by_hand, var=some.var)
    one = {"condition_key": "condition", "labels_key": "cell_type"}
    expected = baselines.predict(whole, "A 3", method="mean_shift", source="none 0", output="delta", **one)  # fmt: skip
    np.testing.assert_array_equal(delta.X, expected.X)
    scores = compare(found, doses).table()
    assert len(scores)


def test_select_predicts_a_dose_that_was_never_measured(doses):
    options = {"keys": COLUMNS, "progress": False, "n_top_genes": None}
    target = {"drug": "B", "dose": 3}
    found = select(doses, target, methods=["no_change", "context_shift"], **options)
    assert set(found.obs["drug"]) == {"B"}
    assert set(found.obs["dose"]) == {3.0}
    assert found.uns["trvae_sc"]["selection"]["n_tasks"] == 5
    lacks = (doses.obs["cell_type"] == "type_0") & (doses.obs["drug"] == "A")
    few = select(doses[~lacks].copy(), ("A", 3.0), methods=["context_shift"], **options)
    assert set(few.obs["cell_type"]) == {"type_0"}


def test_a_model_says_which_columns_its_condition_has(doses):
    adata = doses.copy()
    TRVAE.setup_anndata(adata, ["drug", "dose"], labels_key="cell_type")
    keys = TRVAE(adata).keys
    assert keys == COLUMNS
    assert keys.named()["condition_key"] == ["drug", "dose"]
    assert choose_genes(adata, TRVAE(adata), 20).chosen.sum() == 20


def test_the_shell_takes_several_columns(doses, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    doses.write_h5ad("cells.h5ad")
    names = ["--condition-key", "drug", "--condition-key", "dose", "--labels-key", "cell_type"]
    few = ["--n-top-genes", "0", "--max-epochs", "1"]
    assert main(["train", "cells.h5ad", *names, *few, "--holdout", "type_0:A + 3", "-o", "m"]) == 0
    assert main(["predict", "m", "cells.h5ad", "--target", "A + 5", "--source", "none + 0", "-o", "p.h5ad"]) == 0  # fmt: skip
    found = anndata.read_h5ad("p.h5ad")
    assert set(found.obs["dose"]) == {5.0}
    run = ["benchmark", "cells.h5ad", *names, "--by", "condition", "--methods", "context_shift"]
    assert main([*run, "--holdout", "type_1:B + 1", "--n-top-genes", "0", "-o", "r"]) == 0
    assert main(["report", "r", "-o", "r.html"]) == 0


@pytest.mark.parametrize("method", ["mean_condition", "context_shift"])
def test_simple_methods_give_no_interval_outside_of_the_doses_measured(doses, method):
    for dose, told in ((5.0, True), (10.5, False)):
        table = baselines.effects(
            doses, ("A", dose), method=method, source="none + 0", keys=COLUMNS
        )
        assert (table[["lower", "upper"]].notna() == told).all(axis=None)
        assert table["change"].notna().all()


def test_levels_with_the_text_that_joins_parts_are_told_everywhere(doses):
    adata = doses.copy()
    adata.obs["drug"] = adata.obs["drug"].cat.rename_categories({"A": "x + y"})
    keys = {"condition_key": ["drug", "dose"], "labels_key": "cell_type"}
    for ask in (
        lambda: baselines.predict(adata, ("x + y", 3), source="none + 0", output="delta", **keys),
        lambda: baselines.effects(adata, ("x + y", 4), source="none + 0", **keys),
        lambda: evaluation.holdouts(adata, **keys),
        lambda: select(adata, ("x + y", 4), **keys),
    ):
        with pytest.raises(InputError, match=r"Levels 'x \+ y' .* contain ' \+ '"):
            ask()


def test_intervals_of_doses_that_were_not_measured_cover_the_truth():
    """Of a level's dose between or beside those measured in all labels; 1 / 4 to 3 / 4 of the full effect."""
    inside = []
    for seed in range(3):
        adata = simulate_doses({"A": [1, 3, 10], "B": [1, 10]}, n_labels=5, seed=seed)
        learned, share = learn(adata, COLUMNS), adata.varm["true_share"]
        known, profiles = learned.known.conditions, learned.profiles
        source = known.levels.index("none + 0")
        for drug, dose in [("A", 1.001), ("A", 2.0), ("A", 9.9), ("B", 3.0), ("B", 9.9)]:
            likeness = known.likeness(
                "none + 0", known.level((drug, dose)), profiles.measured(source).any(0)
            )
            ridge = Ridge(profiles, source, likeness)
            expected = Ridge(profiles, source, likeness, common=1.0)
            half = labels_left_out(expected, conditions=True, relative=True).half_width
            for i, label in enumerate(profiles.labels):
                start, full = (np.log(share[f"{label}|{c}"]) for c in ("none|0", f"{drug}|10"))
                end = np.exp(start + dose / (dose + 3.0) * 13.0 / 10.0 * (full - start))
                truth = np.log1p(learned.kappa * end / end.sum())
                truth -= np.log1p(learned.kappa * np.exp(start))
                own = profiles.mean[i, source]
                wrong = ridge.predict(own, i) - own - truth
                width = half * np.sqrt(expected.expected_variance(own, i, 40.0))
                inside.append((np.abs(wrong) <= width).mean())
    assert 0.85 < np.mean(inside) < 0.95


@pytest.mark.parametrize("key", [[], ["drug", "drug"]])
def test_a_condition_has_different_columns(doses, key):
    for names in ({"condition_key": key}, {"keys": Keys(key)}):
        with pytest.raises(InputError, match="name one column, or several different"):
            baselines.effects(doses, "A", **names)


def test_one_condition_to_consider_may_be_a_dictionary(dosed):
    found, same = (
        next_experiments(dosed, source=("A", 0), conditions=given)
        for given in (dict(zip(dosed.keys.condition_key, ("A", 4), strict=True)), [("A", 4)])
    )
    assert set(found["condition"]) == {"A + 4"}
    assert found.equals(same)


def test_methods_that_can_do_without_a_target_are_those_that_can(doses):
    with pytest.raises(InputError, match="which mean_shift learns from") as told:
        baselines.effects(doses, ("A", 5), method="mean_shift", source="none + 0", keys=COLUMNS)
    assert str(told.value).endswith("are ['mean_condition', 'context_shift', 'trvae'].")


#: Target and source as a row of ``obs`` and as an array.
ROW = pd.Series({"dose": 3, "drug": "A"}), np.array(["none", "0"])


@pytest.mark.parametrize(
    ("target", "source"),
    [
        *((("A", 3), ("none", 0)), ("A + 3.0", "none + 0.0")),
        *(({"dose": "3", "drug": "A"}, "none + 0"), ROW),
    ],
)
def test_conditions_of_holdouts_can_be_given_in_several_ways(doses, target, source):
    hidden = [evaluation.Holdout("type_1", target, source)]
    options = {"keys": COLUMNS, "n_top_genes": None, "progress": False}
    found = evaluation.benchmark(doses, ["mean_shift"], hidden, **options).table
    expected = evaluation.benchmark(doses, ["mean_shift"], ["type_1:A + 3"], **options).table
    pd.testing.assert_frame_equal(found, expected)
    every = evaluation.holdouts(doses, keys=COLUMNS, source=source, min_cells=5)
    assert every == evaluation.holdouts(doses, keys=COLUMNS, min_cells=5)


def test_holdouts_by_the_columns_of_the_condition_in_any_order(doses):
    options = {"keys": COLUMNS, "min_cells": 5}
    found = evaluation.holdouts(doses, by=["dose", "drug"], **options)
    assert found == evaluation.holdouts(doses, by="condition", **options)


@pytest.mark.parametrize("target", [3, "3.0", [3], {"dose": 3}])
def test_select_takes_levels_of_one_column_however_they_are_given(doses, target):
    cells = doses[doses.obs["drug"] != "B"].copy()
    keys = {"condition_key": "dose", "labels_key": "cell_type", "progress": False}
    found = select(cells, target, source=0, labels="type_1", methods=["mean_shift"], **keys)
    assert found.uns["trvae_sc"]["target"] == "3"
    with pytest.raises(InputError, match=r"Unknown condition 5; .*condition_key=\['dose'\] it is"):
        select(cells, 5, source=0, methods=["mean_shift"], **keys)


def test_labels_are_no_part_of_a_condition(doses):
    keys = {"condition_key": ["drug", "cell_type"], "labels_key": "cell_type"}
    for ask in (baselines.effects, baselines.predict, select):
        with pytest.raises(InputError, match="labels_key and condition_key are both 'cell_type'"):
            ask(doses, ("A", "type_1"), source=("none", "type_0"), **keys)


@pytest.mark.parametrize("combine", ["best", "stack"])
def test_select_gives_no_intervals_beyond_the_doses_that_were_measured(doses, combine):
    methods = ["mean_condition", "context_shift"]
    options = {"source": ("none", 0), "labels": "type_1", "max_tasks": 3, "progress": False}
    found = select(doses, ("A", 100), methods=methods, combine=combine, keys=COLUMNS, **options)
    assert found.var[["change_lower", "change_upper"]].isna().all(axis=None)
    assert found.var["predicted_change"].notna().all()


def test_a_dose_of_labels_without_a_source_is_told_by_other_conditions(doses):
    of_drug = (doses.obs["drug"] == "A") & (doses.obs["dose"] == 10)
    without = doses.obs["cell_type"] == "type_2"
    kept = ~((of_drug & ~without) | (without & (doses.obs["drug"] == "none")))
    cells = doses[kept].copy()
    asked = {"target": ("A", 10), "source": ("none", 0), "labels": "type_1", "keys": COLUMNS}
    methods = ["mean_condition", "context_shift"]
    found = select(cells, methods=methods, progress=False, **asked)
    record = found.uns["trvae_sc"]
    assert record["selection"]["method"] == "context_shift"
    assert sorted(record["selection"]["tasks"]) == [f"type_0:{c}" for c in ("A + 1", "A + 3", "B + 1", "B + 10")]  # fmt: skip
    assert "rests on what was seen under other conditions." in record["notes"][0]
    expected = baselines.effects(cells, **asked)["change"]
    np.testing.assert_allclose(found.var["predicted_change"], expected, atol=1e-6)


@pytest.mark.parametrize("method", ["mean_shift", "nearest_shift", "latent_shift"])
def test_methods_take_a_target_however_it_is_given_and_cells_that_have_it(doses, method):
    own = (doses.obs["cell_type"] == "type_1") & doses.obs["drug"].isin(["none", "A"])
    few = {"train_kwargs": {"max_epochs": 1}} if method == "latent_shift" else {}
    found = []
    for target in ("A + 10", ("A", 10), {"dose": "10", "drug": "A"}, "A + 10.0"):
        one = METHODS[method](doses, doses[own].copy(), target=target, keys=COLUMNS, **few)
        found.append(one["delta"] if few else one)
        assert (found[-1].obs["dose"] == 10).all()
        assert found[-1].uns["trvae_sc"]["target"] == "A + 10"
        np.testing.assert_array_equal(found[-1].X, found[0].X)
