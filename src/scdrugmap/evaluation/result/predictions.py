"""The frames of a result, and the test predictions of one contender drawn from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pandas as pd

from scdrugmap._cohort import Cohort
from scdrugmap._metrics import Metric
from scdrugmap.evaluation.result.levels import aggregate, level_groups
from scdrugmap.evaluation.result.statistics import resampled
from scdrugmap.evaluation.splits.folds import Partition

CATEGORY = ["setting", "split", "by", "category"]


@dataclass(eq=False)
class Predictions:
    """Test predictions of one contender in one category, fold after fold, at one level.

    Parameters
    ----------
    y, score, pred
        ``(n,)`` labels, P(sensitive) and calls of cells, samples or patients.
    group, fold
        ``(n,)`` codes from 0 of what a bootstrap resamples, and of the fold.
    n_groups, n_folds
        Their numbers.
    cross
        Whether groups are left out one by one: folds then count alike.
    reason
        Why there is no value, or empty.
    """

    y: np.ndarray
    score: np.ndarray
    pred: np.ndarray
    group: np.ndarray
    fold: np.ndarray
    n_groups: int
    n_folds: int
    cross: bool
    reason: str = ""

    @property
    def n_test(self) -> float:
        """Cells (samples, patients) in an average test set."""
        return len(self.y) / self.n_folds if self.n_folds else np.nan

    def all_sensitive(self) -> Predictions:
        """Return the same test cells, each called sensitive with certainty."""
        return replace(self, score=np.ones_like(self.score), pred=np.ones_like(self.pred))

    def fold_values(self, metrics: Sequence[Metric]) -> dict[str, np.ndarray]:
        """Return ``(folds,)`` values per metric."""
        each = np.eye(self.n_folds)
        return resampled(self.y, self.score, self.pred, self.fold, metrics, each, self.fold)

    def estimate(self, metrics: Sequence[Metric], weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return ``(b,)`` estimates per metric under group weights ``(b, groups)``.

        Left-out groups count alike: the mean of the folds in which the metric is defined. Otherwise the test cells of
        all folds are taken together; a ranking compares cells of one fold only, for the scores of two heads have no
        common scale.
        """
        if self.cross:
            folds = self.fold_values(metrics)
            return {n: weighted_mean(np.broadcast_to(v, weights.shape), weights) for n, v in folds.items()}
        return resampled(self.y, self.score, self.pred, self.group, metrics, weights, self.fold)


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over the columns that are defined, ``(b, k)`` to ``(b,)``.

    Examples
    --------
    >>> import numpy as np
    >>> weighted_mean(np.array([[1.0, np.nan, 4.0]]), np.array([[2.0, 1.0, 1.0]])).tolist()
    [2.0]
    """
    w = np.isfinite(values) * weights
    total = w.sum(axis=1)
    return np.divide((np.nan_to_num(values) * w).sum(axis=1), total, out=np.full(len(values), np.nan), where=total > 0)


@dataclass(frozen=True, eq=False)
class Frames:
    """What the statistics of a result are computed from.

    Parameters
    ----------
    table, predictions, units, partitions
        As in :class:`~scdrugmap.evaluation.BenchmarkResult`.
    cells
        Labels and groups of all cells.
    """

    table: pd.DataFrame
    predictions: pd.DataFrame
    units: pd.DataFrame
    partitions: Sequence[Partition]
    cells: Cohort
    _held: dict[tuple[object, ...], Predictions] = field(default_factory=dict, repr=False)

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Rows of the table that score a model; sample probes are left out."""
        return self.table[self.table["setting"] != "probe"]

    @cached_property
    def scored_units(self) -> pd.DataFrame:
        """Units that score a model."""
        return self.units[self.units["setting"] != "probe"]

    @cached_property
    def _slices(self) -> dict[int, slice]:
        """Where the predictions of each unit stand."""
        unit = self.predictions["unit"].to_numpy()
        starts = np.flatnonzero(np.r_[True, unit[1:] != unit[:-1]]) if len(unit) else np.empty(0, int)
        return {int(unit[a]): slice(a, b) for a, b in zip(starts, np.r_[starts[1:], len(unit)], strict=True)}

    @cached_property
    def _columns(self) -> dict[str, np.ndarray]:
        return {k: self.predictions[k].to_numpy() for k in ("row", "y", "score", "pred")}

    @cached_property
    def _level_codes(self) -> dict[str, tuple[np.ndarray, int]]:
        """Code of each cell's sample and patient (-1 without one), and their number, in the order of the names."""
        out = {}
        for level in ("sample", "patient"):
            names = level_groups(self.cells, level)
            if names is not None:
                codes, known = pd.factorize(names, sort=True)
                out[level] = codes, len(known)
        return out

    def rows(self, units: Sequence[int], column: str) -> np.ndarray:
        """Return a column of the predictions of some units, one after the other."""
        return np.concatenate([self._columns[column][self._slices[int(u)]] for u in units])

    def of(self, units: pd.DataFrame, level: str) -> Predictions:
        """Gather the folds of one contender; groups are samples, or the fold itself where groups are left out."""
        key = (level, *units["unit"])
        if key not in self._held:
            self._held[key] = self._gather(units, level)
        return self._held[key]

    def _gather(self, units: pd.DataFrame, level: str) -> Predictions:
        numbers = [int(u) for u in units["unit"]]
        row, y, score, pred = (self.rows(numbers, k) for k in ("row", "y", "score", "pred"))
        lengths = [self._slices[u].stop - self._slices[u].start for u in numbers]
        fold = np.repeat(np.arange(len(numbers)), lengths)
        cross = bool((units["setting"] == "cross").all())
        group, reason = fold if cross else self.cells.sample_codes[row], ""
        if level in self._level_codes:
            codes, n = self._level_codes[level]
            known = codes[row] >= 0
            place = fold[known] * n + codes[row][known]
            first = np.unique(place, return_index=True)[1]
            y, score, pred, _, reason = aggregate(y[known], score[known], place)
            group, fold = group[known][first], fold[known][first]
        names, group = np.unique(group, return_inverse=True)
        return Predictions(y, score, pred, group, fold, len(names), len(numbers), cross, reason)

    @cached_property
    def _train_rows(self) -> Mapping[tuple[str, ...], np.ndarray]:
        return {
            (*(getattr(p, k) for k in CATEGORY), fold.name): fold.train for p in self.partitions for fold in p.folds
        }

    def n_train(self, units: pd.DataFrame, level: str) -> float:
        """Cells (samples, patients) in an average training set."""
        if level not in self._level_codes:
            return float(units["n_train"].mean())
        codes, _ = self._level_codes[level]
        places = units[[*CATEGORY, "fold"]].itertuples(index=False, name=None)
        sizes = [np.unique(codes[self._train_rows[place]]) for place in places]
        return float(np.mean([(s >= 0).sum() for s in sizes]))
