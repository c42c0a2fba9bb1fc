"""``scdrugmap serve``: one process that starts the others, watches them, and stops them within seconds."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from scdrugmap._errors import InputError, MissingDependencyError
from scdrugmap.web.config import ServerSettings

_GRACE = 5.0


def serve(settings: ServerSettings, *, roles: tuple[str, ...] = ("web", "worker")) -> int:
    """Run the server until Ctrl-C.

    Parameters
    ----------
    settings
        What the owner decided.
    roles
        Which processes to run here; a deployment with containers runs one in each.

    Returns
    -------
    Exit status.

    Raises
    ------
    MissingDependencyError
        If the packages of the extra ``web`` are missing.
    InputError
        If the data folder cannot be written or the port is taken.
    """
    _check(settings, roles)
    if "web" in roles and settings.port == 0:
        # Chosen once, so that a web process that is started again stands where it stood.
        with _listen(settings) as listener:
            settings = settings.model_copy(update={"port": listener.getsockname()[1]})
    family = Family(settings, roles)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    family.start()
    while not stop.wait(0.3):
        family.watch()
        if family.gave_up:
            break
    family.stop()
    return 1 if family.gave_up else 0


class Family:
    """The processes of a server; one that dies is started again."""

    def __init__(self, settings: ServerSettings, roles: tuple[str, ...]) -> None:
        self.settings, self.roles = settings, roles
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        self.born: dict[str, float] = {}
        self.deaths: dict[str, list[float]] = {role: [] for role in roles}
        self.gave_up = False

    def start(self) -> None:
        """Start every process."""
        for role in self.roles:
            self._start(role)

    def _start(self, role: str) -> None:
        command = [sys.executable, "-m", "scdrugmap.web.serve", role, str(os.getpid())]
        # A session of its own: Ctrl-C reaches this process only, which stops the others in order.
        self.children[role] = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            command, env=self.settings.environment(), start_new_session=True, stdin=subprocess.DEVNULL
        )
        self.born[role] = time.monotonic()

    def watch(self) -> None:
        """Start again what has died; give up on what dies at once, again and again."""
        for role, child in self.children.items():
            if child.poll() is not None:
                # Being killed from outside says nothing about the program; ending by itself at once does.
                quick = child.returncode > 0 and time.monotonic() - self.born[role] < 5
                now = time.monotonic()
                self.deaths[role] = [t for t in self.deaths[role] if now - t < 60] + ([now] if quick else [])
                if len(self.deaths[role]) >= 4:
                    self.gave_up = True
                    return
                self._start(role)

    def stop(self) -> None:
        """Ask every process to end, and end what does not."""
        for child in self.children.values():
            if child.poll() is None:
                child.terminate()
        end = time.monotonic() + _GRACE
        for child in self.children.values():
            try:
                child.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def run_web(settings: ServerSettings) -> None:
    """The web process: listen, say where, answer until told to stop."""
    import uvicorn

    from scdrugmap.web.app import create_app

    listener = _listen(settings)
    port = listener.getsockname()[1]
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104 - shown, not bound

    class Talking(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            print(f"scdrugmap serves at http://{f'[{host}]' if ':' in host else host}:{port}/", flush=True)

    config = uvicorn.Config(
        create_app(settings), log_level="warning", access_log=False, timeout_graceful_shutdown=2, server_header=False,
        timeout_keep_alive=20, h11_max_incomplete_event_size=64 * 1024,
    )  # fmt: skip
    Talking(config).run(sockets=[listener])


def run_worker(settings: ServerSettings) -> None:
    """The worker process: take jobs until told to stop."""
    from sqlalchemy.exc import SQLAlchemyError

    from scdrugmap.web.database import migrate
    from scdrugmap.web.worker import Worker

    while True:
        try:
            migrate(settings.database_url)
            break
        except SQLAlchemyError:
            logging.getLogger("scdrugmap.web").warning("waiting for the database")
            time.sleep(1)
    worker = Worker(settings)
    signal.signal(signal.SIGTERM, lambda *_: worker.stopping.set())
    try:
        worker.run()
    finally:
        worker.stop()
        os._exit(0)


def _listen(settings: ServerSettings) -> socket.socket:
    """Bind the port; one that a dying process still holds becomes free within seconds."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    for attempt in range(20):
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, settings.port))
        except OSError:
            listener.close()
            if attempt == 19:
                raise
            time.sleep(0.25)
        else:
            listener.listen(512)
            listener.set_inheritable(True)
            return listener
    raise AssertionError


def _check(settings: ServerSettings, roles: tuple[str, ...]) -> None:
    from importlib.util import find_spec

    for package in ("fastapi", "uvicorn", "sqlalchemy", "alembic", "huey", "peewee", "plotly", "fastapi_offline"):
        if find_spec(package) is None:
            raise MissingDependencyError(package, "web", "scdrugmap serve")
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        probe = settings.data_dir / f".probe-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise InputError(
            "--data-dir", f"{settings.data_dir} ({error.strerror})", "a folder that can be written", "choose another."
        ) from None
    if "web" in roles and settings.port:
        try:
            _listen(settings).close()
        except OSError as error:
            raise InputError(
                "--port", f"{settings.port} ({error.strerror})", "a free port", "choose another, or 0 for any free one."
            ) from None


def main() -> None:
    """Entry of a child process: ``python -m scdrugmap.web.serve ROLE PARENT``."""
    from scdrugmap.web.worker import die_with_parent

    role = sys.argv[1]
    if len(sys.argv) > 2:
        die_with_parent(int(sys.argv[2]))
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s: %(message)s")
    settings = ServerSettings()  # type: ignore[call-arg]
    os.environ.setdefault("NUMBA_CACHE_DIR", str(Path(settings.folder("cache")) / "numba"))
    {"web": run_web, "worker": run_worker}[role](settings)


if __name__ == "__main__":
    main()
