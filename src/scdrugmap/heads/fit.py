"""The one way to fit a classifier on cells: groups and weights reach every estimator that takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn import get_config
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, RandomizedSearchCV
from sklearn.pipeline import Pipeline
from sklearn.utils.metadata_routing import get_routing_for_object
from sklearn.utils.validation import has_fit_parameter

from scdrugmap._errors import InputError
from scdrugmap.heads.batched import fit_side_by_side
from scdrugmap.heads.logistic import fit_logistic, solvable
from scdrugmap.heads.mlp import MLPHead


def fit_with(
    head: Any, X: np.ndarray, y: np.ndarray, groups: np.ndarray | None = None, weight: np.ndarray | None = None
) -> Any:
    """Fit a copy of a classifier.

    Parameters
    ----------
    head
        An unfitted classifier; it stays as it is.
    X, y
        Features (cells, features) and labels (cells,).
    groups
        Group (sample, patient ...) of each cell: for an inner validation split of the classifier, or of a search
        whose splitter takes groups. Other classifiers have no use for it.
    weight
        Weight of each cell.

    Returns
    -------
    The fitted copy.

    Raises
    ------
    InputError
        If there are weights that the classifier does not take.
    """
    given = {"groups": groups, "sample_weight": weight}
    names = {name for name, value in given.items() if value is not None}
    taken = _keywords(head, names)
    if "sample_weight" in names - taken.keys():
        raise InputError(
            "head",
            type(head).__name__,
            "a classifier whose fit takes sample_weight",
            "pass head='logistic' or 'mlp', or leave the weights out.",
        )
    if solvable(head, X.shape[1]):
        return fit_logistic(head, X, y, [np.arange(len(y))], None if weight is None else [weight])[0]
    return clone(head).fit(X, y, **{keyword: given[name] for name, keyword in taken.items()})


def fit_folds(
    head: Any,
    X: np.ndarray,
    y: np.ndarray,
    train_rows: Sequence[np.ndarray],
    groups: np.ndarray | None = None,
    weights: Sequence[np.ndarray] | None = None,
) -> list[Any]:
    """Fit a copy of a classifier on the training rows of every fold.

    Parameters
    ----------
    head
        An unfitted classifier; the copies of an :class:`MLPHead` train side by side, those of standardised features and
        logistic regression share what they can.
    X, y, groups
        As in :func:`fit_with`, for all cells.
    train_rows
        Row numbers of each fold.
    weights
        For each fold, the weights of all cells.

    Returns
    -------
    The fitted copies, in the order of the folds.

    Raises
    ------
    InputError
        If there are weights that the classifier does not take.
    """
    if isinstance(head, MLPHead):
        return fit_side_by_side([clone(head) for _ in train_rows], X, y, train_rows, weights=weights, groups=groups)
    if solvable(head, X.shape[1]):
        return fit_logistic(head, X, y, train_rows, weights)
    return [
        fit_with(
            head,
            X[at],
            y[at],
            None if groups is None else groups[at],
            None if weights is None else weights[fold][at],
        )
        for fold, at in enumerate(train_rows)
    ]


def _keywords(head: Any, names: set[str]) -> dict[str, str]:
    """Keyword of ``fit`` under which an estimator takes each of ``groups`` and ``sample_weight``, if it does.

    Where scikit-learn's metadata routing is on, its requests decide, and what a step takes but has not requested is
    passed as well: scikit-learn then says that the request is missing, instead of nothing being said.
    """
    routed = get_config()["enable_metadata_routing"]
    taken = {name: name for name in names if has_fit_parameter(head, name)}
    if isinstance(head, Pipeline):
        step, last = head.steps[-1]
        inner = _keywords(last, names)
        taken |= {name: name if routed else f"{step}__{keyword}" for name, keyword in inner.items()}
    elif isinstance(head, GridSearchCV | RandomizedSearchCV):
        # without routing a search gives groups to its splitter, and everything else to the estimator
        taken |= _keywords(head.estimator, names - {"groups"})
        taken |= {name: name for name in head.get_metadata_routing().consumes("fit", names & {"groups"})}
    if routed:
        taken |= {name: name for name in get_routing_for_object(head).consumes("fit", names)}
    return taken
