"""Fetch an entry of a registry: permission, lock, transfer, check, placement, record."""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import pooch

from scdrugmap._errors import (
    DownloadError,
    IntegrityError,
    LicenceError,
    OfflineError,
    ScDrugMapError,
    UnknownNameError,
)
from scdrugmap._files import write_text
from scdrugmap._logging import get_logger
from scdrugmap.download import doi, inventory, ledger
from scdrugmap.download.catalog import Entry, FileSpec, Kind, expand, find, hf_endpoint, licence_line
from scdrugmap.download.placement import bring, locked, settle
from scdrugmap.download.transfer import Progress, Transfer, need_space


def fetch(
    kind: Kind,
    key: str,
    *,
    files: str | Iterable[str] | None = None,
    accept_licence: bool = False,
    progress: Progress = None,
) -> Path:
    """Make sure that an entry is in the cache, verified, and return its folder.

    A broken transfer continues where it stopped, also in another process; processes that ask for the same entry
    wait for each other and fetch it once; a file appears under its name only after its digest was checked. Where
    nobody has published a digest, that of the first download is recorded in ``<cache_dir>/digests.json`` and every
    later file is compared with it.

    Parameters
    ----------
    kind
        ``"checkpoints"`` or ``"datasets"``.
    key
        Key or alias of the entry, whatever its case and punctuation.
    files
        Names or patterns of files; all required ones if left out.
    accept_licence
        Accept the licence of non-commercial or gated files. Remembered; ``SCDRUGMAP_ACCEPT_LICENCE`` (keys, or
        ``all``) does the same.
    progress
        ``None`` shows a bar on a terminal, ``True`` or ``False`` force it, an object with ``total``, ``update``,
        ``reset`` and ``close`` replaces it.

    Returns
    -------
    The entry's folder, in the layout that the official code expects.

    Raises
    ------
    UnknownNameError
        If nothing has that name.
    LicenceError
        If the licence has to be accepted, or the host wants a login.
    OfflineError
        If the entry is not in the cache and ``settings.offline`` (or ``HF_HUB_OFFLINE``) is set.
    IntegrityError
        If a file is not the registered one.
    DownloadError
        If no address works; the message says what to do instead.

    Notes
    -----
    ``settings.mirror`` is tried before the registered addresses, as ``<mirror>/<kind>/<key>/<file>``; the digests
    stay the same, so a mirror needs no trust. ``HF_TOKEN`` is sent to Hugging Face for gated entries only.

    Examples
    --------
    >>> from scdrugmap import download
    >>> download.fetch("checkpoints", "scgpt")  # doctest: +SKIP
    """
    entry = find(kind, key)
    specs, folder = _select(entry, files), ledger.folder_of(entry)
    if specs and all(inventory.state(entry, s) == "ok" for s in specs):
        return folder
    with locked(entry):
        folder.mkdir(parents=True, exist_ok=True)
        missing = [s for s in specs if not inventory.ready(entry, s)]
        if not missing:
            return folder
        if _offline():
            raise OfflineError(_offline_message(entry, missing))
        _permit(entry, missing, accept_licence)
        need_space(folder, sum(s.size or 0 for s in missing) - _staged(entry))
        for spec in missing:
            _fetch_file(entry, spec, progress)
        shutil.rmtree(ledger.staging_of(entry), ignore_errors=True)
    return folder


def _select(entry: Entry, files: str | Iterable[str] | None) -> list[FileSpec]:
    """Files that were asked for."""
    if files is None:
        return [f for f in entry.files if f.required]
    chosen: list[FileSpec] = []
    for pattern in [files] if isinstance(files, str) else files:
        hits = [f for f in entry.files if fnmatch.fnmatch(f.name, pattern)]
        if not hits:
            raise UnknownNameError("files", pattern, [f.name for f in entry.files])
        chosen += [f for f in hits if f not in chosen]
    return chosen


def _offline() -> bool:
    from scdrugmap.settings import settings

    return settings.offline or os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")


def _offline_message(entry: Entry, missing: list[FileSpec]) -> str:
    lines = [f"{entry.key} is not in the cache and offline mode is on. Fix: on a machine with internet fetch"]
    for spec in missing:
        source = expand(spec.urls[0]) if spec.urls else entry.source
        lines.append(
            f"  {source} ({spec.digest or 'digest unknown'}) and put it at {ledger.folder_of(entry) / spec.name}"
        )
    return "\n".join(lines)


def _permit(entry: Entry, missing: list[FileSpec], accept_licence: bool) -> None:
    """Show the licence; refuse where it has to be accepted and was not."""
    get_logger().warning("%s: licence %s", entry.key, licence_line(entry))
    scripted = any(_sources(entry, s) for s in missing)
    if not entry.needs_acceptance or not scripted or ledger.accepted(entry):
        return
    if not accept_licence:
        raise LicenceError(
            f"{entry.key}: {licence_line(entry)}. {entry.manual} Fix: read the licence, then pass accept_licence=True or "
            f"set SCDRUGMAP_ACCEPT_LICENCE={entry.key}."
        )
    ledger.accept(entry)


