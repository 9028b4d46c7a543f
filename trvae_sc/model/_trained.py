"""What prediction needs of a trained model, as plain data."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS
from torch import Tensor

from trvae_sc.condition_sets import SETS
from trvae_sc.conditions import ConditionSpace
from trvae_sc.errors import InputError
from trvae_sc.levels import as_list, as_text, level_name, match_level
from trvae_sc.module import CONDITION_KEY, TRVAEModule
from trvae_sc.replicates import Replicates
from trvae_sc.shift import Profiles

Tensors = dict[str, Tensor]
_MOST_CODES = (50, 256)  # codes kept of each label and condition: least and most ...
_ALL_CODES = 20_000  # ... and of all together
_DRAWS = 4  # from the posterior of each, where predictions draw from that of each cell
#: What of a minibatch is kept beside a code: its group, and what it is decoded with.
_KEPT = (
    *(REGISTRY_KEYS.LABELS_KEY, CONDITION_KEY, REGISTRY_KEYS.BATCH_KEY),
    *(REGISTRY_KEYS.CAT_COVS_KEY, REGISTRY_KEYS.CONT_COVS_KEY),
)


@dataclass(frozen=True)
class Known:
    """What a model knows: conditions, labels and how many cells of them it was trained on."""

    conditions: ConditionSpace
    labels: tuple[str, ...]  #: as text; ``("all",)`` without labels
    labels_key: str | None  #: column with the labels
    n_cells: np.ndarray  #: training cells, shape (n_labels, n_conditions)
    #: Those of a query with a frozen reference, under conditions of which the reference alone is in `n_cells`.
    n_query: np.ndarray | int = field(default=0, kw_only=True)

    def label_column(self, obs: pd.DataFrame) -> pd.Series:
        """Return the label of each cell as text; without labels ``"all"``, or another that no label has."""
        if self.labels_key in obs:
            return as_text(obs[self.labels_key])
        return pd.Series(self.no_label, index=obs.index)

    @property
    def no_label(self) -> str:
        """What cells without labels are called."""
        name = "all"
        while self.labels_key is not None and name in self.labels:
            name += " cells"
        return name

    def n_cells_of(self, label: str, condition: int | None, *, seen: bool = False) -> int:
        """Return the number of training cells of a label under a condition, of which either may be new.

        `seen`: with those of a query.
        """
        if label not in self.labels or condition is None:
            return 0
        n_cells = self.n_cells + self.n_query if seen else self.n_cells
        return int(n_cells[self.labels.index(label), condition])

    def groups(self, obs: pd.DataFrame) -> pd.DataFrame:
        """Return label and condition (``source``) of each cell as text."""
        source = as_text(self.conditions.column(obs))
        return pd.DataFrame({"label": self.label_column(obs), "source": source})


def given_labels(labels_key: str | None, labels: Any) -> list[Any]:
    """Return the label or labels that a caller chose, each once; raise where there are no labels."""
    if labels_key is None:
        raise InputError("The model was set up without labels_key, so labels cannot be chosen.")
    found: dict[str, Any] = {}
    for label in as_list(labels):
        found.setdefault(level_name(label), label)
    are_bools = all(isinstance(label, bool | np.bool_) for label in found.values())
    if len(as_list(labels)) > len(found) and are_bools:
        raise InputError(
            f"labels is a mask of {len(labels)} booleans; give names of labels. To choose cells, pass it to "
            "TRVAE.predict as indices=."
        )
    if not found:
        raise InputError("labels is empty: name one or several, or None for all.")
    return list(found.values())


def chosen_labels(known: Known, labels: Any) -> list[str]:
    """Return the labels that a caller chose as they are known, each once; all if None."""
    if labels is None:
        return list(known.labels)
    given = given_labels(known.labels_key, labels)
    found = (match_level(label, list(known.labels), of="label") for label in given)
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Trained(Known):
    """A trained network, and what it keeps of its training cells."""

    module: TRVAEModule
    layer: str | None  #: with the values; X if None
    total_counts_key: str | None  #: column with the totals
    codes: dict[str, np.ndarray]  #: what :func:`kept_codes` returns
    #: Gives minibatches of rows of a registered AnnData, of a batch size if one is given.
    batches: Callable[..., Iterable[Tensors]]
    preset: str
    seed: int
    training: dict[str, Any]  #: how far training went
    frozen: tuple[int, ...]  #: conditions of the references of a query, of the first one first
    marks: np.ndarray  #: of the training cells (:func:`trvae_sc.identity.cell_marks`)
    #: Of counts the dispersion, else the variance within labels, of each condition and gene; shape
    #: (n_conditions, n_genes), (0, 0) where a model was saved without.
    spread: np.ndarray
    replicates: Replicates | None = None  #: means of the training cells of each donor

    @property
    def names(self) -> dict[str, Any]:
        """Columns, layer and separator of sets that the model was set up with, those there are."""
        names = {
            "condition_key": self.conditions.key,
            "labels_key": self.labels_key,
            "layer": self.layer,
            "total_counts_key": self.total_counts_key,
            "condition_separator": (self.conditions.parts or {}).get(SETS),
        }
        return {name: value for name, value in names.items() if value is not None}

    def features(self, condition: Any) -> Tensor:
        """Return the features of a condition, shape (1, n_features)."""
        return torch.as_tensor(self.conditions.features(condition), device=self.module.kappa.device)

    def of_reference(self, *conditions: Any) -> Trained:
        """Return what the frozen reference of a query knew, if it knew these: what it predicts stays as it was."""
        codes = [self.conditions.code(condition) for condition in conditions]
        n = next((n for n in self.frozen if all(c is not None and c < n for c in codes)), None)
        if n is None or not self.conditions.tells_of_new:
            return self
        known = self.conditions.first(n)
        return replace(self, conditions=known, n_cells=self.n_cells[:, :n], n_query=0)

    def profiles(self) -> Profiles:
        """Return the mean profiles of the training cells."""
        mean = in_own_units(self.module, self.module.profiles.cpu().numpy())
        mean = mean[:, : self.n_cells.shape[1]]
        return Profiles(mean, self.n_cells, self.labels, self.module.is_count, self.replicates)

    def informed(self, source: int, target: Any) -> ConditionSpace:
        """Return :meth:`ConditionSpace.informed`, learned once."""
        if (source, target) not in self._informed:
            space = self.conditions.informed(self.profiles(), source, target)
            self._informed[source, target] = space
        return self._informed[source, target]

    @cached_property
    def _informed(self) -> dict[Any, ConditionSpace]:
        """What was learned of sources and targets."""
        return {}

    def spread_of(self, condition: int | None) -> np.ndarray:
        """Return the spread of a condition; of a new one the mean of all, in a query of those of the reference."""
        if condition is not None:
            return self.spread[condition]
        return self.spread[: self.frozen[0] if self.frozen else None].mean(0)

    def codes_of(
        self, label: int, condition: int | None, *, drawn: bool = False
    ) -> tuple[Tensors, Tensor] | None:
        """Return what the codes kept of a label and condition are decoded with, and z.

        z is the posterior mean; `drawn`, four draws from the posterior of each, the same every time.
        """
        if not self.codes:
            return None
        at = (self.codes[REGISTRY_KEYS.LABELS_KEY] == label).ravel()
        at &= (self.codes[CONDITION_KEY] == condition).ravel()
        if not at.any():
            return None
        device = self.module.kappa.device
        tensors = {k: torch.as_tensor(v[at], device=device) for k, v in self.codes.items()}
        scale = tensors.pop("z_scale", None)  # of models that were saved before: none
        if not drawn or scale is None:
            return tensors, tensors.pop("z")
        tensors = {k: v.repeat(_DRAWS, 1) for k, v in tensors.items()}
        noise = np.random.default_rng(self.seed).standard_normal(tensors["z"].shape, np.float32)
        noise = torch.as_tensor(noise, device=device) * scale.repeat(_DRAWS, 1)
        return tensors, tensors.pop("z") + noise


def in_own_units(module: TRVAEModule, kept: np.ndarray) -> np.ndarray:
    """Return means on the scale of f as they are, of those a network keeps: of values scaled ones."""
    if module.is_count:
        return kept
    return module.gene_mean.cpu().numpy() + module.gene_scale.cpu().numpy() * kept


def in_kept_units(module: TRVAEModule, means: np.ndarray) -> np.ndarray:
    """Return what is kept of means: the inverse of :func:`in_own_units`."""
    if module.is_count:
        return means
    return (means - module.gene_mean.cpu().numpy()) / module.gene_scale.cpu().numpy()


def kept_codes(
    trained: Trained, adata: AnnData, rows: np.ndarray, group: np.ndarray, *, since: int, seed: int
) -> dict[str, np.ndarray]:
    """Return codes of the training cells: a random sample of at most 256 of each label and condition.

    They stay with the model, so that what it predicts depends on the cell alone. Each has what it
    is decoded with, and its `group`: codes of label and condition, (n_cells, 2). Of conditions
    below `since` (the first new one of a query) they are those that the network had before.
    """
    most = int(np.clip(_ALL_CODES // trained.n_cells.size, *_MOST_CODES))
    order = np.random.default_rng(seed).permutation(len(rows))
    place = pd.DataFrame(group[order]).groupby([0, 1]).cumcount().to_numpy()
    chosen = np.sort(order[place < most])
    chosen = chosen[group[chosen, 1] >= since]
    parts: list[dict[str, np.ndarray]] = []
    for tensors in trained.batches(adata, rows[chosen]) if len(chosen) else ():
        kept = {k: v.cpu().numpy() for k, v in tensors.items() if k in _KEPT}
        qz = trained.module.encode(tensors)
        parts.append({**kept, "z": qz.loc.cpu().numpy(), "z_scale": qz.scale.cpu().numpy()})
    found = {k: np.concatenate([part[k] for part in parts]) for k in (parts[0] if parts else ())}
    before = trained.codes if since else {}
    if not before or not found:
        return found or before
    old = before[CONDITION_KEY].ravel() < since
    both = before.keys() & found.keys()  # models that were saved before have no z_scale
    return {k: np.concatenate([before[k][old], v]) for k, v in found.items() if k in both}
