"""Conditions described by features: kernels, what features say, predictions of what was never measured."""

import logging
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import trvae_sc
from trvae_sc import TRVAE, InputError, baselines, datasets, evaluation
from trvae_sc.baselines._shift import shift_of
from trvae_sc.cli import main
from trvae_sc.condition_features import Description, description_of
from trvae_sc.condition_kernels import left_out_together
from trvae_sc.condition_parts import joint_column, new_parts
from trvae_sc.condition_sets import ConditionSets, new_sets
from trvae_sc.conditions import ConditionSpace
from trvae_sc.left_out import labels_left_out, left_out_errors
from trvae_sc.shift import Likeness, Profiles, Ridge, mean_changes

QUICK = {"max_epochs": 2, "accelerator": "cpu", "devices": 1, "enable_progress_bar": False}
SMALL = {"n_latent": 4, "n_hidden": (16, 8)}
NAMES = {
    "condition_key": "condition",
    "labels_key": "cell_type",
    "total_counts_key": "total_counts",
}
FEATURES = {**NAMES, "condition_features": "condition_features"}


@pytest.fixture(scope="module")
def adata():
    return datasets.simulate(
        1500, 60, n_labels=3, n_conditions=9, features="latent", effect_size=2.0, seed=1
    )


@pytest.fixture(scope="module")
def train(adata):
    return adata[adata.obs["condition"] != "condition_4"].copy()


@pytest.fixture(scope="module")
def model(train):
    train = train.copy()
    TRVAE.setup_anndata(train, **FEATURES)
    model = TRVAE(train, **SMALL)
    model.train(**QUICK)
    return model


def _described(values, names=None, *, measured=None, share=0.5, length=1.0):
    names = names or [f"c{i}" for i in range(len(values))]
    table = pd.DataFrame(np.asarray(values, float), index=names)
    found = description_of(table, "drug", measured or names)
    return Description(**{**found.plain(), "share": share, "length": length})


# -- kernels ------------------------------------------------------------------------------------------


def test_levels_are_alike_by_their_features_and_by_being_the_same():
    description = _described([[0.0], [1.0], [3.0]], share=0.8)
    z = np.array([0.0, 1.0, 3.0]) / np.std([0.0, 1.0, 3.0])
    median = np.median([z[1], z[2] - z[1], z[2]])
    near = np.exp(-0.5 * (np.subtract.outer(z, z) / median) ** 2)
    expected = 0.8 * near + 0.2 * np.eye(3)
    np.testing.assert_allclose(description.alike(["c0", "c1", "c2"], ["c0", "c1", "c2"]), expected)


def test_a_level_without_features_is_like_itself_only():
    description = _described([[0.0], [1.0]])
    np.testing.assert_allclose(description.alike(["control"], ["c0", "control"]), [[0.0, 1.0]])


def test_changes_are_differences_of_what_levels_do():
    description = _described([[0.0], [1.0], [3.0]], share=1.0)
    k = description.alike(["c0", "c1", "c2"], ["c0", "c1", "c2"])
    found = description.changes_alike("c0", ["c1", "c2"])
    to = np.array([[-1.0, 1.0, 0.0], [-1.0, 0.0, 1.0]])
    np.testing.assert_allclose(found, to @ k @ to.T)
    # from a control without features all changes share what the control lacks
    found = description.changes_alike("control", ["c1", "c2"])
    np.testing.assert_allclose(found, k[1:, 1:] + 1.0)


@pytest.mark.parametrize("same", [5.0, 0.1])  # the mean of three 0.1 is another number
def test_a_feature_that_does_not_differ_says_nothing(same):
    names, measured = ["c0", "c1", "c2", "c3"], ["c0", "c1", "c2"]
    values = np.array([[0.0, same], [1.0, same], [3.0, same], [2.0, 2 * same]])
    description = _described(values, measured=measured)
    other = _described(values[:, :1], measured=measured)
    np.testing.assert_allclose(description.alike(names, names), other.alike(names, names))
    np.testing.assert_allclose(description.network("c3"), other.network("c3"))


def test_the_network_sees_no_more_axes_than_conditions_and_their_distances():
    values = np.random.default_rng(0).normal(size=(6, 40))
    description = _described(values)
    shown = np.stack([description.network(f"c{i}") for i in range(6)])
    assert shown.shape == (6, 5)
    np.testing.assert_allclose(np.square(shown).sum(1).mean(), 0.25)
    z = (values - values.mean(0)) / values.std(0)
    wide = np.linalg.norm(z[0] - z[1]) / np.linalg.norm(z[2] - z[3])
    found = np.linalg.norm(shown[0] - shown[1]) / np.linalg.norm(shown[2] - shown[3])
    np.testing.assert_allclose(found, wide)


def test_novelty_is_the_distance_to_the_nearest_in_units_of_theirs():
    description = _described([[0.0], [1.0], [3.0], [9.0]], measured=["c0", "c1", "c2"])
    # nearest neighbours of 0, 1, 3 are at 1, 1, 2; 9 is at 6 from 3
    np.testing.assert_allclose(description.novelty("c3"), 3.0)
    assert description.novelty("c0") == 0.0
    assert "3.0 times as far" in description.remarks("c3")[0]
    assert not description.remarks("c1")


# -- what features say --------------------------------------------------------------------------------


