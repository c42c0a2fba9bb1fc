"""Logistic regression on standardised features, solved exactly for all folds of a cross-validation.

Newton's method finds the one minimum of the penalised loss whatever the conditioning of the features; the Hessian, which is
what a step costs, is factorised once and serves all folds for as long as the gradient falls quickly with it. Gradients are
float64, so that the solution does not depend on the arithmetic of the Hessian.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.special import expit
from sklearn import get_config
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

#: With more features the Hessian would take longer than scikit-learn's solver.
MOST_FEATURES = 4096
#: Largest entry of the gradient of the mean loss at the solution (scikit-learn's default stops at 1e-4).
TOLERANCE = 1e-7
#: A step that leaves more than this share of the gradient asks for a Hessian at the new point.
SLOW = 0.3
_STEPS = 200
#: Cells that enter the Hessian at a time.
_ROWS = 4096
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
        Features (cells, features) and labels (cells,) of all cells.
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
    curvature, start, out = _Curvature(), None, []
    for fold, at in enumerate(train_rows):
        weight = None if weights is None else np.asarray(weights[fold], dtype=np.float64)[at]
        fitted, solution = _fit(head, X[at], y[at], weight, curvature, start)
        start = solution
        out.append(fitted)
    return out


def _fit(
    head: Pipeline, X: np.ndarray, y: np.ndarray, weight: np.ndarray | None, curvature: _Curvature, start: Any
) -> tuple[Pipeline, np.ndarray]:
    """Fit one copy; also returns the solution in units of the features, from which the next fold starts."""
    from sklearn.utils.class_weight import compute_class_weight
    from sklearn.utils.validation import check_X_y

    fitted = clone(head)
    scaler, last = (step for _, step in fitted.steps)
    X, y = check_X_y(X, y, dtype=(np.float64, np.float32))
    classes = np.unique(y)
    if len(classes) != 2:
        # scikit-learn's own word on one class, and its own way with three
        return fitted.fit(X, y, **({} if weight is None else {f"{fitted.steps[-1][0]}__sample_weight": weight})), start
    Z = scaler.fit(X).transform(X).astype(np.float64)
    second = (y == classes[1]).astype(np.intp)
    cells = np.ones(len(y)) if weight is None else weight
    # Whether class totals count cells or their weights is for scikit-learn's version to say.
    weighted = {"sample_weight": cells} if "sample_weight" in signature(compute_class_weight).parameters else {}
    cells = cells * compute_class_weight(last.class_weight, classes=classes, y=y, **weighted)[second]
    problem = _Problem(Z, second.astype(np.float64), cells, 1 / last.C)
    given = None
    if start is not None:
        slope = start[:-1] * scaler.scale_
        given = np.append(slope, start[-1] + start[:-1] @ scaler.mean_)
    solution, steps = _minimum(problem, curvature, given)
    last.classes_, last.n_features_in_ = classes, X.shape[1]
    last.coef_, last.intercept_ = solution[None, :-1].astype(X.dtype), solution[-1:].astype(X.dtype)
    last.n_iter_ = np.array([steps], dtype=np.int32)
    plain = solution[:-1] / scaler.scale_
    return fitted, np.append(plain, solution[-1] - plain @ scaler.mean_)


@dataclass
class _Problem:
    """The penalised loss, divided by the weight of all cells."""

    Z: np.ndarray
    target: np.ndarray
    weight: np.ndarray
    penalty: float

    def __post_init__(self) -> None:
        self.total = self.weight.sum()

    def loss(self, margin: np.ndarray, w: np.ndarray) -> float:
        """Value where the cells have these log-odds."""
        each = np.logaddexp(0, margin) - self.target * margin
        return float((self.weight @ each + 0.5 * self.penalty * w[:-1] @ w[:-1]) / self.total)

    def margin(self, w: np.ndarray) -> np.ndarray:
        """Log-odds (cells,)."""
        return self.Z @ w[:-1] + w[-1]

    def gradient(self, margin: np.ndarray, w: np.ndarray) -> np.ndarray:
        """Slope and intercept part, (features + 1,)."""
        rest = self.weight * (expit(margin) - self.target)
        return np.append(rest @ self.Z + self.penalty * w[:-1], rest.sum()) / self.total

    def hessian(self, margin: np.ndarray) -> np.ndarray:
        """Second derivatives, (features + 1, features + 1); its products are float32, for a step need not be exact."""
        p, d = expit(margin), self.Z.shape[1]
        curve = self.weight * p * (1 - p)  # (cells,)
        H = np.zeros((d + 1, d + 1))
        for i in range(0, len(curve), _ROWS):
            root = np.sqrt(curve[i : i + _ROWS, None])
            part = np.hstack([self.Z[i : i + _ROWS] * root, root]).astype(np.float32)  # (rows, features + 1)
            H += part.T @ part
        H[np.arange(d), np.arange(d)] += self.penalty
        return H / self.total


class _Curvature:
    """A factorised Hessian, of this problem or of one like it."""

    def __init__(self) -> None:
        self.factor: Any = None

    def renew(self, problem: _Problem, margin: np.ndarray) -> None:
        """Factorise the Hessian at a point; where rounding has made it indefinite, that with a larger diagonal."""
        H = problem.hessian(margin)
        diagonal, more = np.diag_indices_from(H), 0.0
        while True:
            try:
                self.factor = cho_factor(H)
                return
            except LinAlgError:
                more = max(10 * more, 1e-7 * float(H[diagonal].max()), 1e-12)
                H[diagonal] += more

    def direction(self, gradient: np.ndarray) -> np.ndarray:
        """The step down."""
        return -cho_solve(self.factor, gradient)


def _minimum(problem: _Problem, curvature: _Curvature, start: np.ndarray | None) -> tuple[np.ndarray, int]:
    """Find the minimum; returns it with the number of steps."""
    w = np.zeros(problem.Z.shape[1] + 1) if start is None else start
    margin = problem.margin(w)
    gradient, loss = problem.gradient(margin, w), problem.loss(margin, w)
    fresh = False
    for step in range(_STEPS):
        size = np.abs(gradient).max()
        if size <= TOLERANCE:
            return w, step
        if curvature.factor is None:
            curvature.renew(problem, margin)
            fresh = True
        ahead = curvature.direction(gradient)
        along, length = float(gradient @ ahead), 1.0
        while True:
            at = w + length * ahead
            there = problem.margin(at)
            value = problem.loss(there, at)
            # Near the minimum the loss differs by less than its rounding; the gradient then decides.
            if value <= loss + 1e-4 * length * along + 1e-12 * abs(loss) or length < 1e-6:
                break
            length /= 2
        after = problem.gradient(there, at)
        slow = np.abs(after).max() > SLOW * size
        if slow and fresh and length < 1e-6:
            return w, step  # no step goes further down: the minimum to the last digit of the arithmetic
        if slow and not fresh:
            # The curvature of another point or fold does not serve here: that of this one does.
            curvature.renew(problem, margin)
            fresh = True
            continue
        w, margin, gradient, loss = at, there, after, value
        fresh = False
        if slow:
            curvature.factor = None
    return w, _STEPS
