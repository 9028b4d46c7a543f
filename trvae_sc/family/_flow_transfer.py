"""Flow transfer: from a handful of cells of a new combination, through a normalizing flow."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from numbers import Real
from typing import Any, Literal

import numpy as np
from anndata import AnnData

from trvae_sc.arguments import check_seed
from trvae_sc.checks import check_obs
from trvae_sc.errors import InputError
from trvae_sc.expression import evenly_spaced, groups
from trvae_sc.family._flow import FlowModule, Gaussian, posterior, worth_of_prior
from trvae_sc.family._flow_space import FlowSpace
from trvae_sc.levels import as_text, level_name
from trvae_sc.model import check_exemplars, check_labels, exemplar_notes

_ALL = 1e12  # cells that leave exemplars no weight
_PRIORS = ("shift", "source")
_MAX_CELLS = 500  # of a label and condition, to tell what the prior is worth


class FlowTransfer(FlowSpace):
    r"""Predicts a combination from a few cells of it, in the latent space of a normalizing flow.

    A neural spline flow f (Durkan et al. 2019, arXiv:1906.04032; zuko) maps whitened principal
    components of all training cells to N(0, I). In its latent space the source cells of a label have
    mean :math:`m_s` and variance :math:`v_s`. The prior of the target is

    .. math:: \mu_0 = m_s + \frac1L \sum_l (m_{lt} - m_{ls}), \qquad \sigma_0^2 = v_s

    (``prior="source"``: without the mean shift), with the labels l measured under both, and each source cell is
    moved to its place in the :func:`posterior` given n exemplars, and decoded:

    .. math:: u' = \mu_n + \frac{\sigma_n}{\sigma_0} (u - m_s), \qquad
       \hat p = f^{-1}(u')

    The part of a cell outside of the components is moved by the posterior of its mean, and keeps its
    deviation from that.

    Parameters
    ----------
    adata, registry, seed
        As for :class:`Translator`.
    n_pcs
        Principal components; fewer where cells or genes do not allow so many.
    n_hidden
        Widths of the networks that give the splines.
    n_transforms
        Number of spline layers.

    Raises
    ------
    MissingExtraError
        zuko is not installed.

    Examples
    --------
    >>> FlowTransfer.setup_anndata(train, "condition", labels_key="cell_type")
    >>> model = FlowTransfer(train)
    >>> model.train()
    >>> predicted = model.predict(target="stimulated", labels="NK", exemplars=five_cells)
    """

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict[str, Any] | None = None,
        *,
        n_pcs: int = 30,
        n_hidden: Sequence[int] = (64, 64),
        n_transforms: int = 3,
        seed: int | None = None,
    ) -> None:
        super().__init__(adata, registry, seed=seed)
        #: mean places of training cells by condition, then label, as text: see :meth:`_places`
        self.latent_means_: dict[str, dict[str, Any]] = {}
        self.init_params_ = self._get_init_params(locals())
        self._build(FlowModule, locals())

    def train(self, max_epochs: int | None = None, **kwargs: Any) -> None:
        """Fit the flow; see :meth:`Translator.train` for the parameters."""
        before = self.history_
        try:
            super().train(max_epochs, **kwargs)
        finally:
            if self.history_ is not before and self.trainer.global_step:
                places = self._places(self.adata)
                self.latent_means_ = {}
                for (label, condition), rows in groups(self.adata.obs, self.keys):
                    self.latent_means_.setdefault(condition, {})[label] = places[rows].mean(0)

    def _shifts(self, source: Any, target: Any) -> dict[str, np.ndarray]:
        """Return how the mean place of every label measured under both differs."""
        start, end = (self.latent_means_.get(level_name(c), {}) for c in (source, target))
        return {label: end[label] - start[label] for label in start if label in end}

    def prior_strength(
        self, source: Any, target: Any, *, prior: Literal["shift", "source"] = "shift"
    ) -> tuple[float, float]:
        """Return how many cells the prior is worth, from the labels measured under both conditions.

        Each of them is predicted without exemplars, from the shifts of the others, and compared with
        its cells by :func:`worth_of_prior`: in the principal components, and outside of them.

        Parameters
        ----------
        source, target, prior
            As for :meth:`predict`.

        Raises
        ------
        InputError
            No training cells are attached, fewer than two labels were measured under both, or no
            label has two target cells among those attached.
        """
        _check_choice("prior", prior, _PRIORS)
        if self.adata is None:
            raise InputError(
                "What the prior is worth follows from training cells, and none are attached. Attach "
                "them (model.adata = adata), or give strength."
            )
        shifts = self._shifts(source, target)
        if len(shifts) < 2:
            raise InputError(
                f"{len(shifts)} labels were measured under both {source!r} and {target!r}; two are "
                "needed to tell what the prior is worth. Give strength."
            )
        rows = dict(groups(self.adata.obs, self.keys))
        ends = [level_name(c) for c in (source, target)]
        attached = [label for label in shifts if all((label, end) in rows for end in ends)]
        if all(len(rows[label, ends[1]]) < 2 for label in attached):
            raise InputError(
                f"The cells attached have no label under both {source!r} and {target!r} with two cells under the "
                "latter, by which the prior could be judged. Attach the training cells (model.adata = adata), or "
                "give strength."
            )
        expected, cells = [], []
        for label in attached:
            start, end = (self.adata[evenly_spaced(rows[label, c], _MAX_CELLS)] for c in ends)
            others = [other for name, other in shifts.items() if name != label]
            moved = self._places(start) + (np.mean(others, 0) if prior == "shift" else 0.0)
            expected.append(self._values_at(moved).mean(0))
            cells.append(self._values(end))
        axes = self.module.components.cpu().numpy()
        inside = worth_of_prior([e @ axes for e in expected], [x @ axes for x in cells])
        expected, cells = ([x - x @ axes @ axes.T for x in of] for of in (expected, cells))
        return inside, worth_of_prior(expected, cells)

    def predict(
        self,
        adata: AnnData | None = None,
        *,
        target: Any,
        exemplars: AnnData | None = None,
        strength: float | None = None,
        prior: Literal["shift", "source"] = "shift",
        output: Literal["moved", "sample"] = "moved",
        source: Any = None,
        labels: Any = None,
        indices: Sequence[int] | None = None,
        seed: int = 0,
    ) -> AnnData:
        """Return cells under another condition, given a few that were measured there.

        Parameters
        ----------
        adata, target, source, labels, indices
            As for :meth:`Translator.predict`.
        exemplars
            Cells under the target. Those of a label speak for it; labels without get the prior.
        strength
            Number of cells the prior counts as: 0 trusts the exemplars alone, ``inf`` the prior. By
            default what :meth:`prior_strength` finds in the training labels.
        prior
            ``"shift"``: source cells moved by the mean shift of the labels; ``"source"``: source
            cells as they are.
        output, seed
            ``"moved"``: each source cell at its own place in the posterior. ``"sample"``: as many
            draws from it, by the seed.

        Returns
        -------
        AnnData as of :meth:`Translator.predict`; ``uns["trvae_sc"]["combinations"]`` also has
        ``n_exemplars``, ``strength`` (in the components) and ``strength_outside``.

        Raises
        ------
        NotTrainedError, InputError
            As :meth:`Translator.predict`; also exemplars of another condition or label, a negative strength,
            no label to take the shift from, unknown `prior` or `output`.
        """
        _check_choice("prior", prior, _PRIORS)
        _check_choice("output", output, ("moved", "sample"))
        if strength is not None and not (isinstance(strength, Real) and strength >= 0):
            raise InputError(f"strength is {strength!r}; it is a number of cells, 0 or more.")
        check_seed(seed)
        target = self._level_to_predict(target)
        cells = self._source_cells(adata, target, source=source, labels=labels, indices=indices)
        shown = self._exemplar_places(exemplars, target)
        check_labels(shown, self.known.groups(cells.obs)["label"].unique())
        places = self._places(cells)
        n_pcs = len(self.module.spread)
        noise = np.random.default_rng(seed).standard_normal((len(places), n_pcs))
        strengths = cache(partial(self.prior_strength, target=target, prior=prior))
        used: dict[tuple[str, str], tuple[int, float, float]] = {}
        by_group = self.known.groups(cells.obs).groupby(["label", "source"])
        for (label, condition), rows in by_group.indices.items():
            known, own = shown.get(label, places[:0]), places[rows]
            start = Gaussian.of(own)
            before = self._prior(start, condition, target, prior)
            worth = (np.inf, np.inf) if strength is None else (strength, strength)
            if strength is None and len(known):
                worth = strengths(condition)
            weight = np.repeat(np.minimum(worth, _ALL), [n_pcs, cells.n_vars])
            after = posterior(before, known, weight)
            at, width = own - start.mean, np.sqrt(after.variance[:n_pcs])
            if output == "sample":
                at[:, :n_pcs] = noise[rows] * width
            else:
                at[:, :n_pcs] *= width / np.sqrt(np.maximum(start.variance[:n_pcs], 1e-12))
            places[rows] = after.mean + at
            used[label, condition] = (len(known), *map(float, worth))
        notes = exemplar_notes(self.known, {k: len(of) for k, of in shown.items()}, target)
        result = self._as_prediction(self._values_at(places), cells, target, seed, notes)
        table = result.uns["trvae_sc"]["combinations"]
        rows = [used[group] for group in zip(table["label"], table["source"], strict=True)]
        table[["n_exemplars", "strength", "strength_outside"]] = rows
        return result

    def _prior(self, start: Gaussian, source: Any, target: Any, kind: str) -> Gaussian:
        """Return what is expected of a label's target cells without exemplars."""
        if kind == "source":
            return start
        shifts = self._shifts(source, target)
        if not len(shifts):
            raise InputError(
                f"No label was measured under both {source!r} and {target!r}, so there is no shift "
                "to expect. Use prior='source'."
            )
        return Gaussian(start.mean + np.mean(list(shifts.values()), 0), start.variance)

    def _exemplar_places(self, exemplars: AnnData | None, target: Any) -> dict[str, np.ndarray]:
        """Return the places of the exemplars by label, as text."""
        if exemplars is None:
            return {}
        check_exemplars(exemplars)
        check_obs(exemplars, [self.keys.condition_key, self.keys.labels_key])
        cells = self._validate_anndata(exemplars)
        other = set(as_text(cells.obs[self.keys.condition_key])) - {level_name(target)}
        if other:
            raise InputError(f"Exemplars are cells under {target!r}; some are under {other}.")
        places = self._places(cells)
        return {label: places[rows] for (label, _), rows in groups(cells.obs, self.keys)}


def _check_choice(name: str, given: str, known: tuple[str, ...]) -> None:
    """Raise where an argument is none of those known."""
    if given not in known:
        raise InputError(f"Unknown {name} '{given}'; choose one of {known}.")
