"""The same values have the same digest and marks in any form; other values, or places, have others."""

import anndata
import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse

from trvae_sc import identity


@pytest.fixture
def x():
    rng = np.random.default_rng(0)
    return rng.poisson(0.5, (5000, 12)).astype(np.float32)  # two blocks of rows


def forms(x, folder):
    AnnData(sparse.csr_matrix(x)).write_h5ad(folder / "sparse.h5ad")
    AnnData(x).write_h5ad(folder / "dense.h5ad")
    duplicated = sparse.csr_matrix(x)
    duplicated = sparse.csr_matrix(
        (
            np.repeat(duplicated.data / 2, 2),
            np.repeat(duplicated.indices, 2),
            2 * duplicated.indptr,
        ),
        shape=x.shape,
    )
    zeros = sparse.csr_matrix(x)
    zeros.data[:0] = 0
    yield from (
        x,
        x.astype(np.int8),
        x.astype(np.float64),
        x.astype(np.float16),
        np.asfortranarray(x),
        sparse.csr_matrix(x),
        sparse.csr_array(x),
        sparse.csc_matrix(x),
        sparse.csr_matrix(x)[:, ::-1][:, ::-1],
        duplicated,
        sparse.csr_matrix((np.ones(x.size), np.indices(x.shape).reshape(2, -1)), x.shape).multiply(
            x
        ),
        anndata.read_h5ad(folder / "sparse.h5ad", backed="r").X,
        anndata.read_h5ad(folder / "dense.h5ad", backed="r").X,
    )


def test_the_form_of_a_matrix_does_not_matter(x, tmp_path):
    expected, marks = identity.digest(x), identity.cell_marks(x)
    weights = np.random.default_rng(0).uniform(1, 2, 12)
    np.testing.assert_allclose(marks, [sum(w * v for w, v in zip(weights, row)) for row in x])  # noqa: B905
    for made in forms(x, tmp_path):
        form = made.tocsr() if sparse.issparse(made) and made.format == "coo" else made
        assert identity.digest(form) == expected
        assert identity.same_marks(identity.cell_marks(form), marks).all()


@pytest.mark.parametrize("row", [0, 1500, 4999])
def test_any_other_value_is_seen(x, row):
    other = x.copy()
    other[row, 3] += 1
    assert identity.digest(other) != identity.digest(x)
    same = identity.same_marks(identity.cell_marks(other), identity.cell_marks(x))
    assert np.flatnonzero(~same).tolist() == [row]
    moved = x.copy()
    moved[row, :2] = (2, 7)
    swapped = moved.copy()
    swapped[row, :2] = (7, 2)
    assert identity.digest(moved) != identity.digest(swapped)
    assert not identity.same_marks(*(identity.cell_marks(v)[row] for v in (moved, swapped)))


def test_rows_that_change_places_are_other_data(x):
    assert identity.digest(x[::-1]) != identity.digest(x)
    assert identity.digest(x[:, ::-1]) != identity.digest(x)
    assert identity.digest(x[:10].reshape(20, 6)) != identity.digest(x[:10])


def test_cells_among_others(x):
    known = np.sort(identity.cell_marks(x[:4000]))
    unknown = identity.cell_marks(x[4000:] + 0.5)
    assert identity.among(identity.cell_marks(sparse.csr_matrix(x[:50])), known).all()
    assert not identity.among(unknown, known).any()
    assert not identity.among(unknown, known[:0]).any()


def test_sums_of_values_of_either_sign_are_compared_by_their_size():
    x = np.random.default_rng(0).normal(size=(2000, 500)).astype(np.float32)
    marks = identity.cell_marks(x)
    assert identity.same_marks(identity.cell_marks(sparse.csr_matrix(x)), marks).all()
    assert identity.same_marks(identity.cell_marks(x[:, ::-1][:, ::-1]), marks).all()
    assert not identity.same_marks(identity.cell_marks(x * 1.001), marks).any()


def test_marks_are_those_of_single_precision(x):
    """Cells trained on in double precision were new in single precision."""
    double = np.log(x.astype(np.float64) + 0.1)
    single = identity.cell_marks(double.astype(np.float32))
    for form in (double, sparse.csr_matrix(double)):
        assert identity.same_marks(identity.cell_marks(form), single).all()
