"""What is known of the files in the cache: digests seen, where each came from, licences accepted."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from scdrugmap._errors import DownloadError
from scdrugmap._files import write_text
from scdrugmap.download.catalog import Entry, FileSpec, normalise

Record = dict[str, Any]


def root() -> Path:
    """Return the cache folder."""
    from scdrugmap.settings import settings

    return Path(settings.cache_dir).expanduser()


def folder_of(entry: Entry) -> Path:
    """Folder of an entry, in the layout that the official code expects."""
    return root() / entry.kind / entry.key


def staging_of(entry: Entry) -> Path:
    """Folder of an entry's unfinished downloads."""
    return root() / entry.kind / ".staging" / entry.key


def lock_of(entry: Entry) -> FileLock:
    """Lock that makes parallel processes fetch an entry once."""
    path = root() / entry.kind / ".locks" / f"{entry.key}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path)


def ledger_path() -> Path:
    """Path of the user's lock file: JSON, one record per file ever seen."""
    return root() / "digests.json"


def read(path: Path | None = None) -> dict[str, Record]:
    """Return every record of the lock file, by ``kind/key/name``."""
    path = path or ledger_path()
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise DownloadError(
            f"{path}: the record of digests cannot be read ({error}). Fix: repair it, or delete it to start afresh "
            "(files without a published digest are then trusted once more)."
        ) from error


def change(edit: Callable[[dict[str, Record]], Any], path: Path | None = None) -> None:
    """Apply ``edit`` to the records, one process at a time, and replace the file in one step."""
    path = path or ledger_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        records = read(path)
        edit(records)
        write_text(path, json.dumps(records, indent=1, sort_keys=True))


def name_of(entry: Entry, spec: FileSpec) -> str:
    """Name of a file in the records."""
    return f"{entry.kind}/{entry.key}/{spec.name}"


def stamp(path: Path) -> Record:
    """Size and modification time: while both stay, a verified file is taken to be unchanged."""
    stat = path.stat()
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def unchanged(path: Path, record: Record) -> bool:
    """Whether size and modification time are those of the record."""
    return stamp(path) == {k: record.get(k) for k in ("size", "mtime_ns")}


def note(entry: Entry, spec: FileSpec, record: Record) -> None:
    """Write the record of one file."""
    change(lambda records: records.__setitem__(name_of(entry, spec), {**record, "date": now()}))


def now() -> str:
    """Time of day for a record, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def accepted(entry: Entry) -> bool:
    """Whether the user has accepted the licence of an entry, in the environment or in an earlier call."""
    given = {normalise(k) for k in os.environ.get("SCDRUGMAP_ACCEPT_LICENCE", "").split(",")}
    if given & {"all", *map(normalise, (entry.key, *entry.aliases))}:
        return True
    return f"{entry.kind}/{entry.key}" in read(root() / "licences.json")


def accept(entry: Entry) -> None:
    """Remember that the user has accepted the licence of an entry."""
    record = {"licence": entry.licence, "url": entry.licence_url, "date": now()}
    change(lambda records: records.__setitem__(f"{entry.kind}/{entry.key}", record), root() / "licences.json")


def same_bytes(sha256: str) -> Path | None:
    """Return a verified file of the cache with this digest, if there is one."""
    for name, record in read().items():
        path = root() / name
        if record.get("sha256") == sha256 and path.is_file() and unchanged(path, record):
            return path
    return None
