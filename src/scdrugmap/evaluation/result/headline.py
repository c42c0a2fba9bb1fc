"""What a benchmark says, in a few sentences: the best model, the floor, the best baseline, and how sure that is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from scdrugmap._keys import SAME_SAMPLE
from scdrugmap._metrics import METRICS
from scdrugmap.figures.axes import floor_name
from scdrugmap.figures.results import Results

#: Metrics that a headline may be about, the first that the result holds.
PREFERRED = ("f1_macro", "auroc", "f1")
WAYS = ["setting", "split", "by"]
WHO = ["model", "strategy", "head"]


def headlines(result: Results, summary: pd.DataFrame, comparisons: pd.DataFrame) -> list[dict[str, Any]]:
    """Return for each way of dividing the cells a headline, a verdict and whether that is a warning.

    Parameters
    ----------
    result
        The benchmark.
    summary
        ``result.summary()``.
    comparisons
        Rows with ``model``, ``baseline``, ``split``, ``category``, ``difference`` and ``p (Holm)``; empty if there are none.
    """
    metric = next((m for m in PREFERRED if m in set(summary["metric"])), None)
    if metric is None:
        return []
    label = METRICS[metric].label
    named = result.contenders.set_index(WHO)
    out = []
    for (setting, split, by), rows in summary[summary["metric"] == metric].groupby(WAYS, sort=False):
        where = f"{setting}, split by {split}" + (f", by {by}" if by else "")
        mean = rows.groupby(WHO, sort=False).agg(value=("value", "mean"), floor=("floor", "mean"), n=("value", "count"))
        mean = mean[mean["n"] > 0].assign(label=lambda m: named["label"].reindex(m.index))
        models = mean[mean.index.get_level_values("strategy") != "baseline"]
        simple = mean[
            (mean.index.get_level_values("strategy") == "baseline") & (mean.index.get_level_values("head") != "")
        ]
        if models.empty:
            out.append({"where": where, "text": "No model could be evaluated.", "verdict": "", "warn": True})
            continue
        key = models["value"].idxmax()
        best = models.loc[key]
        mine = rows.set_index(WHO).loc[[key]]
        text = f"{best['label']} is the best model: {label} {best['value']:.2f}"
        text += _interval(mine) if len(mine) == 1 else f" (mean of {int(best['n'])} categories)"
        text += f"; {floor_name(result, metric)} {best['floor']:.2f}"
        if len(simple):
            first = simple.loc[simple["value"].idxmax()]
            text += f"; the best simple baseline, {first['label']}, {first['value']:.2f}"
        verdict, warn = _verdict(best, mine, simple, comparisons, f"{setting}, by {split}", floor_name(result, metric))
        if split == "cell":
            verdict, warn = f"{SAME_SAMPLE.capitalize()}: this says little about a new sample. {verdict}", True
        out.append({"where": where, "text": text + ".", "verdict": verdict, "warn": warn})
    return out


def _interval(rows: pd.DataFrame) -> str:
    low, high = float(rows["ci_low"].iloc[0]), float(rows["ci_high"].iloc[0])
    return "" if np.isnan(low) else f" [{low:.2f}, {high:.2f}]"


def _verdict(
    best: pd.Series, mine: pd.DataFrame, simple: pd.DataFrame, comparisons: pd.DataFrame, split: str, floor: str
) -> tuple[str, bool]:
    """Say whether the best model is better than the floor, and than the best simple baseline."""
    if not best["value"] > best["floor"]:
        return f"Not better than the floor ({floor}): do not use these calls.", True
    unsure = mine["ci_low"].notna() & ~(mine["ci_low"] > mine["floor"])
    n = int(mine["value"].notna().sum())
    if n == 1 and unsure.any():
        return "The interval reaches down to the floor: this may be no better than chance.", True
    if n == 1 and mine["ci_low"].isna().all():
        return "Above the floor, but too few groups for an interval: how sure that is, is not known.", True
    above = int((mine["value"] > mine["floor"]).sum())
    text = "Above the floor" if n == 1 else f"Above the floor in {above} of {n} categories"
    warn = above < n
    if simple.empty:
        return text + "; no simple baseline took part, so what a large model adds is not known.", True
    first = simple.loc[simple["value"].idxmax(), "label"]
    if comparisons.empty or "p (Holm)" not in comparisons:
        return text + ".", warn
    pairs = comparisons[
        (comparisons["model"] == best["label"]) & (comparisons["baseline"] == first) & (comparisons["split"] == split)
    ]
    sure = int(((pairs["difference"] > 0) & (pairs["p (Holm)"] < 0.05)).sum())
    if sure == 0:
        return text + f"; not shown to be better than the simple baseline {first}.", True
    return (
        text + f"; better than the simple baseline {first} (p < 0.05, Holm) in {sure} of {len(pairs)} comparisons.",
        warn,
    )
