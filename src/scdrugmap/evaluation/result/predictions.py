"""The frames of a result, and the test predictions of one contender drawn from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pandas as pd

from scdrugmap._cohort import Cohort
from scdrugmap._metrics import Metric
from scdrugmap.evaluation.result.levels import ANSWERED, aggregate, level_groups, no_hit
from scdrugmap.evaluation.result.statistics import MIN_GROUPS, MIN_STUDIES, blocks_of, resampled, strata_of
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
    common
        ``(n,)`` log-odds on a scale that the folds share, or ``None`` where a ranking compares one fold only.
    unit
        What the groups are.
    fold_mean
        Whether the estimate is the mean of the folds, weighted by their test cells.
    n_abstained
        Cells that were asked about and got no answer.
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
    common: np.ndarray | None = None
    unit: str = "samples"
    fold_mean: bool = False
    n_abstained: int = 0

    @property
    def n_test(self) -> float:
        """Cells (samples, patients) in an average test set."""
        return len(self.y) / self.n_folds if self.n_folds else np.nan

    def all_sensitive(self) -> Predictions:
        """Return the same test cells, each called sensitive with certainty."""
        common = None if self.common is None else np.zeros_like(self.common)
        return replace(
            self, score=np.ones_like(self.score), pred=np.ones_like(self.pred), common=common, fold_mean=False
        )

    @cached_property
    def strata(self) -> np.ndarray:
        """Class of each group; left-out groups, and groups with cells of both classes, are of one kind."""
        if self.cross:
            return np.zeros(self.n_groups, dtype=np.int64)
        return strata_of(self.y, self.group, self.n_groups)

    @property
    def least(self) -> int:
        """Groups that an interval needs."""
        return MIN_STUDIES if self.cross else MIN_GROUPS

    @property
    def calls_only(self) -> bool:
        """Whether the scores are calls of 0 or 1 (or 0.5 for no answer) and no probabilities."""
        return bool(np.isin(self.score, (0.0, 0.5, 1.0)).all())

    def fold_values(self, metrics: Sequence[Metric]) -> dict[str, np.ndarray]:
        """Return ``(folds,)`` values per metric."""
        each = np.eye(self.n_folds)
        return resampled(self.y, self.score, self.pred, self.fold, metrics, each, self.fold)

    def estimate(self, metrics: Sequence[Metric], weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return ``(b,)`` estimates per metric under group weights ``(b, groups)``.

        Left-out groups count alike: the mean of the folds in which the metric is defined. Otherwise the test cells of
        all folds are taken together. A ranking compares cells of one fold only, for the scores of two heads have no
        common scale; samples and patients, of which a fold holds few, are ranked over all folds by ``common``.
        """
        if self.cross:
            folds = self.fold_values(metrics)
            return {n: weighted_mean(np.broadcast_to(v, weights.shape), weights) for n, v in folds.items()}
        if self.fold_mean:
            return self._mean_of_folds(metrics, weights)
        ranking = [m for m in metrics if m.kind == "ranking" and self.common is not None]
        rest = [m for m in metrics if m not in ranking]
        out = resampled(self.y, self.score, self.pred, self.group, rest, weights, self.fold)
        if ranking:
            assert self.common is not None
            out |= resampled(self.y, self.common, self.pred, self.group, ranking, weights)
        return {m.name: out[m.name] for m in metrics}

    def _mean_of_folds(self, metrics: Sequence[Metric], weights: np.ndarray) -> dict[str, np.ndarray]:
        cells = np.zeros((self.n_groups, self.n_folds))
        np.add.at(cells, (self.group, self.fold), 1)
        held = weights @ cells  # (b, folds)
        parts = {m.name: np.full(held.shape, np.nan) for m in metrics}
        for k in range(self.n_folds):
            mine = self.fold == k
            if mine.any():
                here, local = np.unique(self.group[mine], return_inverse=True)
                values = resampled(self.y[mine], self.score[mine], self.pred[mine], local, metrics, weights[:, here])
                for name, value in values.items():
                    parts[name][:, k] = value
        return {name: weighted_mean(values, held) for name, values in parts.items()}

    def left_out(self, metrics: Sequence[Metric]) -> dict[str, tuple[np.ndarray, np.ndarray, int]]:
        """Return per metric the estimates without each block of groups, the class of each, and the number of groups.

        Of left-out groups, those in which the metric is undefined take no part.
        """
        if self.cross:
            out = {}
            for name, values in self.fold_values(metrics).items():
                known = values[np.isfinite(values)]
                rest = (known.sum() - known) / max(len(known) - 1, 1)
                out[name] = rest, np.zeros(len(known), dtype=np.int64), len(known)
            return out
        block = blocks_of(self.strata)
        n = int(block.max()) + 1 if len(block) else 0
        first = np.unique(block, return_index=True)[1]
        weights = (block[None, :] != np.arange(n)[:, None]).astype(float)
        return {k: (v, self.strata[first], self.n_groups) for k, v in self.estimate(metrics, weights).items()}


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
        """Gather the folds of one contender; groups are samples (patients, studies), or the fold where groups are left out."""
        key = (level, *units["unit"])
        if key not in self._held:
            self._held[key] = self._gather(units, level)
        return self._held[key]

    def pair(self, units: Sequence[pd.DataFrame], level: str) -> list[Predictions]:
        """Gather two contenders over the same folds on the same cells: at the level ``"answered"`` those that both answered."""
        if level != ANSWERED:
            return [self.of(u, level) for u in units]
        numbers = [[int(n) for n in u["unit"]] for u in units]
        both = np.logical_and(*(self.rows(n, "pred") >= 0 for n in numbers))
        return [self._gather(u, level, both) for u in units]

    def _gather(self, units: pd.DataFrame, level: str, chosen: np.ndarray | None = None) -> Predictions:
        numbers = [int(u) for u in units["unit"]]
        row, y, score, pred = (self.rows(numbers, k) for k in ("row", "y", "score", "pred"))
        lengths = [self._slices[u].stop - self._slices[u].start for u in numbers]
        fold = np.repeat(np.arange(len(numbers)), lengths)
        cross = bool((units["setting"] == "cross").all())
        answered = pred >= 0
        n_abstained, pred = int((~answered).sum()), no_hit(y, pred)
        if level == ANSWERED:
            chosen = answered if chosen is None else chosen
            row, y, score, pred, fold = (v[chosen] for v in (row, y, score, pred, fold))
        codes, unit = self._group_codes(units, level)
        group, reason, common = (fold if cross else codes[row]), "", None
        if level in self._level_codes:
            codes, n = self._level_codes[level]
            known = codes[row] >= 0
            place = fold[known] * n + codes[row][known]
            first = np.unique(place, return_index=True)[1]
            y, score, pred, _, reason = aggregate(y[known], score[known], place)
            group, fold = group[known][first], fold[known][first]
            common = None if cross else self._common(units, score, fold)
        names, group = np.unique(group, return_inverse=True)
        majority = bool((units["model"] == "majority").all() and (units["strategy"] == "baseline").all())
        return Predictions(
            y, score, pred, group, fold, len(names), len(numbers), cross, reason, common,
            "left-out groups" if cross else unit, majority, n_abstained,
        )  # fmt: skip

    def _group_codes(self, units: pd.DataFrame, level: str) -> tuple[np.ndarray, str]:
        """Code of the group of each cell that an interval rests on, and its name: never finer than what the split keeps whole."""
        if (level == "patient" or (units["split"] == "patient").all()) and "patient" in self._level_codes:
            return self._level_codes["patient"][0], "patients"
        if (units["split"] == "study").all():
            return pd.factorize(self.cells.study)[0], "studies"
        return self.cells.sample_codes, "samples"

    def _common(self, units: pd.DataFrame, score: np.ndarray, fold: np.ndarray) -> np.ndarray:
        """Log-odds less those of the training cells of each fold.

        Folds differ in their share of sensitive training cells, which is low where that of the test cells is high: without
        the correction, samples of different folds would be ranked backwards by chance.
        """
        share = np.array([self.cells.y[rows].mean() for rows in self._train_of(units)])
        with np.errstate(divide="ignore"):
            odds = np.log(score.astype(float)) - np.log1p(-score.astype(float))
            # Scores are stored as float32: what differs by less is a tie.
            return np.round(odds - (np.log(share) - np.log1p(-share))[fold], 4)

    @cached_property
    def _train_rows(self) -> Mapping[tuple[str, ...], np.ndarray]:
        return {
            (*(getattr(p, k) for k in CATEGORY), fold.name): fold.train for p in self.partitions for fold in p.folds
        }

    def _train_of(self, units: pd.DataFrame) -> list[np.ndarray]:
        """Training rows of each unit."""
        places = units[[*CATEGORY, "fold"]].itertuples(index=False, name=None)
        return [self._train_rows[place] for place in places]

    def n_folds(self, place: Sequence[str]) -> int:
        """Folds of a category that can be evaluated."""
        return sum(
            not f.reason
            for p in self.partitions
            if tuple(getattr(p, k) for k in CATEGORY) == tuple(place)
            for f in p.folds
        )

    def n_train(self, units: pd.DataFrame, level: str) -> float:
        """Cells (samples, patients) in an average training set."""
        if level not in self._level_codes:
            return float(units["n_train"].mean())
        codes, _ = self._level_codes[level]
        sizes = [np.unique(codes[rows]) for rows in self._train_of(units)]
        return float(np.mean([(s >= 0).sum() for s in sizes]))
