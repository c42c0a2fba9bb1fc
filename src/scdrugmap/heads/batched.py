"""All heads of a cross-validation in one batched computation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from scdrugmap._device import pick_device
from scdrugmap._errors import InputError
from scdrugmap.heads.mlp import MLPHead, two_classes


def fit_heads(
    X: Any,
    y: Any,
    train_rows: Sequence[Any],
    *,
    seeds: Sequence[int] | int = 0,
    sample_weight: Any = None,
    groups: Any = None,
    **params: Any,
) -> list[MLPHead]:
    """Train one head for every set of training rows and every seed, all side by side.

    The heads equal those of ``MLPHead(random_state=seed, **params).fit(X[rows], y[rows])`` up to rounding, for the
    starting parameters, the shuffling and the inner splits of each come from its own seed. The features stay in
    memory once.

    Parameters
    ----------
    X
        Cells x features, finite.
    y
        Labels (cells,); every set of rows must hold the same two classes.
    train_rows
        Row numbers, or a mask, for each fold.
    seeds
        One seed, or several: each fold is then trained once per seed.
    sample_weight, groups
        As in :meth:`MLPHead.fit`, for all cells.
    params
        Parameters of :class:`MLPHead` other than ``random_state``.

    Returns
    -------
    Fitted heads: all seeds of the first fold, then of the second, and so on.

    Raises
    ------
    InputError
        If a fold holds another number of classes than two, or rows that ``X`` has not.

    Examples
    --------
    >>> import numpy as np
    >>> from scdrugmap.response import fit_heads
    >>> X = np.random.default_rng(0).normal(size=(60, 8)).astype("float32")
    >>> folds = [np.arange(40), np.arange(20, 60)]
    >>> len(fit_heads(X, X[:, 0] > 0, folds, seeds=[1, 2], epochs=1))
    4
    """
    from sklearn.utils.validation import _check_sample_weight, check_X_y

    X, y = check_X_y(X, y, dtype=(np.float32, np.float64), ensure_min_samples=2)
    weight = None if sample_weight is None else _check_sample_weight(sample_weight, X, ensure_non_negative=True)
    seeds = [int(s) for s in np.atleast_1d(np.asarray(seeds))]
    heads, rows = [], []
    for fold in train_rows:
        at = _row_numbers(fold, len(y))
        at = at if weight is None else at[weight[at] > 0]
        for seed in seeds:
            heads.append(MLPHead(random_state=seed, **params))
            rows.append(at)
    if not heads:
        return []
    fit_rows(heads, X, y, rows, sample_weight=weight, groups=groups)
    return heads


def fit_rows(
    heads: Sequence[MLPHead],
    X: np.ndarray,
    y: np.ndarray,
    rows: Sequence[np.ndarray],
    *,
    sample_weight: np.ndarray | None = None,
    groups: Any = None,
) -> None:
    """Fit every head, in place, on its rows of validated ``X`` and ``y``.

    Parameters
    ----------
    heads
        Unfitted heads that differ in nothing but ``random_state``.
    X, y
        Features (cells, features) and labels (cells,).
    rows
        Row numbers of each head.
    sample_weight, groups
        For all cells, or ``None``.

    Raises
    ------
    InputError
        If a head's rows hold another number of classes than two.
    """
    from scdrugmap.heads.engine import HeadTask, TrainOptions, train_heads

    first = heads[0]
    _check_parameters(first)
    classes = [two_classes(y[r]) for r in rows]
    if any(not np.array_equal(c, classes[0]) for c in classes):
        raise InputError("train_rows", "folds with different pairs of labels", "the same two in each", "map the labels")
    if groups is not None and len(groups) != len(y):
        raise InputError("groups", f"{len(groups)} entries", f"{len(y)}, one per cell", "pass one group per row of X")
    groups = None if groups is None else np.asarray(groups)
    tasks = []
    scalers: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for head, at in zip(heads, rows, strict=True):
        rng = _generator(head.random_state)
        fit_at, val_at = (at, None) if not head.early_stopping else _inner_split(head, y, groups, at, rng)
        task = HeadTask(fit_at, head._more_weights(y, sample_weight, fit_at), rng)
        if val_at is not None:
            task.val_rows, task.val_weights = val_at, head._more_weights(y, sample_weight, val_at)
        if head.standardize:
            if id(at) not in scalers or head.early_stopping:
                scalers[id(at)] = _mean_and_scale(X, fit_at, None if sample_weight is None else sample_weight[fit_at])
            task.mean, task.scale = scalers[id(at)]
        tasks.append(task)
    options = TrainOptions(
        hidden=tuple(first.hidden),
        epochs=first.epochs,
        lr=first.lr,
        weight_decay=first.weight_decay,
        batch_size=first.batch_size,
        patience=first.patience,
        precision=first.precision,
    )
    trained = train_heads(X, (y == classes[0][1]).astype(X.dtype), tasks, options, pick_device(first.device))
    for head, task, result in zip(heads, tasks, trained, strict=True):
        head._store(result.weights, result.biases, classes[0], task.mean, task.scale)
        head.loss_curve_, head.validation_curve_ = result.loss_curve, result.val_curve
        head.n_iter_, head.n_features_in_ = result.best_epoch, X.shape[1]


def _row_numbers(fold: Any, n: int) -> np.ndarray:
    """Row numbers of a fold that may be a mask."""
    at = np.asarray(fold)
    if at.dtype == bool:
        if len(at) != n:
            raise InputError("train_rows", f"a mask of {len(at)}", f"{n} entries", "pass one entry per row of X")
        return np.flatnonzero(at)
    at = at.astype(np.int64)
    if len(at) and (at.min() < 0 or at.max() >= n):
        raise InputError("train_rows", f"rows {at.min()} to {at.max()}", f"0 to {n - 1}", "pass rows of X")
    return at


def _inner_split(
    head: MLPHead, y: np.ndarray, groups: np.ndarray | None, at: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Split training rows for early stopping: whole groups where there are any, both classes on both sides."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedShuffleSplit

    seed = int(rng.integers(2**31))
    labels = y[at]
    if groups is None:
        splitter = StratifiedShuffleSplit(1, test_size=head.validation_fraction, random_state=seed)
        try:
            fit, held = next(splitter.split(labels, labels))
        except ValueError as error:
            raise InputError("y", f"{len(at)} cells", "enough for an inner split", "early_stopping=False") from error
        return at[fit], at[held]
    g = groups[at]
    per_class = min(len(np.unique(g[labels == c])) for c in np.unique(labels))
    n_splits = min(max(2, round(1 / head.validation_fraction)), per_class)
    if n_splits >= 2:
        splits = StratifiedGroupKFold(n_splits, shuffle=True, random_state=seed).split(labels, labels, g)
        for fit, held in splits:
            if len(np.unique(labels[fit])) == 2 and len(np.unique(labels[held])) == 2:
                return at[fit], at[held]
    raise InputError(
        "groups",
        f"{per_class} group(s) in the smaller class of the training cells",
        "two or more per class, so that one can be held out for early stopping",
        "pass early_stopping=False, or finer groups",
    )


def _mean_and_scale(X: np.ndarray, at: np.ndarray, weight: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the features of some rows; a constant feature gets the scale one."""
    weight = np.ones(len(at)) if weight is None else weight
    total, mean, square = weight.sum(), np.zeros(X.shape[1]), np.zeros(X.shape[1])
    for start in range(0, len(at), 4096):
        part, w = X[at[start : start + 4096]].astype(np.float64), weight[start : start + 4096]
        mean += w @ part / total
    for start in range(0, len(at), 4096):
        part, w = X[at[start : start + 4096]].astype(np.float64), weight[start : start + 4096]
        square += w @ (part - mean) ** 2 / total
    scale = np.sqrt(square)
    return mean.astype(X.dtype), np.where(scale > 1e-12, scale, 1).astype(X.dtype)


