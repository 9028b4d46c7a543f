"""Simple methods as whole predictions: counts, columns of the model, intervals and tables."""

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

import trvae_sc
from trvae_sc import baselines, pseudobulk, select
from trvae_sc.checks import layer_names
from trvae_sc.errors import InputError
from trvae_sc.evaluation import Keys

NAMES = {"condition_key": "condition", "labels_key": "cell_type"}
METHODS = ["no_change", "mean_shift", "nearest_shift", "context_shift"]


def without(adata, label="NK"):
    hidden = (adata.obs["cell_type"] == label) & (adata.obs["condition"] == "stimulated")
    return adata[~hidden].copy()


def shares(adata, label, condition):
    at = (adata.obs["cell_type"] == label) & (adata.obs["condition"] == condition)
    x = adata[at.to_numpy()]
    return (x.X.toarray() / x.obs["n_counts"].to_numpy()[:, None]).mean(0)


def test_intervals_and_p_values_of_values_do_not_depend_on_the_unit_of_a_gene(make_adata):
    adata = make_adata(n_cells=720, values="log")
    adata.obs["cell_type"] = [f"t{i}" for i in np.arange(720) // 2 % 6]
    unit = np.geomspace(0.01, 100.0, adata.n_vars)
    other = adata.copy()
    other.X = adata.X.toarray() * unit
    tables = [
        baselines.effects(x, "stimulated", method="mean_shift", is_count=False, **NAMES)
        for x in (adata, other)
    ]
    unit = np.tile(unit, 6)
    for column in ("change", "lower", "upper"):
        np.testing.assert_allclose(tables[1][column], tables[0][column] * unit, rtol=1e-4)
    np.testing.assert_allclose(tables[1]["pval"], tables[0]["pval"], atol=2e-3)


def test_intervals_of_values_with_entries_in_two_parts_are_those_of_the_values(
    make_adata,
):
    adata = make_adata(n_cells=240, values="log")
    adata.obs["cell_type"] = [f"t{i}" for i in np.arange(240) // 2 % 5]
    x = sparse.csc_matrix(adata.X, dtype=np.float64)
    starts, parts = 2 * x.indptr, np.repeat(x.data / 2, 2)
    tables = []
    for values in (x, sparse.csc_matrix((parts, np.repeat(x.indices, 2), starts), x.shape)):
        adata.X = values
        tables.append(baselines.effects(adata, "stimulated", is_count=False, **NAMES))
    pd.testing.assert_frame_equal(*tables)


@pytest.fixture
def train(make_adata):
    return without(make_adata(n_cells=600))


def test_cells_of_a_view_of_a_file_are_moved_as_those_in_memory(train, tmp_path):
    train.write_h5ad(tmp_path / "cells.h5ad")
    view = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")[:]
    found, expected = (
        baselines.predict(x, "stimulated", labels="NK", output="delta", **NAMES)
        for x in (view, train)
    )
    np.testing.assert_array_equal(found.X, expected.X)


def test_every_method_has_the_columns_of_the_model(train, fit):
    model = fit(train.copy())
    whole = model.predict(target="stimulated", labels="NK")
    for method in METHODS:
        own = baselines.predict(
            train, "stimulated", method=method, labels="NK", total_counts_key="n_counts", **NAMES
        )
        assert set(own.obs) == set(whole.obs)
        assert set(own.var) == set(whole.var)
        further = {"preset", "gene_likelihood", "model_seed", "training"}
        assert set(own.uns["trvae_sc"]) == set(whole.uns["trvae_sc"]) - further
        table, of_model = (x.uns["trvae_sc"]["combinations"] for x in (own, whole))
        pd.testing.assert_frame_equal(
            table.drop(columns="novelty"), of_model.drop(columns="novelty")
        )
        assert own.obs_names.tolist() == whole.obs_names.tolist()
        tables = [
            baselines.effects(
                train, "stimulated", method=method, total_counts_key="n_counts", **NAMES
            ),
            model.effects(target="stimulated"),
        ]
        assert tables[0].columns.tolist() == tables[1].columns.tolist()
        pd.testing.assert_frame_equal(
            *(t[["label", "source", "gene", "n_source_cells"]] for t in tables)
        )


def test_counts_are_in_the_layer_that_is_named_whoever_predicts(train, fit):
    """So that what is written for one holds for the other, as sums of counts of measured and predicted cells."""
    train.layers["counts"] = train.X.copy()
    train.X = train.X.log1p()
    given = {**NAMES, "layer": "counts"}
    start = train[train.obs["cell_type"] == "NK"].copy()
    for output in ("counts", "delta"):
        options = {"labels": "NK", "output": output}
        of_model = fit(train.copy(), setup={"layer": "counts"}).predict(
            target="stimulated", **options
        )
        simple = baselines.predict(train, "stimulated", **options, **given)
        chosen = select(
            train, "stimulated", methods=["mean_shift"], progress=False, **options, **given
        )
        for predicted in (of_model, simple, chosen):
            assert layer_names(predicted) == ["counts"] * (output == "counts")
            if output == "counts":
                assert (predicted.layers["counts"] != predicted.X).nnz == 0
                both = anndata.concat([start, predicted])
                bulk = pseudobulk(both, "condition", layer="counts")
                assert bulk["stimulated"].X.sum() == predicted.X.sum()


def test_a_mean_shift_of_counts_has_the_mean_that_log_profiles_of_the_others_give(train):
    keys = Keys("condition", "cell_type", total_counts_key="n_counts")
    kappa = np.median(train.obs["n_counts"])
    f = {
        (label, c): np.log1p(kappa * shares(train, label, c))
        for label in ("B", "NK", "T")
        for c in ("control", "stimulated")
        if (label, c) != ("NK", "stimulated")
    }
    change = np.mean([f[label, "stimulated"] - f[label, "control"] for label in ("B", "T")], axis=0)
    table = baselines.effects(train, "stimulated", method="mean_shift", labels="NK", keys=keys)
    expected = np.maximum(f["NK", "control"] + change, 0)
    np.testing.assert_allclose(table["source_mean"], f["NK", "control"], atol=1e-6)
    np.testing.assert_allclose(table["predicted_mean"], expected, atol=1e-6)
    found = [
        baselines.predict(train, "stimulated", method="mean_shift", labels="NK", keys=keys, seed=i)
        for i in range(20)
    ]
    total = train[found[0].obs["source_cell"]].obs["n_counts"].to_numpy()
    mean = np.mean([p.X.toarray() / total[:, None] for p in found], axis=(0, 1))
    start = shares(train, "NK", "control")
    error = mean - np.expm1(expected) / kappa
    assert np.abs(error).max() < 0.04 * start.max()
    assert np.corrcoef(mean - start, np.expm1(expected) / kappa - start)[0, 1] > 0.98
    assert (found[0].X.data == np.round(found[0].X.data)).all()


def test_no_change_keeps_every_count_and_total(train):
    own = baselines.predict(
        train, "stimulated", method="no_change", labels="NK", total_counts_key="n_counts", **NAMES
    )
    before = train[own.obs["source_cell"]]
    assert (own.X != before.X).nnz == 0
    np.testing.assert_array_equal(own.obs["n_counts"], before.obs["n_counts"])
    assert (own.var["predicted_change"] == 0).all()


def test_delta_is_what_the_benchmark_gets(train):
    keys = Keys("condition", "cell_type", total_counts_key="n_counts")
    source = train[(train.obs["cell_type"] == "NK").to_numpy()]
    for method in METHODS:
        own = baselines.predict(
            train, "stimulated", method=method, labels="NK", output="delta", keys=keys
        )
        other = getattr(baselines, method)(train, source, target="stimulated", keys=keys)
        np.testing.assert_array_equal(own.X, other.X)


def test_values_that_are_no_counts_are_shifted(make_adata):
    train = without(make_adata(n_cells=240, values="log"))
    train.layers["own"] = train.X.copy()
    names = {"layer": "own", "is_count": False, **NAMES}
    own = baselines.predict(train, "stimulated", method="mean_shift", labels="NK", **names)
    assert own.uns["trvae_sc"]["scale"] == "values"
    np.testing.assert_array_equal(own.layers["own"], own.X)  # where the next method looks for them
    table = baselines.effects(train, "stimulated", labels="NK", is_count=False, **NAMES)
    assert table["log2_fold_change"].isna().all()
    with pytest.raises(InputError, match="not available"):
        baselines.predict(train, "stimulated", output="counts", is_count=False, **NAMES)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_large_values_are_not_taken_for_logarithms(make_adata):
    """Shares of mean values above 709, which nobody asked for, were infinite."""
    train = without(make_adata(n_cells=240, values="log"))
    tables = []
    for scale in (1.0, 1e6):
        cells = train.copy()
        cells.X = train.X.toarray().astype(np.float64) * scale
        asked = {"method": "mean_shift", "labels": "NK", "is_count": False, **NAMES}
        baselines.predict(cells, "stimulated", **asked)
        tables.append(baselines.effects(cells, "stimulated", **asked))
    np.testing.assert_allclose(tables[1]["change"], tables[0]["change"] * 1e6, rtol=1e-6)


@pytest.mark.parametrize("labels", [["T", "NK", "T"], pd.Series(["T", "T", "NK"])])
def test_labels_named_twice_are_predicted_once_in_order(train, fit, labels):
    asked = {"source": "control", "labels": labels}
    own = baselines.predict(train, "stimulated", **asked, **NAMES)
    n = (train.obs["condition"] == "control") & train.obs["cell_type"].isin(["T", "NK"])
    assert own.n_obs == n.sum()
    assert own.obs_names.is_unique
    for table in (
        baselines.effects(train, "stimulated", **asked, **NAMES),
        fit(train.copy()).effects(target="stimulated", **asked),
    ):
        assert table["label"].tolist() == ["T"] * train.n_vars + ["NK"] * train.n_vars


def test_a_model_says_where_the_data_are(train, fit):
    model = fit(train)
    own = baselines.effects(train, "stimulated", labels="NK", keys=model)
    keys = Keys("condition", "cell_type", total_counts_key="n_counts")
    pd.testing.assert_frame_equal(
        own, baselines.effects(train, "stimulated", labels="NK", keys=keys)
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"method": "best"}, "Unknown simple method"),
        ({"target": "x"}, "Unknown condition 'x'"),
        ({"labels": "x"}, "Unknown label 'x'"),
        ({"source": "stimulated"}, "nothing changes"),
        ({"condition_key": None}, "condition_key="),
        ({"colour": "cell_type"}, "Unknown arguments"),
        ({"output": "mean"}, "not available"),
        ({"labels_key": "x"}, "No column 'x'"),
    ],
)
def test_bad_input_is_refused_with_what_to_do(train, arguments, words):
    with pytest.raises(InputError, match=words):
        baselines.predict(train, **{"target": "stimulated", **NAMES, **arguments})


