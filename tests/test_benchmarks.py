"""The official ways that the benchmarks time compute what the package computes; unequal results are not timed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scdrugmap.testing import speed

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(speed, "matmul_rate", lambda *a, **k: 1e9)


# CellPLM takes another way for more cells than a few.
@pytest.mark.parametrize(("key", "cells"), [("scgpt", 3), ("scfoundation", 3), ("cellplm", 70)])
def test_both_ways_give_the_same_embedding(key, cells):
    from embed import beside

    row = beside(key, cells, 1, "tiny")
    assert row["cells"] == cells
    assert row["relative difference"] < 1e-4
    assert row["times as fast"] > 0


@pytest.mark.parametrize("off", [0.01, np.nan])
def test_unequal_results_end_the_comparison(off, monkeypatch):
    import official
    import torch
    from embed import beside

    ours = official.OFFICIAL_EQUIVALENT["scgpt"]
    monkeypatch.setitem(
        official.OFFICIAL_EQUIVALENT, "scgpt", lambda m: lambda t: ours(m)(t) * torch.tensor(1 + off)
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="not comparable"):
        beside("scgpt", 3, 1, "tiny")
