"""Intervals that respect how drug-response data arise: samples and studies vary, cells only repeat them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scdrugmap._metrics import Metric, Sums

#: Fewer groups than this say too little about the population that they come from: there is no interval.
MIN_GROUPS = 5
#: Studies that are left out one by one: fewer values than this make no mean with an interval.
MIN_STUDIES = 3
#: With fewer groups than this an interval is wide, and the screen says so.
FEW_GROUPS = 10
#: A group is worth this many independent answers at most: with few groups the jackknife cannot be trusted to say more.
WORTH = 6
#: Groups that are left out one by one at most; more are left out in blocks.
MOST_BLOCKS = 200


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval.

    Parameters
    ----------
    value, low, high
        Estimate and bounds; NaN where undefined.
    n_groups
        Number of groups that stand behind it.
    reason
        Why there is no interval, or empty.
    """

    value: float
    low: float
    high: float
    n_groups: int
    reason: str = ""


def strata_of(y: np.ndarray, group: np.ndarray, n_groups: int) -> np.ndarray:
    """Class of each group, ``(n_groups,)``; all zero where some group carries both labels.

    Examples
    --------
    >>> strata_of(np.array([0, 1, 1]), np.array([0, 1, 1]), 2).tolist()
    [0, 1]
    """
    cells = np.bincount(group, minlength=n_groups)
    positive = np.bincount(group, weights=y, minlength=n_groups)
    mixed = (positive > 0) & (positive < cells)
    return np.zeros(n_groups, dtype=np.int64) if mixed.any() else (positive > 0).astype(np.int64)


def blocks_of(strata: np.ndarray) -> np.ndarray:
    """Number of the block with which each group is left out: its own, or one of ``MOST_BLOCKS`` at most.

    Examples
    --------
    >>> blocks_of(np.zeros(3, dtype=int)).tolist()
    [0, 1, 2]
    """
    if len(strata) <= MOST_BLOCKS:
        return np.arange(len(strata))
    order = np.argsort(strata, kind="stable")
    block = np.empty(len(strata), dtype=np.int64)
    # Cut along the classes, so that a block holds groups of one class.
    share = [int(np.ceil(MOST_BLOCKS * np.mean(strata == c))) for c in np.unique(strata)]
    first = 0
    for code, k in zip(np.unique(strata), share, strict=True):
        members = order[strata[order] == code]
        block[members] = first + np.arange(len(members)) % k
        first += k
    return np.unique(block, return_inverse=True)[1]


