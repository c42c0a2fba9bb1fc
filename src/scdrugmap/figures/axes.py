"""What every figure shares: colours, the floor, and the end of a plotting function."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scdrugmap._errors import InputError, InputTypeError, UnknownNameError
from scdrugmap._keys import CLASS_COLOURS, SAME_SAMPLE
from scdrugmap._metrics import find_metric
from scdrugmap.figures.results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes


RESISTANT, SENSITIVE = CLASS_COLOURS
FLOOR = "#333333"
#: Six colours of Okabe and Ito and two darker ones of Tol, which colour-blind readers can tell apart.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#332288", "#661100")
GREYS = ("#595959", "#8c8c8c", "#bdbdbd")
#: In grey print, where several colours look alike, shapes and dashes tell the models apart.
MARKERS = "o^DvPX<>"
DASHES: tuple[Any, ...] = ("-", (0, (6, 1.2)), (0, (5, 1.2, 1.2, 1.2)), (0, (1.6, 1)))
#: Narrower figures, of one column of a page, have no room beside a round plot.
ONE_COLUMN = 4.5
FLOOR_NAME = "call all sensitive"
CHANCE_NAME = "one score for all cells"
#: More categories, or more bars, are drawn as rows.
MANY_PLACES, MANY_BARS = 12, 64
CATEGORY = ["setting", "split", "by", "category"]
CONTENDER = ["model", "strategy", "head"]


@dataclass(frozen=True)
class Style:
    """How one contender looks: shapes and dashes serve grey print, hatches those of one colour."""

    colour: str
    hatch: str
    line: Any
    marker: str


def new_axes(ax: Axes | None, size: tuple[float, float], **options: Any) -> Axes:
    """Return the given axes or new ones.

    Raises
    ------
    InputError
        If ``ax`` is not matplotlib axes.
    """
    from matplotlib.axes import Axes as Kind

    if ax is None:
        import matplotlib.pyplot as plt

        return plt.subplots(figsize=size, layout="constrained", **options)[1]
    if not isinstance(ax, Kind):
        raise InputError("ax", type(ax).__name__, "matplotlib axes", "fig, ax = plt.subplots(); pass ax=ax.")
    return ax


def given_axes(ax: Axes | Sequence[Axes], n: int) -> list[Axes]:
    """Return the axes of a figure of several panels.

    Raises
    ------
    InputError
        If there are not as many as panels.
    """
    found = [new_axes(a, (0, 0)) for a in np.ravel(np.array(ax, dtype=object))]
    if len(found) != n:
        fix = f"fig, axes = plt.subplots(1, {n}); pass ax=axes." if n > 1 else "pass ax=ax."
        raise InputError("ax", f"{len(found)} axes", f"{n}, one for each panel", fix)
    return found


def new_square(
    ax: Axes | None,
    left: float,
    right: float,
    side: float = 3.1,
    below: float = 0.62,
    above: float = 0.62,
    **options: Any,
) -> Axes:
    """Return the given axes or new square ones, with room in inches for names around them and a legend on the right.

    A layout engine does not settle on axes of fixed aspect: each drawing would move them.
    """
    if ax is not None:
        return new_axes(ax, (0, 0))
    import matplotlib.pyplot as plt

    width, height = left + side + right, below + side + above
    figure = plt.figure(figsize=(width, height))
    return figure.add_axes((left / width, below / height, side / width, side / height), **options)


def finish(ax: Any, *, show: bool | None, save: str | os.PathLike[str] | None) -> Any:
    """Save and show the figure; return the axes unless it was shown.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    figure = (ax[0] if isinstance(ax, list) else ax).get_figure(root=True)
    if save is not None:
        path = Path(save)
        known = figure.canvas.get_supported_filetypes()
        if path.is_dir() or not path.parent.is_dir():
            raise InputError("save", str(path), "a file in a folder that exists", "pass for example 'figure.png'.")
        if path.suffix and path.suffix[1:].lower() not in known:
            raise InputError("save", str(path), f"one of {', '.join(sorted(known))}", "pass for example 'figure.png'.")
        import matplotlib as mpl

        dpi = mpl.rcParams["savefig.dpi"]
        figure.savefig(path, bbox_inches="tight", dpi=300 if dpi == "figure" else dpi)
    if show:
        import matplotlib.pyplot as plt

        plt.show()
        return None
    return ax


