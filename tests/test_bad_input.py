"""Input that cannot work: a clear error before training, and nothing changed or half-written."""

import errno
import logging
import warnings
from pathlib import Path

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
import scvi
from anndata import AnnData
from scipy import sparse

from trvae_sc import TRVAE, evaluation, family, select
from trvae_sc.checks import check_values, looks_like_counts
from trvae_sc.errors import InputError
from trvae_sc.family import CycleGAN

QUICK = {"max_epochs": 2, "accelerator": "cpu", "devices": 1, "enable_progress_bar": False}


@pytest.fixture(scope="module")
def reference(fit):
    """Return a trained model whose conditions are strings, its labels and totals registered."""
    return fit()


def snapshot(adata):
    x = adata.X.toarray() if hasattr(adata.X, "toarray") else np.array(adata.X)
    return adata.obs.copy(), adata.var.copy(), sorted(adata.uns), sorted(adata.obsm), x


def assert_unchanged(adata, before):
    obs, var, uns, obsm, x = before
    now = snapshot(adata)
    pd.testing.assert_frame_equal(now[0], obs)
    pd.testing.assert_frame_equal(now[1], var)
    assert now[2:4] == (uns, obsm)
    np.testing.assert_array_equal(now[4], x)  # NaN equals NaN


def setup(adata, condition_key="condition", **keys):
    TRVAE.setup_anndata(adata, condition_key, **{"labels_key": "cell_type", **keys})


def refuse_setup(adata, message, **keys):
    """Check that a registration raises and writes nothing."""
    before = snapshot(adata)
    with pytest.raises(InputError, match=message):
        setup(adata, **keys)
    assert_unchanged(adata, before)


def same(a, b):
    return abs(a.X - b.X).max() == 0 and a.var.equals(b.var)


# -- values -----------------------------------------------------------------------------------------


def with_value(adata, value):
    x = adata.to_df().to_numpy(copy=True)
    x[3, 4] = value
    adata.X = x
    return adata


BAD_VALUES = {
    -1.0: r"holds negative values \(smallest -1\); count likelihoods need raw counts\..*layer=, .*raw\.to_adata",
    0.5: r"holds fractional values \(largest \d+\); count likelihoods need raw counts\..*layer=, .*raw\.to_adata",
    np.nan: r"holds 1 NaN or infinite values in cells from row 0 on\. Replace them",
    np.inf: r"holds 1 NaN or infinite values in cells from row 0 on\. Replace them",
}


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
@pytest.mark.parametrize("value", BAD_VALUES)
def test_values_that_are_no_counts_are_refused(make_adata, value, likelihood):
    adata = with_value(make_adata(), value)
    setup(adata)
    before = snapshot(adata)
    with pytest.raises(InputError, match=r"^adata\.X " + BAD_VALUES[value]):
        TRVAE(adata, gene_likelihood=likelihood)
    assert_unchanged(adata, before)


@pytest.mark.parametrize("value", BAD_VALUES)
def test_values_that_are_no_counts_are_refused_in_other_cells_too(reference, make_adata, value):
    adata = with_value(make_adata(), value)
    before = snapshot(adata)
    with pytest.raises(InputError, match=BAD_VALUES[value]):
        reference.predict(adata, target="stimulated")
    assert_unchanged(adata, before)


def test_the_layer_with_bad_values_is_named(make_adata):
    adata = make_adata()
    adata.layers["raw"] = -adata.X
    setup(adata, layer="raw")
    with pytest.raises(InputError, match=r"adata\.layers\['raw'\] holds negative values"):
        TRVAE(adata)


@pytest.mark.parametrize("likelihood", ["normal", "mse"])
def test_other_likelihoods_take_any_finite_value(make_adata, likelihood):
    adata = with_value(make_adata(values="log"), -1.5)
    setup(adata)
    TRVAE(adata, gene_likelihood=likelihood, n_hidden=(8,), n_latent=2)
    setup(with_value(adata, np.nan))
    with pytest.raises(InputError, match="holds 1 NaN or infinite values"):
        TRVAE(adata, gene_likelihood=likelihood)


def test_log_values_given_as_counts_are_recognised(make_adata):
    adata = make_adata(values="log")
    setup(adata)
    with pytest.raises(InputError, match=r"largest \d\.\d+\), as log-normalised data do; count"):
        TRVAE(adata)
    corrected = with_value(make_adata(), 0.5)  # one fraction does not make a logarithm
    setup(corrected)
    with pytest.raises(InputError, match=r"fractional values \(largest \d+\); count"):
        TRVAE(corrected)


