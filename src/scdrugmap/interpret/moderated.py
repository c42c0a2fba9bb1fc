"""Linear models over samples with variances that genes lend each other: the moderated t statistic."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special, stats


@dataclass(frozen=True, eq=False)
class Fit:
    """Least squares of many genes on one design.

    Parameters
    ----------
    coefficients
        ``(coefficients, genes)``.
    unscaled
        ``(coefficients, coefficients)`` inverse of the cross product of the design.
    variance
        ``(genes,)`` residual variance; NaN without residual degrees of freedom.
    df
        Residual degrees of freedom.
    """

    coefficients: np.ndarray
    unscaled: np.ndarray
    variance: np.ndarray
    df: int


def fit(Y: np.ndarray, design: np.ndarray) -> Fit:
    """Fit every column of ``Y`` on ``design`` by least squares.

    Parameters
    ----------
    Y
        ``(units, genes)``.
    design
        ``(units, coefficients)`` of full column rank.
    """
    q, r = np.linalg.qr(design)
    effects = q.T @ Y
    inverse = np.linalg.inv(r)
    df = design.shape[0] - design.shape[1]
    # Sums of squared residuals, not differences of sums, which cancel.
    rest = ((Y - q @ effects) ** 2).sum(axis=0)
    variance = rest / df if df > 0 else np.full(Y.shape[1], np.nan)
    return Fit(inverse @ effects, inverse @ inverse.T, variance, df)


def squeeze(variance: np.ndarray, df: float) -> tuple[np.ndarray, float, float]:
    """Shrink variances towards their common prior by empirical Bayes.

    Parameters
    ----------
    variance
        ``(genes,)`` residual variances.
    df
        Their degrees of freedom.

    Returns
    -------
    Posterior variances, prior variance and prior degrees of freedom (infinite where the variances differ no more than
    chance makes them).

    References
    ----------
    Smyth 2004, Statistical Applications in Genetics and Molecular Biology 3:3, section 6.2.

    Examples
    --------
    >>> posterior, prior, df = squeeze(np.array([1.0, 1.0, 1.0]), 4)
    >>> bool(df == np.inf)
    True
    """
    known = np.isfinite(variance) & (variance > 0)
    if known.sum() < 2:
        return variance.copy(), float("nan"), 0.0
    # A variance of zero must not decide the mean of the logarithms.
    floor = 1e-5 * np.median(variance[known])
    z = np.log(np.maximum(variance[known], floor))
    e = z - special.digamma(df / 2) + np.log(df / 2)
    mean = float(e.mean())
    spread = float(e.var(ddof=1)) - float(special.polygamma(1, df / 2))
    if spread <= 0:
        # The mean is the estimate of a common variance.
        prior_df, prior = np.inf, float(np.exp(mean))
        return np.where(np.isnan(variance), np.nan, prior), prior, prior_df
    half = _inverse_trigamma(spread)
    prior_df, prior = 2 * half, float(np.exp(mean + special.digamma(half) - np.log(half)))
    return (prior_df * prior + df * variance) / (prior_df + df), prior, prior_df


def _inverse_trigamma(value: float) -> float:
    """Solve ``trigamma(x) = value`` by Newton's method on the reciprocal, which is nearly linear."""
    x = 0.5 + 1 / value
    for _ in range(50):
        trigamma = float(special.polygamma(1, x))
        step = trigamma * (1 - trigamma / value) / float(special.polygamma(2, x))
        x += step
        if -step / x < 1e-10:
            break
    return x


@dataclass(frozen=True, eq=False)
class Effects:
    """Effects with their uncertainty, ``(genes,)`` each."""

    effect: np.ndarray
    se: np.ndarray
    df: float

    @property
    def t(self) -> np.ndarray:
        """Effect over standard error."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.effect / self.se

    @property
    def p(self) -> np.ndarray:
        """Two-sided p value."""
        return 2 * stats.t.sf(np.abs(self.t), self.df)

    def interval(self, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Confidence interval."""
        half = stats.t.ppf(0.5 + level / 2, self.df) * self.se
        return self.effect - half, self.effect + half


def moderated(fitted: Fit, contrast: np.ndarray) -> Effects:
    """Return a contrast with its moderated standard error; without residual degrees of freedom all is NaN.

    Parameters
    ----------
    fitted
        Of :func:`fit`.
    contrast
        ``(coefficients,)`` weights.
    """
    effect = contrast @ fitted.coefficients
    if fitted.df <= 0:
        return Effects(effect, np.full(len(effect), np.nan), np.nan)
    posterior, _, prior_df = squeeze(fitted.variance, fitted.df)
    scale = float(contrast @ fitted.unscaled @ contrast)
    # No more freedom than all genes together have.
    df = min(fitted.df + prior_df, fitted.df * max(int(np.isfinite(fitted.variance).sum()), 1))
    return Effects(effect, np.sqrt(posterior * scale), df)


def adjusted(p: np.ndarray) -> np.ndarray:
    """Benjamini-Hochberg over the defined values; the others stay NaN.

    Examples
    --------
    >>> adjusted(np.array([0.01, np.nan, 0.04])).round(3).tolist()
    [0.02, nan, 0.04]
    """
    out = np.full(len(p), np.nan)
    known = np.isfinite(p)
    if known.any():
        out[known] = stats.false_discovery_control(p[known])
    return out
