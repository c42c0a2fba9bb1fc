"""The one way from cells to an embedding: embed, train, predict and benchmark all come here.

Cells are looked up by content (in ``obsm``, in the cache, in a store) before a network runs over them, in this process
or on a cluster.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from scdrugmap import __version__
from scdrugmap._device import Engine
from scdrugmap._keys import KEYS
from scdrugmap._logging import progress, warn
from scdrugmap.embedding import cache as finished
from scdrugmap.embedding.cells import Cells
from scdrugmap.embedding.client import active_client
from scdrugmap.embedding.cluster import ClusterRun, Origin
from scdrugmap.embedding.runner import BLOCK, LocalRun, Run, Work, block_digest, no_known_gene
from scdrugmap.embedding.source import CountSource
from scdrugmap.embedding.store import EmbeddingStore
from scdrugmap.genes.identifiers import Genes
from scdrugmap.models.base import FittedModel, GroupModel, Model, NetworkModel
from scdrugmap.models.kit.counts import Alignment


@dataclass(frozen=True)
class Embedding:
    """An embedding and how it came about.

    Parameters
    ----------
    values
        ``(n, dim)`` float32; NaN in rows without any usable gene.
    usable
        ``(n,)`` whether a cell has one.
    alignment
        Genes in the model's vocabulary; ``None`` for fitted models.
    device, precision
        Where and in which arithmetic it was computed.
    content
        Key of everything that decides the values.
    work
        What the run did.
    """

    values: Any
    usable: np.ndarray
    alignment: Alignment | None = None
    device: str = "cpu"
    precision: str = "float32"
    content: str = ""
    work: Work = field(default_factory=Work, repr=False)

    def described(self) -> dict[str, Any]:
        """Summarise for provenance: coverage, device, precision, content, work done."""
        out: dict[str, Any] = {"device": self.device, "precision": self.precision}
        if self.alignment is None:
            return out
        return out | {
            "content": self.content,
            "genes_in_data": self.alignment.n_columns,
            "genes_used": len(self.alignment.ids),
            "genes_merged": len(self.alignment.merged),
            "cells_without_genes": int((~self.usable).sum()),
            "work": {k: v for k, v in asdict(self.work).items() if k.endswith("seconds") or k.startswith("n_")},
        }


def embed_cells(
    model: NetworkModel | FittedModel,
    cells: Cells,
    engine: Engine,
    *,
    rows: np.ndarray | None = None,
    origin: Origin | None = None,
) -> Embedding:
    """Embed cells, or take an embedding of these very cells from where it lies.

    Parameters
    ----------
    model
        A network model, or one that is fitted.
    cells
        Of :func:`scdrugmap.embedding.cells.read_cells`.
    engine
        How to compute; each model has a folder of its own in ``engine.store``.
    rows
        Ascending rows to embed; by default all. An embedding of all cells that lies in ``obsm`` serves them, too.
    origin
        How workers of a cluster load the model.

    Returns
    -------
    The embedding; with a store, its values are mapped from there.

    Raises
    ------
    InputError
        On values or genes that the model cannot use.
    """
    from scdrugmap.settings import settings

    if isinstance(model, FittedModel):
        projected = _transformed(model, cells if rows is None else cells.take(rows), _own_store(engine, model))
        _warn_about(projected, model)
        return projected
    if model.card.context == "group" and cells.context is None:
        warn(
            f"no context= and no obs[{KEYS.sample!r}]: all cells form one group and see each other. "
            "Pass context=<column of obs> to keep samples apart."
        )
    found = None if rows is None else _part_of_lying(model, cells, rows, engine, origin)
    if found is None:
        cells = cells if rows is None else cells.take(rows)
        found = embed_counts(
            model,
            cells.source,
            cells.genes,
            _own_store(engine, model),
            context=cells.context,
            cache=settings.cache_dir / "embeddings" if settings.embedding_cache else None,
            lying=None if cells.lying is None else (cells.content, cells.lying),
            origin=origin,
        )
    _warn_about(found, model)
    return replace(found, values=np.asarray(found.values))


def fit_model(model: FittedModel, source: CountSource, genes: Genes, batch: np.ndarray | None = None) -> None:
    """Fit a baseline on rows of counts, which are read block by block where the model can.

    Parameters
    ----------
    model
        The baseline.
    source
        Training cells.
    genes
        Identifiers of the columns.
    batch
        Label of each cell, for models that look at it.
    """
    model.fit(source if model.streams else source[slice(0, source.shape[0])], genes, batch=batch)


def _own_store(engine: Engine, model: Model) -> Engine:
    """Each model has a folder of its own."""
    return engine if engine.store is None else replace(engine, store=engine.store / model.card.key)


def embed_counts(
    model: NetworkModel,
    source: CountSource,
    genes: Genes,
    engine: Engine | None = None,
    *,
    context: np.ndarray | None = None,
    block_size: int = BLOCK,
    cache: Path | None = None,
    lying: tuple[str, np.ndarray] | None = None,
    origin: Origin | None = None,
) -> Embedding:
    """Embed every row of a count matrix.

    While a ``dask.distributed`` client is active, a dask array is embedded on the workers, one chunk per task, and so
    are counts in files, which the workers read for themselves.

    Parameters
    ----------
    model
        A network model with weights.
    source
        Rows of counts.
    genes
        Identifiers of the columns.
    engine
        How to compute. With a store, a killed run that is called again with the same arguments computes the missing
        blocks only, and the values are the store's array.
    context
        ``(n,)`` labels of cells that see each other, for models where they do.
    block_size
        Rows read and tokenised at a time; bounds the memory.
    cache
        Folder of finished embeddings by content; used where there is no store.
    lying
        Content key and values of an embedding that may be the one asked for.
    origin
        How the model was loaded, for workers of a cluster; without it they get the model itself.

    Returns
    -------
    The embedding.

    Raises
    ------
    InputError
        On unusable values, no known gene, or too little memory for a single cell.
    """
    engine = engine or Engine()
    run = begin(model, source, genes, engine, block_size, origin)
    cached = cache if engine.store is None else None
    # For the record alone a lazy array is not computed twice.
    wanted = cached is not None or lying is not None or not source.is_dask
    key = run.content_key(context) if wanted else ""
    known = lying[1] if lying is not None and lying[0] == key else None
    if known is None and cached is not None:
        known = finished.load(cached, key)
    if known is not None:
        run.work.n_cells = run.work.n_cached = len(known)
        return _embedding(run, known, _usable(known), key)
    values, store = _place_for(run, engine.store)
    usable = np.ones(source.shape[0], dtype=bool)
    start = time.perf_counter()
    with progress(source.shape[0], model.card.name, "cell", show=engine.progress) as bar:
        for rows, part in run.grouped(context) if isinstance(model, GroupModel) else run.blocks(store):
            # What a block's store holds already is not computed, and what it computes the store writes.
            if part is None:
                usable[rows] = _usable(values[rows] if store is None else store.values[rows])
            else:
                usable[rows] = _usable(part)
                if store is None:
                    values[rows] = part
                elif isinstance(model, GroupModel):
                    store.put(rows, part)
            bar.update(int(usable[rows].size))
    work = run.work
    work.seconds, work.n_cells, work.n_empty = time.perf_counter() - start, len(usable), int((~usable).sum())
    work.token_budget = work.token_budget or run.budget.tokens
    if cached is not None:
        finished.save(cached, key, values, model=model.card.name)
    return _embedding(run, values if store is None else store.values, usable, key)


def begin(
    model: NetworkModel, source: CountSource, genes: Genes, engine: Engine, block_size: int, origin: Origin | None
) -> Run:
    """Choose where a run computes: on the workers for a dask array or a file while a client is active, else here.

    Raises
    ------
    InputError
        If the model knows no gene, or the device is not there.
    """
    alignment = model.align(genes)
    if len(alignment.ids) == 0:
        raise no_known_gene(model, genes)
    client = active_client() if source.is_dask or source.travels else None
    if client is not None and model.sequential:
        warn(
            f"{model.card.name} with these options draws from one stream over the cells in file order: "
            "it runs in this process and not on the workers"
        )
        client = None
    if client is None:
        return LocalRun(model, source, alignment, engine, block_size)
    return ClusterRun(client, origin, model, source, alignment, engine, block_size)


def _place_for(run: Run, path: Path | None) -> tuple[Any, EmbeddingStore | None]:
    """Return where the values go: memory, or a store that grows block by block."""
    shape = (run.source.shape[0], run.model.dim)
    if path is None:
        return np.full(shape, np.nan, dtype=np.float32), None
    store = EmbeddingStore.open(path, shape, run.rows_per_block, run.fingerprint())
    return store.values, store


def _usable(values: np.ndarray) -> np.ndarray:
    """Which rows hold an embedding."""
    return np.asarray(~np.isnan(values).all(axis=1))


def _embedding(run: Run, values: Any, usable: np.ndarray, key: str) -> Embedding:
    return Embedding(values, usable, run.alignment, str(run.device), run.precision, key, run.work)


def _part_of_lying(
    model: NetworkModel, cells: Cells, rows: np.ndarray, engine: Engine, origin: Origin | None
) -> Embedding | None:
    """Rows of the embedding in ``obsm``, if it is that of all these cells and a cell's row depends on no other cell."""
    # A group, a stream, fixed batches or a survey of the data set tie a cell to the others.
    tied = model.card.context == "group" or model.sequential or model.block_multiple > 1
    if cells.lying is None or tied or len(rows) == cells.X.shape[0]:
        return None
    run = begin(model, cells.source, cells.genes, engine, BLOCK, origin)
    if run.content_key(None) != cells.content or run.survey() is not None:
        return None
    values = np.asarray(cells.lying[rows])
    run.work.n_cells = run.work.n_cached = len(values)
    return _embedding(run, values, _usable(values), cells.content)