def test_cells_without_counts_are_refused_unless_their_total_is_known(make_adata):
    adata = make_adata()
    x = adata.X.toarray()
    x[[3, 7]] = 0
    adata.X = x
    setup(adata)
    before = snapshot(adata)
    with pytest.raises(InputError, match=r"2 or more cells have no counts \(rows 3, 7\)\. Remove"):
        TRVAE(adata)
    assert_unchanged(adata, before)
    setup(adata, total_counts_key="n_counts")  # their counts are in genes that were not chosen
    assert TRVAE(adata, n_hidden=(8,), n_latent=2).module.has_total


def test_totals_below_the_sum_are_refused(make_adata):
    adata = make_adata()
    adata.obs["n_counts"] = 1.0
    setup(adata, total_counts_key="n_counts")
    with pytest.raises(
        InputError, match=r"row 0 \(1\) are below the sum .* genes \(\d+\)\. Totals"
    ):
        TRVAE(adata)
    adata.obs["n_counts"] = (
        0.0  # such as those of another kind of genes: cells were said to be empty
    )
    setup(adata, total_counts_key="n_counts")
    with pytest.raises(InputError, match=r"row 0 \(0\) are below the sum"):
        TRVAE(adata)


def test_no_values_at_all_are_refused(make_adata):
    adata = make_adata()
    adata.layers["counts"] = adata.X
    adata.X = None
    with pytest.raises(InputError, match=r"adata\.X is None\. Name one of the layers \['counts'\]"):
        setup(adata)
    assert not any(name.startswith("_scvi") for name in [*adata.obs, *adata.uns])


# -- columns ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys",
    [
        {"condition_key": "x"},
        {"labels_key": "x"},
        {"batch_key": "x"},
        {"total_counts_key": "x"},
        {"categorical_covariate_keys": ["sex", "x"]},
        {"continuous_covariate_keys": ["x"]},
    ],
    ids=lambda keys: next(iter(keys)),
)
def test_a_missing_column_is_named_with_those_there(make_adata, keys):
    adata = make_adata()
    refuse_setup(adata, r"No column 'x' in adata\.obs; there are \['condition', ", **keys)


def test_a_missing_layer_is_named_with_those_there(make_adata):
    adata = make_adata()
    adata.layers["raw"] = adata.X
    refuse_setup(adata, r"No layer 'x' in adata\.layers; there are \['raw'\]", layer="x")


def without_values(adata, key, cells=("cell_3", "cell_4")):
    adata.obs[key] = adata.obs[key].mask(adata.obs_names.isin(cells))
    return adata


KEYS = {
    "labels_key": "cell_type",
    "batch_key": "batch",
    "total_counts_key": "n_counts",
    "categorical_covariate_keys": ["sex"],
    "continuous_covariate_keys": ["age"],
}


@pytest.mark.parametrize("key", ["condition", "cell_type", "batch", "n_counts", "sex", "age"])
def test_missing_values_are_counted(make_adata, key):
    adata = without_values(make_adata(), key)
    message = rf"adata\.obs\['{key}'\] is missing \(NaN\) in 2 cells\. Fill it in or drop them"
    refuse_setup(adata, message, **KEYS)


@pytest.mark.parametrize("key", ["condition", "cell_type", "n_counts"])
def test_missing_values_are_refused_in_other_cells_too(reference, make_adata, key):
    """Cells without a label took the calibration of another label; NaN totals gave NaN counts."""
    adata = without_values(make_adata(), key)
    before = snapshot(adata)
    message = rf"adata\.obs\['{key}'\] is missing \(NaN\) in 2 cells"
    with pytest.raises(InputError, match=message):
        reference.predict(adata, target="stimulated")
    with pytest.raises(InputError, match=message):
        TRVAE.load_query_data(adata, reference)
    assert_unchanged(adata, before)


@pytest.mark.parametrize("key", ["condition", "n_counts"])
def test_other_cells_need_the_columns_of_the_model(reference, make_adata, key):
    adata = make_adata()
    del adata.obs[key]
    with pytest.raises(InputError, match=rf"No column '{key}' in adata\.obs; there are \['"):
        reference.predict(adata, target="stimulated")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.inf, r"adata\.obs\['n_counts'\] holds infinite values\. Replace"),
        ("many", r"adata\.obs\['n_counts'\] is not numeric \(dtype "),
        ("123", r"is not numeric \(dtype .*\)\. Make it so: .*\.astype\(float\)"),
    ],
)
def test_totals_are_finite_numbers(make_adata, value, message):
    adata = make_adata()
    adata.obs["n_counts"] = value
    refuse_setup(adata, message, total_counts_key="n_counts")


