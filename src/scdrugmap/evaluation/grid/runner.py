"""Run the grid: plan the units, compute what the store lacks, in this process, in several, or on a cluster.

The unit of storage is one fold. The unit of work is larger: all folds of one head on one representation train as one
batch, and a representation that is fitted per fold is fitted once for all heads.
"""

from __future__ import annotations

import hashlib
import pickle
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, CancelledError
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from scdrugmap._cohort import Cohort
from scdrugmap._errors import InputError
from scdrugmap._logging import get_logger, progress, warn
from scdrugmap.evaluation.grid.backed import portable
from scdrugmap.evaluation.grid.contenders import Contender, Head
from scdrugmap.evaluation.grid.store import Outcome, RunStore, Unit
from scdrugmap.evaluation.grid.work import PROBE, PROBE_HEAD, Task, run_task
from scdrugmap.evaluation.splits.folds import Partition

#: Called with a finished unit, the number finished and the number of all.
OnUnit = Callable[[Outcome, int, int], None]
#: A task and its outcomes, or the message of the error that stopped it.
Done = tuple[Task, list[Outcome] | str]
#: How often the work that a dead worker took along is handed out again.
RETRIES = 3


@dataclass(frozen=True, eq=False)
class Counted:
    """Raw counts for representations that are fitted per fold."""

    X: Any
    genes: Any
    digest: str


@dataclass
class Run:
    """What a run produced.

    Parameters
    ----------
    outcomes
        Unit key to predictions.
    failures
        Unit key to the message of the error that stopped it; not stored, so the next call tries again.
    n_resumed
        Units that were in the store.
    seconds
        Wall time.
    """

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    n_resumed: int = 0
    seconds: float = 0.0


def plan(
    contenders: Sequence[Contender], partitions: Sequence[Partition], cells: Cohort, *, seed: int, probe: bool = True
) -> list[Task]:
    """List the work in a fixed order.

    Parameters
    ----------
    contenders, partitions
        The grid.
    cells
        Labels and groups.
    seed
        Seed of heads and rules.
    probe
        Also ask how well each representation recognises the sample, once per category.
    """
    from scdrugmap import __version__

    tasks: list[Task] = []
    for contender in (_batched(c, cells) for c in contenders if c.kind != "absent"):
        probed: set[tuple[str, str]] = set()
        for partition in partitions:
            tasks += _tasks(contender, partition, (__version__, cells.digest, f"seed={seed}"))
            place = (partition.by, partition.category)
            probes = probe and contender.kind in ("array", "fitted") and contender.adapt == "none"
            if probes and place not in probed:
                probed.add(place)
                content = (__version__, cells.digest, f"seed={seed}", contender.digest)
                unit = Unit(contender.name, PROBE, PROBE_HEAD, "probe", "cell", *place, "0", content)
                tasks.append(Task(contender, (), partition, (), (unit,), probe=True))
    return tasks


def _batched(contender: Contender, cells: Cohort) -> Contender:
    """Let digest and manifest of a model that is fitted on batches say which ones they are."""
    from scdrugmap.models import registry

    if contender.kind != "fitted" or not registry.get(contender.model).uses_batch:  # type: ignore[attr-defined]
        return contender
    batches = hashlib.sha256("\x1f".join(map(str, () if cells.batch is None else cells.batch)).encode()).hexdigest()
    manifest = {**contender.manifest, "batch": cells.batch_from}
    return replace(contender, digest=f"{contender.digest}:batch={batches}", manifest=manifest)


