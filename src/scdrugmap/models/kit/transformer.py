"""Multi-head attention and the post-norm encoder block that four of the models share."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Of the positions of some sequences, ``(n, heads, length, width)`` each.
KeysValues = tuple[Tensor, Tensor]


class SelfAttention(nn.Module):
    """Softmax attention with separate projections, so that adapters on each of them are called.

    Parameters
    ----------
    dim
        Width of the input and output.
    heads
        Number of heads; each has ``dim / heads`` channels.
    bias
        Whether the projections have one.
    causal
        Whether a position sees only itself and earlier ones.
    dropout
        Of the attention weights, in training.
    """

    def __init__(self, dim: int, heads: int, *, bias: bool = True, causal: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.causal, self.dropout = heads, causal, dropout
        self.q_proj = nn.Linear(dim, dim, bias=bias)
        self.k_proj = nn.Linear(dim, dim, bias=bias)
        self.v_proj = nn.Linear(dim, dim, bias=bias)
        self.out_proj = nn.Linear(dim, dim, bias=bias)

    def forward(self, x: Tensor, mask: Tensor | None = None, queries: Tensor | None = None) -> Tensor:
        """Attend.

        Parameters
        ----------
        x
            ``(n, length, dim)``: keys and values, and the queries unless given.
        mask
            ``(n, length)``: bool (``True`` attends) or an additive float bias on the keys.
        queries
            ``(n, m, dim)`` where only some positions are needed.
        """
        rows = x if queries is None else queries
        q, k, v = self._split(self.q_proj(rows)), self._split(self.k_proj(x)), self._split(self.v_proj(x))
        # q: (cells, heads, rows, width); k, v: (cells, heads, length, width)
        bias = None if mask is None else mask[:, None, None, :]
        if bias is not None and bias.dtype != torch.bool:
            bias = bias.to(q.dtype)
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=bias, dropout_p=self.dropout if self.training else 0.0, is_causal=self.causal
        )
        return self.out_proj(y.transpose(1, 2).flatten(2))  # (cells, rows, heads * width)

    def resume(self, x: Tensor, past: KeysValues | None = None) -> tuple[Tensor, KeysValues]:
        """Attend causally from positions that follow others; also returns the keys and values of these positions.

        Parameters
        ----------
        x
            ``(n, length, dim)``.
        past
            Keys and values, ``(n, heads, before, width)`` each, of the positions before the first of ``x``.
        """
        q, k, v = self._split(self.q_proj(x)), self._split(self.k_proj(x)), self._split(self.v_proj(x))
        if past is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            every, values = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
            seen = torch.ones(q.shape[2], every.shape[2], dtype=torch.bool, device=x.device).tril(past[0].shape[2])
            y = F.scaled_dot_product_attention(q, every, values, attn_mask=seen)
        return self.out_proj(y.transpose(1, 2).flatten(2)), (k, v)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class PostNormBlock(nn.Module):
    """Transformer encoder layer with the normalisation after each residual sum (Vaswani et al. 2017).

    ``x = LN1(x + attention(x)); x = LN2(x + W2 act(W1 x))``
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        *,
        eps: float = 1e-5,
        activation: Callable[[Tensor], Tensor] = F.relu,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.attention = SelfAttention(dim, heads, dropout=dropout)
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.linear1 = nn.Linear(dim, hidden)
        self.linear2 = nn.Linear(hidden, dim)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.dropout = nn.Dropout(dropout)
        self.activation = activation

    def forward(self, x: Tensor, mask: Tensor | None = None, rows: slice | None = None) -> Tensor:
        """Transform ``(n, length, dim)``; with ``rows`` only those positions are computed and returned."""
        # The same memory layout with and without gradients, and so the same bits.
        queries = x if rows is None else x[:, rows].contiguous()
        attended = self.attention(x, mask, None if rows is None else queries)
        y = self.norm1(queries + self.dropout(attended))
        return self.norm2(y + self.dropout(self.linear2(self.dropout(self.activation(self.linear1(y))))))


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``(n, length, dim)`` over the positions where ``(n, length)`` is true."""
    weight = mask.to(x.dtype)
    return (x * weight.unsqueeze(-1)).sum(1) / weight.sum(1, keepdim=True)
