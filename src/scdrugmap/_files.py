"""The one way to write a file or a folder: whole or not at all, on the disk before it is named, with the umask's modes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a free name beside ``path`` that takes its place when the block ends, and is removed when it fails.

    Parameters
    ----------
    path
        The file to write; its folder is made where it does not exist. The temporary name keeps the ending, by which
        some writers choose the format.

    Examples
    --------
    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "table.csv"
    >>> with atomic_path(target) as temporary:
    ...     _ = temporary.write_text("a,b")
    >>> target.read_text()
    'a,b'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem[:100]}.{uuid.uuid4().hex[:12]}.partial{path.suffix}")
    try:
        yield temporary
        place(temporary, path)
    finally:
        _discard(temporary)


def place(finished: Path, path: Path) -> None:
    """Give a finished file its name: readable as the umask says, on the disk first, in one step.

    Parameters
    ----------
    finished
        A complete file on the same file system.
    path
        Its name; a file that is there is replaced.
    """
    _open_to_readers(finished)
    _flush(finished)
    finished.replace(path)
    _flush(path.parent)


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Yield a file open for writing that becomes ``path`` when the block ends.

    Parameters
    ----------
    path
        The file to write.
    mode
        ``"wb"`` or ``"w"`` (UTF-8).

    Examples
    --------
    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "notes.txt"
    >>> with atomic_file(target, "w") as file:
    ...     _ = file.write("kept")
    >>> target.read_text()
    'kept'
    """
    with atomic_path(path) as temporary, temporary.open(mode, encoding=None if "b" in mode else "utf-8") as file:
        yield file


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a new folder that becomes ``path`` when the block ends; a folder that was there is replaced as a whole.

    Parameters
    ----------
    path
        The folder to write.

    Examples
    --------
    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "predictor"
    >>> with atomic_folder(target) as folder:
    ...     _ = (folder / "card.md").write_text("card")
    >>> [file.name for file in target.iterdir()]
    ['card.md']
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = (path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.{word}") for word in ("partial", "old"))
    fresh.mkdir()
    try:
        yield fresh
        for file in fresh.rglob("*"):
            if file.is_file():
                _open_to_readers(file)
            _flush(file)
        if path.is_dir():
            path.replace(old)
        fresh.replace(path)
        _flush(path.parent)
    except BaseException:
        if old.exists() and not path.exists():
            old.replace(path)
        raise
    finally:
        _discard(fresh)
        _discard(old)


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write bytes, whole or not at all."""
    with atomic_file(path) as file:
        file.write(content)


def write_text(path: str | os.PathLike[str], content: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    with atomic_file(path, "w") as file:
        file.write(content)


def write_json(path: str | os.PathLike[str], content: Any, *, indent: int | None = 1) -> None:
    """Write JSON, whole or not at all; what JSON cannot hold is written as text."""
    write_text(path, json.dumps(content, indent=indent, default=str))


def _open_to_readers(file: Path) -> None:
    """Give a file that its writer kept private (``safetensors`` and ``mkstemp`` do) the mode of any new file."""
    if file.is_symlink() or file.stat().st_mode & 0o077:
        return
    # The umask cannot be read without changing it for all threads; a new file tells it.
    probe = file.with_name(f".{uuid.uuid4().hex[:12]}.mode")
    probe.touch()
    try:
        file.chmod(probe.stat().st_mode & 0o777)
    finally:
        probe.unlink()


def _flush(path: Path) -> None:
    """Ask the disk to keep what was written; some file systems cannot for folders."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def _discard(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
