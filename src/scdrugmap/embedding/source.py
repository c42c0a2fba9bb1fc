"""The one reading of counts, wherever they are (memory, backed h5ad, zarr, dask) and however they are stored."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import Any, Self

import numpy as np
from scipy import sparse

from scdrugmap._anndata import Columns
from scdrugmap._disk import DiskCounts, FileCounts
from scdrugmap._errors import InputTypeError

#: Types whose every value float32 holds exactly; wider ones become float64.
_NARROW = ("bool", "int8", "uint8", "int16", "uint16", "float16", "float32")


class CountSource:
    """Rows of a cells x genes matrix as canonical CSR, read block by block.

    One matrix gives one result, however it is stored: blocks are float32 (float64 where the type of the matrix needs
    it), with sorted 32-bit indices, repeated entries added up and no stored zeros. The matrix itself stays as it is.

    Parameters
    ----------
    X
        NumPy array or matrix, SciPy sparse matrix or array, AnnData's backed sparse data set, h5py or zarr array,
        dask array (of any of these per chunk), or :class:`scdrugmap._anndata.Columns` of one of these. Masked entries
        are missing values (NaN).

    Examples
    --------
    >>> import numpy as np
    >>> [block.shape for _, block in CountSource(np.eye(5)).blocks(2)]
    [(2, 5), (2, 5), (1, 5)]
    """

    def __init__(self, X: Any) -> None:
        self.columns: np.ndarray | None = None
        self.rows: np.ndarray | None = None
        if isinstance(X, Columns):
            X, self.columns = X.matrix, X.columns
        if isinstance(X, DiskCounts) and len(X.parts) == 1 and X.columns[0] is None:
            X = X.parts[0]
        if hasattr(X, "iloc"):
            X = X.to_numpy()
        if not hasattr(X, "shape") or len(X.shape) != 2:
            raise InputTypeError("X", type(X).__name__, "a two-dimensional matrix", "pass adata.X or a layer.")
        self.is_dask = type(X).__module__.startswith("dask.")
        if sparse.issparse(X) and X.format != "csr":
            X = X.tocsr()
        X = FileCounts.of(X) or X
        self.X = X
        n_columns = X.shape[1] if self.columns is None else len(self.columns)
        self.shape: tuple[int, int] = (int(X.shape[0]), int(n_columns))

    @property
    def travels(self) -> bool:
        """Whether another process can read the counts for itself, from the files that they are in."""
        parts = self.X.parts if isinstance(self.X, DiskCounts) else [self.X]
        return all(isinstance(part, FileCounts) for part in parts)

    def __getitem__(self, rows: slice | np.ndarray) -> sparse.csr_matrix:
        """Return some rows, in the order asked for."""
        if self.rows is not None:
            rows = self.rows[rows]
            if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all():
                rows = slice(int(rows[0]), int(rows[-1]) + 1)
        if isinstance(rows, slice) or sparse.issparse(self.X) or isinstance(self.X, np.ndarray):
            return self._read(rows)
        # Files and zarr arrays want ascending distinct indices.
        wanted, inverse = np.unique(rows, return_inverse=True)
        block = self._read(wanted)
        return block[inverse]

    def take(self, rows: np.ndarray) -> Self:
        """Return some rows as a source of their own; nothing is read yet."""
        out = copy(self)
        out.rows = np.asarray(rows if self.rows is None else self.rows[rows])
        out.shape = (len(out.rows), self.shape[1])
        return out

    def blocks(self, size: int, start: int = 0) -> Iterator[tuple[int, sparse.csr_matrix]]:
        """Yield ``(first row, rows)`` for consecutive blocks."""
        for first in range(start, self.shape[0], size):
            yield first, self[first : min(first + size, self.shape[0])]

    def _read(self, rows: slice | np.ndarray) -> sparse.csr_matrix:
        block = self.X[rows]
        if self.is_dask:
            block = block.compute()
        block = canonical(block)
        return block if self.columns is None else canonical(block[:, self.columns])


def source_of(X: Any) -> CountSource:
    """Return counts as a source; one that is a source already stays as it is."""
    return X if isinstance(X, CountSource) else CountSource(X)


def canonical(block: Any) -> sparse.csr_matrix:
    """Return a matrix as CSR in the one form that models read; the input is not changed.

    Parameters
    ----------
    block
        Dense or sparse, of numbers or truth values.

    Raises
    ------
    InputTypeError
        The matrix holds no numbers.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy import sparse
    >>> twice = sparse.csr_matrix((np.array([1, 2], np.int8), [0, 0], [0, 2]), shape=(1, 2))
    >>> canonical(twice).toarray().tolist()
    [[3.0, 0.0]]
    """
    if hasattr(block, "tocsr"):
        given = block.tocsr()
        if given.dtype.kind not in "fiub":
            raise _not_numbers(given.dtype)
        out = sparse.csr_matrix(
            (given.data.astype(_wide(given.dtype), copy=False), given.indices, given.indptr), shape=given.shape
        )
    else:
        dense = np.ma.filled(block.astype(np.float64), np.nan) if np.ma.isMaskedArray(block) else np.asarray(block)
        try:
            out = sparse.csr_matrix(dense.astype(_wide(dense.dtype), copy=False))
        except (TypeError, ValueError):
            raise _not_numbers(dense.dtype) from None
    if not out.has_canonical_format or not out.data.all():
        out = out.copy()
        out.sum_duplicates()
        out.eliminate_zeros()
    if out.indices.dtype != np.int32 and max(out.nnz, *out.shape) < np.iinfo(np.int32).max:
        parts = (out.data, out.indices.astype(np.int32), out.indptr.astype(np.int32))
        out = sparse.csr_matrix(parts, shape=out.shape)
    return out


def _wide(dtype: np.dtype) -> type:
    """The type that values are read in."""
    if dtype.kind not in "fiubO":
        raise _not_numbers(dtype)
    return np.float32 if dtype.name in _NARROW else np.float64


def _not_numbers(dtype: np.dtype) -> InputTypeError:
    return InputTypeError("X", f"values of the type {dtype}", "numbers", "pass the matrix of raw counts.")
