"""Files that the user already has."""

from __future__ import annotations

import os
from pathlib import Path

from scdrugmap._errors import InputError
from scdrugmap._logging import get_logger
from scdrugmap.download import inventory, ledger
from scdrugmap.download.catalog import Entry, FileSpec, Kind, find
from scdrugmap.download.placement import bring, locked, note_members, settle


def register_local(
    kind: Kind, key: str, path: str | os.PathLike[str], *, copy: bool = False, trust: bool = False
) -> Path:
    """Use files that are already on this machine.

    Parameters
    ----------
    kind
        ``"checkpoints"`` or ``"datasets"``.
    key
        Key or alias.
    path
        A folder that holds the files under their official names (archives may be unpacked), or one file.
    copy
        Copy the files into the cache; else the cache links to where they lie.
    trust
        Use files whose digest differs from the registered one, with a warning.

    Returns
    -------
    The entry's folder.

    Raises
    ------
    InputError
        If nothing at ``path`` belongs to the entry.
    IntegrityError
        If a file is not the registered one and ``trust`` is false; the cache is left as it was.

    Examples
    --------
    >>> from scdrugmap import download
    >>> download.register_local("checkpoints", "scfoundation", "/data/models.ckpt")  # doctest: +SKIP
    """
    entry, given = find(kind, key), Path(path).expanduser().resolve()
    pairs, folders = _match(entry, given), _unpacked(entry, given)
    if not pairs and not folders:
        names = ", ".join(f.name for f in entry.files) or "no files"
        raise InputError("path", str(given), f"files of {entry.key} ({names})", "use the official file names.")
    with locked(entry):
        folder = ledger.folder_of(entry)
        for spec, source in pairs:
            final = folder / spec.name
            final.parent.mkdir(parents=True, exist_ok=True)
            scratch = final.with_name(f".{final.name}.new")
            scratch.unlink(missing_ok=True)
            bring(source, scratch, copy=copy or spec.unpack is not None)
            try:
                settle(entry, spec, scratch, origin="local file", url=str(source), trust=trust)
            finally:
                scratch.unlink(missing_ok=True)
        for spec, source in folders:
            _take_folder(entry, spec, source, copy=copy)
        left = [s.name for s in entry.files if s.required and not inventory.ready(entry, s)]
    if left:
        get_logger().warning("%s is not complete yet; still missing: %s", entry.key, ", ".join(left))
    return folder


def _match(entry: Entry, given: Path) -> list[tuple[FileSpec, Path]]:
    """Pair the files of an entry with what lies at a local path."""
    if not given.exists():
        raise InputError("path", str(given), "an existing file or folder", "check the spelling.")
    if given.is_dir():
        spots = [(s, p) for s in entry.files for p in (given / s.name, given / Path(s.name).name) if p.is_file()]
        pairs = list({s.name: (s, p) for s, p in reversed(spots)}.values())
    else:
        pairs = [(s, given) for s in entry.files if Path(s.name).name == given.name]
        required = [s for s in entry.files if s.required]
        pairs = pairs or [(s, given) for s in required if len(required) == 1]
    return pairs


def _unpacked(entry: Entry, given: Path) -> list[tuple[FileSpec, Path]]:
    """Folders at a local path that hold what an archive of the entry would leave."""
    if not given.is_dir():
        return []
    archives = [s for s in entry.files if s.unpack is not None and not (given / s.name).is_file()]
    places = [(s, given / s.name.removesuffix(".gz").removesuffix(".tar").removesuffix(".zip")) for s in archives]
    return [(s, p) for s, p in places if p.is_dir()]


def _take_folder(entry: Entry, spec: FileSpec, source: Path, *, copy: bool) -> None:
    """Bring the members of an archive that was unpacked by the user, and record their digests."""
    target = ledger.folder_of(entry) / (spec.unpack or ".") / source.name
    members = []
    for path in sorted(p for p in source.rglob("*") if p.is_file()):
        final = target / path.relative_to(source)
        final.parent.mkdir(parents=True, exist_ok=True)
        final.unlink(missing_ok=True)
        bring(path, final, copy=copy)
        members.append(final)
    note_members(entry, spec, members, {"origin": "local folder", "url": str(source), "grade": spec.grade})
    get_logger().warning(
        "%s: %d files stand for %s; the archive's digest cannot be checked, theirs were recorded.",
        entry.key,
        len(members),
        spec.name,
    )
