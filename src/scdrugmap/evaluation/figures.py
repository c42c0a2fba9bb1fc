"""The figures that every report holds: values with intervals over the floor, and calibration."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scdrugmap.evaluation.metrics import N_BINS
from scdrugmap.evaluation.summary import CONTENDER

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from scdrugmap.evaluation.result import BenchmarkResult

#: Okabe and Ito's colours, told apart by most colour-blind readers.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
RULES = ("all_sensitive", "majority", "random")


def draw_bars(summary: pd.DataFrame, labels: pd.Series, ax: Axes, title: str = "") -> Axes:
    """Draw one metric of one setting: a bar per model and category, its interval, the floor of each category.

    Parameters
    ----------
    summary
        Rows of ``BenchmarkResult.summary`` for one metric, setting and split.
    labels
        Label of each row.
    ax
        Where to draw.
    title
        Title of the axes.
    """
    rows = summary.assign(label=labels, row=summary["category"].where(summary["by"] == "", summary["by"] + ": " + summary["category"]))
    models, categories = list(dict.fromkeys(rows["label"])), list(dict.fromkeys(rows["row"]))
    width = 0.8 / max(len(models), 1)
    for i, model in enumerate(models):
        mine = rows[rows["label"] == model].set_index("row").reindex(categories)
        x = np.arange(len(categories)) + (i - (len(models) - 1) / 2) * width
        value = mine["value"].to_numpy(dtype=float)
        baseline = set(mine["strategy"].dropna()) == {"baseline"}
        ax.bar(x, value, width * 0.92, color=COLOURS[i % len(COLOURS)], alpha=0.45 if baseline else 0.95, label=model)
        bounds = mine[["ci_low", "ci_high"]].to_numpy(dtype=float).T
        ax.vlines(x, *np.where(np.isnan(bounds), value, bounds), color="0.2", lw=1)
        for where in x[np.isnan(value)]:
            ax.text(where, 0.01, "n/a", rotation=90, ha="center", va="bottom", fontsize=6, color="0.4")
    floor = rows.groupby("row", sort=False)["floor"].first().reindex(categories).to_numpy(dtype=float)
    for i, level in enumerate(floor):
        ax.plot([i - 0.45, i + 0.45], [level, level], color="0.1", ls=(0, (3, 2)), lw=1, label="call all sensitive" if i == 0 else None)
    ax.set_xticks(np.arange(len(categories)), categories, rotation=30 if len(categories) > 3 else 0, ha="right" if len(categories) > 3 else "center")
    ax.set(title=title, ylabel=str(rows["metric"].iloc[0]))
    ax.set_ylim(min(0, float(np.nanmin([0, *rows["ci_low"], *rows["value"]]))), 1.02)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def calibration_table(result: BenchmarkResult) -> pd.DataFrame:
    """Return mean score, share of sensitive cells and number of cells per probability bin and contender."""
    units = result.units[result.units["setting"] != "probe"]
    labels = result.contenders.set_index(CONTENDER)["label"]
    name = {int(u): labels[k] for u, k in zip(units["unit"], zip(*(units[c] for c in CONTENDER), strict=True), strict=True)}
    p = result.predictions
    frame = pd.DataFrame({"model": p["unit"].map(name), "score": p["score"].astype(float), "y": p["y"]})
    frame["bin"] = np.minimum((frame["score"] * N_BINS).astype(int), N_BINS - 1)
    grouped = frame.groupby(["model", "bin"], sort=False)
    return grouped.agg(score=("score", "mean"), share=("y", "mean"), n=("y", "size")).reset_index().sort_values(["model", "bin"])


def draw_calibration(result: BenchmarkResult, ax: Axes, title: str = "calibration of test cells") -> Axes:
    """Draw how often cells with a given score are sensitive; the diagonal is what the score promises."""
    table = calibration_table(result)
    models = [m for m in result.contenders["label"] if m not in RULES]
    ax.plot([0, 1], [0, 1], color="0.6", ls="--", lw=1)
    for i, model in enumerate(models):
        mine = table[table["model"] == model]
        ax.plot(mine["score"], mine["share"], color=COLOURS[i % len(COLOURS)], lw=1.2, label=model)
        ax.scatter(mine["score"], mine["share"], s=4 + 60 * mine["n"] / table["n"].max(), color=COLOURS[i % len(COLOURS)])
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="predicted P(sensitive)", ylabel="share sensitive", title=title)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return ax
