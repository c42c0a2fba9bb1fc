"""A server inside of the test process, and a real one with all its processes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

URL = "http://127.0.0.1"
sys.path.insert(0, str(Path(__file__).parent))

from web_tools import Running  # noqa: E402 - found by the line above


@pytest.fixture
def settings(tmp_path: Path) -> Any:
    from scdrugmap.web import ServerSettings

    return ServerSettings(data_dir=tmp_path / "data", max_upload=64, demos=False)


@pytest.fixture
def http(settings: Any) -> Iterator[Any]:
    """The application without a worker."""
    from fastapi.testclient import TestClient

    from scdrugmap.web import create_app

    with TestClient(create_app(settings), base_url=URL) as client:
        yield client


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    server = Running(tmp_path_factory.mktemp("server"), "--no-demos")
    yield server
    server.stop()
    assert server.process.returncode == 0


@pytest.fixture(scope="session")
def studies() -> tuple[Any, Any]:
    """Labelled reference and an unlabelled query whose labels are hostile text."""
    import scdrugmap as sd

    adata = sd.datasets.simulate(n_cells=400, n_genes=300, n_studies=2, rng=5)
    first = (adata.obs["study"] == adata.obs["study"].unique()[0]).to_numpy()
    reference, query = adata[first].copy(), adata[~first].copy()
    del query.obs["response"]
    query.obs["note"] = ["<script>document.title='owned'</script>", "=1+1"] * (query.n_obs // 2) + ["x"] * (
        query.n_obs % 2
    )
    names = query.obs_names.to_numpy().astype(object)
    names[0] = "=cmd|' /C calc'!A0"
    query.obs_names = names
    return reference, query
