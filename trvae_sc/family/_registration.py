"""Registration of data with the models on expression vectors."""

from __future__ import annotations

from typing import Any

from anndata import AnnData

from trvae_sc import checks
from trvae_sc.arguments import check_known
from trvae_sc.errors import InputError
from trvae_sc.expression import Keys
from trvae_sc.model import REGISTRATION, SavedModel, fields
from trvae_sc.training import DataManager


class TranslatorRegistration(SavedModel):
    """Registers one condition column, labels and values."""

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
        labels_key
            Column with the label (cell type) of each cell.
        layer
            Layer with the values; ``adata.X`` if None.
        total_counts_key
            Column with each cell's total over all its genes; their sum in `adata` if None.
        is_count
            Whether the values are raw counts.
        **kwargs
            Passed to scvi-tools' registration (``source_registry``).

        Raises
        ------
        InputError
            As :meth:`trvae_sc.TRVAE.setup_anndata`, before anything is written.
        """
        arguments = locals()
        check_known(kwargs, cls.setup_anndata, REGISTRATION)
        setup_method_args = cls._get_setup_method_args(**arguments)
        cls._register_fields(adata, setup_method_args, **kwargs)

    @classmethod
    def _register_fields(
        cls, adata: AnnData, setup_method_args: dict[str, Any], **kwargs: Any
    ) -> None:
        """Check the columns and register them."""
        given = setup_method_args["setup_args"]
        condition_key = given["condition_key"]
        if not isinstance(condition_key, str):
            raise InputError(
                f"condition_key is {condition_key!r}; {cls.__name__} takes one column. Join several "
                "into one, or use TRVAE."
            )
        unused = ("batch_key", "categorical_covariate_keys", "continuous_covariate_keys")
        names = ("condition_key", "labels_key", "layer", "total_counts_key", *unused)
        keys: dict[str, Any] = {name: given.get(name) for name in names}
        if kwargs.get("source_registry") is None:
            checks.check_columns(adata, keys)
        else:
            checks.check_other(adata, keys)
        manager = DataManager(fields=fields(**keys), setup_method_args=setup_method_args)
        manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    @property
    def keys(self) -> Keys:
        """Where the data are."""
        given = self.registry_["setup_args"]
        return Keys(**{name: given[name] for name in Keys._fields if name in given})
