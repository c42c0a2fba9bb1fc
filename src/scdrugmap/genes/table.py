"""Tables of genes: the packaged one, and the formats of the HGNC and Ensembl that a user may have."""

from __future__ import annotations

import io
import lzma
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from os import PathLike, fspath
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd

from scdrugmap._errors import InputError, InputTypeError
from scdrugmap.genes.identifiers import as_text, strip_version

TableLike: TypeAlias = str | PathLike[str] | pd.DataFrame

#: Chromosomes of the primary assembly; the same gene on a patch or an alternative contig is not a second gene.
_CHROMOSOMES = {*map(str, range(1, 23)), "X", "Y", "MT", "M"}


@dataclass(frozen=True, eq=False)
class GeneTable:
    """Approved genes and the other names that lead to them.

    Parameters
    ----------
    approved
        ``symbol``, ``ensembl_id``, ``entrez_id``, and, for several tables, the number of the ``table``; one row per
        gene id, ``""`` where unknown.
    aliases
        ``alias``, ``symbol`` (approved) and ``status`` (``"previous"`` or ``"alias"``), without the approved names.
    source
        Where it comes from, for the record.
    """

    approved: pd.DataFrame
    aliases: pd.DataFrame
    source: str


@lru_cache(maxsize=1)
def _packaged() -> pd.DataFrame:
    raw = files("scdrugmap.genes").joinpath("data/human_protein_coding.csv.xz").read_bytes()
    frame = pd.read_csv(io.BytesIO(lzma.decompress(raw)), comment="#", dtype=str, keep_default_na=False)
    frame["expression"] = pd.to_numeric(frame["expression"]).fillna(0).astype(int)
    return frame


def packaged_table() -> pd.DataFrame:
    """Return the human protein-coding genes that come with the package.

    Returns
    -------
    A data frame with one row per Ensembl gene: ``symbol``, ``ensembl_id``, ``entrez_id`` (``""`` where Ensembl gives
    none or several) and ``expression``, a level from 5 (highest) to 1 of the genes that tumour and blood cells express
    most, 0 for the others.

    Notes
    -----
    Genes of GRCh38 on chromosomes 1-22, X, Y and MT, Ensembl release 109. It holds approved symbols only: aliases
    and previous symbols need a table of the HGNC.

    Examples
    --------
    >>> from scdrugmap.genes import packaged_table
    >>> table = packaged_table()
    >>> table.loc[table["symbol"] == "TP53", "ensembl_id"].item()
    'ENSG00000141510'
    """
    return _packaged().copy()


def read_table(table: TableLike | Sequence[TableLike] | None = None) -> GeneTable:
    """Read one or several gene tables in any of the known formats.

    Parameters
    ----------
    table
        ``None`` for the packaged table; a path (``.tsv``, ``.csv``, also compressed) or a data frame; or a list of
        these, where the first that knows a name decides. Known columns are those of

        * the complete set of the HGNC: ``symbol``, ``alias_symbol``, ``prev_symbol``, ``ensembl_gene_id``,
          ``entrez_id`` (several names separated by ``|``),
        * a list of names: ``symbol_or_alias``, ``approved_symbol``, ``ensembl``,
        * an Ensembl annotation: ``ensgene`` (or ``ensembl_id``, ``gene_id``), ``symbol`` (or ``gene_name``),
          ``entrez``, and ``chr``, by which patches are left out.

    Raises
    ------
    InputError
        The file cannot be read, or has none of these columns.
    InputTypeError
        ``table`` is something else.

    Examples
    --------
    >>> import pandas as pd
    >>> from scdrugmap.genes import read_table
    >>> table = read_table(pd.DataFrame({"symbol": ["ZNRD2"], "alias_symbol": ["SSSCA1|p27"], "prev_symbol": [""]}))
    >>> table.aliases["alias"].tolist()
    ['SSSCA1', 'p27']
    """
    if table is None:
        frame = _packaged()[["symbol", "ensembl_id", "entrez_id"]]
        source = "packaged: human protein-coding genes, Ensembl 109, approved symbols only (no aliases)"
        return GeneTable(frame, _no_aliases(), source)
    if isinstance(table, list | tuple):
        if not table:
            raise InputError("table", table, "a path, a data frame, or a list with at least one", "pass table=None.")
        return _merge([read_table(t) for t in table])
    if isinstance(table, pd.DataFrame):
        return _parse(table, "a data frame")
    if isinstance(table, str | PathLike):
        return _parse(_read_file(Path(fspath(table)).expanduser()), Path(fspath(table)).name)
    raise InputTypeError("table", type(table).__name__, "a path, a data frame, a list of them or None", "pass a path.")


