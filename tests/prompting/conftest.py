from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from prompting_endpoint import KEY, MARKER, Endpoint


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    server = Endpoint()
    yield server
    server.close()


@pytest.fixture
def cells() -> tuple[np.ndarray, list[str], np.ndarray]:
    """Counts of 47 cells and 8 genes, and the truth: cells that express the marker are resistant."""
    draw = np.random.default_rng(0)
    counts = draw.integers(1, 30, (47, 8))
    y = draw.integers(0, 2, 47)
    counts[:, 0] = np.where(y == 0, 50, 0)
    return counts, [MARKER, "EGFR", "TP53", "MYC", "KRAS", "CD3D", "MS4A1", "EPCAM"], y
