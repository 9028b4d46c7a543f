"""Donors as replicates: their means, changes within them, intervals, tables by donor."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from trvae_sc import TRVAE
from trvae_sc.datasets import simulate
from trvae_sc.errors import InputError
from trvae_sc.intervals import half_width, standardised
from trvae_sc.left_out import labels_left_out, replicates_left_out
from trvae_sc.replicates import Replicates, group_sums
from trvae_sc.shift import Likeness, Profiles, Ridge, changed

QUIET = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False}


def test_sums_of_groups_are_those_of_numpy():
    rng = np.random.default_rng(0)
    x, group = rng.poisson(2.0, (50, 7)).astype(np.float32), rng.integers(-1, 4, 50)
    totals = rng.integers(5, 50, 50).astype(float)
    for matrix in (x, sparse.csr_matrix(x)):
        sums, n_cells = group_sums(matrix, totals, group, 5)
        for g in range(5):
            own = group == g
            assert sums[g] == pytest.approx((x[own] / totals[own, None]).sum(0))
            assert n_cells[g] == own.sum()
        plain, _ = group_sums(matrix, None, group, 5)
        assert plain[2] == pytest.approx(x[group == 2].sum(0))


def known(n_donors=4, n_labels=5, n_genes=200, *, sd=0.5, seed=0):
    """Return profiles of values under two conditions, whose donors' changes differ by `sd`."""
    rng = np.random.default_rng(seed)
    start = rng.normal(0, 1, (n_labels, n_genes))
    change = rng.normal(0, 1, n_genes) + 0.3 * rng.normal(0, 1, (n_labels, n_genes))
    of_donor = rng.normal(0, sd, (n_donors, n_genes))
    level = rng.normal(0, 2.0, (n_donors, n_genes))
    groups, mean = [], []
    for d in range(n_donors):
        for label in range(n_labels):
            groups += [(d, label, 0), (d, label, 1)]
            own = start[label] + level[d]
            mean += [own, own + change[label] + of_donor[d]]
    replicates = Replicates(
        "donor",
        tuple(map(str, range(n_donors))),
        np.array(groups),
        np.array(mean),
        np.full(len(mean), 100),
    )
    both = np.stack([start, start + change + of_donor.mean(0)], 1)
    n_cells = np.full((n_labels, 2), 100.0 * n_donors)
    labels = tuple(map(str, range(n_labels)))
    return Profiles(both, n_cells, labels, False, replicates), change, of_donor


def test_changes_are_taken_within_donors():
    """Donors of other levels, of which one condition lacks some, are no change."""
    profiles, change, of_donor = known()
    keep = ~((profiles.replicates.groups[:, 0] == 0) & (profiles.replicates.groups[:, 2] == 1))
    replicates = Replicates(
        "donor",
        profiles.replicates.names,
        profiles.replicates.groups[keep],
        profiles.replicates.mean[keep],
        profiles.replicates.n_cells[keep],
    )
    confounded = profiles.mean.copy()
    confounded[:, 1] += 5.0  # the mean of the donors that are left
    found = Profiles(confounded, profiles.n_cells, profiles.labels, False, replicates)
    groups = np.array([(label, 1) for label in range(5)])
    expected = change + of_donor[1:].mean(0)
    assert found.changes(groups, 0) == pytest.approx(expected)
    without = Profiles(confounded, profiles.n_cells, profiles.labels, False)
    assert without.changes(groups, 0) == pytest.approx(confounded[:, 1] - confounded[:, 0])


def test_a_change_counts_for_the_cells_of_the_donors_that_have_both_ends():
    """One donor has 2 cells under either condition; two others, of 998, have one of them each."""
    mean = np.full((4, 2, 5), 2.0)
    mean[:, 1] = 3.0
    groups = np.array([(0, 0, 0), (0, 0, 1), (1, 0, 0), (2, 0, 1)])
    of_donors = np.array([2.0, 7.0, 2.0, 3.0])[:, None] * np.ones(5)
    n = np.array([2, 2, 998, 998])
    replicates = Replicates("donor", ("p", "q", "r"), groups, of_donors, n)
    profiles = Profiles(mean, np.full((4, 2), 1000.0), tuple("abcd"), False, replicates)
    ridge = Ridge(profiles, 0, Likeness.of_itself(1))
    assert ridge.n.tolist() == [2, 1000, 1000, 1000]
    assert ridge.measured(0) == pytest.approx(2 / 32)
    # labels are equally alike: their mean, weighted by the variance 0.3 + 0.3 * 30 / n of each
    weight = 1 / (0.3 + 9 / np.array([2, 1000, 1000, 1000]))
    expected = np.average([5.0, 1.0, 1.0, 1.0], weights=weight)
    assert ridge.predict(mean[0, 0], None) - 2 == pytest.approx(np.full(5, expected), rel=1e-4)


def test_the_mean_of_equally_many_cells_of_each_donor_rests_on_all_of_them():
    profiles, _, _ = known(n_donors=4)
    assert Ridge(profiles, 0, Likeness.of_itself(1)).n == pytest.approx(np.full(5, 400.0))


