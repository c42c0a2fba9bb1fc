"""Quantile bins of the values of each row of a sparse matrix, without a loop over rows."""

from __future__ import annotations

import numpy as np

from scdrugmap.models.ranking import rank_rows

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
    # Reversed, the descending rows are ascending (and the last cell comes first).
    positions = rank_rows(values, offsets)[0][::-1]
    lengths = np.diff(offsets)[::-1]
    lengths = lengths[lengths > 0]
    starts = np.cumsum(lengths) - lengths
    ordered = values[positions]
    new = np.ones(len(ordered), dtype=bool)
    np.not_equal(ordered[1:], ordered[:-1], out=new[1:])
    new[starts] = True
    run_of = np.cumsum(new) - 1
    h = (lengths[:, None] - 1) * _QUANTILES
    left = np.floor(h).astype(np.int64)
    t = h - left
    i = starts[:, None] + left
    j = starts[:, None] + np.minimum(left + 1, lengths[:, None] - 1)
    a, b = ordered[i], ordered[j]
    # Both forms, as in NumPy: the edge must equal it to the last bit, or values that lie on an edge change bins.
    edges = np.where(t < 0.5, a + (b - a) * t, b - (b - a) * (1 - t))
    n_runs = int(run_of[-1]) + 1 if len(run_of) else 0
    at_or_above = np.where(edges <= a, run_of[i], run_of[j])
    above = np.where(edges >= b, run_of[j] + 1, np.where(edges <= a, run_of[i] + 1, run_of[j]))
    before = N_BINS * np.repeat(np.arange(len(lengths)), lengths)[new]
    upper = np.cumsum(np.bincount(at_or_above.ravel(), minlength=n_runs)) - before
    lower = np.cumsum(np.bincount(above.ravel(), minlength=n_runs + 1)[:n_runs]) - before
    out = np.empty((2, len(values)), dtype=np.int64)
    out[0, positions], out[1, positions] = lower[run_of], upper[run_of]
    return out[0], out[1]
