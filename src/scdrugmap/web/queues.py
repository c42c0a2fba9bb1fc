"""Two queues of Huey in the server's own database: checks of uploads, and jobs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from huey import Huey
from huey.consumer import Consumer
from huey.contrib.sql_huey import SqlHuey


class Queues:
    """Hand work to the worker; what is handed over is on the disk before the call returns.

    Parameters
    ----------
    url
        SQLAlchemy URL of the database.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._hueys: dict[str, Huey] = {}
        self._tasks: dict[str, Any] = {}
        self._doing: dict[str, Callable[[str], None]] = {}
        self._opening = threading.Lock()

    def huey(self, name: str) -> Huey:
        """One queue."""
        with self._opening:
            if name not in self._hueys:
                huey = SqlHuey(f"scdrugmap-{name}", database=_peewee(self.url), results=False, store_none=False)

                def work(thing: str) -> None:
                    self._doing[name](thing)

                self._tasks[name] = huey.task(name=name)(work)
                self._hueys[name] = huey
        return self._hueys[name]

    def put(self, name: str, thing: str) -> None:
        """Put an upload or a job in line."""
        huey = self.huey(name)
        try:
            self._tasks[name](thing)
        finally:
            # Requests come on many threads; none keeps a connection.
            huey.storage.database.close()

    def consume(self, name: str, function: Callable[[str], None], workers: int) -> Consumer:
        """Start threads that take from a queue; the caller's signals stay the caller's."""
        self._doing[name] = function
        consumer = _QuietConsumer(
            self.huey(name), workers=workers, periodic=False, initial_delay=0.1, max_delay=0.5, worker_type="thread"
        )
        consumer.start()
        return consumer


class _QuietConsumer(Consumer):
    def _set_signal_handlers(self) -> None:
        """The process has handlers of its own."""


def _peewee(url: str) -> Any:
    """The same database for Huey, which uses peewee."""
    from peewee import PostgresqlDatabase, SqliteDatabase
    from sqlalchemy.engine import make_url

    parts = make_url(url)
    if parts.drivername.startswith("sqlite"):
        return SqliteDatabase(parts.database, pragmas={"journal_mode": "wal", "synchronous": "full"}, timeout=30)
    given: dict[str, Any] = {
        "user": parts.username,
        "password": parts.password,
        "host": parts.host,
        "port": parts.port,
        **parts.query,
    }
    return PostgresqlDatabase(parts.database, prefer_psycopg3=True, **{k: v for k, v in given.items() if v is not None})
