"""Gene identifiers as arrays: which kind they are, which species they speak of, and one container for them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

Kind = Literal["symbol", "ensembl", "entrez", "unknown"]

#: Ensembl gene id: species letters, eleven digits, an optional version and the mark of the Y copy.
_ENSEMBL = r"^ENS([A-Z]{0,5})G\d{11}(?:\.\d+)?(?:_PAR_Y)?$"
_GENOME_PREFIX = r"^(GRCh3[78]|hg19|hg38|GRCm3[89]|mm10|mm39)_+"
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
        by_symbol = np.where(kinds == "symbol", strip_genome(texts), "")
        by_ensembl = np.where(kinds == "ensembl", strip_version(texts), "")
        if symbols is not None:
            given = as_text(symbols)
            given = np.where(classify(given) == "ensembl", "", given)
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

    A name is taken for an Entrez number when it consists of digits, and for a symbol when it is none of the others
    and holds a letter.

    Examples
    --------
    >>> from scdrugmap.genes import classify
    >>> classify(["TP53", "ENSG00000141510.18", "7157", ""]).tolist()
    ['symbol', 'ensembl', 'entrez', 'unknown']
    """
    series = _series(names)
    out = np.full(len(series), "unknown", dtype="<U7")
    out[series.str.contains(r"[A-Za-z]", regex=True).to_numpy()] = "symbol"
    out[series.str.match(r"^\d+$").to_numpy()] = "entrez"
    out[series.str.replace(_GENOME_PREFIX, "", regex=True).str.match(_ENSEMBL).to_numpy()] = "ensembl"
    return out


def strip_version(names: Iterable[str]) -> np.ndarray:
    """Remove the version (``.18``), the mark ``_PAR_Y`` and a genome prefix from Ensembl ids; leave others alone."""
    series = _series(names)
    bare = series.str.replace(_GENOME_PREFIX, "", regex=True)
    stripped = bare.str.replace(r"(?:\.\d+)?(?:_PAR_Y)?$", "", regex=True)
    return _array(stripped.where(bare.str.match(_ENSEMBL), series))


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
    bare = series.str.replace(_GENOME_PREFIX, "", regex=True)
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
    letters = bare.str.extract(_ENSEMBL, expand=False)
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
