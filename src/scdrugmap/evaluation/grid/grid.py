"""The benchmark on arrays: partitions, contenders, run, table."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scdrugmap._cohort import Cohort
from scdrugmap._errors import InputError, UnknownNameError
from scdrugmap._files import write_json
from scdrugmap._metrics import Metric
from scdrugmap.evaluation.grid.contenders import Contender
from scdrugmap.evaluation.grid.runner import Counted, OnUnit, Run, plan, run
from scdrugmap.evaluation.grid.store import RunStore
from scdrugmap.evaluation.grid.table import build_table
from scdrugmap.evaluation.grid.work import Task
from scdrugmap.evaluation.result.files import UNIT
from scdrugmap.evaluation.result.levels import LEVELS
from scdrugmap.evaluation.result.result import BenchmarkResult
from scdrugmap.evaluation.splits.cells import data_card, make_partition
from scdrugmap.evaluation.splits.folds import Partition

SETTINGS = ("pooled", "cross")


def splits_of(settings: Sequence[str], splits: Sequence[str]) -> list[tuple[str, str]]:
    """Pair settings and splits: ``"auto"`` is samples when pooled and studies across; random cells only when pooled.

    Examples
    --------
    >>> splits_of(["pooled", "cross"], ["auto", "cell"])
    [('pooled', 'sample'), ('pooled', 'cell'), ('cross', 'study')]
    """
    pairs: list[tuple[str, str]] = []
    for setting in settings:
        if setting not in SETTINGS:
            raise UnknownNameError("setting", setting, SETTINGS)
        mine = [{"pooled": "sample", "cross": "study"}[setting] if s == "auto" else s for s in splits]
        mine = [s for s in mine if not (setting == "cross" and s == "cell")]
        if not mine:
            raise InputError(
                "split",
                "'cell' with setting='cross'",
                "a group to leave out",
                "use split='study', or setting='pooled'.",
            )
        pairs += [(setting, s) for s in dict.fromkeys(mine)]
    return list(dict.fromkeys(pairs))


def make_partitions(
    cells: Cohort,
    pairs: Sequence[tuple[str, str]],
    by: Sequence[str | None],
    *,
    n_folds: int,
    test_size: float | None,
    seed: int,
    cv: Any = None,
) -> list[Partition]:
    """Make the folds of every category, setting and split.

    Raises
    ------
    InputError
        If a column holds no category at all, or numbers or folds cannot be used.
    """
    if test_size is not None and not 0 < test_size < 1:
        raise InputError("test_size", test_size, "None or a share between 0 and 1", "pass 0.2, or leave it out.")
    if cv is not None:
        _check_cv(cv, pairs, test_size)
    if not isinstance(n_folds, int | np.integer) or n_folds < 2:
        raise InputError(
            "n_folds", n_folds, "an integer of 2 or more", "pass n_folds=10, or test_size=0.2 with split='cell'."
        )
    out = []
    for setting, split in pairs:
        for key in by:
            categories = cells.categories(key)
            if not categories:
                raise InputError(
                    "by", f"obs[{key!r}] without any value", "a column with categories", "pass another column."
                )
            for category, rows in categories:
                out.append(
                    make_partition(
                        cells, rows, setting=setting, split=split, by=key, category=category,
                        n_folds=n_folds, test_size=test_size if split == "cell" else None, seed=seed, cv=cv,
                    )
                )  # fmt: skip
    return out


def _check_cv(cv: Any, pairs: Sequence[tuple[str, str]], test_size: float | None) -> None:
    """Refuse folds of one's own beside what they stand in for."""
    if any(setting == "cross" for setting, _ in pairs):
        raise InputError(
            "cv", f"{cv!r} with setting='cross'", "setting='pooled'", "whole groups are left out one by one there."
        )
    if test_size is not None:
        raise InputError("cv", f"{cv!r} with test_size={test_size}", "one of the two", "leave test_size out.")
    if not isinstance(cv, str) and not hasattr(cv, "split"):
        raise InputError(
            "cv", cv, "a splitter of scikit-learn, or a column of obs with the name of each cell's fold",
            "pass sklearn.model_selection.StratifiedGroupKFold(5), or cv='fold'.",
        )  # fmt: skip


