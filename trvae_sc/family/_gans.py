"""Adversarial networks between two conditions: CycleGAN, without pairs, and pix2pix, with them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor, nn
from torch.nn.functional import l1_loss

from trvae_sc.alignment import align
from trvae_sc.checks import RECORD
from trvae_sc.errors import InputError
from trvae_sc.expression import dense
from trvae_sc.family._between import BetweenTranslator
from trvae_sc.family._networks import (
    GENERATOR_RATE,
    Adversarial,
    BetweenModule,
    Critic,
    Network,
    Player,
    Sizes,
    Terms,
)
from trvae_sc.levels import as_text, level_name, listing

logger = logging.getLogger(__name__)


class CycleGANModule(BetweenModule):
    r"""Two generators :math:`G(p) = p + g(p), F(q) = q + f(q)` and a critic of each condition; see :class:`CycleGAN`."""

    def __init__(
        self,
        sizes: Sizes,
        *,
        n_hidden: Sequence[int],
        cycle_weight: float,
        identity_weight: float,
        adversarial: Adversarial,
        penalty_weight: float,
    ) -> None:
        super().__init__(sizes)
        self.cycle_weight, self.identity_weight = cycle_weight, identity_weight
        self.generators = nn.ModuleList(
            Network(sizes.n_pcs, n_hidden, sizes.n_pcs, start_at_zero=True) for _ in range(2)
        )
        kinds = {"kind": adversarial, "penalty_weight": penalty_weight}
        self.critics = nn.ModuleList(
            Critic(sizes.n_pcs, max(sizes.n_labels, 1), n_hidden, **kinds) for _ in range(2)
        )

    def players(self) -> list[Player]:
        """Return the critics and the generators."""
        return [
            Player("critics", self.critics, self.critic_terms),
            Player("generators", self.generators, self.generator_terms, GENERATOR_RATE),
        ]

    def move(self, p: Tensor, *, backward: bool) -> Tensor:
        """Return components under the other condition."""
        return p + self.generators[int(backward)](p)

    def _cells(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return source cells, target cells and their labels, one-hot."""
        p, q = self.to_components(batch["x"]).chunk(2)
        label = batch["label"].chunk(2)[0]
        return p, q, nn.functional.one_hot(label, len(self.n_cells)).float()

    def critic_terms(self, batch: dict[str, Tensor]) -> Terms:
        """Return the sum of the critics' losses."""
        p, q, label = self._cells(batch)
        with torch.no_grad():
            to_q, to_p = self.move(p, backward=False), self.move(q, backward=True)
        first = self.critics[0].loss(q, to_q, label)
        second = self.critics[1].loss(p, to_p, label)
        return {name: value + second[name] for name, value in first.items()}

    def generator_terms(self, batch: dict[str, Tensor]) -> Terms:
        """Return the loss of both generators."""
        p, q, label = self._cells(batch)
        there, back = (partial(self.move, backward=backward) for backward in (False, True))
        to_q, to_p = there(p), back(q)
        adversarial = -self.critics[0](to_q, label).mean() - self.critics[1](to_p, label).mean()
        cycle = l1_loss(back(to_q), p) + l1_loss(there(to_p), q)
        identity = l1_loss(there(q), q) + l1_loss(back(p), p)
        return {
            "adversarial": adversarial,
            "cycle": self.cycle_weight * cycle,
            "identity": self.identity_weight * identity,
        }


