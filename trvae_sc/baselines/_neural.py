"""Methods that train a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from anndata import AnnData
from scipy import sparse

from trvae_sc.baselines._simple import as_prediction, target_level, with_own_columns
from trvae_sc.expression import Keys, log_values, median_total
from trvae_sc.levels import as_text, level_name
from trvae_sc.model import TRVAE
from trvae_sc.notes import unlogged

#: Predicts source cells under a target, by output.
Fitted = Callable[[AnnData, Any], dict[str, AnnData]]


def trvae(
    train: AnnData,
    source: AnnData,
    *,
    target: Any,
    keys: Keys,
    seed: int = 0,
    preset: str = "default",
    train_kwargs: dict[str, Any] | None = None,
    **model_kwargs: Any,
) -> dict[str, AnnData]:
    """Train :class:`trvae_sc.TRVAE` and predict.

    Parameters
    ----------
    train, source, target, keys
        As in :func:`mean_shift`.
    seed, preset, **model_kwargs
        Arguments of :class:`trvae_sc.TRVAE`; preset ``"paper"`` gets log values, as published.
    train_kwargs
        Arguments of :meth:`trvae_sc.TRVAE.train`.

    Returns
    -------
    Predictions by output: ``"counts"`` and ``"delta"`` of counts, else ``"mean"`` and ``"delta"``.
    """
    target_level(train, target, keys)  # raises before training
    kwargs = {"preset": preset, "train_kwargs": train_kwargs, **model_kwargs}
    return fit_trvae(train, keys=keys, seed=seed, **kwargs)(source, target)


def fit_trvae(
    train: AnnData, *, keys: Keys, seed: int = 0, preset: str = "default", **kwargs: Any
) -> Fitted:
    """Train as :func:`trvae`, and return what predicts source cells under a target."""
    shown, given, kappa = train, keys, None
    if preset == "paper":
        kappa = median_total(train, keys)
        shown = _logged(train, keys, kappa)
        given = keys._replace(layer=None, total_counts_key=None, is_count=False)
    elif not keys.is_count:
        kwargs = {"gene_likelihood": "normal", **kwargs}
    model = _fit(shown, given, seed, preset=preset, **kwargs)
    outputs: Any = ("counts", "delta") if model.module.is_count else ("mean", "delta")

    def predict(source: AnnData, target: Any) -> dict[str, AnnData]:
        level = target_level(train, target, keys)
        source = source if kappa is None else _logged(source, keys, kappa)
        with unlogged():
            found = {
                output: model.predict(source, target=level, output=output) for output in outputs
            }
        names = [name for name in model.history if name.endswith("_weighted_train")]
        history = {name: model.history[name][name].astype(float).tolist() for name in names}
        for predicted in found.values():
            predicted.uns["trvae_sc"]["history"] = history
        return found

    return predict


def latent_shift(
    train: AnnData,
    source: AnnData,
    *,
    target: Any,
    keys: Keys,
    seed: int = 0,
    train_kwargs: dict[str, Any] | None = None,
) -> dict[str, AnnData]:
    r"""Move the latent codes of an unconditional VAE by the mean shift of the labels, and decode.

    .. math:: \hat z = z + \frac1L \sum_l (\bar z_{lt} - \bar z_{ls})

    scGen (Lotfollahi et al. 2019, doi:10.1038/s41592-019-0494-8) with every label weighing the same.

    Parameters
    ----------
    train, source, target, keys
        As in :func:`mean_shift`.
    seed, train_kwargs
        As in :func:`trvae`.

    Returns
    -------
    Predictions by output: ``"mean"``, the decoded profile, and ``"delta"``, the observed values plus the
    decoded change.
    """
    target_level(train, target, keys)  # raises before training
    return fit_latent_shift(train, keys=keys, seed=seed, train_kwargs=train_kwargs)(source, target)


def fit_latent_shift(
    train: AnnData, *, keys: Keys, seed: int = 0, train_kwargs: dict[str, Any] | None = None
) -> Fitted:
    """Train as :func:`latent_shift`, and return what predicts source cells under a target."""
    likelihood = "nb" if keys.is_count else "normal"
    model = _fit(
        train, keys, seed, preset="vae", gene_likelihood=likelihood, train_kwargs=train_kwargs
    )
    kappa = median_total(train, keys)

    def predict(source: AnnData, target: Any) -> dict[str, AnnData]:
        level, found = target_level(train, target, keys), {}
        source = source[(as_text(keys.conditions(source.obs)) != level_name(level)).to_numpy()]
        for output in ("mean", "delta"):
            with unlogged():
                x = model.predict(source, target=level, output=output).X
            found[output] = as_prediction(x, source, level, keys, kappa, "latent_shift")
        return found

    return predict


# a benchmark trains these once for all hold-outs of the same training cells
for _method, _fit_once in ((trvae, fit_trvae), (latent_shift, fit_latent_shift)):
    _method.fit_once = _fit_once  # type: ignore[attr-defined]


def _fit(
    train: AnnData,
    keys: Keys,
    seed: int,
    *,
    train_kwargs: dict[str, Any] | None = None,
    **model_kwargs: Any,
) -> TRVAE:
    """Return a trained model."""
    train = with_own_columns(train)
    TRVAE.setup_anndata(train, keys.condition_key, **keys.further(), **keys.of_conditions())
    model = TRVAE(train, seed=seed, **model_kwargs)
    model.train(**{"enable_progress_bar": False, **(train_kwargs or {})})
    return model


def _logged(adata: AnnData, keys: Keys, kappa: float) -> AnnData:
    """Return cells with their log values in ``X``."""
    x = log_values(adata, keys, kappa)
    x = sparse.csr_matrix(x, dtype=np.float32) if sparse.issparse(x) else x.astype(np.float32)
    return AnnData(x, obs=adata.obs.copy(), var=adata.var.copy(), uns=dict(adata.uns))
