"""Print how often intervals hold for a donor whose stimulated cells were never seen.

python tests/benchmarks/donors.py [--donors 4 6 8] [--sets 3] [--sd 0.3] [--data kang_ifnb_donors.h5ad]

Simulated: of one donor the stimulated cells are hidden, of all labels; in half of the labels those of every
donor are. Share of genes and labels whose real change the 90 % interval covers, with and without
``replicate_key``. With --data: each donor's stimulated cells are hidden in turn.
"""

import argparse

import anndata
import numpy as np
import pandas as pd
import torch

from trvae_sc import TRVAE
from trvae_sc.datasets import simulate

QUIET = {"enable_progress_bar": False, "accelerator": "cpu", "devices": 1}


def f_of(adata: anndata.AnnData, rows: np.ndarray, kappa: float, genes: list[str]) -> np.ndarray:
    """Return log(1 + kappa share) of the mean share of some cells."""
    own = adata[rows, genes]
    total = np.asarray(adata[rows].X.sum(1))
    return np.log1p(kappa * np.asarray((own.X.toarray() / total).mean(0)).ravel())


def covered(adata, hidden, donor, labels, *, replicates: bool, max_epochs: int) -> dict:
    """Return the share of real changes of a donor that intervals cover, by label."""
    train = adata[~hidden].copy()
    key = "donor" if replicates else None
    TRVAE.setup_anndata(train, "condition", labels_key="cell_type", replicate_key=key)
    model = TRVAE(train, n_latent=8, n_hidden=(64, 32))
    model.train(max_epochs, **QUIET)
    kappa, found = model.module.kappa.item(), {}
    table = model.effects(target="stimulated", source="control", by=key)
    for label in labels:
        own = (adata.obs["cell_type"] == label) & (adata.obs["donor"] == donor)
        rows = [(own & (adata.obs["condition"] == c)).to_numpy() for c in ("control", "stimulated")]
        if min(r.sum() for r in rows) < 10:
            continue
        genes = list(model.get_var_names())
        start, end = (f_of(adata, r, kappa, genes) for r in rows)
        one = table[table["label"] == label]
        one = one[one["replicate"] == donor] if replicates else one
        found[label] = float(((one["lower"] <= end - start) & (end - start <= one["upper"])).mean())
    return found


def simulated(args: argparse.Namespace) -> pd.DataFrame:
    """Return coverage by number of donors, kind of label and whether replicates were named."""
    rows = []
    for n_donors in args.donors:
        for seed in range(args.sets):
            adata = simulate(
                800 * n_donors, 200, n_labels=6, n_donors=n_donors, donor_sd=args.sd, seed=seed
            )
            stimulated = (adata.obs["condition"] == "stimulated").to_numpy()
            unseen = adata.obs["cell_type"].isin(["type_1", "type_3"]).to_numpy()
            hidden = stimulated & ((adata.obs["donor"] == "donor_0").to_numpy() | unseen)
            for replicates in (True, False):
                labels = list(adata.obs["cell_type"].cat.categories)
                options = {"replicates": replicates, "max_epochs": args.max_epochs}
                for label, share in covered(adata, hidden, "donor_0", labels, **options).items():
                    kind = "unseen label" if label in ("type_1", "type_3") else "seen label"
                    rows.append((n_donors, kind, "with" if replicates else "without", share))
    return pd.DataFrame(rows, columns=["donors", "label", "replicate_key", "covered"])


def real(args: argparse.Namespace) -> pd.DataFrame:
    """Return coverage of the donors of a data set."""
    adata, rows = anndata.read_h5ad(args.data), []
    adata.obs["donor"] = adata.obs["donor"].astype(str)
    for donor in adata.obs["donor"].unique():
        hidden = (
            (adata.obs["donor"] == donor) & (adata.obs["condition"] == "stimulated")
        ).to_numpy()
        labels = list(adata.obs["cell_type"].unique())
        for replicates in (True, False):
            options = {"replicates": replicates, "max_epochs": args.max_epochs}
            found = covered(adata, hidden, donor, labels, **options)
            name = "with" if replicates else "without"
            rows += [(donor, label, name, share) for label, share in found.items()]
    return pd.DataFrame(rows, columns=["donor", "label", "replicate_key", "covered"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--donors", type=int, nargs="+", default=[4, 6, 8])
    parser.add_argument("--sets", type=int, default=3, help="simulated data sets of each number")
    parser.add_argument(
        "--sd", type=float, default=0.3, help="how donors differ, natural log units"
    )
    parser.add_argument("--max-epochs", type=int, default=20)
    parser.add_argument("--data")
    args = parser.parse_args()
    torch.set_num_threads(1)
    table = real(args) if args.data else simulated(args)
    by = ["donor", "label"] if args.data else ["donors", "label"]
    print(
        table.pivot_table(index=by, columns="replicate_key", values="covered").round(3).to_string()
    )
