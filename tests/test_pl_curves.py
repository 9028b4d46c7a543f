"""Plots of curves: what is drawn is what was given."""

from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse, stats

from trvae_sc import baselines, datasets, pl
from trvae_sc.errors import InputError
from trvae_sc.pl import COLORS


@pytest.fixture(autouse=True)
def _no_figure_is_left():
    """Close what a test drew."""
    assert plt.get_fignums() == []
    yield
    plt.close("all")


# -- dose_table ---------------------------------------------------------------------------------------


def dosed(n=60, **obs):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "dose": np.array(["0", "0.1", "10"])[np.arange(n) % 3],
            "cell_type": np.array(["B", "NK"])[np.arange(n) // 3 % 2],
            **obs,
        },
        index=[f"cell_{i}" for i in range(n)],
    )
    x = sparse.csr_matrix(rng.poisson(3.0, (n, 3)).astype(float))
    return AnnData(x, obs=frame.astype("category"), var=pd.DataFrame(index=list("abc")))


def test_dose_table_has_means_and_standard_errors():
    adata = dosed()
    found = pl.dose_table(adata, ["c", "a"], dose_key="dose", labels_key="cell_type")
    assert found["gene"].tolist() == ["c"] * 6 + ["a"] * 6
    assert found["dose"].tolist() == [0.0, 0.1, 10.0] * 4
    assert found["label"].tolist() == (["B"] * 3 + ["NK"] * 3) * 2
    for row in found.itertuples():
        keep = (adata.obs["dose"].astype(float) == row.dose) & (adata.obs["cell_type"] == row.label)
        values = adata[keep.to_numpy(), row.gene].X.toarray().ravel()
        assert row.n_cells == len(values) == 10
        assert row.mean == pytest.approx(values.mean())
        assert row.sem == pytest.approx(stats.sem(values))


def test_dose_table_without_labels_and_of_counts():
    adata = dosed(6)
    found = pl.dose_table(adata, "b", dose_key="dose", target_sum=100)
    assert found["label"].tolist() == ["all"] * 3
    x = adata.X.toarray()
    values = np.log1p(100 * x[:, 1] / x.sum(1))
    np.testing.assert_allclose(found["mean"], values.reshape(2, 3).mean(0))
    assert pl.dose_table(adata[:3], "b", dose_key="dose")["sem"].isna().all()


def test_dose_table_refuses():
    adata = dosed()
    with pytest.raises(InputError, match=r"No columns \['amount'\] in obs; there are \['dose'"):
        pl.dose_table(adata, "a", dose_key="amount")
    with pytest.raises(InputError, match=r"Genes \['z'\]"):
        pl.dose_table(adata, "z", dose_key="dose")
    with pytest.raises(InputError, match="var_names is empty"):
        pl.dose_table(adata, [], dose_key="dose")
    with pytest.raises(InputError, match=r"obs\['cell_type'\] has \['B', 'NK'\].* not numbers"):
        pl.dose_table(adata, "a", dose_key="cell_type")
    with pytest.raises(InputError, match=r"obs\['dose'\] has \['inf'\]"):
        pl.dose_table(dosed(dose="inf"), "a", dose_key="dose")
    adata.obs.loc["cell_1", "cell_type"] = np.nan  # was a label of its own, "nan"
    with pytest.raises(InputError, match=r"obs\['cell_type'\] is missing"):
        pl.dose_table(adata, "a", dose_key="dose", labels_key="cell_type")
    adata.X = np.log1p(adata.X)  # logarithms were taken of logarithms
    with pytest.raises(InputError, match="other values than counts, whose logarithm"):
        pl.dose_table(adata, "a", dose_key="dose", target_sum=1e4)


def test_a_gene_of_a_dose_table_may_be_named_twice_and_like_a_column():
    """Cells were counted twice, so that errors were too small."""
    adata = dosed()
    once = pl.dose_table(adata, "a", dose_key="dose")
    pd.testing.assert_frame_equal(pl.dose_table(adata, ["a", "a"], dose_key="dose"), once)
    adata.var_names = ["gene", "value", "dose"]
    found = pl.dose_table(adata, list(adata.var_names), dose_key="dose", labels_key="cell_type")
    own = found[found["gene"] == "gene"].groupby("dose")["mean"].mean()
    assert own.to_numpy() == pytest.approx(once["mean"].to_numpy())


# -- dose_response ------------------------------------------------------------------------------------

