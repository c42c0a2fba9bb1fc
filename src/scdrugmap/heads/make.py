"""Heads by name, or any scikit-learn classifier."""

from __future__ import annotations

import copy
from typing import Any

from scdrugmap._errors import InputTypeError, UnknownNameError

HEADS = ("mlp", "published", "logistic")
#: The default perceptron: its figures do not depend on the scale of the embedding, and it trains until nothing is gained.
DEFAULT = {
    "hidden": (64,), "standardize": "overall", "early_stopping": "settled", "epochs": 200, "lr": 1e-3, "patience": 5,
    "weight_decay": 1.0,
}  # fmt: skip


def make_head(head: Any = "mlp", *, random_state: int | None = None, **params: Any) -> Any:
    """Return an unfitted classifier.

    Parameters
    ----------
    head
        ``"mlp"`` (a perceptron of 64 units on centred features that are scaled by one number, trained with weight decay
        until its loss has settled), ``"published"`` (:class:`MLPHead` as it stands: ten epochs without scaling),
        ``"logistic"`` (standardised features and logistic regression, the honest baseline), or an unfitted scikit-learn
        classifier with ``predict_proba``, which is cloned.
    random_state
        Seed; set on a given classifier only where it has such a parameter that is ``None``.
    params
        Parameters of the head that is named, of ``LogisticRegression`` for ``"logistic"``.

    Returns
    -------
    The classifier.

    Raises
    ------
    UnknownNameError
        If the name, or the name of a parameter, is not known.
    InputTypeError
        If the object is no classifier with ``predict_proba``.

    Examples
    --------
    >>> from scdrugmap.response import make_head
    >>> make_head("mlp", epochs=3).epochs
    3
    """
    from sklearn.base import clone, is_classifier

    if isinstance(head, str):
        name = head.lower()
        if name in ("mlp", "published"):
            from scdrugmap.heads.mlp import MLPHead

            _check_names(params, MLPHead())
            start: dict[str, Any] = DEFAULT if name == "mlp" else {}
            return MLPHead(random_state=random_state, **{**start, **params})
        if name == "logistic":
            return _logistic(random_state, params)
        raise UnknownNameError("head", head, HEADS, "Or pass a scikit-learn classifier.")
    if isinstance(head, type) or not (hasattr(head, "fit") and is_classifier(head)):
        raise InputTypeError("head", head, "a name or a scikit-learn classifier", "pass 'mlp' or LogisticRegression()")
    if not hasattr(head, "predict_proba"):
        raise InputTypeError(
            "head",
            head,
            "a classifier with predict_proba",
            "wrap it: CalibratedClassifierCV(head), or SVC(probability=True)",
        )
    made = clone(head)
    if params:
        _check_names(params, made)
        made.set_params(**params)
    if random_state is not None and made.get_params().get("random_state", 0) is None:
        made.set_params(random_state=random_state)
    return made


def head_on(head: Any, device: str | None) -> Any:
    """Return a perceptron that computes on ``device``; any other head as it is.

    Parameters
    ----------
    head
        Of :func:`make_head`, or fitted; it is not changed.
    device
        ``None`` leaves it where it is.
    """
    from scdrugmap.heads.mlp import MLPHead

    if device is None or not isinstance(head, MLPHead):
        return head
    return copy.copy(head).set_params(device=device)


def _check_names(params: dict[str, Any], head: Any) -> None:
    """Refuse parameters that the head does not have."""
    for name in params:
        if name not in head.get_params():
            raise UnknownNameError("head_options", name, head.get_params())


def _logistic(random_state: int | None, params: dict[str, Any]) -> Any:
    """Standardised features and logistic regression."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    _check_names(params, LogisticRegression())
    options = {"max_iter": 1000, "random_state": random_state, **params}
    return Pipeline([("scale", StandardScaler()), ("logistic", LogisticRegression(**options))])