def _profiles(features, *, follow, seed=0, n_labels=4, n_genes=80):
    rng = np.random.default_rng(seed)
    n = len(features)
    waves = rng.normal(size=(features.shape[1], 20))
    smooth = np.cos(features @ waves * 0.5) @ rng.normal(size=(20, n_genes)) / 3
    own = smooth if follow else rng.normal(size=(n, n_genes))
    mean = rng.normal(5.0, 1.0, (n_labels, 1, n_genes)) + own
    mean = np.concatenate([mean[:, :1] * 0 + rng.normal(5.0, 1.0, (n_labels, 1, n_genes)), mean], 1)
    mean += rng.normal(0.0, 0.05, mean.shape)
    labels = tuple(f"l{i}" for i in range(n_labels))
    return Profiles(mean, np.full((n_labels, n + 1), 100.0), labels, is_count=False)


def _space(features):
    names = [f"c{i:02d}" for i in range(len(features))]
    obs = pd.DataFrame({"drug": pd.Categorical(["control", *names], ["control", *names])})
    table = pd.DataFrame(features, index=names)
    parts = new_parts(obs.assign(drug=obs["drug"].cat.as_ordered()), ["drug"], table)
    return ConditionSpace("drug", ("control", *names), parts)


def test_levels_of_equal_features_are_alike_however_many_there_are():
    """The median distance of ten, of which eight are equal, was 0: all were taken to lack features."""
    values = [[0.0]] * 8 + [[1.0]] * 2
    description = _described(values, [f"d{i}" for i in range(10)], share=1.0)
    expected = [1.0, 1.0, np.exp(-0.5)]  # the only distance that is not 0 is the median
    np.testing.assert_allclose(description.alike(["d0"], ["d0", "d1", "d9"]), [expected])


@pytest.mark.parametrize("follow", [True, False])
def test_features_count_where_conditions_left_out_are_predicted_by_them(follow):
    features = np.random.default_rng(1).normal(size=(24, 2))
    profiles = _profiles(features, follow=follow)
    share = _space(features).informed(profiles, 0).description.share
    assert share >= 0.75 if follow else share == 0.0


def test_too_few_conditions_leave_the_share_as_it_is():
    features = np.random.default_rng(1).normal(size=(3, 2))
    space = _space(features)
    assert space.informed(_profiles(features, follow=True), 0) is space


def test_the_error_of_conditions_left_out_is_that_of_refits():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(7, 3))
    kernel, noise, y = x @ x.T, rng.uniform(0.1, 0.3, 7), rng.normal(size=(7, 5))

    def error(rows, out):
        rest = np.setdiff1d(np.arange(7), out)
        inner = kernel[np.ix_(rest, rest)] + np.diag(noise[rest])
        weights = np.linalg.solve(inner, kernel[np.ix_(rest, rows)])
        return np.square(y[rows] - weights.T @ y[rest]).mean()

    alone = left_out_errors(y, noise, kernel, np.eye(7, dtype=bool))
    np.testing.assert_allclose(np.sort(alone), np.sort([error([i], [i]) for i in range(7)]))
    together = np.eye(7, dtype=bool)
    together[:2, :2] = together[2, [0, 2]] = True  # 0 is left out with 1, and again with 2
    expected = [error([0, 1], [0, 1]), error([2], [0, 2]), *(error([i], [i]) for i in range(3, 7))]
    found = left_out_errors(y, noise, kernel, together)
    np.testing.assert_allclose(np.sort(found), np.sort(expected))


def test_conditions_are_left_out_with_all_that_have_their_level():
    """Of a set the part that fewest have: b of a+b; those without any are alone."""
    table = pd.DataFrame({"x": [0.0, 1.0, 5.0]}, ["a", "b", "c"])
    description = description_of(table, "drug", ["a", "b", "c"])
    found = left_out_together([["a"], ["b"], ["a", "b"], ["a", "c"], [], []], description)
    assert [np.flatnonzero(row).tolist() for row in found] == [
        [0, 2, 3],
        [1, 2],
        [1, 2],
        [3],
        [4],
        [5],
    ]
    assert left_out_together([[], []], description).tolist() == [[True, False], [False, True]]
    found = left_out_together([["b"], ["b", "c"], ["c"]], description)  # c is farther out
    assert found.tolist() == [[True, True, False], [False, True, True], [False, True, True]]


def _doses(n, seed, *, own=1.2, n_genes=40):
    """Return drugs at three doses, one that was not measured last, and the change of each."""
    rng = np.random.default_rng(seed)
    phi, w = rng.normal(size=(n + 1, 2)), rng.normal(size=(2, n_genes))
    effect = phi @ w + rng.normal(0, own, (n + 1, n_genes))
    drugs = [f"d{i}" for i in range(n + 1)]
    rows = [("none", 0.0), *((d, dose) for d in drugs[:n] for dose in (1.0, 3.0, 10.0))]
    obs = pd.DataFrame(rows, columns=["drug", "dose"])
    names = joint_column(obs, ["drug", "dose"])[1]
    table = pd.DataFrame(phi, index=pd.Index(drugs, name="drug"))
    parts = new_parts(obs, ["drug", "dose"], table)
    space = ConditionSpace(["drug", "dose"], tuple(names), parts)
    change = [
        effect[int(drug[1:])] * (0.5 + 0.5 * np.log10(dose)) if drug != "none" else 0.0 * effect[0]
        for drug, dose in names.values()
    ]
    mean = rng.normal(5, 0.5, (3, 1, n_genes)) + np.stack(change)
    mean += rng.normal(0, 0.05, mean.shape)
    known = Profiles(mean, np.full(mean.shape[:2], 100.0), ("a", "b", "c"), is_count=False)
    return space, known, list(names).index("none + 0"), effect[n]


