"""Plots: what is drawn is what was given."""

import matplotlib.colors as mcolors
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.cbook import is_math_text
from matplotlib.text import Text
from scipy import stats

from trvae_sc import baselines, pl
from trvae_sc.errors import InputError
from trvae_sc.evaluation import Holdout, holdouts
from trvae_sc.pl import COLORS
from trvae_sc.pl._style import method_colors


def rgb(color):
    return mcolors.to_hex(color, keep_alpha=False)


# -- effect -----------------------------------------------------------------------------------------


def genes(n=40, seed=0, noise=0.2, spread=1.0):
    """Return a table of genes, largest real change first."""
    rng = np.random.default_rng(seed)
    real = np.sort(np.abs(rng.normal(0, spread, n)))[::-1] * rng.choice([-1, 1], n)
    predicted = 0.8 * real + rng.normal(0, noise, n)
    return pd.DataFrame(
        {"real_change": real, "predicted_change": predicted},
        index=[f"GENE{i:02d}" for i in range(n)],
    )


def test_effect_draws_the_changes_and_prints_their_agreement():
    table = genes()
    ax = pl.effect(table, n_top=10)
    rest, top = ax.collections
    np.testing.assert_allclose(top.get_offsets(), table.iloc[:10].to_numpy())
    np.testing.assert_allclose(rest.get_offsets(), table.iloc[10:].to_numpy())
    assert rgb(top.get_facecolor()[0]) == rgb(COLORS["blue"])
    assert top.get_label() == "top 10 genes"
    real, predicted = table.iloc[:10].to_numpy().T
    r2 = 1 - np.square(predicted - real).sum() / np.square(real).sum()
    r = stats.pearsonr(real, predicted).statistic
    assert ax.get_title() == f"effect R2 = {r2:.2f} (no change: 0), r = {r:.2f}"
    low, high = table.to_numpy().min(), table.to_numpy().max()
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[low, low], [high, high]])
    assert ax.get_xlabel() == "real change of mean log(1 + normalised count)"
    assert ax.get_ylabel() == "predicted change of mean log(1 + normalised count)"
    assert pl.effect(table, unit="intensity").get_xlabel() == "real change of mean intensity"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("spread", [1.0, 0.02])
