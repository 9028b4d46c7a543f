"""From cells to decoded rates, and from rates to values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from anndata import AnnData
from scipy import sparse
from scvi import REGISTRY_KEYS

from trvae_sc.errors import InputError
from trvae_sc.model._counts import Draws, by_row, draw_counts, minus_log_p_zero, transport_counts
from trvae_sc.model._trained import Trained
from trvae_sc.module import CONDITION_KEY, TRVAEModule, expected_and_spared, expected_values

_BATCH = 512  # cells decoded at a time


class Batch(NamedTuple):
    """A minibatch with its decoded source and target."""

    observed: np.ndarray  #: values, (n_cells, n_genes)
    total: np.ndarray | None  #: total counts, (n_cells, 1)
    source: np.ndarray  #: expected shares (values) under the cell's own condition
    target: np.ndarray  #: the same under the target
    latent: np.ndarray  #: latent mean, (n_cells, n_latent)
    condition: np.ndarray  #: code of each cell's own condition, (n_cells,)
    gain: np.ndarray | None = None  #: share to add; the positive part of target - source if None
    #: Probabilities that zero inflation spares a gene under source and target; None without it.
    spared: list[np.ndarray] | None = None

    def shares(self, rows: Any = slice(None)) -> np.ndarray:
        """Return observed shares of some cells, or values that are not counts."""
        observed = self.observed[rows]
        return observed if self.total is None else observed / self.total[rows]


def decoded_batches(
    trained: Trained,
    adata: AnnData,
    rows: np.ndarray,
    target: torch.Tensor,
    *,
    shifts: torch.Tensor | None = None,
    draws: Draws | None = None,
    batch_size: int | None = None,
) -> Iterator[Batch]:
    """Yield rows of a registered AnnData, decoded under source and target.

    z is the posterior mean, or drawn with `draws`; for the target it is moved by the row of
    `shifts` of the cell's condition.
    """
    module = trained.module
    for own in trained.batches(adata, rows, batch_size or _BATCH):
        n_cells = len(own[CONDITION_KEY])
        tensors = _filled(own, n_cells)
        qz = module.encode(tensors)
        z = qz.loc
        if draws is not None:
            noise = np.zeros(z.shape, np.float32)
            noise[:n_cells] = draws.latent.standard_normal((n_cells, z.shape[1]), dtype=np.float32)
            z = z + qz.scale * torch.as_tensor(noise, device=z.device)
        condition = tensors[CONDITION_KEY].long().flatten()
        moved = z if shifts is None else z + shifts[condition]
        total = module.observation.total(own)
        source, kept = decoded_arrays(module, tensors, z, None, n_cells)
        end, kept_end = decoded_arrays(module, tensors, moved, target, n_cells)
        yield Batch(
            observed=own[REGISTRY_KEYS.X_KEY].numpy(),
            total=None if total is None else total.cpu().numpy(),
            source=source,
            target=end,
            spared=None if kept is None or kept_end is None else [kept, kept_end],
            latent=qz.loc[:n_cells].cpu().numpy(),
            condition=condition[:n_cells].cpu().numpy(),
        )


def decoded_arrays(
    module: TRVAEModule,
    tensors: dict[str, torch.Tensor],
    z: torch.Tensor,
    condition: torch.Tensor | None,
    n_cells: int | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return :func:`trvae_sc.module.expected_and_spared` of the first cells as arrays."""
    expected, kept = expected_and_spared(module, tensors, z, condition)
    return expected[:n_cells].cpu().numpy(), None if kept is None else kept[:n_cells].cpu().numpy()


