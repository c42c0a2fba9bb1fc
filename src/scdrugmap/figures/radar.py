"""Models on the spokes of a wheel of categories."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from scdrugmap._errors import InputError, UnknownNameError
from scdrugmap.figures import axes as _axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from scdrugmap.figures.results import Results

KINDS = ("radar", "bar")
#: More categories than this are written along the radius.
MANY = 14


def radar(
    result: Results,
    *,
    metric: str = "f1_macro",
    level: str = "cell",
    models: list[str] | None = None,
    kind: str = "radar",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> Axes | None:
    """Draw categories around a circle: one line per model, or circular bars.

    Parameters
    ----------
    result, metric, level, models, show, save
        As in :func:`scdrugmap.pl.benchmark`.
    kind
        ``"radar"`` (three categories or more) or ``"bar"``.
    ax
        Polar axes to draw into.

    Returns
    -------
    matplotlib.axes.Axes or None
        The axes, or ``None`` with ``show=True``. The dashed line is the value of calling every cell sensitive; a
        missing value leaves a gap.

    Raises
    ------
    UnknownNameError
        For a kind, metric, level or model that is not known.
    InputError
        For too few categories for a radar, axes that are not polar, or a file that cannot be written.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> adata = sd.datasets.simulate(n_studies=2, n_cells=300, n_genes=200, rng=0)
    >>> result = sd.tl.benchmark(adata, models=["pca"], setting="cross", head="logistic", baselines=["majority"], rng=0)
    >>> ax = sd.pl.radar(result, kind="bar")
    """
    if kind not in KINDS:
        raise UnknownNameError("kind", kind, KINDS)
    table = _axes.scores(result, metric, level, models, n_resamples=0)
    labels, places = _axes.in_order(table, "label"), _axes.in_order(table, "place")
    if kind == "radar" and len(places) < 3:
        raise InputError("kind", f"'radar' with {len(places)} categories", "three or more", "use kind='bar'.")
    if ax is not None and getattr(ax, "name", "") != "polar":
        raise InputError(
            "ax", type(ax).__name__, "polar axes", "plt.subplots(subplot_kw={'projection': 'polar'}) makes them."
        )
    crowd = len(places) > MANY
    pad = 12 + 0.55 * _axes.points("x-small" if crowd else "small") * min(99 if crowd else 14, max(map(len, places)))
    room = {"below": (pad + 8) / 72, "above": (pad + 34) / 72} if crowd else {}
    axes: Any = _axes.new_square(ax, 1.15, 2.5, **room, projection="polar")
    look, floor = _axes.styles(result), _axes.floors(table, places)
    step = 2 * np.pi / len(places)
    angle = np.arange(len(places)) * step
    axes.set_theta_zero_location("N")
    axes.set_theta_direction(-1)
    for i, label in enumerate(labels):
        value = table[table["label"] == label].set_index("place")["value"].reindex(places).to_numpy(dtype=float)
        style = look[label]
        if kind == "radar":
            axes.plot(
                np.r_[angle, angle[0]], np.r_[value, value[0]], color=style.colour, ls=style.line, marker=style.marker,
                ms=3.5, lw=1.5, label=label,
            )  # fmt: skip
        else:
            width = step * 0.86 / len(labels)
            known = np.isfinite(value)
            axes.bar(
                angle[known] + (i - (len(labels) - 1) / 2) * width, value[known], width, color=style.colour, hatch=style.hatch,
                edgecolor="white", lw=0.3, label=label,
            )  # fmt: skip
    low, high = _axes.limits(result, metric, table["value"].to_numpy(dtype=float), floor)
    _floor(axes, angle, floor, step, kind, _axes.floor_label(_axes.floor_name(result, metric), floor, high))
    axes.set_ylim(low, high)
    _labels(axes, places, angle, table)
    axes.tick_params(axis="y", labelsize="x-small")
    for text in axes.get_yticklabels():
        text.set(zorder=6, bbox={"facecolor": "white", "alpha": 0.75, "lw": 0, "pad": 0.6})
    axes.set_rlabel_position(float(np.degrees(step / 2)))
    axes.grid(color="#d9d9d9", lw=0.6)
    axes.set_axisbelow(True)
    _axes.title(
        axes,
        f"{_axes.metric_label(result, metric, level)}: {_axes.split_note(table)}",
        pad + 4 if crowd else None,
    )
    _axes.round_legend(axes, pad, *axes.get_legend_handles_labels())
    return _axes.finish(axes, show=show, save=save)


def _labels(axes: Any, places: list[str], angle: np.ndarray, table: Any) -> None:
    """Write the categories around the circle, on the outer side of it; many of them along its radius."""
    gone = table.groupby("place")["value"].apply(lambda v: bool(v.isna().all()))
    if len(places) > MANY:
        names = [" ".join(p.split("\n")) + (" (n/a)" if gone[p] else "") for p in places]
        axes.set_xticks(angle, [""] * len(places))
        return along_radius(axes, angle, axes.get_ylim()[1], names)
    names = [_axes.wrap(p + (" (n/a)" if gone[p] else ""), 14) for p in places]
    axes.set_xticks(angle, names, fontsize="small")
    for text, a in zip(axes.get_xticklabels(), angle, strict=True):
        side = np.sin(a)
        text.set_horizontalalignment("center" if abs(side) < 0.1 else "left" if side > 0 else "right")


def along_radius(axes: Any, angle: np.ndarray, radius: Any, names: list[str], **look: Any) -> None:
    """Write names outwards from a radius, never upside down; zero degrees is up, and they run clockwise."""
    reach = np.broadcast_to(np.asarray(radius, dtype=float), np.shape(angle))
    for a, r, name in zip(np.mod(angle, 2 * np.pi), reach, names, strict=True):
        left = a > np.pi
        turn = 90 - np.degrees(a) + 180 * left
        pad = 4 * np.array([np.sin(a), np.cos(a)])
        axes.annotate(
            name, (a, r), xytext=tuple(pad), textcoords="offset points", rotation=float(turn), rotation_mode="anchor",
            ha="right" if left else "left", va="center", annotation_clip=False, **({"fontsize": "x-small"} | look),
        )  # fmt: skip


def _floor(axes: Any, angle: np.ndarray, floor: np.ndarray, step: float, kind: str, label: str) -> None:
    look: dict[str, Any] = {"color": _axes.FLOOR, "ls": "--", "lw": 1.4, "zorder": 5}
    if kind == "radar":
        axes.plot(np.r_[angle, angle[0]], np.r_[floor, floor[0]], label=label, **look)
        return
    for i, (a, f) in enumerate(zip(angle, floor, strict=True)):
        half = (0.46 if len(angle) > 1 else 0.5) * step
        arc = np.linspace(a - half, a + half, 60)
        axes.plot(arc, np.full(len(arc), f), label=label if i == 0 else "_", **look)
