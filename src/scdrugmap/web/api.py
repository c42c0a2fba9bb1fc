"""The REST API: uploads, jobs, and what the server offers."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Request
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import ClientDisconnect

from scdrugmap.web import jobs, keeper, kinds, shelf, uploads
from scdrugmap.web.estimate import estimate
from scdrugmap.web.problems import Problem
from scdrugmap.web.state import Server

router = APIRouter()
_PREFIX = "/api/v1"
_LOCKS: dict[str, asyncio.Lock] = {}


class Error(BaseModel):
    """What every answer other than a success holds."""

    class _Of(BaseModel):
        code: str
        message: str
        fix: str

    error: _Of


class NewUpload(BaseModel):
    """A file that is about to be sent."""

    model_config = ConfigDict(extra="forbid")
    filename: str = Field(min_length=1, max_length=1000, description="Shown to you; never used as a path.")
    size: int = Field(ge=0, le=2**53, description="Bytes.")
    sha256: str | None = Field(None, description="Digest in hexadecimal; what comes is compared with it.")


class NewJob(BaseModel):
    """One thing to ask."""

    model_config = ConfigDict(extra="forbid")
    kind: str = Field(description="See /api/v1/kinds.")
    query: str | None = Field(None, description="Id of an accepted upload.")
    reference: str | None = Field(None, description="Id of an accepted upload, or the key of a curated study.")
    predictor: str | None = Field(None, description="Name of a predictor of the shelf.")
    options: dict[str, Any] = Field(default_factory=dict, description="Fields of the run specification.")


class UploadState(BaseModel):
    """How far an upload is."""

    id: str
    offset: int
    state: Literal["receiving", "checking", "accepted", "refused"]
    size: int
    filename: str
    expires: float
    reason: str | None = None
    check: dict[str, Any] | None = None


class File(BaseModel):
    """Something to take home."""

    name: str
    url: str


class JobState(BaseModel):
    """How far a job is."""

    id: str
    kind: str
    title: str
    state: Literal["queued", "running", "done", "failed", "cancelled", "expired"]
    stage: str
    percent: float
    position: int
    cells_per_second: float | None = None
    seconds_left: float | None = None
    created: float
    expires: float
    demo: bool
    reason: str | None = None
    files: list[File]


class Made(BaseModel):
    """The secret under which a new thing is found."""

    id: str


_ERRORS: dict[int | str, dict[str, Any]] = {
    n: {"model": Error} for n in (400, 401, 403, 404, 409, 410, 413, 422, 429, 503, 507)
}
_ANSWER: dict[str, Any] = {"responses": _ERRORS}
_LEAN: dict[str, Any] = {"response_model_exclude_none": True, **_ANSWER}


def the_server(request: Request) -> Server:
    """The server that a request came to."""
    server: Server = request.app.state.server
    return server


Ours = Annotated[Server, Depends(the_server)]


@router.get("/healthz", tags=["server"])
def health(server: Ours) -> JSONResponse:
    """Whether web process, database and disk do their work."""
    from sqlalchemy import text
    from sqlalchemy.exc import SQLAlchemyError

    from scdrugmap.web.database import session

    try:
        with session(server.engine) as db:
            db.execute(text("SELECT 1"))
        database = "ok"
    except SQLAlchemyError:
        database = "away"
    free = shutil.disk_usage(server.settings.data_dir).free
    good = database == "ok" and free > 100 * 2**20
    body = {
        "status": "ok" if good else "troubled",
        "database": database,
        "disk": "ok" if free > 100 * 2**20 else "full",
    }
    return JSONResponse(body, 200 if good else 503)


@router.post(f"{_PREFIX}/uploads", status_code=201, response_model=UploadState, tags=["uploads"], **_LEAN)
def create_upload(request: Request, server: Ours, body: NewUpload) -> Any:
    """Announce a file."""
    limited = request.scope["limited"]
    made = uploads.create(server, request.scope["owner"], body.filename, body.size, body.sha256, limited=limited)
    return uploads.describe(made)


@router.patch(
    f"{_PREFIX}/uploads/{{upload_id}}", response_model=UploadState, tags=["uploads"], **_LEAN,
    openapi_extra={"requestBody": {"required": True, "content": {
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}},
)  # fmt: skip
async def send_chunk(
    request: Request, server: Ours, upload_id: str,
    upload_offset: Annotated[int, Header(ge=0, description="Where these bytes begin.")],
) -> Any:  # fmt: skip
    """Send the next bytes; what has come stays when the connection breaks."""
    async with _LOCKS.setdefault(upload_id, asyncio.Lock()):
        try:
            return await _receive(request, server, upload_id, upload_offset)
        finally:
            if len(_LOCKS) > 10_000:
                _LOCKS.clear()


async def _receive(request: Request, server: Server, upload_id: str, offset: int) -> Any:
    upload = await asyncio.to_thread(uploads.find, server, upload_id)
    if upload.state != "receiving":
        raise Problem(409, "complete", "All bytes have come already.", "Ask for the state of the upload.")
    if offset != upload.offset:
        misplaced = Problem(
            409, "offset", f"The next byte is number {upload.offset}.", "Send from there.",
            Upload_Offset=str(upload.offset),
        )  # fmt: skip
        misplaced.facts["offset"] = upload.offset
        raise misplaced
    at = offset
    # A crash may have left bytes that were never noted; they come again.
    with uploads.part(server, upload_id).open("r+b") as file:
        file.truncate(offset)
        file.seek(offset)
        try:
            async for block in request.stream():
                if at + len(block) > upload.size:
                    raise Problem(413, "too_long", "More bytes came than were announced.", "Announce the whole size.")
                await asyncio.to_thread(file.write, block)
                at += len(block)
        except ClientDisconnect:
            pass
        finally:
            file.flush()
            await asyncio.to_thread(uploads.received, server, upload_id, at)
    return uploads.describe(await asyncio.to_thread(uploads.find, server, upload_id))


@router.head(f"{_PREFIX}/uploads/{{upload_id}}", tags=["uploads"], include_in_schema=False)
@router.get(f"{_PREFIX}/uploads/{{upload_id}}", response_model=UploadState, tags=["uploads"], **_LEAN)
def upload_state(server: Ours, upload_id: str, response: Response) -> Any:
    """How far an upload is, and what the check found."""
    upload = uploads.find(server, upload_id)
    response.headers["Upload-Offset"] = str(upload.offset)
    return uploads.describe(upload)


@router.post(f"{_PREFIX}/uploads/{{upload_id}}/complete", response_model=UploadState, tags=["uploads"], **_LEAN)
async def complete_upload(request: Request, server: Ours, upload_id: str) -> Any:
    """All bytes were sent: check the file."""
    before = await asyncio.to_thread(uploads.find, server, upload_id)
    upload = await asyncio.to_thread(uploads.finish, server, upload_id)
    if before.state == "receiving":
        keeper.start_look(request.app, server, upload_id)
    return uploads.describe(upload)


@router.delete(f"{_PREFIX}/uploads/{{upload_id}}", status_code=204, tags=["uploads"], **_ANSWER)
def delete_upload(server: Ours, upload_id: str) -> None:
    """Delete every byte of an upload."""
    uploads.delete(server, upload_id)


@router.post(f"{_PREFIX}/uploads/{{upload_id}}/estimate", tags=["uploads"], **_ANSWER)
def estimate_job(server: Ours, upload_id: str, body: NewJob) -> dict[str, Any]:
    """Seconds and memory that a job on this upload will about take."""
    upload = uploads.find(server, upload_id)
    return estimate(upload.check or {}, body.options)


@router.post(f"{_PREFIX}/jobs", status_code=202, response_model=Made, tags=["jobs"], **_ANSWER)
def create_job(request: Request, server: Ours, body: NewJob) -> Any:
    """Ask; the answer comes under the id."""
    asked = body.model_dump()
    return {"id": jobs.create(server, request.scope["owner"], asked, limited=request.scope["limited"]).id}


@router.get(f"{_PREFIX}/jobs/{{job_id}}", response_model=JobState, tags=["jobs"], **_LEAN)
def job_state(server: Ours, job_id: str) -> Any:
    """How far a job is, and its files once it is done."""
    return jobs.describe(server, jobs.find(server, job_id))


@router.get(
    f"{_PREFIX}/jobs/{{job_id}}/events", tags=["jobs"], response_class=StreamingResponse,
    responses={**_ERRORS, 200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)  # fmt: skip
async def job_events(request: Request, server: Ours, job_id: str) -> StreamingResponse:
    """Every change of a job, as server-sent events, until its end."""
    await asyncio.to_thread(jobs.find, server, job_id)

    async def events() -> AsyncIterator[str]:
        last, quiet = "", 0
        while not await request.is_disconnected():
            try:
                job = await asyncio.to_thread(jobs.find, server, job_id)
            except Problem:
                yield "event: gone\ndata: {}\n\n"
                return
            now = json.dumps(await asyncio.to_thread(jobs.describe, server, job))
            quiet = 0 if now != last else quiet + 1
            if now != last or quiet % 30 == 0:
                yield f"event: status\ndata: {now}\n\n" if now != last else ": still here\n\n"
                last = now
            if jobs.is_final(job):
                return
            await asyncio.sleep(0.5)

    return StreamingResponse(
        events(), media_type="text/event-stream", headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    )


@router.post(f"{_PREFIX}/jobs/{{job_id}}/cancel", response_model=JobState, tags=["jobs"], **_LEAN)
def cancel_job(server: Ours, job_id: str) -> Any:
    """Stop a job."""
    job = jobs.find(server, job_id)
    if job.demo:
        raise Problem(403, "demo", "The demo results belong to everybody.", "Cancel your own jobs only.")
    return jobs.describe(server, jobs.cancel(server, job_id))


@router.post(f"{_PREFIX}/jobs/{{job_id}}/again", status_code=202, response_model=Made, tags=["jobs"], **_ANSWER)
def repeat_job(request: Request, server: Ours, job_id: str) -> Any:
    """Ask the same once more."""
    return {"id": jobs.again(server, request.scope["owner"], job_id, limited=request.scope["limited"]).id}


@router.delete(f"{_PREFIX}/jobs/{{job_id}}", status_code=204, tags=["jobs"], **_ANSWER)
def delete_job(server: Ours, job_id: str) -> None:
    """Delete every byte of a result."""
    jobs.delete(server, job_id)


@router.get(
    f"{_PREFIX}/jobs/{{job_id}}/files/{{name}}", response_class=FileResponse, tags=["results"], responses=_ERRORS
)
def job_file(server: Ours, job_id: str, name: str) -> FileResponse:
    """Take one file home."""
    path = jobs.file(server, job_id, name)
    if name == "report.html":
        # Shown in the browser, as a page that can do nothing.
        policy = "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'"
        return FileResponse(path, media_type="text/html", headers={"Content-Security-Policy": policy})
    return FileResponse(path, filename=name, media_type=_MEDIA.get(path.suffix, "application/octet-stream"))


_MEDIA = {".csv": "text/csv; charset=utf-8", ".yaml": "text/plain; charset=utf-8", ".pdf": "application/pdf"}


@router.get(f"{_PREFIX}/kinds", tags=["server"])
def list_kinds() -> list[dict[str, Any]]:
    """What can be asked, with the JSON schema of the options of each."""
    return [
        {
            "name": k.name, "title": k.title, "text": k.text, "needs": [r for r, needed in k.roles.items() if needed],
            "needs_predictor": k.needs_predictor, "options": k.schema(),
        } for k in kinds.all_kinds().values()
    ]  # fmt: skip


@router.get(f"{_PREFIX}/limits", tags=["server"])
def list_limits(server: Ours) -> dict[str, Any]:
    """How large an upload may be, and how long results are kept."""
    own = server.settings
    return {
        "max_upload_mb": own.max_upload, "max_bytes": own.max_bytes, "max_cells": own.max_cells,
        "retention_days": own.retention_days,
    }  # fmt: skip


@router.get(f"{_PREFIX}/predictors", tags=["server"])
def list_predictors(server: Ours) -> list[dict[str, Any]]:
    """The predictors on the shelf."""
    return shelf.predictors(server)


@router.get(f"{_PREFIX}/models", tags=["server"])
def list_models() -> list[dict[str, Any]]:
    """The models, with what their cards say."""
    return shelf.models()


@router.get(f"{_PREFIX}/datasets", tags=["server"])
def list_datasets() -> list[dict[str, Any]]:
    """The catalogue of curated studies."""
    return shelf.datasets()


@router.get(f"{_PREFIX}/published", tags=["server"])
def list_published() -> list[dict[str, Any]]:
    """Categories of the published benchmark beside calling every cell sensitive."""
    return shelf.published()
