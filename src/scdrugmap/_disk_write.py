"""Write h5ad files and zarr stores whose counts are never in memory as a whole."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.io import write_elem
from scipy import sparse

from scdrugmap._disk import DiskCounts, FileCounts, is_store
from scdrugmap._files import atomic_folder, atomic_path

#: Rows of counts or of an embedding that are copied at a time.
BLOCK = 4096


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
    path: Path,
    blocks: Iterable[sparse.csr_matrix],
    obs: Callable[[], pd.DataFrame],
    var: pd.DataFrame,
    uns: Mapping[str, Any],
    *,
    obsm: Mapping[str, Any] | None = None,
    layers: Mapping[str, DiskCounts] | None = None,
    dtype: Any = np.float32,
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
    obsm, layers
        Embeddings and further counts.
    dtype
        Type of the values of ``X``.
    """
    with atomic_path(path) as partial, h5py.File(partial, "w") as file:
        file.attrs["encoding-type"] = "anndata"
        file.attrs["encoding-version"] = "0.1.0"
        _write_csr(file, "X", blocks, len(var), dtype)
        write_elem(file, "obs", obs())
        write_elem(file, "var", var)
        write_elem(file, "uns", dict(uns))
        for empty in ("layers", "obsm", "varm", "obsp", "varp"):
            write_elem(file, empty, {})
        for name, counts in (layers or {}).items():
            _write_csr(file["layers"], name, _blocks(counts), len(var), counts.dtype)
        for name, values in (obsm or {}).items():
            write_elem(file["obsm"], name, values)


def save_cells(adata: AnnData, path: Path) -> None:
    """Write an object whose counts are on disk, with all that was added to it.

    The file or store that the counts come from is copied as it is and the annotation written into the copy; counts of
    several files are copied block by block into one.

    Parameters
    ----------
    adata
        Of :func:`scdrugmap._disk.open_cells`.
    path
        ``.h5ad``, or ``.zarr`` if the counts are in one zarr store; appears when it is complete.
    """
    adata.strings_to_categoricals()
    source = source_of(adata)
    if source is not None and is_store(source) and path.suffix == ".zarr":
        import zarr

        with atomic_folder(path) as folder:
            shutil.copytree(source, folder, dirs_exist_ok=True)
            group = zarr.open_group(folder, mode="r+", use_consolidated=False)
            _annotate(group, adata)
            if zarr.open_group(source, mode="r").metadata.consolidated_metadata is not None:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # zarr warns of what it does for every store of version 3
                    zarr.consolidate_metadata(group.store)
        return
    if source is not None and source.suffix == path.suffix == ".h5ad":
        with atomic_path(path) as partial:
            shutil.copyfile(source, partial)
            with h5py.File(partial, "r+") as file:
                _annotate(file, adata)
        return
    X: Any = adata.X
    layers: Any = dict(adata.layers)
    write_h5ad(path, _blocks(X), lambda: adata.obs, adata.var, adata.uns, obsm=adata.obsm, layers=layers, dtype=X.dtype)


def is_on_disk(adata: AnnData) -> bool:
    """Whether counts of an object are read from files where they are needed."""
    return any(isinstance(m, DiskCounts) for m in (adata.X, *adata.layers.values()))


def source_of(adata: AnnData) -> Path | None:
    """The one file or store that the counts of an object come from, as they are."""
    X = next((m for m in (adata.X, *adata.layers.values()) if isinstance(m, DiskCounts)), None)
    if X is None or len(X.parts) != 1 or X.columns[0] is not None:
        return None
    part = X.parts[0]
    if not isinstance(part, FileCounts):
        return None
    if part.path:
        return Path(part.path)
    root = getattr(part.place.store, "root", None)
    return None if root is None else Path(root)


def _annotate(group: Any, adata: AnnData) -> None:
    """Write everything but counts and pairwise matrices into a copy of the file."""
    write_elem(group, "obs", adata.obs)
    write_elem(group, "var", adata.var)
    write_elem(group, "uns", dict(adata.uns))
    for slot in ("obsm", "varm"):
        values = getattr(adata, slot)
        if slot not in group:
            write_elem(group, slot, {})
        for name in [n for n in group[slot] if n not in values]:
            del group[slot][name]
        for name, value in values.items():
            if name not in group[slot] or not _same(group[slot][name], value):
                write_elem(group[slot], name, value)


def _same(stored: Any, value: Any) -> bool:
    """Whether an array is in the file already; HDF5 does not give back the space of what is replaced."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub" or not hasattr(stored, "shape"):
        return False
    if stored.shape != value.shape or stored.dtype != value.dtype:
        return False
    parts = range(0, len(value), BLOCK)
    return all(
        np.array_equal(stored[i : i + BLOCK], value[i : i + BLOCK], equal_nan=value.dtype.kind == "f") for i in parts
    )


def _blocks(counts: DiskCounts) -> Iterator[sparse.csr_matrix]:
    for first in range(0, counts.shape[0], BLOCK):
        yield counts[first : first + BLOCK]


def _write_csr(parent: Any, name: str, blocks: Iterable[sparse.csr_matrix], n_columns: int, dtype: Any) -> None:
    writer = CsrWriter(parent, name, n_columns, dtype)
    for block in blocks:
        writer.append(block)
    writer.close()
