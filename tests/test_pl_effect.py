"""Plots of means and changes: what is drawn is what was given."""

import matplotlib.colors as mcolors
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from trvae_sc import pl
from trvae_sc.errors import InputError
from trvae_sc.evaluation import Comparison
from trvae_sc.pl import COLORS


@pytest.fixture(autouse=True)
def _no_figure_is_left():
    """Close what a test drew."""
    assert plt.get_fignums() == []
    yield
    plt.close("all")


def means(n=40, seed=0):
    """Return a table of genes with means, largest change first."""
    rng = np.random.default_rng(seed)
    control = rng.gamma(2.0, 0.8, n)
    change = np.sort(rng.gamma(1.0, 0.8, n))[::-1]
    table = pd.DataFrame(
        {
            "control_mean": control,
            "real_mean": control + change,
            "predicted_mean": control + 0.8 * change + rng.normal(0, 0.1, n),
        },
        index=[f"GENE{i:02d}" for i in range(n)],
    )
    table["real_change"] = table["real_mean"] - control
    table["predicted_change"] = table["predicted_mean"] - control
    return table


# -- mean_correlation -------------------------------------------------------------------------------


def test_mean_table_is_the_squared_correlation_of_means():
    table = means()
    found = pl.mean_table(table, n_top=10)
    for name, part in (("all", table), ("top", table[:10])):
        assert found.loc[name, "n_genes"] == len(part)
        for what, column in (("predicted", "predicted_mean"), ("no_change", "control_mean")):
            expected = stats.pearsonr(part["real_mean"], part[column]).statistic ** 2
            assert found.loc[name, what] == pytest.approx(expected)
    perfect = pl.mean_table(table.assign(predicted_mean=2 * table["real_mean"] + 1))
    assert perfect.loc["all", "predicted"] == pytest.approx(1.0)
    assert perfect.loc["all"].drop("n_genes").to_numpy() == pytest.approx(
        perfect.loc["top"].drop("n_genes").to_numpy()
    )


def test_mean_table_of_one_gene_has_no_correlation():
    assert pl.mean_table(means(1))[["predicted", "no_change"]].isna().all(axis=None)


def test_mean_correlation_draws_the_means():
    table = means()
    ax = pl.mean_correlation(table, n_top=10)
    drawn = {c.get_label(): c for c in ax.collections}
    assert list(drawn) == ["other genes", "top 10 genes, control", "top 10 genes, predicted"]
    columns = [["real_mean", "predicted_mean"], ["real_mean", "control_mean"]]
    rest, before, after = drawn.values()
    np.testing.assert_allclose(rest.get_offsets(), table[10:][columns[0]])
    np.testing.assert_allclose(before.get_offsets(), table[:10][columns[1]])
    np.testing.assert_allclose(after.get_offsets(), table[:10][columns[0]])
    assert mcolors.to_hex(after.get_facecolor()[0]) == COLORS["blue"].lower()
    scores = pl.mean_table(table, n_top=10)
    assert ax.get_title() == "\n".join(
        f"{word}: squared correlation of means {scores.loc[row, 'predicted']:.2f} "
        f"(no change {scores.loc[row, 'no_change']:.2f})"
        for word, row in (("all genes", "all"), ("top 10", "top"))
    )
    assert ax.get_xlabel() == "real mean log(1 + normalised count)"
    assert pl.mean_correlation(table, unit="intensity").get_ylabel() == "predicted mean intensity"


@pytest.mark.parametrize("seed", range(4))
def test_mean_correlation_names_the_first_genes_beside_legend_and_each_other(seed):
    table = means(seed=seed)
    ax = pl.mean_correlation(table, n_top=20, n_labels=6)
    names = [text.get_text() for text in ax.texts]
    assert set(names) <= set(table.index[:6])
    assert len(names) >= 3
    ax.figure.canvas.draw()
    boxes = [text.get_window_extent() for text in ax.texts] + [ax.get_legend().get_window_extent()]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])


def test_mean_correlation_of_fewer_genes_than_top_genes():
    ax = pl.mean_correlation(means(5))
    assert [c.get_label() for c in ax.collections] == [
        "top 5 genes, control",
        "top 5 genes, predicted",
    ]
    assert "\n" not in ax.get_title()
    _, axes = plt.subplots(1, 2)
    assert pl.mean_correlation(means(5), ax=axes[1]) is axes[1]
    assert not axes[0].has_data()
    assert len(plt.get_fignums()) == 2


