"""What a finished job leaves: tables, cells and figures to take home, and columns that the map reads one by one."""

from __future__ import annotations

import csv
import hashlib
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scdrugmap._files import atomic_file, write_json, write_text
from scdrugmap._keys import KEYS, RESISTANT
from scdrugmap.web.shelf import clean, records


def write_prediction(
    work: Path,
    cells: Any,
    spec: Any,
    predictor: Any,
    folder: Path,
    sample_key: str | None,
    notes: list[str],
    runs: dict[str, str],
    tell: Callable[..., None],
) -> None:
    """Write everything of a prediction.

    Parameters
    ----------
    work
        Folder of the job.
    cells
        With predictions in ``obs``.
    spec
        The run.
    predictor, folder
        What predicted, and where it lies.
    sample_key
        Column of samples.
    notes
        Warnings of the library.
    runs
        Run specifications as YAML, by file name.
    tell
        Where progress goes.
    """
    from scdrugmap.datasets.files import write_cells
    from scdrugmap.web.slices import write_slices

    data = cells.mod[spec.mod] if hasattr(cells, "mod") else cells
    files = work / "files"
    key = spec.key_added
    mine = [c for c in data.obs if str(c) in {key + end for end in (KEYS.pred, KEYS.score, KEYS.set, KEYS.ood)}]
    guarded_csv(data.obs[mine], files / "predictions.csv", index_label="cell")
    features = predictor.features(cells, mod=spec.mod)
    clusters = _clusters(data, features)
    tables = {"clusters": _fractions(data.obs[key + KEYS.score], clusters, predictor.threshold)}
    if sample_key is not None:
        tables["samples"] = _fractions(data.obs[key + KEYS.score], data.obs[sample_key], predictor.threshold)
    for name, table in tables.items():
        guarded_csv(table, files / f"{name}.csv", index_label=name.rstrip("s"))
    layouts = write_slices(work / "slices", data, mine, clusters, features)
    tell(stage="packing", percent=90.0)
    write_cells(cells, files / ("cells.h5mu" if hasattr(cells, "mod") else "cells.h5ad"))
    record = _record(folder)
    for name, text in runs.items():
        write_text(files / name, _commented(text, record))
    summary = {
        "kind": "prediction", "n_cells": data.n_obs, "key": key, "notes": notes, "record": record,
        "n_missing": int(data.obs[key + KEYS.score].isna().sum()),
        "fraction_resistant": float((data.obs[key + KEYS.pred] == RESISTANT).mean()),
        "fraction_ood": float(data.obs[key + KEYS.ood].mean()) if key + KEYS.ood in data.obs else None,
        "calibrated": predictor.calibration is not None, "sample_key": sample_key, "commands": _commands(runs),
        "samples": _rows(tables.get("samples")), "clusters": _rows(tables["clusters"]),
        "labels": _against_labels(data, key), "card": predictor.card, **_trust(data.uns.get(key, {})),
    }  # fmt: skip
    write_json(work / "summary.json", clean(summary), indent=None)
    _figures(files, data, key, layouts[0])
    from scdrugmap.web.render import static_report

    write_text(files / "report.html", static_report(clean(summary), files / "map.svg"))


def _trust(record: Any) -> dict[str, Any]:
    """What is said about the query, and about the predictor on groups that it has not seen."""
    from scdrugmap.trust.worth import statement

    if "shift" not in record:  # a prompted model has no training data
        return {"query": None, "worth": None}
    query = {name: str(record["shift"][name]).rstrip(".") for name in ("verdict", "reason")}
    worth = statement(record["worth"])
    return {"query": query, "worth": worth[0].upper() + worth[1:]}


