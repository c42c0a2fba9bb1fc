"""Small count matrices for tests."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import sparse

from scdrugmap.genes.identifiers import Genes


def example_cells(
    n_cells: int = 24, n_genes: int = 300, rng: int = 0, *, sparsity: float = 0.6
) -> tuple[sparse.csr_matrix, Genes]:
    """Return counts of cells of very different depth, with real gene identifiers.

    Parameters
    ----------
    n_cells, n_genes
        Size; at most 2,000 genes.
    rng
        Seed.
    sparsity
        Share of zeros.

    Returns
    -------
    ``(n_cells, n_genes)`` CSR float32 of whole numbers, without an empty cell, and the genes.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> X, genes = sd.testing.example_cells(5, 50)
    >>> X.shape, len(genes)
    ((5, 50), 50)
    """
    from scdrugmap.genes.table import packaged_table

    table: pd.DataFrame = packaged_table().iloc[:n_genes]
    genes = Genes.from_names(table["symbol"], ensembl=table["ensembl_id"])
    generator = np.random.Generator(np.random.PCG64(rng))
    depth = generator.lognormal(1.0, 0.8, size=(n_cells, 1))
    mean = depth * generator.lognormal(0.0, 1.0, size=(1, len(genes)))
    counts = generator.poisson(mean) * (generator.random(mean.shape) > sparsity)
    counts[:, 0] = np.maximum(counts[:, 0], 1)
    counts[:, 1] = np.maximum(counts[:, 1], 2)
    return sparse.csr_matrix(counts.astype(np.float32)), genes