def legend(ax: Axes, apart: float = 1.02) -> None:
    """Write the legend beside the axes."""
    ax.legend(fontsize="x-small", frameon=False, loc="upper left", bbox_to_anchor=(apart, 1))


def round_legend(ax: Any, pad: float, handles: Sequence[Any], names: Sequence[str]) -> None:
    """Write the legend beyond the names around a circle: to the right, or below where the figure is narrow.

    Parameters
    ----------
    ax
        Polar axes.
    pad
        Points that the names take up beyond the circle.
    handles, names
        What the legend shows.
    """
    from matplotlib.transforms import ScaledTranslation

    figure = ax.get_figure(root=True)
    narrow = figure.get_figwidth() < ONE_COLUMN
    right, down = (0.0, pad / 72) if narrow else (pad / 72, 0.0)
    shift = ScaledTranslation(right, -down, figure.dpi_scale_trans)
    ax.legend(
        handles, names, fontsize="x-small", frameon=False, ncols=3 if narrow else 1, borderaxespad=0,
        loc="upper center" if narrow else "center left", bbox_to_anchor=(0.5, 0) if narrow else (1, 0.5),
        bbox_transform=ax.transAxes + shift,
    )  # fmt: skip


def points(size: str) -> float:
    """Return the height of letters of a named size, as the reader's settings have it."""
    from matplotlib.font_manager import FontProperties

    return float(FontProperties(size=size).get_size_in_points())


def letters(inches: float, size: str) -> int:
    """Return how many letters of a named size stand side by side."""
    return max(1, int(inches * 72 / (0.48 * points(size))))


def clean(ax: Axes) -> None:
    """Take away the upper and the right line."""
    ax.spines[["top", "right"]].set_visible(False)


def title(ax: Axes, text: str, pad: float | None = None) -> None:
    """Write a small title, in as many lines as the width of the axes asks for."""
    inches = ax.get_position().width * ax.get_figure(root=True).get_figwidth()  # type: ignore[union-attr]
    ax.set_title(textwrap.fill(text, max(26, letters(inches, "medium"))), fontsize="medium", pad=pad)


def styles(result: Results) -> dict[str, Style]:
    """Give each contender its look, the same in every figure: colours for models, greys for baselines."""
    out: dict[str, Style] = {}
    n_models = n_baselines = 0
    for row in result.contenders.itertuples():
        if row.strategy == "baseline":
            turn, i = divmod(n_baselines, len(GREYS))
            n_baselines += 1
            out[str(row.label)] = Style(GREYS[i], ("", "////", "....")[turn % 3], DASHES[(turn + 1) % 4], "s")
        else:
            turn, i = divmod(n_models, len(PALETTE))
            n_models += 1
            out[str(row.label)] = Style(PALETTE[i], ("", "////", "xxxx")[turn % 3], DASHES[(i + turn) % 4], MARKERS[i])
    return out


def check_result(result: Any) -> None:
    """Raise unless this is a benchmark result.

    Raises
    ------
    InputTypeError
        For anything else.
    """
    if not isinstance(result, Results):
        fix = "pass what sd.tl.benchmark returned, or BenchmarkResult.from_parquet(folder)."
        raise InputTypeError("result", type(result).__name__, "a BenchmarkResult", fix)


def check_table(table: Any) -> None:
    """Raise unless this is a data frame.

    Raises
    ------
    InputTypeError
        For anything else.
    """
    if not isinstance(table, pd.DataFrame):
        raise InputTypeError("table", type(table).__name__, "a data frame", "pass the table itself.")


