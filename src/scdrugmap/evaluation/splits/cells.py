"""The partitions made from a cohort, and cards that describe its categories and studies."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from scdrugmap._cohort import ALL, Cohort
from scdrugmap._errors import InputError
from scdrugmap._keys import SAME_SAMPLE
from scdrugmap.evaluation.splits.folds import (
    Fold,
    Partition,
    cell_folds,
    group_folds,
    leave_one_out,
    own_folds,
    straddling,
)


def make_partition(
    cells: Cohort,
    rows: np.ndarray,
    *,
    setting: str,
    split: str,
    by: str | None = None,
    category: str = ALL,
    n_folds: int = 10,
    test_size: float | None = None,
    seed: int = 0,
    cv: Any = None,
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
    cv
        Splitter of scikit-learn, or the column with the name of each cell's fold, instead of the folds made here.

    Raises
    ------
    InputError
        If a sample has cells on both sides and ``split`` is not ``"cell"``, or folds of one's own cannot be used.

    Examples
    --------
    >>> import numpy as np
    >>> sample = np.repeat(list("abcd"), 5)
    >>> from scdrugmap._cohort import Cohort
    >>> cells = Cohort(np.repeat([0, 1, 0, 1], 5), sample, np.repeat("s", 20))
    >>> partition = make_partition(cells, np.arange(20), setting="pooled", split="sample", n_folds=2)
    >>> len(partition.folds), partition.reason
    (2, '')
    """
    where = {"setting": setting, "split": split, "by": by or "", "category": category}
    rng = np.random.default_rng([seed, zlib.crc32(repr(sorted(where.items())).encode())])
    y = cells.y[rows]
    copies = None if cells.duplicates is None else cells.duplicates[rows]
    if cv is not None:
        values = cells.sample[rows] if split == "cell" else cells.column(split)[rows]
        named, reason, notes = own_folds(
            y, pd.factorize(values)[0], cells.columns[cv][rows] if isinstance(cv, str) else cv, cv
        )
        for _, train, test, _ in named:
            if copies is not None and len(straddling(copies, train, test)):
                raise InputError(
                    "cv", f"{cv!r}, with copies of one cell on both sides", "folds that keep copies together",
                    "remove the copies, or pass duplicates='ignore' knowing that they leak.",
                )  # fmt: skip
        folds = tuple(Fold(name, rows[a], rows[b], why) for name, a, b, why in named)
        notes = ((SAME_SAMPLE,) if split == "cell" else ()) + notes
        return _guarded(cells, Partition(**where, folds=() if reason else folds, reason=reason, notes=notes, rows=rows))
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


def _guarded(cells: Cohort, partition: Partition) -> Partition:
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


def data_card(cells: Cohort, by: Sequence[str | None]) -> pd.DataFrame:
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


def study_card(cells: Cohort) -> pd.DataFrame:
    """Describe each study: cells, samples and class balance."""
    frame = pd.DataFrame({"study": cells.study, "sample": cells.sample, "y": cells.y})
    grouped = frame.groupby("study", sort=True, observed=True)
    out = grouped.agg(n_cells=("y", "size"), n_samples=("sample", "nunique"))
    for name, code in (("n_sensitive", 1), ("n_resistant", 0), ("n_unlabelled", -1)):
        out[name] = grouped["y"].agg(lambda v, c=code: int((v == c).sum()))
    return out.reset_index()