def _tasks(contender: Contender, partition: Partition, content: tuple[str, ...]) -> Iterator[Task]:
    folds = tuple(i for i, fold in enumerate(partition.folds) if not fold.reason)
    if partition.reason or not folds:
        return
    content = (*content, contender.digest, partition.hash)

    def units(heads: Sequence[Head], chosen: Sequence[int]) -> tuple[Unit, ...]:
        p = partition
        return tuple(
            Unit(
                contender.name, contender.strategy, head.name, p.setting, p.split, p.by, p.category,
                p.folds[i].name, (*content, head.digest),
            )
            for head in heads
            for i in chosen
        )  # fmt: skip

    if contender.kind in ("fitted", "custom"):
        # Fitting is the dear part: one task per fold, which serves all heads.
        for i in folds:
            yield Task(contender, contender.heads, partition, (i,), units(contender.heads, (i,)))
    else:
        for head in contender.heads:
            yield Task(contender, (head,), partition, folds, units((head,), folds))


def run(
    tasks: Sequence[Task],
    cells: Cohort,
    *,
    counts: Counted | None = None,
    store: RunStore | None = None,
    seed: int = 0,
    n_jobs: int | None = None,
    show_progress: bool | None = None,
    on_unit: OnUnit | None = None,
) -> Run:
    """Compute every unit that the store does not hold.

    Parameters
    ----------
    tasks
        From :func:`plan`.
    cells
        Labels and groups.
    counts
        Raw counts, for fitted representations.
    store
        Where finished units are read from and written to; ``None`` keeps them in memory.
    seed
        As in :func:`plan`.
    n_jobs
        Processes; ``None`` takes joblib's context (``joblib.parallel_config``), the ``dask.distributed`` client that is
        open in this process, or ``settings.n_jobs``.
    show_progress
        Force or forbid the bar.
    on_unit
        Called with each finished unit, the number finished and the number of all.

    Notes
    -----
    A task whose units are only partly stored runs whole and adds what is missing: the numbers then cannot depend on
    where a run was interrupted. A worker process that dies takes its task along; the task is handed out again.
    """
    start = time.perf_counter()
    result = Run()
    wanted = {unit.key: unit for task in tasks for unit in task.units}
    _resume(result, wanted, store)
    result.n_resumed = len(result.outcomes)
    payload = _payload(cells, counts, seed, store)
    told: set[str] = set()

    def tell() -> None:
        for key in [k for k in result.outcomes if k not in told]:
            told.add(key)
            if on_unit is not None:
                on_unit(result.outcomes[key], len(result.outcomes) + len(result.failures), len(wanted))

    tell()
    with progress(len(wanted), "benchmark", "unit", show=show_progress) as bar:
        bar.update(result.n_resumed)
        for attempt in range(RETRIES + 1):
            pending = [
                t for t in tasks if any(u.key not in result.outcomes and u.key not in result.failures for u in t.units)
            ]
            if not pending:
                break
            # Only what the scheduler raises is tried again: not the caller's function, not a store that cannot be written.
            for task, done in _guarded(_execute(pending, payload, n_jobs), last=attempt == RETRIES):
                _collect(task, done, result, store)
                bar.update(len(task.units))
                tell()
    result.seconds = time.perf_counter() - start
    return result


def _resume(result: Run, wanted: Mapping[str, Unit], store: RunStore | None) -> None:
    """Read the units that the store holds; one that cannot be read is removed from it."""
    if store is None:
        return
    for key in store.finished() & set(wanted):
        try:
            result.outcomes[key] = store.read(wanted[key])
        except (OSError, ValueError) as error:
            text = f"stored unit {key} cannot be read ({error}); it is computed again"
            warn(text)
            (store.path / "units" / f"{key}.parquet").unlink()


def lost_worker_errors() -> tuple[type[BaseException], ...]:
    """Return the errors by which a scheduler says that a worker is gone.

    Examples
    --------
    >>> from concurrent.futures.process import BrokenProcessPool
    >>> issubclass(BrokenProcessPool, lost_worker_errors())
    True
    """
    # joblib's TerminatedWorkerError is a broken executor.
    kinds: list[type[BaseException]] = [BrokenExecutor, CancelledError, ConnectionError]
    if "distributed" in sys.modules:
        from distributed import KilledWorker
        from distributed.comm.core import CommClosedError

        kinds += [KilledWorker, CommClosedError]
    return tuple(kinds)


