"""Logistic regression on standardised features, solved exactly for all folds of a cross-validation at once.

Folds are columns: a pass over blocks of cells gives loss and gradient of all of them by two matrix products, with their
weights (zero for a cell that a fold holds out) and their standardisation on the small side, so that the features are neither
copied nor standardised. The folds start at the solution for all their cells together and share its Hessian, to which each adds
what its own gradients tell (Nocedal and Wright, Numerical Optimization, chapter 7: limited-memory quasi-Newton steps). A fold
that this does not serve gets Hessians of its own. Gradients are float64, so that the solution does not depend on the
arithmetic of the Hessian.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from inspect import signature
from typing import Any

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from sklearn import get_config
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_X_y, column_or_1d

from scdrugmap._logging import warn

#: With more features the Hessian would take longer than scikit-learn's solver.
MOST_FEATURES = 4096
#: Largest entry of the gradient of the mean loss at the solution (scikit-learn's default stops at 1e-4).
TOLERANCE = 1e-7
#: Gradient at which the solution for the cells of all folds is near enough to start from.
_NEAR = 1e-4
#: Steps after which a new Hessian is worth its time, for one fold and for all of them.
_ALONE, _TOGETHER = 8, 16
_RENEWALS = 100
#: Entries of a block of cells.
_BLOCK = 1 << 19
#: Parameters of ``LogisticRegression`` that state the problem or do not change its solution.
_FREE = {"C", "class_weight", "max_iter", "n_jobs", "random_state", "tol", "verbose"}


def solvable(head: Any, n_features: int) -> bool:
    """Whether a classifier is standardised features and logistic regression with scikit-learn's default penalty.

    Parameters
    ----------
    head
        An unfitted classifier.
    n_features
        Width of its input.

    Examples
    --------
    >>> from scdrugmap.response import make_head
    >>> solvable(make_head("logistic"), 512), solvable(make_head("mlp"), 512)
    (True, False)
    """
    if get_config()["enable_metadata_routing"]:
        return False  # then scikit-learn decides what reaches which step
    if type(head) is not Pipeline or head.memory is not None or n_features > MOST_FEATURES:
        return False
    if [type(step) for _, step in head.steps] != [StandardScaler, LogisticRegression]:
        return False
    scaler, last = (step for _, step in head.steps)
    plain = LogisticRegression().get_params()
    same = all(value == plain[name] for name, value in last.get_params().items() if name not in _FREE)
    return same and np.isfinite(last.C) and scaler.with_mean and scaler.with_std


def fit_logistic(
    head: Pipeline,
    X: np.ndarray,
    y: np.ndarray,
    train_rows: Sequence[np.ndarray],
    weights: Sequence[np.ndarray] | None = None,
) -> list[Pipeline]:
    """Fit a copy of a :func:`solvable` classifier on the training rows of every fold.

    Parameters
    ----------
    head
        The unfitted classifier.
    X, y
        Features (cells, features) and labels (cells,) of all cells. Features are read in blocks and may be mapped from a file.
    train_rows
        Row numbers of each fold.
    weights
        For each fold, the weights of all cells.

    Returns
    -------
    Fitted copies, as scikit-learn would have fitted them to a tolerance of zero.

    Raises
    ------
    ValueError
        As scikit-learn raises it, for values or labels that it would refuse.
    """
    if not (isinstance(X, np.ndarray) and X.dtype in (np.float32, np.float64)):
        X, y = check_X_y(X, y, dtype=(np.float64, np.float32))
    y = column_or_1d(y)
    out: list[Pipeline] = [clone(head) for _ in train_rows]
    pairs: dict[tuple[Any, ...], list[int]] = {}
    for fold, at in enumerate(train_rows):
        classes = np.unique(y[at])
        if len(classes) == 2:
            pairs.setdefault(tuple(classes.tolist()), []).append(fold)
            continue
        # scikit-learn's own word on one class, and its own way with three
        given = {} if weights is None else {f"{head.steps[-1][0]}__sample_weight": np.asarray(weights[fold])[at]}
        out[fold].fit(X[at], y[at], **given)
    for folds in pairs.values():
        classes = np.unique(y[train_rows[folds[0]]])
        chosen = None if weights is None else [np.asarray(weights[f], dtype=np.float64) for f in folds]
        heads = [out[f] for f in folds]
        _keep(heads, classes, _Problem(heads, X, y, classes, [train_rows[f] for f in folds], chosen))
    return out


def _keep(heads: Sequence[Pipeline], classes: np.ndarray, problem: _Problem) -> None:
    """Solve a problem and set what scikit-learn's fit would have set, one head per fold."""
    solution, passes = _minima(problem)
    slope = solution[:-1] / problem.ratio  # (features, folds), of features standardised as each fold does
    intercept = solution[-1] + (slope * problem.offset).sum(axis=0)
    for i, head in enumerate(heads):
        last, dtype = head.steps[-1][1], problem.X.dtype
        last.classes_, last.n_features_in_ = classes, len(slope)
        last.coef_, last.intercept_ = slope[None, :, i].astype(dtype), intercept[i : i + 1].astype(dtype)
        last.n_iter_ = np.array([passes[i]], dtype=np.int32)


