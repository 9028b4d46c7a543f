"""The ``save`` and ``load`` methods."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Self

import pandas as pd
import torch
from anndata import AnnData
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from scvi.model._utils import parse_device_args
from scvi.model.base._constants import SAVE_KEYS

from trvae_sc import checks
from trvae_sc.errors import InputError
from trvae_sc.files import as_path, check_target, read, write_anndata, write_whole
from trvae_sc.model._registration import AnnDataModel, with_genes
from trvae_sc.model_file import Stored, model_file, read_model, write_model
from trvae_sc.training import DataManager


class SavedModel(AnnDataModel):
    """Models are written completely or not at all, and read without running code."""

    def save(
        self,
        dir_path: str | Path,
        *,
        prefix: str | None = None,
        overwrite: bool = False,
        save_anndata: bool = False,
    ) -> None:
        """Write the model to a folder, completely or not at all.

        Parameters
        ----------
        dir_path
            Folder. What else is in it stays.
        prefix
            Prefix of the file names.
        overwrite
            Replace a model that is there.
        save_anndata
            Also write the training data, as ``adata.h5ad``.

        Raises
        ------
        InputError
            `dir_path` exists and `overwrite` is False; it, or a folder it would be in, is a file; there
            are no data to save, or they are not what was registered any more, or no file can hold them.
        """
        path = as_path(dir_path, "dir_path")
        check_target(path, overwrite=overwrite, replaces=lambda _: True, kind="model")
        if save_anndata and self.adata is None:
            raise InputError("The model has no data to save: pass save_anndata=False.")
        if save_anndata:  # else it is found when they are loaded, or never
            self.adata_manager.validate()
        attributes = {k: v for k, v in vars(self).items() if k.endswith("_")}
        data_file = f"{prefix or ''}{SAVE_KEYS.ADATA_FNAME}"

        def write(folder: Path) -> None:
            folder.mkdir()
            if save_anndata:
                write_anndata(_to_write(self.adata), folder / data_file)
            write_model(model_file(folder, prefix), attributes, self.module.state_dict())

        drop = () if save_anndata else (data_file,)  # of the model that is replaced
        write_whole(path, write, overwrite=overwrite, keep=True, drop=drop)

    @classmethod
    def load(
        cls,
        dir_path: str | Path,
        adata: AnnData | Literal[False] | None = None,
        *,
        prefix: str | None = None,
        accelerator: str = "auto",
        device: int | str = "auto",
    ) -> Self:
        """Read a model from a folder: numbers and text, nothing stored is executed.

        Parameters
        ----------
        dir_path
            Folder that :meth:`save` wrote.
        adata
            Data to attach, with the genes of the model in any order; None: the data saved with the
            model, if any; False: none (then pass data to the methods).
        prefix
            Prefix of the file names.
        accelerator, device
            Where the model computes, as in scvi-tools.

        Raises
        ------
        InputError
            No model there; the file is damaged, holds something else, or comes from another version;
            the data are not those of the model.
        """
        if adata is not None and adata is not False:
            checks.check_type(adata)
        where = _device(accelerator, device)
        folder = as_path(dir_path, "dir_path")
        stored = read_model(folder, prefix)
        attributes = dict(stored.attributes)
        registry, params, arguments = cls._made_with(attributes, folder)
        cls._check_shapes(registry, arguments, stored, folder)
        saved = folder / f"{prefix or ''}{SAVE_KEYS.ADATA_FNAME}"
        if adata is None and saved.is_file():
            adata = read(saved)
        if isinstance(adata, AnnData):
            adata = with_genes(adata, registry)
            cls.setup_anndata(adata, source_registry=registry, **registry["setup_args"])
            model = cls(adata, **arguments)
        else:
            model = cls(registry=registry, **arguments)
        model.init_params_ = params
        model.module.load_state_dict(stored.weights)
        model._take_over(attributes, folder)
        model.to_device(where)
        model.module.eval()
        return model

    @classmethod
    def _made_with(cls, attributes: dict[str, Any], folder: Path) -> tuple[dict[str, Any], ...]:
        """Take from a file's attributes registry and arguments of this class; raise on others."""
        registry = attributes.pop("registry_", None)
        if not isinstance(registry, dict) or "init_params_" not in attributes:
            raise InputError(f"The model in {folder} is damaged: it lacks what it was made with.")
        if registry.get("model_name") != cls.__name__:
            raise InputError(
                f"{folder} holds a model of class {registry.get('model_name')}, not {cls.__name__}."
            )
        params = attributes.pop("init_params_")
        try:
            arguments = {**params["non_kwargs"], **params["kwargs"].get("module_kwargs", {})}
        except (AttributeError, LookupError, TypeError) as error:
            raise InputError(
                f"The model in {folder} is damaged: it lacks its arguments."
            ) from error
        return registry, params, arguments

    @classmethod
    def _check_shapes(
        cls, registry: dict[str, Any], arguments: dict[str, Any], stored: Stored, folder: Path
    ) -> None:
        """Raise where a file's weights are not those of its network; that takes no memory."""
        try:
            with torch.device("meta"):
                module = cls(registry=registry, **arguments).module
                wanted = {k: tuple(v.shape) for k, v in module.state_dict().items()}
        except NotImplementedError:  # zuko's networks cannot be without memory
            wanted = _without_checking(arguments, stored)
        except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
            raise InputError(f"The model in {folder} is damaged: {error}") from error
        found = {k: tuple(v.shape) for k, v in stored.weights.items()}
        if found != wanted:
            wrong = sorted(set(found.items()) ^ set(wanted.items()))[0][0]
            raise InputError(
                f"The model in {folder} is damaged: '{wrong}' does not fit its network."
            )

    def _take_over(self, attributes: dict[str, Any], folder: Path) -> None:
        """Set attributes as they were saved; raise on those that no model has."""
        for name, value in attributes.items():
            default = vars(self).get(name)
            is_ours = name.endswith("_") and name[0] != "_" and not hasattr(type(self), name)
            if not is_ours or not (default is None or isinstance(value, type(default))):
                raise InputError(f"The model in {folder} is damaged: '{name}' is not what it was.")
            setattr(self, name, value)

    @staticmethod
    def load_registry(dir_path: str | Path, prefix: str | None = None) -> dict[str, Any]:
        """Return the registry saved with a model; see scvi-tools."""
        return read_model(as_path(dir_path, "dir_path"), prefix).attributes["registry_"]

    @staticmethod
    def view_setup_args(dir_path: str | Path, prefix: str | None = None) -> None:
        """Print the arguments of ``setup_anndata`` that a saved model was made with."""
        DataManager.view_setup_method_args(SavedModel.load_registry(dir_path, prefix))


