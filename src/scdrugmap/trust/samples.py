"""From cells to samples: which share of a sample is resistant, and how sure is that?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from scdrugmap._cohort import THRESHOLD, call
from scdrugmap._errors import InputError
from scdrugmap._keys import RESISTANT, SENSITIVE

#: Fewer held-out groups than this bound nothing at a level of 0.95.
MIN_ERRORS = 6


@dataclass(frozen=True, eq=False)
class SampleErrors:
    """How far the called fraction of held-out groups was from the true one.

    Parameters
    ----------
    error
        True minus called fraction of resistant cells (groups,), each called by a head that has not seen the group.

    Notes
    -----
    The half-width for a new sample is the conformal one: the ``ceil((n + 1) level)``-th smallest absolute error, which
    covers at any distribution if the new sample is exchangeable with the groups. Where ``n`` groups are too few for
    it (fewer than 19 at 0.95), it is the larger of the largest error and Student's prediction bound on the errors;
    below six groups nothing is said.

    Examples
    --------
    >>> import numpy as np
    >>> SampleErrors(np.linspace(-0.2, 0.2, 41)).half_width(0.95)
    0.2
    >>> SampleErrors(np.zeros(3)).half_width(0.95)
    1.0
    """

    error: np.ndarray

    @classmethod
    def fit(cls, score: np.ndarray, y: np.ndarray, groups: np.ndarray, *, threshold: float = THRESHOLD) -> SampleErrors:
        """Compare calls with labels.

        Parameters
        ----------
        score
            P(sensitive) of cells whose group was held out.
        y
            0 or 1.
        groups
            Group of each cell.
        threshold
            A cell is resistant if its score does not exceed this.
        """
        called, true = 1 - call(score, threshold), 1 - np.asarray(y)
        code = np.unique(np.asarray(groups), return_inverse=True)[1]
        return cls((np.bincount(code, true) - np.bincount(code, called)) / np.bincount(code))

    def half_width(self, level: float) -> float:
        """Half of the width of an interval for the fraction of a new sample; 1 says nothing."""
        from scipy.stats import t

        n = len(self.error)
        if n < MIN_ERRORS:
            return 1.0
        ordered = np.sort(np.abs(self.error))
        place = int(np.ceil((n + 1) * level - 1e-9))
        if place <= n:
            return float(ordered[place - 1])
        spread = np.sqrt(np.mean(self.error**2) * (1 + 1 / n))
        return float(min(1.0, max(ordered[-1], t.ppf(0.5 + level / 2, n) * spread)))

    def state(self) -> dict[str, np.ndarray]:
        """Return the errors, in an order that names no group."""
        return {"error": np.sort(self.error)}

    @classmethod
    def from_state(cls, meta: Any, state: Mapping[str, np.ndarray]) -> SampleErrors:
        """Rebuild from :meth:`state`."""
        return cls(np.asarray(state["error"]))


def sample_calls(
    score: Any,
    sample: Any,
    *,
    threshold: float = THRESHOLD,
    level: float = 0.95,
    errors: SampleErrors | None = None,
) -> pd.DataFrame:
    """Fraction of resistant cells of every sample, with an interval.

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
    errors
        How far held-out groups were off in training. Without them the interval is about the cells of this sample
        alone.

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
    are computed rather than drawn. That knows nothing of the difference between patients; ``errors`` do, and the wider
    of the two bounds counts.

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
    if errors is not None:
        half = errors.half_width(level)
        lower = np.maximum(np.minimum(lower, safe_p - half), 0)
        upper = np.minimum(np.maximum(upper, safe_p + half), 1)
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
