"""tGPT: a GPT-2 over the names of a cell's most expressed genes (Shen et al. 2022)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from scdrugmap._errors import CheckpointError, InputError
from scdrugmap.genes.identifiers import Genes
from scdrugmap.models.base import Batch, ModelOptions, NetworkModel
from scdrugmap.models.card import ModelCard
from scdrugmap.models.kit.checkpoint import (
    check_words,
    digests,
    load_json,
    load_strict,
    load_tensors,
    require_file,
    split_qkv,
)
from scdrugmap.models.kit.counts import Alignment, Counts
from scdrugmap.models.kit.ranking import add_special_tokens, rank_rows
from scdrugmap.models.kit.tokens import Tokens
from scdrugmap.models.kit.transformer import KeysValues, SelfAttention, masked_mean
from scdrugmap.models.kit.weights import randomize

#: Genes that the pre-training sequences evidently left out, although some have a token.
_NOT_PRETRAINED = re.compile(r"RP[LS]\d+(?:AL?|L\d?|X|Y\d)?(?:P\d+)?|RPLP[0-2]|RPSA|MALAT1|NEAT1")
#: Buffers that old versions of the library stored, and the head, tied to the token embedding.
_IGNORED = (r"h\.\d+\.attn\.bias", r"h\.\d+\.attn\.masked_bias", r"lm_head\.weight")
_OFFICIAL = {"vocab_size": 21_150, "n_positions": 1024, "n_embd": 1024, "n_layer": 8, "n_head": 16}
_TINY = {"n_positions": 128, "n_embd": 16, "n_layer": 2, "n_head": 4}


class TGPTOptions(ModelOptions):
    """Options of tGPT.

    Parameters
    ----------
    max_length
        Longest sequence with its begin and end token: 64 keeps the 62 highest genes, as in pre-training.
    ties
        Order of equally expressed genes, which fill most of a sequence: by vocabulary id, or by column of the data.
    token_type
        Whether the vector of the pad token is added at every position, as it was in pre-training.
    pooling
        Mean over the genes, or over all ``max_length`` positions with begin, end and pads.
    unknown
        Whether genes without a token are left out before the ranking or enter as the unknown token.
    exclude_ribosomal
        Whether ribosomal protein genes, MALAT1 and NEAT1 are left out, as they were in pre-training.
    """

    max_length: int = Field(64, ge=3)
    ties: Literal["vocabulary", "column"] = "vocabulary"
    token_type: bool = True
    pooling: Literal["genes", "all"] = "genes"
    unknown: Literal["drop", "keep"] = "drop"
    exclude_ribosomal: bool = False


class TGPT(NetworkModel):
    """tGPT; the embedding is the mean over gene positions of the last layer.

    Examples
    --------
    >>> from scdrugmap.genes import Genes
    >>> TGPT.random(Genes.from_names(["TP53", "EGFR"])).dim
    16
    """

    card = ModelCard(
        name="tGPT",
        kind="network",
        architecture="GPT-2 decoder, 8 layers, over the 62 most expressed genes",
        year=2022,
        citation="Shen et al. 2023, Generative pretraining from large-scale transcriptomes, iScience; bioRxiv 2022.01.31.478596",
        aliases=("transcriptome-gpt",),
        gene_id="symbol",
        needs_counts=False,
        dim=1024,
        vocab_size=21_150,
        max_length=64,
        n_parameters=123_478_016,
        lora_targets=("q_proj", "k_proj", "v_proj"),
        checkpoints=("tgpt-64", "tgpt-128"),
        weights_licence="not stated (code: GPL-3.0)",
        commercial=None,
    )
    Options = TGPTOptions
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "official": {"ties": "column"},
        "scdrugmap": {"ties": "column", "token_type": False, "pooling": "all"},
    }
    network: TGPTNetwork

    def __init__(self, config: Mapping[str, Any], words: Mapping[str, int], **options: Any) -> None:
        super().__init__(**options)
        if self.options.max_length > config["n_positions"]:
            raise InputError(
                "max_length",
                self.options.max_length,
                f"at most {config['n_positions']}, the positions of this checkpoint",
                "pass a smaller max_length.",
            )
        self.pad, self.begin, self.end, self.unknown = (words[w] for w in ("<pad>", "</b>", "</s>", "<unk>"))
        self._vocabulary = {w: i for w, i in words.items() if i not in (self.pad, self.begin, self.end, self.unknown)}
        self._n_words = len(words)
        self.network = TGPTNetwork(
            vocab_size=config["vocab_size"],
            positions=config["n_positions"],
            dim=config["n_embd"],
            layers=config["n_layer"],
            heads=config["n_head"],
            hidden=config.get("n_inner") or 4 * config["n_embd"],
            eps=config.get("layer_norm_epsilon", 1e-5),
            type_id=self.pad if self.options.token_type else None,
        )

    @property
    def dim(self) -> int:
        """Width of the embedding."""
        return self.network.wte.embedding_dim

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """Words of the tokenizer, without its special tokens."""
        return self._vocabulary

    @property
    def gene_order(self) -> Literal["vocabulary", "column"]:
        """Order in which equal values are taken."""
        return self.options.ties

    def gene_names(self, genes: Genes) -> np.ndarray:
        """Return symbols as the tokenizer writes them, with ``_`` for ``-`` and ``.``."""
        names = np.char.replace(super().gene_names(genes).astype(str), "-", "_")
        return np.char.replace(names, ".", "_")

    def align(self, genes: Genes) -> Alignment:
        """Match symbols to words; unknown symbols get ids above the vocabulary where they are kept."""
        names, words = self.gene_names(genes), dict(self._vocabulary)
        if self.options.unknown == "keep":
            words |= {n: self._n_words + i for i, n in enumerate(sorted({*map(str, names)} - words.keys() - {""}))}
        if self.options.exclude_ribosomal:
            words = {n: i for n, i in words.items() if not _NOT_PRETRAINED.fullmatch(n)}
        return Alignment.match(names, words, order=self.gene_order)

    def tokenize(self, counts: Counts) -> Tokens:
        """Begin token, the highest genes in descending order, end token."""
        picked, offsets = rank_rows(counts.X.data, counts.X.indptr, self.n_ranked)
        return self.sequences(counts.X.indices[picked], offsets, counts)

    @property
    def n_ranked(self) -> int:
        """How many of the highest genes of a cell enter; of their counts only the order does."""
        return self.options.max_length - 2

    def sequences(self, columns: np.ndarray, offsets: np.ndarray, counts: Counts) -> Tokens:
        """Tokens of ragged rows of genes, the highest first, given by their column in ``counts``."""
        words = np.where(counts.ids < self._n_words, counts.ids, self.unknown).astype(np.int32)
        ids, bounds = add_special_tokens(words[columns], offsets, self.begin, self.end)
        return Tokens(bounds, ids, None, np.diff(offsets) > 0)

    def collate(self, tokens: Tokens) -> Batch:
        """Pad, and mark the positions that the mean runs over."""
        ids = tokens.padded(self.pad)
        if self.options.pooling == "all":
            ids = np.pad(ids, ((0, 0), (0, self.options.max_length - ids.shape[1])), constant_values=self.pad)
            mask = np.ones(ids.shape, dtype=bool)
        else:
            # Nothing that is averaged sees the end token, which comes after it: the longest sequences drop theirs.
            ids = ids[:, :-1]
            columns = np.arange(ids.shape[1])
            mask = (columns >= 1) & (columns < tokens.lengths[:, None] - 1)
        return {"ids": torch.from_numpy(ids.astype(np.int64)), "mask": torch.from_numpy(mask)}

    def costs(self, tokens: Tokens) -> np.ndarray:
        """Positions that each cell occupies in the network."""
        if self.options.pooling == "all":
            return np.full(len(tokens), self.options.max_length)
        return tokens.lengths - 1

    @classmethod
    def from_checkpoint(cls, path: Path, **options: Any) -> Self:
        """Read ``config.json``, ``tokenizer.json`` and ``pytorch_model.bin`` (or ``model.safetensors``).

        Raises
        ------
        CheckpointError
            If a file is missing or corrupt, or the files do not fit each other.
        """
        name = cls.card.name
        settings_file = require_file(path, ["config.json"], name)
        words_file = require_file(path, ["tokenizer.json"], name)
        weights = ["pytorch_model.bin", "model.safetensors", "model_*.pth", "checkpoint.pth"]
        weights_file = require_file(path, weights, name)
        config = _checked(load_json(settings_file))
        words = _words(load_json(words_file))
        check_words(words, config["vocab_size"], words_file.name)
        model = cls(config, words, **options)
        load_strict(model.network, _renamed(load_tensors(weights_file)), ignore=_IGNORED, source=weights_file.name)
        model.network.eval()
        model.digests = digests(settings_file, words_file, weights_file)
        return model

    @classmethod
    def random(cls, genes: Genes, *, size: Literal["tiny", "official"] = "tiny", rng: int = 0, **options: Any) -> Self:
        """Build tGPT with random weights and a vocabulary of these genes."""
        config = dict(_OFFICIAL if size == "official" else _TINY)
        symbols = {re.sub("[-.]", "_", str(s)) for s in genes.symbols} - {""}
        names = ["<pad>", "</b>", "</s>", "<unk>", *sorted(symbols)][: config.get("vocab_size")]
        names += [f"unused{i}" for i in range(config.setdefault("vocab_size", len(names)) - len(names))]
        model = cls(config, {w: i for i, w in enumerate(names)}, **options)
        randomize(model.network, rng)
        model.network.eval()
        model.digests = {"random": f"{size}-{rng}"}
        return model


class TGPTNetwork(nn.Module):
    """GPT-2 without a language-model head.

    Parameters
    ----------
    vocab_size, positions, dim, layers, heads, hidden, eps
        Sizes.
    type_id
        Token whose vector is added at every position; ``None`` for none.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        positions: int,
        dim: int,
        layers: int,
        heads: int,
        hidden: int,
        eps: float = 1e-5,
        type_id: int | None = 0,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocab_size, dim)
        self.wpe = nn.Embedding(positions, dim)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(PreNormBlock(dim, heads, hidden, eps=eps, dropout=dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.type_id = type_id

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean of the last layer over the marked positions, ``(n, dim)``."""
        last = self.norm(self.states(batch["ids"])[-1])
        return masked_mean(last.float(), batch["mask"])

    def embed(self, ids: Tensor, first: int = 0) -> Tensor:
        """Sum of token, position and type embeddings, ``(n, length, dim)``, where ``ids`` begin at position ``first``."""
        x = self.wte(ids) + self.wpe.weight[first : first + ids.shape[1]]
        return x if self.type_id is None else x + self.wte.weight[self.type_id]

    def states(self, ids: Tensor, *, every: bool = False) -> list[Tensor]:
        """Residual stream before the final norm: after the last block, or from the embedding on after every block."""
        x = self.dropout(self.embed(ids))
        states = [x]
        for block in self.blocks:
            x = block(x)
            states = [*states, x] if every else [x]
        return states

    def resume(self, ids: Tensor, past: Sequence[KeysValues] = ()) -> tuple[Tensor, list[KeysValues]]:
        """States of the last layer after the final norm, of tokens that follow others.

        Parameters
        ----------
        ids
            ``(n, length)``.
        past
            Of every block, the keys and values of the positions before; none at the begin of the sequences.

        Returns
        -------
        ``(n, length, dim)`` float32, and the keys and values of these positions.
        """
        x = self.dropout(self.embed(ids, past[0][0].shape[2] if past else 0))
        own = []
        for i, block in enumerate(self.blocks):
            x, kept = cast(PreNormBlock, block).resume(x, past[i] if past else None)
            own.append(kept)
        return self.norm(x).float(), own


class PreNormBlock(nn.Module):
    """Causal attention and a tanh-GELU network, each behind a layer norm and added to its input."""

    def __init__(self, dim: int, heads: int, hidden: int, *, eps: float, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attention = SelfAttention(dim, heads, causal=True, dropout=dropout)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.linear1 = nn.Linear(dim, hidden)
        self.linear2 = nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Transform ``(n, length, dim)``."""
        return self._fed(x + self.dropout(self.attention(self.norm1(x))))

    def resume(self, x: Tensor, past: KeysValues | None) -> tuple[Tensor, KeysValues]:
        """Transform positions that follow others; also returns their keys and values."""
        attended, own = self.attention.resume(self.norm1(x), past)
        return self._fed(x + self.dropout(attended)), own

    def _fed(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.linear1(self.norm2(x)), approximate="tanh")
        return x + self.dropout(self.linear2(hidden))


def _checked(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration, if it describes the architecture that this file builds."""
    needed = {"model_type": "gpt2", "activation_function": "gelu_new"}
    optional = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}
    missing = [k for k in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head") if k not in config]
    other = [k for k, v in needed.items() if config.get(k) != v]
    other += [k for k, v in optional.items() if config.get(k, v) != v]
    if missing or other:
        shown = ", ".join([*(f"no {k}" for k in missing), *(f"{k}={config.get(k)!r}" for k in other)])
        raise CheckpointError(
            "checkpoint",
            f"config.json with {shown}",
            "a GPT-2 with gelu_new and plainly scaled attention",
            "use the official config.json of tGPT.",
        )
    return config


def _words(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Word to id of a word-level tokenizer file."""
    model = tokenizer.get("model")
    words = model.get("vocab") if isinstance(model, dict) else None
    words = words if isinstance(words, dict) else {}
    lacking = [w for w in ("<pad>", "</b>", "</s>", "<unk>") if w not in words]
    if lacking:
        raise CheckpointError(
            "checkpoint",
            f"tokenizer.json without {', '.join(lacking)}",
            "the word-level tokenizer of tGPT",
            "use the official tokenizer.json.",
        )
    return dict(words)


def _renamed(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official tensors under the network's names; GPT-2 stores matrices as (in, out)."""
    parts = {
        "ln_1": "norm1",
        "ln_2": "norm2",
        "attn.c_attn": "attention.qkv",
        "attn.c_proj": "attention.out_proj",
        "mlp.c_fc": "linear1",
        "mlp.c_proj": "linear2",
    }
    out: dict[str, Tensor] = {}
    for key, tensor in official.items():
        key = key.removeprefix("transformer.")
        match = re.fullmatch(r"h\.(\d+)\.(.+)\.(weight|bias)", key)
        if match is None or match[2] not in parts:
            out[key.replace("ln_f.", "norm.")] = tensor
            continue
        name = f"blocks.{match[1]}.{parts[match[2]]}.{match[3]}"
        out[name] = tensor.T if tensor.ndim == 2 else tensor
        if match[2] == "attn.c_attn":
            stem = f"blocks.{match[1]}.attention"
            q, k, v = (f"{stem}.{p}_proj.{match[3]}" for p in "qkv")
            split_qkv(out, name, (q, k, v))
    return out
