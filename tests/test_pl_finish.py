"""What all plots share: given cells, shown and saved as in scanpy, legends beside the data, outliers."""

import inspect
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData

from trvae_sc import InputError, compare, pl
from trvae_sc.pl._style import arrows, name_points, number, to_name, within

TABLES = {"embedding", "expression_table"} | {n for n in pl.__all__ if n.endswith("_table")}
PLOTS = sorted(set(pl.__all__) - TABLES - {"COLORS", "interpolation_means"})


@pytest.fixture(autouse=True)
def _no_figure_is_left():
    yield
    plt.close("all")


def genes(n=40, outlier=None):
    """Return a table of genes, largest real change first: three of ten fall."""
    rng = np.random.default_rng(0)
    size = np.sort(rng.uniform(0.5, 2.0, n))[::-1]
    real = np.where(np.arange(n) % 10 > 6, -0.5, 1.0) * size
    predicted = real + rng.normal(0, 0.1, n)
    if outlier is not None:
        predicted[2] = outlier
    columns = {"real_change": real, "predicted_change": predicted}
    return pd.DataFrame(columns, index=[f"G{i}" for i in range(n)])


EFFECTS = pd.DataFrame(
    {
        "label": "B",
        "gene": [f"g{i}" for i in range(6)],
        "change": [2.0, -1.0, 0.5, 0.1, -0.1, 0.0],
        "pval": [0.0001, 0.001, 0.01, 0.2, 0.5, 1.0],
        "qval": [0.0006, 0.003, 0.02, 0.3, 0.6, 1.0],
    }
)


# -- show and save --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLOTS)
def test_every_plot_can_be_shown_and_saved(name):
    found = inspect.signature(getattr(pl, name)).parameters
    for option in ("show", "save"):
        assert found[option].kind is inspect.Parameter.KEYWORD_ONLY
        assert found[option].default is None


def test_plots_are_shown_and_saved_as_in_scanpy(monkeypatch):
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.get_fignums()))
    folder = Path(sc.settings.figdir)
    assert pl.effect(genes(), show=False).has_data()
    assert pl.effect(genes()).has_data()
    assert shown == []
    assert pl.effect(genes(), show=True) is None
    assert len(shown) == 1
    pl.effect(genes(), save=True)
    pl.volcano(EFFECTS, save="_B.png")
    pl.effect(genes(), save="_2", show=False)
    pl.effect_heatmap({"B": genes()}, save=Path("mine/heat.svg"))
    files = set(Path().rglob("*.*"))
    form = sc.settings.file_format_figs
    assert files == {
        *(folder / f"effect.{form}", folder / "volcano_B.png", folder / f"effect_2.{form}"),
        Path("mine/heat.svg"),
    }


# -- cells in place of tables -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cells(fit, make_adata):
    """Return predicted and measured cells."""
    adata = make_adata(240)
    model = fit(adata)
    return model.predict(target="stimulated", source="control", labels=["B", "NK"]), adata


def test_plots_of_genes_take_predicted_and_measured_cells(cells):
    predicted, adata = cells
    tables = compare(predicted, adata, label="NK").tables()
    assert list(tables) == ["NK"]
    for plot, columns in (
        (pl.effect, ["real_change", "predicted_change"]),
        (pl.mean_correlation, ["real_mean", "predicted_mean"]),
    ):
        drawn = [
            plot(predicted, adata, label="NK"),
            plot(compare(predicted, adata), label="NK"),
            plot(tables["NK"]),
        ]
        for ax in drawn:
            np.testing.assert_allclose(ax.collections[-1].get_offsets(), tables["NK"][columns])
        assert drawn[0].get_title().startswith("NK")
        with pytest.raises(InputError, match=r"several labels, \['B', 'NK'\]"):
            plot(predicted, adata)
        with pytest.raises(InputError, match="pass them too"):
            plot(predicted)
        with pytest.raises(InputError, match="No label 'T' in the comparison"):
            plot(compare(predicted, adata), label="T")
    both = [pl.effect_heatmap(predicted, adata), pl.effect_heatmap(compare(predicted, adata))]
    for axes in both:
        assert [t.get_text() for t in axes[0].get_xticklabels()] == ["B", "NK"]


def test_a_method_has_its_colour_in_every_plot(cells):
    predicted, adata = cells
    for method, color in (("TRVAE", "#0072B2"), ("context_shift", "#E69F00"), ("mine", "#0072B2")):
        other = predicted.copy()
        other.uns["trvae_sc"] = {**other.uns["trvae_sc"], "method": method}
        for plot in (pl.effect, pl.mean_correlation):
            face = plot(other, adata, label="NK").collections[-1].get_facecolor()[0]
            np.testing.assert_allclose(face[:3], plt.matplotlib.colors.to_rgb(color))


# -- volcano of effects -------------------------------------------------------------------------------------


