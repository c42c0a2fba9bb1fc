"""From predictions to the tidy result table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from scdrugmap._cohort import Cohort
from scdrugmap._metrics import Metric, evaluate
from scdrugmap.evaluation.grid.contenders import Contender
from scdrugmap.evaluation.grid.runner import Run
from scdrugmap.evaluation.grid.store import Outcome
from scdrugmap.evaluation.grid.work import PROBE, Task
from scdrugmap.evaluation.result.levels import ANSWERED, PLACE, aggregate, level_groups, no_hit
from scdrugmap.evaluation.splits.folds import Partition
from scdrugmap.heads.adapt import TRANSDUCTIVE

COUNTS = ["n_train", "n_test", "n_test_sensitive", "n_test_resistant", "n_train_samples", "n_test_samples"]
COLUMNS = [*PLACE, "group", "fold", "level", "metric", "value", *COUNTS, "reason", "note"]


def build_table(
    tasks: Sequence[Task],
    contenders: Sequence[Contender],
    partitions: Sequence[Partition],
    run: Run,
    cells: Cohort,
    metrics: Sequence[Metric],
    levels: Sequence[str],
) -> pd.DataFrame:
    """Make one row per model, strategy, head, setting, split, category, fold, level and metric.

    What cannot be evaluated is a row with NaN and a reason.
    """
    rows: list[dict[str, Any]] = []
    for task in tasks:
        folds = {f.name: f for f in task.partition.folds}
        for unit in task.units:
            common: dict[str, Any] = unit.where | {"note": _note(task.contender, task.partition)}
            silent = 0 if task.probe or unit.key not in run.outcomes else int((run.outcomes[unit.key].pred < 0).sum())
            if silent:
                common["note"] = "; ".join(n for n in (common["note"], f"{silent} test cells without an answer") if n)
            if unit.key in run.failures:
                if task.probe:
                    rows.append(common | _empty("sample_accuracy", f"failed: {run.failures[unit.key]}"))
                else:
                    rows += [common | _empty(m.name, f"failed: {run.failures[unit.key]}") for m in metrics]
                continue
            outcome = run.outcomes[unit.key]
            if task.probe:
                rows += [common | {"note": ""} | r for r in _probe_rows(outcome)]
            else:
                common |= _counts(folds[unit.fold].train, outcome, cells) | {"group": _group(task.partition, unit.fold)}
                rows += [common | r for r in _metric_rows(outcome, cells, metrics, levels)]
    rows += list(_reason_rows(contenders, partitions, metrics))
    table = pd.DataFrame(rows, columns=COLUMNS)
    for column in COUNTS:
        table[column] = table[column].fillna(0).astype(np.int64)
    for column in ("group", "reason", "note"):
        table[column] = table[column].fillna("")
    table["value"] = table["value"].astype(float)
    return _ordered(table, contenders, partitions)


def _group(partition: Partition, fold: str) -> str:
    return fold if partition.setting == "cross" else ""


def _note(contender: Contender, partition: Partition) -> str:
    # A study that stands on both sides is scaled by its training cells.
    looks = contender.adapt == "coral" or (
        contender.adapt != "none" and (partition.setting == "cross" or partition.split == "study")
    )
    return "; ".join(n for n in (*partition.notes, contender.note, TRANSDUCTIVE if looks else "") if n)


def _empty(metric: str, reason: str) -> dict[str, Any]:
    return {"level": "cell", "metric": metric, "value": np.nan, "reason": reason}


def _counts(train: np.ndarray, outcome: Outcome, cells: Cohort) -> dict[str, int]:
    codes = cells.sample_codes
    return {
        "n_train": len(train),
        "n_test": len(outcome.row),
        "n_test_sensitive": int(outcome.y.sum()),
        "n_test_resistant": int((1 - outcome.y).sum()),
        "n_train_samples": len(np.unique(codes[train])),
        "n_test_samples": len(np.unique(codes[outcome.row])),
    }


def _metric_rows(
    outcome: Outcome, cells: Cohort, metrics: Sequence[Metric], levels: Sequence[str]
) -> Iterator[dict[str, Any]]:
    answered = outcome.pred >= 0
    for level in [*levels, *([] if answered.all() else [ANSWERED])]:
        y, score, pred, reason = outcome.y, outcome.score, no_hit(outcome.y, outcome.pred), ""
        if level == ANSWERED:
            y, score, pred = y[answered], score[answered], pred[answered]
        groups = level_groups(cells, level)
        if groups is not None:
            y, score, pred, _, reason = aggregate(y, score, groups[outcome.row])
        values = {m.name: (np.nan, reason) for m in metrics} if reason else evaluate(y, score, pred, list(metrics))
        for name, (value, why) in values.items():
            yield {"level": level, "metric": name, "value": value, "reason": why}


def _probe_rows(outcome: Outcome) -> Iterator[dict[str, Any]]:
    truth, called = outcome.y, outcome.pred
    if len(truth) == 0:
        yield _empty("sample_accuracy", "fewer than two samples of four cells")
        return
    codes = np.unique(truth)
    accuracy = float(np.mean([(called[truth == c] == c).mean() for c in codes]))
    common = {"level": "cell", "n_test": len(truth), "n_test_samples": len(codes), "reason": ""}
    yield common | {"metric": "sample_accuracy", "value": accuracy}
    yield common | {"metric": "sample_chance", "value": 1 / len(codes)}


def _reason_rows(
    contenders: Sequence[Contender], partitions: Sequence[Partition], metrics: Sequence[Metric]
) -> Iterator[dict[str, Any]]:
    """One row per metric for every category or fold that cannot be evaluated."""
    for contender in contenders:
        for head in contender.heads:
            for p in partitions:
                place: dict[str, Any] = {
                    "model": contender.name, "strategy": contender.strategy, "head": head.name, "setting": p.setting,
                    "split": p.split, "by": p.by, "category": p.category, "note": _note(contender, p),
                }  # fmt: skip
                reason = p.reason or contender.reason
                if reason:
                    empty = place | {"fold": "", "n_test": 0}
                    yield from (empty | _empty(m.name, reason) for m in metrics)
                for fold in p.folds if not reason else ():
                    if fold.reason:
                        empty = place | {"fold": fold.name, "group": _group(p, fold.name)}
                        yield from (empty | _empty(m.name, fold.reason) for m in metrics)


def _ordered(table: pd.DataFrame, contenders: Sequence[Contender], partitions: Sequence[Partition]) -> pd.DataFrame:
    """Sort by contender, partition and fold in the order of the call, whatever was computed first."""
    first = {(c.name, c.strategy, h.name): i for i, c in reversed(list(enumerate(contenders))) for h in c.heads}
    where = {(p.setting, p.split, p.by, p.category): i for i, p in enumerate(partitions)}
    names = {c.name: i for i, c in reversed(list(enumerate(contenders)))}
    model = [
        (first.get((m, s, h), names[m]), s == PROBE)
        for m, s, h in zip(table["model"], table["strategy"], table["head"], strict=True)
    ]
    place = [
        where.get(key, len(where))
        for key in zip(table["setting"], table["split"], table["by"], table["category"], strict=True)
    ]
    order = pd.DataFrame({"m": [a for a, _ in model], "p": [b for _, b in model], "w": place})
    return table.iloc[order.sort_values(["m", "p", "w"], kind="stable").index].reset_index(drop=True)
