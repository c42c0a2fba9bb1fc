"""Joining the results of several stores: units of the same data meet, units of other data stay apart, nothing counts twice."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scdrugmap._errors import InputError, OutputError
from scdrugmap._files import atomic_folder, atomic_path, write_json
from scdrugmap.evaluation.result.files import load
from scdrugmap.evaluation.result.levels import PLACE
from scdrugmap.evaluation.result.result import BenchmarkResult
from scdrugmap.evaluation.splits.folds import Partition

#: Arguments that decide the folds of given cells; results that agree in them share their partitions.
DESIGN = ("seed", "n_folds", "test_size", "duplicates")
CATEGORY = ["setting", "split", "by", "category"]
ROW = [*PLACE, "fold", "level", "metric"]
#: Numbers of a unit that two stores have to agree in.
NUMBERS = ("row", "y", "score", "pred")
#: Column of the table of a block: digest of the unit that a row comes from.
KEY = "unit_key"


@dataclass(frozen=True, eq=False)
class Block:
    """Results on the same cells with the same folds."""

    digest: str
    result: BenchmarkResult


def merge_results(sources: Sequence[str | os.PathLike[str]], path: str | os.PathLike[str]) -> BenchmarkResult:
    """Join results of several stores into a folder that :func:`scdrugmap.load_result` opens.

    Parameters
    ----------
    sources
        Run stores (``store=`` of a benchmark), folders that ``scdrugmap benchmark -o`` or ``to_parquet`` wrote,
        folders that this function wrote, or stores of ``scdrugmap reproduce``, whose finished benchmarks are taken.
    path
        Folder to write; new or empty, or what an earlier merge left there.

    Returns
    -------
    The joined result. Results on other cells, or with other folds, are kept apart: their categories then carry the first
    digits of the digest of their data. A representation that differs between stores under one name carries those of
    its content.

    Raises
    ------
    InputError
        If a source holds no result, two sources give different numbers for one unit, or ``path`` holds other files.

    Notes
    -----
    The order of the sources and how often one is given change nothing.

    Examples
    --------
    >>> merge_results(["lab_a/store", "lab_b/store"], "joined")  # doctest: +SKIP
    """
    target, given = Path(path), [p for s in sources for p in _stores(Path(s))]
    if not given:
        raise InputError("sources", "none", "one folder with results or more", "name the stores to join.")
    _check_target(target, given)
    found: dict[str, Block] = {}
    for source in given:
        for block in blocks_of(source):
            # Joined with itself, a block gets the order that it has after any other joining.
            found[block.digest] = _joined(found.get(block.digest, block), block, source)
    blocks = [found[d] for d in sorted(found)]
    result = compose(blocks)
    try:
        with atomic_folder(target) as scratch:
            for block in blocks:
                block.result.to_parquet(scratch / "blocks" / block.digest)
            for source in given:
                _copy_units(source, scratch)
            result.to_parquet(scratch / "result")
            write_json(scratch / "merge.json", {"format": 1, "blocks": [b.digest for b in blocks]})
    except OSError as error:
        raise OutputError("path", target, error) from None
    return result


def _stores(source: Path) -> list[Path]:
    """The run stores of a reproduction; another folder is one source."""
    if not (source / "grid").is_dir():
        return [source]
    return sorted(p for p in (source / "grid").iterdir() if (p / "result" / "result.json").is_file())


def _check_target(target: Path, sources: Sequence[Path]) -> None:
    """Refuse a folder of other content, and one that is read at the same time under another name."""
    if target.is_file() or (target.is_dir() and any(target.iterdir()) and not (target / "merge.json").is_file()):
        raise InputError("path", str(target), "a new folder, or one of an earlier merge", "choose another name.")
    for source in sources:
        if target.resolve() in source.resolve().parents:
            raise InputError("path", str(target), "a folder outside the sources", "choose another name.")


def blocks_of(source: Path) -> Iterator[Block]:
    """Blocks of one source; a joined folder gives those that it was joined from."""
    if (source / "merge.json").is_file():
        for digest in json.loads((source / "merge.json").read_text())["blocks"]:
            yield Block(digest, BenchmarkResult(**load(source / "blocks" / digest)))
        return
    result = BenchmarkResult.from_parquet(source)
    yield Block(digest_of(result), _keyed(result))


def digest_of(result: BenchmarkResult) -> str:
    """Digest of cells, labels and groups, and of what decides the folds."""
    cells = result.cells[sorted(result.cells)].astype(str)
    digest = hashlib.sha256(pd.util.hash_pandas_object(cells, index=False).to_numpy().tobytes())
    digest.update(json.dumps([sorted(result.cells), [result.info.get(k) for k in DESIGN]], default=str).encode())
    return digest.hexdigest()[:32]


def _keyed(result: BenchmarkResult) -> BenchmarkResult:
    """Write the digest of its unit into each row of the table."""
    if not len(result.units):
        return replace(result, table=result.table.assign(**{KEY: ""}))
    keys = result.units.set_index([*PLACE, "fold"])["key"]
    places = pd.MultiIndex.from_frame(result.table[[*PLACE, "fold"]])
    return replace(result, table=result.table.assign(**{KEY: keys.reindex(places).fillna("").to_numpy()}))


def _joined(a: Block, b: Block, source: Path) -> Block:
    """Union of two blocks on the same data."""
    one, two = a.result, b.result
    _agree(one, two, source)
    partitions = _partitions([*one.partitions, *two.partitions], source)
    units = pd.concat([one.units, two.units], ignore_index=True)
    units = units.sort_values(["key", "seconds"] if "seconds" in units else ["key"], kind="stable")
    units = units.drop_duplicates("key").reset_index(drop=True)
    number = pd.Series(np.arange(len(units), dtype=np.int32), index=units["key"])
    parts = []
    for result in (one, two):
        key = result.units.set_index("unit")["key"].reindex(result.predictions["unit"]).to_numpy()
        parts.append(result.predictions.assign(unit=number.reindex(key).to_numpy(dtype=np.int32)))
    predictions = pd.concat(parts, ignore_index=True).drop_duplicates(["unit", "row"])
    predictions = predictions.sort_values(["unit", "row"], kind="stable").reset_index(drop=True)
    data = pd.concat([one.data, two.data]).astype(object).drop_duplicates()
    data = data.sort_values(list(data.columns[:2]), kind="stable").infer_objects().reset_index(drop=True)
    joined = replace(
        one, table=_table([one.table, two.table]), predictions=predictions, units=units.assign(unit=number.to_numpy()),
        partitions=partitions, data=data, info=_info([one.info, two.info]),
    )  # fmt: skip
    return Block(a.digest, joined)


def _agree(one: BenchmarkResult, two: BenchmarkResult, source: Path) -> None:
    """Refuse a unit for which the two give different numbers, by name."""
    if not len(one.units) or not len(two.units):
        return
    shared = one.units.merge(two.units[["key", "unit"]], on="key", suffixes=("", "_b"))
    left, right = (dict(tuple(r.predictions.groupby("unit"))) for r in (one, two))
    tables = [r.table[r.table[KEY] != ""].set_index([KEY, "level", "metric"])["value"] for r in (one, two)]
    known = tables[0].index.intersection(tables[1].index)
    values = [t[~t.index.duplicated()].reindex(known.unique()) for t in tables]
    off = ~np.isclose(values[0].to_numpy(float), values[1].to_numpy(float), rtol=1e-6, atol=1e-9, equal_nan=True)
    wrong = {key for key, _, _ in values[0].index[off]}
    for unit in shared.itertuples():
        a, b = left.get(unit.unit), right.get(unit.unit_b)
        same = (a is None) == (b is None) and (a is None or b is None or _same_numbers(a, b))
        if not same or unit.key in wrong:
            place = ", ".join(f"{c} {getattr(unit, c)!r}" for c in [*PLACE, "fold"] if getattr(unit, c))
            raise InputError(
                "sources", f"unit {unit.key} ({place}): other numbers in {source}", "the same numbers in all stores",
                "find out which store is right, and leave the other one out.",
            )  # fmt: skip


def _same_numbers(a: pd.DataFrame, b: pd.DataFrame) -> bool:
    one, two = (f.sort_values("row", kind="stable") for f in (a, b))
    return len(one) == len(two) and all(
        np.array_equal(one[c].to_numpy(), two[c].to_numpy(), equal_nan=one[c].dtype.kind == "f") for c in NUMBERS
    )


def _partitions(partitions: Iterable[Partition], source: Path) -> list[Partition]:
    """One of each category; the same cells and design give the same folds, or something is wrong."""
    out: dict[tuple[str, ...], Partition] = {}
    for p in partitions:
        where = (p.setting, p.split, p.by, p.category)
        if where in out and out[where].hash != p.hash:
            raise InputError(
                "sources", f"other folds of {' '.join(where)} in {source}", "the same folds of the same cells",
                "see which versions of scdrugmap made them; leave one out.",
            )  # fmt: skip
        out.setdefault(where, p)
    return [out[w] for w in sorted(out)]


def _table(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Rows of all units; a row without a unit gives way to one of a unit in the same place."""
    table = pd.concat(tables, ignore_index=True)
    finished = set(table.loc[table[KEY] != "", [*PLACE, "fold"]].itertuples(index=False, name=None))
    open_place = [t not in finished for t in table[[*PLACE, "fold"]].itertuples(index=False, name=None)]
    table = table[(table[KEY] != "") | np.array(open_place, dtype=bool)]
    table = table.sort_values([*ROW, KEY, "value", "reason"], kind="stable")
    return table.drop_duplicates([*ROW, KEY]).reset_index(drop=True)


