"""What is a predictor worth on groups that it has not seen?"""

from __future__ import annotations

from typing import Any

import numpy as np

from scdrugmap._errors import InputError
from scdrugmap.trust.calibration import Calibrator
from scdrugmap.trust.conformal import ConformalSets

#: Fewer groups of a class than this say nothing about an interval.
MIN_GROUPS = 4


def worth_of(
    margin: np.ndarray, y: np.ndarray, groups: np.ndarray, score: np.ndarray, sets: np.ndarray, level: float = 0.95
) -> dict[str, Any]:
    """Judge held-out scores.

    Parameters
    ----------
    margin
        Log-odds (cells,) of cells whose group was held out.
    y
        0 or 1 (cells,).
    groups
        Group of each cell.
    score
        Their P(sensitive).
    sets
        Number of classes in the prediction set of each cell.
    level
        Of the interval.

    Returns
    -------
    ``auroc``, ``auroc_low`` and ``auroc_high`` (not with too few groups), ``n_groups`` (of the smaller class), ``brier``, ``brier_constant`` (of the
    share of sensitive cells for every cell), ``set_size`` (mean number of classes) and ``below_floor``: the reasons,
    joined, why the predictor is not shown to be better than no predictor, or an empty text.

    Examples
    --------
    >>> import numpy as np
    >>> y = np.repeat([0, 1] * 8, 10)
    >>> margin = y - 0.5 + np.random.default_rng(0).normal(scale=0.3, size=160)
    >>> found = worth_of(margin, y, np.repeat(np.arange(16), 10), 1 / (1 + np.exp(-9 * margin)), np.ones(160))
    >>> found["auroc_low"] > 0.5, found["below_floor"]
    (True, '')
    """
    auroc, low, high, n = auroc_interval(margin, y, groups, level)
    brier, prior = float(np.mean((score - y) ** 2)), float(np.mean(y))
    constant = prior * (1 - prior)
    reasons = []
    if low <= 0.5:
        reasons.append(f"AUROC {auroc:.2f} [{low:.2f}, {high:.2f}] on held-out groups is not above 0.5")
    if brier >= constant:
        reasons.append(f"Brier score {brier:.3f} on held-out groups is no better than the constant's {constant:.3f}")
    interval = {} if np.isnan(low) else {"auroc_low": low, "auroc_high": high}
    return {
        "auroc": auroc,
        **interval,
        "level": level,
        "n_groups": n,
        "brier": brier,
        "brier_constant": constant,
        "set_size": float(np.mean(sets)),
        "below_floor": "; ".join(reasons),
    }


def auroc_interval(
    margin: np.ndarray, y: np.ndarray, groups: np.ndarray, level: float = 0.95
) -> tuple[float, float, float, int]:
    """AUROC over cells with an interval over groups.

    Parameters
    ----------
    margin, y, groups, level
        As in :func:`worth_of`.

    Returns
    -------
    AUROC, lower and upper bound (NaN with fewer than four groups of a class), and the groups of the smaller class.

    Notes
    -----
    Variance of clustered AUROC (Obuchowski 1997), Welch's degrees of freedom over groups, on the logit scale. A ranking
    that is perfect but for half a group is no certainty: its variance is bounded from below, and the bound is open.
    """
    from scipy.stats import rankdata, t

    positive = np.asarray(y) == 1
    code = np.unique(np.asarray(groups), return_inverse=True)[1]
    m, n = int(positive.sum()), int((~positive).sum())
    rank, own = rankdata(margin), np.empty(len(margin))
    own[positive], own[~positive] = rankdata(margin[positive]), rankdata(margin[~positive])
    # share of cells of the other class that a cell is on the right side of
    won = np.where(positive, (rank - own) / n, 1 - (rank - own) / m)
    auroc = float(won[positive].mean())
    counts = np.array([len(np.unique(code[side])) for side in (positive, ~positive)])
    smaller = int(counts.min())
    if smaller < MIN_GROUPS:
        return auroc, np.nan, np.nan, smaller
    parts = np.stack([np.bincount(code[s], (won[s] - auroc) / s.sum(), code.max() + 1) for s in (positive, ~positive)])
    own_variance = (parts**2).sum(axis=1) * counts / (counts - 1)
    variance = own_variance.sum() + 2 * (parts[0] * parts[1]).sum()
    edge = 1 / (2 * smaller + 2)
    centre = min(max(auroc, edge), 1 - edge)
    if centre == auroc:
        df = own_variance.sum() ** 2 / (own_variance**2 / (counts - 1)).sum() if own_variance.any() else 1.0
    else:
        # (nearly) perfect rankings have no variance of their own: take one that agrees with the permutation test, by
        # which four against four groups is the least to tell a perfect ranking from chance
        variance, df = max(variance, centre * (1 - centre) / (4 * smaller)), float(counts.sum() - 2)
    half = t.ppf(0.5 + level / 2, max(df, smaller - 1)) * np.sqrt(max(variance, 0)) / (centre * (1 - centre))
    middle = np.log(centre / (1 - centre))
    low, high = 1 / (1 + np.exp(-(middle - half))), 1 / (1 + np.exp(-(middle + half)))
    low, high = (0.0 if auroc < edge else low), (1.0 if auroc > 1 - edge else high)
    return auroc, float(min(low, auroc)), float(max(high, auroc)), smaller