OBSERVED = pd.DataFrame(
    {
        "label": ["B", "B", "B", "NK", "NK"],
        "dose": [1.0, 0.0, 10.0, 0.0, 10.0],
        "mean": [2.0, 1.0, 3.0, 0.5, 0.7],
        "sem": [0.1, 0.2, 0.3, np.nan, 0.1],
    }
)
PREDICTED = pd.DataFrame(
    {"label": ["B"] * 3 + ["T"] * 2, "dose": [10.0, 0.0, 5.0, 0.0, 10.0], "mean": [3, 1, 2, 4, 5]}
)


def bars(container):
    """Return the lower and upper ends of error bars."""
    return [tuple(segment[:, 1]) for segment in container.lines[2][0].get_segments()]


def test_dose_response_draws_means_errors_and_curves():
    ax = pl.dose_response(OBSERVED, PREDICTED, gene="ISG15", dose_unit="nM")
    points = {c.get_label(): c for c in ax.containers}
    assert list(points) == ["B", "NK", "T"]
    np.testing.assert_allclose(points["B"].lines[0].get_xydata(), [[0, 1], [1, 2], [10, 3]])
    np.testing.assert_allclose(bars(points["B"]), [(0.8, 1.2), (1.9, 2.1), (2.7, 3.3)])
    np.testing.assert_allclose(bars(points["NK"]), [(0.5, 0.5), (0.6, 0.8)])  # NaN: no bar
    curves = {line.get_label(): line for line in ax.lines if "predicted" in str(line.get_label())}
    np.testing.assert_allclose(curves["B, predicted"].get_xydata(), [[0, 1], [5, 2], [10, 3]])
    np.testing.assert_allclose(curves["T, predicted"].get_xydata(), [[0, 4], [10, 5]])
    assert len(curves["NK, predicted"].get_xydata()) == 0
    for label, color in zip(["B", "NK", "T"], COLORS.values(), strict=False):
        assert points[label].lines[0].get_color() == color
        assert curves[f"{label}, predicted"].get_color() == color
    assert [t.get_text() for t in ax.get_legend().get_texts()] == [
        "B",
        "NK",
        "T",
        "observed mean\n\u00b1 standard error",
        "predicted mean",
    ]
    assert ax.get_title() == "ISG15"
    assert ax.get_xlabel() == "dose (nM)"
    assert ax.get_ylabel() == "mean value"
    assert ax.get_xscale() == "linear"


def test_dose_response_on_a_logarithmic_axis():
    ax = pl.dose_response(OBSERVED, log=True)
    assert ax.get_xscale() == "symlog"  # there is a dose of 0
    assert ax.xaxis.get_transform().linthresh == 1.0
    assert dict(
        zip(ax.get_xticks(), [t.get_text() for t in ax.get_xticklabels()], strict=True)
    ) == {
        0: "0",
        1: "1",
        10: "10",
    }
    assert len(ax.get_legend().get_texts()) == 3
    positive = OBSERVED[OBSERVED["dose"] > 0]
    assert pl.dose_response(positive, log=True).get_xscale() == "log"
    assert pl.dose_response(OBSERVED[OBSERVED["dose"] == 0], log=True).get_xscale() == "linear"


def test_dose_response_names_doses_where_there_is_room():
    """Names of doses that lie close to each other were written over one another."""
    doses = [0, 0.05, 0.1, 0.2, 0.5, 0.6, 100]
    observed = pd.DataFrame({"label": "B", "dose": doses, "mean": 1.0, "sem": 0.1})
    ax = pl.dose_response(observed, log=True)
    ax.figure.canvas.draw()
    assert ax.get_xticks().tolist() == doses
    named = [label for label in ax.get_xticklabels() if label.get_text()]
    assert [named[0].get_text(), named[-1].get_text()] == ["0", "100"]
    assert len(named) > 3
    boxes = [label.get_window_extent() for label in named]
    assert all(a.x1 < b.x0 for a, b in pairwise(boxes))


def test_doses_that_are_text_have_their_place():
    """Curves of them were drawn on an axis of names, in the order of letters."""
    as_text = PREDICTED.assign(dose=PREDICTED["dose"].map("{:g}".format))
    found, expected = (pl.dose_response(OBSERVED, t).lines for t in (as_text, PREDICTED))
    for line, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(line.get_xydata(), other.get_xydata())
    with pytest.raises(InputError, match=r"dose has \['high'\], which are not numbers"):
        pl.dose_response(OBSERVED, PREDICTED.assign(dose="high"))


