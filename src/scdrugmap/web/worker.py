"""The worker: takes uploads and jobs from the queues, and watches over one process for each."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import shutil
import socket
import threading
import time
from typing import Any

import psutil
from sqlalchemy import select, update
from sqlalchemy.exc import SQLAlchemyError

from scdrugmap.web import jobs, uploads
from scdrugmap.web.alive import beat_name
from scdrugmap.web.config import ServerSettings
from scdrugmap.web.database import Job, Upload, session
from scdrugmap.web.problems import Problem
from scdrugmap.web.state import Server

log = logging.getLogger("scdrugmap.web")
#: A worker that has not been heard of for so long is dead.
LEASE = 20.0
#: Interruptions of one job before it is taken for the culprit.
ATTEMPTS = 25
_BEAT = 1.0


class Worker:
    """Runs until it is told to stop; what runs then goes back into the line.

    Parameters
    ----------
    settings
        What the owner decided.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.server = Server(settings)
        self.name = me()
        self.stopping = threading.Event()
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["scdrugmap.web.preload"])
        self.consumers: list[Any] = []

    def run(self) -> None:
        """Take work until :meth:`stop`."""
        queues = self.server.queues
        self.take_back()
        # The first process waits for the imports of the one that it is forked from; no job's lease runs meanwhile.
        warm = self.context.Process(target=_nothing, daemon=True)
        warm.start()
        warm.join()
        self.consumers = [
            queues.consume("checks", self.check, 1),
            queues.consume("jobs", self.job, self.server.settings.workers),
        ]
        last = 0.0
        beat = self.server.settings.folder("cache") / beat_name()
        while not self.stopping.wait(0.2):
            beat.touch()
            if time.monotonic() - last > LEASE / 4:
                last = time.monotonic()
                self._guarded(self.take_back)

    def stop(self) -> None:
        """Stop everything within seconds."""
        self.stopping.set()
        for consumer in self.consumers:
            consumer.stop()
        for consumer in self.consumers:
            for _, thread in consumer.worker_threads:
                thread.join(4)
        self._guarded(self.take_back)

    def take_back(self) -> None:
        """Put what a dead worker has left behind into the line again."""
        now = time.time()
        with session(self.server.engine) as db:
            running = db.scalars(select(Job).where(Job.state == "running")).all()
            lost = [j.id for j in running if self._is_lost(j, now)]
            for job_id in lost:
                db.execute(
                    update(Job).where(Job.id == job_id, Job.state == "running").values(
                        state="queued", stage="waiting", percent=0.0, worker=None, heartbeat=None
                    )
                )  # fmt: skip
            waiting = db.scalars(select(Job.id).where(Job.state == "queued").order_by(Job.created)).all()
            checking = db.scalars(select(Upload.id).where(Upload.state == "checking")).all()
        if lost and not self.stopping.is_set():
            log.warning("%d jobs are back in line", len(lost))
        for queue, things in (("jobs", waiting), ("checks", checking)):
            huey = self.server.queues.huey(queue)
            known = {task.args[0] for task in huey.pending()}
            for thing in things:
                if thing not in known and (queue == "jobs" or thing not in self.server.notes):
                    self.server.queues.put(queue, thing)

    def _is_lost(self, job: Job, now: float) -> bool:
        if job.worker == self.name and self.stopping.is_set():
            return True
        if job.worker is not None and job.worker != self.name and is_dead(job.worker):
            return True
        return job.heartbeat is None or now - job.heartbeat > LEASE

    def check(self, upload_id: str) -> None:
        """The full check of one upload, in a process of its own."""
        from scdrugmap.web.checking import check_upload

        try:
            upload = uploads.find(self.server, upload_id)
        except Problem:
            return
        if upload.state != "checking" or upload.check is None:
            return
        self.server.notes[upload_id] = True
        try:
            answer = self._in_process(check_upload, (self.server.settings, upload_id, dict(upload.check)), upload_id)
            if answer is None:
                return
            kind, value = answer
            if kind == "accepted":
                uploads.accept(self.server, upload_id, **value)
            else:
                uploads.refuse(self.server, upload_id, value)
        except Problem:
            shutil.rmtree(uploads.folder(self.server, upload_id), ignore_errors=True)
        finally:
            self.server.notes.pop(upload_id, None)

    def job(self, job_id: str) -> None:
        """One job, if it still waits."""
        from scdrugmap.web.runner import run_job

        now = time.time()
        with session(self.server.engine) as db:
            claimed: Any = db.execute(
                update(Job).where(Job.id == job_id, Job.state == "queued").values(
                    state="running", stage="starting", percent=1.0, worker=self.name, heartbeat=now, started=now,
                    cancel=False, attempt=Job.attempt + 1, reason=None,
                )
            )  # fmt: skip
            job = db.get(Job, job_id)
        if not claimed.rowcount or job is None:
            return
        if job.attempt > ATTEMPTS:
            self._end(job_id, "failed", "The job was interrupted too often. Fix: send fewer cells.")
            return
        answer = self._in_process(run_job, (self.server.settings, job_id, dict(job.request)), job_id, job=True)
        if answer is None:
            return
        state, reason = answer
        self._end(job_id, state, reason)

    def _in_process(self, function: Any, arguments: tuple[Any, ...], thing: str, *, job: bool = False) -> Any:
        """Run in a process, watch it, and return what it says; ``None`` if the worker is stopping."""
        here, there = self.context.Pipe(duplex=False)
        process = self.context.Process(target=_begin, args=(function, arguments, there), daemon=True)
        process.start()
        there.close()
        answer, beat = None, 0.0
        news: dict[str, Any] = {}
        while answer is None:
            try:
                if here.poll(0.2):
                    what, value = here.recv()
                    if what == "answer":
                        answer = value
                    else:
                        news = value
                elif not process.is_alive():
                    break
            except (EOFError, OSError):
                break
            if self.stopping.is_set():
                _end_process(process)
                return None
            if job and time.monotonic() - beat > _BEAT / 2:
                beat = time.monotonic()
                if self._beat(thing, news):
                    _end_process(process)
                    return ("cancelled", None)
        _end_process(process, patience=2.0 if answer is not None else 0.1)
        if answer is None:
            log.error("a process ended with code %s", process.exitcode)
            why = "The run ended at once; most likely it needed more memory than there is. Fix: send fewer cells."
            return ("failed" if job else "refused", why)
        return answer

    def _beat(self, job_id: str, news: dict[str, Any]) -> bool:
        """Say that the job lives; return whether it is to stop."""
        try:
            with session(self.server.engine) as db:
                alive: Any = db.execute(
                    update(Job).where(Job.id == job_id, Job.state == "running", Job.worker == self.name)
                    .values(heartbeat=time.time(), **news)
                )  # fmt: skip
                return not alive.rowcount or bool(db.scalar(select(Job.cancel).where(Job.id == job_id)))
        except SQLAlchemyError:
            log.exception("the database is away")
            return False

    def _end(self, job_id: str, state: str, reason: str | None) -> None:
        """Write down how a job ended, as soon as the database takes it."""
        now = time.time()
        values = {
            "state": state, "stage": state, "reason": reason, "finished": now, "worker": None,
            **({"percent": 100.0} if state == "done" else {}),
        }  # fmt: skip
        while True:
            try:
                with session(self.server.engine) as db:
                    job = db.get(Job, job_id)
                    if job is not None and job.state == "running" and job.worker == self.name:
                        for name, value in values.items():
                            setattr(job, name, value)
                        if not job.demo:
                            job.expires = now + self.server.settings.retention
                    elif job is None:
                        shutil.rmtree(jobs.folder(self.server, job_id), ignore_errors=True)
                break
            except SQLAlchemyError:
                log.exception("the database is away")
                if self.stopping.wait(2):
                    return
        if state != "done":
            shutil.rmtree(jobs.folder(self.server, job_id) / "work", ignore_errors=True)

    @staticmethod
    def _guarded(step: Any) -> None:
        try:
            step()
        except SQLAlchemyError:
            log.exception("the database is away")


def _nothing() -> None:
    """Be started."""


def _begin(function: Any, arguments: tuple[Any, ...], pipe: Any) -> None:
    """First thing in a new process."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with_parent(os.getppid())

    def tell(**news: Any) -> None:
        pipe.send(("news", news))

    try:
        pipe.send(("answer", function(*arguments, tell)))
        pipe.close()
    except BrokenPipeError:
        os._exit(1)  # The worker is gone: somebody else does this again.


def _end_process(process: Any, patience: float = 0.1) -> None:
    process.join(patience)
    if process.is_alive():
        process.kill()
        process.join(5)


def die_with_parent(parent: int) -> None:
    """End this process when the one that started it is gone, however it went."""
    import ctypes
    import signal

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def me() -> str:
    """A name for this process that no later one has."""
    process = psutil.Process()
    return f"{socket.gethostname()}/{process.pid}/{process.create_time():.2f}"


def is_dead(name: str) -> bool:
    """Whether a worker of this machine is gone; of another machine nothing is known."""
    host, pid, started = name.rsplit("/", 2)
    if host != socket.gethostname():
        return False
    try:
        return f"{psutil.Process(int(pid)).create_time():.2f}" != started
    except psutil.NoSuchProcess:
        return True
