from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

from scdrugmap._errors import InputError, InputTypeError, UnknownNameError
from scdrugmap.response import MLPHead, fit_heads, make_head

torch.set_num_threads(1)


@parametrize_with_checks([MLPHead(), MLPHead(hidden=(16,), standardize=True, class_weight="balanced", lr=1e-2)])
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def cells(n=300, d=12, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)).astype(np.float32)
    logit = 2 * X[:, 0] - X[:, 1] * X[:, 2]
    y = np.where(logit + rng.normal(scale=0.3, size=n) > 0, "sensitive", "resistant")
    return X, y, np.repeat(np.arange(n // 10), 10)


def reference(X, y, head: MLPHead, seed: int):
    """The same training written with autograd and torch.optim, starting and shuffling alike."""
    rng = np.random.default_rng(seed)
    sizes = [X.shape[1], *head.hidden, 1]
    layers = []
    for i, o in itertools.pairwise(sizes):
        flat = rng.uniform(-1, 1, (i + 1) * o) / np.sqrt(i)
        layer = torch.nn.Linear(i, o)
        layer.weight.data = torch.tensor(flat[: i * o].reshape(i, o).T.copy(), dtype=torch.float32)
        layer.bias.data = torch.tensor(flat[i * o :], dtype=torch.float32)
        layers += [layer, torch.nn.ReLU()]
    net = torch.nn.Sequential(*layers[:-1])
    optimiser = torch.optim.AdamW(net.parameters(), lr=head.lr, weight_decay=head.weight_decay)
    target = torch.tensor((y == "sensitive").astype(np.float32))
    for _ in range(head.epochs):
        order = rng.permutation(len(y))
        for start in range(0, len(y), head.batch_size):
            at = order[start : start + head.batch_size]
            optimiser.zero_grad()
            logit = net(torch.tensor(X[at])).squeeze(1)
            torch.nn.functional.binary_cross_entropy_with_logits(logit, target[at]).backward()
            optimiser.step()
    return torch.sigmoid(net(torch.tensor(X)).squeeze(1)).detach().numpy()


def test_hand_written_gradients_equal_autograd():
    X, y, _ = cells()
    head = MLPHead((32, 16), epochs=8, lr=3e-3, random_state=5).fit(X, y)
    np.testing.assert_allclose(head.predict_proba(X)[:, 1], reference(X, y, head, 5), atol=2e-4)


@pytest.mark.parametrize("options", [{}, {"standardize": True}, {"class_weight": "balanced"}, {"early_stopping": True}])
def test_all_at_once_equals_one_by_one(options):
    X, y, groups = cells(n=330)
    rng = np.random.default_rng(1)
    # folds of different sizes, so that heads have different numbers of batches
    folds = [np.sort(rng.permutation(330)[:k]) for k in (330, 257, 256, 140)]
    params = {"hidden": (24, 12), "epochs": 6, "lr": 3e-3, **options}
    together = fit_heads(X, y, folds, seeds=[3, 4], groups=groups, **params)
    assert len(together) == 8
    for i, rows in enumerate(folds):
        for j, seed in enumerate([3, 4]):
            alone = MLPHead(random_state=seed, **params).fit(X[rows], y[rows], groups=groups[rows])
            head = together[2 * i + j]
            np.testing.assert_allclose(head.predict_proba(X), alone.predict_proba(X), atol=3e-4)
            assert head.n_iter_ == alone.n_iter_


def test_blocks_of_heads_change_nothing(monkeypatch):
    X, y, _ = cells()
    folds = [np.arange(k) for k in (200, 300, 250)]
    together = fit_heads(X, y, folds, hidden=(8,), epochs=2)
    monkeypatch.setattr("scdrugmap.heads.training.CPU_BLOCK_BYTES", 1)
    apart = fit_heads(X, y, folds, hidden=(8,), epochs=2)
    for a, b in zip(together, apart, strict=True):
        np.testing.assert_allclose(a.predict_proba(X), b.predict_proba(X), atol=1e-5)


def test_nothing_outside_the_training_rows_matters():
    X, y, groups = cells()
    rows = np.arange(200)
    other = X.copy()
    other[200:] = 1e3
    params = {"standardize": True, "early_stopping": True, "epochs": 4, "hidden": (8,), "groups": groups}
    a, b = (fit_heads(data, y, [rows], **params)[0] for data in (X, other))
    np.testing.assert_array_equal(a.predict_proba(X), b.predict_proba(X))
    np.testing.assert_allclose(a.mean_, X[:200].mean(0), atol=0.2)


def test_cells_of_weight_zero_leave_no_trace():
    X, y, _ = cells()
    weight = np.ones(len(y))
    weight[::3] = 0
    a = MLPHead((8,), random_state=0, standardize=True, class_weight="balanced").fit(X, y, sample_weight=weight)
    keep = weight > 0
    b = MLPHead((8,), random_state=0, standardize=True, class_weight="balanced").fit(X[keep], y[keep])
    np.testing.assert_array_equal(a.predict_proba(X), b.predict_proba(X))


def test_early_stopping_keeps_groups_whole_and_the_best_epoch(monkeypatch):
    from scdrugmap.heads import tasks

    X, y, groups = cells()
    seen = []
    original = tasks.train_heads
    monkeypatch.setattr(tasks, "train_heads", lambda *a: seen.extend(a[2]) or original(*a))
    head = MLPHead((64, 64), lr=1e-2, epochs=60, early_stopping=True, patience=4, random_state=0)
    head.fit(X, y, groups=groups)
    fit, held = set(groups[seen[0].rows]), set(groups[seen[0].val_rows])
    assert fit and held and not fit & held
    assert len(head.loss_curve_) < 60
    assert head.n_iter_ == int(np.argmin(head.validation_curve_)) + 1
    held_rows = seen[0].val_rows
    p = head.predict_proba(X[held_rows])[:, 1]
    truth = y[held_rows] == "sensitive"
    loss = -np.mean(np.log(np.where(truth, p, 1 - p)))
    assert loss == pytest.approx(min(head.validation_curve_), abs=1e-4)


@pytest.mark.parametrize("patience", [2, 100])
def test_the_best_epoch_is_kept_whether_training_stops_or_runs_out(patience):
    """On labels without meaning the validation loss soon rises, so that the last epoch is not the best."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(200, 6)).astype(np.float32), rng.integers(0, 2, 200)
    params = {"hidden": (64,), "lr": 3e-2, "early_stopping": True, "patience": patience}
    head = MLPHead(epochs=25, random_state=0, **params).fit(X, y)
    best = int(np.argmin(head.validation_curve_)) + 1
    assert head.n_iter_ == best and head.validation_curve_[-1] > head.validation_curve_[best - 1] + 0.01
    assert len(head.validation_curve_) == (best + 2 if patience == 2 else 25)
    # the same training that ends at that epoch, of which the best is then the last
    short = MLPHead(epochs=best, random_state=0, **params).fit(X, y)
    np.testing.assert_allclose(head.predict_proba(X), short.predict_proba(X), atol=1e-6)


def test_state_round_trip_is_exact():
    X, y, _ = cells()
    head = MLPHead((16, 8), standardize=True, random_state=0).fit(X, y)
    state = head.get_state()
    assert all(isinstance(v, np.ndarray) and v.dtype == np.float32 for v in state.values())
    again = MLPHead.from_state(state, head.classes_.tolist(), **head.get_params())
    np.testing.assert_array_equal(again.predict_proba(X), head.predict_proba(X))
    np.testing.assert_array_equal(again.predict(X), head.predict(X))
    assert again.get_params() == head.get_params()


def test_seeds_decide_everything():
    X, y, _ = cells()
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    torch_state = torch.random.get_rng_state()
    a, b, c = (MLPHead((8,), random_state=s).fit(X, y).predict_proba(X) for s in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 1e-4
    np.testing.assert_array_equal(state, np.random.get_state()[1])  # noqa: NPY002
    assert torch.equal(torch_state, torch.random.get_rng_state())


def test_bfloat16_is_close_to_float32():
    X, y, _ = cells()
    a, b = (MLPHead((32,), lr=1e-3, random_state=0, precision=p).fit(X, y) for p in ("float32", "bfloat16"))
    difference = np.abs(a.predict_proba(X) - b.predict_proba(X)).max()
    assert 0 < difference < 0.03
    assert b.coefs_[0].dtype == np.float32


def test_works_inside_scikit_learn_tools():
    X, y, groups = cells(120)
    search = GridSearchCV(MLPHead((8,), epochs=2, random_state=0), {"lr": [1e-3, 1e-2]}, cv=GroupKFold(3))
    assert search.fit(X, y, groups=groups).best_params_["lr"] in (1e-3, 1e-2)


def test_read_only_features_are_accepted():
    X, y, _ = cells(60)
    X.flags.writeable = False
    MLPHead((4,), epochs=1).fit(X, y)


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"epochs": 0}, "epochs"),
        ({"lr": -1.0}, "lr"),
        ({"hidden": (0,)}, "hidden"),
        ({"precision": "int8"}, "precision"),
    ],
)
def test_impossible_parameters_are_named(params, named):
    X, y, _ = cells(60)
    with pytest.raises(InputError, match=named):
        MLPHead(**params).fit(X, y)


def test_bad_labels_and_rows_are_named():
    X, y, groups = cells(60)
    with pytest.raises(InputError, match="1 class"):
        MLPHead().fit(X, np.full(60, "sensitive"))
    with pytest.raises(InputError, match="3 classes"):
        MLPHead().fit(X, np.arange(60) % 3)
    with pytest.raises(ValueError, match="NaN"):
        MLPHead().fit(np.where(X > 2, np.nan, X), y)
    with pytest.raises(InputError, match="train_rows"):
        fit_heads(X, y, [[0, 1, 60]])
    with pytest.raises(InputError, match="train_rows"):
        fit_heads(X, y, [np.ones(59, bool)])
    with pytest.raises(InputError, match="groups"):
        MLPHead(early_stopping=True).fit(X, y, groups=np.where(y == "sensitive", "a", "b"))
    with pytest.raises(InputError, match="groups"):
        MLPHead(early_stopping=True).fit(X, y, groups=groups[:-1])


def test_heads_by_name_and_by_object():
    X, y, _ = cells()
    assert isinstance(make_head("MLP", epochs=2), MLPHead)
    assert set(make_head("logistic").fit(X, y).classes_) == {"resistant", "sensitive"}
    forest = RandomForestClassifier(5)
    made = make_head(forest, random_state=3)
    assert made is not forest and made.random_state == 3 and forest.random_state is None
    assert clone(made).fit(X, y).predict_proba(X).shape == (300, 2)
    with pytest.raises(UnknownNameError, match="logistic"):
        make_head("logistik")
    with pytest.raises(InputTypeError, match="predict_proba"):
        make_head(LinearSVC())
    with pytest.raises(InputTypeError):
        make_head(RandomForestClassifier)
