"""Gene identifiers as arrays: which kind they are, which species they speak of, and one container for them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

Kind = Literal["symbol", "ensembl", "entrez", "unknown"]

#: Ensembl gene id: species letters and eleven digits (the Y copies of old GENCODE releases have R and ten); then what
#: may follow it: a version, that of a mapping to another genome, and the mark of the Y copy.
_ID = r"ENS([A-Z]{0,5})G(?:\d{11}|R\d{10})"
_VERSION = r"(?:\.\d+)?(?:_\d{1,2})?(?:_PAR_Y)?(?:_\d{1,2})?"
_ENSEMBL = rf"(?i)^{_ID}{_VERSION}$"
#: An Ensembl id and a symbol (or an Entrez number) in one name, in either order.
_SEPARATOR = r"(?:[_|:;,/~ \t(\-]+)"
_ID_FIRST = rf"(?i)^(?P<id>{_ID}){_VERSION}{_SEPARATOR}(?P<other>[A-Za-z0-9][^|()]*?)(?:\)|\|.*)?$"
_ID_LAST = rf"(?i)^(?P<other>[A-Za-z0-9][^|()]*?){_SEPARATOR}(?P<id>{_ID}){_VERSION}\)?$"
#: Symbol and Entrez number, as the TCGA writes them.
_WITH_NUMBER = r"^(?P<symbol>[A-Za-z][^|]*)\|(?P<number>\d+)$"
_MONTHS = {"mar": "MARCH", "sep": "SEPT", "dec": "DEC"}
#: What a spreadsheet makes of MARCH1, SEPT2 and DEC1: a day and a month, in some order.
_DATE = (
    r"(?i)^(?P<day>\d{1,2})[-/. ](?P<month>mar|sep|dec)[a-z]*(?:[-/. ]\d{2,4})?$",
    r"(?i)^(?P<month>mar|sep|dec)[a-z]*[-/. ](?P<day>\d{1,2})$",
    r"^(?:19|20)\d\d-(?P<month>03|09|12)-(?P<day>\d\d)(?:[ T]00:00:00)?$",
)
_MONTH_NUMBERS = {"03": "mar", "09": "sep", "12": "dec"}
_GENOME_PREFIX = r"^(GRCh3[78]|hg19|hg38|GRCm3[89]|mm10|mm39)[_\-.:|]+"
_SPECIES_OF_LETTERS = {
    "": "human",
    "MUS": "mouse",
    "RNO": "rat",
    "DAR": "zebrafish",
    "MMU": "macaque",
    "MFA": "macaque",
    "PTR": "chimpanzee",
    "SSC": "pig",
    "GAL": "chicken",
    "BTA": "cow",
    "CAF": "dog",
    "OCU": "rabbit",
}


@dataclass(frozen=True, eq=False)
class Genes:
    """Identifiers of the columns of a matrix, one entry per column and ``""`` where one is not known.

    Parameters
    ----------
    names
        Names as the data has them (``var_names``).
    symbols
        HGNC symbols.
    ensembl
        Ensembl gene ids without version.

    Examples
    --------
    >>> from scdrugmap.genes import Genes
    >>> Genes.from_names(["TP53", "EGFR"]).symbols.tolist()
    ['TP53', 'EGFR']
    """

    names: np.ndarray
    symbols: np.ndarray
    ensembl: np.ndarray

    def __post_init__(self) -> None:
        if not len(self.names) == len(self.symbols) == len(self.ensembl):
            raise ValueError("names, symbols and ensembl must have one entry per gene")

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def from_names(
        cls, names: Iterable[str], *, symbols: Iterable[str] | None = None, ensembl: Iterable[str] | None = None
    ) -> Genes:
        """Fill in what the names themselves say, and put explicit symbols and Ensembl ids above them.

        Parameters
        ----------
        names
            Names of the genes.
        symbols
            Symbols that are known already; a missing entry is taken from a name that reads as a symbol.
        ensembl
            Ensembl ids that are known already; a missing entry is taken from a name that reads as an Ensembl id.
        """
        texts = as_text(names)
        kinds = classify(texts)
        pair_id, pair_symbol = split_pairs(texts)
        by_symbol = np.where(pair_symbol != "", pair_symbol, np.where(kinds == "symbol", strip_genome(texts), ""))
        by_symbol = np.where(_foreign_genome(texts), "", by_symbol)
        by_ensembl = np.where(pair_id != "", pair_id, np.where(kinds == "ensembl", strip_version(texts), ""))
        if symbols is not None:
            given = as_text(symbols)
            given = np.where(classify(given) == "symbol", strip_genome(given), "")
            by_symbol = np.where(given != "", given, by_symbol)
        if ensembl is not None:
            given = as_text(ensembl)
            given = np.where(classify(given) == "ensembl", strip_version(given), "")
            by_ensembl = np.where(given != "", given, by_ensembl)
        return cls(texts, by_symbol.astype(str), by_ensembl.astype(str))


@dataclass(frozen=True)
class Recognition:
    """What a set of names is.

    Parameters
    ----------
    kind
        The most frequent kind.
    species
        ``"human"``, ``"mouse"``, ... or ``"unknown"``; symbols alone do not tell mouse from rat
        (``"mouse or rat"``).
    share
        Share of the names that are of ``kind``.
    species_share
        Share of the names that speak for ``species``.
    """

    kind: Kind
    species: str
    share: float
    species_share: float


def as_text(values: Iterable[object]) -> np.ndarray:
    """Return any column (categorical, object with missing values, numbers) as stripped text, ``""`` where missing."""
    texts = [_plain(value) for value in np.asarray(values, dtype=object)]
    return np.array(texts, dtype=str) if texts else np.empty(0, dtype=str)


def classify(names: Iterable[str]) -> np.ndarray:
    """Return the kind of each name: ``"symbol"``, ``"ensembl"``, ``"entrez"`` or ``"unknown"`` (empty).

    A name is taken for an Entrez number when it consists of digits, for an Ensembl id also where a symbol stands beside
    it (``ENSG00000141510_TP53``), and for a symbol when it is none of the others and holds a letter. Dates (what a
    spreadsheet makes of ``MARCH1``) are unknown.

    Examples
    --------
    >>> from scdrugmap.genes import classify
    >>> classify(["TP53", "ENSG00000141510.18", "7157", "1-Mar"]).tolist()
    ['symbol', 'ensembl', 'entrez', 'unknown']
    """
    series = _series(names)
    out = np.full(len(series), "unknown", dtype="<U7")
    out[series.str.contains(r"[A-Za-z]", regex=True).to_numpy(bool)] = "symbol"
    out[series.str.match(r"^\d+$").to_numpy(bool)] = "entrez"
    out[dated(series) != ""] = "unknown"
    out[series.str.replace(_GENOME_PREFIX, "", regex=True).str.match(_ENSEMBL).to_numpy(bool)] = "ensembl"
    out[split_pairs(series)[0] != ""] = "ensembl"
    return out


def split_pairs(names: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return Ensembl ids and symbols of names that hold both, or a symbol and an Entrez number; ``""`` for others.

    Examples
    --------
    >>> from scdrugmap.genes import split_pairs
    >>> [part.tolist() for part in split_pairs(["ENSG00000141510.18_TP53", "EGFR|1956", "HLA-A"])]
    [['ENSG00000141510', '', ''], ['TP53', 'EGFR', '']]
    """
    texts = _array(_series(names))
    ids, symbols = np.full(len(texts), "", dtype=object), np.full(len(texts), "", dtype=object)
    # Few names are of this kind, and only those with an id or a bar can be.
    with_id = (np.char.find(np.char.upper(texts), "ENS") >= 0) & (np.char.str_len(texts) > 16)
    for i in np.flatnonzero(with_id | (np.char.find(texts, "|") > 0)):
        text = re.sub(_GENOME_PREFIX, "", texts[i])
        if re.match(_ENSEMBL, text):
            continue
        if found := re.match(_ID_FIRST, text) or re.match(_ID_LAST, text):
            ids[i], symbols[i] = _plain_id(found["id"]), found["other"] if re.search("[A-Za-z]", found["other"]) else ""
        elif found := re.match(_WITH_NUMBER, text):
            symbols[i] = found["symbol"]
    return ids.astype(str), symbols.astype(str)


