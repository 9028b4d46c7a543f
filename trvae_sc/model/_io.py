"""Saving, loading and query surgery."""

from __future__ import annotations

import logging
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi.model.base._constants import SAVE_KEYS

from trvae_sc.files import beside, move_files
from trvae_sc.model import _setup

if TYPE_CHECKING:
    from trvae_sc.model._model import TRVAE

logger = logging.getLogger(__name__)

FORMAT = 1
_FRAME = "__frame__"
#: What is to be said of a new condition of such a model.
FROZEN_WITHOUT_LABELS = (
    "The reference was set up without labels_key and its weights are frozen: its encoder takes a new "
    "condition for a difference between cells, so predictions hardly change. Set the reference up with "
    "labels, or pass freeze=False to load_query_data with cells of a known condition in the query."
)

#: The only functions besides torch's own that loading may call: they build arrays.
_ARRAY_FUNCTIONS = [
    bytes,
    np.ndarray,
    np.dtype,
    np._core.multiarray._reconstruct,
    np._core.multiarray.scalar,
    *(getattr(np.dtypes, name) for name in np.dtypes.__all__),
]
#: What reading a damaged file raises.
_DAMAGE = (
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


# -- saving ---------------------------------------------------------------------------------------


def plain_attributes(attributes: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Return a model's attributes, those to be saved (trailing underscore) as plain types."""
    return [(k, plain(v) if k.endswith("_") else v) for k, v in attributes]


def plain(value: Any) -> Any:
    """Return a value as types that torch loads without running code.

    Raises
    ------
    TypeError
        There is no such form of the value.
    """
    if isinstance(value, pd.DataFrame):
        columns = {str(name): value[name].tolist() for name in value}
        return {_FRAME: columns, "index": value.index.tolist(), "name": value.index.name}
    if isinstance(value, Mapping):
        return {plain(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(v) for v in value)
    if isinstance(value, np.ndarray | pd.api.extensions.ExtensionArray | pd.Index):
        array = np.asarray(value)
        if array.dtype.kind in "biuf":
            return array
        objects = np.empty(array.shape, dtype=object)
        objects[...] = [plain(v) for v in array.tolist()]
        return objects
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, str | int | float | torch.Tensor):
        return value
    raise TypeError(f"Cannot save a value of type {type(value).__name__}: {value!r}.")


def save_atomically(
    save: Callable[..., None], path: Path, *, overwrite: bool, **kwargs: Any
) -> None:
    """Call `save` on a folder beside `path`, and move what it wrote into place.

    Raises
    ------
    ValueError
        `path` exists and `overwrite` is False.
    NotADirectoryError
        `path`, or a folder it would be in, is a file.
    """
    files = [str(p) for p in (path, *path.parents) if p.is_file()]
    if files:
        raise NotADirectoryError(f"{files[0]} is a file. Choose another folder for the model.")
    if path.exists() and not overwrite:
        raise ValueError(f"{path} already exists. Choose another folder, or pass overwrite=True.")
    with beside(path) as temporary:
        save(str(temporary), **kwargs)
        data = f"{kwargs.get('prefix') or ''}{SAVE_KEYS.ADATA_FNAME}"
        if not (temporary / data).exists():
            (path / data).unlink(missing_ok=True)  # of the model that is replaced
        move_files(temporary, path)


# -- loading ----------------------------------------------------------------------------------------


def read_file(
    path: Path, prefix: str | None, *, map_location: str | None = "cpu"
) -> dict[str, Any]:
    """Return the content of a saved model, read as data only.

    Raises
    ------
    FileNotFoundError
        No model there.
    ValueError
        The file is damaged, holds something else, or comes from a newer version.
    """
    file = path / f"{prefix or ''}{SAVE_KEYS.MODEL_FNAME}"
    if not file.is_file():
        raise FileNotFoundError(f"No model at {file}.")
    try:
        with zipfile.ZipFile(file) as archive:  # torch does not compare the check sums
            if archive.testzip() is not None:
                raise zipfile.BadZipFile
        with torch.serialization.safe_globals(_ARRAY_FUNCTIONS):
            content = torch.load(file, map_location=map_location, weights_only=True)
    except _DAMAGE as error:
        raise ValueError(f"{file} is damaged, or is not a model that trvae_sc saved.") from error
    attributes = content.get(SAVE_KEYS.ATTR_DICT_KEY) if isinstance(content, dict) else None
    if not isinstance(attributes, dict) or "format_" not in attributes:
        raise ValueError(f"{file} is not a model that trvae_sc saved.")
    if attributes["format_"] > FORMAT:
        raise ValueError(
            f"{file} was saved by trvae_sc {attributes['version_']} in format {attributes['format_']}; "
            f"this version reads up to {FORMAT}. Upgrade trvae_sc."
        )
    return content


def prepare_for_load(content: dict[str, Any], adata: AnnData) -> AnnData:
    """Return an AnnData whose genes are those of a saved model."""
    var_names = pd.Index(content[SAVE_KEYS.VAR_NAMES_KEY])
    if adata.var_names.equals(var_names) and not adata.is_view:
        return adata
    setup_args = content[SAVE_KEYS.ATTR_DICT_KEY]["registry_"]["setup_args"]
    return _setup.align(adata, var_names, setup_args["layer"])


def restore_history(history: dict[str, Any] | None) -> dict[str, pd.DataFrame] | None:
    """Return a history whose frames were made plain."""
    if history is None:
        return None
    return {name: _restore_frame(record) for name, record in history.items()}


def _restore_frame(record: Any) -> Any:
    if not isinstance(record, dict) or _FRAME not in record:
        return record
    index = pd.Index(record["index"], name=record["name"])
    return pd.DataFrame(record[_FRAME], index=index)


# -- query surgery ------------------------------------------------------------------------------------


def query_model(cls: type[TRVAE], adata: AnnData, reference: TRVAE, *, freeze: bool) -> TRVAE:
    """Return an untrained copy of `reference` that also has the new levels of `adata`."""
    setup_args = reference.registry_["setup_args"]
    labels_key = setup_args["labels_key"]
    if labels_key is not None and labels_key not in adata.obs:
        raise KeyError(
            f"No column '{labels_key}' in adata.obs; there are {list(adata.obs.columns)}."
        )
    if not adata.var_names.equals(pd.Index(reference.get_var_names())) or adata.is_view:
        adata = _setup.align(adata, pd.Index(reference.get_var_names()), setup_args["layer"])
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
        raise ValueError(
            "The query has no condition, batch or covariate level that the reference lacks, so there "
            "is nothing to train. Use the reference's methods on it, or pass freeze=False."
        )
    model.module.load_state_dict({k: _extend(k, old[k].cpu(), new[k]) for k in new})
    model.module.to(reference.device)
    model.module.eval()
    if freeze:
        model.frozen_rows_ = rows
        model.frozen_conditions_ = len(reference.conditions)
        model.module.freeze(rows, model.frozen_conditions_)
        if labels_key is None and len(model.conditions) > model.frozen_conditions_:
            logger.warning("%s", FROZEN_WITHOUT_LABELS)
    return model


def _extend(name: str, old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """Return `old` grown to the shape of `new`: by the mean of its rows; by zeros for statistics."""
    if old.shape == new.shape:
        return old
    if name in ("n_cells", "profiles", "state_n_cells", "state_profiles"):
        grown = torch.zeros_like(new)
        both = tuple(slice(min(n)) for n in zip(old.shape, new.shape, strict=True))
        grown[both] = old[both]
        return grown
    mean = old.mean(0, keepdim=True)
    return torch.cat([old, mean.expand(len(new) - len(old), *old.shape[1:])])
