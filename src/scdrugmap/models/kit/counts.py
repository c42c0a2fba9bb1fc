"""Counts of a block of cells, with their genes matched to a model's vocabulary."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from scipy import sparse


@dataclass(frozen=True)
class Counts:
    """A block of cells over the genes that the model knows.

    Parameters
    ----------
    X
        ``(n, k)`` CSR float64 with sorted indices and neither stored zeros nor duplicates.
    ids
        ``(k,)`` vocabulary id of each column.
    genes
        ``(k,)`` identifier of each column, as the vocabulary writes it.
    rows
        ``(n,)`` row numbers in the data set.
    survey
        What the model's ``survey`` returned after seeing the whole data set; ``None`` for most models.
    """

    X: sparse.csr_matrix
    ids: np.ndarray
    genes: np.ndarray
    rows: np.ndarray
    survey: Any = None

    @cached_property
    def row_of(self) -> np.ndarray:
        """Row of each stored value."""
        return np.repeat(np.arange(self.X.shape[0]), np.diff(self.X.indptr))

    @cached_property
    def gene_hash(self) -> np.ndarray:
        """A 64-bit hash of each gene identifier, equal in every data set and process."""
        digests = b"".join(hashlib.blake2b(str(g).encode(), digest_size=8).digest() for g in self.genes)
        return np.frombuffer(digests, dtype="<u8").astype(np.uint64)

    @cached_property
    def cell_keys(self) -> np.ndarray:
        """A 64-bit hash of each cell's content; independent of the order of genes and cells.

        Random draws keyed by it give a cell the same draw wherever it stands.
        """
        bits = np.ascontiguousarray(self.X.data, dtype=np.float64).view(np.uint64)
        entries = splitmix64(self.gene_hash[self.X.indices] ^ splitmix64(bits))
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(entries, dtype=np.uint64)])
        return splitmix64(sums[self.X.indptr[1:]] - sums[self.X.indptr[:-1]])


def splitmix64(x: np.ndarray) -> np.ndarray:
    """Mix 64-bit integers (Steele, Lea and Flood 2014): a counter-based random generator.

    Examples
    --------
    >>> import numpy as np
    >>> splitmix64(np.arange(2, dtype=np.uint64)).dtype
    dtype('uint64')
    """
    with np.errstate(over="ignore"):
        z = np.asarray(x, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def uniforms(keys: np.ndarray, counters: np.ndarray, seed: int) -> np.ndarray:
    """Uniform float64 in [0, 1), a function of key, counter and seed alone (broadcast together)."""
    salt = splitmix64(np.asarray([seed], dtype=np.uint64))[0]
    mixed = splitmix64(splitmix64(keys ^ salt) ^ splitmix64(np.asarray(counters, dtype=np.uint64)))
    return (mixed >> np.uint64(11)) * 2.0**-53


@dataclass(frozen=True)
class Alignment:
    """Which input columns a vocabulary knows, and where they go.

    Build it with :meth:`match`; use it on blocks of cells with :meth:`apply`.
    """

    ids: np.ndarray
    genes: np.ndarray
    target: np.ndarray
    merged: tuple[str, ...]
    n_columns: int = field(repr=False)

    @classmethod
    def match(
        cls,
        names: np.ndarray,
        vocabulary: Mapping[str, int],
        *,
        order: Literal["vocabulary", "column"] = "vocabulary",
    ) -> Alignment:
        """Match gene names to vocabulary ids.

        Parameters
        ----------
        names
            ``(n_columns,)`` gene identifiers of the data set.
        vocabulary
            Identifier to id.
        order
            Order of the matched columns: by vocabulary id (the result then cannot depend on the order
            of the data set's columns) or by first appearance in the data set. Columns with one id are summed.
        """
        found = np.array([vocabulary.get(str(name), -1) if name else -1 for name in names], dtype=np.int64)
        known = np.flatnonzero(found >= 0)
        ids, first, inverse = np.unique(found[known], return_index=True, return_inverse=True)
        place = np.arange(len(ids))
        if order == "column":
            by_column = np.argsort(first, kind="stable")
            place[by_column] = np.arange(len(ids))
            ids, first = ids[by_column], first[by_column]
        target = np.full(len(names), -1, dtype=np.int64)
        target[known] = place[inverse]
        genes = np.asarray(names)[known[first]] if len(known) else np.empty(0, dtype=object)
        repeats = np.bincount(place[inverse], minlength=len(ids)) > 1
        return cls(ids, genes, target, tuple(map(str, genes[repeats])), len(names))

    def apply(self, X: sparse.csr_matrix) -> sparse.csr_matrix:
        """Return ``X`` over the matched columns: float64, sorted, duplicates summed, no stored zeros."""
        if self._in_order and X.has_canonical_format:
            return self._renamed(X)
        columns = np.flatnonzero(self.target >= 0)
        columns = columns[np.argsort(self.target[columns], kind="stable")]
        # Through columns and back: two linear passes, where sorting each row would take longer.
        by_column = X.tocsc()[:, columns] if len(columns) else sparse.csc_matrix((X.shape[0], 0))
        out = sparse.csr_matrix(by_column.tocsr(), dtype=np.float64)
        if not out.data.all():
            out.eliminate_zeros()
        if len(columns) > len(self.ids):
            indices = self.target[columns].astype(out.indices.dtype)[out.indices]
            out = sparse.csr_matrix((out.data, indices, out.indptr), shape=(X.shape[0], len(self.ids)))
            out.sum_duplicates()
        return out

    @cached_property
    def _in_order(self) -> bool:
        """Whether the known columns stand in the order of the matched ones, each once."""
        known = self.target[self.target >= 0]
        return bool((np.diff(known) > 0).all())

    def _renamed(self, X: sparse.csr_matrix) -> sparse.csr_matrix:
        """Return the known columns where nothing has to be sorted."""
        data, indptr = X.data, X.indptr
        indices = self.target.astype(X.indices.dtype)[X.indices]
        known = indices >= 0
        if not known.all():
            before = np.concatenate([[0], np.cumsum(known)])
            data, indices, indptr = data[known], indices[known], before[indptr].astype(indptr.dtype)
        out = sparse.csr_matrix((data.astype(np.float64), indices, indptr.copy()), shape=(X.shape[0], len(self.ids)))
        if not out.data.all():
            out.eliminate_zeros()
        return out
