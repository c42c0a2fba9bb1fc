"""Files from strangers: received piece by piece, looked at in a sandbox, deleted without a trace."""

from __future__ import annotations

import hashlib
import re
import shutil
import time
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from scdrugmap.web.database import WAITING, Job, Upload, new_id, session
from scdrugmap.web.problems import Problem, not_found
from scdrugmap.web.sandbox.call import first_look
from scdrugmap.web.state import Server

_SHA = re.compile(r"[0-9a-f]{64}")
_SAFE_ID = re.compile(r"[A-Za-z0-9_-]{22,64}")


def create(
    server: Server, owner: str, filename: str, size: int, sha256: str | None, *, limited: bool = False
) -> Upload:
    """Announce a file; nothing of its name is ever used as a path."""
    limit = server.settings.max_bytes
    if size < 1:
        raise Problem(422, "empty", "The file is empty.", "Choose another file.")
    if size > limit:
        raise Problem(
            413, "too_large", f"The file has {size / 2**20:,.1f} MB; the limit is {server.settings.max_upload:g} MB.",
            "Send fewer cells, or keep only the counts: adata.raw and other layers are not needed.",
        )  # fmt: skip
    if sha256 is not None and not _SHA.fullmatch(sha256.lower()):
        raise Problem(422, "sha256", "The digest is no SHA-256 in hexadecimal.", "Leave it out or send 64 digits.")
    with session(server.engine) as db:
        mine = (Upload.owner == owner, Upload.state != "refused")
        used = db.scalar(select(func.coalesce(func.sum(Upload.size), 0)).where(*mine)) or 0
        if limited and used + size > server.settings.quota * limit:
            raise Problem(
                429, "quota", "Your uploads fill your share of this server's disk.",
                "Delete an upload that is not needed any more.", Retry_After="3600",
            )  # fmt: skip
        if shutil.disk_usage(server.settings.data_dir).free < 3 * size:
            raise Problem(507, "disk_full", "The server's disk is full.", "Try again later, or tell its owner.")
        upload = Upload(
            id=new_id(), owner=owner, filename=_shown(filename), size=size, sha256=sha256 and sha256.lower(), offset=0,
            state="receiving", created=time.time(), expires=time.time() + server.settings.retention,
        )  # fmt: skip
        folder(server, upload.id).mkdir(parents=True)
        part(server, upload.id).touch()
        db.add(upload)
    return upload


def find(server: Server, upload_id: str, *, for_job: bool = False) -> Upload:
    """The upload under a secret, or the uniform 404; a job that waited long may read what is past its time."""
    if _SAFE_ID.fullmatch(upload_id):
        with session(server.engine) as db:
            upload = db.get(Upload, upload_id)
            if upload is not None and (for_job or upload.expires > time.time()):
                return upload
    raise not_found()


def received(server: Server, upload_id: str, offset: int) -> None:
    """Note how much has come."""
    with session(server.engine) as db:
        upload = db.get(Upload, upload_id)
        if upload is not None:
            upload.offset = offset


def finish(server: Server, upload_id: str) -> Upload:
    """All bytes have come: the first look is due."""
    upload = find(server, upload_id)
    if upload.state != "receiving":
        return upload
    if upload.offset != upload.size:
        raise Problem(
            409, "incomplete", f"{upload.offset:,} of {upload.size:,} bytes have come.",
            "Send the rest, then complete the upload.", Upload_Offset=str(upload.offset),
        )  # fmt: skip
    return _change(server, upload_id, state="checking")


def look(server: Server, upload_id: str) -> bool:
    """Take the first look; refuse the file, or say that the full check is due."""
    upload = find(server, upload_id)
    if upload.sha256 is not None and _digest(part(server, upload_id)) != upload.sha256:
        refuse(server, upload_id, "the bytes that came are not those that were announced (SHA-256). Fix: upload again.")
        return False
    unpacked = folder(server, upload_id) / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)
    unpacked.mkdir()
    verdict = first_look(part(server, upload_id), unpacked, server.settings)
    if not verdict.ok:
        refuse(server, upload_id, f"{verdict.message}. Fix: {verdict.fix}")
        return False
    _change(server, upload_id, check={"format": verdict.format})
    return True


def refuse(server: Server, upload_id: str, reason: str) -> None:
    """Turn a file down; none of its bytes stay."""
    shutil.rmtree(folder(server, upload_id), ignore_errors=True)
    _change(server, upload_id, state="refused", reason=reason, check=None)


def accept(server: Server, upload_id: str, stored: str, check: dict[str, Any]) -> None:
    """Take the file: from here on only our own copy is read."""
    part(server, upload_id).unlink(missing_ok=True)
    shutil.rmtree(folder(server, upload_id) / "unpacked", ignore_errors=True)
    _change(server, upload_id, state="accepted", stored=stored, check=check)


def delete(server: Server, upload_id: str) -> None:
    """Remove every byte and the record."""
    find(server, upload_id)
    with session(server.engine) as db:
        users = db.scalars(select(Job).where(Job.state.in_(WAITING))).all()
        if any(upload_id in (j.request.get("query"), j.request.get("reference")) for j in users):
            raise Problem(409, "in_use", "A job that runs or waits needs this file.", "Cancel the job first.")
        db.delete(db.get(Upload, upload_id))
    shutil.rmtree(folder(server, upload_id), ignore_errors=True)


def describe(upload: Upload) -> dict[str, Any]:
    """The JSON of an upload."""
    out: dict[str, Any] = {
        "id": upload.id, "state": upload.state, "offset": upload.offset, "size": upload.size,
        "filename": upload.filename, "expires": upload.expires,
    }  # fmt: skip
    if upload.reason is not None:
        out["reason"] = upload.reason
    if upload.state == "accepted":
        out["check"] = upload.check
    return out


def cells_file(server: Server, upload: Upload) -> Path:
    """Our own copy of the cells."""
    if upload.state != "accepted" or upload.stored is None:
        raise Problem(409, "not_accepted", "The file is not accepted (yet).", "Wait for the check, or send another.")
    return folder(server, upload.id) / upload.stored


def folder(server: Server, upload_id: str) -> Path:
    """Where an upload lives."""
    return server.settings.folder("uploads") / upload_id


def part(server: Server, upload_id: str) -> Path:
    """The bytes as they come."""
    return folder(server, upload_id) / "received"


def _change(server: Server, upload_id: str, **values: Any) -> Upload:
    with session(server.engine) as db:
        upload = db.get(Upload, upload_id)
        if upload is None:
            raise not_found()
        for name, value in values.items():
            setattr(upload, name, value)
    return upload


def _shown(filename: str) -> str:
    """A name fit for showing: its last part, printable and short."""
    name = re.split(r"[/\\]", filename)[-1]
    return "".join(c for c in name if c.isprintable()).strip()[:120] or "upload"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_secret(value: str) -> bool:
    """Whether this looks like the id of an upload rather than the key of a study."""
    return len(value) >= 30 and _SAFE_ID.fullmatch(value) is not None
