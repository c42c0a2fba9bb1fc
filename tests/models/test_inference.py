"""The inference engine: blocks, memory back-off, resuming, reading every container."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from scdrugmap._device import Engine
from scdrugmap._errors import InputError
from scdrugmap.embedding import cache
from scdrugmap.embedding.embed import embed_counts
from scdrugmap.embedding.source import CountSource
from scdrugmap.models.base import bucket
from scdrugmap.models.kit.counts import Alignment, Counts, splitmix64, uniforms
from scdrugmap.models.kit.tokens import Tokens
from scdrugmap.models.tgpt import TGPT
from scdrugmap.testing.cells import example_cells


@pytest.fixture(scope="module")
def cells():
    return example_cells()


def test_out_of_memory_halves_the_budget_and_goes_on(cells, monkeypatch):
    X, genes = cells
    model = TGPT.random(genes)
    expected = embed_counts(model, CountSource(X), genes, Engine("cpu")).values
    forward = model.network.forward
    sizes = []

    def scarce(batch):
        n = len(next(iter(batch.values())))
        sizes.append(n)
        if n > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(batch)

    monkeypatch.setattr(model.network, "forward", scarce)
    result = embed_counts(model, CountSource(X), genes, Engine("cpu"))
    np.testing.assert_allclose(result.values, expected, rtol=1e-5, atol=1e-6)
    assert max(sizes) > 4 >= sizes[-1]
    assert result.work.token_budget < model.token_budget


def test_out_of_memory_for_a_single_cell_is_an_error(cells, monkeypatch):
    X, genes = cells
    model = TGPT.random(genes)

    def never(batch):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(model.network, "forward", never)
    with pytest.raises(InputError, match="single cell"):
        embed_counts(model, CountSource(X), genes, Engine("cpu"))


def test_other_errors_pass_through(cells, monkeypatch):
    X, genes = cells
    model = TGPT.random(genes)

    def broken(batch):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(model.network, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        embed_counts(model, CountSource(X), genes, Engine("cpu"))


def test_store_computes_missing_blocks_only(cells, tmp_path, monkeypatch):
    X, genes = cells
    model = TGPT.random(genes)
    whole = np.asarray(
        embed_counts(model, CountSource(X), genes, Engine("cpu", store=tmp_path / "a"), block_size=5).values[:]
    )
    forward, calls = model.network.forward, []

    def failing(batch):
        calls.append(1)
        if len(calls) > 2:
            raise RuntimeError("power cut")
        return forward(batch)

    monkeypatch.setattr(model.network, "forward", failing)
    with pytest.raises(RuntimeError, match="power cut"):
        embed_counts(model, CountSource(X), genes, Engine("cpu", store=tmp_path / "b"), block_size=5)
    monkeypatch.setattr(model.network, "forward", forward)
    again = embed_counts(model, CountSource(X), genes, Engine("cpu", store=tmp_path / "b"), block_size=5)
    assert again.work.n_resumed == 10
    np.testing.assert_array_equal(np.asarray(again.values[:]), whole)


def test_store_recomputes_changed_cells(cells, tmp_path):
    X, genes = cells
    model = TGPT.random(genes)
    embed_counts(model, CountSource(X), genes, Engine("cpu", store=tmp_path / "a"), block_size=5)
    other = X[::-1].tocsr()
    again = embed_counts(model, CountSource(other), genes, Engine("cpu", store=tmp_path / "a"), block_size=5)
    expected = embed_counts(model, CountSource(other), genes, Engine("cpu"), block_size=5).values
    np.testing.assert_array_equal(np.asarray(again.values[:]), expected)


def test_store_of_another_run_is_refused(cells, tmp_path):
    X, genes = cells
    embed_counts(TGPT.random(genes), CountSource(X), genes, Engine("cpu", store=tmp_path / "a"))
    with pytest.raises(InputError, match="store"):
        embed_counts(TGPT.random(genes, max_length=16), CountSource(X), genes, Engine("cpu", store=tmp_path / "a"))


def test_a_killed_run_resumes_with_the_same_bytes(tmp_path):
    code = textwrap.dedent("""
        import sys, time
        from scdrugmap._device import Engine
        from scdrugmap.embedding.embed import embed_counts
        from scdrugmap.embedding.source import CountSource
        from scdrugmap.models.tgpt import TGPT
        from scdrugmap.testing.cells import example_cells
        X, genes = example_cells(60)
        model = TGPT.random(genes)
        forward = model.network.forward
        def slow(batch):
            print("batch", flush=True); time.sleep(float(sys.argv[2])); return forward(batch)
        model.network.forward = slow
        print("resumed", embed_counts(model, CountSource(X), genes, Engine("cpu", store=sys.argv[1]), block_size=5).work.n_resumed)
    """)
    store = tmp_path / "store"
    process = subprocess.Popen([sys.executable, "-c", code, store, "0.2"], stdout=subprocess.PIPE, text=True)
    for _ in range(4):
        assert process.stdout.readline().startswith("batch")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    out = subprocess.run([sys.executable, "-c", code, store, "0"], capture_output=True, text=True, check=True).stdout
    assert 15 <= int(out.split()[-1]) <= 20
    X, genes = example_cells(60)
    whole = embed_counts(TGPT.random(genes), CountSource(X), genes, Engine("cpu"), block_size=5).values
    np.testing.assert_array_equal(np.load(store / "embedding.npy"), whole)


@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=60), st.integers(1, 200), st.one_of(st.none(), st.integers(1, 9))
)
def test_buckets_hold_every_usable_cell_once_within_the_budget(lengths, budget, batch_size):
    costs = np.array(lengths)
    usable = costs > 0
    batches = bucket(costs, budget, batch_size, usable)
    rows = np.concatenate(batches) if batches else np.empty(0, int)
    assert sorted(rows) == np.flatnonzero(usable).tolist()
    for batch in batches:
        assert len(batch) == 1 or len(batch) * costs[batch].max() <= budget
        assert batch_size is None or len(batch) <= batch_size


@given(st.lists(st.integers(0, 9), min_size=1, max_size=20), st.randoms())
def test_tokens_take_equals_a_loop(lengths, random):
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.arange(offsets[-1])
    tokens = Tokens(offsets, ids, ids.astype(np.float32) / 2, np.array(lengths) > 0)
    rows = np.array([random.randrange(len(lengths)) for _ in range(5)])
    part = tokens.take(rows)
    expected = [ids[offsets[r] : offsets[r + 1]] for r in rows]
    np.testing.assert_array_equal(part.ids, np.concatenate(expected))
    padded = part.padded(-1)
    for row, want in zip(padded, expected, strict=True):
        np.testing.assert_array_equal(row, np.concatenate([want, -np.ones(len(row) - len(want))]))


def test_all_tokens_as_they_stand_are_not_copied():
    tokens = Tokens(np.array([0, 1, 3]), np.arange(3), None, np.ones(2, bool))
    assert tokens.take(np.arange(2)) is tokens
    np.testing.assert_array_equal(tokens.take(np.array([1, 0])).ids, [1, 2, 0])


def test_alignment_equals_a_dense_sum():
    rng = np.random.default_rng(0)
    dense = rng.poisson(0.7, (6, 9)).astype(np.float32)
    names = np.array(["b", "x", "a", "b", "", "c", "a", "q", "d"])
    vocabulary = {"a": 4, "b": 2, "c": 9, "d": 0, "z": 1}
    for order in ("vocabulary", "column"):
        alignment = Alignment.match(names, vocabulary, order=order)
        out = alignment.apply(sparse.csr_matrix(dense))
        for column, gene in enumerate(alignment.genes):
            np.testing.assert_array_equal(out[:, [column]].toarray().ravel(), dense[:, names == gene].sum(1))
            assert alignment.ids[column] == vocabulary[gene]
        assert out.has_sorted_indices and (out.data != 0).all()
    assert list(Alignment.match(names, vocabulary).genes) == ["d", "b", "a", "c"]
    assert list(Alignment.match(names, vocabulary, order="column").genes) == ["b", "a", "c", "d"]
    assert set(alignment.merged) == {"a", "b"}


def unsorted(X):
    """The same matrix with each row's entries from the last column to the first."""
    X = X.copy()
    for a, b in zip(X.indptr[:-1], X.indptr[1:], strict=True):
        X.indices[a:b], X.data[a:b] = X.indices[a:b][::-1].copy(), X.data[a:b][::-1].copy()
    X.has_sorted_indices = X.has_canonical_format = False
    return X