def _guarded(work: Iterator[Done], *, last: bool) -> Iterator[Done]:
    """Yield finished work, and end early where the scheduler lost a worker; the last time that is an error."""
    while True:
        try:
            step = next(work)
        except StopIteration:
            return
        except pickle.PicklingError as error:
            raise InputError(
                "n_jobs",
                f"work that cannot be sent to another process ({str(error.__cause__ or error).split(chr(10))[-1]})",
                "models and data that can be pickled",
                "pass n_jobs=1, or load the file first: adata = adata.to_memory().",
            ) from error
        except lost_worker_errors() as error:
            if last:
                raise
            get_logger().warning("a worker failed (%s); handing its work out again", type(error).__name__)
            return
        yield step


def _collect(task: Task, done: list[Outcome] | str, result: Run, store: RunStore | None) -> None:
    if isinstance(done, str):
        result.failures |= {unit.key: done for unit in task.units if unit.key not in result.outcomes}
        unit = task.units[0]
        text = f"{unit.model} ({unit.strategy}, {unit.head}) failed in {unit.category!r}, {unit.setting}: {done}"
        warn(f"{text}. Its rows hold NaN and the reason.")
        return
    for outcome in done:
        if outcome.unit.key not in result.outcomes:
            result.outcomes[outcome.unit.key] = outcome
            if store is not None:
                store.write(outcome)


def _payload(cells: Cohort, counts: Counted | None, seed: int, store: RunStore | None) -> dict[str, Any]:
    return {
        "y": cells.y,
        "sample": cells.sample_codes,
        "study": cells.study.astype(str),
        "counts": None if counts is None else portable(counts.X),
        "genes": None if counts is None else counts.genes,
        "batch": np.zeros(len(cells.y)) if cells.batch is None else pd.factorize(cells.batch, sort=True)[0],
        "seed": seed,
        "store": None if store is None else str(store.path.resolve()),
    }


def _execute(tasks: Sequence[Task], payload: Mapping[str, Any], n_jobs: int | None) -> Iterator[Done]:
    """Run tasks where joblib's context says, yielding each as it ends where the backend can."""
    import joblib
    from joblib.parallel import get_active_backend

    from scdrugmap.embedding.client import active_client
    from scdrugmap.settings import settings

    backend, configured = get_active_backend()
    local = type(backend).__name__ in ("LokyBackend", "SequentialBackend", "ThreadingBackend", "MultiprocessingBackend")
    context: AbstractContextManager[Any] = nullcontext()
    if n_jobs is None and local and configured in (None, 1):
        client = active_client()
        if client is None:
            n_jobs = settings.n_jobs
        else:
            n_jobs, local = -1, False
            context = joblib.parallel_config(backend="dask", client=client)
    if n_jobs == 1 and local:
        for task in tasks:
            yield task, run_task(task, **payload)
        return
    with context:
        streams = getattr(get_active_backend()[0], "supports_return_generator", False)
        how = "generator_unordered" if streams else "list"
        parallel = joblib.Parallel(n_jobs=n_jobs, batch_size=1, return_as=how)
    # Large arrays travel as arguments of their own, which joblib maps into memory or scatters once.
    torch = any(
        t.contender.kind in ("fitted", "custom") or {"mlp", "published"} & {h.name for h in t.heads} for t in tasks
    )
    jobs = (joblib.delayed(_numbered)(i, _light(t), t.contender.X, torch, **payload) for i, t in enumerate(tasks))
    for i, done in parallel(jobs):
        yield tasks[i], done


def _light(task: Task) -> Task:
    return replace(task, contender=replace(task.contender, X=None))


def _numbered(i: int, task: Task, X: np.ndarray | None, torch: bool, **payload: Any) -> tuple[int, list[Outcome] | str]:
    if torch:
        # loky takes a worker that first imports torch in a later task for one that leaks memory, and replaces it.
        import scdrugmap.models.base  # noqa: F401
    return i, run_task(replace(task, contender=replace(task.contender, X=X)), **payload)
