"""Attribution through a network: integrated gradients along the path of its input embeddings.

What enters the first layer is replaced while the network runs, so that any network whose ``embed`` (or table of words)
makes its input can be explained, frozen or with adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from scdrugmap.interpret.explained import Explained
from scdrugmap.interpret.heads import torch_logit
from scdrugmap.interpret.paths import complete
from scdrugmap.models.kit.counts import Alignment, Counts
from scdrugmap.models.kit.tokens import Tokens


class Gate:
    """Stands where a network makes its input: lets it through and notes it, or puts another in its place."""

    def __init__(self, network: Any) -> None:
        self.owner, self.name = _entrance(network)
        self.seen: Tensor | None = None
        self.instead: Tensor | None = None

    @contextmanager
    def open(self) -> Iterator[Gate]:
        """Put the gate in place, and take it away afterwards."""
        plain, before = getattr(self.owner, self.name), vars(self.owner).get(self.name)

        def through(*args: Any, **kwargs: Any) -> Tensor:
            if self.instead is not None:
                return self.instead
            self.seen = plain(*args, **kwargs)
            return self.seen

        # An attribute of the instance goes before the method of its class.
        object.__setattr__(self.owner, self.name, through)
        try:
            yield self
        finally:
            if before is None:
                object.__delattr__(self.owner, self.name)
            else:
                object.__setattr__(self.owner, self.name, before)


def _entrance(network: Any) -> tuple[Any, str]:
    """Object and method whose result enters the first layer."""
    base = network.get_base_model() if hasattr(network, "get_base_model") else network
    if hasattr(base, "embed"):
        return base, "embed"
    return base.decoder.get_input_embeddings(), "forward"


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the genes of a batch stand.

    Parameters
    ----------
    rows, place, column
        Cell, position in the network's input and column of the aligned counts of each token of a gene.
    """

    rows: np.ndarray
    place: np.ndarray
    column: np.ndarray


