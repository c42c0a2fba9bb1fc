"""scGPT: a transformer over a cell's expressed genes and their binned values (Cui et al. 2024)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from scdrugmap._errors import CheckpointError, InputError
from scdrugmap._logging import warn
from scdrugmap.genes.identifiers import Genes
from scdrugmap.models.base import Batch, ModelOptions, NetworkModel
from scdrugmap.models.card import ModelCard
from scdrugmap.models.kit.checkpoint import digests, load_json, load_strict, load_tensors, require_file, split_qkv
from scdrugmap.models.kit.counts import Counts, splitmix64
from scdrugmap.models.kit.quantiles import N_BINS, bin_ranges
from scdrugmap.models.kit.sampling import lowest
from scdrugmap.models.kit.streams import FileOrderStream
from scdrugmap.models.kit.tokens import Tokens
from scdrugmap.models.kit.transformer import PostNormBlock
from scdrugmap.models.kit.weights import randomize

_IGNORED = (r"decoder\..*", r"cls_decoder\..*", r"mvc_decoder\..*", r"flag_encoder\.weight")
#: Parts of some fine-tuned files that change the model but are not in the official embedding path.
_UNUSED = (r"bn\..*", r"dsbn\..*", r"batch_encoder\..*", r"grad_reverse_discriminator\..*")
_VARIANTS = ("human", "continual-pretrained", "brain", "blood", "heart", "lung", "kidney", "pan-cancer")
_OFFICIAL = {"embsize": 512, "nheads": 8, "d_hid": 512, "nlayers": 12, "dropout": 0.2, "pad_value": -2}
_TINY = {"embsize": 32, "nheads": 4, "d_hid": 48, "nlayers": 2, "dropout": 0.2, "pad_value": -2}
_OFFICIAL_GENES = 60_694


class ScGPTOptions(ModelOptions):
    """Options of scGPT.

    Parameters
    ----------
    max_length
        Longest sequence, with its ``<cls>``.
    ties
        Bin of a value that several bins hold, as counts of one mostly are: a random one of them (as in
        pre-training), the highest (off the distribution that the network saw), or the middle one.
    too_long
        Which genes of a longer cell stay: a uniform random subset, or the first by column of the data.
    binning
        Whether values are binned before a cell is shortened or after it.
    draws
        Random numbers keyed by the content of the cell and ``seed``, or the stream of the official code
        over the cells in file order (NumPy and PyTorch generators seeded with ``seed``, no worker process).
    normalize
        Whether embeddings are divided by their Euclidean norm.
    empty
        Embedding of a cell without any known gene: NaN, or that of ``<cls>`` alone.
    """

    max_length: int = Field(1200, ge=2)
    ties: Literal["random", "upper", "midpoint"] = "random"
    too_long: Literal["sample", "first"] = "sample"
    binning: Literal["before", "after"] = "before"
    draws: Literal["content", "stream"] = "content"
    normalize: bool = False
    empty: Literal["nan", "cls"] = "nan"


class ScGPT(NetworkModel):
    """scGPT; the embedding is the last layer at ``<cls>``.

    Examples
    --------
    >>> from scdrugmap.genes import Genes
    >>> ScGPT.random(Genes.from_names(["TP53", "EGFR"])).dim
    32
    """

    card = ModelCard(
        name="scGPT",
        kind="network",
        architecture="transformer encoder, 12 layers, over expressed genes with values in 50 quantile bins",
        year=2024,
        citation="Cui et al. 2024, scGPT, Nature Methods 21, 1470-1480",
        aliases=("scgpt-human",),
        gene_id="symbol",
        needs_counts=False,
        dim=512,
        vocab_size=60_697,
        max_length=1200,
        n_parameters=50_278_400,
        lora_targets=("q_proj", "k_proj", "v_proj", "out_proj"),
        checkpoints=tuple(f"scgpt-{name}" for name in _VARIANTS),
        weights_licence="not stated (code: MIT)",
        commercial=None,
    )
    Options = ScGPTOptions
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "official": {"draws": "stream", "normalize": True},
        "scdrugmap": {"draws": "stream", "too_long": "first", "binning": "after"},
    }
    network: ScGPTNetwork

    def __init__(self, args: Mapping[str, Any], words: Mapping[str, int], **options: Any) -> None:
        super().__init__(**options)
        special = (str(args.get("pad_token", "<pad>")), "<cls>", "<eoc>")
        self.pad, self.cls, end = (words[w] for w in special)
        self._vocabulary = {w: i for w, i in words.items() if i not in (self.pad, self.cls, end)}
        self.pad_value = float(args["pad_value"])
        self.sequential = self.options.draws == "stream"
        self.network = ScGPTNetwork(
            vocab_size=len(words),
            dim=args["embsize"],
            heads=args["nheads"],
            hidden=args["d_hid"],
            layers=args["nlayers"],
            dropout=args["dropout"],
            pad_value=self.pad_value,
            normalize=self.options.normalize,
        )

    @property
    def dim(self) -> int:
        """Width of the embedding."""
        return self.network.gene.embedding_dim

    @property
    def embeds_empty_cells(self) -> bool:
        """Where an option asks for it."""
        return self.options.empty == "cls"

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """Gene symbol to id, from ``vocab.json``."""
        return self._vocabulary

    @property
    def gene_order(self) -> Literal["vocabulary", "column"]:
        """By column where the first genes stay or the official stream runs over them."""
        by_column = self.options.too_long == "first" or self.options.draws == "stream"
        return "column" if by_column else "vocabulary"

    def survey(self, blocks: Callable[[], Iterator[Counts]]) -> OfficialStream | None:
        """Return the official random streams, at their start."""
        return OfficialStream(self.options.seed) if self.sequential else None

    def tokenize(self, counts: Counts) -> Tokens:
        """``<cls>``, then the expressed genes with their bins; pure unless ``draws="stream"``.

        Raises
        ------
        InputError
            With ``draws="stream"``, if cells do not come in file order.
        """
        X, offsets = counts.X, counts.X.indptr.astype(np.int64)
        stream = counts.survey
        if self.sequential:
            if not isinstance(stream, OfficialStream):
                raise InputError("draws", "stream", "a survey of the data set", "pass survey=model.survey(blocks).")
            stream.advance(counts.rows)
        kept, kept_offsets = np.arange(len(X.data)), offsets
        if np.diff(offsets).max(initial=0) >= self.options.max_length:
            kept, kept_offsets = self._shorten(counts, stream)
        bins = self._bin(counts, kept, kept_offsets, stream)
        n = len(offsets) - 1
        out = kept_offsets + np.arange(n + 1)
        gene = np.ones(out[-1], dtype=bool)
        gene[out[:-1]] = False
        ids = np.full(out[-1], self.cls, dtype=np.int32)
        values = np.full(out[-1], self.pad_value, dtype=np.float32)
        ids[gene], values[gene] = counts.ids[X.indices[kept]], bins
        usable = np.diff(kept_offsets) > 0
        return Tokens(out, ids, values, usable if self.options.empty == "nan" else np.ones(n, dtype=bool))

    def _shorten(self, counts: Counts, stream: OfficialStream | None) -> tuple[np.ndarray, np.ndarray]:
        """Entries of ``counts.X`` that stay, row after row, and where rows begin in them."""
        indptr, top = counts.X.indptr.astype(np.int64), self.options.max_length - 1
        lengths = np.diff(indptr)
        offsets = np.concatenate([[0], np.cumsum(np.minimum(lengths, top))])
        kept = np.arange(offsets[-1]) + np.repeat(indptr[:-1] - offsets[:-1], np.diff(offsets))
        if self.options.too_long == "first":
            return kept, offsets
        over = np.flatnonzero(lengths > top)
        slots = offsets[over][:, None] + np.arange(top)
        if stream is not None:
            kept[slots] = indptr[over][:, None] + np.stack([stream.permutation(int(n))[:top] for n in lengths[over]])
            return kept, offsets
        flat = _entries(indptr, over)
        draws = self._uniforms(counts, flat, np.where(lengths > top, lengths, 0), salt=1)
        chosen = lowest(draws, np.concatenate([[0], np.cumsum(lengths[over])]), top)
        kept[slots] = flat[chosen].reshape(-1, top)
        return kept, offsets

    def _bin(self, counts: Counts, kept: np.ndarray, offsets: np.ndarray, stream: OfficialStream | None) -> np.ndarray:
        """Bin, 1 to 50, of the entries of ``counts.X`` that stay."""
        data = counts.X.data
        if self.options.binning == "after":
            lower, upper = bin_ranges(data[kept], offsets)
        else:
            lower, upper = (bound[kept] for bound in bin_ranges(data, counts.X.indptr))
        if self.options.ties == "upper":
            return upper
        if self.options.ties == "midpoint":
            return upper - (upper - lower) // 2
        if stream is None:
            u = self._uniforms(counts, kept, np.diff(offsets))
        elif self.options.binning == "after":
            u = stream.values.random_sample(len(kept))
        else:
            u = stream.values.random_sample(len(data))[kept]
        return np.ceil(u * (lower - upper) + upper).astype(np.int64)

    def _uniforms(self, counts: Counts, entries: np.ndarray, lengths: np.ndarray, salt: int = 0) -> np.ndarray:
        """Uniform numbers in [0, 1) for entries row after row, keyed by cell content, gene and seed."""
        key = splitmix64(splitmix64(np.array([self.options.seed], dtype=np.uint64)) ^ np.uint64(salt))
        cells = np.repeat(splitmix64(counts.cell_keys ^ key), lengths)
        cells ^= splitmix64(counts.gene_hash)[counts.X.indices[entries]]
        return (splitmix64(cells) >> np.uint64(11)) * 2.0**-53

    def collate(self, tokens: Tokens) -> Batch:
        """Pad, and turn values into rows of the network's table of values."""
        lengths = tokens.lengths
        bins = tokens.padded(0, of="values").astype(np.int64)
        bins[:, :1] = 0
        batch = {"ids": torch.from_numpy(tokens.padded(self.pad).astype(np.int64)), "bins": torch.from_numpy(bins)}
        if lengths.min(initial=bins.shape[1]) < bins.shape[1]:
            batch["mask"] = torch.from_numpy(np.arange(bins.shape[1]) < lengths[:, None])
        return batch

    @classmethod
    def from_checkpoint(cls, path: Path, **options: Any) -> Self:
        """Read ``args.json``, ``vocab.json`` and ``best_model.pt``, in any of the three key layouts.

        Raises
        ------
        CheckpointError
            If a file is missing or corrupt, or the files do not fit each other.
        """
        path, name = Path(path), cls.card.name
        weights_file = path if path.is_file() else require_file(path, ["best_model.pt", "*.pt"], name)
        args_file, words_file = require_file(path, ["args.json"], name), require_file(path, ["vocab.json"], name)
        args, words, tensors = load_json(args_file), load_json(words_file), load_tensors(weights_file)
        _check_args(args)
        for word in (str(args.get("pad_token", "<pad>")), "<cls>", "<eoc>"):
            words.setdefault(word, len(words))
        table = tensors.get("encoder.embedding.weight")
        if table is not None and (len(table) != len(words) or sorted(words.values()) != list(range(len(words)))):
            raise CheckpointError(
                "checkpoint",
                f"{len(words)} words in vocab.json (special tokens included) and {len(table)} rows in {weights_file.name}",
                "one row of the gene table for every word",
                "use the vocab.json that came with these weights.",
            )
        model = cls(args, words, **options)
        unused = [k for k in tensors if any(re.fullmatch(p, k) for p in _UNUSED)]
        if unused:
            message = f"{weights_file.name} holds {unused[0]} and others, which the official cell embedding leaves out."
            warn(message)
        ignored = (*_IGNORED, *_UNUSED)
        load_strict(model.network, _renamed(tensors), ignore=ignored, source=weights_file.name)
        model.network.eval()
        model.digests = digests(args_file, words_file, weights_file)
        return model

    @classmethod
    def random(cls, genes: Genes, *, size: Literal["tiny", "official"] = "tiny", rng: int = 0, **options: Any) -> Self:
        """Build scGPT with random weights and a vocabulary of these genes."""
        names = sorted({str(s) for s in genes.symbols} - {""})
        if size == "official":
            names = [*names[:_OFFICIAL_GENES], *(f"unused{i}" for i in range(_OFFICIAL_GENES - len(names)))]
        words = {w: i for i, w in enumerate([*names, "<pad>", "<cls>", "<eoc>"])}
        model = cls(_OFFICIAL if size == "official" else _TINY, words, **options)
        randomize(model.network, rng)
        model.network.eval()
        model.digests = {"random": f"{size}-{rng}-{hashlib.sha256(' '.join(names).encode()).hexdigest()}"}
        return model


