"""Token ids of words, each encoded once and put together to sentences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


class WordTokens:
    """Token ids of words, put together to sentences.

    Parameters
    ----------
    encode
        Turns texts into token ids.
    texts
        The words, with the space before them.
    """

    def __init__(self, encode: Callable[[list[str]], list[list[int]]], texts: list[str]) -> None:
        encoded = encode(texts)
        self.texts, self.independent = texts, True
        self.lengths = np.array([len(e) for e in encoded], dtype=np.int64)
        self.starts = np.cumsum(self.lengths) - self.lengths
        self.ids = np.array([i for e in encoded for i in e], dtype=np.int64)

    def concatenate(self, words: np.ndarray, offsets: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of ragged sentences, each cut to ``room``, and the lengths before the cut."""
        lengths = self.lengths[words]
        ends = np.concatenate([[0], np.cumsum(lengths)])
        before = ends[:-1] - np.repeat(ends[offsets[:-1]], np.diff(offsets))
        kept = np.clip(room - before, 0, lengths)
        flat = np.arange(kept.sum()) - np.repeat(np.cumsum(kept) - kept, kept)
        return self.ids[np.repeat(self.starts[words], kept) + flat], np.diff(ends[offsets])

    def check_independence(self, encode: Callable[[list[str]], list[list[int]]], words: np.ndarray) -> None:
        """Note whether the tokenizer cuts a whole sentence as it cuts its words."""
        whole = encode(["".join(self.texts[w] for w in words)])[0] if len(words) else []
        apart, lengths = self.concatenate(words, np.array([0, len(words)]), len(whole) + 1)
        self.independent = int(lengths[0]) == len(whole) and np.array_equal(whole, apart)
