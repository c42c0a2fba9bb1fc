"""How far single calls can be trusted: calls of samples, prediction sets."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scdrugmap import _anndata
from scdrugmap._errors import InputError, MissingKeyError
from scdrugmap._keys import KEYS, RESISTANT, SENSITIVE
from scdrugmap.figures import axes as _axes

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from mudata import MuData

UNDECIDED = "#8c8c8c"
#: What a prediction set may hold, and how it looks.
SETS = {
    RESISTANT: (_axes.RESISTANT, "", "resistant only"),
    SENSITIVE: (_axes.SENSITIVE, "", "sensitive only"),
    f"{RESISTANT}|{SENSITIVE}": ("#d9d9d9", "////", "both: not decided"),
    "": ("white", "....", "neither: unlike both"),
}


def sample_calls(
    table: pd.DataFrame | AnnData | MuData,
    *,
    key: str = KEYS.response,
    mod: str = "rna",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> Axes | None:
    """Draw the share of resistant cells of every sample with its interval, and the call.

    Parameters
    ----------
    table
        Cells that :func:`scdrugmap.tl.predict_response` has annotated with ``sample_key=``, or their table
        ``uns[key]["samples"]``.
    key
        What ``key_added`` was.
    mod
        Modality of a MuData.
    ax
        Axes to draw into.
    show
        Show the figure.
    save
        File to save the figure to.

    Returns
    -------
    matplotlib.axes.Axes or None
        The axes, or ``None`` with ``show=True``. A sample is called where its interval lies on one side of one half.
        The interval is about the cells of that sample; it knows nothing of the difference between patients.

    Raises
    ------
    MissingKeyError
        If no samples were named, or a column is missing.
    InputError
        For an empty table, or a file that cannot be written.

    Examples
    --------
    >>> import pandas as pd, scdrugmap as sd
    >>> table = pd.DataFrame(
    ...     {"n_cells": [90, 40], "fraction_resistant": [0.8, 0.5], "lower": [0.7, 0.35], "upper": [0.87, 0.65]},
    ...     index=["s1", "s2"],
    ... )
    >>> ax = sd.pl.sample_calls(table)
    """
    if not isinstance(table, pd.DataFrame):
        record = _anndata.resolve(table, mod=mod).uns.get(key, {})
        if "samples" not in record:
            fix = "call sd.tl.predict_response with sample_key=."
            raise MissingKeyError("key", key, "a prediction with calls of samples", fix)
        table = record["samples"]
    for column in ("n_cells", "fraction_resistant", "lower", "upper"):
        if column not in table:
            raise MissingKeyError("table", column, "the columns of uns['response']['samples']", "pass that table.")
    if table.empty:
        raise InputError("table", "no sample", "one or more", "name samples with sample_key=.")
    table = table.iloc[sorted(range(len(table)), key=lambda i: _axes.natural(table.index[i]))]
    at = np.arange(len(table))
    ax = _axes.new_axes(ax, (6.0, float(np.clip(1.4 + 0.24 * len(table), 2.4, 26))))
    low, high = (table[c].to_numpy(dtype=float) for c in ("lower", "upper"))
    looks = [
        (low > 0.5, _axes.RESISTANT, "s", f"called {RESISTANT}"),
        (high < 0.5, _axes.SENSITIVE, "o", f"called {SENSITIVE}"),
        (~(low > 0.5) & ~(high < 0.5), UNDECIDED, "D", "undecided"),
    ]
    for chosen, colour, marker, label in looks:
        ax.hlines(at[chosen], low[chosen], high[chosen], color=colour, lw=2)
        part = table["fraction_resistant"].to_numpy(dtype=float)[chosen]
        ax.scatter(part, at[chosen], color=colour, marker=marker, s=30, zorder=3, label=label if chosen.any() else "_")
    ax.axvline(0.5, color=_axes.FLOOR, ls="--", lw=1.1)
    names = [f"{name}  ({n:,} cells)" for name, n in zip(table.index, table["n_cells"], strict=True)]
    ax.set_yticks(at, names, fontsize="small")
    ax.set(xlabel="share of resistant cells, 95 % interval", xlim=(-0.02, 1.02), ylim=(len(at) - 0.5, -0.5))
    _axes.legend(ax)
    _axes.clean(ax)
    return _axes.finish(ax, show=show, save=save)


def prediction_sets(
    adata: AnnData | MuData,
    *,
    key: str = KEYS.response,
    groupby: str | None = None,
    label_key: str = KEYS.response,
    mod: str = "rna",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> Axes | None:
    """Draw which share of cells got which prediction set, and how often the set holds the truth.

    Parameters
    ----------
    adata
        Cells with prediction sets: :func:`scdrugmap.tl.predict_response` with a predictor trained with ``conformal=``.
    key
        What ``key_added`` was.
    groupby
        Column of ``obs``, one bar per value; by default one bar for all cells.
    label_key
        Column with the truth; where it is known, the coverage is written beside the bar.
    mod
        Modality of a MuData.
    ax
        Axes to draw into.
    show
        Show the figure.
    save
        File to save the figure to.

    Returns
    -------
    matplotlib.axes.Axes or None
        The axes, or ``None`` with ``show=True``. A coverage below the nominal one says that the cells differ from the
        training cells: the promise of a prediction set does not hold there.

    Raises
    ------
    MissingKeyError
        If there are no prediction sets, or a column is missing.
    InputError
        If the file cannot be written.

    Examples
    --------
    >>> import anndata as ad, numpy as np, scdrugmap as sd
    >>> adata = ad.AnnData(np.ones((3, 2)))
    >>> adata.obs["response_set"] = ["resistant", "resistant|sensitive", "sensitive"]
    >>> adata.obs["response"] = ["resistant", "resistant", "resistant"]
    >>> ax = sd.pl.prediction_sets(adata)
    """
    cells = _anndata.resolve(adata, mod=mod)
    column = key + KEYS.set
    if column not in cells.obs:
        raise MissingKeyError("key", key, f"obs[{column!r}]", "train with conformal=0.9, then predict.")
    sets = cells.obs[column]
    known = sets.notna().to_numpy()
    text = sets.astype(str).to_numpy()
    group = np.full(cells.n_obs, "all cells") if groupby is None else (
        _anndata.obs_text(cells, groupby, "groupby")
    )  # fmt: skip
    names = sorted(set(group[known]), key=_axes.natural)
    if not names:
        raise InputError("key", f"no set in obs[{column!r}]", "one or more", "predict first.")
    share = pd.crosstab(group[known], text[known], normalize="index").reindex(
        index=names, columns=list(SETS), fill_value=0
    )
    ax = _axes.new_axes(ax, (6.4, float(np.clip(1.4 + 0.3 * len(names), 2, 26))))
    at, left = np.arange(len(names)), np.zeros(len(names))
    for value, (colour, hatch, label) in SETS.items():
        width = share[value].to_numpy()
        ax.barh(at, width, 0.75, left=left, color=colour, hatch=hatch, edgecolor="#555555", lw=0.4, label=label)
        left += width
    params: Any = cells.uns.get(key, {}).get("params", {})
    if label_key in cells.obs:
        _coverage(ax, cells.obs[label_key], text, known, group, names)
    nominal = f" (nominal {float(params['coverage']):.0%})" if "coverage" in params else ""
    ax.set_yticks(at, names, fontsize="small")
    ax.set(
        xlabel="share of cells",
        xlim=(0, 1.12 if label_key in cells.obs else 1),
        xticks=np.linspace(0, 1, 6),
        ylim=(len(names) - 0.5, -0.5),
    )
    if label_key in cells.obs:
        _axes.title(ax, f"right: share of cells whose set holds the label{nominal}")
    _axes.legend(ax)
    _axes.clean(ax)
    return _axes.finish(ax, show=show, save=save)


def _coverage(ax: Axes, labels: Any, text: np.ndarray, known: np.ndarray, group: np.ndarray, names: list[str]) -> None:
    """Write beside each bar how often the set holds the label."""
    from scdrugmap._cohort import encode

    y = encode(labels)
    held = np.where(
        y == 1,
        np.isin(text, [SENSITIVE, f"{RESISTANT}|{SENSITIVE}"]),
        np.isin(text, [RESISTANT, f"{RESISTANT}|{SENSITIVE}"]),
    )
    for i, name in enumerate(names):
        mine = known & (y >= 0) & (group == name)
        if mine.any():
            ax.annotate(f"{held[mine].mean():.0%}", (1.015, i), va="center", fontsize="small")
