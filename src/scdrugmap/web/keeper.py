"""What the web process does besides answering: first looks, deletion after the time, demo results."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from scdrugmap.web import demo, jobs, shelf, uploads
from scdrugmap.web.database import WAITING, Job, Upload, session
from scdrugmap.web.problems import Problem
from scdrugmap.web.state import Server

log = logging.getLogger("scdrugmap.web")


def prepare(server: Server) -> None:
    """Before the first request: what the last run left is in line again, and the demo results are ordered."""
    for name in ("uploads", "jobs", "predictors"):
        server.settings.folder(name)
    server.queues.huey("checks")
    server.queues.huey("jobs")
    if server.settings.demos:
        demo.order(server)


async def keep(app: Any, server: Server) -> None:
    """Run beside the requests."""
    await asyncio.to_thread(_looks_again, app, server, asyncio.get_running_loop())
    # Read once, so that the first visitor does not wait for it.
    for table in (shelf.datasets, shelf.models, shelf.published):
        await asyncio.to_thread(table)
    pause = min(60.0, max(0.5, server.settings.retention / 10))
    while True:
        try:
            await asyncio.to_thread(expire, server)
        except (SQLAlchemyError, OSError) as error:
            log.warning("expired things cannot be deleted now: %s", type(error).__name__)
        await asyncio.sleep(pause)


def expire(server: Server) -> int:
    """Delete what is past its time, and folders that belong to nothing."""
    now = time.time()
    with session(server.engine) as db:
        busy = {
            v for j in db.scalars(select(Job).where(Job.state.in_(WAITING)))
            for v in (j.request.get("query"), j.request.get("reference")) if v
        }  # fmt: skip
        old_jobs = db.scalars(select(Job.id).where(Job.expires < now, Job.state.not_in(WAITING))).all()
        old_uploads = [u for u in db.scalars(select(Upload.id).where(Upload.expires < now)) if u not in busy]
    for job_id in old_jobs:
        jobs.expire(server, job_id)
    for upload_id in old_uploads:
        with session(server.engine) as db:
            upload = db.get(Upload, upload_id)
            if upload is not None:
                db.delete(upload)
        shutil.rmtree(uploads.folder(server, upload_id), ignore_errors=True)
    _sweep(server, now)
    return len(old_jobs) + len(old_uploads)


def _sweep(server: Server, now: float) -> None:
    """Folders without a record, an hour old: what a crash between two steps may leave."""
    for name, table in (("uploads", Upload), ("jobs", Job)):
        folders = [f for f in server.settings.folder(name).iterdir() if now - f.stat().st_mtime > 3600]
        if folders:
            with session(server.engine) as db:
                known = set(db.scalars(select(table.id)))
            for folder in folders:
                if folder.name not in known:
                    shutil.rmtree(folder, ignore_errors=True)


def _looks_again(app: Any, server: Server, loop: asyncio.AbstractEventLoop) -> None:
    """Files whose first look was interrupted."""
    with session(server.engine) as db:
        ids = db.scalars(select(Upload.id).where(Upload.state == "checking", Upload.check.is_(None))).all()
    for upload_id in ids:
        asyncio.run_coroutine_threadsafe(look(app, server, upload_id), loop)


async def look(app: Any, server: Server, upload_id: str) -> None:
    """The first look at a file, then its place in the line for the full check."""
    async with app.state.looks:
        try:
            if await asyncio.to_thread(uploads.look, server, upload_id):
                await asyncio.to_thread(server.queues.put, "checks", upload_id)
        except Problem:
            pass  # Deleted meanwhile.
        except (SQLAlchemyError, OSError) as error:
            log.error("a first look failed: %s", type(error).__name__)
            raise


def start_look(app: Any, server: Server, upload_id: str) -> None:
    """Begin the first look without waiting for it."""
    task = asyncio.get_running_loop().create_task(look(app, server, upload_id))
    app.state.tasks.add(task)
    task.add_done_callback(app.state.tasks.discard)
