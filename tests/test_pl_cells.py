"""Plots of cells: what is drawn is what was given."""

import anndata
import matplotlib.colors as mcolors
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.axes import Axes
from scipy import sparse

from trvae_sc import pl
from trvae_sc.errors import InputError
from trvae_sc.pl import COLORS


@pytest.fixture(autouse=True)
def _no_figure_is_left():
    """Close what a test drew."""
    assert plt.get_fignums() == []
    yield
    plt.close("all")


def color_of(artist):
    return mcolors.to_hex(np.atleast_2d(artist)[0]).upper()


# -- expression_table ---------------------------------------------------------------------------------


def cells(values, genes=("a", "b", "c"), *, make=np.asarray, **obs):
    x = make(np.asarray(values, dtype=float))
    index = [f"cell_{i}" for i in range(x.shape[0])]
    return AnnData(x, obs=pd.DataFrame(obs, index=index), var=pd.DataFrame(index=list(genes)))


@pytest.mark.parametrize("make", [np.asarray, sparse.csr_matrix])
def test_expression_table_has_a_row_per_gene_and_cell(make):
    groups = {
        "control": cells([[1, 2, 3], [4, 5, 6]], make=make),
        "real": cells([[7, 8, 9]], make=make),
    }
    found = pl.expression_table(groups, ["c", "a"])
    expected = [
        ("c", "control", 3.0),
        ("c", "control", 6.0),
        ("c", "real", 9.0),
        ("a", "control", 1.0),
        ("a", "control", 4.0),
        ("a", "real", 7.0),
    ]
    pd.testing.assert_frame_equal(
        found, pd.DataFrame(expected, columns=["gene", "group", "value"]), check_dtype=False
    )
    one = pl.expression_table(groups, "b")
    assert one["value"].tolist() == [2, 5, 8]


@pytest.mark.parametrize("make", [np.asarray, sparse.csr_matrix])
def test_genes_of_a_file_come_in_any_order(make, tmp_path):
    cells([[1, 2, 3], [4, 5, 6]], make=make).write_h5ad(tmp_path / "cells.h5ad")
    in_file = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    found = pl.expression_table({"real": in_file}, ["c", "a"])
    assert found["value"].tolist() == [3.0, 6.0, 1.0, 4.0]


@pytest.mark.parametrize("make", [np.asarray, sparse.csr_matrix])
def test_expression_table_normalises_counts(make):
    x = np.array([[1, 2, 3], [0, 5, 5]])
    groups = {"control": cells(x, make=make, total=[12.0, 20.0])}
    found = pl.expression_table(groups, "b", target_sum=100)
    np.testing.assert_allclose(found["value"], np.log1p([200 / 6, 500 / 10]))
    found = pl.expression_table(groups, "b", target_sum=100, total_counts_key="total")
    np.testing.assert_allclose(found["value"], np.log1p([200 / 12, 500 / 20]))
    groups["control"].layers["counts"] = make(2.0 * x)
    assert pl.expression_table(groups, "b", layer="counts")["value"].tolist() == [4, 10]


PAIR = {"x": cells([[1, 2, 3]]), "y": cells([[1, 2]], genes="ab")}


@pytest.mark.parametrize(
    ("groups", "genes", "options", "error", "match"),
    [
        (PAIR, ["a", "c"], {}, InputError, r"Genes \['c'\] are not in var_names"),
        (PAIR, [], {}, ValueError, "at least one of each"),
        ({}, ["a"], {}, ValueError, "at least one of each"),
        (PAIR, "a", {"layer": "counts"}, InputError, "No layer 'counts'; there are"),
        (PAIR, "a", {"target_sum": 1e4}, ValueError, r"'x': 3, 'y': 2.*total_counts_key"),
        (PAIR, "a", {"target_sum": 1, "total_counts_key": "n"}, InputError, "No column 'n' in obs"),
        (
            {"control": cells([[1, 2, 3]]), "predicted": cells([[0.7, 1.1, 1.4]])},
            "a",
            {},
            InputError,
            r"Groups \['control'\] hold counts and \['predicted'\] other values",
        ),
        (
            {"x": cells([[0.7, 1.1, 1.4]])},
            "a",
            {"target_sum": 1e4},
            InputError,
            r"Groups \['x'\] hold other values than counts",
        ),
        ([PAIR["x"]], "a", {}, InputError, "groups is a list; name each"),
        (
            {"x": PAIR["x"], "y": PAIR["x"][:0]},
            "a",
            {},
            InputError,
            r"Groups \['y'\] have no cells",
        ),
    ],
)
def test_expression_table_refuses(groups, genes, options, error, match):
    with pytest.raises(error, match=match):
        pl.expression_table(groups, genes, **options)


