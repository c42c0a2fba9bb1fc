"""Every network model against an independent implementation, from a file in the official layout to the embedding.

Checkpoints are written by :mod:`official_layouts`, tokens and embeddings expected by :mod:`oracles`; neither knows
the package. So these tests need no download and no recorded value.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import official_layouts as layouts
import oracles
import pytest
import torch
from scipy import sparse

from scdrugmap.genes import Genes
from scdrugmap.models import registry
from scdrugmap.models.base import NetworkModel
from scdrugmap.models.kit.counts import Counts
from scdrugmap.testing.conformance import embed


@dataclass(frozen=True)
class Case:
    """Options of a model, and those that the oracle needs besides."""

    model: str
    options: dict[str, Any] = field(default_factory=dict)
    layout: dict[str, Any] = field(default_factory=dict)
    #: How often the cells stand one under the other.
    times: int = 1

    @property
    def id(self) -> str:
        return "-".join([self.model, *(f"{k}={v}" for k, v in {**self.layout, **self.options}.items())])


UCE = {"heads": 4, "sample_size": 20, "draws": "stream", "seed": 5}
CASES = [
    Case("scgpt", {"ties": "upper"}),
    Case("scgpt", {"ties": "upper", "normalize": True}, {"layout": "self_attn.in_proj_"}),
    Case("scgpt", {"ties": "midpoint", "too_long": "first", "max_length": 14}, {"layout": "self_attn._impl.Wqkv."}),
    Case("scgpt", {"ties": "upper", "too_long": "first", "max_length": 14, "binning": "after"}),
    Case("uce", UCE),
    Case("uce", {**UCE, "padding": "official", "official_batch": 3}),
    Case("uce", {**UCE, "sample_size": 9, "padding": "official", "dataset_filter": True}, times=4),
    Case("scfoundation"),
    Case("scfoundation", {"pool": "max", "weights": "rde", "tgthighres": "a5"}),
    Case("scfoundation", {"tgthighres": "f2"}),
    Case("tgpt", {"max_length": 48}),
    Case("tgpt", {"max_length": 16, "ties": "column", "token_type": False}),
    Case("tgpt", {"max_length": 40, "pooling": "all", "token_type": False}),
    Case("geneformer", {}, {"version": 1}),
    Case("geneformer", {"emb_layer": -1}, {"version": 1}),
    Case("geneformer", {}, {"version": 2}),
    Case("geneformer", {"emb_layer": -1, "emb_mode": "cls"}, {"version": 2}),
    Case("llama38b"),
    Case("llama38b", {"ties": "column", "max_genes": 9, "pooling": "mean_no_bos"}),
    Case("llama38b", {"max_tokens": 20, "pooling": "last"}),
    Case("llama38b", {"empty": "bos"}),
    Case("llama38b", {"text": "code", "max_tokens": 90, "empty": "bos"}),
    Case("scbert"),
    Case("scbert", {"max_length": 20, "pooling": "expressed"}),
    Case("celllm"),
    Case("celllm", {"max_length": 18, "pooling": "cls"}),
    Case("celllm", {"max_length": 300, "pooling": "mean_padded"}),
    Case("cellplm"),
    Case("cellplm", {"empty_cells": "keep"}, {"latent": "vae"}),
]


@pytest.fixture(params=CASES, ids=lambda case: case.id)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture
def checkpoint(case: Case, tmp_path: Path) -> layouts.Checkpoint:
    return getattr(layouts, case.model.removesuffix("38b"))(tmp_path, **case.layout)


@pytest.mark.filterwarnings("ignore::scdrugmap._errors.ScDrugMapWarning")
def test_tokens_and_embeddings_equal_an_independent_implementation(case, checkpoint):
    X, symbols = layouts.cells(case.times)
    genes = Genes.from_names(symbols, ensembl=[layouts.ENSEMBL[s] for s in symbols])
    cells, embeddings = getattr(oracles, case.model.removesuffix("38b"))(checkpoint, X, symbols, case.options)
    model = registry.load(case.model, checkpoint.folder, **case.options)
    compare_tokens(model, X, genes, cells)
    compare_embeddings(embed(model, sparse.csr_matrix(X), genes), embeddings)


def compare_tokens(model: NetworkModel, X: np.ndarray, genes: Genes, cells: list[oracles.Cell]) -> None:
    """The same cells are usable, with the same ids in the same order and the same values to float32 rounding."""
    matched = model.align(genes)
    counts = Counts(matched.apply(sparse.csr_matrix(X)), matched.ids, matched.genes, np.arange(len(X)))
    survey = model.survey(lambda: iter([counts]))
    tokens = model.tokenize(Counts(counts.X, counts.ids, counts.genes, counts.rows, survey))
    assert tokens.usable.tolist() == [cell is not None for cell in cells]
    for i, cell in enumerate(cells):
        if cell is None:
            continue
        part = slice(tokens.offsets[i], tokens.offsets[i + 1])
        assert tokens.ids[part].tolist() == list(cell[0]), f"ids of cell {i}"
        if cell[1] is not None:
            np.testing.assert_allclose(tokens.values[part], cell[1], rtol=1e-6, err_msg=f"values of cell {i}")


def compare_embeddings(found: np.ndarray, expected: list) -> None:
    """1e-5 of the largest value; a cell without usable genes has NaN and no other has."""
    usable = np.array([row is not None for row in expected])
    assert usable.sum() > 0
    assert np.isnan(found[~usable]).all()
    wanted = torch.stack([row for row in expected if row is not None]).detach().numpy()
    assert np.abs(np.diff(wanted, axis=0)).max() > 1e-2, "the cells do not differ, which would prove little"
    np.testing.assert_allclose(found[usable], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
