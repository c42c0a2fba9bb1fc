"""scFoundation: a transformer over all expressed genes of a cell, with continuous values (Hao et al. 2024)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from scdrugmap._errors import CheckpointError, InputError
from scdrugmap.genes.identifiers import Genes
from scdrugmap.models.base import Batch, ModelOptions, NetworkModel
from scdrugmap.models.card import ModelCard
from scdrugmap.models.kit.checkpoint import digests, find_file, load_strict, load_tensors, require_file, split_qkv
from scdrugmap.models.kit.counts import Counts
from scdrugmap.models.kit.tokens import Tokens
from scdrugmap.models.kit.transformer import PostNormBlock
from scdrugmap.models.kit.weights import randomize

_WEIGHTS = "models.ckpt"
_GENES = "OS_scRNA_gene_index.*.tsv"
#: Official tensor names to those of the network, by regular expression.
_NAMES = {
    r"token_emb\.mlp\.": "values.expand.",
    r"token_emb\.mlp2\.": "values.mix.",
    r"token_emb\.emb\.": "values.bins.",
    r"pos_emb\.": "genes.",
    r"encoder\.transformer_encoder\.(\d+)\.self_attn\.": r"blocks.\1.attention.",
    r"encoder\.transformer_encoder\.(\d+)\.": r"blocks.\1.",
    r"encoder\.norm\.": "final_norm.",
}
#: Values of masked and padded positions, and the decoder with its head.
_IGNORED = (
    r"token_emb\.emb_(mask|pad)\.weight",
    r"decoder_embed\..*",
    r"decoder\..*",
    r"norm\..*",
    r"to_final\..*",
)
_OFFICIAL = {"n_genes": 19_264, "dim": 768, "layers": 12, "heads": 12, "bins": 100, "alpha": 1.0}
_TINY = {"dim": 16, "layers": 2, "heads": 2, "bins": 10, "alpha": 1.0}


class ScFoundationOptions(ModelOptions):
    """Options of scFoundation; the defaults are those of the official script for cell embeddings.

    Parameters
    ----------
    weights
        Which model of the file: ``"cell"``, or ``"rde"``, trained for read-depth enhancement.
    pool
        ``"all"``: output at the source depth, output at the target depth, maximum and mean over the genes (four
        times the width); ``"max"``: maximum over all positions.
    tgthighres
        Target depth token: ``"t4"`` is 4, ``"f2"`` the logarithm of twice the cell's total, ``"a5"`` the
        logarithm of the total plus 5 (logarithms to base 10).
    values
        What the data holds: raw counts, or values that are already ``ln(1 + counts per 10,000)``.
    source_depth
        The source depth token is the logarithm of the total count, or of the sum of the normalised values; the
        latter is what the official script computes for data that is already normalised.
    max_length
        Keep only so many leading positions of a cell: genes in vocabulary order, then target and source depth.
    """

    weights: Literal["cell", "rde"] = "cell"
    pool: Literal["all", "max"] = "all"
    tgthighres: str = Field("t4", pattern=r"^[tfa]\d+(\.\d+)?$")
    values: Literal["counts", "lognorm"] = "counts"
    source_depth: Literal["counts", "values"] = "counts"
    max_length: int | None = Field(None, ge=3)


class ScFoundation(NetworkModel):
    """scFoundation; the embedding joins the two depth tokens with the maximum and the mean over the genes.

    Examples
    --------
    >>> from scdrugmap.genes import Genes
    >>> ScFoundation.random(Genes.from_names(["TP53", "EGFR"])).dim
    64
    """

    card = ModelCard(
        name="scFoundation",
        kind="network",
        architecture="transformer encoder, 12 layers, over all expressed genes and two depth tokens (xTrimoGene)",
        year=2024,
        citation="Hao et al. 2024, Large-scale foundation model on single-cell transcriptomics, "
        "Nature Methods 21, 1481-1491",
        aliases=("xTrimoGene", "xTrimoscFoundation"),
        gene_id="symbol",
        dim=3072,
        vocab_size=19_264,
        n_parameters=99_940_156,
        lora_targets=("q_proj", "k_proj", "v_proj", "out_proj"),
        checkpoints=("scfoundation",),
        weights_licence="The scFoundation License: non-commercial research use only, no redistribution",
        commercial=False,
    )
    Options = ScFoundationOptions
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "official": {},
        "scdrugmap": {},
        "scdrugmap-lora": {"max_length": 100},
    }
    network: ScFoundationNetwork
    #: Long sequences go one by one: attention with a mask, which unequal lengths need, takes a processor a tenth longer.
    token_budget: ClassVar[int] = 2048

    def __init__(self, config: Mapping[str, Any], vocabulary: Mapping[str, int], **options: Any) -> None:
        super().__init__(**options)
        if self.options.values == "lognorm":
            if self.options.source_depth == "counts":
                raise InputError(
                    "source_depth",
                    "counts, with values='lognorm'",
                    "'values', since normalised data no longer tells the total count",
                    "pass source_depth='values', or raw counts.",
                )
            vars(self)["card"] = dataclasses.replace(type(self).card, needs_counts=False)
        self._vocabulary = vocabulary
        self.network = ScFoundationNetwork(**config, pool=self.options.pool)

    @property
    def dim(self) -> int:
        """Width of the embedding."""
        return self.network.final_norm.normalized_shape[0] * (4 if self.options.pool == "all" else 1)

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """Gene symbol to id; target depth, source depth and padding follow the last gene."""
        return self._vocabulary

    def tokenize(self, counts: Counts) -> Tokens:
        """Expressed genes in the order of the vocabulary, then target and source depth.

        A cell whose source depth is not positive (a total of at most one count) has no embedding: the network was
        never shown one.

        Raises
        ------
        InputError
            If a target depth is not positive.
        """
        X, n = counts.X, counts.X.shape[0]
        total = np.asarray(X.sum(axis=1)).ravel()
        values = X.data
        if self.options.values == "counts":
            values = np.log1p(1e4 * (values / total[counts.row_of]))
        if self.options.source_depth == "values":
            total = np.bincount(counts.row_of, weights=values, minlength=n)
        usable = total > 1
        source = np.log10(np.where(usable, total, 1))
        target = self._target(source)
        if (low := usable & (target <= 0)).any():
            raise InputError(
                "tgthighres",
                f"{self.options.tgthighres!r} with {int(low.sum())} cells of at most {total[low].max():.0f} counts",
                "a target depth above zero",
                "pass a larger factor, 't4' or 'a<x>'.",
            )
        offsets = X.indptr.astype(np.int64) + 2 * np.arange(n + 1)
        own = np.arange(X.nnz) + 2 * counts.row_of
        ids, filled = np.empty(offsets[-1], np.int32), np.empty(offsets[-1], np.float32)
        ids[own], filled[own] = counts.ids[X.indices], values
        ids[offsets[1:] - 2], filled[offsets[1:] - 2] = len(self._vocabulary), target
        ids[offsets[1:] - 1], filled[offsets[1:] - 1] = len(self._vocabulary) + 1, source
        tokens = Tokens(offsets, ids, filled, usable)
        return tokens if self.options.max_length is None else _leading(tokens, self.options.max_length)

    def _target(self, source: np.ndarray) -> np.ndarray:
        """Target depth of each cell from its source depth."""
        mode, x = self.options.tgthighres[0], float(self.options.tgthighres[1:])
        if mode == "t":
            return np.full(len(source), x)
        with np.errstate(divide="ignore"):
            return source + (np.log10(x) if mode == "f" else x)

    def collate(self, tokens: Tokens) -> Batch:
        """Pad on the right; a mask only where lengths differ."""
        lengths = tokens.lengths
        batch = {
            "ids": torch.from_numpy(tokens.padded(len(self._vocabulary) + 2)),
            "values": torch.from_numpy(tokens.padded(of="values")),
            "lengths": torch.from_numpy(lengths),
        }
        if (lengths != lengths[:1]).any():
            batch["mask"] = torch.arange(batch["ids"].shape[1]) < batch["lengths"].unsqueeze(1)
        return batch

    @classmethod
    def from_checkpoint(cls, path: Path, **options: Any) -> Self:
        """Read ``models.ckpt`` and ``OS_scRNA_gene_index.19264.tsv``, which may lie one folder above it.

        Parameters
        ----------
        path
            Folder that holds the files, or ``models.ckpt`` itself.
        **options
            ``recipe`` and the fields of :class:`ScFoundationOptions`.

        Raises
        ------
        CheckpointError
            If a file is missing, corrupt, or disagrees with the other.
        """
        path = Path(path)
        chosen: Any = cls._validated({k: v for k, v in options.items() if k != "recipe"})
        name = chosen.weights
        weights_file = require_file(path, [_WEIGHTS], cls.card.name)
        above = weights_file.parent.parent
        genes_file = (
            find_file(weights_file, [_GENES], cls.card.name, required=False)
            or find_file(above, [_GENES], cls.card.name, required=False)
            or require_file(path, [_GENES], cls.card.name)
        )
        models = load_tensors(weights_file)
        entry = models.get(name) if isinstance(models, Mapping) else None
        if not isinstance(entry, Mapping) or not {"config", "state_dict"} <= entry.keys():
            raise CheckpointError(
                "checkpoint",
                f"{weights_file.name} without config and state_dict under {name!r}",
                "one model each under 'cell', 'rde' and 'gene'",
                "use the official, unmodified file.",
            )
        config = _config(entry["config"], weights_file.name)
        vocabulary = _gene_list(genes_file)
        if len(vocabulary) != config["n_genes"]:
            raise CheckpointError(
                "checkpoint",
                f"{len(vocabulary)} genes in {genes_file.name}, {config['n_genes']} in {weights_file.name}",
                "one vector per gene of the list",
                "use the gene list that came with these weights.",
            )
        model = cls(config, vocabulary, **options)
        load_strict(model.network, _renamed(entry["state_dict"]), ignore=_IGNORED, source=f"{weights_file.name}:{name}")
        model.digests = digests(weights_file, genes_file)
        return model.prepared()

    @classmethod
    def random(cls, genes: Genes, *, size: Literal["tiny", "official"] = "tiny", rng: int = 0, **options: Any) -> Self:
        """Build the architecture with random weights.

        Examples
        --------
        >>> from scdrugmap.genes import Genes
        >>> ScFoundation.random(Genes.from_names(["TP53"]), pool="max").dim
        16
        """
        names = sorted({str(g) for g in genes.symbols} - {""})
        config: dict[str, Any] = dict(_TINY if size == "tiny" else _OFFICIAL)
        n_genes = config.setdefault("n_genes", len(names))
        names = [*names, *(f"unused{i:05d}" for i in range(len(names), n_genes))][:n_genes]
        model = cls(config, {g: i for i, g in enumerate(names)}, **options)
        randomize(model.network, rng)
        model.digests = {f"random-{size}-{rng}": str(len(names))}
        return model.prepared()


class ScFoundationNetwork(nn.Module):
    """Value and gene embeddings, the encoder, and the pooling.

    Parameters
    ----------
    n_genes
        Genes of the vocabulary; the table holds three rows more, for target depth, source depth and padding.
    dim, layers, heads
        Width, number of layers and of heads.
    bins, alpha
        Number of value bins and weight of the direct path to them.
    pool
        ``"all"`` or ``"max"``.
    dropout
        Rate in training.
    """

    def __init__(
        self,
        *,
        n_genes: int,
        dim: int,
        layers: int,
        heads: int,
        bins: int,
        alpha: float,
        pool: str = "all",
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.values = ValueEmbedding(bins, dim, alpha)
        self.genes = nn.Embedding(n_genes + 3, dim)
        self.blocks = nn.ModuleList(PostNormBlock(dim, heads, 4 * dim, dropout=dropout) for _ in range(layers))
        self.final_norm = nn.LayerNorm(dim)
        self.pool = pool

    def forward(self, batch: Batch) -> Tensor:
        """Embed cells, ``(n, dim)`` or ``(n, 4 dim)``."""
        x = self.embed(batch)
        for block in self.blocks:
            x = block(x, batch.get("mask"))
        return self.summarize(self.final_norm(x), batch["lengths"])

    def embed(self, batch: Batch) -> Tensor:
        """Return what enters the first layer, ``(n, length, dim)``."""
        return self.values(batch["values"]) + self.genes(batch["ids"])

    def summarize(self, y: Tensor, lengths: Tensor) -> Tensor:
        """Pool the encoder's output over the first ``lengths`` positions, in float32."""
        y = y.float()
        column, end = torch.arange(y.shape[1], device=y.device), lengths.unsqueeze(1)
        if self.pool == "max":
            return y.masked_fill((column >= end).unsqueeze(-1), -torch.inf).amax(1)
        cell = torch.arange(len(y), device=y.device)
        depth = (column >= end - 2).unsqueeze(-1)  # (cells, length, 1)
        highest = y.masked_fill(depth, -torch.inf).amax(1)  # (cells, dim)
        mean = y.masked_fill(depth, 0).sum(1) / (end - 2)
        return torch.cat([y[cell, lengths - 1], y[cell, lengths - 2], highest, mean], dim=1)


