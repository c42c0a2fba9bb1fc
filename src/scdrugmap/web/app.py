"""The web application: pages and REST API over one set of functions."""

from __future__ import annotations

import asyncio
import errno
import logging
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from starlette.exceptions import HTTPException

from scdrugmap import __version__
from scdrugmap._errors import ScDrugMapError
from scdrugmap.web import keeper
from scdrugmap.web.config import ServerSettings
from scdrugmap.web.database import migrate
from scdrugmap.web.guards import Guard
from scdrugmap.web.problems import Problem, not_found, problem_of
from scdrugmap.web.state import Server

log = logging.getLogger("scdrugmap.web")
_STATIC = Path(__file__).parent / "static"


def create_app(settings: ServerSettings | None = None) -> FastAPI:
    """Make the ASGI application.

    Parameters
    ----------
    settings
        What the owner decided; from the environment if ``None``.

    Examples
    --------
    >>> import tempfile
    >>> app = create_app(ServerSettings(data_dir=tempfile.mkdtemp()))
    >>> app.title
    'scdrugmap'
    """
    settings = settings or ServerSettings()  # type: ignore[call-arg]
    server = Server(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(migrate, settings.database_url)
        app.state.looks = asyncio.Semaphore(2)
        app.state.tasks = set()
        await asyncio.to_thread(keeper.prepare, server)
        background = asyncio.create_task(keeper.keep(app, server))
        yield
        background.cancel()
        server.engine.dispose()

    app = FastAPI(
        title="scdrugmap", version=__version__, lifespan=lifespan, openapi_url="/api/v1/openapi.json", docs_url=None,
        redoc_url=None, description="Single-cell drug response: upload cells, ask, read results by slices.",
    )  # fmt: skip
    app.state.server = server
    _handlers(app)
    from scdrugmap.web.api import router
    from scdrugmap.web.pages import router as pages
    from scdrugmap.web.views import router as views

    app.include_router(router)
    app.include_router(views)
    app.include_router(pages)
    app.mount("/static", StaticFiles(directory=_STATIC), name="static")
    app.mount("/vendor/swagger", StaticFiles(directory=_swagger()), name="swagger")
    app.add_middleware(Guard, settings=settings)
    return app


def _swagger() -> Path:
    """The folder of the API page's script, out of the package that brings it."""
    from importlib.util import find_spec

    spec = find_spec("fastapi_offline")
    if spec is None or spec.origin is None:
        from scdrugmap._errors import MissingDependencyError

        raise MissingDependencyError("fastapi-offline", "web", "the page of the API")
    return Path(spec.origin).parent / "static"


def _handlers(app: FastAPI) -> None:
    """Every error becomes one kind of answer; none shows a path or a traceback."""

    def answer(request: Request, problem: Problem) -> Response:
        if request.url.path.startswith("/api/") or "text/html" not in request.headers.get("accept", ""):
            return JSONResponse(problem.body(), problem.status, headers=problem.headers)
        from scdrugmap.web.render import render

        page = render("error.html", problem=problem, settings=app.state.server.settings)
        return HTMLResponse(page, problem.status, headers=problem.headers)

    @app.exception_handler(Problem)
    async def _problem(request: Request, problem: Problem) -> Response:
        return answer(request, problem)

    @app.exception_handler(ScDrugMapError)
    async def _library(request: Request, error: ScDrugMapError) -> Response:
        return answer(request, problem_of(error))

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> Response:
        first: dict[str, Any] = dict(error.errors()[0])
        name = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path", "header"))
        return answer(
            request, Problem(422, "invalid", f"{name or 'request'}: {first['msg']}.", "See /api/v1/docs for the form.")
        )

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        if error.status_code == 404:
            return answer(request, not_found())
        problem = Problem(error.status_code, "http", str(error.detail), "See /api/v1/docs.")
        problem.headers = dict(error.headers or {})
        return answer(request, problem)

    @app.exception_handler(SQLAlchemyError)
    async def _database(request: Request, error: SQLAlchemyError) -> Response:
        log.error("the database does not answer: %s", type(error).__name__)
        what = "The database does not answer." if isinstance(error, OperationalError) else "The database is troubled."
        return answer(
            request,
            Problem(503, "database", what, "Nothing is lost; try again in a minute.", Retry_After="30"),
        )

    @app.exception_handler(OSError)
    async def _disk(request: Request, error: OSError) -> Response:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return answer(
                request, Problem(507, "disk_full", "The server's disk is full.", "Nothing is lost; try again later.")
            )
        return answer(request, _unexpected(error))

    @app.exception_handler(Exception)
    async def _other(request: Request, error: Exception) -> Response:
        return answer(request, _unexpected(error))


def _unexpected(error: Exception) -> Problem:
    number = uuid.uuid4().hex[:8]
    log.error("error %s at %s", number, time.strftime("%H:%M:%S"), exc_info=error)
    return Problem(500, "unexpected", f"Something went wrong here (error {number}).", "Tell the owner of the server.")
