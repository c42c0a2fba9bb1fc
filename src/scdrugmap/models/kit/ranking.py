"""Ranking the values of each row of a sparse matrix, the highest first, without a loop over rows."""

from __future__ import annotations

import numpy as np


def rank_rows(values: np.ndarray, indptr: np.ndarray, top: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Order the values of each row from high to low; equal values keep the order in which they stand.

    Parameters
    ----------
    values
        ``(nnz,)`` non-negative finite floats, row after row.
    indptr
        ``(n + 1,)`` row boundaries, as in CSR.
    top
        Keep only the highest of each row.

    Returns
    -------
    positions, offsets
        Positions into ``values``, row after row, and the ``(n + 1,)`` boundaries of the rows in them.

    Notes
    -----
    A row is sorted as 64-bit integers: the leading bits of the value, then the position in the row. The few rows
    in which two different values share their leading bits (a relative difference below about 1e-11) are sorted
    again with the full values.

    Examples
    --------
    >>> import numpy as np
    >>> positions, offsets = rank_rows(np.array([1.0, 3.0, 3.0, 5.0]), np.array([0, 3, 4]), top=2)
    >>> positions.tolist(), offsets.tolist()
    ([1, 2, 3], [0, 2, 3])
    """
    lengths = np.diff(indptr).astype(np.int64)
    kept = lengths if top is None else np.minimum(lengths, top)
    offsets = np.concatenate([[0], np.cumsum(kept)])
    positions = np.empty(offsets[-1], dtype=np.int64)
    values = np.ascontiguousarray(values, dtype=np.float64)
    for rows in _length_buckets(lengths):
        width = int(lengths[rows].max())
        columns = np.arange(width)
        inside = columns < lengths[rows, None]
        order = _order(values, indptr[:-1][rows, None], inside, columns, width if top is None else min(top, width))
        out = columns[: order.shape[1]] < kept[rows, None]
        slots = (offsets[:-1][rows, None] + columns[: order.shape[1]])[out]
        positions[slots] = (indptr[:-1][rows, None] + order)[out]
    return positions, offsets


def add_special_tokens(
    ids: np.ndarray, offsets: np.ndarray, before: int | None, after: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Put a token before and another after each ragged row; ``None`` for none.

    Examples
    --------
    >>> import numpy as np
    >>> ids, offsets = add_special_tokens(np.array([5, 6, 7]), np.array([0, 2, 2, 3]), 1, 2)
    >>> ids.tolist(), offsets.tolist()
    ([1, 5, 6, 2, 1, 2, 1, 7, 2], [0, 4, 6, 9])
    """
    extra = (before is not None) + (after is not None)
    bounds = offsets + extra * np.arange(len(offsets))
    out_ids = np.empty(bounds[-1], dtype=np.int32)
    shift = (before is not None) + extra * np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    out_ids[np.arange(len(ids)) + shift] = ids
    if before is not None:
        out_ids[bounds[:-1]] = before
    if after is not None:
        out_ids[bounds[1:] - 1] = after
    return out_ids, bounds


def _length_buckets(lengths: np.ndarray) -> list[np.ndarray]:
    """Non-empty rows in groups whose padding to the longest stays small, about a million entries each."""
    order = np.argsort(lengths, kind="stable")
    order = order[np.searchsorted(lengths[order], 1) :]
    # Lengths in steps of a tenth, at least 16 apart.
    step = np.floor(np.log1p(lengths[order] / 160.0) / np.log(1.1))
    groups = np.split(order, np.flatnonzero(np.diff(step)) + 1)
    return [part for g in groups if len(g) for part in np.array_split(g, -(-len(g) * int(lengths[g].max()) // 2**20))]


def _order(values: np.ndarray, starts: np.ndarray, inside: np.ndarray, columns: np.ndarray, top: int) -> np.ndarray:
    """``(rows, top)`` positions within each row of the highest values; what lies beyond a row comes last."""
    width = len(columns)
    shift = np.uint64(max(width - 1, 1).bit_length())
    low = (np.uint64(1) << shift) - np.uint64(1)
    # The bits of a non-negative float rise with its value; the sign bit is free, the last bits give way to the position.
    padded = np.zeros(inside.shape)  # (rows, width)
    padded[inside] = values[np.minimum(starts + columns, len(values) - 1)[inside]]
    bits = padded.view(np.uint64) << np.uint64(1)
    keys = (~bits & ~low) | columns.astype(np.uint64)
    keys[~inside] |= ~low
    exact = not (bits & low).any()
    if exact and top < width // 2:
        keys = np.partition(keys, top, axis=1)[:, :top]
    keys.sort(axis=1)
    order = (keys & low).astype(np.int64)
    if not exact:
        ranked = np.take_along_axis(padded, order, axis=1)
        inexact = np.flatnonzero((ranked[:, 1:] > ranked[:, :-1]).any(axis=1))
        order[inexact] = np.argsort(-padded[inexact], axis=1, kind="stable")
    return order[:, :top]