def _info(infos: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What all agree in, and lists of what they do not; times are those of nobody."""
    out: dict[str, Any] = {}
    for key in sorted(set().union(*infos)):
        if key.startswith("seconds") or key in ("n_resumed", "n_failed", "n_units"):
            continue
        values = [i[key] for i in infos if key in i]
        if all(isinstance(v, list) for v in values):
            texts = {json.dumps(x, sort_keys=True, default=str): x for v in values for x in v}
            out[key] = [texts[t] for t in sorted(texts)]
        else:
            texts = {json.dumps(v, sort_keys=True, default=str): v for v in values}
            out[key] = texts[min(texts)]
    return out


def compose(blocks: Sequence[Block]) -> BenchmarkResult:
    """One result from blocks in the order of their digests.

    Parameters
    ----------
    blocks
        At least one.
    """
    several, start, first = len(blocks) > 1, 0, 0
    frames: dict[str, list[Any]] = {k: [] for k in ("table", "predictions", "units", "partitions", "cells", "data")}
    for block in blocks:
        mark = f" [data {block.digest[:8]}]" if several else ""
        result = _distinct(block.result)
        for name in ("table", "units", "data"):
            frame = getattr(result, name)
            column = "category" if "category" in frame else None
            frames[name].append(frame if column is None else frame.assign(category=frame[column].astype(str) + mark))
        frames["units"][-1] = frames["units"][-1].assign(unit=result.units["unit"] + first)
        frames["predictions"].append(
            result.predictions.assign(
                unit=(result.predictions["unit"] + first).astype(np.int32), row=result.predictions["row"] + start
            )
        )
        frames["partitions"] += [_moved(p, start, mark) for p in result.partitions]
        frames["cells"].append(result.cells)
        start, first = start + len(result.cells), first + len(result.units)
    joined = {k: pd.concat(v, ignore_index=True) for k, v in frames.items() if k != "partitions"}
    joined["table"] = joined["table"].drop(columns=KEY)
    info = _info([b.result.info for b in blocks]) | {"blocks": [b.digest for b in blocks], "n_units": first}
    return BenchmarkResult(**joined, partitions=frames["partitions"], info=info)


def _distinct(result: BenchmarkResult) -> BenchmarkResult:
    """Tell representations of one name but different content apart."""
    if not len(result.units) or "representation_sha256" not in result.units:
        return result
    content = result.units.drop_duplicates([*PLACE[:2], "representation_sha256"])
    doubled = content.groupby(["model", "strategy"])["representation_sha256"].transform("nunique") > 1
    names = {
        (m, s, d): f"{m} [{d[:8]}]"
        for m, s, d in content.loc[doubled, ["model", "strategy", "representation_sha256"]].itertuples(index=False)
    }
    if not names:
        return result
    digest = result.units.set_index("key")["representation_sha256"]
    tables = []
    for frame, key in ((result.table, KEY), (result.units, "key")):
        found = zip(frame["model"], frame["strategy"], digest.reindex(frame[key]), strict=True)
        tables.append(frame.assign(model=[names.get(f, f[0]) for f in found]))
    return replace(result, table=tables[0], units=tables[1])


def _moved(p: Partition, start: int, mark: str) -> Partition:
    folds = tuple(replace(f, train=f.train + start, test=f.test + start) for f in p.folds)
    return replace(p, category=p.category + mark, folds=folds, rows=p.rows + start)


def _copy_units(source: Path, target: Path) -> None:
    """Copy the files of finished units, so that a benchmark can go on in the joined folder."""
    for store in (source, source / "store"):
        for unit in sorted((store / "units").glob("[!.]*.parquet")):
            manifest = store / "manifests" / f"{unit.stem}.json"
            goal = target / "units" / unit.name
            if goal.exists():
                if not _same_numbers(pd.read_parquet(goal), pd.read_parquet(unit)):
                    raise InputError(
                        "sources", f"unit {unit.stem}: other numbers in {store}", "the same numbers in all stores",
                        "find out which store is right, and leave the other one out.",
                    )  # fmt: skip
                continue
            if not manifest.is_file():
                continue
            for file, place in ((manifest, target / "manifests" / manifest.name), (unit, goal)):
                place.parent.mkdir(parents=True, exist_ok=True)
                with atomic_path(place) as scratch:
                    shutil.copyfile(file, scratch)