def _filled(tensors: dict[str, torch.Tensor], n_cells: int) -> dict[str, torch.Tensor]:
    """Return a minibatch filled up with its own cells to whole batches.

    Products of matrices round differently for other numbers of rows: a prediction would depend, in its last
    digits, on how many cells are predicted together.
    """
    rows = torch.arange(-(-n_cells // _BATCH) * _BATCH) % n_cells
    return tensors if len(rows) == n_cells else {k: v[rows] for k, v in tensors.items()}


def decoded(
    trained: Trained, adata: AnnData, rows: np.ndarray, z: np.ndarray, condition: Any = None
) -> np.ndarray:
    """Return the expected values of codes, on the scale of ``predict(output="mean")``.

    Batch and covariates of each code, and without `condition` the condition, are those of its row.
    """
    features = None if condition is None else trained.features(condition)
    parts, done = [], 0
    for tensors in trained.batches(adata, rows):
        n_codes = len(next(iter(tensors.values())))
        codes = torch.as_tensor(z[done : done + n_codes], dtype=torch.float32)
        done += n_codes
        codes = codes.to(trained.module.kappa.device)
        expected = expected_values(trained.module, tensors, codes, features)
        parts.append(scaled(trained.module, expected.cpu().numpy()))
    return np.concatenate(parts)


def latent_shifts(trained: Trained, sources: Iterable[Any], target: Any) -> torch.Tensor | None:
    r"""Return how codes move from each source to the target; None where the network sees conditions.

    .. math:: \frac1L \sum_l (\bar z_{lt} - \bar z_{ls})

    with mean codes of the training cells, over the labels seen under both (Lotfollahi et al. 2019,
    doi:10.1038/s41592-019-0494-8, with every label weighing the same); shape (n_conditions,
    n_latent), NaN for conditions that are no source.
    """
    module = trained.module
    if module.decoder_in.condition is not None:
        return None
    end = trained.conditions.code(target)
    shape = (len(trained.conditions.levels), module.z_mean.out_features)
    shifts = np.full(shape, np.nan, dtype=np.float32)
    for source in sources:
        start = trained.conditions.code(trained.conditions.level(source))
        found = []
        for label in range(len(trained.labels)):
            codes = [trained.codes_of(label, c) for c in (start, end)]
            if None not in codes:
                found.append(codes[1][1].mean(0) - codes[0][1].mean(0))
        if not found:
            raise InputError(
                f"The preset '{trained.preset}' does not see the condition and moves codes by what labels show "
                f"between {source!r} and {target!r}, but no label was measured under both. Use a preset "
                "that sees the condition, such as 'cvae'."
            )
        shifts[start] = torch.stack(found).mean(0).cpu().numpy()
    return torch.as_tensor(shifts, device=module.kappa.device)


# -- values -------------------------------------------------------------------------------------------


def scaled(module: TRVAEModule, values: np.ndarray, total: np.ndarray | None = None) -> np.ndarray:
    """Return log(1 + kappa share) of counts (with their total) or shares; other values as they are."""
    if not module.is_count:
        return values
    kappa = module.kappa.item()
    shares = kappa * (values if total is None else values / total)
    return np.log1p(shares, out=shares)


def mean_of(module: TRVAEModule, level: np.ndarray) -> np.ndarray:
    """Return the mean profile of f: the inverse of :func:`scaled`."""
    return np.expm1(np.maximum(level, 0.0)) / module.kappa.item() if module.is_count else level


def dispersion(module: TRVAEModule, features: torch.Tensor) -> np.ndarray | None:
    """Return theta of counts (else the standard deviation, scaled), by condition or one row for all."""
    if module.gene_likelihood == "poisson":
        return None
    return module.observation.log_theta(features).exp().detach().cpu().numpy()


def predicted_values(
    module: TRVAEModule, batch: Batch, target: torch.Tensor, output: str, draws: Draws
) -> np.ndarray | sparse.csr_matrix:
    """Return the predicted values of a batch."""
    if output == "delta":
        return scaled(module, batch.observed, batch.total) + mean_change(module, batch, target)
    if output == "mean":
        return scaled(module, batch.target)
    if not module.is_count:
        scale = 1.0  # "mse": half the squared error is the likelihood of unit variance
        if module.gene_likelihood == "normal":
            scale = module.gene_scale.cpu().numpy() * dispersion(module, target)
        noise = draws.add.standard_normal(batch.target.shape, dtype=np.float32)
        return batch.target + scale * noise
    theta = dispersion(module, target)
    if output == "sample":
        kept = None if batch.spared is None else batch.spared[-1]
        return draw_counts(batch.target * batch.total, theta, draws.add, kept)
    ratio = batch.target / np.maximum(batch.source, 1e-30)
    gain = np.maximum(batch.target - batch.source, 0.0) if batch.gain is None else batch.gain
    return transport_counts(by_row(batch.observed), ratio, gain * batch.total, theta, draws)


def predicted_totals(batch: Batch, counts: sparse.csr_matrix) -> np.ndarray:
    """Return the total of each predicted cell: its counts, and the rest of its genome, moved alike."""
    rest = batch.total.ravel() - batch.observed.sum(1, dtype=np.float64)
    start, end = (1.0 - rates.sum(1, dtype=np.float64) for rates in (batch.source, batch.target))
    ratio = np.clip(end / np.maximum(start, 1e-3), 0.0, 10.0)
    return np.asarray(counts.sum(1), np.float64).ravel() + np.round(np.maximum(rest, 0.0) * ratio)


def mean_change(module: TRVAEModule, batch: Batch, target: torch.Tensor) -> np.ndarray:
    """Return the change from source to target of each cell's expected value, logarithmic of counts."""
    if not module.is_count:
        return batch.target - batch.source
    present, codes = np.unique(batch.condition, return_inverse=True)
    own = dispersion(module, module.condition_design[present])
    if own is not None and len(own) > 1:
        own = own[codes]
    by_source, by_target = batch.spared or (1.0, 1.0)
    change = expected_log(module, batch.target, batch.total, dispersion(module, target), by_target)
    change -= expected_log(module, batch.source, batch.total, own, by_source)
    return change


def expected_log(
    module: TRVAEModule,
    shares: np.ndarray,
    total: np.ndarray,
    theta: np.ndarray | None,
    spared: np.ndarray | float = 1.0,
) -> np.ndarray:
    r"""Return what log(1 + kappa share) of cells is on average, (n_cells, n_genes).

    .. math:: q \log(1 + \kappa r / q), \qquad
       q = p\,\Big(1 - \Big(1 + \frac{t r}{p\,\theta}\Big)^{-\theta}\Big)

    with the expected share r, the probability q that a cell of t counts (`total`) has any of the
    gene, as if all that do had the same number, and p (`spared`) that zero inflation spares it. The
    logarithm of the mean, log(1 + kappa r), is far above it for a gene that few cells show.
    """
    q = spared * -np.expm1(-minus_log_p_zero(shares / spared * total, theta))
    np.maximum(q, np.finfo(q.dtype).tiny, out=q)
    return q * np.log1p(module.kappa.item() * (shares / q))