def _read_file(path: Path) -> pd.DataFrame:
    """Read a delimited text file, tabs first."""
    if not path.is_file():
        raise InputError("table", str(path), "a file that exists", "check the path.")
    try:
        frame = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, comment="#", low_memory=False)
        if frame.shape[1] == 1:
            frame = pd.read_csv(path, dtype=str, keep_default_na=False, comment="#", low_memory=False)
    except (ValueError, OSError) as error:
        raise InputError("table", str(path), "a delimited text file", f"look at the file ({error}).") from error
    return frame


def _parse(frame: pd.DataFrame, source: str) -> GeneTable:
    """Recognise the format by its columns."""
    columns = {str(c).lower(): c for c in frame.columns}

    def get(*names: str) -> np.ndarray:
        found = next((columns[n] for n in names if n in columns), None)
        return np.full(len(frame), "", dtype=object) if found is None else as_text(frame[found]).astype(object)

    if {"symbol_or_alias", "approved_symbol"} <= set(columns):
        return _parse_names(get("symbol_or_alias"), get("approved_symbol"), get("ensembl", "ensembl_id"), source)
    symbol = get("symbol", "gene_symbol", "gene_name", "approved_symbol")
    ensembl = get("ensembl_gene_id", "ensembl_id", "ensgene", "gene_id", "ensembl")
    if not (symbol != "").any():
        raise InputError(
            "table",
            f"columns {', '.join(map(str, frame.columns[:12]))}",
            "a column symbol, or symbol_or_alias and approved_symbol",
            "rename the columns; see scdrugmap.genes.read_table.",
        )
    keep = symbol != ""
    if "chr" in columns:
        keep &= np.isin(get("chr").astype(str), list(_CHROMOSOMES))
    if "status" in columns:
        keep &= np.isin(get("status").astype(str), ["Approved", "approved", ""])
    approved = pd.DataFrame(
        {
            "symbol": symbol[keep],
            "ensembl_id": strip_version(ensembl[keep]).astype(object),
            "entrez_id": get("entrez_id", "entrez", "ncbi_gene_id")[keep],
        }
    )
    approved = approved[~approved.duplicated()].sort_values("ensembl_id", kind="stable").reset_index(drop=True)
    others = [
        _split(get("prev_symbol", "previous_symbols", "previous")[keep], symbol[keep], "previous"),
        _split(get("alias_symbol", "alias_symbols", "aliases", "alias")[keep], symbol[keep], "alias"),
    ]
    return GeneTable(approved, _without_approved(pd.concat(others), approved), source)


def _parse_names(names: np.ndarray, approved: np.ndarray, ensembl: np.ndarray, source: str) -> GeneTable:
    """A list of names, of which some are approved."""
    keep = (names != "") & (approved != "")
    frame = pd.DataFrame({"symbol": approved[keep], "ensembl_id": strip_version(ensembl[keep]).astype(object)})
    frame["entrez_id"] = ""
    frame = frame[~frame.duplicated()].reset_index(drop=True)
    aliases = pd.DataFrame({"alias": names[keep], "symbol": approved[keep], "status": "alias"})
    return GeneTable(frame, _without_approved(aliases, frame), source)


def _split(values: np.ndarray, symbols: np.ndarray, status: str) -> pd.DataFrame:
    """One row per name of columns that hold several."""
    frame = pd.DataFrame({"alias": pd.Series(values, dtype=str).str.split(r"[|,]"), "symbol": symbols})
    frame = frame.explode("alias", ignore_index=True)
    frame["alias"] = frame["alias"].fillna("").astype(str).str.strip().str.strip('"')
    return frame[frame["alias"] != ""].assign(status=status)


def _without_approved(aliases: pd.DataFrame, approved: pd.DataFrame) -> pd.DataFrame:
    """An approved symbol means its own gene, whoever else once bore the name."""
    aliases = aliases[~aliases["alias"].isin(approved["symbol"])]
    return aliases.drop_duplicates(["alias", "symbol"]).reset_index(drop=True)


def _merge(tables: Sequence[GeneTable]) -> GeneTable:
    """Stack tables: approved symbols of any of them are approved, aliases are joined."""
    approved = pd.concat([t.approved.assign(table=i) for i, t in enumerate(tables)], ignore_index=True)
    aliases = pd.concat([t.aliases for t in tables], ignore_index=True)
    first = tables[0].approved["symbol"]
    # An alias of the first table outranks a symbol that only a later one, perhaps of another age, approves.
    renamed = set(tables[0].aliases["alias"]) - set(first)
    approved = approved[~approved["symbol"].isin(renamed)].reset_index(drop=True)
    return GeneTable(approved, _without_approved(aliases, approved), " + ".join(t.source for t in tables))


def _no_aliases() -> pd.DataFrame:
    return pd.DataFrame({"alias": [], "symbol": [], "status": []}, dtype=object)
