"""Baseline: principal components of log-normalised variable genes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
from pydantic import Field
from scipy import sparse

from scdrugmap.genes.identifiers import Genes
from scdrugmap.models.base import FittedModel, ModelOptions
from scdrugmap.models.card import ModelCard
from scdrugmap.models.hvg import HVG


class PCAOptions(ModelOptions):
    """Options of the baseline."""

    n_components: int = Field(50, gt=0)
    n_top_genes: int = Field(2000, gt=0)


class PCA(FittedModel):
    """Principal components of the training cells' variable genes, onto which new cells are projected.

    Fewer components than asked for come out if the training cells or genes are fewer.

    References
    ----------
    Pearson 1901; the steps are those of scanpy's standard preprocessing without scaling.
    """

    card: ClassVar[ModelCard] = ModelCard(
        name="pca",
        kind="fitted",
        architecture="principal components of log-normalised highly variable genes",
        year=1901,
        citation="Pearson 1901, Philosophical Magazine 2:559",
        species=("any",),
        dim=50,
    )
    Options: ClassVar[type[ModelOptions]] = PCAOptions

    hvg_: HVG
    mean_: np.ndarray
    components_: np.ndarray

    def fit(self, X: sparse.csr_matrix, genes: Genes, *, batch: np.ndarray | None = None) -> Self:
        """Find the components on training cells; ``batch`` is not used."""
        from sklearn.decomposition import PCA as SklearnPCA

        self.hvg_ = HVG(n_top_genes=self.options.n_top_genes)
        self.hvg_.asked_by = self.card.name
        self.hvg_.fit(X, genes)
        values = self.hvg_.sparse_transform(X, genes)
        most = min(values.shape) - 1
        n_components = max(min(self.options.n_components, most), 1)
        # arpack handles sparse data without centring it explicitly; tiny data are cheaper dense.
        dense = most < 2 * self.options.n_components
        fitted = SklearnPCA(n_components, svd_solver="full" if dense else "arpack", random_state=self.options.seed).fit(
            values.toarray() if dense else values
        )
        self.mean_, self.components_ = fitted.mean_, fitted.components_
        return self

    def transform(self, X: sparse.csr_matrix, genes: Genes) -> np.ndarray:
        """Return ``(n, n_components)`` float32."""
        values = self.hvg_.sparse_transform(X, genes)
        return np.asarray(values @ self.components_.T - self.mean_ @ self.components_.T, dtype=np.float32)

    @property
    def dim(self) -> int:
        """Number of components."""
        return len(self.components_)

    def state(self) -> dict[str, np.ndarray]:
        """Return genes, mean and components."""
        return {**self.hvg_.state(), "mean": self.mean_, "components": self.components_}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray], **options: Any) -> Self:
        """Rebuild from :meth:`state`."""
        model = cls(**options)
        model.hvg_ = HVG.from_state(state, n_top_genes=model.options.n_top_genes)
        model.hvg_.asked_by = cls.card.name
        model.mean_, model.components_ = state["mean"], state["components"]
        return model
