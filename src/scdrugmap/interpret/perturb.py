"""In-silico perturbation: edit counts, ask the predictor again, and say what matched random genes would have done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse, stats

KINDS = ("knockout", "knockdown", "overexpress")
#: Percentile of the cells that express a gene to which it is raised.
ACTIVE = 95
#: Edited cells in one call of the predictor.
CHUNK = 2048


@dataclass(frozen=True, eq=False)
class Expression:
    """What matching and raising need to know about every gene.

    Parameters
    ----------
    mean
        ``(genes,)`` mean share of the counts of a cell.
    detection
        ``(genes,)`` share of cells that express it.
    level
        ``(genes,)`` count at the 95th percentile of the cells that express it; 0 where none does.
    """

    mean: np.ndarray
    detection: np.ndarray
    level: np.ndarray


def survey(blocks: Iterator[sparse.csr_matrix], n_genes: int) -> Expression:
    """Look at all cells once; of the counts of a gene only how often each value occurs is kept.

    Parameters
    ----------
    blocks
        Counts, block by block.
    n_genes
        Number of columns.
    """
    total, cells, n = np.zeros(n_genes), np.zeros(n_genes), 0
    seen: sparse.csr_matrix | None = None
    for X in blocks:
        n += X.shape[0]
        depth = np.asarray(X.sum(axis=1)).ravel()
        share = X.data / np.repeat(np.where(depth > 0, depth, 1), np.diff(X.indptr))
        total += np.bincount(X.indices, weights=share, minlength=n_genes)
        cells += np.bincount(X.indices[X.data != 0], minlength=n_genes)
        values = np.clip(np.rint(X.data), 0, 65535).astype(np.int64)
        # Equal entries are summed: the block turns into a histogram per gene.
        block = sparse.coo_matrix((np.ones(len(values)), (X.indices, values)), (n_genes, 65536)).tocsr()
        seen = block if seen is None else seen + block
    level = np.zeros(n_genes)
    if seen is not None:
        for gene in np.flatnonzero(cells):
            row = slice(seen.indptr[gene], seen.indptr[gene + 1])
            values, times = seen.indices[row], seen.data[row]
            order = np.argsort(values)
            values, times = values[order][values[order] > 0], times[order][values[order] > 0]
            if len(values):
                level[gene] = values[np.searchsorted(np.cumsum(times), ACTIVE / 100 * times.sum())]
    return Expression(total / max(n, 1), cells / max(n, 1), level)


def matched(expression: Expression, targets: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Draw random genes like the targets in mean expression and detection.

    Parameters
    ----------
    expression
        Of all genes.
    targets
        Columns to match.
    n
        Genes per target.

    Returns
    -------
    ``(targets, n)`` columns, none twice in a row unless there are fewer genes than ``n``; never the target itself.
    """
    from scipy.spatial import cKDTree

    candidates = np.flatnonzero(expression.detection > 0)
    if n == 0 or len(candidates) < 2 or not len(targets):
        return np.empty((len(targets), 0), dtype=np.int64)
    place = np.column_stack([stats.rankdata(expression.mean), stats.rankdata(expression.detection)])
    near = min(3 * n + 1, len(candidates))
    _, found = cKDTree(place[candidates]).query(place[targets], k=near)
    found = candidates[np.asarray(found).reshape(len(targets), near)]
    out = np.empty((len(targets), min(n, near - 1)), dtype=np.int64)
    for i, target in enumerate(targets):
        out[i] = rng.permutation(found[i][found[i] != target][: near - 1])[: out.shape[1]]
    return out


