"""An embedding on disk that grows block by block, survives a kill, and is mapped into memory when it is done."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from scdrugmap._errors import InputError, OutputError

#: The values, as NumPy maps them.
FILE = "embedding.npy"


@dataclass(frozen=True)
class EmbeddingStore:
    """Folder with ``embedding.npy`` and a zarr array ``done`` (digest of each finished block's counts).

    Parameters
    ----------
    path
        The folder.
    done
        Digests; zero for a block that is not finished.
    chunks
        The values of a store that version 0.1 began, whose blocks are chunks of a zarr array.
    """

    path: Path
    done: Any
    chunks: Any = None

    @classmethod
    def open(cls, path: str | Path, shape: tuple[int, int], block: int, fingerprint: str) -> EmbeddingStore:
        """Open a store, or begin one.

        Raises
        ------
        InputError
            If the folder belongs to a run with other arguments.
        """
        path = Path(path)
        try:
            group: Any = zarr.open_group(path, mode="a")
            attributes = dict(group.attrs)
            chunks, file = group.get("embedding"), path / FILE
            if chunks is not None or (file.is_file() and "fingerprint" in attributes):
                found = chunks.shape if chunks is not None else np.load(file, mmap_mode="r").shape
                if attributes.get("fingerprint") != fingerprint or found != shape:
                    raise InputError(
                        "store",
                        f"{path.name} holds an embedding of another model, checkpoint, option, gene or cell set",
                        "an empty folder or the store of the same call",
                        "choose another folder or delete this one.",
                    )
                return cls(path, group["done"], chunks)
            np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=shape).flush()
        except OSError as error:
            raise OutputError("store", path, error) from None
        n_blocks = max(-(-shape[0] // block), 1)
        done = group.create_array(
            "done", shape=(n_blocks, 32), chunks=(1, 32), dtype="uint8", fill_value=0, overwrite=True
        )
        group.attrs.update({"fingerprint": fingerprint, "block": block})
        return cls(path, done)

    @property
    def values(self) -> Any:
        """The values: an array that is mapped, so that rows take memory when they are looked at; changes stay in memory."""
        return np.load(self.path / FILE, mmap_mode="c") if self.chunks is None else self.chunks

    def holds(self, block: int, digest: bytes) -> bool:
        """Whether a block was finished on these very counts."""
        return bytes(np.asarray(self.done[block], dtype=np.uint8)) == digest

    def put(self, rows: slice | np.ndarray, part: np.ndarray) -> None:
        """Write some rows."""
        target = np.load(self.path / FILE, mmap_mode="r+") if self.chunks is None else self.chunks
        target[rows] = part

    def write(self, block: int, first: int, part: np.ndarray, digest: bytes) -> None:
        """Write the values first, then the mark; a kill in between only repeats the block."""
        self.put(slice(first, first + len(part)), part)
        self.done[block] = np.frombuffer(digest, dtype=np.uint8)
