"""The one handler of AnnData and MuData: every public shell reads and writes through it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.io import sparse_dataset
from scipy import sparse

from scdrugmap._disk import DiskCounts, FileCounts, is_collection, open_cells
from scdrugmap._errors import InputError, InputTypeError, MissingKeyError, ScDrugMapWarning
from scdrugmap.genes.features import TYPE_COLUMNS, feature_kinds
from scdrugmap.genes.identifiers import Genes, reads_as

#: Columns of ``var`` that hold symbols, and those that hold Ensembl ids; the first that is there counts.
SYMBOL_COLUMNS = ("gene_symbol", "symbol", "gene_name", "gene_symbols", "gene_names", "feature_name")
ENSEMBL_COLUMNS = ("ensembl_id", "ensembl", "gene_ids", "ensembl_ids", "gene_id", "feature_id")
ENTREZ_COLUMNS = ("entrez_id", "entrez", "entrezgene", "ncbi_gene_id")
#: Name under which ``adata.raw`` is read where there is no layer of that name.
RAW = "raw"


def is_mudata(data: object) -> bool:
    """Tell whether ``data`` is a MuData, without importing mudata."""
    module = sys.modules.get("mudata")
    return module is not None and isinstance(data, module.MuData)


def no_pull() -> AbstractContextManager[Any]:
    """Keep MuData from copying columns of its modalities by itself; from version 0.4 on it does not."""
    import mudata

    return mudata.set_options(pull_on_update=False) if hasattr(mudata, "set_options") else nullcontext()


def resolve(data: Any, *, mod: str = "rna", argument: str = "adata") -> AnnData:
    """Return the AnnData to work on.

    Parameters
    ----------
    data
        An AnnData, a MuData with the modality ``mod``, or an AnnCollection, which is read as one AnnData.
    mod
        Modality of a MuData; ignored for an AnnData.
    argument
        Name of the caller's argument, for the error message.

    Raises
    ------
    InputTypeError
        ``data`` is none of these.
    MissingKeyError
        The MuData has no such modality.
    """
    if isinstance(data, AnnData):
        return data
    if is_collection(data):
        return open_cells(data, argument)
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
        ``copy=True`` for an object that is backed by a file, or a part of such an object, which cannot take results.
    """
    if is_collection(data):
        raise InputError(
            argument, "an AnnCollection, into which no result can be written", "an AnnData",
            f"open it as one: {argument} = sd.datasets.load({argument}, backed=True).",
        )  # fmt: skip
    adata = resolve(data, mod=mod, argument=argument)
    if not copy:
        if adata.isbacked and adata.is_view:
            raise InputError(
                argument,
                "some cells or genes of an object that is backed by a file, into which nothing can be written",
                "an object in memory, or the whole object",
                f"load it first: {argument} = {argument}.to_memory().",
            )
        return Edit(data, adata, mod, copied=False)
    if adata.isbacked or isinstance(adata.X, DiskCounts):
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


@dataclass(frozen=True)
class Columns:
    """Some columns of a matrix that need not be in memory; rows are read as from the matrix itself.

    Parameters
    ----------
    matrix
        Cells x features: dense, sparse, backed or zarr.
    columns
        Numbers of the columns, in order.
    """

    matrix: Any
    columns: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """Cells and chosen columns."""
        return int(self.matrix.shape[0]), len(self.columns)

    def __getitem__(self, rows: Any) -> Any:
        return self.matrix[rows][:, self.columns]


def is_raw(adata: AnnData, layer: str | None) -> bool:
    """Whether ``layer`` means ``adata.raw``, which has genes of its own: there is no layer of this name."""
    return layer == RAW and RAW not in adata.layers and adata.raw is not None


def var_of(adata: AnnData, layer: str | None = None) -> pd.DataFrame:
    """Return the table of the features of ``X`` and the layers, or of ``adata.raw``."""
    return adata.raw.var if is_raw(adata, layer) else adata.var


def features(adata: AnnData, layer: str | None = None) -> np.ndarray:
    """Return what each column is: ``""`` for a gene, else ``"antibody"``, ``"spike-in"``, ``"summary"`` and so on."""
    var = var_of(adata, layer)
    kinds = feature_kinds(var.index)
    for column in TYPE_COLUMNS:
        if column in var:
            told = feature_kinds(np.full(len(var), ""), var[column])
            kinds = np.where(told != "", told, kinds)
    return kinds


def tally(kinds: np.ndarray, names: Iterable[object]) -> str:
    """Say how many features of which kind there are, with some names: ``3 antibody (CD3, CD8)``."""
    table = pd.Series(np.asarray(names, dtype=object)[kinds != ""]).groupby(kinds[kinds != ""], sort=False)
    return "; ".join(f"{len(group):,} {kind} ({', '.join(map(str, group[:3]))})" for kind, group in table)


