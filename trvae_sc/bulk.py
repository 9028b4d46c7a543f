"""Counts summed over the cells of donors, as tests of differential expression take them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData

from trvae_sc.arguments import check_whole
from trvae_sc.checks import check_matrix, check_obs, check_type, check_values
from trvae_sc.errors import InputError
from trvae_sc.levels import as_text
from trvae_sc.replicates import group_sums


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
        Cells that a combination needs; others are left out.

    Returns
    -------
    One row a combination, named by its levels: ``X`` summed counts (integers), ``obs`` the columns of `by` and
    ``n_cells``.

    Raises
    ------
    InputError
        No counts (predict with ``output="counts"``), columns that are missing, or no combination with enough
        cells.

    Examples
    --------
    >>> both = anndata.concat([controls, model.predict(controls, target="stimulated")])
    >>> bulk = trvae_sc.pseudobulk(both, by=["cell_type", "donor", "condition"])
    >>> dds = pydeseq2.dds.DeseqDataSet(  # doctest: +SKIP
    ...     adata=bulk[bulk.obs.cell_type == "B"].copy(), design="~condition"
    ... )
    """
    check_type(adata)
    by = [by] if isinstance(by, str) else list(by)
    if not by:
        raise InputError("by names no column; give those that tell donors and conditions apart.")
    check_obs(adata, by)
    check_matrix(adata, layer)
    check_whole("min_cells", min_cells)
    x = adata.X if layer is None else adata.layers[layer]
    name = "adata.X" if layer is None else f"adata.layers['{layer}']"
    check_values(x, is_count=True, totals=np.ones(adata.n_obs) * np.inf, name=name)
    keys = pd.DataFrame({key: as_text(adata.obs[key]) for key in by})
    groups = keys.groupby(by, sort=True)
    sums, n_cells = group_sums(x, None, groups.ngroup().to_numpy(), groups.ngroups)
    enough = n_cells >= min_cells
    if not enough.any():
        raise InputError(
            f"No combination of {by} has {min_cells} cells; the largest has {int(n_cells.max())}. Lower "
            "min_cells, or name fewer columns."
        )
    obs = keys.drop_duplicates().sort_values(by)[enough].astype("category")
    obs = obs.assign(n_cells=n_cells[enough].astype(int))
    obs.index = pd.Index(["_".join(row) for row in obs[by].to_numpy()], dtype=str)
    counts = np.rint(sums[enough]).astype(np.int64)
    return AnnData(counts, obs=obs, var=pd.DataFrame(index=adata.var_names.copy()))
