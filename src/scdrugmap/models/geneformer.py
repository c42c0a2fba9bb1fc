"""Geneformer: a BERT over a cell's genes, ranked by expression relative to the corpus (Theodoris et al. 2023)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from scdrugmap._errors import CheckpointError, InputError
from scdrugmap.genes.identifiers import Genes
from scdrugmap.models.base import Batch, ModelOptions, NetworkModel
from scdrugmap.models.card import ModelCard
from scdrugmap.models.kit.checkpoint import digests, load_json, load_pickle, load_strict, load_tensors, require_file
from scdrugmap.models.kit.counts import Counts
from scdrugmap.models.kit.ranking import add_special_tokens, rank_rows
from scdrugmap.models.kit.tokens import Tokens
from scdrugmap.models.kit.transformer import PostNormBlock, masked_mean
from scdrugmap.models.kit.weights import randomize

#: Heads, and a buffer of old library versions.
_IGNORED = (r"cls\..*", r"classifier\..*", r"pooler\..*", r"embeddings\.position_ids")
_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
)
_OFFICIAL: dict[str, Any] = dict(zip(_SIZES, (25_426, 256, 6, 4, 512, 2048), strict=True))
_TINY: dict[str, Any] = dict(zip(_SIZES[1:], (16, 2, 4, 32, 128), strict=True))
_CONSTANT = {"layer_norm_eps": 1e-12, "hidden_dropout_prob": 0.02, "attention_probs_dropout_prob": 0.02}


class GeneformerOptions(ModelOptions):
    """Options of Geneformer.

    Parameters
    ----------
    max_length
        Longest sequence, special tokens included; ``None`` for all positions of the checkpoint.
    ties
        Order of genes with exactly equal rank value: by vocabulary id, or by column of the data.
    emb_layer
        ``0`` for the last layer, ``-1`` for the one before it.
    emb_mode
        Mean over gene tokens, the vector of ``<cls>`` (V2 only), or ``"auto"``: ``"cls"`` where there is one.
    padding
        Whether pads are masked, or every cell is padded to ``max_length`` and pads are attended and averaged.
    """

    max_length: int | None = Field(None, ge=3)
    ties: Literal["vocabulary", "column"] = "vocabulary"
    emb_layer: Literal[0, -1] = 0
    emb_mode: Literal["cell", "cls", "auto"] = "cell"
    padding: Literal["masked", "attended"] = "masked"


@dataclass(frozen=True)
class Dictionaries:
    """The official dictionaries that turn counts into ranked tokens.

    Parameters
    ----------
    tokens
        Ensembl id (or special token) to token id.
    medians
        Ensembl id to the non-zero median of normalised expression in the corpus.
    mapping
        Other ids to the Ensembl ids of ``tokens``; ``None`` for V1, which has none.
    """

    tokens: Mapping[str, int]
    medians: Mapping[str, float]
    mapping: Mapping[str, str] | None = None

    @property
    def special(self) -> bool:
        """Whether cells begin with ``<cls>`` and end with ``<eos>``, as in V2."""
        return "<cls>" in self.tokens and "<eos>" in self.tokens

    def vocabulary(self) -> dict[str, int]:
        """Gene identifier to token id."""
        genes = {g: i for g, i in self.tokens.items() if not g.startswith("<")}
        if self.mapping is None:
            return genes
        return {name: genes[target] for name, target in self.mapping.items() if target in genes}


class Geneformer(NetworkModel):
    """Geneformer V1 and V2; the embedding is the mean over gene tokens of the last layer.

    Cells are ranked by count over median alone: the library size is one factor per cell and cancels.

    Examples
    --------
    >>> from scdrugmap.genes import Genes
    >>> Geneformer.random(Genes.from_names(["ENSG00000141510", "ENSG00000146648"])).dim
    16
    """

    card = ModelCard(
        name="Geneformer",
        kind="network",
        architecture="BERT encoder, 6 layers, over genes ranked by median-scaled expression",
        year=2023,
        citation="Theodoris et al. 2023, Transfer learning enables predictions in network biology, Nature 618:616",
        gene_id="ensembl",
        dim=256,
        vocab_size=25_426,
        max_length=2048,
        n_parameters=10_196_992,
        lora_targets=("q_proj", "k_proj", "v_proj"),
        checkpoints=(
            "geneformer-v1-10m",
            "geneformer-v1-12l",
            "geneformer-v1-cardiomyopathies",
            "geneformer-v2-104m",
            "geneformer-v2-104m-clcancer",
            "geneformer-v2-316m",
        ),
        weights_licence="Apache-2.0",
        commercial=True,
    )
    Options = GeneformerOptions
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "official": {"ties": "column", "emb_layer": -1, "emb_mode": "auto"},
        "scdrugmap": {"ties": "column", "padding": "attended"},
    }
    #: Long sequences go one by one: attention with a mask, which unequal lengths need, takes a processor a fifth longer.
    token_budget: ClassVar[int] = 2048
    network: GeneformerNetwork

    def __init__(self, config: Mapping[str, Any], dictionaries: Dictionaries, **options: Any) -> None:
        super().__init__(**options)
        positions, special = config["max_position_embeddings"], dictionaries.special
        self.max_length: int = self.options.max_length or positions
        self.cls = self.options.emb_mode == "cls" or (self.options.emb_mode == "auto" and special)
        if self.max_length > positions:
            raise InputError(
                "max_length", self.max_length, f"at most {positions}, the positions of this checkpoint", "pass less."
            )
        if self.cls and not special:
            raise InputError("emb_mode", "cls", "a V2 checkpoint, whose cells begin with <cls>", "use emb_mode='cell'.")
        tokens = dictionaries.tokens
        self.pad = tokens["<pad>"]
        self.begin: int | None = tokens["<cls>"] if special else None
        self.end: int | None = tokens["<eos>"] if special else None
        self._vocabulary = dictionaries.vocabulary()
        self.medians = np.ones(config["vocab_size"])
        genes = [(i, dictionaries.medians[g]) for g, i in tokens.items() if not g.startswith("<")]
        self.medians[[i for i, _ in genes]] = [m for _, m in genes]
        self.network = GeneformerNetwork(config, config["num_hidden_layers"] + self.options.emb_layer, self.cls)

    @property
    def dim(self) -> int:
        """Width of the embedding."""
        return self.network.word.embedding_dim

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """Ensembl ids that have a token; in V2 also the ids that are mapped onto them."""
        return self._vocabulary

    @property
    def gene_order(self) -> Literal["vocabulary", "column"]:
        """Order in which equal values are taken."""
        return self.options.ties

    def tokenize(self, counts: Counts) -> Tokens:
        """Genes by count over median, the highest first; V2 puts them between ``<cls>`` and ``<eos>``."""
        scaled = counts.X.data / self.medians[counts.ids][counts.X.indices]
        room = self.max_length - (0 if self.begin is None else 2)
        picked, offsets = rank_rows(scaled, counts.X.indptr, room)
        genes = counts.ids.astype(np.int32)[counts.X.indices[picked]]
        ids, bounds = add_special_tokens(genes, offsets, self.begin, self.end)
        return Tokens(bounds, ids, None, np.diff(offsets) > 0)

    def collate(self, tokens: Tokens) -> Batch:
        """Pad; ``mask`` marks what is attended (absent where all is), ``pool`` what the mean runs over."""
        ids = tokens.padded(self.pad).astype(np.int64)
        if self.options.padding == "attended":
            ids = np.pad(ids, ((0, 0), (0, self.max_length - ids.shape[1])), constant_values=self.pad)
            return {"ids": torch.from_numpy(ids), "pool": torch.ones(ids.shape, dtype=torch.bool)}
        columns, lengths = np.arange(ids.shape[1]), tokens.lengths[:, None]
        batch = {"ids": torch.from_numpy(ids)}
        if (tokens.lengths < ids.shape[1]).any():
            batch["mask"] = torch.from_numpy(columns < lengths)
        first, last = (0, 0) if self.begin is None else (1, 1)
        batch["pool"] = torch.from_numpy((columns >= first) & (columns < lengths - last))
        return batch

    def costs(self, tokens: Tokens) -> np.ndarray:
        """Positions that each cell occupies in the network."""
        return np.full(len(tokens), self.max_length) if self.options.padding == "attended" else tokens.lengths

    @classmethod
    def from_checkpoint(cls, path: Path, **options: Any) -> Self:
        """Read ``config.json``, the weights and the dictionaries that stand beside them or in ``geneformer/``.

        Masked-language-model, sequence- and token-classification checkpoints share the encoder that is read.

        Raises
        ------
        CheckpointError
            If a file is missing or corrupt, or the files do not fit each other.
        """
        name = cls.card.name
        settings_file = require_file(path, ["config.json"], name)
        weights_file = require_file(path, ["model.safetensors", "pytorch_model.bin"], name)
        config = _checked(load_json(settings_file))
        dictionaries, files = _dictionaries(path, config["vocab_size"])
        model = cls(config, dictionaries, **options)
        unused = rf"blocks\.{len(model.network.blocks)}\..*"
        load_strict(
            model.network,
            _renamed(load_tensors(weights_file)),
            ignore=(*_IGNORED, unused) if model.options.emb_layer else _IGNORED,
            source=weights_file.name,
        )
        model.network.eval()
        model.digests = digests(settings_file, weights_file, *files)
        return model

    @classmethod
    def random(cls, genes: Genes, *, size: Literal["tiny", "official"] = "tiny", rng: int = 0, **options: Any) -> Self:
        """Build Geneformer V1 with random weights and medians and a vocabulary of these genes."""
        config: dict[str, Any] = _CONSTANT | (_OFFICIAL if size == "official" else _TINY)
        ids = sorted({*map(str, genes.ensembl)} - {""})
        ids = ids[: config["vocab_size"] - 2] if "vocab_size" in config else ids
        names = ["<pad>", "<mask>", *ids]
        names += [f"ENSG9{i:010d}" for i in range(config.setdefault("vocab_size", len(names)) - len(names))]
        draws = np.random.Generator(np.random.PCG64(rng)).normal(0.5, 1.0, len(names))
        medians = dict(zip(names[2:], np.exp(draws[2:]).tolist(), strict=True))
        model = cls(config, Dictionaries({g: i for i, g in enumerate(names)}, medians), **options)
        randomize(model.network, rng)
        model.network.eval()
        model.digests = {"random": f"{size}-{rng}"}
        return model


class GeneformerNetwork(nn.Module):
    """BERT encoder without pooler and heads.

    Parameters
    ----------
    config
        Sizes, as in the official ``config.json``.
    layers
        Layers that the embedding needs.
    cls
        Whether the first position is the embedding, instead of the mean over marked positions.
    """

    def __init__(self, config: Mapping[str, Any], layers: int, cls: bool) -> None:
        super().__init__()
        dim, heads, hidden = config["hidden_size"], config["num_attention_heads"], config["intermediate_size"]
        eps, dropout = config["layer_norm_eps"], config["hidden_dropout_prob"]
        self.word = nn.Embedding(config["vocab_size"], dim)
        self.position = nn.Embedding(config["max_position_embeddings"], dim)
        self.segment = nn.Parameter(torch.zeros(dim))
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(PostNormBlock(dim, heads, hidden, eps=eps, dropout=dropout) for _ in range(layers))
        self.cls = cls

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Embeddings of the cells, ``(n, dim)``."""
        x, mask = self.embed(batch["ids"]), batch.get("mask")  # (cells, length, dim), (cells, length)
        for block in self.blocks[:-1]:
            x = block(x, mask)
        # Nothing reads the last layer but the pooling.
        x = self.blocks[-1](x, mask, slice(0, 1) if self.cls else None)
        return x[:, 0].float() if self.cls else masked_mean(x.float(), batch["pool"])

    def embed(self, ids: Tensor) -> Tensor:
        """Normalised sum of token, position and type embeddings, ``(n, length, dim)``."""
        x = self.word(ids) + (self.position.weight[: ids.shape[1]] + self.segment)
        return self.dropout(self.norm(x))

    def states(self, batch: Mapping[str, Tensor]) -> list[Tensor]:
        """Hidden states, from the embedding on after every layer."""
        states = [self.embed(batch["ids"])]
        for block in self.blocks:
            states.append(block(states[-1], batch.get("mask")))
        return states


