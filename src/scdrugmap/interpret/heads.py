"""Heads as differentiable maps from features to the log-odds of *resistant*."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

Logit = Callable[[Tensor], Tensor]


def linear_weights(head: Any) -> tuple[np.ndarray, float] | None:
    """Return weights and intercept of the log-odds of resistant, or ``None`` where the head is not linear.

    Parameters
    ----------
    head
        Logistic regression or another linear classifier, also behind a ``StandardScaler``.
    """
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    if isinstance(head, Pipeline):
        steps = [step for _, step in head.steps]
        if len(steps) != 2 or not isinstance(steps[0], StandardScaler):
            return None
        inner = linear_weights(steps[1])
        if inner is None:
            return None
        scaler = steps[0]
        scale = scaler.scale_ if scaler.scale_ is not None else np.ones(len(inner[0]))
        mean = scaler.mean_ if scaler.mean_ is not None else np.zeros(len(inner[0]))
        weights = inner[0] / scale
        return weights, inner[1] - float(weights @ mean)
    coef = getattr(head, "coef_", None)
    if coef is None or not hasattr(head, "decision_function") or np.ndim(coef) != 2 or len(coef) != 1:
        return None
    return -np.asarray(coef[0], dtype=np.float64), -float(np.ravel(head.intercept_)[0])


def torch_logit(head: Any, device: torch.device) -> Logit | None:
    """Return the head as a differentiable function ``(n, d) -> (n,)``, or ``None`` where it has no gradient."""
    linear = linear_weights(head)
    if linear is not None:
        weights = torch.as_tensor(linear[0], dtype=torch.float32, device=device)
        return lambda x: x.float() @ weights + linear[1]
    if not hasattr(head, "coefs_") or not hasattr(head, "intercepts_") or not hasattr(head, "mean_"):
        return None
    layers = [
        (torch.as_tensor(w, device=device).float(), torch.as_tensor(b, device=device).float())
        for w, b in zip(head.coefs_, head.intercepts_, strict=True)
    ]
    mean = None if head.mean_ is None else torch.as_tensor(head.mean_, device=device).float()
    scale = None if head.scale_ is None else torch.as_tensor(head.scale_, device=device).float()

    def logit(x: Tensor) -> Tensor:
        h = x.float() if mean is None or scale is None else (x.float() - mean) / scale
        for i, (w, b) in enumerate(layers):
            h = h @ w + b
            h = torch.relu(h) if i + 1 < len(layers) else h
        return -h.squeeze(-1)

    return logit
