"""Predicted probability against observed share."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from scdrugmap._errors import InputError
from scdrugmap.figures import axes as _axes
from scdrugmap.figures.curves import drawn_note, folds_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from scdrugmap.figures.results import Results

#: Cells in a bin whose share of sensitive ones is not worth a line.
FEW = 10


def calibration(
    result: Results,
    *,
    category: str | None = None,
    models: list[str] | None = None,
    n_bins: int = 10,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> Axes | None:
    """Draw the share of sensitive cells against the predicted probability, in bins of equal width.

    Parameters
    ----------
    result, category, models, ax, show, save
        As in :func:`scdrugmap.pl.roc`; a cell counts once per model and category that tested it.
    n_bins
        Number of bins; empty ones are left out. The size of a point grows with the share of cells in its bin; bins of
        fewer than ten cells are pale, and no line leads through them.

    Returns
    -------
    matplotlib.axes.Axes or None
        The axes, or ``None`` with ``show=True``. The dashed diagonal is perfect calibration; the dotted line is the
        share of sensitive cells: what a model that knows nothing should predict, and the precision of calling every
        cell sensitive.

    Raises
    ------
    UnknownNameError
        For a category or model that the result does not hold.
    InputError
        If there is nothing to draw, fewer than two bins, or the result holds several settings or columns of categories.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> adata = sd.datasets.simulate(n_studies=2, n_cells=300, n_genes=200, rng=0)
    >>> result = sd.tl.benchmark(adata, models=["pca"], setting="cross", head="logistic", baselines=["majority"], rng=0)
    >>> ax = sd.pl.calibration(result)
    """
    if not isinstance(n_bins, int | np.integer) or n_bins < 2:
        raise InputError("n_bins", n_bins, "an integer of two or more", "the default is 10.")
    contenders = [(label, folds) for label, folds in folds_of(result, category, models) if folds]
    ax = _axes.new_square(ax, 0.7, 1.9)
    look = _axes.styles(result)
    share = 0.0
    for label, folds in contenders:
        y, score = (np.concatenate(part) for part in zip(*folds, strict=True))
        predicted, observed, size = bins(y, score, int(n_bins))
        style = look[label]
        solid = size >= FEW
        ax.plot(predicted[solid], observed[solid], color=style.colour, ls=style.line, lw=1.3)
        ax.plot([], [], color=style.colour, ls=style.line, marker=style.marker, ms=4, lw=1.3, label=label)
        ax.scatter(
            predicted, observed, s=6 + 120 * size / size.sum(), color=style.colour, marker=style.marker, zorder=3,
            alpha=np.where(solid, 1.0, 0.3),  # type: ignore[arg-type]
        )  # fmt: skip
        share = float(y.mean())
    ax.plot([0, 1], [0, 1], color=_axes.FLOOR, ls="--", lw=1.1, label="perfect")
    ax.axhline(share, color=_axes.FLOOR, ls=":", lw=1.3, label=f"{_axes.FLOOR_NAME} ({share:.2f})")
    ax.set(
        xlabel="predicted P(sensitive)", ylabel="share of sensitive cells", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03),
        box_aspect=1,
    )  # fmt: skip
    _axes.title(ax, drawn_note(result, category))
    _axes.legend(ax)
    _axes.clean(ax)
    return _axes.finish(ax, show=show, save=save)


def bins(y: np.ndarray, score: np.ndarray, n_bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean score, share of ones and number of cells of each bin that is not empty.

    Examples
    --------
    >>> import numpy as np
    >>> [v.tolist() for v in bins(np.array([0, 1, 1]), np.array([0.0, 0.5, 1.0]), 2)]
    [[0.0, 0.75], [0.0, 1.0], [1, 2]]
    """
    codes = np.minimum((score * n_bins).astype(int), n_bins - 1)
    size = np.bincount(codes, minlength=n_bins)
    full = size > 0
    sums = (np.bincount(codes, weights=v, minlength=n_bins)[full] / size[full] for v in (score, y))
    return next(sums), next(sums), size[full]
