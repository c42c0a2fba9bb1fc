"""The cells that a model embeds, read once from an AnnData."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from scdrugmap import _anndata
from scdrugmap._cohort import read_batch, read_context
from scdrugmap._errors import InputError
from scdrugmap._keys import KEYS
from scdrugmap.embedding.source import CountSource, source_of
from scdrugmap.genes.identifiers import Genes
from scdrugmap.models.base import FittedModel, Model
from scdrugmap.models.kit.values import check_values, whole


@dataclass(frozen=True, eq=False)
class Cells:
    """Counts and what a model may need beside them.

    Parameters
    ----------
    X
        ``(n, genes)`` counts, wherever they are.
    genes
        Identifiers of the columns.
    context
        ``(n,)`` labels of cells that see each other, for models where they do.
    batch
        ``(n,)`` labels of batches, for models that are fitted.
    batch_from
        Where ``batch`` was read.
    lying
        ``(n, dim)`` embedding that lies in ``obsm``; used only if ``content`` is the key of these very cells.
    content
        Key under which it was computed.
    """

    X: Any
    genes: Genes
    context: np.ndarray | None = None
    batch: np.ndarray | None = None
    batch_from: str = ""
    lying: np.ndarray | None = None
    content: str = ""

    @property
    def source(self) -> CountSource:
        """The counts as rows to read."""
        return source_of(self.X)

    def take(self, rows: np.ndarray) -> Self:
        """Return some cells; an embedding of all of them is not one of these."""
        if len(rows) == self.X.shape[0] and (rows == np.arange(len(rows))).all():
            return self
        source = self.source
        parts: dict[str, Any] = {
            n: None if getattr(self, n) is None else getattr(self, n)[rows] for n in ("context", "batch")
        }
        X = source.X[rows] if source.is_dask else source.take(rows)
        return replace(self, X=X, lying=None, content="", **parts)


def read_cells(
    adata: Any,
    model: Model,
    *,
    layer: str | None = None,
    context: str | None = None,
    sample_key: str = KEYS.sample,
    reuse: bool = False,
) -> Cells:
    """Read what ``model`` needs.

    Parameters
    ----------
    adata
        An AnnData; not changed.
    model
        The model that is to embed them.
    layer
        Layer of the raw counts; ``X`` if ``None``.
    context
        Column of ``obs``: which cells see each other; for a fitted model, the batch.
    sample_key
        Column with samples, which are the default of both.
    reuse
        Take along the model's embedding that lies in ``obsm``.

    Raises
    ------
    MissingKeyError
        If there is no such layer or column.
    """
    cells = Cells(_anndata.counts(adata, layer), _anndata.gene_ids(adata, layer))
    _refuse_values(cells.source, adata, model, layer)
    if isinstance(model, FittedModel):
        batch, source = read_batch(adata, context, sample_key=sample_key)
        return replace(cells, batch=batch, batch_from=source)
    if model.card.context == "group":
        cells = replace(cells, context=read_context(adata, context, sample_key))
    key = model.card.stem
    record = adata.uns.get(key)
    if reuse and isinstance(record, Mapping) and KEYS.embedding(key) in adata.obsm:
        content = str(record.get(KEYS.provenance, {}).get("content", ""))
        values = np.array(adata.obsm[KEYS.embedding(key)], dtype=np.float32) if content else None
        cells = replace(cells, lying=values, content=content)
    return cells


def _refuse_values(source: CountSource, adata: Any, model: Model, layer: str | None) -> None:
    """Look at the first cells before anything is computed, to name the place that holds what the model needs."""
    if source.is_dask:
        return
    needs = model.card.needs_counts
    try:
        check_values(source[slice(0, 200)], counts=needs, model=model.card.name)
    except InputError as error:
        if error.expected.startswith("raw counts"):
            error = InputError(error.argument, error.found, error.expected, counts_elsewhere(adata, layer))
        raise error from None


def counts_elsewhere(adata: Any, layer: str | None) -> str:
    """Say what to type where ``X`` or the layer holds no raw counts: the place that does, if there is one.

    Parameters
    ----------
    adata
        An AnnData.
    layer
        The place that was read.
    """
    for place in (None, *adata.layers, "raw"):
        absent = adata.X is None if place is None else place not in adata.layers and not _anndata.is_raw(adata, place)
        if place == layer or absent:
            continue
        values = CountSource(_anndata.counts(adata, place))[slice(0, min(200, adata.n_obs))].data
        if values.size and whole(values):
            return f"pass layer={place!r}: {'X' if place is None else place} holds whole numbers."
    return "go back to the raw counts, or pass layer=<where they are>; sd.pp.check(adata) shows what is there."
