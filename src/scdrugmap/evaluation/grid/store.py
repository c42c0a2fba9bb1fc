"""The run store: one Parquet file and one manifest per unit, written so that a kill loses the unit in work at most."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scdrugmap._errors import OutputError
from scdrugmap._files import atomic_path, write_json

#: Raise it when the meaning of a stored unit changes, so that old units are computed again.
FORMAT = 1


@dataclass(frozen=True)
class Unit:
    """One cell of the grid: a model, a strategy, a head, and one fold of one category.

    Parameters
    ----------
    model, strategy, head, setting, split, by, category, fold
        As in the result table.
    content
        Digests that decide whether a stored result still holds: representation, head, partition, labels, seed.
    """

    model: str
    strategy: str
    head: str
    setting: str
    split: str
    by: str
    category: str
    fold: str
    content: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Name of the unit's files."""
        # Version 0.1 called the published head "mlp"; the digest in ``content`` tells the two apart.
        place = asdict(self) | ({"head": "mlp"} if self.head == "published" else {})
        text = json.dumps([FORMAT, *place.values()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    @property
    def where(self) -> dict[str, str]:
        """The columns that place the unit in the table."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "content"}


@dataclass(frozen=True, eq=False)
class Outcome:
    """Predictions of one unit.

    Parameters
    ----------
    unit
        Which.
    row, y, score, pred
        ``(n_test,)`` rows of the data set, labels, P(sensitive) and calls. A sample probe holds sample codes.
    manifest
        Versions, digests, seed, device, time, memory.
    """

    unit: Unit
    row: np.ndarray
    y: np.ndarray
    score: np.ndarray
    pred: np.ndarray
    manifest: Mapping[str, Any] = field(default_factory=dict)


class RunStore:
    """A folder of finished units.

    Parameters
    ----------
    path
        Folder; made where it does not exist.

    Notes
    -----
    ``units/*.parquet`` is a Parquet dataset of predictions, ``manifests/*.json`` says how each came about,
    ``runs/*.json`` lists the units of each call. A unit is finished exactly when its Parquet file is there: the
    manifest is written first, and both appear by renaming a complete temporary file.

    Examples
    --------
    >>> import tempfile
    >>> RunStore(tempfile.mkdtemp()).finished()
    set()
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            for name in ("units", "manifests", "runs", "embeddings"):
                (self.path / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError("store", path, error) from None

    def finished(self) -> set[str]:
        """Return the keys of the finished units."""
        # A hidden file is one that a kill left half written.
        return {file.stem for file in (self.path / "units").glob("[!.]*.parquet")}

    def write(self, outcome: Outcome) -> None:
        """Store a unit atomically; a unit that is there is left as it is."""
        key = outcome.unit.key
        target = self.path / "units" / f"{key}.parquet"
        if target.exists():
            return
        write_json(self.path / "manifests" / f"{key}.json", dict(outcome.manifest))
        frame = pd.DataFrame({k: getattr(outcome, k) for k in ("row", "y", "score", "pred")})
        for name, value in outcome.unit.where.items():
            frame[name] = pd.Categorical.from_codes(np.zeros(len(frame), dtype=np.int8), [value])
        with atomic_path(target) as temporary:
            frame.to_parquet(temporary, index=False)

    def read(self, unit: Unit) -> Outcome:
        """Read a finished unit."""
        frame = pd.read_parquet(self.path / "units" / f"{unit.key}.parquet", columns=["row", "y", "score", "pred"])
        manifest = json.loads((self.path / "manifests" / f"{unit.key}.json").read_text())
        row, y, score, pred = (frame[k].to_numpy() for k in ("row", "y", "score", "pred"))
        return Outcome(unit, row, y, score, pred, manifest)
