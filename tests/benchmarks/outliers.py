"""Print how well cells of a label that was left out of training are found.

python tests/benchmarks/outliers.py [kang_ifnb_donors.h5ad ...] [--preset vae]

On digits and on the files given (counts; columns condition and cell_type). Each label is left out of training in
turn, and a quarter of the other cells is kept back. AUROC of the cells left out against these: of
``family.outlier_score``, of what it might be (distance to 5 neighbours in so many principal components, or among
the model's codes; deviance; likelihood), and the share of the known that have p < 0.05.
"""

import argparse

import anndata
import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from trvae_sc import TRVAE, choose_genes, datasets
from trvae_sc.expression import dense
from trvae_sc.family import outlier_score
from trvae_sc.family._cells import values_of

QUIET = {"enable_progress_bar": False, "accelerator": "cpu", "devices": 1}
COMPONENTS = (5, 10, 20, 30, 50)
NAMES = {"condition_key": "condition", "labels_key": "cell_type"}


def near(known: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Return the mean distance of cells to the 5 nearest of those known."""
    return NearestNeighbors(n_neighbors=5).fit(known).kneighbors(cells)[0].mean(1)


def row(adata: anndata.AnnData, label: str, names: dict[str, str], preset: str) -> dict[str, float]:
    """Return the scores of one label left out."""
    is_new = (adata.obs[names["labels_key"]] == label).to_numpy()
    held = ~is_new & (np.random.default_rng(0).random(adata.n_obs) < 0.25)
    known, cells = adata[~is_new & ~held].copy(), adata[is_new | held].copy()
    if "total_counts_key" in names:
        genes = choose_genes(known, n_top_genes=1000, **names).chosen
        known, cells = known[:, genes].copy(), cells[:, genes].copy()
    TRVAE.setup_anndata(known, **names)
    likelihood = "nb" if "total_counts_key" in names else "normal"
    model = TRVAE(known, preset=preset, gene_likelihood=likelihood)
    model.train(train_size=0.9, **QUIET)
    found, truth = outlier_score(model, cells), is_new[is_new | held]
    train = known[np.sort(model.train_indices)].copy()
    x, y = (dense(values_of(model, a)) for a in (train, cells))
    pca = PCA(max(COMPONENTS), random_state=0).fit(x)
    x, y = pca.transform(x), pca.transform(y)
    scores = {"outlier_score": found["score"]}
    scores |= {f"{n} components": near(x[:, :n], y[:, :n]) for n in COMPONENTS}
    scores["codes"] = near(*(model.get_latent_representation(a) for a in (train, cells)))
    scores |= {"deviance": found["deviance"], "likelihood": -found["log_likelihood"]}
    result = {name: roc_auc_score(truth, score) for name, score in scores.items()}
    known_below = (found["p_value"][~truth] < 0.05).mean()
    return result | {"p < .05 of known": known_below, "chosen": found.attrs["n_components"]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", help="h5ad files with raw counts")
    parser.add_argument("--preset", default="vae")
    args = parser.parse_args()
    torch.set_num_threads(1)
    digits = datasets.digits()
    digits.X /= 16
    data = {"digits": (digits, {"condition_key": "style", "labels_key": "digit"})}
    for file in args.files:
        cells = anndata.read_h5ad(file)
        cells.obs["total_counts"] = np.asarray(cells.X.sum(1)).ravel()
        data[file] = (cells, NAMES | {"total_counts_key": "total_counts"})
    for name, (cells, names) in data.items():
        counts = cells.obs[names["labels_key"]].value_counts()
        labels = counts.index[counts >= 30].sort_values()
        table = pd.DataFrame({label: row(cells, label, names, args.preset) for label in labels})
        print(
            name, table.assign(mean=table.mean(axis=1)).round(3).to_string(), sep="\n", flush=True
        )