def test_effect_names_the_largest_changes_without_overlap(seed, spread):
    table = genes(seed=seed, spread=spread, noise=0.1)
    table["real_change"] = np.r_[2.0, table["real_change"].to_numpy()[1:]]
    ax = pl.effect(table, n_top=20, n_labels=8)
    names = [text.get_text() for text in ax.texts]
    largest = table.iloc[:20]["real_change"].abs().nlargest(8).index
    assert set(names) <= set(largest)
    assert len(names) == len(set(names)) >= 2
    assert table.index[0] in names
    ax.figure.canvas.draw()
    frame = ax.get_window_extent()
    boxes = [text.get_window_extent() for text in ax.texts]
    points = ax.transData.transform(table.loc[names].to_numpy())
    for i, box in enumerate(boxes):
        assert not any(box.contains(*point) for point in points)
        assert frame.x0 <= box.x0
        assert box.x1 <= frame.x1
        assert frame.y0 <= box.y0
        assert box.y1 <= frame.y1
        for other in boxes[:i]:
            assert not box.overlaps(other)
        point = ax.transData.transform(table.loc[names[i]].to_numpy())
        centre = np.array([(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2])
        reach = box.width / 2 + 20 * ax.figure.dpi / 72
        led = [p for p in ax.patches if getattr(p, "patchA", None) is ax.texts[i]]
        if led:  # a line to its own point
            end = led[0].get_path().vertices[-1]
            assert np.linalg.norm(ax.transData.transform(end) - point) < 6 * ax.figure.dpi / 72
        else:
            assert np.linalg.norm(centre - point) < reach  # beside its own point


@pytest.mark.filterwarnings("error")
def test_genes_that_do_not_change_have_no_scores():
    table = genes().assign(real_change=0.0)
    assert pl.effect(table).get_title() == "effect R2 = nan (no change: 0), r = nan"
    ax = pl.effect(table.assign(predicted_change=0.0))
    low, high = ax.get_ylim()
    assert low < 0 < high


def test_effect_of_no_change_has_no_correlation():
    """A prediction of no change divided by zero in the correlation."""
    table = genes().assign(predicted_change=0.0)
    title = pl.effect(table).get_title()
    assert title == "effect R2 = 0.00 (no change: 0), r = nan"


def test_effect_of_genes_that_share_a_name():
    table = genes(12)
    table.index = ["SAME"] * 12
    ax = pl.effect(table)
    assert {text.get_text() for text in ax.texts} == {"SAME"}
    assert len(ax.texts) <= 8


def test_effect_of_one_gene():
    table = genes(1)
    ax = pl.effect(table)
    np.testing.assert_allclose(ax.collections[1].get_offsets(), table.to_numpy())
    assert "r = nan" in ax.get_title()


# -- design -----------------------------------------------------------------------------------------

CELLS = pd.DataFrame(
    [[1200, 30], [45, 0]], index=pd.Index(["B", "NK"]), columns=["control", "stimulated"]
)


def test_design_writes_the_number_of_cells_and_marks_what_is_hidden():
    ax = pl.design(CELLS, hidden=[("B", "stimulated")])
    texts = {tuple(np.array(t.get_position()).astype(int)): t for t in ax.texts}
    found = {position: text.get_text() for position, text in texts.items()}
    assert found == {(0, 0): "1,200", (1, 0): "30", (0, 1): "45", (1, 1): "none"}
    assert rgb(texts[1, 1].get_color()) == rgb(COLORS["red"])
    assert rgb(texts[0, 0].get_color()) == "#000000"
    framed = {(round(p.get_x() + 0.46), round(p.get_y() + 0.44)) for p in ax.patches}
    assert framed == {(1, 0), (1, 1)}  # hidden, and never measured
    assert [p.get_linestyle() for p in ax.patches] == ["-", ":"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["control", "stimulated"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["B", "NK"]
    np.testing.assert_allclose(ax.images[0].get_array(), np.log10(CELLS.to_numpy() + 1))
    assert ax.get_title() == "cells; framed: hidden"
    both = pl.design(CELLS, hidden=[("B", "stimulated"), ("NK", "stimulated")])
    assert both.get_title() == "cells; framed: hidden,\none at a time"


def test_a_design_claims_no_frames_where_a_part_of_the_cells_is_hidden():
    of_donor = Holdout("B", "stimulated", "control", "cell_type", within=(("donor", "d1"),))
    ax = pl.design(CELLS, hidden=of_donor)
    assert ax.get_title() == "cells; hidden: parts of these"
    assert [p.get_linestyle() for p in ax.patches] == [":"]


def test_numbers_of_a_design_can_be_read():
    """Black on what is behind them has a contrast of 7 or more (WCAG AAA), also for the most cells."""
    image = pl.design(CELLS).images[0]
    colors = image.to_rgba(image.get_array())[..., :3].reshape(-1, 3)
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    assert ((luminance + 0.05) / 0.05).min() >= 7


def test_design_without_anything_hidden():
    ax = pl.design(CELLS)
    assert ax.get_title() == "cells"
    assert len(ax.patches) == 1
    assert len(pl.design(CELLS.iloc[:1]).patches) == 0


def test_design_of_names_that_are_not_text_and_many_conditions():
    cells = pd.DataFrame(np.arange(12).reshape(2, 6) + 1, index=[0, 1])
    ax = pl.design(cells, hidden=[(1, 5)])
    assert [(p.get_x(), p.get_y()) for p in ax.patches] == [
        (pytest.approx(4.54), pytest.approx(0.56))
    ]
    assert {t.get_rotation() for t in ax.get_xticklabels()} == {40.0}


def test_design_of_cells():
    obs = pd.DataFrame({"cell type": ["B", "B", "T", "T", "T"], "drug": ["a", "b", "a", "a", "a"]})
    obs.index = obs.index.astype(str)
    adata = AnnData(np.ones((5, 2)), obs=obs)
    ax = pl.design(adata, "drug", "cell type")
    assert [t.get_text() for t in ax.texts] == ["1", "1", "3", "none"]
    with pytest.raises(InputError, match=r"pl.design\(adata, condition_key, labels_key\)"):
        pl.design(adata)
    with pytest.raises(InputError, match=r"No column 'dose' in adata\.obs"):
        pl.design(adata, "dose", "cell type")


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_design_of_cells_whose_condition_has_several_columns():
    obs = pd.DataFrame({"drug": list("xaaab"), "dose": [0.0, 10, 3, 3, 3], "cell": list("BBBTT")})
    adata = AnnData(np.ones((5, 2)), obs=obs.set_index(obs.index.astype(str)))
    adata.obs_names = ["cell"] * adata.n_obs  # which play no role
    ax = pl.design(adata, ["drug", "dose"], "cell")
    assert [t.get_text() for t in ax.get_xticklabels()] == ["a + 3", "a + 10", "b + 3", "x + 0"]
    assert [t.get_text() for t in ax.texts] == ["1", "1", "none", "1", "1", "none", "1", "none"]
    for condition in ({"drug": "a", "dose": 10}, {"dose": 10.0, "drug": "a"}, ("a", 10), "a + 10"):
        for hidden in (("B", condition), Holdout("B", condition)):
            ax = pl.design(adata, ["drug", "dose"], "cell", hidden=[hidden])
            assert [p.get_xy() for p in ax.patches if p.get_linestyle() == "-"] == [(0.54, -0.44)]
    with pytest.raises(InputError):
        pl.design(adata, ["drug", "dose"], "cell", hidden=[("B", {"drug": "a"})])


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_numbers_of_few_digits_are_named_as_they_read(dtype):
    obs = pd.DataFrame({"dose": [0.1, 0.1, 0.3, 0.3], "label": [1, 10, 1, 10]}, dtype=dtype)
    cells = AnnData(np.ones((4, 1)), obs=obs.set_axis(list("abcd")))
    ax = pl.design(cells, "dose", "label", hidden=["10:0.3"])
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0.1", "0.3"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["1", "10"]
    assert len(ax.patches) == 1


def test_numbers_of_a_design_are_named_as_in_hold_outs():
    """Nothing was framed: hold-outs of the dose 10.0 are of "10"."""
    obs = pd.DataFrame({"dose": [0.0, 10.0] * 4, "cluster": [1.0] * 4 + [2.0] * 4})
    adata = AnnData(np.ones((8, 2)), obs=obs.set_index(obs.index.astype(str)))
    keys = {"condition_key": "dose", "labels_key": "cluster"}
    tasks = holdouts(adata, **keys, source=0.0, min_cells=2, together=2)
    ax = pl.design(adata, "dose", "cluster", hidden=tasks[0])
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0", "10"]
    assert [p.get_x() for p in ax.patches] == [0.54]  # all of the condition
    assert ax.get_title() == "cells; framed: hidden"  # by one training
    for text in ("2:10", "2:10.0"):
        one = pl.design(adata, "dose", "cluster", hidden=text)
        assert [p.get_xy() for p in one.patches] == [(0.54, 0.56)]


@pytest.mark.parametrize(
    "table",
    [
        pd.DataFrame({"cell_type": ["B", "T"], "condition": ["a", "b"]}),  # obs
        pd.DataFrame({"a": [1.0, np.nan]}),
        pd.DataFrame({"a": [-1, 2]}),
        pd.DataFrame({"a": [0, 0]}),
        pd.DataFrame(np.ones((201, 2))),
        pd.DataFrame(np.ones((2, 61))),
        pd.DataFrame(),
        [[1, 2]],
    ],
)
def test_design_of_what_are_no_numbers_of_cells(table):
    with pytest.raises(InputError, match=r"model\.n_cells|numbers of cells|cannot be read"):
        pl.design(table)


def test_design_of_a_model(trained):
    ax = pl.design(trained.n_cells)
    assert [t.get_text() for t in ax.texts] == ["20"] * 6


# -- training ---------------------------------------------------------------------------------------


def test_training_draws_each_term_that_is_on():
    history = {
        "reconstruction_weighted_train": [30.0, 20.0, 10.0],
        "reconstruction_weighted_validation": [31.0, 22.0, 13.0],
        "kl_weighted_train": pd.DataFrame({"kl_weighted_train": [0.5, 1.0, 2.0]}),
        "mmd_weighted_train": [0.0, 0.0, 0.0],
        "something_else": [1.0],
    }
    ax = pl.training(history)
    lines = {line.get_label(): line for line in ax.lines}
    assert list(lines) == ["reconstruction", "reconstruction, validation", "kl"]
    for name, y in (("reconstruction", [30, 20, 10]), ("kl", [0.5, 1, 2])):
        np.testing.assert_array_equal(lines[name].get_xdata(), [1, 2, 3])
        np.testing.assert_array_equal(lines[name].get_ydata(), y)
    assert lines["kl"].get_color() == COLORS["orange"]
    assert lines["reconstruction, validation"].get_linestyle() == ":"
    assert [t.get_text() for t in ax.get_legend().get_texts()] == list(lines)
    assert ax.get_yscale() == "symlog"


def test_training_of_a_model(trained):
    ax = pl.training(trained.history)
    lines = {line.get_label(): line.get_ydata() for line in ax.lines}
    expected = trained.history["transfer_weighted_train"].to_numpy(float).ravel()
    np.testing.assert_array_equal(lines["transfer"], expected)
    assert {len(y) for y in lines.values()} == {5}


def test_validation_is_drawn_at_the_epochs_it_is_of(fit, make_adata):
    """Every third epoch was drawn as the first ones."""
    how = {"max_epochs": 6, "train_size": 0.8, "check_val_every_n_epoch": 3}
    model = fit(make_adata(), train=how)
    lines = {line.get_label(): line for line in pl.training(model).lines}
    assert lines["reconstruction"].get_xdata().tolist() == [1, 2, 3, 4, 5, 6]
    assert lines["reconstruction, validation"].get_xdata().tolist() == [3, 6]
    (point,) = pl.training({"kl_weighted_train": [0.5]}).lines
    assert point.get_marker() == "o"  # no line can be seen
    (gaps,) = pl.training({"kl_weighted_train": [0.5, np.nan, 0.4]}).lines
    assert len(gaps.get_xdata()) == 3


# -- benchmark --------------------------------------------------------------------------------------


def results(targets=("stim",), outputs=("delta", "counts")):
    """Return a table of two methods, two labels and two seeds, with the ceiling."""
    rows = []
    for target in targets:
        for label, level in (("B", 0.2), ("NK", 0.6)):
            for seed in (0, 1):
                for k, output in enumerate(outputs):
                    value = level + 0.1 * seed + 0.01 * k
                    rows.append(("net", label, target, seed, output, "effect_r2", "top100", value))
            rows.append(("flat", label, target, 0, "delta", "effect_r2", "top100", level / 2))
            rows.append(("ceiling", label, target, 0, "ceiling", "effect_r2", "top100", 0.9))
            rows.append(("flat", label, target, 0, "delta", "effect_r2", "all", -5.0))
    names = ["method", "label", "target", "seed", "output", "metric", "genes", "value"]
    return pd.DataFrame(rows, columns=names).assign(source="ctrl")


def drawn(ax):
    """Return the values of each method by label of the axis."""
    ticks = dict(zip(ax.get_yticks(), [t.get_text() for t in ax.get_yticklabels()], strict=True))
    return {
        points.get_label(): {ticks[y]: x for x, y in points.get_offsets() if not np.ma.is_masked(x)}
        for points in ax.collections
    }


def test_benchmark_draws_means_over_seeds():
    ax = pl.benchmark(results())
    found = drawn(ax)
    assert set(found) == {"net, delta", "net, counts", "flat, delta", "ceiling"}
    assert found["net, delta"] == {"B": pytest.approx(0.25), "NK": pytest.approx(0.65)}
    assert found["net, counts"] == {"B": pytest.approx(0.26), "NK": pytest.approx(0.66)}
    assert found["flat, delta"] == {"B": pytest.approx(0.1), "NK": pytest.approx(0.3)}
    assert found["ceiling"] == {"B": 0.9, "NK": 0.9}
    assert [t.get_text() for t in ax.get_yticklabels()] == ["NK", "B"]  # B is on top
    assert ax.get_xlabel() == "effect R2 (top100)"
    # best first, after the ceiling
    assert [t.get_text() for t in ax.get_legend().get_texts()] == [
        "ceiling",
        "net, counts",
        "net, delta",
        "flat, delta",
    ]
    colors = {p.get_label(): rgb(p.get_facecolor()[0]) for p in ax.collections[1:]}
    assert colors["net, delta"] == colors["net, counts"] != colors["flat, delta"]


def test_benchmark_names_targets_where_there_are_several():
    ax = pl.benchmark(results(targets=("stim", "other")), metric="effect_r2", genes="top100")
    assert [t.get_text() for t in ax.get_yticklabels()] == [
        "NK \u2192 stim",
        "NK \u2192 other",
        "B \u2192 stim",
        "B \u2192 other",
    ]
    assert drawn(ax)["flat, delta"]["NK \u2192 other"] == pytest.approx(0.3)


def test_benchmark_does_not_take_hold_outs_from_several_sources_for_one():
    """Their scores were averaged."""
    other = results().assign(source="other")
    other["value"] += 1.0
    found = drawn(pl.benchmark(pd.concat([results(), other])))["flat, delta"]
    wanted = {"B from ctrl": 0.1, "B from other": 1.1, "NK from ctrl": 0.3, "NK from other": 1.3}
    assert found == pytest.approx(wanted)


def test_benchmark_of_a_score_whose_lower_values_are_better():
    """The worst method was first, and the score of half of the cells was called the ceiling."""
    table = results(outputs=("delta",)).replace({"effect_r2": "energy_distance"})
    half = table[table["method"] == "ceiling"].assign(output="replicate half", value=0.1)
    ax = pl.benchmark(pd.concat([table, half]), metric="energy_distance")
    names = [t.get_text() for t in ax.get_legend().get_texts()]
    assert names == ["replicate half", "ceiling", "flat, delta", "net, delta"]
    assert drawn(ax)["replicate half"] == {"B": 0.1, "NK": 0.1}


def test_benchmark_of_other_scores_and_outputs():
    """The name of an output is the method's own; those we do not have raised KeyError."""
    found = drawn(pl.benchmark(results(), genes="all"))
    assert found == {"flat, delta": {"B": -5.0, "NK": -5.0}}
    found = drawn(pl.benchmark(results(outputs=("mine",))))
    assert found["net, mine"] == {"B": pytest.approx(0.25), "NK": pytest.approx(0.65)}
    with pytest.raises(InputError, match=r"No score 'mmd' over genes 'all'; .*'effect_r2', 'all'"):
        pl.benchmark(results(), metric="mmd", genes="all")
    assert plt.get_fignums() == [1, 2]


def test_a_method_has_its_colour_whatever_else_is_drawn():
    """With eight methods two pairs looked alike, and colours changed between figures."""
    ours = [*baselines.METHODS, "my method", "their method"]
    together = method_colors(ours)
    assert len(set(together.values())) == len(ours)
    for name in ours[:-1]:
        assert method_colors([name])[name] == together[name]
    mine = [f"m{i}" for i in range(8)]
    assert len(set(method_colors(mine).values())) == 8
    table = results()
    alone = pl.benchmark(table[table["method"] != "flat"])
    both = pl.benchmark(table)
    of_net = [
        {p.get_label(): rgb(p.get_facecolor()[0]) for p in ax.collections}["net, delta"]
        for ax in (alone, both)
    ]
    assert of_net[0] == of_net[1]


def test_benchmark_that_is_not_finished():
    table = results()
    part = table[(table["method"] != "net") | (table["label"] == "B")]
    found = drawn(pl.benchmark(part))
    assert {k: v for k, v in found["net, delta"].items() if np.isfinite(v)} == {
        "B": pytest.approx(0.25)
    }


# -- names as text ----------------------------------------------------------------------------------

ODD = "$\\frac{$ a_b^c"


def test_names_are_drawn_as_text():
    """A label with a dollar sign was taken for a formula, and stopped the report."""
    table = genes(12)
    table.index = [f"{ODD}{i}" for i in range(12)]
    n_cells = CELLS.rename(index={"B": ODD}, columns={"control": ODD})
    scores = results().replace({"net": ODD, "B": ODD, "delta": ODD})
    groups = pd.DataFrame({"x": [0.0, 1, 2], "y": [0.0, 1, 2], ODD: [ODD, "b", "b"]})
    values = pd.DataFrame({"gene": ODD, "group": [ODD, "b"] * 5, "value": np.arange(10.0)})
    doses = pd.DataFrame({"gene": ODD, "label": ODD, "dose": [0.0, 1], "mean": 1.0, "sem": 0.1})
    way = pd.DataFrame({ODD: [0.0, 1], "b": [1.0, 2]}, index=[0.0, 1.0])
    change = genes(12).set_axis([f"{ODD}{i}" for i in range(12)])
    intervals = pd.DataFrame(
        {"predicted_change": 2.0, "change_lower": 1.0, "change_upper": 3.0}, index=[ODD, "b"]
    )
    figures = [
        pl.effect(table).figure,
        pl.design(n_cells).figure,
        pl.benchmark(scores).figure,
        pl.latent(groups)[0].figure,
        pl.gene_distribution(values)[0].figure,
        pl.gene_distribution(values, kind="ecdf")[0].figure,
        pl.dose_response(doses, doses, dose_unit=ODD).figure,
        pl.interpolation(way, source=ODD, target=ODD).figure,
        pl.effect_heatmap({ODD: change})[0].figure,
        pl.volcano(intervals).figure,
    ]
    for figure in figures:
        figure.draw_without_rendering()
        shown = [text for text in figure.findobj(Text) if "frac" in text.get_text()]
        assert shown
        for text in shown:
            assert not is_math_text(text.get_text())


# -- all --------------------------------------------------------------------------------------------

PLOTS = {
    "effect": (pl.effect, genes()),
    "design": (pl.design, CELLS),
    "training": (pl.training, {"kl_weighted_train": [1.0, 2.0]}),
    "benchmark": (pl.benchmark, results()),
}


@pytest.mark.parametrize("name", PLOTS)
def test_plots_draw_on_the_axes_given_or_make_one_figure(name):
    plot, data = PLOTS[name]
    figure, axes = plt.subplots(1, 2)
    assert plot(data, ax=axes[1]) is axes[1]
    assert not axes[0].has_data()
    assert axes[1].has_data()
    assert plt.get_fignums() == [figure.number]
    own = plot(data)
    assert own.figure is not figure
    assert len(plt.get_fignums()) == 2
    assert len(own.figure.axes) == 1


@pytest.mark.parametrize("name", PLOTS)
def test_plots_change_neither_data_nor_settings(name):
    plot, data = PLOTS[name]
    before = data.copy()
    plt.close(plt.figure())  # the first one sets the backend
    settings = plt.rcParams.copy()
    plot(data)
    assert plt.rcParams == settings
    if isinstance(data, pd.DataFrame):
        pd.testing.assert_frame_equal(data, before)


@pytest.mark.parametrize("hidden", ["x:b", ["x:b"], [("x", "b")], Holdout("x", "b", "a")])
def test_what_is_hidden_may_be_text_pair_or_holdout(hidden):
    cells = pd.DataFrame({"a": [3, 4], "b": [5, 6]}, index=["x", "y"])
    ax = pl.design(cells, hidden=hidden)
    (frame,) = [patch for patch in ax.patches if patch.get_edgecolor()[:3] != (0, 0, 0)]
    assert frame.get_xy() == (1 - 0.46, -0.44)


@pytest.mark.parametrize("hidden", ["x:q", ["x"], [("q", "b")], [("x", "b", "a")], [3]])
def test_what_hides_nothing_is_refused(hidden):
    cells = pd.DataFrame({"a": [3, 4], "b": [5, 6]}, index=["x", "y"])
    with pytest.raises(InputError, match=r"[Hh]old-out"):
        pl.design(cells, hidden=hidden)


@pytest.mark.parametrize("table", [pd.DataFrame({"a": [1]}), [1], None])
def test_benchmark_of_another_table(table):
    with pytest.raises(InputError, match=r"The table has no columns \['method'|Expected a table"):
        pl.benchmark(table)


def test_training_of_what_was_not_trained(fit):
    for history in (fit(train=False), {}, 3, {"loss": [1.0]}):
        with pytest.raises(InputError, match="no history of the terms"):
            pl.training(history)


def test_epochs_are_whole_numbers():
    for n in (1, 2, 3, 60):
        ax = pl.training({"kl_weighted_train": np.linspace(9, 1, n)})
        assert all(tick == int(tick) for tick in ax.get_xticks())


@pytest.mark.parametrize("given", [None, "cells.h5ad", [1], {"a": 1}, np.zeros((2, 2))])
def test_plots_of_something_else_say_what_they_take(given):
    for draw in (pl.grid, pl.traversal, pl.manifold, pl.interpolation, pl.interpolation_means):
        with pytest.raises(InputError, match="Expected an AnnData"):
            draw(given)
    for draw in (pl.embedding, lambda cells, key: pl.expression_table({"control": cells}, key)):
        with pytest.raises(InputError, match="Expected an AnnData"):
            draw(given, "cell_type")
    with pytest.raises(InputError, match="Expected an AnnData"):
        pl.dose_table(given, "gene_0", dose_key="dose")
    for draw in (pl.calibration, pl.volcano, pl.benchmark, pl.dose_response, pl.effect):
        with pytest.raises(InputError, match=r"Expected a table .* Give "):
            draw(given)


def frames(ax):
    """Return the places of frames that are drawn with a line, column and row."""
    return [
        (round(p.get_x() + 0.46), round(p.get_y() + 0.44))
        for p in ax.patches
        if p.get_linestyle() == "-"
    ]


@pytest.mark.parametrize("target", ["a + 10", "a + 10.0", ("a", 10), {"dose": 10, "drug": "a"}])
def test_design_frames_what_is_hidden_however_it_is_named(target):
    rows = [(label, *of) for label in "xy" for of in (("none", 0.0), ("a", 1.0), ("a", 10.0))]
    obs = pd.DataFrame(rows, columns=["cell_type", "drug", "dose"], index=list("abcdef"))
    cells = AnnData(np.ones((6, 2), dtype=np.float32), obs=obs)
    for hidden in (("y", target), Holdout("y", target, "none + 0")):
        ax = pl.design(cells, ["drug", "dose"], "cell_type", hidden=[hidden], show=False)
        assert frames(ax) == [(1, 1)]
    hidden = holdouts(cells, condition_key="dose", labels_key="cell_type", min_cells=1)
    ax = pl.design(cells, "dose", "cell_type", hidden=hidden[:1], show=False)
    assert frames(ax) == [(1, 0)]