def _genes(adata: AnnData, layer: str | None) -> np.ndarray | None:
    """Numbers of the columns that are genes; ``None`` where all are, or none is (an object of antibodies alone)."""
    gene = features(adata, layer) == ""
    return np.flatnonzero(gene) if gene.any() and not gene.all() else None


def counts(adata: AnnData, layer: str | None = None, *, quiet: bool = False) -> Any:
    """Return ``X``, a layer or (``layer="raw"``) ``adata.raw``, as it is: dense, CSR, CSC, backed, zarr or dask.

    Features that are no genes (antibodies, guides, spike-ins, tallies) are left out, as :func:`gene_ids` does.

    Parameters
    ----------
    adata
        The object.
    layer
        Name of the layer; ``None`` for ``X``.
    quiet
        Do not warn about features that are left out.

    Raises
    ------
    MissingKeyError
        There is no such layer, or no ``X``.
    InputError
        A sparse matrix lacks some of its values, as in a file that was cut off.
    """
    matrix, genes = _matrix(adata, layer), _genes(adata, layer)
    if genes is None:
        return matrix
    if not quiet:
        left = tally(features(adata, layer), var_of(adata, layer).index)
        warnings.warn(f"columns that are no genes are left out: {left}.", ScDrugMapWarning, stacklevel=3)
    return matrix[:, genes] if type(matrix).__module__.startswith("dask.") else Columns(matrix, genes)


def _matrix(adata: AnnData, layer: str | None) -> Any:
    """The matrix behind a layer's name."""
    raw = f'layer="{RAW}" for adata.raw' if adata.raw is not None else ""
    if layer is None:
        if adata.X is None:
            places = [f"layer=<one of {list(adata.layers)}>"] * bool(len(adata.layers)) + [raw] * bool(raw)
            fix = f"pass {' or '.join(places)}." if places else "set adata.X to the raw counts."
            raise MissingKeyError("layer", None, "counts in X, which this object does not have", fix)
        return _whole(adata.X, "adata.X")
    if is_raw(adata, layer):
        return _whole(adata.raw.X, "adata.raw.X")
    if layer not in adata.layers:
        known = ", ".join(map(repr, [*adata.layers, *([RAW] if adata.raw is not None else [])])) or "none"
        fix = f"pass one of them, or None for X{raw and ', or ' + raw}."
        raise MissingKeyError("layer", repr(layer), f"one of the layers ({known})", fix)
    return _whole(adata.layers[layer], f"adata.layers[{layer!r}]")


