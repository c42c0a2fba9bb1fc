"""Reading and tokenising ahead of the network: order, bounds, errors and overlap, told by events and never by time."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from scdrugmap._device import Engine
from scdrugmap.embedding import runner
from scdrugmap.embedding.ahead import ahead
from scdrugmap.embedding.budget import FIRST, MOST, Budget
from scdrugmap.embedding.embed import embed_counts
from scdrugmap.embedding.source import CountSource
from scdrugmap.models.cellplm import CellPLM
from scdrugmap.models.tgpt import TGPT
from scdrugmap.testing.cells import example_cells

WAIT = 20


@pytest.fixture(scope="module")
def cells():
    return example_cells(24)


def test_items_come_in_order_from_another_thread():
    threads = set()

    def items():
        for i in range(50):
            threads.add(threading.current_thread())
            yield i

    assert list(ahead(items(), 3)) == list(range(50))
    assert threads and threading.current_thread() not in threads


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_no_more_items_are_made_than_may_wait(depth):
    made = []
    full = threading.Event()

    def items():
        for i in range(100):
            made.append(i)
            if len(made) == depth + 2:
                full.set()
            yield i

    coming = ahead(items(), depth)
    assert next(coming) == 0
    # One in use, `depth` that wait, one in the hand of the thread: it gets so far by itself, and no further.
    assert full.wait(WAIT)
    assert len(made) == depth + 2
    coming.close()
    assert len(made) == depth + 2


def test_an_error_comes_where_its_item_would_have_come():
    def items():
        yield 1
        raise ValueError("broken row")

    coming = ahead(items())
    assert next(coming) == 1
    with pytest.raises(ValueError, match="broken row"):
        next(coming)


def test_the_thread_ends_when_nobody_takes_its_items():
    def endless():
        while True:
            yield 0

    coming = ahead(endless())
    next(coming)
    thread = next(t for t in threading.enumerate() if t.name == "scdrugmap-ahead")
    coming.close()
    assert not thread.is_alive()


def test_the_next_batch_is_made_while_the_network_runs(cells, monkeypatch):
    """The first pass ends only once the tensors of the second are there."""
    X, genes = cells
    model = TGPT.random(genes)
    expected = embed_counts(model, CountSource(X), genes, Engine("cpu", batch_size=8)).values
    collated, second = [], threading.Event()
    collate, forward = model.collate, model.network.forward

    def counted(tokens):
        batch = collate(tokens)
        collated.append(threading.current_thread().name)
        if len(collated) >= 2:
            second.set()
        return batch

    def waits(batch):
        assert second.wait(WAIT), "nothing runs ahead"
        return forward(batch)

    monkeypatch.setattr(model, "collate", counted)
    monkeypatch.setattr(model.network, "forward", waits)
    found = embed_counts(model, CountSource(X), genes, Engine("cpu", batch_size=8))
    np.testing.assert_array_equal(found.values, expected)
    assert set(collated) == {"scdrugmap-ahead"}


def test_the_next_block_of_a_group_is_read_while_the_first_is_embedded(cells, monkeypatch):
    X, genes = cells
    model = CellPLM.random(genes)
    expected = embed_counts(model, CountSource(X), genes, Engine("cpu"), block_size=12).values
    tokenised, second = [], threading.Event()
    tokenize, embed_genes = model.tokenize, model.network.embed_genes

    def counted(counts):
        tokens = tokenize(counts)
        tokenised.append(len(tokens))
        if len(tokenised) == 2:
            second.set()
        return tokens

    def waits(batch):
        assert second.wait(WAIT), "nothing runs ahead"
        return embed_genes(batch)

    monkeypatch.setattr(model, "tokenize", counted)
    monkeypatch.setattr(model.network, "embed_genes", waits)
    found = embed_counts(model, CountSource(X), genes, Engine("cpu"), block_size=12)
    np.testing.assert_array_equal(found.values, expected)


def test_an_unusable_value_in_a_later_block_is_the_callers_error(cells):
    X, genes = cells
    X = X.copy()
    X.data[X.indptr[20]] = np.nan
    with pytest.raises(Exception, match=r"NaN|missing|finite"):
        embed_counts(TGPT.random(genes), CountSource(X), genes, Engine("cpu"), block_size=8)
    assert not [t for t in threading.enumerate() if t.name == "scdrugmap-ahead"]


def test_batches_planned_before_memory_ran_out_are_divided_without_another_attempt(cells, monkeypatch):
    X, genes = cells
    model = TGPT.random(genes)
    expected = embed_counts(model, CountSource(X), genes, Engine("cpu")).values
    forward, refused = model.network.forward, []

    def scarce(batch):
        if len(batch["ids"]) > 4:
            refused.append(len(batch["ids"]))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(batch)

    monkeypatch.setattr(model.network, "forward", scarce)
    found = embed_counts(model, CountSource(X), genes, Engine("cpu", batch_size=8))
    np.testing.assert_allclose(found.values, expected, atol=1e-6)
    assert refused == [8]


@dataclass
class Card:
    """Memory of a card that is not there."""

    bytes_free: int
    each: int
    tokens: int = 0

    def free(self):
        return self.bytes_free

    def forget(self):
        self.tokens = 0

    def taken(self):
        return self.each * self.tokens


@pytest.mark.parametrize(
    ("free", "expected"), [(10_000_000, 5_000), (10_000_000_000, 1000 * MOST), (0, 1)], ids=["fits", "ample", "none"]
)
def test_batches_follow_the_free_memory_of_a_card(free, expected):
    card = Card(free, each=1000)
    budget = Budget(1000, card)
    assert budget.tokens == 1000 * FIRST
    budget.begin()
    card.tokens = 2000
    budget.end(2000)
    assert budget.tokens == expected
    card.each = 1
    budget.begin()
    budget.end(2000)
    assert budget.tokens == expected, "measured once"


def test_a_small_first_pass_tells_nothing():
    card = Card(10_000_000, each=1000, tokens=10)
    budget = Budget(1000, card)
    budget.end(10)
    assert budget.tokens == 1000 * FIRST


def test_a_run_measures_its_card(cells, monkeypatch):
    X, genes = cells
    model = TGPT.random(genes)
    monkeypatch.setattr(type(model), "token_budget", 20)
    card = Card(10**9, each=10_000)
    begin = runner.LocalRun.__init__

    def with_card(self, *arguments, **options):
        begin(self, *arguments, **options)
        self.budget = Budget(20, card)
        card.taken = lambda: card.each * 100

    monkeypatch.setattr(runner.LocalRun, "__init__", with_card)
    work = embed_counts(model, CountSource(X), genes, Engine("cpu")).work
    assert work.token_budget == 20 * MOST


def test_waiting_and_network_are_parts_of_the_run(cells):
    X, genes = cells
    for model in (TGPT.random(genes), CellPLM.random(genes)):
        work = embed_counts(model, CountSource(X), genes, Engine("cpu"), block_size=8).work
        assert work.network_seconds > 0
        assert work.waiting_seconds > 0
        assert work.network_seconds + work.waiting_seconds <= work.seconds
