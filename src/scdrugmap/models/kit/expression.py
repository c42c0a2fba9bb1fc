"""Log-normalised expression over the genes of the training cells, which the fitted baselines share."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from scdrugmap._errors import InputError
from scdrugmap.genes.identifiers import Genes
from scdrugmap.models.kit.counts import Alignment
from scdrugmap.models.kit.values import check_values


def identifiers(genes: Genes, fitted: np.ndarray | None = None) -> np.ndarray:
    """Return the identifiers to fit on (symbols, else Ensembl ids, else names), or those that fitted genes are among."""
    if fitted is not None:
        known = np.asarray(fitted).astype(str)
        return max((genes.symbols, genes.ensembl, genes.names), key=lambda n: np.isin(n.astype(str), known).sum())
    for names in (genes.symbols, genes.ensembl):
        if (names != "").any():
            return names
    return genes.names


def training_genes(X: sparse.csr_matrix, genes: Genes) -> np.ndarray:
    """Return the distinct identifiers of the genes that some training cell expresses, in alphabetical order."""
    names = identifiers(genes)
    expressed = np.bincount(X.indices[X.data != 0], minlength=X.shape[1]) > 0
    kept = np.unique(names[expressed & (names != "")].astype(str))
    if len(kept) == 0:
        raise InputError("X", "no expressed gene in the training cells", "raw counts", "check the training cells.")
    return kept


def counts_over(X: sparse.csr_matrix, genes: Genes, fitted: np.ndarray, model: str) -> sparse.csr_matrix:
    """Return counts over the fitted genes; genes that the data lacks are zero.

    Raises
    ------
    InputError
        If none of the fitted genes is there, or values are not raw counts.
    """
    check_values(X, counts=True, model=model)
    alignment = Alignment.match(identifiers(genes, fitted), {str(g): i for i, g in enumerate(fitted)})
    if len(alignment.ids) == 0:
        raise InputError(
            "adata.var",
            f"none of the {len(fitted)} genes that {model} was fitted on",
            "data with the same kind of gene identifiers as the training cells",
            "call sd.pp.harmonize_genes on both data sets.",
        )
    block = alignment.apply(X)
    return sparse.csr_matrix((block.data, alignment.ids[block.indices], block.indptr), (X.shape[0], len(fitted)))


def log_normalize(X: sparse.csr_matrix, target: float = 1e4) -> sparse.csr_matrix:
    """Return ``log(1 + target * count / total)`` per cell; an empty cell stays empty."""
    totals = np.asarray(X.sum(axis=1)).ravel()
    scale = np.divide(target, totals, out=np.zeros_like(totals), where=totals > 0)
    data = np.log1p(X.data * np.repeat(scale, np.diff(X.indptr)))
    return sparse.csr_matrix((data, X.indices, X.indptr), X.shape)


def variable_genes(X: sparse.csr_matrix, n_top: int) -> np.ndarray:
    """Return the columns of the most variable genes of log-normalised data, ascending.

    Normalised dispersion within bins of mean expression, as scanpy's ``flavor="seurat"``.
    """
    import anndata as ad
    import scanpy as sc

    if n_top >= X.shape[1]:
        return np.arange(X.shape[1])
    table = sc.pp.highly_variable_genes(
        ad.AnnData(X.astype(np.float32)), n_top_genes=n_top, flavor="seurat", inplace=False
    )
    return np.flatnonzero(table["highly_variable"].to_numpy())