class OfficialStream(FileOrderStream):
    """The official code's generators: NumPy's for ties, PyTorch's for the genes of long cells."""

    def restart(self) -> None:
        """Go back to the first cell."""
        super().restart()
        self._genes = torch.Generator().manual_seed(self.seed)
        # The official data loader takes one number for its workers before the first cell.
        torch.empty((), dtype=torch.int64).random_(generator=self._genes)

    def permutation(self, n: int) -> np.ndarray:
        """Return the next random order of ``n`` genes."""
        return torch.randperm(n, generator=self._genes).numpy()


class ScGPTNetwork(nn.Module):
    """scGPT's encoder.

    Parameters
    ----------
    vocab_size, dim, heads, hidden, layers, dropout
        Sizes.
    pad_value
        Value of ``<cls>``.
    normalize
        Whether the output has norm one.
    """

    levels: Tensor

    def __init__(
        self,
        *,
        vocab_size: int,
        dim: int,
        heads: int,
        hidden: int,
        layers: int,
        dropout: float,
        pad_value: float,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        self.gene = nn.Embedding(vocab_size, dim)
        self.gene_norm = nn.LayerNorm(dim)
        self.value1 = nn.Linear(1, dim)
        self.value2 = nn.Linear(dim, dim)
        self.value_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(PostNormBlock(dim, heads, hidden, dropout=dropout) for _ in range(layers))
        self.normalize = normalize
        levels = torch.cat([torch.tensor([pad_value]), torch.arange(1.0, N_BINS + 1)])
        self.register_buffer("levels", levels.clamp(max=512), persistent=False)

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Last layer at ``<cls>``, ``(n, dim)``."""
        mask = batch.get("mask")
        x = self.embed(batch)  # (cells, length, dim)
        for block in self.blocks[:-1]:
            x = block(x, mask)
        out = self.blocks[-1](x, mask, rows=slice(0, 1))[:, 0].float()
        return F.normalize(out, dim=-1) if self.normalize else out

    def embed(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Sum of gene and value embeddings, ``(n, length, dim)``."""
        return self.embed_genes(batch["ids"]) + self.dropout(self.embed_values(batch["bins"]))

    def embed_genes(self, ids: Tensor) -> Tensor:
        """Normalised rows of the gene table."""
        return self.gene_norm(self.gene(ids))

    def embed_values(self, bins: Tensor) -> Tensor:
        """Encoded values; only 51 different ones occur, so each is encoded once per batch."""
        table = self.value_norm(self.value2(F.relu(self.value1(self.levels[:, None]))))  # (51, dim)
        return F.embedding(bins, table)

    def states(self, batch: Mapping[str, Tensor]) -> list[Tensor]:
        """Embedding and the output of every layer at every position."""
        states = [self.embed(batch)]
        for block in self.blocks:
            states.append(block(states[-1], batch.get("mask")))
        return states


def _entries(indptr: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Positions of the stored values of some rows."""
    lengths = np.diff(indptr)[rows]
    ends = np.cumsum(lengths)
    return np.arange(lengths.sum()) + np.repeat(indptr[rows] - (ends - lengths), lengths)


def _check_args(args: Any) -> None:
    """Raise unless ``args.json`` gives the sizes."""
    missing = [k for k in _OFFICIAL if k not in args]
    if missing:
        raise CheckpointError(
            "checkpoint",
            f"args.json without {', '.join(missing)}",
            "the sizes of the network and the value of <cls>",
            "use the args.json that came with these weights.",
        )


def _renamed(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official tensors under the network's names; the attention has three key layouts of equal content."""
    out: dict[str, Tensor] = {}
    for key, tensor in official.items():
        match = re.fullmatch(r"transformer_encoder\.layers\.(\d+)\.(.+?)[._](weight|bias)", key)
        if match is None:
            name = key.replace("encoder.embedding.", "gene.").replace("encoder.enc_norm.", "gene_norm.")
            name = re.sub(r"^value_encoder\.(?:linear(?=\d)|(?=norm))", "value", name)
            out[name.replace("valuenorm", "value_norm")] = tensor
            continue
        layer, part, kind = match.groups()
        part = part.removeprefix("self_attn.").removeprefix("_impl.")
        stem = f"blocks.{layer}.attention"
        if part in ("Wqkv", "in_proj"):
            fused = f"{stem}.qkv.{kind}"
            out[fused] = tensor
            split_qkv(out, fused, (f"{stem}.q_proj.{kind}", f"{stem}.k_proj.{kind}", f"{stem}.v_proj.{kind}"))
        else:
            out[f"{stem}.{part}.{kind}" if part == "out_proj" else f"blocks.{layer}.{part}.{kind}"] = tensor
    return out