def test_features_of_drugs_count_where_drugs_at_all_their_doses_are_left_out():
    """Another dose of the same drug told all: features of drugs were taken for worth nothing."""
    scores, inside = [], []
    for seed in range(6):
        space, known, source, truth = _doses(12, seed)
        informed = space.informed(known, source)
        assert informed.description.share > 0
        target = informed.level({"drug": "d12", "dose": 10.0})
        start, measured = space.levels[source], known.measured(source).any(0)
        likeness = informed.likeness(start, target, measured)
        own = known.mean[0, source]
        change = Ridge(known, source, likeness).predict(own, 0) - own
        scores.append(1 - np.square(change - truth).sum() / np.square(truth).sum())
        ridge = Ridge(known, source, likeness, common=1.0)
        missed = labels_left_out(ridge, conditions=True, relative=True)
        assert len(np.unique(missed.unit)) == 12  # drugs, not their doses
        half = missed.half_width * np.sqrt(ridge.expected_variance(own, 0, 100.0))
        inside.append((np.abs(change - truth) <= half).mean())
        at_measured = informed.likeness(start, "d3 + 5", measured)
        assert at_measured.together is None  # another dose of a drug that was measured
    assert np.median(scores) > 0.15
    assert 0.65 < np.mean(inside) < 0.98


