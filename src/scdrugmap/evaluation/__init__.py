"""Evaluation: splits that do not leak, metrics, intervals and tests, the resumable grid, the result."""

import lazy_loader as _lazy

from scdrugmap._metrics import METRICS, Metric, evaluate, resolve_metrics

_getattr, _dir, _names = _lazy.attach(
    __name__,
    submod_attrs={
        "splits.cells": ["data_card", "make_partition", "study_card"],
        "grid.contenders": ["Contender", "Head", "array_contender"],
        "splits.duplicates": ["content_hash", "duplicate_groups"],
        "grid.grid": ["make_partitions", "run_grid"],
        "result.result": ["BenchmarkResult"],
        "splits.folds": ["Fold", "Partition", "assign_folds", "cell_folds", "group_folds", "leave_one_out"],
        "result.significance": ["Ranking", "corrected_t", "holm", "permutation_pvalue", "rank_models"],
        "result.statistics": ["Interval"],
        "grid.store": ["Outcome", "RunStore", "Unit"],
    },
)
__getattr__ = _getattr
__all__ = [*_names, "METRICS", "Metric", "evaluate", "resolve_metrics"]


def __dir__() -> list[str]:
    return sorted(__all__)
