"""What the cache holds: look, verify, list, remove."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pooch

from scdrugmap._errors import IntegrityError, ScDrugMapWarning
from scdrugmap.download import ledger
from scdrugmap.download.catalog import Entry, FileSpec, Kind, entries, expand, find

if TYPE_CHECKING:
    import pandas as pd

State = Literal["ok", "absent", "altered", "unrecorded"]


def paths_of(entry: Entry, spec: FileSpec) -> list[Path]:
    """Files that stand for one file of the registry: itself, or what its archive held."""
    folder = ledger.folder_of(entry)
    if spec.unpack is None:
        return [folder / spec.name]
    return [folder / m for m in ledger.read().get(ledger.name_of(entry, spec), {}).get("members", {})]


def state(entry: Entry, spec: FileSpec, *, thorough: bool = False) -> State:
    """Compare one file with its record; ``thorough`` hashes it again."""
    record = ledger.read().get(ledger.name_of(entry, spec))
    if record is None or ("mtime_ns" not in record and "members" not in record):
        return "unrecorded" if spec.unpack is None and (ledger.folder_of(entry) / spec.name).is_file() else "absent"
    expected = record.get("members", {spec.name: record})
    for name, seen in expected.items():
        path = ledger.folder_of(entry) / name
        if not path.is_file():
            return "absent"
        if (thorough or not ledger.unchanged(path, seen)) and pooch.file_hash(str(path)) != seen["sha256"]:
            return "altered"
    return "ok"


def ready(entry: Entry, spec: FileSpec) -> bool:
    """Whether a file can be used as it lies; one that was put there by hand is checked and recorded first."""
    found = state(entry, spec)
    if found == "unrecorded":
        adopt(entry, spec, ledger.folder_of(entry) / spec.name, origin="found in the cache")
        return True
    if found == "altered":
        warnings.warn(
            f"{ledger.name_of(entry, spec)} has changed since it was verified; it is fetched again.",
            ScDrugMapWarning,
            stacklevel=4,
        )
        for path in paths_of(entry, spec):
            path.unlink(missing_ok=True)
    record = ledger.read().get(ledger.name_of(entry, spec), {})
    path = ledger.folder_of(entry) / spec.name
    if found == "ok" and "mtime_ns" in record and not ledger.unchanged(path, record):
        ledger.note(entry, spec, record | ledger.stamp(path))  # else it would be hashed again in every call
    return found == "ok"


def adopt(
    entry: Entry,
    spec: FileSpec,
    path: Path,
    *,
    origin: str,
    url: str = "",
    digest: str | None = None,
    trust: bool = False,
) -> None:
    """Check a file that lies in its final place against every digest that is known, and record it."""
    from scdrugmap._logging import get_logger

    name, seen = ledger.name_of(entry, spec), ledger.read().get(ledger.name_of(entry, spec), {})
    sha256 = pooch.file_hash(str(path))
    for known, by in (
        (spec.digest, f"the registry (evidence {spec.grade})"),
        (digest, "the provider"),
        *_earlier(spec, seen),
    ):
        if known and not pooch.hashes.hash_matches(str(path), known):
            message = f"{name}: sha256 {sha256} is not the digest {known} of {by}."
            if not trust:
                raise IntegrityError(f"{message} Fix: get the file from {entry.source or 'its source'}; {_TRUST}")
            warnings.warn(f"{message} It is used because trust=True.", ScDrugMapWarning, stacklevel=3)
            origin = f"{origin}, trusted by the user"
    if not (spec.digest or digest or seen.get("sha256")):
        get_logger().warning(
            "%s: no digest is published. sha256 %s was recorded in %s; from now on the file is compared with it.",
            name,
            sha256,
            ledger.ledger_path(),
        )
    ledger.note(
        entry, spec, {"sha256": sha256, **ledger.stamp(path), "origin": origin, "url": url, "grade": spec.grade}
    )


_TRUST = "if you are sure of yours, register_local(..., trust=True) records it as it is."


def _earlier(spec: FileSpec, seen: ledger.Record) -> list[tuple[str | None, str]]:
    """Digest of the first download, where nothing better is known."""
    return [] if spec.digest else [(seen.get("sha256"), f"the first download ({seen.get('date')})")]


def where(kind: Kind, key: str) -> Path | None:
    """Folder of a complete entry.

    Parameters
    ----------
    kind
        ``"checkpoints"`` or ``"datasets"``.
    key
        Key or alias.

    Returns
    -------
    The folder, or ``None`` if a required file is not there.

    Raises
    ------
    UnknownNameError
        If nothing has that name.

    Examples
    --------
    >>> from scdrugmap import download
    >>> download.where("checkpoints", "tgpt")  # doctest: +SKIP
    """
    entry = find(kind, key)
    complete = all(state(entry, f) in ("ok", "unrecorded") for f in entry.files if f.required)
    return ledger.folder_of(entry) if entry.files and complete else None


def verify(kind: Kind | None = None, key: str | None = None) -> pd.DataFrame:
    """Hash the files of the cache again and compare them with the registry and the record.

    Parameters
    ----------
    kind
        Registry; both if left out.
    key
        One entry; everything that is there if left out.

    Returns
    -------
    One row per file: ``kind``, ``key``, ``file``, ``state`` (``ok``, ``altered``, ``absent``, ``unrecorded``),
    ``sha256``, ``origin`` (who vouches for the digest), ``grade``, ``date``.

    Raises
    ------
    UnknownNameError
        If nothing has that name.

    Examples
    --------
    >>> from scdrugmap import download
    >>> list(download.verify("checkpoints").columns[:4])
    ['kind', 'key', 'file', 'state']
    """
    import pandas as pd

    kinds: tuple[Kind, ...] = (kind,) if kind else ("checkpoints", "datasets")
    records, rows = ledger.read(), []
    for each in kinds:
        for entry in [find(each, key)] if key else entries(each).values():
            for spec in entry.files:
                found = state(entry, spec, thorough=True)
                if found == "absent" and not key:
                    continue
                seen = records.get(ledger.name_of(entry, spec), {})
                rows.append(
                    (
                        each,
                        entry.key,
                        spec.name,
                        found,
                        seen.get("sha256"),
                        seen.get("origin"),
                        spec.grade,
                        seen.get("date"),
                    )
                )
    return pd.DataFrame(rows, columns=["kind", "key", "file", "state", "sha256", "origin", "grade", "date"])


def remove(kind: Kind, key: str, *, forget: bool = False) -> int:
    """Delete an entry from the cache.

    Parameters
    ----------
    kind
        ``"checkpoints"`` or ``"datasets"``.
    key
        Key or alias.
    forget
        Also drop the digests of first downloads; else a later download is still compared with them.

    Returns
    -------
    Number of bytes that were freed.

    Raises
    ------
    UnknownNameError
        If nothing has that name.

    Examples
    --------
    >>> from scdrugmap import download
    >>> download.remove("checkpoints", "tgpt")  # doctest: +SKIP
    """
    entry = find(kind, key)
    freed = 0
    with ledger.lock_of(entry):
        for folder in (ledger.folder_of(entry), ledger.staging_of(entry)):
            freed += sum(p.lstat().st_size for p in folder.rglob("*") if p.is_file() or p.is_symlink())
            shutil.rmtree(folder, ignore_errors=True)

        def edit(records: dict[str, ledger.Record]) -> None:
            for name in [n for n in records if n.startswith(f"{kind}/{entry.key}/")]:
                kept = {k: v for k, v in records.pop(name).items() if k not in ("mtime_ns", "members")}
                if not forget:
                    records[name] = kept

        ledger.change(edit)
    return freed


def info(kind: Kind, key: str) -> Entry:
    """Everything that the registry knows of an entry; print it to read it.

    Parameters
    ----------
    kind
        ``"checkpoints"`` or ``"datasets"``.
    key
        Key or alias.

    Returns
    -------
    The entry; ``str()`` of it is a page to read, ``.model_dump()`` a dictionary.

    Raises
    ------
    UnknownNameError
        If nothing has that name.

    Examples
    --------
    >>> from scdrugmap import download
    >>> print(download.info("checkpoints", "tgpt"))  # doctest: +ELLIPSIS
    tgpt-64: ...
    """
    return find(kind, key)


def listing(kind: Kind, *, files: bool = False) -> pd.DataFrame:
    """Table of a registry.

    Parameters
    ----------
    kind
        ``"checkpoints"`` or ``"datasets"``.
    files
        One row per file with address and digest, to fill the cache of a machine without internet by other means
        (put each file at ``cache_dir/<kind>/<key>/<file>``), instead of one row per entry.

    Returns
    -------
    The table.

    Raises
    ------
    UnknownNameError
        If there is no such registry.

    Examples
    --------
    >>> from scdrugmap import download
    >>> "grade" in download.listing("checkpoints").columns
    True
    """
    import pandas as pd

    table = entries(kind)
    if files:
        rows = [
            (e.key, f.name, f.required, f.size, f.digest, f.grade, expand(u))
            for e in table.values()
            for f in e.files
            for u in f.urls or ("",)
        ]
        frame = pd.DataFrame(rows, columns=["key", "file", "required", "size", "digest", "grade", "url"])
        return frame.astype({"size": "Int64"})
    have = {
        n.split("/")[1]
        for n, r in ledger.read().items()
        if n.startswith(f"{kind}/") and ("mtime_ns" in r or "members" in r)
    }
    frame = pd.DataFrame(
        {
            "key": list(table),
            "title": [e.title for e in table.values()],
            "model" if kind == "checkpoints" else "series": [e.model or e.series for e in table.values()],
            "files": [len(e.files) for e in table.values()],
            "size": pd.array([e.size for e in table.values()], dtype="Int64"),
            "grade": [e.grade for e in table.values()],
            "scripted": [all(f.urls for f in e.files if f.required) for e in table.values()],
            "licence": [e.licence for e in table.values()],
            "non_commercial": [e.non_commercial for e in table.values()],
            "gated": [e.gated for e in table.values()],
            "cached": [k in have and where(kind, k) is not None for k in table],
            "source": [e.source for e in table.values()],
        }
    )
    return frame.set_index("key")
