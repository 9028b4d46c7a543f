"""Data loading and training of TRVAE, behind scvi-tools' own ``train``."""

from trvae_sc.training._callbacks import BestWeights, Clock, levelled_off
from trvae_sc.training._data import (
    Batches,
    DataLoader,
    DataSplitter,
    check_splitting,
    row_numbers,
    seed_of,
)
from trvae_sc.training._history import log_epoch
from trvae_sc.training._manager import DataManager
from trvae_sc.training._plan import MONITORS, TrainingPlan
from trvae_sc.training._run import (
    NOT_STARTED,
    EpochCheckpoint,
    TrainRunner,
    as_callbacks,
    check_trainer,
)

__all__ = [
    "MONITORS",
    "NOT_STARTED",
    "Batches",
    "BestWeights",
    "Clock",
    "DataLoader",
    "DataManager",
    "DataSplitter",
    "EpochCheckpoint",
    "TrainRunner",
    "TrainingPlan",
    "as_callbacks",
    "check_splitting",
    "check_trainer",
    "levelled_off",
    "log_epoch",
    "row_numbers",
    "seed_of",
]
