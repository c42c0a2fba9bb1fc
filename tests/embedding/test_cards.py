"""One process per card over the same store; on a machine without cards the processes have none."""

from __future__ import annotations

import os

import numpy as np
import pytest

from scdrugmap._device import Engine
from scdrugmap._errors import InputError
from scdrugmap.embedding.cards import one_per_card
from scdrugmap.embedding.embed import embed_counts
from scdrugmap.embedding.source import CountSource
from scdrugmap.models.tgpt import TGPT
from scdrugmap.testing.cells import example_cells

pytest.importorskip("distributed")
da = pytest.importorskip("dask.array")


def test_two_processes_fill_one_store(tmp_path):
    X, genes = example_cells(32)
    model = TGPT.random(genes)
    engine = Engine("cpu", progress=False)
    expected = embed_counts(model, CountSource(X), genes, engine).values
    lazy = da.from_array(X, chunks=(8, X.shape[1]), asarray=False)
    with one_per_card(["", ""], threads=1) as client:
        seen = client.run(lambda: (os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"]))
        assert len({pid for pid, _ in seen.values()} - {os.getpid()}) == 2
        assert {card for _, card in seen.values()} == {""}
        stored = Engine("cpu", progress=False, store=tmp_path / "store")
        found = embed_counts(model, CountSource(lazy), genes, stored, block_size=8)
    np.testing.assert_allclose(found.values[:], expected, atol=1e-6)
    again = embed_counts(model, CountSource(X), genes, stored, block_size=8)
    assert again.work.n_resumed == 32, "the store of the processes is that of a call in one"


def test_without_a_card_nothing_is_started(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(InputError, match="no card"), one_per_card():
        pass
