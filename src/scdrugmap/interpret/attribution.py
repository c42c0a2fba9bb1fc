"""Which genes a predictor looks at, cell by cell: one way in for every representation and head."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse

from scdrugmap._errors import InputError
from scdrugmap.interpret.context import GroupInput
from scdrugmap.interpret.dense import FittedInput
from scdrugmap.interpret.explained import Explained
from scdrugmap.interpret.perturb import CHUNK, Perturbations
from scdrugmap.interpret.scoring import Scorer
from scdrugmap.interpret.tokens import NetworkInput
from scdrugmap.predictor.representation import NetworkRepresentation

METHODS = ("auto", "linear", "ig", "gradient_x_input", "occlusion")
#: Cells whose dense values are in memory at a time.
BLOCK = 256


@dataclass(eq=False)
class Explainer:
    """Attributes the log-odds of *resistant* to genes.

    Parameters
    ----------
    scorer
        The predictor, with the counts that it reads.
    genes
        Identifiers of the columns.
    method
        One of ``METHODS``.
    n_steps
        Steps of the path to begin with.
    reference
        Counts of the cells whose mean is the baseline, or ``None`` for the empty cell.
    """

    scorer: Scorer
    genes: Any
    method: str
    n_steps: int
    reference: sparse.csr_matrix | None

    def __post_init__(self) -> None:
        self.n_genes = len(self.genes.names)
        head, representation = self.scorer.predictor.head, self.scorer.representation
        self.input: Any
        if isinstance(representation, NetworkRepresentation):
            from scdrugmap._device import pick_device

            model = representation.load()
            model.to(pick_device(self.scorer.engine.device))
            kind = GroupInput if model.card.context == "group" else NetworkInput
            self.input = kind(model, head, self.genes)
            linear, gradient = False, self.input.has_gradient
        else:
            self.input = FittedInput(representation.model, head, self.genes)
            linear, gradient = self.input.weights() is not None, self.input.logit() is not None
        self.used = _chosen(self.method, linear, gradient)
        self.start = None if self.reference is None or self.used == "occlusion" else self._start()
        if self.start is None and isinstance(self.input, FittedInput) and self.used != "occlusion":
            self.start = np.zeros(len(self.input.names))

    @property
    def dense(self) -> bool:
        """Whether every gene that is read is an input of its own, expressed or not."""
        return isinstance(self.input, FittedInput)

    def _start(self) -> Any:
        """Baseline in the space of the path."""
        assert self.reference is not None
        if isinstance(self.input, FittedInput):
            return np.asarray(self.input.values(self.reference).mean(axis=0)).ravel().astype(np.float64)
        if isinstance(self.input, GroupInput):
            return self.input.mean_values(self.reference)
        return self.input.mean_embedding(self.reference)

    def blocks(self, rows: np.ndarray, folder: Path | None = None) -> Iterator[tuple[np.ndarray, Explained]]:
        """Yield some cells and their attributions, block by block.

        Parameters
        ----------
        rows
            Cells to explain, ascending.
        folder
            Where finished blocks are kept; those that lie there are not computed again.
        """
        from scdrugmap.embedding.runner import block_digest
        from scdrugmap.embedding.source import CountSource
        from scdrugmap.interpret.store import AttributionStore, fingerprint

        source, parts, store = CountSource(self.scorer.counts), self._parts(rows), None
        if folder is not None:
            start = None if self.reference is None else block_digest(self.reference).hex()
            options = {"method": self.used, "n_steps": self.n_steps, "baseline": start}
            store = AttributionStore.open(folder, len(parts), fingerprint(self.scorer, rows, **options))
        for i, (members, wanted) in enumerate(parts):
            X = source[members]
            mark = block_digest(X) if store is not None else b""
            found = store.read(i, mark, self.n_genes) if store is not None else None
            if found is None:
                found = self.explain(X) if wanted is None else self._explain_group(X, wanted)
                if store is not None:
                    store.write(i, mark, found)
            yield members if wanted is None else members[wanted], found

    def _parts(self, rows: np.ndarray) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """Cells of each block; where cells see each other, those of a group and which of them to explain."""
        context = self.scorer.context
        if context is None or self.used == "occlusion":
            return [(rows[i : i + BLOCK], None) for i in range(0, len(rows), BLOCK)]
        groups = [np.flatnonzero(context == name) for name in np.unique(context[rows])]
        return [(group, np.flatnonzero(np.isin(group, rows))) for group in groups]

    def _explain_group(self, X: sparse.csr_matrix, wanted: np.ndarray) -> Explained:
        out = self.input.explain_group(X, wanted, self.start, self.n_genes, n_steps=self._steps)
        return Explained(out.values[wanted], out.gap[wanted], out.n_steps[wanted])

    @property
    def _steps(self) -> int:
        return 1 if self.used == "gradient_x_input" else self.n_steps

    def explain(self, X: sparse.csr_matrix) -> Explained:
        """Attribute for cells that do not see each other."""
        if self.used == "occlusion":
            return occluded(self.scorer, X)
        if isinstance(self.input, FittedInput):
            assert self.start is not None
            return self.input.explain(X, self.start, self.n_genes, linear=self.used == "linear", n_steps=self._steps)
        if isinstance(self.input, GroupInput):
            parts = [
                self.input.explain_group(X[i], np.array([0]), self.start, self.n_genes, n_steps=self._steps)
                for i in range(X.shape[0])
            ]
            return Explained(
                sparse.vstack([p.values for p in parts], format="csr"),
                np.concatenate([p.gap for p in parts]), np.concatenate([p.n_steps for p in parts]),
            )  # fmt: skip
        return self.input.explain(X, self.start, self.n_genes, n_steps=self._steps)


def _chosen(method: str, linear: bool, gradient: bool) -> str:
    """The method to use; ``auto`` takes the most exact one there is."""
    if method == "auto":
        return "linear" if linear else "ig" if gradient else "occlusion"
    if method == "linear" and not linear:
        raise InputError(
            "method",
            method,
            "a linear head on hvg or pca for 'linear'",
            "pass method='auto', or train head='logistic'.",
        )
    if method in ("ig", "gradient_x_input") and not gradient:
        raise InputError("method", method, "a head with a gradient ('mlp', 'logistic')", "pass method='occlusion'.")
    return method


def occluded(score: Callable[..., np.ndarray], X: sparse.csr_matrix) -> Explained:
    """Attribute to each gene what the log-odds lose when it is taken away by itself; needs no gradient.

    What is missing to completeness is measured against the cell without any of its genes as far as the predictor can
    place it, so it is not defined here.
    """
    n_genes = X.shape[1]
    each = Perturbations.of([np.array([g]) for g in range(n_genes)], n_genes, "knockout", np.zeros(n_genes))
    base = score(X)
    cell, which = each.changes(X)
    lost = np.zeros(len(cell))
    for start in range(0, len(cell), CHUNK):
        part = slice(start, start + CHUNK)
        lost[part] = base[cell[part]] - score(each.apply(X[cell[part]], which[part]))
    values = sparse.csr_matrix((np.nan_to_num(lost), (cell, which)), X.shape, dtype=np.float32)
    return Explained(values, np.full(X.shape[0], np.nan), np.zeros(X.shape[0], dtype=np.int64))


def chosen_cells(samples: np.ndarray, most: int | None, rng: np.random.Generator) -> np.ndarray:
    """Draw at most so many cells of each sample; ascending rows.

    Examples
    --------
    >>> chosen_cells(np.array(["a"] * 5 + ["b"]), 2, np.random.default_rng(0)).size
    3
    """
    if most is None:
        return np.arange(len(samples))
    order = rng.permutation(len(samples))
    codes = np.unique(samples, return_inverse=True)[1][order]
    by_sample = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[by_sample], np.arange(codes.max(initial=-1) + 1))
    rank = np.arange(len(samples)) - starts[codes[by_sample]]
    return np.sort(order[by_sample[rank < most]])


def per_sample(
    blocks: Iterator[tuple[np.ndarray, Explained]], codes: np.ndarray, n_samples: int, n_genes: int, keep: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, sparse.csr_matrix | None]:
    """Collect blocks: means per sample, gaps and steps per cell, and the attributions themselves where asked for.

    Parameters
    ----------
    blocks
        Of :meth:`Explainer.blocks`.
    codes
        ``(cells,)`` sample of each cell.
    n_samples, n_genes
        Sizes.
    keep
        Also return all attributions, cells x genes.

    Returns
    -------
    ``(genes, samples)`` means over the cells with an attribution, ``(cells,)`` gaps, ``(cells,)`` steps, and the CSR.
    """
    totals, n = np.zeros((n_samples, n_genes)), np.zeros(n_samples)
    gap, steps = np.full(len(codes), np.nan), np.zeros(len(codes), dtype=np.int64)
    kept: list[sparse.coo_matrix] = []
    for rows, part in blocks:
        own = codes[rows]
        indicator = sparse.csr_matrix((np.ones(len(rows)), (own, np.arange(len(rows)))), (n_samples, len(rows)))
        totals += (indicator @ part.values.astype(np.float64)).toarray()
        n += np.bincount(own, minlength=n_samples)
        gap[rows], steps[rows] = part.gap, part.n_steps
        if keep:
            found = part.values.tocoo()
            kept.append(sparse.coo_matrix((found.data, (rows[found.row], found.col)), (len(codes), n_genes)))
    cells = None
    if keep:
        joined = [
            np.concatenate([getattr(k, a) for k in kept]) if kept else np.empty(0) for a in ("data", "row", "col")
        ]
        cells = sparse.csr_matrix((joined[0], (joined[1].astype(int), joined[2].astype(int))), (len(codes), n_genes))
        cells = cells.astype(np.float32)
    means = np.divide(totals, n[:, None], out=np.zeros_like(totals), where=n[:, None] > 0)
    return means[n > 0].T, gap, steps, cells


def reference_of(
    baseline: Any, dense: bool, source: Any, y: np.ndarray | None, names: np.ndarray, rng: np.random.Generator
) -> tuple[sparse.csr_matrix | None, str]:
    """Counts of the cells whose mean the path begins at, and the name of the baseline.

    Parameters
    ----------
    baseline
        ``"auto"``, ``"empty"``, ``"mean"``, ``"sensitive"``, the name of a cell, or the counts of one.
    dense
        Whether ``"auto"`` means the sensitive cells (else the empty cell).
    source
        ``CountSource`` of all cells.
    y
        Labels, where there are any.
    names
        Names of the cells.
    rng
        Draws at most 500 cells.

    Raises
    ------
    InputError
        For an unknown baseline, or sensitive cells where there are none.
    """
    n = len(names)
    some = None if y is None else np.flatnonzero(y == 1)
    if isinstance(baseline, str) and baseline == "auto":
        baseline = "empty" if not dense else "sensitive" if some is not None and len(some) else "mean"
    if isinstance(baseline, str):
        if baseline == "empty":
            return None, baseline
        if baseline == "sensitive":
            if some is None or not len(some):
                raise InputError(
                    "baseline", baseline, "cells labelled sensitive in obs['response']", "pass 'mean' or 'empty'."
                )
            rows = some
        elif baseline == "mean":
            rows = np.arange(n)
        else:
            rows = np.flatnonzero(names == baseline)
            if len(rows) != 1:
                raise InputError(
                    "baseline", baseline, "'auto', 'empty', 'mean', 'sensitive', the name of a cell or its counts",
                    "pass baseline='empty'.",
                )  # fmt: skip
        return source[np.sort(rng.permutation(rows)[:500])], baseline
    values = np.asarray(baseline.toarray() if sparse.issparse(baseline) else baseline, dtype=np.float32).reshape(1, -1)
    if values.shape[1] != source.shape[1]:
        raise InputError("baseline", f"{values.shape[1]} counts", f"{source.shape[1]}, one per gene", "pass 'empty'.")
    return sparse.csr_matrix(values), "counts"


def parameters_randomised(model: Any, rng: int) -> dict[str, torch.Tensor]:
    """Give every weight of a network random values; returns the old ones, for ``load_state_dict``."""
    network = model.network
    kept = {k: v.detach().clone() for k, v in network.state_dict().items()}
    generator = torch.Generator().manual_seed(rng)
    with torch.no_grad():
        for p in network.parameters():
            if p.ndim > 1:
                p.copy_(p.view(-1)[torch.randperm(p.numel(), generator=generator).to(p.device)].view_as(p))
    return kept