def _checked(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration, if it describes the architecture that this file builds."""
    wanted = {"model_type": "bert", "hidden_act": "relu"}
    missing = [k for k in _SIZES if k not in config]
    other = [k for k, v in wanted.items() if config.get(k) != v]
    if config.get("position_embedding_type", "absolute") != "absolute":
        other.append("position_embedding_type")
    if missing or other:
        shown = ", ".join([*(f"no {k}" for k in missing), *(f"{k}={config.get(k)!r}" for k in other)])
        raise CheckpointError(
            "checkpoint",
            f"config.json with {shown}",
            "a BERT with relu and absolute positions",
            "use the official config.json of Geneformer.",
        )
    return _CONSTANT | dict(config)


def _dictionaries(path: Path, vocab_size: int) -> tuple[Dictionaries, list[Path]]:
    """The dictionaries whose size fits the weights, and their files."""
    sizes = {}
    for tokens_file in _token_files(path):
        tokens = {str(k): int(v) for k, v in load_pickle(tokens_file).items()}
        sizes[tokens_file.name] = len(tokens)
        if len(tokens) == vocab_size == max(tokens.values()) + 1 and "<pad>" in tokens:
            return _with_medians(tokens, tokens_file)
    found = ", ".join(f"{name} of {size} entries" for name, size in sizes.items()) or "no token dictionary"
    raise CheckpointError(
        "checkpoint",
        f"{found} in or beside {path.name}",
        f"a token_dictionary*.pkl of {vocab_size} entries, as config.json says",
        "copy the official dictionaries (token, median and, for V2, mapping) of this version into the folder.",
    )


def _token_files(path: Path) -> Iterator[Path]:
    """Token dictionaries in the folder and where the official repository keeps them."""
    folder = path if path.is_dir() else path.parent
    seen: set[Path] = set()
    for root in (folder, folder.resolve().parent, folder.resolve().parent.parent):
        for place in (root, root / "geneformer", root / "geneformer" / "gene_dictionaries_30m"):
            if place == root and root != folder:
                continue
            for file in sorted(place.glob("token_dictionary*.pkl")):
                if file.resolve() not in seen:
                    seen.add(file.resolve())
                    yield file


def _with_medians(tokens: Mapping[str, int], tokens_file: Path) -> tuple[Dictionaries, list[Path]]:
    """Add the medians and, for V2, the mapping of the same version."""
    version = tokens_file.stem.removeprefix("token_dictionary")
    special = "<cls>" in tokens and "<eos>" in tokens
    medians_file = require_file(tokens_file.parent, [f"gene_median_dictionary{version}.pkl"], "Geneformer")
    medians = {str(k): float(v) for k, v in load_pickle(medians_file).items()}
    files, mapping = [tokens_file, medians_file], None
    if special:
        mapping_file = require_file(tokens_file.parent, [f"ensembl_mapping_dict{version}.pkl"], "Geneformer")
        mapping = {str(k): str(v) for k, v in load_pickle(mapping_file).items()}
        files.append(mapping_file)
    without = [g for g in tokens if not g.startswith("<") and not medians.get(g, 0) > 0]
    if without:
        raise CheckpointError(
            "checkpoint",
            f"{medians_file.name} without a positive median for {len(without)} genes, such as {without[0]}",
            "a median for every gene of the token dictionary",
            "use the median dictionary of the same version.",
        )
    return Dictionaries(tokens, medians, mapping), files


def _renamed(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official tensors under the network's names."""
    parts = {
        "attention.self.query": "attention.q_proj",
        "attention.self.key": "attention.k_proj",
        "attention.self.value": "attention.v_proj",
        "attention.output.dense": "attention.out_proj",
        "attention.output.LayerNorm": "norm1",
        "intermediate.dense": "linear1",
        "output.dense": "linear2",
        "output.LayerNorm": "norm2",
    }
    embeddings = {
        "embeddings.word_embeddings.weight": "word.weight",
        "embeddings.position_embeddings.weight": "position.weight",
        "embeddings.LayerNorm.weight": "norm.weight",
        "embeddings.LayerNorm.bias": "norm.bias",
    }
    out: dict[str, Tensor] = {}
    for key, tensor in official.items():
        key = key.removeprefix("bert.")
        match = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)\.(weight|bias)", key)
        if key == "embeddings.token_type_embeddings.weight":
            out["segment"] = tensor[0]
        elif match is not None and match[2] in parts:
            out[f"blocks.{match[1]}.{parts[match[2]]}.{match[3]}"] = tensor
        else:
            out[embeddings.get(key, key)] = tensor
    return out
