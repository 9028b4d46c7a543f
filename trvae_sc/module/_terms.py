"""MMD and transfer term of the loss."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from scvi import REGISTRY_KEYS
from torch import Tensor, nn
from torch.nn import functional

from trvae_sc.mmd import mmd
from trvae_sc.module._layers import CONDITION_KEY, Context
from trvae_sc.module._peers import Peers

_CELLS_A_GROUP = 16  # cells of a minibatch for each (label, condition) that is compared, at most
_HALF_CELLS = 10  # of a label and two conditions that count half of very many
_OWN = 0.3  # weight of what is a label's own in the errors of changes; of what labels share: 1
_TINY = 1e-9
_FEW_GROUPS = 64  # a product with their membership is faster than adding rows


class Transfer(NamedTuple):
    """What the transfer loss of a minibatch compares: groups, of one label and condition each."""

    label: Tensor  #: (n_groups,)
    source: Tensor  #: their condition
    target: Tensor  #: condition they are decoded under
    weight: Tensor  #: number of cells each stands for
    onto: Tensor  #: features of the target of each cell, (n_cells, n_features)
    half: Tensor  #: half of a group that each own cell is in, (n_cells,); the last two: of no group
    n_half: Tensor  #: cells of each half, (2 n_groups + 2,)


class TermsMixin(nn.Module):
    """Terms that compare conditions, in the minibatches of all processes that train."""

    peers = Peers()

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
        labels = None
        if self.mmd_within_labels:
            labels = self.peers.rows(tensors[REGISTRY_KEYS.LABELS_KEY].long().flatten())
        return mmd(
            self.peers.rows(aligned),
            self.peers.rows(tensors[CONDITION_KEY].long().flatten()),
            n_groups=self.condition_design.shape[0],
            strata=labels,
            kernel=self.mmd_kernel,
            unbiased=not published,
            reduction="sum" if published else "mean",
        )

    def _draw_transfer(self, tensors: dict[str, Tensor], factor: float) -> Transfer:
        """Return what the transfer loss of a minibatch compares; it counts by a factor."""
        n_conditions = self.n_cells.shape[1]
        code = tensors[REGISTRY_KEYS.LABELS_KEY].long().flatten() * n_conditions
        code = code + tensors[CONDITION_KEY].long().flatten()
        own = self.peers.own(code)
        chosen, group, weight = self._draw_groups(self.peers.rows(code))
        label, source = chosen // n_conditions, chosen % n_conditions
        target = self._draw_targets(label, source)
        weight = factor * weight * self._pair_weights(label, source, target)
        half, n_half = _halves(group, len(chosen) + 1)
        onto = torch.cat([target, target[:1]])[group[own]]  # of cells in no group: does not matter
        onto = self.condition_design[onto]
        return Transfer(label, source, target, weight, onto, half[own], n_half)

    def _pair_weights(self, label: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """Return how much the change of labels counts: profiles of a few cells say little.

        With the harmonic mean n of their cells under both conditions n / (n + 10), 1 for as many as the
        largest label and condition has.
        """
        inverse = sum(1.0 / self.n_cells[label, condition] for condition in (source, target))
        n, most = 2.0 / inverse, self.n_cells.max().clamp_min(1)
        return (n / (n + _HALF_CELLS) * (most + _HALF_CELLS) / most).float()

    def _central(
        self, z: Tensor, hidden: Tensor, context: Context, transfer: Transfer
    ) -> list[Tensor]:
        """Return mean last hidden layers of the halves, under the cells' own condition and the target."""
        moved = self.hidden_layers(z, context._replace(condition=transfer.onto))[1]

        def means(rows: Tensor) -> Tensor:
            own = _group_means(rows.float(), transfer.half, transfer.n_half)
            return self.peers.sum(own)[:-2].to(rows.dtype)

        return [means(hidden), means(moved)]

    def _transfer(self, generative_outputs: dict[str, Any]) -> Tensor:
        """Return the transfer loss T from the profiles of :meth:`_central`."""
        transfer, central = (generative_outputs[name] for name in ("transfer", "central"))
        if transfer is None:
            return self.kappa.new_zeros(())
        start, end = self.transfer_scale(central.exp() if self.is_count else central).chunk(2)
        label, source, target = transfer[:3]
        truth = self.profiles[label, target] - self.profiles[label, source]
        error = (end - start).unflatten(0, (-1, 2)) - truth[:, None]
        size = transfer.n_half[:-2].view(-1, 2, 1)
        error = torch.where(size > 0, error, error.flip(1))  # of a single cell
        common = self._common(error, transfer)
        own = error - common
        product = 0.5 * (common.prod(1) + _OWN * own.prod(1)).sum(1)
        return (product * transfer.weight).sum() / transfer.n_half.sum()

    def _common(self, error: Tensor, transfer: Transfer) -> Tensor:
        """Return the mean over labels of the errors of a change, to each of them, shape of `error`.

        A change from target to source is the other one's negative.
        """
        sign = torch.where(transfer.source < transfer.target, 1.0, -1.0)[:, None, None]
        ends = torch.stack([transfer.source, transfer.target]).sort(dim=0).values
        pair = ends[0] * self.n_cells.shape[1] + ends[1]
        same = (pair[:, None] == pair) * transfer.weight
        shared = same / same.sum(1, keepdim=True).clamp_min(_TINY)
        return sign * torch.einsum("gh,hkj->gkj", shared, sign * error)

    def _draw_groups(self, code: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Draw some of the (label, condition) of a minibatch whose label was seen under several.

        Returns their codes, the place among them of each cell (one past the last: none of them), and
        their weights: numbers of cells, for those that were not drawn as well.
        """
        n_cells = self.n_cells.flatten()
        found = torch.zeros(len(n_cells), device=code.device)
        found = found.index_add(0, code, torch.ones(len(code), device=code.device))
        several = (self.n_cells > 0).sum(1) > 1
        found = found * (n_cells > 0) * several.repeat_interleave(self.n_cells.shape[1])
        n_drawn = min(len(n_cells), max(len(code) // _CELLS_A_GROUP, 1))
        score = self.peers.rand(len(found), device=code.device)
        chosen = (score + (found > 0)).topk(n_drawn).indices
        place = torch.full_like(n_cells, n_drawn, dtype=torch.long)
        place = place.scatter(0, chosen, torch.arange(n_drawn, device=code.device))
        weight = found[chosen]
        share = found.sum() / weight.sum().clamp_min(1.0)
        return chosen, place[code], weight * share

    def _draw_targets(self, label: Tensor, source: Tensor) -> Tensor:
        """Draw for each label and condition another condition seen with that label."""
        n_conditions = self.n_cells.shape[1]
        score = 1.0 + self.peers.rand(len(label), n_conditions, device=label.device)
        score = torch.where(self.n_cells[label] > 0, score, 0.0)
        return score.scatter(1, source[:, None], 0.0).argmax(1)


def _group_means(values: Tensor, group: Tensor, n_cells: Tensor) -> Tensor:
    """Return the mean of the rows of each group, shape (n_groups, n_columns)."""
    size = n_cells.clamp_min(1)[:, None]
    if len(size) > _FEW_GROUPS:
        sums = values.new_zeros(len(size), values.shape[1]).index_add(0, group, values)
        return sums / size
    member = functional.one_hot(group, len(size)).T / size
    with torch.autocast(values.device.type, enabled=False):
        return member @ values


def _halves(group: Tensor, n_groups: int) -> tuple[Tensor, Tensor]:
    """Return the half, 2 g or 2 g + 1, of each row of group g, and the size of each half.

    Halves of a group differ in size by one row at most.
    """
    alternating = torch.arange(len(group), device=group.device) % 2
    half = 2 * group + torch.empty_like(group).scatter(0, group.argsort(stable=True), alternating)
    size = torch.zeros(2 * n_groups, device=group.device)
    return half, size.index_add(0, half, torch.ones(len(half), device=group.device))
