"""Bars with fold values and intervals."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from scdrugmap.pl import _axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from scdrugmap.evaluation import BenchmarkResult


def benchmark(
    result: BenchmarkResult,
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
    metric, level
        What to draw.
    models
        Some of the models; by default all.
    ax
        Axes to draw into.
    show, save
        Show the figure; save it to a file.

    Returns
    -------
    The axes, or ``None`` with ``show=True``. The dashed line is the value of calling every cell sensitive.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> adata = sd.datasets.simulate(n_studies=2, n_cells=300, n_genes=200, rng=0)
    >>> result = sd.tl.benchmark(adata, models=["pca"], setting="cross", head="logistic", baselines=["majority"], rng=0)
    >>> ax = sd.pl.benchmark(result)
    """
    table = _axes.scores(result, metric, level, models)
    labels = list(dict.fromkeys(table["label"]))
    places = list(dict.fromkeys(table["place"]))
    ax = _axes.new_axes(ax, (max(4.0, 1.2 + 0.42 * len(labels) * len(places)), 3.6))
    colour = _axes.colours(labels)
    width = 0.8 / len(labels)
    folds = result.table[(result.table["metric"] == metric) & (result.table["level"] == level)]
    for i, label in enumerate(labels):
        rows = table[table["label"] == label].set_index("place").reindex(places)
        x = np.arange(len(places)) + (i - (len(labels) - 1) / 2) * width
        value = rows["value"].to_numpy(dtype=float)
        ax.bar(x, value, width * 0.92, color=colour[label], label=label, alpha=0.85)
        low, high = (rows[c].to_numpy(dtype=float) for c in ("ci_low", "ci_high"))
        known = np.isfinite(low) & np.isfinite(value)
        ax.errorbar(
            x[known], value[known],
            yerr=np.clip([value[known] - low[known], high[known] - value[known]], 0, None),
            fmt="none", ecolor="black", capsize=2, lw=1,
        )  # fmt: skip
        for at, place in zip(x, places, strict=True):
            row = rows.loc[place]
            mine = folds[(folds["category"] == row["category"]) & (folds["model"] == row["model"])]
            mine = mine[(mine["strategy"] == row["strategy"]) & (mine["head"] == row["head"])]["value"].dropna()
            ax.scatter(np.full(len(mine), at), mine, s=7, color="black", alpha=0.5, zorder=3, linewidths=0)
            if not np.isfinite(row["value"]):
                ax.annotate("n/a", (at, 0), ha="center", va="bottom", fontsize=7, rotation=90)
    floor = table.drop_duplicates("place").set_index("place")["floor"].reindex(places).to_numpy(dtype=float)
    for i, f in enumerate(floor):
        ax.hlines(
            f, i - 0.45, i + 0.45, color=_axes.FLOOR, ls="--", lw=1.2, label="call all sensitive" if i == 0 else "_"
        )
    ax.set_xticks(range(len(places)), [_axes.place_name(p) for p in places], rotation=30 if len(places) > 3 else 0)
    ax.set_ylabel(metric)
    ax.set_title(_axes.split_note(table), fontsize=9)
    ax.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    ax.spines[["top", "right"]].set_visible(False)
    return _axes.finish(ax, show=show, save=save)
