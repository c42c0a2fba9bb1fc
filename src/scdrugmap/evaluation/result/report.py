"""One self-contained HTML file per benchmark."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd

from scdrugmap._errors import InputError
from scdrugmap._files import write_text
from scdrugmap._keys import SAME_SAMPLE
from scdrugmap._metrics import METRICS
from scdrugmap.evaluation.result.headline import headlines
from scdrugmap.evaluation.result.levels import ANSWERED
from scdrugmap.evaluation.result.significance import holm
from scdrugmap.evaluation.result.statistics import FEW_GROUPS
from scdrugmap.evaluation.result.why import why
from scdrugmap.figures import axes as _axes
from scdrugmap.figures.benchmark import benchmark
from scdrugmap.figures.calibration import calibration
from scdrugmap.figures.results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Metrics of the tables of samples and patients.
LEVEL_METRICS = ("accuracy", "f1", "f1_macro", "auroc")
LEVEL_TITLES = {"sample": "Samples", "patient": "Patients", ANSWERED: "Answered cells"}
#: Draws into the axes that it is given as ``ax``.
Draw: TypeAlias = Callable[..., Any]
Figure: TypeAlias = tuple[str, Draw]


def write_report(
    result: Results,
    path: Path,
    *,
    title: str = "Drug-response benchmark",
    metrics: Sequence[str] | None = None,
    figures: Sequence[Figure] | None = None,
    extra_figures: Sequence[Figure] = (),
    explain: Mapping[str, Any] | None = None,
    n_resamples: int = 1000,
) -> Path:
    """Write the report.

    Parameters
    ----------
    result
        The benchmark.
    path
        File to write.
    title
        Title of the page.
    metrics
        Metrics of the tables; the main ones if ``None``.
    figures
        Pairs of a title and a function that draws into matplotlib axes, passed as ``ax``; by default bars and calibration for
        every setting and split.
    extra_figures
        More of them.
    explain
        For a section "Why": ``adata.uns`` after :func:`scdrugmap.tl.attribute` and its like, or some of their tables, with the
        :class:`AttributionReport` (or its text) as ``"report"`` where there is one. No attribution is shown without saying
        whether it was tested.
    n_resamples
        Of the bootstrap.

    Returns
    -------
    pathlib.Path
        The file: no script, no link to anything outside.

    Raises
    ------
    InputError
        If the file cannot be written, or ``explain`` holds none of the tables.

    Examples
    --------
    >>> result.report("report.html")  # doctest: +SKIP
    """
    from jinja2 import Environment, PackageLoader, select_autoescape

    if path.is_dir() or not path.parent.is_dir():
        raise InputError("path", str(path), "a file in a folder that exists", "pass for example 'report.html'.")
    reasons = why(explain)
    chosen: dict[str, Any] = {} if metrics is None else {"metrics": metrics}
    summary = result.summary(n_resamples=n_resamples, **chosen)
    shown = list(dict.fromkeys(summary["metric"]))
    drawn = [*(default_figures(result, shown) if figures is None else figures), *extra_figures]
    compared = _comparisons(result, n_resamples)
    loader = PackageLoader("scdrugmap.evaluation.result", "templates")
    environment = Environment(loader=loader, autoescape=select_autoescape(default=True, default_for_string=True))
    html = environment.get_template("report.html.j2").render(
        title=title,
        headlines=headlines(result, summary, compared),
        result=result,
        info=result.info,
        leaky=SAME_SAMPLE in result.info.get("warnings", []),
        same_sample=SAME_SAMPLE,
        data=_rounded(_without_blank(result.data)).to_dict("split"),
        studies=_rounded(pd.DataFrame(result.info.get("studies", []))).to_dict("split"),
        splits=_without_blank(_splits(result)).to_dict("split"),
        beside=_side_by_side(result, summary),
        tables=_tables(result, summary),
        levels=_levels(result, list(chosen.get("metrics") or LEVEL_METRICS)),
        fitted_on_all=any("fitted on all cells" in note for note in result.table["note"]),
        partly=any("folds: the others failed" in note for note in summary["note"]),
        absent=[w for w in result.info.get("warnings", []) if "left out" in w],
        missing=_missing(result).to_dict("split"),
        probe=_rounded(_without_blank(_probe(result))).to_dict("split"),
        comparisons=_without_blank(_rounded(compared)).to_dict("split"),
        figures=[(name, render(draw)) for name, draw in drawn],
        why=reasons,
        timing=_rounded(_timing(result)).to_dict("split"),
        manifest=_manifest(result),
    )
    write_text(path, html)
    return path


def default_figures(result: Results, metrics: Sequence[str]) -> list[Figure]:
    """Bars of the first metrics and calibration, for every setting and split."""
    out: list[Figure] = []
    scores = result.table[result.table["setting"] != "probe"]
    places = scores[["setting", "split", "by", "category"]].drop_duplicates()
    keys = ["setting", "split"]
    if places["by"].nunique() > 1:
        keys.append("by")
    ways = places[keys].drop_duplicates()
    for values in ways.itertuples(index=False):
        where = dict(zip(keys, values, strict=True))
        # The whole result holds its summaries already; a part of it would compute them again.
        part = result.select(**where) if len(ways) > 1 else result
        if part.predictions.empty:
            continue
        name = f"{where['setting']}, split by {where['split']}" + (f", {where['by']}" if where.get("by") else "")
        name += f" ({SAME_SAMPLE})" if where["split"] == "cell" else ""
        out += [
            (f"{_label(metric)}: {name}" + ", colours as above" * (i > 0), partial(_bars, part, metric, named=i == 0))
            for i, metric in enumerate(metrics[:3])
        ]
        out.append((f"Calibration: {name}", partial(calibration, part, show=False)))
    return out


def _bars(result: Results, metric: str, *, ax: Axes, named: bool = True) -> None:
    """Draw bars, or rows on a longer page; one legend serves the metrics of one way of splitting."""
    table = _axes.scores(result, metric, "cell", None)  # what the bars need as well: it is computed once
    n_places, n_labels = table["place"].nunique(), table["label"].nunique()
    if _axes.many(n_places, n_labels):
        ax.get_figure(root=True).set_size_inches(8, _axes.rows_height(n_places, n_labels))  # type: ignore[union-attr]
    benchmark(result, metric=metric, ax=ax, show=False)
    legend = ax.get_legend()
    if not named and legend is not None:
        legend.remove()


def render(draw: Draw) -> str:
    """Draw into new axes and return a PNG as a data address."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(8, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    draw(ax=figure.add_subplot())
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _label(metric: str) -> str:
    return METRICS[metric].label if metric in METRICS else metric


