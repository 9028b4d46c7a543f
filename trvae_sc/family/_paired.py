"""A paired translator: conditional GAN with an L1 loss, as pix2pix."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from anndata import AnnData
from torch import Tensor
from torch.nn.functional import l1_loss

from trvae_sc.errors import InputError
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
