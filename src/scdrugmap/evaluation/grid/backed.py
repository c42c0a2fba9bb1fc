"""Counts in a file that is open: worker processes open it for themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scdrugmap._anndata import Columns
from scdrugmap._errors import InputError
from scdrugmap._logging import warn


class FileCounts:
    """Rows of counts in an HDF5 file, which can be sent to another process.

    Parameters
    ----------
    path, name
        The file, and the data set or AnnData's sparse group in it.
    shape
        Cells and genes.
    X
        The open data set; it does not travel, and is opened again where rows are asked for.
    """

    def __init__(self, path: str, name: str, shape: tuple[int, int], X: Any = None) -> None:
        self.path, self.name, self.shape, self._X = path, name, shape, X

    def __getitem__(self, rows: Any) -> Any:
        """Read some rows.

        Raises
        ------
        InputError
            If the file cannot be opened here.
        """
        if self._X is None:
            self._X = self._open()
        return self._X[rows]

    def __reduce__(self) -> tuple[Any, tuple[str, str, tuple[int, int]]]:
        return FileCounts, (self.path, self.name, self.shape)

    def _open(self) -> Any:
        import h5py
        from anndata.io import sparse_dataset

        try:
            place = h5py.File(self.path, "r")[self.name]
        except (OSError, KeyError) as error:
            raise InputError(
                "adata",
                f"{self.path}, which a worker cannot read ({error})",
                "a file that all workers see and that nobody writes to",
                "open it with backed='r' on a file system that the workers share, or call adata.to_memory().",
            ) from error
        return sparse_dataset(place) if isinstance(place, h5py.Group) else place


def portable(X: Any) -> Any:
    """Return counts that can be sent to another process: those of an open HDF5 file by name, others as they are."""
    if isinstance(X, Columns):
        return Columns(portable(X.matrix), X.columns)
    place = getattr(X, "group", X)
    if not type(place).__module__.startswith("h5py."):
        return X
    if getattr(X, "format", "") == "csc":
        warn(
            f"{place.name} of {Path(place.file.filename).name} is stored gene by gene: reading some cells reads them all. "
            "Store it by cell instead: adata.X = adata.X.tocsr()."
        )
    path = str(Path(place.file.filename).resolve())
    return FileCounts(path, str(place.name), (int(X.shape[0]), int(X.shape[1])), X)