def test_features_of_parts_count_where_all_sets_with_a_part_are_left_out():
    """Each part is in four sets, so that the others told what it does."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        phi, names = rng.normal(size=(10, 2)), list("abcdefghij")
        effect = phi @ rng.normal(size=(2, 40)) + rng.normal(0, 0.7, (10, 40))
        pairs = [(names[i], names[(i + k) % 10]) for i in range(10) for k in (1, 2)]
        levels = ["control", *("+".join(sorted(pair)) for pair in pairs)]
        coding = new_sets(pd.Series(levels), "+", pd.DataFrame(phi, index=names))
        space = ConditionSets("condition", tuple(levels), coding)
        change = [sum(effect[names.index(part)] for part in pair) for pair in pairs]
        mean = rng.normal(5, 0.5, (3, 1, 40)) + np.stack([0.0 * effect[0], *change])
        mean += rng.normal(0, 0.05, mean.shape)
        known = Profiles(mean, np.full(mean.shape[:2], 100.0), ("x", "y", "z"), is_count=False)
        assert space.informed(known, 0).description.share >= 0.5


def test_mean_changes_weigh_labels_by_their_cells():
    mean = np.random.default_rng(0).normal(size=(2, 2, 3))
    n_cells = np.array([[10.0, 10.0], [90.0, 90.0]])
    profiles = Profiles(mean, n_cells, ("a", "b"), is_count=False)
    weight = np.array([10 / 40, 90 / 120])
    weight /= weight.sum()
    changes, noise = mean_changes(profiles, 0, np.array([1]))
    np.testing.assert_allclose(changes[0], weight @ (mean[:, 1] - mean[:, 0]))
    np.testing.assert_allclose(noise[0], np.square(weight) @ (0.3 + 0.3 * 30 / np.array([10, 90])))


@pytest.mark.parametrize("alone", [True, False])
def test_leaving_a_condition_out_is_refitting_without_it(alone):
    """Alone, or with others: the last of six is left out with the first, these with one another."""
    features = np.random.default_rng(2).normal(size=(6, 2))
    profiles = _profiles(features, follow=True, n_labels=3)
    space = _space(features)
    measured = profiles.measured(0).any(0)
    codes = np.flatnonzero(measured)
    kernel = space.alike("control", [space.levels[c] for c in codes])
    together = np.eye(len(codes), dtype=bool)
    if not alone:
        together[:2, :2] = together[2:4, 2:4] = together[-1, 0] = True
    likeness = Likeness(codes, kernel, np.ones(len(codes)), 1.0, None if alone else together)
    ridge = Ridge(profiles, 0, likeness, common=1.0)
    assert len(np.unique(ridge.unit)) == (6 if alone else 4)
    missed, _ = ridge.left_out(conditions=True)
    variance = ridge.left_out_variance(conditions=True)
    label, place = ridge.groups[:, 0], np.searchsorted(codes, ridge.groups[:, 1])
    labels = 1.0 + ridge.z @ ridge.z.T / ridge.size + 0.3 * np.eye(3)
    full = kernel[np.ix_(place, place)] * labels[np.ix_(label, label)]
    full += np.diag(0.3 * 30 / ridge.n)
    for c in codes:
        own = ridge.groups[:, 1] == c
        kept = ~np.isin(ridge.groups[:, 1], codes[together[codes == c][0]])
        across, rest = full[np.ix_(own, kept)], full[np.ix_(kept, kept)]
        weights = np.linalg.solve(rest, across.T).T
        expected = ridge.changes[own] - weights @ ridge.changes[kept]
        np.testing.assert_allclose(missed[own], expected, atol=1e-6)
        left = full[np.ix_(own, own)] - weights @ across.T
        np.testing.assert_allclose(variance[own], np.diag(left))


# -- the model ----------------------------------------------------------------------------------------


def test_a_condition_of_the_table_that_was_never_measured_is_predicted(model, caplog):
    with caplog.at_level(logging.WARNING):
        predicted = model.predict(source="control", target="condition_4", labels="type_0")
    record = predicted.uns["trvae_sc"]
    assert predicted.n_obs == model.n_cells.loc["type_0", "control"]
    assert (predicted.obs["condition"] == "condition_4").all()
    assert any("predicted from its features" in note for note in record["notes"])
    assert not any("alignment of conditions alone" in note for note in record["notes"])
    assert np.isfinite(record["combinations"]["condition_novelty"]).all()
    assert np.isfinite(predicted.var[["change_lower", "change_upper"]].to_numpy()).all()


def test_features_of_a_new_condition_can_be_passed(model, adata):
    row = adata.uns["condition_features"].loc["condition_4"]
    expected = model.effects(source="control", target="condition_4")["change"]
    for features in (row, row.to_dict(), row.to_numpy(), row.to_frame().T):
        found = model.effects(source="control", target="mine", features=features)
        np.testing.assert_array_equal(found["change"], expected)
    predicted = model.predict(source="control", target="mine", features=row, output="delta")
    assert (predicted.obs["condition"] == "mine").all()


def test_conditions_by_features_survive_saving(model, train, tmp_path):
    model.save(tmp_path / "m")
    loaded = TRVAE.load(tmp_path / "m", adata=train.copy())
    expected = model.effects(source="control", target="condition_4")["change"]
    found = loaded.effects(source="control", target="condition_4")["change"]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("target", "features", "message"),
    [
        ("nothing", None, "needs its features"),
        ("mine", [1.0], "4 finite numbers are needed"),
        ("mine", [1.0, 2.0, 3.0, np.nan], "4 finite numbers are needed"),
        ("mine", {"feature_0": 1.0}, "lacks 'feature_1'"),
        ("mine", ["a", "b", "c", "d"], "no numbers"),
        ("condition_3", [1.0, 2.0, 3.0, 4.0], "was measured"),
    ],
)
def test_bad_features_of_a_target_are_refused(model, target, features, message):
    with pytest.raises(InputError, match=message):
        model.predict(source="control", target=target, features=features)


def test_a_model_without_features_takes_none(train):
    plain = train.copy()
    TRVAE.setup_anndata(plain, **NAMES)
    model = TRVAE(plain, **SMALL)
    model.train(**QUICK)
    with pytest.raises(InputError, match="without condition_features"):
        model.predict(source="control", target="mine", features=[1.0] * 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(index="condition_1"), "no row for 'condition_1'"),
        (lambda t: t.assign(feature_0=np.nan), "NaN or infinite"),
        (lambda t: t.assign(feature_0="a"), "are no numbers"),
        (lambda t: pd.concat([t, t]), "more than once"),
        (lambda t: t[[]], "no column"),
        (lambda t: t.to_numpy(), "give a DataFrame"),
        (lambda t: "nowhere", "No table 'nowhere'"),
    ],
)
def test_bad_tables_are_refused_before_anything_is_written(train, change, message):
    fresh = train.copy()
    before = fresh.obs.columns.tolist(), list(fresh.uns)
    table = change(fresh.uns["condition_features"])
    with pytest.raises(InputError, match=message):
        TRVAE.setup_anndata(fresh, **NAMES, condition_features=table)
    assert (fresh.obs.columns.tolist(), list(fresh.uns)) == before


def test_one_hot_features_change_nothing_of_measured_conditions(train):
    changes = []
    names = sorted(set(train.obs["condition"]) - {"control"})
    for table in (None, pd.DataFrame(np.eye(len(names)), index=names)):
        some = train[~((train.obs.cell_type == "type_0") & (train.obs.condition == "condition_1"))]
        given = some.copy()
        TRVAE.setup_anndata(given, **NAMES, condition_features=table)
        model = TRVAE(given, **SMALL, context_weight=1.0)
        model.train(**QUICK)
        found = model.effects(source="control", target="condition_1", labels="type_0")
        changes.append(found[["change", "lower", "upper"]].to_numpy())
    np.testing.assert_allclose(changes[1], changes[0], atol=1e-6)


def test_features_of_one_of_several_columns(adata):
    some = adata[adata.obs["condition"] != "control"].copy()
    some.obs["time"] = np.random.default_rng(0).choice([1.0, 2.0], some.n_obs)
    some = some[~(some.obs.condition == "condition_4")].copy()
    table = some.uns["condition_features"]
    TRVAE.setup_anndata(
        some, ["condition", "time"], labels_key="cell_type", condition_features=table
    )
    model = TRVAE(some, **SMALL)
    model.train(**QUICK)
    source = {"condition": "condition_1", "time": 1.0}
    found = model.effects(source=source, target={"condition": "condition_4", "time": 1.5})
    assert np.isfinite(found["change"]).all()
    row = table.loc["condition_4"]
    other = model.effects(source=source, target={"condition": "mine", "time": 1.5}, features=row)
    np.testing.assert_allclose(other["change"], found["change"])


def test_features_of_the_parts_of_sets(adata):
    some = adata[adata.obs["condition"].isin(["control", "condition_1", "condition_2"])].copy()
    names = {"condition_1": "A", "condition_2": "B"}
    some.obs["condition"] = some.obs["condition"].astype(str).replace(names)
    both = (some.obs["condition"] == "A") & (np.arange(some.n_obs) % 3 == 0)
    some.obs.loc[both, "condition"] = "A+B"
    table = pd.DataFrame({"x": [0.0, 1.0, 2.0]}, index=["A", "B", "C"])
    TRVAE.setup_anndata(some, **NAMES, condition_separator="+", condition_features=table)
    model = TRVAE(some, **SMALL)
    model.train(**QUICK)
    for target in ("C", "A+C"):
        found = model.effects(source="control", target=target)
        assert np.isfinite(found["change"]).all()
    cells = model.decode(np.zeros((2, 4)), condition="A+C")
    assert cells.obs["condition"].tolist() == ["A+C", "A+C"]


def test_a_query_with_new_conditions_needs_their_features(model, adata):
    query = adata[adata.obs["condition"].isin(["control", "condition_4"])].copy()
    query.obs["condition"] = query.obs["condition"].astype(str).replace({"condition_4": "new"})
    with pytest.raises(InputError, match=r"'new'.*have no features"):
        TRVAE.load_query_data(query.copy(), model)
    table = pd.DataFrame([[0.0, 1.0, 0.0, 1.0]], index=["new"])
    table.columns = adata.uns["condition_features"].columns
    known = adata.uns["condition_features"]
    for scale in (1.0, 100.0):  # that of another embedding was taken for the reference's, silently
        both = pd.concat([scale * known, scale * table])
        if scale == 1.0:
            TRVAE.load_query_data(query.copy(), model, condition_features=both)
            continue
        with pytest.raises(InputError, match=r"has other features of .* than the reference"):
            TRVAE.load_query_data(query.copy(), model, condition_features=both)
    rounded = pd.concat([known + 1e-3, table])  # as a file may hold them
    TRVAE.load_query_data(query.copy(), model, condition_features=rounded)
    extended = TRVAE.load_query_data(query, model, condition_features=table)
    extended.train(**QUICK)
    found = extended.effects(source="control", target="new")
    assert np.isfinite(found["change"]).all()
    # what the reference knew stays
    before = model.effects(source="control", target="condition_2")["change"]
    after = extended.effects(source="control", target="condition_2")["change"]
    np.testing.assert_array_equal(after, before)


# -- simple methods -----------------------------------------------------------------------------------


def test_simple_methods_by_hand(train):
    """Of values that are no counts changes are differences, and the mean needs no scale."""
    rng = np.random.default_rng(0)
    values = train.copy()
    values.X = rng.normal(3.0, 1.0, values.shape)
    keys = {**NAMES, "total_counts_key": None, "is_count": False, "source": "control"}
    keys["condition_features"] = values.uns["condition_features"]
    obs = values.obs[["cell_type", "condition"]].astype(str)
    means = pd.DataFrame(values.X, index=pd.MultiIndex.from_frame(obs)).groupby(level=[0, 1]).mean()
    own = means.loc["type_1"]
    change = own.drop("control") - own.loc["control"]
    found = baselines.effects(
        values, "condition_4", method="mean_condition", labels="type_1", **keys
    )
    np.testing.assert_allclose(found["change"], change.mean(), rtol=1e-6)
    table = keys["condition_features"]
    z = (table - table.loc[change.index].mean()) / table.loc[change.index].std()
    nearest = np.square(z.loc[change.index] - z.loc["condition_4"]).sum(axis=1).idxmin()
    found = baselines.effects(
        values, "condition_4", method="nearest_condition", labels="type_1", **keys
    )
    np.testing.assert_allclose(found["change"], change.loc[nearest], rtol=1e-6)
    found = baselines.effects(values, "condition_4", method="feature_ridge", **keys)
    by_label = found.pivot(index="gene", columns="label", values="change")
    np.testing.assert_allclose(by_label["type_0"], by_label["type_1"])


@pytest.mark.parametrize(
    "method", ["mean_condition", "nearest_condition", "feature_ridge", "context_shift"]
)
def test_simple_methods_return_whole_predictions(train, method):
    keys = {**FEATURES, "source": "control"}
    predicted = baselines.predict(train, "condition_4", method=method, labels="type_0", **keys)
    x = predicted.X.toarray()
    assert (x == np.round(x)).all()
    assert any("from its features" in note for note in predicted.uns["trvae_sc"]["notes"])
    table = baselines.effects(train, "condition_4", method=method, labels="type_0", **keys)
    np.testing.assert_allclose(table["change"], predicted.var["predicted_change"], atol=1e-6)
    assert (table["lower"] < table["upper"]).all()


@pytest.mark.parametrize("method", ["mean_condition", "nearest_condition", "feature_ridge"])
def test_labels_are_left_out_where_others_were_measured_under_the_target(method):
    """Whole conditions were, though the prediction rests on the target's own changes in other labels."""
    features = np.array([[0.0], [1.0], [3.0]])
    space, profiles = _space(features), _profiles(features, follow=False, n_labels=5)
    n_cells = profiles.n_cells.copy()
    n_cells[0, 2] = 0  # c01, of the label to predict
    profiles = replace(profiles, n_cells=n_cells)
    missed = shift_of(method, profiles, space, 0, "c01").missed
    assert missed.unit.tolist() == [1, 2, 3, 4]
    for label, residual in zip(missed.unit, missed.residuals, strict=True):
        n_cells = profiles.n_cells.copy()
        n_cells[label, 2] = 0
        again = shift_of(method, replace(profiles, n_cells=n_cells), space, 0, "c01")
        found = again.predict(profiles.mean[label, 0], label)
        np.testing.assert_allclose(residual, profiles.mean[label, 2] - found, atol=1e-10)
    more = space.with_description(space.description.extended("c03", [2.0]))  # not measured
    assert set(shift_of(method, profiles, more, 0, "c03").missed.unit) == {1, 2, 3}


