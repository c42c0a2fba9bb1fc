"""Log-normalised expression over the genes of the training cells, which the fitted baselines share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from scdrugmap._errors import InputError
from scdrugmap.genes.identifiers import Genes
from scdrugmap.models.kit.counts import Alignment
from scdrugmap.models.kit.values import check_values

#: Rows that are in memory at a time while a baseline is fitted; fixed, so that sums have one order of addition.
BLOCK = 2048
#: Bins of mean expression within which dispersions are compared.
N_BINS = 20


def identifiers(genes: Genes, fitted: np.ndarray | None = None) -> np.ndarray:
    """Return the identifiers to fit on (symbols, else Ensembl ids, else names), or those that fitted genes are among."""
    if fitted is not None:
        known = np.asarray(fitted).astype(str)
        return max((genes.symbols, genes.ensembl, genes.names), key=lambda n: np.isin(n.astype(str), known).sum())
    for names in (genes.symbols, genes.ensembl):
        if (names != "").any():
            return names
    return genes.names


def blocks_of(X: Any) -> Iterator[sparse.csr_matrix]:
    """Yield the rows of a CSR matrix, or of anything with ``blocks(size)``, a few at a time."""
    if hasattr(X, "blocks"):
        yield from (block for _, block in X.blocks(BLOCK))
        return
    for first in range(0, X.shape[0], BLOCK):
        yield X[first : first + BLOCK]


@dataclass(frozen=True, eq=False)
class GeneMoments:
    """Mean and variance of the genes that some training cell expresses.

    Parameters
    ----------
    genes
        ``(genes,)`` distinct identifiers, in alphabetical order.
    mean, variance
        ``(genes,)`` over the training cells, of counts brought to 10,000 per cell (or of their logarithm); the
        variance is the unbiased one.
    """

    genes: np.ndarray
    mean: np.ndarray
    variance: np.ndarray


def gene_moments(X: Any, genes: Genes, model: str, *, logged: bool = False) -> GeneMoments:
    """Measure the genes of the training cells in one pass over their rows.

    Parameters
    ----------
    X
        Raw counts: CSR, or rows that are read block by block.
    genes
        Identifiers of the columns.
    model
        Who asks, for messages.
    logged
        Measure the logarithm.

    Raises
    ------
    InputError
        If no gene is expressed, or values are not raw counts.
    """
    names = identifiers(genes)
    every = np.unique(names[names != ""].astype(str))
    total, squares, n = np.zeros(len(every)), np.zeros(len(every)), X.shape[0]
    for block in blocks_of(X) if len(every) else ():
        values = counts_over(block, genes, every, model)
        values = log_normalize(values) if logged else normalize(values)
        data = values.data.astype(np.float64)
        total += np.bincount(values.indices, data, len(every))
        squares += np.bincount(values.indices, data**2, len(every))
    kept = total > 0
    if not kept.any():
        raise InputError("X", "no expressed gene in the training cells", "raw counts", "check the training cells.")
    mean = total[kept] / n
    variance = squares[kept] / n - mean**2
    variance[variance < 1e-12 * mean**2] = 0  # what rounding leaves of a constant
    return GeneMoments(every[kept], mean, variance * n / max(n - 1, 1))


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


def normalize(X: sparse.csr_matrix, target: float = 1e4) -> sparse.csr_matrix:
    """Return ``target * count / total`` per cell; an empty cell stays empty."""
    totals = np.asarray(X.sum(axis=1)).ravel()
    scale = np.divide(target, totals, out=np.zeros_like(totals), where=totals > 0)
    return sparse.csr_matrix((X.data * np.repeat(scale, np.diff(X.indptr)), X.indices, X.indptr), X.shape)


def log_normalize(X: sparse.csr_matrix, target: float = 1e4) -> sparse.csr_matrix:
    """Return ``log(1 + target * count / total)`` per cell; an empty cell stays empty."""
    out = normalize(X, target)
    out.data = np.log1p(out.data)
    return out


def variable_genes(moments: GeneMoments, n_top: int) -> np.ndarray:
    """Return the most variable genes as positions in ``moments.genes``, ascending.

    The logarithm of variance over mean, standardised among genes of similar mean expression (20 bins), as scanpy's
    ``flavor="seurat"``. Genes that tie with the last one are all taken; constant genes never.
    """
    if n_top >= len(moments.genes):
        return np.arange(len(moments.genes))
    dispersion = np.full(len(moments.genes), np.nan)
    varies = moments.variance > 0
    dispersion[varies] = np.log(moments.variance[varies] / moments.mean[varies])
    table = pd.DataFrame({"dispersion": dispersion, "bin": pd.cut(np.log1p(moments.mean), N_BINS)})
    grouped = table.groupby("bin", observed=True)["dispersion"]
    middle, spread = grouped.transform("mean"), grouped.transform("std")
    # A gene alone in its bin has no spread: it counts as one standard deviation above the middle.
    scaled = ((table["dispersion"] - middle) / spread).where(spread.notna(), table["dispersion"] / middle).to_numpy()
    found = np.sort(scaled[~np.isnan(scaled)])[::-1]
    return np.flatnonzero(np.nan_to_num(scaled, nan=-np.inf) >= found[min(n_top, len(found)) - 1])
