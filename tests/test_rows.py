"""trvae_sc.rows: arrays that are filled block by block."""

import numpy as np
import pytest

from trvae_sc import rows
from trvae_sc.rows import Rows


@pytest.mark.parametrize("n", [None, 0, 4, 30])
@pytest.mark.parametrize("shape", [(), (3,)])
def test_blocks_come_back_as_one_array(monkeypatch, n, shape):
    monkeypatch.setattr(rows, "_FIRST", 2)
    rng = np.random.default_rng(0)
    blocks = [rng.normal(size=(k, *shape)).astype(np.float32) for k in (5, 0, 1, 24)]
    kept = Rows(n)
    for block in blocks:
        kept.add(block)
    found = kept.array()
    assert len(kept) == 30
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.concatenate(blocks))


def test_nothing_added_is_no_rows():
    assert len(Rows()) == 0
    assert Rows().array().shape == (0,)
