"""Runs: from rows of counts to rows of an embedding, for every network model.

Rows are read in blocks, tokenised, grouped into batches of similar length under a budget of tokens, and written
block by block, so that memory is bounded by the block and a killed run resumes at the block where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from scipy import sparse

from scdrugmap import __version__
from scdrugmap._device import Engine, native_bfloat16, pick_device, pick_precision
from scdrugmap._errors import InputError
from scdrugmap._logging import get_logger
from scdrugmap.embedding.ahead import ahead
from scdrugmap.embedding.arithmetic import PROBED, Arithmetic, bfloat16_serves
from scdrugmap.embedding.budget import Budget, CardMemory
from scdrugmap.embedding.cache import content_key
from scdrugmap.embedding.source import CountSource
from scdrugmap.embedding.store import EmbeddingStore
from scdrugmap.genes.identifiers import Genes
from scdrugmap.models.base import Batch, GroupModel, NetworkModel
from scdrugmap.models.kit.counts import Alignment, Counts
from scdrugmap.models.kit.tokens import Tokens
from scdrugmap.models.kit.values import check_values
from scdrugmap.settings import settings

T = TypeVar("T")
BLOCK = 2048
#: Batches that wait, collated, for the network.
AHEAD = 2
#: Whether bfloat16 serves, by model: found out once per process.
_SERVES: dict[str, bool] = {}


@dataclass(frozen=True, eq=False)
class _Block:
    """Consecutive rows, read and tokenised; without tokens where the store holds their values."""

    first: int
    n_cells: int
    mark: bytes
    tokens: Tokens | None
    resumed: bool = False


@dataclass(frozen=True, eq=False)
class _Piece:
    """A batch of a block, or the end of a block that has none."""

    block: _Block
    rows: np.ndarray
    batch: Batch | None
    last: bool


@dataclass
class Work:
    """What a run did, for provenance and benchmarks."""

    n_cells: int = 0
    n_empty: int = 0
    n_tokens: int = 0
    n_padded: int = 0
    n_resumed: int = 0
    n_cached: int = 0
    seconds: float = 0.0
    network_seconds: float = 0.0
    tokenize_seconds: float = 0.0
    #: Time in which the network could have run but its next batch was not ready.
    waiting_seconds: float = 0.0
    token_budget: int = 0

    def add(self, other: Work) -> None:
        """Add what another process did; the seconds of all processes are summed."""
        for name in ("n_tokens", "n_padded", "network_seconds", "tokenize_seconds", "waiting_seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        budgets = [b for b in (self.token_budget, other.token_budget) if b]
        self.token_budget = min(budgets, default=0)

    @property
    def padding(self) -> float:
        """Share of positions in the network that hold no token."""
        return 1 - self.n_tokens / self.n_padded if self.n_padded else 0.0


def resolved(engine: Engine) -> Engine:
    """Return the engine with the device and the arithmetic that it means on this machine."""
    device = pick_device(engine.device)
    return replace(engine, device=str(device), precision=pick_precision(engine.precision, device))


class Run(ABC):
    """One pass over all cells: what is computed, how, and what was done so far; where is up to the subclass.

    Parameters
    ----------
    model
        A network model with weights.
    source
        Rows of counts.
    alignment
        Columns of ``source`` in the model's vocabulary.
    engine
        Resolved, see :func:`resolved`.
    block_size
        Rows read and tokenised at a time.
    """

    def __init__(
        self, model: NetworkModel, source: CountSource, alignment: Alignment, engine: Engine, block_size: int = BLOCK
    ) -> None:
        self.model, self.source, self.alignment, self.engine = model, source, alignment, engine
        self.device, self.precision = torch.device(engine.device or "cpu"), engine.precision or "float32"
        self.rows_per_block = -(-block_size // model.block_multiple) * model.block_multiple
        card = self.device.type == "cuda" and torch.cuda.is_available()
        self.budget = Budget(model.token_budget, CardMemory(self.device) if card else None)
        self.work = Work()

    def fingerprint(self) -> str:
        """Everything but the cells that decides the values."""
        parts = {
            "version": __version__,
            "model": self.model.card.key,
            "checkpoint": self.model.digest,
            "options": self.model.options.model_dump(mode="json"),
            "genes": hashlib.sha256("\n".join(map(str, self.alignment.genes)).encode()).hexdigest(),
            "target": hashlib.sha256(self.alignment.target.tobytes() + self.alignment.ids.tobytes()).hexdigest(),
            "vocabulary": len(self.model.vocabulary),
            "precision": self.precision,
            "device": self.device.type,
        }
        return json.dumps(parts, sort_keys=True, default=str)

    @abstractmethod
    def content_key(self, context: np.ndarray | None) -> str:
        """Digest of everything that decides the values, the counts included."""

    @abstractmethod
    def blocks(self, store: EmbeddingStore | None) -> Iterator[tuple[slice, np.ndarray | None]]:
        """Yield ``(rows, values)`` block by block; values are ``None`` where the store already holds them."""

    @abstractmethod
    def grouped(self, context: np.ndarray | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield ``(rows, values)``, one group of cells that see each other after the other."""

    def survey(self) -> Any:
        """What the model notes about the whole data set before the first block."""

        def counted() -> Iterator[Counts]:
            for first, X in self.source.blocks(self.rows_per_block):
                yield self._counts(X, np.arange(first, first + X.shape[0]), None)

        return self.model.survey(counted)

    def _counts(self, X: sparse.csr_matrix, rows: np.ndarray, survey: Any) -> Counts:
        check_values(X, counts=self.model.card.needs_counts, model=self.model.card.name)
        return Counts(self.alignment.apply(X), self.alignment.ids, self.alignment.genes, rows, survey)


