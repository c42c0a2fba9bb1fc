"""What each head trains on: its rows, its inner split, its weights and its scaling, from plain arrays."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.utils.class_weight import compute_sample_weight

from scdrugmap._device import pick_device
from scdrugmap._errors import InputError, ScDrugMapWarning
from scdrugmap.heads.training import HeadResult, HeadTask, TrainOptions, train_heads


def fit_arrays(
    X: np.ndarray,
    y: np.ndarray,
    rows: Sequence[np.ndarray],
    options: TrainOptions,
    random_states: Sequence[Any],
    *,
    weights: Sequence[np.ndarray] | None = None,
    groups: Any = None,
) -> list[HeadResult]:
    """Train one head on each set of rows of validated ``X`` and ``y``.

    Parameters
    ----------
    X, y
        Features (cells, features) and labels (cells,).
    rows
        Row numbers of each head; rows of weight zero are left out already.
    options
        What all heads share.
    random_states
        Seed, generator or ``None`` of each head.
    weights
        For each head, the weights of all cells.
    groups
        Group of each cell, which the inner splits keep whole.

    Returns
    -------
    Trained parameters, in the order of ``rows``.

    Raises
    ------
    InputError
        If a head's rows hold another number of classes than two, or a parameter cannot train anything.
    """
    _check_options(options)
    classes = [two_classes(y[at]) for at in rows]
    if any(not np.array_equal(c, classes[0]) for c in classes):
        raise InputError("train_rows", "folds with different pairs of labels", "the same two in each", "map the labels")
    if groups is not None and len(groups) != len(y):
        raise InputError("groups", f"{len(groups)} entries", f"{len(y)}, one per cell", "pass one group per row of X")
    groups = None if groups is None else np.asarray(groups)
    tasks = []
    for h, (at, random_state) in enumerate(zip(rows, random_states, strict=True)):
        weight = None if weights is None else weights[h]
        tasks.append(_task(X, y, at, options, _generator(random_state), weight, groups))
    targets = (y == classes[0][1]).astype(X.dtype)
    results = train_heads(X, targets, tasks, options, pick_device(options.device))
    _warn_unconverged(results, options)
    for result, task in zip(results, tasks, strict=True):
        result.mean, result.scale = task.mean, task.scale
    return results


def _warn_unconverged(results: Sequence[HeadResult], options: TrainOptions) -> None:
    """Say so where training ended while the loss was still falling: such scores depend on the scale of the features."""
    late = [r for r in results if not r.converged]
    if late:
        curve = late[0].loss_curve
        warnings.warn(
            f"{len(late)} of {len(results)} heads had not converged after {options.epochs} epochs (loss {curve[-1]:.3f}, "
            f"{curve[-2] - curve[-1]:.3f} less than an epoch before): what they score depends on the scale of the "
            "embedding. Use head='mlp' or 'logistic', or more epochs with standardize=True.",
            ScDrugMapWarning,
            stacklevel=4,
        )


def _task(
    X: np.ndarray,
    y: np.ndarray,
    at: np.ndarray,
    options: TrainOptions,
    rng: np.random.Generator,
    weight: np.ndarray | None,
    groups: np.ndarray | None,
) -> HeadTask:
    """Rows, weights and scaling of one head; everything is measured on the rows that it trains on."""
    held = None
    if options.early_stopping is True:
        at, held = inner_split(y, groups, at, options.validation_fraction, rng)
    task = HeadTask(at, _weights(y, at, options.class_weight, weight), rng)
    if held is not None:
        task.val_rows, task.val_weights = held, _weights(y, held, options.class_weight, weight)
    if options.standardize:
        own = None if weight is None else weight[at]
        task.mean, task.scale = _mean_and_scale(X, at, own, overall=options.standardize == "overall")
    return task


def inner_split(
    y: np.ndarray, groups: np.ndarray | None, at: np.ndarray, fraction: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Split training rows for early stopping: whole groups where there are any, both classes on both sides.

    Parameters
    ----------
    y, groups
        Labels and groups of all cells; without groups, cells are split.
    at
        Rows to split.
    fraction
        Share of the cells, or of the groups, that is held out.
    rng
        Draws the seed of the split.

    Returns
    -------
    Rows to train on and rows to validate on.

    Raises
    ------
    InputError
        If a class has too few cells or groups.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedShuffleSplit

    seed = int(rng.integers(2**31))
    labels = y[at]
    if groups is None:
        splitter = StratifiedShuffleSplit(1, test_size=fraction, random_state=seed)
        try:
            fit, held = next(splitter.split(labels, labels))
        except ValueError as error:
            raise InputError("y", f"{len(at)} cells", "enough for an inner split", "early_stopping=False") from error
        return at[fit], at[held]
    g = groups[at]
    per_class = min(len(np.unique(g[labels == c])) for c in np.unique(labels))
    n_splits = min(max(2, round(1 / fraction)), per_class)
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


def two_classes(y: np.ndarray) -> np.ndarray:
    """Return the two labels of ``y``, sorted; anything but two is an error."""
    classes = np.unique(y)
    if len(classes) == 2:
        return classes
    fix = (
        "pass labels of both classes: with one class there is nothing to learn."
        if len(classes) < 2
        else "Only binary classification is supported. Map the labels to two classes, or drop the other cells."
    )
    shown = ", ".join(map(repr, classes[:8].tolist())) + (" ..." if len(classes) > 8 else "")
    raise InputError("y", f"{len(classes)} class{'' if len(classes) == 1 else 'es'} ({shown})", "two classes", fix)


def _weights(y: np.ndarray, at: np.ndarray, class_weight: Any, weight: np.ndarray | None) -> np.ndarray:
    """Weight of each row: its own times that of its class, the latter measured on these rows."""
    own = np.ones(len(at)) if weight is None else weight[at]  # (rows,)
    if class_weight is None:
        return own
    if class_weight == "balanced":
        # with weights a class counts by its total weight, as if its cells were repeated
        totals = {c: own[y[at] == c].sum() for c in np.unique(y[at])}
        class_weight = {c: own.sum() / (len(totals) * t) for c, t in totals.items() if t > 0}
    return own * compute_sample_weight(class_weight, y[at])


def _mean_and_scale(
    X: np.ndarray, at: np.ndarray, weight: np.ndarray | None, *, overall: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the features of some rows; a constant feature gets the scale one.

    With ``overall`` all features get one scale, the root of their mean variance.
    """
    weight = np.ones(len(at)) if weight is None else weight
    total, mean, square = weight.sum(), np.zeros(X.shape[1]), np.zeros(X.shape[1])  # (features,)
    for start in range(0, len(at), 4096):
        part, w = X[at[start : start + 4096]].astype(np.float64), weight[start : start + 4096]
        mean += w @ part / total  # (block,) @ (block, features)
    for start in range(0, len(at), 4096):
        part, w = X[at[start : start + 4096]].astype(np.float64), weight[start : start + 4096]
        square += w @ (part - mean) ** 2 / total
    scale = np.full(X.shape[1], np.sqrt(square.mean())) if overall else np.sqrt(square)
    return mean.astype(X.dtype), np.where(scale > 1e-12, scale, 1).astype(X.dtype)


