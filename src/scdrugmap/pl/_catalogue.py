"""The curated studies at a glance."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pandas as pd

from scdrugmap.pl import _axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def catalogue(
    table: pd.DataFrame | None = None,
    *,
    by: tuple[str, ...] = ("tissue", "therapy_type", "cancer_type"),
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> list[Axes] | None:
    """Draw the number of studies by tissue, therapy and cancer type.

    Parameters
    ----------
    table
        From :func:`scdrugmap.datasets.catalogue`, possibly filtered; by default all studies.
    by
        Columns to count, one panel each; the colours are the collections.
    show, save
        Show the figure; save it to a file.

    Returns
    -------
    One axes per panel, or ``None`` with ``show=True``.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> axes = sd.pl.catalogue()
    """
    import matplotlib.pyplot as plt

    from scdrugmap import datasets

    table = datasets.catalogue() if table is None else table
    _, axes = plt.subplots(1, len(by), figsize=(4.2 * len(by), 3.8), layout="constrained", squeeze=False)
    panels: list[Any] = list(axes[0])
    for ax, column in zip(panels, by, strict=True):
        counts = pd.crosstab(table[column], table["collection"])
        counts = counts.loc[counts.sum(axis=1).sort_values().index]
        counts.plot.barh(stacked=True, ax=ax, color=_axes.PALETTE, legend=ax is panels[0], width=0.8)
        ax.set(xlabel="studies", ylabel="", title=column.replace("_", " "))
        ax.spines[["top", "right"]].set_visible(False)
    return _axes.finish(panels, show=show, save=save)
