"""Flow matching from one condition to another in principal components."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from anndata import AnnData
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from trvae_sc.family._between import BetweenTranslator
from trvae_sc.family._networks import BetweenModule, Network, Player, Sizes, Terms


def coupling(start: Tensor, end: Tensor, label: Tensor) -> Tensor:
    r"""Return which end each start goes to: optimal transport of a minibatch within labels.

    The permutation that minimises :math:`\sum_i \lVert p_i - q_{\pi(i)} \rVert^2` among those that
    keep the label (Tong et al. 2024, arXiv:2302.00482, section 3.2.4).

    Parameters
    ----------
    start, end
        Cells under source and target, shape (n_cells, n_dimensions); row i of both has label i.
    label
        Codes, shape (n_cells,).

    Returns
    -------
    Row numbers of `end`, shape (n_cells,).
    """
    cost = torch.cdist(start, end).square()
    cost = cost.masked_fill(label[:, None] != label[None], torch.inf)
    return torch.as_tensor(linear_sum_assignment(cost.cpu().numpy())[1], device=end.device)


class FlowMatchingModule(BetweenModule):
    r"""Velocity :math:`v(p, t)` of principal components between source (t = 0) and target (1); see :class:`FlowMatching`."""

    def __init__(self, sizes: Sizes, *, n_hidden: Sequence[int], n_steps: int) -> None:
        super().__init__(sizes)
        self.n_steps = n_steps
        self.velocity = Network(
            sizes.n_pcs + 1, n_hidden, sizes.n_pcs, norm="layer", start_at_zero=True
        )

    def players(self) -> list[Player]:
        """Return the velocity."""
        return [Player("velocity", self.velocity, self.terms)]

    def speed(self, p: Tensor, t: Tensor) -> Tensor:
        """Return the velocity at points (n_cells, n_pcs) and times (n_cells, 1)."""
        return self.velocity(torch.cat([p, t], 1))

    def terms(self, batch: dict[str, Tensor]) -> Terms:
        """Return the loss."""
        start, end = self.to_components(batch["x"]).chunk(2)
        end = end[coupling(start, end, batch["label"].chunk(2)[0])]
        t = torch.rand(len(start), 1, device=start.device)
        error = self.speed(start + t * (end - start), t) - (end - start)
        return {"loss": error.square().sum(1).mean()}

    def move(self, p: Tensor, *, backward: bool) -> Tensor:
        """Return components at the other end of the flow."""
        step = (-1.0 if backward else 1.0) / self.n_steps
        t = torch.full((len(p), 1), float(backward), device=p.device)
        for _ in range(self.n_steps):  # midpoint rule
            half = p + step / 2 * self.speed(p, t)
            p = p + step * self.speed(half, t + step / 2)
            t = t + step
        return p


class FlowMatching(BetweenTranslator):
    r"""Moves cells along a velocity field that was matched to optimal transport between conditions.

    .. math:: \frac{dp}{dt} = v(p, t), \qquad L = E\,\big\lVert v\big((1-t)\,p + t\,q,\; t\big)
       - (q - p) \big\rVert^2

    for pairs p, q of source and target cells that :func:`coupling` makes within labels, minibatch by
    minibatch, and t uniform on 0 to 1 (Lipman et al. 2023, arXiv:2210.02747; Tong et al. 2024,
    arXiv:2302.00482). Prediction integrates from 0 to 1, or back.

    Principal components of the training cells are linear: the part of a cell outside of them is kept as
    it was, and distances are those of expression. The velocity does not see the label, so that it can be
    used on labels never seen under the target: it has to tell them by where they are.

    Parameters
    ----------
    adata, registry, source, target, seed
        As for :class:`BetweenTranslator`.
    n_pcs
        Principal components; fewer where cells or genes do not allow so many.
    n_hidden
        Widths of the velocity's network.
    n_steps
        Steps of the integration, by the midpoint rule.

    Examples
    --------
    >>> adata = trvae_sc.datasets.simulate()
    >>> FlowMatching.setup_anndata(adata, "condition", labels_key="cell_type")
    >>> model = FlowMatching(adata)
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
        n_hidden: Sequence[int] = (256, 256, 256),
        n_steps: int = 20,
        seed: int | None = None,
    ) -> None:
        super().__init__(adata, registry, source=source, target=target, seed=seed)
        self.init_params_ = self._get_init_params(locals())
        self._build(FlowMatchingModule, locals())