def test_shifts_of_labels_say_that_they_need_the_condition(train):
    with pytest.raises(InputError, match=r"mean_shift learns from\. .*mean_condition"):
        baselines.predict(train, "condition_4", method="mean_shift", source="control", **FEATURES)
    with pytest.raises(InputError, match="condition_features="):
        baselines.predict(
            train, "condition_3", method="nearest_condition", source="control", **NAMES
        )


# -- hold-outs, benchmark, selection ------------------------------------------------------------------


def test_a_condition_is_hidden_in_all_labels(adata):
    found = evaluation.holdouts(adata, by="condition", min_cells=1, **FEATURES)
    (one,) = [h for h in found if (h.label, h.target) == ("type_1", "condition_2")]
    assert {(o.label, o.target) for o in one.also} == {
        ("type_0", "condition_2"),
        ("type_2", "condition_2"),
    }
    assert len(found) == 3 * 8


def test_a_condition_and_a_label_are_hidden(adata):
    found = evaluation.holdouts(adata, by="both", min_cells=1, **FEATURES)
    (one,) = [h for h in found if (h.label, h.target) == ("type_1", "condition_2")]
    hidden = {(one.label, one.target), *((o.label, o.target) for o in one.also)}
    others = {("type_1", f"condition_{i}") for i in range(1, 9)}
    assert hidden == others | {("type_0", "condition_2"), ("type_2", "condition_2")}


