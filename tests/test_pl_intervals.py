"""Plots of intervals: what is drawn is what was given."""

import matplotlib.colors as mcolors
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from trvae_sc import pl
from trvae_sc.errors import InputError
from trvae_sc.evaluation import Results
from trvae_sc.intervals import half_width
from trvae_sc.pl import COLORS


@pytest.fixture(autouse=True)
def _no_figure_is_left():
    """Close what a test drew."""
    assert plt.get_fignums() == []
    yield
    plt.close("all")


def intervals(change, half, real=None):
    change, half = np.asarray(change, dtype=float), np.asarray(half, dtype=float)
    table = pd.DataFrame(
        {
            "predicted_change": change,
            "change_lower": change - half,
            "change_upper": change + half,
        },
        index=[f"gene_{i}" for i in range(len(change))],
    )
    return table if real is None else table.assign(real_change=real)


@pytest.fixture
def results_of():
    """Return results of coverage by method, label and seed."""

    def make(scores, metric="interval_coverage"):
        records = [
            {
                "method": method,
                "holdout": {"label": label, "source": "control", "target": "stimulated"},
                "seed": seed,
                "scores": [[output, metric, "all", value] for output in ("counts", "delta")],
                "n_genes": 1200,
            }
            for (method, label, seed), value in scores.items()
        ]
        return Results({}, records)

    return make


# -- volcano ------------------------------------------------------------------------------------------

VAR = intervals([2.0, -1.0, 0.5, 0.0, -0.1, 0.4], [0.5, 0.8, 1.0, 0.2, 0.2, 0.1])


def test_volcano_table_counts_half_widths_from_zero():
    found = pl.volcano_table(VAR)
    np.testing.assert_allclose(found["half_widths"], [4, 1.25, 0.5, 0, 0.5, 4])
    assert found["excludes_zero"].tolist() == [True, True, False, False, False, True]
    pd.testing.assert_series_equal(found["predicted_change"], VAR["predicted_change"])


def test_intervals_exclude_zero_where_they_are_wider_than_no_half_width():
    rng = np.random.default_rng(0)
    found = pl.volcano_table(intervals(rng.normal(0, 1, 200), rng.gamma(1, 1, 200)))
    assert ((found["half_widths"] > 1) == found["excludes_zero"]).all()


def test_intervals_without_width():
    found = pl.volcano_table(intervals([0.0, 1.0, 1.0], [0.0, 0.0, 0.5]))
    assert found["half_widths"].tolist() == [0, np.inf, 2]
    assert found["excludes_zero"].tolist() == [False, True, True]
    rises = pl.volcano(intervals([0.0, 1.0, 1.0], [0.0, 0.0, 0.5])).collections[2]
    np.testing.assert_allclose(rises.get_offsets(), [[1, 2.1], [1, 2]])  # the first is at the top


def test_volcano_draws_genes_by_whether_zero_is_excluded():
    ax = pl.volcano(VAR)
    drawn = {c.get_label(): c for c in ax.collections}
    assert list(drawn) == ["interval includes zero (3)", "falls (1)", "rises (2)"]
    rest, falls, rises = drawn.values()
    np.testing.assert_allclose(rest.get_offsets(), [[0.5, 0.5], [0, 0], [-0.1, 0.5]])
    np.testing.assert_allclose(falls.get_offsets(), [[-1, 1.25]])
    np.testing.assert_allclose(rises.get_offsets(), [[2, 4], [0.4, 4]])
    assert mcolors.to_hex(falls.get_facecolor()[0]).upper() == COLORS["blue"]
    assert mcolors.to_hex(rises.get_facecolor()[0]).upper() == COLORS["red"]
    assert [line.get_ydata()[0] for line in ax.lines] == [1, 0]  # half-width, and no change
    assert {t.get_text() for t in ax.texts} == {"gene_0", "gene_1", "gene_5"}
    assert [t.get_text() for t in pl.volcano(VAR, n_labels=1).texts] == ["gene_0"]
    assert ax.get_title() == "3 of 6 intervals exclude zero"
    assert ax.get_xlabel() == "predicted change of mean log(1 + normalised count)"


@pytest.mark.parametrize("seed", range(3))
def test_volcano_names_overlap_neither_each_other_nor_the_legend(seed):
    rng = np.random.default_rng(seed)
    ax = pl.volcano(intervals(rng.normal(0, 1, 200), rng.gamma(2, 0.3, 200)))
    ax.figure.canvas.draw()
    boxes = [text.get_window_extent() for text in ax.texts] + [ax.get_legend().get_window_extent()]
    assert len(boxes) >= 4
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])


def test_volcano_of_nothing_that_excludes_zero():
    ax = pl.volcano(intervals([0.1, -0.1], [1.0, 1.0]))
    assert ax.get_title() == "0 of 2 intervals exclude zero"
    assert not ax.texts


