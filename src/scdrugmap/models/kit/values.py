"""Which values of a count matrix a model can use."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from scdrugmap._errors import InputError


def check_values(X: sparse.csr_matrix, *, counts: bool, model: str) -> None:
    """Raise if a block holds values that a model cannot use.

    Parameters
    ----------
    X
        The block.
    counts
        Whether whole numbers are required.
    model
        Name for the message.

    Raises
    ------
    InputError
        On NaN, infinity, negative values or, with ``counts``, fractions.
    """
    data = X.data
    if data.size == 0:
        return
    if not np.isfinite(data).all():
        bad = int((~np.isfinite(data)).sum())
        raise InputError(
            "adata.X", f"{bad} NaN or infinite values", "finite counts", "remove or replace them before embedding."
        )
    fix = "pass layer=<where the raw counts are> ('raw' for adata.raw); sd.pp.check(adata) names the place."
    if data.min() < 0:
        raise InputError("adata.X", f"negative values (minimum {data.min():.4g})", "raw counts", fix)
    if counts and not whole(data):
        share = float(np.mean(data != np.rint(data)))
        raise InputError(
            "adata.X",
            f"{share:.0%} of the stored values are not whole numbers",
            f"raw counts, which {model} needs",
            fix,
        )


def whole(data: np.ndarray) -> bool:
    """Whether values are raw counts: finite whole numbers of zero or more.

    Examples
    --------
    >>> whole(np.array([0.0, 3.0])), whole(np.array([0.5]))
    (True, False)
    """
    return bool(np.isfinite(data).all() and (data >= 0).all() and np.array_equal(data, np.rint(data)))
