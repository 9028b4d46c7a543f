"""Networks and statistics that the models of the family share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from scvi.module.base import BaseModuleClass
from sklearn.decomposition import PCA
from torch import Tensor, nn
from torch.nn import functional

from trvae_sc.errors import InputError
from trvae_sc.expression import gene_means
from trvae_sc.module import stack
from trvae_sc.scales import scale_notes

Adversarial = Literal["hinge", "wasserstein"]
Terms = dict[str, Tensor]  #: weighted terms of a loss; it is their sum

#: Generators learn more slowly than critics, which else do not keep up (Heusel et al. 2017,
#: arXiv:1706.08500).
GENERATOR_RATE = 0.2
_SLOPE = 0.2  # of LeakyReLU, as in most adversarial networks

#: Of the means of all training cells, at the lowest, means of a label under a condition.
_LEAST = 0.4


class Player(NamedTuple):
    """Parameters that are trained on a loss of their own, in turn with those of other players."""

    name: str
    network: nn.Module
    loss: Callable[[dict[str, Tensor]], Terms]  #: of a minibatch
    rate: float = 1.0  #: factor of the learning rate
    n_updates: int = 1  #: updates a step


class Network(nn.Sequential):
    """Fully connected layers with LeakyReLU between them; `start_at_zero`: the output is 0 before training."""

    def __init__(
        self,
        n_input: int,
        n_hidden: Sequence[int],
        n_output: int,
        *,
        norm: Literal["layer", "none"] = "none",
        start_at_zero: bool = False,
    ) -> None:
        widths = (n_input, *n_hidden)
        layers = stack(widths, bias=True, norm=norm, leaky_slope=_SLOPE, dropout_rate=0.0)
        super().__init__(*layers, nn.Linear(widths[-1], n_output))
        if start_at_zero:
            nn.init.zeros_(self[-1].weight)
            nn.init.zeros_(self[-1].bias)


class Sizes(NamedTuple):
    """What a module on expression vectors takes from the data."""

    n_input: int  #: genes
    n_conditions: int
    n_labels: int  #: 0 without labels
    n_pcs: int  #: principal components the networks work on
    is_count: bool


class ExpressionModule(BaseModuleClass):
    r"""What networks on expression vectors need: levels, and the principal components they work on.

    Networks see :math:`p = (x - \bar x) V / s`, principal components of the training cells. `whiten`
    divides each by its own deviation; else all are by the root of their mean variance.
    """

    def __init__(self, sizes: Sizes, *, whiten: bool = False) -> None:
        super().__init__()
        # what the checks of values ask for
        self.gene_likelihood = "nb" if sizes.is_count else "normal"
        self.whiten = whiten
        self.register_buffer("kappa", torch.ones(()))
        self.register_buffer("center", torch.zeros(sizes.n_input))
        self.register_buffer("components", torch.zeros(sizes.n_input, sizes.n_pcs))
        self.register_buffer("spread", torch.ones(sizes.n_pcs))
        n_cells = torch.zeros(max(sizes.n_labels, 1), sizes.n_conditions, dtype=torch.long)
        self.register_buffer("n_cells", n_cells)

    def set_statistics(self, x: Tensor, condition: Tensor, label: Tensor, *, seed: int) -> None:
        """Fit the principal components to the first training cells, and count the training cells."""
        if not self.components.any():
            pca = PCA(len(self.spread), random_state=seed).fit(x.numpy())
            variance = np.maximum(pca.explained_variance_, 1e-12)
            variance = variance if self.whiten else np.full_like(variance, variance.mean())
            self.center = torch.as_tensor(pca.mean_, dtype=torch.float32)
            self.components = torch.as_tensor(pca.components_.T.copy(), dtype=torch.float32)
            self.spread = torch.as_tensor(np.sqrt(variance), dtype=torch.float32)
        codes = label * self.n_cells.shape[1] + condition
        counts = torch.bincount(codes, minlength=self.n_cells.numel())
        self.n_cells = counts.view(self.n_cells.shape)

    def scale_notes(self, x: np.ndarray) -> list[str]:
        """Return a note where values of cells are far from the scale of the training cells."""
        groups = [(gene_means(x), self.center.cpu().numpy().astype(np.float64), len(x))]
        is_count = self.gene_likelihood == "nb"
        return scale_notes("these cells", groups, "in training", is_count=is_count, least=_LEAST)

    def to_components(self, x: Tensor) -> Tensor:
        """Return the scaled components of values, shape (n_cells, n_pcs)."""
        return (x - self.center) @ self.components / self.spread

    def change_of(self, difference: Tensor) -> Tensor:
        """Return the change of values that a difference of components is, (n_cells, n_genes)."""
        return (difference * self.spread) @ self.components.T

    def one_hot(self, condition: Tensor, label: Tensor) -> Tensor:
        """Return condition and label, shape (n_cells, n_conditions + n_labels)."""
        n_labels, n_conditions = self.n_cells.shape
        codes = [functional.one_hot(condition, n_conditions), functional.one_hot(label, n_labels)]
        return torch.cat(codes, 1).float()

    def players(self) -> list[Player]:
        """Return what is trained, in the order in which it is updated."""
        raise NotImplementedError


class BetweenModule(ExpressionModule):
    """Moves cells between two conditions, and keeps what is outside of the components."""

    def move(self, p: Tensor, *, backward: bool) -> Tensor:
        """Return components under the other condition."""
        raise NotImplementedError

    def translate(self, x: Tensor, *, backward: bool) -> Tensor:
        """Return values under the other condition."""
        p = self.to_components(x)
        return x + self.change_of(self.move(p, backward=backward) - p)


# -- adversarial losses -------------------------------------------------------------------------------


def critic_loss(real: Tensor, fake: Tensor, kind: Adversarial) -> Tensor:
    r"""Return the loss of a critic from its scores of real and generated cells.

    .. math:: \text{hinge:}\; E\max(0, 1 - D(x)) + E\max(0, 1 + D(\hat x)), \qquad
       \text{wasserstein:}\; E D(\hat x) - E D(x)

    Lim and Ye 2017 (arXiv:1705.02894), Arjovsky et al. 2017 (arXiv:1701.07875).

    Parameters
    ----------
    real, fake
        Scores D, shape (n_cells, 1).
    kind
        Which of the two.

    Raises
    ------
    InputError
        Another kind.
    """
    _check_kind(kind)
    if kind == "hinge":
        return functional.relu(1 - real).mean() + functional.relu(1 + fake).mean()
    return fake.mean() - real.mean()


def _check_kind(kind: str) -> None:
    """Raise on an adversarial loss that is unknown."""
    if kind not in ("hinge", "wasserstein"):
        raise InputError(f"Unknown adversarial loss {kind!r}; choose 'hinge' or 'wasserstein'.")


def gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor) -> Tensor:
    r"""Return how far a critic's slope is from 1 between real and generated cells.

    .. math:: E\,\big(\lVert \nabla_u D(u) \rVert_2 - 1\big)^2, \qquad
       u = \epsilon x + (1 - \epsilon)\hat x, \quad \epsilon \sim U(0, 1)

    Gulrajani et al. 2017, arXiv:1704.00028, eq. 3.

    Parameters
    ----------
    critic
        Scores cells.
    real, fake
        Components of cells, shape (n_cells, n_pcs).
    """
    share = torch.rand(len(real), 1, device=real.device)
    between = (share * real + (1 - share) * fake).detach().requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return (slope.norm(dim=1) - 1).square().mean()


class Critic(nn.Module):
    """Scores how real cells look, given `n_context` values that are known of each; with its loss."""

    def __init__(
        self,
        n_input: int,
        n_context: int,
        n_hidden: Sequence[int],
        *,
        kind: Adversarial,
        penalty_weight: float,
    ) -> None:
        super().__init__()
        _check_kind(kind)
        self.network = Network(n_input + n_context, n_hidden, 1)
        self.kind, self.penalty_weight = kind, penalty_weight

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Return a score for each cell, (n_cells, 1); higher is more real."""
        return self.network(torch.cat([x, context], 1))

    def loss(self, real: Tensor, fake: Tensor, context: Tensor) -> Terms:
        """Return the critic's loss."""
        fake = fake.detach()
        terms = {"loss": critic_loss(self(real, context), self(fake, context), self.kind)}
        if self.penalty_weight > 0:
            penalty = gradient_penalty(lambda x: self(x, context), real, fake)
            terms["penalty"] = self.penalty_weight * penalty
        return terms