def test_volcano_of_a_prediction(trained):
    predicted = trained.predict(target="stimulated", source="control", labels="B")
    ax = pl.volcano(predicted.var)
    assert sum(len(c.get_offsets()) for c in ax.collections) == predicted.n_vars


def test_volcano_refuses():
    with pytest.raises(InputError, match=r"no columns \['change_upper'\].*TRVAE.predict"):
        pl.volcano(VAR.drop(columns="change_upper"))
    with pytest.raises(InputError, match=r"6 of 6 genes have no interval.*three labels"):
        pl.volcano(VAR.assign(change_upper=np.nan))
    with pytest.raises(InputError, match="above change_upper in 1 genes"):
        pl.volcano(VAR.assign(change_upper=[-9.0, 9, 9, 9, 9, 9]))
    assert plt.get_fignums() == []


# -- calibration --------------------------------------------------------------------------------------


def test_calibration_of_the_stored_interval_alone():
    genes = intervals(np.zeros(10), np.ones(10), real=np.r_[np.zeros(7), [2.0, -2.0, 1.0]])
    found = pl.calibration_table(genes)
    assert found.to_dict("records") == [
        {"level": 0.9, "coverage": 0.8, "n_genes": 10, "scaled": False}
    ]


@pytest.mark.parametrize("n_labels", [3, 8])
def test_scaled_intervals_cover_what_they_claim_where_the_assumption_holds(n_labels):
    """Normal errors over scales that rest on as many squared normal residuals."""
    rng = np.random.default_rng(0)
    n, true = 40000, rng.gamma(2, 1, 40000)
    scale = true * np.sqrt(np.square(rng.normal(size=(n_labels, n))).mean(0))
    quantile = np.quantile(
        np.abs(rng.normal(size=n)) * true / scale, 0.8
    )  # of the level that is stored, by chance alone
    genes = intervals(np.zeros(n), quantile * scale, real=rng.normal(size=n) * true)
    found = pl.calibration_table(genes, level=0.8, n_labels=n_labels, levels=(0.2, 0.5, 0.95))
    assert found["level"].tolist() == [0.2, 0.5, 0.8, 0.95]
    assert found["scaled"].tolist() == [True, True, False, True]
    np.testing.assert_allclose(found["coverage"], found["level"], atol=0.012)


def test_scaling_is_by_the_quantiles_of_student():
    """Of one degree of freedom: t(0.75) = 1 and t(0.95) = 6.314 (any table)."""
    real = np.array([0.99, 1.01])
    genes = intervals([0.0, 0.0], [6.3138, 6.3138], real=real)
    found = pl.calibration_table(genes, n_labels=1, levels=(0.5,)).set_index("level")
    assert found.loc[0.5, "coverage"] == 0.5
    assert found.loc[0.9, "coverage"] == 1.0


def test_calibration_with_half_widths_of_each_level():
    rng = np.random.default_rng(0)
    shifts = rng.normal(0, 0.3, (7, 500))
    widths = {p: half_width(shifts[1:], np.full(6, 50.0), level=p) for p in (0.3, 0.6, 0.9)}
    genes = intervals(np.zeros(500), widths[0.9], real=shifts[0])
    found = pl.calibration_table(genes, half_widths={p: widths[p] for p in (0.6, 0.3)})
    expected = [(np.abs(shifts[0]) <= widths[p]).mean() for p in (0.3, 0.6, 0.9)]
    np.testing.assert_allclose(found["coverage"], expected, atol=1 / 500)
    assert found["level"].tolist() == [0.3, 0.6, 0.9]
    assert not found["scaled"].any()


GENES = intervals([0.0, 1.0], [1.0, 1.0], real=[0.5, 3.0])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"level": 90}, r"Levels \[90\] are not between 0 and 1"),
        ({"n_labels": 3, "levels": (0.5, 1.0)}, r"Levels \[1.0\]"),
        ({"n_labels": 3, "half_widths": {0.5: [1, 1]}}, "not both"),
        ({"n_labels": 0}, "n_labels is 0"),
        ({"half_widths": {0.5: [1.0]}}, r"half_widths\[0.5\] has shape \(1,\), and must be \(2,\)"),
        ({"half_widths": {0.5: [1.0, -1.0]}}, "negative"),
    ],
)
def test_calibration_table_refuses(options, match):
    with pytest.raises(InputError, match=match):
        pl.calibration_table(GENES, **options)


def test_calibration_needs_its_columns():
    with pytest.raises(InputError, match=r"\['real_change'\].*interval_table"):
        pl.calibration_table(GENES.drop(columns="real_change"))
    with pytest.raises(InputError, match=r"\['scaled'\].*calibration_table"):
        pl.calibration(pl.calibration_table(GENES).drop(columns="scaled"))
    assert plt.get_fignums() == []


