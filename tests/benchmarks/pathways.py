"""Print where an interferon set ranks among others in predicted changes of every held-out type.

python tests/benchmarks/pathways.py kang_ifnb.h5ad [--models FOLDER]      (needs decoupler)

Each type is hidden under stimulation in turn. A set that is short of five measured genes is left out.
"""

import argparse
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import torch
from exemplars import fitted

from trvae_sc import TRVAE, pathways
from trvae_sc.evaluation import Keys, holdouts, prepare_task
from trvae_sc.expression import dense

#: A few genes of each, written down from textbooks.
SETS = {
    "interferon": "ISG15 IFI6 IFIT1 IFIT2 IFIT3 MX1 MX2 OAS1 OAS2 OAS3 IRF7 STAT1 IFI44 IFI44L RSAD2 LY6E XAF1",
    "NF-kB": "NFKBIA NFKB1 NFKB2 TNFAIP3 TNF IL1B CCL3 CCL4 CXCL2 CXCL3 IL8 ICAM1 BIRC3 REL RELB",
    "AP-1": "FOS FOSB JUN JUNB JUND ATF3 EGR1 EGR2 DUSP1 IER2 IER3",
    "MHC II": "HLA-DRA HLA-DRB1 HLA-DPA1 HLA-DPB1 HLA-DQA1 HLA-DQB1 HLA-DMA HLA-DMB CD74 CIITA",
    "ribosome": "RPL3 RPL5 RPL7 RPL10 RPL13 RPL32 RPS2 RPS3 RPS6 RPS12 RPS18 RPS27 RPLP0 RPLP1",
    "respiration": "COX4I1 COX5A COX6C COX7C NDUFA4 NDUFB2 UQCRB UQCRH ATP5B ATP5E ATP5J CYC1",
    "cell cycle": "MKI67 TOP2A PCNA MCM2 MCM3 MCM5 CDK1 CCNB1 CCNA2 TYMS RRM2 STMN1 H2AFZ",
    "heat shock": "HSPA1A HSPA1B HSPA8 HSP90AA1 HSP90AB1 HSPH1 DNAJB1 DNAJA1 HSPE1 HSPD1",
    "cytotoxic": "GZMA GZMB GZMH GZMK PRF1 NKG7 GNLY KLRD1 CST7 CTSW FGFBP2",
    "lysosome": "CTSB CTSD CTSH CTSL CTSS CTSZ LAMP1 LAMP2 GBA NPC2 PSAP CD63",
}
NET = pd.DataFrame(
    [(k, gene) for k, v in SETS.items() for gene in v.split()], columns=["source", "target"]
)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file")
    parser.add_argument("--models", type=Path, help="folder to keep the models in")
    args = parser.parse_args()
    torch.set_num_threads(1)
    adata, keys = anndata.read_h5ad(args.file), Keys("condition", "cell_type")
    for holdout in holdouts(adata, keys=keys, source="control"):
        task = prepare_task(adata, holdout, keys=keys)
        model = fitted(TRVAE, task, args.models)
        effects = model.effects(target="stimulated", labels=holdout.label)
        real = np.log1p(np.expm1(dense(task.real)).mean(0)) - effects["source_mean"].to_numpy()
        found = pathways(effects.assign(real_change=real), NET)
        print(f"\n{holdout.label}: agreement in sign {found['agrees'].mean():.0%}, of those with q < 0.05 "
              f"{found['agrees'][found['qval'] < 0.05].mean():.0%}; correlation of scores "
              f"{found['score'].corr(found['real_score']):.3f}")  # fmt: skip
        columns = ["pathway", "n_genes", "score", "qval", "real_score", "real_qval"]
        print(found[columns].head(3).round(4).to_string(index=False))
