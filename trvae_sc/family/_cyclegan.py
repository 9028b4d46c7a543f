"""CycleGAN: translation between two conditions without pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from anndata import AnnData
from torch import Tensor, nn

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


class CycleGANModule(BetweenModule):
    r"""Two generators :math:`G(p) = p + g(p), F(q) = q + f(q)` and a critic of each condition.

    See :class:`CycleGAN` for the parameters.
    """

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
        to_q, to_p = self.move(p, backward=False), self.move(q, backward=True)
        adversarial = -self.critics[0](to_q, label).mean() - self.critics[1](to_p, label).mean()
        cycle = _l1(self.move(to_q, backward=True), p) + _l1(self.move(to_p, backward=False), q)
        identity = _l1(self.move(q, backward=False), q) + _l1(self.move(p, backward=True), p)
        return {
            "adversarial": adversarial,
            "cycle": self.cycle_weight * cycle,
            "identity": self.identity_weight * identity,
        }


def _l1(p: Tensor, q: Tensor) -> Tensor:
    """Return the mean absolute difference."""
    return (p - q).abs().mean()


class CycleGAN(BetweenTranslator):
    r"""Translates between two conditions without pairs: there and back again gives the same cell.

    With d principal components p, q of source and target cells, generators G from source to target
    and F back (both residual, p + g(p), starting at the identity), and critics :math:`D_t, D_s`,

    .. math:: L_{G,F} = -E\,D_t(G(p)) - E\,D_s(F(q))
       + \tfrac\lambda d \big(E\lVert F(G(p)) - p\rVert_1 + E\lVert G(F(q)) - q\rVert_1\big)
       + \tfrac\mu d \big(E\lVert G(q) - q\rVert_1 + E\lVert F(p) - p\rVert_1\big)

    The part of a cell outside of the components stays as it was (Zhu et al. 2017, doi:10.1109/ICCV.2017.244, eqs. 2, 3 and section 5.2). Where labels are
    registered, minibatches have the same labels under both conditions and the critics see them;
    without, a difference of composition is learned as if it were an effect, and nothing keeps a cell's
    identity: a map that exchanges labels closes every cycle and pleases every critic as well as one that
    does not. The identity term (:math:`\mu`) only says that target cells are moved little, and so keeps labels
    apart where the change is small against their differences; where it is not, give labels. The generators do
    not see labels, so that they can be used on labels never seen under the target. To see how far the cycle
    closes, predict from a prediction, ``model.predict(model.predict(target=b), target=a)`` (of values that are no
    counts: predictions are on the log scale).

    Parameters
    ----------
    adata
        AnnData registered with :meth:`setup_anndata`.
    registry
        Registry of such a registration, in place of `adata`.
    source, target
        The two conditions. May be None where the data have no others.
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
    seed
        Seed of initial weights and minibatches; ``scvi.settings.seed`` or else 0 if None.

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
        self._build(
            CycleGANModule,
            n_pcs=n_pcs,
            n_hidden=n_hidden,
            cycle_weight=cycle_weight,
            identity_weight=identity_weight,
            adversarial=adversarial,
            penalty_weight=penalty_weight,
        )
        self.init_params_ = self._get_init_params(locals())
