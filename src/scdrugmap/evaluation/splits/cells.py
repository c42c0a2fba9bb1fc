"""What the evaluation knows about the cells: labels, samples, studies, copies; and the partitions made from it."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from scdrugmap._errors import InputError
from scdrugmap._keys import CLASSES, RESISTANT, SENSITIVE
from scdrugmap.evaluation.splits.folds import Fold, Partition, cell_folds, group_folds, leave_one_out, straddling

ALL = "all"
SAME_SAMPLE = "cells of one sample on both sides"


def encode_labels(values: Any, argument: str = "label_key") -> np.ndarray:
    """Turn a label column into 1 (sensitive), 0 (resistant) and -1 (no label).

    Parameters
    ----------
    values
        ``(n,)`` text ``"sensitive"``/``"resistant"`` in any case, or 0/1, or booleans (true is sensitive); missing
        values, empty text and ``"unknown"`` mean no label.
    argument
        Name for the error message.

    Raises
    ------
    InputError
        For any other value.

    Examples
    --------
    >>> encode_labels(["Sensitive", "resistant", None]).tolist()
    [1, 0, -1]
    """
    column = pd.Series(np.asarray(values, dtype=object))
    text = column.map(lambda v: "" if pd.isna(v) else str(v).strip().lower())
    known = {SENSITIVE: 1, RESISTANT: 0, "1": 1, "0": 0, "1.0": 1, "0.0": 0, "true": 1, "false": 0}
    codes = text.map(known | dict.fromkeys(("", "unknown", "nan", "none", "na"), -1))
    if codes.isna().any():
        wrong = sorted(set(text[codes.isna()]))[:5]
        raise InputError(
            argument,
            f"labels {wrong}",
            f"{' or '.join(map(repr, CLASSES))} (any case), 0/1 or booleans; missing values for cells without a label",
            "map the labels first, for example adata.obs['response'].map({'R': 'resistant', 'S': 'sensitive'}).",
        )
    return codes.to_numpy(dtype=np.int8)


@dataclass(frozen=True, eq=False)
class Cells:
    """Labels and groups of the cells of one data set.

    Parameters
    ----------
    y
        ``(n,)`` 1 sensitive, 0 resistant, -1 without label.
    sample, study, patient
        ``(n,)`` names; ``patient`` may be ``None``. Sample names are qualified by study, for two studies may both
        call a sample "1".
    columns
        Further columns, ``(n,)`` each: the categories and the keys to leave out.
    duplicates
        ``(n,)`` codes of copied cells, or ``None`` to ignore copies.
    names
        ``(n,)`` names of the cells.
    """

    y: np.ndarray
    sample: np.ndarray
    study: np.ndarray
    patient: np.ndarray | None = None
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    duplicates: np.ndarray | None = None
    names: np.ndarray | None = None

    @cached_property
    def digest(self) -> str:
        """SHA-256 over names, labels, samples and studies."""
        digest = hashlib.sha256(np.ascontiguousarray(self.y).tobytes())
        for column in (self.names, self.sample, self.study):
            if column is not None:
                digest.update("\x1f".join(map(str, column)).encode())
        return digest.hexdigest()

    @cached_property
    def sample_codes(self) -> np.ndarray:
        """Integer code of each cell's sample."""
        return pd.factorize(self.sample)[0]

    def column(self, key: str) -> np.ndarray:
        """Return a group column by the name that ``split`` uses."""
        fixed = {"sample": self.sample, "study": self.study, "patient": self.patient}
        found = fixed.get(key) if fixed.get(key) is not None else self.columns.get(key)
        assert found is not None, key
        return found

    def categories(self, by: str | None) -> list[tuple[str, np.ndarray]]:
        """Return name and labelled rows of each category of a column; cells without a value are in none."""
        labelled = self.y >= 0
        if by is None:
            return [(ALL, np.flatnonzero(labelled))]
        values = pd.Categorical(self.columns[by]).remove_unused_categories()
        return [(str(c), np.flatnonzero((values.codes == i) & labelled)) for i, c in enumerate(values.categories)]


