"""Integrated gradients in plain PyTorch, with the steps doubled until the attributions add up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: Most steps of a path.
MOST_STEPS = 256
#: Share of the change of the log-odds that may be missing.
TOLERANCE = 0.05
#: Below this change of the log-odds there is nothing to explain, and what is missing is measured against it.
FLOOR = 0.1

Value = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Path:
    """Gradients averaged along the way from the baseline.

    Parameters
    ----------
    gradient
        Of the shape of the input: attribution is its product with the difference from the baseline.
    gap
        ``(n,)`` share of the change of the log-odds that the attributions lack.
    n_steps
        ``(n,)`` steps that were taken.
    """

    gradient: Tensor
    gap: np.ndarray
    n_steps: np.ndarray


def relative_gap(change: Any, total: Any) -> Any:
    """What is missing to completeness as a share of the change."""
    return (change - total) / np.maximum(np.abs(change), FLOOR)


def nodes(n: int) -> list[tuple[float, float]]:
    """Places and weights of Gauss-Legendre quadrature on [0, 1].

    Examples
    --------
    >>> [(round(a, 3), round(w, 3)) for a, w in nodes(1)]
    [(0.5, 1.0)]
    """
    places, weights = np.polynomial.legendre.leggauss(n)
    return [(float(a), float(w)) for a, w in zip((places + 1) / 2, weights / 2, strict=True)]


def average_gradient(value: Value, x: Tensor, baseline: Tensor, rows: Tensor, n_steps: int) -> Tensor:
    """Average the gradient over the straight path from ``baseline`` to ``x``.

    Parameters
    ----------
    value
        ``(inputs, rows) -> (n,)``; ``rows`` says which cells of the batch the inputs are.
    x, baseline
        ``(n, ...)``.
    rows
        ``(n,)`` numbers of the cells.
    n_steps
        Forward and backward passes.
    """
    total = torch.zeros_like(x)
    for place, weight in nodes(n_steps):
        z = (baseline + place * (x - baseline)).detach().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(value(z, rows).sum(), z)
        total += weight * gradient
    return total


def complete(
    value: Value,
    x: Tensor,
    baseline: Tensor,
    *,
    n_steps: int,
    tolerance: float = TOLERANCE,
    most: int = MOST_STEPS,
) -> Path:
    """Average gradients, and double the steps of the cells whose attributions do not add up.

    Parameters
    ----------
    value, x, baseline
        As in :func:`average_gradient`.
    n_steps
        Steps to begin with.
    tolerance
        Share of the change that may be missing.
    most
        Steps to end with.
    """
    n = len(x)
    everything = torch.arange(n, device=x.device)
    # Some networks take another way where no gradient is asked for.
    with torch.enable_grad():
        change = (value(x, everything) - value(baseline, everything)).detach().double().cpu().numpy()
    gradient, gap = torch.zeros_like(x), np.full(n, np.inf)
    steps, taken, rows = n_steps, np.zeros(n, dtype=np.int64), np.arange(n)
    while len(rows):
        at = torch.as_tensor(rows, device=x.device)
        gradient[at] = average_gradient(value, x[at], baseline[at], at, steps)
        total = (gradient[at] * (x[at] - baseline[at])).double().flatten(1).sum(1).cpu().numpy()
        gap[rows], taken[rows] = relative_gap(change[rows], total), steps
        if steps >= most:
            break
        rows, steps = rows[np.abs(gap[rows]) > tolerance], min(2 * steps, most)
    return Path(gradient, gap, taken)
