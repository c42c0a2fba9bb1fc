"""Which genes of a cell a prompt names: the highest of each row, over CSR and without a loop over cells."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import sparse

from scdrugmap._errors import InputError, UnknownNameError
from scdrugmap.embedding.source import CountSource
from scdrugmap.models.kit.ranking import rank_rows
from scdrugmap.models.kit.values import check_values

BLOCK = 4096
RANKINGS = ("expressed", "contrast")

#: Gene families that are high in nearly every cell and say little about drugs.
FAMILIES = {
    "mitochondrial": r"^MT-",
    # RPS6KA1 and its like are kinases: after the number only the letters of true ribosomal genes may follow.
    "ribosomal": r"^(RP[LS]\d+(AL|[AXYL])?(L?\d)?(P\d+)?|RPLP[012]|RPSA)$",
    "haemoglobin": r"^HB(A[12]|B|D|E1|G[12]|M|Q1|Z)$",
    "noncoding": r"^(MALAT1|NEAT1|XIST)$",
}


@dataclass(frozen=True, eq=False)
class GeneLists:
    """Gene names of every cell, kept as numbers; ``lists[i]`` is the list of cell ``i``, the highest gene first.

    Parameters
    ----------
    symbols
        ``(genes,)`` names.
    columns
        Numbers of the genes, cell after cell.
    offsets
        ``(n + 1,)`` boundaries of the cells in ``columns``.
    """

    symbols: np.ndarray
    columns: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> list[str]:
        return [str(s) for s in self.symbols[self.columns[self.offsets[i] : self.offsets[i + 1]]]]

    @property
    def lengths(self) -> np.ndarray:
        """Number of genes of each cell."""
        return np.diff(self.offsets)


def select_genes(
    X: Any,
    genes: Iterable[str],
    k: int = 10,
    *,
    ranking: Literal["expressed", "contrast"] = "expressed",
    exclude: Sequence[str] = (),
) -> GeneLists:
    """Choose up to ``k`` genes of every cell.

    Parameters
    ----------
    X
        ``(n, genes)`` non-negative counts or logged counts; any matrix that AnnData holds.
    genes
        Names of the columns.
    k
        Genes per cell. A cell that expresses fewer gets fewer.
    ranking
        ``"expressed"``: by value. ``"contrast"``: by the logged, depth-normalised value less the mean of the gene
        over all cells, in standard deviations; this depends on the other cells.
    exclude
        Families to leave out (``"mitochondrial"``, ``"ribosomal"``, ``"haemoglobin"``, ``"noncoding"``), or regular
        expressions that begin with ``"^"``.

    Returns
    -------
    The lists. Only expressed genes are named; equal values keep the order of the columns.

    Raises
    ------
    InputError
        On NaN, infinite or negative values, ``k`` below 1, or names that do not fit the matrix.
    UnknownNameError
        For another ranking or family.

    Examples
    --------
    >>> import numpy as np
    >>> lists = select_genes(np.array([[9, 2, 0], [0, 1, 1]]), ["MT-CO1", "EGFR", "TP53"], 2, exclude=["mitochondrial"])
    >>> lists[0], lists[1]
    (['EGFR'], ['EGFR', 'TP53'])
    """
    symbols = np.asarray(list(genes), dtype=object)
    source = CountSource(X)
    if source.shape[1] != len(symbols):
        raise InputError("genes", f"{len(symbols)} names", f"{source.shape[1]}, one per column", "pass all names.")
    if k < 1:
        raise InputError("n_genes", k, "1 or more", "pass n_genes=10.")
    if ranking not in RANKINGS:
        raise UnknownNameError("ranking", ranking, RANKINGS)
    usable = np.flatnonzero(~excluded(symbols, exclude))
    moments = _moments(source) if ranking == "contrast" else None
    columns, lengths = [np.empty(0, np.int64)], [np.zeros(1, np.int64)]
    for _, raw in source.blocks(BLOCK):
        check_values(raw, counts=False, model="a prompt")
        block = _scores(raw, moments)[:, usable]
        block.sort_indices()
        positions, offsets = rank_rows(block.data, block.indptr, top=k)
        columns.append(usable[block.indices[positions]])
        lengths.append(np.diff(offsets))
    return GeneLists(symbols, np.concatenate(columns), np.cumsum(np.concatenate(lengths)))


def excluded(symbols: Iterable[str], exclude: Sequence[str]) -> np.ndarray:
    """Tell which names belong to the families (or match the expressions) in ``exclude``.

    Raises
    ------
    UnknownNameError
        For another family.

    Examples
    --------
    >>> excluded(["RPS6", "RPS6KA1", "RPL13A"], ["ribosomal"]).tolist()
    [True, False, True]
    """
    if isinstance(exclude, str):
        exclude = [exclude]
    for name in exclude:
        if name not in FAMILIES and not name.startswith("^"):
            raise UnknownNameError("exclude", name, FAMILIES, "A regular expression begins with '^'.")
    names = [str(s) for s in symbols]
    patterns = [re.compile(FAMILIES.get(name, name), re.IGNORECASE) for name in exclude]
    return np.fromiter((any(p.search(s) for p in patterns) for s in names), dtype=bool, count=len(names))


def _normalised(raw: sparse.csr_matrix) -> sparse.csr_matrix:
    """Logged values per 10,000 counts."""
    block = sparse.csr_matrix(raw, dtype=np.float64, copy=True)
    totals = np.asarray(block.sum(axis=1)).ravel()
    block.data *= np.repeat(1e4 / np.where(totals > 0, totals, 1), np.diff(block.indptr))
    np.log1p(block.data, out=block.data)
    return block


def _moments(source: CountSource) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each gene over all cells."""
    total, square = np.zeros(source.shape[1]), np.zeros(source.shape[1])
    for _, raw in source.blocks(BLOCK):
        check_values(raw, counts=False, model="a prompt")
        block = _normalised(raw)
        total += np.asarray(block.sum(axis=0)).ravel()
        square += np.asarray(block.multiply(block).sum(axis=0)).ravel()
    mean = total / max(source.shape[0], 1)
    return mean, np.sqrt(np.maximum(square / max(source.shape[0], 1) - mean**2, 0))


def _scores(raw: sparse.csr_matrix, moments: tuple[np.ndarray, np.ndarray] | None) -> sparse.csr_matrix:
    """Positive values to rank by, at the expressed entries alone."""
    if moments is None:
        block = sparse.csr_matrix(raw, dtype=np.float64, copy=True)
        block.sum_duplicates()
        block.eliminate_zeros()
        return block
    block = _normalised(_scores(raw, None))
    mean, deviation = moments
    # A floor keeps a gene that hardly varies from standing above all others.
    z = (block.data - mean[block.indices]) / (deviation[block.indices] + 0.1)
    block.data = z - (z.min() if z.size else 0) + 1
    return block
