"""scBERT: a Performer over all genes of the vocabulary, with binned expression (Yang et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from scdrugmap._errors import CheckpointError
from scdrugmap.genes.identifiers import Genes
from scdrugmap.models.base import Batch, ModelOptions, NetworkModel, bucket
from scdrugmap.models.card import ModelCard
from scdrugmap.models.kit.binning import log_normalized, read_genes
from scdrugmap.models.kit.checkpoint import digests, load_strict, load_tensors, require_file
from scdrugmap.models.kit.counts import Counts
from scdrugmap.models.kit.favor import tiles
from scdrugmap.models.kit.performer import UNUSED, PerformerBlock, PerformerEncoder, PerformerSizes, renamed
from scdrugmap.models.kit.tokens import Tokens
from scdrugmap.models.kit.transformer import masked_mean
from scdrugmap.models.kit.weights import randomize

#: Highest bin of expression; one more token is the mask of the pre-training.
_TOP_BIN = 5
_OFFICIAL = PerformerSizes(
    tokens=7, positions=16_907, dim=200, depth=6, heads=10, head_dim=64, features=266, hidden=800
)


class ScBERTOptions(ModelOptions):
    """Options of scBERT.

    Parameters
    ----------
    max_length
        Genes that are read, in the order of the vocabulary, expressed or not; ``None`` for all of them.
        One more position of bin 0 follows them.
    pooling
        Mean over all positions, or over the expressed genes alone (not a published choice).
    """

    max_length: int | None = Field(None, ge=1)
    pooling: Literal["mean", "expressed"] = "mean"


class ScBERT(NetworkModel):
    """scBERT; the embedding is the mean over positions of the normalised last layer.

    Every gene of the vocabulary is a position, those that are not expressed have bin 0. The tokens hold the
    expressed genes alone: ``ids`` their positions, ``values`` their bins.

    Notes
    -----
    The authors define no embedding of a cell. The mean follows the published benchmark, which reads the first
    8,000 genes of the vocabulary (``recipe="scdrugmap"``); the default reads all, as the authors' own code does.
    Random directions are those of the checkpoint and are never drawn anew, not even in training.

    References
    ----------
    Yang et al. 2022, Nature Machine Intelligence 4:852.

    Examples
    --------
    >>> from scdrugmap.genes import Genes
    >>> ScBERT.random(Genes.from_names(["TP53", "EGFR"])).dim
    16
    """

    card = ModelCard(
        name="scBERT",
        kind="network",
        architecture="Performer encoder, 6 layers, over all 16,906 genes with binned log-expression",
        year=2022,
        citation=(
            "Yang et al. 2022, scBERT as a large-scale pretrained deep language model for cell type annotation of "
            "single-cell RNA-seq data, Nature Machine Intelligence 4:852"
        ),
        gene_id="symbol",
        dim=200,
        vocab_size=16_906,
        max_length=16_907,
        n_parameters=8_387_200,
        lora_targets=("q_proj", "k_proj", "v_proj"),
        checkpoints=("scbert-panglao",),
        weights_licence="GPL-3.0 (stated for source code and weights)",
        commercial=True,
    )
    Options = ScBERTOptions
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {"official": {}, "scdrugmap": {"max_length": 8000}}
    #: Several cells at a time share the work on genes that are not expressed.
    token_budget: ClassVar[int] = 140_000
    network: ScBERTNetwork

    def __init__(self, sizes: PerformerSizes, genes: Iterable[str], **options: Any) -> None:
        super().__init__(**options)
        self._vocabulary = {gene: i for i, gene in enumerate(genes)}
        self.n_genes = min(self.options.max_length or len(self._vocabulary), len(self._vocabulary))
        self.network = ScBERTNetwork(sizes, self.n_genes + 1, self.options.pooling)

    @property
    def dim(self) -> int:
        """Width of the embedding."""
        return self.network.token.embedding_dim

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """Gene symbols to positions."""
        return self._vocabulary

    def tokenize(self, counts: Counts) -> Tokens:
        """Positions and bins of the expressed genes: ``log2(1 + 1e4 count / total)``, truncated, at most 5."""
        bins = np.minimum(np.trunc(log_normalized(counts.X)), _TOP_BIN)
        positions = counts.ids[counts.X.indices]
        kept = positions < self.n_genes
        offsets = np.concatenate([[0], np.cumsum(kept)])[counts.X.indptr]
        return Tokens(offsets, positions[kept].astype(np.int32), bins[kept], np.diff(offsets) > 0)

    def collate(self, tokens: Tokens) -> Batch:
        """Pad with the last position, whose bin is 0 in every cell."""
        lengths = tokens.lengths[:, None]
        positions = tokens.padded(self.n_genes).astype(np.int64)
        return {
            "positions": torch.from_numpy(positions),
            "bins": torch.from_numpy(tokens.padded(0, of="values").astype(np.int64)),
            "expressed": torch.from_numpy(np.arange(positions.shape[1]) < lengths),
        }

    def costs(self, tokens: Tokens) -> np.ndarray:
        """Positions that each cell occupies in the network: the same for all."""
        return np.full(len(tokens), self.n_genes + 1)

    def plan(self, tokens: Tokens, budget: int, batch_size: int | None) -> list[np.ndarray]:
        """Batches of cells with about as many expressed genes, which each cell projects itself."""
        order = np.argsort(-tokens.lengths, kind="stable")
        return [order[b] for b in bucket(self.costs(tokens), budget, batch_size, tokens.usable[order])]

    @classmethod
    def from_checkpoint(cls, path: Path, **options: Any) -> Self:
        """Read the weights and the gene order, ``genes.txt`` or the authors' ``panglao_10000.h5ad``.

        Raises
        ------
        CheckpointError
            If a file is missing or corrupt, or the gene order does not fit the weights.
        """
        name = cls.card.name
        weights_file = require_file(path, ["panglao_pretrain.pth", "*.pth"], name)
        genes_file = require_file(path, ["genes.txt", "panglao_10000.h5ad", "*.h5ad"], name)
        content = load_tensors(weights_file)
        if "model_state_dict" not in content:
            raise CheckpointError(
                "checkpoint",
                f"{weights_file.name} with {', '.join(map(str, list(content)[:5])) or 'nothing'}",
                "an entry model_state_dict",
                "use the official panglao_pretrain.pth, or a model that the official code fine-tuned.",
            )
        tensors = renamed(content["model_state_dict"])
        sizes = PerformerSizes.of(tensors, weights_file.name)
        model = cls(sizes, read_genes(genes_file, sizes.positions - 1, name), **options)
        load_strict(model.network, tensors, ignore=UNUSED, source=weights_file.name)
        model.network.eval()
        model.digests = digests(weights_file, genes_file)
        return model

    @classmethod
    def random(cls, genes: Genes, *, size: Literal["tiny", "official"] = "tiny", rng: int = 0, **options: Any) -> Self:
        """Build scBERT with random weights and a vocabulary of these genes."""
        names = sorted({*map(str, genes.symbols)} - {""})
        sizes = PerformerSizes(7, len(names) + 1, dim=16, depth=2, heads=2, head_dim=8, features=16, hidden=64)
        if size == "official":
            sizes = _OFFICIAL
            names = names[: sizes.positions - 1]
            names += [f"placeholder-{i}" for i in range(len(names), sizes.positions - 1)]
        model = cls(sizes, names, **options)
        randomize(model.network, rng)
        model.network.draw_projection(rng)
        model.network.eval()
        model.digests = {"random": f"{size}-{rng}"}
        return model


class ScBERTNetwork(PerformerEncoder):
    """The encoder over the first ``length`` positions, without the heads.

    Parameters
    ----------
    sizes
        Of the encoder.
    length
        Positions of every cell: the genes that are read and the one after them.
    pooling
        See :class:`ScBERTOptions`.
    """

    def __init__(self, sizes: PerformerSizes, length: int, pooling: str = "mean") -> None:
        super().__init__(sizes)
        self.length, self.pooling = length, pooling

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Embeddings of the cells, ``(n, dim)``."""
        # Cells share most of the first layer's input, unless they express most genes.
        shared = not torch.is_grad_enabled() and len(batch["bins"]) > 1 and 4 * batch["bins"].shape[1] < self.length
        x = self.first_shared(batch) if shared else self.blocks[0](self.embed(batch))
        for block in self.blocks[1:]:
            x = block(x)
        if self.pooling == "mean":
            return self.norm(x).float().mean(1)
        rows = torch.gather(x, 1, batch["positions"][..., None].expand(-1, -1, x.shape[2]))
        return masked_mean(self.norm(rows).float(), batch["expressed"])

    def embed(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Sum of the embeddings of bin and position, ``(n, length, dim)``."""
        bins = batch["bins"].new_zeros(len(batch["bins"]), self.length).scatter_(1, batch["positions"], batch["bins"])
        return self.token(bins) + self.position.weight[: self.length]

    def first_shared(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Output of the first block; positions of bin 0 are projected once for all cells of the batch.

        A cell reads the keys that it shares with weight one, but for the genes that it expresses, which it
        projects itself.
        """
        block = cast(PerformerBlock, self.blocks[0])
        positions, expressed = batch["positions"], batch["expressed"]
        n = len(positions)
        common = (self.token.weight[0] + self.position.weight[: self.length])[None]  # (1, length, dim)
        own = self.token(batch["bins"]) + self.position(positions)  # (cells, expressed genes, dim)
        # (cells, length): one where a cell reads the shared key, zero where it expresses the gene
        rest = own.new_ones(n, self.length).scatter_(1, positions, 0.0)
        rest[:, -1] = 1.0
        mine = expressed.to(own.dtype)
        sums = block.sums(n)
        # The sums of all cells and the features of one pass through together.
        wide = list(tiles(1, self.length, block.row_bytes * (1 + n // 2), own.device))
        narrow = list(tiles(n, own.shape[1], block.row_bytes, own.device))
        for _, pieces in wide:
            for p in pieces:
                block.add_keys(sums, common[:, p], rest[:, p], rest[:, p])
        for cells, pieces in narrow:
            for p in pieces:
                block.add_keys(sums.of(cells), own[cells, p], mine[cells, p], mine[cells, p])
        total = sums.total()  # (cells, heads, features, head_dim + 1)
        y = own.new_empty(n, self.length, own.shape[2])
        for _, pieces in wide:
            for p in pieces:
                y[:, p] = block.attend(common[:, p], total)
        for cells, pieces in narrow:
            for p in pieces:
                place = positions[cells, p, None].expand(-1, -1, y.shape[2])
                y[cells].scatter_(1, place, block.attend(own[cells, p], total[cells]))
        return y
