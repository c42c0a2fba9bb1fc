"""Flow attention: every item of a set sees all others at a cost that is linear in their number.

Attention is read as a flow from sources (keys) to sinks (queries) whose totals are conserved. All that an item has to
know about the others are a few sums over the set, so a set of any size passes through in parts: each layer takes
three rounds over the parts to gather the sums and one to use them. A forward pass over a whole set is the same code
with a single part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-6


@dataclass(frozen=True)
class Flow:
    """The sums over a set that its items need; all float32.

    Parameters
    ----------
    keys, queries
        ``(dim,)``: sums of the keys and of the queries.
    sources, sinks
        ``(dim,)``: sums of the keys by their outgoing flow and of the queries by their incoming flow.
    values
        ``(heads, head, head)``: keys by values, weighted by the competition among the sources.
    weight
        ``(heads,)``: mean of ``exp(b)`` over the items, the denominator of the competition.
    """

    keys: Tensor
    queries: Tensor
    sources: Tensor
    sinks: Tensor
    values: Tensor
    weight: Tensor


class FlowAttention(nn.Module):
    """Multi-head flow attention over the items of a set, without mask, position or scaling.

    Parameters
    ----------
    dim
        Width of the input and output.
    heads
        Number of heads; head ``h`` is the ``h``-th block of ``dim / heads`` channels.

    Notes
    -----
    With ``q = sigmoid(Wq x)``, ``k = sigmoid(Wk x)``, ``v = Wv x`` and ``e = 1e-6`` in each sum, per head:
    incoming flow ``I_i = 1 / q_i . sum_j k_j``, outgoing flow ``O_j = 1 / k_j . sum_i q_i``, conserved sink
    ``a_i = q_i . sum_j k_j O_j``, conserved source ``b_j = k_j . sum_i q_i I_i``, and
    ``y_i = sigmoid(a_i) I_i q_i . sum_j k_j (w_j v_j)`` with ``w_j = n softmax_j(clamp(b_j, -1, 1))``.

    References
    ----------
    Wu, Wu, Xu, Wang and Long 2022, Flowformer: linearizing transformers with conservation flows, ICML.

    Examples
    --------
    >>> import torch
    >>> FlowAttention(8, 2)(torch.zeros(5, 8)).shape
    torch.Size([5, 8])
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"{heads} heads do not divide a width of {dim}")
        self.heads = heads
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Attend among the ``(n, dim)`` items of one set."""
        projected = Projected(self, x)
        return self.attend(projected.q, self.gather(lambda: [projected]))

    def gather(self, parts: Callable[[], Iterable[Projected]]) -> Flow:
        """Sum over a set that comes in parts; ``parts`` is called three times.

        Sums of parts are added in float64 (float32 where the device has none), so that they do not depend on the
        division beyond rounding.
        """
        with torch.autocast(next(self.parameters()).device.type, enabled=False):
            n = 0
            queries, keys = _Sum(), _Sum()
            for part in parts():
                n += len(part.q)
                queries.add(part.q.sum(0))  # (dim,)
                keys.add(part.k.sum(0))
            sources, sinks = _Sum(), _Sum()
            for part in parts():
                sources.add(self._weighted(part.k, self.outgoing(part.k, queries.total)))
                sinks.add(self._weighted(part.q, self.incoming(part.q, keys.total)))
            weight, values = _Sum(), _Sum()
            for part in parts():
                competition = self.conserved_source(part.k, sinks.total).clamp(-1, 1).exp()  # (n, heads)
                weight.add(competition.sum(0))
                weighted = self._split(part.v) * competition.unsqueeze(-1)  # (n, heads, width)
                # (heads, width, n) @ (heads, n, width) -> (heads, width, width)
                values.add(self._split(part.k).permute(1, 2, 0) @ weighted.transpose(0, 1))
            mean = weight.total / n
            return Flow(keys.total, queries.total, sources.total, sinks.total, values.total / mean[:, None, None], mean)

    def attend(self, q: Tensor, flow: Flow) -> Tensor:
        """Return the output of the items with queries ``q``."""
        with torch.autocast(q.device.type, enabled=False):
            gate = torch.sigmoid(self.conserved_sink(q, flow.sources)) * self.incoming(q, flow.keys)
            # (heads, n, width) @ (heads, width, width) -> (n, heads, width)
            y = (self._split(q).transpose(0, 1) @ flow.values).transpose(0, 1) * gate.unsqueeze(-1)
        return self.out_proj(y.flatten(1))

    def incoming(self, q: Tensor, keys: Tensor) -> Tensor:
        """Return ``I``, ``(n, heads)``."""
        return 1 / self._dot(q, keys)

    def outgoing(self, k: Tensor, queries: Tensor) -> Tensor:
        """Return ``O``, ``(n, heads)``."""
        return 1 / self._dot(k, queries)

    def conserved_sink(self, q: Tensor, sources: Tensor) -> Tensor:
        """Return ``a``, ``(n, heads)``."""
        return self._dot(q, sources)

    def conserved_source(self, k: Tensor, sinks: Tensor) -> Tensor:
        """Return ``b`` before it is clamped, ``(n, heads)``."""
        return self._dot(k, sinks)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))

    def _dot(self, x: Tensor, total: Tensor) -> Tensor:
        """Per head ``(x + e) . (total + e)``; a thin matrix product would take four times as long on a processor."""
        total = total + EPS
        return self._split(x * total).sum(-1) + EPS * self._split(total).sum(-1)

    def _weighted(self, x: Tensor, weight: Tensor) -> Tensor:
        """Sum over the items of ``x`` by the weight of its head, ``(dim,)``."""
        return (self._split(x) * weight.unsqueeze(-1)).sum(0).flatten()


class Projected:
    """Queries, keys and values of some items, ``(n, dim)`` float32, each computed when it is first asked for."""

    def __init__(self, attention: FlowAttention, x: Tensor) -> None:
        self._attention, self._x = attention, x

    @cached_property
    def q(self) -> Tensor:
        """Queries in (0, 1)."""
        return torch.sigmoid(self._attention.q_proj(self._x).float())

    @cached_property
    def k(self) -> Tensor:
        """Keys in (0, 1)."""
        return torch.sigmoid(self._attention.k_proj(self._x).float())

    @cached_property
    def v(self) -> Tensor:
        """Values."""
        return self._attention.v_proj(self._x).float()


class FlowBlock(nn.Module):
    """Pre-norm layer: ``x += attention(LN1(x)); x += W2 gelu(W1 LN2(x))``.

    Parameters
    ----------
    dim, heads
        Of the attention.
    hidden
        Inner width of the feed-forward part.
    attention_dropout, dropout
        Rates in training: of the attention's output alone, and of both residual branches and the inner layer.
    """

    def __init__(
        self, dim: int, heads: int, hidden: int, *, attention_dropout: float = 0.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.attention = FlowAttention(dim, heads)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, hidden)
        self.linear2 = nn.Linear(hidden, dim)
        self.attention_dropout = nn.Dropout(attention_dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Transform the ``(n, dim)`` items of one set."""
        return self._update(x, self.attention(self.norm1(x)))

    def stream(self, parts: list[Tensor], device: torch.device, *, keep: bool) -> None:
        """Transform a set that comes in parts, in place of the list's entries.

        Parameters
        ----------
        parts
            ``(n_i, dim)`` each, on any device; the results go where the parts were.
        device
            Where the weights are.
        keep
            Whether projections are kept between the rounds, four times the memory of the parts, or computed anew.
        """

        def projected() -> Iterable[Projected]:
            return (Projected(self.attention, self.norm1(x.to(device))) for x in parts)

        held = list(projected()) if keep else None
        flow = self.attention.gather(projected if held is None else lambda: held)
        for i, x in enumerate(parts):
            here = x.to(device)
            q = Projected(self.attention, self.norm1(here)).q if held is None else held[i].q
            parts[i] = self._update(here, self.attention.attend(q, flow)).to(x.device)

    def _update(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.dropout(self.attention_dropout(attended))
        inner = self.dropout(F.gelu(self.linear1(self.norm2(x))))
        return x + self.dropout(self.linear2(inner))


class FlowEncoder(nn.ModuleList):
    """Flow blocks one after the other; parameters as in :class:`FlowBlock`.

    Examples
    --------
    >>> import torch
    >>> encoder, x = FlowEncoder(2, 8, 2, 16).eval(), torch.linspace(-1, 1, 40).view(5, 8)
    >>> parts = [x[:3], x[3:]]
    >>> encoder.stream(parts, x.device)
    >>> bool(torch.allclose(torch.cat(parts), encoder(x), atol=1e-6))
    True
    """

    def __init__(
        self, layers: int, dim: int, heads: int, hidden: int, *, attention_dropout: float = 0.0, dropout: float = 0.0
    ) -> None:
        super().__init__(
            FlowBlock(dim, heads, hidden, attention_dropout=attention_dropout, dropout=dropout) for _ in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Transform the ``(n, dim)`` items of one set."""
        for block in self:
            x = block(x)
        return x

    def stream(self, parts: list[Tensor], device: torch.device, *, state_bytes: int = 4 * 2**30) -> None:
        """Transform a set that comes in parts, in place of the list's entries.

        Parameters
        ----------
        parts
            ``(n_i, dim)`` each; moved to main memory where the states do not fit the device's share.
        device
            Where the weights are.
        state_bytes
            Most memory for projections that are kept between the rounds of a layer; beyond it they are computed anew,
            and the parts of the set visit the device one by one.
        """
        keep = 5 * sum(x.nbytes for x in parts) <= state_bytes
        if not keep:
            parts[:] = [x.cpu() for x in parts]
        for block in self:
            assert isinstance(block, FlowBlock)
            block.stream(parts, device, keep=keep)


class _Sum:
    """A running total in the widest float of the device; a single part passes through unchanged."""

    def __init__(self) -> None:
        self._total: Tensor | None = None

    def add(self, part: Tensor) -> None:
        wide = part if part.device.type == "mps" else part.double()
        self._total = wide if self._total is None else self._total + wide

    @property
    def total(self) -> Tensor:
        assert self._total is not None, "the set has no part"
        return self._total.float()
