"""What scvi-tools gives to TRVAE: each method documented as meant, adapted or refused."""

import inspect
import re

import numpy as np
import pytest
import torch
from scvi.model.base import BaseModelClass, RNASeqMixin, UnsupervisedTrainingMixin, VAEMixin

from trvae_sc import TRVAE, InputError

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
