"""Attribution through the fitted baselines: exact where all is linear, gradients through the encoder else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from scdrugmap.interpret.explained import Explained
from scdrugmap.interpret.heads import linear_weights, torch_logit
from scdrugmap.interpret.paths import complete, relative_gap
from scdrugmap.models.kit.expression import counts_over, identifiers


class FittedInput:
    """The expression that a fitted baseline reads, and the differentiable way from it to the log-odds of resistant.

    Parameters
    ----------
    model
        A fitted ``hvg``, ``pca`` or ``scvi``.
    head
        Fitted head.
    genes
        Identifiers of the columns of the counts.
    """

    def __init__(self, model: Any, head: Any, genes: Any) -> None:
        self.model, self.head, self.genes = model, head, genes
        self.hvg = model if hasattr(model, "sparse_transform") else getattr(model, "hvg_", None)
        self.names = model.genes_ if self.hvg is None else self.hvg.genes_[self.hvg.columns_]
        # A fitted gene stands for the first of the columns that carry its name.
        found: dict[str, int] = {}
        for i, name in enumerate(identifiers(genes).astype(str)):
            found.setdefault(name, i)
        self.columns = np.array([found.get(str(n), -1) for n in self.names], dtype=np.int64)

    def values(self, X: sparse.csr_matrix) -> sparse.csr_matrix:
        """Logged expression over the genes that are read, CSR."""
        if self.hvg is not None:
            return self.hvg.sparse_transform(X, self.genes)
        return counts_over(X, self.genes, self.names, self.model.card.name).log1p().astype(np.float32)

    def weights(self) -> np.ndarray | None:
        """Weight of each gene where head and baseline are linear."""
        linear = linear_weights(self.head)
        if linear is None or self.hvg is None:
            return None
        return linear[0] if self.hvg is self.model else self.model.components_.T @ linear[0]

    def logit(self) -> Callable[[Tensor], Tensor] | None:
        """The way from values to log-odds; ``None`` for a head without gradient."""
        device = torch.device("cpu")
        head = torch_logit(self.head, device)
        if head is None or self.hvg is self.model:
            return head
        if self.hvg is None:
            encode = self.model.encoder()
            return lambda v: head(encode(v))
        components = torch.as_tensor(self.model.components_, dtype=torch.float32)
        shift = torch.as_tensor(self.model.mean_, dtype=torch.float32) @ components.T
        return lambda v: head(v @ components.T - shift)

    def explain(
        self, X: sparse.csr_matrix, baseline: np.ndarray, n_genes: int, *, linear: bool, n_steps: int
    ) -> Explained:
        """Attribute the change from ``baseline`` to each cell.

        Parameters
        ----------
        X
            Counts.
        baseline
            ``(genes read,)`` values to begin at.
        n_genes
            Columns of the result.
        linear
            Exact attributions, by :meth:`weights`.
        n_steps
            Of the path otherwise.
        """
        V = self.values(X)
        score = self.logit()
        assert score is not None
        x, b = torch.from_numpy(V.toarray()), torch.as_tensor(baseline, dtype=torch.float32).expand(V.shape)
        if linear:
            weights = self.weights()
            assert weights is not None
            dense = (x.numpy().astype(np.float64) - baseline) * weights
            with torch.no_grad():
                change = (score(x) - score(b)).double().numpy()
            gap, steps = relative_gap(change, dense.sum(axis=1)), np.zeros(len(dense), dtype=np.int64)
        else:
            path = complete(lambda z, rows: score(z), x, b, n_steps=n_steps)
            dense, gap, steps = (path.gradient * (x - b)).numpy(), path.gap, path.n_steps
        empty = np.diff(V.indptr) == 0
        dense = np.where(empty[:, None], 0.0, dense)
        return Explained(_onto(dense, self.columns, n_genes), np.where(empty, np.nan, gap), steps)


def _onto(dense: np.ndarray, columns: np.ndarray, n_genes: int) -> sparse.csr_matrix:
    """Attributions over the genes that are read, as CSR over those of the data.

    A gene that the data lack counts as not expressed; its share is the same for every cell and stands nowhere.
    """
    known = np.flatnonzero(columns >= 0)
    block = sparse.csr_matrix(dense[:, known].astype(np.float32))
    out = sparse.csr_matrix((block.data, columns[known][block.indices], block.indptr), (len(dense), n_genes))
    out.sort_indices()
    return out
