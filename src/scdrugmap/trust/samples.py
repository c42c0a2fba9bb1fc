"""From cells to samples: which share of a sample is resistant, and how sure is that?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from scdrugmap._cohort import THRESHOLD, call
from scdrugmap._errors import InputError
from scdrugmap._keys import RESISTANT, SENSITIVE


def sample_calls(score: Any, sample: Any, *, threshold: float = THRESHOLD, level: float = 0.95) -> pd.DataFrame:
    """Fraction of resistant cells of every sample, with a bootstrap interval.

    Parameters
    ----------
    score
        P(sensitive) of each cell; a missing score is left out and counted.
    sample
        Sample of each cell.
    threshold
        A cell is resistant if its score does not exceed this.
    level
        Level of the interval.

    Returns
    -------
    One row per sample, indexed by its name: ``n_cells`` (with a score), ``n_missing``, ``fraction_resistant``,
    ``lower``, ``upper``, ``mean_score`` and ``call``: the class if the interval lies on one side of one half, else
    ``"undecided"``.

    Raises
    ------
    InputError
        If the lengths differ or ``level`` is no share.

    Notes
    -----
    Resampling the cells of a sample makes the number of resistant ones binomial, so the percentiles of the bootstrap
    are computed rather than drawn. The interval is about the cells of this sample; it knows nothing of the difference
    between patients.

    Examples
    --------
    >>> sample_calls([0.1, 0.2, 0.9], ["a", "a", "b"])["fraction_resistant"].tolist()
    [1.0, 0.0]
    """
    from scipy.stats import binom

    score, names = np.asarray(score, dtype=np.float64), pd.Series(np.asarray(sample))
    if len(score) != len(names) or not 0 < level < 1:
        raise InputError("sample", f"{len(names)} samples, {len(score)} scores", "one per cell", "pass equal lengths.")
    known = ~np.isnan(score)
    resistant = np.where(known, 1 - call(score, threshold), np.nan)
    cells = pd.DataFrame({"resistant": resistant, "score": score, "known": known})
    grouped = cells.groupby(names.astype(str).to_numpy(), sort=True)
    n = grouped["known"].sum().astype(int)
    fraction = grouped["resistant"].mean()
    tail = (1 - level) / 2
    safe_n, safe_p = np.maximum(n, 1), fraction.fillna(0)
    lower, upper = (binom.ppf(q, safe_n, safe_p) / safe_n for q in (tail, 1 - tail))
    out = pd.DataFrame(
        {
            "n_cells": n,
            "n_missing": grouped["known"].size() - n,
            "fraction_resistant": fraction,
            "lower": np.where(n > 0, lower, np.nan),
            "upper": np.where(n > 0, upper, np.nan),
            "mean_score": grouped["score"].mean(),
        }
    )
    out["call"] = np.select([out["lower"] > 0.5, out["upper"] < 0.5], [RESISTANT, SENSITIVE], "undecided")
    out.index.name = "sample"
    return out