def bootstrap_weights(groups: int | np.ndarray, n_resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Multiplicities of ``groups`` groups in resamples with replacement, ``(n_resamples, groups)``.

    With an array (``(groups,)`` codes of strata), each stratum keeps its number of groups.

    Examples
    --------
    >>> import numpy as np
    >>> w = bootstrap_weights(4, 3, np.random.default_rng(0))
    >>> w.shape, w.sum(axis=1).tolist()
    ((3, 4), [4.0, 4.0, 4.0])
    """
    strata = np.zeros(groups, dtype=int) if isinstance(groups, int | np.integer) else np.asarray(groups)
    weights = np.empty((n_resamples, len(strata)))
    for code in np.unique(strata):
        members = np.flatnonzero(strata == code)
        k = len(members)
        weights[:, members] = rng.multinomial(k, np.full(k, 1 / k), size=n_resamples)
    return weights


def resampled(
    y: np.ndarray,
    score: np.ndarray,
    pred: np.ndarray,
    codes: np.ndarray,
    metrics: Sequence[Metric],
    weights: np.ndarray,
    fold: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Compute metrics under multiplicities of whole groups.

    Parameters
    ----------
    y, score, pred
        ``(n,)`` labels (0 or 1), P(sensitive) and calls (0 or 1).
    codes
        ``(n,)`` column of ``weights`` that each cell follows: its sample, or its study where studies are left out.
    metrics
        Records; custom metrics are computed resample by resample.
    weights
        ``(b, groups)`` multiplicities; ones give the value itself.
    fold
        ``(n,)`` fold of each cell: a ranking compares cells of one fold only.

    Returns
    -------
    dict
        Metric name to ``(b,)`` values.

    Examples
    --------
    >>> import numpy as np
    >>> from scdrugmap._metrics import METRICS
    >>> y, group = np.tile([0, 1], 20), np.repeat(np.arange(4), 10)
    >>> resampled(y, y * 1.0, y, group, [METRICS["f1"]], bootstrap_weights(4, 2, np.random.default_rng(0)))[
    ...     "f1"
    ... ].tolist()
    [1.0, 1.0]
    """
    if len(y) == 0:
        return {m.name: np.full(len(weights), np.nan) for m in metrics}
    sums = Sums(score, pred, codes, y == 1, y == 0, fold)
    out = {m.name: sums.values(m, weights, weights) for m in metrics if m.kind != "custom"}
    for m in metrics:
        if m.kind == "custom":
            out[m.name] = np.array([_custom(m, y, score, pred, row[codes].astype(int)) for row in weights])
    return out


def _custom(metric: Metric, y: np.ndarray, score: np.ndarray, pred: np.ndarray, times: np.ndarray) -> float:
    rows = np.repeat(np.arange(len(y)), times)
    try:
        return float(metric.function(y[rows], score[rows], pred[rows]))
    except ValueError:
        return np.nan


def interval(
    value: float,
    left_out: np.ndarray,
    strata: np.ndarray,
    *,
    bounds: tuple[float, float] | None = None,
    level: float = 0.95,
    unit: str = "samples",
    n_groups: int | None = None,
    least: int = MIN_GROUPS,
) -> Interval:
    """Interval of an estimate from what it is without each group in turn.

    Parameters
    ----------
    value
        The estimate.
    left_out
        ``(k,)`` estimates without one group (or block of groups) each.
    strata
        ``(k,)`` class of each.
    bounds
        Smallest and largest value that the estimate can take; ``None`` for no limits.
    level
        Confidence.
    unit
        What the groups are, for the reason.
    n_groups
        Number of groups where they were left out in blocks.
    least
        Groups that an interval needs.

    Notes
    -----
    The variance is that of the jackknife over groups, class by class, with Satterthwaite's degrees of freedom: a sum over
    sensitive and one over resistant samples, as in the variance of an AUROC. Percentiles of a bootstrap over few groups are
    too narrow. A bounded metric gets the wider of two intervals from Student's t: one on the log-odds scale and Wilson's
    for a proportion of as many groups as give that variance (Korn and Graubard 1998). That
    number is ``WORTH`` times the harmonic mean of the groups per class at most; at a bound, where every group agrees and the
    variance says nothing, it is that mean.

    References
    ----------
    Korn EL, Graubard BI (1998). Confidence intervals for proportions with small expected number of positive counts
    estimated from survey data. Survey Methodology 24, 193-201.

    Examples
    --------
    >>> left_out = np.array([0.6, 0.7, 0.65, 0.7, 0.6, 0.7])
    >>> ci = interval(0.66, left_out, np.array([0, 0, 0, 1, 1, 1]), bounds=(0, 1))
    >>> round(ci.low, 2), round(ci.high, 2)
    (0.36, 0.87)
    """
    from scipy import stats

    n = len(left_out) if n_groups is None else n_groups
    sizes = np.bincount(strata)[np.unique(strata)] if len(strata) else np.zeros(1, int)
    reason = _too_few(value, n, sizes, unit, least)
    if not reason and not np.isfinite(left_out).all():
        reason = f"undefined without one of the {n} {unit}"
    if reason:
        return Interval(value, np.nan, np.nan, n, reason)
    parts = []
    for code in np.unique(strata):
        mine = left_out[strata == code]
        parts.append((len(mine) - 1) / len(mine) * float(((mine - mine.mean()) ** 2).sum()))
    variance, per_part = float(np.sum(parts)), np.array(parts)
    settled = np.finfo(float).eps * max(abs(value), 1)
    variance = 0.0 if variance <= settled**2 * n else variance
    freedom = variance**2 / float((per_part**2 / (sizes - 1)).sum()) if variance else float(sizes.sum() - len(sizes))
    t = float(stats.t.ppf((1 + level) / 2, freedom))
    if bounds is None:
        return Interval(value, value - t * variance**0.5, value + t * variance**0.5, n)
    low, high = bounds
    width = high - low
    harmonic = len(sizes) / float((1 / sizes).sum())
    a, b = _bounded(min(max((value - low) / width, 0), 1), variance / width**2, t, harmonic)
    return Interval(value, low + width * a, low + width * b, n)


def _too_few(value: float, n: int, sizes: np.ndarray, unit: str, least: int) -> str:
    """Why no interval can be given, or empty."""
    if not np.isfinite(value):
        return "the metric is undefined"
    if n < least:
        return f"no interval: only {n} {unit}, {least} are needed"
    if sizes.min() < 2:
        return f"no interval: one class has {sizes.min()} of the {n} {unit}"
    return ""


def _bounded(p: float, variance: float, t: float, harmonic: float) -> tuple[float, float]:
    """Bounds of a share ``p`` with this variance."""
    at_bound = p <= 0 or p >= 1
    if variance == 0 and not at_bound:
        return p, p
    k = t * t / (harmonic if at_bound else min(p * (1 - p) / variance, WORTH * harmonic))
    centre, half = (p + k / 2) / (1 + k), np.sqrt(k * p * (1 - p) + k * k / 4) / (1 + k)
    low, high = centre - half, centre + half
    if not at_bound:
        odds, spread = np.log(p / (1 - p)), t * variance**0.5 / (p * (1 - p))
        low, high = min(low, 1 / (1 + np.exp(spread - odds))), max(high, 1 / (1 + np.exp(-spread - odds)))
    return max(float(low), 0.0), min(float(high), 1.0)
