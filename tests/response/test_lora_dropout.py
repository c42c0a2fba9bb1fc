"""Dropout of the adapters: PyTorch's distribution, gradient and seeds, from cheaper masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from scdrugmap.lora import dropout as module
from scdrugmap.lora.adapters import LoRAOptions, attach
from scdrugmap.lora.dropout import AdapterDropout
from scdrugmap.models import registry
from scdrugmap.testing.cells import example_cells


def drawn(p, shape, seed):
    torch.manual_seed(seed)
    return AdapterDropout(p).train()(torch.ones(shape))


@pytest.mark.parametrize("p", [1e-4, 0.05, 0.5, 0.9])
def test_values_are_dropped_independently_with_their_probability(p):
    n = 401 * 499
    dropped = (drawn(p, (401, 499), 0) == 0).numpy()
    assert stats.binomtest(int(dropped.sum()), n, p).pvalue > 1e-3
    neighbours = int((dropped.ravel()[1:] & dropped.ravel()[:-1]).sum())
    assert stats.binomtest(neighbours, n - 1, p * p).pvalue > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_others_are_scaled_and_gradients_follow_the_mask(dtype):
    x = torch.randn(7, 33, dtype=dtype).add(3).requires_grad_()
    torch.manual_seed(1)
    y = AdapterDropout(0.3).train()(x)
    keep = y != 0
    assert y.dtype == dtype and 0 < keep.sum() < keep.numel()
    torch.testing.assert_close(y[keep], nn.functional.dropout(x, 0.0)[keep] / 0.7)
    direction = torch.randn(7, 33, dtype=dtype)
    (gradient,) = torch.autograd.grad(y, x, direction)
    torch.testing.assert_close(gradient, torch.where(keep, direction / 0.7, 0.0))


def test_the_seed_of_pytorch_decides_and_no_two_masks_are_the_same():
    np.testing.assert_array_equal(drawn(0.5, (9, 9), 4), drawn(0.5, (9, 9), 4))
    assert not torch.equal(drawn(0.5, (9, 9), 4), drawn(0.5, (9, 9), 5))
    torch.manual_seed(4)
    layer, x = AdapterDropout(0.5).train(), torch.ones(9, 9)
    assert not torch.equal(layer(x), layer(x))


def test_nothing_is_dropped_outside_training_or_at_zero():
    x = torch.randn(50, 50)
    assert torch.equal(AdapterDropout(0.5).eval()(x), x)
    assert torch.equal(AdapterDropout(0.0).train()(x), x)


def test_other_devices_keep_the_dropout_of_pytorch(monkeypatch):
    monkeypatch.setattr(module, "_kept", None)
    assert AdapterDropout(0.5).train()(torch.ones(3, 3, device="meta")).shape == (3, 3)
    with pytest.raises(TypeError):
        AdapterDropout(0.5).train()(torch.ones(3, 3))


def kept_bytes(layer, x):
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.update({t.data_ptr(): t.nbytes}) or t, lambda t: t):
        layer(x)
    return sum(kept.values())


def test_a_byte_is_kept_for_each_value():
    x = torch.randn(64, 64, requires_grad=True)
    assert kept_bytes(AdapterDropout(0.5).train(), x) == x.numel() < kept_bytes(nn.Dropout(0.5).train(), x)


def test_every_adapter_has_a_mask_of_its_own():
    model = registry.get("geneformer").random(example_cells(2, 60)[1])
    network = attach(model, LoRAOptions(dropout=0.3, target_modules=("q_proj", "v_proj")), seed=0).train()
    layers = [m for name, m in network.named_modules() if "lora_dropout." in name]
    assert len(layers) == 2 * len(network.base_model.model.blocks)
    assert {(type(m), m.p, m.training) for m in layers} == {(AdapterDropout, 0.3, True)}
    assert len({id(m) for m in layers}) == len(layers)


def test_without_dropout_peft_puts_none_there():
    model = registry.get("geneformer").random(example_cells(2, 60)[1])
    network = attach(model, LoRAOptions(dropout=0.0, target_modules=("q_proj",)), seed=0)
    assert not any(isinstance(m, AdapterDropout) for m in network.modules())
