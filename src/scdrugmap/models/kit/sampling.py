"""Drawing genes of a cell: a uniform subset, or with replacement in proportion to weights."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse


def lowest(u: np.ndarray, offsets: np.ndarray, size: int) -> np.ndarray:
    """Mark the lowest numbers of each row: a uniform random subset, if the numbers are uniform.

    Parameters
    ----------
    u
        ``(total,)`` in [0, 1), row after row.
    offsets
        ``(n + 1,)`` where rows begin; each holds more than ``size`` numbers.
    size
        Numbers to mark in each row.

    Returns
    -------
    ``(total,)`` bool.

    Examples
    --------
    >>> import numpy as np
    >>> lowest(np.array([0.7, 0.2, 0.9, 0.1]), np.array([0, 4]), 2).tolist()
    [False, True, False, True]
    """
    n, width = len(offsets) - 1, 1024
    row = np.repeat(np.arange(n), np.diff(offsets))
    part = (u * width).astype(np.int64)
    reached = np.bincount(row * width + part, minlength=n * width).reshape(n, width).cumsum(axis=1)
    # Numbers below the part in which the size is reached are in; of that part only the lowest.
    last = (reached < size).sum(axis=1)
    wanted = size - np.where(last > 0, reached[np.arange(n), last - 1], 0)
    marked = part < last[row]
    border = np.flatnonzero(part == last[row])
    border = border[np.lexsort((u[border], row[border]))]
    place = np.arange(len(border)) - np.searchsorted(row[border], row[border])
    marked[border[place < wanted[row[border]]]] = True
    return marked


def draw_entries(weights: np.ndarray, bounds: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Draw stored values of a sparse matrix, row by row, by inverting each row's cumulative weight.

    The weights are rounded to multiples of 2**-30, whose sums are exact: what a row draws does not depend
    on the rows around it.

    Parameters
    ----------
    weights
        ``(nnz,)`` non-negative, below about 1,000.
    bounds
        ``(2, n)`` where each row begins and ends; its weights must not all be zero.
    u
        ``(n, size)`` uniform in [0, 1).

    Returns
    -------
    ``(n, size)`` positions into ``weights``.

    Examples
    --------
    >>> import numpy as np
    >>> draw_entries(np.array([1.0, 0.0, 3.0]), np.array([[0], [3]]), np.array([[0.2, 0.3, 0.9]])).tolist()
    [[0, 2, 2]]
    """
    total = np.concatenate([[0], np.cumsum(np.rint(weights * 2.0**30).astype(np.int64))])
    low, high = total[bounds[0]][:, None], total[bounds[1]][:, None]
    targets = low + (u * (high - low)).astype(np.int64)
    return np.searchsorted(total, targets.ravel(), side="right").reshape(u.shape) - 1


def draw_in_file_order(
    X: sparse.csr_matrix, group: np.ndarray, size: int, rng: np.random.RandomState
) -> tuple[np.ndarray, np.ndarray]:
    """Draw genes and put their groups in random order as UCE's official code does, in its float32 arithmetic.

    A shuffle takes as many random numbers as it happens to need, so cells come one after the other.

    Parameters
    ----------
    X
        ``(n, genes)`` counts; genes are drawn in proportion to ``log1p``.
    group
        ``(genes,)`` group (chromosome) of each gene, from 0.
    size
        Number of draws per cell.
    rng
        Legacy generator, which gives ``size`` uniform numbers and one shuffle for each cell.

    Returns
    -------
    drawn, ranks
        ``(n, size)`` columns of ``X``, and ``(n, groups)`` place of each group that was drawn.
    """
    drawn = np.empty((X.shape[0], size), dtype=np.int64)
    ranks = np.zeros((X.shape[0], group.max(initial=-1) + 1), dtype=np.int64)
    for i in range(X.shape[0]):
        weights = torch.log1p(torch.from_numpy(X[[i]].toarray()[0].astype(np.float32)))
        p = (weights / weights.sum()).numpy()
        # The second sum runs from left to right in float32.
        cumulated = np.cumsum((p / np.cumsum(p)[-1]).astype(np.float64))
        drawn[i] = np.searchsorted(cumulated / cumulated[-1], rng.random_sample(size), side="right")
        present = np.unique(group[drawn[i]])
        rng.shuffle(present)
        ranks[i, present] = np.arange(len(present))
    return drawn, ranks
