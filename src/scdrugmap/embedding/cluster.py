"""Runs on a cluster: each chunk of a dask array, or some rows of a file, is one task; a process loads the model once.

Workers get a description of the model (class, checkpoint, options) and load it from the files that they see; a model
that exists only in the caller's memory travels with its state. A worker that dies takes no result along: dask hands
its chunks out again.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scdrugmap._device import Engine
from scdrugmap._errors import CheckpointError, InputError
from scdrugmap.embedding.runner import BLOCK, LocalRun, Run, Work, block_digest, resolved
from scdrugmap.embedding.source import CountSource, source_of

if TYPE_CHECKING:
    from scdrugmap.embedding.store import EmbeddingStore
    from scdrugmap.models.base import NetworkModel
    from scdrugmap.models.kit.counts import Alignment

#: The model of this worker process, by the key of its origin; one, for models are large.
_LOADED: dict[str, NetworkModel] = {}
#: A process embeds one chunk at a time: its threads serve the network, not several networks at once.
_LOCK = threading.Lock()


@dataclass(frozen=True)
class Origin:
    """How a worker gets the model.

    Parameters
    ----------
    checkpoint
        As the caller gave it: a path, a variant, or ``None`` for the default.
    options
        Options that the model was loaded with.
    cls, path, digest
        Class, files on the caller's machine and their digest.
    state
        The pickled model, where there are no files to load it from.
    """

    checkpoint: str | Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    cls: type[NetworkModel] | None = None
    path: str = ""
    digest: str = ""
    state: bytes = field(default=b"", repr=False)

    @classmethod
    def of(cls, model: NetworkModel, origin: Origin | None) -> Origin:
        """Complete the description of a loaded model; without one, take the model itself.

        Raises
        ------
        InputError
            If the model itself has to travel and cannot be pickled.
        """
        if origin is not None:
            from scdrugmap.models import registry

            path = registry.resolve_checkpoint(model.card, origin.checkpoint).resolve()
            return replace(origin, cls=type(model), path=str(path), digest=model.digest)
        import cloudpickle

        try:
            return cls(state=cloudpickle.dumps(model.to(torch.device("cpu"))))
        except Exception as error:  # pickling calls any code, which may raise anything
            raise InputError(
                "model",
                f"a {type(model).__name__} that cannot be sent to the workers ({type(error).__name__}: {error})",
                "the name of a model, or a model that can be pickled",
                "pass the name and checkpoint=, so that each worker loads it, or close the client to work here.",
            ) from error

    @property
    def key(self) -> str:
        """Same model, same key."""
        parts = (repr(self.cls), self.path, self.digest, repr(sorted(self.options.items())))
        return hashlib.sha256("\n".join(parts).encode() + self.state).hexdigest()

    def load(self) -> NetworkModel:
        """Load the model on this machine.

        Raises
        ------
        CheckpointError
            If the files are not here, or are not those of the caller.
        """
        if self.cls is None:
            import cloudpickle

            return cloudpickle.loads(self.state)
        from scdrugmap.models import registry

        where = Path(self.path)
        if not where.exists():
            # A variant can be fetched to where the worker runs; a folder of the caller cannot.
            try:
                where = registry.resolve_checkpoint(self.cls.card, self.checkpoint)
            except CheckpointError as error:
                raise CheckpointError(
                    "checkpoint",
                    f"{self.path}, which worker {_worker_name()} does not see",
                    "files that every worker can read under the same path",
                    "put the checkpoint on a file system that all machines share.",
                ) from error
        model = self.cls.from_checkpoint(where, **self.options).prepared()
        if model.digest != self.digest:
            raise CheckpointError(
                "checkpoint",
                f"other files at {where} on worker {_worker_name()} than on the machine that asks",
                "the same files everywhere",
                "copy the checkpoint again, or use a file system that all machines share.",
            )
        return model


@dataclass(frozen=True)
class Job:
    """What all tasks of one call have in common."""

    origin: Origin
    alignment: Alignment
    engine: Engine
    rows_per_block: int
    survey: Any = None


class ClusterRun(Run):
    """A run whose blocks or groups are tasks of a ``dask.distributed`` client.

    Parameters
    ----------
    client
        The client.
    origin
        How the model was loaded; ``None`` sends the model itself.
    model, source, alignment, engine, block_size
        As in :class:`scdrugmap.embedding.runner.Run`; ``source`` is a dask array, or files that the workers see.

    Raises
    ------
    InputError
        If the workers lack the device, or the model cannot get there.
    """

    def __init__(
        self, client: Any, origin: Origin | None, model: NetworkModel, source: CountSource, alignment: Alignment,
        engine: Engine, block_size: int = BLOCK,
    ) -> None:  # fmt: skip
        from scdrugmap.settings import settings

        self.client, self.origin = client, Origin.of(model, origin)
        asked = replace(
            engine, device=engine.device or settings.device, precision=engine.precision or settings.precision
        )
        # One worker chooses for all, so that every cell is computed with the same arithmetic.
        super().__init__(model, source, alignment, client.submit(_place, asked, pure=False).result(), block_size)

    def job(self, survey: Any = None) -> Job:
        """Describe the work that the tasks share."""
        return Job(self.origin, self.alignment, self.engine, self.rows_per_block, survey)

    def blocks(self, store: EmbeddingStore | None) -> Iterator[tuple[slice, np.ndarray | None]]:
        """Yield ``(rows, values)`` as tasks end; ``None`` for values that the store holds already.

        Tasks are the chunks of the array, or the blocks of the engine where a store or a recipe needs those.
        """
        size = self.rows_per_block
        pieces = self._pieces(size if self.model.block_multiple > 1 or store is not None else None)
        marks = [b""] * len(pieces) if store is None else [bytes(m) for m in np.asarray(store.done[:])]
        arguments = [(piece, first, mark) for (piece, first, _), mark in zip(pieces, marks, strict=True)]
        for i, (part, mark, done) in self._run(embed_chunk, arguments, self.job(self.survey())):
            _, first, rows = pieces[i]
            if part is None:
                self.work.n_resumed += rows
            elif store is not None:
                store.write(first // size, first, part, mark)
            self.work.add(done)
            yield slice(first, first + rows), part

    def grouped(self, context: np.ndarray | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield ``(rows, values)`` group by group: cells that see each other are one task."""
        X, n = self.source.X, self.source.shape[0]
        codes = np.zeros(n, dtype=int) if context is None else np.unique(context, return_inverse=True)[1]
        members = [np.flatnonzero(codes == code) for code in range(codes.max(initial=-1) + 1)]
        if self.source.is_dask:
            arguments = [(X[rows].rechunk(-1).to_delayed().ravel()[0],) for rows in members]
        else:
            arguments = [(self.source.take(rows),) for rows in members]
        for i, (part, done) in self._run(embed_group, arguments, self.job()):
            self.work.add(done)
            yield members[i], part

    def content_key(self, context: np.ndarray | None) -> str:
        """Digest of everything that decides the values, with the counts read by the workers."""
        arguments = [(piece,) for piece, _, _ in self._pieces(None)]
        digests = dict(self._run(_digest, arguments))
        whole = hashlib.sha256(self.fingerprint().encode())
        for i in range(len(arguments)):
            whole.update(digests[i])
        if context is not None:
            whole.update(np.unique(context, return_inverse=True)[1].astype(np.int64).data)
        return whole.hexdigest()

    def _pieces(self, size: int | None) -> list[tuple[Any, int, int]]:
        """What each task reads, its first row and its number of rows: chunks of an array, or rows of a file by its path."""
        n = self.source.shape[0]
        if not self.source.is_dask:
            step = size or self.rows_per_block
            ranges = [(first, min(first + step, n)) for first in range(0, n, step)]
            return [(self.source.take(np.arange(first, stop)), first, stop - first) for first, stop in ranges]
        X = self.source.X.rechunk({0: size, 1: -1} if size is not None else {1: -1})
        starts = np.concatenate([[0], np.cumsum(X.chunks[0])]).astype(int)
        return [(chunk, int(starts[i]), int(X.chunks[0][i])) for i, chunk in enumerate(X.to_delayed().ravel())]

    def _run(self, function: Any, arguments: list[tuple[Any, ...]], *shared: Any) -> Iterator[tuple[int, Any]]:
        """Yield ``(position, result)`` in the order in which tasks end."""
        import dask
        import distributed

        # Part of the graph rather than scattered: the scheduler can hand it out again when a worker is lost.
        common = [dask.delayed(s, pure=False, traverse=False) for s in shared]
        task = dask.delayed(function, pure=False)
        futures = self.client.compute([task(*a, *common) for a in arguments])
        number = {future.key: i for i, future in enumerate(futures)}
        try:
            for future, result in distributed.as_completed(futures, with_results=True):
                yield number[future.key], result
                future.release()
        except distributed.KilledWorker as error:
            raise InputError(
                "adata.X",
                "a chunk whose worker process died each time it was tried, probably for want of memory",
                "chunks that fit beside the model into the memory of a worker",
                "use smaller chunks (X.rechunk), or workers with more memory.",
            ) from error
        finally:
            self.client.cancel(futures)