def write_benchmark(work: Path, result: Any, spec: Any, notes: list[str]) -> None:
    """Write everything of an evaluation."""
    files = work / "files"
    guarded_csv(result.table, files / "results.csv")
    summary = result.summary()
    guarded_csv(summary, files / "summary.csv")
    result.report(files / "report.html")
    record = _record(None)
    run = spec.model_copy(update={"store": None}).to_yaml()
    write_text(files / "run.yaml", _commented(run, record))
    shown = summary[summary["metric"].isin(["auroc", "f1", "accuracy", "auprc", "balanced_accuracy"])]
    write_json(
        work / "summary.json",
        clean(
            {
                "kind": "benchmark", "notes": notes, "record": record, "table": records(shown), "setting": spec.setting,
                "split": spec.split, "commands": ["scdrugmap benchmark --spec run.yaml"],
            }
        ),
        indent=None,
    )  # fmt: skip


def write_tool(work: Path, name: str, cells: Any, result: Any, spec: Any) -> None:
    """Write the tables that a tool made."""
    found = result if result is not None else cells.uns.get(name)
    tables = {}
    values = found.items() if isinstance(found, dict) else [(name, found)]
    for key, value in values:
        if isinstance(value, pd.DataFrame):
            safe = "".join(c for c in str(key).lower() if c.isalnum() or c == "_")[:40] or "table"
            guarded_csv(value, work / "files" / f"{safe}.csv")
            tables[safe] = records(value.head(100))
    record = _record(None)
    write_text(work / "files" / "run.yaml", _commented(spec.to_yaml(), record))
    write_json(work / "summary.json", clean({"kind": "tool", "tables": tables, "record": record, "notes": []}))


def write_explanation(work: Path, spec: Any, predictor: Path) -> None:
    """Make the files of ``scdrugmap explain`` fit for strangers: no formulas, no paths, the page as the report."""
    files = work / "files"
    (files / "explain.html").replace(files / "report.html")
    tables = {}
    for path in sorted(files.glob("*.csv")):
        frame = pd.read_csv(path, float_precision="round_trip")
        guarded_csv(frame, path)
        tables[path.stem] = records(frame.head(50))
    record = _record(predictor)
    write_text(files / "run.yaml", _commented(spec.to_yaml(), record))
    summary = {
        "kind": "tool", "tables": tables, "record": record, "notes": [], "text": (files / "report.txt").read_text(),
        "commands": ["scdrugmap explain --spec run.yaml"],
    }  # fmt: skip
    write_json(work / "summary.json", clean(summary), indent=None)


