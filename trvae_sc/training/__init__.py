"""Data loading and training of TRVAE, behind scvi-tools' own ``train``."""

from trvae_sc.training._data import (
    DataLoader,
    DataSplitter,
    default_seed,
    row_numbers,
)
from trvae_sc.training._dataset import DataManager
from trvae_sc.training._files import is_file
from trvae_sc.training._plan import TrainingPlan
from trvae_sc.training._run import BestWeights, EpochCheckpoint, TrainRunner

__all__ = [
    "BestWeights",
    "DataLoader",
    "DataManager",
    "DataSplitter",
    "EpochCheckpoint",
    "TrainRunner",
    "TrainingPlan",
    "default_seed",
    "is_file",
    "row_numbers",
]
