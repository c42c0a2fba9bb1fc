"""Activities by decoupler, where it is installed; its univariate linear model is built in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from scdrugmap._errors import InputError, MissingDependencyError

#: Rows that are dense at a time.
BLOCK = 256
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
    InputError
        If a method fits all sets at once and they cannot be told apart.
    """
    try:
        import decoupler
    except ImportError as error:
        raise MissingDependencyError("decoupler", "interpret", f"method={method!r}") from error
    found = weights.tocoo()
    genes = np.array([f"g{j}" for j in range(weights.shape[1])])
    sets = np.array([f"s{i}" for i in range(weights.shape[0])])
    net = pd.DataFrame({"source": sets[found.row], "target": genes[found.col], "weight": found.data})
    # Genes that no row of a block expresses count, too: a score must not depend on the other cells of its block.
    options: dict[str, Any] = {"tmin": 1, "empty": False, "verbose": False} | (
        {"times": 0} if method == "waggr" else {}
    )
    out = np.empty((Y.shape[0], len(sets)))
    for first in range(0, len(out), BLOCK):
        part: Any = Y[first : first + BLOCK]
        dense = part.toarray() if sparse.issparse(part) else np.asarray(part)
        rows = np.array([f"r{i}" for i in range(len(dense))])
        try:
            scores = getattr(decoupler.mt, method)(data=[dense, rows, genes], net=net, **options)
        except np.linalg.LinAlgError:
            raise InputError(
                "method", method, "sets of which none is a sum of others, for one model of all of them",
                "pass method='ulm', or a source without such sets.",
            ) from None  # fmt: skip
        table = scores[0] if isinstance(scores, tuple) else scores
        out[first : first + BLOCK] = table.reindex(index=rows, columns=sets)
    return out


def shuffled_p(
    statistic: np.ndarray, score: np.ndarray, weights: sparse.csr_matrix, method: str, rng: Any
) -> np.ndarray:
    """Share of shuffled rankings of genes that score a set as high, ``(sets,)``."""
    null = decoupled(np.array([rng.permutation(statistic) for _ in range(200)]), weights, method)
    middle = null.mean(axis=0)
    return (1 + (np.abs(null - middle) >= np.abs(score - middle)).sum(axis=0)) / (1 + len(null))
