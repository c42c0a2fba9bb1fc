"""Attributions of a block of cells, and their summary over samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import sparse, stats


@dataclass(frozen=True, eq=False)
class Explained:
    """Attributions of some cells.

    Parameters
    ----------
    values
        ``(n, genes)`` CSR; shares of the log-odds of *resistant*.
    gap
        ``(n,)`` what is missing to completeness, as a share of the change of the log-odds; NaN for a cell without
        embedding.
    n_steps
        ``(n,)`` steps of the path; 0 where the attribution is exact.
    """

    values: sparse.csr_matrix
    gap: np.ndarray
    n_steps: np.ndarray


def summarise(means: np.ndarray, genes: np.ndarray) -> pd.DataFrame:
    """Mean over samples of each gene, each sample with weight one, the largest first.

    Parameters
    ----------
    means
        ``(genes, samples)`` mean attribution in each sample.
    genes
        Names.

    Returns
    -------
    ``gene, attribution, low, high, sign_consistency``; the interval is over samples, missing for a single one.
    """
    n = means.shape[1]
    mean = means.mean(axis=1)
    half = np.full(len(mean), np.nan)
    if n > 1:
        half = stats.t.ppf(0.975, n - 1) * means.std(axis=1, ddof=1) / np.sqrt(n)
    same = np.where(mean == 0, np.nan, (np.sign(means) == np.sign(mean)[:, None]).mean(axis=1))
    table = pd.DataFrame(
        {
            "gene": np.asarray(genes).astype(str),
            "attribution": mean,
            "low": mean - half,
            "high": mean + half,
            "sign_consistency": same,
        }
    )
    table = table.iloc[np.argsort(-np.abs(mean), kind="stable")].reset_index(drop=True)
    table.index = table.index.astype(str)
    return table
