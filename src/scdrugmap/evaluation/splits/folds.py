"""Divide cells into training and test cells without letting a sample, a study or a copied cell stand on both sides.

A :class:`Partition` holds the folds of one category; it is made once and used by every model.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from scdrugmap._errors import InputError
from scdrugmap._keys import CLASSES
from scdrugmap.evaluation.splits.duplicates import connected


@dataclass(frozen=True, eq=False)
class Fold:
    """One division into training and test cells.

    Parameters
    ----------
    name
        Number of the fold, or the left-out study.
    train, test
        Sorted row numbers in the data set.
    reason
        Why it cannot be evaluated; empty if it can.
    """

    name: str
    train: np.ndarray = field(repr=False)
    test: np.ndarray = field(repr=False)
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Partition:
    """The folds of one category under one setting and one kind of split.

    Parameters
    ----------
    setting, split, by, category
        As in the result table; ``category`` is a value of the ``obs`` column ``by``.
    folds
        Empty if the category cannot be evaluated.
    reason
        Why it cannot be evaluated; empty if it can.
    notes
        What a reader has to know: fewer folds than asked for, groups that were merged, mixed samples.
    rows
        Labelled rows of the category.
    """

    setting: str
    split: str
    by: str
    category: str
    folds: tuple[Fold, ...] = ()
    reason: str = ""
    notes: tuple[str, ...] = ()
    rows: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64), repr=False)

    @cached_property
    def hash(self) -> str:
        """SHA-256 over the rows of every fold, the same in every process."""
        digest = hashlib.sha256()
        for fold in self.folds:
            digest.update(repr((fold.name, len(fold.train), len(fold.test))).encode())
            for rows in (fold.train, fold.test):
                digest.update(np.ascontiguousarray(rows, dtype="<i8").tobytes())
        return digest.hexdigest()

    def to_frame(self) -> pd.DataFrame:
        """Return one row per cell, fold and side."""
        parts = [
            pd.DataFrame({"fold": fold.name, "row": rows, "side": side})
            for fold in self.folds
            for side, rows in (("train", fold.train), ("test", fold.test))
        ]
        frame = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["fold", "row", "side"])
        where = {"setting": self.setting, "split": self.split, "by": self.by, "category": self.category}
        return frame.assign(**where)[[*where, "fold", "side", "row"]]


def blocks_of(groups: np.ndarray, duplicates: np.ndarray | None = None) -> np.ndarray:
    """Merge groups that share copies of a cell.

    Parameters
    ----------
    groups
        ``(n,)`` integer code of the group that has to stay whole.
    duplicates
        ``(n,)`` codes of :func:`~scdrugmap.evaluation.splits.duplicates.duplicate_groups`; cells with one code are copies.

    Returns
    -------
    numpy.ndarray
        ``(n,)`` block codes, each a union of groups.

    Examples
    --------
    >>> import numpy as np
    >>> blocks_of(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 2])).tolist()
    [0, 0, 0, 1]
    """
    groups = np.unique(groups, return_inverse=True)[1]
    if duplicates is None or len(groups) == 0:
        return groups
    order = np.argsort(duplicates, kind="stable")
    copies = duplicates[order][1:] == duplicates[order][:-1]
    g = groups[order]
    component = connected(int(groups.max()) + 1, g[1:][copies], g[:-1][copies])
    return np.unique(component[groups], return_inverse=True)[1]


def class_counts(y: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """Count cells per block and class, ``(blocks, 2)``."""
    n = int(blocks.max()) + 1 if len(blocks) else 0
    return np.stack([np.bincount(blocks[y == c], minlength=n) for c in (0, 1)], axis=1)


def most_folds(counts: np.ndarray) -> int:
    """Largest number of folds in which every test set can hold both classes.

    Examples
    --------
    >>> import numpy as np
    >>> most_folds(np.array([[5, 0], [3, 0], [0, 4], [1, 1]]))
    2
    """
    has = counts > 0
    mixed: np.ndarray = np.all(has, axis=1)
    pure = (has & ~mixed[:, None]).sum(axis=0)
    return int(mixed.sum()) + int(pure.min())


def assign_folds(counts: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """Give each block to one of ``k`` test sets: whole blocks, both classes in every set, sizes and shares balanced.

    Parameters
    ----------
    counts
        ``(blocks, 2)`` cells per class; ``k`` must not exceed :func:`most_folds`.
    k
        Number of folds.
    rng
        Breaks ties and shuffles.

    Returns
    -------
    numpy.ndarray
        ``(blocks,)`` fold of each block.
    """
    if k > most_folds(counts):
        raise ValueError("more folds than blocks of the rarer class")
    out = np.full(len(counts), -1)
    order = rng.permutation(len(counts))
    order = order[np.argsort(-counts[order].sum(axis=1), kind="stable")]
    mixed: np.ndarray = np.all(counts[order] > 0, axis=1)
    negative, positive = (order[~mixed & (counts[order, c] > 0)] for c in (0, 1))
    # Seeds first: they are what guarantees both classes; pairs of pure blocks before mixed ones.
    pairs = min(len(positive), len(negative), k)
    out[positive[:pairs]] = out[negative[:pairs][::-1]] = np.arange(pairs)
    out[order[mixed][: k - pairs]] = np.arange(pairs, k)
    totals = counts.sum(axis=0)
    filled = np.stack([np.bincount(out[out >= 0], weights=counts[out >= 0, c], minlength=k) for c in (0, 1)], axis=1)
    rest = order[out[order] < 0]
    if len(rest) > 20_000 or (len(rest) > 500 and counts[rest].sum(axis=1).max() * 100 * k < totals.sum()):
        return _round_robin(out, counts, rest, k)
    for block in rest:
        after = (filled[None] + np.eye(k)[:, :, None] * counts[block]) / np.maximum(totals, 1)
        spread = after.std(axis=1).sum(axis=1)
        best = np.flatnonzero(spread <= spread.min() + 1e-12)
        fold = best[np.argmin(filled[best].sum(axis=1))]
        out[block] = fold
        filled[fold] += counts[block]
    return out


def _round_robin(out: np.ndarray, counts: np.ndarray, rest: np.ndarray, k: int) -> np.ndarray:
    """Deal many small blocks out in turn, class by class."""
    label = counts[rest].argmax(axis=1)
    start = 0
    for c in (0, 1):
        mine = rest[label == c]
        out[mine] = (np.arange(len(mine)) + start) % k
        start += len(mine)
    return out


def group_folds(
    y: np.ndarray,
    groups: np.ndarray,
    n_folds: int,
    rng: np.random.Generator,
    *,
    duplicates: np.ndarray | None = None,
    unit: str = "sample",
) -> tuple[list[tuple[np.ndarray, np.ndarray]], str, tuple[str, ...]]:
    """Stratified k folds of whole groups.

    Parameters
    ----------
    y
        ``(n,)`` labels, 0 or 1.
    groups
        ``(n,)`` code of the group that stays whole.
    n_folds
        Folds asked for. Fewer are made where the rarer class has fewer groups, so that every training and every test
        set holds both classes.
    rng
        Random generator.
    duplicates
        Codes of copied cells; groups that share one are merged.
    unit
        What a group is called in messages.

    Returns
    -------
    tuple
        ``(train, test)`` positions per fold, the reason if there is none, and notes.

    Examples
    --------
    >>> import numpy as np
    >>> folds, reason, notes = group_folds(
    ...     np.repeat([0, 1, 0, 1], 5), np.repeat([0, 1, 2, 3], 5), 10, np.random.default_rng(0)
    ... )
    >>> len(folds), reason, notes
    (2, '', ('2 folds instead of 10: samples with resistant cells: 2, with sensitive cells: 2',))
    """
    missing = _missing_class(y)
    if missing:
        return [], missing, ()
    blocks = blocks_of(groups, duplicates)
    notes = _merged(groups, blocks, unit)
    counts = class_counts(y, blocks)
    k = min(n_folds, most_folds(counts))
    have = (counts > 0).sum(axis=0)
    what = f"{_plural(unit)} with {CLASSES[0]} cells: {have[0]}, with {CLASSES[1]} cells: {have[1]}"
    if k < 2:
        return [], f"too few {_plural(unit)}: {what}; training and test cells both need both classes", notes
    if k < n_folds:
        notes += (f"{k} folds instead of {n_folds}: {what}",)
    fold = assign_folds(counts, k, rng)[blocks]
    return [(np.flatnonzero(fold != f), np.flatnonzero(fold == f)) for f in range(k)], "", notes


def leave_one_out(
    y: np.ndarray, groups: np.ndarray, names: np.ndarray, *, duplicates: np.ndarray | None = None, unit: str = "study"
) -> tuple[list[tuple[str, np.ndarray, np.ndarray, str]], str, tuple[str, ...]]:
    """Train on all groups but one, test on that one.

    Parameters
    ----------
    y, groups, duplicates, unit
        As in :func:`group_folds`.
    names
        Name of each group code.

    Returns
    -------
    tuple
        ``(name, train, test, reason)`` per left-out group (groups that share copied cells are left out together),
        the reason if there is none, and notes. A fold whose training cells have one class carries a reason.

    Examples
    --------
    >>> import numpy as np
    >>> folds, _, _ = leave_one_out(np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1]), np.array(["A", "B"]))
    >>> [(name, test.tolist()) for name, _, test, _ in folds]
    [('A', [0, 1]), ('B', [2, 3])]
    """
    plural = _plural(unit)
    missing = _missing_class(y)
    if missing:
        return [], missing, ()
    blocks = blocks_of(groups, duplicates)
    n = int(blocks.max()) + 1
    notes = _merged(groups, blocks, unit, names)
    if n < 2:
        only = f"only one {unit}: {names[groups[0]]}" if len(np.unique(groups)) == 1 else f"all {plural} share cells"
        return [], f"{only}; leaving one out needs two {plural}", notes
    folds = []
    for b in range(n):
        inside = blocks == b
        train, test = np.flatnonzero(~inside), np.flatnonzero(inside)
        name = " + ".join(str(names[g]) for g in np.unique(groups[inside]))
        lacking = _missing_class(y[train])
        folds.append((name, train, test, f"training cells: {lacking}" if lacking else ""))
    if all(reason for *_, reason in folds):
        return folds, f"every fold trains on one class: {folds[0][3]}", notes
    return folds, "", notes


def cell_folds(
    y: np.ndarray,
    n_folds: int,
    rng: np.random.Generator,
    *,
    duplicates: np.ndarray | None = None,
    test_size: float | None = None,
) -> tuple[list[tuple[np.ndarray, np.ndarray]], str, tuple[str, ...]]:
    """Random cells, stratified by label: the published way, with cells of one sample on both sides.

    Parameters
    ----------
    y, n_folds, rng, duplicates
        As in :func:`group_folds`; copies of a cell stay together unless ``duplicates`` is ``None``.
    test_size
        Make one division with this share of test cells instead of ``n_folds``.

    Returns
    -------
    tuple
        As :func:`group_folds`.
    """
    k = n_folds if test_size is None else max(round(1 / test_size), 2)
    cells = np.arange(len(y))
    folds, reason, notes = group_folds(y, cells, k, rng, duplicates=duplicates, unit="cell")
    notes = tuple(note for note in notes if "merged" not in note)
    if test_size is not None and folds and len(folds) == k and not np.isclose(1 / k, test_size):
        raise InputError("test_size", test_size, "one over a whole number, such as 0.2", "pass 0.1, 0.2, 0.25 or 0.5.")
    return (folds[:1] if test_size is not None else folds), reason, notes


def own_folds(
    y: np.ndarray, groups: np.ndarray, cv: Any, name: Any
) -> tuple[list[tuple[str, np.ndarray, np.ndarray, str]], str, tuple[str, ...]]:
    """Folds that the user has: of a splitter, or one name per cell.

    Parameters
    ----------
    y
        ``(n,)`` labels, 0 or 1.
    groups
        ``(n,)`` code of the group that stays whole; splitters get it.
    cv
        A splitter, or ``(n,)`` names; each is the test set of a fold, and a cell without a name takes no part.
    name
        What ``cv`` is called.

    Returns
    -------
    tuple
        As :func:`leave_one_out`.

    Raises
    ------
    InputError
        If the splitter refuses, or tests a cell twice.

    Examples
    --------
    >>> import numpy as np
    >>> folds, _, _ = own_folds(np.array([0, 1, 0, 1]), np.arange(4), np.array(["a", "a", "b", "b"]), "fold")
    >>> [(fold, test.tolist()) for fold, _, test, _ in folds]
    [('a', [0, 1]), ('b', [2, 3])]
    """
    missing = _missing_class(y)
    if missing:
        return [], missing, ()
    if hasattr(cv, "split"):
        try:
            pairs = list(cv.split(np.zeros((len(y), 1)), y, groups))
        except (ValueError, TypeError) as error:
            return [], f"{name!r} does not split {len(y)} cells: {error}", ()
        named = [(str(i), np.sort(a), np.sort(b)) for i, (a, b) in enumerate(pairs)]
    else:
        codes, names = pd.factorize(np.asarray(cv, dtype=object), sort=True)
        named = [(str(n), np.flatnonzero((codes != i) & (codes >= 0)), np.flatnonzero(codes == i))
                 for i, n in enumerate(names)]  # fmt: skip
        if len(named) < 2:
            return [], f"fewer than two folds in {name!r}", ()
    tested = np.concatenate([test for *_, test in named])
    if len(np.unique(tested)) < len(tested):
        raise InputError("cv", repr(name), "folds that test no cell twice", "pass KFold and its like, without repeats.")
    lacking = [_missing_class(y[train]) for _, train, _ in named]
    folds = [(*fold, f"training cells: {why}" if why else "") for fold, why in zip(named, lacking, strict=True)]
    reason = f"every fold trains on one class: {folds[0][3]}" if all(lacking) else ""
    return folds, reason, (f"folds of {name!r}",)


def straddling(groups: np.ndarray, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Return the group codes that have cells on both sides."""
    return np.intersect1d(groups[train], groups[test])


def _plural(unit: str) -> str:
    return "studies" if unit == "study" else f"{unit}s"


def _missing_class(y: np.ndarray) -> str:
    """Say which class has no cell; empty if both have."""
    if len(y) == 0:
        return "no labelled cells"
    present = np.unique(y)
    return "" if len(present) == 2 else f"one class only: all {len(y)} cells are {CLASSES[int(present[0])]}"


def _merged(groups: np.ndarray, blocks: np.ndarray, unit: str, names: np.ndarray | None = None) -> tuple[str, ...]:
    """Note groups that were joined because they share copied cells."""
    pairs = pd.DataFrame({"block": blocks, "group": groups}).drop_duplicates()
    shared = pairs[pairs.duplicated("block", keep=False)]
    if shared.empty:
        return ()
    text = f"{len(shared)} {_plural(unit)} merged into {shared['block'].nunique()}"
    listed = f": {', '.join(str(names[g]) for g in sorted(shared['group'])[:8])}" if names is not None else ""
    return (f"{text} because they share copies of cells{listed}",)
