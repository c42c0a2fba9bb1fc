"""Files brought into their place: checked, linked or copied, unpacked, recorded."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pooch
from filelock import Timeout

from scdrugmap._files import place
from scdrugmap._logging import get_logger
from scdrugmap.download import archives, inventory, ledger
from scdrugmap.download.catalog import Entry, FileSpec
from scdrugmap.download.transfer import need_space


@contextlib.contextmanager
def locked(entry: Entry) -> Iterator[None]:
    """Hold the entry's lock; say so where another process has it."""
    lock = ledger.lock_of(entry)
    try:
        lock.acquire(timeout=0.2)
    except Timeout:
        get_logger().warning("%s: another process is fetching it; waiting.", entry.key)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def settle(
    entry: Entry, spec: FileSpec, path: Path, *, origin: str, url: str, digest: str | None = None, trust: bool = False
) -> None:
    """Check a file, put it into place, record it; an archive leaves its members instead of itself."""
    inventory.adopt(entry, spec, path, origin=origin, url=url, digest=digest, trust=trust)
    folder = ledger.folder_of(entry)
    final = folder / spec.name
    final.parent.mkdir(parents=True, exist_ok=True)
    record = ledger.read()[ledger.name_of(entry, spec)]
    if spec.unpack is None:
        place(path, final)
        return ledger.note(entry, spec, record | ledger.stamp(final))
    members = archives.unpack(path, folder / spec.unpack)
    path.unlink()
    note_members(entry, spec, members, {k: v for k, v in record.items() if k != "mtime_ns"})


def note_members(entry: Entry, spec: FileSpec, members: list[Path], record: ledger.Record) -> None:
    """Record the files that stand for an archive."""
    folder = ledger.folder_of(entry)
    digests = {
        m.relative_to(folder).as_posix(): {"sha256": pooch.file_hash(str(m)), **ledger.stamp(m)} for m in members
    }
    ledger.note(entry, spec, record | {"members": digests})


def bring(source: Path, target: Path, *, copy: bool) -> None:
    """Copy or link; a file system without links gets a copy."""
    if not copy:
        try:
            return target.symlink_to(source.resolve())
        except OSError:
            get_logger().warning("%s: links are not possible here, copying.", target)
    need_space(target.parent, source.stat().st_size)
    shutil.copyfile(source, target)
