"""All heads of a cross-validation in one batched computation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from scdrugmap._errors import InputError
from scdrugmap.heads.mlp import MLPHead


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
    seeds = [int(s) for s in np.atleast_1d(np.asarray(seeds))]
    folds = [fold for fold in train_rows for _ in seeds]
    heads = [MLPHead(random_state=seed, **params) for _ in train_rows for seed in seeds]
    weights = None if sample_weight is None else [sample_weight] * len(folds)
    return fit_side_by_side(heads, X, y, folds, weights=weights, groups=groups)


def fit_side_by_side(
    heads: Sequence[MLPHead],
    X: Any,
    y: Any,
    train_rows: Sequence[Any],
    *,
    weights: Sequence[Any] | None = None,
    groups: Any = None,
) -> list[MLPHead]:
    """Fit every head, in place, on rows of its own.

    Parameters
    ----------
    heads
        Unfitted heads that differ in nothing but ``random_state``.
    X, y
        Features (cells, features), finite, and labels (cells,).
    train_rows
        Row numbers, or a mask, for each head.
    weights
        For each head, the weights of all cells.
    groups
        Group of each cell, which inner splits keep whole.

    Returns
    -------
    The heads.

    Raises
    ------
    InputError
        If a head's rows hold another number of classes than two, or rows that ``X`` has not.
    """
    from sklearn.utils.validation import _check_sample_weight, check_X_y

    from scdrugmap.heads.tasks import fit_arrays

    if not heads:
        return []
    X, y = check_X_y(X, y, dtype=(np.float32, np.float64), ensure_min_samples=2)
    rows = [_row_numbers(fold, len(y)) for fold in train_rows]
    if weights is not None:
        weights = [_check_sample_weight(w, X, ensure_non_negative=True) for w in weights]
        rows = [at[w[at] > 0] for at, w in zip(rows, weights, strict=True)]
    results = fit_arrays(
        X, y, rows, heads[0]._train_options(), [h.random_state for h in heads], weights=weights, groups=groups
    )
    for head, result in zip(heads, results, strict=True):
        head._keep(result, y[rows[0]])
    return list(heads)


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