def embed_chunk(X: Any, first: int, mark: bytes, job: Job) -> tuple[np.ndarray | None, bytes, Work]:
    """Embed one chunk on a worker; returns values, digest of the counts and the work done.

    The values are ``None`` where ``mark`` says that the caller has those of these very counts.
    """
    source = source_of(X)
    digest = b""
    if mark:
        digest = block_digest(source[slice(0, source.shape[0])])
        if digest == mark:
            return None, digest, Work()
    with _running(source, job) as runner:
        values = runner.embed_chunk(first, job.survey)
    return values, digest, runner.finished()


def embed_group(X: Any, job: Job) -> tuple[np.ndarray, Work]:
    """Embed one group of cells that see each other on a worker."""
    with _running(source_of(X), job) as runner:
        parts = [part for _, part in runner.grouped(None)]
    return np.concatenate(parts), runner.finished()


@contextmanager
def _running(source: CountSource, job: Job) -> Iterator[LocalRun]:
    """Run with the model of this process and as many threads as the worker has, one chunk at a time."""
    from distributed import get_worker

    with _LOCK:
        before = torch.get_num_threads()
        torch.set_num_threads(get_worker().state.nthreads)
        try:
            yield LocalRun(_model(job.origin), source, job.alignment, _place(job.engine), job.rows_per_block)
        finally:
            torch.set_num_threads(before)


def _model(origin: Origin) -> NetworkModel:
    """Return the model, loaded once per process; the caller holds the lock."""
    key = origin.key
    if key not in _LOADED:
        _LOADED.clear()
        _LOADED[key] = origin.load()
    return _LOADED[key]


def _place(engine: Engine) -> Engine:
    """Resolve device and precision where this runs."""
    try:
        return resolved(engine)
    except InputError as error:
        if error.argument == "precision":
            raise
        raise InputError(
            "device",
            f"{error.found} on worker {_worker_name()}",
            "a device that every worker has",
            "use device='cpu', or workers of one kind.",
        ) from error


def _digest(X: Any) -> bytes:
    """SHA-256 of a chunk."""
    from scdrugmap.embedding.runner import block_digest

    source = source_of(X)
    return block_digest(source[slice(0, source.shape[0])])


def _worker_name() -> str:
    """Name of the worker that runs this task."""
    from distributed import get_worker

    return str(get_worker().address)
