"""Predicted cells in the hands of scanpy and anndata."""

import warnings

import anndata
import matplotlib.pyplot as plt
import numpy as np
import scanpy as sc

import trvae_sc


def test_ten_lines_of_scanpy_run_on_predicted_cells_without_a_warning_of_ours(fit, make_adata):
    """Concatenate, normalise, embed, test and draw: the response is found in the predicted cells."""
    adata = make_adata(n_cells=300, effect=1.5)
    model = fit(adata, train={"max_epochs": 10})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        predicted = model.predict(target="stimulated", labels="NK")
        control = adata[(adata.obs["condition"] == "control") & (adata.obs["cell_type"] == "NK")]
        both = anndata.concat({"real": control, "predicted": predicted}, label="origin")
        sc.pp.normalize_total(both, target_sum=1e3)
        sc.pp.log1p(both)
        sc.pp.pca(both, n_comps=5)
        sc.pp.neighbors(both)
        sc.tl.umap(both)
        sc.tl.rank_genes_groups(both, "condition", groups=["stimulated"], reference="control")
        found = sc.get.rank_genes_groups_df(both, "stimulated").set_index("names")["scores"]
        sc.pl.umap(both, color="condition", show=False)
        sc.pl.violin(both, "gene_1", groupby="condition", show=False)
        plt.close("all")
    own = [str(w.message) for w in caught if trvae_sc.__path__[0] in w.filename]
    assert own == []
    assert not any(c.startswith("_scvi") for c in both.obs)
    mean = [
        np.asarray(both[both.obs["origin"] == origin].X.mean(0)).ravel()
        for origin in ("real", "predicted")
    ]
    change = mean[1] - mean[0]
    assert np.corrcoef(found[both.var_names], change)[0, 1] > 0.8
