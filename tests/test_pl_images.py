"""Grids, traversals and manifolds: which pixel or gene is drawn where."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from trvae_sc import family, pl
from trvae_sc.datasets import digits
from trvae_sc.errors import InputError


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def images(n=6):
    """Return images of 2 x 3 pixels, each of one value: its number."""
    var = pd.DataFrame({"row": [0, 0, 0, 1, 1, 1], "column": [0, 1, 2] * 2})
    var.index = [f"pixel_{i}" for i in range(6)]
    obs = pd.DataFrame({"style": list("bbaabc")[:n], "step": [0.0, 0.5, 0.0, 0.5, 1.0, 0.0][:n]})
    obs.index = obs.index.astype(str)
    x = np.repeat(np.arange(n, dtype=float)[:, None], 6, 1)
    return AnnData(x, obs=obs, var=var)


def tile(ax, row, column):
    """Return the pixels of a tile of images of 2 x 3 pixels."""
    return np.asarray(ax.images[0].get_array())[3 * row : 3 * row + 2, 4 * column : 4 * column + 3]


def test_images_are_laid_out_by_row_and_column():
    ax = pl.grid(images(), rows="style", columns="step")
    expected = {(0, 0): 0, (0, 1): 1, (1, 0): 2, (1, 1): 3, (0, 2): 4, (2, 0): 5}
    for at, value in expected.items():
        assert (tile(ax, *at) == value).all()
    assert np.isnan(np.ma.filled(tile(ax, 2, 2), np.nan)).all()
    assert [t.get_text() for t in ax.get_yticklabels()] == ["b", "a", "c"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0", "0.5", "1"]


def test_images_without_rows_follow_each_other():
    ax = pl.grid(images(), n_columns=4)
    assert (tile(ax, 0, 3) == 3).all()
    assert (tile(ax, 1, 1) == 5).all()


def many(n, levels="a"):
    """Return images of 2 x 3 pixels, each of its number; one level after the other, in turn."""
    obs = pd.DataFrame({"style": [levels[i % len(levels)] for i in range(n)]})
    obs.index = obs.index.astype(str)
    return AnnData(np.repeat(np.arange(n, dtype=float)[:, None], 6, 1), obs=obs, var=images().var)


def test_named_columns_are_one_row_however_many():
    path = many(11)
    path.obs["fraction"] = np.linspace(0, 1, 11)
    ax = pl.grid(path, columns="fraction")
    assert ax.images[0].get_array().shape == (2, 11 * 4 - 1)
    assert all((tile(ax, 0, i) == i).all() for i in range(11))
    assert len(ax.get_xticklabels()) == 11


def test_images_of_the_same_row_and_column_are_stacked():
    for rows in (None, "style"):
        ax = pl.grid(many(5, "ab"), rows=rows, columns="style")
        if rows is None:
            found = {(0, 0): 0, (0, 1): 1, (1, 0): 2, (1, 1): 3, (2, 0): 4}
        else:
            found = {(0, 0): 0, (1, 0): 2, (2, 0): 4, (3, 1): 1, (4, 1): 3}
            np.testing.assert_allclose(ax.get_yticks(), [3.5, 11])
        for at, value in found.items():
            assert (tile(ax, *at) == value).all()


def test_long_rows_are_wrapped_and_named_once():
    ax = pl.grid(many(50), rows="style")
    assert ax.images[0].get_array().shape == (5 * 3 - 1, 10 * 4 - 1)
    assert (tile(ax, 4, 9) == 49).all()
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a"]
    np.testing.assert_allclose(ax.get_yticks(), [6.5])
    width, height = ax.figure.get_size_inches()
    assert width < 3 * height
    ax = pl.grid(many(24, "ba"), rows="style", n_columns=8)  # 12 each: as 6 and 6
    assert (tile(ax, 1, 0) == 12).all()
    assert (tile(ax, 2, 0) == 1).all()
    assert [t.get_text() for t in ax.get_yticklabels()] == ["b", "a"]
    np.testing.assert_allclose(ax.get_yticks(), [2, 8])
    missing = many(4, "ab")
    missing.obs["style"] = pd.Categorical(["a", None, "a", None])
    assert len(pl.grid(missing, rows="style").get_yticklabels()) == 2


def test_a_digit_is_drawn_the_right_way_up():
    adata = digits(["normal"])[:1].copy()
    ax = pl.grid(adata)
    np.testing.assert_array_equal(ax.images[0].get_array(), adata.X.reshape(8, 8))


def test_expression_is_a_heat_map_of_the_genes_that_vary_most(make_adata):
    adata = make_adata(values="log")
    ax = pl.grid(adata, rows="cell_type", n_genes=3)
    x = pd.DataFrame(adata.X.toarray(), columns=adata.var_names)
    means = x.groupby(adata.obs["cell_type"].astype(str).to_numpy(), sort=False).mean()
    top = means.var().sort_values(ascending=False).index[:3]
    assert [t.get_text() for t in ax.get_xticklabels()] == top.tolist()
    np.testing.assert_allclose(ax.images[0].get_array(), means[top], rtol=1e-5)
    named = pl.grid(adata[:4], var_names=["gene_2"])
    np.testing.assert_allclose(named.images[0].get_array(), x[["gene_2"]][:4], rtol=1e-5)


@pytest.mark.parametrize("output", ["mean", "sample"])
@pytest.mark.parametrize("likelihood", ["nb", "normal"])
def test_axes_name_the_scale_that_is_recorded(likelihood, output, fit):
    made = fit(gene_likelihood=likelihood)
    cells = made.generate("control", 9, output=output)
    log = "log(1 + normalised count)"
    expected = {"nb": {"mean": log, "sample": "count"}[output], "normal": "value"}[likelihood]
    cells.obs["fraction"], cells.obs["value"] = np.arange(9) / 8, np.arange(9)
    cells.var["range"] = 1.0
    cells.uns["trvae_sc"]["dimension"] = 0
    cells.obsm["X_trvae"] = family.lattice(3)

    def units(cells, **unit):
        return [
            pl.grid(cells, **unit).images[0].colorbar.ax.get_ylabel(),
            pl.interpolation(cells, **unit).get_ylabel().removeprefix("mean "),
            pl.traversal(cells, **unit).get_ylabel(),
            pl.manifold(cells, "gene_1", **unit).images[0].colorbar.ax.get_ylabel(),
        ]

    assert units(cells) == [expected] * 3 + [f"gene_1, {expected}"]
    means = pl.interpolation_means(cells)
    assert pl.interpolation(means).get_ylabel() == f"mean {expected}"
    assert units(cells, unit="mm") == ["mm"] * 3 + ["gene_1, mm"]
    cells.uns["trvae_sc"].pop("scale")
    assert units(cells) == ["value"] * 3 + ["gene_1, value"]
    assert pl.interpolation(pd.DataFrame(means.to_numpy())).get_ylabel() == f"mean {log}"


def test_a_traversal_draws_the_genes_that_respond_most(trained):
    walk = family.traverse(trained, trained.active_dims[0], condition="control", steps=4)
    ax = pl.traversal(walk, n_genes=2)
    top = walk.var["range"].sort_values(ascending=False).index[:2]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == top.tolist()
    for line, gene in zip(ax.lines, top, strict=True):
        np.testing.assert_allclose(line.get_ydata(), walk[:, gene].X.ravel())
    assert ax.get_xlabel() == f"latent dimension {trained.active_dims[0]}"


def test_a_traversal_of_images_is_a_row_of_them():
    walk = images(3)
    walk.obs["value"] = [-1.0, 0.0, 1.0]
    walk.var["range"] = 1.0
    walk.uns["trvae_sc"] = {"dimension": 2}
    ax = pl.traversal(walk)
    assert (tile(ax, 0, 2) == 2).all()
    assert ax.get_title() == "latent dimension 2"


def test_a_manifold_draws_codes_at_their_places():
    z = family.lattice(3)
    cells = AnnData(z.copy(), obsm={"X_trvae": z})
    cells.var_names = ["first", "second"]
    for i, gene in enumerate(cells.var_names):
        ax = pl.manifold(cells, gene)
        drawn = np.asarray(ax.images[0].get_array())
        end = np.unique(z)
        expected = np.tile(end, (3, 1)) if i == 0 else np.tile(end[:, None], 3)
        np.testing.assert_allclose(drawn, expected)
    shown = images(4)
    shown.obsm["X_trvae"] = np.array([[0, 0], [1, 0], [0, 1], [1, 1]], dtype=float)
    ax = pl.manifold(shown)
    assert (tile(ax, 1, 0) == 0).all()  # the first dimension to the right, the second upwards
    assert (tile(ax, 1, 1) == 1).all()
    assert (tile(ax, 0, 0) == 2).all()


def test_plots_of_codes_refuse(make_adata):
    adata = make_adata(4)
    with pytest.raises(InputError, match=r"No columns \['style'\] in obs"):
        pl.grid(adata, rows="style")
    with pytest.raises(InputError, match="n_columns is 0; at least 1"):
        pl.grid(images(), n_columns=0)
    with pytest.raises(InputError, match="no cells to draw"):
        pl.grid(adata[:0])
    with pytest.raises(InputError, match=r"No genes \['x'\]"):
        pl.grid(adata, var_names=["x"])
    with pytest.raises(InputError, match="give the output of family"):
        pl.traversal(adata)
    with pytest.raises(InputError, match="no lattice of two dimensions"):
        pl.manifold(adata)
    cells = AnnData(np.ones((4, 1)), obsm={"X_trvae": family.lattice(2)})
    with pytest.raises(InputError, match="No gene 'x'"):
        pl.manifold(cells, "x")


def test_images_are_drawn_on_the_axes_given():
    _, axes = plt.subplots(1, 2)
    assert pl.grid(images(), ax=axes[1]) is axes[1]
    assert not axes[0].has_data()


def test_rows_of_numbers_that_are_alike_are_rows_of_their_own():
    """Doses 100 and 104 were one row, their mean, called 1e+02."""
    obs = pd.DataFrame({"dose": [104.0, 100.0, 104.0]}, index=list("abc"))
    ax = pl.grid(AnnData(np.array([[1.0, 0.0], [9.0, 2.0], [3.0, 1.0]]), obs=obs), rows="dose")
    assert [t.get_text() for t in ax.get_yticklabels()] == ["104", "100"]
    np.testing.assert_allclose(ax.images[0].get_array(), [[2.0, 0.5], [9.0, 2.0]])
