"""Performer encoder: blocks over FAVOR+ attention, and the official layout of their weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from scdrugmap._errors import CheckpointError
from scdrugmap.models.kit.favor import Favor, KeySums, attend, tile_of, tiles

#: Positions whose activations the backward pass of one block holds at a time.
_TRAINED_POSITIONS = 2**15
#: Tensors of an official checkpoint that the embedding does not need: heads, and a counter of redraws.
UNUSED = (r"to_out\..*", r"performer\.calls_since_last_redraw")


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
            y = Favor.apply(q, k, v, self.scaled_projection(q.dtype), keys, values)
        return self.merge(y)

    def split(self, x: Tensor) -> Tensor:
        """``(n, c, heads * d) -> (n, heads, c, d)``, at least in float32: exponentials need its range."""
        x = x if x.dtype == torch.float64 else x.float()
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def merge(self, y: Tensor) -> Tensor:
        """``(n, heads, c, d) -> (n, c, dim)``."""
        return self.out_proj(y.transpose(1, 2).flatten(2))

    def scaled_projection(self, dtype: torch.dtype) -> Tensor:
        """The random directions times ``d ** -0.25``."""
        return self.projection.to(dtype) * self.projection.shape[1] ** -0.25


class PerformerBlock(nn.Module):
    """``x = x + attention(LN1(x)); x = x + W2 gelu(W1 LN2(x))``.

    Without gradients, positions stream through the whole block tile by tile. With them, the backward pass
    computes the block again, group of cells by group of cells. Either way memory grows with
    ``cells x positions x dim`` alone.
    """

    #: Gradient checkpointing would compute the block a third time.
    keeps_input_alone: ClassVar[bool] = True

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
        return self.feed_forward((x if rows is None else x[:, rows]) + attended)

    def feed_forward(self, x: Tensor) -> Tensor:
        """The second half of the block."""
        return x + self.linear2(F.gelu(self.linear1(self.norm2(x))))

    def _stream(self, x: Tensor, keys: Tensor | None, values: Tensor | None, rows: slice | None) -> Tensor:
        n, length, _ = x.shape
        start, stop, _ = (rows or slice(None)).indices(length)
        y = x.new_empty(n, stop - start, x.shape[2])
        for cells, pieces in tiles(n, length, self.row_bytes, x.device):
            sums = self.sums(len(x[cells]))
            for p in pieces:
                self.add_keys(sums, x[cells, p], tile_of(keys, cells, p), tile_of(values, cells, p))
            total = sums.total()
            for p in pieces:
                kept = slice(max(p.start, start), min(p.stop, stop))
                if kept.start < kept.stop:
                    y[cells, kept.start - start : kept.stop - start] = self.attend(x[cells, kept], total)
        return y

    @property
    def row_bytes(self) -> int:
        """Bytes of the features of one position."""
        return self.attention.heads * self.attention.projection.shape[0] * 4

    def sums(self, n: int) -> KeySums:
        """Empty sums over keys for some cells."""
        dtype = self.attention.projection.dtype
        dtype = dtype if dtype == torch.float64 else torch.float32
        return KeySums(n, self.attention.heads, self.attention.scaled_projection(dtype))

    def add_keys(self, sums: KeySums, x: Tensor, keys: Tensor | None, values: Tensor | None) -> None:
        """Add positions to the sums over keys."""
        normed, attention = self.norm1(x), self.attention
        k, v = attention.split(attention.k_proj(normed)), attention.split(attention.v_proj(normed))
        with torch.autocast(x.device.type, enabled=False):
            sums.add(k, v, keys, values)

    def attend(self, x: Tensor, total: Tensor) -> Tensor:
        """Pass positions ``(n or 1, c, dim)`` through the block, given the sums over all keys."""
        q = self.attention.split(self.attention.q_proj(self.norm1(x)))
        with torch.autocast(x.device.type, enabled=False):
            attended = attend(q, total, self.attention.scaled_projection(total.dtype))
        return self.feed_forward(x + self.attention.merge(attended))


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
    def draw_projection(self, rng: int) -> None:
        """Draw the random directions of every layer: orthogonal in blocks of ``d``, with Gaussian lengths."""
        generator = np.random.Generator(np.random.PCG64(rng))
        for block in self.blocks:
            projection = cast(PerformerBlock, block).attention.projection
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
