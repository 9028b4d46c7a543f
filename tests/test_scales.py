"""Cells on another scale than those of training are told of, in predictions, exemplars and comparisons."""

import numpy as np
import pytest
import scanpy as sc

import trvae_sc
from trvae_sc import TRVAE
from trvae_sc.baselines import mean_shift
from trvae_sc.datasets import simulate
from trvae_sc.expression import Keys
from trvae_sc.family import CycleGAN
from trvae_sc.scales import other_scale

QUIET = {"enable_progress_bar": False}


def normalised(adata, target_sum, base=None):
    """Return log values of cells with this total."""
    found = adata.copy()
    sc.pp.normalize_total(found, target_sum=target_sum)
    sc.pp.log1p(found, base=base)
    return found


def test_the_scale_is_the_slope_through_the_origin():
    rng = np.random.default_rng(0)
    expected, times = rng.gamma(1.0, 1.0, 300), 2.5
    x = times * expected + rng.normal(0.0, 0.1, 300)
    slope = np.linalg.lstsq(expected[:, None], x, rcond=None)[0][0]
    assert other_scale([(x, expected, 20)]) == pytest.approx(slope)
    both = [(x, expected, 20), (expected, expected, 60)]
    assert other_scale(both) is None  # 1.4 times as high, as those of other labs may be
    assert other_scale([(x, expected, 4)]) is None
    assert other_scale([(x[:20], expected[:20], 20)]) is None
    assert other_scale([(x, np.zeros(300), 20)]) is None


def test_scaled_values_of_few_cells_are_not_taken_for_another_scale(caplog):
    """Of other cells of the same data the slope was 0.28 for 27 scaled cells of Kang, and less of fewer."""
    adata = normalised(simulate(300, 200, n_labels=4, seed=3), 1e4)
    values = adata.copy()
    values.X = values.X.toarray()
    sc.pp.scale(values)
    keys = Keys("condition", "cell_type", is_count=False)
    is_control = (adata.obs["condition"] == "control").to_numpy()
    own = is_control & (adata.obs["cell_type"] == "type_0").to_numpy()
    kept = ~own
    kept[np.flatnonzero(own)[:4]] = True
    for cells in (adata, values):  # of four cells of log values means tell as little
        mean_shift(cells[kept].copy(), cells[own].copy(), target="stimulated", keys=keys)
    kept[np.flatnonzero(own)[:15]] = True
    mean_shift(values[kept].copy(), values[own & ~kept].copy(), target="stimulated", keys=keys)
    assert "scale" not in caplog.text
    mean_shift(adata[kept].copy(), values[own].copy(), target="stimulated", keys=keys)
    assert "Means of source are" in caplog.text


@pytest.fixture(scope="module")
def counts():
    """Return simulated counts, and which are hidden."""
    adata = simulate(1000, 200, n_labels=4, seed=3)
    obs = adata.obs
    hidden = (obs["cell_type"] == "type_0") & (obs["condition"] == "stimulated")
    return adata, hidden.to_numpy()


def test_values_that_were_normalised_otherwise_are_noted(counts, caplog):
    """Effect R2 on Kang: 0.86; -0.2 of such cells, -1.6 of such exemplars and 0.12 of such a truth."""
    adata, hidden = counts
    logs, other = (normalised(adata, total) for total in (1e4, 1e6))
    train = logs[~hidden].copy()
    TRVAE.setup_anndata(train, "condition", labels_key="cell_type")
    model = TRVAE(train, gene_likelihood="normal", n_latent=4, n_hidden=(16, 8))
    model.train(3, **QUIET)
    own = {"target": "stimulated", "labels": "type_0"}
    predicted = model.predict(train.copy(), **own, exemplars=logs[hidden][:9].copy())
    assert "scale" not in caplog.text
    assert not any("scale" in note for note in predicted.uns["trvae_sc"]["notes"])
    assert not any("scale" in note for note in trvae_sc.compare(predicted, logs).notes)

    found = model.predict(other[~hidden].copy(), **own)
    noted = [note for note in found.uns["trvae_sc"]["notes"] if "on another scale" in note]
    assert len(noted) == 1
    assert "Pass values that were normalised as those of training" in noted[0]
    model.effects(**own, exemplars=other[hidden][:9].copy())
    assert "Means of exemplars are" in caplog.text
    for truth in (other, normalised(adata, 1e4, base=2)):
        assert "Means of control cells" in trvae_sc.compare(predicted, truth).notes[-1]
    several = model.predict(target="stimulated")  # whose means are not those that it started from
    assert not any("scale" in note for note in trvae_sc.compare(several, logs).notes)


def test_totals_over_other_genes_are_noted(counts, caplog):
    """Effect R2 on Kang of such exemplars: -0.2 in place of 0.79."""
    adata, hidden = counts
    cells = adata.copy()
    cells.obs["whole"] = 5.0 * cells.obs["total_counts"]
    train = cells[~hidden].copy()
    TRVAE.setup_anndata(train, "condition", labels_key="cell_type", total_counts_key="whole")
    model = TRVAE(train, n_latent=4, n_hidden=(16, 8))
    model.train(3, **QUIET)
    own, other = {"target": "stimulated", "labels": "type_0"}, cells.copy()
    other.obs["whole"] = other.obs["total_counts"]
    model.predict(train.copy(), **own, exemplars=cells[hidden][:9].copy())
    assert "scale" not in caplog.text
    found = model.predict(other[~hidden].copy(), **own, exemplars=other[hidden][:9].copy())
    assert any("totals over the genes" in note for note in found.uns["trvae_sc"]["notes"])
    assert "Means of exemplars are" in caplog.text


@pytest.mark.parametrize("with_known", [True, False])
def test_queries_on_another_scale_are_warned_of(with_known, caplog):
    """Effect R2 of a new cytokine in mouse neutrophils: -33 in place of 0.98."""
    adata = simulate(900, 200, n_labels=3, n_conditions=3, seed=3)
    logs, other = (normalised(adata, total) for total in (1e4, 1e6))
    *known, new = adata.obs["condition"].cat.categories
    train = logs[logs.obs["condition"] != new].copy()
    TRVAE.setup_anndata(train, "condition", labels_key="cell_type")
    model = TRVAE(train, gene_likelihood="normal", n_latent=4, n_hidden=(16, 8))
    model.train(2, **QUIET)
    shown = [new, known[0]] if with_known else [new]
    for cells in (logs, other):
        assert "Means of the query" not in caplog.text
        TRVAE.load_query_data(cells[cells.obs["condition"].isin(shown)].copy(), model)
    assert "Means of the query are" in caplog.text


def test_models_of_the_family_note_counts_in_place_of_log_values(counts):
    """Effect R2 of a flow on Kang: -18 in place of 0.8."""
    adata, hidden = counts
    logs = normalised(adata, 1e4)
    train = logs[~hidden].copy()
    CycleGAN.setup_anndata(train, "condition", labels_key="cell_type", is_count=False)
    model = CycleGAN(train, n_hidden=(8,))
    model.train(1, **QUIET)
    for cells, n in ((logs, 0), (adata, 1)):
        predicted = model.predict(cells[~hidden].copy(), target="stimulated", labels="type_0")
        notes = predicted.uns["trvae_sc"]["notes"]
        assert sum("as on another scale" in note for note in notes) == n
