"""What the owner of a server decides: flags of ``scdrugmap serve``, or the environment (prefix ``SCDRUGMAP_WEB_``)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

import platformdirs
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "SCDRUGMAP_WEB_"
MB = 1 << 20


class ServerSettings(BaseSettings):
    """Settings of one server; every process of it reads the same ones.

    Examples
    --------
    >>> ServerSettings(data_dir="served", max_upload=200).max_bytes
    209715200
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    data_dir: Path = Field(
        default_factory=lambda: Path(platformdirs.user_data_dir("scdrugmap")) / "server",
        description="Folder of the database, uploads, results and the shelf of predictors.",
    )
    database: str | None = Field(None, description="SQLAlchemy URL; SQLite in the data folder if not given.")
    workers: int = Field(1, ge=1, description="Jobs that run at the same time.")
    max_upload: float = Field(2000, gt=0, description="Largest upload, in MB.")
    max_cells: int = Field(200_000, gt=0, description="Most cells in an upload.")
    retention_days: float = Field(7, gt=0, description="Days until uploads and results are deleted.")
    public: bool = Field(False, description="Strangers may come: limit requests of every address, loopback too.")
    names: tuple[str, ...] = Field((), description="Further host names under which the server is reached.")
    api_keys: tuple[str, ...] = Field((), description="If set, uploads and jobs need one of these keys.")
    requests_per_minute: int = Field(600, gt=0, description="Requests of one address.")
    starts_per_minute: int = Field(30, gt=0, description="Uploads and jobs that one address starts.")
    max_active_jobs: int = Field(8, gt=0, description="Jobs of one address that wait or run.")
    quota: float = Field(4, gt=0, description="Disk of one address, in uploads of the largest size.")
    below_floor: bool = Field(False, description="Show predictors, too, that are not shown to be better than none.")
    demos: bool = Field(True, description="Make the three demo results at the first start.")

    @property
    def max_bytes(self) -> int:
        """Largest upload in bytes."""
        return int(self.max_upload * MB)

    @property
    def retention(self) -> float:
        """Seconds until uploads and results are deleted."""
        return self.retention_days * 86400

    @property
    def database_url(self) -> str:
        """The database as SQLAlchemy names it."""
        if self.database is None:
            return f"sqlite:///{self.data_dir.resolve() / 'server.sqlite'}"
        for plain in ("postgresql://", "postgres://"):
            if self.database.startswith(plain):
                return "postgresql+psycopg://" + self.database.removeprefix(plain)
        return self.database

    def folder(self, name: str) -> Path:
        """A folder of the data folder, made where it does not exist."""
        path = self.data_dir / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def environment(self) -> dict[str, str]:
        """The environment from which another process reads these settings."""
        import json

        values = self.model_dump(mode="json", exclude_none=True)
        own = {PREFIX + k.upper(): json.dumps(v) if isinstance(v, (list, bool)) else str(v) for k, v in values.items()}
        return {**{k: v for k, v in os.environ.items() if not k.startswith(PREFIX)}, **own}

    @classmethod
    def given(cls, **values: object) -> Self:
        """Settings from the environment, with those that were given in their place."""
        return cls(**{k: v for k, v in values.items() if v is not None})  # type: ignore[arg-type]
