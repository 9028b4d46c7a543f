"""The TRVAE model class and its presets, and what other models of the package share with it."""

from trvae_sc.model._conditions import ConditionsMixin
from trvae_sc.model._model import TRVAE
from trvae_sc.model._presets import PRESETS
from trvae_sc.model._registration import RegistrationMixin
from trvae_sc.model._saving import SavingMixin

__all__ = [
    "PRESETS",
    "TRVAE",
    "ConditionsMixin",
    "RegistrationMixin",
    "SavingMixin",
]