def dated(names: Iterable[str]) -> np.ndarray:
    """Return the old symbols of names that a spreadsheet turned into dates (``MARCH1``, ``SEPT2``), ``""`` for others.

    Examples
    --------
    >>> from scdrugmap.genes import dated
    >>> dated(["1-Mar", "Sep-02", "2023-09-07", "TP53"]).tolist()
    ['MARCH1', 'SEPT2', 'SEPT7', '']
    """
    texts = _array(_series(names))
    out = np.full(len(texts), "", dtype=object)
    for i in np.flatnonzero(_series(texts).str.contains(r"(?i)mar|sep|dec|-\d\d-", regex=True).to_numpy(bool)):
        if found := next(filter(None, (re.match(pattern, texts[i]) for pattern in _DATE)), None):
            month = found["month"].lower()
            out[i] = f"{_MONTHS[_MONTH_NUMBERS.get(month, month)]}{int(found['day'])}"
    return out.astype(str) if len(out) else np.empty(0, dtype=str)


def reads_as(values: Iterable[object]) -> Kind:
    """Return what a column of annotation holds: one kind of identifier, or ``"unknown"`` for anything else.

    A column of identifiers names most genes, and most of them by a name of their own; biotypes, chromosomes and
    descriptions do not.

    Examples
    --------
    >>> from scdrugmap.genes import reads_as
    >>> reads_as(["TP53", "EGFR", "MYC"]), reads_as(["protein_coding"] * 3)
    ('symbol', 'unknown')
    """
    texts = as_text(values)
    known = texts[texts != ""]
    if not len(known):
        return "unknown"
    kinds, counts = np.unique(classify(known), return_counts=True)
    kind = str(kinds[counts.argmax()])
    distinct = len(np.unique(known)) / len(known)
    wordy = float(np.mean(np.char.count(known, " ") > 0))
    if counts.max() < 0.5 * len(known) or (len(known) > 1 and distinct <= 0.5) or wordy > 0.5:
        return "unknown"
    return kind  # type: ignore[return-value]