class ValueEmbedding(nn.Module):
    """Soft assignment of a value to learnt bins, and the mixture of their vectors."""

    def __init__(self, bins: int, dim: int, alpha: float) -> None:
        super().__init__()
        self.expand = nn.Linear(1, bins)
        self.mix = nn.Linear(bins, bins)
        self.bins = nn.Embedding(bins, dim)
        self.alpha = alpha

    def forward(self, values: Tensor) -> Tensor:
        """Embed values of any shape; in float32, since half precision would round the values themselves."""
        with torch.autocast(values.device.type, enabled=False):
            h = F.leaky_relu(self.expand(values.unsqueeze(-1)), 0.1)  # (cells, length, bins)
            return torch.softmax(self.alpha * h + self.mix(h), dim=-1) @ self.bins.weight


def _leading(tokens: Tokens, length: int) -> Tokens:
    """The first positions of each cell."""
    lengths = np.minimum(tokens.lengths, length)
    kept = tokens.positions()[1] < length
    values = None if tokens.values is None else tokens.values[kept]
    return Tokens(np.concatenate([[0], np.cumsum(lengths)]), tokens.ids[kept], values, tokens.usable)


def _config(config: Any, name: str) -> dict[str, Any]:
    """Sizes of the network from the configuration that the file holds."""
    try:
        merged = {**config["model_config"][config["model"]], **config.get("dataset_config", {}).get("rnaseq", {})}
        encoder = merged["encoder"]
        if encoder.get("module_type", "transformer") != "transformer":
            raise KeyError(f"an encoder of type {encoder['module_type']!r}")
        return {
            "n_genes": int(merged["seq_len"]) - 2,
            "dim": int(encoder["hidden_dim"]),
            "layers": int(encoder["depth"]),
            "heads": int(encoder["heads"]),
            "bins": int(merged["bin_num"]),
            "alpha": float(merged["bin_alpha"]),
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            "checkpoint",
            f"{name}: configuration with {error}",
            "the official configuration of scFoundation's models",
            "use the official, unmodified file.",
        ) from error


