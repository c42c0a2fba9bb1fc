"""Edited cells asked about with as little arithmetic as gives the same numbers.

A cell whose tokens an edit leaves as they are has the embedding that it had. A network in which a token sees only those
before it goes on from the first token that differs, with the keys and values of the unedited cell.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy import sparse

from scdrugmap.embedding.runner import LocalRun
from scdrugmap.embedding.source import CountSource
from scdrugmap.interpret.perturb import CHUNK, Edits, Perturbations
from scdrugmap.interpret.scoring import Scorer
from scdrugmap.models.kit.counts import Counts
from scdrugmap.models.kit.ranking import rank_rows
from scdrugmap.models.kit.tokens import Tokens

#: Bytes of keys and values that are kept of the unedited cells of a block.
KEPT = 2**28


def edits_of(scorer: Scorer) -> type[Edits]:
    """Choose the least arithmetic that a predictor allows."""
    model = scorer.network
    # A group, a stream, fixed batches or a survey of the data set tie a cell to the others.
    if model is None or scorer.context is not None or model.sequential or model.block_multiple > 1:
        return Edits
    return CausalEdits if hasattr(_base(model), "resume") else TokenEdits


def rows_per_block(scorer: Scorer) -> int:
    """Cells in one block."""
    if edits_of(scorer) is not CausalEdits:
        return CHUNK
    model = scorer.network
    return int(
        np.clip(KEPT // (4 * model.dim * model.options.max_length * (2 * len(_base(model).blocks) + 1)), 1, CHUNK)
    )


def _base(model: Any) -> Any:
    """The network below its adapters."""
    return model.network.get_base_model() if hasattr(model.network, "get_base_model") else model.network


class TokenEdits(Edits):
    """Embeds an edited cell only if its tokens differ from those of the cell.

    Parameters
    ----------
    score
        The predictor.
    X, perturbations
        As for :class:`Edits`.
    """

    score: Scorer

    def begin(self) -> np.ndarray:
        """Log-odds of the cells as they are, ``(n,)``."""
        self.model = self.score.network
        alignment = self.model.align(self.score.genes)
        self.run = LocalRun(self.model, CountSource(self.X), alignment, self.score.engine)
        # What is noted about all cells at once would have to be noted again with every edit.
        self.tied = self.run.survey() is not None
        if self.tied:
            return super().begin()
        self.tokens = self.run.tokens(self.X)
        return self.of(self.tokens)

    def of(self, tokens: Tokens) -> np.ndarray:
        """Log-odds of tokenised cells."""
        return self.score.of_features(self.run.embed(tokens))

    def edited(self, cell: np.ndarray, which: np.ndarray) -> Tokens:
        """Tokens of edited cells."""
        parts = []
        for i in range(0, len(cell), CHUNK):
            X = self.perturbations.apply(self.X[cell[i : i + CHUNK]], which[i : i + CHUNK])
            parts.append(self.run.tokens(X))
        return Tokens.concatenate(parts)

    def after(self, cell: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, int]:
        """Log-odds of edited cells, and how many of them went through the network."""
        if self.tied:
            return super().after(cell, which)
        tokens = self.edited(cell, which)
        rows = np.flatnonzero(~equal(tokens, self.tokens.take(cell)))
        out = self.base[cell]
        if len(rows):
            out[rows] = self.of(tokens.take(rows))
        return out, len(rows)


def equal(a: Tokens, b: Tokens) -> np.ndarray:
    """Whether cells have the same tokens in two blocks, ``(n,)``.

    Examples
    --------
    >>> a = Tokens(np.array([0, 1, 3]), np.array([5, 6, 7]), None, np.ones(2, dtype=bool))
    >>> b = Tokens(np.array([0, 1, 3]), np.array([5, 6, 8]), None, np.ones(2, dtype=bool))
    >>> equal(a, b).tolist()
    [True, False]
    """
    out = (a.lengths == b.lengths) & (a.usable == b.usable)
    rows = np.flatnonzero(out)
    first, second = a.take(rows), b.take(rows)
    other = first.ids != second.ids
    if first.values is not None and second.values is not None:
        other |= first.values != second.values
    out[rows] = np.bincount(first.positions()[0][other], minlength=len(rows)) == 0
    return out


class CausalEdits(TokenEdits):
    """Goes on from the first token that an edit changes, in a network whose tokens see only those before them.

    A gene that is taken away leaves the order of the others as it is, so that nothing is counted or ranked again: its
    token goes, and the next gene in rank comes in at the end. Where several columns are summed in one gene, or a gene is
    raised, the edited counts are tokenised.
    """

    step = 16 * CHUNK

    def begin(self) -> np.ndarray:
        """Log-odds of the cells as they are, ``(n,)``; keeps what the edited ones go on from."""
        self.model = self.score.network
        alignment = self.model.align(self.score.genes)
        self.run = LocalRun(self.model, CountSource(self.X), alignment, self.score.engine)
        self.network = _base(self.model)
        self.counts = Counts(alignment.apply(self.X), alignment.ids, alignment.genes, np.arange(self.X.shape[0]))
        self.tokens = self.model.tokenize(self.counts)
        self.gone = _deleted(self.perturbations, alignment.target, len(alignment.ids))
        if self.gone is not None:
            self.ranked = _ranked(self.counts.X, self.model.n_ranked + int(np.diff(self.gone.indptr).max(initial=0)))
        self.ids, mask = self._padded(self.tokens)
        self._keep(mask)
        features = (self.sums[:, -1] / mask.sum(1, keepdim=True)).cpu().numpy()
        features[~self.tokens.usable] = np.nan
        return self.score.of_features(features)

    def _padded(self, tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and marked positions over the longest length that there is."""
        batch = self.model.collate(tokens)
        missing = self.model.options.max_length - batch["ids"].shape[1]
        ids = torch.nn.functional.pad(batch["ids"], (0, missing), value=self.model.pad)
        return ids.to(self.run.device), torch.nn.functional.pad(batch["mask"], (0, missing)).to(self.run.device)

    def _keep(self, mask: torch.Tensor) -> None:
        """Note keys and values of the cells, and the sums of their states up to each position."""
        parts, kept = [], []
        with torch.inference_mode():
            for rows in np.array_split(np.arange(len(self.ids)), -(-self.ids.numel() // self.run.budget)):
                states, own = self.network.resume(self.ids[rows])
                sums = (states * mask[rows].unsqueeze(-1)).cumsum(1)
                parts.append(torch.nn.functional.pad(sums, (0, 0, 1, 0)))
                kept.append(own)
            self.sums = torch.cat(parts)  # (cells, positions + 1, dim)
            self.past = [tuple(torch.cat(x) for x in zip(*block, strict=True)) for block in zip(*kept, strict=True)]

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Cell and perturbation of every pair whose tokens may change, perturbation by perturbation."""
        if self.gone is None:
            return super().pairs()
        top = self.ranked[:, : self.model.n_ranked]
        rows, place = np.nonzero(top >= 0)
        enters = sparse.csr_matrix(
            (np.ones(len(rows), dtype=np.float32), (rows, top[rows, place])), (len(top), self.gone.shape[1])
        )
        found = (self.gone @ enters.T).tocoo()
        order = np.lexsort([found.col, found.row])
        return found.col[order].astype(np.int64), found.row[order].astype(np.int64)

    def edited(self, cell: np.ndarray, which: np.ndarray) -> Tokens:
        """Tokens of edited cells."""
        if self.gone is None:
            return super().edited(cell, which)
        ranked, width = self.ranked[cell], self.gone.shape[1]
        every = np.repeat(np.arange(self.gone.shape[0], dtype=np.int64), np.diff(self.gone.indptr))
        keys, own = every * width + self.gone.indices, which[:, None] * width + ranked
        out = keys[np.minimum(np.searchsorted(keys, own), len(keys) - 1)] == own
        out |= ranked < 0
        # Those that stay move up in their order.
        order = np.argsort(out, axis=1, kind="stable")[:, : self.model.n_ranked]
        stays = ~np.take_along_axis(out, order, axis=1)
        columns = np.take_along_axis(ranked, order, axis=1)[stays]
        return self.model.sequences(columns, np.concatenate([[0], np.cumsum(stays.sum(axis=1))]), self.counts)

    def after(self, cell: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, int]:
        """Log-odds of edited cells, and how many of them went through the network."""
        tokens = self.edited(cell, which)
        ids, mask = self._padded(tokens)
        mine = torch.as_tensor(cell, device=ids.device)
        other = ids != self.ids[mine]
        first = torch.where(other.any(1), other.int().argmax(1), ids.shape[1]).cpu().numpy()
        total = self.sums[mine, torch.as_tensor(first, device=ids.device)].clone()
        order = np.argsort(first, kind="stable")
        order = order[first[order] < ids.shape[1]]
        with torch.inference_mode():
            for rows in self._batches(order, first):
                self._add(total, ids, mask, mine, rows, int(first[rows[0]]))
        features = (total / mask.sum(1, keepdim=True)).cpu().numpy()
        features[~tokens.usable] = np.nan
        out = self.score.of_features(features)
        same = first == ids.shape[1]
        out[same] = self.base[cell[same]]
        return out, int((~same).sum())

    def _batches(self, order: np.ndarray, first: np.ndarray) -> list[np.ndarray]:
        """Pairs that differ from the same position on, within the budget of the model."""
        out: list[np.ndarray] = []
        for rows in np.split(order, np.flatnonzero(np.diff(first[order])) + 1):
            if len(rows):
                # With each pair come the keys and values of its cell: fewer at a time stay in the caches.
                size = max(self.run.budget // 4 // (self.ids.shape[1] - int(first[rows[0]])), 1)
                out += np.split(rows, range(size, len(rows), size))
        return out

    def _add(self, total: Any, ids: Any, mask: Any, mine: Any, rows: np.ndarray, first: int) -> None:
        """Add the states from the first position that differs on to the sums of those before."""
        at = torch.as_tensor(rows, device=ids.device)
        marked = mask[at, first:]
        # Beyond the last marked position nothing is averaged, and nothing before it sees what stands there.
        length = int(marked.any(0).nonzero().max().item()) + 1 if marked.any() else 0
        if length == 0:
            return
        cells = mine[at]
        past = [(k[cells, :, :first], v[cells, :, :first]) for k, v in self.past]
        states, _ = self.network.resume(ids[at, first : first + length], past)
        total[at] += (states * marked[:, :length].unsqueeze(-1)).sum(1)


def _deleted(perturbations: Perturbations, target: np.ndarray, n_genes: int) -> sparse.csr_matrix | None:
    """Genes that each perturbation takes away whole, ``(perturbations, genes of the model)``; ``None`` if not whole."""
    if perturbations.kind == "overexpress":
        return None
    known = np.flatnonzero(target >= 0)
    onto = sparse.csr_matrix((np.ones(len(known)), (known, target[known])), (len(target), n_genes))
    taken = sparse.csr_matrix(perturbations.members @ onto)
    taken.sort_indices()
    whole = np.bincount(target[known], minlength=n_genes)
    if (taken.data < whole[taken.indices]).any():
        return None
    taken.data[:] = 1
    return taken.astype(np.float32)


def _ranked(X: sparse.csr_matrix, n: int) -> np.ndarray:
    """Columns of the highest values of each row, ``(rows, n)``; -1 beyond the last."""
    picked, offsets = rank_rows(X.data, X.indptr, n)
    out = np.full((X.shape[0], n), -1, dtype=np.int64)
    lengths = np.diff(offsets)
    out[np.repeat(np.arange(len(lengths)), lengths), np.arange(len(picked)) - np.repeat(offsets[:-1], lengths)] = (
        X.indices[picked]
    )
    return out
