"""Bars around a circle, grouped by category and sorted by value."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from scdrugmap._errors import InputError
from scdrugmap.figures import axes as _axes
from scdrugmap.figures.radar import along_radius

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from scdrugmap.figures.results import Results

#: Bars of empty space between two categories.
GAP = 1.6
#: More bars than this are told apart by the legend alone.
NAMED = 72


def circular(
    result: Results,
    *,
    metric: str = "f1_macro",
    level: str = "cell",
    models: list[str] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> Axes | None:
    """Draw one bar per model around a circle, category by category, the best first.

    Parameters
    ----------
    result, metric, level, models, show, save
        As in :func:`scdrugmap.pl.benchmark`.
    ax
        Polar axes to draw into.

    Returns
    -------
    matplotlib.axes.Axes or None
        The axes, or ``None`` with ``show=True``. The dashed arc of a category is the value of calling every cell
        sensitive (of one score for all cells, where the metric takes ranks). A value below zero is drawn as zero.
        Names stand at the bars as long as there is room; the legend has them always.

    Raises
    ------
    UnknownNameError
        For a metric, level or model that is not known.
    InputError
        If no value is defined, the axes are not polar, or the file cannot be written.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> adata = sd.datasets.simulate(n_studies=2, n_cells=300, n_genes=200, rng=0)
    >>> result = sd.tl.benchmark(adata, models=["pca"], setting="cross", head="logistic", baselines=["majority"], rng=0)
    >>> ax = sd.pl.circular(result)
    """
    table = _axes.scores(result, metric, level, models, n_resamples=0)
    if not table["value"].notna().any():
        raise InputError("result", f"no value of {metric!r}", "one or more", "result.table['reason'] says why.")
    if ax is not None and getattr(ax, "name", "") != "polar":
        raise InputError(
            "ax", type(ax).__name__, "polar axes", "plt.subplots(subplot_kw={'projection': 'polar'}) makes them."
        )
    labels, places = _axes.in_order(table, "label"), _axes.in_order(table, "place")
    named = len(places) * len(labels) <= NAMED and len(places) <= 8
    # The names at the bars run outwards, so a category stands beyond the longest of them.
    pad = 10 + 3.8 * max(map(len, labels)) * named
    longest = 0.55 * _axes.points("x-small") * max(map(len, places))
    outside = pad + 12 if len(places) <= 8 else longest
    axes: Any = _axes.new_square(
        ax, 1.5, 3.1, side=3.9, below=(outside + 18) / 72, above=(outside + 40) / 72, projection="polar"
    )
    axes.set_theta_zero_location("N")
    axes.set_theta_direction(-1)
    look, floor = _axes.styles(result), _axes.floors(table, places)
    _, high = _axes.limits(result, metric, table["value"].to_numpy(dtype=float), floor)
    axes.set_ylim(-0.55 * high, high * 1.02)
    step = 2 * np.pi / (len(places) * (len(labels) + GAP))
    _rings(axes, high)
    drawn: set[str] = set()
    for i, place in enumerate(places):
        rows = table[table["place"] == place].sort_values("value", ascending=False, na_position="last", kind="stable")
        value = np.clip(rows["value"].to_numpy(dtype=float), 0, None)
        angle = (i * (len(labels) + GAP) + GAP / 2 + np.arange(len(rows)) + 0.5) * step
        for a, v, label in zip(angle, value, rows["label"], strict=True):
            if np.isnan(v):
                continue
            style = look[label]
            axes.bar(
                a, v, step * 0.88, color=style.colour, hatch=style.hatch, edgecolor="white", lw=0.3,
                label="_" if label in drawn else label,
            )  # fmt: skip
            drawn.add(label)
        if named:
            shown = [f"{n}" if np.isfinite(v) else f"{n} (n/a)" for n, v in zip(rows["label"], value, strict=True)]
            along_radius(axes, angle, np.nan_to_num(value), shown)
        arc = np.linspace(angle[0] - step / 2, angle[-1] + step / 2, 40)
        axes.plot(arc, np.full(40, -0.03 * high), color="#444444", lw=1.2, solid_capstyle="butt")
        if np.isfinite(floor[i]):
            axes.plot(arc, np.full(40, floor[i]), color=_axes.FLOOR, ls="--", lw=1.2, zorder=5, label="_")
        _category(axes, float(np.mean([angle[0], angle[-1]])), high, place, len(places), pad)
    axes.plot(
        [],
        [],
        color=_axes.FLOOR,
        ls="--",
        lw=1.2,
        label=_axes.floor_label(_axes.floor_name(result, metric), floor, high),
    )
    note = f"{_axes.metric_label(result, metric, level)}: {_axes.split_note(table)}"
    axes.set_title(_axes.wrap(note, 60), fontsize="medium", pad=outside + 8)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    order = [n for n in labels if n in handles] + [n for n in handles if n not in labels]
    _axes.round_legend(axes, longest + (pad if len(places) <= 8 else 14), [handles[n] for n in order], order)
    return _axes.finish(axes, show=show, save=save)


def _rings(axes: Any, high: float) -> None:
    """Draw the scale as rings, with numbers in the first gap."""
    from matplotlib.ticker import MaxNLocator

    ticks = [t for t in MaxNLocator(4).tick_values(0, high) if 0 < t <= high]
    axes.set_yticks(ticks, [f"{t:g}" for t in ticks], fontsize="x-small", color="#555555")
    axes.set_rlabel_position(0)
    for text in axes.get_yticklabels():
        text.set(zorder=6, bbox={"facecolor": "white", "alpha": 0.75, "lw": 0, "pad": 0.6})
    axes.set_xticks([])
    axes.grid(color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines["polar"].set_visible(False)


def _category(axes: Any, angle: float, radius: float, place: str, n: int, pad: float) -> None:
    """Write a category outside the ring and what stands there; many of them along the radius."""
    if n > 8:
        return along_radius(axes, np.array([angle]), radius, [" ".join(place.split("\n"))])
    side, up = np.sin(angle), np.cos(angle)
    axes.annotate(
        _axes.wrap(place, 14), (angle, radius), xytext=(pad * side, pad * up), textcoords="offset points", weight="bold",
        ha="center" if abs(side) < 0.3 else "left" if side > 0 else "right", annotation_clip=False,
        va="center" if abs(up) < 0.3 else "bottom" if up > 0 else "top", fontsize="small",
    )  # fmt: skip
