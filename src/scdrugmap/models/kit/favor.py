"""FAVOR+: softmax attention through positive random features (Choromanski et al. 2021), at bounded memory.

For a query ``q`` and a key ``k`` of width ``d``, ``m`` stored random directions ``P`` and ``s = d ** -0.25``::

    u(t) = s P t,   g(t) = s^2 |t|^2 / 2
    f_q = exp(u(q) - g(q) - max u(q)) + 1e-4            maximum over the m features of this query
    f_k = exp(u(k) - g(k) - M) + 1e-4                   M: maximum over all keys, heads and features of the cell
    out = f_q . sum_k f_k v^T / f_q . sum_k f_k

``M`` does not cancel, because 1e-4 is added after it is subtracted; it is taken per cell, so that a cell does not
depend on its neighbours in the batch. The features are never held for a whole sequence: positions pass in tiles
that fit a cache, the sums over keys are kept relative to the largest exponent so far, and the backward pass
computes the features again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_EPSILON = 1e-4
#: Bytes of features that are held at a time: per thread about a second-level cache; on a GPU large enough to fill it.
_TILE_BYTES = {"cpu": 2**21, "other": 2**29}


class KeySums:
    """``sum_k f_k [v, 1]`` of some cells, gathered tile by tile.

    Parameters
    ----------
    n, heads
        Cells and heads.
    projection
        ``(m, d)`` random directions times ``d ** -0.25``.
    """

    def __init__(self, n: int, heads: int, projection: Tensor) -> None:
        m, d = projection.shape
        self.projection = projection
        self.top = projection.new_full((n,), torch.finfo(projection.dtype).min)
        self.sums = projection.new_zeros(n, heads, m, d + 1)
        self.plain = projection.new_zeros(n, heads, 1, d + 1)

    def add(self, k: Tensor, v: Tensor, keys: Tensor | None = None, values: Tensor | None = None) -> None:
        """Add positions: ``k`` and ``v`` are ``(n, heads, c, d)``, or ``(1, heads, c, d)`` if all cells share them.

        ``keys`` (how often a position counts) and ``values`` (the weight of its value) are ``(n, c)``.
        """
        soft, peak, top, half = _features(k, self.projection)  # (n, heads, c, m), then (n, heads, c) each
        weighted = _weighted(v, keys, values)  # (n, heads, c, d + 1)
        highest = top if keys is None else top.masked_fill((keys <= 0)[:, None], self.top.new_tensor(-torch.inf))
        raised = torch.maximum(self.top, highest.amax((1, 2)))  # (n,)
        scale = torch.exp(top - half - raised[:, None, None]) / peak
        if keys is not None:
            scale = scale.masked_fill((keys <= 0)[:, None], 0.0)
        # In place, so that a part of the cells can be added to through `of`.
        self.sums *= torch.exp(self.top - raised)[:, None, None, None]
        self.sums += _over_positions(soft, weighted * scale[..., None])  # (n, heads, m, d + 1)
        self.plain += weighted.sum(2, keepdim=True)  # (n, heads, 1, d + 1)
        self.top.copy_(raised)

    def of(self, cells: slice) -> KeySums:
        """The sums of some of the cells, in the same memory."""
        part = copy.copy(self)
        part.top, part.sums, part.plain = self.top[cells], self.sums[cells], self.plain[cells]
        return part

    def total(self) -> Tensor:
        """The sums, ``(n, heads, m, d + 1)``."""
        return self.sums + _EPSILON * self.plain


def attend(q: Tensor, sums: Tensor, projection: Tensor) -> Tensor:
    """Attention output of the queries ``(n, heads, c, d)``, or ``(1, heads, c, d)`` if all cells share them."""
    soft, peak, _, half = _features(q, projection)
    y = _over_features(soft, sums) * (torch.exp(-half) / peak)[..., None]  # (n, heads, c, d + 1)
    y += _EPSILON * sums.sum(2, keepdim=True)
    return y[..., :-1] / y[..., -1:]  # (n, heads, c, d)


def _features(t: Tensor, projection: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Softmax of ``u``, its largest value, the largest ``u`` and ``g``: ``exp(u - max u) = softmax / peak``."""
    n, heads, c, d = t.shape
    u = torch.bmm(t.reshape(n * heads, c, d), projection.t().expand(n * heads, -1, -1)).view(
        n, heads, c, -1
    )  # (n, heads, c, m)
    # One fused pass; dividing by the largest value undoes the normalisation.
    soft = torch.softmax(u, -1)
    return soft, soft.amax(-1), u.amax(-1), t.square().sum(-1) * (0.5 * d**-0.5)


