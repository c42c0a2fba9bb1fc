"""From the identifiers that data has to approved symbols and Ensembl ids, without guessing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from scdrugmap.genes.identifiers import Genes, as_text, classify, dated, species_of
from scdrugmap.genes.table import GeneTable

#: Today's symbols of the genes whose old ones read as dates; several where the date may stand for either.
_DATED = pd.Series(
    {f"SEPT{i}": f"SEPTIN{i}" for i in (*range(1, 13), 14)}
    | {f"MARCH{i}": f"MARCHF{i}" for i in range(3, 12)}
    | {"SEPT15": "SELENOF", "DEC1": "DELEC1|BHLHE40"}
    | {f"MARCH{i}": f"MARCHF{i}|MTARC{i}" for i in (1, 2)},
    dtype=object,
)


@dataclass(frozen=True, eq=False)
class Resolution:
    """What became of every gene.

    Parameters
    ----------
    symbol, ensembl
        Symbol and Ensembl id; ``""`` where there is none.
    status
        ``"approved"``, ``"ensembl"`` (by its Ensembl id), ``"previous"``, ``"alias"``, ``"date"`` (what a spreadsheet
        made of it), ``"separator"`` (``HLA.A`` for ``HLA-A``), ``"entrez"``, ``"ambiguous"`` (several genes bear the
        name, or the gene it should mean is there already; left as it was), ``"other species"`` or ``"unknown"`` (left
        as it was).
    candidates
        For ambiguous names the approved symbols that they may mean, separated by ``|``.
    conflict
        Whether the Ensembl id and the symbol of the data name two genes; the Ensembl id has decided.
    """

    symbol: np.ndarray
    ensembl: np.ndarray
    status: np.ndarray
    candidates: np.ndarray
    conflict: np.ndarray


def resolve_genes(genes: Genes, table: GeneTable, *, entrez: np.ndarray | None = None) -> Resolution:
    """Resolve identifiers against a table.

    An Ensembl id that the table knows decides; then an approved symbol; then a previous symbol or alias that leads to
    one gene only; then what a date or a changed separator stands for; then an Entrez number. An alias (date, separator)
    whose gene stands in the data under another name is not followed: an annotation that has both means two things.
    Whatever is left keeps the identifiers that it has.

    Parameters
    ----------
    genes
        Identifiers of the data.
    table
        Approved genes and aliases.
    entrez
        Entrez numbers of the data, ``""`` where unknown; names that consist of digits are taken for such.

    Examples
    --------
    >>> import pandas as pd
    >>> from scdrugmap.genes import Genes, read_table, resolve_genes
    >>> table = read_table(pd.DataFrame({"symbol": ["ZNRD2", "TP53"], "prev_symbol": ["SSSCA1", ""]}))
    >>> resolve_genes(Genes.from_names(["SSSCA1", "TP53", "XYZ"]), table).symbol.tolist()
    ['ZNRD2', 'TP53', 'XYZ']
    """
    numbers = np.where(classify(genes.names) == "entrez", genes.names, "")
    if entrez is not None:
        given = as_text(entrez)
        numbers = np.where(given != "", given, numbers)
    given_symbol, given_ensembl = genes.symbols.astype(object), genes.ensembl.astype(object)
    by_ensembl = _lookup(given_ensembl, _first(table.approved, "ensembl_id", "symbol"))
    approved = np.where(np.isin(given_symbol.astype(str), table.approved["symbol"].to_numpy(str)), given_symbol, "")
    by_alias, how_alias, several = _other_names(genes.names, given_symbol, table)
    by_entrez = _lookup(numbers.astype(object), _unique(table.approved, "entrez_id", "symbol"))

    # A name that stands beside its supposed meaning, or beside another name of it, means something else here.
    present = np.concatenate([by_ensembl[by_ensembl != ""], approved[(by_ensembl == "") & (approved != "")]])
    is_alias = np.isin(how_alias.astype(str), ["alias", "date", "separator"])
    open_alias = (by_ensembl == "") & (approved == "") & is_alias
    crowded = np.isin(by_alias.astype(str), present.astype(str))
    targets, counts = np.unique(by_alias[open_alias].astype(str), return_counts=True)
    crowded |= np.isin(by_alias.astype(str), targets[counts > 1])
    refused = np.where(open_alias & crowded, by_alias, "")
    by_alias = np.where(refused != "", "", by_alias)

    symbol, status = given_symbol.copy(), np.full(len(genes), "unknown", dtype=object)
    todo = np.ones(len(genes), dtype=bool)
    ways: list[tuple[np.ndarray, str | np.ndarray]] = [
        (by_ensembl, np.where(by_ensembl == given_symbol, "approved", "ensembl").astype(object)),
        (approved, "approved"),
        (by_alias, how_alias),
        (by_entrez, "entrez"),
    ]
    for found, how in ways:
        hit = todo & (found != "")
        symbol[hit] = found[hit]
        status[hit] = how[hit] if isinstance(how, np.ndarray) else how
        todo &= ~hit
    maybe = np.where(todo, np.where(refused != "", refused, several), "")
    status[maybe != ""] = "ambiguous"
    foreign = ~np.isin(species_of(genes.names), ["human", "unknown"]) & (status == "unknown")
    foreign &= np.isin(species_of(genes.names), ["mouse", "rat", "mouse or rat", "fruit fly", "roundworm"])
    status[foreign] = "other species"

    known_id = np.isin(given_ensembl.astype(str), table.approved["ensembl_id"].to_numpy(str)) & (given_ensembl != "")
    from_symbol = np.where(todo, "", _lookup(symbol, _ensembl_of(table.approved)))
    ensembl = np.where(known_id | (from_symbol == ""), given_ensembl, from_symbol)
    return Resolution(
        symbol=symbol.astype(str),
        ensembl=ensembl.astype(str),
        status=status.astype(str),
        candidates=maybe.astype(str),
        conflict=(by_ensembl != "") & (approved != "") & (by_ensembl != approved),
    )


def _other_names(names: np.ndarray, symbols: np.ndarray, table: GeneTable) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What each name leads to if it is no approved symbol, by which way, and the candidates where it is several."""
    target, status, candidates = _aliases(table.aliases)
    found, how, several = (_lookup(symbols, series) for series in (target, status, candidates))
    bare = np.where(symbols == "", dated(names), "").astype(object)
    by_date = _lookup(bare, _DATED)
    dashed = pd.Series(symbols, dtype=object).str.replace(r"[._ ]", "-", regex=True).to_numpy(dtype=object)
    approved = np.isin(dashed.astype(str), table.approved["symbol"].to_numpy(str)) & (dashed != symbols)
    for more, way in ((by_date, "date"), (np.where(approved, dashed, ""), "separator")):
        hit = (found == "") & (several == "") & (more != "")
        unclear = hit & np.char.count(more.astype(str), "|").astype(bool)
        several[unclear] = more[unclear]
        hit &= ~unclear
        found[hit], how[hit] = more[hit], way
    return found, how, several


