"""Predicted cells in the hands of scanpy, anndata, decoupler and pertpy.

The last two are no dependencies; to test with them, in an environment of their own:
``pip install -c constraints.txt -e '.[test]'`` and then ``pip install decoupler pertpy
'statsmodels<0.15'`` (pertpy 1.0 does not import with statsmodels 0.15).
"""

import warnings

import anndata
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import stats
from sklearn.metrics import pairwise_distances

import trvae_sc
from trvae_sc import TRVAE, InputError, evaluation, metrics


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


def test_a_modality_of_a_mudata_is_an_anndata(make_adata):
    """A MuData itself is refused, everywhere alike, with what to pass in its place."""
    mudata = pytest.importorskip("mudata")
    adata = make_adata()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mudata's, of its next version
        mdata = mudata.MuData({"rna": adata.copy(), "prot": make_adata(n_genes=5)})
        TRVAE.setup_anndata(mdata["rna"], "condition", labels_key="cell_type")
        model = TRVAE(mdata["rna"])
        model.train(2, accelerator="cpu", enable_progress_bar=False)
        mdata.update()
        predicted = model.predict(mdata["rna"], target="stimulated", labels="NK")
        assert predicted.obs["source_cell"].isin(mdata["rna"].obs_names).all()
        assert mudata.MuData({"rna": predicted})["rna"].n_obs == 20
    TRVAE.setup_anndata(adata, "condition", labels_key="cell_type")
    other = TRVAE(adata)
    other.train(2, accelerator="cpu", enable_progress_bar=False)
    expected = other.predict(target="stimulated", labels="NK")
    assert (predicted.X != expected.X).nnz == 0

    keys = evaluation.Keys("condition", "cell_type")
    model.save("model")
    for use in (
        lambda: TRVAE.setup_anndata(mdata, "condition"),
        lambda: TRVAE(mdata),
        lambda: TRVAE.load("model", mdata),
        lambda: TRVAE.load_query_data(mdata, model),
        lambda: model.predict(mdata, target="stimulated"),
        lambda: model.get_latent_representation(mdata),
        lambda: evaluation.holdouts(mdata, keys=keys),
        lambda: evaluation.benchmark(mdata, ["no_change"], [], keys=keys),
        lambda: trvae_sc.select(mdata, "stimulated", keys=keys),
    ):
        with pytest.raises(InputError, match=r"got MuData. Pass .*mdata\['rna'\]; .*'prot'"):
            use()


@pytest.fixture
def both(fit, make_adata):
    """Return control and predicted NK cells, log-normalised, with principal components."""
    adata = make_adata(n_cells=180)
    predicted = fit(adata).predict(target="stimulated", labels="NK")
    control = adata[(adata.obs["condition"] == "control") & (adata.obs["cell_type"] == "NK")]
    cells = anndata.concat([control, predicted])
    sc.pp.normalize_total(cells, target_sum=1e3)
    sc.pp.log1p(cells)
    sc.pp.pca(cells, n_comps=5)
    return cells


@pytest.mark.filterwarnings("ignore:Writing zarr v2 data")  # anndata's own default
def test_h5ad_and_zarr_keep_predicted_cells(fit, tmp_path):
    predicted = fit().predict(target="stimulated", labels="NK")
    predicted.write_h5ad(tmp_path / "cells.h5ad")
    predicted.write_zarr(tmp_path / "cells.zarr")
    for found in (
        anndata.read_h5ad(tmp_path / "cells.h5ad"),
        anndata.read_zarr(tmp_path / "cells.zarr"),
    ):
        assert (found.X != predicted.X).nnz == 0
        pd.testing.assert_frame_equal(found.obs, predicted.obs)
        pd.testing.assert_frame_equal(found.var, predicted.var)
        np.testing.assert_array_equal(found.obsm["X_trvae"], predicted.obsm["X_trvae"])
        assert found.uns["trvae_sc"]["target"] == "stimulated"


@pytest.mark.filterwarnings("ignore")  # of decoupler and what it imports
def test_decoupler_scores_activities_of_predicted_cells(both, decoupler):
    """A univariate linear model per cell: the t-value of the slope of expression on weights."""
    targets = both.var_names[:8]
    weights = np.array([1.0, 1.0, -1.0, 2.0, 0.5, -0.5, 1.0, 1.0])
    net = pd.DataFrame({"source": "TF", "target": targets, "weight": weights})
    decoupler.mt.ulm(both, net, tmin=5)
    found = both.obsm["score_ulm"]["TF"].to_numpy()
    on = pd.Series(weights, targets).reindex(both.var_names, fill_value=0.0)
    fits = [stats.linregress(on, row) for row in both.X.toarray()]
    np.testing.assert_allclose(found, [f.slope / f.stderr for f in fits], rtol=1e-3)


@pytest.mark.filterwarnings("ignore")  # of pertpy and what it imports
def test_energy_distance_is_that_of_pertpy_without_pairs_of_a_cell_with_itself(both):
    r"""pertpy's mean distance within a group counts the zeros of each cell to itself.

    With n cells theirs is :math:`(n - 1) / n` of ours; the distance between groups is the same.
    """
    why = "pip install pertpy 'statsmodels<0.15'; pertpy 1.0 does not import with statsmodels 0.15"
    pt = pytest.importorskip("pertpy", reason=why, exc_type=ImportError)
    theirs = pt.tl.Distance("edistance", obsm_key="X_pca").pairwise(both, groupby="condition")
    groups = [
        both.obsm["X_pca"][(both.obs["condition"] == name).to_numpy()].astype(float)
        for name in ("control", "stimulated")
    ]
    within = sum(pairwise_distances(x).mean() / (len(x) - 1) for x in groups)
    expected = theirs.loc["control", "stimulated"] - within
    assert metrics.energy_distance(*groups) == pytest.approx(expected, rel=1e-5)
    assert within > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of ray
def test_autotune_tries_four_settings_and_returns_the_best(make_adata, tmp_path):
    """pip install 'scvi-tools[autotune]' brings what scvi-tools imports for it."""
    for package in ("ray.tune", "hyperopt", "scib_metrics"):
        pytest.importorskip(package, exc_type=ImportError)
    from ray import tune
    from scvi.autotune import run_autotune

    adata = make_adata()
    trvae_sc.TRVAE.setup_anndata(
        adata, "condition", labels_key="cell_type", total_counts_key="n_counts"
    )
    found = run_autotune(
        trvae_sc.TRVAE,
        adata,
        metrics="elbo_validation",
        mode="min",
        search_space={
            "model_params": {
                "n_latent": tune.grid_search([2, 4]),
                "mmd_weight": tune.grid_search([0.0, 100.0]),
            },
            "train_params": {"max_epochs": 1, "check_val_every_n_epoch": 1},
        },
        num_samples=1,  # of each setting
        searcher="random",
        scheduler="fifo",
        resources={"cpu": 1},
        logging_dir=str(tmp_path),
        ignore_reinit_error=True,
    )
    scores = {
        tuple(trial.config["model_params"][k] for k in ("n_latent", "mmd_weight")): trial.metrics[
            "elbo_validation"
        ]
        for trial in found.result_grid
    }
    assert sorted(scores) == [(2, 0.0), (2, 100.0), (4, 0.0), (4, 100.0)]
    assert np.isfinite(list(scores.values())).all()
    best = found.result_grid.get_best_result("elbo_validation", "min")
    assert best.metrics["elbo_validation"] == min(scores.values())
