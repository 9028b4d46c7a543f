"""Query surgery: a trained model extended by new levels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import torch
from anndata import AnnData

from trvae_sc import checks
from trvae_sc.errors import InputError
from trvae_sc.levels import level_name

if TYPE_CHECKING:
    from trvae_sc.model._model import TRVAE

#: What is to be said of a new condition of such a model.
FROZEN_WITHOUT_LABELS = (
    "The reference was set up without labels_key and its weights are frozen: its encoder takes a new "
    "condition for a difference between cells, so predictions hardly change. Set the reference up with "
    "labels, or pass freeze=False to load_query_data with cells of a known condition in the query."
)
#: Parameters with a row for each feature of the condition.
_BY_FEATURE = ("encoder_in.condition", "decoder_in.condition", "log_dispersion_condition")
_STATISTICS = ("n_cells", "profiles", "state_n_cells", "state_profiles")


def query_model(cls: type[TRVAE], adata: AnnData, reference: TRVAE, *, freeze: bool) -> TRVAE:
    """Return an untrained copy of `reference` that also has the new levels of `adata`."""
    setup_args = reference.registry_["setup_args"]
    labels_key = setup_args["labels_key"]
    if labels_key is not None and labels_key not in adata.obs:
        raise InputError(
            f"No column '{labels_key}' in adata.obs; there are {list(adata.obs.columns)}."
        )
    if not adata.var_names.equals(pd.Index(reference.get_var_names())) or adata.is_view:
        adata = checks.align(
            adata,
            pd.Index(reference.get_var_names()),
            setup_args["layer"],
            setup_args["total_counts_key"],
        )
    cls.setup_anndata(
        adata, source_registry=reference.registry_, extend_categories=True, **setup_args
    )
    parameters = reference.init_params_
    model = cls(adata, **parameters["non_kwargs"], **parameters["kwargs"]["module_kwargs"])
    old, new = reference.module.state_dict(), model.module.state_dict()
    extended = {k: len(old[k]) for k in new if new[k].shape != old[k].shape}
    parameter_names = dict(model.module.named_parameters())
    rows = {k: n for k, n in extended.items() if k in parameter_names}
    if freeze and not rows:
        raise InputError(
            "The query has no condition, batch or covariate level that the reference lacks, so there "
            "is nothing to train. Use the reference's methods on it, or pass freeze=False."
        )
    alike = _alike(model)
    model.module.load_state_dict({k: _extend(k, old[k].cpu(), new[k], alike) for k in new})
    model.module.to(reference.device)
    model.module.eval()
    if freeze:
        model.frozen_rows_ = rows
        model.frozen_conditions_ = len(reference.conditions)
        model.module.freeze(rows, model.frozen_conditions_)
        if labels_key is None and len(model.conditions) > model.frozen_conditions_:
            checks.logger.warning("%s", FROZEN_WITHOUT_LABELS)
    return model


def _alike(model: TRVAE) -> list[str]:
    """Return the column that each feature of the condition is of: new levels are like others of it.

    A number has a column of its own; it is like no level.
    """
    parts = model._condition_parts
    if parts is None:
        return [""] * len(model.conditions)
    return [
        level_name(key) if key not in parts["scaling"] else f"number {key}"
        for key, _ in parts["features"]
    ]


def _extend(name: str, old: torch.Tensor, new: torch.Tensor, alike: list[str]) -> torch.Tensor:
    """Return `old` grown to the shape of `new`.

    New rows of parameters are the mean of the known rows of their kind: for condition features those of
    the same column. Statistics grow by zeros.
    """
    if old.shape == new.shape:
        return old
    if name in _STATISTICS:
        grown = torch.zeros_like(new)
        both = tuple(slice(min(n)) for n in zip(old.shape, new.shape, strict=True))
        grown[both] = old[both]
        return grown
    kinds = alike if name in _BY_FEATURE else [""] * len(new)
    known = torch.arange(len(old))
    rows = [
        old[[i for i in known.tolist() if kinds[i] == kinds[j]] or known.tolist()].mean(0)
        for j in range(len(old), len(new))
    ]
    return torch.cat([old, torch.stack(rows)])
