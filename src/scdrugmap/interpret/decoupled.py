"""Activities by decoupler, where it is installed; its univariate linear model is built in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from scdrugmap._errors import MissingDependencyError

#: Its methods beyond those that are built in.
METHODS = ("mlm", "viper", "waggr", "aucell")


def decoupled(Y: np.ndarray | sparse.csr_matrix, weights: sparse.csr_matrix, method: str) -> np.ndarray:
    """Score every set in every row by a method of decoupler.

    Parameters
    ----------
    Y
        ``(rows, genes)`` statistics or expression.
    weights
        ``(sets, genes)``.
    method
        One of ``METHODS``.

    Returns
    -------
    Array (rows, sets).

    Raises
    ------
    MissingDependencyError
        If decoupler is not installed.
    """
    try:
        import decoupler
    except ImportError as error:
        raise MissingDependencyError("decoupler", "interpret", f"method={method!r}") from error
    found = weights.tocoo()
    genes = np.array([f"g{j}" for j in range(weights.shape[1])])
    sets = np.array([f"s{i}" for i in range(weights.shape[0])])
    net = pd.DataFrame({"source": sets[found.row], "target": genes[found.col], "weight": found.data})
    rows = np.array([f"r{i}" for i in range(Y.shape[0])])
    options: dict[str, Any] = {"times": 0} if method == "waggr" else {}
    scores = getattr(decoupler.mt, method)(data=[Y, rows, genes], net=net, tmin=1, verbose=False, **options)
    table = scores[0] if isinstance(scores, tuple) else scores
    return np.asarray(table.reindex(index=rows, columns=sets), dtype=float)


def shuffled_p(
    statistic: np.ndarray, score: np.ndarray, weights: sparse.csr_matrix, method: str, rng: Any
) -> np.ndarray:
    """Share of shuffled rankings of genes that score a set as high, ``(sets,)``."""
    null = decoupled(np.array([rng.permutation(statistic) for _ in range(200)]), weights, method)
    middle = null.mean(axis=0)
    return (1 + (np.abs(null - middle) >= np.abs(score - middle)).sum(axis=0)) / (1 + len(null))
