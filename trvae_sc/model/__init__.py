"""The TRVAE model class and its presets."""

from trvae_sc.model._model import TRVAE
from trvae_sc.model._presets import PRESETS

__all__ = ["PRESETS", "TRVAE"]
