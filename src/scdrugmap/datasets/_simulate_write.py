"""Write an h5ad file block by block, so that only one block of counts is ever in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from anndata.io import write_elem
from scipy import sparse

from scdrugmap._files import atomic_path


class CsrWriter:
    """Grow a CSR matrix in an HDF5 group in the layout of anndata.

    Parameters
    ----------
    parent
        Group that gets the matrix.
    name
        Name of the matrix in it.
    n_columns
        Number of columns.
    dtype
        Type of the values.
    """

    def __init__(self, parent: h5py.Group, name: str, n_columns: int, dtype: Any = np.float32) -> None:
        self.n_columns, self.n_rows, self.n_stored = n_columns, 0, 0
        self.group = parent.create_group(name)
        self.group.attrs["encoding-type"] = "csr_matrix"
        self.group.attrs["encoding-version"] = "0.1.0"
        options: dict[str, Any] = {"shape": (0,), "maxshape": (None,), "chunks": (65536,), "compression": "lzf"}
        self.data = self.group.create_dataset("data", dtype=dtype, **options)
        self.indices = self.group.create_dataset("indices", dtype=np.int32, **options)
        self.indptr = self.group.create_dataset("indptr", dtype=np.int64, **options)
        self._append(self.indptr, np.zeros(1, dtype=np.int64))

    def append(self, rows: sparse.csr_matrix) -> None:
        """Add rows at the end."""
        self._append(self.data, rows.data)
        self._append(self.indices, rows.indices)
        self._append(self.indptr, rows.indptr[1:].astype(np.int64) + self.n_stored)
        self.n_rows += rows.shape[0]
        self.n_stored += rows.nnz

    def close(self) -> None:
        """Record the shape."""
        self.group.attrs["shape"] = np.array([self.n_rows, self.n_columns], dtype=np.int64)

    @staticmethod
    def _append(dataset: h5py.Dataset, values: np.ndarray) -> None:
        old = dataset.shape[0]
        dataset.resize((old + len(values),))
        dataset[old:] = values


def write_h5ad(
    path: Path, blocks: Iterable[sparse.csr_matrix], obs: Any, var: pd.DataFrame, uns: Mapping[str, Any]
) -> None:
    """Write blocks of counts and the annotation to ``path``; the file appears when it is complete.

    Parameters
    ----------
    path
        File to write.
    blocks
        Rows of ``X`` in order.
    obs
        Function without arguments that returns the annotation of the cells, called after the last block.
    var
        Annotation of the genes.
    uns
        Unstructured annotation.
    """
    with atomic_path(path) as partial, h5py.File(partial, "w") as file:
        file.attrs["encoding-type"] = "anndata"
        file.attrs["encoding-version"] = "0.1.0"
        writer = CsrWriter(file, "X", len(var))
        for block in blocks:
            writer.append(block)
        writer.close()
        write_elem(file, "obs", obs())
        write_elem(file, "var", var)
        write_elem(file, "uns", dict(uns))
        for empty in ("layers", "obsm", "varm", "obsp", "varp"):
            write_elem(file, empty, {})
