"""Published data, read from the files that their authors deposited."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from scipy.io import mmread

from trvae_sc.datasets._download import fetch
from trvae_sc.errors import InputError

_GEO = "https://ftp.ncbi.nlm.nih.gov/geo"
_KANG_SERIES = f"{_GEO}/series/GSE96nnn/GSE96583/suppl"
_KANG_SAMPLES = f"{_GEO}/samples/GSM2560nnn"
_KANG = {  # address, and sha256 where several independent users of the file state the same
    "genes": (
        f"{_KANG_SERIES}/GSE96583_batch2.genes.tsv.gz",
        "93aa4e9b530ef9d6411ca129b416324c5cc1cc5a01a1fa6ed4f4a845480ed3ca",
    ),
    "annotation": (
        f"{_KANG_SERIES}/GSE96583_batch2.total.tsne.df.tsv.gz",
        "1d57e72e92ca8695250e88cc0f1c3fa8c0be1175d974f8b427c58f1274dc6c09",
    ),
    "ctrl matrix": (f"{_KANG_SAMPLES}/GSM2560248/suppl/GSM2560248_2.1.mtx.gz", None),
    "ctrl barcodes": (f"{_KANG_SAMPLES}/GSM2560248/suppl/GSM2560248_barcodes.tsv.gz", None),
    "stim matrix": (f"{_KANG_SAMPLES}/GSM2560249/suppl/GSM2560249_2.2.mtx.gz", None),
    "stim barcodes": (f"{_KANG_SAMPLES}/GSM2560249/suppl/GSM2560249_barcodes.tsv.gz", None),
}
_KANG_CONDITIONS = {"ctrl": "control", "stim": "stimulated"}  # as annotated: as returned
_HABER = f"{_GEO}/series/GSE92nnn/GSE92332/suppl/GSE92332_SalmHelm_UMIcounts.txt.gz"
_HABER_CONDITIONS = ("Control", "Salmonella", "Hpoly.Day3", "Hpoly.Day10")
_HABER_NAME = (  # mouse, barcode, condition and cell type
    r"^(?P<batch>[^_]*)_[^_]*_(?P<condition>Control|Salmonella|Hpoly\.Day3|Hpoly\.Day10)_(?P<cell_type>.*)"
)
_GENES_AT_ONCE = 500


def kang18(
    *, keep_doublets: bool = False, keep_unannotated: bool = False, progress: bool = True
) -> AnnData:
    """Return blood cells of eight donors, with and without interferon beta (Kang et al. 2018).

    Mononuclear cells of eight patients with lupus, cultured for six hours: batch 2 of GEO series
    GSE96583, six files, 59 MB, read as they were deposited.

    Parameters
    ----------
    keep_doublets
        Keep droplets that were called doublets or ambiguous.
    keep_unannotated
        Keep cells that have no cell type; theirs is NaN.
    progress
        Show progress bars.

    Returns
    -------
    AnnData with counts in ``X`` (CSR, float32), ``obs["condition"]`` ("control", "stimulated"),
    ``obs["cell_type"]`` (eight), ``obs["donor"]`` (eight), ``obs["multiplets"]``, ``var["gene_id"]``
    (Ensembl) and ``obsm["X_tsne"]``. Names of cells are condition and barcode, names of genes symbols
    made unique. 24,673 cells x 35,635 genes.

    Raises
    ------
    ConnectionError
        A file could not be downloaded; the message says where to put it by hand.
    InputError
        A file is damaged, or files disagree with each other.

    References
    ----------
    Kang et al. 2018, Nature Biotechnology 36:89, doi:10.1038/nbt.4042.
    """
    files = {
        name: fetch(url, known_hash=known, progress=progress)
        for name, (url, known) in _KANG.items()
    }
    genes = pd.read_csv(files["genes"], sep="\t", header=None, dtype=str, keep_default_na=False)
    annotation = pd.read_csv(files["annotation"], sep="\t", dtype={"ind": str})
    arms = [_kang_arm(files, arm, annotation, len(genes)) for arm in _KANG_CONDITIONS]
    cells = pd.concat([obs for _, obs in arms])
    names = anndata.utils.make_index_unique(pd.Index(genes[1].to_numpy(dtype=str)))
    adata = AnnData(
        sparse.vstack([counts for counts, _ in arms], format="csr"),
        obs=pd.DataFrame(
            {
                "condition": pd.Categorical(cells["condition"], list(_KANG_CONDITIONS.values())),
                "cell_type": pd.Categorical(cells["cell"]),
                "donor": pd.Categorical(cells["ind"]),
                "multiplets": pd.Categorical(cells["multiplets"]),
            },
            index=cells.index,
        ),
        var=pd.DataFrame({"gene_id": genes[0].to_numpy()}, index=names),
        obsm={"X_tsne": cells[["tsne1", "tsne2"]].to_numpy()},
    )
    kept = (cells["multiplets"] == "singlet") | keep_doublets
    kept &= cells["cell"].notna() | keep_unannotated
    return adata[kept.to_numpy()].copy()


def _kang_arm(
    files: dict[str, Path], arm: str, annotation: pd.DataFrame, n_genes: int
) -> tuple[sparse.csr_matrix, pd.DataFrame]:
    """Return counts (n_cells x n_genes) and annotation of the cells of one condition."""
    matrix, listed = files[f"{arm} matrix"], files[f"{arm} barcodes"]
    counts = sparse.csr_matrix(mmread(matrix, spmatrix=False).T, dtype=np.float32)
    barcodes = pd.read_csv(listed, sep="\t", header=None, dtype=str)[0]
    if counts.shape != (len(barcodes), n_genes):
        raise InputError(
            f"{matrix.name} has {counts.shape[0]} cells x {counts.shape[1]} genes, but {listed.name} "
            f"has {len(barcodes)} cells and {files['genes'].name} {n_genes} genes."
        )
    cells = annotation[annotation["stim"] == arm]
    # R appended a digit to the second occurrence of barcodes that both conditions have
    barcode = cells.index.where(cells.index.isin(barcodes), cells.index.str[:-1])
    if not barcode.is_unique or set(barcode) != set(barcodes):
        raise InputError(
            f"{files['annotation'].name} has {len(cells)} cells with stim '{arm}', "
            f"{barcode.isin(barcodes).sum()} of which are among the {len(barcodes)} of {listed.name}; "
            "each must be there once."
        )
    cells = cells.set_axis(barcode).loc[barcodes]
    condition = _KANG_CONDITIONS[arm]
    return counts, cells.assign(condition=condition).set_axis(f"{condition}_" + cells.index)


def haber17(*, progress: bool = True) -> AnnData:
    """Return gut cells of mice with Salmonella or a worm, and without (Haber et al. 2017).

    Epithelium of the small intestine after two days of Salmonella enterica, or three or ten days of
    Heligmosomoides polygyrus: file SalmHelm_UMIcounts of GEO series GSE92332, as it was deposited.

    Parameters
    ----------
    progress
        Show a progress bar of the download.

    Returns
    -------
    AnnData with counts in ``X`` (CSR, float32), ``obs["condition"]`` ("Control", "Salmonella",
    "Hpoly.Day3", "Hpoly.Day10"), ``obs["cell_type"]`` and ``obs["batch"]`` (mouse). Names of cells are
    those of the file. About 9,842 cells (3,240, 1,770, 2,121, 2,711 by condition).

    Raises
    ------
    ConnectionError
        The file could not be downloaded; the message says where to put it by hand.
    InputError
        The file is damaged, or names a cell in another way than expected.

    References
    ----------
    Haber et al. 2017, Nature 551:333, doi:10.1038/nature24489.
    """
    path = fetch(_HABER, progress=progress)
    with pd.read_csv(path, sep="\t", index_col=0, chunksize=_GENES_AT_ONCE) as reader:
        blocks = [
            (block.index, block.columns, sparse.csr_matrix(block.to_numpy(dtype=np.float32)))
            for block in reader
        ]
    genes = np.concatenate([index.to_numpy(dtype=str) for index, _, _ in blocks])
    names = blocks[0][1]
    fields = names.str.extract(_HABER_NAME).set_axis(names.to_numpy(dtype=str))
    strange = fields.index[fields.isna().any(axis=1)].tolist()
    if strange or not names.is_unique:
        raise InputError(
            f"{path.name} has columns {strange[:3]}; expected unique ones as "
            f"'B1_AAACATACCACAAC_Control_Stem', with a condition of {list(_HABER_CONDITIONS)}."
        )
    obs = fields[["condition", "cell_type", "batch"]].astype("category")
    obs["condition"] = obs["condition"].cat.set_categories(_HABER_CONDITIONS)
    x = sparse.vstack([block for _, _, block in blocks]).T.tocsr()
    var = pd.DataFrame(index=anndata.utils.make_index_unique(pd.Index(genes)))
    return AnnData(x, obs=obs, var=var)