def _gene_list(path: Path) -> dict[str, int]:
    """Gene symbol to id, in the order of the file."""
    try:
        table = pd.read_csv(path, sep="\t", keep_default_na=False, dtype={"gene_name": str})
        names, index = table["gene_name"].tolist(), table["index"].to_numpy()
        if len(set(names)) != len(names) or not np.array_equal(index, np.arange(len(names))):
            raise ValueError("repeated genes or an index that does not count from 0")
    except (ValueError, KeyError) as error:
        raise CheckpointError(
            "checkpoint",
            f"{path.name}: {error}",
            "columns gene_name and index, one row per gene",
            "use the official gene list.",
        ) from error
    return {g: i for i, g in enumerate(names)}


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official tensors under the network's names, queries, keys and values apart."""
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        name = re.sub(r"^.*?model\.", "", name)
        for pattern, replacement in _NAMES.items():
            name = re.sub(f"^{pattern}", replacement, name)
        out[name] = tensor
    for fused in [n for n in out if re.search(r"attention\.in_proj_(weight|bias)$", n)]:
        stem, _, kind = fused.rpartition("in_proj_")
        split_qkv(out, fused, (f"{stem}q_proj.{kind}", f"{stem}k_proj.{kind}", f"{stem}v_proj.{kind}"))
    return out