def test_benchmark_predicts_hidden_conditions(adata):
    found = evaluation.holdouts(adata, by="condition", min_cells=1, **FEATURES)[:2]
    methods = ["no_change", "mean_condition", "nearest_condition", "feature_ridge", "context_shift"]
    results = evaluation.benchmark(
        adata, [*methods, "trvae"], found, seeds=1, max_epochs=1, progress=False, **FEATURES
    )
    table = results.table
    scores = table[(table["metric"] == "effect_r2") & (table["output"] == "delta")]
    assert set(scores["method"]) == {*methods, "trvae"}
    assert scores.loc[scores["method"] == "no_change", "value"].abs().max() < 1e-6
    from trvae_sc import pl

    ax = pl.design(results.design, hidden=found)
    assert len(ax.patches) == len({h.target for h in found})


def test_select_compares_methods_on_conditions_left_out(train):
    predicted = trvae_sc.select(
        train,
        "condition_4",
        source="control",
        methods=["mean_condition", "context_shift"],
        min_cells=5,
        progress=False,
        **FEATURES,
    )
    selection = predicted.uns["trvae_sc"]["selection"]
    assert selection["n_tasks"] == 7
    assert all(":condition_" in task for task in selection["tasks"])
    assert any("known conditions in turn" in note for note in predicted.uns["trvae_sc"]["notes"])


def test_select_uses_no_features_of_a_condition_that_a_label_was_measured_under(adata):
    hidden = adata.obs["cell_type"].isin(["type_0", "type_1"]) & (
        adata.obs["condition"] == "condition_2"
    )
    found = trvae_sc.select(
        adata[~hidden.to_numpy()].copy(),
        "condition_2",
        source="control",
        labels="type_1",
        progress=False,
        **FEATURES,
    )
    assert found.uns["trvae_sc"]["selection"]["method"] == "mean_shift"


# -- data ---------------------------------------------------------------------------------------------


def test_features_do_not_change_other_simulated_data():
    one = datasets.simulate(300, 20, n_labels=2, conditions=["control", "a"], seed=3)
    other = datasets.simulate(
        300, 20, n_labels=2, conditions=["control", "a"], features=None, seed=3
    )
    assert (one.X != other.X).nnz == 0


def test_simulated_responses_follow_their_features():
    adata = datasets.simulate(
        600, 200, n_labels=1, n_conditions=80, features="latent", feature_share=1.0, specificity=0.0
    )
    table, share = adata.uns["condition_features"], np.log(adata.varm["true_share"])
    change = share.sub(share["type_0|control"], axis=0)[[f"type_0|{c}" for c in table.index]].T
    distance = np.linalg.norm(table.to_numpy()[:, None] - table.to_numpy(), axis=2)
    apart = np.linalg.norm(change.to_numpy()[:, None] - change.to_numpy(), axis=2)
    pairs = np.triu_indices(len(table), 1)
    near = distance[pairs] < 1.0
    assert near.sum() > 5
    assert apart[pairs][near].mean() < 0.75 * apart[pairs][~near].mean()


def test_styles_that_are_maps():
    table = pd.DataFrame({"angle": [0.0, 90.0]}, index=["as it is", "turned"])
    adata = datasets.digits(table)
    for style, known in (("as it is", "normal"), ("turned", "rotated")):
        own = adata[adata.obs["style"] == style].X
        np.testing.assert_allclose(own, datasets.digits([known]).X, atol=1e-4)
    assert adata.uns["condition_features"].loc["turned"].tolist() == [90.0, 0.0, 1.0, 0.0]
    with pytest.raises(InputError, match="columns of"):
        datasets.digits(pd.DataFrame({"tilt": [1.0]}, index=["x"]))