class NetworkInput:
    """The tokens of cells and the differentiable way from their embeddings to the log-odds of resistant.

    Parameters
    ----------
    model
        A network model whose cells do not see each other.
    head
        Fitted head.
    genes
        Identifiers of the columns of the counts.
    """

    def __init__(self, model: Any, head: Any, genes: Any) -> None:
        self.model, self.head = model.prepared(), head
        self.alignment: Alignment = model.align(genes)
        # An aligned gene stands for the first of the columns that are summed in it.
        first = np.full(len(self.alignment.ids), -1, dtype=np.int64)
        known = np.flatnonzero(self.alignment.target >= 0)[::-1]
        first[self.alignment.target[known]] = known
        self.columns = first
        self.fixed_place = False

    @property
    def has_gradient(self) -> bool:
        """Whether the head can be differentiated."""
        return torch_logit(self.head, self.model.device) is not None

    def tokenise(self, X: sparse.csr_matrix) -> tuple[Counts, Tokens]:
        """Counts over the model's genes, and their tokens."""
        counts = Counts(self.alignment.apply(X), self.alignment.ids, self.alignment.genes, np.arange(X.shape[0]))
        return counts, self.model.tokenize(counts)

    def batches(self, tokens: Tokens) -> Iterator[np.ndarray]:
        """Rows of each forward pass; the backward pass wants smaller ones than inference."""
        budget = max(self.model.token_budget * (16 if self.model.device.type == "cuda" else 1) // 4, 1)
        yield from self.model.plan(tokens, budget, None)

    def explain(self, X: sparse.csr_matrix, reference: Tensor | None, n_genes: int, *, n_steps: int) -> Explained:
        """Attribute the change from the baseline to each cell.

        Parameters
        ----------
        X
            Counts.
        reference
            Embedding that each gene begins at, of :meth:`mean_embedding`; ``None`` begins at the padding token.
        n_genes
            Columns of the result.
        n_steps
            Steps to begin with.
        """
        counts, tokens = self.tokenise(X)
        columns_of = Tokens(tokens.offsets, self.model.token_columns(tokens, counts), None, tokens.usable)
        gap, steps = np.full(len(tokens), np.nan), np.zeros(len(tokens), dtype=np.int64)
        parts = []
        for rows in self.batches(tokens):
            part = tokens.take(rows)
            own = columns_of.take(rows).ids
            with self._batch(part) as (batch, value, x):
                layout = self.layout(part, own, batch, x)
                start = self._start(batch, layout, part, reference, x)
                path = complete(value, x, start, n_steps=n_steps)
            attribution = (path.gradient * (x - start)).sum(-1).double().cpu().numpy()
            gap[rows], steps[rows] = path.gap, path.n_steps
            parts.append((rows[layout.rows], self.columns[layout.column], attribution[layout.rows, layout.place]))
        values = _gathered(parts, (len(tokens), n_genes))
        return Explained(values, gap, steps)

    @contextmanager
    def _batch(self, tokens: Tokens) -> Iterator[tuple[dict[str, Tensor], Callable[[Tensor, Tensor], Tensor], Tensor]]:
        """Collated tokens, the log-odds of any input of some of their cells, and the input itself."""
        model, logit = self.model, torch_logit(self.head, self.model.device)
        assert logit is not None
        batch = {k: v.to(model.device) for k, v in model.collate(tokens).items()}
        gate = Gate(model.network)
        with gate.open():

            def value(z: Tensor, rows: Tensor) -> Tensor:
                gate.instead = z
                return logit(model.network({k: v[rows] for k, v in batch.items()}))

            yield batch, value, self._input(gate, batch)

    def _input(self, gate: Gate, batch: dict[str, Tensor]) -> Tensor:
        """What enters the first layer for a batch."""
        gate.instead = None
        owner = getattr(gate.owner, gate.name)
        with torch.no_grad():
            network = self.model.network
            base = network.get_base_model() if hasattr(network, "get_base_model") else network
            if gate.name == "forward":
                return owner(batch["ids"]).float()
            # ``embed`` takes the batch or its ids.
            wants = next(iter(type(base).embed.__annotations__))
            return owner(batch["ids"] if wants == "ids" else batch).float()

    def layout(self, tokens: Tokens, columns: np.ndarray, batch: dict[str, Tensor], x: Tensor) -> Layout:
        """Find the position of every gene in the network's input."""
        rows, place = tokens.positions()
        gene = columns >= 0
        if "positions" in batch:
            # Every gene of the vocabulary has its own position, expressed or not.
            self.fixed_place = True
            cells = np.repeat(np.arange(len(tokens)), len(self.alignment.ids))
            every = np.tile(np.arange(len(self.alignment.ids)), len(tokens))
            there = self.alignment.ids[every] < x.shape[1] - 1
            return Layout(cells[there], self.alignment.ids[every[there]], every[there])
        # A row that stands for all pads comes first where keys are weighted.
        shift = int("keys" in batch)
        inside = gene & (place + shift < x.shape[1])
        return Layout(rows[inside], place[inside] + shift, columns[inside])

    def _start(
        self, batch: dict[str, Tensor], layout: Layout, tokens: Tokens, reference: Tensor | None, x: Tensor
    ) -> Tensor:
        """Baseline: the input with every gene blank, or at the reference; other tokens stay as they are."""
        start = x.clone()
        at = (torch.as_tensor(layout.rows, device=x.device), torch.as_tensor(layout.place, device=x.device))
        if reference is not None:
            start[at] = reference.to(x.device)[at[1]] if self.fixed_place else reference.to(x.device)
            return start
        start[at] = self._input_of_blank(batch, layout, tokens)[at].to(x.dtype)
        return start

    def _input_of_blank(self, batch: dict[str, Tensor], layout: Layout, tokens: Tokens) -> Tensor:
        """Input of the network with the padding token where genes stand."""
        longest = int(np.argmax(tokens.lengths))
        short = tokens.take(np.array([longest]))
        length = min(2, int(short.lengths[0]) - 1)
        cut = Tokens(
            np.array([0, length]), short.ids[:length], None if short.values is None else short.values[:length], short.usable
        )  # fmt: skip
        probe = self.model.collate(Tokens.concatenate([short, cut]))
        blank = dict(batch)
        for key, tensor in probe.items():
            if (
                tensor.ndim == 2
                and tensor.dtype != torch.bool
                and key in ("ids", "values", "bins", "genes", "positions")
            ):
                pad = tensor[1, -1].to(batch[key].device)
                if self.fixed_place:
                    blank[key] = torch.full_like(batch[key], pad.item())
                else:
                    blank[key] = batch[key].clone()
                    blank[key][layout.rows, layout.place] = pad
        gate = Gate(self.model.network)
        with gate.open():
            return self._input(gate, blank)

    def mean_embedding(self, X: sparse.csr_matrix) -> Tensor:
        """Mean input embedding over the genes of some cells; per position where every gene has its own."""
        counts, tokens = self.tokenise(X)
        columns_of = Tokens(tokens.offsets, self.model.token_columns(tokens, counts), None, tokens.usable)
        total: Any = 0.0
        n = 0
        for rows in self.batches(tokens):
            part = tokens.take(rows)
            own = columns_of.take(rows).ids
            with self._batch(part) as (batch, _, x):
                layout = self.layout(part, own, batch, x)
                if self.fixed_place:
                    total, n = total + x.sum(0), n + len(x)
                else:
                    total, n = total + x[layout.rows, layout.place].sum(0), n + len(layout.rows)
        return total / max(n, 1)


def _gathered(parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]], shape: tuple[int, int]) -> sparse.csr_matrix:
    """Sum attributions of tokens over the genes that they stand for."""
    if not parts:
        return sparse.csr_matrix(shape, dtype=np.float32)
    rows, columns, values = (np.concatenate([p[i] for p in parts]) for i in range(3))
    out = sparse.coo_matrix((values, (rows, columns)), shape).tocsr()
    out.eliminate_zeros()
    return sparse.csr_matrix(out, dtype=np.float32)
