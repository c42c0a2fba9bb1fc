"""Predicted probability against observed share."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from scdrugmap.pl import _axes
from scdrugmap.pl._curves import folds_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from scdrugmap.evaluation import BenchmarkResult


def calibration(
    result: BenchmarkResult,
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
        As in :func:`scdrugmap.pl.roc`.
    n_bins
        Number of bins; empty ones are left out. The size of a point grows with the cells in its bin.

    Returns
    -------
    The axes, or ``None`` with ``show=True``. The dashed diagonal is perfect calibration; the dotted line is the
    share of sensitive cells, which a model that knows nothing should predict.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> adata = sd.datasets.simulate(n_studies=2, n_cells=300, n_genes=200, rng=0)
    >>> result = sd.tl.benchmark(adata, models=["pca"], setting="cross", head="logistic", baselines=["majority"], rng=0)
    >>> ax = sd.pl.calibration(result)
    """
    ax = _axes.new_axes(ax, (4.4, 4.2))
    for i, (label, folds) in enumerate(folds_of(result, category, models)):
        y, score = (np.concatenate(part) for part in zip(*folds, strict=True))
        codes = np.minimum((score * n_bins).astype(int), n_bins - 1)
        size = np.bincount(codes, minlength=n_bins)
        full = size > 0
        predicted = np.bincount(codes, weights=score, minlength=n_bins)[full] / size[full]
        observed = np.bincount(codes, weights=y, minlength=n_bins)[full] / size[full]
        colour = _axes.PALETTE[i % len(_axes.PALETTE)]
        ax.plot(predicted, observed, color=colour, lw=1.3, label=label)
        ax.scatter(predicted, observed, s=8 + 60 * size[full] / size.max(), color=colour, zorder=3)
    share = float(result.predictions["y"].mean())
    ax.plot([0, 1], [0, 1], color=_axes.FLOOR, ls="--", lw=1, label="perfect")
    ax.axhline(share, color=_axes.FLOOR, ls=":", lw=1, label=f"share of sensitive cells ({share:.2f})")
    ax.set(xlabel="predicted P(sensitive)", ylabel="share of sensitive cells", xlim=(0, 1), ylim=(0, 1.02))
    ax.set_title(_axes.split_note(result.units[result.units["setting"] != "probe"]), fontsize=9)
    ax.legend(fontsize=7, frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    return _axes.finish(ax, show=show, save=save)
