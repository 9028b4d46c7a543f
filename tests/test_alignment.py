"""Cells of another data set with the genes of a model."""

import anndata
import numpy as np
import pytest
from scipy import sparse

import trvae_sc
from trvae_sc.errors import InputError
from trvae_sc.evaluation import Keys, training_data


def test_genes_are_ordered_and_those_that_lack_get_their_mean_share(make_adata, fit):
    adata = make_adata(n_cells=240)
    model = fit(adata)
    other = make_adata(n_cells=60, seed=5)
    lacking = other[:, ["gene_9", *[f"gene_{j}" for j in range(30) if j not in (3, 9)]]].copy()
    found = trvae_sc.align_genes(lacking, model)
    assert found.var_names.tolist() == adata.var_names.tolist()
    share = np.concatenate(
        [
            (adata.X.toarray()[rows] / adata.obs["n_counts"].to_numpy()[rows, None])
            for rows in [np.arange(240)]
        ]
    ).mean(0)
    kept = np.arange(30) != 3
    np.testing.assert_array_equal(found.X.toarray()[:, kept], other.X.toarray()[:, kept])
    expected = other.obs["n_counts"].to_numpy() * share[3]
    assert np.abs(found.X.toarray()[:, 3] - expected).max() <= 0.5 + 1e-3
    report = found.uns["trvae_sc_alignment"]
    assert report["missing"].tolist() == ["gene_3"]
    assert report["share_missing"] == pytest.approx(1 / 30)
    assert report["n_left_out"] == 0
    predicted = model.predict(found, target="stimulated", source="control")
    assert any(
        "3.3% of the genes were not measured" in note for note in predicted.uns["trvae_sc"]["notes"]
    )


def test_genes_that_have_other_names_are_told_as_such(make_adata, fit):
    """Ensembl's in place of symbols: they were to be filled in, or another model to be trained."""
    model = fit(make_adata())
    other = make_adata()
    other.var_names = [f"ENSG{j}" for j in range(30)]
    predicted = model.predict(target="stimulated", source="control")
    calls = {
        "adata lacks 30 of the 30 genes of the model": lambda: model.predict(
            other, target="stimulated"
        ),
        "adata lacks 30 of the 30 genes of the model .100%.": lambda: trvae_sc.align_genes(
            other, model
        ),
        "truth lacks 30 of the 30 predicted genes": lambda: trvae_sc.compare(predicted, other),
    }
    for found, call in calls.items():
        with pytest.raises(InputError, match=f"{found}.*calls genes 'ENSG0', .*var_names = "):
            call()


def test_with_all_genes_values_are_what_they_were(make_adata, fit):
    model = fit(make_adata(n_cells=240))
    other = make_adata(n_cells=60, n_genes=40, seed=5)
    with pytest.raises(InputError, match="The model is a AnnData"):
        trvae_sc.align_genes(model.adata, other)
    shuffled = other[:, np.random.default_rng(0).permutation(40)].copy()
    found = trvae_sc.align_genes(shuffled, model)
    np.testing.assert_array_equal(found.X.toarray(), other.X.toarray()[:, :30])
    assert found.uns["trvae_sc_alignment"]["n_left_out"] == 10
    expected = model.predict(other[:, :30].copy(), target="stimulated", source="control")
    own = model.predict(found, target="stimulated", source="control")
    assert (own.X != expected.X).nnz == 0


def test_values_get_the_mean_of_training(make_adata, fit):
    adata = make_adata(n_cells=240, values="log")
    adata.layers["logs"] = adata.X
    adata.X = sparse.csr_matrix(adata.shape, dtype=np.float32)
    model = fit(adata, gene_likelihood="normal", setup={"layer": "logs"})
    found = trvae_sc.align_genes(adata[:, 1:].copy(), model)
    expected = adata.layers["logs"].toarray()[:, 0].mean()
    np.testing.assert_allclose(found.layers["logs"].toarray()[:, 0], expected, rtol=1e-4)
    whole = adata[:, 1:].copy()
    whole.layers["logs"] = (
        whole.layers["logs"].rint().astype(np.int64)
    )  # the mean was cut to a whole number
    found = trvae_sc.align_genes(whole, model)
    np.testing.assert_allclose(found.layers["logs"].toarray()[:, 0], expected, rtol=1e-4)


