"""The data of Kang et al. 2018 for the tutorials, or something to stand in for them."""

import logging

import numpy as np
from anndata import AnnData

from trvae_sc import InputError, datasets


def load(n_cells: int = 4000, *, seed: int = 0) -> AnnData:
    """Return blood cells with and without interferon beta, at most `n_cells` of them.

    From ``kang_ifnb.h5ad`` in the folder that ``TRVAE_SC_DATA`` names, else from GEO (59 MB, kept), else
    simulated, so that the tutorials run without a connection. ``uns["origin"]`` says which. Totals over
    all genes are in ``obs["total_counts"]``, as scanpy's quality control leaves them.
    """
    adata, origin = _load()
    if adata.n_obs > n_cells:
        rows = np.random.default_rng(seed).choice(adata.n_obs, n_cells, replace=False)
        adata = adata[np.sort(rows)].copy()
    adata.obs["total_counts"] = np.asarray(adata.X.sum(1)).ravel()
    adata.uns = {"origin": origin}
    return adata


def _load() -> tuple[AnnData, str]:
    try:
        return datasets.load("kang_ifnb"), "Kang et al. 2018 (kang_ifnb.h5ad)"
    except InputError as error:  # no such file
        logging.getLogger(__name__).info("%s Asking GEO.", error)
    try:
        return datasets.kang18(progress=False), "Kang et al. 2018 (GEO, GSE96583)"
    except ConnectionError:
        adata = datasets.simulate(n_cells=2500, n_labels=7)
        names = {"type_0": "NK (simulated)"}
        adata.obs["cell_type"] = adata.obs["cell_type"].cat.rename_categories(names)
        return adata, (
            "SIMULATED, since GEO cannot be reached: put the six files of GSE96583, or a kang_ifnb.h5ad "
            "of your own, in a folder and name it in TRVAE_SC_DATA"
        )
