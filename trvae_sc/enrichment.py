"""Pathways in predicted changes, through decoupler."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd
from scipy import stats

from trvae_sc.arguments import check_whole
from trvae_sc.errors import InputError, MissingExtraError
from trvae_sc.files import as_path
from trvae_sc.levels import level_name, listing

Method = Literal["ulm", "mlm", "waggr", "zscore", "viper", "gsea", "aucell"]
logger = logging.getLogger(__name__)
_METHODS = get_args(Method)
#: Columns of effects that say whose change it is.
_GROUP = ("label", "replicate", "source", "target")
_REAL = "real_change"
_WEIGHT = "weight"


def pathways(
    effects: pd.DataFrame,
    net: pd.DataFrame | str | Path,
    *,
    method: Method = "ulm",
    min_genes: int = 5,
) -> pd.DataFrame:
    """Return how far the genes of each pathway change, in every label, by a method of decoupler.

    ``ulm``: the t value of the slope of a gene's change on its weight in the set (Badia-i-Mompel et al. 2022,
    doi:10.1093/bioadv/vbac016). Genes outside of the sets are the background, so that a set scores if its
    genes change more than others do. The q-values hold for genes as the sample: they say nothing of how far
    labels or donors differ.

    Parameters
    ----------
    effects
        Changes as :meth:`trvae_sc.TRVAE.effects` returns them: ``label``, ``gene``, ``change``. With a column
        ``real_change`` (measured, on the same scale) that is scored, too.
    net
        Sets of genes: a table with ``source`` (the set), ``target`` (the gene) and, if they have some,
        ``weight``, as decoupler takes it, or a GMT file. Nothing is downloaded.
    method
        Method of decoupler.
    min_genes
        Genes of a set that `effects` must have; smaller ones are left out.

    Returns
    -------
    One row a label and set, the largest absolute score of a label first: ``label`` (and ``source``, ``target``,
    ``replicate``), ``pathway``, ``n_genes`` that are in both, ``score``, ``qval`` (Benjamini and Hochberg within
    the label; NaN where the method has no p-values); with real changes ``real_score``, ``real_qval`` and
    ``agrees``, whether both scores have the same sign. Of a label in which nothing changes all are NaN.

    Raises
    ------
    InputError
        No table of effects, no sets, or sets that share no genes with it.
    MissingExtraError
        decoupler is not installed.

    Examples
    --------
    >>> effects = model.effects(target="stimulated")
    >>> trvae_sc.pathways(effects, "hallmark.gmt")  # doctest: +SKIP
    """
    check_whole("min_genes", min_genes)
    if method not in _METHODS:
        raise InputError(f"Unknown method {method!r}; there are {list(_METHODS)}.")
    wide = _wide(effects, "change")
    sets = _large_enough(_sets(net), wide.columns, min_genes)
    if method in ("ulm", "mlm", "waggr"):
        _check_contrast(sets, wide.columns)
    if method == "mlm":
        _check_rank(sets, wide.columns)
    found, keys = _scores(method, wide, sets), list(wide.index.names)
    if _REAL in effects:
        real = _scores(method, _wide(effects, _REAL), sets)
        names = {"score": "real_score", "qval": "real_qval"}  # sets may come in another order
        on = [*keys, "pathway"]
        found = found.merge(real.rename(columns=names), on=on, validate="one_to_one")
        found["agrees"] = np.sign(found["score"]) == np.sign(found["real_score"])
    n_genes = sets.groupby("source")["target"].size()
    found.insert(found.columns.get_loc("score"), "n_genes", found["pathway"].map(n_genes))
    found = found.sort_values("score", key=abs, ascending=False, kind="stable")
    return found.sort_values(keys, kind="stable", ignore_index=True)


def _wide(effects: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return changes as groups (rows) x genes (columns)."""
    if not isinstance(effects, pd.DataFrame) or not {"label", "gene", column} <= set(effects):
        what = list(effects) if isinstance(effects, pd.DataFrame) else type(effects).__name__
        raise InputError(
            f"effects is a table with label, gene and {column}, as TRVAE.effects returns it; this is {what}."
        )
    effects = effects.assign(gene=effects["gene"].astype(object).map(level_name))
    keys = [key for key in _GROUP if key in effects]
    if effects.duplicated([*keys, "gene"]).any():
        raise InputError(f"effects has several rows of one gene and {', '.join(keys)}. Keep one.")
    numbers = pd.to_numeric(effects[column], errors="coerce").astype(np.float64)
    wide = effects.assign(**{column: numbers}).pivot(index=keys, columns="gene", values=column)
    if wide.empty or not np.isfinite(wide.to_numpy()).all():
        raise InputError(
            f"effects has no rows, or no finite {column} of some genes in some labels."
        )
    if not wide.to_numpy().any():
        raise InputError(f"No gene changes in any label: {column} is 0. There is nothing to score.")
    return wide


