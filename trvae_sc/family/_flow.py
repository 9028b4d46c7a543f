"""A normalizing flow, and the posterior of a Gaussian in its latent space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trvae_sc.errors import InputError, MissingExtraError
from trvae_sc.family._networks import ExpressionModule, Player, Sizes, Terms


class Gaussian(NamedTuple):
    """Mean and variance of each latent dimension, each of shape (n_dimensions,)."""

    mean: np.ndarray
    variance: np.ndarray

    @classmethod
    def of(cls, cells: np.ndarray) -> Gaussian:
        """Return mean and variance of cells, shape (n_cells, n_dimensions)."""
        return cls(cells.mean(0), cells.var(0))


def posterior(prior: Gaussian, cells: np.ndarray, strength: float | np.ndarray) -> Gaussian:
    r"""Return mean and variance between a prior and n cells, dimension by dimension.

    With mean :math:`\bar u` and mean squared deviation :math:`s^2` of the cells,

    .. math:: \mu_n = \frac{\kappa \mu_0 + n \bar u}{\kappa + n}, \qquad
       \sigma_n^2 = \frac{\kappa \sigma_0^2 + n s^2
       + \frac{\kappa n}{\kappa + n} (\bar u - \mu_0)^2}{\kappa + n}

    the parameters of the conjugate posterior, normal - inverse chi squared with
    :math:`\nu_0 = \kappa_0 = \kappa` (Gelman et al., Bayesian Data Analysis, 3rd ed., section 3.3).
    Without cells it is the prior; with many, or a strength of 0, their mean and variance.

    Parameters
    ----------
    prior
        Mean and variance without cells.
    cells
        Latent codes, shape (n_cells, n_dimensions).
    strength
        Number of cells :math:`\kappa` that the prior counts as, from 0; one, or one for each dimension.

    Raises
    ------
    InputError
        `strength` is negative or NaN.
    """
    if not np.all(np.asarray(strength) >= 0):
        raise InputError(f"strength is {strength}; it is a number of cells, 0 or more.")
    n = len(cells)
    if n == 0:
        return prior
    mean, spread = Gaussian.of(cells)
    new = n / (strength + n)  # share of the cells
    old = 1.0 - new
    between = old * new * np.square(mean - prior.mean)
    return Gaussian(old * prior.mean + new * mean, old * prior.variance + new * spread + between)


def worth_of_prior(expected: Sequence[np.ndarray], cells: Sequence[np.ndarray]) -> float:
    r"""Return the number of cells whose mean is as near to the truth as what is expected without them.

    .. math:: \kappa = \sum_l s_l^2 \Big/ \sum_l \Big(\lVert e_l - \bar x_l \rVert^2
       - \frac{s_l^2}{n_l}\Big)

    for the means :math:`e_l` that are expected of several labels, and their :math:`n_l` cells of mean
    :math:`\bar x_l` and variance :math:`s_l^2` (summed over dimensions), of which a share
    :math:`1 / n_l` is noise of the mean. Labels of one cell do not count.

    Parameters
    ----------
    expected
        Expected mean of each label, shape (n_dimensions,).
    cells
        Cells of each label, shape (n_cells, n_dimensions).
    """
    spread = missed = 0.0
    for mean, x in zip(expected, cells, strict=True):
        if len(x) > 1:
            variance = float(x.var(0, ddof=1).sum())
            spread += variance
            missed += float(np.square(mean - x.mean(0)).sum()) - variance / len(x)
    return float(spread / missed) if missed > 0 else np.inf


class FlowModule(ExpressionModule):
    """A normalizing flow on whitened principal components; see :class:`FlowTransfer`."""

    def __init__(self, sizes: Sizes, *, n_hidden: Sequence[int], n_transforms: int) -> None:
        try:
            import zuko
        except ImportError as error:
            raise MissingExtraError(
                "FlowTransfer needs zuko: pip install 'trvae_sc[flows]'."
            ) from error
        if sizes.n_pcs < 2:
            raise InputError(
                f"{sizes.n_pcs} principal components; the flow's layers need two or more."
            )
        super().__init__(sizes, whiten=True)
        # coupling layers (two passes): as fast backwards as forwards
        self.flow = zuko.flows.NSF(
            sizes.n_pcs, transforms=n_transforms, hidden_features=list(n_hidden), passes=2
        )

    def players(self) -> list[Player]:
        """Return the flow."""
        return [Player("flow", self.flow, self.terms)]

    def terms(self, batch: dict[str, Tensor]) -> Terms:
        """Return the negative log-likelihood, in nats per cell."""
        return {"loss": -self.flow().log_prob(self.to_components(batch["x"])).mean()}

    def encode(self, p: Tensor) -> Tensor:
        """Return latent codes of components, shape (n_cells, n_pcs)."""
        return self.flow().transform(p)

    def with_slopes(self, x: Tensor) -> Tensor:
        """Return latent codes of values and, beside them, log |det| of their derivative by components.

        Shape (n_cells, n_pcs + 1).
        """
        u, slope = self.flow().transform.call_and_ladj(self.to_components(x))
        return torch.cat([u, slope[:, None]], 1)

    def decode(self, u: Tensor) -> Tensor:
        """Return components of latent codes, shape (n_cells, n_pcs)."""
        return self.flow().transform.inv(u)

    def places(self, x: Tensor) -> Tensor:
        """Return latent codes of values and, beside them, what is outside of the components.

        Shape (n_cells, n_pcs + n_genes).
        """
        p = self.to_components(x)
        return torch.cat([self.encode(p), x - self.center - self.change_of(p)], 1)

    def values_at(self, places: Tensor) -> Tensor:
        """Return the values of cells at these places, shape (n_cells, n_genes)."""
        u, rest = places.tensor_split([len(self.spread)], 1)
        return self.center + self.change_of(self.decode(u)) + rest
