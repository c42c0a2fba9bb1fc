"""Intervals and paired comparisons from the stored predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from scdrugmap._metrics import Metric
from scdrugmap.evaluation.result.levels import PLACE
from scdrugmap.evaluation.result.predictions import CATEGORY, Frames, Predictions
from scdrugmap.evaluation.result.significance import corrected_t, holm, permutation_pvalue
from scdrugmap.evaluation.result.statistics import Interval, interval

CALLS_ONLY = "from calls of 0 or 1, not from probabilities"
CONTENDER = ["model", "strategy", "head"]
#: Columns of a summary beyond those that say where a row stands.
COLUMNS = [
    "metric", "value", "ci_low", "ci_high", "mean_folds", "sd_folds", "n_folds", "n_undefined", "n_groups",
    "n_abstained", "floor", "reason", "note",
]  # fmt: skip
#: Of a contender without any fold in a category.
EMPTY = dict.fromkeys(["value", "ci_low", "ci_high", "mean_folds", "sd_folds", "floor"], np.nan) | dict.fromkeys(
    ["n_folds", "n_undefined", "n_groups", "n_abstained"], 0
)
Key = tuple[str, ...]


def summarise(
    frames: Frames, metrics: Sequence[Metric], level: str, confidence: float, *, intervals: bool = True
) -> pd.DataFrame:
    """Estimate and interval per contender, category and metric; see ``BenchmarkResult.summary``.

    The index is the number of the contender and category, so that metrics computed one by one can be put together.
    """
    reasons, notes = _words(frames, level)
    units = dict(tuple(frames.scored_units.groupby(PLACE, sort=False)))
    places = frames.scores[PLACE].drop_duplicates()
    # Per category and set of folds: all contenders that tested the same cells share a floor.
    floors: dict[Key, dict[str, float]] = {}
    records: list[dict[str, Any]] = []
    for number, place in enumerate(places.itertuples(index=False, name=None)):
        where = {"place": number} | dict(zip(PLACE, place, strict=True))
        mine = units.get(place)
        if mine is None:
            for m in metrics:
                if (*place, m.name) in notes:
                    why, note = notes[(*place, m.name)]
                    records.append(where | EMPTY | {"metric": m.name, "reason": why, "note": note})
            continue
        predictions = frames.of(mine, level)
        tested = (*(str(where[k]) for k in CATEGORY), *map(str, mine["fold"]), str(len(predictions.y)))
        if tested not in floors:
            called = predictions.all_sensitive().estimate(metrics, np.ones((1, predictions.n_groups)))
            floors[tested] = {n: np.nan if predictions.reason else float(v[0]) for n, v in called.items()}
        extra = _caveats(predictions, len(mine), frames.n_folds([str(where[k]) for k in CATEGORY]))
        for name, row in _rows(predictions, metrics, confidence, intervals).items():
            key = (*place, name)
            if not np.isfinite(row["value"]):
                row["reason"] = predictions.reason or reasons.get(key, "undefined in every fold")
            said = [notes[key][1] if key in notes else "", *extra]
            if predictions.calls_only and where["strategy"] != "baseline" and _graded(metrics, name):
                said.append(CALLS_ONLY)
            note = "; ".join(s for s in said if s)
            records.append(where | row | {"metric": name, "floor": floors[tested][name], "note": note})
    return pd.DataFrame(records, columns=["place", *PLACE, *COLUMNS]).set_index("place")


def _caveats(predictions: Predictions, n_folds: int, planned: int) -> list[str]:
    """What a reader has to know about the cells that a value rests on."""
    out = []
    if n_folds < planned:
        out.append(f"{n_folds} of {planned} folds: the others failed")
    if predictions.n_abstained:
        out.append(f"{predictions.n_abstained} cells without an answer, which count as wrong calls on all cells")
    return out


def _graded(metrics: Sequence[Metric], name: str) -> bool:
    """Whether a metric reads scores and not calls."""
    return any(m.name == name and m.kind in ("ranking", "loss", "bins") for m in metrics)


def _words(frames: Frames, level: str) -> tuple[dict[Key, str], dict[Key, tuple[str, str]]]:
    """Per place and metric: the first reason at the level, and reason and note of the first row."""
    rows = frames.scores[[*PLACE, "metric", "level", "reason", "note"]]
    first = rows.drop_duplicates([*PLACE, "metric"])
    keys = first[[*PLACE, "metric"]].itertuples(index=False, name=None)
    notes = dict(zip(keys, zip(first["reason"], first["note"], strict=True), strict=True))
    given = rows[(rows["level"] == level) & (rows["reason"] != "")].drop_duplicates([*PLACE, "metric"])
    keys = given[[*PLACE, "metric"]].itertuples(index=False, name=None)
    return dict(zip(keys, given["reason"], strict=True)), notes


def _rows(
    predictions: Predictions, metrics: Sequence[Metric], confidence: float, intervals: bool
) -> dict[str, dict[str, Any]]:
    """Value, interval and folds of each metric."""
    fixed = predictions.fold_values(metrics)
    estimates = predictions.estimate(metrics, np.ones((1, predictions.n_groups)))
    left_out = predictions.left_out(metrics) if intervals else {}
    out = {}
    for m in metrics:
        value = np.nan if predictions.reason else float(estimates[m.name][0])
        low, high, reason = np.nan, np.nan, ""
        if intervals:
            without, strata, n = left_out[m.name]
            ci = interval(
                value, without, strata, bounds=bounds_of(m), level=confidence, unit=predictions.unit, n_groups=n,
                least=predictions.least,
            )  # fmt: skip
            low, high, reason = ci.low, ci.high, ci.reason
        folds = fixed[m.name]
        ok = np.isfinite(folds) & (not predictions.reason)
        out[m.name] = {
            "value": value,
            "ci_low": low,
            "ci_high": high,
            "mean_folds": float(folds[ok].mean()) if ok.any() else np.nan,
            "sd_folds": float(folds[ok].std(ddof=1)) if ok.sum() > 1 else np.nan,
            "n_folds": len(folds),
            "n_undefined": int((~ok).sum()),
            "n_groups": predictions.n_groups,
            "n_abstained": predictions.n_abstained,
            "reason": reason,
        }
    return out


def bounds_of(metric: Metric) -> tuple[float, float] | None:
    """Smallest and largest value of a metric; ``None`` without limits."""
    if metric.kind == "custom" or metric.name == "log_loss":
        return None
    return (-1.0, 1.0) if metric.name == "mcc" else (0.0, 1.0)


def compare_predictions(
    frames: Frames,
    pair: Sequence[Key],
    metrics: Sequence[Metric],
    level: str,
    confidence: float,
) -> pd.DataFrame:
    """Paired differences of two contenders; see ``BenchmarkResult.compare``."""
    units = dict(tuple(frames.scored_units.groupby([*CONTENDER, *CATEGORY], sort=False)))
    records: list[dict[str, Any]] = []
    for category in frames.scored_units[CATEGORY].drop_duplicates().itertuples(index=False, name=None):
        first, second = (units.get((*who, *category)) for who in pair)
        if first is None or second is None:
            continue
        folds = [f for f in first["fold"] if f in set(second["fold"])]
        both = [u.set_index("fold", drop=False).loc[folds] for u in (first, second)]
        if not folds:
            continue
        sides = frames.pair(both, level)
        sizes = frames.n_train(both[0], level), sides[0].n_test
        where = dict(zip(CATEGORY, category, strict=True))
        records += [where | row for row in _differences(sides, metrics, confidence, sizes)]
    columns = [
        *CATEGORY, "metric", "value_a", "value_b", "difference", "ci_low", "ci_high", "t", "p", "n_folds", "n_groups",
        "reason",
    ]  # fmt: skip
    out = pd.DataFrame(records, columns=columns)
    out.insert(out.columns.get_loc("p") + 1, "p_holm", holm(out["p"].to_numpy(dtype=float)))
    return out


def _differences(
    sides: Sequence[Predictions], metrics: Sequence[Metric], confidence: float, sizes: tuple[float, float]
) -> list[dict[str, Any]]:
    """One row per metric; ``sizes`` are those of an average training and test set, counted at the level."""
    fixed = [side.fold_values(metrics) for side in sides]
    whole = [side.estimate(metrics, np.ones((1, side.n_groups))) for side in sides]
    without = [side.left_out(metrics) for side in sides]
    n_groups, reason = sides[0].n_groups, sides[0].reason or sides[1].reason
    out = []
    for name in (m.name for m in metrics):
        a, b = (f[name] for f in fixed)
        known = np.isfinite(a) & np.isfinite(b) & (not reason)
        values = [np.nan if reason else float(w[name][0]) for w in whole]
        difference = values[0] - values[1]
        (first, strata, n), (second, _, m) = (w[name] for w in without)
        if n == m:
            ci = interval(
                difference, first - second, strata, level=confidence, unit=sides[0].unit, n_groups=n,
                least=sides[0].least,
            )  # fmt: skip
        else:
            ci = Interval(difference, np.nan, np.nan, min(n, m), "undefined in other groups for the two models")
        t, p = corrected_t((a - b)[known], *sizes)
        out.append(
            {
                "metric": name, "value_a": values[0], "value_b": values[1], "difference": difference,
                "ci_low": ci.low, "ci_high": ci.high, "t": t, "p": p, "n_folds": int(known.sum()),
                "n_groups": n_groups, "reason": reason or ci.reason,
            }
        )  # fmt: skip
    return out


def permutation_table(frames: Frames, metric: Metric, n_permutations: int, rng: np.random.Generator) -> pd.DataFrame:
    """Permutation p-value per contender and category; see ``BenchmarkResult.permutation_test``."""
    studies = pd.factorize(frames.cells.study)[0]
    records: list[dict[str, Any]] = []
    for place, units in frames.scored_units.groupby(PLACE, sort=False):
        cells = frames.of(units, "cell")
        row = frames.rows([int(u) for u in units["unit"]], "row")
        samples = frames.cells.sample_codes[row]
        p, reason = permutation_pvalue(
            cells.y, cells.score, cells.pred, samples, metric, strata=studies[row] if cells.cross else None,
            fold=cells.fold, average_folds=cells.cross, n_permutations=n_permutations, rng=rng,
        )  # fmt: skip
        where = dict(zip(PLACE, place, strict=True))
        records.append(where | {"metric": metric.name, "p": p, "n_samples": len(np.unique(samples)), "reason": reason})
    out = pd.DataFrame(records, columns=[*PLACE, "metric", "p", "n_samples", "reason"])
    out.insert(len(PLACE) + 2, "p_holm", holm(out["p"].to_numpy(dtype=float)))
    return out
