"""Ragged token sequences, one per cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Tokens:
    """Token sequences of a block of cells in compressed-row form.

    Parameters
    ----------
    offsets
        ``(n + 1,)`` int64; cell ``i`` holds positions ``offsets[i]:offsets[i + 1]``.
    ids
        ``(total,)`` integer token ids.
    values
        ``(total,)`` float32 values that enter the network with the ids, if the model has any.
    usable
        ``(n,)`` bool; ``False`` for a cell without any usable gene, whose embedding is NaN.
    """

    offsets: np.ndarray
    ids: np.ndarray
    values: np.ndarray | None
    usable: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per cell, ``(n,)`` int64."""
        return np.diff(self.offsets)

    def take(self, rows: np.ndarray) -> Tokens:
        """Return the sequences of some cells, in the order of ``rows``; all of them as they stand are not copied."""
        if len(rows) == len(self) and np.array_equal(rows, np.arange(len(self))):
            return self
        lengths = self.lengths[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        flat = np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][rows] - offsets[:-1], lengths)
        values = None if self.values is None else self.values[flat]
        return Tokens(offsets, self.ids[flat], values, self.usable[rows])

    def padded(self, fill: float = 0, *, of: str = "ids") -> np.ndarray:
        """Return ``ids`` or ``values`` as an ``(n, longest)`` array, padded on the right with ``fill``."""
        flat = self.ids if of == "ids" else self.values
        assert flat is not None, "these tokens hold no values"
        lengths = self.lengths
        longest = int(lengths.max(initial=0))
        inside = np.arange(longest) < lengths[:, None]
        if inside.all():
            return flat.reshape(len(self), longest).copy()
        out = np.full((len(self), longest), fill, dtype=flat.dtype)
        out[inside] = flat
        return out

    def positions(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the row and the column of each token in the padded array."""
        rows = np.repeat(np.arange(len(self)), self.lengths)
        return rows, np.arange(len(self.ids)) - np.repeat(self.offsets[:-1], self.lengths)

    @staticmethod
    def concatenate(blocks: Sequence[Tokens]) -> Tokens:
        """Join blocks of cells."""
        lengths = np.concatenate([b.lengths for b in blocks])
        values = [b.values for b in blocks if b.values is not None]
        return Tokens(
            np.concatenate([[0], np.cumsum(lengths)]),
            np.concatenate([b.ids for b in blocks]),
            np.concatenate(values) if values else None,
            np.concatenate([b.usable for b in blocks]),
        )
