"""Metrics of a two-class response prediction; the positive class is ``sensitive``.

Every metric is written once, on sums that are linear in the weight of a cell: counts of the confusion matrix,
sums of a loss, sums per probability bin, or weights along the ranking. One cell per weight gives the value;
a matrix of weights gives every resample of a bootstrap at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np

from scdrugmap._errors import InputError, UnknownNameError

N_BINS = 10

CustomMetric: TypeAlias = Callable[[np.ndarray, np.ndarray, np.ndarray], float]
Metrics: TypeAlias = str | Iterable[str] | Mapping[str, CustomMetric] | None


@dataclass(frozen=True)
class Metric:
    """One metric and what a reader has to know about it.

    Parameters
    ----------
    name
        Name in tables.
    kind
        Which sums it needs: ``"counts"`` of the confusion matrix, the mean of a ``"loss"`` per cell, ``"bins"`` of
        predicted probability, the ``"ranking"`` by score, or ``"custom"``.
    function
        The metric on those sums. ``counts``: ``(tp, fp, fn, tn)``; ``loss``: ``(y, score)`` to a loss per cell;
        ``bins``: ``(cells, positives, summed scores)`` with the bins last; ``ranking``: ``(positive weight,
        negative weight, starts)`` with the distinct scores of each fold, highest first, first, and the row at which
        each fold starts, to numerator and denominator per fold; ``custom``: ``(y, score, pred)``.
    label
        Name in figures.
    higher_is_better
        Direction.
    undefined
        When the value is NaN, in words.
    """

    name: str
    kind: Literal["counts", "loss", "bins", "ranking", "custom"]
    function: Callable[..., Any]
    label: str
    higher_is_better: bool = True
    undefined: str = ""


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Divide, with NaN where the denominator is zero."""
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    return np.divide(a, b, out=np.full(np.broadcast(a, b).shape, np.nan), where=b != 0)


def _f1(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray, tn: np.ndarray) -> np.ndarray:
    return _ratio(2 * tp, 2 * tp + fp + fn)


def _f1_resistant(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray, tn: np.ndarray) -> np.ndarray:
    return _f1(tn, fn, fp, tp)


def _f1_macro(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray, tn: np.ndarray) -> np.ndarray:
    return (_f1(tp, fp, fn, tn) + _f1(tn, fn, fp, tp)) / 2


def _accuracy(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray, tn: np.ndarray) -> np.ndarray:
    return _ratio(tp + tn, tp + fp + fn + tn)


def _balanced_accuracy(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray, tn: np.ndarray) -> np.ndarray:
    return (_ratio(tp, tp + fn) + _ratio(tn, tn + fp)) / 2


def _precision(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray, tn: np.ndarray) -> np.ndarray:
    return _ratio(tp, tp + fp)


def _recall(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray, tn: np.ndarray) -> np.ndarray:
    return _ratio(tp, tp + fn)


def _specificity(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray, tn: np.ndarray) -> np.ndarray:
    return _ratio(tn, tn + fp)


def _mcc(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray, tn: np.ndarray) -> np.ndarray:
    tp, fp, fn, tn = (np.asarray(a, dtype=float) for a in (tp, fp, fn, tn))
    both = (tp + fn) * (tn + fp)
    margin = np.sqrt(both) * np.sqrt((tp + fp) * (tn + fn))
    value = np.divide(tp * tn - fp * fn, margin, out=np.zeros(margin.shape), where=margin > 0)
    return np.where(both > 0, np.clip(value, -1, 1), np.nan)


def _brier(y: np.ndarray, score: np.ndarray) -> np.ndarray:
    return (score.astype(float) - y) ** 2


def _log_loss(y: np.ndarray, score: np.ndarray) -> np.ndarray:
    # Scores are stored as float32: a probability of one is only known to within one rounding step.
    eps = np.finfo(np.float32).eps
    p = np.clip(score.astype(float), eps, 1 - eps)
    return -(y * np.log(p) + (1 - y) * np.log1p(-p))


