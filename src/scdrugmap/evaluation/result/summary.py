"""Intervals and paired comparisons from the stored predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from scdrugmap._metrics import Metric
from scdrugmap.evaluation.result.levels import PLACE
from scdrugmap.evaluation.result.predictions import CATEGORY, Frames, Predictions
from scdrugmap.evaluation.result.statistics import (
    Interval,
    bootstrap_weights,
    corrected_t,
    holm,
    interval,
    permutation_pvalue,
)

NO_INTERVAL = Interval(np.nan, np.nan, np.nan, 0)
CONTENDER = ["model", "strategy", "head"]
#: Columns of a summary beyond those that say where a row stands.
COLUMNS = [
    "metric", "value", "ci_low", "ci_high", "mean_folds", "sd_folds", "n_folds", "n_undefined", "n_groups", "floor",
    "reason", "note",
]  # fmt: skip
#: Of a contender without any fold in a category.
EMPTY = dict.fromkeys(["value", "ci_low", "ci_high", "mean_folds", "sd_folds", "floor"], np.nan) | dict.fromkeys(
    ["n_folds", "n_undefined", "n_groups"], 0
)
Key = tuple[str, ...]


def summarise(
    frames: Frames, metrics: Sequence[Metric], level: str, n_resamples: int, confidence: float, seed: int
) -> pd.DataFrame:
    """Estimate and interval per contender, category and metric; see ``BenchmarkResult.summary``.

    The index is the number of the contender and category, so that metrics computed one by one can be put together.
    """
    reasons, notes = _words(frames, level)
    units = dict(tuple(frames.scored_units.groupby(PLACE, sort=False)))
    places = frames.scores[PLACE].drop_duplicates()
    weights: dict[int, np.ndarray] = {}
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
        n_groups = predictions.n_groups
        if n_groups not in weights:
            # The same resamples for every model, whatever order they come in.
            drawn = bootstrap_weights(n_groups, n_resamples, np.random.default_rng([seed, n_groups]))
            weights[n_groups] = np.vstack([np.ones((1, n_groups)), drawn])
        tested = (*(str(where[k]) for k in CATEGORY), *map(str, mine["fold"]))
        if tested not in floors:
            called = predictions.all_sensitive().estimate(metrics, np.ones((1, n_groups)))
            floors[tested] = {n: np.nan if predictions.reason else float(v[0]) for n, v in called.items()}
        for name, row in _rows(predictions, metrics, weights[n_groups], confidence).items():
            key = (*place, name)
            if not np.isfinite(row["value"]):
                row["reason"] = predictions.reason or reasons.get(key, "undefined in every fold")
            note = notes[key][1] if key in notes else ""
            records.append(where | row | {"metric": name, "floor": floors[tested][name], "note": note})
    return pd.DataFrame(records, columns=["place", *PLACE, *COLUMNS]).set_index("place")


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
    predictions: Predictions, metrics: Sequence[Metric], weights: np.ndarray, confidence: float
) -> dict[str, dict[str, Any]]:
    """Value, interval and folds of each metric; the first row of the weights is the data as they are."""
    fixed, drawn = predictions.fold_values(metrics), predictions.estimate(metrics, weights)
    n_groups, out = predictions.n_groups, {}
    for name, values in drawn.items():
        value = np.nan if predictions.reason else float(values[0])
        ci = interval(value, values[1:], n_groups=n_groups, level=confidence) if len(values) > 1 else NO_INTERVAL
        folds = fixed[name]
        ok = np.isfinite(folds) & (not predictions.reason)
        out[name] = {
            "value": value,
            "ci_low": ci.low,
            "ci_high": ci.high,
            "mean_folds": float(folds[ok].mean()) if ok.any() else np.nan,
            "sd_folds": float(folds[ok].std(ddof=1)) if ok.sum() > 1 else np.nan,
            "n_folds": len(folds),
            "n_undefined": int((~ok).sum()),
            "n_groups": n_groups,
            "reason": ci.reason,
        }
    return out


def compare_predictions(
    frames: Frames,
    pair: Sequence[Key],
    metrics: Sequence[Metric],
    level: str,
    n_resamples: int,
    confidence: float,
    rng: np.random.Generator,
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
        sides = [frames.of(u, level) for u in both]
        n_groups = sides[0].n_groups
        drawn = bootstrap_weights(
            max(n_groups, 1), n_resamples, np.random.default_rng([int(rng.integers(2**31)), n_groups])
        )
        weights = np.vstack([np.ones((1, n_groups)), drawn])
        sizes = frames.n_train(both[0], level), sides[0].n_test
        where = dict(zip(CATEGORY, category, strict=True))
        records += [where | row for row in _differences(sides, metrics, weights, confidence, sizes)]
    columns = [
        *CATEGORY, "metric", "value_a", "value_b", "difference", "ci_low", "ci_high", "t", "p", "n_folds", "n_groups",
        "reason",
    ]  # fmt: skip
    out = pd.DataFrame(records, columns=columns)
    out.insert(out.columns.get_loc("p") + 1, "p_holm", holm(out["p"].to_numpy(dtype=float)))
    return out


def _differences(
    sides: Sequence[Predictions],
    metrics: Sequence[Metric],
    weights: np.ndarray,
    confidence: float,
    sizes: tuple[float, float],
) -> list[dict[str, Any]]:
    """One row per metric; ``sizes`` are those of an average training and test set, counted at the level."""
    fixed = [side.fold_values(metrics) for side in sides]
    drawn = [side.estimate(metrics, weights) for side in sides]
    n_groups, reason = sides[0].n_groups, sides[0].reason or sides[1].reason
    out = []
    for name in (m.name for m in metrics):
        a, b = (f[name] for f in fixed)
        known = np.isfinite(a) & np.isfinite(b) & (not reason)
        values = [np.nan if reason else float(d[name][0]) for d in drawn]
        difference = values[0] - values[1]
        ci = interval(difference, (drawn[0][name] - drawn[1][name])[1:], n_groups=n_groups, level=confidence)
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