def guarded_csv(frame: pd.DataFrame, path: Path, index_label: str | None = None) -> None:
    """Write a table whose text no spreadsheet takes for a formula; numbers stay as they are.

    Parameters
    ----------
    frame
        The table.
    path
        The file.
    index_label
        Name of the index; left out if ``None``.
    """
    table = frame.reset_index(names=index_label) if index_label is not None else frame
    numeric = [pd.api.types.is_numeric_dtype(t) and not pd.api.types.is_bool_dtype(t) for t in table.dtypes]
    columns = [
        _numbers(table.iloc[:, i]) if is_number else [guarded(v) for v in table.iloc[:, i].astype(object)]
        for i, is_number in enumerate(numeric)
    ]
    with atomic_file(path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([guarded(str(c)) for c in table.columns])
        writer.writerows(zip(*columns, strict=True))


def guarded(value: Any) -> str:
    """A text cell that starts nothing."""
    if value is None or (isinstance(value, float) and np.isnan(value)) or value is pd.NA:
        return ""
    text = str(value)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") and not isinstance(value, float | int) else text


def _numbers(values: pd.Series) -> list[str]:
    """Shortest text that reads back as the same number."""
    return ["" if pd.isna(v) else str(v) for v in values.to_numpy()]


def _clusters(data: Any, features: np.ndarray) -> pd.Series:
    """Clusters of the file, or of what the predictor looks at."""
    for name in ("leiden", "louvain", "cluster", "clusters", "seurat_clusters", "cell_type"):
        if name in data.obs and 1 < data.obs[name].nunique() <= 100:
            return data.obs[name].astype(str).rename(str(name))
    from sklearn.cluster import MiniBatchKMeans

    known = np.isfinite(features).all(axis=1)
    out = np.full(data.n_obs, "none", dtype=object)
    if known.sum() >= 20:
        n = int(np.clip(known.sum() // 100, 2, 12))
        found = MiniBatchKMeans(n, random_state=0, n_init=3).fit_predict(features[known])
        out[known] = [f"cluster {i + 1}" for i in found]
    return pd.Series(out, index=data.obs_names, name="k-means cluster")


def _fractions(score: pd.Series, groups: pd.Series, threshold: float) -> pd.DataFrame:
    """Resistant fraction with its interval, by the one function that decides it."""
    from scdrugmap.trust.samples import sample_calls

    return sample_calls(score.to_numpy(), groups.astype(str).to_numpy(), threshold=threshold)


def _rows(table: pd.DataFrame | None) -> list[dict[str, Any]]:
    return [] if table is None else records(table.rename_axis("name").reset_index())[:500]


def _against_labels(data: Any, key: str) -> dict[str, Any] | None:
    """Where the file has labels: how well the prediction agrees, and how reliable the scores are."""
    from scdrugmap._keys import CLASSES

    if KEYS.response not in data.obs or key + KEYS.pred == KEYS.response:
        return None
    label = data.obs[KEYS.response].astype(str)
    score = data.obs[key + KEYS.score].to_numpy(dtype=float)
    known = label.isin(CLASSES).to_numpy() & np.isfinite(score)
    if known.sum() < 20 or label[known].nunique() < 2:
        return None
    from sklearn.metrics import f1_score, roc_auc_score

    truth, score = (label[known] == CLASSES[1]).to_numpy(), score[known]
    called = (data.obs[key + KEYS.pred][known] == CLASSES[1]).to_numpy()
    bins = np.minimum((score * 10).astype(int), 9)
    reliability = [
        {"score": score[bins == b].mean(), "sensitive": truth[bins == b].mean(), "n": int((bins == b).sum())}
        for b in range(10) if (bins == b).any()
    ]  # fmt: skip
    return {
        "n": int(known.sum()), "auroc": roc_auc_score(truth, score), "f1": f1_score(truth, called),
        "f1_all_sensitive": f1_score(truth, np.ones_like(truth)), "accuracy": float((truth == called).mean()),
        "reliability": reliability,
    }  # fmt: skip


def _record(folder: Path | None) -> dict[str, str]:
    """Versions and digests that make a run the same again."""
    names = ("scdrugmap", "torch", "scanpy", "anndata", "numpy", "scikit-learn")
    record = {name: version(name) for name in names} | {"python": platform.python_version()}
    if folder is not None:
        for file in [*sorted(folder.glob("*.safetensors")), folder / "predictor.json"]:
            with file.open("rb") as stream:
                record[f"sha256 of {file.name}"] = hashlib.file_digest(stream, "sha256").hexdigest()
    return record


def _commented(text: str, record: dict[str, str]) -> str:
    return "".join(f"# {k}: {v}\n" for k, v in record.items()) + text


def _commands(runs: dict[str, str]) -> list[str]:
    first = ["scdrugmap train --spec train.yaml"] if "train.yaml" in runs else []
    return [*first, "scdrugmap predict --spec run.yaml"]


def _figures(files: Path, data: Any, key: str, layout: dict[str, Any]) -> None:
    """The map as PDF and SVG."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    score = data.obs[key + KEYS.score].to_numpy(dtype=float)
    xy = layout["xy"]
    figure, axes = plt.subplots(figsize=(6.5, 5), layout="constrained")
    points = axes.scatter(xy[:, 0], xy[:, 1], c=score, s=max(1.0, 6 - np.log10(len(xy))), cmap="viridis",
                          vmin=0, vmax=1, linewidths=0, rasterized=True)  # fmt: skip
    figure.colorbar(points, label="P(sensitive)")
    axes.set(xticks=[], yticks=[], xlabel=f"{layout['title']} 1", ylabel=f"{layout['title']} 2")
    for ending in ("svg", "pdf"):
        figure.savefig(files / f"map.{ending}", dpi=150)
    plt.close(figure)