def test_two_donors_of_a_single_label_tell_nothing_of_a_new_one():
    profiles, _, _ = known(n_donors=2)
    replicates = profiles.replicates
    kept = (replicates.groups[:, 1] == 1) | (replicates.groups[:, 0] == 0)
    fewer = Replicates(
        "donor",
        replicates.names,
        *(x[kept] for x in (replicates.groups, replicates.mean, replicates.n_cells)),
    )
    ridge = Ridge(replace(profiles, replicates=fewer), 0, Likeness.of_itself(1))
    assert replicates_left_out(ridge, 1) is None
    assert labels_left_out(ridge).half_width is not None


def test_a_donor_left_out_is_missed_by_its_difference_from_the_others():
    profiles, _, of_donor = known()
    ridge = Ridge(profiles, 0, Likeness.of_itself(1))
    missed = replicates_left_out(ridge, 1)
    assert missed.residuals.shape == (20, 200)
    for d in range(4):
        others = np.delete(of_donor, d, 0).mean(0)
        own = missed.residuals[missed.unit == d]
        assert own == pytest.approx(np.tile(of_donor[d] - others, (5, 1)))
    labels = labels_left_out(ridge)
    assert labels.residuals.shape == (20, 200)
    assert np.bincount(labels.unit).tolist() == [4] * 5
    for label in range(5):  # as far from each other as a new donor is from the mean of four
        own = labels.residuals[labels.unit == label]
        spread = (of_donor - of_donor.mean(0)) * np.sqrt(5 / 3)
        assert own - own.mean(0) == pytest.approx(spread)
    plain = Ridge(Profiles(*list(vars(profiles).values())[:4]), 0, Likeness.of_itself(1))
    assert replicates_left_out(plain, 1) is None
    assert labels_left_out(plain).residuals == pytest.approx(plain.left_out()[0])


def test_intervals_hold_for_a_new_donor_only_with_replicates():
    covered, without = [], []
    for seed in range(8):
        profiles, change, _ = known(n_donors=6, sd=0.5, seed=seed)
        rng = np.random.default_rng(100 + seed)
        new = change[0] + rng.normal(0, 0.5, 200)
        ridge = Ridge(profiles, 0, Likeness.of_itself(1))
        predicted = (
            changed(profiles.mean[0, 0], ridge.changes[0], is_count=False) - profiles.mean[0, 0]
        )
        half = replicates_left_out(ridge, 1).half_width
        covered.append((np.abs(new - predicted) <= half).mean())
        plain = Ridge(Profiles(*list(vars(profiles).values())[:4]), 0, Likeness.of_itself(1))
        without.append((np.abs(new - predicted) <= half_width(*plain.left_out())).mean())
    assert 0.85 < np.mean(covered) < 0.95
    assert np.mean(without) < 0.8


def test_scales_are_those_of_other_units():
    rng = np.random.default_rng(0)
    missed, n = rng.normal(size=(6, 100)), np.full(6, 50.0)
    unit = np.array([0, 0, 1, 1, 2, 2])
    scores, _, scale = standardised(missed, n, unit=unit)
    squares = np.square(missed[2:])
    own = np.sqrt((squares.sum(0) + squares.mean()) / 5)
    assert scores[:100] == pytest.approx(np.abs(missed[0]) / own)
    assert scale == pytest.approx(standardised(missed, n)[2])
    assert standardised(missed, n, unit=np.array([0, 0, 0, 1, 1, 1])) is None


@pytest.fixture(scope="module")
def donors():
    adata = simulate(1600, 60, n_labels=4, n_donors=4, donor_sd=0.3, seed=1)
    hidden = (adata.obs["donor"] == "donor_0") & (adata.obs["condition"] == "stimulated")
    hidden |= (adata.obs["cell_type"] == "type_3") & (adata.obs["condition"] == "stimulated")
    train = adata[~hidden].copy()
    before = train.obs.copy()
    keys = {"labels_key": "cell_type", "total_counts_key": "total_counts"}
    TRVAE.setup_anndata(train, "condition", replicate_key="donor", **keys)
    assert train.obs[list(before)].equals(before)
    model = TRVAE(train, n_latent=4, n_hidden=(16, 8))
    model.train(2, **QUIET)
    return model, adata


def test_a_model_keeps_the_means_of_its_donors(donors, tmp_path):
    model, _ = donors
    found, adata = model.trained.replicates, model.adata
    assert found.names == ("donor_0", "donor_1", "donor_2", "donor_3")
    kappa, x = model.module.kappa.item(), adata.X.toarray()
    shares = x / adata.obs["total_counts"].to_numpy()[:, None]
    for (d, label, c), mean, n in zip(found.groups, found.mean, found.n_cells, strict=True):
        own = (
            (adata.obs["donor"] == f"donor_{d}")
            & (adata.obs["cell_type"] == f"type_{label}")
            & (adata.obs["condition"] == model.conditions[c])
        ).to_numpy()
        assert n == own.sum()
        assert mean == pytest.approx(np.log1p(kappa * shares[own].mean(0)), abs=1e-4)
    assert found.n_cells.sum() == adata.n_obs
    table = model.effects(target="stimulated", by="donor")
    model.save(tmp_path / "m")
    again = TRVAE.load(tmp_path / "m", adata=False)
    pd.testing.assert_frame_equal(again.effects(target="stimulated", by="donor"), table)


