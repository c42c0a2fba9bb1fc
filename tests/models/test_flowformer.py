"""Flow attention against its definition, and in parts against as a whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scdrugmap.models.kit.flowformer import EPS, FlowAttention, FlowBlock, FlowEncoder, Projected
from scdrugmap.models.kit.weights import randomize


def by_definition(attention, x):
    """Every sum over pairs of items, head by head, in float64."""
    p = {n: w.double() for n, w in attention.state_dict().items()}
    x = x.double()
    q, k = (torch.sigmoid(x @ p[f"{n}_proj.weight"].T + p[f"{n}_proj.bias"]) for n in "qk")
    v = x @ p["v_proj.weight"].T + p["v_proj.bias"]
    n, size = len(x), q.shape[1] // attention.heads
    heads = []
    for h in range(attention.heads):
        s = slice(h * size, (h + 1) * size)
        qh, kh, vh = q[:, s], k[:, s], v[:, s]
        incoming = 1 / ((qh + EPS) * (kh.sum(0) + EPS)).sum(1)
        outgoing = 1 / ((kh + EPS) * (qh.sum(0) + EPS)).sum(1)
        sink = ((qh + EPS) * ((kh * outgoing[:, None]).sum(0) + EPS)).sum(1)
        source = ((kh + EPS) * ((qh * incoming[:, None]).sum(0) + EPS)).sum(1)
        competition = n * torch.softmax(source.clamp(-1, 1), 0)
        pairs = (qh * incoming[:, None]) @ kh.T
        heads.append(torch.sigmoid(sink)[:, None] * (pairs @ (competition[:, None] * vh)))
    return torch.cat(heads, 1) @ p["out_proj.weight"].T + p["out_proj.bias"]


def items(n=23, dim=24, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32))


def made(module, rng=1):
    randomize(module, rng)
    return module.eval()


@pytest.mark.parametrize(("n", "heads"), [(1, 1), (2, 3), (23, 4), (300, 8)])
def test_equals_the_definition(n, heads):
    attention, x = made(FlowAttention(24, heads)), items(n)
    np.testing.assert_allclose(attention(x).detach(), by_definition(attention, x), atol=3e-6)


def test_flow_is_conserved():
    attention, x = made(FlowAttention(24, 4)), items(200)
    part = Projected(attention, x)
    flow = attention.gather(lambda: [part])
    # What all sinks take in, and what all sources give out, is one unit per item.
    np.testing.assert_allclose(attention.conserved_sink(part.q, flow.sources).mean(0).detach(), 1, atol=1e-4)
    np.testing.assert_allclose(attention.conserved_source(part.k, flow.sinks).mean(0).detach(), 1, atol=1e-4)


@pytest.mark.parametrize("sizes", [[23], [1] * 23, [7, 7, 7, 2], [0, 20, 0, 3]])
@pytest.mark.parametrize("state_bytes", [2**30, 0], ids=["kept", "anew"])
def test_parts_equal_the_whole(sizes, state_bytes):
    encoder, x = made(FlowEncoder(3, 24, 4, 48)), items()
    with torch.inference_mode():
        parts = list(x.split(sizes))
        encoder.stream(parts, x.device, state_bytes=state_bytes)
        assert [len(p) for p in parts] == sizes
        np.testing.assert_allclose(torch.cat(parts), encoder(x), atol=3e-6)


def test_the_order_of_a_set_does_not_matter():
    block, x = made(FlowBlock(24, 4, 48)), items(40)
    order = torch.from_numpy(np.random.default_rng(3).permutation(40))
    with torch.inference_mode():
        np.testing.assert_allclose(block(x[order]), block(x)[order], atol=3e-6)


def test_the_sums_of_a_large_set_stay_exact():
    attention = made(FlowAttention(8, 2))
    x = items(60_000, 8)
    with torch.inference_mode():
        whole = attention(x)
        parts = [Projected(attention, p) for p in x.split(1000)]
        flow = attention.gather(lambda: parts)
        streamed = torch.cat([attention.attend(p.q, flow) for p in parts])
        expected = by_definition_linear(attention, x)
    np.testing.assert_allclose(streamed, expected, atol=2e-6)
    np.testing.assert_allclose(whole, expected, atol=5e-6)


def by_definition_linear(attention, x):
    """The definition in float64 with sums taken first, for sets too large for all pairs."""
    wide = FlowAttention(x.shape[1], attention.heads).double()
    wide.load_state_dict(attention.state_dict())
    x = x.double()
    q, k = torch.sigmoid(wide.q_proj(x)), torch.sigmoid(wide.k_proj(x))
    q, k, v = (t.unflatten(1, (attention.heads, -1)) for t in (q, k, wide.v_proj(x)))
    incoming = 1 / torch.einsum("nhd,hd->nh", q + EPS, k.sum(0) + EPS)
    outgoing = 1 / torch.einsum("nhd,hd->nh", k + EPS, q.sum(0) + EPS)
    sink = torch.einsum("nhd,hd->nh", q + EPS, torch.einsum("nhd,nh->hd", k, outgoing) + EPS)
    source = torch.einsum("nhd,hd->nh", k + EPS, torch.einsum("nhd,nh->hd", q, incoming) + EPS)
    weight = len(x) * torch.softmax(source.clamp(-1, 1), 0)
    values = torch.einsum("nhd,nh,nhe->hde", k, weight, v)
    y = torch.einsum("nhd,nh,hde->nhe", q, incoming * torch.sigmoid(sink), values)
    return wide.out_proj(y.flatten(1))


def test_gradient_reaches_every_projection():
    attention, x = made(FlowAttention(24, 4)), items()
    attention(x).square().sum().backward()
    for name, parameter in attention.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_half_precision_keeps_the_sums_in_float32():
    encoder, x = made(FlowEncoder(2, 24, 4, 48)), items(5000)
    with torch.inference_mode():
        exact = encoder(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = encoder(x)
    assert rough.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(rough, exact).min() > 0.999


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="heads"):
        FlowAttention(10, 3)
