"""One rule for an F1 that is undefined: NaN with the reason, wherever a user sees it."""

from __future__ import annotations

import numpy as np
import pytest

from scdrugmap._metrics import METRICS
from scdrugmap.predictor.training import held_out_metrics
from scdrugmap.tl._few_shot_curve import _scores


class Says:
    """A head that gives every cell the probability of its first feature."""

    def predict_proba(self, X):
        return np.stack([1 - X[:, 0], X[:, 0]], axis=1)


def test_held_out_metrics():
    found = held_out_metrics(np.array([-1.0, -2.0]), np.array([0, 0]))
    assert np.isnan(found["f1"])
    assert METRICS["f1"].undefined in found["undefined"]
    assert held_out_metrics(np.array([-1.0, 2.0]), np.array([0, 1])) == {"auroc": 1.0, "f1": 1.0}


def test_few_shot_curve():
    value, reason = _scores(Says(), np.array([[0.1], [0.2]]), np.array([0, 0]))["f1"]
    assert np.isnan(value)
    assert reason == METRICS["f1"].undefined
    value, reason = _scores(Says(), np.array([[0.1], [0.6], [0.7]]), np.array([0, 0, 1]))["f1"]
    assert value == pytest.approx(2 / 3)
    assert reason == ""
