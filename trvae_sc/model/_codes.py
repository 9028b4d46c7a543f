"""Cells of latent codes, given or drawn, and which dimensions of a code carry anything."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS
from torch.distributions import Normal, kl_divergence

from trvae_sc.arguments import check_seed, check_whole
from trvae_sc.errors import InputError
from trvae_sc.expression import evenly_spaced
from trvae_sc.levels import level_name, match_level
from trvae_sc.model._counts import Draws
from trvae_sc.model._decode import Batch, decoded_arrays, predicted_values
from trvae_sc.model._predict import check_weights, has_label
from trvae_sc.model._record import layer_of, scale_name
from trvae_sc.model._trained import Tensors, Trained
from trvae_sc.model._write import stacked
from trvae_sc.module import CONDITION_KEY
from trvae_sc.notes import versions

COLLAPSED = 0.01  #: nats of KL below which a latent dimension says nothing of a cell
_MAX_CELLS = 2000  # that the KL is averaged over
_CHUNK = 1024  # codes decoded at a time

#: What batch and covariates codes are decoded with, the codes, features of their conditions and totals.
Part = tuple[Tensors, torch.Tensor, torch.Tensor | None, np.ndarray | None]


def decode_codes(
    trained: Trained,
    var: pd.DataFrame,
    z: Any,
    *,
    condition: Any,
    labels: Any,
    batch: Any,
    batches: Sequence[Any],
    output: str,
    seed: int,
) -> AnnData:
    """Return cells of latent codes; see :meth:`TRVAE.decode`. `batches` are the levels known."""
    module = trained.module
    z = checked_codes("z", z, module.z_mean.out_features)
    check_seed(seed)
    check_output(output)
    levels = _levels_of(trained, condition, len(z))
    tensors = _observed_under(trained, len(z), batch, batches)
    features = None
    if levels is not None:
        by_level = {level: trained.features(level) for level in dict.fromkeys(levels)}
        features = torch.cat([by_level[level] for level in levels])
    total = np.array([[module.kappa.item()]]) if module.is_count else None

    def parts() -> Iterator[Part]:
        for start in range(0, len(z), _CHUNK):
            at = slice(start, start + _CHUNK)
            own = None if features is None else features[at]
            yield {k: v[at] for k, v in tensors.items()}, torch.as_tensor(z[at]), own, total

    made = {"method": "TRVAE.decode", "output": output, "seed": int(seed)}
    result = _cells(trained, parts(), levels, var, Draws(seed), name="code", made=made)
    if labels is not None:
        labels = per_code("labels", labels, len(z))
        result.obs[trained.labels_key or "label"] = pd.Categorical(labels)
    return result


def generate_cells(
    trained: Trained,
    adata: AnnData,
    condition: Any,
    n_obs: int,
    *,
    labels: Any,
    latent: str,
    output: str,
    seed: int,
) -> AnnData:
    """Return new cells; see :meth:`TRVAE.generate`. `adata` are the registered training cells."""
    module, key = trained.module, trained.total_counts_key
    check_seed(seed)
    check_output(output)
    level = _check_generation(trained, condition, n_obs, labels=labels, latent=latent)
    check_weights(module)
    features = None if level is None else trained.features(level)
    pool = np.arange(adata.n_obs)
    if labels is not None:
        pool = np.flatnonzero(has_label(adata, trained.labels_key, labels))
    draws = Draws(seed)
    rows = draws.keep.choice(pool, size=n_obs)

    def parts() -> Iterator[Part]:
        for tensors in trained.batches(adata, rows):
            qz = module.encode(tensors)
            noise = draws.latent.standard_normal(tuple(qz.loc.shape), dtype=np.float32)
            noise = torch.as_tensor(noise, device=qz.loc.device)
            z = noise if latent == "prior" else qz.loc + qz.scale * noise
            total = module.observation.total(tensors)
            yield tensors, z, features, None if total is None else total.cpu().numpy()

    made = {"method": "TRVAE.generate", "output": output, "seed": int(seed), "latent": latent}
    if level is not None:
        made["condition"] = level_name(level)
    levels = None if level is None else [level] * n_obs
    var = adata.var.rename_axis(None)  # a column of that name may be there
    result = _cells(trained, parts(), levels, var, draws, name="generated", made=made)
    if labels is not None:
        result.obs[trained.labels_key] = adata.obs[trained.labels_key].iloc[rows].to_numpy()
    if module.has_total:  # of the training cell; a draw of the genes may exceed it
        total = adata.obs[key].to_numpy(float)[rows]
        drawn = np.asarray(result.X.sum(axis=1)).ravel() if output == "sample" else total
        result.obs[key] = np.maximum(total, drawn)
    return result


def _cells(
    trained: Trained,
    parts: Iterable[Part],
    levels: list[Any] | None,
    var: pd.DataFrame,
    draws: Draws,
    *,
    name: str,
    made: dict[str, Any],
) -> AnnData:
    """Return the cells that codes are decoded to; `made` is where they come from."""
    module, values, codes = trained.module, [], []
    for tensors, z, features, total in parts:
        mean, kept = decoded_arrays(module, tensors, z, features)
        spared = None if kept is None else [kept]
        batch = Batch(mean, total, mean, mean, mean, mean, spared=spared)
        values.append(predicted_values(module, batch, features, made["output"], draws))
        codes.append(z.cpu().numpy())
    z = np.concatenate(codes)
    obs = pd.DataFrame(index=[f"{name}_{i}" for i in range(len(z))])
    if levels is not None:
        obs = obs.assign(**trained.conditions.columns(levels))
    result = AnnData(stacked(values, len(z)), obs=obs, var=var, obsm={"X_trvae": z})
    layer = layer_of(trained.layer, module.is_count, made["output"])
    if layer is not None:
        result.layers[layer] = result.X.copy()
    result.uns["trvae_sc"] = {
        **made,
        "preset": trained.preset,
        "scale": scale_name(module.is_count, made["output"]),
        "kappa": float(module.kappa),
        "versions": versions(),
    }
    return result


def check_output(output: str) -> None:
    """Raise on an output that is neither the mean nor a draw."""
    if output not in ("mean", "sample"):
        raise InputError(
            f"Unknown output {output!r}; choose 'mean' (expected values, no noise) or 'sample' (draws "
            "from the likelihood)."
        )


def checked_codes(name: str, z: Any, n_latent: int) -> np.ndarray:
    """Return codes as an array, (n_codes, n_latent)."""
    try:  # torch takes no views in reverse
        found = np.atleast_2d(np.ascontiguousarray(z, dtype=np.float32))
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} is no array of numbers: {error}.") from error
    if found.ndim != 2 or found.shape[1] != n_latent or not len(found):
        raise InputError(
            f"{name} has shape {np.shape(z)}; the model decodes codes of shape (n_codes, {n_latent})."
        )
    if not np.isfinite(found).all():
        raise InputError(f"{name} holds NaN or infinite values; give finite codes.")
    return found


def per_code(name: str, given: Any, n_codes: int) -> list[Any]:
    """Return a value for each code: one for all, or as many as there are codes."""
    if isinstance(given, str) or np.isscalar(given) or not hasattr(given, "__len__"):
        return [given] * n_codes
    if len(given) != n_codes:
        raise InputError(
            f"{name} has {len(given)} values for {n_codes} codes; give one, or as many."
        )
    return list(given)


def _levels_of(trained: Trained, condition: Any, n_codes: int) -> list[Any] | None:
    """Return the condition of each code; None where the network does not see it."""
    blind, space = trained.module.decoder_in.condition is None, trained.conditions
    if blind and condition is not None:
        raise InputError(
            f"The preset '{trained.preset}' does not see the condition and cannot decode with one. Leave "
            "condition out, or use a preset such as 'cvae'."
        )
    if blind:
        return None
    if condition is None:
        known = [level_name(level) for level in space.levels]
        raise InputError(f"Decoding needs a condition: condition= one of {known}, or one a code.")
    if space.parts is not None and not isinstance(condition, np.ndarray | pd.Series):
        return [space.level(condition)] * n_codes  # a list or dictionary names the parts of one
    found = per_code("condition", condition, n_codes)
    by_name = {level_name(c): space.level(c) for c in found}
    return [by_name[level_name(c)] for c in found]


def _check_generation(
    trained: Trained, condition: Any, n_obs: int, *, labels: Any, latent: str
) -> Any:
    """Return the condition to generate cells of, or raise where the model cannot."""
    if latent not in ("prior", "posterior"):
        raise InputError(f"Unknown latent '{latent}'; choose 'prior' or 'posterior'.")
    if labels is not None and latent == "prior":
        raise InputError("The prior knows no labels: use latent='posterior' with labels.")
    if latent == "prior" and not trained.module.variational:
        raise InputError(
            f"The preset '{trained.preset}' has no prior to draw from. Use latent='posterior', or a "
            "preset such as 'vae'."
        )
    check_whole("n_obs", n_obs)
    blind = trained.module.decoder_in.condition is None
    if blind and condition is not None:
        raise InputError(
            f"The condition is {condition!r}, but the network of preset '{trained.preset}' does not see "
            "it: give condition=None."
        )
    if condition is None and not blind:
        known = [*trained.conditions.levels]
        raise InputError(
            f"No condition is given, but the network of preset '{trained.preset}' needs one of {known}: "
            f"give condition={known[0]!r}."
        )
    return None if blind else trained.conditions.level(condition)


def _observed_under(trained: Trained, n_codes: int, batch: Any, batches: Sequence[Any]) -> Tensors:
    """Return batch and covariates to decode with: most frequent levels, mean numbers, unless given."""
    if batch is not None and not batches:
        raise InputError("The model was set up without batch_key, so a batch cannot be chosen.")
    kept, module, weights = trained.codes, trained.module, _stands_for(trained)
    tensors: Tensors = {}

    def most_frequent(codes: np.ndarray) -> int:
        return int(np.bincount(codes.astype(int).ravel(), weights).argmax())

    if batches:
        key = REGISTRY_KEYS.BATCH_KEY
        if batch is None:
            codes = [most_frequent(kept.get(key, np.zeros(1)))] * n_codes
        else:
            given = [match_level(b, batches, of="batch") for b in per_code("batch", batch, n_codes)]
            codes = [batches.index(b) for b in given]
        tensors[key] = torch.as_tensor(codes)[:, None]
    more = module.decoder_in.categories[bool(batches) :]
    if len(more):
        found = kept.get(REGISTRY_KEYS.CAT_COVS_KEY, np.zeros((1, len(more)), int))
        row = [most_frequent(column) for column in found.T]
        tensors[REGISTRY_KEYS.CAT_COVS_KEY] = torch.as_tensor([row] * n_codes)
    if module.decoder_in.continuous is not None:
        width = len(module.decoder_in.continuous)
        found = kept.get(REGISTRY_KEYS.CONT_COVS_KEY, np.zeros((1, width)))
        row = torch.as_tensor(np.average(found, axis=0, weights=weights), dtype=torch.float32)
        tensors[REGISTRY_KEYS.CONT_COVS_KEY] = row.expand(n_codes, -1)
    # what the network does not ask for, but its batches have
    tensors[CONDITION_KEY] = torch.zeros(n_codes, 1, dtype=torch.long)
    return tensors


def _stands_for(trained: Trained) -> np.ndarray:
    """Return how many training cells each code that is kept stands for: of large groups a sample is."""
    kept, n_kept = trained.codes, np.zeros(trained.n_cells.shape)
    if not kept:
        return np.ones(1)
    at = tuple(kept[k].astype(int).ravel() for k in (REGISTRY_KEYS.LABELS_KEY, CONDITION_KEY))
    np.add.at(n_kept, at, 1)
    return trained.n_cells[at] / n_kept[at]


# -- collapsed dimensions ---------------------------------------------------------------------------


def kl_by_dimension(trained: Trained, adata: AnnData, rows: np.ndarray) -> np.ndarray:
    """Return the mean KL of each latent dimension over training cells, in nats; of none without."""
    if not trained.module.variational or not len(rows):
        return np.zeros(0)
    parts = []
    for tensors in trained.batches(adata, evenly_spaced(rows, _MAX_CELLS)):
        qz = trained.module.encode(tensors)
        qz = Normal(qz.loc.cpu().double(), qz.scale.cpu().double())
        parts.append(kl_divergence(qz, Normal(0.0, 1.0)).numpy())
    return np.concatenate(parts).mean(0)


def collapse_note(kl: np.ndarray) -> str | None:
    """Return which dimensions collapsed, in words; None if none did."""
    dead = np.flatnonzero(kl < COLLAPSED)
    if not len(dead):
        return None
    runs = np.split(dead, np.flatnonzero(np.diff(dead) > 1) + 1)
    names = ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]} to {r[-1]}" for r in runs)
    rest = f"{len(kl) - len(dead)} carry the code"
    if len(dead) == len(kl):
        rest = "none is left: every code is decoded to the same cell"
    return (
        f"{len(dead)} of {len(kl)} latent dimensions collapsed (KL below {COLLAPSED:g} nats: {names}); {rest}. "
        "Lower kl_weight for more, or n_latent; see model.active_dims."
    )
