"""Cells that occur more than once, in one study or in several.

Controls that serve several treatments are often deposited with each of them. A copy on the other side of a split
hands the model its answer, so splits keep all copies of a cell together.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from scdrugmap.embedding.source import CountSource
from scdrugmap.models.kit.counts import splitmix64

#: A cell with fewer detected genes can equal another one by chance.
MIN_GENES = 10
#: Two cells with one barcode are the same cell if this share of their common genes has equal counts.
AGREEMENT = 0.95


def content_hash(X: Any, *, genes: np.ndarray | None = None, block: int = 4096) -> np.ndarray:
    """Hash the counts of each cell.

    Parameters
    ----------
    X
        Cells x genes: NumPy array, SciPy sparse matrix, backed or dask matrix. Not changed.
    genes
        ``(genes,)`` mask of the columns that count; all by default.
    block
        Cells read at once.

    Returns
    -------
    numpy.ndarray
        ``(n, 2)`` uint64; equal rows mean equal counts over equal columns, whatever the storage (explicit zeros,
        order of the stored values, float or integer type).

    Examples
    --------
    >>> import numpy as np
    >>> h = content_hash(np.array([[0, 1, 2], [0, 1, 2], [1, 0, 2]]))
    >>> bool((h[0] == h[1]).all()), bool((h[0] == h[2]).all())
    (True, False)
    """
    source = CountSource(X)
    out = np.empty((source.shape[0], 2), dtype=np.uint64)
    for first, rows in source.blocks(block):
        rows = _canonical(rows if genes is None else rows[:, genes])
        gene = splitmix64(rows.indices.astype(np.uint64))
        bits = np.ascontiguousarray(rows.data, dtype=np.float64).view(np.uint64)
        for lane, salt in enumerate((0x243F6A8885A308D3, 0x13198A2E03707344)):
            entries = splitmix64(splitmix64(bits ^ np.uint64(salt)) ^ gene)
            sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(entries, dtype=np.uint64)])
            out[first : first + rows.shape[0], lane] = splitmix64(sums[rows.indptr[1:]] - sums[rows.indptr[:-1]])
    return out


def _canonical(X: sparse.csr_matrix) -> sparse.csr_matrix:
    """Sum repeated entries and drop stored zeros, in a copy only where needed."""
    if not X.has_canonical_format or (X.data == 0).any():
        X = X.copy()
        X.sum_duplicates()
        X.eliminate_zeros()
    return X


def detected_genes(X: Any, *, genes: np.ndarray | None = None, block: int = 4096) -> np.ndarray:
    """Count the genes (of a mask) with a non-zero value in each cell, ``(n,)``."""
    blocks = (rows if genes is None else rows[:, genes] for _, rows in CountSource(X).blocks(block))
    return np.concatenate([np.diff(_canonical(rows).indptr) for rows in blocks] or [[]])


def duplicate_groups(
    X: Any = None,
    *,
    series: np.ndarray | None = None,
    barcode: np.ndarray | None = None,
    hashes: np.ndarray | None = None,
    common: np.ndarray | None = None,
    origin: np.ndarray | None = None,
    n: int | None = None,
) -> np.ndarray:
    """Say which cells are copies of one another.

    Parameters
    ----------
    X
        Cells x genes of raw counts, or ``None`` where only barcodes are known.
    series, barcode
        ``(n,)`` accession of the series and barcode of each cell. Two cells of one series with one barcode are copies
        if their counts agree on nearly all genes that both detect (barcodes recur across lanes, so the barcode alone
        would also join strangers); without ``X`` the barcode decides. Cells without a barcode (NaN or empty) match none.
    hashes
        Output of :func:`content_hash` for ``X``, if at hand.
    common, origin
        ``(genes,)`` mask of the genes that every data set of origin has, and ``(n,)`` that data set of each cell: cells of
        several of them are copies if they agree on the common genes, for the others are zero where they were not measured.
    n
        Number of cells, where nothing else says so.

    Returns
    -------
    numpy.ndarray
        ``(n,)`` integer codes; cells with one code are copies of one cell.

    Notes
    -----
    Cells with fewer than 10 detected genes are never called copies by content: they can agree by chance.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.zeros((3, 20), int)
    >>> X[:2] = 1
    >>> X[2] = 2
    >>> duplicate_groups(X).tolist()
    [0, 0, 1]
    """
    if X is not None:
        n = X.shape[0]
    elif barcode is not None:
        n = len(barcode)
    if n is None:
        raise ValueError("pass X, barcode or n")
    left, right = [np.empty(0, int)], [np.empty(0, int)]
    if X is not None:
        pairs = [_equal(content_hash(X) if hashes is None else hashes, detected_genes(X))]
        if common is not None and origin is not None:
            seen = content_hash(X, genes=common)
            pairs.append(_equal(seen, detected_genes(X, genes=common), np.unique(origin, return_inverse=True)[1]))
        left += [a for a, _ in pairs]
        right += [b for _, b in pairs]
    if barcode is not None and series is not None:
        a, b = _same_barcode(np.asarray(series, dtype=object), np.asarray(barcode, dtype=object))
        if X is not None and len(a):
            keep = _agree(X, a, b)
            a, b = a[keep], b[keep]
        left.append(a)
        right.append(b)
    return connected(n, np.concatenate(left), np.concatenate(right))


def _equal(hashes: np.ndarray, detected: np.ndarray, origin: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of cells of one hash; with ``origin``, only where cells of several origins share it."""
    rich = np.flatnonzero(detected >= MIN_GENES)
    order = rich[np.lexsort(hashes[rich].T)]
    same = (hashes[order][1:] == hashes[order][:-1]).all(axis=1)
    if origin is not None and len(order):
        code = np.cumsum(np.r_[True, ~same]) - 1
        low, high = np.full(code[-1] + 1, origin.max()), np.zeros(code[-1] + 1, origin.dtype)
        np.minimum.at(low, code, origin[order])
        np.maximum.at(high, code, origin[order])
        same &= (low < high)[code[1:]]
    return order[1:][same], order[:-1][same]