def _side_by_side(result: Results, summary: pd.DataFrame) -> list[dict[str, Any]]:
    """One table per category and metric, contenders x ways of splitting, where there are several."""
    labels = result.contenders.set_index(["model", "strategy", "head"])["label"]
    out = []
    for (by, category), rows in summary.groupby(["by", "category"], sort=False):
        ways = list(dict.fromkeys(zip(rows["setting"], rows["split"], strict=True)))
        for metric in [m for m in ("f1_macro", "auroc") if m in set(rows["metric"])] if len(ways) > 1 else ():
            chosen = rows[rows["metric"] == metric]
            lines = []
            for key, mine in chosen.groupby(["model", "strategy", "head"], sort=False):
                cells = dict(
                    zip(zip(mine["setting"], mine["split"], strict=True), mine.to_dict("records"), strict=True)
                )
                values = [_cell(cells.get(way)) for way in ways]
                lines.append({"label": labels[key], "baseline": key[1] == "baseline", "values": values})
            title = _label(metric) + (f"; {by}: {category}" if by else "")
            names = [f"{a}, split by {b}" + (f" ({SAME_SAMPLE})" if b == "cell" else "") for a, b in ways]
            out.append({"title": title, "columns": names, "lines": lines})
    return out


def _levels(result: Results, metrics: Sequence[str]) -> list[dict[str, Any]]:
    """Tables of samples, patients and answered cells, where the result holds them."""
    held = set(result.table["metric"])
    names = [m for m in metrics if m in held]
    out = []
    for level in ("sample", "patient", ANSWERED):
        if names and (result.table["level"] == level).any():
            tables = _tables(result, result.summary(metrics=names, level=level))
            out += [t | {"title": f"{LEVEL_TITLES[level]}: {t['title']}"} for t in tables if t["lines"]]
    return out