def test_volcano_draws_effects_by_their_evidence():
    ax = pl.volcano(EFFECTS)
    rest, falls, rises = ax.collections
    np.testing.assert_allclose(rises.get_offsets(), [[2.0, 4.0], [0.5, 2.0]])
    np.testing.assert_allclose(falls.get_offsets(), [[-1.0, 3.0]])
    assert len(rest.get_offsets()) == 3
    assert ax.get_title() == "B: 3 of 6 genes have q \u2264 0.1"
    assert {text.get_text() for text in ax.texts} == {"g0", "g1", "g2"}
    assert len(pl.volcano(EFFECTS, max_qval=0.01).collections[2].get_offsets()) == 1


def test_volcano_draws_one_label_and_source():
    two = pd.concat([EFFECTS, EFFECTS.assign(label="NK", pval=1.0, qval=1.0)])
    assert pl.volcano(two, label="NK").get_title() == "NK: 0 of 6 genes have q \u2264 0.1"
    with pytest.raises(InputError, match=r"several of \{'label': \['B', 'NK'\]\}.*label="):
        pl.volcano(two)
    donors = pd.concat([EFFECTS.assign(replicate=name) for name in ("d1", "d2")])
    with pytest.raises(InputError, match=r"several of \{'replicate': \['d1', 'd2'\]\}"):
        pl.volcano(donors, label="B")
    with pytest.raises(InputError, match="No label 'T' in the table"):
        pl.volcano(two, label="T")
    with pytest.raises(InputError, match=r"6 genes have no p-value.*doses, combinations, sets"):
        pl.volcano(EFFECTS.assign(pval=np.nan))


# -- names, legends, outliers -------------------------------------------------------------------------------


def test_falling_genes_are_named_too():
    changes = np.array([9.0, 8, 7, 6, 5, -1, 4, -0.5])
    assert to_name(changes, 3).tolist() == [0, 1, 5]
    assert to_name(changes, 6).tolist() == [0, 1, 2, 3, 5, 7]
    assert to_name(changes[:5], 3).tolist() == [0, 1, 2]
    assert to_name(changes, 0).tolist() == []
    names = {text.get_text() for text in pl.effect(genes(), n_top=20).texts}
    assert {"G7", "G8"} & names


@pytest.mark.parametrize("plot", [pl.effect, pl.volcano])
@pytest.mark.parametrize("width", [2.0, 4.0, 8.0])
def test_legends_are_below_data_and_axis_label(plot, width):
    _, ax = plt.subplots(figsize=(width, 4), layout="constrained")
    plot(genes() if plot is pl.effect else EFFECTS, ax=ax)
    ax.figure.canvas.draw()
    legend = ax.get_legend().get_window_extent()
    assert not legend.overlaps(ax.get_window_extent())
    assert not legend.overlaps(ax.xaxis.label.get_window_extent())
    assert legend.y1 < ax.get_window_extent().y0


def test_a_prediction_far_outside_is_an_arrow_with_its_value():
    ax = pl.effect(genes(outlier=-30.0))
    assert "\u22122" not in ax.get_title()
    low, high = ax.get_ylim()
    assert -3 < low < high < 4
    assert "-30.0" in {text.get_text() for text in ax.texts}
    (marker,) = [line for line in ax.lines if line.get_marker() == "v"]
    assert marker.get_ydata()[0] == low
    assert [line for line in pl.effect(genes()).lines if line.get_marker() in "v^"] == []


def test_a_score_far_from_the_others_does_not_squeeze_the_axis():
    columns = {"label": list("abcdefgh"), "value": [0.6, 0.7, 0.7, 0.8, 0.8, 0.9, 0.9, -5.0]}
    same = {"method": "trvae", "output": "delta", "source": "c", "target": "s", "seed": 0}
    table = pd.DataFrame({**columns, **same, "metric": "effect_r2", "genes": "top100"})
    ax = pl.benchmark(table)
    low, high = ax.get_xlim()
    assert 0.5 < low < 0.6
    assert 0.9 < high < 1.0
    assert [text.get_text() for text in ax.texts] == ["-5.0"]
    no_change = table.assign(method="no_change", value=0.0)
    ax = pl.benchmark(pd.concat([table, no_change]))  # what scores are compared with stays in sight
    assert -0.2 < ax.get_xlim()[0] < 0
    assert [text.get_text() for text in ax.texts] == ["-5.0"]


