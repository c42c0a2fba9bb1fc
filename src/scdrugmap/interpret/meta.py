"""Random-effects meta-analysis over studies, for many genes at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scdrugmap.interpret.moderated import Effects, squeeze


@dataclass(frozen=True, eq=False)
class Pooled(Effects):
    """Pooled effects, with the heterogeneity behind them.

    Parameters
    ----------
    tau2
        ``(genes,)`` variance of the true effects between studies.
    i2
        ``(genes,)`` share of the variation that is heterogeneity, 0 to 1.
    n_studies
        ``(genes,)`` studies with an effect.
    """

    tau2: np.ndarray
    i2: np.ndarray
    n_studies: np.ndarray


def random_effects(effects: np.ndarray, variances: np.ndarray, *, share: bool = False) -> Pooled:
    """Pool effects of studies: DerSimonian-Laird, with the interval of Hartung and Knapp.

    Parameters
    ----------
    effects, variances
        ``(studies, genes)``; NaN where a study has no effect of a gene.
    share
        Let the genes lend each other what two or three studies alone know badly: the heterogeneity is squeezed towards
        its common prior, as moderated t statistics do with variances, and its degrees of freedom grow by those of the
        prior. The standard error is then that of DerSimonian and Laird.

    Returns
    -------
    Pooled effects; with one study its own.

    References
    ----------
    DerSimonian and Laird 1986, Controlled Clinical Trials 7:177; Hartung and Knapp 2001, Statistics in Medicine
    20:3875; Smyth 2004 for ``share``.

    Examples
    --------
    >>> pooled = random_effects(np.array([[1.0], [1.0], [1.0]]), np.ones((3, 1)))
    >>> float(pooled.effect[0]), float(pooled.tau2[0])
    (1.0, 0.0)
    """
    known = np.isfinite(effects) & np.isfinite(variances) & (variances > 0)
    y, within = np.where(known, effects, 0.0), np.where(known, variances, 1.0)
    k = known.sum(axis=0)
    w = np.where(known, 1 / within, 0.0)
    fixed = _ratio((w * y).sum(axis=0), w.sum(axis=0))
    q = (w * (y - fixed) ** 2).sum(axis=0)
    spare = w.sum(axis=0) - _ratio((w**2).sum(axis=0), w.sum(axis=0))
    df: float = max(int(k.max(initial=1)) - 1, 1)
    believed = q
    if share:
        several = k == df + 1
        posterior, _, prior_df = squeeze(np.where(several, q / df, np.nan), df)
        believed = np.where(several & np.isfinite(posterior), posterior * df, q)
        df += prior_df
    tau2 = np.where(k > 1, np.maximum(_ratio(believed - (k - 1), spare), 0), 0.0)
    v = np.where(known, 1 / (within + tau2), 0.0)
    pooled = _ratio((v * y).sum(axis=0), v.sum(axis=0))
    factor = _ratio((v * (y - pooled) ** 2).sum(axis=0), k - 1)
    se = np.sqrt(_ratio(np.where((k > 1) & (not share), factor, 1.0), v.sum(axis=0)))
    i2 = np.where(k > 1, np.maximum(_ratio(q - (k - 1), q), 0), np.nan)
    absent = k == 0
    pooled, se = np.where(absent, np.nan, pooled), np.where(absent, np.nan, se)
    return Pooled(pooled, se, df, tau2=tau2, i2=i2, n_studies=k)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Quotient, zero where nothing is divided by nothing."""
    return np.divide(above, below, out=np.zeros(np.broadcast(above, below).shape), where=np.asarray(below) != 0)
