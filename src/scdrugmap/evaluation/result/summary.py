"""Intervals and paired comparisons from the stored predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scdrugmap._cohort import Cohort
from scdrugmap.evaluation.result.levels import PLACE, aggregate, level_groups
from scdrugmap.evaluation.result.metrics import Metric
from scdrugmap.evaluation.result.statistics import (
    Interval,
    bootstrap_weights,
    corrected_t,
    holm,
    interval,
    permutation_pvalue,
    resampled,
)

if TYPE_CHECKING:
    from scdrugmap.evaluation.result.result import BenchmarkResult

#: Labels, scores, calls and group codes of the test cells.
Fold = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
NO_INTERVAL = Interval(np.nan, np.nan, np.nan, 0)
CATEGORY = ["setting", "split", "by", "category"]
CONTENDER = ["model", "strategy", "head"]


@dataclass(eq=False)
class Predictions:
    """Test predictions of one contender in one category, fold by fold, at one level."""

    folds: list[Fold]
    sizes: tuple[float, float]
    cross: bool
    reason: str = ""

    @classmethod
    def collect(cls, result: BenchmarkResult, cells: Cohort, units: pd.DataFrame, level: str) -> Predictions:
        """Gather the folds; groups are samples, or the fold itself where groups are left out one by one."""
        folds, reason = [], ""
        cross = len(units) > 0 and units["setting"].iloc[0] == "cross"
        rows_of = _slices(result)
        codes = cells.sample_codes
        for i, number in enumerate(units["unit"]):
            part = rows_of[int(number)]
            row, y, score, pred = part
            group = np.full(len(row), i) if cross else codes[row]
            names = level_groups(cells, level)
            if names is not None:
                first = pd.Series(group).groupby(pd.factorize(names[row], sort=True)[0]).first()
                y, score, pred, _, why = aggregate(y, score, names[row])
                group, reason = first[first.index >= 0].to_numpy(), reason or why
            folds.append((y, score, pred, group))
        train = float(units["n_train"].mean()) if len(units) else np.nan
        test = float(np.mean([len(f[0]) for f in folds])) if folds else np.nan
        return cls(folds, (train, test), cross, reason)

    @cached_property
    def groups(self) -> np.ndarray:
        """Codes of all groups, sorted."""
        return np.unique(np.concatenate([g for *_, g in self.folds])) if self.folds else np.empty(0, int)

    def all_sensitive(self) -> Predictions:
        """Return the same test cells, each called sensitive with certainty."""
        called = [(y, np.ones(len(y), score.dtype), np.ones_like(pred), g) for y, score, pred, g in self.folds]
        return replace(self, folds=called)

    def fold_values(self, metrics: Sequence[Metric]) -> dict[str, np.ndarray]:
        """Return ``(folds,)`` values per metric."""
        columns: dict[str, list[float]] = {m.name: [] for m in metrics}
        for y, score, pred, _ in self.folds:
            one = resampled(y, score, pred, np.zeros(len(y), dtype=np.int64), metrics, np.ones((1, 1)))
            for name, value in one.items():
                columns[name].append(float(value[0]))
        return {name: np.array(v) for name, v in columns.items()}

    def estimate(self, metrics: Sequence[Metric], weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return ``(b,)`` estimates per metric under group weights ``(b, groups)``.

        Left-out groups count alike: the mean of the folds in which the metric is defined. Otherwise the test cells of
        all folds are taken together; a ranking compares cells of one fold only, for the scores of two heads have no
        common scale.
        """
        if self.cross:
            return {
                n: weighted_mean(np.broadcast_to(v, weights.shape), weights)
                for n, v in self.fold_values(metrics).items()
            }
        y, score, pred, group = (np.concatenate(part) for part in zip(*self.folds, strict=True))
        whole = [m for m in metrics if m.kind != "ranking"]
        out = resampled(y, score, pred, np.searchsorted(self.groups, group), whole, weights)
        ranked = [m for m in metrics if m.kind == "ranking"]
        parts = [self._ranked(fold, ranked, weights) for fold in self.folds] if ranked else []
        for m in ranked:
            values = np.stack([p[m.name] for p in parts], axis=1)
            size = np.stack([p["pairs" if m.name == "auroc" else "positives"] for p in parts], axis=1)
            out[m.name] = weighted_mean(values, size)
        return {m.name: out[m.name] for m in metrics}

    def _ranked(self, fold: Fold, metrics: Sequence[Metric], weights: np.ndarray) -> dict[str, np.ndarray]:
        y, score, pred, group = fold
        here, codes = np.unique(group, return_inverse=True)
        w = weights[:, np.searchsorted(self.groups, here)]
        positives, negatives = (w @ np.bincount(codes, weights=y == c, minlength=len(here)) for c in (1, 0))
        out = resampled(y, score, pred, codes, metrics, w)
        return out | {"positives": positives, "pairs": positives * negatives}


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


