"""Summed counts of donors, and pydeseq2 on them."""

import warnings

import anndata
import numpy as np
import pandas as pd
import pytest

import trvae_sc
from trvae_sc.datasets import simulate
from trvae_sc.errors import InputError

BY = ["cell_type", "donor", "condition"]


def cells():
    return simulate(2400, 40, n_labels=2, n_donors=4, donor_sd=0.1, effect_size=2.0, seed=2)


def test_counts_are_summed():
    adata = cells()
    bulk = trvae_sc.pseudobulk(adata, BY)
    assert bulk.shape == (2 * 4 * 2, 40)
    assert bulk.obs_names[0] == "type_0_donor_0_control"
    own = (adata.obs[BY] == ["type_1", "donor_2", "stimulated"]).all(axis=1).to_numpy()
    row = bulk["type_1_donor_2_stimulated"]
    assert row.X.ravel().tolist() == adata.X[own].sum(0).astype(int).tolist()[0]
    assert row.obs["n_cells"].item() == own.sum()
    assert bulk.X.dtype.kind == "i"
    assert bulk.X.sum() == adata.X.sum()
    fewer = trvae_sc.pseudobulk(adata, "cell_type")
    assert fewer.obs_names.tolist() == ["type_0", "type_1"]


def test_small_groups_are_left_out_and_bad_input_refused(make_adata, caplog):
    adata = cells()
    few = adata[:300].copy()
    with caplog.at_level("INFO", logger="trvae_sc"):
        assert (trvae_sc.pseudobulk(few, BY, min_cells=20).obs["n_cells"] >= 20).all()
    n_cells = few.obs[BY].value_counts()
    small = sorted("_".join(row) for row in n_cells.index[n_cells < 20])
    assert f"fewer than 20 cells: {small[0]!r}" in caplog.text  # donors were gone without a word
    with pytest.raises(InputError, match="has 5000 cells; the largest"):
        trvae_sc.pseudobulk(adata, BY, min_cells=5000)
    with pytest.raises(InputError, match="No column 'x'"):
        trvae_sc.pseudobulk(adata, ["x"])
    with pytest.raises(InputError, match=r"adata\.X holds no counts .*output='counts'"):
        trvae_sc.pseudobulk(make_adata(values="log"), ["cell_type"])
    with pytest.raises(InputError, match="names no column"):
        trvae_sc.pseudobulk(adata, [])
    with pytest.raises(InputError, match="No layer 'raw'"):
        trvae_sc.pseudobulk(adata, BY, layer="raw")
    for by, message in (
        (None, "names no column"),
        (3, "by text, not by 3"),
        ([BY], "by text, not"),
    ):
        with pytest.raises(InputError, match=message):
            trvae_sc.pseudobulk(adata, by)


def test_levels_keep_their_order():
    """pydeseq2 takes the first level for the reference: by name, it was the treatment."""
    adata = cells()
    names = {"control": "untreated", "stimulated": "drug"}
    adata.obs["condition"] = pd.Categorical(
        adata.obs["condition"].map(names), categories=["unused", "untreated", "drug"]
    )
    adata.obs["number"] = np.array([2, 10])[np.arange(adata.n_obs) % 2]
    adata.obs["stage"] = pd.Categorical(
        np.array(["late", "early"])[np.arange(adata.n_obs) % 2], ["early", "late"], ordered=True
    )
    bulk = trvae_sc.pseudobulk(adata, ["condition", "number"])
    assert bulk.obs["condition"].cat.categories.tolist() == ["untreated", "drug"]
    assert bulk.obs_names.tolist() == ["untreated_2", "untreated_10", "drug_2", "drug_10"]
    for name in bulk.obs_names:
        condition, number = name.split("_")
        own = (adata.obs["condition"] == condition) & (adata.obs["number"] == int(number))
        assert bulk[name].X.sum() == adata[own.to_numpy()].X.sum()
        assert bulk[name].obs["n_cells"].item() == own.sum()
    stages = trvae_sc.pseudobulk(adata, "stage").obs["stage"]
    assert stages.tolist() == ["early", "late"]
    assert stages.cat.ordered


def test_categories_without_cells_may_read_as_others_do():
    adata = cells()
    number = adata.obs["donor"].str[-1].astype(float)
    adata.obs["donor"] = pd.Categorical(number, categories=[0.0, 1.0, 2.0, 3.0, "3"])
    bulk = trvae_sc.pseudobulk(adata, "donor")
    assert bulk.obs_names.tolist() == ["0", "1", "2", "3"]
    assert bulk.obs["n_cells"].tolist() == number.value_counts().sort_index().tolist()


def test_names_of_combinations_are_unique():
    adata = cells()
    first = np.arange(adata.n_obs) % 2 == 0
    adata.obs["a"], adata.obs["b"] = np.where(first, "x_y", "x"), np.where(first, "z", "y_z")
    bulk = trvae_sc.pseudobulk(adata, ["a", "b", "a"])
    assert bulk.obs_names.is_unique
    assert bulk.obs[["a", "b"]].to_numpy().tolist() == [["x", "y_z"], ["x_y", "z"]]
    assert bulk.X.sum(1).tolist() == [adata[~first].X.sum(), adata[first].X.sum()]
    adata.obs["n_cells"] = adata.obs["a"]
    with pytest.raises(InputError, match="by names 'n_cells'"):
        trvae_sc.pseudobulk(adata, ["n_cells"])


def test_predicted_counts_beside_measured_ones(trained):
    controls = trained.adata[trained.adata.obs["condition"] == "control"].copy()
    predicted = trained.predict(controls, target="stimulated")
    both = anndata.concat([controls, predicted])
    bulk = trvae_sc.pseudobulk(both, ["cell_type", "batch", "condition"], min_cells=2)
    assert set(bulk.obs["condition"]) == {"control", "stimulated"}
    assert bulk.n_obs == 12


def test_draws_of_a_cell_are_no_cells(trained):
    """Three draws of each of n cells were summed as 3 n cells."""
    drawn = trained.predict(target="stimulated", n_samples=3)
    with pytest.raises(InputError, match=r"3 draws of each predicted cell.*obs\['sample'\] == 0"):
        trvae_sc.pseudobulk(drawn, "cell_type", min_cells=1)
    one = drawn[drawn.obs["sample"] == 0]
    bulk = trvae_sc.pseudobulk(one, "cell_type", min_cells=1)
    assert bulk.obs["n_cells"].sum() == one.n_obs == drawn.n_obs // 3
    each = trvae_sc.pseudobulk(drawn, ["cell_type", "sample"], min_cells=1)
    assert each.X.sum() == drawn.X.sum()


def test_pydeseq2_takes_it_and_finds_the_genes_that_respond():
    pydeseq2 = pytest.importorskip("pydeseq2.dds", exc_type=ImportError)
    stats = pytest.importorskip("pydeseq2.ds", exc_type=ImportError)
    adata = cells()
    bulk = trvae_sc.pseudobulk(adata, BY)
    one = bulk[bulk.obs["cell_type"] == "type_0"].copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one_process = {"n_cpus": 1, "quiet": True}
        dds = pydeseq2.DeseqDataSet(adata=one, design="~condition", **one_process)
        dds.deseq2()
        contrast = ["condition", "stimulated", "control"]
        found = stats.DeseqStats(dds, contrast=contrast, **one_process)
        found.summary()
    truth = adata.varm["true_share"]
    fold = np.log2(truth["type_0|stimulated"] / truth["type_0|control"])
    assert np.corrcoef(found.results_df["log2FoldChange"], fold)[0, 1] > 0.95
