"""bfloat16 on a processor: only one that has it, only where the embeddings agree; the reader of flags is substituted."""

from __future__ import annotations

import numpy as np
import pytest

from scdrugmap import _device
from scdrugmap._device import Engine, native_bfloat16
from scdrugmap.embedding import arithmetic, runner
from scdrugmap.embedding.arithmetic import bfloat16_serves
from scdrugmap.embedding.embed import embed_counts
from scdrugmap.embedding.source import CountSource
from scdrugmap.models.cellplm import CellPLM
from scdrugmap.models.kit.counts import Counts
from scdrugmap.models.scgpt import ScGPT
from scdrugmap.models.tgpt import TGPT
from scdrugmap.testing.cells import example_cells


@pytest.fixture(scope="module")
def cells():
    return example_cells(12)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(runner, "_SERVES", {})


def processor(monkeypatch, *flags):
    monkeypatch.setattr(_device, "_processor_flags", lambda: frozenset(flags))


def precision(model, cells, asked=None):
    return embed_counts(model, CountSource(cells[0]), cells[1], Engine("cpu", asked, progress=False)).precision


@pytest.mark.parametrize(
    ("flags", "expected"),
    [((), False), (("avx2", "avx512f"), False), (("avx512_bf16",), True), (("amx_tile", "amx_bf16"), True)],
)
def test_the_probe_reads_the_flags(flags, expected, monkeypatch):
    processor(monkeypatch, *flags)
    assert native_bfloat16() is expected


def test_this_machine_tells_its_flags():
    assert isinstance(_device._processor_flags(), frozenset)


def test_a_processor_without_it_computes_in_float32(cells, monkeypatch):
    processor(monkeypatch, "avx2")
    monkeypatch.setattr(arithmetic, "AGREEMENT", -1.0)
    assert precision(TGPT.random(cells[1]), cells) == "float32"


def test_one_that_has_it_computes_in_bfloat16_where_cells_agree(cells, monkeypatch):
    processor(monkeypatch, "avx512_bf16")
    model = TGPT.random(cells[1])
    X, genes = cells
    exact = embed_counts(model, CountSource(X), genes, Engine("cpu", "float32")).values
    found = embed_counts(model, CountSource(X), genes, Engine("cpu"))
    assert found.precision == "bfloat16"
    cosine = (exact * found.values).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(found.values, axis=1)
    assert cosine.min() >= arithmetic.AGREEMENT
    assert not np.array_equal(exact, found.values)


def test_where_cells_do_not_agree_it_stays_with_float32(cells, monkeypatch):
    """Random tiny weights of scGPT lie at 0.999."""
    processor(monkeypatch, "avx512_bf16")
    assert precision(ScGPT.random(cells[1]), cells) == "float32"


def test_what_the_caller_asks_for_is_what_is_done(cells, monkeypatch):
    processor(monkeypatch, "avx512_bf16")
    assert precision(ScGPT.random(cells[1]), cells, "float32") == "float32"
    processor(monkeypatch)
    assert precision(ScGPT.random(cells[1]), cells, "bfloat16") == "bfloat16"


def test_cells_that_see_each_other_keep_float32(cells, monkeypatch):
    processor(monkeypatch, "amx_bf16")
    monkeypatch.setattr(arithmetic, "AGREEMENT", -1.0)
    assert precision(CellPLM.random(cells[1]), cells) == "float32"


def test_one_cell_that_disagrees_is_enough(cells, monkeypatch):
    X, genes = cells
    model = TGPT.random(genes)
    alignment = model.align(genes)
    tokens = model.tokenize(Counts(alignment.apply(X), alignment.ids, alignment.genes, np.arange(12)))
    embedded = arithmetic._embedded
    assert bfloat16_serves(model, tokens)

    def one_off(model, tokens, plan, name):
        values = embedded(model, tokens, plan, name)
        if name == "bfloat16":
            values[3] = -values[3]
        return values

    monkeypatch.setattr(arithmetic, "_embedded", one_off)
    assert not bfloat16_serves(model, tokens)


def test_it_is_found_out_once_per_model(cells, monkeypatch):
    processor(monkeypatch, "avx512_bf16")
    calls = []
    monkeypatch.setattr(runner, "bfloat16_serves", lambda *a: calls.append(a) or True)
    model = TGPT.random(cells[1])
    assert precision(model, cells) == precision(model, cells) == "bfloat16"
    assert len(calls) == 1
