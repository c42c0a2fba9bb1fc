"""The curated studies at a glance."""

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


def catalogue(
    table: pd.DataFrame | None = None,
    *,
    by: str | Sequence[str] = ("tissue", "therapy_type", "cancer_type"),
    ax: Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> list[Axes] | None:
    """Draw the data sets (left) and their cells (right) by tissue, therapy and cancer type.

    Parameters
    ----------
    table
        From :func:`scdrugmap.datasets.catalogue`, possibly filtered; by default all data sets.
    by
        Columns to count, one row of panels each.
    ax
        Axes to draw into, two per column: data sets and cells.
    show
        Show the figure.
    save
        File to save the figure to.

    Returns
    -------
    list of matplotlib.axes.Axes or None
        Two axes per column, or ``None`` with ``show=True``. Cells that several data sets of a bar share as controls
        count once; the hatched part is the repeats. The number beside a bar is the F1 of calling every cell sensitive,
        the floor that a model has to beat; ``+n`` counts data sets whose cells nobody published per label.

    Raises
    ------
    MissingKeyError
        If a column is not there.
    InputError
        For an empty table, too few axes, or a file that cannot be written.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> axes = sd.pl.catalogue(by="tissue")
    """
    import matplotlib.pyplot as plt

    from scdrugmap import datasets

    table = datasets.catalogue() if table is None else table
    _axes.check_table(table)
    columns = [by] if isinstance(by, str) else list(by)
    needed = [*columns, "collection", "n_sensitive", "n_resistant", "group", "shared_control"]
    for column in needed:
        if column not in table:
            argument = "by" if column in columns else "table"
            raise MissingKeyError(argument, column, f"columns of the table ({', '.join(table)})", "choose among them.")
    if table.empty or not columns:
        raise InputError("table", "nothing to count", "one data set and one column", "check the filter.")
    if ax is not None:
        panels = _axes.given_axes(ax, 2 * len(columns))
    else:
        heights = [0.9 + 0.24 * table[c].nunique() for c in columns]
        size = (9.6, sum(heights) + 0.9)
        panels = list(
            plt.subplots(len(columns), 2, figsize=size, layout="constrained", height_ratios=heights)[1].ravel()
        )
    for left, right, column in zip(panels[::2], panels[1::2], columns, strict=True):
        sets = pd.crosstab(table[column], table["collection"])
        sets = sets.loc[sets.sum(axis=1).sort_values(kind="stable").index]
        _data_sets(left, sets, column)
        _cells(right, cell_counts(table, column).reindex(sets.index))
        right.tick_params(axis="y", labelleft=False)
    handles: list[Any] = [h for panel in panels[:2] for h in panel.get_legend_handles_labels()[0]]
    if ax is not None:  # the figure is the caller's, and so is the room beside the axes
        panels[1].legend(handles=handles, fontsize="x-small", frameon=False, loc="lower right")
        return _axes.finish(panels, show=show, save=save)
    figure: Any = panels[0].get_figure(root=True)
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize="small", frameon=False)
    note = "beside the bars: F1 of calling every cell sensitive; +n: data sets without counts"
    figure.suptitle(_axes.wrap(note, int(11 * figure.get_figwidth())), fontsize="medium")
    return _axes.finish(panels, show=show, save=save)


def cell_counts(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Count cells per value of a column: sensitive, resistant, repeated controls, and data sets without counts.

    Data sets whose cells were only published together count where all of them fall under one value.
    """
    records = {}
    for value, rows in table.groupby(column, sort=False):
        known = rows[rows["n_sensitive"].notna() & rows["n_resistant"].notna()]
        sensitive, resistant = int(known["n_sensitive"].sum()), int(known["n_resistant"].sum())
        shared = known[known["shared_control"] != ""]
        once = shared.drop_duplicates("shared_control")
        repeats = int(shared["n_sensitive"].sum() - once["n_sensitive"].sum())
        unknown = rows.drop(index=known.index)
        for _, members in unknown[unknown["group"] != ""].groupby("group"):
            first = members.iloc[0]
            if len(members) == len(str(first["group"]).split()) and pd.notna(first.get("group_n_sensitive")):
                sensitive += int(first["group_n_sensitive"])
                resistant += int(first["group_n_resistant"])
                unknown = unknown.drop(index=members.index)
        records[value] = {
            "sensitive": sensitive - repeats, "repeats": repeats, "resistant": resistant, "without": len(unknown)
        }  # fmt: skip
    return pd.DataFrame.from_dict(records, orient="index")


def _data_sets(ax: Axes, sets: pd.DataFrame, column: str) -> None:
    left = np.zeros(len(sets))
    for collection, colour in zip(sorted(sets, key=lambda c: c != "primary"), _axes.PALETTE[2:], strict=False):
        ax.barh(sets.index, sets[collection], left=left, color=colour, height=0.75, label=f"{collection} collection")
        left += sets[collection].to_numpy()
    for i, n in enumerate(left):
        ax.annotate(f"{int(n)}", (n, i), xytext=(3, 0), textcoords="offset points", va="center", fontsize="x-small")
    ax.set_xlabel("data sets", fontsize="small")
    ax.set_title(column.replace("_", " "), fontsize="medium", loc="left")
    ax.tick_params(labelsize="small")
    ax.margins(x=0.1)
    _axes.clean(ax)


def _cells(ax: Axes, counts: pd.DataFrame) -> None:
    left = np.zeros(len(counts))
    looks: list[tuple[str, str, dict[str, Any]]] = [
        ("sensitive", "sensitive cells", {"color": _axes.SENSITIVE}),
        ("resistant", "resistant cells", {"color": _axes.RESISTANT}),
        ("repeats", "controls counted again", {"color": "white", "hatch": "////", "edgecolor": _axes.SENSITIVE}),
    ]
    for name, label, look in looks:
        ax.barh(counts.index, counts[name], left=left, height=0.75, label=label, lw=0.5, **look)
        left += counts[name].to_numpy()
    for i, row in enumerate(counts.itertuples()):
        p = row.sensitive / max(row.sensitive + row.resistant, 1)
        parts = [f"{2 * p / (1 + p):.2f}"] * int(left[i] > 0) + [f"+{row.without}"] * int(row.without > 0)
        ax.annotate(
            "  ".join(parts), (left[i], i), xytext=(3, 0), textcoords="offset points", va="center", fontsize="x-small"
        )
    ax.set_xlabel("cells", fontsize="small")
    ax.xaxis.set_major_formatter(lambda v, _: f"{v / 1000:,.0f}k" if v else "0")
    ax.tick_params(labelsize="small")
    ax.margins(x=0.16)
    _axes.clean(ax)
