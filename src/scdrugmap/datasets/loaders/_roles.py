"""What the columns and rows of somebody's table are: genes, cells, names, annotation or tallies. The content decides."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import sparse

from scdrugmap.genes.features import feature_kinds
from scdrugmap.genes.identifiers import as_text, classify, reads_as, species_of
from scdrugmap.genes.table import packaged_table

#: Names of annotation of cells, without case and punctuation. None is the approved symbol of a gene.
_OF_CELLS = frozenset(
    re.findall(
        r"\w+",
        "response responses responder drugresponse drugsensitivity sensitivity sensitive resistance resistant label labels class classlabel "
        "condition conditions outcome status target treatment treated drug drugname dose concentration ic50 lnic50 logic50 auc aac gr50 ec50 "
        "viability survival cluster clusters clusterid seuratclusters leiden louvain celltype celltypes cellline batch sample sampleid "
        "samplename patient patientid donor donorid subject individual study dataset origident library tissue cancertype disease stage grade "
        "age sex gender day time timepoint week passage replicate plate well phase sscore g2mscore ncountrna nfeaturerna ncount nfeature "
        "ncounts ngenes ngene numi numis numreads nreads nreadsumi totalcounts totalcount totalumis totalreads totalfeatures total totals "
        "sum sums mean average librarysize libsize sizefactor sizefactors ngenesbycounts percentmt percentmito percentribo pctcountsmt "
        "pctmt mitofraction doubletscore doublet predicteddoublet umap1 umap2 tsne1 tsne2 pc1 pc2 unnamed0 index rownames cellid barcode",
    )
)
#: Names of annotation of genes.
_OF_GENES = frozenset(
    re.findall(
        r"\w+",
        "length genelength translength width start end startposition endposition txstart txend chr chrom chromosome chromosomename strand "
        "entrez entrezid entrezgene entrezgeneid ncbigeneid geneid hgncid gc gccontent percentagegccontent exoncount nexons ntranscripts "
        "total totals sum sums mean average median variance rowsums rowmeans totalcounts ncells numcells pvalue pval padj fdr qvalue logfc "
        "log2fc log2foldchange foldchange basemean biotype genetype genebiotype description unnamed0 index rownames",
    )
)
#: Names of rows or columns that add up the others.
_TALLIES = frozenset(
    re.findall(
        r"\w+",
        "total totals sum sums grandtotal mean average median rowsums colsums totalcounts totalreads totalumis all",
    )
)
#: Names of the columns of lists of genes and cells.
_HEADERS = frozenset(
    re.findall(
        r"\w+",
        "gene genes geneid genename genesymbol symbol feature features featureid featurename ensembl ensemblid ensemblgeneid id "
        "name names x v1 v2 barcode barcodes cell cells cellid cellname cellbarcode cellnames index featuretype",
    )
)


@dataclass(frozen=True)
class TextColumns:
    """Roles of the text columns of a list of genes.

    Parameters
    ----------
    names
        Names of the genes.
    symbols, ensembl
        Columns that hold such identifiers, or ``None``.
    others
        Annotation: biotypes, chromosomes, descriptions.
    """

    names: pd.Series
    symbols: pd.Series | None
    ensembl: pd.Series | None
    others: pd.DataFrame


def text_columns(table: pd.DataFrame, *, prefer_symbols: bool = False) -> TextColumns:
    """Tell symbols, Ensembl ids and annotation apart by what the columns hold, wherever they stand.

    Parameters
    ----------
    table
        Text columns of a list of genes.
    prefer_symbols
        Name the genes by symbol where there are symbols, not by the first column.
    """
    kinds = {column: reads_as(table[column]) for column in table}
    symbols = [column for column, kind in kinds.items() if kind == "symbol"]
    ensembl = next((column for column, kind in kinds.items() if kind == "ensembl"), None)
    approved = packaged_table()["symbol"].to_numpy(str)
    share = {column: float(np.isin(as_text(table[column]), approved).mean()) for column in symbols}
    symbol = max(symbols, key=lambda column: share[column]) if symbols else None
    first = table.columns[0]
    lead = symbol if symbol is not None else ensembl
    named = first if kinds[first] in ("symbol", "ensembl") and not (prefer_symbols and symbol is not None) else lead
    if named is None or (named == first and first not in (symbol, ensembl) and lead is not None):
        named = first if lead is None else lead
    rest = [column for column in table if column not in (named, symbol, ensembl)]
    single = table.shape[1] == 1
    return TextColumns(
        table[named],
        None if symbol is None or single else table[symbol],
        None if ensembl is None or single else table[ensembl],
        table[rest],
    )


def not_genes(names: Sequence[str], values: sparse.csr_matrix | None = None) -> np.ndarray:
    """Return a mask of the columns that hold annotation of the cells (labels, tallies, clusters), not a gene.

    Parameters
    ----------
    names
        Names of the columns.
    values
        Some rows, cells x columns, where the content can be looked at.
    """
    texts = as_text(names)
    known = np.isin(texts, packaged_table()["symbol"].to_numpy(str)) | (classify(texts) == "ensembl")
    foreign = np.isin(_plain(texts), list(_OF_CELLS))
    if known.mean() >= 0.5:
        # Beside human genes a name in lower case at either end is no gene; clones and small RNAs stand among the genes.
        strange = ~known & ~np.isin(species_of(texts), ["human"]) & (feature_kinds(texts) == "")
        foreign |= strange & _at_the_ends(known)
    if values is not None and values.shape[0] > 1:
        foreign |= _odd_values(values, known)
        first = int(np.argmax(known)) if known.any() else 0
        foreign[: min(first, 10)] |= _binary(values[:, : min(first, 10)])
    return foreign & ~known


def not_cells(names: Sequence[str], values: sparse.csr_matrix | None = None) -> np.ndarray:
    """Return a mask of the columns that hold annotation of the genes (length, position, tallies), not a cell."""
    texts = as_text(names)
    foreign = np.isin(_plain(texts), list(_OF_GENES))
    if values is not None and values.shape[0] > 1 and values.shape[1] > 3:
        foreign |= _odd_values(values, np.zeros(len(texts), dtype=bool))
    return foreign


def tallies(names: Sequence[str]) -> np.ndarray:
    """Return a mask of the names of rows that add up the others (``Total``, ``Mean``, ``__no_feature``)."""
    texts = as_text(names)
    return np.isin(_plain(texts), list(_TALLIES)) | (feature_kinds(texts) == "summary")


def reads_as_header(first: Sequence[str]) -> bool:
    """Tell whether the first line of a list of genes or cells names its columns.

    Examples
    --------
    >>> reads_as_header(["gene_id", "gene_name"]), reads_as_header(["ENSG00000141510", "TP53"])
    (True, False)
    """
    texts = [re.sub(r"[^a-z0-9]", "", str(text).lower()) for text in first]
    return any(text in _HEADERS for text in texts)


def _plain(texts: np.ndarray) -> np.ndarray:
    """Names in lower case without punctuation, as the vocabularies have them."""
    return np.array([re.sub(r"[^a-z0-9]", "", text.lower()) for text in texts], dtype=str)


def _at_the_ends(known: np.ndarray) -> np.ndarray:
    """Places before the first and behind the last known gene."""
    places = np.flatnonzero(known)
    index = np.arange(len(known))
    return (index < places[0]) | (index > places[-1])


def _odd_values(values: sparse.csr_matrix, known: np.ndarray) -> np.ndarray:
    """Columns of fractions or negative numbers among counts, and columns that add up all others."""
    columns = values.tocsc()
    odd = np.zeros(columns.shape[1], dtype=bool)
    bad = (columns.data < 0) | (columns.data != np.rint(columns.data))
    where = np.repeat(np.arange(columns.shape[1]), np.diff(columns.indptr))
    odd[where[bad]] = True
    if odd.mean() > 0.2:  # the whole matrix holds other values than counts
        odd[:] = False
    total = np.asarray(values.sum(axis=1, dtype=np.float64)).ravel()
    detected = np.diff(values.indptr).astype(np.float64)
    sums = np.asarray(columns.sum(axis=0, dtype=np.float64)).ravel()
    adds_up = (sums * 2 == total.sum()) | (sums == (detected - 1).sum())
    for j in np.flatnonzero(~known & ~odd & (sums > 0) & adds_up):
        column = np.asarray(columns[:, [j]].toarray(), dtype=np.float64).ravel()
        present = (column > 0).all() and len(np.unique(column)) > 1 and values.shape[1] > 3
        odd[j] = present and (np.array_equal(column * 2, total) or np.array_equal(column, detected - 1))
    return odd


def _binary(values: sparse.csr_matrix) -> np.ndarray:
    """Columns of zeros and ones, both of them frequent."""
    dense = values.toarray()
    share = (dense == 1).mean(axis=0) if len(dense) else np.zeros(dense.shape[1])
    return np.isin(dense, (0, 1)).all(axis=0) & (share >= 0.2) & (share <= 0.8) & (len(dense) >= 8)
