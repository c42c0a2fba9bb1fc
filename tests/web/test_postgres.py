"""The same database work on a real PostgreSQL server, and the processes that compose would start."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra [web] is not installed")
pytest.importorskip("psycopg", reason="the extra [web] is not installed")
yaml = pytest.importorskip("yaml")
_PLACES = [*Path("/usr/lib/postgresql").glob("*/bin"), *Path("/usr/local/pgsql").glob("bin")]
_FOUND = shutil.which("initdb") or next((str(p / "initdb") for p in _PLACES if (p / "initdb").exists()), None)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of an empty database of a server of our own."""
    if _FOUND is None:
        pytest.skip("PostgreSQL is not installed")
    binaries = Path(_FOUND).resolve().parent
    folder = tmp_path_factory.mktemp("postgres")
    # The server refuses to run as root.
    as_user: dict[str, Any] = {}
    if os.geteuid() == 0:
        import pwd

        try:
            account = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL needs an account other than root")
        as_user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        for place in (folder, *folder.parents[:3]):
            place.chmod(0o755)
        os.chown(folder, account.pw_uid, account.pw_gid)
    data = folder / "data"
    subprocess.run(
        [binaries / "initdb", "-D", data, "-U", "scdrugmap", "-A", "trust", "--no-sync"],
        check=True, capture_output=True, cwd=folder, **as_user,
    )  # fmt: skip
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [binaries / "postgres", "-D", data, "-p", str(port), "-h", "127.0.0.1", "-k", folder, "-F"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder, **as_user,
    )  # fmt: skip
    url = f"postgresql://scdrugmap@127.0.0.1:{port}/postgres"
    import psycopg

    for _ in range(200):
        try:
            psycopg.connect(url).close()
            break
        except psycopg.OperationalError:
            time.sleep(0.1)
    yield url
    server.send_signal(signal.SIGINT)
    server.wait(20)


def test_uploads_and_queue_on_postgres(postgres: str, settings: Any) -> None:
    from fastapi.testclient import TestClient
    from web_tools import URL, send, until

    from scdrugmap.web import create_app
    from scdrugmap.web.database import Job, session
    from scdrugmap.web.state import Server

    own = settings.model_copy(update={"database": postgres, "demos": True})
    with TestClient(create_app(own), base_url=URL) as http:
        assert http.get("/healthz").json()["database"] == "ok"
        upload = send(http, b"cell,TP53\nc,1\nd,2\n", "a.csv")
        server = Server(own)
        pending = until(lambda: [t.args[0] for t in server.queues.huey("checks").pending()], lambda p: upload in p, 30)
        assert pending == [upload]
        assert len(server.queues.huey("jobs").pending()) == 3
        with session(server.engine) as db:
            assert db.query(Job).count() == 3
        assert http.get("/").text.count("Demo:") == 3
    with TestClient(create_app(own), base_url=URL) as http:
        assert http.get(f"/api/v1/uploads/{upload}").json()["state"] == "checking"


def test_two_workers_do_not_take_one_job(postgres: str, settings: Any) -> None:
    from sqlalchemy import update

    from scdrugmap.web.database import Job, migrate, session
    from scdrugmap.web.jobs import new_job
    from scdrugmap.web.state import Server

    own = settings.model_copy(update={"database": postgres})
    migrate(own.database_url)
    server = Server(own)
    job = new_job(server, "x", {"kind": "predict", "options": {}}, "t")
    with session(server.engine) as db:
        db.add(job)
    taken = []
    for name in ("elsewhere/1/0.0", "elsewhere/2/0.0"):
        with session(server.engine) as db:
            claim = update(Job).where(Job.id == job.id, Job.state == "queued").values(state="running", worker=name)
            taken.append(db.execute(claim).rowcount)
    assert taken == [1, 0]


def test_the_commands_of_compose_serve(postgres: str, tmp_path: Path) -> None:
    """The processes of ``compose.yaml``, with its commands and environment, without containers."""
    import requests

    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    services = compose["services"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {
        **os.environ, **{k: v for k, v in services["web"]["environment"].items() if "$" not in v},
        "SCDRUGMAP_WEB_DATABASE": postgres, "SCDRUGMAP_WEB_DATA_DIR": str(tmp_path / "data"),
        "SCDRUGMAP_WEB_DEMOS": "false", "SCDRUGMAP_WEB_PORT": port,
    }  # fmt: skip
    program = [sys.executable, "-c", "from scdrugmap.cli import main; main()", "serve"]
    started = [
        subprocess.Popen([*program, *services[name]["command"]], env=environment, stdout=subprocess.DEVNULL)
        for name in ("web", "worker")
    ]
    try:
        end = time.monotonic() + 120
        health = None
        while health is None and time.monotonic() < end:
            try:
                health = requests.get(f"http://127.0.0.1:{port}/healthz", timeout=5)
            except requests.ConnectionError:
                time.sleep(0.3)
        assert health is not None and health.status_code == 200
        alive = [sys.executable, "-m", "scdrugmap.web.alive"]
        while subprocess.run(alive, env=environment).returncode and time.monotonic() < end:
            time.sleep(1)
        assert subprocess.run(alive, env=environment).returncode == 0
    finally:
        for process in started:
            process.send_signal(signal.SIGTERM)
        assert [process.wait(15) for process in started] == [0, 0]


def test_compose_is_tight() -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    for name in ("web", "worker", "worker-gpu"):
        service = compose["services"][name]
        assert service["read_only"] is True and service["user"] == "10001:10001", name
        assert service["cap_drop"] == ["ALL"] and service["healthcheck"]["test"], name
        assert service["volumes"] == ["data:/data"], name
    assert compose["services"]["worker"]["depends_on"]["web"]["condition"] == "service_healthy"
    assert all(p.startswith("127.0.0.1:") for p in compose["services"]["web"]["ports"])
    docker = (ROOT / "Dockerfile").read_text()
    assert "USER 10001:10001" in docker and "HEALTHCHECK" in docker