def _to_write(adata: AnnData) -> AnnData:
    """Return an AnnData of the same parts: anndata makes text that it writes categories, and its file its own."""
    layers = {name: adata.layers[name] for name in checks.layer_names(adata)}
    parts = {name: dict(getattr(adata, name)) for name in ("uns", "obsm", "varm", "obsp", "varp")}
    found = AnnData(obs=_named(adata.obs), var=_named(adata.var), layers=layers, **parts)
    found.X = adata.X
    if adata.raw is not None:
        obs, varm = pd.DataFrame(index=adata.obs_names), dict(adata.raw.varm)
        found.raw = AnnData(adata.raw.X, obs=obs, var=_named(adata.raw.var), varm=varm)
    return found


def _named(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose index has no name that a column has, which anndata does not write."""
    return table.rename_axis(None) if table.index.name in table else table


def _without_checking(arguments: dict[str, Any], stored: Stored) -> dict[str, tuple[int, ...]]:
    """Return the shapes found, where no layer can take more memory than the file has weights."""
    found = {k: tuple(v.shape) for k, v in stored.weights.items()}
    widths = [1, *arguments.get("n_hidden", ())]
    most = sum(v.numel() for v in stored.weights.values())
    if any(one * other > most for one, other in pairwise(widths)):
        raise ValueError(f"layers of {widths[1:]} do not fit {most} weights")
    return found


def _device(accelerator: str, device: int | str) -> torch.device:
    """Return a device that is there."""
    try:
        return parse_device_args(
            accelerator=accelerator,
            devices=device,
            return_device="torch",
            validate_single_device=True,
        )[2]
    except (ValueError, MisconfigurationException) as error:
        raise InputError(
            f"No device for accelerator={accelerator!r}, device={device!r}: {error}"
        ) from error
