"""Pathways of predicted changes: the t value of a regression, by scipy; overlap and input."""

import sys

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import trvae_sc
from trvae_sc.errors import InputError, MissingExtraError

GENES = [f"g{i}" for i in range(60)]
NET = pd.DataFrame(
    {"source": ["up"] * 8 + ["none"] * 8 + ["tiny"] * 2, "target": GENES[:16] + GENES[20:22]}
)


def table(seed=0):
    """Return changes of two labels; the first eight genes rise."""
    rng, rows = np.random.default_rng(seed), []
    for label in ("B", "T"):
        change = rng.normal(0, 0.3, 60)
        change[:8] += 1.5
        rows.append(
            pd.DataFrame(
                {"label": label, "source": "c", "target": "s", "gene": GENES, "change": change}
            )
        )
    return pd.concat(rows, ignore_index=True)


def test_input_that_cannot_be_scored_is_refused_before_decoupler_is_needed(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "decoupler", None)
    effects, empty = table(), tmp_path / "empty.gmt"
    empty.write_text("")
    for net, message in (
        (NET.assign(target="x" + NET["target"]), "share no genes: net has 'xg0'"),
        (NET[NET["source"] == "tiny"], "has 5 genes among the 60"),
        (NET.rename(columns={"target": "gene"}), "columns source"),
        (NET.iloc[:0], "has no sets"),
        ("nowhere.gmt", "No file nowhere.gmt"),
        (empty, "has no sets"),
        (3, "has no sets"),
    ):
        with pytest.raises(InputError, match=message):
            trvae_sc.pathways(effects, net)
    with pytest.raises(InputError, match="Unknown method 'x'"):
        trvae_sc.pathways(effects, NET, method="x")
    with pytest.raises(InputError, match="label, gene and change"):
        trvae_sc.pathways(effects.drop(columns="gene"), NET)
    with pytest.raises(InputError, match="this is str"):
        trvae_sc.pathways("effects", NET)
    with pytest.raises(InputError, match="several rows of one gene"):
        trvae_sc.pathways(pd.concat([effects, effects]), NET)
    with pytest.raises(InputError, match="no finite change of some genes"):
        trvae_sc.pathways(effects.iloc[:-1], NET)
    with pytest.raises(InputError, match="no finite change of some genes"):
        trvae_sc.pathways(effects.assign(change="up"), NET)
    with pytest.raises(MissingExtraError, match="pip install"):
        trvae_sc.pathways(effects, NET)


def test_ulm_is_the_t_value_of_the_slope(decoupler):
    effects = table()
    found = trvae_sc.pathways(effects, NET)
    assert found["pathway"].tolist() == ["up", "none"] * 2
    assert found["n_genes"].tolist() == [8] * 4
    for label in ("B", "T"):
        y = effects[effects["label"] == label]["change"].to_numpy()
        own = found[found["label"] == label].set_index("pathway")
        pval = []
        for name in ("none", "up"):
            x = np.isin(GENES, NET[NET["source"] == name]["target"]).astype(float)
            fit = stats.linregress(x, y)
            assert own.loc[name, "score"] == pytest.approx(fit.slope / fit.stderr)
            pval.append(fit.pvalue)
        expected = stats.false_discovery_control(pval)
        assert own.loc[["none", "up"], "qval"].to_numpy() == pytest.approx(expected, rel=1e-9)


def test_mlm_is_one_regression_on_all_sets_with_adjusted_p_values(decoupler):
    """decoupler 2.2 returned p-values of mlm as they are, which were called q-values."""
    effects, names = table(), ["none", "third", "up"]
    third = pd.DataFrame({"source": "third", "target": GENES[5:12] + GENES[40:45]})
    net = pd.concat([NET, third])
    found = trvae_sc.pathways(effects, net, method="mlm").set_index(["label", "pathway"])
    x = [np.isin(GENES, net[net["source"] == name]["target"]).astype(float) for name in names]
    x = np.column_stack([np.ones(60), *x])
    for label in ("B", "T"):
        y = effects[effects["label"] == label]["change"].to_numpy()
        slope, rest = np.linalg.lstsq(x, y)[:2]
        t = slope / np.sqrt(rest / 56 * np.diag(np.linalg.inv(x.T @ x)))
        own = found.loc[label].loc[names]
        assert own["score"].to_numpy() == pytest.approx(t[1:])
        q = stats.false_discovery_control(2 * stats.t.sf(np.abs(t[1:]), 56))
        assert own["qval"].to_numpy() == pytest.approx(q, rel=1e-9)
    same = pd.concat([net, third.assign(source="fourth")])
    with pytest.raises(InputError, match=r"all 4 sets at once, on 60 genes.*'third' are alike"):
        trvae_sc.pathways(effects, same, method="mlm")


