"""Print the error of reconstruction of images by the number of latent dimensions.

python tests/benchmarks/latent_size.py [--sizes 1 2 4 8 16 32 64]

Mean squared error of pixels (0 black, 1 white), of the 899 images of digits that were trained on and of the 898
others: of principal components beside the autoencoder of the same criterion (``mse``), of those of pixels in units
of their standard deviation beside ``normal``, which has these units, and of the VAE.
"""

import argparse

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from sklearn.decomposition import PCA

from trvae_sc import TRVAE, datasets

MODELS = (("autoencoder", "mse"), ("autoencoder", "normal"), ("vae", "normal"))
QUIET = {"enable_progress_bar": False, "accelerator": "cpu", "devices": 1}


def error(adata: AnnData, x: np.ndarray) -> float:
    """Return the mean squared error."""
    return float(np.square(adata.X - x).mean())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    args = parser.parse_args()
    torch.set_num_threads(1)
    images = datasets.digits(["normal"])
    images.X /= 16
    even = (images.obs["image"] % 2 == 0).to_numpy()
    parts = {"trained on": images[even].copy(), "held back": images[~even].copy()}
    train, rows = parts["trained on"], {}
    TRVAE.setup_anndata(train)
    for n in args.sizes:
        found = {}
        for preset, likelihood in MODELS:
            if preset == "autoencoder":
                scale = train.X.std(0) if likelihood == "normal" else np.ones(train.n_vars)
                scale = np.where(scale > 0, scale, 1.0)
                pca = PCA(n, svd_solver="full").fit(train.X / scale)
                for part, cells in parts.items():
                    x = scale * pca.inverse_transform(pca.transform(cells.X / scale))
                    found[f"components, {likelihood}", part] = error(cells, x)
            model = TRVAE(train, preset=preset, gene_likelihood=likelihood, n_latent=n)
            model.train(**QUIET)
            for part, cells in parts.items():
                x = model.decode(model.get_latent_representation(cells)).X
                found[f"{preset}, {likelihood}", part] = error(cells, x)
        rows[n] = found
    print(pd.DataFrame(rows).T.rename_axis("dimensions").round(5).to_string())