def chosen(result: Results, models: str | Iterable[str] | None) -> pd.DataFrame:
    """Return the contenders to draw; calling all cells sensitive is drawn as the floor instead.

    Raises
    ------
    UnknownNameError
        For a model that the result does not hold.
    """
    known = result.contenders
    if models is None:
        models_only = known[known["model"] != "all_sensitive"]
        return models_only if len(models_only) else known
    names = [models] if isinstance(models, str) else list(models)
    for name in names:
        if name not in set(known["label"]) | set(known["model"]):
            raise UnknownNameError("models", name, pd.unique(known["label"]))
    return known[known["label"].isin(names) | known["model"].isin(names)]


def scores(
    result: Results, metric: str, level: str, models: str | Iterable[str] | None, **options: Any
) -> pd.DataFrame:
    """Return the summary of one metric with columns ``label``, ``place`` and a ``floor`` that is always known.

    Raises
    ------
    UnknownNameError
        For a metric, level or model that the result does not hold.
    """
    check_result(result)
    if level not in set(result.table["level"]):
        raise UnknownNameError("level", level, [str(v) for v in pd.unique(result.table["level"])])
    contenders = chosen(result, models)
    table = result.summary(metrics=metric, level=level, **options)
    if table["floor"].isna().any():
        # A contender that failed in a category has no floor of its own there; that of the one with most folds stands in.
        known = (
            table.sort_values("n_folds", ascending=False, kind="stable").groupby(CATEGORY, sort=False)["floor"].first()
        )
        table["floor"] = table["floor"].fillna(pd.Series(known.reindex(_keys(table, CATEGORY)).to_numpy(), table.index))
    table["place"] = _place_names(table)
    # Side by side stands what differs in the split alone; study2 comes before study10.
    first = table.drop_duplicates(["by", "category"])[["by", "category"]]
    columns = in_order(first, "by")
    first = first.iloc[
        sorted(
            range(len(first)), key=lambda i: (columns.index(first["by"].iloc[i]), natural(first["category"].iloc[i]))
        )
    ]
    rank = pd.Series(range(len(first)), index=_keys(first, ["by", "category"]))
    table = table.iloc[np.argsort(rank.reindex(_keys(table, ["by", "category"])).to_numpy(), kind="stable")]
    return table.merge(contenders, on=CONTENDER, how="inner")


def fold_values(result: Results, table: pd.DataFrame, metric: str, level: str) -> pd.DataFrame:
    """Return the defined values of single folds with the ``label`` and ``place`` of the summary."""
    folds = result.table[(result.table["metric"] == metric) & (result.table["level"] == level)]
    keys = [*CATEGORY, *CONTENDER]
    return folds[folds["value"].notna()].merge(table[[*keys, "label", "place"]], on=keys, how="inner")


def in_order(table: pd.DataFrame, column: str) -> list[str]:
    """Distinct values, in the order of the result."""
    return [str(v) for v in pd.unique(table[column])]


def natural(name: Any) -> list[tuple[int, float, str]]:
    """Key that sorts numbers inside names by value.

    Parameters
    ----------
    name
        Any name.

    Examples
    --------
    >>> sorted(["study10", "study2", "study1"], key=natural)
    ['study1', 'study2', 'study10']
    """
    parts = re.split(r"([0-9]+)", str(name))
    return [(0, float(p), "") if p.isdigit() else (1, 0.0, p.casefold()) for p in parts if p]


def many(n_places: int, n_labels: int) -> bool:
    """Whether so many categories or bars are drawn as rows, since side by side they would be hairlines."""
    return n_places > MANY_PLACES or (n_places > 3 and n_places * n_labels > MANY_BARS)


def rows_height(n_places: int, n_labels: int) -> float:
    """Inches that categories drawn as rows need."""
    return float(np.clip(1.3 + n_places * max(0.24, 0.06 * n_labels), 3, 26))


def floors(table: pd.DataFrame, places: Sequence[str]) -> np.ndarray:
    """Return the value of calling every cell sensitive, per place."""
    return table.drop_duplicates("place").set_index("place")["floor"].reindex(places).to_numpy(dtype=float)


def split_note(table: pd.DataFrame) -> str:
    """Return how the cells were divided, with the warning that a split by cells needs."""
    notes = dict.fromkeys(zip(table["setting"], table["split"], strict=True))
    return "; ".join(f"{a}, split by {b}" + (f" ({SAME_SAMPLE})" if b == "cell" else "") for a, b in notes)


