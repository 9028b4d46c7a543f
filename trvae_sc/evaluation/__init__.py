"""Held-out combinations: what a method would have scored on cells it never saw."""

from trvae_sc.checks import TOTAL_COLUMN
from trvae_sc.evaluation._benchmark import benchmark
from trvae_sc.evaluation._ceiling import CEILING, ceiling
from trvae_sc.evaluation._checks import check_leaks
from trvae_sc.evaluation._compare import Comparison, compare
from trvae_sc.evaluation._genes import GeneChoice, choose_genes, variable_genes
from trvae_sc.evaluation._holdouts import Holdout, holdouts, parse_holdouts
from trvae_sc.evaluation._labels import predict_labels
from trvae_sc.evaluation._results import Best, Results
from trvae_sc.evaluation._scores import (
    N_TOP,
    SCORED,
    export_cells,
    gene_table,
    interval_table,
    predicted_log_values,
    score,
)
from trvae_sc.evaluation._select import select
from trvae_sc.evaluation._tasks import Task, check_counts, prepare_task, subsample, training_data
from trvae_sc.expression import Keys

__all__ = [
    "CEILING",
    "N_TOP",
    "SCORED",
    "TOTAL_COLUMN",
    "Best",
    "Comparison",
    "GeneChoice",
    "Holdout",
    "Keys",
    "Results",
    "Task",
    "benchmark",
    "ceiling",
    "check_counts",
    "check_leaks",
    "choose_genes",
    "compare",
    "export_cells",
    "gene_table",
    "holdouts",
    "interval_table",
    "parse_holdouts",
    "predict_labels",
    "predicted_log_values",
    "prepare_task",
    "score",
    "select",
    "subsample",
    "training_data",
    "variable_genes",
]