def _over_positions(soft: Tensor, weighted: Tensor) -> Tensor:
    """``(n or 1, heads, c, m), (n, heads, c, w) -> (n, heads, m, w)``."""
    if len(soft) == len(weighted):
        return torch.matmul(soft.transpose(2, 3), weighted)
    n, heads, c, w = weighted.shape
    side_by_side = weighted.permute(1, 2, 0, 3).reshape(heads, c, n * w)
    return torch.bmm(soft[0].transpose(1, 2), side_by_side).unflatten(-1, (n, w)).permute(2, 0, 1, 3)


def _over_features(soft: Tensor, sums: Tensor) -> Tensor:
    """``(n or 1, heads, c, m), (n, heads, m, w) -> (n, heads, c, w)``."""
    if len(soft) == len(sums):
        return torch.matmul(soft, sums)
    n, heads, m, w = sums.shape
    side_by_side = sums.permute(1, 2, 0, 3).reshape(heads, m, n * w)
    return torch.bmm(soft[0], side_by_side).unflatten(-1, (n, w)).permute(2, 0, 1, 3)


def _weighted(v: Tensor, keys: Tensor | None, values: Tensor | None) -> Tensor:
    """Values times their weights, with the weight of the key as one more column."""
    if keys is None or values is None:
        return torch.cat([v, v.new_ones(*v.shape[:-1], 1)], -1)
    column = keys[:, None, :, None].to(v.dtype)
    return torch.cat([v * values[:, None, :, None].to(v.dtype), column.expand(-1, v.shape[1], -1, -1)], -1)


