"""The exact solution of ``logistic`` against scikit-learn's own solver, run to a far smaller tolerance than its default."""

from __future__ import annotations

import tracemalloc
import warnings

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from scdrugmap._errors import ScDrugMapWarning
from scdrugmap.heads import logistic
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
    X, y, folds = cells
    made = []
    renew = logistic._Curvature.renew
    monkeypatch.setattr(logistic._Curvature, "renew", lambda self, *a: (made.append(1), renew(self, *a)))
    fit_folds(make_head("logistic"), X, y, folds[:1])
    alone = len(made)
    made.clear()
    fit_folds(make_head("logistic"), X, y, folds)
    assert 0 < len(made) <= alone + 1


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


def scores(heads, X):
    return np.stack([head.decision_function(X) for head in heads])


def expected(X, y, folds, **params):
    return np.stack([oracle(X[at], y[at], **params).decision_function(X) for at in folds])


@pytest.mark.parametrize("rows", [7, 600])
def test_the_solution_does_not_depend_on_the_size_of_a_block(cells, rows, monkeypatch):
    X, y, folds = cells
    whole = scores(fit_folds(make_head("logistic"), X, y, folds), X)
    monkeypatch.setattr(logistic, "_rows", lambda n_features: rows)
    np.testing.assert_allclose(scores(fit_folds(make_head("logistic"), X, y, folds), X), whole, atol=1e-5)


def test_each_fold_is_standardised_as_scikit_learn_does(cells, monkeypatch):
    X, y, folds = cells
    X = X * np.geomspace(1e-3, 1e3, 30)
    X[:, 3] = 0.1  # constant, and not a binary fraction
    X[folds[1], 4] = 0.7  # constant in one fold, not in the others
    monkeypatch.setattr(logistic, "_rows", lambda n_features: 64)
    heads = fit_folds(make_head("logistic"), X, y, folds)
    for head, at in zip(heads, folds, strict=True):
        theirs = StandardScaler().fit(X[at])
        for name in ("mean_", "var_", "scale_"):
            np.testing.assert_allclose(getattr(head[0], name), getattr(theirs, name), rtol=1e-9, atol=1e-15)
        assert head[0].n_samples_seen_ == theirs.n_samples_seen_
        assert head[0].n_features_in_ == 30
    assert heads[1][0].scale_[4] == 1
    assert heads[0][0].scale_[4] != 1
    np.testing.assert_allclose(scores(heads, X), expected(X, y, folds), atol=1e-4, rtol=1e-4)


def test_folds_that_are_nothing_like_one_another(cells, monkeypatch):
    X, y, _ = cells
    X = X + np.repeat([0, 30, -10], 200)[:, None]  # three studies far apart
    y = np.where(np.arange(600) % 7 < np.repeat([1, 3, 6], 200), "sensitive", y)
    folds = [np.arange(200), np.arange(200, 420), np.r_[0:20, 420:600]]
    for together in (16, 1):
        monkeypatch.setattr(logistic, "_TOGETHER", together)
        heads = fit_folds(make_head("logistic"), X, y, folds)
        np.testing.assert_allclose(scores(heads, X), expected(X, y, folds), atol=1e-3, rtol=1e-4)
        for head, at in zip(heads, folds, strict=True):
            rest = head.predict_proba(X[at])[:, 1] - (y[at] == "sensitive")
            slope = (rest @ head[0].transform(X[at]) + head[1].coef_[0]) / len(at)
            assert max(np.abs(slope).max(), abs(rest.mean())) < 2 * TOLERANCE


def test_cells_drawn_several_times_and_cells_drawn_by_no_fold(cells):
    X, y, _ = cells
    X = X.copy()
    X[::5] = np.nan
    rng = np.random.default_rng(3)
    known = np.flatnonzero(np.arange(600) % 5)
    folds = [rng.choice(known, size=400) for _ in range(3)]
    heads = fit_folds(make_head("logistic"), X, y, folds)
    theirs = np.stack([oracle(X[at], y[at]).decision_function(X[known]) for at in folds])
    np.testing.assert_allclose(scores(heads, X[known]), theirs, atol=1e-4, rtol=1e-4)


