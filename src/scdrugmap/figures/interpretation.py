"""Figures of interpretation, over plain tables: volcano, ranked attributions, heat map, waterfall, dots, curves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scdrugmap._errors import InputError
from scdrugmap.figures import axes as _axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GREY = "#bdbdbd"
#: Order and look of the curves of deletion and insertion.
CURVES = {
    "attribution": ("-", "o", _axes.PALETTE[0], "named genes"),
    "expression": ("--", "s", _axes.PALETTE[1], "most expressed genes"),
    "matched": (":", "^", _axes.PALETTE[2], "random, matched in expression"),
    "random": ("-.", "D", _axes.PALETTE[3], "random genes"),
}


def spread(places: np.ndarray, gap: float, low: float, high: float) -> np.ndarray:
    """Move places apart until neighbours are at least ``gap`` from each other, as little as that needs.

    Parameters
    ----------
    places
        ``(n,)``.
    gap
        Least distance; smaller where there is no room.
    low, high
        Bounds.

    Examples
    --------
    >>> spread(np.array([0.5, 0.5]), 0.2, 0.0, 1.0).tolist()
    [0.4, 0.6]
    """
    n = len(places)
    if n < 2:
        return np.clip(places, low, high)
    gap = min(gap, (high - low) / (n - 1))
    order = np.argsort(places, kind="stable")
    # Without the gaps the order must not fall: pool what violates it at its mean.
    flat = places[order] - gap * np.arange(n)
    blocks: list[list[float]] = []
    for value in flat:
        blocks.append([float(value), 1.0])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            b, a = blocks.pop(), blocks.pop()
            blocks.append([(a[0] * a[1] + b[0] * b[1]) / (a[1] + b[1]), a[1] + b[1]])
    level = np.concatenate([[v] * int(k) for v, k in blocks])
    out = np.empty(n)
    out[order] = np.clip(level, low, high - gap * (n - 1)) + gap * np.arange(n)
    return out


def volcano(ax: Axes | None, table: pd.DataFrame, *, q: float, n_labels: int) -> Axes:
    """Draw effects against evidence; labels stand in two columns beside the points, so that none covers another.

    Parameters
    ----------
    ax
        Axes, or ``None`` for new ones.
    table
        Of :func:`scdrugmap.tl.biomarkers`.
    q
        Genes below it are coloured.
    n_labels
        Genes to name.
    """
    tested = table["p"].notna().any()
    shown = table[table["p"].notna() if tested else table["log2_fc"].notna()]
    if not len(shown):
        raise InputError("adata.uns['biomarkers']", "no effect", "one or more", "see the warnings of sd.tl.biomarkers.")
    x = shown["log2_fc"].to_numpy(dtype=float)
    most = shown[["detection_resistant", "detection_sensitive"]].max(axis=1).to_numpy(dtype=float)
    y = -np.log10(np.maximum(shown["p"].to_numpy(dtype=float), 1e-300)) if tested else most
    called = (shown["q"] < q).to_numpy() if tested else np.zeros(len(shown), dtype=bool)
    ax = _axes.new_axes(ax, (6.4, 4.2))
    ax.scatter(x[~called], y[~called], s=9, color=GREY, linewidths=0, rasterized=len(x) > 5000)
    for side, colour, marker, name in (
        (1, _axes.RESISTANT, "^", "higher in resistant"), (-1, _axes.SENSITIVE, "v", "higher in sensitive")
    ):  # fmt: skip
        part = called & (np.sign(x) == side)
        ax.scatter(x[part], y[part], s=20, color=colour, marker=marker, linewidths=0, label=f"{name} ({part.sum()})")
    flagged = shown["confounded"].to_numpy(dtype=bool) & called
    if flagged.any():
        ax.scatter(
            x[flagged], y[flagged], s=46, facecolors="none", edgecolors="black", linewidths=0.6, label="confounded"
        )
    wide = float(np.abs(x).max()) or 1.0
    top = float(y.max()) or 1.0
    ax.set(xlim=(-1.9 * wide, 1.9 * wide), ylim=(-0.04 * top, 1.12 * top))
    ax.axvline(0, color="#666666", lw=0.6)
    strength = np.where(np.isfinite(shown["t"].to_numpy(dtype=float)), np.abs(shown["t"]), -1) if tested else np.abs(x)
    named = np.argsort(-strength, kind="stable")[:n_labels]
    for side in (1, -1):
        own = named[np.sign(x[named]) == side]
        for i, place in zip(own, spread(y[own], 0.062 * top, 0, 1.08 * top), strict=True):
            ax.annotate(
                str(shown["gene"].iloc[i]), (x[i], y[i]), (side * 1.3 * wide, place), fontsize=7, va="center",
                ha="left" if side > 0 else "right", annotation_clip=False,
                arrowprops={"arrowstyle": "-", "color": "#888888", "lw": 0.4, "shrinkA": 0, "shrinkB": 2},
            )  # fmt: skip
    n = shown[["n_resistant", "n_sensitive"]].iloc[0].tolist()
    ax.set_xlabel("log2 fold change (positive = higher in resistant)")
    ax.set_ylabel("−log10 p over samples" if tested else "share of cells (no p value: too few samples, or confounded)")
    ax.set_title(f"{n[0]} resistant and {n[1]} sensitive samples", fontsize=9)
    if called.any():
        ax.legend(fontsize=7, frameon=False, loc="upper center", ncols=3, bbox_to_anchor=(0.5, -0.16))
    _axes.clean(ax)
    return ax


def ranked(ax: Axes | None, table: pd.DataFrame, means: np.ndarray, *, title: str) -> Axes:
    """Draw one line per gene: its interval over samples, and a dot for each sample, none on top of another.

    Parameters
    ----------
    ax
        Axes, or ``None`` for new ones.
    table
        Rows of ``gene, attribution, low, high``, the first on top.
    means
        ``(genes, samples)`` in the order of the table.
    title
        Says what the values are of.
    """
    n = len(table)
    ax = _axes.new_axes(ax, (5.6, 1.2 + 0.27 * n))
    places = np.arange(n)[::-1]
    for place, row, values in zip(places, table.itertuples(), means, strict=True):
        colour = _axes.RESISTANT if row.attribution > 0 else _axes.SENSITIVE
        ax.scatter(values, place + beeswarm(values, means), s=13, color=colour, alpha=0.75, linewidths=0)
        ax.plot([row.low, row.high], [place, place], color="black", lw=1)
        ax.plot(row.attribution, place, marker="|", color="black", ms=9, mew=1.6)
    ax.axvline(0, color="#666666", lw=0.7)
    ax.set_yticks(places, table["gene"], fontsize=8)
    ax.set_ylim(-0.7, n - 0.3)
    ax.set_xlabel("attribution to the log-odds of resistant (dots: samples; bar: 95 % interval)", fontsize=8)
    ax.set_title(title, fontsize=9)
    _axes.clean(ax)
    return ax


def beeswarm(values: np.ndarray, scale: np.ndarray, width: float = 0.36) -> np.ndarray:
    """Offsets that keep equal values apart: the n-th of a bin steps to the n-th place around the line.

    Examples
    --------
    >>> beeswarm(np.array([1.0, 1.0]), np.array([0.0, 2.0])).tolist()
    [0.0, 0.12]
    """
    span = float(np.ptp(scale)) or 1.0
    bins = np.round(values / span * 60).astype(np.int64)
    rank = pd.Series(bins).groupby(bins).cumcount().to_numpy()
    step = np.where(rank % 2, 1, -1) * ((rank + 1) // 2)
    return np.clip(step * 0.12, -width, width)


def heat(ax: Axes | None, genes: list[str], samples: list[str], values: np.ndarray) -> Axes:
    """Draw genes by samples.

    Parameters
    ----------
    ax
        Axes, or ``None`` for new ones.
    genes, samples
        Names of rows and columns.
    values
        ``(genes, samples)``.
    """
    ax = _axes.new_axes(ax, (2.4 + 0.32 * len(samples), 1.6 + 0.26 * len(genes)))
    most = float(np.nanmax(np.abs(values))) or 1.0
    image = ax.imshow(values, cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto")
    ax.set_xticks(range(len(samples)), samples, fontsize=7, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(genes)), genes, fontsize=8)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.figure.colorbar(image, ax=ax, label="attribution (positive = towards resistant)", shrink=0.8)
    return ax


def deletion(ax: Axes | None, curves: pd.DataFrame) -> Axes:
    """Draw how far a predictor moves as genes are deleted, named ones against random ones.

    Parameters
    ----------
    ax
        Axes, or ``None`` for new ones.
    curves
        ``curve, genes, k, change`` of an attribution report.
    """
    ax = _axes.new_axes(ax, (5.2, 3.4))
    table = curves[curves["curve"] == "deletion"]
    for name, (line, marker, colour, label) in CURVES.items():
        part = table[table["genes"] == name].sort_values("k")
        ax.plot(part["k"], part["change"], ls=line, marker=marker, ms=4, color=colour, label=label)
    ax.set_xscale("log")
    ticks = sorted(table["k"].unique())
    ax.set_xticks(ticks, [str(t) for t in ticks])
    ax.minorticks_off()
    ax.set(xlabel="genes deleted", ylabel="mean change of the log-odds", ylim=(0, None))
    _axes.legend(ax)
    _axes.clean(ax)
    return ax


def waterfall(ax: Axes | None, table: pd.DataFrame, *, kind: str) -> Axes:
    """Draw the mean change of the log-odds per gene, ordered, with intervals over samples.

    Parameters
    ----------
    ax
        Axes, or ``None`` for new ones.
    table
        Of ``uns["perturbation_ranking"]``.
    kind
        What was done to the genes.
    """
    ax = _axes.new_axes(ax, (max(3.6, 1.4 + 0.3 * len(table)), 3.6))
    value = table["delta_logit"].to_numpy(dtype=float)
    place = np.arange(len(value))
    colours = np.where(value > 0, _axes.RESISTANT, _axes.SENSITIVE)
    bars = ax.bar(place, value, color=colours, width=0.78)
    for bar, v in zip(bars, value, strict=True):
        bar.set_hatch("" if v > 0 else "////")
        bar.set_edgecolor("white")
    half = table[["low", "high"]].to_numpy(dtype=float)
    known = np.isfinite(half).all(axis=1)
    ax.vlines(place[known], half[known, 0], half[known, 1], color="black", lw=0.9)
    unusual = table["null_percentile"].to_numpy(dtype=float)
    for i in np.flatnonzero((unusual <= 2.5) | (unusual >= 97.5)):
        ends = half[i] if known[i] else np.array([value[i], value[i]])
        at = max(ends[1], 0) if value[i] > 0 else min(ends[0], 0)
        ax.annotate("*", (i, at), ha="center", va="bottom" if value[i] > 0 else "top", fontsize=10)
    ax.axhline(0, color="#666666", lw=0.7)
    ax.margins(y=0.12)
    ax.set_xticks(place, table["gene"], rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
    ax.set_ylabel("change of the log-odds\n(positive = more resistant)")
    _axes.title(ax, f"{kind}, predicted by the model; * outside 95 % of matched random genes")
    _axes.clean(ax)
    return ax


def dots(ax: Axes | None, table: pd.DataFrame, *, q: float) -> Axes:
    """Draw the score of each set with its interval; the size is the number of genes, a full dot is below ``q``.

    Parameters
    ----------
    ax
        Axes, or ``None`` for new ones.
    table
        Of :func:`scdrugmap.tl.pathways`, the first row on top.
    q
        False-discovery rate.
    """
    n = len(table)
    names = [_axes.wrap(str(s).removeprefix("HALLMARK_").replace("_", " ").lower() if str(s).isupper() else str(s), 34)
             for s in table["set"]]  # fmt: skip
    ax = _axes.new_axes(ax, (6.2, 1.3 + 0.3 * n))
    place = np.arange(n)[::-1]
    score = table["score"].to_numpy(dtype=float)
    colours = np.where(score > 0, _axes.RESISTANT, _axes.SENSITIVE)
    sure = (table["q"] < q).to_numpy(dtype=bool)
    area = 18 + 90 * table["n_genes"].to_numpy(dtype=float) / max(float(table["n_genes"].max()), 1)
    ax.hlines(place, table["low"], table["high"], color="#888888", lw=1)
    ax.scatter(
        score, place, s=area, c=np.where(sure, colours, "white"), edgecolors=colours.tolist(), linewidths=1.2, zorder=3
    )
    ax.axvline(0, color="#666666", lw=0.7)
    ax.set_yticks(place, names, fontsize=8)
    ax.set_ylim(-0.7, n - 0.3)
    ax.set_xlabel("score (positive = with resistance)")
    for share in (table["n_genes"].min(), table["n_genes"].max()):
        size = 18 + 90 * share / max(float(table["n_genes"].max()), 1)
        ax.scatter([], [], s=size, facecolors="white", edgecolors="black", label=f"{int(share)} genes")
    ax.scatter([], [], s=40, color="black", label=f"q < {q:g}")
    _axes.legend(ax)
    _axes.clean(ax)
    return ax


def read_table(cells: Any, key: str, tool: str) -> pd.DataFrame:
    """Return a table of ``uns``.

    Raises
    ------
    MissingKeyError
        If the tool was not called.
    """
    from scdrugmap._errors import MissingKeyError

    table = cells.uns.get(key)
    if not isinstance(table, pd.DataFrame) or not len(table):
        raise MissingKeyError("adata", f"no uns[{key!r}]", f"the table of sd.tl.{tool}", f"call sd.tl.{tool} first.")
    return table


def positive(argument: str, value: Any) -> int:
    """Return a number of things to show.

    Raises
    ------
    InputError
        If it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise InputError(argument, value, "a number of at least 1", "leave it out.")
    return int(value)
