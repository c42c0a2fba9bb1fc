"""Activities and enrichment of gene sets: univariate linear model, over-representation, running sum."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse, stats

from scdrugmap.interpret.decoupled import METHODS as decoupler_methods
from scdrugmap.interpret.decoupled import decoupled, shuffled_p

METHODS = ("ulm", "ora", "gsea")


def ulm(Y: np.ndarray | sparse.csr_matrix, weights: sparse.csr_matrix) -> np.ndarray:
    """Slope t statistic of each row on the weights of each set (univariate linear model, as in decoupler).

    Parameters
    ----------
    Y
        ``(rows, genes)`` statistics or expression; sparse rows are not made dense.
    weights
        ``(sets, genes)``; genes outside a set weigh nothing.

    Returns
    -------
    Array (rows, sets).

    References
    ----------
    Badia-i-Mompel et al. 2022, Bioinformatics Advances 2:vbac016.
    """
    n = Y.shape[1]
    sums = np.asarray(Y.sum(axis=1)).ravel()
    squared = Y.multiply(Y) if isinstance(Y, sparse.csr_matrix) else np.asarray(Y) ** 2
    squares = np.asarray(squared.sum(axis=1)).ravel()
    w_sum = np.asarray(weights.sum(axis=1)).ravel()
    w_square = np.asarray(weights.multiply(weights).sum(axis=1)).ravel()
    cross = Y @ weights.T
    cross = cross.toarray() if sparse.issparse(cross) else np.asarray(cross)
    covariance = cross - np.outer(sums, w_sum) / n
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.outer(squares - sums**2 / n, w_square - w_sum**2 / n)
        r = np.where(spread > 0, covariance / np.sqrt(np.where(spread > 0, spread, 1)), 0.0)
        r = np.clip(r, -1, 1)
        return r * np.sqrt((n - 2) / np.maximum(1 - r**2, 1e-12))


def over_representation(ranked: np.ndarray, weights: sparse.csr_matrix, n_top: int) -> tuple[np.ndarray, np.ndarray]:
    """Log2 odds ratio and one-sided Fisher test of the genes with the largest values in each set.

    Parameters
    ----------
    ranked
        ``(genes,)`` statistic; the largest are taken. All genes are the background.
    weights
        ``(sets, genes)``.
    n_top
        Genes taken.

    Returns
    -------
    Scores and p values, ``(sets,)`` each; half a count is added to every cell of the odds ratio.
    """
    n = len(ranked)
    top = np.zeros(n, dtype=bool)
    top[np.argsort(-ranked, kind="stable")[:n_top]] = True
    member = sparse.csr_matrix((np.ones(weights.nnz), weights.indices, weights.indptr), weights.shape)
    size, hit = np.asarray(member.sum(axis=1)).ravel(), member @ top.astype(float)
    p = stats.hypergeom.sf(hit - 1, n, size, top.sum())
    odds = (hit + 0.5) * (n - size - top.sum() + hit + 0.5) / ((size - hit + 0.5) * (top.sum() - hit + 0.5))
    return np.log2(odds), p


def running_sum(ranked: np.ndarray, weights: sparse.csr_matrix) -> np.ndarray:
    """Enrichment score of each set along a ranking (weighted Kolmogorov-Smirnov statistic of GSEA), ``(sets,)``.

    Parameters
    ----------
    ranked
        ``(genes,)`` statistic, largest first in the ranking.
    weights
        ``(sets, genes)``; only which genes are members counts.

    References
    ----------
    Subramanian et al. 2005, PNAS 102:15545.
    """
    order = np.argsort(-ranked, kind="stable")
    position = np.empty(len(order), dtype=np.int64)
    position[order] = np.arange(len(order))
    strength = np.abs(ranked)
    out = np.zeros(weights.shape[0])
    for i in range(weights.shape[0]):
        genes = weights.indices[weights.indptr[i] : weights.indptr[i + 1]]
        genes = genes[np.argsort(position[genes])]
        hits = np.cumsum(strength[genes])
        if not len(genes) or hits[-1] == 0 or len(genes) == len(ranked):
            continue
        hits /= hits[-1]
        # Before the k-th member stand its position minus k genes that are none.
        missed = (position[genes] - np.arange(len(genes))) / (len(ranked) - len(genes))
        highs, lows = hits - missed, np.concatenate([[0], hits[:-1]]) - missed
        out[i] = highs.max() if highs.max() >= -lows.min() else lows.min()
    return out


@dataclass(frozen=True, eq=False)
class Enrichment:
    """One score and p value per set, ``(sets,)`` each."""

    score: np.ndarray
    p: np.ndarray


def enrich(
    statistic: np.ndarray, weights: sparse.csr_matrix, method: str, rng: np.random.Generator, n: int = 1000
) -> Enrichment:
    """Score every set against a ranking of genes.

    Parameters
    ----------
    statistic
        ``(genes,)`` finite values.
    weights
        ``(sets, genes)``.
    method
        One of ``METHODS``; the over-representation takes a tenth of the genes. Or one of decoupler's others.
    rng
        Shuffles genes for the running sum.
    n
        Number of shuffles.

    Returns
    -------
    Scores and p values. The p values shuffle genes, which are correlated: they are too small.

    Raises
    ------
    MissingDependencyError
        For a method of decoupler where that is not installed.
    """
    if method in decoupler_methods:
        score = decoupled(statistic[None], weights, method)[0]
        p = shuffled_p(statistic, score, weights, method, rng) if n > 1 else np.full(len(score), np.nan)
        return Enrichment(score, p)
    if method == "ora":
        return Enrichment(*over_representation(statistic, weights, max(len(statistic) // 10, 1)))
    if method == "gsea":
        score = running_sum(statistic, weights)
        null = np.array([running_sum(rng.permutation(statistic), weights) for _ in range(n)])
        same = np.sign(null) == np.sign(score)
        as_far = (same & (np.abs(null) >= np.abs(score))).sum(axis=0)
        return Enrichment(score, (1 + as_far) / (1 + same.sum(axis=0)))
    score = ulm(statistic[None], weights)[0]
    return Enrichment(score, 2 * stats.t.sf(np.abs(score), len(statistic) - 2))


def jackknife(full: np.ndarray, without: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Interval from leaving out one sample at a time.

    Parameters
    ----------
    full
        ``(sets,)`` scores of all samples.
    without
        ``(samples, sets)`` scores without each sample.

    Returns
    -------
    Lower and upper bound; missing with fewer than three samples.
    """
    n = len(without)
    if n < 3:
        return np.full(len(full), np.nan), np.full(len(full), np.nan)
    se = np.sqrt((n - 1) / n * ((without - without.mean(axis=0)) ** 2).sum(axis=0))
    half = stats.t.ppf(0.5 + level / 2, n - 1) * se
    return full - half, full + half
