"""Models to share: the folder, and what the card says."""

import numpy as np
import pytest

from trvae_sc import hub
from trvae_sc.errors import InputError
from trvae_sc.evaluation import Keys, benchmark, holdouts

WHAT = {"license_info": "cc-by-4.0", "description": "Three labels, two conditions."}


@pytest.fixture
def trained(fit):
    return fit(train={"max_epochs": 3})


def test_card_holds_settings_cells_losses_and_versions(trained):
    card = hub.model_card(trained, **WHAT, references=["Kang et al. 2018"])
    header, body = card.removeprefix("---\n").split("\n---\n", 1)
    assert "license: cc-by-4.0" in header
    assert "- model_cls_name:TRVAE" in header
    assert body.lstrip().startswith("# TRVAE")
    assert "Three labels, two conditions." in body
    assert "| label | control | stimulated |\n| --- | --- | --- |\n| B | 20 | 20 |" in body
    assert "| gene_likelihood | nb |" in body
    last = trained.history["mmd_train"].iloc[-1, 0]
    assert f"| mmd_train | {last:.5g} | 3 |" in body
    assert "No benchmark was given" in body
    assert "- Kang et al. 2018\n- trVAE: Lotfollahi" in body


def test_card_takes_one_reference_and_refuses_what_are_no_results(trained):
    card = hub.model_card(trained, **WHAT, references="Kang et al. 2018")
    assert "- Kang et al. 2018\n- trVAE: Lotfollahi" in card
    with pytest.raises(InputError, match="results are of a benchmark, not str"):
        hub.model_card(trained, "results", **WHAT)


def test_card_holds_the_benchmark(trained, make_adata):
    keys = Keys("condition", "cell_type")
    adata = make_adata(240)
    tasks = holdouts(adata, keys=keys, source="control", min_cells=10)
    methods = ["no_change", "mean_shift"]
    results = benchmark(adata, methods, tasks, keys=keys, n_top_genes=None, progress=False)
    card = hub.model_card(trained, results, **WHAT)
    wide = results.wide()
    first = wide.index[0]
    score = wide.loc[first].round(3).iloc[0]
    assert f"| {first[0]} | {first[1]} | {score} |" in card
    assert "Mean over 3 combinations, each hidden from training in turn (B under stimulated" in card


def test_card_refuses_a_benchmark_of_other_data(trained, make_adata):
    """Scores of other data stood in the card as those of the model's own."""
    keys, adata = Keys("condition", "cell_type"), make_adata(240)
    given = {"keys": keys, "n_top_genes": None, "progress": False}
    for column, old, new in (("cell_type", "B", "Treg"), ("condition", "control", "mock")):
        other = adata.copy()
        other.obs[column] = other.obs[column].astype(str).replace(old, new)
        tasks = holdouts(other, keys=keys, source="mock" if new == "mock" else "control")
        results = benchmark(other, ["no_change"], tasks, **given)
        with pytest.raises(InputError, match=f"of other data than the model: .* '{new}'"):
            hub.model_card(trained, results, **WHAT)


def test_hub_model_comes_back_with_the_same_weights(trained, tmp_path, make_adata):
    pytest.importorskip("huggingface_hub")
    from scvi.hub import HubModel

    shared = hub.hub_model(trained, tmp_path / "shared", **WHAT, save_anndata=True)
    assert "# TRVAE" in shared.model_card.content
    found = HubModel(str(tmp_path / "shared"))
    assert found.metadata.model_cls_name == "TRVAE"
    found.load_model(accelerator="cpu")
    expected = trained.get_latent_representation()
    assert np.array_equal(found.model.get_latent_representation(), expected)
    with pytest.raises(InputError, match="overwrite=True"):
        hub.hub_model(trained, tmp_path / "shared", **WHAT)
    hub.hub_model(trained, tmp_path / "shared", **WHAT, overwrite=True)


def test_untrained_models_are_not_shared(fit, tmp_path):
    with pytest.raises(InputError, match="not trained"):
        hub.model_card(fit(train=False), **WHAT)


def test_pipes_do_not_break_tables(make_adata, fit):
    adata = make_adata()
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(str).replace("B", "B|naive")
    assert "| B\\|naive | 20 | 20 |" in hub.model_card(fit(adata), **WHAT)
