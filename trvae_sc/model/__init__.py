"""The TRVAE model class and its presets, and what other models of the package share with it."""

from trvae_sc.model._alignment import align_genes
from trvae_sc.model._arguments import check_default_type, check_widths
from trvae_sc.model._codes import checked_codes, per_code
from trvae_sc.model._decode import decoded
from trvae_sc.model._exemplars import check_exemplars, check_labels, exemplar_notes
from trvae_sc.model._fields import KEYS, fields
from trvae_sc.model._model import TRVAE
from trvae_sc.model._predict import Request, check_weights, source_rows
from trvae_sc.model._presets import PRESETS
from trvae_sc.model._record import combination_notes, combination_table, interruption_notes
from trvae_sc.model._registration import NOT_TRAINED, REGISTRATION, AnnDataModel
from trvae_sc.model._saving import SavedModel

__all__ = [
    "KEYS",
    "NOT_TRAINED",
    "PRESETS",
    "REGISTRATION",
    "TRVAE",
    "AnnDataModel",
    "Request",
    "SavedModel",
    "align_genes",
    "check_default_type",
    "check_exemplars",
    "check_labels",
    "check_weights",
    "check_widths",
    "checked_codes",
    "combination_notes",
    "combination_table",
    "decoded",
    "exemplar_notes",
    "fields",
    "interruption_notes",
    "per_code",
    "source_rows",
]
