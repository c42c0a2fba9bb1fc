"""Scores of training cells from heads that have not seen them."""

from __future__ import annotations

from typing import Any

import numpy as np

from scdrugmap._errors import InputError
from scdrugmap.heads.fit import fit_folds


def margins(head: Any, X: np.ndarray) -> np.ndarray:
    """Log-odds of *sensitive* for every row.

    Parameters
    ----------
    head
        A fitted classifier whose second class is sensitive.
    X
        Cells x features.

    Returns
    -------
    Array (cells,) of float64: ``decision_function`` where the classifier has one, else the logit of its probability.
    """
    if hasattr(head, "decision_function"):
        return np.asarray(head.decision_function(X), dtype=np.float64)
    p = np.clip(np.asarray(head.predict_proba(X), dtype=np.float64)[:, 1], 1e-7, 1 - 1e-7)
    return np.log(p) - np.log1p(-p)


def grouped_folds(
    y: np.ndarray, groups: np.ndarray | None, n_splits: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Folds that keep groups whole and balance the classes as far as whole groups allow.

    Parameters
    ----------
    y
        Labels (cells,).
    groups
        Group of each cell, or ``None`` to split cells.
    n_splits
        Folds at most; fewer where a class has fewer groups.
    seed
        Seed of the shuffling.

    Returns
    -------
    Pairs of training and held-out rows. Every row is held out once; training rows hold both classes.

    Raises
    ------
    InputError
        If a class has a single group (or cell), so that nothing can be held out.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    units = np.arange(len(y)) if groups is None else np.asarray(groups)
    per_class = min(len(np.unique(units[y == c])) for c in np.unique(y))
    if per_class < 2:
        raise InputError(
            "groups",
            f"{per_class} {'cell' if groups is None else 'group'} in the smaller class",
            "two or more per class: calibration, conformal sets and early stopping hold whole groups out",
            "leave these options out, or pass finer groups.",
        )
    for k in range(min(n_splits, per_class), 1, -1):
        if groups is None:
            folds = list(StratifiedKFold(k, shuffle=True, random_state=seed).split(y, y))
        else:
            folds = list(StratifiedGroupKFold(k, shuffle=True, random_state=seed).split(y, y, units))
        if all(len(np.unique(y[train])) == 2 and len(test) for train, test in folds):
            return folds
    raise InputError(
        "groups",
        "groups so uneven that every division leaves one class out of training",
        "two or more groups of comparable size per class",
        "leave calibration and conformal sets out, or pass finer groups.",
    )


def held_out_margins(
    head: Any,
    X: np.ndarray,
    y: np.ndarray,
    folds: list[tuple[np.ndarray, np.ndarray]],
    groups: np.ndarray | None,
    weight: np.ndarray | None = None,
) -> np.ndarray:
    """Train ``head`` once per fold and score the held-out cells.

    Parameters
    ----------
    head
        An unfitted classifier; the folds of an :class:`MLPHead` train side by side.
    X, y
        Features and labels.
    folds
        Of :func:`grouped_folds`.
    groups
        Group of each cell, for inner validation splits.
    weight
        Weight of each cell in training.

    Returns
    -------
    Array (cells,) of log-odds.
    """
    weights = None if weight is None else [weight] * len(folds)
    fitted = fit_folds(head, X, y, [train for train, _ in folds], groups, weights)
    out = np.empty(len(y))
    for model, (_, test) in zip(fitted, folds, strict=True):
        out[test] = margins(model, X[test])
    return out