class _Problem:
    """The penalised loss of every fold, divided by the weight of its cells.

    Coefficients are those of features standardised alike for all folds. A column of a mixture (folds, columns) says which fold
    is meant, or which share of each: the loss of the cells of all folds is their mean.
    """

    def __init__(
        self,
        heads: Sequence[Pipeline],
        X: np.ndarray,
        y: np.ndarray,
        classes: np.ndarray,
        train_rows: Sequence[np.ndarray],
        weights: Sequence[np.ndarray] | None,
    ) -> None:
        self.X, self.target, self.weights = X, y == classes[1], weights
        self.times = np.stack([_times(at, len(y)) for at in train_rows], axis=1)  # (cells, folds)
        self.rows = np.flatnonzero(self.times.any(axis=1))
        last = heads[0].steps[-1][1]
        self.penalty = 1 / last.C
        given = [None] * len(heads) if weights is None else weights
        self.class_weight = np.stack(
            [_class_weight(last, classes, y, at, w) for at, w in zip(train_rows, given, strict=True)]
        )  # (folds, 2)
        scalers = [head.steps[0][1] for head in heads]
        self.total = np.zeros(len(heads))
        for at in self.blocks():
            self._measure(at, scalers)
        mean, scale = (np.stack([getattr(s, k) for s in scalers], axis=1) for k in ("mean_", "scale_"))
        self.centre, self.spread = mean.mean(axis=1), scale.mean(axis=1)  # (features,)
        #: A feature as a fold standardises it is ``ratio`` times the one here, less ``offset``.
        self.ratio, self.offset = self.spread[:, None] / scale, (mean - self.centre[:, None]) / scale

    def _measure(self, at: Any, scalers: Sequence[StandardScaler]) -> None:
        """Let scikit-learn check a block of cells and add it to mean and variance of the features of each fold."""
        X, _ = check_X_y(self.X[at], self.target[at], dtype=(np.float64, np.float32))
        for i, scaler in enumerate(scalers):
            times = self.times[at, i]
            if times.any():
                scaler.partial_fit(X[times > 0] if times.max() == 1 else np.repeat(X, times, axis=0))
        self.total += self.weight(at).sum(axis=0)

    def blocks(self) -> Iterator[Any]:
        """Row numbers of the cells of any fold, some at a time; a slice where nothing is left out."""
        step = _rows(self.X.shape[1])
        for i in range(0, len(self.rows), step):
            at = self.rows[i : i + step]
            yield slice(at[0], at[-1] + 1) if at[-1] - at[0] + 1 == len(at) else at

    def centred(self) -> Iterator[tuple[Any, np.ndarray]]:
        """Blocks with the float64 features of their cells, centred; each overwrites the one before."""
        room = np.empty((min(_rows(self.X.shape[1]), len(self.rows)), self.X.shape[1]))
        for at in self.blocks():
            block = self.X[at]
            yield at, np.subtract(block, self.centre, out=room[: len(block)])

    def weight(self, at: Any) -> np.ndarray:
        """Weight of each cell in each fold, (cells, folds)."""
        out = self.times[at] * self.class_weight.T[self.target[at].astype(np.intp)]
        return out if self.weights is None else out * np.stack([w[at] for w in self.weights], axis=1)

    def evaluate(self, w: np.ndarray, mixture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Loss (columns,) and gradient (features + 1, columns) at coefficients of that shape."""
        slope, shrunk = w[:-1] / self.spread[:, None], (1 / self.ratio**2) @ mixture * w[:-1]
        loss, gradient = 0.5 * self.penalty * (shrunk * w[:-1]).sum(axis=0), np.zeros_like(w)
        for at, block in self.centred():
            margin, weight, target = block @ slope + w[-1], self.weight(at) @ mixture, self.target[at, None]
            decay = np.exp(-np.abs(margin))
            loss += (weight * (np.maximum(margin, 0) + np.log1p(decay) - target * margin)).sum(axis=0)
            rest = weight * (np.where(margin >= 0, 1, decay) / (1 + decay) - target)
            gradient[:-1] += block.T @ rest
            gradient[-1] += rest.sum(axis=0)
        gradient[:-1] = gradient[:-1] / self.spread[:, None] + self.penalty * shrunk
        total = self.total @ mixture
        return loss / total, gradient / total

    def size(self, gradient: np.ndarray, mixture: np.ndarray) -> np.ndarray:
        """Largest entry of a gradient in units of the features as each fold standardises them, (columns,)."""
        own = gradient[:-1] * (self.ratio @ mixture) - gradient[-1] * (self.offset @ mixture)
        return np.maximum(np.abs(own).max(axis=0), np.abs(gradient[-1]))

    def hessian(self, w: np.ndarray, mixture: np.ndarray) -> np.ndarray:
        """Second derivatives at one column; its products are float32, for a step need not be exact."""
        d = len(w) - 1
        slope, H = w[:-1] / self.spread[:, None], np.zeros((d + 1, d + 1))
        part = np.empty((min(_rows(d), len(self.rows)), d + 1), dtype=np.float32)
        for at, block in self.centred():
            decay = np.exp(-np.abs(block @ slope + w[-1]))
            root = np.sqrt(self.weight(at) @ mixture * decay) / (1 + decay)  # (cells, 1)
            block /= self.spread
            np.multiply(block, root, out=part[: len(block), :-1], casting="same_kind")
            part[: len(block), -1:] = root
            H += part[: len(block)].T @ part[: len(block)]
        H[np.arange(d), np.arange(d)] += self.penalty * ((1 / self.ratio**2) @ mixture)[:, 0]
        return H / (self.total @ mixture)


def _rows(n_features: int) -> int:
    """Cells of a block: enough for the Hessian to be worth a product, and few enough to stay in the cache of the processor."""
    return max(1024, _BLOCK // n_features)


def _times(at: np.ndarray, n: int) -> np.ndarray:
    """How often a fold counts each cell, (cells,): mostly once or never, in a byte."""
    times = np.bincount(np.arange(n)[at], minlength=n)
    return times.astype(np.min_scalar_type(times.max()))


def _class_weight(
    last: LogisticRegression, classes: np.ndarray, y: np.ndarray, at: np.ndarray, weight: np.ndarray | None
) -> np.ndarray:
    """Weights of the two classes in a fold."""
    from sklearn.utils.class_weight import compute_class_weight

    if last.class_weight is None:
        return np.ones(2)
    # Whether class totals count cells or their weights is for scikit-learn's version to say.
    taken = "sample_weight" in signature(compute_class_weight).parameters
    weighted = {"sample_weight": np.ones(len(y[at])) if weight is None else weight[at]} if taken else {}
    return compute_class_weight(last.class_weight, classes=classes, y=y[at], **weighted)


class _Curvature:
    """A factorised Hessian, of this problem or of one like it."""

    def __init__(self) -> None:
        self.factor: Any = None

    def renew(self, H: np.ndarray) -> None:
        """Factorise a Hessian; where rounding has made it indefinite, that with a larger diagonal."""
        diagonal, more = np.diag_indices_from(H), 0.0
        while True:
            try:
                self.factor = cho_factor(H)
                return
            except LinAlgError:
                more = max(10 * more, 1e-7 * float(H[diagonal].max()), 1e-12)
                H[diagonal] += more

    def direction(self, gradient: np.ndarray, seen: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]]) -> np.ndarray:
        """Steps down (features + 1, columns), given the steps of each column so far and what they changed in its gradient."""
        ahead = gradient.copy()
        shares: list[list[float]] = []
        for i, pairs in enumerate(seen):
            shares.append([])
            for step, change in reversed(pairs):
                share = (step @ ahead[:, i]) / (step @ change)
                ahead[:, i] -= share * change
                shares[i].append(share)
        ahead = cho_solve(self.factor, ahead)
        for i, pairs in enumerate(seen):
            for (step, change), share in zip(pairs, reversed(shares[i]), strict=True):
                ahead[:, i] += step * (share - (change @ ahead[:, i]) / (step @ change))
        return -ahead


def _minima(problem: _Problem) -> tuple[np.ndarray, np.ndarray]:
    """Find the minimum of every fold; returns coefficients (features + 1, folds), and the passes over the cells for each."""
    n, k = problem.X.shape[1] + 1, len(problem.total)
    each, curvature = np.eye(k), _Curvature()
    if k == 1:
        return _alone(problem, np.zeros((n, 1)), each, TOLERANCE)
    mean = np.full((k, 1), 1 / k)
    start, before = _alone(problem, np.zeros((n, 1)), mean, _NEAR)
    curvature.renew(problem.hessian(start, mean))
    w, arrived, passes = _descend(problem, np.repeat(start, k, axis=1), each, curvature, TOLERANCE, _TOGETHER)
    passes += before
    for i in np.flatnonzero(~arrived):
        w[:, [i]], more = _alone(problem, w[:, [i]], each[:, [i]], TOLERANCE)
        passes[i] += more[0]
    return w, passes


def _alone(problem: _Problem, w: np.ndarray, mixture: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """Find the minimum of one column with Hessians of its own."""
    curvature, passes = _Curvature(), np.zeros(1, dtype=np.intp)
    for _ in range(_RENEWALS):
        curvature.renew(problem.hessian(w, mixture))
        after, arrived, more = _descend(problem, w, mixture, curvature, tolerance, _ALONE)
        passes += more
        if arrived.all() or (after == w).all():  # no step goes further down: the minimum to the last digit
            return after, passes
        w = after
    if tolerance == TOLERANCE:
        warn(
            f"logistic regression is not at its minimum after {_RENEWALS} Hessians: its scores are approximate. Lower C."
        )
    return w, passes


def _descend(
    problem: _Problem, w: np.ndarray, mixture: np.ndarray, curvature: _Curvature, tolerance: float, most: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Go down in every column with one Hessian; returns where that led, whether to the minimum, and the passes it took."""
    w, k = w.copy(), w.shape[1]
    loss, gradient = problem.evaluate(w, mixture)
    seen: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(k)]
    passes, taken, length, ahead = np.ones(k, dtype=np.intp), np.zeros(k, dtype=np.intp), np.ones(k), np.zeros_like(w)
    while True:
        arrived = problem.size(gradient, mixture) <= tolerance
        going = np.flatnonzero(~arrived & (taken < most) & (length > 1e-6))
        if not len(going):
            return w, arrived, passes
        fresh = going[length[going] == 1]
        if len(fresh):
            ahead[:, fresh] = curvature.direction(gradient[:, fresh], [seen[i] for i in fresh])
        there = w[:, going] + length[going] * ahead[:, going]
        value, slope = problem.evaluate(there, mixture[:, going])
        passes[going] += 1
        for j, i in enumerate(going):
            # Near the minimum the loss differs by less than its rounding.
            fall = 1e-4 * length[i] * (gradient[:, i] @ ahead[:, i]) + 1e-12 * abs(loss[i])
            if not value[j] <= loss[i] + fall:
                length[i] /= 2
                continue
            step, change = there[:, j] - w[:, i], slope[:, j] - gradient[:, i]
            if step @ change > 0:
                seen[i].append((step, change))
            w[:, i], gradient[:, i], loss[i], length[i] = there[:, j], slope[:, j], value[j], 1
            taken[i] += 1
