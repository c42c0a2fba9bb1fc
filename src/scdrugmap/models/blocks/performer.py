"""Performer encoder: softmax attention through positive random features (FAVOR+, Choromanski et al. 2021).

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
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from scdrugmap._errors import CheckpointError

_EPSILON = 1e-4
#: Bytes of features that are held at a time: per thread about a second-level cache; on a GPU large enough to fill it.
_TILE_BYTES = {"cpu": 2**21, "other": 2**29}
#: Positions whose activations the backward pass of one block holds at a time.
_TRAINED_POSITIONS = 2**15
#: Tensors of an official checkpoint that the embedding does not need: heads, and a counter of redraws.
UNUSED = (r"to_out\..*", r"performer\.calls_since_last_redraw")


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
        soft, peak, top, half = _features(k, self.projection)
        weighted = _weighted(v, keys, values)
        highest = top if keys is None else top.masked_fill((keys <= 0)[:, None], self.top.new_tensor(-torch.inf))
        raised = torch.maximum(self.top, highest.amax((1, 2)))
        scale = torch.exp(top - half - raised[:, None, None]) / peak
        if keys is not None:
            scale = scale.masked_fill((keys <= 0)[:, None], 0.0)
        # In place, so that a part of the cells can be added to through `of`.
        self.sums *= torch.exp(self.top - raised)[:, None, None, None]
        self.sums += _over_positions(soft, weighted * scale[..., None])
        self.plain += weighted.sum(2, keepdim=True)
        self.top.copy_(raised)

    def of(self, cells: slice) -> KeySums:
        """The sums of some of the cells, in the same memory."""
        part = copy.copy(self)
        part.top, part.sums, part.plain = self.top[cells], self.sums[cells], self.plain[cells]
        return part

    def total(self) -> Tensor:
        """The sums, ``(n, heads, m, d + 1)``."""
        return self.sums + _EPSILON * self.plain


def answer(q: Tensor, sums: Tensor, projection: Tensor) -> Tensor:
    """Attention output of the queries ``(n, heads, c, d)``, or ``(1, heads, c, d)`` if all cells share them."""
    soft, peak, _, half = _features(q, projection)
    y = _over_features(soft, sums) * (torch.exp(-half) / peak)[..., None]
    y += _EPSILON * sums.sum(2, keepdim=True)
    return y[..., :-1] / y[..., -1:]


def _features(t: Tensor, projection: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Softmax of ``u``, its largest value, the largest ``u`` and ``g``: ``exp(u - max u) = softmax / peak``."""
    n, heads, c, d = t.shape
    u = torch.bmm(t.reshape(n * heads, c, d), projection.t().expand(n * heads, -1, -1)).view(n, heads, c, -1)
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


def _part(x: Tensor | None, cells: slice, piece: slice) -> Tensor | None:
    return None if x is None else x[cells, piece]


