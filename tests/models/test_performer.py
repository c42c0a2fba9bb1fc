"""FAVOR+ attention against a plain float64 computation over whole tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from scdrugmap.models.kit import favor, performer
from scdrugmap.models.kit.performer import PerformerBlock, PerformerEncoder, PerformerSizes
from scdrugmap.models.kit.weights import randomize

DIM, HEADS, WIDTH, FEATURES = 12, 3, 5, 9


def block(dtype: torch.dtype = torch.float32, rng: int = 0) -> PerformerBlock:
    encoder = PerformerEncoder(PerformerSizes(3, 4, DIM, 1, HEADS, WIDTH, FEATURES, 24))
    randomize(encoder, rng)
    encoder.draw_projection(rng)
    return encoder.blocks[0].to(dtype)


def inputs(n: int, length: int, rng: int = 1) -> Tensor:
    generator = np.random.default_rng(rng)
    return torch.from_numpy(2 * generator.standard_normal((n, length, DIM)))


def brute(b: PerformerBlock, x: Tensor, keys: Tensor | None = None, values: Tensor | None = None) -> Tensor:
    """The block of one cell at a time, straight from the definition, in the dtype of ``x``."""
    out = []
    for i in range(len(x)):
        a, y = b.attention, b.norm1(x[i])
        count = torch.ones(len(y), dtype=x.dtype) if keys is None else keys[i].to(x.dtype)
        weight = torch.ones(len(y), dtype=x.dtype) if values is None else values[i].to(x.dtype)
        there = count > 0
        heads = []
        q, k, v = (f(y).reshape(len(y), HEADS, WIDTH) for f in (a.q_proj, a.k_proj, a.v_proj))
        s = WIDTH**-0.25
        top = torch.einsum("chd,md->chm", s * k[there], a.projection).max()
        for h in range(HEADS):
            uq, uk = (s * q[:, h]) @ a.projection.T, (s * k[:, h]) @ a.projection.T
            gq, gk = ((s * t[:, h]).square().sum(1, keepdim=True) / 2 for t in (q, k))
            fq = torch.exp(uq - gq - uq.max(1, keepdim=True).values) + 1e-4
            fk = torch.exp(uk - gk - top) + 1e-4
            fk = torch.where(there[:, None], fk, torch.zeros_like(fk))
            heads.append((fq @ (fk.T @ (v[:, h] * weight[:, None]))) / (fq @ (fk.T @ count))[:, None])
        z = x[i] + a.out_proj(torch.cat(heads, 1))
        out.append(z + b.linear2(torch.nn.functional.gelu(b.linear1(b.norm2(z)))))
    return torch.stack(out)


def weights(n: int, length: int) -> tuple[Tensor, Tensor]:
    """One row with a multiplicity and no value, real rows, padding."""
    keys = torch.ones(n, length)
    keys[:, 0] = torch.arange(n) * 7.0
    for i in range(n):
        keys[i, length - 2 * i :] = 0
    values = (keys > 0).float()
    values[:, 0] = 0
    return keys, values


@pytest.fixture(params=[2**21, 700], ids=["one tile", "many tiles"])
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(favor, "_TILE_BYTES", {"cpu": request.param, "other": request.param})
    return request.param


@pytest.mark.parametrize("weighted", [False, True])
def test_streamed_and_trained_block_equal_the_definition(tile: int, weighted: bool) -> None:
    x, (keys, values) = inputs(4, 23), weights(4, 23)
    pair = (keys, values) if weighted else (None, None)
    reference = brute(block(torch.float64), x, *pair).detach()
    b = block()
    with torch.no_grad():
        streamed = b(x.float(), *pair)
        some = b(x.float(), *pair, rows=slice(1, 4))
    trained = b(x.float(), *pair).detach()
    torch.testing.assert_close(streamed.double(), reference, rtol=0, atol=2e-6)
    torch.testing.assert_close(trained.double(), reference, rtol=0, atol=2e-6)
    torch.testing.assert_close(some.double(), reference[:, 1:4], rtol=0, atol=2e-6)


@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_equal_those_of_the_definition(tile: int, weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(performer, "_TRAINED_POSITIONS", 50)
    keys, values = weights(4, 23)
    pair = (keys, values) if weighted else (None, None)
    upstream = inputs(4, 23, rng=5)
    found = []
    for function in (brute, lambda b, *args: b(*args)):
        b, x = block(torch.float64), inputs(4, 23).requires_grad_()
        y = function(b, x, *pair)
        # Padding carries no gradient in a model; its own output row is of no interest.
        upstream_here = upstream if keys is None or not weighted else upstream * (keys > 0)[..., None]
        y.backward(upstream_here)
        found.append({"x": x.grad, **{name: p.grad for name, p in b.named_parameters()}})
    for name, expected in found[0].items():
        torch.testing.assert_close(found[1][name], expected, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


def test_the_maximum_over_keys_does_not_cancel() -> None:
    """So the comparisons here would notice a maximum over the wrong keys."""
    b, x = block(torch.float64), inputs(2, 6)
    directions = b.attention.scaled_projection(torch.float64)
    with torch.no_grad():
        q, k, v = (b.attention.split(f(x)) for f in (b.attention.q_proj, b.attention.k_proj, b.attention.v_proj))
        exact, raised = (favor.KeySums(2, HEADS, directions) for _ in range(2))
        exact.add(k, v)
        raised.top = exact.top + 0.5
        raised.add(k, v)
        first, second = (favor.attend(q, sums.total(), directions) for sums in (exact, raised))
    assert (first - second).abs().max() > 1e-6


def test_numerical_gradient() -> None:
    b = block(torch.float64)
    x = inputs(2, 6).requires_grad_()
    keys, values = weights(2, 6)
    assert torch.autograd.gradcheck(lambda t: b.attention(t, keys, values), (x,), atol=1e-6)


def test_a_row_with_multiplicity_is_that_many_rows() -> None:
    b, x = block(), inputs(1, 9).float()
    times = torch.ones(1, 9)
    times[0, 4] = 5
    long = torch.cat([x, x[:, 4:5].expand(-1, 4, -1)], 1)
    with torch.no_grad():
        torch.testing.assert_close(b(x, times, times), b(long)[:, :9], rtol=0, atol=2e-6)


def test_shared_positions_equal_repeated_ones() -> None:
    b, x = block(), inputs(1, 14).float()
    keys, values = weights(3, 14)
    with torch.no_grad():
        one, many = b.sums(3), b.sums(3)
        b.add_keys(one, x, keys, values)
        b.add_keys(many, x.expand(3, -1, -1), keys, values)
        torch.testing.assert_close(one.total(), many.total())
        torch.testing.assert_close(b.attend(x, one.total()), b.attend(x.expand(3, -1, -1), many.total()))


def test_extreme_keys_stay_finite() -> None:
    b = block()
    with torch.no_grad():
        b.attention.k_proj.weight *= 60
        b.attention.q_proj.weight *= 60
        x = inputs(2, 40).float()
        streamed = b(x)
        reference = brute(b.double(), x.double())
    assert torch.isfinite(streamed).all()
    torch.testing.assert_close(streamed.double(), reference, rtol=0, atol=2e-3)


def test_directions_are_orthogonal_in_blocks_and_reproducible() -> None:
    p = block(rng=3).attention.projection
    unit = p / p.norm(dim=1, keepdim=True)
    torch.testing.assert_close(unit[:WIDTH] @ unit[:WIDTH].T, torch.eye(WIDTH), atol=1e-6, rtol=0)
    torch.testing.assert_close(p, block(rng=3).attention.projection)
    assert not torch.equal(p, block(rng=4).attention.projection)


def test_features_of_a_long_sequence_are_never_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest feature tensor stays within the tile, forward and backward, however long the sequence."""
    sizes, original = [], favor._features

    def spy(t: Tensor, projection: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        result = original(t, projection)
        sizes.append(result[0].numel() * result[0].element_size())
        return result

    monkeypatch.setattr(favor, "_features", spy)
    monkeypatch.setattr(favor, "_TILE_BYTES", {"cpu": 20_000, "other": 20_000})
    b, x = block(), inputs(3, 500).float()
    with torch.no_grad():
        b(x)
    b(x.requires_grad_()).sum().backward()
    row = HEADS * FEATURES * 4
    assert max(sizes) <= 20_000 * torch.get_num_threads() + row
    assert 3 * 500 * row > 5 * max(sizes)
