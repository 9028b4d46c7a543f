"""How far codes tell the condition: closed forms, and what alignment does."""

import numpy as np
import pandas as pd
import pytest

from trvae_sc import TRVAE, family
from trvae_sc.errors import InputError


def with_codes(made, monkeypatch, x):
    """Let a model have these codes."""

    def represent(self, adata=None, indices=None, **_):
        return x if indices is None else x[indices]

    monkeypatch.setattr(TRVAE, "get_latent_representation", represent)
    return made


def test_codes_that_are_the_condition_tell_it(fit, monkeypatch):
    made = fit()
    code = (made.adata.obs["condition"] == "control").to_numpy(float)
    noise = np.random.default_rng(0).normal(0, 0.1, 120)
    found = family.mixing(with_codes(made, monkeypatch, np.stack([10 * code, noise], 1)))
    assert found.index.tolist() == ["B", "NK", "T"]
    assert (found["classifier"] == 1).all()
    assert (found["neighbors"] == 0).all()
    assert (found["variance"] > 0.99).all()
    assert (found["chance"] == 0.5).all()
    assert (found["n_cells"] == 40).all()


def test_codes_of_noise_do_not_tell_it(fit, monkeypatch, make_adata):
    made = fit(make_adata(3000))
    x = np.random.default_rng(0).normal(size=(3000, 3))
    found = family.mixing(with_codes(made, monkeypatch, x))
    assert found["classifier"].mean() == pytest.approx(0.5, abs=0.05)
    assert found["neighbors"].mean() == pytest.approx(1.0, abs=0.05)
    assert found["variance"].max() < 0.01


def test_variance_is_that_of_an_analysis_of_variance(fit, monkeypatch):
    made = fit()
    x = np.random.default_rng(1).normal(size=(120, 2))
    x[:, 0] += (made.adata.obs["condition"] == "control").to_numpy()
    found = family.mixing(with_codes(made, monkeypatch, x))
    for label, row in found.iterrows():
        at = (made.adata.obs["cell_type"] == label).to_numpy()
        frame = pd.DataFrame(x[at])
        condition = made.adata.obs["condition"].to_numpy()[at]
        within = frame.groupby(condition).transform("mean").rsub(frame).pow(2).sum().sum() * -1
        within = abs(within)
        total = ((frame - frame.mean()) ** 2).sum().sum()
        assert row["variance"] == pytest.approx(1 - within / total)


def test_y_is_compared_without_labels_too(make_adata):
    adata = make_adata()
    TRVAE.setup_anndata(adata, "condition", total_counts_key="n_counts")
    made = TRVAE(adata, n_latent=4, n_hidden=(16, 8))
    made.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
    found = family.mixing(made, on="y")
    assert found.index.tolist() == ["all"]
    assert 0 <= found.loc["all", "variance"] <= 1


def test_mixing_refuses(fit, make_adata):
    made = fit()
    with pytest.raises(InputError, match="on is 'x'; choose 'z'"):
        family.mixing(made, on="x")
    with pytest.raises(InputError, match="seed is -1"):
        family.mixing(made, seed=-1)
    with pytest.raises(InputError, match="No label has two conditions of 5"):
        family.mixing(made, make_adata(12))
    with pytest.raises(RuntimeError, match="not trained"):
        family.mixing(fit(train=False))
