"""Properties and speed of models side by side."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scdrugmap._errors import InputError, MissingKeyError
from scdrugmap.figures import axes as _axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Columns in the order of the figure, with their headings.
HEADINGS = {
    "architecture": "architecture",
    "year": "year",
    "n_parameters": "parameters",
    "dim": "output dimensions",
    "tokens_per_cell": "tokens per cell",
    "cells_per_second": "embedding\n(cells per second)",
    "training_cells_per_second": "training\n(cells per second)",
    "peak_memory_gb": "peak memory (GB)",
}
TEXT = ("year",)
#: What the line of the baseline is drawn for.
COSTS = ("cells_per_second", "training_cells_per_second", "peak_memory_gb")


def profile(
    table: pd.DataFrame,
    *,
    columns: str | Sequence[str] | None = None,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> list[Axes] | None:
    """Draw a table of models: what they are, parameters, width, speed and memory, numbers on logarithmic axes.

    Parameters
    ----------
    table
        From :func:`scdrugmap.tl.profile`, or any table with one row per model and its name as index. Speeds are cells
        per second: higher is better.
    columns
        Columns to draw, one panel each; by default all known ones that the table holds.
    ax
        Axes to draw into, one per column.
    show
        Show the figure.
    save
        File to save the figure to.

    Returns
    -------
    list of matplotlib.axes.Axes or None
        One axes per panel, or ``None`` with ``show=True``. The dashed line is the ``pca`` baseline, where it is in the
        table: what a model's speed and memory are to be held against.

    Raises
    ------
    MissingKeyError
        If a column is not there.
    InputError
        For an empty table, too few axes, or a file that cannot be written.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> axes = sd.pl.profile(sd.models.list().set_index("name"), columns=["year", "n_parameters", "dim"])
    """
    _axes.check_table(table)
    if columns is None:
        columns = [c for c in HEADINGS if c in table]
    columns = [columns] if isinstance(columns, str) else list(columns)
    for column in columns:
        if column not in table:
            raise MissingKeyError("columns", column, f"columns of the table ({', '.join(table)})", "choose among them.")
    if table.empty or not columns:
        raise InputError("table", "nothing to draw", "one model and one column", "pass the table of sd.tl.profile.")
    words = [c in TEXT or not pd.api.types.is_numeric_dtype(table[c]) for c in columns]
    panels: list[Any] = _new_panels(table, columns, words) if ax is None else _axes.given_axes(ax, len(columns))
    for panel, column, word in zip(panels, columns, words, strict=True):
        _words(panel, table[column]) if word else _numbers(panel, table[column])
        heading = HEADINGS.get(column, column.replace("_", " "))
        panel.set_title(heading, fontsize="medium", loc="left" if word else "center")
        panel.set_ylim(len(table) - 0.4, -0.6)
        names = table.index.astype(str) if panel is panels[0] else [""] * len(table)
        panel.set_yticks(range(len(table)), names, fontsize="small")
    if "device" in table:
        devices = ", ".join(map(str, pd.unique(table["device"])))
        panels[-1].annotate(
            f"measured on {devices}", (1, 0), xycoords="axes fraction", xytext=(0, -24), textcoords="offset points",
            ha="right", va="top", fontsize="x-small", color="#444444",
        )  # fmt: skip
    return _axes.finish(panels, show=show, save=save)


def _new_panels(table: pd.DataFrame, columns: Sequence[str], words: Sequence[bool]) -> list[Axes]:
    import matplotlib.pyplot as plt

    widths = [_width(table[c]) if word else 2.0 for c, word in zip(columns, words, strict=True)]
    size = (1.4 + sum(widths), 1.1 + 0.27 * len(table))
    _, axes = plt.subplots(1, len(columns), figsize=size, layout="constrained", squeeze=False, width_ratios=widths)
    return list(axes[0])


def _width(column: pd.Series) -> float:
    return float(np.clip(0.1 + 0.058 * column.astype(str).str.len().max(), 0.5, 5))


def _words(ax: Axes, column: pd.Series) -> None:
    for i, value in enumerate(column):
        ax.annotate("" if pd.isna(value) else str(value), (0, i), va="center", fontsize="x-small")
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    ax.set_xticks([])
    ax.set_xlim(0, 1)


def _numbers(ax: Axes, column: pd.Series) -> None:
    values = pd.to_numeric(column, errors="coerce").astype(float).to_numpy()
    positive = values[values > 0]
    low, high = (positive.min(), positive.max()) if len(positive) else (1.0, 10.0)
    # A logarithmic axis has no zero: points on lines, not bars, whose length would say nothing.
    ax.set_xscale("log")
    ax.set_xlim(low / 2.5, high * (high / low) ** 0.4 * 4)
    at = np.arange(len(values))
    shown = values > 0
    ax.hlines(at, low / 2.5, np.where(shown, values, low / 2.5), color="#bbbbbb", lw=1)
    ax.scatter(values[shown], at[shown], s=26, color=_axes.PALETTE[0], zorder=3)
    for j, value in enumerate(values):
        text = "n/a" if np.isnan(value) else _short(value)
        ax.annotate(
            text,
            (value if value > 0 else low / 2.5, j),
            fontsize="x-small",
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
        )
    base = (
        []
        if column.name not in COSTS
        else [v for name, v in zip(column.index.astype(str), values, strict=True) if name.lower() == "pca"]
    )
    if base and base[0] > 0:
        ax.axvline(base[0], color=_axes.FLOOR, ls="--", lw=1, zorder=0)
    ax.tick_params(axis="x", labelsize="x-small")
    ax.xaxis.set_minor_locator(_no_ticks())
    _axes.clean(ax)


def _no_ticks() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()


def _short(value: float) -> str:
    """Three digits, with M and G for millions and billions."""
    for size, letter in ((1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
