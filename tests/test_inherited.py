"""What scvi-tools gives to TRVAE: each method documented as meant, adapted or refused."""

import inspect
import re

import numpy as np
import pandas as pd
import pytest
import torch
from scvi.model.base import BaseModelClass, RNASeqMixin, UnsupervisedTrainingMixin, VAEMixin

from trvae_sc import TRVAE, InputError
from trvae_sc.errors import NotTrainedError

#: Methods that are explained where TRVAE has its own.
EXPLAINED = {"train", "setup_anndata", "adata", "summary_string", "get_var_names"}
EXPLAINED |= {"register_manager", "load_registry", "view_setup_args"}


def rows():
    """Return the names in each row of the table of the class."""
    lines = inspect.getdoc(TRVAE).splitlines()
    first, last = (i for i, line in enumerate(lines) if line.startswith("=="))
    found, row = {}, None
    for line in lines[first + 1 : last]:
        row = line[:10].strip() or row
        found.setdefault(row, set()).update(re.findall(r"``(\w+)``", line))
    return {row: names - {"transform_condition"} for row, names in found.items()}


def home(name):
    """Return the class that an attribute of TRVAE comes from."""
    return next(c for c in TRVAE.__mro__ if name in vars(c))


def of_scvi():
    """Return the public names that scvi-tools gives to a model like TRVAE."""
    bases = (BaseModelClass, RNASeqMixin, UnsupervisedTrainingMixin, VAEMixin)
    return {n for c in bases for b in c.__mro__ if b is not object for n in vars(b) if n[0] != "_"}


def test_everything_inherited_is_in_the_table():
    table = rows()
    assert set(table) == {"as there", "adapted", "refused"}
    ours = {name for name in dir(TRVAE) if home(name).__module__.startswith("trvae_sc")}
    public = {name for name in dir(TRVAE) if not name.startswith("_")}
    assert public - ours == table["as there"]
    assert (of_scvi() & ours) - EXPLAINED <= table["adapted"] | table["refused"]
    assert table["adapted"] | table["refused"] <= ours


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("transfer_fields", [None], "genes are matched by name"),
        ("update_setup_method_args", [{}], "cannot be changed"),
        ("convert_legacy_save", ["a", "b"], "no files of a former format"),
        ("setup_annbatch", ["a"], "registers no condition"),
    ],
)
def test_what_would_be_wrong_is_refused(trained, name, arguments, message):
    assert name in rows()["refused"]
    with pytest.raises(NotImplementedError, match=message):
        getattr(trained, name)(*arguments)


def test_all_refused_methods_are_tried():
    assert len(rows()["refused"]) == 4


def test_an_autoencoder_has_no_posterior(fit):
    """Its marginal likelihood was half of what it decoded: the width of its posterior means nothing."""
    model = fit(preset="autoencoder")
    for name in (
        *("get_elbo", "get_marginal_ll", "get_aggregated_posterior"),
        "differential_abundance",
    ):
        with pytest.raises(NotImplementedError, match="needs a posterior"):
            getattr(model, name)()
    assert np.isfinite(float(model.get_reconstruction_error()["reconstruction_loss"]))


def test_a_network_that_does_not_see_conditions_decodes_none(fit):
    """It gave the profile under the cell's own condition without a word."""
    model = fit(preset="vae")
    with pytest.raises(InputError, match="does not see the condition"):
        model.get_normalized_expression(transform_condition="stimulated")
    assert model.get_normalized_expression().shape == (120, 30)


