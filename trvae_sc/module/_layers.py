"""Building blocks of the network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

#: Registry keys that scvi-tools does not have.
CONDITION_KEY = "condition"
TOTAL_KEY = "total_counts"
#: Features of the condition to decode with, in place of the cell's own (added by data loaders).
TARGET_KEY = "target_condition"


class ConditionedLayer(nn.Module):
    r"""First layer of encoder or decoder: :math:`W x + V c + \sum_k E_k[b_k] + F u`.

    Condition features c, batch and every categorical covariate enter as their own additive
    parameter. This equals a linear layer on the concatenated one-hot codes, but a new level only
    appends a row, so that query surgery leaves everything else where it was.
    """

    def __init__(
        self,
        n_input: int,
        n_output: int,
        *,
        n_features: int,
        n_cats: Sequence[int],
        n_continuous: int,
        bias: bool,
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(n_input, n_output, bias=bias)
        fan_in = n_input + n_features + sum(n_cats) + n_continuous
        self.condition = _uniform((n_features, n_output), fan_in) if n_features else None
        self.categories = nn.ParameterList(_uniform((n, n_output), fan_in) for n in n_cats)
        self.continuous = _uniform((n_continuous, n_output), fan_in) if n_continuous else None

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Return the layer's output; `x` may carry a leading sample axis."""
        out = self.linear(x)
        if self.condition is not None:
            out = out + context.condition @ self.condition
        for table, codes in zip(self.categories, context.categories, strict=True):
            out = out + table[codes]
        if self.continuous is not None:
            out = out + context.continuous @ self.continuous
        return out


class Context(NamedTuple):
    """What a cell is observed under, one row a cell."""

    condition: Tensor  #: condition features, (n_cells, n_features)
    categories: list[Tensor]  #: codes of batch and categorical covariates, each (n_cells,)
    continuous: Tensor | None  #: continuous covariates, (n_cells, n_continuous)


def codes_of(tensors: dict[str, Tensor], key: str) -> Tensor:
    """Return a column of codes of a minibatch, shape (n_cells,)."""
    return tensors[key].long().flatten()


def _uniform(shape: tuple[int, int], fan_in: int) -> nn.Parameter:
    """Return a parameter drawn as torch draws linear weights of that fan-in."""
    bound = 1.0 / math.sqrt(fan_in)
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


class Activation(nn.Sequential):
    """Normalisation, LeakyReLU and dropout behind a linear layer."""

    def __init__(self, width: int, *, norm: str, leaky_slope: float, dropout_rate: float) -> None:
        layers: list[nn.Module] = []
        if norm == "layer":
            layers.append(nn.LayerNorm(width))
        elif norm == "batch":  # Keras defaults, as published
            layers.append(nn.BatchNorm1d(width, eps=1e-3, momentum=0.01))
        layers.append(nn.LeakyReLU(leaky_slope))
        if dropout_rate > 0:
            layers.append(nn.Dropout(dropout_rate))
        super().__init__(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to (..., width): batch norm sees all leading axes as one."""
        if x.dim() > 2 and isinstance(self[0], nn.BatchNorm1d):
            return super().forward(x.flatten(0, -2)).unflatten(0, x.shape[:-1])
        return super().forward(x)


def stack(widths: Sequence[int], *, bias: bool, **activation: Any) -> list[nn.Module]:
    """Return linear layers widths[0] -> widths[1] -> ..., each with its activation."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out, bias=bias), Activation(n_out, **activation)]
    return layers
