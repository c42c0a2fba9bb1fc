"""Runs: from rows of counts to rows of an embedding, for every network model.

Rows are read in blocks, tokenised, grouped into batches of similar length under a budget of tokens, and written
block by block, so that memory is bounded by the block and a killed run resumes at the block where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy import sparse

from scdrugmap import __version__
from scdrugmap._device import Engine, pick_device, pick_precision
from scdrugmap._errors import InputError
from scdrugmap._logging import get_logger
from scdrugmap.embedding.cache import content_key
from scdrugmap.embedding.source import CountSource
from scdrugmap.embedding.store import EmbeddingStore
from scdrugmap.genes.identifiers import Genes
from scdrugmap.models.base import GroupModel, NetworkModel
from scdrugmap.models.kit.counts import Alignment, Counts
from scdrugmap.models.kit.tokens import Tokens
from scdrugmap.models.kit.values import check_values

BLOCK = 2048
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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
    token_budget: int = 0

    def add(self, other: Work) -> None:
        """Add what another process did; the seconds of all processes are summed."""
        for name in ("n_tokens", "n_padded", "network_seconds", "tokenize_seconds"):
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
        # A GPU wants far larger batches than a CPU, whose caches the activations should fit.
        self.budget = model.token_budget * (16 if self.device.type == "cuda" else 1)
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

    def content_key(self, context: np.ndarray | None) -> str:
        """Digest of everything that decides the values, the counts included."""
        return content_key(self.fingerprint(), (X for _, X in self.source.blocks(self.rows_per_block)), context)

    def blocks(self, store: EmbeddingStore | None) -> Iterator[tuple[slice, np.ndarray | None]]:
        """Yield ``(rows, values)`` block by block; values are ``None`` where the store already holds them."""
        survey = self.survey()
        for first, X in self.source.blocks(self.rows_per_block):
            rows = slice(first, first + X.shape[0])
            mark = block_digest(X) if store is not None else b""
            done = store is not None and store.holds(first // self.rows_per_block, mark)
            if done and not self.model.sequential:
                self.work.n_resumed += X.shape[0]
                yield rows, None
                continue
            tokens = self._tokenize(self._counts(X, np.arange(first, first + X.shape[0]), survey))
            part = None if done else self._embed(tokens)
            if store is not None and part is not None:
                store.write(first // self.rows_per_block, first, part, mark)
            yield rows, part

    def embed_rows(self, X: sparse.csr_matrix, first: int, survey: Any) -> np.ndarray:
        """Embed one block, whose first row stands at ``first`` in the data set."""
        return self.embed(self.tokens(X, first, survey))

    def tokens(self, X: sparse.csr_matrix, first: int = 0, survey: Any = None) -> Tokens:
        """Tokenise one block."""
        return self._tokenize(self._counts(X, np.arange(first, first + X.shape[0]), survey))

    def embed(self, tokens: Tokens) -> np.ndarray:
        """Embed what is tokenised, ``(n, dim)``; NaN for a cell without any usable gene."""
        return self._embed(tokens)

    def finished(self) -> Work:
        """Return the record of the work so far."""
        self.work.token_budget = self.budget
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
            start = time.perf_counter()
            with self._arithmetic():
                for part, values in zip(parts, self.model.embed_group(blocks, self.device), strict=True):
                    yield part, values.float().cpu().numpy()
            self.work.network_seconds += time.perf_counter() - start

    def _group_blocks(self, parts: list[np.ndarray]) -> Callable[[], Iterator[Tokens]]:
        def blocks() -> Iterator[Tokens]:
            for rows in parts:
                yield self._tokenize(self._counts(self.source[rows], rows, None))

        return blocks

    def _tokenize(self, counts: Counts) -> Tokens:
        start = time.perf_counter()
        tokens = self.model.tokenize(counts)
        self.work.tokenize_seconds += time.perf_counter() - start
        return tokens

    def _embed(self, tokens: Tokens) -> np.ndarray:
        out = np.full((len(tokens), self.model.dim), np.nan, dtype=np.float32)
        costs = self.model.costs(tokens)
        pending = self.model.plan(tokens, self.budget, self.engine.batch_size)
        while pending:
            rows = pending.pop(0)
            try:
                batch = self.model.collate(tokens.take(rows))
                start = time.perf_counter()
                with self._arithmetic():
                    values = self.model.network({k: v.to(self.device, non_blocking=True) for k, v in batch.items()})
                    out[rows] = values.float().cpu().numpy()
            except RuntimeError as error:
                if not _out_of_memory(error):
                    raise
                pending = self._back_off(tokens, [rows, *pending], error)
                continue
            self.work.network_seconds += time.perf_counter() - start
            self.work.n_tokens += int(costs[rows].sum())
            self.work.n_padded += int(costs[rows].max(initial=0)) * len(rows)
        return out

    def _back_off(self, tokens: Tokens, remaining: list[np.ndarray], error: RuntimeError) -> list[np.ndarray]:
        """Halve the token budget and divide what is left again."""
        if len(remaining[0]) == 1:
            raise InputError(
                "device",
                f"{self.device}: out of memory for a single cell of {int(tokens.lengths[remaining[0]].max())} tokens",
                "enough memory for one cell",
                "use device='cpu' or a shorter max_length.",
            ) from error
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        longest = int(self.model.costs(tokens)[remaining[0]].max())
        self.budget = max(min(self.budget, longest * len(remaining[0])) // 2, 1)
        get_logger().warning("out of memory on %s: going on with %d tokens a batch", self.device, self.budget)
        rows = np.sort(np.concatenate(remaining))
        return [rows[part] for part in self.model.plan(tokens.take(rows), self.budget, self.engine.batch_size)]

    def _arithmetic(self) -> _Arithmetic:
        return _Arithmetic(self.device, _DTYPES[self.precision])


class _Arithmetic:
    """Inference mode, with autocast below float32."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.contexts: list[Any] = [torch.inference_mode()]
        if dtype != torch.float32:
            self.contexts.append(torch.autocast(device.type, dtype=dtype))

    def __enter__(self) -> None:
        for context in self.contexts:
            context.__enter__()

    def __exit__(self, *exc: object) -> None:
        for context in reversed(self.contexts):
            context.__exit__(*exc)


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
