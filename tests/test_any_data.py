"""Any small AnnData ends in a result that is right in form, or in an error of our own before training."""

import contextlib
import logging
import tempfile
import warnings
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from scipy import sparse

from trvae_sc import TRVAE
from trvae_sc.errors import InputError
from trvae_sc.files import write_anndata

DTYPES = ("int8", "uint16", "int32", "int64", "float16", "float32", "float64")
FORMS = ("dense", "csr", "csc", "view", "backed", "backed csc")
DAMAGE = (None, "nan", "inf", "negative", "fraction", "huge", "empty cell", "text", "bool")
LEVELS = (
    *("text", "category", "unused", "ordered", "integer", "float", "boolean", "nullable text"),
    *("nullable integer", "missing", "one", "mixed", "date", "odd names"),
)
TRAIN = {
    **{"max_epochs": 1, "batch_size": 16, "accelerator": "cpu", "devices": 1},
    "enable_progress_bar": False,
}


@st.composite
def problems(draw):
    """Return what a small AnnData is to be like, and how it is to be used."""
    odd = draw(st.booleans())  # at most one oddity at a time in half of them: more reach the end
    likelihood = draw(st.sampled_from(("nb", "normal", "zinb", "poisson", "mse")))
    return {
        "seed": draw(st.integers(0, 999)),
        "shape": (
            draw(st.integers(0, 60) if odd else st.integers(8, 60)),
            draw(st.integers(1, 40)),
        ),
        "dtype": draw(st.sampled_from(DTYPES)),
        "form": draw(st.sampled_from(FORMS)),
        "damage": draw(st.sampled_from(DAMAGE)) if odd else None,
        "condition": draw(st.sampled_from(LEVELS if odd else LEVELS[:9])),
        "label": draw(st.sampled_from((*LEVELS, None) if odd else (*LEVELS[:9], None))),
        "layer": draw(st.sampled_from((None, "counts"))),
        "totals": draw(st.sampled_from((None, "total", "low"))) if odd else None,
        "likelihood": likelihood,
        "n_samples": draw(st.sampled_from((1, 2))),
        "output": draw(st.sampled_from(("counts", "sample", "delta", "mean"))),
    }


def column(kind, codes):
    """Return a column of obs whose levels are those of a kind, by code."""
    names = np.array(["a", "b", "c"])
    made = {
        "integer": np.array([1, 2, 10]),
        "float": np.array([0.5, 1.0, 1e-3]),
        "boolean": np.array([False, True, True]),
        "one": np.array(["a", "a", "a"]),
        "mixed": np.array([1, "1", 2.0], dtype=object),
        "date": pd.to_datetime(["2020-01-01", "2021-01-01", "2022-01-01"]).to_numpy(),
        "odd names": np.array(["", "$\\frac{$", "a/b: c + d"], dtype=object),
    }.get(kind, names)
    values = pd.Series(made[codes])
    if kind in ("category", "unused", "ordered"):
        known = (
            ["c", "b", "a"] if kind == "ordered" else ["a", "b", "c", *["z"] * (kind == "unused")]
        )
        values = pd.Series(pd.Categorical(values, known, ordered=kind == "ordered"))
    if kind == "missing" and len(values):
        values[0] = None
    if kind == "nullable text":
        values = values.astype("string")
    if kind == "nullable integer":
        values = pd.Series(codes).astype("Int64")
    return values.to_numpy() if isinstance(values.dtype, np.dtype) else values.array


def matrix(problem, rng):
    """Return values of a type and with a damage."""
    damage, x = problem["damage"], rng.poisson(3.0, problem["shape"]).astype(float)
    x[:, :1] += 1
    if damage == "empty cell":
        x[:1] = 0
    if problem["likelihood"] in ("normal", "mse") and problem["dtype"].startswith("float"):
        x = np.log1p(x)
    wrong = {"nan": np.nan, "inf": np.inf, "negative": -2, "fraction": 1.25, "huge": 1e30}
    if damage in wrong and x.size:
        x.flat[rng.integers(x.size)] = wrong[damage]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged values
        return x.astype({"text": "U8", "bool": bool}.get(damage, problem["dtype"]))


