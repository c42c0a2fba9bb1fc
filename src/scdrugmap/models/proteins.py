"""Genes that are known by their proteins: rows of a token table, and where the genes lie on their chromosomes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from scdrugmap._errors import CheckpointError
from scdrugmap.models.checkpoint import load_json, load_pickle, load_tensors


@dataclass(frozen=True)
class Genome:
    """What the token table's rows are, for one species.

    Parameters
    ----------
    n_rows
        Rows of the token table: special tokens, genes of all species, chromosomes of all species.
    chromosome_offset
        Row of the first chromosome.
    vocabulary
        Upper-case symbol to row.
    chromosome, start
        ``(n_rows,)`` code of the chromosome and position on it; -1 where the row is no gene of the species.
    unplaced, ambiguous
        Symbols with a protein and without, or with more than one, position.
    """

    n_rows: int
    chromosome_offset: int
    vocabulary: Mapping[str, int]
    chromosome: np.ndarray
    start: np.ndarray
    unplaced: frozenset[str] = frozenset()
    ambiguous: frozenset[str] = frozenset()


def read_genome(symbols_file: Path, places_file: Path, offsets_file: Path, species: str, n_rows: int) -> Genome:
    """Read what the rows of an official token table are.

    Parameters
    ----------
    symbols_file
        Dictionary of symbol to protein vector; its order is that of the table's rows.
    places_file
        CSV with the columns ``gene_symbol``, ``chromosome``, ``start`` and ``species``, for all species.
    offsets_file
        First row of each species, as pickle or JSON.
    species
        Species to read.
    n_rows
        Rows of the token table; the last ones are the chromosomes.

    Raises
    ------
    CheckpointError
        If a file is corrupt or the files do not fit each other.
    """
    offsets = load_json(offsets_file) if offsets_file.suffix == ".json" else load_pickle(offsets_file)
    words = list(dict.fromkeys(str(s).upper() for s in load_tensors(symbols_file)))
    places = _places(places_file)
    names = places["species"] + "_" + places["chromosome"]
    codes = np.unique(names.to_numpy(dtype=str))
    chromosome_offset = n_rows - len(codes)
    first = offsets.get(species)
    later = [o for o in offsets.values() if first is not None and o > first]
    # Symbols that differ in case only have rows of their own, although only the first of them is used.
    if first is None or first + len(words) > min([*later, chromosome_offset]):
        room = "no rows" if first is None else f"rows {first} to {min([*later, chromosome_offset]) - 1}"
        raise CheckpointError(
            "checkpoint",
            f"{len(words)} symbols in {symbols_file.name}, {room} of the token table for {species}",
            "a row for every symbol",
            "use the files that came with these weights.",
        )
    own = places["species"].to_numpy() == species
    table = pd.DataFrame(
        {
            "symbol": places["gene_symbol"].str.upper()[own],
            "code": np.searchsorted(codes, names[own].to_numpy(dtype=str)),
            "start": places["start"][own].astype(np.int64),
        }
    ).drop_duplicates()
    ambiguous = frozenset(table["symbol"][table["symbol"].duplicated()])
    table = table.drop_duplicates("symbol").set_index("symbol")
    placed = [i for i, w in enumerate(words) if w in table.index]
    vocabulary = {words[i]: first + i for i in placed}
    rows = np.array(list(vocabulary.values()), dtype=np.int64)
    chromosome, start = np.full(n_rows, -1, dtype=np.int64), np.full(n_rows, -1, dtype=np.int64)
    chromosome[rows] = table["code"].loc[list(vocabulary)]
    start[rows] = table["start"].loc[list(vocabulary)]
    unplaced = frozenset(words) - vocabulary.keys()
    return Genome(n_rows, chromosome_offset, vocabulary, chromosome, start, unplaced, ambiguous.intersection(words))


def _places(path: Path) -> pd.DataFrame:
    """Rows of the table of gene positions, as text."""
    columns = ["gene_symbol", "chromosome", "start", "species"]
    try:
        return pd.read_csv(path, usecols=columns, dtype=str, keep_default_na=False)
    except (ValueError, UnicodeDecodeError) as error:
        raise CheckpointError(
            "checkpoint",
            f"{path.name}: {str(error).splitlines()[0]}",
            f"a CSV file with the columns {', '.join(columns)}",
            "replace the file by the official one.",
        ) from error


class ProteinRows:
    """Rows of the token table, read when asked for; a copy of the network shares them."""

    def read(self, rows: np.ndarray) -> Tensor:
        """Return ``(len(rows), token_dim)`` float32."""
        raise NotImplementedError

    def __deepcopy__(self, memo: object) -> Self:
        return self


@dataclass(frozen=True)
class FileRows(ProteinRows):
    """Rows of a tensor in a mapped weight file; nothing stays in memory between two calls."""

    file: Path
    tensor: str

    def read(self, rows: np.ndarray) -> Tensor:
        """Copy some rows out of the file."""
        return load_tensors(self.file)[self.tensor][torch.from_numpy(rows)].float()


@dataclass(frozen=True)
class RandomRows(ProteinRows):
    """Random rows, each a function of its number."""

    width: int
    rng: int

    def read(self, rows: np.ndarray) -> Tensor:
        """Draw some rows."""
        draws = [np.random.default_rng([self.rng, int(r)]).standard_normal(self.width, dtype=np.float32) for r in rows]
        return torch.from_numpy(np.stack(draws)) * torch.from_numpy(rows != PAD)[:, None]
