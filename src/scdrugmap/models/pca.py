"""Baseline: principal components of log-normalised variable genes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

import numpy as np
from pydantic import Field
from scipy import linalg, sparse

from scdrugmap._errors import InputError
from scdrugmap.genes.identifiers import Genes
from scdrugmap.models.base import FittedModel, ModelOptions
from scdrugmap.models.card import ModelCard
from scdrugmap.models.hvg import HVG
from scdrugmap.models.kit.expression import blocks_of

#: The covariance of so many genes takes 0.8 GB.
MOST_GENES = 10_000


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

    streams = True
    hvg_: HVG
    mean_: np.ndarray
    components_: np.ndarray

    def fit(self, X: Any, genes: Genes, *, batch: np.ndarray | None = None) -> Self:
        """Find the components on training cells, in two passes over them; ``batch`` is not used."""
        self.hvg_ = HVG(n_top_genes=self.options.n_top_genes)
        self.hvg_.asked_by = self.card.name
        self.hvg_.fit(X, genes)
        n_cells, n_genes = X.shape[0], self.hvg_.dim
        if min(n_cells, n_genes) > MOST_GENES:
            raise InputError("n_top_genes", n_genes, f"at most {MOST_GENES:,} for pca", "leave it out: 2,000 is usual.")
        blocks = (self.hvg_.sparse_transform(block, genes).toarray().astype(np.float64) for block in blocks_of(X))
        n_components = max(min(self.options.n_components, min(n_cells, n_genes) - 1), 1)
        found = (
            _of_few(np.concatenate(list(blocks)), n_components) if n_cells < n_genes else _of_many(blocks, n_components)
        )
        self.mean_, self.components_ = (part.astype(np.float32) for part in found)
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


def _of_many(blocks: Iterable[np.ndarray], n_components: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and components of more cells than genes, from the covariance: exact, and one block in memory at a time."""
    n, total, products = 0, np.zeros(0), np.zeros((0, 0))
    for block in blocks:
        if not n:
            total, products = np.zeros(block.shape[1]), np.zeros((block.shape[1],) * 2, order="F")
        products = linalg.blas.dsyrk(1.0, block.T, beta=1.0, c=products, overwrite_c=True)
        total += block.sum(axis=0)
        n += len(block)
    mean = total / n
    covariance = products / n - np.triu(np.outer(mean, mean))
    last = len(mean) - 1
    _, vectors = linalg.eigh(covariance, lower=False, subset_by_index=[last - n_components + 1, last], overwrite_a=True)
    return mean, _oriented(vectors[:, ::-1].T)


def _of_few(values: np.ndarray, n_components: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and components of fewer cells than genes, from the products of cells."""
    mean = values.mean(axis=0)
    centred = values - mean
    last = len(values) - 1
    squares, vectors = linalg.eigh(centred @ centred.T, subset_by_index=[last - n_components + 1, last])
    # A direction in which nothing varies has no length to divide by, and stays zero.
    length = np.where(squares > 1e-12 * squares.max(), np.sqrt(np.maximum(squares, 0)), np.inf)
    return mean, _oriented(((centred.T @ vectors) / length)[:, ::-1].T)


def _oriented(components: np.ndarray) -> np.ndarray:
    """Turn each component so that its largest weight is positive, as scikit-learn does."""
    largest = components[np.arange(len(components)), np.abs(components).argmax(axis=1)]
    return components * np.where(largest < 0, -1.0, 1.0)[:, None]