def crossed(
    margin: np.ndarray,
    y: np.ndarray,
    folds: list[tuple[np.ndarray, np.ndarray]],
    calibrate: str | None,
    coverage: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and sizes of prediction sets of every fold from the held-out scores of the others.

    Parameters
    ----------
    margin, y
        Log-odds of held-out cells and their class.
    folds
        Training and held-out rows, as the log-odds came about.
    calibrate
        Map of :class:`~scdrugmap.trust.calibration.Calibrator`, or ``None`` for the head's own probabilities.
    coverage
        Of the sets.

    Returns
    -------
    P(sensitive) and the number of classes in the set (cells,).
    """
    from scipy.special import expit

    score, sizes = np.empty(len(y)), np.empty(len(y))
    for others, held in folds:
        fitted = None if calibrate is None else Calibrator.fit(margin[others], y[others], calibrate)
        score[held] = expit(margin[held]) if fitted is None else fitted(margin[held])
        sets = ConformalSets.fit(margin[others], y[others], coverage=coverage)
        sizes[held] = (sets.p_values(margin[held]) > 1 - coverage).sum(axis=1)
    return score, sizes


def statement(worth: Any) -> str:
    """One line about the worth of a predictor, for a log, a terminal or a card.

    Parameters
    ----------
    worth
        Of :func:`worth_of`, or a mapping with the ``reason`` why there is none.

    Examples
    --------
    >>> statement({"reason": "no groups"})
    'worth on unseen groups: not known (no groups)'
    """
    if not worth or "auroc" not in worth:
        reason = (worth or {}).get("reason", "this predictor was trained before it was measured")
        return f"worth on unseen groups: not known ({reason})"
    if "auroc_low" not in worth:
        interval = f"no interval: {worth['n_groups']} groups of a class are too few"
    else:
        interval = f"{worth['level']:.0%} interval {worth['auroc_low']:.2f} to {worth['auroc_high']:.2f}"
    return (
        f"worth on unseen groups: AUROC {worth['auroc']:.2f} ({interval}), Brier {worth['brier']:.3f} against "
        f"{worth['brier_constant']:.3f} of a constant, {worth['set_size']:.2f} classes per prediction set"
        + (" - NOT BETTER THAN NO PREDICTOR" if worth["below_floor"] else "")
    )


def refuse_worthless(worth: Any, *, force: bool, where: str) -> None:
    """Refuse to hand out a predictor that is not shown to be better than no predictor.

    Parameters
    ----------
    worth
        As in :func:`statement`.
    force
        Hand it out anyway.
    where
        Where to, for the message.

    Raises
    ------
    InputError
        If it is below the floor and not forced.
    """
    reasons = (worth or {}).get("below_floor", "")
    if reasons and not force:
        raise InputError(
            "predictor",
            reasons,
            "a predictor that is better than none",
            f"pass force=True to put it on {where} anyway.",
        )
