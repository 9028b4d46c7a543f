"""The ``save`` and ``load`` methods."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from anndata import AnnData
from scvi.model.base import BaseModelClass

from trvae_sc.model import _io, _setup


class SavingMixin(BaseModelClass):
    """Models are written completely or not at all, and read without running code."""

    def _get_user_attributes(self) -> list[tuple[str, Any]]:
        """Return the attributes, those that are saved as types that load without running code.

        scvi-tools asks for properties as well, and fails where one raises.
        """
        return _io.plain_attributes(list(vars(self).items()))

    def save(self, dir_path: str | Path, *, overwrite: bool = False, **kwargs: Any) -> None:
        """Write the model to a folder, completely or not at all.

        Parameters
        ----------
        dir_path
            Folder.
        overwrite
            Replace a model that is there.
        **kwargs
            Passed to :meth:`scvi.model.base.BaseModelClass.save` (``prefix``, ``save_anndata``).

        Raises
        ------
        ValueError
            `dir_path` exists and `overwrite` is False.
        NotADirectoryError
            `dir_path`, or a folder it would be in, is a file.
        """
        _io.save_atomically(super().save, Path(dir_path), overwrite=overwrite, **kwargs)

    @classmethod
    def load(
        cls,
        dir_path: str | Path,
        adata: AnnData | Literal[False] | None = None,
        *,
        prefix: str | None = None,
        **kwargs: Any,
    ) -> Self:
        """Read a model from a folder.

        The file is read as data: nothing stored in it is executed.

        Parameters
        ----------
        dir_path
            Folder that :meth:`save` wrote.
        adata
            Data to attach, with the genes of the model in any order; None: the data saved with the
            model, if any; False: none (then pass data to the methods).
        prefix
            Prefix of the file names.
        **kwargs
            Passed to :meth:`scvi.model.base.BaseModelClass.load` (``accelerator``, ``device``).

        Raises
        ------
        FileNotFoundError
            No model there.
        ValueError
            The file is damaged, holds something else, or comes from a newer version.
        """
        if adata is not None and adata is not False:
            _setup.check_type(adata)
        content = _io.read_file(Path(dir_path), prefix)
        if isinstance(adata, AnnData):
            adata = _io.prepare_for_load(content, adata)
        model = super().load(str(dir_path), adata, prefix=prefix, **kwargs)
        model._finish_loading()
        return model

    def _finish_loading(self) -> None:
        """Restore what the file holds in another form."""
        self.history_ = _io.restore_history(self.history_)
