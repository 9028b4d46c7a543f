"""The TRVAE model class and its presets."""

from trvae_sc.model._model import TRVAE
from trvae_sc.model._presets import PRESETS
from trvae_sc.model._setup import check_columns

__all__ = ["PRESETS", "TRVAE", "check_columns"]