def test_calibration_draws_coverage_by_level():
    table = pl.calibration_table(GENES, n_labels=3, levels=(0.2, 0.99))
    ax = pl.calibration(table)
    diagonal, line = ax.lines
    np.testing.assert_array_equal(diagonal.get_xydata(), [[0, 0], [1, 1]])
    np.testing.assert_allclose(line.get_xydata(), table[["level", "coverage"]])
    stored, approximated = ax.collections
    np.testing.assert_allclose(stored.get_offsets(), [[0.9, 0.5]])
    np.testing.assert_allclose(approximated.get_offsets(), [[0.2, 0.0], [0.99, 1.0]])
    assert mcolors.to_hex(stored.get_facecolor()[0]).upper() == COLORS["blue"]
    assert mcolors.to_hex(approximated.get_facecolor()[0]) == "#ffffff"
    assert ax.get_title() == "90% intervals cover 50% of 2 genes"
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["computed", "approximated"]
    assert pl.calibration(pl.calibration_table(GENES)).get_legend() is None


def test_calibration_draws_a_line_per_label():
    one = pl.calibration_table(GENES, n_labels=3)
    two = one.assign(coverage=one["level"])
    ax = pl.calibration(pd.concat([one.assign(label="NK"), two.assign(label="B cells")]))
    lines = {line.get_label(): line for line in ax.lines[1:]}
    assert list(lines) == ["NK", "B cells"]
    np.testing.assert_allclose(lines["B cells"].get_xydata(), two[["level", "level"]])
    texts = [t.get_text() for t in ax.get_legend().get_texts()]
    assert texts == ["NK", "B cells", "computed", "approximated"]
    ax.figure.canvas.draw()
    assert ax.figure.get_tightbbox().x0 >= 0
    assert ax.figure.get_tightbbox().x1 <= ax.figure.get_figwidth()


def test_calibration_of_results_is_the_coverage_of_every_task(results_of):
    scores = {("net", "T", 0): 0.5, ("net", "T", 1): 0.7, ("net", "B", 0): 0.95}
    ax = pl.calibration(results_of(scores))
    points = {
        line.get_label(): np.concatenate(
            [c.get_offsets() for c in ax.collections[2 * i : 2 * i + 2]]
        )
        for i, line in enumerate(ax.lines[1:])
    }
    assert {k: v.tolist() for k, v in points.items()} == {
        "B": [[0.9, 0.95]],
        "T": [[0.9, pytest.approx(0.6)]],
    }
    other = pl.calibration(results_of(scores | {("other", "B", 0): 0.2}))
    assert [line.get_label() for line in other.lines[1:]] == ["B, net", "B, other", "T, net"]
    one = pl.calibration(results_of({("net", "B", 0): 0.95}))
    assert one.get_title() == "90% intervals cover 95% of 1,200 genes"
    with pytest.raises(InputError, match=r"No method of the results has intervals.*'net'"):
        pl.calibration(results_of({("net", "B", 0): 0.95}, metric="effect_r2"))


def test_ten_labels_of_a_calibration_can_be_told_apart():
    parts = [pl.calibration_table(GENES).assign(label=f"label {i}") for i in range(10)]
    ax = pl.calibration(pd.concat(parts))
    looks = {
        (h.get_color(), h.get_marker(), h.get_linestyle()) for h in ax.get_legend().legend_handles
    }
    assert len({look[:2] for look in looks}) == 10
    drawn = [
        (mcolors.to_hex(c.get_edgecolor()[0]), len(c.get_paths()[0].vertices))
        for c in ax.collections[::2]
    ]
    assert len(set(drawn)) == 10


@pytest.mark.parametrize("name", ["volcano", "calibration"])
def test_plots_of_intervals_draw_on_the_axes_given_and_change_nothing(name, only_draws_on_axes):
    only_draws_on_axes(getattr(pl, name), VAR if name == "volcano" else pl.calibration_table(GENES))


@pytest.mark.parametrize("table", [5, None, "genes", {"predicted_change": [1.0]}])
def test_what_is_no_table_is_refused(table):
    with pytest.raises(InputError, match="Expected a table"):
        pl.volcano(table)


def test_long_names_are_placed_inside_without_a_word(caplog):
    rng = np.random.default_rng(0)
    table = intervals(rng.normal(0, 1, 200), rng.gamma(2, 0.3, 200))
    table.index = [f"ENSG{i:011d}_a_rather_long_name_of_46_letters" for i in range(200)]
    ax = pl.volcano(table)
    assert not caplog.text
    ax.figure.canvas.draw()
    frame = ax.get_window_extent()
    assert ax.texts
    for text in ax.texts:
        box = text.get_window_extent()
        assert frame.x0 <= box.x0 < box.x1 <= frame.x1
