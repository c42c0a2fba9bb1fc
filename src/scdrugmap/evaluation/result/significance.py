"""Tests of models against chance and against one another: labels are dealt to samples, folds share training cells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from scdrugmap._metrics import Metric, Sums


def permutation_pvalue(
    y: np.ndarray,
    score: np.ndarray,
    pred: np.ndarray,
    groups: np.ndarray,
    metric: Metric,
    *,
    strata: np.ndarray | None = None,
    fold: np.ndarray | None = None,
    average_folds: bool = False,
    n_permutations: int = 1000,
    rng: np.random.Generator,
) -> tuple[float, str]:
    """Probability of a metric at least this good if the labels were dealt to the samples at random.

    Parameters
    ----------
    y, score, pred, groups
        As in :func:`scdrugmap.evaluation.result.statistics.resampled`; each group (sample) must carry one label.
    metric
        A built-in metric.
    strata
        ``(n,)`` stratum of each cell (its study): labels are exchanged within strata only.
    fold
        ``(n,)`` fold of each cell: a ranking compares cells of one fold only.
    average_folds
        Take the mean of the folds in which the metric is defined instead of all cells together.
    n_permutations
        Number of random permutations.
    rng
        Random generator.

    Returns
    -------
    tuple
        p-value with the usual +1 correction, and the reason where it is NaN.

    Notes
    -----
    The predictions stay as they are: the test asks whether they agree with the labels better than chance, given that
    the sample and not the cell is the unit. The smallest possible value is one over the number of distinct label orders,
    however many cells there are.

    Examples
    --------
    >>> import numpy as np
    >>> from scdrugmap._metrics import METRICS
    >>> sample, y = np.repeat(np.arange(20), 5), np.repeat(np.arange(20) % 2, 5)
    >>> p, _ = permutation_pvalue(y, y * 1.0, y, sample, METRICS["f1"], rng=np.random.default_rng(0))
    >>> p < 0.01
    True
    """
    if metric.kind == "custom":
        return np.nan, "not available for a custom metric"
    codes = np.unique(groups, return_inverse=True)[1]
    n_groups = int(codes.max()) + 1
    positives, cells = np.bincount(codes, weights=y), np.bincount(codes)
    if ((positives > 0) & (positives < cells)).any():
        return np.nan, "some samples carry both labels"
    label = (positives > 0).astype(float)
    if label.min() == label.max():
        return np.nan, "one class only"
    stratum = np.zeros(n_groups, dtype=int)
    if strata is not None:
        stratum[codes] = np.unique(strata, return_inverse=True)[1]
    draws = np.tile(label, (n_permutations, 1))
    for code in np.unique(stratum):
        members = np.flatnonzero(stratum == code)
        draws[:, members] = rng.permuted(draws[:, members], axis=1)
    if (draws == label).all():
        return np.nan, "every study has one class: no label can be exchanged within a study"
    fold = np.zeros(len(y), np.int64) if fold is None else np.unique(fold, return_inverse=True)[1]
    parts = [fold == f for f in range(int(fold.max()) + 1)] if average_folds else [np.ones(len(y), bool)]
    # The labels as they are stand first, so that they are scored in the same way as the permuted ones.
    dealt = np.vstack([label, draws])
    values = np.stack([_under_labels(dealt, score[m], pred[m], codes[m], metric, fold[m]) for m in parts], axis=1)
    known = np.isfinite(values)
    total = np.where(known, values, 0).sum(axis=1)
    mean = np.divide(total, known.sum(axis=1), out=np.full(len(values), np.nan), where=known.any(axis=1))
    observed, null = mean[0], mean[1:]
    if not np.isfinite(observed):
        return np.nan, metric.undefined
    sign = 1 if metric.higher_is_better else -1
    as_good = np.sum(sign * null[np.isfinite(null)] >= sign * observed - 1e-12)
    return float((1 + as_good) / (1 + np.isfinite(null).sum())), ""


def _under_labels(
    labels: np.ndarray, score: np.ndarray, pred: np.ndarray, codes: np.ndarray, metric: Metric, fold: np.ndarray
) -> np.ndarray:
    """Score one set of predictions under ``(b, groups)`` labels, ``(b,)``."""
    here, local = np.unique(codes, return_inverse=True)
    both = np.ones(len(score), dtype=bool)
    return Sums(score, pred, local, both, both, fold).values(metric, labels[:, here], 1 - labels[:, here])


def corrected_t(differences: np.ndarray, n_train: float, n_test: float) -> tuple[float, float]:
    """Nadeau and Bengio's corrected resampled t-test of paired differences over folds.

    Parameters
    ----------
    differences
        ``(k,)`` metric of one model minus that of the other, fold by fold.
    n_train, n_test
        Cells (or samples, or patients: what the metric counts) in an average training and test set.

    Returns
    -------
    tuple
        t and the two-sided p-value with k - 1 degrees of freedom; NaN for fewer than two folds.

    References
    ----------
    Nadeau C, Bengio Y (2003). Inference for the generalization error. Machine Learning 52, 239-281.

    Examples
    --------
    >>> import numpy as np
    >>> t, p = corrected_t(np.array([0.1, 0.2, 0.15, 0.12]), 75, 25)
    >>> round(t, 2), round(p, 3)
    (4.29, 0.023)
    """
    from scipy import stats

    d = np.asarray(differences, dtype=float)
    d = d[np.isfinite(d)]
    k = len(d)
    if k < 2:
        return np.nan, np.nan
    variance = d.var(ddof=1) * (1 / k + n_test / n_train)
    if variance == 0:
        return (0.0, 1.0) if d.mean() == 0 else (float(np.sign(d.mean()) * np.inf), 0.0)
    t = d.mean() / np.sqrt(variance)
    return float(t), float(2 * stats.t.sf(abs(t), k - 1))


def holm(pvalues: np.ndarray) -> np.ndarray:
    """Holm's step-down correction; NaN stays NaN and does not count.

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03]).round(2).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(pvalues, dtype=float)
    out = np.full(p.shape, np.nan)
    known = np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    out[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return out


@dataclass(frozen=True)
class Ranking:
    """Average ranks of models over categories and what can be told apart.

    Parameters
    ----------
    ranks
        Average rank per model, 1 is best.
    statistic, pvalue
        Friedman's chi-square test that all models are equal.
    posthoc
        Models x models, p-values of pairs.
    test
        Name of the post hoc test and its correction.
    critical_difference
        Nemenyi's critical difference of average ranks at 5 %.
    n
        Number of categories that hold every model.
    """

    ranks: pd.Series
    statistic: float
    pvalue: float
    posthoc: pd.DataFrame
    test: str
    critical_difference: float
    n: int


def rank_models(values: pd.DataFrame, *, higher_is_better: bool = True, test: str = "conover") -> Ranking:
    """Friedman test with a post hoc test of all pairs over categories.

    Parameters
    ----------
    values
        Categories x models; rows with a missing value are left out.
    higher_is_better
        Direction of the metric.
    test
        ``"conover"`` (Holm-corrected) or ``"nemenyi"``.

    Returns
    -------
    Ranking
        With NaN p-values for fewer than two complete categories or three models.

    References
    ----------
    Demsar J (2006). Statistical comparisons of classifiers over multiple data sets. JMLR 7, 1-30.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> noise = np.random.default_rng(0).normal(size=(12, 3)) * 0.01
    >>> rank_models(pd.DataFrame(noise + [0.9, 0.7, 0.5], columns=["a", "b", "c"])).ranks.tolist()
    [1.0, 2.0, 3.0]
    """
    from scipy import stats

    table = values.dropna()
    signed = -table if higher_is_better else table
    ranks = signed.rank(axis=1).mean().sort_values()
    n, k = table.shape
    difference = (
        float(stats.studentized_range.ppf(0.95, k, 1e6) / np.sqrt(2) * np.sqrt(k * (k + 1) / (6 * n)))
        if n and k > 1
        else np.nan
    )
    if test not in ("conover", "nemenyi"):
        from scdrugmap._errors import UnknownNameError

        raise UnknownNameError("test", test, ["conover", "nemenyi"])
    if n < 2 or k < 3:
        empty = pd.DataFrame(np.nan, index=table.columns, columns=table.columns)
        return Ranking(ranks, np.nan, np.nan, empty, test, difference, n)
    import scikit_posthocs as sp

    statistic, pvalue = stats.friedmanchisquare(*signed.to_numpy().T)
    data = signed.to_numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        pairs = (
            sp.posthoc_conover_friedman(data, p_adjust="holm")
            if test == "conover"
            else sp.posthoc_nemenyi_friedman(data)
        )
    posthoc = pd.DataFrame(np.asarray(pairs, dtype=float), index=table.columns, columns=table.columns)
    name = "Conover, Holm-corrected" if test == "conover" else "Nemenyi"
    return Ranking(ranks, float(statistic), float(pvalue), posthoc, name, difference, n)
