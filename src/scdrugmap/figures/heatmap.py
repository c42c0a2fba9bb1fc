"""Models x categories."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from scdrugmap._errors import InputError
from scdrugmap._metrics import find_metric
from scdrugmap.figures import axes as _axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from scdrugmap.figures.results import Results


def heatmap(
    result: Results,
    *,
    metric: str = "f1_macro",
    level: str = "cell",
    models: list[str] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> Axes | None:
    """Draw a heat map of models by categories; the last row is the floor.

    Parameters
    ----------
    result, metric, level, models, ax, show, save
        As in :func:`scdrugmap.pl.benchmark`.

    Returns
    -------
    matplotlib.axes.Axes or None
        The axes, or ``None`` with ``show=True``. The last row is the value of calling every cell sensitive (of one score
        for all cells, where the metric takes ranks); values in brackets are not better than that, the best of a
        category is bold. Many categories go down the page, and the models across it.

    Raises
    ------
    UnknownNameError
        For a metric, level or model that the result does not hold.
    InputError
        If no value is defined, ``ax`` is not axes, or the file cannot be written.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> adata = sd.datasets.simulate(n_studies=2, n_cells=300, n_genes=200, rng=0)
    >>> result = sd.tl.benchmark(adata, models=["pca"], setting="cross", head="logistic", baselines=["majority"], rng=0)
    >>> ax = sd.pl.heatmap(result)
    """
    table = _axes.scores(result, metric, level, models, n_resamples=0)
    labels, places = _axes.in_order(table, "label"), _axes.in_order(table, "place")
    wide = table.set_index(["label", "place"])["value"].unstack()[places].loc[labels].to_numpy(dtype=float)
    if not np.isfinite(wide).any():
        raise InputError("result", f"no value of {metric!r}", "one or more", "result.table['reason'] says why.")
    floor = _axes.floors(table, places)
    values = np.vstack([wide, floor])
    floor_name = _axes.floor_name(result, metric)
    higher = find_metric(metric, result.metrics).higher_is_better
    signed = wide if higher else -wide
    best = np.zeros(values.shape, dtype=bool)
    best[:-1] = signed == np.max(signed, axis=0, where=np.isfinite(signed), initial=-np.inf)
    beaten = np.zeros(values.shape, dtype=bool)
    beaten[:-1] = ~(signed > (floor if higher else -floor)) & np.isfinite(wide) & np.isfinite(floor)
    down, across = [*labels, floor_name], places
    # Many categories go down the page, which is longer than it is wide.
    if turned := _axes.many(len(places), 1):
        values, best, beaten, down, across = values.T, best.T, beaten.T, places, down
    ax = _axes.new_axes(
        ax, (3.2 + (0.6 if turned else 0.75) * len(across), 1.5 + (0.26 if turned else 0.3) * len(down))
    )
    low, high = _axes.limits(result, metric, wide.ravel(), floor)
    image = ax.imshow(
        np.ma.masked_invalid(values), cmap="cividis" if higher else "cividis_r", aspect="auto", vmin=low,
        vmax=1 if high == 1.02 else high,
    )  # fmt: skip
    ax.set_facecolor("#eeeeee")
    for (i, j), value in np.ndenumerate(values):
        text = "n/a" if np.isnan(value) else f"({value:.2f})" if beaten[i, j] else f"{value:.2f}"
        ax.text(
            j, i, text, ha="center", va="center", fontsize="small", weight="bold" if best[i, j] else "normal",
            color=_readable(image.to_rgba(value)) if np.isfinite(value) else "black",
        )  # fmt: skip
    (ax.axvline if turned else ax.axhline)(len(labels) - 0.5, color="white", lw=3)
    ax.set_xticks(range(len(across)), [_axes.wrap(p, 18) for p in across], fontsize="small")
    if max(len(line) for p in across for line in p.split("\n")) > 9:
        ax.tick_params(axis="x", labelrotation=35)
        for label in ax.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(down)), [_axes.wrap(p, 30) for p in down])
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    _axes.title(ax, f"{_axes.split_note(table)}; ( ) not better than: {floor_name}")
    ax.figure.colorbar(image, ax=ax, label=_axes.metric_label(result, metric, level), shrink=0.9)
    return _axes.finish(ax, show=show, save=save)


def _readable(colour: Any) -> str:
    """Black on light colours, white on dark ones."""
    return "black" if float(np.dot(colour[:3], [0.299, 0.587, 0.114])) > 0.5 else "white"
