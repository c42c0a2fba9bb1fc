"""Reading cells and making sure that results can be written, before anything is computed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from scdrugmap._errors import InputError


def read_cells(path: Path) -> Any:
    """Read an AnnData or MuData file."""
    if not path.exists():
        raise InputError("input", str(path), "an existing .h5ad or .h5mu file", "check the path.")
    try:
        if path.suffix == ".h5mu":
            import mudata

            return mudata.read_h5mu(path)
        if path.suffix == ".h5ad":
            import anndata

            return anndata.read_h5ad(path)
    except Exception as error:
        raise InputError(
            "input",
            f"{path}: {type(error).__name__}: {error}",
            "a readable file",
            "write it again with adata.write_h5ad.",
        ) from error
    raise InputError("input", str(path), "a .h5ad or .h5mu file", "convert it with scanpy first.")


def check_writable(path: Path, *suffixes: str) -> None:
    """Raise unless a file of one of these kinds (or, without any, a folder) can be written."""
    if suffixes and path.suffix not in suffixes:
        raise InputError("output", str(path), "a name ending with " + " or ".join(suffixes), "rename the output.")
    if not suffixes and path.is_file():
        raise InputError("output", str(path), "a folder", "choose a name that is not a file.")
    folder = path if not suffixes else path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            "output", str(path), "a place that can be written", f"choose another folder ({error})."
        ) from None
    if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise InputError("output", str(path), "a place that can be written", "choose another folder.")


def write_cells(cells: Any, path: Path) -> None:
    """Write through a temporary name, so that a kill leaves no half file."""
    temporary = path.with_name(f".{path.name}.partial{path.suffix}")
    if path.suffix == ".h5mu":
        cells.write_h5mu(temporary)
    else:
        cells.write_h5ad(temporary)
    temporary.replace(path)