def test_expression_table_of_scales_that_may_differ(trained):
    """A prediction says on which scale it is; log values of other cells do not."""
    predicted = trained.predict(target="stimulated", source="control", labels="B", output="delta")
    other = predicted.copy()
    del other.uns["trvae_sc"]
    gene = predicted.var_names[0]
    with pytest.warns(
        UserWarning, match=r"different scales \(control: not told; predicted: log\(1 "
    ):
        pl.expression_table({"control": other, "predicted": predicted}, gene)
    assert len(pl.expression_table({"one": predicted, "two": predicted}, [gene, gene])) == (
        2 * predicted.n_obs
    )


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_expression_table_of_genes_that_share_a_name():
    with pytest.raises(InputError, match="var_names_make_unique"):
        pl.expression_table({"x": cells([[1, 2, 3]], genes="aab")}, "a")


def test_expression_table_of_a_prediction(trained):
    predicted = trained.predict(target="stimulated", source="control", labels="B")
    kappa = predicted.uns["trvae_sc"]["kappa"]
    found = pl.expression_table(
        {"predicted": predicted}, "gene_3", target_sum=kappa, total_counts_key="n_counts"
    )
    counts = predicted[:, "gene_3"].X.toarray().ravel()
    expected = np.log1p(kappa * counts / predicted.obs["n_counts"])
    np.testing.assert_allclose(found["value"], expected, rtol=1e-6)


def test_axes_say_what_the_values_are():
    """Counts were drawn on an axis named log(1 + normalised count)."""
    adata = cells([[1, 2, 3], [4, 5, 6]])
    adata.layers["counts"] = adata.X.copy()
    unit = {
        "value in X": {},
        "value in layer 'counts'": {"layer": "counts"},
        "log(1 + normalised count)": {"target_sum": 1e4},
    }
    for name, options in unit.items():
        table = pl.expression_table({"x": adata}, "a", **options)
        assert pl.gene_distribution(table)[0].figure.get_supylabel() == name
    assert pl.gene_distribution(table, unit="au")[0].figure.get_supylabel() == "au"


def test_notebooks_show_a_figure_once():
    """They show what is open, and figures that are the value of a cell."""
    panels = [
        pl.gene_distribution(distribution()),
        pl.latent(pl.embedding(embedded(), "condition")),
    ]
    assert len(plt.get_fignums()) == 2
    assert all(isinstance(ax, Axes) for axes in panels for ax in axes)


# -- gene_distribution --------------------------------------------------------------------------------

GROUPS = ("control", "predicted", "real")


def distribution(genes=("a", "b"), groups=GROUPS, n=25):
    rng = np.random.default_rng(0)
    rows = [
        pd.DataFrame({"gene": gene, "group": group, "value": rng.gamma(1 + i, 1, n + i)})
        for gene in genes
        for i, group in enumerate(groups)
    ]
    return pd.concat(rows, ignore_index=True)


def of(table, gene, group):
    return table.query("gene == @gene and group == @group")["value"].to_numpy()


def test_violins_span_the_values_and_mark_the_mean():
    table = distribution()
    figure = pl.gene_distribution(table)[0].figure
    assert [ax.get_title() for ax in figure.axes] == ["a", "b"]
    for ax in figure.axes:
        *bodies, means = ax.collections
        colors = [COLORS["grey"], COLORS["blue"], COLORS["orange"]]
        for x, (group, body, color) in enumerate(zip(GROUPS, bodies, colors, strict=True)):
            values = of(table, ax.get_title(), group)
            outline = body.get_paths()[0].vertices
            assert outline[:, 1].min() == pytest.approx(values.min())
            assert outline[:, 1].max() == pytest.approx(values.max())
            assert outline[:, 0].mean() == pytest.approx(x, abs=0.05)
            assert color_of(body.get_facecolor()) == color
            np.testing.assert_allclose(means.get_offsets()[x], [x, values.mean()])
        labels = [t.get_text() for t in ax.get_xticklabels()]
        assert labels == ["control\n(25)", "predicted\n(26)", "real\n(27)"]
    assert figure.get_supylabel() == "value"
    assert figure.get_supxlabel() == "group (number of cells); point: mean"