def test_command_line(adata, tmp_path):
    some = adata[adata.obs["condition"] != "condition_4"].copy()
    some.write_h5ad(tmp_path / "a.h5ad")
    table = adata.uns["condition_features"]
    table.drop(index="condition_4").to_csv(tmp_path / "known.csv")
    table.loc[["condition_4"]].to_csv(tmp_path / "new.csv")
    names = ["--condition-key", "condition", "--labels-key", "cell_type"]
    train = ["train", tmp_path / "a.h5ad", *names, "--condition-features", tmp_path / "known.csv"]
    train += ["--max-epochs", 1, "--n-latent", 4, "--n-hidden", 8, "-o", tmp_path / "m"]
    assert main([str(a) for a in train]) in (0, None)
    predict = ["predict", tmp_path / "m", tmp_path / "a.h5ad", "--target", "condition_4"]
    predict += ["--source", "control", "-o", tmp_path / "p.h5ad"]
    assert main([str(a) for a in predict]) not in (0, None)
    predict += ["--condition-features", tmp_path / "new.csv"]
    assert main([str(a) for a in predict]) in (0, None)
    assert (tmp_path / "p.h5ad").is_file()


def test_effects_of_features_add_up_where_their_reach_has_no_end():
    """Presence of parts as features: a pair changes what its parts change together."""
    rng = np.random.default_rng(0)
    features = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]], float)
    own = rng.normal(size=(3, 40))
    start = rng.normal(5.0, 1.0, (2, 1, 40))
    mean = np.concatenate([start, start + features @ own], 1)
    names = ["control", *(f"c{i:02d}" for i in range(6))]
    table = pd.DataFrame(np.vstack([np.zeros(3), features]), index=names)
    obs = pd.DataFrame({"drug": pd.Categorical(names[:-1], names[:-1], ordered=True)})
    space = ConditionSpace("drug", tuple(names[:-1]), new_parts(obs, ["drug"], table))
    known = Profiles(mean[:, :-1], np.full((2, 6), 1e6), ("a", "b"), is_count=False)
    informed = space.informed(known, 0)
    assert np.isinf(informed.description.length)
    likeness = informed.likeness("control", "c05", known.measured(0).any(0))
    ridge = Ridge(known, 0, likeness, common=1.0)
    found = ridge.predict(mean[0, 0], 0) - mean[0, 0]
    np.testing.assert_allclose(found, own[1] + own[2], atol=0.02)


def test_a_new_level_is_a_number_where_the_others_are():
    description = _described([[0.0], [1.0], [2.0]], ["1", "2", "3"], measured=["1", "2"])
    assert description.and_described([1, 2]) == [1, 2, 3]
    assert description.and_described(["1", "2"]) == ["1", "2", "3"]
    assert description.and_described([1.0, 2.0]) == [1.0, 2.0, 3.0]


# -- what a new user found ----------------------------------------------------------------------------


def test_features_are_matched_by_how_their_names_read(train):
    table = train.uns["condition_features"]
    plain = pd.DataFrame(table.to_numpy(), table.index)  # columns 0 to 3
    given = train.copy()
    TRVAE.setup_anndata(given, **NAMES, condition_features=plain)
    model = TRVAE(given, **SMALL)
    model.train(**QUICK)
    expected = model.effects(source="control", target="condition_4")["change"]
    found = model.effects(source="control", target="x", features=plain.loc["condition_4"])
    np.testing.assert_array_equal(found["change"], expected)
    with pytest.raises(InputError, match="has unknown 'more'"):
        model.predict(target="x", features={**plain.loc["condition_4"], "more": 1.0})


@pytest.mark.parametrize("target", [None, "", np.nan, ("a", "b"), ["mine"]])
def test_a_new_condition_has_a_name(model, target):
    with pytest.raises(InputError):
        model.predict(source="control", target=target, features=[1.0, 2.0, 3.0, 4.0])


def test_other_features_of_a_condition_of_the_table_are_refused(model):
    with pytest.raises(InputError, match="other features of 'condition_4'"):
        model.effects(source="control", target="condition_4", features=[1.0, 2.0, 3.0, 4.0])
    with pytest.raises(InputError, match="standard deviations from what was measured"):
        model.effects(source="control", target="mine", features=[1e40, 2.0, 3.0, 4.0])


def test_features_of_a_new_level_beside_another_column(adata):
    some = adata[adata.obs["condition"] != "condition_4"].copy()
    some.obs["time"] = pd.Categorical(np.where(np.arange(some.n_obs) % 2, "24h", "48h"))
    table = some.uns["condition_features"]
    TRVAE.setup_anndata(
        some, ["condition", "time"], labels_key="cell_type", condition_features=table
    )
    model = TRVAE(some, **SMALL)
    model.train(**QUICK)
    source, row = ("control", "24h"), table.loc["condition_4"]
    expected = model.effects(source=source, target=("condition_4", "24h"))["change"]
    for target in (("new", "24h"), "new + 24h", {"condition": "new", "time": "24h"}):
        found = model.effects(source=source, target=target, features=row)["change"]
        np.testing.assert_allclose(found, expected, atol=1e-6)
    with pytest.raises(InputError, match="was measured"):
        model.effects(source=source, target=("condition_3", "24h"), features=row)


