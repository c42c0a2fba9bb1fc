"""What every figure shares: colours, the floor, and the end of a plotting function."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pandas as pd

from scdrugmap._errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from scdrugmap.evaluation import BenchmarkResult

SENSITIVE, RESISTANT, FLOOR = "#2166ac", "#b2182b", "#555555"
#: Okabe and Ito's palette, which colour-blind readers can tell apart.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8c6d31", "#999999", "#332288", "#117733")


def finish(ax: Any, *, show: bool | None, save: str | os.PathLike[str] | None) -> Any:
    """Save, show, or return the axes, as scanpy's plotting functions do."""
    first = ax if not isinstance(ax, (list, tuple)) else ax[0]
    if save is not None:
        first.figure.savefig(save, bbox_inches="tight", dpi=150)
    if show:
        import matplotlib.pyplot as plt

        plt.show()
        return None
    return ax


def new_axes(ax: Axes | None, size: tuple[float, float], **options: Any) -> Axes:
    """Return the given axes or new ones."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=size, layout="constrained", **options)[1]


def colours(names: list[str]) -> dict[str, str]:
    """Give each name a colour; more than the palette holds repeat."""
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(names)}


def scores(result: BenchmarkResult, metric: str, level: str, models: list[str] | None, **options: Any) -> pd.DataFrame:
    """Return the summary of one metric with columns ``label`` and ``place`` for the figure.

    Raises
    ------
    UnknownNameError
        For a metric or model that the result does not hold.
    """
    table = result.summary(metrics=metric, level=level, **options)
    table = table[table["metric"] == metric]
    if table.empty:
        raise UnknownNameError("metric", metric, pd.unique(result.table["metric"]))
    labels = result.contenders.set_index(["model", "strategy", "head"])["label"]
    table = table.assign(
        label=[labels[key] for key in zip(table["model"], table["strategy"], table["head"], strict=True)],
        place=table["category"].where(table["by"] == "", table["category"].astype(str)),
    )
    if models is not None:
        for name in models:
            if name not in set(table["label"]) | set(table["model"]):
                raise UnknownNameError("models", name, pd.unique(table["label"]))
        table = table[table["label"].isin(models) | table["model"].isin(models)]
    return table


def split_note(table: pd.DataFrame) -> str:
    """Return how the cells were divided, with the warning that a split by cells needs."""
    settings = ", ".join(dict.fromkeys(table["setting"] + ", split by " + table["split"]))
    leak = " (cells of one sample on both sides)" if (table["split"] == "cell").any() else ""
    return settings + leak


def place_name(place: str) -> str:
    """Return the category's name in a figure; the empty one holds all cells."""
    return place or "all cells"


def require_predictions(result: BenchmarkResult) -> None:
    """Raise if the result holds no prediction to draw."""
    if len(result.predictions) == 0:
        raise InputError(
            "result", "no predictions", "at least one evaluated category", "result.table['reason'] says why none was."
        )
