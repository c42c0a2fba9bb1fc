"""Log-odds of *resistant* under a predictor for any counts: the one place where this room asks a predictor."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from scdrugmap import _anndata
from scdrugmap._errors import InputError, ScDrugMapWarning
from scdrugmap._keys import KEYS
from scdrugmap.heads.crossfit import margins
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
        self.var = adata.var.copy()
        self.options: dict[str, Any] = {"device": device, "batch_size": batch_size, "progress": False}
        self.context = self._context(adata)
        self._warned = False

    @property
    def network(self) -> Any:
        """The network model, or ``None`` for a fitted baseline."""
        return self.representation.load() if isinstance(self.representation, NetworkRepresentation) else None

    def _context(self, adata: Any) -> np.ndarray | None:
        """Group of each cell, where cells see each other."""
        model = self.network
        if model is None or model.card.context != "group" or getattr(model.options, "group_size", None) == 1:
            return None
        column = self.representation.groups or (KEYS.sample if KEYS.sample in adata.obs else None)
        if column is None:
            return np.full(adata.n_obs, "all")
        return _anndata.obs_column(adata, column, "groups").astype(str).to_numpy()

    def features(self, X: sparse.csr_matrix, groups: np.ndarray | None = None) -> np.ndarray:
        """What the head sees of these counts; ``groups`` are the cells that see each other."""
        from anndata import AnnData

        obs = pd.DataFrame(index=np.arange(X.shape[0]).astype(str))
        column = getattr(self.representation, "groups", None) or KEYS.sample
        obs[column] = "all" if groups is None else np.asarray(groups).astype(str)
        cells = AnnData(X, obs=obs, var=self.var)
        if self.layer is not None:
            cells.layers[self.layer] = X
        with warnings.catch_warnings():
            if self._warned:
                warnings.simplefilter("ignore", ScDrugMapWarning)
            out = self.predictor.features(cells, layer=self.layer, **self.options)
        self._warned = True
        return out

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
