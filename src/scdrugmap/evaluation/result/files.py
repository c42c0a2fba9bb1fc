"""A benchmark result on disk (Parquet files and one JSON file) and as text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scdrugmap._errors import InputError, OutputError
from scdrugmap._files import atomic_path, write_json
from scdrugmap.evaluation.splits.folds import Fold, Partition

#: Fields of a result that are Parquet files of their own.
FRAMES = ("table", "predictions", "cells", "data")
_PLACE = ("setting", "split", "by", "category")
#: Rows of the folds that are written at a time.
_ROWS = 1 << 18


#: Columns of a unit; a frame without any unit has them, too.
UNIT = (
    "unit", "key", "model", "strategy", "head", "setting", "split", "by", "category", "fold", "n_train", "seconds",
)  # fmt: skip


def save(
    folder: Path,
    frames: Mapping[str, pd.DataFrame],
    units: pd.DataFrame,
    partitions: Sequence[Partition],
    info: Mapping[str, Any],
) -> None:
    """Write every file whole or not at all; the JSON file, which makes the folder a result, comes last.

    Parameters
    ----------
    folder
        Made where it does not exist.
    frames
        The fields in ``FRAMES``.
    units, partitions, info
        The other fields.

    Raises
    ------
    InputError
        If ``folder`` is a file.
    """
    if folder.is_file():
        raise InputError("path", str(folder), "a folder", "pass a folder; the result is several Parquet files.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError("path", folder, error) from None
    for name, frame in frames.items():
        with atomic_path(folder / f"{name}.parquet") as temporary:
            frame.to_parquet(temporary, index=False)
    with atomic_path(folder / "partitions.parquet") as temporary:
        _write_folds(temporary, partitions)
    about = {
        "info": dict(info),
        "units": json.loads(units.to_json(orient="records")),
        "partitions": [
            {k: getattr(p, k) for k in (*_PLACE, "reason", "hash")}
            | {"notes": list(p.notes), "folds": [[f.name, f.reason] for f in p.folds], "rows": p.rows.tolist()}
            for p in partitions
        ],
    }
    write_json(folder / "result.json", about, indent=None)


def _write_folds(path: Path, partitions: Sequence[Partition]) -> None:
    """Write one row per cell, fold and side, some at a time: their names take far more memory than in the file."""
    import pyarrow as pa
    from pyarrow import parquet

    names = (*_PLACE, "fold", "side")
    schema = pa.schema([*((name, pa.string()) for name in names), ("row", pa.int64())])
    with parquet.ParquetWriter(path, schema) as file:
        for p in partitions:
            for fold in p.folds:
                for side, rows in (("train", fold.train), ("test", fold.test)):
                    where = (*(getattr(p, k) for k in _PLACE), fold.name, side)
                    for i in range(0, len(rows), _ROWS):
                        part = rows[i : i + _ROWS]
                        columns = [pa.repeat(pa.scalar(value, pa.string()), len(part)) for value in where]
                        file.write_table(pa.table([*columns, pa.array(part, pa.int64())], schema=schema))


def load(folder: Path) -> dict[str, Any]:
    """Read the fields of a result.

    Raises
    ------
    InputError
        If the folder holds neither a result nor a run store with one.
    """
    if not (folder / "result.json").is_file():
        folder = folder / "result"
    if not (folder / "result.json").is_file():
        found, expected = str(folder.parent), "a folder that to_parquet wrote, or the store of a finished benchmark"
        raise InputError("path", found, expected, "check the path; an unfinished run goes on by calling it again.")
    about = json.loads((folder / "result.json").read_text())
    fields: dict[str, Any] = {name: pd.read_parquet(folder / f"{name}.parquet") for name in FRAMES}
    sides = pd.read_parquet(folder / "partitions.parquet").groupby([*_PLACE, "fold", "side"])["row"]
    rows = {key: values.to_numpy() for key, values in sides}
    none = np.empty(0, np.int64)
    partitions = []
    for p in about["partitions"]:
        where = {k: p[k] for k in _PLACE}
        folds = tuple(
            Fold(
                name,
                rows.get((*where.values(), name, "train"), none),
                rows.get((*where.values(), name, "test"), none),
                why,
            )
            for name, why in p["folds"]
        )
        whole = np.array(p["rows"], dtype=np.int64)
        partitions.append(Partition(**where, folds=folds, reason=p["reason"], notes=tuple(p["notes"]), rows=whole))
    units = pd.DataFrame(about["units"]) if about["units"] else pd.DataFrame(columns=list(UNIT))
    return fields | {"units": units, "partitions": partitions, "info": about["info"]}


def printable(summary: pd.DataFrame) -> pd.DataFrame:
    """Round, and write the interval beside the value."""
    out = summary.drop(columns=[c for c in ("ci_low", "ci_high", "n_undefined", "reason", "note") if c in summary])
    if "ci_low" in summary:
        out["value"] = [
            "-" if np.isnan(v) else f"{v:.3f}" + ("" if np.isnan(a) else f" [{a:.3f}, {b:.3f}]")
            for v, a, b in zip(summary["value"], summary["ci_low"], summary["ci_high"], strict=True)
        ]
    for column in out.select_dtypes("float"):
        out[column] = out[column].map(lambda v: "-" if np.isnan(v) else f"{v:.3f}")
    return out


def tex(text: str) -> str:
    """Escape what LaTeX reads as commands."""
    for a, b in (("\\", r"\textbackslash{}"), ("_", r"\_"), ("%", r"\%"), ("&", r"\&"), ("#", r"\#"), ("$", r"\$")):
        text = text.replace(a, b)
    return text
