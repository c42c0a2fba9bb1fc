"""What one worker does with one task: fit on training cells, predict test cells, say how it went."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from scdrugmap._cohort import call
from scdrugmap._logging import get_logger
from scdrugmap.evaluation.grid.contenders import (
    BLOCK,
    Contender,
    Head,
    fit_predict,
    probe_halves,
    rule_scores,
    sample_probe,
)
from scdrugmap.evaluation.grid.store import Outcome, RunStore, Unit
from scdrugmap.evaluation.splits.folds import Fold, Partition

#: Strategy of the units that predict the sample instead of the response.
PROBE = "sample_probe"
#: Its classifier; another name than in version 0.1, which looked at all features.
PROBE_HEAD = "lda on components"


@dataclass(frozen=True, eq=False)
class Task:
    """Work that is done in one go: some folds of one partition for one contender and some heads."""

    contender: Contender
    heads: tuple[Head, ...]
    partition: Partition
    folds: tuple[int, ...]
    units: tuple[Unit, ...]
    probe: bool = False


def run_task(
    task: Task,
    *,
    y: np.ndarray,
    sample: np.ndarray,
    study: np.ndarray,
    counts: Any,
    genes: Any,
    batch: np.ndarray,
    seed: int,
    store: str | None,
) -> list[Outcome] | str:
    """Train and predict; returns the predictions of every unit, or the message of the error that stopped it."""
    start = time.perf_counter()
    data = (counts, genes, batch)
    try:
        parts = [_probe(task, sample, data, seed)] if task.probe else _predictions(task, y, (sample, study), data, seed)
    except Exception as error:  # noqa: BLE001 - one failing unit must not end the grid; the caller warns
        get_logger().info("unit failed", exc_info=True)
        return f"{type(error).__name__}: {error}"
    manifest = _manifest(task, seed, (time.perf_counter() - start) / len(task.units))
    outcomes = [
        Outcome(unit, *part, manifest=manifest | unit.where) for unit, part in zip(task.units, parts, strict=True)
    ]
    if store is not None:
        writer = RunStore(store)
        for outcome in outcomes:
            writer.write(outcome)
    return outcomes


Part = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


Data = tuple[Any, Any, np.ndarray]


def _predictions(task: Task, y: np.ndarray, groups: tuple[np.ndarray, np.ndarray], data: Data, seed: int) -> list[Part]:
    """Predict every fold with every head; ``groups`` are the sample and the study of each cell."""
    contender, (sample, study) = task.contender, groups
    folds = [task.partition.folds[i] for i in task.folds]
    scores: list[np.ndarray] = []
    if contender.kind == "rule":
        scores = [rule_scores(contender.model, y[f.train], f.test, seed) for f in folds]
    elif contender.kind == "custom":
        assert contender.predict is not None
        scores = [np.asarray(contender.predict(f.train, f.test, seed), dtype=float) for f in folds]
    else:
        rows, local = _taking_part(folds, len(y))
        # Nothing is copied where all cells take part, as they mostly do.
        at: Any = slice(None) if len(rows) == len(y) else rows
        if contender.kind == "array":
            assert contender.X is not None
            X = contender.X[at]
        else:
            X = fit_transform(contender, data, folds[0].train, rows, seed)
        for head in task.heads:
            scores += fit_predict(
                X, y[at], local, head, groups=sample[at], seed=seed, adapt=contender.adapt, study=study[at]
            )
    tests = [f.test for f in folds] * max(len(task.heads), 1)
    # A chat model may refuse a cell; whatever else predicts has an answer for each.
    asked = contender.strategy == "prompt"
    return [_part(test, y, score, may_abstain=asked) for test, score in zip(tests, scores, strict=True)]


def _taking_part(folds: Sequence[Fold], n: int) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """Rows of any fold, and training and test cells of each fold as positions in them."""
    held = np.zeros(n, dtype=bool)
    for f in folds:
        held[f.train] = held[f.test] = True
    if held.all():
        return np.arange(n), [(f.train, f.test) for f in folds]
    rows = np.flatnonzero(held)
    return rows, [(np.searchsorted(rows, f.train), np.searchsorted(rows, f.test)) for f in folds]


def _part(test: np.ndarray, y: np.ndarray, score: np.ndarray, *, may_abstain: bool = False) -> Part:
    """Predictions of one fold; a cell without an answer is called -1, at even odds."""
    silent = np.isnan(score) if may_abstain and len(score) == len(test) else np.zeros(len(score), dtype=bool)
    if len(score) != len(test) or not np.isfinite(score[~silent]).all():
        raise ValueError("the predictions hold missing values or have another length than the test cells")
    if silent.all():
        raise ValueError(f"none of {len(test)} test cells was answered")
    score = np.where(silent, 0.5, score).astype(np.float32)
    return test.astype(np.int64), y[test].astype(np.int64), score, np.where(silent, -1, call(score))


def _probe(task: Task, sample: np.ndarray, data: Data, seed: int) -> Part:
    contender, rows = task.contender, task.partition.rows
    train, test = probe_halves(sample[rows], seed)
    if len(test) == 0:
        return (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.int64))
    if contender.kind == "array":
        assert contender.X is not None
        asked = np.sort(np.concatenate([train, test]))
        X, groups = contender.X[rows[asked]], sample[rows[asked]]
        called = sample_probe(X, groups, np.searchsorted(asked, train), np.searchsorted(asked, test))
    else:
        X = fit_transform(contender, data, rows[train], rows, seed)
        called = sample_probe(X, sample[rows], train, test)
    return rows[test], sample[rows][test].astype(np.int64), np.full(len(test), np.nan, np.float32), called


def fit_transform(contender: Contender, data: Data, train: np.ndarray, rows: np.ndarray, seed: int) -> np.ndarray:
    """Fit a representation on training rows only and return it for ``rows``, ``(len(rows), d)`` float32.

    ``data`` holds the counts, their genes and the batch of each cell.
    """
    from scdrugmap.embedding.embed import fit_model
    from scdrugmap.embedding.source import CountSource
    from scdrugmap.models import registry

    options = dict(contender.options)
    options.setdefault("seed", seed)
    model: Any = registry.get(contender.model)(**options)
    counts, genes, batch = data
    source = CountSource(counts)
    fit_model(model, source.take(train), genes, batch[train])
    parts = [rows[i : i + BLOCK] for i in range(0, len(rows), BLOCK)]
    return np.concatenate([np.asarray(model.transform(source[part], genes), dtype=np.float32) for part in parts])


@lru_cache
def _versions() -> dict[str, str]:
    """Versions of what computes; they are read from files, and a grid has thousands of units."""
    from importlib.metadata import PackageNotFoundError, version

    from scdrugmap import __version__

    versions = {"scdrugmap": __version__}
    for package in ("numpy", "scipy", "scikit-learn", "torch", "anndata"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _manifest(task: Task, seed: int, seconds: float) -> dict[str, Any]:
    return {
        "versions": dict(_versions()),
        "representation_sha256": task.contender.digest,
        "partition_sha256": task.partition.hash,
        "heads_sha256": hashlib.sha256("".join(h.digest for h in task.heads).encode()).hexdigest(),
        "seed": seed,
        "device": _device(),
        "seconds": seconds,
        "memory_bytes": _peak_memory(),
        "note": task.contender.note,
        **task.contender.manifest,
    }


def _device() -> str:
    from scdrugmap.settings import settings

    return settings.device


def _peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes."""
    try:
        import resource
        import sys

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    except ImportError:  # Windows
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
