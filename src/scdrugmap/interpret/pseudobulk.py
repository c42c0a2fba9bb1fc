"""Sums of counts over the cells of one sample, which is the unit of every test in this room."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from scdrugmap.models.kit.values import check_values

if TYPE_CHECKING:
    from scdrugmap.embedding.source import CountSource

#: Added to every count before the logarithm, as in voom.
PRIOR_COUNT = 0.5
BLOCK = 4096


@dataclass(frozen=True, eq=False)
class Pseudobulk:
    """Units x genes.

    Parameters
    ----------
    counts
        ``(units, genes)`` summed counts.
    detected
        ``(units, genes)`` cells with at least one count.
    n_cells
        ``(units,)`` cells per unit.
    """

    counts: np.ndarray
    detected: np.ndarray
    n_cells: np.ndarray

    @cached_property
    def log_cpm(self) -> np.ndarray:
        """Log2 counts per million, ``(units, genes)``."""
        library = self.counts.sum(axis=1, keepdims=True)
        return np.log2((self.counts + PRIOR_COUNT) / (library + 1.0) * 1e6)

    def take(self, units: np.ndarray) -> Pseudobulk:
        """Return some units."""
        return replace(self, counts=self.counts[units], detected=self.detected[units], n_cells=self.n_cells[units])


@dataclass(frozen=True, eq=False)
class Units:
    """What is compared: one row per sample and label.

    Parameters
    ----------
    y
        ``(units,)`` 1 sensitive, 0 resistant.
    study
        ``(units,)`` study of each unit; units of different studies are never compared with each other.
    block
        ``(units,)`` patient (or sample) that may hold units of both labels.
    names
        ``(units,)`` sample of each unit.
    """

    y: np.ndarray
    study: np.ndarray
    block: np.ndarray
    names: np.ndarray

    def take(self, rows: np.ndarray) -> Units:
        """Return some units."""
        return Units(self.y[rows], self.study[rows], self.block[rows], self.names[rows])


def check_counts(source: CountSource, caller: str) -> None:
    """Refuse anything but raw counts, in whatever cell it stands, before anything is computed.

    Raises
    ------
    InputError
        On NaN, infinity, negative values or fractions.
    """
    for _, X in source.blocks(BLOCK):
        check_values(X, counts=True, model=caller)


def pseudobulk(source: CountSource, codes: np.ndarray, n_units: int, block: int = BLOCK) -> Pseudobulk:
    """Sum counts over units, block by block.

    Parameters
    ----------
    source
        Counts, cells x genes.
    codes
        ``(cells,)`` unit of each cell; negative for a cell that belongs to none.
    n_units
        Number of units.
    block
        Cells in memory at a time.

    Returns
    -------
    Sums, cells that express each gene, and cells per unit.

    Examples
    --------
    >>> from scdrugmap.embedding.source import CountSource
    >>> pseudobulk(CountSource(np.array([[1, 0], [2, 0], [0, 5]])), np.array([0, 0, 1]), 2).counts.tolist()
    [[3.0, 0.0], [0.0, 5.0]]
    """
    n_genes = source.shape[1]
    counts, detected = np.zeros((n_units, n_genes)), np.zeros((n_units, n_genes))
    for first, X in source.blocks(block):
        own = codes[first : first + X.shape[0]]
        rows = np.flatnonzero(own >= 0)
        if not len(rows):
            continue
        indicator = sparse.csr_matrix((np.ones(len(rows)), (own[rows], rows)), (n_units, X.shape[0]))
        counts += (indicator @ X.astype(np.float64)).toarray()
        detected += (indicator @ (X != 0).astype(np.float64)).toarray()
    return Pseudobulk(counts, detected, np.bincount(codes[codes >= 0], minlength=n_units))
