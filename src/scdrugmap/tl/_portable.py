"""Cells that can be sent to another process: those of an open file travel as its name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


class Cells:
    """An AnnData that a function may hold which runs in another process.

    Parameters
    ----------
    adata
        In memory, or backed by an h5ad file that the other process sees as well; ``obs`` and ``var`` travel as they are
        now, and of a part of a backed object the counts do, too.
    """

    def __init__(self, adata: AnnData) -> None:
        self.adata = adata

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        if not self.adata.isbacked:
            return Cells, (self.adata,)
        if self.adata.is_view:
            return Cells, (self.adata.to_memory(),)
        return _reopened, (str(Path(str(self.adata.filename)).resolve()), self.adata.obs, self.adata.var)


def _reopened(file: str, obs: pd.DataFrame, var: pd.DataFrame) -> Cells:
    import anndata

    adata = anndata.read_h5ad(file, backed="r")
    adata.obs, adata.var = obs, var
    return Cells(adata)
