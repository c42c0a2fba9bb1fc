"""The walk through an HDF5 file: one link at a time, nothing that leads out of it, nothing that grows."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from formats import RATIO, Limits, Refused

_MB = 1 << 20
_OBJECTS = 20_000
_DEPTH = 24
_ATTRIBUTES = 1000
#: Filters that every HDF5 library has: deflate, shuffle, fletcher32, szip, nbit, scale-offset, and h5py's lzf.
_FILTERS = {1, 2, 3, 4, 5, 6, 32000}
_BLOCK = 1 << 22


def look_at_hdf5(path: Path, limits: Limits) -> dict[str, Any]:
    """Walk everything, then check that it is AnnData, MuData or 10x."""
    try:
        file = h5py.File(path, "r", locking=False)
    except OSError:
        raise Refused("the HDF5 file is damaged or not complete", "upload it again, or write it again.") from None
    with file:
        walk = _Walk(path.stat().st_size, limits)
        walk.group(file, 0)
        return _layout(file, limits)


class _Walk:
    """Every object once."""

    def __init__(self, size: int, limits: Limits) -> None:
        self.size, self.limits = size, limits
        self.seen: set[Any] = set()
        self.declared = 0

    def group(self, group: Any, depth: int) -> None:
        if depth > _DEPTH:
            raise Refused(f"groups are nested deeper than {_DEPTH}")
        self._attributes(group)
        if len(group) > _OBJECTS:
            raise Refused(f"more than {_OBJECTS:,} objects")
        for name in group:
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                raise Refused("the file points to another file (external link)")
            if isinstance(link, h5py.SoftLink):
                raise Refused("the file holds a soft link")
            if not isinstance(link, h5py.HardLink):
                raise Refused("the file holds a link of an unknown kind")
            thing = group[name]
            address = h5py.h5o.get_info(thing.id).addr
            if address in self.seen:
                raise Refused("one object stands in several places (hard link)")
            self.seen.add(address)
            if len(self.seen) > _OBJECTS:
                raise Refused(f"more than {_OBJECTS:,} objects")
            if isinstance(thing, h5py.Group):
                self.group(thing, depth + 1)
            elif isinstance(thing, h5py.Dataset):
                self._dataset(thing)
            else:
                raise Refused("the file holds a named data type")

    def _attributes(self, thing: Any) -> None:
        n = h5py.h5a.get_num_attrs(thing.id)
        if n > _ATTRIBUTES:
            raise Refused(f"more than {_ATTRIBUTES:,} attributes at one object")
        for i in range(n):
            attribute = h5py.h5a.open(thing.id, index=i)
            _plain(attribute.get_type())
            if int(np.prod(attribute.shape, dtype=float)) * attribute.get_type().get_size() > 64 * _MB:
                raise Refused("an attribute is larger than 64 MB")

    def _dataset(self, dataset: Any) -> None:
        self._attributes(dataset)
        plist = dataset.id.get_create_plist()
        if plist.get_external_count():
            raise Refused("the file keeps data in other files (external storage)")
        if plist.get_layout() == h5py.h5d.VIRTUAL:
            raise Refused("the file takes data from elsewhere (virtual data set)")
        for i in range(plist.get_nfilters()):
            number = plist.get_filter(i)[0]
            if number not in _FILTERS:
                raise Refused(
                    f"data are compressed with filter {number}, which this server does not have",
                    "write the file again with compression='gzip'.",
                )
        kind = dataset.id.get_type()
        _plain(kind)
        if dataset.shape is None:
            return
        itemsize = kind.get_size()
        declared = int(itemsize * np.prod(dataset.shape, dtype=float))
        self.declared += declared
        stored = dataset.id.get_storage_size()
        bomb = declared > 32 * _MB and declared > RATIO * max(stored, 1)
        if bomb or self.declared > self.limits["expanded"] or declared > RATIO * max(self.size, 32 * _MB):
            raise Refused(
                "the file expands to far more than it is (a shape or decompression bomb)", "send plain counts."
            )
        chunked = plist.get_layout() == h5py.h5d.CHUNKED
        if chunked and itemsize * np.prod(plist.get_chunk(), dtype=float) > 256 * _MB:
            raise Refused("a chunk is larger than 256 MB", "write the file again with the usual chunks.")


def _plain(kind: Any) -> None:
    """Numbers and text only, also inside of compounds, lists and arrays."""
    group = kind.get_class()
    if group == h5py.h5t.REFERENCE:
        raise Refused("the file holds object references, as very old h5ad files do", "write it with a current anndata.")
    if group == h5py.h5t.COMPOUND:
        for i in range(kind.get_nmembers()):
            _plain(kind.get_member_type(i))
    elif group in (h5py.h5t.VLEN, h5py.h5t.ARRAY):
        _plain(kind.get_super())
    elif group not in (h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.STRING, h5py.h5t.ENUM):
        raise Refused("the file holds data that are neither numbers nor text")


def _layout(file: Any, limits: Limits) -> dict[str, Any]:
    """AnnData, MuData or 10x, with matrices whose indices stay inside."""
    if isinstance(file.get("mod"), h5py.Group):
        if not len(file["mod"]):
            raise Refused("the MuData holds no modality")
        sizes = [_anndata(group, limits) for group in file["mod"].values()]
        return {"format": "h5mu", "cells": max(n for n, _ in sizes), "genes": sum(m for _, m in sizes)}
    if "obs" in file and "var" in file:
        cells, genes = _anndata(file, limits)
        return {"format": "h5ad", "cells": cells, "genes": genes}
    matrix = file.get("matrix")
    if isinstance(matrix, h5py.Group) and {"data", "indices", "indptr", "shape", "barcodes"} <= set(matrix):
        genes, cells = (int(n) for n in matrix["shape"][:2])
        _size(cells, genes, limits)
        _sparse(matrix, cells, genes)
        return {"format": "10x", "cells": cells, "genes": genes}
    raise Refused("an HDF5 file, but neither h5ad, h5mu nor 10x h5", "write it with adata.write_h5ad.")


def _anndata(group: Any, limits: Limits) -> tuple[int, int]:
    if not {"obs", "var"} <= set(group):
        raise Refused("obs or var is missing", "write the file with adata.write_h5ad.")
    cells, genes = _length(group["obs"]), _length(group["var"])
    _size(cells, genes, limits)
    if "X" not in group and not (isinstance(group.get("layers"), h5py.Group) and len(group["layers"])):
        raise Refused("there is no matrix of counts", "write the file with the counts in X or a layer.")
    places = [("X", group.get("X"))] + [(f"layers/{k}", v) for k, v in (group.get("layers") or {}).items()]
    for name, matrix in places:
        if matrix is None:
            continue
        shape = tuple(matrix.shape) if isinstance(matrix, h5py.Dataset) else tuple(matrix.attrs.get("shape", ()))
        if tuple(int(n) for n in shape) != (cells, genes):
            raise Refused(f"{name} has another shape than obs and var say")
    group.visititems(lambda _, thing: _maybe_sparse(thing))
    return cells, genes


def _length(table: Any) -> int:
    """Rows of a table as anndata writes it."""
    if isinstance(table, h5py.Dataset):
        raise Refused("obs or var is stored as very old anndata did", "write it with a current anndata.")
    index = table.attrs.get("_index", "_index")
    index = index.decode() if isinstance(index, bytes) else index
    column = table.get(index)
    if isinstance(column, h5py.Group):
        column = column.get("values", column.get("codes"))
    if not isinstance(column, h5py.Dataset) or column.ndim != 1:
        raise Refused("obs or var has no names", "write it with adata.write_h5ad.")
    return column.shape[0]


def _size(cells: int, genes: int, limits: Limits) -> None:
    if cells > limits["cells"]:
        raise Refused(f"{cells:,} cells are above the limit of {limits['cells']:,}", "send fewer cells.")
    if genes > 1_000_000:
        raise Refused(f"{genes:,} genes are above the limit of 1,000,000")


def _maybe_sparse(thing: Any) -> None:
    if isinstance(thing, h5py.Group) and {"data", "indices", "indptr"} <= set(thing):
        encoding = thing.attrs.get("encoding-type", "")
        encoding = encoding.decode() if isinstance(encoding, bytes) else encoding
        shape = [int(n) for n in thing.attrs.get("shape", ())]
        if len(shape) == 2:
            _sparse(thing, *(shape if encoding != "csc_matrix" else reversed(shape)))


def _sparse(group: Any, rows: int, columns: int) -> None:
    """Indices inside the matrix: compiled code trusts them."""
    data, indices, indptr = (group[k] for k in ("data", "indices", "indptr"))
    if not all(isinstance(d, h5py.Dataset) and d.ndim == 1 for d in (data, indices, indptr)):
        raise Refused("a sparse matrix is damaged")
    starts = indptr[:]
    if not all(np.issubdtype(d.dtype, np.integer) for d in (indices, indptr)) or len(starts) != rows + 1:
        raise Refused("a sparse matrix is damaged (row pointers)")
    if starts[0] != 0 or (np.diff(starts) < 0).any() or starts[-1] != len(data) or len(indices) != len(data):
        raise Refused("a sparse matrix is damaged (row pointers)")
    for start in range(0, len(indices), _BLOCK):
        block = indices[start : start + _BLOCK]
        if block.size and (block.min() < 0 or block.max() >= columns):
            raise Refused("a sparse matrix is damaged (column indices)")