class LocalRun(Run):
    """A run in this process."""

    def __init__(
        self, model: NetworkModel, source: CountSource, alignment: Alignment, engine: Engine, block_size: int = BLOCK
    ) -> None:
        super().__init__(model, source, alignment, resolved(engine), block_size)
        model.to(self.device).network.eval()
        asked = engine.precision or settings.precision
        if asked == "auto" and self.device.type == "cpu" and native_bfloat16() and self._may_be_coarse():
            self.precision = "bfloat16"

    def content_key(self, context: np.ndarray | None) -> str:
        """Digest of everything that decides the values, the counts included."""
        return content_key(self.fingerprint(), (X for _, X in self.source.blocks(self.rows_per_block)), context)

    def blocks(self, store: EmbeddingStore | None) -> Iterator[tuple[slice, np.ndarray | None]]:
        """Yield ``(rows, values)`` block by block; values are ``None`` where the store already holds them.

        A thread reads, tokenises and collates ahead of the network; at most :data:`AHEAD` batches wait.
        """
        survey = self.survey()
        for block, values in self._computed(self._tokenized(store, survey)):
            if store is not None and values is not None:
                store.write(block.first // self.rows_per_block, block.first, values, block.mark)
            yield slice(block.first, block.first + block.n_cells), values

    def embed_chunk(self, first: int, survey: Any) -> np.ndarray:
        """Embed all rows of the source, the first of which stands at ``first`` in the data set."""

        def blocks() -> Iterator[_Block]:
            for start, X in self.source.blocks(self.rows_per_block):
                yield _Block(first + start, X.shape[0], b"", self.tokens(X, first + start, survey))

        return np.concatenate([values for _, values in self._computed(blocks()) if values is not None])

    def _tokenized(self, store: EmbeddingStore | None, survey: Any) -> Iterator[_Block]:
        """Read and tokenise the blocks; one that the store holds has no tokens."""
        for first, X in self.source.blocks(self.rows_per_block):
            mark = block_digest(X) if store is not None else b""
            done = store is not None and store.holds(first // self.rows_per_block, mark)
            tokens = None
            if not done or self.model.sequential:
                tokens = self.tokens(X, first, survey)
            yield _Block(first, X.shape[0], mark, None if done else tokens, resumed=done and not self.model.sequential)

    def _computed(self, blocks: Iterator[_Block]) -> Iterator[tuple[_Block, np.ndarray | None]]:
        """Run the network over blocks, one batch after the other."""
        out = None
        with closing(self._waited(ahead(self._collated(blocks), AHEAD))) as pieces:
            for piece in pieces:
                block = piece.block
                if block.tokens is not None and out is None:
                    out = np.full((block.n_cells, self.model.dim), np.nan, dtype=np.float32)
                if piece.batch is not None and out is not None:
                    self._pass(block, piece.rows, piece.batch, out)
                if piece.last:
                    self.work.n_resumed += block.n_cells if block.resumed else 0
                    values, out = out, None
                    yield block, values

    def _waited(self, coming: Generator[T, None, None]) -> Generator[T, None, None]:
        """Yield what a thread works out ahead, and note how long the network waited for it."""
        with closing(coming):
            while True:
                start = time.perf_counter()
                item = next(coming, None)
                self.work.waiting_seconds += time.perf_counter() - start
                if item is None:
                    return
                yield item

    def _collated(self, blocks: Iterator[_Block]) -> Iterator[_Piece]:
        """Divide blocks into batches and make their tensors."""
        for block in blocks:
            plan = [] if block.tokens is None else self.model.plan(block.tokens, self.budget.tokens, self._most)
            plan = [rows for rows in plan if len(rows)]
            if not plan:
                yield _Piece(block, np.empty(0, np.int64), None, last=True)
            for i, rows in enumerate(plan):
                assert block.tokens is not None
                yield _Piece(block, rows, self._ready(block.tokens, rows), last=i == len(plan) - 1)

    def _ready(self, tokens: Tokens, rows: np.ndarray) -> Batch:
        """Tensors of some cells; for a card in memory that it can read while the network runs."""
        batch = self.model.collate(tokens.take(rows))
        return {k: v.pin_memory() for k, v in batch.items()} if self.device.type == "cuda" else batch

    @property
    def _most(self) -> int | None:
        """Most cells in one forward pass."""
        return self.engine.batch_size

    def tokens(self, X: sparse.csr_matrix, first: int = 0, survey: Any = None) -> Tokens:
        """Tokenise one block, whose first row stands at ``first`` in the data set."""
        return self._tokenize(self._counts(X, np.arange(first, first + X.shape[0]), survey))

    def embed(self, tokens: Tokens) -> np.ndarray:
        """Embed what is tokenised, ``(n, dim)``; NaN for a cell without any usable gene."""
        (values,) = (values for _, values in self._computed(iter([_Block(0, len(tokens), b"", tokens)])))
        assert values is not None
        return values

    def finished(self) -> Work:
        """Return the record of the work so far."""
        self.work.token_budget = self.budget.tokens
        return self.work

    def grouped(self, context: np.ndarray | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield ``(rows, values)`` block by block, one group after the other."""
        assert isinstance(self.model, GroupModel)
        labels = np.zeros(self.source.shape[0], dtype=np.int64) if context is None else context
        _, codes = np.unique(labels, return_inverse=True)
        for code in range(codes.max(initial=-1) + 1):
            rows = np.flatnonzero(codes == code)
            parts = [rows[i : i + self.rows_per_block] for i in range(0, len(rows), self.rows_per_block)]
            blocks = self._group_blocks(parts)
            start, waited = time.perf_counter(), self.work.waiting_seconds
            with self._arithmetic():
                for part, values in zip(parts, self.model.embed_group(blocks, self.device), strict=True):
                    yield part, values.float().cpu().numpy()
            self.work.network_seconds += time.perf_counter() - start - (self.work.waiting_seconds - waited)

    def _group_blocks(self, parts: list[np.ndarray]) -> Callable[[], Iterator[Tokens]]:
        def read() -> Iterator[Tokens]:
            for rows in parts:
                yield self._tokenize(self._counts(self.source[rows], rows, None))

        def blocks() -> Iterator[Tokens]:
            with closing(self._waited(ahead(read(), 1))) as coming:
                yield from coming

        return blocks

    def _tokenize(self, counts: Counts) -> Tokens:
        start = time.perf_counter()
        tokens = self.model.tokenize(counts)
        self.work.tokenize_seconds += time.perf_counter() - start
        return tokens

    def _pass(self, block: _Block, rows: np.ndarray, batch: Batch, out: np.ndarray) -> None:
        """Run the network over a batch and put its rows in place; with too little memory, over parts of it."""
        tokens = block.tokens
        assert tokens is not None
        pending: list[tuple[np.ndarray, Batch | None]] = [(rows, batch)]
        while pending:
            rows, given = pending.pop(0)
            costs = self.model.costs(tokens)[rows]
            longest = int(costs.max(initial=0))
            if given is not None and self.budget.halved and longest * len(rows) > self.budget.tokens:
                # Planned before memory ran out: divided again without another attempt.
                parts = self._divided(tokens, rows)
                if len(parts) > 1:
                    pending = [(part, None) for part in parts] + pending
                    continue
            try:
                ready = self._ready(tokens, rows) if given is None else given
                start = time.perf_counter()
                self.budget.begin()
                with self._arithmetic():
                    values = self.model.network({k: v.to(self.device, non_blocking=True) for k, v in ready.items()})
                    out[rows] = values.float().cpu().numpy()
            except RuntimeError as error:
                if not _out_of_memory(error):
                    raise
                pending = [(part, None) for part in self._back_off(tokens, rows, longest, error)] + pending
                continue
            self.budget.end(longest * len(rows))
            self.work.network_seconds += time.perf_counter() - start
            self.work.n_tokens += int(costs.sum())
            self.work.n_padded += longest * len(rows)

    def _back_off(self, tokens: Tokens, rows: np.ndarray, longest: int, error: RuntimeError) -> list[np.ndarray]:
        """Halve the budget and divide a batch that did not fit."""
        if len(rows) == 1:
            raise InputError(
                "device",
                f"{self.device}: out of memory for a single cell of {int(tokens.lengths[rows].max())} tokens",
                "enough memory for one cell",
                "use device='cpu' or a shorter max_length.",
            ) from error
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.budget.halve(longest * len(rows))
        get_logger().warning("out of memory on %s: going on with %d tokens a batch", self.device, self.budget.tokens)
        return self._divided(tokens, rows)

    def _divided(self, tokens: Tokens, rows: np.ndarray) -> list[np.ndarray]:
        rows = np.sort(rows)
        return [rows[part] for part in self.model.plan(tokens.take(rows), self.budget.tokens, self._most)]

    def _arithmetic(self) -> Arithmetic:
        return Arithmetic(self.device, self.precision)

    def _may_be_coarse(self) -> bool:
        """Whether the first cells come out of the processor's own bfloat16 nearly as out of float32."""
        model = self.model
        tied = isinstance(model, GroupModel) or model.sequential or model.block_multiple > 1
        if tied or type(model).survey is not NetworkModel.survey or not self.source.shape[0]:
            return False
        key = f"{model.digest} {model.options}"
        if key not in _SERVES:
            n = min(PROBED, self.source.shape[0])
            _SERVES[key] = bfloat16_serves(model, model.tokenize(self._counts(self.source[:n], np.arange(n), None)))
        return _SERVES[key]


def block_digest(X: sparse.csr_matrix) -> bytes:
    """SHA-256 of a block of counts."""
    digest = hashlib.sha256(np.asarray(X.shape, dtype=np.int64).tobytes())
    digest.update(np.ascontiguousarray(X.indptr, dtype=np.int64).data)
    digest.update(np.ascontiguousarray(X.indices, dtype=np.int64).data)
    digest.update(np.ascontiguousarray(X.data, dtype=np.float64).data)
    return digest.digest()


def no_known_gene(model: NetworkModel, genes: Genes) -> InputError:
    """Build the error for data none of whose genes the model knows."""
    kind = "Ensembl ids" if model.card.gene_id == "ensembl" else "gene symbols"
    some = ", ".join(map(str, genes.names[:3]))
    return InputError(
        "adata.var",
        f"0 of {len(genes.names)} genes are in the vocabulary of {model.card.name} (names like {some})",
        f"{kind} of {' or '.join(model.card.species)} as in the model's vocabulary",
        "call sd.pp.harmonize_genes(adata), or check the species.",
    )


def _out_of_memory(error: RuntimeError) -> bool:
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in text or "can't allocate memory" in text