@pytest.mark.parametrize("given_as", [lambda X: X, unsorted], ids=["canonical", "unsorted"])
@pytest.mark.parametrize("names", [["", "a", "x", "b", "c", "d", ""], ["a", "b", "c", "d"]], ids=["gaps", "all"])
def test_columns_in_the_order_of_the_vocabulary_are_renamed_where_they_stand(names, given_as):
    dense = np.random.default_rng(0).poisson(0.7, (6, len(names))).astype(np.float32)
    X = sparse.csr_matrix(dense)
    X.data[[2, 5]] = 0  # stored zeros
    alignment = Alignment.match(np.array(names), {"a": 3, "b": 5, "c": 6, "d": 8})
    given = given_as(X)
    kept = given.copy()
    out = alignment.apply(given)
    assert out.dtype == np.float64 and out.has_sorted_indices and (out.data != 0).all()
    np.testing.assert_array_equal(out.toarray(), X.toarray()[:, [bool(n) and n != "x" for n in names]])
    out.data += 1
    out.indptr += 1
    for part in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(given, part), getattr(kept, part))


def test_cell_keys_depend_on_content_alone(cells):
    X, genes = cells
    vocabulary = {g: i for i, g in enumerate(genes.symbols)}

    def keys(X, names):
        alignment = Alignment.match(names, vocabulary)
        return Counts(alignment.apply(X), alignment.ids, alignment.genes, np.arange(X.shape[0])).cell_keys

    expected = keys(X, genes.symbols)
    assert len(np.unique(expected)) == X.shape[0]
    rows, columns = np.random.default_rng(0).permutation(X.shape[0]), np.random.default_rng(1).permutation(X.shape[1])
    np.testing.assert_array_equal(keys(X[rows][:, columns], genes.symbols[columns]), expected[rows])
    changed = X.copy()
    changed.data[0] += 1
    assert (keys(changed, genes.symbols) != expected).sum() == 1


