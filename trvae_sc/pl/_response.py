"""How far predicted cells move."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes

from trvae_sc.checks import RECORD
from trvae_sc.errors import InputError
from trvae_sc.levels import as_text
from trvae_sc.pl._finish import Save, finish
from trvae_sc.pl._style import COLORS, PALE, axes_of, label_axes, names_width, plain


def response(
    predicted: AnnData,
    *,
    basis: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: Save = None,
) -> Axes | None:
    """How far each predicted cell moves, relative to its label: by label, or on an embedding.

    Parameters
    ----------
    predicted
        A prediction of :meth:`trvae_sc.TRVAE.predict`, with ``obs["response"]``.
    basis
        Embedding in ``obsm`` to draw the cells on, with or without ``X_`` (``"umap"``); by label if None.
    ax, show, save
        As in :func:`effect`.

    Returns
    -------
    The Axes.

    Raises
    ------
    InputError
        There is no response, or no such embedding.
    """
    if "response" not in getattr(predicted, "obs", ()):
        raise InputError(
            "There is no obs['response']: pass a prediction, as TRVAE.predict returns it."
        )
    value = predicted.obs["response"].to_numpy(dtype=float)
    if not np.isfinite(value).any():
        raise InputError(
            "obs['response'] is NaN: the network is not calibrated, so labels have no change of their own."
        )
    if basis is None:
        ax = _by_label(predicted, value, ax)
    else:
        ax = _on_embedding(predicted, value, basis, ax)
    return finish(ax, "response", show=show, save=save)


def _by_label(predicted: AnnData, value: np.ndarray, ax: Axes | None) -> Axes:
    """Draw the cells of each label as dots, with their quartiles."""
    key = predicted.uns.get(RECORD, {}).get("keys", {}).get("labels_key")
    names = np.full(len(value), "all cells")
    if key in predicted.obs:
        names = as_text(predicted.obs[key]).to_numpy()
    known = np.isfinite(value)
    groups = {name: own.to_numpy() for name, own in pd.Series(value[known]).groupby(names[known])}
    found = sorted(groups, key=lambda name: -np.ptp(np.percentile(groups[name], [10, 90])))
    ax = axes_of(ax, 5.0 + names_width(found), 1.35 + 0.32 * len(found))
    rng = np.random.default_rng(0)
    for y, name in enumerate(found):
        own = groups[name]
        shown = rng.permutation(own)[:500]
        height = y + rng.uniform(-0.28, 0.28, len(shown))
        ax.scatter(shown, height, s=5, c=PALE, lw=0, zorder=1, rasterized=True)
        low, middle, high = np.percentile(own, [25, 50, 75])
        ax.plot([low, high], [y, y], c=COLORS["blue"], lw=3, zorder=2, solid_capstyle="round")
        ax.plot(middle, y, "o", c="white", ms=3.5, zorder=3)
    ax.axvline(1.0, c="k", lw=0.7, ls=":", zorder=0)
    ax.set_yticks(range(len(found)), [plain(name) for name in found], fontsize=8)
    ax.set_ylim(len(found) - 0.4, -0.6)
    ax.set_xlabel(
        "response of a cell (1: like the mean of its label)\nbar: middle half of the cells, white: median",
        fontsize=9,
    )
    ax.tick_params(axis="x", labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _on_embedding(predicted: AnnData, value: np.ndarray, basis: str, ax: Axes | None) -> Axes:
    """Draw the cells on an embedding, coloured by their response."""
    key = basis if basis in predicted.obsm else f"X_{basis}"
    if key not in predicted.obsm or np.asarray(predicted.obsm[key]).shape[1] < 2:
        raise InputError(
            f"No embedding {basis!r} of two columns in obsm; there are {list(predicted.obsm)}. After "
            "sc.pp.neighbors(predicted, use_rep='X_trvae') and sc.tl.umap(predicted) there is 'umap'."
        )
    xy = np.asarray(predicted.obsm[key])[:, :2]
    ax = axes_of(ax, 4.6, 3.8)
    order = np.argsort(np.nan_to_num(value), kind="stable")
    area = float(np.clip(20000 / len(xy), 1.5, 25))
    low, high = np.nanpercentile(value, [2, 98])
    style: Any = {"s": area, "cmap": "viridis", "lw": 0, "vmin": low, "vmax": high}
    points = ax.scatter(xy[order, 0], xy[order, 1], c=value[order], **style)
    bar = ax.figure.colorbar(points, ax=ax, pad=0.02, aspect=30, extend="both")
    bar.set_label("response (1: like the mean of its label)", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    name = key.removeprefix("X_").upper()
    label_axes(ax, f"{name} 1", f"{name} 2")
    ax.set(xticks=[], yticks=[])
    return ax