def test_ecdf_is_the_share_of_cells_up_to_a_value():
    table = distribution()
    figure = pl.gene_distribution(table, kind="ecdf", unit="intensity")[0].figure
    for ax in figure.axes:
        for i, (line, group) in enumerate(zip(ax.lines, GROUPS, strict=True)):
            values = np.sort(of(table, ax.get_title(), group))
            x, y = line.get_data()
            np.testing.assert_allclose(x[1:], values)
            np.testing.assert_allclose(y[1:], np.arange(1, len(values) + 1) / len(values))
            assert line.get_label() == f"{group} ({25 + i} cells)"
    assert figure.get_supxlabel() == "intensity"
    assert figure.get_supylabel() == "share of cells"
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == [
        line.get_label() for line in figure.axes[0].lines
    ]


@pytest.mark.parametrize("kind", ["violin", "ecdf"])
@pytest.mark.parametrize("n_genes", [1, 3, 5])
def test_distributions_have_a_panel_per_gene_and_nothing_is_cut_off(kind, n_genes):
    figure = pl.gene_distribution(distribution("abcde"[:n_genes]), kind=kind, ncols=3)[0].figure
    assert [ax.get_title() for ax in figure.axes] == list("abcde"[:n_genes])
    figure.draw_without_rendering()
    box = figure.get_tightbbox()
    assert box.x0 >= -0.01
    assert box.y0 >= -0.01
    assert box.x1 <= figure.get_figwidth() + 0.01
    assert box.y1 <= figure.get_figheight() + 0.01


@pytest.mark.parametrize("kind", ["violin", "ecdf"])
@pytest.mark.parametrize("groups", [["a", "b", "c"], [1, 2, 3]])
def test_distribution_of_groups_that_are_categories_or_numbers(kind, groups):
    """A category without cells, and names that are no text, ended in an error."""
    table = distribution("x", groups)
    table["group"] = pd.Categorical(np.array(groups)[pd.factorize(table["group"])[0]])
    (ax,) = pl.gene_distribution(table[table["group"] != groups[1]], kind=kind)
    drawn = ax.get_xticklabels() if kind == "violin" else ax.figure.legends[0].get_texts()
    assert [text.get_text().split()[0] for text in drawn] == [str(groups[0]), str(groups[2])]


def test_distribution_of_values_that_are_all_zero():
    figure = pl.gene_distribution(distribution("a").assign(value=0.0))[0].figure
    np.testing.assert_array_equal(
        figure.axes[0].collections[-1].get_offsets(), [[0, 0], [1, 0], [2, 0]]
    )


def test_distribution_colours_of_other_groups():
    table = distribution("a", ("x", "real", "y"))
    bodies = pl.gene_distribution(table, palette={"x": "#000000"})[0].collections
    assert color_of(bodies[0].get_facecolor()) == "#000000"
    assert color_of(bodies[1].get_facecolor()) == COLORS["orange"]
    assert color_of(bodies[2].get_facecolor()) == COLORS["green"]
    with pytest.raises(InputError, match=r"palette names \['z'\]; the groups are \['x', 'real'"):
        pl.gene_distribution(table, palette={"z": "k"})


def test_distributions_refuse():
    table = distribution()
    with pytest.raises(InputError, match="Unknown kind 'box'; choose 'violin' or 'ecdf'"):
        pl.gene_distribution(table, kind="box")
    with pytest.raises(InputError, match=r"no columns \['group'\].*expression_table"):
        pl.gene_distribution(table.drop(columns="group"))
    table.loc[table["gene"] == "b", "value"] = np.nan
    with pytest.raises(InputError, match=r"\['b'\] have values that are not finite"):
        pl.gene_distribution(table)
    assert plt.get_fignums() == []


# -- embedding ----------------------------------------------------------------------------------------


def embedded(n=60, n_latent=5, n_labels=3):
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {
            "condition": pd.Categorical(np.array(["stim", "ctrl"])[np.arange(n) % 2]),
            "cell_type": [f"type_{i % n_labels:02d}" for i in range(n)],
        },
        index=[f"cell_{i}" for i in range(n)],
    )
    z = rng.normal(0, [3, 2, *[0.5] * (n_latent - 2)], (n, n_latent))
    return AnnData(np.zeros((n, 1)), obs=obs, obsm={"X_trvae": z, "X_flat": z[:, :2]})


