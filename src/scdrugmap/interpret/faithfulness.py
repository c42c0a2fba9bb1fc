"""Is an explanation right? What the predictor loses with the genes that it names, and what chance would do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import sparse, stats

from scdrugmap.interpret.perturb import Expression, matched
from scdrugmap.interpret.scoring import Scorer

#: Genes that are taken away, or that alone stay.
SIZES = (1, 2, 5, 10, 20, 50)


@dataclass(frozen=True, eq=False)
class Curves:
    """Deletion and insertion.

    Parameters
    ----------
    table
        Columns ``curve`` (``deletion``, ``insertion``), ``genes`` (``attribution``, ``matched``, ``random``, ``expression``),
        ``k`` and ``change``: mean over samples of how far the log-odds move towards the middle (deletion), or of how much
        of them comes back (insertion).
    ratio
        Area of the deletion curve over that of matched random genes.
    low, high
        Its 95 % interval over samples (bootstrap).
    """

    table: pd.DataFrame
    ratio: float
    low: float
    high: float


def deletion_curves(
    scorer: Scorer,
    X: sparse.csr_matrix,
    groups: np.ndarray,
    attribution: np.ndarray,
    expression: Expression,
    rng: np.random.Generator,
    *,
    n_random: int = 3,
) -> Curves:
    """Delete genes from the most important on, and insert them into an empty cell.

    The score is the mean log-odds of each sample, turned so that falling means losing what made its call: a deletion that
    leaves the call alone is no loss, whatever its sign.

    Parameters
    ----------
    scorer
        The predictor.
    X
        Counts of the cells to test on.
    groups
        ``(n,)`` sample of each cell.
    attribution
        ``(genes,)`` mean attribution.
    expression
        Of all genes, for the matching.
    rng
        Draws random genes.
    n_random
        Random and matched orders.
    """
    ranked = np.argsort(-np.abs(attribution), kind="stable")
    ranked = ranked[(attribution[ranked] != 0) & (expression.detection[ranked] > 0)]
    sizes = [k for k in SIZES if k <= len(ranked)] or [len(ranked)]
    orders = {"attribution": [ranked[: sizes[-1]]]}
    likes = matched(expression, ranked[: sizes[-1]], n_random, rng)
    orders["matched"] = [likes[:, i] for i in range(likes.shape[1])]
    pool = np.flatnonzero(expression.detection > 0)
    orders["random"] = [rng.permutation(pool)[: sizes[-1]] for _ in range(n_random)]
    orders["expression"] = [np.argsort(-expression.mean, kind="stable")[: sizes[-1]]]
    codes = np.unique(groups, return_inverse=True)[1]
    base = scorer(X)
    rows, areas = [], {}
    for name, lists in orders.items():
        lost = np.mean(
            [[_moved(scorer, X, codes, base, order[:k], keep=False) for k in sizes] for order in lists], axis=0
        )
        kept = np.mean(
            [[_moved(scorer, X, codes, base, order[:k], keep=True) for k in sizes] for order in lists], axis=0
        )
        areas[name] = lost.mean(axis=0)
        for curve, values in (("deletion", lost), ("insertion", kept)):
            rows += [(curve, name, k, float(np.nanmean(v))) for k, v in zip(sizes, values, strict=True)]
    table = pd.DataFrame(rows, columns=["curve", "genes", "k", "change"])
    own, other = areas["attribution"], areas["matched"]
    draws = rng.integers(0, len(own), (500, len(own)))
    boots = own[draws].mean(axis=1) / np.maximum(other[draws].mean(axis=1), 1e-9)
    ratio = float(own.mean() / max(float(other.mean()), 1e-9))
    low, high = np.nanpercentile(boots, [2.5, 97.5])
    return Curves(table, ratio, float(low), float(high))


def _per_sample(values: np.ndarray, codes: np.ndarray) -> np.ndarray:
    known = ~np.isnan(values)
    total = np.bincount(codes[known], values[known], minlength=codes.max() + 1)
    return total / np.maximum(np.bincount(codes[known], minlength=codes.max() + 1), 1)


def _moved(
    scorer: Scorer, X: sparse.csr_matrix, codes: np.ndarray, base: np.ndarray, genes: np.ndarray, *, keep: bool
) -> np.ndarray:
    """Mean distance per sample that the log-odds of its cells move without these genes, or with these alone."""
    chosen = np.isin(X.indices, genes)
    edited = X.copy()
    edited.data[~chosen if keep else chosen] = 0
    edited.eliminate_zeros()
    away = np.abs(scorer(edited) - base)
    away[np.isnan(away)] = np.nanmean(away) if np.isfinite(away).any() else 0.0
    moved = _per_sample(away, codes)
    return -moved if keep else moved


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman correlation of two attributions over the genes that either names; 0 where one is constant.

    Examples
    --------
    >>> round(rank_correlation(np.array([1.0, 2.0, 0.0]), np.array([2.0, 5.0, 0.0])), 2)
    1.0
    """
    named = (a != 0) | (b != 0)
    if named.sum() < 3 or np.ptp(a[named]) == 0 or np.ptp(b[named]) == 0:
        return 0.0 if named.sum() >= 3 or not np.array_equal(a, b) else 1.0
    return float(stats.spearmanr(a[named], b[named]).statistic)


def likeness(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine of two attributions: large ones count for more than the many near zero, whose order is noise.

    Examples
    --------
    >>> round(likeness(np.array([3.0, -2.0]), np.array([6.0, -4.0])), 2)
    1.0
    """
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / size if size > 0 else 0.0


def overlap(a: np.ndarray, b: np.ndarray, n: int = 50) -> float:
    """Jaccard index of the ``n`` genes with the largest absolute values.

    Examples
    --------
    >>> overlap(np.array([3.0, 2.0, 1.0]), np.array([3.0, 2.0, 0.0]), n=2)
    1.0
    """
    first, second = (set(np.argsort(-np.abs(v), kind="stable")[:n].tolist()) for v in (a, b))
    return len(first & second) / len(first | second)
