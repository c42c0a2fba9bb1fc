"""Every metric against scikit-learn or brute force, and every undefined case."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from scdrugmap._errors import InputError, UnknownNameError
from scdrugmap._metrics import METRICS, N_BINS, Sums, evaluate, resolve_metrics

ORACLES = {
    "f1": lambda y, s, p: sk.f1_score(y, p),
    "f1_resistant": lambda y, s, p: sk.f1_score(y, p, pos_label=0),
    "f1_macro": lambda y, s, p: sk.f1_score(y, p, average="macro"),
    "accuracy": lambda y, s, p: sk.accuracy_score(y, p),
    "balanced_accuracy": lambda y, s, p: sk.balanced_accuracy_score(y, p),
    "precision": lambda y, s, p: sk.precision_score(y, p),
    "recall": lambda y, s, p: sk.recall_score(y, p),
    "specificity": lambda y, s, p: sk.recall_score(y, p, pos_label=0),
    "mcc": lambda y, s, p: sk.matthews_corrcoef(y, p),
    "auroc": lambda y, s, p: sk.roc_auc_score(y, s),
    "auprc": lambda y, s, p: sk.average_precision_score(y, s),
    "brier": lambda y, s, p: sk.brier_score_loss(y, s),
    "log_loss": lambda y, s, p: sk.log_loss(y, s, labels=[0, 1]),
}


def brute_ece(y, s):
    total = 0.0
    for b in range(N_BINS):
        inside = [(yi, si) for yi, si in zip(y, s, strict=True) if b == min(int(float(si) * N_BINS), N_BINS - 1)]
        total += abs(sum(yi for yi, _ in inside) - sum(float(si) for _, si in inside))
    return total / len(y)


def test_every_metric_has_an_oracle():
    assert set(ORACLES) | {"ece"} == set(METRICS)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_metrics_equal_scikit_learn(seed, ties):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, 200)
    s = np.clip(rng.normal(0.4 + 0.2 * y, 0.3), 0, 1).astype(np.float32)
    if ties:
        s = np.round(s, 1)
    p = (s >= 0.5).astype(int)
    got = evaluate(y, s, p)
    for name, oracle in ORACLES.items():
        assert got[name][0] == pytest.approx(oracle(y, s, p), abs=1e-6), name
        assert got[name][1] == ""
    assert got["ece"][0] == pytest.approx(brute_ece(y, s), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 10)), min_size=1, max_size=12))
def test_a_value_or_a_reason(pairs):
    y, s = np.array([a for a, _ in pairs]), np.array([b / 10 for _, b in pairs])
    for name, (value, reason) in evaluate(y, s, (s >= 0.5).astype(int)).items():
        assert np.isfinite(value) == (reason == ""), name
        if np.isfinite(value) and name != "log_loss":
            assert -1 <= value <= 1


def test_one_class_makes_rankings_undefined_not_zero():
    got = evaluate(np.ones(4), np.array([0.1, 0.6, 0.7, 0.9]), np.array([0, 1, 1, 1]))
    for name in ("auroc", "auprc", "mcc", "balanced_accuracy", "specificity"):
        assert np.isnan(got[name][0])
        assert got[name][1]
    assert got["recall"] == (0.75, "")


def test_no_positive_call_makes_precision_undefined_not_one():
    got = evaluate(np.array([0, 1]), np.array([0.1, 0.2]), np.array([0, 0]))
    assert np.isnan(got["precision"][0])
    assert got["precision"][1] == "no cell called sensitive"
    assert got["f1"][0] == 0
    assert got["mcc"][0] == 0


def test_calling_every_cell_sensitive_scores_2p_over_1_plus_p():
    y = np.array([1] * 30 + [0] * 70)
    assert evaluate(y, np.ones(100), np.ones(100, int))["f1"][0] == pytest.approx(0.6 / 1.3)


def test_no_cells():
    assert all(np.isnan(v) and r == "no test cell" for v, r in evaluate(np.empty(0), np.empty(0), np.empty(0)).values())


def test_custom_metric_gets_labels_scores_calls():
    def youden(y, score, pred):
        if len(np.unique(y)) < 2:
            raise ValueError("one class")
        return pred[y == 1].mean() - pred[y == 0].mean()

    y, s = np.array([0, 0, 1, 1]), np.array([0.1, 0.6, 0.7, 0.9])
    assert evaluate(y, s, s >= 0.5, {"youden": youden})["youden"] == (0.5, "")
    assert evaluate(y[2:], s[2:], s[2:] >= 0.5, {"youden": youden})["youden"][1] == "one class"
    assert [m.name for m in resolve_metrics(["f1", youden])] == ["f1", "youden"]


def test_unknown_metric_names_the_nearest():
    with pytest.raises(UnknownNameError, match="auroc"):
        resolve_metrics("aurocc")
    with pytest.raises(InputError):
        resolve_metrics([])


@pytest.mark.parametrize("name", list(METRICS))
def test_group_weights_equal_repeated_cells(name):
    rng = np.random.default_rng(1)
    y, group = rng.integers(0, 2, 150), rng.integers(0, 9, 150)
    s = np.round(rng.random(150), 2)
    p = (s >= 0.5).astype(int)
    weights = rng.integers(0, 4, (6, 9)).astype(float)
    got = Sums(s, p, group, y == 1, y == 0).values(METRICS[name], weights, weights)
    for w, value in zip(weights, got, strict=True):
        rows = np.repeat(np.arange(150), w[group].astype(int))
        assert value == pytest.approx(evaluate(y[rows], s[rows], p[rows], name)[name][0], abs=1e-9)


def test_chunks_do_not_change_rankings():
    rng = np.random.default_rng(2)
    y, s, group = rng.integers(0, 2, 80), rng.random(80), rng.integers(0, 5, 80)
    w = rng.integers(0, 3, (20, 5)).astype(float)
    small, large = (Sums(s, s > 0.5, group, y == 1, y == 0) for _ in range(2))
    small.budget = 100
    for name in ("auroc", "auprc"):
        np.testing.assert_array_equal(small.values(METRICS[name], w, w), large.values(METRICS[name], w, w))