def test_embedding_is_the_principal_components():
    adata = embedded()
    found = pl.embedding(adata, ["condition", "cell_type"])
    assert found.columns.tolist() == ["PC1", "PC2", "condition", "cell_type"]
    z = adata.obsm["X_trvae"] - adata.obsm["X_trvae"].mean(0)
    u, s, _ = np.linalg.svd(z, full_matrices=False)
    expected = u[:, :2] * s[:2]
    xy = found[["PC1", "PC2"]].to_numpy()
    np.testing.assert_allclose(np.abs(xy), np.abs(expected), atol=1e-10)
    assert found.index.equals(adata.obs_names)
    pd.testing.assert_series_equal(found["cell_type"], adata.obs["cell_type"])


def test_embedding_of_two_columns_is_taken_as_it_is():
    adata = embedded()
    found = pl.embedding(adata, "condition", basis="flat")
    assert found.columns.tolist() == ["FLAT1", "FLAT2", "condition"]
    np.testing.assert_array_equal(found.iloc[:, :2], adata.obsm["X_flat"])
    turned = pl.embedding(adata, "condition", basis="X_flat", method="pca")
    assert turned.columns[0] == "PC1"
    adata.obsm["X_frame"] = pd.DataFrame(adata.obsm["X_flat"], index=adata.obs_names)
    np.testing.assert_array_equal(
        pl.embedding(adata, "condition", basis="frame").iloc[:, :2], adata.obsm["X_flat"]
    )


