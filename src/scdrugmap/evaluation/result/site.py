"""A leaderboard as a static site: one page, tables beside it, no script and nothing from elsewhere."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scdrugmap._errors import InputError, OutputError
from scdrugmap._files import atomic_folder, write_text
from scdrugmap.evaluation.result.result import BenchmarkResult

METRICS = ("f1", "f1_macro", "auroc")
#: Columns of the table of leaks on the page, the important ones where they are seen first; the file has all rows.
ON_PAGE = ["by", "category", "model", "strategy", "head", "metric", "random_cells", "whole_samples", "leak", "n_cells"]
_MARK = re.compile(r" \[data [0-9a-f]{8}\]$")
#: What the page is known by, when another site is written in its place.
_SIGN = '<meta name="generator" content="scdrugmap results export">'


def export_site(
    result: BenchmarkResult,
    path: str | os.PathLike[str],
    *,
    title: str = "Drug-response leaderboard",
    metrics: Sequence[str] = METRICS,
    n_resamples: int = 1000,
) -> Path:
    """Write the leaderboard: values with intervals beside the floor, and the size of the leak per category.

    Parameters
    ----------
    result
        From a benchmark, or joined from several.
    path
        Folder to write; new, empty, or an earlier site.
    title
        Of the page.
    metrics
        Metrics that the result holds; others are left out.
    n_resamples
        Of the bootstrap.

    Returns
    -------
    pathlib.Path
        The page, ``index.html``; ``leaderboard.csv`` and ``leak.csv`` lie beside it.

    Raises
    ------
    InputError
        If none of the metrics is in the result, or ``path`` holds other files.

    Examples
    --------
    >>> export_site(sd.load_result("joined"), "site")  # doctest: +SKIP
    """
    from jinja2 import Environment, PackageLoader, select_autoescape

    folder = Path(path)
    _check_folder(folder)
    known = [m for m in metrics if m in set(result.table["metric"])]
    if not known:
        raise InputError("metrics", list(metrics), "metrics of the result", "pass metrics=['f1'].")
    board = leaderboard(result, known, n_resamples=n_resamples)
    leak = leak_sizes(board, result.data)
    loader = PackageLoader("scdrugmap.evaluation.result", "templates")
    environment = Environment(loader=loader, autoescape=select_autoescape(default=True, default_for_string=True))
    html = environment.get_template("site.html.j2").render(
        title=title, sections=_sections(board), leak=_shown(leak.dropna(subset=["leak"])[ON_PAGE]).to_dict("split"), info=result.info,
        data=_shown(result.data).to_dict("split"), n_units=len(result.units),
    )  # fmt: skip
    try:
        with atomic_folder(folder) as scratch:
            write_text(scratch / "index.html", html)
            board.to_csv(scratch / "leaderboard.csv", index=False)
            leak.to_csv(scratch / "leak.csv", index=False)
    except OSError as error:
        raise OutputError("path", folder, error) from None
    return folder / "index.html"


def _check_folder(folder: Path) -> None:
    page = folder / "index.html"
    ours = page.is_file() and _SIGN in page.read_text(encoding="utf-8", errors="replace")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not ours):
        raise InputError("path", str(folder), "a new folder, or one of an earlier site", "choose another name.")


def leaderboard(result: BenchmarkResult, metrics: Sequence[str], *, n_resamples: int = 1000) -> pd.DataFrame:
    """Summary with one row per model, category and metric, best first within each category.

    Parameters
    ----------
    result
        The result.
    metrics
        Names.
    n_resamples
        Of the bootstrap.
    """
    rows = result.summary(metrics=list(metrics), n_resamples=n_resamples)
    labels = result.contenders.set_index(["model", "strategy", "head"])["label"]
    rows["label"] = [labels[k] for k in zip(rows["model"], rows["strategy"], rows["head"], strict=True)]
    rows["beats_floor"] = rows["ci_low"] > rows["floor"]
    keys = ["setting", "split", "by", "category", "metric"]
    return rows.sort_values([*keys, "value"], ascending=[True] * 5 + [False], kind="stable").reset_index(drop=True)


def leak_sizes(board: pd.DataFrame, data: pd.DataFrame) -> pd.DataFrame:
    """How much better a model looks where cells of one sample stand on both sides.

    Parameters
    ----------
    board
        From :func:`leaderboard`.
    data
        The data cards of the categories; categories of the same name meet where they hold the same numbers of cells.

    Returns
    -------
    pandas.DataFrame
        Per model, category and metric: the value with cells divided at random, that with whole samples, and ``leak``,
        their difference.
    """
    size = data.set_index(["by", "category"])[["n_cells", "n_sensitive"]]
    size = size[~size.index.duplicated()]
    pooled = board[board["setting"] == "pooled"].copy()
    found = size.reindex(pd.MultiIndex.from_frame(pooled[["by", "category"]]))
    pooled[["n_cells", "n_sensitive"]] = found.fillna(-1).to_numpy()
    pooled["category"] = pooled["category"].str.replace(_MARK, "", regex=True)
    keys = ["model", "strategy", "head", "by", "category", "metric", "n_cells", "n_sensitive"]
    cells = pooled[pooled["split"] == "cell"].groupby(keys, sort=False)["value"].mean()
    samples = pooled[pooled["split"] == "sample"].groupby(keys, sort=False)["value"].mean()
    both = pd.concat({"random_cells": cells, "whole_samples": samples}, axis=1, join="inner").reset_index()
    both["leak"] = both["random_cells"] - both["whole_samples"]
    return both.drop(columns="n_sensitive").sort_values(keys[:-1], kind="stable").reset_index(drop=True)


def _sections(board: pd.DataFrame) -> list[dict[str, Any]]:
    """One table per setting, split and categorisation: a row per category and model, a column per metric."""
    out = []
    for (setting, split, by), rows in board.groupby(["setting", "split", "by"], sort=False):
        metrics = list(dict.fromkeys(rows["metric"]))
        lines = []
        for (category, label), mine in rows.groupby(["category", "label"], sort=False):
            cells = {r.metric: _cell(r) for r in mine.itertuples()}
            lines.append({"category": category, "label": label, "cells": [cells.get(m) for m in metrics]})
        out.append({"setting": setting, "split": split, "by": by, "metrics": metrics, "lines": lines})
    return out


def _cell(row: Any) -> dict[str, Any]:
    if np.isnan(row.value):
        return {"value": "n/a", "interval": "", "floor": "", "why": row.reason, "beats": False}
    bounds = "" if np.isnan(row.ci_low) else f"{row.ci_low:.2f} to {row.ci_high:.2f}"
    floor = "" if np.isnan(row.floor) else f"{row.floor:.3f}"
    return {
        "value": f"{row.value:.3f}",
        "interval": bounds,
        "floor": floor,
        "why": row.reason,
        "beats": row.beats_floor,
    }


def _shown(frame: pd.DataFrame) -> pd.DataFrame:
    out = frame.copy()
    for column in out.select_dtypes("float"):
        out[column] = out[column].map(lambda v: "" if np.isnan(v) else f"{v:.3g}" if abs(v) < 1e4 else f"{v:.0f}")
    return out
