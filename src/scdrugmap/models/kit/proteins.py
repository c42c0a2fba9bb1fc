"""Genes that are known by their proteins: rows of a token table, and where the genes lie on their chromosomes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scdrugmap._errors import CheckpointError
from scdrugmap.models.kit.checkpoint import load_json, load_pickle, load_tensors

#: Species and the assembly in the name of its file of proteins.
PROTEOMES = {
    "human": "Homo_sapiens.GRCh38",
    "mouse": "Mus_musculus.GRCm39",
    "frog": "Xenopus_tropicalis.Xenopus_tropicalis_v9.1",
    "zebrafish": "Danio_rerio.GRCz11",
    "mouse_lemur": "Microcebus_murinus.Mmur_3.0",
    "pig": "Sus_scrofa.Sscrofa11.1",
    "macaca_fascicularis": "Macaca_fascicularis.Macaca_fascicularis_6.0",
    "macaca_mulatta": "Macaca_mulatta.Mmul_10",
}


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
    loci
        ``(genes, 3)`` row, code of the chromosome among all species' and position on it.
    without_locus, ambiguous
        Symbols with a protein and without, or with more than one, position.
    """

    n_rows: int
    chromosome_offset: int
    vocabulary: Mapping[str, int]
    loci: np.ndarray
    without_locus: frozenset[str] = frozenset()
    ambiguous: frozenset[str] = frozenset()

    @cached_property
    def by_position(self) -> np.ndarray:
        """Rows of the genes in genomic order, ``(genes,)``."""
        row, code, start = self.loci.T
        return row[np.lexsort((row, start, code))]

    @cached_property
    def position(self) -> np.ndarray:
        """Place of each row in genomic order, ``(n_rows,)``; -1 where it is no gene of the species."""
        return self._by_row(self.by_position, np.arange(len(self.by_position)))

    @cached_property
    def chromosomes(self) -> np.ndarray:
        """Codes of the species' chromosomes, ascending."""
        return np.unique(self.loci[:, 1])

    @cached_property
    def chromosome(self) -> np.ndarray:
        """Chromosome of each row as a place in ``chromosomes``, ``(n_rows,)``."""
        return self._by_row(self.loci[:, 0], np.searchsorted(self.chromosomes, self.loci[:, 1]))

    def _by_row(self, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
        out = np.full(self.n_rows, -1, dtype=np.int64)
        out[rows] = values
        return out


def read_genome(symbols_file: Path, loci_file: Path, offsets_file: Path, species: str, n_rows: int) -> Genome:
    """Read what the rows of an official token table are.

    Parameters
    ----------
    symbols_file
        Dictionary of symbol to protein vector; its order is that of the table's rows.
    loci_file
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
    loci = _read_loci(loci_file)
    names = loci["species"] + "_" + loci["chromosome"]
    codes = np.unique(names.to_numpy(dtype=str))
    chromosome_offset = n_rows - len(codes)
    first = offsets.get(species)
    later = [o for o in offsets.values() if first is not None and o > first]
    if first is None or first + len(words) > min([*later, chromosome_offset]):
        room = "no rows" if first is None else f"rows {first} to {min([*later, chromosome_offset]) - 1}"
        raise CheckpointError(
            "checkpoint",
            f"{len(words)} symbols in {symbols_file.name}, {room} of the token table for {species}",
            "a row for every symbol",
            "use the files that came with these weights.",
        )
    own = loci["species"].to_numpy() == species
    table = pd.DataFrame(
        {
            "symbol": loci["gene_symbol"].str.upper()[own],
            "code": np.searchsorted(codes, names[own].to_numpy(dtype=str)),
            "start": loci["start"][own],
        }
    ).drop_duplicates()
    ambiguous = frozenset(table["symbol"][table["symbol"].duplicated()])
    table = table.drop_duplicates("symbol").set_index("symbol")
    vocabulary = {w: first + i for i, w in enumerate(words) if w in table.index}
    own_table = table.loc[list(vocabulary)]
    rows = np.array(list(vocabulary.values()), dtype=np.int64)
    own_loci = np.stack([rows, own_table["code"].to_numpy(), own_table["start"].to_numpy()], axis=1)
    without_locus = frozenset(words) - vocabulary.keys()
    return Genome(n_rows, chromosome_offset, vocabulary, own_loci, without_locus, ambiguous.intersection(words))


def random_genome(names: list[str], n_rows: int, chromosome_offset: int, rng: int) -> Genome:
    """Put genes on 24 random chromosomes, at random positions; their rows follow four special tokens."""
    generator = np.random.Generator(np.random.PCG64(rng))
    rows = np.arange(4, 4 + len(names))
    loci = np.stack([rows, generator.integers(0, 24, len(rows)), generator.permutation(len(rows))], axis=1)
    return Genome(n_rows, chromosome_offset, dict(zip(names, rows.tolist(), strict=True)), loci)


def _read_loci(path: Path) -> pd.DataFrame:
    """Table of gene positions; chromosomes are text."""
    columns = ["gene_symbol", "chromosome", "start", "species"]
    try:
        loci = pd.read_csv(path, usecols=columns, dtype=str, keep_default_na=False)
        return loci.assign(start=pd.to_numeric(loci["start"]).astype(np.int64))
    except (ValueError, UnicodeDecodeError) as error:
        raise CheckpointError(
            "checkpoint",
            f"{path.name}: {str(error).splitlines()[0]}",
            f"a CSV file with the columns {', '.join(columns)}",
            "replace the file by the official one.",
        ) from error


class ProteinRows:
    """Rows of a token table, read when asked for; copies of a network share them."""

    def read(self, rows: np.ndarray, size: int = 1024) -> Iterator[Tensor]:
        """Yield ``(<= size, token_dim)`` float32 blocks of some rows."""
        raise NotImplementedError

    def __deepcopy__(self, memo: object) -> Self:
        return self


@dataclass(frozen=True)
class FileRows(ProteinRows):
    """Rows of a tensor in a mapped weight file; nothing stays in memory afterwards."""

    file: Path
    tensor: str

    def read(self, rows: np.ndarray, size: int = 1024) -> Iterator[Tensor]:
        """Copy some rows out of the file."""
        table = load_tensors(self.file)[self.tensor]
        for part in torch.from_numpy(rows).split(size):
            yield table[part].float()


@dataclass(frozen=True)
class RandomRows(ProteinRows):
    """Random rows, each a function of its number; row 0, the pad, is zero."""

    width: int
    rng: int

    def read(self, rows: np.ndarray, size: int = 1024) -> Iterator[Tensor]:
        """Draw some rows."""
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            generators = [np.random.default_rng([self.rng, int(r)]) for r in part]
            draws = np.stack([g.standard_normal(self.width, dtype=np.float32) for g in generators])
            yield torch.from_numpy(draws * (part != 0)[:, None])


class ProjectedProteins(nn.Module):
    """Protein vectors with norm one, projected to the width of a network.

    Outside of training each token is projected once, and again after the weights have changed.

    Parameters
    ----------
    source, rows
        Where protein vectors are read, and the row of each token.
    token_dim, dim
        Widths of a protein vector and of the network.
    """

    def __init__(self, source: ProteinRows, rows: np.ndarray, token_dim: int, dim: int) -> None:
        super().__init__()
        self.source, self.rows, self.scale = source, rows, dim**0.5
        self.encoder = nn.Sequential(nn.Linear(token_dim, dim), nn.GELU(), nn.LayerNorm(dim))
        self._table: tuple[tuple[object, ...], Tensor] | None = None

    def forward(self, tokens: Tensor) -> Tensor:
        """Look up ``(n, length)`` tokens, ``(n, length, dim)``."""
        if torch.is_grad_enabled() and any(p.requires_grad for p in self.encoder.parameters()):
            used, inverse = torch.unique(tokens, return_inverse=True)
            parts = [self._project(vectors) for vectors in self.source.read(self.rows[used.cpu().numpy()])]
            return F.embedding(inverse, torch.cat(parts))
        return F.embedding(tokens, self.table())

    def table(self) -> Tensor:
        """Projection of every token, ``(tokens, dim)``."""
        parameters = list(self.encoder.parameters())
        device = parameters[0].device
        key = (device, *((id(p), p.data_ptr(), p._version) for p in parameters))
        if self._table is None or self._table[0] != key:
            # An ordinary float32 tensor, which training may use later, whatever mode the caller is in.
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
                parts = [self._project(vectors) for vectors in self.source.read(self.rows)]
                self._table = (key, torch.cat(parts))
        return self._table[1]

    def _project(self, vectors: Tensor) -> Tensor:
        vectors = vectors.to(next(self.encoder.parameters()).device)
        return self.encoder(F.normalize(vectors, dim=-1)) * self.scale
