"""Finished embeddings by content: the same cells, genes, checkpoint and options are computed once."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from scipy import sparse


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


def load(folder: Path, key: str) -> np.ndarray | None:
    """Return the cached values, or ``None``."""
    file = folder / f"{key}.npy"
    return np.load(file, allow_pickle=False) if file.exists() else None


def save(folder: Path, key: str, values: np.ndarray) -> None:
    """Keep values; a kill leaves no half file."""
    folder.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder, suffix=".partial")
    with os.fdopen(handle, "wb") as file:
        np.save(file, values, allow_pickle=False)
    Path(temporary).replace(folder / f"{key}.npy")
