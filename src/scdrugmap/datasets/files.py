"""Files of cells and tables that a run reads and writes, and whether they can be written before anything is computed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from scdrugmap._anndata import writable
from scdrugmap._errors import InputError, OutputError, SpecError
from scdrugmap._files import atomic_path

#: Endings of files that hold cells.
CELLS = (".h5ad", ".h5mu", ".zarr")
#: Bytes of counts up to which a file is read as a whole, which is faster where they are read several times.
SMALL = 256 * 2**20
#: Endings of what :func:`scdrugmap.datasets.load` reads, beside a folder.
OTHERS = tuple(
    kind + packed for kind in (".h5", ".mtx", ".csv", ".tsv", ".txt", ".tar", ".rds", ".zip") for packed in ("", ".gz")
)


def read_cells(path: Path) -> Any:
    """Read an AnnData or MuData file, or counts from 10x (.h5, a folder, .mtx), text, R or an archive."""
    if not path.exists():
        raise InputError("input", str(path), "an existing file or folder of cells", "check the path.")
    try:
        if path.suffix == ".h5mu":
            import mudata

            return mudata.read_h5mu(path)
        if path.suffix == ".h5ad":
            import anndata

            return anndata.read_h5ad(path)
        if path.is_dir() or path.name.lower().endswith(OTHERS):
            from scdrugmap.datasets import load

            return load(path)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            "input",
            f"{path}: {type(error).__name__}: {error}",
            "a readable file",
            "write it again with adata.write_h5ad.",
        ) from error
    raise InputError("input", str(path), "cells: .h5ad, .h5mu, 10x, .csv or .tsv", "convert it with scanpy first.")


def open_cells(path: Path) -> Any:
    """Open cells for a run: counts that are large, in a zarr store or in a folder of files stay where they are."""
    from scdrugmap import _disk

    if not path.exists() or not _disk.shards_of(path):
        return read_cells(path)
    cells = _disk.open_cells(path, "input")
    counts = [m for m in (cells.X, *cells.layers.values()) if isinstance(m, _disk.DiskCounts)]
    one = path.suffix == ".h5ad"
    by_gene = one and any(m.parts[0].format == "csc" for m in counts)
    if one and (by_gene or sum(m.nbytes for m in counts) < SMALL):
        return read_cells(path)
    return cells


def check_writable(path: Path, *suffixes: str) -> None:
    """Raise unless a file of one of these kinds (or, without any, a folder) can be written; leave nothing behind."""
    if suffixes and path.suffix not in suffixes:
        raise SpecError("output", str(path), "a name ending with " + " or ".join(suffixes), "rename the output.")
    if not suffixes and path.is_file():
        raise SpecError("output", str(path), "a folder", "choose a name that is not a file.")
    folder = path if not suffixes else path.parent
    absent = [f for f in (folder, *folder.parents) if not f.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK) and (not path.exists() or os.access(path, os.W_OK))
    except OSError as error:
        raise OutputError("output", path, error) from None
    finally:
        for made in absent:
            if made.is_dir():
                made.rmdir()
    if not writable:
        raise SpecError("output", str(path), "a place that can be written", "choose another folder.")


def check_kind(cells: Any, path: Path) -> None:
    """Raise unless the kind of file fits what is to be written into it, and holds all of it."""
    suffix = ".h5mu" if hasattr(cells, "mod") else ".zarr" if _in_store(cells) else ".h5ad"
    if path.suffix in CELLS and path.suffix != suffix:
        raise SpecError("output", str(path), f"a {suffix} file, as the input", f"call it {path.stem}{suffix}.")
    if path.suffix in CELLS:
        writable(cells, "input")


def _in_store(cells: Any) -> bool:
    from scdrugmap._disk import is_store
    from scdrugmap._disk_write import source_of

    source = source_of(cells)
    return source is not None and is_store(source)


def write_cells(cells: Any, path: Path) -> None:
    """Write cells, whole or not at all; counts that are on disk are copied there."""
    from scdrugmap._disk_write import is_on_disk, save_cells

    if not hasattr(cells, "mod") and is_on_disk(cells):
        return save_cells(cells, path)
    with atomic_path(path) as temporary:
        if path.suffix == ".h5mu":
            cells.write_h5mu(temporary)
        else:
            cells.write_h5ad(temporary)


def write_frame(frame: Any, path: Path, *, index: bool = True) -> None:
    """Write a table as CSV or Parquet, by its name, whole or not at all."""
    with atomic_path(path) as temporary:
        if path.suffix == ".csv":
            frame.to_csv(temporary, index=index)
        else:
            frame.to_parquet(temporary)
