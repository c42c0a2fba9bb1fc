"""Shared prefixes and skipped cells: the numbers of embedding every edited cell anew, with less arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

import scdrugmap as sd
from scdrugmap._anndata import gene_ids
from scdrugmap.interpret.edits import CausalEdits, TokenEdits, edits_of, rows_per_block
from scdrugmap.interpret.perturb import CHUNK, KINDS, Edits, Perturbations, evaluate, survey
from scdrugmap.interpret.scoring import Scorer
from scdrugmap.models import registry


def scorer_of(cells, name, **options):
    model = registry.get(name).random(gene_ids(cells), **options)
    return Scorer(sd.tl.train(cells, model, head="logistic", rng=0), cells)


@pytest.fixture(scope="module")
def cells():
    return sd.datasets.simulate(n_studies=1, n_patients=2, n_cells=40, n_genes=120, rng=0)


@pytest.fixture(scope="module")
def causal(cells):
    return scorer_of(cells, "tGPT", max_length=30)


def sums(scorer, X, kind, sets, edits=Edits, size=None):
    level = survey(iter([X]), X.shape[1]).level
    each = Perturbations.of(sets, X.shape[1], kind, level)
    groups, size = np.arange(X.shape[0]), size or X.shape[0]
    blocks = ((X[i : i + size], groups[i : i + size]) for i in range(0, len(groups), size))
    return evaluate(scorer, blocks, each, len(groups), edits=edits)


SETS = [*(np.array([g]) for g in range(0, 120, 9)), np.arange(0, 120, 3), np.arange(120)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options", [{"max_length": 30}, {"pooling": "all"}, {"recipe": "official", "max_length": 12}], ids=str
)
def test_a_shared_prefix_changes_no_number(cells, kind, options):
    scorer = scorer_of(cells, "tGPT", **options)
    assert edits_of(scorer) is CausalEdits
    X = sparse.csr_matrix(cells.X)
    naive, shared = sums(scorer, X, kind, SETS), sums(scorer, X, kind, SETS, CausalEdits)
    np.testing.assert_allclose(shared.total, naive.total, atol=1e-5)
    np.testing.assert_array_equal(shared.n, naive.n)
    assert np.abs(naive.total).max() > 0.1
    assert shared.n_forward < naive.n_forward
    parts = sums(scorer, X, kind, SETS, CausalEdits, size=7)
    np.testing.assert_allclose(parts.total, naive.total, atol=1e-5)


def test_columns_that_are_summed_in_one_gene_are_no_deletion(cells):
    """Without one of two columns of a gene its count falls, and its token moves back instead of going."""
    twice = cells[:, [*range(100), *range(100)]].copy()
    twice.var_names = twice.var_names.where(~twice.var_names.duplicated(), twice.var_names + "-2")
    twice.var["gene_symbol"] = [*cells.var_names[:100], *cells.var_names[:100]]
    scorer = scorer_of(twice, "tGPT", max_length=20)
    X = sparse.csr_matrix(twice.X)
    for sets in ([np.array([3]), np.array([7])], [np.array([3, 103]), np.array([7, 107])]):
        naive, shared = sums(scorer, X, "knockout", sets), sums(scorer, X, "knockout", sets, CausalEdits)
        np.testing.assert_allclose(shared.total, naive.total, atol=1e-5)
        assert np.abs(naive.total).max() > 1e-3


def test_only_what_follows_the_gene_is_computed(cells, causal, monkeypatch):
    """Positions in the network: those of the cells once, and of each pair those from the gene on."""
    seen = []
    network = causal.network.network
    plain = type(network).resume
    monkeypatch.setattr(
        type(network), "resume", lambda self, ids, past=(): seen.append(ids.numel()) or plain(self, ids, past)
    )
    X = sparse.csr_matrix(cells.X)
    genes = np.argsort(-(X > 0).sum(0).A1, kind="stable")[:10]
    found = sums(causal, X, "knockout", [np.array([g]) for g in genes], CausalEdits)
    model = causal.network
    tokens = model.tokenize(_counts(model, X, causal.genes)).padded(-1)
    words = [model.vocabulary[str(cells.var_names[g])] for g in genes]
    places = [int(np.flatnonzero(row == w)[0]) for w in words for row in tokens if (row == w).any()]
    assert found.n_forward == len(places)
    # The last position holds the end token, which nothing that is averaged sees.
    assert sum(seen) == tokens.size + sum(tokens.shape[1] - 1 - p for p in places)


def _counts(model, X, genes):
    from scdrugmap.models.kit.counts import Counts

    alignment = model.align(genes)
    return Counts(alignment.apply(X), alignment.ids, alignment.genes, np.arange(X.shape[0]))


def test_a_bidirectional_network_sees_only_cells_whose_tokens_change(cells):
    scorer = scorer_of(cells, "Geneformer", max_length=25)
    assert edits_of(scorer) is TokenEdits
    X = sparse.csr_matrix(cells.X)
    sets = [np.array([g]) for g in range(0, 120, 9)]
    naive, skipping = sums(scorer, X, "knockout", sets), sums(scorer, X, "knockout", sets, TokenEdits)
    np.testing.assert_allclose(skipping.total, naive.total, atol=1e-5)
    expressing = int((X[:, range(0, 120, 9)] != 0).sum())
    assert skipping.n_forward < naive.n_forward == expressing


def test_what_ties_cells_to_each_other_is_embedded_whole(cells):
    from scdrugmap.models.scgpt import ScGPT

    stream = ScGPT.random(gene_ids(cells), draws="stream")
    assert stream.sequential
    scorer = Scorer(sd.tl.train(cells, stream, head="logistic", rng=0), cells)
    assert edits_of(scorer) is Edits
    assert edits_of(Scorer(sd.tl.train(cells, "pca", head="logistic", rng=0), cells)) is Edits


def test_adapters_are_part_of_the_prefix(cells):
    model = registry.get("tGPT").random(gene_ids(cells), max_length=20)
    predictor = sd.tl.train(
        cells, model, strategy="lora", lora_options={"epochs": 1, "lr": 1e-2, "early_stopping": False}, rng=0
    )  # fmt: skip
    scorer, X = Scorer(predictor, cells), sparse.csr_matrix(cells.X)
    assert edits_of(scorer) is CausalEdits
    naive, shared = sums(scorer, X, "knockout", SETS[:4]), sums(scorer, X, "knockout", SETS[:4], CausalEdits)
    np.testing.assert_allclose(shared.total, naive.total, atol=1e-5)


def test_what_is_kept_of_a_block_is_bounded(cells, causal):
    assert rows_per_block(causal) == CHUNK
    big = scorer_of(cells, "tGPT")
    big.network.network.blocks.extend([big.network.network.blocks[0]] * 2000)
    assert 1 <= rows_per_block(big) < 40


def test_the_network_goes_on_where_it_stopped(causal):
    network, ids = causal.network.network, torch.arange(5, 25)[None]
    with torch.inference_mode():
        whole, _ = network.resume(ids)
        _, past = network.resume(ids[:, :8])
        rest, _ = network.resume(ids[:, 8:], past)
        expected = network.norm(network.states(ids)[-1])
    np.testing.assert_allclose(rest, whole[:, 8:], atol=1e-5)
    np.testing.assert_allclose(whole, expected, atol=1e-5)