def tiles(n: int, length: int, row_bytes: int, device: torch.device) -> Iterator[tuple[slice, list[slice]]]:
    """Groups of cells, and the pieces of their positions, whose features fit the tile."""
    budget = _TILE_BYTES["cpu"] * torch.get_num_threads() if device.type == "cpu" else _TILE_BYTES["other"]
    cells = min(n, max(1, budget // (row_bytes * length)))
    pieces = -(-length * row_bytes * cells // budget)
    step = -(-length // pieces)
    for first in range(0, n, cells):
        yield slice(first, first + cells), [slice(i, min(i + step, length)) for i in range(0, length, step)]


def tile_of(x: Tensor | None, cells: slice, piece: slice) -> Tensor | None:
    """Some positions of some cells, of weights that may be absent."""
    return None if x is None else x[cells, piece]


class Favor(torch.autograd.Function):
    """Attention of whole sequences, ``apply(q, k, v, projection, keys, values)``.

    ``q``, ``k``, ``v`` are ``(n, heads, length, d)``; the backward pass computes the features again.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, projection: Tensor, keys: Tensor | None, values: Tensor | None
    ) -> Tensor:
        """Attend to sums that are gathered first."""
        n, heads, length, _ = k.shape
        gathered, out = KeySums(n, heads, projection), torch.empty_like(q)
        for cells, pieces in tiles(n, length, _row_bytes(q, projection), q.device):
            for p in pieces:
                some = gathered.of(cells)
                some.add(k[cells, :, p], v[cells, :, p], tile_of(keys, cells, p), tile_of(values, cells, p))
        sums = gathered.total()
        for cells, pieces in tiles(n, q.shape[2], _row_bytes(q, projection), q.device):
            for p in pieces:
                out[cells, :, p] = attend(q[cells, :, p], sums[cells], projection)
        ctx.save_for_backward(q, k, v, projection, keys, values, out, sums, gathered.top)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of queries, keys and values; the maxima are differentiated too."""
        q, k, v, projection, keys, values, out, sums, top = ctx.saved_tensors
        dq, dsums = _query_gradients(grad, q, out, sums, projection)
        dk, dv = _key_gradients(dsums, k, v, keys, values, top, projection)
        return dq, dk, dv, None, None, None


def _query_gradients(grad: Tensor, q: Tensor, out: Tensor, sums: Tensor, projection: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of queries and of the sums over keys."""
    dq, dsums, shrink = torch.empty_like(q), torch.zeros_like(sums), q.shape[3] ** -0.5
    for cells, pieces in tiles(len(q), q.shape[2], 2 * _row_bytes(q, projection), q.device):
        counts = sums[cells, :, :, -1:]  # (n, heads, m, 1)
        for p in pieces:
            rows = q[cells, :, p]
            soft, peak, _, half = _features(rows, projection)
            scale = (torch.exp(-half) / peak)[..., None]
            below = torch.matmul(soft, counts) * scale + _EPSILON * counts.sum(2, keepdim=True)
            dy = grad[cells, :, p] / below  # (n, heads, c, d)
            dy = torch.cat([dy, -(dy * out[cells, :, p]).sum(-1, keepdim=True)], -1)
            dsums[cells] += torch.matmul(soft.transpose(2, 3), dy * scale) + _EPSILON * dy.sum(2, keepdim=True)
            du = torch.matmul(dy * scale, sums[cells].transpose(2, 3)).mul_(soft)  # (n, heads, c, m)
            slope = du.sum(-1, keepdim=True)
            # The maximum over the features moves with the largest one.
            du.scatter_add_(-1, soft.argmax(-1, keepdim=True), -slope)
            dq[cells, :, p] = torch.matmul(du, projection) - rows * (slope * shrink)
    return dq, dsums


def _key_gradients(
    dsums: Tensor, k: Tensor, v: Tensor, keys: Tensor | None, values: Tensor | None, top: Tensor, projection: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of keys and values."""
    (n, _, length, d), dk, dv = k.shape, torch.empty_like(k), torch.empty_like(v)
    slopes = dsums[..., :-1]  # (n, heads, m, d)
    # Per cell: gradient of the maximum M, its value so far and where it is, as head * length + position.
    dtop, best, place = torch.zeros_like(top), torch.full_like(top, -torch.inf), torch.zeros_like(top, dtype=torch.long)
    for cells, pieces in tiles(n, length, 2 * _row_bytes(k, projection), k.device):
        for p in pieces:
            rows, weight_k, weight_v = k[cells, :, p], tile_of(keys, cells, p), tile_of(values, cells, p)
            soft, peak, highest, half = _features(rows, projection)
            scale = torch.exp(highest - half - top[cells, None, None]) / peak
            if weight_k is not None:
                highest = highest.masked_fill((weight_k <= 0)[:, None], -torch.inf)
                scale = scale.masked_fill((weight_k <= 0)[:, None], 0.0)
            weighted = _weighted(v[cells, :, p], weight_k, weight_v) * scale[..., None]
            dv[cells, :, p] = torch.matmul(soft, slopes[cells]) * scale[..., None]  # (n, heads, c, d)
            dv[cells, :, p] += _EPSILON * slopes[cells].sum(2, keepdim=True)
            if weight_v is not None:
                dv[cells, :, p] *= weight_v[:, None, :, None].to(v.dtype)
            du = torch.matmul(weighted, dsums[cells].transpose(2, 3)).mul_(soft)  # (n, heads, c, m)
            slope = du.sum(-1, keepdim=True)
            dk[cells, :, p] = torch.matmul(du, projection) - rows * (slope * d**-0.5)
            dtop[cells] -= slope.sum((1, 2, 3))
            value, where = highest.flatten(1).max(1)
            width = p.stop - p.start
            where = where // width * length + where % width + p.start
            place[cells] = torch.where(value > best[cells], where, place[cells])
            best[cells] = torch.maximum(best[cells], value)
    at = torch.arange(n, device=k.device), place // length, place % length
    dk[at] += dtop[:, None] * projection[torch.matmul(k[at], projection.t()).argmax(-1)]
    return dk, dv


def _row_bytes(t: Tensor, projection: Tensor) -> int:
    return t.shape[1] * projection.shape[0] * t.element_size()
