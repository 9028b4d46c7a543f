"""Conditions that are sets of parts: coding, likeness, prediction of sets never measured."""

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from trvae_sc import TRVAE, baselines, compare, evaluation, select
from trvae_sc.cli import main
from trvae_sc.condition_sets import ConditionSets, extended_sets, new_sets, space_of
from trvae_sc.conditions import ConditionSpace
from trvae_sc.datasets import simulate
from trvae_sc.errors import InputError
from trvae_sc.expression import Keys
from trvae_sc.shift import Profiles, Ridge

NAMES = ["A", "A+B", "B", "C+ctrl", "control"]
QUIET = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False}
KEYS = Keys("condition", "cell_type", is_count=False, condition_separator="+")
OPTIONS = {"keys": KEYS, "n_top_genes": None, "progress": False}


def space():
    coding = new_sets(pd.Series(NAMES), "+")
    return space_of("condition", NAMES, coding)


def test_a_condition_is_coded_by_its_parts_and_a_control_by_none():
    coding = new_sets(pd.Series(NAMES), "+")
    assert coding["features"] == ["A", "B", "C"]
    assert coding["values"] == [["A"], ["A", "B"], ["B"], ["C"], []]
    expected = [[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert space().design().tolist() == expected
    assert space().features("B+C").tolist() == [[0, 1, 1]]
    assert type(space_of("c", NAMES, None)) is ConditionSpace


@pytest.mark.parametrize("given", ["B+A", "A+B", ["B", "A"], ("A", "B"), {"A", "B"}, "A+ctrl+B"])
def test_a_set_is_the_same_in_any_order(given):
    assert space().level(given) == "A+B"
    assert space().code(space().level(given)) == 1


def test_new_sets_have_a_name_and_a_remark():
    assert space().level(["C", "A"]) == "A+C"
    assert space().code("A+C") is None
    assert space().level("C") == "C+ctrl"
    assert space().values("C+A") == ["A", "C"]
    assert "predicted from its parts" in space().remarks("A+C")[0]
    assert space().remarks("A+B") == []
    assert space().singles("C+A") == ["A", "C+ctrl"]
    assert space().singles("A") is None


@pytest.mark.parametrize("given", ["D", "A+D", "A+A", 3, ""])
def test_unknown_parts_are_refused(given):
    with pytest.raises(InputError, match="sets can be"):
        space().level(given)


def test_alike_is_the_covariance_of_sums_of_independent_parts():
    """Monte Carlo: effects of parts of variance 1, of sets as such and of all of 0.01."""
    rng, names = np.random.default_rng(0), ["A", "A+B", "B", "C", "A+B+C", "control"]
    part, own = rng.normal(size=(3, 400_000)), 0.1 * rng.normal(size=(7, 400_000))
    effects = [[0], [0, 1], [1], [2], [0, 1, 2], []]
    total = np.stack([part[e].sum(0) + own[i] + own[6] for i, e in enumerate(effects)])
    total[5] = 0.0  # from itself nothing changes
    found = space().alike("control", names)
    assert found == pytest.approx(total @ total.T / part.shape[1], abs=0.02)
    shifted = total - (part[0] + own[0] + own[6])
    from_a = space().alike("A", ["A", "A+B", "B"])
    assert from_a[1, 1] == pytest.approx(np.var(shifted[1]), abs=0.05)
    assert from_a[1, 2] == pytest.approx(np.mean(shifted[1] * shifted[2]), abs=0.05)
    assert not from_a[0].any()


def test_two_parts_measured_alone_give_their_sum():
    likeness = space().likeness("control", "A+C", np.array([1, 0, 0, 1, 0], bool))
    weights = np.linalg.solve(likeness.kernel, likeness.target)
    assert weights == pytest.approx([1, 1], abs=0.02)


def test_a_set_that_a_label_lacks_is_told_by_its_parts():
    """What parts change is a label's own, and sets change as much as their parts do."""
    known, rng = space(), np.random.default_rng(0)
    levels = list(known.levels)
    source, target = levels.index("control"), levels.index("A+B")
    effect = dict(zip("ABC", rng.normal(size=(3, 5, 50)), strict=True))
    own = [sum((effect[p] for p in known.values(c)), np.zeros((5, 50))) for c in levels]
    mean = rng.normal(5, 1, (5, 1, 50)) + np.stack(own, 1)
    n_cells = np.full(mean.shape[:2], 1e4)
    n_cells[0, target] = 0.0
    profiles = Profiles(mean, n_cells, tuple("vwxyz"), is_count=False)
    likeness = known.likeness("control", "A+B", profiles.measured(source).any(0))
    found = Ridge(profiles, source, likeness).predict(mean[0, source], 0) - mean[0, source]
    truth = effect["A"][0] + effect["B"][0]
    assert np.square(found - truth).sum() < 0.2 * np.square(truth).sum()  # other labels say nothing


def test_a_query_adds_parts_at_the_end():
    coding = extended_sets(new_sets(pd.Series(NAMES), "+"), [*NAMES, "0new+A"])
    assert coding["features"] == ["A", "B", "C", "0new"]
    assert coding["values"][-1] == ["0new", "A"]


def sets_data(seed=0, n_each=60, n_genes=60):
    """Return cells of log values whose parts add up, with A+B there and A+C missing."""
    genes, rng = np.random.default_rng(1), np.random.default_rng(seed)
    base = genes.normal(2.0, 1.0, n_genes)
    effect = {p: genes.normal(0, 1, n_genes) * (genes.random(n_genes) < 0.5) for p in "ABC"}
    names = ["control", "A", "B", "C", "A+B", "B+C"]
    x = [
        base + sum(effect[p] for p in c.split("+") if p in effect)
        + rng.normal(0, 0.5, (n_each, n_genes))
        for c in names
    ]  # fmt: skip
    obs = pd.DataFrame({"condition": np.repeat(names, n_each), "cell_type": "K"})
    obs.index = obs.index.astype(str)
    return AnnData(np.concatenate(x).astype(np.float32), obs=obs), effect


@pytest.fixture(scope="module")
def fitted():
    adata, effect = sets_data()
    TRVAE.setup_anndata(adata, "condition", labels_key="cell_type", condition_separator="+")
    model = TRVAE(adata, gene_likelihood="normal", n_latent=4, n_hidden=(16, 8))
    model.train(5, **QUIET)
    return model, effect


def test_sets_larger_than_any_that_was_measured_are_said_to_be(fitted, caplog):
    model, _ = fitted
    larger, same = (
        model.predict(target=target, source="control").uns["trvae_sc"]["notes"].tolist()
        for target in ("A+B+C", "A+C")
    )
    told = "A+B+C has more parts than any condition that was measured (2)"
    assert any(note.startswith(told) for note in larger)
    assert told in caplog.text
    assert not any("more parts" in note for note in same)


def test_methods_that_are_compared_know_the_parts_of_a_model(fitted):
    assert fitted[0].keys == KEYS


def test_an_unseen_set_is_predicted_and_saved(fitted, tmp_path):
    model, effect = fitted
    predicted = model.predict(target="C+A", source="control", output="mean")
    change = predicted.var["predicted_change"].to_numpy()
    truth = effect["A"] + effect["C"]
    assert 1 - np.square(change - truth).sum() / np.square(truth).sum() > 0.9
    assert set(predicted.obs["condition"]) == {"A+C"}
    assert any("from its parts" in note for note in predicted.uns["trvae_sc"]["notes"])
    predicted.write_h5ad(tmp_path / "p.h5ad")
    anndata.read_h5ad(tmp_path / "p.h5ad")
    model.save(tmp_path / "m")
    again = TRVAE.load(tmp_path / "m", adata=model.adata)
    assert isinstance(again.condition_space, ConditionSets)
    table = again.effects(target=["A", "C"], source="control")
    assert table["change"].to_numpy() == pytest.approx(change, abs=1e-5)
    assert again.spread_ == pytest.approx(model.spread_)
    inside = (table["lower"] <= truth) & (truth <= table["upper"])
    assert inside.mean() > 0.7


def test_a_query_with_a_new_part_is_learned(fitted):
    model, _ = fitted
    query, _ = sets_data(seed=3, n_each=20)
    query.obs["condition"] = query.obs["condition"].replace({"A+B": "A+new", "B+C": "new"})
    extended = TRVAE.load_query_data(query, model)
    extended.train(2, **QUIET)
    assert extended.spread_[:6] == pytest.approx(model.spread_)
    assert len(extended.spread_) == 8
    assert extended.predict(target="B+new", source="control").n_obs == 20
    for target in ("A", "A+B"):  # what the new sets share with it says nothing
        found, expected = (
            m.effects(target=target, source="control")["change"] for m in (extended, model)
        )
        np.testing.assert_array_equal(found, expected)


def bad(names):
    obs = pd.DataFrame({"condition": names, "other": "x"})
    obs.index = obs.index.astype(str)
    return AnnData(np.ones((len(names), 2), np.float32), obs=obs)


@pytest.mark.parametrize(
    ("names", "separator", "message"),
    [
        (["ctrl", "A+B"], "", "give the text between parts"),
        (["ctrl", "A+B"], 1, "give the text between parts"),
        (["X", "A+B"], "+", "called like a control"),
        (["ctrl", "A+B", "B+A"], "+", "are the same set"),
        (["ctrl", "A+A", "B"], "+", "empty or there twice"),
        (["ctrl", "A+", "B"], "+", "empty or there twice"),
    ],
)
def test_bad_sets_are_refused_before_anything_is_written(names, separator, message):
    adata = bad(names)
    with pytest.raises(InputError, match=message):
        TRVAE.setup_anndata(adata, "condition", condition_separator=separator)
    assert list(adata.obs) == ["condition", "other"]
    assert not adata.uns


def test_sets_of_several_columns_are_refused():
    with pytest.raises(InputError, match="those of one column"):
        TRVAE.setup_anndata(bad(["ctrl", "A+B"]), ["condition", "other"], condition_separator="+")


def test_sets_can_be_predicted_where_none_was_measured(caplog):
    adata, effect = sets_data()
    adata = adata[adata.obs["condition"].isin(["control", "A", "B"])].copy()
    TRVAE.setup_anndata(adata, "condition", labels_key="cell_type", condition_separator="+")
    assert "none of which was measured, are predicted as sums" in caplog.text
    model = TRVAE(adata, gene_likelihood="normal", n_latent=4, n_hidden=(16, 8))
    model.train(5, **QUIET)
    change = model.effects(target="A+B", source="control")["change"].to_numpy()
    truth = effect["A"] + effect["B"]
    assert 1 - np.square(change - truth).sum() / np.square(truth).sum() > 0.9


# -- methods that are compared --------------------------------------------------------------------------


def of_two_labels():
    """Return cells of two labels; L lacks C, and no cell is under A+C."""
    adata, _ = sets_data()
    other = adata.copy()
    other.X = other.X * 1.5
    other.obs["cell_type"] = "L"
    other.obs_names = "l" + other.obs_names
    other = other[other.obs["condition"] != "C"]
    return anndata.concat([adata, other])


def mean_of(adata, condition, label):
    chosen = (adata.obs["condition"] == condition) & (adata.obs["cell_type"] == label)
    return np.asarray(adata.X, dtype=np.float64)[chosen.to_numpy()].mean(0)


@pytest.mark.parametrize("source", ["control", "B"])
def test_sum_of_parts_adds_what_each_part_changes(source):
    adata = of_two_labels()
    predicted = baselines.predict(adata, "C+A", method="sum_of_parts", source=source, keys=KEYS)
    assert set(predicted.obs["condition"]) == {"A+C"}
    for label in ("K", "L"):
        base, a = mean_of(adata, "control", label), mean_of(adata, "A", label)
        # L was not measured under C: the mean over the others of its change from the source
        start = mean_of(adata, source, label)
        c = mean_of(adata, "C", "K") - mean_of(adata, source, "K")
        end = a + (start + c) - base
        own = predicted[predicted.obs["cell_type"] == label]
        assert own.X.mean(0) == pytest.approx(end, abs=1e-5)


def test_sum_of_parts_errs_as_sets_do_that_are_left_out():
    adata = of_two_labels()
    table = baselines.effects(adata, "A+C", method="sum_of_parts", source="control", keys=KEYS)
    assert table["lower"].isna().all()  # two sets are too few
    more = adata[adata.obs["condition"] == "A+B"].copy()
    for i, name in enumerate(("A+D", "D", "B+D")):
        new = more.copy()
        new.obs["condition"] = name
        new.obs_names = f"{i}_" + new.obs_names
        adata = anndata.concat([adata, new])
    table = baselines.effects(adata, "A+C", method="sum_of_parts", source="control", keys=KEYS)
    own = table[table["label"] == "K"]
    assert (own["lower"] < own["change"]).all()
    # all sets but B+C, of parts that L lacks, are wrong by A+B - A - B, of D = A+B by A or B
    errors = [
        mean_of(adata, s, "K") - mean_of(adata, "control", "K")
        - sum(mean_of(adata, p, "K") - mean_of(adata, "control", "K") for p in s.split("+"))
        for s in ("A+B", "A+D", "B+D")
    ]  # fmt: skip
    widest = (own["upper"] - own["change"]).to_numpy().argsort()[-20:]
    assert np.square(errors).mean(0)[widest].mean() > np.square(errors).mean()


def test_hold_outs_hide_sets_whose_parts_others_have(caplog):
    adata, _ = sets_data()
    caplog.set_level("INFO")
    new = adata[:60].copy()
    new.obs["condition"] = "A+E"
    new.obs_names = "e" + new.obs_names
    found = evaluation.holdouts(anndata.concat([adata, new]), by="condition", keys=KEYS)
    assert [h.target for h in found] == ["A", "A+B", "B", "B+C", "C"]
    assert "Skipped, with a part that no other condition has: A+E." in caplog.text


def test_methods_are_compared_on_sets_that_are_hidden(tmp_path):
    adata, _ = sets_data()
    hidden = [h for h in evaluation.holdouts(adata, by="condition", keys=KEYS) if "+" in h.target]
    methods = ["no_change", "mean_condition", "sum_of_parts", "context_shift"]
    run = evaluation.benchmark(adata, methods, hidden, folder=tmp_path / "r", **OPTIONS)
    table = run.table[(run.table["metric"] == "effect_r2") & (run.table["genes"] == "all")]
    mean = table[table["output"] == "delta"].groupby("method")["value"].mean()
    assert mean["sum_of_parts"] > 0.9
    assert mean["context_shift"] > 0.9
    assert mean["mean_condition"] < 0.6
    assert evaluation.Results.load(tmp_path / "r").run["keys"]["condition_separator"] == "+"


@pytest.mark.parametrize(
    ("method", "target", "message"),
    [
        ("mean_shift", "A+B", "mean_shift learns from"),
        ("latent_shift", "A+B", "latent_shift learns from"),
        ("feature_ridge", "A+B", "name them with condition_features="),
        ("sum_of_parts", "A", "'A' was not measured"),
    ],
)
def test_what_a_method_cannot_know_is_said_before_any_work(method, target, message):
    adata, _ = sets_data()
    hidden = evaluation.Holdout("K", target, "control")
    with pytest.raises(InputError, match=message):
        evaluation.benchmark(adata, [method], [hidden], **OPTIONS)
    alone = adata[~adata.obs["condition"].isin(["B+C"])].copy()
    with pytest.raises(InputError, match="unknown parts 'C'"):
        evaluation.benchmark(alone, ["context_shift"], [("K", "C")], **OPTIONS)
    with pytest.raises(InputError, match="condition_separator="):
        baselines.predict(adata, "A+B", method="sum_of_parts", keys=KEYS._replace(condition_separator=None))  # fmt: skip


def test_select_chooses_by_sets_that_are_left_out():
    adata, effect = sets_data()
    more = adata[adata.obs["condition"] == "control"].copy()
    new = []
    for name in ("D", "A+D", "B+D"):
        cells = more.copy()
        own = sum(effect.get(p, effect["C"] * 0.7) for p in name.split("+"))
        cells.X = cells.X + own.astype(np.float32)
        cells.obs["condition"] = name
        cells.obs_names = name + cells.obs_names
        new.append(cells)
    adata = anndata.concat([adata, *new])
    methods = ["mean_condition", "sum_of_parts"]
    found = select(adata, "C+A", methods=methods, **OPTIONS)
    assert set(found.obs["condition"]) == {"A+C"}
    record = found.uns["trvae_sc"]["selection"]
    assert record["method"] == "sum_of_parts"
    assert set(record["tasks"]) == {"K:A+B", "K:B+C", "K:A+D", "K:B+D"}
    assert any("4 known sets of parts in turn" in note for note in found.uns["trvae_sc"]["notes"])
    few = select(adata[adata.obs["condition"] != "A"].copy(), "A+C", **OPTIONS | {"max_epochs": 1})
    assert "sum_of_parts" not in str(few.uns["trvae_sc"]["selection"])


def test_select_tells_a_set_by_the_label_s_own_parts_where_one_other_label_has_it():
    """Parts change labels otherwise, and sets as much as their parts do."""
    adata, effect = sets_data()
    other = adata.copy()
    other.X = other.X[:, ::-1]  # which makes changes of another label
    other.obs["cell_type"] = "L"
    adata = anndata.concat([adata, other], index_unique="-")
    found = select(adata, "A+B", labels="L", source="control", **OPTIONS)
    truth = (effect["A"] + effect["B"])[::-1]
    missed = found.var["predicted_change"] - truth
    assert np.square(missed).sum() < 0.5 * np.square(truth).sum()  # 2 by the other label
    record = found.uns["trvae_sc"]
    assert record["selection"]["method"] == record["method"] == "context_shift"
    assert "by context_shift, the strongest simple method" in record["notes"][-1]


def test_the_shell_knows_the_parts_of_sets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    adata, effect = sets_data()
    adata.write_h5ad("cells.h5ad")
    names = ["--condition-key", "condition", "--labels-key", "cell_type"]
    names += ["--gene-likelihood", "normal", "--condition-separator", "+"]
    few = ["--n-top-genes", "0", "--max-epochs", "2"]
    assert main(["train", "cells.h5ad", *names, *few, "-o", "m"]) == 0
    assert main(["predict", "m", "cells.h5ad", "--target", "C+A", "--source", "control", "-o", "p.h5ad"]) == 0  # fmt: skip
    change = anndata.read_h5ad("p.h5ad").var["predicted_change"]
    truth = effect["A"] + effect["C"]
    assert 1 - np.square(change - truth).sum() / np.square(truth).sum() > 0.9
    methods = ["--methods", "no_change", "sum_of_parts"]
    run = ["benchmark", "cells.h5ad", *names, "--by", "condition", "--holdout", "K:A+B"]
    assert main([*run, *methods, "--n-top-genes", "0", "-o", "r"]) == 0
    assert {r["method"] for r in evaluation.Results.load("r").records} == {*methods[1:], "ceiling"}
    run = ["benchmark", "cells.h5ad", *names, "--by", "condition", *few, "--seeds", "1", "-o"]
    assert main([*run, "s", "--holdout", "K:A+B"]) == 0
    assert "sum_of_parts" in set(evaluation.Results.load("s").table["method"])
    assert main([*run, "t", "--holdout", "K:A"]) == 0  # which is no sum
    simple = {"no_change", "mean_condition", "context_shift", "trvae", "ceiling"}
    assert set(evaluation.Results.load("t").table["method"]) == simple


@pytest.mark.parametrize("name", ["B+A", "A+B"])
def test_sets_are_compared_in_any_order_of_their_parts(name, tmp_path):
    cells = simulate(600, 30, n_labels=3, conditions=("control", "A", "B", name))
    keys = Keys("condition", "cell_type", condition_separator="+")
    hidden = cells.obs["condition"] == name
    train = cells[~hidden].copy()
    TRVAE.setup_anndata(train, "condition", labels_key="cell_type", condition_separator="+")
    model = TRVAE(train, n_hidden=(8, 8), n_latent=4)
    model.train(1, **QUIET)
    asked = {"target": name, "source": "control", "labels": "type_0"}
    for predicted in (model.predict(**asked), baselines.predict(train, **asked, keys=keys)):
        predicted.write_h5ad(tmp_path / "p.h5ad")
        scores = compare(anndata.read_h5ad(tmp_path / "p.h5ad"), cells).scores
        assert set(scores["target"]) == {"A+B"}
        assert np.isfinite(scores["predicted"]).all()
    tables = [
        evaluation.benchmark(cells, ["sum_of_parts"], [one], **{**OPTIONS, "keys": keys}).table
        for one in (("type_0", "A+B"), evaluation.Holdout("type_0", "B+A", "control"))
    ]
    pd.testing.assert_frame_equal(*tables)


def test_names_of_parts_play_no_role_in_what_their_features_tell():
    """Of two parts in as many conditions the first by name was left out: another name, another prediction."""
    sets = ("control", "A", "B", "C", "D", "A+B", "B+C", "C+D", "A+D")
    cells = simulate(900, 50, n_labels=3, conditions=sets, specificity=0.2, seed=11)
    x = np.random.default_rng(11).normal(size=(5, 2))
    index = pd.Index(list("ABCDE"), name="condition")
    table = pd.DataFrame(x, index, ["u", "v"])
    others = {"A": "z", "B": "y", "C": "x", "D": "w", "E": "v", "control": "control"}
    renamed = cells.copy()
    renamed.obs["condition"] = [
        "+".join(others[part] for part in name.split("+")) for name in cells.obs["condition"]
    ]
    named = {"labels_key": "cell_type", "condition_key": "condition", "source": "control"}
    named["condition_separator"] = "+"
    columns = ["change", "lower", "upper"]
    for method in ("context_shift", "feature_ridge"):
        found, expected = (
            baselines.effects(adata, target, method=method, condition_features=of, **named)[columns]
            for adata, target, of in (
                (renamed, "v", table.rename(index=others)),
                (cells, "E", table),
            )
        )
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


def test_cells_of_a_hidden_set_may_be_among_those_to_predict_from(tmp_path):
    """Only the control is: the file that a model was trained on with a set held out was refused as of an unknown condition."""
    cells = simulate(
        300,
        30,
        n_labels=3,
        conditions=("control", "A+control", "control+B", "B+A"),
        effect_size=0.5,
    )
    cells.write_h5ad(tmp_path / "cells.h5ad")
    hidden = (cells.obs["condition"] == "B+A").to_numpy()
    train = cells[~hidden].copy()
    TRVAE.setup_anndata(train, "condition", labels_key="cell_type", condition_separator="+")
    model = TRVAE(train, n_latent=4, n_hidden=(8,))
    model.train(max_epochs=1, **QUIET)
    file = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    for asked in ({"target": "A+B", "source": "control"}, {"target": "A+B"}):
        expected = model.predict(train, **asked)
        for given in (cells, file):
            found = model.predict(given, **asked)
            np.testing.assert_array_equal(found.X.toarray(), expected.X.toarray())
            assert found.obs["source_cell"].tolist() == expected.obs["source_cell"].tolist()
    rows = np.arange(150)[::-1]
    found = model.predict(cells, target="A+B", source="control", indices=rows)
    names = cells.obs_names[rows][(cells.obs["condition"] == "control").to_numpy()[rows]]
    assert found.obs["source_cell"].tolist() == names.tolist()
    with pytest.raises(InputError, match="is an input, and would be replaced"):
        model.predict(
            file, target="A+B", source="control", out=tmp_path / "cells.h5ad", overwrite=True
        )
    for unused in ({"target": "A"}, {"target": "A", "source": "B+A"}):
        with pytest.raises(InputError, match="Unknown condition 'B\\+A' in adata"):
            model.predict(cells, **unused)
    assert (
        model.predict(cells, target="A", source="control").n_obs
        == (cells.obs["condition"] == "control").sum()
    )
    model.save(tmp_path / "model")
    options = ["--target", "A+B", "--source", "control", "-o", str(tmp_path / "p.h5ad")]
    assert main(["predict", str(tmp_path / "model"), str(tmp_path / "cells.h5ad"), *options]) == 0
