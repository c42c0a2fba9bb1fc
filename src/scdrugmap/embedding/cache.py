"""Finished embeddings by content: computed once, kept while they fit, listed and cleared by command."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from scdrugmap._files import atomic_file, write_json

if TYPE_CHECKING:
    import pandas as pd


def content_key(fingerprint: str, blocks: Iterable[sparse.csr_matrix], groups: np.ndarray | None) -> str:
    """Return a SHA-256 over everything that decides the values, down to the last count.

    Parameters
    ----------
    fingerprint
        Model, checkpoint, options, genes, arithmetic.
    blocks
        All rows of counts, in order.
    groups
        Group of each cell, or ``None``.
    """
    # One digest per part, so that the key does not depend on how many rows were read at a time.
    parts = [hashlib.sha256() for _ in range(3)]
    for X in blocks:
        arrays = ((np.diff(X.indptr), np.int64), (X.indices, np.int64), (X.data, np.float64))
        for part, (array, dtype) in zip(parts, arrays, strict=True):
            part.update(np.ascontiguousarray(array, dtype=dtype).data)
    digest = hashlib.sha256(fingerprint.encode())
    for part in parts:
        digest.update(part.digest())
    if groups is not None:
        digest.update(np.unique(groups, return_inverse=True)[1].astype(np.int64).data)
    return digest.hexdigest()


def folder() -> Path:
    """Return the folder of the cache, from ``settings.cache_dir``."""
    from scdrugmap.settings import settings

    return Path(settings.cache_dir).expanduser() / "embeddings"


def load(folder: Path, key: str) -> np.ndarray | None:
    """Return the cached values, or ``None``; what is read counts as used now."""
    file = folder / f"{key}.npy"
    try:
        values: np.ndarray = np.load(file, allow_pickle=False)
    except FileNotFoundError:
        return None
    with contextlib.suppress(OSError):  # a cache that is shared may be readable only
        os.utime(file)
    return values


def save(folder: Path, key: str, values: np.ndarray, *, model: str = "", limit: int | None = None) -> None:
    """Keep values, and drop those that were not used for longest until all fit; a kill leaves no half file.

    Parameters
    ----------
    folder
        Folder of the cache.
    key
        As of :func:`content_key`.
    values
        The embedding; not kept if it alone is larger than the limit.
    model
        Name of the model, for the listing.
    limit
        Bytes of all entries; by default ``settings.embedding_cache_size``.
    """
    from scdrugmap.settings import settings

    limit = int(settings.embedding_cache_size) if limit is None else limit
    if values.nbytes > limit:
        return
    with atomic_file(folder / f"{key}.npy") as file:
        np.save(file, values, allow_pickle=False)
    about = {"model": model, "cells": len(values), "date": datetime.now(UTC).isoformat(timespec="seconds")}
    write_json(folder / f"{key}.json", about)
    _evict(folder, limit, keep=key)


def listing(folder: Path | None = None) -> pd.DataFrame:
    """List the cached embeddings, those used last first.

    Parameters
    ----------
    folder
        By default that of ``settings.cache_dir``.

    Returns
    -------
    One row per entry: ``key``, ``model`` and ``cells`` (empty for entries of version 0.1), ``size`` in bytes,
    ``made``, ``used``.

    Examples
    --------
    >>> from pathlib import Path
    >>> from scdrugmap.embedding import cache
    >>> len(cache.listing(Path("a_folder_that_is_not_there")))
    0
    """
    import pandas as pd

    rows = []
    for file, size, used in _entries(_folder(folder)):
        about = _about(file)
        when = datetime.fromtimestamp(used, UTC).isoformat(timespec="seconds")
        rows.append((file.stem, about.get("model", ""), about.get("cells"), size, about.get("date", ""), when))
    table = pd.DataFrame(rows, columns=["key", "model", "cells", "size", "made", "used"])
    return table.astype({"cells": "Int64", "size": "int64"})[::-1].reset_index(drop=True)


def size(folder: Path | None = None) -> int:
    """Return the bytes of all cached embeddings.

    Parameters
    ----------
    folder
        By default that of ``settings.cache_dir``.

    Examples
    --------
    >>> from pathlib import Path
    >>> from scdrugmap.embedding import cache
    >>> cache.size(Path("a_folder_that_is_not_there"))
    0
    """
    return sum(size for _, size, _ in _entries(_folder(folder)))


def clear(folder: Path | None = None, *, older_than: float | None = None) -> int:
    """Delete cached embeddings.

    Parameters
    ----------
    folder
        By default that of ``settings.cache_dir``.
    older_than
        Only entries that were not used for this many days.

    Returns
    -------
    Number of bytes that were freed.

    Examples
    --------
    >>> from pathlib import Path
    >>> from scdrugmap.embedding import cache
    >>> cache.clear(Path("a_folder_that_is_not_there"))
    0
    """
    before = math.inf if older_than is None else time.time() - older_than * 86400
    freed = 0
    for file, size, used in _entries(_folder(folder)):
        if used < before:
            _drop(file)
            freed += size
    return freed


def _folder(given: Path | None) -> Path:
    return folder() if given is None else Path(given)


def _entries(folder: Path) -> list[tuple[Path, int, float]]:
    """File, bytes and time of the last use of each entry, that used longest ago first."""
    found = []
    for file in folder.glob("[!.]*.npy"):
        with contextlib.suppress(FileNotFoundError):  # another process may be evicting
            stat = file.stat()
            found.append((file, stat.st_size, stat.st_mtime))
    return sorted(found, key=lambda entry: entry[2])


def _about(file: Path) -> dict[str, Any]:
    try:
        about = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


def _evict(folder: Path, limit: int, *, keep: str) -> None:
    entries = _entries(folder)
    total = sum(size for _, size, _ in entries)
    for file, size, _ in entries:
        if total <= limit:
            return
        if file.stem != keep:
            _drop(file)
            total -= size


def _drop(file: Path) -> None:
    file.unlink(missing_ok=True)
    file.with_suffix(".json").unlink(missing_ok=True)
