"""One way to read rows of counts, wherever they are: memory, backed h5ad, zarr or dask."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy import sparse

from scdrugmap._errors import InputTypeError


class CountSource:
    """Rows of a cells x genes matrix as CSR, read block by block.

    Parameters
    ----------
    X
        NumPy array, SciPy sparse matrix or array, AnnData's backed sparse data set, h5py or zarr array,
        or dask array (of any of these per chunk).

    Examples
    --------
    >>> import numpy as np
    >>> [block.shape for _, block in CountSource(np.eye(5)).blocks(2)]
    [(2, 5), (2, 5), (1, 5)]
    """

    def __init__(self, X: Any) -> None:
        if not hasattr(X, "shape") or len(X.shape) != 2:
            raise InputTypeError("X", type(X).__name__, "a two-dimensional matrix", "pass adata.X or a layer.")
        self.is_dask = type(X).__module__.startswith("dask.")
        if sparse.issparse(X) and X.format not in ("csr", "csc"):
            X = X.tocsr()
        if sparse.issparse(X) and X.format == "csc":
            X = X.tocsr()
        self.X = X
        self.shape: tuple[int, int] = (int(X.shape[0]), int(X.shape[1]))

    def __getitem__(self, rows: slice | np.ndarray) -> sparse.csr_matrix:
        """Return some rows, in the order asked for."""
        if isinstance(rows, slice) or sparse.issparse(self.X) or isinstance(self.X, np.ndarray):
            return self._read(rows)
        # Files and zarr arrays want ascending distinct indices.
        wanted, inverse = np.unique(rows, return_inverse=True)
        block = self._read(wanted)
        return block[inverse]

    def blocks(self, size: int, start: int = 0) -> Iterator[tuple[int, sparse.csr_matrix]]:
        """Yield ``(first row, rows)`` for consecutive blocks."""
        for first in range(start, self.shape[0], size):
            yield first, self[first : min(first + size, self.shape[0])]

    def _read(self, rows: slice | np.ndarray) -> sparse.csr_matrix:
        block = self.X[rows]
        if self.is_dask:
            block = block.compute()
        if not sparse.issparse(block):
            block = np.asarray(block)
        return sparse.csr_matrix(block)
