"""Counts that stay on disk: one file, a zarr store, or several of them that are read as one matrix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.abc import CSRDataset
from scipy import sparse

from scdrugmap._errors import InputError

#: Rows between two wanted ones that are read along rather than with a call of their own, and most rows of one read.
GAP, SPAN = 64, 8192


class FileCounts:
    """Rows of a matrix in an HDF5 file or a zarr store, which can be sent to another process.

    Parameters
    ----------
    path, name
        HDF5 file, and the data set or AnnData's sparse group in it; a zarr store needs no path.
    shape
        Cells and genes.
    X
        The open data set. That of an HDF5 file does not travel, and is opened again where rows are asked for.
    """

    def __init__(self, path: str, name: str, shape: tuple[int, int], X: Any = None) -> None:
        self.path, self.name, self.shape = path, name, (int(shape[0]), int(shape[1]))
        self._place = getattr(X, "group", X)
        self._indptr: np.ndarray | None = None
        self._loaded: sparse.csr_matrix | None = None

    @classmethod
    def of(cls, X: Any) -> FileCounts | None:
        """Wrap an open data set of h5py, zarr or AnnData; ``None`` for anything that is not in a file."""
        place = getattr(X, "group", X)
        module = type(place).__module__.split(".")[0]
        if module not in ("h5py", "zarr"):
            return None
        shape = X.shape if hasattr(X, "shape") else _shape_of(place)
        path = str(Path(place.file.filename).resolve()) if module == "h5py" else ""
        return cls(path, str(place.name), shape, place)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return FileCounts, (self.path, self.name, self.shape, None if self.path else self._place)

    @property
    def place(self) -> Any:
        """The open group or array.

        Raises
        ------
        InputError
            If the file cannot be opened here.
        """
        # A file that was closed meanwhile is as good as none.
        if self._place is None or (self.path and not self._place):
            import h5py

            try:
                self._place = h5py.File(self.path, "r")[self.name]
            except (OSError, KeyError) as error:
                raise InputError(
                    "adata",
                    f"{self.path}, which a worker cannot read ({error})",
                    "a file that all workers see and that nobody writes to",
                    "open it with backed='r' on a file system that the workers share, or call adata.to_memory().",
                ) from error
        return self._place

    @property
    def format(self) -> str:
        """``"csr"``, ``"csc"`` or ``"dense"``."""
        if hasattr(self.place, "shape"):
            return "dense"
        kind = self.place.attrs.get("encoding-type", self.place.attrs.get("h5sparse_format", ""))
        return "csc" if "csc" in str(kind) else "csr"

    @property
    def dtype(self) -> np.dtype:
        """Type of the values."""
        return np.dtype((self.place if self.format == "dense" else self.place["data"]).dtype)

    @property
    def nbytes(self) -> int:
        """Bytes in memory if all were read."""
        if self.format == "dense":
            return int(np.prod(self.shape)) * self.dtype.itemsize
        return int(self.place["data"].shape[0]) * (self.dtype.itemsize + self.place["indices"].dtype.itemsize)

    def __getitem__(self, rows: slice | np.ndarray) -> Any:
        """Read some rows: a slice, or ascending distinct numbers; sparse if the matrix is, else an array."""
        kind = self.format
        if kind == "dense":
            return self.place[rows]
        if kind == "csc":
            return self._by_gene()[rows]
        if isinstance(rows, slice):
            start, stop, step = rows.indices(self.shape[0])
            if step == 1:
                return self._span(start, max(stop, start))
            rows = np.arange(start, stop, step)
        parts = []
        for run in _runs(np.asarray(rows)):
            block = self._span(int(run[0]), int(run[-1]) + 1)
            parts.append(block if len(run) == block.shape[0] else block[run - run[0]])
        return sparse.vstack(parts, format="csr") if parts else self._span(0, 0)

    def _span(self, start: int, stop: int) -> sparse.csr_matrix:
        """Read consecutive rows of a matrix that is stored row by row."""
        if self._indptr is None:
            self._indptr = np.asarray(self.place["indptr"][:]).astype(np.int64)
        indptr = self._indptr[start : stop + 1]
        first, last = int(indptr[0]), int(indptr[-1])
        data, indices = self.place["data"][first:last], self.place["indices"][first:last]
        return sparse.csr_matrix((data, indices, indptr - first), shape=(stop - start, self.shape[1]))

    def _by_gene(self) -> sparse.csr_matrix:
        """A matrix that is stored gene by gene can only be read whole, and is so once."""
        if self._loaded is None:
            from anndata.io import sparse_dataset

            self._loaded = sparse.csr_matrix(sparse_dataset(self.place).to_memory().tocsr())
        return self._loaded


class DiskCounts(CSRDataset):
    """Counts of one or several matrices, below each other, that are read where rows are asked for.

    AnnData takes it as ``X``, as a layer and in ``raw``.

    Parameters
    ----------
    parts
        :class:`FileCounts`, or whatever gives rows.
    columns
        For each part the column here that each of its own stands for; ``None`` where they are the same.
    n_columns
        Number of columns.
    """

    backend = "hdf5"

    def __init__(self, parts: Sequence[Any], columns: Sequence[np.ndarray | None], n_columns: int) -> None:
        self.parts, self.columns = tuple(parts), tuple(columns)
        self.starts = np.concatenate([[0], np.cumsum([p.shape[0] for p in self.parts])]).astype(np.int64)
        self.shape = (int(self.starts[-1]), int(n_columns))

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return DiskCounts, (self.parts, self.columns, self.shape[1])

    @cached_property
    def dtype(self) -> np.dtype:
        """Type of the values."""
        return np.result_type(*(p.dtype for p in self.parts))

    @property
    def nbytes(self) -> int:
        """Bytes in memory if all were read."""
        return sum(int(p.nbytes) if hasattr(p, "nbytes") else int(p.data.nbytes + p.indices.nbytes) for p in self.parts)

    def __getitem__(self, index: Any) -> Any:
        """Read rows, or rows and columns, in the order asked for, as CSR."""
        rows, columns = index if isinstance(index, tuple) else (index, slice(None))
        rows = _numbers(rows, self.shape[0])
        if isinstance(rows, slice):
            out = self._read(np.arange(rows.start, rows.stop), consecutive=True)
        else:
            wanted, inverse = np.unique(rows, return_inverse=True)
            out = self._read(wanted)
            out = out if len(wanted) == len(rows) and (inverse[1:] > inverse[:-1]).all() else out[inverse]
        return (
            out
            if isinstance(columns, slice) and columns == slice(None)
            else out[:, np.ravel(_listed(columns, self.shape[1]))]
        )

    def to_memory(self) -> Any:
        """Read everything."""
        return self[:]

    def copy(self) -> Any:
        """Read everything: a copy of an object is one in memory."""
        return self[:]

    def _read(self, rows: np.ndarray, *, consecutive: bool = False) -> Any:
        """Rows with ascending distinct numbers."""
        cuts = np.searchsorted(rows, self.starts)
        out = []
        for i, part in enumerate(self.parts):
            own = rows[cuts[i] : cuts[i + 1]] - self.starts[i]
            if not len(own):
                continue
            block = _csr(part[int(own[0]) : int(own[-1]) + 1] if consecutive else part[own])
            place = self.columns[i]
            if place is not None:
                block = sparse.csr_matrix(
                    (block.data, place[block.indices], block.indptr), (block.shape[0], self.shape[1])
                )
                block.sort_indices()
            out.append(block)
        if not out:
            return sparse.csr_matrix((0, self.shape[1]), dtype=_plain(self.dtype))
        return out[0] if len(out) == 1 else sparse.csr_matrix(sparse.vstack(out, format="csr"))


def open_cells(source: Any, argument: str = "path") -> AnnData:
    """Open cells whose counts stay where they are.

    Parameters
    ----------
    source
        ``.h5ad`` file, zarr store, folder of either, or AnnCollection.
    argument
        Name of the caller's argument, for the error message.

    Returns
    -------
    AnnData with :class:`DiskCounts` in ``X`` and the layers; pairwise matrices (``obsp``, ``varp``) stay in the file.

    Raises
    ------
    InputError
        If that is no such thing, or the parts have different genes.
    """
    if is_collection(source):
        names = [f"adatas[{i}]" for i in range(len(source.adatas))]
        return _joined(dict(zip(names, source.adatas, strict=True)), argument)
    path = Path(source).expanduser()
    files = shards_of(path)
    if not files:
        expected = "an .h5ad file, a zarr store, or a folder of them"
        raise InputError(argument, str(path), expected, "check the path, or write the cells with adata.write_h5ad.")
    parts = {file.name: _open(file, argument) for file in files}
    return parts[path.name] if files == [path] else _joined(parts, argument)


def shards_of(path: Path) -> list[Path]:
    """Files that are read as one: the file or store itself, or those of a folder by name; none if it is no such thing."""
    if is_store(path) or (path.suffix == ".h5ad" and path.is_file()):
        return [path]
    inside = sorted(path.iterdir()) if path.is_dir() else []
    return [p for p in inside if is_store(p) or (p.suffix == ".h5ad" and p.is_file() and not p.name.startswith("."))]


def is_store(path: Path) -> bool:
    """Whether this is a folder that zarr wrote."""
    return path.is_dir() and any((path / name).is_file() for name in ("zarr.json", ".zgroup"))


def is_collection(data: Any) -> bool:
    """Tell whether this is an AnnCollection of anndata."""
    return type(data).__name__ == "AnnCollection" and type(data).__module__.startswith("anndata.")


def _open(path: Path, argument: str) -> AnnData:
    """Open one file or store; what is neither counts nor pairwise is read."""
    from anndata.io import read_elem

    try:
        if is_store(path):
            import zarr

            group: Any = zarr.open_group(path, mode="r")
        else:
            import h5py

            group = h5py.File(path, "r")
        if group.attrs.get("encoding-type") != "anndata":  # as anndata wrote before version 0.7
            return ad.read_h5ad(path)
        parts = {k: read_elem(group[k]) for k in ("obs", "var", "uns", "obsm", "varm") if k in group}
        layers = {k: _stored(group["layers"][k]) for k in group.get("layers", {})}
        raw = None
        if "raw" in group and "X" in group["raw"]:
            kept = {k: read_elem(group["raw"][k]) for k in ("var", "varm") if k in group["raw"]}
            raw = {"X": _stored(group["raw"]["X"]), **kept}
        X = _stored(group["X"]) if "X" in group else None
        return AnnData(X, layers={k: v for k, v in layers.items() if v is not None}, raw=raw, **parts)
    except (OSError, KeyError, ValueError, TypeError) as error:
        found = f"{path}: {type(error).__name__}: {error}"
        raise InputError(argument, found, "a readable file", "write it again with adata.write_h5ad.") from error


def _stored(place: Any) -> DiskCounts | None:
    """The counts of a group or an array of a file."""
    if place.attrs.get("encoding-type") == "null":
        return None
    part = FileCounts.of(place)
    assert part is not None
    return DiskCounts([part], [None], part.shape[1])


def _joined(parts: Mapping[str, AnnData], argument: str) -> AnnData:
    """Read several objects as one, with the genes in the order of the first."""
    first, names = next(iter(parts)), list(parts)
    genes = parts[first].var_names
    places = [_places(genes, parts[name].var_names, name, first, argument) for name in names]
    bare = [AnnData(obs=p.obs, var=parts[first].var, obsm=dict(p.obsm), uns=dict(p.uns)) for p in parts.values()]
    out = ad.concat(bare, join="outer", merge="first", uns_merge="same") if len(bare) > 1 else bare[0]
    layers = [k for k in parts[first].layers if all(k in p.layers for p in parts.values())]
    whole = all(p.X is not None for p in parts.values())

    def stacked(matrices: list[Any]) -> DiskCounts:
        return DiskCounts([_part(X) for X in matrices], places, len(genes))

    obsm = {k: v for k, v in out.obsm.items() if all(k in p.obsm for p in parts.values())}
    return AnnData(
        stacked([p.X for p in parts.values()]) if whole else None,
        obs=out.obs, var=parts[first].var.copy(), uns=dict(out.uns), obsm=obsm,
        layers={k: stacked([p.layers[k] for p in parts.values()]) for k in layers},
    )  # fmt: skip


def _part(X: Any) -> Any:
    """What gives the rows of one matrix."""
    if isinstance(X, DiskCounts) and len(X.parts) == 1 and X.columns[0] is None:
        return X.parts[0]
    return FileCounts.of(X) or X


def _places(genes: pd.Index, own: pd.Index, name: str, first: str, argument: str) -> np.ndarray | None:
    """The column that each gene of a part goes to; ``None`` where genes and order are the same.

    Raises
    ------
    InputError
        If the genes are others.
    """
    if own.equals(genes):
        return None
    if not own.is_unique or not genes.is_unique or set(own) != set(genes):
        lacking, more = genes.difference(own), own.difference(genes)
        which = [f"lacks {len(lacking):,} ({', '.join(map(str, lacking[:3]))})"] * bool(len(lacking))
        which += [f"has {len(more):,} more ({', '.join(map(str, more[:3]))})"] * bool(len(more))
        raise InputError(
            argument,
            f"{name}, which {' and '.join(which) or 'names genes twice in another order'}, beside {first}",
            "parts with the same genes, in any order",
            "join them first: sd.pp.concat_studies(studies, join='inner' or 'outer', path=...).",
        )
    return genes.get_indexer(own)


def _runs(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Cut ascending rows where a gap is wide or a read would be long."""
    if not len(rows):
        return
    cut = (np.diff(rows) > GAP) | (np.diff(rows // SPAN) > 0)
    yield from np.split(rows, np.flatnonzero(cut) + 1)


def _numbers(rows: Any, n: int) -> Any:
    """Row numbers, or a slice of step one."""
    if isinstance(rows, slice):
        start, stop, step = rows.indices(n)
        return slice(start, max(stop, start)) if step == 1 else np.arange(start, stop, step)
    return _listed(rows, n)


def _listed(rows: Any, n: int) -> np.ndarray:
    """Numbers from a mask, a slice, numbers from the end, or one number."""
    if isinstance(rows, slice):
        return np.arange(*rows.indices(n))
    rows = np.ravel(np.asarray(rows))
    rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
    return np.where(rows < 0, rows + n, rows)


def _csr(block: Any) -> sparse.csr_matrix:
    if sparse.issparse(block) or hasattr(block, "tocsr"):
        return sparse.csr_matrix(block.tocsr())
    block = np.asarray(block)
    return sparse.csr_matrix(block.astype(_plain(block.dtype), copy=False))


def _plain(dtype: np.dtype) -> np.dtype:
    """A type that SciPy's matrices have."""
    return np.dtype(np.float32) if dtype == np.float16 else dtype


def _shape_of(place: Any) -> tuple[int, int]:
    shape = place.attrs.get("shape", place.attrs.get("h5sparse_shape"))
    return int(shape[0]), int(shape[1])