class CycleGAN(BetweenTranslator):
    r"""Translates between two conditions without pairs: there and back again gives the same cell.

    With d principal components p, q of source and target cells, generators G from source to target
    and F back (both residual, p + g(p), starting at the identity), and critics :math:`D_t, D_s`,

    .. math:: L_{G,F} = -E\,D_t(G(p)) - E\,D_s(F(q))
       + \tfrac\lambda d \big(E\lVert F(G(p)) - p\rVert_1 + E\lVert G(F(q)) - q\rVert_1\big)
       + \tfrac\mu d \big(E\lVert G(q) - q\rVert_1 + E\lVert F(p) - p\rVert_1\big)

    (Zhu et al. 2017, doi:10.1109/ICCV.2017.244, eqs. 2, 3 and section 5.2). The part of a cell outside of the
    components stays as it was. To see how far the cycle closes, predict from a prediction:
    ``model.predict(model.predict(target=b), target=a)``.

    Minibatches have the same labels under both conditions, and the critics see them. Without labels a
    difference of composition is learned as if it were an effect, and a map that exchanges labels closes
    every cycle and pleases every critic, whatever the weight of the identity term. The generators do not
    see labels, so that they can be used on those never seen under the target.

    Parameters
    ----------
    adata, registry, source, target, seed
        As for :class:`BetweenTranslator`.
    n_pcs
        Principal components; fewer where cells or genes do not allow so many.
    n_hidden
        Widths of generators and critics.
    cycle_weight, identity_weight
        Weights :math:`\lambda, \mu` (10 and 5: published).
    adversarial
        Loss of the critics, ``"wasserstein"`` or ``"hinge"``.
    penalty_weight
        Weight of the gradient penalty; 0 for none.

    Examples
    --------
    >>> adata = trvae_sc.datasets.simulate()
    >>> CycleGAN.setup_anndata(adata, "condition", labels_key="cell_type")
    >>> model = CycleGAN(adata)
    >>> model.train()
    >>> predicted = model.predict(target="stimulated", labels="type_0")
    """

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict[str, Any] | None = None,
        *,
        source: Any = None,
        target: Any = None,
        n_pcs: int = 50,
        n_hidden: Sequence[int] = (128, 128),
        cycle_weight: float = 10.0,
        identity_weight: float = 5.0,
        adversarial: Adversarial = "wasserstein",
        penalty_weight: float = 10.0,
        seed: int | None = None,
    ) -> None:
        super().__init__(adata, registry, source=source, target=target, seed=seed)
        self.init_params_ = self._get_init_params(locals())
        self._build(CycleGANModule, locals())

    def _is_own(self, adata: AnnData | None) -> bool:
        """Return whether cells are a prediction of the model from counts, on the log scale."""
        record = {} if adata is None else adata.uns.get(RECORD, {})
        of_model = record.get("method") == type(self).__name__
        return self.keys.is_count and of_model and record["kappa"] == float(self.module.kappa)

    def _validate_anndata(self, adata: AnnData | None = None, *args: Any) -> AnnData:
        """Return cells with the model's genes; its own predictions are no counts any more."""
        if adata is None or not self._is_own(adata):
            return super()._validate_anndata(adata, *args)
        cells = align(adata, pd.Index(self.get_var_names()), None)
        cells.uns[RECORD] = adata.uns[RECORD]
        if self.keys.layer is not None:
            cells.layers[self.keys.layer] = cells.X
        return cells

    def _values(self, adata: AnnData, kappa: float | None = None) -> np.ndarray:
        """Return log values, of a prediction as they are."""
        return np.float32(dense(adata.X)) if self._is_own(adata) else super()._values(adata, kappa)


class PairedModule(BetweenModule):
    r"""Generator :math:`G(p) = p + g(p)` and critic :math:`D(q, p)`; see :class:`PairedTranslator`."""

    def __init__(
        self,
        sizes: Sizes,
        *,
        n_hidden: Sequence[int],
        l1_weight: float,
        adversarial: Adversarial,
        penalty_weight: float,
    ) -> None:
        super().__init__(sizes)
        self.l1_weight = l1_weight
        self.generator = Network(sizes.n_pcs, n_hidden, sizes.n_pcs, start_at_zero=True)
        self.critic = Critic(
            sizes.n_pcs, sizes.n_pcs, n_hidden, kind=adversarial, penalty_weight=penalty_weight
        )

    def players(self) -> list[Player]:
        """Return critic and generator."""
        return [
            Player("critic", self.critic, self.critic_terms),
            Player("generator", self.generator, self.generator_terms, GENERATOR_RATE),
        ]

    def move(self, p: Tensor, *, backward: bool) -> Tensor:
        """Return components under the target; there is no way back."""
        if backward:
            raise InputError("A PairedTranslator has one direction; train one for the other.")
        return p + self.generator(p)

    def critic_terms(self, batch: dict[str, Tensor]) -> Terms:
        """Return the loss of the critic."""
        p, q = self.to_components(batch["x"]).chunk(2)
        return self.critic.loss(q, self.move(p, backward=False), p)

    def generator_terms(self, batch: dict[str, Tensor]) -> Terms:
        """Return the loss of the generator."""
        p, q = self.to_components(batch["x"]).chunk(2)
        moved = self.move(p, backward=False)
        return {
            "adversarial": -self.critic(moved, p).mean(),
            "l1": self.l1_weight * l1_loss(moved, q),
        }


