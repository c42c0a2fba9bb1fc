"""The catalogue of the 60 curated studies of drug response."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scdrugmap._errors import InputError, UnknownNameError
from scdrugmap.download.catalog import normalise

if TYPE_CHECKING:
    import pandas as pd

_DATA = Path(__file__).parent / "data"
#: Columns that hold combinations, and what stands between the parts of one.
COMBINED = ("drug", "drug_class")
BETWEEN = re.compile(r" \+ | or |[()]", flags=re.IGNORECASE)
_COUNTS = ("n_samples", "n_samples_sensitive", "n_samples_resistant", "n_cells", "n_sensitive", "n_resistant")
_GROUP_COUNTS = ("group_n_cells", "group_n_sensitive", "group_n_resistant")


@lru_cache
def _table() -> pd.DataFrame:
    import pandas as pd

    counts = dict.fromkeys((*_COUNTS, *_GROUP_COUNTS), "Int64")
    flags = {"in_validation_17": "bool", "one_sample_per_label": "bool"}
    names = pd.read_csv(_DATA / "catalogue.csv", nrows=0).columns
    texts = {n: "str" for n in names if n not in counts and n not in flags}
    table = pd.read_csv(
        _DATA / "catalogue.csv",
        dtype={**texts, **counts, **flags},
        keep_default_na=False,
        na_values={c: [""] for c in counts},
    )
    table["n_shared"] = _shared(table)
    return table.set_index("key")


@lru_cache
def synonyms() -> pd.DataFrame:
    """Other names of drugs, tissues and cancers: columns ``column``, ``name`` (as in the catalogue) and ``synonym``."""
    import pandas as pd

    return pd.read_csv(_DATA / "synonyms.csv", dtype=str, keep_default_na=False)


@lru_cache
def _meanings(column: str) -> dict[str, str]:
    """Name in the catalogue for each synonym of a column, both as they are compared."""
    rows = synonyms()
    rows = rows[rows["column"] == column]
    return {normalise(s): normalise(n) for s, n in zip(rows["synonym"], rows["name"], strict=True)}


def _shared(table: pd.DataFrame) -> pd.Series:
    """Number of sensitive cells that other data sets of the catalogue repeat."""
    return table["n_sensitive"].where(table["shared_control"] != "", 0)


def catalogue(**filters: Any) -> pd.DataFrame:
    """Table of the 60 curated data sets, with corrected metadata.

    Parameters
    ----------
    **filters
        Column and value, or several values: ``collection="primary"``, ``tissue=["Cell line", "Organoid"]``. Case and
        punctuation do not matter. ``drug`` and ``drug_class`` also match one part of a combination; ``drug``,
        ``tissue`` and ``cancer_type`` take other names, too (``drug="Tarceva"`` is erlotinib).

    Returns
    -------
    One row per data set, indexed by its key. Next to the corrected ``tissue``, ``cancer_type`` and ``therapy_type``
    stand the labels under which the published evaluation counts the data set (``*_published``). Counts of cells and
    samples per label are missing where nobody published them one by one; ``group`` then names the smallest set of
    data sets whose joint counts are known (``group_n_*``), and ``count_basis`` says where a count comes from.
    ``shared_control`` names the series whose untreated cells occur in several data sets, ``n_shared`` their number,
    ``problems`` what is wrong with the source's row.

    Raises
    ------
    UnknownNameError
        If a filter is no column or matches nothing.

    Notes
    -----
    Primary collection: 36 data sets of 23 series, 326,751 cells; external: 24 data sets of 15 series, 168,486 cells
    (supplementary tables of scDrugMap). Single counts marked ``DRMref malignant cells`` add up to 326,856.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> len(sd.datasets.catalogue())
    60
    >>> sd.datasets.catalogue(collection="primary", drug="paclitaxel").index.tolist()
    ['GSE163836', 'GSE131984_Pac', 'GSE131984_JQ1Pac']
    """
    import pandas as pd

    table = _table()
    keep = pd.Series(True, index=table.index)
    for column, wanted in filters.items():
        values = table.index.to_series() if column == "key" else table.get(column)
        if values is None:
            raise UnknownNameError("filter", column, ["key", *table.columns])
        keep &= _matches(column, values, wanted)
    return table[keep].copy()


def _matches(column: str, values: pd.Series, wanted: Any) -> pd.Series:
    """Rows whose value is, or for combinations contains, one of those wanted."""
    several = isinstance(wanted, Iterable) and not isinstance(wanted, str)
    wishes = {normalise(str(w)) for w in (wanted if several else [wanted])}
    if not all(isinstance(v, str) for v in values):
        return values.map(lambda v: normalise(str(v)) in wishes).astype(bool)
    values = values.astype(object)  # text columns of their own type turn sets into arrays
    combined = column in COMBINED
    parts = values.map(lambda v: {normalise(p) for p in (BETWEEN.split(v) if combined else []) if p} | {normalise(v)})
    held = set().union(*parts)
    meant = {w: w if w in held else _meanings(column).get(w, w) for w in wishes}
    unknown = {w for w, name in meant.items() if name not in held}
    if unknown:
        known = sorted({v for v in values if v})
        shown = next(str(w) for w in (wanted if several else [wanted]) if normalise(str(w)) in unknown)
        raise UnknownNameError(column, shown, known, "See scdrugmap.datasets.catalogue().")
    names = set(meant.values())
    return parts.map(lambda p: bool(p & names)).astype(bool)


def find_study(key: str) -> pd.Series:
    """Row of the catalogue by key, number (``P12``, ``E3``) or accession."""
    table = _table()
    if not isinstance(key, str):
        raise InputError("key", key, "text", "pass a key of scdrugmap.datasets.catalogue().")
    wanted = normalise(key)
    for name, number in zip(table.index, table["id"], strict=True):
        if wanted in (normalise(name), normalise(number)):
            return table.loc[name]
    members = table.index[table["accession"].map(normalise) == wanted]
    if len(members) > 1:
        raise InputError(
            "key",
            key,
            "one data set",
            f"the series holds {', '.join(members)}; name one, or use collection(accession={key!r}).",
        )
    if len(members) == 1:
        return table.loc[members[0]]
    raise UnknownNameError("key", key, list(table.index), "See scdrugmap.datasets.catalogue().")


def info(key: str) -> pd.Series:
    """Facts about one data set of the catalogue.

    Parameters
    ----------
    key
        Key, number (``P12``, ``E3``) or accession.

    Returns
    -------
    Its row of the catalogue, with ``sources``: the keys under which the download layer has it.

    Raises
    ------
    UnknownNameError
        If there is no such data set.
    InputError
        If an accession stands for several.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> sd.datasets.info("GSE140440")["drug"]
    'docetaxel'
    """
    import pandas as pd

    row = find_study(key)
    return pd.concat([row, pd.Series({"sources": ", ".join(sources_of(row).values())})]).rename(row.name)


def sources_of(row: pd.Series) -> dict[str, str]:
    """Keys of the download registry that hold a data set, by kind of source."""
    from scdrugmap.download import entries

    table = entries("datasets")
    bare = str(row.name).removesuffix("_pre").removesuffix("_post")
    candidates = {
        "published": row.name if row["matrix"] else "",
        "drmref": f"{bare}_drmref",
        "geo": f"{row['accession']}_geo",
    }
    return {source: key for source, key in candidates.items() if key in table}


def categories(task: str | None = None, collection: str | None = None) -> pd.DataFrame:
    """Table of the evaluation categories of the published benchmark.

    Parameters
    ----------
    task
        ``"all"``, ``"tissue_type"``, ``"cancer_type"``, ``"drug_type"`` or ``"regimen"``.
    collection
        ``"primary"`` or ``"external"``.

    Returns
    -------
    One row per category: numbers of data sets, series and cells per label, ``f1_all_sensitive`` (the F1 of calling
    every cell sensitive, which a model has to beat), and ``keys``, the data sets (a list).

    Raises
    ------
    UnknownNameError
        If there is no such task or collection.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> sd.datasets.categories("tissue_type", "primary")["category"].tolist()[1]
    'Cell line'
    """
    import pandas as pd

    table = pd.read_csv(_DATA / "categories.csv", keep_default_na=False)
    table["keys"] = table["keys"].str.split()
    for column, value in (("task", task), ("collection", collection)):
        if value is not None:
            if value not in set(table[column]):
                raise UnknownNameError(column, value, sorted(set(table[column])))
            table = table[table[column] == value]
    return table.reset_index(drop=True)