def _slices(result: BenchmarkResult) -> dict[int, tuple[np.ndarray, ...]]:
    """Predictions of each unit, found once per result."""
    cached = result.__dict__.get("_slices")
    if cached is None:
        p = result.predictions
        unit = p["unit"].to_numpy()
        starts = np.flatnonzero(np.r_[True, unit[1:] != unit[:-1]]) if len(unit) else np.empty(0, int)
        columns = [p[k].to_numpy() for k in ("row", "y", "score", "pred")]
        ends = np.r_[starts[1:], len(unit)]
        cached = {int(unit[a]): tuple(c[a:b] for c in columns) for a, b in zip(starts, ends, strict=True)}
        result.__dict__["_slices"] = cached
    return cached


def _units(result: BenchmarkResult) -> pd.DataFrame:
    return result.units[result.units["setting"] != "probe"]


def summarise(
    result: BenchmarkResult,
    names: Sequence[str],
    level: str,
    n_resamples: int,
    confidence: float,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Estimate and interval per contender, category and metric; see ``BenchmarkResult.summary``."""
    cells, metrics = result.as_cells(), [result._metric(n) for n in names]
    table = result.table[(result.table["level"] == level) & (result.table["setting"] != "probe")]
    reasons = (
        result.table[result.table["setting"] != "probe"]
        .drop_duplicates([*PLACE, "metric"])
        .set_index([*PLACE, "metric"])
    )
    places = result.table[result.table["setting"] != "probe"][PLACE].drop_duplicates()
    units = dict(tuple(_units(result).groupby(PLACE, sort=False)))
    weights: dict[tuple[str, ...], np.ndarray] = {}
    # Per category and set of folds: all contenders that tested the same cells share a floor.
    floors: dict[tuple[str, ...], dict[str, float]] = {}
    seed = int(rng.integers(2**31))
    records: list[dict[str, Any]] = []
    for place in places.itertuples(index=False):
        where = dict(zip(PLACE, place, strict=True))
        mine = units.get(tuple(place))
        notes = {n: reasons.loc[(*place, n)] for n in names if (*place, n) in reasons.index}
        if mine is None:
            empty = {
                "value": np.nan,
                "ci_low": np.nan,
                "ci_high": np.nan,
                "mean_folds": np.nan,
                "sd_folds": np.nan,
                "n_folds": 0,
                "n_undefined": 0,
                "n_groups": 0,
                "floor": np.nan,
            }
            records += [
                where | {"metric": n} | empty | {"reason": r["reason"], "note": r["note"]} for n, r in notes.items()
            ]
            continue
        predictions = Predictions.collect(result, cells, mine, level)
        category = tuple(where[k] for k in CATEGORY)
        n_groups = len(predictions.groups)
        if category not in weights or weights[category].shape[1] != n_groups:
            # The same resamples for every model, whatever order they come in.
            weights[category] = bootstrap_weights(n_groups, n_resamples, np.random.default_rng([seed, n_groups]))
        tested = (*category, *map(str, mine["fold"]))
        if tested not in floors:
            called = predictions.all_sensitive().estimate(metrics, np.ones((1, n_groups)))
            floors[tested] = {n: np.nan if predictions.reason else float(v[0]) for n, v in called.items()}
        fixed = predictions.fold_values(metrics)
        point = predictions.estimate(metrics, np.ones((1, n_groups)))
        drawn = predictions.estimate(metrics, weights[category]) if n_resamples else {}
        for metric in metrics:
            folds = fixed[metric.name]
            ok = np.isfinite(folds) & (not predictions.reason)
            value = np.nan if predictions.reason else float(point[metric.name][0])
            ci = (
                interval(value, drawn[metric.name], n_groups=n_groups, level=confidence) if n_resamples else NO_INTERVAL
            )
            undefined = predictions.reason or _first_reason(table, where, metric.name)
            why = ci.reason if np.isfinite(value) else undefined
            records.append(
                where
                | {"metric": metric.name, "value": value, "ci_low": ci.low, "ci_high": ci.high}
                | {"mean_folds": float(folds[ok].mean()) if ok.any() else np.nan}
                | {"sd_folds": float(folds[ok].std(ddof=1)) if ok.sum() > 1 else np.nan}
                | {"n_folds": len(folds), "n_undefined": int((~ok).sum()), "n_groups": n_groups}
                | {"floor": floors[tested][metric.name]}
                | {"reason": why, "note": notes[metric.name]["note"] if metric.name in notes else ""}
            )
    return pd.DataFrame(records)


def _first_reason(table: pd.DataFrame, where: dict[str, str], metric: str) -> str:
    mask = table["metric"] == metric
    for key, value in where.items():
        mask &= table[key] == value
    found = table.loc[mask & (table["reason"] != ""), "reason"]
    return str(found.iloc[0]) if len(found) else "undefined in every fold"


def compare_predictions(
    result: BenchmarkResult,
    pair: Sequence[tuple[str, str, str]],
    names: Sequence[str],
    level: str,
    n_resamples: int,
    confidence: float,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Paired differences of two contenders; see ``BenchmarkResult.compare``."""
    cells, metrics = result.as_cells(), [result._metric(n) for n in names]
    units = dict(tuple(_units(result).groupby([*CONTENDER, *CATEGORY], sort=False)))
    records: list[dict[str, Any]] = []
    for category in _units(result)[CATEGORY].drop_duplicates().itertuples(index=False):
        first, second = (units.get((*who, *category)) for who in pair)
        if first is None or second is None:
            continue
        folds = [f for f in first["fold"] if f in set(second["fold"])]
        sides = [
            Predictions.collect(result, cells, u.set_index("fold").loc[folds].reset_index(), level)
            for u in (first, second)
        ]
        n_groups = len(sides[0].groups)
        weights = bootstrap_weights(
            max(n_groups, 1), n_resamples, np.random.default_rng([int(rng.integers(2**31)), n_groups])
        )
        fixed = [side.fold_values(metrics) for side in sides]
        point = [side.estimate(metrics, np.ones((1, n_groups))) for side in sides]
        drawn = [side.estimate(metrics, weights) for side in sides]
        for name in names:
            a, b = (f[name] for f in fixed)
            known = np.isfinite(a) & np.isfinite(b)
            reason = sides[0].reason or sides[1].reason
            if reason:
                known[:] = False
            values = [np.nan if reason else float(p[name][0]) for p in point]
            difference = values[0] - values[1]
            ci = interval(difference, drawn[0][name] - drawn[1][name], n_groups=n_groups, level=confidence)
            t, p = corrected_t((a - b)[known], *sides[0].sizes)
            records.append(
                dict(zip(CATEGORY, category, strict=True))
                | {"metric": name, "value_a": values[0], "value_b": values[1], "difference": difference}
                | {
                    "ci_low": ci.low,
                    "ci_high": ci.high,
                    "t": t,
                    "p": p,
                    "n_folds": int(known.sum()),
                    "n_groups": n_groups,
                }
                | {"reason": reason or ci.reason}
            )
    columns = [
        *CATEGORY,
        "metric",
        "value_a",
        "value_b",
        "difference",
        "ci_low",
        "ci_high",
        "t",
        "p",
        "n_folds",
        "n_groups",
        "reason",
    ]
    out = pd.DataFrame(records, columns=columns)
    out.insert(out.columns.get_loc("p") + 1, "p_holm", holm(out["p"].to_numpy(dtype=float)))
    return out


def permutation_table(
    result: BenchmarkResult, name: str, n_permutations: int, rng: np.random.Generator
) -> pd.DataFrame:
    """Permutation p-value per contender and category; see ``BenchmarkResult.permutation_test``."""
    cells, metric = result.as_cells(), result._metric(name)
    samples, studies = cells.sample_codes, pd.factorize(cells.study)[0]
    slices = _slices(result)
    records: list[dict[str, Any]] = []
    for place, units in _units(result).groupby(PLACE, sort=False):
        row, y, score, pred = (
            np.concatenate(part) for part in zip(*(slices[int(u)] for u in units["unit"]), strict=True)
        )
        where = dict(zip(PLACE, place, strict=True))
        strata = studies[row] if where["setting"] == "cross" else None
        p, reason = permutation_pvalue(
            y, score, pred, samples[row], metric, strata=strata, n_permutations=n_permutations, rng=rng
        )
        n_samples = len(np.unique(samples[row]))
        records.append(where | {"metric": name, "p": p, "n_samples": n_samples, "reason": reason})
    out = pd.DataFrame(records, columns=[*PLACE, "metric", "p", "n_samples", "reason"])
    out.insert(len(PLACE) + 2, "p_holm", holm(out["p"].to_numpy(dtype=float)))
    return out
