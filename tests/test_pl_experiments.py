"""The matrix of what was measured and what to measure next."""

import matplotlib.colors as mcolors
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from trvae_sc import pl
from trvae_sc.errors import InputError

CELLS = pd.DataFrame(
    {"control": [10, 20, 1500], "a": [5, 0, 30], "b": [0, 0, 7]}, index=["x", "y", "z"]
)
TABLE = pd.DataFrame(
    {"label": ["y", "x", "z"], "condition": ["b", "b", "new"], "lowers": [0.5, 0.2, 0.1]}
)


def test_ranks_are_where_they_belong():
    ax = pl.next_experiments(CELLS, TABLE)
    texts = {
        (round(t.get_position()[1]), round(t.get_position()[0])): t.get_text() for t in ax.texts
    }
    assert texts[1, 2] == "1"
    assert texts[0, 2] == "2"
    assert texts[2, 3] == "3"
    assert texts[2, 0] == "1,500"
    assert texts[1, 1] == "none"
    shade = ax.images[0].get_array()
    assert shade[1, 2] == 0.5
    assert np.ma.count(np.ma.masked_invalid(shade)) == 3
    assert [t.get_text() for t in ax.get_xticklabels()] == ["control", "a", "b", "new"]
    assert "share" in ax.figure.axes[-1].get_ylabel()


def test_ranks_can_be_read_on_what_is_behind_them():
    ax = pl.next_experiments(CELLS, TABLE.assign(lowers=[0.9, 0.06, 0.02]))
    image = ax.images[0]
    for text in ax.texts:
        if text.get_weight() == "bold":
            column, row = text.get_position()
            behind = image.to_rgba(image.get_array())[row, column, :3]
            gap = abs(np.mean(behind) - np.mean(mcolors.to_rgb(text.get_color())))
            assert gap > 0.4


def test_it_draws_on_the_axes_given():
    _, axes = plt.subplots(1, 2)
    before = TABLE.copy()
    assert pl.next_experiments(CELLS, TABLE, ax=axes[1]) is axes[1]
    assert not axes[0].has_data()
    assert before.equals(TABLE)


def test_other_tables_are_refused():
    with pytest.raises(InputError, match="no columns"):
        pl.next_experiments(CELLS, CELLS)
    with pytest.raises(InputError, match=r"is a str; pl\.next_experiments draws"):
        pl.next_experiments("x", TABLE)
    with pytest.raises(InputError, match="no rows"):
        pl.next_experiments(CELLS, TABLE.iloc[:0])
    with pytest.raises(InputError, match="are not in the numbers"):
        pl.next_experiments(CELLS, TABLE.assign(label="q"))


def test_the_words_beside_the_scale_fit_few_labels():
    cells = pd.DataFrame([[5, 0]], index=["B"], columns=["control", "stimulated"])
    ranked = {"label": ["B"], "condition": ["stimulated"], "lowers": [1.0]}
    ax = pl.next_experiments(cells, pd.DataFrame(ranked).assign(left=0.0, expected_error=0.1))
    ax.figure.canvas.draw()
    box, size = ax.figure.get_tightbbox(), ax.figure.get_size_inches()
    assert (box.min >= 0).all()
    assert (box.max <= size).all()
