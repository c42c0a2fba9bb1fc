"""Counts in a file that is open: worker processes open it for themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scdrugmap._anndata import Columns
from scdrugmap._disk import FileCounts
from scdrugmap._logging import warn


def portable(X: Any) -> Any:
    """Return counts that can be sent to another process: those in a file by its name, others as they are."""
    if isinstance(X, Columns):
        return Columns(portable(X.matrix), X.columns)
    found = FileCounts.of(X)
    if found is None:
        return X
    if found.format == "csc":
        warn(
            f"{found.name} of {Path(found.path).name} is stored gene by gene: reading some cells reads them all. "
            "Store it by cell instead: adata.X = adata.X.tocsr()."
        )
    return found