def _tables(result: Results, summary: pd.DataFrame) -> list[dict[str, Any]]:
    """One table per setting, split and category: contenders x metrics, the best above the floor marked."""
    labels = result.contenders.set_index(["model", "strategy", "head"])["label"]
    out = []
    for (setting, split, by, category), rows in summary.groupby(["setting", "split", "by", "category"], sort=False):
        names = list(dict.fromkeys(rows["metric"]))
        notes = sorted({n for n in rows["note"] if n})
        reasons = sorted({r for r, v in zip(rows["reason"], rows["value"], strict=True) if r and np.isnan(v)})
        unsure = sorted({r for r, v in zip(rows["reason"], rows["value"], strict=True) if r and not np.isnan(v)})
        cells: dict[tuple[str, str, str], dict[str, Any]] = {}
        for row in rows.to_dict("records"):
            cells.setdefault((row["model"], row["strategy"], row["head"]), {})[row["metric"]] = row
        lines = [
            {"label": labels[key], "baseline": key[1] == "baseline", "values": [_cell(mine.get(m)) for m in names]}
            for key, mine in cells.items()
        ]
        title = f"{setting}, split by {split}" + (f"; {by}: {category}" if by else "")
        groups = int(rows["n_groups"].max())
        if rows["value"].isna().all():
            lines = []
        out.append(
            {
                "title": title,
                "leaky": split == "cell",
                "columns": [_label(n) for n in names],
                "lines": lines,
                "notes": notes,
            }
            | {
                "reasons": reasons,
                "unsure": unsure,
                "n_groups": groups,
                "few": groups < FEW_GROUPS,
                "unit": _unit(rows),
            }
        )
    return out


def _unit(rows: pd.DataFrame) -> str:
    """What the groups of an interval are."""
    first = rows.iloc[0]
    if first["setting"] == "cross":
        return "left-out groups"
    return {"patient": "patients", "study": "studies"}.get(first["split"], "samples")


def _cell(row: dict[str, Any] | None) -> dict[str, Any]:
    if row is None or np.isnan(row["value"]):
        return {"text": "n/a", "interval": "", "title": row["reason"] if row else "", "below": False}
    record = METRICS.get(row["metric"])
    higher = record.higher_is_better if record else True
    floor = row["floor"]
    below = bool(np.isfinite(floor) and (row["value"] <= floor if higher else row["value"] >= floor))
    bounds = "" if np.isnan(row["ci_low"]) else f"{row['ci_low']:.2f} to {row['ci_high']:.2f}"
    return {"text": f"{row['value']:.3f}", "interval": bounds, "title": row["reason"], "below": below}


def _splits(result: Results) -> pd.DataFrame:
    """One row per partition: folds, sizes, notes or the reason why there are none."""
    frame = result.partition_frame()
    grouped = frame.groupby(["setting", "split", "by", "category"], sort=False)
    out = grouped.agg(
        folds=("fold", lambda f: int((f != "").sum())), test_cells=("n_test", "sum"), notes=("notes", "first"),
        reason=("reason", lambda r: "; ".join(sorted({x for x in r if x}))), hash=("hash", lambda h: str(h.iloc[0])[:12]),
    )  # fmt: skip
    out["hash"] = out["hash"].where(out["folds"] > 0, "")
    return out.reset_index()


