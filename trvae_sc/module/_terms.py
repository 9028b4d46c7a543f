"""MMD and transfer term of the loss."""

from __future__ import annotations

from typing import Any

import torch
from scvi import REGISTRY_KEYS
from torch import Tensor, nn
from torch.nn import functional

from trvae_sc.mmd import mmd
from trvae_sc.module._layers import CONDITION_KEY

_FEW_GROUPS = 64  # a product with their membership is faster than adding rows


class TermsMixin(nn.Module):
    """Terms that compare conditions."""

    def _mmd(
        self,
        tensors: dict[str, Tensor],
        inference_outputs: dict[str, Any],
        generative_outputs: dict[str, Any],
    ) -> Tensor:
        """Return the MMD between the conditions of a minibatch."""
        aligned = generative_outputs["y"] if self.mmd_on == "decoder" else inference_outputs["z"]
        if not self.mmd_weight or aligned.dim() > 2:
            return aligned.new_zeros(())
        published = self.mmd_kernel == "paper"
        return mmd(
            aligned,
            tensors[CONDITION_KEY].long().flatten(),
            n_groups=self.condition_design.shape[0],
            kernel=self.mmd_kernel,
            unbiased=not published,
            reduction="sum" if published else "mean",
        )

    def _transfer(
        self, tensors: dict[str, Tensor], z: Tensor, generative_outputs: dict[str, Any]
    ) -> Tensor:
        """Return the transfer loss T of a minibatch."""
        if not self.transfer_weight or z.dim() > 2:
            return z.new_zeros(())
        source = tensors[CONDITION_KEY].long().flatten()
        label = tensors[REGISTRY_KEYS.LABELS_KEY].long().flatten()
        target, known = self._draw_targets(label, source)
        context = generative_outputs["context"]._replace(condition=self.condition_design[target])
        hidden = self.hidden_layers(z, context)[1]
        group, n_cells = _groups(label * self.n_cells.shape[1] + source, self.n_cells.numel())
        first = torch.zeros_like(n_cells, dtype=torch.long)  # a row of each group
        first = first.scatter(0, group, torch.arange(len(group), device=group.device))
        half, n_half = _halves(group, len(n_cells))
        mean = self._mean_profiles(hidden, half, n_half)
        truth = self.profiles[label[first], target[first]]
        error = self.transfer_scale(mean).unflatten(0, (-1, 2)) - truth[:, None]
        error = torch.where(n_half.view(-1, 2, 1) > 0, error, error.flip(1))  # of a single cell
        weight = n_cells * known[first]  # groups without cells weigh nothing
        product = 0.5 * (error[:, 0] * error[:, 1]).sum(1)
        return (product * weight).sum() / len(z)

    def _mean_profiles(self, hidden: Tensor, group: Tensor, n_cells: Tensor) -> Tensor:
        """Return what :meth:`decode` makes of hidden layers, averaged; (n_groups, n_genes)."""
        if self.is_count:
            shares = functional.softmax(self.output(hidden).float(), dim=-1)
            mean = _group_means(shares, group, n_cells)
            return mean[:, :-1] if self.has_total else mean
        if self.relu_output:
            return _group_means(functional.relu(self.output(hidden)).float(), group, n_cells)
        return self.output(_group_means(hidden.float(), group, n_cells)).float()  # linear

    def _draw_targets(self, label: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        """Draw, for each (label, source) of a minibatch, another condition seen with that label."""
        score = torch.rand(self.n_cells.shape, device=label.device) + 1.0
        score = torch.where(self.n_cells > 0, score, 0.0)[label]
        score = score.scatter(1, source[:, None], 0.0)
        best, target = score.max(1)
        return target, best > 0


def _group_means(values: Tensor, group: Tensor, n_cells: Tensor) -> Tensor:
    """Return the mean of the rows of each group, shape (n_groups, n_columns)."""
    size = n_cells.clamp_min(1)[:, None]
    if len(size) > _FEW_GROUPS:
        sums = values.new_zeros(len(size), values.shape[1]).index_add(0, group, values)
        return sums / size
    member = functional.one_hot(group, len(size)).T / size
    with torch.autocast(values.device.type, enabled=False):
        return member @ values


def _groups(codes: Tensor, n_codes: int) -> tuple[Tensor, Tensor]:
    """Return the group of each row, rows of equal code being one, and the size of each group.

    Groups are the codes themselves, or first rows where there are fewer rows than codes; some are
    empty. Shapes do not depend on the codes, so nothing waits for a GPU.
    """
    group = codes
    if n_codes > len(codes):
        n_codes = len(codes)
        group = (codes[:, None] == codes[None, :]).to(torch.uint8).argmax(1)
    size = torch.zeros(n_codes, device=codes.device)
    return group, size.index_add(0, group, torch.ones(len(codes), device=codes.device))


def _halves(group: Tensor, n_groups: int) -> tuple[Tensor, Tensor]:
    """Return the half, 2 g or 2 g + 1, of each row of group g, and the size of each half.

    Halves of a group differ in size by one row at most.
    """
    alternating = torch.arange(len(group), device=group.device) % 2
    half = 2 * group + torch.empty_like(group).scatter(0, group.argsort(stable=True), alternating)
    size = torch.zeros(2 * n_groups, device=group.device)
    return half, size.index_add(0, half, torch.ones(len(half), device=group.device))
