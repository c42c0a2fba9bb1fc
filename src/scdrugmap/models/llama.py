"""Llama 3 as an embedder: a cell is read as a sentence of its gene symbols, the most expressed first."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from scdrugmap._errors import CheckpointError, InputError
from scdrugmap._logging import warn
from scdrugmap.genes.identifiers import Genes
from scdrugmap.models.base import Batch, ModelOptions, NetworkModel
from scdrugmap.models.card import ModelCard
from scdrugmap.models.kit.checkpoint import digests, load_json, require_file
from scdrugmap.models.kit.counts import Alignment, Counts
from scdrugmap.models.kit.ranking import rank_rows
from scdrugmap.models.kit.tokens import Tokens
from scdrugmap.models.kit.transformer import masked_mean
from scdrugmap.models.kit.weights import randomize
from scdrugmap.models.kit.word_tokens import WordTokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

#: Tensors beside the decoder: the language-model head and a classifier's.
_IGNORED = re.compile(r"lm_head\..*|score\..*|.*rotary_emb\.inv_freq")
#: How Llama 3 cuts text into words before merging bytes.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_OFFICIAL: dict[str, Any] = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
_TINY: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


class LlamaOptions(ModelOptions):
    """Options of the Llama embedder.

    Parameters
    ----------
    text
        ``"paper"``: expressed genes by expression, symbols with spaces between. ``"code"``: every column in file
        order, the symbol followed by its value, as the published code writes it.
    max_genes
        Genes of a sentence (``"paper"`` only).
    max_tokens
        Tokens of a sentence, with the begin token; a gene may be cut.
    ties
        Order of equally expressed genes, which are most of a sentence: by symbol, or by column of the data.
    names
        Symbols as harmonised, or the names of the data as they stand.
    pooling
        Mean over all tokens, mean without the begin token, or the last token.
    empty
        Embedding of a cell without counts: NaN, or that of the begin token alone.
    weights
        Arithmetic type of the weights in memory; bfloat16 halves the 32 GB and costs about 1e-2 in precision.
    """

    text: Literal["paper", "code"] = "paper"
    max_genes: int = Field(1024, ge=1)
    max_tokens: int = Field(4096, ge=2)
    ties: Literal["symbol", "column"] = "symbol"
    names: Literal["symbols", "var_names"] = "symbols"
    pooling: Literal["mean", "mean_no_bos", "last"] = "mean"
    empty: Literal["nan", "bos"] = "nan"
    weights: Literal["float32", "bfloat16"] = "float32"


class Llama(NetworkModel):
    """Llama 3 8B; the embedding is the mean over all tokens of the last hidden state.

    There is no gene vocabulary: any symbol is text.

    Examples
    --------
    >>> from scdrugmap.genes import Genes
    >>> Llama.random(Genes.from_names(["TP53", "EGFR"])).dim
    32
    """

    card = ModelCard(
        name="Llama-3-8B",
        kind="network",
        architecture="Llama decoder, 32 layers, over a sentence of gene symbols",
        year=2024,
        citation="Grattafiori et al. 2024, The Llama 3 herd of models, arXiv 2407.21783",
        aliases=("LLaMa3-8B", "Llama3", "Meta-Llama-3-8B"),
        species=("any",),
        gene_id="symbol",
        needs_counts=False,
        dim=4096,
        vocab_size=128_256,
        max_length=4096,
        n_parameters=7_504_924_672,
        lora_targets=("q_proj", "k_proj", "v_proj", "o_proj"),
        checkpoints=("llama38b",),
        weights_licence="Meta Llama 3 Community License",
        commercial=True,
        gated=True,
    )
    Options = LlamaOptions
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "official": {"ties": "column", "names": "var_names", "empty": "bos"},
        "scdrugmap": {"text": "code", "ties": "column", "names": "var_names", "empty": "bos"},
    }
    token_budget: ClassVar[int] = 8192
    #: Any symbol is text: there are no unknown genes.
    open_vocabulary: ClassVar[bool] = True
    network: LlamaNetwork

    def __init__(self, decoder: Any, tokenizer: Any, **options: Any) -> None:
        super().__init__(**options)
        self.network = LlamaNetwork(decoder)
        self.tokenizer = tokenizer
        self.begin: list[int] = tokenizer("")["input_ids"]
        if self.options.max_tokens > decoder.config.max_position_embeddings:
            raise InputError(
                "max_tokens",
                self.options.max_tokens,
                f"at most {decoder.config.max_position_embeddings}, the context of this checkpoint",
                "pass a smaller max_tokens.",
            )
        self._words: tuple[np.ndarray, WordTokens | None] = (np.empty(0), None)

    @property
    def dim(self) -> int:
        """Width of the embedding."""
        return self.network.decoder.config.hidden_size

    @property
    def embeds_empty_cells(self) -> bool:
        """Where an option asks for it."""
        return self.options.empty == "bos"

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """Empty: symbols are text, nothing is out of vocabulary."""
        return {}

    @property
    def gene_order(self) -> Literal["vocabulary", "column"]:
        """Order of the columns: by symbol, or as in the data."""
        return "column" if self.options.ties == "column" or self.options.text == "code" else "vocabulary"

    def gene_names(self, genes: Genes) -> np.ndarray:
        """Return the words of the sentence; warns about Ensembl ids, which say little to a language model."""
        if self.options.names == "symbols":
            return super().gene_names(genes)
        share = float(np.char.startswith(genes.names.astype(str), "ENSG").mean()) if len(genes) else 0.0
        if share > 0.5:
            warn(
                f"{share:.0%} of the names are Ensembl ids, which Llama reads letter by letter; "
                "call sd.pp.harmonize_genes(adata) and use names='symbols'."
            )
        return genes.names

    def align(self, genes: Genes) -> Alignment:
        """Take every named column; ids follow the alphabet, so that ties cannot depend on the data's columns."""
        names = self.gene_names(genes)
        words = sorted({*map(str, names)} - {""})
        return Alignment.match(names, {w: i for i, w in enumerate(words)}, order=self.gene_order)

    def tokenize(self, counts: Counts) -> Tokens:
        """Write the sentences and cut them into tokens, each distinct word once."""
        sentence = self._written if self.options.text == "code" else self._ranked
        encoded, words, offsets = sentence(counts)
        if not encoded.independent:
            # A tokenizer that merges across spaces needs whole sentences.
            texts = ["".join(encoded.texts[w] for w in row) for row in np.split(words, offsets[1:-1])]
            encoded, words, offsets = WordTokens(self._encode, texts), np.arange(len(texts)), np.arange(len(texts) + 1)
        room = self.options.max_tokens - len(self.begin)
        ids, lengths = encoded.concatenate(words, offsets, room)
        cut = int((lengths > room).sum())
        if cut and self.options.text == "paper":
            warn(
                f"{cut} of {len(lengths)} sentences are longer than max_tokens={self.options.max_tokens}; "
                "their last genes are left out."
            )
        kept = np.minimum(lengths, room)
        ends = np.concatenate([[0], np.cumsum(kept + len(self.begin))])
        out = np.empty(ends[-1], dtype=np.int64)
        starts = ends[:-1, None] + np.arange(len(self.begin))
        out[starts] = self.begin
        inside = np.ones(len(out), dtype=bool)
        inside[starts] = False
        out[inside] = ids
        usable = np.diff(counts.X.indptr) > 0
        if self.options.empty == "bos" and not usable.all():
            warn(f"{int((~usable).sum())} cells without counts get the embedding of an empty sentence.")
            usable[:] = True
        return Tokens(ends, out, None, usable)

    def token_columns(self, tokens: Tokens, counts: Counts) -> np.ndarray:
        """Column of ``counts`` that each token is a piece of; only for the paper's sentences, cut word by word."""
        encoded, words, offsets = self._ranked(counts)
        if self.options.text != "paper" or not encoded.independent:
            return np.full(len(tokens.ids), -1)
        rows, place = tokens.positions()
        out = np.full(len(tokens.ids), -1)
        own = place >= len(self.begin)
        lengths = encoded.lengths[words]
        first = np.concatenate([[0], np.cumsum(lengths)])[offsets[:-1]]
        columns = np.repeat(words % len(counts.genes), lengths)
        out[own] = columns[first[rows[own]] + place[own] - len(self.begin)]
        return out

    def _ranked(self, counts: Counts) -> tuple[WordTokens, np.ndarray, np.ndarray]:
        """Words of the paper's sentences: each symbol as the first word, then each with a space before it."""
        if self._words[0] is not counts.genes or self._words[1] is None:
            symbols = [str(g) for g in counts.genes]
            encoded = WordTokens(self._encode, [*symbols, *(f" {s}" for s in symbols)])
            encoded.check_independence(self._encode, np.r_[: min(1, len(symbols)), len(symbols) + 1 : 2 * len(symbols)])
            self._words = (counts.genes, encoded)
        picked, offsets = rank_rows(counts.X.data, counts.X.indptr, self.options.max_genes)
        words = counts.X.indices[picked].astype(np.int64) + len(counts.genes)
        first = offsets[:-1][np.diff(offsets) > 0]
        words[first] -= len(counts.genes)
        return self._words[1], words, offsets  # type: ignore[return-value]

    def _written(self, counts: Counts) -> tuple[WordTokens, np.ndarray, np.ndarray]:
        """Words of the code's sentences; a column is at least one token, so those beyond the limit are never seen."""
        n, k = counts.X.shape[0], min(counts.X.shape[1], self.options.max_tokens)
        X = counts.X[:, :k].tocsr()
        X.sort_indices()
        pairs = np.stack([X.indices.astype(np.float64), X.data])
        distinct, code = np.unique(pairs, axis=1, return_inverse=True)
        column = np.concatenate([np.arange(k), distinct[0].astype(np.int64)])
        value = np.concatenate([np.zeros(k), distinct[1]])
        texts = [f"{counts.genes[c]}{v:.15g}" for c, v in zip(column, value, strict=True)]
        encoded = WordTokens(self._encode, [*(f" {t}" for t in texts), *texts, " "])
        words = np.tile(np.append(np.arange(k), 2 * len(texts)), (n, 1))  # (cells, columns + the last space)
        rows = np.repeat(np.arange(n), np.diff(X.indptr))
        words[rows, X.indices] = k + code.ravel()
        words[:, 0] += len(texts)
        encoded.check_independence(self._encode, words[0] if n else np.empty(0, dtype=np.int64))
        return encoded, words.ravel(), np.arange(n + 1) * (k + 1)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of texts, without the begin token."""
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []

    def collate(self, tokens: Tokens) -> Batch:
        """Pad on the right, where no earlier token can see it, and mark the positions that the mean runs over."""
        ids = tokens.padded(self.begin[0])
        columns, lengths = np.arange(ids.shape[1]), tokens.lengths[:, None]
        first = {"mean": 0, "mean_no_bos": np.minimum(1, lengths - 1), "last": lengths - 1}[self.options.pooling]
        mask = (columns >= first) & (columns < lengths)
        return {"ids": torch.from_numpy(ids), "mask": torch.from_numpy(mask)}

    @classmethod
    def from_checkpoint(cls, path: Path, **options: Any) -> Self:
        """Read a Hugging Face folder: ``config.json``, safetensors (one file or shards), ``tokenizer.json``.

        Raises
        ------
        CheckpointError
            If a file is missing or corrupt, or tensors are missing, unexpected or mis-shaped.
        """
        from transformers import AutoModel, AutoTokenizer

        # Wrong options must not cost the loading of 16 GB.
        recipe = cls.recipes.get(options.get("recipe") or "", {})
        chosen = cls._validated({**recipe, **{k: v for k, v in options.items() if k != "recipe"}})
        files = _files(path)
        folder = files[0].parent
        try:
            with _quiet():
                tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
                decoder, loaded = AutoModel.from_pretrained(
                    folder,
                    dtype=getattr(torch, chosen.weights),  # type: ignore[attr-defined]
                    local_files_only=True,
                    use_safetensors=True,
                    output_loading_info=True,
                    # Reported by name below, instead of by a text that the library prints.
                    ignore_mismatched_sizes=True,
                    attn_implementation="sdpa",
                )
        except Exception as error:
            raise CheckpointError(
                "checkpoint",
                f"{folder.name}: {type(error).__name__}: {str(error).splitlines()[0][:160]}",
                "a complete Llama 3 folder with safetensors",
                "compare the sizes of its files with the official ones and copy or fetch them again.",
            ) from error
        _check_loaded(loaded, folder.name)
        model = cls(decoder, tokenizer, **options)
        model.network.eval()
        model.digests = digests(*files)
        return model

    @classmethod
    def random(cls, genes: Genes, *, size: Literal["tiny", "official"] = "tiny", rng: int = 0, **options: Any) -> Self:
        """Build the decoder with random weights and a tokenizer of single bytes; ``genes`` are text."""
        from transformers import AutoModel, LlamaConfig

        sizes = _OFFICIAL if size == "official" else _TINY
        constant: dict[str, Any] = {"max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0}
        decoder = AutoModel.from_config(LlamaConfig(**sizes, **constant), attn_implementation="sdpa")
        model = cls(decoder, _byte_tokenizer(), **options)
        randomize(model.network, rng)
        model.network.to(getattr(torch, model.options.weights)).eval()
        model.digests = {"random": f"{size}-{rng}"}
        return model


class LlamaNetwork(nn.Module):
    """The bare decoder and the pooling."""

    decoder: Any

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean of the last hidden state over the marked positions, ``(n, dim)`` float32."""
        # Pads lie in the future of every token, so that the causal order is all the masking there is.
        last = self.decoder(input_ids=batch["ids"], use_cache=False).last_hidden_state
        return masked_mean(last.float(), batch["mask"])


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library from reporting the head that is left out on purpose."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _files(path: Path) -> list[Path]:
    """Every file that is read: configuration, tokenizer, weights with all their shards."""
    name = Llama.card.name
    files = [require_file(path, [f], name) for f in ("config.json", "tokenizer.json", "tokenizer_config.json")]
    config = load_json(files[0])
    if config.get("model_type") != "llama":
        raise CheckpointError(
            "checkpoint", f"config.json of model_type {config.get('model_type')!r}", "'llama'", "use a Llama 3 folder."
        )
    weights = require_file(path, ["model.safetensors", "model.safetensors.index.json"], name)
    files.append(weights)
    if weights.suffix == ".json":
        shards = sorted(set(load_json(weights).get("weight_map", {}).values()))
        files += [require_file(weights.parent, [shard], name) for shard in shards]
    return files


def _check_loaded(loaded: Mapping[str, Any], source: str) -> None:
    """Raise if tensors were left at random values, left over or of another shape."""
    for problem, key in (("lacks", "missing"), ("holds unexpected", "unexpected"), ("has mis-shaped", "mismatched")):
        names = sorted(str(n[0] if isinstance(n, tuple) else n) for n in loaded.get(f"{key}_keys", ()))
        names = [n for n in names if not _IGNORED.fullmatch(n)]
        if names:
            raise CheckpointError(
                "checkpoint",
                f"{source} {problem} {', '.join(names[:5])}" + (f" of {len(names)}" if len(names) > 5 else ""),
                "exactly the tensors of the official layout",
                "use the official, unmodified checkpoint.",
            )


def _byte_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer that cuts words as Llama 3 does and knows single bytes only."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    begin, end = "<|begin_of_text|>", "<|end_of_text|>"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.add_special_tokens([begin, end])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=begin, eos_token=end)
