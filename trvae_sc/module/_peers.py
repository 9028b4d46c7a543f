"""What the loss of a minibatch needs from the other processes that it is divided among."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


class Peers:
    """The `n` processes that train one model (distributed data parallel), or one alone.

    MMD and transfer loss compare the cells of a whole minibatch, so their inputs are brought
    together, and every process computes the same term. What came from others has no gradient here:
    it has it there. The gradients of the processes are averaged afterwards, which divides what each
    of them has for its own rows by their number; these gradients are multiplied by it. `generator`
    is of what all of them draw alike; None: torch's global one.
    """

    def __init__(self, n: int = 1) -> None:
        self.n = n
        self.generator: torch.Generator | None = None

    @property
    def rank(self) -> int:
        """Number of this process."""
        return distributed.get_rank() if self.n > 1 else 0

    def sizes(self, n_rows: int, device: torch.device) -> list[int]:
        """Return the number of rows of every process."""
        if self.n == 1:
            return [n_rows]
        sizes = torch.zeros(self.n, dtype=torch.long, device=device)
        sizes[self.rank] = n_rows
        distributed.all_reduce(sizes)
        return sizes.tolist()

    def rows(self, x: Tensor) -> Tensor:
        """Return the rows of all processes, in the order that the loader dealt them in."""
        if self.n == 1:
            return x
        sizes = self.sizes(len(x), x.device)
        n_most = max(sizes)
        padded = x.new_zeros(n_most, *x.shape[1:])
        padded[: len(x)] = x.detach()
        parts = [torch.empty_like(padded) for _ in sizes]
        distributed.all_gather(parts, padded)
        parts[self.rank][: len(x)] = self._weighted(x)
        place = torch.arange(n_most, device=x.device)
        return torch.stack(parts, 1)[place[:, None] < torch.tensor(sizes, device=x.device)]

    def own(self, x: Tensor) -> Tensor | slice:
        """Return which of the rows that :meth:`rows` brings together are those of `x`."""
        if self.n == 1:
            return slice(None)
        rank = torch.full((len(x),), self.rank, device=x.device)
        return self.rows(rank) == self.rank

    def sum(self, x: Tensor) -> Tensor:
        """Return the sum over the processes."""
        if self.n == 1:
            return x
        total = x.detach().clone()
        distributed.all_reduce(total)
        return total + self._weighted(x) - x.detach()

    def rand(self, *shape: int, device: torch.device) -> Tensor:
        """Return uniform random numbers, the same in every process."""
        if self.generator is None:
            return torch.rand(shape, device=device)
        return torch.rand(shape, generator=self.generator).to(device)

    def by_rows(self, mean: Tensor, n_rows: int) -> Tensor:
        """Return a mean over own rows, with a gradient that makes the average one over all rows."""
        if self.n == 1:
            return mean
        share = n_rows * self.n / sum(self.sizes(n_rows, mean.device))
        return mean + (share - 1.0) * (mean - mean.detach())

    def _weighted(self, x: Tensor) -> Tensor:
        """Return the values with `n` times their gradient."""
        return x + (self.n - 1) * (x - x.detach()) if x.requires_grad else x
