"""The contract matrix: every check of the conformance suite on every registered model."""

from __future__ import annotations

from typing import Any

import pytest

from scdrugmap.models import registry
from scdrugmap.models.base import Model
from scdrugmap.testing.cells import example_cells
from scdrugmap.testing.conformance import build, checks

FITTED_OPTIONS: dict[str, dict[str, Any]] = {
    "hvg": {"n_top_genes": 40},
    "pca": {"n_components": 6, "n_top_genes": 60},
    "scvi": {"max_epochs": 2, "n_top_genes": 60, "n_latent": 4},
    "pathways": {"min_genes": 1},
}
KEYS = registry.keys()
EMBEDDING_KEYS = [key for key in KEYS if registry.get(key).card.kind != "prompt"]
MATRIX = [(key, check) for key in EMBEDDING_KEYS for check in checks(registry.get(key))]


@pytest.fixture(scope="module")
def cells():
    return example_cells()


@pytest.mark.parametrize(("key", "check"), MATRIX, ids=[f"{key}-{check.__name__}" for key, check in MATRIX])
def test_contract(key, check, cells):
    X, genes = cells
    model: type[Model] | Model = registry.get(key)
    if key in FITTED_OPTIONS:
        model = registry.get(key)(**FITTED_OPTIONS[key])
    check(build(model, X, genes), X, genes)


def test_every_model_of_the_mission_is_registered():
    names = {
        "tgpt",
        "scbert",
        "geneformer",
        "celllm",
        "scfoundation",
        "scgpt",
        "cellplm",
        "uce",
        "llama38b",
        "gpt4omini",
    }
    assert names | {"hvg", "pca", "scvi"} <= set(KEYS)


@pytest.mark.parametrize("key", KEYS)
def test_cards_are_complete(key):
    card = registry.get(key).card
    assert card.key == key
    assert card.citation and card.architecture and card.weights_licence
    if card.kind == "network":
        assert card.lora_targets and card.checkpoints
        assert card.gene_id in ("symbol", "ensembl")
        assert card.dim and card.n_parameters
