"""An embedding on disk that grows block by block and survives a kill."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from scdrugmap._errors import InputError, OutputError


@dataclass(frozen=True)
class EmbeddingStore:
    """Zarr group with ``embedding`` (one chunk per block) and ``done`` (digest of each finished block's counts)."""

    values: Any
    done: Any

    @classmethod
    def open(cls, path: Path, shape: tuple[int, int], block: int, fingerprint: str) -> EmbeddingStore:
        """Open a store, or begin one.

        Raises
        ------
        InputError
            If the folder belongs to a run with other arguments.
        """
        try:
            group: Any = zarr.open_group(path, mode="a")
        except OSError as error:
            raise OutputError("store", path, error) from None
        if "embedding" in group:
            attributes = dict(group.attrs)
            if attributes.get("fingerprint") != fingerprint or group["embedding"].shape != shape:
                raise InputError(
                    "store",
                    f"{path.name} holds an embedding of another model, checkpoint, option, gene or cell set",
                    "an empty folder or the store of the same call",
                    "choose another folder or delete this one.",
                )
            return cls(group["embedding"], group["done"])
        n_blocks = max(-(-shape[0] // block), 1)
        done = group.create_array("done", shape=(n_blocks, 32), chunks=(1, 32), dtype="uint8", fill_value=0)
        group.attrs.update({"fingerprint": fingerprint, "block": block})
        values = group.create_array(
            "embedding", shape=shape, chunks=(block, max(shape[1], 1)), dtype="float32", fill_value=float("nan")
        )
        return cls(values, done)

    def holds(self, block: int, digest: bytes) -> bool:
        """Whether a block was finished on these very counts."""
        return bytes(np.asarray(self.done[block], dtype=np.uint8)) == digest

    def write(self, block: int, first: int, part: np.ndarray, digest: bytes) -> None:
        """Write the values first, then the mark; a kill in between only repeats the block."""
        self.values[first : first + len(part)] = part
        self.done[block] = np.frombuffer(digest, dtype=np.uint8)