def make_partition(
    cells: Cells,
    rows: np.ndarray,
    *,
    setting: str,
    split: str,
    by: str | None = None,
    category: str = ALL,
    n_folds: int = 10,
    test_size: float | None = None,
    seed: int = 0,
) -> Partition:
    """Make the folds of one category.

    Parameters
    ----------
    cells
        The data set.
    rows
        Labelled rows of the category.
    setting
        ``"pooled"``: k folds. ``"cross"``: leave one group out.
    split
        ``"cell"``, ``"sample"``, ``"study"``, ``"patient"`` or a column: what stays whole or is left out.
    by, category
        For the record.
    n_folds, test_size
        Number of folds; ``test_size`` makes one random division of cells (``split="cell"`` only).
    seed
        The folds depend on it and on the category, not on what else is evaluated.

    Raises
    ------
    InputError
        If a sample has cells on both sides and ``split`` is not ``"cell"``.

    Examples
    --------
    >>> import numpy as np
    >>> sample = np.repeat(list("abcd"), 5)
    >>> cells = Cells(np.repeat([0, 1, 0, 1], 5), sample, np.repeat("s", 20))
    >>> partition = make_partition(cells, np.arange(20), setting="pooled", split="sample", n_folds=2)
    >>> len(partition.folds), partition.reason
    (2, '')
    """
    where = {"setting": setting, "split": split, "by": by or "", "category": category}
    rng = np.random.default_rng([seed, zlib.crc32(repr(sorted(where.items())).encode())])
    y = cells.y[rows]
    copies = None if cells.duplicates is None else cells.duplicates[rows]
    if split == "cell":
        plain, reason, notes = cell_folds(y, n_folds, rng, duplicates=copies, test_size=test_size)
        notes = (SAME_SAMPLE, *notes)
    else:
        values = cells.column(split)[rows]
        if pd.isna(values).any():
            known = ~pd.isna(values)
            rows, y, values = rows[known], y[known], values[known]
            copies = None if copies is None else copies[known]
        codes, names = pd.factorize(values, sort=True)
        if setting == "cross":
            named, reason, notes = leave_one_out(y, codes, np.asarray(names), duplicates=copies, unit=split)
            folds = tuple(Fold(name, rows[a], rows[b], why) for name, a, b, why in named)
            return _guarded(
                cells, Partition(**where, folds=() if reason else folds, reason=reason, notes=notes, rows=rows)
            )
        plain, reason, notes = group_folds(y, codes, n_folds, rng, duplicates=copies, unit=split)
    folds = tuple(Fold(str(i), rows[a], rows[b]) for i, (a, b) in enumerate(plain))
    return _guarded(cells, Partition(**where, folds=folds, reason=reason, notes=notes, rows=rows))


def _guarded(cells: Cells, partition: Partition) -> Partition:
    """Return the partition, or raise if it tears a sample apart."""
    if partition.split == "cell":
        return partition
    for fold in partition.folds:
        torn = straddling(cells.sample_codes, fold.train, fold.test)
        if len(torn):
            names = [str(cells.sample[np.flatnonzero(cells.sample_codes == c)[0]]) for c in torn[:5]]
            raise InputError(
                "split",
                f"{partition.split!r}, with cells of sample {', '.join(names)} on both sides"
                + (f" of category {partition.category!r}" if partition.by else ""),
                "a split that keeps samples whole",
                "split by a coarser key, give finer sample names, or ask for split='cell' knowing that it leaks.",
            )
    return partition


def data_card(cells: Cells, by: Sequence[str | None]) -> pd.DataFrame:
    """Describe each category: cells, samples, studies, class balance, floor.

    Returns
    -------
    pandas.DataFrame
        One row per category; ``floor_f1`` is 2p/(1+p), the F1 of calling every cell sensitive.
    """
    records = []
    for key in by:
        for category, rows in cells.categories(key):
            y = cells.y[rows]
            p = float(y.mean()) if len(y) else np.nan
            samples = pd.DataFrame({"sample": cells.sample[rows], "y": y})
            records.append(
                {
                    "by": key or "",
                    "category": category,
                    "n_cells": len(rows),
                    "n_sensitive": int(y.sum()),
                    "n_resistant": int((1 - y).sum()),
                    "n_studies": len(pd.unique(cells.study[rows])),
                    "n_samples": samples["sample"].nunique(),
                    "n_samples_sensitive": samples.loc[samples["y"] == 1, "sample"].nunique(),
                    "n_samples_resistant": samples.loc[samples["y"] == 0, "sample"].nunique(),
                    "share_sensitive": p,
                    "floor_f1": 2 * p / (1 + p),
                }
            )
    return pd.DataFrame(records)


def study_card(cells: Cells) -> pd.DataFrame:
    """Describe each study: cells, samples and class balance."""
    frame = pd.DataFrame({"study": cells.study, "sample": cells.sample, "y": cells.y})
    grouped = frame.groupby("study", sort=True, observed=True)
    out = grouped.agg(n_cells=("y", "size"), n_samples=("sample", "nunique"))
    for name, code in (("n_sensitive", 1), ("n_resistant", 0), ("n_unlabelled", -1)):
        out[name] = grouped["y"].agg(lambda v, c=code: int((v == c).sum()))
    return out.reset_index()
