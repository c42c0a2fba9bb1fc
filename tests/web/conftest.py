"""A server inside of the test process, and a real one with all its processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

URL = "http://127.0.0.1"
sys.path.insert(0, str(Path(__file__).parent))


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


class Running:
    """``scdrugmap serve`` with all its processes."""

    def __init__(self, folder: Path, *more: str, **environment: str) -> None:
        self.folder, self.more, self.environment = folder, more, environment
        self.start()

    def start(self) -> None:
        command = [
            sys.executable, "-c", "from scdrugmap.cli import main; main()", "serve", "--port", "0",
            "--data-dir", str(self.folder), "--max-upload", "64", *self.more,
        ]  # fmt: skip
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, **self.environment}
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert "serves at" in line, line
        self.url = line.split()[-1].rstrip("/")

    def children(self) -> dict[str, int]:
        """Process numbers by role."""
        import psutil

        found = psutil.Process(self.process.pid).children()
        roles = {p.pid: p.cmdline() for p in found}
        return {r: pid for r in ("web", "worker") for pid, line in roles.items() if r in line}

    def stop(self, number: int = signal.SIGINT) -> float:
        """Stop; return how long it took."""
        start = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(20)
        return time.monotonic() - start


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
    query.obs["note"] = ["<script>document.title='owned'</script>", "=1+1"] * (query.n_obs // 2) + ["x"] * (query.n_obs % 2)
    names = query.obs_names.to_numpy().astype(object)
    names[0] = "=cmd|' /C calc'!A0"
    query.obs_names = names
    return reference, query