def test_one_condition_is_refused(make_adata):
    adata = make_adata()
    adata.obs["condition"] = pd.Categorical(["control"] * adata.n_obs, ["control", "stimulated"])
    refuse_setup(adata, r"'condition'\] has one level, \['control'\]; .* at least two")


@pytest.mark.parametrize("column", ["condition", "cell_type"])
@pytest.mark.parametrize(
    "key",
    [
        *("labels_key", "batch_key", "replicate_key"),
        *("categorical_covariate_keys", "continuous_covariate_keys"),
    ],
)
def test_condition_and_labels_are_nothing_else(make_adata, key, column):
    if (key, column) == ("labels_key", "cell_type"):
        return
    role = {"condition": "condition_key", "cell_type": "labels_key"}[column]
    given = ["sex", column] if key.endswith("_keys") else column
    refuse_setup(make_adata(), rf"{key} and {role} are both '{column}': .*Name a", **{key: given})


def test_a_condition_of_several_columns_is_nothing_else(make_adata):
    keys = {"condition_key": ["condition", "sex"], "batch_key": "sex"}
    refuse_setup(make_adata(), "batch_key and condition_key are both 'sex'", **keys)


def test_a_batch_may_be_the_replicate(make_adata):
    setup(make_adata(), batch_key="batch", replicate_key="batch")


@pytest.mark.parametrize("key", ["labels_key", "batch_key", "replicate_key"])
def test_one_column_is_named_as_text(make_adata, key):
    refuse_setup(
        make_adata(), rf"{key} is \['cell_type'\]; name one column", **{key: ["cell_type"]}
    )


def test_an_unknown_argument_of_setup_is_named_with_the_nearest(make_adata):
    adata = make_adata()
    message = (
        r"Unknown argument 'label_key' of setup_anndata; there are \['adata', .*'labels_key'\?"
    )
    refuse_setup(adata, message, label_key="cell_type")
    before = snapshot(adata)
    with pytest.raises(InputError, match=message):
        CycleGAN.setup_anndata(adata, "condition", label_key="cell_type")
    assert_unchanged(adata, before)


@pytest.mark.parametrize("keys", [{"batch_key": "site"}, {"categorical_covariate_keys": "site"}])
def test_batches_of_one_condition_are_warned_of(make_adata, caplog, keys):
    adata = make_adata()
    adata.obs["site"] = adata.obs["condition"].astype(str) + adata.obs["sex"].astype(str)
    setup(adata, **keys)
    (said,) = (m for m in caplog.messages if "cannot be told apart" in m)
    assert said.startswith("Every level of adata.obs['site'] has cells of one condition only")
    caplog.clear()
    setup(make_adata(), batch_key="batch", categorical_covariate_keys=["site"])
    assert not caplog.messages


