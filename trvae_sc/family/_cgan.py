"""A conditional generative adversarial network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor

from trvae_sc.errors import InputError
from trvae_sc.family._networks import (
    GENERATOR_RATE,
    Adversarial,
    Critic,
    ExpressionModule,
    Network,
    Player,
    Sizes,
    Terms,
)
from trvae_sc.family._translator import Translator
from trvae_sc.levels import as_text, level_name

_CRITIC_UPDATES = 3  # a step: with one the critic does not keep up, and generated cells are alike


class ConditionalGANModule(ExpressionModule):
    r"""Generator :math:`G(\epsilon, s, l)` and critic :math:`D(x, s, l)`.

    See :class:`ConditionalGAN` for the parameters.
    """

    def __init__(
        self,
        sizes: Sizes,
        *,
        n_noise: int,
        n_hidden: Sequence[int],
        adversarial: Adversarial,
        penalty_weight: float,
    ) -> None:
        super().__init__(sizes)
        n_context = sizes.n_conditions + max(sizes.n_labels, 1)
        self.n_noise = n_noise
        self.generator = Network(n_noise + n_context, n_hidden, sizes.n_pcs)
        self.critic = Critic(
            sizes.n_pcs, n_context, n_hidden, kind=adversarial, penalty_weight=penalty_weight
        )

    def players(self) -> list[Player]:
        """Return critic and generator."""
        return [
            Player("critic", self.critic, self.critic_terms, n_updates=_CRITIC_UPDATES),
            Player("generator", self.generator, self.generator_terms, GENERATOR_RATE),
        ]

    def generate(self, noise: Tensor, context: Tensor) -> Tensor:
        """Return components of generated cells, shape (n_cells, n_pcs)."""
        return self.generator(torch.cat([noise, context], 1))

    def _fake(self, context: Tensor) -> Tensor:
        noise = torch.randn(len(context), self.n_noise, device=context.device)
        return self.generate(noise, context)

    def critic_terms(self, batch: dict[str, Tensor]) -> Terms:
        """Return the loss of the critic."""
        context = self.one_hot(batch["condition"], batch["label"])
        with torch.no_grad():
            fake = self._fake(context)
        return self.critic.loss(self.to_components(batch["x"]), fake, context)

    def generator_terms(self, batch: dict[str, Tensor]) -> Terms:
        """Return the loss of the generator."""
        context = self.one_hot(batch["condition"], batch["label"])
        return {"loss": -self.critic(self._fake(context), context).mean()}


class ConditionalGAN(Translator):
    r"""Conditional GAN: generates cells of a label under a condition from noise.

    .. math:: \hat x = G(\epsilon, s, l), \quad \epsilon \sim N(0, I), \qquad
       L_G = -E\,D(G(\epsilon, s, l), s, l)

    with condition s and, where labels are registered, label l as one-hot codes (Mirza and Osindero
    2014, arXiv:1411.1784). The critic D has the hinge or the Wasserstein loss, with a penalty on its
    slope; see ``trvae_sc.family.critic_loss`` and ``gradient_penalty``.

    Nothing of a source cell enters a prediction but its label: the model has no encoder, and each
    source cell is answered with a new cell of its label under the target. A combination that was
    never seen rests on label and condition each having been seen in others.

    Parameters
    ----------
    adata
        AnnData registered with :meth:`setup_anndata`.
    registry
        Registry of such a registration, in place of `adata`.
    n_pcs
        Principal components that cells are generated in; fewer where cells or genes do not allow so
        many. What is outside of them is not generated.
    n_noise
        Dimensions of the noise.
    n_hidden
        Widths of generator and critic.
    adversarial
        Loss of the critic, ``"wasserstein"`` or ``"hinge"``.
    penalty_weight
        Weight of the gradient penalty; 0 for none.
    seed
        Seed of initial weights, minibatches and noise; ``scvi.settings.seed`` or else 0 if None.

    Examples
    --------
    >>> adata = trvae_sc.datasets.simulate()
    >>> ConditionalGAN.setup_anndata(adata, "condition", labels_key="cell_type")
    >>> model = ConditionalGAN(adata)
    >>> model.train()
    >>> generated = model.predict(target="stimulated", labels="type_0")
    """

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict[str, Any] | None = None,
        *,
        n_pcs: int = 50,
        n_noise: int = 64,
        n_hidden: Sequence[int] = (128, 128),
        adversarial: Adversarial = "wasserstein",
        penalty_weight: float = 10.0,
        seed: int | None = None,
    ) -> None:
        super().__init__(adata, registry, seed=seed)
        self._build(
            ConditionalGANModule,
            n_pcs=n_pcs,
            n_noise=n_noise,
            n_hidden=n_hidden,
            adversarial=adversarial,
            penalty_weight=penalty_weight,
        )
        self.init_params_ = self._get_init_params(locals())

    @torch.no_grad()
    def _translate(
        self, cells: AnnData, x: np.ndarray, target: Any, generator: torch.Generator
    ) -> np.ndarray:
        label = self._label_codes(cells)
        condition = torch.full_like(label, self.conditions.index(target))
        noise = torch.randn(len(label), self.module.n_noise, generator=generator)
        context = self.module.one_hot(condition, label).to(self.device)
        generated = self.module.generate(noise.to(self.device), context)
        return (self.module.center + self.module.change_of(generated)).cpu().numpy()

    def _label_codes(self, cells: AnnData) -> torch.Tensor:
        """Return the label of each cell as a code; 0 where there are no labels.

        Raises
        ------
        InputError
            A label that training did not see.
        """
        key = self.keys.labels_key
        if key is None:
            return torch.zeros(cells.n_obs, dtype=torch.long)
        if key not in cells.obs:
            raise InputError(
                f"No column '{key}' in adata.obs; there are {list(cells.obs.columns)}."
            )
        names = [level_name(label) for label in self.labels]
        own = as_text(cells.obs[key])
        unknown = sorted(set(own) - set(names))
        if unknown:
            raise InputError(
                f"Unknown labels {unknown}; {type(self).__name__} generates {self.labels}."
            )
        return torch.as_tensor(pd.Index(names).get_indexer(own), dtype=torch.long)
