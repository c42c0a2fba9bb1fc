"""Cells with known response that a prompt shows: k per class, at random or near the cells in question."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import sparse

from scdrugmap._errors import InputError, UnknownNameError
from scdrugmap._keys import CLASSES

CHOICES = ("random", "nearest")


@dataclass(frozen=True, eq=False)
class Examples:
    """Labelled cells to choose from. Take them from training cells only.

    Parameters
    ----------
    X
        ``(n, genes)`` counts.
    genes
        Names of the columns.
    y
        ``(n,)`` 0 (resistant), 1 (sensitive) or -1 (no label).
    embedding
        ``(n, d)``; for the choice of the nearest.
    context
        ``(n, columns)``: drug, tissue ..., as for the cells in question.

    Raises
    ------
    InputError
        If shapes do not fit or labels are others.
    """

    X: Any
    genes: Iterable[str]
    y: np.ndarray
    embedding: np.ndarray | None = None
    context: pd.DataFrame | None = None

    def __post_init__(self) -> None:
        y = np.asarray(self.y)
        n = self.X.shape[0]
        if y.shape != (n,) or not np.isin(y, (-1, 0, 1)).all():
            raise InputError("examples", f"labels of shape {y.shape}", f"{n} labels, each -1, 0 or 1", "encode them.")
        for name in ("embedding", "context"):
            value = getattr(self, name)
            if value is not None and len(value) != n:
                raise InputError("examples", f"{name} of {len(value)} rows", f"{n} rows", "pass one row per cell.")
        object.__setattr__(self, "y", y.astype(np.int8))
        object.__setattr__(self, "genes", np.asarray(list(self.genes), dtype=object))


class Choice:
    """The examples of each prompt, chosen once for all cells.

    Parameters
    ----------
    y
        Labels of the candidates; -1 for those that may not be chosen.
    n_shots
        Examples per class.
    how
        ``"random"``: the same for all prompts. ``"nearest"``: for each prompt the candidates that are nearest to its
        cells in the embedding; with several cells in a prompt, the nearest of each cell come before second ones.
    rng
        Source of the draw and of the order in which examples stand.
    embedding, query
        Embeddings of candidates and of the cells in question.

    Raises
    ------
    UnknownNameError
        For another way to choose.
    InputError
        If a class has too few candidates, or embeddings are missing, hold NaN, or have different widths.
    """

    def __init__(
        self,
        y: np.ndarray,
        n_shots: int,
        how: Literal["random", "nearest"],
        rng: np.random.Generator,
        embedding: np.ndarray | None = None,
        query: np.ndarray | None = None,
    ) -> None:
        if how not in CHOICES:
            raise UnknownNameError("shots", how, CHOICES)
        self._near: list[tuple[np.ndarray, np.ndarray]] | None = None
        self._n_shots = n_shots
        self._salt = int(rng.integers(2**63))
        y = y.copy()
        if how == "nearest":
            embedding, query = _checked(embedding, query)
            y[~np.isfinite(embedding).all(axis=1)] = -1
        candidates = [np.flatnonzero(y == c) for c in range(2)]
        for name, rows in zip(CLASSES, candidates, strict=True):
            if len(rows) < n_shots:
                raise InputError(
                    "n_shots", n_shots, f"at most {len(rows)}, the usable {name} cells of the reference",
                    "pass fewer shots, or a reference with both classes.",
                )  # fmt: skip
        self._fixed = np.concatenate([rng.choice(rows, n_shots, replace=False) for rows in candidates])
        self._fixed = rng.permutation(self._fixed)
        if how == "nearest" and n_shots:
            assert embedding is not None
            assert query is not None
            self._near = [_neighbours(embedding, rows, query, n_shots) for rows in candidates]

    def __call__(self, cells: np.ndarray) -> np.ndarray:
        """Rows of the examples for a prompt with these cells, classes mixed."""
        if self._near is None:
            return self._fixed
        chosen = []
        for rows, distances in self._near:
            rank = np.broadcast_to(np.arange(rows.shape[1]), (len(cells), rows.shape[1])).ravel()
            order = np.lexsort((rows[cells].ravel(), distances[cells].ravel(), rank))
            distinct = pd.unique(rows[cells].ravel()[order])
            chosen.append(distinct[: self._n_shots])
        mixed = np.random.default_rng([self._salt, *map(int, cells)])
        return mixed.permutation(np.concatenate(chosen))


def content_keys(X: sparse.csr_matrix, genes: Iterable[str]) -> np.ndarray:
    """Return a 64-bit hash of each cell's counts, whatever the order of its genes.

    Examples
    --------
    >>> a = content_keys(sparse.csr_matrix([[1, 2]]), ["A", "B"])
    >>> bool(a == content_keys(sparse.csr_matrix([[2, 0, 1]]), ["B", "C", "A"]))
    True
    """
    from scdrugmap.models.kit.counts import splitmix64

    block = sparse.csr_matrix(X, dtype=np.float64, copy=True)
    block.sum_duplicates()
    block.eliminate_zeros()
    names = pd.util.hash_array(np.asarray([str(g) for g in genes], dtype=object))
    entries = splitmix64(names[block.indices] ^ splitmix64(block.data.view(np.uint64)))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(entries, dtype=np.uint64)])
    return sums[block.indptr[1:]] - sums[block.indptr[:-1]]


def _checked(embedding: np.ndarray | None, query: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    if embedding is None or query is None:
        missing = "the reference" if embedding is None else "the cells"
        raise InputError(
            "shots", f"'nearest' without an embedding of {missing}", "one embedding for both", "pass shots='random'."
        )
    embedding, query = np.asarray(embedding, dtype=np.float64), np.asarray(query, dtype=np.float64)
    if embedding.ndim != 2 or query.ndim != 2 or embedding.shape[1] != query.shape[1]:
        raise InputError(
            "shots", f"embeddings of shapes {embedding.shape} and {query.shape}", "one width", "embed both."
        )
    return embedding, query


def _neighbours(embedding: np.ndarray, rows: np.ndarray, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Nearest candidates of every cell and their distances; a cell without embedding gets the first ones, far away."""
    from sklearn.neighbors import NearestNeighbors

    near = np.tile(rows[:k], (len(query), 1))
    distances = np.full(near.shape, np.inf)
    known = np.isfinite(query).all(axis=1)
    if known.any():
        distances[known], found = NearestNeighbors(n_neighbors=k).fit(embedding[rows]).kneighbors(query[known])
        near[known] = rows[found]
    return near, distances
