"""Baseline: log-normalised expression of the most variable genes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
from pydantic import Field
from scipy import sparse

from scdrugmap.genes.identifiers import Genes
from scdrugmap.models.base import FittedModel, ModelOptions
from scdrugmap.models.card import ModelCard
from scdrugmap.models.kit.expression import counts_over, gene_moments, log_normalize, variable_genes


class HVGOptions(ModelOptions):
    """Options of the baseline."""

    n_top_genes: int = Field(2000, gt=0)


class HVG(FittedModel):
    """Expression of the genes that vary most among the training cells.

    Counts are brought to 10,000 per cell over the genes of the training cells and logged; new cells
    are treated alike, with the genes and the order that were fitted.

    References
    ----------
    Satija et al. 2015, Nature Biotechnology 33:495 (normalised dispersion).
    """

    card: ClassVar[ModelCard] = ModelCard(
        name="hvg",
        kind="fitted",
        architecture="log-normalised expression of highly variable genes",
        year=2015,
        citation="Satija et al. 2015, Nature Biotechnology 33:495",
        aliases=("highly variable genes",),
        species=("any",),
    )
    Options: ClassVar[type[ModelOptions]] = HVGOptions

    streams = True
    #: Who asks, for messages: another baseline may be built on this one.
    asked_by: str = "hvg"
    genes_: np.ndarray
    columns_: np.ndarray

    def fit(self, X: Any, genes: Genes, *, batch: np.ndarray | None = None) -> Self:
        """Choose the genes on training cells, in one pass over them; ``batch`` is not used."""
        moments = gene_moments(X, genes, self.asked_by)
        self.genes_ = moments.genes
        self.columns_ = variable_genes(moments, self.options.n_top_genes)
        return self

    def transform(self, X: sparse.csr_matrix, genes: Genes) -> np.ndarray:
        """Return ``(n, n_top_genes)`` float32."""
        return self.sparse_transform(X, genes).toarray()

    def sparse_transform(self, X: sparse.csr_matrix, genes: Genes) -> sparse.csr_matrix:
        """Like :meth:`transform`, as CSR float32."""
        logged = log_normalize(counts_over(X, genes, self.genes_, self.asked_by))
        return logged[:, self.columns_].astype(np.float32)

    @property
    def dim(self) -> int:
        """Number of genes."""
        return len(self.columns_)

    def state(self) -> dict[str, np.ndarray]:
        """Return the training genes and the chosen columns."""
        return {"genes": self.genes_.astype("U"), "columns": self.columns_}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray], **options: Any) -> Self:
        """Rebuild from :meth:`state`."""
        model = cls(**options)
        model.genes_, model.columns_ = state["genes"], state["columns"]
        return model