def test_embedding_of_a_model(trained):
    adata = trained.adata.copy()
    adata.obsm["X_trvae"] = trained.get_latent_representation()
    adata.obsm["X_mmd"] = trained.get_mmd_representation()
    for basis in ("X_trvae", "mmd"):
        figure = pl.latent(pl.embedding(adata, ["condition", "cell_type"], basis=basis))[0].figure
        assert [ax.get_title() for ax in figure.axes] == ["condition", "cell_type"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_embedding_by_umap_keeps_clusters_apart():
    adata = embedded()
    adata.obsm["X_trvae"][::2] += 30
    found = pl.embedding(adata, "condition", method="umap", n_neighbors=5)
    assert found.columns.tolist() == ["UMAP1", "UMAP2", "condition"]
    xy = found.iloc[:, :2].to_numpy()
    distance = np.linalg.norm(xy[:, None] - xy[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (distance.argmin(1) % 2 == np.arange(len(xy)) % 2).all()
    assert adata.obsm.keys() == {"X_trvae", "X_flat"}


def test_embedding_refuses():
    adata = embedded()
    with pytest.raises(InputError, match=r"No columns \['label'\] in obs; there are \['condition'"):
        pl.embedding(adata, ["condition", "label"])
    with pytest.raises(InputError, match=r"No 'z' in obsm.*get_latent_representation"):
        pl.embedding(adata, "condition", basis="z")
    with pytest.raises(InputError, match="Unknown method 'tsne'; choose 'pca', 'umap' or None"):
        pl.embedding(adata, "condition", method="tsne")
    adata.obsm["X_line"] = adata.obsm["X_flat"][:, :1]
    with pytest.raises(InputError, match=r"obsm\['X_line'\] has shape \(60, 1\)"):
        pl.embedding(adata, "condition", basis="line")


# -- latent -------------------------------------------------------------------------------------------


def test_latent_draws_every_cell_in_the_colour_of_its_group():
    table = pl.embedding(embedded(), ["condition", "cell_type"])
    figure = pl.latent(table, palette={"ctrl": "#000000"})[0].figure
    assert [ax.get_title() for ax in figure.axes] == ["condition", "cell_type"]
    hues = list(COLORS.values())
    colors = {"ctrl": "#000000", "stim": hues[1]}
    colors |= {f"type_{i:02d}": hues[i] for i in range(3)}
    for ax in figure.axes:
        (points,) = ax.collections
        found = {
            tuple(xy): mcolors.to_hex(color).upper()
            for xy, color in zip(points.get_offsets(), points.get_facecolors(), strict=True)
        }
        expected = {
            (x, y): colors[group]
            for x, y, group in zip(table["PC1"], table["PC2"], table[ax.get_title()], strict=True)
        }
        assert found == expected
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("PC1", "PC2")
    texts = [[t.get_text() for t in ax.get_legend().get_texts()] for ax in figure.axes]
    assert texts[0] == ["ctrl (30)", "stim (30)"]
    assert texts[1] == ["type_00 (20)", "type_01 (20)", "type_02 (20)"]


def test_latent_of_more_groups_than_colours_changes_the_marker():
    table = pl.embedding(embedded(n_labels=10), "cell_type")
    ax = pl.latent(table)[0]
    circles, triangles = ax.collections
    assert len(circles.get_offsets()) == 42
    assert len(triangles.get_offsets()) == 18
    styles = {(h.get_marker(), h.get_color()) for h in ax.get_legend().legend_handles}
    assert len(styles) == 10
    many = pl.embedding(embedded(n_labels=30), "cell_type")
    with pytest.raises(InputError, match="'cell_type' has 30 groups; up to 28"):
        pl.latent(many)
    assert len(plt.get_fignums()) == 1


def test_latent_has_the_colours_of_scanpy():
    adata = embedded()
    adata.obs["condition"] = adata.obs["condition"].astype("category")
    adata.uns["condition_colors"] = ["#123456", "#abcdef"]
    table = pl.embedding(adata, ["condition", "cell_type"])
    for palette, second in ((None, "#abcdef"), ({"stim": "#000000"}, "#000000")):
        first, other = pl.latent(table, palette=palette)
        shown = [h.get_color() for h in first.get_legend().legend_handles]
        assert shown == ["#123456", second]
        assert other.get_legend().legend_handles[0].get_color() == COLORS["blue"]


def test_latent_draws_any_number_of_groups_that_have_colours():
    adata = embedded(n_labels=60)
    adata.obs["cell_type"] = adata.obs["cell_type"].astype("category")
    colors = [f"#{k:02x}8040" for k in range(60)]  # of scanpy, which has 102 and more
    adata.uns["cell_type_colors"] = colors
    table = pl.embedding(adata, "cell_type")
    ax = pl.latent(table)[0]
    assert [mcolors.to_hex(h.get_color()) for h in ax.get_legend().legend_handles] == colors
    del table.attrs["colors"]["cell_type"]["type_00"], table.attrs["colors"]["cell_type"]["type_28"]
    with pytest.raises(InputError, match="'cell_type' has 60 groups; up to 28"):
        pl.latent(table)  # these two would look alike


@pytest.mark.parametrize("colors", [["burlywood4", "grey50"], None, [1, 2], {"a": "red"}])
def test_latent_leaves_out_what_is_no_colour(colors):
    """As names of R, which matplotlib does not know."""
    adata = embedded()
    adata.obs["condition"] = adata.obs["condition"].astype("category")
    adata.uns["condition_colors"] = colors
    shown = pl.latent(pl.embedding(adata, "condition"))[0].get_legend().legend_handles
    assert shown[0].get_color() == COLORS["blue"]


def test_latent_of_levels_of_several_types():
    table = pl.embedding(embedded(), "condition")
    table["condition"] = pd.Series([1, "1 mM", 2.5] * 20, index=table.index, dtype=object)
    texts = pl.latent(table)[0].get_legend().get_texts()
    assert sorted(t.get_text() for t in texts) == ["1 (20)", "1 mM (20)", "2.5 (20)"]


def test_latent_of_cells_without_a_group():
    table = pl.embedding(embedded(), "condition")
    table.loc[table.index[:7], "condition"] = np.nan
    texts = pl.latent(table)[0].get_legend().get_texts()
    assert [t.get_text() for t in texts] == ["ctrl (27)", "stim (26)", "missing (7)"]
    table["condition"] = table["condition"].astype(object).replace("ctrl", "missing")
    ax = pl.latent(table)[0]  # a level of that name was counted and coloured as cells without one
    texts = ax.get_legend().get_texts()
    assert [t.get_text() for t in texts] == ["missing (27)", "stim (26)", "missing (7)"]
    colors = pd.Series(map(tuple, ax.collections[0].get_facecolors())).value_counts()
    assert sorted(colors) == [7, 26, 27]
    with pytest.raises(InputError, match="at least one column to colour by"):
        pl.latent(table[["PC1", "PC2"]])


def test_latent_changes_neither_data_nor_settings():
    table = pl.embedding(embedded(), "condition")
    before, settings = table.copy(), plt.rcParams.copy()
    pl.latent(table)
    pd.testing.assert_frame_equal(table, before)
    assert plt.rcParams == settings


def test_many_numbers_are_drawn_on_a_scale():
    adata = embedded()
    rng = np.random.default_rng(0)
    adata.obs["response"] = rng.normal(size=adata.n_obs).astype(np.float32)
    adata.obs.loc[adata.obs_names[:3], "response"] = np.nan
    ax, other = pl.latent(pl.embedding(adata, ["response", "condition"]))
    missing, points = ax.collections
    assert len(missing.get_offsets()) == 3
    drawn = dict(zip(map(tuple, points.get_offsets().data), points.get_array(), strict=True))
    table = pl.embedding(adata, "response").iloc[3:]
    for x, y, value in table.to_numpy():
        assert drawn[x, y] == pytest.approx(value)
    assert ax.get_legend() is None
    assert other.get_legend() is not None


def test_few_numbers_are_groups():
    adata = embedded()
    adata.obs["dose"] = np.resize(np.array([0.1, 1.0, 10.0], np.float32), adata.n_obs)
    (ax,) = pl.latent(pl.embedding(adata, "dose"))
    names = [text.get_text().split(" (")[0] for text in ax.get_legend().get_texts()]
    assert names == ["0.1", "1", "10"]


def test_a_column_named_twice_is_drawn_once():
    adata = embedded()
    found = pl.embedding(adata, ["condition", "condition"])
    pd.testing.assert_frame_equal(found, pl.embedding(adata, "condition"))
    twice = pd.concat([found, found[["condition"]]], axis=1)
    with pytest.raises(InputError, match="each once"):
        pl.latent(twice)


def test_cells_are_no_table_of_coordinates():
    with pytest.raises(InputError, match=r"got AnnData\. .*pl\.embedding\(adata, 'cell_type'\)"):
        pl.latent(embedded())
    with pytest.raises(InputError, match="Expected an AnnData, got DataFrame"):
        pl.embedding(pd.DataFrame({"a": [1]}), "a")
    with pytest.raises(InputError, match="Give two coordinates"):
        pl.latent(pd.DataFrame({"a": ["x"], "b": ["y"], "c": ["z"]}))
    with pytest.raises(InputError, match="size is 'a'"):
        pl.latent(pl.embedding(embedded(), "condition"), size="a")


def test_umap_of_three_cells_is_refused():
    with pytest.raises(InputError, match=r"3 cells; UMAP needs 4 or more.*method='pca'"):
        pl.embedding(embedded()[:3].copy(), "condition", method="umap")
    with pytest.raises(InputError, match="n_neighbors is 0; at least 2"):
        pl.embedding(embedded(), "condition", method="umap", n_neighbors=0)


def drawn_inside(figure):
    figure.canvas.draw()
    box, size = figure.get_tightbbox(), figure.get_size_inches()
    return (box.min >= 0).all() and (box.max <= size).all()


@pytest.mark.parametrize("kind", ["violin", "ecdf"])
def test_long_names_of_groups_are_inside_and_lines_can_be_told_apart(kind):
    """Of six lines two pairs had the same colour and dashes; names were cut off at the edge."""
    rng = np.random.default_rng(0)
    names = [f"CD16+ monocytes, lupus patient {i}, stimulated" for i in range(6)]
    groups = {name: cells(rng.poisson(3, (20, 3))) for name in names}
    axes = pl.gene_distribution(pl.expression_table(groups, ["a", "b"]), kind=kind)
    assert drawn_inside(axes[0].figure)
    if kind == "ecdf":
        looks = {(line.get_color(), line.get_linestyle()) for line in axes[0].lines}
        assert len(looks) == 6


def test_coordinates_that_are_missing_are_said():
    adata = cells(np.ones((5, 2)), genes="ab", k=list("aabbb"))
    adata.obsm["X_trvae"] = np.ones((5, 3))
    adata.obsm["X_trvae"][2, 1] = np.nan
    with pytest.raises(InputError, match=r"obsm\['X_trvae'\] is not finite in 1 cells"):
        pl.embedding(adata, "k")
    for color in (None, []):
        with pytest.raises(InputError, match=r"Name columns of obs to colour by, of \['k'\]"):
            pl.embedding(adata, color)