class _Favor(torch.autograd.Function):
    """Attention of whole sequences ``(n, heads, length, d)`` whose backward pass computes the features again."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, projection: Tensor, keys: Tensor | None, values: Tensor | None
    ) -> Tensor:
        n, heads, length, _ = k.shape
        row_bytes = heads * projection.shape[0] * projection.element_size()
        out, sums, top = torch.empty_like(q), [], []
        for cells, pieces in tiles(n, length, row_bytes, q.device):
            gathered = KeySums(len(k[cells]), heads, projection)
            for p in pieces:
                gathered.add(k[cells, :, p], v[cells, :, p], _part(keys, cells, p), _part(values, cells, p))
            sums.append(gathered.total())
            top.append(gathered.top)
        for cells, pieces in tiles(n, q.shape[2], row_bytes, q.device):
            total = torch.cat(sums)[cells]
            for p in pieces:
                out[cells, :, p] = answer(q[cells, :, p], total, projection)
        ctx.save_for_backward(q, k, v, projection, keys, values, out, torch.cat(sums), torch.cat(top))
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, projection, keys, values, out, sums, top = ctx.saved_tensors
        (n, heads, length, d), shrink = k.shape, q.shape[3] ** -0.5
        row_bytes = 2 * heads * projection.shape[0] * projection.element_size()
        dq, dk, dv, dsums = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), torch.zeros_like(sums)
        for cells, pieces in tiles(n, q.shape[2], row_bytes, q.device):
            for p in pieces:
                rows = q[cells, :, p]
                soft, peak, _, half = _features(rows, projection)
                scale = (torch.exp(-half) / peak)[..., None]
                y = (
                    torch.matmul(soft, sums[cells, :, :, -1:]) * scale
                    + _EPSILON * sums[cells, :, :, -1:].sum(2)[:, :, None]
                )
                dy = grad[cells, :, p] / y
                dy = torch.cat([dy, -(dy * out[cells, :, p]).sum(-1, keepdim=True)], -1)
                dsums[cells] += torch.matmul(soft.transpose(2, 3), dy * scale) + _EPSILON * dy.sum(2, keepdim=True)
                du = torch.matmul(dy * scale, sums[cells].transpose(2, 3)).mul_(soft)
                slope = du.sum(-1, keepdim=True)
                # The maximum over the features moves with its largest one.
                du.scatter_add_(-1, soft.argmax(-1, keepdim=True), -slope)
                dq[cells, :, p] = torch.matmul(du, projection) - rows * (slope * shrink)
        for cells, pieces in tiles(n, length, row_bytes, q.device):
            dtop = top.new_zeros(len(top[cells]))
            best = top.new_full((len(dtop),), -torch.inf)
            place = torch.zeros(len(dtop), dtype=torch.long, device=q.device)
            for p in pieces:
                rows, weight_k, weight_v = k[cells, :, p], _part(keys, cells, p), _part(values, cells, p)
                soft, peak, tops, half = _features(rows, projection)
                scale = torch.exp(tops - half - top[cells, None, None]) / peak
                if weight_k is not None:
                    tops = tops.masked_fill((weight_k <= 0)[:, None], -torch.inf)
                    scale = scale.masked_fill((weight_k <= 0)[:, None], 0.0)
                weighted = _weighted(v[cells, :, p], weight_k, weight_v) * scale[..., None]
                slopes = dsums[cells, :, :, :-1]
                dweighted = torch.matmul(soft, slopes) * scale[..., None] + _EPSILON * slopes.sum(2, keepdim=True)
                dv[cells, :, p] = dweighted if weight_v is None else dweighted * weight_v[:, None, :, None].to(v.dtype)
                du = torch.matmul(weighted, dsums[cells].transpose(2, 3)).mul_(soft)
                slope = du.sum(-1, keepdim=True)
                dk[cells, :, p] = torch.matmul(du, projection) - rows * (slope * shrink)
                dtop -= slope.sum((1, 2, 3))
                # Where the largest exponent of each cell is, as head * length + position.
                value, where = tops.flatten(1).max(1)
                width = p.stop - p.start
                where = where // width * length + where % width + p.start
                place = torch.where(value > best, where, place)
                best = torch.maximum(best, value)
            at = torch.arange(n, device=q.device)[cells], place // length, place % length
            direction = projection[torch.matmul(k[at], projection.t()).argmax(-1)]
            dk[at] += dtop[:, None] * direction
        return dq, dk, dv, None, None, None


class PerformerAttention(nn.Module):
    """FAVOR+ attention with stored random directions and separate projections.

    Parameters
    ----------
    dim
        Width of the input and output.
    heads, head_dim
        Heads and their width; ``heads * head_dim`` need not be ``dim``.
    features
        Random directions ``m``.
    """

    projection: Tensor

    def __init__(self, dim: int, heads: int, head_dim: int, features: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(dim, heads * head_dim, bias=False)
        self.k_proj = nn.Linear(dim, heads * head_dim, bias=False)
        self.v_proj = nn.Linear(dim, heads * head_dim, bias=False)
        self.out_proj = nn.Linear(heads * head_dim, dim)
        self.register_buffer("projection", torch.zeros(features, head_dim))

    def forward(
        self, x: Tensor, keys: Tensor | None = None, values: Tensor | None = None, rows: slice | None = None
    ) -> Tensor:
        """Attend, differentiably.

        Parameters
        ----------
        x
            ``(n, length, dim)``.
        keys
            ``(n, length)``: how often each position counts as a key, ``0`` for padding; all once by default.
        values
            ``(n, length)``: weight of each value; given together with ``keys``.
        rows
            The queries, where only some positions are needed.
        """
        q = self.split(self.q_proj(x if rows is None else x[:, rows]))
        k, v = self.split(self.k_proj(x)), self.split(self.v_proj(x))
        with torch.autocast(x.device.type, enabled=False):
            y = _Favor.apply(q, k, v, self.directions(q.dtype), keys, values)
        return self.merge(y)

    def split(self, x: Tensor) -> Tensor:
        """``(n, c, heads * d) -> (n, heads, c, d)``, at least in float32: exponentials need its range."""
        x = x if x.dtype == torch.float64 else x.float()
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def merge(self, y: Tensor) -> Tensor:
        """``(n, heads, c, d) -> (n, c, dim)``."""
        return self.out_proj(y.transpose(1, 2).flatten(2))

    def directions(self, dtype: torch.dtype) -> Tensor:
        """The random directions times ``d ** -0.25``."""
        return self.projection.to(dtype) * self.projection.shape[1] ** -0.25


class PerformerBlock(nn.Module):
    """``x = x + attention(LN1(x)); x = x + W2 gelu(W1 LN2(x))``.

    Without gradients, positions stream through the whole block tile by tile. With them, the backward pass
    computes the block again, group of cells by group of cells. Either way memory grows with
    ``cells x positions x dim`` alone.
    """

    def __init__(self, dim: int, heads: int, head_dim: int, features: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = PerformerAttention(dim, heads, head_dim, features)
        self.norm2 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, hidden)
        self.linear2 = nn.Linear(hidden, dim)

    def forward(
        self, x: Tensor, keys: Tensor | None = None, values: Tensor | None = None, rows: slice | None = None
    ) -> Tensor:
        """Transform ``(n, length, dim)``; with ``rows`` only those positions are computed and returned."""
        if not torch.is_grad_enabled():
            return self._stream(x, keys, values, rows)
        step = max(1, _TRAINED_POSITIONS // x.shape[1])
        groups = [slice(i, i + step) for i in range(0, len(x), step)]
        parts = [
            checkpoint(
                self._whole,
                x[g],
                None if keys is None else keys[g],
                None if values is None else values[g],
                rows,
                use_reentrant=False,
            )
            for g in groups
        ]
        return torch.cat(parts)

    def _whole(self, x: Tensor, keys: Tensor | None, values: Tensor | None, rows: slice | None) -> Tensor:
        attended = self.attention(self.norm1(x), keys, values, rows)
        return self.feed((x if rows is None else x[:, rows]) + attended)

    def feed(self, x: Tensor) -> Tensor:
        """The second half of the block."""
        return x + self.linear2(F.gelu(self.linear1(self.norm2(x))))

    def _stream(self, x: Tensor, keys: Tensor | None, values: Tensor | None, rows: slice | None) -> Tensor:
        n, length, _ = x.shape
        start, stop, _ = (rows or slice(None)).indices(length)
        y = x.new_empty(n, stop - start, x.shape[2])
        for cells, pieces in tiles(n, length, self.row_bytes, x.device):
            sums = self.sums(len(x[cells]))
            for p in pieces:
                self.read(sums, x[cells, p], _part(keys, cells, p), _part(values, cells, p))
            total = sums.total()
            for p in pieces:
                kept = slice(max(p.start, start), min(p.stop, stop))
                if kept.start < kept.stop:
                    y[cells, kept.start - start : kept.stop - start] = self.write(x[cells, kept], total)
        return y

    @property
    def row_bytes(self) -> int:
        """Bytes of the features of one position."""
        return self.attention.heads * self.attention.projection.shape[0] * 4

    def sums(self, n: int) -> KeySums:
        """Empty sums over keys for some cells."""
        dtype = self.attention.projection.dtype
        dtype = dtype if dtype == torch.float64 else torch.float32
        return KeySums(n, self.attention.heads, self.attention.directions(dtype))

    def read(self, sums: KeySums, x: Tensor, keys: Tensor | None, values: Tensor | None) -> None:
        """Add positions to the sums over keys."""
        normed, attention = self.norm1(x), self.attention
        k, v = attention.split(attention.k_proj(normed)), attention.split(attention.v_proj(normed))
        with torch.autocast(x.device.type, enabled=False):
            sums.add(k, v, keys, values)

    def write(self, x: Tensor, total: Tensor) -> Tensor:
        """Pass positions ``(n or 1, c, dim)`` through the block, given the sums over all keys."""
        q = self.attention.split(self.attention.q_proj(self.norm1(x)))
        with torch.autocast(x.device.type, enabled=False):
            attended = answer(q, total, self.attention.directions(total.dtype))
        return self.feed(x + self.attention.merge(attended))


@dataclass(frozen=True)
class PerformerSizes:
    """Sizes of an encoder."""

    tokens: int
    positions: int
    dim: int
    depth: int
    heads: int
    head_dim: int
    features: int
    hidden: int

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], source: str) -> Self:
        """Read the sizes off renamed tensors; one that is missing is a ``CheckpointError``."""
        try:
            depth = len({k.split(".")[1] for k in tensors if k.startswith("blocks.")})
            features, head_dim = tensors["blocks.0.attention.projection"].shape
            return cls(
                tokens=tensors["token.weight"].shape[0],
                positions=tensors["position.weight"].shape[0],
                dim=tensors["token.weight"].shape[1],
                depth=depth,
                heads=tensors["blocks.0.attention.q_proj.weight"].shape[0] // head_dim,
                head_dim=head_dim,
                features=features,
                hidden=tensors["blocks.0.linear1.weight"].shape[0],
            )
        except KeyError as error:
            raise CheckpointError(
                "checkpoint",
                f"{source} lacks {error.args[0]}",
                "the tensors of the official Performer",
                "use the official, unmodified checkpoint that matches this model.",
            ) from None


class PerformerEncoder(nn.Module):
    """Sum of token and position embeddings, Performer blocks, final normalisation."""

    def __init__(self, sizes: PerformerSizes) -> None:
        super().__init__()
        self.token = nn.Embedding(sizes.tokens, sizes.dim)
        self.position = nn.Embedding(sizes.positions, sizes.dim)
        self.blocks = nn.ModuleList(
            PerformerBlock(sizes.dim, sizes.heads, sizes.head_dim, sizes.features, sizes.hidden)
            for _ in range(sizes.depth)
        )
        self.norm = nn.LayerNorm(sizes.dim)

    @torch.no_grad()
    def draw_directions(self, rng: int) -> None:
        """Draw the random directions of every layer: orthogonal in blocks of ``d``, with Gaussian lengths."""
        generator = np.random.Generator(np.random.PCG64(rng))
        for block in self.blocks:
            projection = block.attention.projection
            m, d = projection.shape
            draws = generator.standard_normal((-(-m // d), d, d))
            basis, upper = np.linalg.qr(draws)
            basis = basis * np.sign(np.diagonal(upper, axis1=1, axis2=2))[:, None, :]
            lengths = np.linalg.norm(generator.standard_normal((m, d)), axis=1)
            rows = basis.transpose(0, 2, 1).reshape(-1, d)[:m]
            projection.copy_(torch.from_numpy((rows * lengths[:, None]).astype(np.float32)))


def renamed(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the official Performer under the names of :class:`PerformerEncoder`."""
    parts = {
        "0.norm": "norm1",
        "0.fn.to_q": "attention.q_proj",
        "0.fn.to_k": "attention.k_proj",
        "0.fn.to_v": "attention.v_proj",
        "0.fn.to_out": "attention.out_proj",
        "1.norm": "norm2",
        "1.fn.fn.w1": "linear1",
        "1.fn.fn.w2": "linear2",
    }
    whole = {"token_emb.weight": "token.weight", "pos_emb.emb.weight": "position.weight"}
    out = {}
    for key, tensor in official.items():
        key = key.removeprefix("module.")
        match = re.fullmatch(r"performer\.net\.layers\.(\d+)\.(.+)\.(\w+)", key)
        if match is not None and match[2] in parts:
            out[f"blocks.{match[1]}.{parts[match[2]]}.{match[3]}"] = tensor
        elif match is not None and f"{match[2]}.{match[3]}" == "0.fn.fast_attention.projection_matrix":
            out[f"blocks.{match[1]}.attention.projection"] = tensor
        else:
            out[whole.get(key, key)] = tensor
    return out