def duplicates(resolution: Resolution, names: np.ndarray) -> np.ndarray:
    """Return for every gene the number of the output column: genes with one symbol (or one Ensembl id) share it.

    Columns are numbered by first appearance. Genes of another species and genes without identifiers stay alone, and so
    do features that are no genes, dates, and genes with Ensembl ids of their own under a symbol that the table does not
    know (``Y_RNA``, which hundreds of genes bear).
    """
    names = np.asarray(names).astype(str)
    key = np.where(resolution.symbol != "", np.char.add("s:", resolution.symbol.astype(str)), "")
    own = (resolution.ensembl != "") & (resolution.status == "unknown")
    ids = pd.Series(resolution.ensembl, dtype=object).where(own, None)
    several = ids.groupby(key).transform("nunique") > 1
    bare = ((key == "") | (several.to_numpy(bool) & own)) & (resolution.ensembl != "")
    key = np.where(bare, np.char.add("e:", resolution.ensembl.astype(str)), key)
    alone = (key == "") | np.isin(resolution.status, ["other species", "ambiguous"])
    key = np.where(alone, np.char.add("n:", names), key)
    single = (resolution.status == "no gene") | (dated(names) != "") & (resolution.status != "ensembl")
    key = np.where(single, np.char.add(np.arange(len(names)).astype(str), ":"), key)
    return pd.factorize(key)[0]


def sum_columns(X: Any, target: np.ndarray) -> Any:
    """Add columns up: output column ``j`` is the sum of the columns whose ``target`` is ``j``.

    Parameters
    ----------
    X
        ``(n, n_genes)``, dense or sparse; not changed.
    target
        ``(n_genes,)`` numbers of the output columns.

    Returns
    -------
    The sums, exact: in the type of ``X`` where it holds them, else in a wider one.

    Examples
    --------
    >>> import numpy as np
    >>> from scdrugmap.genes import sum_columns
    >>> sum_columns(np.array([[1, 2, 3]]), np.array([0, 1, 0])).tolist()
    [[4, 2]]
    """
    shape = (len(target), int(target.max()) + 1 if len(target) else 0)
    wide = {"b": np.int64, "i": np.int64, "u": np.uint64}.get(X.dtype.kind, X.dtype if X.dtype != np.float16 else "f4")
    collect = sparse.csr_matrix((np.ones(len(target), dtype=wide), (np.arange(len(target)), target)), shape=shape)
    if not sparse.issparse(X):
        given = np.asarray(np.ma.filled(X.astype(np.float64), np.nan) if np.ma.is_masked(X) else X)
        return _narrowed(np.asarray(given.astype(wide, copy=False) @ collect), X.dtype)
    result = (X.tocsr().astype(wide) @ collect).asformat(X.format)
    result.data = _narrowed(result.data, X.dtype)
    result.sort_indices()
    return result