@pytest.mark.parametrize(
    ("name", "of_control", "is_said"),
    [
        ("dose_val", 1.0, True),
        ("dose_val", 0.0, False),
        ("dose_val", 2.0, False),
        ("dose_val", None, False),  # controls of something else, which have all doses
        ("time", 1.0, False),
    ],
)
def test_a_control_with_the_dose_of_drugs_is_warned_of(
    make_adata, caplog, name, of_control, is_said
):
    """Effects did not start from none: effect R2 of simulated low doses -1.9 in place of 0.7, without a word."""
    adata = make_adata()
    dose = np.where(np.arange(adata.n_obs) // 2 % 2, 0.1, 1.0)
    of_control = dose if of_control is None else of_control
    adata.obs[name] = np.where(adata.obs["condition"] == "control", of_control, dose)
    TRVAE.setup_anndata(adata, ["condition", name], labels_key="cell_type")
    said = [m for m in caplog.messages if m.startswith("Controls in adata.obs['condition']")]
    assert ["have the dose 1 in adata.obs['dose_val']" in m for m in said] == [True] * is_said


def test_one_label_is_allowed(fit, make_adata):
    adata = make_adata()
    adata.obs["cell_type"] = "B"
    model = fit(adata)
    assert model.n_cells.to_dict("index") == {"B": {"control": 60, "stimulated": 60}}
    assert set(model.predict(target="stimulated").obs["cell_type"]) == {"B"}


def test_unused_categories_are_ignored(fit, make_adata, reference):
    adata = make_adata()
    for key in ("condition", "cell_type"):
        adata.obs[key] = adata.obs[key].cat.set_categories(["A0", *adata.obs[key].cat.categories])
    model = fit(adata)
    assert model.conditions == ["control", "stimulated"]
    assert model.labels == ["B", "NK", "T"]
    assert same(model.predict(target="stimulated"), reference.predict(target="stimulated"))
    with pytest.raises(InputError, match=r"Unknown condition 'A0'; .* \['control', 'stimulated'\]"):
        model.predict(target="A0")


def test_a_failed_registration_leaves_the_one_before(make_adata):
    adata = make_adata()
    setup(adata)
    refuse_setup(adata, "No column 'x'", batch_key="x")
    assert TRVAE(adata, n_hidden=(8,), n_latent=2).labels == ["B", "NK", "T"]


# -- names and shape ------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", ["obs", "var"])
@pytest.mark.filterwarnings("ignore:(Observation|Variable) names are not unique")
def test_repeated_names_are_refused(make_adata, axis):
    adata = make_adata()
    names = getattr(adata, f"{axis}_names").tolist()
    setattr(adata, f"{axis}_names", [names[1], *names[1:]])
    message = (
        rf"adata\.{axis}_names are not unique: '{names[1]}' occur more than once\. Run adata\."
    )
    refuse_setup(adata, message)
    names = {"condition_key": "condition", "labels_key": "cell_type"}
    with pytest.raises(InputError, match=message):
        select(adata, "stimulated", labels="B", **names)
    assert len(evaluation.holdouts(adata, min_cells=5, **names)) == 3  # which need no names


@pytest.mark.parametrize("n_cells", [0, 1])
def test_fewer_than_two_cells_are_refused(make_adata, n_cells):
    adata = make_adata()[:n_cells].copy()
    refuse_setup(adata, f"adata has {n_cells} cells; at least 2 are needed")


def test_two_cells_are_enough(fit, make_adata):
    assert fit(make_adata(2)).predict(target="stimulated").n_obs == 1


def test_a_view_is_refused(make_adata):
    adata = make_adata()
    with pytest.raises(InputError, match=r"adata is a view .* adata = adata\.copy\(\)"):
        setup(adata[:50])
    assert not any(name.startswith("_scvi") for name in [*adata.obs, *adata.uns])


def test_missing_genes_are_counted_by_every_way_in(trained, make_adata, tmp_path):
    trained.save(tmp_path / "model")
    adata = make_adata()[:, 3:].copy()
    before = snapshot(adata)
    for call in (
        lambda: trained.get_latent_representation(adata),
        lambda: TRVAE.load(tmp_path / "model", adata),
        lambda: TRVAE.load_query_data(adata, trained),
    ):
        with pytest.raises(
            InputError, match="lacks 3 of the 30 genes of the model: 'gene_0', 'gene"
        ):
            call()
    assert_unchanged(adata, before)


def test_genes_are_matched_by_name_when_a_model_is_loaded(trained, make_adata, tmp_path):
    trained.save(tmp_path / "model")
    adata = make_adata()
    extra = make_adata(n_genes=5)
    extra.var_names = [f"extra_{i}" for i in range(5)]
    more = anndata.concat([adata, extra], axis=1, merge="first")[:, ::-1].copy()
    before = snapshot(more)
    loaded = TRVAE.load(tmp_path / "model", more)
    expected = trained.predict(adata, target="stimulated")
    assert same(loaded.predict(target="stimulated"), expected)
    assert_unchanged(more, before)


# -- types ------------------------------------------------------------------------------------------------


def as_mudata(adata):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own deprecations
        return mudata.MuData({"rna": adata})


@pytest.mark.parametrize("convert", [as_mudata, AnnData.to_df])
def test_only_anndata_is_taken(trained, make_adata, tmp_path, convert):
    data = convert(make_adata())
    name = type(data).__name__
    trained.save(tmp_path / "model")
    for call in (
        lambda: setup(data),
        lambda: TRVAE(data),
        lambda: trained.predict(data, target="stimulated"),
        lambda: trained.get_latent_representation(data),
        lambda: TRVAE.load(tmp_path / "model", data),
        lambda: TRVAE.load_query_data(data, trained),
    ):
        with pytest.raises(
            InputError,
            match=rf"Expected an AnnData, got {name}\. (Pass one modality|Of a table make)",
        ):
            call()


def test_data_that_were_not_set_up_are_refused(make_adata):
    with pytest.raises(InputError, match=r"Call TRVAE\.setup_anndata\(adata, \.\.\.\) first"):
        TRVAE(make_adata())
    with pytest.raises(InputError, match=r"TRVAE needs adata, set up by TRVAE\.setup_anndata"):
        TRVAE()


def test_a_registry_without_conditions_is_refused(make_adata):
    """As of scvi-tools' data modules; it was a KeyError."""
    adata = make_adata()
    scvi.model.SCVI.setup_anndata(adata, batch_key="condition")
    registry = scvi.model.SCVI(adata).registry
    with pytest.raises(InputError, match=r"no condition.* set up by TRVAE\.setup_anndata"):
        TRVAE(registry=registry)


def test_columns_that_were_read_lazily_are_refused(make_adata):
    for name in ("dask", "xarray"):  # which read_lazy needs
        pytest.importorskip(name)
    make_adata().write_h5ad("cells.h5ad")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata = anndata.experimental.read_lazy("cells.h5ad")
    with pytest.raises(InputError, match=r"obs was read lazily.*read_h5ad\(path, backed='r'\)"):
        setup(adata)


# -- levels that are not plain words ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("control", "stimulated"),
    [(0, 1), (False, True), ("", "stimulated"), (0, ""), (0.0, 2.5)],
    ids=str,
)
def test_any_level_is_predicted_like_a_word(
    fit, make_adata, reference, tmp_path, control, stimulated
):
    adata = make_adata()
    is_control = adata.obs["condition"] == "control"
    adata.obs["condition"] = [control if c else stimulated for c in is_control]
    model = fit(adata)
    assert model.conditions == [control, stimulated]
    predicted = model.predict(target=stimulated)
    assert same(predicted, reference.predict(target="stimulated"))
    back = model.predict(target=control, source=stimulated, labels="NK")
    assert same(back, reference.predict(target="control", source="stimulated", labels="NK"))
    assert set(back.obs["condition"]) == {control}
    assert set(back.obs["source_condition"]) == {stimulated}
    back.write_h5ad(tmp_path / "back.h5ad")
    read = anndata.read_h5ad(tmp_path / "back.h5ad")
    assert set(read.obs["condition"]) == {control}
    model.save(tmp_path / "model")
    loaded = TRVAE.load(tmp_path / "model", adata=False)
    assert loaded.conditions == [control, stimulated]
    assert same(loaded.predict(adata, target=stimulated), predicted)


