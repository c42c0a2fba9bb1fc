"""An h5ad file written block by block, so that a matrix larger than memory can be converted."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
import pandas as pd
from scipy import sparse

from scdrugmap._files import atomic_path

#: Cells that are turned at once when a genes x cells matrix is transposed.
BUCKET = 2048
_ENTRY = np.dtype([("cell", np.int32), ("gene", np.int32), ("value", np.float32)])


class CsrStore:
    """Write cells x genes CSR blocks into an h5ad file; it appears when the ``with`` block ends without an error.

    Parameters
    ----------
    path
        The file.
    n_vars
        Number of columns.
    """

    def __init__(self, path: Path, n_vars: int) -> None:
        self.n_vars = n_vars
        self._open = contextlib.ExitStack()
        self.file = self._open.enter_context(h5py.File(self._open.enter_context(atomic_path(path)), "w"))
        group = self.file.create_group("X")
        options: dict[str, Any] = {"shape": (0,), "maxshape": (None,), "chunks": (1 << 18,), "compression": "lzf"}
        self.data = group.create_dataset("data", dtype=np.float32, **options)
        self.indices = group.create_dataset("indices", dtype=np.int32, **options)
        self.counts: list[np.ndarray] = []

    def append(self, block: sparse.csr_matrix) -> None:
        """Add rows."""
        old, new = self.data.shape[0], self.data.shape[0] + block.nnz
        for dataset, values in ((self.data, block.data), (self.indices, block.indices)):
            dataset.resize((new,))
            dataset[old:] = values
        self.counts.append(np.diff(block.indptr))

    def finish(self, obs: pd.DataFrame, var: pd.DataFrame, uns: dict[str, Any]) -> None:
        """Write the tables."""
        from anndata.io import write_elem

        group = self.file["X"]
        counts = np.concatenate(self.counts) if self.counts else np.zeros(0, np.int64)
        group["indptr"] = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        group.attrs.update(
            {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": (len(obs), self.n_vars)}
        )
        self.file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        for name, table in (("obs", obs), ("var", var), ("uns", uns)):
            write_elem(self.file, name, table)
        for name in ("layers", "obsm", "obsp", "varm", "varp"):
            write_elem(self.file, name, {})

    def __enter__(self) -> CsrStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)


def transposed(blocks: Iterable[sparse.csr_matrix], n_cells: int, folder: Path) -> Iterator[sparse.csr_matrix]:
    """Turn blocks of gene rows (genes x cells) into blocks of cell rows (cells x genes).

    Entries are sorted into one scratch file per bucket of cells, then each bucket is turned by itself: memory holds
    one block or one bucket, never the matrix.

    Parameters
    ----------
    blocks
        CSR blocks of consecutive genes, each with ``n_cells`` columns.
    n_cells
        Number of cells.
    folder
        Place for scratch files.

    Yields
    ------
    CSR blocks of consecutive cells.
    """
    edges = np.append(np.arange(0, n_cells, BUCKET), n_cells)
    with tempfile.TemporaryDirectory(prefix=".transpose-", dir=folder) as scratch:
        paths = [Path(scratch) / str(i) for i in range(len(edges) - 1)]
        n_genes = 0
        for block in blocks:
            columns = block.tocsc()
            for i, path in enumerate(paths):
                _spill(path, columns[:, edges[i] : edges[i + 1]], n_genes)
            n_genes += block.shape[0]
        for i, path in enumerate(paths):
            entries = np.fromfile(path, _ENTRY) if path.exists() else np.empty(0, _ENTRY)
            where = (entries["cell"], entries["gene"])
            cells = sparse.csr_matrix((entries["value"], where), shape=(edges[i + 1] - edges[i], n_genes))
            cells.sort_indices()
            yield cells


def _spill(path: Path, part: sparse.csc_matrix, first_gene: int) -> None:
    coo = part.tocoo()
    entries = np.empty(coo.nnz, _ENTRY)
    entries["cell"], entries["gene"], entries["value"] = coo.col, coo.row + first_gene, coo.data
    with path.open("ab") as out:
        entries.tofile(out)
