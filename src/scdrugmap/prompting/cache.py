"""Answers on disk: one JSON file per request, so that a killed run resumes and a repeated one costs nothing."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from scdrugmap._files import write_text


class ResponseCache:
    """Answers by the digest of their request; several threads and processes may write at once.

    Parameters
    ----------
    folder
        Where the files are; ``None`` keeps nothing.

    Examples
    --------
    >>> import tempfile
    >>> cache = ResponseCache(Path(tempfile.mkdtemp()))
    >>> cache.put("ab12", {"text": "1"})
    >>> cache.get("ab12"), cache.get("cd34")
    ({'text': '1'}, None)
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def path(self, key: str) -> Path | None:
        """Return the file of a request."""
        return None if self.folder is None else self.folder / key[:2] / f"{key}.json"

    def get(self, key: str) -> dict[str, Any] | None:
        """Return an answer, or ``None``; a file that is no answer counts as absent."""
        path = self.path(key)
        if path is None:
            return None
        try:
            entry = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return entry if isinstance(entry, dict) else None

    def put(self, key: str, entry: dict[str, Any]) -> None:
        """Keep an answer; a kill leaves the old file or the new one."""
        path = self.path(key)
        if path is not None:
            write_text(path, json.dumps(entry, ensure_ascii=False))


def folder() -> Path:
    """Return the folder of the answers, from ``settings.cache_dir``."""
    from scdrugmap.settings import settings

    return Path(settings.cache_dir).expanduser() / "prompting"


def clear(*, older_than: float | None = None) -> int:
    """Delete answers; asking again may cost money.

    Parameters
    ----------
    older_than
        Only answers that came more than this many days ago.

    Returns
    -------
    Number of bytes that were freed.
    """
    before = math.inf if older_than is None else time.time() - older_than * 86400
    freed = 0
    for file in folder().glob("??/*.json"):
        about = file.stat()
        if about.st_mtime < before:
            file.unlink()
            freed += about.st_size
    return freed
