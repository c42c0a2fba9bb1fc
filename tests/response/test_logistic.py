"""The exact solution of ``logistic`` against scikit-learn's own solver, run to a far smaller tolerance than its default."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from scdrugmap.heads.fit import fit_folds, fit_with
from scdrugmap.heads.logistic import TOLERANCE, fit_logistic, solvable
from scdrugmap.heads.make import make_head


@pytest.fixture(scope="module")
def cells():
    """Features of very different spread that depend on one another, far from zero, as embeddings are."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(30, 30))
    X = (rng.normal(size=(600, 30)) / np.arange(1, 31) ** 1.5) @ mixing + 5
    y = np.where((X - 5) @ rng.normal(size=30) + rng.normal(size=600) > 0, "sensitive", "resistant")
    folds = [np.setdiff1d(np.arange(600), part) for part in np.array_split(rng.permutation(600), 4)]
    return X, y, folds


def oracle(X, y, weight=None, **params):
    """scikit-learn at a tolerance that its default solver can reach only with many steps."""
    head = make_pipeline(StandardScaler(), LogisticRegression(solver="newton-cholesky", tol=1e-12, **params))
    return head.fit(X, y, logisticregression__sample_weight=weight)


@pytest.mark.parametrize(
    "params", [{}, {"C": 0.01}, {"C": 1e4}, {"class_weight": "balanced"}, {"class_weight": {"sensitive": 3.0}}], ids=str
)
@pytest.mark.parametrize("weighted", [False, True])
def test_every_fold_has_the_solution_of_scikit_learn(cells, params, weighted):
    X, y, folds = cells
    weights = None
    if weighted:
        weights = [np.random.default_rng(i).exponential(size=len(y)) for i in range(len(folds))]
    fitted = fit_folds(make_head("logistic", **params), X, y, folds, weights=weights)
    for fold, (head, at) in enumerate(zip(fitted, folds, strict=True)):
        expected = oracle(X[at], y[at], None if weights is None else weights[fold][at], **params)
        np.testing.assert_allclose(head.decision_function(X), expected.decision_function(X), atol=1e-4, rtol=1e-4)
        np.testing.assert_allclose(head.predict_proba(X), expected.predict_proba(X), atol=1e-5)
        assert head.classes_.tolist() == ["resistant", "sensitive"]


def test_the_gradient_of_the_loss_is_zero_at_the_solution(cells):
    X, y, folds = cells
    head = fit_folds(make_head("logistic"), X, y, folds)[3]
    Z, at = head[0].transform(X[folds[3]]), folds[3]
    rest = head.predict_proba(X[at])[:, 1] - (y[at] == "sensitive")
    slope = (rest @ Z + head[1].coef_[0]) / len(at)
    assert max(np.abs(slope).max(), abs(rest.mean())) < 2 * TOLERANCE


def test_order_of_folds_and_single_fits_agree(cells):
    X, y, folds = cells
    forward = fit_folds(make_head("logistic"), X, y, folds)
    backward = fit_folds(make_head("logistic"), X, y, folds[::-1])[::-1]
    for at, one, other in zip(folds, forward, backward, strict=True):
        alone = fit_with(make_head("logistic"), X[at], y[at])
        np.testing.assert_allclose(one.predict_proba(X), other.predict_proba(X), atol=1e-5)
        np.testing.assert_allclose(one.predict_proba(X), alone.predict_proba(X), atol=1e-5)


def test_float32_separable_and_constant_features(cells):
    X, _, folds = cells
    X = np.hstack([X, np.ones((len(X), 1))]).astype(np.float32)
    y = X[:, 0] > np.median(X[:, 0])
    for head, at in zip(fit_folds(make_head("logistic"), X, y, folds), folds, strict=True):
        assert head[1].coef_.dtype == np.float32
        np.testing.assert_allclose(
            head.predict_proba(X), oracle(X[at].astype(float), y[at]).predict_proba(X), atol=1e-4
        )


def test_more_features_than_cells():
    rng = np.random.default_rng(1)
    X, y = rng.normal(size=(40, 200)), np.tile([0, 1], 20)
    head = fit_with(make_head("logistic"), X, y)
    np.testing.assert_allclose(head.predict_proba(X), oracle(X, y).predict_proba(X), atol=1e-5)


def test_few_hessians_serve_all_folds(cells, monkeypatch):
    from scdrugmap.heads import logistic

    X, y, folds = cells
    made = []
    renew = logistic._Curvature.renew
    monkeypatch.setattr(logistic._Curvature, "renew", lambda self, *a: (made.append(1), renew(self, *a)))
    fit_folds(make_head("logistic"), X, y, folds[:1])
    alone = len(made)
    made.clear()
    fit_folds(make_head("logistic"), X, y, folds)
    assert 0 < len(made) < 2 * alone + len(folds)


def test_scikit_learn_keeps_what_is_another_problem():
    plain = make_pipeline(StandardScaler(), LogisticRegression())
    assert solvable(plain, 512)
    assert not solvable(plain, 100_000)
    for other in (
        make_pipeline(StandardScaler(), LogisticRegression(l1_ratio=1.0, solver="saga")),
        make_pipeline(StandardScaler(), LogisticRegression(fit_intercept=False)),
        make_pipeline(StandardScaler(with_mean=False), LogisticRegression()),
        make_pipeline(StandardScaler(), StandardScaler(), LogisticRegression()),
        LogisticRegression(),
    ):
        assert not solvable(other, 512)


def test_values_that_scikit_learn_refuses_are_refused(cells):
    X, y, _ = cells
    broken = X.copy()
    broken[3, 4] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        fit_with(make_head("logistic"), broken, y)
    with pytest.raises(ValueError, match="class"):
        fit_with(make_head("logistic"), X, np.repeat("sensitive", len(y)))


def test_the_fitted_classifier_is_a_plain_one(cells):
    X, y, folds = cells
    head = fit_logistic(make_head("logistic", random_state=4), X, y, folds[:1])[0]
    assert type(head) is Pipeline
    assert head[1].n_features_in_ == 30
    assert head[1].n_iter_.shape == (1,)
    assert head[1].random_state == 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert head.predict(X[:3]).shape == (3,)