def can_be_written(adata, path):
    """Write an AnnData; return whether anndata could."""
    with contextlib.suppress(Exception):
        adata.write_h5ad(path)
        return True
    return False


def build(problem, folder):
    """Return the AnnData of a problem."""
    rng = np.random.default_rng(problem["seed"])
    x = matrix(problem, rng)
    form = problem["form"]
    if x.dtype.kind not in "Ub" and x.dtype != np.float16:
        x = {
            "csr": sparse.csr_matrix,
            "csc": sparse.csc_matrix,
            "backed csc": sparse.csc_matrix,
        }.get(form, np.asarray)(x)
    n = x.shape[0]
    obs = pd.DataFrame(index=[f"cell {i}" for i in range(n)])
    codes = np.arange(n) % 3
    obs["condition"] = column(problem["condition"], codes if n % 2 else np.minimum(codes, 1))
    if problem["label"] is not None:
        obs["label"] = column(problem["label"], np.arange(n) // 3 % 3)
    if problem["totals"] is not None:
        total = 1000.0 if problem["totals"] == "total" else 0.5
        obs["total"] = np.full(n, total)
    var = pd.DataFrame(index=[f"gene {i}" for i in range(x.shape[1])])
    layers = {} if problem["layer"] is None else {problem["layer"]: x}
    adata = AnnData(x if problem["layer"] is None else None, obs=obs, var=var, layers=layers)
    if form == "view" and n:
        return adata[: max(n - 1, 1)]
    if form.startswith("backed"):
        if not can_be_written(adata, folder / "cells.h5ad"):
            return adata  # so that no user has it in a file
        return anndata.read_h5ad(folder / "cells.h5ad", backed="r")
    return adata


def trained(adata, problem):
    """Return a model of a problem, trained for an epoch."""
    keys = {
        "labels_key": None if problem["label"] is None else "label",
        "layer": problem["layer"],
        "total_counts_key": None if problem["totals"] is None else "total",
    }
    before = None if adata.isbacked else adata.copy()
    try:
        TRVAE.setup_anndata(adata, "condition", **keys)
        model = TRVAE(adata, gene_likelihood=problem["likelihood"], n_latent=2, n_hidden=(8,))
    finally:
        if before is not None:  # nothing of the user's is changed, whatever happens
            pd.testing.assert_frame_equal(adata.obs[list(before.obs)], before.obs)
            assert list(adata.var) == list(before.var)
            assert list(adata.layers) == list(before.layers)
    model.train(**TRAIN)
    return model


def check(predicted, model, problem):
    """Fail where a prediction is not what one has to be."""
    source = predicted.obs["source_cell"]
    assert set(source.astype(str)) <= set(model.adata.obs_names)
    assert predicted.var_names.equals(model.adata.var_names)
    values = predicted.X
    values = values.toarray() if sparse.issparse(values) else np.asarray(values)
    assert np.isfinite(values).all()
    counts = problem["likelihood"] in ("nb", "zinb", "poisson")
    if counts and problem["output"] in ("counts", "sample"):
        assert (values >= 0).all()
        np.testing.assert_array_equal(values, np.floor(values))


@pytest.mark.filterwarnings("ignore")
@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    database=None,
)
@given(problem=problems())
def test_any_data_end_in_a_result_or_an_error_of_ours(problem):
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        adata = build(problem, folder)
        try:
            model = trained(adata, problem)
        except InputError:
            event("refused before training")
            return
        finally:
            logging.disable(logging.NOTSET)
        options = {
            "target": model.conditions[-1],
            "source": model.conditions[0],
            "output": problem["output"],
            "n_samples": problem["n_samples"] if problem["output"] == "sample" else 1,
            "seed": 0,
        }
        try:
            predicted = model.predict(**options)
        except InputError:  # of outputs that a likelihood does not have
            event("trained, not predicted")
            return
        event("predicted")
        check(predicted, model, problem)
        model.save(folder / "model")
        write_anndata(predicted.copy(), folder / "predicted.h5ad")
        again = TRVAE.load(folder / "model", adata).predict(**options)
        pd.testing.assert_frame_equal(again.obs, predicted.obs)
        first, second = (np.asarray(p.to_df(), dtype=float) for p in (predicted, again))
        np.testing.assert_array_equal(first, second)