def test_effects_by_donor_start_from_its_own_mean(donors):
    model, adata = donors
    table = model.effects(target="stimulated", by="donor")
    assert len(table) == 4 * 4 * 60
    assert list(table)[:2] == ["label", "replicate"]
    whole = model.effects(target="stimulated", labels="type_1")
    own = table[(table["label"] == "type_1") & (table["replicate"] == "donor_0")]
    eps = 0.3
    fold = (np.expm1(whole["predicted_mean"]) + eps) / (np.expm1(whole["source_mean"]) + eps)
    start = np.expm1(own["source_mean"].to_numpy())
    expected = np.log1p(np.maximum((start + eps) * fold - eps, 0))
    assert own["predicted_mean"].to_numpy() == pytest.approx(expected.to_numpy(), abs=1e-5)
    assert own["measured_change"].isna().all()
    seen = table[(table["label"] == "type_1") & (table["replicate"] == "donor_1")]
    cells = adata[(adata.obs["cell_type"] == "type_1") & (adata.obs["donor"] == "donor_1")]
    kappa = model.module.kappa.item()
    shares = cells.X.toarray() / cells.obs["total_counts"].to_numpy()[:, None]
    f = [
        np.log1p(kappa * shares[(cells.obs["condition"] == c).to_numpy()].mean(0))
        for c in ("control", "stimulated")
    ]
    assert seen["measured_change"].to_numpy() == pytest.approx(f[1] - f[0], abs=1e-4)
    assert (seen["n_source_cells"] == (cells.obs["condition"] == "control").sum()).all()
    unseen = table[table["label"] == "type_3"]
    assert (unseen["upper"] - unseen["lower"]).mean() > (own["upper"] - own["lower"]).mean()


def test_donors_of_other_labels_say_nothing_of_one_whose_donors_differ_by_condition():
    """No condition changes anything, but donors differ; of `a` each condition is of other donors."""
    rng = np.random.default_rng(0)
    labels, conditions = list("abcde"), ["control", "stimulated"]
    groups = [(k, c, d) for k in labels for c in conditions for d in range(4)]
    groups = [(k, c, d) for k, c, d in groups if k != "a" or (c == "control") == (d < 2)]
    obs = pd.DataFrame(groups, columns=["cell_type", "condition", "donor"])
    obs = obs.loc[obs.index.repeat(30)].astype(str).set_axis(map(str, range(30 * len(obs))))
    level = rng.normal(3.0, 0.4, (4, 100))[obs["donor"].astype(int)]
    cells = AnnData((level + rng.normal(0, 0.5, level.shape)).astype(np.float32), obs=obs)
    keys = {"labels_key": "cell_type", "replicate_key": "donor"}
    TRVAE.setup_anndata(cells, "condition", **keys)
    model = TRVAE(cells, gene_likelihood="normal", n_latent=2, n_hidden=(8, 8))
    model.train(1, **QUIET)
    table = model.effects(target="stimulated")
    assert (table["qval"] < 0.1).sum() == 0
    assert (table["pval"].isna() == (table["label"] == "a")).all()


def test_cells_without_donors_can_be_predicted(donors):
    model, adata = donors
    cells = adata[adata.obs["condition"] == "control"][:20].copy()
    del cells.obs["donor"]
    assert model.predict(cells, target="stimulated").n_obs == 20


def test_a_query_without_donors_keeps_those_of_its_reference(donors):
    model, adata = donors
    query = adata[adata.obs["cell_type"] == "type_1"][:80].copy()
    del query.obs["donor"]
    query.obs["condition"] = query.obs["condition"].astype(str).replace("stimulated", "new")
    extended = TRVAE.load_query_data(query, model)
    extended.train(1, **QUIET)
    assert extended.trained.replicates.names == model.trained.replicates.names


def test_bad_replicates_are_refused(donors, trained, make_adata):
    adata = make_adata()
    adata.obs["donor"] = np.where(adata.obs["condition"] == "control", "a", "b")
    adata.obs["one"] = "x"
    for key, message in (
        ("donor", "under two conditions .*a: 'control'; b: 'stimulated'"),
        ("one", "has one level, 'x'"),
        ("nothing", "No column 'nothing'"),
    ):
        with pytest.raises(InputError, match=message):
            TRVAE.setup_anndata(adata, "condition", labels_key="cell_type", replicate_key=key)
    assert not adata.uns
    with pytest.raises(InputError, match="with replicate_key='donor'"):
        donors[0].effects(target="stimulated", by="sex")
    with pytest.raises(InputError, match="replicate_key=None"):
        trained.effects(target="stimulated", by="batch")
