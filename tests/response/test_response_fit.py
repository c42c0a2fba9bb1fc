"""Groups and weights reach every classifier that takes them, by whatever way it is fitted."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

import scdrugmap as sd
from scdrugmap._errors import InputError
from scdrugmap.heads import tasks
from scdrugmap.heads.fit import fit_folds, fit_with
from scdrugmap.response import MLPHead

torch.set_num_threads(1)
STOPPING = {"hidden": (4,), "epochs": 2, "early_stopping": True, "validation_fraction": 0.3}


def cells(n_samples=24, per_sample=6, seed=0) -> ad.AnnData:
    """The first feature of a cell is the number of its sample, so that a split can be read from the features."""
    rng = np.random.default_rng(seed)
    sample = np.repeat(np.arange(n_samples), per_sample)
    X = rng.normal(size=(len(sample), 5)).astype(np.float32)
    X[:, 0] = sample
    obs = pd.DataFrame(
        {
            "response": np.where(sample % 2, "sensitive", "resistant"),
            "sample": [f"s{i}" for i in sample],
            "study": np.where(sample < n_samples // 2, "a", "b"),
        },
        index=[f"c{i}" for i in range(len(sample))],
    )
    adata = ad.AnnData(rng.poisson(2.0, (len(sample), 4)).astype(np.float32), obs=obs)
    adata.obsm["X_mine"] = X
    return adata


def arrays():
    adata = cells()
    sample = adata.obsm["X_mine"][:, 0].astype(int)
    return adata.obsm["X_mine"], sample % 2, sample


@pytest.fixture
def splits(monkeypatch):
    """Samples on both sides of every inner split, and how many heads trained side by side."""
    seen = []
    original = tasks.train_heads

    def spy(X, targets, todo, *rest):
        seen.append([(set(X[t.rows, 0].tolist()), set(X[t.val_rows, 0].tolist())) for t in todo])
        return original(X, targets, todo, *rest)

    monkeypatch.setattr(tasks, "train_heads", spy)
    return seen


def whole(splits) -> bool:
    inner = [pair for call in splits for pair in call]
    return bool(inner) and all(fit and held and not fit & held for fit, held in inner)


@pytest.mark.parametrize("head", ["mlp", "MLP", "instance", "pipeline"])
def test_benchmark_keeps_samples_whole(splits, head):
    instance = MLPHead(**STOPPING)
    given = {"instance": instance, "pipeline": make_pipeline(FunctionTransformer(), instance)}.get(head, head)
    options = STOPPING if isinstance(given, str) else None
    sd.tl.benchmark(
        cells(), models=["X_mine"], head=given, head_options=options, n_folds=3, baselines=[], rng=0, n_jobs=1
    )
    assert whole(splits)
    if head != "pipeline":
        assert 3 in {len(call) for call in splits}, "the folds train side by side"


@pytest.mark.parametrize("weight", [None, 0.5])
def test_few_shot_curve_keeps_samples_whole(splits, weight):
    sd.tl.few_shot_curve(
        cells(), use_rep="X_mine", target="b", shots=[0, 2], n_repeats=1, head_options=STOPPING, shot_weight=weight,
        rng=0,
    )  # fmt: skip
    assert whole(splits) and len(splits) == 1


def test_train_keeps_samples_whole(splits):
    sd.tl.train(cells(), use_rep="X_mine", head_options=STOPPING, calibrate="sigmoid", n_folds=3, rng=0)
    assert whole(splits) and sorted(map(len, splits)) == [1, 3]


def test_a_pipeline_hands_groups_to_its_last_step(splits):
    X, y, groups = arrays()
    fit_with(make_pipeline(FunctionTransformer(), MLPHead(**STOPPING)), X, y, groups)
    assert whole(splits)


def test_a_search_splits_by_group():
    X, y, groups = arrays()
    seen = []

    class Spy(GroupKFold):
        def split(self, X, y=None, groups=None):
            for train, test in super().split(X, y, groups):
                seen.append(set(groups[train]) & set(groups[test]))
                yield train, test

    search = GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, cv=Spy(3))
    assert fit_with(search, X, y, groups).best_params_["C"] in (0.1, 1.0)
    assert seen and not any(seen)
    fit_with(GridSearchCV(LogisticRegression(), {"C": [0.1]}, cv=3), X, y, groups)


def test_metadata_routing_is_followed_and_never_forgotten(splits):
    X, y, groups = arrays()
    with sklearn.config_context(enable_metadata_routing=True):
        with pytest.raises(sklearn.exceptions.UnsetMetadataPassedError):
            fit_with(make_pipeline(FunctionTransformer(), MLPHead(**STOPPING)), X, y, groups)
        requesting = MLPHead(**STOPPING).set_fit_request(groups=True)
        fit_with(make_pipeline(FunctionTransformer(), requesting), X, y, groups)
        fit_with(GridSearchCV(requesting, {"lr": [1e-3]}, cv=GroupKFold(3)), X, y, groups)
    assert whole(splits) and len(splits) == 1 + 3 + 1


def test_weights_reach_the_classifier():
    X, y, _ = arrays()
    weight = np.random.default_rng(0).random(len(y))
    head = make_pipeline(StandardScaler(), LogisticRegression())
    ours = fit_with(head, X, y, weight=weight)
    exact = LogisticRegression(solver="newton-cholesky", tol=1e-12)
    theirs = make_pipeline(StandardScaler(), exact).fit(X, y, logisticregression__sample_weight=weight)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), rtol=0, atol=1e-6)
    plain = fit_with(head, X, y)
    assert np.abs(plain.predict_proba(X) - ours.predict_proba(X)).max() > 1e-3
    assert not hasattr(head[-1], "coef_"), "the head that was passed stays unfitted"
    with pytest.raises(InputError, match=r"KNeighborsClassifier.*sample_weight"):
        fit_with(KNeighborsClassifier(), X, y, weight=weight)


def test_folds_have_weights_of_their_own():
    X, y, groups = arrays()
    rng = np.random.default_rng(0)
    folds = [np.arange(0, 120), np.arange(24, 144)]
    weights = [rng.random(len(y)), np.where(np.arange(len(y)) % 3, 1.0, 0.0)]
    head = MLPHead((8,), epochs=3, lr=1e-2, standardize=True, class_weight="balanced", random_state=3)
    together = fit_folds(head, X, y, folds, groups, weights)
    for rows, weight, fitted in zip(folds, weights, together, strict=True):
        alone = fit_with(head, X[rows], y[rows], groups[rows], weight[rows])
        np.testing.assert_allclose(fitted.predict_proba(X), alone.predict_proba(X), atol=1e-4)
    plain = fit_folds(head, X, y, folds, groups)
    assert np.abs(plain[1].predict_proba(X) - together[1].predict_proba(X)).max() > 1e-3
