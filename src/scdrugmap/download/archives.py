"""Archives unpacked without letting a member leave the target folder."""

from __future__ import annotations

import shutil
import stat
import tarfile
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from scdrugmap._errors import DownloadError, InputError
from scdrugmap._files import place
from scdrugmap.download.transfer import need_space


def unpack(archive: str | Path, target: str | Path) -> list[Path]:
    """Unpack a tar (plain, gz, bz2, xz) or zip archive.

    Members are first written to a folder beside ``target`` and moved in one by one when all are there, so that
    an interrupted call leaves no half-written member under its final name.

    Parameters
    ----------
    archive
        The archive.
    target
        Folder for its members; made if absent.

    Returns
    -------
    The files that were written, sorted.

    Raises
    ------
    DownloadError
        If a member is absolute, climbs out of the folder, or is a device or an outward link; nothing is written.
    InputError
        If the file is not an archive.

    Examples
    --------
    >>> from scdrugmap.download.archives import unpack
    >>> unpack("GSE1_RAW.tar", "GSE1")  # doctest: +SKIP
    """
    archive, target = Path(archive), Path(target)
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=target.parent) as scratch:
        folder = Path(scratch)
        if zipfile.is_zipfile(archive):
            _unzip(archive, folder)
        elif tarfile.is_tarfile(archive):
            _untar(archive, folder)
        else:
            raise InputError("archive", str(archive), "a tar or zip archive", "check that the download is complete.")
        return _move(folder, target)


def _untar(archive: Path, folder: Path) -> None:
    if not hasattr(tarfile, "data_filter"):
        raise DownloadError(f"{archive}: this Python cannot unpack safely. Fix: update to 3.11.4 or later.")
    try:
        with tarfile.open(archive) as tar:
            members = tar.getmembers()
            need_space(folder, sum(m.size for m in members if m.isfile()))
            tar.extractall(folder, members=members, filter="data")
    except (tarfile.FilterError, tarfile.LinkOutsideDestinationError) as error:
        raise DownloadError(f"{archive}: unsafe member, nothing was unpacked ({error}).") from error
    except (tarfile.TarError, EOFError) as error:
        raise DownloadError(
            f"{archive}: the archive is damaged ({error}). Fix: remove it and fetch it again."
        ) from error


def _unzip(archive: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as bundle:
            members = bundle.infolist()
            for member in members:
                path = PurePosixPath(member.filename.replace("\\", "/"))
                link = stat.S_ISLNK(member.external_attr >> 16)
                if path.is_absolute() or ".." in path.parts or ":" in path.parts[0] or link:
                    raise DownloadError(f"{archive}: unsafe member {member.filename!r}, nothing was unpacked.")
            need_space(folder, sum(m.file_size for m in members))
            bundle.extractall(folder, members)  # noqa: S202  every name was checked above
    except zipfile.BadZipFile as error:
        raise DownloadError(
            f"{archive}: the archive is damaged ({error}). Fix: remove it and fetch it again."
        ) from error


def _move(folder: Path, target: Path) -> list[Path]:
    """Turn inward links into copies, then move every file to its place."""
    for link in [p for p in folder.rglob("*") if p.is_symlink()]:
        real = link.resolve()
        if not real.is_file() or not real.is_relative_to(folder.resolve()):
            raise DownloadError(f"link {link.name!r} does not lead to a file of the archive, nothing was unpacked.")
        link.unlink()
        shutil.copyfile(real, link)
    written = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        final = target / path.relative_to(folder)
        final.parent.mkdir(parents=True, exist_ok=True)
        place(path, final)
        written.append(final)
    return written
