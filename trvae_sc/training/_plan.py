"""The training plan."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, Literal

import numpy as np
import torch
from scvi import REGISTRY_KEYS
from scvi.module.base import LossOutput
from scvi.train import TrainingPlan as ScviTrainingPlan
from torch import Tensor, distributed

from trvae_sc.arguments import check_number
from trvae_sc.errors import InputError
from trvae_sc.expression import evenly_spaced
from trvae_sc.identity import marks_of
from trvae_sc.module import CONDITION_KEY, TOTAL_KEY, Peers, Statistics, TRVAEModule, widest
from trvae_sc.rows import Rows
from trvae_sc.training._data import Batches, seed_of
from trvae_sc.training._history import log_epoch

#: The transfer loss, a seventh of the cost of a step, is computed in one of so many, where it counts
#: as many times.
TRANSFER_STEPS = 2
OPTIMIZERS = ("Adam", "AdamW", "Custom")
SCHEDULES = ("onecycle", None)
_TERMS = ("reconstruction", "kl", "mmd", "transfer")
#: What training of cells held back is watched by.
MONITORS = [
    f"{name}_validation"
    for name in (
        *("elbo", "reconstruction_loss", "kl_local", "kl_global", "mmd", "transfer"),
        *(f"{term}_weighted" for term in _TERMS),
    )
] + ["validation_loss"]
_SOME_CELLS = 5000  # that components are taken of
_ENOUGH_COUNTS = 10  # sum of squared means above which a gene's dispersion is known


def transfer_factor(step: int) -> float:
    """Return what the transfer loss counts in a training step; 0: it is not computed."""
    return 0.0 if step % TRANSFER_STEPS else float(TRANSFER_STEPS)


def _is_distributed() -> bool:
    """Return whether this is one of the processes that train a model together."""
    return distributed.is_available() and distributed.is_initialized()


def _own_module(plan: ScviTrainingPlan) -> TRVAEModule:
    """Return the module, not as it was compiled."""
    return getattr(plan.module, "_orig_mod", plan.module)


def training_statistics(
    loader: Collection[dict[str, Tensor]], module: TRVAEModule
) -> tuple[Statistics, Tensor, np.ndarray]:
    """Return what :meth:`TRVAEModule.set_statistics` needs, from one pass over training cells.

    Also the spread of genes in each condition, of counts their dispersion, else their variance within
    labels, shape (n_conditions, n_genes), and the cells' marks.
    """
    n_groups, n_genes = module.n_cells.numel(), len(module.gene_mean)
    n_cells = torch.zeros(n_groups, dtype=torch.float64)
    sums = torch.zeros(n_groups, n_genes, dtype=torch.float64)
    n_conditions = module.n_cells.shape[1]
    squares = torch.zeros(n_conditions, n_genes, dtype=torch.float64)
    inverse_totals = torch.zeros(n_groups, dtype=torch.float64)
    totals, marks, some = Rows(), Rows(), []
    first, varies = None, torch.full((n_genes,), module.is_count)
    for tensors in loader:
        x = tensors[REGISTRY_KEYS.X_KEY].to("cpu").to_dense()
        marks.add(marks_of(x.numpy()))
        if module.is_count:
            total = tensors[TOTAL_KEY].cpu() if module.has_total else x.sum(1, keepdim=True)
            totals.add(total.ravel().numpy())
            total = total.clamp_min(1.0)
            x = x / total
        else:  # of genes of one value rounding would make a variance
            first = x[0] if first is None else first
            varies |= (x != first).any(0)
        condition = group = tensors[CONDITION_KEY].cpu().long().ravel()
        if module.n_labels:
            label = tensors[REGISTRY_KEYS.LABELS_KEY].cpu().long().ravel()
            group = group + label * n_conditions
        n_cells += torch.bincount(group, minlength=n_groups)
        x = x.double()
        if module.linear_path and not module.is_count:
            n_some = math.ceil(_SOME_CELLS / len(loader))
            some.append(x[evenly_spaced(np.arange(len(x)), n_some)].float())
        sums.index_add_(0, group, x)
        squares.index_add_(0, condition, x.square_())
        if module.is_count:
            inverse_totals.index_add_(0, group, total.ravel().double().reciprocal())
    mean = sums.sum(0) / n_cells.sum()
    variance = (squares.sum(0) / n_cells.sum() - mean.square()) * varies
    kappa = float(np.median(totals.array())) if len(totals) else 1.0
    moments = sums, squares, inverse_totals, n_cells
    dispersion = None if not len(totals) else _dispersion(*moments, kappa)
    found = Statistics(
        kappa=kappa,
        mean=mean.float(),
        scale=variance.clamp_min(0.0).sqrt().float(),
        sums=sums,
        n_cells=n_cells.view(module.n_cells.shape),
        dispersion=dispersion,
        some=torch.cat(some) if some else None,
    )
    spread = _variance(sums, squares, n_cells) * varies if dispersion is None else dispersion
    return found, spread, marks.array()


def _variance(sums: Tensor, squares: Tensor, n_cells: Tensor) -> Tensor:
    """Return the variance of genes within labels in each condition; see :func:`_dispersion`."""
    n = n_cells[:, None]
    within = squares - (sums.square() / n.clamp_min(1)).view(-1, *squares.shape).sum(0)
    free = (n - 1).clamp_min(0).view(-1, len(squares), 1).sum(0)
    return within.clamp_min(0.0) / free.clamp_min(1)


def _dispersion(
    sums: Tensor, squares: Tensor, inverse_totals: Tensor, n_cells: Tensor, kappa: float
) -> Tensor:
    r"""Return the dispersion :math:`1 / \theta` of genes within labels, by moments.

    In a group of n cells with totals T the shares p of a gene have the variance
    :math:`\bar p\,\overline{1/T} + \bar p^2 / \theta`; both sides are summed over the labels of a
    condition. Where the counts are too few to tell, the median gene's is more likely.

    `sums`, `inverse_totals` and `n_cells` are by label and condition; `squares` by condition, shape
    (n_conditions, n_genes), as is what is returned, 0.01 to 100.
    """

    def over_labels(x: Tensor) -> Tensor:
        return x.view(-1, len(squares), x.shape[1]).sum(0)

    n = n_cells[:, None]
    mean = sums / n.clamp_min(1)
    level, poisson = over_labels(n * mean.square()), over_labels(mean * inverse_totals[:, None])
    unbiased = over_labels(n) / over_labels((n - 1).clamp_min(0)).clamp_min(1)
    excess = (squares - level) * unbiased - poisson
    level, excess = kappa**2 * level, kappa**2 * excess  # in counts of a cell of median total
    known = level > _ENOUGH_COUNTS
    middle = (excess / level)[known].median() if known.any() else torch.ones(())
    return ((excess + 2 * middle) / (level + 2)).clamp(0.01, 100.0)


class TrainingPlan(ScviTrainingPlan):
    """scvi-tools' training plan, with metrics summed on the device and logged once an epoch.

    Before the first step it collects the statistics of the training cells that the loss needs.

    Parameters
    ----------
    module
        The module to train.
    optimizer, lr, weight_decay, eps
        As in :class:`scvi.train.TrainingPlan`, with other defaults. AdamW by default.
    lr_schedule
        ``"onecycle"``: the rate rises to that of the optimizer over 30 % of the steps and falls to zero (Smith and
        Topin 2019); None: constant, or scvi-tools' ``reduce_lr_on_plateau``.
    n_epochs_kl_warmup
        Epochs over which the weight of the KL term rises; :meth:`trvae_sc.TRVAE.train` takes the preset's share
        of all.
    max_kl_weight
        KL weight after the warm-up; the module's if None.
    **kwargs
        Passed to :class:`scvi.train.TrainingPlan`.
    """

    def __init__(
        self,
        module: TRVAEModule,
        *,
        optimizer: Literal["Adam", "AdamW", "Custom"] = "AdamW",
        lr: float = 1e-2,
        weight_decay: float = 0.01,
        eps: float = 1e-8,
        lr_schedule: Literal["onecycle"] | None = "onecycle",
        n_epochs_kl_warmup: int | None = None,
        max_kl_weight: float | None = None,
        **kwargs: Any,
    ) -> None:
        numbers = {"lr": lr, "weight_decay": weight_decay, "eps": eps}
        for name, number in numbers.items():
            check_number(name, number, 0.0)
        check_number("lr_factor", kwargs.get("lr_factor", 0.6), 0.0, 1.0, closed=False)
        if n_epochs_kl_warmup is not None:
            check_number("n_epochs_kl_warmup", n_epochs_kl_warmup, 0.0)
        choices = (("optimizer", optimizer, OPTIMIZERS), ("lr_schedule", lr_schedule, SCHEDULES))
        for name, choice, known in choices:
            if choice not in known:
                raise InputError(f"{name} is {choice!r}; choose one of {list(known)}.")
        try:
            super().__init__(
                module,
                optimizer=optimizer,
                n_epochs_kl_warmup=n_epochs_kl_warmup,
                max_kl_weight=module.kl_weight if max_kl_weight is None else max_kl_weight,
                **numbers,
                **kwargs,
            )
        except ValueError as error:
            raise InputError(
                f"No training plan can be made with these arguments: {error}"
            ) from error
        self.lr_schedule = lr_schedule
        self._sums: dict[str, dict[str, Tensor]] = {}
        self.marks = np.zeros(0)  #: of the training cells, see trvae_sc.identity.cell_marks
        #: of genes in each condition, see :func:`training_statistics`
        self.spread = np.zeros((0, 0))

    def setup(self, stage: str) -> None:
        """Collect the statistics of the training cells; meet the other processes."""
        datamodule = self.trainer.datamodule
        if hasattr(datamodule, "statistics_dataloader"):
            loader = datamodule.statistics_dataloader()
        else:
            loader = datamodule.train_dataloader()
        module = _own_module(self)
        found, spread, self.marks = training_statistics(loader, module)
        self.spread = spread.numpy()
        module.set_statistics(found)
        if _is_distributed():
            module.peers = Peers(self.trainer.world_size)

    def on_train_epoch_start(self) -> None:
        """Seed what the processes draw, alike or each for itself, also where a run is resumed."""
        if not _is_distributed():
            return
        peers = _own_module(self).peers
        seed = 10_000 * getattr(self.trainer.datamodule, "seed", seed_of(None))
        seed += self.current_epoch
        peers.generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed + 10_000_019 * (1 + peers.rank))

    def on_train_start(self) -> None:
        """Refuse processes without cells, and batches of one cell where batch norm would fail on them."""
        sampler = getattr(self.trainer.train_dataloader, "sampler", None)
        if not isinstance(sampler, Batches):  # of another loader
            return
        if sampler.smallest < 1:
            raise InputError(
                f"A minibatch has fewer cells than there are processes ({sampler.n_processes}), of "
                f"{len(sampler.indices)} training cells. Use a larger batch_size, or fewer devices."
            )
        has_batch_norm = any(isinstance(m, torch.nn.BatchNorm1d) for m in self.module.modules())
        if has_batch_norm and sampler.smallest < 2:
            raise InputError(
                f"With batch_size={sampler.batch_size} a minibatch holds one cell, of which batch norm "
                "cannot take the variance. Use larger minibatches, or norm='layer'."
            )

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a minibatch."""
        return self._step(batch, "train")

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Sum up the metrics of a minibatch."""
        self._step(batch, "validation")

    def _step(self, batch: dict[str, Tensor], mode: str) -> Tensor:
        self.loss_kwargs["kl_weight"] = self.kl_weight
        factor = transfer_factor(self.global_step) if mode == "train" else 1.0
        inference_outputs, _, loss = self.forward(
            batch,
            get_generative_input_kwargs={"transfer_factor": factor},
            loss_kwargs=self.loss_kwargs,
        )
        self._accumulate(loss, mode)
        if any("Scib" in type(callback).__name__ for callback in self.trainer.callbacks):
            self.prepare_scib_autotune(
                {
                    "z": inference_outputs["z"],
                    "batch": batch[REGISTRY_KEYS.BATCH_KEY],
                    "labels": batch[REGISTRY_KEYS.LABELS_KEY],
                },
                "training" if mode == "train" else mode,
            )
        if self.on_step and mode == "train" and self.trainer.logger is not None:
            # not self.log, which drops most steps and counts the rest by epoch
            metrics = {"train_loss_step": loss.loss.detach()}
            self.trainer.logger.log_metrics(metrics, step=self.global_step)
        return loss.loss

    def on_train_batch_end(self, *args: Any) -> None:
        """Put frozen rows back after query surgery."""
        _own_module(self).restore_frozen()

    @torch.no_grad()
    def _accumulate(self, loss: LossOutput, mode: str) -> None:
        """Add a minibatch's metrics, weighted by its cells, to the sums of the epoch."""
        n = loss.n_obs_minibatch
        means = {"loss": loss.loss, **loss.extra_metrics, "n": torch.ones_like(loss.loss)}
        sums = {"reconstruction_loss": loss.reconstruction_loss_sum, "kl_local": loss.kl_local_sum}
        values = torch.stack([*(v.detach() * n for v in means.values()), *sums.values()])
        values = values.to(widest(values.device))
        if mode in self._sums:
            self._sums[mode]["values"] += values
        else:
            self._sums[mode] = {"names": [*means, *sums], "values": values}

    def _log_epoch(self, mode: str) -> None:
        """Log the means of the epoch under scvi-tools' names."""
        if mode not in self._sums:
            return
        record = self._sums.pop(mode)
        values = self.trainer.strategy.reduce(record["values"], reduce_op="sum")
        totals = dict(zip(record["names"], values.float(), strict=True))
        n = totals.pop("n")
        means = {name: value / n for name, value in totals.items()}
        loss = means.pop("loss")
        elbo = means["reconstruction_loss"] + means["kl_local"]
        metrics = {"elbo": elbo, **means, "kl_global": torch.zeros_like(n)}
        metrics = {f"{key}_{mode}": value for key, value in metrics.items()}
        if mode == "validation":
            self.log("validation_loss", loss)
            self.log_dict(metrics)
            return
        weight = torch.full_like(n, float(self.kl_weight))
        log_epoch(self, {"train_loss": loss, **metrics, "kl_weight": weight}, shown=["train_loss"])

    def on_train_epoch_end(self) -> None:
        """Log the epoch; stop where the loss is no longer a number."""
        self._log_epoch("train")
        loss = self.trainer.callback_metrics["train_loss"]
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"The training loss became {loss.item()} in epoch {self.current_epoch}. Look for "
                "extreme values in the data, or lower the learning rate (plan_kwargs={'lr': ...})."
            )
        super().on_train_epoch_end()

    def on_validation_epoch_end(self) -> None:
        """Log the validation epoch."""
        self._log_epoch("validation")
        super().on_validation_epoch_end()

    def _optimizer_creator_fn(self, optimizer_cls: Any) -> Any:
        """Return a maker of the fused optimizer: one kernel for all parameters."""
        # in mixed precision Lightning cannot clip the gradients of a fused one
        fused = "mixed" not in str(self.trainer.precision)
        return lambda params: optimizer_cls(
            params, lr=self.lr, eps=self.eps, weight_decay=self.weight_decay, fused=fused
        )

    def configure_optimizers(self) -> dict[str, Any]:
        """Return the optimizer and its schedule."""
        config = super().configure_optimizers()
        if self.reduce_lr_on_plateau:  # as often as what it watches is there
            config["lr_scheduler"]["frequency"] = self.trainer.check_val_every_n_epoch
        if self.lr_schedule == "onecycle" and not self.reduce_lr_on_plateau:
            rates = [group["lr"] for group in config["optimizer"].param_groups]
            scheduler = torch.optim.lr_scheduler.OneCycleLR(
                config["optimizer"], rates, total_steps=self.trainer.estimated_stepping_batches
            )
            config["lr_scheduler"] = {"scheduler": scheduler, "interval": "step"}
        return config