def test_sets_that_cannot_be_scored_are_named(tmp_path, decoupler):
    effects, path = table(), tmp_path / "sets.gmt"
    every = pd.DataFrame({"source": "every gene", "target": GENES})
    for net, message in (
        (pd.concat([NET, every]), "'every gene' ha.* same weight for all 60 genes"),
        (NET.assign(weight=0.0), "'none', 'up' ha.* same weight"),
        (NET.assign(weight=[np.nan, *[1.0] * 17]), "weight.*1 rows.*no finite number"),
        (NET.assign(weight="x"), "weight.*18 rows.*no finite number"),
    ):
        with pytest.raises(InputError, match=message):
            trvae_sc.pathways(effects, net)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"sets\.gmt cannot be read as text"):
        trvae_sc.pathways(effects, path)


def test_sets_that_cannot_be_told_apart_are_refused_by_a_fit_of_all(decoupler):
    """What decoupler said of them was "Singular matrix"."""
    effects, up = table(), NET[NET["source"] == "up"]
    none = NET[NET["source"] == "none"]
    for more, words in (
        (up.assign(source="again"), "3 sets.*'again', 'up' are alike"),
        (pd.concat([up, none]).assign(source="both"), "3 sets at once, on 60 genes.*method='ulm'"),
        (
            pd.concat([up.assign(source=f"s{i}", target=np.roll(GENES, i)[:8]) for i in range(58)]),
            "sets",
        ),
    ):
        with pytest.raises(InputError, match=words):
            trvae_sc.pathways(effects, pd.concat([NET, more]), method="mlm")
    found = trvae_sc.pathways(effects, NET, method="mlm").set_index(["label", "pathway"])["score"]
    x = np.stack([np.ones(60), *(np.isin(GENES, s["target"]) for s in (up, none))], 1).astype(float)
    y = effects.loc[effects["label"] == "B", "change"].to_numpy()
    slope, residual = np.linalg.lstsq(x, y)[:2]
    error = np.sqrt(residual / 57 * np.linalg.inv(x.T @ x).diagonal())
    assert found.loc[[("B", "up"), ("B", "none")]].to_numpy() == pytest.approx((slope / error)[1:])


def test_a_gene_has_one_weight_in_a_set(decoupler):
    """The first of several was taken, which depended on the order of rows."""
    net, effects = NET.assign(weight=1.0), table()
    found = trvae_sc.pathways(effects, net)
    again = trvae_sc.pathways(effects, pd.concat([net, net]))
    pd.testing.assert_frame_equal(again, found)
    with pytest.raises(InputError, match=r"several weights .* 'g0' of 'up'"):
        trvae_sc.pathways(effects, pd.concat([net, net.iloc[:1].assign(weight=-1.0)]))


def test_a_file_may_begin_with_a_mark_and_sets_lack_names(tmp_path, decoupler):
    path = tmp_path / "sets.gmt"
    path.write_text("up\tabout\t" + "\t".join(GENES[:8]) + "\n", encoding="utf-8-sig")
    found = trvae_sc.pathways(table(), path)
    assert found["pathway"].tolist() == ["up", "up"]
    lacking = pd.DataFrame({"source": np.nan, "target": GENES[30:40]})
    pd.testing.assert_frame_equal(
        trvae_sc.pathways(table(), pd.concat([NET, lacking])), trvae_sc.pathways(table(), NET)
    )


def test_genes_that_do_not_change_are_background(decoupler):
    """decoupler drops what is 0 in all rows, so that scores hung on which labels were asked for."""
    effects = table()
    still = effects["gene"].isin([*GENES[8:13], *GENES[30:]])  # most of the set "none", and others
    effects["change"] = effects["change"].where(~still, 0.0)
    found = trvae_sc.pathways(effects, NET)
    assert found["n_genes"].tolist() == [8] * 4
    for (label, name), score in found.set_index(["label", "pathway"])["score"].items():
        x = np.isin(GENES, NET[NET["source"] == name]["target"]).astype(float)
        fit = stats.linregress(x, effects[effects["label"] == label]["change"])
        assert score == pytest.approx(fit.slope / fit.stderr)
    alone = trvae_sc.pathways(effects[effects["label"] == "B"], NET)
    pd.testing.assert_frame_equal(alone, found[found["label"] == "B"])


