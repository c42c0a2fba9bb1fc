"""Quantile bins of the values of each row of a sparse matrix, without a loop over rows."""

from __future__ import annotations

import numpy as np

from scdrugmap.models.kit.ranking import rank_rows

#: Bins of expressed genes. Fixed in scGPT's official embedding path, whatever its ``args.json`` says.
N_BINS = 50
_QUANTILES = np.linspace(0, 1, N_BINS)


def bin_ranges(values: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the quantile bins that hold each value among the values of its cell.

    Parameters
    ----------
    values
        ``(total,)`` positive values, cell after cell.
    offsets
        ``(n + 1,)`` where cells begin.

    Returns
    -------
    lower, upper
        Number of the cell's 50 quantile edges below the value, and at or below it: a tie is spread over
        the bins ``lower + 1`` to ``upper``.

    Examples
    --------
    >>> import numpy as np
    >>> [a.tolist() for a in bin_ranges(np.array([1.0, 1.0, 5.0]), np.array([0, 3]))]
    [[0, 0, 49], [25, 25, 50]]
    """
    lengths = np.diff(offsets)
    lengths = lengths[lengths > 0]
    value, count, run = _runs_of_small_integers(values, lengths) or _runs(values, lengths)
    ends = np.cumsum(count)
    starts = np.cumsum(lengths) - lengths
    h = (lengths[:, None] - 1) * _QUANTILES  # (cells, edges)
    left = np.floor(h).astype(np.int64)
    t = h - left
    i = np.searchsorted(ends, starts[:, None] + left, side="right")
    j = np.searchsorted(ends, starts[:, None] + np.minimum(left + 1, lengths[:, None] - 1), side="right")
    a, b = value[i], value[j]  # (cells, edges)
    # Both forms, as in NumPy: the edge must equal it to the last bit, or values that lie on an edge change bins.
    edges = np.where(t < 0.5, a + (b - a) * t, b - (b - a) * (1 - t))
    at_or_above = np.where(edges <= a, i, j)
    above = np.where(edges >= b, j + 1, np.where(edges <= a, i + 1, j))
    n = len(value)
    before = N_BINS * (np.searchsorted(starts, ends - count, side="right") - 1)
    # Edges per run of equal values, (runs,), summed along the runs of each cell.
    lower = np.cumsum(np.bincount(above.ravel(), minlength=n + 1)[:n]) - before
    upper = np.cumsum(np.bincount(at_or_above.ravel(), minlength=n)) - before
    return lower[run], upper[run]


Runs = tuple[np.ndarray, np.ndarray, np.ndarray]


def _runs(values: np.ndarray, lengths: np.ndarray) -> Runs:
    """Distinct values of each row, ascending, how often each occurs, and which of them each value is."""
    positions, offsets = rank_rows(values, np.concatenate([[0], np.cumsum(lengths)]))
    # From high to low in every row; turn the rows around, each in its place.
    rows = np.repeat(np.arange(len(lengths)), lengths)
    positions = positions[(offsets[:-1] + offsets[1:] - 1)[rows] - np.arange(len(values))]
    ordered = values[positions]
    new = np.ones(len(values), dtype=bool)
    np.not_equal(ordered[1:], ordered[:-1], out=new[1:])
    new[offsets[:-1]] = True
    first = np.flatnonzero(new)
    run = np.empty(len(values), dtype=np.int64)
    run[positions] = np.cumsum(new) - 1
    return ordered[first], np.diff(first, append=len(values)), run


def _runs_of_small_integers(values: np.ndarray, lengths: np.ndarray) -> Runs | None:
    """Like :func:`_runs`, by counting instead of sorting; ``None`` where the values are not small integers."""
    width = int(values.max(initial=0)) + 1
    if width * len(lengths) > 4 * len(values) + 1_000_000:
        return None
    whole = values.astype(np.int64)
    if not np.array_equal(whole, values):
        return None
    key = np.repeat(np.arange(len(lengths)) * width, lengths) + whole
    table = np.bincount(key, minlength=width * len(lengths))
    present = np.flatnonzero(table)
    count = table[present]
    table[present] = np.arange(len(present))
    return (present % width).astype(np.float64), count, table[key]
