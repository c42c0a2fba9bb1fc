"""ROC and precision-recall curves with bands over the folds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from scdrugmap._errors import UnknownNameError
from scdrugmap.pl import _axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from scdrugmap.evaluation import BenchmarkResult

GRID = np.linspace(0, 1, 201)
Curve = Callable[[np.ndarray, np.ndarray], np.ndarray]


def roc(
    result: BenchmarkResult,
    *,
    category: str | None = None,
    models: list[str] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> Axes | None:
    """Draw the mean ROC curve of each model with the standard deviation over the folds.

    Parameters
    ----------
    result
        From :func:`scdrugmap.tl.benchmark`.
    category
        One category; by default all folds of all categories.
    models, ax, show, save
        As in :func:`scdrugmap.pl.benchmark`.

    Returns
    -------
    The axes, or ``None`` with ``show=True``. The dashed diagonal is chance.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> adata = sd.datasets.simulate(n_studies=2, n_cells=300, n_genes=200, rng=0)
    >>> result = sd.tl.benchmark(adata, models=["pca"], setting="cross", head="logistic", baselines=["majority"], rng=0)
    >>> ax = sd.pl.roc(result)
    """
    ax = _bands(result, category, models, ax, _true_positive_rate)
    ax.plot([0, 1], [0, 1], color=_axes.FLOOR, ls="--", lw=1, label="chance")
    ax.set(xlabel="1 - specificity", ylabel="sensitivity (recall of sensitive cells)")
    ax.legend(fontsize=7, frameon=False, loc="lower right")
    return _axes.finish(ax, show=show, save=save)


def precision_recall(
    result: BenchmarkResult,
    *,
    category: str | None = None,
    models: list[str] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> Axes | None:
    """Draw the mean precision-recall curve of each model with the standard deviation over the folds.

    Parameters
    ----------
    result, category, models, ax, show, save
        As in :func:`scdrugmap.pl.roc`.

    Returns
    -------
    The axes, or ``None`` with ``show=True``. The dashed line is the share of sensitive cells.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> adata = sd.datasets.simulate(n_studies=2, n_cells=300, n_genes=200, rng=0)
    >>> result = sd.tl.benchmark(adata, models=["pca"], setting="cross", head="logistic", baselines=["majority"], rng=0)
    >>> ax = sd.pl.precision_recall(result)
    """
    ax = _bands(result, category, models, ax, _precision)
    share = float(result.predictions["y"].mean())
    ax.axhline(share, color=_axes.FLOOR, ls="--", lw=1, label=f"share of sensitive cells ({share:.2f})")
    ax.set(xlabel="recall", ylabel="precision", ylim=(0, 1.02))
    ax.legend(fontsize=7, frameon=False, loc="lower left")
    return _axes.finish(ax, show=show, save=save)


def folds_of(
    result: BenchmarkResult, category: str | None, models: list[str] | None
) -> Iterator[tuple[str, list[tuple[np.ndarray, np.ndarray]]]]:
    """Yield each contender with the labels and scores of its folds that hold both classes."""
    _axes.require_predictions(result)
    units = result.units[result.units["setting"] != "probe"]
    if category is not None:
        if category not in set(units["category"]):
            raise UnknownNameError("category", category, map(str, units["category"].unique()))
        units = units[units["category"] == category]
    rows = dict(iter(result.predictions.groupby("unit", sort=False)))
    for contender in result.contenders.itertuples():
        if models is not None and contender.label not in models and contender.model not in models:
            continue
        mine = units[(units["model"] == contender.model) & (units["strategy"] == contender.strategy)]
        mine = mine[mine["head"] == contender.head]
        parts = [(rows[u]["y"].to_numpy(), rows[u]["score"].to_numpy()) for u in mine["unit"] if u in rows]
        parts = [(y, s) for y, s in parts if 0 < y.mean() < 1 and np.ptp(s) > 0]
        if parts:
            yield str(contender.label), parts


def _bands(
    result: BenchmarkResult, category: str | None, models: list[str] | None, ax: Axes | None, curve: Curve
) -> Axes:
    ax = _axes.new_axes(ax, (4.4, 4.2))
    for i, (label, folds) in enumerate(folds_of(result, category, models)):
        curves = np.stack([curve(y, score) for y, score in folds])
        mean, spread = curves.mean(0), curves.std(0)
        colour = _axes.PALETTE[i % len(_axes.PALETTE)]
        ax.plot(GRID, mean, color=colour, lw=1.5, label=label)
        ax.fill_between(
            GRID, np.clip(mean - spread, 0, 1), np.clip(mean + spread, 0, 1), color=colour, alpha=0.15, lw=0
        )
    ax.set_title(_axes.split_note(result.units[result.units["setting"] != "probe"]), fontsize=9)
    ax.set_aspect("equal")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _true_positive_rate(y: np.ndarray, score: np.ndarray) -> np.ndarray:
    from sklearn.metrics import roc_curve

    false, true, _ = roc_curve(y, score)
    return np.interp(GRID, false, true)


def _precision(y: np.ndarray, score: np.ndarray) -> np.ndarray:
    from sklearn.metrics import precision_recall_curve

    precision, recall, _ = precision_recall_curve(y, score)
    return np.interp(GRID, recall[::-1], precision[::-1])