@pytest.mark.parametrize("level", [0, "", False])
def test_an_unknown_level_that_is_falsy_is_refused(reference, make_adata, level):
    adata = make_adata()
    adata.obs["condition"] = [level if i == 5 else "control" for i in range(adata.n_obs)]
    before = snapshot(adata)
    with pytest.raises(
        InputError,
        match=rf"Unknown condition {level!r} in adata\.obs\['condition'\]; the model knows",
    ):
        reference.predict(adata, target="stimulated")
    assert_unchanged(adata, before)


# -- requests -------------------------------------------------------------------------------------------------


def test_nothing_is_predicted_or_generated_before_training(fit):
    model = fit(train=False)
    for call in (lambda: model.generate("control", 5), model.predict_missing):
        with pytest.raises(RuntimeError, match=r"The model is not trained: call train\(\) first"):
            call()


def test_generating_an_unknown_condition_or_label_names_the_known(trained):
    with pytest.raises(InputError, match=r"Unknown condition 'x'; .* \['control', 'stimulated'\]"):
        trained.generate("x", 5)
    with pytest.raises(InputError, match=r"Unknown labels \['x'\]"):
        trained.generate("control", 5, labels="x")


def test_cells_that_all_have_the_target_are_refused(reference, make_adata):
    adata = make_adata()
    adata = adata[adata.obs["condition"] == "stimulated"].copy()
    with pytest.raises(InputError, match=r"No cell to predict 'stimulated' .* \['stimulated'\]"):
        reference.predict(adata, target="stimulated")


@pytest.mark.parametrize(("column", "n_samples"), [("source_cell", 1), ("sample", 2)])
def test_columns_that_the_prediction_writes_are_not_overwritten(
    reference, make_adata, column, n_samples
):
    adata = make_adata()
    adata.obs[column] = "mine"
    before = snapshot(adata)
    with pytest.raises(InputError, match=rf"already has columns \['{column}'\].* Rename or drop"):
        reference.predict(adata, target="stimulated", n_samples=n_samples)
    assert_unchanged(adata, before)


@pytest.mark.parametrize("argument", ["max_epochs", "batch_size"])
@pytest.mark.parametrize("number", [0, -1])
def test_training_needs_an_epoch_and_a_cell_a_step(fit, argument, number):
    """Zero epochs used to return silently, with a model that was not trained."""
    model = fit(train=False)
    with pytest.raises(InputError, match=f"{argument} is {number}; at least 1 is needed"):
        model.train(**{argument: number})
    assert not model.is_trained


