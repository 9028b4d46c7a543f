import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_digits

from trvae_sc import datasets

# -- digits ---------------------------------------------------------------------------------------


def test_digits_in_every_style_are_those_of_scikit_learn():
    source = load_digits()
    adata = datasets.digits(["normal", "inverted", "mirrored", "rotated"])
    assert adata.shape == (4 * 1797, 64)
    assert adata.X.dtype == np.float32
    assert list(adata.obs["style"].cat.categories) == ["normal", "inverted", "mirrored", "rotated"]
    assert list(adata.obs["digit"].cat.categories) == [str(digit) for digit in range(10)]
    assert list(adata.uns["image_shape"]) == [8, 8]
    assert adata.obs_names.is_unique
    for style, expected in (
        ("normal", source.images),
        ("inverted", 16 - source.images),
        ("mirrored", source.images[:, :, ::-1]),
        ("rotated", np.stack([np.rot90(image) for image in source.images])),
    ):
        cells = adata[adata.obs["style"] == style]
        np.testing.assert_array_equal(cells.X.reshape(-1, 8, 8), expected)
        np.testing.assert_array_equal(cells.obs["digit"].astype(int), source.target)
        np.testing.assert_array_equal(cells.obs["image"], np.arange(1797))
    pixel = adata.var.loc["pixel_2_5"]
    assert (pixel["row"], pixel["column"]) == (2, 5)
    normal = adata[adata.obs["style"] == "normal", "pixel_2_5"].X[:, 0]
    np.testing.assert_array_equal(normal, source.images[:, 2, 5])


@pytest.mark.parametrize("style", ["thick", "outlined"])
def test_digits_thick_and_outlined_are_drawn_image_by_image(style):
    adata = datasets.digits([style])
    for i in (0, 7, 1796):
        image = load_digits().images[i]
        if style == "thick":
            padded = np.pad(image, ((0, 1), (0, 1)))
            expected = np.max([padded[r : r + 8, c : c + 8] for r in (0, 1) for c in (0, 1)], 0)
        else:
            around = [np.roll(np.pad(image, 1), s, a)[1:-1, 1:-1] for s in (-1, 1) for a in (0, 1)]
            expected = np.max([image, *around], axis=0) - image
        np.testing.assert_array_equal(adata.X[i].reshape(8, 8), expected)
    assert adata.X.min() == 0.0
    assert adata.X.max() == 16.0


@pytest.mark.parametrize(
    ("style", "share"),
    [
        ("thick", 0.26),
        ("inverted", 0.28),
        ("rotated", 0.36),
        ("outlined", 0.69),
        ("mirrored", 1.10),
    ],
)
def test_digits_leave_a_mean_shift_the_share_that_the_docstring_states(style, share):
    adata = datasets.digits(["normal", style])
    means = adata.to_df().groupby([adata.obs["style"], adata.obs["digit"]], observed=True).mean()
    change = (means.loc[style] - means.loc["normal"]).to_numpy()
    others = (change.sum(0) - change) / 9
    assert ((change - others) ** 2).sum() / (change**2).sum() == pytest.approx(share, abs=0.005)


def test_digits_split_between_styles_share_no_image():
    adata = datasets.digits(["normal", "thick", "mirrored"], split=True, seed=3)
    assert sorted(adata.obs["image"]) == list(range(1797))
    sizes = adata.obs.groupby(["digit", "style"], observed=True).size().unstack()
    assert (sizes.max(axis=1) - sizes.min(axis=1)).max() <= 1
    whole = datasets.digits(["normal", "thick", "mirrored"])
    np.testing.assert_array_equal(adata.X, whole[adata.obs_names].X)
    again = datasets.digits(["normal", "thick", "mirrored"], split=True, seed=3)
    other = datasets.digits(["normal", "thick", "mirrored"], split=True, seed=4)
    assert list(adata.obs_names) == list(again.obs_names) != list(other.obs_names)


@pytest.mark.parametrize("styles", [["bold"], [], ["thick", "thick"]])
def test_digits_name_the_styles_there_are(styles):
    with pytest.raises(ValueError, match=r"styles are \[.*name one or more of \['normal', 'thick'"):
        datasets.digits(styles)


# -- load -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mine", "mine.h5ad"])
def test_load_reads_by_name_from_the_folder(make_adata, tmp_path, monkeypatch, name):
    folder = tmp_path / "data"
    folder.mkdir()
    expected = make_adata()
    expected.write_h5ad(folder / "mine.h5ad")
    make_adata(seed=1).write_h5ad("mine.h5ad")  # the folder comes first
    monkeypatch.setenv("TRVAE_SC_DATA", str(folder))
    adata = datasets.load(name)
    assert (adata.X != expected.X).nnz == 0
    pd.testing.assert_frame_equal(adata.obs, expected.obs)


@pytest.mark.parametrize("name", ["sub/mine.v2", "sub/mine.v2.h5ad"])
@pytest.mark.parametrize("folder", ["", "elsewhere"])
def test_load_reads_a_path(make_adata, tmp_path, monkeypatch, name, folder):
    monkeypatch.setenv("TRVAE_SC_DATA", folder)
    (tmp_path / "sub").mkdir()
    make_adata().write_h5ad(tmp_path / "sub" / "mine.v2.h5ad")
    for path in (name, tmp_path / name):
        assert datasets.load(path).shape == (120, 30)


def test_load_says_what_is_there(make_adata, tmp_path, monkeypatch):
    for name in ("b", "a"):
        make_adata().write_h5ad(tmp_path / f"{name}.h5ad")
    monkeypatch.delenv("TRVAE_SC_DATA", raising=False)
    with pytest.raises(
        FileNotFoundError, match=r"No file 'c\.h5ad'\. .* variable TRVAE_SC_DATA to"
    ):
        datasets.load("c")
    monkeypatch.setenv("TRVAE_SC_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"No 'c\.h5ad' in .* \['a\.h5ad', 'b\.h5ad'\]\."):
        datasets.load("c")
    monkeypatch.setenv("TRVAE_SC_DATA", str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match=r"TRVAE_SC_DATA is '.*none', which does not exist"):
        datasets.load("c")
    monkeypatch.setenv("TRVAE_SC_DATA", str(tmp_path / "a.h5ad"))
    with pytest.raises(
        NotADirectoryError, match=r"'.*a\.h5ad', which is no folder\. Name a folder"
    ):
        datasets.load("c")