def test_mean_correlation_needs_means():
    with pytest.raises(InputError, match=r"no columns \['control_mean'\].*evaluation.gene_table"):
        pl.mean_correlation(means().drop(columns="control_mean"))
    with pytest.raises(InputError, match="no rows"):
        pl.mean_correlation(means()[:0])
    assert plt.get_fignums() == []


def test_legends_are_over_no_point():
    points = np.array([[0.9, 0.1], [0.8, 0.05], [0.1, 0.9]])
    table = pd.DataFrame(points, columns=["real_change", "predicted_change"], index=list("abc"))
    ax = pl.effect(table, n_labels=0)
    ax.figure.canvas.draw()
    box = ax.get_legend().get_window_extent()
    assert not any(box.contains(*ax.transData.transform(p)) for p in points)


# -- effect_heatmap -----------------------------------------------------------------------------------


def change(real, predicted, genes):
    return pd.DataFrame({"real_change": real, "predicted_change": predicted}, index=genes)


TABLES = {
    "B": change([1.0, -3.0, 0.1, 9.0], [0.5, -1.0, 0.0, 9.0], ["up", "down", "none", "only_b"]),
    "NK": change([0.2, -1.0, 2.0], [0.3, -1.0, 1.0], ["none", "down", "up"]),
}


def test_effect_table_has_changes_and_differences_side_by_side():
    found = pl.effect_table(TABLES)
    assert found.index.tolist() == ["up", "none", "down"]  # only_b is not in NK
    assert found.columns.names == ["what", "label"]
    np.testing.assert_allclose(found["real"], [[1, 2], [0.1, 0.2], [-3, -1]])
    np.testing.assert_allclose(found["predicted"], [[0.5, 1], [0, 0.3], [-1, -1]])
    np.testing.assert_allclose(found["difference"], [[-0.5, -1], [-0.1, 0.1], [2, 0]])
    assert pl.effect_table(TABLES, n_genes=1).index.tolist() == ["down"]
    assert pl.effect_table(TABLES, n_genes=2).index.tolist() == ["up", "down"]
    assert pl.effect_table(TABLES, var_names=["none", "up"]).index.tolist() == ["none", "up"]


@pytest.mark.parametrize(
    ("tables", "options", "error", "match"),
    [
        ({}, {}, ValueError, "no labels to draw"),
        (TABLES, {"var_names": ["up", "only_b"]}, InputError, r"\['only_b'\].*'NK'"),
        ({"B": TABLES["B"].drop(columns="real_change")}, {}, InputError, "real_change"),
        ({"B": TABLES["B"], "T": change([1.0], [1.0], ["x"])}, {}, ValueError, "no gene in common"),
        ({"B": change([1.0, 2.0], [1.0, 2.0], ["x", "x"])}, {}, ValueError, r"\['x'\].*not unique"),
    ],
)
def test_effect_table_refuses(tables, options, error, match):
    with pytest.raises(error, match=match):
        pl.effect_heatmap(tables, **options)


def test_effect_heatmap_draws_three_panels_with_symmetric_limits():
    figure = pl.effect_heatmap(TABLES)[0].figure
    *panels, bar = figure.axes
    table = pl.effect_table(TABLES)
    limit = np.quantile(np.abs(table.to_numpy()), 0.98)
    for ax, what in zip(panels, ["real", "predicted", "difference"], strict=True):
        (image,) = ax.images
        np.testing.assert_allclose(image.get_array(), table[what])
        assert image.get_clim() == pytest.approx((-limit, limit))
        assert image.get_cmap().name == "RdBu_r"
        assert [t.get_text() for t in ax.get_xticklabels()] == ["B", "NK"]
    assert [t.get_text() for t in panels[0].get_yticklabels()] == ["up", "none", "down"]
    assert [ax.get_title() for ax in panels] == ["real", "predicted", "predicted\n\u2212 real"]
    assert bar.get_ylabel() == "change of mean log(1 + normalised count)"


def test_effect_heatmap_limits():
    figure = pl.effect_heatmap(TABLES, vmax=0.5, unit="intensity")[0].figure
    assert figure.axes[0].images[0].get_clim() == (-0.5, 0.5)
    assert figure.axes[3].get_ylabel() == "change of mean intensity"
    flat = {"B": TABLES["B"] * 0}
    assert pl.effect_heatmap(flat)[0].images[0].get_clim() == (-1.0, 1.0)
    with pytest.raises(InputError, match=r"vmax is -1; a finite number is needed, 0 or more"):
        pl.effect_heatmap(flat, vmax=-1)


