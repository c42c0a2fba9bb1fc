"""Baseline: activity of gene programmes, which other studies and tissues share where single genes do not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
from pydantic import Field
from scipy import sparse

from scdrugmap._errors import InputError
from scdrugmap.genes.identifiers import Genes
from scdrugmap.models.base import FittedModel, ModelOptions
from scdrugmap.models.card import ModelCard
from scdrugmap.models.kit.expression import counts_over, gene_moments, log_normalize
from scdrugmap.models.kit.programmes import PROGRAMMES


class PathwayOptions(ModelOptions):
    """Options of the baseline."""

    min_genes: int = Field(3, gt=0, description="Programmes with fewer expressed genes are left out.")


class Pathways(FittedModel):
    """Mean log-normalised expression of the genes of each programme, each gene in units of its own spread.

    The programmes stand in ``scdrugmap.models.kit.programmes``. Use it with ``adapt="study"``, which brings the scores of
    every study to one scale; ``adapt="pathways"`` is short for both.
    """

    card: ClassVar[ModelCard] = ModelCard(
        name="pathways",
        kind="fitted",
        architecture="mean expression of gene programmes",
        year=2026,
        citation="this package",
        aliases=("programmes",),
        species=("human",),
    )
    Options: ClassVar[type[ModelOptions]] = PathwayOptions

    genes_: np.ndarray
    weights_: sparse.csr_matrix
    names_: np.ndarray

    def fit(self, X: Any, genes: Genes, *, batch: np.ndarray | None = None) -> Self:
        """Measure the spread of each gene on training cells, in one pass over them; ``batch`` is not used."""
        moments = gene_moments(X, genes, self.card.name, logged=True)
        self.genes_, spread = moments.genes, np.sqrt(moments.variance)
        place = {gene: i for i, gene in enumerate(self.genes_.tolist())}
        rows: list[int] = []
        columns: list[int] = []
        values: list[float] = []
        names: list[str] = []
        for name, members in PROGRAMMES.items():
            held = [place[g] for g in members if g in place and spread[place[g]] > 0]
            if len(held) < self.options.min_genes:
                continue
            rows += held
            columns += [len(names)] * len(held)
            values += [1 / (spread[g] * len(held)) for g in held]
            names.append(name)
        if not names:
            raise InputError(
                "model", "pathways", f"data with {self.options.min_genes} or more genes of a programme",
                "check that var_names are human gene symbols (sd.pp.harmonize_genes), or use model='pca'.",
            )  # fmt: skip
        self.weights_ = sparse.csr_matrix((values, (rows, columns)), (len(self.genes_), len(names)))
        self.names_ = np.array(names)
        return self

    def transform(self, X: sparse.csr_matrix, genes: Genes) -> np.ndarray:
        """Return ``(n, programmes)`` float32."""
        logged = log_normalize(counts_over(X, genes, self.genes_, self.card.name))
        return np.asarray((logged @ self.weights_).todense(), dtype=np.float32)

    @property
    def dim(self) -> int:
        """Number of programmes."""
        return len(self.names_)

    def state(self) -> dict[str, np.ndarray]:
        """Return the training genes, the programmes and the weight of each gene."""
        w = self.weights_.tocoo()
        return {
            "genes": self.genes_.astype("U"), "names": self.names_.astype("U"), "rows": w.row, "columns": w.col,
            "values": w.data,
        }  # fmt: skip

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray], **options: Any) -> Self:
        """Rebuild from :meth:`state`."""
        model = cls(**options)
        model.genes_, model.names_ = state["genes"], state["names"]
        shape = (len(model.genes_), len(model.names_))
        model.weights_ = sparse.csr_matrix((state["values"], (state["rows"], state["columns"])), shape)
        return model
