"""What one row of the table belongs to, and cells gathered into samples or patients."""

from __future__ import annotations

import numpy as np
import pandas as pd

from scdrugmap._cohort import Cohort, call

#: What one row of the table belongs to.
PLACE = ["model", "strategy", "head", "setting", "split", "by", "category"]
LEVELS = ("cell", "sample", "patient")
#: Cells that a chat model answered; the level ``"cell"`` holds all that it was asked about.
ANSWERED = "answered"


def aggregate(
    y: np.ndarray, score: np.ndarray, groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, str]:
    """Turn cells into samples (or patients): mean score, called sensitive above one half.

    Returns
    -------
    tuple
        Labels, scores, calls and group codes, one entry per group, and the reason if there is no group label.

    Examples
    --------
    >>> import numpy as np
    >>> aggregate(np.array([1, 1, 0]), np.array([0.75, 0.25, 0.25]), np.array(["a", "a", "b"]))[:3]
    (array([1, 0]), array([0.5 , 0.25]), array([0, 0]))
    """
    codes, names = pd.factorize(groups, sort=True)
    known = codes >= 0
    codes, y, score = codes[known], y[known], score[known]
    n = len(names)
    cells = np.bincount(codes, minlength=n)
    positive = np.bincount(codes, weights=y, minlength=n)
    mean = np.bincount(codes, weights=score.astype(float), minlength=n) / np.maximum(cells, 1)
    mixed = (positive > 0) & (positive < cells)
    reason = f"{mixed.sum()} of {n} groups carry both labels" if mixed.any() else ""
    # Summed in float64, then stored like the scores of cells: one half is one half at either level.
    mean = np.round(mean, 7)
    return (positive > 0).astype(np.int64), mean, call(mean), np.arange(n), reason


def level_groups(cells: Cohort, level: str) -> np.ndarray | None:
    """Return the column that a level aggregates over; ``None`` for cells."""
    return None if level in ("cell", ANSWERED) else cells.sample if level == "sample" else cells.patient


def no_hit(y: np.ndarray, pred: np.ndarray) -> np.ndarray:
    """Calls in which a cell without an answer (-1) counts as called wrong: an abstention is not a hit.

    Examples
    --------
    >>> no_hit(np.array([1, 0, 1]), np.array([1, -1, -1])).tolist()
    [1, 1, 0]
    """
    return np.where(pred < 0, 1 - y, pred)