def test_cells_of_a_described_condition_may_be_in_the_file(model, adata, train):
    expected = model.predict(train.copy(), source="control", target="condition_4")
    found = model.predict(adata.copy(), source="control", target="condition_4")
    assert (found.X != expected.X).nnz == 0
    rows = np.flatnonzero(adata.obs["condition"] == "control")[5:25]
    some = model.predict(adata.copy(), source="control", target="condition_4", indices=rows)
    assert some.obs["source_cell"].tolist() == adata.obs_names[rows].tolist()


def test_order_sign_and_constant_columns_of_the_table_play_no_role(train):
    table = train.uns["condition_features"]
    tables = [
        table,
        table[table.columns[::-1]],
        table.assign(feature_1=-table["feature_1"]),
        table.assign(constant=3.0),
        table.iloc[::-1],
    ]
    found = []
    for one in tables:
        description = description_of(one, "condition", sorted(set(train.obs["condition"])))
        found.append([description.network(name) for name in table.index])
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=1e-9)


def test_the_table_of_the_caller_is_not_kept(train):
    table, given = train.uns["condition_features"].copy(), train.copy()
    TRVAE.setup_anndata(given, **NAMES, condition_features=table)
    before = TRVAE(given, **SMALL).condition_space.description.frame.copy()
    table.loc[:] = 0.0
    pd.testing.assert_frame_equal(TRVAE(given, **SMALL).condition_space.description.frame, before)


def test_the_record_holds_the_features(model, adata):
    row = adata.uns["condition_features"].loc["condition_4"]
    record = model.predict(source="control", target="mine", features=row).uns["trvae_sc"]
    np.testing.assert_allclose(record["features"].loc["mine"], row)


@pytest.mark.parametrize("doses", [(1.0, 2.0, 3.0), (2.0, 3.0, 4.0), (0.1, 0.2, 0.3)])
def test_conditions_that_are_as_near_count_the_same(doses):
    """Of the doses on either side of one the nearest was that which rounding said."""
    rng = np.random.default_rng(0)
    names = ["control", "low", "high"]
    rows = [(label, condition) for label in ("a", "b", "c") for condition in names] * 10
    obs = pd.DataFrame(rows, columns=["cell_type", "condition"]).rename(index=str)
    cells = AnnData(rng.normal(0.0, 1.0, (len(obs), 5)), obs=obs)
    table = pd.DataFrame({"dose": [0.0, doses[0], doses[2], doses[1]]}, index=[*names, "middle"])
    keys = {"condition_key": "condition", "labels_key": "cell_type", "is_count": False}
    options = {"method": "nearest_condition", "source": "control", "labels": "a"}
    found = baselines.effects(cells, "middle", condition_features=table, **options, **keys)
    of_a = cells[cells.obs["cell_type"] == "a"]
    low, high, start = (
        of_a.X[(of_a.obs["condition"] == name).to_numpy()].mean(0)
        for name in ("low", "high", "control")
    )
    np.testing.assert_allclose(found["change"], (low + high) / 2 - start, rtol=1e-6)


def test_nearest_condition_starts_anywhere(train):
    table = baselines.effects(
        train, "condition_4", method="nearest_condition", **{**FEATURES, "source": "condition_2"}
    )
    assert np.isfinite(table["change"]).all()


def test_a_benchmark_without_features_of_hidden_conditions_is_refused_before_any_fit(adata):
    plain = evaluation.holdouts(adata, by="condition", min_cells=1, **NAMES)[:1]
    with pytest.raises(InputError, match="nothing describes it"):
        evaluation.benchmark(adata, ["mean_condition"], plain, **NAMES)
    with pytest.raises(InputError, match="mean_shift learns from"):
        evaluation.benchmark(adata, ["mean_shift"], plain, **FEATURES)
    with pytest.raises(InputError, match="by='both' its label"):
        evaluation.holdouts(adata, by=["condition", "cell_type"], **NAMES)


def test_named_holdouts_are_hidden_in_all_labels_on_the_command_line(adata, tmp_path):
    adata.write_h5ad(tmp_path / "a.h5ad")
    adata.uns["condition_features"].to_csv(tmp_path / "t.csv")
    options = ["benchmark", tmp_path / "a.h5ad", "--condition-key", "condition"]
    options += ["--labels-key", "cell_type", "--condition-features", tmp_path / "t.csv"]
    options += ["--by", "condition", "--holdout", "type_0:condition_1", "-o", tmp_path / "r"]
    assert main([str(o) for o in [*options, "--methods", "mean_shift"]]) not in (0, None)
    assert main([str(o) for o in [*options, "--methods", "mean_condition"]]) in (0, None)
    (record,) = (
        r for r in evaluation.Results.load(tmp_path / "r").records if r["method"] != "ceiling"
    )
    assert sorted(record["holdout"]["also"]) == ["type_1:condition_1", "type_2:condition_1"]


def test_names_in_a_csv_file_are_text(tmp_path):
    from trvae_sc.cli._shared import read_features

    (tmp_path / "t.csv").write_text("drug,x,y\n01,1,2\nNA,3,4\n")
    table = read_features(tmp_path / "t.csv")
    assert table.index.tolist() == ["01", "NA"]
    assert table.to_numpy().tolist() == [[1, 2], [3, 4]]


def test_a_csv_file_of_one_column_is_refused(tmp_path):
    from trvae_sc.cli._shared import read_features

    (tmp_path / "t.csv").write_text("drug;x\n01;1\n")
    with pytest.raises(InputError, match=r"^\S*t.csv has one column; .* separated by commas\.$"):
        read_features(tmp_path / "t.csv")
