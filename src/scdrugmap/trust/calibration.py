"""Calibrated probabilities: scikit-learn's maps, fitted on held-out scores, kept as numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from scdrugmap._errors import UnknownNameError

METHODS = ("sigmoid", "isotonic")


@dataclass(frozen=True, eq=False)
class Calibrator:
    """A monotone map from log-odds to a probability.

    Parameters
    ----------
    method
        ``"sigmoid"`` (Platt) or ``"isotonic"``.
    x, y
        For sigmoid: slope and offset, as scikit-learn defines them, in ``x``. For isotonic: the corners of the step map.

    Examples
    --------
    >>> import numpy as np
    >>> scores, y = np.array([-2.0, -1, 0.5, 1, 2, -0.5]), np.array([0, 0, 1, 1, 1, 1])
    >>> p = Calibrator.fit(scores, y, "sigmoid")(scores)
    >>> bool(np.all(np.diff(p[np.argsort(scores)]) > 0))
    True
    """

    method: Literal["sigmoid", "isotonic"]
    x: np.ndarray
    y: np.ndarray

    @classmethod
    def fit(cls, margin: np.ndarray, y: np.ndarray, method: str) -> Calibrator:
        """Fit the map on scores of cells that the head has not seen.

        Parameters
        ----------
        margin
            Log-odds (cells,).
        y
            0 or 1 (cells,).
        method
            ``"sigmoid"``, sound with few samples, or ``"isotonic"``, which needs many.

        Returns
        -------
        The calibrator.

        Raises
        ------
        UnknownNameError
            For another method.
        """
        from sklearn.calibration import CalibratedClassifierCV
        from sklearn.frozen import FrozenEstimator

        if method not in METHODS:
            raise UnknownNameError("calibrate", method, METHODS)
        column = np.asarray(margin, dtype=np.float64)[:, None]
        passed = FrozenEstimator(_passthrough(column, y))
        inner = CalibratedClassifierCV(passed, method=method).fit(column, y).calibrated_classifiers_[0].calibrators[0]
        if method == "sigmoid":
            return cls("sigmoid", np.array([inner.a_, inner.b_]), np.empty(0))
        return cls("isotonic", np.asarray(inner.X_thresholds_, float), np.asarray(inner.y_thresholds_, float))

    def __call__(self, margin: np.ndarray) -> np.ndarray:
        """Return probabilities for log-odds."""
        from scipy.special import expit

        margin = np.asarray(margin, dtype=np.float64)
        if self.method == "sigmoid":
            return expit(-(self.x[0] * margin + self.x[1]))
        return np.interp(margin, self.x, self.y)

    def state(self) -> dict[str, np.ndarray]:
        """Return the numbers of the map."""
        return {"x": self.x, "y": self.y}

    @classmethod
    def from_state(cls, method: Any, state: Mapping[str, np.ndarray]) -> Calibrator:
        """Rebuild from :meth:`state`."""
        return cls(method, np.asarray(state["x"]), np.asarray(state["y"]))


def _passthrough(column: np.ndarray, y: np.ndarray) -> Any:
    """A classifier that hands on its one feature as the score."""
    from sklearn.base import BaseEstimator, ClassifierMixin

    class Passthrough(ClassifierMixin, BaseEstimator):
        def fit(self, X: np.ndarray, y: np.ndarray) -> Any:
            self.classes_ = np.unique(y)
            return self

        def decision_function(self, X: np.ndarray) -> np.ndarray:
            return np.asarray(X)[:, 0]

        def predict(self, X: np.ndarray) -> np.ndarray:
            return self.classes_[(np.asarray(X)[:, 0] > 0).astype(int)]

    return Passthrough().fit(column, y)