def test_too_many_missing_genes_are_refused_and_the_error_names_the_way(make_adata, fit):
    adata = make_adata(n_cells=240)
    model = fit(adata)
    with pytest.raises(InputError, match="At most 10% are filled in"):
        trvae_sc.align_genes(adata[:, 4:].copy(), model)
    assert trvae_sc.align_genes(adata[:, 4:].copy(), model, max_missing=0.2).n_vars == 30
    with pytest.raises(InputError, match="align_genes"):
        model.predict(adata[:, 1:].copy(), target="stimulated")
    with pytest.raises(InputError, match="max_missing is 2"):
        trvae_sc.align_genes(adata, model, max_missing=2)


def test_totals_over_more_genes_than_the_cells_have_are_not_made_up(make_adata, fit):
    """They were sums over a few genes, beside sums over all in training; predict refuses such cells."""
    adata = make_adata(n_cells=240)
    train, keys = training_data(adata, [], keys=Keys("condition", "cell_type"), n_top_genes=20)
    model = fit(train, setup={"total_counts_key": keys.total_counts_key})
    genes = model.get_var_names()
    found = trvae_sc.align_genes(adata[:, adata.var_names != genes[0]].copy(), model)
    total = adata.X.sum(1).A1 - adata[:, genes[0]].X.toarray().ravel()
    np.testing.assert_array_equal(found.obs[keys.total_counts_key], total)
    for few in (adata[:, genes].copy(), adata[:, genes[1:]].copy()):
        with pytest.raises(InputError, match="more genes than its own 20, which is all"):
            trvae_sc.align_genes(few, model)


def test_totals_are_not_below_what_was_filled_in(make_adata, fit):
    """Of cells whose total has nothing beyond the model's genes."""
    adata = make_adata(n_cells=240)
    adata.obs["n_counts"] = np.asarray(adata.X.sum(1), dtype=float).ravel()
    model = fit(adata)
    found = trvae_sc.align_genes(adata[:, 3:].copy(), model)
    held = np.asarray(found.X.sum(1), dtype=float).ravel()
    before = adata.obs["n_counts"].to_numpy()
    np.testing.assert_array_equal(found.obs["n_counts"], np.maximum(before, held))
    assert (held > before).any()
    assert model.predict(found, target="stimulated", source="control").n_obs == 120


@pytest.mark.parametrize("n_genes", [30, 29])
def test_genes_of_a_dense_file_come_in_any_order(n_genes, make_adata, fit, tmp_path):
    model = fit(make_adata(n_cells=240))
    other = make_adata(n_cells=60, seed=5)[:, np.random.default_rng(0).permutation(n_genes)].copy()
    expected = trvae_sc.align_genes(other, model)
    other.X = other.X.toarray()
    other.write_h5ad(tmp_path / "cells.h5ad")
    found = trvae_sc.align_genes(anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r"), model)
    np.testing.assert_array_equal(found.X, expected.X.toarray())


@pytest.mark.parametrize("n_genes", [30, 29])
def test_genes_of_dask_are_aligned(n_genes, make_adata, fit):
    dask = pytest.importorskip("dask.array")
    model = fit(make_adata(n_cells=240))
    other = make_adata(n_cells=60, seed=5)[:, np.random.default_rng(0).permutation(n_genes)].copy()
    expected = trvae_sc.align_genes(other, model)
    other.X = dask.from_array(other.X, chunks=(20, n_genes))
    found = trvae_sc.align_genes(other, model)
    np.testing.assert_array_equal(found.X.toarray(), expected.X.toarray())


@pytest.mark.parametrize("store", [sparse.csr_matrix, sparse.csr_matrix.toarray])
def test_counts_that_are_filled_in_may_be_larger_than_the_type_of_those_present(
    make_adata, fit, store
):
    """A mean of 500 beside counts in uint8 was filled in as 244."""
    adata = make_adata(n_cells=240)
    counts = adata.X.toarray()
    counts[:, 3] += 500.0
    adata.X = sparse.csr_matrix(counts)
    adata.obs["n_counts"] += 500.0
    model = fit(adata)
    lacking = adata[:, np.arange(30) != 3].copy()
    expected = trvae_sc.align_genes(lacking, model).X.toarray()
    assert expected[:, 3].max() > 255
    lacking.X = store(lacking.X.astype(np.uint8))
    found = trvae_sc.align_genes(lacking, model).X
    np.testing.assert_array_equal(found.toarray() if sparse.issparse(found) else found, expected)
