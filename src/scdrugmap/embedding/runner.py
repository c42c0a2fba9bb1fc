"""The inference engine: from rows of counts to rows of an embedding, for every network model.

Rows are read in blocks, tokenised, grouped into batches of similar length under a budget of tokens, and written
block by block, so that memory is bounded by the block and a killed run resumes at the block where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse

from scdrugmap import __version__
from scdrugmap._device import pick_device, pick_precision
from scdrugmap._errors import InputError
from scdrugmap._logging import get_logger, progress
from scdrugmap.embedding import cache as finished
from scdrugmap.embedding import cluster as distributed
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


@dataclass(frozen=True)
class Embedding:
    """An embedding and how it came about."""

    values: Any
    usable: np.ndarray
    alignment: Alignment
    device: str
    precision: str
    work: Work = field(repr=False)


def embed_counts(
    model: NetworkModel,
    source: CountSource,
    genes: Genes,
    *,
    groups: np.ndarray | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    precision: str | None = None,
    block_size: int = BLOCK,
    store: Path | None = None,
    cache: Path | None = None,
    show_progress: bool | None = None,
    origin: distributed.Origin | None = None,
) -> Embedding:
    """Embed every row of a count matrix.

    A dask array is embedded on the workers, one chunk per task, while a ``dask.distributed`` client is active.

    Parameters
    ----------
    model
        A network model with weights.
    source
        Rows of counts.
    genes
        Identifiers of the columns.
    groups
        ``(n,)`` group of each cell, for models whose cells see each other.
    batch_size
        Most cells in one forward pass; by default only the token budget limits it.
    device, precision
        See :data:`scdrugmap.settings`.
    block_size
        Rows read and tokenised at a time; bounds the memory.
    store
        Folder of an on-disk zarr store; a killed run that is called again with the same arguments
        computes the missing blocks only. The values are then the store's array.
    cache
        Folder of finished embeddings by content; used where ``store`` is not given.
    show_progress
        Show a progress bar; by default on a terminal.
    origin
        How the model was loaded, for workers of a cluster; without it they get the model itself.

    Returns
    -------
    The embedding: ``values`` is ``(n, dim)`` float32, NaN in rows without any usable gene.

    Raises
    ------
    InputError
        On unusable values, no known gene, or too little memory for a single cell.
    """
    if batch_size is not None and (not isinstance(batch_size, int | np.integer) or batch_size < 1):
        raise InputError("batch_size", batch_size, "None or a number of cells of at least 1", "leave it out.")
    alignment = model.align(genes)
    if len(alignment.ids) == 0:
        raise no_known_gene(model, genes)
    cluster = distributed.connect(source, model, origin, device, precision)
    torch_device = pick_device(device) if cluster is None else torch.device(cluster.device)
    arithmetic = pick_precision(precision, torch_device) if cluster is None else cluster.precision
    if cluster is None:
        model.to(torch_device)
    runner = Runner(model, source, alignment, torch_device, arithmetic, batch_size, block_size)
    n = source.shape[0]
    key = ""
    if cache is not None and store is None:
        if cluster is None:
            blocks = (X for _, X in source.blocks(runner.rows_per_block))
            key = finished.content_key(runner.fingerprint(), blocks, groups)
        else:
            key = cluster.content_key(source.X, runner.fingerprint(), groups)
        known = finished.load(cache, key)
        if known is not None:
            runner.work.n_cells, runner.work.n_cached = n, n
            usable = ~np.isnan(known).all(axis=1)
            return Embedding(known, usable, alignment, str(torch_device), arithmetic, runner.work)
    values: Any
    if store is None:
        values, on_disk = np.full((n, model.dim), np.nan, dtype=np.float32), None
    else:
        on_disk = EmbeddingStore.open(Path(store), (n, model.dim), runner.rows_per_block, runner.fingerprint())
        values = on_disk.values
    usable = np.ones(n, dtype=bool)
    start = time.perf_counter()
    with progress(n, model.card.name, "cell", show=show_progress) as bar:
        if isinstance(model, GroupModel):
            for rows, embedded in runner.grouped(groups, cluster):
                values[rows] = embedded
                usable[rows] = ~np.isnan(embedded).all(axis=1)
                bar.update(len(embedded))
        else:
            for first, size, part in runner.blocks(on_disk, cluster):
                if part is not None and on_disk is None:
                    values[first : first + size] = part
                block = values[first : first + size]
                usable[first : first + size] = ~np.isnan(block).all(axis=1)
                bar.update(size)
    work = runner.work
    work.seconds, work.n_cells, work.n_empty = time.perf_counter() - start, n, int((~usable).sum())
    work.token_budget = work.token_budget or runner.budget
    if key:
        assert cache is not None
        finished.save(cache, key, values, model=model.card.name)
    return Embedding(values, usable, alignment, str(torch_device), arithmetic, work)


class Runner:
    """State of one run: where it reads, the token budget, what it did so far."""

    def __init__(
        self,
        model: NetworkModel,
        source: CountSource,
        alignment: Alignment,
        device: torch.device,
        precision: str,
        batch_size: int | None,
        block_size: int,
    ) -> None:
        self.model, self.source, self.alignment = model, source, alignment
        self.device, self.dtype, self.precision, self.batch_size = device, _DTYPES[precision], precision, batch_size
        self.rows_per_block = -(-block_size // model.block_multiple) * model.block_multiple
        # A GPU wants far larger batches than a CPU, whose caches the activations should fit.
        self.budget = model.token_budget * (16 if device.type == "cuda" else 1)
        self.work = Work()
        model.network.eval()

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

    def blocks(
        self, store: EmbeddingStore | None, cluster: distributed.Cluster | None = None
    ) -> Iterator[tuple[int, int, np.ndarray | None]]:
        """Yield ``(first row, rows, values)``; values are ``None`` where the store already holds them."""
        survey = self.model.survey(self._counted)
        if cluster is not None:
            job = cluster.job(self.alignment, self.batch_size, self.rows_per_block, survey)
            yield from cluster.blocks(self.source.X, job, store, self.work, fixed=self.model.block_multiple > 1)
            return
        for first, X in self.source.blocks(self.rows_per_block):
            mark = block_digest(X) if store is not None else b""
            done = store is not None and store.holds(first // self.rows_per_block, mark)
            if done and not self.model.sequential:
                self.work.n_resumed += X.shape[0]
                yield first, X.shape[0], None
                continue
            tokens = self._tokenize(self._counts(X, np.arange(first, first + X.shape[0]), survey))
            part = None if done else self._embed(tokens)
            if store is not None and part is not None:
                store.write(first // self.rows_per_block, first, part, mark)
            yield first, X.shape[0], part

    def embed_rows(self, X: sparse.csr_matrix, first: int, survey: Any) -> np.ndarray:
        """Embed one block, whose first row stands at ``first`` in the data set."""
        return self._embed(self._tokenize(self._counts(X, np.arange(first, first + X.shape[0]), survey)))

    def finished(self) -> Work:
        """Return the record of the work so far."""
        self.work.token_budget = self.budget
        return self.work

    def grouped(
        self, groups: np.ndarray | None, cluster: distributed.Cluster | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield ``(rows, values)`` block by block, one group after the other."""
        assert isinstance(self.model, GroupModel)
        if cluster is not None:
            job = cluster.job(self.alignment, self.batch_size, self.rows_per_block)
            yield from cluster.grouped(self.source.X, job, groups, self.work)
            return
        labels = np.zeros(self.source.shape[0], dtype=np.int64) if groups is None else groups
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

    def _counted(self) -> Iterator[Counts]:
        for first, X in self.source.blocks(self.rows_per_block):
            yield self._counts(X, np.arange(first, first + X.shape[0]), None)

    def _counts(self, X: sparse.csr_matrix, rows: np.ndarray, survey: Any) -> Counts:
        check_values(X, counts=self.model.card.needs_counts, model=self.model.card.name)
        return Counts(self.alignment.apply(X), self.alignment.ids, self.alignment.genes, rows, survey)

    def _tokenize(self, counts: Counts) -> Tokens:
        start = time.perf_counter()
        tokens = self.model.tokenize(counts)
        self.work.tokenize_seconds += time.perf_counter() - start
        return tokens

    def _embed(self, tokens: Tokens) -> np.ndarray:
        out = np.full((len(tokens), self.model.dim), np.nan, dtype=np.float32)
        costs = self.model.costs(tokens)
        pending = self.model.plan(tokens, self.budget, self.batch_size)
        while pending:
            rows = pending.pop(0)
            try:
                out[rows] = self._forward(tokens.take(rows))
            except RuntimeError as error:
                if not _out_of_memory(error):
                    raise
                pending = self._back_off(tokens, [rows, *pending], error)
                continue
            self.work.n_tokens += int(costs[rows].sum())
            self.work.n_padded += int(costs[rows].max(initial=0)) * len(rows)
        return out

    def _forward(self, tokens: Tokens) -> np.ndarray:
        batch = self.model.collate(tokens)
        start = time.perf_counter()
        with self._arithmetic():
            values = self.model.network({k: v.to(self.device, non_blocking=True) for k, v in batch.items()})
            result = values.float().cpu().numpy()
        self.work.network_seconds += time.perf_counter() - start
        return result

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
        return [rows[part] for part in self.model.plan(tokens.take(rows), self.budget, self.batch_size)]

    def _arithmetic(self) -> _Arithmetic:
        return _Arithmetic(self.device, self.dtype)


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


def describe(embedding: Embedding) -> dict[str, Any]:
    """Summarise a run for provenance: coverage, device, precision, work done."""
    alignment, work = embedding.alignment, embedding.work
    return {
        "device": embedding.device,
        "precision": embedding.precision,
        "genes_in_data": alignment.n_columns,
        "genes_used": len(alignment.ids),
        "genes_merged": len(alignment.merged),
        "cells_without_genes": work.n_empty,
        "work": {k: v for k, v in asdict(work).items() if k.endswith("seconds") or k.startswith("n_")},
    }