def _narrowed(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Values in a narrower type where it holds all of them."""
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = values.astype(dtype)
    return narrow if np.array_equal(narrow.astype(values.dtype), values, equal_nan=dtype.kind == "f") else values


@dataclass(frozen=True)
class Coverage:
    """How far a vocabulary and a data set agree.

    Parameters
    ----------
    n_vocabulary, n_genes, n_found
        Distinct names in the vocabulary, distinct names in the data, and those in both.
    of_vocabulary, of_genes, of_counts
        Shares of the vocabulary, of the data's genes and of the data's counts (``nan`` without counts) that are found.
    """

    n_vocabulary: int
    n_genes: int
    n_found: int
    of_vocabulary: float
    of_genes: float
    of_counts: float


def coverage(names: np.ndarray, vocabulary: Mapping[str, int] | set[str], totals: np.ndarray | None = None) -> Coverage:
    """Compare the genes of a data set with a vocabulary.

    Parameters
    ----------
    names
        ``(n_genes,)`` names in the language of the vocabulary, ``""`` where unknown.
    vocabulary
        Names of the vocabulary; special tokens (``<pad>``, ``[CLS]``) do not count.
    totals
        ``(n_genes,)`` counts of each gene.

    Examples
    --------
    >>> import numpy as np
    >>> from scdrugmap.genes import coverage
    >>> coverage(np.array(["TP53", "XYZ"]), {"<pad>": 0, "TP53": 1, "EGFR": 2}).of_vocabulary
    0.5
    """
    words = {word for word in vocabulary if word and word[0] not in "<["}
    texts = np.asarray(names).astype(str)
    found = np.isin(texts, list(words)) & (texts != "")
    n_genes = len(set(texts[texts != ""])) + int((texts == "").sum())
    n_found = len(set(texts[found]))
    total = float("nan") if totals is None else float(np.sum(totals))
    return Coverage(
        n_vocabulary=len(words),
        n_genes=n_genes,
        n_found=n_found,
        of_vocabulary=n_found / len(words) if words else 0.0,
        of_genes=n_found / n_genes if n_genes else 0.0,
        of_counts=float(np.sum(totals[found])) / total if totals is not None and total > 0 else float("nan"),
    )


def _lookup(keys: np.ndarray, values: pd.Series) -> np.ndarray:
    """Look texts up in a series with a unique index; ``""`` where absent."""
    out = pd.Series(keys, dtype=object).map(values).fillna("").to_numpy(dtype=object, copy=True)
    out[keys == ""] = ""
    return out


def _first(frame: pd.DataFrame, key: str, value: str) -> pd.Series:
    """Series from key to value, the first row of each key."""
    rows = frame[(frame[key] != "") & (frame[value] != "")].drop_duplicates(key)
    return pd.Series(rows[value].to_numpy(), index=rows[key].to_numpy(), dtype=object)


def _ensembl_of(approved: pd.DataFrame) -> pd.Series:
    """Series from symbol to Ensembl id, only symbols with one id in the first table that has any."""
    rows = approved[(approved["symbol"] != "") & (approved["ensembl_id"] != "")]
    if "table" in rows:
        rows = rows[rows["table"] == rows.groupby("symbol")["table"].transform("min")]
    return _unique(rows, "symbol", "ensembl_id")


def _unique(frame: pd.DataFrame, key: str, value: str) -> pd.Series:
    """Series from key to value, only keys that lead to one value."""
    rows = frame[(frame[key] != "") & (frame[value] != "")].drop_duplicates([key, value])
    rows = rows[~rows[key].duplicated(keep=False)]
    return pd.Series(rows[value].to_numpy(), index=rows[key].to_numpy(), dtype=object)


def _aliases(aliases: pd.DataFrame) -> tuple[pd.Series, pd.Series, pd.Series]:
    """Targets and kinds of the aliases that lead to one gene, and the candidates of those that lead to several."""
    several = aliases["alias"].duplicated(keep=False)
    one, many = aliases[~several], aliases[several]
    candidates = many.groupby("alias", sort=False)["symbol"].agg(lambda s: "|".join(dict.fromkeys(s)))
    if many.empty:
        candidates = pd.Series(dtype=object)
    target = pd.Series(one["symbol"].to_numpy(), index=one["alias"].to_numpy(), dtype=object)
    return target, pd.Series(one["status"].to_numpy(), index=one["alias"].to_numpy(), dtype=object), candidates