@pytest.mark.parametrize("n", [0, -1, 1.5, "a"])
def test_numbers_of_genes_are_whole_and_positive(n):
    table = means(5)
    for draw in (
        lambda: pl.effect(table, n_top=n),
        lambda: pl.mean_correlation(table, n_top=n),
        lambda: pl.mean_table(table, n_top=n),
        lambda: pl.effect_table({"B": table}, n_genes=n),
        lambda: pl.effect_heatmap({"B": table}, n_genes=n),
    ):
        with pytest.raises(InputError, match=rf"n_(top|genes) is {n!r}"):
            draw()
    if n != 0:
        for draw in (pl.effect, pl.mean_correlation, pl.volcano):
            with pytest.raises(InputError, match=rf"n_labels is {n!r}"):
                draw(table, n_labels=n)


def test_one_gene_is_named_as_text():
    table = means(5)
    name = table.index[3]
    found = pl.effect_table({"B": table}, var_names=name)
    assert found.index.tolist() == [name]
    assert pl.effect_table({"B": table}, var_names=[name, name]).equals(found)
    with pytest.raises(InputError, match="var_names is empty"):
        pl.effect_heatmap({"B": table}, var_names=[])


def test_what_is_missing_of_a_heatmap_is_said(trained):
    for wrong in (trained.effects(target="stimulated"), trained, None):
        with pytest.raises(InputError, match=r"this is a \w+\. Give predicted and measured cells"):
            pl.effect_heatmap(wrong)
    with pytest.raises(InputError, match="as the second argument, truth, which is best"):
        pl.effect_heatmap(trained.predict(target="stimulated"))


def test_labels_of_a_volcano_may_be_numbers():
    rows = {"gene": ["a", "b"], "change": 0.5, "pval": 0.01, "qval": 0.02}
    effects = pd.DataFrame(rows).assign(label=[1.0, 2.0])
    for label in (1, 1.0, "1"):
        ax = pl.volcano(effects, label=label)
        assert ax.get_title() == "1: 1 of 1 genes have q \u2264 0.1"


def test_a_volcano_of_several_labels_says_so(trained):
    predicted = trained.predict(target="stimulated", source="control")
    message = r"several groups, 'B from control', .*pl\.volcano\(model\.effects\("
    with pytest.raises(InputError, match=message):
        pl.volcano(predicted)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_changes_that_are_not_finite_are_refused(value):
    """A missing change was white on the heat map, as if there were none, and scores were nan."""
    table = means()
    wrong = table.assign(predicted_change=[*table["predicted_change"][:-1], value])
    effects = pd.DataFrame({"label": "B", "gene": ["a"], "change": value, "pval": 0.1, "qval": 0.1})
    for draw in (
        lambda: pl.effect(wrong),
        lambda: pl.effect_heatmap({"B": wrong}, var_names=wrong.index[-2:]),
        lambda: pl.mean_correlation(wrong.assign(control_mean=value)),
        lambda: pl.volcano(effects),
    ):
        with pytest.raises(InputError, match=r"of (40|2|1) genes have no finite \w+\. Leave"):
            draw()
    assert pl.effect_heatmap({"B": wrong}, var_names=wrong.index[:2])


def test_titles_and_names_of_labels_are_inside_the_figure():
    """Long ones were cut off at the edge of the picture."""
    name, genes = "CD16+ monocytes, lupus patient 1015, visit 2", means()
    rows = genes.rename_axis("gene").reset_index().assign(label=name, source="c", target="s")
    effects = rows.assign(change=rows["predicted_change"], pval=0.01, qval=0.02)
    comparison = Comparison(pd.DataFrame(), rows)
    several = {f"{name} {i}": genes for i in range(6)}
    for ax in (
        pl.effect(comparison),
        pl.mean_correlation(comparison, n_top=20),
        pl.volcano(effects),
        pl.effect_heatmap(several, var_names=genes.index[:2])[0],
    ):
        ax.figure.canvas.draw()
        box, size = ax.figure.get_tightbbox(), ax.figure.get_size_inches()
        assert (box.min >= 0).all()
        assert (box.max <= size).all()