def _generator(random_state: Any) -> np.random.Generator:
    """Generator from a seed, from a legacy ``RandomState`` as scikit-learn passes it, or from entropy."""
    if isinstance(random_state, np.random.RandomState):
        return np.random.default_rng(random_state.randint(2**31))
    return np.random.default_rng(random_state)


def _check_options(options: TrainOptions) -> None:
    """Refuse parameters that cannot train anything."""
    checks = {
        "epochs": (isinstance(options.epochs, int | np.integer) and options.epochs >= 1, "an integer of 1 or more"),
        "batch_size": (isinstance(options.batch_size, int | np.integer) and options.batch_size >= 1, "1 or more"),
        "lr": (options.lr > 0, "more than 0"),
        "weight_decay": (options.weight_decay >= 0, "0 or more"),
        "hidden": (all(h >= 1 for h in options.hidden), "layer sizes of 1 or more"),
        "validation_fraction": (0 < options.validation_fraction < 1, "between 0 and 1"),
        "precision": (options.precision in ("float32", "bfloat16"), "'float32' or 'bfloat16'"),
        "patience": (options.patience >= 1, "1 or more"),
        "early_stopping": (options.early_stopping in (True, False, "settled"), "True, False or 'settled'"),
        "standardize": (options.standardize in (True, False, "overall"), "True, False or 'overall'"),
    }
    for name, (fine, expected) in checks.items():
        if not fine:
            raise InputError(name, getattr(options, name), expected, f"pass another {name}")