@dataclass(frozen=True, eq=False)
class Perturbations:
    """What is edited: sets of columns, of one gene or of several at once.

    Parameters
    ----------
    members
        ``(perturbations, genes)`` CSR; an entry for each column that belongs to a perturbation.
    kind
        One of ``KINDS``.
    level
        ``(genes,)`` counts to raise to.
    """

    members: sparse.csr_matrix
    kind: str
    level: np.ndarray

    @classmethod
    def of(cls, sets: Sequence[np.ndarray], n_genes: int, kind: str, level: np.ndarray) -> Perturbations:
        """Build from the columns of each perturbation."""
        offsets = np.concatenate([[0], np.cumsum([len(s) for s in sets])])
        indices = np.concatenate([*sets, np.empty(0, dtype=np.int64)]).astype(np.int64)
        members = sparse.csr_matrix((np.ones(len(indices)), indices, offsets), (len(sets), n_genes))
        return cls(members, kind, level)

    def __len__(self) -> int:
        return self.members.shape[0]

    def changes(self, X: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
        """Return cell and perturbation of every pair that changes at least one count, perturbation by perturbation."""
        if self.kind != "overexpress":
            pairs = (self.members @ (X != 0).T.astype(np.float32)).tocoo()
            which, cell = pairs.row[pairs.data > 0], pairs.col[pairs.data > 0]
        else:
            high = sparse.csr_matrix((X.data >= self.level[X.indices], X.indices, X.indptr), X.shape)
            reached = (self.members @ high.T.astype(np.float32)).toarray()
            which, cell = np.nonzero(reached < np.diff(self.members.indptr)[:, None])
        order = np.lexsort([cell, which])
        return cell[order].astype(np.int64), which[order].astype(np.int64)

    def apply(self, X: sparse.csr_matrix, which: np.ndarray) -> sparse.csr_matrix:
        """Edit each row of ``X`` by the perturbation of that row."""
        chosen, local = np.unique(which, return_inverse=True)
        member = self.members[chosen].toarray().astype(bool)
        if self.kind == "overexpress":
            raised = sparse.csr_matrix(member * self.level)[local]
            return sparse.csr_matrix(X.maximum(raised.astype(X.dtype)))
        out = X.copy()
        rows = np.repeat(np.arange(X.shape[0]), np.diff(X.indptr))
        out.data[member[local[rows], out.indices]] = 0
        out.eliminate_zeros()
        return out


class Edits:
    """Asks about edited cells of a block as about any others: each one that changes goes through the whole predictor.

    Parameters
    ----------
    score
        Counts to log-odds.
    X
        Counts of the block.
    perturbations
        What is edited.
    """

    #: Pairs in one call of :meth:`after`.
    step = CHUNK

    def __init__(self, score: Callable[..., np.ndarray], X: sparse.csr_matrix, perturbations: Perturbations) -> None:
        self.score, self.X, self.perturbations = score, X, perturbations
        self.base = self.begin()

    def begin(self) -> np.ndarray:
        """Log-odds of the cells as they are, ``(n,)``."""
        return self.score(self.X)

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Cell and perturbation of every pair that may change the log-odds, perturbation by perturbation."""
        return self.perturbations.changes(self.X)

    def after(self, cell: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, int]:
        """Log-odds of edited cells, and how many of them went through the predictor."""
        return self.score(self.perturbations.apply(self.X[cell], which)), len(cell)


@dataclass(eq=False)
class Summary:
    """Sums over the cells of each group, ``(groups, perturbations)``."""

    n: np.ndarray
    total: np.ndarray
    squares: np.ndarray
    n_changed: int = 0
    n_forward: int = 0

    @classmethod
    def empty(cls, n_groups: int, n_perturbations: int) -> Summary:
        """Begin with nothing."""
        shape = (n_groups, n_perturbations)
        return cls(np.zeros(n_groups, dtype=np.int64), np.zeros(shape), np.zeros(shape))

    def add(self, groups: np.ndarray, which: np.ndarray, delta: np.ndarray) -> None:
        """Add changes; a cell without embedding after the edit counts as unchanged."""
        delta = np.nan_to_num(delta)
        np.add.at(self.total, (groups, which), delta)
        np.add.at(self.squares, (groups, which), delta**2)

    @property
    def mean(self) -> np.ndarray:
        """Mean change over all cells of the group, the unchanged ones with zero."""
        return self.total / np.maximum(self.n, 1)[:, None]

    def interval(self, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Interval of the mean over the cells of the group: how surely these cells say it, not how surely others do."""
        n = np.maximum(self.n, 1)[:, None]
        variance = np.maximum(self.squares / n - self.mean**2, 0) * n / np.maximum(n - 1, 1)
        half = stats.t.ppf(0.5 + level / 2, np.maximum(n - 1, 1)) * np.sqrt(variance / n)
        half = np.where(n > 1, half, np.nan)
        return self.mean - half, self.mean + half


def evaluate(
    score: Callable[..., np.ndarray],
    blocks: Iterator[tuple[sparse.csr_matrix, np.ndarray]],
    perturbations: Perturbations,
    n_groups: int,
    *,
    whole: bool = False,
    edits: Callable[..., Edits] = Edits,
    tick: Callable[[int], Any] | None = None,
) -> Summary:
    """Ask the predictor about every pair of cell and perturbation that changes a count.

    Parameters
    ----------
    score
        Counts to log-odds.
    blocks
        Counts and group of the cells, block by block.
    perturbations
        What is edited.
    n_groups
        Number of groups.
    whole
        The cells of a block see each other: each perturbation is applied to all of them at once.
    edits
        How the edited cells of a block are asked about.
    tick
        Told the number of edited cells that are done.

    Returns
    -------
    Sums per group. Cells that a perturbation leaves as they are are not embedded again, and the unperturbed cells once.
    """
    out = Summary.empty(n_groups, len(perturbations))
    for X, groups in blocks:
        asked = edits(score, X, perturbations)
        usable = ~np.isnan(asked.base)
        out.n += np.bincount(groups[usable], minlength=n_groups)
        cell, which = asked.pairs()
        if whole:
            cell, which = np.tile(np.arange(X.shape[0]), len(k := np.unique(which))), np.repeat(k, X.shape[0])
        step = X.shape[0] if whole else asked.step
        for start in range(0, len(cell), step):
            c, w = cell[start : start + step], which[start : start + step]
            after, n_forward = asked.after(c, w)
            out.n_changed, out.n_forward = out.n_changed + len(c), out.n_forward + n_forward
            out.add(groups[c], w, np.where(usable[c], after - asked.base[c], 0.0))
            if tick is not None:
                tick(len(c))
    return out


def percentile(values: np.ndarray, null: np.ndarray) -> np.ndarray:
    """Percentage of the null below each value, ties counted half; NaN without a null.

    Parameters
    ----------
    values
        ``(n,)``.
    null
        ``(n, m)`` changes of matched genes.

    Examples
    --------
    >>> percentile(np.array([2.0]), np.array([[1.0, 2.0, 3.0, 4.0]])).tolist()
    [37.5]
    """
    if null.shape[1] == 0:
        return np.full(len(values), np.nan)
    below, equal = (null < values[:, None]).mean(axis=1), (null == values[:, None]).mean(axis=1)
    return 100 * (below + equal / 2)
