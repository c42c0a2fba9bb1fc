"""A few labelled cells or samples of the target study, drawn so that the draw can be repeated."""

from __future__ import annotations

from typing import Literal

import numpy as np

from scdrugmap._errors import InputError, UnknownNameError
from scdrugmap._keys import CLASSES

UNITS = ("cell", "sample")


def shot_order(
    y: np.ndarray, samples: np.ndarray | None, unit: Literal["cell", "sample"], rng: int | np.random.Generator | None
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Put the units of each class in a random order, of which the first n are n shots.

    Parameters
    ----------
    y
        0, 1, or -1 for cells without a label (cells,).
    samples
        Sample of each cell; needed for ``unit="sample"``.
    unit
        ``"cell"`` or ``"sample"``.
    rng
        Seed or generator.

    Returns
    -------
    For resistant and for sensitive: the rows of every unit, in the order of drawing. More shots contain fewer shots.

    Raises
    ------
    UnknownNameError
        For another unit.
    InputError
        If samples are asked for and not given.

    Examples
    --------
    >>> resistant, sensitive = shot_order(np.array([0, 0, 1, -1]), None, "cell", 0)
    >>> len(resistant), len(sensitive)
    (2, 1)
    """
    if unit not in UNITS:
        raise UnknownNameError("unit", unit, UNITS)
    if unit == "sample" and samples is None:
        raise InputError("unit", "'sample' without a sample column", "a column of samples", "pass sample_key=...")
    generator = np.random.default_rng(rng)
    out = []
    for c in range(2):
        rows = np.flatnonzero(y == c)
        if unit == "cell":
            out.append([np.array([r]) for r in generator.permutation(rows)])
        else:
            assert samples is not None
            names = np.unique(np.asarray(samples)[rows].astype(str))
            own = np.asarray(samples).astype(str)
            out.append([rows[own[rows] == name] for name in generator.permutation(names)])
    return out[0], out[1]


def draw_shots(
    y: np.ndarray,
    n_shots: int,
    *,
    samples: np.ndarray | None = None,
    unit: Literal["cell", "sample"] = "cell",
    rng: int | np.random.Generator | None = None,
) -> np.ndarray:
    """Rows of ``n_shots`` labelled cells, or samples, of each class.

    Parameters
    ----------
    y, samples, unit, rng
        As in :func:`shot_order`.
    n_shots
        Units per class.

    Returns
    -------
    Row numbers, ascending.

    Raises
    ------
    InputError
        If a class has fewer units.

    Examples
    --------
    >>> draw_shots(np.array([0, 0, 1, 1, 1]), 2, rng=0).size
    4
    """
    ordered = shot_order(y, samples, unit, rng)
    for name, units in zip(CLASSES, ordered, strict=True):
        if len(units) < n_shots:
            raise InputError(
                "n_shots",
                n_shots,
                f"at most {len(units)}, the labelled {name} {unit}s of the target",
                "pass fewer shots, or label more.",
            )
    drawn = [rows for units in ordered for rows in units[:n_shots]]
    return np.sort(np.concatenate(drawn)) if drawn else np.empty(0, np.int64)
