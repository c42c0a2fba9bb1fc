"""The cells of an object, as the verdict on a query reads them: some rows of counts with the names of their genes."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from scdrugmap import _anndata
from scdrugmap._errors import InputError
from scdrugmap.embedding.source import CountSource
from scdrugmap.heads.crossfit import margins
from scdrugmap.models.kit.expression import identifiers
from scdrugmap.trust.shift import CANNOT_TELL, MAX_CELLS, ShiftReference, Verdict

#: Cells of the training data that a network has to embed once more for the reference.
FEW_CELLS = 300


def some_rows(rows: np.ndarray, seed: int, most: int = MAX_CELLS) -> np.ndarray:
    """Draw at most so many rows, ascending."""
    if len(rows) <= most:
        return np.asarray(rows)
    return np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))


def expression(adata: Any, layer: str | None, rows: np.ndarray) -> tuple[sparse.csr_matrix, np.ndarray] | None:
    """Read some cells.

    Parameters
    ----------
    adata
        An AnnData.
    layer
        Layer of the raw counts; ``X`` if ``None``.
    rows
        Rows to read, ascending.

    Returns
    -------
    Counts and the names of the genes; ``None`` for an object that holds embeddings without counts.
    """
    if adata.n_vars == 0:
        return None
    try:
        X = _anndata.counts(adata, layer)
    except InputError:
        return None
    return CountSource(X)[rows], identifiers(_anndata.gene_ids(adata, layer)).astype(str)


def learn_reference(
    adata: Any, layer: str | None, rows: np.ndarray, features: np.ndarray, head: Any, seed: int
) -> ShiftReference | None:
    """Learn what a query is compared with.

    Parameters
    ----------
    adata
        The training data.
    layer
        Layer of its raw counts.
    rows
        Rows of the training cells.
    features
        What the head sees of them.
    head
        The fitted head.
    seed
        Seed of the draw of cells.
    """
    at = some_rows(np.arange(len(rows)), seed)
    found = expression(adata, layer, rows[at])
    if found is None:
        return None
    return ShiftReference.fit(*found, margins(head, features[at]), features[at], rng=seed)


def judge_query(
    reference: ShiftReference | None, adata: Any, layer: str | None, features: np.ndarray, head: Any
) -> Verdict:
    """Compare a query with the training data.

    Parameters
    ----------
    reference
        What the predictor remembers; ``None`` for one of an earlier version, or trained without counts.
    adata, layer
        The query, and the layer of its raw counts.
    features
        What the head sees of each of its cells; NaN for one that cannot be embedded.
    head
        The fitted head.
    """
    rows = some_rows(np.flatnonzero(~np.isnan(features).any(axis=1)), 0)
    return judge_rows(reference, adata, layer, rows, features[rows], head)


def judge_rows(
    reference: ShiftReference | None, adata: Any, layer: str | None, rows: np.ndarray, features: np.ndarray, head: Any
) -> Verdict:
    """Compare some cells of a query, those of :func:`some_rows`, with the training data.

    Parameters
    ----------
    reference, adata, layer, head
        As in :func:`judge_query`.
    rows, features
        The cells, and what the head sees of them.
    """
    if reference is None:
        return Verdict(CANNOT_TELL, "the predictor holds no reference of counts of its training data", {})
    found = expression(adata, layer, rows)
    if found is None or len(rows) == 0:
        return Verdict(CANNOT_TELL, "the query holds no counts, or no cell that can be embedded", {})
    return reference.judge(*found, features, margins(head, features))
