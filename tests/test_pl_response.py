"""How far predicted cells move, drawn."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from trvae_sc import pl
from trvae_sc.errors import InputError


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


@pytest.fixture
def predicted(make_adata, fit):
    model = fit(make_adata(n_cells=240))
    return model.predict(target="stimulated", source="control")


def test_labels_are_drawn_with_every_cell_and_the_quartiles(predicted):
    ax = pl.response(predicted)
    names = [text.get_text() for text in ax.get_yticklabels()]
    assert sorted(names) == ["B", "NK", "T"]
    for name, dots in zip(names, ax.collections, strict=True):
        own = predicted.obs["response"][predicted.obs["cell_type"] == name]
        np.testing.assert_allclose(np.sort(dots.get_offsets()[:, 0]), np.sort(own), rtol=1e-6)
    bars = [line for line in ax.lines if len(line.get_xdata()) == 2 and line.get_linewidth() == 3]
    own = predicted.obs["response"][predicted.obs["cell_type"] == names[0]]
    np.testing.assert_allclose(bars[0].get_xdata(), np.percentile(own, [25, 75]), rtol=1e-6)


def test_cells_are_coloured_on_an_embedding(predicted):
    predicted.obsm["X_umap"] = np.random.default_rng(0).normal(size=(predicted.n_obs, 2))
    figure, ax = plt.subplots()
    plt.subplots()  # another figure is current
    assert pl.response(predicted, basis="umap", ax=ax) is ax
    assert len(figure.axes) == 2  # with the scale
    shown = np.asarray(ax.collections[-1].get_array())
    np.testing.assert_allclose(np.sort(shown), np.sort(predicted.obs["response"]), rtol=1e-6)
    predicted.obs.iloc[[0, 2], predicted.obs.columns.get_loc("response")] = np.nan
    unknown, known = pl.response(predicted, basis="umap").collections[:2]  # were not drawn
    np.testing.assert_allclose(unknown.get_offsets(), predicted.obsm["X_umap"][[0, 2]])
    assert len(known.get_offsets()) == predicted.n_obs - 2


def test_what_cannot_be_drawn_is_refused(predicted, make_adata):
    with pytest.raises(InputError, match=r"no obs\['response'\]"):
        pl.response(make_adata())
    with pytest.raises(InputError, match="No embedding 'umap'"):
        pl.response(predicted, basis="umap")
    predicted.obs["response"] = np.nan
    with pytest.raises(InputError, match="not calibrated"):
        pl.response(predicted)