def strip_version(names: Iterable[str]) -> np.ndarray:
    """Remove the version (``.18``), the mark ``_PAR_Y`` and a genome prefix from Ensembl ids; leave others alone.

    Ids that stand beside a symbol come out alone.
    """
    series = _series(names)
    bare = series.str.replace(_GENOME_PREFIX, "", regex=True)
    found = bare.str.extract(rf"(?i)^(?P<id>{_ID}){_VERSION}$")["id"]
    known = found.notna().to_numpy()
    out = series.to_numpy(dtype=object).copy()
    out[known] = [_plain_id(text) for text in found.to_numpy(dtype=object)[known]]
    if not known.all():
        pairs = split_pairs(series)[0]
        out[pairs != ""] = pairs[pairs != ""]
    return out.astype(str) if len(out) else np.empty(0, dtype=str)


def strip_genome(names: Iterable[str]) -> np.ndarray:
    """Remove the prefix that mixed-species alignments put in front of names (``GRCh38_``, ``mm10___``)."""
    return _array(_series(names).str.replace(_GENOME_PREFIX, "", regex=True))


def species_of(names: Iterable[str]) -> np.ndarray:
    """Return the species that each name speaks for, ``"unknown"`` where it does not tell.

    Ensembl ids carry it in their letters. Human symbols are upper case but for ``orf``; mouse and rat symbols have
    an upper-case first letter alone; zebrafish symbols are lower case.

    Examples
    --------
    >>> from scdrugmap.genes import species_of
    >>> species_of(["TP53", "C1orf112", "Trp53", "ENSMUSG00000059552"]).tolist()
    ['human', 'human', 'mouse or rat', 'mouse']
    """
    series = _series(names)
    out = np.full(len(series), "unknown", dtype="<U16")
    bare = series.str.replace(_GENOME_PREFIX, "", regex=True).str.replace(r"\|\d+$", "", regex=True)
    plain = bare.str.replace(r"^MT-|^mt-", "", regex=True)
    human = plain.str.replace("orf", "", regex=False).str.match(r"^[A-Z][A-Z0-9.\-_@]*$")
    rodent = plain.str.match(r"^[A-Z][a-z]+[a-z0-9.\-]*$|^[A-Z][a-z0-9]*[a-z][a-z0-9.\-]*$|^\d+[A-Z]\d{2}Rik$|^Gm\d+$")
    fish = plain.str.match(r"^[a-z][a-z]+[a-z0-9.:\-]*$")
    out[fish.to_numpy()] = "zebrafish"
    out[rodent.to_numpy()] = "mouse or rat"
    out[human.to_numpy()] = "human"
    out[series.str.match(r"^mt-[A-Z]").to_numpy()] = "mouse or rat"
    out[series.str.match(r"^FBgn\d{7}$").to_numpy()] = "fruit fly"
    out[series.str.match(r"^WBGene\d{8}$").to_numpy()] = "roundworm"
    out[series.str.match(r"^(GRCh3|hg)").to_numpy()] = "human"
    out[series.str.match(r"^(GRCm3|mm10|mm39)").to_numpy()] = "mouse"
    letters = bare.str.extract(rf"(?i)(?:^|[_|:;,/~ (\-]){_ID}", expand=False).str.upper()
    known = letters.notna().to_numpy()
    out[known] = letters[known].map(lambda code: _SPECIES_OF_LETTERS.get(code, "another species")).to_numpy(dtype=str)
    out[series.str.match(r"^\d*$").to_numpy()] = "unknown"
    return out


