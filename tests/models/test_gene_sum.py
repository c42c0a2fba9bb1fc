"""Sums of gene vectors: common genes in a dense product and rare ones gathered give one dense product's numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

from scdrugmap.models.kit.gene_sum import GeneSum

N_GENES, DIM = 300, 520


def batch(n, share, empty=()):
    """Cells of which gene j is expressed by the share ``share[j]``; some cells express none."""
    rng = np.random.default_rng(0)
    X = rng.exponential(size=(n, N_GENES)) * (rng.random((n, N_GENES)) < share)
    X[list(empty)] = 0
    X = sparse.csr_matrix(X.astype(np.float32))
    parts = torch.from_numpy(X.indices), torch.from_numpy(X.data), torch.from_numpy(X.indptr[:-1])
    return torch.from_numpy(X.toarray()), parts


@pytest.fixture(scope="module")
def genes():
    torch.manual_seed(0)
    return GeneSum(N_GENES, DIM)


def table(genes):
    return torch.cat([t.weight for t in genes.tables], dim=1)


@pytest.mark.parametrize("n", [1, GeneSum.fewest - 1, GeneSum.fewest, 200])
@pytest.mark.parametrize("share", [0.02, 0.9, "mixed"], ids=["all rare", "all common", "mixed"])
def test_every_way_gives_the_product(genes, n, share):
    share = np.linspace(0, 0.5, N_GENES) ** 2 if share == "mixed" else share
    X, parts = batch(n, share, empty=[0, n - 1] if n > 2 else ())
    found, expected = genes(*parts), X.double() @ table(genes).double()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)
    if n > 2:
        assert not found[[0, n - 1]].any()


def test_both_ways_take_part(genes, monkeypatch):
    _, parts = batch(100, np.linspace(0, 0.5, N_GENES))
    seen = []
    gathered = GeneSum._gathered
    monkeypatch.setattr(GeneSum, "_gathered", lambda self, *a: (seen.append(len(a[0])), gathered(self, *a))[1])
    genes(*parts)
    assert 0 < seen[0] < len(parts[0]) / 2, "the few values of rare genes alone are gathered"


def test_gradients_are_those_of_the_product(genes):
    X, (ids, values, offsets) = batch(100, np.linspace(0, 0.5, N_GENES))
    genes.zero_grad()
    values.requires_grad_()
    weight = torch.linspace(-1, 1, DIM)
    (genes(ids, values, offsets) * weight).sum().backward()
    per_gene = table(genes).detach() @ weight
    torch.testing.assert_close(values.grad, per_gene[ids.long()], rtol=1e-4, atol=1e-4)
    expected = X.sum(0)[:, None] * weight
    found = torch.cat([t.weight.grad for t in genes.tables], dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


def test_autocast_leaves_the_sum_in_float32(genes):
    _, parts = batch(100, 0.3)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = genes(*parts)
    assert torch.equal(found, genes(*parts).detach())