def test_a_shift_needs_a_label_under_both_conditions(train):
    only = train[(train.obs["cell_type"] == "NK") | (train.obs["condition"] == "control")]
    other = anndata.concat([only, train[train.obs["condition"] == "stimulated"][:3]])
    other.obs["cell_type"] = np.where(
        other.obs["condition"] == "stimulated", "new", other.obs["cell_type"]
    )
    with pytest.raises(InputError, match="No label was measured under both"):
        baselines.predict(other, "stimulated", labels="NK", **NAMES)
    same = baselines.predict(other, "stimulated", labels="NK", method="no_change", **NAMES)
    assert same.n_obs == (only.obs["cell_type"] == "NK").sum()


def balanced(seed, *, specificity, n_labels=8, n_cells=150, n_genes=400, n_responding=60):
    """Return cells whose responding genes keep their part of all counts, and the true changes.

    The other genes then do not change at all, in share or otherwise: true nulls.
    """
    rng = np.random.default_rng(seed)
    base = np.exp(rng.normal(0, 1.2, n_genes) + rng.normal(0, 0.5, (n_labels, n_genes)))
    base /= base.sum(1, keepdims=True)
    common = rng.normal(0.4, 0.8, n_responding)
    own = rng.normal(0, 0.8, (n_labels, n_responding))
    after = base.copy()
    part = base[:, :n_responding] * np.exp((1 - specificity) * common + specificity * own)
    after[:, :n_responding] = part * (base[:, :n_responding].sum(1) / part.sum(1))[:, None]
    label, condition = np.divmod(np.arange(2 * n_labels), 2)
    shares = np.stack([(base, after)[c][k] for k, c in zip(label, condition, strict=True)])
    theta = np.exp(rng.normal(1.0, 0.5, n_genes))
    rates = shares.repeat(n_cells, 0) * rng.lognormal(7.5, 0.3, (2 * n_labels * n_cells, 1))
    counts = rng.poisson(rates * rng.gamma(theta, 1 / theta, rates.shape)).astype(np.float32)
    obs = pd.DataFrame(
        {
            "cell_type": np.array([f"type_{k}" for k in label]).repeat(n_cells),
            "condition": np.array(["control", "stimulated"])[condition].repeat(n_cells),
        },
        index=[f"cell_{i}" for i in range(len(counts))],
    )
    var = pd.DataFrame(index=[f"gene_{i}" for i in range(n_genes)])
    return anndata.AnnData(counts, obs=obs, var=var), np.arange(n_genes) >= n_responding


