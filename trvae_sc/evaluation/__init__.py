"""Held-out combinations: what a method would have scored on cells it never saw."""

from trvae_sc.evaluation._benchmark import benchmark
from trvae_sc.evaluation._holdouts import Holdout, holdouts, parse_holdouts
from trvae_sc.evaluation._results import Best, Results
from trvae_sc.evaluation._scores import (
    N_TOP,
    ceiling,
    export_cells,
    gene_table,
    interval_table,
    predicted_log_values,
    score,
)
from trvae_sc.evaluation._select import select
from trvae_sc.evaluation._tasks import (
    TOTAL_COLUMN,
    Task,
    check_counts,
    check_leaks,
    looks_like_counts,
    prepare_task,
    subsample,
    training_data,
    variable_genes,
    with_totals,
)
from trvae_sc.expression import Keys

__all__ = [
    "N_TOP",
    "TOTAL_COLUMN",
    "Best",
    "Holdout",
    "Keys",
    "Results",
    "Task",
    "benchmark",
    "ceiling",
    "check_counts",
    "check_leaks",
    "export_cells",
    "gene_table",
    "holdouts",
    "interval_table",
    "looks_like_counts",
    "parse_holdouts",
    "predicted_log_values",
    "prepare_task",
    "score",
    "select",
    "subsample",
    "training_data",
    "variable_genes",
    "with_totals",
]
