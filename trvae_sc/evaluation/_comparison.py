"""The scores of a prediction beside measured cells, as one reads them."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from trvae_sc.evaluation._holdouts import TASK

#: Scores shown, and the genes they are over.
_SHOWN = {
    "effect_r2": "top",
    "specific_pearson": "top",
    "effect_pearson": "top",
    "direction_accuracy": "top",
    "energy_distance": "pcs",
    "r2_var": "top",
    "interval_coverage": "all",
}


@dataclass(frozen=True, repr=False)
class Comparison:
    """Scores of predicted cells against measured ones; made by :func:`trvae_sc.compare`.

    Parameters
    ----------
    scores
        One row a group, metric and set of genes: ``label``, ``source``, ``target``, ``metric``,
        ``genes``, ``predicted``, ``no_change`` (what the source cells score as they are) and ``ceiling``
        (what a perfect prediction would score, given the noise of the measured cells; NaN where it is not
        known).
    genes
        One row a group and gene, largest absolute Welch t of the group first: ``label``, ``source``,
        ``target``, ``gene`` and the columns of :func:`trvae_sc.evaluation.gene_table`.
    notes
        What a reader should know.
    """

    scores: pd.DataFrame
    genes: pd.DataFrame
    notes: tuple[str, ...] = ()

    def table(self) -> pd.DataFrame:
        """Return the main scores: groups and metrics by ``predicted``, ``no change``, ``ceiling``."""
        wanted = [
            self.scores[(self.scores["metric"] == metric) & self.scores["genes"].str.startswith(of)]
            for metric, of in _SHOWN.items()
        ]
        shown = pd.concat(wanted).rename(columns={"no_change": "no change"})
        keys = [k for k in TASK if k == "label" or shown[k].nunique() > 1]
        shown = shown.sort_values(keys, kind="stable").set_index([*keys, "metric"])
        return shown[["predicted", "no change", "ceiling"]]

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return the gene table of each group, by label (and source or target, where these differ)."""
        several = [k for k in TASK if k == "label" or self.genes[k].nunique() > 1]
        return {
            ", ".join(part[several].iloc[0]): part.drop(columns=TASK).set_index("gene")
            for _, part in self.genes.groupby(TASK, sort=False)
        }

    def __repr__(self) -> str:
        """Return the main scores as a table."""
        return "\n".join([self.table().round(2).to_string(na_rep="", sparsify=True), *self.notes])

    def _repr_html_(self) -> str:
        """Return the main scores for a notebook."""
        table = self.table().round(2).to_html(na_rep="", border=0)
        return table + "".join(f"<p>{note}</p>" for note in self.notes)