def run_grid(
    cells: Cohort,
    contenders: Sequence[Contender],
    partitions: Sequence[Partition],
    *,
    by: Sequence[str | None],
    metrics: Sequence[Metric],
    levels: Sequence[str] = ("cell", "sample"),
    counts: Counted | None = None,
    probe: bool = True,
    store: str | Path | None = None,
    seed: int = 0,
    n_jobs: int | None = None,
    info: Mapping[str, Any] | None = None,
    show_progress: bool | None = None,
    on_unit: OnUnit | None = None,
) -> BenchmarkResult:
    """Run every contender on every partition and return the result.

    Parameters
    ----------
    cells, contenders, partitions
        The grid.
    by
        Columns of the data card.
    metrics, levels
        What the table holds.
    counts
        For representations that are fitted per fold.
    probe
        Ask each representation for the sample.
    store
        Folder of the run store, or ``None``.
    seed, n_jobs, show_progress, on_unit
        As in :func:`~scdrugmap.evaluation.grid.runner.run`.
    info
        What goes into ``result.info``.
    """
    for level in levels:
        if level not in LEVELS:
            raise UnknownNameError("levels", level, LEVELS)
    if not contenders:
        raise InputError("models", "nothing to evaluate", "at least one model or baseline", "pass models=['pca'].")
    _check_names(contenders)
    levels = [level for level in levels if level != "patient" or cells.patient is not None]
    start = time.perf_counter()
    disk = None if store is None else RunStore(store)
    tasks = plan(contenders, partitions, cells, seed=seed, probe=probe)
    done = run(
        tasks, cells, counts=counts, store=disk, seed=seed, n_jobs=n_jobs, show_progress=show_progress, on_unit=on_unit
    )
    table = build_table(tasks, contenders, partitions, done, cells, metrics, levels)
    units, predictions = _units(tasks, done)
    about = dict(info or {}) | {
        "levels": list(levels), "seed": seed, "n_units": len(units), "n_resumed": done.n_resumed,
        "n_failed": len(done.failures), "seconds_grid": done.seconds, "seconds_total": time.perf_counter() - start,
    }  # fmt: skip
    frame = pd.DataFrame({"name": cells.names if cells.names is not None else np.arange(len(cells.y)).astype(str)})
    frame = frame.assign(y=cells.y, sample=cells.sample, study=cells.study)
    if cells.patient is not None:
        frame["patient"] = cells.patient
    result = BenchmarkResult(
        table, predictions, units, list(partitions), frame, data_card(cells, by), about, {m.name: m for m in metrics}
    )
    if disk is not None:
        record = {"info": about, "units": [u.key for t in tasks for u in t.units]}
        write_json(disk.path / "runs" / "last.json", record)
        result.to_parquet(disk.path / "result")
    return result


def _check_names(contenders: Sequence[Contender]) -> None:
    seen: set[tuple[str, str, str]] = set()
    for c in contenders:
        for head in c.heads:
            key = (c.name, c.strategy, head.name)
            if key in seen:
                raise InputError(
                    "models",
                    f"{c.name!r} ({c.strategy}, {head.name}) twice",
                    "one name per model and head",
                    "rename one.",
                )
            seen.add(key)


def _units(tasks: Sequence[Task], done: Run) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One row per finished unit, and the predictions of all of them."""
    records: list[dict[str, Any]] = []
    parts: dict[str, list[np.ndarray]] = {k: [] for k in ("unit", "row", "y", "score", "pred")}
    for task in tasks:
        sizes = {f.name: len(f.train) for f in task.partition.folds}
        for unit in task.units:
            outcome = done.outcomes.get(unit.key)
            if outcome is None:
                continue
            manifest = {k: v for k, v in outcome.manifest.items() if k not in unit.where}
            records.append(
                {"unit": len(records), "key": unit.key, **unit.where, "n_train": sizes.get(unit.fold, 0), **manifest}
            )
            if task.probe:
                continue
            parts["unit"].append(np.full(len(outcome.row), len(records) - 1, dtype=np.int32))
            for k in ("row", "y", "score", "pred"):
                parts[k].append(getattr(outcome, k))
    types = {"unit": np.int32, "row": np.int64, "y": np.int8, "score": np.float32, "pred": np.int8}
    columns = {k: np.concatenate(v).astype(types[k]) if v else np.empty(0, types[k]) for k, v in parts.items()}
    frame = pd.DataFrame(records) if records else pd.DataFrame(columns=list(UNIT))
    return frame, pd.DataFrame(columns)
