"""The tables: uploads and jobs. SQLite by default, PostgreSQL by URL; Alembic makes and changes them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, Engine, Float, Integer, String, Text, create_engine, event
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

#: Bytes of a random id: 192 bits, 32 letters in a URL.
_ID_BYTES = 24
WAITING = ("queued", "running")
FINAL = ("done", "failed", "cancelled", "expired")


def new_id() -> str:
    """A secret that names an upload or a job; who has it may see the thing."""
    return secrets.token_urlsafe(_ID_BYTES)


class Base(DeclarativeBase):
    """Base of the tables."""


class Upload(Base):
    """One file that somebody sends."""

    __tablename__ = "uploads"

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=new_id)
    owner: Mapped[str] = mapped_column(String(64), index=True)
    filename: Mapped[str] = mapped_column(String(255))
    size: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str | None] = mapped_column(String(64))
    offset: Mapped[int] = mapped_column(BigInteger, default=0)
    state: Mapped[str] = mapped_column(String(16), default="receiving", index=True)
    reason: Mapped[str | None] = mapped_column(Text)
    check: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    stored: Mapped[str | None] = mapped_column(String(32))
    created: Mapped[float] = mapped_column(Float, default=time.time)
    expires: Mapped[float] = mapped_column(Float, index=True)


class Job(Base):
    """One run that somebody asked for."""

    __tablename__ = "jobs"

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=new_id)
    owner: Mapped[str] = mapped_column(String(64), index=True)
    kind: Mapped[str] = mapped_column(String(32))
    title: Mapped[str] = mapped_column(String(255), default="")
    demo: Mapped[bool] = mapped_column(Boolean, default=False)
    request: Mapped[dict[str, Any]] = mapped_column(JSON)
    state: Mapped[str] = mapped_column(String(16), default="queued", index=True)
    stage: Mapped[str] = mapped_column(String(64), default="waiting")
    percent: Mapped[float] = mapped_column(Float, default=0.0)
    rate: Mapped[float | None] = mapped_column(Float)
    reason: Mapped[str | None] = mapped_column(Text)
    cancel: Mapped[bool] = mapped_column(Boolean, default=False)
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    worker: Mapped[str | None] = mapped_column(String(128))
    heartbeat: Mapped[float | None] = mapped_column(Float)
    created: Mapped[float] = mapped_column(Float, default=time.time, index=True)
    started: Mapped[float | None] = mapped_column(Float)
    finished: Mapped[float | None] = mapped_column(Float)
    expires: Mapped[float] = mapped_column(Float, index=True)


def connect(url: str) -> Engine:
    """Open the database; nothing is read before the first query."""
    if not url.startswith("sqlite"):
        return create_engine(url, pool_pre_ping=True, pool_size=10, max_overflow=30)
    engine = create_engine(url, connect_args={"timeout": 30}, pool_size=10, max_overflow=40)

    @event.listens_for(engine, "connect")
    def _modes(connection: Any, _: Any) -> None:
        # Readers do not wait for the writer, and a commit is on the disk before it is reported.
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")

    return engine


def migrate(url: str) -> None:
    """Bring the tables to the newest version."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["url"] = url
    command.upgrade(config, "head")


@contextmanager
def session(engine: Engine) -> Iterator[Session]:
    """A unit of work: committed at the end, undone by an error."""
    with Session(engine, expire_on_commit=False) as opened, opened.begin():
        yield opened
