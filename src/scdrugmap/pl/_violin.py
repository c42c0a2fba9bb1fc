"""The spread of a model's scores over categories."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from scdrugmap.pl import _axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from scdrugmap.evaluation import BenchmarkResult


def violin(
    result: BenchmarkResult,
    *,
    metric: str = "f1_macro",
    level: str = "cell",
    models: list[str] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> Axes | None:
    """Draw, for each model, the distribution of its fold values over all categories as violin and box.

    Parameters
    ----------
    result, metric, level, models, ax, show, save
        As in :func:`scdrugmap.pl.benchmark`.

    Returns
    -------
    The axes, or ``None`` with ``show=True``. The dashed line is the mean value of calling every cell sensitive.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> adata = sd.datasets.simulate(n_studies=2, n_cells=300, n_genes=200, rng=0)
    >>> result = sd.tl.benchmark(adata, models=["pca"], setting="cross", head="logistic", baselines=["majority"], rng=0)
    >>> ax = sd.pl.violin(result)
    """
    table = _axes.scores(result, metric, level, models, n_resamples=0)
    labels = list(dict.fromkeys(table["label"]))
    folds = result.table[(result.table["metric"] == metric) & (result.table["level"] == level)]
    ax = _axes.new_axes(ax, (1.6 + 0.8 * len(labels), 3.6))
    colour = _axes.colours(labels)
    for i, label in enumerate(labels):
        row = table[table["label"] == label].iloc[0]
        mine = folds[(folds["model"] == row["model"]) & (folds["strategy"] == row["strategy"])]
        values = mine[mine["head"] == row["head"]]["value"].dropna().to_numpy(dtype=float)
        if len(values) > 2 and np.ptp(values) > 0:
            for body in ax.violinplot(values, [i], widths=0.8, showextrema=False)["bodies"]:  # type: ignore[attr-defined]
                body.set_facecolor(colour[label])
                body.set_alpha(0.4)
        if len(values):
            ax.boxplot(values, positions=[i], widths=0.2, showfliers=False, medianprops={"color": "black"})
            ax.scatter(np.full(len(values), i), values, s=8, color=colour[label], zorder=3)
    floor = float(np.nanmean(table["floor"])) if table["floor"].notna().any() else np.nan
    ax.axhline(floor, color=_axes.FLOOR, ls="--", lw=1.2, label="call all sensitive (mean)")
    ax.set_xticks(range(len(labels)), labels, rotation=40, ha="right", fontsize=8)
    ax.set_ylabel(metric)
    ax.set_title(_axes.split_note(table), fontsize=9)
    ax.legend(fontsize=7, frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    return _axes.finish(ax, show=show, save=save)