@pytest.mark.slow
@pytest.mark.parametrize("specificity", [0.0, 0.3, 0.6])
def test_q_values_control_the_false_discovery_rate_where_nulls_are_known(specificity):
    rates, p_of_null = [], []
    for seed in range(20):
        adata, is_null = balanced(seed, specificity=specificity)
        train = without(adata, "type_2")
        table = baselines.effects(train, "stimulated", labels="type_2", **NAMES)
        called = (table["qval"] < 0.1).to_numpy()
        rates.append(is_null[called].mean() if called.any() else 0.0)
        p_of_null.append(table["pval"].to_numpy()[is_null])
    assert np.mean(rates) <= 0.12
    p = np.concatenate(p_of_null)
    for level in (0.01, 0.05, 0.1):
        assert (p < level).mean() <= 1.2 * level


@pytest.mark.slow
def test_q_values_of_a_model_control_it_too(fit):
    rates, n_called = [], 0
    for seed in range(5):
        adata, is_null = balanced(seed, specificity=0.2)
        model = fit(
            without(adata, "type_2"), setup={"total_counts_key": None}, train={"max_epochs": 15}
        )
        table = model.effects(target="stimulated", labels="type_2")
        called = (table["qval"] < 0.1).to_numpy()
        rates.append(is_null[called].mean() if called.any() else 0.0)
        n_called += called.sum()
    assert np.mean(rates) <= 0.12
    assert n_called > 0