def _missing(result: Results) -> pd.DataFrame:
    """Values that could not be computed, counted by reason."""
    rows = result.table[result.table["value"].isna()]
    grouped = rows.groupby(["setting", "split", "category", "reason"], sort=False)
    return grouped.agg(rows=("metric", "size"), models=("model", "nunique")).reset_index()


def _probe(result: Results) -> pd.DataFrame:
    rows = result.table[result.table["setting"] == "probe"]
    if rows.empty:
        return pd.DataFrame()
    wide = rows.pivot_table(index=["model", "by", "category"], columns="metric", values="value", sort=False)
    return wide.reset_index()


def _comparisons(result: Results, n_resamples: int) -> pd.DataFrame:
    """Every model against the best simple baseline that took part, Holm-corrected over all rows."""
    known = result.contenders
    simple = known[known["strategy"].eq("baseline") & known["head"].ne("")]
    models = known[known["strategy"].ne("baseline")]
    metric = next((m for m in ("f1_macro", "auroc", "f1") if m in set(result.table["metric"])), None)
    if simple.empty or models.empty or metric is None:
        return pd.DataFrame()
    parts = [
        result.compare(a, b, metrics=metric, n_resamples=n_resamples).assign(model=a, baseline=b)
        for a in models["label"]
        for b in simple["label"]
    ]
    frame = pd.concat(parts, ignore_index=True)
    return pd.DataFrame(
        {
            "model": frame["model"], "baseline": frame["baseline"],
            "split": frame["setting"] + ", by " + frame["split"],
            "category": frame["category"].where(frame["by"] != "", ""),
            f"{_label(metric)} of model": frame["value_a"], "of baseline": frame["value_b"],
            "difference": frame["difference"],
            "95 % interval": [
                "" if np.isnan(low) else f"{low:.2f} to {high:.2f}"
                for low, high in zip(frame["ci_low"], frame["ci_high"], strict=True)
            ],
            "p (Holm)": holm(frame["p"].to_numpy(dtype=float)),
            "folds": frame["n_folds"], "why not": frame["reason"].where(frame["difference"].isna(), ""),
        }
    )  # fmt: skip


def _timing(result: Results) -> pd.DataFrame:
    if "seconds" not in result.units:
        return pd.DataFrame()
    grouped = result.units.groupby(["model", "strategy", "head"], sort=False)
    columns: dict[str, Any] = {"units": ("unit", "size"), "seconds": ("seconds", "sum")}
    if "memory_bytes" in result.units:
        columns["peak_memory_gib"] = ("memory_bytes", lambda b: float(b.max()) / 2**30)
    return grouped.agg(**columns).reset_index()


def _manifest(result: Results) -> list[tuple[str, str]]:
    """Arguments, versions and digests, as text."""
    rows = [(k, v) for k, v in result.info.items() if k not in ("studies",)]
    if len(result.units):
        first = result.units.iloc[0]
        rows += [(k, first[k]) for k in ("versions", "device") if k in first]
        if "representation_sha256" in result.units:
            digests = result.units.drop_duplicates(["model", "strategy"])
            rows += [
                (f"content of {m}", d) for m, d in zip(digests["model"], digests["representation_sha256"], strict=True)
            ]
    return [(k, str(v)) for k, v in rows]


def _without_blank(frame: pd.DataFrame) -> pd.DataFrame:
    """Leave out columns in which no row says anything."""
    return frame[[c for c in frame if not (frame[c].astype(str) == "").all()]] if len(frame) else frame


def _rounded(frame: pd.DataFrame) -> pd.DataFrame:
    out = frame.copy()
    for column in out.select_dtypes("float"):
        out[column] = out[column].map(lambda v: "" if np.isnan(v) else f"{v:.3g}")
    return out