def _transformed(model: FittedModel, cells: Cells, engine: Engine) -> Embedding:
    """Project cells on what was fitted; one without any count lies nowhere."""
    source, store, values = cells.source, None, np.empty((0, 0), dtype=np.float32)
    usable = np.ones(source.shape[0], dtype=bool)
    for block, (first, X) in enumerate(source.blocks(BLOCK)):
        rows, mark = slice(first, first + X.shape[0]), b"" if engine.store is None else block_digest(X)
        if store is not None and store.holds(block, mark):
            usable[rows] = _usable(store.values[rows])
            continue
        part = model.transform(X, cells.genes).astype(np.float32, copy=False)
        part[np.asarray(X.sum(axis=1)).ravel() == 0] = np.nan
        usable[rows] = _usable(part)
        if block == 0:
            shape = (source.shape[0], part.shape[1])
            if engine.store is None:
                values = np.empty(shape, dtype=np.float32)
            else:
                store = EmbeddingStore.open(engine.store, shape, BLOCK, _fingerprint(model, cells.genes))
        if store is None:
            values[rows] = part
        else:
            store.write(block, first, part, mark)
    return Embedding(values if store is None else np.asarray(store.values), usable)


def _fingerprint(model: FittedModel, genes: Genes) -> str:
    """Everything but the cells that decides what a fitted model says of them."""
    digest = hashlib.sha256("\n".join(map(str, genes.names)).encode())
    for name, array in sorted(model.state().items()):
        digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
    parts = {"version": __version__, "model": model.card.key, "options": model.options.model_dump(mode="json")}
    return json.dumps(parts | {"state": digest.hexdigest()}, sort_keys=True, default=str)


def _warn_about(found: Embedding, model: Model) -> None:
    if found.alignment is not None and found.alignment.merged:
        some = ", ".join(found.alignment.merged[:5])
        warn(f"{len(found.alignment.merged)} genes occur in several columns, whose counts were summed: {some}")
    if not found.usable.all():
        n = int((~found.usable).sum())
        warn(
            f"{n} of {len(found.usable)} cells hold no gene that {model.card.name} knows; their embedding is NaN. "
            "Remove them with adata[~np.isnan(adata.obsm[key]).any(1)]."
        )