def test_dose_response_of_one_gene_among_several():
    observed = pd.concat([OBSERVED.assign(gene="a"), OBSERVED.assign(gene="b", mean=9.0)])
    predicted = pd.concat([PREDICTED.assign(gene="a"), PREDICTED.assign(gene="b", mean=7.0)])
    ax = pl.dose_response(observed, predicted, gene="b")
    assert set(ax.containers[0].lines[0].get_ydata()) == {9.0}
    assert set(ax.lines[-1].get_ydata()) == {7.0}
    assert pl.dose_response(observed[observed["gene"] == "a"]).get_title() == "a"
    with pytest.raises(InputError, match=r"genes \['a', 'b'\]. Choose one"):
        pl.dose_response(observed)
    with pytest.raises(InputError, match=r"No gene 'c' in the table; there are \['a', 'b'\]"):
        pl.dose_response(observed, gene="c")


def test_dose_response_refuses():
    with pytest.raises(InputError, match=r"no columns \['sem'\].*dose_table"):
        pl.dose_response(OBSERVED.drop(columns="sem"))
    with pytest.raises(InputError, match=r"no columns \['mean'\].*predicted means"):
        pl.dose_response(OBSERVED, PREDICTED.drop(columns="mean"))
    with pytest.raises(InputError, match="Dose -1 is negative"):
        pl.dose_response(OBSERVED.assign(dose=-1.0), log=True)
    assert plt.get_fignums() == []


def test_points_of_every_label_differ():
    labels = [f"type_{i}" for i in range(10)]
    observed = pd.DataFrame({"label": labels, "dose": 1.0, "mean": np.arange(10.0), "sem": 0.1})
    for predicted in (None, observed):
        ax = pl.dose_response(observed, predicted)
        lines = [bars.lines[0] for bars in ax.containers]
        assert len({(line.get_color(), line.get_marker()) for line in lines}) == 10
        shown = [h for h, t in zip(*legend_of(ax), strict=True) if t in labels]
        assert [(h.get_color(), h.get_marker()) for h in shown] == [
            (line.get_color(), line.get_marker()) for line in lines
        ]


def legend_of(ax):
    legend = ax.get_legend()
    return legend.legend_handles, [text.get_text() for text in legend.get_texts()]


# -- interpolation ------------------------------------------------------------------------------------

MEANS = pd.DataFrame(
    {"up": [3.0, 1.0, 2.0], "flat": [5.0, 5.0, 9.0], "down": [0.0, 4.0, 2.0]}, index=[1.0, 0.0, 0.5]
)


def test_interpolation_table_takes_what_changes_from_end_to_end():
    found = pl.interpolation_table(MEANS, n_genes=2)
    expected = pd.DataFrame({"up": [1.0, 2.0, 3.0], "down": [4.0, 2.0, 0.0]}, index=[0.0, 0.5, 1.0])
    pd.testing.assert_frame_equal(found, expected)
    assert pl.interpolation_table(MEANS, n_genes=1).columns.tolist() == ["down"]
    assert pl.interpolation_table(MEANS).columns.tolist() == ["flat", "up", "down"]
    assert pl.interpolation_table(MEANS, var_names="down").columns.tolist() == ["down"]
    chosen = pl.interpolation_table(MEANS, var_names=["down", "flat", "down"])
    assert chosen.columns.tolist() == ["flat", "down"]


@pytest.mark.parametrize(
    ("means", "options", "error", "match"),
    [
        (MEANS.head(1), {}, ValueError, "two or more different numbers"),
        (MEANS.set_axis(list("abc")), {}, ValueError, r"\['a', 'b', 'c'\]; give two or more"),
        (MEANS.set_axis([0, 0, 1]), {}, ValueError, "different numbers"),
        (MEANS, {"var_names": ["up", "x"]}, InputError, r"No genes \['x'\] in the table of 3"),
        (MEANS, {"n_genes": 0}, ValueError, "n_genes is 0; at least 1"),
    ],
)
def test_interpolation_refuses(means, options, error, match):
    with pytest.raises(error, match=match):
        pl.interpolation(means, **options)
    assert plt.get_fignums() == []


