"""Counts summed over the cells of donors, as tests of differential expression take them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.utils import make_index_unique

from trvae_sc.arguments import check_whole
from trvae_sc.checks import (
    NEED_COUNTS,
    RECORD,
    check_matrix,
    check_obs,
    check_type,
    looks_like_counts,
    matrix,
    matrix_name,
)
from trvae_sc.errors import InputError
from trvae_sc.levels import as_list, in_order, listing
from trvae_sc.replicates import group_sums

logger = logging.getLogger(__name__)

_N_CELLS = "n_cells"  # column of the result


def pseudobulk(
    adata: AnnData, by: Sequence[str], *, layer: str | None = None, min_cells: int = 10
) -> AnnData:
    """Return the summed counts of each combination of levels, as label, donor and condition.

    pydeseq2 takes the result as it is. Donors, not cells, are then the replicates (Squair et al. 2021,
    doi:10.1038/s41467-021-25960-2). Of predicted cells keep in mind that all donors were predicted by one
    model: how wrong it may be is in the intervals of :meth:`trvae_sc.TRVAE.effects`, not in such a test.

    Parameters
    ----------
    adata
        Measured or predicted counts; ``anndata.concat([controls, predicted])`` for both.
    by
        Columns of ``adata.obs``.
    layer
        Layer with the counts; ``adata.X`` if None.
    min_cells
        Cells that a combination needs; others are left out, and named in the log.

    Returns
    -------
    One row a combination, named by its levels: ``X`` summed counts (integers), ``obs`` the columns of `by`, as
    categories in the order that they have in `adata` (pydeseq2 takes the first for the reference), and ``n_cells``.

    Raises
    ------
    InputError
        No counts (predict with ``output="counts"``), columns that are missing, several draws of each predicted
        cell, or no combination with enough cells.

    Examples
    --------
    >>> adata = trvae_sc.datasets.simulate(800, 60, n_labels=3, n_donors=4)
    >>> bulk = trvae_sc.pseudobulk(adata, by=["cell_type", "donor", "condition"])
    >>> bulk.n_obs == 3 * 4 * 2
    True
    >>> one = bulk[bulk.obs.cell_type == "type_0"].copy()
    >>> dds = pydeseq2.dds.DeseqDataSet(adata=one, design="~condition")  # doctest: +SKIP
    """
    check_type(adata)
    by = [] if by is None else as_list(by)
    if not by:
        raise InputError("by names no column; give those that tell donors and conditions apart.")
    if _N_CELLS in by:
        raise InputError(f"by names {_N_CELLS!r}, a column that the result writes. Rename it.")
    check_obs(adata, by)
    by = list(dict.fromkeys(by))
    if adata.uns.get(RECORD, {}).get("n_samples", 1) > 1 and "sample" not in by:
        draws = adata.obs.get("sample", pd.Series()).nunique()
        if draws > 1:
            raise InputError(
                f"adata holds {draws} draws of each predicted cell, which would be summed as if they were cells. "
                "Take one, adata[adata.obs['sample'] == 0], or name 'sample' in by."
            )
    check_matrix(adata, layer)
    check_whole("min_cells", min_cells)
    x = matrix(adata, layer)
    if not looks_like_counts(x, adata.n_obs):
        raise InputError(
            f"{matrix_name(layer)} holds no counts (negative, fractional or missing values), which alone can be "
            f"summed. It needs {NEED_COUNTS}; of a prediction take output='counts'."
        )
    keys = pd.DataFrame({key: in_order(adata.obs[key]) for key in by})
    groups = keys.groupby(by, sort=True, observed=True)
    sums, n_cells = group_sums(x, None, groups.ngroup().to_numpy(), groups.ngroups)
    enough = n_cells >= min_cells
    if not enough.any():
        raise InputError(
            f"No combination of {by} has {min_cells} cells; the largest has {int(n_cells.max())}. Lower "
            "min_cells, or name fewer columns."
        )
    obs = keys.drop_duplicates().sort_values(by)
    if not enough.all():
        small = ["_".join(row) for row in obs[~enough].to_numpy()]
        logger.info("Left out, with fewer than %d cells: %s.", min_cells, listing(small))
    obs = obs[enough].apply(lambda column: column.cat.remove_unused_categories())
    names = pd.Index(["_".join(row) for row in obs.to_numpy()], dtype=str)
    obs = obs.set_axis(make_index_unique(names)).assign(**{_N_CELLS: n_cells[enough].astype(int)})
    counts = np.rint(sums[enough]).astype(np.int64)
    return AnnData(counts, obs=obs, var=pd.DataFrame(index=adata.var_names.copy()))