class PairedTranslator(BetweenTranslator):
    r"""Translates cells whose partner under the target was measured, as pix2pix does images.

    .. math:: L_G = -E\,D(G(p), p) + \lambda\, E\,\tfrac1d \lVert q - G(p) \rVert_1,
       \qquad G(p) = p + g(p)

    for d principal components p, q of the cells of a pair (Isola et al. 2017,
    doi:10.1109/CVPR.2017.632, eq. 4; without noise, which G learns to ignore). The part of a cell
    outside of them stays as it was. Dissociated cells are measured once and have no partners: this
    is for images, time-lapse data and simulations. It goes from source to target only.

    Parameters
    ----------
    adata, registry, source, target, seed
        As for :class:`BetweenTranslator`.
    n_pcs, n_hidden, adversarial, penalty_weight
        As for :class:`CycleGAN`.
    l1_weight
        Weight :math:`\lambda` of the L1 loss (100: published).

    Examples
    --------
    >>> adata = trvae_sc.datasets.digits()
    >>> PairedTranslator.setup_anndata(adata, "style", pair_key="image", is_count=False)
    >>> model = PairedTranslator(adata)
    >>> model.train()
    >>> outlined = model.predict(target="outlined")
    """

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict[str, Any] | None = None,
        *,
        source: Any = None,
        target: Any = None,
        n_pcs: int = 50,
        n_hidden: Sequence[int] = (128, 128),
        l1_weight: float = 100.0,
        adversarial: Adversarial = "wasserstein",
        penalty_weight: float = 10.0,
        seed: int | None = None,
    ) -> None:
        super().__init__(adata, registry, source=source, target=target, seed=seed)
        self.init_params_ = self._get_init_params(locals())
        self._build(PairedModule, locals())

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        condition_key: str,
        *,
        pair_key: str,
        labels_key: str | None = None,
        layer: str | None = None,
        total_counts_key: str | None = None,
        is_count: bool = True,
        **kwargs: Any,
    ) -> None:
        """Register the columns and values of an AnnData that the model uses.

        Parameters
        ----------
        adata, condition_key, labels_key, layer, total_counts_key, is_count, **kwargs
            As for :meth:`Translator.setup_anndata`.
        pair_key
            Column that names each cell's pair: equal in a cell and its partner, and in no other
            cell of either condition. Cells without a partner are not trained on.

        Raises
        ------
        InputError
            As there; also where pairs are not one to one.
        """
        cls._register_fields(locals())

    @classmethod
    def _check_further(cls, adata: AnnData, given: dict[str, Any]) -> None:
        """Raise where a pair has several cells of a condition."""
        key = given["pair_key"]
        if key not in adata.obs:
            raise InputError(
                f"No column '{key}' in adata.obs; there are {list(adata.obs.columns)}."
            )
        if adata.obs[key].isna().any():
            raise InputError(f"adata.obs['{key}'] is missing (NaN) in some cells. Drop them.")
        twice = adata.obs[[given["condition_key"], key]].duplicated()
        if twice.any():
            names = adata.obs.loc[twice, key].unique().tolist()
            raise InputError(
                f"Pairs are not one to one: {len(names)} values of adata.obs['{key}'] occur in "
                f"several cells of one condition ({listing(names)}). Give each pair a name of its own; "
                "cells without partners are for CycleGAN."
            )

    def _groups(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the rows of each pair; raise where there is none."""
        given, obs = self.registry_["setup_args"], self.adata.obs
        condition = as_text(obs[given["condition_key"]])
        self._check_further(self.adata, given)
        sides = []
        for end in (self.source_, self.target_):
            rows = np.flatnonzero(condition == level_name(end))
            sides.append(dict(zip(obs[given["pair_key"]].iloc[rows], rows, strict=True)))
        names = [name for name in sides[0] if name in sides[1]]
        if not names:
            raise InputError(
                f"No value of adata.obs['{given['pair_key']}'] occurs under both {self.source_!r} "
                f"and {self.target_!r}: there are no pairs."
            )
        n_alone = sum(len(side) for side in sides) - 2 * len(names)
        logger.info("%d pairs; %d cells have no partner.", len(names), n_alone)
        return [tuple(np.array([side[name]]) for side in sides) for name in names]
