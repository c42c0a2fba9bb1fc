"""Properties and speed of models side by side."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pandas as pd

from scdrugmap._errors import MissingKeyError
from scdrugmap.pl import _axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def profile(
    table: pd.DataFrame,
    *,
    columns: tuple[str, ...] = ("n_parameters", "dim", "cells_per_second", "peak_memory_gb"),
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> list[Axes] | None:
    """Draw parameters, width, speed and memory of models as bars on logarithmic axes.

    Parameters
    ----------
    table
        One row per model (index: name), with the columns to draw; speeds are cells per second: higher is better.
    columns
        Columns to draw, one panel each.
    show, save
        Show the figure; save it to a file.

    Returns
    -------
    One axes per panel, or ``None`` with ``show=True``.

    Raises
    ------
    MissingKeyError
        If a column is not there.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> axes = sd.pl.profile(sd.models.list().set_index("name"), columns=("n_parameters", "dim"))
    """
    import matplotlib.pyplot as plt

    for column in columns:
        if column not in table:
            raise MissingKeyError("columns", column, f"columns of the table ({', '.join(table)})", "choose among them.")
    _, axes = plt.subplots(
        1, len(columns), figsize=(3.2 * len(columns), 1 + 0.3 * len(table)), layout="constrained", sharey=True, squeeze=False
    )  # fmt: skip
    panels: list[Any] = list(axes[0])
    for i, (ax, column) in enumerate(zip(panels, columns, strict=True)):
        values = pd.to_numeric(table[column], errors="coerce").astype(float)
        ax.barh(table.index.astype(str), values, color=_axes.PALETTE[i % len(_axes.PALETTE)])
        for j, value in enumerate(values):
            ax.annotate("n/a" if pd.isna(value) else f"{value:,.3g}", (0 if pd.isna(value) else value, j), fontsize=7,
                        xytext=(2, 0), textcoords="offset points", va="center")  # fmt: skip
        ax.set_xscale("log")
        ax.margins(x=0.25)
        ax.set_title(column.replace("_", " "), fontsize=9)
        ax.spines[["top", "right"]].set_visible(False)
    panels[0].invert_yaxis()
    return _axes.finish(panels, show=show, save=save)