def metric_label(result: Results, metric: str, level: str = "cell") -> str:
    """Return the metric's name in a figure, with its level and direction where they are not the usual ones."""
    record = find_metric(metric, result.metrics)
    extra = [f"{level}s"] * (level != "cell") + ["lower is better"] * (not record.higher_is_better)
    return record.label + (f" ({', '.join(extra)})" if extra else "")


def limits(result: Results, metric: str, values: np.ndarray, floor: np.ndarray) -> tuple[float, float]:
    """Axis limits that hold zero, every value and, unless it dwarfs them, the floor."""
    record = find_metric(metric, result.metrics)
    known = values[np.isfinite(values)]
    low, high = float(min(known.min(initial=0), 0)), float(known.max(initial=0))
    near = floor[np.isfinite(floor) & (floor <= 3 * max(high, 0.1))]
    low, high = min(low, float(near.min(initial=0))), max(high, float(near.max(initial=0)))
    if record.higher_is_better and high <= 1:
        return low * 1.05, 1.02
    return low * 1.05, high * 1.08 or 1.0


def floor_name(result: Results, metric: str) -> str:
    """What the floor of a metric is: calls are compared with calling all sensitive, ranks with no ranking at all."""
    record = find_metric(metric, result.metrics)
    return CHANCE_NAME if record.kind == "ranking" else FLOOR_NAME


def floor_label(name: str, floor: np.ndarray, top: float) -> str:
    """Name of the floor in the legend; it says where the line lies outside the axes."""
    known = floor[np.isfinite(floor)]
    if len(known) == 0:
        return f"{name}: undefined"
    return name + (f": {known.max():.3g}, off the scale" if known.max() > top else "")


def each_cell_once(result: Results, category: str | None = None) -> None:
    """Raise if the cells of a figure that pools them stand in the result several times.

    Several settings or splits divide the same cells in several ways, and several columns of categories hold the same
    cells under several names: no statistic over them counts independent evidence.

    Parameters
    ----------
    result
        A benchmark result.
    category
        The only category that is drawn, if it is one.

    Raises
    ------
    InputError
        With the call that picks one.
    """
    check_result(result)
    scores = result.table[result.table["setting"] != "probe"]
    if category is not None:
        scores = scores[scores["category"] == category]
    pairs = scores[["setting", "split"]].drop_duplicates()
    if len(pairs) > 1:
        # Rather the split that does not leak.
        first = pairs.iloc[int(np.argmax(pairs["split"] != "cell"))]
        raise InputError(
            "result", "several settings or splits: " + split_note(pairs), "one of them",
            f"pass result.select(setting={first['setting']!r}, split={first['split']!r}).",
        )  # fmt: skip
    columns = [str(c) for c in pd.unique(scores["by"])]
    if len(columns) > 1:
        named = ", ".join(c or "'' (all cells)" for c in columns)
        raise InputError(
            "result", f"the same cells in the categories of several columns: {named}", "one of them",
            f"pass result.select(by={max(columns, key=bool)!r}).",
        )  # fmt: skip


def _keys(table: pd.DataFrame, columns: list[str]) -> pd.MultiIndex:
    return pd.MultiIndex.from_frame(table[columns])


def _place_names(table: pd.DataFrame) -> pd.Series:
    """Name each category, with its column, setting and split only where they are needed to tell it apart."""
    name = table["category"].where(table["by"] != "", "all cells")
    pairs = pd.DataFrame({"by": table["by"], "name": name}).drop_duplicates()
    twice = name.isin(pairs["name"][pairs["name"].duplicated()]) & (table["by"] != "")
    name = name.where(~twice, table["by"] + ": " + name)
    if table["setting"].nunique() > 1:
        name = name + "\n" + table["setting"] + ", by " + table["split"]
    elif table["split"].nunique() > 1:
        name = name + "\nby " + table["split"]
    return name


def wrap(name: str, width: int) -> str:
    """Break a long name into lines, and keep those it has."""
    return "\n".join(textwrap.fill(line, width, break_long_words=False) for line in name.split("\n"))