def test_folds_of_other_classes_each_find_their_own(cells):
    X, y, _ = cells
    y = np.where(np.arange(600) < 150, "unclear", y)
    folds = [np.arange(150, 600), np.r_[0:150, np.flatnonzero(y == "sensitive")], np.arange(600)]
    heads = fit_folds(make_head("logistic"), X, y, folds)
    for head, at in zip(heads, folds, strict=True):
        # with three classes scikit-learn's own solver fits, which is not exact
        theirs = oracle(X[at], y[at]) if len(set(y[at])) == 2 else make_head("logistic").fit(X[at], y[at])
        assert head.classes_.tolist() == theirs.classes_.tolist()
        np.testing.assert_allclose(head.predict_proba(X), theirs.predict_proba(X), atol=1e-5)


def test_folds_do_not_copy_the_features(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    n, d, k = 40_000, 32, 8
    file = tmp_path / "features.npy"
    np.save(file, rng.normal(size=(n, d)).astype(np.float32))
    X = np.load(file, mmap_mode="r")
    y = (np.asarray(X[:, 0]) + rng.normal(size=n) > 0).astype(int)
    folds = [np.setdiff1d(np.arange(n), part) for part in np.array_split(rng.permutation(n), k)]
    monkeypatch.setattr(logistic, "_BLOCK", 1 << 15)
    fit_folds(make_head("logistic"), X[:500], y[:500], [np.arange(500)])  # imports
    tracemalloc.start()
    try:
        fit_folds(make_head("logistic"), X, y, folds)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # A few numbers per cell, a byte per cell and fold: less than one copy of the features, let alone one for each fold.
    assert peak < X.nbytes / 2


def test_loss_and_gradient_of_each_fold_in_its_own_units(cells):
    X, y, _ = cells
    X = X + np.repeat([0, 30, -10], 200)[:, None]
    folds = [np.arange(250), np.arange(150, 450), np.arange(350, 600)]
    heads = [make_head("logistic", C=0.5) for _ in folds]
    problem = logistic._Problem(heads, X, y, np.array(["resistant", "sensitive"]), folds, None)
    w = np.random.default_rng(5).normal(size=(31, 3)) / 10
    loss, gradient = problem.evaluate(w, np.eye(3))
    sizes = problem.size(gradient, np.eye(3))
    for i, at in enumerate(folds):
        Z, sensitive = StandardScaler().fit_transform(X[at]), y[at] == "sensitive"
        slope = w[:-1, i] / problem.ratio[:, i]
        p = 1 / (1 + np.exp(-(Z @ slope + w[-1, i] + slope @ problem.offset[:, i])))
        value = -(np.log(p[sensitive]).sum() + np.log(1 - p[~sensitive]).sum()) + slope @ slope
        own = np.append((p - sensitive) @ Z + 2 * slope, (p - sensitive).sum()) / len(at)
        np.testing.assert_allclose(loss[i], value / len(at), rtol=1e-10)
        np.testing.assert_allclose(sizes[i], np.abs(own).max(), rtol=1e-8)


def test_a_hessian_that_is_far_off_costs_steps_and_not_the_solution(cells, monkeypatch):
    X, y, folds = cells
    honest = logistic._Curvature.direction
    monkeypatch.setattr(logistic._Curvature, "direction", lambda self, *a: 3000 * honest(self, *a))
    heads = fit_folds(make_head("logistic"), X, y, folds[:2])
    np.testing.assert_allclose(scores(heads, X), expected(X, y, folds[:2]), atol=1e-4, rtol=1e-4)


def test_a_solution_that_is_not_the_minimum_says_so(monkeypatch):
    X = np.random.default_rng(0).normal(size=(60, 3))
    monkeypatch.setattr(logistic, "_RENEWALS", 0)
    with pytest.warns(ScDrugMapWarning, match="not at its minimum"):
        fit_logistic(make_head("logistic"), X, (X[:, 0] > 0).astype(int), [np.arange(60)])
