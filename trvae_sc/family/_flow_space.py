"""The latent space of a normalizing flow: codes, densities, new cells and lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy.special import softmax
from scipy.stats import norm

from trvae_sc.arguments import check_number, check_seed, check_whole
from trvae_sc.errors import InputError
from trvae_sc.family._cells import Cells, rows_of
from trvae_sc.family._flow import FlowModule, Gaussian, posterior
from trvae_sc.family._translator import Translator
from trvae_sc.levels import as_text, level_name
from trvae_sc.model import checked_codes, per_code
from trvae_sc.training import row_numbers

_LEAST_VARIANCE = 1e-4


class FlowSpace(Translator):
    """A model with an invertible map between cells and N(0, I); see :class:`FlowTransfer`."""

    module: FlowModule

    # -- codes ----------------------------------------------------------------------------------------

    def encode(
        self, adata: AnnData | None = None, indices: Sequence[int] | None = None
    ) -> np.ndarray:
        """Return the latent codes u = f(p) of cells, shape (n_cells, n_pcs).

        Parameters
        ----------
        adata
            Cells, with the genes of the model in any order; the model's own if None.
        indices
            Rows of them; all if None.

        Raises
        ------
        NotTrainedError, InputError
            The model is not trained; no such rows, or genes are missing.
        """
        self._check_if_trained(warn=False)
        cells = self._validate_anndata(adata)
        if indices is not None:
            cells = cells[row_numbers(np.atleast_1d(indices), cells.n_obs)]
        return self._places(cells)[:, : len(self.module.spread)]

    def decode(self, u: np.ndarray, *, condition: Any = None, labels: Any = None) -> AnnData:
        """Return the cells that codes stand for.

        Parameters
        ----------
        u
            Codes, shape (n_codes, n_pcs).
        condition, labels
            Condition and label or labels to note in ``obs``; the flow does not see them.

        Returns
        -------
        AnnData with a row per code: log values (values that are no counts: as they are) with nothing
        outside of the principal components; u in ``obsm["X_trvae"]``.

        Raises
        ------
        NotTrainedError, InputError
            The model is not trained; codes of another shape or that are not finite, an unknown condition.
        """
        self._check_if_trained(warn=False)
        u = checked_codes("u", u, len(self.module.spread))
        obs = pd.DataFrame(index=[f"code_{i}" for i in range(len(u))])
        if condition is not None:
            level = self.condition_space.level(condition)
            obs = obs.assign(**self.condition_space.columns([level] * len(u)))
        if labels is not None:
            obs[self.keys.labels_key or "label"] = per_code("labels", labels, len(u))
        rest = np.zeros((len(u), self.summary_stats.n_vars))  # nothing outside of the components
        x = self._values_at(np.concatenate([u, rest], 1))
        return self._as_cells(x, u.astype(np.float32), obs, "decode")

    def generate(
        self,
        n_obs: int = 1000,
        *,
        exemplars: AnnData | None = None,
        strength: float = 1.0,
        seed: int = 0,
    ) -> AnnData:
        r"""Return new cells: f^-1(u) of u from N(0, I), or from its :func:`posterior` around exemplars.

        Parameters
        ----------
        n_obs, seed
            Number of cells, and seed of the draws.
        exemplars
            Cells to be like, such as those of a label.
        strength
            Number of exemplars that N(0, I) counts as.

        Returns
        -------
        AnnData as of :meth:`decode`.

        Raises
        ------
        NotTrainedError, InputError
            The model is not trained; `n_obs` is no positive number, or `strength` is negative.
        """
        check_whole("n_obs", n_obs)
        check_seed(seed)
        around = self._around(exemplars, strength)
        noise = np.random.default_rng(seed).standard_normal((n_obs, len(around.mean)))
        return self.decode(around.mean + np.sqrt(around.variance) * noise)

    # -- densities ------------------------------------------------------------------------------------

    def log_prob(
        self,
        adata: AnnData | None = None,
        *,
        exemplars: AnnData | None = None,
        strength: float = 1.0,
    ) -> pd.Series:
        r"""Return the log density of cells, in nats, by cell.

        .. math:: \log p(x) = \log N\big(f(p); \mu, \sigma^2\big) + \log |\det \partial f / \partial p|

        of the whitened principal components p, with N(0, I) or its posterior around exemplars.

        Parameters
        ----------
        adata
            Cells; the model's own if None.
        exemplars, strength
            As in :meth:`generate`.

        Raises
        ------
        NotTrainedError, InputError
            The model is not trained; `strength` is negative.
        """
        self._check_if_trained(warn=False)
        around = self._around(exemplars, strength)
        cells = self._validate_anndata(adata)
        found = self._in_parts(self.module.with_slopes, self._values(cells)).astype(np.float64)
        log_p = _log_normal(found[:, :-1], around) + found[:, -1]
        return pd.Series(log_p, cells.obs_names, name="log_prob")

    def classify(
        self,
        adata: AnnData | None = None,
        *,
        exemplars: AnnData | None = None,
        strength: float = 1.0,
    ) -> pd.DataFrame:
        r"""Return how probable each label is for a cell, by its density under the posterior of that label.

        .. math:: P(l \mid x) = \frac{p_l(x)}{\sum_m p_m(x)}

        with :math:`p_l` of :meth:`log_prob` around the exemplars of label l.

        Parameters
        ----------
        adata
            Cells to classify; the model's own if None.
        exemplars
            Cells of the labels to tell apart, also of new ones, with the labels' column; the model's own if None.
        strength
            As in :meth:`generate`.

        Returns
        -------
        Cells x labels; rows sum to 1. ``.idxmax(axis=1)`` is the most probable label.

        Raises
        ------
        NotTrainedError, InputError
            The model is not trained; no labels were registered, or the exemplars lack their column.
        """
        self._check_if_trained(warn=False)
        key = self.keys.labels_key
        if key is None:
            raise InputError(
                "The model was set up without labels_key, so there are no labels to tell."
            )
        shown = self._validate_anndata(exemplars)
        if key not in shown.obs:
            raise InputError(
                f"No column {key!r} in obs of the exemplars; there are {list(shown.obs)}."
            )
        check_number("strength", strength, 0.0)
        names, codes = as_text(shown.obs[key]).to_numpy(), self.encode(shown)
        start = _standard(codes.shape[1])
        cells = self._validate_anndata(adata)
        u = self.encode(cells)
        present = dict.fromkeys(names)
        levels = [name for name in map(level_name, self.labels) if name in present]
        levels += [name for name in present if name not in levels]
        logs = [_log_normal(u, posterior(start, codes[names == name], strength)) for name in levels]
        share = softmax(np.stack(logs, 1), axis=1)
        return pd.DataFrame(share, index=cells.obs_names, columns=levels)

    # -- lines ----------------------------------------------------------------------------------------

    def interpolate(
        self, a: Cells | None, b: Cells, *, steps: int = 11, adata: AnnData | None = None
    ) -> AnnData:
        r"""Return what lies between two cells or groups of cells: the straight line of codes, decoded.

        What is outside of the principal components is mixed in the same shares.

        Parameters
        ----------
        a, b
            Start and end: cells as in :func:`trvae_sc.family.interpolate`; a = None: the origin u = 0.
        steps
            Number of points, start and end included.
        adata
            Cells that a and b are among; the model's own if None.

        Returns
        -------
        AnnData with a row per point, as of :meth:`decode`; ``obs["fraction"]``, 0 to 1.

        Raises
        ------
        NotTrainedError, InputError
            The model is not trained; no such cells, or fewer than two steps.
        """
        self._check_if_trained(warn=False)
        check_whole("steps", steps, 2)
        cells = self._validate_anndata(adata)
        end = self._places(cells[rows_of(cells, b)]).mean(0)
        start = 0.0 if a is None else self._places(cells[rows_of(cells, a)]).mean(0)
        fraction = np.linspace(0.0, 1.0, steps)
        places = (1.0 - fraction[:, None]) * start + fraction[:, None] * end
        obs = pd.DataFrame({"fraction": fraction}, index=[f"step_{i}" for i in range(steps)])
        u = places[:, : len(self.module.spread)].astype(np.float32)
        return self._as_cells(self._values_at(places), u, obs, "interpolate")

    # -- parts ----------------------------------------------------------------------------------------

    def _places(self, cells: AnnData) -> np.ndarray:
        """Return the places of cells; see :meth:`FlowModule.places`."""
        return self._in_parts(self.module.places, self._values(cells)).astype(np.float64)

    @torch.no_grad()
    def _values_at(self, places: np.ndarray) -> np.ndarray:
        """Return the values of cells at these places."""
        places = torch.as_tensor(places, dtype=torch.float32, device=self.device)
        return self.module.values_at(places).cpu().numpy()

    def _around(self, exemplars: AnnData | None, strength: float) -> Gaussian:
        """Return N(0, I), or its posterior given exemplars."""
        check_number("strength", strength, 0.0)
        start = _standard(len(self.module.spread))
        return start if exemplars is None else posterior(start, self.encode(exemplars), strength)


def _standard(n: int) -> Gaussian:
    """Return N(0, I)."""
    return Gaussian(np.zeros(n), np.ones(n))


def _log_normal(u: np.ndarray, around: Gaussian) -> np.ndarray:
    """Return the log density of codes under a Gaussian, shape (n_codes,)."""
    deviation = np.sqrt(np.maximum(around.variance, _LEAST_VARIANCE))
    return norm.logpdf(u, around.mean, deviation).sum(1)
