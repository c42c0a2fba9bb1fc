"""One way to read rows of counts, wherever they are: memory, backed h5ad, zarr or dask."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy import sparse

from scdrugmap._errors import InputError, InputTypeError


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


def check_values(X: sparse.csr_matrix, *, counts: bool, model: str) -> None:
    """Raise if a block holds values that a model cannot use.

    Parameters
    ----------
    X
        The block.
    counts
        Whether whole numbers are required.
    model
        Name for the message.

    Raises
    ------
    InputError
        On NaN, infinity, negative values or, with ``counts``, fractions.
    """
    data = X.data
    if data.size == 0:
        return
    if not np.isfinite(data).all():
        bad = int((~np.isfinite(data)).sum())
        raise InputError(
            "adata.X", f"{bad} NaN or infinite values", "finite counts", "remove or replace them before embedding."
        )
    fix = "pass layer='counts' (or wherever the raw counts are); sd.pp.check(adata) shows what X holds."
    if data.min() < 0:
        raise InputError("adata.X", f"negative values (minimum {data.min():.4g})", "raw counts", fix)
    if counts and not np.array_equal(data, np.rint(data)):
        share = float(np.mean(data != np.rint(data)))
        raise InputError(
            "adata.X",
            f"{share:.0%} of the stored values are not whole numbers",
            f"raw counts, which {model} needs",
            fix,
        )
