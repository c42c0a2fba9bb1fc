"""``sd.pp.harmonize_genes``: approved symbols and Ensembl ids, duplicates added up."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from scdrugmap import __version__, _anndata
from scdrugmap._errors import InputError, ScDrugMapWarning
from scdrugmap._keys import KEYS
from scdrugmap.genes import mapping
from scdrugmap.genes.identifiers import Genes, dated, recognise
from scdrugmap.genes.table import TableLike, read_table

HGNC_FILE = "hgnc_complete_set.txt"

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData


def harmonize_genes(
    adata: AnnData | MuData,
    *,
    table: TableLike | Sequence[TableLike] | None = None,
    mod: str = "rna",
    copy: bool = False,
) -> AnnData | MuData | None:
    """Give every gene its approved symbol and Ensembl id, and add up columns that are the same gene.

    Identifiers that ``var`` already holds come first: an Ensembl id (version stripped) decides, then an approved
    symbol, then a previous symbol or alias that leads to one gene only, then an Entrez number. Names that may mean
    several genes, and names that the table does not know, keep the identifiers that they have and are listed in the
    record; nothing is guessed. Names that a spreadsheet turned into dates (``2-Sep``) and changed separators (``HLA.A``)
    are resolved where they mean one gene. Features that are no genes (antibodies, spike-ins, tallies) stay as they are.
    A second call changes nothing.

    Parameters
    ----------
    adata
        Annotated data.
    table
        Gene table: a path or data frame in the format of the HGNC's complete set, of an Ensembl annotation or of a list
        of names (see :func:`scdrugmap.genes.read_table`), or a list of them. ``"hgnc"`` fetches the HGNC's complete
        set through the download layer. ``None`` uses that set where it has been fetched or registered, and otherwise
        the packaged table, which knows human protein-coding genes but no aliases or previous symbols.
    mod
        Modality of a MuData.
    copy
        Return a modified copy.

    Returns
    -------
    ``None``, or the copy. Writes:

    ``var["gene_symbol"]``, ``var["ensembl_id"]``
        Text, ``""`` where there is none.
    ``uns["scdrugmap_genes"]``
        ``table``, a data frame with one row per original gene (its name, symbol and Ensembl id before and after, the
        ``status``, the ``candidates`` of an ambiguous name, the ``column`` it is in now), from which every name can be
        restored; ``source``, the gene table; ``n_before``, ``n_after``; ``version``.
    ``X``, ``layers`` and the axis of the genes
        Only where several columns are one gene: their counts are added up (sparse stays sparse; small integers become
        wider where a sum needs it), and the row of ``var`` is that of the first. Sums cannot be taken apart again; use ``copy=True`` to keep the original.

    Raises
    ------
    InputError
        The genes are of another species, no gene can be recognised, or columns have to be added up in a file.

    Warns
    -----
    ScDrugMapWarning
        For ambiguous names, for names that the Ensembl id contradicts, and where many names stay unknown.

    Examples
    --------
    >>> import anndata, numpy as np, pandas as pd, scdrugmap as sd
    >>> var = pd.DataFrame(index=["ENSG00000141510.18", "EGFR", "TP53"])
    >>> adata = anndata.AnnData(np.array([[1.0, 2.0, 3.0]]), var=var)
    >>> sd.pp.harmonize_genes(adata)
    >>> adata.var["gene_symbol"].tolist(), adata.X.tolist()
    (['TP53', 'EGFR'], [[4.0, 2.0]])
    """
    source = _anndata.resolve(adata, mod=mod)
    _check_names(source)
    genes, entrez = _anndata.all_ids(source), _anndata.first_column(source.var, _anndata.ENTREZ_COLUMNS)
    reference = read_table(_hgnc(table))
    resolved = mapping.resolve_genes(genes, reference, entrez=None if entrez is None else source.var[entrez].to_numpy())
    foreign = _anndata.features(source)
    if (foreign != "").any() and (foreign == "").any():
        resolved = _leave_out(resolved, foreign != "")
    target = mapping.duplicates(resolved, genes.names)
    n_after = int(target.max()) + 1
    if n_after < source.n_vars:
        _check_memory(source)

    work = _anndata.edit(adata, copy=copy, mod=mod)
    if n_after < source.n_vars:
        _add_up(work.adata, target)
    first = np.unique(target, return_index=True)[1]
    symbol, ensembl = resolved.symbol[first], _first_known(resolved.ensembl, target)
    if KEYS.genes not in work.adata.uns or not _is_settled(work.adata, symbol, ensembl, len(target)):
        work.adata.uns[KEYS.genes] = _record(genes, resolved, target, reference.source)
        work.adata.var[KEYS.gene_symbol] = symbol.astype(object)
        work.adata.var[KEYS.ensembl_id] = ensembl.astype(object)
    if _anndata.is_mudata(work.root):
        work.root.update_var()
    _warn(genes, resolved, reference.source)
    return work.finish()


def _leave_out(resolved: mapping.Resolution, foreign: np.ndarray) -> mapping.Resolution:
    """Take features that are no genes for none, whatever their name would mean."""
    empty = {name: np.where(foreign, "", getattr(resolved, name)) for name in ("symbol", "ensembl", "candidates")}
    status = resolved.status.astype("U16")
    status[foreign] = "no gene"
    return replace(resolved, **empty, status=status, conflict=resolved.conflict & ~foreign)


def _check_names(adata: AnnData) -> None:
    """Refuse names that no human table can resolve."""
    if adata.n_vars == 0:
        raise InputError("adata", "no genes", "at least one gene", "check how the data was read.")
    found = recognise(adata.var_names)
    ids = _anndata.all_ids(adata)
    if found.kind == "unknown" and not ((ids.symbols != "") | (ids.ensembl != "")).any():
        raise InputError(
            "adata.var_names",
            ", ".join(map(str, adata.var_names[:5])),
            "gene symbols, Ensembl ids or Entrez numbers",
            'put the identifiers into adata.var_names or adata.var["gene_symbol"].',
        )
    if found.species not in ("human", "unknown") and found.species_share > 0.5:
        raise InputError(
            "adata.var_names",
            f"genes of {found.species} ({found.species_share:.0%}), such as {', '.join(map(str, adata.var_names[:3]))}",
            "human genes",
            "map them to human orthologues first; this function does not do that.",
        )


def _check_memory(adata: AnnData) -> None:
    """Adding up needs the matrix in memory."""
    for name, matrix in (("X", adata.X), *((f"layers[{k!r}]", v) for k, v in adata.layers.items())):
        if np.ma.is_masked(matrix):
            raise InputError("adata", f"{name} with masked values", "counts", "fill them: X = X.filled(0).")
        if matrix is not None and not (isinstance(matrix, np.ndarray) or sparse.issparse(matrix)):
            raise InputError(
                "adata",
                f"{name} as {type(matrix).__name__}, with columns that are the same gene",
                "a matrix in memory, because counts have to be added up",
                "load it first: adata = adata.to_memory().",
            )


def _add_up(adata: AnnData, target: np.ndarray) -> None:
    """Sum columns of X and the layers, and keep the first row of ``var`` for each."""
    first = np.unique(target, return_index=True)[1]
    X = None if adata.X is None else mapping.sum_columns(adata.X, target)
    layers = {name: mapping.sum_columns(matrix, target) for name, matrix in adata.layers.items()}
    adata._inplace_subset_var(first)
    if X is not None:
        adata.X = X
    for name, matrix in layers.items():
        adata.layers[name] = matrix


def _first_known(values: np.ndarray, target: np.ndarray) -> np.ndarray:
    """For every output column the first value that is not empty."""
    frame = pd.DataFrame({"value": pd.Series(values, dtype=object).replace("", None), "target": target})
    return frame.groupby("target")["value"].first().fillna("").to_numpy(dtype=object).astype(str)


def _is_settled(adata: AnnData, symbol: np.ndarray, ensembl: np.ndarray, n_before: int) -> bool:
    """Whether a call would write what stands there already, so that the record of the first call stays."""
    var = adata.var
    return (
        len(symbol) == n_before
        and {KEYS.gene_symbol, KEYS.ensembl_id} <= set(var.columns)
        and bool((var[KEYS.gene_symbol].astype(str) == symbol).all())
        and bool((var[KEYS.ensembl_id].astype(str) == ensembl).all())
    )


def _record(genes: Genes, resolved: mapping.Resolution, target: np.ndarray, source: str) -> dict[str, Any]:
    """What was done to every gene."""
    table = pd.DataFrame(
        {
            "name": genes.names.astype(object),
            "symbol_before": genes.symbols.astype(object),
            "ensembl_before": genes.ensembl.astype(object),
            "gene_symbol": resolved.symbol.astype(object),
            "ensembl_id": resolved.ensembl.astype(object),
            "status": pd.Categorical(resolved.status),
            "candidates": resolved.candidates.astype(object),
            "conflict": resolved.conflict.astype(bool),
            "column": target.astype(np.int64),
        },
        index=pd.RangeIndex(len(genes)).astype(str),
    )
    return {
        "table": table,
        "source": source,
        "n_before": len(target),
        "n_after": int(target.max()) + 1,
        "version": __version__,
    }


def _hgnc(table: TableLike | Sequence[TableLike] | None) -> TableLike | Sequence[TableLike] | None:
    """Put the file of the download layer in the place of ``"hgnc"``, and of ``None`` where it is on this machine."""
    from scdrugmap import download

    if isinstance(table, str) and table == "hgnc":
        return download.fetch("datasets", "hgnc") / HGNC_FILE
    if table is None:
        folder = download.where("datasets", "hgnc")
        return None if folder is None else folder / HGNC_FILE
    return table


def _warn(genes: Genes, resolved: mapping.Resolution, source: str) -> None:
    """Say what was not resolved."""
    ambiguous, unknown = resolved.status == "ambiguous", resolved.status == "unknown"
    if ambiguous.any():
        some = ", ".join(f"{n} ({c})" for n, c in list(zip(genes.names, resolved.candidates, strict=True)) if c)[:200]
        warnings.warn(
            f"{ambiguous.sum()} names may mean another gene and stay as they are: {some}. "
            f'They are listed in uns["{KEYS.genes}"]["table"].',
            ScDrugMapWarning,
            stacklevel=3,
        )
    if resolved.conflict.any():
        warnings.warn(
            f"{resolved.conflict.sum()} genes have an Ensembl id and a symbol that name two genes "
            f"({', '.join(genes.names[resolved.conflict][:5])}); the Ensembl id has decided.",
            ScDrugMapWarning,
            stacklevel=3,
        )
    dates = genes.names[(dated(genes.names) != "") & (resolved.status == "ambiguous")]
    if len(dates):
        warnings.warn(
            f"{len(dates)} names are dates that may stand for two genes ({', '.join(dates[:5])}): a spreadsheet has changed "
            "them. They are kept apart; restore them from the original file, or drop them.",
            ScDrugMapWarning,
            stacklevel=3,
        )
    if unknown.mean() > 0.1:
        warnings.warn(
            f"{unknown.sum()} of {len(unknown)} genes are not in the gene table ({source}) and stay as they are, "
            f"such as {', '.join(genes.names[unknown][:5])}. The HGNC's complete set (table='hgnc') knows "
            "non-coding genes, aliases and previous symbols.",
            ScDrugMapWarning,
            stacklevel=3,
        )