def test_a_score_a_little_beyond_the_others_is_drawn_where_it_is():
    columns = {"label": list("abcd"), "value": [0.1, 0.2, 0.2, 0.1]}
    same = {"output": "delta", "source": "c", "target": "s", "seed": 0}
    table = pd.DataFrame({**columns, **same, "metric": "energy_distance", "genes": "pcs"})
    far = table.assign(method="no_change", value=[4.6, 4.6, 4.6, 5.2])
    ax = pl.benchmark(
        pd.concat([table.assign(method="trvae"), far]), metric="energy_distance", genes="pcs"
    )
    assert ax.get_xlim()[1] > 5.2
    assert not ax.texts


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (Path("x.foo"), r"x\.foo ends in no format of figures; .*png"),
        (Path(), r"save is '\.', a folder"),
        (3, "save is 3; give True, an ending of the file's name, or a Path"),
    ],
)
def test_a_place_where_no_figure_can_be_is_refused(tmp_path, monkeypatch, save, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        pl.effect(genes(), save=save)
    assert list(tmp_path.iterdir()) == []


def test_arrows_are_at_the_end_of_the_axis():
    _, ax = plt.subplots()
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 10)
    arrows(ax, "x", np.array([[0.5, 1.0], [3.0, 2.0], [-4.0, 3.0]]), "k")
    assert [tuple(line.get_xydata()[0]) for line in ax.lines] == [(1.0, 2.0), (0.0, 3.0)]
    assert [line.get_marker() for line in ax.lines] == [">", "<"]
    assert [text.get_text() for text in ax.texts] == ["3.0", "-4.0"]


def test_the_range_without_outliers():
    assert within(np.array([1.0, 2, 3, 4, 100])) == (1.0, 4.0)
    assert within(np.array([1.0, np.nan, np.inf])) == (1.0, 1.0)
    assert within(np.array([0.0, 10.0])) == (0.0, 10.0)


@pytest.mark.parametrize(
    ("value", "expected"), [(-0.001, "0.00"), (-0.0, "0.00"), (-0.005001, "-0.01"), (1.239, "1.24")]
)
def test_numbers_have_no_sign_where_they_are_zero(value, expected):
    assert number(value) == expected
    assert number(float("nan")) == "nan"


@pytest.mark.filterwarnings("ignore:The 'warn' method")  # of adjustText 1.4
def test_a_plot_is_drawn_in_a_part_of_a_figure(tmp_path):
    part = plt.figure().subfigures(1, 2)[0]
    ax = pl.volcano(EFFECTS, ax=part.subplots(), save=tmp_path / "whole.png")
    assert {"g0", "g1", "g2"} <= {text.get_text() for text in ax.texts}
    assert (tmp_path / "whole.png").exists()


def test_a_figure_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"a\.png cannot be written"):
        pl.effect(genes(), save=tmp_path / "file" / "a.png")


def test_places_of_many_names_are_found_in_fewer_steps(monkeypatch):
    """300 steps took 40 s for 100 names; those of 1,000 genes asked for 315 GiB."""
    asked = []

    def place(texts, **options):
        asked.append((len(texts), len(options["x"]), options["iter_lim"]))
        return texts, []

    monkeypatch.setattr("adjustText.adjust_text", place)
    xy = np.random.default_rng(0).normal(size=(100, 2))
    for n in (10, 100):
        name_points(plt.subplots()[1], range(n), xy[:n], xy)
    xy = np.random.default_rng(0).normal(size=(20_000, 2))
    for n in (10, 1000):
        name_points(plt.subplots()[1], range(n), xy[:n], xy)
    assert asked == [(10, 100, 300), (100, 100, 30), (10, 2000, 300), (100, 200, 30)]


def test_names_that_are_longer_than_the_axes_are_left_out_without_a_warning():
    xy = np.arange(6.0).reshape(3, 2)
    ax = plt.subplots(figsize=(3, 3))[1]
    ax.plot(*xy.T)
    name_points(ax, ["a", "b" * 60, "c"], xy, xy)
    assert {text.get_text() for text in ax.texts} <= {"a", "c", ""}


@pytest.mark.parametrize("name", ["design", "next_experiments", "effect_heatmap", "grid"])
def test_the_grid_of_scanpy_is_not_drawn_over_heat_maps(name):
    """Its lines crossed the numbers of cells."""
    cells = pd.DataFrame([[3, 0]], index=["B"], columns=["a", "b"])
    ranked = {"label": ["B"], "condition": ["b"], "lowers": [1.0], "left": [0.0]}
    changes = pd.DataFrame({"real_change": [1.0, 2.0], "predicted_change": [1.0, 2.0]})
    draw = {
        "design": lambda: pl.design(cells),
        "next_experiments": lambda: pl.next_experiments(cells, pd.DataFrame(ranked)),
        "effect_heatmap": lambda: pl.effect_heatmap({"B": changes})[0],
        "grid": lambda: pl.grid(AnnData(np.ones((2, 2)))),
    }[name]
    with plt.rc_context({"axes.grid": True}):
        ax = draw()
    lines = [*ax.get_xgridlines(), *ax.get_ygridlines()]
    assert lines
    assert not any(line.get_visible() for line in lines)


def test_lines_and_names_are_seen_on_a_dark_background():
    """They were black on black, and names of genes white on a white halo."""
    with plt.style.context("dark_background"):
        ax = pl.effect(genes())
    assert {line.get_color() for line in ax.lines if len(line.get_xdata()) == 2} == {"white"}
    names = [text for text in ax.texts if text.get_text()]
    halo = {text.get_path_effects()[0]._gc["foreground"] for text in names}
    assert halo == {ax.get_facecolor()} == {(0.0, 0.0, 0.0, 1.0)}
