"""ROC and precision-recall curves with bands over the folds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from scdrugmap._errors import InputError, UnknownNameError
from scdrugmap.figures import axes as _axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from scdrugmap.figures.results import Results

GRID = np.linspace(0, 1, 201)
Curve = Callable[[np.ndarray, np.ndarray], np.ndarray]
Fold = tuple[np.ndarray, np.ndarray]


def roc(
    result: Results,
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
        From :func:`scdrugmap.tl.benchmark`, with one setting, split and column of categories (``result.select``).
    category
        One category; by default all folds of all categories.
    models, ax, show, save
        As in :func:`scdrugmap.pl.benchmark`.

    Returns
    -------
    matplotlib.axes.Axes or None
        The axes, or ``None`` with ``show=True``. The dashed diagonal is every model that gives all cells one score,
        such as calling all sensitive. Folds that test one class only have no curve; the title counts the others.

    Raises
    ------
    UnknownNameError
        For a category or model that the result does not hold.
    InputError
        If there is nothing to draw, or the result holds several settings or columns of categories.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> adata = sd.datasets.simulate(n_studies=2, n_cells=300, n_genes=200, rng=0)
    >>> result = sd.tl.benchmark(adata, models=["pca"], setting="cross", head="logistic", baselines=["majority"], rng=0)
    >>> ax = sd.pl.roc(result)
    """
    ax, _ = _bands(result, category, models, ax, _true_positive_rate, start=0.0)
    ax.plot([0, 1], [0, 1], color=_axes.FLOOR, ls="--", lw=1.3, label=f"chance ({_axes.FLOOR_NAME})")
    ax.set(xlabel="1 - specificity", ylabel="sensitivity (recall of sensitive cells)")
    _axes.legend(ax)
    return _axes.finish(ax, show=show, save=save)


def precision_recall(
    result: Results,
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
    matplotlib.axes.Axes or None
        The axes, or ``None`` with ``show=True``. The dashed line is the precision of calling every cell sensitive: the
        mean share of sensitive cells of the folds. Between two thresholds a curve is a step, as in average precision.

    Raises
    ------
    UnknownNameError
        For a category or model that the result does not hold.
    InputError
        If there is nothing to draw, or the result holds several settings or columns of categories.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> adata = sd.datasets.simulate(n_studies=2, n_cells=300, n_genes=200, rng=0)
    >>> result = sd.tl.benchmark(adata, models=["pca"], setting="cross", head="logistic", baselines=["majority"], rng=0)
    >>> ax = sd.pl.precision_recall(result)
    """
    ax, share = _bands(result, category, models, ax, _precision)
    ax.axhline(share, color=_axes.FLOOR, ls="--", lw=1.3, label=f"{_axes.FLOOR_NAME} ({share:.2f})")
    ax.set(xlabel="recall of sensitive cells", ylabel="precision")
    _axes.legend(ax)
    return _axes.finish(ax, show=show, save=save)


def folds_of(result: Results, category: str | None, models: list[str] | None) -> Iterator[tuple[str, list[Fold]]]:
    """Yield each chosen contender with the labels and scores of its folds.

    Raises
    ------
    UnknownNameError
        For a category or model that the result does not hold.
    InputError
        If no cell was predicted, or the result holds several settings or columns of categories.
    """
    _axes.each_cell_once(result, category)
    known = result.table[result.table["setting"] != "probe"]["category"].unique()
    if category is not None and category not in known:
        raise UnknownNameError("category", category, map(str, known))
    units = result.units[result.units["setting"] != "probe"]
    if category is not None:
        units = units[units["category"] == category]
    predictions = result.predictions[result.predictions["unit"].isin(units["unit"])]
    if predictions.empty:
        where = "the result" if category is None else f"category {category!r}"
        raise InputError("result", f"no prediction in {where}", "one or more", "result.table['reason'] says why.")
    rows = {u: (p["y"].to_numpy(), p["score"].to_numpy(float)) for u, p in predictions.groupby("unit", sort=False)}
    for contender in _axes.chosen(result, models).itertuples():
        mine = units[(units["model"] == contender.model) & (units["strategy"] == contender.strategy)]
        yield str(contender.label), [rows[u] for u in mine["unit"][mine["head"] == contender.head] if u in rows]


def drawn_note(result: Results, category: str | None) -> str:
    """Return the way the cells were divided, and the category."""
    note = _axes.split_note(result.table[result.table["setting"] != "probe"])
    return note if category is None else f"{category}: {note}"


def _bands(
    result: Results,
    category: str | None,
    models: list[str] | None,
    ax: Axes | None,
    curve: Curve,
    start: float | None = None,
) -> tuple[Axes, float]:
    """Draw the bands; return the axes and the mean share of sensitive cells of the folds."""
    contenders = list(folds_of(result, category, models))
    both = {label: [(y, s) for y, s in folds if 0 < y.mean() < 1] for label, folds in contenders}
    # A model with one score for all cells is the dashed line itself.
    both = {label: f for label, f in both.items() if any(np.ptp(s) > 0 for _, s in f)}
    if not both:
        raise InputError(
            "result", "no fold with both classes and different scores", "one or more", "try sd.pl.benchmark."
        )
    ax = _axes.new_square(ax, 0.7, 1.9)
    look = _axes.styles(result)
    shade = 0.14 * min(1.0, 6 / len(both))
    for label, folds in both.items():
        curves = np.stack([curve(y, score) for y, score in folds])
        mean, spread = curves.mean(0), curves.std(0)
        style = look[label]
        x, y = (GRID, mean) if start is None else (np.r_[0, GRID], np.r_[start, mean])
        ax.plot(x, y, color=style.colour, ls=style.line, lw=1.6, label=label)
        low, high = np.clip(mean - spread, 0, 1), np.clip(mean + spread, 0, 1)
        ax.fill_between(GRID, low, high, color=style.colour, alpha=shade, lw=0)
    total, used = max(len(f) for _, f in contenders), max(map(len, both.values()))
    count = f"{used} folds" if used == total else f"{used} of {total} folds (the others test one class)"
    band = ", mean and standard deviation" if used > 1 else ""
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), box_aspect=1)
    _axes.title(ax, f"{drawn_note(result, category)}; {count}{band}")
    _axes.clean(ax)
    return ax, float(np.mean([y.mean() for y, _ in max(both.values(), key=len)]))


def _true_positive_rate(y: np.ndarray, score: np.ndarray) -> np.ndarray:
    from sklearn.metrics import roc_curve

    false, true, _ = roc_curve(y, score)
    return np.interp(GRID, false, true)


def _precision(y: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Precision at the highest threshold that reaches each recall."""
    from sklearn.metrics import precision_recall_curve

    precision, recall, _ = precision_recall_curve(y, score)
    # The last point is a convention (precision 1 at recall 0), not a threshold.
    precision, recall = precision[-2::-1], recall[-2::-1]
    return precision[np.searchsorted(recall, GRID - 1e-12)]