# -- notes ----------------------------------------------------------------------------------------------------


def notes(caplog):
    return [r.getMessage() for r in caplog.records if r.name.startswith("trvae_sc")]


def test_labels_with_one_condition_only_are_named(fit, make_adata, caplog):
    adata = make_adata()
    condition, label = adata.obs["condition"], adata.obs["cell_type"]
    lacking = ((label == "NK") & (condition == "stimulated")) | (
        (label == "T") & (condition == "control")
    )
    with caplog.at_level(logging.INFO, logger="trvae_sc"):
        model = fit(adata[~lacking].copy())
    (note,) = notes(caplog)
    assert "under one condition only: 'NK' ('control'), 'T' ('stimulated')." in note
    assert "the transfer loss skips them" in note
    assert model.n_cells.to_numpy().tolist() == [[20, 20], [20, 0], [0, 20]]


def test_no_note_where_every_label_has_every_condition(fit, caplog):
    with caplog.at_level(logging.INFO, logger="trvae_sc"):
        fit()
        fit(setup={"labels_key": None})
    assert notes(caplog) == []


def test_a_prediction_says_if_no_label_has_both_conditions(fit, make_adata):
    adata = make_adata()
    adata = adata[(adata.obs["cell_type"] == "NK") == (adata.obs["condition"] == "control")].copy()
    record = fit(adata).predict(target="stimulated", labels="NK").uns["trvae_sc"]
    assert record["combinations"]["n_labels_with_both"].tolist() == [0]
    assert any("No label was seen under both source and target" in n for n in record["notes"])


def test_totals_summed_over_the_registered_genes_are_pointed_out(fit, caplog):
    with caplog.at_level(logging.INFO, logger="trvae_sc"):
        fit(setup={"total_counts_key": None}, train=False)
    (note,) = notes(caplog)
    assert "its sum over the 30 genes of adata" in note
    assert "total_counts_key=" in note
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="trvae_sc"):
        fit(train=False)
        fit(gene_likelihood="normal", train=False)
    assert notes(caplog) == []


# -- saving -----------------------------------------------------------------------------------------------------


def test_a_model_is_not_saved_over_another_unless_asked(trained, reference, tmp_path):
    folder = tmp_path / "model"
    trained.save(folder)
    (folder / "notes.txt").write_text("mine")
    before = (folder / "model.pt").read_bytes()
    with pytest.raises(InputError, match=r"model exists\. Pass overwrite=True to replace it"):
        reference.save(folder)
    assert (folder / "model.pt").read_bytes() == before
    reference.save(folder, overwrite=True)
    assert TRVAE.load(folder, adata=False).registry["setup_args"]["batch_key"] is None
    assert (folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("file", "file is a file, and cannot be replaced by a model"),
        ("file/model", "file is a file, so .*model cannot be written"),
        ("file/deeper/model", "file is a file, so .*model cannot be written"),
    ],
)
def test_a_file_in_the_way_of_a_model_is_named(trained, tmp_path, name, message):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=message):
        trained.save(tmp_path / name, overwrite=True)
    assert (tmp_path / "file").read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_leaves_the_model_that_was_there(trained, reference, tmp_path, monkeypatch):
    trained.save(tmp_path / "model")
    before = (tmp_path / "model" / "model.pt").read_bytes()

    def write_half(path, content):
        with path.open("wb") as file:
            file.write(content[:1000])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises(OSError, match="No space left on device"):
        reference.save(tmp_path / "model", overwrite=True)
    with pytest.raises(OSError, match="No space left on device"):
        reference.save(tmp_path / "other")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert [p.name for p in (tmp_path / "model").iterdir()] == ["model.pt"]
    assert (tmp_path / "model" / "model.pt").read_bytes() == before


# -- what changes after registration -----------------------------------------------------------------------------


def log_normalised(adata):
    x = adata.X.toarray()
    adata.X = np.log1p(1e4 * x / x.sum(1, keepdims=True))


def one_value(adata):
    adata.X.data[-1] += 1


def another_condition(adata):
    adata.obs["condition"] = adata.obs["condition"].to_numpy()[::-1].copy()


def another_label(adata):
    adata.obs.loc["cell_7", "cell_type"] = (
        "NK" if adata.obs.loc["cell_7", "cell_type"] == "B" else "B"
    )


