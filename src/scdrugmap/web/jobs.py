"""Jobs: asked for, waiting in line, run by a worker, watched, cancelled, deleted."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path
from typing import Any

from sqlalchemy import func, select, update

from scdrugmap.web import kinds, shelf, uploads
from scdrugmap.web.database import FINAL, WAITING, Job, new_id, session
from scdrugmap.web.estimate import refuse_if_too_large
from scdrugmap.web.problems import Problem, not_found
from scdrugmap.web.state import Server

_SAFE_ID = re.compile(r"[A-Za-z0-9_-]{22,64}")
#: Seconds for which a link still says that its result has expired.
REMEMBERED = 90 * 86_400
_SAFE_FILE = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")


def create(server: Server, owner: str, asked: dict[str, Any], *, limited: bool = False) -> Job:
    """Check a request completely, then put it in line."""
    kind = kinds.find(asked["kind"])
    options = kind.options(asked.get("options") or {})
    request: dict[str, Any] = {"kind": kind.name, "options": options}
    upload = None
    for role in ("query", "reference"):
        value = asked.get(role)
        if value and role in kind.roles:
            request[role] = value
            if role == "reference" and not uploads.is_secret(value):
                shelf.check_study(value)
            else:
                found = uploads.find(server, value)
                uploads.cells_file(server, found)
                upload = found if role == "query" or upload is None else upload
        elif value:
            raise Problem(422, role, f"{kind.title} takes no {role}.", f"Leave {role} out.")
        elif kind.roles.get(role):
            raise Problem(422, role, f"{kind.title} needs a {role}.", "Upload a file first, and name its id.")
    if kind.needs_predictor:
        request["predictor"] = shelf.check_predictor(server, asked.get("predictor"))
    elif asked.get("predictor"):
        raise Problem(422, "predictor", f"{kind.title} takes no predictor.", "Leave predictor out.")
    if upload is not None:
        kind.check(options, upload.check or {})
        refuse_if_too_large(upload.check or {}, options)
    with session(server.engine) as db:
        if limited:
            active = db.scalar(select(func.count()).select_from(Job).where(Job.owner == owner, Job.state.in_(WAITING)))
            if (active or 0) >= server.settings.max_active_jobs:
                raise Problem(
                    429, "too_many_jobs", "You have as many jobs waiting as one address may have.",
                    "Wait until one is done, or cancel one.", Retry_After="60",
                )  # fmt: skip
        job = new_job(server, owner, request, kind.title + (f": {upload.filename}" if upload else ""))
        db.add(job)
    server.queues.put("jobs", job.id)
    return job


def new_job(server: Server, owner: str, request: dict[str, Any], title: str, *, demo: bool = False) -> Job:
    """A job that waits; it is not in the database yet."""
    now = time.time()
    return Job(
        id=new_id(), owner=owner, kind=request["kind"], title=title[:255], demo=demo, request=request, state="queued",
        stage="waiting", percent=0.0, cancel=False, attempt=0, created=now,
        expires=now + (1e10 if demo else server.settings.retention),
    )  # fmt: skip


def find(server: Server, job_id: str) -> Job:
    """The job under a secret, or the uniform 404."""
    job = None
    if _SAFE_ID.fullmatch(job_id):
        with session(server.engine) as db:
            job = db.get(Job, job_id)
        if job is not None and job.state not in WAITING and job.expires <= time.time():
            job = expire(server, job_id)
    if job is None:
        raise not_found()
    return job


def expire(server: Server, job_id: str) -> Job | None:
    """Delete the files of a job past its time and what was asked; for a while its link says so, then nothing is left."""
    # Files first: a record that still says "done" is tried again where this is cut short.
    shutil.rmtree(folder(server, job_id), ignore_errors=True)
    now = time.time()
    with session(server.engine) as db:
        job = db.get(Job, job_id)
        if job is not None and job.state == "expired":
            if job.expires <= now:
                db.delete(job)
                job = None
        elif job is not None:
            job.state, job.stage, job.title, job.request, job.owner = (
                "expired",
                "deleted",
                "A result past its time",
                {},
                "",
            )
            job.reason = "The result and the request were deleted when their time was over. Upload the file again."
            job.expires = now + REMEMBERED
    return job


def describe(server: Server, job: Job) -> dict[str, Any]:
    """The JSON of a job."""
    out: dict[str, Any] = {
        "id": job.id, "kind": job.kind, "title": job.title, "state": job.state, "stage": job.stage,
        "percent": round(job.percent, 1), "position": position(server, job), "cells_per_second": job.rate,
        "seconds_left": _seconds_left(job), "created": job.created, "expires": job.expires, "demo": job.demo,
        "files": [{"name": n, "url": f"/api/v1/jobs/{job.id}/files/{n}"} for n in files(server, job)],
    }  # fmt: skip
    if job.reason is not None:
        out["reason"] = job.reason
    return out


def position(server: Server, job: Job) -> int:
    """Place in line; 1 is next, 0 is not waiting."""
    if job.state != "queued":
        return 0
    with session(server.engine) as db:
        before = db.scalar(
            select(func.count()).select_from(Job).where(Job.state == "queued", Job.created < job.created)
        )
    return (before or 0) + 1


def files(server: Server, job: Job) -> list[str]:
    """Names of what can be taken home."""
    place = folder(server, job.id) / "result" / "files"
    return sorted(p.name for p in place.iterdir()) if job.state == "done" and place.is_dir() else []


def file(server: Server, job_id: str, name: str) -> Path:
    """One file of a finished job."""
    job = find(server, job_id)
    if not _SAFE_FILE.fullmatch(name) or name not in files(server, job):
        raise not_found()
    return folder(server, job_id) / "result" / "files" / name


def cancel(server: Server, job_id: str) -> Job:
    """Stop a job, or take it out of the line; a finished one stays as it is."""
    find(server, job_id)
    now = time.time()
    with session(server.engine) as db:
        db.execute(
            update(Job).where(Job.id == job_id, Job.state == "queued")
            .values(state="cancelled", stage="cancelled", finished=now)
        )  # fmt: skip
        db.execute(update(Job).where(Job.id == job_id, Job.state == "running").values(cancel=True))
    return find(server, job_id)


def again(server: Server, owner: str, job_id: str, *, limited: bool = False) -> Job:
    """The same request once more."""
    job = find(server, job_id)
    if job.state == "expired":
        raise Problem(410, "expired", "The request was deleted with its result.", "Upload the file again.")
    return create(server, owner, dict(job.request), limited=limited)


def delete(server: Server, job_id: str) -> None:
    """Remove every byte and the record; one that runs is stopped by the worker, which misses its record."""
    job = find(server, job_id)
    if job.demo:
        raise Problem(403, "demo", "The demo results belong to everybody.", "Delete your own results only.")
    remove(server, job_id)


def remove(server: Server, job_id: str) -> None:
    """Forget a job."""
    with session(server.engine) as db:
        job = db.get(Job, job_id)
        if job is not None:
            db.delete(job)
    shutil.rmtree(folder(server, job_id), ignore_errors=True)


def is_final(job: Job) -> bool:
    """Whether nothing will change any more."""
    return job.state in FINAL


def folder(server: Server, job_id: str) -> Path:
    """Where a job lives."""
    return server.settings.folder("jobs") / job_id


def _seconds_left(job: Job) -> float | None:
    if job.state != "running" or job.started is None or job.percent < 5:
        return None
    return round((time.time() - job.started) * (100 / job.percent - 1), 0)
