"""The file of a model: arrays as safetensors, all else as JSON in its header.

Neither format can hold code or objects, and what a file claims to hold is compared with its size and with
the network before memory is taken for it. It has the name that scvi-tools' hub looks for, ``model.pt``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse
from safetensors.torch import save
from scvi.model.base._constants import SAVE_KEYS

from trvae_sc.errors import InputError

FORMAT = 2
_HEADER = "trvae_sc"  # key of the header's metadata
_WEIGHTS = "weights."
#: What a header raises that is none of ours.
_DAMAGE = (
    *(AttributeError, LookupError, RuntimeError, StopIteration, TypeError, ValueError),
    SafetensorError,
)
_LONGEST = 2**28  # bytes of JSON that a header may have


class Stored(NamedTuple):
    """What a file holds."""

    attributes: dict[str, Any]  #: of the model, those with a trailing underscore
    weights: dict[str, torch.Tensor]  #: state of the module


def model_file(folder: Path, prefix: str | None) -> Path:
    """Return the file of a model in a folder."""
    return folder / f"{prefix or ''}{SAVE_KEYS.MODEL_FNAME}"


def write_model(file: Path, attributes: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    """Write the file of a model; raise on an attribute that neither format holds."""
    tensors = {f"{_WEIGHTS}{k}": v.detach().cpu().contiguous() for k, v in weights.items()}
    plain = {name: _encode(value, tensors) for name, value in attributes.items()}
    header = {
        "format": FORMAT,
        "version": version("trvae_sc"),
        "sha256": _checksum(tensors),
        "attributes": plain,
    }
    file.write_bytes(save(tensors, metadata={_HEADER: json.dumps(header)}))


def read_model(folder: Path, prefix: str | None) -> Stored:
    """Return what the file of a model holds, read once."""
    file = model_file(folder, prefix)
    if not file.is_file():
        raise InputError(f"No model at {file}.")
    content = file.read_bytes()
    if content.startswith(b"PK"):
        raise InputError(
            f"{file} was not saved by this version of trvae_sc: models of 0.1 were pickled, which can "
            "run code when it is read. Train the model again."
        )
    try:
        header = _header(content)
        tensors = parse(content)
        if header["sha256"] != _checksum(tensors):
            raise ValueError("other numbers than were written")
        attributes = {k: _decode(v, tensors) for k, v in header["attributes"].items()}
    except InputError:
        raise
    except _DAMAGE as error:
        raise InputError(f"{file} is damaged, or is not a model that trvae_sc saved.") from error
    weights = {k.removeprefix(_WEIGHTS): v for k, v in tensors.items() if k.startswith(_WEIGHTS)}
    wrong = [k for k, v in weights.items() if v.is_floating_point() and not v.isfinite().all()]
    if wrong:
        raise InputError(
            f"{file} holds weights that are no numbers ({wrong[0]}): the model is lost."
        )
    return Stored(attributes, weights)


def _header(content: bytes) -> dict[str, Any]:
    """Return our part of the header; raise ValueError where it is not ours."""
    length = int.from_bytes(content[:8], "little")
    if not 0 < length <= min(len(content) - 8, _LONGEST):
        raise ValueError("no header")
    header = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][_HEADER])
    if header["format"] > FORMAT:
        raise InputError(
            f"The model was saved by trvae_sc {header['version']} in format {header['format']}; this "
            f"version reads up to {FORMAT}. Upgrade trvae_sc."
        )
    return header


def _checksum(tensors: dict[str, torch.Tensor]) -> str:
    """Return the SHA-256 of all numbers and their names, in hexadecimal."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode())
        numbers = tensors[name]
        found.update(
            (numbers.float() if numbers.dtype == torch.bfloat16 else numbers).numpy().tobytes()
        )
    return found.hexdigest()


# -- types ------------------------------------------------------------------------------------------------


def _encode(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Return a value as JSON holds it; arrays of numbers go to the tensors."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, np.generic):
        return _encode(value.item(), tensors)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, pd.DataFrame):
        columns = [[str(name), value[name].tolist()] for name in value]
        parts = {"columns": columns, "index": value.index.tolist(), "name": value.index.name}
        return {"frame": _encode(parts, tensors)}
    if isinstance(value, Mapping):
        return {"dict": [[_encode(k, tensors), _encode(v, tensors)] for k, v in value.items()]}
    if isinstance(value, list):
        return [_encode(v, tensors) for v in value]
    if isinstance(value, tuple):
        return {"tuple": [_encode(v, tensors) for v in value]}
    if isinstance(value, torch.Tensor):
        tensors[name := f"array.{len(tensors)}"] = value.detach().cpu().contiguous()
        return {"tensor": name}
    if not isinstance(value, np.ndarray | pd.api.extensions.ExtensionArray | pd.Index):
        raise InputError(f"Cannot save a value of type {type(value).__name__}: {value!r}.")
    array = np.asarray(value)
    if array.dtype.kind in "biuf":
        tensors[name := f"array.{len(tensors)}"] = torch.as_tensor(array.copy())
        return {"array": name}
    return {"objects": [_encode(v, tensors) for v in array.ravel().tolist()], "shape": array.shape}


def _decode(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Return what :func:`_encode` was given."""
    if isinstance(value, list):
        return [_decode(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    kind = next(iter(value))
    if kind == "dict":
        return {_decode(k, tensors): _decode(v, tensors) for k, v in value["dict"]}
    if kind == "tuple":
        return tuple(_decode(v, tensors) for v in value["tuple"])
    if kind == "tensor":
        return tensors[value["tensor"]]
    if kind == "array":
        return tensors[value["array"]].numpy()
    if kind == "frame":
        parts = _decode(value["frame"], tensors)
        return pd.DataFrame(
            dict(parts["columns"]), index=pd.Index(parts["index"], name=parts["name"])
        )
    if kind == "objects":
        found = np.empty(len(value["objects"]), dtype=object)
        found[:] = [_decode(v, tensors) for v in value["objects"]]
        return found.reshape(value["shape"])
    raise ValueError(f"unknown kind {kind!r}")