def recognise(names: Iterable[str]) -> Recognition:
    """Tell the kind and the species of a set of names by majority.

    Row numbers (``0, 1, 2, ...``), which a lost index leaves behind, are not taken for Entrez numbers.

    Examples
    --------
    >>> from scdrugmap.genes import recognise
    >>> recognise(["Trp53", "Egfr", "Gapdh"]).species
    'mouse or rat'
    """
    texts = _array(_series(names))
    kinds = classify(texts)
    told = kinds[kinds != "unknown"]
    if told.size == 0:
        return Recognition("unknown", "unknown", 0.0, 0.0)
    labels, counts = np.unique(told, return_counts=True)
    kind = str(labels[counts.argmax()])
    share = float(counts.max() / len(texts))
    if kind == "entrez":
        numbers = pd.to_numeric(pd.Series(texts[kinds == "entrez"]), errors="coerce").to_numpy()
        if numbers.size > 1 and numbers[0] in (0, 1) and bool((np.diff(numbers) == 1).all()):
            return Recognition("unknown", "unknown", 0.0, 0.0)
    species = species_of(texts)
    told = species[species != "unknown"]
    if told.size == 0:
        return Recognition(kind, "unknown", share, 0.0)  # type: ignore[arg-type]
    labels, counts = np.unique(told, return_counts=True)
    return Recognition(kind, str(labels[counts.argmax()]), share, float(counts.max() / len(texts)))  # type: ignore[arg-type]


def _plain_id(text: str) -> str:
    """An Ensembl id in upper case; the Y copies of old GENCODE releases under the number of the gene."""
    return re.sub(r"^ENSGR", "ENSG0", text.upper())


def _foreign_genome(names: np.ndarray) -> np.ndarray:
    """Names of a mouse genome that stand beside those of a human one: a symbol that both species have is two genes."""
    series = _series(names)
    human = series.str.match(r"^(?:GRCh3[78]|hg19|hg38)[_\-.:|]").to_numpy(bool)
    mouse = series.str.match(r"^(?:GRCm3[89]|mm10|mm39)[_\-.:|]").to_numpy(bool)
    return mouse & human.any()


def _plain(value: object) -> str:
    """One value as text; Entrez numbers of a column with gaps come as floats (``7157.0``)."""
    if value is None or value is pd.NA or (isinstance(value, float | np.floating) and np.isnan(value)):
        return ""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    text = str(value).strip()
    return "" if text in ("nan", "None", "<NA>") else text


def _series(names: Iterable[str]) -> pd.Series:
    """Names as a pandas text column."""
    return pd.Series(
        np.asarray(names if isinstance(names, np.ndarray) else list(names), dtype=object), dtype=object
    ).astype(str)


def _array(series: pd.Series) -> np.ndarray:
    """A pandas text column as a NumPy text array, also when empty."""
    return series.to_numpy(dtype=object).astype(str) if len(series) else np.empty(0, dtype=str)
