"""Integrated gradients in plain PyTorch, with the steps doubled until the attributions add up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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


@dataclass(eq=False)
class Pieces:
    """Pieces of the paths of some cells, each with its share of the gradient and what its share of the change lacks.

    Parameters
    ----------
    cell
        ``(pieces,)`` number of the cell.
    low, high
        ``(pieces,)`` where on the path a piece begins and ends, 0 to 1.
    gradient
        ``(pieces, ...)`` mean gradient along the piece times its length.
    missing
        ``(pieces,)`` change of the value along the piece that its gradient does not explain.
    """

    cell: np.ndarray
    low: np.ndarray
    high: np.ndarray
    gradient: Tensor
    missing: np.ndarray

    def take(self, rows: np.ndarray) -> Pieces:
        """Some of the pieces."""
        at = torch.as_tensor(rows, device=self.gradient.device)
        return Pieces(self.cell[rows], self.low[rows], self.high[rows], self.gradient[at], self.missing[rows])

    @staticmethod
    def concatenate(parts: list[Pieces]) -> Pieces:
        """Join pieces."""
        arrays = {n: np.concatenate([getattr(p, n) for p in parts]) for n in ("cell", "low", "high", "missing")}
        return Pieces(gradient=torch.cat([p.gradient for p in parts]), **arrays)


class Way:
    """The straight paths of some cells from their baselines to their inputs.

    Parameters
    ----------
    value
        ``(inputs, rows) -> (n,)``; ``rows`` says which cells of the batch the inputs are.
    x, baseline
        ``(n, ...)``.
    """

    def __init__(self, value: Value, x: Tensor, baseline: Tensor) -> None:
        self.value, self.x, self.baseline = value, x, baseline

    def at(self, cell: np.ndarray, place: np.ndarray) -> np.ndarray:
        """Values at places on the paths of cells, ``(len(cell),)``."""
        out = np.empty(len(cell))
        # Some networks take another way where no gradient is asked for.
        with torch.enable_grad():
            for part in self._parts(len(cell)):
                z, rows = self._inputs(cell[part], place[part])
                out[part] = self.value(z, rows).detach().double().cpu().numpy()
        return out

    def pieces(self, cell: np.ndarray, low: np.ndarray, high: np.ndarray, n: int) -> Pieces:
        """Gradients along pieces of the paths by ``n`` forward and backward passes each."""
        total, width = torch.zeros_like(self.x[:1]).expand(len(cell), *self.x.shape[1:]).clone(), high - low
        for place, weight in nodes(n):
            for part in self._parts(len(cell)):
                z, rows = self._inputs(cell[part], low[part] + place * width[part])
                z = z.detach().requires_grad_()
                with torch.enable_grad():
                    (gradient,) = torch.autograd.grad(self.value(z, rows).sum(), z)
                total[part] += self._wide(weight * width[part]) * gradient
        ends = self.at(np.concatenate([cell, cell]), np.concatenate([high, low])).reshape(2, -1)
        return Pieces(cell, low, high, total, ends[0] - ends[1] - self.explained(cell, total))

    def explained(self, cell: np.ndarray, gradient: Tensor) -> np.ndarray:
        """Sum of the attributions that gradients amount to."""
        at = torch.as_tensor(cell, device=self.x.device)
        return ((gradient * (self.x[at] - self.baseline[at])).double().flatten(1).sum(1)).cpu().numpy()

    def _parts(self, n: int) -> Iterator[slice]:
        """No more inputs at a time than there are cells."""
        return (slice(i, i + len(self.x)) for i in range(0, n, len(self.x)))

    def _inputs(self, cell: np.ndarray, place: np.ndarray) -> tuple[Tensor, Tensor]:
        rows = torch.as_tensor(cell, device=self.x.device)
        start = self.baseline[rows]
        return start + self._wide(place) * (self.x[rows] - start), rows

    def _wide(self, numbers: np.ndarray) -> Tensor:
        shape = (-1, *[1] * (self.x.ndim - 1))
        return torch.as_tensor(numbers, dtype=self.x.dtype, device=self.x.device).reshape(shape)


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

    The further steps go where something is missing: the change along each piece of a path is known, so that the pieces
    that lack most are halved, and the others keep what was found.

    Parameters
    ----------
    value
        ``(inputs, rows) -> (n,)``; ``rows`` says which cells of the batch the inputs are.
    x, baseline
        ``(n, ...)``.
    n_steps
        Steps to begin with.
    tolerance
        Share of the change that may be missing.
    most
        Steps to end with.
    """
    n, way = len(x), Way(value, x, baseline)
    if n == 0:
        return Path(torch.zeros_like(x), np.empty(0), np.empty(0, dtype=np.int64))
    cells = np.arange(n)
    found = way.pieces(cells, np.zeros(n), np.ones(n), n_steps)
    gradient = found.gradient
    total = way.explained(cells, gradient)
    change = found.missing + total
    gap, taken, steps = relative_gap(change, total), np.full(n, n_steps), n_steps
    found = found.take(np.flatnonzero(np.abs(gap) > tolerance))
    while len(found.cell) and steps < most:
        steps, added = min(2 * steps, most), min(2 * steps, most) - steps
        found = _refined(way, found, tolerance * np.maximum(np.abs(change), FLOOR), added)
        rows = np.unique(found.cell)
        at = torch.as_tensor(rows, device=x.device)
        gradient[at] = 0.0
        gradient.index_add_(0, torch.as_tensor(found.cell, device=x.device), found.gradient)
        total[rows] = way.explained(rows, gradient[at])
        gap[rows], taken[rows] = relative_gap(change[rows], total[rows]), steps
        found = found.take(np.flatnonzero(np.abs(gap[found.cell]) > tolerance))
    return Path(gradient, gap, taken)


def _refined(way: Way, found: Pieces, allowed: np.ndarray, added: int) -> Pieces:
    """Halve the pieces of each cell that lack most, with ``added`` more passes for each cell."""
    # No more pieces of a cell than leave each half two passes; those that lack a fair share of what may be missing.
    order = np.lexsort([-np.abs(found.missing), found.cell])
    starts = np.searchsorted(found.cell[order], found.cell[order])
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order)) - starts
    n_pieces = np.bincount(found.cell, minlength=len(allowed))[found.cell]
    halved = (rank < max(added // 4, 1)) & (np.abs(found.missing) > allowed[found.cell] / (2 * n_pieces))
    halved |= rank == 0
    n_halved = np.bincount(found.cell[halved], minlength=len(allowed))
    passes = np.maximum(added // np.maximum(2 * n_halved, 1), 1)
    parts = [found.take(np.flatnonzero(~halved))]
    for n in np.unique(passes[found.cell[halved]]):
        rows = np.flatnonzero(halved & (passes[found.cell] == n))
        middle = (found.low[rows] + found.high[rows]) / 2
        parts.append(
            way.pieces(
                np.concatenate([found.cell[rows]] * 2),
                np.concatenate([found.low[rows], middle]),
                np.concatenate([middle, found.high[rows]]),
                int(n),
            )
        )
    return Pieces.concatenate(parts)
