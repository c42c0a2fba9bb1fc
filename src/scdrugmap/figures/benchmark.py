"""Bars with fold values and intervals."""

from __future__ import annotations

import os
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scdrugmap.figures import axes as _axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from scdrugmap.figures.results import Results


def benchmark(
    result: Results,
    *,
    metric: str = "f1_macro",
    level: str = "cell",
    models: list[str] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> Axes | None:
    """Draw one bar per model and category, with the folds as points and a bootstrap interval.

    Parameters
    ----------
    result
        From :func:`scdrugmap.tl.benchmark`.
    metric
        A metric of the result.
    level
        ``"cell"``, ``"sample"`` or ``"patient"``.
    models
        Names or labels (``result.contenders``); by default all but ``all_sensitive``, which is the dashed line.
    ax
        Axes to draw into.
    show
        Show the figure.
    save
        File to save the figure to; the suffix says the format.

    Returns
    -------
    matplotlib.axes.Axes or None
        The axes, or ``None`` with ``show=True``. A bar is the value of ``result.summary()``, the line on it the 95 %
        interval over samples (or left-out studies), a point the value of one fold; the dashed line is the value of
        calling every cell sensitive (of one score for all cells, where the metric takes ranks). Baselines are grey.
        What could not be evaluated says ``n/a`` and why. Many categories are drawn as rows, with points for bars.

    Raises
    ------
    UnknownNameError
        For a metric, level or model that the result does not hold.
    InputError
        If ``ax`` is not axes, or the file cannot be written.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> adata = sd.datasets.simulate(n_studies=2, n_cells=300, n_genes=200, rng=0)
    >>> result = sd.tl.benchmark(adata, models=["pca"], setting="cross", head="logistic", baselines=["majority"], rng=0)
    >>> ax = sd.pl.benchmark(result)
    """
    table = _axes.scores(result, metric, level, models)
    labels, places = _axes.in_order(table, "label"), _axes.in_order(table, "place")
    if _axes.many(len(places), len(labels)):
        return _axes.finish(rows(result, table, metric, level, ax), show=show, save=save)
    n_bars = len(labels) * len(places)
    ax = _axes.new_axes(ax, (float(np.clip(2.6 + 0.2 * n_bars + 0.3 * len(places), 5, 18)), 3.8))
    look, folds = _axes.styles(result), _axes.fold_values(result, table, metric, level)
    floor = _axes.floors(table, places)
    drawn = np.r_[table[["value", "ci_low", "ci_high"]].to_numpy(dtype=float).ravel(), folds["value"]]
    low, high = _axes.limits(result, metric, drawn, floor)
    for i, label in enumerate(labels):
        rows_of = table[table["label"] == label].set_index("place").reindex(places)
        _bars(ax, rows_of, folds[folds["label"] == label], i, len(labels), look[label])
    for i, place in enumerate(places):
        ax.hlines(floor[i], i - 0.45, i + 0.45, color=_axes.FLOOR, ls="--", lw=1.3, zorder=4)
        _missing(ax, i, table[table["place"] == place], len(places))
    # Half of the width is left for the bars, and names are wider than other words.
    room = _axes.letters(0.45 * ax.get_figure(root=True).get_figwidth() / len(places), "medium")  # type: ignore[union-attr]
    longest = max(len(word) for p in places for word in p.split())
    crowded = longest > room or (len(places) > 3 and (len(places) > 6 or max(map(len, places)) > 12))
    ax.set_xticks(range(len(places)), [_axes.wrap(p, 22 if crowded else min(16, room)) for p in places])
    if crowded:
        ax.tick_params(axis="x", labelrotation=35)
        for text in ax.get_xticklabels():
            text.set(ha="right", rotation_mode="anchor")
    ax.set(ylabel=_axes.metric_label(result, metric, level), ylim=(low, high), xlim=(-0.55, len(places) - 0.45))
    _axes.title(ax, _axes.split_note(table))
    ax.plot(
        [],
        [],
        color=_axes.FLOOR,
        ls="--",
        lw=1.3,
        label=_axes.floor_label(_axes.floor_name(result, metric), floor, high),
    )
    ax.plot([], [], ".", color="black", ms=4, alpha=0.6, label=f"one {_unit(table)}")
    if table["ci_low"].notna().any():
        ax.errorbar([], [], yerr=[], fmt="none", ecolor="black", capsize=2, lw=1, label=_interval(table))
    handles, names = ax.get_legend_handles_labels()
    order = sorted(range(len(names)), key=lambda i: names[i] not in labels)
    ax.legend(
        [handles[i] for i in order], [names[i] for i in order], fontsize="x-small", frameon=False, loc="upper left",
        bbox_to_anchor=(1, 1),
    )  # fmt: skip
    _axes.clean(ax)
    return _axes.finish(ax, show=show, save=save)


def rows(result: Results, table: pd.DataFrame, metric: str, level: str, ax: Axes | None) -> Axes:
    """Draw many categories as rows, with one point and interval per contender."""
    labels, places = _axes.in_order(table, "label"), _axes.in_order(table, "place")
    ax = _axes.new_axes(ax, (7.0, _axes.rows_height(len(places), len(labels))))
    look, floor = _axes.styles(result), _axes.floors(table, places)
    known = table["value"].notna()
    drawn = table.loc[known, ["value", "ci_low", "ci_high"]].to_numpy(dtype=float).ravel()
    low, high = _axes.limits(result, metric, drawn, floor)
    at = np.arange(len(places))
    for i in at[1::2]:
        ax.axhspan(i - 0.5, i + 0.5, color="#f3f3f3", lw=0, zorder=0)
    # Short of the floor's own row ends, so that its marks do not join to one line.
    ax.vlines(floor, at - 0.42, at + 0.42, color=_axes.FLOOR, ls="-", lw=1.4, zorder=2)
    dodge = np.linspace(-0.36, 0.36, len(labels)) if len(labels) > 1 else np.zeros(1)
    size = float(np.clip(26 / len(labels), 2.5, 5.5))
    for label, shift in zip(labels, dodge, strict=True):
        mine = table[table["label"] == label].set_index("place").reindex(places)
        value, lower, upper = (mine[c].to_numpy(dtype=float) for c in ("value", "ci_low", "ci_high"))
        ax.hlines(at + shift, lower, upper, color=look[label].colour, lw=0.9, alpha=0.7, zorder=3)
        ax.plot(
            value, at + shift, ls="", marker=look[label].marker, ms=size, color=look[label].colour, mec="white", mew=0.3,
            label=label, zorder=4,
        )  # fmt: skip
    empty = table.groupby("place", sort=False)["value"].apply(lambda v: bool(v.isna().all())).reindex(places)
    for i in np.flatnonzero(empty):
        reason = str(table["reason"][table["place"] == places[i]].iloc[0])
        ax.annotate(
            f"n/a: {textwrap.shorten(reason, 60)}",
            (low, i),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize="x-small",
        )
    ax.plot([], [], color=_axes.FLOOR, lw=1.4, label=_axes.floor_label(_axes.floor_name(result, metric), floor, high))
    if table["ci_low"].notna().any():
        ax.plot([], [], color="#777777", lw=0.9, label=_interval(table))
    ax.set_yticks(at, [_axes.wrap(p, 30) for p in places], fontsize="small")
    ax.tick_params(axis="y", length=0)
    ax.set(xlabel=_axes.metric_label(result, metric, level), xlim=(low, high), ylim=(len(places) - 0.5, -0.5))
    _axes.title(ax, _axes.split_note(table))
    _axes.legend(ax)
    _axes.clean(ax)
    return ax


def _unit(table: pd.DataFrame) -> str:
    return "left-out group" if (table["setting"] == "cross").all() else "fold"


def _interval(table: pd.DataFrame) -> str:
    return f"95 % interval over {'samples' if _unit(table) == 'fold' else 'left-out groups'}"


def _bars(ax: Axes, rows: pd.DataFrame, folds: pd.DataFrame, i: int, n: int, look: _axes.Style) -> None:
    """Draw one contender's bars, folds and intervals; it is the ``i``-th of ``n``."""
    width = 0.84 / n
    x = np.arange(len(rows)) + (i - (n - 1) / 2) * width
    value, low, high = (rows[c].to_numpy(dtype=float) for c in ("value", "ci_low", "ci_high"))
    ax.bar(
        x, value, width * 0.9, color=look.colour, hatch=look.hatch, edgecolor="white", lw=0, label=rows["label"].iloc[0]
    )
    for at, place in zip(x, rows.index, strict=True):
        mine = folds["value"][folds["place"] == place].to_numpy(dtype=float)
        spread = np.linspace(-0.28, 0.28, len(mine)) * width if len(mine) > 1 else np.zeros(len(mine))
        # A light rim keeps the points visible on dark bars.
        ax.scatter(
            at + spread,
            mine,
            s=float(np.clip(70 * width, 3, 9)),
            color="black",
            alpha=0.65,
            zorder=3,
            linewidths=0.4,
            edgecolors="white",
        )
    known = np.isfinite(low) & np.isfinite(value)
    reach = np.clip([value[known] - low[known], high[known] - value[known]], 0, None)
    ax.errorbar(
        x[known], value[known], yerr=reach, fmt="none", ecolor="black", capsize=min(3.0, 14 * width), lw=1, zorder=5
    )


def _missing(ax: Any, i: int, rows: pd.DataFrame, n_places: int) -> None:
    """Say what could not be evaluated: once per category, or per bar."""
    missing = rows["value"].isna().to_numpy()
    n = len(rows)
    if missing.all():
        text = _axes.wrap(f"n/a: {rows['reason'].iloc[0]}", max(12, 48 // n_places))
        ax.annotate(text, (i, 0.03), xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize="x-small")
        return
    for j in np.flatnonzero(missing):
        at = i + (j - (n - 1) / 2) * 0.84 / n
        ax.annotate("n/a", (at, 0), ha="center", va="bottom", fontsize="x-small", rotation=90)