def test_a_label_without_any_change_has_no_score(decoupler):
    effects = table()
    effects["change"] = effects["change"].where(effects["label"] != "B", 0.0)
    found = trvae_sc.pathways(effects, NET)
    assert found["label"].tolist() == ["B", "B", "T", "T"]
    assert found[["score", "qval"]].isna().all(axis=1).tolist() == [True, True, False, False]
    with pytest.raises(InputError, match="No gene changes in any label"):
        trvae_sc.pathways(effects.assign(change=0.0), NET)
    with pytest.raises(InputError, match="or no finite change of some genes"):
        trvae_sc.pathways(effects.assign(change=np.inf), NET)


def test_real_changes_are_scored_beside_predicted_ones_and_files_read(tmp_path, decoupler):
    effects = table()
    effects["real_change"] = -effects["change"]
    path = tmp_path / "sets.gmt"
    path.write_text("".join(
        f"{name}\tabout\t" + "\t".join(own["target"]) + "\n" for name, own in NET.groupby("source")
    ))  # fmt: skip
    before = effects.copy()
    found = trvae_sc.pathways(effects, path)
    assert effects.equals(before)
    assert found["real_score"].to_numpy() == pytest.approx(-found["score"].to_numpy())
    assert not found["agrees"].any()
    same = trvae_sc.pathways(effects.drop(columns="real_change"), NET)
    assert found[same.columns].equals(same)


def test_real_scores_are_those_of_their_own_set(decoupler):
    """Scores were once joined by row; sets may come in another order (seen on CD8 T cells of Kang et al.)."""
    effects = table()
    for seed in range(5):
        real = table(seed + 10)["change"].to_numpy()[::-1].copy()
        found = trvae_sc.pathways(effects.assign(real_change=real), NET)
        own = trvae_sc.pathways(effects.assign(change=real), NET)
        keys = ["label", "pathway"]
        expected = own.set_index(keys)["score"].reindex(pd.MultiIndex.from_frame(found[keys]))
        assert found["real_score"].to_numpy() == pytest.approx(expected.to_numpy())


@pytest.mark.parametrize("method", ["mlm", "zscore", "waggr", "aucell"])
def test_other_methods(method, decoupler):
    effects = table()
    effects["change"] = effects["change"].abs()
    found = trvae_sc.pathways(effects, NET, method=method)
    assert found["pathway"].tolist() == ["up", "none"] * 2
    assert found["qval"].isna().all() == (method == "aucell")


def test_a_set_of_genes_that_do_not_change_is_not_certain_by_waggr(decoupler):
    """Of a share p of permutations beyond the score that is above 1/2 decoupler 2.2 makes 2 (1 - p): q was 0.002."""
    effects = table()
    effects["change"] -= effects.groupby("label")["change"].transform("mean")
    effects.loc[effects["gene"].isin(GENES[8:16]), "change"] = 0.0
    found = trvae_sc.pathways(effects, NET, method="waggr")
    for _, own in found.set_index("pathway").groupby("label"):
        pval = 2 * stats.norm.sf(own["score"].abs())
        assert own["qval"].to_numpy() == pytest.approx(stats.false_discovery_control(pval))
        assert own.loc["none", "qval"] > 0.5


def test_effects_of_a_model(trained, decoupler):
    effects = trained.effects(target="stimulated")
    net = pd.DataFrame({"source": "s", "target": [f"gene_{i}" for i in range(8)]})
    found = trvae_sc.pathways(effects, net)
    assert found["label"].tolist() == ["B", "NK", "T"]
    assert found["source"].unique().tolist() == ["control"]


def test_sets_that_are_too_small_are_named(caplog):
    caplog.set_level("INFO", logger="trvae_sc")
    trvae_sc.pathways(table(), NET, min_genes=6)
    assert "Left out, with fewer than 6 of the 60 genes of effects: 'tiny'." in caplog.text


def test_sets_and_genes_may_be_numbers(decoupler):
    """Numbers of genes were missing, and genes that are numbers in one table were not found."""
    expected = trvae_sc.pathways(table(), NET)
    numbers = {"up": 2, "none": 10, "tiny": 3}
    net = NET.assign(source=NET["source"].map(numbers), target=NET["target"].str[1:].astype(int))
    effects = table().assign(gene=lambda t: t["gene"].str[1:])
    for genes in (str, int):
        found = trvae_sc.pathways(effects.astype({"gene": genes}), net)
        names = expected["pathway"].map(numbers).astype(str)
        pd.testing.assert_frame_equal(found, expected.assign(pathway=names))
