"""The verdict on an attribution: which checks it passed, which it failed, and which could not be made."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from scdrugmap.interpret.faithfulness import Curves, likeness, overlap, rank_correlation

#: Rank correlation with the original above which randomised weights or labels have not destroyed an attribution.
DESTROYED = 0.3
#: Cosine between attributions of different cells or folds below which they are not stable.
STABLE = 0.5
COLUMNS = (
    "check", "value", "low", "high", "threshold", "passed", "note", "rank_correlation", "rank_low", "rank_high",
)  # fmt: skip
NOT_TESTED = "not tested"

Attribution = Callable[[Any], np.ndarray]


@dataclass(eq=False)
class AttributionReport:
    """Whether an attribution may be read as more than a description of the predictor.

    Parameters
    ----------
    table
        One row per check: ``check, value, low, high, threshold, passed`` (missing where it could not be made), ``note``; for
        what must be stable also ``rank_correlation, rank_low, rank_high``, Spearman between the refits with its 95 % interval.
    curves
        Deletion and insertion, for :func:`scdrugmap.pl.attribution` with ``kind="deletion"``.
    genes
        ``gene, attribution, selection``: how often a gene is among the first 50 of the refitted heads.

    Examples
    --------
    >>> empty = AttributionReport(pd.DataFrame(columns=list(COLUMNS)))
    >>> empty.ok
    False
    """

    table: pd.DataFrame
    curves: pd.DataFrame = field(default_factory=pd.DataFrame)
    genes: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def reasons(self) -> list[str]:
        """Why no gene may be called a biomarker; empty where one may."""
        if not len(self.table):
            return ["no check was made"]
        failed = self.table[~self.table["passed"].fillna(True).astype(bool)]
        out = [f"{row.check}: {row.note}" for row in failed.itertuples()]
        needed = self.table[self.table["check"].isin(("prediction", "faithfulness"))]
        return out + [f"{row.check}: {row.note}" for row in needed.itertuples() if pd.isna(row.passed)]

    @property
    def ok(self) -> bool:
        """Whether a gene may be called a biomarker: nothing failed, and what must be tested was."""
        return not self.reasons

    def to_text(self) -> str:
        """Return the report as plain text."""
        verdict = (
            "A gene that this predictor looks at, and that differs between samples, may be called a candidate biomarker."
            if self.ok
            else "No gene may be called a biomarker on the strength of this attribution."
        )
        lines = [verdict, ""]
        for row in self.table.itertuples():
            mark = NOT_TESTED if pd.isna(row.passed) else "passed" if row.passed else "FAILED"
            number = "" if pd.isna(row.value) else f" {row.value:.2f}"
            bounds = "" if pd.isna(row.low) else f" [{row.low:.2f}, {row.high:.2f}]"
            lines.append(f"{mark:<10} {row.check:<22}{number}{bounds}  {row.note}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.to_text()


def row(
    check: str, value: float = np.nan, low: float = np.nan, high: float = np.nan, *, threshold: float = np.nan,
    passed: bool | None = None, note: str = "",
) -> dict[str, Any]:  # fmt: skip
    """Return one row of the table."""
    values = (check, float(value), float(low), float(high), float(threshold), passed, note, np.nan, np.nan, np.nan)
    return dict(zip(COLUMNS, values, strict=True))


def prediction_check(
    y: np.ndarray, margin: np.ndarray, samples: np.ndarray, rng: np.random.Generator
) -> dict[str, Any]:
    """Does the head predict samples that it has not seen? An explanation of one that does not is noise.

    Parameters
    ----------
    y
        ``(n,)`` 1 sensitive, 0 resistant.
    margin
        ``(n,)`` log-odds of sensitive from heads that have not seen the cell's sample.
    samples
        ``(n,)`` sample of each cell, drawn anew for the interval.
    rng
        Of the bootstrap.
    """
    from sklearn.metrics import roc_auc_score

    value = float(roc_auc_score(y, margin))
    names, codes = np.unique(samples, return_inverse=True)
    members = [np.flatnonzero(codes == i) for i in range(len(names))]
    draws = []
    for _ in range(200):
        rows = np.concatenate([members[i] for i in rng.integers(0, len(names), len(names))])
        if len(np.unique(y[rows])) == 2:
            draws.append(roc_auc_score(y[rows], margin[rows]))
    low, high = np.percentile(draws, [2.5, 97.5])
    note = f"AUROC of held-out samples, interval over {len(names)} samples; must be above chance"
    return row("prediction", value, low, high, threshold=0.5, passed=bool(low > 0.5), note=note)


def faithfulness_checks(curves: Curves) -> list[dict[str, Any]]:
    """Do the genes that are named move the predictor more than others like them, and than expressed ones?"""
    deleted = curves.table[curves.table["curve"] == "deletion"].groupby("genes")["change"].mean()
    note = "area of the deletion curve over that of random genes matched in expression"
    out = [
        row("faithfulness", curves.ratio, curves.low, curves.high, threshold=1, passed=bool(curves.low > 1), note=note)
    ]
    ratio = float(deleted["attribution"] / max(deleted["expression"], 1e-9))
    note = "area of the deletion curve over that of the most expressed genes"
    return [*out, row("beats expression", ratio, threshold=1, passed=bool(ratio > 1), note=note)]


def randomised_head(head: Any, rng: np.random.Generator) -> Any | None:
    """Return a copy of a head with its weights shuffled, or ``None`` for one without weights."""
    out = copy.deepcopy(head)
    last = out.steps[-1][1] if hasattr(out, "steps") else out
    if hasattr(last, "coefs_"):
        last.coefs_ = [rng.permutation(w.ravel()).reshape(w.shape) for w in last.coefs_]
        return out
    if hasattr(last, "coef_"):
        last.coef_ = rng.permutation(np.ravel(last.coef_)).reshape(np.shape(last.coef_))
        return out
    return None


def sanity_row(check: str, original: np.ndarray, others: list[np.ndarray], what: str) -> dict[str, Any]:
    """Must be destroyed: rank correlation of the attribution with those of randomised predictors."""
    found = np.array([rank_correlation(original, other) for other in others])
    value = float(found.mean())
    note = f"rank correlation with the attribution after {what}; must be below {DESTROYED}"
    return row(
        check, value, found.min(), found.max(), threshold=DESTROYED, passed=bool(abs(value) < DESTROYED), note=note
    )


def stability_row(check: str, refits: list[np.ndarray], what: str) -> dict[str, Any]:
    """Must agree: cosine of the attributions, told with the correlation of ranks and the overlap of the first 50 genes.

    Parameters
    ----------
    check
        Name of the row.
    refits
        ``(genes,)`` attribution of each; every pair of them is compared.
    what
        What they differ in.
    """
    cosine, ranks = pairwise(refits, likeness), pairwise(refits, rank_correlation)
    shared = pairwise(refits, overlap)[0]
    bounds = "" if np.isnan(ranks[1]) else f" [{ranks[1]:.2f}, {ranks[2]:.2f}]"
    note = f"cosine between {what}; rank correlation {ranks[0]:.2f}{bounds}, {shared:.0%} of the first 50 genes shared"
    return row(check, *cosine, threshold=STABLE, passed=bool(cosine[0] >= STABLE), note=note) | {
        "rank_correlation": ranks[0], "rank_low": ranks[1], "rank_high": ranks[2],
    }  # fmt: skip


def pairwise(found: list[np.ndarray], measure: Callable[[np.ndarray, np.ndarray], float]) -> tuple[float, float, float]:
    """Mean of a measure over all pairs, with a 95 % interval from leaving out one of those compared.

    Parameters
    ----------
    found
        What is compared, two or more.
    measure
        Of likeness, at most 1.

    Returns
    -------
    Mean, lower and upper bound; no bounds with fewer than three, whose pairs say nothing of each other.

    Examples
    --------
    >>> pairwise([np.array([1.0, 0.0])] * 3, lambda a, b: float(a @ b))
    (1.0, 1.0, 1.0)
    """
    n = len(found)
    table = np.array([[measure(a, b) if i < j else 0.0 for j, b in enumerate(found)] for i, a in enumerate(found)])
    pairs = n * (n - 1) / 2
    mean = float(table.sum() / pairs)
    if n < 3:
        return mean, np.nan, np.nan
    table += table.T
    without = (table.sum() / 2 - table.sum(axis=1)) / (pairs - (n - 1))
    se = np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum())
    half = float(stats.t.ppf(0.975, n - 1) * se)
    return mean, max(mean - half, -1.0), min(mean + half, 1.0)


def shuffled_samples(y: np.ndarray, samples: np.ndarray, rng: np.random.Generator, n: int) -> list[np.ndarray]:
    """Draw labels of the samples anew so that they agree with the true ones as little as chance allows.

    Parameters
    ----------
    y
        ``(n,)`` labels.
    samples
        ``(n,)`` samples.
    rng
        Of the shuffling.
    n
        Number of draws.
    """
    _, first, codes = np.unique(samples, return_index=True, return_inverse=True)
    own = y[first]
    draws = [rng.permutation(own) for _ in range(50 * n)]
    # A shuffle that agrees with the truth is no shuffle, and one that contradicts it is the truth with another sign.
    likeness = [abs(np.corrcoef(own, d)[0, 1]) for d in draws] if len(np.unique(own)) == 2 else [0.0] * len(draws)
    best = np.argsort(likeness, kind="stable")[:n]
    return [draws[i][codes] for i in best]


def truth_row(attribution: np.ndarray, truth: np.ndarray, others: dict[str, np.ndarray], seed: int) -> dict[str, Any]:
    """Area under the precision-recall curve of the planted genes, beside random order and other rankings.

    Parameters
    ----------
    attribution
        ``(genes,)``.
    truth
        ``(genes,)`` whether a gene was planted.
    others
        Name to ``(genes,)`` importance of other rankings.
    seed
        Of the random orders.
    """
    from sklearn.metrics import average_precision_score

    strength = np.abs(attribution)
    value = float(average_precision_score(truth, strength))
    rng = np.random.default_rng(seed)
    null = np.array([average_precision_score(truth, rng.permutation(strength)) for _ in range(200)])
    beside = [f"random {null.mean():.2f}"]
    beside += [f"{k} {average_precision_score(truth, np.nan_to_num(np.abs(v))):.2f}" for k, v in others.items()]
    limit = float(np.quantile(null, 0.95))
    note = f"precision-recall area of {int(truth.sum())} planted genes, beside " + ", ".join(beside)
    return row("planted truth", value, threshold=limit, passed=bool(value > limit), note=note)


def agreement_row(attribution: np.ndarray, statistic: np.ndarray, seed: int) -> dict[str, Any]:
    """Rank correlation with the differences between samples; they must at least not be unrelated."""
    known = np.isfinite(statistic) & (attribution != 0)
    value = rank_correlation(attribution[known], statistic[known])
    rng = np.random.default_rng(seed)
    null = [rank_correlation(attribution[known], rng.permutation(statistic[known])) for _ in range(200)]
    limit = float(np.quantile(null, 0.95)) if null else np.nan
    note = "rank correlation with the moderated t between samples; must exceed that of shuffled genes"
    return row("agreement", value, threshold=limit, passed=bool(value > limit), note=note)