def _ece(cells: np.ndarray, positives: np.ndarray, scores: np.ndarray) -> np.ndarray:
    return _ratio(np.abs(positives - scores).sum(-1), cells.sum(-1))


def _running(x: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Sum from the first level of each fold on, ``(levels, b)``."""
    total = np.cumsum(x, axis=0)
    before = total[starts] - x[starts]
    return total - np.repeat(before, np.diff(np.r_[starts, len(x)]), axis=0)


def _auroc(pos: np.ndarray, neg: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    won = np.add.reduceat((_running(pos, starts) - pos / 2) * neg, starts, axis=0)
    return won, np.add.reduceat(pos, starts, axis=0) * np.add.reduceat(neg, starts, axis=0)


def _auprc(pos: np.ndarray, neg: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    tp = _running(pos, starts)
    called = tp + _running(neg, starts)
    precision = np.divide(tp, called, out=np.zeros(tp.shape), where=called > 0)
    both = np.add.reduceat(neg, starts, axis=0) > 0
    return tuple(np.add.reduceat(v, starts, axis=0) * both for v in (precision * pos, pos))  # type: ignore[return-value]


_ONE_CLASS = "only one class in the test cells"
METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric("f1", "counts", _f1, "F1 (sensitive)", undefined="no sensitive cell, neither true nor called"),
        Metric(
            "f1_resistant", "counts", _f1_resistant, "F1 (resistant)", undefined="no resistant cell, true or called"
        ),
        Metric("f1_macro", "counts", _f1_macro, "macro-F1", undefined="one class neither true nor called"),
        Metric("accuracy", "counts", _accuracy, "accuracy"),
        Metric("balanced_accuracy", "counts", _balanced_accuracy, "balanced accuracy", undefined=_ONE_CLASS),
        Metric("precision", "counts", _precision, "precision", undefined="no cell called sensitive"),
        Metric("recall", "counts", _recall, "recall", undefined="no sensitive cell in the test cells"),
        Metric("specificity", "counts", _specificity, "specificity", undefined="no resistant cell in the test cells"),
        Metric("mcc", "counts", _mcc, "MCC", undefined=_ONE_CLASS),
        Metric("auroc", "ranking", _auroc, "AUROC", undefined=_ONE_CLASS),
        Metric("auprc", "ranking", _auprc, "AUPRC", undefined=_ONE_CLASS),
        Metric("brier", "loss", _brier, "Brier score", higher_is_better=False),
        Metric("log_loss", "loss", _log_loss, "log loss", higher_is_better=False),
        Metric("ece", "bins", _ece, "expected calibration error", higher_is_better=False),
    )
}


def resolve_metrics(metrics: Metrics = None) -> list[Metric]:
    """Turn the argument ``metrics`` into records.

    Parameters
    ----------
    metrics
        ``None`` for all, a name, names, or a mapping of new names to callables ``(y, score, pred) -> float``, where
        ``y`` and ``pred`` are 0 (resistant) or 1 (sensitive) per cell and ``score`` is P(sensitive). A callable
        says "undefined" by returning NaN or raising ``ValueError``.

    Raises
    ------
    UnknownNameError
        For a name that is not in ``METRICS``.

    Examples
    --------
    >>> [m.label for m in resolve_metrics(["f1", "auroc"])]
    ['F1 (sensitive)', 'AUROC']
    """
    if metrics is None:
        return list(METRICS.values())
    if isinstance(metrics, str):
        metrics = [metrics]
    if isinstance(metrics, Mapping):
        return [Metric(name, "custom", f, name) if callable(f) else _named(f) for name, f in metrics.items()]
    found = list(metrics)
    if not found:
        raise InputError("metrics", "an empty list", "at least one metric", "leave it out for all metrics.")
    return [_named(m) if isinstance(m, str) else Metric(_name(m), "custom", m, _name(m)) for m in found]


def _name(function: object) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _named(name: str) -> Metric:
    if name not in METRICS:
        raise UnknownNameError("metrics", name, METRICS, "a callable (y, score, pred) -> float works too.")
    return METRICS[name]


def find_metric(name: str, custom: Mapping[str, Metric] | None = None) -> Metric:
    """Return the record of a metric by its name in a table.

    Parameters
    ----------
    name
        Name of a metric.
    custom
        Records of the metrics that are not built in.

    Raises
    ------
    InputError
        If neither holds it.

    Examples
    --------
    >>> find_metric("brier").higher_is_better
    False
    """
    found = (custom or {}).get(name) or METRICS.get(name)
    if found is None:
        raise InputError(
            "metrics",
            name,
            "a metric whose function is at hand",
            "custom metrics are not saved; result.metrics[name] = resolve_metrics({name: function})[0].",
        )
    return found


def evaluate(
    y: np.ndarray, score: np.ndarray, pred: np.ndarray, metrics: Metrics | list[Metric] = None
) -> dict[str, tuple[float, str]]:
    """Compute metrics of one set of predictions.

    Parameters
    ----------
    y
        ``(n,)`` 0 (resistant) or 1 (sensitive).
    score
        ``(n,)`` P(sensitive).
    pred
        ``(n,)`` 0 or 1.
    metrics
        See :func:`resolve_metrics`.

    Returns
    -------
    dict
        Name to ``(value, reason)``; the value is NaN and the reason says why where the metric is undefined, and the
        reason is empty otherwise. MCC of a constant prediction is 0, its value for an uninformed call.

    Examples
    --------
    >>> import numpy as np
    >>> y = np.array([0, 1, 1])
    >>> evaluate(y, np.array([0.1, 0.9, 0.4]), np.array([0, 1, 0]), ["recall", "auroc"])
    {'recall': (0.5, ''), 'auroc': (1.0, '')}
    """
    records = metrics if _resolved(metrics) else resolve_metrics(metrics)  # type: ignore[arg-type]
    y, pred, score = np.asarray(y).astype(np.int64), np.asarray(pred).astype(np.int64), np.asarray(score)
    if len(y) == 0:
        return {m.name: (np.nan, "no test cell") for m in records}  # type: ignore[union-attr]
    ones = np.ones((1, 1))
    sums = Sums(score, pred, np.zeros(len(y), dtype=np.int64), y == 1, y == 0)
    out: dict[str, tuple[float, str]] = {}
    for m in records:  # type: ignore[union-attr]
        assert isinstance(m, Metric)
        out[m.name] = _custom(m, y, score, pred) if m.kind == "custom" else _built_in(m, sums, ones)
    return out


def _resolved(metrics: object) -> bool:
    return isinstance(metrics, list) and bool(metrics) and all(isinstance(m, Metric) for m in metrics)


def _built_in(metric: Metric, sums: Sums, ones: np.ndarray) -> tuple[float, str]:
    value = float(sums.values(metric, ones, ones)[0])
    return (value, "") if np.isfinite(value) else (np.nan, metric.undefined or "undefined")


def _custom(metric: Metric, y: np.ndarray, score: np.ndarray, pred: np.ndarray) -> tuple[float, str]:
    try:
        value = float(metric.function(y, score, pred))
    except ValueError as error:
        return np.nan, str(error)
    return (value, "") if np.isfinite(value) else (np.nan, "the metric returned no finite value")


class Sums:
    """Sums of one set of predictions per group of cells, from which metrics under any group weights follow.

    Parameters
    ----------
    score, pred
        ``(n,)`` P(sensitive) and the call.
    group
        ``(n,)`` integer code of the group (sample, study ...) of each cell.
    positive, negative
        ``(n,)`` masks of the cells that count as sensitive and as resistant.
    fold
        ``(n,)`` integer code of the fold of each cell. A ranking compares cells of one fold only, for the scores of two
        heads have no common scale; the folds weigh by their pairs (AUROC) or sensitive cells (AUPRC).

    Notes
    -----
    A bootstrap passes the same multiplicities for both classes. A permutation of the labels of whole groups marks
    every cell in both masks, and passes the permuted labels as positive weights and their complement as negative.
    """

    #: Numbers in one temporary array: few enough to stay in the processor's cache.
    budget = 200_000

    def __init__(
        self,
        score: np.ndarray,
        pred: np.ndarray,
        group: np.ndarray,
        positive: np.ndarray,
        negative: np.ndarray,
        fold: np.ndarray | None = None,
    ) -> None:
        self.score, self.pred, self.group = np.asarray(score), np.asarray(pred).astype(bool), np.asarray(group)
        self.classes = {1: np.asarray(positive), 0: np.asarray(negative)}
        self.n_groups = int(self.group.max()) + 1 if len(self.group) else 0
        self.fold = np.zeros(len(self.group), np.int64) if fold is None else np.asarray(fold)

    def values(self, metric: Metric, w_pos: np.ndarray, w_neg: np.ndarray) -> np.ndarray:
        """Return the metric for each row of the ``(b, groups)`` weights."""
        with np.errstate(invalid="ignore"):
            return getattr(self, f"_{metric.kind}")(metric.function, w_pos, w_neg)

    def _per_group(self, label: int, values: np.ndarray) -> np.ndarray:
        mask = self.classes[label]
        return np.bincount(self.group[mask], weights=values[mask], minlength=self.n_groups)

    def _counts(self, function: Callable[..., np.ndarray], w_pos: np.ndarray, w_neg: np.ndarray) -> np.ndarray:
        called, spared = self.pred.astype(float), (~self.pred).astype(float)
        tp, fn = w_pos @ self._per_group(1, called), w_pos @ self._per_group(1, spared)
        fp, tn = w_neg @ self._per_group(0, called), w_neg @ self._per_group(0, spared)
        return function(tp, fp, fn, tn)

    def _loss(self, function: Callable[..., np.ndarray], w_pos: np.ndarray, w_neg: np.ndarray) -> np.ndarray:
        total, cells = np.zeros(len(w_pos)), np.zeros(len(w_pos))
        for label, w in ((1, w_pos), (0, w_neg)):
            total += w @ self._per_group(label, function(np.full(len(self.score), label), self.score))
            cells += w @ self._per_group(label, np.ones(len(self.score)))
        return _ratio(total, cells)

    def _bins(self, function: Callable[..., np.ndarray], w_pos: np.ndarray, w_neg: np.ndarray) -> np.ndarray:
        place = np.minimum((self.score.astype(float) * N_BINS).astype(int), N_BINS - 1)
        cells, positives, scores = (np.zeros((len(w_pos), N_BINS)) for _ in range(3))
        for label, w in ((1, w_pos), (0, w_neg)):
            for total, values in ((cells, np.ones(len(place))), (scores, self.score.astype(float))):
                table = np.stack([self._per_group(label, values * (place == b)) for b in range(N_BINS)], axis=1)
                total += w @ table
                if label == 1 and total is cells:
                    positives += w @ table
        return function(cells, positives, scores)

    @cached_property
    def _levels(self) -> tuple[dict[int, Any], np.ndarray]:
        """Cells per distinct score of a fold, highest first, and group (one sparse table per class); starts of the folds."""
        from scipy import sparse

        order = np.lexsort((-self.score, self.fold))
        fold, score = self.fold[order], self.score[order]
        new_fold = np.r_[True, fold[1:] != fold[:-1]]
        level = np.cumsum(new_fold | np.r_[True, score[1:] != score[:-1]]) - 1
        place = np.empty_like(level)
        place[order] = level
        shape = (int(level[-1]) + 1, self.n_groups)
        tables = {
            label: sparse.csr_matrix((np.ones(int(mask.sum())), (place[mask], self.group[mask])), shape=shape)
            for label, mask in self.classes.items()
        }
        return tables, level[new_fold]

    def _ranking(self, function: Callable[..., Any], w_pos: np.ndarray, w_neg: np.ndarray) -> np.ndarray:
        tables, starts = self._levels
        step = max(self.budget // tables[1].shape[0], 1)
        parts = []
        for first in range(0, len(w_pos), step):
            rows = slice(first, first + step)
            above, below = function(tables[1] @ w_pos[rows].T, tables[0] @ w_neg[rows].T, starts)  # (folds, b)
            parts.append(_ratio(above.sum(axis=0), below.sum(axis=0)))
        return np.concatenate(parts)
