"""Baseline: the latent space of scVI, trained on training cells only."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Self

import numpy as np
import torch
from pydantic import Field
from scipy import sparse

from scdrugmap._threads import threads_for
from scdrugmap.genes.identifiers import Genes
from scdrugmap.models.base import FittedModel, ModelOptions
from scdrugmap.models.card import ModelCard
from scdrugmap.models.kit.expression import counts_over, gene_moments, variable_genes

_WEIGHT = "weight:"


class SCVIOptions(ModelOptions):
    """Options of the baseline."""

    n_latent: int = Field(10, gt=0)
    n_layers: int = Field(1, gt=0)
    n_hidden: int = Field(128, gt=0)
    n_top_genes: int = Field(2000, gt=0)
    max_epochs: int | None = Field(None, gt=0, description="None lets scvi-tools choose by the number of cells.")
    device: str = "cpu"


class SCVI(FittedModel):
    """Posterior mean of scVI's latent variables.

    The batch of a training cell enters the decoder; the encoder sees counts alone, so that cells of an
    unseen batch are embedded without being told where they come from.

    References
    ----------
    Lopez et al. 2018, Nature Methods 15:1053; implementation: scvi-tools.
    """

    card: ClassVar[ModelCard] = ModelCard(
        name="scvi",
        kind="fitted",
        architecture="variational autoencoder of counts",
        year=2018,
        citation="Lopez et al. 2018, Nature Methods 15:1053",
        species=("any",),
        dim=10,
    )
    Options: ClassVar[type[ModelOptions]] = SCVIOptions
    uses_batch: ClassVar[bool] = True

    genes_: np.ndarray
    n_batch_: int
    weights_: dict[str, np.ndarray]

    def fit(self, X: sparse.csr_matrix, genes: Genes, *, batch: np.ndarray | None = None) -> Self:
        """Train on training cells; ``batch`` labels each one (default: one batch)."""
        moments = gene_moments(X, genes, self.card.name)
        self.genes_ = moments.genes[variable_genes(moments, self.options.n_top_genes)]
        _, codes = np.unique(np.zeros(X.shape[0]) if batch is None else np.asarray(batch), return_inverse=True)
        self.n_batch_ = int(codes.max()) + 1
        with _quiet_and_seeded(self.options.seed):
            model = self._build(counts_over(X, genes, self.genes_, self.card.name), codes)
            model.train(
                max_epochs=self.options.max_epochs,
                accelerator="cpu" if self.options.device == "cpu" else "auto",
                devices=1,
                enable_progress_bar=False,
                logger=False,
                enable_checkpointing=False,
            )
            model.module.cpu()
            self.weights_ = {k: v.detach().numpy().copy() for k, v in model.module.state_dict().items()}
        return self

    def transform(self, X: sparse.csr_matrix, genes: Genes) -> np.ndarray:
        """Return ``(n, n_latent)`` float32 posterior means."""
        counts = counts_over(X, genes, self.genes_, self.card.name)
        with _quiet_and_seeded(self.options.seed):
            model = self._rebuilt()
            cells = self._cells(counts, np.zeros(counts.shape[0], dtype=int))
            return model.get_latent_representation(cells).astype(np.float32)

    def encoder(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the differentiable map from ``log(1 + count)`` over ``genes_`` to the posterior mean."""
        with _quiet_and_seeded(self.options.seed):
            network = self._rebuilt().module.z_encoder
        return lambda logged: network.mean_encoder(network.encoder(logged))

    @property
    def dim(self) -> int:
        """Number of latent variables."""
        return self.options.n_latent

    def _rebuilt(self) -> Any:
        """The trained scvi-tools model; one empty cell per batch gives it its shape, the encoder never sees a batch."""
        shape = sparse.csr_matrix((self.n_batch_, len(self.genes_)))
        model = self._build(shape, np.arange(self.n_batch_))
        model.module.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in self.weights_.items()})
        model.module.eval()
        model.is_trained_ = True
        return model

    def _cells(self, counts: sparse.csr_matrix, codes: np.ndarray) -> Any:
        import anndata as ad
        import pandas as pd

        cells = ad.AnnData(counts.astype(np.float32), var=pd.DataFrame(index=self.genes_))
        cells.obs["batch"] = pd.Categorical.from_codes(codes, categories=[f"b{i}" for i in range(self.n_batch_)])
        return cells

    def _build(self, counts: sparse.csr_matrix, codes: np.ndarray) -> Any:
        import scvi

        cells = self._cells(counts, codes)
        scvi.model.SCVI.setup_anndata(cells, batch_key="batch")
        options = self.options
        return scvi.model.SCVI(cells, n_latent=options.n_latent, n_layers=options.n_layers, n_hidden=options.n_hidden)

    def state(self) -> dict[str, np.ndarray]:
        """Return genes, number of batches and network weights."""
        weights = {_WEIGHT + k: v for k, v in self.weights_.items()}
        return {"genes": self.genes_.astype("U"), "n_batch": np.array(self.n_batch_), **weights}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray], **options: Any) -> Self:
        """Rebuild from :meth:`state`."""
        model = cls(**options)
        model.genes_, model.n_batch_ = state["genes"], int(state["n_batch"])
        model.weights_ = {k.removeprefix(_WEIGHT): v for k, v in state.items() if k.startswith(_WEIGHT)}
        return model


@contextmanager
def _quiet_and_seeded(seed: int) -> Iterator[None]:
    """Seed the global generators that scvi-tools draws from, and put them back afterwards."""
    import scvi

    before, numpy_state = scvi.settings.seed, np.random.get_state()  # noqa: NPY002
    loggers = [logging.getLogger(n) for n in ("scvi", "lightning.pytorch", "lightning.fabric", "pytorch_lightning")]
    levels = [logger.level for logger in loggers]
    # Batches of 128 cells through a small network.
    with torch.random.fork_rng(), warnings.catch_warnings(), threads_for(0):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            scvi.settings.seed = seed
            yield
        finally:
            scvi.settings._seed = before
            np.random.set_state(numpy_state)  # noqa: NPY002
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
