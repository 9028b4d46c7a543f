"""The contract of models on expression vectors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor
from torch.utils.data import Sampler, StackDataset

from trvae_sc import checks
from trvae_sc.arguments import check_known, check_number, check_seed, check_whole, named
from trvae_sc.baselines import as_prediction
from trvae_sc.errors import InputError
from trvae_sc.expression import Keys, dense, log_values, median_total, values
from trvae_sc.family._networks import ExpressionModule, Sizes
from trvae_sc.family._training import Minibatches, PlayersPlan
from trvae_sc.identity import among, cell_marks
from trvae_sc.model import (
    KEYS,
    REGISTRATION,
    Request,
    SavedModel,
    check_default_type,
    check_weights,
    check_widths,
    combination_notes,
    combination_table,
    fields,
    interruption_notes,
    source_rows,
)
from trvae_sc.notes import log_notes
from trvae_sc.threads import suitable_threads
from trvae_sc.training import (
    NOT_STARTED,
    Batches,
    Clock,
    DataManager,
    TrainRunner,
    as_callbacks,
    check_trainer,
    seed_of,
)


class Translator(SavedModel):
    """A model that is trained on, and predicts, whole expression vectors.

    Counts enter as log(1 + kappa share) with kappa the median total of the training cells, other
    values as they are; predictions are on that scale. All training cells are held in memory, dense.

    Parameters
    ----------
    adata
        AnnData registered with :meth:`setup_anndata`.
    registry
        Registry of such a registration, in place of `adata`.
    seed
        Seed of components, initial weights, minibatches and noise; ``scvi.settings.seed`` or else 0 if None.
    """

    module: ExpressionModule
    _n_steps = 2000  #: steps of training by default

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict[str, Any] | None = None,
        *,
        seed: int | None = None,
    ) -> None:
        check_default_type()
        self._check_registered(adata, registry)
        super().__init__(adata, registry)
        self.training_ = dict(NOT_STARTED)
        self._notes_said: set[str] = set()
        self.training_marks_ = np.zeros(0)
        self.version_ = version("trvae_sc")
        self.seed_ = seed_of(seed)
        self._check_values("nb" if self.keys.is_count else "normal")
        self._model_summary_string = (
            f"{type(self).__name__}, conditions: {self.conditions}, labels: {len(self.labels)}, "
            f"seed: {self.seed_}"
        )

    def _build(self, module_cls: type[ExpressionModule], given: dict[str, Any]) -> None:
        """Make the module, with the model's own seed, of those of the model's arguments that it takes."""
        arguments = {name: given[name] for name in named(module_cls) if name in given}
        n_pcs = given["n_pcs"]
        check_whole("n_pcs", n_pcs)
        check_widths("n_hidden", arguments["n_hidden"])
        for name, value in arguments.items():
            if name in ("n_noise", "n_steps", "n_transforms"):
                check_whole(name, value)
            if name.endswith("_weight"):
                check_number(name, value, 0.0)
        n_genes, n_cells = self.summary_stats.n_vars, self.summary_stats.n_cells
        n_pcs = min(n_pcs, n_genes, n_cells - 1)
        if n_pcs < 1:
            raise InputError(f"n_pcs is {n_pcs}; at least 1 principal component is needed.")
        n_conditions, n_labels = len(self.conditions), len(self.labels)
        sizes = Sizes(n_genes, n_conditions, n_labels, n_pcs, self.keys.is_count)
        with torch.random.fork_rng():
            torch.manual_seed(self.seed_)
            self.module = module_cls(sizes, **arguments)
        self.module.widest = max(arguments["n_hidden"])

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        condition_key: str,
        *,
        labels_key: str | None = None,
        layer: str | None = None,
        total_counts_key: str | None = None,
        is_count: bool = True,
        **kwargs: Any,
    ) -> None:
        """Register the columns and values of an AnnData that the model uses.

        Parameters
        ----------
        adata
            Cells x genes.
        condition_key
            Column of ``adata.obs`` with the condition of each cell.
        labels_key, layer, total_counts_key, is_count
            As in :class:`trvae_sc.evaluation.Keys`.
        **kwargs
            Passed to scvi-tools' registration (``source_registry``).

        Raises
        ------
        InputError
            As :meth:`trvae_sc.TRVAE.setup_anndata`, before anything is written.
        """
        cls._register_fields(locals())

    @classmethod
    def _register_fields(cls, arguments: dict[str, Any]) -> None:
        """Check the columns that ``setup_anndata`` was given, and register them."""
        adata, kwargs = arguments["adata"], arguments["kwargs"]
        check_known(kwargs, cls.setup_anndata, REGISTRATION)
        setup_method_args = cls._get_setup_method_args(**arguments)
        given = setup_method_args["setup_args"]
        condition_key = given["condition_key"]
        if not isinstance(condition_key, str):
            raise InputError(
                f"condition_key is {condition_key!r}; {cls.__name__} takes one column. Join several "
                "into one, or use TRVAE."
            )
        keys: dict[str, Any] = {name: given.get(name) for name in KEYS}
        if kwargs.get("source_registry") is None:
            checks.check_columns(adata, keys)
            cls._check_further(adata, given)
        else:
            checks.check_other(adata, keys)
        manager = DataManager(fields(keys), setup_method_args)
        manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    @classmethod
    def _check_further(cls, adata: AnnData, given: dict[str, Any]) -> None:
        """Raise on what ``setup_anndata`` of a subclass was given besides."""

    @property
    def keys(self) -> Keys:
        """Where the data are."""
        given = self.registry_["setup_args"]
        return Keys(**{name: given[name] for name in Keys._fields if name in given})

    # -- training -----------------------------------------------------------------------------------

    def train(
        self,
        max_epochs: int | None = None,
        *,
        batch_size: int = 128,
        lr: float = 1e-3,
        accelerator: str = "auto",
        devices: int | str = "auto",
        **trainer_kwargs: Any,
    ) -> None:
        """Fit the model; ``history`` then holds the terms of every loss by epoch. One that was trained goes on.

        Every player (generator, critic, flow) has an optimizer and a loss of its own and is updated in turn:
        see :class:`PlayersPlan`.

        Parameters
        ----------
        max_epochs
            Passes over the training cells; by default as many as make up 2,000 steps.
        batch_size
            Cells a step (where cells of two conditions meet: of each).
        lr
            Learning rate; generators have a fifth of it.
        accelerator, devices, **trainer_kwargs
            Arguments of :class:`scvi.train.Trainer`, such as ``enable_progress_bar``.

        Raises
        ------
        FloatingPointError
            A loss became NaN or infinite.
        InputError
            There is nothing to learn from, or an argument is unknown.
        """
        check_default_type()
        check_trainer(trainer_kwargs, Translator.train)
        if max_epochs is not None:
            check_whole("max_epochs", max_epochs)
        check_whole("batch_size", batch_size)
        check_number("lr", lr, 0.0)
        for name, monitor in (
            ("early_stopping", "early_stopping_monitor"),
            ("enable_checkpointing", "checkpointing_monitor"),
        ):
            watched = trainer_kwargs.get(monitor, "validation")
            if trainer_kwargs.get(name) and "validation" in watched:
                raise InputError(
                    f"{name} needs cells to validate on, and a {type(self).__name__} trains on all. "
                    "Leave it out, and choose max_epochs."
                )
        if self.adata is None:
            raise InputError(
                "The model was loaded without data: attach some to train on (model.adata = adata)."
            )
        self.adata_manager.validate()
        self._check_labels_known()
        with torch.random.fork_rng(), suitable_threads(self.module.widest):
            torch.manual_seed(self.seed_)
            trained = self.is_trained_  # in a unit that is kept
            kappa = float(self.module.kappa) if trained else median_total(self.adata, self.keys)
            cells = self._training_cells(kappa)
            sampler = self._sampler(math.ceil(len(cells) / batch_size), batch_size)
            default = math.ceil(self._n_steps / len(sampler))
            self.training_ = {**self.training_, "default": default}
            epochs = default if max_epochs is None else int(max_epochs)
            TrainRunner(
                self,
                PlayersPlan(
                    self.module,
                    lr=lr,
                    marks=self.adata_manager.registered.marks,
                    prepare=partial(self._take_statistics, cells, kappa),
                ),
                Minibatches(cells, sampler),
                epochs,
                accelerator=accelerator,
                devices=devices,
                callbacks=[*as_callbacks(trainer_kwargs.pop("callbacks", None)), Clock()],
                **trainer_kwargs,
            )()

    def _training_cells(self, kappa: float) -> StackDataset:
        """Return the training cells."""
        x = torch.as_tensor(self._values(self.adata, kappa))
        label, condition = torch.as_tensor(self._group_codes()).T
        return StackDataset(x=x, condition=condition, label=label)

    def _take_statistics(self, cells: StackDataset, kappa: float) -> None:
        """Let the module take the statistics of the training cells."""
        self.module.to("cpu")
        self.module.set_statistics(**cells.datasets, seed=self.seed_)
        self.module.kappa = torch.tensor(kappa)

    def _sampler(self, n_batches: int, batch_size: int) -> Sampler:
        """Return the order in which training cells are drawn: all of them, shuffled."""
        return Batches(np.arange(self.adata.n_obs), batch_size, shuffle=True, drop_last=True)

    def _values(self, adata: AnnData, kappa: float | None = None) -> np.ndarray:
        """Return log values (with the model's kappa if None), shape (n_cells, n_genes)."""
        kappa = float(self.module.kappa) if kappa is None else kappa
        if adata.isbacked:
            raise InputError("adata is on disk: read it into memory first (adata.to_memory()).")
        return np.ascontiguousarray(dense(log_values(adata, self.keys, kappa)), dtype=np.float32)

    @torch.no_grad()
    def _in_parts(self, function: Callable[[Tensor], Tensor], x: np.ndarray) -> np.ndarray:
        """Return what a function of the module makes of values, of a thousand cells at a time."""
        parts = torch.as_tensor(x).split(1024)
        return torch.cat([function(part.to(self.device)).cpu() for part in parts]).numpy()

    # -- prediction ---------------------------------------------------------------------------------

    def predict(
        self,
        adata: AnnData | None = None,
        *,
        target: Any,
        source: Any = None,
        labels: Any = None,
        indices: Sequence[int] | None = None,
        seed: int = 0,
    ) -> AnnData:
        """Return cells under another condition, one for each source cell.

        Parameters
        ----------
        adata
            Cells to start from, with the genes of the model in any order; the model's own if None.
            Not changed.
        target
            Condition to predict.
        source
            Condition of the cells to start from; all but `target` if None.
        labels
            Label or labels of the cells to start from; all if None.
        indices
            Rows to start from (list, array or mask), in addition to `source` and `labels`.
        seed
            Seed of noise, where the model has any.

        Returns
        -------
        AnnData with log values (values that are not counts: as they are) in ``X``. ``obs``: the
        source cell's columns with the target condition, ``source_condition`` and ``source_cell``.
        ``uns["trvae_sc"]``: what was predicted from what, and notes on how far to trust it.

        Raises
        ------
        NotTrainedError, InputError
            The model is not trained; unknown target, source or labels; target equal to source; no cell
            selected; genes missing.
        """
        target = self._level_to_predict(target)
        cells = self._source_cells(adata, target, source=source, labels=labels, indices=indices)
        check_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(), suitable_threads(self.module.widest):
            x = self._translate(cells, self._values(cells), target, generator)
        return self._as_prediction(x, cells, target, seed)

    def _translate(
        self, cells: AnnData, x: np.ndarray, target: Any, generator: torch.Generator
    ) -> np.ndarray:
        """Return predicted values of source cells, whose values are `x`."""
        raise NotImplementedError

    def _level_to_predict(self, target: Any) -> Any:
        """Return a condition as in :attr:`conditions`, if the model is trained."""
        self._check_if_trained(warn=False)
        check_weights(self.module)
        return self.condition_space.level(target)

    def _source_cells(self, adata: AnnData | None, target: Any, **selection: Any) -> AnnData:
        """Return the cells to start from, with the model's genes."""
        registered = self._validate_anndata(adata)
        original = self.adata if adata is None else adata
        checks.check_free(original)
        rows = source_rows(self.known, original, Request(target, **selection))
        cells = registered[rows].copy()
        cells.obs = checks.without_codes(cells.obs).drop(  # of a prediction that is predicted from
            columns=list(checks.PREDICTED_OBS), errors="ignore"
        )
        cells.var = original.var.loc[registered.var_names].copy()
        return cells

    def _as_cells(self, x: np.ndarray, z: np.ndarray, obs: pd.DataFrame, method: str) -> AnnData:
        """Return the cells that codes stand for, with the record of how they were made."""
        names = pd.Index(self.get_var_names())
        var = pd.DataFrame(index=names) if self.adata is None else self.adata.var.loc[names].copy()
        cells = AnnData(x, obs=obs, var=var, obsm={"X_trvae": z})
        cells.uns["trvae_sc"] = {
            "method": f"{type(self).__name__}.{method}",
            "scale": "log(1 + kappa * share)" if self.keys.is_count else "values",
            "kappa": float(self.module.kappa),
            "versions": {"trvae_sc": version("trvae_sc")},
        }
        return cells

    def _as_prediction(
        self, x: np.ndarray, cells: AnnData, target: Any, seed: int, more: Sequence[str] = ()
    ) -> AnnData:
        """Return predicted values as an AnnData with the record of the prediction."""
        name, kappa = type(self).__name__, float(self.module.kappa)
        result = as_prediction(x, cells, target, self.keys, kappa, name)
        is_training = among(cell_marks(values(cells, self.keys)), self.training_marks_)
        combinations = combination_table(
            self.known, self.known.groups(cells.obs), target, [], is_training
        )
        notes = combination_notes(combinations, self.known) + interruption_notes(self.training_)
        notes += [*self.module.scale_notes(self._values(cells)), *more]
        result.uns["trvae_sc"] |= {
            "training": dict(self.training_),
            "source": np.array(combinations["source"].unique(), dtype=object),
            "model_seed": int(self.seed_),
            "seed": int(seed),
            "combinations": combinations,
            "notes": np.array(notes, dtype=object),
        }
        return log_notes(result, self._notes_said)