def _sets(net: pd.DataFrame | str | Path) -> pd.DataFrame:
    """Return sets of genes as a table with weights."""
    if isinstance(net, str | Path):
        path = as_path(net, "net")
        if not path.is_file():
            raise InputError(f"No file {path}. net is a table of sets, or a GMT file with them.")
        try:
            text = path.read_text(encoding="utf-8-sig")  # some programs begin it with a mark
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} cannot be read as text: {error}") from error
        fields = (line.split("\t") for line in text.splitlines())
        rows = [(f[0], gene) for f in fields for gene in f[2:] if gene]
        net = pd.DataFrame(rows, columns=["source", "target"])
    if not isinstance(net, pd.DataFrame) or not {"source", "target"} <= set(net) or net.empty:
        raise InputError(
            "net has no sets of genes. Give a table with the columns source (set) and target (gene), or a GMT "
            "file: name, description and genes of a set in a line, separated by tabs."
        )
    of = ["source", "target"]
    net = net.assign(**{_WEIGHT: net.get(_WEIGHT, 1.0)}).dropna(subset=of)
    weight = pd.to_numeric(net[_WEIGHT], errors="coerce").astype(np.float64)
    if not np.isfinite(weight).all():
        raise InputError(
            f"The column {_WEIGHT!r} of net has {(~np.isfinite(weight)).sum()} rows with no finite number. "
            "Fill them in or drop them."
        )
    names = net[of].astype(object).map(level_name)  # sets and genes may be numbers
    net = names.assign(**{_WEIGHT: weight}).drop_duplicates()
    if (twice := net.duplicated(of)).any():
        source, target = net.loc[twice, of].iloc[0]
        raise InputError(
            f"net has several weights for the same gene of a set, such as {target!r} of {source!r}. Keep one."
        )
    return net


def _check_contrast(sets: pd.DataFrame, genes: pd.Index) -> None:
    """Raise where the genes of a set weigh as much as all others, so that no slope is defined."""
    weight = sets.groupby("source")[_WEIGHT]
    same = weight.nunique().eq(1) & (weight.size().eq(len(genes)) | weight.max().eq(0))
    if same.any():
        raise InputError(
            f"Of net {listing(sorted(same.index[same].astype(str)))} have the same weight for all "
            f"{len(genes):,} genes of effects, so that there is nothing to compare them with. Drop them."
        )


def _check_rank(sets: pd.DataFrame, genes: pd.Index) -> None:
    """Raise where sets cannot be told apart, so that no fit of all of them at once is defined."""
    table = sets.pivot(index="target", columns="source", values=_WEIGHT).reindex(genes).fillna(0.0)
    x = np.column_stack([np.ones(len(genes)), table])
    if x.shape[1] < len(genes) and np.linalg.matrix_rank(x) == x.shape[1]:
        return
    alike = table.columns[table.T.duplicated(keep=False)].astype(str)
    named = f"; {listing(sorted(alike))} are alike" if len(alike) else ""
    raise InputError(
        f"mlm fits all {table.shape[1]} sets at once, on {len(genes):,} genes: there must be fewer sets than genes, "
        f"and none may be a sum of others{named}. Drop some, or score each alone: method='ulm'."
    )


def _large_enough(sets: pd.DataFrame, genes: pd.Index, min_genes: int) -> pd.DataFrame:
    """Return the genes of `genes` in sets that have enough of them; raise where no set has."""
    there = sets[sets["target"].isin(genes)]
    shared = there.groupby("source")["target"].size()
    if shared.empty:
        raise InputError(
            f"net and effects share no genes: net has {listing(list(sets['target'].unique()))}, effects "
            f"{listing(list(genes))}. Use the same names in both (symbols, Ensembl ids)."
        )
    if shared.max() < min_genes:
        raise InputError(
            f"No set of net has {min_genes} genes among the {len(genes):,} of effects; the largest share is "
            f"{shared.max()} ({shared.idxmax()}). Train on more genes, or lower min_genes."
        )
    enough = shared.index[shared >= min_genes]
    few = sets["source"][~sets["source"].isin(enough)].astype(str).unique()
    if len(few):
        logger.info(
            "Left out, with fewer than %d of the %d genes of effects: %s.",
            *(min_genes, len(genes), listing(sorted(few))),
        )
    return there[there["source"].isin(enough)]


def _scores(method: Method, wide: pd.DataFrame, sets: pd.DataFrame) -> pd.DataFrame:
    """Return score and q-value of every group and set."""
    try:
        import decoupler
    except ImportError as error:
        raise MissingExtraError(
            "pathways needs decoupler: pip install 'trvae_sc[pathways]', or pip install decoupler."
        ) from error
    plain = wide.set_axis([str(i) for i in range(len(wide))])
    changes = plain[plain.to_numpy().any(axis=1)]
    run = getattr(decoupler.mt, method)
    score, qval = run(changes, sets, tmin=1, empty=False, verbose=False)
    # decoupler rounds q-values, leaves those of mlm unadjusted, and calls scores of waggr next to 0 certain
    if method in ("ulm", "mlm", "waggr"):
        n_slopes = score.shape[1] if method == "mlm" else 1
        of = stats.norm() if method == "waggr" else stats.t(wide.shape[1] - n_slopes - 1)
        pval = 2.0 * of.sf(score.abs())
        qval = pd.DataFrame(stats.false_discovery_control(pval, axis=1), *score.axes)
    qval = score * np.nan if qval is None else qval
    tables = {
        name: table.reindex(plain.index).set_axis(wide.index).rename_axis(columns="pathway")
        for name, table in (("score", score), ("qval", qval))
    }
    long = {name: table.stack(future_stack=True) for name, table in tables.items()}
    return pd.concat(long, axis=1).reset_index()