def test_interpolation_draws_a_line_per_gene():
    ax = pl.interpolation(MEANS, n_genes=2, source="control", target="IFN")
    lines = {line.get_label(): line for line in ax.lines}
    np.testing.assert_allclose(lines["up"].get_xydata(), [[0, 1], [0.5, 2], [1, 3]])
    np.testing.assert_allclose(lines["down"].get_xydata(), [[0, 4], [0.5, 2], [1, 0]])
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["up", "down"]
    assert ax.get_xlabel() == "share of the way from control (0) to IFN (1)"


def test_lines_of_many_genes_can_be_told_apart():
    rng = np.random.default_rng(0)
    means = pd.DataFrame(rng.normal(size=(2, 20)), columns=[f"g{i}" for i in range(20)])
    ax = pl.interpolation(means, n_genes=20)
    assert len({(line.get_color(), line.get_linestyle()) for line in ax.lines}) == 20


@pytest.mark.parametrize(
    ("plot", "data"), [(pl.dose_response, OBSERVED), (pl.interpolation, MEANS)]
)
def test_curves_draw_on_the_axes_given_and_change_nothing(plot, data, only_draws_on_axes):
    only_draws_on_axes(plot, data)


def test_long_names_on_an_interpolation_are_inside():
    genes = [f"ENSG{i:011d}.12 (antibody-derived tag)" for i in range(3)]
    means = pd.DataFrame(np.arange(6.0).reshape(2, 3), index=[0.0, 1.0], columns=genes)
    target = "interferon beta, 100 ng/ml, 24 h"
    ax = pl.interpolation(means, source="medium alone", target=target)
    ax.figure.canvas.draw()
    box, size = ax.figure.get_tightbbox(), ax.figure.get_size_inches()
    assert (box.min >= 0).all()
    assert (box.max <= size).all()
    with pytest.raises(InputError, match="n_genes is -1; at least 1"):
        pl.interpolation(means, n_genes=-1)


def test_more_lines_than_can_be_told_apart_are_refused():
    """The 29th label and gene looked as the first."""
    labels = [f"type_{i}" for i in range(29)]
    observed = pd.DataFrame({"label": labels, "dose": 1.0, "mean": 1.0, "sem": 0.1})
    with pytest.raises(InputError, match="have 29 labels; up to 28 can be told apart"):
        pl.dose_response(observed)
    pl.dose_response(observed.iloc[:28])
    means = pd.DataFrame(np.eye(2, 29), [0.0, 1.0], labels)
    with pytest.raises(InputError, match="29 genes are to be drawn; up to 28"):
        pl.interpolation(means, n_genes=29)
    cells = pd.DataFrame({"gene": "a", "group": labels, "value": 1.0})
    with pytest.raises(InputError, match="29 groups; up to 16 can be told apart"):
        pl.gene_distribution(cells, kind="ecdf")
    pl.gene_distribution(cells.iloc[:16], kind="ecdf")


def test_means_on_different_scales_are_not_drawn_beside_each_other():
    """Means of counts, 580, stood beside those of log values, 6, and totals of all genes beside those of some."""
    adata = datasets.simulate(200, 40, n_labels=2, seed=0)
    adata.obs["dose"] = 0.0
    logs = baselines.predict(
        adata, "stimulated", output="delta", condition_key="condition", labels_key="cell_type"
    )
    kappa, gene = logs.uns["trvae_sc"]["kappa"], adata.var_names[0]
    other, some = logs.copy(), adata[:, :20].copy()
    del other.uns["trvae_sc"]

    def table(cells, **given):
        return pl.dose_table(cells, gene, dose_key="dose", **given)

    for counted in (table(logs), table(other), table(adata, target_sum=kappa)):
        with pytest.raises(InputError, match="means are of counts and predicted ones of"):
            pl.dose_response(table(adata), counted)
    with pytest.raises(InputError, match=r"means are of log\(1 \+ 10000 x share\) and predicted"):
        pl.dose_response(table(adata, target_sum=1e4), table(logs))
    with pytest.raises(InputError, match="are over 40 genes and those of predicted ones over 20"):
        pl.dose_response(table(adata, target_sum=1e4), table(some, target_sum=1e4))
    totals = {"target_sum": kappa, "total_counts_key": "total_counts"}
    for same in (table(logs), table(some, **totals), table(other), table(adata, target_sum=kappa)):
        pl.dose_response(table(adata, **totals), same)
    # logarithms of some genes are what they were
    pl.dose_response(table(adata, target_sum=kappa), table(logs[:, :20].copy()))
