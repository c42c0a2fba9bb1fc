"""Models x categories."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from scdrugmap.pl import _axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from scdrugmap.evaluation import BenchmarkResult


def heatmap(
    result: BenchmarkResult,
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
    The axes, or ``None`` with ``show=True``.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> adata = sd.datasets.simulate(n_studies=2, n_cells=300, n_genes=200, rng=0)
    >>> result = sd.tl.benchmark(adata, models=["pca"], setting="cross", head="logistic", baselines=["majority"], rng=0)
    >>> ax = sd.pl.heatmap(result)
    """
    table = _axes.scores(result, metric, level, models, n_resamples=0)
    labels, places = list(dict.fromkeys(table["label"])), list(dict.fromkeys(table["place"]))
    wide = table.pivot_table(index="label", columns="place", values="value", aggfunc="first", dropna=False)
    wide = wide.reindex(index=labels, columns=places)
    floor = table.drop_duplicates("place").set_index("place")["floor"].reindex(places)
    values = np.vstack([wide.to_numpy(dtype=float), floor.to_numpy(dtype=float)])
    rows = [*labels, "call all sensitive"]
    ax = _axes.new_axes(ax, (2.6 + 0.8 * len(places), 1.2 + 0.34 * len(rows)))
    image = ax.imshow(values, cmap="viridis", aspect="auto", vmin=min(0.0, float(np.nanmin(values, initial=0))), vmax=1)
    for (i, j), value in np.ndenumerate(values):
        text = "n/a" if np.isnan(value) else f"{value:.2f}"
        dark = np.isnan(value) or value > 0.6
        ax.text(j, i, text, ha="center", va="center", fontsize=8, color="black" if dark else "white")
    ax.axhline(len(labels) - 0.5, color="white", lw=2)
    ax.set_xticks(range(len(places)), [_axes.place_name(p) for p in places], rotation=30 if len(places) > 3 else 0)
    ax.set_yticks(range(len(rows)), rows)
    ax.set_title(_axes.split_note(table), fontsize=9)
    ax.figure.colorbar(image, ax=ax, label=metric)
    return _axes.finish(ax, show=show, save=save)
