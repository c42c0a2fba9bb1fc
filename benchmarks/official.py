"""What the official implementations compute, written from their papers: plain PyTorch to stand beside the package.

Each function takes a model of the package at its official size and returns a function from tokens to embeddings that does the
work of the official code in its way (its padding, its sparse product, PyTorch's own encoder layers), with the same weights,
so that both sides can be compared in numbers as well as in time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Forward = Callable[[Any], Tensor]


def encoder_layer(block: Any, d: int, heads: int, hidden: int, activation: str) -> nn.TransformerEncoderLayer:
    """PyTorch's post-norm layer with the weights of one of ours."""
    layer = nn.TransformerEncoderLayer(d, heads, hidden, 0.0, activation, batch_first=True)
    own, attention = block.state_dict(), block.attention
    with torch.no_grad():
        for kind in ("weight", "bias"):
            parts = [getattr(getattr(attention, f"{name}_proj"), kind) for name in "qkv"]
            getattr(layer.self_attn, f"in_proj_{kind}").copy_(torch.cat(parts))
            getattr(layer.self_attn.out_proj, kind).copy_(getattr(attention.out_proj, kind))
            for name in ("linear1", "linear2", "norm1", "norm2"):
                getattr(getattr(layer, name), kind).copy_(own[f"{name}.{kind}"])
    for name in ("norm1", "norm2"):
        getattr(layer, name).eps = getattr(block, name).eps
    return layer.eval()


def scfoundation(model: Any, device: str = "cpu") -> Forward:
    """One cell at a time through PyTorch's encoder layers (which take their fast path)."""
    net = model.network
    d = net.final_norm.normalized_shape[0]
    layers = [encoder_layer(b, d, b.attention.heads, 4 * d, "relu").to(device) for b in net.blocks]

    def forward(tokens: Any) -> Tensor:
        out = []
        for i in range(len(tokens)):
            batch = {k: v.to(device) for k, v in model.collate(tokens.take(np.array([i]))).items()}
            x = net.embed(batch)
            for layer in layers:
                x = layer(x)
            out.append(net.summarize(net.final_norm(x), batch["lengths"]))
        return torch.cat(out)

    return forward


def cellplm(model: Any, device: str = "cpu") -> Forward:
    """All cells in one pass: sparse gene sum, and flow attention head by head as its equations stand."""
    net = model.network
    table = torch.cat([t.weight for t in net.genes.tables], dim=1).to(device)

    def flow(block: Any, x: Tensor) -> Tensor:
        a, e = block.attention, 1e-6
        n, h = len(x), a.heads
        q, k, v = (getattr(a, f"{p}_proj")(x).view(n, h, -1).transpose(0, 1) for p in "qkv")
        q, k = q.sigmoid(), k.sigmoid()
        incoming = 1 / ((q + e) * (k.sum(1, keepdim=True) + e)).sum(-1)
        outgoing = 1 / ((k + e) * (q.sum(1, keepdim=True) + e)).sum(-1)
        sink = ((q + e) * ((k * outgoing[..., None]).sum(1, keepdim=True) + e)).sum(-1)
        source = ((k + e) * ((q * incoming[..., None]).sum(1, keepdim=True) + e)).sum(-1).clamp(-1, 1)
        y = (q * incoming[..., None]) @ (k.transpose(1, 2) @ (v * (source.softmax(-1) * n)[..., None]))
        return a.out_proj((y * sink.sigmoid()[..., None]).transpose(0, 1).reshape(n, -1))

    def forward(tokens: Any) -> Tensor:
        batch = model.collate(tokens)
        n, ids = len(tokens), batch["ids"].long()
        rows = torch.repeat_interleave(torch.arange(n), torch.as_tensor(tokens.lengths))
        # The official pass makes a dense matrix of ones and an int32 copy of it, which nothing reads.
        torch.ones(n, len(table)).int()
        X = torch.sparse_coo_tensor(torch.stack([rows, ids]), batch["values"], (n, len(table))).to(device)
        x = net.norm(torch.relu(net.linear(torch.sparse.mm(X, table))))
        for block in net.blocks:
            x = x + flow(block, block.norm1(x))
            x = x + block.linear2(nn.functional.gelu(block.linear1(block.norm2(x))))
        return net.read(x)

    return forward


def scgpt(model: Any, device: str = "cpu") -> Forward:
    """Padded batches of 64 cells through PyTorch's encoder layers."""
    net = model.network
    d = net.blocks[0].norm1.normalized_shape[0]
    hidden = net.blocks[0].linear1.out_features
    layers = [encoder_layer(b, d, b.attention.heads, hidden, "relu").to(device) for b in net.blocks]

    def forward(tokens: Any) -> Tensor:
        out = []
        for start in range(0, len(tokens), 64):
            rows = np.arange(start, min(start + 64, len(tokens)))
            batch = {k: v.to(device) for k, v in model.collate(tokens.take(rows)).items()}
            x, mask = net.embed(batch), batch.get("mask")
            hide = None if mask is None else ~mask
            for layer in layers:
                x = layer(x, src_key_padding_mask=hide)
            last = x[:, 0].float()
            out.append(nn.functional.normalize(last, dim=1) if net.normalize else last)
        return torch.cat(out)

    return forward


def difference(ours: np.ndarray, theirs: np.ndarray, precision: str = "float32") -> float:
    """Largest difference as a share of the largest value; a comparison of unequal results proves nothing and ends here."""
    relative = float(np.abs(theirs - ours).max() / np.abs(ours).max())
    if not relative <= TOLERANCE[precision]:
        raise RuntimeError(
            f"the two ways differ by {relative:.3g} of the largest value: their times are not comparable"
        )
    return relative


#: Largest share of the largest value by which two ways of equal work differ.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}
#: Models that have an official-equivalent side here.
OFFICIAL_EQUIVALENT: dict[str, Callable[..., Forward]] = {
    "scfoundation": scfoundation,
    "cellplm": cellplm,
    "scgpt": scgpt,
}
