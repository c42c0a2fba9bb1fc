"""Gradient checkpointing: the same gradients from fewer kept activations, and no trace of it afterwards."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import scdrugmap as sd
from scdrugmap._errors import InputError
from scdrugmap.lora.adapters import LoRAOptions, attach
from scdrugmap.lora.checkpointing import checkpointed
from scdrugmap.models import registry
from scdrugmap.models.kit.counts import Counts
from scdrugmap.testing.cells import example_cells


def adapted(key, dropout=0.3):
    X, genes = example_cells(6, 60)
    model = registry.get(key).random(genes)
    alignment = model.align(genes)
    counts = Counts(alignment.apply(X), alignment.ids, alignment.genes, np.arange(6))
    batch = model.collate(model.tokenize(counts))
    network = attach(model, LoRAOptions(r=2, dropout=dropout), seed=0).train()
    with torch.no_grad():
        for name, p in network.named_parameters():
            if "lora_B" in name:
                p.fill_(0.02)
    return network, batch


def gradients(network, batch):
    """Gradients of one pass, and the bytes that it kept for the way back."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    torch.manual_seed(3)
    network.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        loss = network(batch).float().square().sum()
    loss.backward()
    found = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
    return found, sum(size for place, size in kept.items() if place not in own)


@pytest.mark.parametrize("key", ["geneformer", "scgpt", "tgpt", "scfoundation", "uce", "cellplm"])
def test_gradients_are_the_same_and_less_is_kept(key):
    network, batch = adapted(key)
    expected, whole = gradients(network, batch)
    with checkpointed(network) as layers:
        found, less = gradients(network, batch)
    assert layers >= 2
    assert found.keys() == expected.keys() != set()
    for name, gradient in expected.items():
        np.testing.assert_allclose(found[name], gradient, rtol=1e-5, atol=1e-7, err_msg=name)
    assert less < whole


@pytest.mark.parametrize("key", ["scbert", "celllm"])
def test_layers_that_compute_again_anyway_do_so_once(key):
    network, batch = adapted(key)
    expected, whole = gradients(network, batch)
    with checkpointed(network) as layers:
        assert layers == 0
        found, less = gradients(network, batch)
    assert less == whole
    for name, gradient in expected.items():
        np.testing.assert_allclose(found[name], gradient, rtol=1e-5, atol=1e-7, err_msg=name)


def test_nothing_is_left_behind():
    network, batch = adapted("tgpt")
    before = network.eval()(batch)
    with checkpointed(network):
        pass
    assert not [m for m in network.modules() if "forward" in vars(m)]
    assert torch.equal(network(batch), before)
    with checkpointed(network, wanted=False) as layers:
        assert layers == 0
        assert not [m for m in network.modules() if "forward" in vars(m)]


def test_a_network_without_layers_is_told():
    with pytest.raises(InputError, match="gradient_checkpointing"), checkpointed(torch.nn.Linear(2, 2)):
        pass


def test_training_gives_the_same_predictor():
    adata = sd.datasets.simulate(n_cells=60, n_genes=60, rng=0)
    genes = sd._anndata.gene_ids(adata)
    scores = []
    for option in (False, True):
        model = registry.get("tgpt").random(genes)
        predictor = sd.tl.train(
            adata, model=model, strategy="lora", groups="sample", device="cpu", precision="float32", rng=0,
            lora_options={"epochs": 1, "batch_size": 8, "gradient_checkpointing": option}, head_options={"hidden": (8,)},
        )  # fmt: skip
        scores.append(
            predictor.predict_proba(adata) if hasattr(predictor, "predict_proba") else predictor.predict(adata)
        )
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-6)
