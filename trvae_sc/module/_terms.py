"""Terms of the loss that compare conditions, in the minibatches of all processes that train."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from trvae_sc.module._likelihood import widest
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


def draw_transfer(
    label: Tensor, condition: Tensor, n_cells: Tensor, design: Tensor, factor: float, peers: Peers
) -> Transfer:
    """Return what the transfer loss of a minibatch compares, drawn from the codes of its cells."""
    n_conditions = n_cells.shape[1]
    code = label * n_conditions + condition
    own = peers.own(code)
    chosen, group, weight = draw_groups(peers.rows(code), n_cells, peers)
    label, source = chosen // n_conditions, chosen % n_conditions
    target = draw_targets(label, source, n_cells, peers)
    weight = factor * weight * pair_weights(label, source, target, n_cells)
    half, n_half = halves(group, len(chosen) + 1)
    onto = torch.cat([target, target[:1]])[group[own]]  # of cells in no group: does not matter
    return Transfer(label, source, target, weight, design[onto], half[own], n_half)


def draw_groups(code: Tensor, n_cells: Tensor, peers: Peers) -> tuple[Tensor, Tensor, Tensor]:
    """Draw some of the (label, condition) of a minibatch whose label was seen under several.

    Returns their codes, the place among them of each cell (one past the last: none of them), and
    their weights: numbers of cells, for those that were not drawn as well.
    """
    several = ((n_cells > 0).sum(1) > 1).repeat_interleave(n_cells.shape[1])
    n_cells = n_cells.flatten()
    found = torch.zeros(len(n_cells), device=code.device)
    found = found.index_add(0, code, torch.ones(len(code), device=code.device))
    found = found * (n_cells > 0) * several
    n_drawn = min(len(n_cells), max(len(code) // _CELLS_A_GROUP, 1))
    score = peers.rand(len(found), device=code.device)
    chosen = (score + (found > 0)).topk(n_drawn).indices
    place = torch.full_like(n_cells, n_drawn, dtype=torch.long)
    place = place.scatter(0, chosen, torch.arange(n_drawn, device=code.device))
    weight = found[chosen]
    share = found.sum() / weight.sum().clamp_min(1.0)
    return chosen, place[code], weight * share


def draw_targets(label: Tensor, source: Tensor, n_cells: Tensor, peers: Peers) -> Tensor:
    """Draw for each label and condition another condition seen with that label."""
    score = 1.0 + peers.rand(len(label), n_cells.shape[1], device=label.device)
    score = torch.where(n_cells[label] > 0, score, 0.0)
    return score.scatter(1, source[:, None], 0.0).argmax(1)


def pair_weights(label: Tensor, source: Tensor, target: Tensor, n_cells: Tensor) -> Tensor:
    """Return how much the change of labels counts: profiles of a few cells say little.

    With the harmonic mean n of their cells under both conditions n / (n + 10), 1 for as many as the
    largest label and condition has.
    """
    n_cells = n_cells.to(widest(n_cells.device))
    inverse = sum(1.0 / n_cells[label, condition] for condition in (source, target))
    n, most = 2.0 / inverse, n_cells.max().clamp_min(1)
    return (n / (n + _HALF_CELLS) * (most + _HALF_CELLS) / most).float()


def halves(group: Tensor, n_groups: int) -> tuple[Tensor, Tensor]:
    """Return the half, 2 g or 2 g + 1, of each row of group g, and the size of each half.

    Halves of a group differ in size by one row at most.
    """
    alternating = torch.arange(len(group), device=group.device) % 2
    half = 2 * group + torch.empty_like(group).scatter(0, group.argsort(stable=True), alternating)
    size = torch.zeros(2 * n_groups, device=group.device)
    return half, size.index_add(0, half, torch.ones(len(half), device=group.device))


def half_means(rows: Tensor, transfer: Transfer, peers: Peers) -> Tensor:
    """Return the mean of the cells' rows in each half of the groups, (2 n_groups, n_columns)."""
    values, half, size = rows.float(), transfer.half, transfer.n_half.clamp_min(1)[:, None]
    if len(size) > _FEW_GROUPS:
        sums = values.new_zeros(len(size), values.shape[1]).index_add(0, half, values)
        means = sums / size
    else:
        member = functional.one_hot(half, len(size)).T / size
        with torch.autocast(values.device.type, enabled=False):
            means = member @ values
    return peers.sum(means)[:-2].to(rows.dtype)


def transfer_loss(transfer: Transfer, levels: Tensor, profiles: Tensor) -> Tensor:
    r"""Return the transfer loss T: how far changes of mean profiles are from those of the training cells.

    .. math:: T = \tfrac12 \sum_g \big[\bar e_g \bar e'_g + 0.3\,(e_g - \bar e_g)(e'_g - \bar e'_g)\big],
       \qquad e = d - D, \quad d = f(q_t) - f(q_s), \quad D = f(p_t) - f(p_s)

    with f of :meth:`Observation.level`, the mean :math:`\bar e` over labels (what is a label's own counts less:
    learned by heart, it does not hold for others), and e and e' of either half of the cells in a minibatch (the
    square of one would also punish that cells differ; the product may be negative). A minibatch compares a
    random choice of its groups (one for 16 cells, at most), in every second step; weights make up for both.
    Groups count by their cells in the minibatch and by how well D is known, :math:`n / (n + 10)` for the
    harmonic mean n of the label's training cells under s and t. `levels` is f(q) of the halves under s, then
    under t, shape (4 n_groups, n_genes), `profiles` is f(p), shape (n_labels, n_conditions, n_genes).
    """
    start, end = levels.chunk(2)
    label, source, target = transfer[:3]
    truth = profiles[label, target] - profiles[label, source]
    error = (end - start).unflatten(0, (-1, 2)) - truth[:, None]
    size = transfer.n_half[:-2].view(-1, 2, 1)
    error = torch.where(size > 0, error, error.flip(1))  # of a single cell
    common = common_error(error, transfer, profiles.shape[1])
    own = error - common
    product = 0.5 * (common.prod(1) + _OWN * own.prod(1)).sum(1)
    return (product * transfer.weight).sum() / transfer.n_half.sum()


def common_error(error: Tensor, transfer: Transfer, n_conditions: int) -> Tensor:
    """Return the mean over labels of the errors of a change, to each of them, shape of `error`.

    A change from target to source is the other one's negative.
    """
    sign = torch.where(transfer.source < transfer.target, 1.0, -1.0)[:, None, None]
    ends = torch.stack([transfer.source, transfer.target]).sort(dim=0).values
    pair = ends[0] * n_conditions + ends[1]
    same = (pair[:, None] == pair) * transfer.weight
    shared = same / same.sum(1, keepdim=True).clamp_min(_TINY)
    return sign * torch.einsum("gh,hkj->gkj", shared, sign * error)
