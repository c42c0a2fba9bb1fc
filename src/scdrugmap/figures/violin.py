"""The spread of a model's scores over categories."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from scdrugmap._errors import InputError, UnknownNameError
from scdrugmap.figures import axes as _axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from scdrugmap.figures.results import Results

OVER = ("category", "fold")


def violin(
    result: Results,
    *,
    metric: str = "f1_macro",
    level: str = "cell",
    over: str | None = None,
    models: list[str] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> Axes | None:
    """Draw the distribution of each model's scores, over cancer types for example, as violin and box.

    Parameters
    ----------
    result
        From :func:`scdrugmap.tl.benchmark`, with one setting, split and column of categories (``result.select``).
    metric, level, models, ax, show, save
        As in :func:`scdrugmap.pl.benchmark`.
    over
        What one point is: a ``"category"`` (its value in ``result.summary()``) or a ``"fold"`` of any category (or
        left-out study); by default categories where there are three or more.

    Returns
    -------
    matplotlib.axes.Axes or None
        The axes, or ``None`` with ``show=True``. The dashed line is the mean over the categories of calling every cell
        sensitive, the grey band their range. A violin needs three points; fewer are drawn as points only.

    Raises
    ------
    UnknownNameError
        For a metric, level, model or ``over`` that is not known.
    InputError
        If no value is defined, the result holds several settings or columns of categories, ``ax`` is not axes, or the file cannot be written.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> adata = sd.datasets.simulate(n_studies=2, n_cells=300, n_genes=200, rng=0)
    >>> result = sd.tl.benchmark(adata, models=["pca"], setting="cross", head="logistic", baselines=["majority"], rng=0)
    >>> ax = sd.pl.violin(result)
    """
    if over is not None and over not in OVER:
        raise UnknownNameError("over", over, OVER)
    _axes.each_cell_once(result)
    table = _axes.scores(result, metric, level, models, n_resamples=0)
    labels = _axes.in_order(table, "label")
    defined = table[table["value"].notna()]
    if over is None:
        over = "category" if defined["place"].nunique() >= 3 else "fold"
    points = defined if over == "category" else _axes.fold_values(result, table, metric, level)
    if points.empty:
        raise InputError("result", f"no value of {metric!r}", "one or more", "result.table['reason'] says why.")
    ax = _axes.new_axes(ax, (2.2 + 0.55 * len(labels), 3.8))
    look, floor = _axes.styles(result), defined.drop_duplicates("place")["floor"].to_numpy(dtype=float)
    low, high = _axes.limits(result, metric, points["value"].to_numpy(dtype=float), floor)
    for i, label in enumerate(labels):
        _one(ax, i, points["value"][points["label"] == label].to_numpy(dtype=float), look[label])
    known = floor[np.isfinite(floor)]
    if len(known):
        if np.ptp(known) > 0:
            ax.axhspan(known.min(), known.max(), color=_axes.FLOOR, alpha=0.1, lw=0, zorder=0)
        ax.axhline(known.mean(), color=_axes.FLOOR, ls="--", lw=1.3, zorder=1)
    ax.plot(
        [],
        [],
        color=_axes.FLOOR,
        ls="--",
        lw=1.3,
        label=_axes.floor_label(_axes.floor_name(result, metric), floor, high)
        + (" (mean and range)" if len(known) and np.ptp(known) > 0 else ""),
    )
    ax.set_xticks(range(len(labels)), labels, rotation=40, ha="right", rotation_mode="anchor", fontsize="small")
    # The kernel estimate of a violin reaches beyond the scores; the axis does not.
    ax.set(ylabel=_axes.metric_label(result, metric, level), ylim=(low, high), xlim=(-0.6, len(labels) - 0.4))
    unit = "category" if over == "category" else "left-out group" if (table["setting"] == "cross").all() else "fold"
    _axes.title(ax, f"{_axes.split_note(table)}; one point per {unit}")
    ax.legend(fontsize="x-small", frameon=False, loc="best")
    _axes.clean(ax)
    return _axes.finish(ax, show=show, save=save)


def _one(ax: Axes, at: int, values: np.ndarray, look: _axes.Style) -> None:
    if len(values) == 0:
        ax.annotate("n/a", (at, 0.02), xycoords=("data", "axes fraction"), ha="center", fontsize="x-small")
        return
    if len(values) > 2:
        if np.ptp(values) > 0:
            for body in ax.violinplot(values, [at], widths=0.8, showextrema=False)["bodies"]:  # type: ignore[attr-defined]
                body.set(facecolor=look.colour, edgecolor=look.colour, alpha=0.35)
        ax.boxplot(
            values, positions=[at], widths=0.16, showfliers=False, manage_ticks=False, zorder=3,
            medianprops={"color": "black", "lw": 1.6}, boxprops={"lw": 0.9}, whiskerprops={"lw": 0.9},
        )  # fmt: skip
    spread = np.linspace(-0.2, 0.2, len(values)) if len(values) > 1 else np.zeros(1)
    ax.scatter(at + spread, values, s=10, color=look.colour, marker=look.marker, zorder=4, lw=0.4, edgecolors="white")