def connected(n: int, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Label the connected components of ``n`` nodes, numbered by first appearance."""
    graph = sparse.coo_matrix((np.ones(len(left), bool), (left, right)), shape=(n, n))
    labels = sparse.csgraph.connected_components(graph, directed=False)[1]
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]


def _same_barcode(series: np.ndarray, barcode: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of cells with one series and one barcode."""
    import pandas as pd

    known = np.flatnonzero(~(pd.isna(series) | pd.isna(barcode) | (barcode == "")))
    codes = pd.MultiIndex.from_arrays([series[known], barcode[known]]).factorize()[0]
    order = np.argsort(codes, kind="stable")
    codes, rows = codes[order], known[order]
    left, right = [np.empty(0, int)], [np.empty(0, int)]
    shift = 1
    while shift < len(codes):
        same = codes[shift:] == codes[:-shift]
        if not same.any():
            break
        left.append(rows[shift:][same])
        right.append(rows[:-shift][same])
        shift += 1
    return np.concatenate(left), np.concatenate(right)


def _agree(X: Any, a: np.ndarray, b: np.ndarray, step: int = 4096) -> np.ndarray:
    """Whether the cells of each pair have equal counts on the genes that both detect."""
    source = CountSource(X)
    out = np.zeros(len(a), dtype=bool)
    for start in range(0, len(a), step):
        rows = slice(start, start + step)
        A, B = (_canonical(source[part[rows]]).astype(np.float64) for part in (a, b))
        common = A.astype(bool).multiply(B.astype(bool)).tocsr()
        differs = common.multiply((A - B).astype(bool)).tocsr()
        differs.eliminate_zeros()
        n_common = np.diff(common.indptr)
        n_equal = n_common - np.diff(differs.indptr)
        out[rows] = (n_common >= MIN_GENES) & (n_equal >= AGREEMENT * n_common)
    return out