def other_totals(adata):
    adata.obs["n_counts"] *= 2


def fewer_genes(adata):
    adata._inplace_subset_var(np.arange(30) != 4)


def fewer_cells(adata):
    adata._inplace_subset_obs(np.arange(120) != 4)


def genes_in_another_order(adata):
    adata.var_names = adata.var_names[::-1]


def other_genes(adata):
    adata.var_names = [*adata.var_names[:-1], "new"]


def no_labels(adata):
    del adata.obs["cell_type"]


CHANGES = {
    log_normalised: r"adata\.X changed since adata was registered, in 120 cells",
    one_value: r"adata\.X changed since adata was registered, in 1 cells \('cell_119'\)",
    another_condition: r"adata\.obs\['condition'\] in 120 cells changed since",
    another_label: r"adata\.obs\['cell_type'\] in 1 cells changed since",
    other_totals: r"adata\.obs\['n_counts'\] in 120 cells changed since",
    fewer_genes: r"The genes of adata changed since .*: 29 now, 30 then.*setup_anndata again",
    fewer_cells: r"adata has 119 cells, and had 120 when it was registered",
    genes_in_another_order: r"The genes of adata changed since .*: they are in another order\.",
    other_genes: r"The genes of adata changed since .*: 30 now, 30 then, of which 29 are the same\.",
    no_labels: r"adata\.obs\['cell_type'\] is gone, and was there when adata was registered\.",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_data_that_change_after_registration_are_refused(fit, make_adata, change):
    """Trained on or predicted from, they gave numbers that were silently wrong, or errors of torch."""
    fresh, known = fit(make_adata(), train=False), fit(make_adata())
    before = fit(make_adata()).predict(target="stimulated")
    for model in (fresh, known):
        change(model.adata)
    with pytest.raises(InputError, match=CHANGES[change]):
        fresh.train(max_epochs=1)
    assert not fresh.is_trained
    for call in (
        lambda: known.predict(target="stimulated"),
        lambda: known.predict(known.adata, target="stimulated"),
        lambda: known.generate("stimulated", 3),
        known.get_latent_representation,
        lambda: known.train(max_epochs=1),
    ):
        with pytest.raises(InputError, match=CHANGES[change]):
            call()
    assert same(known.predict(make_adata(), target="stimulated"), before)
    setup(adata := make_adata(), total_counts_key="n_counts")
    change(adata)
    with pytest.raises(InputError, match=CHANGES[change]):
        TRVAE(adata)


@pytest.mark.parametrize("label", ["B", "NK"])  # of the code 0, and of another one
def test_a_change_that_is_undone_is_none(label, fit, make_adata, reference):
    model = fit(make_adata())
    kept = model.adata.obs["cell_type"].copy()
    model.adata.obs["cell_type"] = kept.cat.rename_categories({label: "new"})
    with pytest.raises(InputError, match=r"obs\['cell_type'\] in .* cells changed since"):
        model.predict(target="stimulated")
    model.adata.obs["cell_type"] = kept
    assert same(model.predict(target="stimulated"), reference.predict(target="stimulated"))


@pytest.mark.parametrize("other", ["trvae", "scvi", "swapped", "cyclegan"])
def test_another_registration_changes_nothing_for_a_model(fit, make_adata, reference, other):
    """The first model was trained on the codes of the second, whose conditions were swapped."""
    model = fit(make_adata(), train=False)
    adata = model.adata
    if other == "trvae":
        TRVAE.setup_anndata(adata, "cell_type", labels_key="condition", batch_key="site")
    elif other == "scvi":
        scvi.model.SCVI.setup_anndata(adata, batch_key="condition", labels_key="site")
    elif other == "cyclegan":
        CycleGAN.setup_anndata(adata, "batch", labels_key="condition")
    else:
        adata.obs["turned"] = pd.Categorical(
            adata.obs["condition"], ["stimulated", "control"], ordered=True
        )
        TRVAE.setup_anndata(adata, "turned", labels_key="cell_type")
    model.train(**QUICK)
    assert same(model.predict(target="stimulated"), reference.predict(target="stimulated"))


# -- numbers of other types, and what is only said ---------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 1500, 4999])
def test_all_cells_are_looked_at(make_adata, at):
    """Only the first thousand were: logarithms behind them were taken for counts."""
    x = np.random.default_rng(0).poisson(1.0, (5000, 3)).astype(np.float32) + 1
    x[at] = np.log1p(x[at])
    for form in (np.asarray, sparse.csr_matrix):
        assert not looks_like_counts(form(x))
        with pytest.raises(InputError, match="fractional values"):
            check_values(form(x), is_count=True, totals=None, name="adata.X")


@pytest.mark.parametrize("likelihood", ["normal", "mse"])
def test_raw_counts_of_a_model_of_values_are_pointed_out(make_adata, likelihood):
    """It trained without a word, and predicted -28 counts."""
    setup(adata := make_adata())
    with pytest.warns(
        UserWarning, match=r"adata\.X looks like raw counts, which gene_likelihood='"
    ):
        TRVAE(adata, gene_likelihood=likelihood, n_hidden=(8,), n_latent=2)
    with pytest.warns(UserWarning, match="looks like raw counts"):
        TRVAE(adata, preset="paper")
    adata.layers["counts"], adata.X = adata.X, adata.X.log1p()
    setup(adata, layer="counts")
    with pytest.warns(UserWarning, match=r"adata\.layers\['counts'\] looks like raw counts"):
        TRVAE(adata, gene_likelihood=likelihood, n_hidden=(8,), n_latent=2)
    for x in (adata.X, adata.X > 0):  # logarithms, and on or off
        other = AnnData(x.astype(np.float32), obs=adata.obs[["condition", "cell_type"]])
        setup(other)
        TRVAE(other, gene_likelihood=likelihood, n_hidden=(8,), n_latent=2)  # warnings are errors


def test_numbers_that_are_taken_for_levels_are_pointed_out(fit, make_adata, caplog):
    adata = make_adata()
    adata.obs["dose"] = np.arange(120) % 2 * 2.5
    with caplog.at_level(logging.INFO, logger="trvae_sc"):
        TRVAE.setup_anndata(adata, ["dose"], labels_key="cell_type")
        setup(adata)
    assert notes(caplog) == []
    with caplog.at_level(logging.INFO, logger="trvae_sc"):
        setup(adata, condition_key="dose", total_counts_key="n_counts")
    (note,) = notes(caplog)
    assert "adata.obs['dose'] holds numbers, which are taken for levels" in note
    assert "condition_key=['dose']" in note
    model = TRVAE(adata, n_hidden=(8,), n_latent=2)
    model.train(**QUICK)
    with pytest.raises(InputError, match=r"Unknown condition 3; .*condition_key=\['dose'\] it is"):
        model.predict(target=3)


def test_new_cells_are_told_from_those_of_training(fit, make_adata):
    """Of cells of a new lab it was said that they are no predictions of something unseen."""
    adata = make_adata()
    model = fit(adata)
    start = {"target": "stimulated", "source": "control", "labels": "B"}
    seen, new = "these are not predictions of something unseen", "in other cells than these: the"
    for cells, expected, n_new in (
        (None, [seen], 0),
        (adata.copy(), [seen], 0),
        (make_adata(seed=9), [new], 20),
        (anndata.concat([adata[:60], make_adata(60, seed=9)], index_unique="-"), [seen, new], 10),
    ):
        record = model.predict(cells, **start).uns["trvae_sc"]
        told = [text for text in (seen, new) if any(text in note for note in record["notes"])]
        assert told == expected
        assert record["combinations"]["n_new_cells"].tolist() == [n_new]
        assert record["combinations"]["n_source_cells"].tolist() == [20]


@pytest.mark.parametrize("path", [None, 5, ""])
def test_paths_that_are_none_are_refused(trained, path):
    with pytest.raises(InputError, match="it is the path of a file or folder"):
        trained.save(path)
    with pytest.raises(InputError, match="it is the path of a file or folder"):
        TRVAE.load(path)
    if path is not None:
        with pytest.raises(InputError, match="it is the path of a file or folder"):
            trained.predict(target="stimulated", out=path)


@pytest.mark.parametrize("model", [TRVAE, family.FlowMatching, family.ConditionalGAN])
def test_what_comes_behind_the_data_is_named(make_adata, model):
    """scvi-tools' models have a registry there: a preset or condition would be ignored."""
    adata = make_adata()
    model.setup_anndata(adata, "condition", labels_key="cell_type")
    with pytest.raises(InputError, match=r"registry is 'vae'.*Give all others by name"):
        model(adata, "vae")


@pytest.mark.parametrize("n_steps", [0, -5, 1.5])
def test_steps_of_a_flow_are_whole_and_positive(make_adata, n_steps):
    adata = make_adata()
    family.FlowMatching.setup_anndata(adata, "condition", labels_key="cell_type")
    with pytest.raises(InputError, match="n_steps"):
        family.FlowMatching(adata, n_steps=n_steps)
