"""Cells of latent codes, and which dimensions of a code carry anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS

from trvae_sc.arguments import check_seed
from trvae_sc.errors import InputError
from trvae_sc.expression import evenly_spaced
from trvae_sc.levels import level_name, match_level
from trvae_sc.model._counts import Draws
from trvae_sc.model._decode import Batch, decoded_arrays, predicted_values
from trvae_sc.model._record import scale_name
from trvae_sc.model._trained import Tensors, Trained
from trvae_sc.model._write import stacked
from trvae_sc.notes import versions

COLLAPSED = 0.01  #: nats of KL below which a latent dimension says nothing of a cell
_MAX_CELLS = 2000  # that the KL is averaged over
_CHUNK = 1024  # codes decoded at a time


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
        parts = {level: trained.features(level) for level in dict.fromkeys(levels)}
        features = torch.cat([parts[level] for level in levels])
    draws, values = Draws(seed), []
    for start in range(0, len(z), _CHUNK):
        at = slice(start, start + _CHUNK)
        own = None if features is None else features[at]
        some = {key: value[at] for key, value in tensors.items()}
        mean, kept = decoded_arrays(module, some, torch.as_tensor(z[at]), own)
        total = np.full((len(mean), 1), module.kappa.item()) if module.is_count else None
        spared = None if kept is None else [kept]
        decoded = Batch(mean, total, mean, mean, mean, mean, spared=spared)
        values.append(predicted_values(module, decoded, own, output, draws))
    obs = pd.DataFrame(index=[f"code_{i}" for i in range(len(z))])
    if levels is not None:
        obs = obs.assign(**trained.conditions.columns(levels))
    if labels is not None:
        obs[trained.labels_key or "label"] = pd.Categorical(per_code("labels", labels, len(z)))
    result = AnnData(stacked(values, len(z)), obs=obs, var=var, obsm={"X_trvae": z})
    if trained.layer is not None:
        result.layers[trained.layer] = result.X.copy()
    result.uns["trvae_sc"] = record(trained, "TRVAE.decode", output, seed)
    return result


def record(trained: Trained, method: str, output: str, seed: int) -> dict[str, Any]:
    """Return where cells that were decoded or drawn come from."""
    return {
        "method": method,
        "preset": trained.preset,
        "output": output,
        "scale": scale_name(trained.module.is_count, output),
        "kappa": float(trained.module.kappa),
        "seed": int(seed),
        "versions": versions(),
    }


def check_output(output: str) -> None:
    """Raise on an output that is neither the mean nor a draw."""
    if output not in ("mean", "sample"):
        raise InputError(
            f"Unknown output {output!r}; choose 'mean' (expected values, no noise) or 'sample' (draws "
            "from the likelihood)."
        )


def checked_codes(name: str, z: Any, n_latent: int) -> np.ndarray:
    """Return codes as an array, (n_codes, n_latent)."""
    try:
        found = np.atleast_2d(np.asarray(z, dtype=np.float32))
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


def _observed_under(trained: Trained, n_codes: int, batch: Any, batches: Sequence[Any]) -> Tensors:
    """Return batch and covariates to decode with: most frequent levels, mean numbers, unless given."""
    if batch is not None and not batches:
        raise InputError("The model was set up without batch_key, so a batch cannot be chosen.")
    kept, module = trained.codes, trained.module
    tensors: Tensors = {}
    if batches:
        key = REGISTRY_KEYS.BATCH_KEY
        if batch is None:
            codes = [_most_frequent(kept[key])] * n_codes if kept else [0] * n_codes
        else:
            given = [match_level(b, batches, of="batch") for b in per_code("batch", batch, n_codes)]
            codes = [batches.index(b) for b in given]
        tensors[key] = torch.as_tensor(codes)[:, None]
    more = module.decoder_in.categories[bool(batches) :]
    if len(more):
        found = kept.get(REGISTRY_KEYS.CAT_COVS_KEY, np.zeros((1, len(more)), int))
        row = [_most_frequent(column) for column in found.T]
        tensors[REGISTRY_KEYS.CAT_COVS_KEY] = torch.as_tensor([row] * n_codes)
    if module.decoder_in.continuous is not None:
        width = len(module.decoder_in.continuous)
        found = kept.get(REGISTRY_KEYS.CONT_COVS_KEY, np.zeros((1, width)))
        row = torch.as_tensor(np.mean(found, axis=0), dtype=torch.float32)
        tensors[REGISTRY_KEYS.CONT_COVS_KEY] = row.expand(n_codes, -1)
    # what the network does not ask for, but its batches have
    tensors["condition"] = torch.zeros(n_codes, 1, dtype=torch.long)
    return tensors


def _most_frequent(codes: np.ndarray) -> int:
    return int(np.bincount(np.asarray(codes, dtype=int).ravel()).argmax())


# -- collapsed dimensions ---------------------------------------------------------------------------


def kl_by_dimension(trained: Trained, adata: AnnData, rows: np.ndarray) -> np.ndarray:
    r"""Return the mean KL of each latent dimension over training cells, in nats, shape (n_latent,).

    .. math:: \mathrm{KL}_d = E\,\tfrac12 (\mu_d^2 + \sigma_d^2 - 1 - \log \sigma_d^2)

    None of an autoencoder, whose codes are points: shape (0,).
    """
    if not trained.module.variational or not len(rows):
        return np.zeros(0)
    parts = []
    for tensors in trained.batches(adata, evenly_spaced(rows, _MAX_CELLS)):
        qz = trained.module.encode(tensors)
        variance = qz.scale.double().square()
        kl = 0.5 * (qz.loc.double().square() + variance - 1.0 - variance.log())
        parts.append(kl.cpu().numpy())
    return np.concatenate(parts).mean(0)


def collapse_note(kl: np.ndarray) -> str | None:
    """Return which dimensions collapsed, in words; None if none did."""
    dead = np.flatnonzero(kl < COLLAPSED)
    if not len(dead):
        return None
    runs = np.split(dead, np.flatnonzero(np.diff(dead) > 1) + 1)
    names = ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]} to {r[-1]}" for r in runs)
    rest = (
        "none is left: every code is decoded to the same cell"
        if len(dead) == len(kl)
        else (f"{len(kl) - len(dead)} carry the code")
    )
    return (
        f"{len(dead)} of {len(kl)} latent dimensions collapsed (KL below {COLLAPSED:g} nats: {names}); {rest}. "
        "Lower kl_weight for more, or n_latent; see model.active_dims."
    )