def nothing_changes(conditions, n_labels=3, n_genes=100, n_cells=30):
    """Return values that no condition changes, of labels of which the first lacks the last condition."""
    rng = np.random.default_rng(0)
    groups = [(f"type_{k}", c) for k in range(n_labels) for c in conditions]
    groups.remove(("type_0", conditions[-1]))
    obs = pd.DataFrame(groups, columns=["cell_type", "condition"])
    obs = obs.loc[obs.index.repeat(n_cells)].set_axis(map(str, range(n_cells * len(groups))))
    return AnnData(rng.normal(3.0, 1.0, (len(obs), n_genes)), obs=obs)


SETS = ["control", "A", "B", "C", "A+C", "B+C", "A+B"]


@pytest.mark.parametrize(
    ("conditions", "target", "named"),
    [
        (SETS, "A+B", {"condition_separator": "+"}),
        (SETS, "A+B", {"condition_separator": "+", "method": "sum_of_parts"}),
        (SETS[:4], "A+B", {"condition_separator": "+"}),
        (SETS, "A+B", {"condition_separator": "+", "method": "mean_condition"}),
        (["control", "A"], "A", {}),
    ],
)
def test_no_gene_is_called_changed_where_none_changes(conditions, target, named):
    """Changes of a label share the noise of its control cells, so that predictions by them have the right sign."""
    adata, options = nothing_changes(conditions, n_labels=8), {**NAMES, "is_count": False, **named}
    table = baselines.effects(adata, target, source="control", **options)
    assert table[["change", "lower", "upper"]].notna().all(axis=None)
    assert (table["qval"] < 0.1).sum() == 0
    is_told = (table["label"] == "type_0") & (not named)
    assert (table["pval"].notna() == is_told).all()


def test_a_prediction_is_written_read_and_compared(train, make_adata, tmp_path):
    own = trvae_sc.baselines.predict(
        train, "stimulated", labels="NK", total_counts_key="n_counts", **NAMES
    )
    own.write_h5ad(tmp_path / "p.h5ad")
    again = anndata.read_h5ad(tmp_path / "p.h5ad")
    scores = trvae_sc.compare(again, make_adata(n_cells=600)).table()["predicted"]
    assert scores["NK", "effect_r2"] > 0.3


def test_missing_combinations_have_the_same_columns_and_record(train, fit):
    model = fit(train)
    one = model.predict(target="stimulated", labels="NK")
    missing = model.predict_missing()
    assert set(missing.obs) == set(one.obs)
    assert set(missing.var) == set(one.var)
    assert set(missing.uns["trvae_sc"]) == set(one.uns["trvae_sc"])
    assert missing.uns["trvae_sc"]["target"] == "stimulated"
    assert missing.uns["trvae_sc"]["source"].tolist() == ["control"]


@pytest.mark.parametrize("store", [np.asarray, sparse.csr_matrix])
@pytest.mark.parametrize("method", ["mean_shift", "context_shift"])
def test_genes_of_one_value_make_no_interval_narrower(make_adata, method, store):
    """Their means differ by rounding, which counted as what is missed of genes: intervals were next to nothing."""
    adata = make_adata(n_cells=240, values="log")
    adata = adata[np.random.default_rng(0).random(240) < 0.8].copy()
    x = adata.X.toarray().astype(np.float64)
    more = np.column_stack([x, np.full((adata.n_obs, 120), 0.1)])
    genes = pd.DataFrame(index=[*adata.var_names, *(f"same_{i}" for i in range(120))])
    named = {"condition_key": "condition", "labels_key": "cell_type", "is_count": False}
    named |= {"source": "control", "method": method}
    expected, found = (
        baselines.effects(AnnData(store(values), obs=adata.obs, var=var), "stimulated", **named)
        for values, var in ((x, adata.var), (more, genes))
    )
    found = found[found["gene"].isin(adata.var_names)]
    for column in ("lower", "upper", "pval"):
        np.testing.assert_allclose(found[column], expected[column], rtol=1e-6)
