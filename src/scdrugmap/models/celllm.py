"""CellLM: a Performer over a cell's expressed genes with binned expression (Zhao et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from scdrugmap._errors import CheckpointError
from scdrugmap.genes.identifiers import Genes
from scdrugmap.models.base import Batch, ModelOptions, NetworkModel
from scdrugmap.models.card import ModelCard
from scdrugmap.models.kit.binning import log_normalized, read_genes
from scdrugmap.models.kit.checkpoint import digests, find_file, load_json, load_strict, load_tensors, require_file
from scdrugmap.models.kit.counts import Counts
from scdrugmap.models.kit.performer import UNUSED, PerformerEncoder, PerformerSizes, renamed
from scdrugmap.models.kit.tokens import Tokens
from scdrugmap.models.kit.transformer import masked_mean
from scdrugmap.models.kit.weights import randomize

_OFFICIAL = PerformerSizes(
    tokens=8, positions=19_381, dim=512, depth=10, heads=16, head_dim=64, features=266, hidden=2048
)
#: Sequence length of the official constructor and configuration.
_MAX_LENGTH = 6000
_WEIGHTS = ("checkpoint4_fixed.pth", "ckpt.pth", "nocls_fixed.pth", "*.pth")


class CellLMOptions(ModelOptions):
    """Options of CellLM.

    Parameters
    ----------
    max_length
        Positions of a cell, CLS and pads included; ``None`` for the value of the checkpoint. Longer cells keep the
        first genes of the vocabulary. It is a part of the model, because pads are attended.
    pooling
        Mean over CLS and genes, their sum over ``max_length`` (pads count as zeros), or CLS alone.
    log_base
        Of the logarithm of normalised counts.
    target_sum
        Total of a normalised cell.
    """

    max_length: int | None = Field(None, ge=2)
    pooling: Literal["mean", "mean_padded", "cls"] = "mean"
    log_base: Literal[2, "e"] = 2
    target_sum: float = Field(1e4, gt=0)


class CellLM(NetworkModel):
    """CellLM; the embedding is the mean over CLS and gene positions of the normalised last layer.

    Tokens are CLS and the expressed genes in the order of the vocabulary: ``ids`` the genes, ``values`` the bins.
    The official code pads every cell to ``max_length`` and attends to the pads. All pads of a cell are equal in
    every layer, so here one row stands for them and counts as often as there are pads.

    Notes
    -----
    Neither the transformation of counts nor an embedding of a cell is published with the model. Counts are
    normalised as for scBERT, whose bins and data the authors share; the published benchmark averages over the
    sequence, ``recipe="scdrugmap"``. Random directions are those of the checkpoint and are never drawn anew.

    References
    ----------
    Zhao et al. 2023, arXiv 2306.04371.

    Examples
    --------
    >>> from scdrugmap.genes import Genes
    >>> CellLM.random(Genes.from_names(["TP53", "EGFR"])).dim
    16
    """

    card = ModelCard(
        name="CellLM",
        kind="network",
        architecture="Performer encoder, 10 layers, over expressed genes with binned log-expression",
        year=2023,
        citation=(
            "Zhao et al. 2023, Large-Scale Cell Representation Learning via Divide-and-Conquer Contrastive Learning, "
            "arXiv 2306.04371"
        ),
        gene_id="symbol",
        dim=512,
        vocab_size=19_379,
        max_length=6000,
        n_parameters=51_922_432,
        lora_targets=("q_proj", "k_proj", "v_proj"),
        checkpoints=("celllm",),
        weights_licence="not stated (code: MIT)",
        commercial=None,
    )
    Options = CellLMOptions
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "official": {},
        "scdrugmap": {"max_length": 8000, "pooling": "mean_padded"},
    }
    network: CellLMNetwork

    def __init__(
        self, sizes: PerformerSizes, genes: Iterable[str], *, default_length: int = _MAX_LENGTH, **options: Any
    ) -> None:
        super().__init__(**options)
        self._vocabulary = {gene: i for i, gene in enumerate(genes)}
        self.max_length: int = self.options.max_length or default_length
        #: Ids of CLS and pad among genes, then among bins.
        self.cls, self.pad = sizes.positions - 2, sizes.positions - 1
        self.cls_bin, self.pad_bin = sizes.tokens - 2, sizes.tokens - 1
        self.network = CellLMNetwork(sizes, self.max_length, self.options.pooling)

    @property
    def dim(self) -> int:
        """Width of the embedding."""
        return self.network.token.embedding_dim

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """Gene symbols to rows of the gene table."""
        return self._vocabulary

    def tokenize(self, counts: Counts) -> Tokens:
        """CLS, then the first expressed genes: ``log(1 + 1e4 count / total)``, truncated, at most the top bin."""
        base = math.e if self.options.log_base == "e" else float(self.options.log_base)
        values = log_normalized(counts.X, target_sum=self.options.target_sum, base=base)
        starts, lengths = counts.X.indptr[:-1], np.minimum(np.diff(counts.X.indptr), self.max_length - 1)
        offsets = np.concatenate([[0], np.cumsum(lengths + 1)])
        place = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        picked, target = place + np.repeat(starts, lengths), place + np.repeat(offsets[:-1] + 1, lengths)
        ids = np.full(offsets[-1], self.cls, dtype=np.int32)
        bins = np.full(offsets[-1], self.cls_bin, dtype=np.float32)
        ids[target] = counts.ids[counts.X.indices[picked]]
        bins[target] = np.minimum(np.trunc(values[picked]), self.cls_bin - 1)
        return Tokens(offsets, ids, bins, lengths > 0)

    def collate(self, tokens: Tokens) -> Batch:
        """Put the row that stands for the pads first; ``keys`` says how often each row counts as a key."""
        genes, bins = tokens.padded(self.pad), tokens.padded(self.pad_bin, of="values")
        keys = (np.arange(genes.shape[1]) < tokens.lengths[:, None]).astype(np.float32)
        pads = (self.max_length - tokens.lengths)[:, None]
        edge = ((0, 0), (1, 0))
        return {
            "genes": torch.from_numpy(np.pad(genes, edge, constant_values=self.pad).astype(np.int64)),
            "bins": torch.from_numpy(np.pad(bins, edge, constant_values=self.pad_bin).astype(np.int64)),
            "keys": torch.from_numpy(np.concatenate([pads, keys], axis=1).astype(np.float32)),
        }

    def costs(self, tokens: Tokens) -> np.ndarray:
        """Positions that each cell occupies in the network."""
        return tokens.lengths + 1

    @classmethod
    def from_checkpoint(cls, path: Path, **options: Any) -> Self:
        """Read the weights, the gene order (``gene_order.txt`` or the authors' h5ad) and ``cellLM.json``, if there.

        The configuration decides which weight file is read and the sequence length (6,000 without it).

        Raises
        ------
        CheckpointError
            If a file is missing or corrupt, or the files do not fit each other.
        """
        name = cls.card.name
        settings_file = find_file(path, ["cellLM.json", "CellLM*.json"], name, required=False)
        structure = {} if settings_file is None else _structure(settings_file)
        weights_file = _weights_file(path, structure.get("ckpt_path"))
        genes_file = require_file(path, ["gene_order.txt", "genes.txt", "zheng68k_hgnc.h5ad", "*.h5ad"], name)
        content, entry = load_tensors(weights_file), structure.get("param_key") or "model_state_dict"
        if entry not in content:
            raise CheckpointError(
                "checkpoint",
                f"{weights_file.name} with {', '.join(map(str, list(content)[:5])) or 'nothing'}",
                f"an entry {entry}",
                "use the official checkpoint4_fixed.pth.",
            )
        tensors = renamed(content[entry])
        sizes = PerformerSizes.of(tensors, weights_file.name)
        _compare(structure, sizes, weights_file.name)
        model = cls(
            sizes,
            read_genes(genes_file, sizes.positions - 2, name),
            default_length=int(structure.get("max_seq_len", _MAX_LENGTH)),
            **options,
        )
        load_strict(model.network, tensors, ignore=UNUSED, source=weights_file.name)
        model.network.eval()
        files = [weights_file, genes_file] + ([] if settings_file is None else [settings_file])
        model.digests = digests(*files)
        return model

    @classmethod
    def random(cls, genes: Genes, *, size: Literal["tiny", "official"] = "tiny", rng: int = 0, **options: Any) -> Self:
        """Build CellLM with random weights and a vocabulary of these genes."""
        names = sorted({*map(str, genes.symbols)} - {""})
        sizes = PerformerSizes(8, len(names) + 2, dim=16, depth=2, heads=2, head_dim=8, features=16, hidden=64)
        if size == "official":
            sizes = _OFFICIAL
            names = names[: sizes.positions - 2]
            names += [f"placeholder-{i}" for i in range(len(names), sizes.positions - 2)]
        model = cls(sizes, names, default_length=_MAX_LENGTH if size == "official" else 256, **options)
        randomize(model.network, rng)
        model.network.draw_projection(rng)
        model.network.eval()
        model.digests = {"random": f"{size}-{rng}"}
        return model


class CellLMNetwork(PerformerEncoder):
    """The encoder without the heads.

    Parameters
    ----------
    sizes
        Of the encoder.
    max_length, pooling
        See :class:`CellLMOptions`.
    """

    def __init__(self, sizes: PerformerSizes, max_length: int, pooling: str = "mean") -> None:
        super().__init__(sizes)
        self.max_length, self.pooling = max_length, pooling

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Embeddings of the cells, ``(n, dim)``."""
        keys, values = self.weights(batch)
        x = self.embed(batch)  # (cells, 1 + length, dim): the row of pads, CLS, genes
        for block in self.blocks[:-1]:
            x = block(x, keys, values)
        # Nothing reads the last layer but the pooling.
        rows = slice(1, 2) if self.pooling == "cls" else slice(1, None)
        x = self.norm(self.blocks[-1](x, keys, values, rows)).float()
        if self.pooling == "cls":
            return x[:, 0]
        if self.pooling == "mean":
            return masked_mean(x, values[:, 1:])
        return (x * values[:, 1:, None]).sum(1) / self.max_length

    def embed(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Sum of the embeddings of bin and gene, ``(n, 1 + length, dim)``; the row of pads is the first."""
        return self.token(batch["bins"]) + self.position(batch["genes"])

    def weights(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """How often each row counts as a key, and the weight of its value: pads have none."""
        values = (batch["keys"] > 0).to(batch["keys"].dtype)
        values[:, 0] = 0.0
        return batch["keys"], values


def _structure(settings_file: Path) -> Mapping[str, Any]:
    """The encoder's part of the official configuration."""
    config = load_json(settings_file)
    structure = config.get("network", {}).get("structure") if isinstance(config, dict) else None
    if not isinstance(structure, dict):
        raise CheckpointError(
            "checkpoint",
            f"{settings_file.name} without network.structure",
            "the official configuration of CellLM",
            "copy configs/ctc/cellLM.json of the official repository again.",
        )
    return structure


def _weights_file(path: Path, configured: str | None) -> Path:
    """The weight file that was given, else the one that the configuration names, else the official names."""
    if path.is_file() and path.suffix != ".json":
        return path
    folder = path if path.is_dir() else path.parent
    if configured and (folder / configured).is_file():
        return folder / configured
    names = [Path(configured).name] if configured else list(_WEIGHTS)
    return require_file(folder, names, "CellLM")


def _compare(structure: Mapping[str, Any], sizes: PerformerSizes, source: str) -> None:
    """Raise if the configuration and the weights tell different sizes."""
    held = {
        "num_tokens": sizes.tokens,
        "dim": sizes.dim,
        "depth": sizes.depth,
        "gene_num": sizes.positions - 2,
        "heads": sizes.heads,
        "dim_head": sizes.head_dim,
        "nb_features": sizes.features,
    }
    other = [
        f"{key} {structure[key]} but {source} {value}"
        for key, value in held.items()
        if structure.get(key) is not None and structure[key] != value
    ]
    if other:
        raise CheckpointError(
            "checkpoint",
            "; ".join(f"the configuration says {text}" for text in other),
            "a configuration and weights that belong together",
            "copy both from the same release.",
        )
