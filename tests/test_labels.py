"""Labels of cells that have none."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import trvae_sc
from trvae_sc import datasets
from trvae_sc.errors import InputError

NAMES = {"condition_key": "condition", "labels_key": "known"}


@pytest.fixture
def adata():
    adata = datasets.simulate(1200, 200, n_labels=4, seed=1)
    labels = adata.obs["cell_type"].astype(str)
    adata.obs["known"] = labels.where(adata.obs["condition"] == "control", "Unknown")
    return adata


def right(found, adata):
    unknown = (adata.obs["known"] == "Unknown") | adata.obs["known"].isna()
    return (found["predicted_label"] == adata.obs["cell_type"].astype(str))[unknown].mean()


def test_treated_cells_get_the_label_that_the_simulator_gave_them(adata):
    before = adata.copy()
    found = trvae_sc.predict_labels(adata, **NAMES)
    assert right(found, adata) > 0.95
    known = (adata.obs["condition"] == "control").to_numpy()
    assert (found["predicted_label"] == adata.obs["known"])[known].all()
    assert (found["label_probability"][known] == 1).all()
    assert found["label_probability"].between(0, 1).all()
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    assert found.index.equals(adata.obs_names)


def test_the_order_of_genes_plays_no_role():
    """Probabilities differed by up to 0.2, as those of approximate components."""
    adata = datasets.simulate(1200, 200, n_labels=4, seed=1, depth=400.0)
    adata.obs["known"] = adata.obs["cell_type"].astype(str)
    adata.obs.loc[adata.obs_names[::3], "known"] = "Unknown"
    found, other = (trvae_sc.predict_labels(x, **NAMES) for x in (adata, adata[:, ::-1].copy()))
    np.testing.assert_allclose(
        found["label_probability"], other["label_probability"], rtol=0, atol=0.01
    )


def test_a_condition_that_lacks_labels_does_not_mislead(adata):
    """Without two of four labels the means of conditions differ by more than what they do to cells."""
    lacking = (adata.obs["condition"] == "stimulated") & adata.obs["cell_type"].isin(
        ["type_0", "type_1"]
    )
    adata = adata[~lacking].copy()
    assert right(trvae_sc.predict_labels(adata, **NAMES), adata) > 0.9


def test_missing_values_and_named_levels_are_unknown(adata):
    expected = trvae_sc.predict_labels(adata, **NAMES)
    adata.obs["known"] = adata.obs["known"].where(adata.obs["known"] != "Unknown")
    pd.testing.assert_frame_equal(trvae_sc.predict_labels(adata, **NAMES), expected)
    adata.obs["known"] = adata.obs["known"].fillna("?").astype("category")
    named = trvae_sc.predict_labels(adata, unlabeled_category="?", **NAMES)
    pd.testing.assert_frame_equal(named, expected)


def test_a_model_is_trained_on_them(adata, fit):
    adata.obs = adata.obs.join(trvae_sc.predict_labels(adata, **NAMES))
    names = {"labels_key": "predicted_label", "total_counts_key": "total_counts"}
    model = fit(adata, setup=names)
    assert sorted(model.labels) == [f"type_{k}" for k in range(4)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels_key": None}, "labels_key="),
        ({"labels_key": "x"}, "No column 'x'"),
        ({"unlabeled_category": "none"}, "Every cell has a label"),
        ({"labels_key": "one"}, "at least 2 are needed"),
        ({"condition_key": None}, "condition_key="),
        ({"seed": -1}, "seed"),
        ({"n_top_genes": 1}, "at least 2"),
    ],
)
def test_what_cannot_be_labelled_is_refused(adata, change, words):
    adata.obs["one"] = np.where(adata.obs["condition"] == "control", "a", "Unknown")
    with pytest.raises(InputError, match=words):
        trvae_sc.predict_labels(adata, **{**NAMES, **change})


def test_registering_cells_of_unknown_label_says_what_to_do(adata, caplog):
    with caplog.at_level("WARNING", logger="trvae_sc"):
        trvae_sc.TRVAE.setup_anndata(adata, "condition", labels_key="known")
    assert "predict_labels" in caplog.text
    adata.obs.loc[adata.obs_names[:3], "known"] = np.nan
    with pytest.raises(InputError, match="predict_labels"):
        trvae_sc.TRVAE.setup_anndata(adata, "condition", labels_key="known")


@pytest.mark.parametrize("form", [np.asarray, np.asfortranarray])
def test_labels_do_not_depend_on_how_counts_are_stored(form, adata):
    expected = trvae_sc.predict_labels(adata, n_top_genes=50, **NAMES)
    adata.X = form(sparse.csr_matrix(adata.X).toarray())
    found = trvae_sc.predict_labels(adata, n_top_genes=50, **NAMES)
    pd.testing.assert_frame_equal(found, expected, check_exact=True)
