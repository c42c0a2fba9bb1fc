"""Figures of tables: few-shot curves, gene coverage, leakage."""

from __future__ import annotations

import os
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scdrugmap._errors import InputError, InputTypeError, MissingKeyError
from scdrugmap.figures import axes as _axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEVELS = {"ok": ("#009E73", "o", "ok"), "note": ("#E69F00", "^", "note"), "leak": ("#b2182b", "X", "LEAK")}


def few_shot_curve(
    table: pd.DataFrame,
    *,
    metric: str = "auroc",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> Axes | None:
    """Draw how a score grows with the number of labels of the target study.

    Parameters
    ----------
    table
        From :func:`scdrugmap.tl.few_shot_curve`; a column ``model``, where there is one, gives one line each.
    metric
        A metric of the table.
    ax
        Axes to draw into.
    show
        Show the figure.
    save
        File to save the figure to.

    Returns
    -------
    matplotlib.axes.Axes or None
        The axes, or ``None`` with ``show=True``. Points are repeats, the line is their mean; zero shots is transfer
        from the other studies alone. The title warns where shots and test cells share samples.

    Raises
    ------
    MissingKeyError, InputError
        If a column or the metric is missing, or the file cannot be written.

    Examples
    --------
    >>> import pandas as pd, scdrugmap as sd
    >>> table = pd.DataFrame(
    ...     {"n_shots": [0, 4], "repeat": [0, 0], "metric": "auroc", "value": [0.6, 0.7], "unit": "cell"}
    ... )
    >>> ax = sd.pl.few_shot_curve(table)
    """
    _axes.check_table(table)
    _need(table, ("n_shots", "metric", "value"), "sd.tl.few_shot_curve")
    rows = table[(table["metric"] == metric) & table["value"].notna()]
    if rows.empty:
        raise InputError("metric", metric, f"one of {', '.join(map(str, pd.unique(table['metric'])))}", "choose one.")
    ax = _axes.new_axes(ax, (4.6, 3.2))
    shots = sorted(rows["n_shots"].unique())
    place = {n: i for i, n in enumerate(shots)}
    lines: list[tuple[Any, pd.DataFrame]] = (
        list(rows.groupby("model", sort=False)) if "model" in rows else [("mean of the repeats", rows)]
    )
    for i, (name, mine) in enumerate(lines):
        colour = _axes.PALETTE[i % len(_axes.PALETTE)]
        mean = mine.groupby("n_shots")["value"].mean()
        ax.plot([place[n] for n in mean.index], mean, color=colour, marker="o", ms=4, lw=1.6, label=str(name))
        ax.scatter(mine["n_shots"].map(place), mine["value"], s=9, color=colour, alpha=0.45, lw=0)
    if metric in ("auroc", "balanced_accuracy"):
        ax.axhline(0.5, color=_axes.FLOOR, ls="--", lw=1.1, label=_axes.CHANCE_NAME)
    unit = str(rows["unit"].iloc[0]) if "unit" in rows else "cell"
    ax.set_xticks(range(len(shots)), [f"{n:g}" for n in shots])
    ax.set(
        xlabel=f"labelled {unit}s of the target per class", ylabel=metric.replace("_", " ").replace("auroc", "AUROC")
    )
    shared = float(rows["shared_samples"].max()) if "shared_samples" in rows else 0.0
    if shared > 0:
        _axes.title(ax, f"up to {shared:.0%} of the test cells share a sample with a shot")
    ax.legend(fontsize="x-small", frameon=False)
    _axes.clean(ax)
    return _axes.finish(ax, show=show, save=save)


def gene_coverage(
    table: pd.DataFrame,
    *,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> Axes | None:
    """Draw what each model sees of the data: shares of its vocabulary, of the genes, and of the counts.

    Parameters
    ----------
    table
        From :func:`scdrugmap.pp.gene_coverage`.
    ax
        Axes to draw into.
    show
        Show the figure.
    save
        File to save the figure to.

    Returns
    -------
    matplotlib.axes.Axes or None
        The axes, or ``None`` with ``show=True``. A model whose checkpoint is not on the machine says so.

    Raises
    ------
    MissingKeyError, InputError
        If a column is missing, the table is empty, or the file cannot be written.

    Examples
    --------
    >>> import pandas as pd, scdrugmap as sd
    >>> table = pd.DataFrame(
    ...     {"model": ["scGPT"], "of_vocabulary": [0.3], "of_genes": [0.9], "of_counts": [0.97], "note": [""]}
    ... )
    >>> ax = sd.pl.gene_coverage(table)
    """
    _axes.check_table(table)
    columns = {"of_counts": "of the counts", "of_genes": "of the genes", "of_vocabulary": "of the vocabulary"}
    _need(table, ("model", *columns), "sd.pp.gene_coverage")
    if table.empty:
        raise InputError("table", "no model", "one or more", "pass models= to sd.pp.gene_coverage.")
    ax = _axes.new_axes(ax, (5.6, float(np.clip(1.3 + 0.34 * len(table), 2, 24))))
    at = np.arange(len(table))
    for i in at:
        values = table[list(columns)].iloc[i].astype(float)
        if values.isna().all():
            note = str(table["note"].iloc[i]) if "note" in table else ""
            ax.annotate(
                textwrap.shorten("n/a " + note, 60), (0.01, i), va="center", fontsize="x-small", color="#555555"
            )
        elif values.notna().sum() > 1:
            ax.hlines(i, values.min(), values.max(), color="#bbbbbb", lw=1.2, zorder=1)
    for (column, label), colour, marker in zip(columns.items(), _axes.PALETTE, "oD^", strict=False):
        ax.scatter(table[column].astype(float), at, s=34, color=colour, marker=marker, label=f"share {label}", zorder=2)
    ax.set_yticks(at, table["model"].astype(str), fontsize="small")
    ax.set(xlabel="share that model and data have in common", xlim=(-0.02, 1.02), ylim=(len(at) - 0.5, -0.5))
    _axes.legend(ax)
    _axes.clean(ax)
    return _axes.finish(ax, show=show, save=save)


def leakage(
    report: Any,
    *,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> Axes | None:
    """Draw the findings of a leakage report as a list with marks.

    Parameters
    ----------
    report
        From :func:`scdrugmap.tl.leakage_report`.
    ax
        Axes to draw into.
    show
        Show the figure.
    save
        File to save the figure to.

    Returns
    -------
    matplotlib.axes.Axes or None
        The axes, or ``None`` with ``show=True``: a green circle where nothing was found, an orange triangle where
        something limits what can be learnt, a red cross where a random split of cells gives answers away.

    Raises
    ------
    InputTypeError
        For anything but a report.
    InputError
        If the file cannot be written.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> adata = sd.datasets.simulate(n_studies=2, n_cells=200, n_genes=100, rng=0)
    >>> ax = sd.pl.leakage(sd.tl.leakage_report(adata))
    """
    findings = getattr(report, "findings", None)
    if not isinstance(findings, pd.DataFrame):
        raise InputTypeError("report", type(report).__name__, "a LeakageReport", "pass sd.tl.leakage_report(adata).")
    width = 6.9 if ax is None else _axes.new_axes(ax, (0, 0)).get_figure(root=True).get_figwidth()  # type: ignore[union-attr]
    line = 1.2 * _axes.points("small")
    # Marks and words stand left of the findings: three letters and a half line of room.
    indent = 6.5 * _axes.points("small") / 72
    n_letters = _axes.letters(0.92 * width - indent, "small")
    texts = [textwrap.wrap(f"{row.check}: {row.finding}", n_letters) or [""] for row in findings.itertuples()]
    heights = np.array([len(t) + 0.7 for t in texts])
    top = np.r_[0, np.cumsum(heights)[:-1]]
    ax = _axes.new_axes(ax, (6.9, float(np.clip(0.5 + line / 72 * heights.sum(), 1.5, 26))))
    look: dict[str, Any] = {"textcoords": "offset points", "va": "top", "fontsize": "small"}
    for y, lines, level in zip(top, texts, findings["level"], strict=True):
        colour, marker, word = LEVELS[str(level)]
        ax.plot(0, y, marker=marker, color=colour, ms=6, ls="", transform=_below(ax, line / 2))
        ax.annotate(word, (0, y), xytext=(8, 0), color=colour, weight="bold", **look)
        ax.annotate("\n".join(lines), (0, y), xytext=(72 * indent, 0), **look)
    ax.set(xlim=(-0.02, 1), ylim=(heights.sum(), -0.4), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    n = int((findings["level"] == "leak").sum())
    ax.set_title(f"{n} of {len(findings)} checks found a leak", fontsize="medium", loc="left")
    return _axes.finish(ax, show=show, save=save)


def _below(ax: Axes, points: float) -> Any:
    """Coordinates of the data, so many points further down."""
    from matplotlib.transforms import ScaledTranslation

    figure: Any = ax.get_figure(root=True)
    return ax.transData + ScaledTranslation(0, -points / 72, figure.dpi_scale_trans)


def _need(table: pd.DataFrame, columns: tuple[str, ...], maker: str) -> None:
    for column in columns:
        if column not in table:
            raise MissingKeyError(
                "table", column, f"columns of the table ({', '.join(map(str, table))})", f"pass what {maker} returned."
            )
