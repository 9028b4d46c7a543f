"""What a column of ``obs`` is used for: the condition and the labels can be nothing else besides."""

from __future__ import annotations

from collections.abc import Sequence

from trvae_sc.errors import InputError

#: What to do where there are no labels to compare.
ONE_LABEL = "For cells of one type make one that is the same in all."
_LABELS = "labels are what does not change between conditions, such as the cell type. Name another column."
_REPLICATES = (
    "replicates are donors (animals, cultures), within which labels and conditions differ. Name a column with "
    "these, or leave replicate_key out."
)


def as_keys(keys: str | Sequence[str] | None) -> list[str] | None:
    """Return columns as a list, of one or several."""
    if keys is None or isinstance(keys, str):
        return None if keys is None else [keys]
    if not isinstance(keys, Sequence):
        raise InputError(
            f"Covariates are {keys!r}; name a column of adata.obs, or several in a list."
        )
    return list(keys)


def check_roles(
    condition_key: Sequence[str],
    labels_key: str | None = None,
    **others: str | Sequence[str] | None,
) -> None:
    """Raise on a column that is the condition or the label, and something else besides.

    `others` are ``batch_key``, ``replicate_key`` and the keys of covariates, each a column or several.
    """
    if labels_key is not None and not isinstance(labels_key, str):
        raise InputError(f"labels_key is {labels_key!r}; name one column of adata.obs, as text.")
    taken = {key: "condition_key" for key in condition_key if isinstance(key, str)}
    if labels_key is not None:
        if labels_key in taken:
            raise InputError(f"labels_key and condition_key are both '{labels_key}': {_LABELS}")
        taken[labels_key] = "labels_key"
    for name, given in others.items():
        if given is not None and not isinstance(given, str) and not name.endswith("_keys"):
            raise InputError(f"{name} is {given!r}; name one column of adata.obs, as text.")
        for key in as_keys(given) or ():
            if isinstance(key, str) and key in taken:
                why = _REPLICATES if name == "replicate_key" else _nuisance(name, taken[key])
                raise InputError(f"{name} and {taken[key]} are both '{key}': {why}")


def _nuisance(name: str, role: str) -> str:
    """Return why a nuisance is not the condition or the label, in words."""
    one, what = ("a batch", "batches") if name == "batch_key" else ("a covariate", "covariates")
    other = "condition" if role == "condition_key" else "label"
    return (
        f"what {one} changes and what the {other} changes could not be told apart. Name a column with {what}, "
        f"or leave {name} out."
    )
