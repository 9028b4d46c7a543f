"""Training of players in turn, on cells held in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import lightning.pytorch as lightning
import numpy as np
import torch
from torch import Tensor

from trvae_sc.family._networks import ExpressionModule
from trvae_sc.training import log_epoch


class Matched(torch.utils.data.Sampler):
    """Minibatches of source cells followed by as many target cells of the same labels.

    The label of each pair of rows is drawn uniformly, so that differences of composition do not
    enter; then one cell of it under each condition. `groups` are the rows under both, by label.
    """

    def __init__(
        self, groups: Sequence[tuple[np.ndarray, np.ndarray]], n_batches: int, batch_size: int
    ) -> None:
        self.sides = [_Rows(side) for side in zip(*groups, strict=True)]
        self.n_groups, self.n_batches, self.batch_size = len(groups), n_batches, batch_size

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self) -> Iterator[Tensor]:
        """Yield row numbers, shape (2 batch_size,)."""
        for _ in range(self.n_batches):
            group = torch.randint(self.n_groups, (self.batch_size,))
            yield torch.cat([side.draw(group) for side in self.sides])


class _Rows:
    """Row numbers by group, one group after the other."""

    def __init__(self, groups: Sequence[np.ndarray]) -> None:
        self.rows = torch.as_tensor(np.concatenate(groups))
        self.size = torch.as_tensor([len(rows) for rows in groups])
        self.first = self.size.cumsum(0) - self.size

    def draw(self, group: Tensor) -> Tensor:
        """Return a random row of each group."""
        share = torch.rand(len(group), dtype=torch.float64)
        return self.rows[self.first[group] + (share * self.size[group]).long()]


class Minibatches(lightning.LightningDataModule):
    """Cells and the order they are drawn in."""

    def __init__(self, cells: torch.utils.data.Dataset, sampler: torch.utils.data.Sampler) -> None:
        super().__init__()
        self.cells, self.sampler = cells, sampler
        self.train_idx = np.arange(len(cells))

    def train_dataloader(self) -> torch.utils.data.DataLoader:
        """Return the loader of minibatches."""
        return torch.utils.data.DataLoader(self.cells, batch_size=None, sampler=self.sampler)


class PlayersPlan(lightning.LightningModule):
    """Updates every player of a module once a step, with Adam.

    The learning rate is constant over the first half of the steps and falls linearly to zero over
    the second (Zhu et al. 2017, appendix 7.1).

    Parameters
    ----------
    module
        The module to train.
    lr
        Learning rate.
    betas
        Decay rates of Adam's averages.
    marks
        Digest of each training cell, which goes into the checkpoint.
    prepare
        Gives the module the statistics of the training cells; called before the first step.
    """

    def __init__(
        self,
        module: ExpressionModule,
        *,
        lr: float,
        betas: tuple[float, float] = (0.5, 0.9),
        marks: np.ndarray = (),
        prepare: Callable[[], None] | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.module, self.lr, self.betas = module, lr, betas
        self.players = module.players()
        self.marks, self.prepare = marks, prepare
        self._sums: dict[str, Tensor] = {}
        self._n_batches = 0

    def setup(self, stage: str) -> None:
        """Take the statistics of the training cells."""
        if self.prepare is not None:
            self.prepare()

    def configure_optimizers(self) -> tuple[list[torch.optim.Optimizer], list]:
        """Return an optimizer and a schedule for each player."""
        n_steps = self.trainer.max_epochs * self.trainer.num_training_batches
        optimizers = [
            torch.optim.Adam(
                player.network.parameters(), self.lr * player.rate, self.betas, fused=True
            )
            for player in self.players
        ]
        rate = lambda step: min(1.0, 2.0 - 2.0 * step / n_steps)  # noqa: E731
        return optimizers, [torch.optim.lr_scheduler.LambdaLR(o, rate) for o in optimizers]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Update every player."""
        optimizers, schedules = self.optimizers(), self.lr_schedulers()
        single = len(self.players) == 1
        optimizers, schedules = ([optimizers], [schedules]) if single else (optimizers, schedules)
        for player, optimizer, schedule in zip(self.players, optimizers, schedules, strict=True):
            for _ in range(player.n_updates):
                terms = player.loss(batch)
                optimizer.zero_grad()
                self.manual_backward(sum(terms.values()))
                optimizer.step()
            schedule.step()
            for name, value in terms.items():
                key = f"{player.name}_{name}_train"
                self._sums[key] = self._sums.get(key, 0.0) + value.detach()
        self._n_batches += 1

    def on_train_epoch_end(self) -> None:
        """Log the means of the epoch; stop where a loss is no longer a number."""
        means = {name: value / self._n_batches for name, value in self._sums.items()}
        self._sums, self._n_batches = {}, 0
        bad = [name for name, value in means.items() if not math.isfinite(value)]
        if bad:
            raise FloatingPointError(
                f"{bad[0]} became {means[bad[0]].item()} in epoch {self.current_epoch}. Look for "
                "extreme values in the data, or lower the learning rate (lr)."
            )
        log_epoch(self, means)
