"""The one handler of AnnData and MuData: every public shell reads and writes through it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from scdrugmap._errors import InputError, InputTypeError, MissingKeyError
from scdrugmap.genes.identifiers import Genes

#: Columns of ``var`` that hold symbols, and those that hold Ensembl ids; the first that is there counts.
SYMBOL_COLUMNS = ("gene_symbol", "symbol", "gene_name", "gene_symbols", "gene_names", "feature_name")
ENSEMBL_COLUMNS = ("ensembl_id", "ensembl", "gene_ids", "ensembl_ids", "gene_id", "feature_id")
ENTREZ_COLUMNS = ("entrez_id", "entrez", "entrezgene", "ncbi_gene_id")


def is_mudata(data: object) -> bool:
    """Tell whether ``data`` is a MuData, without importing mudata."""
    module = sys.modules.get("mudata")
    return module is not None and isinstance(data, module.MuData)


def resolve(data: Any, *, mod: str = "rna", argument: str = "adata") -> AnnData:
    """Return the AnnData to work on.

    Parameters
    ----------
    data
        An AnnData, or a MuData with the modality ``mod``.
    mod
        Modality of a MuData; ignored for an AnnData.
    argument
        Name of the caller's argument, for the error message.

    Raises
    ------
    InputTypeError
        ``data`` is neither.
    MissingKeyError
        The MuData has no such modality.
    """
    if isinstance(data, AnnData):
        return data
    if is_mudata(data):
        if mod not in data.mod:
            raise MissingKeyError(
                "mod",
                repr(mod),
                f"a modality of the MuData: {', '.join(map(repr, data.mod))}",
                "pass mod=<one of them>.",
            )
        return resolve(data.mod[mod], argument=argument)
    raise InputTypeError(
        argument,
        f"a {type(data).__module__}.{type(data).__qualname__}",
        "an AnnData or a MuData",
        "read a file with anndata.read_h5ad(path), or wrap a matrix as anndata.AnnData(X, obs=..., var=...).",
    )


def reading(data: Any, *, mod: str = "rna", argument: str = "adata") -> AnnData:
    """Return the AnnData to read: :func:`resolve`, with the columns that a MuData's own ``obs`` adds.

    Labels and samples belong to a cell, not to a modality: where the modality lacks such a column, that of the MuData
    counts. Never write to what comes back.

    Parameters
    ----------
    data, mod, argument
        As in :func:`resolve`.
    """
    adata = resolve(data, mod=mod, argument=argument)
    if not is_mudata(data):
        return adata
    mirrors = tuple(f"{name}:" for name in data.mod)
    more = [c for c in data.obs.columns if c not in adata.obs.columns and not str(c).startswith(mirrors)]
    if not more:
        return adata
    obs = adata.obs.join(data.obs[more].reindex(adata.obs_names))
    parts = {"obsm": dict(adata.obsm), "layers": dict(adata.layers), "uns": dict(adata.uns)}
    out = AnnData(X=adata.X, obs=obs, var=adata.var, **parts)
    out.raw = adata.raw
    return out


def refuse_empty(adata: AnnData, argument: str = "adata", *, genes: bool = False) -> None:
    """Refuse an object without cells or, with ``genes``, without genes.

    Raises
    ------
    InputError
        There are none.
    """
    if adata.n_obs == 0 or (genes and adata.n_vars == 0):
        found = f"{adata.n_obs} cells x {adata.n_vars} genes"
        raise InputError(argument, found, "at least one of each" if genes else "at least one cell", "check the filter.")


@dataclass(frozen=True)
class Edit:
    """The object that a shell returns, and the AnnData inside it that the shell writes to.

    Parameters
    ----------
    root
        What the caller passed, or its copy.
    adata
        The AnnData to write to: ``root`` itself or one modality of it.
    mod
        Name of the modality.
    copied
        Whether ``root`` is a copy, which the shell then has to return.
    """

    root: Any
    adata: AnnData
    mod: str
    copied: bool

    def finish(self, obs_keys: Iterable[str] = ()) -> Any:
        """Mirror the written ``obs`` columns of a MuData, and return the copy, or ``None`` after work in place."""
        mirror_obs(self.root, self.mod, obs_keys)
        return self.root if self.copied else None


def edit(data: Any, *, copy: bool = False, mod: str = "rna", argument: str = "adata") -> Edit:
    """Open ``data`` for writing, in place or on a copy; end with :meth:`Edit.finish`.

    Parameters
    ----------
    data
        An AnnData or a MuData.
    copy
        Write to a copy.
    mod
        Modality of a MuData.
    argument
        Name of the caller's argument, for the error message.

    Raises
    ------
    InputTypeError
        ``data`` is neither.
    MissingKeyError
        The MuData has no such modality.
    InputError
        ``copy=True`` for an object that is backed by a file.
    """
    adata = resolve(data, mod=mod, argument=argument)
    if not copy:
        return Edit(data, adata, mod, copied=False)
    if adata.isbacked:
        raise InputError(
            "copy",
            True,
            "copy=False for an object that is backed by a file",
            f"work in place, or load it first: {argument} = {argument}.to_memory().",
        )
    root = data.copy()
    return Edit(root, resolve(root, mod=mod, argument=argument), mod, copied=True)


def mirror_obs(data: Any, mod: str, keys: Iterable[str]) -> None:
    """Copy columns of a modality's ``obs`` to ``mdata.obs["<mod>:<key>"]``; nothing happens for an AnnData.

    Cells that the modality does not have get missing values.
    """
    if not is_mudata(data):
        return
    source = data.mod[mod].obs
    position = np.asarray(data.obsmap[mod]).reshape(-1).astype(np.int64) - 1  # the map counts from one, zero is absent
    for key in keys:
        column = source[key]
        values = pd.api.extensions.take(column.array, position, allow_fill=True)
        data.obs[f"{mod}:{key}"] = pd.Series(values, index=data.obs.index)


def is_raw(adata: AnnData, layer: str | None) -> bool:
    """Whether ``layer`` means ``adata.raw``, which has genes of its own: there is no layer of this name."""
    return layer == "raw" and "raw" not in adata.layers and adata.raw is not None


def counts(adata: AnnData, layer: str | None = None) -> Any:
    """Return ``X``, a layer, or ``adata.raw`` (``"raw"``) as it is: dense, CSR, CSC, backed, zarr or dask.

    Raises
    ------
    MissingKeyError
        There is no such layer, or no ``X``.
    InputError
        A sparse matrix lacks some of its values, as in a file that was cut off.
    """
    if layer is None:
        if adata.X is None:
            raise MissingKeyError(
                "layer",
                None,
                "counts in X, which this object does not have",
                f"pass layer=<one of {list(adata.layers)}>." if len(adata.layers) else "set adata.X to the raw counts.",
            )
        return _whole(adata.X, "adata.X")
    if is_raw(adata, layer):
        return _whole(adata.raw.X, "adata.raw.X")
    if layer not in adata.layers:
        known = ", ".join(map(repr, [*adata.layers, *(["raw"] if adata.raw is not None else [])])) or "none"
        raise MissingKeyError("layer", repr(layer), f"one of the layers ({known})", "pass one of them, or None for X.")
    return _whole(adata.layers[layer], f"adata.layers[{layer!r}]")


def _whole(X: Any, name: str) -> Any:
    """Return a matrix whose parts fit together; anndata reads what a torn file holds without a look at it."""
    parts = X if sparse.issparse(X) else getattr(X, "group", None)
    if parts is None or getattr(X, "format", "") not in ("csr", "csc"):
        return X
    data, indices, indptr = (
        (X.data, X.indices, X.indptr) if sparse.issparse(X) else (parts["data"], parts["indices"], parts["indptr"])
    )
    n = X.shape[0 if X.format == "csr" else 1]
    if len(indptr) == n + 1 and int(indptr[0]) == 0 and int(indptr[-1]) == len(data) == len(indices):
        return X
    expected = f"{int(indptr[-1]) if len(indptr) else 0} values in {n} {'rows' if X.format == 'csr' else 'columns'}"
    raise InputError(
        name, f"{len(data)} values at {len(indices)} places, {len(indptr) - 1} of {n} lines", expected,
        "copy or download the file again: it is cut off or damaged.",
    )  # fmt: skip


def first_column(frame: pd.DataFrame, names: Iterable[str]) -> str | None:
    """Return the first of ``names`` that is a column of ``frame``."""
    return next((name for name in names if name in frame.columns), None)


def obs_column(adata: AnnData, key: str, argument: str) -> pd.Series:
    """Return a column of ``obs``.

    Raises
    ------
    MissingKeyError
        There is no such column.
    """
    if not isinstance(key, str) or key not in adata.obs.columns:
        known = ", ".join(map(repr, adata.obs.columns[:30])) or "none"
        raise MissingKeyError(
            argument, repr(key), f"a column of obs ({known})", f"pass {argument}=<one of them>, or add the column."
        )
    return adata.obs[key]


def gene_ids(adata: AnnData, layer: str | None = None) -> Genes:
    """Return the gene identifiers of ``adata`` (or of ``adata.raw``) as far as they are written in it.

    Symbols come from ``var["gene_symbol"]`` (or ``symbol``, ``gene_name``, ...), else from names that read as symbols;
    Ensembl ids, without version, from ``var["ensembl_id"]`` (or ``ensembl``, ``gene_ids``, ...), else from names
    that read as Ensembl ids.

    Examples
    --------
    >>> import anndata, numpy as np, pandas as pd
    >>> from scdrugmap._anndata import gene_ids
    >>> adata = anndata.AnnData(np.ones((2, 1)), var=pd.DataFrame(index=["ENSG00000141510.18"]))
    >>> gene_ids(adata).ensembl.tolist()
    ['ENSG00000141510']
    """
    var = adata.raw.var if is_raw(adata, layer) else adata.var
    symbol, ensembl = first_column(var, SYMBOL_COLUMNS), first_column(var, ENSEMBL_COLUMNS)
    return Genes.from_names(
        var.index,
        symbols=None if symbol is None else var[symbol],
        ensembl=None if ensembl is None else var[ensembl],
    )