def test_genes_of_normalized_expression_are_known(fit):
    model = fit()
    torch.manual_seed(0)  # codes are drawn
    whole = model.get_normalized_expression()
    for genes in (["gene_3", "gene_1"], "gene_3"):
        torch.manual_seed(0)
        found = model.get_normalized_expression(gene_list=genes)
        names = ["gene_1", "gene_3"] if isinstance(genes, list) else ["gene_3"]
        assert found.equals(whole[names])
    with pytest.raises(InputError, match="gene_list has 'other', which the model does not know"):
        model.get_normalized_expression(gene_list=["gene_1", "other"])


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("get_normalized_expression", {"transform_conditon": "control"}, "Did you mean"),
        ("get_normalized_expression", {"library_size": "observed"}, "library_size is 'observed'"),
        ("get_normalized_expression", {"n_samples": 0}, "n_samples is 0"),
        ("get_normalized_expression", {"n_samples": 2, "n_samples_overall": 5}, "one of them"),
        ("get_normalized_expression", {"weights": "unifrm"}, "weights is 'unifrm'"),
        ("get_normalized_expression", {"batch_size": 0}, "batch_size is 0"),
        ("get_latent_representation", {"batch_size": 1.5}, "batch_size is 1.5"),
        ("posterior_predictive_sample", {"transform_batch": "b7"}, "Unknown batch 'b7'"),
        ("posterior_predictive_sample", {"gene_list": ["gene_1", "other"]}, "has 'other'"),
        ("get_likelihood_parameters", {"n_samples": 0}, "n_samples is 0"),
        ("get_feature_correlation_matrix", {"transform_batch": "b7"}, "Unknown batch 'b7'"),
        ("get_marginal_ll", {"n_mc_samples": 0}, "n_mc_samples is 0"),
        ("differential_abundance", {}, "sample_key="),
        ("differential_abundance", {"sample_key": "donor"}, "No column 'donor'"),
        ("differential_expression", {}, "groupby=, or choose cells"),
        ("differential_expression", {"groupby": "celltype"}, "No column 'celltype'"),
        ("differential_expression", {"groupby": "cell_type", "group1": "X"}, "Unknown group 'X'"),
        ("differential_expression", {"groupby": "cell_type", "group2": "X"}, "Unknown group 'X'"),
    ],
)
def test_wrong_arguments_are_told_apart(trained, method, arguments, message):
    """They were left out without a word, or ended in errors of pandas, torch and others."""
    with pytest.raises(InputError, match=message):
        getattr(trained, method)(**arguments)


def test_a_library_size_is_of_counts(fit):
    """Means of values were multiplied by it."""
    model = fit(gene_likelihood="normal")
    with pytest.raises(InputError, match="in the units of the data"):
        model.get_normalized_expression(library_size=1e4)
    with pytest.raises(NotImplementedError, match="not 'normal'"):
        model.get_normalized_expression(n_samples_overall=5, weights="importance")
    assert model.get_normalized_expression(n_samples_overall=5).shape == (5, 30)


def test_genes_of_samples_are_named_whole(trained):
    """A gene that is named by text was every gene whose name is part of it."""
    torch.manual_seed(0)
    whole = trained.posterior_predictive_sample().todense()
    torch.manual_seed(0)
    found = trained.posterior_predictive_sample(gene_list="gene_12").todense()
    assert np.array_equal(found, whole[:, [12]])


def test_differential_expression_neither_leaves_columns_nor_takes_any(fit, make_adata):
    """scvi-tools writes scaling factors to obs, and takes those that another model left."""
    adata = make_adata()
    model = fit(adata)
    adata.obs["_scvi_raw_norm_scaling"] = 7.0
    adata.obs["cell_type"] = adata.obs["cell_type"].cat.add_categories(["unused"])
    before = adata.obs.copy()
    found = model.differential_expression(groupby="cell_type", silent=True)
    assert adata.obs.equals(before)
    assert found["group1"].unique().tolist() == ["B", "NK", "T"]
    cells = adata[adata.obs["cell_type"] == "B"]
    total = cells.obs["n_counts"].to_numpy()[:, None]  # that of the whole cell, as in scale1
    share = pd.Series((1e4 * cells.X.toarray() / total).mean(0), adata.var_names)
    of_b = found[found["group1"] == "B"]
    assert of_b["raw_normalized_mean1"].to_numpy() == pytest.approx(share[of_b.index], rel=1e-4)
    with pytest.raises(IndexError):
        model.differential_expression(idx1=[500], silent=True)
    assert adata.obs.equals(before)


def test_a_registry_is_only_looked_at(fit, make_adata, capsys):
    """An unknown field was added to it: a model that was saved then could not be loaded."""
    model = fit(make_adata())
    with pytest.raises(InputError, match="No field 'celltype' was registered; there are"):
        model.get_state_registry("celltype")
    assert model.get_state_registry("labels").categorical_mapping.tolist() == ["B", "NK", "T"]
    model.view_registry()
    assert "cell_type" in capsys.readouterr().out
    model.save("saved")
    assert TRVAE.load("saved", make_adata()).is_trained


@pytest.mark.parametrize(
    "name",
    [
        *("get_normalized_expression", "posterior_predictive_sample", "get_likelihood_parameters"),
        *("get_feature_correlation_matrix", "get_latent_representation", "get_marginal_ll"),
    ],
)
def test_an_untrained_model_says_so(fit, name):
    """What it has not decoded yet was asked for its attributes."""
    with pytest.raises(NotTrainedError, match="call train"):
        getattr(fit(train=False), name)()


def test_data_without_cells_are_told(trained):
    with pytest.raises(InputError, match="adata has no cells"):
        trained.get_latent_representation(trained.adata[:0].copy())
