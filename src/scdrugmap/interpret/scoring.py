"""Log-odds of *resistant* under a predictor for any counts: the one place where this room asks a predictor."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from scdrugmap import _anndata
from scdrugmap._cohort import read_context
from scdrugmap._device import Engine
from scdrugmap._errors import InputError
from scdrugmap._keys import KEYS
from scdrugmap.embedding.embed import embed_counts
from scdrugmap.embedding.source import CountSource
from scdrugmap.heads.crossfit import margins
from scdrugmap.models.kit.expression import identifiers
from scdrugmap.predictor.origin import check_coverage
from scdrugmap.predictor.representation import NetworkRepresentation, ObsmRepresentation


class Scorer:
    """Asks a predictor about counts over the genes of one data set.

    What is explained is the margin of the head before calibration, with the sign of *resistant*: calibration keeps the
    order and saturates.

    Parameters
    ----------
    predictor
        A trained predictor that embeds counts itself.
    adata
        Where the genes, and the groups of cells that see each other, are read.
    layer
        Layer of the raw counts, if it is another one than at training.
    device, batch_size
        As in :func:`scdrugmap.tl.embed`.

    Raises
    ------
    InputError
        If the predictor reads ``obsm``: counts cannot be edited behind an embedding.
    """

    def __init__(
        self,
        predictor: Any,
        adata: Any,
        *,
        layer: str | None = None,
        device: str | None = None,
        batch_size: int | None = None,
    ) -> None:
        representation = predictor.representation
        if isinstance(representation, ObsmRepresentation):
            raise InputError(
                "predictor",
                f"a predictor on obsm ({representation.label})",
                "a predictor that embeds counts itself",
                "train with model= instead of use_rep=: sd.tl.train(adata, model=...).",
            )
        self.predictor, self.representation = predictor, representation
        self.layer = layer or representation.layer
        self.counts = _anndata.counts(adata, self.layer)
        self.genes = _anndata.gene_ids(adata)
        # Small changes are compared: nothing coarser than float32, on a GPU either.
        self.engine = Engine(device=device, precision="float32", batch_size=batch_size, progress=False)
        self.context = self._context(adata)
        self._check_genes()

    @property
    def network(self) -> Any:
        """The network model, or ``None`` for a fitted baseline."""
        return self.representation.load() if isinstance(self.representation, NetworkRepresentation) else None

    def _context(self, adata: Any) -> np.ndarray | None:
        """Group of each cell, where cells see each other."""
        model = self.network
        if model is None or model.card.context != "group" or getattr(model.options, "group_size", None) == 1:
            return None
        context = read_context(adata, self.representation.context, KEYS.sample)
        return np.full(adata.n_obs, "all") if context is None else np.asarray(context).astype(str)

    def _check_genes(self) -> None:
        """Refuse genes that have nothing to do with the training, and warn where many are missing."""
        model = self.network
        found = identifiers(self.genes) if model is None else model.align(self.genes).genes
        check_coverage(self.representation.genes, found, self.representation.label)

    def features(self, X: sparse.csr_matrix, groups: np.ndarray | None = None) -> np.ndarray:
        """What the head sees of these counts; ``groups`` are the cells that see each other.

        Edited cells are seen once and never again: nothing is kept in the cache of embeddings.
        """
        model = self.network
        if model is None:
            return self.representation.model.transform(sparse.csr_matrix(X), self.genes).astype(np.float32)
        if self.context is not None and groups is None:
            groups = np.full(X.shape[0], "all")
        found = embed_counts(model, CountSource(X), self.genes, self.engine, context=groups)
        return np.asarray(found.values[:])

    def of_features(self, features: np.ndarray) -> np.ndarray:
        """Log-odds of resistant, ``(n,)``; NaN for a cell without embedding."""
        usable = ~np.isnan(features).any(axis=1)
        out = np.full(len(features), np.nan)
        if usable.any():
            out[usable] = -margins(self.predictor.head, features[usable])
        return out

    def __call__(self, X: sparse.csr_matrix, groups: np.ndarray | None = None) -> np.ndarray:
        """Log-odds of resistant for these counts."""
        if X.shape[0] == 0:
            return np.empty(0)
        return self.of_features(self.features(X, groups))