def _generator(random_state: Any) -> np.random.Generator:
    """Generator from a seed, from a legacy ``RandomState`` as scikit-learn passes it, or from entropy."""
    if isinstance(random_state, np.random.RandomState):
        return np.random.default_rng(random_state.randint(2**31))
    return np.random.default_rng(random_state)


def _check_parameters(head: MLPHead) -> None:
    """Refuse parameters that cannot train anything."""
    checks = {
        "epochs": (isinstance(head.epochs, int | np.integer) and head.epochs >= 1, "an integer of 1 or more"),
        "batch_size": (isinstance(head.batch_size, int | np.integer) and head.batch_size >= 1, "1 or more"),
        "lr": (head.lr > 0, "more than 0"),
        "weight_decay": (head.weight_decay >= 0, "0 or more"),
        "hidden": (all(h >= 1 for h in head.hidden), "layer sizes of 1 or more"),
        "validation_fraction": (0 < head.validation_fraction < 1, "between 0 and 1"),
        "precision": (head.precision in ("float32", "bfloat16"), "'float32' or 'bfloat16'"),
        "patience": (head.patience >= 1, "1 or more"),
    }
    for name, (fine, expected) in checks.items():
        if not fine:
            raise InputError(name, getattr(head, name), expected, f"pass another {name}")