def _staged(entry: Entry) -> int:
    return sum(p.stat().st_size for p in ledger.staging_of(entry).rglob("*.part"))


def _sources(entry: Entry, spec: FileSpec) -> list[tuple[str, bool]]:
    """Addresses of a file in the order in which they are tried, and whether each holds the final bytes."""
    from scdrugmap.settings import settings

    mirror = [f"{settings.mirror.rstrip('/')}/{entry.kind}/{entry.key}/{quote(spec.name)}"] if settings.mirror else []
    return [(u, True) for u in mirror] + [(expand(u), spec.convert is None) for u in spec.urls]


def _fetch_file(entry: Entry, spec: FileSpec, progress: Progress) -> None:
    """Bring one file from the first address that works."""
    twin = ledger.same_bytes(spec.sha256) if spec.sha256 and not spec.unpack else None
    if twin is not None:
        scratch = ledger.staging_of(entry) / spec.name
        scratch.parent.mkdir(parents=True, exist_ok=True)
        scratch.unlink(missing_ok=True)
        try:
            os.link(twin.resolve(), scratch)
        except OSError:  # another disk, or a file system without hard links
            bring(twin, scratch, copy=True)
        return settle(entry, spec, scratch, origin="registry", url=str(twin))
    failures: list[ScDrugMapError] = []
    for url, plain in _sources(entry, spec):
        try:
            return _download(entry, spec, url, plain, progress)
        except (DownloadError, LicenceError) as error:
            get_logger().warning("%s", error)
            failures.append(error)
    raise _gave_up(entry, spec, failures)


def _gave_up(entry: Entry, spec: FileSpec, failures: list[ScDrugMapError]) -> ScDrugMapError:
    """One error that tells what was tried and what to do."""
    tried = "".join(f"\n  {e}" for e in failures) or " no address can be fetched by a script."
    by_hand = entry.manual or f"get {spec.name} from {entry.source}."
    kinds = {type(e) for e in failures}
    error = kinds.pop() if len(kinds) == 1 else DownloadError
    return error(
        f"{entry.key}: {spec.name} could not be fetched:{tried}\nBy hand: {by_hand}\nThen: "
        f"scdrugmap.download.register_local({entry.kind!r}, {entry.key!r}, '/path/to/{spec.name}')"
    )


def _download(entry: Entry, spec: FileSpec, url: str, plain: bool, progress: Progress) -> None:
    """Bring one file from one address through pooch, which checks the digest before it gives the file its name."""
    staged = ledger.staging_of(entry) / spec.name
    staged.parent.mkdir(parents=True, exist_ok=True)
    address, provided = doi.resolve(url) if url.startswith("doi:") else (url, None)
    # one part per address: an address that fails must not cost the bytes that another has brought
    part = staged.with_name(f"{staged.name}.{hashlib.sha256(address.encode()).hexdigest()[:8]}.part")
    transfer = Transfer(
        part,
        size=spec.size if plain else None,
        headers=_credentials(entry, address),
        html=spec.name.endswith((".html", ".htm")),
        progress=progress,
    )
    known = (spec.digest or provided) if plain else None
    if known is None:
        staged.unlink(missing_ok=True)
    try:
        with _quiet_pooch():
            pooch.retrieve(address, known_hash=known, fname=staged.name, path=staged.parent, downloader=transfer)
    except ValueError as error:
        raise IntegrityError(f"{address}: the file is not the one that was registered ({error}).") from error
    except OSError as error:
        if isinstance(error, ScDrugMapError):
            raise
        raise DownloadError(f"{address}: {type(error).__name__}: {error}") from error
    digest = provided or (transfer.provider_sha256 if plain else None)
    origin = "registry" if spec.digest else "provider" if digest else "first download"
    if not plain:
        _write_vocabulary(staged)
    try:
        settle(entry, spec, staged, origin=origin, url=address, digest=digest)
    finally:
        staged.unlink(missing_ok=True)


def _credentials(entry: Entry, url: str) -> dict[str, str]:
    """Token for gated files, sent to the hub and to nobody else."""
    token = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN")
    same_host = urlsplit(url)[:2] == urlsplit(hf_endpoint())[:2]
    return {"Authorization": f"Bearer {token}"} if token and entry.gated and same_host else {}


@contextlib.contextmanager
def _quiet_pooch() -> Iterator[None]:
    """Keep pooch's own log lines back; this package says the same in its own."""
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _write_vocabulary(path: Path) -> None:
    """Turn a JSON list or ``{name: index}`` into one name a line, without a newline at the end."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        names = sorted(data, key=data.__getitem__) if isinstance(data, dict) else [str(n) for n in data]
    except (ValueError, TypeError) as error:
        raise IntegrityError(f"{path.name}: the source is not a JSON vocabulary ({error}).") from error
    write_text(path, "\n".join(n for n in names if not re.fullmatch(r"[<\[].*[>\]]", n)))
