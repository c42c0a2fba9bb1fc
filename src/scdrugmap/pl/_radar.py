"""Models on the spokes of a wheel of categories."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from scdrugmap._errors import InputError
from scdrugmap.pl import _axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from scdrugmap.evaluation import BenchmarkResult


def radar(
    result: BenchmarkResult,
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
    The axes, or ``None`` with ``show=True``. The dashed line is the value of calling every cell sensitive.

    Raises
    ------
    InputError
        For another kind, or too few categories for a radar.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> adata = sd.datasets.simulate(n_studies=2, n_cells=300, n_genes=200, rng=0)
    >>> result = sd.tl.benchmark(adata, models=["pca"], setting="cross", head="logistic", baselines=["majority"], rng=0)
    >>> ax = sd.pl.radar(result, kind="bar")
    """
    if kind not in ("radar", "bar"):
        raise InputError("kind", kind, "'radar' or 'bar'", "use kind='radar'.")
    table = _axes.scores(result, metric, level, models, n_resamples=0)
    labels, places = list(dict.fromkeys(table["label"])), list(dict.fromkeys(table["place"]))
    if kind == "radar" and len(places) < 3:
        raise InputError("kind", f"'radar' with {len(places)} categories", "three or more", "use kind='bar'.")
    ax = _axes.new_axes(ax, (6.2, 4.6), subplot_kw={"projection": "polar"})
    angle = np.linspace(0, 2 * np.pi, len(places), endpoint=False)
    around = np.r_[angle, angle[:1]]
    colour = _axes.colours(labels)
    width = 2 * np.pi / len(places) * 0.85 / len(labels)
    for i, label in enumerate(labels):
        value = table[table["label"] == label].set_index("place")["value"].reindex(places).to_numpy(dtype=float)
        if kind == "radar":
            ax.plot(around, np.r_[value, value[:1]], color=colour[label], label=label, marker="o", ms=3, lw=1.4)
        else:
            ax.bar(angle + (i - (len(labels) - 1) / 2) * width, value, width, color=colour[label], label=label)
    floor = table.drop_duplicates("place").set_index("place")["floor"].reindex(places).to_numpy(dtype=float)
    if kind == "radar":
        ax.plot(around, np.r_[floor, floor[:1]], color=_axes.FLOOR, ls="--", lw=1.2, label="call all sensitive")
    else:
        for a, f in zip(angle, floor, strict=True):
            arc = np.linspace(a - 0.45 * 2 * np.pi / len(places), a + 0.45 * 2 * np.pi / len(places), 50)
            ax.plot(
                arc, np.full(50, f), color=_axes.FLOOR, ls="--", lw=1.2, label="call all sensitive" if a == 0 else None
            )
    ax.set_xticks(angle, [_axes.place_name(p) for p in places], fontsize=8)
    ax.set_ylim(min(0.0, float(np.nanmin(table["value"].to_numpy(dtype=float), initial=0))), 1)
    ax.set_title(f"{metric}: {_axes.split_note(table)}", fontsize=9)
    ax.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.08, 1))
    return _axes.finish(ax, show=show, save=save)
