"""``scdrugmap serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on (127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one (8000).")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of database, uploads and results.")] = None,
    workers: Annotated[int | None, typer.Option(help="Jobs at the same time (1).")] = None,
    max_upload: Annotated[float | None, typer.Option(help="Largest upload in MB (2000).")] = None,
    max_cells: Annotated[int | None, typer.Option(help="Most cells in an upload (200000).")] = None,
    retention_days: Annotated[float | None, typer.Option(help="Days until all is deleted; fractions too (7).")] = None,
    database: Annotated[str | None, typer.Option(help="SQLAlchemy URL, for example postgresql://...")] = None,
    name: Annotated[list[str] | None, typer.Option(help="Further host name of this server; may be repeated.")] = None,
    public: Annotated[bool, typer.Option("--public", help="Strangers may come: limit every address.")] = False,
    no_demos: Annotated[bool, typer.Option("--no-demos", help="Do not make the demo results.")] = False,
    role: Annotated[str, typer.Option(help="all, web or worker: what to run here.")] = "all",
) -> None:
    """Serve pages and a REST API for people who do not program: upload, ask, see, take home.

    Example: scdrugmap serve --port 8000
    """
    from pydantic import ValidationError

    from scdrugmap._errors import InputError, MissingDependencyError

    roles = {"all": ("web", "worker"), "web": ("web",), "worker": ("worker",)}
    if role not in roles:
        raise InputError("--role", role, "all, web or worker", "leave it out.")
    try:
        from scdrugmap.web.config import ServerSettings
        from scdrugmap.web.serve import serve as run
    except ImportError as error:
        raise MissingDependencyError(error.name or "fastapi", "web", "scdrugmap serve") from None
    try:
        settings = ServerSettings.given(
            host=host, port=port, data_dir=data_dir, workers=workers, max_upload=max_upload, max_cells=max_cells,
            retention_days=retention_days, database=database, names=tuple(name) if name else None,
            public=public or None, demos=False if no_demos else None,
        )  # fmt: skip
    except ValidationError as error:
        first = error.errors()[0]
        flag = "--" + ".".join(map(str, first["loc"])).replace("_", "-")
        raise InputError(flag, first.get("input"), first["msg"], "see scdrugmap serve --help.") from None
    raise typer.Exit(run(settings, roles=roles[role]))
