"""Seurat objects in RDS files, through the optional package rds2py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from scdrugmap._errors import InputError, MissingDependencyError
from scdrugmap._keys import KEYS
from scdrugmap.datasets.loaders import _tidy


def read_seurat_rds(
    path: str | Path, *, assay: str = "RNA", response: str = "condition", facts: Mapping[str, str] | None = None
) -> ad.AnnData:
    """Read the counts and the cell table of a Seurat object (versions 3 and 4, as DRMref publishes them).

    Parameters
    ----------
    path
        The RDS file.
    assay
        Assay whose ``counts`` are read.
    response
        Column of ``meta.data`` with the response as text.
    facts
        Values for ``obs`` columns that hold for every cell.

    Returns
    -------
    AnnData as of :func:`scdrugmap.datasets.loaders.read_text`; ``obs`` keeps the columns of ``meta.data``.

    Raises
    ------
    MissingDependencyError
        If rds2py is not installed.
    InputError
        If the object has another structure.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> sd.datasets.loaders.read_seurat_rds("GSE104987_seurat_afterAnno.RDS")  # doctest: +SKIP
    """
    try:
        from rds2py import parse_rds
    except ImportError as error:
        raise MissingDependencyError(
            "rds2py", "rds", "reading Seurat objects (or convert them to h5ad in R)"
        ) from error

    path = Path(path)
    try:
        root = parse_rds(str(path))["attributes"]
        counts = _named(root["assays"])[assay]["attributes"]["counts"]["attributes"]
        genes, cells = (list(_values(part)) for part in _values(counts["Dimnames"]))
        shape = tuple(int(n) for n in _values(counts["Dim"]))
        parts = tuple(np.asarray(_values(counts[k])) for k in "xip")
        table = _frame(root["meta.data"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(
            "path",
            f"{path.name} without {error}",
            f"a Seurat object (version 3 or 4) with sparse counts in assay {assay!r}",
            "convert it to h5ad in R and use read_h5ad.",
        ) from error
    matrix = sparse.csc_matrix(parts, shape=shape).T.tocsr()
    obs = table if len(table) == len(cells) else pd.DataFrame(index=range(len(cells)))
    obs.index = pd.Index(cells)
    facts = {KEYS.study: _tidy.study_of(path) or "", **(facts or {})}
    obs = _tidy.tidy_obs(obs, facts, response=response if response in obs else None, what=path.name)
    adata = ad.AnnData(matrix.astype(np.float32), obs=obs, var=_tidy.tidy_var(pd.Index(genes)))
    adata.uns[KEYS.provenance] = _tidy.provenance(path, "seurat rds", assay=assay)
    return _tidy.finish(adata, path.name)


def _values(node: Any) -> Any:
    """Content of a parsed R vector or list."""
    return node["data"] if isinstance(node, dict) and "data" in node else node


def _names(node: Any) -> list[str]:
    return [str(n) for n in _values(node["attributes"]["names"])]


def _named(node: Any) -> dict[str, Any]:
    """Turn a named R list into a dictionary."""
    return dict(zip(_names(node), _values(node), strict=True))


def _frame(node: Any) -> pd.DataFrame:
    """Turn an R data frame into a table; factors become their levels."""
    columns = {}
    for name, column in _named(node).items():
        values = _values(column)
        levels = column.get("attributes", {}).get("levels") if isinstance(column, dict) else None
        if levels is not None:
            known = np.array([*_values(levels), None], dtype=object)
            codes = np.asarray(values, dtype=np.int64)
            values = known[np.where((codes > 0) & (codes < len(known)), codes - 1, -1)]
        columns[name] = np.asarray(values)
    return pd.DataFrame(columns)