def _whole(X: Any, name: str) -> Any:
    """Return a matrix whose parts fit together; anndata reads what a torn file holds without a look at it."""
    if isinstance(X, DiskCounts):
        for part in X.parts:
            if isinstance(part, FileCounts) and part.format != "dense":
                _whole(sparse_dataset(part.place), name)
        return X
    parts = X if sparse.issparse(X) else getattr(X, "group", None)
    if parts is None or getattr(X, "format", "") not in ("csr", "csc"):
        return X
    data, indices, indptr = (
        (X.data, X.indices, X.indptr) if sparse.issparse(X) else (parts["data"], parts["indices"], parts["indptr"])
    )
    n = X.shape[0 if X.format == "csr" else 1]
    n_data, n_indices, n_lines = (int(a.shape[0]) for a in (data, indices, indptr))
    if n_lines == n + 1 and int(indptr[0]) == 0 and int(indptr[n_lines - 1]) == n_data == n_indices:
        return X
    lines = "rows" if X.format == "csr" else "columns"
    expected = f"{int(indptr[n_lines - 1]) if n_lines else 0} values in {n} {lines}"
    raise InputError(
        name, f"{n_data} values at {n_indices} places, {n_lines - 1} of {n} lines", expected,
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


def as_text(column: pd.Series) -> np.ndarray:
    """Return the values of a column as text; a missing one is ``"nan"``, whichever pandas reads it."""
    return column.astype(object).where(column.notna(), "nan").astype(str).to_numpy(dtype=object).astype(str)


def obs_text(adata: AnnData, key: str, argument: str) -> np.ndarray:
    """Return a column of ``obs`` as text: :func:`as_text` of :func:`obs_column`.

    Raises
    ------
    MissingKeyError
        There is no such column.
    """
    return as_text(obs_column(adata, key, argument))


def gene_ids(adata: AnnData, layer: str | None = None) -> Genes:
    """Return the identifiers of the genes of ``adata`` (or of ``adata.raw``) as far as they are written in it.

    Symbols come from ``var["gene_symbol"]`` (or ``symbol``, ``gene_name``, ...), else from names that read as symbols;
    Ensembl ids, without version, from ``var["ensembl_id"]`` (or ``ensembl``, ``gene_ids``, ...), else from names
    that read as Ensembl ids. A column counts where its content is of that kind, whatever it is called. Features that are
    no genes are left out, as :func:`counts` does.

    Examples
    --------
    >>> import anndata, numpy as np, pandas as pd
    >>> from scdrugmap._anndata import gene_ids
    >>> adata = anndata.AnnData(np.ones((2, 1)), var=pd.DataFrame(index=["ENSG00000141510.18"]))
    >>> gene_ids(adata).ensembl.tolist()
    ['ENSG00000141510']
    """
    genes, every = _genes(adata, layer), all_ids(adata, layer)
    return every if genes is None else Genes(every.names[genes], every.symbols[genes], every.ensembl[genes])


def all_ids(adata: AnnData, layer: str | None = None) -> Genes:
    """Like :func:`gene_ids`, with one entry for every column; one that is no gene has neither symbol nor id."""
    var = var_of(adata, layer)
    symbol, ensembl = _written(var, SYMBOL_COLUMNS, "symbol"), _written(var, ENSEMBL_COLUMNS, "ensembl")
    found = Genes.from_names(var.index, symbols=symbol, ensembl=ensembl)
    gene = features(adata, layer) == ""
    if gene.all() or not gene.any():
        return found
    return Genes(found.names, np.where(gene, found.symbols, ""), np.where(gene, found.ensembl, ""))


def _written(var: pd.DataFrame, names: Iterable[str], kind: str) -> pd.Series | None:
    """The first column of ``var`` that holds identifiers of a kind."""
    return next((var[name] for name in names if name in var.columns and reads_as(var[name]) == kind), None)


def writable(data: Any, argument: str = "adata") -> None:
    """Find out, before hours of computing, whether an object can be written to a file.

    Tables are written to memory as they are, of matrices the first row; nothing is changed.

    Parameters
    ----------
    data
        An AnnData or a MuData.
    argument
        Name of the caller's argument, for the error message.

    Raises
    ------
    InputError
        Something in it cannot be written; the message names the slot and the remedy.

    Examples
    --------
    >>> import anndata, numpy as np, pandas as pd
    >>> from scdrugmap._anndata import writable
    >>> writable(anndata.AnnData(np.ones((1, 1)), obs=pd.DataFrame({"_index": [1]}, index=["a"])))
    Traceback (most recent call last):
    scdrugmap._errors.InputError: ...
    """
    if is_mudata(data):
        for name, part in data.mod.items():
            writable(part, f"{argument}.mod[{name!r}]")
        parts: list[tuple[str, Any]] = [("obs", data.obs), ("var", data.var), ("uns", dict(data.uns))]
    else:
        parts = [("obs", data.obs), ("var", data.var), *((f"uns[{k!r}]", {k: v}) for k, v in data.uns.items())]
        if data.raw is not None:
            parts.append(("raw.var", data.raw.var))
        for slot in ("layers", "obsm", "varm", "obsp", "varp"):
            parts += [(f"{slot}[{key!r}]", {key: value[:1]}) for key, value in getattr(data, slot).items()]
    for slot, part in parts:
        _try_writing(part, f"{argument}.{slot}")


def _try_writing(part: Any, slot: str) -> None:
    """Write one part of an object to memory, to see whether it can be written."""
    import h5py
    from anndata.io import write_elem

    if isinstance(part, pd.DataFrame):  # as the writers do with columns of text, in which values may be missing
        text = [c for c in part if part[c].dtype == object and pd.api.types.infer_dtype(part[c]) == "string"]
        part = part.astype(dict.fromkeys(text, "category")) if part.columns.is_unique else part
    try:
        with warnings.catch_warnings(), h5py.File("probe", "w", driver="core", backing_store=False) as file:
            warnings.simplefilter("ignore")
            write_elem(file, "part", part)
    except Exception as error:  # noqa: BLE001  whatever the writer says, now or after hours
        reason = (str(error).splitlines() or [""])[0][:160]
        fix = f"rename or drop what is named there in {slot}, or turn it into text or numbers."
        if isinstance(part, pd.DataFrame):
            if "_index" in part.columns:
                name = slot if ".raw." not in slot else slot.replace(".raw.var", ".raw.to_adata().var")
                fix = f"rename the column: del or rename {name}['_index']" + (
                    "; raw without it: adata.raw = raw, with raw = adata.raw.to_adata() and del raw.var['_index']."
                    if ".raw." in slot
                    else "."
                )
            elif isinstance(part.index.dtype, pd.StringDtype):
                fix = f"make the names plain text: {slot}.index = {slot}.index.astype(object)."
        raise InputError(
            slot, f"what no file can hold ({type(error).__name__}: {reason})", "plain values", fix
        ) from None