def test_uniforms_are_uniform_and_uncorrelated():
    from scipy import stats

    keys = splitmix64(np.arange(500, dtype=np.uint64))
    draws = uniforms(keys[:, None], np.arange(200)[None, :], seed=3)
    assert stats.kstest(draws.ravel(), "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(draws[:-1].ravel(), draws[1:].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(draws[:, :-1].ravel(), draws[:, 1:].ravel())[0, 1]) < 0.02
    assert not np.allclose(draws, uniforms(keys[:, None], np.arange(200)[None, :], seed=4))


def test_source_reads_dask_one_block_at_a_time():
    import dask.array as da

    seen = []

    def chunk(block, block_info=None):
        seen.append(block_info[0]["chunk-location"])
        return block

    X = da.from_array(np.arange(60.0).reshape(12, 5), chunks=(4, 5)).map_blocks(chunk, dtype=float)
    blocks = CountSource(X).blocks(4)
    seen.clear()
    first, block = next(blocks)
    assert first == 0 and block.shape == (4, 5)
    assert {location[0] for location in seen} == {0}


def test_recorded_times_nest():
    """Time in the network is part of the run, and the run part of the call."""
    X, genes = example_cells(4)
    start = time.perf_counter()
    work = embed_counts(TGPT.random(genes), CountSource(X), genes, Engine("cpu")).work
    assert 0 < work.network_seconds <= work.seconds <= time.perf_counter() - start


def test_cache_serves_a_repeated_call_and_nothing_else(cells, tmp_path, monkeypatch):
    X, genes = cells
    model = TGPT.random(genes)
    first = embed_counts(model, CountSource(X), genes, Engine("cpu"), cache=tmp_path)
    assert first.work.n_cached == 0
    assert cache.listing(tmp_path)[["model", "cells"]].to_numpy().tolist() == [[model.card.name, X.shape[0]]]
    again = embed_counts(model, CountSource(X), genes, Engine("cpu"), block_size=7, cache=tmp_path)
    assert again.work.n_cached == X.shape[0]
    np.testing.assert_array_equal(again.values, first.values)
    changed = X.copy()
    changed.data[0] += 1
    for other, counts in ((model, changed), (TGPT.random(genes, max_length=16), X), (TGPT.random(genes, rng=1), X)):
        result = embed_counts(other, CountSource(counts), genes, Engine("cpu"), cache=tmp_path)
        assert result.work.n_cached == 0
    monkeypatch.setattr(model.network, "forward", lambda batch: 1 / 0)
    served = embed_counts(model, CountSource(X), genes, Engine("cpu"), cache=tmp_path)
    np.testing.assert_array_equal(served.values, first.values)
